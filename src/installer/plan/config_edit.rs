//! Finds the file that declares Farrier's handlers and the handlers in it, and renders the edit of its text. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config_source::{self, ConfigSource, Rendered};
use super::pending;
use super::preconditions::{unwritable_config, write_problem};
use super::stale_config::{self, recorded, with_foreign_lines};
use super::takeover::is_declared_as_required;
use super::types::{ConfigChange, Error, HandlerSet};
use crate::containerd_config::{
    self, ConfigTarget, DeclaredHandler, Handler, Value, check_snippet, config_target,
    config_target_of_any_release, edit, edit_template, handlers, handlers_declared_twice,
    runtimes_of_dump, startup_checks, template_handlers, without_marks,
};
use crate::handoff::OptionValue;
use crate::handoff::Problem;
use crate::installer::host::Target;
use crate::installer::host::path::parent_directory;
use crate::installer::inspect::HostFacts;
use crate::installer::state::{OwnedHandler, STATE_DIRECTORY};

/// The present configuration: the file where handlers are declared on this host, and the handlers in it.
pub(crate) struct CurrentConfig<'a> {
    /// Where handlers are declared in the file that is edited.
    pub(crate) target: ConfigTarget,
    /// The text of that file; `None` where it is absent.
    pub(crate) text: Option<&'a str>,
    /// Whether that file is a Go template.
    is_go_template: bool,
    /// Where handlers are declared in the file that containerd loads, and its text, where the distribution renders it from the file that is
    /// edited.
    rendered: Option<(ConfigTarget, Option<&'a str>)>,
    declared: BTreeMap<String, DeclaredHandler>,
    dumped: BTreeMap<String, DeclaredHandler>,
    /// The default runtime of the configuration; empty where containerd has not printed it.
    default: String,
    /// The handlers that Farrier manages.
    pub(crate) managed: BTreeSet<String>,
    /// Managed handlers that others have declared with another program since.
    pub(crate) replaced: BTreeSet<String>,
    /// Those of them that the file to edit declares, where Farrier wrote another file. On 1.x, the section of an imported file replaces that
    /// of Farrier's file.
    pub(crate) taken: BTreeSet<String>,
    /// Legacy handlers that this file declares.
    legacy: BTreeSet<String>,
    /// The handlers that the distribution declares by itself, each with the program that it found. Farrier's declarations of these give way.
    found: BTreeMap<String, String>,
}

/// An edit of the configuration.
pub(crate) struct ConfigEdit<'a> {
    current: &'a CurrentConfig<'a>,
    /// The handlers that Farrier manages, including those that the change takes over.
    pub(crate) managed: BTreeSet<String>,
    /// The managed handlers whose declaration by a legacy installer is correct and stays.
    in_place: BTreeSet<String>,
    /// The handlers that others declare with another program and that Farrier no longer manages.
    released: BTreeSet<String>,
    /// The managed handlers as the state file records them.
    written: Vec<Handler>,
}

impl<'a> CurrentConfig<'a> {
    pub(crate) fn find(facts: &'a HostFacts) -> Result<Self, Error> {
        let is_image = facts.containerd.target() == Target::Image;
        let is_unloadable = config_source::is_unloadable(facts);
        let config_files = config_source::current_files(facts);
        let version = config_source::snippet_version(facts);
        let mut snippets = facts.snippets.iter();
        snippets.try_for_each(|file| check_snippet(file, version))?;
        let target = match facts.version {
            _ if is_unloadable => config_source::target_of_unloadable(facts),
            Some(version) => config_target(&config_files, &version)?,
            None if is_image => config_target_of_any_release(&config_files)?,
            None => return Err(Error::NoVersion(facts.no_version.clone())),
        };
        let text = text_at(facts, &target.path).filter(|_| !is_unloadable);
        let config_files = text.map(|text| handlers(text, &target)).transpose()?;
        let mut declared = config_files.unwrap_or_default();
        let (rendered, target, text, is_go_template) = match config_source::find(facts, &target)? {
            Some(source) => {
                declared = declared_in(&source, declared)?;
                let rendered = Some((target, text));
                (rendered, source.target, source.text, source.is_go_template)
            }
            None => (None, target, text, false),
        };
        let (default, dumped) = match &facts.dump {
            _ if is_unloadable => (String::new(), BTreeMap::new()),
            Ok(dump) => {
                startup_checks(dump)?;
                runtimes_of_dump(dump)?
            }
            // An image's containerd may be impossible to run. A containerd that runs and refuses the file is an error.
            Err(_) if is_image && facts.version.is_none() => (String::new(), BTreeMap::new()),
            Err(problem) => return Err(Error::Refuses(problem.clone())),
        };
        let mut managed = managed_handlers(facts, declared.iter().chain(&dumped));
        let mut found = found_by_distro(facts, &dumped);
        if is_unloadable {
            let root = facts.config_files.root.text.as_deref();
            for name in handlers_declared_twice(root.unwrap_or_default()) {
                let program = facts.found_runtimes.get(&name);
                let program = program.map_or("a program of this name", String::as_str);
                found.insert(name.clone(), program.to_owned());
                managed.insert(name);
            }
        }
        let legacy = facts.legacy.handlers.iter();
        let legacy = legacy
            .filter(|(_, legacy_handler)| legacy_handler.file == target.path)
            .map(|(name, _)| name.clone())
            .collect();
        let target = ConfigTarget {
            runc_is_foreign: declared.contains_key("runc")
                && match &facts.state.config {
                    Some(config) if config.path == target.path => config.runc == Some(false),
                    Some(_) => false,
                    // Farrier has never changed the file, unless the state file was lost.
                    None => managed.is_empty(),
                },
            ..target
        };
        let replaced = facts.state.handlers.iter();
        let replaced = replaced
            .filter(|(name, owned)| {
                let path = declared.get(*name).map(|found| &found.runtime_type);
                let own = facts.install_paths.declared_path(name, owned);
                path.is_some_and(|path| {
                    *path != own
                        && *path != facts.install_paths.binary_path(name)
                        && !facts.legacy.handlers.contains_key(*name)
                        // Beside the declaration of the distribution, that of Farrier is still there.
                        && !found.contains_key(*name)
                })
            })
            .map(|(name, _)| name.clone());
        let replaced: BTreeSet<String> = replaced.collect();
        let owned = facts.state.config.as_ref();
        let is_own_file = owned.is_none_or(|owned| owned.path == target.path);
        let taken = if is_own_file {
            BTreeSet::new()
        } else {
            replaced.clone()
        };
        Ok(Self {
            target,
            text,
            is_go_template,
            rendered,
            declared,
            dumped,
            default,
            managed,
            replaced,
            taken,
            legacy,
            found,
        })
    }

    /// Checks that all managed handlers can be removed from the configuration.
    ///
    /// # Errors
    /// Why the configuration can't be edited, or a file can't be written.
    pub(crate) fn check_removal(&self, facts: &HostFacts) -> Result<(), Error> {
        if self.managed.is_empty() {
            return Ok(());
        }
        let edit = ConfigEdit::undoing(facts, self, std::iter::empty());
        let after = edit.render(&[])?;
        let others = edit.remove_from_other_files(facts)?;
        let changes = edit.changes(facts, after.as_deref(), &[], others)?;
        match unwritable_config(facts, &changes) {
            Some(problem) => Err(Error::Obstacle(problem.clone())),
            None => Ok(()),
        }
    }

    /// Why no handler can be added: the file that declares handlers can't be written, or no candidate beside the root file.
    pub(crate) fn write_problem<'f>(&self, facts: &'f HostFacts) -> Option<&'f Problem> {
        let root = parent_directory(&facts.config_files.root.path);
        write_problem(facts, &self.target.path).or_else(|| write_problem(facts, root))
    }

    /// The program because of which the distribution declares `handler` by itself, in place of Farrier's declaration.
    pub(crate) fn found(&self, handler: &str) -> Option<&str> {
        self.found.get(handler).map(String::as_str)
    }

    /// The program because of which the distribution will declare `handler` by itself at its next start, where nobody declares it now.
    pub(crate) fn will_find<'f>(&self, facts: &'f HostFacts, handler: &str) -> Option<&'f str> {
        let is_known = self.managed.contains(handler) || self.legacy.contains(handler);
        let program = facts.found_runtimes.get(handler).filter(|_| !is_known)?;
        Some(program)
    }

    /// What the next start of the distribution will do to a handler that containerd serves as Farrier declares it, if the distribution then
    /// declares it by itself.
    pub(crate) fn will_be_taken(&self, facts: &HostFacts, handler: &str) -> Option<Problem> {
        let program = facts.found_runtimes.get(handler)?;
        if !self.is_go_template {
            return None;
        }
        let note = will_give_way(facts.distro.id, handler, program, "gives way");
        let help = format!("remove {program}, or use another handler name");
        Some(Problem::with_help(note, help))
    }

    /// Whether the file to edit declares `handler` as Farrier wrote it.
    pub(crate) fn declares(&self, handler: &Handler) -> bool {
        let declared = self.declared.get(&handler.name);
        !self.is_go_template
            && declared.is_some_and(|declared| declared.to_handler(&handler.name) == *handler)
    }

    /// What the search of the distribution for runtimes means for the handlers `declared`, each in one sentence. `is_changed` tells whether
    /// this run declares them anew.
    pub(crate) fn notes_on_search(
        &self,
        facts: &HostFacts,
        declared: &[Handler],
        is_changed: bool,
    ) -> Vec<String> {
        let id = facts.distro.id;
        let then = if self.is_go_template {
            "gives way"
        } else {
            "has precedence"
        };
        let note = |handler: &Handler| {
            let name = &handler.name;
            let program = facts.distro.program_of(name)?;
            if self.found.contains_key(name) {
                return None;
            }
            match facts.found_runtimes.get(name) {
                Some(found) => Some(will_give_way(id, name, found, then)),
                None if is_changed => Some(format!(
                    "{id} declares handler {name} itself once it finds a program {program} in its PATH or in /opt/kwasm/bin: Farrier's declaration then {then}"
                )),
                None => None,
            }
        };
        declared.iter().filter_map(note).collect()
    }

    /// Whether an administrator or another program declares `handler`. Legacy handlers don't count.
    pub(crate) fn is_foreign(&self, handler: &str) -> bool {
        let known = self.declared.contains_key(handler)
            || self.dumped.contains_key(handler)
            || self.target.declared_in_other_files.contains(handler);
        known && !self.managed.contains(handler) && !self.legacy.contains(handler)
    }

    /// Checks that a restart puts no change of others into effect, except those that [`pending::check`] allows, and that containerd starts
    /// with its present configuration. Returns notes on the allowed changes.
    ///
    /// # Errors
    /// When the configuration was changed after containerd started, or when the host lacks a file or feature that the configuration needs.
    pub(crate) fn check_restart(
        &self,
        facts: &HostFacts,
        managed: &BTreeSet<String>,
        accepted: bool,
    ) -> Result<Vec<String>, Error> {
        if let Some(problem) = &facts.unstartable {
            return Err(Error::Refuses(problem.clone()));
        }
        let notes = pending::check(facts, accepted)?;
        check_prerequisites(facts)?;
        // Last, because an operator can accept a change of runtimes.
        self.check_runtimes(facts, managed, accepted)?;
        Ok(notes)
    }

    /// Checks that containerd would serve the same unmanaged runtimes after a restart, unless an operator `accepted` a difference.
    ///
    /// # Errors
    /// When the configuration was changed after containerd started.
    pub(crate) fn check_runtimes(
        &self,
        facts: &HostFacts,
        managed: &BTreeSet<String>,
        accepted: bool,
    ) -> Result<(), Error> {
        match self.pending(facts, managed).filter(|_| !accepted) {
            Some(what) => Err(Error::PendingRuntime {
                path: facts.config_files.root.path.clone(),
                what,
            }),
            None => Ok(()),
        }
    }

    /// Checks that none of the handlers `declared` is one that others declare in the file to edit: their declaration stays.
    ///
    /// # Errors
    /// When a handler is.
    pub(crate) fn check_not_taken(&self, declared: &[Handler]) -> Result<(), Error> {
        let mut declared = declared.iter();
        match declared.find(|handler| self.taken.contains(&handler.name)) {
            Some(handler) => Err(not_visible(&handler.name).into()),
            None => Ok(()),
        }
    }

    /// Checks that containerd would load `declared` from its present files.
    ///
    /// # Errors
    /// When a handler is missing, or another file has precedence.
    pub(crate) fn check_visible(&self, declared: &[Handler]) -> Result<(), Error> {
        let is_loaded = |handler: &&Handler| {
            let loaded = self.dumped.get(&handler.name);
            let is_as_declared =
                loaded.is_some_and(|loaded| loaded.runtime_type == handler.runtime_type);
            is_as_declared || self.found.contains_key(&handler.name)
        };
        // The next start of the distribution renders its file anew.
        let is_rendered = self.rendered.is_some();
        match declared.iter().find(|handler| !is_loaded(handler)) {
            Some(handler) if !is_rendered => Err(not_visible(&handler.name).into()),
            Some(_) | None => Ok(()),
        }
    }

    /// A pending change: a runtime that others edited after containerd started, such as `handler kata`. `None` where the runtimes that
    /// containerd serves are unknown.
    fn pending(&self, facts: &HostFacts, managed: &BTreeSet<String>) -> Option<String> {
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
        // The rendered file must contain all handlers that the template always declares.
        let unrendered = self
            .declared
            .keys()
            .filter(|name| !self.dumped.contains_key(*name));
        differ.extend(unrendered.filter(|_| self.rendered.is_some()));
        let name = differ.into_iter().find(|name| !managed.contains(*name))?;
        Some(format!("handler {name}"))
    }
}

impl<'a> ConfigEdit<'a> {
    /// The edit that manages the handlers of `set`.
    pub(crate) fn new(facts: &HostFacts, current: &'a CurrentConfig<'a>, set: &HandlerSet) -> Self {
        let taken_over = set.taken_over.keys();
        let in_place = set.next.iter().filter(|(name, owned)| {
            let legacy = facts.legacy.handlers.get(*name);
            current.legacy.contains(*name)
                && is_declared_as_required(legacy, owned, current.target.plugin)
        });
        let released = current.replaced.iter();
        let released: BTreeSet<String> = released
            .filter(|name| !set.next.contains_key(*name))
            .cloned()
            .collect();
        let managed = current.managed.difference(&released).chain(taken_over);
        Self {
            current,
            managed: managed.cloned().collect(),
            in_place: in_place.map(|(name, _)| name.clone()).collect(),
            released,
            written: recorded(facts),
        }
    }

    /// The edit that removes the handlers `wrote`, which an interrupted change declared.
    pub(crate) fn undoing<'n>(
        facts: &HostFacts,
        current: &'a CurrentConfig<'a>,
        wrote: impl Iterator<Item = &'n String>,
    ) -> Self {
        let mut managed = current.managed.clone();
        managed.extend(wrote.cloned());
        Self {
            current,
            managed,
            in_place: BTreeSet::new(),
            released: BTreeSet::new(),
            written: recorded(facts),
        }
    }

    /// Legacy handlers that stay as the legacy installer declared them.
    pub(crate) fn unmanaged(&self) -> BTreeSet<String> {
        self.current
            .legacy
            .difference(&self.managed)
            .cloned()
            .collect()
    }

    /// The text of the edited file with `declared` as its managed handlers; `None` where the file is removed.
    ///
    /// # Errors
    /// When the text can't be edited.
    pub(crate) fn render(&self, declared: &[Handler]) -> Result<Option<String>, Error> {
        let (target, text) = (&self.current.target, self.current.text);
        if self.current.is_go_template {
            let (path, plugin) = (&target.path, target.plugin);
            let (managed, declared) = self.to_write(declared);
            let after = edit_template(path, text, plugin, &managed, &declared)?;
            return self.with_foreign_lines(path, text, after);
        }
        self.edit(target, text, declared)
    }

    /// The managed names and the handlers to write, without the handlers that the lines of a legacy installer declare correctly.
    fn to_write(&self, declared: &[Handler]) -> (BTreeSet<String>, Vec<Handler>) {
        let stays = |name: &String| {
            self.in_place.contains(name) && declared.iter().any(|handler| handler.name == *name)
        };
        let mut managed = self.managed.clone();
        managed.retain(|name| !stays(name));
        let mut write = declared.to_vec();
        write.retain(|handler| !stays(&handler.name));
        (managed, write)
    }

    fn edit(
        &self,
        target: &ConfigTarget,
        text: Option<&str>,
        declared: &[Handler],
    ) -> Result<Option<String>, Error> {
        let runc = match self.current.dumped.get("runc") {
            Some(runc) => Some(runc.to_handler("runc")),
            // The containerd of an image can't print its configuration.
            None => self.current.dumped.is_empty().then(Handler::runc),
        };
        let (managed, declared) = self.to_write(declared);
        let (path, plugin) = (&target.path, target.plugin);
        let unmarked = text.map(|text| without_marks(path, text, plugin, &self.released));
        let unmarked = unmarked.transpose()?;
        let after = edit(
            unmarked.as_deref(),
            target,
            &managed,
            &declared,
            runc.as_ref(),
        )?;
        self.with_foreign_lines(path, text, after)
    }

    /// The text `after` an edit with the lines that others added to Farrier's tables, as comments at its end.
    fn with_foreign_lines(
        &self,
        path: &str,
        before: Option<&str>,
        after: Option<String>,
    ) -> Result<Option<String>, Error> {
        // The tables of others stay as they are.
        let is_removed = |handler: &&Handler| !self.released.contains(&handler.name);
        let written: Vec<Handler> = self.written.iter().filter(is_removed).cloned().collect();
        let before = before.unwrap_or_default();
        Ok(with_foreign_lines(path, before, after, &written)?)
    }

    /// Whether Farrier's `runc` is in the edited file with the text `after`.
    pub(crate) fn declares_runc(&self, after: &str) -> bool {
        let target = &self.current.target;
        let declared = handlers(after, target).unwrap_or_default();
        !target.runc_is_foreign && declared.get("runc").is_some_and(|runc| runc.marked)
    }

    /// The changes of all files: the edited file gets the text `after`, and `other_files` are the changes of other files.
    ///
    /// # Errors
    /// When the rendered file that containerd loads can't be edited in the same way.
    pub(crate) fn changes(
        &self,
        facts: &HostFacts,
        after: Option<&str>,
        declared: &[Handler],
        other_files: Vec<ConfigChange>,
    ) -> Result<Vec<ConfigChange>, Error> {
        let mut changes = other_files;
        if after != self.current.text {
            let after = after.map(str::to_owned);
            changes.insert(0, self.change(facts, after, declared)?);
        }
        Ok(changes)
    }

    /// The changes that remove managed handlers from files other than the edited file.
    ///
    /// # Errors
    /// When such a file can't be edited.
    pub(crate) fn remove_from_other_files(
        &self,
        facts: &HostFacts,
    ) -> Result<Vec<ConfigChange>, Error> {
        // The declaration of a handler that others declare here may be in the file that Farrier wrote.
        let managed = self.managed.union(&self.released).cloned().collect();
        let edited = &self.current.target.path;
        Ok(stale_config::remove_from_other_files(
            facts, &managed, edited,
        )?)
    }

    fn change(
        &self,
        facts: &HostFacts,
        after: Option<String>,
        declared: &[Handler],
    ) -> Result<ConfigChange, Error> {
        let rendered = match &self.current.rendered {
            Some((target, Some(text))) => Some(Rendered {
                target: target.clone(),
                after: self.edit(target, Some(text), declared)?,
            }),
            // An image that was never started has no rendered file to check.
            Some((_, None)) | None => None,
        };
        Ok(ConfigChange {
            path: self.current.target.path.clone(),
            before: self.current.text.map(str::to_owned),
            after,
            root: facts.config_files.root.path.clone(),
            rendered,
            live: true,
        })
    }

    /// Directories to create before the first write, outermost first.
    pub(crate) fn new_directories(&self, facts: &HostFacts) -> Vec<String> {
        let config = parent_directory(&self.current.target.path);
        let root = parent_directory(&facts.config_files.root.path);
        let mut directories: Vec<String> = Vec::new();
        let (store, bin) = (facts.install_paths.store(), facts.install_paths.bin());
        for directory in [STATE_DIRECTORY, &store, &bin, root, config] {
            let missing = facts
                .missing_directories
                .get(directory)
                .into_iter()
                .flatten();
            for path in missing {
                if !directories.contains(path) {
                    directories.push(path.clone());
                }
            }
        }
        directories
    }
}

/// Another file has precedence over the declaration of `handler`.
pub(crate) fn not_visible(handler: &str) -> containerd_config::Error {
    containerd_config::Error::HandlerNotVisible {
        handler: handler.to_owned(),
    }
}

/// Checks that the host has what the configuration needs.
///
/// # Errors
/// When it lacks a file or feature.
pub(crate) fn check_prerequisites(facts: &HostFacts) -> Result<(), Error> {
    match &facts.missing_prerequisite {
        Some(message) => Err(Error::Refuses(Problem::new(message, None))),
        None => Ok(()),
    }
}

/// The handlers that a source declares, together with the handlers `rendered` from it last.
fn declared_in(
    source: &ConfigSource<'_>,
    rendered: BTreeMap<String, DeclaredHandler>,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    let mut declared = rendered;
    match source.text {
        Some(text) if source.is_go_template => {
            for (name, handler) in template_handlers(text, source.target.plugin) {
                declared.entry(name).or_insert(handler);
            }
        }
        Some(text) => declared.extend(handlers(text, &source.target)?),
        None => {}
    }
    Ok(declared)
}

/// The handlers that Farrier manages: those in the state file, and every handler that executes its stable path. The path counts, too,
/// because the state file may be lost and an old configuration restored.
fn managed_handlers<'f>(
    facts: &HostFacts,
    declared: impl Iterator<Item = (&'f String, &'f DeclaredHandler)>,
) -> BTreeSet<String> {
    let recorded = facts.state.handlers.keys();
    let served = facts.served.iter().flat_map(|served| &served.handlers);
    let marked = declared
        .map(|(name, handler)| (name, &handler.runtime_type))
        .chain(served)
        .filter(|(name, path)| **path == facts.install_paths.binary_path(name))
        .map(|(name, _)| name);
    recorded.chain(marked).cloned().collect()
}

/// The handlers that the distribution declares by itself, each with its program: other ones than Farrier's at its stable path, with the option
/// by which the distribution names the program.
fn found_by_distro(
    facts: &HostFacts,
    dumped: &BTreeMap<String, DeclaredHandler>,
) -> BTreeMap<String, String> {
    let found = dumped.iter().filter(|(name, handler)| {
        let owned = facts.state.handlers.get(*name);
        let declared = owned.map(|owned| facts.install_paths.declared_path(name, owned));
        facts.distro.program_of(name).is_some() && declared.as_ref() != Some(&handler.runtime_type)
    });
    found
        .filter_map(|(name, handler)| {
            Some((name.clone(), program_of(&handler.options)?.to_owned()))
        })
        .collect()
}

/// The program in the options of a runtime that the distribution has found.
pub(crate) fn program_of(options: &BTreeMap<String, Value>) -> Option<&str> {
    let program = options.get("BinaryName")?.as_str();
    program.filter(|program| !program.is_empty())
}

/// Why a handler is not served by Farrier's binary: the distribution has found a runtime of the same name.
pub(crate) fn found_problem(facts: &HostFacts, handler: &str, program: &str) -> Problem {
    let (id, unit) = (facts.distro.id, facts.unit());
    Problem::with_help(
        format!("{id} declares handler {handler} itself, because it finds {program}"),
        format!("remove {program} and restart {unit}, or use another handler name"),
    )
}

/// As [`found_problem`], for all these handlers and programs.
pub(crate) fn found_problems(
    facts: &HostFacts,
    found: &BTreeMap<String, String>,
) -> BTreeMap<String, Problem> {
    let problem = |(handler, program): (&String, &String)| {
        (handler.clone(), found_problem(facts, handler, program))
    };
    found.iter().map(problem).collect()
}

/// What happens to a declaration at the next start of the distribution.
pub(crate) fn will_give_way(id: &str, handler: &str, program: &str, then: &str) -> String {
    format!(
        "{id} finds {program} and declares handler {handler} itself from its next start on: Farrier's declaration then {then}"
    )
}

/// Whether this containerd passes a handler's options to its shim. containerd 1.6 passes an empty body to all shims but runc's. An unknown
/// release counts as newer.
pub(crate) fn passes_options(facts: &HostFacts) -> bool {
    facts
        .version
        .is_none_or(|version| (version.major, version.minor) >= (1, 7))
}

/// Managed handlers as they are declared in the configuration.
pub(crate) fn declarations(
    facts: &HostFacts,
    next: &BTreeMap<String, OwnedHandler>,
) -> Vec<Handler> {
    let passes_options = passes_options(facts);
    next.iter()
        .map(|(name, owned)| Handler {
            name: name.clone(),
            runtime_type: facts.install_paths.declared_path(name, owned),
            options: if passes_options {
                OptionValue::to_toml(&owned.options)
            } else {
                BTreeMap::new()
            },
        })
        .collect()
}

fn text_at<'a>(facts: &'a HostFacts, path: &str) -> Option<&'a str> {
    let files = facts.config_files.files();
    files
        .filter(|file| file.path == path)
        .find_map(|file| file.text.as_deref())
}
