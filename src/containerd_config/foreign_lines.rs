//! Finds the lines that others added to Farrier's tables, or changed in them, and keeps them as comments.
//!
//! Farrier removes and writes only whole tables. A line of a person among its lines would be lost with the table, and could not stay in
//! force without it.

use std::collections::BTreeSet;

use super::document::Document;
use super::error::Error;
use super::legacy::legacy_handler;
use super::render::{GUARD_END, HANDLER_MARK, MARK, block, cut, guard, newline_of};
use super::schema::PluginId;
use super::template::{Template, is_template, without_braces};
use super::types::{DeclaredHandler, Handler};

/// The tables of the handlers `written` in which others added or changed lines, as comments; empty where all are as Farrier wrote them.
///
/// `text` is the text of the file `path` before an edit, which is TOML or a Go template. A caller appends the comments to the text after the
/// edit, if the edit changes the text.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use farrier::containerd_config::{Handler, foreign_lines};
///
/// let spin = Handler {
///     name: "spin".to_owned(),
///     runtime_type: "/opt/farrier/bin/containerd-shim-spin".to_owned(),
///     options: BTreeMap::new(),
/// };
/// let text = "version = 2
/// ## farrier: managed handler; change its Shim or run farrier install instead
/// [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.spin]
/// runtime_type = \"/opt/farrier/bin/containerd-shim-spin\"
/// ";
/// let path = "/etc/containerd/config.toml";
/// assert_eq!(foreign_lines(path, text, std::slice::from_ref(&spin))?, "");
/// let text = format!("{text}snapshotter = \"mine\"\n");
/// assert!(foreign_lines(path, &text, &[spin])?.ends_with("\n# snapshotter = \"mine\"\n"));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the text is neither TOML nor a template, or has a value that is not a table where a handler should be.
pub fn foreign_lines(path: &str, text: &str, written: &[Handler]) -> Result<String, Error> {
    let newline = newline_of(text);
    let mut comments = String::new();
    let mut keep = |handler: &Handler, lines: &[&str]| {
        let name = &handler.name;
        comments.extend([
            "# Farrier has removed or rewritten handler ",
            name,
            ", in whose lines others had made changes:",
            newline,
        ]);
        let lines = lines.iter().filter(|line| !is_own_line(name, line));
        comments.extend(lines.map(|line| format!("# {}{newline}", without_braces(line))));
    };
    if is_template(text) {
        let template = Template::scan(path, text)?;
        for stanza in template.stanzas.iter().filter(|stanza| stanza.marked) {
            let handler = written.iter().find(|it| it.name == stanza.handler);
            let lines = template.removable_lines(stanza);
            if let Some((handler, lines)) = handler.zip(lines) {
                let lines: Vec<&str> = text[lines].lines().collect();
                let mut plugins = PluginId::ALL.into_iter();
                if plugins.all(|plugin| has_others(plugin, handler, &lines)) {
                    keep(handler, &lines);
                }
            }
        }
        return Ok(comments);
    }
    let document = Document::parse(path, text)?;
    for plugin in PluginId::ALL {
        let declared = document.handlers(plugin)?;
        for handler in written {
            let Some(found) = declared.get(&handler.name) else {
                continue;
            };
            let lines = document.extents(plugin, &BTreeSet::from([handler.name.as_str()]));
            let lines = lines.into_iter();
            let lines: Vec<&str> = lines
                .flat_map(|range| document.text[range].lines())
                .collect();
            let has_others = if found.marked {
                has_others(plugin, handler, &lines)
            } else {
                // Others have written the table in another notation, or a legacy installer wrote it.
                found.runtime_type == handler.runtime_type
                    && legacy_handler(&document, plugin, &handler.name, found).is_none()
                    && has_other_values(handler, found)
            };
            if has_others {
                keep(handler, &lines);
            }
        }
    }
    Ok(comments)
}

/// The text of the file `path` without Farrier's comments above the handlers `names`, which others have made their own. A template is
/// returned unchanged.
///
/// # Errors
/// As of [`foreign_lines`].
pub fn without_marks(
    path: &str,
    text: &str,
    plugin: PluginId,
    names: &BTreeSet<String>,
) -> Result<String, Error> {
    if names.is_empty() || is_template(text) {
        return Ok(text.to_owned());
    }
    let document = Document::parse(path, text)?;
    let declared = document.handlers(plugin)?;
    let marked = names
        .iter()
        .filter(|name| declared.get(*name).is_some_and(|found| found.marked));
    let mut marks = Vec::new();
    for name in marked {
        let lines = document.extents(plugin, &BTreeSet::from([name.as_str()]));
        let marked = lines
            .into_iter()
            .find(|range| document.text[range.clone()].trim_start().starts_with(MARK));
        marks.extend(marked.map(|range| {
            let line = document.text[range.clone()].find('\n');
            range.start..line.map_or(range.end, |newline| range.start + newline + 1)
        }));
    }
    marks.sort_by_key(|range| range.start);
    let mark = if document.byte_order_mark {
        "\u{feff}"
    } else {
        ""
    };
    Ok(format!("{mark}{}", cut(document.text, &marks)))
}

/// Whether one of the lines is not a line that Farrier writes for `handler`.
fn has_others(plugin: PluginId, handler: &Handler, lines: &[&str]) -> bool {
    let written = block(HANDLER_MARK, "\n", &plugin.runtimes(), handler);
    lines.iter().any(|line| {
        let is_written = written.lines().any(|own| own == *line);
        !is_written && !line.trim().is_empty() && !is_own_line(&handler.name, line)
    })
}

/// Whether Farrier writes this line around the table of `handler`: its comment, or the action of a template, which a comment does not disable.
fn is_own_line(handler: &str, line: &str) -> bool {
    let line = line.trim();
    line.starts_with(MARK) || line == guard(handler) || line == GUARD_END
}

/// Whether a handler with Farrier's path has a setting that Farrier did not write.
fn has_other_values(handler: &Handler, found: &DeclaredHandler) -> bool {
    let mut options = found.options.iter();
    found.has_other_settings
        || options.any(|(name, value)| handler.options.get(name) != Some(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::super::Value;
    use super::super::render::guarded_block;
    use super::*;

    const PATH: &str = "/etc/containerd/config.toml";
    const HEADER: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a";

    fn handler() -> Handler {
        Handler {
            name: "a".to_owned(),
            runtime_type: "/opt/a".to_owned(),
            options: BTreeMap::from([("X".to_owned(), Value::Boolean(true))]),
        }
    }

    fn ours() -> String {
        block(
            HANDLER_MARK,
            "\n",
            &PluginId::GrpcV1Cri.runtimes(),
            &handler(),
        )
    }

    /// As [`ours`], giving way to a runtime that the distribution finds.
    fn guarded() -> String {
        let path = PluginId::GrpcV1Cri.runtimes();
        guarded_block(HANDLER_MARK, "\n", &path, &handler())
    }

    fn kept(text: &str) -> Vec<String> {
        let comments = foreign_lines(PATH, text, &[handler()]).unwrap();
        let lines = comments.lines().skip(1);
        lines.map(|line| line[2..].to_owned()).collect()
    }

    #[rstest]
    #[case::alone(ours())]
    #[case::among_others(format!("version = 2\n{}# mine\n[metrics]\n", ours()))]
    #[case::with_windows_line_ends(ours().replace('\n', "\r\n"))]
    #[case::without_its_options(ours().split_inclusive('\n').take(3).collect())]
    #[case::in_another_notation("plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a = { runtime_type = '/opt/a', options = { X = true } }\n".to_owned())]
    #[case::in_a_template(format!("{{{{ template \"base\" . }}}}\n{}", ours()))]
    #[case::guarded_in_a_template(format!("{{{{ template \"base\" . }}}}\n{}", guarded()))]
    #[case::with_a_comment_above(format!("# mine\n{}", ours()))]
    #[case::of_others("[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.b]\nx = 1\n".to_owned())]
    fn a_table_as_farrier_wrote_it_is_not_kept(#[case] text: String) {
        assert_eq!(kept(&text), Vec::<String>::new());
    }

    #[rstest]
    #[case::a_key("snapshotter = 'x'\n")]
    #[case::an_option("Y = 2 # mine\n")]
    #[case::a_table_below(&format!("{HEADER}.more]\nz = 1\n"))]
    fn lines_that_others_added_are_kept_with_their_table(
        #[case] added: &str,
        #[values("", "{{ template \"base\" . }}\n")] before: &str,
    ) {
        let kept = kept(&format!("{before}{}{added}", ours()));
        assert_eq!(kept.first().unwrap(), &format!("{HEADER}]"));
        for line in added.lines() {
            assert!(kept.iter().any(|kept| kept == line), "{kept:?}");
        }
    }

    #[test]
    fn no_action_of_a_template_is_kept_in_a_comment() {
        let guarded = guarded().replace(GUARD_END, &format!("Y = 2\n{GUARD_END}"));
        let kept = kept(&format!("{{{{ template \"base\" . }}}}\n{guarded}"));
        assert!(kept.iter().any(|line| line == "Y = 2"), "{kept:?}");
        assert!(!kept.iter().any(|line| line.contains("{{")), "{kept:?}");
    }

    #[rstest]
    #[case::a_comment_behind_a_value(
        "runtime_type = \"/opt/a\"",
        "runtime_type = \"/opt/a\" # mine"
    )]
    #[case::another_path("\"/opt/a\"", "\"/opt/mine\"")]
    #[case::another_option("X = true", "X = false")]
    fn a_line_that_others_changed_is_kept(#[case] from: &str, #[case] to: &str) {
        let kept = kept(&ours().replace(from, to));
        assert!(kept.iter().any(|line| line.contains(to)), "{kept:?}");
    }

    #[rstest]
    #[case::inline(
        "plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.a = { runtime_type = '/opt/a', snapshotter = 'x' }\n"
    )]
    #[case::dotted(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nruntimes.a.runtime_type = '/opt/a'\nruntimes.a.options.Y = 1\n"
    )]
    fn values_that_others_added_in_another_notation_are_kept(#[case] text: &str) {
        assert!(!kept(text).is_empty());
    }

    #[test]
    fn the_comment_above_a_handler_of_others_is_removed_and_nothing_else() {
        let text = format!("# mine\n{}Y = 1\n", ours());
        let names = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let left = without_marks(PATH, &text, PluginId::GrpcV1Cri, &names).unwrap();
        assert_eq!(left, text.replace(&format!("{HANDLER_MARK}\n"), ""));
        let again = without_marks(PATH, &left, PluginId::GrpcV1Cri, &names).unwrap();
        assert_eq!(again, left);
    }
}
