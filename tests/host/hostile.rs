//! Damaged hosts, hand-off directories and disks: each is refused in one sentence, and no file is left behind.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use super::random::Random;
use super::support::{CONFIG, Host, program, shim};
use farrier::handoff::{OptionValue, Outcome, ProvisionReport};
use farrier::installer;
use farrier::names::sha256_hex;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rstest::rstest;

const CONFIG_PATH: &str = "/etc/containerd/config.toml";

fn fifo(path: &Path) {
    mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
}

#[rstest]
#[case::fifo(fifo, "not a regular file")]
#[case::directory(|path: &Path| std::fs::create_dir(path).unwrap(), "not a regular file")]
#[case::socket(|path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()), "failed to open")]
#[case::circle(|path: &Path| symlink("config.toml", path).unwrap(), "failed to open")]
#[case::sparse_file_of_a_tebibyte(|path: &Path| std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap(), "larger than")]
#[case::no_text(|path: &Path| std::fs::write(path, b"\xff\xfe").unwrap(), "UTF-8")]
#[tokio::test]
async fn a_configuration_that_is_no_text_file_is_refused_and_left_alone(
    #[case] make: impl Fn(&Path),
    #[case] sentence: &str,
) {
    let host = Host::stocked();
    let path = host.path(CONFIG_PATH);
    std::fs::remove_file(&path).unwrap();
    make(&path);
    let inode = path.symlink_metadata().unwrap().ino();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert!(report.reason.unwrap().contains(sentence));
    assert_eq!(path.symlink_metadata().unwrap().ino(), inode);
    assert!(!host.path("/opt").exists() && !host.path("/var").exists());
}

#[rstest]
#[case::dangling("../settings.toml", "/etc/settings.toml", None)]
#[case::to_a_file("../settings.toml", "/etc/settings.toml", Some(CONFIG))]
#[case::out_of_the_root("/../../../../etc/settings.toml", "/etc/settings.toml", Some(CONFIG))]
#[tokio::test]
async fn a_configuration_behind_a_symlink_is_edited_inside_the_root(
    #[case] target: &str,
    #[case] real: &str,
    #[case] text: Option<&str>,
) {
    let host = Host::new(None);
    host.write("/srv/a", &program(1));
    std::fs::create_dir(host.path("/etc/containerd")).unwrap();
    symlink(target, host.path(CONFIG_PATH)).unwrap();
    if let Some(text) = text {
        host.write(real, text.as_bytes());
    }
    let before = host.tree(false);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert!(host.path(CONFIG_PATH).is_symlink());
    let written = std::fs::read_to_string(host.path(real)).unwrap();
    assert!(written.contains("containerd-shim-a"));
    host.uninstall(None).await;
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn a_directory_symlink_out_of_the_root_is_resolved_inside_it() {
    let host = Host::stocked();
    std::fs::rename(host.path("/etc/containerd"), host.path("/real")).unwrap();
    symlink("/real", host.path("/etc/containerd")).unwrap();
    let before = host.tree(false);
    host.install(&[shim("a")], &[]).await;
    let text = std::fs::read_to_string(host.path("/real/config.toml")).unwrap();
    assert!(text.contains("containerd-shim-a"));
    host.uninstall(None).await;
    assert_eq!(host.tree(false), before);
}

#[tokio::test]
async fn a_configuration_keeps_its_owner_mode_and_attributes() {
    let host = Host::stocked();
    let path = host.path(CONFIG_PATH);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    // Only the superuser may give a file away, and not every file system has attributes: what could be set must stay.
    let _ = std::os::unix::fs::chown(&path, Some(12), Some(34));
    let _ = xattr::set(&path, "user.kept", b"label");
    let state = || {
        let metadata = path.metadata().unwrap();
        let label = xattr::get(&path, "user.kept").ok().flatten();
        (metadata.uid(), metadata.gid(), metadata.mode(), label)
    };
    let before = state();
    host.install(&[shim("a")], &[]).await;
    assert_eq!(state(), before);
    host.uninstall(None).await;
    assert_eq!(state(), before);
    assert_eq!(host.config(), CONFIG);
}

#[tokio::test]
async fn a_damaged_binary_is_repaired_with_its_mode() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let path = host.path(&format!("/opt/farrier/store/{}", sha256_hex(&program(1))));
    std::fs::write(&path, "damaged").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    assert_eq!(std::fs::read(&path).unwrap(), program(1));
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn files_of_others_in_directories_of_farrier_are_kept() {
    let host = Host::stocked();
    host.write("/opt/farrier/bin/tool", b"theirs");
    host.write("/opt/farrier/bin/containerd-shim-kata", b"theirs");
    symlink("/etc", host.path("/opt/farrier/bin/containerd-shim-link")).unwrap();
    host.write("/opt/farrier/store/notes", b"theirs");
    let before = host.tree(false);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    host.install(&[shim("b")], &[]).await;
    host.uninstall(None).await;
    assert_eq!(host.tree(false), before);
}

#[rstest]
#[case("bin")]
#[case("store")]
#[tokio::test]
async fn a_symlink_in_place_of_a_directory_of_farrier_is_refused(#[case] name: &str) {
    let host = Host::stocked();
    host.write("/usr/bin/sh", b"theirs");
    std::fs::create_dir_all(host.path("/opt/farrier")).unwrap();
    symlink("/usr/bin", host.path(&format!("/opt/farrier/{name}"))).unwrap();
    let before = host.tree(true);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert!(report.reason.unwrap().contains("is a symlink"));
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_forged_state_file_removes_nothing() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let file = "/var/lib/farrier/state.json";
    let text = std::fs::read_to_string(host.path(file)).unwrap();
    host.write(file, text.replace("/opt/farrier", "/").as_bytes());
    host.write("/bin/sh", b"theirs");
    let before = host.tree(true);
    for report in [
        host.install(&[shim("b")], &[]).await,
        host.uninstall(None).await,
    ] {
        assert_eq!(report.result, Outcome::Refused, "{report:?}");
    }
    assert_eq!(host.tree(true), before);
}

#[rstest]
#[case::default_runtime("runc", None, "\"runc\"")]
#[case::option("b", Some("a\u{1b}[31m\nb"), "invalid name")]
#[tokio::test]
async fn an_invalid_handler_or_option_name_is_refused_for_its_shim_alone(
    #[case] name: &str,
    #[case] option: Option<&str>,
    #[case] sentence: &str,
) {
    let host = Host::new(None);
    host.write("/srv/a", &program(1));
    host.write(&format!("/srv/{name}"), &program(2));
    let mut bad = shim(name);
    if let Some(option) = option {
        bad.options
            .insert(option.to_owned(), OptionValue::Boolean(true));
    }
    let handoff = tempfile::tempdir().unwrap();
    let report = host.provision(&[shim("a"), bad], handoff.path()).await;
    assert_eq!(report.result, Outcome::Partial, "{report:?}");
    let reason = report.reason.unwrap();
    assert!(reason.contains(sentence), "{reason}");
    assert!(!reason.contains(char::is_control), "{reason:?}");
    assert!(host.path("/opt/farrier/bin/containerd-shim-a").exists());
}

#[rstest]
#[case::state("state.json")]
#[case::journal("journal.json")]
#[tokio::test]
async fn a_state_file_or_journal_of_a_later_release_is_refused(#[case] file: &str) {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let text = match file {
        "state.json" => std::fs::read_to_string(host.path("/var/lib/farrier/state.json"))
            .unwrap()
            .replace("farrier.dev/v1", "farrier.dev/v9"),
        _ => r#"{"apiVersion":"farrier.dev/v9","undo":[],"declares":[],"root":"/c","unit":"u","socket":"/s","commits":null}"#.to_owned(),
    };
    host.write(&format!("/var/lib/farrier/{file}"), text.as_bytes());
    let before = host.tree(true);
    for report in [
        host.install(&[shim("b")], &[]).await,
        host.uninstall(None).await,
    ] {
        assert_eq!(report.result, Outcome::Refused, "{report:?}");
        assert!(report.reason.unwrap().contains("farrier.dev/v9"));
    }
    assert_eq!(host.tree(true), before);
}

#[tokio::test]
async fn a_hand_off_file_of_another_type_size_or_syntax_is_refused() {
    let host = Host::stocked();
    let handoff = tempfile::tempdir().unwrap();
    let at = |name: &str| handoff.path().join(name);
    let result = r#"{"shim":"x","binarySha256":null,"reason":null}"#;
    for name in ["fifo", "folder", "absent", "short"] {
        std::fs::write(at(&format!("{name}.json")), result).unwrap();
    }
    fifo(&at("fifo.bin"));
    std::fs::create_dir(at("folder.bin")).unwrap();
    std::fs::write(at("short.bin"), b"\x7fELF").unwrap();
    fifo(&at("pipe.json"));
    std::fs::write(at("huge.json"), vec![b'['; 1 << 20]).unwrap();
    let colour = r#"{"shim":"x","binarySha256":null,"reason":"\u001b[31m\u202eevil\nline"}"#;
    std::fs::write(at("colour.json"), colour).unwrap();
    let names = [
        "absent", "colour", "fifo", "folder", "huge", "pipe", "short",
    ];
    let shims = names.map(|name| {
        let mut shim = shim(name);
        shim.location = "https://example.org/a.tar.gz".to_owned();
        shim
    });
    let report = host.provision(&shims, handoff.path()).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(report.handlers.len(), names.len());
    for handler in report.handlers {
        let reason = handler.reason.unwrap();
        assert!(handler.sha256.is_none() && !reason.contains(['\u{1b}', '\u{202e}', '\n']));
    }
    assert_eq!(host.config(), CONFIG);
}

/// Runs the program with a limit of `blocks` times 512 bytes for each file, as on a full disk.
fn install_on_a_full_disk(host: &Host, blocks: u32) -> Output {
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("/bin/sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_farrier")])
        .args(["install", "--offline", "-o", "json", "--host-root"])
        .arg(host.root())
        .args(["--shim=a=file:///srv/a", "--shim=large=file:///srv/large"])
        .output()
        .unwrap()
}

#[rstest]
#[case::no_space_at_all(0, 3, "refused")]
#[case::the_journal_fits(20, 3, "refused")]
#[tokio::test]
async fn a_full_disk_leaves_no_partial_file(
    #[case] blocks: u32,
    #[case] status: i32,
    #[case] result: &str,
) {
    let host = Host::stocked();
    let mut large = program(7);
    large.resize(1 << 20, 7);
    host.write("/srv/large", &large);
    let before = host.tree(false);
    let output = install_on_a_full_disk(&host, blocks);
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    let report = ProvisionReport::from_json(report.trim()).unwrap();
    let outcome = serde_json::to_value(report.result).unwrap();
    assert_eq!(outcome, result);
    assert!(report.reason.unwrap().contains("File too large"));
    let left: Vec<_> = host
        .tree(false)
        .into_keys()
        .filter(|path| !before.contains_key(path))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(host.config(), CONFIG);
}

#[test]
fn a_report_to_a_full_device_keeps_the_exit_status() {
    let host = Host::stocked();
    let install = |name: &str| {
        let out = std::fs::File::options().write(true).open("/dev/full");
        Command::new(env!("CARGO_BIN_EXE_farrier"))
            .args(["install", "--offline", "-o", "json", "--host-root"])
            .arg(host.root())
            .arg(format!("--shim={name}=file:///srv/a"))
            .stdout(out.unwrap())
            .output()
            .unwrap()
    };
    let well = install("a");
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    assert!(!well.stderr.is_empty());
    assert!(host.config().contains("containerd-shim-a"));
    assert_eq!(install("../a").status.code(), Some(2));
}

#[test]
fn a_file_in_place_of_a_directory_is_reported_with_help() {
    let host = Host::stocked();
    host.write("/opt", b"a file");
    let output = Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(["install", "--offline", "-o", "json", "--host-root"])
        .arg(host.root())
        .arg("--shim=a=file:///srv/a")
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    let report = ProvisionReport::from_json(report.trim()).unwrap();
    assert_eq!(
        report.remedy.as_deref(),
        Some("replace /opt with a directory")
    );
    assert_eq!(host.config(), CONFIG);
}

#[rstest]
#[case::absent("absent")]
#[case::a_file("etc/os-release")]
fn a_host_root_that_is_not_a_directory_is_reported_with_help(#[case] root: &str) {
    let host = Host::stocked();
    let output = Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(["uninstall", "--all", "--offline", "-o", "json"])
        .arg("--host-root")
        .arg(host.root().join(root))
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    let report = ProvisionReport::from_json(report.trim()).unwrap();
    assert!(report.remedy.unwrap().starts_with("check that --host-root"));
}

#[rstest]
#[tokio::test]
async fn any_sequence_of_installs_by_two_owners_is_restored_by_an_uninstall(
    #[files("tests/config/*/in.toml")] case: std::path::PathBuf,
) {
    let host = Host::stocked();
    host.write(CONFIG_PATH, &std::fs::read(case).unwrap());
    let handoff = tempfile::tempdir().unwrap();
    let before = host.tree(false);
    let untouched = host
        .path("/etc/os-release")
        .metadata()
        .unwrap()
        .ctime_nsec();
    let mut random = Random(3);
    let set = |bits: u64, names: [&str; 2]| {
        let chosen = (0..2).filter(|bit| bits >> bit & 1 == 1);
        chosen
            .map(|bit: usize| {
                let mut shim = shim(names[bit]);
                shim.location = ["file:///srv/a", "file:///srv/b"][bit].to_owned();
                shim
            })
            .collect::<Vec<_>>()
    };
    for _ in 0..8 {
        let bits = random.below(4);
        let report = match random.below(3) {
            0 => host.install(&set(bits, ["a", "b.c"]), &["later"]).await,
            1 => host.provision(&set(bits, ["d", "e"]), handoff.path()).await,
            _ => host.uninstall(Some(&["a"])).await,
        };
        if report.result == Outcome::Refused {
            // The file can't be edited: the report has a reason, and the host is unchanged.
            assert!(report.reason.is_some());
            assert_eq!(host.tree(false), before);
        } else {
            assert!(report.reason.is_none(), "{report:?}");
        }
    }
    let report = host.uninstall(None).await;
    let well = [Outcome::Applied, Outcome::Unchanged, Outcome::Refused];
    assert!(well.contains(&report.result), "{report:?}");
    assert_eq!(host.tree(false), before);
    let after = host
        .path("/etc/os-release")
        .metadata()
        .unwrap()
        .ctime_nsec();
    assert_eq!(after, untouched);
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Gives a path to a user who is not root; returns whether this process may do that.
fn give(path: &Path) -> bool {
    std::os::unix::fs::lchown(path, Some(1000), Some(1000)).is_ok()
}

/// Fails unless `install` is refused before its first act with `help`, and `doctor` says the same.
async fn assert_untrusted(host: &Host, help: &str) {
    let before = host.tree(false);
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    assert_eq!(report.remedy.as_deref(), Some(help), "{report:?}");
    let reason = report.reason.unwrap();
    assert!(reason.starts_with("failed to use /"), "{reason}");
    assert_eq!(host.tree(false), before);
    let diagnosis = installer::doctor(&host.host_options()).await;
    let findings = diagnosis.findings.iter();
    let mut findings = findings.map(|finding| (&finding.problem, &finding.remedy));
    assert!(
        findings.any(|(problem, remedy)| *problem == reason && remedy == help),
        "{diagnosis:?}"
    );
}

#[rstest]
#[case::the_directory("/opt/farrier", "/opt/farrier")]
#[case::one_of_its_directories("/opt/farrier/bin", "/opt/farrier/bin")]
#[case::the_store("/opt/farrier/store", "/opt/farrier/store")]
#[case::the_directory_above("/opt/farrier", "/opt")]
#[case::of_the_state("/var/lib/farrier", "/var/lib/farrier")]
#[case::above_the_state("/var/lib", "/var/lib")]
#[case::of_the_lock("/run", "/run")]
#[tokio::test]
async fn a_directory_of_farrier_that_another_user_can_write_to_is_refused(
    #[case] made: &str,
    #[case] path: &str,
) {
    let host = Host::stocked();
    std::fs::create_dir_all(host.path(made)).unwrap();
    set_mode(&host.path(path), 0o777);
    assert_untrusted(&host, &format!("run `chmod go-w {path}` on the host")).await;
    set_mode(&host.path(path), 0o755);
    if !give(&host.path(path)) {
        return;
    }
    assert_untrusted(&host, &format!("run `chown root:root {path}` on the host")).await;
    std::os::unix::fs::chown(host.path(path), Some(0), Some(0)).unwrap();
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
}

#[rstest]
#[case::of_the_user(|path: &Path, _: &Path| give(path))]
#[case::writable_by_all(|path: &Path, _: &Path| {
    set_mode(path, 0o777);
    true
})]
#[case::symlink_of_root(|path: &Path, home: &Path| {
    std::fs::rename(path, home).unwrap();
    symlink("/srv/planted", path).unwrap();
    give(home)
})]
#[case::that_root_took_over(|_: &Path, _: &Path| true)]
#[tokio::test]
async fn a_file_in_the_store_that_another_user_made_is_replaced(
    #[case] plant: impl Fn(&Path, &Path) -> bool,
) {
    let host = Host::stocked();
    let stored = format!("/opt/farrier/store/{}", sha256_hex(&program(1)));
    host.write(&stored, &program(1));
    let (stored, home) = (host.path(&stored), host.path("/srv/planted"));
    set_mode(&stored, 0o755);
    let planted = std::fs::File::open(&stored).unwrap();
    if !plant(&stored, &home) {
        return;
    }
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let now = stored.symlink_metadata().unwrap();
    assert!(now.is_file());
    assert_eq!(
        (now.uid(), now.mode() & 0o7777),
        (nix::unistd::geteuid().as_raw(), 0o755)
    );
    assert_ne!(now.ino(), planted.metadata().unwrap().ino());
    assert_eq!(std::fs::read(&stored).unwrap(), program(1));
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
}

#[rstest]
#[case::of_a_user(
    "/srv/a",
    "run `chown root:root /srv/a` on the host, or specify its SHA-256"
)]
#[case::in_a_directory_of_a_user(
    "/srv",
    "run `chown root:root /srv` on the host, or specify its SHA-256"
)]
#[case::in_a_directory_of_all(
    "/srv",
    "move the artifact to a directory that only root can write to, or specify its SHA-256"
)]
#[tokio::test]
async fn a_file_of_another_user_is_no_artifact_of_a_cluster_without_a_digest(
    #[case] path: &str,
    #[case] help: &str,
) {
    let host = Host::stocked();
    let handoff = tempfile::tempdir().unwrap();
    if help.starts_with("move") {
        set_mode(&host.path(path), 0o1777);
    } else if !give(&host.path(path)) {
        return;
    }
    let report = host.provision(&[shim("a")], handoff.path()).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
    let handler = &report.handlers[0];
    let reason = handler.reason.as_deref().unwrap();
    assert!(
        reason.starts_with("failed to trust artifact /srv/a"),
        "{reason}"
    );
    let remedy = handler.remedy.as_deref().unwrap();
    assert!(remedy.starts_with(help), "{remedy}");
    // A digest in the request protects the file, and an operator on the command line chooses it.
    let mut pinned = shim("a");
    pinned.binary_sha256 = Some(farrier::handoff::Sha256Digest::of(&program(1)));
    let report = host.provision(&[pinned], handoff.path()).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let mut other = shim("other");
    other.location = "file:///srv/a".to_owned();
    let report = host.install(&[other], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
}

#[tokio::test]
async fn a_verification_cache_of_another_user_is_ignored_and_replaced() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let record = host.path("/var/lib/farrier/verified.json");
    let text = std::fs::read_to_string(&record).unwrap();
    // The digest of the artifact on the host, which is the binary, becomes that of another binary.
    let (sha256, other) = (sha256_hex(&program(1)), sha256_hex(&program(2)));
    std::fs::write(&record, text.replace(&sha256, &other)).unwrap();
    if !give(&record) {
        return;
    }
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    assert_eq!(std::fs::read_to_string(&record).unwrap(), text);
    assert_eq!(record.metadata().unwrap().uid(), 0);
}

#[tokio::test]
async fn a_state_file_of_another_user_is_refused() {
    let host = Host::stocked();
    host.install(&[shim("a")], &[]).await;
    let path = host.path("/var/lib/farrier/state.json");
    if give(&path) {
        let help = "run `chown root:root /var/lib/farrier/state.json` on the host";
        let report = host.uninstall(None).await;
        assert_eq!(report.result, Outcome::Refused, "{report:?}");
        assert_eq!(report.remedy.as_deref(), Some(help));
        std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
        assert_eq!(host.uninstall(None).await.result, Outcome::Applied);
    }
}

#[rstest]
#[case::of_flatcar("/opt", "var/opt")]
#[case::absolute("/opt", "/var/opt")]
#[case::to_a_directory_that_does_not_exist_yet("/opt", "sysroot/opt")]
#[case::of_the_directory_itself("/opt/farrier", "/srv/farrier")]
#[case::of_the_state("/var/lib/farrier", "../../srv/state")]
#[tokio::test]
async fn a_symlink_of_root_in_place_of_a_directory_is_followed(
    #[case] path: &str,
    #[case] target: &str,
) {
    let host = Host::stocked();
    let link = host.path(path);
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, &link).unwrap();
    if !target.contains("sysroot") {
        let real = link.parent().unwrap().join(target);
        let real = match target.strip_prefix('/') {
            Some(target) => host.root().join(target),
            None => real,
        };
        std::fs::create_dir_all(real).unwrap();
    }
    let diagnosis = installer::doctor(&host.host_options()).await;
    let problems: Vec<_> = diagnosis.findings.iter().map(|it| &it.problem).collect();
    assert!(
        !problems
            .iter()
            .any(|problem| problem.starts_with("failed to use")),
        "{problems:?}"
    );
    if target.contains("sysroot") {
        return;
    }
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    // The target of the symlink is another user's.
    let real = std::fs::canonicalize(&link);
    if let Ok(real) = real.filter_below(host.root())
        && give(&real)
    {
        let report = host.install(&[shim("b")], &[]).await;
        assert_eq!(report.result, Outcome::Refused, "{report:?}");
    }
}

/// A path that is still below the root of the host, as those of absolute symlinks are not for this machine.
trait FilterBelow: Sized {
    fn filter_below(self, root: &Path) -> std::io::Result<std::path::PathBuf>;
}

impl FilterBelow for std::io::Result<std::path::PathBuf> {
    fn filter_below(self, root: &Path) -> Self {
        let path = self?;
        if path.starts_with(root) {
            Ok(path)
        } else {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }
}

#[tokio::test]
async fn an_image_that_an_ordinary_user_has_unpacked_can_be_prepared_by_root() {
    let host = Host::stocked();
    std::fs::create_dir_all(host.path("/opt")).unwrap();
    std::fs::create_dir_all(host.path("/var/lib")).unwrap();
    for path in ["/", "/opt", "/var", "/var/lib"] {
        if !give(&host.path(path)) {
            return;
        }
    }
    let report = host.install(&[shim("a")], &[]).await;
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    // A third user has no business in the image.
    std::os::unix::fs::chown(host.path("/opt"), Some(1001), None).unwrap();
    let report = host.install(&[shim("b")], &[]).await;
    assert_eq!(report.result, Outcome::Refused, "{report:?}");
}

/// Runs the program on an image in `root`, as the path is written.
fn offline(directory: &Path, root: &str, without_chroot: bool) -> Output {
    let farrier = env!("CARGO_BIN_EXE_farrier");
    let mut command = if without_chroot && nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_chroot", farrier]);
        command
    } else {
        Command::new(farrier)
    };
    command
        .current_dir(directory)
        .args([
            "install",
            "--offline",
            "--shim=a=file:///srv/a",
            "-o",
            "json",
        ])
        .args(["--host-root", root]);
    command.output().unwrap()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_relative_host_root_is_entered_like_an_absolute_one() {
    let host = Host::new(Some(CONFIG));
    host.write("/srv/a", &super::support::failing("no such plugin"));
    let name = host.root().file_name().unwrap().to_str().unwrap();
    let above = host.root().parent().unwrap();
    for root in [
        name,
        &format!("./{name}/../{name}"),
        host.root().to_str().unwrap(),
    ] {
        let output = offline(above, root, false);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if nix::unistd::geteuid().is_root() {
            assert!(
                text.contains("does not run on the host: no such plugin"),
                "{root}: {text}"
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_host_root_that_can_not_be_entered_is_told() {
    let host = Host::new(Some(CONFIG));
    host.write("/srv/a", &super::support::failing("no such plugin"));
    let output = offline(Path::new("/"), host.root().to_str().unwrap(), true);
    let report: ProvisionReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.result, Outcome::Applied, "{report:?}");
    let mut notes = report.notes.iter();
    assert!(
        notes.any(
            |note| note.contains("failed to try containerd and the shims in the image")
                && note.contains("CAP_SYS_CHROOT")
        ),
        "{report:?}"
    );
}
