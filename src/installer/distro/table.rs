//! The rows of the table of distributions. How a row is found is decided in the file above; nothing else stands here.

use std::time::Duration;

use super::{Distro, DistroSpec, Edited, Restart};
use crate::installer::state::FOLDER;

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
    word: "systemd",
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
    folders: &[FOLDER],
};

/// k3s; RKE2 has the same agent in it.
const K3S: DistroSpec = DistroSpec {
    distro: Distro::K3s,
    word: "k3s",
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

/// What nobody changes from a pod.
const fn detect_only(distro: Distro, word: &'static str, refusal: &'static str) -> DistroSpec {
    DistroSpec {
        distro,
        word,
        refusal: Some(refusal),
        ..STOCK
    }
}

/// Who runs containerd as a package has it, told by what is in the command line of its kubelet.
const fn managed(
    distro: Distro,
    word: &'static str,
    kubelet: &'static [&'static str],
) -> DistroSpec {
    DistroSpec {
        distro,
        word,
        kubelet,
        ..STOCK
    }
}

/// All of them; the first row that fits counts, and the last one fits always.
pub const TABLE: &[DistroSpec] = &[
    DistroSpec {
        distro: Distro::K3d,
        word: "k3d",
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
        word: "rke2",
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
        word: "microk8s",
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
        folders: &["/var/snap/microk8s/common/farrier"],
        ..STOCK
    },
    DistroSpec {
        distro: Distro::K0s,
        word: "k0s",
        paths: &["/var/lib/k0s", "/etc/k0s"],
        units: &["k0sworker.", "k0scontroller."],
        programs: &["/usr/local/bin/k0s", "/usr/bin/k0s"],
        data: &["/var/lib/k0s/bin/containerd", "/etc/k0s/containerd.toml"],
        config: "/etc/k0s/containerd.toml",
        edited: Edited::Snippets {
            folder: "containerd.d",
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
        endpoint: Some("/run/crio"),
        programs: &["/usr/bin/crio"],
        data: &["/run/crio/crio.sock", "/var/run/crio/crio.sock"],
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
        rewritten: true,
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Flatcar,
        word: "flatcar",
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
