//! Writes handlers as TOML, with the comments by which Farrier recognises its own lines, and cuts lines out again.
//!
//! The output is TOML 1.0, which every release reads. No name or value can end its string and add other settings.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Value;

use super::error::Error;
use super::types::{Handler, RUNC};

/// The prefix of every comment of Farrier. The comment marks the table or the key on the next line.
pub(super) const MARK: &str = "# farrier:";

/// Comment above each handler.
pub(super) const HANDLER_MARK: &str =
    "# farrier: managed handler; change its Shim or run farrier install instead";

/// Comment above the first handler where the text before had no line end. Removing the handler removes the added line end, too.
pub(super) const JOINED_MARK: &str = "# farrier: managed handler; change its Shim or run farrier install instead (the line above had no line end)";

/// The end of [`JOINED_MARK`].
const JOINED: &str = "(the line above had no line end)";

/// The start of the action below the comment of each handler in a template that declares the runtimes which the distribution finds: two
/// tables of one name are no TOML.
pub(super) const GUARD: &str = "{{ if not (index .ExtraRuntimes ";

/// The end of that action, below the handler.
pub(super) const GUARD_END: &str = "{{ end }}";

/// Comment above the `runc` that has to be declared beside other handlers on containerd 1.x.
pub(super) const RUNC_MARK: &str =
    "# farrier: containerd's default runtime, which other handlers would hide";

/// Comment at the start of a file with that `runc` in an inline table, where no comment can be above it.
pub(super) const BRACES_MARK: &str = "# farrier: containerd's default runtime, which other handlers would hide, stands between the braces";

/// Comment above a `version` that Farrier added to a file.
pub(super) const VERSION_MARK: &str = "# farrier: the schema of the managed handlers";

/// As [`VERSION_MARK`], in a file that imported others before. Without the version it is as it was.
pub(super) const IMPORTING_MARK: &str =
    "# farrier: the schema of the managed handlers, in a file that imported others before";

/// Comment above the `version` of a file that Farrier created.
pub(super) const CREATED_MARK: &str =
    "# farrier: this file is managed and leaves with its last handler";

/// The line end of a text's first line.
pub(super) fn newline_of(text: &str) -> &'static str {
    match text.split_once('\n') {
        Some((line, _)) if line.ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// A handler under a header of its own.
pub(super) fn block(mark: &str, newline: &str, path: &[&str], handler: &Handler) -> String {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let header = keys.join(".");
    let mut lines = vec![
        mark.to_owned(),
        format!("[{header}]"),
        format!("runtime_type = {}", quoted(&handler.runtime_type)),
    ];
    if !handler.options.is_empty() {
        lines.push(format!("[{header}.options]"));
        lines.extend(options(handler));
    }
    lines
        .iter()
        .flat_map(|line| [line.as_str(), newline])
        .collect()
}

/// The action that leaves the lines up to [`GUARD_END`] out where the distribution finds a runtime of this name. For an absent name, `index`
/// returns the zero value of the map's type (Go's text/template, *Functions*), whose `BinaryName` is empty.
pub(super) fn guard(name: &str) -> String {
    format!("{GUARD}{}).BinaryName }}}}", quoted(name))
}

/// A handler as in [`block`], which gives way to a runtime of the same name that the distribution finds.
pub(super) fn guarded_block(mark: &str, newline: &str, path: &[&str], handler: &Handler) -> String {
    let block = block("", newline, path, handler);
    let guard = guard(&handler.name);
    format!("{mark}{newline}{guard}{block}{GUARD_END}{newline}")
}

/// The options as `key = value`.
fn options(handler: &Handler) -> Vec<String> {
    let options = handler.options.iter();
    options.map(|(name, value)| entry(name, value)).collect()
}

fn entry(name: &str, value: &Value) -> String {
    format!("{} = {}", key(name), literal(value))
}

/// A value on one line.
fn literal(value: &Value) -> String {
    match value {
        Value::Boolean(value) => value.to_string(),
        Value::Integer(number) => number.to_string(),
        // `{:?}` writes a point or an exponent, by which TOML tells a float from an integer.
        Value::Float(number) if number.is_nan() => "nan".to_owned(),
        Value::Float(number) => format!("{number:?}"),
        Value::String(text) => quoted(text),
        Value::Datetime(time) => time.to_string(),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(literal).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Table(table) => {
            let entries: Vec<String> = table.iter().map(|(name, it)| entry(name, it)).collect();
            // The spaces keep two braces apart: `{{` would begin an action in a template.
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// A handler as an entry of an inline table, without a comment.
pub(super) fn inline(path: &[&str], handler: &Handler) -> String {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let mut entries = vec![format!("runtime_type = {}", quoted(&handler.runtime_type))];
    if !handler.options.is_empty() {
        entries.push(format!("options = {{ {} }}", options(handler).join(", ")));
    }
    format!("{} = {{ {} }}", keys.join("."), entries.join(", "))
}

/// A key, with quotes where TOML 1.0 needs them.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// A basic string on one line. No text in it can end the string or begin an action of a template.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    let mut previous = None;
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() || (char == '{' && previous == Some('{')) => {
                quoted.extend(format!("\\u{:04X}", u32::from(char)).chars());
            }
            char => quoted.push(char),
        }
        previous = Some(char);
    }
    quoted.push('"');
    quoted
}

/// Whether a handler or an option can have this name: every release reads the name alike as a TOML key, and it is not `runc`.
///
/// ```
/// use farrier::containerd_config::is_usable_name;
///
/// assert!(is_usable_name("spin-v2"));
/// assert!(!is_usable_name("runc"));
/// assert!(!is_usable_name("two\nlines"));
/// ```
#[must_use]
pub fn is_usable_name(name: &str) -> bool {
    // go-toml 1.9, which containerd 1.x uses, does not decode escapes in keys. An escaped name would be another name there.
    let unsafe_key = |char: char| char.is_control() || matches!(char, '"' | '\\');
    // `{{` begins an action of a template.
    !name.is_empty() && name != RUNC && !name.contains(unsafe_key) && !name.contains("{{")
}

/// The wanted handlers by name. Every name is usable and unique.
pub(super) fn check_names(desired: &[Handler]) -> Result<BTreeMap<&str, &Handler>, Error> {
    let mut desired_by_name = BTreeMap::new();
    for handler in desired {
        let name = &handler.name;
        let unusable = (!is_usable_name(name))
            .then_some(name)
            .or_else(|| handler.options.iter().find_map(unusable_key));
        if let Some(found) = unusable {
            return Err(Error::Name {
                found: found.clone(),
            });
        }
        if desired_by_name.insert(name.as_str(), handler).is_some() {
            return Err(Error::Duplicate {
                handler: name.clone(),
            });
        }
    }
    Ok(desired_by_name)
}

/// The first key of an option, or of a table in it, that must not be written.
fn unusable_key<'a>((key, value): (&'a String, &'a Value)) -> Option<&'a String> {
    if is_usable_name(key) {
        unusable_key_in(value)
    } else {
        Some(key)
    }
}

fn unusable_key_in(value: &Value) -> Option<&String> {
    match value {
        Value::Table(table) => table.iter().find_map(unusable_key),
        Value::Array(values) => values.iter().find_map(unusable_key_in),
        Value::Boolean(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::String(_)
        | Value::Datetime(_) => None,
    }
}

/// The text without the sorted ranges, which don't overlap, and without the line end that [`JOINED_MARK`] records.
pub(super) fn without_ranges(text: &str, ranges: &[Range<usize>]) -> String {
    let mut left = cut(text, ranges);
    let joined = ranges.iter().find(|range| {
        text.get((*range).clone())
            .and_then(|lines| lines.lines().next())
            .is_some_and(|line| is_joined_mark(line.trim()))
    });
    // Where the lines before it are removed, too, the line end was removed with them.
    let joined = joined.filter(|joined| ranges.iter().all(|range| range.end != joined.start));
    if let Some(joined) = joined {
        let before: usize = ranges
            .iter()
            .take_while(|range| range.start < joined.start)
            .map(Range::len)
            .sum();
        // Where other lines follow, the added line end is needed.
        if joined.start - before == left.len() {
            let line = left.strip_suffix('\n').unwrap_or(&left);
            left.truncate(line.strip_suffix('\r').unwrap_or(line).len());
        }
    }
    left
}

/// Whether a line is [`JOINED_MARK`], also in the words of an earlier release.
fn is_joined_mark(line: &str) -> bool {
    line.starts_with(MARK) && line.ends_with(JOINED)
}

/// The text without the sorted ranges, which don't overlap.
pub(super) fn cut(text: &str, ranges: &[Range<usize>]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut position = 0;
    for range in ranges {
        kept.push_str(text.get(position..range.start).unwrap_or_default());
        position = position.max(range.end);
    }
    kept.push_str(text.get(position..).unwrap_or_default());
    kept
}
