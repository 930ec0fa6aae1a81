//! Fetches artifacts over HTTP(S) into the hand-off directory, and verifies and unpacks them; configures the HTTP client. Needs no
//! privileges and touches no file of the host. `file://` locations are read elsewhere, inside the host's root.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client, Url};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::warn;

pub use super::error::Error;
use super::error::{
    FETCH_LIMIT, MAX_ARTIFACT, TransportCause, check_binary, check_digest, directory_error,
    is_temporary,
};
use super::handoff_dir;
use super::link_local::{CheckedResolver, LinkLocal, check_url};
use super::progress::{Download, Progress};
use super::unpack::{self, Wanted};
use crate::handoff::{
    FetchResult, Problem, Sha256Digest, ShimRequest, path_on_host, shown_location,
};
use crate::installer::host::cpu::Cpu;

/// Concurrent downloads. On most nodes this is enough for all shims, so that a slow server delays no other download.
const MAX_CONCURRENT: usize = 8;
/// Delays before the second and the third attempt, unless the server asks for longer ones. Further attempts are left to the controller's
/// backoff.
const RETRY_WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Limit for the redirects of one request. GitHub redirects once, mirrors seldom more than twice.
const MAX_REDIRECTS: usize = 10;
/// Timeout for a connection: long enough for two lost SYNs and their retransmissions.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Timeout between two chunks of a body.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// Size limit in bytes for a file of certificate authorities; Mozilla's has 230 kB.
const MAX_CA_FILE: u64 = 4 << 20;

/// Options of a fetch.
#[derive(Debug, Clone, Copy, Default)]
pub struct FetchOptions<'a> {
    /// A PEM file of certificate authorities that are trusted in addition to Mozilla's.
    pub ca_file: Option<&'a Path>,
    /// Download also from link-local addresses and from metadata services of clouds.
    pub allow_link_local: bool,
    /// The CPU of the host; `None` for that of this process.
    pub cpu: Option<Cpu>,
}

/// Fetches the artifact of each shim, and writes the binary and a [`FetchResult`] to `out`. A binary that the request expects on the node
/// is not fetched, nor is one of a shim that is to be kept: these shims have no result.
///
/// # Errors
/// Only when `out` or the extra certificate authorities can't be used. The failure of a single shim is in its result.
pub async fn fetch(
    shims: &[ShimRequest],
    out: &Path,
    options: FetchOptions<'_>,
) -> Result<Vec<FetchResult>, Error> {
    std::fs::create_dir_all(out).map_err(directory_error(out))?;
    let downloader = Downloader {
        client: client(options)?,
        end: Instant::now() + FETCH_LIMIT,
        progress: Progress::default(),
    };
    let remote = shims
        .iter()
        .filter(|shim| !shim.keep && path_on_host(&shim.location).is_none());
    let mut fetched = futures::stream::iter(remote)
        .map(async |shim| {
            if shim.present.is_some() {
                return (shim, None);
            }
            (shim, Some(fetch_one(&downloader, options, shim, out).await))
        })
        .buffered(MAX_CONCURRENT);
    let collected = async {
        let mut results = Vec::new();
        while let Some((shim, fetched)) = fetched.next().await {
            let present = fetched.is_none();
            let (binary_sha256, error) = match fetched.transpose() {
                Ok(sha256) => (sha256, None),
                Err(error) => (None, Some(error)),
            };
            let for_another_cpu = error.as_ref().is_some_and(Error::is_for_another_cpu);
            let problem = error.map(|error| Problem::new(&error, error.help()).printable());
            let result = FetchResult {
                shim: shim.name.clone(),
                binary_sha256,
                reason: problem.as_ref().map(|problem| problem.message.clone()),
                remedy: problem.and_then(|problem| problem.help),
                present,
                for_another_cpu,
            };
            handoff_dir::write_result(&result, out)?;
            results.push(result);
        }
        Ok(results)
    };
    downloader.progress.tell_during(collected).await
}

/// What the downloads of a fetch share.
struct Downloader {
    client: Client,
    /// The end of the last download.
    end: Instant,
    progress: Progress,
}

/// Fetches one artifact. The time of the download is limited; verifying and unpacking are bounded by the size of the artifact.
async fn fetch_one(
    downloader: &Downloader,
    options: FetchOptions<'_>,
    shim: &ShimRequest,
    out: &Path,
) -> Result<Sha256Digest, Error> {
    // A URL is parsed but never decoded: `%2F` in a release's tag is sent to the server unchanged.
    let url = Url::parse(&shim.location)
        .ok()
        .filter(|url| matches!(url.scheme(), "https" | "http"))
        .ok_or_else(|| Error::Location {
            location: shown_location(&shim.location),
        })?;
    if url.scheme() == "http" && shim.sha256.is_none() && shim.binary_sha256.is_none() {
        warn!(
            shim = shim.name,
            "fetching over http without a SHA-256: an attacker on the network can replace the binary"
        );
    }
    if !options.allow_link_local
        && let Err(refused) = check_url(&url)
    {
        return Err(Error::LinkLocal {
            url: shown_location(url.as_str()),
            message: refused.to_string(),
        });
    }
    let path = handoff_dir::artifact_path(shim, out);
    let binary = out.join(format!("{}.bin", shim.name));
    let download = downloader.download(&shim.name, &url, &path);
    let downloaded = tokio::time::timeout_at(downloader.end, download).await;
    let too_slow = |_| Error::TooSlow {
        location: shown_location(&shim.location),
    };
    let result = match downloaded.map_err(too_slow).flatten() {
        Ok((file, digest)) => {
            check_and_unpack(
                shim.clone(),
                shown_location(url.as_str()),
                file,
                digest,
                binary.clone(),
                options.cpu.unwrap_or_else(Cpu::own),
            )
            .await
        }
        Err(error) => Err(error),
    };
    // A file that can't be removed is overwritten by the next attempt.
    let is_needed = |binary: &Sha256Digest| handoff_dir::needs_artifact(shim, *binary);
    if !result.as_ref().is_ok_and(is_needed) {
        let _ = std::fs::remove_file(&path);
    }
    if result.is_err() {
        let _ = std::fs::remove_file(&binary);
    }
    result
}

/// Checks the digest of the artifact in `file`, writes its binary to `path`, and returns the SHA-256 of the binary.
async fn check_and_unpack(
    shim: ShimRequest,
    url: String,
    mut file: File,
    digest: Sha256Digest,
    path: PathBuf,
    cpu: Cpu,
) -> Result<Sha256Digest, Error> {
    if shim.sha256.is_some_and(|expected| expected != digest) {
        // The digest of a file that is no artifact is told to nobody: of a short file, it is as good as the content.
        file.rewind().map_err(directory_error(&path))?;
        unpack::check_kind(&mut file)?;
    }
    check_digest(&url, digest, shim.sha256)?;
    let abandoned = Abandoned::default();
    let flag = abandoned.0.clone();
    blocking(path.clone(), move || {
        file.rewind().map_err(directory_error(&path))?;
        let mut target = File::create(&path).map_err(directory_error(&path))?;
        let artifact = UnlessAbandoned { file, flag };
        let wanted = Wanted {
            shim: &shim.name,
            binary: shim.binary.as_deref(),
            cpu,
        };
        let digest = unpack::unpack(artifact, wanted, &mut target);
        let digest = digest.map_err(|error| match error {
            unpack::Error::Write { source } => directory_error(&path)(source),
            error => error.into(),
        })?;
        check_binary("the binary", digest, &shim)?;
        Ok(digest)
    })
    .await
}

/// Runs `work`, which hashes, unpacks or writes to the disk, on a thread for blocking work: the downloads share one thread, which `work`
/// would block. `path` is the file that `work` writes; it is named in the error after a panic.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // The work panicked.
        Err(error) => Err(directory_error(&path)(io::Error::other(error))),
    }
}

/// Sets its flag when it is dropped, which is when the caller no longer waits for the unpacking. A thread can't be cancelled, and without
/// the flag the process would not end before the thread.
#[derive(Default)]
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file whose reads fail once the flag is set.
struct UnlessAbandoned {
    file: File,
    flag: Arc<AtomicBool>,
}

impl io::Read for UnlessAbandoned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.flag.load(Ordering::Relaxed) {
            return Err(io::Error::other("unpacking was cancelled"));
        }
        self.file.read(buffer)
    }
}

impl Downloader {
    /// Downloads with up to three attempts; an error that would occur again ends the attempts. Each attempt starts at the first URL, as the
    /// target of a redirect may have expired.
    async fn download(
        &self,
        shim: &str,
        url: &Url,
        path: &Path,
    ) -> Result<(File, Sha256Digest), Error> {
        let running = self.progress.begin(shim);
        let mut waits = RETRY_WAITS.iter();
        loop {
            let error = match download_once(&self.client, url, path, &running).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let remaining = self.end.saturating_duration_since(Instant::now());
            let Some(wait) = retry_wait(&error, waits.next().copied(), remaining) else {
                return Err(error);
            };
            warn!(shim, %error, ?wait, "failed to download the artifact: retrying");
            tokio::time::sleep(wait).await;
        }
    }
}

/// The wait before the next attempt: `delay`, or the longer wait that the server asks for. `None` if no attempt is left, if the error would
/// occur again, or if the wait would not end within `remaining`.
fn retry_wait(error: &Error, delay: Option<Duration>, remaining: Duration) -> Option<Duration> {
    let (again, asked) = if let Error::Transport { cause, .. } = error {
        (*cause == TransportCause::Temporary, None)
    } else if let Error::Status {
        status,
        retry_after,
        ..
    } = error
    {
        (is_temporary(*status, *retry_after), *retry_after)
    } else {
        return None;
    };
    let wait = delay?.max(asked.unwrap_or_default());
    (again && wait < remaining).then_some(wait)
}

/// The wait that a server asks for: a number of seconds, or a date (RFC 9110, section 10.2.3). A date is compared with the clock of the server
/// if the answer has its time (RFC 9110, section 6.6.1), because the clock of the node may be wrong.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let asked = text(RETRY_AFTER)?.trim();
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = text(DATE).and_then(date).unwrap_or(now);
    // A date in the past asks for no wait.
    Some(date(asked)?.duration_since(now).unwrap_or_default())
}

async fn download_once(
    client: &Client,
    url: &Url,
    path: &Path,
    running: &Download<'_>,
) -> Result<(File, Sha256Digest), Error> {
    let transport = |error: reqwest::Error| match LinkLocal::find(&error) {
        Some(refused) => Error::LinkLocal {
            url: shown_location(url.as_str()),
            message: refused.to_string(),
        },
        None => Error::Transport {
            url: shown_location(url.as_str()),
            cause: transport_cause(&error),
            message: innermost(&error.without_url()),
        },
    };
    let mut response = client.get(url.clone()).send().await.map_err(transport)?;
    let status = response.status();
    if !status.is_success() {
        let asked = retry_after(response.headers(), SystemTime::now());
        return Err(Error::Status {
            url: shown_location(url.as_str()),
            status,
            retry_after: asked.filter(|_| is_temporary(status, asked)),
        });
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(directory_error(path))?;
    running.begin_attempt(response.content_length());
    let mut written = (file, Sha256::new());
    let mut received = 0;
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        received += chunk.len() as u64;
        running.add(chunk.len() as u64);
        if received > MAX_ARTIFACT {
            return Err(Error::TooLarge {
                url: shown_location(url.as_str()),
            });
        }
        let (mut file, mut hasher) = written;
        let path = path.to_owned();
        written = blocking(path.clone(), move || {
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(directory_error(&path))?;
            Ok((file, hasher))
        })
        .await?;
    }
    let (file, hasher) = written;
    Ok((file, hasher.into()))
}

/// The client for downloads, which trusts the built-in certificate authorities and those in the file of `options`.
///
/// # Errors
/// When that file can't be read or contains no certificate.
fn client(options: FetchOptions<'_>) -> Result<Client, Error> {
    let FetchOptions {
        ca_file,
        allow_link_local,
        cpu: _,
    } = options;
    // Fails only if another part of the process has already installed a provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let unusable = |message: String| match ca_file.map(Path::to_owned) {
        Some(path) => Error::CaFile { path, message },
        None => Error::Client { message },
    };
    let mut roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|root| Certificate::from_der(root))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    if let Some(path) = ca_file {
        let mut pem = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_CA_FILE + 1).read_to_end(&mut pem))
            .map_err(directory_error(path))?;
        if pem.len() as u64 > MAX_CA_FILE {
            return Err(unusable(format!(
                "the file is larger than {MAX_CA_FILE} bytes"
            )));
        }
        let more =
            Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
        if more.is_empty() {
            return Err(unusable("the file contains no certificate".to_owned()));
        }
        roots.extend(more);
    }
    Client::builder()
        .dns_resolver(CheckedResolver::new(allow_link_local))
        // The URL before a redirect may contain a signature.
        .referer(false)
        .tls_certs_only(roots)
        .redirect(Policy::custom(move |attempt| {
            redirect(attempt, allow_link_local)
        }))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(IDLE_LIMIT)
        .user_agent(concat!("farrier/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unusable(innermost(&error)))
}

fn redirect(attempt: Attempt<'_>, allow_link_local: bool) -> reqwest::redirect::Action {
    if !allow_link_local && let Err(refused) = check_url(attempt.url()) {
        return attempt.error(refused);
    }
    let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_https && attempt.url().scheme() != "https" {
        attempt.error("the server redirects from https to http")
    } else if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error(format!(
            "the server redirects more than {MAX_REDIRECTS} times"
        ))
    } else {
        attempt.follow()
    }
}

fn transport_cause(error: &reqwest::Error) -> TransportCause {
    if let Some(cause) = causes(error).find_map(|cause| tls_cause(cause.downcast_ref()?)) {
        cause
    } else if innermost(error) == NO_TUNNEL {
        TransportCause::ProxyCredentials
    } else if error.is_redirect() || error.is_builder() {
        TransportCause::Lasting
    } else {
        TransportCause::Temporary
    }
}

fn tls_cause(error: &rustls::Error) -> Option<TransportCause> {
    use rustls::{CertificateError, InvalidMessage};

    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some(TransportCause::UnknownIssuer)
        }
        // `webpki::Error` is in `Other`, as a value of a type that is not public.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            Some(TransportCause::IssuerItself)
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some(TransportCause::NoTls)
        }
        _ => None,
    }
}

/// The error of the HTTP client, of a private type, where a proxy answers CONNECT with status 407.
const NO_TUNNEL: &str = "tunnel error: proxy authorization required";

/// An error and its causes. That in an `io::Error` is not among its sources.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let inner = error.downcast_ref().and_then(io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        }
    })
}

/// The innermost error, which names the cause. The outer ones are "error sending request" and the like.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::seconds("120", None, Some(120))]
    #[case::no_wait("0", None, Some(0))]
    #[case::many_seconds("18446744073709551615", None, Some(u64::MAX))]
    #[case::a_date("Sun, 06 Nov 1994 08:49:37 GMT", None, Some(37))]
    #[case::a_date_of_an_old_form("Sunday, 06-Nov-94 08:49:37 GMT", None, Some(37))]
    #[case::a_date_by_the_clock_of_the_server(
        "Sun, 06 Nov 1994 08:49:37 GMT",
        Some("Sun, 06 Nov 1994 08:48:37 GMT"),
        Some(60)
    )]
    #[case::a_date_in_the_past("Sun, 06 Nov 1994 08:48:00 GMT", None, Some(0))]
    #[case::a_negative_number("-1", None, None)]
    #[case::words("soon", None, None)]
    fn a_server_asks_for_a_wait_in_seconds_or_until_a_date(
        #[case] asked: &str,
        #[case] date: Option<&str>,
        #[case] expected: Option<u64>,
    ) {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        let mut headers = HeaderMap::from_iter([(RETRY_AFTER, asked.parse().unwrap())]);
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        let found = retry_after(&headers, now);
        assert_eq!(found, expected.map(Duration::from_secs));
    }

    #[rstest]
    #[case::without_a_wish(503, None, Some(1))]
    #[case::a_shorter_wait(429, Some(0), Some(1))]
    #[case::a_longer_wait(429, Some(30), Some(30))]
    #[case::a_wait_beyond_the_end(503, Some(100), None)]
    #[case::a_wait_without_end(503, Some(u64::MAX), None)]
    #[case::a_refusal_with_a_wait(403, Some(30), Some(30))]
    #[case::a_refusal_without_a_wait(403, None, None)]
    #[case::no_second_attempt(404, Some(2), None)]
    fn the_wait_of_the_server_is_kept_until_the_end_of_the_fetch(
        #[case] status: u16,
        #[case] asked: Option<u64>,
        #[case] expected: Option<u64>,
    ) {
        let error = Error::Status {
            url: String::new(),
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: asked.map(Duration::from_secs),
        };
        let remaining = Duration::from_secs(100);
        let wait = retry_wait(&error, Some(Duration::from_secs(1)), remaining);
        assert_eq!(wait, expected.map(Duration::from_secs));
        assert_eq!(retry_wait(&error, None, remaining), None);
    }
}
