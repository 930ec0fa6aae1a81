//! The desired set of one node, as the controller or the command line requests it. Parsing refuses what a host must never act on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::digest::Sha256Digest;
use super::document::{self, API_VERSION, Error};
use super::name::check_name;
use super::proof::Proof;
use super::restart_policy::{OnRestart, RestartPolicy};

/// The desired set of one node: all Shims that it should have, and the owner of the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionRequest {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The owner of the set. A request replaces the set of its owner and no other.
    pub owner: Owner,
    /// UID of the node object; empty where no cluster is involved.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node_uid: String,
    /// The Shims that the node should have, sorted by name, each name once.
    #[serde(default)]
    pub shims: Vec<ShimRequest>,
    /// Handlers to declare in containerd's configuration without a binary, so that a later Shim needs no restart. Reserved handlers of a
    /// cluster are declared when containerd is restarted anyway. Those of the command line are declared at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserve: Vec<String>,
    /// Options of handlers in `reserve`. With other options than those of the later Shim, a restart would be needed after all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reserve_options: BTreeMap<String, BTreeMap<String, OptionValue>>,
    /// What the change does if the restart of containerd would end pods.
    #[serde(default, skip_serializing_if = "OnRestart::is_default")]
    pub on_restart: OnRestart,
    /// The same for the pods of single handlers, whether or not a Shim of `shims` has the handler.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_restart_by_handler: BTreeMap<String, OnRestart>,
}

/// The owner of a set of handlers on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// The controller's Jobs.
    Cluster,
    /// The command line on the node.
    Local,
    /// KWasm's installer.
    Kwasm,
    /// runtime-class-manager's installer.
    Rcm,
}

/// One Shim for a node, with the artifact for the node's platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimRequest {
    /// Name of the Shim object, or the name on the command line.
    pub name: String,
    /// The Shim stays on the node as it is. The request has no other field then: handlers, options and binary are those of the node's state
    /// file, which only root can write, and nothing is fetched. An installer without this field refuses the request, because the handlers
    /// are missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// The handlers to declare: the Shim's own first, then its aliases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handlers: Vec<String>,
    /// `https://…`, `http://…` or `file:///path/on/the/node`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// SHA-256 of the artifact at `location`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// SHA-256 of the binary inside the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary_sha256: Option<Sha256Digest>,
    /// File name of the binary inside the archive; `containerd-shim-<name>` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// Options that containerd passes to the shim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionValue>,
    /// What is proven of the handlers before they are advertised.
    #[serde(default, skip_serializing_if = "Proof::is_default")]
    pub proof: Proof,
    /// SHA-256 of the binary that the node reported for exactly this request. The binary is not fetched again.
    ///
    /// A hint, which [`ProvisionRequest::without_hints`] removes. It comes from an annotation that others can write too, so the installer
    /// looks for the binary on the host, and in the state file for the artifact that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<Sha256Digest>,
    /// SHA-256 of the binary that another node got from the same location, where the Shim specifies no digest. Another binary is refused.
    ///
    /// Not part of the digest, because what a node had before is still what it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_binary_sha256: Option<Sha256Digest>,
}

impl ShimRequest {
    /// The request to keep the Shim `name` as it is on the node.
    #[must_use]
    pub fn kept(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            keep: true,
            handlers: Vec::new(),
            location: String::new(),
            sha256: None,
            binary_sha256: None,
            binary: None,
            options: BTreeMap::new(),
            proof: Proof::None,
            present: None,
            first_binary_sha256: None,
        }
    }

    /// A short digest of the request without its hints: 16 hexadecimal digits. Two requests with different locations, options or handlers
    /// have different fingerprints, and none of these can be read from a fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let asked = self.clone().without_hints();
        let mut digest = Sha256Digest::of(document::to_json(&asked).as_bytes()).to_string();
        digest.truncate(FINGERPRINT_LENGTH);
        digest
    }

    /// Refuses names that can't be part of a path, a Shim without handlers or location, and a kept Shim with anything beside its name.
    fn check(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        let contents = if self.keep {
            let name_only = Self::kept(self.name.clone());
            (*self == name_only).then_some(())
        } else {
            (!self.handlers.is_empty() && !self.location.is_empty()).then_some(())
        };
        contents.ok_or_else(|| Error::Contents {
            shim: self.name.clone(),
        })?;
        self.handlers
            .iter()
            .chain(&self.binary)
            .try_for_each(|name| check_name(name))
    }

    /// The request without its hints.
    fn without_hints(self) -> Self {
        Self {
            present: None,
            first_binary_sha256: None,
            ..self
        }
    }

    /// The binary's file name in an archive.
    #[must_use]
    pub fn file_name(&self) -> String {
        let binary = self.binary.clone();
        binary.unwrap_or_else(|| format!("containerd-shim-{}", self.name))
    }

    /// SHA-256 of the binary that is on the node already; `None` where no binary is known, or another one is requested.
    #[must_use]
    pub fn expected_on_node(&self) -> Option<Sha256Digest> {
        let wanted = self.binary_sha256.or(self.first_binary_sha256);
        self.present
            .filter(|present| wanted.is_none_or(|wanted| wanted == *present))
    }
}

/// Length of a [`ShimRequest::fingerprint`], in bytes.
pub const FINGERPRINT_LENGTH: usize = 16;

/// The value of a runtime option, with one of three TOML types.
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
    /// Parses a value of `spec.containerdRuntimeOptions`, which runtime-class-manager writes into the file as raw TOML.
    ///
    /// `true` and `false` are booleans, digits are an integer, a text in TOML quotes is the string between them, and any other text is a string.
    ///
    /// ```
    /// use farrier::handoff::OptionValue;
    ///
    /// assert_eq!(OptionValue::from_text("12"), OptionValue::Integer(12));
    /// assert_eq!(OptionValue::from_text("'12'"), OptionValue::String("12".to_owned()));
    /// ```
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

impl From<&OptionValue> for toml::Value {
    fn from(value: &OptionValue) -> Self {
        match value {
            OptionValue::Boolean(value) => Self::Boolean(*value),
            OptionValue::Integer(value) => Self::Integer(*value),
            OptionValue::String(value) => Self::String(value.clone()),
        }
    }
}

impl OptionValue {
    /// The options of a configuration. Floats, times, arrays and tables are left out, because no shim has such an option.
    #[must_use]
    pub fn from_toml(options: &BTreeMap<String, toml::Value>) -> BTreeMap<String, Self> {
        let value = |value: &toml::Value| match value {
            toml::Value::Boolean(value) => Some(Self::Boolean(*value)),
            toml::Value::Integer(value) => Some(Self::Integer(*value)),
            toml::Value::String(value) => Some(Self::String(value.clone())),
            toml::Value::Float(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => None,
        };
        let options = options.iter();
        options
            .filter_map(|(key, it)| Some((key.clone(), value(it)?)))
            .collect()
    }

    /// The options as a configuration has them.
    #[must_use]
    pub fn to_toml(options: &BTreeMap<String, Self>) -> BTreeMap<String, toml::Value> {
        let options = options.iter();
        options
            .map(|(key, value)| (key.clone(), value.into()))
            .collect()
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
            reserve_options: BTreeMap::new(),
            on_restart: OnRestart::default(),
            on_restart_by_handler: BTreeMap::new(),
        }
    }

    /// What the change does if the restart of containerd would end pods, by handler.
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy {
            default: self.on_restart,
            handlers: self.on_restart_by_handler.clone(),
        }
    }

    /// The request without its hints and its policies of restarts, to compare two requests by what they ask for.
    #[must_use]
    pub fn without_hints(mut self) -> Self {
        let shims = self.shims.into_iter();
        self.shims = shims.map(ShimRequest::without_hints).collect();
        self.on_restart = OnRestart::default();
        self.on_restart_by_handler.clear();
        self
    }

    /// The digest by which a report names its request.
    ///
    /// Hints don't count. Reserved handlers don't count either, so that a Shim for other nodes is no reason for a new Job on this one. Nor
    /// does the policy of restarts, which changes no host.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        let asked = Self {
            reserve: Vec::new(),
            reserve_options: BTreeMap::new(),
            ..self.clone().without_hints()
        };
        Sha256Digest::of(asked.to_json().as_bytes())
    }

    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        document::to_json(self)
    }

    /// Parses a document, and refuses what a host must never act on.
    ///
    /// # Errors
    /// When the text is not JSON or of another version, a name or digest is invalid, or a name or handler is requested twice.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        // First, because another version may have other fields.
        let head: Head = serde_json::from_str(text).map_err(|source| Error::Json { source })?;
        if head.api_version != API_VERSION {
            return Err(Error::Version {
                found: head.api_version,
            });
        }
        let request: Self = serde_json::from_str(text).map_err(|source| Error::Json { source })?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        let mut handlers = BTreeSet::new();
        for shim in &self.shims {
            shim.check()?;
            if !names.insert(&shim.name) {
                return Err(Error::Duplicate {
                    name: shim.name.clone(),
                });
            }
            for handler in &shim.handlers {
                if !handlers.insert(handler) {
                    return Err(Error::Duplicate {
                        name: handler.clone(),
                    });
                }
            }
        }
        self.reserve
            .iter()
            .try_for_each(|handler| check_name(handler))
    }
}

/// The part that documents of all versions have.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn shim(name: &str) -> ShimRequest {
        ShimRequest {
            keep: false,
            handlers: vec![name.to_owned()],
            location: "https://example.org/shim.tar.gz".to_owned(),
            ..ShimRequest::kept(name)
        }
    }

    #[test]
    fn a_kept_shim_is_requested_by_its_name_alone_and_counts_in_the_digest() {
        let of = |shims| ProvisionRequest::new(Owner::Cluster, String::new(), shims, vec![]);
        let kept = of(vec![ShimRequest::kept("a")]);
        let text = kept.to_json();
        // A release that doesn't know the field misses the handlers, so it refuses the request and changes nothing.
        assert!(text.contains(r#"{"name":"a","keep":true}"#), "{text}");
        assert_eq!(ProvisionRequest::from_json(&text).unwrap(), kept);
        assert_ne!(kept.digest(), of(vec![shim("a")]).digest());
        assert_ne!(kept.digest(), of(vec![]).digest());
    }

    #[test]
    fn a_request_without_a_kept_shim_has_the_text_of_earlier_releases() {
        let text = document::to_json(&shim("a"));
        let expected =
            r#"{"name":"a","handlers":["a"],"location":"https://example.org/shim.tar.gz"}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_proof_counts_in_the_digest_and_reads_back() {
        let of = |shim| ProvisionRequest::new(Owner::Cluster, String::new(), vec![shim], vec![]);
        let proven = of(ShimRequest {
            proof: Proof::Sandbox,
            ..shim("a")
        });
        assert_ne!(proven.digest(), of(shim("a")).digest());
        let text = proven.to_json();
        assert!(text.contains(r#""proof":"Sandbox""#), "{text}");
        assert_eq!(ProvisionRequest::from_json(&text).unwrap(), proven);
    }

    #[rstest]
    #[case::kept_with_handlers(r#"{"name":"a","keep":true,"handlers":["a"]}"#)]
    #[case::kept_with_location(r#"{"name":"a","keep":true,"location":"https://example.org/a"}"#)]
    #[case::kept_with_options(r#"{"name":"a","keep":true,"options":{"BinaryName":"/tmp/a"}}"#)]
    #[case::kept_with_hint(&format!(r#"{{"name":"a","keep":true,"present":"{}"}}"#, "a".repeat(64)))]
    #[case::no_handlers(r#"{"name":"a","handlers":[],"location":"https://example.org/a"}"#)]
    #[case::no_location(r#"{"name":"a","handlers":["a"]}"#)]
    #[case::name_alone(r#"{"name":"a"}"#)]
    fn a_shim_that_is_neither_kept_by_name_nor_complete_is_refused(#[case] shim: &str) {
        let text =
            format!(r#"{{"apiVersion":"{API_VERSION}","owner":"cluster","shims":[{shim}]}}"#);
        let error = ProvisionRequest::from_json(&text).unwrap_err();
        assert!(matches!(error, Error::Contents { .. }), "{error}");
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
        let reserving = ProvisionRequest {
            reserve: vec!["c".to_owned()],
            ..one.clone()
        };
        assert_eq!(one.digest(), reserving.digest());
        assert_eq!(ProvisionRequest::from_json(&one.to_json()).unwrap(), one);
    }

    #[test]
    fn a_hint_does_not_change_the_digest_of_a_request() {
        let asked = ProvisionRequest::new(Owner::Cluster, String::new(), vec![shim("a")], vec![]);
        let mut hinted = asked.clone();
        hinted.shims[0].present = Some(Sha256Digest::of(b"a"));
        hinted.shims[0].first_binary_sha256 = Some(Sha256Digest::of(b"a"));
        assert_eq!(hinted.digest(), asked.digest());
        let read = ProvisionRequest::from_json(&hinted.to_json()).unwrap();
        assert_eq!(read, hinted);
        assert_eq!(read.without_hints(), asked);
        // Releases without hints wrote the same text, so the digests that nodes reported to them stay valid.
        assert!(!asked.to_json().contains("present"));
    }

    #[rstest]
    #[case::nothing_said(None, None, None)]
    #[case::said(Some("A"), None, Some("a"))]
    #[case::said_and_asked_for(Some("a"), Some("A"), Some("a"))]
    #[case::another_is_asked_for(Some("a"), Some("b"), None)]
    fn a_hint_counts_unless_another_binary_is_requested(
        #[case] present: Option<&str>,
        #[case] wanted: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let digest = |digit: Option<&str>| digit.map(|digit| digit.repeat(64).parse().unwrap());
        let shim = ShimRequest {
            present: digest(present),
            binary_sha256: digest(wanted),
            ..shim("a")
        };
        assert_eq!(shim.expected_on_node(), digest(expected));
    }

    #[test]
    fn an_invalid_digest_is_refused_in_every_field() {
        let request = ProvisionRequest::new(Owner::Cluster, String::new(), vec![shim("a")], vec![]);
        for field in ["sha256", "binarySha256", "present", "firstBinarySha256"] {
            for text in ["", "../../etc/shadow", &"a".repeat(63), &"g".repeat(64)] {
                let mut document = serde_json::to_value(&request).unwrap();
                document["shims"][0][field] = text.into();
                let error = ProvisionRequest::from_json(&document.to_string()).unwrap_err();
                let expected = format!("invalid SHA-256 {text:?}");
                assert!(error.to_string().contains(&expected), "{error}");
            }
        }
    }

    #[test]
    fn an_invalid_name_is_refused() {
        let long = "a".repeat(super::super::name::LONGEST_NAME + 1);
        for name in ["../spin", "a/b", "", ".hidden", "a\nb", "ä", &long] {
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
    fn a_request_of_another_version_is_refused_by_its_version_whatever_its_fields_are() {
        let text = r#"{"apiVersion":"farrier.dev/v9","owners":[]}"#;
        assert!(matches!(
            ProvisionRequest::from_json(text),
            Err(Error::Version { found }) if found == "farrier.dev/v9"
        ));
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
            Err(Error::Duplicate { .. })
        ));
    }

    #[test]
    fn an_option_keeps_its_type_in_toml() {
        let options = BTreeMap::from([
            ("a".to_owned(), OptionValue::Boolean(false)),
            ("b".to_owned(), OptionValue::Integer(-1)),
            ("c".to_owned(), OptionValue::String("1".to_owned())),
        ]);
        let mut toml = OptionValue::to_toml(&options);
        assert_eq!(toml["c"], toml::Value::String("1".to_owned()));
        toml.insert("d".to_owned(), toml::Value::Float(1.0));
        assert_eq!(OptionValue::from_toml(&toml), options);
    }

    #[test]
    fn the_type_of_an_option_is_read_from_its_text() {
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
}
