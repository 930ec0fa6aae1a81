//! Why an artifact can't be had, and the check of its digest.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;

use super::unpack;
use crate::handoff::{Problem, Sha256Digest};

/// The largest release archive known (wasmedge) has 45 MB; more than ten times that.
pub(crate) const MAX_ARTIFACT: u64 = 512 << 20;
/// All artifacts together, with every try: 45 MB at 1.2 Mbit/s. What is there by then is installed.
pub(crate) const FETCH_LIMIT: Duration = Duration::from_mins(5);

/// Why an artifact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location is no URL that can be fetched.
    #[error("location {location:?} can't be fetched")]
    Location {
        /// As it was asked for, but for what may be secret.
        location: String,
    },
    /// The server was not reached, or the connection broke.
    #[error("{url} can't be fetched: {message}")]
    Transport {
        /// The first URL, as [`shown_url`] has it.
        url: String,
        /// The innermost cause.
        message: String,
        /// Whether asking again makes sense.
        again: bool,
    },
    /// The server has no such artifact.
    #[error("{url} can't be fetched: the server answers {status}")]
    Status {
        /// The first URL, as [`shown_url`] has it.
        url: String,
        /// Its answer.
        status: StatusCode,
    },
    /// It was not downloaded in time.
    #[error("{location} could not be fetched within {FETCH_LIMIT:?}")]
    TooSlow {
        /// As [`shown_location`] has it.
        location: String,
    },
    /// The body is larger than any shim.
    #[error("{url} has more than {MAX_ARTIFACT} bytes")]
    TooLarge {
        /// The first URL, as [`shown_url`] has it.
        url: String,
    },
    /// Other bytes than were asked for.
    #[error("{what} has SHA-256 {found} and not {wanted}")]
    Digest {
        /// The artifact or binary.
        what: String,
        /// What was computed.
        found: Sha256Digest,
        /// What was asked for.
        wanted: Sha256Digest,
    },
    /// It holds no usable binary.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// The hand-off directory can't be used.
    #[error("{path} can't be used: {source}")]
    Directory {
        /// A file in it.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The extra certificate authorities can't be read.
    #[error("{path} holds no certificates in PEM: {message}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// `fetch` left nothing for a Shim.
    #[error("nothing was fetched for this shim")]
    Missing,
    /// `fetch` says why it failed.
    #[error("{0}")]
    Reported(Problem),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Location { .. } => Cow::Borrowed("write an https://, http:// or file:/// URL"),
            Self::Transport { .. } => Cow::Borrowed(
                "see that the location is right and that its server can be reached from here (pods of the node have their own network)",
            ),
            Self::Status { .. } => Cow::Borrowed("correct the location"),
            Self::TooSlow { .. } => {
                Cow::Borrowed("see how fast the node reaches that server, or use a mirror")
            }
            Self::TooLarge { .. } => Cow::Borrowed("no shim is that large"),
            Self::Digest { .. } => {
                Cow::Borrowed("correct the digest, or find out who changed the file")
            }
            Self::Unpack(error) => return error.help(),
            Self::Directory { .. } => {
                Cow::Borrowed("see that it is there and that farrier may write to it")
            }
            Self::CaFile { .. } => Cow::Borrowed("name a file with `BEGIN CERTIFICATE` in it"),
            Self::Missing => Cow::Borrowed("see the log of the fetch container"),
            Self::Reported(_) => return None,
        })
    }
}

pub(crate) fn directory_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Directory {
        path: path.to_owned(),
        source,
    }
}

/// Whether bytes are those that were asked for; anything is, where nothing was.
///
/// # Errors
/// [`Error::Digest`] with both.
pub fn check_digest(
    what: &str,
    found: Sha256Digest,
    wanted: Option<Sha256Digest>,
) -> Result<(), Error> {
    match wanted {
        Some(wanted) if wanted != found => Err(Error::Digest {
            what: what.to_owned(),
            found,
            wanted,
        }),
        _ => Ok(()),
    }
}
