//! The demo's runtime and its program: a containerd shim on wasmi, and a Wasm module by Go. Built once per state of their sources.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::artifacts::SHIM_BINARY;
use crate::cache::Cache;
use crate::cargo;
use crate::digest::sha256;
use crate::process;
use crate::progress::Progress;
use crate::tools::go_build;

/// The shim's binary.
///
/// # Errors
/// When cargo fails: the shim needs a C compiler, pkg-config, protoc and the headers of libseccomp and D-Bus.
pub fn shim(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let package = cargo::workspace().join("demo/containerd-shim-wasmi");
    let key = key(&package, &["Cargo.toml", "Cargo.lock", "src/main.rs"])?;
    let directory = cache.publish(&format!("demo/shim-{key}"), |directory| {
        progress.step(
            "building the demo's shim, a containerd shim on wasmi",
            || {
                process::run(
                    cargo::command(&["build", "--release", "--locked"])
                        .current_dir(&package)
                        .env("CARGO_TARGET_DIR", package.join("target")),
                )?;
                let built = package.join("target/release").join(SHIM_BINARY);
                copy(&built, &directory.join(SHIM_BINARY))
            },
        )
    })?;
    Ok(directory.join(SHIM_BINARY))
}

/// The module that a pod of the demo runs.
///
/// # Errors
/// When Go fails.
pub fn hello(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let module = cargo::workspace().join("demo/hello");
    let key = key(&module, &["go.mod", "main.go"])?;
    let directory = cache.publish(&format!("demo/hello-{key}"), |directory| {
        progress.step("building the demo's Wasm module", || {
            process::run(
                go_build()
                    .args(["-ldflags", "-s -w", "-o"])
                    .arg(directory.join("hello.wasm"))
                    .current_dir(&module)
                    .envs([("GOOS", "wasip1"), ("GOARCH", "wasm")]),
            )?;
            Ok(())
        })
    })?;
    Ok(directory.join("hello.wasm"))
}

/// Digits enough to tell two states of the sources apart.
fn key(directory: &Path, files: &[&str]) -> Result<String> {
    let mut digests = String::new();
    for name in files {
        let path = directory.join(name);
        let content =
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        digests += &sha256(&content);
    }
    let mut key = sha256(digests.as_bytes());
    key.truncate(16);
    Ok(key)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_has_another_cache_key() {
        let directory = tempfile::tempdir().unwrap();
        let key = |a: &str, b: &str| {
            fs::write(directory.path().join("a"), a).unwrap();
            fs::write(directory.path().join("b"), b).unwrap();
            key(directory.path(), &["a", "b"]).unwrap()
        };
        assert_eq!(key("1", "23"), key("1", "23"));
        assert_ne!(key("1", "23"), key("12", "3"));
    }
}
