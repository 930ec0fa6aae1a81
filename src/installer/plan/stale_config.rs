//! Removes Farrier's handlers from configuration files that Farrier no longer edits. An upgrade of a node can change the file that Farrier
//! edits, because that file depends on the release of containerd and on the files that containerd loads. Pure; the file to edit is chosen
//! in `config_source` and `containerd_config`.

use std::collections::BTreeSet;

use super::types::ConfigChange;
use crate::containerd_config::{
    DeclaredHandler, Error, Handler, SourceFile, created_base, foreign_lines,
    remove_managed_handlers,
};
use crate::handoff::OptionValue;
use crate::installer::distro::Edited;
use crate::installer::inspect::HostFacts;

/// The changes that remove the handlers `managed` from all files except `edited`.
///
/// # Errors
/// When a file can't be edited.
pub(crate) fn remove_from_other_files(
    facts: &HostFacts,
    managed: &BTreeSet<String>,
    edited: &str,
) -> Result<Vec<ConfigChange>, Error> {
    let install_paths = &facts.install_paths;
    let executes_managed_path = |name: &str, handler: &DeclaredHandler| {
        let owned = facts.state.handlers.get(name);
        let declared = owned.map(|owned| install_paths.declared_path(name, owned));
        let path = &handler.runtime_type;
        *path == install_paths.binary_path(name) || Some(path) == declared.as_ref()
    };
    // A comment of Farrier above another program was copied.
    let is_of_legacy = |name: &str, handler: &DeclaredHandler| {
        let legacy = facts.legacy.handlers.get(name);
        handler.marked && legacy.is_some_and(|legacy| legacy.declared.path == handler.runtime_type)
    };
    let is_managed = |name: &str, handler: &DeclaredHandler| {
        managed.contains(name)
            && (executes_managed_path(name, handler) || is_of_legacy(name, handler))
    };
    let written = recorded(facts);
    let mut changes = Vec::new();
    for (file, live) in others(facts, edited) {
        let Some(before) = &file.text else {
            continue;
        };
        let after = remove_managed_handlers(&file.path, before, is_managed)?;
        let after = with_foreign_lines(&file.path, before, after, &written)?;
        if after.as_ref() != Some(before) {
            changes.push(ConfigChange {
                path: file.path.clone(),
                before: Some(before.clone()),
                after,
                root: facts.config_files.root.path.clone(),
                rendered: None,
                live,
            });
        }
    }
    Ok(changes)
}

/// Managed handlers as the state file records them.
pub(crate) fn recorded(facts: &HostFacts) -> Vec<Handler> {
    let owned = facts.state.handlers.iter();
    owned
        .map(|(name, owned)| Handler {
            name: name.clone(),
            runtime_type: facts.install_paths.declared_path(name, owned),
            options: OptionValue::to_toml(&owned.options),
        })
        .collect()
}

/// The text `after` an edit, with the lines that others added to the tables of the handlers `written` as comments at its end. The edit
/// removed these tables or wrote them again.
///
/// # Errors
/// When the text before the edit can't be read.
pub(crate) fn with_foreign_lines(
    path: &str,
    before: &str,
    after: Option<String>,
    written: &[Handler],
) -> Result<Option<String>, Error> {
    if after.as_deref() == Some(before) {
        return Ok(after);
    }
    let comments = foreign_lines(path, before, written)?;
    if comments.is_empty() {
        return Ok(after);
    }
    let text = match after {
        Some(text) => text,
        None => created_base(path, before)?,
    };
    let is_open = !text.is_empty() && !text.ends_with('\n');
    let end = if is_open { "\n" } else { "" };
    Ok(Some(format!("{text}{end}{comments}")))
}

/// The files other than `edited` that may declare Farrier's handlers, each with whether containerd loads it.
///
/// A file that the distribution renders is left to the distribution, and its sources are edited. The exception is a rendered file that the
/// state file records as Farrier's.
fn others<'a>(
    facts: &'a HostFacts,
    edited: &'a str,
) -> impl Iterator<Item = (&'a SourceFile, bool)> {
    let owned = facts.state.config.as_ref().map(|config| &config.path);
    let is_made = match facts.distro.edited {
        Edited::Loaded => false,
        Edited::GoTemplate { .. } | Edited::TomlTemplate(_) | Edited::Snippets { .. } => true,
    };
    let loaded = facts.config_files.files();
    let loaded = loaded.filter(move |file| !is_made || Some(&file.path) == owned);
    let unloaded = facts.sources.iter().chain(&facts.orphaned_config);
    loaded
        .map(|file| (file, true))
        .chain(unloaded.map(|file| (file, false)))
        .filter(move |(file, _)| file.path != edited)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::installer::fixtures::{
        CONFIG_PATH, HostFactsBuilder, goal, host, remove_everything, served,
    };
    use crate::installer::plan::{HostPlan, decide};
    use crate::installer::state::State;

    const LAST: &str = "/etc/containerd/conf.d/90-last.toml";
    const RUNC: &str = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";

    /// Files by their paths; the root is [`CONFIG_PATH`].
    type Files = BTreeMap<String, String>;

    fn files(files: &[(&str, &str)]) -> Files {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        files.iter().map(owned).collect()
    }

    /// The node with these files and this release of containerd, which loads all files except `unloaded`.
    fn on(facts: HostFacts, files: &Files, release: &str, unloaded: &[&str]) -> HostFacts {
        let file = |(path, text): (&String, &String)| SourceFile {
            path: path.clone(),
            text: Some(text.clone()),
        };
        let is_loaded = |path: &String| !unloaded.contains(&path.as_str());
        let others = files.iter().filter(|(path, _)| *path != CONFIG_PATH);
        let (loaded, orphaned): (Vec<_>, Vec<_>) = others.partition(|(path, _)| is_loaded(path));
        let root = files.get(CONFIG_PATH).map(String::as_str);
        let builder = HostFactsBuilder::from(facts).containerd(release);
        let mut facts = builder.root(CONFIG_PATH, root).build();
        facts.config_files.imported = loaded.into_iter().map(file).collect();
        facts.orphaned_config = orphaned.into_iter().next().map(file);
        facts
    }

    /// Carries out `plan` in the files and on the node, whose containerd then prints the declared handlers.
    fn carry_out(facts: HostFacts, files: &mut Files, plan: HostPlan) -> HostFacts {
        for change in &plan.config {
            assert_eq!(files.get(&change.path), change.before.as_ref());
            match &change.after {
                Some(text) => files.insert(change.path.clone(), text.clone()),
                None => files.remove(&change.path),
            };
        }
        let table = |handler: &Handler| {
            let (name, path) = (&handler.name, &handler.runtime_type);
            format!(
                "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.{name}]\nruntime_type = '{path}'\n"
            )
        };
        let managed: String = plan.declared.iter().map(table).collect();
        let mut facts = HostFactsBuilder::from(facts).after(plan).build();
        facts.dump = Ok(format!("{RUNC}{managed}"));
        facts
    }

    const GLOB: &str = "version = 2\nimports = ['conf.d/*.toml']\n";
    const PLAIN: &str = "version = 2\nimports = ['/etc/containerd/conf.d/90-last.toml']\n";

    #[rstest]
    #[case::to_a_drop_in(GLOB, "1.7.35", "2.1.9", &[])]
    #[case::to_the_root(PLAIN, "1.6.36", "2.4.2", &[])]
    #[case::to_another_configuration(GLOB, "1.7.35", "1.7.35", &[LAST])]
    fn handlers_in_a_file_that_is_no_longer_edited_are_removed_to_the_last_byte(
        #[case] root: &str,
        #[case] before: &str,
        #[case] release: &str,
        #[case] unloaded: &[&str],
        #[values(false, true)] moves: bool,
        #[values(false, true)] state_is_lost: bool,
    ) {
        let first = files(&[(CONFIG_PATH, root), (LAST, RUNC)]);
        let mut now = first.clone();
        let facts = on(host().build(), &now, before, &[]);
        let plan = decide(&facts, &goal(&["a"]).build()).unwrap();
        assert_eq!(plan.config[0].path, LAST);
        let mut facts = carry_out(facts, &mut now, plan);
        if state_is_lost && unloaded.is_empty() {
            facts.state = State::default();
        }
        let mut facts = on(facts, &now, release, unloaded);
        if moves {
            let plan = decide(&facts, &goal(&["a"]).build()).unwrap();
            assert!(plan.restart && plan.config.len() == 2, "{plan:?}");
            facts = carry_out(facts, &mut now, plan);
            facts = on(facts, &now, release, unloaded);
            assert_eq!(now[LAST], first[LAST]);
            assert!(decide(&facts, &goal(&["a"]).build()).unwrap().is_empty());
        }
        let plan = decide(&facts, &remove_everything()).unwrap();
        assert!(
            plan.restart && !matches!(plan.state, crate::installer::state::StateAfter::Write(_))
        );
        carry_out(facts, &mut now, plan);
        assert_eq!(now, first);
    }

    /// On 1.7, the section of the last file replaces that with Farrier's handlers.
    #[rstest]
    #[case::beside_a_drop_in("2.1.9", GLOB, RUNC)]
    #[case::in_place_of_the_root("1.7.35", &format!("{GLOB}{RUNC}"), "version = 2\n")]
    fn a_handler_of_others_with_a_managed_name_in_another_file_is_left_alone(
        #[case] release: &str,
        #[case] root: &str,
        #[case] last: &str,
    ) {
        let mut now = files(&[(CONFIG_PATH, root), (LAST, last)]);
        let facts = on(host().build(), &now, release, &[]);
        let reserves = goal(&["a"]).reserve(&["b"]);
        let plan = decide(&facts, &reserves.build()).unwrap();
        let facts = carry_out(facts, &mut now, plan);
        let foreign = format!(
            "{RUNC}{}",
            "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/opt/theirs'\n"
        );
        now.insert(LAST.to_owned(), foreign.clone());
        let mut facts = on(facts, &now, release, &[]);
        facts.dump = Ok(foreign);
        facts.served = Ok(served(&[]));
        let theirs = ("a".to_owned(), "/opt/theirs".to_owned());
        facts.served.as_mut().unwrap().handlers.extend([theirs]);
        let error = decide(&facts, &goal(&["a"]).reserve(&["b"]).build()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "containerd would not load handler a as it is declared"
        );
        let plan = decide(&facts, &remove_everything()).unwrap();
        assert!(plan.config.iter().all(|change| change.path != LAST));
        carry_out(facts, &mut now, plan);
        assert!(
            now.values().all(|text| !text.contains("farrier")),
            "{now:?}"
        );
    }

    #[test]
    fn a_reservation_gives_way_to_a_handler_of_others_in_another_file() {
        let mut now = files(&[(CONFIG_PATH, &format!("{GLOB}{RUNC}"))]);
        let facts = on(host().build(), &now, "1.7.35", &[]);
        let reserves = || goal(&["a"]).reserve(&["b"]).build();
        let plan = decide(&facts, &reserves()).unwrap();
        let facts = carry_out(facts, &mut now, plan);
        let theirs = format!(
            "{RUNC}[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.b]\nruntime_type = '/opt/theirs'\n"
        );
        now.insert(LAST.to_owned(), theirs.clone());
        let mut facts = on(facts, &now, "1.7.35", &[]);
        facts.dump = Ok(theirs.clone());
        facts.served = Ok(served(&[]));
        let handler = ("b".to_owned(), "/opt/theirs".to_owned());
        facts.served.as_mut().unwrap().handlers.extend([handler]);
        let plan = decide(&facts, &reserves()).unwrap();
        let facts = carry_out(facts, &mut now, plan);
        let last = &now[LAST];
        assert!(
            last.starts_with(&theirs) && last.contains("shim-a"),
            "{last}"
        );
        assert!(!facts.state.handlers.contains_key("b"));
    }
}
