//! Reads when paths of the host were last changed. No file is read here.

use std::collections::VecDeque;
use std::time::Duration;

use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, SFlag, fstatat};

use super::{Errno, HostRoot, MAX_SYMLINKS, Result, failed};

/// The times of a path, each since the epoch by the clock of the host at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The last change of the contents (`st_mtime`).
    pub modified: Duration,
    /// The last change of the contents or the attributes, of the path itself or of a symlink on the way. A restored backup may have an old
    /// `st_mtime`, and its `st_ctime` is new (inode(7)).
    pub latest: Duration,
    /// The last time at which a directory on the way may have been renamed: its `st_ctime` where that is newer than its `st_mtime`, as after
    /// a change of its mode. A change of its entries sets both to the same time.
    pub moved: Duration,
}

impl HostRoot {
    /// The times of `path`, an absolute path; `None` if nothing exists there. Symlinks are followed, in directories as well.
    ///
    /// # Errors
    /// When the metadata can't be read, or symlinks form a loop.
    pub fn times(&self, path: &str) -> Result<Option<Times>> {
        let mut remaining: VecDeque<String> = names(path).collect();
        let (mut here, mut symlinks) = (String::new(), 0);
        let (mut latest, mut moved) = (Duration::ZERO, Duration::ZERO);
        loop {
            let name = remaining.pop_front();
            match name.as_deref() {
                // Every directory up to here was followed, so this is the directory above.
                Some("..") => {
                    here.truncate(here.rfind('/').unwrap_or_default());
                    continue;
                }
                Some(name) => here = format!("{here}/{name}"),
                None => {}
            }
            let shown = if here.is_empty() { "/." } else { &here };
            let Some(stat) = self.stat(shown)? else {
                return Ok(None);
            };
            let modified = since_epoch(stat.st_mtime, stat.st_mtime_nsec);
            if is_symlink(&stat) {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(failed("follow the symlink", path)(Errno::ELOOP));
                }
                latest = latest.max(changed(&stat)).max(modified);
                let target = self.symlink_target(shown)?;
                // Without a target, it was replaced in the meantime.
                let target = target.unwrap_or_else(|| shown.to_owned());
                here.truncate(here.rfind('/').unwrap_or_default());
                if target.starts_with('/') {
                    here.clear();
                }
                for name in names(&target).rev() {
                    remaining.push_front(name);
                }
            } else if remaining.is_empty() {
                let latest = latest.max(changed(&stat)).max(modified);
                return Ok(Some(Times {
                    modified,
                    latest,
                    moved,
                }));
            } else if changed(&stat) > modified {
                moved = moved.max(changed(&stat));
            }
        }
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

/// The names in a path.
fn names(path: &str) -> impl DoubleEndedIterator<Item = String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.map(str::to_owned)
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

    /// Everything that was made so far is older than what is made from now on.
    fn later() {
        let begin = SystemTime::now();
        while SystemTime::now().duration_since(begin).unwrap() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
    }

    fn changed_at(path: &std::path::Path) -> Duration {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = fs::symlink_metadata(path).unwrap();
        since_epoch(metadata.ctime(), metadata.ctime_nsec())
    }

    /// Two releases of a configuration, made before any of the changes.
    fn releases() -> (tempfile::TempDir, HostRoot) {
        let (directory, host) = host();
        for name in ["r1/c", "r2/c"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("config.toml"), "").unwrap();
        }
        later();
        (directory, host)
    }

    #[test]
    fn a_symlink_within_the_target_of_another_counts_as_a_change() {
        let (directory, host) = releases();
        let path = |name: &str| directory.path().join(name);
        symlink("r1", path("current")).unwrap();
        symlink("/current/c", path("etc")).unwrap();
        // As the kubelet writes the files of a ConfigMap.
        symlink("r1/c", path("..data")).unwrap();
        symlink("..data/config.toml", path("config.toml")).unwrap();
        symlink("r2/../current/c/config.toml", path("back")).unwrap();
        for (named, link) in [
            ("/etc/config.toml", "current"),
            ("/config.toml", "..data"),
            ("/back", "current"),
        ] {
            later();
            let target = fs::read_link(path(link)).unwrap();
            let target = target.to_str().unwrap().replace("r1", "r2");
            symlink(target, path("new")).unwrap();
            fs::rename(path("new"), path(link)).unwrap();
            let times = host.times(named).unwrap().unwrap();
            assert_eq!(times.latest, changed_at(&path(link)), "{named}");
            assert!(times.modified < times.latest, "{named}");
        }
    }

    #[test]
    fn a_renamed_directory_counts_as_moved_and_one_with_new_entries_does_not() {
        let (directory, host) = releases();
        let path = |name: &str| directory.path().join(name);
        let times = || host.times("/r1/c/config.toml").unwrap().unwrap();
        let before = times();
        assert_eq!(before.moved, Duration::ZERO);
        later();
        fs::write(path("r1/c/other"), "").unwrap();
        fs::remove_file(path("r1/c/other")).unwrap();
        assert_eq!(times(), before);
        fs::rename(path("r1"), path("old")).unwrap();
        fs::rename(path("r2"), path("r1")).unwrap();
        let after = times();
        assert_eq!(after.moved, changed_at(&path("r1")));
        assert!(after.latest < after.moved);
        assert!(host.times("/").unwrap().is_some());
        assert_eq!(host.times("/r1/c/config.toml/none").unwrap(), None);
    }
}
