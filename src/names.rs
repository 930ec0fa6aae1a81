//! Every label, annotation, finalizer, condition and reason that Farrier writes, and derived names. Pure. Imports no other module
//! of Farrier.

use sha2::{Digest, Sha256};

/// Field manager of Farrier's writes, and reporter of its Events.
pub const MANAGER: &str = "farrier";

/// Node annotation with which KWasm's users request the default Shims; only the value `true` counts.
pub const KWASM_NODE_ANNOTATION: &str = "kwasm.sh/kwasm-node";

/// Node label of KWasm on nodes that serve everything that their annotation requests; its value is the name of the node.
pub const KWASM_PROVISIONED_LABEL: &str = "kwasm.sh/kwasm-provisioned";

/// Node annotation with a summary of the last report, which outlives the Job.
pub const APPLIED_ANNOTATION: &str = "farrier.dev/applied";

/// Startup taint of node pools, if the settings name no other: Farrier removes it once the node serves its shims.
pub const STARTUP_TAINT: &str = "farrier.dev/not-ready";

/// Taint of a node from which Farrier evicts the pods that the restart of containerd would end.
pub const RESTARTING_TAINT: &str = "farrier.dev/restarting";

/// Labels of control-plane nodes, at present and before Kubernetes 1.20 (kubeadm).
pub const CONTROL_PLANE_LABELS: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// Finalizer of the Shim object.
pub const SHIM_FINALIZER: &str = "farrier.dev/finalizer";

/// Finalizer of runtime-class-manager, which Farrier replaces by its own.
pub const RCM_FINALIZER: &str = "rcm.spinkube.dev/finalizer";

/// Annotation of a Shim that removes its finalizer at once, whatever its nodes still carry; only the value `true` counts.
pub const FORCE_DELETE_ANNOTATION: &str = "farrier.dev/force-delete";

/// Annotation of a RuntimeClass that no Shim owns, with the name of a Shim: Farrier added the node selector of the handler, and removes both
/// together. The admission policy on RuntimeClasses permits exactly this change.
pub const ADOPTED_BY_ANNOTATION: &str = "farrier.dev/adopted-by";

/// Pod annotation with the `ProvisionRequest` for the Job's containers.
pub const REQUEST_ANNOTATION: &str = "farrier.dev/request";

/// Annotation of a Job and its pod: digest of its request.
pub const REQUEST_DIGEST_ANNOTATION: &str = "farrier.dev/request-digest";

/// Annotation of a Job and its pod: name of the node. Also a label of both, if the name is short enough for the value of a label.
pub const NODE_NAME_ANNOTATION: &str = "farrier.dev/node-name";

/// Annotation of a Job and its pod: UID of the node object.
pub const NODE_UID_ANNOTATION: &str = "farrier.dev/node-uid";

/// Label of Farrier's Jobs and of their pods, with the value [`COMPONENT_INSTALLER`].
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// Value of [`COMPONENT_LABEL`] on a Job that changes a host.
pub const COMPONENT_INSTALLER: &str = "installer";

/// Label with the name of the tool that manages the object.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Label by which KWasm's users select Jobs.
pub const KWASM_JOB_LABEL: &str = "kwasm.sh/job";

/// Label of runtime-class-manager's Jobs, with the value `true` (release 0.2.0, as the three keys below).
pub const RCM_JOB_LABEL: &str = "spinkube.dev/job";

/// Annotation and label of runtime-class-manager's Jobs: `install` or `uninstall`.
pub const RCM_OPERATION: &str = "spinkube.dev/operation";

/// Annotation and label of runtime-class-manager's Jobs: the Shim, of which its Jobs had one each.
pub const RCM_SHIM_NAME: &str = "spinkube.dev/shimName";

/// Annotation of runtime-class-manager's Jobs: the node.
pub const RCM_NODE_NAME: &str = "spinkube.dev/nodeName";

/// Label and annotation with which Istio leaves a pod without a sidecar, with the value `false` (Istio, *Resource Annotations* and *Resource
/// Labels*).
pub const ISTIO_INJECT: &str = "sidecar.istio.io/inject";

/// Annotation with which Linkerd leaves a pod without a sidecar, with the value `disabled` (Linkerd, *Automatic Proxy Injection*).
pub const LINKERD_INJECT: &str = "linkerd.io/inject";

/// Init container of a Job: fetches and verifies artifacts, unprivileged.
pub const FETCH_CONTAINER: &str = "fetch";

/// Container of a Job that changes the host.
pub const INSTALL_CONTAINER: &str = "install";

/// Progress of one Shim on a node, as the value of `farrier.dev/<shim>`.
///
/// The label of runtime-class-manager has the same values, except that [`Progress::Removing`] is `uninstall` and [`Progress::Unsupported`] is
/// `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// The node is claimed, and does not serve the Shim yet.
    Pending,
    /// Every handler of the Shim is served.
    Provisioned,
    /// The last attempt failed; the node's Events say why.
    Failed,
    /// The Shim is being removed from the node.
    Removing,
    /// The node can't carry the Shim; the node's Events say why. This is no failure.
    Unsupported,
}

impl Progress {
    /// The value of the label `farrier.dev/<shim>`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Provisioned => "provisioned",
            Self::Failed => "failed",
            Self::Removing => "removing",
            Self::Unsupported => "unsupported",
        }
    }

    /// The value of runtime-class-manager's label `<shim>` (release 0.2.0).
    #[must_use]
    pub fn bare_label(self) -> &'static str {
        match self {
            Self::Removing => "uninstall",
            Self::Unsupported => Self::Failed.label(),
            Self::Pending | Self::Provisioned | Self::Failed => self.label(),
        }
    }

    /// Reads the value of the label `farrier.dev/<shim>`.
    #[must_use]
    pub fn from_label(value: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Provisioned,
            Self::Failed,
            Self::Removing,
            Self::Unsupported,
        ]
        .into_iter()
        .find(|progress| progress.label() == value)
    }
}

/// Prefix of the node labels that show the progress of one Shim each.
pub const SHIM_LABEL_PREFIX: &str = "farrier.dev/";

/// Prefix of the node labels that RuntimeClasses schedule on.
pub const HANDLER_LABEL_PREFIX: &str = "handler.farrier.dev/";

/// The node label with the progress of a Shim.
#[must_use]
pub fn shim_label(shim: &str) -> String {
    format!("{SHIM_LABEL_PREFIX}{shim}")
}

/// The node label that is `"true"` while a handler is served.
#[must_use]
pub fn handler_label(handler: &str) -> String {
    format!("{HANDLER_LABEL_PREFIX}{handler}")
}

/// The name of a node's Job.
///
/// A hash of the node's UID: the API server itself prevents a second Job for the node, a node that was created again under its old name
/// gets another Job, and the name is never too long.
#[must_use]
pub fn job_name(node_uid: &str) -> String {
    format!(
        "farrier-{}",
        &hex::encode(Sha256::digest(node_uid.as_bytes()))[..20]
    )
}

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Types and reasons of conditions and Events: a bounded set in CamelCase (Kubernetes API conventions).
pub mod reasons {
    /// Condition type: every selected node serves the Shim.
    pub const READY: &str = "Ready";
    /// Condition type: a node is in progress.
    pub const PROGRESSING: &str = "Progressing";
    /// Condition type: a node has failed.
    pub const DEGRADED: &str = "Degraded";
    /// Condition reason: the Shim selects no node.
    pub const NO_NODES: &str = "NoNodes";
    /// Event reason: a node can't carry a Shim. Condition reason: none of the selected nodes can.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// Event and condition reason: everything requested is served.
    pub const PROVISIONED: &str = "Provisioned";
    /// Event reason: the cluster took over handlers that the command line had installed.
    pub const TAKEN_OVER: &str = "TakenOver";
    /// Condition reason: a node is in progress.
    pub const PROVISIONING: &str = "Provisioning";
    /// Condition reason: the Shim is being removed.
    pub const REMOVING: &str = "Removing";
    /// Event reason: everything to remove is removed.
    pub const REMOVED: &str = "Removed";
    /// Event reason: a signal ended an attempt before the host was changed.
    pub const INTERRUPTED: &str = "Interrupted";
    /// Event and condition reason: a node waits for pods that a restart of containerd would end.
    pub const WAITING_FOR_PODS: &str = "WaitingForPods";
    /// Condition reason: all nodes that are left are cordoned or not ready.
    pub const WAITING_FOR_NODES: &str = "WaitingForNodes";
    /// Event reason: pods have not come back after a restart of containerd.
    pub const PODS_NOT_RUNNING: &str = "PodsNotRunning";
    /// Event and condition reason: the last attempt on a node failed.
    pub const PROVISION_FAILED: &str = "ProvisionFailed";
    /// Condition reason: another Shim or RuntimeClass has the same name.
    pub const CONFLICT: &str = "Conflict";
    /// Condition reason: this release or the API server can't use the Shim as specified.
    pub const UNUSABLE: &str = "Unusable";
    /// Event and condition reason: a node has failed, and the others wait.
    pub const HALTED: &str = "Halted";
    /// Condition reason: the Shim is paused.
    pub const PAUSED: &str = "Paused";
    /// Condition reason: no node has failed.
    pub const AS_EXPECTED: &str = "AsExpected";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_name_is_a_dns_label_of_bounded_length() {
        let name = job_name("0c8f0b1e-5a55-4b59-8b57-6a3f3b6f0a11");
        assert_eq!(name.len(), 28);
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
        assert_ne!(name, job_name("another"));
    }

    #[test]
    fn progress_is_parsed_from_its_label() {
        for progress in [
            Progress::Pending,
            Progress::Provisioned,
            Progress::Failed,
            Progress::Removing,
            Progress::Unsupported,
        ] {
            assert_eq!(Progress::from_label(progress.label()), Some(progress));
        }
        assert_eq!(Progress::from_label("uninstall"), None);
    }
}
