//! The documents between the cluster and a node: the desired set of a node, and the report about it. Versioned JSON.
//!
//! Pure. The controller writes a [`ProvisionRequest`] into its Job and reads a [`ProvisionReport`] from the Job's pod. The installer does the
//! reverse. `farrier fetch` writes a [`FetchResult`] per Shim for the installer. The types that all of them check their input with are here,
//! too.

mod digest;
mod document;
mod ending_pods;
mod location;
mod name;
mod printable;
mod problem;
mod proof;
mod report;
mod request;
mod restart_policy;

pub use digest::{InvalidDigest, Sha256Digest};
pub use document::{API_VERSION, Error, to_indented_json, to_json};
pub use ending_pods::{EndingPod, EndingPods};
pub use location::{has_known_scheme, path_on_host, release_in, shown_location};
pub use name::{LONGEST_LABEL_NAME, is_label_name, is_runtime_class_handler};
pub use printable::{LONGEST_PATH, printable, printable_up_to};
pub use problem::{Problem, elide};
pub use proof::Proof;
pub use report::{
    FetchResult, FileAction, FileReport, HandlerReport, Outcome, ProvisionReport,
    TERMINATION_MESSAGE_LIMIT, TakenOver,
};
pub use request::{FINGERPRINT_LENGTH, OptionValue, Owner, ProvisionRequest, ShimRequest};
pub use restart_policy::{OnRestart, RestartPolicy};
