//! Chooses the file and the table that handlers go to, or says why none is safe.
//!
//! The choice follows the file's version, the tables that already stand in the loaded files, and the daemon's release; the release
//! alone would lose handlers. `version` is never changed, and never are two plugin ids written.

use std::collections::BTreeSet;

use super::document::{Document, MARK};
use super::{Error, Loaded, Placement, PluginId, Version, imports};

/// Where handlers go in the configuration `loaded` of a containerd of release `version`.
///
/// # Errors
/// When a file can't be parsed, the CRI is disabled, an import is absent, versions are mixed, or the daemon would not see a
/// handler in this file whatever its table.
pub fn place(loaded: &Loaded, version: &Version) -> Result<Placement, Error> {
    let version = *version;
    let root = loaded.root.text.as_deref().unwrap_or_default();
    let root = File::read(&loaded.root.path, root, version)?;
    let own = own_file(&root, version)?;
    let imported = loaded
        .imported
        .iter()
        .filter(|file| file.text.is_some() || own.as_deref() != Some(&file.path))
        .map(|file| match &file.text {
            Some(text) => File::read(&file.path, text, version),
            None => Err(Error::ImportAbsent {
                path: file.path.clone(),
            }),
        })
        .collect::<Result<Vec<_>, Error>>()?;
    check_versions(&root, &imported, version)?;

    let (plugin, schema) = if loaded.root.text.is_some() {
        plugin(&root, &imported, version)?
    } else if version.replaces_sections() {
        (PluginId::GrpcV1Cri, Some(2))
    } else {
        (PluginId::CriV1Runtime, Some(3))
    };
    // On 1.x the last file that names the plugin replaces what all files before it say about it.
    let decisive = imported
        .iter()
        .rev()
        .find(|file| version.replaces_sections() && file.document.has(plugin));
    let (path, edited, schema) = match (decisive, own) {
        (Some(file), _) => (file.path.to_owned(), Some(file), None),
        (None, Some(own)) => {
            let file = imported.iter().find(|file| file.path == own);
            (own, file, root.version)
        }
        (None, None) => (root.path.to_owned(), Some(&root), schema),
    };
    let mut elsewhere = BTreeSet::new();
    if !version.replaces_sections() {
        for file in std::iter::once(&root).chain(&imported) {
            for id in PluginId::ALL {
                if file.path != path {
                    elsewhere.extend(file.document.handlers(id)?.into_keys());
                }
            }
        }
    }
    let declared = edited.map_or_else(
        || Ok(Default::default()),
        |file| file.document.handlers(plugin),
    )?;
    Ok(Placement {
        drop_in: decisive.is_none() && path != root.path,
        spell_out_runc: version.replaces_sections()
            && declared.values().all(|handler| handler.marked),
        path,
        plugin,
        version: schema,
        elsewhere,
    })
}

struct File<'a> {
    path: &'a str,
    document: Document<'a>,
    version: Option<i64>,
}

impl<'a> File<'a> {
    fn read(path: &'a str, text: &'a str, release: Version) -> Result<Self, Error> {
        let document = Document::parse(path, text)?;
        if document.byte_order_mark && !release.replaces_sections() {
            return Err(Error::ByteOrderMark {
                path: path.to_owned(),
            });
        }
        let version = document.version()?;
        if let Some(found) = version.filter(|found| !(1..=release.schema()).contains(found)) {
            return Err(Error::Schema {
                path: path.to_owned(),
                found,
                containerd: release,
            });
        }
        let disabled = document.strings("disabled_plugins")?;
        if PluginId::ALL
            .iter()
            .any(|plugin| disabled.iter().any(|name| name == plugin.key()))
        {
            return Err(Error::Disabled {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            path,
            document,
            version,
        })
    }

    fn has_runtimes(&self, plugin: PluginId) -> Result<bool, Error> {
        Ok(!self.document.handlers(plugin)?.is_empty())
    }
}

/// Farrier's own drop-in: where the daemon merges tables, the root imports a folder, and nothing of ours stands in the root yet.
fn own_file(root: &File<'_>, version: Version) -> Result<Option<String>, Error> {
    let ours = root
        .document
        .text
        .lines()
        .any(|line| line.trim().starts_with(MARK));
    if version.replaces_sections() || root.version.is_none() || ours {
        return Ok(None);
    }
    let patterns = root.document.strings("imports")?;
    Ok(imports::own_file(root.path, &patterns))
}

/// Up to 2.2 the version of the file loaded last rules all of them: settings of the others are lost without an error.
fn check_versions(root: &File<'_>, imported: &[File<'_>], version: Version) -> Result<(), Error> {
    let rules = root.version.unwrap_or(1);
    for file in imported {
        if let Some(found) = file.version.filter(|&found| found != rules)
            && (!version.migrates_each_file() || root.version.is_none())
        {
            return Err(Error::Mixed {
                path: file.path.to_owned(),
                found,
                root: rules,
                containerd: version,
            });
        }
    }
    Ok(())
}

/// The plugin id by version of the root and by release, and the version that a root without one may be given.
fn plugin(
    root: &File<'_>,
    imported: &[File<'_>],
    version: Version,
) -> Result<(PluginId, Option<i64>), Error> {
    let any = |plugin| -> Result<bool, Error> {
        for file in std::iter::once(root).chain(imported) {
            if file.has_runtimes(plugin)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let grpc = any(PluginId::GrpcV1Cri)?;
    let runtime = any(PluginId::CriV1Runtime)?;
    Ok(match root.version {
        // As soon as the newer id holds any runtimes, containerd 2 drops those of the older id as a whole.
        Some(2) if runtime && !version.replaces_sections() => (PluginId::CriV1Runtime, None),
        Some(2) => (PluginId::GrpcV1Cri, None),
        // From 2.3 on a version 3 file is migrated once more, and the rule above holds for it, too.
        Some(3) if grpc && !runtime && version.migrates_each_file() => (PluginId::GrpcV1Cri, None),
        Some(3 | 4) => (PluginId::CriV1Runtime, None),
        _ => first_schema(root, imported, version)?,
    })
}

/// A root without `version`, or with 1: it gets one where that changes nothing else, and is left at 1 where the daemon reads that.
fn first_schema(
    root: &File<'_>,
    imported: &[File<'_>],
    version: Version,
) -> Result<(PluginId, Option<i64>), Error> {
    let mut depends = root.version.is_some();
    for file in std::iter::once(root).chain(imported) {
        depends |= file.document.depends_on_version()?;
    }
    if !depends {
        return Ok((PluginId::GrpcV1Cri, Some(2)));
    }
    let has = |plugin| {
        std::iter::once(root)
            .chain(imported)
            .any(|file| file.document.has(plugin))
    };
    if !version.replaces_sections() {
        // 2.0 to 2.2 take the file for version 3 without bringing its ids there; 2.3 brings all ids there.
        if has(PluginId::CriV1Runtime) {
            return Ok((PluginId::CriV1Runtime, None));
        }
        if !version.migrates_each_file() {
            return Err(Error::Dead {
                path: root.path.to_owned(),
                containerd: version,
            });
        }
        if has(PluginId::GrpcV1Cri) {
            return Ok((PluginId::GrpcV1Cri, None));
        }
    }
    Ok((PluginId::Cri, None))
}
