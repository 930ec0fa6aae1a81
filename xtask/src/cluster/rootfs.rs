//! Root file systems: the one that all nodes start from, made once by debootstrap, and each node's copy with what it alone has.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::NodeSetup;
use super::certificates::kubeconfig;
use super::names;
use super::state::{NodeState, State};
use crate::cache::{Cache, remove_file, remove_tree};
use crate::digest::sha256;
use crate::process;
use crate::progress::Progress;
use crate::tools::ContainerdVersion;

/// The Debian release that nodes run.
const RELEASE: &str = "bookworm";

/// Used where this machine's own package sources name no Debian mirror.
const MIRROR: &str = "http://deb.debian.org/debian";

/// What a node has besides Debian's smallest system: an init, what the kubelet and containerd call, and libseccomp for shims.
const PACKAGES: [&str; 15] = [
    "ca-certificates",
    "conntrack",
    "containernetworking-plugins",
    "dbus",
    "ethtool",
    "iproute2",
    "iptables",
    "kmod",
    "libseccomp2",
    "mount",
    "procps",
    "runc",
    "socat",
    "systemd",
    "systemd-sysv",
];

/// What debootstrap leaves and no node reads; less to copy per node.
const DEAD_WEIGHT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
];

/// Units that would change the kernel under this machine, which nodes share with it.
const MASKED: [&str; 2] = ["systemd-modules-load.service", "systemd-sysctl.service"];

/// The file system that all nodes start from.
///
/// # Errors
/// When debootstrap fails.
pub fn base(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    // Twelve digits tell package lists apart.
    let key = &sha256(PACKAGES.join(" ").as_bytes())[..12];
    cache.publish(&format!("rootfs/{RELEASE}-{key}"), |directory| {
        progress.step(
            format!("making the nodes' file system (Debian {RELEASE})"),
            || bootstrap(directory),
        )
    })
}

fn bootstrap(directory: &Path) -> Result<()> {
    let mut command = Command::new("unshare");
    // In namespaces of its own, so that nothing it mounts or starts outlives it.
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .args(["debootstrap", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(RELEASE)
        .arg(directory)
        .arg(mirror().unwrap_or_else(|| MIRROR.to_owned()));
    process::run(&mut command)?;
    for path in DEAD_WEIGHT {
        remove_tree(&directory.join(path))?;
    }
    // Copies of one machine id would be one machine to systemd and the kubelet: each node makes its own.
    remove_file(&directory.join("var/lib/dbus/machine-id"))?;
    fs::write(directory.join("etc/machine-id"), "")?;
    let wanted = directory.join("etc/systemd/system/multi-user.target.wants");
    for unit in ["e2scrub_reap.service", "remote-fs.target"] {
        remove_file(&wanted.join(unit))?;
    }
    fs::create_dir_all(directory.join("opt/cni"))?;
    fs::create_dir_all(directory.join("opt/images"))?;
    symlink("/usr/lib/cni", directory.join("opt/cni/bin"))?;
    Ok(())
}

/// The Debian mirror in this machine's own package sources.
fn mirror() -> Option<String> {
    let apt = Path::new("/etc/apt");
    let parts = fs::read_dir(apt.join("sources.list.d")).ok();
    let mut files: Vec<PathBuf> = parts
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    std::iter::once(apt.join("sources.list"))
        .chain(files)
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
}

/// The first mirror of Debian itself, neither its security updates nor somebody's packages for Debian, in a file as sources.list(5)
/// has it in either form.
fn mirror_in(sources: &str) -> Option<String> {
    let lines: Vec<&str> = sources
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .collect();
    // A line that starts with `deb` is an entry; in the other form a paragraph is one.
    let (one_line, fields): (Vec<&str>, Vec<&str>) =
        lines.into_iter().partition(|line| line.starts_with("deb"));
    let fields = fields.join("\n");
    one_line
        .into_iter()
        .chain(fields.split("\n\n"))
        .find_map(|entry| {
            let words = || entry.split_whitespace();
            // Others call their component something else: docker's, which also ends in `/debian`, is `stable`.
            let mirror = words()
                .map(|word| word.trim_end_matches('/'))
                .find(|word| word.starts_with("http") && word.ends_with("/debian"));
            mirror.filter(|_| words().any(|word| word == "main"))
        })
        .map(str::to_owned)
}

/// What a node's file system is made of.
pub struct Parts<'a> {
    /// The base file system.
    pub base: &'a Path,
    /// The directory with the node's containerd.
    pub containerd: &'a Path,
    /// The sandbox image.
    pub pause: &'a Path,
    /// The directory with `ca.crt` and the node's certificate, `<name>.crt` and `<name>.key`.
    pub certificates: &'a Path,
}

/// Makes the root file system of the node with this number.
///
/// # Errors
/// When it can't be written.
pub fn create(state: &State, node: &NodeState, number: u8, parts: &Parts<'_>) -> Result<()> {
    let root = &node.root;
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent)?;
    }
    process::run(
        Command::new("cp")
            .args(["--archive", "--reflink=auto"])
            .args([parts.base, root]),
    )?;
    let install = |from: &Path, to: &str| {
        let to = root.join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, &to)
            .map(drop)
            .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))
    };
    for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        install(
            &parts.containerd.join(program),
            &format!("usr/local/bin/{program}"),
        )?;
    }
    install(&state.binaries.kubelet, "usr/local/bin/kubelet")?;
    install(parts.pause, "opt/images/pause.tar")?;
    install(&parts.certificates.join("ca.crt"), "etc/kubernetes/ca.crt")?;
    for kind in ["crt", "key"] {
        install(
            &parts.certificates.join(format!("{}.{kind}", node.name)),
            &format!("etc/kubernetes/node.{kind}"),
        )?;
    }
    for (path, content) in files(state, node, number) {
        write(&root.join(path), &content)?;
    }
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    let wanted = units.join("multi-user.target.wants");
    for unit in ["containerd", "pause-image", "cluster-ip", "kubelet"] {
        let unit = format!("{unit}.service");
        symlink(format!("../{unit}"), wanted.join(unit))?;
    }
    Ok(())
}

/// The text files that only this node has.
fn files(state: &State, node: &NodeState, number: u8) -> Vec<(&'static str, String)> {
    let api_server = format!("{}:{}", state.control_plane_ip, names::API_PORT);
    let local = local_import(node.containerd).unwrap_or_default();
    let mut files = vec![
        ("etc/hostname", format!("{}\n", node.name)),
        (
            "etc/hosts",
            format!("127.0.0.1 localhost\n{} {}\n", node.ip, node.name),
        ),
        (
            "etc/resolv.conf",
            "# No name server: this network has none.\n".to_owned(),
        ),
        (
            "etc/kubernetes/kubeconfig",
            kubeconfig(
                Path::new("/etc/kubernetes"),
                "node",
                &format!("https://{api_server}"),
            ),
        ),
        (
            "etc/kubernetes/kubelet.yaml",
            include_str!("../../node/kubelet.yaml").to_owned(),
        ),
        (
            "etc/cni/net.d/10-pods.conflist",
            include_str!("../../node/pods.conflist").replace("@PODS@", &names::pods(number)),
        ),
        (
            "etc/systemd/system/containerd.service",
            include_str!("../../node/containerd.service").to_owned(),
        ),
        (
            "etc/systemd/system/pause-image.service",
            include_str!("../../node/pause-image.service").replace("@LOCAL@", local),
        ),
        (
            "etc/systemd/system/cluster-ip.service",
            include_str!("../../node/cluster-ip.service")
                .replace("@SERVICE_IP@", &names::SERVICE_IP.to_string())
                .replace("@API_SERVER@", &api_server),
        ),
        (
            "etc/systemd/system/kubelet.service",
            include_str!("../../node/kubelet.service")
                .replace("@NAME@", &node.name)
                .replace("@IP@", &node.ip.to_string()),
        ),
    ];
    files.extend(containerd_files(node.containerd, node.setup));
    files
}

/// containerd's configuration, as the node's administrator wrote it.
fn containerd_files(
    containerd: ContainerdVersion,
    setup: NodeSetup,
) -> Vec<(&'static str, String)> {
    let (main, drop_in) = if containerd.is_1() {
        (
            include_str!("../../node/containerd-1.toml"),
            include_str!("../../node/drop-in-1.toml"),
        )
    } else {
        (
            include_str!("../../node/containerd-2.toml"),
            include_str!("../../node/drop-in-2.toml"),
        )
    };
    let path = "etc/containerd/config.toml";
    match setup {
        NodeSetup::Plain => vec![(path, main.replace("@IMPORTS@\n", ""))],
        NodeSetup::DropIn => vec![
            (
                path,
                main.replace("@IMPORTS@", "imports = [\"/etc/containerd/conf.d/*.toml\"]"),
            ),
            ("etc/containerd/conf.d/10-site.toml", drop_in.to_owned()),
        ],
    }
}

/// The option of `ctr images import` that unpacks with the snapshotter that was named: 2.x needs it, 1.6 doesn't know it.
#[must_use]
pub fn local_import(containerd: ContainerdVersion) -> Option<&'static str> {
    (!containerd.is_1()).then_some("--local")
}

fn write(path: &Path, content: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Never through a link: debootstrap makes some of these point out of the node.
    remove_file(path)?;
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_mirror_is_debians_in_both_source_formats() {
        let cases = [
            (
                "Types: deb\nURIs: http://security.debian.org/debian-security\nComponents: main\n\nTypes: deb\nURIs: https://mirror.example/debian/\nComponents: main\n",
                Some("https://mirror.example/debian"),
            ),
            (
                "# deb http://old.example/debian stable main\ndeb [arch=amd64] http://deb.debian.org/debian bookworm main\n",
                Some("http://deb.debian.org/debian"),
            ),
            ("deb http://archive.ubuntu.com/ubuntu noble main\n", None),
            (
                "deb https://download.example/linux/debian bookworm stable\ndeb http://mirror.example/debian bookworm main\n",
                Some("http://mirror.example/debian"),
            ),
            (
                "URIs: https://download.example/linux/debian\nComponents: stable\n",
                None,
            ),
            ("", None),
        ];
        for (sources, expected) in cases {
            assert_eq!(mirror_in(sources).as_deref(), expected, "{sources}");
        }
    }

    #[test]
    fn a_plain_setup_has_one_file_without_imports_and_a_drop_in_setup_two() {
        for containerd in ContainerdVersion::ALL {
            let plain = containerd_files(containerd, NodeSetup::Plain);
            assert_eq!(plain.len(), 1);
            assert!(!plain[0].1.contains("imports") && !plain[0].1.contains('@'));
            let drop_in = containerd_files(containerd, NodeSetup::DropIn);
            assert_eq!(drop_in.len(), 2);
            assert!(drop_in[0].1.contains("\nimports = [") && !drop_in[0].1.contains('@'));
        }
    }
}
