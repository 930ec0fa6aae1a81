//! Kubernetes Events about nodes: what `kubectl describe node` shows. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::plan::NodeEvent;
use crate::names;

/// Where Events on objects without a namespace live.
pub const NAMESPACE: &str = "default";

/// The Event object for `event` on a node.
///
/// Its name is a hash of what it says, so that the same news is one object for as long as the API server keeps it (an hour by
/// default), however often it is told.
#[must_use]
pub fn build(node_name: &str, node_uid: &str, event: &NodeEvent, now: Timestamp) -> Event {
    let said = format!("{node_uid}/{}/{}", event.reason, event.note);
    Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{}",
                names::MANAGER,
                &names::sha256_hex(said.as_bytes())[..20]
            )),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node_name.to_owned()),
            uid: Some(node_uid.to_owned()),
            ..ObjectReference::default()
        }),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        action: Some("Provision".to_owned()),
        reason: Some(event.reason.to_owned()),
        note: Some(event.note.clone()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some("farrier.dev/controller".to_owned()),
        reporting_instance: Some(names::MANAGER.to_owned()),
        ..Event::default()
    }
}
