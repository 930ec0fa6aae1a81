//! Determines the program of containerd and its root configuration file. Of a containerd that does not run, both are in the unit. Reads only.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::data_dir;
use super::found::{DEFAULT_PATH, is_program};
use super::os::{NAME_FILE, PROGRAMS};
use crate::handoff::{LONGEST_PATH, Problem, printable_up_to};
use crate::installer::containerd::command_line;
use crate::installer::containerd::daemon::{Containerd, Daemon, Running, is_started_by};
use crate::installer::containerd::openrc;
use crate::installer::containerd::systemd_unit::{self, ServiceDefinition};
use crate::installer::distro::{
    self, DistroSpec, Edited, STOCK_CONFIG, STOCK_UNIT, editable_files,
};
use crate::installer::host::path::file_name;
use crate::installer::host::{HostRoot, Target};
use crate::installer::state::State;

/// The unit of a containerd from a package, for a host on which no containerd runs.
#[derive(Debug)]
pub(crate) struct ContainerdUnit {
    /// `None` if the unit is absent, or why its command is unknown.
    command: Result<Option<UnitCommand>, Problem>,
    environment: BTreeMap<String, String>,
}

/// The containerd that a unit starts.
#[derive(Debug)]
struct UnitCommand {
    /// Path of the program; `None` if no directory that systemd searches has it.
    program: Option<String>,
    /// Path of the configuration file that this containerd loads.
    config: Result<String, command_line::Error>,
}

impl ContainerdUnit {
    /// Reads the unit in the files of the host.
    pub(crate) fn read(host: &HostRoot) -> Self {
        match openrc::service(host, STOCK_UNIT) {
            Ok(service) => Self {
                command: UnitCommand::of(host, &service),
                environment: service.environment,
            },
            Err(error) => Self {
                command: Err(unknown(error)),
                environment: BTreeMap::new(),
            },
        }
    }

    /// The path of the program that the unit starts, if there is such a file.
    pub(crate) fn installed_program(&self, host: &HostRoot) -> Option<&str> {
        let command = self.command.as_ref().ok()?.as_ref()?;
        let program = command.program.as_deref()?;
        host.seems_to_exist(program).then_some(program)
    }

    /// The path of the configuration that the unit makes containerd load, if this containerd is installed.
    pub(crate) fn installed_config(&self, host: &HostRoot) -> Option<&str> {
        self.installed_program(host)?;
        let command = self.command.as_ref().ok()?.as_ref()?;
        command.config.as_deref().ok()
    }

    /// The path of the configuration; `None` if there is no unit.
    ///
    /// # Errors
    /// Why the path is unknown.
    fn config(&self, distro: &DistroSpec) -> Result<Option<String>, Problem> {
        let variable = || self.environment.get(distro.variable?);
        let in_environment = || variable().filter(|path| path.starts_with('/')).cloned();
        match &self.command {
            Ok(Some(UnitCommand { config, .. })) => match config {
                Ok(path) => Ok(Some(path.clone())),
                Err(error) => Err(Problem::new(error, error.help())),
            },
            Ok(None) => Ok(in_environment()),
            Err(problem) => in_environment().map(Some).ok_or_else(|| problem.clone()),
        }
    }
}

impl UnitCommand {
    fn of(host: &HostRoot, service: &ServiceDefinition) -> Result<Option<Self>, Problem> {
        let command = match &service.command {
            Ok(command) => command,
            // Such files only add to a unit that the package of containerd will bring.
            Err(systemd_unit::Error::Commands { count: 0 }) => return Ok(None),
            Err(error) => return Err(unknown(error)),
        };
        let shown = || printable_up_to(&command.program, LONGEST_PATH);
        if file_name(&command.program) != "containerd" {
            let cause = format!("it starts {} instead of containerd", shown());
            return Err(unknown(cause));
        }
        let arguments = command.arguments.iter().map(String::as_bytes);
        let arguments: Vec<&[u8]> = arguments.collect();
        let directory = || service.working_directory.clone();
        let Some(paths) = command_line::paths(&arguments, directory) else {
            let cause = format!("it starts a subcommand of {}", shown());
            return Err(unknown(cause));
        };
        let config = paths.config;
        Ok(Some(Self {
            program: found_program(host, &command.program, &service.search_path),
            config: config.map(|path| path.unwrap_or_else(|| STOCK_CONFIG.to_owned())),
        }))
    }
}

/// The path of a program of a unit. systemd searches for a name without a slash (systemd.service(5), *Command Lines*).
fn found_program(host: &HostRoot, program: &str, named: &[String]) -> Option<String> {
    if program.contains('/') {
        return Some(program.to_owned());
    }
    let usual = DEFAULT_PATH.split(':').filter(|_| named.is_empty());
    let directories = named.iter().map(String::as_str).chain(usual);
    let mut paths = directories.map(|it| format!("{it}/{program}"));
    paths.find(|path| is_program(host, path))
}

fn unknown(cause: impl Display) -> Problem {
    Problem::with_help(
        format!(
            "failed to determine from the unit {STOCK_UNIT} which configuration containerd loads: {cause}"
        ),
        NAME_FILE,
    )
}

/// The path of the program of containerd: the running one, the one that its unit starts, or an installed one, if its unit does not choose
/// between several in a way that is unknown. `None` for the containerd of a
/// distribution that includes it, unless it runs: the installed one is another one.
pub(crate) fn program(
    host: &HostRoot,
    distro: &DistroSpec,
    daemon: Option<&Daemon>,
    unit: &ContainerdUnit,
) -> Option<String> {
    match (daemon, &unit.command) {
        (Some(daemon), _) => Some(daemon.program.clone()),
        (None, _) if distro.edited != Edited::Loaded => None,
        (None, Ok(Some(command))) => command.program.clone(),
        (None, command) => {
            let mut installed = PROGRAMS
                .into_iter()
                .filter(|path| host.seems_to_exist(path));
            let first = installed.next()?;
            // Any of several may be the one of a unit that can't be read.
            let is_known = command.is_ok() || installed.next().is_none();
            is_known.then(|| first.to_owned())
        }
    }
}

/// The path of the root configuration file, and why it or the socket is unknown, if it is. `given` is the path that an operator gives, and
/// `recorded` that of the last change.
pub(crate) fn root_config(
    host: &HostRoot,
    distro: &DistroSpec,
    containerd: &Containerd,
    unit: &ContainerdUnit,
    given: Option<&str>,
    recorded: Option<&str>,
) -> (String, Option<Problem>) {
    let is_stock = distro.edited == Edited::Loaded;
    let daemon = containerd.daemon();
    let found = match daemon.map(|daemon| &daemon.config) {
        Some(Ok(Some(path))) => Ok(Some(path.clone())),
        // The variable of a unit whose command a drop-in replaced means nothing to the process.
        Some(Ok(None)) => Ok(is_stock.then(|| STOCK_CONFIG.to_owned())),
        Some(Err(error)) => Err(Problem::new(error, error.help())),
        None if is_stock => match (unit.config(distro), containerd.target()) {
            // A live host without containerd is not changed, whatever its unit is like.
            (Err(_), Target::Live) => Ok(None),
            (found, Target::Live | Target::Image) => found,
        },
        None => data_dir::configured(host, distro),
    };
    let of_socket = daemon.and_then(|daemon| daemon.address.as_ref().err());
    let unknown = match (of_socket, &found) {
        (Some(error), _) => Some(Problem::new(error, error.help())),
        (None, Err(problem)) if given.is_none() => Some(problem.clone()),
        (None, Ok(_) | Err(_)) => None,
    };
    let found = found.ok().flatten();
    let usual = found.as_deref().or(recorded).unwrap_or(distro.config);
    // A template is edited in place of the file that is rendered from it.
    let is_template =
        |path: &&str| editable_files(distro.edited, usual).contains(&(*path).to_owned());
    let path = given.filter(|path| !is_template(path)).unwrap_or(usual);
    (path.to_owned(), unknown)
}

/// The path of the configuration as far as it is known before the distribution, which is detected by this path. A path below a data directory
/// that was moved is that without the move.
pub(crate) fn known_config<'a>(
    host: &HostRoot,
    daemon: Option<&'a Daemon>,
    unit: &'a ContainerdUnit,
    given: Option<&'a str>,
    recorded: Option<&'a str>,
) -> Option<&'a str> {
    if let Some(daemon) = daemon {
        let named = daemon.config.as_ref().ok().and_then(Option::as_deref);
        return given.or(named);
    }
    let known = given.or(recorded);
    let known = known.or_else(|| unit.installed_config(host))?;
    Some(data_dir::usual_path(host, known).unwrap_or(known))
}

/// The root configuration file of the last change, if it exists: for a host on which no containerd runs that would name it.
pub(crate) fn recorded_root<'a>(host: &HostRoot, state: &'a State) -> Option<&'a str> {
    let root = state.config.as_ref()?.root.as_deref()?;
    host.seems_to_exist(root).then_some(root)
}

/// Refuses a containerd of which no kubelet is known where the last change was for a distribution with its own containerd: another one runs
/// beside it, such as that of Docker. `root` is the configuration file of the last change.
pub(crate) fn refuse_another(host: &HostRoot, running: &mut Running, root: Option<&str>) {
    let usual = |root| distro::by_config(data_dir::usual_path(host, root)?);
    let recorded = root.and_then(|root| distro::by_config(root).or_else(|| usual(root)));
    let (Containerd::Live(daemon), None, Some(spec)) =
        (&running.containerd, &running.kubelet, recorded)
    else {
        return;
    };
    if distro::is_embedded(&daemon.program, daemon.unit.as_deref())
        || is_started_by(host, daemon, spec)
    {
        return;
    }
    running.containerd = Containerd::NotOfKubelet {
        socket: Some(spec.socket.to_owned()),
        of_distro: Some((spec.id, spec.unit.to_owned())),
        refused: Vec::new(),
    };
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::daemon;
    use crate::installer::containerd::process::tests::{CONTAINERD, Given, Tree};
    use crate::installer::distro::by_id;

    const UNIT: &str = "/usr/lib/systemd/system/containerd.service";
    const DROP_IN: &str = "/etc/systemd/system/containerd.service.d/10.conf";
    /// The unit of Flatcar.
    const FLATCAR: &str = "[Service]\nEnvironment=CONTAINERD_CONFIG=/usr/share/containerd/config.toml\nExecStart=/usr/bin/containerd --config ${CONTAINERD_CONFIG}\n";
    /// The drop-in in the manual of Flatcar (*Customizing containerd*).
    const CUSTOM: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/containerd\n";

    fn tree(files: &[(&str, &str)]) -> Tree {
        let tree = Tree::new("0::/init.scope\n", &["/run/systemd/system"]);
        for (path, text) in files {
            tree.write(path, text);
        }
        tree
    }

    /// The program and the configuration of an image.
    fn of_image(tree: &Tree, id: &str) -> (Option<String>, Result<String, String>) {
        let (host, distro) = (tree.host(), by_id(id));
        let unit = ContainerdUnit::read(&host);
        let program = program(&host, distro, None, &unit);
        let (path, unknown) = root_config(&host, distro, &Containerd::Image, &unit, None, None);
        let config = unknown.map_or(Ok(path), |problem| Err(problem.message));
        (program, config)
    }

    #[rstest]
    #[case::without_a_unit("debian", &[], STOCK_CONFIG)]
    #[case::of_a_package("debian", &[(UNIT, "[Service]\nExecStart=/usr/bin/containerd\n")], STOCK_CONFIG)]
    #[case::named("debian", &[(UNIT, "[Service]\nExecStart=/usr/bin/containerd -c /etc/containerd/x.toml\n")], "/etc/containerd/x.toml")]
    #[case::in_an_environment_file(
        "debian",
        &[
            (UNIT, "[Service]\nEnvironmentFile=-/etc/default/containerd\nExecStart=/usr/bin/containerd $OPTIONS\n"),
            ("/etc/default/containerd", "OPTIONS=\"--log-level info --config /etc/containerd/x.toml\"\n"),
        ],
        "/etc/containerd/x.toml"
    )]
    #[case::a_reset_of_a_wrapper(
        "debian",
        &[(UNIT, "[Service]\nExecStart=/bin/sh -c x\n"), (DROP_IN, CUSTOM)],
        STOCK_CONFIG
    )]
    #[case::with_openrc(
        "systemd",
        &[("/etc/init.d/containerd", "#!/sbin/openrc-run\ncommand=/usr/bin/containerd\ncommand_args=\"-c /etc/containerd/x.toml\"\n")],
        "/etc/containerd/x.toml"
    )]
    #[case::with_openrc_in_its_settings(
        "systemd",
        &[
            ("/etc/init.d/containerd", "#!/sbin/openrc-run\ncommand=\"${CONTAINERD:-/usr/bin/containerd}\"\n"),
            ("/etc/conf.d/containerd", "command_args=\"--config /etc/containerd/x.toml\"\n"),
        ],
        "/etc/containerd/x.toml"
    )]
    #[case::a_drop_in_alone("debian", &[(DROP_IN, "[Service]\nLimitNOFILE=1\n")], STOCK_CONFIG)]
    #[case::flatcar("flatcar", &[(UNIT, FLATCAR)], "/usr/share/containerd/config.toml")]
    #[case::flatcar_with_a_variable(
        "flatcar",
        &[(UNIT, FLATCAR), (DROP_IN, "[Service]\nEnvironment=CONTAINERD_CONFIG=/etc/containerd/config.toml\n")],
        "/etc/containerd/config.toml"
    )]
    #[case::flatcar_as_in_its_manual("flatcar", &[(UNIT, FLATCAR), (DROP_IN, CUSTOM)], STOCK_CONFIG)]
    fn the_configuration_in_an_image_is_the_one_that_the_unit_makes_containerd_load(
        #[case] id: &str,
        #[case] files: &[(&str, &str)],
        #[case] expected: &str,
    ) {
        let (_, config) = of_image(&tree(files), id);
        assert_eq!(config.as_deref(), Ok(expected));
    }

    #[rstest]
    #[case::a_wrapper(
        "ExecStart=/bin/sh -c 'exec containerd -c /x'\n",
        "it starts /bin/sh instead of containerd"
    )]
    #[case::a_subcommand(
        "ExecStart=/usr/bin/containerd config dump\n",
        "it starts a subcommand of /usr/bin/containerd"
    )]
    #[case::two_commands(
        "Type=oneshot\nExecStart=/usr/bin/containerd\nExecStart=/bin/a\n",
        "2 commands"
    )]
    #[case::a_root_of_its_own(
        "RootDirectory=/srv\nExecStart=/usr/bin/containerd\n",
        "RootDirectory"
    )]
    #[case::a_missing_environment_file(
        "EnvironmentFile=/x\nExecStart=/usr/bin/containerd\n",
        "/x is missing"
    )]
    #[case::a_variable_of_the_manager(
        "PassEnvironment=X\nExecStart=/usr/bin/containerd -c ${X}\n",
        "variable X"
    )]
    fn a_unit_that_does_not_tell_the_configuration_is_named_with_the_cause(
        #[case] service: &str,
        #[case] cause: &str,
    ) {
        let tree = tree(&[(UNIT, &format!("[Service]\n{service}"))]);
        let message = of_image(&tree, "debian").1.unwrap_err();
        assert!(
            message.contains("unit containerd.service") && message.contains(cause),
            "{message}"
        );
        // The operator's path replaces that of the unit.
        let (host, distro) = (tree.host(), by_id("debian"));
        let unit = ContainerdUnit::read(&host);
        let given = root_config(&host, distro, &Containerd::Image, &unit, Some("/x"), None);
        assert_eq!(given, ("/x".to_owned(), None));
    }

    #[rstest]
    #[case::of_k3s("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", false)]
    #[case::of_k3s_with_its_data_elsewhere("/data/agent/etc/containerd/config.toml", false)]
    #[case::of_a_package(STOCK_CONFIG, true)]
    fn the_containerd_of_docker_does_not_count_where_the_last_change_was_for_k3s(
        #[case] root: &str,
        #[case] counts: bool,
    ) {
        let tree = tree(&[("/etc/rancher/k3s/config.yaml", "data-dir: /data\n")]);
        tree.process(812, &CONTAINERD);
        let host = tree.host();
        let found = || {
            let mut running = daemon::find(&host, Target::Live).unwrap();
            refuse_another(&host, &mut running, Some(root));
            running.containerd
        };
        assert_eq!(found().daemon().is_some(), counts);
        // A kubelet of its own decides.
        let kubelet = Given {
            comm: "kubelet",
            program: "/usr/bin/kubelet",
            ..CONTAINERD
        };
        tree.process(900, &kubelet);
        assert!(found().daemon().is_some());
    }

    #[rstest]
    #[case::one(&["/usr/local/bin/containerd"], Some("/usr/local/bin/containerd"))]
    #[case::two(&["/usr/bin/containerd", "/usr/local/bin/containerd"], None)]
    fn behind_a_wrapper_the_program_is_known_if_one_is_installed(
        #[case] installed: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let tree = tree(&[(UNIT, "[Service]\nExecStart=/bin/sh -c 'exec containerd'\n")]);
        for path in installed {
            tree.write(path, "");
        }
        assert_eq!(of_image(&tree, "debian").0.as_deref(), expected);
    }

    #[test]
    fn a_script_of_openrc_that_does_not_tell_the_configuration_is_named_with_the_cause() {
        let script = "#!/sbin/openrc-run\nstart() {\n  containerd -c /x &\n}\n";
        let tree = tree(&[("/etc/init.d/containerd", script)]);
        let message = of_image(&tree, "systemd").1.unwrap_err();
        assert!(
            message.ends_with("the script of the OpenRC service containerd decides"),
            "{message}"
        );
    }

    #[rstest]
    #[case::of_the_unit(
        "ExecStart=/usr/local/bin/containerd\n",
        Some("/usr/local/bin/containerd")
    )]
    #[case::of_the_unit_and_missing("ExecStart=/opt/bin/containerd\n", Some("/opt/bin/containerd"))]
    #[case::by_its_name("ExecStart=containerd\n", Some("/usr/local/bin/containerd"))]
    #[case::in_a_search_path(
        "ExecSearchPath=/opt/a:/usr/bin\nExecStart=containerd\n",
        Some("/usr/bin/containerd")
    )]
    #[case::in_two_search_paths(
        "ExecSearchPath=/opt/a\nExecSearchPath=/usr/bin\nExecStart=containerd\n",
        Some("/usr/bin/containerd")
    )]
    #[case::in_a_search_path_that_is_reset(
        "ExecSearchPath=/usr/bin\nExecSearchPath=\nExecStart=containerd\n",
        Some("/usr/local/bin/containerd")
    )]
    #[case::not_in_the_search_path("ExecSearchPath=/opt/a\nExecStart=containerd\n", None)]
    #[case::without_a_command("Type=notify\n", Some("/usr/bin/containerd"))]
    fn the_program_in_an_image_is_the_one_that_the_unit_starts(
        #[case] service: &str,
        #[case] expected: Option<&str>,
    ) {
        let tree = tree(&[
            (UNIT, &format!("[Service]\n{service}")),
            ("/usr/bin/containerd", ""),
            ("/usr/local/bin/containerd", ""),
        ]);
        assert_eq!(of_image(&tree, "debian").0.as_deref(), expected);
        // A distribution with a containerd of its own does not start this one.
        assert_eq!(of_image(&tree, "k3s").0, None);
    }

    #[test]
    fn a_running_containerd_without_an_option_loads_its_default_on_flatcar() {
        let tree = tree(&[(UNIT, FLATCAR), (DROP_IN, CUSTOM)]);
        let given = Given {
            arguments: "/usr/bin/containerd\0",
            ..CONTAINERD
        };
        tree.process(812, &given);
        let (host, distro) = (tree.host(), by_id("flatcar"));
        let containerd = daemon::find(&host, Target::Live).unwrap().containerd;
        assert!(containerd.daemon().is_some());
        let unit = ContainerdUnit::read(&host);
        let found = root_config(&host, distro, &containerd, &unit, None, None);
        assert_eq!(found, (STOCK_CONFIG.to_owned(), None));
    }

    /// Without cgroups, and with its data elsewhere, only its parent tells the containerd of k3s.
    #[rstest]
    #[case::of_k3s("/usr/local/bin/k3s", true)]
    #[case::of_docker("/usr/bin/dockerd", false)]
    fn after_a_change_of_k3s_only_its_own_containerd_counts(
        #[case] parent: &str,
        #[case] counts: bool,
    ) {
        let tree = Tree::new("0::/\n", &["/run/openrc"]);
        let given = |program, parent| Given {
            parent,
            cgroup: "0::/\n",
            program,
            ..CONTAINERD
        };
        let starter = Given {
            comm: "starter",
            ..given(parent, 1)
        };
        tree.process(700, &starter);
        tree.process(812, &given("/data/k3s/data/abc/bin/containerd", 700));
        let mut running = daemon::find(&tree.host(), Target::Live).unwrap();
        let root = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl";
        refuse_another(&tree.host(), &mut running, Some(root));
        assert_eq!(running.containerd.daemon().is_some(), counts);
    }
}
