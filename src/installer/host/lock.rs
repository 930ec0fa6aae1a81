//! Keeps two installers from changing one host at a time. What the lock protects is the caller's business.

use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

use tracing::info;

use super::{Error, HostRoot, Result, failed_io, own_path};

/// A second installer waits this long for the first. That takes longest where it fetches for 5 min and then restarts k3s twice, each
/// time with 200 s for systemd and 300 s for containerd.
const LOCK_WAIT: Duration = Duration::from_mins(22);

/// A lock on the host that ends with this value.
#[derive(Debug)]
pub struct Lock {
    _root: File,
}

impl HostRoot {
    /// Whether an installer is at work on this host.
    ///
    /// # Errors
    /// When the host's root can't be opened.
    pub fn is_locked(&self) -> Result<bool> {
        let root = self.own_root()?;
        match root.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(failed_io("lock", "/")(source)),
        }
    }

    /// The root folder, opened anew: a clone shares its lock with its origin, a file of its own ends it when dropped.
    fn own_root(&self) -> Result<File> {
        File::open(own_path(&self.root)).map_err(failed_io("open", "/"))
    }

    /// Keeps other installers off this host while the value lives. Taken on the root folder itself: no file is left behind, and
    /// every view of the host meets at the same inode.
    ///
    /// # Errors
    /// [`Error::Locked`] after a bounded wait.
    pub async fn lock(&self) -> Result<Lock> {
        let root = self.own_root()?;
        let since = Instant::now();
        let mut waits = false;
        loop {
            match root.try_lock() {
                Ok(()) => return Ok(Lock { _root: root }),
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => {
                    if !std::mem::replace(&mut waits, true) {
                        info!("waiting for another farrier that changes this host");
                    }
                    // flock has no wait with a deadline.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(TryLockError::WouldBlock) => return Err(Error::Locked(LOCK_WAIT)),
                Err(TryLockError::Error(source)) => {
                    return Err(failed_io("lock", "/")(source));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_installer_is_kept_off_until_the_first_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let host = HostRoot::open(folder.path()).unwrap();
        let lock = host.lock().await.unwrap();
        let other = HostRoot::open(folder.path()).unwrap();
        let mut waiting = std::pin::pin!(other.lock());
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(other.is_locked().unwrap());
        drop(lock);
        drop(waiting.await.unwrap());
        assert!(!other.is_locked().unwrap());
    }
}
