//! Why a host is not changed, and how the host is then.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::containerd_config;
use crate::handoff::{Problem, Sha256Digest};
use crate::installer::artifact::fetch;
use crate::installer::containerd::{config_files, restart};
use crate::installer::{host, inspect, plan, state};

/// Why a host is not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host can't be inspected.
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    /// containerd's configuration files can't be read.
    #[error(transparent)]
    ConfigFiles(#[from] config_files::Error),
    /// The host's files.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The state file or the journal.
    #[error(transparent)]
    State(#[from] state::Error),
    /// Nothing may be changed.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The configuration, or what the candidate would change in it.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// containerd refuses the candidate.
    #[error("containerd refuses the changed configuration: {0}")]
    ConfigRefused(Problem),
    /// Binaries that do not run on the host, by SHA-256, each with a sentence.
    #[error("{}", .0.values().next().map_or("", |problem| problem.message.as_str()))]
    Unusable(BTreeMap<Sha256Digest, Problem>),
    /// An artifact.
    #[error(transparent)]
    Artifact(#[from] fetch::Error),
    /// An artifact that should be on the host.
    #[error("there is no {path} on this host")]
    NoArtifact {
        /// Absolute path on the host.
        path: String,
    },
    /// A binary that the request expects on the host, and that therefore was not fetched.
    #[error("its binary {path} is gone or was changed on the host")]
    NotPresent {
        /// Absolute path on the host.
        path: String,
    },
    /// A link stands where a folder of ours should.
    #[error("{path} on the host is a link")]
    SymlinkedDirectory {
        /// Absolute path on the host.
        path: String,
    },
    /// A binary could not be put on disk.
    #[error("the binary can't be put on disk: {source}")]
    Store {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A folder for downloads could not be made.
    #[error("no temporary folder can be made: {source}")]
    Temporary {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// containerd after the restart.
    #[error(transparent)]
    Restart(#[from] restart::Error),
    /// What undoing takes is more than a later run would read.
    #[error("undoing this change would take more than {limit} bytes of notes, so it is not begun")]
    TooMuchToUndo {
        /// The bound.
        limit: u64,
    },
    /// SIGTERM, SIGINT or SIGHUP came before the change took effect.
    #[error("interrupted by {name}")]
    Signal {
        /// The signal.
        name: &'static str,
    },
    /// A former run.
    #[error("a former change was interrupted and could not be undone")]
    Interrupted,
    /// A former run, which was allowed more than this one.
    #[error(
        "a former change was interrupted, and undoing it takes a restart that ends every pod on this node"
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
            Self::ConfigRefused(_) => Cow::Borrowed("run with --dry-run to see the change"),
            Self::Artifact(error) => return error.help(),
            Self::NoArtifact { .. } => {
                Cow::Borrowed("put the artifact there, or correct the location")
            }
            Self::NotPresent { .. } => Cow::Borrowed("it is fetched anew at the next attempt"),
            Self::SymlinkedDirectory { .. } => {
                Cow::Borrowed("make it a folder, or link the folder that it is in")
            }
            Self::Store { .. } => Cow::Borrowed("see that the host has room and its disk is well"),
            Self::Temporary { .. } => {
                Cow::Borrowed("see that $TMPDIR, or else /tmp, can be written to")
            }
            Self::Restart(error) => return error.help(),
            Self::TooMuchToUndo { .. } => Cow::Borrowed("shorten containerd's configuration"),
            Self::Signal { .. } => Cow::Borrowed("run the same command again"),
            Self::InterruptedWithPods => Cow::Borrowed(
                "accept that with --allow-pod-restarts, or job.allowPodRestarts among the chart's values",
            ),
            Self::Unusable(..) | Self::Interrupted => return None,
        })
    }
}

/// Why a plan was not carried out, and how the host is now.
#[derive(Debug)]
pub enum Failure {
    /// As it was; nothing went live.
    Refused(Error),
    /// As it was, after something had been tried.
    RolledBack {
        /// Why.
        cause: Error,
        /// The restarts of containerd.
        tally: Restarts,
    },
    /// It needs a person.
    Broken {
        /// Why it was not carried out.
        cause: Error,
        /// What could not be put back.
        failures: Vec<String>,
        /// The restarts of containerd.
        tally: Restarts,
    },
}

/// What the restarts of one run came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Restarts {
    /// How often containerd was restarted.
    pub restarts: u32,
    /// How long the CRI was away for that, or wrong; `None` where nothing was restarted.
    pub away: Option<Duration>,
}

/// How far a change came.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Pods or containerd may have met with something of it.
    pub(crate) live: bool,
    /// The restarts of containerd.
    pub(crate) tally: Restarts,
}
