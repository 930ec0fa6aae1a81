//! Says why the binary of a handler is in use: by pods, and by shim processes that outlived their pods. Pure.

use std::collections::BTreeMap;

use crate::handoff::Problem;
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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Users<'a> {
    /// The pods of each handler.
    pub(crate) pods: &'a BTreeMap<String, Vec<String>>,
    /// The shim processes without a pod.
    pub(crate) orphans: &'a [Orphan],
    /// The paths of Farrier's binaries.
    pub(crate) install_paths: &'a InstallPaths,
}

impl<'a> Users<'a> {
    /// The users that were found on a host.
    pub(crate) fn of(facts: &'a HostFacts) -> Self {
        Self {
            pods: &facts.in_use,
            orphans: facts.orphans.as_deref().unwrap_or_default(),
            install_paths: &facts.install_paths,
        }
    }

    /// Why the binary of a handler stays; `None` if it is not in use.
    pub(crate) fn reason(&self, handler: &str, owned: Option<&OwnedHandler>) -> Option<Problem> {
        if let Some(pods) = self.pods.get(handler).filter(|pods| !pods.is_empty()) {
            return Some(used_by(pods));
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

fn used_by(pods: &[String]) -> Problem {
    let (number, pods) = (pods.len(), list(pods, SHOWN_PODS, String::clone));
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
