//! Finds the containerd that runs on a host, by its process. Reads `/proc`, and nothing of containerd's own.

use super::distro::{self, DistroSpec};
use super::facts::SMALL;
use super::host::HostRoot;
use super::kubelet;
use super::service;
use super::state::folder_of;

/// A running containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its process, and when that started (field 22 of `proc_pid_stat(5)`): together they never come again before a reboot.
    pub process: (u32, u64),
    /// Path of its program on the host.
    pub program: String,
    /// What `-c` or `--config` says.
    pub config: Option<String>,
    /// What `-a` or `--address` says.
    pub address: Option<String>,
    /// The unit that it runs in; a service of `OpenRC` is one with `.service` behind its name.
    pub unit: Option<String>,
}

impl Daemon {
    /// The same, with the service that it is part of where its cgroup does not say: `OpenRC` lists what it has started.
    #[must_use]
    pub fn with_unit_of(mut self, host: &HostRoot, distro: &DistroSpec) -> Self {
        if self.unit.is_none() {
            let started = host.list(service::RC_STARTED).unwrap_or_default();
            let mut units = started.iter().map(|name| format!("{name}.service"));
            self.unit = units.find(|unit| distro.has_unit(unit));
        }
        self
    }

    /// Whether this very process is there still.
    #[must_use]
    pub fn still_runs(&self, host: &HostRoot) -> bool {
        let (pid, _) = self.process;
        daemon(host, pid).is_some_and(|now| now.process == self.process)
    }
}

/// The containerd that runs on this host; among several, the one that the kubelet uses.
///
/// A kubelet of its own says which; one in the same program as k3s's or RKE2's uses the containerd that this program started. Without
/// either, the one in the packages' unit counts.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn find_daemon(host: &HostRoot) -> Result<Option<Daemon>, super::Error> {
    let mut found: Vec<Daemon> = host
        .list("/proc")?
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter_map(|pid| daemon(host, pid))
        .collect();
    // Only a choice is worth another look at every process.
    let endpoint = if found.len() > 1 {
        kubelet::endpoint(host)?
    } else {
        None
    };
    found.sort_by_key(|daemon| {
        let address = daemon.address.as_deref().unwrap_or(distro::STOCK_SOCKET);
        let is_used = |endpoint: &String| kubelet::same(endpoint, address);
        let unit = daemon.unit.as_deref();
        (
            !endpoint.as_ref().is_some_and(is_used),
            !distro::is_own(&daemon.program, unit),
            unit != Some("containerd.service"),
            daemon.process,
        )
    });
    Ok(found.into_iter().next())
}

/// The path of a program whose file may have been replaced since it was started: the restart starts the new one.
pub(super) fn still_named(program: &str) -> &str {
    program.strip_suffix(" (deleted)").unwrap_or(program)
}

/// The process `pid`, if it is a containerd of this host. A process that is gone by now is none.
fn daemon(host: &HostRoot, pid: u32) -> Option<Daemon> {
    let read = |name: &str| {
        host.read(&format!("/proc/{pid}/{name}"), SMALL)
            .ok()
            .flatten()
    };
    if read("comm")? != b"containerd\n" || !host.is_root_of(pid) {
        return None;
    }
    let program = host.link_target(&format!("/proc/{pid}/exe")).ok()??;
    let program = own_name(host, still_named(&program));
    let arguments = String::from_utf8(read("cmdline")?).ok()?;
    let arguments: Vec<&str> = arguments.split('\0').collect();
    let stat = String::from_utf8(read("stat")?).ok()?;
    // The name in parentheses may hold anything; field 3 comes behind the last of them.
    let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let cgroup = String::from_utf8(read("cgroup")?).ok()?;
    Some(Daemon {
        process: (pid, started),
        program,
        config: option(&arguments, &CONFIG_OPTIONS),
        address: option(&arguments, &ADDRESS_OPTIONS),
        unit: unit_of_cgroup(&cgroup),
    })
}

/// The path by which a program is containerd: k3s is one program under many names, which links beside it carry.
fn own_name(host: &HostRoot, program: &str) -> String {
    let link = format!("{}/containerd", folder_of(program));
    let is_other = program.rsplit('/').next() != Some("containerd");
    if is_other && host.is_seen(&link) {
        return link;
    }
    program.to_owned()
}

/// The names of containerd's option for its configuration file, with one dash or two as Go's `flag` takes them.
pub(super) const CONFIG_OPTIONS: [&str; 4] = ["-c", "--c", "-config", "--config"];
const ADDRESS_OPTIONS: [&str; 4] = ["-a", "--a", "-address", "--address"];

/// The value of an option of containerd, as `-c FILE` or `--config=FILE`; only absolute paths are of use. Go's `flag`, which containerd
/// reads its command line with, takes the last of several, and `--` for the end of the options.
pub(super) fn option(arguments: &[&str], names: &[&str]) -> Option<String> {
    let mut arguments = arguments.iter().take_while(|argument| **argument != "--");
    let mut last = None;
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (*argument, None),
        };
        if names.contains(&name) {
            last = Some(value.or_else(|| arguments.next().copied())?);
        }
    }
    let path = last?.strip_prefix("unix://").or(last)?;
    path.starts_with('/').then(|| path.to_owned())
}

/// The innermost service of a process's cgroups (cgroups(7): `hierarchy:controllers:path`); `OpenRC` calls the cgroup of the service
/// k3s `openrc.k3s`, and `k3s` in a hierarchy of its own under version 1 (`sh/rc-cgroup.sh`).
fn unit_of_cgroup(cgroup: &str) -> Option<String> {
    let unit = |part: &str| match part.strip_prefix("openrc.") {
        Some(name) => Some(format!("{name}.service")),
        None => part.ends_with(".service").then(|| part.to_owned()),
    };
    cgroup.lines().find_map(|line| {
        let (hierarchy, path) = line.split_once(':')?.1.split_once(':')?;
        let name = path.trim_start_matches('/');
        if hierarchy == "name=openrc" && !name.is_empty() {
            return Some(format!("{name}.service"));
        }
        path.rsplit('/').find_map(unit)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_command_line_says_which_files_a_daemon_uses() {
        let arguments = [
            "containerd",
            "--config=/a/b.toml",
            "-a",
            "unix:///run/x.sock",
            "",
        ];
        assert_eq!(
            option(&arguments, &["-c", "--config"]).as_deref(),
            Some("/a/b.toml")
        );
        assert_eq!(
            option(&arguments, &["-a", "--address"]).as_deref(),
            Some("/run/x.sock")
        );
    }

    #[rstest]
    #[case::the_last_of_two(&["-c", "/b", "--config=/a"], Some("/a"))]
    #[case::the_last_of_two_that_is_of_no_use(&["-c", "/b", "--config=a"], None)]
    #[case::with_one_dash_or_two(&["-config", "/b", "--c", "/a"], Some("/a"))]
    #[case::behind_the_end_of_the_options(&["--", "-c", "/a"], None)]
    #[case::relative(&["-c", "relative"], None)]
    #[case::without_a_value(&["-c"], None)]
    fn an_option_is_read_as_containerd_reads_it(
        #[case] arguments: &[&str],
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(option(arguments, &CONFIG_OPTIONS).as_deref(), expected);
    }

    #[rstest]
    #[case::server("k3s", &["k3s", "sshd"], Some("k3s.service"))]
    #[case::agent("k3s", &["containerd", "k3s-agent"], Some("k3s-agent.service"))]
    #[case::not_started("k3s", &["sshd"], None)]
    #[case::another_distribution_s("rke2", &["k3s"], None)]
    #[case::a_package_s("debian", &["containerd"], None)]
    fn openrc_lists_the_service_where_no_cgroup_names_it(
        #[case] word: &str,
        #[case] started: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/openrc/started");
        std::fs::create_dir_all(&path).unwrap();
        for name in started {
            std::os::unix::fs::symlink(format!("/etc/init.d/{name}"), path.join(name)).unwrap();
        }
        let host = HostRoot::open(folder.path()).unwrap();
        let daemon = |unit: Option<&str>| Daemon {
            process: (1, 1),
            program: String::new(),
            config: None,
            address: None,
            unit: unit.map(str::to_owned),
        };
        let row = distro::named(word);
        let found = daemon(None).with_unit_of(&host, row);
        assert_eq!(found.unit.as_deref(), expected);
        let known = daemon(Some("known.service")).with_unit_of(&host, row);
        assert_eq!(known.unit.as_deref(), Some("known.service"));
    }

    #[test]
    fn the_unit_is_read_from_every_kind_of_hierarchy() {
        for cgroup in [
            "0::/system.slice/containerd.service\n",
            "12:pids:/\n1:name=systemd:/farrier/n1/system.slice/containerd.service\n0::/\n",
        ] {
            assert_eq!(
                unit_of_cgroup(cgroup).as_deref(),
                Some("containerd.service")
            );
        }
        for cgroup in [
            "0::/openrc.k3s-agent\n",
            "2:pids:/\n1:name=openrc:/k3s-agent\n0::/\n",
        ] {
            assert_eq!(unit_of_cgroup(cgroup).as_deref(), Some("k3s-agent.service"));
        }
        for cgroup in ["0::/\n", "1:name=openrc:/\n", "", "0:", "0"] {
            assert_eq!(unit_of_cgroup(cgroup), None, "{cgroup}");
        }
    }
}
