//! Asks the host's systemd over D-Bus: how a unit stops, and to restart it. Decides nothing.
//!
//! The system bus is used and not systemd's private socket, whose protocol is no stable interface (`org.freedesktop.systemd1(5)`
//! names the bus alone): systemd 252 answers there with a sender that is no unique name, which zbus refuses. Where nobody answers on
//! the bus, the host's own `systemctl` is asked, which knows that protocol.

use std::borrow::Cow;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::net::UnixStream;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Proxy};

use crate::handoff::printable;
use crate::installer::host::HostRoot;
use crate::installer::host::exec::{self, ExecContext};

/// Where every systemd distribution has its system bus (D-Bus Specification, *System message bus*).
const BUS: &str = "/run/dbus/system_bus_socket";

const DESTINATION: &str = "org.freedesktop.systemd1";

/// One question to systemd is answered in milliseconds; a host under load gets this long.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A unit's stop and start may each take `DefaultTimeoutStartSec`, 90 s (systemd-system.conf(5)).
pub const RESTART_LIMIT: Duration = Duration::from_secs(200);

/// Why systemd could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no bus.
    #[error("can't reach systemd at {BUS} of the host: {source}")]
    Connect {
        /// What the system says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody answers on the bus, and `systemctl` has no more luck.
    #[error("{source}; there is no system bus to ask systemd itself: {bus}")]
    Systemctl {
        /// Why the bus is of no use.
        bus: String,
        /// What became of `systemctl`.
        #[source]
        source: exec::Error,
    },
    /// `systemctl` could not restart the unit.
    #[error("failed to restart {unit}: {source}{state}")]
    Restart {
        /// The unit.
        unit: String,
        /// What became of `systemctl`.
        #[source]
        source: Box<exec::Error>,
        /// What systemd says of the unit after that, in parentheses.
        state: String,
    },
    /// systemd refused, or the connection broke.
    #[error("systemd does not {act} {unit}: {source}")]
    Call {
        /// What was asked.
        act: &'static str,
        /// The unit.
        unit: String,
        /// What systemd says.
        #[source]
        source: Box<zbus::Error>,
    },
    /// No answer in time.
    #[error("systemd did not {act} {unit} within {limit:?}")]
    TooLong {
        /// What was asked.
        act: &'static str,
        /// The unit.
        unit: String,
        /// The bound.
        limit: Duration,
    },
    /// The job ended otherwise.
    #[error("systemd's job to restart {unit} ended as {result:?} and the unit is {state:?}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `timeout`, `canceled`, `dependency` or `skipped`.
        result: String,
        /// Its `ActiveState` after that.
        state: String,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Connect { .. } => Cow::Borrowed("see that dbus is installed and running there"),
            Self::Restart { unit, .. } => {
                Cow::Owned(format!("see `journalctl -u {unit}` on the node"))
            }
            Self::Job { unit, .. } => Cow::Owned(format!("see `journalctl -u {unit}` on the node")),
            Self::Systemctl { .. } | Self::Call { .. } | Self::TooLong { .. } => return None,
        })
    }
}

/// The host's systemd.
#[derive(Debug)]
pub enum Systemd<'a> {
    /// Over its bus.
    Bus(Bus),
    /// Through the host's `systemctl`.
    Systemctl {
        /// The host.
        host: &'a HostRoot,
        /// Why the bus is of no use.
        bus: String,
    },
}

/// A link to `/usr/bin/systemctl` at least, wherever systemd is; distributions without a merged `/usr` have it only there.
const SYSTEMCTL: &str = "/bin/systemctl";

impl<'a> Systemd<'a> {
    /// Connects to the system bus of the host, and falls back to its `systemctl`.
    pub async fn connect(host: &'a HostRoot) -> Self {
        match Bus::connect(host).await {
            Ok(bus) => Self::Bus(bus),
            Err(error) => Self::Systemctl {
                host,
                bus: error.to_string(),
            },
        }
    }

    /// How the unit's processes are killed when it stops: `process` and `none` leave pods alone (systemd.kill(5)).
    ///
    /// # Errors
    /// When systemd does not answer, or knows no such service.
    pub async fn kill_mode(&self, unit: &str) -> Result<String, Error> {
        match self {
            Self::Bus(bus) => bus.kill_mode(unit).await,
            Self::Systemctl { host, bus } => {
                let arguments = ["show", "--property=KillMode", "--value", "--", unit];
                let mode = systemctl(host, bus, &arguments, ANSWER_LIMIT).await?;
                Ok(mode.trim().to_owned())
            }
        }
    }

    /// Restarts the unit and waits until systemd's job for it has ended and the unit is active.
    ///
    /// # Errors
    /// When the job fails, or takes longer than [`RESTART_LIMIT`].
    pub async fn restart(&self, unit: &str) -> Result<(), Error> {
        match self {
            Self::Bus(bus) => bus.restart(unit).await,
            Self::Systemctl { host, bus } => {
                // As over the bus: what systemd has not loaded has nothing to forget.
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
                        let asked = [&["show"], &STATE[..], &["--", unit]].concat();
                        let said = systemctl(host, bus, &asked, ANSWER_LIMIT).await;
                        Err(Error::Restart {
                            unit: unit.to_owned(),
                            source: Box::new(source),
                            state: state_in(&said.unwrap_or_default()),
                        })
                    }
                    restarted => restarted.map(drop),
                }
            }
        }
    }
}

/// Properties that say why a unit does not run (`org.freedesktop.systemd1(5)`); `systemctl show` prints them for programs to read.
const STATE: [&str; 3] = [
    "--property=LoadState",
    "--property=ActiveState",
    "--property=Result",
];

/// What `systemctl show` prints, as an addition to a sentence.
fn state_in(said: &str) -> String {
    let properties: Vec<&str> = said.lines().filter(|line| line.contains('=')).collect();
    if properties.is_empty() {
        return String::new();
    }
    printable(&format!(" ({})", properties.join(", ")))
}

/// It ignores what it is asked where it finds itself in another root than process 1, so it runs where that does.
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

/// `systemctl` says first what failed, and last where more is to be read.
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
        // No cache: a state is asked for when it is needed, and no signal of every property change comes in.
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

    async fn property(
        &self,
        unit: &str,
        interface: &'static str,
        name: &str,
    ) -> zbus::Result<String> {
        let path: OwnedObjectPath = self.manager().await?.call("LoadUnit", &(unit,)).await?;
        self.proxy(path, interface).await?.get_property(name).await
    }

    async fn kill_mode(&self, unit: &str) -> Result<String, Error> {
        self.property(unit, "org.freedesktop.systemd1.Service", "KillMode")
            .await
            .map_err(call("tell the KillMode of", unit))
    }

    async fn active_state(&self, unit: &str) -> Result<String, Error> {
        self.property(unit, "org.freedesktop.systemd1.Unit", "ActiveState")
            .await
            .map_err(call("tell the state of", unit))
    }

    async fn restart(&self, unit: &str) -> Result<(), Error> {
        let job = tokio::time::timeout(RESTART_LIMIT, self.restart_job(unit))
            .await
            .map_err(|_| Error::TooLong {
                act: "restart",
                unit: unit.to_owned(),
                limit: RESTART_LIMIT,
            })?;
        let result = job.map_err(call("restart", unit))?;
        let state = self.active_state(unit).await?;
        if result == "done" && state == "active" {
            return Ok(());
        }
        Err(Error::Job {
            unit: unit.to_owned(),
            result,
            state,
        })
    }

    /// Asks for a restart and returns the result of the job that does it.
    async fn restart_job(&self, unit: &str) -> zbus::Result<String> {
        let manager = self.manager().await?;
        // A unit that failed too often is started no more (systemd.unit(5), StartLimitBurst), also not on the configuration that
        // is put back. One that systemd has not loaded has nothing to forget.
        let _ = manager.call::<_, _, ()>("ResetFailedUnit", &(unit,)).await;
        // Before the job exists, or its end could be missed. systemd sends signals only to those who subscribed.
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
    use super::*;

    #[test]
    fn a_failed_restart_is_reported_with_its_cause_and_the_state_of_the_unit() {
        let cause = "Job for a.service failed because the control process exited with error code.";
        let last = "See \"systemctl status a.service\" for details.";
        let source = in_full(exec::Error::Failed {
            program: SYSTEMCTL.to_owned(),
            message: last.to_owned(),
            all: format!("{cause} {last}"),
        });
        let said = "LoadState=loaded\nActiveState=failed\nResult=exit-code\n";
        let error = Error::Restart {
            unit: "a.service".to_owned(),
            source: Box::new(source),
            state: state_in(said),
        };
        let message = error.to_string();
        assert!(message.contains(cause), "{message}");
        assert!(message.contains("Result=exit-code"), "{message}");
        assert_eq!(state_in("\n"), "");
    }
}
