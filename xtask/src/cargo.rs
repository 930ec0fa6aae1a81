//! Where the checkout is, and how cargo and what it builds are called. Knows nothing of clusters.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Root of the checkout that this program was built from.
#[must_use]
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's directory of build results in the checkout, wherever the environment would like it to be.
#[must_use]
pub fn target() -> PathBuf {
    workspace().join("target")
}

/// `cargo`, the one that runs this program, in the root of the checkout.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(workspace());
    command.env("CARGO_TARGET_DIR", target());
    command
}
