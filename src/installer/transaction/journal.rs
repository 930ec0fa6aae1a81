//! The journal: the undo log of the change in progress. It is on disk before the first write and removed after the last one. A run that
//! finds a journal undoes or finishes that change (`recovery`).
//!
//! Undoing runs in reverse order, and continues after a failed step.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::failure::Error;
use super::validate_config;
use crate::handoff::{self, InvalidDigest, Problem, Sha256Digest};
use crate::installer::containerd::service::Service;
use crate::installer::distro;
use crate::installer::host::{self, HostRoot, text_digest};
use crate::installer::plan::LegacyCleanup;
use crate::installer::plan::expected::ExpectedRuntimes;
use crate::installer::state::{JOURNAL_FILE, OwnedHandler, default_directory};

/// The largest journal that is written or read, in bytes. A journal holds the changed configurations and lock files, which are bounded
/// themselves, the state file and one entry per handler.
pub(crate) const JOURNAL_LIMIT: u64 = 8 << 20;

/// Mode of the journal: configurations may hold registry passwords.
const JOURNAL_MODE: u32 = 0o600;

/// The undo log of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Always [`API_VERSION`](handoff::API_VERSION).
    pub api_version: String,
    /// The steps to undo, in the order in which the change takes them.
    pub undo: Vec<Undo>,
    /// The handlers that the change declares. They are Farrier's if the change is found unfinished.
    pub declares: Vec<String>,
    /// The root configuration file that containerd loads.
    pub root: String,
    /// The unit that containerd runs in.
    pub unit: String,
    /// The ID of the distribution, whose row in the table has the restart method; empty in journals of releases with one method.
    #[serde(default)]
    pub distro: String,
    /// The socket of the CRI.
    pub socket: String,
    /// The directory of the binaries.
    #[serde(default = "default_directory", rename = "folder")]
    pub directory: String,
    /// Whether containerd may have been restarted with the new configuration.
    #[serde(default)]
    pub restarting: bool,
    /// PID and start time of the containerd that the next restart ends (`Daemon::process`). After a restart that ended Farrier too, the next
    /// run compares it with the running containerd.
    #[serde(default)]
    pub process: Option<(u32, u64)>,
    /// Whether all files were restored, and containerd may have been restarted with them.
    #[serde(default)]
    pub undone: bool,
    /// The handlers that containerd serves before and after the change; absent without a restart, if containerd did not answer, and in
    /// journals of releases without this field.
    #[serde(default)]
    pub expected: Option<ExpectedRuntimes>,
    /// The state file whose write ends the change.
    #[serde(flatten)]
    pub state: FinalState,
    /// Farrier's directories that are removed after the change if they are empty; outermost first.
    #[serde(default, rename = "dropFolders")]
    pub obsolete_directories: Vec<String>,
    /// The files of KWasm and runtime-class-manager that are removed after the change.
    #[serde(default, rename = "leftovers")]
    pub legacy_cleanup: LegacyCleanup,
    /// The handlers that lose their binary, as they were before the change. A handler with pods keeps its binary.
    #[serde(default)]
    pub leaving: BTreeMap<String, OwnedHandler>,
    /// The handlers of which a pod sandbox is run before the change is committed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub prove: BTreeSet<String>,
}

/// The state file whose write ends a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FinalStateRecord", into = "FinalStateRecord")]
pub enum FinalState {
    /// It is written with this text.
    Write(String),
    /// It is removed.
    Remove,
    /// It stays as it is, so it can't show whether the change is committed.
    Keep,
    /// It has this SHA-256. Early releases recorded the digest without the text.
    Digest(Sha256Digest),
}

/// [`FinalState`] in the format of the journal: `commits` is the SHA-256 of the state file, or empty if the file stays as it is.
#[derive(Serialize, Deserialize)]
struct FinalStateRecord {
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    commits: Option<String>,
}

impl TryFrom<FinalStateRecord> for FinalState {
    type Error = InvalidDigest;

    fn try_from(record: FinalStateRecord) -> Result<Self, InvalidDigest> {
        let digest = match record.commits.as_deref() {
            None => return Ok(Self::Remove),
            Some("") => return Ok(Self::Keep),
            Some(digest) => digest.parse()?,
        };
        Ok(match record.state {
            Some(text) if Sha256Digest::of(text.as_bytes()) == digest => Self::Write(text),
            _ => Self::Digest(digest),
        })
    }
}

impl From<FinalState> for FinalStateRecord {
    fn from(state: FinalState) -> Self {
        let (state, commits) = match state {
            FinalState::Write(text) => {
                let digest = Sha256Digest::of(text.as_bytes());
                (Some(text), Some(digest.to_string()))
            }
            FinalState::Remove => (None, None),
            FinalState::Keep => (None, Some(String::new())),
            FinalState::Digest(digest) => (None, Some(digest.to_string())),
        };
        Self { state, commits }
    }
}

/// One step of a change, with the facts to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Undo {
    /// A configuration file is edited, created or removed.
    Config {
        /// Absolute path on the host.
        path: String,
        /// Its text before the change; absent if the file did not exist.
        before: Option<String>,
        /// SHA-256 of the written text; absent if the file is removed.
        wrote: Option<Sha256Digest>,
    },
    /// A symlink is created or gets another target.
    #[serde(rename = "link")]
    Symlink {
        /// Absolute path on the host.
        path: String,
        /// Its target before the change; absent if the symlink did not exist.
        target: Option<String>,
    },
    /// A file of another program is replaced with a symlink of Farrier's.
    Replaced {
        /// Absolute path on the host.
        path: String,
    },
    /// A file is created: a binary of the store or a candidate configuration.
    File {
        /// Absolute path on the host.
        path: String,
    },
    /// A damaged binary of the store is written again. Undoing keeps the repaired binary: its name is its digest, and symlinks lead to it.
    Repaired {
        /// Absolute path on the host.
        path: String,
    },
    /// A directory is created.
    #[serde(rename = "folder")]
    Directory {
        /// Absolute path on the host.
        path: String,
    },
}

/// The parts of a change that [`Journal::undo`] could not undo.
#[derive(Debug, Default)]
pub struct UndoResult {
    /// Whether a configuration file was edited after the change wrote it. Farrier's tables must be removed from the edited text.
    pub config_changed: bool,
    /// The errors of the failed steps.
    pub failures: Vec<Problem>,
}

impl Journal {
    /// The service to restart for the change, and the way to restart it.
    #[must_use]
    pub fn service(&self) -> Service {
        let spec = distro::by_id(&self.distro);
        let mut configs = self.undo.iter().filter_map(|step| match step {
            Undo::Config { path, .. } => Some(path),
            Undo::Symlink { .. }
            | Undo::File { .. }
            | Undo::Repaired { .. }
            | Undo::Directory { .. }
            | Undo::Replaced { .. } => None,
        });
        let restart_triggered_by_write = configs.any(|path| spec.is_watched(&self.root, path));
        Service {
            restart_triggered_by_write,
            ..Service::of(spec, &self.unit)
        }
    }

    /// The service to restart after undoing the change, and the way to restart it. A supervisor that watches files restarts nothing if the
    /// files are already restored.
    #[must_use]
    pub fn service_to_undo(&self, host: &HostRoot) -> Service {
        let service = self.service();
        let restart_triggered_by_write =
            service.restart_triggered_by_write && !self.has_original_config(host);
        Service {
            restart_triggered_by_write,
            ..service
        }
    }

    /// Whether the configuration is the same as before the change.
    #[must_use]
    pub fn has_original_config(&self, host: &HostRoot) -> bool {
        self.has_config(host, |before, _| text_digest(before))
    }

    /// Writes the journal to disk, in place of the previous one.
    ///
    /// # Errors
    /// When the write fails, or the journal is larger than `JOURNAL_LIMIT` bytes. The caller must not change the host then.
    pub fn save(&self, host: &HostRoot) -> Result<(), Error> {
        let text = handoff::to_json(self);
        if text.len() as u64 > JOURNAL_LIMIT {
            return Err(Error::TooMuchToUndo {
                limit: JOURNAL_LIMIT,
            });
        }
        Ok(host.write_own(JOURNAL_FILE, text.as_bytes(), JOURNAL_MODE)?)
    }

    /// Records that containerd is about to be restarted for the change, and that it is `process` now.
    ///
    /// # Errors
    /// As for [`save`](Self::save). The journal in memory is unchanged then, so undoing the change restarts nothing.
    pub fn begin_restart(
        &mut self,
        host: &HostRoot,
        process: Option<(u32, u64)>,
    ) -> Result<(), Error> {
        let noted = Self {
            restarting: true,
            process,
            ..self.clone()
        };
        noted.save(host)?;
        *self = noted;
        Ok(())
    }

    /// Whether the change is committed: its state file is in place, and only the cleanup remains.
    #[must_use]
    pub fn is_committed(&self, state: Option<&str>) -> bool {
        match &self.state {
            FinalState::Write(text) => state == Some(text),
            FinalState::Remove => state.is_none(),
            FinalState::Keep => false,
            FinalState::Digest(digest) => text_digest(state) == Some(*digest),
        }
    }

    /// Whether a run that finds the change in effect can write its state file. Journals of early releases have only the digest of that
    /// file.
    #[must_use]
    pub fn can_be_finished(&self) -> bool {
        match self.state {
            FinalState::Write(_) | FinalState::Remove | FinalState::Keep => true,
            FinalState::Digest(_) => false,
        }
    }

    /// Whether the configuration is still the one that the change wrote.
    #[must_use]
    pub fn has_written_config(&self, host: &HostRoot) -> bool {
        self.has_config(host, |_, wrote| wrote)
    }

    /// Whether each configuration file has the digest that `expected` returns for its old text and the digest of its new text.
    fn has_config(
        &self,
        host: &HostRoot,
        expected: impl Fn(Option<&str>, Option<Sha256Digest>) -> Option<Sha256Digest>,
    ) -> bool {
        self.undo.iter().all(|step| match step {
            Undo::Config {
                path,
                before,
                wrote,
            } => {
                let expected = expected(before.as_deref(), *wrote);
                host.digest(path).is_ok_and(|digest| digest == expected)
            }
            Undo::Symlink { .. }
            | Undo::File { .. }
            | Undo::Repaired { .. }
            | Undo::Directory { .. }
            | Undo::Replaced { .. } => true,
        })
    }

    /// Removes the temporary files of the change.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn discard(&self, host: &HostRoot) -> host::Result<()> {
        for step in &self.undo {
            step.discard(host);
        }
        for suffix in [validate_config::SUFFIX, validate_config::IMPORT_SUFFIX] {
            host.remove_file(&format!("{}{suffix}", self.root))?;
        }
        Ok(())
    }

    /// Removes the obsolete files of KWasm and runtime-class-manager, except for the binaries at `spared` and the symlinks to them. A lock
    /// file that another program has written since keeps its text.
    ///
    /// # Errors
    /// When a file can't be removed or written.
    pub fn remove_legacy_files(
        &self,
        host: &HostRoot,
        spared: &BTreeSet<&String>,
    ) -> host::Result<()> {
        for path in &self.legacy_cleanup.files {
            let leads_there = host
                .symlink_target(path)?
                .is_some_and(|target| spared.contains(&target));
            if !leads_there && !spared.contains(path) {
                host.remove_file(path)?;
            }
        }
        for lock in &self.legacy_cleanup.locks {
            host.discard_new(&lock.path);
            if host.digest(&lock.path)? == Some(lock.before) {
                put_config(host, &lock.path, lock.after.as_deref(), Some(lock.before))?;
            }
        }
        for directory in self.legacy_cleanup.directories.iter().rev() {
            host.remove_directory(directory)?;
        }
        Ok(())
    }

    /// Undoes every step, and continues after a failed one. The journal stays until containerd serves the restored configuration.
    #[must_use]
    pub fn undo(&self, host: &HostRoot) -> UndoResult {
        let mut undone = UndoResult::default();
        for step in self.undo.iter().rev() {
            if let Err(error) = step.undo(host, &mut undone) {
                undone.failures.push(Problem::new(&error, error.help()));
            }
        }
        undone
    }
}

impl Undo {
    /// Removes the temporary files of this step, which a killed run leaves.
    fn discard(&self, host: &HostRoot) {
        match self {
            Self::Config { path, .. } => {
                host.discard_new(&host.follow(path).unwrap_or_else(|_| path.clone()));
            }
            Self::Symlink { path, .. } | Self::File { path } | Self::Repaired { path } => {
                host.discard_new(path);
            }
            Self::Replaced { path } => {
                host.discard_new(path);
                host.discard_replaced(path);
            }
            Self::Directory { .. } => {}
        }
    }

    fn undo(&self, host: &HostRoot, undone: &mut UndoResult) -> host::Result<()> {
        if let Self::Replaced { path } = self {
            host.restore_replaced(path)?;
        }
        self.discard(host);
        match self {
            Self::Config {
                path,
                before,
                wrote,
            } => {
                let now = host.digest(path)?;
                if now == text_digest(before.as_deref()) {
                    return Ok(());
                }
                if now != *wrote {
                    undone.config_changed = true;
                    return Ok(());
                }
                put_config(host, path, before.as_deref(), now)
            }
            Self::Symlink { path, target } => match target {
                Some(target) if host.symlink_target(path)?.as_ref() == Some(target) => Ok(()),
                Some(target) => host.swap_symlink(path, target),
                // The change created a symlink. Any other file at this path belongs to another program.
                None if host.symlink_target(path)?.is_none() => Ok(()),
                None => host.remove_file(path),
            },
            Self::Replaced { .. } | Self::Repaired { .. } => Ok(()),
            Self::File { path } => host.remove_file(path),
            Self::Directory { path } => host.remove_directory(path).map(|_| ()),
        }
    }
}

/// Writes or removes a configuration file whose digest is `now`.
///
/// # Errors
/// As for [`HostRoot::replace`].
pub fn put_config(
    host: &HostRoot,
    path: &str,
    text: Option<&str>,
    now: Option<Sha256Digest>,
) -> host::Result<()> {
    match text {
        // Packages install the configuration with this mode.
        Some(text) => host.replace(path, text.as_bytes(), now, 0o644),
        // The change created the target of a symlink, and the symlink is older.
        None if host.digest(path)? == now => host.remove_file(&host.follow(path)?),
        None => Err(host::Error::Changed {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::state::STATE_DIRECTORY;

    /// A journal of a release without the field `expected`.
    const OLD: &str = r#"{"apiVersion":"farrier.dev/v1","undo":[],"declares":["a"],"root":"/etc/k0s/containerd.toml","unit":"k0sworker.service",
        "distro":"k0s","socket":"/s","commits":null,"folder":"/opt/farrier"}"#;

    fn journal() -> Journal {
        serde_json::from_str(OLD).unwrap()
    }

    fn config(path: &str, text: &str) -> Undo {
        Undo::Config {
            path: path.to_owned(),
            before: Some(text.to_owned()),
            wrote: None,
        }
    }

    /// A host with a directory for the journal.
    fn host() -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        let state = directory
            .path()
            .join(STATE_DIRECTORY.trim_start_matches('/'));
        std::fs::create_dir_all(state).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    #[test]
    fn a_journal_of_a_former_release_is_read() {
        let (directory, host) = host();
        std::fs::write(directory.path().join(&JOURNAL_FILE[1..]), OLD).unwrap();
        assert_eq!(Journal::load(&host).unwrap(), Some(journal()));
    }

    #[test]
    fn the_state_file_that_ends_a_change_is_known_by_its_text_or_its_digest() {
        let read = |state: &str, commits: &str| {
            let fields = format!("\"state\":{state},\"commits\":{commits}");
            serde_json::from_str::<Journal>(&OLD.replace("\"commits\":null", &fields))
                .map(|journal| journal.state)
                .ok()
        };
        let digest = Sha256Digest::of(b"text");
        let quoted = format!("\"{digest}\"");
        assert_eq!(read("null", "null"), Some(FinalState::Remove));
        assert_eq!(read("null", "\"\""), Some(FinalState::Keep));
        let text = FinalState::Write("text".to_owned());
        assert_eq!(read("\"text\"", &quoted), Some(text));
        let other = FinalState::Digest(digest);
        assert_eq!(read("\"other\"", &quoted), Some(other));
        assert_eq!(read("null", "\"abc\""), None);
    }

    #[test]
    fn a_journal_beyond_the_size_limit_is_not_written() {
        let (_directory, host) = host();
        let mut journal = journal();
        // In JSON, each newline takes two bytes.
        let text = "\n".repeat(usize::try_from(JOURNAL_LIMIT / 2).unwrap());
        journal.undo = vec![config("/c", &text)];
        let error = journal.save(&host).unwrap_err();
        assert!(error.help().unwrap().contains("shorten"), "{error}");
        assert!(!host.exists(JOURNAL_FILE).unwrap());
        journal.undo = vec![config("/c", &text[..text.len() - 1000])];
        journal.save(&host).unwrap();
        assert_eq!(Journal::load(&host).unwrap(), Some(journal));
    }

    #[test]
    fn a_restart_begins_only_after_the_journal_records_it() {
        let (directory, host) = host();
        let mut journal = journal();
        journal.begin_restart(&host, Some((1, 1))).unwrap();
        assert_eq!(Journal::load(&host).unwrap().as_ref(), Some(&journal));
        assert!(journal.restarting);

        std::fs::remove_dir_all(directory.path().join("var")).unwrap();
        let mut journal = self::journal();
        assert!(journal.begin_restart(&host, Some((1, 1))).is_err());
        assert_eq!(journal, self::journal());
    }

    #[test]
    fn undoing_a_symlink_removes_only_symlinks() {
        let (directory, host) = host();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("theirs"), "").unwrap();
        std::os::unix::fs::symlink("/store/a", at("ours")).unwrap();
        let mut journal = journal();
        journal.undo = ["/theirs", "/ours", "/none"]
            .map(|path| Undo::Symlink {
                path: path.to_owned(),
                target: None,
            })
            .to_vec();
        assert_eq!(journal.undo(&host).failures, []);
        assert!(at("theirs").exists());
        assert!(at("ours").symlink_metadata().is_err());
    }

    #[rstest]
    #[case::a_snippet(&["/etc/k0s/containerd.d/farrier.toml"], true)]
    #[case::a_configuration_of_the_administrator(&["/etc/k0s/containerd.toml"], false)]
    #[case::nothing(&[], false)]
    fn only_a_snippet_triggers_a_restart_by_k0s(#[case] written: &[&str], #[case] expected: bool) {
        let (directory, host) = host();
        let mut journal = journal();
        journal.undo = written.iter().map(|path| config(path, "before")).collect();
        assert_eq!(journal.service().restart_triggered_by_write, expected);
        assert_eq!(
            journal.service_to_undo(&host).restart_triggered_by_write,
            expected
        );
        // With all files restored already, undoing writes nothing, and the supervisor restarts nothing.
        for path in written {
            let path = directory.path().join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "before").unwrap();
        }
        assert!(!journal.service_to_undo(&host).restart_triggered_by_write);
        assert!(journal.has_original_config(&host));
    }
}
