//! The table of distributions: how each is told, where its containerd stands, what is edited, and whether it is changed. Pure.
//!
//! A new distribution is a variant of [`Distro`] and a row of [`TABLE`]; nothing else names one.

use std::time::Duration;

use super::state::FOLDER;

/// A way in which containerd comes to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distro {
    /// containerd from a deb package.
    Debian,
    /// containerd from an rpm package.
    Rpm,
    /// containerd under systemd on any other distribution.
    Systemd,
    /// Flatcar, whose `/usr` is read-only.
    Flatcar,
    /// k3s in a container, where it is process 1.
    K3d,
    /// k3s, with a containerd of its own.
    K3s,
    /// RKE2, with a containerd of its own.
    Rke2,
    /// `MicroK8s`, a snap.
    MicroK8s,
    /// k0s, with a containerd of its own.
    K0s,
    /// Talos Linux: no shell, no writable root.
    Talos,
    /// Bottlerocket: no writable root.
    Bottlerocket,
    /// `OpenShift`: CRI-O on a host that its operator writes.
    OpenShift,
    /// Container-Optimized OS.
    Cos,
    /// CRI-O in containerd's place.
    CriO,
}

/// How containerd gets to load another configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Its unit is restarted by systemd or `OpenRC`, whichever runs the host.
    Service,
    /// Process 1 of the node is ended and whoever runs the node starts it again; that ends every pod.
    ContainerInit,
    /// Its supervisor restarts it when its files change; nobody else has to.
    Watched,
}

/// Which file an administrator edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// One of those that containerd loads.
    Loaded,
    /// A Go template beside the file that containerd loads, which is rendered from it at every start. Where both are there, the first
    /// counts (k3s, `pkg/agent/templates`).
    GoTemplate {
        /// For schema 3, from k3s 1.31.6 and 1.32.2 on.
        v3: &'static str,
        /// For schema 2.
        v2: &'static str,
    },
    /// TOML with shell variables, beside the file that containerd loads, which is rendered from it at every start.
    TomlTemplate(&'static str),
    /// A folder, beside the file that containerd loads, whose files are merged into a generated one, as long as that root file has
    /// this line.
    Snippets {
        /// Name of the folder.
        folder: &'static str,
        /// The line.
        marker: &'static str,
    },
}

/// containerd answers 0.1 to 0.3 s after its start, with hundreds of pods after seconds; releases that run every shim's `-info` at
/// the start, one after the other, take longer.
const SERVE_LIMIT: Duration = Duration::from_mins(1);
/// Where the kubelet, and on a server the cluster's database and API, restart before containerd does.
const SERVE_LIMIT_WITH_KUBELET: Duration = Duration::from_mins(5);

/// One row of the table.
#[derive(Debug)]
pub struct DistroSpec {
    /// Which one.
    pub distro: Distro,
    /// Its word in reports.
    pub word: &'static str,
    /// Parts of the path of the running containerd, or of its configuration, that only this distribution has.
    paths: &'static [&'static str],
    /// What the unit of the running containerd begins with.
    units: &'static [&'static str],
    /// Parts of the command line of process 1, where that has to fit, too.
    init: &'static [&'static str],
    /// Part of the socket that the kubelet uses.
    endpoint: Option<&'static str>,
    /// Values of `ID` or `ID_LIKE` in `os-release`.
    os_ids: &'static [&'static str],
    /// Files that count only where no containerd runs or is installed: a former distribution's leftovers must not deceive.
    files: &'static [&'static str],
    /// Why it is not changed, and what works there; `None` where it is.
    pub refusal: Option<&'static str>,
    /// The root configuration file where the daemon's command line names none.
    pub config: &'static str,
    /// What is edited.
    pub edited: Edited,
    /// Programs that print the distribution's release, and the word that makes them.
    pub release: (&'static [&'static str], &'static str),
    /// The CRI's socket where the daemon's command line names none.
    pub socket: &'static str,
    /// The unit, where the process does not say.
    pub unit: &'static str,
    /// How it gets to load another configuration.
    pub restart: Restart,
    /// How long it may take to serve after that.
    pub serve_limit: Duration,
    /// Where binaries can be kept, the best place first; the first that can be written to and executed from counts.
    pub folders: &'static [&'static str],
}

/// containerd's own default address.
pub const STOCK_SOCKET: &str = "/run/containerd/containerd.sock";

/// Where containerd's own packages put things.
const STOCK: DistroSpec = DistroSpec {
    distro: Distro::Systemd,
    word: "systemd",
    paths: &[],
    units: &[],
    init: &[],
    endpoint: None,
    os_ids: &[],
    files: &[],
    refusal: None,
    config: "/etc/containerd/config.toml",
    edited: Edited::Loaded,
    release: (&[], "--version"),
    socket: STOCK_SOCKET,
    unit: "containerd.service",
    restart: Restart::Service,
    serve_limit: SERVE_LIMIT,
    folders: &[FOLDER],
};

/// k3s; RKE2 has the same agent in it.
const K3S: DistroSpec = DistroSpec {
    distro: Distro::K3s,
    word: "k3s",
    paths: &["/rancher/k3s/"],
    units: &["k3s.", "k3s-"],
    files: &[
        "/usr/local/bin/k3s",
        "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    ],
    config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    edited: Edited::GoTemplate {
        v3: "config-v3.toml.tmpl",
        v2: "config.toml.tmpl",
    },
    release: (
        &["/usr/local/bin/k3s", "/usr/bin/k3s", "/bin/k3s"],
        "--version",
    ),
    socket: "/run/k3s/containerd/containerd.sock",
    unit: "k3s.service",
    serve_limit: SERVE_LIMIT_WITH_KUBELET,
    ..STOCK
};

/// What nobody changes from a pod.
const fn detect_only(distro: Distro, word: &'static str, refusal: &'static str) -> DistroSpec {
    DistroSpec {
        distro,
        word,
        refusal: Some(refusal),
        ..STOCK
    }
}

/// All of them; the first row that fits counts, and the last one fits always.
///
/// kind and minikube, AKS, EKS, GKE on Ubuntu and DOKS run containerd as a package has it and are told by their operating system.
pub const TABLE: &[DistroSpec] = &[
    DistroSpec {
        distro: Distro::K3d,
        word: "k3d",
        // The image of k3s has no service manager: process 1 is k3s, or the script that k3d starts it from.
        init: &["k3s", "k3d"],
        units: &[],
        files: &[],
        restart: Restart::ContainerInit,
        ..K3S
    },
    K3S,
    DistroSpec {
        distro: Distro::Rke2,
        word: "rke2",
        paths: &["/rancher/rke2/"],
        units: &["rke2-"],
        files: &[
            "/usr/local/bin/rke2",
            "/opt/rke2/bin/rke2",
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        ],
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        release: (
            &["/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2"],
            "--version",
        ),
        unit: "rke2-agent.service",
        ..K3S
    },
    DistroSpec {
        distro: Distro::MicroK8s,
        word: "microk8s",
        paths: &["/snap/microk8s/"],
        units: &["snap.microk8s."],
        files: &[
            "/snap/microk8s/current/bin/containerd",
            "/var/snap/microk8s/current/args/containerd-template.toml",
        ],
        config: "/var/snap/microk8s/current/args/containerd.toml",
        edited: Edited::TomlTemplate("containerd-template.toml"),
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        unit: "snap.microk8s.daemon-containerd.service",
        // A snap under strict confinement executes nothing in /opt.
        folders: &["/var/snap/microk8s/common/farrier"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::K0s,
        word: "k0s",
        paths: &["/lib/k0s/", "/etc/k0s/"],
        units: &["k0sworker.", "k0scontroller."],
        files: &[
            "/var/lib/k0s/bin/containerd",
            "/usr/local/bin/k0s",
            "/etc/k0s/containerd.toml",
        ],
        config: "/etc/k0s/containerd.toml",
        edited: Edited::Snippets {
            folder: "containerd.d",
            marker: "# k0s_managed=true",
        },
        release: (&["/usr/local/bin/k0s", "/usr/bin/k0s"], "version"),
        socket: "/run/k0s/containerd.sock",
        unit: "k0sworker.service",
        restart: Restart::Watched,
        ..STOCK
    },
    DistroSpec {
        os_ids: &["talos"],
        ..detect_only(
            Distro::Talos,
            "talos",
            "this node runs Talos Linux, which can't be changed from a pod; add the shim as a system extension to its image",
        )
    },
    DistroSpec {
        os_ids: &["bottlerocket"],
        ..detect_only(
            Distro::Bottlerocket,
            "bottlerocket",
            "this node runs Bottlerocket, whose file system can't be changed; build a variant that carries the shim, or use other nodes",
        )
    },
    DistroSpec {
        os_ids: &["rhcos", "scos", "openshift"],
        ..detect_only(
            Distro::OpenShift,
            "openshift",
            "this node belongs to OpenShift, whose operator writes its files; add the runtime to /etc/crio/crio.conf.d by a MachineConfig",
        )
    },
    DistroSpec {
        endpoint: Some("crio"),
        files: &["/run/crio/crio.sock", "/var/run/crio/crio.sock"],
        ..detect_only(
            Distro::CriO,
            "crio",
            "this node runs CRI-O instead of containerd; declare the runtime in /etc/crio/crio.conf.d and restart crio",
        )
    },
    DistroSpec {
        distro: Distro::Cos,
        word: "cos",
        os_ids: &["cos"],
        // `/` is read-only and `/var` not executable but for these (COS, *Disks and file system overview*); `/etc` is new at each boot.
        folders: &["/var/lib/google/farrier", "/var/lib/toolbox/farrier"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Flatcar,
        word: "flatcar",
        os_ids: &["flatcar"],
        config: "/usr/share/containerd/config.toml",
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Debian,
        word: "debian",
        os_ids: &["debian", "ubuntu"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Rpm,
        word: "rpm",
        os_ids: &[
            "fedora",
            "rhel",
            "centos",
            "suse",
            "opensuse",
            "amzn",
            "azurelinux",
            "mariner",
        ],
        ..STOCK
    },
    STOCK,
];

/// What was found on a host.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// Path of the running containerd's program.
    pub program: Option<&'a str>,
    /// The unit that it runs in.
    pub unit: Option<&'a str>,
    /// Its configuration, from its command line or from the user.
    pub config: Option<&'a str>,
    /// Command line of process 1.
    pub init: &'a str,
    /// The socket that the kubelet uses, where a kubelet of its own says so.
    pub endpoint: Option<&'a str>,
    /// Whether a containerd is installed where packages put it, for a host that runs none now.
    pub installed: bool,
    /// The text of `/etc/os-release`.
    pub os_release: &'a str,
}

/// The row that fits a host; `present` says whether a marker file is there.
pub fn detect(evidence: &Evidence<'_>, present: impl Fn(&str) -> bool) -> &'static DistroSpec {
    let ids = os_ids(evidence.os_release);
    let idle = evidence.program.is_none() && !evidence.installed && evidence.config.is_none();
    let fits = |row: &&DistroSpec| {
        let named = |path: Option<&str>| {
            path.is_some_and(|path| row.paths.iter().any(|part| path.contains(part)))
        };
        let in_unit = |unit: &str| row.units.iter().any(|start| unit.starts_with(start));
        let found = named(evidence.program)
            || named(evidence.config)
            || evidence.program.is_some() && evidence.unit.is_some_and(in_unit)
            || evidence
                .endpoint
                .zip(row.endpoint)
                .is_some_and(|(is, part)| is.contains(part))
            || row.os_ids.iter().any(|id| ids.contains(id))
            || idle && row.files.iter().any(|file| present(file));
        found && (row.init.is_empty() || row.init.iter().any(|part| evidence.init.contains(part)))
    };
    TABLE.iter().find(fits).unwrap_or(&STOCK)
}

/// Whether a running containerd is one that a distribution of Kubernetes brought and started.
#[must_use]
pub fn is_own(program: &str, unit: Option<&str>) -> bool {
    TABLE.iter().any(|row| {
        row.paths.iter().any(|part| program.contains(part))
            || unit.is_some_and(|unit| row.units.iter().any(|start| unit.starts_with(start)))
    })
}

/// The row of a word in a report or a journal; the one that fits always where there is none.
#[must_use]
pub fn named(word: &str) -> &'static DistroSpec {
    let found = TABLE.iter().find(|row| row.word == word);
    found.unwrap_or(&STOCK)
}

/// The values of `ID` and `ID_LIKE` (os-release(5)), and `openshift` where a key names its release, as on nodes of RHEL.
fn os_ids(os_release: &str) -> Vec<&str> {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(key, value)| match key {
            "ID" | "ID_LIKE" => Some(value),
            "OPENSHIFT_VERSION" => Some("openshift"),
            _ => None,
        })
        .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace())
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Program, unit, process 1, the kubelet's socket.
    type Running = (&'static str, &'static str, &'static str, &'static str);

    const STOCK_RUNS: Running = (
        "/usr/bin/containerd",
        "containerd.service",
        "/sbin/init",
        "",
    );

    #[rstest]
    #[case::debian(STOCK_RUNS, "ID=debian\n", Distro::Debian)]
    #[case::kind(STOCK_RUNS, "ID=debian\nVERSION_ID=\"12\"\n", Distro::Debian)]
    #[case::minikube(STOCK_RUNS, "ID=buildroot\n", Distro::Systemd)]
    #[case::aks_ubuntu_gke_ubuntu(STOCK_RUNS, "ID=ubuntu\nID_LIKE=debian\n", Distro::Debian)]
    #[case::aks_azure_linux_osguard(STOCK_RUNS, "ID=azurelinux\nVARIANT_ID=osguard\n", Distro::Rpm)]
    #[case::aks_mariner(STOCK_RUNS, "ID=mariner\n", Distro::Rpm)]
    #[case::eks(
        STOCK_RUNS,
        "ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\n",
        Distro::Rpm
    )]
    #[case::eks_al2023(STOCK_RUNS, "ID=\"amzn\"\nID_LIKE=\"fedora\"\n", Distro::Rpm)]
    #[case::mint(
        STOCK_RUNS,
        "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
        Distro::Debian
    )]
    #[case::rocky(
        STOCK_RUNS,
        "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
        Distro::Rpm
    )]
    #[case::flatcar(STOCK_RUNS, "ID=flatcar\nID_LIKE=coreos\n", Distro::Flatcar)]
    #[case::cos(STOCK_RUNS, "ID=cos\n", Distro::Cos)]
    #[case::unknown(("/opt/bin/containerd", "", "", ""), "ID=nixos\n", Distro::Systemd)]
    #[case::k3s(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "k3s.service", "/sbin/init", ""),
        "ID=debian\n",
        Distro::K3s
    )]
    #[case::k3s_elsewhere(("/data/k/data/abc/bin/containerd", "k3s-agent.service", "/sbin/init", ""), "ID=debian\n", Distro::K3s)]
    #[case::k3s_under_openrc(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "", "/sbin/init", ""),
        "ID=alpine\n",
        Distro::K3s
    )]
    #[case::k3d(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "", "/sbin/docker-init\0--\0/bin/k3d-entrypoint.sh\0", ""),
        "",
        Distro::K3d
    )]
    #[case::rke2(
        ("/var/lib/rancher/rke2/data/v1.33-x/bin/containerd", "rke2-server.service", "/sbin/init", ""),
        "ID=ubuntu\n",
        Distro::Rke2
    )]
    #[case::microk8s(
        ("/snap/microk8s/7394/bin/containerd", "snap.microk8s.daemon-containerd.service", "/sbin/init", ""),
        "ID=ubuntu\n",
        Distro::MicroK8s
    )]
    #[case::k0s(("/var/lib/k0s/bin/containerd", "k0sworker.service", "/sbin/init", ""), "ID=ubuntu\n", Distro::K0s)]
    #[case::talos(("/bin/containerd", "", "/sbin/init", ""), "ID=talos\n", Distro::Talos)]
    #[case::bottlerocket(STOCK_RUNS, "ID=bottlerocket\n", Distro::Bottlerocket)]
    #[case::openshift(("", "", "", "/var/run/crio/crio.sock"), "ID=\"rhcos\"\n", Distro::OpenShift)]
    #[case::openshift_on_rhel(("", "", "", ""), "ID=\"rhel\"\nOPENSHIFT_VERSION=\"4.18\"\n", Distro::OpenShift)]
    #[case::crio_beside_docker(
        ("/usr/bin/containerd", "containerd.service", "/sbin/init", "/var/run/crio/crio.sock"),
        "ID=ubuntu\n",
        Distro::CriO
    )]
    fn a_host_is_told_by_what_runs_on_it(
        #[case] running: Running,
        #[case] os_release: &str,
        #[case] expected: Distro,
        #[values(&[], &["/usr/local/bin/k3s", "/var/lib/k0s/bin/containerd", "/run/crio/crio.sock"])]
        leftovers: &[&str],
    ) {
        let said = |text: &'static str| (!text.is_empty()).then_some(text);
        let (program, unit, init, endpoint) = running;
        let evidence = Evidence {
            program: said(program),
            unit: said(unit),
            init,
            endpoint: said(endpoint),
            installed: program.is_empty(),
            os_release,
            config: None,
        };
        let row = detect(&evidence, |file| leftovers.contains(&file));
        assert_eq!(row.distro, expected);
    }

    #[rstest]
    #[case::k3s("/usr/local/bin/k3s", Distro::K3s)]
    #[case::rendered_k3s("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", Distro::K3s)]
    #[case::rendered_rke2("/var/lib/rancher/rke2/agent/etc/containerd/config.toml", Distro::Rke2)]
    #[case::microk8s(
        "/var/snap/microk8s/current/args/containerd-template.toml",
        Distro::MicroK8s
    )]
    #[case::k0s("/etc/k0s/containerd.toml", Distro::K0s)]
    #[case::crio("/run/crio/crio.sock", Distro::CriO)]
    #[case::nothing("/etc/containerd/config.toml", Distro::Debian)]
    fn a_host_that_runs_nothing_is_told_by_its_files(#[case] file: &str, #[case] expected: Distro) {
        let os_release = "ID=debian\n";
        let evidence = Evidence {
            os_release,
            ..Evidence::default()
        };
        assert_eq!(detect(&evidence, |path| path == file).distro, expected);
        let installed = Evidence {
            installed: true,
            os_release,
            ..Evidence::default()
        };
        let row = detect(&installed, |path| path == file);
        assert_eq!(row.distro, Distro::Debian);
    }

    #[test]
    fn a_configuration_that_the_user_names_tells_its_distribution() {
        let evidence = Evidence {
            config: Some("/var/snap/microk8s/current/args/containerd-template.toml"),
            installed: true,
            ..Evidence::default()
        };
        assert_eq!(detect(&evidence, |_| false).distro, Distro::MicroK8s);
    }

    #[test]
    fn a_refusal_names_what_works_there() {
        for row in TABLE {
            let named = row.refusal.is_none_or(|words| {
                words.starts_with("this node ") && words.contains("; ") && !words.ends_with('.')
            });
            assert!(named, "{}", row.word);
            assert!(!row.folders.is_empty(), "{}", row.word);
        }
    }
}
