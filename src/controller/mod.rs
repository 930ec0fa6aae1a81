//! The controller: watches, decisions and writes, wired together. It never imports the installer.
//!
//! Watches fill stores. A change triggers the nodes and Shims that it concerns, each of which is reconciled from the stores alone
//! (`decide`, which is pure). Only `apply` writes. `memory` holds the state of all nodes together.

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
pub use decide::job_spec::JOB_MEMORY_LIMIT;
pub use error::Error;
pub use settings::Settings;
pub use status_table::{Status, status_table};
pub use uninstall::{UninstallOptions, UninstallSummary, uninstall};

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no cluster, the address can't be bound, the Lease is lost, or a part of the controller ends unexpectedly.
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
    // On the heap: the watches take 40 KB.
    Box::pin(operate::operate(client, settings, false, async |_| {
        asked.await
    }))
    .await
}

#[cfg(test)]
mod tests;
