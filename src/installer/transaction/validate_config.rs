//! Checks a changed configuration with the host's own containerd before it takes effect. Writes candidate files beside the root
//! configuration, and removes them again; a dry run keeps them in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::failure::Error;
use crate::containerd_config::{self, ConfigFiles, DeclaredHandler, SourceFile};
use crate::handoff::Problem;
use crate::installer::containerd::config_files::{imports_itself, load, patterns};
use crate::installer::containerd::restart;
use crate::installer::host::HostRoot;
use crate::installer::inspect::{HostFacts, dump_config};
use crate::installer::plan::config_edit::program_of;
use crate::installer::plan::{ConfigChange, HostPlan};

/// Suffix of the candidate of the root configuration. The candidate is in the same directory, so relative imports resolve as in the
/// original, and no `*.toml` glob matches its name.
pub(crate) const SUFFIX: &str = ".farrier-candidate";
/// Suffix of the candidates of imported files.
pub(crate) const IMPORT_SUFFIX: &str = ".farrier-import";

/// The number of imported files of which a change of `changes` configuration files may need candidates.
pub(crate) fn candidate_files(config_files: &ConfigFiles, changes: usize) -> usize {
    changes + importing(config_files).count()
}

/// The imported files that import others.
fn importing(config_files: &ConfigFiles) -> impl Iterator<Item = &SourceFile> {
    let imported = config_files.imported.iter();
    imported.filter(|file| !patterns(file).is_empty())
}

/// The paths of the candidates of the root and of `files` imported files.
pub(crate) fn paths(root: &str, files: usize) -> impl Iterator<Item = String> {
    let imports = (0..files.max(1)).map(move |at| import_path(root, at));
    std::iter::once(format!("{root}{SUFFIX}")).chain(imports)
}

/// Whether `path` is a possible candidate for the root configuration `root`.
pub(crate) fn is_candidate(root: &str, path: &str) -> bool {
    let number = |rest: &str| {
        let digits = rest.strip_prefix('.').map(str::as_bytes);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
    };
    path.strip_prefix(root).is_some_and(|rest| {
        let import = rest.strip_suffix(IMPORT_SUFFIX);
        rest == SUFFIX || import.is_some_and(|rest| rest.is_empty() || number(rest))
    })
}

fn import_path(root: &str, at: usize) -> String {
    if at == 0 {
        format!("{root}{IMPORT_SUFFIX}")
    } else {
        format!("{root}.{at}{IMPORT_SUFFIX}")
    }
}

/// Where the candidates are.
enum Candidates {
    /// Beside the root configuration.
    Files,
    /// In the memory of this process, for a dry run, which writes nothing on the host.
    Memory(Vec<File>),
}

impl Candidates {
    /// Keeps a candidate, and returns the path by which containerd loads it; `path` is the path of a file.
    fn put(&mut self, host: &HostRoot, path: String, text: &str) -> Result<String, Error> {
        match self {
            Self::Files => {
                write_candidate(host, &path, text)?;
                Ok(path)
            }
            Self::Memory(files) => {
                let failed = |error: io::Error| Error::ConfigRefused(Problem::new(error, None));
                let file = memfd_create(c"candidate", MFdFlags::MFD_CLOEXEC);
                let mut file = File::from(file.map_err(|errno| failed(errno.into()))?);
                file.write_all(text.as_bytes()).map_err(failed)?;
                let (pid, descriptor) = (std::process::id(), file.as_raw_fd());
                files.push(file);
                Ok(format!("/proc/{pid}/fd/{descriptor}"))
            }
        }
    }
}

/// Dumps the changed configuration with the host's own containerd, and checks that the dump has the planned changes and no others.
///
/// # Errors
/// [`Error::ConfigRefused`] with containerd's message, or [`Error::Config`] when the dump differs from the plan.
pub(crate) async fn validate(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
) -> Result<(), Error> {
    validate_in(&mut Candidates::Files, host, facts, plan).await
}

/// As [`validate`], and writes nothing on the host. Returns a note for an operator if containerd can't load the candidates from the memory of
/// this process, and so says nothing about them.
///
/// # Errors
/// [`Error::Config`] when the dump differs from the plan.
pub(crate) async fn preview(
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
) -> Result<Option<String>, Error> {
    let mut candidates = Candidates::Memory(Vec::new());
    match validate_in(&mut candidates, host, facts, plan).await {
        Err(Error::ConfigRefused(problem)) => Ok(Some(format!(
            "the changed configuration was not compared with the present one: {problem}"
        ))),
        validated => validated.map(|()| None),
    }
}

async fn validate_in(
    candidates: &mut Candidates,
    host: &HostRoot,
    facts: &HostFacts,
    plan: &HostPlan,
) -> Result<(), Error> {
    let changes: Vec<&ConfigChange> = plan.config.iter().filter(|change| change.live).collect();
    let Some(root) = changes.first().map(|change| &change.root) else {
        return Ok(());
    };
    // In an image, containerd may be unable to run. Without a root file, the dump has containerd's defaults.
    let (Ok(before), Some(program)) = (&facts.dump, &facts.program) else {
        return Ok(());
    };
    let candidate = format!("{root}{SUFFIX}");
    let (mut text, mut imported) = (facts.config_files.root.text.clone(), BTreeMap::new());
    for change in changes {
        // containerd can't load a template, so the same edit of the rendered file is checked.
        let (path, after) = match &change.rendered {
            Some(rendered) => (&rendered.target.path, &rendered.after),
            None => (&change.path, &change.after),
        };
        if path == root {
            text.clone_from(after);
            continue;
        }
        imported.insert(path.as_str(), after.as_deref());
    }
    let mut imports = BTreeMap::new();
    for (at, (path, text)) in to_import(&facts.config_files, imported)?
        .into_iter()
        .enumerate()
    {
        let import = import_path(root, at);
        let import = text.map(|text| candidates.put(host, import, &text));
        imports.insert(path, import.transpose()?);
    }
    // A relative import starts at the directory of the importing file.
    let is_in_place = matches!(candidates, Candidates::Files)
        && imports.is_empty()
        && !imports_itself(host, &facts.config_files.root);
    let text = match text {
        Some(text) if is_in_place => text,
        // Without a root file, containerd imports nothing and uses its defaults.
        None if imports.is_empty() => return Ok(()),
        text => root_that_imports(facts, text.as_deref().unwrap_or_default(), &imports)?,
    };
    let candidate = candidates.put(host, candidate, &text)?;
    let dump = dump_config(host, program, &candidate).await;
    if matches!(candidates, Candidates::Files) {
        let files = candidate_files(&facts.config_files, plan.config.len());
        for path in paths(root, files) {
            host.remove_file(&path)?;
        }
    }
    let dump = dump.map_err(|problem| Error::ConfigRefused(facts.without_secrets(problem)))?;
    containerd_config::compare_dumps(before, &dump, &plan.managed)?;
    containerd_config::contains_handlers(&dump, &plan.declared)?;
    Ok(())
}

/// Checks after a restart that the distribution has rendered the declared handlers into containerd's configuration. Passes if the
/// configuration has no template. With `searches`, the distribution may have declared a runtime that it found in place of a handler.
///
/// # Errors
/// When a handler is missing or has another `runtime_type`, or a file can't be read.
pub(crate) fn check_rendered(
    host: &HostRoot,
    plan: &HostPlan,
    searches: bool,
) -> Result<(), Error> {
    let mut changes = plan.config.iter();
    let Some((change, rendered)) =
        changes.find_map(|change| Some((change, change.rendered.as_ref()?)))
    else {
        return Ok(());
    };
    let config_files = load(host, &change.root)?;
    let mut found = BTreeMap::new();
    for file in config_files.files() {
        if let Some(text) = &file.text {
            found.extend(containerd_config::handlers(text, &rendered.target)?);
        }
    }
    let missing = plan.declared.iter().find(|handler| {
        let found: Option<&DeclaredHandler> = found.get(&handler.name);
        found.is_none_or(|found| {
            let is_taken = searches && program_of(&found.options).is_some();
            found.runtime_type != handler.runtime_type && !is_taken
        })
    });
    match missing {
        Some(handler) => Err(restart::Error::NotVerified(format!(
            "the distribution rendered {} without handler {}",
            rendered.target.path, handler.name
        ))
        .into()),
        None => Ok(()),
    }
}

fn write_candidate(host: &HostRoot, path: &str, text: &str) -> Result<(), Error> {
    host.remove_file(path)?;
    // The configuration may hold registry passwords.
    Ok(host.replace(path, text.as_bytes(), None, 0o600)?)
}

/// The texts of the imported files of which candidates are needed; `None` for a file that is removed. `changed` has the texts of the changed
/// files. Without their own imports, as the root's candidate imports every loaded file in order: containerd would load the original of a changed
/// file after its candidate if a third file imports it.
fn to_import<'a>(
    config_files: &'a ConfigFiles,
    mut changed: BTreeMap<&'a str, Option<&'a str>>,
) -> Result<BTreeMap<&'a str, Option<String>>, containerd_config::Error> {
    for file in importing(config_files) {
        let text = file.text.as_deref();
        changed.entry(&file.path).or_insert(text);
    }
    let without_imports = |(path, text): (&'a str, Option<&'a str>)| {
        let text = text.map(|text| match containerd_config::imports(text)?.as_slice() {
            [] => Ok(text.to_owned()),
            _ => containerd_config::with_imports(path, text, &[]),
        });
        Ok((path, text.transpose()?))
    };
    changed.into_iter().map(without_imports).collect()
}

/// The root `text` with the loaded files as its imports, in their order, because the last file wins in containerd 1.x. Candidates from
/// `changed` replace the changed files, and removed files are left out.
fn root_that_imports(
    facts: &HostFacts,
    text: &str,
    changed: &BTreeMap<&str, Option<String>>,
) -> Result<String, containerd_config::Error> {
    let config_files = &facts.config_files;
    let present = config_files
        .imported
        .iter()
        .filter(|file| file.text.is_some());
    let mut imports: Vec<&str> = present
        .filter_map(|file| match changed.get(file.path.as_str()) {
            Some(candidate) => candidate.as_deref(),
            None => Some(&file.path),
        })
        .collect();
    let made = changed.values().flatten();
    let made: Vec<&str> = made
        .map(String::as_str)
        .filter(|candidate| !imports.contains(candidate))
        .collect();
    imports.extend(made);
    containerd_config::with_imports(&config_files.root.path, text, &imports)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::containerd_config::{ConfigTarget, Handler, PluginId};
    use crate::installer::fixtures;
    use crate::installer::plan::config_source::Rendered;

    const ROOT: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
    const MANAGED: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = '/opt/farrier/bin/containerd-shim-a'\n";
    const OTHER: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = 'io.containerd.a.v1'\n";
    const RUNC: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";

    /// A change of a template that declares handler `a`, or of the file that containerd loads.
    fn plan(is_template: bool) -> HostPlan {
        let target = ConfigTarget {
            path: ROOT.to_owned(),
            plugin: PluginId::CriV1Runtime,
            version: Some(3),
            drop_in: false,
            must_declare_runc: false,
            runc_is_foreign: false,
            declared_in_other_files: std::collections::BTreeSet::new(),
        };
        let rendered = Rendered {
            target,
            after: None,
        };
        HostPlan {
            config: vec![ConfigChange {
                path: format!("{ROOT}.tmpl"),
                before: None,
                after: None,
                root: ROOT.to_owned(),
                rendered: is_template.then_some(rendered),
                live: true,
            }],
            declared: vec![Handler {
                name: "a".to_owned(),
                runtime_type: "/opt/farrier/bin/containerd-shim-a".to_owned(),
                options: BTreeMap::new(),
            }],
            ..HostPlan::default()
        }
    }

    #[rstest]
    #[case::in_the_root(&[("config.toml", &format!("version = 3\n{RUNC}{MANAGED}") as &str)], true)]
    #[case::in_an_import(
        &[("config.toml", "version = 3\nimports = ['conf.d/*.toml']\n"), ("conf.d/a.toml", MANAGED)],
        true
    )]
    #[case::with_another_path(&[("config.toml", &format!("version = 3\n{OTHER}") as &str)], false)]
    #[case::with_a_runtime_that_the_distribution_found(
        &[("config.toml", &format!("version = 3\n{OTHER}options.BinaryName = '/usr/bin/a'\n") as &str)],
        true
    )]
    #[case::without_the_handler(&[("config.toml", &format!("version = 3\n{RUNC}") as &str)], false)]
    #[case::no_file(&[], false)]
    fn a_rendered_configuration_without_the_managed_handlers_is_refused(
        #[case] files: &[(&str, &str)],
        #[case] expected: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = format!(
                "{}/{name}",
                crate::installer::host::path::parent_directory(ROOT)
            );
            let path = directory.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = HostRoot::open(directory.path()).unwrap();
        let found = check_rendered(&host, &plan(true), true);
        assert_eq!(found.is_ok(), expected, "{found:?}");
        if let Err(error) = found {
            assert!(error.to_string().contains("without handler a"), "{error}");
        }
        // Without a template, the candidate was checked before the restart, and the CRI is asked after it.
        assert!(check_rendered(&host, &plan(false), true).is_ok());
    }

    #[test]
    fn a_file_that_another_import_imports_is_loaded_once() {
        let file = |path: &str, text: &str| SourceFile {
            path: path.to_owned(),
            text: Some(text.to_owned()),
        };
        let mut facts = fixtures::host().build();
        facts.config_files = ConfigFiles {
            root: file("/etc/c/config.toml", "imports = ['x']\n"),
            imported: vec![
                file("/etc/c/x", "imports = ['y.d/*']\n# x\n"),
                file("/etc/c/y.d/y", RUNC),
                file("/etc/c/y.d/z", "# z\n"),
            ],
        };
        let files = &facts.config_files;
        let candidates = |changed| to_import(files, changed).unwrap();
        // The root alone changes: an imported file may import the original of the root.
        let x = ("/etc/c/x", Some("imports = []\n# x\n".to_owned()));
        assert_eq!(candidates(BTreeMap::new()), BTreeMap::from([x.clone()]));
        let changed = BTreeMap::from([("/etc/c/y.d/y", Some(MANAGED))]);
        let expected = [x, ("/etc/c/y.d/y", Some(MANAGED.to_owned()))];
        assert_eq!(candidates(changed), BTreeMap::from(expected));
        assert_eq!(candidate_files(files, 1), 2);
        // A changed file loses its own imports, which start at another directory than those of its candidate.
        let changed = BTreeMap::from([("/etc/c/x", Some("imports = ['y.d/*']\n# new\n"))]);
        let expected = ("/etc/c/x", Some("imports = []\n# new\n".to_owned()));
        assert_eq!(candidates(changed), BTreeMap::from([expected]));
        let made = [("/etc/c/x", "/1"), ("/etc/c/y.d/y", "/2")];
        let made = made.map(|(path, candidate)| (path, Some(candidate.to_owned())));
        let text = root_that_imports(&facts, "", &BTreeMap::from(made)).unwrap();
        assert_eq!(text, "imports = [\"/1\", \"/2\", \"/etc/c/y.d/z\"]\n");
    }
}
