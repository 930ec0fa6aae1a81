//! Finds the running containerd of a host and the kubelet that uses it. Reads no file of containerd.

use tracing::debug;

use super::command_line::{self, paths};
use super::embedded;
use super::kubelet::{self, Kubelet};
use super::openrc::RC_STARTED;
use super::process::{self, Process, Refusal};
use super::sockets::unix_sockets_of;
use crate::installer::distro::{self, DistroSpec};
use crate::installer::host::path::file_name;
use crate::installer::host::{self, HostRoot, Target};

/// A running containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// PID and start time (field 22 of `proc_pid_stat(5)`). The pair is unique until a reboot.
    pub process: (u32, u64),
    /// Path of its program on the host.
    pub program: String,
    /// Path of the configuration file in its command line, or why the path is unknown.
    pub config: Result<Option<String>, command_line::Error>,
    /// Path of the socket in its command line, or why the path is unknown.
    pub address: Result<Option<String>, command_line::Error>,
    /// Whether its command line names the directory of its persistent data, and that of its volatile data.
    pub names_data: [bool; 2],
    /// Its unit; for an `OpenRC` service, the name of the service with `.service`.
    pub unit: Option<String>,
}

impl Daemon {
    /// Sets the unit from `OpenRC`'s list of started services, if the cgroup does not name one.
    #[must_use]
    pub fn with_openrc_unit(mut self, host: &HostRoot, distro: &DistroSpec) -> Self {
        if self.unit.is_none() {
            let started = host.list(RC_STARTED).unwrap_or_default();
            let mut units = started.iter().map(|name| format!("{name}.service"));
            self.unit = units.find(|unit| distro.has_unit(unit));
        }
        self
    }

    /// Whether this process, and not a later one with the same PID, still runs.
    #[must_use]
    pub fn still_runs(&self, host: &HostRoot) -> bool {
        let (pid, started) = self.process;
        process::start_time(host, pid) == Some(started)
    }

    /// The path of its socket, if its command line names one that is known.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.address.as_ref().ok()?.as_deref()
    }

    /// The daemon; `None` for a containerd that runs a subcommand, such as the `publish` of a shim.
    fn of(process: Process) -> Option<Self> {
        let whole = process.arguments.as_slice();
        let whole = whole.strip_suffix(b"\0").unwrap_or(whole);
        let arguments: Vec<&[u8]> = whole.split(|byte| *byte == 0).collect();
        let paths = paths(&arguments, || process.directory.clone())?;
        Some(Self {
            process: process.id,
            config: paths.config,
            address: paths.address,
            names_data: paths.names_data,
            program: process.program,
            unit: process.unit,
        })
    }
}

/// The containerd of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Containerd {
    /// A running containerd. Of several, the one that the kubelet uses.
    Live(Daemon),
    /// No containerd of this live host counts.
    NotFound {
        /// Processes named containerd that do not count, by PID.
        refused: Vec<Refusal>,
    },
    /// Several containerd of this live host count, and the kubelet that says which of them is the cluster's does not, or its socket is unknown.
    UnknownKubelet {
        /// Processes named kubelet that root started and that do not count, by PID.
        refused: Vec<Refusal>,
    },
    /// No containerd of this live host that counts is the one that the kubelet uses: none of several listens at its socket, or a distribution
    /// embeds the kubelet.
    NotOfKubelet {
        /// The socket that the kubelet uses, if it is known.
        socket: Option<String>,
        /// The `id` of the distribution that includes the kubelet and its unit, if the kubelet is known by this unit.
        of_distro: Option<(&'static str, String)>,
        /// Processes named containerd that do not count, by PID.
        refused: Vec<Refusal>,
    },
    /// The host is an image, so Farrier searched for no process.
    Image,
}

impl Containerd {
    /// The daemon, if one runs.
    #[must_use]
    pub fn daemon(&self) -> Option<&Daemon> {
        match self {
            Self::Live(daemon) => Some(daemon),
            Self::NotFound { .. }
            | Self::UnknownKubelet { .. }
            | Self::NotOfKubelet { .. }
            | Self::Image => None,
        }
    }

    /// Whether the host is live or an image.
    #[must_use]
    pub fn target(&self) -> Target {
        match self {
            Self::Live(_)
            | Self::NotFound { .. }
            | Self::UnknownKubelet { .. }
            | Self::NotOfKubelet { .. } => Target::Live,
            Self::Image => Target::Image,
        }
    }
}

/// The containerd and the kubelet of a host, found in one pass over all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The containerd.
    pub containerd: Containerd,
    /// The kubelet. Of several, the first with a known CRI socket.
    pub kubelet: Option<Kubelet>,
}

const CONTAINERD: &str = "containerd";
const KUBELET: &str = "kubelet";

/// Finds the containerd and the kubelet that run on this host. In an image, neither runs, and an embedded kubelet is known by its files.
///
/// Of several containerd processes, the one that listens at the CRI socket of the kubelet counts, and none if no process listens there. Where
/// that socket is unknown, one of a distribution that embeds both (k3s, RKE2) comes first, then the one of `containerd.service`, the unit in
/// the packages, then the lowest PID. Without a kubelet that counts, this choice may be wrong, so there is none if root has started another
/// kubelet, or if a distribution embeds the kubelet and none of them is its own. The enabled or started service of such a distribution is
/// a kubelet, too, if none of its containerd runs.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn find(host: &HostRoot, target: Target) -> Result<Running, host::Error> {
    if target == Target::Image {
        return Ok(Running {
            containerd: Containerd::Image,
            kubelet: Kubelet::embedded(host).or_else(|| embedded::kubelet(host)),
        });
    }
    let (mut daemons, mut kubelets) = (Vec::new(), Vec::new());
    let (mut refused, mut refused_kubelets) = (Vec::new(), Vec::new());
    for (_, (name, process)) in process::find_by_name(host, &[CONTAINERD, KUBELET])? {
        match process {
            Ok(process) if name == CONTAINERD => daemons.push(process),
            Ok(process) => kubelets.push(Kubelet::of(host, &process)),
            Err(refusal) => {
                debug!(%refusal, "skipped a process");
                if name == CONTAINERD {
                    refused.push(refusal);
                } else if !refusal.is_user_process() {
                    refused_kubelets.push(refusal);
                }
            }
        }
    }
    let process = choose_kubelet(kubelets);
    let mut daemons = without_forks(&daemons);
    let is_process = process.is_some();
    let is_refused = !is_process && !refused_kubelets.is_empty();
    let of_unit = || {
        let is_own = |kubelet: &Kubelet, daemon: &Daemon| {
            distro::is_embedded(&daemon.program, daemon.unit.as_deref())
                || kubelet
                    .of_distro
                    .as_ref()
                    .is_some_and(|(id, _)| is_started_by(host, daemon, distro::by_id(id)))
        };
        let kubelet = embedded::kubelet(host);
        kubelet.filter(|kubelet| !daemons.iter().any(|daemon| is_own(kubelet, daemon)))
    };
    let kubelet = process.or_else(|| Kubelet::embedded(host).or_else(of_unit));
    let is_unknown = kubelet.as_ref().is_some_and(|it| it.endpoint.is_err());
    let is_unclear =
        daemons.len() > 1 && is_refused || is_unknown && (daemons.len() > 1 || !is_process);
    let endpoint = kubelet
        .as_ref()
        .and_then(|kubelet| kubelet.endpoint().map(str::to_owned));
    daemons.sort_by_key(|daemon| {
        let unit = daemon.unit.as_deref();
        (
            !distro::is_embedded(&daemon.program, unit),
            unit != Some("containerd.service"),
            daemon.process,
        )
    });
    let others = refused.iter().filter(|refusal| !refusal.is_user_process());
    let is_only = daemons.len() + others.count() <= 1;
    let at_endpoint = endpoint
        .as_deref()
        .and_then(|endpoint| daemon_at(host, &daemons, endpoint));
    let is_of_kubelet = |daemon: &Daemon| {
        let is_embedded = || distro::is_embedded(&daemon.program, daemon.unit.as_deref());
        at_endpoint.is_some()
            // The only containerd may be behind a proxy.
            || (endpoint.is_none() || is_only) && (is_process || kubelet.is_none() || is_embedded())
    };
    let containerd = match daemons.into_iter().nth(at_endpoint.unwrap_or_default()) {
        Some(_) if is_unclear => Containerd::UnknownKubelet {
            refused: refused_kubelets,
        },
        Some(daemon) if is_of_kubelet(&daemon) => Containerd::Live(daemon),
        Some(_) => {
            let of_distro = kubelet.as_ref().and_then(|it| it.of_distro.clone());
            Containerd::NotOfKubelet {
                socket: endpoint
                    .or_else(|| Some(distro::by_id(of_distro.as_ref()?.0).socket.to_owned())),
                of_distro,
                refused,
            }
        }
        None => Containerd::NotFound { refused },
    };
    Ok(Running {
        containerd,
        kubelet,
    })
}

/// Finds the containerd that runs on this live host.
///
/// # Errors
/// As for [`find`].
pub fn find_daemon(host: &HostRoot) -> Result<Option<Daemon>, host::Error> {
    match find(host, Target::Live)?.containerd {
        Containerd::Live(daemon) => Ok(Some(daemon)),
        Containerd::NotFound { .. }
        | Containerd::UnknownKubelet { .. }
        | Containerd::NotOfKubelet { .. }
        | Containerd::Image => Ok(None),
    }
}

fn choose_kubelet(kubelets: Vec<Kubelet>) -> Option<Kubelet> {
    let mut kubelets = kubelets;
    let with_endpoint = kubelets
        .iter()
        .position(|kubelet| kubelet.endpoint().is_some());
    (!kubelets.is_empty()).then(|| kubelets.swap_remove(with_endpoint.unwrap_or_default()))
}

/// The processes without those whose parent runs the same program: a forked child has the name, the cgroup and the program of its parent
/// until it executes another program.
fn without_forks(processes: &[Process]) -> Vec<Daemon> {
    let is_fork = |process: &&Process| {
        processes
            .iter()
            .any(|other| other.id.0 == process.parent && other.program == process.program)
    };
    let daemons = processes.iter().filter(|process| !is_fork(process));
    daemons.cloned().filter_map(Daemon::of).collect()
}

/// Whether the process was started by the distribution that includes the kubelet: without cgroups, and with its data elsewhere, nothing else
/// tells its containerd.
pub(crate) fn is_started_by(host: &HostRoot, daemon: &Daemon, distro: &DistroSpec) -> bool {
    let parent = process::service_process(host, daemon.process.0);
    let exe = host.symlink_target(&format!("/proc/{parent}/exe"));
    let is_own =
        |exe: String| distro.is_program_name(file_name(process::without_deleted_mark(&exe)));
    exe.ok().flatten().is_some_and(is_own)
}

/// The index of the containerd that listens at the socket `endpoint`. One that listens nowhere yet will do so at the path in its command line, or
/// at the usual one; the path of its configuration is unknown here.
fn daemon_at(host: &HostRoot, daemons: &[Daemon], endpoint: &str) -> Option<usize> {
    let is_there = |path: &str| kubelet::is_same_file(host, path, endpoint);
    let sockets = daemons.iter().map(|daemon| {
        let sockets = unix_sockets_of(host, daemon.process.0);
        (daemon, sockets)
    });
    let sockets: Vec<(&Daemon, Vec<String>)> = sockets.collect();
    let listens = |(_, paths): &(&Daemon, Vec<String>)| paths.iter().any(|path| is_there(path));
    let will_listen = |(daemon, paths): &(&Daemon, Vec<String>)| {
        paths.is_empty() && is_there(daemon.address().unwrap_or(distro::STOCK_SOCKET))
    };
    let listening = sockets.iter().position(listens);
    listening.or_else(|| sockets.iter().position(will_listen))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::process::tests::{CONTAINERD, Given, Tree};

    const WITH_SOCKET: &str = "/usr/bin/kubelet\0--container-runtime-endpoint=unix:///run/a.sock\0";
    const WITHOUT_SOCKET: &str = "/usr/bin/kubelet\0--v=2\0";

    fn kubelet(arguments: &str) -> Given<'_> {
        Given {
            comm: "kubelet",
            cgroup: "0::/system.slice/kubelet.service\n",
            program: "/usr/bin/kubelet",
            arguments,
            ..CONTAINERD
        }
    }

    fn tree(processes: &[(u32, Given<'_>)]) -> Tree {
        let tree = Tree::new("0::/init.scope\n", &["/run/systemd/system"]);
        for (pid, given) in processes {
            tree.process(*pid, given);
        }
        tree
    }

    #[rstest]
    #[case::with_a_socket(&[(9, kubelet(WITH_SOCKET))], Some((WITH_SOCKET, Some("/run/a.sock"))))]
    #[case::without_a_socket(&[(9, kubelet(WITHOUT_SOCKET))], Some((WITHOUT_SOCKET, None)))]
    #[case::the_one_with_a_socket_of_two(
        &[(8, kubelet(WITHOUT_SOCKET)), (9, kubelet(WITH_SOCKET))],
        Some((WITH_SOCKET, Some("/run/a.sock")))
    )]
    #[case::another_program_of_that_name(&[(9, Given { comm: "kubelite", ..kubelet(WITH_SOCKET) })], None)]
    #[case::of_a_user(&[(9, Given { uids: "1000\t1000\t1000\t1000", ..kubelet(WITH_SOCKET) })], None)]
    #[case::none(&[], None)]
    fn only_a_kubelet_that_root_started_counts(
        #[case] processes: &[(u32, Given<'_>)],
        #[case] expected: Option<(&str, Option<&str>)>,
    ) {
        let found = find(&tree(processes).host(), Target::Live).unwrap().kubelet;
        let expected = expected.map(|(arguments, endpoint)| Kubelet {
            arguments: arguments.to_owned(),
            endpoint: Ok(endpoint.map(str::to_owned)),
            of_distro: None,
        });
        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::beside_one_containerd(kubelet(WITH_SOCKET), false, Some(812))]
    #[case::beside_two(kubelet(WITH_SOCKET), true, None)]
    // No user may prevent a change.
    #[case::of_a_user(
        Given { uids: "1000\t1000\t1000\t1000", ..kubelet(WITH_SOCKET) },
        true,
        Some(812)
    )]
    fn several_containerd_do_not_count_beside_a_kubelet_that_another_user_can_change(
        #[case] kubelet: Given<'_>,
        #[case] has_second: bool,
        #[case] expected: Option<u32>,
    ) {
        let tree = tree(&[(812, CONTAINERD), (900, kubelet)]);
        let other = Given {
            cgroup: "0::/system.slice/cluster.service\n",
            arguments: "/usr/bin/containerd\0-a\0/run/a.sock\0",
            ..CONTAINERD
        };
        if has_second {
            tree.process(813, &other);
        }
        tree.mode("/usr/bin/kubelet", 0o757);
        let found = find(&tree.host(), Target::Live).unwrap();
        assert_eq!(found.kubelet, None);
        let daemon = found.containerd.daemon();
        assert_eq!(daemon.map(|daemon| daemon.process.0), expected);
        if expected.is_none() {
            let Containerd::UnknownKubelet { refused } = &found.containerd else {
                panic!("{found:?}");
            };
            let pids: Vec<u32> = refused.iter().map(|refusal| refusal.pid).collect();
            assert_eq!(pids, [900]);
        }
        // The second is the cluster's, once the kubelet counts.
        tree.mode("/usr/bin/kubelet", 0o755);
        let found = find_daemon(&tree.host()).unwrap().unwrap();
        let is_known = has_second && expected.is_none();
        assert_eq!(found.process.0, if is_known { 813 } else { 812 });
    }

    #[rstest]
    #[case::of_the_snap(
        Some("--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n"),
        true,
        Some(813)
    )]
    #[case::that_does_not_count(
        Some("--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n"),
        false,
        None
    )]
    #[case::of_the_host(
        Some("--container-runtime-endpoint=unix:///run/containerd/containerd.sock\n"),
        true,
        Some(812)
    )]
    #[case::with_an_unknown_socket(Some("--v=2\n"), true, Some(813))]
    #[case::that_does_not_count_with_an_unknown_socket(Some("--v=2\n"), false, None)]
    #[case::without_a_snap(None, false, Some(812))]
    fn beside_the_containerd_of_docker_that_of_an_embedded_kubelet_counts(
        #[case] arguments: Option<&str>,
        #[case] has_own: bool,
        #[case] expected: Option<u32>,
    ) {
        let tree = tree(&[(812, CONTAINERD)]);
        if let Some(arguments) = arguments {
            tree.write("/var/snap/microk8s/current/args/kubelet", arguments);
        }
        if has_own {
            let own = Given {
                cgroup: "0::/system.slice/snap.microk8s.daemon-containerd.service\n",
                program: "/snap/microk8s/7394/bin/containerd",
                arguments: "containerd\0--address\0/var/snap/microk8s/common/run/containerd.sock\0",
                ..CONTAINERD
            };
            tree.process(813, &own);
        }
        let found = find(&tree.host(), Target::Live).unwrap().containerd;
        assert_eq!(found.daemon().map(|daemon| daemon.process.0), expected);
        let is_another = matches!(found, Containerd::NotOfKubelet { .. });
        assert_eq!(is_another, expected.is_none());
        // A kubelet that is a process of its own decides.
        tree.process(
            900,
            &kubelet(
                "/usr/bin/kubelet\0--container-runtime-endpoint=/run/containerd/containerd.sock\0",
            ),
        );
        let found = find_daemon(&tree.host()).unwrap().unwrap();
        assert_eq!(found.process.0, 812);
    }

    /// Makes the process listen at the socket `path`, as `/proc` shows it.
    fn listen(tree: &Tree, pid: u32, path: &str) {
        tree.write(path, "");
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let line = format!("0000000000000000: 00000002 00000000 00010000 0001 01 {pid} {path}\n");
        tree.write(&format!("/proc/{pid}/net/unix"), &format!("{head}{line}"));
        std::fs::create_dir_all(tree.path(&format!("/proc/{pid}/fd"))).unwrap();
        let socket = format!("socket:[{pid}]");
        std::os::unix::fs::symlink(socket, tree.path(&format!("/proc/{pid}/fd/5"))).unwrap();
    }

    #[rstest]
    #[case::in_its_configuration("/run/a.sock", "/run/a.sock", Some(813))]
    #[case::behind_a_symlink("/run/a.sock", "/run/link.sock", Some(813))]
    #[case::behind_a_symlink_to_a_directory("/run/real/a.sock", "/run/directory/a.sock", Some(813))]
    #[case::of_the_other("/run/a.sock", "/run/containerd/containerd.sock", Some(812))]
    // A proxy may be in front of either.
    #[case::of_neither("/run/a.sock", "/run/b.sock", None)]
    fn of_two_containerd_the_one_that_listens_at_the_socket_of_the_kubelet_counts(
        #[case] socket: &str,
        #[case] endpoint: &str,
        #[case] expected: Option<u32>,
    ) {
        let arguments = format!("/usr/bin/kubelet\0--container-runtime-endpoint={endpoint}\0");
        let own = Given {
            cgroup: "0::/system.slice/cluster.service\n",
            arguments: "/usr/bin/containerd\0-c\0/etc/cluster.toml\0",
            ..CONTAINERD
        };
        let tree = tree(&[(812, CONTAINERD), (813, own), (900, kubelet(&arguments))]);
        listen(&tree, 812, "/run/containerd/containerd.sock");
        listen(&tree, 813, socket);
        std::os::unix::fs::symlink("a.sock", tree.path("/run/link.sock")).unwrap();
        std::os::unix::fs::symlink("real", tree.path("/run/directory")).unwrap();
        let found = find(&tree.host(), Target::Live).unwrap().containerd;
        assert_eq!(found.daemon().map(|daemon| daemon.process.0), expected);
        let is_of_another = matches!(&found, Containerd::NotOfKubelet { .. });
        assert_eq!(is_of_another, expected.is_none(), "{found:?}");
    }

    #[test]
    fn of_two_containerd_none_counts_if_the_socket_of_the_kubelet_is_unknown() {
        let arguments = "/usr/bin/kubelet\0--container-runtime-endpoint=tcp://127.0.0.1:1\0";
        let tree = tree(&[(812, CONTAINERD), (900, kubelet(arguments))]);
        let found = || find(&tree.host(), Target::Live).unwrap().containerd;
        assert!(matches!(found(), Containerd::Live(_)));
        tree.process(813, &CONTAINERD);
        assert!(matches!(found(), Containerd::UnknownKubelet { .. }));
    }

    #[test]
    fn beside_a_containerd_that_another_user_can_change_the_other_is_not_behind_a_proxy() {
        let other = Given {
            cgroup: "0::/system.slice/cluster.service\n",
            program: "/opt/containerd",
            ..CONTAINERD
        };
        let tree = tree(&[(812, CONTAINERD), (813, other), (900, kubelet(WITH_SOCKET))]);
        tree.mode("/opt/containerd", 0o757);
        let found = find(&tree.host(), Target::Live).unwrap().containerd;
        assert!(
            matches!(&found, Containerd::NotOfKubelet { refused, .. } if refused.len() == 1),
            "{found:?}"
        );
    }

    const K3S: &str = "[Service]\nExecStart=/usr/local/bin/k3s server";

    #[rstest]
    #[case::stopped(K3S, "", None)]
    #[case::behind_a_wrapper("[Service]\nExecStart=/bin/sh -c 'exec k3s server'\n", "", None)]
    #[case::with_docker(&format!("{K3S} --docker\n"), "", None)]
    #[case::with_docker_in_its_configuration(K3S, "docker: true\n", None)]
    #[case::with_another_socket(K3S, "container-runtime-endpoint: unix:///run/a.sock\n", None)]
    #[case::with_the_containerd_of_the_host(
        &format!("{K3S} --container-runtime-endpoint=/run/containerd/containerd.sock\n"),
        "",
        Some(812)
    )]
    #[case::with_the_containerd_of_the_host_in_its_configuration(
        K3S,
        "container-runtime-endpoint: unix:///run/containerd/containerd.sock\n",
        Some(812)
    )]
    #[case::another_program(
        "[Service]\nExecStart=/usr/local/bin/backup /var/lib/rancher/k3s\n",
        "",
        Some(812)
    )]
    #[case::removed("[Service]\nExecStart=/opt/k3s server\n", "", Some(812))]
    fn beside_the_service_of_k3s_the_containerd_of_docker_does_not_count(
        #[case] unit: &str,
        #[case] config: &str,
        #[case] expected: Option<u32>,
    ) {
        let tree = tree(&[(812, CONTAINERD)]);
        tree.write("/usr/local/bin/k3s", "");
        tree.write("/etc/rancher/k3s/config.yaml", config);
        tree.write("/etc/systemd/system/k3s.service", unit);
        let found = || find(&tree.host(), Target::Live).unwrap().containerd;
        // Not enabled.
        assert_eq!(found().daemon().map(|daemon| daemon.process.0), Some(812));
        let link = "/etc/systemd/system/multi-user.target.wants/k3s.service";
        tree.write(link, unit);
        let refused = found();
        assert_eq!(refused.daemon().map(|daemon| daemon.process.0), expected);
        if let Containerd::NotOfKubelet { of_distro, .. } = refused {
            assert_eq!(of_distro, Some(("k3s", "k3s.service".to_owned())));
        }
        // A kubelet of its own decides.
        let socket =
            "/usr/bin/kubelet\0--container-runtime-endpoint=/run/containerd/containerd.sock\0";
        tree.process(900, &kubelet(socket));
        assert_eq!(found().daemon().map(|daemon| daemon.process.0), Some(812));
    }

    #[test]
    fn the_containerd_of_k3s_counts_by_the_program_that_started_it() {
        let given = |program, parent| Given {
            parent,
            cgroup: "0::/\n",
            program,
            ..CONTAINERD
        };
        let tree = Tree::new("0::/\n", &["/run/openrc"]);
        let k3s = Given {
            comm: "k3s-server",
            ..given("/data/k/data/abc/bin/k3s", 1)
        };
        tree.process(700, &k3s);
        tree.process(812, &given("/data/k/data/abc/bin/containerd", 700));
        tree.write("/usr/local/bin/k3s", "");
        let script = "#!/sbin/openrc-run\ncommand=/usr/local/bin/k3s\ncommand_args=server\n";
        tree.write("/etc/init.d/k3s", script);
        tree.write("/run/openrc/started/k3s", "");
        let found = find_daemon(&tree.host()).unwrap().unwrap();
        assert_eq!(found.process.0, 812);
    }

    #[test]
    fn processes_of_a_user_are_ignored() {
        let user = |given: Given<'static>, program| Given {
            uids: "1000\t1000\t1000\t1000",
            cgroup: "0::/user.slice/user-1000.slice/session-1.scope\n",
            program,
            ..given
        };
        let real = [(812, CONTAINERD), (900, kubelet(WITHOUT_SOCKET))];
        let own = user(CONTAINERD, "/home/u/rancher/k3s/containerd");
        let own = Given {
            arguments: "containerd\0-a\0/run/a.sock\0",
            ..own
        };
        let fake = user(kubelet(WITH_SOCKET), "/home/u/kubelet");
        let alone = find(&tree(&real).host(), Target::Live).unwrap();
        let [first, second] = real;
        let beside = tree(&[first, second, (100, fake), (1041, own)]);
        let beside = find(&beside.host(), Target::Live).unwrap();
        assert_eq!(beside.containerd, alone.containerd);
        let program = beside.containerd.daemon().map(|daemon| &*daemon.program);
        assert_eq!(program, Some("/usr/bin/containerd"));
        assert_eq!(beside.kubelet, alone.kubelet);
    }

    #[test]
    fn of_two_equal_processes_the_one_with_the_lower_pid_counts() {
        let found = find_daemon(&tree(&[(1041, CONTAINERD), (812, CONTAINERD)]).host()).unwrap();
        assert_eq!(found.unwrap().process, (812, 812));
        let kubelets = [(1041, kubelet("a\0")), (812, kubelet("b\0"))];
        let found = find(&tree(&kubelets).host(), Target::Live).unwrap();
        assert_eq!(found.kubelet.unwrap().arguments, "b\0");
    }

    #[rstest]
    #[case::with_a_higher_pid(812, 900)]
    // The kernel starts again with low PIDs after the highest one.
    #[case::with_a_lower_pid(812, 300)]
    fn a_child_that_has_not_executed_its_program_yet_is_no_containerd(
        #[case] pid: u32,
        #[case] child: u32,
    ) {
        let forked = Given {
            parent: pid,
            ..CONTAINERD
        };
        let found = find_daemon(&tree(&[(pid, CONTAINERD), (child, forked)]).host()).unwrap();
        assert_eq!(found.unwrap().process.0, pid);
    }

    #[test]
    fn a_relative_path_starts_at_the_working_directory_of_containerd() {
        let tree = tree(&[(812, CONTAINERD)]);
        let cmdline = tree.path("/proc/812/cmdline");
        std::fs::write(&cmdline, b"containerd\0-c\0cfg.toml\0").unwrap();
        let config = || find_daemon(&tree.host()).unwrap().unwrap().config;
        let is_unknown = |config| matches!(config, Err(command_line::Error::NoDirectory { .. }));
        assert!(is_unknown(config()));
        let directory = tree.path("/proc/812/cwd");
        std::os::unix::fs::symlink("/srv", &directory).unwrap();
        assert_eq!(config(), Ok(Some("/srv/cfg.toml".to_owned())));
        std::fs::remove_file(&directory).unwrap();
        std::os::unix::fs::symlink("/srv (deleted)", &directory).unwrap();
        assert!(is_unknown(config()));
    }

    #[test]
    fn a_containerd_with_a_path_that_is_no_text_is_found() {
        let tree = tree(&[(812, CONTAINERD)]);
        let cmdline = tree.path("/proc/812/cmdline");
        std::fs::write(&cmdline, b"containerd\0--config\0/srv/\xff.toml\0").unwrap();
        let daemon = find_daemon(&tree.host()).unwrap().unwrap();
        assert!(matches!(
            daemon.config,
            Err(command_line::Error::NotText { .. })
        ));
        std::fs::write(&cmdline, b"containerd\0--root\0/\xff\0-c\0\0").unwrap();
        let daemon = find_daemon(&tree.host()).unwrap().unwrap();
        assert!(matches!(
            daemon.config,
            Err(command_line::Error::Empty { .. })
        ));
    }

    #[test]
    fn a_containerd_that_publishes_an_event_of_a_shim_is_no_daemon() {
        let publish = Given {
            arguments: "/usr/bin/containerd\0--address\0/run/a.sock\0publish\0--topic\0t\0",
            ..CONTAINERD
        };
        let tree = tree(&[(300, publish), (812, CONTAINERD)]);
        let found = find_daemon(&tree.host()).unwrap().unwrap();
        assert_eq!(found.process, (812, 812));
    }

    #[test]
    fn a_process_counts_as_ended_when_another_has_its_pid() {
        let tree = tree(&[(812, CONTAINERD)]);
        let daemon = find_daemon(&tree.host()).unwrap().unwrap();
        assert!(daemon.still_runs(&tree.host()));
        tree.write(
            "/proc/812/stat",
            &format!("812 (a) S 1 1{} 5 0", " 0".repeat(16)),
        );
        assert!(!daemon.still_runs(&tree.host()));
    }

    #[rstest]
    #[case::server("k3s", &["k3s", "sshd"], Some("k3s.service"))]
    #[case::agent("k3s", &["containerd", "k3s-agent"], Some("k3s-agent.service"))]
    #[case::not_started("k3s", &["sshd"], None)]
    #[case::another_distribution_s("rke2", &["k3s"], None)]
    #[case::a_package_s("debian", &["containerd"], None)]
    fn without_a_cgroup_the_service_is_found_in_the_list_of_openrc(
        #[case] id: &str,
        #[case] started: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/openrc/started");
        std::fs::create_dir_all(&path).unwrap();
        for name in started {
            std::os::unix::fs::symlink(format!("/etc/init.d/{name}"), path.join(name)).unwrap();
        }
        let host = HostRoot::open(directory.path()).unwrap();
        let daemon = |unit: Option<&str>| Daemon {
            process: (1, 1),
            program: String::new(),
            config: Ok(None),
            address: Ok(None),
            names_data: [false; 2],
            unit: unit.map(str::to_owned),
        };
        let spec = distro::by_id(id);
        let found = daemon(None).with_openrc_unit(&host, spec);
        assert_eq!(found.unit.as_deref(), expected);
        let known = daemon(Some("known.service")).with_openrc_unit(&host, spec);
        assert_eq!(known.unit.as_deref(), Some("known.service"));
    }
}
