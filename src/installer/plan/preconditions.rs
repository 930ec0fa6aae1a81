//! Checks whether a host may be changed, and whether its containerd may be restarted. Pure.

use std::collections::BTreeSet;

use super::config_source::is_unloadable;
use super::goal::Goal;
use super::types::{ConfigChange, Error, ends_at_restart};
use crate::handoff::{EndingPod, OnRestart, Owner, Problem, RestartPolicy};
use crate::installer::containerd::daemon::Containerd;
use crate::installer::containerd::kubelet::KubeletRuntime;
use crate::installer::containerd::process::Refusal;
use crate::installer::containerd::service::RestartEffect;
use crate::installer::host::path::parent_directory;
use crate::installer::inspect::HostFacts;
use crate::installer::state::State;

/// Checks that this host can be changed and that its containerd can verify a change.
///
/// # Errors
/// The reason that the host may not be changed.
pub(crate) fn check_host(facts: &HostFacts) -> Result<(), Error> {
    if let Some(unsupported) = facts.distro.unsupported {
        return Err(Error::Distribution(unsupported));
    }
    let is_there = matches!(
        facts.containerd,
        Containerd::Live(_) | Containerd::UnknownKubelet { .. } | Containerd::Image
    );
    match &facts.kubelet_runtime {
        KubeletRuntime::Other { name, socket } => {
            return Err(Error::OtherRuntime {
                name: name.clone(),
                socket: socket.clone(),
            });
        }
        // A containerd that does not run is what has to be mended first.
        KubeletRuntime::Unknown(problem) if is_there => {
            return Err(Error::Obstacle(problem.clone()));
        }
        KubeletRuntime::Containerd | KubeletRuntime::Unknown(_) => {}
    }
    if let Some(problem) = &facts.unknown_config {
        return Err(Error::Obstacle(problem.clone()));
    }
    match (&facts.containerd, &facts.served) {
        (Containerd::Image, _) => Ok(()),
        (Containerd::NotFound { refused }, _)
            if is_unloadable(facts) && refused.iter().all(Refusal::is_user_process) =>
        {
            Ok(())
        }
        // Between two starts of a distribution that starts again and again.
        (Containerd::Live(_), Err(_)) if is_unloadable(facts) => Ok(()),
        (Containerd::NotFound { refused }, _) => Err(Error::NoDaemon {
            refused: refused.clone(),
        }),
        (Containerd::UnknownKubelet { refused }, _) => Err(Error::UnknownKubelet {
            refused: refused.clone(),
        }),
        (
            Containerd::NotOfKubelet {
                socket,
                of_distro,
                refused,
            },
            _,
        ) => Err(Error::NotOfKubelet {
            socket: socket.clone(),
            of_distro: of_distro.clone(),
            refused: refused.clone(),
        }),
        (Containerd::Live(_), Ok(served)) if served.ready => Ok(()),
        (Containerd::Live(_), Ok(_)) => Err(Error::NotServing(Problem::new(
            "its runtime is not ready",
            None,
        ))),
        (Containerd::Live(_), Err(problem)) => Err(Error::NotServing(problem.clone())),
    }
}

/// Checks that the command line requests no handler of the cluster, unless the goal allows to take it over. Otherwise the cluster would still
/// show the binary of its Shim, and a later command would remove the handler from under the cluster's pods.
///
/// # Errors
/// The first such handler.
pub(crate) fn check_owner(facts: &HostFacts, goal: &Goal) -> Result<(), Error> {
    if goal.owner == Owner::Cluster || goal.take_over {
        return Ok(());
    }
    let mut requested = goal.shims.iter().flat_map(|shim| &shim.handlers);
    let of_cluster = requested.find_map(|handler| {
        let owned = facts.state.handlers.get(handler)?;
        let is_installed = owned.owner == Owner::Cluster && !owned.is_reserved();
        is_installed.then(|| {
            Problem::with_help(
                format!(
                    "handler {handler} belongs to a Shim of the cluster: {}",
                    owned.shim
                ),
                "change that Shim with kubectl, use another handler name, or take the handler over with --take-over",
            )
        })
    });
    of_cluster.map_or(Ok(()), |problem| Err(Error::Obstacle(problem)))
}

/// A note on the Shims that a cluster has on this host; `None` without any.
pub(crate) fn note_on_cluster(facts: &HostFacts) -> Option<String> {
    let (handlers, draining) = (&facts.state.handlers, &facts.state.draining);
    let installed = handlers.iter().chain(draining);
    let installed =
        installed.filter(|(_, owned)| owned.owner == Owner::Cluster && !owned.is_reserved());
    let names: BTreeSet<&str> = installed.map(|(name, _)| name.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        format!(
            "this node belongs to a cluster, whose Shims have these handlers: {}; change them with kubectl, because the controller installs them again",
            names.join(", ")
        )
    })
}

/// Why the file at `path` of this host can't be written.
pub(crate) fn write_problem<'f>(facts: &'f HostFacts, path: &str) -> Option<&'f Problem> {
    facts.write_targets.get(path)?.problem.as_ref()
}

/// Why a change of configuration files can't be written. A change of a file that containerd loads is validated with candidates in the
/// directory of the root file.
pub(crate) fn unwritable_config<'f>(
    facts: &'f HostFacts,
    changes: &[ConfigChange],
) -> Option<&'f Problem> {
    let mut changes = changes.iter();
    changes.find_map(|change| {
        let of_candidates = || {
            let directory = parent_directory(&change.root);
            write_problem(facts, directory).filter(|_| change.live)
        };
        write_problem(facts, &change.path).or_else(of_candidates)
    })
}

/// Whether the files of this host show neither handlers of Farrier nor legacy handlers.
pub(crate) fn is_bare(facts: &HostFacts) -> bool {
    let legacy = &facts.legacy;
    let bin = format!("{}/", facts.install_paths.bin());
    let files = facts.config_files.files().chain(&facts.sources);
    let mut texts = files.filter_map(|file| file.text.as_deref());
    facts.state == State::default()
        && facts.orphaned_config.is_none()
        && facts.binaries.is_empty()
        && facts.stored.is_empty()
        && facts.damaged.is_empty()
        && legacy.handlers.is_empty()
        && legacy.legacy_dirs.is_empty()
        && !texts.any(|text| text.lines().any(|line| names(line, &bin)))
}

/// Whether a line that is no comment has a path below `directory`.
fn names(line: &str, directory: &str) -> bool {
    line.contains(directory) && !line.trim_start().starts_with('#')
}

/// Checks that this run can restart containerd, and that the pods survive the restart or the goal allows to end them.
///
/// # Errors
/// The reason that containerd may not be restarted.
pub(crate) fn check_restart(facts: &HostFacts, goal: &Goal) -> Result<(), Error> {
    if let Some(problem) = &facts.unreachable {
        return Err(Error::Obstacle(problem.clone()));
    }
    match check_pods_survive(facts) {
        Err(Error::KillMode { .. } | Error::Container) if goal.allow_pod_restarts => Ok(()),
        Ok(()) => check_ending_pods(&facts.ending_pods, &goal.effective_restart_policy(facts)),
        checked => checked,
    }
}

/// Checks that `policy` allows a restart which ends these pods.
///
/// # Errors
/// The pods that may not end, or that are to be evicted first, or the reason that the pods are unknown where `policy` refuses any.
pub(crate) fn check_ending_pods(
    ending: &Result<Vec<EndingPod>, Problem>,
    policy: &RestartPolicy,
) -> Result<(), Error> {
    let pods = match ending {
        Ok(pods) => pods,
        Err(_) if policy.allows_all() => return Ok(()),
        Err(problem) => return Err(Error::EndingPodsUnknown(problem.clone())),
    };
    let strictest = policy.strictest(pods.iter().map(|pod| pod.handler.as_str()));
    let pods = pods.iter().filter(|pod| match strictest {
        // The other pods need not go before the restart.
        OnRestart::Refuse => policy.of(&pod.handler) == OnRestart::Refuse,
        // A pod that may end is evicted with the others: an eviction keeps its PodDisruptionBudget.
        OnRestart::Drain => true,
        OnRestart::Allow => false,
    });
    let pods: Vec<EndingPod> = pods.cloned().collect();
    if pods.is_empty() {
        Ok(())
    } else {
        Err(Error::EndsPods(pods))
    }
}

/// What a restart does to the pods that it ends, as notes; none without such pods. On 1.7, such a pod comes back in a new sandbox; on 2.x, its
/// former process keeps the port (seen with shims of runwasi and Spin).
pub(crate) fn notes_on_ending(facts: &HostFacts) -> Vec<String> {
    let pods = facts.ending_pods.as_deref().unwrap_or_default();
    if pods.is_empty() {
        return Vec::new();
    }
    let mut notes = vec![ends_at_restart(pods)];
    if facts.version.is_some_and(|release| release.major >= 2) {
        notes.push(
            "on containerd 2.x, such a pod does not come back while its former process holds a port: delete the pod after the restart"
                .to_owned(),
        );
    }
    notes
}

/// Checks that pods survive a restart of containerd.
///
/// # Errors
/// When a restart ends every pod on the node, or when the effect of a restart is unknown.
pub(crate) fn check_pods_survive(facts: &HostFacts) -> Result<(), Error> {
    match &facts.restart_effect {
        Ok(RestartEffect::PodsSurvive) => Ok(()),
        Ok(RestartEffect::PodsEnd { kill_mode }) => Err(Error::KillMode {
            unit: facts.unit(),
            mode: kill_mode.clone(),
        }),
        Ok(RestartEffect::NodeEnds) => Err(Error::Container),
        Err(problem) => Err(Error::KillModeUnknown(problem.clone())),
    }
}
