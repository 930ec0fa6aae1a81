//! Lists the handlers installed on a host, their owners, and the faults of the host with their remedies. Pure: `inspect` gathers the facts.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::containerd_config::{
    DeclaredHandler, Handler, handlers_declared_twice, runtimes_of_dump,
};
use crate::handoff::{Problem, Sha256Digest, printable};
use crate::installer::distro::Restart;
use crate::installer::inspect::{HostFacts, verified_digest};
use crate::installer::plan;
use crate::installer::plan::config_edit::{
    CurrentConfig, declarations, found_problem, not_visible, passes_options,
};
use crate::installer::plan::config_source;
use crate::installer::plan::in_use::{Dependents, END_ORPHANS, Users, orphans_problem};
use crate::installer::plan::preconditions::{
    check_host, check_pods_survive, note_on_cluster, notes_on_ending,
};
use crate::installer::plan::takeover;
use crate::installer::state::{JOURNAL_FILE, OwnedHandler, STATE_FILE, owner_name};

/// The result of `farrier doctor`: the shims of a host and the faults of the host.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Whether there is no finding.
    pub healthy: bool,
    /// Name in the table of distributions; `None` if the host can't be read.
    pub distro: Option<String>,
    /// Release of containerd; `None` if unknown.
    pub containerd: Option<String>,
    /// Handlers in Farrier's state file, those of removed shims included.
    pub handlers: Vec<Installed>,
    /// Faults of the host.
    pub findings: Vec<Finding>,
    /// Facts that are no faults and that an administrator should know before a change, each one sentence.
    pub notes: Vec<String>,
    /// The PIDs of the shim processes that `--end-orphans` has ended.
    pub ended: Vec<u32>,
}

/// A handler in Farrier's state file.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// Name of the handler in containerd.
    pub handler: String,
    /// Name of the Shim.
    pub shim: String,
    /// Path of the program that containerd executes.
    pub path: String,
    /// Owner: `cluster`, `local`, `kwasm` or `rcm`.
    pub owner: &'static str,
    /// State of the handler.
    pub condition: Condition,
    /// SHA-256 of the installed binary; `None` for a reserved handler.
    pub sha256: Option<Sha256Digest>,
    /// Release of the installed binary, as the location of its artifact names it.
    pub release: Option<String>,
    /// Number of pod sandboxes that use the handler.
    pub sandboxes: usize,
}

/// State of an installed handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// containerd lists the handler, and the verified binary is at the handler's path.
    Served,
    /// Declared without a binary, for a Shim that is not on this node.
    Reserved,
    /// containerd does not list the handler, or the binary differs from the installed one.
    Unserved,
    /// containerd's handlers are unknown: containerd does not run, did not answer, or the host is an image.
    Unknown,
    /// No longer declared; the binary is kept for the pods that use it.
    Leaving,
}

/// A fault of the host.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The fault, in one sentence.
    pub problem: String,
    /// The next step of an administrator, beginning with an imperative.
    pub remedy: String,
}

/// The remedy of most findings.
const INSTALL_AGAIN: &str = "run `farrier install` again with the same shims";

/// Traces of other runs on a host.
#[derive(Debug, Default)]
pub struct LeftoverFiles {
    /// Another run holds the lock.
    pub locked: bool,
    /// The journal of a change exists and can be read.
    pub journal: bool,
    /// Why the journal can't be read.
    pub journal_problem: Option<Problem>,
    /// Temporary files, which only a killed run leaves behind.
    pub temporary_files: Vec<String>,
}

/// Derives the diagnosis of a host from facts.
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
            "wait for the end of the other run, then repeat this command: a change in progress can cause other findings",
        );
    } else {
        findings.of_leftover_files(facts, leftover_files);
    }
    findings.of_host(facts);
    let current = CurrentConfig::find(facts).ok();
    findings.of_handlers(facts, current.as_ref(), &handlers);
    findings.of_orphans(facts);
    findings.of_removal(facts, current.as_ref());
    for problem in config_drift(facts) {
        findings.add_problem(&problem, INSTALL_AGAIN);
    }
    for problem in takeover::legacy_problems(facts) {
        findings.add_problem(&problem, INSTALL_AGAIN);
    }
    Diagnosis {
        healthy: findings.0.is_empty(),
        distro: Some(facts.distro.id.to_owned()),
        containerd: facts.version.map(|version| version.to_string()),
        handlers,
        findings: findings.0,
        notes: notes_on_changes(facts),
        ended: Vec::new(),
    }
}

/// What a restart of containerd would do on this host, and who else changes the host.
fn notes_on_changes(facts: &HostFacts) -> Vec<String> {
    let mut notes = Vec::new();
    let is_live = facts.containerd.daemon().is_some() && facts.unreachable.is_none();
    // The restart of a node that is a container always ends its pods, so that is no fault.
    if is_live
        && facts.distro.restart != Restart::Service
        && let Err(error) = check_pods_survive(facts)
    {
        notes.push(Problem::new(&error, error.help()).sentence());
    }
    notes.extend(notes_on_ending(facts));
    let current = CurrentConfig::find(facts).ok();
    let pending = current.and_then(|it| it.check_restart(facts, &it.managed, false).ok());
    notes.extend(pending.unwrap_or_default());
    notes.extend(note_on_cluster(facts));
    notes.iter().map(|note| printable(note)).collect()
}

impl Diagnosis {
    /// Adds the shim processes that were ended, or why that failed.
    pub(crate) fn with_ended(mut self, ended: Result<Vec<u32>, Problem>) -> Self {
        match ended {
            Ok(ended) => self.ended = ended,
            Err(problem) => {
                let mut findings = Findings(self.findings);
                findings.add_problem(&problem, "run farrier as root");
                self.findings = findings.0;
                self.healthy = false;
            }
        }
        self
    }
}

/// The diagnosis of a host that can't be read.
#[must_use]
pub fn failed_inspection(problem: &Problem) -> Diagnosis {
    let mut findings = Findings::default();
    findings.add_problem(
        problem,
        "check that --host-root names the root of the host and that you may read this directory",
    );
    Diagnosis {
        healthy: false,
        distro: None,
        containerd: None,
        handlers: Vec::new(),
        findings: findings.0,
        notes: Vec::new(),
        ended: Vec::new(),
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, problem: &str, remedy: &str) {
        let finding = Finding {
            problem: printable(problem),
            remedy: printable(remedy),
        };
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }

    /// As [`Self::add`], with `otherwise` as the remedy if the problem has no help.
    fn add_problem(&mut self, problem: &Problem, otherwise: &str) {
        let help = problem.help.as_deref().unwrap_or(otherwise);
        self.add(&problem.message, help);
    }

    /// The next change would be refused with this error.
    fn add_refusal(&mut self, error: &plan::Error) {
        self.add_problem(
            &Problem::new(error, error.help()),
            "repair that, then run farrier again",
        );
    }

    /// Traces of a killed run.
    fn of_leftover_files(&mut self, facts: &HostFacts, leftover_files: &LeftoverFiles) {
        if leftover_files.journal {
            self.add(
                "a change of this host was interrupted",
                "run `farrier install` or `farrier uninstall` again: the run first undoes or finishes the change",
            );
        }
        if let Some(problem) = &leftover_files.journal_problem {
            self.add_problem(problem, &format!("check {JOURNAL_FILE}"));
        }
        for path in leftover_files
            .temporary_files
            .iter()
            .cloned()
            .chain(unreferenced(facts))
        {
            self.add(
                &format!("{path} was left behind by an earlier run"),
                "run `farrier install` again with the same shims, then remove the file if it still exists",
            );
        }
    }

    /// Faults of the host that do not depend on the installed handlers.
    fn of_host(&mut self, facts: &HostFacts) {
        if let Err(error) = check_host(facts) {
            self.add_refusal(&error);
            if matches!(error, plan::Error::Distribution(_)) {
                return;
            }
        }
        if let Some(untried) = &facts.untried {
            self.add_problem(untried, "run farrier as root");
        }
        if let Some(obstacle) = &facts.obstacle {
            self.add_problem(obstacle, "check that path");
        }
        // containerd runs these programs as root, whether or not Farrier has taken them over.
        let mut untrusted: Vec<&Problem> = facts.legacy.untrusted.values().collect();
        untrusted.dedup();
        for problem in untrusted {
            self.add_problem(problem, "check that path");
        }
        if config_source::is_unloadable(facts) {
            return self.of_unloadable(facts);
        }
        if let (Some(_), Err(problem)) = (&facts.program, &facts.dump) {
            self.add_problem(
                &Problem {
                    message: format!(
                        "containerd does not load its present configuration: {problem}"
                    ),
                    help: problem.help.clone(),
                },
                "correct the configuration before the next start of containerd",
            );
        }
        if let Some(problem) = &facts.unreachable {
            self.add_refusal(&plan::Error::Obstacle(problem.clone()));
        } else if facts.containerd.daemon().is_some()
            // A restart that ends the whole node is in the notes.
            && facts.distro.restart == Restart::Service
            && let Err(error) = check_pods_survive(facts)
        {
            self.add_refusal(&error);
        }
        if let Err(problem) = &facts.ending_pods {
            self.add_refusal(&plan::Error::EndingPodsUnknown(problem.clone()));
        }
        // The next change would be refused for the same reason.
        match CurrentConfig::find(facts) {
            Ok(current) => {
                if let Some(problem) = current.write_problem(facts) {
                    self.add_problem(problem, "check that path");
                }
                if let Err(error) = current.check_restart(facts, &current.managed, false) {
                    self.add_refusal(&error);
                }
            }
            // The findings on containerd and on what it prints say so already.
            Err(plan::Error::Refuses(_)) => {}
            Err(plan::Error::NoVersion(_)) if facts.served.is_err() || facts.dump.is_err() => {}
            Err(error) => self.add_refusal(&error),
        }
    }

    /// A file that the distribution has rendered and that is no TOML.
    fn of_unloadable(&mut self, facts: &HostFacts) {
        if let Some(problem) = config_source::broken_template(facts)
            .and_then(|_| config_source::still_unloadable(facts, &BTreeSet::new()))
        {
            return self.add_problem(&problem, "correct the template");
        }
        let root = &facts.config_files.root;
        let text = root.text.as_deref().unwrap_or_default();
        let twice = handlers_declared_twice(text);
        for handler in &twice {
            let program = facts.found_runtimes.get(handler);
            let program = program.map_or_else(String::new, |it| format!(", because it finds {it}"));
            let (id, path) = (facts.distro.id, &root.path);
            self.add(
                &format!("{path} declares handler {handler} twice, and containerd does not start: {id} declares it beside Farrier{program}"),
                "run `farrier install` again with the same shims, or `farrier uninstall`: Farrier's declaration then gives way",
            );
        }
        if twice.is_empty()
            && let Some(problem) = config_source::not_toml(facts)
        {
            self.add_problem(&problem, "correct the template");
        }
    }

    /// Shim processes that outlived their pods.
    fn of_orphans(&mut self, facts: &HostFacts) {
        match &facts.orphans {
            Ok(orphans) => {
                if let Some(problem) = orphans_problem(orphans) {
                    self.add_problem(&problem, END_ORPHANS);
                }
            }
            Err(problem) => self.add_problem(problem, "check that containerd answers"),
        }
    }

    /// Why handlers of Farrier could not be removed.
    fn of_removal(&mut self, facts: &HostFacts, current: Option<&CurrentConfig<'_>>) {
        let managed = current.map(|current| &current.managed).into_iter();
        let owned = &facts.state.handlers;
        let names: BTreeSet<&String> = managed.flatten().chain(owned.keys()).collect();
        if names.is_empty() {
            return;
        }
        let dependents = Dependents::of(facts);
        for name in names {
            let problem = dependents.reason(&facts.install_paths, name, owned.get(name));
            if let Some(problem) = problem {
                self.add_problem(&problem, "correct the configuration");
            }
        }
        if let Some(Err(error)) = current.map(|current| current.check_removal(facts)) {
            self.add_refusal(&error);
        }
    }

    /// Faults of installed handlers, without those of their declarations.
    fn of_handlers(
        &mut self,
        facts: &HostFacts,
        current: Option<&CurrentConfig<'_>>,
        handlers: &[Installed],
    ) {
        for installed in handlers {
            let handler = &installed.handler;
            let found = current.and_then(|current| current.found(handler));
            match installed.condition {
                Condition::Unserved | Condition::Unknown if found.is_some() => {
                    let problem = found.map(|program| found_problem(facts, handler, program));
                    if let Some(problem) = problem.filter(|_| facts.dump.is_ok()) {
                        self.add_problem(&problem, INSTALL_AGAIN);
                    }
                }
                Condition::Served
                    if let Some(problem) =
                        current.and_then(|current| current.will_be_taken(facts, handler)) =>
                {
                    self.add_problem(&problem, INSTALL_AGAIN);
                }
                Condition::Leaving if facts.served.is_ok() && !is_used(facts, handler) => self.add(
                    &format!("handler {handler} was removed and no pod uses it any more, but its binary is still on the host"),
                    "run `farrier install` or `farrier uninstall` again: the run removes the binary",
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
                            &format!("handler {handler} is installed, but containerd does not list it"),
                            INSTALL_AGAIN,
                        );
                    }
                }
            }
        }
    }
}

/// Whether the binary of a handler that was removed is still in use.
fn is_used(facts: &HostFacts, handler: &str) -> bool {
    let owned = facts.state.draining.get(handler);
    Users::of(facts).reason(handler, owned).is_some()
}

/// Binaries in the store that no installed handler needs.
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

/// Differences between the installed handlers and their declarations in containerd's configuration. Other programs and administrators may
/// edit the configuration as long as the handlers are still declared.
fn config_drift(facts: &HostFacts) -> Vec<Problem> {
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
            let message = format!(
                "{path} declares handlers of Farrier, but containerd no longer loads this file"
            );
            return vec![Problem::new(message, None)];
        }
        (None, Some(_)) => {
            let message = format!("{path}, which declared handlers of Farrier, is missing");
            return vec![Problem::new(message, None)];
        }
        (None, None) => "",
    };
    let dumped = facts.dump.as_ref().ok();
    let dumped = dumped.and_then(|dump| runtimes_of_dump(dump).ok());
    let current = CurrentConfig::find(facts).ok();
    let is_found = |name: &str| {
        let current = current.as_ref();
        current.is_some_and(|current| current.found(name).is_some())
    };
    // Others may add options in another file, which Farrier can't change.
    let is_as_written = |handler: &Handler| {
        let current = current.as_ref();
        current.is_some_and(|current| current.declares(handler))
    };
    let is_taken = |name: &str| {
        let current = current.as_ref();
        current.is_some_and(|current| current.taken.contains(name))
    };
    let drifted = |handler: Handler| {
        let name = &handler.name;
        if is_found(name) {
            return None;
        }
        let lost = || {
            let message =
                format!("{path} no longer declares handler {name}, which {STATE_FILE} records");
            Problem::new(message, None)
        };
        match &dumped {
            // Without a dump, the text of the file is searched.
            None => (!text.contains(&handler.runtime_type)).then(lost),
            Some((_, dumped)) => match dumped.get(name) {
                Some(now) if now.runtime_type == handler.runtime_type => {
                    let keys = if passes_options(facts) && !is_as_written(&handler) {
                        other_options(&handler, now)
                    } else {
                        Vec::new()
                    };
                    (!keys.is_empty()).then(|| {
                        let keys = keys.join(", ");
                        let message = format!("{path} declares handler {name} with options that differ from the installed options: {keys}");
                        Problem::new(message, None)
                    })
                }
                // `install` can't help: another file has precedence.
                Some(_) if is_as_written(&handler) || is_taken(name) => {
                    let error = not_visible(name);
                    Some(Problem::new(&error, error.help()))
                }
                Some(_) | None => Some(lost()),
            },
        }
    };
    let declared = declarations(facts, &facts.state.handlers);
    declared.into_iter().filter_map(drifted).collect()
}

/// The keys of options that differ or are on one side only.
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
        owner: owner_name(owned.owner),
        condition,
        sha256,
        release: owned.release(),
        sandboxes: facts.in_use.get(handler).map_or(0, Vec::len),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use super::*;
    use crate::containerd_config::{CniSettings, SourceFile};
    use crate::handoff::OptionValue;
    use crate::installer::containerd::daemon::Containerd;
    use crate::installer::containerd::kubelet::KubeletRuntime;
    use crate::installer::containerd::process::{Reason, Refusal};
    use crate::installer::containerd::rehearsal::Rehearsal;
    use crate::installer::containerd::service::RestartEffect;
    use crate::installer::distro::{Evidence, by_id, detect, editable_files};
    use crate::installer::fixtures::{
        CONFIG, CONFIG_PATH, DIGEST, HostFactsBuilder, goal, host, install_paths, remove_everything,
    };
    use crate::installer::inspect::restart_inputs::{
        Change, Contents, Input, InputKind, StartTime,
    };
    use crate::installer::inspect::write_targets::WriteTarget;
    use crate::installer::plan::{Scope, decide};
    use crate::installer::state::State;

    fn problems(facts: &HostFacts) -> Vec<String> {
        let findings = examine(facts, &LeftoverFiles::default()).findings;
        assert!(findings.iter().all(|finding| !finding.remedy.is_empty()));
        findings
            .into_iter()
            .map(|finding| finding.problem)
            .collect()
    }

    const PATH: &str = "/opt/farrier/bin/containerd-shim-a";
    const MINE: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.mine]\n";

    /// containerd prints its configuration with these lines at the end.
    fn printing(facts: &mut HostFacts, lines: &str) {
        facts.dump = facts
            .dump
            .clone()
            .map(|dump| format!("{dump}{MINE}{lines}"));
    }

    #[rstest]
    #[case::the_default_runtime(|facts: &mut HostFacts| {
        facts.served.as_mut().unwrap().default = "a".to_owned();
    }, "handler a is the default runtime of containerd, which runs pods without a RuntimeClass")]
    #[case::the_default_runtime_from_the_next_start_on(|facts: &mut HostFacts| {
        facts.dump = facts.dump.clone().map(|dump| dump.replace("= 'runc'", "= 'a'"));
    }, "handler a is the default runtime of containerd, which runs pods without a RuntimeClass")]
    #[case::a_served_handler(|facts: &mut HostFacts| {
        let mine = ("mine".to_owned(), PATH.to_owned());
        facts.served.as_mut().unwrap().handlers.extend([mine]);
    }, "handler mine, which others declare, executes /opt/farrier/bin/containerd-shim-a")]
    #[case::a_declared_handler(
        |facts: &mut HostFacts| printing(facts, &format!("runtime_type = '{PATH}'\n")),
        "handler mine, which others declare, executes /opt/farrier/bin/containerd-shim-a"
    )]
    #[case::a_path_of_a_handler(
        |facts: &mut HostFacts| printing(facts, &format!("runtime_type = 'io.containerd.a.v1'\nruntime_path = '{PATH}'\n")),
        "handler mine, which others declare, executes /opt/farrier/bin/containerd-shim-a"
    )]
    #[case::an_option_of_a_handler(
        |facts: &mut HostFacts| printing(facts, &format!("runtime_type = 'io.containerd.runc.v2'\noptions.BinaryName = '{PATH}'\n")),
        "handler mine, which others declare, executes /opt/farrier/bin/containerd-shim-a"
    )]
    fn a_handler_that_others_need_is_found_before_its_removal_is_refused(
        #[case] need: impl Fn(&mut HostFacts),
        #[case] sentence: &str,
        #[values(false, true)] alone: bool,
    ) {
        let facts = host().installed(&["a", "b"]).with(need).build();
        assert!(problems(&facts).contains(&sentence.to_owned()));
        let goal = if alone {
            let scope = Scope::Shims(["a".to_owned()].into());
            goal(&[]).scope(scope).build()
        } else {
            remove_everything()
        };
        let plan = decide(&facts, &goal).unwrap();
        let [report] = plan.handlers.as_slice() else {
            panic!("{:?}", plan.handlers);
        };
        assert_eq!(report.handler, "a");
        assert_eq!(report.reason.as_deref(), Some(sentence));
        let remedy = report.remedy.as_deref().unwrap();
        assert!(remedy.ends_with("and restart containerd"), "{remedy}");
        assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
        let left: &[&str] = if alone { &[] } else { &["b"] };
        let left: Vec<String> = left
            .iter()
            .map(|it| install_paths().binary_path(it))
            .collect();
        assert_eq!(plan.obsolete_files, left);
        // The state file may be lost.
        let mut facts = facts;
        facts.state = State::default();
        assert!(problems(&facts).contains(&sentence.to_owned()));
        if !alone {
            let error = decide(&facts, &goal).unwrap_err().to_string();
            assert_eq!(error, sentence);
        }
    }

    #[test]
    fn a_reserved_handler_that_is_the_default_runtime_stays_declared() {
        let first = goal(&["a"]).reserve(&["b"]).build();
        let facts = host().build();
        let plan = decide(&facts, &first).unwrap();
        let mut facts = HostFactsBuilder::from(facts).after(plan).build();
        facts.served.as_mut().unwrap().default = "b".to_owned();
        let error = decide(&facts, &remove_everything())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("handler b is the default runtime"),
            "{error}"
        );
        assert!(problems(&facts).contains(&error));
    }

    #[test]
    fn an_action_that_prevents_the_removal_of_a_handler_is_found() {
        let editable = editable_files(by_id("k3s").edited, CONFIG_PATH);
        let template = format!(
            "{{{{ template \"base\" . }}}}\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '{PATH}'\nx = '{{{{ .X }}}}'\n"
        );
        let facts = host().installed(&["a"]).distro(by_id("k3s"));
        let facts = facts.with(|facts| {
            facts.sources = vec![SourceFile {
                path: editable[1].clone(),
                text: Some(template),
            }];
        });
        let facts = facts.build();
        let error = decide(&facts, &remove_everything()).unwrap_err();
        let expected = "failed to remove handler a from /etc/containerd/config.toml.tmpl: a template action is among its lines";
        assert_eq!(error.to_string(), expected);
        assert!(problems(&facts).contains(&expected.to_owned()));
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
    }, "options that differ from the installed options: SystemdCgroup")]
    #[case::another_path(|facts: &mut HostFacts| {
        let dump = facts.dump.clone().unwrap().replace("shim-a", "shim-z");
        facts.config_files.root.text = Some(dump.clone());
        facts.dump = Ok(dump);
    }, "no longer declares handler a")]
    #[case::another_path_in_another_file(|facts: &mut HostFacts| {
        let dump = facts.dump.clone().unwrap();
        facts.dump = Ok(dump.replace("shim-a", "shim-z"));
    }, "would not load handler a as it is declared")]
    #[case::missing_configuration(|facts: &mut HostFacts| facts.config_files.root.text = None, "is missing")]
    #[case::invalid_configuration(|facts: &mut HostFacts| facts.dump = Err(Problem::new("line 3", None)), "does not load its present configuration: line 3")]
    #[case::read_only_host(|facts: &mut HostFacts| facts.obstacle = Some(Problem::with_help("/opt is read-only", "make it writable")), "/opt is read-only")]
    #[case::unserved_handler(|facts: &mut HostFacts| {
        facts.served.as_mut().unwrap().handlers.remove("a");
    }, "handler a is installed, but containerd does not list it")]
    #[case::unused_draining_handler(|facts: &mut HostFacts| {
        let draining = facts.state.handlers["a"].clone();
        facts.state.draining.insert("c".to_owned(), draining);
    }, "handler c was removed and no pod uses it any more")]
    fn each_problem_is_reported_once(#[case] spoil: impl Fn(&mut HostFacts), #[case] reason: &str) {
        let problems = problems(&host().installed(&["a"]).with(spoil).build());
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert!(problem.contains(reason), "{problem}");
    }

    #[test]
    fn a_containerd_that_can_not_be_run_is_reported_with_the_help_of_its_error() {
        let help = "run `chmod go-w /usr/local/bin` on the host";
        let facts = host().with(|facts| facts.dump = Err(Problem::with_help("no", help)));
        let facts = facts.build();
        let findings = examine(&facts, &LeftoverFiles::default()).findings;
        assert_eq!(findings[0].remedy, help);
        let goal = goal(&["a"]).build();
        let error = decide(&facts, &goal).unwrap_err();
        assert_eq!(error.help().as_deref(), Some(help));
    }

    /// Ten seconds after the start of containerd.
    fn changed() -> Change {
        let start = Duration::from_hours(24);
        Change::At(start + Duration::from_secs(10), StartTime::new(start, None))
    }

    /// A change by others after the start of containerd.
    fn pending(kind: InputKind, change: Change) -> impl Fn(&mut HostFacts) {
        move |facts| {
            let input = Input {
                path: "/etc/own".to_owned(),
                kind,
                change,
                contents: Contents::Edited,
            };
            facts.restart_inputs.inputs = vec![input];
        }
    }

    /// A host of this distribution that renders its configuration from an absent file, with the release or the reason that it is unknown.
    fn rendered(
        distro: &'static str,
        release: Result<&'static str, &'static str>,
    ) -> impl Fn(&mut HostFacts) {
        move |facts| {
            facts.distro = by_id(distro);
            let root = &facts.config_files.root.path;
            let paths = editable_files(facts.distro.edited, root).into_iter();
            let absent = paths.map(|path| SourceFile { path, text: None });
            facts.sources = absent.collect();
            facts.release = match release {
                Ok(release) => Ok(release.parse().unwrap()),
                Err(message) => Err(Problem::new(message, None)),
            };
        }
    }

    /// A file or directory that can't be written.
    fn unwritable(path: &'static str) -> impl Fn(&mut HostFacts) {
        move |facts| {
            let target = WriteTarget {
                problem: Some(Problem::with_help("it is immutable", "make it mutable")),
                notes: Vec::new(),
            };
            facts.write_targets.insert(path.to_owned(), target);
        }
    }

    /// Spoils a host so that the next change is refused.
    type Spoil = Box<dyn Fn(&mut HostFacts)>;

    fn spoil(change: impl Fn(&mut HostFacts) + 'static) -> Spoil {
        Box::new(change)
    }

    /// Makes the table of refusals: below each variant of [`plan::Error`], the ways to it. A variant that is not in the table does not
    /// compile.
    macro_rules! refusals {
        ($($variant:ident { $($spoil:expr,)+ })+) => {
            fn variant(error: &plan::Error) -> &'static str {
                match error {
                    $(plan::Error::$variant { .. } => stringify!($variant),)+
                }
            }

            fn refusals() -> Vec<(&'static str, Spoil)> {
                vec![$($((stringify!($variant), spoil($spoil)),)+)+]
            }
        };
    }

    refusals! {
        Distribution {
            |facts| facts.distro = detect(&Evidence { os_release: "ID=talos\n", ..Evidence::default() }, |_| false),
        }
        OtherRuntime {
            |facts| facts.kubelet_runtime = KubeletRuntime::Other {
                name: "docker".to_owned(),
                socket: "/run/cri-dockerd.sock".to_owned(),
            },
        }
        NoDaemon {
            |facts| facts.containerd = Containerd::NotFound { refused: Vec::new() },
        }
        UnknownKubelet {
            |facts| facts.containerd = Containerd::UnknownKubelet {
                refused: vec![Refusal {
                    pid: 900,
                    program: "/opt/kubelet".to_owned(),
                    reason: Reason::OtherFile,
                }],
            },
        }
        NotOfKubelet {
            |facts| facts.containerd = Containerd::NotOfKubelet {
                socket: Some("/run/a.sock".to_owned()),
                of_distro: None,
                refused: Vec::new(),
            },
        }
        NoVersion {
            |facts| facts.version = None,
        }
        NotServing {
            |facts| facts.served = Err(Problem::new("no CRI", None)),
            |facts| facts.served.as_mut().unwrap().ready = false,
        }
        Obstacle {
            |facts| facts.kubelet_runtime = KubeletRuntime::Unknown(Problem::with_help("no answer", "start it")),
            |facts| facts.unknown_config = Some(Problem::new("no path is known", None)),
            |facts| facts.obstacle = Some(Problem::new("/opt is read-only", None)),
            |facts| {
                let path = "/opt/kwasm/bin/containerd-shim-a";
                facts.state.handlers.get_mut("a").unwrap().path = Some(path.to_owned());
                let problem = Problem::new("it is of another user", None);
                facts.legacy.untrusted.insert(path.to_owned(), problem);
            },
            |facts| facts.unreachable = Some(Problem::new("no bus", None)),
            unwritable("/etc/containerd/config.toml"),
            unwritable("/etc/containerd"),
        }
        Source {
            rendered("microk8s", Err("no program was run")),
            rendered("k3s", Err("no program was run")),
            rendered("k3s", Ok("1.26.7")),
        }
        Config {
            |facts| facts.config_files.root.text = Some("[".to_owned()),
        }
        Refuses {
            |facts| facts.dump = Err(Problem::new("line 3", None)),
            |facts| facts.missing_prerequisite = Some("no /spec.json".to_owned()),
            |facts| facts.unstartable = Some(Problem::new("the unit is masked", None)),
            |facts| facts.unstartable = Some(Problem::with_help("/opt/nri/plugins/a is executable", "remove it")),
        }
        Pending {
            pending(InputKind::Config, changed()),
            pending(InputKind::Program, Change::Replaced),
            pending(InputKind::Unit, Change::NotReloaded),
            pending(InputKind::Distribution, changed()),
            pending(InputKind::Distribution, Change::Removed),
            pending(InputKind::AbsentConfig, changed()),
            |facts| {
                pending(InputKind::Config, changed())(facts);
                facts.restart_inputs.rehearsal = Rehearsal::Failed(Problem::new("no CRI", None));
            },
            |facts| {
                facts.restart_inputs.rehearsal = Rehearsal::Failed(Problem::new("no CRI", None));
            },
            |facts| {
                facts.data_directories.root = Some("/var/lib/containerd".to_owned());
                facts.dump = facts.dump.as_ref().map(|dump| format!("root = '/srv'\n{dump}")).map_err(Clone::clone);
            },
            |facts| facts.other_socket = Some("/run/old.sock".to_owned()),
            |facts| {
                facts.network.cni = Some(CniSettings::new("/c", "", Vec::new(), ""));
                let cni = "\n[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/o'\n";
                facts.dump = facts.dump.as_ref().map(|dump| format!("{dump}{cni}")).map_err(Clone::clone);
            },
        }
        PendingRuntime {
            |facts| facts.served.as_mut().unwrap().default = "kata".to_owned(),
        }
        KillMode {
            |facts| facts.restart_effect = Ok(RestartEffect::PodsEnd { kill_mode: "control-group".to_owned() }),
        }
        Container {
            |facts| {
                rendered("k3d", Ok("1.30.4"))(facts);
                facts.restart_effect = Ok(RestartEffect::NodeEnds);
            },
        }
        EndsPods {
            |facts| facts.ending_pods = host().ending(&["a"]).build().ending_pods,
        }
        EndingPodsUnknown {
            |facts| facts.ending_pods = Err(Problem::new("no answer", None)),
        }
        KillModeUnknown {
            |facts| facts.restart_effect = Err(Problem::new("no bus", None)),
        }
    }

    #[test]
    fn each_refusal_is_found_before_the_change_in_the_same_words() {
        for (expected, spoil) in refusals() {
            let facts = host().installed(&["a"]).with(spoil).build();
            let goal = goal(&["a", "b"]).build();
            let error = decide(&facts, &goal).unwrap_err();
            assert_eq!(variant(&error), expected, "{error}");
            let diagnosis = examine(&facts, &LeftoverFiles::default());
            let found = diagnosis.findings.iter();
            let mut said = found
                .map(|it| (it.problem.as_str(), Some(it.remedy.as_str())))
                .chain(diagnosis.notes.iter().map(|note| (note.as_str(), None)));
            let refused = error.to_string();
            let (_, remedy) = said
                .find(|(problem, remedy)| match remedy {
                    Some(_) => *problem == refused,
                    // A note ends with the help.
                    None => problem.starts_with(&refused),
                })
                .unwrap_or_else(|| panic!("{refused:?} is not in {diagnosis:?}"));
            if let (Some(remedy), Some(help)) = (remedy, error.help()) {
                assert_eq!(remedy, help);
            }
        }
    }

    #[test]
    fn pods_that_end_at_a_restart_are_noted_and_no_problem() {
        let facts = host().installed(&["a"]).ending(&["a"]).build();
        let diagnosis = examine(&facts, &LeftoverFiles::default());
        assert!(diagnosis.healthy, "{diagnosis:?}");
        let ends = "a restart of containerd ends 1 pod, because its shim does not report its processes: default/a (handler a)";
        let of_cluster = "this node belongs to a cluster, whose Shims have these handlers: a;";
        assert_eq!(diagnosis.notes[0], ends);
        assert!(diagnosis.notes[1].starts_with(of_cluster), "{diagnosis:?}");
        let facts = HostFactsBuilder::from(facts).containerd("2.1.9").build();
        let notes = examine(&facts, &LeftoverFiles::default()).notes;
        assert_eq!(notes[0], ends);
        assert!(notes[1].contains("does not come back"), "{notes:?}");
    }

    #[test]
    fn shim_processes_without_a_pod_are_one_problem_with_times_and_a_bounded_list() {
        let old = "/opt/farrier/store/old";
        let facts = host().installed(&["a"]).orphans(&[old; 2]).build();
        let findings = examine(&facts, &LeftoverFiles::default()).findings;
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}");
        };
        assert_eq!(
            finding.problem,
            "2 shim processes without a pod still run binaries of Farrier: PIDs 100 since 2025-11-24T16:00:00Z, 101 since 2025-11-24T16:00:00Z"
        );
        assert_eq!(finding.remedy, END_ORPHANS);
        let many = host().orphans(&[old; 300]).build();
        let listed = &problems(&many)[0];
        assert!(listed.ends_with(" and 290 more"), "{listed}");
        assert!(listed.len() < 600, "{listed}");
        let unknown = Problem::new("containerd is silent", None);
        let unknown = host().with(|facts| facts.orphans = Err(unknown)).build();
        assert_eq!(problems(&unknown), ["containerd is silent"]);
    }

    #[test]
    fn a_binary_that_a_shim_without_a_pod_runs_is_not_reported_as_left_behind() {
        let draining = |facts: &mut HostFacts| {
            facts.state.draining = std::mem::take(&mut facts.state.handlers);
        };
        let program = install_paths().store_path(DIGEST);
        let facts = host().installed(&["a"]).serving(CONFIG, &[]).with(draining);
        let facts = facts.orphans(&[&program]).build();
        let problems = problems(&facts);
        assert!(
            !problems
                .iter()
                .any(|it| it.contains("was removed and no pod")),
            "{problems:?}"
        );
    }

    #[test]
    fn a_failure_to_end_processes_is_a_finding_beside_the_others() {
        let facts = host().build();
        let examined = || examine(&facts, &LeftoverFiles::default());
        let diagnosis = examined().with_ended(Err(Problem::new("not here", None)));
        assert!(!diagnosis.healthy && diagnosis.findings[0].problem == "not here");
        let diagnosis = examined().with_ended(Ok(vec![7]));
        assert!(diagnosis.healthy && diagnosis.ended == [7]);
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
