//! Kubernetes Events about nodes and Shims, as `kubectl describe` shows them. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource;

use crate::names::{self, reasons};

/// Namespace of Events about objects without a namespace.
pub const NAMESPACE: &str = "default";

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

    /// The Event for Shims that a host serves.
    #[must_use]
    pub fn provisioned(shims: &[&str]) -> Self {
        Self {
            warning: false,
            reason: reasons::PROVISIONED.to_owned(),
            note: cut(
                &format!("the host serves {}", shims.join(", ")),
                LONGEST_NOTE,
            ),
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
/// Its name is a hash of its content, so that equal Events are one object, which [`repetition`] counts.
#[must_use]
pub fn build(subject: &Subject, event: &EventSpec, now: Timestamp) -> Event {
    let identity = format!("{}/{}/{}", subject.uid, event.reason, event.note);
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

/// The change of an Event that is published again: the series of the first one counts it (Kubernetes API reference, `EventSeries`).
#[must_use]
pub fn repetition(first: &Event, now: Timestamp) -> Event {
    let before = first.series.as_ref().map_or(1, |series| series.count);
    Event {
        metadata: ObjectMeta {
            resource_version: first.metadata.resource_version.clone(),
            ..ObjectMeta::default()
        },
        series: Some(EventSeries {
            // The API server accepts no series of fewer than two.
            count: before.max(1).saturating_add(1),
            last_observed_time: MicroTime(now),
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::cluster::slim::NodeObject;

    #[test]
    fn equal_events_are_one_object_with_a_count_and_the_last_time() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let published = |note: &str, second: i64| {
            let event = EventSpec::failure(note);
            let subject = Subject::of::<NodeObject>("n1".to_owned(), "uid".to_owned());
            build(&subject, &event, at(second))
        };
        let name = |note: &str, second: i64| published(note, second).metadata.name.unwrap();
        assert_eq!(name("no route", 1_200), name("no route", 9_999));
        assert_ne!(name("no route", 1_200), name("wrong digest", 1_200));
        let mut event = published("no route", 1_200);
        for (count, second) in [(2, 1_300), (3, 9_999)] {
            event.series = repetition(&event, at(second)).series;
            let series = event.series.as_ref().unwrap();
            assert_eq!(
                (series.count, series.last_observed_time.0),
                (count, at(second))
            );
        }
    }
}
