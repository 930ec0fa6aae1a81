//! The controller's answers to probes while the API server does not answer. Runs the real program with a listener in place of the API
//! server.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;

/// Time limit for the start of a process, which takes milliseconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(20);

/// A controller whose API server accepts connections and never answers.
struct Controller {
    child: Child,
    address: SocketAddr,
    probes: SocketAddr,
    // The listener is open while the controller runs.
    _api_server: TcpListener,
    _directory: tempfile::TempDir,
}

impl Controller {
    fn start() -> Self {
        let api_server = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", api_server.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"{server}\"}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        // Free ports. The kernel does not assign them again at once.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, probes] = free.map(|free| free.local_addr().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["controller", "--namespace=farrier", "--image=farrier"])
            .arg(format!("--listen={address}"))
            .arg(format!("--probe-listen={probes}"))
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            probes,
            _api_server: api_server,
            _directory: directory,
        }
    }

    /// The whole answer.
    fn answer(&self, path: &str) -> String {
        answer_of(self.address, path)
    }
}

/// The whole answer, once the listener is there.
fn answer_of(address: SocketAddr, path: &str) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        match ask(address, path) {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(LOOK);
    }
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: farrier\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a client sends that keeps a connection.
#[derive(Debug, Clone, Copy)]
enum Hold {
    Nothing,
    HalfAHead,
}

/// Clients that each hold a connection to an address, and connect again as soon as it is closed. Ends with the value.
struct Holders {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Holders {
    /// Returns after each client has connected once.
    fn new(address: SocketAddr, clients: usize, hold: Hold) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let connected = Arc::new(Barrier::new(clients + 1));
        let threads = (0..clients).map(|_| {
            let (ended, connected) = (Arc::clone(&ended), Arc::clone(&connected));
            std::thread::spawn(move || hold_connections(address, hold, &ended, &connected))
        });
        let threads = threads.collect();
        connected.wait();
        Self { ended, threads }
    }
}

/// Connects and holds the connection until the server closes it, again and again.
fn hold_connections(address: SocketAddr, hold: Hold, ended: &AtomicBool, connected: &Barrier) {
    let mut is_first = true;
    while !ended.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address) else {
            continue;
        };
        if let Hold::HalfAHead = hold {
            let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n");
        }
        if std::mem::take(&mut is_first) {
            connected.wait();
        }
        // The limit lets the thread end with the test.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut byte = [0];
        while !ended.load(Ordering::Relaxed) {
            match stream.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => break,
            }
        }
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_controller_without_an_api_server_is_alive_and_not_ready() {
    let controller = Controller::start();
    let answer = controller.answer("/livez");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = controller.answer("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let answer = controller.answer("/metrics");
    assert!(answer.contains("\nfarrier_leader 0\n"), "{answer}");
}

#[test]
fn sigterm_ends_a_controller_without_an_api_server() {
    let mut controller = Controller::start();
    controller.answer("/livez");
    let pid = Pid::from_raw(controller.child.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = controller.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "it goes on");
        std::thread::sleep(LOOK);
    };
    assert!(status.success(), "{status}");
}

#[test]
fn the_listener_of_the_probes_answers_probes_alone() {
    let controller = Controller::start();
    for (path, status) in [("/livez", 200), ("/readyz", 503), ("/metrics", 404)] {
        let answer = answer_of(controller.probes, path);
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{path}: {answer}");
    }
}

#[rstest]
fn clients_that_send_no_whole_head_keep_neither_probes_nor_metrics_waiting(
    #[values(130, 300)] clients: usize,
    #[values(Hold::Nothing, Hold::HalfAHead)] hold: Hold,
) {
    let controller = Controller::start();
    controller.answer("/livez");
    answer_of(controller.probes, "/livez");
    let _on_metrics = Holders::new(controller.address, clients, hold);
    let _on_probes = Holders::new(controller.probes, clients, hold);
    for (address, path) in [
        (controller.probes, "/livez"),
        (controller.address, "/livez"),
        (controller.address, "/metrics"),
    ] {
        for _ in 0..5 {
            let begin = Instant::now();
            let answer = ask(address, path).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(1), "{path} took {took:?}");
        }
    }
}

#[test]
fn a_connection_without_a_head_is_closed_after_two_seconds() {
    let controller = Controller::start();
    controller.answer("/livez");
    for head in ["", "GET /livez HTTP/1.1\r\n"] {
        let mut stream = TcpStream::connect(controller.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let begin = Instant::now();
        let mut answer = String::new();
        // The server may reset the connection.
        let _ = stream.read_to_string(&mut answer);
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
