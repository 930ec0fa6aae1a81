//! What containerd's CRI needs of its host to come up with a configuration: files, and a kind of cgroup. Neither the text nor the dump
//! tells whether it is there; who looks is the caller's business.
//!
//! Tried on containerd 1.6 to 2.4 (`loadBaseOCISpecs`, `getStreamListenerMode` and `ValidateRuntimeConfig` of the CRI).

use std::collections::BTreeMap;

use super::Error;
use super::document::Document;
use super::tree::{Tree, at, boolean, leaf};

/// Something without which the CRI does not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// A file that holds a runtime's specification, as JSON.
    Specification {
        /// The key in the dump that names it, with dots.
        key: String,
        /// Its path on the host.
        path: String,
    },
    /// A file.
    File {
        /// The key in the dump that names it, with dots.
        key: String,
        /// Its path on the host.
        path: String,
    },
    /// cgroups of version 2.
    Cgroup2 {
        /// The key in the dump that wants them, with dots.
        key: String,
    },
}

/// What the configuration that containerd printed as `dump` needs of the host. Keys that a release doesn't know, its dump doesn't show.
///
/// # Errors
/// When the dump can't be read.
pub fn needs(dump: &str) -> Result<Vec<Need>, Error> {
    let mut tree = Document::parse_dump(dump)?.tree();
    let mut needs = Vec::new();
    let plugins = at(&mut tree, &["plugins"]).into_iter().flatten();
    for (id, plugin) in plugins.filter(|(id, _)| id.contains("cri")) {
        let runtimes = at(plugin, &["containerd", "runtimes"]);
        of_runtimes(id, runtimes, &mut needs);
        if boolean(plugin, &["enable_tls_streaming"]) != Some(true) {
            continue;
        }
        for name in ["tls_cert_file", "tls_key_file"] {
            let path = leaf(plugin, &["x509_key_pair_streaming", name]);
            if let Some(path) = path.filter(|path| !path.is_empty()) {
                let key = format!("plugins.{id}.x509_key_pair_streaming.{name}");
                needs.push(Need::File { key, path });
            }
        }
    }
    Ok(needs)
}

fn of_runtimes(id: &str, runtimes: Option<&mut BTreeMap<String, Tree>>, needs: &mut Vec<Need>) {
    for (name, runtime) in runtimes.into_iter().flatten() {
        let key = |key: &str| format!("plugins.{id}.containerd.runtimes.{name}.{key}");
        let path = leaf(runtime, &["base_runtime_spec"]);
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            let key = key("base_runtime_spec");
            needs.push(Need::Specification { key, path });
        }
        if boolean(runtime, &["cgroup_writable"]) == Some(true) {
            let key = key("cgroup_writable");
            needs.push(Need::Cgroup2 { key });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dump_names_is_needed() {
        let dump = "[plugins.'io.containerd.grpc.v1.cri']\nenable_tls_streaming = true\nx509_key_pair_streaming.tls_key_file = '/key'\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nbase_runtime_spec = '/spec'\ncgroup_writable = true\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\nbase_runtime_spec = ''\ncgroup_writable = false\n";
        let key =
            |key: &str| format!("plugins.io.containerd.cri.v1.runtime.containerd.runtimes.a.{key}");
        let expected = [
            Need::Specification {
                key: key("base_runtime_spec"),
                path: "/spec".to_owned(),
            },
            Need::Cgroup2 {
                key: key("cgroup_writable"),
            },
            Need::File {
                key: "plugins.io.containerd.grpc.v1.cri.x509_key_pair_streaming.tls_key_file"
                    .to_owned(),
                path: "/key".to_owned(),
            },
        ];
        assert_eq!(needs(dump), Ok(expected.to_vec()));
        assert_eq!(
            needs(&dump.replace("streaming = true", "streaming = false"))
                .unwrap()
                .len(),
            2
        );
    }
}
