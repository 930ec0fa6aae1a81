//! Files and directories that a change can't write: each is refused before the first write, and `doctor` says the same.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::support::{CONFIG, Host, shim};
use farrier::handoff::Outcome;
use farrier::installer;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rstest::rstest;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

const CONFIG_PATH: &str = "/etc/containerd/config.toml";

/// Checks that an installation is refused with this problem and this help, and writes nothing, and that `doctor` has both.
async fn assert_refused(host: &Host, problem: &str, help: &str) {
    let before = host.tree(true);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(report.reason.as_deref(), Some(problem));
    assert_eq!(report.remedy.as_deref(), Some(help));
    assert_eq!(host.tree(true), before);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let mut findings = diagnosis.findings.iter();
    assert!(
        findings.any(|it| it.problem == problem && it.remedy == help),
        "{diagnosis:?}"
    );
}

/// Runs `work` on a thread with mounts of its own.
fn with_mounts(work: impl AsyncFnOnce() + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work());
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

fn bind(source: &Path, target: &Path, flags: MsFlags) {
    let flags = MsFlags::MS_BIND | flags;
    mount(Some(source), target, None::<&str>, flags, None::<&str>).unwrap();
}

#[rstest]
#[case::of_the_configuration(
    "/etc/containerd",
    "/etc/containerd/config.toml is on a read-only file system"
)]
#[case::of_the_state(
    "/var/lib",
    "failed to write /var/lib/farrier: /var/lib is on a read-only file system"
)]
#[case::of_the_binaries(
    "/opt",
    "failed to write /opt/farrier/store: /opt is on a read-only file system"
)]
fn a_read_only_file_system_of_an_image_refuses_the_change(
    #[case] directory: &str,
    #[case] problem: &str,
) {
    with_mounts(async || {
        let host = Host::stocked();
        let path = host.path(directory);
        std::fs::create_dir_all(&path).unwrap();
        bind(&path, &path, MsFlags::empty());
        bind(&path, &path, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        assert_refused(&host, problem, "remount the file system read-write").await;
        bind(&path, &path, MsFlags::MS_REMOUNT);
        let report = host.install(&[shim("a")], &[]).await;
        assert_eq!(report.result, Outcome::Applied, "{report:?}");
    });
}

#[test]
fn a_configuration_that_is_a_mount_point_refuses_the_change() {
    with_mounts(async || {
        let host = Host::stocked();
        host.write("/srv/config.toml", CONFIG.as_bytes());
        bind(
            &host.path("/srv/config.toml"),
            &host.path(CONFIG_PATH),
            MsFlags::empty(),
        );
        let problem =
            format!("{CONFIG_PATH} is a mount point, and no other file can take its place");
        let help = format!(
            "unmount {CONFIG_PATH} and write the file there itself, or mount its directory instead of the file"
        );
        assert_refused(&host, &problem, &help).await;
    });
}

/// A path with an attribute of chattr(1), which goes with this value.
struct Marked {
    path: PathBuf,
    flags: IFlags,
}

impl Marked {
    /// `None` on a file system without such attributes.
    fn new(path: PathBuf, attribute: IFlags) -> Option<Self> {
        let file = File::open(&path).unwrap();
        let flags = ioctl_getflags(&file).ok()?;
        ioctl_setflags(&file, flags | attribute).ok()?;
        Some(Self { path, flags })
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let file = File::open(&self.path).unwrap();
        ioctl_setflags(file, self.flags).unwrap();
    }
}

#[rstest]
#[case::file(CONFIG_PATH, CONFIG_PATH)]
#[case::its_directory("/etc/containerd", CONFIG_PATH)]
#[case::directory_of_binaries("/opt", "/opt/farrier/store")]
#[case::directory_of_the_state("/var/lib/farrier", "/var/lib/farrier")]
#[tokio::test]
async fn an_immutable_or_append_only_path_refuses_the_change(
    #[case] path: &str,
    #[case] written: &str,
    #[values(true, false)] is_immutable: bool,
) {
    let (attribute, word, option) = if is_immutable {
        (IFlags::IMMUTABLE, "immutable", "-i")
    } else {
        (IFlags::APPEND, "append-only", "-a")
    };
    let host = Host::stocked();
    if path != CONFIG_PATH {
        std::fs::create_dir_all(host.path(path)).unwrap();
    }
    let Some(_marked) = Marked::new(host.path(path), attribute) else {
        return;
    };
    let problem = if path == written {
        format!("{path} is {word}")
    } else {
        format!("failed to write {written}: {path} is {word}")
    };
    let help = format!("run `chattr {option} {path}` on the host");
    assert_refused(&host, &problem, &help).await;
}

#[rstest]
#[case::of_ostree(
    "/opt",
    "var/opt",
    "failed to write /opt/farrier/store: /opt is a symlink to /var/opt, which does not exist",
    "/var/opt"
)]
#[case::of_the_state(
    "/var/lib",
    "../srv/lib",
    "failed to write /var/lib/farrier: /var/lib is a symlink to /var/../srv/lib, which does not exist",
    "/var/../srv/lib"
)]
#[case::of_the_configuration(
    CONFIG_PATH,
    "/srv/c/config.toml",
    "/etc/containerd/config.toml is a symlink to /srv/c/config.toml, and /srv/c does not exist",
    "/srv/c"
)]
#[tokio::test]
async fn a_symlink_into_nothing_refuses_the_change_and_the_help_is_enough(
    #[case] link: &str,
    #[case] target: &str,
    #[case] problem: &str,
    #[case] missing: &str,
) {
    let host = Host::stocked();
    let path = host.path(link);
    let _ = std::fs::remove_file(&path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, &path).unwrap();
    let help = format!("run `mkdir -p {missing}` on the host, or remove the symlink");
    assert_refused(&host, problem, &help).await;
    std::fs::create_dir_all(host.path(missing)).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert!(path.is_symlink());
}

#[tokio::test]
async fn the_other_hard_links_of_a_configuration_are_told_and_left_alone() {
    let host = Host::stocked();
    std::fs::hard_link(host.path(CONFIG_PATH), host.path("/etc/backup.toml")).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let note =
        "/etc/containerd/config.toml has other hard links (1), which keep the former contents";
    assert!(
        report.notes.iter().any(|it| it.starts_with(note)),
        "{report:?}"
    );
    let backup = std::fs::read_to_string(host.path("/etc/backup.toml")).unwrap();
    assert_eq!(backup, CONFIG);
    let report = host.uninstall(None).await;
    assert!(!report.notes.iter().any(|it| it.contains("hard links")));
    assert_eq!(host.config(), CONFIG);
}
