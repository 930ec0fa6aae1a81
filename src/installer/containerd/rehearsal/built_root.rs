//! Builds the root directory of a rehearsal: an empty tmpfs that receives what containerd needs for a start. Runs in the process that has
//! namespaces of its own, and chooses no path: the parent process does.
//!
//! Regular files are copied or mounted one by one, never a directory of the node. So no socket, FIFO or device below a directory of the
//! node is reachable, and none that is created later.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};
use serde::{Deserialize, Serialize};

use super::network;
use crate::installer::host::HostRoot;
use crate::installer::host::path::parent_directory;

/// The contents of the root, and the process to start in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BuiltRoot {
    /// Path of the host's root directory, as Farrier sees it.
    pub(super) host: PathBuf,
    /// Path of containerd's program on the host.
    pub(super) program: String,
    /// Its arguments; the first is its name.
    pub(super) arguments: Vec<String>,
    /// Its environment.
    pub(super) environment: BTreeMap<String, String>,
    /// Its working directory, at which relative paths in its arguments start.
    pub(super) directory: String,
    /// Path of the CRI socket on the host.
    pub(super) socket: String,
    /// Directories that must exist.
    pub(super) directories: Vec<String>,
    /// Programs to mount, which only root can replace.
    pub(super) programs: Vec<String>,
    /// Libraries to mount.
    pub(super) libraries: Vec<String>,
    /// Configuration files, each with its text; without a text, the file is absent.
    pub(super) files: BTreeMap<String, Option<String>>,
    /// Files and directories to copy, as far as they exist.
    pub(super) copied: Vec<String>,
    /// Directories whose contents are not copied.
    pub(super) emptied: Vec<String>,
    /// Whether the host has cgroup v2 alone.
    pub(super) is_cgroup2: bool,
}

/// Where the former root is while the new one is built.
const FORMER: &str = "/.host";

/// Directory that the new root is mounted over, before it becomes the root. Every host and every container has it.
const MOUNT_POINT: &str = "/sys";

/// Limits of the new root, which is memory of the Job. containerd writes less than a megabyte at its start.
const ROOT_OPTIONS: &str = "mode=755,size=96m,nr_inodes=64k";

/// The only devices.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Files and directories to copy, at most. `/etc` of a node has some 2,000.
const MAX_COPIED: usize = 20_000;
/// Bytes to copy, at most. `/etc` of a node has some megabytes.
const MAX_COPIED_BYTES: u64 = 32 << 20;
/// Bytes of a file to copy, at most. A larger one is mounted, which costs no memory.
const MAX_COPIED_FILE: u64 = 256 << 10;
/// Mounted files, at most: a mount takes longer than a copy of a small file.
const MAX_MOUNTED: usize = 512;
/// Directories in each other, at most.
const MAX_DEPTH: usize = 32;
/// Symlinks that are followed in one path, at most, as in the kernel.
const MAX_SYMLINKS: usize = 40;

/// Why the root can't be built, as a sentence.
type Result<T> = std::result::Result<T, String>;

fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("failed to {what}: {error}")
}

/// Makes the built root the root of this process, without any access to the former one. The process must have a mount namespace, a PID
/// namespace and a network namespace of its own.
pub(super) fn enter(built: &BuiltRoot) -> Result<()> {
    let none = None::<&str>;
    // Before any other mount: a shared mount would appear on the node.
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .map_err(failed("make all mounts private"))?;
    mount_new("tmpfs", MOUNT_POINT, MsFlags::empty(), Some(ROOT_OPTIONS))?;
    chdir(MOUNT_POINT).map_err(failed("enter the new root"))?;
    let former = &FORMER[1..];
    fs::create_dir(former).map_err(failed("create a directory for the former root"))?;
    pivot_root(".", former)
        .and_then(|()| chdir("/"))
        .map_err(failed("change the root"))?;
    create_directory("/proc")?;
    mount_new("proc", "/proc", MsFlags::MS_NOEXEC, None)?;
    let host = built.host.strip_prefix("/").unwrap_or(&built.host);
    let host = HostRoot::open(&Path::new(FORMER).join(host)).map_err(|error| error.to_string())?;
    Builder {
        host: &host,
        copied: 0,
        bytes: 0,
        mounted: 0,
    }
    .build(built)?;
    drop(host);
    network::set_up()?;
    restrict_sysctl()?;
    umount2(FORMER, MntFlags::MNT_DETACH).map_err(failed("detach the former root"))?;
    fs::remove_dir(FORMER).map_err(failed("remove the directory of the former root"))
}

/// Mounts a new file system.
fn mount_new(kind: &str, target: &str, more: MsFlags, options: Option<&str>) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | more;
    mount(Some(kind), target, Some(kind), flags, options)
        .map_err(failed(format_args!("mount {kind} at {target}")))
}

/// Mounts an open file at `target` with these flags.
fn mount_file(file: &OwnedFd, target: &str, flags: MsFlags) -> Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    bind(&source, target, flags)
}

/// Mounts `source` at `target` with these flags, without the mounts below it.
fn bind(source: &str, target: &str, flags: MsFlags) -> Result<()> {
    let none = None::<&str>;
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)
        // The first call ignores all other flags (mount(2)).
        .and_then(|()| mount(none, target, none, again, none))
        .map_err(failed(format_args!("mount {target}")))
}

fn create_directory(path: &str) -> Result<()> {
    fs::create_dir_all(path).map_err(failed(format_args!("create the directory {path}")))
}

/// Makes the settings of the kernel read-only, as some of them are of the whole node.
fn restrict_sysctl() -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    bind("/proc/sys", "/proc/sys", flags)
}

struct Builder<'a> {
    host: &'a HostRoot,
    copied: usize,
    bytes: u64,
    mounted: usize,
}

impl Builder<'_> {
    fn build(&mut self, built: &BuiltRoot) -> Result<()> {
        mount_system(built.is_cgroup2)?;
        mount_devices()?;
        for directory in built.directories.iter().chain([&built.directory]) {
            let directory = self.resolve(directory)?;
            create_directory(&directory)?;
        }
        let mut absent = Vec::new();
        for path in &built.emptied {
            absent.push(self.resolve(path)?);
        }
        for (path, text) in &built.files {
            let target = self.resolve(path)?;
            match text {
                Some(text) => {
                    create_directory(parent_directory(&target))?;
                    fs::write(&target, text).map_err(failed(format_args!("write {target}")))?;
                }
                None => absent.push(target),
            }
        }
        self.mount_program(&built.program)?;
        for program in &built.programs {
            // A shim that is absent, or that others can replace, is none for this start.
            let _ = self.mount_program(program);
        }
        for library in &built.libraries {
            self.mount_library(library)?;
        }
        for path in &built.copied {
            let Ok(target) = self.resolve(path) else {
                continue;
            };
            let source = self.host.path().join(&target[1..]);
            self.copy(&source, Path::new(&target), &absent, 0);
        }
        Ok(())
    }

    /// The path on the host without symlinks. Each symlink on the way is created here with the same target.
    fn resolve(&self, path: &str) -> Result<String> {
        let unreadable =
            |error: &dyn std::fmt::Display| format!("failed to follow {path}: {error}");
        let mut remaining: VecDeque<String> = components(path).collect();
        let (mut here, mut followed) = (String::new(), 0);
        while let Some(name) = remaining.pop_front() {
            if name == ".." {
                here.truncate(here.rfind('/').unwrap_or_default());
                continue;
            }
            let next = format!("{here}/{name}");
            let target = self.host.symlink_target(&next);
            let Some(target) = target.map_err(|error| unreadable(&error))? else {
                here = next;
                continue;
            };
            followed += 1;
            if followed > MAX_SYMLINKS {
                return Err(unreadable(&Errno::ELOOP));
            }
            create_directory(if here.is_empty() { "/" } else { &here })?;
            match symlink(&target, &next) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unreadable(&error)),
            }
            if target.starts_with('/') {
                here.clear();
            }
            for name in components(&target).rev() {
                remaining.push_front(name);
            }
        }
        if here.is_empty() {
            here.push('/');
        }
        if Path::new(&here).starts_with(FORMER) {
            return Err(unreadable(&"the path is in use"));
        }
        Ok(here)
    }

    /// Mounts a program that only root can replace.
    fn mount_program(&mut self, path: &str) -> Result<()> {
        let opened = self.host.open_program(path);
        let opened = opened.map_err(failed(format_args!("open {path}")))?;
        self.mount_at(path, &opened.into_file())
    }

    fn mount_library(&mut self, path: &str) -> Result<()> {
        match self.host.open_file(path) {
            Ok(Some(file)) => self.mount_at(path, &file.into()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Mounts the opened file of the host at its path, read-only.
    fn mount_at(&mut self, path: &str, file: &OwnedFd) -> Result<()> {
        let target = self.resolve(path)?;
        create_directory(parent_directory(&target))?;
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        if self.host.mount_of(path).is_ok_and(|mount| mount.no_exec) {
            flags |= MsFlags::MS_NOEXEC;
        }
        self.mount_new_file(file, &target, flags)
    }

    /// Mounts `file` at `target`, unless something is there already.
    fn mount_new_file(&mut self, file: &OwnedFd, target: &str, flags: MsFlags) -> Result<()> {
        if self.mounted >= MAX_MOUNTED {
            return Err(format!("more than {MAX_MOUNTED} files would be mounted"));
        }
        match File::create_new(target) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(failed(format_args!("create {target}"))(error)),
        }
        self.mounted += 1;
        mount_file(file, target, flags)
    }

    /// Copies a file, or a directory with its regular files and symlinks. Best effort within the limits: a start that lacks a file here
    /// fails with the host's present configuration, too, and then says nothing.
    fn copy(&mut self, source: &Path, target: &Path, absent: &[String], depth: usize) {
        let is_absent = absent.iter().any(|absent| Path::new(absent) == target);
        if is_absent || self.copied >= MAX_COPIED || depth > MAX_DEPTH {
            return;
        }
        self.copied += 1;
        let Ok(metadata) = source.symlink_metadata() else {
            return;
        };
        if let Some(parent) = target.parent().filter(|_| depth == 0)
            && fs::create_dir_all(parent).is_err()
        {
            return;
        }
        if metadata.is_symlink() {
            if let Ok(link) = fs::read_link(source) {
                let _ = symlink(link, target);
            }
        } else if metadata.is_file() {
            let _ = self.copy_file(source, target);
        } else if metadata.is_dir() && fs::create_dir_all(target).is_ok() {
            for entry in fs::read_dir(source).into_iter().flatten().flatten() {
                let target = target.join(entry.file_name());
                self.copy(&entry.path(), &target, absent, depth + 1);
            }
        }
    }

    fn copy_file(&mut self, source: &Path, target: &Path) -> Result<()> {
        let open = File::options()
            .read(true)
            // The file may have been replaced by a FIFO or a symlink.
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits())
            .open(source);
        let file = open.map_err(failed("open a file"))?;
        let metadata = file.metadata().map_err(failed("read metadata"))?;
        if !metadata.is_file() {
            return Err("not a regular file".to_owned());
        }
        if metadata.len() > MAX_COPIED_FILE {
            let target = target.to_str().ok_or("not UTF-8")?;
            let flags =
                MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            return self.mount_new_file(&file.into(), target, flags);
        }
        if self.bytes + metadata.len() > MAX_COPIED_BYTES {
            return Err("too many bytes".to_owned());
        }
        let mut new = File::create_new(target).map_err(failed("create a file"))?;
        let copied = io::copy(&mut file.take(MAX_COPIED_FILE), &mut new);
        self.bytes += copied.map_err(failed("copy a file"))?;
        Ok(())
    }
}

/// The names in a path.
fn components(path: &str) -> impl DoubleEndedIterator<Item = String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.map(str::to_owned)
}

/// Mounts `/sys` read-only, and of the cgroups only what tells their version.
fn mount_system(is_cgroup2: bool) -> Result<()> {
    create_directory("/sys")?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
    mount_new("sysfs", "/sys", flags, None)?;
    // A kernel without cgroups has no such directory.
    if !Path::new("/sys/fs/cgroup").exists() {
        return Ok(());
    }
    let kind = if is_cgroup2 { "cgroup2" } else { "tmpfs" };
    mount_new(kind, "/sys/fs/cgroup", flags, None)
}

fn mount_devices() -> Result<()> {
    create_directory("/dev")?;
    for name in DEVICES {
        let (source, target) = (format!("{FORMER}/dev/{name}"), format!("/dev/{name}"));
        if !Path::new(&source).exists() {
            continue;
        }
        File::create_new(&target).map_err(failed(format_args!("create {target}")))?;
        bind(&source, &target, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    Ok(())
}
