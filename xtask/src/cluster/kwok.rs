//! A cluster without nodes of its own: kwok plays the kubelets of any number of Node objects. Command lines and an audit policy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::state::State;

/// Name of the audit log in the directory of logs.
const AUDIT_LOG: &str = "audit.log";

/// The audit log: a line of JSON per request of a ServiceAccount that is not one of Kubernetes' own (`audit.k8s.io/v1`, Event).
#[must_use]
pub fn audit_log(state: &State) -> PathBuf {
    state.logs.join(AUDIT_LOG)
}

/// What the API server is told besides: whose requests to write down, and to leave new nodes untainted.
///
/// # Errors
/// When the audit policy can't be written.
pub fn api_server(state: &State, directory: &Path) -> Result<Vec<String>> {
    let policy = directory.join("audit-policy.json");
    let document = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    });
    fs::write(&policy, document.to_string())
        .with_context(|| format!("failed to write {}", policy.display()))?;
    Ok(vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", audit_log(state).display()),
        // The controller that would take the taint away is off, see below.
        "--disable-admission-plugins=TaintNodesByCondition".to_owned(),
    ])
}

/// What the controller manager is told besides: nodes that send no heartbeats are not to be given up.
#[must_use]
pub fn controller_manager() -> Vec<String> {
    vec!["--controllers=*,-node-lifecycle-controller,-taint-eviction-controller".to_owned()]
}

/// kwok's command line. It gives nodes no leases: thousands of them would keep this machine busy, and no one here reads them.
#[must_use]
pub fn arguments(directory: &Path) -> Vec<String> {
    let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("kwok/stages.yaml");
    let kubeconfig = directory
        .join(super::control_plane::CERTIFICATES)
        .join("admin.kubeconfig");
    vec![
        format!("--config={}", stages.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        "--manage-all-nodes".to_owned(),
        "--node-lease-duration-seconds=0".to_owned(),
    ]
}
