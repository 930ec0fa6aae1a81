//! Finds what a restart of containerd reads: its program, its unit, its configuration and the configuration of its distribution, each with
//! the time of the last change. Reads only; `plan::pending` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::prerequisites::is_nri_plugin;
use super::restart_inputs::{Change, Contents, Input, InputKind, StartTime};
use crate::containerd_config::{ConfigFiles, SourceFile, start_needs};
use crate::handoff::{Sha256Digest, to_json};
use crate::installer::containerd::config_files::{patterns, searched_directories};
use crate::installer::containerd::daemon::Daemon;
use crate::installer::containerd::process::{
    Clock, read_bytes, service_process, start_time, without_deleted_mark,
};
use crate::installer::containerd::service::{Service, ServiceStatus};
use crate::installer::containerd::systemd_unit::{self, ServiceDefinition, UNIT_DIRECTORIES, Unit};
use crate::installer::distro::{DistroSpec, Edited, Restart};
use crate::installer::host::path::{file_name, parent_directory};
use crate::installer::host::times::Times;
use crate::installer::host::{self, HostRoot};
use crate::installer::state::State;

/// The record of [`LoadedConfig`]. It is about a running process, so it is in a directory that is empty after a reboot.
pub(crate) const LOADED_FILE: &str = "/run/farrier/loaded.json";

/// Size limit in bytes of that file. A configuration has at most 257 files, each with a path of some hundred bytes.
const LOADED_LIMIT: u64 = 1 << 18;

/// Files in a directory of the distribution's own configuration, at most. Such a directory has a handful.
const MAX_FILES: usize = 256;

/// Time between the fork of a service and the time that systemd notes for it, at most, where the clock was not set since.
const FORK: Duration = Duration::from_millis(100);

/// Time between the rename of a file and the change of its directory's times, at most: the kernel sets both in one system call.
const SAME_CALL: Duration = Duration::from_millis(100);

/// What a process of containerd has loaded, as a run recorded it before a change. A run that undoes its change without a restart restores
/// the bytes, and not the times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadedConfig {
    process: (u32, u64),
    boot_id: String,
    /// Of each file; `None` where a run knows only which files exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digests: Option<BTreeMap<String, Sha256Digest>>,
    /// The files of the unit and of the distribution's own configuration that existed then. A file that is absent has no time of its removal,
    /// and the service itself writes to their directories.
    #[serde(default)]
    present: BTreeSet<String>,
}

impl LoadedConfig {
    /// Whether the process has loaded the file, or listed the directory, with this digest.
    fn has(&self, path: &str, digest: Sha256Digest) -> bool {
        let digests = self.digests.as_ref();
        digests.is_some_and(|digests| digests.get(path) == Some(&digest))
    }

    /// Whether the process was started without the file.
    fn lacks(&self, path: &str) -> bool {
        let digests = self.digests.as_ref();
        digests.is_some_and(|digests| !digests.contains_key(path))
    }
}

/// The facts about a host that determine the inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) host: &'a HostRoot,
    pub(crate) distro: &'a DistroSpec,
    pub(crate) daemon: &'a Daemon,
    pub(crate) service: &'a Service,
    /// Path of the CRI socket.
    pub(crate) socket: &'a str,
    pub(crate) config_files: &'a ConfigFiles,
    /// The configuration as containerd prints it, if it does.
    pub(crate) dump: Option<&'a str>,
    pub(crate) sources: &'a [SourceFile],
    pub(crate) state: &'a State,
    pub(crate) boot_id: &'a str,
}

/// The starts of the processes that have read the inputs.
#[derive(Debug, Clone, Copy)]
struct Starts {
    containerd: StartTime,
    /// The main process of the service, such as k3s.
    service: StartTime,
}

impl Subject<'_> {
    /// All inputs. `service` is the unit in its files, and `status` the answer of the service manager. A path that can't be inspected counts as unchanged; what reads it fails with a reason of its own.
    pub(crate) fn inputs(&self, service: &Unit, status: Option<&ServiceStatus>) -> Vec<Input> {
        let main = self.main_process();
        let noted = status.and_then(|status| status.started);
        let Some(starts) = self.starts(main, noted) else {
            return Vec::new();
        };
        let loaded = self.load();
        let mut inputs = self.config(starts, loaded.as_ref());
        inputs.extend(self.named(starts.containerd));
        inputs.extend(self.absent_root(starts.containerd, loaded.as_ref()));
        inputs.extend(self.import_directories(starts.containerd, loaded.as_ref(), &inputs));
        inputs.extend(self.programs(main, starts.containerd));
        inputs.extend(self.nri_plugins(starts.containerd));
        inputs.extend(self.unit(starts.service, service, status));
        inputs.extend(self.program_of_unit(main, starts.service, service));
        inputs.extend(self.distribution(starts.service, service));
        inputs.extend(self.removed(loaded.as_ref()));
        inputs
    }

    /// The main process of the service.
    fn main_process(&self) -> u32 {
        match self.distro.restart {
            Restart::ContainerInit => 1,
            // The supervisor keeps running, and starts containerd alone.
            Restart::Watched => self.daemon.process.0,
            Restart::Service => service_process(self.host, self.daemon.process.0),
        }
    }

    /// The starts, by today's clock; `None` if a process has ended. `noted` is the start of the service that systemd noted.
    fn starts(&self, main: u32, noted: Option<Duration>) -> Option<Starts> {
        let clock = Clock::now()?;
        let listening = self.host.times(self.socket).ok().flatten();
        let listening = listening.map(|times| times.modified);
        let (containerd, service) = (
            clock.time_of(self.daemon.process.1)?,
            clock.time_of(start_time(self.host, main)?)?,
        );
        let start = if noted.is_some_and(|noted| noted.abs_diff(service) < FORK) {
            StartTime::steady(containerd, listening)
        } else {
            StartTime::new(containerd, listening)
        };
        let lead = containerd.checked_sub(service).unwrap_or_default();
        Some(Starts {
            containerd: start,
            service: start.before(lead),
        })
    }

    fn load(&self) -> Option<LoadedConfig> {
        let text = self.host.read_text(LOADED_FILE, LOADED_LIMIT).ok()??;
        let loaded: LoadedConfig = serde_json::from_str(&text).ok()?;
        let is_same = loaded.process == self.daemon.process && loaded.boot_id == self.boot_id;
        is_same.then_some(loaded)
    }

    /// The input at `path`; `None` if nothing is there.
    fn at(&self, kind: InputKind, path: &str, start: StartTime) -> Option<Input> {
        let times = match self.host.times(path) {
            Ok(times) => times?,
            Err(error) => {
                debug!(path, %error, "failed to determine the last change");
                return None;
            }
        };
        Some(Input {
            path: path.to_owned(),
            kind,
            change: Change::At(last_change(times, kind, &self.distro.edited), start),
            contents: Contents::Foreign,
        })
    }

    /// Whether the file that containerd loads is rendered at each start of the service, so that a restart discards edits of that file.
    fn is_rendered(&self) -> bool {
        match self.distro.edited {
            Edited::GoTemplate { .. } | Edited::TomlTemplate(_) => true,
            Edited::Loaded | Edited::Snippets { .. } => false,
        }
    }

    /// The files of the configuration, and the sources that the distribution renders it from.
    fn config(&self, starts: Starts, loaded: Option<&LoadedConfig>) -> Vec<Input> {
        let is_rendered = self.is_rendered();
        let root = &self.config_files.root.path;
        let files = self.config_files.files();
        let files = files.filter(|file| !is_rendered || file.path != *root);
        let snippets = self.snippets();
        // A template is read by the service, and a snippet is merged whenever containerd is started.
        let of_sources = if is_rendered {
            starts.service
        } else {
            starts.containerd
        };
        let sources = self.sources.iter().chain(&snippets);
        let mut seen = BTreeSet::new();
        files
            .map(|file| (file, InputKind::Config, starts.containerd))
            .chain(sources.map(|file| (file, InputKind::Distribution, of_sources)))
            .filter(|(file, ..)| seen.insert(file.path.clone()))
            .filter_map(|(file, kind, start)| {
                let text = file.text.as_deref()?;
                let input = self.at(kind, &file.path, start)?;
                let digest = Sha256Digest::of(text.as_bytes());
                Some(Input {
                    contents: self.contents(&file.path, digest, loaded),
                    ..input
                })
            })
            .collect()
    }

    /// The files that the configuration names and that containerd reads at its start, such as certificates.
    fn named(&self, start: StartTime) -> Vec<Input> {
        let needs = self.dump.and_then(|dump| start_needs(dump).ok());
        let paths = needs.unwrap_or_default().read;
        let inputs = paths.iter();
        inputs
            .filter_map(|path| self.at(InputKind::Config, path, start))
            .collect()
    }

    /// The root file, if it is absent. Somebody may have removed it since the start; then the entries of its directory have changed. Where
    /// the directory is absent, too, only a file that Farrier wrote is known to have been there.
    fn absent_root(&self, start: StartTime, loaded: Option<&LoadedConfig>) -> Option<Input> {
        let root = &self.config_files.root;
        if root.text.is_some() || self.is_rendered() {
            return None;
        }
        let owned = self.state.config.as_ref();
        let is_own = owned.is_some_and(|owned| owned.path == root.path);
        let mut directory = parent_directory(&root.path);
        while is_own && directory.len() > 1 && !self.host.seems_to_exist(directory) {
            directory = parent_directory(directory);
        }
        let input = self.at(InputKind::AbsentConfig, directory, start)?;
        let contents = if loaded.is_some_and(|it| it.lacks(&root.path)) {
            Contents::AsLoaded
        } else if is_own {
            Contents::Edited
        } else {
            Contents::Foreign
        };
        Some(Input {
            path: root.path.clone(),
            contents,
            ..input
        })
    }

    /// The files in the directory of snippets, which others may add to.
    fn snippets(&self) -> Vec<SourceFile> {
        let Some(directory) = self.snippet_directory() else {
            return Vec::new();
        };
        let names = self.host.list(&directory).unwrap_or_default().into_iter();
        let names = names.filter(|name| name.strip_suffix(".toml").is_some());
        let read = |name: String| {
            let path = format!("{directory}/{name}");
            let text = self.host.read_text(&path, host::SMALL_FILE_LIMIT);
            SourceFile {
                path,
                text: Some(text.ok().flatten().unwrap_or_default()),
            }
        };
        names.take(MAX_FILES).map(read).collect()
    }

    fn snippet_directory(&self) -> Option<String> {
        let root = &self.config_files.root.path;
        self.distro.watched_directory(root)
    }

    fn contents(
        &self,
        path: &str,
        digest: Sha256Digest,
        loaded: Option<&LoadedConfig>,
    ) -> Contents {
        let is_loaded = loaded.is_some_and(|loaded| loaded.has(path, digest));
        let real = |path: &str| self.host.follow(path).unwrap_or_else(|_| path.to_owned());
        let owned = self.state.config.as_ref();
        let owned = owned.filter(|owned| real(&owned.path) == real(path));
        match owned.and_then(|owned| owned.sha256) {
            _ if is_loaded => Contents::AsLoaded,
            Some(written) if written == digest => Contents::AsWritten,
            Some(_) => Contents::Edited,
            None => Contents::Foreign,
        }
    }

    /// The directories that the configuration imports files from. A directory that is absent counts with the nearest one above it, whose
    /// entries change when the directory is removed.
    fn import_directories(
        &self,
        start: StartTime,
        loaded: Option<&LoadedConfig>,
        files: &[Input],
    ) -> Vec<Input> {
        let globs: Vec<String> = self.config_files.files().flat_map(patterns).collect();
        let deeper = globs
            .iter()
            .flat_map(|glob| searched_directories(self.host, glob));
        let first = globs.iter().filter_map(|glob| directory_of_glob(glob));
        let directories = first.chain(deeper);
        let snippets = self.snippet_directory();
        let directories: BTreeSet<String> = directories.chain(snippets.clone()).collect();
        let input = |directory: String| {
            let mut existing = directory.as_str();
            while existing.len() > 1 && !self.host.seems_to_exist(existing) {
                existing = parent_directory(existing);
            }
            let kind = if snippets.as_ref() == Some(&directory) {
                InputKind::Distribution
            } else {
                InputKind::ImportDirectory
            };
            let input = self.at(kind, existing, start)?;
            let digest = self.listing(&directory);
            let is_loaded = loaded.is_some_and(|it| it.has(&directory, digest));
            let contents = if is_loaded {
                Contents::AsLoaded
            } else if self.has_lost_own_file(&directory) {
                Contents::Edited
            } else if is_explained(&input, files) {
                Contents::AsWritten
            } else {
                Contents::Foreign
            };
            Some(Input {
                path: directory,
                contents,
                ..input
            })
        };
        directories.into_iter().filter_map(input).collect()
    }

    /// Whether others removed the file that Farrier wrote to this directory.
    fn has_lost_own_file(&self, directory: &str) -> bool {
        let owned = self.state.config.as_ref();
        owned.is_some_and(|owned| {
            parent_directory(&owned.path) == directory
                && owned.sha256.is_some()
                && matches!(self.host.exists(&owned.path), Ok(false))
        })
    }

    /// The digest of the paths of the loaded files and snippets below a directory.
    fn listing(&self, directory: &str) -> Sha256Digest {
        let below = format!("{directory}/");
        let snippets = self.snippets();
        let files = self.config_files.imported.iter().chain(&snippets);
        let mut paths: Vec<&str> = files
            .map(|file| file.path.as_str())
            .filter(|path| path.starts_with(&below))
            .collect();
        paths.sort_unstable();
        Sha256Digest::of(paths.join("\n").as_bytes())
    }

    /// The program of containerd, and that of the distribution if a restart starts it, too. Only replaced programs are inputs.
    fn programs(&self, main: u32, start: StartTime) -> Vec<Input> {
        let (pid, _) = self.daemon.process;
        let mut programs = vec![(pid, self.daemon.program.clone())];
        if let Some(program) = self.named_program(start) {
            // A restart starts the file that it leads to now, in place of the running one.
            programs[0].1 = program;
        }
        if main != pid && self.is_rendered() {
            let exe = self.host.symlink_target(&format!("/proc/{main}/exe"));
            let exe = exe.ok().flatten();
            let exe = exe.map(|exe| without_deleted_mark(&exe).to_owned());
            let mut names = self.distro.programs.iter().map(|path| file_name(path));
            let is_own = |exe: &String| names.any(|name| name == file_name(exe));
            programs.extend(exe.filter(is_own).map(|exe| (main, exe)));
        }
        let is_replaced = |(pid, path): &(u32, String)| {
            let running = self.host.identity_of_program(*pid);
            running.is_some() && running != self.identity_at(path)
        };
        let replaced = programs.into_iter().filter(is_replaced);
        replaced
            .map(|(_, path)| Input {
                path,
                kind: InputKind::Program,
                change: Change::Replaced,
                contents: Contents::Foreign,
            })
            .collect()
    }

    /// The NRI plugins that containerd starts, and their directory. No rehearsal starts them.
    fn nri_plugins(&self, start: StartTime) -> Vec<Input> {
        let needs = self.dump.and_then(|dump| start_needs(dump).ok());
        let Some(directory) = needs.and_then(|needs| needs.nri) else {
            return Vec::new();
        };
        let names = self.host.list(&directory).unwrap_or_default();
        let paths = names.into_iter().map(|name| format!("{directory}/{name}"));
        let plugins = paths.filter(|path| is_nri_plugin(self.host, path));
        let plugins = plugins
            .take(MAX_FILES)
            .filter_map(|path| self.at(InputKind::NriPlugin, &path, start));
        let directory = self.at(InputKind::NriPlugins, &directory, start);
        plugins.chain(directory).collect()
    }

    /// The files that an earlier run recorded and that are absent now.
    fn removed(&self, loaded: Option<&LoadedConfig>) -> Vec<Input> {
        let present = loaded.into_iter().flat_map(|loaded| &loaded.present);
        let removed = present.filter(|path| matches!(self.host.exists(path), Ok(false)));
        removed
            .map(|path| Input {
                path: path.clone(),
                kind: InputKind::Distribution,
                change: Change::Removed,
                contents: Contents::Foreign,
            })
            .collect()
    }

    /// The files among the inputs that are recorded as present. The configuration and the snippets are left out: their directories tell of
    /// a removal.
    fn present(&self, inputs: &[Input]) -> BTreeSet<String> {
        let sources: BTreeSet<&str> = self.sources.iter().map(|file| file.path.as_str()).collect();
        let snippets = self.snippet_directory();
        let is_snippet = |path: &str| {
            let directory = snippets.as_deref();
            directory.is_some_and(|it| it == path || it == parent_directory(path))
        };
        let is_recorded = |input: &&Input| match (input.kind, input.change) {
            (InputKind::Unit | InputKind::Distribution, Change::At(..) | Change::Removed) => {
                !sources.contains(input.path.as_str()) && !is_snippet(&input.path)
            }
            _ => false,
        };
        let recorded = inputs.iter().filter(is_recorded);
        recorded.map(|input| input.path.clone()).collect()
    }

    /// The identity of the program at `path`; `None` if it is absent, or others than root can replace it.
    fn identity_at(&self, path: &str) -> Option<(u64, u64)> {
        self.host.open_program(path).ok()?.identity().ok()
    }

    /// The path by which the program of containerd was started, if that path was changed after the start: a symlink that leads to another
    /// release, say. A path that has always led to another program is that of a wrapper.
    fn named_program(&self, start: StartTime) -> Option<String> {
        let (pid, _) = self.daemon.process;
        let command_line = read_bytes(self.host, pid, "cmdline")?;
        let name = command_line.split(|byte| *byte == 0).next()?;
        let name = std::str::from_utf8(name).ok()?;
        let is_own = name.starts_with('/') && file_name(name).contains("containerd");
        let times = is_own.then(|| self.host.times(name).ok())??;
        // The process was started by that path, so it existed.
        let is_changed =
            times.is_none_or(|times| start.may_be_before(times.latest.max(times.moved)));
        is_changed.then(|| name.to_owned())
    }

    /// The program that the unit starts, where the process runs another one: k3s unpacks its program, a symlink leads to another release,
    /// or a script starts containerd. Then the times count, also those of the symlinks. Programs with other names, such as a shell, belong
    /// to the operating system.
    fn program_of_unit(&self, main: u32, start: StartTime, service: &Unit) -> Option<Input> {
        if self.distro.restart != Restart::Service {
            return None;
        }
        let program = &service.as_ref().ok()?.command.as_ref().ok()?.program;
        let is_own = |name: &str| {
            let mut names = self.distro.programs.iter().map(|path| file_name(path));
            name.contains("containerd") || names.any(|own| own == name)
        };
        let runs = |pid: u32| {
            let exe = self.host.symlink_target(&format!("/proc/{pid}/exe"));
            let exe = exe.ok().flatten().unwrap_or_default();
            let running = [
                self.host.identity_of_program(pid),
                // Another program at the same path: `programs` has it.
                self.identity_at(without_deleted_mark(&exe)),
            ];
            running.contains(&self.identity_at(program))
        };
        if !is_own(file_name(program)) || runs(main) || runs(self.daemon.process.0) {
            return None;
        }
        self.at(InputKind::Unit, program, start)
    }

    /// The files of the unit.
    fn unit(&self, start: StartTime, service: &Unit, status: Option<&ServiceStatus>) -> Vec<Input> {
        if self.distro.restart != Restart::Service {
            return Vec::new();
        }
        let unit = &self.service.unit;
        let paths = match status.map(|status| status.needs_reload) {
            // OpenRC runs a script with the settings of a file. The script of k3s reads another one (k3s, `install.sh`).
            Some(None) => {
                let name = self.service.name();
                vec![
                    format!("/etc/init.d/{name}"),
                    format!("/etc/conf.d/{name}"),
                    format!("/etc/rancher/k3s/{name}.env"),
                ]
            }
            Some(Some(true)) => {
                return vec![Input {
                    path: unit.clone(),
                    kind: InputKind::Unit,
                    change: Change::NotReloaded,
                    contents: Contents::Foreign,
                }];
            }
            Some(Some(false)) | None => unit_paths(self.host, unit, service),
        };
        let paths = paths.iter();
        paths
            .filter_map(|path| self.at(InputKind::Unit, path, start))
            .collect()
    }

    /// The files that the unit of k3s or RKE2 names in place of the default ones, each with the directory of its drop-ins (k3s,
    /// *Configuration Options*).
    fn named_by_unit(&self, service: &ServiceDefinition) -> Vec<String> {
        let variables = ["K3S_CONFIG_FILE", "RKE2_CONFIG_FILE"];
        let variables = variables.map(|name| service.environment.get(name).cloned());
        let arguments = service.command.as_ref();
        let arguments = arguments.map_or(&[][..], |command| &command.arguments);
        let of_flag = |at: usize| {
            let flags = ["--config", "-c", "--private-registry"];
            let rest = |flag| arguments[at].strip_prefix(flag);
            match flags.into_iter().find_map(rest)? {
                "" => arguments.get(at + 1).cloned(),
                value => value.strip_prefix('=').map(str::to_owned),
            }
        };
        let of_flags = (0..arguments.len()).filter_map(of_flag);
        let named = of_flags.chain(variables.into_iter().flatten());
        named
            .flat_map(|path| [format!("{path}.d"), path])
            .filter(|path| !self.distro.own_config.contains(&path.as_str()))
            .collect()
    }

    /// The files of others in the directory from which the kubelet of k3s and RKE2 reads its configuration. k3s writes its own files there at
    /// each start, so the directory itself does not count (k3s, `pkg/daemons/agent`).
    fn kubelet_config(&self) -> Vec<String> {
        if !matches!(self.distro.edited, Edited::GoTemplate { .. }) {
            return Vec::new();
        }
        let root = &self.config_files.root.path;
        let directory = format!(
            "{}/kubelet.conf.d",
            parent_directory(parent_directory(root))
        );
        let own = [
            format!("00-{}-defaults.conf", self.distro.id),
            "10-cli-config.conf".to_owned(),
        ];
        let names = self.host.list(&directory).unwrap_or_default().into_iter();
        let names =
            names.filter(|name| name.strip_suffix(".conf").is_some() && !own.contains(name));
        let paths = names.map(|name| format!("{directory}/{name}"));
        paths.take(MAX_FILES).collect()
    }

    /// The distribution's own configuration.
    fn distribution(&self, start: StartTime, service: &Unit) -> Vec<Input> {
        let reads = self.is_rendered() && self.distro.restart == Restart::Service;
        let service = service.as_ref().ok().filter(|_| reads);
        let named = service.map_or_else(Vec::new, |service| self.named_by_unit(service));
        let paths = self.distro.own_config.iter().map(|path| (*path).to_owned());
        let of_kubelet = self.kubelet_config().into_iter();
        let with_files = paths.chain(named).flat_map(|path| {
            let listed = match path.strip_suffix(".d") {
                Some(_) => self.host.list(&path).unwrap_or_default(),
                None => Vec::new(),
            };
            let files = listed.into_iter().take(MAX_FILES);
            let files: Vec<String> = files.map(|name| format!("{path}/{name}")).collect();
            std::iter::once(path).chain(files)
        });
        with_files
            .chain(of_kubelet)
            .filter_map(|path| self.at(InputKind::Distribution, &path, start))
            .collect()
    }
}

/// Records what the running containerd has loaded, so that a later run recognises it by its bytes. Nothing that is pending is recorded.
///
/// # Errors
/// When the record can't be written.
pub(crate) fn record_loaded(subject: &Subject<'_>, inputs: &[Input]) -> host::Result<()> {
    let texts = subject.config_files.files().chain(subject.sources);
    let texts: BTreeMap<&str, &str> = texts
        .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
        .collect();
    let is_loaded =
        |input: &&Input| input.contents == Contents::AsLoaded || !input.change.is_pending();
    let snippets = subject.snippet_directory();
    let digest = |input: &Input| match input.kind {
        _ if snippets.as_ref() == Some(&input.path) => Some(subject.listing(&input.path)),
        InputKind::ImportDirectory => Some(subject.listing(&input.path)),
        InputKind::AbsentConfig | InputKind::NriPlugin | InputKind::NriPlugins => None,
        InputKind::Config | InputKind::Program | InputKind::Unit | InputKind::Distribution => {
            let text = texts.get(input.path.as_str())?;
            Some(Sha256Digest::of(text.as_bytes()))
        }
    };
    let digests = inputs.iter().filter(is_loaded);
    let digests = digests.filter_map(|input| Some((input.path.clone(), digest(input)?)));
    let loaded = LoadedConfig {
        process: subject.daemon.process,
        boot_id: subject.boot_id.to_owned(),
        digests: Some(digests.collect()),
        present: subject.present(inputs),
    };
    write_loaded(subject.host, &loaded)
}

/// Records after a restart which files of `inputs` the new process of containerd and its service have found.
///
/// # Errors
/// When the record can't be written.
pub(crate) fn record_present(
    subject: &Subject<'_>,
    inputs: &[Input],
    process: (u32, u64),
) -> host::Result<()> {
    let exists = |path: &String| matches!(subject.host.exists(path), Ok(true));
    let mut present = subject.present(inputs);
    present.retain(exists);
    let loaded = LoadedConfig {
        process,
        boot_id: subject.boot_id.to_owned(),
        digests: None,
        present,
    };
    write_loaded(subject.host, &loaded)
}

fn write_loaded(host: &HostRoot, loaded: &LoadedConfig) -> host::Result<()> {
    let text = to_json(loaded);
    let before = host.digest(LOADED_FILE)?;
    host.replace(LOADED_FILE, text.as_bytes(), before, 0o600)
}

/// The time that counts as the last change of an input. A hook of `MicroK8s` sets the attributes of its own files after each start
/// (`snap/hooks/configure`), and leaves their contents alone.
///
/// Of a file of the unit, a directory that was renamed does not count: systemd compares its files itself, and the first change below a
/// directory of an overlay file system looks like a rename.
fn last_change(times: Times, kind: InputKind, edited: &Edited) -> Duration {
    match (kind, edited) {
        (InputKind::Distribution, Edited::TomlTemplate(_)) => times.modified,
        (InputKind::Unit | InputKind::NriPlugin | InputKind::NriPlugins, _) => times.latest,
        (
            InputKind::Config
            | InputKind::AbsentConfig
            | InputKind::ImportDirectory
            | InputKind::Program
            | InputKind::Distribution,
            _,
        ) => times.latest.max(times.moved),
    }
}

/// The directory whose entries a glob is compared with: the part before its first pattern. `None` for a plain path, which containerd loads
/// without a search.
fn directory_of_glob(glob: &str) -> Option<String> {
    let (before, _) = glob.split_once(['*', '?', '['])?;
    let (directory, _) = before.rsplit_once('/')?;
    Some(if directory.is_empty() {
        "/".to_owned()
    } else {
        directory.to_owned()
    })
}

/// Whether the last change of a directory is that of a file of Farrier, which is as Farrier wrote it.
fn is_explained(directory: &Input, files: &[Input]) -> bool {
    let Change::At(changed, _) = directory.change else {
        return false;
    };
    files.iter().any(|file| {
        file.contents == Contents::AsWritten
            && parent_directory(&file.path) == directory.path
            && matches!(file.change, Change::At(written, _) if changed <= written + SAME_CALL)
    })
}

/// The files of a unit and its directories of drop-ins. Units without a source of their own are left out: systemd writes the files of
/// generators at each reload, and what `systemctl set-property` writes is in effect already.
fn unit_paths(host: &HostRoot, unit: &str, service: &Unit) -> Vec<String> {
    let is_made = |path: &str| {
        ["generator", "transient", "system.control"]
            .iter()
            .any(|directory| path.contains(&format!("/systemd/{directory}")))
    };
    let files = match service {
        Ok(service) => service.files.clone(),
        Err(reason) => {
            debug!(unit, %reason, "failed to read the unit of containerd");
            systemd_unit::paths(host, unit).unwrap_or_default()
        }
    };
    let directories = UNIT_DIRECTORIES.map(|directory| format!("{directory}/{unit}.d"));
    let paths = files.into_iter().chain(directories);
    paths.filter(|path| !is_made(path)).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::distro::by_id;

    #[rstest]
    #[case::of_microk8s("microk8s", InputKind::Distribution, 1)]
    #[case::of_its_containerd("microk8s", InputKind::Config, 3)]
    #[case::of_k3s("k3s", InputKind::Distribution, 3)]
    #[case::of_a_unit("k3s", InputKind::Unit, 2)]
    fn changed_attributes_of_microk8s_own_files_are_no_change(
        #[case] distro: &str,
        #[case] kind: InputKind,
        #[case] expected: u64,
    ) {
        let [modified, latest, moved] = [1, 2, 3].map(Duration::from_secs);
        let times = Times {
            modified,
            latest,
            moved,
        };
        let changed = last_change(times, kind, &by_id(distro).edited);
        assert_eq!(changed, Duration::from_secs(expected));
    }

    #[rstest]
    #[case("/etc/containerd/conf.d/*.toml", Some("/etc/containerd/conf.d"))]
    #[case("/etc/containerd/*/a.toml", Some("/etc/containerd"))]
    #[case("/etc/containerd/conf.d/a*.toml", Some("/etc/containerd/conf.d"))]
    #[case("/*.toml", Some("/"))]
    #[case("/etc/containerd/a.toml", None)]
    fn the_directory_of_a_glob_is_the_one_before_its_pattern(
        #[case] glob: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(directory_of_glob(glob).as_deref(), expected);
    }

    #[rstest]
    #[case::by_its_own_file(Contents::AsWritten, 0, true)]
    #[case::by_an_edited_file(Contents::Edited, 0, false)]
    #[case::by_a_later_removal(Contents::AsWritten, 5_000, false)]
    fn a_directory_that_only_farrier_changed_is_as_farrier_wrote_it(
        #[case] contents: Contents,
        #[case] later: u64,
        #[case] expected: bool,
    ) {
        let start = StartTime::new(Duration::ZERO, None);
        let input = |path: &str, kind, at| Input {
            path: path.to_owned(),
            kind,
            change: Change::At(Duration::from_millis(at), start),
            contents: Contents::Foreign,
        };
        let file = Input {
            contents,
            ..input("/conf.d/farrier.toml", InputKind::Config, 1_000)
        };
        let directory = input("/conf.d", InputKind::ImportDirectory, 1_000 + later);
        assert_eq!(is_explained(&directory, &[file]), expected);
    }
}
