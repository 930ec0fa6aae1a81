//! Finds the data directory of k3s and RKE2, for a node on which their containerd does not run, in the unit and the configuration files. Follows
//! k3s (`pkg/configfilearg`, `pkg/cli/cmds`), whose parser RKE2 contains. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;

use super::found::units_of_stopped;
use super::os::NAME_FILE;
use crate::containerd_config::clean_path;
use crate::handoff::{Problem, printable_up_to};
use crate::installer::containerd::kubelet::first_document;
use crate::installer::containerd::systemd_unit;
use crate::installer::distro::{DistroSpec, TABLE};
use crate::installer::host::path::file_name;
use crate::installer::host::{self, HostRoot, SMALL_FILE_LIMIT};

/// Files in a directory of configuration files, at most. A node has a handful.
const MAX_FILES: usize = 256;

/// Length in bytes of a path in a message, at most.
const MAX_SHOWN: usize = 200;

/// The path of containerd's configuration below the data directory that the service or its configuration names; `None` if none is named.
///
/// # Errors
/// When the data directory is unknown.
pub(crate) fn configured(host: &HostRoot, distro: &DistroSpec) -> Result<Option<String>, Problem> {
    let Some(variables) = distro.option_variables else {
        return Ok(None);
    };
    let mut found = BTreeSet::new();
    let mut services = Vec::new();
    for unit in units_of_stopped(host, distro) {
        let from_unit = |cause: &dyn Display| unknown(distro, format_args!("{unit}: {cause}"));
        match systemd_unit::service(host, &unit) {
            Ok(service) => services.push(match service.command {
                Ok(command) if distro.is_program_name(file_name(&command.program)) => {
                    (command.arguments, service.environment)
                }
                // The arguments of a wrapper are not those of the distribution.
                Ok(_) | Err(systemd_unit::Error::Commands { count: 0 }) => {
                    (Vec::new(), service.environment)
                }
                Err(error) => return Err(from_unit(&error)),
            }),
            // systemd does not start such a unit.
            Err(systemd_unit::Error::Masked { .. }) => {}
            Err(error) => return Err(from_unit(&error)),
        }
    }
    if services.is_empty() {
        services.push((Vec::new(), BTreeMap::new()));
    }
    for (arguments, environment) in services {
        let variable = |name: &str| environment.get(&format!("{variables}{name}"));
        let in_files = || {
            let in_arguments = option(&arguments, &["config", "c"]);
            let file = variable("CONFIG_FILE").map(String::as_str).or(in_arguments);
            let file = file.or(distro.own_config.first().copied());
            of_files(host, distro, file.unwrap_or_default())
        };
        let given = match option(&arguments, &["data-dir", "d"]) {
            Some(path) => Some(path.to_owned()),
            None => in_files()?.or_else(|| variable("DATA_DIR").cloned()),
        };
        found.insert(given.filter(|path| !path.is_empty()));
    }
    let mut found = found.into_iter();
    match (found.next().flatten(), found.next()) {
        (_, Some(_)) => Err(unknown(distro, "its units name different directories")),
        (None, None) => Ok(None),
        (Some(path), None) => config_below(distro, &path).map(Some),
    }
}

/// The path at which a configuration below a data directory would be without this setting; `None` if `path` is no such configuration.
pub(crate) fn usual_path(host: &HostRoot, path: &str) -> Option<&'static str> {
    let is_there = |distro: &&DistroSpec| {
        let configured = configured(host, distro).ok().flatten();
        configured.as_deref() == Some(path)
    };
    Some(TABLE.iter().find(is_there)?.config)
}

fn unknown(distro: &DistroSpec, cause: impl Display) -> Problem {
    let id = distro.id;
    Problem::with_help(
        format!("failed to determine the data directory of {id}: {cause}"),
        NAME_FILE,
    )
}

/// The path of containerd's configuration below the data directory `given`.
fn config_below(distro: &DistroSpec, given: &str) -> Result<String, Problem> {
    let usual = distro.paths.first().copied().unwrap_or_default();
    let rest = distro.config.strip_prefix(usual).unwrap_or_default();
    // k3s expands `~` and `$HOME`.
    if !given.starts_with('/') || given.contains('$') {
        let shown = printable_up_to(given, MAX_SHOWN);
        let cause = format!("data-dir {shown} is no absolute path");
        return Err(unknown(distro, cause));
    }
    Ok(clean_path(&format!("{given}{rest}")))
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

/// The options of a configuration file that move the data directory. A name of one letter is that of the short option, and a plus sign appends
/// to the values of earlier files, of which the last counts.
#[derive(Deserialize)]
struct Options {
    #[serde(rename = "data-dir", alias = "data-dir+", alias = "d", alias = "d+")]
    data_dir: Option<Value>,
}

/// The data directory in the configuration file at `path` and in the files of the directory beside it, of which the last counts.
fn of_files(host: &HostRoot, distro: &DistroSpec, path: &str) -> Result<Option<String>, Problem> {
    if !path.starts_with('/') {
        return Err(unknown(distro, "its configuration is no file of this host"));
    }
    let wrap = |error: host::Error| Problem::new(&error, error.help());
    let directory = format!("{path}.d");
    let names = host.list(&directory).map_err(wrap)?;
    let is_yaml = |name: &&String| {
        let end = name
            .rsplit_once('.')
            .map(|(_, end)| end.to_ascii_lowercase());
        matches!(end.as_deref(), Some("yaml" | "yml"))
    };
    let names = names.iter().filter(is_yaml).take(MAX_FILES);
    let paths = names.map(|name| format!("{directory}/{name}"));
    let mut found = None;
    for path in std::iter::once(path.to_owned()).chain(paths) {
        let Some(text) = host.read_text(&path, SMALL_FILE_LIMIT).map_err(wrap)? else {
            continue;
        };
        // The error may contain text of the file, which has the token of the cluster.
        let options: Option<Options> = first_document(&text)
            .map_err(|_| unknown(distro, format_args!("{path} is not valid YAML")))?;
        let mut given = options.and_then(|options| options.data_dir);
        if let Some(Value::Array(values)) = given {
            given = values.into_iter().next_back();
        }
        match given {
            Some(Value::String(value)) => found = Some(value),
            Some(_) => {
                let cause = format!("data-dir in {path} is no text");
                return Err(unknown(distro, cause));
            }
            None => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::distro::by_id;
    use crate::installer::fixtures::host_with as host;

    const K3S: &str = "/etc/rancher/k3s/config.yaml";
    const K3S_UNIT: &str = "/etc/systemd/system/k3s.service";
    const RKE2: &str = "/etc/rancher/rke2/config.yaml";
    /// The units of RKE2's archive.
    const SERVER: (&str, &str) = (
        "/usr/local/lib/systemd/system/rke2-server.service",
        "[Service]\nEnvironmentFile=-/etc/default/%N\nExecStart=/usr/local/bin/rke2 server\n",
    );
    const AGENT: (&str, &str) = (
        "/usr/local/lib/systemd/system/rke2-agent.service",
        "[Service]\nEnvironmentFile=-/etc/default/%N\nExecStart=/usr/local/bin/rke2 agent\n",
    );

    #[rstest]
    #[case::without_files("k3s", &[], None)]
    #[case::of_a_distribution_without_one("debian", &[(K3S, "data-dir: /data\n")], None)]
    #[case::of_rke2("rke2", &[(RKE2, "token: a\ndata-dir: /data/rke2\n")], Some("/data/rke2"))]
    #[case::of_the_other_distribution("rke2", &[(K3S, "data-dir: /data\n")], None)]
    #[case::of_k3s("k3s", &[(K3S, "\"data-dir\": '/data//k3s/'\n")], Some("/data/k3s"))]
    #[case::short("k3s", &[(K3S, "d: /data\n")], Some("/data"))]
    #[case::empty("k3s", &[(K3S, "data-dir: ''\n")], None)]
    #[case::a_file_without_options("k3s", &[(K3S, "# nothing\n")], None)]
    #[case::the_last_file(
        "rke2",
        &[
            (RKE2, "data-dir: /a\n"),
            ("/etc/rancher/rke2/config.yaml.d/20.yml", "data-dir: /c\n"),
            ("/etc/rancher/rke2/config.yaml.d/10.yaml", "data-dir: /b\n"),
            ("/etc/rancher/rke2/config.yaml.d/30.yaml", "debug: true\n"),
            ("/etc/rancher/rke2/config.yaml.d/40.txt", "data-dir: /d\n"),
        ],
        Some("/c")
    )]
    #[case::a_directory_alone("rke2", &[("/etc/rancher/rke2/config.yaml.d/50-rancher.yaml", "{\"data-dir\": \"/data\"}")], Some("/data"))]
    #[case::an_appended_value("k3s", &[(K3S, "data-dir+: /data\n")], Some("/data"))]
    #[case::the_command_line_over_a_file(
        "k3s",
        &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s \\\n  server \\\n  '--data-dir' \\\n  '/srv/k3s'\n"), (K3S, "data-dir: /data\n")],
        Some("/srv/k3s")
    )]
    #[case::another_file(
        "k3s",
        &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s server -c=/etc/k3s.yaml\n"), (K3S, "data-dir: /data\n"), ("/etc/k3s.yaml", "data-dir: /srv\n")],
        Some("/srv")
    )]
    #[case::another_file_in_a_variable(
        "k3s",
        &[(K3S_UNIT, "[Service]\nEnvironment=K3S_CONFIG_FILE=/etc/k3s.yaml\nExecStart=/usr/local/bin/k3s server\n"), ("/etc/k3s.yaml", "data-dir: /srv\n")],
        Some("/srv")
    )]
    #[case::a_variable("rke2", &[SERVER, AGENT, ("/etc/default/rke2-server", "RKE2_DATA_DIR=/srv\n"), ("/etc/default/rke2-agent", "RKE2_DATA_DIR=/srv\n")], Some("/srv"))]
    #[case::a_file_over_a_variable("rke2", &[SERVER, ("/etc/default/rke2-server", "RKE2_DATA_DIR=/srv\n"), (RKE2, "data-dir: /data\n")], Some("/data"))]
    #[case::of_the_enabled_unit(
        "rke2",
        &[SERVER, AGENT, ("/etc/systemd/system/multi-user.target.wants/rke2-server.service", SERVER.1), ("/etc/default/rke2-server", "RKE2_DATA_DIR=/srv\n")],
        Some("/srv")
    )]
    #[case::a_wrapper("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/bin/sh -c k3s --data-dir /a\n"), (K3S, "data-dir: /data\n")], Some("/data"))]
    fn the_configuration_is_below_the_data_directory_of_the_service(
        #[case] id: &str,
        #[case] files: &[(&str, &str)],
        #[case] expected: Option<&str>,
    ) {
        let (_directory, host) = host(files);
        let found = configured(&host, by_id(id)).unwrap();
        let expected = expected.map(|data| format!("{data}/agent/etc/containerd/config.toml"));
        assert_eq!(found, expected);
        if let Some(path) = &found {
            assert_eq!(usual_path(&host, path), Some(by_id(id).config));
        }
    }

    #[rstest]
    #[case::no_yaml("rke2", &[(RKE2, "token: hunter2\n  data-dir: [")], "/etc/rancher/rke2/config.yaml is not valid YAML")]
    #[case::no_text("rke2", &[(RKE2, "data-dir: 3\n")], "data-dir in /etc/rancher/rke2/config.yaml is no text")]
    #[case::relative("k3s", &[(K3S, "data-dir: data\n")], "data-dir data is no absolute path")]
    #[case::of_a_home("k3s", &[(K3S, "data-dir: ~/k3s\n")], "data-dir ~/k3s is no absolute path")]
    #[case::on_a_server("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s agent --config https://a:hunter2@b/c\n")], "no file of this host")]
    #[case::of_two_units("rke2", &[SERVER, AGENT, ("/etc/default/rke2-server", "RKE2_DATA_DIR=/srv\n")], "its units name different directories")]
    #[case::a_unit_that_depends_on_the_host("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s server --data-dir /data/%H\n")], "k3s.service: the specifier %H")]
    fn a_data_directory_that_is_unknown_has_a_cause(
        #[case] id: &str,
        #[case] files: &[(&str, &str)],
        #[case] cause: &str,
    ) {
        let (_directory, host) = host(files);
        let problem = configured(&host, by_id(id)).unwrap_err();
        assert!(problem.message.contains(cause), "{problem}");
        assert!(!problem.message.contains("hunter2"), "{problem}");
        assert_eq!(problem.help.as_deref(), Some(NAME_FILE));
    }
}
