//! What is installed on a host, by whom, and what is wrong with it, each finding with its remedy. Pure: it judges facts.

use serde::Serialize;

use super::adopt;
use super::distro::Restart;
use super::facts::{Facts, path_of, verified};
use super::plan::spares_pods;
use super::state::{STATE_FILE, owner_word};
use super::text::printable;
use crate::handoff::sha256_hex;

/// What is known of a host's shims.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// Whether there is no finding.
    pub healthy: bool,
    /// Word of the distribution table.
    pub distro: String,
    /// Release of containerd.
    pub containerd: Option<String>,
    /// Handlers of ours.
    pub handlers: Vec<Installed>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A handler of ours.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// The name containerd knows it by.
    pub handler: String,
    /// The Shim that it belongs to.
    pub shim: String,
    /// Whose it is: `cluster`, `local`, `kwasm` or `rcm`.
    pub owner: &'static str,
    /// How it is.
    pub condition: Condition,
    /// SHA-256 of its binary.
    pub sha256: Option<String>,
    /// Pod sandboxes that use it.
    pub sandboxes: usize,
}

/// How a handler of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// containerd lists it, and its binary stands verified at its path.
    Served,
    /// Declared for a Shim that this node doesn't carry; no binary.
    Reserved,
    /// containerd doesn't list it, or its binary is not what was installed.
    Unserved,
    /// containerd was not asked.
    Unknown,
}

/// Something that is wrong.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// A sentence.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Judges a host; `journal` says whether the undo log of an interrupted change is there, and `leftovers` which files of a run that was
/// killed are.
#[must_use]
pub fn examine(facts: &Facts, journal: bool, leftovers: &[String]) -> Diagnosis {
    let mut findings = Vec::new();
    let mut find = |problem: String, remedy: &str| {
        findings.push(Finding {
            problem: printable(&problem),
            remedy: remedy.to_owned(),
        });
    };
    if journal {
        find(
            "a change of this host was interrupted".to_owned(),
            "run `farrier install` or `farrier uninstall` again: it undoes or finishes the change first",
        );
    }
    if let Some(refusal) = facts.distro.refusal {
        find(
            refusal.to_owned(),
            "see the documentation of that distribution",
        );
    } else if let (Some(_), Err(words)) = (&facts.daemon, &facts.served) {
        find(words.clone(), "see `journalctl -u containerd` on the node");
    } else if facts.daemon.is_none() {
        find(
            "no containerd runs on this host".to_owned(),
            "start containerd",
        );
    }
    if let (Some(_), Ok(mode)) = (&facts.daemon, &facts.kill_mode)
        && !spares_pods(mode)
        // A node that is a container can't do otherwise.
        && facts.distro.restart == Restart::Service
    {
        find(
            format!(
                "a restart of {} would end every pod on this node, because its KillMode is {mode:?}",
                facts.unit()
            ),
            "set KillMode=process in the unit, or pass --allow-pod-restarts when no pod matters",
        );
    }
    for path in leftovers.iter().cloned().chain(unreferenced(facts)) {
        find(
            format!("{path} was left behind by a former run"),
            "run `farrier install` again with the same shims; where it stays, remove it by hand",
        );
    }
    for (handler, owned) in &facts.state.handlers {
        let drifted = owned.sha256.is_some() && verified(facts, handler) != owned.sha256.as_deref();
        if drifted {
            find(
                format!(
                    "{} is not the binary that was installed",
                    path_of(facts, handler)
                ),
                "run `farrier install` again with the same shims",
            );
        }
    }
    if let Some(problem) = config_drift(facts) {
        find(problem, "run `farrier install` again with the same shims");
    }
    for (problem, remedy) in adopt::complaints(facts) {
        find(problem, remedy);
    }
    let handlers = facts
        .state
        .handlers
        .keys()
        .map(|name| installed(facts, name))
        .collect();
    let mut diagnosis = Diagnosis {
        healthy: false,
        distro: facts.distro.word.to_owned(),
        containerd: facts.version.map(|version| version.to_string()),
        handlers,
        findings,
    };
    for installed in &diagnosis.handlers {
        if installed.condition == Condition::Unserved && installed.sha256.is_some() {
            diagnosis.findings.push(Finding {
                problem: format!("handler {} is installed and not served", installed.handler),
                remedy: "run `farrier install` again with the same shims".to_owned(),
            });
        }
    }
    diagnosis.healthy = diagnosis.findings.is_empty();
    diagnosis
}

/// Stored binaries that no handler of ours needs.
fn unreferenced(facts: &Facts) -> impl Iterator<Item = String> {
    let needed = |sha256: &&String| {
        let mut handlers = facts.state.handlers.values();
        handlers.any(|owned| owned.sha256.as_ref() == Some(sha256))
    };
    let stored = facts.stored.iter().chain(&facts.damaged);
    stored
        .filter(move |sha256| !needed(sha256))
        .map(|sha256| facts.places.store_path(sha256))
}

/// The configuration that we wrote may be edited by others; it must still declare what is ours.
fn config_drift(facts: &Facts) -> Option<String> {
    let config = facts.state.config.as_ref()?;
    let loaded = std::iter::once(&facts.loaded.root).chain(&facts.loaded.imported);
    let text = loaded
        .chain(&facts.sources)
        .find(|file| file.path == config.path)
        .and_then(|file| file.text.as_deref());
    let Some(text) = text else {
        return Some(format!(
            "{} is gone, which declared our handlers",
            config.path
        ));
    };
    let missing = facts
        .state
        .handlers
        .iter()
        .filter(|(_, owned)| !adopt::is_predecessor(owned.owner))
        .map(|(handler, _)| handler)
        .find(|handler| !text.contains(&path_of(facts, handler)));
    if sha256_hex(text.as_bytes()) == config.sha256 {
        return None;
    }
    missing.map(|handler| {
        format!(
            "{} no longer declares handler {handler}, which {STATE_FILE} names",
            config.path
        )
    })
}

fn installed(facts: &Facts, handler: &str) -> Installed {
    let owned = facts.state.handlers.get(handler);
    let sha256 = owned.and_then(|owned| owned.sha256.clone());
    let path = path_of(facts, handler);
    let condition = match (&sha256, &facts.served) {
        (None, _) => Condition::Reserved,
        (Some(_), Err(_)) => Condition::Unknown,
        (Some(sha256), Ok(served)) => {
            let listed = served.handlers.get(handler) == Some(&path);
            if listed && verified(facts, handler) == Some(sha256) {
                Condition::Served
            } else {
                Condition::Unserved
            }
        }
    };
    Installed {
        handler: handler.to_owned(),
        shim: owned.map(|owned| owned.shim.clone()).unwrap_or_default(),
        owner: owned.map_or("", |owned| owner_word(owned.owner)),
        condition,
        sha256,
        sandboxes: facts.in_use.get(handler).copied().unwrap_or_default(),
    }
}
