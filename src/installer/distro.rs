//! The table of distributions: how each is told, where its containerd stands, and whether this release changes it. Pure.
//!
//! A new distribution is a variant of [`Distro`] and a row of [`TABLE`]; nothing else names one.

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
    /// Container-Optimized OS.
    Cos,
    /// CRI-O in containerd's place.
    CriO,
}

/// One row of the table.
#[derive(Debug)]
pub struct DistroSpec {
    /// Which one.
    pub distro: Distro,
    /// Its word in reports.
    pub word: &'static str,
    /// Parts of the path of the running containerd that only this distribution has.
    program_markers: &'static [&'static str],
    /// Values of `ID` or `ID_LIKE` in `os-release`.
    os_ids: &'static [&'static str],
    /// Files that count only where no containerd runs or is installed: a former distribution's leftovers must not deceive.
    files: &'static [&'static str],
    /// Why this release does not change it, and what works there; `None` where it does.
    pub refusal: Option<&'static str>,
    /// The root configuration file where the daemon's command line names none.
    pub config: &'static str,
    /// The CRI's socket where the daemon's command line names none.
    pub socket: &'static str,
    /// The unit, where the process does not say.
    pub unit: &'static str,
    /// Where binaries can be kept and executed.
    pub folder: &'static str,
}

/// Where containerd's own packages put things.
const STOCK: DistroSpec = DistroSpec {
    distro: Distro::Systemd,
    word: "systemd",
    program_markers: &[],
    os_ids: &[],
    files: &[],
    refusal: None,
    config: "/etc/containerd/config.toml",
    socket: "/run/containerd/containerd.sock",
    unit: "containerd.service",
    folder: FOLDER,
};

/// All of them; the first row that fits counts, and the last one fits always.
pub const TABLE: &[DistroSpec] = &[
    DistroSpec {
        distro: Distro::K3s,
        word: "k3s",
        program_markers: &["/rancher/k3s/"],
        files: &["/usr/local/bin/k3s", "/run/k3s/containerd/containerd.sock"],
        refusal: Some(
            "this node runs k3s, whose containerd configuration is a template; list the shims in its config.toml.tmpl",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Rke2,
        word: "rke2",
        program_markers: &["/rancher/rke2/"],
        files: &[
            "/usr/local/bin/rke2",
            "/var/lib/rancher/rke2/bin/containerd",
        ],
        refusal: Some(
            "this node runs RKE2, whose containerd configuration is a template; list the shims in its config.toml.tmpl",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::MicroK8s,
        word: "microk8s",
        program_markers: &["/snap/microk8s/"],
        files: &["/snap/microk8s/current/bin/containerd"],
        refusal: Some(
            "this node runs MicroK8s, whose containerd configuration is a template; list the shims in its containerd-template.toml",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::K0s,
        word: "k0s",
        program_markers: &["/var/lib/k0s/"],
        files: &["/var/lib/k0s/bin/containerd"],
        refusal: Some(
            "this node runs k0s, whose containerd reads snippets; put one into /etc/k0s/containerd.d",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Talos,
        word: "talos",
        os_ids: &["talos"],
        refusal: Some(
            "this node runs Talos Linux, which can't be changed from a pod; add the shim as a system extension",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Bottlerocket,
        word: "bottlerocket",
        os_ids: &["bottlerocket"],
        refusal: Some(
            "this node runs Bottlerocket, whose file system can't be changed; use a variant that carries the shim",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::Cos,
        word: "cos",
        os_ids: &["cos"],
        refusal: Some(
            "this node runs Container-Optimized OS, where nothing under /opt can be executed; use a node image with containerd from a package",
        ),
        ..STOCK
    },
    DistroSpec {
        distro: Distro::CriO,
        word: "crio",
        files: &["/run/crio/crio.sock", "/var/run/crio/crio.sock"],
        refusal: Some(
            "this node runs CRI-O and no containerd; declare the runtime in /etc/crio/crio.conf.d",
        ),
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
    /// Whether a containerd is installed where packages put it, for a host that runs none now.
    pub installed: bool,
    /// The text of `/etc/os-release`.
    pub os_release: &'a str,
}

/// The row that fits a host; `present` says whether a marker file is there.
pub fn detect(evidence: &Evidence<'_>, present: impl Fn(&str) -> bool) -> &'static DistroSpec {
    let ids = os_ids(evidence.os_release);
    let by_files = evidence.program.is_none() && !evidence.installed;
    let fits = |row: &&DistroSpec| {
        let program = evidence.program.unwrap_or_default();
        row.program_markers
            .iter()
            .any(|marker| program.contains(marker))
            || row.os_ids.iter().any(|id| ids.contains(id))
            || by_files && row.files.iter().any(|file| present(file))
    };
    TABLE.iter().find(fits).unwrap_or(&STOCK)
}

/// The values of `ID` and `ID_LIKE` (os-release(5)).
fn os_ids(os_release: &str) -> Vec<&str> {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_whitespace())
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::debian(Some("/usr/bin/containerd"), "ID=debian\n", &[], Distro::Debian)]
    #[case::mint(Some("/usr/bin/containerd"), "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", &[], Distro::Debian)]
    #[case::rocky(Some("/usr/bin/containerd"), "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", &[], Distro::Rpm)]
    #[case::unknown(Some("/opt/bin/containerd"), "ID=nixos\n", &[], Distro::Systemd)]
    #[case::k3s(Some("/var/lib/rancher/k3s/data/abc/bin/containerd"), "ID=debian\n", &[], Distro::K3s)]
    #[case::stale_k3s(Some("/usr/bin/containerd"), "ID=debian\n", &["/usr/local/bin/k3s"], Distro::Debian)]
    #[case::stopped_k3s(None, "ID=debian\n", &["/usr/local/bin/k3s"], Distro::K3s)]
    #[case::talos(Some("/bin/containerd"), "ID=talos\n", &[], Distro::Talos)]
    #[case::crio(None, "ID=fedora\n", &["/run/crio/crio.sock"], Distro::CriO)]
    fn a_host_is_told_by_what_runs_on_it(
        #[case] program: Option<&str>,
        #[case] os_release: &str,
        #[case] files: &[&str],
        #[case] expected: Distro,
    ) {
        let evidence = Evidence {
            program,
            installed: false,
            os_release,
        };
        let row = detect(&evidence, |file| files.contains(&file));
        assert_eq!(row.distro, expected);
    }
}
