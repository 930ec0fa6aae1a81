//! What a node is asked for: its desired set as the one request that its Job carries. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::{Cluster, Desired, Verdict};
use super::observed::Applied;
use crate::handoff::{self, ProvisionRequest, ShimRequest, is_sha256};
use crate::names;

impl Desired {
    /// The request with the handlers of other Shims to declare beside its own, so that these cost no restart when they come. Its
    /// digest is that of the request alone.
    #[must_use]
    pub fn request_with_reserved(&self, cluster: &Cluster) -> ProvisionRequest {
        let mut request = self.request.clone();
        if request.shims.is_empty() {
            return request;
        }
        let own: BTreeSet<&String> = request
            .shims
            .iter()
            .flat_map(|shim| &shim.handlers)
            .collect();
        let others = cluster
            .reserved
            .iter()
            .filter(|(handler, _)| !own.contains(handler));
        let others: BTreeMap<String, _> = others
            .map(|(handler, options)| (handler.clone(), options.clone()))
            .collect();
        request.reserve = others.keys().cloned().collect();
        request.reserve_options = others;
        request
            .reserve_options
            .retain(|_, options| !options.is_empty());
        request
    }
}

/// Says in the request of a Job what need not be fetched, as the node said that it has it. What stands in no Shim any more, but in the
/// node's annotation alone, is never fetched: whoever may write that annotation must not choose what a host runs.
pub fn hint(desired: &Desired, applied: &Applied, request: &mut ProvisionRequest) {
    for shim in &mut request.shims {
        let known = applied.shims.get(&shim.name);
        let placed = known
            .and_then(|known| known.sha256.clone())
            .filter(|sha256| is_sha256(sha256));
        let is_wanted = matches!(desired.verdicts.get(&shim.name), Some(Verdict::Wanted(_)));
        shim.present = if is_wanted && !desired.kept.contains(&shim.name) {
            let is_well = known.is_some_and(|known| {
                known.request.as_ref() == Some(&*shim)
                    && known.reason.is_none()
                    && known.handlers.values().all(|served| *served)
            });
            placed.filter(|_| is_well)
        } else {
            placed.or_else(|| Some("0".repeat(64)))
        };
    }
}

/// By what a summary tells one request for a Shim from another: 16 hexadecimal digits.
#[must_use]
pub fn fingerprint(request: &ShimRequest) -> String {
    let text = handoff::to_json(request);
    let mut digest = names::sha256_hex(text.as_bytes());
    digest.truncate(16);
    digest
}
