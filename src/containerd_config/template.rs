//! Reads a Go template, from which k3s and RKE2 render containerd's configuration. A template is no TOML until it is rendered.
//!
//! The lines between the template's actions are read one by one, and tables are recognised by their headers. The rendered text is not known
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::document::Document;
use super::error::Error;
use super::render::{GUARD, GUARD_END, MARK, guard};
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
    // The actions that may leave lines out (Go's text/template, *Actions*). Those of Farrier leave out its own lines alone.
    let chooses = actions(text).is_none_or(|actions| {
        let mut others = actions.iter().filter(|action| !action.starts_with(GUARD));
        others.any(|action| first_word(action).is_some_and(|word| OPENING.contains(&word)))
    });
    let Some(template) = Template::scan("", text).ok().filter(|_| !chooses) else {
        return BTreeMap::new();
    };
    let others = template.stanzas.iter().filter(|stanza| !stanza.marked);
    others
        .filter_map(|stanza| Some((stanza.handler.clone(), template.declared(stanza, plugin)?)))
        .collect()
}

/// Whether the template also declares the runtimes that the distribution finds by itself, in its own lines or by including the base.
///
/// k3s and RKE2 pass these runtimes as `.ExtraRuntimes`, a map from the handler's name to a `RuntimeType` and a `BinaryName`, and the base
/// template declares each of them (k3s, `pkg/agent/templates/templates.go` and `templates_linux.go`, in all releases that have a base).
pub(super) fn declares_found_runtimes(text: &str) -> bool {
    let actions = actions(text).unwrap_or_default();
    let mut others = actions.iter().filter(|action| !action.starts_with(GUARD));
    others.any(|action| {
        let includes = matches!(first_word(action), Some("template" | "block"));
        let names_base = ["\"base\"", "`base`"]
            .iter()
            .any(|name| action.contains(name));
        let is_comment = words_of(action).starts_with("/*");
        !is_comment && (includes && names_base || action.contains(".ExtraRuntimes"))
    })
}

/// The handlers that Farrier and another one declare in the file, by name. Such a text is no TOML: two headers are equal. The text may be a
/// template or rendered from one.
///
/// ```
/// use farrier::containerd_config::handlers_declared_twice;
///
/// let header = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.spin]";
/// let found = format!("{header}\nruntime_type = 'io.containerd.spin.v2'\n");
/// let managed = format!("# farrier: managed handler; change its Shim or run farrier install instead\n{header}\nruntime_type = '/x'\n");
/// assert_eq!(handlers_declared_twice(&format!("{found}{managed}")), ["spin"]);
/// assert!(handlers_declared_twice(&found).is_empty());
/// ```
#[must_use]
pub fn handlers_declared_twice(text: &str) -> Vec<String> {
    let Ok(template) = Template::scan("", text) else {
        return Vec::new();
    };
    let managed = template.stanzas.iter().filter(|stanza| stanza.marked);
    let twice: BTreeSet<&String> = managed
        .map(|stanza| &stanza.handler)
        .filter(|name| template.is_declared_by_others(name))
        .collect();
    twice.into_iter().cloned().collect()
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
    let mut all = BTreeMap::new();
    for stanza in whole {
        if let Some(mut declared) = template.declared(stanza, plugin) {
            declared.marked = stanza.marked;
            // Of two declarations, the other one is not Farrier's.
            let known: &mut DeclaredHandler = all.entry(stanza.handler.clone()).or_default();
            if !known.marked {
                *known = declared;
            }
        }
    }
    Ok(all)
}

/// The lines of one handler, from its first header, or Farrier's comment above it, to its last key.
pub(super) struct Stanza {
    pub(super) handler: String,
    pub(super) lines: Range<usize>,
    /// The offset of the first header.
    header: usize,
    /// Whether Farrier's comment is above it.
    pub(super) marked: bool,
    /// Whether Farrier's action leaves it out where the distribution finds a runtime of this name.
    pub(super) guarded: bool,
    /// Whether an action of others is among its lines.
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
        // The start of Farrier's comment on the lines above, and the handler of its action below that.
        let (mut above, mut guard_above) = (None, None);
        // Whether the end of Farrier's action is missing, and whether it was the last line.
        let (mut guard_open, mut is_complete) = (false, false);
        let mut start = 0;
        for line in plain.split_inclusive('\n') {
            let lines = start..start + line.len();
            let original = text[lines.clone()].trim();
            let has_action = text[lines.clone()] != *line;
            let words = line.trim();
            start = lines.end;
            if above.is_some() && original.starts_with(GUARD) {
                guard_above = Some(original);
                continue;
            }
            if guard_open && !action && original == GUARD_END {
                if let Some(last) = stanzas.last_mut() {
                    last.lines.end = lines.end;
                }
                (guard_open, is_complete) = (false, true);
                continue;
            }
            if words.is_empty() || words.starts_with('#') {
                action |= has_action;
                above = (!has_action && words.starts_with(MARK)).then_some(lines.start);
                guard_above = None;
                continue;
            }
            let (mark, guarding) = (above.take(), guard_above.take());
            if words.starts_with('[') {
                let handler = handler_of(words);
                let continues = open
                    && mark.is_none()
                    && !is_complete
                    && stanzas.last().map(|last| &last.handler) == handler.as_ref();
                let last = stanzas.last_mut();
                let last = if guard_open && !continues {
                    // The end of Farrier's action was removed or moved.
                    guard_open = false;
                    if let Some(last) = last {
                        last.split = true;
                    }
                    None
                } else {
                    last.filter(|_| continues)
                };
                (open, is_complete) = (handler.is_some(), false);
                match (handler, last) {
                    (None, _) => {}
                    (Some(_), Some(last)) => {
                        last.lines.end = lines.end;
                        last.split |= action || has_action;
                    }
                    (Some(handler), None) => {
                        guard_open = guarding.is_some();
                        let guarded = guarding == Some(guard(&handler).as_str());
                        stanzas.push(Stanza {
                            lines: mark.unwrap_or(lines.start)..lines.end,
                            header: lines.start,
                            marked: mark.is_some(),
                            guarded,
                            split: has_action || guarded != guard_open,
                            handler,
                        });
                    }
                }
            } else if open && let Some(last) = stanzas.last_mut() {
                last.lines.end = lines.end;
                last.split |= action || has_action;
            }
            action = false;
        }
        if guard_open && let Some(last) = stanzas.last_mut() {
            last.split = true;
        }
        Ok(Self { text, stanzas })
    }

    /// The lines to remove with `stanza`; `None` where the text without them would be another template. Actions among the lines of Farrier's
    /// stanza are removed with it, as long as they begin and end there.
    pub(super) fn removable_lines(&self, stanza: &Stanza) -> Option<Range<usize>> {
        let Range { start, mut end } = stanza.lines;
        if !stanza.split {
            return Some(start..end);
        }
        if !stanza.marked {
            return None;
        }
        let mut depth = 0_usize;
        let ranges = action_ranges(self.text)?.into_iter();
        for range in ranges.skip_while(|range| range.start < start) {
            if range.start >= end {
                // The stanza ends at its last key, and the end of a block may be on the next line.
                let between = self.text.get(end..range.start)?;
                if depth == 0 || !between.trim().is_empty() {
                    break;
                }
            }
            let action = self.text.get(range.clone())?;
            // Lines after the stanza may use a variable.
            if action.contains(":=") {
                return None;
            }
            match first_word(action)? {
                "end" => depth = depth.checked_sub(1)?,
                "else" if depth == 0 => return None,
                word if OPENING.contains(&word) => depth += 1,
                _ => {}
            }
            if range.end > end {
                let line = self.text.get(range.end..)?;
                let length = line.find('\n').map_or(line.len(), |newline| newline + 1);
                if !line.get(..length)?.trim().is_empty() {
                    return None;
                }
                end = range.end + length;
            }
        }
        (depth == 0).then_some(start..end)
    }

    /// Whether a stanza of this handler is not Farrier's, because another one is.
    fn is_declared_by_others(&self, handler: &str) -> bool {
        let named = || {
            self.stanzas
                .iter()
                .filter(|stanza| stanza.handler == handler)
        };
        named().any(|stanza| stanza.marked) && named().any(|stanza| !stanza.marked)
    }

    /// Whether `stanza` is that of a managed handler. Beside a stanza under Farrier's comment, one without the comment is of others.
    pub(super) fn is_managed(&self, stanza: &Stanza, managed: &BTreeSet<String>) -> bool {
        managed.contains(&stanza.handler)
            && (stanza.marked || !self.is_declared_by_others(&stanza.handler))
    }

    /// Whether the template declares exactly `desired_by_name` among the managed handlers; with `guarded`, those under Farrier's comment
    /// have its action.
    pub(super) fn declares_exactly(
        &self,
        plugin: PluginId,
        managed: &BTreeSet<String>,
        desired_by_name: &BTreeMap<&str, &Handler>,
        guarded: bool,
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
                    self.is_as_desired(stanza, plugin, desired_by_name, guarded)
                } else {
                    !self.is_managed(stanza, managed)
                }
            })
    }

    pub(super) fn is_as_desired(
        &self,
        stanza: &Stanza,
        plugin: PluginId,
        desired_by_name: &BTreeMap<&str, &Handler>,
        guarded: bool,
    ) -> bool {
        !stanza.split
            && (!stanza.marked || stanza.guarded == guarded)
            && desired_by_name
                .get(stanza.handler.as_str())
                .is_some_and(|desired| {
                    self.declared(stanza, plugin)
                        .is_some_and(|it| it.declares(desired))
                })
    }

    fn declared(&self, stanza: &Stanza, plugin: PluginId) -> Option<DeclaredHandler> {
        let text = self.text.get(stanza.header..stanza.lines.end)?;
        let text = if stanza.guarded {
            let text = text.trim_end();
            text.strip_suffix(GUARD_END).unwrap_or(text)
        } else {
            text
        };
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

/// All actions of a text, with their braces; `None` where an action has no end.
fn actions(text: &str) -> Option<Vec<&str>> {
    let ranges = action_ranges(text)?.into_iter();
    ranges.map(|range| text.get(range)).collect()
}

/// The bytes of all actions of a text; `None` where an action has no end.
fn action_ranges(text: &str) -> Option<Vec<Range<usize>>> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(at) = text.get(from..)?.find("{{") {
        let start = from + at;
        from = start + end_of_action(text.get(start..)?)?;
        found.push(start..from);
    }
    Some(found)
}

/// The actions that begin a block, which `end` ends (Go's text/template, *Actions*).
const OPENING: [&str; 5] = ["block", "define", "if", "range", "with"];

/// Why a Go template can't be parsed, as far as its actions alone show; `None` where they fit together.
///
/// ```
/// use farrier::containerd_config::template_fault;
///
/// assert_eq!(template_fault("{{ if .X }}a{{ end }}"), None);
/// assert_eq!(template_fault("{{ if .X }}a"), Some("a block of an action has no end"));
/// ```
#[must_use]
pub fn template_fault(text: &str) -> Option<&'static str> {
    let Some(actions) = actions(text) else {
        return Some("an action has no end");
    };
    let mut depth = 0_usize;
    for action in actions {
        match first_word(action) {
            Some("end") if depth == 0 => return Some("an `end` ends no block"),
            Some("else") if depth == 0 => return Some("an `else` is in no block"),
            Some("end") => depth -= 1,
            Some(word) if OPENING.contains(&word) => depth += 1,
            Some(_) | None => {}
        }
    }
    (depth > 0).then_some("a block of an action has no end")
}

/// The text with two braces in a row taken apart: in a template, they would begin an action, in a comment as well.
pub(super) fn without_braces(text: &str) -> String {
    let mut apart = String::with_capacity(text.len());
    for char in text.chars() {
        if char == '{' && apart.ends_with('{') {
            apart.push(' ');
        }
        apart.push(char);
    }
    apart
}

/// An action without its opening braces and the blanks behind them.
fn words_of(action: &str) -> &str {
    let inner = action.strip_prefix("{{").unwrap_or(action);
    inner.strip_prefix('-').unwrap_or(inner).trim_start()
}

fn first_word(action: &str) -> Option<&str> {
    words_of(action)
        .split(|letter: char| !letter.is_ascii_alphabetic())
        .next()
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
