//! Looks at the pods that a restart of containerd ends: whether they are still on their node, and whether they run. Reads only.

use std::collections::HashMap;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
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
    /// Pods of `left` that the API server has confirmed with their handler, and that may be evicted.
    pub evictable: Vec<EndingPod>,
    /// Pods of `left` that are being deleted.
    pub ending: Vec<EndingPod>,
    /// Pods of `left` that are static: their kubelet runs them, and no eviction ends them.
    pub static_pods: Vec<EndingPod>,
    /// Pods with a container that does not run, also those that have failed.
    pub stopped: Vec<EndingPod>,
}

/// A RuntimeClass, as far as it tells the handler of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    handler: String,
    created: Option<Timestamp>,
}

impl Class {
    /// Of the object.
    #[must_use]
    pub fn of(class: &RuntimeClass) -> Self {
        let created = class.metadata.creation_timestamp.as_ref();
        Self {
            handler: class.handler.clone(),
            created: created.map(|time| time.0),
        }
    }
}

/// Asks the API server for `pods`, which are said to be on `node`: for all of them, or up to the first that is left. `classes` are all
/// RuntimeClasses by name. `None` if the API server answered about no pod.
pub async fn look(
    client: &Client,
    node: &str,
    pods: &[EndingPod],
    all: bool,
    classes: &HashMap<String, Class>,
) -> Option<PodStates> {
    let answers = futures::stream::iter(pods.iter().cloned()).map(|pod| async move {
        let api: Api<PodObject> = Api::namespaced(client.clone(), &pod.namespace);
        match api.get_opt(&pod.name).await {
            Ok(found) => {
                let there = found.filter(|it| is_on_node(it, &pod, node));
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
                    if is_static(&found) {
                        states.static_pods.push(pod.clone());
                    } else if found.metadata.deletion_timestamp.is_some() {
                        states.ending.push(pod.clone());
                    } else if has_handler(&found, &pod, classes) {
                        states.evictable.push(pod.clone());
                    }
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

/// Whether `found` is `pod`, on `node`. The pod comes from a report or an annotation, which the kubelet and accounts with access to the node
/// write: a pod of another node does not count.
fn is_on_node(found: &PodObject, pod: &EndingPod, node: &str) -> bool {
    (found.uid().is_some_and(|uid| uid == pod.uid) || mirrors(found, pod))
        && found.spec.node_name.as_deref() == Some(node)
}

/// Whether the handler of `pod` can be that of `found`. A pod keeps the handler that its class had when it was created: a class that is gone,
/// as that of a Shim that is being removed, or that is younger than the pod says nothing.
fn has_handler(found: &PodObject, pod: &EndingPod, classes: &HashMap<String, Class>) -> bool {
    let Some(class) = &found.spec.runtime_class_name else {
        return pod.handler.is_empty();
    };
    let created = found.metadata.creation_timestamp.as_ref();
    let created = created.map(|time| time.0);
    let class = classes.get(class);
    class.is_none_or(|class| class.handler == pod.handler || class.created > created)
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

    const CLASS: &str = "/spec/runtimeClassName";

    #[rstest]
    #[case::there(&[], true, true)]
    #[case::on_another_node(&[("/spec/nodeName", json!("n2"))], false, true)]
    #[case::another_pod_of_the_name(&[("/metadata/uid", json!("v"))], false, true)]
    #[case::of_the_default_handler(&[(CLASS, Value::Null)], true, false)]
    #[case::of_another_handler(&[(CLASS, json!("kata"))], true, false)]
    #[case::of_a_class_that_is_gone(&[(CLASS, json!("gone"))], true, true)]
    #[case::of_a_class_that_was_replaced(&[(CLASS, json!("replaced"))], true, true)]
    fn a_pod_counts_while_it_is_on_its_node_and_is_evicted_with_its_handler_only(
        #[case] changes: &[(&str, Value)],
        #[case] there: bool,
        #[case] evictable: bool,
    ) {
        let mut found = json!({
            "metadata": {"name": "web", "uid": "u", "creationTimestamp": "2026-01-02T00:00:00Z"},
            "spec": {"nodeName": "n1", "runtimeClassName": "wasmtime-spin"},
        });
        for (at, value) in changes {
            *found.pointer_mut(at).unwrap() = value.clone();
        }
        let found = serde_json::from_value(found).unwrap();
        let classes = [
            ("wasmtime-spin", "spin", "2026-01-01T00:00:00Z"),
            ("kata", "kata", "2026-01-01T00:00:00Z"),
            ("replaced", "another", "2026-01-03T00:00:00Z"),
        ];
        let class = |(name, handler, created): (&str, &str, &str)| {
            let class = json!({"metadata": {"creationTimestamp": created}, "handler": handler});
            let class: RuntimeClass = serde_json::from_value(class).unwrap();
            (name.to_owned(), Class::of(&class))
        };
        assert_eq!(is_on_node(&found, &pod(), "n1"), there);
        let classes = classes.map(class).into();
        assert_eq!(has_handler(&found, &pod(), &classes), evictable);
    }

    #[test]
    fn a_pod_without_a_class_has_the_default_handler() {
        let found = serde_json::from_value(json!({"metadata": {}, "spec": {}})).unwrap();
        let pod = EndingPod {
            handler: String::new(),
            ..pod()
        };
        assert!(has_handler(&found, &pod, &HashMap::new()));
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
                "ended" => {
                    return json!({"metadata": {"name": name, "uid": "u"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Succeeded"}});
                }
                _ => json!({"name": name, "uid": "u"}),
            };
            json!({"metadata": metadata, "spec": {"nodeName": "n1", "runtimeClassName": "spin"}})
        };
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let path = request.uri().path().to_owned();
            let name = ["static", "ending", "ended", "web"]
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
        let named = |name: &str| EndingPod {
            name: name.to_owned(),
            ..pod()
        };
        let pods = ["forbidden", "static", "ending", "web"].map(named);
        let class = Class {
            handler: "spin".to_owned(),
            created: None,
        };
        let classes = HashMap::from([("spin".to_owned(), class)]);
        let asked = [&pods[..], &[named("ended")]].concat();
        let states = look(&client, "n1", &asked, true, &classes).await.unwrap();
        assert_eq!(states.left, pods);
        assert_eq!(states.evictable, pods[3..]);
        assert_eq!(states.static_pods, pods[1..2]);
        assert_eq!(states.ending, pods[2..3]);
        assert_eq!(look(&client, "n1", &pods[..1], true, &classes).await, None);
        let first = look(&client, "n1", &pods[2..], false, &classes).await;
        assert_eq!(first.unwrap().left, pods[2..3]);
    }

    #[rstest]
    #[case::runs("Running", json!([{"running": {}}]), false)]
    #[case::one_of_two("Running", json!([{"running": {}}, {"waiting": {"reason": "CrashLoopBackOff"}}]), true)]
    #[case::ended("Running", json!([{"terminated": {"exitCode": 1}}]), true)]
    #[case::unknown("Running", json!([null]), true)]
    #[case::without_containers("Pending", json!([]), false)]
    #[case::failed("Failed", json!([]), true)]
    #[case::succeeded("Succeeded", json!([{"terminated": {"exitCode": 0}}]), false)]
    fn a_pod_is_stopped_if_a_container_does_not_run(
        #[case] phase: &str,
        #[case] states: Value,
        #[case] expected: bool,
    ) {
        let status = |state: &Value| json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        let statuses: Vec<_> = states.as_array().unwrap().iter().map(status).collect();
        let found =
            json!({"metadata": {}, "status": {"phase": phase, "containerStatuses": statuses}});
        assert_eq!(
            is_stopped(&serde_json::from_value(found).unwrap()),
            expected
        );
    }
}
