//! The errors that end the controller, an uninstall or a status table.

use std::borrow::Cow;

use super::{apply, cluster};
use crate::server;

/// The reason why the controller, an uninstall or a status table ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster can't be read.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The API server did not answer in time.
    #[error("the API server did not answer within {seconds} s")]
    Deadline {
        /// The time limit in seconds.
        seconds: u64,
    },
    /// Another replica holds the Lease, or the Lease was not renewed in time.
    #[error("lost the Lease to another replica, or failed to renew it in time")]
    LeaseLost,
    /// The CustomResourceDefinition was deleted or replaced.
    #[error("the cluster no longer serves Farrier's CustomResourceDefinition of the Shim")]
    CrdReplaced,
    /// The API server rejected a write without which the command can't continue.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// A part of the controller ended, although it should run until the end of the process.
    #[error("the {part} ended unexpectedly")]
    Ended {
        /// The part.
        part: &'static str,
    },
    /// The process can't receive signals.
    #[error("failed to listen for signals: {source}")]
    Signal {
        /// The error of the kernel.
        #[source]
        source: std::io::Error,
    },
    /// The probes can't be served.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The CustomResourceDefinition of the Shim can't be written.
    #[error(transparent)]
    Crd(#[from] apply::crd::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Cluster(error) => error.help(),
            Self::Apply(error) => error.help(),
            Self::Crd(error) => error.help(),
            Self::Server(error) => error.help(),
            Self::Deadline { .. } => Some("check the address in the kubeconfig".into()),
            Self::CrdReplaced => Some("run `farrier crd --apply`".into()),
            Self::LeaseLost | Self::Ended { .. } | Self::Signal { .. } => None,
        }
    }
}
