//! A Shim as decisions see it. Decisions read no object of the API directly. Pure: no client, no clock.

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::{Resource as _, ResourceExt};

use crate::api::{Shim, ShimSpec, ShimStatus};
use crate::names;

/// A Shim from the API server. A Shim that can't be read must not prevent the others from being listed.
pub type ShimObject = DeserializeGuard<Shim>;

/// A Shim as decisions see it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fact of the object"
)]
#[derive(Debug, Clone, PartialEq)]
pub struct ShimView {
    /// Name of the Shim.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// Creation time.
    pub created: Timestamp,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// The Shim is being deleted.
    pub deleting: bool,
    /// The Shim has Farrier's finalizer.
    pub has_finalizer: bool,
    /// The Shim has the finalizer of runtime-class-manager.
    pub has_rcm_finalizer: bool,
    /// The annotation farrier.dev/force-delete is set: the Shim is deleted even if nodes still carry it.
    pub forced: bool,
    /// The spec, or why this release can't read it: a newer release wrote it.
    pub spec: Result<ShimSpec, String>,
    /// The status.
    pub status: Option<ShimStatus>,
}

impl From<&ShimObject> for ShimView {
    fn from(shim: &ShimObject) -> Self {
        let (spec, status) = match &shim.0 {
            Ok(shim) => (Ok(shim.spec.clone()), shim.status.clone()),
            Err(error) => (Err(error.to_string()), None),
        };
        Self {
            name: shim.name_any(),
            uid: shim.uid().unwrap_or_default(),
            created: shim
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            generation: shim.meta().generation,
            deleting: shim.meta().deletion_timestamp.is_some(),
            has_finalizer: has(shim, names::SHIM_FINALIZER),
            has_rcm_finalizer: has(shim, names::RCM_FINALIZER),
            forced: shim
                .annotations()
                .get(names::FORCE_DELETE_ANNOTATION)
                .is_some_and(|value| value == "true"),
            spec,
            status,
        }
    }
}

fn has(shim: &ShimObject, finalizer: &str) -> bool {
    shim.finalizers().iter().any(|name| name == finalizer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shim(scheduling: &str) -> ShimObject {
        serde_json::from_value(json!({
            "metadata": {
                "name": "spin", "uid": "u", "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": ["farrier.dev/finalizer"], "annotations": {"farrier.dev/force-delete": "true"},
            },
            "spec": {
                "fetchStrategy": {}, "rolloutStrategy": {"type": "recreate"},
                "runtimeClass": {"name": "spin", "handler": "spin", "scheduling": scheduling},
            },
            "status": {"nodes": 2},
        }))
        .unwrap()
    }

    #[test]
    fn a_shim_with_an_unknown_value_is_listed_without_its_spec() {
        let known = ShimView::from(&shim("Selector"));
        assert!(known.spec.is_ok() && known.status.is_some());
        let newer = ShimView::from(&shim("Everywhere"));
        assert!(newer.spec.unwrap_err().contains("Everywhere"));
        assert_eq!((newer.name.as_str(), newer.generation), ("spin", Some(3)));
        assert!(newer.has_finalizer && newer.forced && !newer.deleting);
    }
}
