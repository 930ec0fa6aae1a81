//! Runs real containerd programs in a root of their own, and reads their dumps, their handlers and their errors. No tests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::containerd::set_up_network;
use farrier::installer::containerd::cri::{self, Served};
use farrier::installer::host::HostRoot;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Time limit for a dump and a start. A dump takes 20 ms and a start 50 ms, and a few hundred on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// The path of each case's root configuration.
pub const CONFIG: &str = "/etc/containerd/config.toml";

/// The socket of every daemon.
const SOCKET: &str = "/run/containerd.sock";

/// A release and its program.
#[derive(Debug, Clone)]
pub struct Release {
    /// As in `1.7.35`.
    pub version: String,
    /// The program, on this machine.
    pub program: PathBuf,
}

/// The result of a start with a configuration.
#[derive(Debug)]
pub enum Start {
    /// The CRI answers.
    Up(Served),
    /// The process runs without its CRI.
    CriDown(String),
    /// The process ended.
    Refused(String),
}

impl fmt::Display for Start {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(served) => write!(formatter, "it serves {served:?}"),
            Self::CriDown(words) => write!(formatter, "its CRI is down: {words}"),
            Self::Refused(words) => write!(formatter, "it ends: {words}"),
        }
    }
}

/// A root file system for the daemons of one thread, which see nothing of the machine except its kernel.
pub struct Root {
    directory: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Drop for Root {
    fn drop(&mut self) {
        let free = |path: &PathBuf| umount2(path, MntFlags::MNT_DETACH).is_ok();
        // Remaining mounts belong to the machine, so no file below them is removed.
        if self.mounts.iter().rev().all(free) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Root {
    /// Creates the root. From now on, the thread and its processes have mounts and a network of their own.
    pub fn new(releases: &[Release]) -> Self {
        let directory = tempfile::Builder::new().disable_cleanup(true).tempdir();
        let mut root = Self {
            directory: directory.unwrap().path().to_owned(),
            mounts: Vec::new(),
        };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(none, "/", none, private, none).unwrap();
        for name in ["etc", "run", "tmp", "var/lib", "opt"] {
            fs::create_dir_all(root.path(name)).unwrap();
        }
        for name in ["proc", "sys", "dev"] {
            let target = root.path(name);
            fs::create_dir(&target).unwrap();
            root.bind(&Path::new("/").join(name), target);
        }
        for release in releases {
            let target = root.path(&program(release));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(&target, "").unwrap();
            root.bind(&release.program, target);
        }
        set_up_network();
        root
    }

    fn bind(&mut self, source: &Path, target: PathBuf) {
        let none = None::<&str>;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source), &target, none, bind, none).unwrap();
        self.mounts.push(target);
    }

    /// A path in the root as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.join(path.trim_start_matches('/'))
    }

    /// The root as the installer opens it.
    pub fn host(&self) -> HostRoot {
        HostRoot::open(&self.directory).unwrap()
    }

    /// Turns the root into a host with this release and with an artifact of a shim, and without files of Farrier.
    pub fn install(&self, release: &Release) {
        for directory in ["var/lib/farrier", "opt", "srv"] {
            let _ = fs::remove_dir_all(self.path(directory));
        }
        for directory in ["opt", "srv"] {
            fs::create_dir(self.path(directory)).unwrap();
        }
        let link = self.path("/usr/bin/containerd");
        let _ = fs::remove_file(&link);
        symlink(format!("containerd-{}", release.version), link).unwrap();
        fs::write(self.path("/etc/os-release"), "ID=debian\n").unwrap();
        // An existing program that prints its version as shims do.
        let shim = release.program.with_file_name("containerd-shim-runc-v2");
        fs::copy(shim, self.path("/srv/shim")).unwrap();
    }

    /// Every file below a directory with its bytes.
    pub fn files(&self, directory: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.path(directory)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    files.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        files
    }

    /// The daemon's dump of the configuration.
    pub async fn dump(&self, release: &Release) -> Result<String, String> {
        let (dump, _) = self.read(release).await?;
        Ok(dump)
    }

    /// The daemon's dump of the configuration, and the number of keys that the daemon reports as ignored.
    pub async fn read(&self, release: &Release) -> Result<(String, usize), String> {
        let dump = self
            .command(release)
            .args(["-c", CONFIG, "config", "dump"])
            .stderr(Stdio::piped())
            .output();
        let output = timeout(LIMIT, dump).await.unwrap().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            let ignored = words.lines().filter(|line| line.contains("unknown key"));
            let dump = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok((dump, ignored.count()))
        } else {
            let last = words.lines().rfind(|line| !line.is_empty());
            Err(last.unwrap_or("no words").to_owned())
        }
    }

    /// Starts a daemon with the configuration, reads the handlers that the daemon serves, and ends the daemon.
    pub async fn start(&self, release: &Release) -> Start {
        let _ = fs::remove_dir_all(self.path("/run"));
        fs::create_dir(self.path("/run")).unwrap();
        let log = self.path("/run/log");
        // The message for systemd: READY=1 once every plugin was initialised.
        let ready = UnixDatagram::bind(self.path("/run/ready")).unwrap();
        let mut daemon = self
            .command(release)
            .args(["-c", CONFIG, "--address", SOCKET, "--state", "/run/state"])
            // These directories stay between cases, as on a node.
            .args(["--root", &format!("/var/lib/{}", release.version)])
            .env("NOTIFY_SOCKET", "/run/ready")
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let outcome = timeout(LIMIT, self.outcome(&mut daemon, &ready)).await;
        let _ = daemon.start_kill();
        daemon.wait().await.unwrap();
        let words = || last_failure(&String::from_utf8_lossy(&fs::read(&log).unwrap()));
        match outcome {
            Ok(Some(Ok(served))) => Start::Up(served),
            Ok(Some(Err(error))) => Start::CriDown(format!("{error}: {}", words())),
            Ok(None) => Start::Refused(words()),
            Err(_) => Start::Refused(format!("it hangs: {}", words())),
        }
    }

    /// The served handlers once the daemon is ready; `None` if the daemon ends before that.
    async fn outcome(
        &self,
        daemon: &mut Child,
        ready: &UnixDatagram,
    ) -> Option<Result<Served, cri::Error>> {
        let mut message = [0; 4096];
        tokio::select! {
            read = ready.recv(&mut message) => assert!(message[..read.unwrap()].starts_with(b"READY=1")),
            _ = daemon.wait() => return None,
        }
        loop {
            match cri::served(&self.host(), SOCKET).await {
                Err(cri::Error::Unavailable { .. }) => tokio::task::yield_now().await,
                answer => return Some(answer),
            }
        }
    }

    fn command(&self, release: &Release) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.directory)
            .arg(program(release))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// The last line of a log that reports a failure.
fn last_failure(log: &str) -> String {
    let failure = |line: &&str| line.contains("fail") || line.starts_with("containerd: ");
    log.lines().rfind(failure).unwrap_or("no words").to_owned()
}

fn program(release: &Release) -> String {
    format!("/usr/bin/containerd-{}", release.version)
}
