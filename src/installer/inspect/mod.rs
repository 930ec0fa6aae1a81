//! Gathers the facts about a host: its distribution, its containerd, the configuration, the served runtimes and Farrier's files. Reads only;
//! `plan` decides.

mod config_path;
mod data_dir;
mod error;
mod found;
pub mod legacy;
pub mod os;
pub mod pending;
pub mod prerequisites;
pub mod restart_inputs;
pub mod verify_cache;
pub mod write_targets;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::legacy::Legacy;
use crate::containerd_config::{
    ConfigFiles, SourceFile, Version, address_of_dump, without_secrets,
};
use crate::handoff::{EndingPod, Problem, Sha256Digest};
use crate::installer::containerd::config_files::{load, patterns};
use crate::installer::containerd::cri::{self, DataDirectories, Network, Served, Status};
use crate::installer::containerd::daemon::{self, Containerd};
use crate::installer::containerd::embedded::unit_of_stopped;
use crate::installer::containerd::kubelet::{Kubelet, KubeletRuntime, is_same_socket};
use crate::installer::containerd::orphans::{self, Orphan, ShimPrograms};
use crate::installer::containerd::rehearsal::{Rehearsal, Rehearsed, rehearse};
use crate::installer::containerd::service::{self, RestartEffect, Service, ServiceStatus};
use crate::installer::containerd::sockets::unix_sockets_of;
use crate::installer::containerd::systemd_unit;
use crate::installer::containerd::tasks::ending_pods;
use crate::installer::distro::DistroSpec;
use crate::installer::host::cpu::Cpu;
use crate::installer::host::exec;
use crate::installer::host::path::parent_directory;
use crate::installer::host::{self, HostRoot, NEW_SUFFIX, SMALL_FILE_LIMIT, Target};
use crate::installer::state::{
    InstallPaths, STATE_DIRECTORY, STATE_FILE, STATE_LIMIT, State, stored_digest, target_digest,
};
use config_path::{
    ContainerdUnit, known_config, program, recorded_root, refuse_another, root_config,
};
pub use error::Error;
use found::found_runtimes;
use os::{
    config_path_problem, cpu_of_host, detect_distro, directory, directory_owner_problem,
    orphaned_config, snippets, sources, symlinked_directory_problem, version_command,
};
use pending::{Subject, record_loaded, record_present};
use prerequisites::{misnamed_nri_plugin, missing_for_unit, missing_prerequisite, read_only_data};
use restart_inputs::RestartInputs;
use verify_cache::VerifyCache;
use write_targets::{WriteTarget, own_paths_problem, write_targets};

/// The time limit of programs on the host. `containerd config dump` takes 18 ms; the limit leaves room for a node under load.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(10);

/// The facts about a host.
#[derive(Debug)]
pub struct HostFacts {
    /// Its row in the table of distributions.
    pub distro: &'static DistroSpec,
    /// The running containerd, or why there is none.
    pub containerd: Containerd,
    /// The path of the containerd program, running or installed.
    pub program: Option<String>,
    /// The CPU of the host.
    pub cpu: Cpu,
    /// The release of containerd.
    pub version: Option<Version>,
    /// Why the release of containerd is unknown, if it is.
    pub no_version: Problem,
    /// The configuration files that containerd loads.
    pub config_files: ConfigFiles,
    /// The files from which the distribution renders the configuration, if it does; the one with precedence first.
    pub sources: Vec<SourceFile>,
    /// The files of others beside Farrier's in `sources` that the distribution reads at the same time.
    pub snippets: Vec<SourceFile>,
    /// The file to which Farrier last wrote its handlers, if containerd no longer loads it and `sources` lacks it.
    pub orphaned_config: Option<SourceFile>,
    /// The handlers that the distribution will declare by itself at its next start, each with the program that it finds.
    pub found_runtimes: BTreeMap<String, String>,
    /// The unit of a distribution that renders containerd's configuration and whose containerd does not run.
    pub stopped_unit: Option<String>,
    /// The release of the distribution, as the command in the table prints it, or why it is unknown.
    pub release: Result<Version, Problem>,
    /// Why the path of containerd's configuration or of its socket is unknown.
    pub unknown_config: Option<Problem>,
    /// Why no change is possible on this host: a directory or file can't be written, or binaries can't be executed from a directory.
    pub obstacle: Option<Problem>,
    /// The configuration files and binaries that a change may write, by path, if one can't be written or a replacement loses something.
    pub write_targets: BTreeMap<String, WriteTarget>,
    /// The configuration as containerd prints it, or why containerd fails to print it.
    pub dump: Result<String, Problem>,
    /// Why no program of an image can be tried.
    pub untried: Option<Problem>,
    /// A file or feature that the configuration needs and that the host lacks, as a message for an operator.
    pub missing_prerequisite: Option<String>,
    /// Why containerd would not start again, whatever a rehearsal says: because of its unit, of the file system of its data, or of a file that
    /// it takes for an NRI plugin.
    pub unstartable: Option<Problem>,
    /// The runtimes that containerd serves, or why they are unknown.
    pub served: Result<Served, Problem>,
    /// The container runtime that the kubelet uses.
    pub kubelet_runtime: KubeletRuntime,
    /// The directories that the running containerd uses.
    pub data_directories: DataDirectories,
    /// The network of the pods as the running containerd uses it.
    pub network: Network,
    /// The CRI socket of the running containerd, where its command line names none and its present configuration another one.
    pub other_socket: Option<String>,
    /// The pods of each handler, one per sandbox.
    pub in_use: BTreeMap<String, Vec<EndingPod>>,
    /// The pods that a restart of containerd ends, because their shims report no process, or why they are unknown.
    pub ending_pods: Result<Vec<EndingPod>, Problem>,
    /// The shim processes of Farrier's binaries that belong to no pod, or why they are unknown. Empty if containerd does not serve.
    pub orphans: Result<Vec<Orphan>, Problem>,
    /// The effect of a restart of the unit on pods, or why it is unknown.
    pub restart_effect: Result<RestartEffect, Problem>,
    /// Why this process can't restart containerd, whatever an operator allows.
    pub unreachable: Option<Problem>,
    /// What a restart of containerd reads.
    pub restart_inputs: RestartInputs,
    /// The state file.
    pub state: State,
    /// The paths of Farrier's binaries.
    pub install_paths: InstallPaths,
    /// SHA-256 of the binaries that Farrier's symlinks point to, even where the binary is missing, by file name in [`InstallPaths::bin`].
    pub binaries: BTreeMap<String, Sha256Digest>,
    /// Files in [`InstallPaths::store`] whose SHA-256 is their name, and that only root can write.
    pub stored: BTreeSet<Sha256Digest>,
    /// Files in [`InstallPaths::store`] with another SHA-256 than their name, those that another user can write, and symlinks.
    pub damaged: BTreeSet<String>,
    /// The handlers and files of KWasm and runtime-class-manager.
    pub legacy: Legacy,
    /// Directories that a change may need, each with the directories to create for it, outermost first.
    pub missing_directories: BTreeMap<String, Vec<String>>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl HostFacts {
    /// The names of Farrier's files in [`InstallPaths::store`].
    #[must_use]
    pub fn store_files(&self) -> BTreeSet<String> {
        let stored = self.stored.iter().map(Sha256Digest::to_string);
        stored.chain(self.damaged.iter().cloned()).collect()
    }

    /// Whether the store has this binary, and the state file records it.
    #[must_use]
    pub fn stores(&self, sha256: Sha256Digest) -> bool {
        let (declared, draining) = (&self.state.handlers, &self.state.draining);
        let mut owned = declared.values().chain(draining.values());
        self.stored.contains(&sha256) && owned.any(|owned| owned.sha256() == Some(sha256))
    }

    /// Whether Farrier or a legacy installer declares this handler, or did while its pods were started.
    #[must_use]
    pub fn is_own(&self, handler: &str) -> bool {
        self.state.handlers.contains_key(handler)
            || self.state.draining.contains_key(handler)
            || self.legacy.handlers.contains_key(handler)
    }

    /// The programs of Farrier's shims.
    #[must_use]
    pub fn shim_programs(&self) -> ShimPrograms {
        let (declared, draining) = (&self.state.handlers, &self.state.draining);
        let handlers = declared.values().chain(draining.values());
        ShimPrograms::of(&self.install_paths, handlers)
    }

    /// Hashes every binary, whatever is remembered of it.
    ///
    /// # Errors
    /// When a directory can't be listed or a binary can't be read.
    pub fn hash_binaries(&mut self, host: &HostRoot) -> Result<(), Error> {
        let verify_cache = VerifyCache::default();
        let target = self.containerd.target();
        let (config_files, sources, install_paths) =
            (&self.config_files, &self.sources, &self.install_paths);
        self.legacy = legacy::find(
            host,
            target,
            config_files,
            sources,
            &self.state,
            install_paths,
            &verify_cache,
        )?;
        (self.binaries, self.stored, self.damaged) =
            binaries(host, target, install_paths, &verify_cache)?;
        Ok(())
    }

    /// Starts a second containerd on the present files, if the verdict on a change of others depends on it.
    pub(crate) async fn rehearse_pending(&mut self, host: &HostRoot) {
        if self.restart_inputs.need_rehearsal() {
            self.restart_inputs.rehearsal = self.rehearse(host, &self.config_files).await;
        }
    }

    /// Starts a second containerd on the present files, as a change would do before a restart.
    pub(crate) async fn rehearse_present(&mut self, host: &HostRoot) {
        if self.containerd.daemon().is_some() && self.distro.unsupported.is_none() {
            self.restart_inputs.rehearsal = self.rehearse(host, &self.config_files).await;
        }
    }

    /// Records the configuration that the running containerd has loaded, before a change.
    ///
    /// # Errors
    /// When the record can't be written.
    pub(crate) fn record_loaded(&self, host: &HostRoot) -> host::Result<()> {
        let (service, socket) = (self.service(), self.socket());
        match subject(host, self, &service, &socket) {
            Some(subject) => record_loaded(&subject, &self.restart_inputs.inputs),
            None => Ok(()),
        }
    }

    /// Records which files the new process of containerd and its service have found, after a restart.
    ///
    /// # Errors
    /// When no containerd can be searched for, or the record can't be written.
    pub(crate) fn record_present(&self, host: &HostRoot) -> host::Result<()> {
        let (service, socket) = (self.service(), self.socket());
        let daemon = daemon::find_daemon(host)?;
        match (subject(host, self, &service, &socket), daemon) {
            (Some(subject), Some(daemon)) => {
                record_present(&subject, &self.restart_inputs.inputs, daemon.process)
            }
            (None, _) | (_, None) => Ok(()),
        }
    }

    /// A problem that containerd reports with the configuration, without the credentials in it. Reports and the cluster store the message.
    #[must_use]
    pub(crate) fn without_secrets(&self, problem: Problem) -> Problem {
        let files = self.config_files.files().chain(&self.sources);
        let texts = files.filter_map(|file| file.text.as_deref());
        Problem {
            message: without_secrets(&problem.message, texts),
            ..problem
        }
    }

    /// The path of the CRI socket on the host. The arguments of the running containerd take precedence over its configuration, and so does
    /// the socket at which it listens.
    #[must_use]
    pub fn socket(&self) -> String {
        let other = self.other_socket.clone();
        other.unwrap_or_else(|| self.next_socket())
    }

    /// The path of the CRI socket after a restart.
    #[must_use]
    pub fn next_socket(&self) -> String {
        let daemon = self.containerd.daemon();
        let given = daemon.and_then(|daemon| daemon.address().map(str::to_owned));
        let configured = || address_of_dump(self.dump.as_deref().ok()?);
        let address = given.or_else(configured);
        address.unwrap_or_else(|| self.distro.socket.to_owned())
    }

    /// Starts a second containerd on `files` and returns what its CRI serves, as [`rehearse`] does. `files` are the host's own files, or differ
    /// from them in handlers alone.
    pub async fn rehearse(&self, host: &HostRoot, files: &ConfigFiles) -> Rehearsal {
        let Some(daemon) = self.containerd.daemon() else {
            return Rehearsal::NotPossible(Problem::new("no containerd runs on this host", None));
        };
        match &self.dump {
            Ok(dump) => {
                let socket = &self.next_socket();
                let replaced = self.restart_inputs.replaced_program();
                let rehearsed = Rehearsed {
                    daemon,
                    program: replaced.unwrap_or(&daemon.program),
                    socket,
                    files,
                    dump,
                };
                Box::pin(rehearse(host, &rehearsed)).await
            }
            Err(problem) => Rehearsal::NotPossible(problem.clone()),
        }
    }

    /// The name of containerd's unit.
    #[must_use]
    pub fn unit(&self) -> String {
        let daemon = self.containerd.daemon();
        let unit = daemon.and_then(|daemon| daemon.unit.as_deref());
        let unit = unit.or(self.stopped_unit.as_deref());
        unit.unwrap_or(self.distro.unit).to_owned()
    }

    /// The service to restart, and its restart method.
    #[must_use]
    pub fn service(&self) -> Service {
        Service::of(self.distro, &self.unit())
    }
}

/// Gathers all facts. In an image, no service is queried and no process counts as running; the program of containerd may still be run.
///
/// # Errors
/// When a file of the host can't be read, or the state file can't be parsed.
pub async fn gather(
    host: &HostRoot,
    config: Option<&str>,
    target: Target,
) -> Result<HostFacts, Error> {
    let mut running = daemon::find(host, target)?;
    let unit = ContainerdUnit::read(host);
    let state = State::from_json(host.read_text(STATE_FILE, STATE_LIMIT)?.as_deref())?;
    let recorded = recorded_root(host, &state);
    refuse_another(host, &mut running, recorded);
    let daemon = running.containerd.daemon();
    let recorded = recorded.filter(|_| daemon.is_none());
    let known = known_config(host, daemon, &unit, config, recorded);
    let is_installed = unit.installed_program(host).is_some();
    let distro = detect_distro(host, &running, known, config.or(recorded), is_installed)?;
    let program = program(host, distro, daemon, &unit);
    let (config, unknown_config) =
        root_config(host, distro, &running.containerd, &unit, config, recorded);
    let config_files = load(host, &config)?;
    let sources = sources(host, distro, &config)?;
    let snippets = snippets(host, distro, &config)?;
    let orphaned_config = orphaned_config(host, &state, &config_files, &sources)?;
    let (directory, unusable) = directory(host, distro, &state, target);
    let mut obstacle = directory_owner_problem(host, &directory, target).or(unusable);
    obstacle = obstacle.or_else(|| config_path_problem(host, &config));
    let install_paths = InstallPaths { directory };
    obstacle = obstacle
        .or_else(|| symlinked_directory_problem(host, &install_paths))
        .or_else(|| own_paths_problem(host, &install_paths));
    let verify_cache = VerifyCache::load(host, target);
    let (binaries, stored, damaged) = binaries(host, target, &install_paths, &verify_cache)?;
    let legacy = legacy::find(
        host,
        target,
        &config_files,
        &sources,
        &state,
        &install_paths,
        &verify_cache,
    )?;
    let orphaned = orphaned_config.as_ref();
    let mut facts = HostFacts {
        distro,
        write_targets: write_targets(
            host,
            &config_files,
            &sources,
            orphaned,
            legacy.binaries.keys(),
        ),
        found_runtimes: found_runtimes(host, distro, daemon),
        stopped_unit: match daemon {
            None if !sources.is_empty() => unit_of_stopped(host, distro),
            Some(_) | None => None,
        },
        release: Err(Problem::new("no program was run", None)),
        obstacle,
        unknown_config,
        version: None,
        no_version: Problem::new("no program was run", None),
        untried: None,
        missing_prerequisite: None,
        unstartable: None,
        dump: Err(Problem::new("no program was run", None)),
        containerd: match running.containerd {
            Containerd::Live(daemon) => Containerd::Live(daemon.with_openrc_unit(host, distro)),
            none @ (Containerd::NotFound { .. }
            | Containerd::UnknownKubelet { .. }
            | Containerd::NotOfKubelet { .. }
            | Containerd::Image) => none,
        },
        cpu: cpu_of_host(host, target, distro, program.as_deref()),
        program,
        served: Err(Problem::new("containerd is not queried offline", None)),
        kubelet_runtime: KubeletRuntime::default(),
        data_directories: DataDirectories::default(),
        network: Network::default(),
        other_socket: None,
        in_use: BTreeMap::new(),
        ending_pods: Ok(Vec::new()),
        orphans: Ok(Vec::new()),
        restart_effect: Err(Problem::new(
            "the service manager is not queried offline",
            None,
        )),
        unreachable: None,
        restart_inputs: RestartInputs::default(),
        legacy,
        state,
        missing_directories: missing_directories(host, &install_paths, &config_files, &sources),
        sources,
        snippets,
        orphaned_config,
        install_paths,
        binaries,
        stored,
        damaged,
        machine_id: identity(host, "/etc/machine-id")?,
        boot_id: identity(host, "/proc/sys/kernel/random/boot_id")?,
        config_files,
    };
    ask(host, target, running.kubelet.as_ref(), &mut facts).await;
    Ok(facts)
}

/// Runs the programs of the host, and asks its services.
async fn ask(host: &HostRoot, target: Target, kubelet: Option<&Kubelet>, facts: &mut HostFacts) {
    if target == Target::Image
        && let Err(error) = exec::check_enter(host, PROGRAM_LIMIT).await
    {
        facts.untried = Some(untried(&error));
    }
    if target == Target::Live && facts.distro.unsupported.is_none() {
        let service = facts.service();
        // The service manager answers while the programs run.
        let (status, ()) = futures::join!(service.status(host), run_programs(host, facts));
        query_services(host, facts, &service, status).await;
        facts.kubelet_runtime = KubeletRuntime::find(host, kubelet, &facts.socket()).await;
    } else {
        run_programs(host, facts).await;
        if let Some(Err(problem)) = kubelet.map(|kubelet| &kubelet.endpoint) {
            facts.kubelet_runtime = KubeletRuntime::Unknown(problem.clone());
        }
    }
}

/// Runs the programs of the host for their releases, and containerd for the configuration that it loads. The output stays in memory: the
/// configuration that containerd 1.x prints contains registry passwords.
async fn run_programs(host: &HostRoot, facts: &mut HostFacts) {
    let (program, root) = (facts.program.as_deref(), &facts.config_files.root);
    let release = version_command(host, facts.distro, facts.containerd.daemon());
    let dump_arguments = dump_arguments(&root.path);
    // Without a file, containerd uses its defaults, which `config dump` of containerd 1.x refuses to print.
    let dump_arguments = match root.text {
        Some(_) => &dump_arguments[..],
        None => &["config", "default"],
    };
    let output = async |program: Option<&str>, arguments: &[&str]| match program {
        Some(program) => exec::run(host, program, arguments, PROGRAM_LIMIT)
            .await
            .map_err(|error| Problem::new(&error, error.help())),
        None => Err(Problem::new("no containerd is installed", None)),
    };
    // The programs run at the same time.
    let (version, dump, release) = futures::join!(
        output(program, &["--version"]),
        output(program, dump_arguments),
        async {
            let none = || Problem::new("no program of the distribution is on the host", None);
            let (program, argument) = release.ok_or_else(none)?;
            let output = output(Some(&program), &[argument]).await?;
            let release = output.trim().parse().ok();
            release.ok_or_else(|| {
                Problem::new(format!("`{program} {argument}` prints no release"), None)
            })
        },
    );
    match version.map(|output| output.trim().parse().ok()) {
        Ok(None) => {
            facts.no_version = Problem::new("`containerd --version` prints no release", None);
        }
        Ok(version) => facts.version = version,
        Err(problem) => facts.no_version = problem,
    }
    facts.release = release;
    facts.missing_prerequisite = dump
        .as_ref()
        .ok()
        .and_then(|dump| missing_prerequisite(host, dump));
    facts.dump = dump.map_err(|problem| facts.without_secrets(problem));
}

/// The problem with an image whose programs can't be tried for the reason `error`.
fn untried(error: &exec::Error) -> Problem {
    let cause: &dyn std::error::Error = error;
    let cause = cause.source().unwrap_or(cause);
    Problem::with_help(
        format!("failed to try containerd and the shims in the image: {cause}"),
        "run farrier as root, or with the capability CAP_SYS_CHROOT",
    )
}

/// The arguments with which containerd prints the configuration that it loads from `path`.
fn dump_arguments(path: &str) -> [&str; 4] {
    ["-c", path, "config", "dump"]
}

/// The CRI socket of the running containerd, if it does not listen at the one that its present configuration names. Beside the CRI's socket,
/// containerd listens at the same path with `.ttrpc` at the end (`services/server/config`).
fn other_socket(host: &HostRoot, facts: &HostFacts) -> Option<String> {
    let daemon = facts.containerd.daemon()?;
    if daemon.address().is_some() {
        return None;
    }
    let sockets = unix_sockets_of(host, daemon.process.0);
    let listens_at = |path: &str| sockets.iter().any(|own| is_same_socket(own, path));
    if listens_at(&facts.next_socket()) {
        return None;
    }
    let mut with_ttrpc = sockets.iter();
    let with_ttrpc = with_ttrpc.find(|path| listens_at(&format!("{path}.ttrpc")));
    let usual = facts.distro.socket;
    let usual = || listens_at(usual).then(|| usual.to_owned());
    with_ttrpc.cloned().or_else(usual)
}

/// Asks containerd. `status` is the answer of the service manager.
async fn query_services(
    host: &HostRoot,
    facts: &mut HostFacts,
    service: &Service,
    status: Result<ServiceStatus, service::Error>,
) {
    facts.other_socket = other_socket(host, facts);
    let socket = facts.socket();
    facts.served = match cri::status(host, &socket).await {
        Ok(Status {
            served,
            directories,
            network,
        }) => match cri::sandboxes(host, &socket).await {
            Ok(sandboxes) => {
                facts.data_directories = directories;
                facts.network = network;
                facts.in_use = cri::pods_by_handler(&sandboxes, &served.default);
                let ending = ending_pods(host, &socket, &sandboxes, &served, facts.version).await;
                facts.ending_pods = ending.map_err(|error| Problem::new(&error, error.help()));
                let programs = facts.shim_programs();
                let orphans = orphans::find(host, &socket, &programs, &sandboxes).await;
                facts.orphans = orphans.map_err(|error| Problem::new(&error, error.help()));
                Ok(served)
            }
            Err(error) => Err(Problem::new(&error, error.help())),
        },
        Err(error) => Err(Problem::new(&error, error.help())),
    };
    let unreachable = service.check_reachable(host).err();
    facts.unreachable = unreachable.map(|error| Problem::new(&error, error.help()));
    let definition = systemd_unit::service(host, &service.unit);
    let of_unit = || missing_for_unit(host, &service.unit, &definition);
    let of_host = read_only_data(host, &facts.data_directories)
        .or_else(|| of_unit().filter(|_| service.is_of_systemd(host)));
    let dump = facts.dump.as_deref().ok();
    facts.unstartable = of_host
        .map(|message| Problem::new(message, None))
        .or_else(|| misnamed_nri_plugin(host, dump?));
    if let Some(subject) = subject(host, facts, service, &socket) {
        facts.restart_inputs.inputs = subject.inputs(&definition, status.as_ref().ok());
    }
    facts.restart_effect = match status {
        Ok(status) => Ok(status.restart_effect),
        Err(error) => Err(Problem::new(&error, error.help())),
    };
}

/// The facts that determine what a restart of containerd reads; `None` if no containerd runs.
fn subject<'a>(
    host: &'a HostRoot,
    facts: &'a HostFacts,
    service: &'a Service,
    socket: &'a str,
) -> Option<Subject<'a>> {
    Some(Subject {
        host,
        distro: facts.distro,
        daemon: facts.containerd.daemon()?,
        service,
        socket,
        config_files: &facts.config_files,
        dump: facts.dump.as_deref().ok(),
        sources: &facts.sources,
        state: &facts.state,
        boot_id: &facts.boot_id,
    })
}

/// The identity in a file: a UUID, with or without hyphens (machine-id(5)). Any other text counts as none, because every report contains the
/// identity.
fn identity(host: &HostRoot, path: &str) -> Result<String, Error> {
    let text = host.read_text(path, SMALL_FILE_LIMIT)?.unwrap_or_default();
    let identity = text.trim();
    let plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    let is_one = identity.len() <= 36 && identity.bytes().all(plain);
    Ok(if is_one {
        identity.to_owned()
    } else {
        String::new()
    })
}

fn missing_directories(
    host: &HostRoot,
    install_paths: &InstallPaths,
    config_files: &ConfigFiles,
    sources: &[SourceFile],
) -> BTreeMap<String, Vec<String>> {
    let own = [
        STATE_DIRECTORY.to_owned(),
        install_paths.store(),
        install_paths.bin(),
    ];
    let root = parent_directory(&config_files.root.path).to_owned();
    // A drop-in may be written to a directory that the root file imports and that does not exist yet.
    let imported = patterns(&config_files.root)
        .iter()
        .map(|pattern| parent_directory(pattern).to_owned())
        .collect::<Vec<_>>();
    let sources = sources
        .iter()
        .map(|file| parent_directory(&file.path).to_owned());
    own.into_iter()
        .chain([root])
        .chain(imported)
        .chain(sources)
        .filter_map(|directory| {
            // A directory that can't be inspected is neither created nor removed.
            let missing = host.missing_directories(&directory).ok()?;
            Some((directory, missing))
        })
        .collect()
}

type Binaries = (
    BTreeMap<String, Sha256Digest>,
    BTreeSet<Sha256Digest>,
    BTreeSet<String>,
);

/// Farrier's symlinks and stored files. A stored file is hashed unless it is unchanged according to `verify_cache`.
///
/// Another user may have made a file in the store before the directory was root's. Its owner could still write to it, so the bytes of such a
/// file are not looked at.
fn binaries(
    host: &HostRoot,
    target: Target,
    install_paths: &InstallPaths,
    verify_cache: &VerifyCache,
) -> Result<Binaries, Error> {
    let (mut stored, mut damaged) = (BTreeSet::new(), BTreeSet::new());
    for name in own_files(host, install_paths)? {
        let path = install_paths.store_path(&name);
        if !host.is_file_of_root(&path, target)? {
            damaged.insert(name);
            continue;
        }
        let named = stored_digest(&name);
        if let Some(sha256) =
            named.filter(|sha256| verify_cache.is_unchanged(host, install_paths, *sha256))
        {
            stored.insert(sha256);
            continue;
        }
        let digest = match host.digest(&path) {
            Ok(digest) => digest,
            // Farrier stores no file of this size.
            Err(host::Error::TooLarge { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        match digest.filter(|digest| named == Some(*digest)) {
            Some(sha256) => stored.insert(sha256),
            None => damaged.insert(name),
        };
    }
    Ok((own_symlinks(host, install_paths)?, stored, damaged))
}

/// Farrier's symlinks at stable paths, each with the SHA-256 of its target. Other files in the directory are left alone.
pub(crate) fn own_symlinks(
    host: &HostRoot,
    install_paths: &InstallPaths,
) -> Result<BTreeMap<String, Sha256Digest>, Error> {
    let bin = install_paths.bin();
    let mut symlinks = BTreeMap::new();
    for name in host.list(&bin)? {
        let target = match host.symlink_target(&format!("{bin}/{name}")) {
            Ok(target) => target,
            Err(host::Error::NotText { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(digest) = target.as_deref().and_then(target_digest) {
            symlinks.insert(name, digest);
        }
    }
    Ok(symlinks)
}

/// The names of Farrier's files in the store, including half-written files of a killed run.
pub(crate) fn own_files(
    host: &HostRoot,
    install_paths: &InstallPaths,
) -> Result<BTreeSet<String>, Error> {
    let is_managed = |name: &String| {
        let name = name.strip_suffix(NEW_SUFFIX).unwrap_or(name);
        name.parse::<Sha256Digest>().is_ok()
    };
    let names = host.list(&install_paths.store())?.into_iter();
    Ok(names.filter(is_managed).collect())
}

/// The path of the shim that containerd executes, or would execute, for `handler`.
#[must_use]
pub fn path_of(facts: &HostFacts, handler: &str) -> String {
    let install_paths = &facts.install_paths;
    match facts.state.handlers.get(handler) {
        Some(owned) => install_paths.declared_path(handler, owned),
        None => match facts.legacy.handlers.get(handler) {
            Some(legacy_handler) => legacy_handler.declared.path.clone(),
            None => install_paths.binary_path(handler),
        },
    }
}

/// SHA-256 of the verified binary at the path of `handler`.
#[must_use]
pub fn verified(facts: &HostFacts, handler: &str) -> Option<Sha256Digest> {
    verified_digest(facts, &path_of(facts, handler))
}

/// SHA-256 of the verified binary at `path`, which is a stable path of Farrier or a legacy path.
#[must_use]
pub fn verified_digest(facts: &HostFacts, path: &str) -> Option<Sha256Digest> {
    let bin = facts.install_paths.bin();
    let name = path
        .strip_prefix(&bin)
        .and_then(|rest| rest.strip_prefix('/'));
    match name {
        Some(name) => {
            let sha256 = *facts.binaries.get(name)?;
            facts.stored.contains(&sha256).then_some(sha256)
        }
        None => Some(facts.legacy.binaries.get(path)?.sha256),
    }
}

/// The release of containerd that `program` is; `None` if it prints none.
pub(crate) async fn release_of(host: &HostRoot, program: &str) -> Option<Version> {
    let output = exec::run(host, program, &["--version"], PROGRAM_LIMIT).await;
    output.ok()?.trim().parse().ok()
}

/// The configuration that containerd loads from the file at `path`, as containerd prints it.
///
/// # Errors
/// containerd's error output if it refuses the file, or a time-out.
pub async fn dump_config(host: &HostRoot, program: &str, path: &str) -> Result<String, Problem> {
    exec::run(host, program, &dump_arguments(path), PROGRAM_LIMIT)
        .await
        .map_err(|error| Problem::new(&error, error.help()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;
    use crate::installer::fixtures::{self, install_paths};

    #[test]
    fn a_stored_file_is_sound_only_as_a_regular_file_of_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let install_paths = install_paths();
        let store = directory.path().join("opt/farrier/store");
        std::fs::create_dir_all(&store).unwrap();
        let [sound, other, directory, linked, circle] =
            ["sound", "other", "directory", "linked", "circle"]
                .map(|name| Sha256Digest::of(name.as_bytes()));
        std::fs::write(store.join(sound.to_string()), "sound").unwrap();
        std::fs::write(store.join(other.to_string()), "damaged").unwrap();
        std::fs::create_dir(store.join(directory.to_string())).unwrap();
        std::fs::write(store.join("elsewhere"), "linked").unwrap();
        symlink("elsewhere", store.join(linked.to_string())).unwrap();
        symlink(circle.to_string(), store.join(circle.to_string())).unwrap();
        let verify_cache = VerifyCache::default();
        let (_, stored, damaged) =
            binaries(&host, Target::Image, &install_paths, &verify_cache).unwrap();
        assert_eq!(stored, BTreeSet::from([sound]));
        let expected = [other, directory, linked, circle];
        assert_eq!(damaged, expected.map(|name| name.to_string()).into());
    }

    #[rstest]
    #[case::given(Some("/run/given.sock"), true, "/run/given.sock")]
    #[case::configured(None, true, "/run/configured.sock")]
    #[case::neither(None, false, "/run/containerd/containerd.sock")]
    fn the_socket_comes_from_the_command_line_then_the_configuration(
        #[case] given: Option<&str>,
        #[case] configured: bool,
        #[case] expected: &str,
    ) {
        let mut facts = fixtures::host().build();
        if let Containerd::Live(daemon) = &mut facts.containerd {
            daemon.address = Ok(given.map(str::to_owned));
        }
        if configured {
            facts.dump = Ok("[grpc]\naddress = '/run/configured.sock'\n".to_owned());
        }
        assert_eq!(facts.socket(), expected);
    }
}
