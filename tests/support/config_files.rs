//! Configurations of containerd in memory. Helpers of the configuration editor's suites, no tests.

use farrier::containerd_config::{ConfigFiles, SourceFile};

/// The path that containerd reads by default.
pub const ROOT: &str = "/etc/containerd/config.toml";

/// A configuration that is one file.
pub fn one_file(text: &str) -> ConfigFiles {
    ConfigFiles {
        root: SourceFile {
            path: ROOT.to_owned(),
            text: Some(text.to_owned()),
        },
        imported: Vec::new(),
    }
}
