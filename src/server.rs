//! Serves /livez, /readyz and /metrics over plain HTTP. Closures provide the readiness and the metrics.
//!
//! Any pod of the cluster may connect, so a client that is slow, or that opens many connections, must not keep a probe waiting.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Most connections of one listener at a time: a probe and a scraper or two. A further connection takes the place of another one.
const CONNECTIONS: usize = 64;

/// Most connections that wait to be accepted. In a full queue, the kernel drops the SYN of a probe, which is sent again after a second.
const BACKLOG: u32 = 4096;

/// Most bytes of a head, the smallest limit of hyper. A kubelet or a scraper sends a few hundred.
const LONGEST_HEAD: usize = 8192;

/// Time limit for the head of a request. A kubelet or a scraper sends the head at once, and its probe times out after seconds.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// A connection serves one request and is closed after this time, whatever its client still has to read.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);

/// What a listener answers. /livez is always answered.
pub struct Answers {
    /// Whether /readyz succeeds.
    pub ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// The text of /metrics; `None` for a listener of probes alone.
    pub metrics: Option<Box<dyn Fn() -> String + Send + Sync>>,
}

/// A connection that is being served.
struct Connection {
    task: AbortHandle,
    has_head: Arc<AtomicBool>,
}

/// Serves on `address` until the future is dropped. Each call has connections of its own.
///
/// # Errors
/// When the address can't be bound.
pub async fn serve(address: SocketAddr, answers: Answers) -> Result<(), Error> {
    let listener = listen(address).map_err(|source| Error::Bind { address, source })?;
    let answers = Arc::new(answers);
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A lack of descriptors, or a client that has disconnected, does not end the controller.
                tracing::debug!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        make_room(&mut connections);
        let has_head = Arc::new(AtomicBool::new(false));
        let task = tasks.spawn(answer(stream, Arc::clone(&answers), Arc::clone(&has_head)));
        connections.push(Connection { task, has_head });
        // A head that is there already is read before further connections are accepted, which would close this one.
        tokio::task::yield_now().await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(error) => bind(without_ipv6(address, &error).ok_or(error)?),
        bound => bound,
    }
}

/// The address to listen on in place of `address`, if it is every address and this host has no IPv6 (`ipv6.disable=1`).
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let error = Errno::from_io_error(error)?;
    let has_no_ipv6 = matches!(error, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL);
    (address.ip() == Ipv6Addr::UNSPECIFIED && has_no_ipv6)
        .then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // `[::]` takes connections over IPv4, too, whatever `net.ipv6.bindv6only` is.
        set_ipv6_v6only(&socket, false)?;
        socket
    };
    // As `TcpListener::bind` does: a controller that starts again takes the address of the former one.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Closes the oldest connection without a whole head if all places are taken. If all heads are there, the oldest connection is closed, whose
/// client reads slowly.
fn make_room(connections: &mut Vec<Connection>) {
    connections.retain(|connection| !connection.task.is_finished());
    while connections.len() >= CONNECTIONS {
        let mut without_head = connections.iter();
        let oldest = without_head.position(|it| !it.has_head.load(Ordering::Relaxed));
        connections.remove(oldest.unwrap_or(0)).task.abort();
    }
}

/// Answers one request.
async fn answer(stream: TcpStream, answers: Arc<Answers>, has_head: Arc<AtomicBool>) {
    let service = service_fn(|request| {
        has_head.store(true, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(respond(&request, &answers)))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
        tracing::debug!(%error, "connection failed");
    }
}

fn respond(request: &Request<Incoming>, answers: &Answers) -> Response<String> {
    let (status, kind, body) = match (request.uri().path(), &answers.metrics) {
        ("/livez", _) => (StatusCode::OK, "text/plain", "ok".to_owned()),
        ("/readyz", _) if (answers.ready)() => (StatusCode::OK, "text/plain", "ok".to_owned()),
        ("/readyz", _) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain",
            "waiting for the first list of every watch".to_owned(),
        ),
        ("/metrics", Some(metrics)) => (
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
        source: io::Error,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Bind { .. } => {
                Some("choose another address with --listen or --probe-listen".into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[tokio::test]
    async fn every_address_of_ipv6_is_every_address_of_ipv4_too() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let (accepted, connected) = tokio::join!(listener.accept(), client);
        assert!(accepted.is_ok() && connected.is_ok());
    }

    #[rstest]
    #[case::no_ipv6("[::]:8080", Errno::AFNOSUPPORT, Some("0.0.0.0:8080"))]
    #[case::no_address("[::]:8080", Errno::ADDRNOTAVAIL, Some("0.0.0.0:8080"))]
    #[case::in_use("[::]:8080", Errno::ADDRINUSE, None)]
    #[case::one_address("[::1]:8080", Errno::ADDRNOTAVAIL, None)]
    #[case::ipv4("0.0.0.0:8080", Errno::ADDRNOTAVAIL, None)]
    fn a_host_without_ipv6_listens_on_ipv4(
        #[case] address: SocketAddr,
        #[case] error: Errno,
        #[case] expected: Option<&str>,
    ) {
        let expected = expected.map(|address| address.parse().unwrap());
        assert_eq!(without_ipv6(address, &error.into()), expected);
    }
}
