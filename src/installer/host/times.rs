//! Reads when paths of the host were last changed. No file is read here.

use std::time::Duration;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstatat};

use super::path::parent_directory;
use super::{Errno, HostRoot, MAX_SYMLINKS, Result, failed};

/// The times of a path, each since the epoch by the clock of the host at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The last change of the contents (`st_mtime`).
    pub modified: Duration,
    /// The last change of the contents or the attributes, of the path itself or of a symlink that leads there. A restored backup may have
    /// an old `st_mtime`, and its `st_ctime` is new (inode(7)).
    pub latest: Duration,
}

impl HostRoot {
    /// The times of `path`, an absolute path; `None` if nothing exists there. Symlinks are followed.
    ///
    /// # Errors
    /// When the metadata can't be read, or symlinks form a loop.
    pub fn times(&self, path: &str) -> Result<Option<Times>> {
        let mut latest = Duration::ZERO;
        let mut above = parent_directory(path);
        while above.len() > 1 {
            let stat = self.stat(above)?.filter(is_symlink);
            latest = latest.max(stat.map_or(Duration::ZERO, |stat| changed(&stat)));
            above = parent_directory(above);
        }
        let mut path = path.to_owned();
        for _ in 0..MAX_SYMLINKS {
            let Some(stat) = self.stat(&path)? else {
                return Ok(None);
            };
            let modified = since_epoch(stat.st_mtime, stat.st_mtime_nsec);
            latest = latest.max(changed(&stat)).max(modified);
            if !is_symlink(&stat) {
                return Ok(Some(Times { modified, latest }));
            }
            path = match self.symlink_target(&path)? {
                Some(target) if target.starts_with('/') => target,
                Some(target) => format!("{}/{target}", parent_directory(&path)),
                // Replaced in the meantime.
                None => path,
            };
        }
        Err(failed("follow the symlink", &path)(Errno::ELOOP))
    }

    fn stat(&self, path: &str) -> Result<Option<FileStat>> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(None);
        };
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        match fstatat(&entry.directory, entry.name.as_str(), flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed("read the metadata of", path)(errno)),
        }
    }
}

fn is_symlink(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

fn changed(stat: &FileStat) -> Duration {
    since_epoch(stat.st_ctime, stat.st_ctime_nsec)
}

/// A time before the epoch counts as the epoch.
fn since_epoch(seconds: i64, nanoseconds: i64) -> Duration {
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or_default();
    Duration::new(seconds, nanoseconds.min(999_999_999))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use super::*;

    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[test]
    fn a_restored_backup_with_its_old_time_counts_as_new() {
        let (directory, host) = host();
        let path = directory.path().join("config.toml");
        fs::write(&path, "").unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(old).unwrap();
        let times = host.times("/config.toml").unwrap().unwrap();
        assert_eq!(times.modified, Duration::from_secs(1));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let age = now.unwrap().checked_sub(times.latest).unwrap();
        assert!(age < Duration::from_mins(1), "{age:?}");
    }

    #[test]
    fn a_symlink_that_leads_to_another_file_counts_as_a_change() {
        let (directory, host) = host();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("old")).unwrap();
        fs::write(path("old/config.toml"), "").unwrap();
        let before = host.times("/old/config.toml").unwrap().unwrap();
        symlink("/old", path("etc")).unwrap();
        symlink("old/config.toml", path("link")).unwrap();
        for named in ["/etc/config.toml", "/link"] {
            let times = host.times(named).unwrap().unwrap();
            assert_eq!(times.modified, before.modified, "{named}");
            assert!(times.latest >= before.latest, "{named}");
            let link = fs::symlink_metadata(path(named.split('/').nth(1).unwrap())).unwrap();
            let made = link.modified().unwrap();
            let made = made.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            assert!(times.latest >= made, "{named}");
        }
        assert_eq!(host.times("/none/config.toml").unwrap(), None);
        symlink("loop", path("loop")).unwrap();
        assert!(host.times("/loop").is_err());
    }
}
