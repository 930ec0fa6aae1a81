//! The room that talks to the API server: watches, decisions, writes, wired together. It never names the installer.
//!
//! Watches fill stores; a change names the nodes and Shims that it concerns; each of those is decided on from the stores alone
//! ([`decide`]: pure) and only [`apply`] writes. What one node means for the others is kept in the [`memory`].

use tokio::signal::unix::{SignalKind, signal};

mod apply;
mod cluster;
mod crd_watch;
mod decide;
mod error;
mod leader;
mod memory;
mod operate;
mod reconcile;
mod settings;
mod status_table;
mod uninstall;

pub use apply::crd::install as install_crd;
pub use error::Error;
pub use settings::Settings;
pub use status_table::status_table;
pub use uninstall::{UninstallOptions, UninstallSummary, uninstall};

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no cluster, the address can't be bound, the Lease is lost, or a part that must go on for ever ends.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let client = cluster::client().await?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| Error::Signal { source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| Error::Signal { source })?;
    let asked = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    // On the heap: forty kilobytes of watches.
    Box::pin(operate::operate(client, settings, false, async |_| {
        asked.await
    }))
    .await
}

#[cfg(test)]
mod tests;
