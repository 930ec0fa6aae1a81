//! Why a question about a host has no answer.

use super::artifact::fetch;
use super::{host, inspect, options, transaction};
use std::borrow::Cow;

/// Why a question about a host has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options can't be used.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A file of the host can't be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The host can't be inspected.
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    /// Artifacts can't be fetched.
    #[error(transparent)]
    Artifact(#[from] fetch::Error),
    /// Traces of a former change can't be read.
    #[error(transparent)]
    Transaction(#[from] transaction::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Options(error) => error.help(),
            Self::Host(error) => error.help(),
            Self::Inspect(error) => error.help(),
            Self::Artifact(error) => error.help(),
            Self::Transaction(error) => error.help(),
        }
    }
}
