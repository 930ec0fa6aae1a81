//! Kubernetes Events about nodes and Shims, as `kubectl describe` shows them. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource;

use crate::names::{self, reasons};

/// Namespace of Events about objects without a namespace.
pub const NAMESPACE: &str = "default";

/// Seconds for which an equal Event is published once. This is the longest wait between attempts, so that a persistent failure is reported
/// once per attempt.
const PERIOD: i64 = 600;

/// Longest note of an Event, in bytes; Kubernetes allows 1,024 (events.k8s.io/v1).
pub const LONGEST_NOTE: usize = 1_000;

/// Whether a terminal interprets a character instead of showing it: control characters, line separators, changes of direction.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Shortens `text` to `longest` bytes on one line.
#[must_use]
pub fn cut(text: &str, longest: usize) -> String {
    let mut line: String = text
        .chars()
        .map(|letter| if steers(letter) { ' ' } else { letter })
        .collect();
    if line.len() > longest {
        let end = (0..=longest.saturating_sub('…'.len_utf8()))
            .rev()
            .find(|&end| line.is_char_boundary(end))
            .unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

/// The content of an Event.
#[derive(Debug, PartialEq)]
pub struct EventSpec {
    /// Whether the type is `Warning`.
    pub warning: bool,
    /// The reason, one of [`reasons`].
    pub reason: String,
    /// The note: one sentence.
    pub note: String,
}

impl EventSpec {
    /// The Event for a failure on a node.
    #[must_use]
    pub fn failure(reason: &str) -> Self {
        Self {
            warning: true,
            reason: reasons::PROVISION_FAILED.to_owned(),
            note: cut(reason, LONGEST_NOTE),
        }
    }
}

/// The object of an Event.
#[derive(Debug, Clone)]
pub struct Subject {
    /// API version, `v1` for a node.
    pub api_version: String,
    /// Kind, `Node` or `Shim`.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
}

impl Subject {
    /// The object `name`.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(name: String, uid: String) -> Self {
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name,
            uid,
        }
    }
}

/// The Event object about `subject`.
///
/// Its name is a hash of its content and of its period of [`PERIOD`] seconds, so that equal Events within a period are one object.
#[must_use]
pub fn build(subject: &Subject, event: &EventSpec, now: Timestamp) -> Event {
    let since = now.as_second().div_euclid(PERIOD);
    let identity = format!("{}/{since}/{}/{}", subject.uid, event.reason, event.note);
    Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{}",
                names::MANAGER,
                &names::sha256_hex(identity.as_bytes())[..20]
            )),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(subject.api_version.clone()),
            kind: Some(subject.kind.clone()),
            name: Some(subject.name.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        }),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        action: Some("Provision".to_owned()),
        reason: Some(event.reason.clone()),
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
    use crate::controller::cluster::slim::NodeObject;

    #[test]
    fn equal_events_within_ten_minutes_are_one_object() {
        let name = |note: &str, second: i64| {
            let event = EventSpec {
                warning: true,
                reason: "ProvisionFailed".to_owned(),
                note: note.to_owned(),
            };
            let subject = Subject::of::<NodeObject>("n1".to_owned(), "uid".to_owned());
            let now = Timestamp::from_second(second).unwrap();
            build(&subject, &event, now).metadata.name.unwrap()
        };
        assert_eq!(name("no route", 1_200), name("no route", 1_799));
        assert_ne!(name("no route", 1_200), name("no route", 1_800));
        assert_ne!(name("no route", 1_200), name("wrong digest", 1_200));
    }
}
