//! The errors of fetching and of the hand-off directory, the limits, and the check of a digest.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;

use super::unpack;
use crate::handoff::{Problem, Sha256Digest, ShimRequest};
use crate::installer::host::hint_for_writing;

/// Size limit in bytes for an artifact: more than ten times the largest known release archive (wasmedge, 45 MB).
pub(crate) const MAX_ARTIFACT: u64 = 512 << 20;
/// Time limit for fetching all artifacts, with all attempts: 45 MB at 1.2 Mbit/s. The artifacts that are complete by then are installed.
pub(crate) const FETCH_LIMIT: Duration = Duration::from_mins(5);

/// Why fetching an artifact failed, or reading a fetched binary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location has no supported scheme.
    #[error("failed to fetch {location:?}: the location is not a URL that Farrier can fetch")]
    Location {
        /// The location without secrets.
        location: String,
    },
    /// The server could not be reached, or the connection failed.
    #[error("failed to fetch {url}: {message}")]
    Transport {
        /// The requested URL, before redirects and without secrets.
        url: String,
        /// The innermost error.
        message: String,
        /// What is known of the cause.
        cause: TransportCause,
    },
    /// The server answered with an error.
    #[error("failed to fetch {url}: the server answers {status}{}", asked_wait(*.retry_after))]
    Status {
        /// The requested URL, before redirects and without secrets.
        url: String,
        /// The server's status.
        status: StatusCode,
        /// The wait that the server asks for before the next request.
        retry_after: Option<Duration>,
    },
    /// The location, or the target of a redirect, is at an address that no download may use.
    #[error("failed to fetch {url}: {message}")]
    LinkLocal {
        /// The requested URL, before redirects and without secrets.
        url: String,
        /// The server and its address.
        message: String,
    },
    /// The download exceeded the time limit.
    #[error("failed to fetch {location} within {FETCH_LIMIT:?}")]
    TooSlow {
        /// The location without secrets.
        location: String,
    },
    /// The artifact exceeds the size limit.
    #[error("failed to fetch {url}: the artifact is larger than {MAX_ARTIFACT} bytes")]
    TooLarge {
        /// The requested URL, before redirects and without secrets.
        url: String,
    },
    /// The artifact or binary has another digest than requested.
    #[error("{what} has SHA-256 {found} instead of {expected}")]
    Digest {
        /// The artifact's URL, or a name for the binary.
        what: String,
        /// The computed digest.
        found: Sha256Digest,
        /// The requested digest.
        expected: Sha256Digest,
    },
    /// The binary is another one than the first node of the cluster got from the same location.
    #[error(
        "the binary has SHA-256 {found}, and another node got the binary with SHA-256 {first} from the same location"
    )]
    FirstBinary {
        /// The computed digest.
        found: Sha256Digest,
        /// The digest on the first node.
        first: Sha256Digest,
    },
    /// The artifact contains no usable binary.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// A file in the hand-off directory can't be read or written.
    #[error("failed to access {path}: {source}")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The extra certificate authorities can't be loaded.
    #[error("failed to load certificates from {path}: {message}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The HTTP client can't be created.
    #[error("failed to create the HTTP client: {message}")]
    Client {
        /// The cause.
        message: String,
    },
    /// The hand-off directory contains no result or no binary for a Shim.
    #[error("`farrier fetch` left no binary for this shim")]
    Missing,
    /// `fetch` reported a failure.
    #[error("{0}")]
    Reported(Problem),
    /// `fetch` reported that the artifact is for another CPU.
    #[error("{0}")]
    ReportedCpu(Problem),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Location { .. } => Cow::Borrowed("write an https://, http:// or file:/// URL"),
            Self::Transport { cause, .. } => Cow::Borrowed(cause.help()),
            Self::LinkLocal { .. } => Cow::Borrowed(
                "use another location, or allow such addresses with --allow-link-local (chart: job.allowLinkLocal)",
            ),
            Self::Status {
                status,
                retry_after,
                ..
            } => Cow::Borrowed(status_help(*status, *retry_after)),
            Self::TooSlow { .. } => {
                Cow::Borrowed("check the node's bandwidth to that server, or use a mirror")
            }
            Self::TooLarge { .. } => Cow::Borrowed(unpack::CHECK_LOCATION),
            Self::Digest { .. } => {
                Cow::Borrowed("correct the digest, or find out why the file changed")
            }
            Self::FirstBinary { .. } => Cow::Borrowed(
                "find out which binary is the right one, and specify its SHA-256 as binarySha256 in the Shim (spec.fetchStrategy.platforms)",
            ),
            Self::Unpack(error) => return error.help(),
            Self::Directory { path, source } => match hint_for_writing(source) {
                Some(hint) => {
                    let directory = path.parent().unwrap_or(path).display();
                    Cow::Owned(format!("{hint} ({directory})"))
                }
                None => Cow::Borrowed("check that the path exists and that farrier may access it"),
            },
            Self::CaFile { .. } => {
                Cow::Borrowed("name a PEM file, which contains `BEGIN CERTIFICATE`")
            }
            Self::Missing => {
                Cow::Borrowed("check the log of `farrier fetch` (in a Job, the container fetch)")
            }
            Self::Client { .. } => return None,
            Self::Reported(problem) | Self::ReportedCpu(problem) => {
                Cow::Borrowed(problem.help.as_deref()?)
            }
        })
    }

    /// Whether the artifact has a program for another CPU than the node's, so that the same artifact never runs on this node.
    #[must_use]
    pub fn is_for_another_cpu(&self) -> bool {
        matches!(
            self,
            Self::Unpack(unpack::Error::WrongCpu { .. }) | Self::ReportedCpu(_)
        )
    }
}

/// The end of the message of [`Error::Status`].
fn asked_wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(" and asks for a wait of {} s", wait.as_secs())
    })
}

/// The cause of an [`Error::Transport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportCause {
    /// Another attempt may succeed.
    Temporary,
    /// The error would occur again.
    Lasting,
    /// No known authority has issued the certificate of the server.
    UnknownIssuer,
    /// The server presents a certificate that may only issue others (RFC 5280, section 4.2.1.9).
    IssuerItself,
    /// What answers is no TLS.
    NoTls,
    /// The proxy requires other credentials (RFC 9110, section 15.5.8).
    ProxyCredentials,
}

impl TransportCause {
    fn help(self) -> &'static str {
        match self {
            Self::Temporary | Self::Lasting => {
                "check the location, and check that pods of this node can reach its server"
            }
            Self::UnknownIssuer => {
                "name a PEM file with the certificate authority of the server or proxy with --ca-file or FARRIER_CA_FILE (chart: extraCA)"
            }
            Self::IssuerItself => {
                "give the server a certificate of its own that the authority has issued (basicConstraints CA:FALSE), and name the authority's with --ca-file or FARRIER_CA_FILE (chart: extraCA)"
            }
            Self::NoTls => {
                "check the port of the location, or begin the location with http:// if the server has no TLS"
            }
            Self::ProxyCredentials => PROXY_CREDENTIALS,
        }
    }
}

const PROXY_CREDENTIALS: &str =
    "correct the credentials of the proxy (HTTP_PROXY or HTTPS_PROXY; chart: job.proxy)";

/// Whether the same request may succeed later (RFC 9110, section 15; RFC 6585, section 4; RFC 8470, section 5.2). A server that limits requests
/// may answer 403 with a wait, as GitHub does.
pub(crate) fn is_temporary(status: StatusCode, retry_after: Option<Duration>) -> bool {
    let never = [
        StatusCode::NOT_IMPLEMENTED,
        StatusCode::HTTP_VERSION_NOT_SUPPORTED,
    ];
    let later = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    later.contains(&status)
        || status == StatusCode::FORBIDDEN && retry_after.is_some()
        || status.is_server_error() && !never.contains(&status)
}

/// How an operator corrects the cause of a status (RFC 9110, section 15).
fn status_help(status: StatusCode, retry_after: Option<Duration>) -> &'static str {
    match status {
        StatusCode::FORBIDDEN if is_temporary(status, retry_after) => WAIT,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "use a location that needs no credentials, or correct the credentials in the location (a signature may have expired)"
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => PROXY_CREDENTIALS,
        StatusCode::SERVICE_UNAVAILABLE => WAIT,
        _ if status.is_server_error() => {
            "retry later, or use a mirror: the fault is in the server, and not in the location"
        }
        _ if is_temporary(status, retry_after) => WAIT,
        _ => "correct the location",
    }
}

/// The help where the server will answer later.
const WAIT: &str = "wait and retry (the controller retries by itself), or use a mirror";

pub(crate) fn directory_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Directory {
        path: path.to_owned(),
        source,
    }
}

/// Compares the digest of `what` with the requested one; without a requested digest, any digest is valid.
///
/// # Errors
/// [`Error::Digest`] when they differ.
pub fn check_digest(
    what: &str,
    found: Sha256Digest,
    expected: Option<Sha256Digest>,
) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != found => Err(Error::Digest {
            what: what.to_owned(),
            found,
            expected,
        }),
        _ => Ok(()),
    }
}

/// Compares the digest of the binary `what` of `shim` with the digests that the request has for it.
///
/// # Errors
/// [`Error::Digest`] when it is not the binary that the Shim specifies, and [`Error::FirstBinary`] when another node got another one.
pub fn check_binary(what: &str, found: Sha256Digest, shim: &ShimRequest) -> Result<(), Error> {
    check_digest(what, found, shim.binary_sha256)?;
    match shim.first_binary_sha256 {
        Some(first) if first != found => Err(Error::FirstBinary { found, first }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::full(Errno::ENOSPC, "free some space on the file system (/out)")]
    #[case::over_quota(Errno::EDQUOT, "free some space on the file system (/out)")]
    #[case::read_only(Errno::EROFS, "remount the file system read-write (/out)")]
    #[case::missing(Errno::ENOENT, "check that the path exists")]
    #[case::denied(Errno::EACCES, "check that the path exists")]
    fn the_help_fits_the_fault_of_the_directory(#[case] errno: Errno, #[case] expected: &str) {
        let error = directory_error(Path::new("/out/a.bin"))(errno.into());
        let help = error.help().unwrap();
        assert!(help.starts_with(expected), "{help}");
    }

    #[rstest]
    #[case::full(Errno::ENOSPC, "free some space")]
    #[case::read_only(Errno::EROFS, "remount the file system")]
    #[case::of_the_disk(Errno::EIO, "check that the disk is healthy")]
    fn the_help_fits_the_fault_of_the_written_binary(#[case] errno: Errno, #[case] expected: &str) {
        let source = errno.into();
        let error = Error::Unpack(unpack::Error::Write { source });
        let help = error.help().unwrap();
        assert!(help.starts_with(expected), "{help}");
    }

    #[test]
    fn a_refusal_with_a_wait_is_temporary() {
        let retry_after = Some(Duration::from_secs(2));
        assert!(is_temporary(StatusCode::FORBIDDEN, retry_after));
        assert!(!is_temporary(StatusCode::UNAUTHORIZED, retry_after));
        assert_eq!(status_help(StatusCode::FORBIDDEN, retry_after), WAIT);
    }

    #[rstest]
    #[case(401, false, "credentials in the location")]
    #[case(403, false, "credentials in the location")]
    #[case(404, false, "correct the location")]
    #[case(407, false, "credentials of the proxy")]
    #[case(408, true, "wait and retry")]
    #[case(410, false, "correct the location")]
    #[case(429, true, "wait and retry")]
    #[case(500, true, "the fault is in the server")]
    #[case(501, false, "the fault is in the server")]
    #[case(502, true, "the fault is in the server")]
    #[case(503, true, "wait and retry")]
    #[case(504, true, "the fault is in the server")]
    #[case(304, false, "correct the location")]
    fn the_help_fits_the_status(
        #[case] status: u16,
        #[case] temporary: bool,
        #[case] expected: &str,
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(is_temporary(status, None), temporary);
        let error = Error::Status {
            url: "https://example.org/a".to_owned(),
            status,
            retry_after: None,
        };
        let help = error.help().unwrap();
        assert!(help.contains(expected), "{help}");
    }
}
