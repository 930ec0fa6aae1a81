//! Says why the binary of a handler is in use: by pods, by shim processes that outlived their pods, and by the configuration of others. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd_config::{Value, runtimes_of_dump};
use crate::handoff::{EndingPod, Problem};
use crate::installer::containerd::orphans::Orphan;
use crate::installer::inspect::HostFacts;
use crate::installer::state::{InstallPaths, OwnedHandler};

/// The remedy for shim processes without a pod.
pub(crate) const END_ORPHANS: &str =
    "run `farrier doctor --end-orphans` on the node, which ends these processes";

/// The number of pods in a message.
const SHOWN_PODS: usize = 5;

/// The number of processes in a message.
const SHOWN_PROCESSES: usize = 10;

/// Who uses the binaries of handlers.
#[derive(Debug, Clone)]
pub(crate) struct Users<'a> {
    /// The pods of each handler.
    pub(crate) pods: &'a BTreeMap<String, Vec<EndingPod>>,
    /// The shim processes without a pod.
    pub(crate) orphans: &'a [Orphan],
    /// What the configuration of others names.
    pub(crate) dependents: Dependents,
    /// The paths of Farrier's binaries.
    pub(crate) install_paths: &'a InstallPaths,
}

/// What the configuration of others needs of Farrier: containerd serves it, or will after its next start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dependents {
    /// The default runtimes.
    defaults: BTreeSet<String>,
    /// The handlers of others, each with the texts that may be the path of its program.
    programs: BTreeSet<(String, String)>,
}

impl Dependents {
    /// What the configuration of a host names.
    pub(crate) fn of(facts: &HostFacts) -> Self {
        let mut dependents = Self::default();
        if let Ok(served) = &facts.served {
            dependents.defaults.insert(served.default.clone());
            for (name, runtime_type) in &served.handlers {
                let options = served.options.get(name);
                dependents.add(facts, name, [runtime_type], options);
            }
        }
        let dump = facts.dump.as_ref().ok();
        if let Some((default, handlers)) = dump.and_then(|dump| runtimes_of_dump(dump).ok()) {
            dependents.defaults.insert(default);
            for (name, handler) in &handlers {
                let programs = [&handler.runtime_type, &handler.runtime_path];
                dependents.add(facts, name, programs, Some(&handler.options));
            }
        }
        dependents
    }

    fn add<'t>(
        &mut self,
        facts: &HostFacts,
        name: &str,
        programs: impl IntoIterator<Item = &'t String>,
        options: Option<&'t BTreeMap<String, Value>>,
    ) {
        // The handlers of Farrier and of legacy installers leave together.
        if facts.is_own(name) {
            return;
        }
        // Among them `BinaryName`, the program that the shim of runc starts.
        let options = options.into_iter().flatten();
        let options = options.filter_map(|(_, value)| Some(value.as_str()?.to_owned()));
        let programs = programs.into_iter().cloned().chain(options);
        self.programs
            .extend(programs.map(|program| (name.to_owned(), program)));
    }

    /// Why `handler` must stay declared with its binary; `None` if nothing of others needs it.
    pub(crate) fn reason(
        &self,
        install_paths: &InstallPaths,
        handler: &str,
        owned: Option<&OwnedHandler>,
    ) -> Option<Problem> {
        if self.defaults.contains(handler) {
            return Some(Problem::with_help(
                format!(
                    "handler {handler} is the default runtime of containerd, which runs pods without a RuntimeClass"
                ),
                "set default_runtime_name to another handler, such as runc, and restart containerd",
            ));
        }
        if owned.is_some_and(OwnedHandler::is_reserved) {
            return None;
        }
        let mut paths = vec![match owned {
            Some(owned) => install_paths.declared_path(handler, owned),
            None => install_paths.binary_path(handler),
        }];
        let sha256 = owned.and_then(OwnedHandler::sha256);
        paths.extend(sha256.map(|sha256| install_paths.store_path(sha256)));
        let (name, path) = self
            .programs
            .iter()
            .find(|(name, program)| name != handler && paths.contains(program))?;
        Some(Problem::with_help(
            format!("handler {name}, which others declare, executes {path}"),
            format!(
                "remove handler {name}, or let it execute another program, and restart containerd"
            ),
        ))
    }
}

impl<'a> Users<'a> {
    /// The users that were found on a host.
    pub(crate) fn of(facts: &'a HostFacts) -> Self {
        Self {
            pods: &facts.in_use,
            orphans: facts.orphans.as_deref().unwrap_or_default(),
            dependents: Dependents::of(facts),
            install_paths: &facts.install_paths,
        }
    }

    /// Why the binary of a handler stays; `None` if it is not in use.
    pub(crate) fn reason(&self, handler: &str, owned: Option<&OwnedHandler>) -> Option<Problem> {
        if let Some(pods) = self.pods.get(handler).filter(|pods| !pods.is_empty()) {
            return Some(used_by(pods));
        }
        let dependents = &self.dependents;
        if let Some(problem) = dependents.reason(self.install_paths, handler, owned) {
            return Some(problem);
        }
        let owned = owned?;
        let orphans = self.orphans.iter();
        let orphans: Vec<&Orphan> = orphans
            .filter(|orphan| orphan.runs(self.install_paths, owned))
            .collect();
        (!orphans.is_empty()).then(|| {
            let message = format!(
                "{} the binary of the handler: {}",
                number(orphans.len(), "still runs", "still run"),
                list_pids(&orphans, |orphan| orphan.process.0.to_string())
            );
            Problem::with_help(message, END_ORPHANS)
        })
    }
}

fn used_by(pods: &[EndingPod]) -> Problem {
    let name = |pod: &EndingPod| format!("{}/{}", pod.namespace, pod.name);
    let (number, pods) = (pods.len(), list(pods, SHOWN_PODS, name));
    Problem::with_help(
        format!("pods still use the handler ({number} on this node: {pods})"),
        "delete the pods",
    )
}

/// The problem with shim processes that outlived their pods; `None` without such processes.
pub(crate) fn orphans_problem(orphans: &[Orphan]) -> Option<Problem> {
    let orphans: Vec<&Orphan> = orphans.iter().collect();
    (!orphans.is_empty()).then(|| Problem::with_help(sentence(&orphans), END_ORPHANS))
}

/// A note on the shim processes that run the binary of none of `handlers`, which a change leaves on the host: no handler's report names them.
pub(crate) fn note_on_orphans(
    facts: &HostFacts,
    handlers: &[&BTreeMap<String, OwnedHandler>],
) -> Option<String> {
    let orphans = match &facts.orphans {
        Ok(orphans) => orphans,
        Err(problem) => {
            let problem = problem.sentence();
            return Some(format!(
                "shim processes without a pod were not looked for: {problem}"
            ));
        }
    };
    let is_reported = |orphan: &&Orphan| {
        let mut handlers = handlers.iter().flat_map(|some| some.values());
        handlers.any(|owned| orphan.runs(&facts.install_paths, owned))
    };
    let orphans: Vec<&Orphan> = orphans.iter().filter(|it| !is_reported(it)).collect();
    (!orphans.is_empty()).then(|| format!("{} ({END_ORPHANS})", sentence(&orphans)))
}

fn sentence(orphans: &[&Orphan]) -> String {
    let shown = list_pids(orphans, |orphan| {
        let pid = orphan.process.0;
        let since = orphan.since.and_then(|since| i64::try_from(since).ok());
        let since = since.and_then(|since| jiff::Timestamp::from_second(since).ok());
        since.map_or_else(|| pid.to_string(), |since| format!("{pid} since {since}"))
    });
    let number = number(orphans.len(), "still runs a binary", "still run binaries");
    format!("{number} of Farrier: {shown}")
}

fn number(orphans: usize, one: &str, many: &str) -> String {
    match orphans {
        1 => format!("1 shim process without a pod {one}"),
        _ => format!("{orphans} shim processes without a pod {many}"),
    }
}

fn list_pids(orphans: &[&Orphan], show: impl Fn(&Orphan) -> String) -> String {
    let word = if orphans.len() == 1 { "PID" } else { "PIDs" };
    let pids = list(orphans, SHOWN_PROCESSES, |orphan| show(orphan));
    format!("{word} {pids}")
}

fn list<T>(items: &[T], most: usize, show: impl Fn(&T) -> String) -> String {
    let shown: Vec<String> = items.iter().take(most).map(show).collect();
    let shown = shown.join(", ");
    match items.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
