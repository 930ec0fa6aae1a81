//! Looks at the pods that a restart of containerd ends: whether they are still on their node, and whether they run. Reads only.

use std::collections::HashMap;

use futures::StreamExt;
use kube::{Api, Client, ResourceExt};

use super::slim::PodObject;
use crate::handoff::EndingPod;

/// Requests at the same time. A node names at most twenty pods.
const CONCURRENCY: usize = 4;

/// What the API server says about the pods of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodStates {
    /// Pods that have not ended.
    pub left: Vec<EndingPod>,
    /// Pods of `left` with a container that does not run.
    pub stopped: Vec<EndingPod>,
}

/// Asks the API server for `pods`, which are said to be on `node`. `handlers` are the handlers of all RuntimeClasses by name. A pod about
/// which the API server does not answer counts as one that runs.
pub async fn look(
    client: &Client,
    node: &str,
    pods: &[EndingPod],
    handlers: &HashMap<String, String>,
) -> PodStates {
    let answers = futures::stream::iter(pods.iter().cloned()).map(|pod| async move {
        let api: Api<PodObject> = Api::namespaced(client.clone(), &pod.namespace);
        match api.get_opt(&pod.name).await {
            Ok(found) => {
                let there = found.filter(|it| is_still_there(it, &pod, node, handlers));
                there.map(|it| (pod, is_stopped(&it)))
            }
            Err(error) => {
                tracing::warn!(%pod, %error, "failed to look at a pod");
                Some((pod, false))
            }
        }
    });
    let mut states = PodStates::default();
    let mut answers = std::pin::pin!(answers.buffered(CONCURRENCY));
    while let Some(answer) = answers.next().await {
        if let Some((pod, stopped)) = answer {
            states.stopped.extend(stopped.then(|| pod.clone()));
            states.left.push(pod);
        }
    }
    states
}

/// Whether `found` is `pod`, on `node`, and has not ended. The name of the pod comes from a report or an annotation, which the kubelet and
/// accounts with access to the node write: a pod of another node, or with another handler, does not count.
fn is_still_there(
    found: &PodObject,
    pod: &EndingPod,
    node: &str,
    handlers: &HashMap<String, String>,
) -> bool {
    let ended = matches!(found.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let class = found.spec.runtime_class_name.as_deref();
    // The class of a Shim that is being removed is gone already.
    let has_handler = class.is_some_and(|class| {
        let handler = handlers.get(class);
        handler.is_none_or(|handler| *handler == pod.handler)
    });
    !ended
        && has_handler
        && found.uid().is_some_and(|uid| uid == pod.uid)
        && found.spec.node_name.as_deref() == Some(node)
}

/// Whether a container of the pod does not run.
fn is_stopped(pod: &PodObject) -> bool {
    let statuses = pod.status.container_statuses.iter();
    let mut states = statuses.map(|status| status.state.as_ref());
    states.any(|state| state.is_none_or(|state| state.running.is_none()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn pod() -> EndingPod {
        EndingPod {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            handler: "spin".to_owned(),
        }
    }

    #[rstest]
    #[case::there(&[], true)]
    #[case::on_another_node(&[("/spec/nodeName", json!("n2"))], false)]
    #[case::another_pod_of_the_name(&[("/metadata/uid", json!("v"))], false)]
    #[case::ended(&[("/status/phase", json!("Succeeded"))], false)]
    #[case::of_the_default_handler(&[("/spec/runtimeClassName", Value::Null)], false)]
    #[case::of_another_handler(&[("/spec/runtimeClassName", json!("kata"))], false)]
    #[case::of_a_class_that_is_gone(&[("/spec/runtimeClassName", json!("gone"))], true)]
    fn a_pod_counts_while_it_is_on_its_node_with_its_handler(
        #[case] changes: &[(&str, Value)],
        #[case] expected: bool,
    ) {
        let mut found = json!({
            "metadata": {"name": "web", "uid": "u"},
            "spec": {"nodeName": "n1", "runtimeClassName": "wasmtime-spin"},
            "status": {"phase": "Running"},
        });
        for (at, value) in changes {
            *found.pointer_mut(at).unwrap() = value.clone();
        }
        let found = serde_json::from_value(found).unwrap();
        let handlers = [("wasmtime-spin", "spin"), ("kata", "kata")];
        let handlers = handlers.map(|(class, handler)| (class.to_owned(), handler.to_owned()));
        let there = is_still_there(&found, &pod(), "n1", &handlers.into());
        assert_eq!(there, expected);
    }

    #[rstest]
    #[case::runs(json!([{"running": {}}]), false)]
    #[case::one_of_two(json!([{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}]), true)]
    #[case::ended(json!([{"terminated": {"exitCode": 1}}]), true)]
    #[case::unknown(json!([null]), true)]
    #[case::without_containers(json!([]), false)]
    fn a_pod_is_stopped_if_a_container_does_not_run(#[case] states: Value, #[case] expected: bool) {
        let status = |state: &Value| json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let statuses: Vec<_> = states.as_array().unwrap().iter().map(status).collect();
        let found = json!({"metadata": {}, "status": {"containerStatuses": statuses}});
        assert_eq!(
            is_stopped(&serde_json::from_value(found).unwrap()),
            expected
        );
    }
}
