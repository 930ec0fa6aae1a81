//! Reads the mount flags of the host's file systems. No file is read here.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::path::parent_directory;
use super::{HostRoot, Result, failed};

/// The mount flags of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// No file can be written (`ro`).
    pub read_only: bool,
    /// No file can be executed (`noexec`).
    pub no_exec: bool,
}

impl HostRoot {
    /// The mount flags of the file system of `path`. If `path` does not exist, its nearest existing parent counts.
    ///
    /// # Errors
    /// When that path can't be opened or its file system can't be queried.
    pub fn mount_of(&self, path: &str) -> Result<Mount> {
        let mut directory = path;
        let fd = loop {
            match self.open_at(directory, OFlag::O_PATH) {
                Ok(fd) => break fd,
                Err(Errno::ENOENT | Errno::ENOTDIR) if directory.len() > 1 => {
                    directory = parent_directory(directory);
                }
                Err(error) => return Err(failed("open", path)(error)),
            }
        };
        let flags = fstatvfs(&fd)
            .map_err(failed("read the mount flags of", path))?
            .flags();
        Ok(Mount {
            read_only: flags.contains(FsFlags::ST_RDONLY),
            no_exec: flags.contains(FsFlags::ST_NOEXEC),
        })
    }
}
