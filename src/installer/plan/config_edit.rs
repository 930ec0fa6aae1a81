//! Where handlers are declared on a host, what is declared there, and what the text becomes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config_source::{self, Rendered, Source};
use super::handlers::Desired;
use super::stale_config;
use super::takeover::{is_in_place, is_predecessor};
use super::{ConfigChange, Error};
use crate::containerd_config::{
    ConfigFiles, ConfigTarget, DeclaredHandler, Handler, Version, edit, edit_template, handlers,
    place, runtimes_of_dump, startup_checks, template_handlers,
};
use crate::handoff::OptionValue;
use crate::installer::host::path::parent_directory;
use crate::installer::inspect::Facts;
use crate::installer::state::{OwnedHandler, STATE_FOLDER};

/// Where handlers are declared on this host, and what is declared there.
pub(crate) struct Site<'a> {
    /// In the file that is edited.
    pub(crate) placement: ConfigTarget,
    /// The text of that file.
    pub(crate) text: Option<&'a str>,
    /// Whether that is a Go template.
    go: bool,
    /// In the file that containerd loads, and its text, where that is made from the one that is edited.
    rendered: Option<(ConfigTarget, Option<&'a str>)>,
    declared: BTreeMap<String, DeclaredHandler>,
    dumped: BTreeMap<String, DeclaredHandler>,
    /// The default runtime of the configuration, where containerd has printed it.
    default: String,
    pub(crate) ours: BTreeSet<String>,
    /// Handlers that a predecessor declares in this file.
    inherited: BTreeSet<String>,
    /// Those of ours that a predecessor's own lines declare as they should be.
    in_place: BTreeSet<String>,
}

impl<'a> Site<'a> {
    pub(crate) fn find(facts: &'a Facts, offline: bool) -> Result<Self, Error> {
        let loaded = config_source::seen(facts);
        let placement = match facts.version {
            Some(version) => place(&loaded, &version)?,
            None if offline => place_unseen(&loaded)?,
            None => return Err(Error::NoVersion),
        };
        let text = text_at(facts, &placement.path);
        let loaded = text.map(|text| handlers(text, &placement)).transpose()?;
        let mut declared = loaded.unwrap_or_default();
        let (rendered, placement, text, go) = match config_source::find(facts, &placement)? {
            Some(source) => {
                declared = declared_in(&source, declared)?;
                let rendered = Some((placement, text));
                (rendered, source.placement, source.text, source.go)
            }
            None => (None, placement, text, false),
        };
        let (default, dumped) = match &facts.dump {
            Ok(dump) => {
                startup_checks(dump)?;
                runtimes_of_dump(dump)?
            }
            // What can't be run gives no judgement; one that runs and refuses the file does.
            Err(_) if offline && facts.version.is_none() => (String::new(), BTreeMap::new()),
            Err(words) => return Err(Error::Refuses(words.clone())),
        };
        let ours = ours(facts, declared.iter().chain(&dumped));
        let inherited = facts.inheritance.handlers.iter();
        let inherited = inherited
            .filter(|(_, inherited)| inherited.file == placement.path)
            .map(|(name, _)| name.clone())
            .collect();
        Ok(Self {
            placement,
            text,
            go,
            rendered,
            declared,
            dumped,
            default,
            ours,
            inherited,
            in_place: BTreeSet::new(),
        })
    }

    pub(crate) fn is_foreign(&self, handler: &str) -> bool {
        let known = self.declared.contains_key(handler)
            || self.dumped.contains_key(handler)
            || self.placement.declared_in_other_files.contains(handler);
        known && !self.ours.contains(handler) && !self.inherited.contains(handler)
    }

    /// Makes the handlers ours that are taken over from a predecessor or taken away.
    pub(crate) fn take_over(&mut self, facts: &Facts, desired: &Desired) {
        let of_others = |owned: &OwnedHandler| is_predecessor(owned.owner);
        let taken = desired.before.iter().filter(|(name, owned)| {
            let next = desired.next.get(*name);
            of_others(owned)
                && (desired.leaving.contains(*name) || next.is_some_and(|next| !of_others(next)))
        });
        self.ours.extend(taken.map(|(name, _)| name.clone()));
        let in_place = desired.next.iter().filter(|(name, owned)| {
            let inherited = facts.inheritance.handlers.get(*name);
            !of_others(owned)
                && self.inherited.contains(*name)
                && is_in_place(inherited, owned, self.placement.plugin)
        });
        self.in_place = in_place.map(|(name, _)| name.clone()).collect();
    }

    /// Handlers that a predecessor declares and that are nobody's concern.
    pub(crate) fn untouched(&self) -> BTreeSet<String> {
        self.inherited.difference(&self.ours).cloned().collect()
    }

    /// The text of the file that is edited, with `declared` for what is ours.
    pub(crate) fn edited(&self, declared: &[Handler]) -> Result<Option<String>, Error> {
        let (placement, text) = (&self.placement, self.text);
        if self.go {
            let (path, plugin) = (&placement.path, placement.plugin);
            let (ours, declared) = self.to_write(declared);
            return Ok(edit_template(path, text, plugin, &ours, &declared)?);
        }
        self.edit(placement, text, declared)
    }

    /// Whether containerd would come back from a restart with what it serves now, but for what is ours.
    ///
    /// # Errors
    /// When its configuration was changed since it started, or the host lacks what that needs.
    pub(crate) fn check_restart(&self, facts: &Facts) -> Result<(), Error> {
        if let Some(words) = &facts.lacking {
            return Err(Error::Refuses(words.clone()));
        }
        match self.pending(facts) {
            Some(what) => Err(Error::Pending {
                path: facts.loaded.root.path.clone(),
                what,
            }),
            None => Ok(()),
        }
    }

    /// What somebody else changed in the configuration since containerd started, and any restart would put live: a few words, such as
    /// `handler kata`. Nothing where nobody was asked what is served.
    pub(crate) fn pending(&self, facts: &Facts) -> Option<String> {
        let served = facts.served.as_ref().ok()?;
        if served.default != self.default {
            return Some("the default runtime".to_owned());
        }
        let none = BTreeMap::new();
        let mut differ: BTreeSet<&String> =
            served.handlers.keys().chain(self.dumped.keys()).collect();
        differ.retain(|name| {
            let now = served.handlers.get(*name);
            let now = now.map(|path| (path, served.options.get(*name).unwrap_or(&none)));
            let then = self.dumped.get(*name).map(|found| found.to_handler(name));
            now != then
                .as_ref()
                .map(|then| (&then.runtime_type, &then.options))
        });
        // What a template declares in any case, its rendering does, too.
        let unrendered = self
            .declared
            .keys()
            .filter(|name| !self.dumped.contains_key(*name));
        differ.extend(unrendered.filter(|_| self.rendered.is_some()));
        let name = differ.into_iter().find(|name| !self.ours.contains(*name))?;
        Some(format!("handler {name}"))
    }

    /// What is ours to write, without the handlers that a predecessor's own lines declare as they should be.
    fn to_write(&self, declared: &[Handler]) -> (BTreeSet<String>, Vec<Handler>) {
        let stays = |name: &String| {
            self.in_place.contains(name) && declared.iter().any(|handler| handler.name == *name)
        };
        let mut ours = self.ours.clone();
        ours.retain(|name| !stays(name));
        let mut write = declared.to_vec();
        write.retain(|handler| !stays(&handler.name));
        (ours, write)
    }

    fn edit(
        &self,
        placement: &ConfigTarget,
        text: Option<&str>,
        declared: &[Handler],
    ) -> Result<Option<String>, Error> {
        let runc = match self.dumped.get("runc") {
            Some(runc) => Some(runc.to_handler("runc")),
            // An image's containerd can't be asked.
            None => self.dumped.is_empty().then(Handler::runc),
        };
        let (ours, declared) = self.to_write(declared);
        Ok(edit(text, placement, &ours, &declared, runc.as_ref())?)
    }

    /// All files that change where the text of the one that is edited becomes `after`; `cut` are the others.
    ///
    /// # Errors
    /// When the file that containerd loads can't be edited in the same way.
    pub(crate) fn changes(
        &self,
        facts: &Facts,
        after: Option<&str>,
        declared: &[Handler],
        cut: Vec<ConfigChange>,
    ) -> Result<Vec<ConfigChange>, Error> {
        let mut changes = cut;
        if after != self.text {
            let after = after.map(str::to_owned);
            changes.insert(0, self.change(facts, after, declared)?);
        }
        Ok(changes)
    }

    /// What is ours in other files than the one that is edited.
    ///
    /// # Errors
    /// When such a file can't be edited.
    pub(crate) fn cut_out(&self, facts: &Facts) -> Result<Vec<ConfigChange>, Error> {
        Ok(stale_config::cut_out(
            facts,
            &self.ours,
            &self.placement.path,
        )?)
    }

    fn change(
        &self,
        facts: &Facts,
        after: Option<String>,
        declared: &[Handler],
    ) -> Result<ConfigChange, Error> {
        let rendered = match &self.rendered {
            Some((placement, Some(text))) => Some(Rendered {
                placement: placement.clone(),
                after: self.edit(placement, Some(text), declared)?,
            }),
            // An image that was never started: there is nothing that could be judged.
            Some((_, None)) | None => None,
        };
        Ok(ConfigChange {
            path: self.placement.path.clone(),
            before: self.text.map(str::to_owned),
            after,
            root: facts.loaded.root.path.clone(),
            rendered,
            live: true,
        })
    }

    /// Folders that have to be made before anything can be written.
    pub(crate) fn make_folders(&self, facts: &Facts) -> Vec<String> {
        let config = parent_directory(&self.placement.path);
        let root = parent_directory(&facts.loaded.root.path);
        let mut folders: Vec<String> = Vec::new();
        let (store, bin) = (facts.places.store(), facts.places.bin());
        for folder in [STATE_FOLDER, &store, &bin, root, config] {
            let missing = facts.missing_folders.get(folder).into_iter().flatten();
            for path in missing {
                if !folders.contains(path) {
                    folders.push(path.clone());
                }
            }
        }
        folders
    }
}

/// What a distribution's source of the configuration declares, beside `rendered`, what was made of it last.
fn declared_in(
    source: &Source<'_>,
    rendered: BTreeMap<String, DeclaredHandler>,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    let mut declared = rendered;
    match source.text {
        Some(text) if source.go => {
            for (name, handler) in template_handlers(text, source.placement.plugin) {
                declared.entry(name).or_insert(handler);
            }
        }
        Some(text) => declared.extend(handlers(text, &source.placement)?),
        None => {}
    }
    Ok(declared)
}

/// The handlers that are ours: those on record, and whichever executes our own stable path, whatever file declares it, as the state
/// file may be lost and an old configuration put back.
fn ours<'f>(
    facts: &Facts,
    declared: impl Iterator<Item = (&'f String, &'f DeclaredHandler)>,
) -> BTreeSet<String> {
    let recorded = facts.state.handlers.iter();
    let recorded = recorded
        .filter(|(_, owned)| !is_predecessor(owned.owner))
        .map(|(name, _)| name);
    let served = facts.served.iter().flat_map(|served| &served.handlers);
    let marked = declared
        .map(|(name, handler)| (name, &handler.runtime_type))
        .chain(served)
        .filter(|(name, path)| **path == facts.places.binary_path(name))
        .map(|(name, _)| name);
    recorded.chain(marked).cloned().collect()
}

/// Whether this containerd hands a handler's options to its shim: 1.6 gives any but runc's an empty body. One that can't be asked is
/// taken for a newer one.
pub(crate) fn hands_options_over(facts: &Facts) -> bool {
    facts
        .version
        .is_none_or(|version| (version.major, version.minor) >= (1, 7))
}

/// Handlers of ours as they are declared to containerd; those of predecessors aren't ours.
pub(crate) fn declarations(facts: &Facts, next: &BTreeMap<String, OwnedHandler>) -> Vec<Handler> {
    let handed_over = hands_options_over(facts);
    next.iter()
        .filter(|(_, owned)| !is_predecessor(owned.owner))
        .map(|(name, owned)| Handler {
            name: name.clone(),
            runtime_type: facts.places.declared_path(name, owned),
            options: if handed_over {
                OptionValue::to_toml(&owned.options)
            } else {
                BTreeMap::new()
            },
        })
        .collect()
}

/// An unpacked image whose containerd can't be run: the oldest release that takes the file. What 1.7 takes, 2.x takes too.
fn place_unseen(loaded: &ConfigFiles) -> Result<ConfigTarget, Error> {
    let release = |major, minor| Version {
        major,
        minor,
        patch: 0,
    };
    place(loaded, &release(1, 7))
        .or_else(|_| place(loaded, &release(2, 0)))
        .map_err(Error::from)
}

fn text_at<'a>(facts: &'a Facts, path: &str) -> Option<&'a str> {
    let files = facts.loaded.files();
    files
        .filter(|file| file.path == path)
        .find_map(|file| file.text.as_deref())
}
