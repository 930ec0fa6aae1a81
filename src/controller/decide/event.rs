//! Kubernetes Events about nodes and Shims, as `kubectl describe` shows them. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource;

use crate::handoff::{Problem, printable_up_to};
use crate::names::{self, reasons};

/// Namespace of Events about objects without a namespace.
pub const NAMESPACE: &str = "default";

/// Longest note of an Event, in bytes; Kubernetes allows 1,024 (events.k8s.io/v1).
pub const LONGEST_NOTE: usize = 1_000;

/// The problems of several Shims: those of one cause are one problem, which names these Shims. Causes are also the same if only the path of
/// a URL differs: four Shims of one server have one cause if the server is down.
#[must_use]
pub fn by_cause(problems: impl IntoIterator<Item = (String, Problem)>) -> Vec<Problem> {
    let mut causes: Vec<(String, Vec<String>, Problem)> = Vec::new();
    for (shim, problem) in problems {
        let cause = without_paths(&problem.message);
        let known = causes
            .iter_mut()
            .find(|(other, _, first)| *other == cause && first.help == problem.help);
        match known {
            Some((_, shims, _)) => shims.push(shim),
            None => causes.push((cause, vec![shim], problem)),
        }
    }
    let told = causes.into_iter().map(|(cause, shims, problem)| Problem {
        message: match shims.as_slice() {
            [shim] => format!("shim {shim}: {}", problem.message),
            shims => format!("shims {}: {cause}", shims.join(", ")),
        },
        ..problem
    });
    told.collect()
}

/// The message with the scheme and the server alone of each URL.
fn without_paths(message: &str) -> String {
    let words = message.split(' ').map(|word| {
        let Some((scheme, rest)) = word.split_once("://") else {
            return word.to_owned();
        };
        let Some((server, path)) = rest.split_once('/') else {
            return word.to_owned();
        };
        let punctuation = path.trim_start_matches(|letter| !matches!(letter, ':' | ','));
        let punctuation = if punctuation.len() == 1 {
            punctuation
        } else {
            ""
        };
        format!("{scheme}://{server}/…{punctuation}")
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Longest reason per Shim, in bytes: thirty reasons stay far below the 256 KiB for annotations.
pub const LONGEST_REASON: usize = 400;

/// Message and help in at most `longest` bytes on one line. The help is left out first.
#[must_use]
pub fn shortened(problem: &Problem, longest: usize) -> String {
    printable_up_to(&problem.sentence_up_to(longest), longest)
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
            note: printable_up_to(reason, LONGEST_NOTE),
        }
    }

    /// The Event for Shims that a host serves.
    #[must_use]
    pub fn provisioned(shims: &[&str]) -> Self {
        Self {
            warning: false,
            reason: reasons::PROVISIONED.to_owned(),
            note: printable_up_to(
                &format!("the host serves {}", shims.join(", ")),
                LONGEST_NOTE,
            ),
        }
    }

    /// The Event for a node that can't carry a Shim, which is no failure.
    #[must_use]
    pub fn unsupported(reason: &str) -> Self {
        Self {
            warning: false,
            reason: reasons::UNSUPPORTED.to_owned(),
            note: printable_up_to(reason, LONGEST_NOTE),
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
    fn one_cause_of_several_shims_is_told_once() {
        let down = |shim: &str, host: &str| {
            let message = format!("failed to fetch https://{host}/x/{shim}.tar.gz: no such host");
            (shim.to_owned(), Problem::new(message, None))
        };
        let problems = [
            down("spin", "example.org"),
            ("wws".to_owned(), Problem::new("wrong digest", None)),
            down("wasmtime", "example.org"),
            down("own", "example.net"),
        ];
        let told = by_cause(problems);
        let told: Vec<&str> = told.iter().map(|it| it.message.as_str()).collect();
        assert_eq!(
            told,
            [
                "shims spin, wasmtime: failed to fetch https://example.org/…: no such host",
                "shim wws: wrong digest",
                "shim own: failed to fetch https://example.net/x/own.tar.gz: no such host",
            ]
        );
    }

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
