//! The service of containerd on one host: restarts it through the service manager, and finds out whether a restart ends pods. Does not
//! wait for the CRI.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::daemon::find_daemon;
use super::process::start_time;
use super::systemd::{self, RESTART_LIMIT, Systemd};
use crate::installer::distro::{DistroSpec, Restart};
use crate::installer::host::exec;
use crate::installer::host::{HostRoot, SMALL_FILE_LIMIT};

/// Why a service could not be restarted, or its manager could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to systemd failed.
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    /// A file of the host can't be read.
    #[error(transparent)]
    Host(#[from] crate::installer::host::Error),
    /// `OpenRC` failed to restart the service.
    #[error("failed to restart {name} with OpenRC: {source}")]
    OpenRc {
        /// The service.
        name: String,
        /// The failure of `rc-service`.
        #[source]
        source: exec::Error,
    },
    /// No supported service manager runs.
    #[error("neither systemd nor OpenRC runs on this host, so {unit} can't be restarted")]
    NoManager {
        /// The unit.
        unit: String,
    },
    /// Farrier runs in another PID namespace than the host, as in a pod without `hostPID`.
    #[error("containerd on this host can be restarted only from the PID namespace of the host")]
    OtherProcesses,
    /// The kernel refused the signal.
    #[error("failed to send a signal to process {process} of the host: {source}")]
    Signal {
        /// The PID.
        process: u32,
        /// The cause.
        #[source]
        source: Errno,
    },
}

impl Error {
    /// Whether the service manager accepted the restart and did not finish it in time.
    pub(super) fn is_timeout(&self) -> bool {
        match self {
            Self::Systemd(error) => error.is_timeout_of_restart(),
            Self::Host(_)
            | Self::OpenRc { .. }
            | Self::NoManager { .. }
            | Self::OtherProcesses
            | Self::Signal { .. } => false,
        }
    }

    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Systemd(error) => return error.help(),
            Self::Host(error) => return error.help(),
            Self::OpenRc { name, source } => source.help().unwrap_or_else(|| {
                Cow::Owned(format!("run `rc-service {name} status` on the node"))
            }),
            Self::NoManager { .. } => {
                Cow::Borrowed("use --offline and restart containerd yourself")
            }
            Self::OtherProcesses => Cow::Borrowed(
                "set job.hostPID: true in the values of the chart, or run farrier on the node",
            ),
            Self::Signal { process, .. } => {
                Cow::Owned(format!("run `ps -fp {process}` on the node"))
            }
        })
    }
}

/// The service manager of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Systemd,
    OpenRc,
}

/// The service that runs containerd, alone or with the kubelet as in k3s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Unit, as in `containerd.service`. The name of an `OpenRC` service is the part before the suffix.
    pub unit: String,
    /// Method of the restart.
    pub restart: Restart,
    /// How long containerd may take to serve after the restart.
    pub serve_limit: Duration,
    /// With [`Restart::Watched`]: whether the change writes a file that the supervisor watches, so that the supervisor restarts containerd.
    pub restart_triggered_by_write: bool,
}

/// The effect of a restart of containerd on the pods of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartEffect {
    /// The pods survive.
    PodsSurvive,
    /// Every pod ends.
    PodsEnd {
        /// The `KillMode` of the unit.
        kill_mode: String,
    },
    /// The node is a container, which ends with every pod.
    NodeEnds,
}

impl RestartEffect {
    /// The effect of a restart of a unit with this `KillMode` (systemd.kill(5)).
    fn of_kill_mode(kill_mode: String) -> Self {
        match kill_mode.as_str() {
            "process" | "none" => Self::PodsSurvive,
            _ => Self::PodsEnd { kill_mode },
        }
    }
}

/// What the service manager says about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// The effect of a restart on pods.
    pub restart_effect: RestartEffect,
    /// Whether the unit has files that systemd has not loaded yet; `None` without systemd: nothing else loads files ahead of a start.
    pub needs_reload: Option<bool>,
    /// When systemd started the main process, since the epoch by the clock of that time; `None` if systemd does not tell.
    pub started: Option<Duration>,
}

/// Path of `rc-service` on every distribution with `OpenRC`.
const RC_SERVICE: &str = "/sbin/rc-service";

impl Service {
    /// The service of `unit` on a host of this distribution.
    #[must_use]
    pub fn of(spec: &DistroSpec, unit: &str) -> Self {
        Self {
            unit: unit.to_owned(),
            restart: spec.restart,
            serve_limit: spec.serve_limit,
            restart_triggered_by_write: true,
        }
    }

    /// Checks that this process can restart the service. A restart through systemd is possible from every PID namespace.
    ///
    /// # Errors
    /// When the restart must start or signal a process of the host, and Farrier runs in another PID namespace.
    pub fn check_reachable(&self, host: &HostRoot) -> Result<(), Error> {
        match (self.restart, self.manager(host)) {
            (Restart::ContainerInit, _) | (Restart::Service, Ok(Manager::OpenRc)) => {
                check_pid_namespace(host)
            }
            (Restart::Watched, _) if !self.restart_triggered_by_write => check_pid_namespace(host),
            (Restart::Watched | Restart::Service, _) => Ok(()),
        }
    }

    /// Asks the service manager about the service. `OpenRC` signals the process that it started, and with `rc_cgroup_cleanup` the whole
    /// cgroup (openrc-run(8)), as systemd does with the `KillMode` `control-group`.
    ///
    /// # Errors
    /// When no service manager runs, or it does not answer.
    pub async fn status(&self, host: &HostRoot) -> Result<ServiceStatus, Error> {
        let restart_effect = match self.restart {
            // The supervisor of k0s signals only the process of containerd.
            Restart::Watched => RestartEffect::PodsSurvive,
            Restart::ContainerInit => RestartEffect::NodeEnds,
            Restart::Service => match self.manager(host)? {
                Manager::Systemd => {
                    let properties = Systemd::connect(host).await.properties(&self.unit).await?;
                    return Ok(ServiceStatus {
                        restart_effect: RestartEffect::of_kill_mode(properties.kill_mode),
                        needs_reload: Some(properties.needs_reload),
                        started: properties.started,
                    });
                }
                Manager::OpenRc => self.openrc_restart_effect(host)?,
            },
        };
        Ok(ServiceStatus {
            restart_effect,
            needs_reload: None,
            started: None,
        })
    }

    /// Whether systemd starts the service.
    pub(crate) fn is_of_systemd(&self, host: &HostRoot) -> bool {
        self.restart == Restart::Service && matches!(self.manager(host), Ok(Manager::Systemd))
    }

    /// Restarts the service and waits until its manager reports that it runs. Does nothing if a write already triggers the restart. If no
    /// write does, ends the process, and the supervisor starts it again (k0s: `pkg/supervisor`).
    ///
    /// # Errors
    /// When the restart fails.
    pub async fn restart(&self, host: &HostRoot) -> Result<(), Error> {
        match self.restart {
            Restart::Watched if self.restart_triggered_by_write => Ok(()),
            Restart::Watched => match find_daemon(host)? {
                Some(daemon) => end(host, daemon.process),
                // The supervisor is already starting it.
                None => Ok(()),
            },
            Restart::ContainerInit => match start_time(host, 1) {
                Some(since) => end(host, (1, since)),
                // Without process 1, /proc is not the one of the host.
                None => Err(Error::OtherProcesses),
            },
            Restart::Service => match self.manager(host)? {
                Manager::Systemd => Ok(Systemd::connect(host).await.restart(&self.unit).await?),
                Manager::OpenRc => {
                    check_pid_namespace(host)?;
                    let name = self.name();
                    exec::start(host, RC_SERVICE, &[name, "restart"], RESTART_LIMIT)
                        .await
                        .map_err(|source| Error::OpenRc {
                            name: name.to_owned(),
                            source,
                        })
                }
            },
        }
    }

    /// The name of the service with `OpenRC`.
    pub(crate) fn name(&self) -> &str {
        self.unit.strip_suffix(".service").unwrap_or(&self.unit)
    }

    /// The running service manager: both create their directory below `/run` at their start (`sd_booted(3)`; `OpenRC`'s `RC_SVCDIR`).
    fn manager(&self, host: &HostRoot) -> Result<Manager, Error> {
        if host.seems_to_exist("/run/systemd/system") {
            Ok(Manager::Systemd)
        } else if host.seems_to_exist("/run/openrc") && host.seems_to_exist(RC_SERVICE) {
            Ok(Manager::OpenRc)
        } else {
            let unit = self.unit.clone();
            Err(Error::NoManager { unit })
        }
    }

    fn openrc_restart_effect(&self, host: &HostRoot) -> Result<RestartEffect, Error> {
        let mut kill_mode = "process";
        // The file of the service overrides the general one.
        for path in [
            "/etc/rc.conf".to_owned(),
            format!("/etc/conf.d/{}", self.name()),
        ] {
            let text = host.read_text(&path, SMALL_FILE_LIMIT)?.unwrap_or_default();
            let set = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("rc_cgroup_cleanup="))
                .next_back();
            if let Some(value) = set {
                let value = value.trim().trim_matches(['"', '\'']);
                let is_on = ["yes", "true", "on", "1"]
                    .iter()
                    .any(|word| value.eq_ignore_ascii_case(word));
                kill_mode = if is_on { "control-group" } else { "process" };
            }
        }
        Ok(RestartEffect::of_kill_mode(kill_mode.to_owned()))
    }
}

/// A process of the host, held by a pidfd: a signal reaches this process or none, even if its PID is reused.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    process: u32,
    handle: OwnedFd,
}

impl ProcessHandle {
    /// Opens the process with this PID and start time; `None` if it has ended.
    ///
    /// # Errors
    /// When Farrier runs in another PID namespace, or the kernel returns no pidfd.
    pub(super) fn of(host: &HostRoot, (process, since): (u32, u64)) -> Result<Option<Self>, Error> {
        check_pid_namespace(host)?;
        // A negative PID would be a process group (kill(2)).
        let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(None),
            Err(source) => return Err(Error::Signal { process, source }),
        };
        // The pidfd may belong to a newer process with the same PID.
        let is_same = start_time(host, process) == Some(since);
        Ok(is_same.then_some(Self { process, handle }))
    }

    /// Sends a signal. Succeeds if the process has already ended.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), Error> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(source) => Err(Error::Signal {
                process: self.process,
                source,
            }),
        }
    }
}

/// Sends SIGTERM to a process of the host, unless it has ended.
fn end(host: &HostRoot, process: (u32, u64)) -> Result<(), Error> {
    match ProcessHandle::of(host, process)? {
        Some(process_handle) => process_handle.signal(Signal::TERM),
        None => Ok(()),
    }
}

/// Checks that Farrier runs in the PID namespace of the host (`pid_namespaces(7)`). In another one, a signal would reach another process,
/// and a containerd started there would end with the pod.
pub(super) fn check_pid_namespace(host: &HostRoot) -> Result<(), Error> {
    let namespace = |path: &Path| std::fs::read_link(path.join("ns/pid")).ok();
    let init_namespace = namespace(&host.path().join("proc/1"));
    if init_namespace.is_some() && init_namespace == namespace(Path::new("/proc/self")) {
        Ok(())
    } else {
        Err(Error::OtherProcesses)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::distro::by_id;
    use crate::installer::fixtures::host_with as host;

    fn service(id: &str) -> Service {
        let spec = by_id(id);
        Service::of(spec, spec.unit)
    }

    const SYSTEMD: (&str, &str) = ("/run/systemd/system/x", "");
    const STARTED: (&str, &str) = ("/run/openrc/started/x", "");
    const RC: (&str, &str) = (RC_SERVICE, "");

    #[rstest]
    #[case::systemd(&[SYSTEMD], Some(Manager::Systemd))]
    #[case::systemd_beside_what_openrc_left(&[SYSTEMD, STARTED, RC], Some(Manager::Systemd))]
    #[case::openrc(&[STARTED, RC], Some(Manager::OpenRc))]
    #[case::openrc_that_is_installed_and_does_not_run(&[RC], None)]
    #[case::openrc_without_its_program(&[STARTED], None)]
    #[case::none(&[], None)]
    fn the_service_manager_that_runs_is_detected(
        #[case] files: &[(&str, &str)],
        #[case] expected: Option<Manager>,
    ) {
        let (_directory, host) = host(files);
        let found = service("debian").manager(&host);
        assert_eq!(found.ok(), expected);
    }

    #[rstest]
    #[case::unset(&[], "process")]
    #[case::off(&[("/etc/rc.conf", "rc_cgroup_cleanup=\"NO\"\n")], "process")]
    #[case::a_comment(&[("/etc/rc.conf", "#rc_cgroup_cleanup=\"YES\"\n")], "process")]
    #[case::on_for_all(&[("/etc/rc.conf", "rc_cgroup_cleanup=\"YES\"\n")], "control-group")]
    #[case::on_for_it(&[("/etc/conf.d/k3s", "  rc_cgroup_cleanup='true'\n")], "control-group")]
    #[case::off_for_it_alone(
        &[("/etc/rc.conf", "rc_cgroup_cleanup=yes\n"), ("/etc/conf.d/k3s", "rc_cgroup_cleanup=no\n")],
        "process"
    )]
    #[case::of_another(&[("/etc/conf.d/docker", "rc_cgroup_cleanup=yes\n")], "process")]
    #[case::the_last_line_counts(&[("/etc/rc.conf", "rc_cgroup_cleanup=yes\nrc_cgroup_cleanup=no\n")], "process")]
    #[tokio::test]
    async fn openrc_ends_pods_only_where_it_clears_cgroups(
        #[case] files: &[(&str, &str)],
        #[case] expected: &str,
    ) {
        let (_directory, host) = host(&[files, &[STARTED, RC]].concat());
        let status = service("k3s").status(&host).await.unwrap();
        let expected = ServiceStatus {
            restart_effect: RestartEffect::of_kill_mode(expected.to_owned()),
            needs_reload: None,
            started: None,
        };
        assert_eq!(status, expected);
    }

    #[rstest]
    #[case::systemd("debian", &[SYSTEMD], true)]
    #[case::openrc("k3s", &[STARTED, RC], false)]
    #[case::container("k3d", &[], false)]
    #[case::its_own_supervisor("k0s", &[], true)]
    // The error is the missing manager, not the PID namespace.
    #[case::none("debian", &[], true)]
    fn openrc_and_signals_require_the_pid_namespace_of_the_host(
        #[case] id: &str,
        #[case] files: &[(&str, &str)],
        #[case] expected: bool,
    ) {
        // There is no process 1 below this root.
        let (_directory, host) = host(files);
        let reachable = service(id).check_reachable(&host);
        assert_eq!(reachable.is_ok(), expected);
        if let Err(error) = reachable {
            assert!(error.help().unwrap().contains("job.hostPID"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_service_program_that_others_can_replace_is_refused_with_the_command_that_corrects_it()
     {
        let (directory, host) = host(&[(RC_SERVICE, "")]);
        let path = directory.path().join("sbin/rc-service");
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let start = || exec::start(&host, RC_SERVICE, &[], RESTART_LIMIT);
        let unit = "k3s.service".to_owned();
        let errors = [
            Error::OpenRc {
                name: "k3s".to_owned(),
                source: start().await.unwrap_err(),
            },
            Error::Systemd(systemd::Error::Systemctl {
                bus: "no".to_owned(),
                source: start().await.unwrap_err(),
            }),
            Error::Systemd(systemd::Error::Restart {
                unit,
                source: Box::new(start().await.unwrap_err()),
                state: String::new(),
            }),
        ];
        for error in errors {
            let help = error.help().unwrap();
            assert!(help.contains("chmod go-w /sbin/rc-service"), "{help}");
        }
    }

    #[test]
    fn a_process_is_signalled_only_if_it_is_still_the_one_that_was_found() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let stat = format!("{pid} (cat) S 1 1{} 77 0", " 0".repeat(16));
        let (directory, host) = host(&[(&format!("/proc/{pid}/stat"), &stat)]);
        let namespaces = directory.path().join("proc/1/ns");
        std::fs::create_dir_all(&namespaces).unwrap();
        let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
        std::os::unix::fs::symlink(own, namespaces.join("pid")).unwrap();
        let since = 77;
        // The start time is that of an earlier process with the same PID.
        end(&host, (pid, since - 1)).unwrap();
        assert!(
            ProcessHandle::of(&host, (pid, since - 1))
                .unwrap()
                .is_none()
        );
        assert_eq!(child.try_wait().unwrap(), None);
        let process_handle = ProcessHandle::of(&host, (pid, since)).unwrap().unwrap();
        process_handle.signal(Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(15)
        );
        // The pidfd still names the ended process.
        process_handle.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn no_process_is_signalled_from_another_pid_namespace() {
        let (_directory, host) = host(&[]);
        let own = std::process::id();
        let error = end(&host, (own, 1)).unwrap_err();
        assert!(error.help().unwrap().contains("job.hostPID"), "{error}");
    }

    #[test]
    fn a_supervisor_that_must_be_signalled_requires_the_pid_namespace_of_the_host() {
        let (_directory, host) = host(&[]);
        let service = Service {
            restart_triggered_by_write: false,
            ..service("k0s")
        };
        let error = service.check_reachable(&host).unwrap_err();
        assert!(error.help().unwrap().contains("job.hostPID"), "{error}");
    }

    #[rstest]
    #[case("k3s-agent.service", "k3s-agent")]
    #[case("containerd.service", "containerd")]
    #[case("containerd", "containerd")]
    fn the_openrc_service_is_the_unit_name_before_the_dot(
        #[case] unit: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(Service::of(by_id("k3s"), unit).name(), expected);
    }
}
