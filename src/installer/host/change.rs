//! Writing to the host: files replaced in one step, links swapped, folders made and removed, each on disk for certain before the call
//! returns. What to write is decided elsewhere.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::{Error, HostRoot, NEW_SUFFIX, Result, failed, failed_io};

impl HostRoot {
    /// Makes a folder, whose parent is there; one that is there already is fine.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create_folder(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        match mkdirat(
            &entry.folder,
            entry.name.as_str(),
            Mode::from_bits_truncate(0o755),
        ) {
            Ok(()) => entry.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(failed("make the folder", path)(errno)),
        }
    }

    /// Replaces the file at `path`, or makes it, in one step that a crash can't halve. The new file has the owner and mode of the
    /// old one, or `mode`; a link is followed, inside the root, and stays a link.
    ///
    /// `expected` is the SHA-256 of the bytes that the caller read, `None` where it found no file.
    ///
    /// # Errors
    /// [`Error::Changed`] where something else stands there by now; otherwise what the system says.
    pub fn replace(
        &self,
        path: &str,
        bytes: &[u8],
        expected: Option<&str>,
        mode: u32,
    ) -> Result<()> {
        let path = self.follow(path)?;
        self.write_new(&path, bytes, mode)?;
        let now = self.digest(&path)?;
        if now.as_deref() != expected {
            self.remove_file(&format!("{path}{NEW_SUFFIX}"))?;
            return Err(Error::Changed { path });
        }
        self.commit_new(&path)
    }

    /// Writes `bytes` beside `path`, under its name with [`NEW_SUFFIX`], on disk for certain, with the owner and mode of `path`.
    fn write_new(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut file = self.create_new(path, mode)?;
        file.write_all(bytes).map_err(failed_io("write", path))?;
        file.sync_all().map_err(failed_io("write", path))
    }

    /// An empty file beside `path`, under its name with [`NEW_SUFFIX`], with the owner and mode of `path`, or `mode`.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create_new(&self, path: &str, mode: u32) -> Result<File> {
        let new = format!("{path}{NEW_SUFFIX}");
        // Left over from a run that was killed; we hold the lock.
        self.remove_file(&new)?;
        let entry = self.entry(&new)?;
        // O_EXCL: nobody's link is written through.
        let how = OpenHow::new()
            .flags(
                OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC,
            )
            .mode(Mode::from_bits_truncate(0o600));
        let file = File::from(
            openat2(&entry.folder, entry.name.as_str(), how).map_err(failed("make", &new))?,
        );
        let mode = match self.open_file(path)? {
            Some(old) => {
                let old = old.metadata().map_err(failed_io("look at", path))?;
                let new_owner = file.metadata().map_err(failed_io("look at", &new))?;
                if (old.uid(), old.gid()) != (new_owner.uid(), new_owner.gid()) {
                    fchown(&file, Some(old.uid()), Some(old.gid()))
                        .map_err(failed_io("set the owner of", &new))?;
                }
                old.mode() & 0o7777
            }
            None => mode,
        };
        file.set_permissions(std::fs::Permissions::from_mode(mode))
            .map_err(failed_io("set the mode of", &new))?;
        Ok(file)
    }

    /// Puts what [`Self::create_new`] made in the place of `path`.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn commit_new(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        let new = format!("{}{NEW_SUFFIX}", entry.name);
        renameat(
            &entry.folder,
            new.as_str(),
            &entry.folder,
            entry.name.as_str(),
        )
        .map_err(failed("put a new file in the place of", path))?;
        entry.sync()
    }

    /// Points the link at `path` to `target` in one step.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn swap_link(&self, path: &str, target: &str) -> Result<()> {
        let new = format!("{path}{NEW_SUFFIX}");
        self.remove_file(&new)?;
        let entry = self.entry(&new)?;
        symlinkat(target, &entry.folder, entry.name.as_str()).map_err(failed("make", &new))?;
        self.commit_new(path)
    }

    /// Removes a file or a link, not what it points to; nothing there is fine.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove_file(&self, path: &str) -> Result<()> {
        if !self.exists(path) {
            return Ok(());
        }
        let entry = self.entry(path)?;
        unlinkat(
            &entry.folder,
            entry.name.as_str(),
            UnlinkatFlags::NoRemoveDir,
        )
        .map_err(failed("remove", path))?;
        entry.sync()
    }

    /// Removes a folder if it is empty; says whether it is gone.
    ///
    /// # Errors
    /// When it can't be removed for another reason than what is in it.
    pub fn remove_folder(&self, path: &str) -> Result<bool> {
        if !self.exists(path) {
            return Ok(true);
        }
        let entry = self.entry(path)?;
        match unlinkat(&entry.folder, entry.name.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => entry.sync().map(|()| true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(failed("remove the folder", path)(errno)),
        }
    }
}
