//! Changes one host: gather facts, decide, carry out, report. Never talks to a cluster and never names the controller.
//!
//! [`install`] and [`uninstall`] always answer with a report; [`fetch`] and [`doctor`] change no host.

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

use std::collections::BTreeMap;
use std::path::Path;

pub use dry_run::{Preview, preview_install, preview_uninstall};
pub use error::Error;
use host::HostRoot;
use inspect::verify_cache::{Artifacts, Stamps};
use inspect::{HostFacts, gather};
use options::config_path;
pub use options::{InstallOptions, UninstallOptions, Wanted};
use plan::{HostPlan, decide};
use report::doctor::Traces;
use report::{as_before, conclude, count, describe, failed, publish, unhappy};
use state::{JOURNAL_FILE, StateAfter};
use tracing::warn;
use transaction::interrupts::Interrupts;
use transaction::recovery::{gather_after, recover};
use transaction::resolve::{Prepared, prepare};
use transaction::{Failure, perform};

use crate::handoff::{FetchResult, Outcome, ProvisionReport, ShimRequest};

/// Fetches what the request names into `out`, for a later [`install`]. Touches no host.
///
/// # Errors
/// When the request, `out` or the certificate authorities can't be used. A shim that can't be fetched has its reason in its result.
pub async fn fetch(
    wanted: &Wanted,
    out: &Path,
    ca_file: Option<&Path>,
) -> Result<Vec<FetchResult>, Error> {
    let request = wanted.read()?;
    Ok(artifact::fetch::fetch(&request.shims, out, ca_file).await?)
}

/// Makes the host carry what is wanted. Whatever happens is in the report.
pub async fn install(options: InstallOptions) -> ProvisionReport {
    let request = match options.wanted.read() {
        Ok(request) => request,
        Err(error) => return failed(ProvisionReport::new(Outcome::Refused), &error),
    };
    let mut report = ProvisionReport::new(Outcome::Refused);
    report.request_digest = request.digest();
    report.node_uid.clone_from(&request.node_uid);
    let host = match HostRoot::open(&options.host_root) {
        Ok(host) => host,
        Err(error) => return failed(report, &error.into()),
    };
    let config = match config_path(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return failed(report, &error),
    };
    let change = Change {
        host: &host,
        config,
        offline: options.offline,
        allow_pod_restarts: options.allow_pod_restarts,
        interrupts: &options.interrupts,
    };
    let report = change
        .run(report, &request.shims, async |facts| {
            prepare(&host, &options, &request, facts).await
        })
        .await;
    publish(report)
}

/// Takes shims off the host. Whatever happens is in the report.
pub async fn uninstall(options: UninstallOptions) -> ProvisionReport {
    let report = ProvisionReport::new(Outcome::Refused);
    let host = match HostRoot::open(&options.host_root) {
        Ok(host) => host,
        Err(error) => return failed(report, &error.into()),
    };
    let config = match config_path(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return failed(report, &error),
    };
    let change = Change {
        host: &host,
        config,
        offline: options.offline,
        allow_pod_restarts: options.allow_pod_restarts,
        interrupts: &options.interrupts,
    };
    let want = options.want();
    let report = change
        .run(report, &[], async |_| {
            Ok(Prepared {
                want,
                sources: BTreeMap::new(),
                artifacts: Artifacts::new(),
                _downloads: None,
            })
        })
        .await;
    publish(report)
}

/// What is installed on a host, by whom, and what is wrong with it; that its files can't be read is one finding. With `offline` nothing
/// of it is expected to run.
pub async fn doctor(
    host_root: &Path,
    config: Option<&Path>,
    offline: bool,
) -> report::doctor::Diagnosis {
    match diagnose(host_root, config, offline).await {
        Ok(diagnosis) => diagnosis,
        Err(error) => report::doctor::unseen(&error),
    }
}

async fn diagnose(
    host_root: &Path,
    config: Option<&Path>,
    offline: bool,
) -> Result<report::doctor::Diagnosis, Error> {
    let host = HostRoot::open(host_root)?;
    let mut facts = gather(&host, config_path(config)?, offline).await?;
    facts.hash_binaries(&host)?;
    let traces = Traces {
        offline,
        locked: host.is_locked()?,
        journal: host.exists(JOURNAL_FILE)?,
        leftovers: transaction::cleanup::leftovers(&host, &facts)?,
    };
    Ok(report::doctor::examine(&facts, &traces))
}

/// One change of one host.
struct Change<'a> {
    host: &'a HostRoot,
    config: Option<&'a str>,
    offline: bool,
    allow_pod_restarts: bool,
    interrupts: &'a Interrupts,
}

impl Change<'_> {
    async fn run(
        &self,
        mut report: ProvisionReport,
        shims: &[ShimRequest],
        want: impl AsyncFnOnce(&HostFacts) -> Result<Prepared, Error>,
    ) -> ProvisionReport {
        let lock = async { Ok(self.host.lock(self.offline).await?) };
        let lock = match self.interrupts.cut_off(lock).await.flatten() {
            Ok(lock) => lock,
            Err(error) => return failed(report, &error),
        };
        Stamps::clean(self.host);
        // What a former run left half done is undone or finished to its end.
        let gathered = match recover(self.host, self.offline, self.allow_pod_restarts).await {
            Ok(Some(tally)) => {
                report.changed = true;
                count(&mut report, tally);
                let gathered = gather_after(self.host, self.config, self.offline);
                self.interrupts.cut_off(gathered).await.flatten()
            }
            Ok(None) => {
                let gathered = gather(self.host, self.config, self.offline);
                self.interrupts.cut_off(gathered).await.flatten()
            }
            Err(failure) => return unhappy(report, failure),
        };
        let facts = match gathered {
            Ok(facts) => facts,
            Err(error) => return failed(report, &error),
        };
        describe(&mut report, &facts);
        let Prepared {
            mut want,
            sources,
            artifacts,
            _downloads,
        } = match self.interrupts.cut_off(want(&facts)).await.flatten() {
            Ok(prepared) => prepared,
            Err(error) => return as_before(failed(report, &error), &facts, shims, self.offline),
        };
        let carried_out = loop {
            let plan = match decide(&facts, &want) {
                Ok(plan) => plan,
                Err(error) => break Err(Failure::Refused(error.into())),
            };
            if plan.is_empty() {
                break Ok((plan, None));
            }
            match perform(self.host, &facts, &plan, &sources, self.interrupts).await {
                Ok(done) => break Ok((plan, Some(done))),
                // One that doesn't run takes none of the others with it.
                Err(Failure::Refused(Error::Unusable(unusable)))
                    if want.drop_binaries(&unusable) => {}
                Err(failure) => break Err(failure),
            }
        };
        let plan = match carried_out {
            Ok((mut plan, done)) => {
                if let Some(done) = done {
                    plan.stays(done.late);
                    report.changed = true;
                    count(&mut report, done.tally);
                }
                plan
            }
            Err(failure) => {
                let report = unhappy(report, failure);
                return as_before(report, &facts, shims, self.offline);
            }
        };
        self.remember(&facts, &plan, artifacts);
        conclude(&mut report, &facts, &plan, self.offline);
        drop(lock);
        if report.changed
            && let Some(name) = self.interrupts.come().await
        {
            report.notes.push(format!(
                "{name} came after the change had taken effect, so the change was carried out"
            ));
        }
        report
    }

    /// Records what was hashed in this run, for the next. Best effort: without it the next run hashes again.
    fn remember(&self, facts: &HostFacts, plan: &HostPlan, artifacts: Artifacts) {
        let state = match &plan.state {
            StateAfter::Write(state) => state,
            StateAfter::Keep if !facts.state.is_empty() => &facts.state,
            StateAfter::Keep | StateAfter::Remove => return,
        };
        let wanted = state.handlers.values().chain(state.draining.values());
        let wanted = wanted.filter_map(|owned| owned.sha256().cloned());
        let verified = wanted
            .filter(|sha256| facts.stored.contains(sha256) || plan.store.contains(sha256))
            .collect();
        let adopted = facts.inheritance.binaries.iter();
        let adopted = adopted
            .filter(|(path, _)| {
                !plan.links.contains_key(*path) && !plan.leftovers.files.contains(path)
            })
            .filter_map(|(path, standing)| Some((path.clone(), standing.verified.clone()?)))
            .collect();
        let recorded = Stamps::record(self.host, &facts.places, &verified, artifacts, adopted);
        if let Err(error) = recorded {
            warn!(%error, "what was verified is not remembered");
        }
    }
}
