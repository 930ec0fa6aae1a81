//! Which handlers a host should have of ours, and what is to be said about each: wanted, kept, taken away, reserved. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config_edit::Site;
use super::takeover::{is_predecessor, recorded};
use super::{Scope, Want};
use crate::containerd_config::is_usable_name;
use crate::handoff::{HandlerReport, Owner, ShimRequest};
use crate::installer::inspect::{Facts, standing};
use crate::installer::state::{OwnedHandler, owner_word};

/// What a host should have of ours, as it comes together.
struct Set<'a> {
    facts: &'a Facts,
    want: &'a Want,
    site: &'a Site<'a>,
    /// Handlers that the request names, or that stay although it doesn't.
    kept: BTreeSet<String>,
    desired: Desired,
}

/// What a host should have of ours.
pub(crate) struct Desired {
    /// What is ours now, or a predecessor's that nobody has taken over.
    pub(crate) before: BTreeMap<String, OwnedHandler>,
    /// The same afterwards.
    pub(crate) next: BTreeMap<String, OwnedHandler>,
    /// Handlers that lose their binary.
    pub(crate) leaving: BTreeSet<String>,
    /// Handlers that are declared no more and that pods still use.
    pub(crate) late: BTreeMap<String, OwnedHandler>,
    /// The reports on those that were asked for or stay.
    pub(crate) reports: Vec<HandlerReport>,
}

/// What the host that `facts` describe should have of ours, so that it carries `want`.
pub(crate) fn desired(facts: &Facts, want: &Want, site: &Site<'_>) -> Desired {
    let next = recorded(facts, &site.placement.path);
    let mut before = facts.state.late.clone();
    before.extend(next.clone());
    let mut set = Set {
        facts,
        want,
        site,
        kept: BTreeSet::new(),
        desired: Desired {
            before,
            next,
            leaving: BTreeSet::new(),
            late: BTreeMap::new(),
            reports: Vec::new(),
        },
    };
    set.add_wanted();
    set.remove_unwanted();
    set.keep_late();
    set.reserve();
    let mut desired = set.desired;
    // What is only reserved leaves with the last shim; what predecessors left is not ours to remember then.
    let idle = |owned: &OwnedHandler| owned.sha256.is_none() || is_predecessor(owned.owner);
    if desired.next.values().all(idle) {
        desired.next.clear();
    }
    desired
}

impl Set<'_> {
    fn report(
        &mut self,
        shim: &str,
        handler: &str,
        sha256: Option<String>,
        reason: Option<String>,
    ) {
        self.desired.reports.push(HandlerReport {
            shim: shim.to_owned(),
            handler: handler.to_owned(),
            path: sha256
                .is_some()
                .then(|| match self.desired.next.get(handler) {
                    Some(owned) => self.facts.places.declared_path(handler, owned),
                    None => self.facts.places.binary_path(handler),
                }),
            served: sha256.is_some(),
            sha256,
            reason,
        });
    }

    fn add_wanted(&mut self) {
        let want = self.want;
        for shim in &want.shims {
            let foreign = shim.handlers.iter().find(|name| self.site.is_foreign(name));
            let names = || shim.handlers.iter().chain(shim.options.keys());
            let unusable = names().find(|name| !is_usable_name(name));
            let binary = match (foreign, want.binaries.get(&shim.name)) {
                _ if unusable.is_some() => Err(format!(
                    "{:?} can't be written to containerd's configuration; use another name",
                    unusable.map_or("", String::as_str)
                )),
                (Some(name), _) => Err(format!(
                    "handler {name} is declared in containerd's configuration by somebody else; remove it there or use another name"
                )),
                (None, Some(binary)) => binary.clone(),
                (None, None) => Err("its artifact was not looked for".to_owned()),
            };
            for handler in &shim.handlers {
                match &binary {
                    Ok(sha256) => self.carry(shim, handler, sha256),
                    Err(reason) => self.keep_served(shim, handler, reason),
                }
            }
        }
    }

    fn carry(&mut self, shim: &ShimRequest, handler: &str, sha256: &str) {
        // A path of a predecessor at which nothing stands may have lost its folder, too.
        let path = self.desired.before.get(handler).and_then(|owned| {
            let is_there = !is_predecessor(owned.owner) || owned.sha256.is_some();
            owned.path.clone().filter(|_| is_there)
        });
        let owned = OwnedHandler {
            shim: shim.name.clone(),
            owner: self.want.owner,
            path,
            sha256: Some(sha256.to_owned()),
            location: shim.location.clone(),
            artifact_sha256: shim.sha256.clone(),
            options: shim.options.clone(),
        };
        self.desired.next.insert(handler.to_owned(), owned);
        self.kept.insert(handler.to_owned());
        self.report(&shim.name, handler, Some(sha256.to_owned()), None);
    }

    /// A shim that can't be had keeps what it has: the version that it was served in before.
    fn keep_served(&mut self, shim: &ShimRequest, handler: &str, reason: &str) {
        let before = self.desired.before.get(handler);
        let sha256 = before.and_then(|owned| {
            let path = self.facts.places.declared_path(handler, owned);
            let sha256 = owned.sha256.clone();
            sha256.filter(|sha256| standing(self.facts, &path) == Some(sha256))
        });
        self.kept.insert(handler.to_owned());
        self.report(&shim.name, handler, sha256, Some(reason.to_owned()));
    }

    fn remove_unwanted(&mut self) {
        let (facts, want) = (self.facts, self.want);
        for (name, owned) in self.desired.next.clone() {
            let leaves =
                is_in_scope(&owned, want) && !self.kept.contains(&name) && owned.sha256.is_some();
            let others = owned.owner != want.owner && !is_predecessor(owned.owner);
            if leaves && matches!(want.scope, Scope::Shims(_)) && others {
                let owner = owner_word(owned.owner);
                let reason = format!("it belongs to {owner}; take it away there, or use --all");
                self.report(&owned.shim, &name, owned.sha256.clone(), Some(reason));
                continue;
            }
            let pods = facts.in_use.get(&name).copied().unwrap_or_default();
            if leaves && pods > 0 {
                let reason = Some(used_by(pods));
                self.report(&owned.shim, &name, owned.sha256.clone(), reason);
            } else if leaves && let Some(owned) = self.desired.next.get_mut(&name) {
                self.desired.leaving.insert(name);
                // Whoever takes it away answers for what stays declared.
                if is_predecessor(owned.owner) {
                    owned.owner = want.owner;
                }
                owned.sha256 = None;
                owned.location.clear();
                owned.artifact_sha256 = None;
            }
        }
    }

    /// What pods took up while it left stays until they have ended.
    fn keep_late(&mut self) {
        for (name, owned) in &self.facts.state.late {
            let Some(pods) = self.facts.in_use.get(name) else {
                continue;
            };
            let is_back = |next: &OwnedHandler| next.sha256.is_some();
            if self.desired.next.get(name).is_some_and(is_back) {
                continue;
            }
            self.desired.late.insert(name.clone(), owned.clone());
            if is_in_scope(owned, self.want) {
                self.desired.reports.push(HandlerReport {
                    shim: owned.shim.clone(),
                    handler: name.clone(),
                    path: Some(self.facts.places.declared_path(name, owned)),
                    sha256: owned.sha256.clone(),
                    served: false,
                    reason: Some(used_by(*pods)),
                });
            }
        }
    }

    fn reserve(&mut self) {
        for name in &self.want.reserve {
            let free = !self.desired.next.contains_key(name) && !self.site.is_foreign(name);
            if free && is_usable_name(name) {
                let owned = OwnedHandler {
                    shim: String::new(),
                    owner: self.want.owner,
                    path: None,
                    sha256: None,
                    location: String::new(),
                    artifact_sha256: None,
                    options: self
                        .want
                        .reserve_options
                        .get(name)
                        .cloned()
                        .unwrap_or_default(),
                };
                self.desired.next.insert(name.clone(), owned);
            }
        }
    }
}

impl Desired {
    /// Reports handlers whose binary is lost or damaged; returns a sentence for each that is not `owner`'s concern.
    pub(crate) fn report_lost(&mut self, owner: Owner, lost: &[String]) -> Vec<String> {
        let mut notes = Vec::new();
        for name in lost {
            let Some(owned) = self.next.get(name) else {
                continue;
            };
            let known = self
                .reports
                .iter_mut()
                .find(|report| report.handler == *name);
            if let Some(known) = known {
                known.served = false;
                known.reason.get_or_insert_with(|| DAMAGED.to_owned());
            } else if owned.owner == owner {
                self.reports.push(HandlerReport {
                    shim: owned.shim.clone(),
                    handler: name.clone(),
                    path: None,
                    sha256: None,
                    served: false,
                    reason: Some(DAMAGED.to_owned()),
                });
            } else {
                let owner = owner_word(owned.owner);
                notes.push(format!(
                    "handler {name}, which belongs to {owner}, is not served: {DAMAGED}"
                ));
            }
        }
        notes
    }

    /// The handlers that lose their binary, as they are now; `owner` answers for those of predecessors.
    pub(crate) fn leaving_as_they_were(&self, owner: Owner) -> BTreeMap<String, OwnedHandler> {
        let leaving = self.before.iter();
        leaving
            .filter(|(name, _)| self.leaving.contains(*name))
            .map(|(name, owned)| {
                let mut owned = owned.clone();
                if is_predecessor(owned.owner) {
                    owned.owner = owner;
                }
                (name.clone(), owned)
            })
            .collect()
    }
}

fn is_in_scope(owned: &OwnedHandler, want: &Want) -> bool {
    match &want.scope {
        Scope::Owner => owned.owner == want.owner,
        Scope::Nothing => false,
        Scope::Shims(shims) => shims.contains(&owned.shim),
        Scope::Everything => true,
    }
}

/// Why a handler is not served whose binary is not what was installed.
const DAMAGED: &str = "its binary is lost or damaged; install its shim again";

/// Why a handler or its binary stays: pods use it, so many.
pub(crate) fn used_by(pods: usize) -> String {
    format!("pods still use it ({pods} on this node); delete them")
}
