//! The settings of the controller. Types alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::handoff::OnRestart;

/// The settings of the controller.
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
    /// Names of the Secrets for pulling that image.
    pub image_pull_secrets: Vec<String>,
    /// ServiceAccount of the Jobs' pods.
    pub job_service_account: String,
    /// ConfigMap with additional certificate authorities under the key `ca.crt`.
    pub ca_config_map: Option<String>,
    /// Seconds for which a finished Job is kept. Without a number, or with zero, a Job is deleted once its report is read.
    pub job_ttl: Option<i32>,
    /// Seconds that one Job may take.
    pub job_deadline: i64,
    /// Provision every node, annotated or not.
    pub auto_provision: bool,
    /// Restart containerd even on nodes where the restart ends every pod.
    pub allow_pod_restarts: bool,
    /// What a restart of containerd may do to pods of handlers whose Shims say nothing.
    pub on_restart: OnRestart,
    /// Time limit for the eviction of the pods of a node; `None` if Farrier may evict no pod.
    pub drain_timeout: Option<Duration>,
    /// Restart containerd even if the restart puts changes of others into effect.
    pub accept_pending_changes: bool,
    /// Run the Jobs with hostPID: true.
    pub job_host_pid: bool,
    /// Let the Jobs download also from link-local addresses and from metadata services of clouds.
    pub job_allow_link_local: bool,
    /// Priority class of the Jobs' pods.
    pub job_priority_class: Option<String>,
    /// Additional labels of the Jobs and of their pods.
    pub job_labels: BTreeMap<String, String>,
    /// Additional annotations of the Jobs and of their pods.
    pub job_annotations: BTreeMap<String, String>,
    /// Resources of each container of a Job, in place of the default.
    pub job_resources: Option<ResourceRequirements>,
    /// Proxy variables for the Jobs' `fetch` container.
    pub job_proxies: BTreeMap<&'static str, String>,
    /// Keys of the taints that a node loses when it serves its shims, or never will.
    pub startup_taints: Vec<String>,
    /// A node also declares the handlers of Shims that it does not carry, when containerd is restarted anyway.
    pub reserve_handlers: bool,
    /// Filter of the log lines of the Jobs, as that of the controller.
    pub log_filter: String,
    /// Format of the log lines of the Jobs: `text` or `json`.
    pub log_format: String,
    /// Name of the Lease in the namespace.
    pub lease_name: String,
    /// Identity of this replica in the Lease.
    pub identity: String,
    /// Address of /livez, /readyz and /metrics.
    pub listen: SocketAddr,
    /// Address of /livez and /readyz alone.
    pub probe_listen: Option<SocketAddr>,
}
