//! A second containerd is started on the changed configuration, beside the running one and unseen by it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use farrier::controller::JOB_MEMORY_LIMIT;
use farrier::handoff::{Outcome, ProvisionReport};
use farrier::installer::Target;
use farrier::installer::containerd::rehearsal::Rehearsal;
use farrier::installer::host::{HostRoot, exec};
use farrier::installer::inspect::gather;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::Pid;
use rstest::rstest;
use rustix::net::netlink::NETFILTER;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::cgroups::{Cgroups, member};
use crate::containerd::programs;
use crate::node::{CONFIG, CONFIG_PATH, Node, Run, on_each, shim};
use crate::sandbox::wait;

const INSTALL: [&str; 2] = ["install", "--shim=a=file:///srv/a"];
const DRY_RUN: [&str; 3] = ["install", "--dry-run", "--shim=a=file:///srv/a"];

/// What a dry run says after a rehearsal.
const REHEARSED: &str = "a rehearsal has started containerd";

/// Time limit for processes to appear or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Rehearses the present configuration files of the node with `change` applied to the text of the root file.
fn rehearse(node: &Node, change: impl Fn(&str) -> String) -> Rehearsal {
    exec::enable_child_main(Some(Path::new(env!("CARGO_BIN_EXE_farrier"))));
    let host = HostRoot::open(&node.path("/")).unwrap();
    // A thread whose children get another PID namespace can't start threads.
    children_get_processes_of("/proc/thread-self");
    let rehearsal = wait(async {
        let facts = gather(&host, None, Target::Live).await.unwrap();
        let mut files = facts.config_files.clone();
        files.root.text = files.root.text.as_deref().map(change);
        facts.rehearse(&host, &files).await
    });
    children_get_processes_of(&format!("/proc/{}", node.init()));
    rehearsal
}

/// Puts the later children of this thread into the PID namespace of a process.
fn children_get_processes_of(process: &str) {
    let processes = fs::File::open(format!("{process}/ns/pid")).unwrap();
    setns(processes, CloneFlags::CLONE_NEWPID).unwrap();
}

/// Sections for the CRI of 1.x and 2.x in a file of version 2.
fn with_cri(settings: &str) -> impl Fn(&str) -> String {
    let section = format!("\n[plugins.\"io.containerd.grpc.v1.cri\"]\n{settings}\n");
    move |text| format!("{text}{section}")
}

fn assert_served(node: &Node, rehearsal: &Rehearsal, handlers: &[&str]) {
    let Rehearsal::Served(served) = rehearsal else {
        panic!("{rehearsal:?}\n{}", node.log());
    };
    for handler in handlers {
        assert!(served.handlers.contains_key(*handler), "{served:?}");
    }
}

/// The socket of NRI, which containerd 2 listens on by default.
const NRI_SOCKET: &str = "/var/run/nri/nri.sock";

/// Everything that a second containerd could leave behind: mounts, sockets and files of the node, addresses and rules of its network.
fn traces(node: &Node) -> BTreeMap<String, String> {
    let mut traces = BTreeMap::new();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    traces.insert("mounts".to_owned(), mounts);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", node.init())).unwrap();
    traces.insert("mounts of the node".to_owned(), mounts);
    let mut directories = vec![node.path("/run"), node.path("/opt"), node.path("/etc")];
    directories.extend(["/var/lib", "/var/run", "/tmp"].map(|path| node.path(path)));
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            // The log and the databases of the running containerd change at any time.
            let kind = if metadata.is_dir() {
                "directory"
            } else {
                "file"
            };
            let inode = if metadata.file_type().is_socket() {
                metadata.ino()
            } else {
                0
            };
            let path = entry.path().display().to_string();
            // The lock of the host.
            if !path.contains("/run/farrier") {
                traces.insert(path, format!("{kind} {inode}"));
            }
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    let output = Command::new("ip").args(["-o", "address"]).output().unwrap();
    let addresses = String::from_utf8(output.stdout).unwrap();
    traces.insert("addresses".to_owned(), addresses);
    traces.insert("rules".to_owned(), rules());
    traces
}

/// What differs after every change of the rules of iptables and nftables in the network of this thread. There are none before: iptables
/// creates its tables with the first rule, and the kernel counts the changes of nftables.
fn rules() -> String {
    let tables = ["ip_tables_names", "ip6_tables_names"];
    let tables = tables.map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    );
    let socket = socket.unwrap();
    send(&socket, &GENERATION_REQUEST, SendFlags::empty()).unwrap();
    let mut answer = [0; 256];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
    // After the header, which has the number of the socket: the protocol, and as the first attribute the number of changes.
    format!("{tables:?} {:?}", &answer[..length][16..28])
}

/// `NFT_MSG_GETGEN` (`linux/netlink.h`, `linux/netfilter/nf_tables.h`): a length, a type, `NLM_F_REQUEST`, no sequence number or sender; then
/// the protocol.
const GENERATION_REQUEST: [u8; 20] = [
    20, 0, 0, 0, 16, 10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The PIDs on this machine of the node's processes, and of all processes that run the node's containerd, in whatever namespace.
pub fn processes(node: &Node) -> Vec<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(node.init().parse().unwrap());
    let program = identity(&node.path("/usr/local/bin/containerd"));
    let names = fs::read_dir("/proc").unwrap().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let runs = |pid: u32| identity(Path::new(&format!("/proc/{pid}/exe"))) == program;
    let mut found: Vec<u32> = pids
        .filter(|pid| namespace(*pid) == own || runs(*pid))
        .collect();
    found.sort_unstable();
    found
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until a second process runs the node's containerd; returns its PID on this machine.
fn await_second(node: &Node) -> u32 {
    let program = identity(&node.path("/usr/local/bin/containerd"));
    let since = Instant::now();
    loop {
        let mut found = processes(node);
        found.retain(|pid| {
            let nested = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let nested = nested.lines().find_map(|line| line.strip_prefix("NSpid:"));
            // On this machine, on the node, and in the rehearsal.
            let depth = nested.map_or(0, |line| line.split_whitespace().count());
            depth > 2 && identity(Path::new(&format!("/proc/{pid}/exe"))) == program
        });
        if let Some(pid) = found.first() {
            return *pid;
        }
        assert!(since.elapsed() < LIMIT);
        std::thread::yield_now();
    }
}

fn assert_no_process_is_left(node: &Node, before: &[u32]) {
    let since = Instant::now();
    // The kernel ends the processes of a namespace after its process 1.
    loop {
        let now = processes(node);
        if now == before {
            return;
        }
        assert!(since.elapsed() < LIMIT, "{now:?} instead of {before:?}");
        std::thread::yield_now();
    }
}

/// Whether this release listens on the socket of NRI by default.
fn runs_nri(release: &Path) -> bool {
    release.to_string_lossy().contains("containerd-2.")
}

/// An address of the node that the root which is built does not have; that of loopback without a network.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket.connect("192.0.2.1:9");
    let own = own.and_then(|()| socket.local_addr());
    own.map_or(Ipv4Addr::LOCALHOST.into(), |own| own.ip())
}

/// Settings with which the CRI starts on the node.
const FINE: [&str; 3] = [
    "",
    "enable_selinux = true\nenable_cdi = true",
    "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"/srv/cni\"\nbin_dir = \"/gone\"",
];

#[test]
fn settings_that_work_on_the_node_work_in_a_rehearsal_and_broken_ones_are_named() {
    on_each(|release| {
        let node = Node::new(release);
        let before = (traces(&node), processes(&node));
        let socket = node.path(NRI_SOCKET).display().to_string();
        assert_eq!(before.0.contains_key(&socket), runs_nri(release));
        let own = own_address();
        let streams = format!("stream_server_address = \"{own}\"");
        let with_port = format!("{streams}\nstream_server_port = \"10010\"");
        for settings in FINE.into_iter().chain([&*streams, &*with_port]) {
            let rehearsal = rehearse(&node, with_cri(settings));
            assert_served(&node, &rehearsal, &["runc", "kata"]);
        }
        for (section, address) in [
            ("metrics", format!("{own}:1338")),
            ("debug", "/run/own/debug.sock".to_owned()),
        ] {
            let rehearsal = rehearse(&node, |text| {
                format!("{text}\n[{section}]\naddress = \"{address}\"\n")
            });
            assert_served(&node, &rehearsal, &["kata"]);
        }
        for (settings, words) in [
            (
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"gone\"",
                "snapshotter",
            ),
            (
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"gone\"",
                "default_runtime_name",
            ),
            ("stream_idle_timeout = \"4\"", "duration"),
        ] {
            let rehearsal = rehearse(&node, with_cri(settings));
            let Rehearsal::Failed(problem) = rehearsal else {
                panic!("{rehearsal:?}");
            };
            assert!(
                problem
                    .message
                    .starts_with("its CRI plugin does not start: ")
                    && problem.message.contains(words),
                "{problem:?}"
            );
        }
        let rehearsal = rehearse(&node, |text| {
            format!("required_plugins = ['io.containerd.gone.v1.gone']\n{text}")
        });
        let Rehearsal::Failed(problem) = rehearsal else {
            panic!("{rehearsal:?}");
        };
        assert!(
            problem.message.starts_with("it ends at its start: "),
            "{problem:?}"
        );
        assert_no_process_is_left(&node, &before.1);
        assert_eq!(traces(&node), before.0);
    });
}

/// A memory cgroup of this machine for one program.
struct MemoryCgroup {
    directory: PathBuf,
    is_2: bool,
}

impl MemoryCgroup {
    fn new(node: &Node) -> Self {
        let is_2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let hierarchy = if is_2 {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/memory"
        };
        let directory = PathBuf::from(format!("{hierarchy}/farrier-{}", node.init()));
        fs::create_dir(&directory).unwrap();
        let limit = if is_2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        let bytes = JOB_MEMORY_LIMIT << 20;
        fs::write(directory.join(limit), bytes.to_string()).unwrap();
        Self { directory, is_2 }
    }

    /// The largest use in bytes, files in the page cache included.
    fn peak(&self) -> u64 {
        let name = if self.is_2 {
            "memory.peak"
        } else {
            "memory.max_usage_in_bytes"
        };
        fs::read_to_string(self.directory.join(name))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A cgroup with members is left behind.
        let _ = fs::remove_dir(&self.directory);
    }
}

#[test]
fn thirty_handlers_are_rehearsed_within_the_memory_limit_of_the_job() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        let mut config = CONFIG.to_owned();
        let names: Vec<String> = (0..30).map(|number| format!("h{number}")).collect();
        for (number, name) in (0..).zip(&names) {
            let section =
                format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]");
            write!(
                config,
                "\n{section}\nruntime_type = \"/opt/shims/{name}\"\n"
            )
            .unwrap();
            node.write(
                &format!("/opt/shims/{name}"),
                &shim(number, Run::Ends),
                0o755,
            );
        }
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        node.start();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_served(&node, &rehearse(&node, str::to_owned), &names);
        let cgroup = MemoryCgroup::new(&node);
        let since = Instant::now();
        let directories = std::iter::once(cgroup.directory.as_path());
        let mut install = member(directories, &node.command(&INSTALL));
        let output = install.output().unwrap();
        let (took, peak) = (since.elapsed(), cgroup.peak() >> 20);
        println!("{}: {peak} MiB, {took:?}", release.display());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{peak} MiB: {words}");
        assert!(peak < JOB_MEMORY_LIMIT * 3 / 4, "{peak} MiB leave no room");
    });
}

#[test]
fn sockets_and_fifos_of_the_node_are_not_touched() {
    on_each(|release| {
        let node = Node::new(release);
        mknod(&node.path("/etc/fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        let listener = UnixListener::bind(node.path("/etc/containerd/socket")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let before = traces(&node);
        let rehearsal = rehearse(&node, str::to_owned);
        assert_served(&node, &rehearsal, &["kata"]);
        assert_eq!(traces(&node), before);
        assert!(listener.accept().is_err());
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    });
}

/// The server sends no byte before the second containerd runs.
#[test]
fn a_rehearsal_runs_beside_the_fetch() {
    on_each(|release| {
        let node = Node::new(release);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shim_argument = format!("--shim=a=http://{}/a", listener.local_addr().unwrap());
        listener.set_nonblocking(true).unwrap();
        let mut install = node.command(&["install", &shim_argument]);
        install.stdin(Stdio::null());
        install.stdout(Stdio::null()).stderr(Stdio::piped());
        let install = install.spawn();
        await_second(&node);
        let since = Instant::now();
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
            }
            std::thread::yield_now();
        };
        let read = stream.read(&mut [0; 1 << 12]).unwrap();
        assert!(read > 0);
        let body = shim(1, Run::Ends);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream
            .write_all(&[head.as_bytes(), &body].concat())
            .unwrap();
        let output = install.unwrap().wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
        node.assert_healthy();
    });
}

#[test]
fn a_rehearsal_creates_no_cgroup() {
    on_each(|release| {
        let cgroups = Cgroups::new();
        let node = Node::new(release);
        let output = cgroups.command(&node.command(&DRY_RUN)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(REHEARSED), "{text}");
        assert_eq!(cgroups.created(), Vec::<PathBuf>::new());
    });
}

#[test]
fn a_configuration_with_a_proxy_plugin_is_changed_without_a_rehearsal_and_the_report_says_so() {
    on_each(|release| {
        let node = Node::stopped(release, &[]);
        let config = format!(
            "{CONFIG}\n[proxy_plugins.stub]\ntype = \"snapshot\"\naddress = \"/run/stub.sock\"\n"
        );
        node.write(CONFIG_PATH, config.as_bytes(), 0o644);
        let listener = UnixListener::bind(node.path("/run/stub.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        node.start();
        while listener.accept().is_ok() {}
        let output = node.farrier(&[
            "install",
            "--dry-run",
            "--shim=a=file:///srv/a",
            "-o",
            "json",
        ]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("names the proxy plugin stub"), "{text}");
        assert!(listener.accept().is_err(), "a rehearsal called the plugin");
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
        let note = "was not rehearsed: the configuration names the proxy plugin stub";
        assert!(
            report.notes.iter().any(|it| it.contains(note)),
            "{report:?}"
        );
    });
}

/// The change is made in a file that the running containerd was not started with.
#[test]
fn a_change_that_containerd_would_not_serve_is_refused_before_any_write() {
    on_each(|release| {
        let node = Node::new(release);
        node.write("/etc/containerd/other.toml", CONFIG.as_bytes(), 0o644);
        let before = (node.tree(), node.process(), traces(&node));
        for more in [&[][..], &["--dry-run"]] {
            let arguments = [&INSTALL[..], &["--config=/etc/containerd/other.toml"], more].concat();
            let (status, report) = node.change(&arguments);
            assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
            let reason = report.reason.unwrap();
            assert!(
                reason.contains("a rehearsal of its start shows"),
                "{reason}"
            );
            assert_eq!((node.tree(), node.process(), traces(&node)), before);
        }
    });
}

#[test]
fn a_dry_run_says_that_the_start_was_rehearsed() {
    let node = Node::new(&programs()[1]);
    let before = (node.tree(), traces(&node));
    let output = node.farrier(&DRY_RUN);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(REHEARSED), "{text}");
    assert_eq!((node.tree(), traces(&node)), before);
}

/// A node whose containerd would wait for a shim at its next start: 2.4 runs every shim. Its configuration has these tables, too.
fn hanging_node(tables: &str) -> Node {
    let node = Node::stopped(&programs()[3], &[]);
    let config = CONFIG.replace("io.containerd.kata.v2", "/opt/shim");
    let config = format!("{config}\n{tables}");
    node.write(CONFIG_PATH, config.as_bytes(), 0o644);
    node.write("/opt/shim", &shim(1, Run::Ends), 0o755);
    // The variables of the service, one of which names a socket of systemd.
    let variables = b"export NOTIFY_SOCKET=/run/notify OWN=1";
    node.write("/sbin/kind", variables, 0o644);
    node.start();
    node.write("/opt/shim", &shim(1, Run::Hangs), 0o755);
    node
}

/// A node before a rehearsal, and the cgroups that the rehearsal runs in.
struct Before<'a> {
    node: &'a Node,
    cgroups: Cgroups,
    traces: BTreeMap<String, String>,
    processes: Vec<u32>,
    tree: BTreeMap<PathBuf, String>,
}

impl<'a> Before<'a> {
    fn of(node: &'a Node) -> Self {
        Self {
            node,
            cgroups: Cgroups::new(),
            traces: traces(node),
            processes: processes(node),
            tree: node.tree(),
        }
    }

    /// Starts the program in the cgroups.
    fn start(&self, arguments: &[&str]) -> Child {
        let mut farrier = self.cgroups.command(&self.node.command(arguments));
        farrier.stdin(Stdio::null());
        farrier.stdout(Stdio::piped()).stderr(Stdio::null());
        farrier.spawn().unwrap()
    }

    fn assert_nothing_is_left(&self) {
        assert_no_process_is_left(self.node, &self.processes);
        assert_eq!(self.cgroups.created(), Vec::<PathBuf>::new());
        assert_eq!(traces(self.node), self.traces);
        assert_eq!(self.node.tree(), self.tree);
    }
}

/// containerd serves, and others then add a handler whose shim makes the next start wait: 2.4 runs every shim.
#[test]
fn an_edit_with_which_a_start_hangs_is_refused_and_the_rehearsal_leaves_nothing() {
    let node = Node::new(&programs()[3]);
    node.write("/opt/shim", &shim(1, Run::Hangs), 0o755);
    let edited = CONFIG.replace("io.containerd.kata.v2", "/opt/shim");
    node.write(CONFIG_PATH, edited.as_bytes(), 0o644);
    let before = Before::of(&node);
    // Both wait for their rehearsals to end.
    let doctor = before.start(&["doctor"]);
    let install = before.start(&[&INSTALL[..], &["-o", "json"]].concat());
    let [doctor, install] = [doctor, install].map(|child| child.wait_with_output().unwrap());
    let report: ProvisionReport = serde_json::from_slice(&install.stdout).unwrap();
    let result = (install.status.code(), report.result);
    assert_eq!(result, (Some(3), Outcome::Refused), "{report:?}");
    let (reason, socket) = (report.reason.unwrap(), "/run/containerd/containerd.sock");
    assert_eq!(
        reason,
        format!(
            "{CONFIG_PATH} was changed after containerd started, and containerd does not start with it: its CRI does not serve within 20s: failed to query the CRI at {socket}: failed to open {socket} on the host: No such file or directory (os error 2) (a restart would put the change into effect)"
        )
    );
    let remedy = "undo or correct that change, then run farrier again";
    assert_eq!(report.remedy.as_deref(), Some(remedy));
    let words = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(1), "{words}");
    assert!(words.contains(&reason), "{words}");
    before.assert_nothing_is_left();
}

#[rstest]
#[case::killed(Signal::SIGKILL)]
#[case::interrupted(Signal::SIGTERM)]
fn a_rehearsal_ends_with_the_program_that_started_it(#[case] signal: Signal) {
    on_each(|release| {
        let node = Node::new(release);
        let before = Before::of(&node);
        let mut farrier = before.start(&INSTALL);
        await_second(&node);
        kill(Pid::from_raw(farrier.id().cast_signed()), signal).unwrap();
        farrier.wait().unwrap();
        before.assert_nothing_is_left();
        let (status, report) = node.change(&INSTALL);
        assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    });
}

/// A second containerd that waits for a shim, and the program that rehearses its start.
struct Second {
    /// Its PID on this machine.
    pid: u32,
    farrier: Child,
}

impl Second {
    /// Starts `farrier`, which rehearses a start on a [`hanging_node`].
    fn of(node: &Node, mut farrier: Command) -> Self {
        farrier.stdin(Stdio::null());
        farrier.stdout(Stdio::null()).stderr(Stdio::null());
        let farrier = farrier.spawn().unwrap();
        let pid = await_second(node);
        Self { pid, farrier }
    }

    /// An entry of its directory below `/proc`.
    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.farrier.kill();
        let _ = self.farrier.wait();
    }
}

#[test]
fn a_second_containerd_has_namespaces_of_its_own() {
    let node = hanging_node("");
    let second = Second::of(&node, node.command(&DRY_RUN));
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let of_node = fs::read_link(format!("/proc/{}/ns/{name}", node.init())).unwrap();
        let own = fs::read_link(second.proc(&format!("ns/{name}"))).unwrap();
        assert_ne!(own, of_node);
    }
    let flags = fs::read_to_string(second.proc("root/sys/class/net/lo/flags")).unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & IFF_UP, IFF_UP, "{flags:x}");
}

/// The flag of an interface that is up (`linux/if.h`).
const IFF_UP: u32 = 1;

#[test]
fn a_second_containerd_sees_the_processes_of_the_rehearsal_alone() {
    let node = hanging_node("");
    let second = Second::of(&node, node.command(&DRY_RUN));
    let own = fs::read_link(second.proc("ns/pid")).unwrap();
    let mut seen = Vec::new();
    for entry in fs::read_dir(second.proc("root/proc")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        // A process that has ended has none.
        if let Ok(namespace) = fs::read_link(entry.path().join("ns/pid")) {
            assert_eq!(namespace, own, "{pid}");
            seen.push(pid);
        }
    }
    assert!(seen.contains(&1) && seen.len() > 1, "{seen:?}");
}

/// The program that starts Farrier may have files open that a program inherits.
#[test]
fn a_second_containerd_inherits_no_file() {
    let node = hanging_node("");
    let file = node.path("/srv/open");
    fs::write(&file, "").unwrap();
    let farrier = node.command(&DRY_RUN);
    let mut inheriting = Command::new("bash");
    inheriting
        .args(["-ec", "exec 9<\"$0\"; exec \"$@\""])
        .arg(&file)
        .arg(farrier.get_program())
        .args(farrier.get_args());
    let second = Second::of(&node, inheriting);
    let has_open = |pid: u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut open = open.map(|entry| identity(&entry.path()));
        open.any(|open| open == identity(&file))
    };
    assert!(has_open(second.farrier.id()));
    assert!(!has_open(second.pid));
}

/// Directories with programs that containerd runs, those of NRI and of the verification of images, and the settings that name the first
/// two. The others are the default values.
const PLUGINS: [&str; 4] = [
    "/etc/nri/plugins",
    "/etc/verifiers",
    "/opt/nri/plugins",
    "/opt/containerd/image-verifier/bin",
];
const PLUGIN_TABLES: &str = "[plugins.\"io.containerd.nri.v1.nri\"]\nplugin_path = \"/etc/nri/plugins\"\n[plugins.\"io.containerd.image-verifier.v1.bindir\"]\nbin_dir = \"/etc/containerd/../verifiers\"\n";

/// A directory in the path of a plugin is a symlink, and `..` is in that of a verifier.
#[test]
fn neither_plugins_of_nri_nor_verifiers_of_images_can_run_in_a_rehearsal() {
    let node = hanging_node(PLUGIN_TABLES);
    fs::create_dir_all(node.path("/etc/elsewhere/nri")).unwrap();
    symlink("elsewhere/nri", node.path("/etc/nri")).unwrap();
    // After the start of the node's containerd, which runs them, too.
    for directory in PLUGINS {
        node.write(&format!("{directory}/10-a"), &shim(2, Run::Ends), 0o755);
    }
    node.write("/etc/nri/nri.conf", b"# ours", 0o644);
    let second = Second::of(
        &node,
        node.command(&[&DRY_RUN[..], &["--accept-pending-changes"]].concat()),
    );
    let root = second.proc("root");
    assert_eq!(fs::read(root.join("etc/nri/nri.conf")).unwrap(), b"# ours");
    for directory in PLUGINS {
        let programs = fs::read_dir(root.join(&directory[1..]));
        assert_eq!(programs.map_or(0, Iterator::count), 0, "{directory}");
    }
}

/// What the second containerd could reach is looked at while it waits for a shim.
#[test]
fn no_socket_fifo_or_device_of_the_node_is_reachable() {
    let node = hanging_node("");
    mknod(&node.path("/etc/fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
    let _listener = UnixListener::bind(node.path("/etc/containerd/socket")).unwrap();
    node.write("/etc/containerd/certs.d/host/hosts.toml", b"# ours", 0o600);
    let second = Second::of(&node, node.command(&DRY_RUN));
    let root = second.proc("root");
    let socket = root.join("etc/containerd/certs.d/host/hosts.toml");
    assert_eq!(fs::read(socket).unwrap(), b"# ours");
    let mut special = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Of the mount at that path, and not of the entry below it.
            let kind = entry.path().symlink_metadata().unwrap().file_type();
            let path = entry.path();
            let path = path.strip_prefix(&root).unwrap();
            if kind.is_dir() && !["proc", "sys"].iter().any(|name| path.starts_with(name)) {
                directories.push(entry.path());
            } else if kind.is_socket()
                || kind.is_fifo()
                || kind.is_block_device()
                || kind.is_char_device()
            {
                special.push(path.display().to_string());
            }
        }
    }
    special.sort();
    // containerd's own sockets are made later in its start.
    special.retain(|path| !path.starts_with("run/"));
    let devices = ["full", "null", "random", "tty", "urandom", "zero"];
    assert_eq!(special, devices.map(|name| format!("dev/{name}")));
    let mounts = fs::read_to_string(second.proc("mountinfo")).unwrap();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (target, flags) = (fields.nth(4).unwrap(), fields.next().unwrap());
        let is_own = ["/", "/proc"].contains(&target) || target.starts_with("/dev/");
        assert!(
            is_own || flags.split(',').any(|flag| flag == "ro"),
            "{line}"
        );
        assert!(flags.contains("nosuid"), "{line}");
        // Neither shared with another mount nor a copy that follows one.
        assert!(
            !line.contains("shared:") && !line.contains("master:"),
            "{line}"
        );
    }
    let descriptors = fs::read_dir(second.proc("fd")).unwrap().flatten();
    for entry in descriptors {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.display().to_string();
        let own = [
            "pipe:",
            "socket:",
            "anon_inode:",
            "/dev/null",
            "/var/lib/containerd",
            "/run",
            // It reads its own mounts while it starts.
            "/proc/2/",
        ];
        assert!(own.iter().any(|own| target.starts_with(own)), "{target}");
    }
    let environment = fs::read(second.proc("environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    let mut variables = environment.split('\0');
    assert!(variables.any(|variable| variable == "OWN=1"));
    assert!(!environment.contains("NOTIFY_SOCKET"));
}
