//! Reads the configuration files of a host's containerd: the root file and all imports, expanded as containerd does. Edits nothing.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};

use crate::containerd_config;
use crate::containerd_config::{ConfigFiles, Glob, SourceFile, TEXT_LIMIT, clean_path, imports};
use crate::installer::host;
use crate::installer::host::HostRoot;
use crate::installer::host::path::parent_directory;

/// Why containerd's configuration files can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The list of imports of a file can't be read.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// The configuration has too many files.
    #[error("{path} imports more than {MAX_IMPORTS} files")]
    TooManyImports {
        /// The root configuration.
        path: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Host(error) => return error.help(),
            Self::Config(error) => return error.help(),
            Self::TooManyImports { .. } => Cow::Borrowed("import fewer files"),
        })
    }
}

/// Files beside the root configuration, at most. A real configuration has a handful; a glob over a wrong directory ends here.
const MAX_IMPORTS: usize = 256;

/// Reads the root configuration and all imported files, in containerd's order: breadth first, each file once.
///
/// # Errors
/// When a file can't be read, or the configuration imports too many files.
pub fn load(host: &HostRoot, root: &str) -> Result<ConfigFiles, Error> {
    let read = |path: &str| -> Result<SourceFile, Error> {
        Ok(SourceFile {
            path: path.to_owned(),
            text: host.read_text(path, TEXT_LIMIT as u64)?,
        })
    };
    let root = read(root)?;
    let mut seen = BTreeSet::from([root.path.clone()]);
    let mut imported: Vec<SourceFile> = Vec::new();
    let mut pending = VecDeque::from(import_paths(host, &root));
    while let Some(path) = pending.pop_front() {
        if imported.len() >= MAX_IMPORTS {
            return Err(Error::TooManyImports { path: root.path });
        }
        if seen.insert(path.clone()) {
            let file = read(&path)?;
            pending.extend(import_paths(host, &file));
            imported.push(file);
        }
    }
    Ok(ConfigFiles { root, imported })
}

/// The import patterns of a file, as absolute paths. A file that does not parse has none here; the plan reports the syntax error.
pub(crate) fn patterns(file: &SourceFile) -> Vec<String> {
    let directory = parent_directory(&file.path);
    let patterns = file.text.as_deref().map(imports).and_then(Result::ok);
    let absolute = |pattern: &String| {
        if pattern.starts_with('/') {
            clean_path(pattern)
        } else {
            clean_path(&format!("{directory}/{pattern}"))
        }
    };
    patterns.iter().flatten().map(absolute).collect()
}

/// Whether a file imports itself. containerd skips such an import, but loads the original if a copy of the file imports it.
pub(crate) fn imports_itself(host: &HostRoot, file: &SourceFile) -> bool {
    import_paths(host, file).contains(&file.path)
}

/// The imported paths of a file. containerd treats a pattern without `*` as a plain path.
fn import_paths(host: &HostRoot, file: &SourceFile) -> Vec<String> {
    let expanded = patterns(file).into_iter().map(|pattern| {
        if pattern.contains('*') {
            expand(host, &pattern)
        } else {
            vec![pattern]
        }
    });
    expanded.flatten().collect()
}

/// The paths that match a pattern, in byte order, directory by directory as Go's `filepath.Glob` finds them. Like `filepath.Glob` and
/// containerd, skips directories that can't be listed.
fn expand(host: &HostRoot, pattern: &str) -> Vec<String> {
    search(host, pattern, &mut |_| {})
}

/// The directories in which a pattern looks for names, as far as they exist: with `/etc/*/a.toml`, `/etc` and each directory in it.
pub(crate) fn searched_directories(host: &HostRoot, pattern: &str) -> BTreeSet<String> {
    let mut searched = BTreeSet::new();
    if pattern.contains('*') {
        search(host, pattern, &mut |directory| {
            if searched.len() < MAX_IMPORTS {
                searched.insert(directory.to_owned());
            }
        });
    }
    let is_directory = |path: &String| {
        let metadata = host.metadata(path).ok().flatten();
        metadata.is_some_and(|metadata| metadata.is_dir())
    };
    searched.retain(is_directory);
    searched
}

/// As [`expand`]. `visit` gets every directory from the first part with a pattern on.
fn search(host: &HostRoot, pattern: &str, visit: &mut impl FnMut(&str)) -> Vec<String> {
    let (mut paths, mut is_searched) = (vec![String::new()], false);
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let Some(glob) = Glob::parse(part) else {
            return Vec::new();
        };
        let is_pattern = part.contains(['*', '?', '[', '\\']);
        is_searched |= is_pattern;
        let mut found = Vec::new();
        for directory in paths {
            let here = if directory.is_empty() {
                "/"
            } else {
                &directory
            };
            if is_searched {
                visit(here);
            }
            let listed = if is_pattern {
                host.list(here).unwrap_or_default()
            } else {
                vec![part.to_owned()]
            };
            let matching = listed.into_iter().filter(|name| glob.matches(name));
            found.extend(matching.map(|name| format!("{directory}/{name}")));
        }
        paths = found;
    }
    paths.retain(|path| host.seems_to_exist(path));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_read_in_the_order_of_containerd() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("etc/containerd/conf.d");
        std::fs::create_dir_all(&conf).unwrap();
        let root =
            "imports = [\"conf.d/*.toml\", \"/etc/containerd/conf.d/../last\", \"/gone.toml\"]\n";
        std::fs::write(directory.path().join("etc/containerd/config.toml"), root).unwrap();
        std::fs::write(directory.path().join("etc/containerd/last"), "").unwrap();
        std::fs::write(conf.join("9.toml"), "imports = ['../config.toml', 'n']\n").unwrap();
        for name in ["10.toml", "a.toml", "a.toml.bak", "n"] {
            std::fs::write(conf.join(name), "").unwrap();
        }
        let host = HostRoot::open(directory.path()).unwrap();
        let config_files = load(&host, "/etc/containerd/config.toml").unwrap();
        let paths: Vec<&str> = config_files
            .imported
            .iter()
            .map(|file| file.path.as_str())
            .collect();
        assert_eq!(
            paths,
            [
                "/etc/containerd/conf.d/10.toml",
                "/etc/containerd/conf.d/9.toml",
                "/etc/containerd/conf.d/a.toml",
                "/etc/containerd/last",
                "/gone.toml",
                "/etc/containerd/conf.d/n",
            ]
        );
        assert_eq!(config_files.imported[4].text, None);
    }

    #[test]
    fn a_pattern_searches_every_directory_from_its_first_wildcard_on() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["etc/c/a", "etc/c/b/x", "etc/c/other.d"] {
            std::fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        std::fs::write(directory.path().join("etc/c/b.toml"), "").unwrap();
        std::fs::write(directory.path().join("etc/c/a/p.toml"), "").unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let searched = |pattern: &str| searched_directories(&host, pattern).into_iter();
        let all: Vec<String> = searched("/etc/c/*/p.toml").collect();
        assert_eq!(all, ["/etc/c", "/etc/c/a", "/etc/c/b", "/etc/c/other.d"]);
        assert_eq!(searched("/etc/c/*.toml").collect::<Vec<_>>(), ["/etc/c"]);
        let deeper: Vec<String> = searched("/etc/c/b/*/q/*.toml").collect();
        assert_eq!(deeper, ["/etc/c/b", "/etc/c/b/x"]);
        assert_eq!(searched("/etc/c/b.toml").count(), 0);
        assert_eq!(searched("/gone/*.toml").count(), 0);
    }
}
