//! Runs Farrier on one node as an administrator does, and reads the reports, the files of the node and the processes of its pods. No
//! tests.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use farrier::handoff::{Outcome, ProvisionReport};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::support::{Cluster, eventually};

/// Handler and RuntimeClass of the shim that these tests install. No Shim object knows of it.
pub const HANDLER: &str = "direct";

/// The directory in which an administrator overrides the unit. It is on a tmpfs, so it ends with the node.
const DROP_INS: &str = "/run/systemd/system/containerd.service.d";

/// Restores the interfaces that [`Node::hide_systemd`] hid.
const SHOW_SYSTEMD: &str =
    "[ ! -e /run/dbus/elsewhere ] || mv /run/dbus/elsewhere /run/dbus/system_bus_socket
    [ ! -e /usr/bin/systemctl.elsewhere ] || mv /usr/bin/systemctl.elsewhere /usr/bin/systemctl";

/// A node of the cluster.
pub struct Node<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

/// The result of one call of Farrier.
#[derive(Debug)]
pub struct Run {
    /// Its exit status.
    pub status: i32,
    /// Its report.
    pub report: ProvisionReport,
}

impl Run {
    /// Fails unless the run had this outcome, this exit status and this number of restarts of containerd.
    #[track_caller]
    pub fn is(self, outcome: Outcome, restarts: u32) -> Self {
        assert_eq!(self.report.result, outcome, "{self:#?}");
        assert_eq!(self.report.restarts, restarts, "{self:#?}");
        assert_eq!(self.status, i32::from(outcome.exit_status()), "{self:#?}");
        self
    }

    /// Fails unless the reason or the remedy contains `part`.
    #[track_caller]
    pub fn tells(self, part: &str) -> Self {
        let told = [&self.report.reason, &self.report.remedy];
        let told = told.into_iter().flatten().any(|text| text.contains(part));
        assert!(told, "{part:?} is not told: {self:#?}");
        self
    }

    /// The handlers that are served according to the report.
    pub fn served(&self) -> Vec<&str> {
        let served = self.report.handlers.iter().filter(|handler| handler.served);
        served.map(|handler| handler.handler.as_str()).collect()
    }
}

impl<'a> Node<'a> {
    /// The node with this series of containerd. Farrier's program and two releases of a shim are copied to the node, and the files of
    /// earlier tests are removed.
    pub async fn with(cluster: &'a Cluster, series: &str) -> Self {
        let node = Self {
            cluster,
            name: cluster.node_with(series),
        };
        let root = cluster.root(&node.name);
        // The copy is renamed, because the program may be running.
        let program = std::env::var("FARRIER_BINARY").unwrap();
        fs::copy(program, root.join("opt/images/farrier.new")).unwrap();
        fs::rename(
            root.join("opt/images/farrier.new"),
            root.join("usr/local/bin/farrier"),
        )
        .unwrap();
        for release in ["v0.1.0", "v0.2.0"] {
            let archive = cluster
                .artifacts
                .ca
                .with_file_name(format!("wasmi-{release}.tar.gz"));
            node.unpack(&archive, release);
        }
        node.sh(&format!(
            "{SHOW_SYSTEMD}
             rm -rf {DROP_INS} /run/farrier-test; systemctl daemon-reload; systemctl unmask dbus.socket
             systemctl start dbus.socket; systemctl is-active -q containerd || systemctl restart containerd"
        ));
        let pods = cluster
            .pods()
            .list(&ListParams::default().fields(&format!("spec.nodeName={}", node.name)))
            .await
            .unwrap();
        for pod in pods {
            cluster.delete_pod(&pod.name_any()).await;
        }
        node.no_sandboxes().await;
        // Shims of Wasm pods that a restart has ended.
        node.sh("farrier doctor --end-orphans || true");
        let status = node.farrier("uninstall --all").status;
        assert_eq!(status, 0, "{}: cannot be cleaned", node.name);
        node
    }

    /// Puts the shim of a release on the node, as `/opt/images/shim-<release>`.
    fn unpack(&self, archive: &std::path::Path, release: &str) {
        let path = format!("opt/images/wasmi-{release}.tar.gz");
        fs::copy(archive, self.cluster.root(&self.name).join(&path)).unwrap();
        self.sh(&format!(
            "cd /opt/images; tar -xzOf /{path} containerd-shim-wasmi-v1 > new; mv new shim-{release}; rm /{path}"
        ));
    }

    /// Runs a shell line on the node; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        self.cluster.sh(&self.name, line)
    }

    /// Runs Farrier on the node.
    pub fn farrier(&self, words: &str) -> Run {
        let output = self
            .cluster
            .try_sh(&self.name, &format!("farrier --log error {words} -o json"));
        let text = String::from_utf8_lossy(&output.stdout);
        Run {
            status: output.status.code().unwrap(),
            report: ProvisionReport::from_json(&text).unwrap_or_else(|error| {
                let log = String::from_utf8_lossy(&output.stderr);
                panic!("{}: farrier {words}: {error}: {text}{log}", self.name)
            }),
        }
    }

    /// An administrator's lines for the unit of containerd, from now until the node is cleaned or [`plain_unit`](Self::plain_unit).
    pub fn override_unit(&self, lines: &str) {
        self.write_unit(lines);
        self.sh("systemctl daemon-reload");
    }

    /// As [`override_unit`](Self::override_unit), without the reload.
    pub fn write_unit(&self, lines: &str) {
        self.sh(&format!(
            "mkdir -p {DROP_INS}; printf '%s\\n' '{lines}' > {DROP_INS}/test.conf"
        ));
    }

    /// Removes these lines.
    pub fn plain_unit(&self) {
        self.sh(&format!("rm -r {DROP_INS}; systemctl daemon-reload"));
    }

    /// Hides the node's system bus until [`show_systemd`](Self::show_systemd).
    pub fn hide_bus(&self) {
        self.sh("mv /run/dbus/system_bus_socket /run/dbus/elsewhere");
    }

    /// Hides every interface of systemd until [`show_systemd`](Self::show_systemd).
    pub fn hide_systemd(&self) {
        self.hide_bus();
        self.sh("mv /usr/bin/systemctl /usr/bin/systemctl.elsewhere");
    }

    /// Makes systemd reachable again.
    pub fn show_systemd(&self) {
        self.sh(SHOW_SYSTEMD);
    }

    /// The process that containerd's unit runs.
    pub fn containerd(&self) -> String {
        self.cluster.containerd_pid(&self.name)
    }

    /// The files that Farrier may change and must restore: bytes, modes and owners of the configuration, and Farrier's directories.
    pub fn files(&self) -> String {
        self.sh(
            "cd /etc/containerd; find . -printf '%p %y %m %u:%g %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum
             ls -d /opt/farrier /var/lib/farrier 2>/dev/null || true",
        )
    }

    /// Every container of the tests' pods on the node: its process, and when that started in ticks since the boot (field 22 of
    /// `proc_pid_stat(5)`). containerd itself must know it as running. The cluster may start and end its own pods at any time.
    pub fn processes(&self) -> String {
        self.sh(
            "tasks=$(ctr --namespace k8s.io tasks ls)
             ctr --namespace k8s.io containers ls -q 'labels.\"io.kubernetes.pod.namespace\"==default' | sort | while read id; do
               echo \"$tasks\" | grep \"^$id \" | while read id pid state; do
                 echo \"$id $pid $state $(sed 's/.*) //' /proc/$pid/stat | cut -d' ' -f20)\"
               done || true
             done",
        )
    }

    /// Name of a pod among those of all nodes.
    fn pod(&self, name: &str) -> String {
        format!("{name}-{}", self.name)
    }

    /// Starts a pod that stays, and waits until it runs: a Wasm module for [`HANDLER`], a Linux program for every other.
    pub async fn start_pod(&self, name: &str, handler: Option<&str>) {
        if let Some(handler) = handler {
            self.runtime_class(handler).await;
        }
        let container = if handler == Some(HANDLER) {
            json!({
                "name": "main", "image": std::env::var("FARRIER_HELLO_IMAGE").unwrap(), "imagePullPolicy": "Never",
                "args": ["sleep", "3600"],
            })
        } else {
            json!({"name": "main", "image": "localhost/pause:1", "imagePullPolicy": "Never"})
        };
        let pod = serde_json::from_value(json!({
            "metadata": {"name": self.pod(name)},
            "spec": {
                "nodeName": self.name,
                "runtimeClassName": handler,
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        }))
        .unwrap();
        let pods = self.cluster.pods();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        eventually(&format!("pod {name} runs"), async || {
            let status = pods
                .get(&self.pod(name))
                .await
                .unwrap()
                .status
                .unwrap_or_default();
            match status.phase.as_deref() {
                Some("Running") => Ok(()),
                _ => Err(status),
            }
        })
        .await;
    }

    async fn runtime_class(&self, handler: &str) {
        let classes: Api<RuntimeClass> = Api::all(self.cluster.client.clone());
        let class = json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": handler}, "handler": handler,
        });
        let apply = PatchParams::apply("farrier-test").force();
        classes
            .patch(handler, &apply, &Patch::Apply(class))
            .await
            .unwrap();
    }

    /// The kubelet's status of the node's pods: start time and number of restarts of each container.
    pub async fn pods(&self) -> BTreeMap<String, String> {
        let fields = ListParams::default().fields(&format!("spec.nodeName={}", self.name));
        let pods = self.cluster.pods().list(&fields).await.unwrap();
        let told = pods.into_iter().map(|pod| {
            let name = pod.name_any();
            let containers = pod.status.and_then(|status| status.container_statuses);
            let container = containers.unwrap_or_default().remove(0);
            let state = container.state.unwrap_or_default();
            let told = format!(
                "restarts {}, {:?}, {:?}",
                container.restart_count, container.container_id, state.running
            );
            (name, told)
        });
        told.collect()
    }

    /// Deletes the pods, of handlers that Farrier installed, and waits until they and their sandboxes are gone. containerd is done with a pod
    /// before its kubelet deletes the object.
    pub async fn stop_pods(&self, names: &[&str]) {
        for name in names {
            self.cluster.delete_pod(&self.pod(name)).await;
        }
        self.no_sandboxes().await;
    }

    /// Waits until containerd has no container of a handler that Farrier installed.
    async fn no_sandboxes(&self) {
        let look = "ctr --namespace k8s.io containers ls | grep /opt/farrier/bin/ || true";
        eventually(&format!("{}: no sandbox of ours", self.name), async || {
            let found = self.sh(look);
            if found.is_empty() { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

/// The arguments that install a release of the shim as [`HANDLER`].
pub fn install(release: &str) -> String {
    format!("install --shim {HANDLER}=file:///opt/images/shim-{release}")
}

/// Runs the test on the nodes of all containerd releases at the same time, because most of its time is spent on waiting for kubelets.
pub fn on_every_node<F: Future<Output = ()>>(test: impl Fn(&'static str) -> F + Sync) {
    let run = &|series| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test(series));
    };
    let failed = thread::scope(|scope| {
        let threads =
            ["1.6", "1.7", "2.1", "2.4"].map(|series| (series, scope.spawn(move || run(series))));
        // The test waits for all nodes, also after a failure.
        let mut failed = Vec::new();
        for (series, thread) in threads {
            if thread.join().is_err() {
                failed.push(series);
            }
        }
        failed
    });
    assert!(failed.is_empty(), "failed on containerd {failed:?}");
}
