//! Fills in the report of a run. Pure: the doctor's findings are in `doctor`, the texts for a terminal in `text`.

pub mod doctor;
pub mod text;

use std::collections::BTreeSet;

use crate::handoff::{
    EndingPod, EndingPods, FileAction, FileReport, HandlerReport, Outcome, Problem,
    ProvisionReport, ProvisionRequest, ShimRequest, printable,
};
use crate::installer::host::Target;
use crate::installer::inspect::{HostFacts, path_of, verified, verified_digest};
use crate::installer::plan::pending::put_into_effect;
use crate::installer::plan::{self, HostPlan};
use crate::installer::transaction::{Error, Failure, Restarts};

/// Replaces the characters in a report that a terminal acts on. Texts of a report may come from other programs.
pub(crate) fn sanitize(mut report: ProvisionReport) -> ProvisionReport {
    let reasons = report
        .handlers
        .iter_mut()
        .flat_map(|handler| [&mut handler.reason, &mut handler.remedy]);
    for text in reasons
        .chain([&mut report.reason, &mut report.remedy])
        .flatten()
        .chain(&mut report.notes)
        .chain(report.taken_over.iter_mut().map(|it| &mut it.message))
    {
        *text = printable(text);
    }
    report
}

/// Adds the releases and identities of the host.
pub(crate) fn add_host_info(report: &mut ProvisionReport, facts: &HostFacts) {
    report.containerd = facts.version.map(|version| version.to_string());
    report.distro = Some(facts.distro.id.to_owned());
    report.machine_id.clone_from(&facts.machine_id);
    report.boot_id.clone_from(&facts.boot_id);
}

/// Adds the result of a plan that was carried out.
pub(crate) fn add_plan_result(report: &mut ProvisionReport, facts: &HostFacts, plan: &HostPlan) {
    report.handlers.clone_from(&plan.handlers);
    if facts.containerd.target() == Target::Image {
        // No containerd was asked, so no handler counts as served.
        report
            .handlers
            .iter_mut()
            .for_each(|handler| handler.served = false);
    }
    report.taken_over.clone_from(&plan.taken_over);
    // A recovery has notes, too.
    report.notes.extend(plan.notes.iter().cloned());
    // Those that the restart of a recovery ended.
    let ended = std::mem::take(&mut report.ending_pods);
    report.ending_pods = match &facts.ending_pods {
        Ok(pods) if plan.restart => EndingPods::of(pods).and(&ended),
        Ok(_) | Err(_) if plan.waits_for.is_empty() => ended,
        Ok(_) | Err(_) => EndingPods::of(&plan.waits_for),
    };
    let blocked = plan.handlers.iter().filter(|it| it.reason.is_some());
    let using = blocked.filter_map(|it| facts.in_use.get(&it.handler));
    let using: Vec<EndingPod> = using.flatten().cloned().collect();
    report.using_pods = EndingPods::of(&using);
    report.files = files(facts, plan);
    let problems: Vec<&HandlerReport> = plan
        .handlers
        .iter()
        .filter(|handler| handler.reason.is_some())
        .collect();
    let has_success = plan.handlers.len() > problems.len();
    report.result = match (problems.is_empty(), plan.is_empty()) {
        (true, true) if !report.changed => Outcome::Unchanged,
        (true, _) => Outcome::Applied,
        // A handler that is not served and has a binary is being removed from the host.
        (false, true)
            if !has_success
                && plan.waits_for.is_empty()
                && problems
                    .iter()
                    .all(|handler| !handler.served && handler.path.is_none()) =>
        {
            Outcome::Refused
        }
        (false, _) => Outcome::Partial,
    };
    if let Some(first) = problems.first() {
        let reason = first.reason.as_deref().unwrap_or_default();
        report.reason = Some(format!("shim {}: {reason}", first.shim));
        report.remedy.clone_from(&first.remedy);
    }
}

fn files(facts: &HostFacts, plan: &HostPlan) -> Vec<FileReport> {
    let config = plan.config.iter().map(|change| {
        let action = match (&change.before, &change.after) {
            (None, _) => FileAction::Created,
            (Some(_), Some(_)) => FileAction::Edited,
            (Some(_), None) => FileAction::Removed,
        };
        (change.path.clone(), action)
    });
    let stored = plan
        .store_paths(&facts.install_paths)
        .map(|path| (path, FileAction::Created));
    let symlinks = plan.symlinks.keys().map(|path| {
        let action = match verified_digest(facts, path) {
            Some(_) => FileAction::Edited,
            None => FileAction::Created,
        };
        (path.clone(), action)
    });
    let removed = plan.obsolete_files.iter().chain(&plan.legacy_cleanup.files);
    let removed = removed.map(|path| (path.clone(), FileAction::Removed));
    let all = config.chain(stored).chain(symlinks).chain(removed);
    all.map(|(path, action)| FileReport {
        path,
        action,
        diff: None,
    })
    .collect()
}

/// A report of a run that ended with `problem` before the host was inspected.
pub(crate) fn refused(mut report: ProvisionReport, problem: Problem) -> ProvisionReport {
    report.set_problem(problem);
    report
}

/// A report whose reason is `error`.
fn failed(report: ProvisionReport, error: &Error) -> ProvisionReport {
    let mut report = refused(report, Problem::new(error, error.help()));
    if matches!(error, Error::Signal { .. }) {
        // A signal is no refusal: a caller that reads only the exit status tries again.
        report.result = Outcome::RolledBack;
        report.interrupted = true;
    }
    report.unsupported = matches!(
        error,
        Error::Plan(plan::Error::Distribution(_) | plan::Error::OtherRuntime { .. })
    );
    if let Error::Plan(plan::Error::EndsPods(pods)) = error {
        report.ending_pods = EndingPods::of(pods);
        report.refused_for_pods = true;
    }
    report
}

/// Adds the restarts of a recovery, and the pods that these ended.
pub(crate) fn add_recovery(report: &mut ProvisionReport, tally: Restarts, ended: &[EndingPod]) {
    report.changed = true;
    report.notes.extend(ended_by_restart(ended));
    add_restarts_with_pods(report, tally, &[], ended);
}

/// Adds restarts to those in the report.
pub(crate) fn add_restarts(report: &mut ProvisionReport, tally: Restarts) {
    report.restarts += tally.restarts;
    let away = tally.away.map(|away| away.as_millis());
    if let Some(away) = away.and_then(|away| u64::try_from(away).ok()) {
        report.cri_away_ms = Some(report.cri_away_ms.unwrap_or_default() + away);
    }
}

/// A note on the pods that the restart of a rollback or a recovery ended; `None` without such pods.
fn ended_by_restart(pods: &[EndingPod]) -> Option<String> {
    let number = match pods.len() {
        0 => return None,
        1 => "1 pod, because its shim does not report its processes".to_owned(),
        number => format!("{number} pods, because their shims do not report their processes"),
    };
    let pods = EndingPods::of(pods);
    Some(format!(
        "the restart of containerd that undid the change ended {number}: {pods}"
    ))
}

/// Adds the restarts of a change and of its rollback, and the pods that these ended: `ending` at the change, `ended` at the rollback.
fn add_restarts_with_pods(
    report: &mut ProvisionReport,
    tally: Restarts,
    ending: &[EndingPod],
    ended: &[EndingPod],
) {
    add_restarts(report, tally);
    if tally.restarts > 0 {
        let only_at_rollback = ended.iter().filter(|pod| !ending.contains(pod));
        let pods: Vec<EndingPod> = ending.iter().chain(only_at_rollback).cloned().collect();
        let before = std::mem::take(&mut report.ending_pods);
        report.ending_pods = EndingPods::of(&pods).and(&before);
        report.refused_for_pods = false;
    }
}

/// A report of a change that was not carried out. A restart of the change would end the pods `ending`.
pub(crate) fn report_failure(
    report: ProvisionReport,
    failure: Failure,
    ending: &[EndingPod],
) -> ProvisionReport {
    match failure {
        Failure::Refused(cause) => failed(report, &cause),
        Failure::RolledBack {
            cause,
            tally,
            ended,
        } => {
            let mut report = failed(report, &cause);
            report.notes.extend(ended_by_restart(&ended));
            report.reason = report
                .reason
                .map(|reason| format!("{reason}, and the change was rolled back"));
            report.result = Outcome::RolledBack;
            add_restarts_with_pods(&mut report, tally, ending, &ended);
            report
        }
        Failure::Broken {
            cause,
            failures,
            tally,
            ended,
        } => {
            let mut report = failed(report, &cause);
            report.notes.extend(ended_by_restart(&ended));
            let messages: Vec<String> = failures.iter().map(ToString::to_string).collect();
            let messages = messages.join(", and ");
            report.reason = Some(format!(
                "{cause}, and undoing the change failed: {messages}"
            ));
            let helps: BTreeSet<&str> = failures
                .iter()
                .filter_map(|it| it.help.as_deref())
                .collect();
            let steps = ["log in to the node"].into_iter().chain(helps);
            let steps: Vec<&str> = steps
                .chain(["repair containerd, then run farrier again"])
                .collect();
            report.remedy = Some(steps.join(", "));
            report.result = Outcome::Broken;
            report.interrupted = false;
            report.changed = true;
            add_restarts_with_pods(&mut report, tally, ending, &ended);
            report
        }
    }
}

/// Names the changes of others that a failed restart of a change has put into effect: the fault may be in them.
pub(crate) fn add_pending_changes(report: &mut ProvisionReport, facts: &HostFacts) {
    let has_restarted = match report.result {
        Outcome::RolledBack | Outcome::Broken => report.restarts > 0,
        Outcome::Applied | Outcome::Partial | Outcome::Unchanged | Outcome::Refused => false,
    };
    let Some(changes) = put_into_effect(facts).filter(|_| has_restarted) else {
        return;
    };
    let reason = report.reason.take().unwrap_or_default();
    report.reason = Some(format!(
        "{reason} (the restart also put what others had changed into effect: {changes})"
    ));
    let check =
        "check whether containerd fails because of the change of others, and undo that change";
    report.remedy = Some(match report.remedy.take() {
        Some(remedy) => format!("{check}; otherwise {remedy}"),
        None => check.to_owned(),
    });
}

/// The shims of a request, each with the request.
fn shims_of(request: &ProvisionRequest) -> impl Iterator<Item = (&ShimRequest, &ProvisionRequest)> {
    request.shims.iter().map(move |shim| (shim, request))
}

/// Adds the requested handlers of an unchanged host, and whether containerd still serves them.
pub(crate) fn report_unchanged(
    mut report: ProvisionReport,
    facts: &HostFacts,
    request: Option<&ProvisionRequest>,
) -> ProvisionReport {
    let is_live = facts.containerd.target() == Target::Live;
    let may_be_served = is_live && report.result != Outcome::Broken;
    for (shim, request) in request.into_iter().flat_map(shims_of) {
        let kept = facts
            .state
            .kept_handlers(request.owner, shim, &request.shims);
        let kept = kept.map(|(handler, _)| handler).filter(|_| shim.keep);
        for handler in shim.handlers.iter().chain(kept) {
            let sha256 = verified(facts, handler);
            let path = path_of(facts, handler);
            let listed = facts
                .served
                .as_ref()
                .is_ok_and(|served| served.handlers.get(handler) == Some(&path));
            report.handlers.push(HandlerReport {
                shim: shim.name.clone(),
                handler: handler.clone(),
                path: sha256.is_some().then_some(path),
                served: may_be_served && listed && sha256.is_some(),
                sha256,
                reason: report.reason.clone(),
                remedy: report.remedy.clone(),
                waits_for_pods: false,
            });
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::handoff::Sha256Digest;
    use crate::installer::artifact::fetch;
    use crate::installer::fixtures::host;
    use crate::installer::inspect::restart_inputs::{Change, Contents, Input, InputKind};

    fn signal() -> Error {
        Error::Signal { name: "SIGTERM" }
    }

    #[test]
    fn a_semicolon_in_the_message_of_another_program_is_kept_in_the_reason() {
        let message = "toml: line 3; expected a value; found EOF";
        let cause = Error::ConfigRefused(Problem::new(message, None));
        let report = ProvisionReport::new(Outcome::Refused);
        let report = report_failure(report, Failure::Refused(cause), &[]);
        let reason = report.reason.unwrap();
        assert!(reason.ends_with(message), "{reason}");
        assert_eq!(
            report.remedy.as_deref(),
            Some("run with --dry-run to see the change")
        );
    }

    #[test]
    fn a_host_whose_kubelet_uses_another_runtime_is_unsupported() {
        let other = plan::Error::OtherRuntime {
            name: "docker".to_owned(),
            socket: "/run/cri-dockerd.sock".to_owned(),
        };
        let report = ProvisionReport::new(Outcome::Refused);
        let report = report_failure(report, Failure::Refused(other.into()), &[]);
        assert!(report.unsupported);
        assert_eq!(report.result.exit_status(), 3);
        assert_eq!(
            report.reason.as_deref(),
            Some(
                "the kubelet of this node uses the container runtime docker at /run/cri-dockerd.sock instead of containerd"
            )
        );
    }

    #[test]
    fn a_failure_has_the_help_of_its_cause() {
        let help = "name the artifact for the node's architecture";
        let problem = Problem::with_help("the binary does not run", help);
        let sha256 = Sha256Digest::of(b"");
        for cause in [
            Error::ConfigRefused(problem.clone()),
            Error::Unusable([(sha256, problem.clone())].into()),
            Error::Artifact(fetch::Error::Reported(problem)),
        ] {
            let report = ProvisionReport::new(Outcome::Refused);
            let report = report_failure(report, Failure::Refused(cause), &[]);
            assert_eq!(report.remedy.as_deref(), Some(help));
        }
    }

    #[rstest]
    #[case::after_a_rollback(Outcome::RolledBack, 2, true)]
    #[case::after_a_failed_rollback(Outcome::Broken, 1, true)]
    #[case::without_a_restart(Outcome::RolledBack, 0, false)]
    #[case::of_a_refused_change(Outcome::Refused, 0, false)]
    fn a_failure_after_a_restart_names_the_changes_of_others_that_took_effect(
        #[case] outcome: Outcome,
        #[case] restarts: u32,
        #[case] named: bool,
    ) {
        let input = |number: usize| Input {
            path: format!("/conf.d/{number}.toml"),
            kind: InputKind::Config,
            change: Change::Replaced,
            contents: Contents::Foreign,
        };
        for number in [0, 1, 300] {
            let facts = host().with(|facts| {
                facts.restart_inputs.inputs = (0..number).map(input).collect();
            });
            let mut report = ProvisionReport::new(outcome);
            report.restarts = restarts;
            report.set_problem(Problem::with_help("it ends", "repair containerd"));
            let before = report.clone();
            add_pending_changes(&mut report, &facts.build());
            if !named || number == 0 {
                assert_eq!(report, before);
                continue;
            }
            let reason = report.reason.unwrap();
            assert!(reason.starts_with("it ends (the restart also"), "{reason}");
            assert!(reason.contains("/conf.d/0.toml was changed"), "{reason}");
            assert_eq!(reason.contains("295 more"), number == 300, "{reason}");
            let remedy = report.remedy.unwrap();
            assert!(remedy.starts_with("check whether containerd"), "{remedy}");
            assert!(
                remedy.ends_with("; otherwise repair containerd"),
                "{remedy}"
            );
        }
    }

    #[test]
    fn a_rollback_names_the_pods_that_its_restart_ended() {
        let pod = EndingPod {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: String::new(),
            handler: "spin".to_owned(),
        };
        let rolled_back = |ended| Failure::RolledBack {
            cause: Error::ConfigRefused(Problem::new("no", None)),
            tally: Restarts::default(),
            ended,
        };
        let notes = |ended| {
            let report = ProvisionReport::new(Outcome::Refused);
            report_failure(report, rolled_back(ended), &[]).notes
        };
        assert_eq!(
            notes(vec![pod]),
            [
                "the restart of containerd that undid the change ended 1 pod, because its shim does not report its processes: default/web (handler spin)"
            ]
        );
        assert_eq!(notes(Vec::new()), [""; 0]);
    }

    #[test]
    fn a_rollback_reports_the_pods_of_both_restarts_and_a_refused_restart_those_that_it_would_end()
    {
        let facts = host().ending(&["a", "b"]).build();
        let ending = facts.ending_pods.unwrap();
        let reported = |cause, restarts, ended: &[EndingPod]| {
            let failure = Failure::RolledBack {
                cause,
                tally: Restarts {
                    restarts,
                    away: None,
                },
                ended: ended.to_vec(),
            };
            let report = report_failure(ProvisionReport::new(Outcome::Refused), failure, &ending);
            let pods = report.ending_pods.pods.into_iter();
            pods.map(|pod| pod.name).collect::<Vec<_>>()
        };
        let new = host().ending(&["b", "new"]).build().ending_pods.unwrap();
        assert_eq!(reported(signal(), 2, &new), ["a", "b", "new"]);
        assert_eq!(reported(signal(), 0, &[]), [""; 0]);
        let refused = plan::Error::EndsPods(new.clone()).into();
        assert_eq!(reported(refused, 0, &[]), ["b", "new"]);
    }

    #[test]
    fn the_pods_that_a_recovery_ended_are_reported_unless_the_change_is_refused_for_others() {
        let recovered = || {
            let mut report = ProvisionReport::new(Outcome::Refused);
            let ended = host().ending(&["a"]).build().ending_pods.unwrap();
            let tally = Restarts {
                restarts: 1,
                away: None,
            };
            add_recovery(&mut report, tally, &ended);
            report
        };
        let named = |report: &ProvisionReport| {
            let pods = report.ending_pods.pods.iter();
            pods.map(|pod| pod.name.clone()).collect::<Vec<_>>()
        };
        let failed = report_failure(recovered(), Failure::Refused(signal()), &[]);
        assert_eq!(
            (named(&failed), failed.refused_for_pods),
            (vec!["a".to_owned()], false)
        );
        let others = host().ending(&["b"]).build().ending_pods.unwrap();
        let cause = plan::Error::EndsPods(others).into();
        let refused = report_failure(recovered(), Failure::Refused(cause), &[]);
        assert_eq!(
            (named(&refused), refused.refused_for_pods),
            (vec!["b".to_owned()], true)
        );
        assert_eq!(refused.restarts, 1);
    }

    #[test]
    fn an_interrupted_change_is_reported_as_rolled_back_and_interrupted() {
        let tally = Restarts::default();
        let report = |failure| report_failure(ProvisionReport::new(Outcome::Refused), failure, &[]);
        for failure in [
            Failure::Refused(signal()),
            Failure::RolledBack {
                cause: signal(),
                tally,
                ended: Vec::new(),
            },
        ] {
            let report = report(failure);
            assert_eq!(report.result, Outcome::RolledBack);
            assert!(report.interrupted);
            assert!(report.reason.unwrap().contains("interrupted by SIGTERM"));
            assert_eq!(report.remedy.as_deref(), Some("run the same command again"));
        }
        let broken = report(Failure::Broken {
            cause: signal(),
            failures: vec![Problem::with_help("no room", "free some space")],
            tally,
            ended: Vec::new(),
        });
        assert_eq!(
            (broken.result, broken.interrupted),
            (Outcome::Broken, false)
        );
        let help = broken.remedy.unwrap();
        assert!(help.contains("free some space"), "{help}");
        let refused = report(Failure::Refused(Error::Interrupted));
        assert_eq!(
            (refused.result, refused.interrupted),
            (Outcome::Refused, false)
        );
    }
}
