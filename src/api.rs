//! The Shim object as users write it: `runtime.spinkube.dev/v1alpha1`, a superset of runtime-class-manager's (RCM's) Shim.
//!
//! Pure: types, their schema, and the artifact of a Shim for a platform. The controller decides about nodes. No client of the API server is here.
//! RCM's fields are spelt and required as in its release 0.2.0, so that its manifests apply unchanged.

pub use error::Error;
use error::{LONGEST_LOCATION, LONGEST_OPTION, LONGEST_OPTION_NAME, MOST_OPTIONS};
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::handoff::{
    InvalidDigest, LONGEST_LABEL_NAME, OnRestart, Proof, Sha256Digest, has_known_scheme,
    path_on_host, shown_location,
};

mod error;
mod rollout;

/// Most binaries in the status of a Shim. With a `file://` location, each node may have a binary of its own.
pub const MOST_BINARIES: usize = 16;

pub use crate::handoff::is_label_name;
pub use rollout::{MaxUpdate, Rolling, RolloutKind, RolloutStrategy};

/// Longest name of a Shim or handler, in characters: it becomes the name part of a node label (Kubernetes, *Labels and Selectors*).
pub const LONGEST_NAME: usize = LONGEST_LABEL_NAME;

/// One container runtime shim: where it is fetched from, which nodes get it, how pods select it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "runtime.spinkube.dev",
    version = "v1alpha1",
    kind = "Shim",
    shortname = "shim",
    category = "farrier",
    status = "ShimStatus",
    derive = "PartialEq",
    doc = "A Shim is one container runtime shim: where it is fetched from, which nodes get it, and how pods select it. `kubectl wait --for=condition=Ready shim/NAME` waits until every selected node serves the shim.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name of a Shim must have at most 63 characters, because it becomes a node label"),
    printcolumn(name = "RuntimeClass", type_ = "string", json_path = ".spec.runtimeClass.name"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.state", description = "The state of the Shim in one word."),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.nodesReady", description = "Nodes that serve the shim."),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes", description = "Selected nodes that the shim supports."),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.nodesFailed", description = "Nodes whose last attempt failed."),
    printcolumn(name = "Release", type_ = "string", json_path = ".status.binaries[0].release", priority = 1, description = "Release of the binary that most nodes serve, as its location names it."),
    printcolumn(name = "SHA256", type_ = "string", json_path = ".status.binaries[0].sha256", priority = 1, description = "SHA-256 of the binary that most nodes serve."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ShimSpec {
    /// Labels that a node must have to get the shim. Without nodeSelector, every node gets the shim, control-plane nodes too, unless
    /// annotationSelector restricts that. If both selectors are set, both must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Annotations that a node must have to get the shim, for example `kwasm.sh/kwasm-node: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotation_selector: Option<BTreeMap<String, String>>,
    /// Where the shim is fetched from. A node needs an entry of platforms for its own platform or, if there are no platforms, anonHttp.
    pub fetch_strategy: FetchStrategy,
    /// The name of the shim in containerd, and the RuntimeClasses by which pods select the shim.
    pub runtime_class: RuntimeClassSpec,
    /// How a change of the Shim is rolled out to its nodes.
    #[serde(default)]
    pub rollout_strategy: RolloutStrategy,
    /// Options that containerd passes to the shim, for example `SystemdCgroup: "true"`. `"true"` and `"false"` become booleans, digits
    /// become an integer, and any other text a string. See the documentation of the shim for its options. At most 64 options, because a
    /// Job carries the options of all Shims of its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = MOST_OPTIONS, "additionalProperties" = {"type": "string", "maxLength": LONGEST_OPTION}))]
    #[x_kube(validation = Rule::new("self.all(name, size(name) <= 128)")
        .message("the name of an option must have at most 128 characters"))]
    pub containerd_runtime_options: Option<BTreeMap<String, String>>,
    /// More handler names for the same binary, for RuntimeClasses of your own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    #[x_kube(
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))")
            .message("the name of a handler must consist of letters, digits, '-', '_' and '.', with a letter or digit at both ends, because it becomes a node label"),
        validation = Rule::new("!('runc' in self)")
            .message("the handler runc is reserved for containerd: remove it")
    )]
    pub handler_aliases: Vec<String>,
    /// What happens if a change of a node would restart containerd under pods of this Shim that end with a restart. `Refuse`: the change
    /// waits until these pods have ended. `Drain`: Farrier evicts these pods first, if drain.enabled of the chart allows that. `Allow`:
    /// containerd is restarted, and these pods end. The default is onRestart of the chart. If pods of several Shims would end, the strictest
    /// Shim counts: Refuse before Drain before Allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnRestart")]
    pub on_restart: Option<OnRestart>,
    /// What is proven on a node before pods are scheduled to it, beside that containerd serves the handlers of the Shim. `None`: nothing
    /// more, which is the default. `Sandbox`: a pod sandbox of each handler is run and removed, which also takes the sandbox image of
    /// containerd. If that fails, the change of the node is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Proof")]
    pub proof: Option<Proof>,
    /// Stop acting on this Shim: nodes that carry the shim keep it as it is, and no other node gets the shim.
    #[serde(default)]
    pub paused: bool,
}

/// Where a shim is fetched from.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Default, PartialEq)]
#[x_kube(validation = Rule::new("!has(self.platforms) || size(self.platforms) > 0 || has(self.anonHttp)")
    .message("platforms must not be empty: add the archive of each platform"))]
#[serde(rename_all = "camelCase")]
pub struct FetchStrategy {
    /// Deprecated and ignored. Older manifests set `anonymousHttp`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// One archive for every node, of any architecture and without a digest. Prefer platforms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anon_http: Option<AnonHttp>,
    /// One archive per platform. A node uses the first entry for its platform. If there is any entry, anonHttp is not used, and a node
    /// without an entry for its platform does not get the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub platforms: Option<Vec<Platform>>,
    /// File name of the binary inside the archive. The default is `containerd-shim-NAME` with the name of the Shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-][A-Za-z0-9_.-]*$')")
        .message("binary must be a file name without a directory: letters, digits, '-', '_' and '.'"))]
    pub binary: Option<String>,
}

/// One archive for every node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AnonHttp {
    /// URL of the archive: `https://…`, `http://…`, or `file:///path/on/the/node`. Every account that may read Shims, or Jobs and pods in the
    /// namespace of Farrier, can read a password or signature in it.
    pub location: String,
}

/// The archive for one platform.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    /// Operating system of the node.
    pub os: Os,
    /// Architecture of the node. amd64 and `x86_64` are the same, and so are arm64 and aarch64.
    pub arch: Arch,
    /// URL of the archive: `https://…`, `http://…`, or `file:///path/on/the/node`. Every account that may read Shims, or Jobs and pods in the
    /// namespace of Farrier, can read a password or signature in it.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('(?i)^(https?://|file://(localhost)?/).')")
        .message("location must be https://…, http://… or file:///path/on/the/node"))]
    pub location: String,
    /// SHA-256 of the archive, 64 hexadecimal digits. An archive with another digest is not unpacked. The privileged container compares
    /// the archive again, and the binary with the one in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-fA-F]{64})?$')")
        .message("a SHA-256 must have 64 hexadecimal digits, as sha256sum prints them"))]
    pub sha256: Option<String>,
    /// SHA-256 of the binary inside the archive, 64 hexadecimal digits. The privileged container compares it again, without the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9a-fA-F]{64})?$')")
        .message("a SHA-256 must have 64 hexadecimal digits, as sha256sum prints them"))]
    pub binary_sha256: Option<String>,
}

/// Operating system of a node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Os {
    /// Linux.
    #[serde(rename = "linux")]
    Linux,
}

/// Architecture of a node, as Go or uname names it.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, Go's name.
    #[serde(rename = "amd64")]
    Amd64,
    /// 64-bit ARM, Go's name.
    #[serde(rename = "arm64")]
    Arm64,
    /// 64-bit x86, uname's name.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM, uname's name.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Whether `name`, as a node reports its architecture, means this architecture; the case is ignored.
    fn matches(self, name: &str) -> bool {
        let names: [&str; 2] = match self {
            Self::Amd64 | Self::X86_64 => ["amd64", "x86_64"],
            Self::Arm64 | Self::Aarch64 => ["arm64", "aarch64"],
        };
        names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The platform of a node in the names of Go, whatever names and case its kubelet reports; `None` if Farrier has no name for it.
#[must_use]
pub fn platform(os: &str, arch: &str) -> Option<(&'static str, &'static str)> {
    let known = [("amd64", Arch::Amd64), ("arm64", Arch::Arm64)];
    let (name, _) = known.into_iter().find(|(_, known)| known.matches(arch))?;
    os.eq_ignore_ascii_case("linux").then_some(("linux", name))
}

/// How pods select the shim.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeClassSpec {
    /// Name of the RuntimeClass that Farrier creates, for spec.runtimeClassName of pods. If empty, none is created.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")
    )]
    pub name: String,
    /// Name of the shim's handler in containerd, for example `spin-v2`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new("self != 'runc'")
        .message("the handler runc is reserved for containerd: choose another name"))]
    pub handler: String,
    /// The nodes to which the RuntimeClass lets pods be scheduled. `Provisioned`: nodes that serve the handler. `Selector`: all nodes that
    /// nodeSelector matches, whether or not they serve the handler, so that a pod can make an autoscaler add a node.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Tolerations that the RuntimeClass adds to pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Resources that a pod of the RuntimeClass needs in addition to its containers, as quantities: `memory: 16Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 32}))]
    #[x_kube(validation = Rule::new("self.all(key, self[key].matches('^[0-9.]+([eEinumkKMGTP]*[-+]?[0-9]*)$'))")
        .message("overhead must be quantities, for example memory: 16Mi or cpu: 250m"))]
    pub overhead: BTreeMap<String, String>,
    /// Names of more RuntimeClasses with the same handler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))")
        .message("the name of a RuntimeClass must consist of lower-case letters, digits, '-' and '.', with a letter or digit at both ends"))]
    pub aliases: Vec<String>,
    /// Labels of the RuntimeClasses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The nodes to which a RuntimeClass lets pods be scheduled.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// Nodes that serve the handler.
    #[default]
    Provisioned,
    /// All nodes that nodeSelector matches, as in runtime-class-manager.
    Selector,
}

/// Status of a Shim in the cluster.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShimStatus {
    /// Ready (every selected node serves the shim), Progressing and Degraded, each with a reason and a message. Without any selected node,
    /// Ready is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The state in one word, for people: Ready, Provisioning, Halted, Paused, Conflict, Unsupported, or another reason of the
    /// condition Ready. Programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Number of selected nodes that the shim supports. Nodes of other platforms and of unsupported distributions are not counted; the
    /// condition Ready lists them.
    #[serde(default)]
    pub nodes: i32,
    /// Number of nodes that serve the shim.
    #[serde(default)]
    pub nodes_ready: i32,
    /// Number of nodes that do not serve the shim yet, and have not failed.
    #[serde(default)]
    pub nodes_pending: i32,
    /// Number of nodes whose last attempt failed. The condition Degraded lists the reasons.
    #[serde(default)]
    pub nodes_failed: i32,
    /// metadata.generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The binaries that nodes serve, as specified or not, that of most nodes first: at most 16.
    #[serde(default)]
    pub binaries: Vec<ServedBinary>,
    /// For each platform whose artifact has no SHA-256 in the spec: the binary that the first node got. A node that gets another binary from
    /// the same location fails, until the spec has a SHA-256 or another location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_binaries: Option<Vec<FirstBinary>>,
}

/// A binary that nodes serve.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
pub struct ServedBinary {
    /// The release that the location of the binary names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// SHA-256 of the binary.
    pub sha256: String,
    /// Number of nodes that serve it.
    pub nodes: i32,
}

/// The binary that the first node of a platform got from a location.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FirstBinary {
    /// Operating system of the nodes, as Go names it.
    pub os: String,
    /// Architecture of the nodes, as Go names it.
    pub arch: String,
    /// The location of the artifact.
    pub location: String,
    /// The file name of the binary in the artifact, as the spec has it: empty if the spec has none, and absent if an earlier release
    /// recorded the binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// SHA-256 of the binary.
    pub sha256: String,
}

/// The artifact of a Shim for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// URL of the archive.
    pub location: String,
    /// SHA-256 of the artifact.
    pub sha256: Option<Sha256Digest>,
    /// SHA-256 of the binary inside.
    pub binary_sha256: Option<Sha256Digest>,
}

impl Artifact {
    /// Whether the spec has no SHA-256, so that the first node decides which binary is the right one. A file of a node is the node's own:
    /// other nodes may have another file at the same path.
    #[must_use]
    pub fn trusts_first_node(&self) -> bool {
        let is_remote = path_on_host(&self.location).is_none();
        is_remote && self.sha256.is_none() && self.binary_sha256.is_none()
    }
}

impl ShimSpec {
    /// The artifact for a node with `os` and `arch` (`node.status.nodeInfo`).
    ///
    /// As in RCM 0.2.0, the first matching platform wins, and anonHttp is no fallback for platforms.
    ///
    /// # Errors
    /// When no platform matches, the Shim names no artifact, or the location or a digest is invalid.
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
        if has_known_scheme(&artifact.location) {
            Ok(artifact)
        } else {
            Err(Error::Location {
                location: shown_location(&artifact.location),
            })
        }
    }

    /// The names of the shim's handlers in containerd: its own first, then its aliases, without duplicates.
    ///
    /// # Errors
    /// When one of them is not a valid label name, or the options of the handlers exceed the bounds of the schema. The API server may
    /// serve an older definition without these bounds.
    pub fn handlers(&self) -> Result<Vec<String>, Error> {
        self.check_options()?;
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

    /// Checks the options against the bounds of the schema, which counts characters.
    fn check_options(&self) -> Result<(), Error> {
        let options = self.containerd_runtime_options.iter().flatten();
        if options.clone().count() > MOST_OPTIONS {
            return Err(Error::ManyOptions);
        }
        for (name, value) in options {
            if name.chars().count() > LONGEST_OPTION_NAME {
                return Err(Error::LongOptionName);
            }
            if value.chars().count() > LONGEST_OPTION {
                return Err(Error::LongOption { name: name.clone() });
            }
        }
        Ok(())
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
    fn a_platform_matches_with_gos_and_unames_architecture_names(
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
    fn anon_http_is_no_fallback_for_platforms_without_a_match() {
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
    fn anon_http_serves_every_platform_without_a_digest(#[case] fetch: serde_json::Value) {
        let artifact = shim(&fetch).artifact("linux", "riscv64").unwrap();
        assert_eq!(artifact.location, "https://example.org/any");
        assert_eq!(artifact.sha256, None);
    }

    #[test]
    fn a_missing_or_invalid_location_is_an_error() {
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
        let spec = shim(&serde_json::json!({"anonHttp": {"location": "HTTPS://example.org/a"}}));
        let artifact = spec.artifact("linux", "amd64").unwrap();
        assert_eq!(artifact.location, "HTTPS://example.org/a");
    }

    #[test]
    fn an_invalid_location_shows_no_password() {
        let location = " ftp://user:p4ss@example.org/a?sig=p4ss";
        let spec = shim(&serde_json::json!({"anonHttp": {"location": location}}));
        let error = spec.artifact("linux", "amd64").unwrap_err();
        let expected = r#"invalid location "ftp://example.org/a""#;
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_location_beyond_the_length_limit_is_refused() {
        let location = format!("https://{}", "a".repeat(2_048));
        let spec = shim(&serde_json::json!({"anonHttp": {"location": location}}));
        assert_eq!(spec.artifact("linux", "amd64"), Err(Error::LongLocation));
    }

    #[test]
    fn a_digest_is_turned_to_lower_case_or_refused() {
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

    #[rstest]
    #[case::as_many_and_as_long_as_allowed(64, 128, 1_024, None)]
    #[case::too_many(65, 3, 1, Some(Error::ManyOptions))]
    #[case::a_long_name(1, 129, 1, Some(Error::LongOptionName))]
    #[case::a_long_value(1, 3, 1_025, Some(Error::LongOption { name: "000".to_owned() }))]
    fn options_beyond_the_bounds_of_the_schema_are_refused(
        #[case] count: usize,
        #[case] name: usize,
        #[case] value: usize,
        #[case] expected: Option<Error>,
    ) {
        let mut spec = shim(&serde_json::json!({}));
        // Each character has two bytes: the schema counts characters.
        let options = (0..count).map(|at| (format!("{at:0name$}"), "é".repeat(value)));
        spec.containerd_runtime_options = Some(options.collect());
        assert_eq!(spec.handlers().err(), expected);
    }

    #[test]
    fn handlers_are_listed_once_and_the_main_one_first() {
        let mut spec = shim(&serde_json::json!({}));
        spec.handler_aliases = vec!["spin".to_owned(), "spin-v2".to_owned()];
        assert_eq!(spec.handlers().unwrap(), ["spin-v2", "spin"]);
        for bad in ["", "-a", "a/b", "a\nb", &"a".repeat(64)] {
            spec.handler_aliases = vec![bad.to_owned()];
            assert!(spec.handlers().is_err(), "{bad:?}");
        }
    }
}
