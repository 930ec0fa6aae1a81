//! Decides what has to change on a host so that it carries what is wanted. Pure: no file, no process, no clock, no logging.
//!
//! An empty [`HostPlan`] means that nothing is written and nothing restarted. What a handler of ours costs is a restart when it is
//! first declared and one when the last of ours leaves: in between, a handler that goes stays declared without a binary, and
//! leaves with the next change that restarts containerd anyway.

pub mod binaries;
pub mod config_edit;
pub mod config_source;
pub mod expected;
pub mod goal;
pub mod handlers;
pub mod notes;
pub mod preconditions;
pub mod stale_config;
pub mod takeover;

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd_config::{self, Handler};
use crate::handoff::{HandlerReport, Owner, sha256_hex, with_help};
use crate::installer::containerd::process::Refusal;
use crate::installer::inspect::Facts;
use crate::installer::state::{OwnedConfig, OwnedHandler, Places, State, owner_word};
use binaries::{links, lost, to_store, unneeded};
use config_edit::{Site, declarations};
use expected::is_served;
pub use goal::{Scope, Want};
use handlers::{Desired, desired};
use notes::{notes, unknown};
use preconditions::{check_host, check_restart, is_bare};
use takeover::{Leftovers, leftovers};

/// What has to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct HostPlan {
    /// Folders to make, outermost first.
    pub make_folders: Vec<String>,
    /// SHA-256 of the binaries to put into the store.
    pub store: BTreeSet<String>,
    /// Stable paths to point to a binary, by its SHA-256.
    pub links: BTreeMap<String, String>,
    /// The configuration files to write, the one that is to declare our handlers first, if it changes.
    pub config: Vec<ConfigChange>,
    /// Whether containerd must be restarted.
    pub restart: bool,
    /// The state file afterwards; `None` where nothing is ours any more.
    pub state: Option<State>,
    /// Whether the state file is written or removed.
    pub write_state: bool,
    /// Stable paths and stored files that nothing needs any more.
    pub clear: Vec<String>,
    /// Folders of ours to remove, where they are empty, outermost first.
    pub drop_folders: Vec<String>,
    /// What goes of predecessors.
    pub leftovers: Leftovers,
    /// Handlers that lose their binary, as they are, unless a pod takes one up meanwhile.
    pub leaving: BTreeMap<String, OwnedHandler>,
    /// What is to be reported on each handler; `served` is what will be so if all goes well.
    pub handlers: Vec<HandlerReport>,
    /// What is to be said that leaves nothing undone: sentences.
    pub notes: Vec<String>,
    /// Handlers that are ours, before or after.
    pub ours: BTreeSet<String>,
    /// Handlers as they will be declared.
    pub declared: Vec<Handler>,
}

/// A change of one configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// Absolute path on the host.
    pub path: String,
    /// Its text now, if it is there.
    pub before: Option<String>,
    /// Its text afterwards; `None` where it is removed.
    pub after: Option<String>,
    /// The root configuration file, which containerd is given.
    pub root: String,
    /// The same change of a file that containerd loads, where it loads not `path` but what the distribution makes of it.
    pub rendered: Option<config_source::Rendered>,
    /// Whether containerd loads it, or what the distribution makes of it. What a former containerd loaded lies idle.
    pub live: bool,
}

/// Why a host is not changed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The distribution is known and not one that this release changes.
    #[error("{0}")]
    Distribution(&'static str),
    /// There is nothing to prove a change on.
    #[error("no containerd runs on this host{}", not_counted(refused))]
    NoDaemon {
        /// Processes of that name that do not count.
        refused: Vec<Refusal>,
    },
    /// Its release is unknown.
    #[error(
        "the release of this host's containerd can't be told; see that `containerd --version` works on the node"
    )]
    NoVersion,
    /// It was not well before.
    #[error("containerd was not serving before any change: {0}; repair it first")]
    NotServing(String),
    /// Binaries can't be kept where they can be executed, or the configuration can't be written.
    #[error("{0}")]
    Obstacle(String),
    /// What a distribution makes its configuration from can't be edited.
    #[error(transparent)]
    Source(#[from] config_source::Error),
    /// The configuration can't be edited.
    #[error("{}", with_help(.0, .0.help()))]
    Config(#[from] containerd_config::Error),
    /// containerd refuses the configuration as it is.
    #[error("containerd does not load its present configuration: {0}; repair it first")]
    Refuses(String),
    /// A restart would put live what somebody else wrote.
    #[error(
        "{path}, or what it imports, was changed after containerd started ({what} differs from what is served), and a restart would put that live; restart containerd yourself or undo that change, then run farrier again"
    )]
    Pending {
        /// The root configuration.
        path: String,
        /// What differs, in a few words.
        what: String,
    },
    /// A restart would end pods.
    #[error(
        "restarting {unit} would end every pod on this node, because its KillMode is {mode:?}; set KillMode=process there (under OpenRC rc_cgroup_cleanup=NO), or accept that with --allow-pod-restarts"
    )]
    KillMode {
        /// The unit.
        unit: String,
        /// Its `KillMode`.
        mode: String,
    },
    /// A restart would end the node itself.
    #[error(
        "this node is a container that a restart ends, and with it every pod; accept that with --allow-pod-restarts, or job.allowPodRestarts among the chart's values"
    )]
    Container,
    /// Whoever can't be asked about a restart can't be asked for one: no leave for restarts that end pods helps here.
    #[error(
        "whether containerd can be restarted and would spare pods then can't be told: {0}; see that the service manager answers on the node"
    )]
    KillModeUnknown(String),
}

/// Refusals that are told one by one. Any user can start processes of that name.
const TOLD_REFUSALS: usize = 3;

/// Why no process called containerd counts, or how to go on where there is none.
pub(crate) fn not_counted(refused: &[Refusal]) -> String {
    if refused.is_empty() {
        return "; start it, or use --offline to prepare the host for its next start".to_owned();
    }
    let told = refused.iter().take(TOLD_REFUSALS);
    let told: Vec<String> = told.map(ToString::to_string).collect();
    let mut words = format!(": {}", told.join(": "));
    let more = refused.len().saturating_sub(TOLD_REFUSALS);
    if more > 0 {
        words = format!(" ({more} more are not told){words}");
    }
    words
}

impl HostPlan {
    /// Whether the host already is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
            && self.links.is_empty()
            && self.config.is_empty()
            && !self.restart
            && !self.write_state
            && self.clear.is_empty()
            && self.leftovers.is_empty()
    }

    /// The binaries that are stored, as paths on the host.
    pub fn stored(&self) -> impl Iterator<Item = String> {
        let places = self.state.as_ref().map(|state| Places {
            folder: state.folder.clone(),
        });
        let path = move |sha256: &String| Some(places.as_ref()?.store_path(sha256));
        self.store.iter().filter_map(path)
    }

    /// Takes in what pods took up while the plan was carried out: it stays, and is reported.
    pub fn stays(&mut self, late: Vec<HandlerReport>) {
        let is_kept = |path: &String| {
            late.iter().any(|handler| {
                let sha256 = handler.sha256.as_deref();
                handler.path.as_ref() == Some(path)
                    || sha256.is_some_and(|sha256| path.ends_with(sha256))
            })
        };
        self.clear.retain(|path| !is_kept(path));
        self.leftovers.files.retain(|path| !is_kept(path));
        self.handlers.extend(late);
    }
}

/// What has to be done on the host that `facts` describe so that it carries `want`.
///
/// # Errors
/// When nothing may be changed at all. What is wrong with one shim alone is in its handlers' reports.
pub fn decide(facts: &Facts, want: &Want) -> Result<HostPlan, Error> {
    if want.shims.is_empty() && is_bare(facts) {
        // Nothing is to be put here, and there is nothing to take away, however the host is.
        return Ok(HostPlan {
            notes: unknown(want, &BTreeMap::new()).collect(),
            ..HostPlan::default()
        });
    }
    check_host(facts, want)?;
    let mut site = Site::find(facts, want.offline)?;
    let desired = desired(facts, want, &site);
    site.take_over(facts, &desired);
    let plan = assemble(&site, facts, want, desired)?;
    match &facts.obstacle {
        // What is there already goes on working.
        Some(obstacle) if !plan.is_empty() => Err(Error::Obstacle(obstacle.clone())),
        Some(_) | None => Ok(plan),
    }
}

fn assemble(
    site: &Site<'_>,
    facts: &Facts,
    want: &Want,
    mut desired: Desired,
) -> Result<HostPlan, Error> {
    let Configured {
        next,
        declared,
        changes: config,
        after,
        restart,
    } = configure(site, facts, want, &desired.next)?;
    let store = to_store(facts, want, &next);
    let links = links(facts, &next, &store);
    let mut notes = notes(facts, want, &desired, &next);
    if !config.is_empty() && !next.is_empty() {
        notes.extend(facts.distro.note(&site.placement.path));
    }
    let leftovers = leftovers(facts, &desired, &next, &site.untouched());
    let leaving = desired.leaving_as_they_were(want.owner);
    let make_folders = if next.is_empty() {
        Vec::new()
    } else {
        site.make_folders(facts)
    };
    let is_whole = desired.reports.iter().all(|report| report.reason.is_none());
    notes.extend(desired.report_lost(want.owner, &lost(facts, &next, &store)));
    let mut state = State {
        handlers: next,
        late: desired.late,
        folder: facts.places.folder.clone(),
        ..facts.state.clone()
    };
    state.folders.extend(make_folders.iter().cloned());
    if !config.is_empty() {
        state.config = after.map(|after| OwnedConfig {
            path: site.placement.path.clone(),
            sha256: sha256_hex(after.as_bytes()),
            root: Some(facts.loaded.root.path.clone()),
        });
    }
    answer(&mut state, want, is_whole);
    let state = Some(state).filter(|state| !state.is_empty());
    let unchanged = match &state {
        Some(state) => *state == facts.state,
        None => facts.state == State::default(),
    };
    let clear = unneeded(
        &facts.places,
        state.as_ref(),
        &facts.binaries,
        &facts.stored.union(&facts.damaged).cloned().collect(),
        |handler| facts.in_use.contains_key(handler),
    );
    let mut ours = site.ours.clone();
    ours.extend(declared.iter().map(|handler| handler.name.clone()));
    Ok(HostPlan {
        make_folders,
        store,
        links,
        config,
        restart,
        write_state: !unchanged,
        clear,
        drop_folders: if state.is_none() {
            facts.state.folders.clone()
        } else {
            Vec::new()
        },
        state,
        leftovers,
        leaving,
        handlers: desired.reports,
        notes,
        ours,
        declared,
    })
}

/// What containerd's configuration becomes.
struct Configured {
    /// The handlers that are ours afterwards.
    next: BTreeMap<String, OwnedHandler>,
    /// Those of them that are declared.
    declared: Vec<Handler>,
    /// The files that change.
    changes: Vec<ConfigChange>,
    /// The text of the file that declares them.
    after: Option<String>,
    restart: bool,
}

fn configure(
    site: &Site<'_>,
    facts: &Facts,
    want: &Want,
    next: &BTreeMap<String, OwnedHandler>,
) -> Result<Configured, Error> {
    let mut next = next.clone();
    let cut = site.cut_out(facts)?;
    let is_cut = cut.iter().any(|change| change.live);
    if want.owner == Owner::Cluster && !is_cut {
        // A favour to Shims that may come: none that costs a restart.
        let mut without = next.clone();
        without.retain(|name, owned| {
            owned.sha256.is_some() || facts.state.handlers.contains_key(name)
        });
        if site.edited(&declarations(facts, &without))?.as_deref() == site.text {
            next = without;
        }
    }
    let mut after = site.edited(&declarations(facts, &next))?;
    if after.as_deref() != site.text || is_cut {
        // containerd is restarted anyway: what is reserved for nobody any more leaves with it.
        next.retain(|name, owned| {
            owned.sha256.is_some() || owned.owner != want.owner || want.reserve.contains(name)
        });
        after = site.edited(&declarations(facts, &next))?;
    }
    let declared = declarations(facts, &next);
    let changes = site.changes(facts, after.as_deref(), &declared, cut)?;
    let served = facts.served.as_ref().ok();
    let pending = served.is_some_and(|served| !is_served(served, &declared, &site.ours));
    let restart = !want.offline && (changes.iter().any(|change| change.live) || pending);
    if restart || !changes.is_empty() {
        site.check_restart(facts)?;
    }
    if restart {
        check_restart(facts, want)?;
    }
    Ok(Configured {
        next,
        declared,
        changes,
        after,
        restart,
    })
}

/// Records which request a host answers: one that is carried out in part is not answered.
fn answer(state: &mut State, want: &Want, is_whole: bool) {
    let owner = owner_word(want.owner).to_owned();
    if want.digest.is_empty() {
        state.requests.remove(&owner);
    } else if is_whole {
        state.requests.insert(owner, want.digest.clone());
    }
}

/// Cuts what a change that is being undone declared out of a configuration that somebody edited since; `declares` names it.
///
/// # Errors
/// When today's configuration can't be edited.
pub fn cut(facts: &Facts, declares: &[String]) -> Result<Vec<ConfigChange>, Error> {
    let mut site = Site::find(facts, true)?;
    // What the change took over without writing it is not its to cut out.
    let inherited = |name: &&String| {
        let inherited = facts.inheritance.handlers.get(*name);
        inherited.is_some_and(|inherited| !inherited.declared.marked)
    };
    let wrote = declares.iter().filter(|name| !inherited(name));
    site.ours.extend(wrote.cloned());
    let declared = declarations(facts, &facts.state.handlers);
    let after = site.edited(&declared)?;
    let others = site.cut_out(facts)?;
    site.changes(facts, after.as_deref(), &declared, others)
}

#[cfg(test)]
pub(crate) mod tests;
