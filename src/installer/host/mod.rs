//! The host's file system: the only place that joins a path with the host's root, and the only one that writes to a host.
//!
//! Every path is resolved by the kernel inside the root (`openat2` with `RESOLVE_IN_ROOT`), so that neither an absolute link nor
//! `..` on the host leads out of it. What to write is decided elsewhere.

pub mod exec;
pub mod lock;
mod mount;
pub mod owner;
pub mod path;
pub mod program;
mod write;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::fstatat;
use sha2::{Digest as _, Sha256};

use self::path::{file_name, parent_directory};
use crate::handoff::Sha256Digest;

/// Bytes of a file of `/proc`, `/etc/os-release` or `/etc/rc.conf`, at most: all of them are far smaller.
pub(crate) const SMALL_FILE_LIMIT: u64 = 1 << 16;

/// Suffix of a file that is about to replace another: no `*.toml` glob of containerd's `imports` matches it.
pub(crate) const NEW_SUFFIX: &str = ".farrier-new";

/// Suffix of the second name of a file whose place is about to be taken: its bytes stay until the change stands.
pub(crate) const OLD_SUFFIX: &str = ".farrier-old";

/// Links followed by hand before a path counts as a loop; the kernel's own bound (`path_resolution(7)`) is 40.
const MAX_SYMLINKS: usize = 40;

/// A file that is hashed is a configuration, a shim or its artifact; the largest artifact that is fetched has this size too.
const MAX_HASHED: u64 = 512 << 20;

/// Which kind of host a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The host runs.
    Live,
    /// The host is an image, or is about to boot: nothing is restarted, and no CRI is asked.
    Image,
}

/// Why the host's file system could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation failed.
    #[error("can't {act} {path} on the host: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Path on the host.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file is larger than anything that belongs there.
    #[error("{path} on the host is larger than {limit} bytes")]
    TooLarge {
        /// Path on the host.
        path: String,
        /// The bound.
        limit: u64,
    },
    /// A file that must be text is none.
    #[error("{path} on the host is not UTF-8 text")]
    NotText {
        /// Path on the host.
        path: String,
    },
    /// Something other than a file stands in a file's place.
    #[error("{path} on the host is no regular file")]
    NoFile {
        /// Path on the host.
        path: String,
    },
    /// A file changed between reading and writing.
    #[error("{path} changed on the host while it was about to be replaced")]
    Changed {
        /// Path on the host.
        path: String,
    },
    /// Another installer is at work.
    #[error("another farrier has been changing this host for {0:?}")]
    Locked(Duration),
    /// Something stands in the place of the lock file or its directory that another user may be able to lock.
    #[error("failed to lock this host: {path} is not {expected}")]
    UnsafeLock {
        /// Path on the host.
        path: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::TooLarge { .. } | Self::NotText { .. } => Cow::Borrowed("look at what wrote it"),
            Self::NoFile { .. } => Cow::Borrowed("put a file in its place, or name another"),
            Self::Changed { .. } => Cow::Borrowed("run again"),
            Self::Locked(_) => Cow::Borrowed("wait for it, or end it"),
            Self::UnsafeLock { path, .. } => {
                Cow::Owned(format!("remove {path}, and run farrier again"))
            }
            Self::Io { source, .. } => Cow::Borrowed(hint(source)?),
        })
    }
}

/// What an operator does about `error`; `None` where only the error itself helps.
fn hint(error: &io::Error) -> Option<&'static str> {
    let help = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EROFS) => "see that its file system is mounted writable",
        Some(Errno::EPERM) => "see that neither it nor its folder is immutable (lsattr)",
        Some(Errno::EBUSY) => "it is a mount of its own: unmount it",
        Some(Errno::ENOSPC | Errno::EDQUOT) => "free some space on its file system",
        Some(Errno::EACCES) => "run as root",
        Some(Errno::ENOTDIR) => "see that its folder is no file",
        Some(_) | None => return None,
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

/// A path split for operations that name an entry of a folder.
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
    /// Opens the host whose file system stands at `path`.
    ///
    /// # Errors
    /// When `path` is no folder that can be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let root = File::open(path).map_err(failed_io("open the host root", &shown))?;
        let metadata = root
            .metadata()
            .map_err(failed_io("look at the host root", &shown))?;
        if !metadata.is_dir() {
            return Err(failed("open the host root", &shown)(Errno::ENOTDIR));
        }
        Ok(Self {
            root,
            path: path.to_owned(),
        })
    }

    /// Where the root stands for this process; for programs that are run inside it, never for opening files.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this root is the root of this process, so that nothing has to be entered to run a program of the host.
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
            .map_err(failed("open the folder of", path))
    }

    /// As [`Self::entry`]; `None` where its folder is not there.
    fn entry_in_directory(&self, path: &str) -> Result<Option<Entry>> {
        match self.try_entry(path) {
            Ok(entry) => Ok(Some(entry)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(failed("open the folder of", path)(errno)),
        }
    }

    /// Opens a regular file for reading; `None` where there is none.
    ///
    /// # Errors
    /// When something stands there that is no regular file, or can't be opened.
    pub fn open_file(&self, path: &str) -> Result<Option<File>> {
        // O_NONBLOCK: a FIFO in the file's place must not hold us up.
        let fd = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(failed("open", path)(errno)),
        };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(failed_io("look at", path))?;
        if metadata.is_file() {
            Ok(Some(file))
        } else {
            Err(Error::NoFile {
                path: path.to_owned(),
            })
        }
    }

    /// The bytes of a file of at most `limit` bytes; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read or is larger.
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

    /// The text of a file of at most `limit` bytes; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read, is larger, or is not UTF-8.
    pub fn read_text(&self, path: &str, limit: u64) -> Result<Option<String>> {
        self.read(path, limit)?
            .map(|bytes| {
                String::from_utf8(bytes).map_err(|_| Error::NotText {
                    path: path.to_owned(),
                })
            })
            .transpose()
    }

    /// SHA-256 of a file; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read or is larger than anything that is hashed here.
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

    /// Whether anything stands at `path`, the last component not followed if it is a link.
    ///
    /// # Errors
    /// When that can't be looked at, so that nobody takes it for absent.
    pub fn exists(&self, path: &str) -> Result<bool> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(false);
        };
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        match fstatat(&entry.directory, entry.name.as_str(), flags) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(failed("look at", path)(errno)),
        }
    }

    /// Whether something is seen at `path`: what can't be looked at is not. A hint for what a host is; nothing is undone or removed by it.
    #[must_use]
    pub fn is_seen(&self, path: &str) -> bool {
        self.exists(path).unwrap_or(false)
    }

    /// Where the link at `path` points; `None` where there is no link.
    ///
    /// # Errors
    /// When that can't be looked at, and [`Error::NotText`] where it points to a path that is not UTF-8.
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
            // EINVAL: no link stands there (readlink(2)).
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(failed("look at", path)(errno)),
        }
    }

    /// Names in a folder, in byte order as containerd's globs list them; empty where there is no folder.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let directory = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("list", path)(errno)),
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(own_path(&directory)).map_err(failed_io("list", path))? {
            let entry = entry.map_err(failed_io("list", path))?;
            // A name that is no UTF-8 is none that we or an import pattern could write.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens what stands at `path` without reading it, and names it for system calls that take only a path (a socket's `connect`).
    /// The path is good as long as the handle lives.
    ///
    /// # Errors
    /// When nothing stands there.
    pub fn handle(&self, path: &str) -> Result<(OwnedFd, PathBuf)> {
        let fd = self
            .open_at(path, OFlag::O_PATH)
            .map_err(failed("open", path))?;
        let own = own_path(&fd);
        Ok((fd, own))
    }

    /// Whether the process `pid` of this host's `/proc` has this root: one in a container has its own.
    #[must_use]
    pub fn is_root_of(&self, pid: u32) -> bool {
        // The kernel keeps `/proc/PID/root` out of every bounded resolution; only identities are compared here.
        let other = std::fs::metadata(self.path.join(format!("proc/{pid}/root")));
        other.is_ok_and(|other| {
            self.root
                .metadata()
                .is_ok_and(|own| (own.dev(), own.ino()) == (other.dev(), other.ino()))
        })
    }

    /// The path that `path` stands for when it is a link, or `path` itself.
    ///
    /// # Errors
    /// When links run in a circle, or one can't be looked at.
    pub fn follow(&self, path: &str) -> Result<String> {
        let mut path = path.to_owned();
        for _ in 0..MAX_SYMLINKS {
            match self.symlink_target(&path)? {
                None => return Ok(path),
                Some(target) if target.starts_with('/') => path = target,
                // The kernel resolves the folder first and `..` after it, as it does for the link itself.
                Some(target) => path = format!("{}/{target}", parent_directory(&path)),
            }
        }
        Err(failed("follow the link", &path)(Errno::ELOOP))
    }
}

impl Entry {
    /// Puts the folder's entries on disk, so that a rename or removal outlives a power cut.
    fn sync(&self) -> Result<()> {
        File::open(own_path(&self.directory))
            .and_then(|directory| directory.sync_all())
            .map_err(failed_io("write the folder of", &self.path))
    }
}

/// A name for an open file that system calls take as a path.
fn own_path(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// SHA-256 of `text`, where there is one, as [`HostRoot::replace`] expects it.
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
