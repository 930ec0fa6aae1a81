//! The server that nodes fetch from: HTTP and HTTPS on the standard library's sockets, by the table of routes in its directory.
//! It serves a cluster of this machine for the length of a test; it is no server for anything else.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Answer, HTTP_PORT, HTTPS_PORT, Routes, SIGNED, STORAGE_PORT};

/// Names of the server's files in its directory.
pub(super) const ROUTES: &str = "routes.json";
pub(super) const CERTIFICATE: &str = "server.pem";
pub(super) const KEY: &str = "server.key";
/// Exists once all ports are open.
pub(super) const READY: &str = "ready";

/// The longest request that is read: a request line and the headers of an HTTP client come to a tenth of it.
const REQUEST_LIMIT: u64 = 16 * 1024;

/// Of a client that neither sends nor takes anything.
const IDLE: Duration = Duration::from_secs(30);

/// How long [`Answer::Silence`] keeps a connection: longer than any client's patience.
const SILENCE: Duration = Duration::from_mins(15);

/// Answers on `address` until the process is killed. One line per request goes to standard error.
///
/// # Errors
/// When the directory is not as `prepare` leaves it, or a port is taken.
pub fn serve(directory: &Path, address: IpAddr) -> Result<()> {
    let routes: Routes = serde_json::from_slice(
        &fs::read(directory.join(ROUTES)).with_context(|| format!("failed to read {ROUTES}"))?,
    )?;
    let tls = Arc::new(
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(directory.join(CERTIFICATE))?],
                PrivateKeyDer::from_pem_file(directory.join(KEY))?,
            )?,
    );
    let site = Arc::new((directory.to_owned(), routes));
    let mut listeners = Vec::new();
    for (port, tls) in [
        (HTTP_PORT, None),
        (HTTPS_PORT, Some(&tls)),
        (STORAGE_PORT, Some(&tls)),
    ] {
        let listener = TcpListener::bind((address, port))
            .with_context(|| format!("failed to listen on {address}:{port}"))?;
        let (site, tls) = (Arc::clone(&site), tls.cloned());
        listeners.push(thread::spawn(move || {
            listen(&listener, &site, tls.as_ref());
        }));
    }
    fs::write(directory.join(READY), "")?;
    for listener in listeners {
        // Listeners don't end.
        let _ = listener.join();
    }
    Ok(())
}

type Site = (std::path::PathBuf, Routes);

fn listen(listener: &TcpListener, site: &Arc<Site>, tls: Option<&Arc<ServerConfig>>) {
    for stream in listener.incoming() {
        let (site, tls) = (Arc::clone(site), tls.cloned());
        thread::spawn(move || {
            if let Err(error) = stream
                .map_err(Into::into)
                .and_then(|s| converse(s, &site, tls))
            {
                eprintln!("{error:#}");
            }
        });
    }
}

fn converse(stream: TcpStream, site: &Site, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    match tls {
        None => answer(stream, site),
        Some(tls) => {
            let mut stream = StreamOwned::new(ServerConnection::new(tls)?, stream);
            answer(&mut stream, site)?;
            stream.conn.send_close_notify();
            Ok(stream.flush()?)
        }
    }
}

/// Reads one request and answers it; every connection carries one.
fn answer(mut stream: impl Read + Write, (directory, routes): &Site) -> Result<()> {
    let target = request(&mut stream)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    // What goes out: a status, where else to look, a file and the share of it that is sent.
    let (status, location, body) = match routes.get(path) {
        None => (404, None, None),
        Some(Answer::Status(status)) => (*status, None, None),
        Some(Answer::Redirect(location)) => (302, Some(location), None),
        Some(Answer::SignedFile(_)) if query != SIGNED => (403, None, None),
        Some(Answer::File(file) | Answer::SignedFile(file)) => (200, None, Some((file, 1))),
        Some(Answer::HalfFile(file)) => (200, None, Some((file, 2))),
        Some(Answer::Silence) => {
            eprintln!("{path} silence");
            thread::sleep(SILENCE);
            return Ok(());
        }
    };
    eprintln!("{path} {status}");
    write!(stream, "HTTP/1.1 {status} \r\nConnection: close\r\n")?;
    if let Some(location) = location {
        write!(stream, "Location: {location}\r\n")?;
    }
    let Some((file, share)) = body else {
        write!(stream, "Content-Length: 0\r\n\r\n")?;
        return Ok(stream.flush()?);
    };
    let file = File::open(directory.join(file))?;
    let length = file.metadata()?.len();
    write!(
        stream,
        "Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )?;
    io::copy(&mut file.take(length / share), &mut stream)?;
    Ok(stream.flush()?)
}

/// The target of the request that `stream` starts with; its headers are read and dropped.
fn request(stream: &mut impl Read) -> Result<String> {
    let mut lines = BufReader::new(stream.take(REQUEST_LIMIT)).lines();
    let first = lines.next().context("the client said nothing")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let target = first.split(' ').nth(1);
    Ok(target
        .with_context(|| format!("{first:?} is no HTTP"))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that has said its request and keeps what it is told.
    struct Client(io::Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Client {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Client {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_server_answers_each_path_as_the_table_says() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "1234").unwrap();
        let file = || "file".to_owned();
        let routes = Routes::from([
            ("/file".to_owned(), Answer::File(file())),
            ("/signed".to_owned(), Answer::SignedFile(file())),
            ("/half".to_owned(), Answer::HalfFile(file())),
            (
                "/away".to_owned(),
                Answer::Redirect("https://b/?c".to_owned()),
            ),
            ("/broken".to_owned(), Answer::Status(503)),
        ]);
        let site = (directory.path().to_owned(), routes);
        for (target, status, header, body) in [
            ("/file", "200", "Content-Length: 4", "1234"),
            ("/file?any=thing", "200", "Content-Length: 4", "1234"),
            ("/signed", "403", "Content-Length: 0", ""),
            (
                &format!("/signed?{SIGNED}"),
                "200",
                "Content-Length: 4",
                "1234",
            ),
            ("/half", "200", "Content-Length: 4", "12"),
            ("/away", "302", "Location: https://b/?c", ""),
            ("/broken", "503", "Content-Length: 0", ""),
            ("/../etc/passwd", "404", "Content-Length: 0", ""),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            let mut client = Client(io::Cursor::new(request.into_bytes()), Vec::new());
            answer(&mut client, &site).unwrap();
            let text = String::from_utf8(client.1).unwrap();
            let (head, told) = text.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{target}: {head}"
            );
            assert!(head.contains(header), "{target}: {head}");
            assert_eq!(told, body, "{target}");
        }
    }
}
