//! The Events of a Job: why the Job controller can't create the pod, which no field of the Job says. Reads only.

use k8s_openapi::api::core::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams};

use crate::handoff::printable;

/// Most Events to read. The Job controller repeats one Event, with a count.
const MOST: u32 = 20;

/// Why the last attempt of the Job controller to create a pod of the Job failed, in the words of the API server. `None` if no Event says so,
/// or if the controller may not read Events.
pub async fn refused_pod(client: &Client, namespace: &str, job_uid: &str) -> Option<String> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let of_job = format!("involvedObject.uid={job_uid},reason=FailedCreate");
    let parameters = ListParams::default().fields(&of_job).limit(MOST);
    let listed = events.list(&parameters).await;
    let listed =
        listed.inspect_err(|error| tracing::debug!(%error, "failed to read the Events of a Job"));
    let mut events = listed.ok()?.items;
    events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    let message = events.pop()?.message?;
    Some(printable(message.trim_start_matches("Error creating: ")))
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    fn answering(status: u16, answer: serde_json::Value) -> Client {
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let uri = request.uri().to_string();
            assert!(
                uri.starts_with("/api/v1/namespaces/farrier/events?"),
                "{uri}"
            );
            assert!(uri.contains("involvedObject.uid%3Du1"), "{uri}");
            let body = Body::from(answer.to_string().into_bytes());
            std::future::ready(hyper::Response::builder().status(status).body(body))
        });
        Client::new(service, "farrier")
    }

    #[tokio::test]
    async fn the_last_refusal_of_a_pod_is_told_in_the_words_of_the_api_server() {
        let event = |message: &str, time: &str| {
            json!({
                "metadata": {}, "involvedObject": {}, "reason": "FailedCreate", "message": message, "lastTimestamp": time,
            })
        };
        let last = "Error creating: pods \"a\" is forbidden: exceeded quota: q";
        let list = json!({"metadata": {}, "items": [
            event(last, "2026-01-01T00:01:00Z"), event("Error creating: other", "2026-01-01T00:00:00Z"),
        ]});
        let told = refused_pod(&answering(200, list), "farrier", "u1").await;
        assert_eq!(
            told.as_deref(),
            Some("pods \"a\" is forbidden: exceeded quota: q")
        );
    }

    #[tokio::test]
    async fn without_the_right_or_without_an_event_nothing_is_told() {
        let refused = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden"});
        let none = json!({"metadata": {}, "items": []});
        for (status, answer) in [(403, refused), (200, none)] {
            let told = refused_pod(&answering(status, answer), "farrier", "u1").await;
            assert_eq!(told, None);
        }
    }
}
