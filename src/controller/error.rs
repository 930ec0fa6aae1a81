//! Why the controller, an uninstall or a status table ends.

use super::{apply, cluster};
use crate::server;

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster can't be read.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The API server took too long.
    #[error(
        "the API server did not answer within {seconds} s; check the address in the kubeconfig"
    )]
    Deadline {
        /// How long was waited.
        seconds: u64,
    },
    /// Another replica acts.
    #[error("the Lease was lost; another replica acts, and this one starts anew to stand by")]
    LeaseLost,
    /// The definition was deleted or replaced.
    #[error(
        "the cluster doesn't serve Farrier's definition of the Shim any more; run `farrier crd --apply`"
    )]
    CrdReplaced,
    /// A write that nothing goes on without.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// A part of the controller that must go on for ever has ended.
    #[error("the {part} ended; the controller is started anew by Kubernetes")]
    Ended {
        /// Which one.
        part: &'static str,
    },
    /// Signals can't be received.
    #[error("failed to listen for SIGTERM: {source}")]
    Signal {
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// The probes can't be served.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The cluster does not serve the Shim's definition.
    #[error(transparent)]
    Crd(#[from] apply::crd::Error),
}
