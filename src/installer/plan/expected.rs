//! The runtimes that containerd must serve before and after a change, and the comparison with the runtimes that it serves. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::config_edit::{declarations, program_of};
use super::types::HostPlan;
use crate::containerd_config::{Handler, runtimes_of_dump};
use crate::handoff::OptionValue;
use crate::installer::containerd::cri::Served;
use crate::installer::distro;
use crate::installer::inspect::{HostFacts, path_of};

type Options = BTreeMap<String, OptionValue>;

/// The runtimes that containerd serves before a change and must serve after it. The journal records them, so that a later run can verify a
/// change that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedRuntimes {
    /// The runtimes that containerd serves before the change.
    #[serde(flatten)]
    before: Runtimes,
    /// The runtimes of the configuration before the change, if an operator accepted that others edited it after the start of containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<Runtimes>,
    /// The names of all handlers that Farrier manages before or after the change.
    #[serde(rename = "ours")]
    managed: BTreeSet<String>,
    /// The managed handlers that are declared before the change.
    #[serde(rename = "was")]
    declared_before_change: BTreeMap<String, RuntimeEntry>,
    /// The managed handlers that are declared after the change.
    #[serde(rename = "becomes")]
    declared_after_change: BTreeMap<String, RuntimeEntry>,
    /// Whether the distribution looks for runtimes at each start, and declares those that it finds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    searches: bool,
}

/// All runtimes of a containerd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtimes {
    /// The default runtime.
    default: String,
    /// The runtimes, by handler.
    served: BTreeMap<String, RuntimeEntry>,
}

/// A handler as it is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeEntry {
    runtime_type: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    options: Options,
}

impl ExpectedRuntimes {
    /// The runtimes before and after `plan`; `None` where the runtimes that containerd serves are unknown.
    pub(crate) fn of(facts: &HostFacts, plan: &HostPlan) -> Option<Self> {
        let before = facts.served.as_ref().ok()?;
        let dump = facts.dump.as_ref().ok();
        let dump = dump.filter(|_| plan.accept_pending_changes);
        let pending = dump.and_then(|dump| runtimes_of_dump(dump).ok());
        let pending = pending.map(|(default, handlers)| {
            let handlers = handlers.iter();
            let handlers: Vec<Handler> = handlers
                .map(|(name, handler)| handler.to_handler(name))
                .collect();
            let served = entries(&handlers);
            Runtimes { default, served }
        });
        let served = before.handlers.iter().map(|(name, runtime_type)| {
            let options = before
                .options
                .get(name)
                .map(OptionValue::from_toml)
                .unwrap_or_default();
            let runtime_type = runtime_type.clone();
            let entry = RuntimeEntry {
                runtime_type,
                options,
            };
            (name.clone(), entry)
        });
        Some(Self {
            before: Runtimes {
                default: before.default.clone(),
                served: served.collect(),
            },
            pending,
            managed: plan.managed.clone(),
            declared_before_change: entries(&declared_before(facts, plan)),
            declared_after_change: entries(&plan.declared),
            searches: facts.distro.searches(),
        })
    }

    /// The managed handlers that are declared after the change.
    fn declared(&self) -> Vec<Handler> {
        handlers(&self.declared_after_change)
    }

    /// The managed handlers that are declared after the change, without those that the distribution declares in place of Farrier.
    pub(crate) fn declared_in(&self, served: &Served) -> Vec<Handler> {
        let mut declared = self.declared();
        declared.retain(|handler| !self.searches || taken_by_distro(served, handler).is_none());
        declared
    }

    /// Verifies that containerd serves the runtimes after the change, as [`verify`] does.
    ///
    /// # Errors
    /// One sentence that names the difference.
    pub(crate) fn verify_change(&self, served: &Served) -> Result<(), String> {
        let before = handlers(&self.declared_before_change);
        self.verify(served, &self.declared(), &before)
    }

    /// Verifies that containerd serves the runtimes before the change, as [`verify`] does.
    ///
    /// # Errors
    /// One sentence that names the difference.
    pub(crate) fn verify_undone(&self, served: &Served) -> Result<(), String> {
        let before = handlers(&self.declared_before_change);
        self.verify(served, &before, &self.declared())
    }

    /// Verifies the runtimes of this process of containerd, or of a later one, which has loaded the accepted edits of others.
    fn verify(
        &self,
        served: &Served,
        declared: &[Handler],
        former: &[Handler],
    ) -> Result<(), String> {
        let compare = |before: &Served| {
            let managed = &self.managed;
            verify(before, served, declared, former, managed, self.searches)
        };
        let verified = compare(&self.before());
        match &self.pending {
            Some(pending) => verified.or_else(|_| compare(&pending.to_served())),
            None => verified,
        }
    }

    pub(crate) fn before(&self) -> Served {
        self.before.to_served()
    }
}

impl Runtimes {
    fn to_served(&self) -> Served {
        let handlers = self.served.iter();
        let options = self.served.iter();
        Served {
            ready: true,
            default: self.default.clone(),
            handlers: handlers
                .map(|(name, entry)| (name.clone(), entry.runtime_type.clone()))
                .collect(),
            options: options
                .filter(|(_, entry)| !entry.options.is_empty())
                .map(|(name, entry)| (name.clone(), OptionValue::to_toml(&entry.options)))
                .collect(),
            runtime_paths: BTreeMap::new(),
        }
    }
}

fn entries(handlers: &[Handler]) -> BTreeMap<String, RuntimeEntry> {
    let handlers = handlers.iter().map(|handler| {
        let entry = RuntimeEntry {
            runtime_type: handler.runtime_type.clone(),
            options: OptionValue::from_toml(&handler.options),
        };
        (handler.name.clone(), entry)
    });
    handlers.collect()
}

fn handlers(entries: &BTreeMap<String, RuntimeEntry>) -> Vec<Handler> {
    let handlers = entries.iter().map(|(name, entry)| Handler {
        name: name.clone(),
        runtime_type: entry.runtime_type.clone(),
        options: OptionValue::to_toml(&entry.options),
    });
    handlers.collect()
}

/// Whether the running containerd serves exactly the `declared` ones of the `managed` handlers.
///
/// `former` are the declarations of the others that no longer count. containerd may serve such a handler in another way: then others declare
/// it, too. With `searches`, the distribution may declare a handler in place of Farrier.
pub(crate) fn is_served(
    served: &Served,
    declared: &[Handler],
    managed: &BTreeSet<String>,
    former: &[Handler],
    searches: bool,
) -> bool {
    let listed = |handler: &Handler| {
        served.handlers.get(&handler.name) == Some(&handler.runtime_type)
            || searches && taken_by_distro(served, handler).is_some()
    };
    let gone = |name: &&String| declared.iter().all(|handler| handler.name != **name);
    let is_of_others = |name: &String, runtime_type: &String| {
        let mut former = former.iter().filter(|handler| handler.name == *name);
        former
            .next()
            .is_some_and(|former| former.runtime_type != *runtime_type)
    };
    declared.iter().all(listed)
        && managed.iter().filter(gone).all(|name| {
            let now = served.handlers.get(name);
            now.is_none_or(|now| is_of_others(name, now))
        })
}

/// The program of the runtime that the distribution declares in place of Farrier's `handler`, if it does.
pub(crate) fn taken_by_distro<'s>(served: &'s Served, handler: &Handler) -> Option<&'s str> {
    let runtime_type = served.handlers.get(&handler.name)?;
    let options = served.options.get(&handler.name)?;
    program_of(options).filter(|_| *runtime_type != handler.runtime_type)
}

/// The handlers `managed` as Farrier or a legacy installer declares them.
pub(crate) fn former_declarations(facts: &HostFacts, managed: &BTreeSet<String>) -> Vec<Handler> {
    let former = managed.iter().map(|name| Handler {
        name: name.clone(),
        runtime_type: path_of(facts, name),
        options: BTreeMap::new(),
    });
    former.collect()
}

/// The handlers that `plan` changes or keeps, as they were declared before it: the managed handlers, and the legacy handlers that it takes
/// over or removes. A handler in the state file counts as declared.
#[must_use]
pub fn declared_before(facts: &HostFacts, plan: &HostPlan) -> Vec<Handler> {
    let mut declared = declarations(facts, &facts.state.handlers);
    let served = facts.served.iter().flat_map(|served| &served.handlers);
    // Beside legacy handlers those of a lost state file.
    let unrecorded = served.filter(|(name, path)| {
        let is_legacy = facts.legacy.handlers.contains_key(*name);
        let is_own = **path == facts.install_paths.binary_path(name);
        plan.managed.contains(*name) && (is_legacy || is_own)
    });
    for (name, runtime_type) in unrecorded {
        if declared.iter().all(|handler| handler.name != *name) {
            declared.push(Handler {
                name: name.clone(),
                runtime_type: runtime_type.clone(),
                options: BTreeMap::new(),
            });
        }
    }
    declared
}

/// Verifies the runtimes after a restart: the managed handlers are served as `declared`, all others and the default are as before.
/// `former` and `searches` are as for [`is_served`]; with `searches`, the runtimes that the distribution finds by itself may differ.
///
/// # Errors
/// One sentence that names the difference.
pub fn verify(
    before: &Served,
    after: &Served,
    declared: &[Handler],
    former: &[Handler],
    managed: &BTreeSet<String>,
    searches: bool,
) -> Result<(), String> {
    let is_found = |served: &Served, name: &String| {
        searches
            && distro::is_searched_for(name)
            && served.options.get(name).and_then(program_of).is_some()
    };
    let others = |served: &Served| {
        let (mut handlers, mut options) = (served.handlers.clone(), served.options.clone());
        let is_compared = |name: &String| !managed.contains(name) && !is_found(served, name);
        handlers.retain(|name, _| is_compared(name));
        options.retain(|name, _| is_compared(name));
        (handlers, options)
    };
    if !after.ready {
        return Err("containerd's runtime is not ready".to_owned());
    }
    if before.default != after.default {
        return Err(format!(
            "the default runtime changed from {:?} to {:?}",
            before.default, after.default
        ));
    }
    if others(before) != others(after) {
        return Err("runtimes that Farrier does not manage changed".to_owned());
    }
    verify_managed(after, declared, former, managed, searches)
}

/// Verifies the managed handlers alone, as [`verify`] does: where containerd did not serve before the change, the other runtimes are unknown.
///
/// # Errors
/// One sentence.
pub(crate) fn verify_managed(
    after: &Served,
    declared: &[Handler],
    former: &[Handler],
    managed: &BTreeSet<String>,
    searches: bool,
) -> Result<(), String> {
    if is_served(after, declared, managed, former, searches) {
        Ok(())
    } else {
        Err("containerd does not list the handlers as declared".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::containerd_config::Value;

    fn entry(name: &str, path: &str) -> (String, RuntimeEntry) {
        let entry = RuntimeEntry {
            runtime_type: path.to_owned(),
            options: BTreeMap::from([("Level".to_owned(), OptionValue::Integer(7))]),
        };
        (name.to_owned(), entry)
    }

    /// The expectations of a change that adds `a` and removes `b`, beside a foreign `runc`.
    fn expected_of_change() -> ExpectedRuntimes {
        let runc = || entry("runc", "io.containerd.runc.v2");
        let b = || entry("b", "/bin/b");
        let expected = ExpectedRuntimes {
            before: Runtimes {
                default: "runc".to_owned(),
                served: [runc(), b()].into(),
            },
            pending: None,
            managed: ["a", "b"].map(str::to_owned).into(),
            declared_before_change: [b()].into(),
            declared_after_change: [entry("a", "/bin/a")].into(),
            searches: false,
        };
        // A later run reads it from the journal.
        let text = serde_json::to_string(&expected).unwrap();
        assert_eq!(
            serde_json::from_str::<ExpectedRuntimes>(&text).unwrap(),
            expected
        );
        expected
    }

    fn served(handlers: &[(&str, &str)], default: &str) -> Served {
        let runc = [("runc", "io.containerd.runc.v2")];
        let options = BTreeMap::from([("Level".to_owned(), Value::Integer(7))]);
        let handlers = handlers.iter().chain(&runc);
        Served {
            ready: true,
            default: default.to_owned(),
            handlers: handlers
                .clone()
                .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
                .collect(),
            options: handlers
                .map(|(name, _)| ((*name).to_owned(), options.clone()))
                .collect(),
            runtime_paths: BTreeMap::new(),
        }
    }

    /// With [`served`], each handler has options; `program` is that of a runtime which k3s has found.
    fn with_program(mut served: Served, handler: &str, program: &str) -> Served {
        let program = ("BinaryName".to_owned(), Value::String(program.to_owned()));
        let options = served.options.entry(handler.to_owned()).or_default();
        options.extend([program]);
        served
    }

    const WASI: &str = "io.containerd.spin.v2";

    #[rstest]
    #[case::as_declared(&[("a", "/bin/a")], None, true, true)]
    #[case::removed_and_declared_by_others(&[("a", "/bin/a"), ("b", "theirs")], None, true, true)]
    #[case::removed_and_declared_by_others_without_a_type(&[("a", "/bin/a"), ("b", "")], None, true, true)]
    #[case::removed_and_found_by_k3s(&[("a", "/bin/a"), ("b", WASI)], Some("b"), true, true)]
    #[case::removed_and_still_served(&[("a", "/bin/a"), ("b", "/bin/b")], None, false, false)]
    #[case::declared_by_others(&[("a", "theirs")], None, false, false)]
    #[case::found_by_k3s(&[("a", WASI)], Some("a"), false, true)]
    #[case::found_by_k3s_at_farrier_s_path(&[("a", "/bin/a")], Some("a"), true, true)]
    #[case::another_one_found_by_k3s(&[("a", "/bin/a"), ("wws", "io.containerd.wws.v1")], Some("wws"), false, true)]
    #[case::another_one_that_k3s_does_not_look_for(&[("a", "/bin/a"), ("c", "io.containerd.c.v1")], Some("c"), false, false)]
    #[case::another_one_without_a_program(&[("a", "/bin/a"), ("wws", "io.containerd.wws.v1")], None, false, false)]
    fn others_may_declare_a_handler_of_farrier_too(
        #[case] handlers: &[(&str, &str)],
        #[case] found: Option<&str>,
        #[case] anywhere: bool,
        #[case] on_k3s: bool,
    ) {
        let mut now = served(handlers, "runc");
        if let Some(handler) = found {
            now = with_program(now, handler, "/usr/local/bin/x");
        }
        for (searches, expected) in [(false, anywhere), (true, on_k3s)] {
            let expected_runtimes = ExpectedRuntimes {
                searches,
                ..expected_of_change()
            };
            let verified = expected_runtimes.verify_change(&now);
            assert_eq!(verified.is_ok(), expected, "{searches}: {verified:?}");
        }
    }

    #[rstest]
    #[case::the_change(&[("a", "/bin/a")], "runc", true, false)]
    #[case::the_former_state(&[("b", "/bin/b")], "runc", false, true)]
    #[case::a_managed_handler_at_another_path(&[("a", "/bin/other")], "runc", false, false)]
    #[case::a_removed_handler(&[("a", "/bin/a"), ("b", "/bin/b")], "runc", false, false)]
    #[case::another_default(&[("a", "/bin/a")], "a", false, false)]
    #[case::an_undeclared_handler(&[("a", "/bin/a"), ("c", "/bin/c")], "runc", false, false)]
    #[case::no_managed_handler(&[], "runc", false, false)]
    fn a_recovery_compares_served_handlers_with_those_in_the_journal(
        #[case] handlers: &[(&str, &str)],
        #[case] default: &str,
        #[case] is_changed: bool,
        #[case] is_undone: bool,
    ) {
        let (expected, served) = (expected_of_change(), served(handlers, default));
        assert_eq!(expected.verify_change(&served).is_ok(), is_changed);
        assert_eq!(expected.verify_undone(&served).is_ok(), is_undone);
        assert_eq!(expected.before().has_same_handlers(&served), is_undone);
        let starting = Served {
            ready: false,
            ..served
        };
        assert!(expected.verify_change(&starting).is_err());
    }

    #[rstest]
    #[case::the_accepted_edit(&[("a", "/bin/a"), ("kata", "/bin/kata")], true, false)]
    #[case::the_accepted_edit_after_a_rollback(&[("b", "/bin/b"), ("kata", "/bin/kata")], false, true)]
    #[case::the_process_from_before(&[("b", "/bin/b")], false, true)]
    #[case::another_edit(&[("a", "/bin/a"), ("c", "/bin/c")], false, false)]
    fn an_accepted_edit_of_others_may_be_served_after_a_restart(
        #[case] handlers: &[(&str, &str)],
        #[case] is_changed: bool,
        #[case] is_undone: bool,
    ) {
        let mut expected = expected_of_change();
        let mut pending = expected.before.clone();
        pending.served.extend([entry("kata", "/bin/kata")]);
        expected.pending = Some(pending);
        let served = served(handlers, "runc");
        assert_eq!(expected.verify_change(&served).is_ok(), is_changed);
        assert_eq!(expected.verify_undone(&served).is_ok(), is_undone);
    }
}
