//! The reasons why Farrier does not change a host, and the state of the host afterwards.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::containerd_config;
use crate::handoff::{EndingPod, Problem, Sha256Digest};
use crate::installer::artifact::{fetch, unpack};
use crate::installer::containerd::{config_files, restart, sandbox};
use crate::installer::host::hint_for_writing;
use crate::installer::host::owner::ProgramError;
use crate::installer::{host, inspect, plan, state};

/// The reason why Farrier does not change a host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Inspecting the host failed.
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    /// Reading containerd's configuration files failed.
    #[error(transparent)]
    ConfigFiles(#[from] config_files::Error),
    /// Reading or writing the host's files failed.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The state file or the journal is damaged or of another version.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The planner refuses the change.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The configuration can't be edited, or the candidate would change more of it than planned.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// The host's containerd refuses the candidate configuration.
    #[error("containerd refuses the changed configuration: {0}")]
    ConfigRefused(Problem),
    /// The host's containerd does not start on the changed configuration, or serves other handlers there.
    #[error(
        "containerd would not serve the changed configuration, as a rehearsal of its start shows: {0}"
    )]
    Rehearsal(Problem),
    /// Binaries that fail the smoke test, by SHA-256. The message is that of the first one.
    #[error("{}", .0.values().next().map_or("", |problem| problem.message.as_str()))]
    Unusable(BTreeMap<Sha256Digest, Problem>),
    /// Fetching, verifying or unpacking an artifact failed.
    #[error(transparent)]
    Artifact(#[from] fetch::Error),
    /// A location names a file of the host, and the file is missing.
    #[error("artifact {path} is missing on the host")]
    NoArtifact {
        /// Absolute path on the host.
        path: String,
    },
    /// A location names something on the host that is no artifact.
    #[error("artifact {path} on the host is {what}")]
    NoArtifactFile {
        /// Absolute path on the host.
        path: String,
        /// The rest of the sentence, such as `a directory`.
        what: &'static str,
    },
    /// The request of a cluster names a file of the host without a SHA-256, and another user than root can change this file.
    #[error("failed to trust artifact {path} without a SHA-256: {source}")]
    UntrustedArtifact {
        /// Absolute path on the host.
        path: String,
        /// The component of the path that another user can change.
        #[source]
        source: ProgramError,
    },
    /// The request expects a binary on the host, so it was not fetched, and the binary is missing or modified, or came from another artifact
    /// than the request names.
    #[error("binary {path} is missing or modified on the host, or not from this artifact")]
    NotPresent {
        /// Absolute path on the host.
        path: String,
    },
    /// Flushing a binary to disk failed.
    #[error("failed to write the binary to disk: {source}")]
    Store {
        /// The cause, as the operating system reports it.
        #[source]
        source: io::Error,
    },
    /// Creating the temporary directory for downloads failed.
    #[error("failed to create a temporary directory for downloads: {source}")]
    Temporary {
        /// The cause, as the operating system reports it.
        #[source]
        source: io::Error,
    },
    /// The restart of containerd failed, or containerd serves something else afterwards.
    #[error(transparent)]
    Restart(#[from] restart::Error),
    /// A handler is served, and does not run a pod sandbox.
    #[error(transparent)]
    Proof(#[from] sandbox::Error),
    /// The journal would exceed the size that a later run reads.
    #[error("the journal of this change would exceed {limit} bytes")]
    TooMuchToUndo {
        /// The limit in bytes.
        limit: u64,
    },
    /// SIGTERM, SIGINT or SIGHUP arrived before the change took effect.
    #[error("interrupted by {name}")]
    Signal {
        /// The name of the signal.
        name: &'static str,
    },
    /// An earlier run was interrupted, and undoing its change failed. The report adds the failed steps.
    #[error("an earlier change of this host was interrupted")]
    Interrupted,
    /// An earlier run was interrupted. It was allowed to end pods, and this run is not.
    #[error(
        "an earlier change of this host was interrupted, and the restart of containerd to undo it ends every pod on this node"
    )]
    InterruptedWithPods,
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Inspect(error) => return error.help(),
            Self::ConfigFiles(error) => return error.help(),
            Self::Host(error) => return error.help(),
            Self::State(error) => return error.help(),
            Self::Plan(error) => return error.help(),
            Self::Config(error) => return error.help(),
            Self::ConfigRefused(problem) => problem.help_or("run with --dry-run to see the change"),
            Self::Rehearsal(problem) => problem.help_or(
                "run with --dry-run to see the change, and correct the settings that the reason names",
            ),
            Self::Artifact(error) => return error.help(),
            Self::NoArtifact { .. } => Cow::Borrowed(
                "put the artifact at this path on the host (below --host-root, if set), or correct the location of the shim",
            ),
            Self::NoArtifactFile { .. } => Cow::Borrowed(unpack::CHECK_LOCATION),
            Self::UntrustedArtifact { source, .. } => {
                let mend = match source {
                    ProgramError::Owner { .. } => source.help(),
                    // The artifact may be in `/tmp`, whose mode must stay.
                    ProgramError::Writable { .. }
                    | ProgramError::AccessList { .. }
                    | ProgramError::NoFile { .. }
                    | ProgramError::Interpreter { .. }
                    | ProgramError::Open { .. } => None,
                };
                let mend = mend.unwrap_or(Cow::Borrowed(
                    "move the artifact to a directory that only root can write to",
                ));
                Cow::Owned(format!(
                    "{mend}, or specify its SHA-256 as sha256 in the Shim (spec.fetchStrategy.platforms)"
                ))
            }
            Self::NotPresent { .. } => {
                Cow::Borrowed("wait for the next attempt, which fetches the binary again")
            }
            Self::Store { source } => Cow::Borrowed(
                hint_for_writing(source).unwrap_or("check that the disk is healthy"),
            ),
            Self::Temporary { source } => match hint_for_writing(source) {
                Some(hint) => Cow::Owned(format!("{hint} ($TMPDIR, /tmp by default)")),
                None => Cow::Borrowed("check that $TMPDIR (/tmp by default) is writable"),
            },
            Self::Restart(error) => return error.help(),
            Self::Proof(error) => return error.help(),
            Self::TooMuchToUndo { .. } => Cow::Borrowed("shorten containerd's configuration"),
            Self::Signal { .. } => Cow::Borrowed("run the same command again"),
            Self::InterruptedWithPods => Cow::Borrowed(plan::ALLOW_POD_RESTARTS),
            Self::Unusable(unusable) => {
                let first = unusable.values().next();
                Cow::Borrowed(first?.help.as_deref()?)
            }
            Self::Interrupted => return None,
        })
    }
}

/// The reason why a plan was not carried out, by the state of the host afterwards.
#[derive(Debug)]
pub enum Failure {
    /// The host is unchanged: nothing took effect.
    Refused(Error),
    /// The host is restored after a change that had taken effect at least in part.
    RolledBack {
        /// The reason.
        cause: Error,
        /// The restarts of containerd.
        tally: Restarts,
        /// The pods that the restart of the rollback ended.
        ended: Vec<EndingPod>,
    },
    /// Undoing failed, so an administrator has to repair the host.
    Broken {
        /// The reason why the plan was not carried out.
        cause: Error,
        /// The steps of undoing that failed, each as a sentence.
        failures: Vec<Problem>,
        /// The restarts of containerd.
        tally: Restarts,
        /// The pods that the restart of the rollback ended.
        ended: Vec<EndingPod>,
    },
}

/// The number and the duration of the restarts of containerd in one run.
#[derive(Debug, Default, Clone, Copy)]
pub struct Restarts {
    /// The number of restarts.
    pub restarts: u32,
    /// The time during which the CRI was unavailable or served something else; `None` without a restart.
    pub away: Option<Duration>,
}

/// The progress of a change, which decides between [`Failure::Refused`] and [`Failure::RolledBack`].
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Pods or containerd may have used a part of the change.
    pub(crate) live: bool,
    /// The restarts of containerd.
    pub(crate) tally: Restarts,
}
