//! The table of distributions: what a row holds, and the rows. Detection lives in the module above.

use std::time::Duration;

use crate::installer::state::INSTALL_DIRECTORY;

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
    /// kind: a node is a container.
    Kind,
    /// minikube, in a machine or a container.
    Minikube,
    /// AKS, on Ubuntu, Azure Linux and those with a read-only `/usr`.
    Aks,
    /// EKS where a script sets nodes up: Amazon Linux 2, Ubuntu.
    Eks,
    /// EKS on Amazon Linux 2023, where nodeadm does.
    EksAl2023,
    /// GKE on Ubuntu.
    Gke,
    /// `DigitalOcean`'s managed Kubernetes.
    Doks,
}

/// How containerd gets to load another configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Its unit is restarted by systemd or `OpenRC`, whichever runs the host.
    Service,
    /// Process 1 of the node is ended and whoever runs the node starts it again; that ends every pod.
    ContainerInit,
    /// Its supervisor restarts it when files that it watches change, and when it ends.
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
        directory: &'static str,
        /// The line.
        marker: &'static str,
    },
}

/// One row of the table.
#[derive(Debug)]
pub struct DistroSpec {
    /// Which one.
    pub distro: Distro,
    /// Its word in reports.
    pub id: &'static str,
    /// Directories below which only this distribution has its running containerd, or its configuration.
    pub(crate) paths: &'static [&'static str],
    /// What the unit of the running containerd begins with.
    pub(crate) units: &'static [&'static str],
    /// Names of programs in the command line of process 1, or the beginning of such a name up to a hyphen, where that has to fit, too.
    pub(crate) init: &'static [&'static str],
    /// The directory of the socket that the kubelet uses.
    pub(crate) endpoint: Option<&'static str>,
    /// How a value in the command line of a kubelet that runs begins, up to a slash: what its maker starts it with, or names its nodes by.
    pub(crate) kubelet: &'static [&'static str],
    /// Files of its machine image, which count where no kubelet runs that could say more.
    pub(crate) image: &'static [&'static str],
    /// Value of `PLATFORM_ID` in `os-release`, where that has to fit, too.
    pub(crate) platform: Option<&'static str>,
    /// Values of `ID` or `ID_LIKE` in `os-release`.
    pub(crate) os_ids: &'static [&'static str],
    /// Its programs. They tell it only where no containerd runs or is installed: what a former distribution left must not deceive.
    pub programs: &'static [&'static str],
    /// What it makes when it runs; counts where `programs` would, and only where there are none of any distribution.
    pub(crate) data: &'static [&'static str],
    /// Why it is not changed, and what works there; `None` where it is.
    pub refusal: Option<Refusal>,
    /// The root configuration file where neither the daemon's command line nor the unit names one.
    pub config: &'static str,
    /// The variable in the unit's environment that may name another.
    pub variable: Option<&'static str>,
    /// What is edited.
    pub edited: Edited,
    /// The word that makes one of `programs` print the distribution's release.
    pub release: Option<&'static str>,
    /// Whether the configuration is written anew at each boot.
    pub rewritten: bool,
    /// The CRI's socket where the daemon's command line names none.
    pub socket: &'static str,
    /// The unit, where the process does not say.
    pub unit: &'static str,
    /// How it gets to load another configuration.
    pub restart: Restart,
    /// How long it may take to serve after that.
    pub serve_limit: Duration,
    /// Where binaries can be kept, the best place first; the first that can be written to and executed from counts.
    pub directories: &'static [&'static str],
}

/// containerd answers 0.1 to 0.3 s after its start, with hundreds of pods after seconds; releases that run every shim's `-info` at
/// the start, one after the other, take longer.
const SERVE_LIMIT: Duration = Duration::from_mins(1);
/// Where the kubelet, and on a server the cluster's database and API, restart before containerd does.
const SERVE_LIMIT_WITH_KUBELET: Duration = Duration::from_mins(5);

/// containerd's own default address.
pub const STOCK_SOCKET: &str = "/run/containerd/containerd.sock";

/// Where containerd's own packages put things.
pub(crate) const STOCK: DistroSpec = DistroSpec {
    distro: Distro::Systemd,
    id: "systemd",
    paths: &[],
    units: &[],
    init: &[],
    endpoint: None,
    kubelet: &[],
    image: &[],
    platform: None,
    os_ids: &[],
    programs: &[],
    data: &[],
    refusal: None,
    config: "/etc/containerd/config.toml",
    variable: None,
    edited: Edited::Loaded,
    release: None,
    rewritten: false,
    socket: STOCK_SOCKET,
    unit: "containerd.service",
    restart: Restart::Service,
    serve_limit: SERVE_LIMIT,
    directories: &[INSTALL_DIRECTORY],
};

/// k3s; RKE2 has the same agent in it.
const K3S: DistroSpec = DistroSpec {
    distro: Distro::K3s,
    id: "k3s",
    paths: &["/var/lib/rancher/k3s"],
    units: &["k3s.", "k3s-"],
    programs: &["/usr/local/bin/k3s", "/usr/bin/k3s", "/bin/k3s"],
    data: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
    config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    edited: Edited::GoTemplate {
        v3: "config-v3.toml.tmpl",
        v2: "config.toml.tmpl",
    },
    release: Some("--version"),
    socket: "/run/k3s/containerd/containerd.sock",
    unit: "k3s.service",
    serve_limit: SERVE_LIMIT_WITH_KUBELET,
    ..STOCK
};

/// Why Farrier changes no host of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The node and the cause.
    pub message: &'static str,
    /// How an operator adds a runtime to such a host.
    pub help: &'static str,
}

/// A distribution whose hosts Farrier does not change.
const fn detect_only(distro: Distro, id: &'static str, refusal: Refusal) -> DistroSpec {
    DistroSpec {
        distro,
        id,
        refusal: Some(refusal),
        ..STOCK
    }
}

/// Who runs containerd as a package has it, told by what is in the command line of its kubelet.
const fn managed(distro: Distro, id: &'static str, kubelet: &'static [&'static str]) -> DistroSpec {
    DistroSpec {
        distro,
        id,
        kubelet,
        ..STOCK
    }
}

/// All of them; the first row that fits counts, and the last one fits always.
pub const TABLE: &[DistroSpec] = &[
    DistroSpec {
        distro: Distro::K3d,
        id: "k3d",
        // The image of k3s has no service manager: process 1 is k3s, or the script that k3d starts it from.
        init: &["k3s", "k3d"],
        units: &[],
        data: &[],
        restart: Restart::ContainerInit,
        ..K3S
    },
    K3S,
    DistroSpec {
        distro: Distro::Rke2,
        id: "rke2",
        paths: &["/var/lib/rancher/rke2"],
        units: &["rke2-"],
        programs: &["/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2"],
        data: &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        unit: "rke2-agent.service",
        ..K3S
    },
    DistroSpec {
        distro: Distro::MicroK8s,
        id: "microk8s",
        // The last is where distributions without `/snap` mount it.
        paths: &[
            "/snap/microk8s",
            "/var/snap/microk8s",
            "/var/lib/snapd/snap/microk8s",
        ],
        units: &["snap.microk8s."],
        programs: &["/snap/microk8s/current/bin/containerd"],
        data: &["/var/snap/microk8s/current/args/containerd-template.toml"],
        config: "/var/snap/microk8s/current/args/containerd.toml",
        edited: Edited::TomlTemplate("containerd-template.toml"),
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        unit: "snap.microk8s.daemon-containerd.service",
        // A snap under strict confinement executes nothing in /opt.
        directories: &["/var/snap/microk8s/common/farrier"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::K0s,
        id: "k0s",
        paths: &["/var/lib/k0s", "/etc/k0s"],
        units: &["k0sworker.", "k0scontroller."],
        programs: &["/usr/local/bin/k0s", "/usr/bin/k0s"],
        data: &["/var/lib/k0s/bin/containerd", "/etc/k0s/containerd.toml"],
        config: "/etc/k0s/containerd.toml",
        edited: Edited::Snippets {
            directory: "containerd.d",
            marker: "# k0s_managed=true",
        },
        release: Some("version"),
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
            Refusal {
                message: "this node runs Talos Linux, which can't be changed from a pod",
                help: "add the shim as a system extension to its image",
            },
        )
    },
    DistroSpec {
        os_ids: &["bottlerocket"],
        ..detect_only(
            Distro::Bottlerocket,
            "bottlerocket",
            Refusal {
                message: "this node runs Bottlerocket, whose file system can't be changed",
                help: "build a variant that carries the shim, or use other nodes",
            },
        )
    },
    DistroSpec {
        os_ids: &["rhcos", "scos", "openshift"],
        ..detect_only(
            Distro::OpenShift,
            "openshift",
            Refusal {
                message: "this node belongs to OpenShift, whose operator writes its files",
                help: "add the runtime to /etc/crio/crio.conf.d by a MachineConfig",
            },
        )
    },
    DistroSpec {
        endpoint: Some("/run/crio"),
        programs: &["/usr/bin/crio"],
        data: &["/run/crio/crio.sock", "/var/run/crio/crio.sock"],
        ..detect_only(
            Distro::CriO,
            "crio",
            Refusal {
                message: "this node runs CRI-O instead of containerd",
                help: "declare the runtime in /etc/crio/crio.conf.d and restart crio",
            },
        )
    },
    DistroSpec {
        distro: Distro::Cos,
        id: "cos",
        os_ids: &["cos"],
        // `/` is read-only and `/var` not executable but for these (COS, *Disks and file system overview*); `/etc` is new at each boot.
        directories: &["/var/lib/google/farrier", "/var/lib/toolbox/farrier"],
        rewritten: true,
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Flatcar,
        id: "flatcar",
        os_ids: &["flatcar"],
        // Its unit is `containerd --config ${CONTAINERD_CONFIG}` (Flatcar, *Customizing containerd*).
        config: "/usr/share/containerd/config.toml",
        variable: Some("CONTAINERD_CONFIG"),
        ..STOCK
    },
    DistroSpec {
        // Its nodes are containers of its own image, which has its release in a file (kind, `pkg/build/nodeimage`).
        image: &["/kind/version"],
        ..managed(Distro::Kind, "kind", &["kind://"])
    },
    // Where it keeps the kubelet itself.
    managed(Distro::Minikube, "minikube", &["/var/lib/minikube/"]),
    DistroSpec {
        // The builder of its images logs there, whatever the operating system (AgentBaker, `vhdbuilder`).
        image: &["/opt/azure/vhd-install.complete"],
        ..managed(Distro::Aks, "aks", &["kubernetes.azure.com/"])
    },
    DistroSpec {
        platform: Some("platform:al2023"),
        image: &["/usr/bin/nodeadm"],
        // nodeadm makes the file from the node's own configuration (amazon-eks-ami, `nodeadm/internal/containerd`).
        rewritten: true,
        ..managed(Distro::EksAl2023, "eks-al2023", &["/etc/eks/"])
    },
    DistroSpec {
        // AL2, and Ubuntu as its maker has it for EKS: a script is run once, at the first boot.
        image: &["/etc/eks/bootstrap.sh"],
        ..managed(
            Distro::Eks,
            "eks",
            &["/etc/eks/", "/etc/kubernetes/kubelet/kubelet-config.json"],
        )
    },
    // Only on Ubuntu: the row of COS stands above.
    managed(Distro::Gke, "gke", &["/home/kubernetes/bin/kubelet"]),
    managed(Distro::Doks, "doks", &["doks.digitalocean.com/"]),
    DistroSpec {
        distro: Distro::Debian,
        id: "debian",
        os_ids: &["debian", "ubuntu"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Rpm,
        id: "rpm",
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
