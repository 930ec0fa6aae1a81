//! Changes one host. [`install`], [`uninstall`], their dry runs and [`doctor`] go one path: open the host, recover an interrupted change,
//! inspect, plan, act, report. A dry run and [`doctor`] leave out the steps that change the host. Never talks to a cluster.
//!
//! [`install`] and [`uninstall`] always return a report.

pub mod artifact;
pub mod containerd;
pub mod distro;
mod dry_run;
mod error;
pub mod host;
pub mod inspect;
mod options;
pub mod plan;
pub mod report;
pub mod state;
pub mod transaction;

use std::path::Path;

use tracing::warn;

pub use dry_run::{Preview, preview_install, preview_uninstall};
pub use error::Error;
use host::HostRoot;
pub use host::Target;
use inspect::HostFacts;
use inspect::verify_cache::{Artifacts, VerifyCache};
use options::Host;
pub use options::{HostOptions, InstallOptions, RequestSource, UninstallOptions};
use plan::{Goal, HostPlan, decide};
use report::doctor::{Diagnosis, LeftoverFiles};
use report::{
    add_host_info, add_plan_result, add_restarts, refused, report_failure, report_unchanged,
    sanitize,
};
use state::{JOURNAL_FILE, OwnedHandler, StateAfter};
use transaction::interrupts::Interrupts;
use transaction::recovery::{gather_after, recover};
use transaction::resolve::{ArtifactOptions, Resolved, resolve};
use transaction::{Failure, perform};

use crate::handoff::{FetchResult, Outcome, Problem, ProvisionReport, ShimRequest};

/// Fetches the artifacts of a request into `out`, for a later [`install`]. Touches no host.
///
/// # Errors
/// When the request, `out` or the certificate authorities can't be used. A shim that can't be fetched has its reason in its result.
pub async fn fetch(
    source: &RequestSource,
    out: &Path,
    ca_file: Option<&Path>,
) -> Result<Vec<FetchResult>, Error> {
    let request = source.read()?;
    Ok(artifact::fetch::fetch(&request.shims, out, ca_file).await?)
}

/// Makes the host carry the requested shims. The report holds the result, whatever happens.
pub async fn install(options: InstallOptions) -> ProvisionReport {
    let mut report = ProvisionReport::new(Outcome::Refused);
    let request = match options.source.read() {
        Ok(request) => request,
        Err(error) => return sanitize(refused(report, Problem::new(&error, error.help()))),
    };
    report.request_digest = Some(request.digest());
    report.node_uid.clone_from(&request.node_uid);
    let host = match Host::open(&options.host) {
        Ok(host) => host,
        Err(error) => return sanitize(refused(report, Problem::new(&error, error.help()))),
    };
    let artifacts = ArtifactOptions {
        directory: options.artifacts.as_deref(),
        ca_file: options.ca_file.as_deref(),
    };
    let resolved = async |facts: &HostFacts| {
        let mut resolved = resolve(&host.root, artifacts, &request, facts).await?;
        let binaries = std::mem::take(&mut resolved.binaries);
        Ok((options.goal(&request, binaries), resolved))
    };
    let changed = change(&host, &options.interrupts, report, &request.shims, resolved);
    sanitize(changed.await)
}

/// Removes shims from the host. The report holds the result, whatever happens.
pub async fn uninstall(options: UninstallOptions) -> ProvisionReport {
    let report = ProvisionReport::new(Outcome::Refused);
    let host = match Host::open(&options.host) {
        Ok(host) => host,
        Err(error) => return sanitize(refused(report, Problem::new(&error, error.help()))),
    };
    let resolved = async |_: &HostFacts| Ok((options.goal(), Resolved::default()));
    let changed = change(&host, &options.interrupts, report, &[], resolved);
    sanitize(changed.await)
}

/// Lists the shims of a host, their owners, and the faults of the host. A host that can't be read is one finding.
pub async fn doctor(options: &HostOptions) -> Diagnosis {
    let diagnosed = async {
        let host = Host::open(options)?;
        let mut facts = host.inspect().await?;
        facts.hash_binaries(&host.root)?;
        let leftover_files = LeftoverFiles {
            locked: host.root.is_locked()?,
            journal: host.root.exists(JOURNAL_FILE)?,
            temporary_files: transaction::cleanup::temporary_files(&host.root, &facts)?,
        };
        Ok::<_, Error>(report::doctor::examine(&facts, &leftover_files))
    };
    diagnosed.await.unwrap_or_else(|error| {
        report::doctor::failed_inspection(&Problem::new(&error, error.help()))
    })
}

/// Changes the host and adds the result to the report. `goal` says what the host is to carry, and which artifacts that takes.
async fn change(
    host: &Host<'_>,
    interrupts: &Interrupts,
    mut report: ProvisionReport,
    shims: &[ShimRequest],
    goal: impl AsyncFnOnce(&HostFacts) -> Result<(Goal, Resolved), transaction::Error>,
) -> ProvisionReport {
    let HostOptions {
        root: _,
        config: _,
        target,
        allow_pod_restarts,
    } = *host.options;
    let root = &host.root;
    let locked = async { Ok(root.lock(target).await?) };
    let lock = match interrupts.run_unless_interrupted(locked).await.flatten() {
        Ok(lock) => lock,
        Err(error) => return report_failure(report, Failure::Refused(error)),
    };
    VerifyCache::clean(root);
    // A change that a former run left half done is undone or finished, and no signal cuts that off.
    let recovered = match recover(root, target, allow_pod_restarts).await {
        Ok(recovered) => recovered,
        Err(failure) => return report_failure(report, failure),
    };
    let inspected = async {
        let facts = match recovered {
            Some(_) => gather_after(root, host.config, target).await?,
            None => host.inspect().await?,
        };
        Ok(facts)
    };
    if let Some(tally) = recovered {
        report.changed = true;
        add_restarts(&mut report, tally);
    }
    let facts = match interrupts.run_unless_interrupted(inspected).await.flatten() {
        Ok(facts) => facts,
        Err(error) => return report_failure(report, Failure::Refused(error)),
    };
    add_host_info(&mut report, &facts);
    let (mut goal, resolved) = match interrupts
        .run_unless_interrupted(goal(&facts))
        .await
        .flatten()
    {
        Ok(goal) => goal,
        Err(error) => {
            let report = report_failure(report, Failure::Refused(error));
            return report_unchanged(report, &facts, shims);
        }
    };
    let carried_out = loop {
        let plan = match decide(&facts, &goal) {
            Ok(plan) => plan,
            Err(error) => break Err(Failure::Refused(error.into())),
        };
        if plan.is_empty() {
            break Ok((plan, None));
        }
        match perform(root, &facts, &plan, &resolved.sources, interrupts).await {
            Ok(done) => break Ok((plan, Some(done))),
            // A binary that does not run on the host costs its shim, and no other one.
            Err(Failure::Refused(transaction::Error::Unusable(unusable)))
                if goal.drop_binaries(&unusable) => {}
            Err(failure) => break Err(failure),
        }
    };
    let plan = match carried_out {
        Ok((mut plan, done)) => {
            if let Some(done) = done {
                plan.add_draining(done.draining);
                report.changed = true;
                add_restarts(&mut report, done.tally);
            }
            plan
        }
        Err(failure) => {
            let report = report_failure(report, failure);
            return report_unchanged(report, &facts, shims);
        }
    };
    record_verified(root, &facts, &plan, resolved.artifacts);
    add_plan_result(&mut report, &facts, &plan);
    drop(lock);
    if report.changed
        && let Some(name) = interrupts.try_received().await
    {
        report.notes.push(format!(
            "{name} came after the change had taken effect, so the change was carried out"
        ));
    }
    report
}

/// Records the files that this run hashed, for the next run. Best effort: without the record, the next run hashes again.
fn record_verified(root: &HostRoot, facts: &HostFacts, plan: &HostPlan, artifacts: Artifacts) {
    let state = match &plan.state {
        StateAfter::Write(state) => state,
        StateAfter::Keep if !facts.state.is_empty() => &facts.state,
        StateAfter::Keep | StateAfter::Remove => return,
    };
    let wanted = state.handlers.values().chain(state.draining.values());
    let wanted = wanted.filter_map(OwnedHandler::sha256);
    let verified = wanted
        .filter(|sha256| facts.stored.contains(sha256) || plan.store.contains(sha256))
        .collect();
    let legacy_binaries = facts.legacy.binaries.iter();
    let legacy_binaries = legacy_binaries
        .filter(|(path, _)| {
            !plan.symlinks.contains_key(*path) && !plan.legacy_cleanup.files.contains(path)
        })
        .filter_map(|(path, legacy_binary)| Some((path.clone(), legacy_binary.verified.clone()?)))
        .collect();
    let recorded = VerifyCache::record(
        root,
        &facts.install_paths,
        &verified,
        artifacts,
        legacy_binaries,
    );
    if let Err(error) = recorded {
        warn!(%error, "failed to write the verification cache: the next run hashes all binaries again");
    }
}
