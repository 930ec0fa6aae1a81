//! The table of distributions: the type of a row, and the rows. Detection is in the parent module.

use std::time::Duration;

use crate::installer::state::INSTALL_DIRECTORY;

/// A distribution: a way in which containerd is installed on a node.
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
    /// k3s in a container, as process 1.
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
    /// `OpenShift`: CRI-O on a host whose files its operator manages.
    OpenShift,
    /// Container-Optimized OS.
    Cos,
    /// CRI-O instead of containerd.
    CriO,
    /// kind: a node is a container.
    Kind,
    /// minikube: a node is a virtual machine or a container.
    Minikube,
    /// AKS, on Ubuntu, Azure Linux and the variants with a read-only `/usr`.
    Aks,
    /// EKS on Amazon Linux 2 and Ubuntu, where a script sets up the node.
    Eks,
    /// EKS on Amazon Linux 2023, where nodeadm sets up the node.
    EksAl2023,
    /// GKE on Ubuntu.
    Gke,
    /// `DigitalOcean`'s managed Kubernetes.
    Doks,
}

/// How containerd is made to load a changed configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// systemd or `OpenRC`, the host's service manager, restarts the unit.
    Service,
    /// Farrier ends process 1 of the node, and the container runtime outside starts the node again. That ends every pod.
    ContainerInit,
    /// A supervisor restarts containerd when a watched file changes, and when containerd ends.
    Watched,
}

/// Which file an administrator edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// One of the files that containerd loads.
    Loaded,
    /// A Go template beside the file that containerd loads; that file is rendered from the template at every start. If both templates
    /// exist, the first one counts (k3s, `pkg/agent/templates`).
    GoTemplate {
        /// For schema 3, from k3s 1.31.6 and 1.32.2 on.
        v3: &'static str,
        /// For schema 2.
        v2: &'static str,
    },
    /// TOML with shell variables, beside the file that containerd loads; that file is rendered from this one at every start.
    TomlTemplate(&'static str),
    /// A directory beside the file that containerd loads. The files of the directory are merged into a generated file, as long as the root
    /// file contains the marker.
    Snippets {
        /// Name of the directory.
        directory: &'static str,
        /// The marker, a line of the root file.
        marker: &'static str,
    },
}

/// One row of the table.
#[derive(Debug)]
pub struct DistroSpec {
    /// The distribution.
    pub distro: Distro,
    /// Its name in reports.
    pub id: &'static str,
    /// Directories in which only this distribution has containerd's program or configuration.
    pub(crate) paths: &'static [&'static str],
    /// Prefixes of the unit of the running containerd.
    pub(crate) units: &'static [&'static str],
    /// Names of programs, whole or up to a hyphen, of which the command line of process 1 must contain one; empty for no such condition.
    pub(crate) init: &'static [&'static str],
    /// The directory of the socket that the kubelet uses.
    pub(crate) endpoint: Option<&'static str>,
    /// Prefixes, up to a slash, of values in the command line of the running kubelet, such as paths or labels of the distribution.
    pub(crate) kubelet: &'static [&'static str],
    /// Files of its machine image, which count only if no kubelet runs.
    pub(crate) image: &'static [&'static str],
    /// The value that `os-release` must have for `PLATFORM_ID`; `None` for no such condition.
    pub(crate) platform: Option<&'static str>,
    /// Values of `ID` or `ID_LIKE` in `os-release`.
    pub(crate) os_ids: &'static [&'static str],
    /// Its programs. They count only if no containerd runs or is installed, as they may be left from a former distribution.
    pub programs: &'static [&'static str],
    /// Files that it creates when it runs, and its configuration. They count under the same condition as `programs`, and only if there are no
    /// programs of any distribution.
    pub(crate) data: &'static [&'static str],
    /// Why Farrier does not change such a host, and how to add a runtime there; `None` if Farrier changes it.
    pub unsupported: Option<Unsupported>,
    /// The root configuration file if neither containerd's command line nor the unit names one.
    pub config: &'static str,
    /// The variable in the unit's environment that may name another root configuration file.
    pub variable: Option<&'static str>,
    /// The file that Farrier edits.
    pub edited: Edited,
    /// Files and directories of its own configuration, which its service reads at the start. The name of a directory ends with `.d`.
    pub(crate) own_config: &'static [&'static str],
    /// The begin of the environment variables in which its options may be set, if an option moves the directory of its data, the first of
    /// `paths`. The options may also be in the first file of `own_config`.
    pub(crate) option_variables: Option<&'static str>,
    /// The file with the arguments of the kubelet, if the distribution embeds the kubelet in a process of another name.
    pub(crate) kubelet_arguments: Option<&'static str>,
    /// The handlers that the distribution declares by itself, each with the file name of the program that it looks for at each start.
    pub finds: &'static [(&'static str, &'static str)],
    /// The argument with which one of `programs` prints the distribution's release.
    pub release: Option<&'static str>,
    /// Whether the node regenerates the configuration at each boot.
    pub rewritten: bool,
    /// The CRI socket if containerd's command line names none.
    pub socket: &'static str,
    /// The unit if the process does not show it.
    pub unit: &'static str,
    /// How containerd is made to load a changed configuration.
    pub restart: Restart,
    /// Time limit for containerd to serve after a restart.
    pub serve_limit: Duration,
    /// Directories for the binaries, in order of preference; the first that is writable and not mounted noexec is used.
    pub directories: &'static [&'static str],
}

/// containerd answers 0.1 to 0.3 s after its start, and with hundreds of pods after seconds. Releases that run `-info` of every shim at the
/// start, one after the other, take longer.
const SERVE_LIMIT: Duration = Duration::from_mins(1);
/// For distributions that restart the kubelet, and on a server the cluster's database and API, before containerd.
const SERVE_LIMIT_WITH_KUBELET: Duration = Duration::from_mins(5);

/// containerd's own default address.
pub const STOCK_SOCKET: &str = "/run/containerd/containerd.sock";

/// The configuration file that containerd loads if its command line names none (`defaults/defaults_unix.go`).
pub const STOCK_CONFIG: &str = "/etc/containerd/config.toml";

/// The unit of containerd in packages.
pub const STOCK_UNIT: &str = "containerd.service";

/// containerd as its own packages install it; the base of the other rows.
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
    unsupported: None,
    config: STOCK_CONFIG,
    variable: None,
    edited: Edited::Loaded,
    own_config: &[],
    option_variables: None,
    kubelet_arguments: None,
    finds: &[],
    release: None,
    rewritten: false,
    socket: STOCK_SOCKET,
    unit: STOCK_UNIT,
    restart: Restart::Service,
    serve_limit: SERVE_LIMIT,
    directories: &[INSTALL_DIRECTORY],
};

/// The runtimes that k3s and RKE2 look for (k3s, `pkg/agent/containerd/runtimes.go`): in `PATH` since March 2024 (1.29.3, 1.28.8, 1.27.12),
/// and before that in `/opt/kwasm/bin`, `/usr/bin` and `/usr/sbin`, where spin was `containerd-shim-spin-v1`.
const K3S_FINDS: &[(&str, &str)] = &[
    ("crun", "crun"),
    ("lunatic", "containerd-shim-lunatic-v1"),
    ("nvidia", "nvidia-container-runtime"),
    ("nvidia-cdi", "nvidia-container-runtime.cdi"),
    (
        "nvidia-experimental",
        "nvidia-container-runtime-experimental",
    ),
    ("slight", "containerd-shim-slight-v1"),
    ("spin", "containerd-shim-spin-v2"),
    ("wasmedge", "containerd-shim-wasmedge-v1"),
    ("wasmer", "containerd-shim-wasmer-v1"),
    ("wasmtime", "containerd-shim-wasmtime-v1"),
    ("wws", "containerd-shim-wws-v1"),
];

/// k3s; RKE2 contains the same agent.
const K3S: DistroSpec = DistroSpec {
    distro: Distro::K3s,
    id: "k3s",
    paths: &["/var/lib/rancher/k3s"],
    units: &["k3s.", "k3s-"],
    programs: &["/usr/local/bin/k3s", "/usr/bin/k3s", "/bin/k3s"],
    data: &[
        "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        "/etc/rancher/k3s/config.yaml",
        "/etc/rancher/k3s/config.yaml.d",
    ],
    config: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    edited: Edited::GoTemplate {
        v3: "config-v3.toml.tmpl",
        v2: "config.toml.tmpl",
    },
    own_config: &[
        "/etc/rancher/k3s/config.yaml",
        "/etc/rancher/k3s/config.yaml.d",
        "/etc/rancher/k3s/registries.yaml",
    ],
    option_variables: Some("K3S_"),
    finds: K3S_FINDS,
    release: Some("--version"),
    socket: "/run/k3s/containerd/containerd.sock",
    unit: "k3s.service",
    serve_limit: SERVE_LIMIT_WITH_KUBELET,
    ..STOCK
};

/// Why Farrier changes no host of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    /// A sentence with the node and the cause.
    pub message: &'static str,
    /// The step by which an administrator adds a runtime to such a host.
    pub help: &'static str,
}

/// A distribution whose hosts Farrier does not change.
const fn detect_only(distro: Distro, id: &'static str, unsupported: Unsupported) -> DistroSpec {
    DistroSpec {
        distro,
        id,
        unsupported: Some(unsupported),
        ..STOCK
    }
}

/// A managed distribution with containerd as a package installs it, detected by the kubelet's command line.
const fn managed(distro: Distro, id: &'static str, kubelet: &'static [&'static str]) -> DistroSpec {
    DistroSpec {
        distro,
        id,
        kubelet,
        ..STOCK
    }
}

/// All distributions. The first matching row counts, and the last row matches every host.
pub const TABLE: &[DistroSpec] = &[
    DistroSpec {
        distro: Distro::K3d,
        id: "k3d",
        // The image of k3s has no service manager: process 1 is k3s, or k3d's entry script, which starts k3s.
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
        data: &[
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            "/etc/rancher/rke2/config.yaml",
            "/etc/rancher/rke2/config.yaml.d",
        ],
        config: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        own_config: &[
            "/etc/rancher/rke2/config.yaml",
            "/etc/rancher/rke2/config.yaml.d",
            "/etc/rancher/rke2/registries.yaml",
        ],
        option_variables: Some("RKE2_"),
        unit: "rke2-agent.service",
        ..K3S
    },
    DistroSpec {
        distro: Distro::MicroK8s,
        id: "microk8s",
        // The last one is the mount point on distributions without `/snap`.
        paths: &[
            "/snap/microk8s",
            "/var/snap/microk8s",
            "/var/lib/snapd/snap/microk8s",
        ],
        units: &["snap.microk8s."],
        programs: &["/snap/microk8s/current/bin/containerd"],
        data: &["/var/snap/microk8s/current/args/containerd-template.toml"],
        config: "/var/snap/microk8s/current/args/containerd.toml",
        own_config: &[
            "/var/snap/microk8s/current/args/containerd",
            "/var/snap/microk8s/current/args/containerd-env",
        ],
        kubelet_arguments: Some("/var/snap/microk8s/current/args/kubelet"),
        endpoint: Some("/var/snap/microk8s"),
        edited: Edited::TomlTemplate("containerd-template.toml"),
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        unit: "snap.microk8s.daemon-containerd.service",
        // A snap under strict confinement can't execute files in /opt.
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
        own_config: &["/etc/k0s/k0s.yaml"],
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
            Unsupported {
                message: "this node runs Talos Linux, which a pod can't change",
                help: "add the shim to the node's image as a system extension",
            },
        )
    },
    DistroSpec {
        os_ids: &["bottlerocket"],
        ..detect_only(
            Distro::Bottlerocket,
            "bottlerocket",
            Unsupported {
                message: "this node runs Bottlerocket, whose root file system is read-only",
                help: "build a variant that contains the shim, or use other nodes",
            },
        )
    },
    DistroSpec {
        os_ids: &["rhcos", "scos", "openshift"],
        ..detect_only(
            Distro::OpenShift,
            "openshift",
            Unsupported {
                message: "this node belongs to OpenShift, whose operator manages the node's files",
                help: "add the runtime to /etc/crio/crio.conf.d with a MachineConfig",
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
            Unsupported {
                message: "this node runs CRI-O instead of containerd",
                help: "declare the runtime in /etc/crio/crio.conf.d and restart crio",
            },
        )
    },
    DistroSpec {
        distro: Distro::Cos,
        id: "cos",
        os_ids: &["cos"],
        // `/` is read-only, `/var` is mounted noexec except for these directories, and `/etc` is new at each boot (COS, *Disks and file
        // system overview*).
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
        // The node image contains kind's release in this file (kind, `pkg/build/nodeimage`).
        image: &["/kind/version"],
        ..managed(Distro::Kind, "kind", &["kind://"])
    },
    // The directory of minikube's kubelet.
    managed(Distro::Minikube, "minikube", &["/var/lib/minikube/"]),
    DistroSpec {
        // The image builder writes this file on every operating system (AgentBaker, `vhdbuilder`).
        image: &["/opt/azure/vhd-install.complete"],
        ..managed(Distro::Aks, "aks", &["kubernetes.azure.com/"])
    },
    DistroSpec {
        platform: Some("platform:al2023"),
        image: &["/usr/bin/nodeadm"],
        // nodeadm writes the file from the node's configuration (amazon-eks-ami, `nodeadm/internal/containerd`).
        rewritten: true,
        ..managed(Distro::EksAl2023, "eks-al2023", &["/etc/eks/"])
    },
    DistroSpec {
        // AL2, and Canonical's Ubuntu for EKS: a script runs once, at the first boot.
        image: &["/etc/eks/bootstrap.sh"],
        ..managed(
            Distro::Eks,
            "eks",
            &["/etc/eks/", "/etc/kubernetes/kubelet/kubelet-config.json"],
        )
    },
    // Only on Ubuntu: the row of COS comes first.
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
