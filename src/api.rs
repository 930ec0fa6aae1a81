//! The Shim object as users write it: `runtime.spinkube.dev/v1alpha1`, a superset of runtime-class-manager's (RCM's) Shim.
//!
//! Pure: types, their schema, and what one Shim means for one platform. What a node then does with it is decided in the
//! controller; no client lives here. RCM's fields are spelt and required as in its release 0.2.0, so its manifests apply unchanged.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::handoff::{InvalidDigest, LONGEST_LABEL_NAME, Sha256Digest};

mod rollout;

pub use crate::handoff::is_label_name;
pub use rollout::{MaxUpdate, Rolling, RolloutKind, RolloutStrategy};

/// Longest name of a Shim or handler: it becomes the name part of a node label, which Kubernetes bounds at 63 characters.
pub const LONGEST_NAME: usize = LONGEST_LABEL_NAME;

/// Longest place that is fetched from, in bytes; the schema asks the same of platforms, and nothing of RCM's anonHttp.
const LONGEST_LOCATION: usize = 2048;

/// One container runtime shim: where it comes from, which nodes get it, how pods ask for it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "runtime.spinkube.dev",
    version = "v1alpha1",
    kind = "Shim",
    shortname = "shim",
    category = "farrier",
    status = "ShimStatus",
    derive = "PartialEq",
    doc = "A Shim is one container runtime shim: where it comes from, which nodes get it, and how pods ask for it. `kubectl wait --for=condition=Ready shim/NAME` waits until every node that wants it serves it.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("a Shim's name becomes a node label: use at most 63 characters"),
    printcolumn(name = "RuntimeClass", type_ = "string", json_path = ".spec.runtimeClass.name"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodesReady", description = "Nodes that serve the shim."),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes", description = "Nodes that want the shim."),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.nodesFailed", description = "Nodes on which the last attempt failed."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ShimSpec {
    /// Labels that a node must carry to get the shim. Without it every node gets it, control-plane nodes too, unless
    /// annotationSelector says otherwise; where both are set, both must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Annotations that a node must carry to get the shim, for example `kwasm.sh/kwasm-node: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotation_selector: Option<BTreeMap<String, String>>,
    /// Where the shim comes from. A node needs an entry of platforms that fits it, or, where platforms is empty, anonHttp.
    pub fetch_strategy: FetchStrategy,
    /// The name that containerd knows the shim by, and the RuntimeClasses through which pods ask for it.
    pub runtime_class: RuntimeClassSpec,
    /// How a change of the Shim reaches the nodes that carry it.
    #[serde(default)]
    pub rollout_strategy: RolloutStrategy,
    /// Options that containerd hands to the shim, for example `SystemdCgroup: "true"`. `"true"` and `"false"` become
    /// booleans, digits an integer, anything else a string. Which options there are is the shim's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_runtime_options: Option<BTreeMap<String, String>>,
    /// More names by which containerd knows the same binary: RuntimeClasses of your own may name them as their handler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    #[x_kube(
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))")
            .message("a handler's name becomes a node label: use letters, digits, '-', '_' and '.', with a letter or digit at both ends"),
        validation = Rule::new("!('runc' in self)")
            .message("the handler runc is containerd's own: leave it out")
    )]
    pub handler_aliases: Vec<String>,
    /// Stop acting on this Shim: nodes keep what they have of it, and get nothing new.
    #[serde(default)]
    pub paused: bool,
}

/// Where a shim comes from.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Default, PartialEq)]
#[x_kube(validation = Rule::new("!has(self.platforms) || size(self.platforms) > 0 || has(self.anonHttp)")
    .message("an empty list of platforms is fetched from nowhere: name the archive of each platform"))]
#[serde(rename_all = "camelCase")]
pub struct FetchStrategy {
    /// Deprecated and ignored; older manifests say `anonymousHttp`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// One archive for every node, whatever its architecture, and without a digest. Prefer platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_http: Option<AnonHttp>,
    /// One archive per platform; the first that fits a node counts. If any is given, anonHttp is not used, and a node that
    /// none fits gets nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub platforms: Option<Vec<Platform>>,
    /// File name of the binary inside the archive, where it differs from `containerd-shim-NAME` (NAME is the Shim's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-][A-Za-z0-9_.-]*$')")
        .message("write the name of a file, without a path: letters, digits, '-', '_' and '.'"))]
    pub binary: Option<String>,
}

/// One archive for every node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AnonHttp {
    /// URL of the archive: `https://…`, `http://…`, or `file:///path/on/the/node`.
    pub location: String,
}

/// The archive for one platform.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    /// Operating system of the node.
    pub os: Os,
    /// Architecture of the node; amd64 and `x86_64` mean the same, arm64 and aarch64 too.
    pub arch: Arch,
    /// Where the archive is: `https://…`, `http://…`, or `file:///path/on/the/node`.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^(https?://|file:///).')")
        .message("an archive is fetched from https://…, http://… or file:///path/on/the/node"))]
    pub location: String,
    /// SHA-256 of the archive, 64 hexadecimal digits. An archive with another one is not unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-fA-F]{64})?$')")
        .message("a SHA-256 is written as 64 hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// SHA-256 of the binary inside the archive, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-fA-F]{64})?$')")
        .message("a SHA-256 is written as 64 hexadecimal digits, as sha256sum prints them"))]
    pub binary_sha256: Option<String>,
}

/// Operating system of a node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Linux.
    #[serde(rename = "linux")]
    Linux,
}

/// Architecture of a node, in Go's or in uname's words.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, in Go's word.
    #[serde(rename = "amd64")]
    Amd64,
    /// 64-bit ARM, in Go's word.
    #[serde(rename = "arm64")]
    Arm64,
    /// 64-bit x86, in uname's word.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM, in uname's word.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Whether a node that calls its architecture `name` is of this one; the case doesn't matter.
    fn matches(self, name: &str) -> bool {
        let names: [&str; 2] = match self {
            Self::Amd64 | Self::X86_64 => ["amd64", "x86_64"],
            Self::Arm64 | Self::Aarch64 => ["arm64", "aarch64"],
        };
        names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// How pods ask for the shim.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeClassSpec {
    /// Name of the RuntimeClass that is made, as pods have it in spec.runtimeClassName; empty makes none.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")
    )]
    pub name: String,
    /// The name that containerd knows the shim by, for example `spin-v2`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new("self != 'runc'")
        .message("the handler runc is containerd's own: choose another name"))]
    pub handler: String,
    /// Which nodes the RuntimeClass lets pods onto. `Provisioned`: those that serve the handler. `Selector`: those that
    /// nodeSelector matches, served or not, so that a pod can make an autoscaler add a node.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Tolerations that pods of the RuntimeClass get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// What a pod of the RuntimeClass takes beside its containers' resources, as quantities: `memory: 16Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 32}))]
    #[x_kube(validation = Rule::new("self.all(key, self[key].matches('^[0-9.]+([eEinumkKMGTP]*[-+]?[0-9]*)$'))")
        .message("an overhead is a quantity, for example memory: 16Mi or cpu: 250m"))]
    pub overhead: BTreeMap<String, String>,
    /// More RuntimeClasses of the same handler, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))")
        .message("a RuntimeClass's name is made of lower-case letters, digits, '-' and '.', with a letter or digit at both ends"))]
    pub aliases: Vec<String>,
    /// Labels of the RuntimeClasses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Which nodes a RuntimeClass lets pods onto.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// Those on which the handler is served.
    #[default]
    Provisioned,
    /// Those that nodeSelector matches, served or not, as runtime-class-manager does.
    Selector,
}

/// What has become of a Shim in the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShimStatus {
    /// Ready (every node that wants the shim serves it), Progressing and Degraded, each with a reason and a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Nodes that want this shim and could carry it. Others, of another platform or a distribution that is not changed, are named by
    /// the condition Ready.
    #[serde(default)]
    pub nodes: i32,
    /// Nodes of those that serve it.
    #[serde(default)]
    pub nodes_ready: i32,
    /// Nodes of those that are on their way.
    #[serde(default)]
    pub nodes_pending: i32,
    /// Nodes of those on which the last attempt failed; the condition Degraded says why.
    #[serde(default)]
    pub nodes_failed: i32,
    /// Generation of the spec that this status tells of: metadata.generation, once it is up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The artifact of a Shim for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Where it is.
    pub location: String,
    /// SHA-256 of the artifact.
    pub sha256: Option<Sha256Digest>,
    /// SHA-256 of the binary inside.
    pub binary_sha256: Option<Sha256Digest>,
}

impl ShimSpec {
    /// The artifact for a node that calls itself `os` and `arch` (`node.status.nodeInfo`).
    ///
    /// As in RCM 0.2.0: the first platform that matches; where platforms are given, anonHttp is no fallback.
    ///
    /// # Errors
    /// When no platform matches, none is given at all, or the location or a digest can't be used.
    pub fn artifact(&self, os: &str, arch: &str) -> Result<Artifact, Error> {
        let platforms = self.fetch_strategy.platforms.as_deref().unwrap_or_default();
        let artifact = match (platforms, &self.fetch_strategy.anon_http) {
            ([], None) => return Err(Error::NoArtifact),
            ([], Some(anonymous)) => Artifact {
                location: anonymous.location.clone(),
                sha256: None,
                binary_sha256: None,
            },
            (platforms, _) => {
                let platform = platforms
                    .iter()
                    .find(|platform| match platform.os {
                        Os::Linux => {
                            os.eq_ignore_ascii_case("linux") && platform.arch.matches(arch)
                        }
                    })
                    .ok_or_else(|| Error::NoPlatform {
                        os: os.to_owned(),
                        arch: arch.to_owned(),
                    })?;
                Artifact {
                    location: platform.location.clone(),
                    sha256: digest(platform.sha256.as_deref())?,
                    binary_sha256: digest(platform.binary_sha256.as_deref())?,
                }
            }
        };
        if artifact.location.len() > LONGEST_LOCATION {
            return Err(Error::LongLocation);
        }
        if ["https://", "http://", "file:///"]
            .iter()
            .any(|scheme| artifact.location.starts_with(scheme))
        {
            Ok(artifact)
        } else {
            Err(Error::Location {
                location: artifact.location,
            })
        }
    }

    /// The names that containerd should know the shim by: its own first, then its aliases, each once.
    ///
    /// # Errors
    /// When one of them can't be a node label's name.
    pub fn handlers(&self) -> Result<Vec<String>, Error> {
        let mut seen = BTreeSet::new();
        std::iter::once(&self.runtime_class.handler)
            .chain(&self.handler_aliases)
            .filter(|handler| seen.insert(handler.as_str()))
            .map(|handler| {
                if is_label_name(handler) {
                    Ok(handler.clone())
                } else {
                    Err(Error::Handler {
                        handler: handler.clone(),
                    })
                }
            })
            .collect()
    }
}

/// The digest in a field of the Shim. A field may be empty, as in runtime-class-manager.
fn digest(text: Option<&str>) -> Result<Option<Sha256Digest>, Error> {
    let text = text.filter(|text| !text.is_empty());
    let digest = text.map(str::parse).transpose();
    digest.map_err(|InvalidDigest { found }| Error::Digest { found })
}

/// The CustomResourceDefinition of the Shim as YAML.
///
/// # Panics
/// Where a type of the definition has no form in YAML.
#[must_use]
pub fn crd_yaml() -> String {
    serde_saphyr::to_string(&Shim::crd())
        .expect("the definition is made of types that have a form in YAML")
}

/// Why a Shim can't be had on a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No place is named.
    #[error("no artifact is named; set spec.fetchStrategy.platforms")]
    NoArtifact,
    /// No platform matches.
    #[error("no artifact for {os}/{arch}; add it to spec.fetchStrategy.platforms")]
    NoPlatform {
        /// Operating system of the node.
        os: String,
        /// Architecture of the node.
        arch: String,
    },
    /// The place can't be fetched from.
    #[error("{location:?} is no place to fetch from; use https://, http:// or file:///")]
    Location {
        /// What is written.
        location: String,
    },
    /// The place is longer than any that is meant.
    #[error("the place to fetch from is longer than {LONGEST_LOCATION} bytes; shorten it")]
    LongLocation,
    /// A digest is none.
    #[error("{found:?} is no SHA-256; write 64 hexadecimal digits")]
    Digest {
        /// What is written.
        found: String,
    },
    /// How many nodes may change at a time can't be read.
    #[error(
        "{found:?} says not how many nodes may change at a time; write a number, or a percentage from 1% to 100%"
    )]
    MaxUpdate {
        /// What is written.
        found: String,
    },
    /// A Shim's name can't be a label's name.
    #[error("the name {name:?} can't be a node label; use at most 63 characters")]
    Name {
        /// The name.
        name: String,
    },
    /// A handler can't be a label's name.
    #[error(
        "{handler:?} can't name a handler; use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
    )]
    Handler {
        /// What is written.
        handler: String,
    },
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// RCM's sample, with both ways to name an artifact.
    fn shim(fetch_strategy: &serde_json::Value) -> ShimSpec {
        serde_json::from_value(serde_json::json!({
            "fetchStrategy": fetch_strategy,
            "runtimeClass": {"name": "wasmtime-spin-v2", "handler": "spin-v2"},
            "rolloutStrategy": {"type": "recreate"},
        }))
        .unwrap()
    }

    fn platform(arch: &str) -> serde_json::Value {
        serde_json::json!({"os": "linux", "arch": arch, "location": format!("https://example.org/{arch}")})
    }

    // The cases of RCM's own resolver tests.
    #[rstest]
    #[case("linux", "amd64", "amd64")]
    #[case("linux", "arm64", "arm64")]
    #[case("linux", "x86_64", "amd64")]
    #[case("linux", "aarch64", "arm64")]
    #[case("Linux", "amd64", "amd64")]
    #[case("linux", "AMD64", "amd64")]
    fn a_platform_matches_in_either_spelling(
        #[case] os: &str,
        #[case] node: &str,
        #[case] go: &str,
    ) {
        for entry in [go, if go == "amd64" { "x86_64" } else { "aarch64" }] {
            let other = if go == "amd64" { "arm64" } else { "amd64" };
            let spec = shim(&serde_json::json!({"platforms": [platform(other), platform(entry)]}));
            assert_eq!(
                spec.artifact(os, node).unwrap().location,
                format!("https://example.org/{entry}")
            );
        }
    }

    #[test]
    fn platforms_without_a_match_do_not_fall_back() {
        let spec = shim(&serde_json::json!({
            "platforms": [platform("arm64")], "anonHttp": {"location": "https://example.org/any"},
        }));
        assert!(matches!(
            spec.artifact("linux", "amd64"),
            Err(Error::NoPlatform { .. })
        ));
        assert!(matches!(
            spec.artifact("windows", "arm64"),
            Err(Error::NoPlatform { .. })
        ));
        assert!(matches!(
            spec.artifact("linux", "riscv64"),
            Err(Error::NoPlatform { .. })
        ));
    }

    #[rstest]
    #[case(serde_json::json!({"anonHttp": {"location": "https://example.org/any"}}))]
    #[case(serde_json::json!({"type": "anonymousHttp", "platforms": [], "anonHttp": {"location": "https://example.org/any"}}))]
    fn one_location_serves_every_platform_without_digest(#[case] fetch: serde_json::Value) {
        let artifact = shim(&fetch).artifact("linux", "riscv64").unwrap();
        assert_eq!(artifact.location, "https://example.org/any");
        assert_eq!(artifact.sha256, None);
    }

    #[test]
    fn nothing_named_or_an_unusable_place_is_one_sentence() {
        assert_eq!(
            shim(&serde_json::json!({})).artifact("linux", "amd64"),
            Err(Error::NoArtifact)
        );
        for location in ["", "ftp://example.org/a", "file://relative", "/opt/a"] {
            let spec = shim(&serde_json::json!({"anonHttp": {"location": location}}));
            assert!(
                matches!(spec.artifact("linux", "amd64"), Err(Error::Location { .. })),
                "{location}"
            );
        }
    }

    #[test]
    fn a_place_without_end_is_refused() {
        let location = format!("https://{}", "a".repeat(2_048));
        let spec = shim(&serde_json::json!({"anonHttp": {"location": location}}));
        assert_eq!(spec.artifact("linux", "amd64"), Err(Error::LongLocation));
    }

    #[test]
    fn a_digest_is_lower_case_or_refused() {
        let with = |sha256: &str| {
            let mut entry = platform("amd64");
            entry["sha256"] = sha256.into();
            shim(&serde_json::json!({"platforms": [entry]})).artifact("linux", "amd64")
        };
        assert_eq!(
            with(&"AB".repeat(32)).unwrap().sha256,
            Some("ab".repeat(32).parse().unwrap())
        );
        assert_eq!(with("").unwrap().sha256, None);
        assert!(matches!(with("abc"), Err(Error::Digest { .. })));
    }

    #[test]
    fn handlers_come_once_and_their_own_first() {
        let mut spec = shim(&serde_json::json!({}));
        spec.handler_aliases = vec!["spin".to_owned(), "spin-v2".to_owned()];
        assert_eq!(spec.handlers().unwrap(), ["spin-v2", "spin"]);
        for bad in ["", "-a", "a/b", "a\nb", &"a".repeat(64)] {
            spec.handler_aliases = vec![bad.to_owned()];
            assert!(spec.handlers().is_err(), "{bad:?}");
        }
    }
}
