//! The pods that a restart of containerd ends.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::is_label_name;
use super::printable::printable_up_to;

/// The length of a pod's namespace, name and UID in a message. Kubernetes allows 253 bytes; the kubelet is trusted no further.
const NAME_LIMIT: usize = 253;

/// The most pods in a report. The next report names the others, after these have ended.
const MOST_REPORTED: usize = 10;

/// The most handlers that are read from a report.
const MOST_HANDLERS: usize = 16;

/// A pod that a restart of containerd ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndingPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    #[serde(default)]
    pub uid: String,
    /// Its handler in containerd.
    pub handler: String,
}

impl fmt::Display for EndingPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            handler,
            ..
        } = self;
        write!(f, "{namespace}/{name} (handler {handler})")
    }
}

impl EndingPod {
    /// Whether namespace and name consist of the characters of a DNS subdomain (Kubernetes, *Object Names and IDs*).
    fn has_valid_name(&self) -> bool {
        let is_valid = |name: &str| {
            let mut bytes = name.bytes();
            let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            name.len() <= NAME_LIMIT
                && name.bytes().next().is_some_and(is_letter)
                && bytes.all(|byte| is_letter(byte) || byte == b'-' || byte == b'.')
        };
        is_valid(&self.namespace) && is_valid(&self.name)
    }

    /// The pod with texts that a terminal may show and a message has room for.
    #[must_use]
    pub fn printable(self) -> Self {
        Self {
            namespace: printable_up_to(&self.namespace, NAME_LIMIT),
            name: printable_up_to(&self.name, NAME_LIMIT),
            uid: printable_up_to(&self.uid, NAME_LIMIT),
            handler: printable_up_to(&self.handler, NAME_LIMIT),
        }
    }
}

/// The pods that a restart of containerd ends, shortened for a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndingPods {
    /// The first pods.
    #[serde(default)]
    pub pods: Vec<EndingPod>,
    /// The number of further pods.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
    /// The handlers of all pods, the further ones included.
    #[serde(default)]
    pub handlers: BTreeSet<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl EndingPods {
    /// The report of these pods.
    #[must_use]
    pub fn of(pods: &[EndingPod]) -> Self {
        let handlers = pods.iter().map(|pod| pod.handler.clone());
        Self {
            handlers: handlers.collect(),
            ..Self::default()
        }
        .with_pods(pods.iter().cloned())
    }

    /// These pods and those of `other`.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        let new = other.pods.iter().filter(|pod| !self.pods.contains(pod));
        let all: Vec<EndingPod> = self.pods.iter().chain(new).cloned().collect();
        Self {
            more: self.more.saturating_add(other.more),
            handlers: self.handlers.union(&other.handlers).cloned().collect(),
            ..Self::default()
        }
        .with_pods(all.into_iter())
    }

    fn with_pods(mut self, pods: impl Iterator<Item = EndingPod>) -> Self {
        let all: Vec<_> = pods.map(EndingPod::printable).collect();
        self.more = self
            .more
            .saturating_add(all.len().saturating_sub(MOST_REPORTED));
        self.pods = all.into_iter().take(MOST_REPORTED).collect();
        self
    }

    /// The pods within the limits of this type, for a text that another program wrote. A pod or a handler with a name that Kubernetes does not
    /// allow is left out, because the name of a pod becomes a part of a URL.
    #[must_use]
    pub fn bounded(self) -> Self {
        let handlers = self.handlers.into_iter();
        let handlers = handlers.filter(|handler| handler.is_empty() || is_label_name(handler));
        Self {
            more: self.more,
            handlers: handlers.take(MOST_HANDLERS).collect(),
            pods: Vec::new(),
        }
        .with_pods(self.pods.into_iter().filter(EndingPod::has_valid_name))
    }

    /// Leaves out the last pods, which then count as further pods.
    pub(super) fn shorten(&mut self, most: usize) {
        self.more += self.pods.len().saturating_sub(most);
        self.pods.truncate(most);
    }

    /// Whether there is no pod.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.more == 0
    }

    /// The number of all pods.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len().saturating_add(self.more)
    }
}

/// The first pods by name, and the number of further pods.
impl fmt::Display for EndingPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The number of pods in a message.
        const SHOWN: usize = 5;
        let shown = self.pods.iter().take(SHOWN).map(ToString::to_string);
        f.write_str(&shown.collect::<Vec<_>>().join(", "))?;
        match self.len().saturating_sub(SHOWN.min(self.pods.len())) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> EndingPod {
        EndingPod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: format!("uid of {name}"),
            handler: "spin".to_owned(),
        }
    }

    #[test]
    fn a_report_names_ten_pods_and_counts_the_others() {
        let pods: Vec<_> = (10..40).map(|number| pod(&number.to_string())).collect();
        let report = EndingPods::of(&pods);
        assert_eq!((report.pods.len(), report.more, report.len()), (10, 20, 30));
        let text = report.to_string();
        assert!(text.starts_with("default/10 (handler spin), "), "{text}");
        assert!(
            text.ends_with("default/14 (handler spin) and 25 more"),
            "{text}"
        );
        assert_eq!(
            EndingPods::of(&pods[..1]).to_string(),
            "default/10 (handler spin)"
        );
    }

    #[test]
    fn a_pod_whose_name_would_lead_a_request_elsewhere_is_left_out() {
        let with = |namespace: &str, name: &str| EndingPod {
            namespace: namespace.to_owned(),
            ..pod(name)
        };
        let names = [
            with("kube-system/pods/victim/eviction?x=", "victim"),
            with("default", "../../nodes/n1"),
            with("default", "a%2fb"),
            with("default", "\u{1b}[31m"),
            with("..", "web"),
            with("", "web"),
            with("default", "web.0-a"),
        ];
        let bounded = EndingPods::of(&names).bounded();
        assert_eq!(bounded.pods, [with("default", "web.0-a")]);
    }

    #[test]
    fn a_report_of_an_attacker_is_bounded() {
        let mut forged = EndingPods {
            pods: (0..5_000).map(|number| pod(&number.to_string())).collect(),
            more: usize::MAX - 10_000,
            handlers: (0..5_000).map(|number| number.to_string()).collect(),
        };
        forged.handlers.insert("a/b\n".to_owned());
        let bounded = forged.bounded();
        assert_eq!((bounded.pods.len(), bounded.handlers.len()), (10, 16));
        assert!(
            bounded
                .handlers
                .iter()
                .all(|handler| is_label_name(handler))
        );
    }
}
