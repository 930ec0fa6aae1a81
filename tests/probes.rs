//! The controller's answers to probes while the API server does not answer. Runs the real program with a listener in place of the API
//! server.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Time limit for the start of a process, which takes milliseconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(30);

const LOOK: Duration = Duration::from_millis(20);

/// A controller whose API server accepts connections and never answers.
struct Controller {
    child: Child,
    address: SocketAddr,
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
        // A free port. The kernel does not assign it again at once.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let child = Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["controller", "--namespace=farrier", "--image=farrier"])
            .arg(format!("--listen={address}"))
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            _api_server: api_server,
            _directory: directory,
        }
    }

    /// The whole answer.
    fn answer(&self, path: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.ask(path) {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            std::thread::sleep(LOOK);
        }
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: farrier\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
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
