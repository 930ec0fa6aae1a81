//! What is installed on a host, by whom, and what is wrong with it, each finding with its remedy. Pure: it judges facts.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::containerd_config::{DeclaredHandler, Handler, runtimes_of_dump};
use crate::handoff::{Problem, Sha256Digest, printable};
use crate::installer::containerd::daemon::Containerd;
use crate::installer::distro::Restart;
use crate::installer::inspect::{HostFacts, verified_digest};
use crate::installer::plan;
use crate::installer::plan::config_edit::{CurrentConfig, declarations, passes_options};
use crate::installer::plan::preconditions::spares_pods;
use crate::installer::plan::takeover;
use crate::installer::state::{OwnedHandler, STATE_FILE, owner_word};

/// What is known of a host's shims.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Whether there is no finding.
    pub healthy: bool,
    /// Word of the distribution table; `None` where the host could not be looked at.
    pub distro: Option<String>,
    /// Release of containerd.
    pub containerd: Option<String>,
    /// Handlers of ours.
    pub handlers: Vec<Installed>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A handler of ours.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// The name containerd knows it by.
    pub handler: String,
    /// The Shim that it belongs to.
    pub shim: String,
    /// What containerd executes for it.
    pub path: String,
    /// Whose it is: `cluster`, `local`, `kwasm` or `rcm`.
    pub owner: &'static str,
    /// How it is.
    pub condition: Condition,
    /// SHA-256 of its binary.
    pub sha256: Option<Sha256Digest>,
    /// Pod sandboxes that use it.
    pub sandboxes: usize,
}

/// How a handler of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// containerd lists it, and its binary stands verified at its path.
    Served,
    /// Declared for a Shim that this node doesn't carry; no binary.
    Reserved,
    /// containerd doesn't list it, or its binary is not what was installed.
    Unserved,
    /// containerd was not asked.
    Unknown,
    /// Declared no more; its binary stays for the pods that use it.
    Leaving,
}

/// Something that is wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A sentence.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// What makes most of what is wrong right.
const INSTALL_AGAIN: &str = "run `farrier install` again with the same shims";

/// What shows of other runs on a host.
#[derive(Debug, Default)]
pub struct LeftoverFiles {
    /// Another run is at work.
    pub locked: bool,
    /// The undo log of a change is there.
    pub journal: bool,
    /// Files that only a run leaves that was killed.
    pub temporary_files: Vec<String>,
}

/// Judges a host.
#[must_use]
pub fn examine(facts: &HostFacts, leftover_files: &LeftoverFiles) -> Diagnosis {
    let state = &facts.state;
    let draining = state.draining.iter();
    let draining = draining.filter(|(name, _)| !state.handlers.contains_key(*name));
    let handlers: Vec<Installed> = draining
        .chain(&state.handlers)
        .map(|(name, owned)| installed(facts, name, owned))
        .collect();
    let mut findings = Findings::default();
    if leftover_files.locked {
        findings.add(
            "another farrier is changing this host",
            "wait until it has ended, then look again: what it is about to change may count as a fault here",
        );
    } else {
        findings.of_leftover_files(facts, leftover_files);
    }
    findings.of_host(facts);
    findings.of_handlers(facts, &handlers);
    for problem in config_drift(facts) {
        findings.add(&problem, INSTALL_AGAIN);
    }
    for (problem, remedy) in takeover::complaints(facts) {
        findings.add(&problem, remedy);
    }
    Diagnosis {
        healthy: findings.0.is_empty(),
        distro: Some(facts.distro.id.to_owned()),
        containerd: facts.version.map(|version| version.to_string()),
        handlers,
        findings: findings.0,
    }
}

/// The diagnosis of a host that can't be looked at.
#[must_use]
pub fn failed_inspection(problem: &Problem) -> Diagnosis {
    let mut findings = Findings::default();
    findings.add_problem(
        problem,
        "see that --host-root names the host's root and that you may read it",
    );
    Diagnosis {
        healthy: false,
        distro: None,
        containerd: None,
        handlers: Vec::new(),
        findings: findings.0,
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, problem: &str, remedy: &str) {
        self.0.push(Finding {
            problem: printable(problem),
            remedy: printable(remedy),
        });
    }

    /// As [`Self::add`], with `otherwise` as the help where the problem has none.
    fn add_problem(&mut self, problem: &Problem, otherwise: &str) {
        let help = problem.help.as_deref().unwrap_or(otherwise);
        self.add(&problem.message, help);
    }

    /// What a run that was killed has left.
    fn of_leftover_files(&mut self, facts: &HostFacts, leftover_files: &LeftoverFiles) {
        if leftover_files.journal {
            self.add(
                "a change of this host was interrupted",
                "run `farrier install` or `farrier uninstall` again: it undoes or finishes the change first",
            );
        }
        for path in leftover_files
            .temporary_files
            .iter()
            .cloned()
            .chain(unreferenced(facts))
        {
            self.add(
                &format!("{path} was left behind by a former run"),
                "run `farrier install` again with the same shims; where it stays, remove it by hand",
            );
        }
    }

    /// What is wrong with the host, whatever is installed.
    fn of_host(&mut self, facts: &HostFacts) {
        let unit = facts.unit();
        if let Some(refusal) = facts.distro.refusal {
            return self.add(refusal.message, refusal.help);
        }
        match (&facts.containerd, &facts.served) {
            (Containerd::Live(_), Err(problem)) => {
                let otherwise = format!("see `journalctl -u {unit}` on the node");
                self.add_problem(problem, &otherwise);
            }
            (Containerd::NotFound { refused }, _) => {
                let refused = refused.clone();
                let error = plan::Error::NoDaemon { refused };
                self.add_problem(&Problem::new(&error, error.help()), "start containerd");
            }
            (Containerd::Live(_), Ok(_)) | (Containerd::Image, _) => {}
        }
        if let Some(obstacle) = &facts.obstacle {
            self.add_problem(obstacle, "look at that path");
        }
        if let (Some(_), Err(reason)) = (&facts.program, &facts.dump) {
            self.add(
                &format!("containerd does not load its present configuration: {reason}"),
                "correct the file: containerd would not start with it",
            );
        }
        // A node that is a container can't do otherwise.
        if facts.containerd.daemon().is_some()
            && facts.distro.restart == Restart::Service
            && let Err(hazard) = spares_pods(facts)
        {
            self.add_problem(&Problem::new(&hazard, hazard.help()), "look at that unit");
        }
        // Whoever asks for the next change is refused for the same reason.
        if let Ok(current) = CurrentConfig::find(facts)
            && let Err(error) = current.check_restart(facts, &current.managed)
        {
            self.add_problem(
                &Problem::new(&error, error.help()),
                "restart containerd yourself",
            );
        }
    }

    /// What is wrong with handlers of ours, but for how they are declared.
    fn of_handlers(&mut self, facts: &HostFacts, handlers: &[Installed]) {
        for installed in handlers {
            let handler = &installed.handler;
            match installed.condition {
                Condition::Leaving if facts.served.is_ok() && installed.sandboxes == 0 => self.add(
                    &format!("the binary of handler {handler}, which was taken away, is needed by no pod any more"),
                    "run `farrier uninstall` or `farrier install` again: it goes with the next run",
                ),
                Condition::Served | Condition::Reserved | Condition::Leaving => {}
                Condition::Unserved | Condition::Unknown => {
                    let path = &installed.path;
                    if verified_digest(facts, path) != installed.sha256 {
                        self.add(
                            &format!("{path} is not the binary that was installed"),
                            INSTALL_AGAIN,
                        );
                    } else if installed.condition == Condition::Unserved {
                        self.add(
                            &format!("handler {handler} is installed and not served: containerd does not list it"),
                            INSTALL_AGAIN,
                        );
                    }
                }
            }
        }
    }
}

/// Stored binaries that no handler of ours needs.
fn unreferenced(facts: &HostFacts) -> impl Iterator<Item = String> {
    let (declared, draining) = (&facts.state.handlers, &facts.state.draining);
    let handlers = declared.values().chain(draining.values());
    let needed = handlers.filter_map(OwnedHandler::sha256);
    let needed: BTreeSet<String> = needed.map(|sha256| sha256.to_string()).collect();
    let files = facts.store_files().into_iter();
    files
        .filter(move |name| !needed.contains(name))
        .map(|name| facts.install_paths.store_path(name))
}

/// The configuration that we wrote may be edited by others; it must still declare what is ours.
fn config_drift(facts: &HostFacts) -> Vec<String> {
    let owned = facts.state.config.as_ref();
    let path = owned.map_or(&facts.config_files.root.path, |config| &config.path);
    let loaded = facts.config_files.files();
    let text = loaded
        .chain(&facts.sources)
        .find(|file| file.path == *path)
        .and_then(|file| file.text.as_deref());
    let text = match (text, owned) {
        (Some(text), _) => text,
        (None, Some(_)) if facts.orphaned_config.is_some() => {
            return vec![format!(
                "{path} declares our handlers, and containerd loads it no more"
            )];
        }
        (None, Some(_)) => return vec![format!("{path} is gone, which declared our handlers")],
        (None, None) => "",
    };
    let dumped = facts.dump.as_ref().ok();
    let dumped = dumped.and_then(|dump| runtimes_of_dump(dump).ok());
    let drifted = |handler: Handler| {
        let name = &handler.name;
        let lost = || format!("{path} no longer declares handler {name}, which {STATE_FILE} names");
        match &dumped {
            // What containerd can't be asked is looked for in the text.
            None => (!text.contains(&handler.runtime_type)).then(lost),
            Some((_, dumped)) => match dumped.get(name) {
                Some(now) if now.runtime_type == handler.runtime_type => {
                    let keys = if passes_options(facts) {
                        other_options(&handler, now)
                    } else {
                        Vec::new()
                    };
                    (!keys.is_empty()).then(|| {
                        let keys = keys.join(", ");
                        format!("{path} declares handler {name} with other options than it was installed with: {keys}")
                    })
                }
                Some(_) | None => Some(lost()),
            },
        }
    };
    let declared = declarations(facts, &facts.state.handlers);
    declared.into_iter().filter_map(drifted).collect()
}

/// The keys of options whose values differ, or that only one of both has.
fn other_options(managed: &Handler, now: &DeclaredHandler) -> Vec<String> {
    let keys: BTreeSet<&String> = managed.options.keys().chain(now.options.keys()).collect();
    keys.into_iter()
        .filter(|key| managed.options.get(*key) != now.options.get(*key))
        .cloned()
        .collect()
}

fn installed(facts: &HostFacts, handler: &str, owned: &OwnedHandler) -> Installed {
    let sha256 = owned.sha256();
    let path = facts.install_paths.declared_path(handler, owned);
    let condition = match (sha256, &facts.served) {
        _ if !facts.state.handlers.contains_key(handler) => Condition::Leaving,
        (None, _) => Condition::Reserved,
        (Some(_), Err(_)) => Condition::Unknown,
        (Some(sha256), Ok(served)) => {
            let listed = served.handlers.get(handler) == Some(&path);
            if listed && verified_digest(facts, &path) == Some(sha256) {
                Condition::Served
            } else {
                Condition::Unserved
            }
        }
    };
    Installed {
        handler: handler.to_owned(),
        shim: owned.shim.clone(),
        path,
        owner: owner_word(owned.owner),
        condition,
        sha256,
        sandboxes: facts.in_use.get(handler).copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::handoff::OptionValue;
    use crate::installer::fixtures::{HostFactsBuilder, host};

    fn problems(facts: &HostFacts) -> Vec<String> {
        let findings = examine(facts, &LeftoverFiles::default()).findings;
        assert!(findings.iter().all(|finding| !finding.remedy.is_empty()));
        findings
            .into_iter()
            .map(|finding| finding.problem)
            .collect()
    }

    #[test]
    fn a_node_without_problems_is_healthy_with_and_without_farrier() {
        for facts in [host(), host().installed(&["a", "b"])].map(HostFactsBuilder::build) {
            assert_eq!(problems(&facts), [""; 0]);
            assert!(examine(&facts, &LeftoverFiles::default()).healthy);
        }
    }

    #[rstest]
    #[case::changed_options(|facts: &mut HostFacts| {
        let options = &mut facts.state.handlers.get_mut("a").unwrap().options;
        options.insert("SystemdCgroup".to_owned(), OptionValue::Boolean(true));
    }, "other options than it was installed with: SystemdCgroup")]
    #[case::another_path(|facts: &mut HostFacts| {
        let dump = facts.dump.clone().unwrap();
        facts.dump = Ok(dump.replace("shim-a", "shim-z"));
    }, "no longer declares handler a")]
    #[case::missing_configuration(|facts: &mut HostFacts| facts.config_files.root.text = None, "is gone")]
    #[case::invalid_configuration(|facts: &mut HostFacts| facts.dump = Err(Problem::new("line 3", None)), "does not load its present configuration: line 3")]
    #[case::read_only_host(|facts: &mut HostFacts| facts.obstacle = Some(Problem::with_help("/opt is read-only", "make it writable")), "/opt is read-only")]
    #[case::unserved_handler(|facts: &mut HostFacts| {
        facts.served.as_mut().unwrap().handlers.remove("a");
    }, "handler a is installed and not served")]
    #[case::unused_draining_handler(|facts: &mut HostFacts| {
        let draining = facts.state.handlers["a"].clone();
        facts.state.draining.insert("c".to_owned(), draining);
    }, "handler c, which was taken away")]
    fn each_problem_is_reported_once(#[case] spoil: impl Fn(&mut HostFacts), #[case] reason: &str) {
        let problems = problems(&host().installed(&["a"]).with(spoil).build());
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert!(problem.contains(reason), "{problem}");
    }

    #[test]
    fn a_draining_handler_is_no_problem() {
        let mut facts = host().installed(&["a", "b"]).in_use("a", 1).build();
        let draining = facts.state.handlers.remove("a").unwrap();
        facts.state.draining.insert("a".to_owned(), draining);
        let diagnosis = examine(&facts, &LeftoverFiles::default());
        assert!(diagnosis.healthy, "{diagnosis:?}");
        let conditions: Vec<Condition> = diagnosis.handlers.iter().map(|it| it.condition).collect();
        assert_eq!(conditions, [Condition::Leaving, Condition::Served]);
    }
}
