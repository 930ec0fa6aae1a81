//! Chooses the file and the table for handlers, or says why none is safe.
//!
//! The choice depends on the version of the files, the tables in them, and containerd's release. `version` is never changed, and handlers are
//! never written under two plugin ids.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Document;
use super::error::Error;
use super::imports;
use super::legacy::legacy_handlers;
use super::render::MARK;
use super::schema::{PluginId, Version};
use super::types::{ConfigFiles, ConfigTarget, RUNC};

/// The file and the table for handlers in the configuration `files` of a containerd of release `version`.
///
/// ```
/// use farrier::containerd_config::{ConfigFiles, PluginId, SourceFile, config_target};
///
/// let root = |text: &str| ConfigFiles {
///     root: SourceFile {
///         path: "/etc/containerd/config.toml".to_owned(),
///         text: Some(text.to_owned()),
///     },
///     imported: Vec::new(),
/// };
/// let target = config_target(&root("version = 2"), &"1.7.35".parse()?)?;
/// assert_eq!(target.path, "/etc/containerd/config.toml");
/// assert_eq!(target.plugin, PluginId::GrpcV1Cri);
///
/// // containerd 2 merges imported files, so handlers get a file of their own.
/// let text = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']";
/// let target = config_target(&root(text), &"2.1.9".parse()?)?;
/// assert_eq!(target.path, "/etc/containerd/conf.d/farrier.toml");
/// assert!(target.drop_in);
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When a file can't be parsed, the CRI is disabled, an import is absent, versions are mixed, or containerd ignores the runtimes of the file
/// in every table.
pub fn config_target(files: &ConfigFiles, version: &Version) -> Result<ConfigTarget, Error> {
    let version = *version;
    let root = files.root.text.as_deref().unwrap_or_default();
    let root = File::read(&files.root.path, root, version)?;
    let own = own_file(&root, version)?;
    // Legacy handlers in the root are taken over in the root, because one edit changes one file.
    let has_legacy = files.root.text.as_deref().is_some_and(|text| {
        legacy_handlers(root.path, text).is_ok_and(|legacy| !legacy.is_empty())
    });
    let present = |own: &String| {
        let mut imported = files.imported.iter();
        imported.any(|file| file.path == *own && file.text.is_some())
    };
    let own = own.filter(|own| !has_legacy || present(own));
    let imported = files
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
    let version_file = version_file(&root, &imported, own.as_deref(), version)?;
    // Beside files of several versions, another file could change whose version counts.
    let own = own.filter(|_| version_file.path == root.path);

    let (plugin, schema) = if files.root.text.is_some() {
        plugin(&root, &imported, version_file.version, version)?
    } else if version.replaces_sections() {
        (PluginId::GrpcV1Cri, Some(2))
    } else {
        (PluginId::CriV1Runtime, Some(3))
    };
    // On 1.x the plugin's table in the last file that has it replaces the tables of all files before.
    let decisive = imported
        .iter()
        .rev()
        .find(|file| version.replaces_sections() && file.document.has(plugin));
    let (path, edited, schema, drop_in) = match (decisive, own) {
        (Some(file), _) => (file.path.to_owned(), Some(file), file.version, false),
        (None, Some(own)) => {
            let file = imported.iter().find(|file| file.path == own);
            (own, file, root.version, true)
        }
        (None, None) => {
            let schema = version_file.version.or(schema);
            (
                version_file.path.to_owned(),
                Some(version_file),
                schema,
                false,
            )
        }
    };
    let mut declared_in_other_files = BTreeSet::new();
    if !version.replaces_sections() {
        for file in std::iter::once(&root).chain(&imported) {
            for id in PluginId::ALL {
                if file.path != path {
                    declared_in_other_files.extend(file.document.handlers(id)?.into_keys());
                }
            }
        }
    }
    let declared = edited.map_or_else(
        || Ok(BTreeMap::new()),
        |file| file.document.handlers(plugin),
    )?;
    Ok(ConfigTarget {
        drop_in,
        // Managed handlers in an inline table have no comment, but a `runc` that Farrier declared has one.
        must_declare_runc: version.replaces_sections()
            && (declared.values().all(|handler| handler.marked)
                || declared.get(RUNC).is_some_and(|runc| runc.marked)),
        runc_is_foreign: false,
        path,
        plugin,
        version: schema,
        declared_in_other_files,
    })
}

/// As [`config_target`], where the release is unknown: for the oldest release that reads the files. containerd 2.x reads all files that 1.7
/// reads, except files with runtimes of the newer plugin id, which 1.x ignores: these were written for 2.x.
///
/// ```
/// use farrier::containerd_config::{ConfigFiles, PluginId, SourceFile, config_target_of_any_release};
///
/// let text = "version = 2\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n";
/// let files = ConfigFiles {
///     root: SourceFile {
///         path: "/etc/containerd/config.toml".to_owned(),
///         text: Some(text.to_owned()),
///     },
///     imported: Vec::new(),
/// };
/// let target = config_target_of_any_release(&files)?;
/// assert_eq!(target.plugin, PluginId::CriV1Runtime);
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// As of [`config_target`], for the newest release.
pub fn config_target_of_any_release(files: &ConfigFiles) -> Result<ConfigTarget, Error> {
    let mut has_newer_runtimes = false;
    for file in files.files() {
        let text = file.text.as_deref().unwrap_or_default();
        let runtimes = PluginId::CriV1Runtime.runtimes();
        has_newer_runtimes |= Document::parse(&file.path, text)?.item(&runtimes).is_some();
    }
    let release = |major, minor| Version {
        major,
        minor,
        patch: 0,
    };
    let newer = match config_target(files, &release(2, 0)) {
        // Only the releases of the newest schema load such a file. They also read files that earlier releases ignore.
        Err(Error::Schema { .. }) => config_target(files, &release(2, 3)),
        newer => newer,
    };
    if has_newer_runtimes {
        newer
    } else {
        config_target(files, &release(1, 7)).or(newer)
    }
}

/// Settings that version 2 has beside `runtimes`, and version 3 in the plugin for images.
const IMAGE_SETTINGS: [&str; 3] = [
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
];

/// The CRI's plugin for images, from 2.0 on.
const IMAGES: &str = "io.containerd.cri.v1.images";

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
        if release.replaces_sections() {
            document.check_version_letter_case()?;
        }
        let version = document.version()?;
        let disabled = document.strings("disabled_plugins")?;
        // 1.x has no plugins of these names.
        let newer = [PluginId::CriV1Runtime.key(), IMAGES];
        let cri = |name: &String| {
            let newer = !release.replaces_sections() && newer.contains(&name.as_str());
            let older = [PluginId::Cri, PluginId::GrpcV1Cri];
            newer || older.iter().any(|plugin| name == plugin.key())
        };
        if disabled.iter().any(cri) {
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

    /// Refuses a version that the release does not load.
    fn check_schema(&self, release: Version) -> Result<(), Error> {
        match self.version {
            Some(found) if !(1..=release.schema()).contains(&found) => Err(Error::Schema {
                path: self.path.to_owned(),
                found,
                containerd: release,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether others declare handlers in the plugin's table, or an empty table for them.
    fn has_runtimes(&self, plugin: PluginId) -> Result<bool, Error> {
        let handlers = self.document.handlers(plugin)?;
        let empty = handlers.is_empty() && self.document.item(&plugin.runtimes()).is_some();
        Ok(empty || handlers.values().any(|handler| !handler.marked))
    }

    /// Whether the file has settings for images where version 2 has them.
    fn has_image_settings(&self) -> bool {
        let [plugins, key, containerd, _] = PluginId::GrpcV1Cri.runtimes();
        IMAGE_SETTINGS.iter().any(|setting| {
            self.document
                .item(&[plugins, key, containerd, setting])
                .is_some()
        })
    }
}

/// The path of Farrier's own file, where containerd merges tables, the root imports a directory, and the root has no managed handlers.
fn own_file(root: &File<'_>, version: Version) -> Result<Option<String>, Error> {
    let managed = root
        .document
        .text
        .lines()
        .any(|line| line.trim().starts_with(MARK));
    if version.replaces_sections() || root.version.is_none() || managed {
        return Ok(None);
    }
    let patterns = root.document.strings("imports")?;
    Ok(imports::own_file(root.path, &patterns))
}

/// The file whose version counts for all files: from 2.3 on the root, before 2.3 the last file that has a version.
///
/// Farrier's own file is not compared, because it gets the root's version with the next edit.
fn version_file<'a, 'b>(
    root: &'a File<'b>,
    imported: &'a [File<'b>],
    own: Option<&str>,
    release: Version,
) -> Result<&'a File<'b>, Error> {
    let others = || imported.iter().filter(|file| own != Some(file.path));
    let versions = root.version.unwrap_or(1);
    if release.migrates_each_file() && root.version.is_some() {
        for file in std::iter::once(root).chain(others()) {
            file.check_schema(release)?;
        }
        return Ok(root);
    }
    let differs = |file: &&File<'_>| file.version.is_some_and(|found| found != versions);
    let Some(other) = others().find(differs) else {
        root.check_schema(release)?;
        return Ok(root);
    };
    let last = others().rfind(|file| file.version.is_some());
    // A root that only imports files means the same in every version.
    let neutral = root.version.is_none() && !root.document.depends_on_version()?;
    let managed = imported.len() != others().count();
    match last {
        // With a file of version 1 among the others, or with Farrier's own file, releases read the files differently.
        Some(last) if !managed && (versions > 1 || neutral) && last.version != Some(1) => {
            last.check_schema(release)?;
            let root_rules = last.version == root.version;
            Ok(if root_rules { root } else { last })
        }
        Some(_) | None => Err(Error::MixedVersions {
            path: other.path.to_owned(),
            found: other.version.unwrap_or(1),
            root: versions,
            containerd: release,
        }),
    }
}

/// The plugin for the version that counts and the release, and the version that a root without one may get.
fn plugin(
    root: &File<'_>,
    imported: &[File<'_>],
    rules: Option<i64>,
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
    Ok(match rules {
        // containerd 2 drops all runtimes of the older id as soon as the newer id has one.
        Some(2) if runtime && !version.replaces_sections() => (PluginId::CriV1Runtime, None),
        // containerd 2 reads the image settings of the older id only where that id has runtimes, too (`plugins/cri/images`,
        // `migrateConfig` of 2.0 to 2.4). The first runtime there would change the snapshotter.
        Some(2)
            if !grpc
                && !version.replaces_sections()
                && std::iter::once(root)
                    .chain(imported)
                    .any(File::has_image_settings) =>
        {
            (PluginId::CriV1Runtime, None)
        }
        Some(2) => (PluginId::GrpcV1Cri, None),
        // 2.3 and later migrate a file of version 3 again, and read the older id of it, too.
        Some(3) if grpc && !runtime && version.migrates_each_file() => (PluginId::GrpcV1Cri, None),
        Some(3 | 4) => (PluginId::CriV1Runtime, None),
        _ => first_schema(root, imported, version)?,
    })
}

/// The plugin and the version for a root without `version`, or with version 1. The root gets a version where that changes no other setting,
/// and stays at version 1 where containerd reads that.
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
    let ignored = || Error::SchemaIgnored {
        path: root.path.to_owned(),
        containerd: version,
    };
    if version.replaces_sections() {
        if !has(PluginId::Cri) && (has(PluginId::GrpcV1Cri) || has(PluginId::CriV1Runtime)) {
            return Err(ignored());
        }
    } else {
        // 2.0 to 2.2 take the file for version 3 without migrating its plugin ids. 2.3 and later migrate all ids.
        if has(PluginId::CriV1Runtime) {
            return Ok((PluginId::CriV1Runtime, None));
        }
        if !version.migrates_each_file() {
            // A handler beside ignored settings would hide that containerd ignores them.
            return if has(PluginId::Cri) || has(PluginId::GrpcV1Cri) {
                Err(ignored())
            } else {
                Ok((PluginId::CriV1Runtime, None))
            };
        }
        if has(PluginId::GrpcV1Cri) {
            return Ok((PluginId::GrpcV1Cri, None));
        }
    }
    Ok((PluginId::Cri, None))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::SourceFile;
    use super::*;

    fn placed(
        root: &str,
        imported: &[(&str, Option<&str>)],
        release: &str,
    ) -> Result<ConfigTarget, Error> {
        let file = |path: &str, text: Option<&str>| SourceFile {
            path: path.to_owned(),
            text: text.map(str::to_owned),
        };
        let files = ConfigFiles {
            root: file("/etc/containerd/config.toml", Some(root)),
            imported: imported
                .iter()
                .map(|(path, text)| file(path, *text))
                .collect(),
        };
        config_target(&files, &release.parse().unwrap())
    }

    #[rstest]
    #[case::not_toml(
        "version = ",
        "1.7.35",
        "failed to parse /etc/containerd/config.toml: line 1, column "
    )]
    #[case::version_text(
        "version = '2'",
        "1.7.35",
        "version in /etc/containerd/config.toml is not an integer"
    )]
    #[case::v3_on_1("version = 3", "1.7.35", "does not load version = 3")]
    #[case::v4_on_2_1("version = 4", "2.1.9", "does not load version = 4")]
    #[case::v5("version = 5", "2.4.2", "does not load version = 5")]
    #[case::negative("version = -1", "2.1.9", "does not load version = -1")]
    #[case::cri_off_v1(
        "disabled_plugins = ['cri']",
        "1.7.35",
        "disables containerd's CRI plugin"
    )]
    #[case::cri_off_v2(
        "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']",
        "2.1.9",
        "disables containerd's CRI plugin"
    )]
    #[case::images_off(
        "version = 2\ndisabled_plugins = ['io.containerd.cri.v1.images']",
        "2.1.9",
        "disables containerd's CRI plugin"
    )]
    #[case::ignored_on_2_1(
        "[plugins.cri.containerd.runtimes.runc]",
        "2.1.9",
        "schema is version 1"
    )]
    #[case::ignored_on_1(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]",
        "1.7.35",
        "schema is version 1"
    )]
    #[case::runtimes_text(
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes = 'runc'",
        "1.7.35",
        "is not a table"
    )]
    #[case::runtime_text(
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nrunc = 'runc'",
        "1.7.35",
        "runtimes.runc in /etc/containerd/config.toml is not a table"
    )]
    #[case::runtime_array(
        "version = 2\n[[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]]",
        "1.7.35",
        "is not a table"
    )]
    #[case::plugins_number(
        "version = 2\nplugins = 1",
        "1.7.35",
        "plugins in /etc/containerd/config.toml is not a table"
    )]
    #[case::letter_case(
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.Runtimes.runc]",
        "1.7.35",
        "Runtimes in"
    )]
    #[case::imports_text(
        "version = 3\nimports = 'x'",
        "2.1.9",
        "imports in /etc/containerd/config.toml is not an array of strings"
    )]
    #[case::byte_order_mark("\u{feff}version = 3", "2.1.9", "byte order mark")]
    fn a_file_that_is_not_safe_to_edit_is_refused_with_its_reason(
        #[case] root: &str,
        #[case] release: &str,
        #[case] reason: &str,
    ) {
        let message = placed(root, &[], release).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }

    #[rstest]
    #[case::higher(
        "1.7.35",
        Some("version = 3"),
        "does not load version = 3 of /x/a.toml"
    )]
    #[case::lower(
        "1.7.35",
        Some("version = 1"),
        "version 1 and is imported by a file of version 2"
    )]
    #[case::absent("1.7.35", None, "is imported and does not exist")]
    #[case::broken("1.7.35", Some("="), "failed to parse /x/a.toml")]
    fn an_import_that_loses_settings_is_refused(
        #[case] release: &str,
        #[case] text: Option<&str>,
        #[case] reason: &str,
    ) {
        let message = placed("version = 2", &[("/x/a.toml", text)], release)
            .unwrap_err()
            .to_string();
        assert!(message.contains(reason), "{message}");
    }

    #[test]
    fn a_file_of_another_version_is_merged_from_2_3_on() {
        let imported = [("/x/a.toml", Some("version = 2"))];
        assert!(placed("version = 3", &imported, "2.4.2").is_ok());
    }

    #[rstest]
    #[case::higher("version = 2", "version = 3", "2.1.9", PluginId::CriV1Runtime)]
    #[case::lower("version = 4", "version = 2", "2.1.9", PluginId::GrpcV1Cri)]
    #[case::newer_ids_in_the_root(
        "version = 4\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]",
        "version = 2",
        "2.1.9",
        PluginId::CriV1Runtime
    )]
    #[case::lower_on_1("version = 4", "version = 2", "1.7.35", PluginId::GrpcV1Cri)]
    fn up_to_2_2_the_version_of_the_last_file_counts_and_it_gets_the_handlers(
        #[case] root: &str,
        #[case] last: &str,
        #[case] release: &str,
        #[case] plugin: PluginId,
    ) {
        let root = format!("imports = ['/x/*.toml']\n{root}");
        let target = placed(&root, &[("/x/a.toml", Some(last))], release).unwrap();
        assert_eq!(target.path, "/x/a.toml");
        assert_eq!((target.plugin, target.drop_in), (plugin, false));
    }

    #[rstest]
    #[case::unseen_settings("", "2.1.9", PluginId::CriV1Runtime)]
    #[case::seen_settings(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]",
        "2.1.9",
        PluginId::GrpcV1Cri
    )]
    #[case::older("", "1.7.35", PluginId::GrpcV1Cri)]
    #[case::newer("", "2.4.2", PluginId::CriV1Runtime)]
    fn the_first_handler_does_not_change_image_settings(
        #[case] runtimes: &str,
        #[case] release: &str,
        #[case] plugin: PluginId,
    ) {
        let root = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n";
        let target = placed(&format!("{root}{runtimes}"), &[], release).unwrap();
        assert_eq!(target.plugin, plugin);
    }

    #[rstest]
    #[case("1.7.35", false)]
    #[case("2.1.9", true)]
    #[case("2.4.2", true)]
    fn a_version_in_other_letter_case_counts_from_2_0_on(
        #[case] release: &str,
        #[case] counts: bool,
    ) {
        let target = placed("Version = 2\n", &[], release);
        let version = target.map(|target| target.version);
        assert_eq!(version.ok(), counts.then_some(Some(2)));
        assert!(placed("Version = 2\nversion = 2\n", &[], release).is_err());
    }

    #[test]
    fn a_root_with_managed_handlers_is_edited_in_place_though_it_imports_a_directory() {
        let root = "version = 3\nimports = ['/x/*.toml']\n# farrier: managed\n[plugins]\n";
        assert!(!placed(root, &[], "2.1.9").unwrap().drop_in);
    }

    #[test]
    fn farrier_s_own_file_may_have_an_older_version_than_the_root() {
        let root = "version = 3\nimports = ['/x/*.toml']\n";
        let own = [("/x/farrier.toml", Some("version = 2"))];
        let target = placed(root, &own, "2.1.9").unwrap();
        assert_eq!((target.drop_in, target.version), (true, Some(3)));
    }

    fn of_any_release(texts: &[&str]) -> Result<ConfigTarget, Error> {
        let mut files = texts.iter().enumerate().map(|(at, text)| SourceFile {
            path: format!("/x/{at}.toml"),
            text: Some((*text).to_owned()),
        });
        config_target_of_any_release(&ConfigFiles {
            root: files.next().unwrap(),
            imported: files.collect(),
        })
    }

    const OLDER: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'a'\n";
    const NEWER: &str = "version = 2\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'a'\n";
    const BOTH: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n";

    #[rstest]
    #[case::of_1_x(&[OLDER], PluginId::GrpcV1Cri, false)]
    #[case::without_runtimes(&["version = 2\n"], PluginId::GrpcV1Cri, true)]
    #[case::without_a_version(&["root = '/x'\n"], PluginId::GrpcV1Cri, true)]
    #[case::of_version_1(&["[plugins.cri.containerd.runtimes.runc]\n"], PluginId::Cri, false)]
    #[case::version_2_with_newer_runtimes(&[NEWER], PluginId::CriV1Runtime, false)]
    #[case::an_empty_table(
        &["version = 2\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\n"],
        PluginId::CriV1Runtime,
        false
    )]
    #[case::newer_runtimes_in_one_line(
        &["version = 2\nplugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc = {}\n"],
        PluginId::CriV1Runtime,
        false
    )]
    #[case::runtimes_of_both_ids(&[BOTH], PluginId::CriV1Runtime, false)]
    #[case::newer_runtimes_in_an_import(
        &["version = 2\nimports = ['/x/1.toml']\n", NEWER],
        PluginId::CriV1Runtime,
        false
    )]
    #[case::version_3(&["version = 3\n"], PluginId::CriV1Runtime, false)]
    #[case::version_4(&["version = 4\n"], PluginId::CriV1Runtime, false)]
    fn the_plugin_for_an_unknown_release_is_the_one_that_the_files_were_written_for(
        #[case] texts: &[&str],
        #[case] plugin: PluginId,
        #[case] must_declare_runc: bool,
    ) {
        let target = of_any_release(texts).unwrap();
        let found = (target.plugin, target.must_declare_runc);
        assert_eq!(found, (plugin, must_declare_runc));
    }

    #[rstest]
    #[case::a_version_of_no_release("version = 5\n", "containerd 2.3.0 does not load version = 5")]
    #[case::settings_that_most_releases_ignore(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n",
        "schema is version 1"
    )]
    fn files_that_only_some_releases_or_none_read_are_refused(
        #[case] text: &str,
        #[case] reason: &str,
    ) {
        let message = of_any_release(&[text]).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }

    #[test]
    fn an_error_never_shows_text_of_the_file() {
        let message = placed("password = \"hunter2", &[], "2.1.9")
            .unwrap_err()
            .to_string();
        assert!(!message.contains("hunter2"), "{message}");
    }
}
