//! What a host change costs on a real node, beside the least that it could cost: `cargo xtask bench host` brings the nodes up and
//! says in the environment where they are. Prints a table, and fails where a target is missed. Not a test: no test is timed.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that can't go on has nothing to say"
)]
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use farrier::handoff::{Owner, Proof, ProvisionReport, ProvisionRequest, ShimRequest};
use farrier::installer::containerd::cri;
use farrier::installer::host::HostRoot;
use serde::Deserialize;

/// Odd enough for a median, few enough for minutes.
const ROUNDS: usize = 20;

/// A containerd that is asked this often is not held up by it; the gap that it shows is this much too long at most.
const ASK_EVERY: Duration = Duration::from_millis(4);

/// A containerd that does not come back in this time won't.
const PATIENCE: Duration = Duration::from_mins(1);

/// The size of the shim of which the memory is measured.
const LARGE: usize = 100_000_000;

#[derive(Debug, Deserialize)]
struct ClusterFile {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    containerd: String,
    pid: u32,
}

/// A line of the table.
struct Line {
    what: String,
    measured: String,
    target: String,
    met: bool,
}

fn main() -> ExitCode {
    let read = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: use `cargo xtask bench host`"))
    };
    let cluster: ClusterFile =
        serde_json::from_str(&std::fs::read_to_string(read("FARRIER_CLUSTER")).unwrap()).unwrap();
    let binary = PathBuf::from(read("FARRIER_BINARY"));
    let shim = std::fs::read(read("FARRIER_SHIM")).unwrap();
    let mut lines = vec![fetching(&binary)];
    for node in &cluster.nodes {
        node.prepare(&binary, &shim);
        lines.push(node.placing());
        lines.push(node.nothing_to_do());
        lines.push(node.lifecycle());
        for shims in [1, 3, 7] {
            lines.push(node.rehearsing(shims));
        }
        for shims in [1, 3, 7] {
            lines.push(node.away(shims));
        }
    }
    println!("\n| what | measured | target | |\n| --- | --- | --- | --- |");
    for line in &lines {
        let Line {
            what,
            measured,
            target,
            met,
        } = line;
        let verdict = if *met { "met" } else { "MISSED" };
        println!("| {what} | {measured} | {target} | {verdict} |");
    }
    if lines.iter().all(|line| line.met) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Asks a node's CRI all the time, and remembers when it began and ceased to answer.
struct Prober {
    answers: Arc<Mutex<Vec<(Instant, bool)>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    fn start(root: PathBuf) -> Self {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let (seen, end) = (answers.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let host = HostRoot::open(&root).unwrap();
            runtime.block_on(async {
                let mut pace = tokio::time::interval(ASK_EVERY);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                while !end.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let asked = Instant::now();
                    let served = cri::served(&host, "/run/containerd/containerd.sock").await;
                    let well = served.is_ok_and(|served| served.ready);
                    // A success counts from when it was given, a failure from when it was asked for.
                    let at = if well { Instant::now() } else { asked };
                    seen.lock().unwrap().push((at, well));
                }
            });
        });
        let prober = Self {
            answers,
            ends,
            thread: Some(thread),
        };
        prober.wait_for_an_answer();
        prober
    }

    /// Waits until it answers after now.
    fn wait_for_an_answer(&self) {
        let since = Instant::now();
        let answered = || {
            let answers = self.answers.lock().unwrap();
            answers
                .last()
                .is_some_and(|(at, well)| *well && *at > since)
        };
        while !answered() {
            assert!(since.elapsed() < PATIENCE, "the CRI does not come back");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// How long the CRI was away: from the last answer before the first failure to the first answer after the last one.
    fn away(mut self) -> Duration {
        self.wait_for_an_answer();
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let answers = self.answers.lock().unwrap();
        let first = answers.iter().position(|(_, well)| !well);
        let last = answers.iter().rposition(|(_, well)| !well);
        match (first, last) {
            (Some(first), Some(last)) => answers[last + 1].0 - answers[first - 1].0,
            _ => Duration::ZERO,
        }
    }
}

impl Node {
    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let pid = self.pid.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &pid, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?} on {}: {text}{words}",
            self.name
        );
        text
    }

    fn farrier(&self, arguments: &[&str]) -> ProvisionReport {
        let all = [&["/srv/farrier"], arguments, &["-o", "json"]].concat();
        serde_json::from_str(&self.run(&all)).unwrap()
    }

    fn prepare(&self, binary: &Path, shim: &[u8]) {
        let srv = self.root().join("srv");
        std::fs::copy(binary, srv.join("farrier")).unwrap();
        // What stands behind the ELF file's end is nobody's business, so each is a binary of its own.
        for name in NAMES {
            for release in ["", "-next"] {
                let bytes = [shim, name.as_bytes(), release.as_bytes()].concat();
                write_program(&srv.join(format!("{name}{release}")), &bytes);
            }
        }
        let mut large = shim.to_vec();
        large.resize(LARGE, 7);
        write_program(&srv.join("large"), &large);
        self.farrier(&["uninstall", "--all"]);
    }

    fn restart(&self) {
        // Twenty restarts in a row are more than systemd allows by itself.
        self.run(&["systemctl", "reset-failed", "containerd"]);
        self.run(&["systemctl", "restart", "containerd"]);
    }

    fn named(&self, what: &str) -> String {
        format!("containerd {}: {what}", self.containerd)
    }

    /// The CRI's absence during an install of so many shims, beside a bare restart with the same handlers.
    fn away(&self, shims: usize) -> Line {
        let specs: Vec<String> = NAMES[..shims].iter().map(|name| spec(name, "")).collect();
        let mut arguments = vec!["install"];
        for spec in &specs {
            arguments.extend(["--shim", spec]);
        }
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let prober = Prober::start(self.root());
            assert_eq!(self.farrier(&arguments).restarts, 1);
            ours.push(prober.away());
            let prober = Prober::start(self.root());
            self.restart();
            bare.push(prober.away());
            self.farrier(&["uninstall", "--all"]);
        }
        let (ours, bare) = (median(ours), median(bare));
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        Line {
            what: self.named(&format!(
                "CRI away, install of {shims} beside a bare restart, medians of {ROUNDS}"
            )),
            measured: format!(
                "{} beside {}, {ratio:.2} times",
                milliseconds(ours),
                milliseconds(bare)
            ),
            target: "at most 1.1 times".to_owned(),
            met: ratio <= 1.1,
        }
    }

    /// A dry run that starts a second containerd, beside one that has nothing to start: of an install of no more than is there.
    fn rehearsing(&self, shims: usize) -> Line {
        let specs: Vec<String> = NAMES[..shims].iter().map(|name| spec(name, "")).collect();
        let mut arguments = vec!["install", "--dry-run"];
        for spec in &specs {
            arguments.extend(["--shim", spec]);
        }
        let time = |rehearses: bool| {
            let times = (0..ROUNDS).map(|_| {
                let since = Instant::now();
                let report = self.farrier(&arguments);
                let elapsed = since.elapsed();
                let is_noted = |note: &String| note.starts_with("a rehearsal has started");
                assert_eq!(report.notes.iter().any(is_noted), rehearses, "{report:?}");
                elapsed
            });
            median(times.collect())
        };
        let with = time(true);
        let mut install = arguments.clone();
        install.retain(|argument| *argument != "--dry-run");
        self.farrier(&install);
        let without = time(false);
        self.farrier(&["uninstall", "--all"]);
        let cost = with.saturating_sub(without);
        Line {
            what: self.named(&format!(
                "rehearsal of {shims}: a dry run with it less one without it, medians of {ROUNDS}"
            )),
            measured: format!(
                "{} ({} less {})",
                milliseconds(cost),
                milliseconds(with),
                milliseconds(without)
            ),
            target: "under 1 s".to_owned(),
            met: cost < Duration::from_secs(1),
        }
    }

    /// Everything that a write would change, of every file that an install may write.
    fn traces(&self) -> BTreeMap<PathBuf, (u64, i64, i64)> {
        let mut traces = BTreeMap::new();
        let mut directories: Vec<PathBuf> = ["etc", "opt", "var/lib/farrier"]
            .iter()
            .map(|directory| self.root().join(directory))
            .collect();
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory)
                .into_iter()
                .flatten()
                .flatten()
            {
                let metadata = entry.path().symlink_metadata().unwrap();
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
                let trace = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
                traces.insert(entry.path(), trace);
            }
        }
        traces
    }

    /// An install that finds nothing to do, with seven shims.
    fn nothing_to_do(&self) -> Line {
        let specs: Vec<String> = NAMES.iter().map(|name| spec(name, "")).collect();
        let mut arguments = vec!["install"];
        for spec in &specs {
            arguments.extend(["--shim", spec]);
        }
        self.farrier(&arguments);
        let before = self.traces();
        let times = (0..ROUNDS).map(|_| {
            let since = Instant::now();
            let report = self.farrier(&arguments);
            assert!(!report.changed, "{report:?}");
            since.elapsed()
        });
        let time = median(times.collect());
        let wrote = self.traces() != before;
        self.farrier(&["uninstall", "--all"]);
        Line {
            what: self.named(&format!(
                "install that finds nothing to do, seven shims, median of {ROUNDS}"
            )),
            measured: format!(
                "{}, {}",
                milliseconds(time),
                if wrote { "it wrote" } else { "no write" }
            ),
            target: "under 50 ms, no write".to_owned(),
            met: !wrote && time < Duration::from_millis(50),
        }
    }

    /// Seven shims added, upgraded and removed one after the other with their handlers reserved.
    fn lifecycle(&self) -> Line {
        let reserve: Vec<&str> = NAMES.iter().flat_map(|name| ["--reserve", name]).collect();
        let install = |spec: &str| {
            let arguments = [&["install", "--keep-others", "--shim", spec], &reserve[..]].concat();
            self.farrier(&arguments).restarts
        };
        let added: Vec<u32> = NAMES.iter().map(|name| install(&spec(name, ""))).collect();
        let upgraded: Vec<u32> = NAMES
            .iter()
            .map(|name| install(&spec(name, "-next")))
            .collect();
        let remove = |name: &&str| self.farrier(&["uninstall", "--shim", name]).restarts;
        let removed: Vec<u32> = NAMES.iter().map(remove).collect();
        let met = added == [1, 0, 0, 0, 0, 0, 0]
            && upgraded == [0; 7]
            && removed == [0, 0, 0, 0, 0, 0, 1];
        Line {
            what: self.named("restarts as seven reserved shims are added, upgraded, removed"),
            measured: format!("{added:?} {upgraded:?} {removed:?}"),
            target: "one at the first, one when the last leaves".to_owned(),
            met,
        }
    }

    /// Peak memory of placing a large shim that lies on the host.
    fn placing(&self) -> Line {
        let spec = spec("large", "");
        let child = self
            .command(&["/srv/farrier", "install", "--shim", &spec])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let peak = peak_memory(child, "farrier");
        self.farrier(&["uninstall", "--all"]);
        memory(
            self.named("memory of `install`, a shim of 100 MB on the host"),
            peak,
        )
    }
}

/// Names of the shims.
const NAMES: [&str; 7] = ["one", "two", "three", "four", "five", "six", "seven"];

fn spec(name: &str, release: &str) -> String {
    format!("{name}=file:///srv/{name}{release}")
}

fn write_program(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn memory(what: String, peak: u64) -> Line {
    Line {
        what,
        measured: format!("{} MB", peak.div_ceil(1_000_000)),
        target: "under 32 MB".to_owned(),
        met: 0 < peak && peak < 32_000_000,
    }
}

/// The largest resident set, in bytes, of the process `name` that `child` is or starts. It is looked at until it ends.
fn peak_memory(mut child: Child, name: &str) -> u64 {
    let mut peak = 0;
    let mut watched = None;
    while child.try_wait().unwrap().is_none() {
        watched = watched.or_else(|| descendant(child.id(), name));
        let status = watched
            .and_then(|pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
            .unwrap_or_default();
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kilobytes.unwrap_or_default() * 1024);
        std::thread::sleep(Duration::from_micros(500));
    }
    assert!(child.wait().unwrap().success());
    peak
}

fn descendant(pid: u32, name: &str) -> Option<u32> {
    if std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .ok()?
        .trim()
        == name
    {
        return Some(pid);
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find_map(|child| descendant(child, name))
}

/// Peak memory of fetching a large shim in an archive over HTTP and unpacking it.
fn fetching(binary: &Path) -> Line {
    let directory = tempfile::tempdir().unwrap();
    let archive = archive();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            archive.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&archive).unwrap();
    });
    let shim = ShimRequest {
        name: "large".to_owned(),
        handlers: vec!["large".to_owned()],
        location: format!("http://{address}/large.tar.gz"),
        sha256: None,
        binary_sha256: None,
        binary: None,
        options: BTreeMap::new(),
        keep: false,
        present: None,
        first_binary_sha256: None,
        proof: Proof::None,
    };
    let request = ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), vec![shim], vec![]);
    let file = directory.path().join("request");
    std::fs::write(&file, request.to_json()).unwrap();
    let out = directory.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let child = Command::new(binary)
        .arg("fetch")
        .arg("--request")
        .arg(&file)
        .arg("--out")
        .arg(&out)
        .env_remove("http_proxy")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let peak = peak_memory(child, "farrier");
    server.join().unwrap();
    assert!(std::fs::metadata(out.join("large.bin")).unwrap().len() > 90_000_000);
    memory(
        "memory of `fetch`, a shim of 100 MB in an archive over HTTP".to_owned(),
        peak,
    )
}

/// A tar.gz that holds a program of 100 MB that does not compress well.
fn archive() -> Vec<u8> {
    let mut program = std::fs::read("/proc/self/exe").unwrap();
    program.truncate(LARGE);
    let mut state = 1_u64;
    while program.len() < LARGE {
        // Marsaglia's xorshift: noise enough for gzip.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        program.extend(state.to_le_bytes());
    }
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "containerd-shim-large", &program[..])
        .unwrap();
    tar.into_inner().unwrap().finish().unwrap()
}
