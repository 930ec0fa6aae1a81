//! The undo log of a change under way: on disk before the first write, gone after the last. A run that finds one undoes it.
//!
//! Undoing runs in reverse, and one step that fails does not stop the rest.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::failure::Error;
use super::validate_config;
use crate::handoff::{self, InvalidDigest, Sha256Digest};
use crate::installer::containerd::service::Service;
use crate::installer::distro;
use crate::installer::host::{self, HostRoot, text_digest};
use crate::installer::plan::LegacyCleanup;
use crate::installer::plan::expected::ExpectedRuntimes;
use crate::installer::state::{JOURNAL_FILE, OwnedHandler, default_directory};

/// It holds the configurations and lock files that change, whose sizes are bounded, the state file and a line for each handler.
pub(crate) const JOURNAL_LIMIT: u64 = 8 << 20;

/// Configurations may hold registry passwords.
const JOURNAL_MODE: u32 = 0o600;

/// The undo log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// What to undo, in the order in which it is done.
    pub undo: Vec<Undo>,
    /// Handlers that the change declares, and that are ours if it is found half done.
    pub declares: Vec<String>,
    /// The root configuration file that containerd is given.
    pub root: String,
    /// The unit that containerd runs in.
    pub unit: String,
    /// The word of the distribution, whose row says how the unit is restarted; empty in a journal of a release that knew one way.
    #[serde(default)]
    pub distro: String,
    /// The CRI's socket.
    pub socket: String,
    /// The folder of the binaries.
    #[serde(default = "default_directory", rename = "folder")]
    pub directory: String,
    /// containerd may have been restarted on the new configuration.
    #[serde(default)]
    pub restarting: bool,
    /// The containerd that the next restart ends, as `Daemon::process` names it: whether that restart came about shows by it, where it
    /// ended this program too.
    #[serde(default)]
    pub process: Option<(u32, u64)>,
    /// Everything was put back, and containerd may have been restarted on that.
    #[serde(default)]
    pub undone: bool,
    /// What containerd serves before the change and after it; absent where it could not be asked, and in a journal of a release that
    /// did not note it.
    #[serde(default)]
    pub expected: Option<ExpectedRuntimes>,
    /// The state file that ends the change.
    #[serde(flatten)]
    pub state: FinalState,
    /// Folders of ours that go, if they are empty, once the change is carried out; outermost first.
    #[serde(default, rename = "dropFolders")]
    pub obsolete_directories: Vec<String>,
    /// What goes of predecessors once the change is carried out.
    #[serde(default, rename = "leftovers")]
    pub legacy_cleanup: LegacyCleanup,
    /// Handlers that lose their binary, as they were, unless a pod has taken one up by then.
    #[serde(default)]
    pub leaving: BTreeMap<String, OwnedHandler>,
}

/// The state file that ends a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FinalStateRecord", into = "FinalStateRecord")]
pub enum FinalState {
    /// It has this text.
    Write(String),
    /// It is removed.
    Remove,
    /// It stays as it is, so it can't tell whether the change was carried out.
    Keep,
    /// It has this SHA-256: an early release noted no more.
    Digest(Sha256Digest),
}

/// [`FinalState`] as a journal has it: `commits` is the SHA-256 of the state file, empty where the file stays as it is.
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

/// One step back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Undo {
    /// A configuration file is edited, made or removed.
    Config {
        /// Absolute path on the host.
        path: String,
        /// Its text before, if it was there.
        before: Option<String>,
        /// SHA-256 of what is written; absent where it is removed.
        wrote: Option<Sha256Digest>,
    },
    /// A link is made or points elsewhere.
    #[serde(rename = "link")]
    Symlink {
        /// Absolute path on the host.
        path: String,
        /// Where it pointed before, if it was there.
        target: Option<String>,
    },
    /// A file of somebody else gives way to a link of ours.
    Replaced {
        /// Absolute path on the host.
        path: String,
    },
    /// A file is made that nobody else looks at.
    File {
        /// Absolute path on the host.
        path: String,
    },
    /// A stored binary that was damaged is made anew. It stays whatever comes: its name says what it must be, and links lead to it.
    Repaired {
        /// Absolute path on the host.
        path: String,
    },
    /// A folder is made.
    #[serde(rename = "folder")]
    Directory {
        /// Absolute path on the host.
        path: String,
    },
}

/// What undoing could not put back by itself.
#[derive(Debug, Default)]
pub struct UndoResult {
    /// A configuration file is not what was written: somebody changed it since, and our tables must be cut out of its text.
    pub config_changed: bool,
    /// Steps that failed, each as a sentence.
    pub failures: Vec<String>,
}

impl Journal {
    /// What is restarted, and how.
    #[must_use]
    pub fn service(&self) -> Service {
        let spec = distro::named(&self.distro);
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

    /// What is restarted to undo the change, and how: a supervisor that watches files sees nothing where they are put back already.
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

    /// Whether the configuration is what it was before the change.
    #[must_use]
    pub fn has_original_config(&self, host: &HostRoot) -> bool {
        self.has_config(host, |before, _| text_digest(before))
    }

    /// Puts the journal on disk in the place of the one before.
    ///
    /// # Errors
    /// When it can't be written, or no later run would read it: nothing may be changed then.
    pub fn save(&self, host: &HostRoot) -> Result<(), Error> {
        // An empty undo log would undo nothing: better no run than one with that.
        let text = handoff::to_json(self);
        if text.len() as u64 > JOURNAL_LIMIT {
            return Err(Error::TooMuchToUndo {
                limit: JOURNAL_LIMIT,
            });
        }
        let before = host.digest(JOURNAL_FILE)?;
        Ok(host.replace(JOURNAL_FILE, text.as_bytes(), before, JOURNAL_MODE)?)
    }

    /// Notes that containerd is about to be restarted on the change, where it is `process` now.
    ///
    /// # Errors
    /// As for [`save`](Self::save); the journal in memory is then what it was, and nobody restarts anything for its sake.
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

    /// Whether the change was carried out: its state file is in place, only clearing up is left.
    #[must_use]
    pub fn is_committed(&self, state: Option<&str>) -> bool {
        match &self.state {
            FinalState::Write(text) => state == Some(text),
            FinalState::Remove => state.is_none(),
            FinalState::Keep => false,
            FinalState::Digest(digest) => text_digest(state) == Some(*digest),
        }
    }

    /// Whether a run that finds everything live can write the state file that ends the change. A journal of a release that did not
    /// note it can't.
    #[must_use]
    pub fn can_be_finished(&self) -> bool {
        match self.state {
            FinalState::Write(_) | FinalState::Remove | FinalState::Keep => true,
            FinalState::Digest(_) => false,
        }
    }

    /// Whether the configuration is still what the change wrote.
    #[must_use]
    pub fn has_written_config(&self, host: &HostRoot) -> bool {
        self.has_config(host, |_, wrote| wrote)
    }

    /// Whether each configuration file has the digest that `expected` makes of its text before and the digest of what was written.
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

    /// Removes what the change needed only while it was under way.
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

    /// Removes what goes of predecessors, but for the binaries at `spared` and the links to them. A lock file that somebody has written
    /// since is left to them.
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

    /// Undoes everything, as far as it goes. The journal stays: it goes when containerd is known to be well.
    #[must_use]
    pub fn undo(&self, host: &HostRoot) -> UndoResult {
        let mut undone = UndoResult::default();
        for step in self.undo.iter().rev() {
            if let Err(error) = step.undo(host, &mut undone) {
                undone.failures.push(error.to_string());
            }
        }
        undone
    }
}

impl Undo {
    /// Removes what a run that was killed was about to put in place.
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
                // Only a link was made there: what else stands there is somebody else's.
                None if host.symlink_target(path)?.is_none() => Ok(()),
                None => host.remove_file(path),
            },
            Self::Replaced { .. } | Self::Repaired { .. } => Ok(()),
            Self::File { path } => host.remove_file(path),
            Self::Directory { path } => host.remove_directory(path).map(|_| ()),
        }
    }
}

/// Writes or removes a configuration file that has the digest `now`.
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
        // A new configuration is readable as packages install it.
        Some(text) => host.replace(path, text.as_bytes(), now, 0o644),
        // The file that a link names was made, not the link.
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

    /// A journal of the release before `expected`.
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

    /// A host with a folder for the journal.
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
        // Quoted, each character of it takes two.
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
        assert_eq!(journal.undo(&host).failures, [""; 0]);
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
        // Who has nothing to put back tells nobody.
        for path in written {
            let path = directory.path().join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "before").unwrap();
        }
        assert!(!journal.service_to_undo(&host).restart_triggered_by_write);
        assert!(journal.has_original_config(&host));
    }
}
