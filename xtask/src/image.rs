//! Farrier's own binary and image, and the images of the demo: built without a container engine and without a registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::archive::{self, ImageConfig, ImageFile};
use crate::cache::Cache;
use crate::cargo;
use crate::process;
use crate::progress::Progress;
use crate::shim;

/// Name of Farrier's image on the nodes: the one that the chart installs without any values.
pub const FARRIER: &str = concat!("localhost/farrier:", env!("CARGO_PKG_VERSION"));
/// Name of the image of the demo's Wasm module.
pub const HELLO: &str = "localhost/hello:1";

/// Rust's target for a static binary: with glibc, so that rustup needs no second standard library.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What Farrier promises of its image: nodes pull it before they can run anything.
const SIZE_LIMIT: u64 = 20 * 1000 * 1000;

/// Where programs are looked for in an image: containerd's own default and the root, so that `kubectl exec … -- farrier status` works.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/";

/// The user of Farrier's image, which distroless images made customary; Jobs that change a host say otherwise.
const USER: &str = "65532:65532";

/// All that goes into a cluster, built.
#[derive(Debug)]
pub struct Parts {
    /// Farrier's static binary.
    pub binary: PathBuf,
    /// Docker-archive of [`FARRIER`].
    pub farrier_image: PathBuf,
    /// Docker-archive of [`HELLO`].
    pub hello_image: PathBuf,
    /// The binary of the demo's shim.
    pub shim: PathBuf,
}

impl Parts {
    /// Builds what isn't built yet.
    ///
    /// # Errors
    /// When a build fails or its result is not what it should be.
    pub fn build(cache: &Cache, progress: &Progress) -> Result<Self> {
        let (binary, farrier_image) = farrier(progress)?;
        let hello = shim::hello(cache, progress)?;
        Ok(Self {
            binary,
            farrier_image,
            hello_image: image(HELLO, None, "hello.wasm", &hello)?,
            shim: shim::shim(cache, progress)?,
        })
    }
}

/// `cargo xtask image`: builds both and says where they are.
///
/// # Errors
/// As [`farrier`].
pub fn show(progress: &Progress) -> Result<()> {
    let (binary, image) = farrier(progress)?;
    progress.line(&format!("{}\n{}", binary.display(), image.display()));
    Ok(())
}

/// Farrier's binary and the docker-archive of its image.
///
/// # Errors
/// When cargo fails, or the binary isn't static, or the image is too large.
pub fn farrier(progress: &Progress) -> Result<(PathBuf, PathBuf)> {
    progress.step("building farrier and its image", || {
        process::run(
            cargo::command(&["build", "--release", "--locked", "--bin", "farrier"])
                .args(["--target", TARGET])
                .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        )?;
        let binary = cargo::target().join(TARGET).join("release/farrier");
        let bytes =
            fs::read(&binary).with_context(|| format!("failed to read {}", binary.display()))?;
        ensure!(
            is_static(&bytes),
            "{} needs a dynamic linker",
            binary.display()
        );
        let image = image(FARRIER, Some(USER), "farrier", &binary)?;
        let size = fs::metadata(&image)?.len();
        ensure!(
            size < SIZE_LIMIT,
            "Farrier's image has {size} bytes, more than {SIZE_LIMIT}"
        );
        Ok((binary, image))
    })
}

/// Writes an image that holds one file, its entry point, under `target/images`.
fn image(name: &str, user: Option<&str>, path: &str, file: &Path) -> Result<PathBuf> {
    let directory = cargo::target().join("images");
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let config = ImageConfig {
        entrypoint: vec![format!("/{path}")],
        user: user.map(str::to_owned),
        environment: vec![format!("PATH={PATH}")],
    };
    let content = ImageFile {
        path: path.to_owned(),
        mode: 0o755,
        content: fs::read(file).with_context(|| format!("failed to read {}", file.display()))?,
    };
    let out = directory.join(format!("{path}.tar"));
    // Another run may be reading the last one.
    let partial = directory.join(format!("{path}.{}.partial", std::process::id()));
    archive::write(&partial, name, &config, &[content])?;
    fs::rename(&partial, &out).with_context(|| format!("failed to write {}", out.display()))?;
    Ok(out)
}

/// Whether `elf`, a 64-bit little-endian ELF file, runs without a dynamic linker: it has no segment `PT_INTERP`.
///
/// Offsets are those of `Elf64_Ehdr` and `Elf64_Phdr` in elf(5). What is no such file is not static either.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(offset..offset.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let segments = || -> Option<Vec<u64>> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(usize::try_from(table + index * size).ok()?, 4))
            .collect()
    };
    elf.starts_with(b"\x7fELF\x02\x01")
        && segments().is_some_and(|types| !types.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_the_one_that_the_chart_installs_without_values() {
        let manifests = fs::read_to_string(cargo::workspace().join("manifests/farrier.yaml"));
        assert!(
            manifests
                .unwrap()
                .contains(&format!("image: \"{FARRIER}\""))
        );
    }

    #[test]
    fn both_image_builds_have_farrier_in_the_path() {
        let dockerfile = fs::read_to_string(cargo::workspace().join("images/farrier/Dockerfile"));
        assert!(dockerfile.unwrap().contains(&format!("ENV PATH={PATH}\n")));
        assert!(PATH.split(':').any(|directory| directory == "/"));
    }

    #[test]
    fn a_program_that_names_a_dynamic_linker_is_not_static() {
        // Rust's test binaries on this target are linked dynamically.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own));
        assert!(!is_static(b"\x7fELF\x02\x01"));
        assert!(!is_static(b"#!/bin/sh\n"));
    }

    #[test]
    fn a_program_without_a_dynamic_linker_is_static() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56]) = (64, 56, 1);
        elf[64] = 1;
        assert!(is_static(&elf));
        elf[64] = 3;
        assert!(!is_static(&elf));
    }
}
