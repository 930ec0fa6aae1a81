//! Writes to the host: replaces files atomically, swaps symlinks, creates and removes directories. Every change is synced to the disk
//! before the call returns. The callers decide the contents.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use xattr::FileExt as _;

use super::obstacle::SIGNATURE;
use super::owner::ACCESS_LIST;
use super::{Error, HostRoot, NEW_SUFFIX, OLD_SUFFIX, Result, failed, failed_io};
use crate::handoff::Sha256Digest;

/// The extended attribute with the privileges of a program (capabilities(7)), which other contents must not get.
const PRIVILEGES: &str = "security.capability";

/// Extended attributes with a hash or a signature of the contents. They fit again when the old contents are restored; the kernel may refuse to
/// set them, or write its own.
const SIGNATURES: [&str; 2] = [SIGNATURE, "security.evm"];

/// Copies the owner, mode and extended attributes of `old` to `new`: without the `SELinux` label, containerd may not read the file.
fn keep_attributes(old: &File, new: &File, path: &str) -> Result<()> {
    let failed = |act| failed_io(act, path);
    let before = old.metadata().map_err(failed("read the metadata of"))?;
    let now = new
        .metadata()
        .map_err(failed("read the metadata of the replacement of"))?;
    if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
        fchown(new, Some(before.uid()), Some(before.gid())).map_err(failed("copy the owner of"))?;
    }
    new.set_permissions(Permissions::from_mode(before.mode() & 0o7777))
        .map_err(failed("copy the mode of"))?;
    // A file system without extended attributes lists none.
    for name in old.list_xattr().into_iter().flatten() {
        if name == PRIVILEGES {
            continue;
        }
        let value = old
            .get_xattr(&name)
            .map_err(failed("read the extended attributes of"))?;
        // The attribute was removed after the listing.
        let Some(value) = value else {
            continue;
        };
        if new.get_xattr(&name).ok().flatten().as_ref() != Some(&value) {
            let copied = new.set_xattr(&name, &value);
            if !SIGNATURES.iter().any(|signature| name == *signature) {
                copied.map_err(failed("copy the extended attributes of"))?;
            }
        }
    }
    Ok(())
}

/// Removes the access control list that a new file inherits from its directory (acl(5)): the mode of the file, or the list of the file that it
/// replaces, says who may use it.
fn remove_inherited_list(file: &File, path: &str) -> Result<()> {
    // The answers of a file without a list, and of a file system without lists.
    let is_without = |error: &io::Error| {
        let errno = error.raw_os_error().map(Errno::from_raw);
        matches!(errno, Some(Errno::ENODATA | Errno::EOPNOTSUPP))
    };
    match file.remove_xattr(ACCESS_LIST) {
        Err(error) if !is_without(&error) => {
            Err(failed_io("remove the access control list of", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl HostRoot {
    /// Those of the directory `path` and its parents that do not exist, outermost first.
    ///
    /// # Errors
    /// When one of them can't be checked. A change removes the directories that it created, so an existing one must not be listed here.
    pub fn missing_directories(&self, path: &str) -> Result<Vec<String>> {
        let mut directory = String::new();
        let mut missing = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            directory = format!("{directory}/{part}");
            match self.open_at(&directory, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(_) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR) => missing.push(directory.clone()),
                Err(errno) => return Err(failed("read the metadata of", &directory)(errno)),
            }
        }
        Ok(missing)
    }

    /// Creates a directory, whose parent must exist. An existing directory is no error.
    ///
    /// # Errors
    /// When the directory can't be created.
    pub fn create_directory(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        match mkdirat(
            &entry.directory,
            entry.name.as_str(),
            Mode::from_bits_truncate(0o755),
        ) {
            Ok(()) => entry.sync(),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(failed("create the directory", path)(errno)),
        }
    }

    /// Atomically replaces the file at `path`, or creates it. The new file has the owner, mode and extended attributes of the old file;
    /// without an old file, it has `mode`. A symlink is followed inside the root and stays a symlink.
    ///
    /// `expected` is the SHA-256 of the contents that the caller has read, or `None` if the caller found no file.
    ///
    /// # Errors
    /// [`Error::Changed`] when the current contents are not the expected ones; otherwise the error of the system call.
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

    /// Atomically replaces the file at `path`, one of Farrier's own, or creates it. Unlike [`Self::replace`], it takes over no owner, mode
    /// or extended attribute of the old file, and replaces a symlink itself.
    ///
    /// # Errors
    /// The error of the system call.
    pub fn write_own(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let written = self.create_new(path, mode).and_then(|mut file| {
            file.write_all(bytes).map_err(failed_io("write", path))?;
            file.sync_all().map_err(failed_io("write", path))?;
            self.commit_new(path)
        });
        written.inspect_err(|_| self.discard_new(path))
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

    /// Creates an empty file with `mode` beside `path`; its name is that of `path` with `NEW_SUFFIX`.
    ///
    /// # Errors
    /// When the file can't be created.
    pub fn create_new(&self, path: &str, mode: u32) -> Result<File> {
        let new = format!("{path}{NEW_SUFFIX}");
        // An existing file is from a killed run: this run holds the lock.
        self.remove_file(&new)?;
        let entry = self.entry(&new)?;
        // O_EXCL: a symlink of another user is not followed.
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
            openat2(&entry.directory, entry.name.as_str(), how).map_err(failed("create", &new))?,
        );
        remove_inherited_list(&file, &new)?;
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(failed_io("set the mode of", &new))?;
        Ok(file)
    }

    /// Removes the file of [`Self::create_new`]. Best effort: a later run overwrites a file that remains.
    pub fn discard_new(&self, path: &str) {
        let _ = self.remove_file(&format!("{path}{NEW_SUFFIX}"));
    }

    /// Renames the file of [`Self::create_new`] to `path`.
    ///
    /// # Errors
    /// When the file can't be renamed.
    pub fn commit_new(&self, path: &str) -> Result<()> {
        let entry = self.entry(path)?;
        let new = format!("{}{NEW_SUFFIX}", entry.name);
        renameat(
            &entry.directory,
            new.as_str(),
            &entry.directory,
            entry.name.as_str(),
        )
        .map_err(failed("replace", path))?;
        entry.sync()
    }

    /// Atomically replaces the symlink at `path` with one to `target`, or creates it.
    ///
    /// # Errors
    /// When the symlink can't be created or renamed.
    pub fn swap_symlink(&self, path: &str, target: &str) -> Result<()> {
        let new = format!("{path}{NEW_SUFFIX}");
        self.remove_file(&new)?;
        let entry = self.entry(&new)?;
        symlinkat(target, &entry.directory, entry.name.as_str()).map_err(failed("create", &new))?;
        self.commit_new(path)
    }

    /// Creates a hard link to the file at `path`, with `OLD_SUFFIX`, so that the file survives its replacement. A symlink, or a path
    /// where nothing exists, is skipped.
    ///
    /// # Errors
    /// When the hard link can't be created.
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
        .map_err(failed("create a hard link to", path))?;
        entry.sync()
    }

    /// Restores the file of [`Self::keep_replaced`], if there is one.
    ///
    /// # Errors
    /// When the file can't be renamed.
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
        .map_err(failed("restore", path))?;
        // If both names are hard links to one file, a rename does nothing (rename(2)).
        self.remove_file(&old)?;
        entry.sync()
    }

    /// Removes the hard link of [`Self::keep_replaced`]. Best effort: a hard link that remains in a legacy installer's directory has no
    /// effect.
    pub fn discard_replaced(&self, path: &str) {
        let _ = self.remove_file(&format!("{path}{OLD_SUFFIX}"));
    }

    /// Removes a file or a symlink. A path where nothing exists is no error.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub fn remove_file(&self, path: &str) -> Result<()> {
        let Some(entry) = self.entry_in_directory(path)? else {
            return Ok(());
        };
        let flag = UnlinkatFlags::NoRemoveDir;
        match unlinkat(&entry.directory, entry.name.as_str(), flag) {
            Ok(()) => entry.sync(),
            Err(Errno::ENOENT) => Ok(()),
            // On a read-only file system, the kernel says so even if nothing exists at the path.
            Err(Errno::EROFS) if !self.exists(path)? => Ok(()),
            Err(errno) => Err(failed("remove", path)(errno)),
        }
    }

    /// Removes a directory if it is empty; returns whether the directory no longer exists.
    ///
    /// # Errors
    /// When an empty directory can't be removed.
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
            Err(Errno::EROFS) if !self.exists(path)? => Ok(true),
            Err(errno) => Err(failed("remove the directory", path)(errno)),
        }
    }
}
