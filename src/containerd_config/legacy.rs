//! Finds the handlers that the installers of KWasm and runtime-class-manager appended to a file, and the bytes that came with each.
//!
//! runtime-class-manager appends a line end, a comment and the table, and no line end after the last option. KWasm appends a line end, its
//! tables without comments, and an empty line. Removing a handler removes exactly these bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Value;

use super::document::Document;
use super::error::Error;
use super::render::MARK;
use super::schema::PluginId;
use super::template::{is_template, stanzas};
use super::types::DeclaredHandler;

/// The comment above each table of runtime-class-manager (its installer, `internal/containerd/configure.go`).
const RCM_COMMENT: &str = "# RCM runtime config for ";
/// The comment above each table of KWasm's installer of the branch `go-rewrite`.
const KWASM_COMMENT: &str = "# KWASM runtime config for ";
/// The prefix of the file names of all their shims.
const SHIM_PREFIX: &str = "containerd-shim-";
/// The default directory of runtime-class-manager.
const RCM_DIR: &str = "/opt/rcm";
/// The default directories of KWasm. The second is for `MicroK8s`, a snap, which can't read `/opt`.
const KWASM_DIRS: [&str; 2] = ["/opt/kwasm", "/var/snap/microk8s/common/kwasm"];

/// An installer that provisioned nodes before Farrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LegacyInstaller {
    /// KWasm's node installer.
    Kwasm,
    /// runtime-class-manager's node installer.
    Rcm,
}

/// A handler that a legacy installer declared.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyHandler {
    /// The installer that declared the handler.
    pub installer: LegacyInstaller,
    /// The plugins whose tables declare the handler. Which of them containerd reads depends on its release.
    pub plugins: Vec<PluginId>,
    /// The directory of the installer's files on the host.
    pub dir: String,
    /// Whether `dir` is a default directory of the installer. Another directory needs more evidence than a comment.
    pub is_default_dir: bool,
    /// The path of the shim, `dir/bin/FILE`.
    pub path: String,
    /// The keys and values of the table `options`.
    pub options: BTreeMap<String, Value>,
    /// Whether Farrier has rewritten the declaration under its own comment.
    pub marked: bool,
}

/// The handlers of legacy installers in the text of the file `path`, by name. The text is TOML or a Go template.
///
/// In a template only stanzas without actions count, because legacy installers append none.
///
/// ```
/// use farrier::containerd_config::{LegacyInstaller, legacy_handlers};
///
/// let text = r#"
/// ## RCM runtime config for spin
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.spin]
/// runtime_type = "/opt/rcm/bin/containerd-shim-spin-v2"
/// "#;
/// let found = legacy_handlers("/etc/containerd/config.toml", text)?;
/// assert_eq!(found["spin"].installer, LegacyInstaller::Rcm);
/// assert_eq!(found["spin"].dir, "/opt/rcm");
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is neither TOML nor a template, or has a value that is not a table where a handler should be.
pub fn legacy_handlers(path: &str, text: &str) -> Result<BTreeMap<String, LegacyHandler>, Error> {
    let mut found = BTreeMap::new();
    if !is_template(text) {
        collect(&Document::parse(path, text)?, &mut found)?;
        return Ok(found);
    }
    for stanza in stanzas(path, text)? {
        // A legacy installer appends whole tables, which can be parsed alone.
        if let Ok(document) = Document::parse(path, stanza) {
            collect(&document, &mut found)?;
        }
    }
    Ok(found)
}

fn collect(
    document: &Document<'_>,
    found: &mut BTreeMap<String, LegacyHandler>,
) -> Result<(), Error> {
    for plugin in PluginId::ALL {
        for (name, handler) in document.handlers(plugin)? {
            let Some(legacy) = legacy_handler(document, plugin, &name, &handler) else {
                continue;
            };
            match found.get_mut(&name) {
                // Newer releases read the table of the newer plugin id.
                Some(known) if known.path == legacy.path => {
                    known.plugins.push(plugin);
                    known.options = legacy.options;
                    known.marked |= legacy.marked;
                }
                Some(_) => {}
                None => {
                    found.insert(name, legacy);
                }
            }
        }
    }
    Ok(())
}

/// The handler as a legacy installer declared it; `None` where others declared it.
pub(super) fn legacy_handler(
    document: &Document<'_>,
    plugin: PluginId,
    name: &str,
    handler: &DeclaredHandler,
) -> Option<LegacyHandler> {
    let path = &handler.runtime_type;
    let (dir, file) = path.rsplit_once("/bin/")?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !file.starts_with(SHIM_PREFIX)
        || file.contains('/')
        || !dir.strip_prefix('/')?.split('/').all(plain)
    {
        return None;
    }
    let by_dir = if dir == RCM_DIR {
        Some(LegacyInstaller::Rcm)
    } else {
        KWASM_DIRS.contains(&dir).then_some(LegacyInstaller::Kwasm)
    };
    let by_comment = || {
        let lines = document.extents(plugin, &std::iter::once(name).collect());
        let (_, comment) = comment_above(document.text, lines.first()?.start)?;
        Some(if comment.starts_with(RCM_COMMENT) {
            LegacyInstaller::Rcm
        } else {
            LegacyInstaller::Kwasm
        })
    };
    Some(LegacyHandler {
        installer: by_dir.or_else(by_comment)?,
        plugins: vec![plugin],
        dir: dir.to_owned(),
        is_default_dir: by_dir.is_some(),
        path: path.clone(),
        options: handler.options.clone(),
        marked: handler.marked,
    })
}

/// A legacy installer's comment on the line above `start`, and the comment's start. A comment above Farrier's own comment belongs to a
/// removed table, and does not count.
fn comment_above(text: &str, start: usize) -> Option<(usize, &str)> {
    if text.get(start..)?.trim_start().starts_with(MARK) {
        return None;
    }
    let above = text.get(..start)?.strip_suffix('\n')?;
    let begin = above.rfind('\n').map_or(0, |newline| newline + 1);
    let comment = above[begin..].trim();
    [RCM_COMMENT, KWASM_COMMENT]
        .iter()
        .any(|known| comment.starts_with(known))
        .then_some((begin, comment))
}

/// Widens the sorted lines of handlers that are removed to all bytes that a legacy installer wrote with them.
pub(super) fn widen(text: &str, lines: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for range in lines {
        match ranges.last_mut() {
            Some(last) if last.end == range.start && is_next(text, last, &range) => {
                last.end = range.end;
            }
            _ => ranges.push(range),
        }
    }
    let mut leads = Vec::new();
    for range in &mut ranges {
        let lead = widen_one(text, range);
        leads.push(lead);
    }
    for index in 0..ranges.len() {
        let begin = ranges[index].start;
        if leads[index] && begin > 0 && is_needed(text, &ranges, index) {
            ranges[index].start += 1;
        }
    }
    ranges
}

/// Whether the lines belong to the lines before them: they are a key, a table below it, or KWasm's next table.
fn is_next(text: &str, before: &Range<usize>, lines: &Range<usize>) -> bool {
    let first = text[lines.clone()]
        .lines()
        .next()
        .unwrap_or_default()
        .trim();
    if !first.starts_with('[') {
        return !first.starts_with(MARK);
    }
    let stanza = &text[before.clone()];
    let mut tables = stanza
        .lines()
        .filter_map(|line| line.trim().strip_suffix(']'));
    let below = |table: &str| {
        first
            .strip_prefix(table)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    let names = |text: &str| text.lines().take(2).any(names_kwasm);
    let run = names(&text[lines.start..])
        && stanza.lines().any(names_kwasm)
        && !stanza.trim_start().starts_with(MARK)
        && comment_above(text, before.start).is_none();
    run || tables.any(below)
}

/// Whether a line names a shim of KWasm's.
fn names_kwasm(line: &str) -> bool {
    KWASM_DIRS
        .iter()
        .any(|dir| line.contains(&format!("\"{dir}/bin/")))
}

/// Widens the range to the comment, the line end before the comment, and the other bytes that came with the lines. Returns whether that
/// line end is among them.
fn widen_one(text: &str, range: &mut Range<usize>) -> bool {
    let comment = comment_above(text, range.start).map(|(begin, _)| begin);
    let after = &text[range.end..];
    if let Some(begin) = comment {
        range.start = begin;
        let options = text[range.clone()]
            .lines()
            .rfind(|line| line.trim_start().starts_with('['));
        if options.is_some_and(|header| header.trim_end().ends_with(".options]")) {
            // The installer writes no line end after the last option. An editor may have ended the file with one.
            let line = text[range.clone()].trim_end_matches(['\r', '\n']).len();
            if !(after.is_empty() && text[..begin].ends_with("\n\n")) {
                range.end = range.start + line;
            }
        }
    } else {
        let whole = text[range.clone()].lines().any(names_kwasm)
            && !text[range.clone()].trim_start().starts_with(MARK)
            && !text[..range.start]
                .lines()
                .next_back()
                .is_some_and(names_kwasm)
            && !after.lines().nth(1).is_some_and(names_kwasm);
        if !whole {
            return false;
        }
        // The empty line after the tables is KWasm's, unless runtime-class-manager appended it with its comment.
        if let Some(rest) = after.strip_prefix('\n')
            && !rest.starts_with(RCM_COMMENT)
        {
            range.end += 1;
        }
    }
    let lead = text[..range.start].ends_with('\n');
    range.start -= usize::from(lead);
    lead
}

/// Whether the line end at the start of a range has to stay, to separate the lines before the range from the lines after it.
fn is_needed(text: &str, ranges: &[Range<usize>], index: usize) -> bool {
    let mut end = ranges[index].end;
    for next in &ranges[index + 1..] {
        if next.start == end {
            end = next.end;
        }
    }
    let after = &text[end..];
    !text[..ranges[index].start].ends_with('\n')
        && !after.is_empty()
        && !after.starts_with(['\n', '\r'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rstest::rstest;

    use super::super::{ConfigFiles, ConfigTarget, Handler, SourceFile, config_target, edit};
    use super::*;

    const PATH: &str = "/etc/containerd/config.toml";
    const TABLE: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";

    fn placement() -> ConfigTarget {
        ConfigTarget {
            path: PATH.to_owned(),
            plugin: PluginId::GrpcV1Cri,
            version: Some(2),
            drop_in: false,
            must_declare_runc: false,
            runc_is_foreign: false,
            declared_in_other_files: BTreeSet::new(),
        }
    }

    fn rcm(handler: &str, options: &str) -> String {
        let table = format!("{TABLE}.{handler}");
        let options = if options.is_empty() {
            String::new()
        } else {
            format!("[{table}.options]{options}")
        };
        format!(
            "\n# RCM runtime config for {handler}\n[{table}]\nruntime_type = \"/opt/rcm/bin/containerd-shim-{handler}\"\n{options}"
        )
    }

    fn kwasm(handlers: &[&str]) -> String {
        let table = |name: &&str| {
            format!(
                "[{TABLE}.{name}]\n    runtime_type = \"/opt/kwasm/bin/containerd-shim-{name}-v1\"\n"
            )
        };
        let tables: Vec<String> = handlers.iter().map(table).collect();
        let tables = tables.concat();
        format!("\n{tables}\n")
    }

    fn without(text: &str, handlers: &[&str]) -> String {
        let managed = handlers.iter().map(|name| (*name).to_owned()).collect();
        let edited = edit(Some(text), &placement(), &managed, &[], None);
        edited.unwrap().unwrap_or_default()
    }

    #[rstest]
    #[case::no_line_end("version = 2")]
    #[case::line_end("version = 2\n")]
    #[case::empty_line("version = 2\n\n")]
    #[case::other_line_ends("version = 2\r\n")]
    fn removing_all_handlers_in_any_order_restores_the_first_bytes(#[case] base: &str) {
        let text = [
            base,
            &rcm("a", ""),
            &rcm("b", "\nx = 1\ny = \"z\""),
            &kwasm(&["k", "l"]),
            &rcm("c", "\nx = true"),
        ]
        .concat();
        for order in [
            ["a", "b", "c", "k", "l"],
            ["l", "k", "c", "b", "a"],
            ["k", "b", "l", "a", "c"],
            ["c", "a", "k", "l", "b"],
        ] {
            let mut left = text.clone();
            for name in order {
                left = without(&left, &[name]);
            }
            assert_eq!(left, base, "{order:?}");
        }
        assert_eq!(without(&text, &["a", "b", "c", "k", "l"]), base);
    }

    #[test]
    fn removing_one_of_several_handlers_leaves_the_text_as_without_it() {
        let base = "version = 2\n";
        let text = [
            base,
            &rcm("a", "\nx = 1"),
            &rcm("b", ""),
            &kwasm(&["k", "l"]),
        ]
        .concat();
        let kept = [base, &rcm("b", ""), &kwasm(&["k", "l"])].concat();
        assert_eq!(without(&text, &["a"]), kept);
        let kept = [base, &rcm("a", "\nx = 1"), &rcm("b", ""), &kwasm(&["l"])].concat();
        assert_eq!(without(&text, &["k"]), kept);
    }

    #[test]
    fn an_edited_table_is_removed_and_the_comments_around_it_stay() {
        let edited = rcm("a", "\nx = 1").replace("x = 1", "x = 2\nmore = [\"y\"]");
        let text = format!("version = 2\n# mine\n{edited}\n# mine, too\n[debug]\n");
        assert_eq!(
            without(&text, &["a"]),
            "version = 2\n# mine\n\n# mine, too\n[debug]\n"
        );
    }

    #[rstest]
    #[case::kwasm(KWASM_COMMENT)]
    #[case::rcm(RCM_COMMENT)]
    fn a_comment_whose_table_is_gone_stays_when_a_managed_handler_is_added_and_removed(
        #[case] comment: &str,
    ) {
        let text = format!("version = 2\n[{TABLE}.runc]\n{comment}b\n");
        let managed = Handler {
            name: "a".to_owned(),
            runtime_type: "/opt/farrier/bin/containerd-shim-a".to_owned(),
            options: BTreeMap::new(),
        };
        let none = BTreeSet::new();
        let added = edit(Some(&text), &placement(), &none, &[managed], None).unwrap();
        assert_eq!(without(&added.unwrap(), &["a"]), text);
    }

    #[rstest]
    #[case::kwasm("/opt/kwasm/bin/containerd-shim-a", "", Some(LegacyInstaller::Kwasm))]
    #[case::microk8s(
        "/var/snap/microk8s/common/kwasm/bin/containerd-shim-a",
        "",
        Some(LegacyInstaller::Kwasm)
    )]
    #[case::rcm("/opt/rcm/bin/containerd-shim-a", "", Some(LegacyInstaller::Rcm))]
    #[case::rcm_elsewhere(
        "/srv/x/bin/containerd-shim-a",
        "# RCM runtime config for a\n",
        Some(LegacyInstaller::Rcm)
    )]
    #[case::go_rewrite(
        "/srv/x/bin/containerd-shim-a",
        "# KWASM runtime config for a\n",
        Some(LegacyInstaller::Kwasm)
    )]
    #[case::managed_below_an_incomplete_legacy_table(
        "/opt/farrier/bin/containerd-shim-a",
        "# KWASM runtime config for b\n# farrier: managed\n",
        None
    )]
    #[case::foreign("/usr/local/bin/containerd-shim-a", "", None)]
    #[case::managed("/opt/farrier/bin/containerd-shim-a", "", None)]
    #[case::climbing(
        "/opt/rcm/../../bin/containerd-shim-a",
        "# RCM runtime config for a\n",
        None
    )]
    #[case::no_shim("/opt/kwasm/bin/crun", "", None)]
    #[case::deeper("/opt/kwasm/bin/x/containerd-shim-a", "", None)]
    #[case::by_name("io.containerd.spin.v2", "", None)]
    fn a_legacy_handler_is_recognised_by_its_path_or_its_comment(
        #[case] path: &str,
        #[case] comment: &str,
        #[case] whose: Option<LegacyInstaller>,
    ) {
        let text = format!("{comment}[{TABLE}.a]\nruntime_type = \"{path}\"\n");
        let found = legacy_handlers(PATH, &text).unwrap();
        assert_eq!(found.get("a").map(|found| found.installer), whose);
    }

    #[test]
    fn handlers_are_declared_in_the_file_of_the_legacy_handlers() {
        let placed = |text: String| {
            let root = SourceFile {
                path: PATH.to_owned(),
                text: Some(text),
            };
            let loaded = ConfigFiles {
                root,
                imported: Vec::new(),
            };
            config_target(&loaded, &"2.1.9".parse().unwrap())
                .unwrap()
                .drop_in
        };
        let root = "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        assert!(placed(root.to_owned()));
        assert!(!placed([root, &rcm("a", "")].concat()));
    }
}
