//! Client of containerd's task service: finds the pods that a restart of containerd ends.
//!
//! When containerd 1.7 or later starts, it asks the shim of each container for the processes of the container, and ends each shim that
//! reports none (`loadShims` in `runtime/v2/shim_load.go` of 1.7, `core/runtime/v2/shim_load.go` of 2.0, "cleaning leaked shim process").
//! containerd 2.0 and later spare the shims of sandboxes that their sandbox store knows, and every sandbox of the CRI is one. The same
//! question to the running containerd finds those shims before a restart, whatever their name or release is.

use std::collections::BTreeSet;

use containerd_client::services::v1::ListPidsRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use futures::StreamExt;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use super::cri::{self, ANSWER_LIMIT, Sandbox, Served, channel};
use crate::containerd_config::Version;
use crate::handoff::EndingPod;
use crate::installer::host::HostRoot;

/// The namespace of the CRI in containerd, which is not one of Kubernetes.
pub(super) const NAMESPACE: &str = "k8s.io";

/// The questions at the same time. A node has up to some hundred pods.
pub(super) const CONCURRENCY: usize = 16;

/// The pods of `sandboxes` that a restart of containerd ends, sorted.
///
/// Pods of runc's shim are not looked at: it reports its processes.
///
/// # Errors
/// When containerd does not answer. A shim that does not answer counts as one that reports no process.
pub async fn ending_pods(
    host: &HostRoot,
    socket: &str,
    sandboxes: &[Sandbox],
    served: &Served,
    release: Option<Version>,
) -> Result<Vec<EndingPod>, cri::Error> {
    let questions: Vec<(&Sandbox, &str)> = sandboxes
        .iter()
        .filter(|sandbox| !served.is_runc(&sandbox.handler))
        .flat_map(|sandbox| {
            let containers = containers_to_ask(release, sandbox);
            containers.map(move |container| (sandbox, container))
        })
        .collect();
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let client = TasksClient::new(channel(host, socket).await?);
    let answers = futures::stream::iter(questions).map(|(sandbox, container)| {
        let client = client.clone();
        async move { (!reports_processes(client, container).await).then_some(sandbox) }
    });
    let answers = answers.buffer_unordered(CONCURRENCY);
    let ending: BTreeSet<EndingPod> = answers
        .filter_map(async |sandbox| {
            let sandbox = sandbox?;
            let pod = EndingPod {
                namespace: sandbox.namespace.clone(),
                name: sandbox.name.clone(),
                uid: sandbox.uid.clone(),
                handler: sandbox.handler.clone(),
            };
            Some(pod.printable())
        })
        .collect()
        .await;
    Ok(ending.into_iter().collect())
}

/// The identifiers of the containers whose shims this release asks for processes when it starts.
fn containers_to_ask(release: Option<Version>, sandbox: &Sandbox) -> impl Iterator<Item = &str> {
    let release = release.map(|release| (release.major, release.minor));
    // An unknown release is treated as 1.7, which ends the most.
    let asks = release.is_none_or(|release| release >= (1, 7));
    let asks_sandboxes = asks && release.is_none_or(|(major, _)| major < 2);
    let of_sandbox = (asks_sandboxes && sandbox.ready).then_some(&sandbox.id);
    let of_containers = sandbox.running.iter().filter(move |_| asks);
    of_sandbox
        .into_iter()
        .chain(of_containers)
        .map(String::as_str)
}

/// Whether the shim of a container reports a process. A shim that answers with an error or not in time reports none.
async fn reports_processes(mut client: TasksClient<Channel>, container: &str) -> bool {
    let mut request = Request::new(ListPidsRequest {
        container_id: container.to_owned(),
    });
    let namespace = MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    let response = tokio::time::timeout(ANSWER_LIMIT, client.list_pids(request)).await;
    matches!(response, Ok(Ok(response)) if !response.get_ref().processes.is_empty())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::containerd_1_6_asks_no_shim("1.6.36", &[])]
    #[case::containerd_1_7_asks_sandboxes_too("1.7.35", &["sandbox", "one", "two"])]
    #[case::containerd_2_knows_its_sandboxes("2.0.0", &["one", "two"])]
    #[case::containerd_2_4("2.4.2", &["one", "two"])]
    #[case::an_unknown_release_is_taken_for_1_7("", &["sandbox", "one", "two"])]
    fn a_release_asks_the_shims_of_these_containers(
        #[case] release: &str,
        #[case] expected: &[&str],
    ) {
        let sandbox = Sandbox {
            id: "sandbox".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            handler: "spin".to_owned(),
            ready: true,
            running: vec!["one".to_owned(), "two".to_owned()],
        };
        let asked: Vec<&str> = containers_to_ask(release.parse().ok(), &sandbox).collect();
        assert_eq!(asked, expected);
        let ended = Sandbox {
            ready: false,
            running: Vec::new(),
            ..sandbox
        };
        let asked = containers_to_ask(release.parse().ok(), &ended);
        assert_eq!(asked.count(), 0, "an ended sandbox has no shim");
    }
}
