//! Where Farrier and a daemon differ about a configuration, and why that is right. Every row is checked on every run. No tests.

use std::fmt;

use Why::{Justified, OnlyAtStart};

/// Why the two differ.
#[derive(Debug, Clone, Copy)]
pub enum Why {
    /// The daemon loads it, and Farrier refuses.
    Justified(&'static str),
    /// The daemon doesn't come up, which neither the text nor its own dump tells: only who asks the running daemon knows.
    OnlyAtStart(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Justified(reason) | Self::OnlyAtStart(reason) => formatter.write_str(reason),
        }
    }
}

/// containerd 1.x reads what TOML 1.0 forbids; a file that only a broken reader takes is no ground to build on.
const NO_TOML: Why = Justified("no TOML, and no other release reads it");
/// 2.0 to 2.2 drop every CRI setting of such a file, the registry and runc's cgroup driver too: a handler would hide that.
const DEAD: Why = Justified("its CRI settings are dead already, and the operator has to know");
/// Nothing to mend in the text.
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
        Justified("its own dump is no TOML: nothing could be proven"),
    ),
    // 1.x takes the key for an unknown one, and the file for version 1.
    ("/case_diff_version.v2.toml", &["1."], DEAD),
    // Ids of a newer version without that version.
    ("/noversion_v2id.toml", &["1.", "2.1"], DEAD),
    ("/version_last.v2.toml", &["1.", "2.1"], DEAD),
    ("/v1_v3id.toml", &["1."], DEAD),
    ("/k3s-dropin-kata.toml", &["1."], DEAD),
    ("/kata-deploy-dropin-v3.toml", &["1."], DEAD),
    ("/rcm-fixture-no-version-v2ids.toml", &["1.", "2.1"], DEAD),
    ("/rke2-dropin-90-nri.toml", &["1."], DEAD),
    ("/talos-20-customization.part", &["1."], DEAD),
    // Version 1, whose CRI section 2.0 to 2.2 don't migrate.
    ("/v1_explicit_short_id.toml", &["2.1"], DEAD),
    ("/v0_short_id.toml", &["2.1"], DEAD),
    ("/v1_short_id.toml", &["2.1"], DEAD),
    ("/gvisor-quickstart-version1.toml", &["2.1"], DEAD),
    ("/k3s-v1.23-version1.toml", &["2.1"], DEAD),
    ("/kind-2019-version1.toml", &["2.1"], DEAD),
    ("/kubespray-v2.14-version1.toml", &["2.1"], DEAD),
    ("/nvidia-ctk-1.17-version1.toml", &["2.1"], DEAD),
    ("/user-2020-version1-tabs.toml", &["2.1"], DEAD),
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
