//! Client of the CRI (`runtime.v1`, Unix socket): reads the served handlers and the handlers in use. Contains no decisions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ContainerState, ListContainersRequest, ListPodSandboxRequest, PodSandbox,
    PodSandboxState, StatusRequest, VersionRequest,
};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::containerd_config::{CniSettings, Value};
use crate::handoff::{EndingPod, printable};
use crate::installer::host::HostRoot;
use crate::installer::host::path::file_name;

/// Limit of one call. The CRI answers in milliseconds; the rest is for a node under load.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a started CRI must answer before the start counts as successful. containerd 1.6 and 1.7 serve their CRI before they open the port
/// of its streams, and end if that fails.
pub(super) const STEADY: Duration = Duration::from_millis(500);

/// Size of a response, in bytes, at most. A verbose status has the whole configuration, a list some 2 kB per sandbox.
pub(super) const MAX_ANSWER: usize = 16 << 20;

/// The end of the answer of a CRI that restores its state (`checkInitialized` in containerd's `pkg/cri/instrument` and `internal/cri/instrument`).
const UNINITIALIZED: &str = "not initialized yet";

/// Why a call to the CRI failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CRI does not answer yet. A later call may succeed.
    #[error("failed to query the CRI at {socket}: {message}")]
    Unavailable {
        /// Path on the host.
        socket: String,
        /// The failure of the connection, or the error from containerd.
        message: String,
    },
    /// The CRI answers that it is still restoring its state, as containerd does after its start. A later call may succeed.
    #[error("failed to query the CRI at {socket}: {message}")]
    Uninitialized {
        /// Path on the host.
        socket: String,
        /// The error from containerd.
        message: String,
    },
    /// containerd runs without its CRI plugin. Another call fails as well.
    #[error("containerd runs without its CRI plugin: {message}")]
    Unimplemented {
        /// The error from containerd.
        message: String,
    },
    /// The response can't be parsed.
    #[error("failed to parse the configuration in the CRI status of containerd: {message}")]
    Unreadable {
        /// The error, without the text of the configuration.
        message: String,
    },
}

impl Error {
    /// The message of the cause alone.
    pub(super) fn into_message(self) -> String {
        match self {
            Self::Unavailable { message, .. }
            | Self::Uninitialized { message, .. }
            | Self::Unimplemented { message }
            | Self::Unreadable { message } => message,
        }
    }

    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Unimplemented { .. } => Cow::Borrowed("run `ctr plugins ls` on the node"),
            Self::Uninitialized { .. } => {
                Cow::Borrowed("wait until containerd has restored its containers")
            }
            Self::Unavailable { .. } | Self::Unreadable { .. } => return None,
        })
    }
}

/// The handlers that the running containerd has loaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The condition `RuntimeReady`.
    pub ready: bool,
    /// The handler of pods without a RuntimeClass.
    pub default: String,
    /// Every handler, with its `runtimeType`.
    pub handlers: BTreeMap<String, String>,
    /// The options of each handler that has any, without zero values, as in [`DeclaredHandler::to_handler`].
    ///
    /// [`DeclaredHandler::to_handler`]: crate::containerd_config::DeclaredHandler::to_handler
    pub options: BTreeMap<String, BTreeMap<String, Value>>,
    /// The `runtimePath` of each handler that has one: the shim that containerd starts, whatever the type is. The journal does not record it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub runtime_paths: BTreeMap<String, String>,
}

impl Served {
    /// Whether both serve the same handlers, as far as the journal records them.
    #[must_use]
    pub fn has_same_handlers(&self, other: &Self) -> bool {
        (self.ready, &self.default) == (other.ready, &other.default)
            && self.handlers == other.handlers
            && self.options == other.options
    }

    /// Whether containerd runs the pods of `handler` with runc's shim; `""` is the default handler.
    #[must_use]
    pub fn is_runc(&self, handler: &str) -> bool {
        let handler = if handler.is_empty() {
            &self.default
        } else {
            handler
        };
        let is_of_runc = |path: &String| file_name(path).starts_with("containerd-shim-runc-");
        let runtime_type = self.handlers.get(handler);
        let path = self.runtime_paths.get(handler);
        runtime_type.is_some_and(|it| it.starts_with("io.containerd.runc."))
            && path.is_none_or(is_of_runc)
    }
}

/// The directories that the running containerd keeps its data in; `None` where it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataDirectories {
    /// The directory of persistent data.
    pub root: Option<String>,
    /// The directory of volatile data.
    pub state: Option<String>,
}

/// The network of the pods of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The condition `NetworkReady`.
    pub ready: bool,
    /// The settings that the running containerd uses; `None` where it does not tell.
    pub cni: Option<CniSettings>,
}

/// What the CRI tells about the running containerd.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// The handlers.
    pub served: Served,
    /// The directories of its data.
    pub directories: DataDirectories,
    /// The network of the pods.
    pub network: Network,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    containerd: Containerd,
    #[serde(default)]
    cni: Option<Cni>,
    // The directories of the CRI's plugin, which are below those of containerd (`pkg/cri/cri.go` and `plugins/cri/cri.go`).
    #[serde(default)]
    root_dir: String,
    #[serde(default)]
    state_dir: String,
}

impl Config {
    fn served(self, ready: bool) -> Served {
        let mut served = Served {
            ready,
            default: self.containerd.default_runtime_name,
            ..Served::default()
        };
        for (name, runtime) in self.containerd.runtimes.unwrap_or_default() {
            let options = runtime.options();
            if !options.is_empty() {
                served.options.insert(name.clone(), options);
            }
            if !runtime.path.is_empty() {
                served.runtime_paths.insert(name.clone(), runtime.path);
            }
            served.handlers.insert(name, runtime.kind);
        }
        served
    }

    fn directories(&self) -> DataDirectories {
        let above = |directory: &str| {
            let (above, _) = directory.trim_end_matches('/').rsplit_once('/')?;
            let above = if above.is_empty() { "/" } else { above };
            Some(above.to_owned())
        };
        DataDirectories {
            root: above(&self.root_dir),
            state: above(&self.state_dir),
        }
    }
}

/// Each release has a part of these keys.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cni {
    conf_dir: String,
    bin_dir: String,
    // Go writes a nil slice as null.
    bin_dirs: Option<Vec<String>>,
    conf_template: String,
}

impl Cni {
    fn settings(self) -> CniSettings {
        let bin_dirs = self.bin_dirs.unwrap_or_default();
        CniSettings::new(&self.conf_dir, &self.bin_dir, bin_dirs, &self.conf_template)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Containerd {
    #[serde(default)]
    default_runtime_name: String,
    // Go writes a nil map as null.
    #[serde(default)]
    runtimes: Option<BTreeMap<String, Runtime>>,
}

#[derive(Deserialize)]
struct Runtime {
    #[serde(default, rename = "runtimeType")]
    kind: String,
    #[serde(default, rename = "runtimePath")]
    path: String,
    #[serde(default)]
    options: Option<BTreeMap<String, serde_json::Value>>,
}

impl Runtime {
    fn options(&self) -> BTreeMap<String, Value> {
        let value = |value: &serde_json::Value| match value {
            serde_json::Value::Bool(value) => value.then_some(Value::Boolean(true)),
            serde_json::Value::Number(value) => {
                let value = value.as_i64().filter(|value| *value != 0);
                value.map(Value::Integer)
            }
            serde_json::Value::String(value) => {
                (!value.is_empty()).then(|| Value::String(value.clone()))
            }
            // No handler of Farrier has options of these types, and those of a dump are not compared.
            serde_json::Value::Null
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => None,
        };
        let options = self.options.iter().flatten();
        options
            .filter_map(|(key, option)| Some((key.clone(), value(option)?)))
            .collect()
    }
}

/// The name of the runtime that answers at a CRI socket, such as `containerd`, `cri-o` or `docker`. A proxy answers with the name of the runtime
/// behind it.
///
/// # Errors
/// When nothing answers at the socket, or no CRI.
pub async fn runtime_name(host: &HostRoot, socket: &str) -> Result<String, Error> {
    let mut client = connect(host, socket).await?;
    let answer = await_response(socket, client.version(VersionRequest::default())).await?;
    Ok(answer.runtime_name)
}

/// Reads the handlers that containerd serves.
///
/// # Errors
/// When containerd does not answer, has no CRI, or its status can't be parsed.
pub async fn served(host: &HostRoot, socket: &str) -> Result<Served, Error> {
    Ok(status(host, socket).await?.served)
}

/// As [`served`], with the directories and the network that containerd uses.
///
/// # Errors
/// As for [`served`].
pub async fn status(host: &HostRoot, socket: &str) -> Result<Status, Error> {
    let mut client = connect(host, socket).await?;
    let status = await_response(socket, client.status(StatusRequest { verbose: true })).await?;
    let conditions = status.status.iter().flat_map(|status| &status.conditions);
    let true_conditions: Vec<&str> = conditions
        .filter(|condition| condition.status)
        .map(|condition| condition.r#type.as_str())
        .collect();
    // On 1.x this text holds registry passwords: it is never logged.
    let config = status.info.get("config").map_or("", String::as_str);
    let mut config: Config = serde_json::from_str(config).map_err(|error| Error::Unreadable {
        message: fault(&error).to_owned(),
    })?;
    let directories = config.directories();
    let network = Network {
        ready: true_conditions.contains(&"NetworkReady"),
        cni: config.cni.take().map(Cni::settings),
    };
    let served = config.served(true_conditions.contains(&"RuntimeReady"));
    Ok(Status {
        served,
        directories,
        network,
    })
}

/// A pod sandbox that is ready or has a container that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Identifier, also of the sandbox's container in containerd.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// The handler; `""` is the default handler.
    pub handler: String,
    /// Whether the sandbox is ready.
    pub ready: bool,
    /// Identifiers of the running containers.
    pub running: Vec<String>,
}

/// The sandboxes in use: ready, or with a container that has not ended. The kubelet keeps the sandboxes of completed pods for their logs and
/// status.
///
/// # Errors
/// As for [`served`].
pub async fn sandboxes(host: &HostRoot, socket: &str) -> Result<Vec<Sandbox>, Error> {
    let mut client = connect(host, socket).await?;
    let request = ListPodSandboxRequest { filter: None };
    let list = await_response(socket, client.list_pod_sandbox(request)).await?;
    let request = ListContainersRequest { filter: None };
    let containers = await_response(socket, client.list_containers(request)).await?;
    Ok(used(list.items, &containers.containers))
}

fn used(sandboxes: Vec<PodSandbox>, containers: &[Container]) -> Vec<Sandbox> {
    let mut alive: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers {
        // A container in an unknown state counts as running.
        if container.state != ContainerState::ContainerExited as i32 {
            let sandbox = container.pod_sandbox_id.as_str();
            alive.entry(sandbox).or_default().push(container);
        }
    }
    let used = sandboxes.into_iter().filter_map(|sandbox| {
        let ready = sandbox.state != PodSandboxState::SandboxNotready as i32;
        let containers = alive.get(sandbox.id.as_str());
        let containers = containers.map_or(&[][..], Vec::as_slice);
        if !ready && containers.is_empty() {
            return None;
        }
        let running = containers.iter().filter(|container| {
            // containerd has no task for a container that was not started.
            container.state != ContainerState::ContainerCreated as i32
        });
        let metadata = sandbox.metadata.unwrap_or_default();
        Some(Sandbox {
            running: running.map(|container| container.id.clone()).collect(),
            id: sandbox.id,
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            handler: sandbox.runtime_handler,
            ready,
        })
    });
    used.collect()
}

/// The pods of each handler, one per sandbox. A sandbox without a handler counts for the handler `default`.
#[must_use]
pub fn pods_by_handler(sandboxes: &[Sandbox], default: &str) -> BTreeMap<String, Vec<EndingPod>> {
    let mut pods = BTreeMap::<_, Vec<EndingPod>>::new();
    for sandbox in sandboxes {
        let handler = match sandbox.handler.as_str() {
            "" => default,
            handler => handler,
        };
        let pod = EndingPod {
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            uid: sandbox.uid.clone(),
            handler: handler.to_owned(),
        };
        let of_handler = pods.entry(handler.to_owned()).or_default();
        of_handler.push(pod.printable());
    }
    pods
}

pub(super) async fn connect(
    host: &HostRoot,
    socket: &str,
) -> Result<RuntimeServiceClient<Channel>, Error> {
    let channel = channel(host, socket).await?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

/// A connection to the socket of containerd, for all its services.
pub(super) async fn channel(host: &HostRoot, socket: &str) -> Result<Channel, Error> {
    let unavailable = |message: String| Error::Unavailable {
        socket: socket.to_owned(),
        message,
    };
    // Resolve the path for each connection, because a restart creates the socket again.
    let (handle, path) = host
        .handle(socket)
        .map_err(|error| unavailable(error.to_string()))?;
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    drop(handle);
    let mut stream = Some(TokioIo::new(stream));
    // The URI only fills the `:authority` header. The connector returns the one connection made above.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("the connection ended")) }
        }))
        .await
        .map_err(|error| unavailable(error.to_string()))
}

async fn await_response<T>(
    socket: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    await_within(socket, ANSWER_LIMIT, call).await
}

/// The response of a call that may take `limit`.
pub(super) async fn await_within<T>(
    socket: &str,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    let unavailable = |message: String| Error::Unavailable {
        socket: socket.to_owned(),
        message,
    };
    let status = match tokio::time::timeout(limit, call).await {
        Ok(Ok(await_response)) => return Ok(await_response.into_inner()),
        Ok(Err(status)) => status,
        Err(_) => return Err(unavailable(format!("no answer within {limit:?}"))),
    };
    match status.code() {
        Code::Unimplemented => Err(Error::Unimplemented {
            message: printable(status.message()),
        }),
        // A starting containerd returns UNAVAILABLE, then UNKNOWN "server is not initialized yet".
        _ if status.message().contains(UNINITIALIZED) => Err(Error::Uninitialized {
            socket: socket.to_owned(),
            message: printable(status.message()),
        }),
        _ => Err(unavailable(printable(status.message()))),
    }
}

/// Describes a JSON error without any text of the configuration.
fn fault(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        Category::Io => "reading failed",
        Category::Syntax => "invalid JSON",
        Category::Data => "unexpected fields",
        Category::Eof => "truncated JSON",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_containerd_are_above_those_of_its_plugin() {
        let directories = |root: &str, state: &str| {
            let config = serde_json::json!({"containerd": {}, "rootDir": root, "stateDir": state});
            let config: Config = serde_json::from_value(config).unwrap();
            let DataDirectories { root, state } = config.directories();
            (root, state)
        };
        let some = |path: &str| Some(path.to_owned());
        let plugin = "io.containerd.grpc.v1.cri";
        assert_eq!(
            directories(&format!("/data/{plugin}"), &format!("/{plugin}/")),
            (some("/data"), some("/"))
        );
        assert_eq!(directories("", plugin), (None, None));
        let absent: Config = serde_json::from_str("{\"containerd\": {}}").unwrap();
        assert_eq!(absent.directories(), DataDirectories::default());
    }

    #[test]
    fn the_settings_of_the_cni_are_read_in_the_words_of_each_release() {
        let settings = |cni: serde_json::Value| {
            let config = serde_json::json!({"containerd": {}, "cni": cni});
            let config: Config = serde_json::from_value(config).unwrap();
            config.cni.map(Cni::settings)
        };
        let expected = |bin_dir: &str| {
            let bin_dirs = vec![bin_dir.to_owned()];
            Some(CniSettings::new("/c", "", bin_dirs, "/t"))
        };
        let of_1 = serde_json::json!({"binDir": "/b", "confDir": "/c", "confTemplate": "/t"});
        assert_eq!(settings(of_1), expected("/b"));
        let of_2 = serde_json::json!({"binDir": "", "binDirs": ["/b"], "confDir": "/c", "confTemplate": "/t"});
        assert_eq!(settings(of_2), expected("/b"));
        let absent = serde_json::json!({"binDirs": null});
        assert_eq!(settings(absent), Some(CniSettings::default()));
        assert_eq!(settings(serde_json::Value::Null), None);
    }

    #[test]
    fn only_handlers_with_the_type_and_the_shim_of_runc_are_taken_for_runc() {
        let runc = "io.containerd.runc.v2";
        let config = serde_json::json!({"containerd": {"defaultRuntimeName": "runc", "runtimes": {
            "runc": {"runtimeType": runc, "runtimePath": ""},
            "old-runc": {"runtimeType": runc},
            "other-runc": {"runtimeType": runc, "runtimePath": "/opt/x/containerd-shim-runc-v2"},
            "hidden": {"runtimeType": runc, "runtimePath": "/opt/x/containerd-shim-spin-v2"},
            "spin": {"runtimeType": "/opt/farrier/bin/containerd-shim-spin", "options": null},
        }}});
        let config: Config = serde_json::from_value(config).unwrap();
        let served = config.served(true);
        let is_runc = [
            "",
            "runc",
            "old-runc",
            "other-runc",
            "hidden",
            "spin",
            "gone",
        ]
        .map(|handler| (handler, served.is_runc(handler)));
        let expected = [
            ("", true),
            ("runc", true),
            ("old-runc", true),
            ("other-runc", true),
            ("hidden", false),
            ("spin", false),
            ("gone", false),
        ];
        assert_eq!(is_runc, expected);
        // A journal has no paths of programs.
        let recorded = Served {
            runtime_paths: BTreeMap::new(),
            ..served.clone()
        };
        assert!(recorded != served && recorded.has_same_handlers(&served));
    }

    #[test]
    fn the_sandbox_of_a_completed_pod_counts_only_while_a_container_runs() {
        let sandbox = |id: &str, state: PodSandboxState| PodSandbox {
            id: id.to_owned(),
            state: state as i32,
            runtime_handler: "spin".to_owned(),
            metadata: Some(k8s_cri::v1::PodSandboxMetadata {
                namespace: "default".to_owned(),
                name: id.to_owned(),
                ..k8s_cri::v1::PodSandboxMetadata::default()
            }),
            ..PodSandbox::default()
        };
        let container = |sandbox: &str, state: i32| Container {
            pod_sandbox_id: sandbox.to_owned(),
            state,
            ..Container::default()
        };
        let sandboxes = [
            sandbox("ready", PodSandboxState::SandboxReady),
            sandbox("empty", PodSandboxState::SandboxNotready),
            sandbox("ended", PodSandboxState::SandboxNotready),
            sandbox("running", PodSandboxState::SandboxNotready),
            sandbox("unknown", PodSandboxState::SandboxNotready),
        ];
        let containers = [
            container("ended", ContainerState::ContainerExited as i32),
            container("running", ContainerState::ContainerExited as i32),
            container("running", ContainerState::ContainerRunning as i32),
            container("unknown", 42),
        ];
        let used = used(sandboxes.to_vec(), &containers);
        let pods = pods_by_handler(&used, "runc");
        let names = pods["spin"].iter().map(|pod| pod.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["ready", "running", "unknown"]);
    }

    #[test]
    fn a_pod_without_a_handler_counts_for_the_default_handler() {
        let sandbox = |name: &str, handler: &str| Sandbox {
            id: name.to_owned(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            handler: handler.to_owned(),
            ready: true,
            running: Vec::new(),
        };
        let sandboxes = [sandbox("web", ""), sandbox("wasm", "spin")];
        let pods = pods_by_handler(&sandboxes, "spin");
        assert_eq!(pods.keys().collect::<Vec<_>>(), ["spin"]);
        let shown: Vec<_> = pods["spin"].iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["default/web (handler spin)", "default/wasm (handler spin)"]
        );
    }
}
