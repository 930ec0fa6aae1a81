//! How the controller runs: what the operator set. Types alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// How the controller runs.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the operator"
)]
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the controller and of its Jobs.
    pub namespace: String,
    /// Image of the Jobs.
    pub image: String,
    /// Pull policy of that image: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// Names of the Secrets with which that image is pulled.
    pub image_pull_secrets: Vec<String>,
    /// ServiceAccount of the Jobs' pods.
    pub job_service_account: String,
    /// ConfigMap whose key `ca.crt` holds more certificate authorities.
    pub ca_config_map: Option<String>,
    /// Seconds that a finished Job is kept; without it, or at zero, a Job goes once its report is read.
    pub job_ttl: Option<i32>,
    /// Seconds that one Job may take.
    pub job_deadline: i64,
    /// Provision every node, annotated or not.
    pub auto_provision: bool,
    /// Restart containerd even on nodes where that ends every pod.
    pub allow_pod_restarts: bool,
    /// Give the Jobs the process numbers of their nodes.
    pub job_host_pid: bool,
    /// Priority class of the Jobs' pods.
    pub job_priority_class: Option<String>,
    /// Variables by which a Job's `fetch` finds its proxies, as curl and most others read them.
    pub job_proxies: BTreeMap<&'static str, String>,
    /// Nodes declare the handlers of Shims that they don't carry, with a change that restarts their runtime anyway.
    pub reserve_handlers: bool,
    /// Name of the Lease, in the namespace, whose holder acts.
    pub lease_name: String,
    /// What this replica calls itself there.
    pub identity: String,
    /// Address of /livez, /readyz and /metrics.
    pub listen: SocketAddr,
}
