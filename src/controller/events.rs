//! Kubernetes Events about nodes: what `kubectl describe node` shows. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::plan::NodeEvent;
use crate::names;

/// Where Events on objects without a namespace live.
pub const NAMESPACE: &str = "default";

/// Seconds for which the same sentence is one piece of news: the longest wait between attempts, so that one that fails for hours
/// is told of as often as it is tried then.
const NEWS: i64 = 600;

/// The Event object for `event` on a node.
///
/// Its name is a hash of what it says and of its [`NEWS`], so that the same news is one object, however often it is told.
#[must_use]
pub fn build(node_name: &str, node_uid: &str, event: &NodeEvent, now: Timestamp) -> Event {
    let news = now.as_second().div_euclid(NEWS);
    let said = format!("{node_uid}/{news}/{}/{}", event.reason, event.note);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_news_is_one_object_for_a_while_and_other_news_another() {
        let name = |note: &str, second: i64| {
            let event = NodeEvent {
                warning: true,
                reason: "ProvisionFailed",
                note: note.to_owned(),
            };
            let now = Timestamp::from_second(second).unwrap();
            build("n1", "uid", &event, now).metadata.name.unwrap()
        };
        assert_eq!(name("no route", 1_200), name("no route", 1_799));
        assert_ne!(name("no route", 1_200), name("no route", 1_800));
        assert_ne!(name("no route", 1_200), name("wrong digest", 1_200));
    }
}
