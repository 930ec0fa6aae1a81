//! Reads a journal and checks every path in it. Farrier acts on the journal as root, so a damaged or forged journal must not lead to files of
//! other programs.

use super::failure::Error;
use super::journal::{JOURNAL_LIMIT, Journal, Undo};
use super::validate_config;
use crate::handoff::{API_VERSION, Sha256Digest};
use crate::installer::host::HostRoot;
use crate::installer::state::validate::{is_marker, is_own_directory, is_shim};
use crate::installer::state::{Error as StateError, InstallPaths, JOURNAL_FILE};

impl Journal {
    /// Reads the journal of an unfinished change; `None` without a journal.
    ///
    /// # Errors
    /// When the journal can't be read, is of another version or has an unexpected path. Farrier writes it atomically, so an unreadable
    /// journal was damaged later.
    pub fn load(host: &HostRoot) -> Result<Option<Self>, Error> {
        let Some(text) = host.read_text(JOURNAL_FILE, JOURNAL_LIMIT)? else {
            return Ok(None);
        };
        let journal: Self = serde_json::from_str(&text).map_err(|source| StateError::Json {
            path: JOURNAL_FILE,
            source,
        })?;
        if journal.api_version != API_VERSION {
            return Err(StateError::Version {
                path: JOURNAL_FILE,
                found: journal.api_version,
            }
            .into());
        }
        match unexpected_path(&journal) {
            Some(found) => Err(StateError::UnexpectedPath {
                path: JOURNAL_FILE,
                found,
            }
            .into()),
            None => Ok(Some(journal)),
        }
    }
}

/// The first path that no journal of Farrier's has.
fn unexpected_path(journal: &Journal) -> Option<String> {
    let install_paths = InstallPaths {
        directory: journal.directory.clone(),
    };
    if !is_own_directory(&install_paths.directory) {
        return Some(install_paths.directory);
    }
    let is_stored = |path: &str| {
        let store = install_paths.store();
        let name = path.strip_prefix(&store);
        name.and_then(|name| name.strip_prefix('/'))
            .is_some_and(|name| name.parse::<Sha256Digest>().is_ok())
    };
    let is_managed = |step: &Undo| match step {
        Undo::File { path } => {
            is_stored(path) || validate_config::is_candidate(&journal.root, path)
        }
        Undo::Repaired { path } => is_stored(path),
        Undo::Symlink { path, .. } | Undo::Replaced { path } => is_shim(path),
        // Undoing restores a configuration only if its digest is that of the written text, and removes only empty directories.
        Undo::Config { path, .. } | Undo::Directory { path } => path.starts_with('/'),
    };
    let steps = journal.undo.iter().filter(|step| !is_managed(step));
    let mut unexpected = steps.map(|step| match step {
        Undo::Config { path, .. }
        | Undo::Symlink { path, .. }
        | Undo::Replaced { path }
        | Undo::File { path }
        | Undo::Repaired { path }
        | Undo::Directory { path } => path.clone(),
    });
    unexpected.next().or_else(|| {
        let markers = |path: &&String| !is_shim(path) && !is_marker(path);
        journal.legacy_cleanup.files.iter().find(markers).cloned()
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SHA256: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[rstest]
    #[case::directory("/opt/farrier\"", "/\"")]
    #[case::file("/opt/farrier/store/", "/etc/")]
    #[case::up("/opt/farrier/store/", "/opt/farrier/store/../")]
    #[case::candidate("/c.farrier-candidate", "/etc/passwd")]
    #[case::import("/c.1.farrier-import", "/c./../d.farrier-import")]
    #[case::link("/opt/farrier/bin/containerd-shim-a", "/etc/passwd")]
    #[case::replaced("/opt/kwasm/bin/containerd-shim-b", "/opt/kwasm/bin/../../../bin/sh")]
    #[case::leftover("/opt/kwasm/active", "/etc/passwd")]
    fn a_journal_that_names_files_of_others_is_refused(
        #[case] managed: &str,
        #[case] foreign: &str,
    ) {
        let text = format!(
            r#"{{"apiVersion":"farrier.dev/v1","declares":[],"root":"/c","unit":"u","socket":"/s","commits":null,"folder":"/opt/farrier",
            "undo":[{{"kind":"file","path":"/opt/farrier/store/{SHA256}"}},{{"kind":"file","path":"/c.farrier-candidate"}},
            {{"kind":"file","path":"/c.farrier-import"}},{{"kind":"file","path":"/c.1.farrier-import"}},
            {{"kind":"link","path":"/opt/farrier/bin/containerd-shim-a","target":null}},
            {{"kind":"replaced","path":"/opt/kwasm/bin/containerd-shim-b"}},
            {{"kind":"config","path":"/c","before":null,"wrote":null}},{{"kind":"folder","path":"/etc/conf.d"}}],
            "leftovers":{{"files":["/opt/kwasm/active"],"locks":[],"folders":[]}}}}"#
        );
        let unexpected = |text: &str| unexpected_path(&serde_json::from_str(text).unwrap());
        assert_eq!(unexpected(&text), None);
        assert!(text.contains(managed));
        assert!(unexpected(&text.replace(managed, foreign)).is_some());
    }
}
