//! The configurations that Farrier refuses and a containerd loads, or the reverse, with reasons. Each run checks every row. No tests.

use std::fmt;

use Why::{Justified, OnlyAtStart};

/// Why the two differ.
#[derive(Debug, Clone, Copy)]
pub enum Why {
    /// containerd loads the configuration, and Farrier refuses it.
    Justified(&'static str),
    /// containerd does not start, which neither the text nor the dump shows.
    OnlyAtStart(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Justified(reason) | Self::OnlyAtStart(reason) => formatter.write_str(reason),
        }
    }
}

/// containerd 1.x reads what TOML 1.0 forbids; no other release reads such a file.
const NO_TOML: Why = Justified("it is not TOML, and no other release reads it");
/// 2.0 to 2.2 ignore every CRI setting of such a file, also the registry and runc's cgroup driver. A handler would hide that.
const IGNORED: Why =
    Justified("containerd ignores its CRI settings already, and a handler would hide that");
/// The cause is not in the text.
const HOST: Why = OnlyAtStart("a program or a system that the host lacks");

/// The end of a case's name, how the releases begin, and the reason.
const TABLE: &[(&str, &[&str], Why)] = &[
    // Text that 1.x reads in a way of its own.
    ("/dup_header_spelled_differently.v2.toml", &["1."], NO_TOML),
    ("/latin1_comment.v2.toml", &["1."], NO_TOML),
    ("/nul_in_comment.v2.toml", &["1."], NO_TOML),
    ("/underscore_version.v2.toml", &["1."], NO_TOML),
    (
        "/handler_name_empty.v2.toml",
        &["1."],
        Justified("its own dump is not TOML, so no edit could be checked"),
    ),
    // 1.x takes the key for an unknown one, and the file for version 1.
    ("/case_diff_version.v2.toml", &["1."], IGNORED),
    // Ids of a newer version without that version.
    ("/noversion_v2id.toml", &["1.", "2.1"], IGNORED),
    ("/version_last.v2.toml", &["1.", "2.1"], IGNORED),
    ("/v1_v3id.toml", &["1."], IGNORED),
    ("/k3s-dropin-kata.toml", &["1."], IGNORED),
    ("/kata-deploy-dropin-v3.toml", &["1."], IGNORED),
    (
        "/rcm-fixture-no-version-v2ids.toml",
        &["1.", "2.1"],
        IGNORED,
    ),
    ("/rke2-dropin-90-nri.toml", &["1."], IGNORED),
    ("/talos-20-customization.part", &["1."], IGNORED),
    // Version 1. containerd 2.0 to 2.2 do not migrate its CRI section.
    ("/v1_explicit_short_id.toml", &["2.1"], IGNORED),
    ("/v0_short_id.toml", &["2.1"], IGNORED),
    ("/v1_short_id.toml", &["2.1"], IGNORED),
    ("/gvisor-quickstart-version1.toml", &["2.1"], IGNORED),
    ("/k3s-v1.23-version1.toml", &["2.1"], IGNORED),
    ("/kind-2019-version1.toml", &["2.1"], IGNORED),
    ("/kubespray-v2.14-version1.toml", &["2.1"], IGNORED),
    ("/nvidia-ctk-1.17-version1.toml", &["2.1"], IGNORED),
    ("/user-2020-version1-tabs.toml", &["2.1"], IGNORED),
    // A file system's program, and Windows.
    ("/aks-azurelinux3-kata-mixed-ids.toml", &["2."], HOST),
];

/// The reason for `case` on `release`.
pub fn of(case: &str, release: &str) -> Option<Why> {
    TABLE
        .iter()
        .find(|(name, releases, _)| {
            case.ends_with(name) && releases.iter().any(|start| release.starts_with(start))
        })
        .map(|(_, _, why)| *why)
}
