//! Decides what has to change on a host so that it carries what is wanted. Pure: no file, no process, no clock, no logging.
//!
//! An empty [`HostPlan`] means that nothing is written and nothing restarted. What a handler of ours costs is a restart when it is
//! first declared and one when the last of ours leaves: in between, a handler that goes stays declared without a binary, and
//! leaves with the next change that restarts containerd anyway.

use std::collections::{BTreeMap, BTreeSet};

use super::cri::Served;
use super::facts::{Facts, verified};
use super::state::{
    BIN_FOLDER, OwnedConfig, OwnedHandler, STATE_FOLDER, STORE_FOLDER, State, binary_path,
    folder_of, owner_word, store_path,
};
use crate::containerd_config::{
    self, DeclaredHandler, Handler, Placement, PluginId, Value, Version, edit, handlers, place,
    runtimes_of_dump,
};
use crate::handoff::{HandlerReport, OptionValue, Owner, ShimRequest};
use crate::names::sha256_hex;

/// What a host should carry.
#[derive(Debug)]
pub struct Want {
    /// Whose set it is.
    pub owner: Owner,
    /// The set.
    pub shims: Vec<ShimRequest>,
    /// Handlers to declare without a binary.
    pub reserve: Vec<String>,
    /// What else of ours on the host is not wanted any more.
    pub scope: Scope,
    /// SHA-256 of each shim's binary, or why there is none, by the shim's name.
    pub candidates: BTreeMap<String, Result<String, String>>,
    /// SHA-256 of the request; empty where there is none.
    pub digest: String,
    /// Nothing is restarted.
    pub offline: bool,
}

/// Which handlers leave that a request does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The rest of the owner's set.
    Owner,
    /// None.
    Nothing,
    /// Those of the owner that belong to the shims named.
    Shims(BTreeSet<String>),
    /// All of ours, whoever asked for them.
    Everything,
}

/// What has to be done, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// Folders to make, outermost first.
    pub make_folders: Vec<String>,
    /// SHA-256 of the binaries to put into the store.
    pub store: BTreeSet<String>,
    /// Stable paths to point to a binary, by its SHA-256.
    pub links: BTreeMap<String, String>,
    /// The configuration to write.
    pub config: Option<ConfigChange>,
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
    /// What is to be reported on each handler; `served` is what will be so if all goes well.
    pub handlers: Vec<HandlerReport>,
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
    /// `version` of a file that imports both, to have a candidate judged that is not the root itself.
    pub version: Option<i64>,
}

/// Why a host is not changed at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The distribution is known and not one that this release changes.
    #[error("{0}")]
    Distribution(&'static str),
    /// There is nothing to prove a change on.
    #[error(
        "no containerd runs on this host; start it, or use --offline to prepare the host for its next start"
    )]
    NoDaemon,
    /// Its release is unknown.
    #[error(
        "the release of this host's containerd can't be told; see that `containerd --version` works on the node"
    )]
    NoVersion,
    /// It was not well before.
    #[error("containerd was not serving before any change: {0}; repair it first")]
    NotServing(String),
    /// The configuration can't be edited.
    #[error(transparent)]
    Config(#[from] containerd_config::Error),
    /// containerd refuses the configuration as it is.
    #[error("containerd does not load its present configuration: {0}; repair it first")]
    Refuses(String),
    /// A restart would end pods.
    #[error(
        "restarting {unit} would end every pod on this node, because its KillMode is {mode:?}; set KillMode=process"
    )]
    KillMode {
        /// The unit.
        unit: String,
        /// Its `KillMode`.
        mode: String,
    },
    /// Whether a restart would end pods is unknown.
    #[error("whether a restart would end pods can't be told: {0}")]
    KillModeUnknown(String),
}

impl HostPlan {
    /// Whether the host already is as wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
            && self.links.is_empty()
            && self.config.is_none()
            && !self.restart
            && !self.write_state
            && self.clear.is_empty()
    }
}

/// What has to be done on the host that `facts` describe so that it carries `want`.
///
/// # Errors
/// When nothing may be changed at all. What is wrong with one shim alone is in its handlers' reports.
pub fn decide(facts: &Facts, want: &Want) -> Result<HostPlan, Error> {
    check_host(facts, want)?;
    let site = Site::find(facts, want.offline)?;
    let mut set = Set::new(facts, want, &site);
    set.add_wanted();
    set.remove_unwanted();
    set.reserve();
    let (next, reports) = set.finish();
    site.plan(facts, want, next, reports)
}

fn check_host(facts: &Facts, want: &Want) -> Result<(), Error> {
    if let Some(refusal) = facts.distro.refusal {
        return Err(Error::Distribution(refusal));
    }
    if want.offline {
        return Ok(());
    }
    if facts.daemon.is_none() {
        return Err(Error::NoDaemon);
    }
    match &facts.served {
        Ok(served) if served.ready => Ok(()),
        Ok(_) => Err(Error::NotServing("its runtime is not ready".to_owned())),
        Err(words) => Err(Error::NotServing(words.clone())),
    }
}

/// Where handlers are declared on this host, and what is declared there.
struct Site<'a> {
    placement: Placement,
    text: Option<&'a str>,
    declared: BTreeMap<String, DeclaredHandler>,
    dumped: BTreeMap<String, DeclaredHandler>,
    ours: BTreeSet<String>,
}

impl<'a> Site<'a> {
    fn find(facts: &'a Facts, offline: bool) -> Result<Self, Error> {
        let placement = match facts.version {
            Some(version) => place(&facts.loaded, &version)?,
            None if offline => place_unseen(facts)?,
            None => return Err(Error::NoVersion),
        };
        let text = text_at(facts, &placement.path);
        let declared = match text {
            Some(text) => handlers(text, &placement)?,
            None => BTreeMap::new(),
        };
        let dumped = match &facts.dump {
            Ok(dump) => runtimes_of_dump(dump)?.1,
            Err(_) if offline => BTreeMap::new(),
            Err(words) => return Err(Error::Refuses(words.clone())),
        };
        // A stanza that executes our own stable path is ours even where the state file was lost.
        let mut ours: BTreeSet<String> = facts.state.handlers.keys().cloned().collect();
        let marked = declared
            .iter()
            .filter(|(name, handler)| handler.runtime_type == binary_path(name));
        ours.extend(marked.map(|(name, _)| name.clone()));
        Ok(Self {
            placement,
            text,
            declared,
            dumped,
            ours,
        })
    }

    fn is_foreign(&self, handler: &str) -> bool {
        let known = self.declared.contains_key(handler)
            || self.dumped.contains_key(handler)
            || self.placement.elsewhere.contains(handler);
        known && !self.ours.contains(handler)
    }

    fn edited(&self, declared: &[Handler]) -> Result<Option<String>, Error> {
        // containerd's own default since 1.4, for an image whose containerd can't be asked.
        let otherwise = || Handler {
            name: "runc".to_owned(),
            runtime_type: "io.containerd.runc.v2".to_owned(),
            options: BTreeMap::new(),
        };
        let runc = match self.dumped.get("runc") {
            Some(runc) => Some(runc.to_handler("runc")),
            None => self.dumped.is_empty().then(otherwise),
        };
        let ours = &self.ours;
        Ok(edit(
            self.text,
            &self.placement,
            ours,
            declared,
            runc.as_ref(),
        )?)
    }

    fn change(&self, facts: &Facts, after: Option<String>) -> ConfigChange {
        ConfigChange {
            path: self.placement.path.clone(),
            before: self.text.map(str::to_owned),
            after,
            root: facts.loaded.root.path.clone(),
            version: self.wrapper_version(),
        }
    }

    /// `version` of a file that imports the root and a candidate for a file that the root imports.
    fn wrapper_version(&self) -> Option<i64> {
        match (self.placement.drop_in, self.placement.plugin) {
            // The drop-in has the root's.
            (true, _) => self.placement.version,
            // An imported file is edited in place on 1.x alone, whose newest version is 2.
            (false, PluginId::GrpcV1Cri | PluginId::CriV1Runtime) => Some(2),
            (false, PluginId::Cri) => None,
        }
    }

    /// Folders that have to be made before anything can be written.
    fn make_folders(&self, facts: &Facts) -> Vec<String> {
        let config = folder_of(&self.placement.path);
        let root = folder_of(&facts.loaded.root.path);
        let mut folders: Vec<String> = Vec::new();
        for folder in [STATE_FOLDER, STORE_FOLDER, BIN_FOLDER, root, config] {
            let missing = facts.missing_folders.get(folder).into_iter().flatten();
            for path in missing {
                if !folders.contains(path) {
                    folders.push(path.clone());
                }
            }
        }
        folders
    }

    fn plan(
        &self,
        facts: &Facts,
        want: &Want,
        mut next: BTreeMap<String, OwnedHandler>,
        reports: Vec<HandlerReport>,
    ) -> Result<HostPlan, Error> {
        let mut after = self.edited(&declarations(&next))?;
        if after.as_deref() != self.text {
            // containerd is restarted anyway: what is reserved for nobody any more leaves with it.
            next.retain(|name, owned| {
                owned.sha256.is_some() || owned.owner != want.owner || want.reserve.contains(name)
            });
            after = self.edited(&declarations(&next))?;
        }
        let declared = declarations(&next);
        let config = (after.as_deref() != self.text).then(|| self.change(facts, after));
        let served = facts.served.as_ref().ok();
        let pending = served.is_some_and(|served| !is_served(served, &declared, &self.ours));
        let restart = !want.offline && (config.is_some() || pending);
        if restart {
            check_kill_mode(facts)?;
        }
        let links = links(facts, &next);
        let wanted: BTreeSet<String> = next
            .values()
            .filter_map(|owned| owned.sha256.clone())
            .collect();
        let make_folders = if next.is_empty() {
            Vec::new()
        } else {
            self.make_folders(facts)
        };
        let state = next_state(facts, want, next, config.as_ref(), &make_folders);
        let unchanged = match &state {
            Some(state) => *state == facts.state,
            None => facts.state == State::default(),
        };
        let mut ours = self.ours.clone();
        ours.extend(declared.iter().map(|handler| handler.name.clone()));
        Ok(HostPlan {
            make_folders,
            store: wanted.difference(&facts.stored).cloned().collect(),
            links,
            config,
            restart,
            write_state: !unchanged,
            clear: clear(facts, state.as_ref(), &wanted),
            drop_folders: if state.is_none() {
                facts.state.folders.clone()
            } else {
                Vec::new()
            },
            state,
            handlers: reports,
            ours,
            declared,
        })
    }
}

/// An unpacked image whose containerd can't be run: the oldest release that takes the file. What 1.7 takes, 2.x takes too.
fn place_unseen(facts: &Facts) -> Result<Placement, Error> {
    let release = |major, minor| Version {
        major,
        minor,
        patch: 0,
    };
    place(&facts.loaded, &release(1, 7))
        .or_else(|_| place(&facts.loaded, &release(2, 0)))
        .map_err(Error::from)
}

fn text_at<'a>(facts: &'a Facts, path: &str) -> Option<&'a str> {
    let files = std::iter::once(&facts.loaded.root).chain(&facts.loaded.imported);
    files
        .filter(|file| file.path == path)
        .find_map(|file| file.text.as_deref())
}

fn check_kill_mode(facts: &Facts) -> Result<(), Error> {
    match &facts.kill_mode {
        // systemd.kill(5): these two leave the shims, and with them the pods, alone.
        Ok(mode) if mode == "process" || mode == "none" => Ok(()),
        Ok(mode) => Err(Error::KillMode {
            unit: facts.unit(),
            mode: mode.clone(),
        }),
        Err(words) => Err(Error::KillModeUnknown(words.clone())),
    }
}

fn declarations(next: &BTreeMap<String, OwnedHandler>) -> Vec<Handler> {
    let value = |value: &OptionValue| match value {
        OptionValue::Boolean(value) => Value::Boolean(*value),
        OptionValue::Integer(value) => Value::Integer(*value),
        OptionValue::String(value) => Value::String(value.clone()),
    };
    next.iter()
        .map(|(name, owned)| Handler {
            name: name.clone(),
            runtime_type: binary_path(name),
            options: owned
                .options
                .iter()
                .map(|(key, option)| (key.clone(), value(option)))
                .collect(),
        })
        .collect()
}

/// Whether the running containerd has loaded exactly what is declared as ours.
fn is_served(served: &Served, declared: &[Handler], ours: &BTreeSet<String>) -> bool {
    let listed =
        |handler: &Handler| served.handlers.get(&handler.name) == Some(&handler.runtime_type);
    let gone = |name: &&String| declared.iter().all(|handler| handler.name != **name);
    declared.iter().all(listed)
        && ours
            .iter()
            .filter(gone)
            .all(|name| !served.handlers.contains_key(name))
}

fn links(facts: &Facts, next: &BTreeMap<String, OwnedHandler>) -> BTreeMap<String, String> {
    next.iter()
        .filter_map(|(name, owned)| Some((name, owned.sha256.as_ref()?)))
        .filter(|(name, sha256)| verified(facts, name) != Some(sha256))
        .map(|(name, sha256)| (binary_path(name), sha256.clone()))
        .collect()
}

/// What stands in our two folders and belongs to nothing: all of it is ours, whatever a former run left there.
fn clear(facts: &Facts, state: Option<&State>, wanted: &BTreeSet<String>) -> Vec<String> {
    let carried: BTreeSet<String> = state
        .iter()
        .flat_map(|state| &state.handlers)
        .filter(|(_, owned)| owned.sha256.is_some())
        .map(|(name, _)| binary_path(name))
        .collect();
    let links = facts
        .binaries
        .keys()
        .map(|name| format!("{BIN_FOLDER}/{name}"))
        .filter(|path| !carried.contains(path));
    let stored = facts.stored.iter().chain(&facts.damaged);
    let stored = stored
        .filter(|name| !wanted.contains(*name))
        .map(|name| store_path(name));
    links.chain(stored).collect()
}

fn next_state(
    facts: &Facts,
    want: &Want,
    next: BTreeMap<String, OwnedHandler>,
    config: Option<&ConfigChange>,
    made: &[String],
) -> Option<State> {
    if next.is_empty() {
        return None;
    }
    let mut state = facts.state.clone();
    state.handlers = next;
    state.folders.extend(made.iter().cloned());
    if let Some(change) = config {
        state.config = change.after.as_ref().map(|after| OwnedConfig {
            path: change.path.clone(),
            sha256: sha256_hex(after.as_bytes()),
        });
    }
    let owner = owner_word(want.owner).to_owned();
    if want.digest.is_empty() {
        state.requests.remove(&owner);
    } else {
        state.requests.insert(owner, want.digest.clone());
    }
    Some(state)
}

/// The handlers that will be ours, as they come together.
struct Set<'a> {
    facts: &'a Facts,
    want: &'a Want,
    site: &'a Site<'a>,
    next: BTreeMap<String, OwnedHandler>,
    /// Handlers that the request names, or that stay although it doesn't.
    kept: BTreeSet<String>,
    reports: Vec<HandlerReport>,
}

impl<'a> Set<'a> {
    fn new(facts: &'a Facts, want: &'a Want, site: &'a Site<'a>) -> Self {
        Self {
            facts,
            want,
            site,
            next: facts.state.handlers.clone(),
            kept: BTreeSet::new(),
            reports: Vec::new(),
        }
    }

    fn report(
        &mut self,
        shim: &str,
        handler: &str,
        sha256: Option<String>,
        reason: Option<String>,
    ) {
        self.reports.push(HandlerReport {
            shim: shim.to_owned(),
            handler: handler.to_owned(),
            path: sha256.is_some().then(|| binary_path(handler)),
            served: sha256.is_some(),
            sha256,
            reason,
        });
    }

    fn add_wanted(&mut self) {
        let want = self.want;
        for shim in &want.shims {
            let foreign = shim.handlers.iter().find(|name| self.site.is_foreign(name));
            let candidate = match (foreign, want.candidates.get(&shim.name)) {
                (Some(name), _) => Err(format!(
                    "handler {name} is declared in containerd's configuration by somebody else; remove it there or use another name"
                )),
                (None, Some(candidate)) => candidate.clone(),
                (None, None) => Err("its artifact was not looked for".to_owned()),
            };
            for handler in &shim.handlers {
                match &candidate {
                    Ok(sha256) => self.carry(shim, handler, sha256),
                    Err(reason) => self.keep_served(shim, handler, reason),
                }
            }
        }
    }

    fn carry(&mut self, shim: &ShimRequest, handler: &str, sha256: &str) {
        let owned = OwnedHandler {
            shim: shim.name.clone(),
            owner: self.want.owner,
            sha256: Some(sha256.to_owned()),
            location: shim.location.clone(),
            artifact_sha256: shim.sha256.clone(),
            options: shim.options.clone(),
        };
        self.next.insert(handler.to_owned(), owned);
        self.kept.insert(handler.to_owned());
        self.report(&shim.name, handler, Some(sha256.to_owned()), None);
    }

    /// A shim that can't be had keeps what it has: the version that it was served in before.
    fn keep_served(&mut self, shim: &ShimRequest, handler: &str, reason: &str) {
        let before = self.facts.state.handlers.get(handler);
        let sha256 = before
            .and_then(|owned| owned.sha256.clone())
            .filter(|sha256| verified(self.facts, handler) == Some(sha256));
        self.kept.insert(handler.to_owned());
        self.report(&shim.name, handler, sha256, Some(reason.to_owned()));
    }

    fn remove_unwanted(&mut self) {
        let (facts, want) = (self.facts, self.want);
        for (name, owned) in &facts.state.handlers {
            let in_scope = match &want.scope {
                Scope::Owner => owned.owner == want.owner,
                Scope::Nothing => false,
                Scope::Shims(shims) => shims.contains(&owned.shim),
                Scope::Everything => true,
            };
            let leaves = in_scope && !self.kept.contains(name) && owned.sha256.is_some();
            if leaves && matches!(want.scope, Scope::Shims(_)) && owned.owner != want.owner {
                let owner = owner_word(owned.owner);
                let reason = format!("it belongs to {owner}; take it away there, or use --all");
                self.report(&owned.shim, name, owned.sha256.clone(), Some(reason));
                continue;
            }
            let pods = facts.in_use.get(name).copied().unwrap_or_default();
            if leaves && pods > 0 {
                let reason = format!("it is still used by {pods} pod sandboxes; delete their pods");
                self.report(&owned.shim, name, owned.sha256.clone(), Some(reason));
            } else if leaves && let Some(owned) = self.next.get_mut(name) {
                owned.sha256 = None;
                owned.location.clear();
                owned.artifact_sha256 = None;
            }
        }
    }

    fn reserve(&mut self) {
        for name in &self.want.reserve {
            if !self.next.contains_key(name) && !self.site.is_foreign(name) {
                let owned = OwnedHandler {
                    shim: String::new(),
                    owner: self.want.owner,
                    sha256: None,
                    location: String::new(),
                    artifact_sha256: None,
                    options: BTreeMap::new(),
                };
                self.next.insert(name.clone(), owned);
            }
        }
    }

    fn finish(mut self) -> (BTreeMap<String, OwnedHandler>, Vec<HandlerReport>) {
        // What is only reserved leaves with the last shim.
        if self.next.values().all(|owned| owned.sha256.is_none()) {
            self.next.clear();
        }
        (self.next, self.reports)
    }
}

/// Cuts what a change that is being undone declared out of a configuration that somebody edited since; `declares` names it.
///
/// # Errors
/// When today's configuration can't be edited.
pub fn cut(facts: &Facts, declares: &[String]) -> Result<Option<ConfigChange>, Error> {
    let mut site = Site::find(facts, true)?;
    site.ours.extend(declares.iter().cloned());
    let after = site.edited(&declarations(&facts.state.handlers))?;
    Ok((after.as_deref() != site.text).then(|| site.change(facts, after)))
}

/// The handlers as the state file has them declared.
#[must_use]
pub fn declared_before(facts: &Facts) -> Vec<Handler> {
    declarations(&facts.state.handlers)
}

/// Whether containerd serves after a restart what it should: ours with our paths, the others and the default as before.
///
/// # Errors
/// Says in one sentence what differs.
pub fn prove(
    before: &Served,
    after: &Served,
    declared: &[Handler],
    ours: &BTreeSet<String>,
) -> Result<(), String> {
    let others = |served: &Served| -> BTreeMap<String, String> {
        let mut handlers = served.handlers.clone();
        handlers.retain(|name, _| !ours.contains(name));
        handlers
    };
    if !after.ready {
        return Err("containerd's runtime is not ready".to_owned());
    }
    if before.default != after.default {
        return Err(format!(
            "the default runtime was {:?} and is {:?}",
            before.default, after.default
        ));
    }
    if others(before) != others(after) {
        return Err("runtimes that are not Farrier's changed".to_owned());
    }
    if !is_served(after, declared, ours) {
        return Err("containerd does not list the handlers as they are declared".to_owned());
    }
    Ok(())
}
