//! The HTTP client of the downloads: whom it trusts, how it resolves names, how long it waits and which redirects it follows.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client};

use super::error::{Error, directory_error};
use crate::dns::Resolver;

/// GitHub redirects once, mirrors seldom more than twice.
const MAX_REDIRECTS: usize = 10;
/// A connection that isn't there after two lost SYNs and their repetitions is not coming.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Between two pieces of a body.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// A bundle of certificate authorities; Mozilla's has 230 kB.
const MAX_CA_FILE: u64 = 4 << 20;

/// The client for downloads; `ca_file` holds certificate authorities beside the built-in ones.
///
/// # Errors
/// When `ca_file` can't be read or holds no certificates.
pub(crate) fn client(ca_file: Option<&Path>) -> Result<Client, Error> {
    // Another part of the process may have chosen the same one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let unusable = |message: String| Error::CaFile {
        path: ca_file.unwrap_or(Path::new("the built-in list")).to_owned(),
        message,
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
            return Err(unusable(format!("it has more than {MAX_CA_FILE} bytes")));
        }
        let more =
            Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
        if more.is_empty() {
            return Err(unusable("it has none".to_owned()));
        }
        roots.extend(more);
    }
    Client::builder()
        .dns_resolver(Resolver::default())
        .tls_certs_only(roots)
        .redirect(Policy::custom(redirect))
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(IDLE_LIMIT)
        .user_agent(concat!("farrier/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unusable(innermost(&error)))
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let was_https = attempt.previous().iter().any(|url| url.scheme() == "https");
    if was_https && attempt.url().scheme() != "https" {
        attempt.error("the server redirects from https to http")
    } else if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("the server redirects in a circle")
    } else {
        attempt.follow()
    }
}

/// The error that an operator can act on is the last of a chain of "error sending request" and the like.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
