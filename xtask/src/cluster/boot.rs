//! From a process of xtask to a node's systemd: runs as two hidden subcommands, since each step changes the process that takes it.
//!
//! `launch` joins the node's cgroups and network and makes its other namespaces; its child, process 1 of these, runs `init`, mounts
//! what a machine has, and becomes systemd.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{pivot_root, sethostname};

use super::cgroups::{self, Kind, Layout};
use super::network;
use super::state::NodeState;
use crate::process;

/// Hidden subcommand that launches a node.
pub const LAUNCH: &str = "node-launch";

/// Hidden subcommand that becomes a node's process 1.
pub const INIT: &str = "node-init";

/// Device nodes of a node: name, major, minor. `kmsg` is a null device: the kubelet wants to open it, and the kernel's log is not the
/// node's.
const DEVICES: [(&str, u64, u64); 7] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("kmsg", 1, 3),
];

/// Boots a node whose network, cgroups and file system stand, and returns its process 1, as this machine numbers it.
///
/// # Errors
/// When it doesn't get as far as systemd; what systemd itself does is in the console's log.
pub fn boot(node: &NodeState, console: &Path) -> Result<u32> {
    let pid = process::run(
        Command::new(process::own_program())
            .arg(LAUNCH)
            .args([&node.name, &node.netns])
            .args([&node.root, console]),
    )?;
    pid.trim()
        .parse()
        .with_context(|| format!("node {} did not start: {pid:?}", node.name))
}

/// Starts process 1 of the node `name` and prints its number. The process that calls this has no other threads and ends right after.
///
/// # Errors
/// When the kernel refuses a namespace or a cgroup.
pub fn launch(name: &str, netns: &str, root: &Path, console: &Path) -> Result<u32> {
    Layout::here()?.join(netns)?;
    let namespace = fs::File::open(network::path(netns))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).context("failed to enter the node's network")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("failed to make the node's namespaces")?;
    let log = fs::File::create(console)?;
    let child = Command::new(process::own_program())
        .args([INIT, name])
        .arg(root)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    Ok(child.id())
}

/// Mounts what a machine has and becomes systemd.
///
/// # Errors
/// When a mount fails. On success this process is systemd and the function does not return.
pub fn init(name: &str, root: &Path) -> Result<()> {
    // Read before anything is mounted over it.
    let layout = Layout::here()?;
    let none = MsFlags::empty();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some(root),
        root,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    mount_at(root, "proc", "proc", none, None)?;
    mount_at(root, "sys", "sysfs", none, None)?;
    mount_at(root, "run", "tmpfs", none, Some("mode=755"))?;
    mount_at(root, "tmp", "tmpfs", none, Some("mode=1777"))?;
    devices(root)?;
    mount_cgroups(root, &layout)?;
    sethostname(name)?;
    std::env::set_current_dir(root)?;
    // The old root ends up on top of the new one and is taken off from there (pivot_root(2)).
    pivot_root(".", ".").context("failed to change to the node's root")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>)?;
    let error = Command::new("/sbin/init")
        .env_clear()
        .envs([
            // systemd leaves alone what only the machine's own may touch (systemd(1), $container).
            ("container", "other"),
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
        ])
        .exec();
    Err(error).context("failed to run the node's /sbin/init")
}

fn devices(root: &Path) -> Result<()> {
    mount_at(root, "dev", "tmpfs", MsFlags::empty(), Some("mode=755"))?;
    let dev = root.join("dev");
    // The mode below is what counts, not the caller's mask.
    nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&dev.join(name), SFlag::S_IFCHR, mode, makedev(major, minor))
            .with_context(|| format!("failed to make the device {name}"))?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    for directory in ["pts", "shm"] {
        fs::create_dir(dev.join(directory))?;
    }
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    mount_at(root, "dev/pts", "devpts", MsFlags::empty(), options)?;
    mount_at(
        root,
        "dev/shm",
        "tmpfs",
        MsFlags::empty(),
        Some("mode=1777"),
    )?;
    for (target, link) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("fd/0", "stdin"),
        ("fd/1", "stdout"),
        ("fd/2", "stderr"),
    ] {
        symlink(target, dev.join(link))?;
    }
    Ok(())
}

/// Mounts the node's cgroups where it looks for them; its namespace shows it its own as the root.
fn mount_cgroups(root: &Path, layout: &Layout) -> Result<()> {
    let none = MsFlags::empty();
    let top = cgroups::ROOT.trim_start_matches('/');
    let hierarchies = match layout {
        Layout::Unified { mount: _ } => return mount_at(root, top, "cgroup2", none, None),
        Layout::Legacy { hierarchies } => hierarchies,
    };
    mount_at(root, top, "tmpfs", none, Some("mode=755"))?;
    for hierarchy in hierarchies {
        let (directory, filesystem, options) = match &hierarchy.kind {
            Kind::Unified => ("unified".to_owned(), "cgroup2", None),
            Kind::Named(name) => (name.clone(), "cgroup", Some(format!("none,name={name}"))),
            Kind::Controllers(names) => (names.join(","), "cgroup", Some(names.join(","))),
        };
        let at = format!("{top}/{directory}");
        fs::create_dir(root.join(&at))?;
        mount_at(root, &at, filesystem, none, options.as_deref())?;
        if let Kind::Controllers(names) = &hierarchy.kind
            && names.len() > 1
        {
            // containerd and runc look for each controller under its own name.
            for name in names {
                symlink(&directory, root.join(top).join(name))?;
            }
        }
    }
    Ok(())
}

fn mount_at(
    root: &Path,
    path: &str,
    filesystem: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    let target: PathBuf = root.join(path);
    mount(Some(filesystem), &target, Some(filesystem), flags, options)
        .with_context(|| format!("failed to mount {filesystem} on {}", target.display()))
}
