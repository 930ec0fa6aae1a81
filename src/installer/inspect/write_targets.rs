//! Looks at the files and directories that a change may write: what prevents that, and what a replaced file loses. Reads only; `plan` decides
//! which of them a change writes.

use std::collections::BTreeMap;

use crate::containerd_config::{ConfigFiles, SourceFile};
use crate::handoff::Problem;
use crate::installer::containerd::config_files::patterns;
use crate::installer::host::HostRoot;
use crate::installer::host::obstacle::{Losses, Obstacle};
use crate::installer::host::path::parent_directory;
use crate::installer::state::{InstallPaths, JOURNAL_FILE, STATE_DIRECTORY, STATE_FILE};

/// A file or directory that a change may write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteTarget {
    /// Why it can't be written.
    pub problem: Option<Problem>,
    /// What its replacement loses, each one sentence for an operator.
    pub notes: Vec<String>,
}

/// Why a change can't write the files of its own: those of the state, and those in the directories of `install_paths`.
pub(crate) fn own_paths_problem(host: &HostRoot, install_paths: &InstallPaths) -> Option<Problem> {
    let (store, bin) = (install_paths.store(), install_paths.bin());
    let mut directories = [STATE_DIRECTORY, &store, &bin].into_iter();
    directories
        .find_map(|path| Some(problem(path, &host.directory_obstacle(path)?, None)))
        .or_else(|| {
            let mut files = [STATE_FILE, JOURNAL_FILE].into_iter();
            files.find_map(|path| Some(problem(path, &host.file_obstacle(path)?, None)))
        })
}

/// The files that declare or may declare handlers, and the binaries of legacy installers `legacy`, by path, as far as there is anything to say
/// about them. Under the path of its directory is the root configuration's directory, in which a change leaves candidates for a moment.
pub(crate) fn write_targets<'a>(
    host: &HostRoot,
    config_files: &ConfigFiles,
    sources: &[SourceFile],
    orphaned: Option<&SourceFile>,
    legacy: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, WriteTarget> {
    let root = &config_files.root;
    let files = config_files.files().chain(sources).chain(orphaned);
    let mut paths: Vec<String> = files.map(|file| file.path.clone()).collect();
    // Farrier's own file in an imported directory may not exist yet.
    let patterns = patterns(root);
    let directories = patterns.iter().map(|pattern| parent_directory(pattern));
    paths.extend(directories.map(|directory| format!("{directory}/farrier.toml")));
    let on_read_only = read_only_help(host);
    let config = |path: String| {
        let obstacle = host.file_obstacle(&path);
        let target = WriteTarget {
            problem: obstacle.map(|obstacle| problem(&path, &obstacle, on_read_only)),
            notes: notes(&path, host.losses(&path)),
        };
        (path, target)
    };
    let binary = |path: &String| {
        let obstacle = host.file_obstacle(path);
        let target = WriteTarget {
            problem: obstacle.map(|obstacle| problem(path, &obstacle, None)),
            notes: Vec::new(),
        };
        (path.clone(), target)
    };
    let directory = parent_directory(&root.path).to_owned();
    let obstacle = host.directory_obstacle(&directory);
    let of_directory = WriteTarget {
        problem: obstacle.map(|obstacle| problem(&directory, &obstacle, on_read_only)),
        notes: Vec::new(),
    };
    let mut targets: BTreeMap<String, WriteTarget> = legacy.map(binary).collect();
    targets.extend(paths.into_iter().map(config));
    targets.insert(directory, of_directory);
    targets.retain(|_, target| *target != WriteTarget::default());
    targets
}

/// The help for a configuration on a read-only file system; `None` if the file system has to be remounted.
fn read_only_help(host: &HostRoot) -> Option<&'static str> {
    let is_writable = host.directory_obstacle("/etc/containerd").is_none();
    is_writable.then_some(
        "remount the file system read-write, or copy the file to /etc/containerd/config.toml and name the copy in a drop-in of containerd's unit",
    )
}

/// Why `path` can't be written, because of `obstacle`. `on_read_only` is the help for a read-only file system, if it is a special one.
fn problem(path: &str, obstacle: &Obstacle, on_read_only: Option<&'static str>) -> Problem {
    let message = if obstacle.path() == path {
        obstacle.to_string()
    } else {
        format!("failed to write {path}: {obstacle}")
    };
    match (obstacle, on_read_only) {
        (Obstacle::ReadOnly { .. }, Some(help)) => Problem::with_help(message, help),
        _ => Problem::new(message, Some(obstacle.help())),
    }
}

/// What the file at `path` loses when it is replaced.
fn notes(path: &str, losses: Losses) -> Vec<String> {
    let mut notes = Vec::new();
    if losses.other_links > 0 {
        notes.push(format!(
            "{path} has other hard links ({}), which keep the former contents: Farrier replaces the file at this path alone",
            losses.other_links
        ));
    }
    if losses.signature {
        notes.push(format!(
            "{path} keeps its extended attribute security.ima, which does not fit the changed contents: sign the file again if this host appraises it"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_the_file_and_the_path_at_fault() {
        let path = "/etc/containerd/config.toml";
        let of = |path: &str| Obstacle::ReadOnly {
            path: path.to_owned(),
        };
        let own = problem(path, &of(path), Some("copy it"));
        assert_eq!(
            own,
            Problem::with_help(format!("{path} is on a read-only file system"), "copy it")
        );
        let behind = problem(path, &of("/nix/config.toml"), None);
        assert_eq!(
            behind,
            Problem::with_help(
                format!("failed to write {path}: /nix/config.toml is on a read-only file system"),
                "remount the file system read-write"
            )
        );
    }

    #[test]
    fn what_a_replacement_loses_is_told() {
        assert_eq!(notes("/c", Losses::default()), [""; 0]);
        let losses = Losses {
            other_links: 2,
            signature: true,
        };
        let [links, signature] = &notes("/c", losses)[..] else {
            panic!("not two notes");
        };
        assert!(links.starts_with("/c has other hard links (2)"), "{links}");
        assert!(signature.contains("security.ima"), "{signature}");
    }
}
