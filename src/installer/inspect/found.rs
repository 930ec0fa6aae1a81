//! Finds the programs that a distribution that starts containerd itself will declare as runtimes at its next start. Reads only.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use crate::installer::containerd::daemon::Daemon;
use crate::installer::containerd::process::environment_of;
use crate::installer::distro::DistroSpec;
use crate::installer::host::HostRoot;

/// The directories that k3s and RKE2 search before those in `PATH` (k3s, `pkg/agent/containerd/config_linux.go`, `runtimesPath`).
const SEARCHED_FIRST: &str = "/usr/local/nvidia/toolkit:/opt/kwasm/bin";

/// The `PATH` of a systemd service without one (systemd.exec(5)), with the directories of systems that separate `/bin` from `/usr/bin`.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Directories in `PATH` that are searched, at most. The environment of a process may be long.
const MAX_DIRECTORIES: usize = 64;

/// The handlers that the distribution will declare by itself at its next start, each with the program that it finds.
///
/// The distribution passes its `PATH` on to containerd.
pub(crate) fn found_runtimes(
    host: &HostRoot,
    distro: &DistroSpec,
    daemon: Option<&Daemon>,
) -> BTreeMap<String, String> {
    if distro.finds.is_empty() {
        return BTreeMap::new();
    }
    let path = daemon.and_then(|daemon| environment_of(host, daemon.process.0, "PATH"));
    let path = path.unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let directories = SEARCHED_FIRST.split(':').chain(path.split(':'));
    let directories: Vec<&str> = directories
        .filter(|directory| directory.starts_with('/'))
        .take(MAX_DIRECTORIES)
        .collect();
    let found = distro.finds.iter().filter_map(|(handler, program)| {
        let mut paths = directories.iter().map(|it| format!("{it}/{program}"));
        let path = paths.find(|path| is_program(host, path))?;
        Some(((*handler).to_owned(), path))
    });
    found.collect()
}

/// Whether Go's `exec.LookPath` takes the file for a program.
pub(super) fn is_program(host: &HostRoot, path: &str) -> bool {
    let file = host.open_file(path).ok().flatten();
    file.and_then(|file| file.metadata().ok())
        .is_some_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::process::tests::{CONTAINERD, Given, Tree};
    use crate::installer::distro::by_id;

    #[rstest]
    #[case::in_the_default_path("k3s", "/usr/local/bin/containerd-shim-spin-v2", 0o755, true)]
    #[case::of_rke2("rke2", "/usr/bin/containerd-shim-spin-v2", 0o755, true)]
    #[case::in_the_directory_of_kwasm("k3d", "/opt/kwasm/bin/containerd-shim-spin-v2", 0o755, true)]
    #[case::not_executable("k3s", "/usr/local/bin/containerd-shim-spin-v2", 0o644, false)]
    #[case::of_an_earlier_release("k3s", "/usr/local/bin/containerd-shim-spin-v1", 0o755, false)]
    #[case::elsewhere("k3s", "/opt/farrier/bin/containerd-shim-spin-v2", 0o755, false)]
    #[case::of_a_distribution_that_does_not_search(
        "debian",
        "/usr/bin/containerd-shim-spin-v2",
        0o755,
        false
    )]
    fn programs_that_the_distribution_will_find_are_found(
        #[case] id: &str,
        #[case] path: &str,
        #[case] mode: u32,
        #[case] expected: bool,
    ) {
        let tree = Tree::new("0::/init.scope\n", &[]);
        tree.write(path, "");
        tree.mode(path, mode);
        let found = found_runtimes(&tree.host(), by_id(id), None);
        assert_eq!(
            found.get("spin").map(String::as_str),
            expected.then_some(path)
        );
        assert!(found.len() <= 1, "{found:?}");
    }

    #[test]
    fn the_path_of_the_running_containerd_is_searched() {
        let tree = Tree::new("0::/init.scope\n", &["/run/systemd/system"]);
        let given = Given {
            environment: "A=b\0PATH=relative:/srv/tools:/usr/bin\0",
            ..CONTAINERD
        };
        tree.process(812, &given);
        tree.write("/srv/tools/crun", "");
        tree.write("/usr/bin/crun", "");
        tree.write("/usr/local/bin/containerd-shim-wws-v1", "");
        let host = tree.host();
        let daemon = crate::installer::containerd::daemon::find_daemon(&host).unwrap();
        let found = found_runtimes(&host, by_id("k3s"), daemon.as_ref());
        let expected = [("crun".to_owned(), "/srv/tools/crun".to_owned())];
        assert_eq!(found, expected.into());
    }
}
