//! Reads from unit files how systemd starts a service, for a host without a running systemd (`systemd` is the client of a running one).
//! Follows systemd.syntax(7), systemd.unit(5), systemd.service(5), systemd.exec(5) and systemd-system.conf(5), as systemd 252 to 258 do.
//!
//! Values outside of these files (the hostname, `systemctl set-environment`) make a command unknown, or are left out of the environment.

mod condition;
mod syntax;

use std::collections::{BTreeMap, BTreeSet};

use self::syntax::{
    Environment, Name, assignments, command_lines, environment_file, expand, specifiers, words,
};
use crate::installer::host::{self, HostRoot};

/// Unit directories of the system manager, highest priority first (systemd.unit(5), *Unit File Load Path*).
pub(crate) const UNIT_DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// Directories of the manager's own configuration, highest priority first (systemd-system.conf(5)).
const MANAGER_DIRECTORIES: [&str; 5] = [
    "/etc/systemd",
    "/run/systemd",
    "/usr/local/lib/systemd",
    "/usr/lib/systemd",
    "/lib/systemd",
];

/// Size of a file, in bytes, at most. Units, drop-ins and environment files have some hundred bytes.
const MAX_TEXT: u64 = 1 << 16;

/// Drop-ins or environment files of a service, at most. A service has a handful of each.
const MAX_FILES: usize = 256;

/// Chained aliases at most. An alias usually names the unit itself; systemd has a limit as well.
const MAX_ALIASES: usize = 8;

/// Why the command of a service is unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The unit is masked: systemd does not start it.
    #[error("{path} masks the unit")]
    Masked {
        /// A symlink to `/dev/null`, or an empty file.
        path: String,
    },
    /// The aliases of the unit form a loop, or the name is not that of a service.
    #[error("{name} does not resolve to a service unit")]
    Name {
        /// The name.
        name: String,
    },
    /// A unit or directory has too many files.
    #[error("{name} has more than {MAX_FILES} files")]
    Files {
        /// The unit or directory.
        name: String,
    },
    /// systemd would refuse the file, or releases of systemd read it differently.
    #[error("failed to parse {path}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// The error in the file.
        #[source]
        source: syntax::Error,
    },
    /// The files have no `ExecStart=`, or several commands in it.
    #[error("the unit has {count} commands in ExecStart= instead of one")]
    Commands {
        /// Number of commands.
        count: usize,
    },
    /// The service has its own root directory, so its paths are not those of the host.
    #[error("the unit sets its own root directory with {setting}=")]
    Root {
        /// Name of the setting: `RootDirectory` or `RootImage`.
        setting: &'static str,
    },
    /// A required environment file is missing, so the service does not start.
    #[error("the environment file {path} is missing")]
    NoEnvironmentFile {
        /// The file.
        path: String,
    },
    /// The script of an `OpenRC` service does more than assign plain values.
    #[error("the script of the OpenRC service {name} decides")]
    OpenRc {
        /// Name of the service.
        name: String,
    },
    /// A specifier or variable of the command can't be expanded.
    #[error(transparent)]
    Expansion(syntax::Error),
    /// A specifier in an argument can't be expanded.
    #[error("{source}")]
    Unresolved {
        /// The command, with that argument as in the unit.
        command: Command,
        /// The specifier.
        #[source]
        source: syntax::Error,
    },
}

/// The command that starts a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Path of the program, as in the unit.
    pub program: String,
    /// All arguments, including the first one, the name of the program.
    pub arguments: Vec<String>,
}

/// A file of a unit, or of the manager's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    /// Path on the host.
    pub path: String,
    /// Text of the file; empty for a symlink to `/dev/null`.
    pub text: String,
}

/// A service, as its files define it.
#[derive(Debug)]
pub struct ServiceDefinition {
    /// The command that starts the service.
    pub command: Result<Command, Error>,
    /// The environment that the files set.
    pub environment: BTreeMap<String, String>,
    /// Paths of the files, in the order in which systemd reads them.
    pub files: Vec<String>,
    /// The condition or assertion with which systemd would not start the service now, as in a unit file.
    pub unmet: Option<String>,
    /// The directories of a program without a slash, if the unit names them (`ExecSearchPath=`, systemd 250).
    pub search_path: Vec<String>,
    /// Working directory of the service (systemd.exec(5)); `None` if it depends on more than the files.
    pub working_directory: Option<String>,
}

/// A service as its files define it, or why they don't define one.
pub(crate) type Unit = Result<ServiceDefinition, Error>;

/// Reads the files of a service. A unit without files is a service without a command.
///
/// # Errors
/// When a file can't be read or parsed, or the unit is masked.
pub(crate) fn service(host: &HostRoot, unit: &str) -> Unit {
    let (name, files) = unit_files(host, unit)?;
    let manager = manager_files(host)?;
    let settings = Settings::parse(&name, &manager, &files)?;
    let mut paths: Vec<String> = files.into_iter().map(|file| file.path).collect();
    let mut environment = settings.environment.clone();
    let mut absent = None;
    for file in &settings.environment_files {
        let (path, optional) = match file.strip_prefix('-') {
            Some(path) => (path, true),
            None => (file.as_str(), false),
        };
        match host.read_text(path, MAX_TEXT)? {
            Some(text) => {
                let wrap = |source| Error::Syntax {
                    path: path.to_owned(),
                    source,
                };
                let variables = environment_file(&text).map_err(wrap)?.into_iter();
                environment.extend(variables.map(|(name, value)| (name, Some(value))));
                paths.push(path.to_owned());
            }
            None if optional => {}
            None => absent = Some(path.to_owned()),
        }
    }
    settings.unset(&mut environment);
    let known = |(name, value): (&String, &Option<String>)| Some((name.clone(), value.clone()?));
    Ok(ServiceDefinition {
        environment: environment.iter().filter_map(known).collect(),
        command: match absent {
            Some(path) => Err(Error::NoEnvironmentFile { path }),
            None => settings.command(&environment),
        },
        files: paths,
        unmet: condition::unmet(host, &name, &settings.conditions),
        search_path: settings.search_path,
        working_directory: settings.working_directory,
    })
}

/// The paths of the unit file and its drop-ins, whatever is in them.
///
/// # Errors
/// When a directory or file can't be read, or the unit is masked.
pub(crate) fn paths(host: &HostRoot, unit: &str) -> Result<Vec<String>, Error> {
    let (_, files) = unit_files(host, unit)?;
    Ok(files.into_iter().map(|file| file.path).collect())
}

/// The settings that define the command and environment of a service, and whether systemd starts it.
#[derive(Debug, Default)]
struct Settings {
    /// Each command, or the error of a specifier that depends on the running system.
    commands: Vec<Result<syntax::CommandLine, syntax::Error>>,
    /// `Environment=`, which overrides `PassEnvironment=` and `DefaultEnvironment=`.
    environment: Environment,
    /// Paths, with a dash before each optional file.
    environment_files: Vec<String>,
    /// `UnsetEnvironment=`: names, and assignments. An assignment is removed only if the value is equal.
    unset: Vec<String>,
    root: Option<&'static str>,
    search_path: Vec<String>,
    working_directory: Option<String>,
    /// The assignments of conditions and assertions.
    conditions: Vec<(String, String)>,
}

impl Settings {
    /// Parses the files in the given order. An assignment adds to earlier ones, and an empty assignment clears them.
    fn parse(name: &Name, manager: &[UnitFile], files: &[UnitFile]) -> Result<Self, Error> {
        let mut settings = Self {
            working_directory: Some("/".to_owned()),
            ..Self::default()
        };
        let (mut own, mut passed) = (Environment::new(), Vec::new());
        for (section, file) in [("Manager", manager), ("Unit", files), ("Service", files)]
            .into_iter()
            .flat_map(|(section, files)| files.iter().map(move |file| (section, file)))
        {
            let wrap = |source| Error::Syntax {
                path: file.path.clone(),
                source,
            };
            for (key, value) in assignments(&file.text, section).map_err(wrap)? {
                let value = value.as_str();
                match (section, key.as_str()) {
                    ("Unit", key) if key.starts_with("Condition") || key.starts_with("Assert") => {
                        settings.conditions.push((key.to_owned(), value.to_owned()));
                    }
                    ("Manager", "DefaultEnvironment") => {
                        assign(&mut settings.environment, name, value);
                    }
                    ("Service", "Environment") => {
                        assign(&mut own, name, value);
                    }
                    ("Service", "ExecStart") => {
                        let commands = match command_lines(name, value) {
                            Ok(commands) => commands.into_iter().map(Ok).collect(),
                            // systemd resolves this specifier at the start, and a later file may clear the command.
                            Err(error @ syntax::Error::Specifier { .. }) => vec![Err(error)],
                            Err(error) => return Err(wrap(error)),
                        };
                        extend_or_clear(&mut settings.commands, value, commands);
                    }
                    ("Service", "EnvironmentFile") => {
                        let path = environment_path(name, value).map_err(wrap)?;
                        extend_or_clear(&mut settings.environment_files, value, path);
                    }
                    ("Service", "PassEnvironment") => {
                        extend_or_clear(&mut passed, value, words(value));
                    }
                    ("Service", "UnsetEnvironment") => {
                        let given = words(value);
                        extend_or_clear(&mut settings.unset, value, given);
                    }
                    ("Service", "ExecSearchPath") => {
                        let path = specifiers(name, value).map_err(wrap)?;
                        let path = path.split(':').map(str::to_owned);
                        extend_or_clear(&mut settings.search_path, value, path);
                    }
                    ("Service", "WorkingDirectory") => {
                        settings.working_directory = working_directory(name, value);
                    }
                    ("Service", "RootDirectory" | "RootImage") => {
                        let key = if key == "RootImage" {
                            "RootImage"
                        } else {
                            "RootDirectory"
                        };
                        settings.root = (!matches!(value, "" | "/")).then_some(key);
                    }
                    _ => {}
                }
            }
            if settings.environment_files.len() > MAX_FILES {
                let name = name.full();
                return Err(Error::Files { name });
            }
        }
        // The value of a passed variable that no file sets is known only to the running manager.
        for name in passed {
            settings.environment.entry(name).or_insert(None);
        }
        settings.environment.extend(own);
        Ok(settings)
    }

    fn unset(&self, environment: &mut Environment) {
        environment.retain(|name, value| {
            let is_unset = |entry: &String| match entry.split_once('=') {
                Some((unset, only)) => unset == name && value.as_deref() == Some(only),
                None => entry == name,
            };
            !self.unset.iter().any(is_unset)
        });
    }

    fn command(&self, environment: &Environment) -> Result<Command, Error> {
        if let Some(setting) = self.root {
            return Err(Error::Root { setting });
        }
        let [command] = self.commands.as_slice() else {
            let count = self.commands.len();
            return Err(Error::Commands { count });
        };
        let command = command
            .as_ref()
            .map_err(|error| Error::Expansion(error.clone()))?;
        let arguments = if command.expands {
            expand(&command.arguments, environment).map_err(Error::Expansion)?
        } else {
            command.arguments.clone()
        };
        let program = command.program.clone();
        let expanded = Command { program, arguments };
        match command.unresolved.clone() {
            Some(source) => Err(Error::Unresolved {
                command: expanded,
                source,
            }),
            None => Ok(expanded),
        }
    }
}

fn extend_or_clear<T>(list: &mut Vec<T>, value: &str, more: impl IntoIterator<Item = T>) {
    if value.is_empty() {
        list.clear();
    } else {
        list.extend(more);
    }
}

/// Adds the assignments of one `Environment=`. Like systemd, skips words that are no assignments.
fn assign(environment: &mut Environment, name: &Name, value: &str) {
    if value.is_empty() {
        environment.clear();
    }
    for word in words(value) {
        let resolved = specifiers(name, &word);
        let word = resolved.as_deref().unwrap_or(&word);
        if let Some((name, value)) = syntax::assignment(word) {
            let value = resolved.is_ok().then(|| value.to_owned());
            environment.insert(name.to_owned(), value);
        }
    }
}

/// The directory of one `WorkingDirectory=`. `~` is the home of the service's user, and a dash allows the directory to be missing.
fn working_directory(name: &Name, value: &str) -> Option<String> {
    let path = specifiers(name, value.strip_prefix('-').unwrap_or(value)).ok()?;
    match path.as_str() {
        "" => Some("/".to_owned()),
        path => path.starts_with('/').then(|| path.to_owned()),
    }
}

/// The path of one `EnvironmentFile=`, with its dash. Like systemd, skips a path that is not absolute.
fn environment_path(name: &Name, value: &str) -> Result<Option<String>, syntax::Error> {
    let path = specifiers(name, value)?;
    let plain = path.strip_prefix('-').unwrap_or(&path);
    if plain.contains(['*', '?', '[']) {
        return Err(syntax::Error::Pattern { path });
    }
    Ok(plain.starts_with('/').then_some(path))
}

/// The name of a unit with aliases resolved, and its files: the unit file, then the drop-ins in the order in which systemd reads them.
fn unit_files(host: &HostRoot, unit: &str) -> Result<(Name, Vec<UnitFile>), Error> {
    let no_unit = |name: &str| Error::Name {
        name: name.to_owned(),
    };
    let mut name = Name::parse(unit).ok_or_else(|| no_unit(unit))?;
    let mut names = vec![name.full()];
    let mut files = Vec::new();
    for step in 0.. {
        if step > MAX_ALIASES {
            return Err(no_unit(unit));
        }
        let Some(path) = fragment(host, &name)? else {
            break;
        };
        if let Some(real) = alias(host, &name, &path)? {
            name = real;
            names.insert(0, name.full());
            continue;
        }
        let file = read(host, path)?;
        if file.text.is_empty() {
            return Err(Error::Masked { path: file.path });
        }
        files.push(file);
        break;
    }
    names.extend(aliases_with_drop_ins(host, &names)?);
    let named = names.iter().filter_map(|name| Name::parse(name));
    let mut directories: Vec<String> = named
        .flat_map(|name| {
            let below = move |directory: &'static str| {
                let names = name.clone().drop_in_names();
                names
                    .into_iter()
                    .map(move |name| format!("{directory}/{name}.d"))
            };
            UNIT_DIRECTORIES.into_iter().flat_map(below)
        })
        .collect();
    directories.extend(UNIT_DIRECTORIES.map(|directory| format!("{directory}/service.d")));
    for path in drop_ins(host, &directories)? {
        files.push(read(host, path)?);
    }
    Ok((name, files))
}

/// The configuration file of the system manager, and its drop-ins.
fn manager_files(host: &HostRoot) -> Result<Vec<UnitFile>, Error> {
    let paths = MANAGER_DIRECTORIES.map(|directory| format!("{directory}/system.conf"));
    let main = first_that_exists(host, paths)?;
    let directories = MANAGER_DIRECTORIES.map(|directory| format!("{directory}/system.conf.d"));
    let paths = main.into_iter().chain(drop_ins(host, &directories)?);
    paths.map(|path| read(host, path)).collect()
}

/// The path of the unit file: that of the instance, or else that of its template.
fn fragment(host: &HostRoot, name: &Name) -> Result<Option<String>, Error> {
    let names = [Some(name.full()), name.template()];
    let paths = names
        .into_iter()
        .flatten()
        .flat_map(|name| UNIT_DIRECTORIES.map(|directory| format!("{directory}/{name}")));
    first_that_exists(host, paths)
}

/// The first of these paths that exists.
fn first_that_exists(
    host: &HostRoot,
    paths: impl IntoIterator<Item = String>,
) -> Result<Option<String>, Error> {
    for path in paths {
        if host.exists(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The unit whose alias the file at `path` is: a symlink to a file with another name in one of systemd's unit directories.
fn alias(host: &HostRoot, name: &Name, path: &str) -> Result<Option<Name>, Error> {
    let target = host.symlink_target(path)?;
    Ok(target.and_then(|target| unit_of_symlink(name, path, &target)))
}

/// The unit whose alias `name` is, because of a symlink at `path` to `target`.
fn unit_of_symlink(name: &Name, path: &str, target: &str) -> Option<Name> {
    let (directory, _) = path.rsplit_once('/')?;
    let (parent, file) = target.rsplit_once('/').unwrap_or(("", target));
    let parent = if parent.starts_with('/') {
        normal(parent)
    } else {
        normal(&format!("{directory}/{parent}"))
    };
    let own = path.rsplit('/').next()?;
    let is_unit = UNIT_DIRECTORIES.contains(&parent.as_str());
    let target = Name::parse(file).filter(|_| is_unit && file != own)?;
    // A symlink to a template is an alias of the instance with the same name.
    let instance = name.of_template(&target);
    (instance.full() != name.full()).then_some(instance)
}

/// A path without `.` and `..`, resolved from the text alone.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The other names of a unit that have drop-ins.
fn aliases_with_drop_ins(host: &HostRoot, names: &[String]) -> Result<BTreeSet<String>, Error> {
    let Some(unit) = names.first() else {
        return Ok(BTreeSet::new());
    };
    let mut found = BTreeSet::new();
    for directory in UNIT_DIRECTORIES {
        for entry in host.list(directory)? {
            let Some(name) = entry.strip_suffix(".d").and_then(Name::parse) else {
                continue;
            };
            let other = match fragment(host, &name)? {
                Some(path) => alias(host, &name, &path)?,
                None => None,
            };
            if !names.contains(&name.full()) && other.is_some_and(|other| other.full() == *unit) {
                found.insert(name.full());
            }
        }
    }
    Ok(found)
}

/// The drop-ins in these directories (highest priority first), in the order in which systemd reads them: sorted by file name, each name
/// once.
fn drop_ins(host: &HostRoot, directories: &[String]) -> Result<Vec<String>, Error> {
    let mut found = BTreeMap::new();
    for directory in directories {
        for name in host.list(directory)? {
            if matches!(name.rsplit_once('.'), Some((_, "conf"))) && !name.starts_with('.') {
                let path = format!("{directory}/{name}");
                found.entry(name).or_insert(path);
            }
        }
        if found.len() > MAX_FILES {
            let name = directory.clone();
            return Err(Error::Files { name });
        }
    }
    Ok(found.into_values().collect())
}

/// Reads a file. A symlink to `/dev/null` or to a missing file has an empty text.
fn read(host: &HostRoot, path: String) -> Result<UnitFile, Error> {
    let is_null = host
        .follow(&path)
        .is_ok_and(|real| normal(&real) == "/dev/null");
    let text = if is_null {
        None
    } else {
        host.read_text(&path, MAX_TEXT)?
    };
    let text = text.unwrap_or_default();
    Ok(UnitFile { path, text })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ETC: &str = "/etc/systemd/system";
    const USR: &str = "/usr/lib/systemd/system";

    /// A host with these files; a text that begins with `-> ` is the target of a symlink.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, HostRoot) {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let short = path.replace("E:", ETC).replace("U:", USR);
            let path = directory.path().join(short.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                None => std::fs::write(path, text).unwrap(),
            }
        }
        let host = HostRoot::open(directory.path()).unwrap();
        (directory, host)
    }

    /// The unit in containerd's packages, shortened.
    const PACKAGED: &str = "[Unit]\nAfter=network.target dbus.service\n\n[Service]\nExecStartPre=-/sbin/modprobe overlay\n\
        ExecStart=/usr/bin/containerd\n\nType=notify\nDelegate=yes\nKillMode=process\n\n[Install]\nWantedBy=multi-user.target\n";
    /// The unit that the script of k3s writes for a server with a flag.
    const K3S: &str = "[Service]\nType=notify\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/sysconfig/%N\n\
        EnvironmentFile=-/etc/systemd/system/k3s.service.env\nKillMode=process\n\
        ExecStart=/usr/local/bin/k3s \\\n    server \\\n\t'--disable' \\\n\t'traefik' \\\n\n";
    /// The unit in RKE2's packages, shortened.
    const RKE2: &str = "[Service]\nType=notify\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/usr/local/lib/systemd/system/%N.env\n\
        KillMode=process\nExecStart=/usr/local/bin/rke2 agent\nExecStopPost=-/bin/sh -c \"systemd-cgls /system.slice/%n\"\n";
    /// The kubelet's unit on AKS and its drop-ins, shortened.
    const AKS: &str = "[Service]\nEnvironmentFile=/etc/default/kubelet\nExecStart=/usr/local/bin/kubelet \\\n        --enable-server \\\n\
        --node-labels=\"${KUBELET_NODE_LABELS}\" \\\n        $KUBELET_FLAGS $KUBELET_CGROUP_FLAGS\n";
    /// The unit on Flatcar, shortened.
    const FLATCAR: &str = "[Service]\nEnvironment=CONTAINERD_CONFIG=/usr/share/containerd/config.toml\n\
        ExecStart=/usr/bin/containerd --config ${CONTAINERD_CONFIG}\n";

    #[rstest]
    #[case::of_a_package("containerd.service", &[("U:/containerd.service", PACKAGED)], &["/usr/bin/containerd"])]
    #[case::of_an_administrator_over_a_package(
        "containerd.service",
        &[("U:/containerd.service", PACKAGED), ("E:/containerd.service", "[Service]\nExecStart=/opt/containerd -c /a\n")],
        &["/opt/containerd", "-c", "/a"]
    )]
    #[case::a_reset_in_a_drop_in(
        "containerd.service",
        &[
            ("U:/containerd.service", PACKAGED),
            ("E:/containerd.service.d/10-exec.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/containerd --config=/a\n"),
        ],
        &["/usr/bin/containerd", "--config=/a"]
    )]
    #[case::drop_ins_by_name_and_not_by_directory(
        "containerd.service",
        &[
            ("U:/containerd.service", FLATCAR),
            ("/etc/systemd/system/containerd.service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
            ("/usr/lib/systemd/system/containerd.service.d/20.conf", "[Service]\nEnvironment=A=1 \"CONTAINERD_CONFIG=/a b\"\n"),
        ],
        &["/usr/bin/containerd", "--config", "/a b"]
    )]
    #[case::a_drop_in_over_one_of_its_name(
        "containerd.service",
        &[
            ("U:/containerd.service", FLATCAR),
            ("/run/systemd/system/containerd.service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/a\n"),
            ("/usr/local/lib/systemd/system/containerd.service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
        ],
        &["/usr/bin/containerd", "--config", "/a"]
    )]
    #[case::a_drop_in_that_is_masked(
        "containerd.service",
        &[
            ("U:/containerd.service", FLATCAR),
            ("E:/containerd.service.d/10.conf", "-> /dev/null"),
            ("U:/containerd.service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
        ],
        &["/usr/bin/containerd", "--config", "/usr/share/containerd/config.toml"]
    )]
    #[case::a_drop_in_for_all_services(
        "containerd.service",
        &[
            ("U:/containerd.service", FLATCAR),
            ("E:/service.d/90.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/a\n"),
            ("E:/service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
            ("U:/containerd.service.d/10.conf", "[Service]\nEnvironment=B=1\n"),
        ],
        &["/usr/bin/containerd", "--config", "/a"]
    )]
    #[case::drop_ins_of_other_suffixes(
        "containerd.service",
        &[
            ("U:/containerd.service", FLATCAR),
            ("E:/containerd.service.d/10.conf.bak", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
            ("E:/containerd.service.d/.20.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/b\n"),
        ],
        &["/usr/bin/containerd", "--config", "/usr/share/containerd/config.toml"]
    )]
    #[case::an_environment_that_begins_anew(
        "containerd.service",
        &[("U:/containerd.service", FLATCAR), ("E:/containerd.service.d/10.conf", "[Service]\nEnvironment=\n")],
        &["/usr/bin/containerd", "--config", ""]
    )]
    #[case::a_variable_that_is_unset(
        "containerd.service",
        &[("U:/containerd.service", FLATCAR), ("E:/containerd.service.d/10.conf", "[Service]\nUnsetEnvironment=CONTAINERD_CONFIG\n")],
        &["/usr/bin/containerd", "--config", ""]
    )]
    #[case::a_variable_of_the_manager(
        "a.service",
        &[
            ("U:/a.service", "[Service]\nExecStart=/bin/a $X\n"),
            ("/etc/systemd/system.conf", "[Manager]\nDefaultEnvironment=X=b\n"),
            ("/usr/lib/systemd/system.conf.d/10.conf", "[Manager]\nDefaultEnvironment=X=a\n"),
        ],
        &["/bin/a", "a"]
    )]
    #[case::beside_a_variable_with_the_hostname(
        "a.service",
        &[("U:/a.service", "[Service]\nEnvironment=NODE=%H X=a\nExecStart=/bin/a $X\n")],
        &["/bin/a", "a"]
    )]
    #[case::after_a_reset_of_one_with_the_hostname(
        "a.service",
        &[("U:/a.service", "[Service]\nExecStart=/bin/b %H\nExecStart=\nExecStart=/bin/a\n")],
        &["/bin/a"]
    )]
    #[case::k3s("k3s.service", &[("E:/k3s.service", K3S)], &["/usr/local/bin/k3s", "server", "--disable", "traefik"])]
    #[case::rke2("rke2-agent.service", &[("/usr/local/lib/systemd/system/rke2-agent.service", RKE2)], &["/usr/local/bin/rke2", "agent"])]
    #[case::the_kubelet_on_aks(
        "kubelet.service",
        &[
            ("E:/kubelet.service", AKS),
            ("E:/kubelet.service.d/10-cgroupv2.conf", "[Service]\nEnvironment=\"KUBELET_CGROUP_FLAGS=--cgroup-driver=systemd\"\n"),
            ("/etc/default/kubelet", "KUBELET_NODE_LABELS=a=1,b=2\nKUBELET_FLAGS=--config /etc/k.json --v=2 \n"),
        ],
        &["/usr/local/bin/kubelet", "--enable-server", "--node-labels=a=1,b=2", "--config", "/etc/k.json", "--v=2", "--cgroup-driver=systemd"]
    )]
    #[case::the_kubelet_on_eks(
        "kubelet.service",
        &[
            ("E:/kubelet.service", "[Service]\nSlice=runtime.slice\nEnvironmentFile=/etc/eks/kubelet/environment\nExecStart=/usr/bin/kubelet $NODEADM_KUBELET_ARGS\n"),
            ("/etc/eks/kubelet/environment", "NODEADM_KUBELET_ARGS=\"--config=/etc/kubernetes/kubelet/config.json --v=2\"\n"),
        ],
        &["/usr/bin/kubelet", "--config=/etc/kubernetes/kubelet/config.json", "--v=2"]
    )]
    #[case::an_environment_file_over_the_environment(
        "a.service",
        &[
            ("U:/a.service", "[Service]\nEnvironmentFile=/etc/%p.env\nEnvironment=X=b\nExecStart=/bin/a $X\n"),
            ("/etc/a.env", "X=a"),
        ],
        &["/bin/a", "a"]
    )]
    #[case::an_instance_of_a_template("a@b.service", &[("U:/a@.service", "[Service]\nExecStart=/bin/a %i\n")], &["/bin/a", "b"])]
    #[case::a_template_with_drop_ins(
        "a@b.service",
        &[
            ("U:/a@.service", "[Service]\nExecStart=/bin/a $X\n"),
            ("U:/a@.service.d/10.conf", "[Service]\nEnvironment=X=b\n"),
            ("U:/a@b.service.d/20.conf", "[Service]\nEnvironment=X=a\n"),
        ],
        &["/bin/a", "a"]
    )]
    #[case::an_alias(
        "cri.service",
        &[("E:/cri.service", "-> /usr/lib/systemd/system/containerd.service"), ("U:/containerd.service", PACKAGED)],
        &["/usr/bin/containerd"]
    )]
    #[case::an_alias_whose_unit_is_overridden(
        "cri.service",
        &[
            ("E:/cri.service", "-> ../../../usr/lib/systemd/system/containerd.service"),
            ("E:/containerd.service", "[Service]\nExecStart=/opt/containerd %n\n"),
            ("U:/containerd.service", PACKAGED),
        ],
        &["/opt/containerd", "containerd.service"]
    )]
    #[case::a_drop_in_of_an_alias(
        "containerd.service",
        &[
            ("E:/cri.service", "-> /usr/lib/systemd/system/containerd.service"),
            ("E:/cri.service.d/10.conf", "[Service]\nEnvironment=CONTAINERD_CONFIG=/a\n"),
            ("U:/containerd.service", FLATCAR),
        ],
        &["/usr/bin/containerd", "--config", "/a"]
    )]
    #[case::a_unit_that_is_linked_from_elsewhere(
        "containerd.service",
        &[("E:/containerd.service", "-> /opt/units/x.service"), ("/opt/units/x.service", PACKAGED)],
        &["/usr/bin/containerd"]
    )]
    fn the_command_of_a_service_is_read_as_systemd_reads_it(
        #[case] unit: &str,
        #[case] files: &[(&str, &str)],
        #[case] expected: &[&str],
    ) {
        let (_directory, host) = host(files);
        assert_eq!(
            service(&host, unit).unwrap().command.unwrap().arguments,
            expected
        );
    }

    #[rstest]
    #[case::no_unit(&[], "0 commands")]
    #[case::a_unit_without_a_command(&[("U:/a.service", "[Service]\nType=notify\n")], "0 commands")]
    #[case::a_command_that_is_reset(&[("U:/a.service", "[Service]\nExecStart=/bin/a\nExecStart=\n")], "0 commands")]
    #[case::several_commands(&[("U:/a.service", "[Service]\nType=oneshot\nExecStart=/bin/a\nExecStart=/bin/b\n")], "2 commands")]
    #[case::a_root_of_its_own(&[("U:/a.service", "[Service]\nRootDirectory=/srv\nExecStart=/bin/a\n")], "RootDirectory")]
    #[case::an_environment_file_that_is_gone(&[("U:/a.service", "[Service]\nEnvironmentFile=/x\nExecStart=/bin/a\n")], "/x is missing")]
    #[case::the_hostname(&[("U:/a.service", "[Service]\nExecStart=/bin/a %H\n")], "%H")]
    #[case::a_variable_with_the_hostname(&[("U:/a.service", "[Service]\nEnvironment=X=%H\nExecStart=/bin/a $X\n")], "variable X")]
    #[case::a_variable_that_is_handed_on(&[("U:/a.service", "[Service]\nPassEnvironment=X\nExecStart=/bin/a $X\n")], "variable X")]
    #[case::a_variable_of_systemd(&[("U:/a.service", "[Service]\nExecStart=/bin/a ${PATH}\n")], "PATH")]
    fn a_command_that_depends_on_more_than_the_unit_files_is_unknown(
        #[case] files: &[(&str, &str)],
        #[case] reason: &str,
    ) {
        let (_directory, host) = host(files);
        let command = service(&host, "a.service").unwrap().command;
        let text = command.unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
    }

    #[rstest]
    #[case::masked(&[("E:/a.service", "-> /dev/null"), ("U:/a.service", "[Service]\nExecStart=/bin/a\n")], "masks")]
    #[case::masked_by_a_relative_symlink(&[("E:/a.service", "-> ../../../dev/null")], "masks")]
    #[case::masked_by_an_empty_file(&[("E:/a.service", "")], "masks")]
    #[case::aliases_in_a_circle(&[("E:/a.service", "-> b.service"), ("E:/b.service", "-> a.service")], "a.service does not resolve")]
    #[case::a_broken_header(&[("U:/a.service", "[Service\n")], "/usr/lib/systemd/system/a.service: the section header")]
    #[case::a_pattern(&[("U:/a.service", "[Service]\nEnvironmentFile=/etc/*.env\n")], "pattern")]
    fn an_invalid_or_ambiguous_unit_is_unknown(
        #[case] files: &[(&str, &str)],
        #[case] reason: &str,
    ) {
        let (_directory, host) = host(files);
        let text = service(&host, "a.service").unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
    }

    #[test]
    fn the_files_of_a_service_are_listed_in_order_of_precedence() {
        let (_directory, host) = host(&[
            (
                "U:/a.service",
                "[Service]\nEnvironmentFile=/etc/a.env\nExecStart=/bin/a\n",
            ),
            ("U:/a.service.d/20.conf", ""),
            ("E:/a.service.d/10.conf", ""),
            ("/etc/a.env", "X=1"),
        ]);
        let service = service(&host, "a.service").unwrap();
        let expected = [
            "/usr/lib/systemd/system/a.service",
            "/etc/systemd/system/a.service.d/10.conf",
            "/usr/lib/systemd/system/a.service.d/20.conf",
            "/etc/a.env",
        ];
        assert_eq!(service.files, expected);
        assert_eq!(service.environment["X"], "1");
    }

    #[rstest]
    #[case::by_default("", Some("/"))]
    #[case::set("WorkingDirectory=/srv\n", Some("/srv"))]
    #[case::that_may_be_missing("WorkingDirectory=-/srv\n", Some("/srv"))]
    #[case::reset("WorkingDirectory=/srv\nWorkingDirectory=\n", Some("/"))]
    #[case::of_a_user("WorkingDirectory=~\n", None)]
    #[case::with_the_hostname("WorkingDirectory=/srv/%H\n", None)]
    fn the_working_directory_of_a_service_is_read_as_systemd_reads_it(
        #[case] setting: &str,
        #[case] expected: Option<&str>,
    ) {
        let unit = format!("[Service]\nExecStart=/bin/a\n{setting}");
        let (_directory, host) = host(&[("U:/a.service", &unit)]);
        let service = service(&host, "a.service").unwrap();
        assert_eq!(service.working_directory.as_deref(), expected);
    }

    #[test]
    fn drop_ins_beyond_the_limit_are_an_error() {
        let (directory, host) = host(&[
            ("U:/a.service", "[Service]\nExecStart=/bin/a\n"),
            ("E:/a.service.d/0.conf", ""),
        ]);
        let directory = directory.path().join("etc/systemd/system/a.service.d");
        for number in 1..=MAX_FILES {
            std::fs::write(directory.join(format!("{number}.conf")), "").unwrap();
        }
        assert!(matches!(
            service(&host, "a.service"),
            Err(Error::Files { .. })
        ));
    }
}
