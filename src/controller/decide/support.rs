//! Whether a node can carry shims at all, and a Shim in particular, as far as the node object tells. Pure. What only the host tells, such as
//! its distribution or the CPU of a fetched binary, is in the installer's report.

use crate::api::{self, ShimSpec};
use crate::controller::cluster::node_view::NodeView;
use crate::handoff::{Problem, printable};

/// The label of a node that tells its operating system. The kubelet sets it to the same value as `status.nodeInfo.operatingSystem`.
const OS_LABEL: &str = "kubernetes.io/os";

/// Labels of nodes that no kubelet with a host of its own stands behind: Virtual Kubelet (`cmd/virtual-kubelet/internal/commands/root`) and
/// AWS Fargate (EKS User Guide, *AWS Fargate*).
const VIRTUAL_LABELS: [(&str, &str); 2] = [
    ("type", "virtual-kubelet"),
    ("eks.amazonaws.com/compute-type", "fargate"),
];

/// The taint that Virtual Kubelet sets on its nodes.
const VIRTUAL_TAINT: &str = "virtual-kubelet.io/provider";

/// Why no shim can run on the node, whatever the Shim; `None` if the node object tells nothing against it. Such a node gets no Job, does not
/// halt a rollout and takes no place in it.
#[must_use]
pub fn node_problem(node: &NodeView) -> Option<Problem> {
    let help = "select only Linux nodes whose kubelet uses containerd (spec.nodeSelector)";
    let unsupported = |message: String| Some(Problem::with_help(message, help));
    let has_label = |(key, value): &(&str, &str)| {
        let found = node.labels.get(*key);
        found.is_some_and(|found| found == value)
    };
    let mut taints = node.taints.iter();
    if VIRTUAL_LABELS.iter().any(has_label) || taints.any(|taint| taint.key == VIRTUAL_TAINT) {
        return unsupported("this node is virtual: it has no host of its own".to_owned());
    }
    let labelled = node.labels.get(OS_LABEL).map_or("", String::as_str);
    let os = Some(node.os.as_str()).filter(|os| !os.is_empty());
    let os = os.unwrap_or(labelled);
    if !os.is_empty() && !os.eq_ignore_ascii_case("linux") {
        let os = printable(os);
        return unsupported(format!(
            "this node runs {os}, and shims of containerd run on Linux"
        ));
    }
    // A kubelet reports its runtime together with its operating system, and before it is ready (`pkg/kubelet/nodestatus`, `VersionInfo`). A
    // new node has reported nothing yet.
    let has_reported = !node.os.is_empty() || node.ready;
    match node.runtime.as_str() {
        "" if has_reported => unsupported("this node reports no container runtime".to_owned()),
        "" => None,
        runtime if runtime.starts_with("containerd://") => None,
        runtime => {
            let runtime = printable(runtime);
            unsupported(format!(
                "this node uses the container runtime {runtime} instead of containerd"
            ))
        }
    }
}

/// Why the Shim can't run on the platform of the node: no artifact of the Shim is for the platform.
#[must_use]
pub fn platform_problem(node: &NodeView, spec: &ShimSpec) -> Option<Problem> {
    match spec.artifact(&node.os, &node.arch) {
        Err(error @ api::Error::NoPlatform { .. }) => Some(Problem::new(&error, error.help())),
        Ok(_) | Err(_) => None,
    }
}
