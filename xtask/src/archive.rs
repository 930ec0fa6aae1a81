//! Images without a registry: writes a docker-archive of one layer. The same input gives the same bytes.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::digest::sha256;

/// What an image runs, as in the image configuration of the OCI image specification 1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The user, as `UID` or `UID:GID`; root where there is none.
    pub user: Option<String>,
    /// Variables, as `NAME=VALUE`.
    pub environment: Vec<String>,
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Path without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// Writes the image `name` (as `localhost/NAME:TAG`) to the file `out`.
///
/// # Errors
/// When the file can't be written.
pub fn write(out: &Path, name: &str, config: &ImageConfig, files: &[ImageFile]) -> Result<()> {
    let archive = bytes(name, config, files)?;
    File::create(out)
        .and_then(|mut file| file.write_all(&archive))
        .with_context(|| format!("failed to write {}", out.display()))
}

fn bytes(name: &str, config: &ImageConfig, files: &[ImageFile]) -> Result<Vec<u8>> {
    let layer = tar(files)?;
    let layer_digest = sha256(&layer);
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint,
            "User": config.user.as_deref().unwrap_or_default(),
            "Env": config.environment,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    }))?;
    let config_name = format!("{}.json", sha256(&config));
    let layer_name = format!("{layer_digest}/layer.tar");
    let manifest = serde_json::to_vec(&json!([
        {"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}
    ]))?;
    let file = |path: &str, content: Vec<u8>| ImageFile {
        path: path.to_owned(),
        mode: 0o644,
        content,
    };
    tar(&[
        file(&config_name, config),
        file(&layer_name, layer),
        file("manifest.json", manifest),
    ])
}

/// A tar stream without anything of this machine in it: no times, no owners.
fn tar(files: &[ImageFile]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        header.set_size(file.content.len().try_into()?);
        builder
            .append_data(&mut header, &file.path, file.content.as_slice())
            .with_context(|| format!("failed to pack {}", file.path))?;
    }
    Ok(builder.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Result<Vec<u8>> {
        let config = ImageConfig {
            entrypoint: vec!["/pause".to_owned()],
            user: Some("65532:65532".to_owned()),
            environment: vec!["PATH=/".to_owned()],
        };
        let file = ImageFile {
            path: "pause".to_owned(),
            mode: 0o755,
            content: b"program".to_vec(),
        };
        bytes("localhost/pause:1", &config, &[file])
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(image().unwrap(), image().unwrap());
    }

    #[test]
    fn the_image_configuration_names_its_layer_by_digest() {
        let bytes = image().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut contents = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            contents.push((path, content));
        }
        let [(config_path, config), (layer_path, layer), (last, manifest)] = contents.as_slice()
        else {
            panic!("three files, not {}", contents.len());
        };
        assert_eq!(last, "manifest.json");
        let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        assert_eq!(manifest[0]["Config"], *config_path);
        assert_eq!(manifest[0]["Layers"][0], *layer_path);
        let config: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", sha256(layer))
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["Env"][0], "PATH=/");
    }
}
