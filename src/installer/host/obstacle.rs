//! Checks whether a file of the host can be replaced, or created in its directory, and what a replacement does not keep. Writes nothing.

use std::borrow::Cow;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{AccessFlags, access};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};

use super::path::parent_directory;
use super::{HostRoot, descriptor_path};

/// Extended attribute of the kernel's Integrity Measurement Architecture: a hash or a signature of a file's contents (evmctl(1)).
pub(super) const SIGNATURE: &str = "security.ima";

/// Why a file can't be replaced, or why no file can be created in a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Its file system, or the mount of it, is read-only.
    #[error("{path} is on a read-only file system")]
    ReadOnly {
        /// Path on the host.
        path: String,
    },
    /// It has the attribute `i` of chattr(1).
    #[error("{path} is immutable")]
    Immutable {
        /// Path on the host.
        path: String,
    },
    /// It has the attribute `a` of chattr(1): a file in it, or the file itself, can't be replaced or removed.
    #[error("{path} is append-only")]
    AppendOnly {
        /// Path on the host.
        path: String,
    },
    /// A file system is mounted at the path of the file, which rename(2) therefore can't replace.
    #[error("{path} is a mount point, and no other file can take its place")]
    MountPoint {
        /// Path on the host.
        path: String,
    },
    /// A symlink to a directory that does not exist, or to a file whose directory does not exist.
    #[error("{path} is a symlink to {target}, {}", lack(target, missing))]
    Dangling {
        /// Path of the symlink on the host.
        path: String,
        /// Path on the host to which the symlink leads.
        target: String,
        /// The directory that does not exist.
        missing: String,
    },
    /// A directory is needed where another file is.
    #[error("{path} is not a directory")]
    NoDirectory {
        /// Path on the host.
        path: String,
    },
    /// This process may not write in the directory.
    #[error("this process may not write in {path}")]
    Denied {
        /// Path on the host.
        path: String,
    },
}

impl Obstacle {
    /// The path on the host that is at fault.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::ReadOnly { path }
            | Self::Immutable { path }
            | Self::AppendOnly { path }
            | Self::MountPoint { path }
            | Self::Dangling { path, .. }
            | Self::NoDirectory { path }
            | Self::Denied { path } => path,
        }
    }

    /// How an operator removes it.
    #[must_use]
    pub fn help(&self) -> Cow<'static, str> {
        Cow::Owned(match self {
            Self::ReadOnly { .. } => return Cow::Borrowed("remount the file system read-write"),
            Self::Denied { .. } => return Cow::Borrowed("run farrier as root"),
            Self::Immutable { path } => format!("run `chattr -i {path}` on the host"),
            Self::AppendOnly { path } => format!("run `chattr -a {path}` on the host"),
            Self::MountPoint { path } => format!(
                "unmount {path} and write the file there itself, or mount its directory instead of the file"
            ),
            Self::Dangling { missing, .. } => {
                format!("run `mkdir -p {missing}` on the host, or remove the symlink")
            }
            Self::NoDirectory { path } => format!("replace {path} with a directory"),
        })
    }
}

/// The end of the message on a symlink to `target`.
fn lack(target: &str, missing: &str) -> String {
    if target == missing {
        "which does not exist".to_owned()
    } else {
        format!("and {missing} does not exist")
    }
}

/// What the replacement of a file does not keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Other hard links to the file, which keep the former contents.
    pub other_links: u64,
    /// Whether the file has a hash or a signature of its former contents.
    pub signature: bool,
}

impl HostRoot {
    /// Why no file can be created, replaced or removed in the directory `path`; if the directory does not exist, why it can't be created.
    /// `None` also if the path can't be examined: the change then reports that.
    #[must_use]
    pub fn directory_obstacle(&self, path: &str) -> Option<Obstacle> {
        let open = |path: &str| self.open_at(path, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let (mut nearest, mut fd) = ("/".to_owned(), open("/").ok()?);
        let mut here = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            here = format!("{here}/{part}");
            match open(&here) {
                Ok(opened) => {
                    fd = opened;
                    nearest.clone_from(&here);
                }
                Err(Errno::ENOTDIR) => return Some(Obstacle::NoDirectory { path: here }),
                Err(Errno::ENOENT) => {
                    let target = self.follow(&here).ok()?;
                    if target == here {
                        break;
                    }
                    return Some(Obstacle::Dangling {
                        path: here,
                        missing: target.clone(),
                        target,
                    });
                }
                Err(_) => return None,
            }
        }
        let path = self.follow(&nearest).unwrap_or(nearest);
        match access(&descriptor_path(&fd), AccessFlags::W_OK) {
            Err(Errno::EROFS) => Some(Obstacle::ReadOnly { path }),
            Err(Errno::EACCES) => Some(Obstacle::Denied { path }),
            // The kernel's answer for an immutable directory, also where the file system reports no attributes.
            Err(Errno::EPERM) => Some(Obstacle::Immutable { path }),
            Ok(()) | Err(_) => attribute_obstacle(&fd, path),
        }
    }

    /// Why [`Self::replace`] can't replace or create the file at `path`. `None` also if the path can't be examined: the change then reports
    /// that.
    #[must_use]
    pub fn file_obstacle(&self, path: &str) -> Option<Obstacle> {
        let real = self.follow(path).ok()?;
        let (parent, opened) = (parent_directory(&real), self.try_entry(&real));
        if let (Err(Errno::ENOENT), true) = (&opened, real != path) {
            return Some(Obstacle::Dangling {
                path: path.to_owned(),
                missing: parent.to_owned(),
                target: real,
            });
        }
        match self.directory_obstacle(parent) {
            Some(Obstacle::ReadOnly { .. }) => return Some(Obstacle::ReadOnly { path: real }),
            None => {}
            obstacle => return obstacle,
        }
        let entry = opened.ok()?;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV);
        match openat2(&entry.directory, entry.name.as_str(), how) {
            Ok(fd) => attribute_obstacle(&fd, real),
            Err(Errno::EXDEV) => Some(Obstacle::MountPoint { path: real }),
            Err(_) => None,
        }
    }

    /// What [`Self::replace`] does not keep of the file at `path`; nothing where no file is.
    #[must_use]
    pub fn losses(&self, path: &str) -> Losses {
        let Ok(Some(metadata)) = self.metadata(path) else {
            return Losses::default();
        };
        let signature = self
            .handle(path)
            .is_ok_and(|(_fd, own)| matches!(xattr::get_deref(own, SIGNATURE), Ok(Some(_))));
        Losses {
            other_links: std::os::unix::fs::MetadataExt::nlink(&metadata).saturating_sub(1),
            signature,
        }
    }
}

/// Why an open file or directory can't be replaced, by its attributes. A file system without them, or a kernel that does not tell them,
/// shows none.
fn attribute_obstacle(fd: &(impl AsFd + AsRawFd), path: String) -> Option<Obstacle> {
    let status = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    let attributes = status.map_or(StatxAttributes::empty(), |status| status.stx_attributes);
    if attributes.contains(StatxAttributes::IMMUTABLE) {
        Some(Obstacle::Immutable { path })
    } else if attributes.contains(StatxAttributes::APPEND) {
        Some(Obstacle::AppendOnly { path })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    const FILE: &str = "/etc/containerd/config.toml";

    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("etc/containerd")).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[test]
    fn a_usual_file_can_be_replaced_and_an_absent_one_created() {
        let (directory, host) = host();
        assert_eq!(host.file_obstacle(FILE), None);
        assert_eq!(host.file_obstacle("/gone/away/config.toml"), None);
        assert_eq!(host.directory_obstacle("/opt/farrier/store"), None);
        std::fs::write(directory.path().join("etc/containerd/config.toml"), "").unwrap();
        assert_eq!(host.file_obstacle(FILE), None);
        symlink("config.toml", directory.path().join("etc/containerd/link")).unwrap();
        symlink("absent", directory.path().join("etc/containerd/new")).unwrap();
        assert_eq!(host.file_obstacle("/etc/containerd/link"), None);
        assert_eq!(host.file_obstacle("/etc/containerd/new"), None);
    }

    #[rstest]
    #[case::of_ostree("opt", "var/opt", "/opt/farrier/bin", "/opt", "/var/opt")]
    #[case::absolute("opt", "/var/opt", "/opt/farrier/bin", "/opt", "/var/opt")]
    #[case::of_the_last_part(
        "etc/conf.d",
        "../srv/c",
        "/etc/conf.d",
        "/etc/conf.d",
        "/etc/../srv/c"
    )]
    fn a_symlink_to_a_directory_that_does_not_exist_is_named(
        #[case] link: &str,
        #[case] target: &str,
        #[case] wanted: &str,
        #[case] path: &str,
        #[case] missing: &str,
    ) {
        let (directory, host) = host();
        symlink(target, directory.path().join(link)).unwrap();
        let expected = Obstacle::Dangling {
            path: path.to_owned(),
            target: missing.to_owned(),
            missing: missing.to_owned(),
        };
        let help = format!("run `mkdir -p {missing}` on the host, or remove the symlink");
        assert_eq!(expected.help(), help);
        assert_eq!(host.directory_obstacle(wanted), Some(expected.clone()));
        let file = format!("{wanted}/file");
        assert_eq!(host.file_obstacle(&file), Some(expected));
        std::fs::create_dir_all(directory.path().join(missing.trim_start_matches('/'))).unwrap();
        assert_eq!(host.directory_obstacle(wanted), None);
    }

    #[test]
    fn a_file_behind_a_symlink_needs_its_directory() {
        let (directory, host) = host();
        let link = directory.path().join("etc/containerd/config.toml");
        symlink("/srv/c/config.toml", link).unwrap();
        let obstacle = host.file_obstacle(FILE).unwrap();
        assert_eq!(
            obstacle.to_string(),
            "/etc/containerd/config.toml is a symlink to /srv/c/config.toml, and /srv/c does not exist"
        );
        std::fs::create_dir_all(directory.path().join("srv/c")).unwrap();
        assert_eq!(host.file_obstacle(FILE), None);
    }

    #[test]
    fn a_file_where_a_directory_is_needed_is_named() {
        let (directory, host) = host();
        std::fs::write(directory.path().join("opt"), "").unwrap();
        let obstacle = host.directory_obstacle("/opt/farrier/bin").unwrap();
        assert_eq!(obstacle.to_string(), "/opt is not a directory");
    }

    #[test]
    fn hard_links_are_counted() {
        let (directory, host) = host();
        let path = directory.path().join("etc/containerd/config.toml");
        assert_eq!(host.losses(FILE), Losses::default());
        std::fs::write(&path, "").unwrap();
        assert_eq!(host.losses(FILE), Losses::default());
        std::fs::hard_link(&path, directory.path().join("etc/backup")).unwrap();
        assert_eq!(host.losses(FILE).other_links, 1);
    }
}
