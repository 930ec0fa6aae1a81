//! Carries out a plan as a transaction: the journal first, then the binaries, the configuration, the restart, the verification and the
//! state file. A failed change is undone. After a killed run, the next run undoes or finishes the change.

pub mod cleanup;
mod failure;
pub mod interrupts;
pub mod journal;
pub mod recovery;
pub mod rehearsal;
pub mod resolve;
pub mod rollback;
pub mod smoke_test;
pub mod validate_config;
pub mod validate_journal;

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use crate::handoff::{API_VERSION, HandlerReport, Problem, Sha256Digest};
use crate::installer::artifact::error::check_digest;
use crate::installer::artifact::fetch;
use crate::installer::artifact::handoff_dir;
use crate::installer::artifact::unpack::{self, Wanted};
use crate::installer::containerd::cri::{self, Served};
use crate::installer::containerd::daemon::find_daemon;
use crate::installer::containerd::tasks::ending_pods;
use crate::installer::containerd::{restart, sandbox};
use crate::installer::distro::Restart;
use crate::installer::host::cpu::Cpu;
use crate::installer::host::path::parent_directory;
use crate::installer::host::{HostRoot, Target, text_digest};
use crate::installer::inspect::HostFacts;
use crate::installer::plan::HostPlan;
use crate::installer::plan::expected::{self, ExpectedRuntimes};
use crate::installer::plan::preconditions::check_ending_pods;
use crate::installer::state::{OwnedHandler, STATE_DIRECTORY, StateAfter, symlink_target};
use cleanup::{InUse, commit, finish, retain_in_use};
use failure::Progress;
pub use failure::{Error, Failure, Restarts};
use interrupts::Interrupts;
use journal::{FinalState, Journal, Undo, put_config};
use resolve::BinarySource;
use rollback::{restart_and_count, roll_back};

/// The result of a plan that was carried out.
#[derive(Debug, Default)]
pub struct Done {
    /// The restarts of containerd.
    pub tally: Restarts,
    /// The handlers whose binaries stay, because pods started on them during the change.
    pub draining: Vec<HandlerReport>,
    /// The handlers that the distribution declares in place of Farrier since the restart, each with the program that it found.
    pub taken: BTreeMap<String, String>,
    /// The new binaries that do not answer as shims do.
    pub unrecognized: BTreeSet<Sha256Digest>,
}

/// Carries out `plan`; `sources` has the file of each binary, by SHA-256. A signal before the restart makes Farrier undo the change. A
/// later signal has no effect, because undoing would take a second restart.
///
/// # Errors
/// [`Failure`] has the state of the host after every step was undone as far as possible.
pub async fn perform(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
    sources: &BTreeMap<Sha256Digest, BinarySource>,
    interrupts: &Interrupts,
) -> Result<Done, Failure> {
    interrupts.check().await.map_err(Failure::Refused)?;
    let mut journal = journal(host, facts, plan).map_err(Failure::Refused)?;
    if plan.restart {
        let reachable = journal.service().check_reachable(host);
        reachable.map_err(|error| Failure::Refused(restart::Error::Service(error).into()))?;
    }
    let begun = host
        .missing_directories(STATE_DIRECTORY)
        .and_then(|directories| {
            directories
                .iter()
                .try_for_each(|directory| host.create_directory(directory))
        })
        .map_err(Error::from)
        .and_then(|()| journal.save(host));
    if let Err(error) = begun {
        let made = facts.missing_directories.get(STATE_DIRECTORY);
        for directory in made.into_iter().flatten().rev() {
            // Best effort: the next run uses the empty directory.
            let _ = host.remove_directory(directory);
        }
        return Err(Failure::Refused(error));
    }
    if plan.restart
        && let Err(error) = facts.record_loaded(host)
    {
        warn!(%error, "failed to record the configuration that containerd has loaded: if this change is undone without a restart, the next run may find its traces as changes by others");
    }
    let mut progress = Progress::default();
    let acted = act(
        host,
        facts,
        plan,
        sources,
        interrupts,
        &mut journal,
        &mut progress,
    );
    match acted.await {
        Ok((done, in_use)) => {
            // The change is committed, and the next run cleans up the remaining files.
            if let Err(error) = finish(host, &journal, &in_use) {
                warn!(%error, "failed to clean up after the change: the next run cleans up");
            }
            Ok(done)
        }
        Err(cause) => {
            let deadline = interrupts.deadline;
            Err(roll_back(host, &mut journal, cause, progress, deadline).await)
        }
    }
}

/// The journal of `plan`, which records the present content of each path that the plan changes.
///
/// # Errors
/// When a path of the plan can't be inspected: undoing would remove a file that was mistaken for absent.
fn journal(host: &HostRoot, facts: &HostFacts, plan: &HostPlan) -> Result<Journal, Error> {
    let directories = plan.new_directories.iter().cloned();
    let mut undo: Vec<Undo> = directories.map(|path| Undo::Directory { path }).collect();
    let root = &facts.config_files.root.path;
    let files = validate_config::candidate_files(&facts.config_files, plan.config.len());
    let candidates = validate_config::paths(root, files);
    undo.extend(candidates.map(|path| Undo::File { path }));
    for sha256 in &plan.store {
        let path = facts.install_paths.store_path(sha256);
        undo.push(if host.exists(&path)? {
            Undo::Repaired { path }
        } else {
            Undo::File { path }
        });
    }
    for path in plan.symlinks.keys().cloned() {
        let target = host.symlink_target(&path)?;
        undo.push(if target.is_none() && host.exists(&path)? {
            Undo::Replaced { path }
        } else {
            Undo::Symlink { path, target }
        });
    }
    for change in &plan.config {
        undo.push(Undo::Config {
            path: change.path.clone(),
            before: change.before.clone(),
            wrote: text_digest(change.after.as_deref()),
        });
    }
    Ok(Journal {
        api_version: API_VERSION.to_owned(),
        undo,
        declares: plan
            .declared
            .iter()
            .map(|handler| handler.name.clone())
            .collect(),
        root: root.clone(),
        unit: facts.unit(),
        distro: facts.distro.id.to_owned(),
        socket: facts.socket(),
        directory: facts.install_paths.directory.clone(),
        restarting: false,
        process: None,
        undone: false,
        expected: ExpectedRuntimes::of(facts, plan).filter(|_| plan.restart),
        state: match &plan.state {
            StateAfter::Write(state) => FinalState::Write(state.to_json()),
            StateAfter::Remove => FinalState::Remove,
            StateAfter::Keep => FinalState::Keep,
        },
        obsolete_directories: plan.obsolete_directories.clone(),
        legacy_cleanup: plan.legacy_cleanup.clone(),
        leaving: plan.leaving.clone(),
        prove: plan.prove.clone(),
    })
}

/// Takes every step of the plan up to the state file, and records its progress in `progress`. Returns the result and the handlers in use.
async fn act(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
    sources: &BTreeMap<Sha256Digest, BinarySource>,
    interrupts: &Interrupts,
    journal: &mut Journal,
    progress: &mut Progress,
) -> Result<(Done, InUse), Error> {
    for directory in &plan.new_directories {
        host.create_directory(directory)?;
    }
    for sha256 in &plan.store {
        interrupts.check().await?;
        let path = facts.install_paths.store_path(sha256);
        store(host, &path, *sha256, facts.cpu, sources.get(sha256))?;
    }
    // Before any symlink or declaration: a binary that fails the smoke test gets neither.
    let target = facts.containerd.target();
    let untested = untested_binaries(facts, plan);
    let tested = smoke_test::test(host, &untested, target);
    let tested = interrupts.run_unless_interrupted(tested).await?;
    if !tested.failing.is_empty() {
        return Err(Error::Unusable(tested.failing));
    }
    let validated = validate_config::validate(host, facts, plan);
    interrupts
        .run_unless_interrupted(validated)
        .await
        .flatten()?;
    let daemon = facts.containerd.daemon();
    if plan.restart {
        check_new_pods(host, facts, plan).await?;
        // Before the configuration is written: a supervisor that watches the configuration restarts containerd at once.
        journal.begin_restart(host, daemon.map(|daemon| daemon.process))?;
    }
    // With a supervisor that watches the configuration, this is the last check before the restart.
    interrupts.check().await?;
    progress.live = plan.restart || !plan.config.is_empty() || !plan.symlinks.is_empty();
    swap_symlinks(host, facts, plan)?;
    for change in &plan.config {
        info!(path = change.path, "writing containerd's configuration");
        let before = text_digest(change.before.as_deref());
        let after = change.after.as_deref();
        put_config(host, &change.path, after, before)?;
    }
    let service = journal.service();
    if !(plan.restart && service.restart == Restart::Watched && service.restart_triggered_by_write)
    {
        interrupts.check().await?;
    }
    let mut taken = BTreeMap::new();
    if plan.restart {
        info!(unit = journal.unit, "restarting containerd");
        let socket = &journal.socket;
        let tally = &mut progress.tally;
        let patience = interrupts.deadline.for_change();
        let restarted = restart_and_count(host, &service, socket, daemon, patience, tally);
        let mut served = restarted.await?;
        if service.restart == Restart::Watched
            && service.restart_triggered_by_write
            && verify_served(host, facts, plan, journal, &served).is_err()
        {
            // The supervisor was about to restart containerd for another reason when the file changed, and restarts it once more.
            let now = find_daemon(host)?;
            let patience = interrupts.deadline.for_change();
            let restarted =
                restart_and_count(host, &service, socket, now.as_ref(), patience, tally);
            if let Ok(again) = restarted.await {
                served = again;
            }
        }
        verify_served(host, facts, plan, journal, &served)?;
        if facts.network.ready {
            let patience = interrupts.deadline.for_change();
            let limit = service.serve_limit.min(patience);
            restart::await_network(host, &journal.socket, limit).await?;
        }
        if let Err(error) = facts.record_present(host) {
            warn!(%error, "failed to record the files that containerd was started with: the next run does not notice if one of them is removed");
        }
        if facts.distro.searches() {
            taken = taken_by_distro(plan, &served);
        }
    }
    let mut prove = plan.prove.clone();
    prove.retain(|handler| !taken.contains_key(handler));
    if !prove.is_empty() {
        sandbox::prove(host, &journal.socket, &prove, interrupts.deadline).await?;
    }
    // Without a restart, a plan for a containerd that does not serve is for one that can't start.
    let in_use = if target == Target::Live && facts.served.is_err() && !plan.restart {
        InUse::without_containerd(host, journal)
    } else {
        InUse::query(host, journal, target).await
    };
    let draining = retain_in_use(host, journal, &in_use)?;
    commit(host, journal)?;
    let tally = progress.tally;
    let done = Done {
        tally,
        draining,
        taken,
        unrecognized: tested.unrecognized,
    };
    Ok((done, in_use))
}

/// Checks that the restart ends no pod that `plan` does not allow to end: a pod may have started since the facts were gathered.
async fn check_new_pods(host: &HostRoot, facts: &HostFacts, plan: &HostPlan) -> Result<(), Error> {
    let (socket, policy) = (facts.socket(), &plan.restart_policy);
    let (Ok(served), false) = (&facts.served, policy.allows_all()) else {
        return Ok(());
    };
    let ending = async {
        let sandboxes = cri::sandboxes(host, &socket).await?;
        ending_pods(host, &socket, &sandboxes, served, facts.version).await
    };
    let ending = ending.await;
    let ending = ending.map_err(|error| Problem::new(&error, error.help()));
    Ok(check_ending_pods(&ending, policy)?)
}

/// Checks that a containerd that serves `served` has loaded the change.
fn verify_served(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
    journal: &Journal,
    served: &Served,
) -> Result<(), Error> {
    validate_config::check_rendered(host, plan, facts.distro.searches())?;
    match &journal.expected {
        Some(expected) => {
            let verified = expected.verify_change(served);
            Ok(verified.map_err(restart::Error::NotVerified)?)
        }
        None if plan.restart => {
            let (declared, managed) = (&plan.declared, &plan.managed);
            let former = expected::former_declarations(facts, managed);
            let searches = facts.distro.searches();
            let verified = expected::verify_managed(served, declared, &former, managed, searches);
            Ok(verified.map_err(restart::Error::NotVerified)?)
        }
        None => Ok(()),
    }
}

/// The declared handlers that the distribution declares in place of Farrier, each with the program that it found.
fn taken_by_distro(plan: &HostPlan, served: &Served) -> BTreeMap<String, String> {
    let taken = plan.declared.iter().filter_map(|handler| {
        let program = expected::taken_by_distro(served, handler)?;
        Some((handler.name.clone(), program.to_owned()))
    });
    taken.collect()
}

/// Points the symlinks at the binaries of the plan. Pods that start from now on run these binaries.
fn swap_symlinks(host: &HostRoot, facts: &HostFacts, plan: &HostPlan) -> Result<(), Error> {
    for (path, sha256) in &plan.symlinks {
        let target = if parent_directory(path) == facts.install_paths.bin() {
            symlink_target(*sha256)
        } else {
            // At the path of a legacy installer, the old file is kept until the change is committed.
            host.keep_replaced(path)?;
            facts.install_paths.store_path(sha256)
        };
        host.swap_symlink(path, &target)?;
    }
    Ok(())
}

/// The paths of the binaries that get a symlink and that no handler had before, by SHA-256.
fn untested_binaries(facts: &HostFacts, plan: &HostPlan) -> BTreeMap<Sha256Digest, String> {
    let handlers = facts.state.handlers.values();
    let had: BTreeSet<Sha256Digest> = handlers.filter_map(OwnedHandler::sha256).collect();
    plan.symlinks
        .values()
        .filter(|sha256| !had.contains(sha256))
        .map(|sha256| (*sha256, facts.install_paths.store_path(sha256)))
        .collect()
}

/// Copies a binary into the store, and verifies the digest of the copied bytes.
fn store(
    host: &HostRoot,
    path: &str,
    sha256: Sha256Digest,
    cpu: Cpu,
    source: Option<&BinarySource>,
) -> Result<(), Error> {
    copy(host, path, sha256, cpu, source).inspect_err(|_| host.discard_new(path))
}

fn copy(
    host: &HostRoot,
    path: &str,
    sha256: Sha256Digest,
    cpu: Cpu,
    source: Option<&BinarySource>,
) -> Result<(), Error> {
    let mut out = host.create_new(path, 0o755)?;
    let digest = match source {
        Some(BinarySource::HandoffDir(path)) => handoff_dir::copy_binary(path, cpu, &mut out)?,
        Some(BinarySource::Host { path, shim, binary }) => {
            let file = host
                .open_file(path)?
                .ok_or_else(|| Error::NoArtifact { path: path.clone() })?;
            let wanted = Wanted {
                shim,
                binary: binary.as_deref(),
                cpu,
            };
            unpack::unpack(file, wanted, &mut out).map_err(fetch::Error::from)?
        }
        None => return Err(fetch::Error::Missing.into()),
    };
    check_digest("the binary", digest, Some(sha256))?;
    out.sync_all().map_err(|source| Error::Store { source })?;
    Ok(host.commit_new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::installer::fixtures;

    #[test]
    fn a_symlink_over_an_unreadable_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        let bin = directory.path().join("opt/kwasm/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("theirs"), "").unwrap();
        symlink("theirs", bin.join("link")).unwrap();
        symlink("circle", bin.join("circle")).unwrap();
        let facts = fixtures::host().build();
        let undo = |name: &str| {
            let path = format!("/opt/kwasm/bin/{name}");
            let plan = HostPlan {
                symlinks: BTreeMap::from([(path, Sha256Digest::from_bytes([0; 32]))]),
                ..HostPlan::default()
            };
            let journal = journal(&host, &facts, &plan);
            journal.map(|journal| journal.undo.last().cloned())
        };
        let path = |name: &str| format!("/opt/kwasm/bin/{name}");
        let undo_symlink = |name: &str, target: Option<&str>| Undo::Symlink {
            path: path(name),
            target: target.map(str::to_owned),
        };
        assert_eq!(undo("none").unwrap(), Some(undo_symlink("none", None)));
        let target = Some("theirs");
        assert_eq!(undo("link").unwrap(), Some(undo_symlink("link", target)));
        let replaced = Undo::Replaced {
            path: path("theirs"),
        };
        assert_eq!(undo("theirs").unwrap(), Some(replaced));
        assert!(undo("circle/shim").is_err());
    }
}
