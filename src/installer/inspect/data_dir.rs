//! Finds the data directory of k3s and RKE2, for a node on which their containerd does not run, in the unit and the configuration files. Reads
//! only.

use std::collections::BTreeSet;

use serde_json::Value;

use super::os::NAME_FILE;
use crate::containerd_config::clean_path;
use crate::handoff::{LONGEST_PATH, Problem, printable_up_to};
use crate::installer::containerd::embedded::{Service, services};
use crate::installer::distro::{DistroSpec, TABLE};
use crate::installer::host::HostRoot;

/// The path of containerd's configuration below the data directory that the service or its configuration names; `None` if none is named.
///
/// # Errors
/// When the data directory is unknown.
pub(crate) fn configured(host: &HostRoot, distro: &DistroSpec) -> Result<Option<String>, Problem> {
    let Some(variables) = distro.option_variables else {
        return Ok(None);
    };
    let unknown = |problem: Problem| unknown(distro, problem);
    let mut found = BTreeSet::new();
    let mut services = services(host, distro).map_err(unknown)?;
    if services.is_empty() {
        services.push(Service::default());
    }
    for service in services {
        let given = service.option(host, distro, &["data-dir", "d"]);
        let given = match given.map_err(unknown)? {
            Some(Value::String(path)) => Some(path),
            Some(_) => return Err(unknown(Problem::new("its data-dir is no text", None))),
            None => service
                .environment
                .get(&format!("{variables}DATA_DIR"))
                .cloned(),
        };
        found.insert(given.filter(|path| !path.is_empty()));
    }
    let mut found = found.into_iter();
    match (found.next().flatten(), found.next()) {
        (_, Some(_)) => Err(unknown(Problem::new(
            "its units name different directories",
            None,
        ))),
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

fn unknown(distro: &DistroSpec, cause: Problem) -> Problem {
    let (id, message) = (distro.id, cause.message);
    Problem {
        message: format!("failed to determine the data directory of {id}: {message}"),
        help: cause.help.or_else(|| Some(NAME_FILE.to_owned())),
    }
}

/// The path of containerd's configuration below the data directory `given`.
fn config_below(distro: &DistroSpec, given: &str) -> Result<String, Problem> {
    let usual = distro.paths.first().copied().unwrap_or_default();
    let rest = distro.config.strip_prefix(usual).unwrap_or_default();
    // k3s expands `~` and `$HOME`.
    if !given.starts_with('/') || given.contains('$') {
        let shown = printable_up_to(given, LONGEST_PATH);
        let cause = format!("data-dir {shown} is no absolute path");
        return Err(unknown(distro, Problem::new(cause, None)));
    }
    Ok(clean_path(&format!("{given}{rest}")))
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
    #[case::with_openrc(
        "k3s",
        &[
            ("/etc/init.d/k3s", "#!/sbin/openrc-run\ncommand=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--data-dir' \\\n\t'/data' \\\n    >>/var/log/k3s.log 2>&1\"\n"),
            ("/etc/runlevels/default/k3s", ""),
        ],
        Some("/data")
    )]
    #[case::in_the_environment_of_openrc(
        "k3s",
        &[
            ("/etc/init.d/k3s", "#!/sbin/openrc-run\ncommand=/usr/local/bin/k3s\ncommand_args=server\nif [ -f /etc/rancher/k3s/k3s.env ]; then . /etc/rancher/k3s/k3s.env; fi\n"),
            ("/etc/rancher/k3s/k3s.env", "K3S_DATA_DIR='/data'\n"),
        ],
        Some("/data")
    )]
    #[case::beside_a_unit_of_another_program(
        "k3s",
        &[
            (K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s server --data-dir /data\n"),
            ("/etc/systemd/system/k3s-backup.service", "[Service]\nExecStart=/usr/local/bin/backup --data-dir /backup\n"),
            ("/etc/systemd/system/multi-user.target.wants/k3s.service", ""),
            ("/etc/systemd/system/multi-user.target.wants/k3s-backup.service", ""),
        ],
        Some("/data")
    )]
    #[case::an_argument_that_depends_on_the_host(
        "k3s",
        &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s server --node-name %H --data-dir /data\n")],
        Some("/data")
    )]
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
    #[case::no_text("rke2", &[(RKE2, "data-dir: 3\n")], "its data-dir is no text")]
    #[case::relative("k3s", &[(K3S, "data-dir: data\n")], "data-dir data is no absolute path")]
    #[case::of_a_home("k3s", &[(K3S, "data-dir: ~/k3s\n")], "data-dir ~/k3s is no absolute path")]
    #[case::on_a_server("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s agent --config https://a:hunter2@b/c\n")], "no file of this host")]
    #[case::a_wrapper("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/bin/sh -c 'exec k3s server --data-dir /data'\n")], "k3s.service: it starts /bin/sh instead of k3s")]
    #[case::a_wrapper_without_a_shell("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/usr/bin/nice k3s server\n"), (K3S, "data-dir: /data\n")], "it starts /usr/bin/nice instead of k3s")]
    #[case::a_program_of_another_name("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/opt/k3s-v1.31 server --data-dir /data\n")], "it starts /opt/k3s-v1.31 instead of k3s")]
    #[case::a_script_of_openrc("k3s", &[("/etc/init.d/k3s", "#!/sbin/openrc-run\ncommand=/usr/local/bin/k3s\ncommand_args=$(cat /etc/k3s)\n")], "k3s.service: the script of the OpenRC service k3s decides")]
    #[case::a_file_that_depends_on_the_host("k3s", &[(K3S_UNIT, "[Service]\nExecStart=/usr/local/bin/k3s server -c /etc/%H.yaml\n")], "k3s.service: the specifier %H")]
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
