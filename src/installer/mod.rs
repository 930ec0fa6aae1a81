//! Changes one host: [`install`], [`uninstall`] and their dry runs share the function `run`, and [`doctor`] only inspects. Never connects
//! to a cluster.

pub mod artifact;
pub mod containerd;
pub mod distro;
#[cfg(test)]
mod fixtures;
pub mod host;
pub mod inspect;
mod options;
pub mod plan;
pub mod report;
pub mod state;
pub mod transaction;

use std::borrow::Cow;
use std::path::Path;

use tracing::{debug, warn};

pub use artifact::fetch::FetchOptions;
use containerd::orphans;
use host::HostRoot;
pub use host::Target;
use host::lock::Lock;
use inspect::HostFacts;
use inspect::os::directory_owner_problem;
use inspect::verify_cache::{Artifacts, VerifyCache};
use options::Host;
pub use options::{HostOptions, InstallOptions, Mode, RequestSource, UninstallOptions};
use plan::config_edit::found_problems;
use plan::{Goal, HostPlan, decide};
use report::doctor::{Diagnosis, LeftoverFiles};
use report::text;
use report::{
    add_host_info, add_pending_changes, add_plan_result, add_recovery, add_restarts, refused,
    report_failure, report_unchanged, sanitize,
};
use state::{JOURNAL_FILE, OwnedHandler, STATE_FILE, STATE_LIMIT, State, StateAfter};
use transaction::interrupts::Interrupts;
use transaction::journal::Journal;
use transaction::recovery::{Allowed, Recovered, gather_after, recover};
use transaction::rehearsal::{EarlyRehearsal, Rehearsed, rehearse};
use transaction::resolve::{ArtifactOptions, Resolved, resolve};
use transaction::validate_config;
use transaction::{Failure, perform};

use crate::handoff::{
    FetchResult, Outcome, Problem, ProvisionReport, ProvisionRequest, Sha256Digest,
};

/// Why a fetch, an inspection or a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options can't be used.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A file of the host can't be read.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The host can't be inspected.
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    /// Shim processes can't be ended.
    #[error(transparent)]
    Orphans(#[from] orphans::Error),
    /// Artifacts can't be fetched.
    #[error(transparent)]
    Artifact(#[from] artifact::fetch::Error),
    /// Traces of an earlier change can't be read.
    #[error(transparent)]
    Transaction(#[from] transaction::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Options(error) => error.help(),
            Self::Host(error) => error.help(),
            Self::Inspect(error) => error.help(),
            Self::Orphans(error) => error.help(),
            Self::Artifact(error) => error.help(),
            Self::Transaction(error) => error.help(),
        }
    }

    /// Whether the options are wrong on every host.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Options(error) if error.is_usage())
    }
}

/// Fetches the artifacts of a request into `out`, for a later [`install`]. Touches no host.
///
/// # Errors
/// When the request, `out` or the certificate authorities can't be used. If a shim can't be fetched, its result has the reason.
pub async fn fetch(
    source: &RequestSource,
    out: &Path,
    options: FetchOptions<'_>,
) -> Result<Vec<FetchResult>, Error> {
    let request = source.read(options.allow_link_local)?;
    Ok(artifact::fetch::fetch(&request.shims, out, options).await?)
}

/// The result of a run.
#[derive(Debug)]
pub struct RunResult {
    /// The report; after a dry run, with a diff of each configuration file.
    pub report: ProvisionReport,
    /// The same for people: the report, or the plan of a dry run with the same diffs.
    pub text: String,
    /// The request or another option is wrong on every host.
    is_usage_error: bool,
}

/// Exit status of a wrong use of the command line, as clap's own.
pub const USAGE: u8 = 2;

impl RunResult {
    /// The exit status of the command.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        if self.is_usage_error {
            USAGE
        } else {
            self.report.result.exit_status()
        }
    }
}

/// Installs the requested shims on the host. Every outcome, also a failure, is in the report.
pub async fn install(options: &InstallOptions, mode: Mode) -> RunResult {
    let mut report = report_of(mode);
    let request = match options.read_request() {
        Ok(request) => request,
        Err(error) => return unusable(report, &error),
    };
    report.request_digest = Some(request.digest());
    report.node_uid.clone_from(&request.node_uid);
    let artifacts = ArtifactOptions {
        directory: options.artifacts.as_deref(),
        fetch: FetchOptions {
            ca_file: options.ca_file.as_deref(),
            allow_link_local: options.allow_link_local,
            // `resolve` names the CPU of the host.
            cpu: None,
        },
    };
    let goal = async |root: &HostRoot, facts: &HostFacts| {
        let mut resolved = resolve(root, artifacts, &request, facts).await?;
        let binaries = std::mem::take(&mut resolved.binaries);
        Ok((options.goal(&request, binaries), resolved))
    };
    // The configuration depends on the handlers, and not on the binaries: any digest leads to the same one.
    let names = request.shims.iter().map(|shim| shim.name.clone());
    let binaries = names.map(|name| (name, Ok(Sha256Digest::from_bytes([0; 32]))));
    let assumed = options.goal(&request, binaries.collect());
    let (host, interrupts) = (&options.host, &options.interrupts);
    run(
        host,
        mode,
        interrupts,
        report,
        Some(&request),
        assumed,
        goal,
    )
    .await
}

/// The report at the start of a run.
fn report_of(mode: Mode) -> ProvisionReport {
    ProvisionReport {
        dry_run: mode == Mode::DryRun,
        ..ProvisionReport::new(Outcome::Refused)
    }
}

/// Removes shims from the host. Every outcome, also a failure, is in the report.
pub async fn uninstall(options: &UninstallOptions, mode: Mode) -> RunResult {
    let report = report_of(mode);
    let goal = async |_: &HostRoot, _: &HostFacts| Ok((options.goal(), Resolved::default()));
    let (host, interrupts) = (&options.host, &options.interrupts);
    run(host, mode, interrupts, report, None, options.goal(), goal).await
}

/// Lists the shims of a host, their owners, and the faults of the host. A host that can't be read is one finding.
pub async fn doctor(options: &HostOptions) -> Diagnosis {
    diagnose(options, false).await
}

/// As [`doctor`], after the shim processes that outlived their pods have been ended.
pub async fn end_orphans(options: &HostOptions) -> Diagnosis {
    diagnose(options, true).await
}

async fn diagnose(options: &HostOptions, ends_orphans: bool) -> Diagnosis {
    let diagnosed = async {
        let host = Host::open(options)?;
        let ended = if ends_orphans && options.target == Target::Live {
            end_orphans_of(&host).await
        } else {
            Ok(Vec::new())
        };
        let ended = ended.map_err(|error| Problem::new(&error, error.help()));
        let mut facts = host.inspect().await?;
        facts.hash_binaries(&host.root)?;
        // Also where no change is known: the times of files do not show every change.
        facts.rehearse_present(&host.root).await;
        let journal = Journal::load(&host.root);
        let problem = |error: &transaction::Error| Problem::new(error, error.help());
        let leftover_files = LeftoverFiles {
            locked: host.root.is_locked()?,
            journal: journal.as_ref().is_ok_and(Option::is_some),
            journal_problem: journal.as_ref().err().map(problem),
            temporary_files: transaction::cleanup::temporary_files(&host.root, &facts)?,
        };
        let diagnosis = report::doctor::examine(&facts, &leftover_files);
        Ok::<_, Error>(diagnosis.with_ended(ended))
    };
    diagnosed.await.unwrap_or_else(|error| {
        report::doctor::failed_inspection(&Problem::new(&error, error.help()))
    })
}

/// Ends the shim processes that outlived their pods; returns their PIDs. Holds the lock, so that no change restarts containerd meanwhile.
async fn end_orphans_of(host: &Host<'_>) -> Result<Vec<u32>, Error> {
    let _lock = host.root.lock(Target::Live).await?;
    let facts = host.inspect().await?;
    match &facts.orphans {
        // The diagnosis has the reason.
        Err(_) => return Ok(Vec::new()),
        Ok(orphans) if orphans.is_empty() => return Ok(Vec::new()),
        Ok(_) => {}
    }
    let programs = facts.shim_programs();
    let ended = orphans::end(&host.root, &facts.socket(), &programs).await?;
    Ok(ended.iter().map(|orphan| orphan.process.0).collect())
}

/// The path of every run: lock, recover, inspect, plan, act, report. A dry run leaves out the lock, the recovery and the act. `goal`
/// makes the goal and the artifacts of the goal from the facts; `request` is the request, if there is one, and `assumed` is the goal if all
/// of its binaries can be had.
async fn run(
    options: &HostOptions,
    mode: Mode,
    interrupts: &Interrupts,
    mut report: ProvisionReport,
    request: Option<&ProvisionRequest>,
    assumed: Goal,
    goal: impl AsyncFnOnce(&HostRoot, &HostFacts) -> Result<(Goal, Resolved), transaction::Error>,
) -> RunResult {
    let host = match Host::open(options) {
        Ok(host) => host,
        Err(error) => return unusable(report, &error),
    };
    let begun = match mode {
        // On the heap, as below: every caller would contain these large futures.
        Mode::Change => Box::pin(begin(&host, interrupts, request)).await,
        Mode::DryRun => Ok((None, None)),
    };
    let (lock, recovered) = match begun {
        Ok(begun) => begun,
        Err(failure) => return result(report_failure(report, failure, &[]), None),
    };
    if let Some(Recovered { tally, ended }) = &recovered {
        add_recovery(&mut report, *tally, ended);
    }
    let inspected = Box::pin(async {
        let mut facts = match recovered {
            Some(_) => gather_after(&host.root, host.config, options.target).await?,
            None => host.inspect().await?,
        };
        // A plan without a restart puts no change of others into effect.
        if !decide(&facts, &assumed).is_ok_and(|plan| !plan.restart) {
            facts.rehearse_pending(&host.root).await;
        }
        Ok(facts)
    });
    let facts = match interrupts.run_unless_interrupted(inspected).await.flatten() {
        Ok(facts) => facts,
        Err(error) => return result(report_failure(report, Failure::Refused(error), &[]), None),
    };
    add_host_info(&mut report, &facts);
    debug!(
        distro = facts.distro.id,
        containerd = facts.version.map(tracing::field::display),
        config = facts.config_files.root.path,
        handlers = ?facts.state.handlers.keys(),
        "inspected the host"
    );
    let early = async {
        let plan = decide(&facts, &assumed).ok()?;
        EarlyRehearsal::of(&host.root, &facts, &plan).await
    };
    let goal = async {
        // Before artifacts are fetched.
        plan::check(&facts, &assumed)?;
        goal(&host.root, &facts).await
    };
    let goal = Box::pin(async { futures::join!(goal, early) });
    let text = match plan_and_act(&host, mode, interrupts, &facts, goal, &mut report).await {
        Ok(text) => text,
        Err(failure) => {
            let ending = facts.ending_pods.as_deref().unwrap_or_default();
            let mut report = report_failure(report, failure, ending);
            add_pending_changes(&mut report, &facts);
            return result(report_unchanged(report, &facts, request), None);
        }
    };
    drop(lock);
    if report.changed
        && let Some(name) = interrupts.try_received().await
    {
        report.notes.push(format!(
            "{name} arrived after the change had taken effect, so the change was finished"
        ));
    }
    result(report, text)
}

/// Takes the lock, and undoes or finishes an interrupted change of an earlier run.
async fn begin(
    host: &Host<'_>,
    interrupts: &Interrupts,
    request: Option<&ProvisionRequest>,
) -> Result<(Option<Lock>, Option<Recovered>), Failure> {
    let (root, options) = (&host.root, host.options);
    let locked = async { Ok(root.lock(options.target).await?) };
    let lock = interrupts.run_unless_interrupted(locked).await.flatten();
    let lock = lock.map_err(Failure::Refused)?;
    if let Some(problem) = directories_problem(root, options.target) {
        // Another user may have written the journal, or may replace what a recovery puts back.
        let journal = root.exists(JOURNAL_FILE);
        let journal = journal.map_err(|error| Failure::Refused(error.into()))?;
        let refused = Failure::Refused(plan::Error::Obstacle(problem).into());
        return if journal {
            Err(refused)
        } else {
            Ok((Some(lock), None))
        };
    }
    VerifyCache::clean(root, options.target);
    // No signal interrupts the recovery.
    let requested = request.map(ProvisionRequest::restart_policy);
    let allowed = Allowed {
        pod_restarts: options.allow_pod_restarts,
        policy: options.restart_policy(requested.unwrap_or_default()),
    };
    let recovery = recover(root, options.target, &allowed, interrupts.deadline);
    let recovered = Box::pin(recovery).await?;
    Ok((Some(lock), recovered))
}

/// Why a user other than root could change what a recovery trusts.
fn directories_problem(root: &HostRoot, target: Target) -> Option<Problem> {
    let text = root.read_text(STATE_FILE, STATE_LIMIT).ok().flatten();
    let state = State::from_json(text.as_deref()).unwrap_or_default();
    directory_owner_problem(root, &state.directory, target)
}

/// Makes a plan, carries it out unless this is a dry run, and adds the result to the report. Returns the text of a dry run's plan.
///
/// If binaries do not run on the host, a second plan leaves out the shims of these binaries. The test can't come before the first plan: a
/// binary is tested in the store, a file is written to the store only after the journal names the file, and the journal is made from a plan.
async fn plan_and_act(
    host: &Host<'_>,
    mode: Mode,
    interrupts: &Interrupts,
    facts: &HostFacts,
    goal: impl Future<
        Output = (
            Result<(Goal, Resolved), transaction::Error>,
            Option<EarlyRehearsal>,
        ),
    >,
    report: &mut ProvisionReport,
) -> Result<Option<String>, Failure> {
    let root = &host.root;
    let (resolved, early) = interrupts
        .run_unless_interrupted(goal)
        .await
        .map_err(Failure::Refused)?;
    let (mut goal, resolved) = resolved.map_err(Failure::Refused)?;
    let mut plan = loop {
        let mut plan = decide(facts, &goal).map_err(|error| Failure::Refused(error.into()))?;
        debug!(
            restart = plan.restart,
            config = ?plan.config.iter().map(|change| &change.path).collect::<Vec<_>>(),
            binaries = plan.store.len(),
            symlinks = ?plan.symlinks.keys(),
            leaving = ?plan.leaving.keys(),
            "planned the change"
        );
        // Before the first write: the second containerd needs no binary of the plan.
        let rehearsed = rehearse(root, facts, &plan, early.as_ref());
        let rehearsed = interrupts.run_unless_interrupted(rehearsed).await.flatten();
        let rehearsed = rehearsed.map_err(Failure::Refused)?;
        plan.notes.extend(rehearsed.note());
        if mode == Mode::DryRun && rehearsed == Rehearsed::Passed {
            plan.notes.push(
                "a rehearsal has started containerd on the changed configuration, and its CRI serves all handlers"
                    .to_owned(),
            );
        }
        if mode == Mode::DryRun {
            let previewed = validate_config::preview(root, facts, &plan);
            let previewed = interrupts.run_unless_interrupted(previewed).await.flatten();
            plan.notes.extend(previewed.map_err(Failure::Refused)?);
            break plan;
        }
        if plan.is_empty() {
            break plan;
        }
        // On the heap: every caller would contain this large future.
        let performed = Box::pin(perform(root, facts, &plan, &resolved.sources, interrupts));
        match performed.await {
            Ok(done) => {
                report.changed = true;
                add_restarts(report, done.tally);
                plan.add_draining(done.draining);
                plan.add_taken(&found_problems(facts, &done.taken));
                plan.add_unrecognized(&done.unrecognized);
                break plan;
            }
            Err(Failure::Refused(transaction::Error::Unusable(unusable)))
                if goal.drop_binaries(&unusable) => {}
            Err(failure) => return Err(failure),
        }
    };
    report.unsupported_shims = resolved.for_another_cpu;
    match mode {
        Mode::Change => {
            add_plan_result(report, facts, &plan);
            // A refusal, and a removal that finds nothing to remove, leave all files as they are.
            let is_fulfilled = goal.digest.is_some() && report.result != Outcome::Refused;
            if facts.obstacle.is_none() && (report.changed || is_fulfilled) {
                record_verified(root, facts, &plan, resolved.artifacts);
            }
            Ok(None)
        }
        Mode::DryRun => {
            let journal = root.exists(JOURNAL_FILE);
            if journal.map_err(|error| Failure::Refused(error.into()))? {
                let note = "a change of this host was interrupted: the next run undoes or finishes that change first, and may make another plan";
                plan.notes.push(note.to_owned());
            }
            add_plan_result(report, facts, &plan);
            report.restarts = u32::from(plan.restart);
            for (file, change) in report.files.iter_mut().zip(&plan.config) {
                file.diff = Some(text::diff(change));
            }
            Ok(Some(text::plan_text(
                &plan,
                &facts.install_paths,
                &facts.unit(),
            )))
        }
    }
}

/// The result of a run: `report`, and `text` for people (by default, the text of the report).
fn result(report: ProvisionReport, text: Option<String>) -> RunResult {
    let report = sanitize(report);
    let text = text.unwrap_or_else(|| text::report_text(&report));
    RunResult {
        report,
        text,
        is_usage_error: false,
    }
}

/// The result of a run whose options can't be used.
fn unusable(report: ProvisionReport, error: &options::Error) -> RunResult {
    RunResult {
        is_usage_error: error.is_usage(),
        ..result(refused(report, Problem::new(error, error.help())), None)
    }
}

/// Writes the verification cache. Best effort: without the cache, the next run hashes all binaries again.
fn record_verified(root: &HostRoot, facts: &HostFacts, plan: &HostPlan, artifacts: Artifacts) {
    let state = match &plan.state {
        StateAfter::Write(state) => state,
        StateAfter::Keep if !facts.state.is_empty() => &facts.state,
        StateAfter::Keep | StateAfter::Remove => return,
    };
    let digests = state.handlers.values().chain(state.draining.values());
    let digests = digests.filter_map(OwnedHandler::sha256);
    let verified = digests
        .filter(|sha256| facts.stored.contains(sha256) || plan.store.contains(sha256))
        .collect();
    let legacy_binaries = facts.legacy.binaries.iter();
    let legacy_binaries = legacy_binaries
        .filter(|(path, _)| {
            !plan.symlinks.contains_key(*path)
                && !plan.legacy_cleanup.files.contains(path)
                && !facts.legacy.untrusted.contains_key(*path)
        })
        .filter_map(|(path, legacy_binary)| Some((path.clone(), legacy_binary.verified.clone()?)))
        .collect();
    let recorded = VerifyCache::record(
        root,
        facts.containerd.target(),
        &facts.install_paths,
        &verified,
        artifacts,
        legacy_binaries,
    );
    if let Err(error) = recorded {
        warn!(%error, "failed to write the verification cache: the next run hashes all binaries again");
    }
}
