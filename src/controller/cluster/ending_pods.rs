//! Looks at the pods that a restart of containerd ends: whether they are still on their node, and whether they run. Reads only.

use std::collections::HashMap;

use futures::StreamExt;
use kube::{Api, Client, ResourceExt};

use super::slim::PodObject;
use crate::handoff::EndingPod;

/// Requests at the same time. A node names at most twenty pods.
const CONCURRENCY: usize = 4;

/// Annotation of the object that stands for a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What the API server says about the pods of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodStates {
    /// Pods that have not ended, or about which the API server did not answer.
    pub left: Vec<EndingPod>,
    /// Pods of `left` that the API server has confirmed, and that may be evicted.
    pub evictable: Vec<EndingPod>,
    /// Pods of `left` that are being deleted.
    pub ending: Vec<EndingPod>,
    /// Pods of `left` that are static: their kubelet runs them, and no eviction ends them.
    pub static_pods: Vec<EndingPod>,
    /// Pods with a container that does not run, also those that have failed.
    pub stopped: Vec<EndingPod>,
}

/// Asks the API server for `pods`, which are said to be on `node`: for all of them, or up to the first that is left. `handlers` are the
/// handlers of all RuntimeClasses by name. `None` if the API server answered about no pod.
pub async fn look(
    client: &Client,
    node: &str,
    pods: &[EndingPod],
    all: bool,
    handlers: &HashMap<String, String>,
) -> Option<PodStates> {
    let answers = futures::stream::iter(pods.iter().cloned()).map(|pod| async move {
        let api: Api<PodObject> = Api::namespaced(client.clone(), &pod.namespace);
        match api.get_opt(&pod.name).await {
            Ok(found) => {
                let there = found.filter(|it| is_on_node(it, &pod, node, handlers));
                Ok((pod, there))
            }
            Err(error) => Err((pod, error)),
        }
    });
    let mut states = PodStates::default();
    let (mut answered, mut failed) = (false, None);
    let mut answers = std::pin::pin!(answers.buffered(CONCURRENCY));
    while let Some(answer) = answers.next().await {
        match answer {
            Ok((pod, found)) => {
                answered = true;
                if let Some(found) = found {
                    if is_stopped(&found) {
                        states.stopped.push(pod.clone());
                    }
                    if has_ended(&found) {
                        continue;
                    }
                    let kind = if is_static(&found) {
                        &mut states.static_pods
                    } else if found.metadata.deletion_timestamp.is_some() {
                        &mut states.ending
                    } else {
                        &mut states.evictable
                    };
                    kind.push(pod.clone());
                    states.left.push(pod);
                }
            }
            Err((pod, error)) => {
                failed = Some(error);
                states.left.push(pod);
            }
        }
        if !all && !states.left.is_empty() {
            break;
        }
    }
    if let Some(error) = failed {
        tracing::warn!(%error, "failed to look at pods that a restart of containerd would end");
    }
    answered.then_some(states)
}

/// Whether `found` is `pod`, on `node`. The name of the pod comes from a report or an annotation, which the kubelet and
/// accounts with access to the node write: a pod of another node, or with another handler, does not count.
fn is_on_node(
    found: &PodObject,
    pod: &EndingPod,
    node: &str,
    handlers: &HashMap<String, String>,
) -> bool {
    let class = found.spec.runtime_class_name.as_deref();
    // The class of a Shim that is being removed is gone already.
    let has_handler = class.is_some_and(|class| {
        let handler = handlers.get(class);
        handler.is_none_or(|handler| *handler == pod.handler)
    });
    has_handler
        && (found.uid().is_some_and(|uid| uid == pod.uid) || mirrors(found, pod))
        && found.spec.node_name.as_deref() == Some(node)
}

/// Whether `found` stands for the static pod `pod`, whose UID in the CRI is the hash of its manifest (Kubernetes, *Static Pods*).
fn mirrors(found: &PodObject, pod: &EndingPod) -> bool {
    let mirrored = found.annotations().get(MIRROR_ANNOTATION);
    mirrored.is_some_and(|uid| *uid == pod.uid)
}

/// Whether the pod stands for a static pod.
fn is_static(pod: &PodObject) -> bool {
    pod.annotations().contains_key(MIRROR_ANNOTATION)
}

/// Whether no container of the pod runs any more.
fn has_ended(pod: &PodObject) -> bool {
    matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Whether a container of the pod does not run, and has not succeeded with its pod.
fn is_stopped(pod: &PodObject) -> bool {
    match pod.status.phase.as_deref() {
        Some("Succeeded") => return false,
        Some("Failed") => return true,
        Some(_) | None => {}
    }
    let statuses = pod.status.container_statuses.iter();
    let mut states = statuses.map(|status| status.state.as_ref());
    states.any(|state| state.is_none_or(|state| state.running.is_none()))
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
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
        let there = is_on_node(&found, &pod(), "n1", &handlers.into()) && !has_ended(&found);
        assert_eq!(there, expected);
    }

    #[tokio::test]
    async fn only_pods_that_the_api_server_has_confirmed_may_be_evicted() {
        let answer = |name: &'static str| {
            let metadata = match name {
                "static" => {
                    json!({"name": name, "annotations": {"kubernetes.io/config.mirror": "u"}})
                }
                "ending" => {
                    json!({"name": name, "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"})
                }
                _ => json!({"name": name, "uid": "u"}),
            };
            json!({"metadata": metadata, "spec": {"nodeName": "n1", "runtimeClassName": "spin"}})
        };
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let path = request.uri().path().to_owned();
            let name = ["static", "ending", "web"]
                .into_iter()
                .find(|name| path.ends_with(name));
            let (status, body) = match name {
                Some(name) => (200, answer(name)),
                None => (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden"}),
                ),
            };
            let answer = hyper::Response::builder().status(status);
            std::future::ready(answer.body(Body::from(body.to_string().into_bytes())))
        });
        let client = Client::new(service, "default");
        let pods = ["forbidden", "static", "ending", "web"].map(|name| EndingPod {
            name: name.to_owned(),
            ..pod()
        });
        let handlers = HashMap::from([("spin".to_owned(), "spin".to_owned())]);
        let states = look(&client, "n1", &pods, true, &handlers).await.unwrap();
        assert_eq!(states.left, pods);
        assert_eq!(states.evictable, pods[3..]);
        assert_eq!(states.static_pods, pods[1..2]);
        assert_eq!(states.ending, pods[2..3]);
        assert_eq!(look(&client, "n1", &pods[..1], true, &handlers).await, None);
        let first = look(&client, "n1", &pods[2..], false, &handlers).await;
        assert_eq!(first.unwrap().left, pods[2..3]);
    }

    #[rstest]
    #[case::runs(json!([{"running": {}}]), false)]
    #[case::one_of_two(json!([{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}]), true)]
    #[case::ended(json!([{"terminated": {"exitCode": 1}}]), true)]
    #[case::unknown(json!([null]), true)]
    #[case::without_containers(json!([]), false)]
    #[case::failed(json!("Failed"), true)]
    #[case::succeeded(json!("Succeeded"), false)]
    fn a_pod_is_stopped_if_a_container_does_not_run(#[case] states: Value, #[case] expected: bool) {
        if let Some(phase) = states.as_str() {
            let found =
                json!({"metadata": {}, "status": {"phase": phase, "containerStatuses": []}});
            let found = serde_json::from_value(found).unwrap();
            assert_eq!(is_stopped(&found), expected);
            return;
        }
        let status = |state: &Value| json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let statuses: Vec<_> = states.as_array().unwrap().iter().map(status).collect();
        let found = json!({"metadata": {}, "status": {"containerStatuses": statuses}});
        assert_eq!(
            is_stopped(&serde_json::from_value(found).unwrap()),
            expected
        );
    }
}
