//! Reads and edits the handlers of one file. An edit splices the text and keeps every byte that Farrier did not write.
//!
//! An edit removes all managed handlers and appends the wanted ones. The result therefore depends on the wanted set alone, and removing all
//! of them restores the first bytes.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use super::document::{Document, Holder, difference, remove_from};
use super::edit_template::{created_template, edit_template};
use super::error::Error;
use super::inline_table::fill_braces;
use super::legacy::{legacy_handler, widen};
use super::render::{
    BRACES_MARK, CREATED_MARK, HANDLER_MARK, IMPORTING_MARK, JOINED_MARK, RUNC_MARK, VERSION_MARK,
    block, check_names, cut, newline_of, without_ranges,
};
use super::schema::PluginId;
use super::template::{all_template_handlers, is_template};
use super::types::{ConfigTarget, DeclaredHandler, Handler, RUNC};

/// The handlers that the text declares in the table of `target`.
///
/// ```
/// use std::collections::BTreeSet;
///
/// use farrier::containerd_config::{ConfigTarget, PluginId, handlers};
///
/// let target = ConfigTarget {
///     path: "/etc/containerd/config.toml".to_owned(),
///     plugin: PluginId::GrpcV1Cri,
///     version: Some(2),
///     drop_in: false,
///     must_declare_runc: false,
///     runc_is_foreign: false,
///     declared_in_other_files: BTreeSet::new(),
/// };
/// let text = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nkata = { runtime_type = '/kata' }\n";
/// assert_eq!(handlers(text, &target)?["kata"].runtime_type, "/kata");
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is not TOML, or has a value that is not a table where a handler should be.
pub fn handlers(
    text: &str,
    target: &ConfigTarget,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    Document::parse(&target.path, text)?.handlers(target.plugin)
}

/// The new text of the file of `target`, which declares exactly the handlers `desired` among the managed ones.
///
/// * `text` is the present text; `None` where the file is absent.
/// * `managed` names the handlers that an earlier edit wrote and this one may replace or remove.
/// * `runc` is the default runtime as containerd printed it before. It is declared beside the first handler where
///   [`must_declare_runc`](ConfigTarget::must_declare_runc) is set, and removed with the last one. A `runc` that others have changed since
///   stays, and the comment above it is removed.
///
/// The result is `None` where the file should not exist: it is absent and nothing is wanted, or an earlier edit created it and nothing is
/// left in it. A text that already declares `desired` is returned unchanged.
///
/// ```
/// use std::collections::{BTreeMap, BTreeSet};
///
/// use farrier::containerd_config::{ConfigFiles, Handler, SourceFile, config_target, edit};
///
/// let text = "version = 3\n\n[plugins.'io.containerd.cri.v1.runtime']\nenable_selinux = true # by hand\n";
/// let files = ConfigFiles {
///     root: SourceFile {
///         path: "/etc/containerd/config.toml".to_owned(),
///         text: Some(text.to_owned()),
///     },
///     imported: Vec::new(),
/// };
/// let target = config_target(&files, &"2.1.9".parse()?)?;
/// let spin = Handler {
///     name: "spin".to_owned(),
///     runtime_type: "/opt/farrier/bin/containerd-shim-spin-v2".to_owned(),
///     options: BTreeMap::new(),
/// };
/// let edited = edit(Some(text), &target, &BTreeSet::new(), &[spin], None)?.unwrap();
/// assert!(edited.starts_with(text));
///
/// let managed = BTreeSet::from(["spin".to_owned()]);
/// let restored = edit(Some(&edited), &target, &managed, &[], None)?;
/// assert_eq!(restored.as_deref(), Some(text));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text can't be parsed, a wanted handler has an unusable name or is declared by others, `runc` is needed and `None`, or the
/// file's notation leaves no safe place. The result is parsed again before it is returned: it has the wanted handlers, and all other values
/// are unchanged.
pub fn edit(
    text: Option<&str>,
    target: &ConfigTarget,
    managed: &BTreeSet<String>,
    desired: &[Handler],
    runc: Option<&Handler>,
) -> Result<Option<String>, Error> {
    let source = text.unwrap_or_default();
    let document = Document::parse(&target.path, source)?;
    let declared = document.handlers(target.plugin)?;
    let desired_by_name = check(target, &declared, managed, desired)?;

    let stale =
        |name: &String| managed.contains(name) && !desired_by_name.contains_key(name.as_str());
    let is_as_desired = desired_by_name.iter().all(|(name, handler)| {
        declared
            .get(*name)
            .is_some_and(|declared| declared.declares(handler))
    });
    // Farrier's own file must have the version of the root, which others may have changed.
    let has_target_version =
        document.own_version().is_none() || document.version()? == target.version;
    let mut is_in_other_tables = false;
    for plugin in PluginId::ALL {
        let handlers = document.handlers(plugin)?;
        is_in_other_tables |= plugin != target.plugin
            && handlers.iter().any(|(name, handler)| {
                managed.contains(name) && is_managed(&document, plugin, name, handler)
            });
    }
    if is_as_desired
        && has_target_version
        && !is_in_other_tables
        && !desired.is_empty()
        && !declared.keys().any(stale)
    {
        return Ok(text.map(str::to_owned));
    }
    let base = strip(&document, target, &declared, managed, &desired_by_name)?;
    let created = text.is_none() || base.created_version.is_some();
    if desired.is_empty() && created && base.text.trim().is_empty() {
        return Ok(None);
    }
    let edited = if desired.is_empty() {
        // The lines of others in a created file were written below its version, and k0s 1.36 refuses a snippet without one.
        base.created_version.unwrap_or_default() + &base.text
    } else {
        fill(&base.text, created, target, &desired_by_name, runc)?
    };
    verify(&document, &edited, target, managed, &desired_by_name)?;
    let mark = if document.byte_order_mark {
        "\u{feff}"
    } else {
        ""
    };
    Ok(Some(format!("{mark}{edited}")))
}

/// The wanted handlers by name. Every name is usable and not declared by others.
fn check<'a>(
    target: &ConfigTarget,
    declared: &BTreeMap<String, DeclaredHandler>,
    managed: &BTreeSet<String>,
    desired: &'a [Handler],
) -> Result<BTreeMap<&'a str, &'a Handler>, Error> {
    let desired_by_name = check_names(desired)?;
    let foreign = desired.iter().map(|handler| &handler.name).find(|name| {
        !managed.contains(*name)
            && (declared.contains_key(*name) || target.declared_in_other_files.contains(*name))
    });
    match foreign {
        Some(name) => Err(Error::Foreign {
            handler: name.clone(),
            path: target.path.clone(),
        }),
        None => Ok(desired_by_name),
    }
}

/// A file without the lines that Farrier wrote.
struct Base {
    text: String,
    /// The lines of the `version` that were cut from a file that Farrier created; empty where the version stays in the text.
    created_version: Option<String>,
}

/// Removes the managed handlers under Farrier's comment, and the other managed handlers that are not wanted as they are.
fn strip(
    document: &Document<'_>,
    target: &ConfigTarget,
    declared: &BTreeMap<String, DeclaredHandler>,
    managed: &BTreeSet<String>,
    desired_by_name: &BTreeMap<&str, &Handler>,
) -> Result<Base, Error> {
    let path = target.plugin.runtimes();
    // A handler in an inline table has no comment. All managed ones are removed, so that the same set always has the same order.
    let braces = matches!(
        document.holder(&[path.as_slice(), &[RUNC]].concat()),
        Holder::Braces(_, _)
    );
    let (mut removed, kept): (BTreeSet<&str>, BTreeSet<&str>) =
        declared.keys().map(String::as_str).partition(|name| {
            let handler = &declared[*name];
            let is_as_desired = desired_by_name
                .get(name)
                .is_some_and(|desired| handler.declares(desired));
            managed.contains(*name) && (handler.marked || braces || !is_as_desired)
        });
    // Beside another handler, the declared `runc` stays, because the other handler would also hide the default runtime.
    if kept.iter().eq([&RUNC]) && declared[RUNC].marked && !target.runc_is_foreign {
        removed.insert(RUNC);
    }
    let mut ranges = document.extents(target.plugin, &removed);
    for plugin in PluginId::ALL {
        if plugin != target.plugin {
            let handlers = document.handlers(plugin)?;
            let removed = handlers
                .iter()
                .filter(|(name, handler)| {
                    managed.contains(*name) && is_managed(document, plugin, name, handler)
                })
                .map(|(name, _)| name.as_str())
                .collect();
            ranges.extend(document.extents(plugin, &removed));
        }
    }
    ranges.sort_by_key(|range| range.start);
    let mut ranges = widen(document.text, ranges);
    if braces && removed.contains(RUNC) {
        ranges.extend(document.braces_mark());
    }
    if !target.runc_is_foreign {
        ranges.extend(document.stale_runc_marks()?);
    }
    ranges.sort_by_key(|range| range.start);
    let text = without_ranges(document.text, &ranges);
    let rest = Document::parse(&target.path, &text)?;
    let Some((version, mark)) = rest.own_version() else {
        return Ok(Base {
            text,
            created_version: None,
        });
    };
    let created = mark == CREATED_MARK;
    // Others may have added settings that depend on the version. containerd 1.7 reads an imported file without a version under that of the
    // root.
    let imports = mark != IMPORTING_MARK && !rest.strings("imports")?.is_empty();
    let version = if imports || rest.depends_on_version()? {
        0..0
    } else {
        version
    };
    let lines = rest
        .text
        .get(version.clone())
        .unwrap_or_default()
        .to_owned();
    let text = cut(&text, &[version]);
    Ok(Base {
        text,
        created_version: created.then_some(lines),
    })
}

/// Whether a handler in another plugin's table than the target's was written by Farrier, or by a legacy installer whose handlers Farrier
/// took over.
fn is_managed(
    document: &Document<'_>,
    plugin: PluginId,
    name: &str,
    handler: &DeclaredHandler,
) -> bool {
    handler.marked || legacy_handler(document, plugin, name, handler).is_some()
}

/// Adds the wanted handlers that are missing.
fn fill(
    base: &str,
    created: bool,
    target: &ConfigTarget,
    desired_by_name: &BTreeMap<&str, &Handler>,
    runc: Option<&Handler>,
) -> Result<String, Error> {
    let document = Document::parse(&target.path, base)?;
    let declared = document.handlers(target.plugin)?;
    let missing: Vec<&Handler> = desired_by_name
        .values()
        .filter(|handler| !declared.contains_key(&handler.name))
        .copied()
        .collect();
    let runc = match runc {
        _ if !target.must_declare_runc || !declared.is_empty() => None,
        Some(runc) => Some(runc),
        None => {
            return Err(Error::NoRunc {
                path: target.path.clone(),
            });
        }
    };
    let newline = newline_of(base);
    let version = match (target.version, document.version()?) {
        (Some(version), None) => {
            let mark = match document.strings("imports")?.is_empty() {
                _ if created => CREATED_MARK,
                true => VERSION_MARK,
                false => IMPORTING_MARK,
            };
            format!("{mark}{newline}version = {version}{newline}")
        }
        _ => String::new(),
    };
    let path = target.plugin.runtimes();
    let filled = match document.holder(&[path.as_slice(), &[RUNC]].concat()) {
        Holder::Braces(braces, depth) => {
            let mark = runc.map(|_| format!("{BRACES_MARK}{newline}"));
            let all: Vec<&Handler> = missing.into_iter().chain(runc).collect();
            mark.unwrap_or_default() + &fill_braces(base, braces, &path[depth..], &all)
        }
        Holder::Headers => {
            let mut text = base.to_owned();
            let mut mark = HANDLER_MARK;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push_str(newline);
                mark = JOINED_MARK;
            }
            for handler in missing {
                text.push_str(&block(mark, newline, &path, handler));
                mark = HANDLER_MARK;
            }
            if let Some(runc) = runc {
                text.push_str(&block(RUNC_MARK, newline, &path, runc));
            }
            text
        }
    };
    Ok(version + &filled)
}

/// Parses the result and checks that it has the wanted handlers and that all other values are unchanged.
fn verify(
    document: &Document<'_>,
    edited: &str,
    target: &ConfigTarget,
    managed: &BTreeSet<String>,
    desired_by_name: &BTreeMap<&str, &Handler>,
) -> Result<(), Error> {
    let not_editable = |reason| Error::NotEditable {
        path: target.path.clone(),
        reason,
    };
    let result = Document::parse(&target.path, edited).map_err(|_| {
        not_editable("a table of a handler is not valid beside the tables in the file")
    })?;
    let declared = result.handlers(target.plugin)?;
    let stale =
        |name: &String| managed.contains(name) && !desired_by_name.contains_key(name.as_str());
    if declared.keys().any(stale)
        || !desired_by_name.iter().all(|(name, handler)| {
            declared
                .get(*name)
                .is_some_and(|found| found.declares(handler))
        })
    {
        return Err(not_editable(
            "the result does not declare the requested handlers",
        ));
    }
    let adds_runc = !document.handlers(target.plugin)?.contains_key(RUNC);
    let managed_in = |plugin: PluginId,
                      document: &Document<'_>|
     -> Result<BTreeSet<String>, Error> {
        Ok(document
            .handlers(plugin)?
            .into_iter()
            .filter(|(name, handler)| {
                managed.contains(name)
                    || desired_by_name.contains_key(name.as_str())
                    || (name == RUNC && (handler.marked || adds_runc) && !target.runc_is_foreign)
            })
            .map(|(name, _)| name)
            .collect())
    };
    let others = |document: &Document<'_>| -> Result<Value, Error> {
        let mut values = document.values();
        for plugin in PluginId::ALL {
            let names = managed_in(plugin, document)?;
            remove_from(&mut values, &plugin.runtimes(), &names);
        }
        if document.own_version().is_some()
            && let Value::Table(root) = &mut values
        {
            root.remove("version");
        }
        Ok(values)
    };
    if difference(&others(document)?, &others(&result)?).is_some() {
        return Err(not_editable("the result changes other settings"));
    }
    Ok(())
}

/// The text of the file `path` without the handlers for which `is_managed` is true, in all plugins' tables. The text is TOML or a Go
/// template.
///
/// The file is one that [`config_target`](super::config_target) no longer chooses, for example since an upgrade of containerd. The result
/// is `None` where nothing else is left in a file that Farrier created.
///
/// ```
/// use farrier::containerd_config::remove_managed_handlers;
///
/// let text = "version = 2
/// ## farrier: managed handler; change its Shim or run farrier install instead
/// [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.spin]
/// runtime_type = \"/opt/farrier/bin/containerd-shim-spin\"
/// ";
/// let left = remove_managed_handlers("/etc/containerd/config.toml", text, |name, declared| {
///     name == "spin" && declared.marked
/// })?;
/// assert_eq!(left.as_deref(), Some("version = 2\n"));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// As [`edit`] and [`edit_template`].
pub fn remove_managed_handlers(
    path: &str,
    text: &str,
    is_managed: impl Fn(&str, &DeclaredHandler) -> bool,
) -> Result<Option<String>, Error> {
    let mut left = Some(text.to_owned());
    for plugin in PluginId::ALL {
        let Some(text) = left.as_deref() else {
            break;
        };
        let declared = if is_template(text) {
            all_template_handlers(path, text, plugin)?
        } else {
            Document::parse(path, text)?.handlers(plugin)?
        };
        let removed = managed_names(&declared, &is_managed);
        if removed.is_empty() {
            continue;
        }
        left = if is_template(text) {
            edit_template(path, Some(text), plugin, &removed, &[])?
        } else {
            let target = ConfigTarget {
                path: path.to_owned(),
                plugin,
                version: None,
                drop_in: false,
                must_declare_runc: false,
                runc_is_foreign: false,
                declared_in_other_files: BTreeSet::new(),
            };
            edit(Some(text), &target, &removed, &[], None)?
        };
    }
    Ok(left)
}

/// What stays of a file that Farrier created and that holds nothing but handlers and lines of others among them: the base of a template, or
/// the `version` of the file `path`. Without the base, k3s and RKE2 would render an empty configuration.
///
/// ```
/// use farrier::containerd_config::created_base;
///
/// let mark = "# farrier: this file is managed and leaves with its last handler";
/// let text = format!("{mark}\nversion = 3\n[plugins]\n");
/// assert_eq!(created_base("/etc/k0s/containerd.d/farrier.toml", &text)?, format!("{mark}\nversion = 3\n"));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is neither TOML nor a template.
pub fn created_base(path: &str, text: &str) -> Result<String, Error> {
    if is_template(text) {
        return Ok(created_template());
    }
    let document = Document::parse(path, text)?;
    let version = document.own_version();
    let version = version.and_then(|(lines, _)| document.text.get(lines));
    Ok(version.unwrap_or_default().to_owned())
}

fn managed_names(
    declared: &BTreeMap<String, DeclaredHandler>,
    is_managed: impl Fn(&str, &DeclaredHandler) -> bool,
) -> BTreeSet<String> {
    declared
        .iter()
        .filter(|(name, handler)| is_managed(name, handler))
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::render::MARK;
    use super::*;

    /// A file in which `runc` alone is declared.
    const PLAIN: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'r'\n";

    fn target() -> ConfigTarget {
        ConfigTarget {
            path: "/etc/containerd/config.toml".to_owned(),
            plugin: PluginId::GrpcV1Cri,
            version: Some(2),
            drop_in: false,
            must_declare_runc: false,
            runc_is_foreign: false,
            declared_in_other_files: BTreeSet::from(["other".to_owned()]),
        }
    }

    fn handler(name: &str) -> Handler {
        Handler {
            name: name.to_owned(),
            runtime_type: format!("/opt/{name}"),
            options: BTreeMap::new(),
        }
    }

    fn managed(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn edited(text: &str, mine: &[&str], desired: &[Handler]) -> Result<String, Error> {
        edit(Some(text), &target(), &managed(mine), desired, None).map(Option::unwrap_or_default)
    }

    #[test]
    fn a_handler_with_the_comment_of_an_earlier_release_is_not_rewritten_and_leaves_wholly() {
        let bare = PLAIN.trim_end();
        let text = edited(bare, &[], &[handler("a")]).unwrap();
        let earlier = text.replace(" or run farrier install instead", " instead");
        assert_ne!(earlier, text);
        let kept = edited(&earlier, &["a"], &[handler("a")]).unwrap();
        assert_eq!(kept, earlier);
        assert_eq!(edited(&earlier, &["a"], &[]).unwrap(), bare);
    }

    #[rstest]
    #[case::in_the_file("kata")]
    #[case::in_another_file("other")]
    fn a_handler_of_others_is_refused(#[case] name: &str) {
        let kata = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\n";
        assert!(matches!(
            edited(&format!("{PLAIN}{kata}"), &[], &[handler(name)]),
            Err(Error::Foreign { .. })
        ));
    }

    #[rstest]
    #[case("runc")]
    #[case("")]
    #[case("a\nb")]
    #[case("a\"b")]
    #[case("a\\b")]
    fn a_name_that_is_not_safe_to_write_is_refused(#[case] name: &str) {
        assert!(matches!(
            edited(PLAIN, &[], &[handler(name)]),
            Err(Error::Name { .. })
        ));
    }

    #[test]
    fn a_carriage_return_alone_at_the_end_is_refused() {
        for text in [
            "version = 2\r",
            "version = 2 # x\r",
            "version = 2\n\r",
            "version = 2\n#\r",
        ] {
            let edited = edited(text, &[], &[handler("a")]);
            assert!(matches!(edited, Err(Error::Syntax { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_handler_that_is_requested_twice_is_refused() {
        assert!(matches!(
            edited(PLAIN, &[], &[handler("a"), handler("a")]),
            Err(Error::Duplicate { .. })
        ));
    }

    #[test]
    fn a_value_can_not_leave_its_string() {
        let mut desired = handler("a");
        desired.runtime_type = "x\"\n[plugins.evil]\u{7f}\u{85}\t'''\\".to_owned();
        let value = Value::String("\r\n# \"\"\"".to_owned());
        desired.options.insert("k".to_owned(), value);
        let text = edited(PLAIN, &[], std::slice::from_ref(&desired)).unwrap();
        assert!(handlers(&text, &target()).unwrap()["a"].declares(&desired));
        assert!(!text.contains("\n[plugins.evil"));
    }

    #[test]
    fn text_appended_below_a_managed_handler_stays_when_the_handler_is_removed() {
        let text = PLAIN.trim_end();
        let with = edited(text, &[], &[handler("a")]).unwrap() + "[metrics]\naddress = ''\n";
        assert_eq!(
            edited(&with, &["a"], &[]).unwrap(),
            format!("{text}\n[metrics]\naddress = ''\n")
        );
    }

    #[test]
    fn a_created_file_to_which_others_added_settings_keeps_its_version() {
        let made = edit(None, &target(), &managed(&[]), &[handler("a")], None);
        let filled =
            made.unwrap().unwrap() + "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'p'\n";
        let left = edited(&filled, &["a"], &[]).unwrap();
        assert!(left.contains("version = 2") && left.ends_with("sandbox_image = 'p'\n"));
        assert!(!left.contains("/opt/a"));
    }

    #[rstest]
    #[case::a_comment("# mine\n")]
    #[case::a_section("[metrics]\naddress = ''\n")]
    fn a_created_file_with_lines_of_others_keeps_its_version_until_they_are_gone(
        #[case] added: &str,
    ) {
        let created = |text: Option<&str>, mine: &[&str], desired: &[Handler]| {
            edit(text, &target(), &managed(mine), desired, None).unwrap()
        };
        let made = created(None, &[], &[handler("a")]).unwrap();
        let filled = made.clone() + added;
        let left = created(Some(&filled), &["a"], &[]).unwrap();
        assert_eq!(left, format!("{CREATED_MARK}\nversion = 2\n{added}"));
        let again = created(Some(&left), &[], &[handler("a")]).unwrap();
        assert_eq!(again.matches("version").count(), 1, "{again}");
        assert_eq!(created(Some(&again), &["a"], &[]).unwrap(), left);
        let rest = again.replace(added, "");
        assert_eq!(created(Some(&rest), &["a"], &[]), None);
        assert_eq!(created_base("/x", &filled).unwrap() + added, left);
    }

    #[rstest]
    #[case::plugins("[plugins.x]\ny = 1\n", true)]
    #[case::imports("imports = ['/etc/containerd/conf.d/*.toml']\n", true)]
    #[case::no_imports("imports = []\n", false)]
    #[case::another_section("[metrics]\naddress = ''\n", false)]
    fn the_version_that_farrier_wrote_stays_where_settings_depend_on_it(
        #[case] added: &str,
        #[case] stays: bool,
    ) {
        let with = edited("# mine\n", &[], &[handler("a")]).unwrap();
        let (version, rest) = with.split_at(with.find("# mine").unwrap());
        assert_eq!(version, format!("{VERSION_MARK}\nversion = 2\n"));
        let left = edited(&format!("{version}{added}{rest}"), &["a"], &[]).unwrap();
        let version = if stays { version } else { "" };
        assert_eq!(left, format!("{version}{added}# mine\n"));
    }

    #[test]
    fn a_file_that_imported_others_before_is_restored() {
        let text = "imports = ['/etc/containerd/conf.d/*.toml']\n";
        let with = edited(text, &[], &[handler("a")]).unwrap();
        assert!(with.starts_with(IMPORTING_MARK), "{with}");
        assert_eq!(edited(&with, &["a"], &[]).unwrap(), text);
    }

    #[test]
    fn a_file_with_nan_values_can_be_edited() {
        let text = format!("{PLAIN}[metrics]\nx = nan\ny = [nan]\n");
        let with = edited(&text, &[], &[handler("a")]).unwrap();
        assert_eq!(edited(&with, &["a"], &[]).unwrap(), text);
    }

    #[rstest]
    #[case::under_a_header(PLAIN)]
    #[case::between_braces("version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = {} }\n")]
    fn an_option_of_any_type_is_read_as_it_was_written(#[case] text: &str) {
        let options: toml_edit::DocumentMut =
            "a = 1.0\nb = -inf\nc = 1979-05-27T07:32:00Z\nd = ['x\\y', 2, []]\ne = { f.'g h' = { i = true }, j = [{ k = 1e300 }] }\n"
                .parse()
                .unwrap();
        let options = super::super::document::declared(&toml_edit::Table::from_iter([(
            "options",
            toml_edit::Item::Table(options.as_table().clone()),
        )]))
        .options;
        assert_eq!(options.len(), 5);
        let desired = Handler {
            options,
            ..handler("a")
        };
        let with = edited(text, &[], std::slice::from_ref(&desired)).unwrap();
        assert!(handlers(&with, &target()).unwrap()["a"].declares(&desired));
        assert!(!with.contains("{{"), "{with}");
        assert_eq!(edited(&with, &["a"], &[]).unwrap(), text);
    }

    #[test]
    fn a_key_anywhere_in_an_option_has_to_be_safe_to_write() {
        let below = toml::Table::from_iter([("a\"b".to_owned(), Value::Boolean(true))]);
        for option in [
            Value::Table(below.clone()),
            Value::Array(vec![Value::Array(vec![Value::Table(below)])]),
        ] {
            let mut desired = handler("a");
            desired.options.insert("x".to_owned(), option);
            assert!(matches!(
                edited(PLAIN, &[], &[desired]),
                Err(Error::Name { .. })
            ));
        }
    }

    #[test]
    fn an_absent_file_is_not_created_without_handlers() {
        assert_eq!(
            edit(None, &target(), &managed(&[]), &[], None).unwrap(),
            None
        );
    }

    #[rstest]
    #[case::inline(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nb = {}\na = { runtime_type = '/old' }\n",
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]\nb = {}\n"
    )]
    #[case::dotted(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes.a.runtime_type = '/old'\nruntimes.a.options.X = 1\nruntimes.b.runtime_type = 'b'\n",
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes.b.runtime_type = 'b'\n"
    )]
    #[case::apart(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a.options]\nX = 1\n[metrics]\n# theirs\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/old'\n\n# tail\n",
        "[metrics]\n# theirs\n\n# tail\n"
    )]
    fn a_managed_handler_is_removed_from_a_text_in_another_notation(
        #[case] text: &str,
        #[case] left: &str,
    ) {
        assert_eq!(edited(text, &["a"], &[]).unwrap(), left);
    }

    #[test]
    fn a_handler_that_was_taken_over_stays_where_it_is_until_it_changes() {
        let theirs = "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a]\nruntime_type = '/opt/a'\n# tail\n";
        let taken_over = format!("{PLAIN}{theirs}");
        let both = edited(&taken_over, &["a"], &[handler("a"), handler("b")]).unwrap();
        assert!(both.starts_with(&taken_over));
        let mut changed = handler("a");
        changed.runtime_type = "/new/a".to_owned();
        let moved = edited(&both, &["a", "b"], &[changed]).unwrap();
        assert!(moved.starts_with(&format!("{PLAIN}# tail\n")));
        assert!(!moved.contains("/opt/"));
    }

    #[test]
    fn a_key_that_others_added_to_a_managed_handler_is_removed() {
        let with = edited(PLAIN, &[], &[handler("a")]).unwrap();
        let drifted = with.clone() + "runtime_path = '/evil'\n";
        assert_eq!(edited(&drifted, &["a"], &[handler("a")]).unwrap(), with);
    }

    #[test]
    fn the_declaration_of_runc_is_needed_where_a_handler_would_hide_it() {
        let target = ConfigTarget {
            must_declare_runc: true,
            ..target()
        };
        let bare = Some("version = 2\n");
        assert!(matches!(
            edit(bare, &target, &managed(&[]), &[handler("a")], None),
            Err(Error::NoRunc { .. })
        ));
    }

    #[test]
    fn the_default_runtime_stays_while_others_declare_a_handler() {
        let target = ConfigTarget {
            must_declare_runc: true,
            ..target()
        };
        let bare = Some("version = 2\n");
        let runc = handler("runc");
        let with = edit(bare, &target, &managed(&[]), &[handler("a")], Some(&runc));
        let with = with.unwrap().unwrap()
            + "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nruntime_type = 'k'\n";
        let left = edited(&with, &["a"], &[]).unwrap();
        let names: Vec<String> = handlers(&left, &target).unwrap().into_keys().collect();
        assert_eq!(names, ["kata", "runc"]);
    }

    /// The text that Farrier writes beside `a` for containerd 1.x, and the text that is left without `a`.
    fn beside_runc(before: &str, change: impl Fn(&str) -> String) -> (String, String) {
        let target = ConfigTarget {
            must_declare_runc: true,
            ..target()
        };
        let runc = Handler::runc();
        let with = edit(
            Some(before),
            &target,
            &managed(&[]),
            &[handler("a")],
            Some(&runc),
        );
        let changed = change(&with.unwrap().unwrap());
        // containerd prints the `runc` of the administrator.
        let declared = handlers(&changed, &target).unwrap();
        let runc = declared.get("runc").map(|runc| runc.to_handler("runc"));
        let left = edit(
            Some(&changed),
            &target,
            &managed(&["a"]),
            &[],
            runc.as_ref(),
        );
        (changed, left.unwrap().unwrap())
    }

    const RUNC_HEADER: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc";
    const RUNC_TYPE: &str = "runtime_type = \"io.containerd.runc.v2\"";

    #[rstest]
    #[case::options_below(|text: &str| format!("{text}{RUNC_HEADER}.options]\nSystemdCgroup = true\n"))]
    #[case::a_key(|text: &str| format!("{text}snapshotter = 'x'\n"))]
    #[case::an_inline_table(|text: &str| format!("{text}options = {{ SystemdCgroup = true }}\n"))]
    #[case::dotted_keys(|text: &str| format!("{text}options.SystemdCgroup = true\n"))]
    #[case::another_program(|text: &str| text.replace(RUNC_TYPE, "runtime_type = '/opt/runc'"))]
    #[case::a_comment_behind_the_value(|text: &str| text.replace(RUNC_TYPE, &format!("{RUNC_TYPE} # mine")))]
    #[case::other_quotes(|text: &str| text.replace(RUNC_TYPE, "runtime_type = 'io.containerd.runc.v2'"))]
    #[case::options_alone(|text: &str| text.replace(RUNC_TYPE, "options = { BinaryName = 'x' }"))]
    fn a_runc_that_others_changed_stays_without_the_comment_of_farrier(
        #[case] change: impl Fn(&str) -> String,
    ) {
        let (changed, left) = beside_runc("version = 2\n", change);
        let (_, theirs) = changed.split_once(&format!("{RUNC_MARK}\n")).unwrap();
        assert_eq!(left, format!("version = 2\n{theirs}"));
        // Farrier comes and goes once more, and leaves the same text.
        let with = edited(&left, &[], &[handler("b")]).unwrap();
        assert_eq!(edited(&with, &["b"], &[]).unwrap(), left);
    }

    #[test]
    fn a_runc_between_braces_that_others_changed_stays_without_the_comment_of_farrier() {
        let before = "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = {} }\n";
        let changed = format!("{RUNC_TYPE}, options = {{ SystemdCgroup = true }}");
        let (_, left) = beside_runc(before, |text| text.replace(RUNC_TYPE, &changed));
        assert!(!left.contains(MARK), "{left}");
        assert!(
            left.contains(&changed) && !left.contains("/opt/a"),
            "{left}"
        );
    }

    #[test]
    fn a_table_of_others_apart_from_the_runc_of_farrier_makes_it_theirs() {
        let options = format!("{RUNC_HEADER}.options]\nSystemdCgroup = true\n");
        let (_, left) = beside_runc("version = 2\n", |text| {
            format!("{text}[metrics]\naddress = ''\n{options}")
        });
        let runc = &handlers(&left, &target()).unwrap()["runc"];
        assert_eq!(runc.runtime_type, "io.containerd.runc.v2");
        assert_eq!(runc.options["SystemdCgroup"], Value::Boolean(true));
        assert!(!left.contains(MARK), "{left}");
    }

    #[rstest]
    #[case::of_a_handler(HANDLER_MARK, false)]
    #[case::of_a_runc(RUNC_MARK, true)]
    fn a_comment_that_others_copied_above_their_runc_does_not_make_it_farrier_s(
        #[case] mark: &str,
        #[case] runc_is_foreign: bool,
        #[values("", "options = { SystemdCgroup = true }\n")] options: &str,
        #[values(false, true)] must_declare_runc: bool,
    ) {
        let text = format!("version = 2\n{mark}\n{RUNC_HEADER}]\n{RUNC_TYPE}\n{options}");
        let target = ConfigTarget {
            must_declare_runc,
            runc_is_foreign,
            ..target()
        };
        let runc = Handler::runc();
        let desired = [handler("a")];
        let with = edit(Some(&text), &target, &managed(&[]), &desired, Some(&runc));
        let with = with.unwrap();
        assert!(with.as_ref().unwrap().starts_with(&text), "{with:?}");
        let left = edit(with.as_deref(), &target, &managed(&["a"]), &[], Some(&runc));
        assert_eq!(left.unwrap().unwrap(), text);
    }

    #[test]
    fn a_byte_order_mark_that_containerd_1_reads_is_kept() {
        let text = format!("\u{feff}{PLAIN}");
        let with = edited(&text, &[], &[handler("a")]).unwrap();
        assert!(with.starts_with('\u{feff}'));
        assert_eq!(edited(&with, &["a"], &[]).unwrap(), text);
    }

    #[test]
    fn the_created_file_follows_the_version_and_the_table_of_the_root() {
        let desired = [handler("a")];
        let old = edit(None, &target(), &managed(&[]), &desired, None).unwrap();
        let target = ConfigTarget {
            plugin: PluginId::CriV1Runtime,
            version: Some(3),
            drop_in: true,
            ..target()
        };
        let new = edit(old.as_deref(), &target, &managed(&["a"]), &desired, None).unwrap();
        assert_eq!(
            new,
            edit(None, &target, &managed(&[]), &desired, None).unwrap()
        );
    }

    const OTHERS: &str = "version = 2\n# theirs\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.b]\nruntime_type = '/opt/b'\n";
    const TEMPLATE: &str = "{{ template \"base\" . }}\n# theirs\n";

    #[rstest]
    #[case::in_a_file_of_others(Some(OTHERS), true)]
    #[case::in_a_file_of_ours(None, true)]
    #[case::at_the_end_of_one_without_line_end(Some(OTHERS.trim_end()), true)]
    #[case::in_a_template(Some(TEMPLATE), false)]
    #[case::in_a_template_of_ours(None, false)]
    fn removing_all_managed_handlers_restores_the_first_bytes(
        #[case] before: Option<&str>,
        #[case] toml: bool,
        #[values(PluginId::GrpcV1Cri, PluginId::CriV1Runtime)] plugin: PluginId,
        #[values(false, true)] must_declare_runc: bool,
    ) {
        let target = ConfigTarget {
            path: "f".to_owned(),
            plugin,
            version: Some(2),
            drop_in: false,
            must_declare_runc,
            runc_is_foreign: false,
            declared_in_other_files: BTreeSet::new(),
        };
        let none = BTreeSet::new();
        let with = if toml {
            edit(
                before,
                &target,
                &none,
                &[handler("a")],
                Some(&Handler::runc()),
            )
        } else {
            edit_template("f", before, plugin, &none, &[handler("a")])
        };
        let with = with.unwrap().unwrap();
        let managed = |name: &str, handler: &DeclaredHandler| name == "a" && handler.marked;
        let left = remove_managed_handlers("f", &with, managed).unwrap();
        assert_eq!(left.as_deref(), before);
        let left = remove_managed_handlers("f", &with, |_, _| false).unwrap();
        assert_eq!(left, Some(with));
    }
}
