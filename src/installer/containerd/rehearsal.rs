//! Starts the host's containerd on given configuration files, beside the running one and unseen by it, and returns what its CRI serves. Writes
//! nothing on the host.
//!
//! The second containerd runs in a root that is built for it, in namespaces of its own, and ends with the rehearsal. It would otherwise
//! take the sockets of the first one (on 2.x the one of NRI), share its data, and call its plugins. `built_root.rs` builds the root,
//! `child.rs` has the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;

mod built_root;
mod cause;
mod child;
mod listening;
mod loader;
mod network;

use self::built_root::BuiltRoot;
use self::cause::cause_in_log;
pub use self::child::{CHILD_ARGUMENT, child_main};
use self::child::{NAMESPACES, Observation, Observed, START_LIMIT};
use super::command_line::paths;
use super::cri::Served;
use super::daemon::Daemon;
use super::process::working_directory;
use crate::containerd_config::{
    ConfigFiles, StartNeeds, outside_dependency, start_needs, without_secrets,
};
use crate::handoff::{Problem, printable};
use crate::installer::host::path::parent_directory;
use crate::installer::host::{HostRoot, exec};

/// The time for a whole rehearsal: for the start of containerd, and for the namespaces and the root around it, which take 0.1 s.
const LIMIT: Duration = START_LIMIT.saturating_add(Duration::from_secs(10));

/// Bytes of the environment of containerd, at most: as of its command line.
const MAX_ENVIRONMENT: u64 = 1 << 18;

/// Shims to mount, at most. A node has a few.
const MAX_SHIMS: usize = 128;

/// Files that the configuration names and that are copied, at most. A configuration names some ten.
const MAX_NAMED: usize = 256;

/// The environment if that of the running containerd can't be read.
const PATH: (&str, &str) = (
    "PATH",
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
);

/// Variables that systemd sets for one process (systemd.exec(5)): a second process must not use them.
const OF_SYSTEMD: [&str; 10] = [
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The containerd to start, and the configuration that it gets.
#[derive(Debug, Clone, Copy)]
pub struct Rehearsed<'a> {
    /// The running containerd, whose command line and environment are used.
    pub daemon: &'a Daemon,
    /// The path of the program that a restart starts.
    pub program: &'a str,
    /// The path of its CRI socket.
    pub socket: &'a str,
    /// The configuration files as containerd should load them. A file without a text is absent.
    pub files: &'a ConfigFiles,
    /// The output of `containerd config dump` for these files, or for files that differ in handlers alone.
    pub dump: &'a str,
}

/// The result of a rehearsal.
#[derive(Debug, Clone, PartialEq)]
pub enum Rehearsal {
    /// The CRI came up, and serves these handlers.
    Served(Served),
    /// containerd or its CRI did not come up, with the cause from its log. The cause may also be in the built root; a rehearsal of a
    /// configuration that is known to work tells.
    Failed(Problem),
    /// containerd was not started, for this reason.
    NotPossible(Problem),
}

/// Starts a second containerd on the configuration, waits for its CRI, and ends it. Takes some 0.2 s, and 30 s at most.
///
/// When the future is dropped or this process ends, all processes of the rehearsal end.
pub async fn rehearse(host: &HostRoot, rehearsed: &Rehearsed<'_>) -> Rehearsal {
    match outside_dependency(rehearsed.dump) {
        Ok(None) => {}
        Ok(Some(reason)) => return Rehearsal::NotPossible(Problem::new(reason, None)),
        Err(error) => return Rehearsal::NotPossible(Problem::new(&error, error.help())),
    }
    match start(host, rehearsed).await {
        Ok(observation) => {
            let (pid, _) = rehearsed.daemon.process;
            let obstacle = observation.listening.obstacle(host, pid, rehearsed.dump);
            match (judge(observation, rehearsed.files), obstacle) {
                (Rehearsal::Served(_), Some(message)) => {
                    Rehearsal::Failed(Problem::new(message, None))
                }
                (judged, _) => judged,
            }
        }
        Err(problem) => Rehearsal::NotPossible(problem),
    }
}

async fn start(host: &HostRoot, rehearsed: &Rehearsed<'_>) -> Result<Observation, Problem> {
    let no_help = |message: String| Problem::new(printable(&message), None);
    let built = contents(host, rehearsed).await.map_err(no_help)?;
    let input = serde_json::to_vec(&built).map_err(|error| no_help(error.to_string()))?;
    let parent = std::process::id().to_string();
    let arguments = [CHILD_ARGUMENT, NAMESPACES, &parent];
    let output =
        exec::run_farrier(&arguments, &input, LIMIT)
            .await
            .map_err(|error| match error {
                exec::Error::Failed { message, .. } => no_help(message),
                other => Problem::new(&other, other.help()),
            })?;
    serde_json::from_str(&output).map_err(|error| no_help(error.to_string()))
}

/// The result that the observation means. Credentials are removed from the messages.
fn judge(observation: Observation, files: &ConfigFiles) -> Rehearsal {
    let Observation { observed, log, .. } = observation;
    let texts = || files.files().filter_map(|file| file.text.as_deref());
    let problem = |what: &str, otherwise: String| {
        let cause = cause_in_log(&log).unwrap_or(otherwise);
        let cause = without_secrets(&printable(&cause), texts());
        Problem::new(format!("{what}: {cause}"), None)
    };
    match observed {
        Observed::Served(served) => Rehearsal::Served(served),
        Observed::NoCri(message) => {
            Rehearsal::Failed(problem("its CRI plugin does not start", message))
        }
        Observed::Ended(status) => Rehearsal::Failed(problem("it ends at its start", status)),
        Observed::TooLate(message) => {
            let message = without_secrets(&printable(&message), texts());
            let message = format!("its CRI does not serve within {START_LIMIT:?}: {message}");
            Rehearsal::Failed(Problem::new(message, None))
        }
        Observed::NotStarted(message) => {
            Rehearsal::NotPossible(Problem::new(printable(&message), None))
        }
    }
}

/// The contents of the root for this start.
async fn contents(host: &HostRoot, rehearsed: &Rehearsed<'_>) -> Result<BuiltRoot, String> {
    let Rehearsed {
        daemon,
        program,
        files,
        ..
    } = rehearsed;
    let (pid, _) = daemon.process;
    let arguments = host
        .read_text(&format!("/proc/{pid}/cmdline"), MAX_ENVIRONMENT)
        .map_err(|error| error.to_string())?
        .unwrap_or_default();
    let arguments: Vec<String> = arguments
        .strip_suffix('\0')
        .unwrap_or(&arguments)
        .split('\0')
        .map(str::to_owned)
        .collect();
    let environment = environment(host, pid);
    let directory = working_directory(host, pid);
    let needs = start_needs(rehearsed.dump).map_err(|error| error.to_string())?;
    let programs = shims(host, &needs, program, &environment);
    let all = std::iter::once(*program).chain(programs.iter().map(String::as_str));
    let libraries = join_all(all.map(|program| loader::libraries(host, program))).await;
    let libraries: BTreeSet<String> = libraries.into_iter().flatten().collect();
    let files = files
        .files()
        .map(|file| (file.path.clone(), file.text.clone()));
    let root = std::path::absolute(host.path()).map_err(|error| error.to_string())?;
    let named = needs.named.iter();
    let named = named.filter(|path| matches!(host.open_file(path), Ok(Some(_))));
    let copied = needs.cni.iter().chain(named.take(MAX_NAMED));
    let copied = std::iter::once("/etc").chain(copied.map(String::as_str));
    Ok(BuiltRoot {
        host: root,
        program: (*program).to_owned(),
        directories: directories(&needs, &arguments, directory.as_ref(), rehearsed.socket),
        arguments,
        directory: directory.unwrap_or_else(|| "/".to_owned()),
        environment,
        socket: rehearsed.socket.to_owned(),
        programs,
        libraries: libraries.into_iter().collect(),
        files: files.collect(),
        copied: copied.map(str::to_owned).collect(),
        emptied: needs.plugin_directories.iter().cloned().collect(),
        is_cgroup2: host.seems_to_exist("/sys/fs/cgroup/cgroup.controllers"),
    })
}

/// The directories that containerd expects or writes to.
fn directories(
    needs: &StartNeeds,
    arguments: &[String],
    directory: Option<&String>,
    socket: &str,
) -> Vec<String> {
    let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
    let named = paths(&arguments, || directory.cloned()).map_or_else(Vec::new, |paths| paths.data);
    let mut directories: Vec<String> = ["/run", "/var/run", "/tmp"].map(str::to_owned).into();
    directories.push(parent_directory(socket).to_owned());
    directories.extend(needs.data.iter().cloned());
    directories.extend(named);
    directories
}

/// The environment of the running containerd, without what belongs to that process alone.
fn environment(host: &HostRoot, pid: u32) -> BTreeMap<String, String> {
    let read = host.read(&format!("/proc/{pid}/environ"), MAX_ENVIRONMENT);
    let bytes = read.ok().flatten().unwrap_or_default();
    let variables = bytes.split(|byte| *byte == 0).filter_map(|variable| {
        let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        let is_own = name.is_empty() || OF_SYSTEMD.contains(&name);
        (!is_own).then(|| (name.to_owned(), value.to_owned()))
    });
    let mut environment: BTreeMap<String, String> = variables.collect();
    let (name, value) = PATH;
    environment
        .entry(name.to_owned())
        .or_insert_with(|| value.to_owned());
    environment
}

/// The paths of the shims: containerd looks for a name in its search path, and beside its own `program`.
fn shims(
    host: &HostRoot,
    needs: &StartNeeds,
    program: &str,
    environment: &BTreeMap<String, String>,
) -> Vec<String> {
    let searched = environment.get(PATH.0).map(String::as_str);
    let optional = format!("{}/bin", needs.optional);
    let directories: Vec<&str> = searched
        .unwrap_or_default()
        .split(':')
        .filter(|directory| directory.starts_with('/'))
        .chain([optional.as_str(), parent_directory(program)])
        .collect();
    let paths = needs.shims.iter().flat_map(|shim| {
        if shim.starts_with('/') {
            vec![shim.clone()]
        } else {
            let paths = directories.iter();
            paths
                .map(|directory| format!("{directory}/{shim}"))
                .collect()
        }
    });
    let existing = paths.filter(|path| host.seems_to_exist(path));
    existing.take(MAX_SHIMS).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::listening::Listening;
    use super::*;
    use crate::containerd_config::SourceFile;

    fn daemon() -> Daemon {
        Daemon {
            process: (1, 1),
            program: "/usr/bin/containerd".to_owned(),
            config: Ok(None),
            address: Ok(None),
            names_data: [false; 2],
            unit: None,
        }
    }

    fn files(text: &str) -> ConfigFiles {
        ConfigFiles {
            root: SourceFile {
                path: "/etc/containerd/config.toml".to_owned(),
                text: Some(text.to_owned()),
            },
            imported: Vec::new(),
        }
    }

    #[rstest]
    #[case::no_cri(Observed::NoCri("unknown service".to_owned()), "", "its CRI plugin does not start: unknown service")]
    #[case::cause_in_the_log(
        Observed::NoCri("unknown service".to_owned()),
        "msg=\"failed to load plugin io.containerd.grpc.v1.cri\" error=\"bad hunter2\"",
        "its CRI plugin does not start: bad …"
    )]
    #[case::ended(Observed::Ended("exit status: 1".to_owned()), "containerd: got hunter2\n", "it ends at its start: containerd: got …")]
    #[case::late(Observed::TooLate("no answer".to_owned()), "msg=a", "its CRI does not serve within 20s: no answer")]
    fn a_start_that_fails_is_reported_with_its_cause_and_without_credentials(
        #[case] observed: Observed,
        #[case] log: &str,
        #[case] expected: &str,
    ) {
        let log = log.to_owned();
        let judged = judge(
            Observation {
                observed,
                log,
                listening: Listening::default(),
            },
            &files("password = 'hunter2'"),
        );
        assert_eq!(judged, Rehearsal::Failed(Problem::new(expected, None)));
    }

    #[tokio::test]
    async fn a_configuration_with_a_proxy_plugin_is_not_started() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let daemon = daemon();
        let dump = "[proxy_plugins.soci]\ntype = 'snapshot'\naddress = '/run/soci.sock'\n";
        let rehearsed = Rehearsed {
            daemon: &daemon,
            program: &daemon.program,
            socket: "/run/containerd/containerd.sock",
            files: &files(dump),
            dump,
        };
        let reason = "the configuration names the proxy plugin soci";
        assert_eq!(
            rehearse(&host, &rehearsed).await,
            Rehearsal::NotPossible(Problem::new(reason, None))
        );
    }

    #[tokio::test]
    async fn the_working_directory_is_that_of_the_running_containerd() {
        let directory = tempfile::tempdir().unwrap();
        let process = directory.path().join("proc/1");
        std::fs::create_dir_all(&process).unwrap();
        std::fs::write(process.join("cmdline"), "containerd\0-c\0own.toml\0").unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let built = async || {
            let daemon = daemon();
            let rehearsed = Rehearsed {
                daemon: &daemon,
                program: &daemon.program,
                socket: "/run/containerd/containerd.sock",
                files: &files(""),
                dump: "",
            };
            contents(&host, &rehearsed).await.unwrap()
        };
        for (link, expected) in [
            ("/srv/containerd", "/srv/containerd"),
            ("/srv/containerd (deleted)", "/"),
        ] {
            let _ = std::fs::remove_file(process.join("cwd"));
            std::os::unix::fs::symlink(link, process.join("cwd")).unwrap();
            let built = built().await;
            assert_eq!(built.directory, expected);
            assert_eq!(built.arguments[2], "own.toml");
        }
    }

    #[test]
    fn the_environment_lacks_what_belongs_to_the_running_process() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("proc/7")).unwrap();
        let environ =
            "PATH=/own\0NOTIFY_SOCKET=/run/systemd/notify\0LISTEN_FDS=1\0HTTPS_PROXY=a=b\0";
        std::fs::write(directory.path().join("proc/7/environ"), environ).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let variables = |variables: &[(&str, &str)]| -> BTreeMap<String, String> {
            let variables = variables.iter();
            variables
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let expected = variables(&[("PATH", "/own"), ("HTTPS_PROXY", "a=b")]);
        assert_eq!(environment(&host, 7), expected);
        assert_eq!(environment(&host, 8), variables(&[PATH]));
    }

    #[test]
    fn a_shim_is_searched_for_where_containerd_searches_for_it() {
        let directory = tempfile::tempdir().unwrap();
        for path in [
            "own/s",
            "opt/containerd/bin/s",
            "usr/bin/s",
            "other/s",
            "srv/t",
        ] {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let host = HostRoot::open(directory.path()).unwrap();
        let needs = StartNeeds {
            shims: ["s", "/srv/t", "/srv/gone"].map(str::to_owned).into(),
            optional: "/opt/containerd".to_owned(),
            ..StartNeeds::default()
        };
        let environment = BTreeMap::from([("PATH".to_owned(), "/own:relative:".to_owned())]);
        assert_eq!(
            shims(&host, &needs, "/usr/bin/containerd", &environment),
            ["/srv/t", "/own/s", "/opt/containerd/bin/s", "/usr/bin/s"]
        );
    }

    #[test]
    fn root_and_state_of_the_command_line_are_directories_beside_those_of_the_dump() {
        let needs = StartNeeds {
            data: ["/data".to_owned()].into(),
            ..StartNeeds::default()
        };
        let arguments = ["containerd", "--root=/a", "-state", "/b"].map(str::to_owned);
        assert_eq!(
            directories(&needs, &arguments, None, "/run/own/c.sock"),
            ["/run", "/var/run", "/tmp", "/run/own", "/data", "/a", "/b"]
        );
        let arguments = ["containerd", "--root=a", "--state", "./b"].map(str::to_owned);
        let srv = "/srv".to_owned();
        assert_eq!(
            directories(&needs, &arguments, Some(&srv), "/run/own/c.sock")[5..],
            ["/srv/a", "/srv/b"]
        );
    }
}
