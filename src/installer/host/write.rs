//! Writing to the host: files replaced in one step, links swapped, folders made and removed, each on disk for certain before the call
//! returns. What to write is decided elsewhere.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use xattr::FileExt as _;

use super::{Error, HostRoot, NEW_SUFFIX, OLD_SUFFIX, Result, failed, failed_io};
use crate::handoff::Sha256Digest;

/// Extended attributes that belong to a file's bytes and not to its place: signatures (`security.ima`, `security.evm`) and
/// privileges (`capabilities(7)`).
const OF_THE_BYTES: [&str; 3] = ["security.ima", "security.evm", "security.capability"];

/// Gives `new` the owner, mode and extended attributes of `old`: a label of `SELinux` decides whether containerd may read the file.
fn keep_attributes(old: &File, new: &File, path: &str) -> Result<()> {
    let failed = |act| failed_io(act, path);
    let before = old.metadata().map_err(failed("look at"))?;
    let now = new.metadata().map_err(failed("look at the new"))?;
    if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
        fchown(new, Some(before.uid()), Some(before.gid())).map_err(failed("keep the owner of"))?;
    }
    new.set_permissions(Permissions::from_mode(before.mode() & 0o7777))
        .map_err(failed("keep the mode of"))?;
    // A file system without such attributes has none to keep.
    for name in old.list_xattr().into_iter().flatten() {
        if OF_THE_BYTES.iter().any(|known| name == *known) {
            continue;
        }
        let value = old
            .get_xattr(&name)
            .map_err(failed("read the attributes of"))?;
        // Removed since it was listed.
        let Some(value) = value else {
            continue;
        };
        if new.get_xattr(&name).ok().flatten().as_ref() != Some(&value) {
            new.set_xattr(&name, &value)
                .map_err(failed("keep the attributes of"))?;
        }
    }
    Ok(())
}

impl HostRoot {
    /// The folder `path` and those of its parents that are not there, outermost first.
    ///
    /// # Errors
    /// When one can't be looked at: what was there is never counted as made by a change, which would remove it with the change.
    pub fn missing_directories(&self, path: &str) -> Result<Vec<String>> {
        let mut directory = String::new();
        let mut missing = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            directory = format!("{directory}/{part}");
            match self.open_at(&directory, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(_) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR) => missing.push(directory.clone()),
                Err(errno) => return Err(failed("look at", &directory)(errno)),
            }
        }
        Ok(missing)
    }

    /// Makes a folder, whose parent is there; one that is there already is fine.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create_directory(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        match mkdirat(
            &entry.directory,
            entry.name.as_str(),
            Mode::from_bits_truncate(0o755),
        ) {
            Ok(()) => entry.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(failed("make the folder", path)(errno)),
        }
    }

    /// Replaces the file at `path`, or makes it, in one step that a crash can't halve. The new file has the owner, mode and extended
    /// attributes of the old one, or `mode`; a link is followed, inside the root, and stays a link.
    ///
    /// `expected` is the SHA-256 of the bytes that the caller read, `None` where it found no file.
    ///
    /// # Errors
    /// [`Error::Changed`] where something else stands there by now; otherwise what the system says.
    pub fn replace(
        &self,
        path: &str,
        bytes: &[u8],
        expected: Option<Sha256Digest>,
        mode: u32,
    ) -> Result<()> {
        let path = self.follow(path)?;
        self.replace_followed(&path, bytes, expected, mode)
            .inspect_err(|_| self.discard_new(&path))
    }

    fn replace_followed(
        &self,
        path: &str,
        bytes: &[u8],
        expected: Option<Sha256Digest>,
        mode: u32,
    ) -> Result<()> {
        let mut file = self.create_new(path, mode)?;
        if let Some(old) = self.open_file(path)? {
            keep_attributes(&old, &file, path)?;
        }
        file.write_all(bytes).map_err(failed_io("write", path))?;
        file.sync_all().map_err(failed_io("write", path))?;
        if self.digest(path)? != expected {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        }
        self.commit_new(path)
    }

    /// An empty file with `mode` beside `path`, under its name with [`NEW_SUFFIX`].
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
            openat2(&entry.directory, entry.name.as_str(), how).map_err(failed("make", &new))?,
        );
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(failed_io("set the mode of", &new))?;
        Ok(file)
    }

    /// Removes what [`Self::create_new`] made and nobody put in place. Best effort: a later run overwrites it.
    pub fn discard_new(&self, path: &str) {
        let _ = self.remove_file(&format!("{path}{NEW_SUFFIX}"));
    }

    /// Puts what [`Self::create_new`] made in the place of `path`.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn commit_new(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        let new = format!("{}{NEW_SUFFIX}", entry.name);
        renameat(
            &entry.directory,
            new.as_str(),
            &entry.directory,
            entry.name.as_str(),
        )
        .map_err(failed("put a new file in the place of", path))?;
        entry.sync()
    }

    /// Points the link at `path` to `target` in one step.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn swap_symlink(&self, path: &str, target: &str) -> Result<()> {
        let new = format!("{path}{NEW_SUFFIX}");
        self.remove_file(&new)?;
        let entry = self.entry(&new)?;
        symlinkat(target, &entry.directory, entry.name.as_str()).map_err(failed("make", &new))?;
        self.commit_new(path)
    }

    /// Gives the file at `path` a second name, so that its bytes outlive what is put in its place. Nothing there, or a link, is fine.
    ///
    /// # Errors
    /// When the name can't be made.
    pub fn keep_replaced(&self, path: &str) -> Result<()> {
        if !self.exists(path)? || self.symlink_target(path)?.is_some() {
            return Ok(());
        }
        let old = format!("{path}{OLD_SUFFIX}");
        self.remove_file(&old)?;
        let entry = self.entry(path)?;
        let name = format!("{}{OLD_SUFFIX}", entry.name);
        linkat(
            &entry.directory,
            entry.name.as_str(),
            &entry.directory,
            name.as_str(),
            AtFlags::empty(),
        )
        .map_err(failed("keep", path))?;
        entry.sync()
    }

    /// Puts the file back that [`Self::keep_replaced`] kept, if it kept one.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub fn restore_replaced(&self, path: &str) -> Result<()> {
        let old = format!("{path}{OLD_SUFFIX}");
        if !self.exists(&old)? {
            return Ok(());
        }
        let entry = self.entry(path)?;
        let name = format!("{}{OLD_SUFFIX}", entry.name);
        renameat(
            &entry.directory,
            name.as_str(),
            &entry.directory,
            entry.name.as_str(),
        )
        .map_err(failed("put back", path))?;
        // Two names of one file: renaming does nothing then (rename(2)).
        self.remove_file(&old)?;
        entry.sync()
    }

    /// Removes the second name of [`Self::keep_replaced`]. Best effort: it stands in a predecessor's folder and does no harm.
    pub fn discard_replaced(&self, path: &str) {
        let _ = self.remove_file(&format!("{path}{OLD_SUFFIX}"));
    }

    /// Removes a file or a link, not what it points to; nothing there is fine.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove_file(&self, path: &str) -> Result<()> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(());
        };
        let flag = UnlinkatFlags::NoRemoveDir;
        match unlinkat(&entry.directory, entry.name.as_str(), flag) {
            Ok(()) => entry.sync(),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed("remove", path)(errno)),
        }
    }

    /// Removes a folder if it is empty; says whether it is gone.
    ///
    /// # Errors
    /// When it can't be removed for another reason than what is in it.
    pub fn remove_directory(&self, path: &str) -> Result<bool> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(true);
        };
        match unlinkat(
            &entry.directory,
            entry.name.as_str(),
            UnlinkatFlags::RemoveDir,
        ) {
            Ok(()) => entry.sync().map(|()| true),
            Err(Errno::ENOENT) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(failed("remove the folder", path)(errno)),
        }
    }
}
