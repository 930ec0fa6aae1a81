//! How the file systems of a host are mounted. What stands on them is not looked at here.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::{HostRoot, Result, failed};

/// How a file system is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// Nothing can be written.
    pub read_only: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
}

impl HostRoot {
    /// How the file system is mounted that `path` is on, or would be on once its folders are made.
    ///
    /// # Errors
    /// When that can't be asked.
    pub fn mount_of(&self, path: &str) -> Result<Mount> {
        let mut directory = path;
        let fd = loop {
            match self.open_at(directory, OFlag::O_PATH) {
                Ok(fd) => break fd,
                Err(Errno::ENOENT | Errno::ENOTDIR) if directory.len() > 1 => {
                    directory = directory.rsplit_once('/').map_or("/", |(parent, _)| parent);
                    directory = if directory.is_empty() { "/" } else { directory };
                }
                Err(error) => return Err(failed("open", path)(error)),
            }
        };
        let flags = fstatvfs(&fd).map_err(failed("look at", path))?.flags();
        Ok(Mount {
            read_only: flags.contains(FsFlags::ST_RDONLY),
            no_exec: flags.contains(FsFlags::ST_NOEXEC),
        })
    }
}
