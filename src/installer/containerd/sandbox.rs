//! Runs a pod sandbox of a handler through the CRI and removes it, as a proof that the shim of the handler works. No container is started.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceMode,
    NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest,
    RunPodSandboxRequest, StopPodSandboxRequest,
};
use tonic::transport::Channel;
use tracing::info;

use super::cri::{self, ANSWER_LIMIT, Status, await_within, connect};
use crate::containerd_config::Value;
use crate::installer::host::HostRoot;

/// Label of the pod sandboxes in containerd that Farrier runs as a proof; its value is the handler. No object of Kubernetes has it.
pub const PROOF_LABEL: &str = "farrier.dev/proof";

/// How long a sandbox may take to start, at most. containerd may pull the image of the sandbox first; the kubelet waits four minutes.
const RUN_LIMIT: Duration = Duration::from_mins(2);

/// How long a sandbox may take to end and to be removed. The shim of a virtual machine shuts the machine down.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Why a handler is not proven.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sandbox did not start.
    #[error("handler {handler} failed to run a pod sandbox: {message}")]
    Run {
        /// The handler.
        handler: String,
        /// The error from containerd.
        message: String,
    },
    /// The sandbox started, and was not removed.
    #[error("handler {handler} ran a pod sandbox, and failed to end it: {message}")]
    End {
        /// The handler.
        handler: String,
        /// The error from containerd.
        message: String,
    },
    /// A sandbox that an earlier run left was not removed.
    #[error("failed to remove a pod sandbox that an earlier run left: {0}")]
    Left(#[source] cri::Error),
    /// containerd did not answer.
    #[error(transparent)]
    Cri(#[from] cri::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Run { .. } => Cow::Borrowed(
                "check that the location is that of a shim for this host, and that the node can pull the sandbox image of containerd and has a free pod address",
            ),
            Self::End { .. } => Cow::Borrowed("use another release of the shim"),
            Self::Left(error) | Self::Cri(error) => return error.help(),
        })
    }
}

/// Runs a sandbox of each of `handlers`, and removes it. Sandboxes that an earlier run left are removed first. Takes no longer than
/// `patience` to start a sandbox.
///
/// # Errors
/// When a sandbox does not start or can't be removed. A sandbox that did not start is removed as far as containerd permits that.
pub(crate) async fn prove(
    host: &HostRoot,
    socket: &str,
    handlers: &BTreeSet<String>,
    patience: Duration,
) -> Result<(), Error> {
    // On the heap: every caller would contain this large future.
    Box::pin(prove_each(host, socket, handlers, patience)).await
}

async fn prove_each(
    host: &HostRoot,
    socket: &str,
    handlers: &BTreeSet<String>,
    patience: Duration,
) -> Result<(), Error> {
    remove_left(host, socket).await?;
    let status = cri::status(host, socket).await?;
    for handler in handlers {
        info!(handler, "running a pod sandbox");
        let mut client = connect(host, socket).await?;
        let request = RunPodSandboxRequest {
            config: Some(config(handler, &status)),
            runtime_handler: handler.clone(),
        };
        let limit = RUN_LIMIT.min(patience);
        let ran = await_within(socket, limit, client.run_pod_sandbox(request)).await;
        // Also after a failure: the list has what containerd did not remove itself.
        let removed = remove_left(host, socket).await;
        ran.map_err(|error| Error::Run {
            handler: handler.clone(),
            message: error.into_message(),
        })?;
        removed.map_err(|error| Error::End {
            handler: handler.clone(),
            message: match error {
                Error::Left(error) | Error::Cri(error) => error.into_message(),
                Error::Run { message, .. } | Error::End { message, .. } => message,
            },
        })?;
    }
    Ok(())
}

/// Ends and removes all sandboxes of Farrier.
///
/// # Errors
/// When containerd does not list, end or remove one of them.
pub(crate) async fn remove_left(host: &HostRoot, socket: &str) -> Result<(), Error> {
    // On the heap, as above.
    Box::pin(remove_each(host, socket)).await
}

async fn remove_each(host: &HostRoot, socket: &str) -> Result<(), Error> {
    let mut client = connect(host, socket).await?;
    let list = client.list_pod_sandbox(ListPodSandboxRequest { filter: None });
    let list = await_within(socket, ANSWER_LIMIT, list).await?;
    let left = list.items.into_iter();
    // The filter of the request compares values, and the value of the label is the handler.
    let is_ours = |sandbox: &PodSandbox| sandbox.labels.contains_key(PROOF_LABEL);
    for sandbox in left.filter(is_ours) {
        remove(&mut client, socket, sandbox.id)
            .await
            .map_err(Error::Left)?;
    }
    Ok(())
}

async fn remove(
    client: &mut RuntimeServiceClient<Channel>,
    socket: &str,
    pod_sandbox_id: String,
) -> Result<(), cri::Error> {
    let request = StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    await_within(socket, END_LIMIT, client.stop_pod_sandbox(request)).await?;
    let request = RemovePodSandboxRequest { pod_sandbox_id };
    await_within(socket, END_LIMIT, client.remove_pod_sandbox(request)).await?;
    Ok(())
}

/// The sandbox of a proof, in the network of pods if it is ready: shims of virtual machines have no other.
fn config(handler: &str, status: &Status) -> PodSandboxConfig {
    let network = if status.network.ready {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Node
    };
    let namespace_options = NamespaceOption {
        network: network as i32,
        ..NamespaceOption::default()
    };
    let options = status.served.options.get(handler);
    let systemd = options.and_then(|options| options.get("SystemdCgroup"));
    let linux = LinuxPodSandboxConfig {
        // With systemd, the cgroup of a container must be a unit of a slice, which the default is not.
        cgroup_parent: match systemd {
            Some(Value::Boolean(true)) => "system.slice".to_owned(),
            Some(_) | None => String::new(),
        },
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(namespace_options),
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let metadata = PodSandboxMetadata {
        name: "farrier-proof".to_owned(),
        // containerd refuses a name that it knows already.
        uid: format!("farrier-{}", now.unwrap_or_default().as_nanos()),
        namespace: "farrier".to_owned(),
        attempt: 0,
    };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: "farrier-proof".to_owned(),
        labels: [(PROOF_LABEL.to_owned(), handler.to_owned())].into(),
        linux: Some(linux),
        ..PodSandboxConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::cri::{Network, Served};

    #[rstest]
    #[case::of_the_host(false, None, NamespaceMode::Node, "")]
    #[case::of_pods(true, Some(false), NamespaceMode::Pod, "")]
    #[case::with_systemd(true, Some(true), NamespaceMode::Pod, "system.slice")]
    fn a_sandbox_suits_the_network_and_the_cgroups_of_the_node(
        #[case] ready: bool,
        #[case] systemd: Option<bool>,
        #[case] network: NamespaceMode,
        #[case] cgroup_parent: &str,
    ) {
        let systemd = systemd.map(|systemd| ("SystemdCgroup".to_owned(), Value::Boolean(systemd)));
        let options = BTreeMap::from_iter(systemd);
        let status = Status {
            served: Served {
                options: BTreeMap::from([("a".to_owned(), options)]),
                ..Served::default()
            },
            network: Network { ready, cni: None },
            ..Status::default()
        };
        let config = config("a", &status);
        assert_eq!(config.labels[PROOF_LABEL], "a");
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, cgroup_parent);
        let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!(namespaces.network, network as i32);
    }
}
