//! Every label, annotation, finalizer, condition and reason that Farrier writes, and the names it derives.
//! Pure, and the lowest floor of the house: it imports nothing of ours.

use sha2::{Digest, Sha256};

/// The name under which Farrier writes with server-side apply and in Events.
pub const MANAGER: &str = "farrier";

/// Node annotation with which a KWasm user asks for the default Shims; only the value `true` counts.
pub const KWASM_NODE_ANNOTATION: &str = "kwasm.sh/kwasm-node";

/// Node label that says that all that an annotated node asked for is served; its value is the node's name.
pub const KWASM_PROVISIONED_LABEL: &str = "kwasm.sh/kwasm-provisioned";

/// Node annotation that keeps the summary of the last report: Jobs come and go, this stays.
pub const APPLIED_ANNOTATION: &str = "farrier.dev/applied";

/// Taint that a node pool starts its nodes with, so that no pod comes before the node serves what it should.
pub const STARTUP_TAINT: &str = "farrier.dev/not-ready";

/// Labels of nodes that carry the control plane, of today and of before Kubernetes 1.20 (kubeadm).
pub const CONTROL_PLANE_LABELS: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];

/// Finalizer of the Shim object.
pub const SHIM_FINALIZER: &str = "farrier.dev/finalizer";

/// Finalizer that runtime-class-manager sets on Shims; ours takes its place.
pub const RCM_FINALIZER: &str = "rcm.spinkube.dev/finalizer";

/// Annotation of a Shim that lets it go at once, whatever its nodes still carry; only the value `true` counts.
pub const FORCE_DELETE_ANNOTATION: &str = "farrier.dev/force-delete";

/// Pod annotation that carries the `ProvisionRequest` into a Job's containers.
pub const REQUEST_ANNOTATION: &str = "farrier.dev/request";

/// Annotation of a Job and its pod: digest of the request that it carries.
pub const REQUEST_DIGEST_ANNOTATION: &str = "farrier.dev/request-digest";

/// Annotation of a Job and its pod: the node that it changes.
pub const NODE_NAME_ANNOTATION: &str = "farrier.dev/node-name";

/// Annotation of a Job and its pod: UID of the node object that it was made for.
pub const NODE_UID_ANNOTATION: &str = "farrier.dev/node-uid";

/// Label of the Jobs that Farrier makes and of their pods; [`COMPONENT_INSTALLER`] is its value.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// Value of [`COMPONENT_LABEL`] on a Job that changes a host.
pub const COMPONENT_INSTALLER: &str = "installer";

/// Label that tells whose object this is.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";

/// Value of the label `kwasm.sh/job` that KWasm's users select Jobs by.
pub const KWASM_JOB_LABEL: &str = "kwasm.sh/job";

/// Key of a label of runtime-class-manager's Jobs; `true` is its value. Source: its release 0.2.0, as of the three keys below.
pub const RCM_JOB_LABEL: &str = "spinkube.dev/job";

/// Key of an annotation and of a label of runtime-class-manager's Jobs: `install` or `uninstall`.
pub const RCM_OPERATION: &str = "spinkube.dev/operation";

/// Key of an annotation and of a label of runtime-class-manager's Jobs: the Shim; its Jobs had one each.
pub const RCM_SHIM_NAME: &str = "spinkube.dev/shimName";

/// Key of an annotation of runtime-class-manager's Jobs: the node.
pub const RCM_NODE_NAME: &str = "spinkube.dev/nodeName";

/// Init container of a Job: fetches and verifies, unprivileged.
pub const FETCH_CONTAINER: &str = "fetch";

/// Container of a Job that changes the host.
pub const INSTALL_CONTAINER: &str = "install";

/// Progress of one Shim on a node, as the value of `farrier.dev/<shim>`.
///
/// The same words stand in runtime-class-manager's bare label, but for [`Progress::Removing`], which it calls `uninstall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Claimed; nothing is served yet.
    Pending,
    /// Every handler of the Shim is served.
    Provisioned,
    /// The last attempt failed; the node's Events say why.
    Failed,
    /// On its way off the node.
    Removing,
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
        }
    }

    /// The value of the label `<shim>`, in the words of runtime-class-manager 0.2.0.
    #[must_use]
    pub fn bare_label(self) -> &'static str {
        match self {
            Self::Removing => "uninstall",
            other => other.label(),
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
        ]
        .into_iter()
        .find(|progress| progress.label() == value)
    }
}

/// Prefix of the node labels that show the progress of one Shim each.
pub const SHIM_LABEL_PREFIX: &str = "farrier.dev/";

/// Prefix of the node labels that RuntimeClasses schedule on.
pub const HANDLER_LABEL_PREFIX: &str = "handler.farrier.dev/";

/// The node label that shows how far a Shim has come.
#[must_use]
pub fn shim_label(shim: &str) -> String {
    format!("{SHIM_LABEL_PREFIX}{shim}")
}

/// The node label that is `"true"` while a handler is served.
#[must_use]
pub fn handler_label(handler: &str) -> String {
    format!("{HANDLER_LABEL_PREFIX}{handler}")
}

/// The name of a node's one Job.
///
/// A hash of the node's UID: the API server itself then forbids a second Job for the node, a node that was made anew under its
/// old name gets a Job of its own, and no node's name is too long.
#[must_use]
pub fn job_name(node_uid: &str) -> String {
    format!(
        "farrier-{}",
        &hex(&Sha256::digest(node_uid.as_bytes()))[..20]
    )
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Types and reasons of conditions and Events: a bounded set, in CamelCase, as Kubernetes' API conventions ask.
pub mod reasons {
    /// Condition type: the Shim is served wherever it is wanted.
    pub const READY: &str = "Ready";
    /// Condition type: some node is still on its way.
    pub const PROGRESSING: &str = "Progressing";
    /// Condition type: some node failed.
    pub const DEGRADED: &str = "Degraded";
    /// Condition reason: no node wants the Shim.
    pub const NO_NODES: &str = "NoNodes";
    /// Condition reason: every node that wants the Shim is one that can't carry it.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// Event and condition reason: all that was asked for is served.
    pub const PROVISIONED: &str = "Provisioned";
    /// Condition reason: some node is still on its way.
    pub const PROVISIONING: &str = "Provisioning";
    /// Condition reason: the Shim is on its way off.
    pub const REMOVING: &str = "Removing";
    /// Event reason: all that was to go is gone.
    pub const REMOVED: &str = "Removed";
    /// Event reason: a signal ended an attempt before it changed the host.
    pub const INTERRUPTED: &str = "Interrupted";
    /// Event and condition reason: the last attempt on a node failed.
    pub const PROVISION_FAILED: &str = "ProvisionFailed";
    /// Condition reason: another Shim, or another RuntimeClass, has the name.
    pub const CONFLICT: &str = "Conflict";
    /// Condition reason: the Shim as written can't be used, by this release or by the API server.
    pub const UNUSABLE: &str = "Unusable";
    /// Event and condition reason: a node failed, so the others wait.
    pub const HALTED: &str = "Halted";
    /// Condition reason: the Shim is paused.
    pub const PAUSED: &str = "Paused";
    /// Condition reason: nothing failed.
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
    fn progress_reads_back_from_its_label() {
        for progress in [
            Progress::Pending,
            Progress::Provisioned,
            Progress::Failed,
            Progress::Removing,
        ] {
            assert_eq!(Progress::from_label(progress.label()), Some(progress));
        }
        assert_eq!(Progress::from_label("uninstall"), None);
    }
}
