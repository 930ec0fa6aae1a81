//! Fetching from a real server on the loopback interface: verification, refusals, and the files in the hand-off directory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use super::support::{self, Host, for_another_cpu, program};
use farrier::handoff::{FetchResult, Outcome, Owner, ProvisionRequest, Sha256Digest, ShimRequest};
use farrier::installer::artifact::fetch::{FetchOptions, fetch};
use farrier::installer::artifact::handoff_dir::read_binary;
use farrier::installer::host::cpu::Cpu;
use flate2::Compression;
use flate2::write::GzEncoder;
use rstest::rstest;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The answers by path. Other paths are answered with 404.
pub type Routes = BTreeMap<&'static str, Vec<u8>>;

fn archive(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(program(0).len() as u64);
    header.set_mode(0o755);
    builder
        .append_data(&mut header, name, program(0).as_slice())
        .unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

/// Says that the connection is closed, as [`answer`] does: a client that reuses it would get no answer.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn redirect(to: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {to}\r\n\r\n"
    )
    .into_bytes()
}

/// Answers one request on a connection and closes it.
pub fn answer(mut stream: impl Read + Write, routes: &Routes) {
    let mut request = String::new();
    let mut reader = BufReader::new(&mut stream);
    if reader.read_line(&mut request).is_err() {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let not_found =
        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec();
    let _ = stream.write_all(routes.get(path).unwrap_or(&not_found));
    let _ = stream.flush();
}

fn serve(routes: Routes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &routes);
        }
    });
    address
}

/// A server with a certificate of its own authority, which it writes to `ca_file`.
fn serve_tls(routes: Routes, ca_file: &Path) -> SocketAddr {
    serve_as(rcgen::IsCa::NoCa, routes, ca_file)
}

/// As [`serve_tls`]; `is_ca` says whether the certificate may issue others.
fn serve_as(is_ca: rcgen::IsCa, routes: Routes, ca_file: &Path) -> SocketAddr {
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.is_ca = is_ca;
    let key = rcgen::KeyPair::generate().unwrap();
    let own = parameters.self_signed(&key).unwrap();
    std::fs::write(ca_file, own.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            answer(&mut stream, &routes);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    address
}

pub fn shim(location: String) -> ShimRequest {
    ShimRequest {
        location,
        ..support::shim("wasmtime")
    }
}

fn options(ca_file: Option<&Path>) -> FetchOptions<'_> {
    FetchOptions {
        ca_file,
        allow_link_local: false,
        cpu: None,
    }
}

async fn fetch_one(shim: &ShimRequest, out: &Path, ca_file: Option<&Path>) -> FetchResult {
    let mut results = fetch(std::slice::from_ref(shim), out, options(ca_file))
        .await
        .unwrap();
    assert_eq!(results.len(), 1);
    results.remove(0)
}

#[tokio::test]
async fn a_slow_server_delays_no_other_shim() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Routes::from([("/a", ok(&program(1))), ("/b", ok(&program(2)))]);
    std::thread::spawn(move || {
        // The first request is answered after the second has arrived.
        let (first, second) = (listener.accept().unwrap(), listener.accept().unwrap());
        answer(second.0, &routes);
        answer(first.0, &routes);
    });
    let out = tempfile::tempdir().unwrap();
    let shims = ["a", "b"].map(|name| {
        let mut shim = shim(format!("http://{address}/{name}"));
        name.clone_into(&mut shim.name);
        shim
    });
    let results = fetch(&shims, out.path(), options(None)).await.unwrap();
    assert!(
        results.iter().all(|result| result.reason.is_none()),
        "{results:?}"
    );
}

#[tokio::test]
async fn unpacking_a_large_archive_delays_no_other_download() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let out = tempfile::tempdir().unwrap();
    // Unpacking writes to a FIFO, which holds 64 KiB (pipe(7)) until a process reads.
    let fifo = out.path().join("large.bin");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut large = program(1);
    large.resize(1 << 20, 0);
    let routes = Routes::from([
        ("/large", ok(&large)),
        ("/small", redirect("/moved")),
        ("/moved", ok(&program(2))),
    ]);
    let (asked_again, heard) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let mut both = [(); 2].map(|()| listener.accept().unwrap().0);
        // The connections come in any order.
        let mut head = [0; 16];
        let length = both[0].peek(&mut head).unwrap();
        if head[..length].starts_with(b"GET /small") {
            both.reverse();
        }
        let [large, small] = both;
        answer(large, &routes);
        // Opened once unpacking has begun (fifo(7)).
        let mut unpacked = std::fs::File::open(fifo).unwrap();
        answer(small, &routes);
        let third = std::thread::spawn(move || {
            let third = listener.accept().unwrap();
            asked_again.send(()).unwrap();
            answer(third.0, &routes);
        });
        // If the download waits for the unpacking, no byte comes before the FIFO is read: the timeout fails the test.
        let in_time = heard.recv_timeout(std::time::Duration::from_secs(10));
        std::io::copy(&mut unpacked, &mut std::io::sink()).unwrap();
        third.join().unwrap();
        in_time
    });
    let shims = ["large", "small"].map(|name| {
        let mut shim = shim(format!("http://{address}/{name}"));
        name.clone_into(&mut shim.name);
        shim
    });
    let results = fetch(&shims, out.path(), options(None)).await.unwrap();
    assert!(
        results.iter().all(|result| result.reason.is_none()),
        "{results:?}"
    );
    let in_time = server.join().unwrap();
    assert_eq!(in_time, Ok(()), "the small one waited for the large one");
}

#[tokio::test]
async fn an_artifact_is_verified_and_unpacked_into_the_hand_off_directory() {
    let archive = archive("containerd-shim-wasmtime-v1");
    // The tag of a release has a slash, which must reach the server as it was written.
    let address = serve(Routes::from([
        ("/shim%2Fv1/a.tar.gz", redirect("/other?x=1")),
        ("/other?x=1", ok(&archive)),
    ]));
    let out = tempfile::tempdir().unwrap();
    let mut shim = shim(format!("http://{address}/shim%2Fv1/a.tar.gz"));
    shim.sha256 = Some(Sha256Digest::of(&archive));
    shim.binary_sha256 = Some(Sha256Digest::of(&program(0)));
    let result = fetch_one(&shim, out.path(), None).await;
    assert_eq!(result.reason, None);
    let (path, digest) = read_binary(&shim, out.path(), Cpu::own()).unwrap();
    assert_eq!(digest, Sha256Digest::of(&program(0)));
    assert_eq!(std::fs::read(path).unwrap(), program(0));
    assert!(!out.path().join("wasmtime.artifact").exists());
}

#[test]
fn a_fetch_without_archives_runs_on_one_thread() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let location = format!("http://{}/a", listener.local_addr().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let (request, out) = (
        directory.path().join("request"),
        directory.path().join("out"),
    );
    let shims = vec![shim(location)];
    let wanted = ProvisionRequest::new(Owner::Cluster, String::new(), shims, vec![]);
    std::fs::write(&request, wanted.to_json()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"));
    command.arg("fetch").arg("--request").arg(&request);
    command.arg("--out").arg(&out);
    for proxy in ["HTTP_PROXY", "http_proxy"] {
        command.env_remove(proxy);
    }
    let mut fetching = command.spawn().unwrap();
    let asking = listener.accept().unwrap();
    let threads = std::fs::read_dir(format!("/proc/{}/task", fetching.id())).unwrap();
    assert_eq!(threads.count(), 1);
    answer(asking.0, &Routes::from([("/a", ok(&program(1)))]));
    assert!(fetching.wait().unwrap().success());
}

/// Runs `farrier fetch` for the shim, with a proxy in this variable of its environment.
fn fetch_by_proxy(shim: &ShimRequest, variable: &str, proxy: SocketAddr, out: &Path) {
    let request = out.with_extension("request");
    let wanted = ProvisionRequest::new(Owner::Cluster, String::new(), vec![shim.clone()], vec![]);
    std::fs::write(&request, wanted.to_json()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_farrier"));
    command.arg("fetch").arg("--request").arg(&request);
    command.arg("--out").arg(out);
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    command.env(variable, format!("http://{proxy}"));
    let fetched = command.output().unwrap();
    assert!(fetched.status.success(), "{fetched:?}");
}

#[test]
fn a_fetch_uses_the_proxy_of_the_environment() {
    // Only the proxy can resolve this name. A request to a proxy has the whole URL.
    let location = "http://release.invalid/a";
    let proxy = serve(Routes::from([(location, ok(&program(1)))]));
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut shim = shim(location.to_owned());
    shim.binary_sha256 = Some(Sha256Digest::of(&program(1)));
    fetch_by_proxy(&shim, "HTTP_PROXY", proxy, &out);
    let (_, digest) = read_binary(&shim, &out, Cpu::own()).unwrap();
    assert_eq!(digest, Sha256Digest::of(&program(1)));
}

#[test]
fn a_proxy_that_requires_credentials_is_named_in_the_help() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
    let routes = Routes::from([("release.invalid:443", refusal.to_vec())]);
    let asked = std::thread::spawn(move || {
        let first = listener.accept().unwrap().0;
        answer(first, &routes);
        listener.set_nonblocking(true).unwrap();
        listener
    });
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let shim = shim("https://release.invalid/a".to_owned());
    fetch_by_proxy(&shim, "HTTPS_PROXY", proxy, &out);
    let error = read_binary(&shim, &out, Cpu::own()).unwrap_err();
    let help = error.help().unwrap();
    assert!(help.contains("credentials of the proxy"), "{error}: {help}");
    // The first attempt was the last.
    assert!(asked.join().unwrap().accept().is_err());
}

#[tokio::test]
async fn a_password_in_a_location_is_in_no_error() {
    let address = serve(Routes::from([
        ("/there?token=hunter2", ok(&archive("README"))),
        (
            "/away?token=hunter2",
            redirect("http://user:hunter2@127.0.0.1:9/x?token=hunter2"),
        ),
    ]));
    let out = tempfile::tempdir().unwrap();
    for location in [
        format!("http://user:hunter2@{address}/absent?token=hunter2#hunter2"),
        format!("http://user:hunter2@{address}/there?token=hunter2"),
        format!("http://user:hunter2@{address}/away?token=hunter2"),
        "ftp://user:hunter2@example.org/?token=hunter2".to_owned(),
        "https://user:hunter2#@example.org/".to_owned(),
        "https://user:hunter2?@example.org/".to_owned(),
        "no url?token=hunter2".to_owned(),
        "file://hunter2@srv/shim".to_owned(),
    ] {
        let mut shim = shim(location.clone());
        shim.sha256 = Some(Sha256Digest::from_bytes([0; 32]));
        let result = fetch_one(&shim, out.path(), None).await;
        let reason = result.reason.unwrap();
        assert!(!reason.contains("hunter2"), "{location}: {reason}");
    }
}

#[rstest]
#[case::wrong_digest("/a.tar.gz", Some("0"), "has SHA-256")]
#[case::not_found("/absent", None, "the server answers 404")]
#[case::no_binary(
    "/b.tar.gz",
    None,
    "the archive contains no containerd-shim-wasmtime (it contains README)"
)]
#[case::circle("/circle", None, "redirects more than 10 times")]
#[tokio::test]
async fn a_failed_fetch_has_a_reason_and_leaves_no_binary(
    #[case] path: &str,
    #[case] digest: Option<&str>,
    #[case] reason: &str,
) {
    let address = serve(Routes::from([
        ("/a.tar.gz", ok(&archive("containerd-shim-wasmtime-v1"))),
        ("/b.tar.gz", ok(&archive("README"))),
        ("/circle", redirect("/circle")),
    ]));
    let out = tempfile::tempdir().unwrap();
    let mut shim = shim(format!("http://{address}{path}"));
    shim.sha256 = digest.map(|digit| digit.repeat(64).parse().unwrap());
    let result = fetch_one(&shim, out.path(), None).await;
    let said = result.reason.unwrap();
    assert!(said.contains(reason), "{said}");
    assert!(!said.contains('\n'));
    assert_eq!(result.binary_sha256, None);
    assert!(!out.path().join("wasmtime.bin").exists());
    let handed = read_binary(&shim, out.path(), Cpu::own()).unwrap_err();
    assert_eq!(handed.to_string(), said);
}

#[rstest]
#[case::unauthorized("401 Unauthorized", "credentials")]
#[case::forbidden("403 Forbidden", "wait and retry")]
#[case::busy("429 Too Many Requests", "wait and retry")]
#[case::fault("500 Internal Server Error", "the fault is in the server")]
#[case::in_maintenance("503 Service Unavailable", "wait and retry")]
#[tokio::test]
async fn the_remedy_fits_the_status_and_no_wait_beyond_the_end_begins(
    #[case] status: &str,
    #[case] remedy: &str,
) {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 86400\r\nContent-Length: 0\r\n\r\n"
    );
    let address = serve(Routes::from([("/a", head.into_bytes())]));
    let out = tempfile::tempdir().unwrap();
    let shim = shim(format!("http://{address}/a"));
    let result = fetch_one(&shim, out.path(), None).await;
    let asked = match status.split_at(3).0 {
        "401" => "",
        _ => " and asks for a wait of 86400 s",
    };
    assert_eq!(
        result.reason.unwrap(),
        format!("failed to fetch http://{address}/a: the server answers {status}{asked}")
    );
    let help = result.remedy.unwrap();
    assert!(help.contains(remedy), "{help}");
}

#[tokio::test]
async fn a_truncated_body_and_an_absent_server_are_reported() {
    let archive = archive("containerd-shim-wasmtime-v1");
    let whole = ok(&archive);
    let cut = whole[..whole.len() - 10].to_vec();
    let address = serve(Routes::from([("/cut", cut)]));
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let (cut, gone) = (
        shim(format!("http://{address}/cut")),
        shim(format!("http://{gone}/gone")),
    );
    let (one, two) = (tempfile::tempdir().unwrap(), out);
    let (cut, gone) = tokio::join!(
        fetch_one(&cut, one.path(), None),
        fetch_one(&gone, two.path(), None)
    );
    let reason = cut.reason.unwrap();
    assert!(reason.starts_with("failed to fetch ") && reason.contains("/cut: "));
    assert!(
        gone.reason
            .unwrap()
            .to_lowercase()
            .contains("connection refused")
    );
}

#[tokio::test]
async fn https_requires_a_trusted_certificate_authority_without_a_fallback() {
    let archive = archive("containerd-shim-wasmtime-v1");
    let plain = serve(Routes::from([("/a.tar.gz", ok(&archive))]));
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let routes = Routes::from([
        ("/a.tar.gz", ok(&archive)),
        ("/down", redirect(&format!("http://{plain}/a.tar.gz"))),
    ]);
    let port = serve_tls(routes, &ca_file).port();
    let secure = shim(format!("https://localhost:{port}/a.tar.gz"));
    let result = fetch_one(&secure, directory.path(), Some(&ca_file)).await;
    assert_eq!(result.reason, None);
    let down = shim(format!("https://localhost:{port}/down"));
    let result = fetch_one(&down, directory.path(), Some(&ca_file)).await;
    assert!(
        result
            .reason
            .unwrap()
            .contains("redirects from https to http")
    );
    let start = std::time::Instant::now();
    let result = fetch_one(&secure, directory.path(), None).await;
    assert!(result.reason.unwrap().contains("certificate"));
    assert!(result.remedy.unwrap().contains("--ca-file"));
    // No second attempt, which begins after a second.
    assert!(start.elapsed().as_millis() < 1000);
}

/// `openssl req -x509` makes such a certificate.
#[tokio::test]
async fn a_server_with_the_certificate_of_an_authority_or_without_tls_gets_its_own_help() {
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    let is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let of_ca = serve_as(is_ca, Routes::new(), &ca_file).port();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .unwrap();
        }
    });
    for (port, help) in [
        (of_ca, "CA:FALSE"),
        (plain, "begin the location with http://"),
    ] {
        let shim = shim(format!("https://localhost:{port}/a"));
        let result = fetch_one(&shim, directory.path(), Some(&ca_file)).await;
        let remedy = result.remedy.clone().unwrap();
        assert!(remedy.contains(help), "{result:?}");
    }
}

#[test]
fn the_installer_reports_the_help_of_a_failed_fetch() {
    let out = tempfile::tempdir().unwrap();
    let shim = shim("https://example.org/a".to_owned());
    let result = FetchResult {
        shim: shim.name.clone(),
        binary_sha256: None,
        reason: Some("failed to fetch https://example.org/a: the server answers 404".to_owned()),
        remedy: Some("correct the location".to_owned()),
        present: false,
        for_another_cpu: false,
    };
    let json = serde_json::to_string(&result).unwrap();
    std::fs::write(out.path().join(format!("{}.json", shim.name)), json).unwrap();
    let error = read_binary(&shim, out.path(), Cpu::own()).unwrap_err();
    assert_eq!(error.to_string(), result.reason.unwrap());
    assert_eq!(error.help().as_deref(), Some("correct the location"));
}

#[tokio::test]
async fn fetch_tells_the_installer_of_a_program_for_another_cpu() {
    let address = serve(Routes::from([("/a", ok(&for_another_cpu()))]));
    let shim = shim(format!("http://{address}/a"));
    let out = tempfile::tempdir().unwrap();
    let result = fetch_one(&shim, out.path(), None).await;
    assert!(result.for_another_cpu, "{result:?}");
    let name = shim.name.clone();
    let report = Host::new(Some(support::CONFIG))
        .provision(&[shim], out.path())
        .await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(report.unsupported_shims, [name].into());
}

#[tokio::test]
async fn a_binary_that_is_already_on_the_node_is_not_fetched() {
    // No server answers on this address.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut shim = shim(format!("http://{}/a", listener.local_addr().unwrap()));
    shim.present = Some(Sha256Digest::of(&program(0)));
    let out = tempfile::tempdir().unwrap();
    let result = fetch_one(&shim, out.path(), None).await;
    let expected = FetchResult {
        shim: "wasmtime".to_owned(),
        binary_sha256: None,
        reason: None,
        remedy: None,
        present: true,
        for_another_cpu: false,
    };
    assert_eq!(result, expected);
    let left = std::fs::read_to_string(out.path().join("wasmtime.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<FetchResult>(&left).unwrap(),
        expected
    );
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
    let handed = read_binary(&shim, out.path(), Cpu::own()).unwrap_err();
    assert!(handed.to_string().contains("left no binary"));
}

#[tokio::test]
async fn an_install_without_a_hand_off_directory_fetches_missing_binaries() {
    let address = serve(Routes::from([("/a", ok(&program(1)))]));
    let mut shim = shim(format!("http://{address}/a"));
    shim.present = Some(Sha256Digest::of(&program(1)));
    let host = Host::stocked();
    let report = host.install(std::slice::from_ref(&shim), &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(report.handlers[0].sha256, shim.present);
}

#[tokio::test]
async fn fetch_refuses_other_schemes_and_skips_file_urls() {
    let out = tempfile::tempdir().unwrap();
    let result = fetch_one(&shim("oci://example.org/a:1".to_owned()), out.path(), None).await;
    assert!(result.remedy.unwrap().contains("write an https://"));
    let on_host = shim("file:///srv/a".to_owned());
    assert!(
        fetch(&[on_host], out.path(), options(None))
            .await
            .unwrap()
            .is_empty()
    );
}

/// A shim whose artifact is fetched and pinned by its own digest, without that of its binary.
async fn pinned_archive(out: &Path) -> ShimRequest {
    let archive = archive("containerd-shim-wasmtime-v1");
    let address = serve(Routes::from([("/a.tar.gz", ok(&archive))]));
    let mut shim = shim(format!("http://{address}/a.tar.gz"));
    shim.sha256 = Some(Sha256Digest::of(&archive));
    let result = fetch_one(&shim, out, None).await;
    assert_eq!(result.reason, None);
    let (_, digest) = read_binary(&shim, out, Cpu::own()).unwrap();
    assert_eq!(digest, Sha256Digest::of(&program(0)));
    shim
}

/// What the bytes of another shim do with the process that fetches all of them.
#[rstest]
#[case::the_binary(&["bin"])]
#[case::the_binary_and_the_artifact(&["bin", "artifact"])]
#[case::the_binary_without_the_artifact(&["bin", "-artifact"])]
#[tokio::test]
async fn a_pinned_artifact_protects_its_binary_from_the_process_that_fetched_it(
    #[case] replaced: &[&str],
) {
    let out = tempfile::tempdir().unwrap();
    let shim = pinned_archive(out.path()).await;
    let evil = program(9);
    for name in replaced {
        match name.strip_prefix('-') {
            Some(name) => {
                std::fs::remove_file(out.path().join(format!("wasmtime.{name}"))).unwrap();
            }
            None => std::fs::write(out.path().join(format!("wasmtime.{name}")), &evil).unwrap(),
        }
    }
    let result = FetchResult {
        shim: shim.name.clone(),
        binary_sha256: Some(Sha256Digest::of(&evil)),
        reason: None,
        remedy: None,
        present: false,
        for_another_cpu: false,
    };
    let json = serde_json::to_string(&result).unwrap();
    std::fs::write(out.path().join("wasmtime.json"), json).unwrap();
    assert!(read_binary(&shim, out.path(), Cpu::own()).is_err());
    let report = Host::new(Some(support::CONFIG))
        .provision(&[shim], out.path())
        .await;
    let reasons: Vec<_> = report.handlers.iter().map(|it| &it.reason).collect();
    assert!(reasons.iter().all(|reason| reason.is_some()), "{report:?}");
}

#[tokio::test]
async fn a_pinned_artifact_is_installed_from_the_hand_off_directory() {
    let out = tempfile::tempdir().unwrap();
    let shim = pinned_archive(out.path()).await;
    let host = Host::new(Some(support::CONFIG));
    let report = host.provision(&[shim], out.path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
}

#[rstest]
#[case::of_a_page("/page", b"role-of-the-node".to_vec(), Some("neither"))]
#[case::of_nothing("/empty", Vec::new(), Some("is empty"))]
#[case::of_an_archive("/a.tar.gz", archive("README"), None)]
#[case::of_a_program("/a", program(3), None)]
#[tokio::test]
async fn the_digest_of_a_download_is_told_only_if_it_is_an_archive_or_a_program(
    #[case] path: &'static str,
    #[case] body: Vec<u8>,
    #[case] refusal: Option<&str>,
) {
    let told = refusal.is_none();
    let is_refused = |reason: &str| refusal.is_some_and(|refusal| reason.contains(refusal));
    let address = serve(Routes::from([(path, ok(&body))]));
    let out = tempfile::tempdir().unwrap();
    let mut shim = shim(format!("http://{address}{path}"));
    shim.sha256 = Some(Sha256Digest::from_bytes([7; 32]));
    let reason = fetch_one(&shim, out.path(), None).await.reason.unwrap();
    let found = Sha256Digest::of(&body).to_string();
    assert_eq!(reason.contains(&found), told, "{reason}");
    assert_eq!(is_refused(&reason), !told, "{reason}");
    // A file of the host is told in the same way.
    let host = Host::new(Some(support::CONFIG));
    host.write("/etc/shadow", &body);
    shim.location = "file:///etc/shadow".to_owned();
    let report = host.install(&[shim], &[]).await;
    let reason = report.handlers[0].reason.clone().unwrap();
    assert_eq!(reason.contains(&found), told, "{reason}");
    assert_eq!(is_refused(&reason), !told, "{reason}");
}

#[tokio::test]
async fn a_redirect_does_not_tell_the_url_before_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        ["/first?sig=hunter2", "/second"].map(|_| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(&mut stream);
            while !head.ends_with("\r\n\r\n") {
                assert!(reader.read_line(&mut head).unwrap() > 0);
            }
            let to = if head.starts_with("GET /first") {
                redirect("/second")
            } else {
                ok(&program(1))
            };
            stream.write_all(&to).unwrap();
            head.to_lowercase()
        })
    });
    let out = tempfile::tempdir().unwrap();
    let shim = shim(format!("http://{address}/first?sig=hunter2"));
    assert_eq!(fetch_one(&shim, out.path(), None).await.reason, None);
    let [first, second] = server.join().unwrap();
    assert!(first.contains("hunter2"));
    assert!(
        !second.contains("referer") && !second.contains("hunter2"),
        "{second}"
    );
}

#[rstest]
#[case::in_the_location("http://169.254.169.254/latest/meta-data/")]
#[case::in_another_notation("http://0xa9fea9fe/latest/meta-data/")]
#[case::mapped_to_ipv6("http://[::ffff:169.254.169.254]/latest/meta-data/")]
#[case::of_aws("http://[fd00:ec2::254]/latest/meta-data/")]
#[tokio::test]
async fn a_link_local_address_is_refused_with_the_option_that_allows_it(
    #[case] location: &str,
    #[values(false, true)] after_a_redirect: bool,
) {
    let out = tempfile::tempdir().unwrap();
    let address = serve(Routes::from([("/away", redirect(location))]));
    let shim = shim(if after_a_redirect {
        format!("http://{address}/away")
    } else {
        location.to_owned()
    });
    let result = fetch_one(&shim, out.path(), None).await;
    let reason = result.reason.unwrap();
    assert!(reason.contains("a link-local address"), "{reason}");
    let remedy = result.remedy.unwrap();
    assert!(remedy.contains("--allow-link-local"), "{remedy}");
}

#[rstest]
#[case::of_this_host("file://localhost/srv/a", "/srv/a")]
#[case::with_a_space("file:///srv/my%20shim", "/srv/my shim")]
#[tokio::test]
async fn the_path_of_a_file_url_is_decoded(#[case] location: &str, #[case] path: &str) {
    let host = Host::new(Some(support::CONFIG));
    host.write(path, &program(1));
    let report = host.install(&[shim(location.to_owned())], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let expected = Sha256Digest::of(&program(1));
    assert_eq!(report.handlers[0].sha256, Some(expected));
}

#[rstest]
#[case::a_directory("/srv/folder", "a directory")]
#[case::a_pipe("/srv/pipe", "a FIFO")]
#[case::nothing_in_it("/srv/empty", "empty")]
#[tokio::test]
async fn an_artifact_of_the_host_that_is_no_file_is_refused_by_its_kind(
    #[case] path: &str,
    #[case] kind: &str,
) {
    let host = Host::new(Some(support::CONFIG));
    std::fs::create_dir_all(host.path("/srv/folder")).unwrap();
    nix::unistd::mkfifo(&host.path("/srv/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let report = host.install(&[shim(format!("file://{path}"))], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let expected = format!("artifact {path} on the host is {kind}");
    assert_eq!(report.handlers[0].reason.as_ref(), Some(&expected));
}

/// [`program`] for another CPU, and the name of that CPU.
fn foreign_program(seed: u8) -> (Vec<u8>, &'static str) {
    let (machine, name) = match std::env::consts::ARCH {
        "x86_64" => (183, "aarch64"),
        _ => (62, "x86_64"),
    };
    let mut bytes = program(seed);
    bytes[18] = machine;
    (bytes, name)
}

#[rstest]
#[case::of_containerd("/usr/bin/containerd", None)]
#[case::of_the_program_of_the_unit(
    "/opt/tools/containerd",
    Some("[Service]\nExecStart=/opt/tools/containerd\n")
)]
#[case::of_the_first_program("/sbin/init", None)]
#[tokio::test]
async fn an_image_takes_shims_for_its_own_cpu(
    #[case] program_of_image: &str,
    #[case] unit: Option<&str>,
    #[values(false, true)] fetched: bool,
) {
    let (foreign, name) = foreign_program(1);
    let host = Host::stocked();
    host.write(program_of_image, &foreign_program(0).0);
    if let Some(unit) = unit {
        host.write("/etc/systemd/system/containerd.service", unit.as_bytes());
    }
    host.write("/srv/foreign", &foreign);
    let routes = [("/a", ok(&program(1))), ("/foreign", ok(&foreign))];
    let address = serve(Routes::from(routes));
    let location = |name: &str| {
        if fetched {
            format!("http://{address}/{name}")
        } else {
            format!("file:///srv/{name}")
        }
    };
    let report = host.install(&[shim(location("a"))], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(
        report.handlers[0].reason.as_deref().unwrap(),
        format!(
            "the binary is for the CPU {}, and the host has the CPU {name}",
            std::env::consts::ARCH
        )
    );
    let report = host.install(&[shim(location("foreign"))], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(report.handlers[0].sha256, Some(Sha256Digest::of(&foreign)));
}

#[tokio::test]
async fn nothing_is_fetched_for_a_host_that_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let host = Host::stocked();
    let location = format!("http://{}/a", listener.local_addr().unwrap());
    // A live host on which no containerd runs.
    std::fs::create_dir_all(host.path("/proc/sys/kernel/random")).unwrap();
    let mut options = host.named(&[shim(location)], &[]);
    options.host.target = farrier::installer::Target::Live;
    let mode = farrier::installer::Mode::DryRun;
    let report = farrier::installer::install(&options, mode).await.report;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let reason = report.reason.unwrap();
    assert!(reason.contains("containerd"), "{reason}");
    assert!(listener.accept().is_err(), "a request came");
}
