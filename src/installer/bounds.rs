//! What a state file and a journal may name. Both are ours, but who acts on them is root: one that was damaged or forged must not lead
//! to anybody else's files. Pure.

use crate::handoff::is_sha256;
use crate::installer::state::{Places, State, folder_of};
use crate::installer::transaction::journal::{Journal, Undo};
use crate::installer::transaction::validate_config;

/// The name of every folder of ours (the places of the distributions' table all end in it).
const OWN_NAME: &str = "farrier";

/// What every binary's file name begins with, ours and a predecessor's.
const SHIM_PREFIX: &str = "containerd-shim-";

/// The first thing that a state file of ours would not name.
pub(crate) fn strange_in_state(state: &State) -> Option<String> {
    let mut strange = Vec::new();
    strange.extend((!is_own_folder(&state.folder)).then(|| state.folder.clone()));
    for (name, owned) in state.handlers.iter().chain(&state.late) {
        strange.extend((!is_file_name(name)).then(|| name.clone()));
        let digest = owned.sha256.iter().filter(|digest| !is_digest(digest));
        strange.extend(digest.cloned());
        let path = owned.path.iter().filter(|path| !is_shim(path));
        strange.extend(path.cloned());
    }
    let paths = state.folders.iter();
    let paths = paths.chain(state.config.iter().map(|config| &config.path));
    let paths = paths.chain(
        state
            .config
            .iter()
            .filter_map(|config| config.root.as_ref()),
    );
    strange.extend(paths.filter(|path| !path.starts_with('/')).cloned());
    strange.into_iter().next()
}

/// The first thing that a journal of ours would not name.
pub(crate) fn strange_in_journal(journal: &Journal) -> Option<String> {
    let places = Places {
        folder: journal.folder.clone(),
    };
    if !is_own_folder(&places.folder) {
        return Some(places.folder);
    }
    let is_stored = |path: &str| {
        let store = places.store();
        let name = path.strip_prefix(&store);
        name.and_then(|name| name.strip_prefix('/'))
            .is_some_and(is_digest)
    };
    let is_ours = |step: &Undo| match step {
        Undo::File { path } => {
            is_stored(path) || validate_config::is_candidate(&journal.root, path)
        }
        Undo::Repaired { path } => is_stored(path),
        Undo::Link { path, .. } | Undo::Replaced { path } => is_shim(path),
        // A configuration is only put back where it is what was written, and a folder goes only when it is empty.
        Undo::Config { path, .. } | Undo::Folder { path } => path.starts_with('/'),
    };
    let steps = journal.undo.iter().filter(|step| !is_ours(step));
    let mut strange = steps.map(|step| match step {
        Undo::Config { path, .. }
        | Undo::Link { path, .. }
        | Undo::Replaced { path }
        | Undo::File { path }
        | Undo::Repaired { path }
        | Undo::Folder { path } => path.clone(),
    });
    strange.next().or_else(|| {
        let markers = |path: &&String| !is_shim(path) && !is_marker(path);
        journal.leftovers.files.iter().find(markers).cloned()
    })
}

/// A folder of ours, as the table of distributions has them.
fn is_own_folder(path: &str) -> bool {
    let name = path.rsplit_once('/').map(|(_, name)| name);
    is_plain(path) && name == Some(OWN_NAME)
}

/// The path of a shim, whosever it is.
fn is_shim(path: &str) -> bool {
    let name = path.strip_prefix(folder_of(path));
    let name = name.map(|name| name.trim_start_matches('/'));
    is_plain(path) && name.is_some_and(|name| name.starts_with(SHIM_PREFIX))
}

/// The file by which KWasm knows a node.
fn is_marker(path: &str) -> bool {
    is_plain(path) && path.ends_with("/active")
}

/// An absolute path that means what it says.
fn is_plain(path: &str) -> bool {
    path.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(is_file_name))
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Whether this is the name of a file in the store.
pub(crate) fn is_digest(text: &str) -> bool {
    is_sha256(text)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SHA256: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[rstest]
    #[case::folder("folder", "/opt/farrier", "/")]
    #[case::folder_above("folder", "/opt/farrier", "/opt/../farrier")]
    #[case::handler("a", "\"a\":{", "\"../../etc/passwd\":{")]
    #[case::digest("a", SHA256, "../../../etc/passwd")]
    #[case::path("a", "/opt/kwasm/bin/containerd-shim-a", "/etc/passwd")]
    #[case::folders("folders", "/etc/conf.d", "etc")]
    fn a_state_file_that_names_files_of_others_is_none(
        #[case] what: &str,
        #[case] ours: &str,
        #[case] theirs: &str,
    ) {
        let text = format!(
            r#"{{"apiVersion":"farrier.dev/v1","folder":"/opt/farrier","folders":["/etc/conf.d"],"handlers":{{"a":{{
            "shim":"a","owner":"local","sha256":"{SHA256}","path":"/opt/kwasm/bin/containerd-shim-a"}}}}}}"#
        );
        assert!(State::from_json(Some(&text)).is_ok());
        assert!(text.contains(ours));
        let forged = text.replace(ours, theirs);
        let error = State::from_json(Some(&forged)).unwrap_err().to_string();
        assert!(error.contains("nothing of Farrier"), "{what}: {error}");
    }

    #[rstest]
    #[case::folder("/opt/farrier\"", "/\"")]
    #[case::file("/opt/farrier/store/", "/etc/")]
    #[case::up("/opt/farrier/store/", "/opt/farrier/store/../")]
    #[case::candidate("/c.farrier-candidate", "/etc/passwd")]
    #[case::import("/c.1.farrier-import", "/c./../d.farrier-import")]
    #[case::link("/opt/farrier/bin/containerd-shim-a", "/etc/passwd")]
    #[case::replaced("/opt/kwasm/bin/containerd-shim-b", "/opt/kwasm/bin/../../../bin/sh")]
    #[case::leftover("/opt/kwasm/active", "/etc/passwd")]
    fn a_journal_that_names_files_of_others_is_none(#[case] ours: &str, #[case] theirs: &str) {
        let text = format!(
            r#"{{"apiVersion":"farrier.dev/v1","declares":[],"root":"/c","unit":"u","socket":"/s","commits":null,"folder":"/opt/farrier",
            "undo":[{{"kind":"file","path":"/opt/farrier/store/{SHA256}"}},{{"kind":"file","path":"/c.farrier-candidate"}},
            {{"kind":"file","path":"/c.farrier-import"}},{{"kind":"file","path":"/c.1.farrier-import"}},
            {{"kind":"link","path":"/opt/farrier/bin/containerd-shim-a","target":null}},
            {{"kind":"replaced","path":"/opt/kwasm/bin/containerd-shim-b"}},
            {{"kind":"config","path":"/c","before":null,"wrote":null}},{{"kind":"folder","path":"/etc/conf.d"}}],
            "leftovers":{{"files":["/opt/kwasm/active"],"locks":[],"folders":[]}}}}"#
        );
        let strange = |text: &str| strange_in_journal(&serde_json::from_str(text).unwrap());
        assert_eq!(strange(&text), None);
        assert!(text.contains(ours));
        assert!(strange(&text.replace(ours, theirs)).is_some());
    }
}
