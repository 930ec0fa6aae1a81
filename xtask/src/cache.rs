//! The one folder in which xtask keeps what is dear to make: programs, the base file system, images. Entries appear whole or not at all.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The cache folder. Every entry's name holds its version, so that nothing in it ever needs to be refreshed.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens `$FARRIER_CACHE`, or `farrier` in the user's cache folder, and makes it if need be.
    ///
    /// # Errors
    /// When neither variable nor home is known, or the folder can't be made.
    pub fn open() -> Result<Self> {
        let root = env::var_os("FARRIER_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cache/farrier")))
            .context("no home folder is known: set FARRIER_CACHE to a folder for what is built")?;
        Self::at(&root)
    }

    /// Opens the cache in `root`, and makes it if need be.
    ///
    /// # Errors
    /// When the folder can't be made.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot find {}", root.display()))?;
        Ok(Self { root })
    }

    /// Where the entry `name` is, or would be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder of the entry `name`; if there is none yet, `make` fills it first.
    ///
    /// Of several processes that want the same entry one makes it and the others wait.
    ///
    /// # Errors
    /// What `make` returns, or when the folder can't be made or renamed.
    pub fn publish(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(path);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let _lock = lock(&path.with_added_extension("lock"))?;
        if path.is_dir() {
            return Ok(path);
        }
        let partial = path.with_added_extension("partial");
        remove_tree(&partial)?;
        fs::create_dir(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        make(&partial)?;
        fs::rename(&partial, &path)
            .with_context(|| format!("cannot publish {}", path.display()))?;
        Ok(path)
    }
}

/// Holds the lock file `path` until dropped; waits for whoever holds it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Removes a folder and all in it; one that isn't there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    or_absent(path, fs::remove_dir_all(path))
}

/// Removes a file or a link; one that isn't there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    or_absent(path, fs::remove_file(path))
}

fn or_absent(path: &Path, removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn an_entry_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let path = cache
            .publish("tools/a-1", |dir| Ok(fs::write(dir.join("a"), "1")?))
            .unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
        cache.publish("tools/a-1", |_| bail!("made again")).unwrap();
    }

    #[test]
    fn a_failed_entry_does_not_appear_and_can_be_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let half = cache.publish("a-1", |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("no luck")
        });
        assert!(half.is_err() && !cache.path("a-1").exists());
        let path = cache.publish("a-1", |_| Ok(())).unwrap();
        assert!(!path.join("half").exists());
    }
}
