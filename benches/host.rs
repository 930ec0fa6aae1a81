//! What a change of a real host costs, beside what can't be had for less: the time without a CRI, restarts, memory, and the price of
//! nothing to do. `cargo xtask bench host` brings the nodes up and runs this; it fails where a target is missed.
//!
//! It knows the nodes by `FARRIER_CLUSTER` (what stands), `FARRIER_BINARY` (the static program) and `FARRIER_SHIM` (a shim that runs).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement ends where something it stands on fails, and what it prints is the result"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use farrier::handoff::{Outcome, ProvisionReport, sha256_hex};
use farrier::installer::cri;
use farrier::installer::host::HostRoot;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

/// Rounds of each measurement; the medians are compared.
const ROUNDS: usize = 20;

/// Time without a CRI, as a multiple of that of a bare restart.
const AWAY_TARGET: f64 = 1.1;

/// An install that finds nothing to do.
const NOTHING_TARGET: Duration = Duration::from_millis(50);

/// Peak memory while a large shim is placed, in kB as `/proc/PID/status` counts.
const MEMORY_TARGET: u64 = 32 * 1024;

/// What "large" is, in bytes.
const LARGE: usize = 100_000_000;

/// Well below the 65 ms that containerd needs to start, and little beside what it does meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// Of a node that does not come back.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where this program serves the large shim, in the network of the node.
const SERVER: &str = "127.0.0.1:9000";

#[derive(Deserialize)]
struct ClusterFile {
    nodes: Vec<NodeFile>,
}

#[derive(Deserialize)]
struct NodeFile {
    containerd: String,
    pid: u32,
    root: PathBuf,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some("serve"), Some(path)) = (arguments.next().as_deref(), arguments.next()) {
        serve(Path::new(&path));
        return ExitCode::SUCCESS;
    }
    let text = fs::read_to_string(std::env::var("FARRIER_CLUSTER").unwrap()).unwrap();
    let cluster: ClusterFile = serde_json::from_str(&text).unwrap();
    let mut table = Table::default();
    for node in &cluster.nodes {
        let node = Node::prepare(node);
        for shims in [1, 3, 7] {
            table.away(&node, shims);
        }
        table.nothing_to_do(&node);
        table.one_after_the_other(&node);
        table.memory(&node);
    }
    if table.missed {
        println!("\na target was missed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Prints a line for each result.
#[derive(Default)]
struct Table {
    missed: bool,
}

impl Table {
    fn line(&mut self, node: &Node<'_>, what: &str, result: &str, target: &str, met: bool) {
        let verdict = if met { "met" } else { "MISSED" };
        let containerd = &node.file.containerd;
        println!("{containerd:<7} {what:<44} {result:<44} {target:<20} {verdict}");
        self.missed |= !met;
    }

    /// (a) The time without a CRI: installs of so many shims, each followed by a bare restart with the same handlers declared.
    fn away(&mut self, node: &Node<'_>, shims: usize) {
        let (mut installs, mut restarts) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            installs.push(node.away(|| node.applied(&install(shims, ""), 1)));
            restarts.push(node.away(|| {
                // As Farrier does, or systemd starts a unit no more that was started often.
                node.sh("systemctl reset-failed containerd; systemctl restart containerd");
            }));
            node.away(|| node.applied("uninstall --all", 1));
        }
        let (install, restart) = (median(installs), median(restarts));
        let ratio = install.as_secs_f64() / restart.as_secs_f64();
        self.line(
            node,
            &format!("no CRI: install of {shims} / bare restart"),
            &format!("{} / {} = {ratio:.2}", ms(install), ms(restart)),
            &format!("<= {AWAY_TARGET}"),
            ratio <= AWAY_TARGET,
        );
    }

    /// (b) An install that finds nothing to do.
    fn nothing_to_do(&mut self, node: &Node<'_>) {
        let words = install(3, &format!(",sha256={}", node.sha256));
        node.applied(&words, 1);
        let files = "find /etc/containerd /opt/farrier /var/lib/farrier -printf '%p %i %s %T@ %C@\\n' | sort";
        let before = node.sh(files);
        let took = (0..ROUNDS).map(|_| {
            let since = Instant::now();
            let output = node.farrier(&words);
            let took = since.elapsed();
            let report = report(&output);
            assert_eq!(report.result, Outcome::Unchanged, "{report:#?}");
            took
        });
        let took = median(took.collect());
        let wrote = node.sh(files) != before;
        let target = format!("< {}, no write", ms(NOTHING_TARGET));
        let result = format!("{}, {}", ms(took), if wrote { "WROTE" } else { "no write" });
        let met = took < NOTHING_TARGET && !wrote;
        self.line(node, "nothing to do (3 shims)", &result, &target, met);
        node.applied("uninstall --all", 1);
    }

    /// (c) Seven shims added, upgraded and removed one after the other, with their handlers reserved.
    fn one_after_the_other(&mut self, node: &Node<'_>) {
        let reserve = (1..=7).map(|shim| format!(" --reserve bench-{shim}"));
        let reserve = reserve.collect::<Vec<_>>().concat();
        let mut restarts = Vec::new();
        let mut process = node.containerd();
        let mut step = |words: &str| {
            let report = report(&node.farrier(words));
            assert_eq!(report.result, Outcome::Applied, "{words}: {report:#?}");
            let now = node.containerd();
            restarts.push(u32::from(now != process).max(report.restarts));
            process = now;
        };
        for release in ["shim", "shim-next"] {
            for shim in 1..=7 {
                step(&format!(
                    "install --keep-others --shim bench-{shim}=file:///opt/images/{release}{reserve}"
                ));
            }
        }
        for shim in 1..=7 {
            step(&format!("uninstall --shim bench-{shim}"));
        }
        let between: u32 = restarts[1..20].iter().sum();
        let (first, last) = (restarts[0], restarts[20]);
        let result = format!("{first} at the first, {between} between, {last} at the last");
        let met = (first, between, last) == (1, 0, 1);
        self.line(
            node,
            "restarts: 7 added, upgraded, removed",
            &result,
            "1, 0, 1",
            met,
        );
    }

    /// (d) Peak memory while a shim of 100 MB is placed, fetched over HTTP as an archive and found on the node as it is.
    fn memory(&mut self, node: &Node<'_>) {
        let mut server = Command::new("nsenter")
            .args(["-t", &node.file.pid.to_string(), "-n"])
            .arg(std::env::current_exe().unwrap())
            .arg("serve")
            .arg(node.file.root.join("opt/images/large.tar.gz"))
            .spawn()
            .unwrap();
        for (what, location) in [
            (
                "fetched",
                format!(
                    "http://{SERVER}/large.tar.gz,sha256={}",
                    node.archive_sha256
                ),
            ),
            ("a file of the host", "file:///opt/images/large".to_owned()),
        ] {
            let peak = node.sh(&format!(
                "farrier --log error install --shim large={location} >/run/report & pid=$!
                 while [ -e /proc/$pid/status ]; do sed -n 's/VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status 2>/dev/null || true; done | sort -n | tail -n 1
                 wait $pid"
            ));
            let peak: u64 = peak.trim().parse().unwrap();
            let result = format!(
                "{:.1} MiB",
                f64::from(u32::try_from(peak).unwrap()) / 1024.0
            );
            let what = format!("memory: shim of 100 MB, {what}");
            self.line(node, &what, &result, "< 32 MiB", peak < MEMORY_TARGET);
            node.applied("uninstall --all", 1);
        }
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

struct Node<'a> {
    file: &'a NodeFile,
    /// Of the shim.
    sha256: String,
    /// Of the archive with the large shim.
    archive_sha256: String,
}

impl<'a> Node<'a> {
    /// Copies the program and its shims to the node.
    fn prepare(file: &'a NodeFile) -> Self {
        let images = file.root.join("opt/images");
        let shim = fs::read(std::env::var("FARRIER_SHIM").unwrap()).unwrap();
        fs::copy(
            std::env::var("FARRIER_BINARY").unwrap(),
            file.root.join("usr/local/bin/farrier"),
        )
        .unwrap();
        fs::write(images.join("shim"), &shim).unwrap();
        fs::write(
            images.join("shim-next"),
            [&shim, b"next".as_slice()].concat(),
        )
        .unwrap();
        let large = large(&shim);
        fs::write(images.join("large"), &large).unwrap();
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(large.len() as u64);
        header.set_mode(0o755);
        archive
            .append_data(&mut header, "containerd-shim-large", large.as_slice())
            .unwrap();
        let archive = archive.into_inner().unwrap().finish().unwrap();
        fs::write(images.join("large.tar.gz"), &archive).unwrap();
        Self {
            file,
            sha256: sha256_hex(&shim),
            archive_sha256: sha256_hex(&archive),
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.file.pid.to_string(),
                "-m",
                "-u",
                "-i",
                "-n",
                "-p",
                "-C",
                "-r",
                "-w",
            ])
            .args(words)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            );
        command
    }

    fn sh(&self, line: &str) -> String {
        let output = self.command(&["/bin/sh", "-euc", line]).output().unwrap();
        let (text, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{line}: {text}{error}");
        text.into_owned()
    }

    fn farrier(&self, words: &str) -> Output {
        let mut command = self.command(&["farrier", "--log", "error"]);
        command.args(words.split(' ')).args(["-o", "json"]);
        command.output().unwrap()
    }

    /// Runs Farrier, which must apply something with so many restarts.
    fn applied(&self, words: &str, restarts: u32) {
        let report = report(&self.farrier(words));
        let found = (report.result, report.restarts);
        assert_eq!(found, (Outcome::Applied, restarts), "{words}: {report:#?}");
    }

    fn containerd(&self) -> String {
        self.sh("systemctl show containerd -p MainPID --value")
    }

    /// How long the CRI did not answer while `act` ran: from the last answer before to the first one after.
    fn away(&self, act: impl FnOnce()) -> Duration {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let done = Arc::new(AtomicBool::new(false));
        let root = PathBuf::from(format!("/proc/{}/root", self.file.pid));
        let prober = {
            let (answers, done) = (Arc::clone(&answers), Arc::clone(&done));
            thread::spawn(move || probe(&root, &answers, &done))
        };
        until("the CRI answers", || answers.lock().unwrap().len() > 1);
        act();
        let (count, end) = (answers.lock().unwrap().len(), Instant::now());
        until("the CRI answers again", || {
            let answers = answers.lock().unwrap();
            answers.len() > count && answers.last().is_some_and(|at: &Instant| *at > end)
        });
        done.store(true, Ordering::Relaxed);
        prober.join().unwrap();
        let answers = answers.lock().unwrap();
        answers
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap()
    }
}

/// Asks for the status of the CRI until it is told to end, and notes when it was ready.
fn probe(root: &Path, answers: &Mutex<Vec<Instant>>, done: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = HostRoot::open(root).unwrap();
        while !done.load(Ordering::Relaxed) {
            if cri::served(&host, "/run/containerd/containerd.sock")
                .await
                .is_ok_and(|served| served.ready)
            {
                answers.lock().unwrap().push(Instant::now());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    });
}

fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(
            since.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        thread::sleep(ASK_EVERY);
    }
}

fn install(shims: usize, rest: &str) -> String {
    let shims =
        (1..=shims).map(|shim| format!(" --shim bench-{shim}=file:///opt/images/shim{rest}"));
    format!("install{}", shims.collect::<Vec<_>>().concat())
}

fn report(output: &Output) -> ProvisionReport {
    let text = String::from_utf8_lossy(&output.stdout);
    ProvisionReport::from_json(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    })
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort();
    samples[samples.len() / 2]
}

fn ms(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

/// The shim with noise behind its last section, which a compressor can't shorten.
fn large(shim: &[u8]) -> Vec<u8> {
    let mut bytes = shim.to_vec();
    let mut noise = 1u64;
    while bytes.len() < LARGE {
        // xorshift64.
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        bytes.extend(noise.to_le_bytes());
    }
    bytes
}

/// Answers every request with the file.
fn serve(path: &Path) {
    let listener = TcpListener::bind(SERVER).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        // The head of a GET fits into one packet.
        let _ = stream.read(&mut [0; 4096]);
        let mut file = fs::File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let sent = stream
            .write_all(head.as_bytes())
            .and_then(|()| std::io::copy(&mut file, &mut stream));
        drop(sent);
    }
}
