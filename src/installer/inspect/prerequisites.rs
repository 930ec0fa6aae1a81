//! Looks on the host for what containerd's configuration needs beside itself: a restart without it would take the CRI away.

use crate::containerd_config::{HostPrerequisite, host_prerequisites};
use crate::installer::host::HostRoot;

/// A specification of a runtime has some 10 kB.
const SPECIFICATION_LIMIT: u64 = 1 << 20;

/// Whose folder lists this file only where it is version 2 (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
const CONTROLLERS: &str = "cgroup.controllers";

/// What of the configuration printed as `dump` the host lacks; words for an operator. What can't be looked at counts as there: the
/// running containerd is the better judge.
#[must_use]
pub fn missing_prerequisite(host: &HostRoot, dump: &str) -> Option<String> {
    let needs = host_prerequisites(dump).ok()?;
    needs.iter().find_map(|need| match need {
        HostPrerequisite::Specification { key, path } => {
            let path = absolute(path);
            match host.read(&path, SPECIFICATION_LIMIT) {
                Ok(None) => Some(absent(key, &path)),
                Ok(Some(bytes)) if !begins_with_object(&bytes) => {
                    Some(format!("{key} names {path}, which holds no JSON object"))
                }
                Ok(Some(_)) | Err(_) => None,
            }
        }
        HostPrerequisite::File { key, path } => {
            let path = absolute(path);
            matches!(host.open_file(&path), Ok(None)).then(|| absent(key, &path))
        }
        HostPrerequisite::Cgroup2 { key } => {
            let listed = host.list(CGROUPS).unwrap_or_default();
            // An image that is not running has an empty folder there.
            let is_1 = !listed.is_empty() && listed.iter().all(|name| name != CONTROLLERS);
            is_1.then(|| format!("{key} needs cgroups of version 2, and this host has version 1"))
        }
    })
}

fn absent(key: &str, path: &str) -> String {
    format!("{key} names {path}, which this host does not have")
}

/// containerd runs in the root folder.
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// What follows the first value, Go's decoder doesn't read.
fn begins_with_object(bytes: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    matches!(values.next(), Some(Ok(serde_json::Value::Object(_))))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::absent(
        "[plugins.cri.containerd.runtimes.a]\nbase_runtime_spec = '/no'",
        Some("names /no")
    )]
    #[case::no_json(
        "[plugins.cri.containerd.runtimes.a]\nbase_runtime_spec = 'text'",
        Some("names /text")
    )]
    #[case::sound(
        "[plugins.cri.containerd.runtimes.a]\nbase_runtime_spec = '/spec'",
        None
    )]
    #[case::certificate(
        "[plugins.cri]\nenable_tls_streaming = true\nx509_key_pair_streaming.tls_key_file = '/no'",
        Some("names /no")
    )]
    #[case::certificate_unused("[plugins.cri]\nx509_key_pair_streaming.tls_key_file = '/no'", None)]
    #[case::no_cgroups_yet("[plugins.cri.containerd.runtimes.a]\ncgroup_writable = true", None)]
    fn a_missing_prerequisite_is_named(#[case] dump: &str, #[case] message: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("text"), "{{").unwrap();
        std::fs::write(directory.path().join("spec"), "{} more").unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let found = missing_prerequisite(&host, dump);
        match message {
            Some(message) => assert!(
                found.as_ref().is_some_and(|found| found.contains(message)),
                "{found:?}"
            ),
            None => assert_eq!(found, None),
        }
    }

    #[rstest]
    #[case::of_version_1("memory", true)]
    #[case::of_version_2("cgroup.controllers", false)]
    fn writable_cgroups_require_cgroup_version_2(#[case] entry: &str, #[case] lacks: bool) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("sys/fs/cgroup").join(entry)).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let dump = "[plugins.cri.containerd.runtimes.a]\ncgroup_writable = true";
        assert_eq!(missing_prerequisite(&host, dump).is_some(), lacks);
    }
}
