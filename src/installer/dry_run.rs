//! The plan of a change, made in the same way as for the change itself. Changes not one byte of the host, the lock and the state file
//! included.

use crate::handoff::{Outcome, Problem, ProvisionReport};
use crate::installer::inspect::HostFacts;
use crate::installer::options::{Host, InstallOptions, UninstallOptions};
use crate::installer::plan::{Goal, decide};
use crate::installer::report::text;
use crate::installer::report::{add_host_info, add_plan_result, refused, report_failure, sanitize};
use crate::installer::state::JOURNAL_FILE;
use crate::installer::transaction::resolve::{ArtifactOptions, resolve};
use crate::installer::transaction::{Error, Failure};

/// A change that was planned and not made.
#[derive(Debug)]
pub struct Preview {
    /// The report of the change, with a diff of each configuration file. Nothing is changed.
    pub report: ProvisionReport,
    /// The plan for people, with the same diffs.
    pub text: String,
}

/// Plans an [`install`](super::install).
pub async fn preview_install(options: &InstallOptions) -> Preview {
    let mut report = ProvisionReport::new(Outcome::Refused);
    let request = match options.source.read() {
        Ok(request) => request,
        Err(error) => return refusal(refused(report, Problem::new(&error, error.help()))),
    };
    report.request_digest = Some(request.digest());
    report.node_uid.clone_from(&request.node_uid);
    let host = match Host::open(&options.host) {
        Ok(host) => host,
        Err(error) => return refusal(refused(report, Problem::new(&error, error.help()))),
    };
    let artifacts = ArtifactOptions {
        directory: options.artifacts.as_deref(),
        ca_file: options.ca_file.as_deref(),
    };
    let goal = async |facts: &HostFacts| {
        let resolved = resolve(&host.root, artifacts, &request, facts).await?;
        Ok(options.goal(&request, resolved.binaries))
    };
    preview(&host, report, goal).await
}

/// Plans an [`uninstall`](super::uninstall).
pub async fn preview_uninstall(options: &UninstallOptions) -> Preview {
    let report = ProvisionReport::new(Outcome::Refused);
    match Host::open(&options.host) {
        Ok(host) => preview(&host, report, async |_| Ok(options.goal())).await,
        Err(error) => refusal(refused(report, Problem::new(&error, error.help()))),
    }
}

async fn preview(
    host: &Host<'_>,
    mut report: ProvisionReport,
    goal: impl AsyncFnOnce(&HostFacts) -> Result<Goal, Error>,
) -> Preview {
    match plan(host, &mut report, goal).await {
        Ok(text) => Preview {
            report: sanitize(report),
            text,
        },
        Err(error) => refusal(report_failure(report, Failure::Refused(error))),
    }
}

fn refusal(report: ProvisionReport) -> Preview {
    let report = sanitize(report);
    let text = text::report_text(&report);
    Preview { report, text }
}

async fn plan(
    host: &Host<'_>,
    report: &mut ProvisionReport,
    goal: impl AsyncFnOnce(&HostFacts) -> Result<Goal, Error>,
) -> Result<String, Error> {
    let facts = host.inspect().await?;
    add_host_info(report, &facts);
    let mut plan = decide(&facts, &goal(&facts).await?)?;
    if host.root.exists(JOURNAL_FILE)? {
        let note = "a change of this host was interrupted: the next run undoes or finishes it first, so its plan may differ";
        plan.notes.push(note.to_owned());
    }
    add_plan_result(report, &facts, &plan);
    report.restarts = u32::from(plan.restart);
    for (file, change) in report.files.iter_mut().zip(&plan.config) {
        file.diff = Some(text::diff(change));
    }
    Ok(text::plan_text(&plan, &facts.install_paths, &facts.unit()))
}
