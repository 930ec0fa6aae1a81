//! Has the host's own containerd judge a changed configuration before it goes live. Writes beside the root configuration, and clears
//! that up again.

use std::collections::BTreeMap;

use super::Error;
use super::facts::{Facts, judge_dump};
use super::host::HostRoot;
use super::loaded::load;
use super::plan::{ConfigChange, HostPlan};
use super::restart;
use crate::containerd_config::{self, DeclaredHandler};

/// A candidate stands beside the root configuration, so that relative imports mean the same; no `*.toml` glob matches it.
pub(super) const SUFFIX: &str = ".farrier-candidate";
/// What a candidate imports that is not the root itself.
pub(super) const IMPORT_SUFFIX: &str = ".farrier-import";

/// Asks the host's own containerd what it makes of the configuration before it goes live.
///
/// # Errors
/// [`Error::Candidate`] in containerd's words, or [`Error::Config`] where more would change than should.
pub(super) async fn judge(
    host: &HostRoot,
    facts: &Facts,
    plan: &HostPlan,
    change: &ConfigChange,
) -> Result<(), Error> {
    // Offline a containerd that can't run gives no judgement; without a root file its defaults count, which it has printed.
    let (Ok(before), Some(program)) = (&facts.dump, &facts.program) else {
        return Ok(());
    };
    let candidate = format!("{}{SUFFIX}", change.root);
    let import = format!("{}{IMPORT_SUFFIX}", change.root);
    // Where the file is a template, the same edit of what was rendered from it is judged.
    let (path, after) = match &change.rendered {
        Some(rendered) => (&rendered.placement.path, &rendered.after),
        None => (&change.path, &change.after),
    };
    let text = match after {
        Some(after) if *path == change.root => after.clone(),
        None if *path == change.root => return Ok(()),
        after => {
            if let Some(after) = after {
                place_candidate(host, &import, after)?;
            }
            let import = after.is_some().then_some(import.as_str());
            root_that_imports(facts, path, import)?
        }
    };
    place_candidate(host, &candidate, &text)?;
    let dump = judge_dump(host, program, &candidate).await;
    host.remove_file(&candidate)?;
    host.remove_file(&import)?;
    let dump = dump.map_err(Error::Candidate)?;
    containerd_config::judge(before, &dump, &plan.ours)?;
    containerd_config::holds(&dump, &plan.declared)?;
    Ok(())
}

/// Checks that a distribution has rendered our handlers into what containerd loads since its start, where it renders that.
///
/// # Errors
/// When a handler is missing or another, or a file can't be read.
pub(super) fn is_rendered(host: &HostRoot, plan: &HostPlan) -> Result<(), Error> {
    let change = plan.config.as_ref();
    let Some((change, rendered)) =
        change.and_then(|change| Some((change, change.rendered.as_ref()?)))
    else {
        return Ok(());
    };
    let loaded = load(host, &change.root)?;
    let mut found = BTreeMap::new();
    for file in std::iter::once(&loaded.root).chain(&loaded.imported) {
        if let Some(text) = &file.text {
            found.extend(containerd_config::handlers(text, &rendered.placement)?);
        }
    }
    let missing = plan.declared.iter().find(|handler| {
        let found: Option<&DeclaredHandler> = found.get(&handler.name);
        found.is_none_or(|found| found.runtime_type != handler.runtime_type)
    });
    match missing {
        Some(handler) => Err(restart::Error::Unproven(format!(
            "{} was rendered without handler {}",
            rendered.placement.path, handler.name
        ))
        .into()),
        None => Ok(()),
    }
}

fn place_candidate(host: &HostRoot, path: &str, text: &str) -> Result<(), Error> {
    host.remove_file(path)?;
    // As secret as the configuration may be.
    Ok(host.replace(path, text.as_bytes(), None, 0o600)?)
}

/// The root with the loaded files for its imports, but `import` in place of the one that changes: containerd 1.x goes by the file that
/// it loads last.
fn root_that_imports(
    facts: &Facts,
    path: &str,
    import: Option<&str>,
) -> Result<String, containerd_config::Error> {
    let loaded = &facts.loaded;
    let present = loaded.imported.iter().filter(|file| file.text.is_some());
    let mut imports: Vec<&str> = present
        .filter_map(|file| {
            if file.path == path {
                import
            } else {
                Some(&file.path)
            }
        })
        .collect();
    imports.extend(import.filter(|import| !imports.contains(import)));
    let text = loaded.root.text.as_deref().unwrap_or_default();
    containerd_config::with_imports(&loaded.root.path, text, &imports)
}
