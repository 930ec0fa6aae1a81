//! The error of an inspection. Wraps the errors of lower floors.

use std::borrow::Cow;

use crate::installer::containerd::config_files;
use crate::installer::{host, state};

/// Why a host can't be inspected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the host can't be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The state file can't be read.
    #[error(transparent)]
    State(#[from] state::Error),
    /// containerd's configuration can't be read.
    #[error(transparent)]
    ConfigFiles(#[from] config_files::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Host(error) => error.help(),
            Self::State(error) => error.help(),
            Self::ConfigFiles(error) => error.help(),
        }
    }
}
