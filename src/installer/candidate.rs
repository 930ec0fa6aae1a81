//! Has the host's own containerd judge a changed configuration before it goes live. Writes beside the root configuration, and clears
//! that up again.

use super::Error;
use super::facts::{Facts, judge_dump};
use super::host::HostRoot;
use super::plan::{ConfigChange, HostPlan};
use crate::containerd_config;

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
    // Offline a containerd that can't run gives no judgement; without a file there is nothing to judge.
    let (Ok(before), Some(program), Some(after)) = (&facts.dump, &facts.program, &change.after)
    else {
        return Ok(());
    };
    let candidate = format!("{}{SUFFIX}", change.root);
    let import = format!("{}{IMPORT_SUFFIX}", change.root);
    let text = if change.path == change.root {
        after.clone()
    } else {
        place_candidate(host, &import, after)?;
        wrapper(change, &import)
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

fn place_candidate(host: &HostRoot, path: &str, text: &str) -> Result<(), Error> {
    host.remove_file(path)?;
    // As secret as the configuration may be.
    Ok(host.replace(path, text.as_bytes(), None, 0o600)?)
}

/// A root that imports the present one and the candidate after it: what the host will load, without touching what it loads now.
fn wrapper(change: &ConfigChange, import: &str) -> String {
    let version = change
        .version
        .map(|version| format!("version = {version}\n"));
    let root = toml_string(&change.root);
    let import = toml_string(import);
    format!(
        "{}imports = [{root}, {import}]\n",
        version.unwrap_or_default()
    )
}

fn toml_string(path: &str) -> String {
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}
