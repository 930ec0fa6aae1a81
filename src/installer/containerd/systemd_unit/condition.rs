//! Decides from the files of the host whether the conditions and assertions of a unit hold (systemd.unit(5), *Conditions and Asserts*).
//! systemd examines them at each start: after a restart with one that does not hold, the service is stopped.
//!
//! The other conditions are left out: most are about the kernel, the hardware or the distribution, which stay the same while the host runs,
//! and Farrier may see other mount points than systemd.

use std::os::unix::fs::PermissionsExt as _;

use super::syntax::{Name, specifiers};
use crate::installer::host::HostRoot;

/// The first setting that does not hold, as in a unit file; `None` if systemd would start the unit, or the files don't decide. `settings` are
/// the assignments of the section `[Unit]`, in the order in which systemd reads them.
pub(super) fn unmet(host: &HostRoot, name: &Name, settings: &[(String, String)]) -> Option<String> {
    ["Condition", "Assert"].into_iter().find_map(|prefix| {
        let list: Vec<Setting<'_>> = settings
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
            .collect();
        // An empty assignment clears the conditions of all kinds, or the assertions of all kinds.
        let list = list.rsplit(|(_, value)| value.is_empty()).next()?;
        let fails = |setting: &&Setting<'_>| holds(host, name, setting) == Some(false);
        let is_trigger = |setting: &&Setting<'_>| setting.1.starts_with('|');
        // All must hold, and at least one of the triggering ones.
        let mut triggers = list.iter().filter(is_trigger);
        let mut others = list.iter().filter(|setting| !is_trigger(setting));
        let failed = others.find(fails).or_else(|| {
            let first = triggers.clone().next()?;
            triggers.all(|setting| fails(&setting)).then_some(first)
        });
        failed.map(|(kind, value)| format!("{prefix}{kind}={value}"))
    })
}

/// Kind of a condition or assertion, such as `PathExists`, and its value.
type Setting<'a> = (&'a str, &'a str);

/// Whether a condition or assertion holds; `None` if the files don't decide.
fn holds(host: &HostRoot, name: &Name, (kind, value): &Setting<'_>) -> Option<bool> {
    let value = value.strip_prefix('|').unwrap_or(value);
    let (is_negated, path) = match value.strip_prefix('!') {
        Some(path) => (true, path),
        None => (false, value),
    };
    let path = specifiers(name, path).ok()?;
    // systemd ignores the setting if the path is not absolute.
    let path = path.strip_prefix('/')?.trim_end_matches('/');
    let path = format!("/{path}");
    let metadata = host.metadata(&path).ok()?;
    let file = metadata.as_ref().filter(|metadata| metadata.is_file());
    let is_met = match *kind {
        "PathExists" => metadata.is_some(),
        "PathIsDirectory" => metadata.is_some_and(|metadata| metadata.is_dir()),
        "PathIsSymbolicLink" => host.symlink_target(&path).ok()?.is_some(),
        // Releases of systemd differ where nothing exists at the path.
        "PathIsReadWrite" if metadata.is_some() => !host.mount_of(&path).ok()?.read_only,
        "FileNotEmpty" => file.is_some_and(|file| file.len() > 0),
        "FileIsExecutable" => file.is_some_and(|file| file.permissions().mode() & 0o111 != 0),
        // Releases of systemd differ in the names that they ignore.
        "DirectoryNotEmpty" => match metadata {
            Some(found) if !found.is_dir() || !host.list(&path).ok()?.is_empty() => return None,
            Some(_) | None => false,
        },
        _ => return None,
    };
    // The service itself may have made the path, and may remove it when it stops.
    let is_volatile = path.starts_with("/run/") || path.starts_with("/var/run/");
    let is_decided = !(is_negated && is_met && is_volatile);
    is_decided.then_some(is_met != is_negated)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// A host with an empty file, a program, an empty directory, and symlinks to the file and to nothing.
    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        let path = |path: &str| directory.path().join(path);
        for made in ["etc/empty", "run", "bin"] {
            std::fs::create_dir_all(path(made)).unwrap();
        }
        for made in ["etc/file", "run/made"] {
            std::fs::write(path(made), "").unwrap();
        }
        std::fs::write(path("bin/program"), "#!/bin/sh\n").unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path("bin/program"), mode).unwrap();
        std::os::unix::fs::symlink("/etc/file", path("etc/link")).unwrap();
        std::os::unix::fs::symlink("/etc/no", path("etc/dangling")).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[rstest]
    #[case::path_exists("ConditionPathExists=/etc/file", true)]
    #[case::path_is_absent("ConditionPathExists=/etc/no", false)]
    #[case::no_directory("ConditionPathExists=/etc/file/no", false)]
    #[case::symlink("ConditionPathExists=/etc/link", true)]
    #[case::symlink_to_nothing("ConditionPathExists=/etc/dangling", false)]
    #[case::slash_at_the_end("ConditionPathExists=/etc/file/", true)]
    #[case::root("ConditionPathIsDirectory=/", true)]
    #[case::negation("ConditionPathExists=!/etc/file", false)]
    #[case::negation_that_holds("ConditionPathExists=!/etc/no", true)]
    #[case::path_that_the_service_may_have_made("ConditionPathExists=!/run/made", true)]
    #[case::assertion("AssertPathExists=/etc/no", false)]
    #[case::assertion_that_holds("AssertPathExists=/etc/file", true)]
    #[case::directory("ConditionPathIsDirectory=/etc", true)]
    #[case::file_as_directory("ConditionPathIsDirectory=/etc/file", false)]
    #[case::symbolic_link("ConditionPathIsSymbolicLink=/etc/dangling", true)]
    #[case::no_symbolic_link("ConditionPathIsSymbolicLink=/etc/file", false)]
    #[case::writable("ConditionPathIsReadWrite=/etc", true)]
    #[case::read_only("ConditionPathIsReadWrite=!/etc", false)]
    #[case::nothing_that_is_read_only("ConditionPathIsReadWrite=/no", true)]
    #[case::empty_directory("ConditionDirectoryNotEmpty=/etc/empty", false)]
    #[case::absent_directory("ConditionDirectoryNotEmpty=/no", false)]
    #[case::full_directory("ConditionDirectoryNotEmpty=/etc", true)]
    #[case::empty_file("ConditionFileNotEmpty=/etc/file", false)]
    #[case::full_file("ConditionFileNotEmpty=/bin/program", true)]
    #[case::directory_as_file("ConditionFileNotEmpty=/etc", false)]
    #[case::executable("ConditionFileIsExecutable=/bin/program", true)]
    #[case::no_executable("ConditionFileIsExecutable=/etc/file", false)]
    #[case::specifier("ConditionPathExists=/etc/%p", false)]
    #[case::specifier_of_the_running_system("ConditionPathExists=/etc/%m", true)]
    #[case::no_absolute_path("ConditionPathExists=! /etc/file", true)]
    #[case::of_the_system("ConditionKernelVersion=<2", true)]
    #[case::of_the_system_alone("ConditionVirtualization=|no", true)]
    fn a_condition_fails_only_where_the_files_decide_it(
        #[case] setting: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(failing(&[setting]), (!expected).then(|| setting.to_owned()));
    }

    #[rstest]
    #[case::all_must_hold(&["PathExists=/etc/file", "PathExists=/etc/no"], Some("PathExists=/etc/no"))]
    #[case::one_trigger_holds(&["PathExists=|/etc/no", "PathExists=|/etc/file"], None)]
    #[case::one_trigger_is_unknown(&["PathExists=|/etc/no", "Virtualization=|vm"], None)]
    #[case::no_trigger_holds(&["PathExists=|/etc/no", "PathExists=|!/etc/file"], Some("PathExists=|/etc/no"))]
    #[case::beside_a_trigger(&["PathExists=|/etc/file", "PathExists=/etc/no"], Some("PathExists=/etc/no"))]
    #[case::trigger_beside_others(&["PathExists=/etc/file", "PathExists=|/etc/no"], Some("PathExists=|/etc/no"))]
    #[case::cleared_by_any_kind(&["PathExists=/etc/no", "FileNotEmpty="], None)]
    #[case::after_the_clearing(&["PathExists=/etc/file", "PathExists=", "PathExists=/etc/no"], Some("PathExists=/etc/no"))]
    #[case::none(&[], None)]
    fn conditions_are_combined_as_systemd_combines_them(
        #[case] settings: &[&str],
        #[case] expected: Option<&str>,
    ) {
        for prefix in ["Condition", "Assert"] {
            let prefixed = |setting: &&str| format!("{prefix}{setting}");
            let settings: Vec<String> = settings.iter().map(prefixed).collect();
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            assert_eq!(failing(&settings), expected.as_ref().map(prefixed));
        }
    }

    #[test]
    fn an_assertion_clears_no_condition() {
        let settings = ["ConditionPathExists=/etc/no", "AssertPathExists="];
        assert_eq!(failing(&settings).as_deref(), Some(settings[0]));
    }

    fn failing(settings: &[&str]) -> Option<String> {
        let (_directory, host) = host();
        let name = Name::parse("containerd.service").unwrap();
        let settings = settings.iter().map(|setting| {
            let (key, value) = setting.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        });
        let settings: Vec<_> = settings.collect();
        unmet(&host, &name, &settings)
    }
}
