//! Decides which changes by others a restart of containerd would put into effect. Pure: `inspect::pending` finds what a restart reads.
//!
//! A change that is younger than the running process is pending. containerd may not start with it, and no list of bad settings is whole, so
//! the bytes and a rehearsal count.

use std::fmt;

use crate::containerd_config::{CniSettings, address_of_dump, cni_settings, data_directories};
use crate::handoff::{Problem, printable_up_to};
use crate::installer::containerd::cri::DataDirectories;
use crate::installer::containerd::daemon::Daemon;
use crate::installer::containerd::rehearsal::Rehearsal;
use crate::installer::distro::Edited;
use crate::installer::host::path::parent_directory;
use crate::installer::inspect::HostFacts;
use crate::installer::inspect::restart_inputs::{Change, Contents, Input, InputKind};

/// The help where a pending change refuses a restart.
pub(crate) const ACCEPT_PENDING_CHANGES: &str =
    "go on with --accept-pending-changes (chart: job.acceptPendingChanges)";

/// A change by others that a restart of containerd would put into effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Path of the changed file or directory, or the name of the unit.
    path: String,
    kind: InputKind,
    verdict: Verdict,
    /// The distribution whose supervisor restarts containerd because of the change.
    restarted_by: Option<&'static str>,
}

/// What is known about a pending change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// containerd starts with it in a rehearsal.
    Passes,
    /// Others changed a file that Farrier wrote.
    Edited,
    /// containerd does not start with it in a rehearsal.
    Fails(Problem),
    /// containerd does not start in a rehearsal, and no change of its files is known.
    FailsUnchanged(Problem),
    /// No rehearsal is possible.
    Unknown(Problem),
    /// A rehearsal does not read it.
    NotRehearsed,
    /// It is absent, and a rehearsal does not read it.
    Removed,
    /// systemd has not loaded it.
    NotReloaded,
    /// containerd would use something else than the running containerd.
    Moves {
        what: Moved,
        /// The key in the configuration.
        key: &'static str,
        /// What the running containerd uses.
        now: String,
        /// What it would use after a restart.
        next: String,
    },
}

/// What a change of the configuration moves. A rehearsal passes in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    /// The directories of containerd's data: it would start without the pods of this node.
    Data,
    /// The CNI: the network of the node's pods may be gone.
    Network,
    /// The CRI's socket: the kubelet would not find it.
    Socket,
}

impl fmt::Display for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        if self.verdict == Verdict::NotReloaded {
            return write!(
                formatter,
                "the unit {path} was changed after containerd started, and systemd has not reloaded it"
            );
        }
        if let Verdict::FailsUnchanged(problem) = &self.verdict {
            return write!(
                formatter,
                "containerd does not start with its present files in a rehearsal, although no change of them since its start is known: {problem}"
            );
        }
        let (what, is) = match self.kind {
            InputKind::Config | InputKind::Unit | InputKind::Distribution => ("", ""),
            InputKind::AbsentConfig => ("", "is absent, and its directory "),
            InputKind::ImportDirectory | InputKind::NriPlugins => ("the list of files in ", ""),
            InputKind::Program => ("the program ", ""),
            InputKind::NriPlugin => ("the NRI plugin ", ""),
        };
        let change = match self.verdict {
            Verdict::Removed => "removed",
            Verdict::Passes
            | Verdict::Edited
            | Verdict::Fails(_)
            | Verdict::FailsUnchanged(_)
            | Verdict::Unknown(_)
            | Verdict::NotRehearsed
            | Verdict::NotReloaded
            | Verdict::Moves { .. } => "changed",
        };
        write!(
            formatter,
            "{what}{path} {is}was {change} after containerd started"
        )?;
        match &self.verdict {
            Verdict::Edited if self.kind == InputKind::AbsentConfig => {
                formatter.write_str(", and Farrier wrote the file")
            }
            Verdict::Passes
            | Verdict::NotRehearsed
            | Verdict::Removed
            | Verdict::NotReloaded
            | Verdict::FailsUnchanged(_) => Ok(()),
            Verdict::Edited => formatter.write_str(", and is no longer as Farrier wrote it"),
            Verdict::Fails(problem) => {
                write!(
                    formatter,
                    ", and containerd does not start with it: {problem}"
                )
            }
            Verdict::Moves {
                what,
                key,
                now,
                next,
            } => {
                let consequence = match what {
                    Moved::Data => "lose all pods",
                    Moved::Network => "change the network of pods",
                    Moved::Socket => "move the CRI's socket",
                };
                write!(
                    formatter,
                    ", and a restart would {consequence}: {key} is now {}, and the running containerd uses {}",
                    printable_up_to(next, SHOWN_PATH),
                    printable_up_to(now, SHOWN_PATH)
                )
            }
            Verdict::Unknown(problem) => write!(
                formatter,
                ", and Farrier can't check whether containerd starts with it: {problem}"
            ),
        }
    }
}

/// All pending changes of a host.
fn decide(facts: &HostFacts) -> Vec<Pending> {
    let inputs = facts.restart_inputs.inputs.iter();
    let start = start_on_present_files(facts);
    let moves = moves(facts);
    let is_moved = |input: &Input| moves.iter().any(|moved| moved.path == input.path);
    let pending = inputs
        .filter(|input| input.change.is_pending())
        .filter_map(|input| {
            let verdict = verdict(input, &start)?;
            // A move explains more than the other verdicts, except for a start that fails, which nobody can accept.
            if is_moved(input) && !matches!(verdict, Verdict::Fails(_)) {
                return None;
            }
            Some(Pending {
                path: input.path.clone(),
                kind: input.kind,
                verdict,
                restarted_by: is_watched(facts, &input.path).then_some(facts.distro.id),
            })
        });
    let pending: Vec<Pending> = pending.chain(moves.iter().cloned()).collect();
    // A new or changed file tells more than its directory.
    let has_file = |directory: &&Pending| {
        let mut files = pending.iter();
        files.any(|file| parent_directory(&file.path) == directory.path)
    };
    let told = pending.iter().filter(|pending| !has_file(pending));
    let mut told: Vec<Pending> = told.cloned().collect();
    let fails = |pending: &Pending| matches!(pending.verdict, Verdict::Fails(_));
    if let Rehearsal::Failed(problem) = &facts.restart_inputs.rehearsal
        && !told.iter().any(fails)
    {
        told.push(failing(facts, problem.clone()));
    }
    told
}

/// The pending change of a containerd that does not start in a rehearsal of its present files. The times of files do not show every change,
/// such as that of a mount.
fn failing(facts: &HostFacts, problem: Problem) -> Pending {
    Pending {
        path: facts.config_files.root.path.clone(),
        kind: InputKind::Config,
        verdict: Verdict::FailsUnchanged(problem),
        restarted_by: None,
    }
}

/// The changes of what the running containerd uses. A rehearsal starts with empty directories and without a network in any case, and finds
/// nothing.
fn moves(facts: &HostFacts) -> Vec<Pending> {
    let (Some(daemon), Ok(dump)) = (facts.containerd.daemon(), &facts.dump) else {
        return Vec::new();
    };
    let data = moves_of_data(facts, daemon, dump);
    let socket = facts.other_socket.as_ref().map(|now| {
        let next = facts.next_socket();
        let sets = |text: &str| address_of_dump(text).as_ref() == Some(&next);
        let path = file_that(facts, sets);
        moved(path, Moved::Socket, "address", now.clone(), next.clone())
    });
    let network = moves_of_network(facts, dump);
    data.into_iter().chain(socket).chain(network).collect()
}

fn moved(path: &str, what: Moved, key: &'static str, now: String, next: String) -> Pending {
    Pending {
        path: path.to_owned(),
        kind: InputKind::Config,
        verdict: Verdict::Moves {
            what,
            key,
            now,
            next,
        },
        restarted_by: None,
    }
}

/// The path of the last file that `sets` a value: it has precedence. Without one, the line was removed from the root file.
fn file_that(facts: &HostFacts, sets: impl Fn(&str) -> bool) -> &str {
    let files = facts.config_files.files();
    let file = files.filter(|file| file.text.as_deref().is_some_and(&sets));
    &file.last().unwrap_or(&facts.config_files.root).path
}

/// The changes of the directories that containerd keeps its data in. Directories in the command line have precedence over those in the
/// configuration.
fn moves_of_data(facts: &HostFacts, daemon: &Daemon, dump: &str) -> Vec<Pending> {
    let DataDirectories { root, state } = &facts.data_directories;
    let keys = [("root", root), ("state", state)].into_iter();
    let moves = keys
        .zip(data_directories(dump))
        .zip(daemon.names_data)
        .enumerate()
        .filter_map(|(at, (((key, now), next), is_named))| {
            let (now, next) = (now.as_ref()?, next?);
            if is_named || is_same_directory(now, &next) {
                return None;
            }
            let path = file_that(facts, |text| {
                data_directories(text)[at].as_ref() == Some(&next)
            });
            Some(moved(path, Moved::Data, key, now.clone(), next.clone()))
        });
    moves.collect()
}

/// The changes of the CNI's settings.
fn moves_of_network(facts: &HostFacts, dump: &str) -> Vec<Pending> {
    let (Some(now), Some(next)) = (&facts.network.cni, cni_settings(dump)) else {
        return Vec::new();
    };
    let values = |settings: &CniSettings| {
        let CniSettings {
            conf_dir,
            bin_dirs,
            conf_template,
        } = settings;
        [
            ("conf_dir", vec![conf_dir.clone()]),
            ("bin_dir", bin_dirs.clone()),
            ("conf_template", vec![conf_template.clone()]),
        ]
    };
    let is_rendered = match facts.distro.edited {
        Edited::GoTemplate { .. } | Edited::TomlTemplate(_) => true,
        Edited::Loaded | Edited::Snippets { .. } => false,
    };
    let pairs = values(now).into_iter().zip(values(&next)).enumerate();
    let moves = pairs.filter_map(|(at, ((key, now), (_, next)))| {
        let is_same = now.len() == next.len()
            && now
                .iter()
                .zip(&next)
                .all(|(one, other)| is_same_directory(one, other));
        if is_same {
            return None;
        }
        let sets = |text: &str| cni_settings(text).is_some_and(|it| values(&it)[at].1 == next);
        let path = file_that(facts, sets);
        // The distribution renders its root file anew at the restart.
        if is_rendered && path == facts.config_files.root.path {
            return None;
        }
        let shown = |values: &[String]| match values.join(", ") {
            none if none.is_empty() => "empty".to_owned(),
            shown => shown,
        };
        Some(moved(path, Moved::Network, key, shown(&now), shown(&next)))
    });
    moves.collect()
}

/// Whether the supervisor of containerd watches the file or directory at `path`.
fn is_watched(facts: &HostFacts, path: &str) -> bool {
    let root = &facts.config_files.root.path;
    let directory = facts.distro.watched_directory(root);
    directory.as_deref() == Some(path) || facts.distro.is_watched(root, path)
}

/// Whether two paths name the same directory: `/var/run` is a symlink to `/run`.
fn is_same_directory(one: &str, other: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
        let mut parts: Vec<String> = parts.map(str::to_owned).collect();
        if path.starts_with("/var/run") && parts.starts_with(&["var".into(), "run".into()]) {
            parts.remove(0);
        }
        parts
    };
    one.starts_with('/') == other.starts_with('/') && parts(one) == parts(other)
}

/// What is known about a changed input; `None` for one whose contents are those that containerd runs with, or that Farrier wrote.
fn verdict(input: &Input, start: &Rehearsal) -> Option<Verdict> {
    if matches!(input.contents, Contents::AsLoaded | Contents::AsWritten) {
        return None;
    }
    let is_edited = input.contents == Contents::Edited;
    Some(match (input.kind, input.change) {
        (_, Change::NotReloaded) => Verdict::NotReloaded,
        (_, Change::Removed) => Verdict::Removed,
        (InputKind::Unit | InputKind::Distribution, _) if is_edited => Verdict::Edited,
        (
            InputKind::NriPlugin
            | InputKind::NriPlugins
            | InputKind::Unit
            | InputKind::Distribution,
            _,
        ) => Verdict::NotRehearsed,
        (
            InputKind::Config
            | InputKind::AbsentConfig
            | InputKind::ImportDirectory
            | InputKind::Program,
            _,
        ) => match start {
            Rehearsal::Failed(problem) => Verdict::Fails(problem.clone()),
            Rehearsal::Served(_) | Rehearsal::NotPossible(_) if is_edited => Verdict::Edited,
            Rehearsal::Served(_) => Verdict::Passes,
            Rehearsal::NotPossible(problem) => Verdict::Unknown(problem.clone()),
        },
    })
}

/// The rehearsal of the present files. A configuration that lacks something on this host fails without one.
fn start_on_present_files(facts: &HostFacts) -> Rehearsal {
    match &facts.missing_prerequisite {
        Some(message) => Rehearsal::Failed(Problem::new(message, None)),
        None => facts.restart_inputs.rehearsal.clone(),
    }
}

/// Checks that a restart puts no change of others into effect, except those that containerd starts with and that Farrier never wrote, and
/// with `accepted` those that an operator accepts. Returns a note on each.
///
/// A change with which containerd does not start is accepted by nobody: the restart and the rollback would leave the node without
/// containerd. Nor is one of the directories of its data: the old pods would run on unseen, beside the new ones. Nor is one of the CRI's
/// socket: neither the kubelet nor Farrier would find containerd.
///
/// # Errors
/// The other changes.
pub(crate) fn check(facts: &HostFacts, accepted: bool) -> Result<Vec<String>, PendingChanges> {
    let is_allowed = |pending: &Pending| match pending.verdict {
        Verdict::Passes => true,
        Verdict::Fails(_)
        | Verdict::Moves {
            what: Moved::Data | Moved::Socket,
            ..
        } => false,
        Verdict::Moves {
            what: Moved::Network,
            ..
        }
        | Verdict::Edited
        | Verdict::FailsUnchanged(_)
        | Verdict::Unknown(_)
        | Verdict::NotRehearsed
        | Verdict::Removed
        | Verdict::NotReloaded => accepted,
    };
    let (allowed, refused): (Vec<Pending>, Vec<Pending>) =
        decide(facts).into_iter().partition(is_allowed);
    if !refused.is_empty() {
        return Err(PendingChanges(refused));
    }
    let note = |pending: &Pending| match pending.verdict {
        Verdict::FailsUnchanged(_) => pending.to_string(),
        Verdict::Passes
        | Verdict::Edited
        | Verdict::Fails(_)
        | Verdict::Unknown(_)
        | Verdict::NotRehearsed
        | Verdict::Removed
        | Verdict::NotReloaded
        | Verdict::Moves { .. } => {
            format!("{pending}: a restart of containerd puts this change into effect")
        }
    };
    Ok(allowed.iter().map(note).collect())
}

/// The pending changes that a restart of a plan for this host has put into effect, in one text; `None` without such changes. Every plan with
/// a restart has passed [`check`], so all of them were accepted or passed a rehearsal.
pub(crate) fn put_into_effect(facts: &HostFacts) -> Option<String> {
    let pending = decide(facts);
    let shown = pending.iter().take(SHOWN).map(ToString::to_string);
    let shown: Vec<String> = shown.collect();
    let more = match pending.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; {more} more are not shown"),
    };
    (!shown.is_empty()).then(|| format!("{}{more}", shown.join("; ")))
}

/// The number of changes in a message.
const SHOWN: usize = 5;

/// The length of a directory in a message.
const SHOWN_PATH: usize = 200;

/// Changes that refuse a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChanges(Vec<Pending>);

impl std::error::Error for PendingChanges {}

impl PendingChanges {
    /// The refusal of a restart because containerd does not start in a rehearsal of its present files, for the reason `problem`.
    pub(crate) fn of_failing_start(facts: &HostFacts, problem: Problem) -> Self {
        Self(vec![failing(facts, problem)])
    }

    /// How an operator goes on.
    pub(crate) fn help(&self) -> String {
        let moves = |moved: Moved| {
            let mut all = self.0.iter();
            all.any(|it| matches!(it.verdict, Verdict::Moves { what, .. } if what == moved))
        };
        if moves(Moved::Data) {
            return "undo that change, or drain the node and restart containerd yourself, then run farrier again"
                .to_owned();
        }
        if moves(Moved::Socket) {
            return "undo that change, or give the kubelet the new socket and restart containerd yourself, then run farrier again"
                .to_owned();
        }
        let fails = |pending: &Pending| matches!(pending.verdict, Verdict::Fails(_));
        if self.0.iter().any(fails) {
            return "undo or correct that change, then run farrier again".to_owned();
        }
        let is_unchanged =
            |pending: &Pending| matches!(pending.verdict, Verdict::FailsUnchanged(_));
        if self.0.iter().any(is_unchanged) {
            return format!(
                "correct what the reason names and check that containerd starts, for example by restarting it yourself; if it does, {ACCEPT_PENDING_CHANGES}"
            );
        }
        let restarted_by = self.0.iter().map(|pending| pending.restarted_by);
        let restarted_by: Option<Vec<&str>> = restarted_by.collect();
        if let Some(distro) = restarted_by.and_then(|distros| distros.first().copied()) {
            return format!(
                "wait some seconds until {distro} has restarted containerd because of that change, then run farrier again; if {distro} does not do so, restart it yourself, undo the change, or {ACCEPT_PENDING_CHANGES}"
            );
        }
        format!(
            "check that change, then restart containerd yourself, undo the change, or {ACCEPT_PENDING_CHANGES}"
        )
    }
}

impl fmt::Display for PendingChanges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, pending) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(formatter, "{separator}{pending}")?;
        }
        let more = self.0.len().saturating_sub(SHOWN);
        if more > 0 {
            write!(formatter, "; {more} more are not shown")?;
        }
        let what = if self.0.len() == 1 {
            "the change"
        } else {
            "these changes"
        };
        let is_unchanged =
            |pending: &Pending| matches!(pending.verdict, Verdict::FailsUnchanged(_));
        if self.0.iter().all(is_unchanged) {
            return Ok(());
        }
        write!(formatter, " (a restart would put {what} into effect)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;

    use super::*;
    use crate::containerd_config::SourceFile;
    use crate::installer::containerd::cri::Served;
    use crate::installer::containerd::daemon::Containerd;
    use crate::installer::distro::by_id;
    use crate::installer::fixtures::{
        CONFIG, CONFIG_PATH, OTHER_DIGEST, goal, host, remove_everything,
    };
    use crate::installer::inspect::restart_inputs::{RestartInputs, StartTime};
    use crate::installer::plan;

    const START: Duration = Duration::from_secs(1_000_000);

    /// containerd started at [`START`], and nothing shows that the clock was not set since.
    fn changed(seconds_later: i64) -> Change {
        let by = Duration::from_secs(seconds_later.unsigned_abs());
        let at = if seconds_later < 0 {
            START.checked_sub(by).unwrap()
        } else {
            START + by
        };
        Change::At(at, StartTime::new(START, None))
    }

    fn input(path: &str, kind: InputKind, change: Change, contents: Contents) -> Input {
        Input {
            path: path.to_owned(),
            kind,
            change,
            contents,
        }
    }

    fn with(inputs: Vec<Input>, rehearsal: Rehearsal) -> HostFacts {
        let restart_inputs = RestartInputs { inputs, rehearsal };
        host()
            .with(|facts| facts.restart_inputs = restart_inputs)
            .build()
    }

    fn passed() -> Rehearsal {
        Rehearsal::Served(Served::default())
    }

    fn failed() -> Rehearsal {
        Rehearsal::Failed(Problem::new("snapshotter gone is missing", None))
    }

    fn not_possible() -> Rehearsal {
        Rehearsal::NotPossible(Problem::new("it names a proxy plugin", None))
    }

    /// What is expected of a restart.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Expected {
        Goes,
        GoesWithANote,
        /// Refused, and an operator may accept it.
        Waits,
        Refused,
    }
    use Expected::{Goes, GoesWithANote, Refused, Waits};

    #[rstest]
    #[case::edited(10, Contents::Edited, [Waits, Refused, Waits])]
    #[case::edited_before_the_start(-120, Contents::Edited, [Goes, Waits, Goes])]
    #[case::foreign_from_before_the_start(-120, Contents::Foreign, [Goes, Waits, Goes])]
    #[case::foreign(10, Contents::Foreign, [GoesWithANote, Refused, Waits])]
    #[case::foreign_within_a_clock_step(-30, Contents::Foreign, [GoesWithANote, Refused, Waits])]
    #[case::equal_bytes_written_again(10, Contents::AsWritten, [Goes, Waits, Goes])]
    #[case::bytes_that_containerd_has_loaded(10, Contents::AsLoaded, [Goes, Waits, Goes])]
    fn a_changed_file_is_judged_by_its_time_its_bytes_and_a_rehearsal(
        #[case] seconds_later: i64,
        #[case] contents: Contents,
        #[case] expected: [Expected; 3],
        #[values(InputKind::Config, InputKind::AbsentConfig, InputKind::ImportDirectory)]
        kind: InputKind,
    ) {
        for (rehearsal, expected) in [passed(), failed(), not_possible()]
            .into_iter()
            .zip(expected)
        {
            let change = changed(seconds_later);
            let input = input("/conf.d", kind, change, contents.clone());
            assert_eq!(
                outcome(&with(vec![input], rehearsal.clone())),
                expected,
                "{rehearsal:?}"
            );
        }
    }

    #[rstest]
    #[case::program(InputKind::Program, Change::Replaced, [GoesWithANote, Refused, Waits])]
    #[case::unit(InputKind::Unit, changed(10), [Waits, Waits, Waits])]
    #[case::unit_from_before_the_start(InputKind::Unit, changed(-120), [Goes, Waits, Goes])]
    #[case::unit_that_systemd_has_not_loaded(InputKind::Unit, Change::NotReloaded, [Waits, Waits, Waits])]
    #[case::distribution(InputKind::Distribution, changed(10), [Waits, Waits, Waits])]
    #[case::a_removed_distribution(InputKind::Distribution, Change::Removed, [Waits, Waits, Waits])]
    #[case::nri_plugin(InputKind::NriPlugin, changed(10), [Waits, Waits, Waits])]
    #[case::nri_plugins(InputKind::NriPlugins, changed(10), [Waits, Waits, Waits])]
    fn what_no_rehearsal_reads_waits_for_an_operator(
        #[case] kind: InputKind,
        #[case] change: Change,
        #[case] expected: [Expected; 3],
    ) {
        for (rehearsal, expected) in [passed(), failed(), not_possible()]
            .into_iter()
            .zip(expected)
        {
            let input = input("/etc/own", kind, change, Contents::Foreign);
            assert_eq!(
                outcome(&with(vec![input], rehearsal.clone())),
                expected,
                "{rehearsal:?}"
            );
        }
    }

    /// The reason for a start that fails although no file is known to be changed.
    const FAILS_UNCHANGED: &str = "does not start with its present files in a rehearsal, although no change of them since its start is known: snapshotter gone is missing";

    #[test]
    fn a_start_that_fails_in_a_rehearsal_waits_for_an_operator_even_if_no_file_is_changed() {
        assert_eq!(check(&with(Vec::new(), passed()), false), Ok(Vec::new()));
        assert_eq!(
            check(&with(Vec::new(), not_possible()), false),
            Ok(Vec::new())
        );
        let facts = with(Vec::new(), failed());
        let refused = check(&facts, false).unwrap_err();
        assert_eq!(refused.to_string(), format!("containerd {FAILS_UNCHANGED}"));
        let help = refused.help();
        assert!(help.contains("check that containerd starts"), "{help}");
        assert!(help.contains(ACCEPT_PENDING_CHANGES), "{help}");
        let of_start = PendingChanges::of_failing_start(
            &facts,
            Problem::new("snapshotter gone is missing", None),
        );
        assert_eq!(of_start, refused);
        let notes = check(&facts, true).unwrap();
        assert_eq!(notes, [format!("containerd {FAILS_UNCHANGED}")]);
    }

    /// The result of an install; each refusal names the path, and each note, too.
    fn outcome(facts: &HostFacts) -> Expected {
        let path = facts.restart_inputs.inputs[0].path.as_str();
        let is_named = |text: &str| {
            let is_told =
                |word: &str| text.contains(&format!("was {word} after containerd started"));
            text.contains(path) && (is_told("changed") || is_told("removed"))
                || text.contains(FAILS_UNCHANGED)
        };
        let refused = |accepted: bool| {
            let goal = goal(&["a"]);
            let goal = if accepted {
                goal.accept_pending_changes()
            } else {
                goal
            };
            plan::decide(facts, &goal.build())
        };
        match (refused(false), refused(true)) {
            (Ok(plan), Ok(_)) => {
                assert!(plan.restart);
                let is_noted = plan.notes.iter().any(|note| is_named(note));
                if is_noted { GoesWithANote } else { Goes }
            }
            (Err(error), accepted) => {
                assert!(is_named(&error.to_string()), "{error}");
                let help = error.help().unwrap().into_owned();
                assert_eq!(help.contains("--accept-pending-changes"), accepted.is_ok());
                match accepted {
                    Ok(plan) => {
                        assert!(plan.notes.iter().any(|note| is_named(note)), "{plan:?}");
                        Waits
                    }
                    Err(_) => Refused,
                }
            }
            (Ok(_), Err(error)) => panic!("{error}"),
        }
    }

    /// A host whose containerd uses these directories of data, with these lines in its configuration now.
    fn using(root: &str, state: &str, lines: &str) -> HostFacts {
        let config = format!("{lines}\n{CONFIG}");
        let facts = host().serving(&config, &[]);
        let directories = DataDirectories {
            root: Some(root.to_owned()),
            state: Some(state.to_owned()),
        };
        facts
            .with(|facts| facts.data_directories = directories)
            .build()
    }

    #[rstest]
    #[case::the_same("root = '/data'\nstate = '/run/c'", None)]
    #[case::the_same_in_other_words("root = '/data/'\nstate = '/var/run/./c'", None)]
    #[case::none_of_both("", None)]
    #[case::another_root(
        "root = '/other'\nstate = '/run/c'",
        Some("root is now /other, and the running containerd uses /data")
    )]
    #[case::another_state(
        "root = '/data'\nstate = '/run/d'",
        Some("state is now /run/d, and the running containerd uses /run/c")
    )]
    #[case::a_relative_one("root = 'data'\nstate = '/run/c'", Some("root is now data, and"))]
    #[case::an_empty_one("root = ''\nstate = '/run/c'", Some("root is now , and"))]
    fn other_directories_of_data_refuse_a_restart_and_nobody_can_accept_them(
        #[case] lines: &str,
        #[case] expected: Option<&str>,
    ) {
        let facts = using("/data", "/run/c", lines);
        for goal in [goal(&["a"]), goal(&["a"]).accept_pending_changes()] {
            match (plan::decide(&facts, &goal.build()), expected) {
                (Ok(plan), None) => assert!(plan.restart),
                (Err(error), Some(expected)) => {
                    let message = error.to_string();
                    assert!(message.contains(CONFIG_PATH), "{message}");
                    assert!(message.contains(expected), "{message}");
                    assert!(message.contains("lose all pods"), "{message}");
                    let help = error.help().unwrap();
                    assert!(help.starts_with("undo that change"), "{help}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn directories_in_the_command_line_have_precedence_over_those_in_the_configuration() {
        let lines = "root = '/other'\nstate = '/run/d'";
        for names_data in [[true, true], [true, false], [false, true]] {
            let mut facts = using("/data", "/run/c", lines);
            if let Containerd::Live(daemon) = &mut facts.containerd {
                daemon.names_data = names_data;
            }
            let plan = plan::decide(&facts, &goal(&["a"]).build());
            assert_eq!(plan.is_ok(), names_data == [true, true], "{plan:?}");
        }
    }

    #[test]
    fn a_moved_socket_refuses_a_restart_and_nobody_can_accept_it() {
        let config = format!("{CONFIG}[grpc]\naddress = '/run/new.sock'\n");
        let facts = host().serving(&config, &[]);
        let facts = facts.with(|facts| facts.other_socket = Some("/run/old.sock".to_owned()));
        let facts = facts.build();
        assert_eq!(facts.socket(), "/run/old.sock");
        for goal in [goal(&["a"]), goal(&["a"]).accept_pending_changes()] {
            let error = plan::decide(&facts, &goal.build()).unwrap_err();
            let message = error.to_string();
            let expected = format!(
                "{CONFIG_PATH} was changed after containerd started, and a restart would move the CRI's socket: address is now /run/new.sock, and the running containerd uses /run/old.sock"
            );
            assert!(message.starts_with(&expected), "{message}");
            let help = error.help().unwrap();
            assert!(help.starts_with("undo that change, or give"), "{help}");
        }
    }

    #[rstest]
    #[case::the_same("conf_dir = '/c'\nbin_dir = '/b'\nconf_template = ''", None)]
    #[case::the_same_in_other_words("conf_dir = '/c/'\nbin_dirs = ['/./b']\nbin_dir = ''", None)]
    #[case::another_directory(
        "conf_dir = '/other'\nbin_dir = '/b'",
        Some("conf_dir is now /other, and the running containerd uses /c")
    )]
    #[case::other_programs(
        "conf_dir = '/c'\nbin_dirs = ['/b', '/o']",
        Some("bin_dir is now /b, /o, and the running containerd uses /b")
    )]
    #[case::a_template(
        "conf_dir = '/c'\nbin_dir = '/b'\nconf_template = '/t'",
        Some("conf_template is now /t, and the running containerd uses empty")
    )]
    fn other_settings_of_the_cni_wait_for_an_operator(
        #[case] lines: &str,
        #[case] expected: Option<&str>,
    ) {
        let config = format!("{CONFIG}[plugins.'io.containerd.grpc.v1.cri'.cni]\n{lines}\n");
        let facts = host().serving(&config, &[]);
        let cni = CniSettings::new("/c", "/b", Vec::new(), "");
        let facts = facts.with(|facts| facts.network.cni = Some(cni)).build();
        let decided = |goal: plan::Goal| plan::decide(&facts, &goal);
        let refused = decided(goal(&["a"]).build());
        let accepted = decided(goal(&["a"]).accept_pending_changes().build()).unwrap();
        let Some(expected) = expected else {
            assert!(refused.unwrap().notes.is_empty() && accepted.notes.is_empty());
            return;
        };
        let expected = format!("a restart would change the network of pods: {expected}");
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(&expected), "{message}");
        assert!(accepted.notes.iter().any(|note| note.contains(&expected)));
    }

    #[test]
    fn a_start_that_fails_is_told_beside_a_move_and_accepted_by_nobody() {
        let config =
            format!("{CONFIG}[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/o'\n");
        let edited = input(
            CONFIG_PATH,
            InputKind::Config,
            changed(10),
            Contents::Foreign,
        );
        let facts = host().serving(&config, &[]).with(|facts| {
            facts.restart_inputs.inputs = vec![edited];
            facts.restart_inputs.rehearsal = failed();
            facts.network.cni = Some(CniSettings::new("/c", "", Vec::new(), ""));
        });
        let error = check(&facts.build(), true).unwrap_err().to_string();
        assert!(error.contains("does not start with it"), "{error}");
    }

    #[test]
    fn the_file_that_sets_the_directory_is_named() {
        let mut facts = using("/data", "/run/c", "root = '/other'\nstate = '/run/c'");
        facts.config_files.root.text = Some(CONFIG.to_owned());
        let file = |path: &str, text: &str| SourceFile {
            path: path.to_owned(),
            text: Some(text.to_owned()),
        };
        facts.config_files.imported = vec![
            file("/conf.d/a.toml", "root = '/other'\n"),
            file("/conf.d/b.toml", "oom_score = 1\n"),
        ];
        let error = plan::decide(&facts, &goal(&["a"]).build()).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("/conf.d/a.toml was changed"),
            "{message}"
        );
    }

    #[test]
    fn an_edited_runtime_with_which_containerd_does_not_start_is_not_offered_for_acceptance() {
        let edited = input(
            CONFIG_PATH,
            InputKind::Config,
            changed(10),
            Contents::Foreign,
        );
        let mut facts = with(vec![edited], failed());
        facts.served.as_mut().unwrap().default = "kata".to_owned();
        for goal in [goal(&["a"]), goal(&["a"]).accept_pending_changes()] {
            let error = plan::decide(&facts, &goal.build()).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("does not start with it"), "{message}");
            let help = "undo or correct that change, then run farrier again";
            assert_eq!(error.help().as_deref(), Some(help));
        }
    }

    #[test]
    fn a_removal_is_refused_and_a_change_without_a_restart_is_not() {
        let edited = input(
            CONFIG_PATH,
            InputKind::Config,
            changed(10),
            Contents::Edited,
        );
        let restart_inputs = RestartInputs {
            inputs: vec![edited],
            rehearsal: passed(),
        };
        let facts = host().installed(&["a"]);
        let facts = facts
            .with(|facts| facts.restart_inputs = restart_inputs)
            .build();
        let error = plan::decide(&facts, &remove_everything()).unwrap_err();
        assert!(error.to_string().contains(CONFIG_PATH), "{error}");
        let upgrade = goal(&["a"]).binary("a", OTHER_DIGEST).build();
        let plan = plan::decide(&facts, &upgrade).unwrap();
        assert!(!plan.restart && plan.notes.is_empty(), "{plan:?}");
    }

    #[test]
    fn a_new_file_is_named_and_its_directory_is_not() {
        let inputs = vec![
            input(
                "/conf.d/a.toml",
                InputKind::Config,
                changed(10),
                Contents::Foreign,
            ),
            input(
                "/conf.d",
                InputKind::ImportDirectory,
                changed(10),
                Contents::Foreign,
            ),
            input(
                "/other.d",
                InputKind::ImportDirectory,
                changed(10),
                Contents::Foreign,
            ),
        ];
        let error = check(&with(inputs, failed()), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/conf.d/a.toml was changed"), "{error}");
        assert!(!error.contains("/conf.d was changed"), "{error}");
        assert!(error.contains("in /other.d was changed"), "{error}");
    }

    #[rstest]
    #[case::a_snippet("k0s", &["/etc/k0s/containerd.d/a.toml"], true)]
    #[case::a_removed_snippet("k0s", &["/etc/k0s/containerd.d"], true)]
    #[case::a_file_that_is_not_watched("k0s", &["/etc/k0s/k0s.yaml"], false)]
    #[case::both("k0s", &["/etc/k0s/containerd.d", "/etc/k0s/k0s.yaml"], false)]
    #[case::another_distribution("k3s", &["/etc/k0s/containerd.d"], false)]
    fn a_supervisor_that_restarts_containerd_by_itself_is_waited_for(
        #[case] distro: &str,
        #[case] paths: &[&str],
        #[case] expected: bool,
    ) {
        let input = |path: &&str| {
            let kind = InputKind::Distribution;
            input(path, kind, changed(10), Contents::Foreign)
        };
        let mut facts = with(paths.iter().map(input).collect(), not_possible());
        facts.distro = by_id(distro);
        facts.config_files.root.path = "/etc/k0s/containerd.toml".to_owned();
        let help = check(&facts, false).unwrap_err().help();
        let waits = "wait some seconds until k0s has restarted containerd";
        assert_eq!(help.starts_with(waits), expected, "{help}");
        assert!(help.contains(ACCEPT_PENDING_CHANGES), "{help}");
    }

    #[test]
    fn a_message_names_some_of_many_changes() {
        let input = |number: u32| {
            let path = format!("/conf.d/{number}.toml");
            input(&path, InputKind::Config, changed(10), Contents::Foreign)
        };
        let facts = with((0..300).map(input).collect(), not_possible());
        let error = check(&facts, false).unwrap_err().to_string();
        assert!(error.contains("295 more are not shown"), "{error}");
        assert!(error.len() < 2_000, "{error}");
    }
}
