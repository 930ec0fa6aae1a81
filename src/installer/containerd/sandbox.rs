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
use tracing::{info, warn};

use super::cri::{self, ANSWER_LIMIT, Status, await_within, connect};
use super::patience::Deadline;
use crate::containerd_config::Value;
use crate::installer::host::HostRoot;

/// Label of the pod sandboxes in containerd that Farrier runs as a proof; its value is the handler.
pub const PROOF_LABEL: &str = "farrier.dev/proof";

/// Label that the kubelet gives the sandbox of each pod, beside the pod's own labels (Kubernetes, `pkg/kubelet/types/labels.go`).
const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";

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
            Self::Cri(error) => return error.help(),
        })
    }
}

/// Runs a sandbox of each of `handlers`, and removes it. Sandboxes that an earlier run left are removed first, as far as containerd permits
/// that. Ends in time for a rollback before `deadline`.
///
/// # Errors
/// When a sandbox does not start or can't be removed. A sandbox that did not start is removed as far as containerd permits that.
pub(crate) async fn prove(
    host: &HostRoot,
    socket: &str,
    handlers: &BTreeSet<String>,
    deadline: Deadline,
) -> Result<(), Error> {
    // On the heap: every caller would contain this large future.
    Box::pin(prove_each(host, socket, handlers, deadline)).await
}

async fn prove_each(
    host: &HostRoot,
    socket: &str,
    handlers: &BTreeSet<String>,
    deadline: Deadline,
) -> Result<(), Error> {
    remove_leftovers(host, socket).await;
    let status = cri::status(host, socket).await?;
    for handler in handlers {
        info!(handler, "running a pod sandbox");
        Box::pin(prove_one(host, socket, handler, &status, deadline)).await?;
    }
    Ok(())
}

async fn prove_one(
    host: &HostRoot,
    socket: &str,
    handler: &str,
    status: &Status,
    deadline: Deadline,
) -> Result<(), Error> {
    let mut client = connect(host, socket).await?;
    let mut messages = Vec::new();
    // Shims of virtual machines refuse the network of the node. Some network plugins refuse a pod that the API server does not have, so the
    // network of pods comes second.
    let networks = [NamespaceMode::Node, NamespaceMode::Pod];
    let count = if status.network.ready { 2 } else { 1 };
    for network in networks.into_iter().take(count) {
        let request = RunPodSandboxRequest {
            config: Some(config(handler, status, network)),
            runtime_handler: handler.to_owned(),
        };
        let limit = RUN_LIMIT.min(deadline.for_change());
        match await_within(socket, limit, client.run_pod_sandbox(request)).await {
            Ok(answer) => {
                let removed = remove(&mut client, socket, answer.pod_sandbox_id).await;
                return removed.map_err(|error| Error::End {
                    handler: handler.to_owned(),
                    message: error.into_message(),
                });
            }
            Err(error) => messages.push(error.into_message()),
        }
        // containerd removes most of them itself.
        remove_leftovers(host, socket).await;
    }
    messages.dedup();
    Err(Error::Run {
        handler: handler.to_owned(),
        message: messages.join("; in the network of pods: "),
    })
}

/// Ends and removes all sandboxes of Farrier, as far as containerd permits that.
pub(crate) async fn remove_leftovers(host: &HostRoot, socket: &str) {
    // On the heap, as above.
    if let Err(error) = Box::pin(remove_each(host, socket)).await {
        warn!(%error, "failed to remove the pod sandboxes of a proof");
    }
}

async fn remove_each(host: &HostRoot, socket: &str) -> Result<(), cri::Error> {
    let mut client = connect(host, socket).await?;
    let list = client.list_pod_sandbox(ListPodSandboxRequest { filter: None });
    let list = await_within(socket, ANSWER_LIMIT, list).await?;
    // The filter of the request compares values, and the value of the label is the handler.
    for sandbox in list.items.into_iter().filter(is_ours) {
        remove(&mut client, socket, sandbox.id).await?;
    }
    Ok(())
}

/// Whether the sandbox is one of a proof. A sandbox of the kubelet has all labels of its pod, which its author chose.
fn is_ours(sandbox: &PodSandbox) -> bool {
    let labels = &sandbox.labels;
    labels.contains_key(PROOF_LABEL) && !labels.contains_key(POD_UID_LABEL)
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

/// The sandbox of a proof.
fn config(handler: &str, status: &Status, network: NamespaceMode) -> PodSandboxConfig {
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
    use crate::installer::containerd::cri::Served;

    #[rstest]
    #[case::with_cgroupfs(Some(false), "")]
    #[case::without_the_option(None, "")]
    #[case::with_systemd(Some(true), "system.slice")]
    fn a_sandbox_suits_the_cgroups_of_the_node(
        #[case] systemd: Option<bool>,
        #[case] cgroup_parent: &str,
    ) {
        let systemd = systemd.map(|systemd| ("SystemdCgroup".to_owned(), Value::Boolean(systemd)));
        let options = BTreeMap::from_iter(systemd);
        let status = Status {
            served: Served {
                options: BTreeMap::from([("a".to_owned(), options)]),
                ..Served::default()
            },
            ..Status::default()
        };
        let config = config("a", &status, NamespaceMode::Pod);
        assert_eq!(config.labels[PROOF_LABEL], "a");
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, cgroup_parent);
        let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!(namespaces.network, NamespaceMode::Pod as i32);
    }

    #[rstest]
    #[case::of_a_proof(&[PROOF_LABEL], true)]
    #[case::of_a_pod(&["app", POD_UID_LABEL], false)]
    #[case::of_a_pod_with_the_label(&[PROOF_LABEL, POD_UID_LABEL], false)]
    fn no_sandbox_of_a_pod_is_removed(#[case] labels: &[&str], #[case] expected: bool) {
        let labels = labels
            .iter()
            .map(|label| ((*label).to_owned(), String::new()));
        let sandbox = PodSandbox {
            labels: labels.collect(),
            ..PodSandbox::default()
        };
        assert_eq!(is_ours(&sandbox), expected);
    }
}
