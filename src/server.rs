//! Serves /livez, /readyz and /metrics over plain HTTP. Closures provide the readiness and the metrics.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Most connections at a time: a probe and a scraper or two. Further connections wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// A kubelet's probe times out after seconds; slower clients are cut off.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A connection serves one request and is closed after this time, so that slow clients can't use up [`CONNECTIONS`].
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// Serves on `address` until the future is dropped.
///
/// `ready` answers /readyz, `metrics` gives the text of /metrics.
///
/// # Errors
/// When the address can't be bound.
pub async fn serve<R, M>(address: SocketAddr, ready: R, metrics: M) -> Result<(), Error>
where
    R: Fn() -> bool + Send + Sync + 'static,
    M: Fn() -> String + Send + Sync + 'static,
{
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::Bind { address, source })?;
    let answers = Arc::new((ready, metrics));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed, so there is always a slot to wait for.
        let slot = Arc::clone(&slots).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A lack of descriptors, or a client that has disconnected, does not end the controller.
                tracing::debug!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(|request| {
                let answers = Arc::clone(&answers);
                async move { Ok::<_, Infallible>(respond(&request, &answers.0, &answers.1)) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .header_read_timeout(REQUEST_DEADLINE)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
                tracing::debug!(%error, "connection failed");
            }
        });
    }
}

fn respond(
    request: &Request<Incoming>,
    ready: &impl Fn() -> bool,
    metrics: &impl Fn() -> String,
) -> Response<String> {
    let (status, kind, body) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "text/plain", "ok".to_owned()),
        "/readyz" if ready() => (StatusCode::OK, "text/plain", "ok".to_owned()),
        "/readyz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain",
            "waiting for the first list of every watch".to_owned(),
        ),
        "/metrics" => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics(),
        ),
        _ => (StatusCode::NOT_FOUND, "text/plain", String::new()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(kind),
    );
    response
}

/// Why the server can't start. [`Error::help`] says how to correct the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use or does not belong to this host.
    #[error("failed to listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The error of the kernel.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Bind { .. } => Some("choose another address with --listen".into()),
        }
    }
}
