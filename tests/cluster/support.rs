//! The cluster that `cargo xtask test` brought up, as the tests see it: its API, its nodes, the shim that is served to it.
//!
//! Each helper waits for a condition, with a deadline. Helpers, no tests.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use farrier::api::Shim;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Client, Config, ResourceExt};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

mod node;

/// Time limit of a condition. A Job takes seconds, and the controller tries to remove a shim in use again after 30, 90 and 210 seconds. The
/// kubelet removes the sandbox of a deleted pod within a minute or two.
pub const DEADLINE: Duration = Duration::from_mins(5);

/// Interval between two checks of a condition that can't be watched.
const LOOK: Duration = Duration::from_millis(250);

/// Handler, RuntimeClass and Shim of the runtime of these tests.
pub const SHIM: &str = "wasmi";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterFile {
    kubeconfig: PathBuf,
    helm: PathBuf,
    control_plane_netns: String,
    nodes: Vec<NodeFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct NodeFile {
    name: String,
    containerd: String,
    pid: u32,
    root: PathBuf,
    netns: String,
}

/// The artifacts that `xtask` serves to the cluster.
#[derive(Debug, Deserialize)]
pub struct Artifacts {
    /// Base of the HTTPS URLs.
    pub https: String,
    /// PEM file of the authority that signed the server's certificate.
    pub ca: PathBuf,
    /// The good archive, behind a redirect.
    pub shim: Artifact,
    /// The same shim as another release: the digest of the binary differs, the behaviour is the same.
    pub upgrade: Artifact,
    /// Faulty archives, by fault.
    pub faults: BTreeMap<String, Artifact>,
}

/// One archive on the server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    pub url: String,
    pub sha256: String,
    pub binary_sha256: Option<String>,
}

/// The cluster under test.
pub struct Cluster {
    file: ClusterFile,
    pub artifacts: Artifacts,
    pub client: Client,
}

fn read<T: DeserializeOwned>(variable: &str) -> T {
    let path = std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run these tests by `cargo xtask test cluster`")
    });
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

async fn configuration(file: &ClusterFile) -> Config {
    let kubeconfig = kube::config::Kubeconfig::read_from(&file.kubeconfig).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
        .await
        .unwrap()
}

impl Cluster {
    /// Connects, and installs Farrier by its chart where it is not there yet.
    pub async fn with_farrier() -> Self {
        let cluster = Self::connect().await;
        cluster.helm_install();
        cluster.clear().await;
        cluster
    }

    /// Connects.
    pub async fn connect() -> Self {
        // The provider may be installed already, which is no failure.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file: ClusterFile = read("FARRIER_CLUSTER");
        let config = configuration(&file).await;
        Self {
            file,
            artifacts: read("FARRIER_ARTIFACTS"),
            client: Client::try_from(config).unwrap(),
        }
    }

    /// A client in the name of the controller's account.
    pub async fn as_controller(&self) -> Client {
        self.as_account("farrier").await
    }

    /// A client in the name of a ServiceAccount in the namespace of Farrier.
    pub async fn as_account(&self, name: &str) -> Client {
        let mut config = configuration(&self.file).await;
        config.auth_info.impersonate = Some(format!("system:serviceaccount:farrier:{name}"));
        let groups = ["system:serviceaccounts", "system:authenticated"];
        config.auth_info.impersonate_groups = Some(groups.map(str::to_owned).to_vec());
        Client::try_from(config).unwrap()
    }

    /// Removes the leftovers of a failed test, so that no other test fails.
    async fn clear(&self) {
        for pod in self.pods().list(&ListParams::default()).await.unwrap() {
            self.delete_pod(&pod.name_any()).await;
        }
        for node in self.nodes().list(&ListParams::default()).await.unwrap() {
            // After the test of a node without a kubelet, no program reports for that node, so its Jobs would never end.
            if self
                .file
                .nodes
                .iter()
                .all(|own| own.name != node.name_any())
            {
                let nodes = self.nodes();
                let name = node.name_any();
                nodes.delete(&name, &DeleteParams::default()).await.unwrap();
            }
        }
        for shim in self.shims().list(&ListParams::default()).await.unwrap() {
            if shim.name_any() != SHIM {
                self.delete_shim(&shim.name_any()).await;
            }
        }
        for node in &self.file.nodes {
            self.annotate(&node.name, None).await;
            self.marks_vanish(&node.name).await;
        }
    }

    /// Installs Farrier by its chart, or upgrades it.
    pub fn helm_install(&self) {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/farrier");
        let image = std::env::var("FARRIER_IMAGE").unwrap();
        let (repository, tag) = image.rsplit_once(':').unwrap();
        let values = json!({
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "extraCA": std::fs::read_to_string(&self.artifacts.ca).unwrap(),
            "shims": {"preset": "none", "extra": [self.shim_values()]},
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("values.json");
        std::fs::write(&path, values.to_string()).unwrap();
        let values = path.display().to_string();
        self.helm(&[
            "upgrade",
            "--install",
            "farrier",
            chart,
            "-n",
            "farrier",
            "--create-namespace",
            "--wait",
            "--timeout",
            "2m",
            "--values",
            &values,
        ]);
    }

    /// Runs helm, which must fail, and returns its output.
    pub fn helm_refusal(&self, arguments: &[&str]) -> String {
        let output = self.helm_output(arguments);
        assert!(!output.status.success(), "helm does {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs helm, which must succeed, and returns its output.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let output = self.helm_output(arguments);
        assert!(
            output.status.success(),
            "helm: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // The logs of hooks are in one of the two.
        let both = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&both).into_owned()
    }

    fn helm_output(&self, arguments: &[&str]) -> Output {
        Command::new(&self.file.helm)
            .args(arguments)
            .env("KUBECONFIG", &self.file.kubeconfig)
            .output()
            .unwrap()
    }

    /// Kills the API server, starts it again in the same way, and waits until it answers.
    pub async fn restart_api_server(&self) {
        let directory = self.file.kubeconfig.parent().unwrap().to_str().unwrap();
        let command = |pid: &str| -> Vec<String> {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = text.split_terminator('\0');
            arguments.map(str::to_owned).collect()
        };
        let is_it = |command: &[String]| {
            let program = command
                .first()
                .is_some_and(|it| it.ends_with("/kube-apiserver"));
            program && command.iter().any(|argument| argument.contains(directory))
        };
        let processes = std::fs::read_dir("/proc").unwrap();
        let mut names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let pid = names.find(|pid| is_it(&command(pid))).unwrap();
        let arguments = command(&pid);
        nix::sys::signal::kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        // The parent may not have reaped the process, so the PID stays. The port is free once the last thread has ended.
        eventually("the API server has ended", async || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
            let threads = threads.map_or(0, Iterator::count);
            let ended = stat.is_empty() || stat.contains(") Z ") && threads <= 1;
            if ended { Ok(()) } else { Err(stat) }
        })
        .await;
        let mut again = Command::new("nsenter");
        again.arg(format!(
            "--net=/run/netns/{}",
            self.file.control_plane_netns
        ));
        again
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = again.stderr(Stdio::null()).spawn().unwrap();
        // The process ends with the cluster. As long as its parent has not reaped it, no other process gets its PID.
        std::thread::spawn(move || child.wait());
        eventually("the API server answers", async || {
            self.client.apiserver_version().await.map(drop)
        })
        .await;
    }

    /// Changes the Deployment as an operator does. The next installation of the chart restores it.
    pub async fn scale_controller(&self, replicas: usize) {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "farrier");
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        deployments
            .patch_scale("farrier", &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// The Shim that annotated nodes get, in the words of the chart's values.
    fn shim_values(&self) -> Value {
        let mut values = shim_spec(&self.artifacts.shim, SHIM);
        values["name"] = json!(SHIM);
        values["annotationSelector"] = json!({"kwasm.sh/kwasm-node": "true"});
        values
    }

    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    pub fn shims(&self) -> Api<Shim> {
        Api::all(self.client.clone())
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Starts a pod with the Wasm module and waits for the phase.
    pub async fn wasm_pod(
        &self,
        name: &str,
        node: &str,
        arguments: &[&str],
        phase: &str,
    ) -> String {
        self.wasm_pod_of(SHIM, name, node, arguments, phase).await
    }

    /// As [`wasm_pod`](Self::wasm_pod), of another RuntimeClass.
    pub async fn wasm_pod_of(
        &self,
        class: &str,
        name: &str,
        node: &str,
        arguments: &[&str],
        phase: &str,
    ) -> String {
        let image = std::env::var("FARRIER_HELLO_IMAGE").unwrap();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "runtimeClassName": class,
                "restartPolicy": "Never",
                "nodeSelector": {"kubernetes.io/hostname": node},
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "hello", "image": image, "imagePullPolicy": "Never", "args": arguments}],
            },
        }))
        .unwrap();
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .unwrap();
        eventually(&format!("pod {name} is {phase}"), async || {
            let status = self
                .pods()
                .get(name)
                .await
                .unwrap()
                .status
                .unwrap_or_default();
            if status.phase.as_deref() == Some(phase) {
                Ok(())
            } else {
                Err(status)
            }
        })
        .await;
        self.pods().logs(name, &LogParams::default()).await.unwrap()
    }

    pub async fn delete_pod(&self, name: &str) {
        self.pods()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        eventually(&format!("pod {name} is gone"), async || {
            match self.pods().get_opt(name).await.unwrap() {
                None => Ok(()),
                Some(pod) => Err(pod.status),
            }
        })
        .await;
    }

    /// Waits for an Event on the object, a `Node` or a `Shim`, whose message holds every part.
    pub async fn event_tells(&self, kind: &str, name: &str, parts: &[&str]) {
        let events: Api<Event> = Api::all(self.client.clone());
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name}");
        eventually(&format!("an Event on {name} tells {parts:?}"), async || {
            let list = events
                .list(&ListParams::default().fields(&fields))
                .await
                .unwrap();
            let messages: Vec<String> = list
                .items
                .into_iter()
                .filter_map(|event| event.message)
                .collect();
            let told = messages
                .iter()
                .any(|message| parts.iter().all(|part| message.contains(part)));
            if told { Ok(()) } else { Err(messages) }
        })
        .await;
    }

    /// Waits for a condition of the Shim: type, status, and a message that holds `part`.
    pub async fn condition_becomes(&self, shim: &str, kind: &str, status: &str, part: &str) {
        eventually(
            &format!("shim {shim}: {kind}={status} {part:?}"),
            async || {
                let shim = serde_json::to_value(self.shims().get(shim).await.unwrap()).unwrap();
                let conditions = shim["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let met = conditions.iter().any(|condition| {
                    condition["type"] == kind
                        && condition["status"] == status
                        && condition["message"]
                            .as_str()
                            .is_some_and(|message| message.contains(part))
                });
                if met { Ok(()) } else { Err(conditions) }
            },
        )
        .await;
    }

    pub async fn create_shim(&self, shim: &Shim) {
        self.shims()
            .create(&PostParams::default(), shim)
            .await
            .unwrap();
    }

    /// Deletes the Shim and waits until the object is gone.
    pub async fn delete_shim(&self, name: &str) {
        self.shims()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        eventually(&format!("shim {name} is gone"), async || {
            match self.shims().get_opt(name).await.unwrap() {
                None => Ok(()),
                Some(shim) => Err(shim.status),
            }
        })
        .await;
    }

    /// Sets how many controllers run, and waits until so many are ready and no other is left.
    pub async fn scale(&self, replicas: u32) {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "farrier");
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let parameters = PatchParams::default();
        deployments
            .patch("farrier", &parameters, &patch)
            .await
            .unwrap();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "farrier");
        let controllers = ListParams::default().labels("app.kubernetes.io/component=controller");
        eventually(&format!("{replicas} controllers run"), async || {
            let status = deployments
                .get("farrier")
                .await
                .unwrap()
                .status
                .unwrap_or_default();
            let there = pods.list(&controllers).await.unwrap().items.len();
            let ready = status.ready_replicas.unwrap_or(0);
            if there == replicas as usize && u32::try_from(ready).unwrap() == replicas {
                Ok(())
            } else {
                Err((there, ready))
            }
        })
        .await;
    }

    /// Runs the host's build of Farrier against the cluster.
    pub fn farrier(&self, arguments: &[&str]) -> String {
        let binary = env!("CARGO_BIN_EXE_farrier");
        let output = Command::new(binary)
            .args(arguments)
            .env("KUBECONFIG", &self.file.kubeconfig)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "farrier {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Repeats the check until it succeeds. After the deadline, fails with the last state as message.
pub async fn eventually<T, E: Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    eventually_within(DEADLINE, what, look).await
}

/// As [`eventually`], with another deadline.
pub async fn eventually_within<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > end => {
                panic!("not within {limit:?}: {what}; last seen: {seen:#?}")
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

fn shim_spec(artifact: &Artifact, handler: &str) -> Value {
    let platform = json!({"os": "linux", "arch": "amd64", "location": artifact.url, "sha256": artifact.sha256});
    json!({
        "fetchStrategy": {"platforms": [platform], "binary": "containerd-shim-wasmi-v1"},
        "runtimeClass": {"name": handler, "handler": handler},
        "rolloutStrategy": {"type": "recreate"},
    })
}

/// A Shim object for the nodes that carry the label `test.farrier.dev/<name>`.
pub fn shim_for(name: &str, artifact: &Artifact) -> Shim {
    let mut spec = shim_spec(artifact, name);
    spec["nodeSelector"] = json!({format!("test.farrier.dev/{name}"): "true"});
    serde_json::from_value(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1", "kind": "Shim", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}
