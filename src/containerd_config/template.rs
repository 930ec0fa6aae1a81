//! Reads a Go template, from which k3s and RKE2 render containerd's configuration. A template is no TOML until it is rendered.
//!
//! The lines between the template's actions are read one by one, and tables are recognised by their headers. The rendered text is not known
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::document::Document;
use super::error::Error;
use super::render::MARK;
use super::schema::PluginId;
use super::types::{DeclaredHandler, Handler, TEXT_LIMIT};

/// Whether the text has actions of a Go template. A text without actions is TOML.
///
/// ```
/// use farrier::containerd_config::is_template;
///
/// assert!(is_template("{{ template \"base\" . }}\n"));
/// assert!(!is_template("version = 3\n"));
/// ```
#[must_use]
pub fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// The lines of each handler in a template without actions among its lines, with the comment line above them.
///
/// # Errors
/// When the text is too long or has an action without an end.
pub(super) fn stanzas<'a>(path: &str, text: &'a str) -> Result<Vec<&'a str>, Error> {
    let template = Template::scan(path, text)?;
    let whole = template.stanzas.iter().filter(|stanza| !stanza.split);
    let lines = whole.filter_map(|stanza| {
        let above = text.get(..stanza.lines.start)?.trim_end_matches('\n');
        let line = above.rfind('\n').map_or(0, |newline| newline + 1);
        let is_comment = above.len() + 1 == stanza.lines.start && above[line..].starts_with('#');
        let start = if is_comment { line } else { stanza.lines.start };
        text.get(start..stanza.lines.end)
    });
    Ok(lines.collect())
}

/// The handlers that others declare in the template `text` in the plugin's table; none where an action of the template may leave lines out.
///
/// ```
/// use farrier::containerd_config::{PluginId, template_handlers};
///
/// let kata = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = '/kata'\n";
/// let text = format!("{{{{ template \"base\" . }}}}\n{kata}");
/// let found = template_handlers(&text, PluginId::CriV1Runtime);
/// assert_eq!(found["kata"].runtime_type, "/kata");
///
/// let text = format!("{{{{ if .X }}}}\n{kata}{{{{ end }}}}\n");
/// assert!(template_handlers(&text, PluginId::CriV1Runtime).is_empty());
/// ```
#[must_use]
pub fn template_handlers(text: &str, plugin: PluginId) -> BTreeMap<String, DeclaredHandler> {
    // The actions that may leave lines out (Go's text/template, *Actions*).
    let choose = ["block", "define", "if", "range", "with"];
    let mut actions = text.split("{{").skip(1);
    let chooses = actions.any(|action| {
        let words = action.strip_prefix('-').unwrap_or(action).trim_start();
        let word = words.split(|letter: char| !letter.is_ascii_alphabetic());
        word.take(1).any(|word| choose.contains(&word))
    });
    let Some(template) = Template::scan("", text).ok().filter(|_| !chooses) else {
        return BTreeMap::new();
    };
    let others = template.stanzas.iter().filter(|stanza| !stanza.marked);
    others
        .filter_map(|stanza| Some((stanza.handler.clone(), template.declared(stanza, plugin)?)))
        .collect()
}

/// All handlers in the plugin's table of the template `path`, Farrier's and others', without actions among their lines.
///
/// # Errors
/// When the text is too long or has an action without an end.
pub(super) fn all_template_handlers(
    path: &str,
    text: &str,
    plugin: PluginId,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    let template = Template::scan(path, text)?;
    let whole = template.stanzas.iter().filter(|stanza| !stanza.split);
    let declared = whole.filter_map(|stanza| {
        let mut declared = template.declared(stanza, plugin)?;
        declared.marked = stanza.marked;
        Some((stanza.handler.clone(), declared))
    });
    Ok(declared.collect())
}

/// The lines of one handler, from its first header, or Farrier's comment above it, to its last key.
pub(super) struct Stanza {
    pub(super) handler: String,
    pub(super) lines: Range<usize>,
    /// The offset of the first header.
    header: usize,
    /// Whether Farrier's comment is above it.
    pub(super) marked: bool,
    /// Whether an action is among its lines.
    pub(super) split: bool,
}

/// A template and the handlers that it declares under headers of their own.
pub(super) struct Template<'a> {
    text: &'a str,
    pub(super) stanzas: Vec<Stanza>,
}

impl<'a> Template<'a> {
    pub(super) fn scan(path: &str, text: &'a str) -> Result<Self, Error> {
        if text.len() > TEXT_LIMIT {
            return Err(Error::Long {
                path: path.to_owned(),
            });
        }
        // An added line end would complete the half one, and removing the handler could not restore it.
        if text.ends_with('\r') {
            return Err(Error::Syntax {
                path: path.to_owned(),
                reason: "it ends with a carriage return alone".to_owned(),
            });
        }
        let plain = without_actions(text).ok_or_else(|| Error::Syntax {
            path: path.to_owned(),
            reason: "a template action has no end".to_owned(),
        })?;
        let mut stanzas: Vec<Stanza> = Vec::new();
        // Whether the next lines belong to the last stanza, and whether an action was seen since its last line.
        let (mut open, mut action) = (false, false);
        let mut above = None;
        let mut start = 0;
        for line in plain.split_inclusive('\n') {
            let lines = start..start + line.len();
            let has_action = text[lines.clone()] != *line;
            let words = line.trim();
            start = lines.end;
            if words.is_empty() || words.starts_with('#') {
                action |= has_action;
                above = (!has_action && words.starts_with(MARK)).then_some(lines.start);
                continue;
            }
            let mark = above.take();
            if words.starts_with('[') {
                let handler = handler_of(words);
                let last = stanzas.last_mut().filter(|last| {
                    open && mark.is_none() && Some(&last.handler) == handler.as_ref()
                });
                open = handler.is_some();
                match (handler, last) {
                    (None, _) => {}
                    (Some(_), Some(last)) => {
                        last.lines.end = lines.end;
                        last.split |= action || has_action;
                    }
                    (Some(handler), None) => stanzas.push(Stanza {
                        handler,
                        lines: mark.unwrap_or(lines.start)..lines.end,
                        header: lines.start,
                        marked: mark.is_some(),
                        split: has_action,
                    }),
                }
            } else if open && let Some(last) = stanzas.last_mut() {
                last.lines.end = lines.end;
                last.split |= action || has_action;
            }
            action = false;
        }
        Ok(Self { text, stanzas })
    }

    /// Whether the template declares exactly `desired_by_name` among the managed handlers.
    pub(super) fn declares_exactly(
        &self,
        plugin: PluginId,
        managed: &BTreeSet<String>,
        desired_by_name: &BTreeMap<&str, &Handler>,
    ) -> bool {
        let named = |name: &str| {
            self.stanzas
                .iter()
                .filter(move |stanza| stanza.handler == name)
                .count()
        };
        desired_by_name.keys().all(|name| named(name) == 1)
            && self.stanzas.iter().all(|stanza| {
                if desired_by_name.contains_key(stanza.handler.as_str()) {
                    self.is_as_desired(stanza, plugin, desired_by_name)
                } else {
                    !managed.contains(&stanza.handler)
                }
            })
    }

    pub(super) fn is_as_desired(
        &self,
        stanza: &Stanza,
        plugin: PluginId,
        desired_by_name: &BTreeMap<&str, &Handler>,
    ) -> bool {
        !stanza.split
            && desired_by_name
                .get(stanza.handler.as_str())
                .is_some_and(|desired| {
                    self.declared(stanza, plugin)
                        .is_some_and(|it| it.declares(desired))
                })
    }

    fn declared(&self, stanza: &Stanza, plugin: PluginId) -> Option<DeclaredHandler> {
        let text = self.text.get(stanza.header..stanza.lines.end)?;
        let mut handlers = Document::parse("", text).ok()?.handlers(plugin).ok()?;
        handlers.remove(&stanza.handler)
    }
}

/// The handler of the table that the header opens.
fn handler_of(header: &str) -> Option<String> {
    let document = Document::parse("", header).ok()?;
    PluginId::ALL
        .into_iter()
        .filter_map(|plugin| document.handlers(plugin).ok())
        .find_map(|handlers| handlers.into_keys().next())
}

/// The text with a blank for each byte of an action; `None` where an action has no end.
///
/// By Go's rules (`text/template`, *Actions*) a comment ends at `*/`, and a quoted string may have the characters that end an action.
fn without_actions(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        let (before, action) = rest.split_at(at);
        plain.push_str(before);
        let end = end_of_action(action)?;
        let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
        plain.extend(action.bytes().take(end).map(blank));
        rest = action.get(end..)?;
    }
    plain.push_str(rest);
    Some(plain)
}

/// The length of the action at the start of the text.
fn end_of_action(action: &str) -> Option<usize> {
    let inner = action.strip_prefix("{{")?;
    let trimmed = inner.strip_prefix("- ").unwrap_or(inner).trim_start();
    if let Some(comment) = trimmed.strip_prefix("/*") {
        let after = comment.find("*/").map(|at| &comment[at + 2..])?;
        return after
            .find("}}")
            .map(|at| action.len() - after.len() + at + 2);
    }
    let mut quote = None;
    let mut escaped = false;
    let bytes = action.as_bytes();
    for (index, &byte) in bytes.iter().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(b'"' | b'\'') if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            None if matches!(byte, b'"' | b'\'' | b'`') => quote = Some(byte),
            None if byte == b'}' && bytes.get(index + 1) == Some(&b'}') => {
                return Some(index + 2);
            }
            Some(_) | None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::render::HANDLER_MARK;
    use super::*;

    #[rstest]
    #[case::beside_the_base("{{ template \"base\" . }}\n", &["kata"])]
    #[case::beside_a_value("root = {{ .Root }}\n{{- /* if so */ -}}\n", &["kata"])]
    #[case::beside_a_choice("{{- if .X }}\n{{ end }}\n", &[])]
    #[case::in_a_loop("{{range .X}}\n{{ end }}\n", &[])]
    #[case::beside_half_an_action("{{ template", &[])]
    fn a_handler_that_is_always_rendered_is_found(#[case] text: &str, #[case] expected: &[&str]) {
        let header = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
        let text =
            format!("{text}{header}.kata]\n{HANDLER_MARK}\n{header}.a]\nruntime_type = 'x'\n");
        let found = template_handlers(&text, PluginId::CriV1Runtime);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected);
        assert!(template_handlers(&text, PluginId::GrpcV1Cri).is_empty());
    }
}
