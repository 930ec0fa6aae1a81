//! Checks that the host has the files and features that containerd's configuration and its unit need. Without them, containerd would restart
//! without the CRI, or not at all. Reads only.

use std::os::unix::fs::PermissionsExt as _;

use crate::containerd_config::{HostPrerequisite, host_prerequisites, start_needs};
use crate::handoff::Problem;
use crate::installer::containerd::cri::DataDirectories;
use crate::installer::containerd::systemd_unit::{Error, Unit};
use crate::installer::host::HostRoot;

/// The longest runtime specification to read, in bytes. Such a file usually has 10 kB.
const SPECIFICATION_LIMIT: u64 = 1 << 20;

const CGROUPS: &str = "/sys/fs/cgroup";
/// The file that exists in [`CGROUPS`] with cgroup v2 only (cgroups(7)).
const CONTROLLERS: &str = "cgroup.controllers";

/// A file or feature that the configuration in `dump` needs and that the host lacks, as a message for an operator. A prerequisite that
/// can't be checked counts as present.
#[must_use]
pub fn missing_prerequisite(host: &HostRoot, dump: &str) -> Option<String> {
    let needs = host_prerequisites(dump).ok()?;
    needs.iter().find_map(|need| match need {
        HostPrerequisite::Specification { key, path } => {
            let path = absolute(path);
            match host.read(&path, SPECIFICATION_LIMIT) {
                Ok(None) => Some(absent(key, &path)),
                Ok(Some(bytes)) if !begins_with_object(&bytes) => Some(format!(
                    "{key} names {path}, whose content is not a JSON object"
                )),
                Ok(Some(_)) | Err(_) => None,
            }
        }
        HostPrerequisite::File { key, path } => {
            let path = absolute(path);
            matches!(host.open_file(&path), Ok(None)).then(|| absent(key, &path))
        }
        HostPrerequisite::Snapshotter { key, name } => Some(format!(
            "{key} names the snapshotter {name}, and neither containerd nor a proxy plugin provides it"
        )),
        HostPrerequisite::Cgroup2 { key } => {
            let listed = host.list(CGROUPS).unwrap_or_default();
            // In an image that does not run, the directory is empty.
            let is_1 = !listed.is_empty() && listed.iter().all(|name| name != CONTROLLERS);
            is_1.then(|| format!("{key} requires cgroup v2, but this host has cgroup v1"))
        }
    })
}

/// A directory of containerd's data that containerd can't open for writing at its next start, as a message for an operator. The kernel makes
/// a file system read-only after an error of its disk.
pub(crate) fn read_only_data(host: &HostRoot, directories: &DataDirectories) -> Option<String> {
    let mut directories = [&directories.root, &directories.state]
        .into_iter()
        .flatten();
    let is_read_only = |path: &&String| host.mount_of(path).is_ok_and(|mount| mount.read_only);
    let path = directories.find(is_read_only)?;
    Some(format!(
        "containerd keeps data in {path}, which is on a read-only file system"
    ))
}

/// A file in the directory of NRI plugins with which containerd ends at its start, because it takes the file for a plugin and the name is
/// none of a plugin (NRI, `pkg/adaptation`, `discoverPlugins`). A rehearsal leaves that directory empty.
pub(crate) fn misnamed_nri_plugin(host: &HostRoot, dump: &str) -> Option<Problem> {
    let directory = start_needs(dump).ok()?.nri?;
    let names = host.list(&directory).unwrap_or_default();
    let is_misnamed = |name: &&String| {
        let named = name.split_once('-').is_some_and(|(index, _)| {
            index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit())
        });
        !named && is_nri_plugin(host, &format!("{directory}/{name}"))
    };
    let name = names.iter().find(is_misnamed)?;
    Some(Problem::with_help(
        format!(
            "containerd ends at its start: {directory}/{name} is executable, and the name of an NRI plugin begins with two digits and a hyphen"
        ),
        format!("rename the file, for example to 10-{name}, or remove it"),
    ))
}

/// Whether containerd takes the file for an NRI plugin: anything executable but a directory. Every symlink counts as executable.
pub(crate) fn is_nri_plugin(host: &HostRoot, path: &str) -> bool {
    if matches!(host.symlink_target(path), Ok(Some(_))) {
        return true;
    }
    let metadata = host.metadata(path).ok().flatten();
    metadata
        .is_some_and(|metadata| !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0)
}

/// Why systemd would not start the unit, as a message for an operator: a file that it needs was removed, a condition of the unit does not
/// hold, or the unit was masked.
pub(crate) fn missing_for_unit(host: &HostRoot, unit: &str, definition: &Unit) -> Option<String> {
    let service = match definition {
        Ok(service) => service,
        Err(error @ Error::Masked { .. }) => {
            return Some(format!("{unit} does not start: {error}"));
        }
        Err(_) => return None,
    };
    if let Some(setting) = &service.unmet {
        return Some(format!("{unit} does not start: {setting} does not hold"));
    }
    match &service.command {
        Err(error @ Error::NoEnvironmentFile { .. }) => {
            Some(format!("{unit} does not start: {error}"))
        }
        Ok(command)
            if command.program.starts_with('/') && !host.seems_to_exist(&command.program) =>
        {
            let program = &command.program;
            Some(format!(
                "{unit} starts {program}, which is absent on this host"
            ))
        }
        Ok(_) | Err(_) => None,
    }
}

fn absent(key: &str, path: &str) -> String {
    format!("{key} names {path}, which is absent on this host")
}

/// The absolute path: the working directory of containerd is `/`.
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Whether the first JSON value is an object. Go's decoder does not read the bytes after the first value.
fn begins_with_object(bytes: &[u8]) -> bool {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    matches!(values.next(), Some(Ok(serde_json::Value::Object(_))))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::systemd_unit::service;

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
    #[case::certificate_of_grpc(
        "[grpc]\ntcp_tls_cert = '/no'",
        Some("grpc.tcp_tls_cert names /no")
    )]
    #[case::no_certificate_of_grpc("[grpc]\ntcp_tls_cert = ''\ntcp_tls_key = '/no'", None)]
    #[case::certificate_unused("[plugins.cri]\nx509_key_pair_streaming.tls_key_file = '/no'", None)]
    #[case::no_snapshotter(
        "[plugins.'io.containerd.snapshotter.v1.overlayfs']\nroot_path = ''\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'nydus'",
        Some("names the snapshotter nydus, and neither containerd nor a proxy plugin provides it")
    )]
    #[case::a_snapshotter_of_containerd(
        "[plugins.'io.containerd.snapshotter.v1.overlayfs']\nroot_path = ''\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'",
        None
    )]
    #[case::a_snapshotter_of_a_proxy_plugin(
        "[proxy_plugins.nydus]\ntype = 'snapshot'\n[plugins.'io.containerd.snapshotter.v1.overlayfs']\nroot_path = ''\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'nydus'",
        None
    )]
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
    #[case::sound("[Service]\nExecStart=/bin/containerd\nEnvironmentFile=-/etc/no", None)]
    #[case::no_environment(
        "[Service]\nExecStart=/bin/containerd\nEnvironmentFile=/etc/no",
        Some("the environment file /etc/no is missing")
    )]
    #[case::no_program(
        "[Service]\nExecStart=/bin/no",
        Some("starts /bin/no, which is absent")
    )]
    #[case::condition(
        "[Unit]\nConditionPathExists=/etc/no\n[Service]\nExecStart=/bin/containerd",
        Some("containerd.service does not start: ConditionPathExists=/etc/no does not hold")
    )]
    #[case::masked("", Some("masks the unit"))]
    #[case::of_another_kind("[Service]\nExecStart=containerd", None)]
    fn a_unit_that_would_not_start_is_named(#[case] unit: &str, #[case] message: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("bin/containerd", "");
        write("etc/systemd/system/containerd.service", unit);
        let host = HostRoot::open(directory.path()).unwrap();
        let definition = service(&host, "containerd.service");
        let found = missing_for_unit(&host, "containerd.service", &definition);
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

    #[rstest]
    #[case::a_plugin("10-a", Some(0o755), false)]
    #[case::a_plugin_without_a_name("10-", Some(0o755), false)]
    #[case::no_index("myplugin", Some(0o755), true)]
    #[case::a_short_index("1-a", Some(0o755), true)]
    #[case::letters("ab-c", Some(0o700), true)]
    #[case::executable_for_others_alone("a", Some(0o601), true)]
    #[case::not_executable("README.md", Some(0o644), false)]
    #[case::a_symlink("link", None, true)]
    #[case::a_symlink_with_an_index("10-link", None, false)]
    fn a_file_that_containerd_takes_for_an_nri_plugin_needs_the_name_of_one(
        #[case] name: &str,
        #[case] mode: Option<u32>,
        #[case] expected: bool,
    ) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("opt/nri/plugins");
        std::fs::create_dir_all(directory.join("directory")).unwrap();
        let path = directory.join(name);
        match mode {
            Some(mode) => {
                std::fs::write(&path, "").unwrap();
                let mode = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(&path, mode).unwrap();
            }
            None => std::os::unix::fs::symlink("gone", &path).unwrap(),
        }
        let host = HostRoot::open(root.path()).unwrap();
        let found = |disable: bool| {
            let dump = format!("[plugins.'io.containerd.nri.v1.nri']\ndisable = {disable}\n");
            misnamed_nri_plugin(&host, &dump)
        };
        assert_eq!(found(true), None);
        let found = found(false).map(|problem| problem.message);
        assert_eq!(found.is_some(), expected, "{found:?}");
        let named = format!("/opt/nri/plugins/{name} is executable");
        assert!(found.is_none_or(|message| message.contains(&named)));
    }
}
