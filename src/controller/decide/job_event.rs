//! The words of the Event about the end of a Job: what failed on the node, what the node still serves, and what the cluster took over.

use super::event::{EventSpec, LONGEST_NOTE, LONGEST_REASON, by_cause, shortened};
use crate::controller::cluster::node_view::Applied;
use crate::handoff::{HandlerReport, Problem, ProvisionReport, printable_up_to};
use crate::names::reasons;

/// The note of a failure, with the binaries that the host still serves of the Shims that failed.
#[must_use]
pub fn with_served(note: &str, applied: &Applied) -> String {
    let failed = applied.shims.iter().filter(|(name, shim)| {
        let tried = applied.tried.get(*name);
        shim.reason.is_some() && tried != shim.fulfilled.as_ref()
    });
    let served =
        failed.filter_map(|(name, shim)| Some(format!("{name} {}", shim.served_binary()?)));
    let served = served.collect::<Vec<_>>().join(", ");
    if served.is_empty() {
        return note.to_owned();
    }
    followed_by(note, &format!("still served: {served}"))
}

/// Two sentences as one note. Each of them has room for a half at least.
#[must_use]
pub fn followed_by(note: &str, more: &str) -> String {
    let more = printable_up_to(&format!("; {more}"), LONGEST_NOTE / 2);
    format!("{}{more}", printable_up_to(note, LONGEST_NOTE - more.len()))
}

/// Adds to the Event which handlers of the command line belong to the cluster now. Who installed them must learn that.
#[must_use]
pub fn with_taken_over(event: Option<EventSpec>, report: &ProvisionReport) -> Option<EventSpec> {
    if report.taken_over.is_empty() {
        return event;
    }
    let messages = report.taken_over.iter().map(|it| it.message.as_str());
    let told = messages.collect::<Vec<_>>().join("; ");
    let taken_over = |note: String| EventSpec {
        warning: report.taken_over.iter().any(|it| it.replaced),
        reason: reasons::TAKEN_OVER.to_owned(),
        note,
    };
    Some(match event {
        None => taken_over(printable_up_to(&told, LONGEST_NOTE)),
        Some(event) if event.reason == reasons::PROVISIONED => {
            taken_over(followed_by(&event.note, &told))
        }
        // A failure or a wait keeps its reason.
        Some(event) => EventSpec {
            note: followed_by(&event.note, &told),
            ..event
        },
    })
}

/// The problem of the whole host, and the problem of each Shim that failed, for an Event.
#[must_use]
pub fn sentence(applied: &Applied, report: &ProvisionReport) -> String {
    let whole = report.reason.as_ref().map(|reason| Problem {
        message: reason.clone(),
        help: report.remedy.clone(),
    });
    let is_whole = |reason: &String| {
        whole.as_ref().is_some_and(|whole| {
            whole.message == *reason || shortened(whole, LONGEST_REASON) == *reason
        })
    };
    let each = applied.shims.iter().filter_map(|(name, shim)| {
        let reason = shim.reason.as_ref().filter(|reason| !is_whole(reason))?;
        Some((name.clone(), problem_of_shim(name, reason, report)))
    });
    // A reason of a single Shim is among the reasons of the Shims already, with its help.
    let host = whole.iter().filter(|it| !it.message.starts_with("shim "));
    let parts: Vec<Problem> = host.cloned().chain(by_cause(each)).collect();
    if parts.is_empty() {
        let help = "see the log of the installer's pod";
        Problem::with_help("the installer gave no reason", help).sentence()
    } else {
        // Each part has the same maximal length, so that every part fits.
        let share = (LONGEST_NOTE / parts.len()).saturating_sub(2);
        let parts: Vec<String> = parts.iter().map(|it| it.sentence_up_to(share)).collect();
        printable_up_to(&parts.join("; "), LONGEST_NOTE)
    }
}

/// The problem of a Shim with this recorded reason. The report has the help apart from the message.
fn problem_of_shim(name: &str, reason: &str, report: &ProvisionReport) -> Problem {
    let entries = report.handlers.iter().filter(|entry| entry.shim == name);
    let reported = entries
        .filter_map(problem)
        .find(|problem| shortened(problem, LONGEST_REASON) == reason);
    reported.unwrap_or_else(|| Problem::new(reason, None))
}

/// Why a handler is not as requested.
#[must_use]
pub fn problem(entry: &HandlerReport) -> Option<Problem> {
    let message = entry.reason.clone()?;
    let help = entry.remedy.clone();
    Some(Problem { message, help })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::controller::cluster::node_view::AppliedShim;
    use crate::handoff::Outcome;

    fn applied(shim: &str, reason: &str) -> Applied {
        let known = AppliedShim {
            reason: Some(reason.to_owned()),
            ..AppliedShim::default()
        };
        Applied {
            shims: BTreeMap::from([(shim.to_owned(), known)]),
            ..Applied::default()
        }
    }

    #[test]
    fn the_reason_of_a_shim_is_in_the_sentence_once() {
        let mut report = ProvisionReport::new(Outcome::Partial);
        report.reason = Some("shim spin: pods still use the handler".to_owned());
        report.remedy = Some("delete them".to_owned());
        let text = sentence(
            &applied("spin", "pods still use the handler. Delete them"),
            &report,
        );
        assert_eq!(text, "shim spin: pods still use the handler. Delete them");
    }

    #[test]
    fn every_failed_shim_is_in_the_shortened_sentence() {
        let mut all = Applied::default();
        for shim in ["spin", "wasmedge", "wasmer", "wasmtime"] {
            let reason = format!("no route to {shim} ").repeat(40);
            all.shims.extend(applied(shim, &reason).shims);
        }
        let text = sentence(&all, &ProvisionReport::new(Outcome::Refused));
        assert!(text.len() <= LONGEST_NOTE);
        assert!(
            text.contains("shim spin:") && text.contains("shim wasmtime:"),
            "{text}"
        );
    }

    #[test]
    fn a_reason_of_the_whole_host_is_in_the_sentence_once_with_its_help() {
        let mut report = ProvisionReport::new(Outcome::Refused);
        report.reason = Some("the file can't be parsed".to_owned());
        report.remedy = Some("correct it".to_owned());
        for reason in [
            "the file can't be parsed",
            // The installer reports the help with each handler, too.
            "the file can't be parsed. Correct it",
        ] {
            let text = sentence(&applied("spin", reason), &report);
            assert_eq!(text, "the file can't be parsed. Correct it");
        }
    }

    #[test]
    fn the_sentence_of_many_failures_drops_the_help_before_a_cause() {
        let (mut all, mut report) = (Applied::default(), ProvisionReport::new(Outcome::Refused));
        for shim in ["spin", "wasmedge", "wasmer", "wasmtime", "slight"] {
            let cause = format!("failed to fetch https://{shim}.example.org/x: no such host");
            let entry = HandlerReport {
                shim: shim.to_owned(),
                handler: shim.to_owned(),
                path: None,
                sha256: None,
                served: false,
                reason: Some(cause),
                remedy: Some("check the location and the network".repeat(6)),
                waits_for_pods: false,
            };
            let reason = shortened(&problem(&entry).unwrap(), LONGEST_REASON);
            all.shims.extend(applied(shim, &reason).shims);
            report.handlers.push(entry);
        }
        let text = sentence(&all, &report);
        assert_eq!(text.matches("no such host").count(), 5, "{text}");
        assert!(!text.contains("network"), "{text}");
    }
}
