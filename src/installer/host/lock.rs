//! Locks a host, so that only one installer changes it at a time. The callers decide which changes need the lock.
//!
//! The lock is a `flock(2)` on a file that only root can open. Such a lock belongs to the inode, so a run on the host itself and a run in a
//! Job, which sees the host at `/host`, use the same lock: `/run` is one file system for both.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::geteuid;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Error, HostRoot, Result, Target, descriptor_path, failed, failed_io};

/// The parent of [`DIRECTORY`], a separate file system that is empty after a reboot (FHS 3.0, 3.15). Only root can write to it.
const RUN: &str = "/run";
/// The directory of the lock file. Its mode lets only root open the file.
pub(crate) const DIRECTORY: &str = "/run/farrier";
const DIRECTORY_NAME: &str = "farrier";
/// The file that is locked. It is empty.
const FILE: &str = "/run/farrier/lock";
const FILE_NAME: &str = "lock";

/// How long an installer waits for another. The longest run fetches for 5 min and then restarts k3s twice, each time with 200 s for
/// systemd and 300 s for containerd.
const LOCK_WAIT: Duration = Duration::from_mins(22);

/// How long an installer waits for the lock on the root directory, which older releases use. Any local user can hold that lock, so the
/// wait is short. The release after the next one no longer takes that lock.
const ROOT_WAIT: Duration = Duration::from_secs(10);

/// Interval between two attempts to lock: `flock(2)` has no timeout.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The permission bits of an inode's mode (inode(7)).
const PERMISSIONS: u32 = 0o777;

/// A lock on the host, held until this value is dropped.
#[derive(Debug)]
pub struct Lock {
    _own: OwnLock,
    /// The lock of older releases.
    _root: Option<File>,
}

/// The locked lock file.
#[derive(Debug)]
struct OwnLock {
    /// The host whose lock file is removed together with the lock; `None` if the file stays for the next run.
    removes_from: Option<HostRoot>,
    made_run: bool,
    _file: File,
}

impl HostRoot {
    /// Whether an installer holds the lock of this host. Creates no file.
    ///
    /// # Errors
    /// [`Error::UnsafeLock`] when another user may be able to lock the lock file; otherwise the error of the system call.
    pub fn is_locked(&self) -> Result<bool> {
        let Some(file) = self.open_lock_file(false)? else {
            return Ok(false);
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(failed_io("lock", FILE)(source)),
        }
    }

    /// Locks this host against other installers until the returned value is dropped. In an image, the lock file and the directories that
    /// were created for it are removed together with the lock, so that they do not stay in the image.
    ///
    /// # Errors
    /// [`Error::Locked`] after 22 minutes; [`Error::UnsafeLock`] when another user may be able to lock the lock file; otherwise the error
    /// of the system call.
    pub async fn lock(&self, target: Target) -> Result<Lock> {
        self.lock_within(target, LOCK_WAIT, ROOT_WAIT).await
    }

    async fn lock_within(
        &self,
        target: Target,
        wait: Duration,
        root_wait: Duration,
    ) -> Result<Lock> {
        let until = Instant::now() + wait;
        let mut made_run = false;
        let file = loop {
            made_run |= self.make_lock_directory()?;
            // A run on an image removes the lock file and its directory when it ends, also after this run has opened the file.
            let Some(file) = self.open_lock_file(true)? else {
                continue;
            };
            if !acquire(&file, FILE, until).await? {
                return Err(Error::Locked(wait));
            }
            if self.names_lock_file(&file)? {
                break file;
            }
        };
        let removes_from = match target {
            Target::Live => None,
            Target::Image => Some(self.reopen()?),
        };
        let own = OwnLock {
            removes_from,
            made_run,
            _file: file,
        };
        let root = File::open(descriptor_path(&self.root)).map_err(failed_io("open", "/"))?;
        let is_root_locked = acquire(&root, "/", Instant::now() + root_wait).await?;
        if !is_root_locked {
            warn!(
                ?root_wait,
                "failed to lock the root directory, as another process holds that lock: continuing without it, as only older releases of Farrier use it"
            );
        }
        Ok(Lock {
            _own: own,
            _root: is_root_locked.then_some(root),
        })
    }

    /// Creates the directory of the lock file; returns whether `/run` was created for it.
    fn make_lock_directory(&self) -> Result<bool> {
        let made_run = self.make_directory(RUN, Mode::from_bits_truncate(0o755))?;
        self.make_directory(DIRECTORY, Mode::from_bits_truncate(0o700))?;
        Ok(made_run)
    }

    /// Creates a directory; returns whether it is new. The directory is not synced to the disk, as the lock does not survive a crash.
    fn make_directory(&self, path: &str, mode: Mode) -> Result<bool> {
        let entry = self.entry(path)?;
        match mkdirat(&entry.directory, entry.name.as_str(), mode) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(failed("create the directory", path)(errno)),
        }
    }

    /// Opens the lock file, and with `create` creates it; `None` if the file or its directory does not exist.
    fn open_lock_file(&self, create: bool) -> Result<Option<File>> {
        let run = match self.open_at(RUN, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(run) => run,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed("open", RUN)(errno)),
        };
        let no_symlink = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(no_symlink | OFlag::O_DIRECTORY);
        let directory = match openat2(&run, DIRECTORY_NAME, how) {
            Ok(directory) => File::from(directory),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(unsafe_directory()),
            Err(errno) => return Err(failed("open", DIRECTORY)(errno)),
        };
        let metadata = directory
            .metadata()
            .map_err(failed_io("read the metadata of", DIRECTORY))?;
        if metadata.uid() != geteuid().as_raw() || metadata.mode() & PERMISSIONS != 0o700 {
            return Err(unsafe_directory());
        }
        // O_NONBLOCK: opening a FIFO must not block.
        let how = OpenHow::new().flags(no_symlink | OFlag::O_NONBLOCK);
        let how = if create {
            how.flags(no_symlink | OFlag::O_NONBLOCK | OFlag::O_CREAT)
                .mode(Mode::from_bits_truncate(0o600))
        } else {
            how
        };
        let file = match openat2(&directory, FILE_NAME, how) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP | Errno::EISDIR | Errno::ENXIO) => return Err(unsafe_file()),
            Err(errno) => return Err(failed("open", FILE)(errno)),
        };
        let metadata = file
            .metadata()
            .map_err(failed_io("read the metadata of", FILE))?;
        let is_own = metadata.uid() == geteuid().as_raw();
        if metadata.is_file() && is_own && metadata.mode() & PERMISSIONS == 0o600 {
            Ok(Some(file))
        } else {
            Err(unsafe_file())
        }
    }

    /// Whether the path of the lock file still names `file`.
    fn names_lock_file(&self, file: &File) -> Result<bool> {
        let Some(named) = self.open_lock_file(false)? else {
            return Ok(false);
        };
        let identity = |file: &File| {
            let metadata = file
                .metadata()
                .map_err(failed_io("read the metadata of", FILE))?;
            Ok((metadata.dev(), metadata.ino()))
        };
        Ok(identity(&named)? == identity(file)?)
    }

    /// A second handle of the same host.
    fn reopen(&self) -> Result<Self> {
        let root = self.root.try_clone().map_err(failed_io("open", "/"))?;
        let path = self.path.clone();
        Ok(Self { root, path })
    }
}

impl Drop for OwnLock {
    fn drop(&mut self) {
        let Some(host) = &self.removes_from else {
            return;
        };
        // The lock is held until the file is removed, so no other run has locked the file. A run that waits for the lock finds that the
        // path no longer names its file, and opens the path again.
        let removed = host.remove_file(FILE).and_then(|()| {
            let is_empty = host.remove_directory(DIRECTORY)?;
            if is_empty && self.made_run {
                host.remove_directory(RUN)?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            warn!(%error, "failed to remove the lock file: it stays in the image");
        }
    }
}

/// Locks `file`, whose path is `path`, and waits for another holder until `until`; returns whether `file` is locked.
async fn acquire(file: &File, path: &str, until: Instant) -> Result<bool> {
    let mut waits = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                if !std::mem::replace(&mut waits, true) {
                    info!(
                        path,
                        "waiting for another farrier that is changing this host"
                    );
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(source)) => return Err(failed_io("lock", path)(source)),
        }
    }
}

fn unsafe_directory() -> Error {
    Error::UnsafeLock {
        path: DIRECTORY,
        expected: "a directory that root owns with mode 0700",
    }
}

fn unsafe_file() -> Error {
    Error::UnsafeLock {
        path: FILE,
        expected: "a regular file that root owns with mode 0600",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use futures::poll;
    use rstest::rstest;

    use super::*;

    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    /// Starts a process that holds a lock on `path` until its standard input is closed. The lock is held when this returns.
    fn lock_elsewhere(path: &Path) -> Child {
        let mut child = Command::new("flock")
            .arg(path)
            .args(["sh", "-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        child
    }

    fn let_go(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_second_installer_waits_until_the_first_has_finished() {
        let (directory, host) = host();
        let lock = host.lock(Target::Live).await.unwrap();
        let other = HostRoot::open(directory.path()).unwrap();
        let mut waiting = std::pin::pin!(other.lock(Target::Live));
        assert!(poll!(&mut waiting).is_pending());
        assert!(other.is_locked().unwrap());
        drop(lock);
        // A child of another test may hold a copy of the descriptor until it executes its program, so the test does not check for a free
        // lock.
        drop(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn a_job_and_a_run_on_the_host_share_one_lock() {
        let (directory, host) = host();
        drop(host.lock(Target::Live).await.unwrap());
        // A Job's view of the host: the same file system by another path.
        let view = tempfile::tempdir().unwrap();
        symlink(directory.path(), view.path().join("host")).unwrap();
        let view = HostRoot::open(&view.path().join("host")).unwrap();
        let holder = lock_elsewhere(&directory.path().join("run/farrier/lock"));
        assert!(host.is_locked().unwrap() && view.is_locked().unwrap());
        let mut waiting = std::pin::pin!(view.lock(Target::Live));
        assert!(poll!(&mut waiting).is_pending());
        let_go(holder);
        drop(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn only_root_can_open_the_lock_file() {
        let (directory, host) = host();
        let _lock = host.lock(Target::Live).await.unwrap();
        for (path, mode) in [("run/farrier", 0o700), ("run/farrier/lock", 0o600)] {
            let metadata = directory.path().join(path).symlink_metadata().unwrap();
            assert_eq!(metadata.mode() & 0o7777, mode, "{path}");
        }
    }

    #[tokio::test]
    async fn a_lock_on_the_root_directory_is_waited_for_with_a_limit() {
        let (directory, host) = host();
        let holder = lock_elsewhere(directory.path());
        assert!(!host.is_locked().unwrap());
        let lock = host
            .lock_within(Target::Live, LOCK_WAIT, Duration::ZERO)
            .await;
        assert!(lock.is_ok(), "{lock:?}");
        let_go(holder);
    }

    #[tokio::test]
    async fn installers_of_a_former_and_of_this_release_wait_for_each_other() {
        let (directory, host) = host();
        let holder = lock_elsewhere(directory.path());
        let mut waiting = std::pin::pin!(host.lock(Target::Live));
        assert!(poll!(&mut waiting).is_pending());
        let_go(holder);
        let lock = waiting.await.unwrap();
        let former = File::open(directory.path()).unwrap();
        assert!(matches!(former.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        former.try_lock().unwrap();
    }

    #[tokio::test]
    async fn an_installer_whose_lock_file_was_removed_locks_the_new_one() {
        let (directory, host) = host();
        let file = directory.path().join("run/farrier/lock");
        let lock = host.lock(Target::Image).await.unwrap();
        let removed = File::open(&file).unwrap();
        let mut waiting = std::pin::pin!(host.lock(Target::Image));
        assert!(poll!(&mut waiting).is_pending());
        drop(lock);
        assert!(!file.exists());
        let lock = waiting.await.unwrap();
        assert!(host.is_locked().unwrap());
        // The removed file is not locked: the lock is on the new file.
        removed.try_lock().unwrap();
        drop(lock);
        assert!(!file.exists());
    }

    #[rstest]
    #[case::with_run(true)]
    #[case::without_run(false)]
    #[tokio::test]
    async fn an_offline_run_removes_its_lock_file(#[case] has_run: bool) {
        let (directory, host) = host();
        let run = directory.path().join("run");
        if has_run {
            std::fs::create_dir(&run).unwrap();
        }
        drop(host.lock(Target::Image).await.unwrap());
        assert_eq!(run.exists(), has_run);
        assert!(!run.join("farrier").exists());
        // A killed run leaves the file and its directory.
        std::mem::forget(host.lock(Target::Image).await.unwrap());
        assert!(run.join("farrier/lock").exists());
    }

    #[tokio::test]
    async fn concurrent_offline_runs_lock_an_image_one_after_another() {
        let (directory, _) = host();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let host = HostRoot::open(directory.path()).unwrap();
                    let runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = { runtime }.enable_time().build().unwrap();
                    start.wait();
                    let lock = runtime.block_on(host.lock(Target::Image)).unwrap();
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    std::thread::yield_now();
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                });
            }
        });
        assert_eq!(
            std::fs::read_dir(directory.path().join("run"))
                .unwrap()
                .count(),
            0
        );
    }

    fn directory(path: &Path, mode: u32) {
        std::fs::create_dir(path).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn file(path: &Path, mode: u32) {
        std::fs::write(path, "").unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[rstest]
    #[case::symlink(|at: &Path| { directory(&at.join("real"), 0o700); symlink("real", at.join("farrier")).unwrap(); }, DIRECTORY)]
    #[case::file(|at: &Path| file(&at.join("farrier"), 0o700), DIRECTORY)]
    #[case::open_to_others(|at: &Path| directory(&at.join("farrier"), 0o755), DIRECTORY)]
    #[case::of_another_user(|at: &Path| { directory(&at.join("farrier"), 0o700); give_away(&at.join("farrier")); }, DIRECTORY)]
    #[case::lock_as_symlink(|at: &Path| { directory(&at.join("farrier"), 0o700); symlink("../real", at.join("farrier/lock")).unwrap(); }, FILE)]
    #[case::lock_as_directory(|at: &Path| { directory(&at.join("farrier"), 0o700); directory(&at.join("farrier/lock"), 0o600); }, FILE)]
    #[case::lock_open_to_others(|at: &Path| { directory(&at.join("farrier"), 0o700); file(&at.join("farrier/lock"), 0o644); }, FILE)]
    #[tokio::test]
    async fn a_lock_file_that_others_could_open_is_refused_with_its_path_and_instructions(
        #[case] make: impl Fn(&Path),
        #[case] path: &str,
    ) {
        let (directory, host) = host();
        let run = directory.path().join("run");
        std::fs::create_dir(&run).unwrap();
        make(&run);
        for error in [host.lock(Target::Image).await.err(), host.is_locked().err()] {
            let error = error.unwrap();
            let message = error.to_string();
            assert!(message.contains(&format!("{path} is not a")), "{message}");
            let help = error.help().unwrap();
            assert!(help.contains(&format!("remove {path}")), "{help}");
        }
        assert!(!run.join("real/lock").exists());
    }

    /// Changes the owner, which only root can do; another user changes the mode instead.
    fn give_away(path: &Path) {
        if std::os::unix::fs::chown(path, Some(12), Some(34)).is_err() {
            std::fs::set_permissions(path, Permissions::from_mode(0o750)).unwrap();
        }
    }
}
