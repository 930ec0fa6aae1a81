//! Chooses the file to edit on distributions that render containerd's configuration: a template, or a snippet of Farrier. Pure.
//!
//! `containerd::config_files` finds the files that containerd loads; `containerd_config` edits a text.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::containerd_config::{
    self, ConfigFiles, ConfigTarget, PluginId, Version, edit_template, imports, is_template,
    template_fault,
};
use crate::handoff::Problem;
use crate::installer::distro::Edited;
use crate::installer::inspect::HostFacts;

/// A file that a distribution renders, with its text after a change of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Where handlers are declared in it.
    pub target: ConfigTarget,
    /// Its text afterwards; `None` where it is removed.
    pub after: Option<String>,
}

/// Why the source of a configuration can't be edited.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The template is absent.
    #[error("the configuration template {path} is absent")]
    NoTemplate {
        /// The template.
        path: String,
    },
    /// The release is unknown, and the format of a new file depends on it.
    #[error(
        "failed to determine the release of {id}, on which its configuration depends: {problem}"
    )]
    NoRelease {
        /// The distribution.
        id: &'static str,
        /// Why the release is unknown.
        problem: Problem,
    },
    /// The release has no base template that a new template could include.
    #[error("{id} {release} has no base template to extend")]
    NoBase {
        /// The distribution.
        id: &'static str,
        /// Its release.
        release: Version,
    },
}

/// The help where no release is known and the cause has no help.
const CHECK_PROGRAM: &str =
    "check that the program of the distribution runs on the node, or start the node once";

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::NoTemplate { .. } => {
                Cow::Borrowed("restore the template, or start the node once")
            }
            Self::NoRelease { problem, .. } => problem.help_or(CHECK_PROGRAM),
            Self::NoBase { id, .. } => {
                Cow::Owned(format!("upgrade {id} to 1.26.8, 1.27.5, 1.28.1 or later"))
            }
        })
    }

    fn no_release(facts: &HostFacts, problem: &Problem) -> Self {
        Self::NoRelease {
            id: facts.distro.id,
            problem: problem.clone(),
        }
    }
}

/// A file from which the distribution renders containerd's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigSource<'a> {
    /// Where handlers are declared in it.
    pub(crate) target: ConfigTarget,
    /// Its text; `None` where it is absent.
    pub(crate) text: Option<&'a str>,
    /// Whether it is a Go template.
    pub(crate) is_go_template: bool,
}

/// The files that containerd loads. On a host that was never started, a TOML template counts as the root file.
pub(crate) fn current_files(facts: &HostFacts) -> Cow<'_, ConfigFiles> {
    match (facts.distro.edited, facts.sources.first()) {
        (Edited::TomlTemplate(_), Some(root)) if facts.config_files.root.text.is_none() => {
            Cow::Owned(ConfigFiles {
                root: root.clone(),
                imported: Vec::new(),
            })
        }
        _ => Cow::Borrowed(&facts.config_files),
    }
}

/// Whether containerd does not serve, because the last rendered file is no TOML, or because the template can't be rendered. Only the template
/// can be corrected then: the distribution overwrites the rendered file at each start.
pub(crate) fn is_unloadable(facts: &HostFacts) -> bool {
    let is_template = matches!(facts.distro.edited, Edited::GoTemplate { .. });
    let has_template = facts.sources.iter().any(|file| file.text.is_some());
    let serves = facts.served.as_ref().is_ok_and(|served| served.ready);
    let root = facts.config_files.root.text.as_deref();
    let is_broken = || root.and_then(syntax_error).is_some() || broken_template(facts).is_some();
    is_template && has_template && !serves && is_broken()
}

/// Why a text is no TOML.
fn syntax_error(text: &str) -> Option<containerd_config::Error> {
    let error = imports(text).err()?;
    matches!(error, containerd_config::Error::Syntax { .. }).then_some(error)
}

/// The template that can't be rendered, and the reason. The distribution renders the first one that exists.
pub(crate) fn broken_template(facts: &HostFacts) -> Option<(&str, &'static str)> {
    if !matches!(facts.distro.edited, Edited::GoTemplate { .. }) {
        return None;
    }
    let file = facts.sources.iter().find(|file| file.text.is_some())?;
    Some((&file.path, template_fault(file.text.as_deref()?)?))
}

/// Why containerd will not start without the handlers `managed` either; `None` where it may. Only for an unloadable configuration.
pub(crate) fn still_unloadable(facts: &HostFacts, managed: &BTreeSet<String>) -> Option<Problem> {
    if !is_unloadable(facts) {
        return None;
    }
    let id = facts.distro.id;
    if let Some((path, reason)) = broken_template(facts) {
        return Some(Problem::with_help(
            format!("{path} is no Go template, and {id} does not start: {reason}"),
            format!("correct {path}"),
        ));
    }
    let root = &facts.config_files.root;
    let text = root.text.as_deref();
    let plugin = PluginId::GrpcV1Cri;
    // The rendered file has the lines of the template, with Farrier's comments.
    let left = edit_template(&root.path, text, plugin, managed, &[]).ok()??;
    syntax_error(&left)?;
    not_toml(facts)
}

/// Why containerd does not load the file that the distribution rendered last; `None` where that file is TOML.
pub(crate) fn not_toml(facts: &HostFacts) -> Option<Problem> {
    let root = &facts.config_files.root;
    let error = syntax_error(root.text.as_deref()?)?;
    let templates = facts.sources.iter().filter(|file| file.text.is_some());
    let templates: Vec<&str> = templates.map(|file| file.path.as_str()).collect();
    let (id, templates) = (facts.distro.id, templates.join(" or "));
    Some(Problem::with_help(
        format!(
            "{} is no TOML, and containerd does not start: {error}",
            root.path
        ),
        format!("correct {templates}, from which {id} renders the file at each start"),
    ))
}

/// Where handlers would be declared in the file that containerd loads, if it could be read.
pub(crate) fn target_of_unloadable(facts: &HostFacts) -> ConfigTarget {
    ConfigTarget {
        path: facts.config_files.root.path.clone(),
        plugin: PluginId::GrpcV1Cri,
        version: Some(2),
        drop_in: false,
        must_declare_runc: false,
        runc_is_foreign: false,
        declared_in_other_files: BTreeSet::new(),
    }
}

/// The source to edit instead of the file of `target`; `None` where the file of `target` is edited.
///
/// # Errors
/// When the source is absent, and the format of a new file is unknown or Farrier can't create the file.
pub(crate) fn find<'a>(
    facts: &'a HostFacts,
    target: &ConfigTarget,
) -> Result<Option<ConfigSource<'a>>, Error> {
    let source = |at: usize, is_go_template: bool, target: &ConfigTarget| {
        let file = facts.sources.get(at)?;
        let target = ConfigTarget {
            path: file.path.clone(),
            ..target.clone()
        };
        let text = file.text.as_deref();
        Some(ConfigSource {
            is_go_template: is_go_template && text.is_none_or(is_template),
            target,
            text,
        })
    };
    match facts.distro.edited {
        Edited::Loaded => Ok(None),
        Edited::GoTemplate { .. } => {
            let owned = facts.state.config.as_ref().map(|config| &config.path);
            let exists = |at: &usize| {
                facts
                    .sources
                    .get(*at)
                    .is_some_and(|file| file.text.is_some())
            };
            let is_owned = |at: &usize| facts.sources.get(*at).map(|file| &file.path) == owned;
            let managed = [0, 1].into_iter().filter(exists).find(is_owned);
            let imported = target.path != facts.config_files.root.path;
            let at = match managed.or_else(|| [0, 1].into_iter().find(exists)) {
                // A release whose rendered file imports a directory needs no template. A template that Farrier wrote under an earlier release
                // is still the file to edit.
                _ if imported && managed.is_none() => return Ok(None),
                Some(at) => at,
                None => usize::from(!new_template(facts, target)?),
            };
            let target = if facts.config_files.root.text.is_some() && !is_unloadable(facts) {
                target.clone()
            } else {
                // The first template is that for schema 3 (k3s, `pkg/agent/containerd/config.go`, `templateGenerations`).
                unrendered_target(target, at == 0)
            };
            Ok(source(at, true, &target))
        }
        Edited::TomlTemplate(_) => {
            let absent = facts.sources.iter().all(|file| file.text.is_none());
            if absent {
                let path = facts.sources.first().map(|file| file.path.clone());
                return Err(Error::NoTemplate {
                    path: path.unwrap_or_default(),
                });
            }
            Ok(source(0, false, target))
        }
        Edited::Snippets { marker, .. } => {
            let root = facts.config_files.root.text.as_deref();
            if root.is_some_and(|text| text.lines().all(|line| line != marker)) {
                return Ok(None);
            }
            let schema_3 = snippets_have_schema_3(facts)
                .map_err(|problem| Error::no_release(facts, problem))?;
            Ok(source(0, false, &unrendered_target(target, schema_3)))
        }
    }
}

/// Whether the snippets of a distribution have schema 3.
///
/// # Errors
/// Why that is unknown.
fn snippets_have_schema_3(facts: &HostFacts) -> Result<bool, &Problem> {
    match (facts.version, &facts.release) {
        (Some(containerd), _) => Ok(containerd.major >= 2),
        // k0s 1.36 has containerd 2.
        (None, Ok(release)) => Ok((release.major, release.minor) >= (1, 36)),
        (None, Err(problem)) => Err(problem),
    }
}

/// The `version` that every snippet must have: k0s with containerd 2 does not start with another one. `None` where a release reads several.
pub(crate) fn snippet_version(facts: &HostFacts) -> Option<i64> {
    let Edited::Snippets { marker, .. } = facts.distro.edited else {
        return None;
    };
    let root = facts.config_files.root.text.as_deref();
    let is_managed = root.is_none_or(|text| text.lines().any(|line| line == marker));
    let is_3 = is_managed && snippets_have_schema_3(facts).is_ok_and(|is_3| is_3);
    is_3.then_some(3)
}

/// Where handlers are declared in a new file.
fn unrendered_target(target: &ConfigTarget, schema_3: bool) -> ConfigTarget {
    let (plugin, version) = if schema_3 {
        (PluginId::CriV1Runtime, 3)
    } else {
        (PluginId::GrpcV1Cri, 2)
    };
    ConfigTarget {
        plugin,
        version: Some(version),
        drop_in: true,
        // The distribution declares runc.
        must_declare_runc: false,
        ..target.clone()
    }
}

/// Whether a new template is written for schema 3.
///
/// # Errors
/// When a new template can't include the distribution's own template. A copy of that template would miss all later corrections.
fn new_template(facts: &HostFacts, target: &ConfigTarget) -> Result<bool, Error> {
    // The rendered file is better evidence than the release. A distribution that renders schema 3 has a base template.
    let schema_3 = target.version.is_some_and(|version| version >= 3);
    let rendered = facts.config_files.root.text.is_some().then_some(schema_3);
    if rendered == Some(true) {
        return Ok(true);
    }
    let release = facts.release.as_ref();
    let release = release.map_err(|problem| Error::no_release(facts, problem))?;
    // The base template came with the patch releases of September 2023.
    let has_base = match (release.major, release.minor) {
        (1, 26) => release.patch >= 8,
        (1, 27) => release.patch >= 5,
        (1, 28) => release.patch >= 1,
        newer => newer > (1, 28),
    };
    if has_base {
        Ok(rendered.unwrap_or_else(|| renders_schema_3(release)))
    } else {
        Err(Error::NoBase {
            id: facts.distro.id,
            release: *release,
        })
    }
}

/// Whether this release of k3s or RKE2 renders schema 3: containerd 2 and its template came with 1.31.6 and 1.32.2.
fn renders_schema_3(release: &Version) -> bool {
    match (release.major, release.minor) {
        (1, 31) => release.patch >= 6,
        (1, 32) => release.patch >= 2,
        newer => newer > (1, 32),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::containerd_config::SourceFile;
    use crate::installer::containerd::daemon::Containerd;
    use crate::installer::distro::by_id;
    use crate::installer::fixtures;
    use crate::installer::plan::config_edit::CurrentConfig;
    use crate::installer::plan::decide;
    use crate::installer::state::{OwnedConfig, StateAfter};

    const V2: &str = "version = 2\n";
    const V3: &str = "version = 3\n";
    const ROOT: &str = "/x/config.toml";
    const DROP_IN: &str = "/x/config-v3.toml.d/farrier.toml";

    /// The facts of a host of this distribution; `texts` are the texts of the files that may be edited.
    fn host(id: &str, root: Option<&str>, release: &str, texts: &[Option<&str>]) -> HostFacts {
        let builder = fixtures::host().distro(by_id(id)).root(ROOT, root);
        let mut facts = builder.build();
        facts.release = release
            .parse()
            .map_err(|_| Problem::new("it is unknown", None));
        let paths = crate::installer::distro::editable_files(facts.distro.edited, ROOT);
        assert_eq!(paths.len(), texts.len());
        facts.sources = paths
            .into_iter()
            .zip(texts)
            .map(|(path, text)| SourceFile {
                path,
                text: text.map(str::to_owned),
            })
            .collect();
        facts
    }

    fn target(path: &str) -> ConfigTarget {
        ConfigTarget {
            path: path.to_owned(),
            plugin: PluginId::GrpcV1Cri,
            version: Some(2),
            drop_in: false,
            must_declare_runc: false,
            runc_is_foreign: false,
            declared_in_other_files: BTreeSet::new(),
        }
    }

    const OLD: Option<&str> = Some("{{ template \"base\" . }}\n");

    #[test]
    fn a_new_handler_in_an_unrendered_template_refuses_the_restart() {
        let template = "{{ template \"base\" . }}\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.new]\nruntime_type = 'x'\n";
        let rendered = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
        let mut facts = host("k3s", Some(rendered), "1.31.6", &[Some(template), None]);
        facts.dump = Ok(rendered.to_owned());
        facts.version = "2.0.2".parse().ok();
        let site = CurrentConfig::find(&facts).unwrap();
        let error = site
            .check_restart(&facts, &site.managed, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("handler new"), "{error}");
    }

    const KATA: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'kata'\n";

    /// A k3s whose containerd does not run, with handler `a` of Farrier and these lines of others in its template and in the rendered file.
    fn stopped(theirs: &str, rendered: &str) -> HostFacts {
        let ours = "# farrier: managed handler; change its Shim or run farrier install instead\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.a]\nruntime_type = \"/opt/farrier/bin/containerd-shim-a\"\n";
        let template = format!("{{{{ template \"base\" . }}}}\n{ours}{theirs}");
        let root = format!("{V3}{ours}{rendered}");
        let mut facts = host("k3s", Some(&root), "1.33.1", &[Some(&template), None]);
        let installed = fixtures::host().installed(&["a"]).build();
        facts.state = installed.state;
        (facts.binaries, facts.stored) = (installed.binaries, installed.stored);
        facts.containerd = Containerd::NotFound {
            refused: Vec::new(),
        };
        facts.served = Err(Problem::new("nothing listens", None));
        facts.dump = Err(Problem::new("containerd refuses it", None));
        facts
    }

    #[rstest]
    #[case::a_table_twice(
        &format!("{KATA}{KATA}"),
        &format!("{KATA}{KATA}"),
        "/x/config.toml is no TOML, and containerd does not start: failed to parse the file: line 7, column"
    )]
    #[case::a_block_without_an_end(
        "{{ if .X }}\n",
        "",
        "/x/config-v3.toml.tmpl is no Go template, and k3s does not start: a block of an action has no end"
    )]
    fn handlers_leave_a_configuration_that_others_broke_without_a_restart(
        #[case] theirs: &str,
        #[case] rendered: &str,
        #[case] cause: &str,
    ) {
        let facts = stopped(theirs, rendered);
        let plan = decide(&facts, &fixtures::remove_everything()).unwrap();
        assert!(
            !plan.restart && plan.state == StateAfter::Remove,
            "{plan:?}"
        );
        let [change] = plan.config.as_slice() else {
            panic!("{:?}", plan.config);
        };
        assert_eq!(change.path, "/x/config-v3.toml.tmpl");
        let left = format!("{{{{ template \"base\" . }}}}\n{theirs}");
        assert_eq!(change.after.as_ref(), Some(&left));
        let note = format!("k3s.service does not run, and is not restarted: {cause}");
        assert!(plan.notes[0].starts_with(&note), "{:?}", plan.notes);
        let help = ". Correct /x/config-v3.toml.tmpl";
        assert!(plan.notes[0].contains(help), "{:?}", plan.notes);
        // A handler that is to be served needs a restart.
        let changed = fixtures::goal(&["a", "b"]).owner(crate::handoff::Owner::Local);
        let changed = changed.take_over().build();
        let error = decide(&facts, &changed).unwrap_err();
        assert!(error.to_string().starts_with(cause), "{error}");
        let help = error.help().unwrap();
        assert!(help.starts_with("correct /x/config-v3.toml.tmpl"), "{help}");
    }

    #[test]
    fn handlers_that_alone_break_a_configuration_leave_it_with_a_restart() {
        let found = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = 'found'\n";
        let facts = stopped("", found);
        let plan = decide(&facts, &fixtures::remove_everything()).unwrap();
        assert!(plan.restart, "{plan:?}");
    }

    #[rstest]
    #[case::of_k0s_1_36("v1.36.0+k0s.0", true, Some(3))]
    #[case::of_k0s_1_35("v1.35.1+k0s.1", true, None)]
    #[case::of_others("v1.36.0+k0s.0", false, None)]
    fn a_snippet_needs_version_3_where_k0s_has_containerd_2(
        #[case] release: &str,
        #[case] is_managed: bool,
        #[case] expected: Option<i64>,
        #[values("version = 2\n", "", "version = 3\n")] snippet: &str,
    ) {
        let marker = if is_managed {
            "# k0s_managed=true"
        } else {
            "# mine"
        };
        let root = format!("{marker}\n{V3}");
        let mut facts = host("k0s", Some(&root), release, &[None]);
        facts.version = None;
        assert_eq!(snippet_version(&facts), expected);
        facts.version = "2.1.9".parse().ok();
        let expected = is_managed.then_some(3);
        assert_eq!(snippet_version(&facts), expected);
        let path = "/x/containerd.d/20.toml";
        facts.snippets = vec![SourceFile {
            path: path.to_owned(),
            text: Some(snippet.to_owned()),
        }];
        let error = CurrentConfig::find(&facts).err().map(|it| it.to_string());
        let found = snippet
            .trim()
            .strip_prefix("version = 2")
            .map_or("no version", |_| "version = 2");
        let sentence = format!("{path} has {found}, and the distribution reads version = 3 alone");
        let is_refused = is_managed && snippet != V3;
        assert_eq!(error, is_refused.then_some(sentence));
    }

    #[rstest]
    #[case::rendered_for_2(Some(V2), "1.30.4", [None, None], "/x/config.toml.tmpl")]
    #[case::rendered_for_3(Some(V3), "", [None, None], "/x/config-v3.toml.tmpl")]
    #[case::image_of_k3s_1_33(None, "k3s version v1.33.1+k3s1 (abc)", [None, None], "/x/config-v3.toml.tmpl")]
    #[case::image_of_k3s_1_31(None, "1.31.5", [None, None], "/x/config.toml.tmpl")]
    #[case::an_old_template_alone(Some(V3), "", [None, OLD], "/x/config.toml.tmpl")]
    #[case::both_templates(Some(V3), "", [OLD, OLD], "/x/config-v3.toml.tmpl")]
    fn the_template_that_the_distribution_renders_is_edited(
        #[case] root: Option<&str>,
        #[case] release: &str,
        #[case] texts: [Option<&str>; 2],
        #[case] expected: &str,
        #[values("k3s", "k3d", "rke2")] id: &str,
    ) {
        let facts = host(id, root, release, &texts);
        let mut target = target(ROOT);
        target.version = Some(if root == Some(V3) { 3 } else { 2 });
        let source = find(&facts, &target).unwrap().unwrap();
        assert_eq!(source.target.path, expected);
        assert!(source.is_go_template);
    }

    #[rstest]
    #[case::unknown("")]
    #[case::k3s_1_28("1.28.0")]
    #[case::k3s_1_25("1.25.16")]
    fn no_template_is_created_before_releases_with_base_templates(#[case] release: &str) {
        let facts = host("k3s", Some(V2), release, &[None, None]);
        assert!(find(&facts, &target(ROOT)).is_err());
    }

    #[rstest]
    #[case::of_k3s("k3s", &[None, None])]
    #[case::of_k0s("k0s", &[None])]
    fn a_release_that_cannot_be_told_is_refused_with_the_cause(
        #[case] id: &str,
        #[case] texts: &[Option<&str>],
        #[values(None, Some("run `chmod g-w /usr/local` on the host"))] help: Option<&str>,
    ) {
        let mut facts = host(id, None, "", texts);
        facts.version = None;
        let cause = "failed to run /usr/local/bin/k3s of the host: no";
        facts.release = Err(Problem::new(cause, help.map(Cow::Borrowed)));
        let error = find(&facts, &target("/x/config.toml")).unwrap_err();
        assert!(error.to_string().ends_with(cause), "{error}");
        let expected = help.unwrap_or(CHECK_PROGRAM);
        assert_eq!(error.help().as_deref(), Some(expected));
    }

    #[test]
    fn a_managed_template_is_still_edited_when_a_new_release_imports_a_directory() {
        let mut facts = host("k3s", Some(V3), "1.35.2", &[OLD, None]);
        assert_eq!(find(&facts, &target(DROP_IN)).unwrap(), None);
        facts.state.config = Some(OwnedConfig {
            path: "/x/config-v3.toml.tmpl".to_owned(),
            sha256: None,
            root: None,
            runc: None,
        });
        let source = find(&facts, &target(DROP_IN)).unwrap().unwrap();
        assert_eq!(source.target.path, "/x/config-v3.toml.tmpl");
    }

    #[rstest]
    #[case::containerd_1("1.7.35", "v1.36.0+k0s.0", Some(2))]
    #[case::containerd_2("2.1.9", "", Some(3))]
    #[case::image_of_k0s_1_36("", "v1.36.0+k0s.0", Some(3))]
    #[case::image_of_k0s_1_35("", "v1.35.1+k0s.1", Some(2))]
    #[case::image_of_an_unknown_release("", "", None)]
    fn a_k0s_snippet_has_the_version_of_the_containerd_of_k0s(
        #[case] containerd: &str,
        #[case] release: &str,
        #[case] expected: Option<i64>,
        #[values(None, Some("\n# k0s_managed=true\nversion = 2\n"))] root: Option<&str>,
    ) {
        let mut facts = host("k0s", root, release, &[None]);
        facts.version = containerd.parse().ok();
        let source = find(&facts, &target("/run/k0s/containerd-cri.toml"));
        let Some(version) = expected else {
            assert!(source.is_err());
            return;
        };
        let target = source.unwrap().unwrap().target;
        assert_eq!(target.path, "/x/containerd.d/farrier.toml");
        assert_eq!(target.version, Some(version));
        assert!(!target.must_declare_runc);
    }

    #[test]
    fn a_k0s_configuration_that_k0s_does_not_manage_is_edited_in_place() {
        let facts = host("k0s", Some(V2), "", &[None]);
        assert_eq!(find(&facts, &target(ROOT)).unwrap(), None);
    }
}
