//! Client of the host's systemd: reads properties of a unit and restarts the unit. Contains no decisions.
//!
//! The client connects to the system bus. The protocol of systemd's private socket is no stable interface (`org.freedesktop.systemd1(5)`
//! names the bus alone): systemd 252 answers there with a sender that is no unique name, and zbus refuses such a sender. Without a system
//! bus, the client runs the host's own `systemctl`, which knows that protocol.

use std::borrow::Cow;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::net::UnixStream;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Proxy};

use crate::handoff::printable;
use crate::installer::host::HostRoot;
use crate::installer::host::exec::{self, ExecContext};

/// Socket of the system bus (D-Bus Specification, *System message bus*).
const BUS: &str = "/run/dbus/system_bus_socket";

const DESTINATION: &str = "org.freedesktop.systemd1";

/// The D-Bus interface of every unit.
const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// The D-Bus interface of service units.
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// Limit of one call. systemd answers in milliseconds; the rest is for a host under load.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Limit of a restart: stop and start may each take `DefaultTimeoutStartSec`, 90 s (systemd-system.conf(5)).
pub const RESTART_LIMIT: Duration = Duration::from_secs(200);

/// The verb of a restart in messages.
const RESTART: &str = "restart";

/// Why a call to systemd failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system bus can't be reached.
    #[error("failed to connect to systemd at {BUS} on the host: {source}")]
    Connect {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system bus can't be reached, and `systemctl` failed.
    #[error("{source} (systemctl was used without D-Bus: {bus})")]
    Systemctl {
        /// Why the bus can't be reached.
        bus: String,
        /// The failure of `systemctl`.
        #[source]
        source: exec::Error,
    },
    /// `systemctl` failed to restart the unit.
    #[error("failed to restart {unit}: {source}{state}")]
    Restart {
        /// The unit.
        unit: String,
        /// The failure of `systemctl`.
        #[source]
        source: Box<exec::Error>,
        /// State of the unit after the failure, in parentheses with a space before them; empty if unknown.
        state: String,
    },
    /// systemd refused the call, or the connection broke.
    #[error("failed to {act} {unit} over D-Bus: {source}")]
    Call {
        /// The verb of the call, as in `read the state of`.
        act: &'static str,
        /// The unit.
        unit: String,
        /// The answer of systemd, or the failure of the connection.
        #[source]
        source: Box<zbus::Error>,
    },
    /// systemd did not answer in time.
    #[error("systemd did not {act} {unit} within {limit:?}")]
    TooLong {
        /// The verb of the call.
        act: &'static str,
        /// The unit.
        unit: String,
        /// The limit.
        limit: Duration,
    },
    /// The restart job failed, or the unit is not active after it.
    #[error(
        "failed to restart {unit}: the systemd job ended with {result:?}, and the unit is {state:?}"
    )]
    Job {
        /// The unit.
        unit: String,
        /// Result of the job: `done`, `failed`, `timeout`, `canceled`, `dependency` or `skipped`.
        result: String,
        /// `ActiveState` of the unit after the job.
        state: String,
    },
}

impl Error {
    /// Whether systemd did not finish a restart in time. Its job goes on.
    pub(super) fn is_timeout_of_restart(&self) -> bool {
        match self {
            Self::TooLong { act, .. } => *act == RESTART,
            // Each other command of `systemctl` has a shorter limit.
            Self::Systemctl { source, .. } => {
                matches!(source, exec::Error::TooLong { limit, .. } if *limit == RESTART_LIMIT)
            }
            Self::Connect { .. } | Self::Restart { .. } | Self::Call { .. } | Self::Job { .. } => {
                false
            }
        }
    }

    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Connect { .. } => {
                Cow::Borrowed("check that dbus is installed and runs on the host")
            }
            Self::Restart { unit, source, .. } => source.help().unwrap_or_else(|| log_of(unit)),
            Self::Job { unit, .. } => log_of(unit),
            Self::Systemctl { source, .. } => return source.help(),
            Self::Call { .. } | Self::TooLong { .. } => return None,
        })
    }
}

fn log_of(unit: &str) -> Cow<'static, str> {
    Cow::Owned(format!("run `journalctl -u {unit}` on the node"))
}

/// The host's systemd.
#[derive(Debug)]
pub enum Systemd<'a> {
    /// Called over D-Bus.
    Bus(Bus),
    /// Called through the host's `systemctl`.
    Systemctl {
        /// The host.
        host: &'a HostRoot,
        /// Why the bus can't be reached.
        bus: String,
    },
}

/// Present on every distribution with systemd: with a merged `/usr` through a symlink, without one as the only path of `systemctl`.
const SYSTEMCTL: &str = "/bin/systemctl";

impl<'a> Systemd<'a> {
    /// Connects to the system bus of the host. Without a bus, falls back to `systemctl`.
    pub async fn connect(host: &'a HostRoot) -> Self {
        match Bus::connect(host).await {
            Ok(bus) => Self::Bus(bus),
            Err(error) => Self::Systemctl {
                host,
                bus: error.to_string(),
            },
        }
    }

    /// Reads the properties of the unit that the restart of a service depends on.
    ///
    /// # Errors
    /// When systemd does not answer, or has no such service.
    pub async fn properties(&self, unit: &str) -> Result<UnitProperties, Error> {
        match self {
            Self::Bus(bus) => {
                let properties = bus.properties(unit).await;
                properties.map_err(call("read the properties of", unit))
            }
            Self::Systemctl { host, bus } => {
                let names = "--property=KillMode,NeedDaemonReload";
                let arguments = ["show", names, "--", unit];
                let output = systemctl(host, bus, &arguments, ANSWER_LIMIT).await?;
                Ok(UnitProperties::of_output(&output))
            }
        }
    }

    /// Restarts the unit and waits until systemd's job has ended and the unit is active.
    ///
    /// # Errors
    /// When the job fails, or takes longer than [`RESTART_LIMIT`].
    pub async fn restart(&self, unit: &str) -> Result<(), Error> {
        match self {
            Self::Bus(bus) => bus.restart(unit).await,
            Self::Systemctl { host, bus } => {
                // As in `restart_job`: the call fails harmlessly for a unit that systemd has not loaded.
                let _ = systemctl(host, bus, &["reset-failed", "--", unit], ANSWER_LIMIT).await;
                let restart = ["restart", "--", unit];
                let mut restarted = systemctl(host, bus, &restart, RESTART_LIMIT).await;
                if restarted.is_ok() {
                    let is_active = ["is-active", "--", unit];
                    restarted = systemctl(host, bus, &is_active, ANSWER_LIMIT).await;
                }
                match restarted {
                    Err(Error::Systemctl {
                        source: source @ exec::Error::Failed { .. },
                        ..
                    }) => {
                        let show = [&["show"], &STATE[..], &["--", unit]].concat();
                        let output = systemctl(host, bus, &show, ANSWER_LIMIT).await;
                        Err(Error::Restart {
                            unit: unit.to_owned(),
                            source: Box::new(source),
                            state: state_in(&output.unwrap_or_default()),
                        })
                    }
                    restarted => restarted.map(drop),
                }
            }
        }
    }
}

/// Properties of a service unit (`org.freedesktop.systemd1(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitProperties {
    /// `KillMode`. With `process` and `none`, pods survive a stop of the unit (systemd.kill(5)).
    pub kill_mode: String,
    /// `NeedDaemonReload`: whether files of the unit were changed since systemd loaded them.
    pub needs_reload: bool,
    /// `ExecMainStartTimestamp`: the start of the main process, since the epoch by the clock of that time. `None` without D-Bus: `systemctl`
    /// prints seconds.
    pub started: Option<Duration>,
}

impl UnitProperties {
    /// The properties that `systemctl show` prints.
    fn of_output(output: &str) -> Self {
        let value = |name| {
            let named = output.lines().filter_map(|line| line.split_once('='));
            let mut values = named.filter(|(key, _)| *key == name);
            values.next().map(|(_, value)| value.trim())
        };
        Self {
            kill_mode: value("KillMode").unwrap_or_default().to_owned(),
            needs_reload: value("NeedDaemonReload") == Some("yes"),
            started: None,
        }
    }
}

/// Properties that explain why a unit does not run (`org.freedesktop.systemd1(5)`), as options of `systemctl show`.
const STATE: [&str; 3] = [
    "--property=LoadState",
    "--property=ActiveState",
    "--property=Result",
];

/// The output of `systemctl show` in parentheses, to append to a message; empty if there is none.
fn state_in(output: &str) -> String {
    let properties: Vec<&str> = output.lines().filter(|line| line.contains('=')).collect();
    if properties.is_empty() {
        return String::new();
    }
    printable(&format!(" ({})", properties.join(", ")))
}

/// Runs `systemctl` in the root of process 1: in another root, it ignores its command.
async fn systemctl(
    host: &HostRoot,
    bus: &str,
    arguments: &[&str],
    limit: Duration,
) -> Result<String, Error> {
    exec::run_in(host, ExecContext::Host, SYSTEMCTL, arguments, limit)
        .await
        .map_err(|source| Error::Systemctl {
            bus: bus.to_owned(),
            source: in_full(source),
        })
}

/// The error with all output of `systemctl`: the first line has the cause, the last line only refers to the log.
fn in_full(error: exec::Error) -> exec::Error {
    match error {
        exec::Error::Failed { program, all, .. } => exec::Error::Failed {
            program,
            message: all.clone(),
            all,
        },
        error => error,
    }
}

/// A connection to the host's system bus.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
}

impl Bus {
    async fn connect(host: &HostRoot) -> Result<Self, Error> {
        let connect = |source: Box<dyn std::error::Error + Send + Sync>| Error::Connect { source };
        let (_handle, path) = host.handle(BUS).map_err(|error| connect(error.into()))?;
        let connection = async {
            let stream = UnixStream::connect(path).await?.into_std()?;
            zbus::connection::Builder::unix_stream(stream)
                .method_timeout(ANSWER_LIMIT)
                .build()
                .await
        };
        let connection = tokio::time::timeout(ANSWER_LIMIT, connection)
            .await
            .map_err(|elapsed| connect(elapsed.into()))?
            .map_err(|error| connect(error.into()))?;
        Ok(Self { connection })
    }

    async fn proxy(
        &self,
        path: OwnedObjectPath,
        interface: &'static str,
    ) -> zbus::Result<Proxy<'_>> {
        // Without a cache, each property is read when needed, and zbus subscribes to no signals about changed properties.
        zbus::proxy::Builder::new(&self.connection)
            .destination(DESTINATION)
            .path(path)
            .interface(interface)
            .cache_properties(CacheProperties::No)
            .build()
            .await
    }

    async fn manager(&self) -> zbus::Result<Proxy<'_>> {
        let path = OwnedObjectPath::try_from("/org/freedesktop/systemd1")?;
        self.proxy(path, "org.freedesktop.systemd1.Manager").await
    }

    /// The path of the unit, which systemd loads if necessary.
    async fn unit(&self, name: &str) -> zbus::Result<OwnedObjectPath> {
        self.manager().await?.call("LoadUnit", &(name,)).await
    }

    async fn properties(&self, name: &str) -> zbus::Result<UnitProperties> {
        let path = self.unit(name).await?;
        let unit = self.proxy(path.clone(), UNIT).await?;
        let service = self.proxy(path, SERVICE).await?;
        // `GetAll` would have systemd read the resource usage from the cgroup of the unit, too.
        let (kill_mode, needs_reload, started) = futures::try_join!(
            service.get_property("KillMode"),
            unit.get_property("NeedDaemonReload"),
            service.get_property("ExecMainStartTimestamp"),
        )?;
        Ok(UnitProperties {
            kill_mode,
            needs_reload,
            started: Some(Duration::from_micros(started)),
        })
    }

    async fn active_state(&self, name: &str) -> zbus::Result<String> {
        let path = self.unit(name).await?;
        let unit = self.proxy(path, UNIT).await?;
        unit.get_property("ActiveState").await
    }

    async fn restart(&self, unit: &str) -> Result<(), Error> {
        let job = tokio::time::timeout(RESTART_LIMIT, self.restart_job(unit))
            .await
            .map_err(|_| Error::TooLong {
                act: RESTART,
                unit: unit.to_owned(),
                limit: RESTART_LIMIT,
            })?;
        let result = job.map_err(call(RESTART, unit))?;
        let state = self.active_state(unit).await;
        let state = state.map_err(call("read the state of", unit))?;
        if result == "done" && state == "active" {
            return Ok(());
        }
        Err(Error::Job {
            unit: unit.to_owned(),
            result,
            state,
        })
    }

    /// Starts a restart job and returns the job's result.
    async fn restart_job(&self, unit: &str) -> zbus::Result<String> {
        let manager = self.manager().await?;
        // systemd starts no unit that failed too often (systemd.unit(5), StartLimitBurst). Without a reset, this would hold for the
        // restored configuration, too. The call fails harmlessly for a unit that systemd has not loaded.
        let _ = manager.call::<_, _, ()>("ResetFailedUnit", &(unit,)).await;
        // Subscribe before the job exists, so that its end can't be missed. systemd sends signals only to subscribers.
        let mut removed = manager.receive_signal("JobRemoved").await?;
        manager.call::<_, _, ()>("Subscribe", &()).await?;
        let job: OwnedObjectPath = manager.call("RestartUnit", &(unit, "replace")).await?;
        while let Some(message) = removed.next().await {
            let body = message.body();
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                body.deserialize()?;
            if path == job {
                return Ok(result);
            }
        }
        Err(zbus::Error::Failure(
            "the connection ended before the job did".to_owned(),
        ))
    }
}

fn call(act: &'static str, unit: &str) -> impl FnOnce(zbus::Error) -> Error {
    move |source| Error::Call {
        act,
        unit: unit.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::up_to_date("KillMode=process\nNeedDaemonReload=no\n", "process", false)]
    #[case::changed(
        "NeedDaemonReload=yes\nKillMode=control-group\n",
        "control-group",
        true
    )]
    #[case::nothing("\n", "", false)]
    fn the_properties_are_those_that_systemctl_prints(
        #[case] output: &str,
        #[case] kill_mode: &str,
        #[case] needs_reload: bool,
    ) {
        let expected = UnitProperties {
            kill_mode: kill_mode.to_owned(),
            needs_reload,
            started: None,
        };
        assert_eq!(UnitProperties::of_output(output), expected);
    }

    #[test]
    fn a_failed_restart_is_reported_with_its_cause_and_the_state_of_the_unit() {
        let cause = "Job for a.service failed because the control process exited with error code.";
        let last = "See \"systemctl status a.service\" for details.";
        let source = in_full(exec::Error::Failed {
            program: SYSTEMCTL.to_owned(),
            message: last.to_owned(),
            all: format!("{cause} {last}"),
        });
        let output = "LoadState=loaded\nActiveState=failed\nResult=exit-code\n";
        let error = Error::Restart {
            unit: "a.service".to_owned(),
            source: Box::new(source),
            state: state_in(output),
        };
        let message = error.to_string();
        assert!(message.contains(cause), "{message}");
        assert!(message.contains("Result=exit-code"), "{message}");
        assert_eq!(state_in("\n"), "");
    }
}
