//! Detects the distribution of a host, the paths of its files, and mounts that prevent a change. Reads only; `containerd::daemon` finds the
//! running containerd.

use std::io::Read as _;

use super::error::Error;
use crate::containerd_config::{ConfigFiles, SourceFile, TEXT_LIMIT};
use crate::handoff::Problem;
use crate::installer::containerd::daemon::{Daemon, Running};
use crate::installer::containerd::kubelet::Kubelet;
use crate::installer::containerd::openrc;
use crate::installer::containerd::process::without_deleted_mark;
use crate::installer::distro::editable_files;
use crate::installer::distro::{self, DistroSpec, Edited, Evidence};
use crate::installer::host::cpu::{Cpu, ELF_HEADER};
use crate::installer::host::lock::DIRECTORY as LOCK_DIRECTORY;
use crate::installer::host::owner::ProgramError;
use crate::installer::host::path::{file_name, parent_directory};
use crate::installer::host::{HostRoot, SMALL_FILE_LIMIT, Target};
use crate::installer::state::{InstallPaths, JOURNAL_FILE, STATE_FILE, State};

/// The help where the path of the configuration is unknown.
pub(super) const NAME_FILE: &str = "name the configuration file of containerd with --config";

/// The paths where packages install containerd, for a host on which no containerd runs.
pub(crate) const PROGRAMS: [&str; 3] = [
    "/usr/bin/containerd",
    "/usr/local/bin/containerd",
    "/opt/containerd/bin/containerd",
];

/// The row in the table of distributions that fits the host. `config` is the known path of containerd's configuration, `named` that of an operator or of
/// the last change, and `installed` says whether its unit starts an installed program.
pub(crate) fn detect_distro(
    host: &HostRoot,
    running: &Running,
    config: Option<&str>,
    named: Option<&str>,
    installed: bool,
) -> Result<&'static DistroSpec, Error> {
    let os_release = host
        .read_text("/etc/os-release", SMALL_FILE_LIMIT)?
        .unwrap_or_default();
    let init = match running.containerd.target() {
        Target::Live => host
            .read("/proc/1/cmdline", SMALL_FILE_LIMIT)
            .ok()
            .flatten(),
        Target::Image => None,
    };
    let init = String::from_utf8_lossy(&init.unwrap_or_default()).into_owned();
    let (daemon, kubelet) = (running.containerd.daemon(), running.kubelet.as_ref());
    let evidence = Evidence {
        program: daemon.map(|daemon| daemon.program.as_str()),
        unit: daemon.and_then(|daemon| daemon.unit.as_deref()),
        config,
        init: &init,
        endpoint: kubelet.and_then(Kubelet::endpoint),
        kubelet: kubelet.map_or("", |kubelet| &kubelet.arguments),
        enabled: kubelet.filter(|_| named.is_none()).and_then(enabled),
        installed: installed || PROGRAMS.into_iter().any(|path| host.seems_to_exist(path)),
        os_release: &os_release,
    };
    Ok(distro::detect(&evidence, |path| host.seems_to_exist(path)))
}

/// The distribution by whose unit alone the kubelet is known, if it starts its own containerd.
fn enabled(kubelet: &Kubelet) -> Option<&str> {
    let (id, _) = kubelet.of_distro.as_ref()?;
    (kubelet.endpoint == Ok(None)).then_some(id)
}

/// The files from which a distribution renders the configuration at `root`.
pub(crate) fn sources(
    host: &HostRoot,
    distro: &DistroSpec,
    root: &str,
) -> Result<Vec<SourceFile>, Error> {
    let read = |path: String| {
        let text = host.read_text(&path, TEXT_LIMIT as u64)?;
        Ok(SourceFile { path, text })
    };
    editable_files(distro.edited, root)
        .into_iter()
        .map(read)
        .collect()
}

/// The snippets of others that the distribution reads together with Farrier's. As Go's `filepath.Glob` for `*.toml`, the list has names that
/// begin with a dot.
pub(crate) fn snippets(
    host: &HostRoot,
    distro: &DistroSpec,
    root: &str,
) -> Result<Vec<SourceFile>, Error> {
    let Edited::Snippets { .. } = distro.edited else {
        return Ok(Vec::new());
    };
    let own = editable_files(distro.edited, root);
    let Some(directory) = own.first().map(|path| parent_directory(path)) else {
        return Ok(Vec::new());
    };
    let names = host.list(directory)?.into_iter();
    let paths = names
        .filter(|name| matches!(name.rsplit_once('.'), Some((_, "toml"))))
        .map(|name| format!("{directory}/{name}"))
        .filter(|path| !own.contains(path));
    let read = |path: String| {
        let text = host.read_text(&path, TEXT_LIMIT as u64)?;
        Ok(SourceFile { path, text })
    };
    paths.take(MAX_SNIPPETS).map(read).collect()
}

/// Snippets in a directory, at most. A host has a handful.
const MAX_SNIPPETS: usize = 256;

/// The file to which Farrier last wrote its handlers; `None` where it is one of `config_files` or `sources`, possibly by a symlink.
pub(crate) fn orphaned_config(
    host: &HostRoot,
    state: &State,
    config_files: &ConfigFiles,
    sources: &[SourceFile],
) -> Result<Option<SourceFile>, Error> {
    let Some(config) = &state.config else {
        return Ok(None);
    };
    let real = |path: &str| host.follow(path).unwrap_or_else(|_| path.to_owned());
    let known = config_files.files();
    let mut known = known.chain(sources);
    if known.any(|file| real(&file.path) == real(&config.path)) {
        return Ok(None);
    }
    let text = host.read_text(&config.path, TEXT_LIMIT as u64)?;
    Ok(text.map(|text| SourceFile {
        path: config.path.clone(),
        text: Some(text),
    }))
}

/// The directory for binaries, and the problem with it. The directory stays the same after the first installation.
pub(crate) fn directory(
    host: &HostRoot,
    distro: &DistroSpec,
    state: &State,
    target: Target,
) -> (String, Option<Problem>) {
    let first = distro.directories.first().copied().unwrap_or_default();
    let candidates = if state.is_empty() {
        distro.directories
    } else {
        &[state.directory.as_str()]
    };
    // An image is unpacked on other file systems than it will run on.
    if target == Target::Image {
        return (
            candidates
                .first()
                .map_or(first, |candidate| candidate)
                .to_owned(),
            None,
        );
    }
    let mut obstacle = None;
    for directory in candidates {
        match bin_dir_problem(host, directory) {
            None => return ((*directory).to_owned(), None),
            Some(reason) => obstacle.get_or_insert(reason),
        };
    }
    (
        candidates
            .first()
            .map_or(first, |candidate| candidate)
            .to_owned(),
        obstacle,
    )
}

/// Why `directory` can't contain shims.
fn bin_dir_problem(host: &HostRoot, directory: &str) -> Option<Problem> {
    match host.mount_of(directory) {
        Ok(mount) if mount.read_only => Some(Problem::with_help(
            format!("{directory} is on a read-only file system, so no shim can be installed there"),
            "remount the file system read-write, or use other nodes",
        )),
        Ok(mount) if mount.no_exec => Some(Problem::with_help(
            format!(
                "{directory} is on a file system mounted noexec, so no shim can run from there"
            ),
            "mount the file system with the option exec",
        )),
        Ok(_) => None,
        Err(error) => Some(Problem::new(&error, error.help())),
    }
}

/// Why a directory for binaries can't be used: it is a symlink. The symlinks in `bin` lead to the store through `..`, and Farrier must not
/// remove files behind a symlinked directory.
pub(crate) fn symlinked_directory_problem(
    host: &HostRoot,
    install_paths: &InstallPaths,
) -> Option<Problem> {
    let problem = |path: String| match host.symlink_target(&path) {
        Ok(None) => None,
        Ok(Some(_)) => Some(Problem::with_help(
            format!("{path} on the host is a symlink instead of a directory"),
            "replace the symlink with a directory, or make its parent directory the symlink",
        )),
        Err(error) => Some(Problem::new(&error, error.help())),
    };
    [install_paths.bin(), install_paths.store()]
        .into_iter()
        .find_map(problem)
}

/// Why a user other than root could replace what Farrier keeps in its directories, of which `directory` is the one for binaries.
///
/// The rule is that of sshd's `StrictModes`, and the one for programs that Farrier runs as root.
pub(crate) fn directory_owner_problem(
    host: &HostRoot,
    directory: &str,
    target: Target,
) -> Option<Problem> {
    let (store, bin) = (format!("{directory}/store"), format!("{directory}/bin"));
    state_owner_problem(host, target).or_else(|| {
        let mut paths = [store.as_str(), bin.as_str()].into_iter();
        paths.find_map(|path| owner_problem(host, path, target))
    })
}

/// As [`directory_owner_problem`], for the directories of the state file and the lock alone. A recovery trusts the files in them.
pub(crate) fn state_owner_problem(host: &HostRoot, target: Target) -> Option<Problem> {
    let mut paths = [STATE_FILE, JOURNAL_FILE, LOCK_DIRECTORY].into_iter();
    paths.find_map(|path| owner_problem(host, path, target))
}

/// Why a user other than root could replace the program at `path`, or create one there, for a path that Farrier did not choose. Programs in
/// one directory have the same problem if the directory is at fault.
pub(crate) fn program_owner_problem(
    host: &HostRoot,
    path: &str,
    target: Target,
) -> Option<Problem> {
    let mut paths = [parent_directory(path), path].into_iter();
    paths.find_map(|path| owner_problem(host, path, target))
}

fn owner_problem(host: &HostRoot, path: &str, target: Target) -> Option<Problem> {
    let error = host.check_only_root_writes(path, target).err()?;
    let help = match &error {
        ProgramError::Writable {
            path, chmod_mode, ..
        } => Some(format!("run `chmod {chmod_mode} {path}` on the host").into()),
        ProgramError::Owner { .. } | ProgramError::AccessList { .. } => error.help(),
        // The change itself reports such a path.
        ProgramError::NoFile { .. }
        | ProgramError::Interpreter { .. }
        | ProgramError::Open { .. } => return None,
    };
    Some(Problem::new(format!("failed to use {path}: {error}"), help))
}

/// Files of an operating system image, which its next update replaces (FHS 3.0, 4.11).
const IMAGE_DIRECTORY: &str = "/usr/share/";

/// Why the configuration at `path` may not be changed, although it may be writable.
pub(crate) fn config_path_problem(host: &HostRoot, path: &str) -> Option<Problem> {
    let real = host.follow(path).unwrap_or_else(|_| path.to_owned());
    real.starts_with(IMAGE_DIRECTORY).then(|| {
        Problem::with_help(
            format!(
                "{path} is part of the operating system image, whose next update would replace the file"
            ),
            "copy the file to /etc/containerd/config.toml, and name the copy in a drop-in of containerd's unit (Flatcar: Environment=CONTAINERD_CONFIG=/etc/containerd/config.toml)",
        )
    })
}

/// The program that the kernel starts first.
const INIT: &str = "/sbin/init";

/// The CPU of a host, which is that of this process on a live host. In an image, it is the CPU of its containerd, of the program that its unit
/// starts, or of its first program. An image without these has the CPU of this process, too.
pub(crate) fn cpu_of_host(
    host: &HostRoot,
    target: Target,
    distro: &DistroSpec,
    containerd: Option<&str>,
) -> Cpu {
    if target == Target::Live {
        return Cpu::own();
    }
    let of = |path: &str| {
        let mut head = Vec::new();
        let file = host.open_file(path).ok()??;
        file.take(ELF_HEADER as u64).read_to_end(&mut head).ok()?;
        Cpu::of_program(&head)
    };
    let in_unit = || {
        let service = openrc::service(host, distro.unit).ok()?;
        of(&service.command.ok()?.program)
    };
    let found = containerd.and_then(of).or_else(in_unit);
    found.or_else(|| of(INIT)).unwrap_or_else(Cpu::own)
}

/// The program that prints the release of the distribution, and its argument. The program that started containerd takes precedence over an
/// installed program.
pub(crate) fn version_command(
    host: &HostRoot,
    distro: &DistroSpec,
    daemon: Option<&Daemon>,
) -> Option<(String, &'static str)> {
    let (programs, argument) = (distro.programs, distro.release?);
    let name = file_name(programs.first()?);
    let parent = daemon
        .and_then(|daemon| parent_program(host, daemon))
        .filter(|program| file_name(program) == name);
    let installed = || programs.iter().find(|path| host.seems_to_exist(path));
    let program = parent.or_else(|| installed().map(|path| (*path).to_owned()))?;
    Some((program, argument))
}

/// The program that started containerd, such as k3s.
fn parent_program(host: &HostRoot, daemon: &Daemon) -> Option<String> {
    let (pid, _) = daemon.process;
    let stat = host
        .read_text(&format!("/proc/{pid}/stat"), SMALL_FILE_LIMIT)
        .ok()??;
    let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
    let program = host.symlink_target(&format!("/proc/{parent}/exe")).ok()??;
    Some(without_deleted_mark(&program).to_owned())
}
