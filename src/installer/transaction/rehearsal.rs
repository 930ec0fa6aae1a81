//! Rehearses a plan: the host's containerd must start on the changed configuration and serve its handlers, before anything is written.

use std::collections::BTreeSet;

use tracing::debug;

use super::failure::Error;
use crate::containerd_config::{
    self, ConfigFiles, DeclaredHandler, Glob, SourceFile, remove_managed_handlers,
};
use crate::handoff::Problem;
use crate::installer::containerd::config_files::patterns;
use crate::installer::containerd::cri::Served;
use crate::installer::containerd::rehearsal::Rehearsal;
use crate::installer::distro::Edited;
use crate::installer::host::HostRoot;
use crate::installer::inspect::HostFacts;
use crate::installer::plan::expected::ExpectedRuntimes;
use crate::installer::plan::pending::PendingChanges;
use crate::installer::plan::{self, HostPlan};

/// The result of the rehearsal of a plan that is not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rehearsed {
    /// The plan restarts no running containerd.
    NotDue,
    /// containerd starts on the changed configuration and serves its handlers.
    Passed,
    /// The rehearsal says nothing about the change, for this reason.
    NotPossible(Problem),
}

impl Rehearsed {
    /// The sentence for an operator about a rehearsal that says nothing.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        match self {
            Self::NotDue | Self::Passed => None,
            Self::NotPossible(problem) => Some(format!(
                "the start of containerd on the changed configuration was not rehearsed: {problem}"
            )),
        }
    }
}

/// A rehearsal from before the plan was known.
#[derive(Debug)]
pub struct EarlyRehearsal {
    files: ConfigFiles,
    rehearsal: Rehearsal,
}

impl EarlyRehearsal {
    /// Starts containerd on the configuration of a plan that may be made; `None` if that plan restarts no containerd.
    pub(crate) async fn of(host: &HostRoot, facts: &HostFacts, plan: &HostPlan) -> Option<Self> {
        if !is_due(facts, plan) {
            return None;
        }
        let files = ConfigAfter::of(facts, plan).ok()?.files;
        let rehearsal = facts.rehearse(host, &files).await;
        Some(Self { files, rehearsal })
    }
}

/// Whether `plan` restarts a running containerd.
fn is_due(facts: &HostFacts, plan: &HostPlan) -> bool {
    plan.restart && facts.containerd.daemon().is_some()
}

/// Starts the host's containerd on the configuration of `plan`, beside the running one, and compares what it serves with the plan. Writes
/// nothing. An early rehearsal of the same configuration replaces the start.
///
/// Where that start fails, containerd is started on the present configuration as well: if that fails, too, the cause is not in the change.
///
/// # Errors
/// [`Error::Rehearsal`] when containerd fails on the changed configuration alone, or serves other handlers there. [`plan::Error::Pending`]
/// when it fails on the present configuration as well, unless an operator accepts that.
pub(crate) async fn rehearse(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
    early: Option<&EarlyRehearsal>,
) -> Result<Rehearsed, Error> {
    if !is_due(facts, plan) {
        return Ok(Rehearsed::NotDue);
    }
    let after = ConfigAfter::of(facts, plan)?;
    let rehearsal = match early {
        Some(early) if early.files == after.files => early.rehearsal.clone(),
        Some(_) | None => facts.rehearse(host, &after.files).await,
    };
    debug!(?rehearsal, "rehearsed the start of containerd");
    let problem = match rehearsal {
        Rehearsal::Served(served) => match after.verify(facts, plan, served) {
            Ok(()) => return Ok(Rehearsed::Passed),
            Err(message) => Problem::new(message, None),
        },
        Rehearsal::Failed(problem) => problem,
        Rehearsal::NotPossible(problem) => return Ok(Rehearsed::NotPossible(problem)),
    };
    match facts.rehearse(host, &facts.config_files).await {
        Rehearsal::Served(_) => Err(Error::Rehearsal(problem)),
        // Whatever the times of the files say, a restart may leave the node without containerd. The built root may also lack what the node
        // has, so an operator can go on.
        Rehearsal::Failed(present) if plan.accept_pending_changes => {
            Ok(Rehearsed::NotPossible(Problem::new(
                format!("it fails on the present configuration, too ({present})"),
                None,
            )))
        }
        Rehearsal::Failed(present) => {
            let refused = PendingChanges::of_failing_start(facts, present);
            Err(plan::Error::Pending(refused).into())
        }
        Rehearsal::NotPossible(problem) => Ok(Rehearsed::NotPossible(problem)),
    }
}

/// The configuration files that containerd loads after a change.
#[derive(Debug)]
struct ConfigAfter {
    files: ConfigFiles,
    /// Whether the distribution renders these files from others at the restart, and has not done so yet. They then show handlers that the
    /// change adds, and still those that it removes.
    is_unrendered: bool,
}

impl ConfigAfter {
    fn of(facts: &HostFacts, plan: &HostPlan) -> Result<Self, containerd_config::Error> {
        let mut files = facts.config_files.clone();
        let (mut is_unrendered, mut is_changed) = (false, false);
        let mut added = BTreeSet::new();
        for change in plan.config.iter().filter(|change| change.live) {
            is_changed = true;
            // The distribution renders the same edit.
            let (path, text) = match &change.rendered {
                Some(rendered) => (&rendered.target.path, &rendered.after),
                None => (&change.path, &change.after),
            };
            let mut all = std::iter::once(&mut files.root).chain(&mut files.imported);
            if let Some(file) = all.find(|file| file.path == *path) {
                file.text.clone_from(text);
            } else if text.is_some() {
                added.insert(path.clone());
                files.imported.push(SourceFile {
                    path: path.clone(),
                    text: text.clone(),
                });
            } else {
                is_unrendered = true;
            }
        }
        if is_changed && matches!(facts.distro.edited, Edited::Snippets { .. }) {
            remove_last_rendering(plan, &mut files);
        }
        let patterns = patterns(&files.root);
        let is_imported = |path: &String| patterns.iter().any(|pattern| matches(pattern, path));
        if !added.iter().all(is_imported) {
            is_unrendered = true;
            let imports = files.imported.iter().filter(|file| file.text.is_some());
            let imports: Vec<&str> = imports.map(|file| file.path.as_str()).collect();
            let text = files.root.text.as_deref().unwrap_or_default();
            let text = containerd_config::with_imports(&files.root.path, text, &imports)?;
            files.root.text = Some(text);
        }
        // Without a change, the restart only makes the distribution render its files.
        is_unrendered |= !is_changed && facts.distro.edited != Edited::Loaded;
        Ok(Self {
            files,
            is_unrendered,
        })
    }

    /// Checks that `served` is what the plan declares.
    fn verify(&self, facts: &HostFacts, plan: &HostPlan, served: Served) -> Result<(), String> {
        let Some(expected) = ExpectedRuntimes::of(facts, plan) else {
            return Ok(());
        };
        let mut served = served;
        if self.is_unrendered {
            let is_declared = |name: &String| plan.declared.iter().any(|it| it.name == *name);
            let stays = |name: &String| !plan.managed.contains(name) || is_declared(name);
            served.handlers.retain(|name, _| stays(name));
            served.options.retain(|name, _| stays(name));
            if plan.config.iter().all(|change| !change.live) {
                return Ok(());
            }
        }
        expected.verify_change(&served)
    }
}

/// Removes the managed handlers from the imported files that `plan` does not change. k0s renders such a file from its snippets, so it still
/// has the handlers of the last snippet, and the changed file has those that stay.
fn remove_last_rendering(plan: &HostPlan, files: &mut ConfigFiles) {
    let changes = plan.config.iter();
    let changed: BTreeSet<&str> = changes
        .map(|change| match &change.rendered {
            Some(rendered) => rendered.target.path.as_str(),
            None => change.path.as_str(),
        })
        .collect();
    let imported = files.imported.iter_mut();
    for file in imported.filter(|file| !changed.contains(file.path.as_str())) {
        let text = file.text.as_deref().unwrap_or_default();
        let is_managed = |name: &str, _: &DeclaredHandler| plan.managed.contains(name);
        let left = remove_managed_handlers(&file.path, text, is_managed);
        // A file that can't be edited, or of which nothing is left, stays.
        if let Ok(Some(left)) = left {
            file.text = Some(left);
        }
    }
}

/// Whether an absolute pattern of `imports` matches an absolute path. As in containerd, a pattern without `*` is a path.
fn matches(pattern: &str, path: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == path;
    }
    let (patterns, names) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns
            .zip(names)
            .all(|(part, name)| Glob::parse(part).is_some_and(|glob| glob.matches(name)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::containerd_config::{ConfigTarget, Handler, PluginId};
    use crate::installer::fixtures;
    use crate::installer::plan::ConfigChange;
    use crate::installer::plan::config_source::Rendered;

    const ROOT: &str = "/etc/containerd/config.toml";

    fn change(path: &str, after: Option<&str>) -> ConfigChange {
        ConfigChange {
            path: path.to_owned(),
            before: None,
            after: after.map(str::to_owned),
            root: ROOT.to_owned(),
            rendered: None,
            live: true,
        }
    }

    /// The files after `changes` of a root with this text that loads one drop-in.
    fn after(root: &str, changes: Vec<ConfigChange>) -> ConfigAfter {
        let mut facts = fixtures::host().build();
        facts.config_files = ConfigFiles {
            root: SourceFile {
                path: ROOT.to_owned(),
                text: Some(root.to_owned()),
            },
            imported: vec![SourceFile {
                path: "/etc/containerd/conf.d/a.toml".to_owned(),
                text: Some("a".to_owned()),
            }],
        };
        let plan = HostPlan {
            config: changes,
            ..HostPlan::default()
        };
        ConfigAfter::of(&facts, &plan).unwrap()
    }

    const GLOB: &str = "imports = ['conf.d/*.toml']\n";

    #[rstest]
    #[case::root(ROOT, GLOB, false)]
    #[case::imported("/etc/containerd/conf.d/a.toml", GLOB, false)]
    #[case::new_file_of_the_glob("/etc/containerd/conf.d/new.toml", GLOB, false)]
    #[case::snippet_of_a_supervisor("/etc/k0s/containerd.d/new.toml", GLOB, true)]
    #[case::new_file_beside_a_plain_import(
        "/etc/containerd/conf.d/new.toml",
        "imports = ['conf.d/a.toml']\n",
        true
    )]
    fn a_changed_file_is_loaded_as_after_the_change(
        #[case] path: &str,
        #[case] root: &str,
        #[case] is_listed: bool,
    ) {
        let after = after(root, vec![change(path, Some("version = 2\n"))]);
        let text = after.files.files().find(|file| file.path == path);
        assert_eq!(text.unwrap().text.as_deref(), Some("version = 2\n"));
        let text = after.files.root.text.unwrap();
        assert_eq!(text.contains(&format!("\"{path}\"")), is_listed, "{text}");
        assert_eq!(after.is_unrendered, is_listed);
    }

    #[test]
    fn a_removed_file_is_absent_and_a_dead_file_is_left_alone() {
        let dead = ConfigChange {
            live: false,
            ..change(ROOT, Some("dead"))
        };
        let removed = change("/etc/containerd/conf.d/a.toml", None);
        let ConfigAfter { files, .. } = after(GLOB, vec![removed, dead]);
        assert_eq!(files.root.text.as_deref(), Some(GLOB));
        assert_eq!(files.imported[0].text, None);
    }

    #[test]
    fn a_template_is_rehearsed_as_the_file_that_it_is_rendered_to() {
        let target = ConfigTarget {
            path: ROOT.to_owned(),
            plugin: PluginId::CriV1Runtime,
            version: Some(3),
            drop_in: false,
            must_declare_runc: false,
            runc_is_foreign: false,
            declared_in_other_files: BTreeSet::new(),
        };
        let template = ConfigChange {
            rendered: Some(Rendered {
                target,
                after: Some("rendered".to_owned()),
            }),
            ..change("/etc/containerd/config.toml.tmpl", Some("{{ }}"))
        };
        let after = after("", vec![template]);
        assert_eq!(after.files.root.text.as_deref(), Some("rendered"));
        assert_eq!(after.files.imported.len(), 1);
    }

    #[rstest]
    #[case("/a/*.toml", "/a/b.toml", true)]
    #[case("/a/*.toml", "/a/b/c.toml", false)]
    #[case("/*/b.toml", "/a/b.toml", true)]
    #[case("/a/b.toml", "/a/b.toml", true)]
    #[case("/a/?.toml", "/a/b.toml", false)]
    fn a_pattern_of_imports_matches_as_in_containerd(
        #[case] pattern: &str,
        #[case] path: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(matches(pattern, path), expected);
    }

    #[test]
    fn handlers_that_the_plan_does_not_declare_are_refused_unless_files_are_rendered_later() {
        let mut facts = fixtures::host().build();
        let runc = |served: &mut Served| {
            served.ready = true;
            "runc".clone_into(&mut served.default);
            let runc = ("runc".to_owned(), "io.containerd.runc.v2".to_owned());
            served.handlers = BTreeMap::from([runc]);
        };
        let mut served = Served::default();
        runc(&mut served);
        facts.served = Ok(served.clone());
        let handler = |name: &str| Handler {
            name: name.to_owned(),
            runtime_type: format!("/bin/{name}"),
            options: BTreeMap::new(),
        };
        let plan = HostPlan {
            config: vec![change(ROOT, Some(""))],
            managed: ["a", "b"].map(str::to_owned).into(),
            declared: vec![handler("a")],
            ..HostPlan::default()
        };
        let mut verify = |names: &[&str], is_unrendered| {
            for name in names {
                let entry = ((*name).to_owned(), format!("/bin/{name}"));
                served.handlers.extend([entry]);
            }
            let after = ConfigAfter {
                files: facts.config_files.clone(),
                is_unrendered,
            };
            after.verify(&facts, &plan, served.clone())
        };
        assert!(verify(&[], false).is_err());
        assert_eq!(verify(&["a"], false), Ok(()));
        assert!(verify(&["b"], false).is_err());
        assert_eq!(verify(&[], true), Ok(()));
    }
}
