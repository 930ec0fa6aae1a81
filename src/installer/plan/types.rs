//! What the parts of a plan share: the plan itself, the handlers before and after it, and the reasons against it. Pure; decides nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::config_source;
use crate::containerd_config::{self, Handler};
use crate::handoff::{HandlerReport, Owner, Problem, Sha256Digest};
use crate::installer::containerd::process::Refusal;
use crate::installer::distro;
use crate::installer::state::{InstallPaths, OwnedHandler, StateAfter};

/// What has to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct HostPlan {
    /// Folders to make, outermost first.
    pub new_directories: Vec<String>,
    /// SHA-256 of the binaries to put into the store.
    pub store: BTreeSet<Sha256Digest>,
    /// Stable paths to point to a binary, by its SHA-256.
    pub symlinks: BTreeMap<String, Sha256Digest>,
    /// The configuration files to write, the one that is to declare our handlers first, if it changes.
    pub config: Vec<ConfigChange>,
    /// Whether containerd must be restarted.
    pub restart: bool,
    /// The state file afterwards.
    pub state: StateAfter,
    /// Stable paths and stored files that nothing needs any more.
    pub obsolete_files: Vec<String>,
    /// Folders of ours to remove, where they are empty, outermost first.
    pub obsolete_directories: Vec<String>,
    /// What goes of predecessors.
    pub legacy_cleanup: LegacyCleanup,
    /// Handlers that lose their binary, as they are, unless a pod takes one up meanwhile.
    pub leaving: BTreeMap<String, OwnedHandler>,
    /// What is to be reported on each handler; `served` is what will be so if all goes well.
    pub handlers: Vec<HandlerReport>,
    /// What is to be said that leaves nothing undone: sentences.
    pub notes: Vec<String>,
    /// Handlers that are ours, before or after.
    pub managed: BTreeSet<String>,
    /// Handlers as they will be declared.
    pub declared: Vec<Handler>,
}

impl HostPlan {
    /// Whether the host already is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
            && self.symlinks.is_empty()
            && self.config.is_empty()
            && !self.restart
            && self.state == StateAfter::Keep
            && self.obsolete_files.is_empty()
            && self.legacy_cleanup.is_empty()
    }

    /// The paths of the binaries that are stored.
    pub fn store_paths(&self, install_paths: &InstallPaths) -> impl Iterator<Item = String> {
        self.store
            .iter()
            .map(|sha256| install_paths.store_path(sha256))
    }

    /// Takes in what pods took up while the plan was carried out: it stays, and is reported.
    pub fn add_draining(&mut self, draining: Vec<HandlerReport>) {
        let is_kept = |path: &String| {
            draining.iter().any(|handler| {
                let sha256 = handler.sha256;
                handler.path.as_ref() == Some(path)
                    || sha256.is_some_and(|sha256| path.ends_with(&sha256.to_string()))
            })
        };
        self.obsolete_files.retain(|path| !is_kept(path));
        self.legacy_cleanup.files.retain(|path| !is_kept(path));
        self.handlers.extend(draining);
    }
}

/// The handlers of a host before and after a change.
#[derive(Debug)]
pub(crate) struct HandlerSet {
    /// Handlers of ours now, those that the change takes over and those that drain included.
    pub(crate) before: BTreeMap<String, OwnedHandler>,
    /// Handlers of ours afterwards.
    pub(crate) next: BTreeMap<String, OwnedHandler>,
    /// Legacy handlers that stay as they are, in the shape that they would have as ours.
    pub(crate) legacy: BTreeMap<String, OwnedHandler>,
    /// Legacy handlers that the change takes over, each with its former owner.
    pub(crate) taken_over: BTreeMap<String, Owner>,
    /// Handlers that lose their binary.
    pub(crate) leaving: BTreeSet<String>,
    /// Handlers that are declared no more and that pods still use.
    pub(crate) draining: BTreeMap<String, OwnedHandler>,
    /// The reports on those that were asked for or stay.
    pub(crate) reports: Vec<HandlerReport>,
}

impl HandlerSet {
    /// What a host has of `handler`, ours or a legacy one.
    pub(crate) fn current(&self, handler: &str) -> Option<&OwnedHandler> {
        self.before
            .get(handler)
            .or_else(|| self.legacy.get(handler))
    }

    /// Makes a legacy handler ours: moves it across.
    pub(crate) fn take_over(&mut self, handler: &str, owner: Owner) {
        if let Some(mut owned) = self.legacy.remove(handler) {
            let previous_owner = std::mem::replace(&mut owned.owner, owner);
            self.taken_over.insert(handler.to_owned(), previous_owner);
            self.before.insert(handler.to_owned(), owned);
        }
    }

    /// The handlers that lose their binary, as they are now.
    pub(crate) fn leaving_as_they_were(&self) -> BTreeMap<String, OwnedHandler> {
        let mut leaving = self.before.clone();
        leaving.retain(|name, _| self.leaving.contains(name));
        leaving
    }
}

/// What goes of a predecessor once a change stands. Doing it twice does no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LegacyCleanup {
    /// Binaries, links to them, and markers.
    pub files: Vec<String>,
    /// Lock files that lose entries.
    pub locks: Vec<LockChange>,
    /// Folders, where they are empty, outermost first.
    #[serde(rename = "folders")]
    pub directories: Vec<String>,
}

impl LegacyCleanup {
    /// Whether nothing goes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.locks.is_empty()
    }
}

/// A lock file that loses entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockChange {
    /// Absolute path on the host.
    pub path: String,
    /// SHA-256 of its text now.
    pub before: Sha256Digest,
    /// Its text afterwards; `None` where no entry is left.
    pub after: Option<String>,
}

/// A change of one configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// Absolute path on the host.
    pub path: String,
    /// Its text now, if it is there.
    pub before: Option<String>,
    /// Its text afterwards; `None` where it is removed.
    pub after: Option<String>,
    /// The root configuration file, which containerd is given.
    pub root: String,
    /// The same change of a file that containerd loads, where it loads not `path` but what the distribution makes of it.
    pub rendered: Option<config_source::Rendered>,
    /// Whether containerd loads it, or what the distribution makes of it. What a former containerd loaded lies idle.
    pub live: bool,
}

/// Why a host is not changed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The distribution is known and not one that this release changes.
    #[error("{}", .0.message)]
    Distribution(distro::Refusal),
    /// There is nothing to prove a change on.
    #[error("no containerd runs on this host{}", not_counted(refused))]
    NoDaemon {
        /// Processes of that name that do not count.
        refused: Vec<Refusal>,
    },
    /// Its release is unknown.
    #[error("failed to tell the release of this host's containerd: {0}")]
    NoVersion(Problem),
    /// It was not well before.
    #[error("containerd was not serving before any change: {0}")]
    NotServing(Problem),
    /// Binaries can't be kept where they can be executed, or the configuration can't be written.
    #[error("{0}")]
    Obstacle(Problem),
    /// What a distribution makes its configuration from can't be edited.
    #[error(transparent)]
    Source(#[from] config_source::Error),
    /// The configuration can't be edited.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// containerd refuses the configuration as it is.
    #[error("containerd does not load its present configuration: {0}")]
    Refuses(Problem),
    /// A restart would put live what somebody else wrote.
    #[error(
        "{path}, or what it imports, was changed after containerd started ({what} differs from what is served), and a restart would put that live"
    )]
    Pending {
        /// The root configuration.
        path: String,
        /// What differs, in a few words.
        what: String,
    },
    /// A restart would end pods.
    #[error("restarting {unit} would end every pod on this node, because its KillMode is {mode:?}")]
    KillMode {
        /// The unit.
        unit: String,
        /// Its `KillMode`.
        mode: String,
    },
    /// A restart would end the node itself.
    #[error("this node is a container that a restart ends, and with it every pod")]
    Container,
    /// Whoever can't be asked about a restart can't be asked for one: no leave for restarts that end pods helps here.
    #[error("whether containerd can be restarted and would spare pods then can't be told: {0}")]
    KillModeUnknown(Problem),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::NoVersion(problem) => Cow::Borrowed(
                problem
                    .help
                    .as_deref()
                    .unwrap_or("see that `containerd --version` works on the node"),
            ),
            Self::Distribution(refusal) => Cow::Borrowed(refusal.help),
            Self::NoDaemon { refused } => match by_evidence(refused).first() {
                Some(refusal) => return refusal.reason.help(),
                None => Cow::Borrowed(
                    "start it, or use --offline to prepare the host for its next start",
                ),
            },
            Self::NotServing(problem) | Self::Refuses(problem) => {
                Cow::Borrowed(problem.help.as_deref().unwrap_or("repair it first"))
            }
            Self::Source(error) => return error.help(),
            Self::Config(error) => return error.help(),
            Self::Pending { .. } => Cow::Borrowed(
                "restart containerd yourself or undo that change, then run farrier again",
            ),
            Self::KillMode { .. } => Cow::Borrowed(
                "set KillMode=process there (under OpenRC rc_cgroup_cleanup=NO), or accept that with --allow-pod-restarts",
            ),
            Self::Container => Cow::Borrowed(
                "accept that with --allow-pod-restarts, or job.allowPodRestarts among the chart's values",
            ),
            Self::KillModeUnknown(problem) => Cow::Borrowed(
                problem
                    .help
                    .as_deref()
                    .unwrap_or("see that the service manager answers on the node"),
            ),
            Self::Obstacle(problem) => return problem.help.as_deref().map(Cow::Borrowed),
        })
    }
}

/// Refusals that are told one by one. Any user can start processes of that name.
const SHOWN_REFUSALS: usize = 3;

/// Refusals in the order in which they are told. The processes of ordinary users come last: any number of them must not hide why the host's
/// own containerd does not count.
fn by_evidence(refused: &[Refusal]) -> Vec<&Refusal> {
    let mut refused: Vec<&Refusal> = refused.iter().collect();
    refused.sort_by_key(|refusal| refusal.is_user_process());
    refused
}

/// Why no process called containerd counts; empty where there is none.
fn not_counted(refused: &[Refusal]) -> String {
    if refused.is_empty() {
        return String::new();
    }
    let told = by_evidence(refused).into_iter().take(SHOWN_REFUSALS);
    let told: Vec<String> = told.map(ToString::to_string).collect();
    let told = told.join("; ");
    let more = refused.len().saturating_sub(SHOWN_REFUSALS);
    if more > 0 {
        format!(" ({more} more are not told): {told}")
    } else {
        format!(": {told}")
    }
}
