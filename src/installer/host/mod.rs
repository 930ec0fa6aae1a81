//! All access to the host's file system: paths are joined with the host's root and files are written only in this module. The callers
//! decide the contents.
//!
//! The kernel resolves every path inside the root (`openat2` with `RESOLVE_IN_ROOT`), so neither an absolute symlink nor `..` on the host
//! escapes from the root.

pub mod cpu;
pub mod exec;
pub mod lock;
mod mount;
pub mod obstacle;
pub mod owner;
pub mod path;
pub mod program;
pub(crate) mod times;
mod write;

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::fstatat;
use sha2::{Digest as _, Sha256};

use self::path::{file_name, parent_directory};
use crate::handoff::Sha256Digest;

/// Size limit in bytes for a file of `/proc`, `/etc/os-release` or `/etc/rc.conf`. All of these are far smaller.
pub(crate) const SMALL_FILE_LIMIT: u64 = 1 << 16;

/// Suffix of a new file until a rename gives it its final name. No `*.toml` glob of containerd's `imports` matches the suffix.
pub(crate) const NEW_SUFFIX: &str = ".farrier-new";

/// Suffix of the hard link that preserves a replaced file until the change is committed.
pub(crate) const OLD_SUFFIX: &str = ".farrier-old";

/// Symlinks that are followed before a path counts as a loop. The kernel's limit is 40, too (`path_resolution(7)`).
const MAX_SYMLINKS: usize = 40;

/// Size limit in bytes for a hashed file: a configuration, a shim or an artifact. Fetched artifacts have the same limit.
const MAX_HASHED: u64 = 512 << 20;

/// The kind of host to which a root belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A running host.
    Live,
    /// An image, or a host before its boot: no service is restarted, and no CRI request is sent.
    Image,
}

/// Why an operation on the host's file system failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("failed to {act} {path} on the host: {source}")]
    Io {
        /// The verb of the message, such as `read` or `set the mode of`.
        act: &'static str,
        /// Path on the host.
        path: String,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The root of the host can't be opened.
    #[error("failed to open {} as the root of the host: {source}", path.display())]
    Root {
        /// Path outside of the host.
        path: PathBuf,
        /// The error of the kernel.
        #[source]
        source: io::Error,
    },
    /// The system call by which every path of the host is resolved can't be used.
    #[error("failed to call openat2 (Linux 5.6 or later), which Farrier needs: {0}")]
    NoOpenat2(#[source] io::Error),
    /// A file is larger than its limit.
    #[error("{path} on the host is larger than {limit} bytes")]
    TooLarge {
        /// Path on the host.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file or a symlink's target is not UTF-8.
    #[error("{path} on the host is not UTF-8 text")]
    NotText {
        /// Path on the host.
        path: String,
    },
    /// The path of a file holds a directory, a FIFO, a socket or a device.
    #[error("{path} on the host is not a regular file")]
    NoFile {
        /// Path on the host.
        path: String,
    },
    /// A file changed between reading and writing.
    #[error("{path} on the host changed after Farrier read it")]
    Changed {
        /// Path on the host.
        path: String,
    },
    /// Another installer holds the lock of the host, and held it during the whole wait.
    #[error("another farrier has been changing this host for {0:?}")]
    Locked(Duration),
    /// The path of the lock file or of its directory holds something that another user may be able to lock.
    #[error("failed to lock this host: {path} is not {expected}")]
    UnsafeLock {
        /// Path on the host.
        path: &'static str,
        /// What the path must hold.
        expected: &'static str,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::TooLarge { .. } | Self::NotText { .. } => {
                Cow::Borrowed("check which program wrote the file")
            }
            Self::NoFile { .. } => {
                Cow::Borrowed("put a regular file at that path, or name another path")
            }
            Self::NoOpenat2(_) => Cow::Borrowed(
                "use a node with Linux 5.6 or later, and a container runtime whose seccomp filter allows openat2",
            ),
            Self::Changed { .. } => Cow::Borrowed("run farrier again"),
            Self::Locked(_) => Cow::Borrowed("wait for the end of the other run, or end that run"),
            Self::UnsafeLock { path, .. } => {
                Cow::Owned(format!("remove {path}, and run farrier again"))
            }
            Self::Root { .. } => Cow::Borrowed(
                "check that --host-root names the root directory of the host and that farrier may read it",
            ),
            Self::Io { source, .. } => Cow::Borrowed(hint(source)?),
        })
    }
}

/// The step by which an administrator corrects `error`; `None` for an error without a typical cause.
fn hint(error: &io::Error) -> Option<&'static str> {
    let help = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => {
            "check with lsattr that neither the path nor its directory is immutable"
        }
        Some(Errno::EACCES) => "run as root",
        Some(_) | None => return hint_for_writing(error),
    };
    Some(help)
}

/// As [`hint`], for a program that need not be root.
pub(crate) fn hint_for_writing(error: &io::Error) -> Option<&'static str> {
    // An error of the crate `tempfile` has the kind alone.
    let help = match error.kind() {
        ErrorKind::ReadOnlyFilesystem => "remount the file system read-write",
        ErrorKind::ResourceBusy => "unmount that path: a mount point can't be replaced",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space on the file system",
        ErrorKind::NotADirectory => "check that the parent of that path is a directory",
        _ => return None,
    };
    Some(help)
}

/// Result of an operation on the host's file system.
pub type Result<T> = std::result::Result<T, Error>;

/// The root of a host's file system: `/` on the node itself, `/host` in a Job, an unpacked image at build time.
#[derive(Debug)]
pub struct HostRoot {
    root: File,
    path: PathBuf,
}

/// A path, split for system calls that take a directory and the name of an entry.
struct Entry {
    directory: OwnedFd,
    name: String,
    path: String,
}

fn failed(act: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io {
        act,
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn failed_io(act: &'static str, path: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        act,
        path: path.to_owned(),
        source,
    }
}

impl HostRoot {
    /// Opens the host whose root directory is `path`. A relative path starts at the working directory of this process, which the programs
    /// of the host do not have.
    ///
    /// # Errors
    /// When `path` is not a directory or can't be opened, or the kernel has no `openat2`.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Root {
            path: path.to_owned(),
            source,
        };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let directory = File::options()
            .read(true)
            .custom_flags(OFlag::O_DIRECTORY.bits())
            .open(&absolute);
        let host = Self {
            root: directory.map_err(failed)?,
            path: absolute,
        };
        check_openat2(host.open_at("/", OFlag::O_PATH).err())?;
        Ok(host)
    }

    /// The root's path as this process sees it. Only for programs that run inside the root; files are opened with the other methods.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this root is the root of this process. A program of such a host runs without a change of the root.
    #[must_use]
    pub fn is_own_root(&self) -> bool {
        self.path == Path::new("/")
    }

    fn open_at(&self, path: &str, flags: OFlag) -> std::result::Result<OwnedFd, Errno> {
        // RESOLVE_IN_ROOT turns an absolute path into one below the root.
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(self.root.as_fd(), path, how)
    }

    fn try_entry(&self, path: &str) -> std::result::Result<Entry, Errno> {
        let parent = parent_directory(path);
        let directory = self.open_at(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Entry {
            directory,
            name: file_name(path).to_owned(),
            path: path.to_owned(),
        })
    }

    fn entry(&self, path: &str) -> Result<Entry> {
        self.try_entry(path)
            .map_err(failed("open the parent directory of", path))
    }

    /// As [`Self::entry`]; `None` if the parent directory does not exist.
    fn entry_in_directory(&self, path: &str) -> Result<Option<Entry>> {
        match self.try_entry(path) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(failed("open the parent directory of", path)(errno)),
        }
    }

    /// Opens a regular file for reading; `None` if nothing exists at `path`.
    ///
    /// # Errors
    /// When `path` is not a regular file or can't be opened.
    pub fn open_file(&self, path: &str) -> Result<Option<File>> {
        // O_NONBLOCK: opening a FIFO must not block.
        let fd = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(failed("open", path)(errno)),
        };
        let file = File::from(fd);
        let metadata = file
            .metadata()
            .map_err(failed_io("read the metadata of", path))?;
        if metadata.is_file() {
            Ok(Some(file))
        } else {
            Err(Error::NoFile {
                path: path.to_owned(),
            })
        }
    }

    /// Reads a file of at most `limit` bytes; `None` if nothing exists at `path`.
    ///
    /// # Errors
    /// When the file can't be read or is larger than `limit`.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(failed_io("read", path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge {
                path: path.to_owned(),
                limit,
            });
        }
        Ok(Some(bytes))
    }

    /// Reads a text file of at most `limit` bytes; `None` if nothing exists at `path`.
    ///
    /// # Errors
    /// When the file can't be read, is larger than `limit`, or is not UTF-8.
    pub fn read_text(&self, path: &str, limit: u64) -> Result<Option<String>> {
        self.read(path, limit)?
            .map(|bytes| {
                String::from_utf8(bytes).map_err(|_| Error::NotText {
                    path: path.to_owned(),
                })
            })
            .transpose()
    }

    /// The SHA-256 of a file; `None` if nothing exists at `path`.
    ///
    /// # Errors
    /// When the file can't be read or is larger than 512 MiB.
    pub fn digest(&self, path: &str) -> Result<Option<Sha256Digest>> {
        let Some(mut file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut hashed = 0;
        loop {
            let read = file.read(&mut buffer).map_err(failed_io("read", path))?;
            if read == 0 {
                return Ok(Some(hasher.into()));
            }
            hashed += read as u64;
            if hashed > MAX_HASHED {
                return Err(Error::TooLarge {
                    path: path.to_owned(),
                    limit: MAX_HASHED,
                });
            }
            hasher.update(&buffer[..read]);
        }
    }

    /// Whether anything exists at `path`. A symlink as the last component is not followed.
    ///
    /// # Errors
    /// When the metadata can't be read: the caller must not take the path for absent.
    pub fn exists(&self, path: &str) -> Result<bool> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(false);
        };
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        match fstatat(&entry.directory, entry.name.as_str(), flags) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(failed("read the metadata of", path)(errno)),
        }
    }

    /// The metadata at `path`; `None` if nothing exists there. Symlinks are followed.
    ///
    /// # Errors
    /// When the metadata can't be read.
    pub fn metadata(&self, path: &str) -> Result<Option<Metadata>> {
        match self.open_at(path, OFlag::O_PATH) {
            Ok(fd) => {
                let metadata = File::from(fd).metadata();
                Ok(Some(
                    metadata.map_err(failed_io("read the metadata of", path))?,
                ))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(failed("open", path)(errno)),
        }
    }

    /// As [`Self::exists`], with `false` on an error. Only for detecting a distribution; no file is restored or removed on this answer.
    #[must_use]
    pub fn seems_to_exist(&self, path: &str) -> bool {
        self.exists(path).unwrap_or(false)
    }

    /// The target of the symlink at `path`; `None` if `path` is not a symlink.
    ///
    /// # Errors
    /// When the symlink can't be read, and [`Error::NotText`] if its target is not UTF-8.
    pub fn symlink_target(&self, path: &str) -> Result<Option<String>> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(None);
        };
        match readlinkat(&entry.directory, entry.name.as_str()) {
            Ok(target) => match target.into_string() {
                Ok(target) => Ok(Some(target)),
                Err(_) => Err(Error::NotText {
                    path: path.to_owned(),
                }),
            },
            // EINVAL: the path is not a symlink (readlink(2)).
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(failed("read the symlink", path)(errno)),
        }
    }

    /// The names in a directory, in byte order like containerd's globs; empty if the directory does not exist.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let directory = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("list", path)(errno)),
        };
        let mut names = Vec::new();
        for entry in
            std::fs::read_dir(descriptor_path(&directory)).map_err(failed_io("list", path))?
        {
            let entry = entry.map_err(failed_io("list", path))?;
            // Neither Farrier nor an import pattern of containerd writes a name that is not UTF-8.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens `path` without reading it, and returns a path for system calls that take only a path (a socket's `connect`). The returned
    /// path is valid as long as the descriptor is open.
    ///
    /// # Errors
    /// When nothing exists at `path` or it can't be opened.
    pub fn handle(&self, path: &str) -> Result<(OwnedFd, PathBuf)> {
        let fd = self
            .open_at(path, OFlag::O_PATH)
            .map_err(failed("open", path))?;
        let own = descriptor_path(&fd);
        Ok((fd, own))
    }

    /// Whether the root of the process `pid` in this host's `/proc` is this root. A process in a container has another root.
    #[must_use]
    pub fn is_root_of(&self, pid: u32) -> bool {
        // `openat2` with RESOLVE_IN_ROOT does not follow `/proc/PID/root`. Only device and inode are compared here.
        let other = std::fs::metadata(self.path.join(format!("proc/{pid}/root")));
        other.is_ok_and(|other| {
            self.root
                .metadata()
                .is_ok_and(|own| (own.dev(), own.ino()) == (other.dev(), other.ino()))
        })
    }

    /// The final target if `path` is a symlink, otherwise `path` itself.
    ///
    /// # Errors
    /// When symlinks form a loop, or one of them can't be read.
    pub fn follow(&self, path: &str) -> Result<String> {
        let mut path = path.to_owned();
        for _ in 0..MAX_SYMLINKS {
            match self.symlink_target(&path)? {
                None => return Ok(path),
                Some(target) if target.starts_with('/') => path = target,
                // The kernel resolves the parent directory first and `..` afterwards, as for the symlink itself.
                Some(target) => {
                    let parent = parent_directory(&path).trim_end_matches('/');
                    path = format!("{parent}/{target}");
                }
            }
        }
        Err(failed("follow the symlink", &path)(Errno::ELOOP))
    }
}

impl Entry {
    /// Syncs the directory to the disk, so that a rename or removal survives a power failure.
    fn sync(&self) -> Result<()> {
        File::open(descriptor_path(&self.directory))
            .and_then(|directory| directory.sync_all())
            .map_err(failed_io("sync the parent directory of", &self.path))
    }
}

/// Checks that `openat2` can be used, by the result of a call on the root of a host, which is open already. Linux before 5.6 answers ENOSYS, and
/// so do seccomp filters of container runtimes that do not know the call; filters of older ones answer EPERM (openat2(2), seccomp(2)).
fn check_openat2(failed: Option<Errno>) -> Result<()> {
    match failed {
        Some(errno @ (Errno::ENOSYS | Errno::EPERM)) => Err(Error::NoOpenat2(errno.into())),
        Some(_) | None => Ok(()),
    }
}

/// A path of an open file, for system calls that take only a path.
fn descriptor_path(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The SHA-256 of `text`, in the form that [`HostRoot::replace`] expects; `None` for no text.
#[must_use]
pub fn text_digest(text: Option<&str>) -> Option<Sha256Digest> {
    text.map(|text| Sha256Digest::of(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("etc/containerd")).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[test]
    fn an_absolute_symlink_is_resolved_inside_the_host_root() {
        let (directory, host) = host();
        symlink("/etc", directory.path().join("link")).unwrap();
        std::fs::write(directory.path().join("etc/machine-id"), "of the host").unwrap();
        assert_eq!(
            host.read_text("/link/machine-id", 100).unwrap().as_deref(),
            Some("of the host")
        );
        assert!(
            host.read("/../../../etc/passwd", 1 << 20)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn replacing_a_file_behind_a_symlink_keeps_the_symlink_and_the_mode() {
        let (directory, host) = host();
        let real = directory.path().join("etc/real.toml");
        std::fs::write(&real, "old").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        symlink(
            "../real.toml",
            directory.path().join("etc/containerd/config.toml"),
        )
        .unwrap();
        host.replace(
            "/etc/containerd/config.toml",
            b"new",
            text_digest(Some("old")),
            0o644,
        )
        .unwrap();
        assert_eq!(std::fs::read_to_string(&real).unwrap(), "new");
        assert_eq!(std::fs::metadata(&real).unwrap().mode() & 0o777, 0o640);
        assert_eq!(
            host.symlink_target("/etc/containerd/config.toml")
                .unwrap()
                .as_deref(),
            Some("../real.toml")
        );
        assert_eq!(host.list("/etc").unwrap(), ["containerd", "real.toml"]);
    }

    #[test]
    fn a_file_that_changed_after_it_was_read_is_not_replaced() {
        let (directory, host) = host();
        std::fs::write(directory.path().join("etc/a"), "theirs").unwrap();
        let result = host.replace("/etc/a", b"ours", text_digest(Some("read")), 0o644);
        assert!(matches!(result, Err(Error::Changed { .. })));
        assert!(matches!(
            host.replace("/etc/a", b"ours", None, 0o644),
            Err(Error::Changed { .. })
        ));
        assert_eq!(
            std::fs::read_to_string(directory.path().join("etc/a")).unwrap(),
            "theirs"
        );
        assert!(!host.exists("/etc/a.farrier-new").unwrap());
    }

    #[test]
    fn a_kernel_or_a_filter_without_openat2_is_named() {
        for errno in [Errno::ENOSYS, Errno::EPERM] {
            let error = check_openat2(Some(errno)).unwrap_err();
            let message = error.to_string();
            assert!(
                message.starts_with("failed to call openat2 (Linux 5.6 or later)"),
                "{message}"
            );
            let help = error.help().unwrap();
            assert!(
                help.contains("Linux 5.6") && help.contains("seccomp"),
                "{help}"
            );
        }
        // The first use of the path reports another error.
        assert!(check_openat2(Some(Errno::EMFILE)).is_ok());
    }

    #[test]
    fn a_file_does_not_inherit_the_access_control_list_of_its_directory() {
        let (directory, host) = host();
        // acl(5): version 2; the owner, user 1234, the group, the mask and others, each with its rights.
        let entry = |tag: u16, rights: u16, id: u32| {
            [
                &tag.to_le_bytes()[..],
                &rights.to_le_bytes(),
                &id.to_le_bytes(),
            ]
            .concat()
        };
        let list = |rights: u16| {
            let entries = [
                entry(1, 7, u32::MAX),
                entry(2, rights, 1234),
                entry(4, 5, u32::MAX),
                entry(16, 7, u32::MAX),
                entry(32, 5, u32::MAX),
            ];
            [&2u32.to_le_bytes()[..], &entries.concat()].concat()
        };
        let etc = directory.path().join("etc");
        std::fs::write(etc.join("plain"), "old").unwrap();
        std::fs::write(etc.join("listed"), "old").unwrap();
        std::fs::set_permissions(etc.join("plain"), std::fs::Permissions::from_mode(0o664))
            .unwrap();
        if xattr::set(&etc, "system.posix_acl_default", &list(7)).is_err() {
            // The file system has no access control lists.
            return;
        }
        xattr::set(etc.join("listed"), owner::ACCESS_LIST, &list(4)).unwrap();
        for path in ["/etc/plain", "/etc/listed"] {
            host.replace(path, b"new", text_digest(Some("old")), 0o644)
                .unwrap();
        }
        host.replace("/etc/made", b"new", None, 0o644).unwrap();
        let access = |name: &str| xattr::get(etc.join(name), owner::ACCESS_LIST).unwrap();
        assert_eq!(access("plain"), None);
        assert_eq!(access("listed"), Some(list(4)));
        assert_eq!(access("made"), None);
        let mode = |name: &str| std::fs::metadata(etc.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("plain"), mode("made")), (0o664, 0o644));
    }

    #[test]
    fn a_replaced_file_keeps_its_signature_and_no_privilege() {
        let (directory, host) = host();
        let path = directory.path().join("etc/a");
        std::fs::write(&path, "old").unwrap();
        // A hash of SHA-256 (IMA_XATTR_DIGEST_NG), and a capability; only the superuser sets them, on some file systems and kernels.
        let hash = [&[4, 4][..], &[7; 32]].concat();
        let is_signed = xattr::set(&path, obstacle::SIGNATURE, &hash).is_ok();
        let _ = xattr::set(&path, "security.capability", &[0; 20]);
        assert_eq!(host.losses("/etc/a").signature, is_signed);
        host.replace("/etc/a", b"new", text_digest(Some("old")), 0o644)
            .unwrap();
        let now = |name| xattr::get(&path, name).ok().flatten();
        assert_eq!(now(obstacle::SIGNATURE), is_signed.then_some(hash));
        assert_eq!(now("security.capability"), None);
    }

    #[test]
    fn a_file_beyond_the_size_limit_or_of_another_type_is_refused() {
        let (directory, host) = host();
        std::fs::write(directory.path().join("etc/a"), "12345").unwrap();
        assert!(matches!(
            host.read("/etc/a", 4),
            Err(Error::TooLarge { .. })
        ));
        assert!(host.read("/etc/containerd", 4).is_err());
        assert!(host.read("/etc/absent", 4).unwrap().is_none());
    }

    #[test]
    fn an_unreadable_path_is_an_error_and_not_absent() {
        let (directory, host) = host();
        symlink("circle", directory.path().join("etc/circle")).unwrap();
        let long = format!("/etc/{}", "a".repeat(300));
        for path in ["/etc/circle/a", &long] {
            assert!(host.exists(path).is_err(), "{path}");
            assert!(host.symlink_target(path).is_err(), "{path}");
            assert!(host.follow(path).is_err(), "{path}");
            assert!(host.list(path).is_err(), "{path}");
            assert!(host.missing_directories(path).is_err(), "{path}");
            assert!(host.keep_replaced(path).is_err(), "{path}");
            assert!(host.restore_replaced(path).is_err(), "{path}");
            assert!(host.mount_of(path).is_err(), "{path}");
        }
        let no_text = std::ffi::OsStr::from_bytes(b"\xff");
        symlink(no_text, directory.path().join("etc/no-text")).unwrap();
        let target = host.symlink_target("/etc/no-text");
        assert!(matches!(target, Err(Error::NotText { .. })), "{target:?}");
        std::fs::write(directory.path().join("etc/file"), "").unwrap();
        for path in ["/etc/none", "/etc/none/a", "/etc/file/a"] {
            assert!(!host.exists(path).unwrap(), "{path}");
            assert_eq!(host.symlink_target(path).unwrap(), None, "{path}");
        }
        assert_eq!(host.symlink_target("/etc/file").unwrap(), None);
        assert!(host.exists("/etc/circle").unwrap());
    }

    #[test]
    fn only_empty_directories_are_removed() {
        let (directory, host) = host();
        let missing = host.missing_directories("/etc/one/two").unwrap();
        assert_eq!(missing, ["/etc/one", "/etc/one/two"]);
        for path in &missing {
            host.create_directory(path).unwrap();
        }
        std::fs::write(directory.path().join("etc/one/file"), "").unwrap();
        assert!(host.remove_directory("/etc/one/two").unwrap());
        assert!(!host.remove_directory("/etc/one").unwrap());
    }
}
