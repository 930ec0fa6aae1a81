//! Why a host was not changed: the one error of the room, which gathers those of its modules.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::installer::artifact::fetch;

use crate::installer::host;

use crate::installer::plan;

use crate::installer::containerd::restart;

use crate::containerd_config;
use crate::handoff;
use crate::installer::state;

/// Why a host was not changed, or a question about it has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's files.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The state file or the journal.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The request.
    #[error("{}", handoff::with_help(.0, .0.help()))]
    Request(#[from] handoff::Error),
    /// The request's file.
    #[error("the request in {path} can't be read: {source}; name a file that farrier may read")]
    RequestFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nothing may be changed.
    #[error(transparent)]
    Plan(#[from] plan::Error),
    /// The configuration, or what the candidate would change in it.
    #[error("{}", handoff::with_help(.0, .0.help()))]
    Config(#[from] containerd_config::Error),
    /// The configuration has too many parts.
    #[error("{path} imports hundreds of files; shorten its imports")]
    TooManyImports {
        /// The root configuration.
        path: String,
    },
    /// A path that can't be a file on the host.
    #[error("{} can't be containerd's configuration file; write an absolute path", .0.display())]
    ConfigPath(PathBuf),
    /// containerd refuses the candidate.
    #[error(
        "containerd refuses the changed configuration: {0}; run with --dry-run to see the change"
    )]
    Candidate(String),
    /// Binaries that do not run on the host, by SHA-256, each with a sentence.
    #[error("{}", .0.values().next().map_or("", String::as_str))]
    Unusable(BTreeMap<String, String>),
    /// An artifact.
    #[error(transparent)]
    Artifact(#[from] fetch::Error),
    /// An artifact that should be on the host.
    #[error("there is no {path} on this host; put the artifact there, or correct the location")]
    NoArtifact {
        /// Absolute path on the host.
        path: String,
    },
    /// A binary that the request expects on the host, and that therefore was not fetched.
    #[error(
        "its binary {path} is gone or was changed on the host; it is fetched anew at the next attempt"
    )]
    NotPresent {
        /// Absolute path on the host.
        path: String,
    },
    /// A link stands where a folder of ours should.
    #[error("{path} on the host is a link; make it a folder, or link the folder that it is in")]
    LinkedFolder {
        /// Absolute path on the host.
        path: String,
    },
    /// A binary could not be put on disk.
    #[error(
        "the binary can't be put on disk: {source}; see that the host has room and its disk is well"
    )]
    Store {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A folder for downloads could not be made.
    #[error(
        "no temporary folder can be made: {source}; see that $TMPDIR, or else /tmp, can be written to"
    )]
    Temporary {
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// containerd after the restart.
    #[error(transparent)]
    Restart(#[from] restart::Error),
    /// What undoing takes is more than a later run would read.
    #[error(
        "undoing this change would take more than {limit} bytes of notes, so it is not begun; shorten containerd's configuration"
    )]
    TooMuchToUndo {
        /// The bound.
        limit: u64,
    },
    /// SIGTERM or SIGINT came before the change took effect.
    #[error("interrupted by {name}; run the same command again")]
    Signal {
        /// The signal.
        name: &'static str,
    },
    /// A former run.
    #[error("a former change was interrupted and could not be undone")]
    Interrupted,
    /// A former run, which was allowed more than this one.
    #[error(
        "a former change was interrupted, and undoing it takes a restart that ends every pod on this node; accept that with --allow-pod-restarts, or job.allowPodRestarts among the chart's values"
    )]
    InterruptedWithPods,
}
