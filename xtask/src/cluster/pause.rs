//! The image of a pod's sandbox, which every node has before its first pod.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::archive::{self, ImageConfig, ImageFile};
use crate::cache::Cache;
use crate::process;

/// Name of the image, as the nodes' containerd is told.
const NAME: &str = "localhost/pause:1";

/// The image, as a docker-archive.
///
/// # Errors
/// When the program can't be compiled or the image not be written.
pub fn image(cache: &Cache) -> Result<PathBuf> {
    let directory = cache.publish("images/pause-1", |directory| {
        let program = directory.join("pause");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        process::run(
            Command::new("rustc")
                .current_dir(manifest)
                .args(["--edition=2024", "-Ctarget-feature=+crt-static"])
                .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-o"])
                .args([&program, &manifest.join("node/pause.rs")]),
        )?;
        let content = fs::read(&program).context("rustc made no program")?;
        let config = ImageConfig {
            entrypoint: vec!["/pause".to_owned()],
            user: Some("65535:65535".to_owned()),
            environment: Vec::new(),
        };
        let file = ImageFile {
            path: "pause".to_owned(),
            mode: 0o755,
            content,
        };
        archive::write(&directory.join("pause.tar"), NAME, &config, &[file])
    })?;
    Ok(directory.join("pause.tar"))
}
