//! The result of a request on one host: whole, and shortened for a termination message.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::digest::Sha256Digest;
use super::document::{self, API_VERSION, Error};
use super::ending_pods::EndingPods;
use super::problem::{Problem, elide};

/// A Job's report is shorter than this, in bytes. The kubelet keeps only the *last* 4,096 bytes of a termination message (Kubernetes API
/// reference, `terminationMessagePath`), so the start of a longer JSON object would be lost.
pub const TERMINATION_MESSAGE_LIMIT: usize = 4_000;

/// The result of `farrier fetch` for one Shim: `<shim>.json` in the hand-off directory, beside the binary `<shim>.bin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchResult {
    /// Name of the Shim.
    pub shim: String,
    /// SHA-256 of the binary in `<shim>.bin`; `None` where nothing was fetched.
    pub binary_sha256: Option<Sha256Digest>,
    /// Why the fetch failed, in one sentence.
    pub reason: Option<String>,
    /// How an operator corrects the cause, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Nothing was fetched, because the request says that the binary is on the node. The installer checks the node itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub present: bool,
    /// The artifact proved to be for another CPU.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_another_cpu: bool,
}

/// The result of a request on one host.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of the run")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionReport {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The outcome of the whole request.
    pub result: Outcome,
    /// The run was a dry run, which changes nothing: `result`, `restarts`, `handlers` and `files` are those that the run without `--dry-run`
    /// would have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Whether the run changed a file of the host.
    pub changed: bool,
    /// How many times containerd was restarted.
    pub restarts: u32,
    /// One entry per requested handler, and per handler that is still to be removed.
    pub handlers: Vec<HandlerReport>,
    /// The files of the host that were written or removed.
    #[serde(default)]
    pub files: Vec<FileReport>,
    /// Why the outcome is not `applied` or `unchanged`, in one sentence.
    pub reason: Option<String>,
    /// How an operator corrects the cause, in one sentence.
    pub remedy: Option<String>,
    /// This release can't change a host of this kind. Another try gives the same result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsupported: bool,
    /// The Shims whose artifact proved to be for another CPU. Another try gives the same result.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unsupported_shims: BTreeSet<String>,
    /// SIGTERM, SIGINT or SIGHUP ended the run before the change took effect. `result` is then `rolledBack`, also where the run had changed nothing
    /// yet: the host is as it was. This is no failure of the request or of the host, so the same request may be made again at once. The
    /// field is absent where a signal came too late and the change was carried out, and where undoing the change failed (`broken`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// The pods that restarts of this run ended: of a recovery, of the change, and of its rollback. If the change or a part of it was refused
    /// because of pods: the pods that its restart would end.
    #[serde(default, skip_serializing_if = "EndingPods::is_empty")]
    pub ending_pods: EndingPods,
    /// The whole change was refused because its restart would end `ending_pods`. A recovery may have restarted containerd before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused_for_pods: bool,
    /// The pods that use handlers which could not be changed or removed, whatever the reason is.
    #[serde(default, skip_serializing_if = "EndingPods::is_empty")]
    pub using_pods: EndingPods,
    /// The handlers that the cluster has taken over from the command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_over: Vec<TakenOver>,
    /// Sentences about the host that an operator should know, whatever the outcome is.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Release of the running containerd, such as `1.7.35`.
    #[serde(default)]
    pub containerd: Option<String>,
    /// The distribution's name in the table of distributions.
    #[serde(default)]
    pub distro: Option<String>,
    /// How long the CRI did not answer because of the restarts, in milliseconds.
    #[serde(default)]
    pub cri_away_ms: Option<u64>,
    /// Digest of the request ([`ProvisionRequest::digest`](super::ProvisionRequest::digest)).
    #[serde(
        default,
        deserialize_with = "Sha256Digest::lenient",
        serialize_with = "Sha256Digest::or_empty"
    )]
    pub request_digest: Option<Sha256Digest>,
    /// UID of the node object named in the request.
    #[serde(default)]
    pub node_uid: String,
    /// `/etc/machine-id` of the host.
    #[serde(default)]
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id` of the host.
    #[serde(default)]
    pub boot_id: String,
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The host has the requested handlers, and was changed. Exit status 0.
    Applied,
    /// Some Shims are served and others failed. Exit status 1.
    Partial,
    /// The host already had the requested handlers. Exit status 0.
    Unchanged,
    /// Nothing was changed, for the reason given. Exit status 3.
    Refused,
    /// The change failed or a signal ended it, and the host was restored. Exit status 4.
    RolledBack,
    /// The change failed, and the host could not be restored. An operator has to repair it. Exit status 5.
    Broken,
}

impl Outcome {
    /// The exit status of `farrier install` and `farrier uninstall`. Status 2 is clap's, for wrong usage.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Applied | Self::Unchanged => 0,
            Self::Partial => 1,
            Self::Refused => 3,
            Self::RolledBack => 4,
            Self::Broken => 5,
        }
    }
}

/// The result for one handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandlerReport {
    /// The Shim that the handler belongs to.
    pub shim: String,
    /// The handler's name in containerd's configuration; empty for a Shim that was to be kept and is not on the host.
    pub handler: String,
    /// The path that containerd executes. It stays the same when the shim is upgraded.
    #[serde(default)]
    pub path: Option<String>,
    /// SHA-256 of the binary at the path.
    #[serde(default, deserialize_with = "Sha256Digest::lenient")]
    pub sha256: Option<Sha256Digest>,
    /// The running containerd lists the handler, and the binary at its path was verified.
    pub served: bool,
    /// Why the handler is not served, or still served though it should be removed, in one sentence.
    pub reason: Option<String>,
    /// How an operator corrects the cause, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The handler is as it was before the request, because the restart that it needs would end pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_pods: bool,
}

/// A change of one file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// Absolute path on the host.
    pub path: String,
    /// The kind of change.
    pub action: FileAction,
    /// The change as a unified diff, in the report of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

/// The kind of change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileAction {
    /// The file existed and was changed.
    Edited,
    /// The file did not exist.
    Created,
    /// The file was removed.
    Removed,
}

/// A handler that the command line had installed, and that belongs to a Shim of the cluster now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakenOver {
    /// The handler.
    pub handler: String,
    /// Whether another binary or other options replaced those of the command line.
    pub replaced: bool,
    /// What was done, in one sentence.
    pub message: String,
}

impl ProvisionReport {
    /// A report with an outcome. All other fields are empty.
    #[must_use]
    pub fn new(result: Outcome) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            result,
            dry_run: false,
            changed: false,
            restarts: 0,
            handlers: Vec::new(),
            files: Vec::new(),
            reason: None,
            remedy: None,
            unsupported: false,
            unsupported_shims: BTreeSet::new(),
            interrupted: false,
            ending_pods: EndingPods::default(),
            refused_for_pods: false,
            using_pods: EndingPods::default(),
            taken_over: Vec::new(),
            notes: Vec::new(),
            containerd: None,
            distro: None,
            cri_away_ms: None,
            request_digest: None,
            node_uid: String::new(),
            machine_id: String::new(),
            boot_id: String::new(),
        }
    }

    /// Adds why the outcome is not `applied` or `unchanged`.
    pub fn set_problem(&mut self, problem: Problem) {
        self.reason = Some(problem.message);
        self.remedy = problem.help;
    }

    /// The whole document, for `-o json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        document::to_json(self)
    }

    /// Parses a report, for example a container's termination message.
    ///
    /// # Errors
    /// When the text is not a report of this version, or has an unknown outcome, which must not pass for success.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let report: Self = serde_json::from_str(text).map_err(|source| Error::Json { source })?;
        if report.api_version == API_VERSION {
            Ok(report)
        } else {
            Err(Error::Version {
                found: report.api_version,
            })
        }
    }

    /// The document in less than [`TERMINATION_MESSAGE_LIMIT`] bytes. The least important fields are left out first, and `served` is always kept.
    #[must_use]
    pub fn to_termination_message(&self) -> String {
        let mut report = self.clone();
        let fits = |report: &Self| report.to_compact_json().len() < TERMINATION_MESSAGE_LIMIT;
        if !fits(&report) {
            report.notes.clear();
        }
        if !fits(&report) {
            report.files.clear();
        }
        if !fits(&report) {
            for handler in &mut report.handlers {
                handler.path = None;
            }
        }
        if !fits(&report) {
            // The pods say why these wait.
            for handler in report.handlers.iter_mut().filter(|it| it.waits_for_pods) {
                (handler.reason, handler.remedy) = (None, None);
            }
        }
        if !fits(&report) {
            // Handlers of one Shim fail for the same reason, so the first one keeps it.
            let mut reported = BTreeSet::new();
            for handler in report.handlers.iter_mut().filter(|handler| !handler.served) {
                let reason = handler.reason.clone().unwrap_or_default();
                if !reported.insert((handler.shim.clone(), reason)) {
                    handler.reason = None;
                    handler.remedy = None;
                }
            }
        }
        if !fits(&report) {
            report.ending_pods.shorten(3);
            report.using_pods.shorten(3);
        }
        if !fits(&report) {
            // The first one tells an operator where to look.
            report.taken_over.truncate(1);
        }
        if !fits(&report) {
            // The cause of each failure comes before the next steps.
            for handler in &mut report.handlers {
                handler.remedy = None;
            }
        }
        for longest in [400, 250, 180, 120, 80, 40, 16] {
            if !fits(&report) {
                let texts = report
                    .handlers
                    .iter_mut()
                    .map(|handler| &mut handler.reason);
                for text in texts.chain([&mut report.reason]).flatten() {
                    *text = elide(text, longest);
                }
                // A part of a command would be another command.
                report.remedy.take_if(|remedy| remedy.len() > longest);
            }
        }
        if !fits(&report) {
            report.ending_pods.shorten(1);
            report.using_pods.shorten(1);
        }
        if !fits(&report) {
            for handler in &mut report.handlers {
                handler.sha256 = None;
            }
        }
        if !fits(&report) {
            report.unsupported_shims.clear();
            report.taken_over.clear();
        }
        // Only very many handlers with very long names come this far. A handler that is left out counts as not served.
        while !fits(&report) && report.handlers.pop().is_some() {}
        report.to_compact_json()
    }

    /// The document without fields that are null. It parses to the same report.
    fn to_compact_json(&self) -> String {
        let Ok(mut document) = serde_json::to_value(self) else {
            return self.to_json();
        };
        drop_nulls(&mut document);
        document.to_string()
    }
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_on_thirty_handlers_fits_a_termination_message() {
        let mut report = ProvisionReport::new(Outcome::Partial);
        report.reason = Some("ü".repeat(3_000));
        report.handlers = (0..30)
            .map(|n| HandlerReport {
                shim: format!("containerd-shim-number-{n}"),
                handler: format!("handler-number-{n}"),
                path: Some(format!(
                    "/opt/farrier/bin/containerd-shim-handler-number-{n}"
                )),
                sha256: Some(Sha256Digest::of(b"a")),
                served: n % 2 == 0,
                reason: Some("the archive holds no such file ".repeat(20)),
                remedy: None,
                waits_for_pods: false,
            })
            .collect();
        let message = report.to_termination_message();
        assert!(message.len() < TERMINATION_MESSAGE_LIMIT);
        let read = ProvisionReport::from_json(&message).unwrap();
        assert_eq!(read.handlers.len(), 30);
        assert_eq!(read.result, Outcome::Partial);
    }

    #[test]
    fn a_report_may_lack_its_digests_and_has_none_where_their_text_is_none() {
        let report = ProvisionReport::new(Outcome::Applied);
        assert!(report.to_json().contains(r#""requestDigest":"""#));
        assert_eq!(
            ProvisionReport::from_json(&report.to_json()).unwrap(),
            report
        );
        let mut document = serde_json::to_value(&report).unwrap();
        document["requestDigest"] = "abc".into();
        let handler =
            r#"{"shim":"a","handler":"a","sha256":"\u001b[31m","served":true,"reason":null}"#;
        document["handlers"] = serde_json::from_str(&format!("[{handler}]")).unwrap();
        let read = ProvisionReport::from_json(&document.to_string()).unwrap();
        assert_eq!((read.request_digest, read.handlers[0].sha256), (None, None));
    }

    #[test]
    fn a_shortened_report_has_the_whole_help_or_none() {
        let help = format!("run `chmod go-w /{}` on the host", "directory/".repeat(30));
        for handlers in 0..60 {
            let mut report = ProvisionReport::new(Outcome::Refused);
            report.set_problem(Problem::with_help("\"".repeat(1_000), help.clone()));
            report.notes = vec!["a note".repeat(100)];
            report.handlers = (0..handlers)
                .map(|n| HandlerReport {
                    shim: format!("shim-{n}"),
                    handler: format!("handler-{n}"),
                    path: None,
                    sha256: Some(Sha256Digest::of(b"a")),
                    served: false,
                    reason: report.reason.clone(),
                    remedy: report.remedy.clone(),
                    waits_for_pods: false,
                })
                .collect();
            let message = report.to_termination_message();
            assert!(message.len() < TERMINATION_MESSAGE_LIMIT);
            let read = ProvisionReport::from_json(&message).unwrap();
            let entries = read.handlers.iter().filter_map(|it| it.remedy.as_ref());
            for remedy in entries.chain(&read.remedy) {
                assert_eq!(*remedy, help);
            }
        }
    }

    #[test]
    fn each_of_many_failures_keeps_its_cause() {
        let mut report = ProvisionReport::new(Outcome::Refused);
        report.handlers = (0..24)
            .map(|n| HandlerReport {
                shim: format!("shim-{}", n / 2),
                handler: format!("handler-{n}"),
                path: None,
                sha256: None,
                served: false,
                reason: Some(format!(
                    "https://example.org/{}/containerd-shim-{}.tar.gz can't be fetched: no such host",
                    "releases/download/".repeat(5),
                    n / 2,
                )),
                remedy: Some("check the location and the network".repeat(2)),
                waits_for_pods: false,
            })
            .collect();
        report.reason = report.handlers[0].reason.clone();
        let read = ProvisionReport::from_json(&report.to_termination_message()).unwrap();
        let reasons = read.handlers.iter().filter_map(|it| it.reason.as_deref());
        let reasons: Vec<&str> = reasons.collect();
        assert_eq!(reasons.len(), 12, "one of each Shim");
        for reason in reasons {
            assert!(
                reason.ends_with("can't be fetched: no such host"),
                "{reason}"
            );
        }
    }

    #[test]
    fn the_fields_of_a_report_are_a_contract() {
        let document = serde_json::to_value(ProvisionReport::new(Outcome::Applied)).unwrap();
        let fields: Vec<&String> = document.as_object().unwrap().keys().collect();
        // Fields are added over time, never renamed or removed.
        let mut contract = [
            "apiVersion",
            "result",
            "changed",
            "restarts",
            "handlers",
            "files",
            "reason",
            "remedy",
            "notes",
            "containerd",
            "distro",
            "criAwayMs",
            "requestDigest",
            "nodeUid",
            "machineId",
            "bootId",
        ];
        let mut fields: Vec<&str> = fields.into_iter().map(String::as_str).collect();
        fields.sort_unstable();
        contract.sort_unstable();
        assert_eq!(fields, contract);
        let outcomes = [
            (Outcome::Applied, "applied", 0),
            (Outcome::Unchanged, "unchanged", 0),
            (Outcome::Partial, "partial", 1),
            (Outcome::Refused, "refused", 3),
            (Outcome::RolledBack, "rolledBack", 4),
            (Outcome::Broken, "broken", 5),
        ];
        for (outcome, word, status) in outcomes {
            assert_eq!(serde_json::to_value(outcome).unwrap(), word);
            assert_eq!(outcome.exit_status(), status);
        }
    }

    #[test]
    fn only_the_report_of_an_interrupted_run_has_the_field_interrupted() {
        let mut report = ProvisionReport::new(Outcome::RolledBack);
        assert!(!report.to_json().contains("interrupted"));
        let read = ProvisionReport::from_json(&report.to_json()).unwrap();
        assert!(!read.interrupted);
        report.interrupted = true;
        for text in [report.to_json(), report.to_termination_message()] {
            assert!(text.contains(r#""interrupted":true"#), "{text}");
            assert!(ProvisionReport::from_json(&text).unwrap().interrupted);
        }
    }

    #[test]
    fn a_report_of_another_version_is_ignored() {
        let text = ProvisionReport::new(Outcome::Applied)
            .to_json()
            .replace("farrier.dev/v1", "farrier.dev/v2");
        assert!(matches!(
            ProvisionReport::from_json(&text),
            Err(Error::Version { .. })
        ));
    }
}
