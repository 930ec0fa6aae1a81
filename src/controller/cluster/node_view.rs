//! A node as decisions see it, and the known state of its host. Decisions read no object of the API directly. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::slim::{NodeCondition, NodeObject, Taint};
use crate::api::is_label_name;
use crate::handoff::{
    EndingPod, EndingPods, FINGERPRINT_LENGTH, Sha256Digest, ShimRequest, printable,
};
use crate::names;

/// A node as decisions see it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of the object"
)]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeView {
    /// Name of the node object.
    pub name: String,
    /// UID of the node object.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Operating system as the kubelet reports it: `linux`.
    pub os: String,
    /// Architecture as the kubelet reports it: `amd64`.
    pub arch: String,
    /// The host's `/etc/machine-id`, as the kubelet reports it.
    pub machine_id: String,
    /// The boot ID, which changes with each boot.
    pub boot_id: String,
    /// Runtime and release as the kubelet reports them: `containerd://2.1.9`.
    pub runtime: String,
    /// Handlers that the runtime reported to the kubelet; absent if the runtime reports none (containerd before 2.0).
    pub runtime_handlers: Option<BTreeSet<String>>,
    /// The condition Ready is true.
    pub ready: bool,
    /// The heartbeat of the condition Ready, which changes with each write of the status by the kubelet. It is compared with no clock.
    pub heartbeat: Option<Timestamp>,
    /// The node is cordoned.
    pub cordoned: bool,
    /// It is a control-plane node.
    pub control_plane: bool,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// The node object is being deleted.
    pub deleting: bool,
}

impl From<&NodeObject> for NodeView {
    fn from(node: &NodeObject) -> Self {
        let NodeObject { spec, status, .. } = node;
        let runtime_handlers = status.runtime_handlers.as_deref().map(|handlers| {
            let names = handlers.iter().filter_map(|handler| handler.name.clone());
            names
                .filter(|name| !name.is_empty())
                .collect::<BTreeSet<_>>()
        });
        let is_ready =
            |condition: &NodeCondition| condition.kind == "Ready" && condition.status == "True";
        let mut conditions = status.conditions.iter();
        let heartbeat = conditions.find(|condition| condition.kind == "Ready");
        let heartbeat = heartbeat.and_then(|condition| condition.last_heartbeat.as_ref());
        let control_plane = |key: &&str| node.labels().contains_key(*key);
        Self {
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            labels: node.labels().clone(),
            annotations: node.annotations().clone(),
            os: status.node_info.operating_system.clone(),
            arch: status.node_info.architecture.clone(),
            machine_id: status.node_info.machine_id.clone(),
            boot_id: status.node_info.boot_id.clone(),
            runtime: status.node_info.container_runtime_version.clone(),
            runtime_handlers: runtime_handlers.filter(|handlers| !handlers.is_empty()),
            ready: status.conditions.iter().any(is_ready),
            heartbeat: heartbeat.map(|time| time.0),
            cordoned: spec.unschedulable,
            control_plane: names::CONTROL_PLANE_LABELS.iter().any(control_plane),
            taints: spec.taints.clone(),
            deleting: node.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl NodeView {
    /// The known state of the host, if it was recorded for this node object.
    #[must_use]
    pub fn applied(&self) -> Option<Applied> {
        let text = self.annotations.get(names::APPLIED_ANNOTATION)?;
        let mut applied: Applied = serde_json::from_str(text).ok()?;
        let is_of_node = applied.node_uid == self.uid && applied.is_sound();
        applied.shorten();
        is_of_node.then_some(applied)
    }

    /// The pods that a decision on the node depends on: those that it waits for, those that hold up a removal, and those that its last restart
    /// ended. Also whether the decision depends on each of them, and not only on whether one is left: where the controller `may_drain`, a
    /// static pod prevents that.
    #[must_use]
    pub fn pods_to_look_at(&self, may_drain: bool) -> (Vec<EndingPod>, bool) {
        let applied = self.applied().unwrap_or_default();
        let (waiting, ended) = (applied.waiting_for_pods, applied.ended_pods);
        let holding = applied.holding_pods;
        let each = may_drain || ended.is_some() || waiting.is_some() && holding.is_some();
        let pods = waiting.map(|it| it.pods.pods).into_iter();
        let pods = pods.chain(holding.map(|it| it.pods.pods));
        let pods = pods.chain(ended.map(|it| it.pods.pods));
        (pods.flatten().collect(), each)
    }

    /// Whether the kubelet lists `handler`. If the kubelet lists no handlers at all, the report alone counts and this is true.
    #[must_use]
    pub fn lists(&self, handler: &str) -> bool {
        self.runtime_handlers
            .as_ref()
            .is_none_or(|handlers| handlers.contains(handler))
    }

    /// Whether the kubelet lists every handler that the last report says is served.
    #[must_use]
    pub fn lists_all(&self, applied: &Applied) -> bool {
        let shims = applied.shims.values();
        let mut handlers = shims.flat_map(|shim| &shim.handlers);
        handlers.all(|(handler, served)| !served || self.lists(handler))
    }

    /// The node as far as a decision depends on it. Only while the kubelet does not list a handler, the decision depends on its writes.
    #[must_use]
    pub fn relevant(self) -> Self {
        let may_lack = self.heartbeat.is_some() && self.runtime_handlers.is_some();
        let lacks = may_lack && self.applied().is_some_and(|it| !self.lists_all(&it));
        let heartbeat = self.heartbeat.filter(|_| lacks);
        Self { heartbeat, ..self }
    }

    /// Shims with a progress label on the node.
    pub fn labelled(&self) -> impl Iterator<Item = (&str, names::Progress)> {
        self.labels.iter().filter_map(|(key, value)| {
            let shim = key.strip_prefix(names::SHIM_LABEL_PREFIX)?;
            Some((shim, names::Progress::from_label(value)?))
        })
    }
}

/// The annotation `farrier.dev/applied`: the content of the last report, and the attempts since.
///
/// Any account with access to the node object may have written the annotation, so it decides only what such an account can do without it:
/// whether and when a Job looks at the host, and whether handlers that the Shim itself names, or that the node is labelled with, are
/// advertised. The annotation contains no request. What reaches a host is in the Shim objects and in the state file of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// UID of the node object that this describes.
    pub node_uid: String,
    /// Digest of the desired set that the last readable report answered; absent without a report.
    #[serde(
        default,
        deserialize_with = "Sha256Digest::lenient",
        serialize_with = "Sha256Digest::or_empty"
    )]
    pub digest: Option<Sha256Digest>,
    /// Machine ID that the kubelet reported then.
    #[serde(default)]
    pub machine_id: String,
    /// Boot ID that the kubelet reported then.
    #[serde(default)]
    pub boot_id: String,
    /// Runtime and release that the kubelet reported then; empty in an annotation of an older release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// Digest of the desired set of the last attempt.
    #[serde(
        default,
        deserialize_with = "Sha256Digest::lenient",
        serialize_with = "Sha256Digest::or_empty"
    )]
    pub attempted: Option<Sha256Digest>,
    /// Fingerprints of the requests in that attempt, by Shim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tried: BTreeMap<String, String>,
    /// Attempts without full success; 0 after success.
    #[serde(default)]
    pub attempts: u32,
    /// Attempts in a row that a signal ended before the host was changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interruptions: u32,
    /// When the last attempt began or ended.
    #[serde(default)]
    pub at: Timestamp,
    /// UID of the Job whose result was read last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job: String,
    /// Why the last attempt failed: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// State of each Shim on the host.
    #[serde(default)]
    pub shims: BTreeMap<String, AppliedShim>,
    /// The pods because of which the last attempt was refused, if that was the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for_pods: Option<WaitingForPods>,
    /// The pods that the last restart of containerd ended, until they had time to start again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_pods: Option<EndedPods>,
    /// The pods that hold up a removal, if the last report named any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holding_pods: Option<HoldingPods>,
    /// Whether the kubelet lists the served handlers yet; absent if it lists all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlisted: Option<Unlisted>,
    /// Handlers in the report that was read just now. Not part of the annotation.
    #[serde(skip)]
    pub reported: BTreeSet<String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Applied {
    /// Whether every name is a valid label.
    fn is_sound(&self) -> bool {
        self.shims.iter().all(|(name, shim)| {
            is_label_name(name) && shim.handlers.keys().all(|handler| is_label_name(handler))
        })
    }

    /// Limits the texts that are shown in Events and conditions to one line of 1,000 bytes, and the pods to those of a report.
    fn shorten(&mut self) {
        let reasons = self.shims.values_mut().map(|shim| &mut shim.reason);
        for reason in reasons.chain([&mut self.reason]).flatten() {
            *reason = printable(reason);
        }
        if let Some(waiting) = &mut self.waiting_for_pods {
            let named = &waiting.pods.pods;
            waiting.static_pods.retain(|pod| named.contains(pod));
            waiting.static_pods.truncate(named.len());
            if let Some(cause) = &mut waiting.undone_because {
                *cause = printable(cause);
            }
        }
        let waiting = self.waiting_for_pods.iter_mut().map(|it| &mut it.pods);
        let ended = self.ended_pods.iter_mut().map(|it| &mut it.pods);
        let holding = self.holding_pods.iter_mut().map(|it| &mut it.pods);
        for pods in waiting.chain(ended).chain(holding) {
            *pods = std::mem::take(pods).bounded();
        }
    }

    /// Whether the last report says that the host has exactly what `requests` ask for, as far as it can have it.
    #[must_use]
    pub fn fulfils(&self, requests: &[ShimRequest]) -> bool {
        let is_fulfilled = |request: &ShimRequest| {
            let known = self.shims.get(&request.name);
            known.is_some_and(|known| known.settles(request))
        };
        // As many entries as requests, and an entry for each of them.
        self.digest.is_some()
            && self.shims.len() == requests.len()
            && requests.iter().all(is_fulfilled)
    }
}

/// The pods because of which the last attempt was refused, as a whole or for some Shims. A restart of containerd would end them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingForPods {
    /// The pods of the last report.
    #[serde(flatten)]
    pub pods: EndingPods,
    /// Jobs in a row that were created because the pods had ended, and that named pods again.
    #[serde(default)]
    pub attempts: u32,
    /// The API server says that these pods have ended. The restart waits for something else, or containerd named the pods nevertheless.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Since when the pods are being evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<Timestamp>,
    /// When the last drain was undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_at: Option<Timestamp>,
    /// Drains in a row that were undone because they took too long.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undone: u32,
    /// Why the last drain took too long, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_because: Option<String>,
    /// The static pods among `pods`, as far as the API server was asked. No eviction ends them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub static_pods: Vec<EndingPod>,
    /// The Shims that wait for the pods, where another Shim failed in the same attempt. The failure is not theirs. Empty if the whole change
    /// waits, or if the API server rejected the Job.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub shims: BTreeSet<String>,
}

/// The pods of handlers that are to leave the host. The binary of a handler stays until its last pod has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldingPods {
    /// The pods of the last report.
    #[serde(flatten)]
    pub pods: EndingPods,
    /// Jobs in a row that were created because the pods had ended, and that named pods again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
}

/// The writes of the kubelet since a report after which the kubelet does not list a served handler.
///
/// The first write may be of a status that the kubelet gathered before the report. The second one is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unlisted {
    /// The heartbeat of the last write that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Timestamp>,
    /// Number of writes, two at most.
    #[serde(default)]
    pub writes: u32,
}

impl Unlisted {
    /// Whether the kubelet had to list the handler by now.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.writes >= 2
    }
}

/// The pods that a restart of containerd ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedPods {
    /// The pods.
    #[serde(flatten)]
    pub pods: EndingPods,
    /// When the report about the restart was read.
    pub at: Timestamp,
}

/// State of one Shim on a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "AppliedShimRecord")]
pub struct AppliedShim {
    /// Fingerprint of the last fulfilled request ([`ShimRequest::fingerprint`]); absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fulfilled: Option<String>,
    /// Fingerprint of the last request, if the host can't carry what it asks for; absent otherwise. Another attempt gives the same result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// Whether each of its handlers is served.
    pub handlers: BTreeMap<String, bool>,
    /// SHA-256 of its binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// The release of its binary, as the location of the fulfilled request names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Why the request is not fulfilled: one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Digits of a digest in a message: as many as people compare.
const SHOWN_DIGITS: usize = 12;

/// Longest release in the annotation, in bytes.
const LONGEST_RELEASE: usize = 20;

/// The binary of a Shim on a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binary {
    /// Its release, if the location names one.
    pub release: Option<String>,
    /// Its SHA-256.
    pub sha256: Sha256Digest,
}

/// The binary for people, with the first digits of its digest: `0.6.0 (sha256 2d03…)`.
impl fmt::Display for Binary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = &self.sha256.to_string()[..SHOWN_DIGITS];
        match &self.release {
            Some(release) => write!(formatter, "{release} (sha256 {digest}…)"),
            None => write!(formatter, "sha256 {digest}…"),
        }
    }
}

impl AppliedShim {
    /// The binary of a request that was fulfilled, as far as the host still serves it.
    #[must_use]
    pub fn served_binary(&self) -> Option<Binary> {
        let serves = self.fulfilled.is_some() && self.handlers.values().any(|served| *served);
        Some(Binary {
            release: self.release.clone(),
            sha256: self.sha256.filter(|_| serves)?,
        })
    }

    /// Whether the host has what `request` asks for. A Shim that is to be kept may be there in any version.
    #[must_use]
    pub fn fulfils(&self, request: &ShimRequest) -> bool {
        let fulfilled = self.fulfilled.as_ref();
        fulfilled.is_some_and(|it| request.keep || *it == request.fingerprint())
    }

    /// Whether the last report says that the host can't carry what `request` asks for.
    #[must_use]
    pub fn is_unsupported(&self, request: &ShimRequest) -> bool {
        let unsupported = self.unsupported.as_ref();
        unsupported.is_some_and(|it| *it == request.fingerprint())
    }

    /// Whether another Job for `request` is of no use: the host has what it asks for, or can't carry that.
    #[must_use]
    pub fn settles(&self, request: &ShimRequest) -> bool {
        self.fulfils(request) || self.is_unsupported(request)
    }
}

/// The form of an [`AppliedShim`] in the annotation. Earlier releases wrote whole requests, of which only the fingerprint is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AppliedShimRecord {
    #[serde(default)]
    fulfilled: Option<String>,
    #[serde(default)]
    unsupported: Option<String>,
    #[serde(default)]
    request: Option<serde_json::Value>,
    #[serde(default)]
    handlers: BTreeMap<String, bool>,
    #[serde(default, deserialize_with = "Sha256Digest::lenient")]
    sha256: Option<Sha256Digest>,
    #[serde(default)]
    release: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

impl From<AppliedShimRecord> for AppliedShim {
    fn from(record: AppliedShimRecord) -> Self {
        let is_fingerprint = |text: &String| {
            text.len() == FINGERPRINT_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let request = record.request.and_then(|request| {
            let request = serde_json::from_value::<ShimRequest>(request).ok()?;
            Some(request.fingerprint())
        });
        Self {
            fulfilled: record.fulfilled.filter(is_fingerprint).or(request),
            unsupported: record.unsupported.filter(is_fingerprint),
            handlers: record.handlers,
            sha256: record.sha256,
            release: record.release.filter(|release| {
                let is_shown = |byte: u8| byte.is_ascii_digit() || byte == b'.';
                release.len() <= LONGEST_RELEASE && release.bytes().all(is_shown)
            }),
            reason: record.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_view_has_platform_host_handlers_and_progress_labels() {
        let node: NodeObject = serde_json::from_value(json!({
            "metadata": {
                "name": "n1", "uid": "u", "labels": {"farrier.dev/spin": "failed", "farrier.dev/x": "mine", "spin": "failed"},
                "annotations": {"a": "b"}, "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "status": {
                "nodeInfo": {
                    "operatingSystem": "linux", "architecture": "amd64", "machineID": "m", "bootID": "b", "systemUUID": "",
                    "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
                },
                "runtimeHandlers": [{"name": ""}, {"name": "runc"}, {"features": {}}],
            },
        }))
        .unwrap();
        let view = NodeView::from(&node);
        assert_eq!((view.os.as_str(), view.arch.as_str()), ("linux", "amd64"));
        assert_eq!(
            (view.machine_id.as_str(), view.boot_id.as_str()),
            ("m", "b")
        );
        assert_eq!(view.runtime_handlers, Some(["runc".to_owned()].into()));
        assert!(view.deleting);
        let labelled: Vec<_> = view.labelled().collect();
        assert_eq!(labelled, [("spin", names::Progress::Failed)]);
    }

    #[test]
    fn an_annotation_has_a_text_for_each_digest_as_in_earlier_releases() {
        let of_no_report = Applied {
            node_uid: "u".to_owned(),
            ..Applied::default()
        };
        let document = serde_json::to_value(&of_no_report).unwrap();
        // Earlier releases read no annotation without a text here.
        assert_eq!(
            (&document["digest"], &document["attempted"]),
            (&json!(""), &json!(""))
        );
        assert_eq!(
            serde_json::from_value::<Applied>(document).unwrap(),
            of_no_report
        );
        let lower = Sha256Digest::of(b"a").to_string();
        let read = |sha256: &str| {
            let request =
                json!({"name": "a", "handlers": ["a"], "location": "file:///a", "sha256": sha256});
            let shim = json!({"handlers": {"a": true}, "sha256": sha256, "request": request});
            let document = json!({"nodeUid": "u", "digest": sha256, "attempted": sha256, "at": of_no_report.at, "shims": {"a": shim}});
            serde_json::from_value::<Applied>(document).unwrap()
        };
        let applied = read(&lower);
        assert_eq!(applied, read(&lower.to_uppercase()));
        assert_eq!(applied.shims["a"].sha256, lower.parse().ok());
    }

    #[test]
    fn a_runtime_that_lists_only_its_default_handler_counts_as_reporting_none() {
        for handlers in [json!(null), json!([]), json!([{"name": ""}])] {
            let node: NodeObject = serde_json::from_value(
                json!({"metadata": {}, "status": {"runtimeHandlers": handlers}}),
            )
            .unwrap();
            assert_eq!(NodeView::from(&node).runtime_handlers, None);
        }
    }
}
