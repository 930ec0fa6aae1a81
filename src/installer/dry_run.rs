//! What a change would do, decided as the change itself decides it. Changes not one byte of the host, the lock and the state file
//! included.

use crate::handoff::{Outcome, ProvisionReport};
use crate::installer::error::Error;
use crate::installer::host::HostRoot;
use crate::installer::inspect::{HostFacts, gather};
use crate::installer::options::{InstallOptions, UninstallOptions, config_path};
use crate::installer::plan::{Goal, decide};
use crate::installer::report::text;
use crate::installer::report::{conclude, describe, failed, publish};
use crate::installer::state::JOURNAL_FILE;
use crate::installer::transaction::resolve::prepare;

/// A change that was decided and not carried out.
#[derive(Debug)]
pub struct Preview {
    /// As it would be reported, with a diff of each configuration file; but nothing is changed.
    pub report: ProvisionReport,
    /// What would be done, for people, with the same diffs.
    pub text: String,
}

impl Preview {
    fn new(mut report: ProvisionReport, text: Result<String, Error>) -> Self {
        if let Err(error) = &text {
            report = failed(report, error);
        }
        let report = publish(report);
        let text = text.unwrap_or_else(|_| text::report_text(&report));
        Self { report, text }
    }
}

/// Decides what [`install`](super::install) would do.
pub async fn preview_install(options: &InstallOptions) -> Preview {
    let mut report = ProvisionReport::new(Outcome::Refused);
    let text = try_install(options, &mut report).await;
    Preview::new(report, text)
}

/// Decides what [`uninstall`](super::uninstall) would do.
pub async fn preview_uninstall(options: &UninstallOptions) -> Preview {
    let mut report = ProvisionReport::new(Outcome::Refused);
    let text = try_uninstall(options, &mut report).await;
    Preview::new(report, text)
}

async fn try_install(
    options: &InstallOptions,
    report: &mut ProvisionReport,
) -> Result<String, Error> {
    let request = options.wanted.read()?;
    report.request_digest = request.digest();
    report.node_uid.clone_from(&request.node_uid);
    let host = HostRoot::open(&options.host_root)?;
    let config = config_path(options.config.as_deref())?;
    let facts = gather(&host, config, options.offline).await?;
    describe(report, &facts);
    let prepared = prepare(&host, options, &request, &facts).await?;
    foresee(&host, &facts, &prepared.want, report)
}

async fn try_uninstall(
    options: &UninstallOptions,
    report: &mut ProvisionReport,
) -> Result<String, Error> {
    let host = HostRoot::open(&options.host_root)?;
    let config = config_path(options.config.as_deref())?;
    let facts = gather(&host, config, options.offline).await?;
    describe(report, &facts);
    foresee(&host, &facts, &options.want(), report)
}

fn foresee(
    host: &HostRoot,
    facts: &HostFacts,
    want: &Goal,
    report: &mut ProvisionReport,
) -> Result<String, Error> {
    let mut plan = decide(facts, want)?;
    if host.exists(JOURNAL_FILE)? {
        let words = "a change of this host was interrupted: a run undoes or finishes that first, so its plan may be another";
        plan.notes.push(words.to_owned());
    }
    conclude(report, facts, &plan, want.offline);
    report.restarts = u32::from(plan.restart);
    for (file, change) in report.files.iter_mut().zip(&plan.config) {
        file.diff = Some(text::diff(change));
    }
    Ok(text::plan_text(&plan, &facts.places, &facts.unit()))
}
