//! Formats reports, plans and diagnoses for a terminal. Pure.

use std::fmt::Write as _;

use similar::TextDiff;

use super::doctor::{Condition, Diagnosis};
use crate::handoff::{FileAction, HandlerReport, Outcome, ProvisionReport, printable};
use crate::installer::plan::{ConfigChange, HostPlan};
use crate::installer::state::{InstallPaths, STATE_FILE, StateAfter};

/// Appends a line to a `String`, which can't fail.
macro_rules! line {
    ($text:expr, $($argument:tt)*) => {{
        let _ = writeln!($text, $($argument)*);
    }};
}

/// A report for people: the outcome, a line per handler and file, the reason and the help.
#[must_use]
pub fn report_text(report: &ProvisionReport) -> String {
    let mut text = String::new();
    let outcome = match report.result {
        Outcome::Applied => "applied",
        Outcome::Partial => "partly applied",
        Outcome::Unchanged => "nothing to do: the host is as requested",
        Outcome::Refused => "refused: nothing was changed",
        Outcome::RolledBack => "failed and rolled back: the host is as before",
        Outcome::Broken => "failed: an administrator has to repair the host",
    };
    line!(
        text,
        "{outcome} (restarts of containerd: {})",
        report.restarts
    );
    for handler in &report.handlers {
        let served = match (handler.served, &handler.reason) {
            (true, _) => "served",
            (false, Some(_)) => "not served",
            // containerd was not asked (`--offline`).
            (false, None) => "not checked",
        };
        let path = handler.path.iter().map(|path| format!(" {path}"));
        let path: String = path.collect();
        line!(text, "  {} {served}{path}", subject(handler));
        // The reason of the report is the one of its first failed handler.
        let of_report = report.reason.as_deref().unwrap_or_default();
        let reason = handler.reason.as_deref();
        if let Some(reason) = reason.filter(|reason| !of_report.ends_with(reason)) {
            line!(text, "    reason: {reason}");
            if let Some(help) = &handler.remedy {
                line!(text, "    help: {help}");
            }
        }
    }
    for file in &report.files {
        let action = match file.action {
            FileAction::Edited => "edited",
            FileAction::Created => "created",
            FileAction::Removed => "removed",
        };
        line!(text, "  {action} {}", file.path);
    }
    for note in &report.notes {
        line!(text, "note: {note}");
    }
    if let Some(reason) = &report.reason {
        line!(text, "reason: {reason}");
    }
    if let Some(remedy) = &report.remedy {
        line!(text, "help: {remedy}");
    }
    text
}

/// The handler, or the shim where the shim has no handler: it was to be kept and is not on the host.
fn subject(report: &HandlerReport) -> &str {
    if report.handler.is_empty() {
        &report.shim
    } else {
        &report.handler
    }
}

/// A plan for people, with a unified diff of the configuration.
#[must_use]
pub fn plan_text(plan: &HostPlan, install_paths: &InstallPaths, unit: &str) -> String {
    let mut text = String::new();
    if plan.is_empty() {
        let has_no_problem = plan.handlers.iter().all(|it| it.reason.is_none());
        line!(
            text,
            "{}",
            if has_no_problem {
                "nothing to do: the host is as requested"
            } else {
                "nothing would be changed"
            }
        );
    }
    for path in &plan.new_directories {
        line!(text, "create the directory {path}");
    }
    for path in plan.store_paths(install_paths) {
        line!(text, "store the binary {path}");
    }
    for (path, sha256) in &plan.symlinks {
        line!(text, "point the symlink {path} to the binary {sha256}");
    }
    for change in &plan.config {
        text.push_str(&diff(change));
    }
    if plan.restart {
        line!(text, "restart {unit} once");
    }
    for handler in &plan.prove {
        line!(text, "run and remove a pod sandbox of handler {handler}");
    }
    for path in plan.obsolete_files.iter().chain(&plan.legacy_cleanup.files) {
        line!(text, "remove {path}");
    }
    for path in plan
        .obsolete_directories
        .iter()
        .chain(&plan.legacy_cleanup.directories)
        .rev()
    {
        line!(text, "remove the directory {path} if it is empty");
    }
    for lock in &plan.legacy_cleanup.locks {
        line!(text, "remove entries from {}", lock.path);
    }
    match &plan.state {
        StateAfter::Write(_) => line!(text, "write {STATE_FILE}"),
        StateAfter::Remove => line!(text, "remove {STATE_FILE}"),
        StateAfter::Keep => {}
    }
    for note in &plan.notes {
        line!(text, "note: {note}");
    }
    for handler in &plan.handlers {
        if let Some(reason) = &handler.reason {
            line!(text, "{}: {}", subject(handler), printable(reason));
            if let Some(help) = &handler.remedy {
                line!(text, "  help: {}", printable(help));
            }
        }
    }
    text
}

/// A change of a configuration file as a unified diff.
pub(crate) fn diff(change: &ConfigChange) -> String {
    let (before, after) = (change.before.as_deref(), change.after.as_deref());
    let name = |text: Option<&str>| {
        if text.is_some() {
            change.path.as_str()
        } else {
            "/dev/null"
        }
    };
    TextDiff::from_lines(before.unwrap_or_default(), after.unwrap_or_default())
        .unified_diff()
        .header(name(before), name(after))
        .to_string()
}

/// A diagnosis for people.
#[must_use]
pub fn diagnosis_text(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    let release = diagnosis
        .containerd
        .as_deref()
        .unwrap_or("of unknown release");
    let distro = diagnosis
        .distro
        .as_deref()
        .unwrap_or("an unknown distribution");
    line!(text, "containerd {release} on {distro}");
    for installed in &diagnosis.handlers {
        let condition = match installed.condition {
            Condition::Served => "served",
            Condition::Reserved => "reserved",
            Condition::Unserved => "not served",
            Condition::Unknown => "not checked",
            Condition::Leaving => "leaving",
        };
        let (handler, shim, owner) = (&installed.handler, &installed.shim, installed.owner);
        let release = installed.release.iter().map(|it| format!(", release {it}"));
        let sha256 = installed.sha256.iter().map(|it| format!(", sha256 {it}"));
        line!(
            text,
            "  {handler} {condition}, shim {shim:?}, owner {owner}, sandboxes: {}, {}{}",
            installed.sandboxes,
            installed.path,
            release.chain(sha256).collect::<String>()
        );
    }
    if diagnosis.handlers.is_empty() {
        line!(text, "no shims of Farrier");
    }
    for note in &diagnosis.notes {
        line!(text, "note: {note}");
    }
    for pid in &diagnosis.ended {
        line!(text, "ended: shim process {pid} and its children");
    }
    for finding in &diagnosis.findings {
        line!(text, "problem: {}", finding.problem);
        line!(text, "help: {}", finding.remedy);
    }
    if diagnosis.healthy {
        line!(text, "healthy");
    }
    text
}
