//! The types that the parts of a plan share: the plan, the handlers before and after it, and the errors. Pure; decides nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::config_source;
use super::pending::{ACCEPT_PENDING_CHANGES, PendingChanges};
use crate::containerd_config::{self, Handler};
use crate::handoff::{
    EndingPod, EndingPods, HandlerReport, Owner, Problem, RestartPolicy, Sha256Digest, TakenOver,
};
use crate::installer::containerd::process::{Reason, Refusal};
use crate::installer::distro;
use crate::installer::state::{InstallPaths, OwnedHandler, StateAfter};

/// All changes on a host, in the order in which they are made.
#[derive(Debug, Default, PartialEq)]
pub struct HostPlan {
    /// Directories to create, outermost first.
    pub new_directories: Vec<String>,
    /// SHA-256 of the binaries to add to the store.
    pub store: BTreeSet<Sha256Digest>,
    /// Stable paths to create as symlinks, each with the SHA-256 of its binary.
    pub symlinks: BTreeMap<String, Sha256Digest>,
    /// The changes of configuration files. If the file that declares Farrier's handlers changes, it comes first.
    pub config: Vec<ConfigChange>,
    /// Whether containerd must be restarted.
    pub restart: bool,
    /// Which pods the restart may end.
    pub restart_policy: RestartPolicy,
    /// The pods that prevent the restart which some shims need. These shims stay as they are.
    pub waits_for: Vec<EndingPod>,
    /// Whether the restart may also put changes of others into effect, which the dump of the configuration has already.
    pub accept_pending_changes: bool,
    /// The change of the state file.
    pub state: StateAfter,
    /// Stable paths and stored files that no handler needs any more.
    pub obsolete_files: Vec<String>,
    /// Directories that Farrier created, to be removed where they are empty, outermost first.
    pub obsolete_directories: Vec<String>,
    /// The files of KWasm and runtime-class-manager to remove.
    pub legacy_cleanup: LegacyCleanup,
    /// Handlers that lose their binary, as they are before. A handler that a pod starts to use meanwhile keeps its binary.
    pub leaving: BTreeMap<String, OwnedHandler>,
    /// The report on each handler; `served` is the value after a successful change.
    pub handlers: Vec<HandlerReport>,
    /// The handlers that the cluster takes over from the command line.
    pub taken_over: Vec<TakenOver>,
    /// Notes for an operator on a successful change, each one sentence.
    pub notes: Vec<String>,
    /// The names of all handlers that Farrier manages before or after the change.
    pub managed: BTreeSet<String>,
    /// Farrier's handlers as they are declared afterwards.
    pub declared: Vec<Handler>,
    /// The handlers of which a pod sandbox is run before the change counts as successful.
    pub prove: BTreeSet<String>,
}

impl HostPlan {
    /// Whether the host is at the goal already.
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

    /// The paths of the binaries to add to the store.
    pub fn store_paths(&self, install_paths: &InstallPaths) -> impl Iterator<Item = String> {
        self.store
            .iter()
            .map(|sha256| install_paths.store_path(sha256))
    }

    /// Corrects the reports on handlers that the distribution declares in place of Farrier, and adds a note for each other one. `taken` has
    /// the problem of each.
    pub fn add_taken(&mut self, taken: &BTreeMap<String, Problem>) {
        let is_reported = |name: &&String| self.handlers.iter().any(|it| it.handler == **name);
        let others = taken.keys().filter(|name| !is_reported(name));
        let notes = others.map(|name| taken[name].message.clone());
        self.notes.extend(notes.collect::<Vec<_>>());
        for report in &mut self.handlers {
            if let Some(problem) = taken.get(&report.handler).filter(|_| report.served) {
                (report.served, report.path, report.sha256) = (false, None, None);
                report.reason = Some(problem.message.clone());
                report.remedy.clone_from(&problem.help);
            }
        }
    }

    /// Adds a note on each shim whose binary is one of `unrecognized`, which do not answer as shims do.
    pub fn add_unrecognized(&mut self, unrecognized: &BTreeSet<Sha256Digest>) {
        let is_unrecognized = |it: &&HandlerReport| {
            it.sha256
                .is_some_and(|sha256| unrecognized.contains(&sha256))
        };
        let shims: BTreeSet<&str> = self
            .handlers
            .iter()
            .filter(is_unrecognized)
            .map(|it| it.shim.as_str())
            .collect();
        let notes = shims.into_iter().map(|shim| {
            format!("the binary of shim {shim} answers `-v` unlike known shims of containerd: if its pods do not start, check its location")
        });
        self.notes.extend(notes.collect::<Vec<_>>());
    }

    /// Adds the reports on handlers that pods started to use during the change, and keeps their files.
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
    /// Managed handlers before the change, including draining handlers and those that the change takes over.
    pub(crate) before: BTreeMap<String, OwnedHandler>,
    /// Managed handlers after the change.
    pub(crate) next: BTreeMap<String, OwnedHandler>,
    /// Legacy handlers that stay as they are, as the state file would record them after a take-over.
    pub(crate) legacy: BTreeMap<String, OwnedHandler>,
    /// Legacy handlers that the change takes over, each with its previous owner.
    pub(crate) taken_over: BTreeMap<String, Owner>,
    /// Handlers that lose their binary.
    pub(crate) leaving: BTreeSet<String>,
    /// Handlers that are no longer declared and that pods still use.
    pub(crate) draining: BTreeMap<String, OwnedHandler>,
    /// The reports on handlers that the goal names, or that must leave and can't.
    pub(crate) reports: Vec<HandlerReport>,
}

impl HandlerSet {
    /// The handler of this name after the change, managed or legacy.
    pub(crate) fn after(&self, handler: &str) -> Option<&OwnedHandler> {
        self.next.get(handler).or_else(|| self.legacy.get(handler))
    }

    /// The handler of this name before the change, managed or legacy.
    pub(crate) fn current(&self, handler: &str) -> Option<&OwnedHandler> {
        self.before
            .get(handler)
            .or_else(|| self.legacy.get(handler))
    }

    /// Moves a legacy handler to the managed handlers.
    pub(crate) fn take_over(&mut self, handler: &str, owner: Owner) {
        if let Some(mut owned) = self.legacy.remove(handler) {
            let previous_owner = std::mem::replace(&mut owned.owner, owner);
            self.taken_over.insert(handler.to_owned(), previous_owner);
            self.before.insert(handler.to_owned(), owned);
        }
    }

    /// The handlers that lose their binary, as they are before the change.
    pub(crate) fn leaving_as_they_were(&self) -> BTreeMap<String, OwnedHandler> {
        let mut leaving = self.before.clone();
        leaving.retain(|name, _| self.leaving.contains(name));
        leaving
    }
}

/// The files of KWasm and runtime-class-manager to remove after a successful change. Idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LegacyCleanup {
    /// Binaries, symlinks to them, and markers.
    pub files: Vec<String>,
    /// Lock files that lose entries.
    pub locks: Vec<LockChange>,
    /// Directories to remove where they are empty, outermost first.
    #[serde(rename = "folders")]
    pub directories: Vec<String>,
}

impl LegacyCleanup {
    /// Whether no file is removed or changed.
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
    /// SHA-256 of its present text.
    pub before: Sha256Digest,
    /// Its text afterwards; `None` where it is removed, because no entry is left.
    pub after: Option<String>,
}

/// A change of one configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// Absolute path on the host.
    pub path: String,
    /// Its present text; `None` where it is absent.
    pub before: Option<String>,
    /// Its text afterwards; `None` where it is removed.
    pub after: Option<String>,
    /// The root configuration file, whose path containerd is started with.
    pub root: String,
    /// The same change in the file that containerd loads, where the distribution renders that file from `path`.
    pub rendered: Option<config_source::Rendered>,
    /// Whether containerd loads the file, or a file that the distribution renders from it. False for a file that only an earlier containerd
    /// loaded.
    pub live: bool,
}

/// The help where a restart would end pods.
pub(crate) const ALLOW_POD_RESTARTS: &str =
    "allow the restart with --allow-pod-restarts (chart: job.allowPodRestarts)";

/// Why no change of a host is planned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Farrier does not change hosts of this distribution.
    #[error("{}", .0.message)]
    Distribution(distro::Unsupported),
    /// The kubelet uses another runtime than containerd.
    #[error(
        "the kubelet of this node uses the container runtime {name} at {socket} instead of containerd"
    )]
    OtherRuntime {
        /// The name with which the runtime answers.
        name: String,
        /// Path of the kubelet's CRI socket.
        socket: String,
    },
    /// No containerd runs that could verify a change.
    #[error("{}{}", none_counts(refused), not_counted(refused))]
    NoDaemon {
        /// Processes called containerd that do not count.
        refused: Vec<Refusal>,
    },
    /// Several containerd run, and the kubelet of one of them does not count, or its socket is unknown.
    #[error(
        "failed to determine which containerd of this host the kubelet uses{}",
        not_counted(refused)
    )]
    UnknownKubelet {
        /// Processes called kubelet that do not count.
        refused: Vec<Refusal>,
    },
    /// The kubelet uses none of the containerd that count.
    #[error(
        "no containerd that Farrier may use listens at {}, the socket of this host's kubelet{}{}",
        socket.as_deref().unwrap_or("an unknown path"),
        part_of(of_distro.as_ref()),
        not_counted(refused)
    )]
    NotOfKubelet {
        /// The socket of the kubelet, if it is known.
        socket: Option<String>,
        /// The `id` of the distribution that includes the kubelet and its unit, if the kubelet is known by this unit.
        of_distro: Option<(&'static str, String)>,
        /// Processes called containerd that do not count.
        refused: Vec<Refusal>,
    },
    /// The release of containerd is unknown.
    #[error("failed to determine the release of this host's containerd: {0}")]
    NoVersion(Problem),
    /// containerd was unhealthy before the change.
    #[error("containerd does not serve: {0}")]
    NotServing(Problem),
    /// A directory or file that a change needs can't be written, or binaries can't be executed from it.
    #[error("{0}")]
    Obstacle(Problem),
    /// The source that a distribution renders the configuration from can't be edited.
    #[error(transparent)]
    Source(#[from] config_source::Error),
    /// The configuration can't be edited.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// containerd would not start with its present configuration.
    #[error("containerd does not load its present configuration: {0}")]
    Refuses(Problem),
    /// A restart would put changes by others into effect.
    #[error(transparent)]
    Pending(#[from] PendingChanges),
    /// A restart would put a change of the runtimes into effect.
    #[error(
        "{path} or one of its imports was changed after containerd started ({what} differs from the running containerd), and a restart would put the change into effect"
    )]
    PendingRuntime {
        /// The root configuration file.
        path: String,
        /// The runtime that differs, such as `handler kata`.
        what: String,
    },
    /// A restart would end pods.
    #[error(
        "a restart of {unit} would end every pod on this node, because its KillMode is {mode:?}"
    )]
    KillMode {
        /// The unit of containerd.
        unit: String,
        /// Its `KillMode`.
        mode: String,
    },
    /// A restart would end the node itself.
    #[error(
        "this node is a container, and a restart of containerd would end the container with every pod"
    )]
    Container,
    /// A restart would end pods whose shims report no process.
    #[error("{}", ends_at_restart(.0))]
    EndsPods(Vec<EndingPod>),
    /// containerd does not tell the processes of its shims.
    #[error("failed to determine which pods a restart of containerd would end: {0}")]
    EndingPodsUnknown(Problem),
    /// The service manager does not answer, so it can't restart containerd either: `--allow-pod-restarts` does not lift this refusal.
    #[error("failed to determine whether pods survive a restart of containerd: {0}")]
    KillModeUnknown(Problem),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::NoVersion(problem) => {
                problem.help_or("check that `containerd --version` works on the node")
            }
            Self::Distribution(unsupported) => Cow::Borrowed(unsupported.help),
            Self::OtherRuntime { .. } => Cow::Borrowed(
                "use nodes whose kubelet uses containerd (--container-runtime-endpoint)",
            ),
            Self::NoDaemon { refused } => match by_evidence(refused).first() {
                Some(refusal) => return refusal.reason.help(),
                None => Cow::Borrowed(
                    "start containerd, or use --offline to prepare the host for the next start of containerd",
                ),
            },
            Self::NotOfKubelet {
                refused, of_distro, ..
            } => match (by_evidence(refused).first(), of_distro) {
                (Some(refusal), _) => return refusal.reason.help(),
                (None, Some((id, unit))) => Cow::Owned(format!(
                    "start {unit}, or disable it and remove the files of {id} if this host no longer uses it"
                )),
                (None, None) => Cow::Borrowed("start the containerd that the kubelet uses"),
            },
            Self::UnknownKubelet { refused } => match by_evidence(refused).first() {
                Some(refusal) => return refusal.reason.help(),
                None => Cow::Borrowed("check the kubelet's --container-runtime-endpoint"),
            },
            Self::NotServing(problem) => {
                problem.help_or("repair containerd, then run farrier again")
            }
            Self::Refuses(problem) => {
                problem.help_or("correct the configuration before the next start of containerd")
            }
            Self::Source(error) => return error.help(),
            Self::Config(error) => return error.help(),
            Self::Pending(changes) => Cow::Owned(changes.help()),
            Self::PendingRuntime { .. } => Cow::Owned(format!(
                "check that change, then restart containerd yourself, undo the change, or {ACCEPT_PENDING_CHANGES}"
            )),
            Self::KillMode { .. } => Cow::Owned(format!(
                "set KillMode=process in the unit (OpenRC: rc_cgroup_cleanup=NO), or {ALLOW_POD_RESTARTS}"
            )),
            Self::Container => Cow::Borrowed(ALLOW_POD_RESTARTS),
            Self::EndsPods(_) => Cow::Borrowed(
                "delete these pods, drain the node, or allow the restart with --on-restart=allow",
            ),
            Self::EndingPodsUnknown(problem) => problem.help_or(
                "check that containerd answers, or allow the restart with --on-restart=allow",
            ),
            Self::KillModeUnknown(problem) => {
                problem.help_or("check that the service manager answers on the node")
            }
            Self::Obstacle(problem) => return problem.help.as_deref().map(Cow::Borrowed),
        })
    }
}

/// The distribution that includes the kubelet, as a part of a message.
fn part_of(of_distro: Option<&(&str, String)>) -> String {
    let part = |(id, unit): &(&str, String)| format!(", which is part of {id} ({unit})");
    of_distro.map_or_else(String::new, part)
}

/// Which pods a restart ends, as a sentence.
pub(crate) fn ends_at_restart(pods: &[EndingPod]) -> String {
    let number = match pods.len() {
        1 => "1 pod, because its shim does not report its processes".to_owned(),
        number => format!("{number} pods, because their shims do not report their processes"),
    };
    let pods = EndingPods::of(pods);
    format!("a restart of containerd ends {number}: {pods}")
}

/// The number of refusals in a message. Any user can start any number of processes called containerd.
const SHOWN_REFUSALS: usize = 3;

/// Refusals in the order of the message. The processes of ordinary users come last: any number of them must not hide why the host's own
/// containerd does not count.
fn by_evidence(refused: &[Refusal]) -> Vec<&Refusal> {
    let mut refused: Vec<&Refusal> = refused.iter().collect();
    refused.sort_by_key(|refusal| refusal.is_user_process());
    refused
}

/// The begin of a message. A process whose program was removed is the containerd of the host.
fn none_counts(refused: &[Refusal]) -> &'static str {
    let mut reasons = refused.iter().map(|refusal| &refusal.reason);
    if reasons.any(|reason| *reason == Reason::Removed) {
        "the containerd of this host can't be restarted"
    } else {
        "no containerd runs on this host"
    }
}

/// The end of a message, with the reasons that processes called containerd or kubelet do not count; empty where no such process runs.
fn not_counted(refused: &[Refusal]) -> String {
    if refused.is_empty() {
        return String::new();
    }
    let shown = by_evidence(refused).into_iter().take(SHOWN_REFUSALS);
    let shown: Vec<String> = shown.map(ToString::to_string).collect();
    let shown = shown.join("; ");
    let more = refused.len().saturating_sub(SHOWN_REFUSALS);
    if more > 0 {
        format!(" ({more} more are not shown): {shown}")
    } else {
        format!(": {shown}")
    }
}
