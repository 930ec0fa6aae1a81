//! The cache: the directory with everything that takes long to build, such as programs, the base file system and images. An entry is complete
//! or absent.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The cache directory. The name of an entry contains its version, so an entry never has to be refreshed.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens `$FARRIER_CACHE`, or `farrier` in the user's cache directory. Creates the directory if it does not exist.
    ///
    /// # Errors
    /// When `$FARRIER_CACHE` is not set and there is no home directory, or the directory can't be created.
    pub fn open() -> Result<Self> {
        let root = env::var_os("FARRIER_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cache/farrier")))
            .context(
                "failed to find the home directory: set FARRIER_CACHE to a directory for the cache",
            )?;
        Self::at(&root)
    }

    /// Opens the cache in `root`. Creates the directory if it does not exist.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("failed to create {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("failed to find {}", root.display()))?;
        Ok(Self { root })
    }

    /// The path of the entry `name`, which may not exist.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory of the entry `name`. If the entry does not exist, `make` creates its content first.
    ///
    /// If several processes need the same entry, one process makes it and the others wait.
    ///
    /// # Errors
    /// The error of `make`, and when the directory can't be made or renamed.
    pub fn publish(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(name);
        if path.is_dir() {
            return Ok(path);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("failed to create {}", parent.display()))?;
        }
        let _lock = lock(&path.with_added_extension("lock"))?;
        if path.is_dir() {
            return Ok(path);
        }
        let partial = path.with_added_extension("partial");
        remove_tree(&partial)?;
        fs::create_dir(&partial)
            .with_context(|| format!("failed to create {}", partial.display()))?;
        make(&partial)?;
        fs::rename(&partial, &path)
            .with_context(|| format!("failed to publish {}", path.display()))?;
        Ok(path)
    }
}

/// Waits for the lock on the file `path`, and holds it until dropped.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file =
        File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("failed to lock {}", path.display()))?;
    Ok(file)
}

/// Removes a directory with its content, if it exists.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    or_absent(path, fs::remove_dir_all(path))
}

/// Removes a file or a symlink, if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    or_absent(path, fs::remove_file(path))
}

fn or_absent(path: &Path, removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn an_entry_is_built_once() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path()).unwrap();
        let path = cache
            .publish("tools/a-1", |dir| Ok(fs::write(dir.join("a"), "1")?))
            .unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
        cache.publish("tools/a-1", |_| bail!("made again")).unwrap();
    }

    #[test]
    fn a_failed_entry_is_absent_and_can_be_built_again() {
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
