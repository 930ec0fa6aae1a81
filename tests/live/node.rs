//! A node without a cluster: a root, a process 1 and a service manager of its own, and a real containerd. No tests.
//!
//! The thread that creates a node gets mounts, a network and PIDs of its own, and so do the processes that it starts. All of them end with
//! the thread. A script with the interface of `OpenRC` replaces the service manager.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::containerd::{programs, set_up_network};
use crate::elf::{VERSION, executable, writing};
use crate::tree::tree;
use farrier::handoff::ProvisionReport;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The configuration of an administrator.
pub const CONFIG: &str = "# ours\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\" # theirs";

/// The path of [`CONFIG`].
pub const CONFIG_PATH: &str = "/etc/containerd/config.toml";

/// The file with the faults of the next starts of containerd, one per line: see [`RC_SERVICE`].
const FAULTS: &str = "/run/faults";

/// The script that replaces the service manager.
const RC_SERVICE: &str = include_str!("rc-service.sh");

/// The first steps of process 1, in the directory of its root, before it becomes `$0`. The processes are also visible outside the node.
const BOOT: &str = "mount -t proc proc proc
exec unshare --mount sh -ec 'pivot_root . .; umount -l .; exec chroot . $0' $0";

/// Reaps orphaned processes.
const INIT: &str = "#!/bin/bash\ntouch /run/booted\nsleep infinity & wait\n";

/// Time limit for a start, which takes 0.1 s on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Interval between two looks at a start.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The node.
pub struct Node {
    directory: PathBuf,
    boot: Child,
    /// The PID on this machine of the node's process 1.
    init: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        // This ends process 1, and with it all processes of the node.
        let _ = self.boot.kill();
        let _ = self.boot.wait();
        // Remaining mounts belong to the machine, so no file below them is removed.
        if umount2(&self.directory, MntFlags::MNT_DETACH).is_ok() {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Does `work` on a node of each release, one after the other.
pub fn on_each(work: impl Fn(&Path) + Sync) {
    on_these(&programs(), work);
}

/// As [`on_each`], for some of the releases.
pub fn on_these(releases: &[PathBuf], work: impl Fn(&Path) + Sync) {
    for release in releases {
        // A PID namespace has one process 1, and a thread has one PID namespace.
        let done = std::thread::scope(|scope| scope.spawn(|| work(release)).join());
        assert!(done.is_ok(), "on {}", release.display());
    }
}

/// As on a machine, only root may write to the directories above a program. By default, every user may write to a tmpfs (tmpfs(5)).
const ROOT_S: Option<&str> = Some("mode=755");

/// Writes a program from another process. No program can be executed while it is open for writing (execve(2)), and a child that another
/// thread of the tests has just forked has all files of this process open, until it executes its own program.
fn write_program(path: &Path, bytes: &[u8], mode: u32) {
    let mut install = Command::new("install")
        .arg(format!("--mode={mode:o}"))
        .arg("/dev/stdin")
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    install.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(install.wait().unwrap().success());
}

fn tmpfs(source: &str, target: &Path) {
    mount(
        Some(source),
        target,
        Some("tmpfs"),
        MsFlags::empty(),
        ROOT_S,
    )
    .unwrap();
}

fn no_data(source: &str, target: &Path, kind: &str, flags: MsFlags) {
    mount(Some(source), target, Some(kind), flags, None::<&str>).unwrap();
}

impl Node {
    /// A node on which containerd serves [`CONFIG`].
    pub fn new(release: &Path) -> Self {
        let node = Self::stopped(release, &[]);
        node.write(CONFIG_PATH, CONFIG.as_bytes(), 0o644);
        node.start();
        node
    }

    /// A node without running processes and without a configuration. `mounts` are separate file systems with their options (tmpfs(5)).
    pub fn stopped(release: &Path, mounts: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().disable_cleanup(true).tempdir();
        let directory = directory.unwrap().path().to_owned();
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        no_data(
            "",
            Path::new("/"),
            "",
            MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        );
        tmpfs("node", &directory);
        for name in [
            "etc/containerd",
            "run/openrc",
            "tmp",
            "var/lib",
            "var/log",
            "opt",
            "srv",
            "sbin",
            "proc",
            "sys",
            "dev",
            "usr",
        ] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), directory.join(name)).unwrap();
        }
        for name in ["sys", "dev", "usr"] {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            no_data(&format!("/{name}"), &directory.join(name), "", flags);
        }
        tmpfs("local", &directory.join("usr/local"));
        set_up_network();
        for (path, options) in mounts {
            let target = directory.join(path.trim_start_matches('/'));
            fs::create_dir_all(&target).unwrap();
            let (kind, none) = (Some("tmpfs"), MsFlags::empty());
            mount(Some("extra"), &target, kind, none, Some(*options)).unwrap();
        }
        write_program(&directory.join("sbin/init"), INIT.as_bytes(), 0o755);
        let (boot, init) = boot(&directory, "/sbin/init");
        let node = Self {
            directory,
            boot,
            init,
        };
        node.write("/etc/os-release", b"ID=alpine\n", 0o644);
        node.write(
            "/etc/machine-id",
            b"0123456789abcdef0123456789abcdef\n",
            0o644,
        );
        node.write("/sbin/rc-service", RC_SERVICE.as_bytes(), 0o755);
        node.copy(release, "/usr/local/bin/containerd");
        for (name, seed) in [("a", 1), ("b", 2)] {
            node.write(&format!("/srv/{name}"), &shim(seed, Run::Ends), 0o644);
        }
        node
    }

    /// The PID on this machine of the node's process 1.
    pub fn init(&self) -> &str {
        &self.init
    }

    /// A path on the node as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, bytes: &[u8], mode: u32) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if mode & 0o111 == 0 {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        } else {
            write_program(&path, bytes, mode);
        }
    }

    /// Copies a program of this machine to the node. As for [`write_program`], another process does so.
    pub fn copy(&self, program: &Path, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let status = Command::new("cp").arg(program).arg(path).status();
        assert!(status.unwrap().success());
    }

    pub fn config(&self) -> String {
        fs::read_to_string(self.path(CONFIG_PATH)).unwrap()
    }

    /// Makes the next starts of containerd fail in these ways.
    pub fn fail(&self, faults: &[&str]) {
        self.write(FAULTS, (faults.join("\n") + "\n").as_bytes(), 0o644);
    }

    /// Makes the file system at `path` read-only, or writable again, for the node and for the test.
    pub fn remount(&self, path: &str, read_only: bool) {
        let mut flags = MsFlags::MS_REMOUNT;
        flags.set(MsFlags::MS_RDONLY, read_only);
        no_data("extra", &self.path(path), "", flags);
    }

    /// Ends all processes of the node, and starts the node again with `program` as process 1, which makes `/run/booted`.
    pub fn boot_again(&mut self, program: &str) {
        let _ = self.boot.kill();
        self.boot.wait().unwrap();
        let _ = fs::remove_file(self.path("/run/booted"));
        // The kernel creates no process in a PID namespace whose first process has ended.
        let own = fs::File::open("/proc/thread-self/ns/pid").unwrap();
        setns(own, CloneFlags::CLONE_NEWPID).unwrap();
        (self.boot, self.init) = boot(&self.directory, program);
    }

    /// Mounts the directory `path` over itself with these flags, for the test only: the node's own view is unchanged.
    pub fn restrict(&self, path: &str, flags: MsFlags) {
        let path = self.path(path);
        fs::create_dir_all(&path).unwrap();
        no_data(&path.to_string_lossy(), &path, "", MsFlags::MS_BIND);
        no_data(
            "",
            &path,
            "",
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags,
        );
    }

    /// Starts containerd by hand, and waits until it serves.
    pub fn start(&self) {
        self.start_service("containerd");
    }

    /// As [`Node::start`], where containerd is a part of another service.
    pub fn start_service(&self, service: &str) {
        self.start_without_waiting(service);
        self.await_cri();
    }

    /// As [`Node::start_service`], without the wait.
    pub fn start_without_waiting(&self, service: &str) {
        let status = Command::new("nsenter")
            .args(["--mount", "--root", "--target", &self.init])
            .args(["/sbin/rc-service", service, "restart"])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits until containerd serves.
    pub fn await_cri(&self) {
        let since = Instant::now();
        while !self.serves().unwrap_or_default() {
            assert!(since.elapsed() < LIMIT, "{}", self.log());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Starts a script on the node, and does not wait for its end.
    pub fn leave(&self, script: &str) {
        let child = Command::new("nsenter")
            .args(["--mount", "--root", "--target", &self.init])
            .args(["setsid", "--fork", "bash", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(child.unwrap().success());
    }

    /// The PID of containerd on the node.
    pub fn process(&self) -> String {
        fs::read_to_string(self.path("/run/containerd.pid")).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("/var/log/containerd.log")).unwrap_or_default()
    }

    /// The program with the root of this node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farrier"));
        command
            .args(arguments)
            .arg("--host-root")
            .arg(&self.directory);
        command
    }

    pub fn farrier(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a change to its end; returns the exit status and the report.
    pub fn change(&self, arguments: &[&str]) -> (i32, ProvisionReport) {
        Self::read(&self.farrier(&[arguments, &["-o", "json"]].concat()))
    }

    /// As [`Node::change`], in a PID namespace of its own, as in a pod.
    pub fn change_from_a_pod(&self, arguments: &[&str]) -> (i32, ProvisionReport) {
        let program = self.command(&[arguments, &["-o", "json"]].concat());
        let output = Command::new("unshare")
            .args(["--pid", "--fork"])
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(Stdio::null())
            .output();
        Self::read(&output.unwrap())
    }

    fn read(output: &Output) -> (i32, ProvisionReport) {
        let report = serde_json::from_slice(&output.stdout);
        let words = String::from_utf8_lossy(&output.stderr);
        let report = report.unwrap_or_else(|error| panic!("{error}: {words}"));
        (output.status.code().unwrap(), report)
    }

    /// Whether `doctor` has a finding or a note with these words.
    pub fn is_found(&self, words: &str) -> bool {
        let output = self.farrier(&["doctor"]);
        assert!(output.status.code().is_some_and(|status| status < 2));
        String::from_utf8_lossy(&output.stdout).contains(words)
    }

    /// Fails if `doctor` finds a problem.
    pub fn assert_healthy(&self) {
        let output = self.farrier(&["doctor"]);
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words}");
    }

    /// Everything on the node that Farrier or the administrator could own: every path with its mode and its target or digest.
    pub fn tree(&self) -> BTreeMap<PathBuf, String> {
        let parts = ["etc", "opt", "srv", "var/lib"];
        let of_containerd = ["var/lib/containerd", "opt/containerd"];
        tree(&self.directory, &parts, &of_containerd, false)
    }
}

/// Starts `program` as process 1 with mounts of its own, and in the PID namespace of this thread's children.
fn boot(directory: &Path, program: &str) -> (Child, String) {
    let boot = Command::new("setpriv")
        // The node ends with this thread.
        .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork"])
        .args(["--kill-child", "sh", "-ec", BOOT, program])
        .current_dir(directory)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while !directory.join("run/booted").exists() {
        assert!(since.elapsed() < LIMIT);
        std::thread::yield_now();
    }
    let children = format!("/proc/{0}/task/{0}/children", boot.id());
    let init = fs::read_to_string(children).unwrap().trim().to_owned();
    let processes = fs::File::open(format!("/proc/{init}/ns/pid")).unwrap();
    setns(processes, CloneFlags::CLONE_NEWPID).unwrap();
    (boot, init)
}

/// The behaviour of a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Prints a version as shims do, and ends.
    Ends,
    /// Never ends.
    Hangs,
}

/// A program of 200 bytes for `x86_64`; programs differ by `seed`.
pub fn shim(seed: u8, run: Run) -> Vec<u8> {
    let code = match run {
        Run::Ends => writing(1, VERSION, 0),
        // mov eax, 34 (pause); syscall; jmp to the first
        Run::Hangs => vec![0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],
    };
    executable(&code, seed)
}
