//! Handlers between the braces of an inline table: where they are put, and which commas are removed with them.

use std::ops::Range;

use toml_edit::{InlineTable, Value as Toml};

use super::render::inline;
use super::types::Handler;

/// The text with the handlers added between the braces, after the last entry. `path` leads from the braces to the runtimes.
pub(super) fn fill_braces(
    base: &str,
    braces: &InlineTable,
    path: &[&str],
    missing: &[&Handler],
) -> String {
    let mut entries = Vec::new();
    leaves(braces, &mut Vec::new(), &mut entries);
    let last = entries.iter().map(|(_, span)| span.end).max();
    let inside: Vec<String> = missing
        .iter()
        .map(|handler| inline(path, handler))
        .collect();
    // A parsed document has spans. Without one the text is returned unchanged, and the check of the result fails.
    let Some((before, after)) = last
        .or(braces.span().map(|span| span.start + 1))
        .and_then(|at| base.split_at_checked(at))
    else {
        return base.to_owned();
    };
    let comma = if last.is_some() && !inside.is_empty() {
        ", "
    } else {
        ""
    };
    format!("{before}{comma}{}{after}", inside.join(", "))
}

/// The bytes of the entries for which `is_removed` is true, each with the comma that separates it from its neighbours.
pub(super) fn entries_of(
    braces: &InlineTable,
    is_removed: impl Fn(&[&str]) -> bool,
    ranges: &mut Vec<Range<usize>>,
    text: &str,
) {
    let mut entries = Vec::new();
    leaves(braces, &mut Vec::new(), &mut entries);
    entries.sort_by_key(|(_, span)| span.start);
    let mut kept: Option<usize> = None;
    let mut start = braces
        .iter()
        .next()
        .and_then(|(first, _)| braces.get_key_value(first))
        .and_then(|(key, _)| key.span())
        .map(|span| span.start);
    for (index, (keys, span)) in entries.iter().enumerate() {
        if !is_removed(keys) {
            kept = Some(span.end);
            continue;
        }
        if let Some(previous) = kept {
            ranges.push(previous..span.end);
            kept = Some(span.end);
        } else if let Some(from) = start {
            // No entry before this one is kept, so the comma after it is removed with it.
            let after = &text[span.end..];
            let next = after.trim_start().strip_prefix(',').map(str::trim_start);
            let end = match next {
                Some(next) if index + 1 < entries.len() => text.len() - next.len(),
                _ => span.end,
            };
            ranges.push(from..end);
            start = Some(end);
        }
    }
}

/// The values between the braces, also those of dotted keys, each with the keys that lead to it.
fn leaves<'a>(
    braces: &'a InlineTable,
    path: &mut Vec<&'a str>,
    entries: &mut Vec<(Vec<&'a str>, Range<usize>)>,
) {
    for (key, value) in braces {
        path.push(key);
        match value {
            Toml::InlineTable(table) if table.is_dotted() => leaves(table, path, entries),
            value => entries.extend(value.span().map(|span| (path.clone(), span))),
        }
        path.pop();
    }
}
