//! Pods without a kubelet: sandboxes that are created through the CRI, with a real shim and a script in place of runc. No tests.

use std::path::Path;
use std::process::Command;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest,
    RunPodSandboxRequest, StatusRequest, StopPodSandboxRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::node::{CONFIG_PATH, Node};

/// A configuration whose sandboxes need no registry, no network and no overlay.
pub const CONFIG: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"localhost/pause:1\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n";

/// The path of the artifact of the real shim, for any handler.
pub const SHIM: &str = "/srv/runc";

const RUNC: &str = include_str!("runc.sh");

/// A node on which containerd serves [`CONFIG`] and pods can be run.
pub fn node(release: &Path) -> Node {
    let node = Node::stopped(release, &[]);
    node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
    for path in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        node.write(path, b"", 0o644);
    }
    node.write("/usr/local/bin/runc", RUNC.as_bytes(), 0o755);
    node.copy(&release.with_file_name("containerd-shim-runc-v2"), SHIM);
    node.copy(&release.with_file_name("ctr"), "/usr/local/bin/ctr");
    node.write("/srv/pause.tar", &image(), 0o644);
    node.start();
    let imported = node
        .enter("/usr/local/bin/ctr")
        .args(["--namespace", "k8s.io", "images", "import"])
        // The CRI unpacks it when it is first needed.
        .args(["--no-unpack", "/srv/pause.tar"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&imported.stderr);
    assert!(imported.status.success(), "{words}");
    // The CRI reads the list of images at its start at the latest.
    node.start();
    node
}

/// An image of one empty file, as `docker save` writes it.
fn image() -> Vec<u8> {
    let archive = |files: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let layer = archive(&[("pause", b"")]);
    let digest = farrier::names::sha256_hex(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/pause"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    let manifest =
        r#"[{"Config":"config.json","RepoTags":["localhost/pause:1"],"Layers":["layer.tar"]}]"#;
    archive(&[
        ("config.json", config.as_bytes()),
        ("layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ])
}

/// The CRI of a node, for the thread of the node and for one start of containerd.
pub struct Cri(RuntimeServiceClient<Channel>);

/// Where containerd listens, alone and as a part of k3s, k0s and `MicroK8s`.
const SOCKETS: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

impl Cri {
    pub async fn connect(node: &Node) -> Self {
        Self::try_connect(node).await.unwrap()
    }

    /// As [`Cri::connect`]; `None` if nothing listens.
    pub async fn try_connect(node: &Node) -> Option<Self> {
        let mut connected = None;
        for socket in SOCKETS {
            // A socket without a process stays behind.
            if let Ok(stream) = UnixStream::connect(node.path(socket)).await {
                connected = Some(TokioIo::new(stream));
            }
        }
        let mut stream = Some(connected?);
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("used up")) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.ok()?;
        Some(Self(RuntimeServiceClient::new(channel)))
    }

    /// Whether the runtime is ready; an error if this containerd runs without its CRI.
    async fn is_ready(&mut self) -> Result<bool, Status> {
        let status = match self.0.status(StatusRequest { verbose: false }).await {
            Ok(status) => status.into_inner().status,
            Err(status) if status.code() == Code::Unimplemented => return Err(status),
            Err(_) => None,
        };
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        let mut runtime = conditions.iter();
        Ok(runtime.any(|condition| condition.r#type == "RuntimeReady" && condition.status))
    }

    /// Starts a pod of `handler`; returns its number.
    pub async fn start_pod(&mut self, handler: &str) -> String {
        self.start_labelled_pod(handler, &[]).await
    }

    /// The number of sandboxes, ready or not.
    pub async fn sandboxes(&mut self) -> usize {
        let request = ListPodSandboxRequest { filter: None };
        let list = self.0.list_pod_sandbox(request).await.unwrap();
        list.into_inner().items.len()
    }

    /// As [`Cri::start_pod`], with labels.
    pub async fn start_labelled_pod(&mut self, handler: &str, labels: &[(&str, &str)]) -> String {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Node as i32,
            ipc: NamespaceMode::Node as i32,
            ..NamespaceOption::default()
        };
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(security_context),
            ..LinuxPodSandboxConfig::default()
        };
        let metadata = PodSandboxMetadata {
            name: "pod".to_owned(),
            uid: "uid".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            linux: Some(linux),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.to_owned(),
        };
        let started = self.0.run_pod_sandbox(request).await.unwrap();
        started.into_inner().pod_sandbox_id
    }

    /// Ends a pod, for which containerd runs its shim once more.
    pub async fn end_pod(&mut self, pod: &str) {
        let pod_sandbox_id = pod.to_owned();
        let request = StopPodSandboxRequest { pod_sandbox_id };
        self.0.stop_pod_sandbox(request.clone()).await.unwrap();
        let StopPodSandboxRequest { pod_sandbox_id } = request;
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.0.remove_pod_sandbox(request).await.unwrap();
    }
}

/// Runs a future on this thread, which has the namespaces of the node.
pub fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

impl Node {
    /// Whether the CRI answers and its runtime is ready; an error if this containerd runs without its CRI.
    pub fn serves(&self) -> Result<bool, Status> {
        wait(async {
            match Cri::try_connect(self).await {
                Some(mut cri) => cri.is_ready().await,
                None => Ok(false),
            }
        })
    }

    /// A command that runs a program of the node on the node.
    pub fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--root", "--target", self.init()])
            .arg(program);
        command
    }
}
