//! The services of distributions that include containerd, on hosts where they need not run: their units, and the options with which they start.
//! Follows k3s (`pkg/configfilearg`, `pkg/cli/cmds`), whose parser RKE2 contains. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde_json::Value;

use super::kubelet::{Kubelet, first_document, socket};
use super::openrc::RC_STARTED;
use super::systemd_unit::Command;
use super::{openrc, systemd_unit};
use crate::handoff::{LONGEST_PATH, Problem, printable_up_to};
use crate::installer::distro::{DistroSpec, Edited, TABLE};
use crate::installer::host::path::file_name;
use crate::installer::host::{self, HostRoot, SMALL_FILE_LIMIT};

/// Files in a directory of configuration files, at most. A node has a handful.
const MAX_FILES: usize = 256;

/// Directories with the enabled units (systemd.unit(5), rc-update(8)).
const ENABLED_DIRECTORIES: [&str; 2] = [
    "/etc/systemd/system/multi-user.target.wants",
    "/etc/runlevels/default",
];

/// Directories with all units.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/etc/init.d",
];

/// The names of the services in a directory of units; those of `OpenRC` have no suffix.
fn services_in(host: &HostRoot, directory: &str) -> Vec<String> {
    let names = host.list(directory).unwrap_or_default().into_iter();
    if directory.contains("/systemd/") {
        return names.filter(|name| name.ends_with(".service")).collect();
    }
    names.map(|name| format!("{name}.service")).collect()
}

/// The unit of a distribution whose containerd does not run: the service that `OpenRC` has started, the enabled unit, or the only unit.
pub(crate) fn unit_of_stopped(host: &HostRoot, distro: &DistroSpec) -> Option<String> {
    let of_distro = |directory: &str| {
        let units = services_in(host, directory).into_iter();
        let mut units = units.filter(|unit| distro.has_unit(unit));
        let first = units.next()?;
        units.next().is_none().then_some(first)
    };
    let directories = ENABLED_DIRECTORIES.into_iter().chain(UNIT_DIRECTORIES);
    of_distro(RC_STARTED).or_else(|| directories.into_iter().find_map(of_distro))
}

/// The units of a distribution whose containerd does not run: the one of [`unit_of_stopped`], or else all units.
fn units_of_stopped(host: &HostRoot, distro: &DistroSpec) -> BTreeSet<String> {
    if let Some(unit) = unit_of_stopped(host, distro) {
        return BTreeSet::from([unit]);
    }
    let units = UNIT_DIRECTORIES.into_iter();
    let units = units.flat_map(|directory| services_in(host, directory));
    units.filter(|unit| distro.has_unit(unit)).collect()
}

/// The kubelet of a distribution whose service is enabled or started, and which then starts containerd itself. `MicroK8s` has a file with the
/// arguments of its kubelet.
///
/// A unit of another program is none, unless it is a wrapper that names the program of the distribution.
pub(super) fn kubelet(host: &HostRoot) -> Option<Kubelet> {
    let is_rendered = |spec: &&DistroSpec| spec.edited != Edited::Loaded;
    let specs = TABLE.iter().filter(is_rendered);
    let mut specs = specs.filter(|spec| spec.kubelet_arguments.is_none());
    specs.find_map(|distro| {
        let directories = [RC_STARTED].into_iter().chain(ENABLED_DIRECTORIES);
        let units = directories.flat_map(|directory| services_in(host, directory));
        let mut units = units.filter(|unit| distro.has_unit(unit) && starts(host, distro, unit));
        let unit = units.next()?;
        let endpoint = match start(host, distro, &unit) {
            Ok(Start::Service(service)) => service.endpoint(host, distro),
            // The options of a wrapper are unknown. Most nodes have none that names another runtime.
            Ok(Start::OtherProgram(_) | Start::Nothing) | Err(_) => Ok(None),
        };
        Some(Kubelet {
            arguments: String::new(),
            endpoint,
            of_distro: Some((distro.id, unit)),
        })
    })
}

/// Whether the unit would start a program of the distribution that is installed.
fn starts(host: &HostRoot, distro: &DistroSpec, unit: &str) -> bool {
    let command = match openrc::service(host, unit).map(|service| service.command) {
        Ok(Ok(command) | Err(systemd_unit::Error::Unresolved { command, .. })) => command,
        Ok(Err(systemd_unit::Error::Commands { count: 0 })) | Err(_) => return false,
        // The name of the unit says the rest.
        Ok(Err(_)) => return true,
    };
    let is_own = |path: &str| distro.is_program_name(file_name(path));
    let Command { program, arguments } = command;
    if is_own(&program) {
        return !program.contains('/') || host.seems_to_exist(&program);
    }
    // A directory of the distribution may have the name of its program.
    let is_program =
        |word: &str| distro.programs.contains(&word) || !word.contains('/') && is_own(word);
    let arguments = arguments.iter().skip(1);
    arguments
        .flat_map(|it| it.split_whitespace())
        .any(is_program)
}

/// How a unit starts a distribution.
#[derive(Debug, Default)]
pub(crate) struct Service {
    /// The name of the unit.
    unit: String,
    /// All arguments, including the name of the program; empty if no file has the command.
    arguments: Vec<String>,
    /// Why an argument is unknown, which is in `arguments` as in the unit.
    unresolved: Option<String>,
    /// The environment that the files set.
    pub(crate) environment: BTreeMap<String, String>,
}

/// The services that start the distribution, of the units of [`units_of_stopped`].
///
/// # Errors
/// Why the command of a unit is unknown. The arguments of another program are not those of the distribution: if no unit starts the
/// distribution itself, its options are unknown.
pub(crate) fn services(host: &HostRoot, distro: &DistroSpec) -> Result<Vec<Service>, Problem> {
    let (mut services, mut wrapper) = (Vec::new(), None);
    for unit in units_of_stopped(host, distro) {
        match start(host, distro, &unit)? {
            Start::Service(service) => services.push(service),
            Start::OtherProgram(problem) => {
                wrapper.get_or_insert(problem);
            }
            Start::Nothing => {}
        }
    }
    match wrapper {
        Some(problem) if services.is_empty() => Err(problem),
        Some(_) | None => Ok(services),
    }
}

/// What a unit of a distribution starts.
enum Start {
    /// Nothing: the unit is masked.
    Nothing,
    /// Another program than the distribution's, with the problem for an operator.
    OtherProgram(Problem),
    /// The distribution.
    Service(Service),
}

/// What the unit starts.
///
/// # Errors
/// Why the command of the unit is unknown.
fn start(host: &HostRoot, distro: &DistroSpec, unit: &str) -> Result<Start, Problem> {
    let from_unit = |cause: &dyn Display| Problem::new(format!("{unit}: {cause}"), None);
    let service = match openrc::service(host, unit) {
        Ok(service) => service,
        // systemd does not start such a unit.
        Err(systemd_unit::Error::Masked { .. }) => return Ok(Start::Nothing),
        Err(error) => return Err(from_unit(&error)),
    };
    let (command, unresolved) = match service.command {
        Ok(command) => (Some(command), None),
        Err(systemd_unit::Error::Unresolved { command, source }) => {
            (Some(command), Some(source.to_string()))
        }
        Err(systemd_unit::Error::Commands { count: 0 }) => (None, None),
        Err(error) => return Err(from_unit(&error)),
    };
    let program = command.as_ref().map(|command| command.program.as_str());
    if let Some(program) = program.filter(|it| !distro.is_program_name(file_name(it))) {
        let (shown, id) = (printable_up_to(program, LONGEST_PATH), distro.id);
        let cause = format_args!("it starts {shown} instead of {id}");
        return Ok(Start::OtherProgram(from_unit(&cause)));
    }
    Ok(Start::Service(Service {
        arguments: command.map_or_else(Vec::new, |command| command.arguments),
        unresolved,
        environment: service.environment,
        unit: unit.to_owned(),
    }))
}

impl Service {
    /// The value of the last of the options `names`, in the command line or else in the files of the configuration.
    ///
    /// # Errors
    /// When the value or the path of the configuration depends on the running system, or a file can't be read.
    pub(crate) fn option(
        &self,
        host: &HostRoot,
        distro: &DistroSpec,
        names: &[&str],
    ) -> Result<Option<Value>, Problem> {
        match self.argument(names)? {
            Some(value) => Ok(Some(Value::String(value.to_owned()))),
            None => self.in_files(host, distro, names),
        }
    }

    fn in_files(
        &self,
        host: &HostRoot,
        distro: &DistroSpec,
        names: &[&str],
    ) -> Result<Option<Value>, Problem> {
        let prefix = distro.option_variables.unwrap_or_default();
        let file = match self.environment.get(&format!("{prefix}CONFIG_FILE")) {
            Some(path) => Some(path.as_str()),
            None => self.argument(&["config", "c"])?,
        };
        let usual = || distro.own_config.first().copied();
        of_files(host, file.or_else(usual).unwrap_or_default(), names)
    }

    /// The path of the CRI socket of another container runtime, if the options name one in place of the included containerd.
    ///
    /// # Errors
    /// When the runtime is Docker, or unknown.
    fn endpoint(&self, host: &HostRoot, distro: &DistroSpec) -> Result<Option<String>, Problem> {
        let (id, unit) = (distro.id, &self.unit);
        let docker = || {
            Problem::with_help(
                format!("{id} ({unit}) uses Docker as its container runtime"),
                "use nodes whose kubelet uses containerd",
            )
        };
        let text = |value: Option<Value>| value.and_then(|it| Some(it.as_str()?.to_owned()));
        if distro.option_variables.is_none() {
            // k0s: `remote:unix:///PATH` or `docker:unix:///PATH`.
            let given = self.argument(&["cri-socket"])?.unwrap_or_default();
            return match given.split_once(':') {
                Some(("docker", _)) => Err(docker()),
                Some((_, endpoint)) => socket(endpoint),
                None => Ok(None),
            };
        }
        let is_flag = |argument: &String| {
            let flag = argument.trim_start_matches('-');
            argument.starts_with('-') && matches!(flag, "docker" | "docker=true")
        };
        let is_on = |value: Value| value == Value::Bool(true) || value.as_str() == Some("true");
        let in_files = self.in_files(host, distro, &["docker"])?;
        if self.arguments.iter().any(is_flag) || in_files.is_some_and(is_on) {
            return Err(docker());
        }
        let given = self.option(host, distro, &["container-runtime-endpoint"])?;
        socket(&text(given).unwrap_or_default())
    }

    fn argument(&self, names: &[&str]) -> Result<Option<&str>, Problem> {
        let value = option(&self.arguments, names);
        match (&self.unresolved, value) {
            (Some(cause), Some(value)) if value.contains('%') => {
                Err(Problem::new(format!("{}: {cause}", self.unit), None))
            }
            (Some(_) | None, value) => Ok(value),
        }
    }
}

/// The value of the last of the options `names`, by the rules of Go's package `flag`.
fn option<'a>(arguments: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    let mut last = None;
    while let Some(argument) = arguments.next() {
        let Some(name) = argument.strip_prefix('-') else {
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        if names.contains(&name) {
            last = value.or_else(|| arguments.next().map(String::as_str));
        }
    }
    last
}

/// The value of one of the options `names` in the configuration file at `path` and in the files of the directory beside it, of which the last
/// counts. A name of one letter is that of the short option, and a plus sign appends to the values of earlier files, of which the last counts.
fn of_files(host: &HostRoot, path: &str, names: &[&str]) -> Result<Option<Value>, Problem> {
    if !path.starts_with('/') {
        let cause = "its configuration is no file of this host";
        return Err(Problem::new(cause, None));
    }
    let wrap = |error: host::Error| Problem::new(&error, error.help());
    let directory = format!("{path}.d");
    let files = host.list(&directory).map_err(wrap)?;
    let is_yaml = |name: &&String| {
        let end = name
            .rsplit_once('.')
            .map(|(_, end)| end.to_ascii_lowercase());
        matches!(end.as_deref(), Some("yaml" | "yml"))
    };
    let files = files.iter().filter(is_yaml).take(MAX_FILES);
    let paths = files.map(|name| format!("{directory}/{name}"));
    let mut found = None;
    for path in std::iter::once(path.to_owned()).chain(paths) {
        let Some(text) = host.read_text(&path, SMALL_FILE_LIMIT).map_err(wrap)? else {
            continue;
        };
        // The error may contain text of the file, which has the token of the cluster.
        let options: Option<BTreeMap<String, Value>> = first_document(&text)
            .map_err(|_| Problem::new(format_args!("{path} is not valid YAML"), None))?;
        let mut options = options.unwrap_or_default();
        let mut names = names.iter();
        let given = names.find_map(|name| {
            let appended = options.remove(&format!("{name}+"));
            options.remove(*name).or(appended)
        });
        found = match given {
            Some(Value::Array(values)) => values.into_iter().next_back(),
            given => given,
        }
        .or(found);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::process::tests::Tree;
    use crate::installer::distro::by_id;

    #[rstest]
    #[case::enabled("rke2", &["/etc/systemd/system/multi-user.target.wants/rke2-server.service", "/usr/lib/systemd/system/rke2-agent.service", "/usr/lib/systemd/system/rke2-server.service"], Some("rke2-server.service"))]
    #[case::the_only_one("k3s", &["/etc/systemd/system/k3s-agent.service", "/etc/systemd/system/k3s-agent.service.env"], Some("k3s-agent.service"))]
    #[case::of_openrc("k3s", &["/run/openrc/started/k3s-agent"], Some("k3s-agent.service"))]
    #[case::enabled_with_openrc("k3s", &["/etc/runlevels/default/k3s", "/etc/init.d/k3s", "/etc/init.d/k3s-agent"], Some("k3s.service"))]
    #[case::the_only_one_with_openrc("k3s", &["/etc/init.d/k3s-agent"], Some("k3s-agent.service"))]
    #[case::two("rke2", &["/usr/lib/systemd/system/rke2-agent.service", "/usr/lib/systemd/system/rke2-server.service"], None)]
    #[case::none("k3s", &["/etc/systemd/system/containerd.service"], None)]
    fn the_unit_of_a_node_that_does_not_start_is_found_by_its_files(
        #[case] id: &str,
        #[case] files: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let tree = Tree::new("0::/init.scope\n", &[]);
        for file in files {
            tree.write(file, "");
        }
        let unit = unit_of_stopped(&tree.host(), by_id(id));
        assert_eq!(unit.as_deref(), expected);
    }
}
