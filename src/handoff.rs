//! All that crosses from the cluster to a node and back: what a node should carry, and what came of it. Versioned JSON.
//!
//! Pure. The controller writes a [`ProvisionRequest`] into its Job and reads a [`ProvisionReport`] from the Job's pod; the
//! installer does the reverse; `fetch` leaves a [`FetchResult`] per Shim between them. None of them sees the other's types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How digests are written in the documents here.
pub use crate::names::{hex, sha256_hex};

/// The one version of the documents here. Fields are added over time, never renamed or removed.
pub const API_VERSION: &str = "farrier.dev/v1";

/// The report of a Job stays under this many bytes: the kubelet keeps only the *last* 4,096 bytes of a termination message
/// (Kubernetes API reference, `terminationMessagePath`), which would cut the head off a JSON object.
pub const TERMINATION_MESSAGE_LIMIT: usize = 4_000;

/// The desired set of one node: all Shims that it should carry, and whose set it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionRequest {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Whose set this is. A request replaces its own owner's set, and nobody else's.
    pub owner: Owner,
    /// UID of the node object; empty where no cluster is involved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_uid: String,
    /// What the node should carry, sorted by name, each name once.
    #[serde(default)]
    pub shims: Vec<ShimRequest>,
    /// Handlers to declare to containerd without a binary behind them (idea 6: one restart in a node's life).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserve: Vec<String>,
}

/// Whose set of handlers something on a host belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// The controller's Jobs.
    Cluster,
    /// The command line on the node.
    Local,
    /// What KWasm's installer left.
    Kwasm,
    /// What runtime-class-manager's installer left.
    Rcm,
}

/// One Shim as a node needs it: already resolved for the node's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimRequest {
    /// Name of the Shim object, or what the command line called it.
    pub name: String,
    /// Names that containerd knows the runtime by: the Shim's own first, then its aliases.
    pub handlers: Vec<String>,
    /// `https://…`, `http://…` or `file:///path/on/the/node`.
    pub location: String,
    /// SHA-256 of the artifact at `location`, 64 lower-case hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SHA-256 of the binary inside the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary_sha256: Option<String>,
    /// File name of the binary inside the archive; without it `containerd-shim-<name>` is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// Options that containerd hands to the shim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionValue>,
}

/// A runtime option with its TOML type; never raw TOML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML integer.
    Integer(i64),
    /// A TOML string.
    String(String),
}

impl OptionValue {
    /// Reads a value of `spec.containerdRuntimeOptions`, which runtime-class-manager writes into the file as raw TOML:
    /// `true` and `false` are booleans, digits an integer, a value in TOML quotes that string, and anything else a string.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match text {
            "true" => return Self::Boolean(true),
            "false" => return Self::Boolean(false),
            _ => {}
        }
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        if !unsigned.is_empty()
            && unsigned.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(integer) = text.parse()
        {
            return Self::Integer(integer);
        }
        let quoted = text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        let literal = text
            .strip_prefix('\'')
            .and_then(|rest| rest.strip_suffix('\''));
        match (quoted, literal) {
            (Some(inner), _) if !inner.contains(['"', '\\']) => Self::String(inner.to_owned()),
            (_, Some(inner)) if !inner.contains('\'') => Self::String(inner.to_owned()),
            _ => Self::String(text.to_owned()),
        }
    }
}

impl ProvisionRequest {
    /// The desired set `shims` of `owner`, in canonical order.
    #[must_use]
    pub fn new(
        owner: Owner,
        node_uid: String,
        mut shims: Vec<ShimRequest>,
        mut reserve: Vec<String>,
    ) -> Self {
        shims.sort_by(|a, b| a.name.cmp(&b.name));
        reserve.sort();
        reserve.dedup();
        Self {
            api_version: API_VERSION.to_owned(),
            owner,
            node_uid,
            shims,
            reserve,
        }
    }

    /// Digest by which a report names the request that it answers: 64 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        sha256_hex(self.to_json().as_bytes())
    }

    /// The document as it crosses to the node.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Maps here have string keys and no type can refuse, so this can't fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a document and refuses what a host must never act on.
    ///
    /// # Errors
    /// Says which part can't be read: not JSON, another version, an unusable name, a digest that is none, a name or handler twice.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let request: Self = serde_json::from_str(text).map_err(|source| Error::Json { source })?;
        if request.api_version != API_VERSION {
            return Err(Error::Version {
                found: request.api_version,
            });
        }
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), Error> {
        let mut names = std::collections::BTreeSet::new();
        let mut handlers = std::collections::BTreeSet::new();
        for shim in &self.shims {
            check_name(&shim.name)?;
            if !names.insert(&shim.name) {
                return Err(Error::Twice {
                    name: shim.name.clone(),
                });
            }
            for handler in &shim.handlers {
                check_name(handler)?;
                if !handlers.insert(handler) {
                    return Err(Error::Twice {
                        name: handler.clone(),
                    });
                }
            }
            if let Some(binary) = &shim.binary {
                check_name(binary)?;
            }
            for digest in [&shim.sha256, &shim.binary_sha256].into_iter().flatten() {
                if !is_sha256(digest) {
                    return Err(Error::Digest {
                        shim: shim.name.clone(),
                        found: digest.clone(),
                    });
                }
            }
        }
        self.reserve
            .iter()
            .try_for_each(|handler| check_name(handler))
    }
}

/// Whether `text` is a SHA-256 digest: 64 hexadecimal digits of either case.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A name becomes part of a path on the host and a key in TOML: letters, digits, `-`, `_` and `.`, not first a dot.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Error::Name {
            found: name.to_owned(),
        });
    }
    Ok(())
}

/// What came of a request on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionReport {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The outcome as a whole.
    pub result: Outcome,
    /// Whether any byte on the host is different from before.
    pub changed: bool,
    /// How many times containerd was restarted.
    pub restarts: u32,
    /// One entry per handler that was asked for, or that is on its way off.
    pub handlers: Vec<HandlerReport>,
    /// Files of the host that were written or removed.
    #[serde(default)]
    pub files: Vec<FileReport>,
    /// Why the outcome is not `applied` or `unchanged`: one sentence.
    pub reason: Option<String>,
    /// What the operator can do about it: one sentence.
    pub remedy: Option<String>,
    /// Release of the containerd that serves, as `1.7.35`.
    #[serde(default)]
    pub containerd: Option<String>,
    /// Word of the distribution table.
    #[serde(default)]
    pub distro: Option<String>,
    /// How long the CRI did not answer because of us, in milliseconds.
    #[serde(default)]
    pub cri_away_ms: Option<u64>,
    /// Digest of the request that this answers.
    #[serde(default)]
    pub request_digest: String,
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
    /// Done, and something changed. Exit status 0.
    Applied,
    /// Some Shims are served, others failed. Exit status 1.
    Partial,
    /// The host already matched. Exit status 0.
    Unchanged,
    /// Nothing was changed, for the reason given. Exit status 3.
    Refused,
    /// It was tried, it failed, and the host is as it was. Exit status 4.
    RolledBack,
    /// The host needs a person. Exit status 5.
    Broken,
}

impl Outcome {
    /// The exit status of `farrier install` and `farrier uninstall`; 2 is clap's for wrong usage.
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

/// What became of one handler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandlerReport {
    /// The Shim that the handler belongs to.
    pub shim: String,
    /// The name containerd knows it by.
    pub handler: String,
    /// The stable path that containerd executes.
    #[serde(default)]
    pub path: Option<String>,
    /// SHA-256 of the binary behind the path.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The running containerd lists the handler, and its binary stands verified at its path.
    pub served: bool,
    /// Why it is not served, or why it still is though it should be gone: one sentence.
    pub reason: Option<String>,
}

/// What became of one file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// Absolute path on the host.
    pub path: String,
    /// What was done to it.
    pub action: FileAction,
}

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileAction {
    /// It was there and has other bytes now.
    Edited,
    /// It was not there.
    Created,
    /// It is gone.
    Removed,
}

impl ProvisionReport {
    /// A report on which everything but the outcome and its reason is still open.
    #[must_use]
    pub fn new(result: Outcome) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            result,
            changed: false,
            restarts: 0,
            handlers: Vec::new(),
            files: Vec::new(),
            reason: None,
            remedy: None,
            containerd: None,
            distro: None,
            cri_away_ms: None,
            request_digest: String::new(),
            node_uid: String::new(),
            machine_id: String::new(),
            boot_id: String::new(),
        }
    }

    /// The whole document, for `-o json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // As for the request: nothing here can refuse.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a report, for example out of a container's termination message.
    ///
    /// # Errors
    /// When the text is no report of this version: an unknown outcome must never pass for success.
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

    /// The document in less than [`TERMINATION_MESSAGE_LIMIT`] bytes: what is least missed goes first, never a verdict.
    #[must_use]
    pub fn to_termination_message(&self) -> String {
        let mut report = self.clone();
        let fits = |report: &Self| report.to_compact_json().len() < TERMINATION_MESSAGE_LIMIT;
        if !fits(&report) {
            report.files.clear();
        }
        if !fits(&report) {
            for handler in &mut report.handlers {
                handler.path = None;
            }
        }
        for longest in [400, 120, 40, 16] {
            if !fits(&report) {
                let texts = report
                    .handlers
                    .iter_mut()
                    .map(|handler| &mut handler.reason);
                for text in texts
                    .chain([&mut report.reason, &mut report.remedy])
                    .flatten()
                {
                    shorten(text, longest);
                }
            }
        }
        if !fits(&report) {
            for handler in &mut report.handlers {
                handler.sha256 = None;
            }
        }
        // Only names of the greatest length in great number come this far; a handler without a verdict counts as not served.
        while !fits(&report) && report.handlers.pop().is_some() {}
        report.to_compact_json()
    }

    /// The document without what is null, which reads back the same.
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

/// Cuts `text` to at most `longest` bytes at a character's border and says so.
fn shorten(text: &mut String, longest: usize) {
    if text.len() > longest {
        let end = (0..=longest.saturating_sub(3))
            .rev()
            .find(|&end| text.is_char_boundary(end))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

/// What `farrier fetch` leaves for one Shim in the hand-off folder, as `<shim>.json`; the binary is `<shim>.bin` beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchResult {
    /// Name of the Shim.
    pub shim: String,
    /// SHA-256 of the binary in `<shim>.bin`; absent where fetching failed.
    pub binary_sha256: Option<String>,
    /// Why it failed: one sentence.
    pub reason: Option<String>,
}

/// Why a document can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or not of this shape.
    #[error("the document is not a request or report that this release reads: {source}")]
    Json {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// It is of another version.
    #[error(
        "the document has apiVersion {found:?}, this release reads only {API_VERSION:?}; use one release throughout"
    )]
    Version {
        /// What it says.
        found: String,
    },
    /// A name can't be part of a path.
    #[error(
        "{found:?} can't name a shim, handler or binary: use letters, digits, '-', '_' and '.', and no dot first"
    )]
    Name {
        /// The name.
        found: String,
    },
    /// A digest is none.
    #[error("shim {shim} names {found:?} as SHA-256; write 64 hexadecimal digits")]
    Digest {
        /// The Shim.
        shim: String,
        /// What it says.
        found: String,
    },
    /// A name stands twice.
    #[error("{name:?} is asked for twice; name each shim and each handler once")]
    Twice {
        /// The name.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shim(name: &str) -> ShimRequest {
        ShimRequest {
            name: name.to_owned(),
            handlers: vec![name.to_owned()],
            location: "https://example.org/shim.tar.gz".to_owned(),
            sha256: None,
            binary_sha256: None,
            binary: None,
            options: BTreeMap::new(),
        }
    }

    #[test]
    fn a_request_reads_back_and_its_digest_does_not_depend_on_order() {
        let one = ProvisionRequest::new(
            Owner::Cluster,
            "uid".to_owned(),
            vec![shim("b"), shim("a")],
            vec![],
        );
        let two = ProvisionRequest::new(
            Owner::Cluster,
            "uid".to_owned(),
            vec![shim("a"), shim("b")],
            vec![],
        );
        assert_eq!(one.digest(), two.digest());
        assert_eq!(ProvisionRequest::from_json(&one.to_json()).unwrap(), one);
    }

    #[test]
    fn a_request_that_would_leave_its_folder_is_refused() {
        for name in ["../spin", "a/b", "", ".hidden", "a\nb", "ä"] {
            let request =
                ProvisionRequest::new(Owner::Cluster, String::new(), vec![shim(name)], vec![]);
            assert!(
                matches!(
                    ProvisionRequest::from_json(&request.to_json()),
                    Err(Error::Name { .. })
                ),
                "{name:?}"
            );
        }
    }

    #[test]
    fn one_handler_for_two_shims_is_refused() {
        let mut other = shim("b");
        other.handlers = vec!["a".to_owned()];
        let request = ProvisionRequest::new(
            Owner::Cluster,
            String::new(),
            vec![shim("a"), other],
            vec![],
        );
        assert!(matches!(
            ProvisionRequest::from_json(&request.to_json()),
            Err(Error::Twice { .. })
        ));
    }

    #[test]
    fn options_take_the_type_that_their_text_shows() {
        assert_eq!(OptionValue::from_text("true"), OptionValue::Boolean(true));
        assert_eq!(OptionValue::from_text("-12"), OptionValue::Integer(-12));
        assert_eq!(
            OptionValue::from_text("\"12\""),
            OptionValue::String("12".to_owned())
        );
        assert_eq!(
            OptionValue::from_text("'a'"),
            OptionValue::String("a".to_owned())
        );
        assert_eq!(
            OptionValue::from_text("a = 1\n[x]"),
            OptionValue::String("a = 1\n[x]".to_owned())
        );
        assert_eq!(
            OptionValue::from_text("\""),
            OptionValue::String("\"".to_owned())
        );
        assert_eq!(
            OptionValue::from_text(""),
            OptionValue::String(String::new())
        );
    }

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
                sha256: Some("a".repeat(64)),
                served: n % 2 == 0,
                reason: Some("the archive holds no such file ".repeat(20)),
            })
            .collect();
        let message = report.to_termination_message();
        assert!(message.len() < TERMINATION_MESSAGE_LIMIT);
        let read = ProvisionReport::from_json(&message).unwrap();
        assert_eq!(read.handlers.len(), 30);
        assert_eq!(read.result, Outcome::Partial);
    }

    #[test]
    fn a_report_of_another_version_is_not_taken_for_an_answer() {
        let text = ProvisionReport::new(Outcome::Applied)
            .to_json()
            .replace("farrier.dev/v1", "farrier.dev/v2");
        assert!(matches!(
            ProvisionReport::from_json(&text),
            Err(Error::Version { .. })
        ));
    }
}
