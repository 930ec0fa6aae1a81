//! Reads and changes the handlers of one file by splicing its text; every byte that isn't ours stays.
//!
//! Our handlers are taken out and the wanted ones are put in at the end, so that the result depends on what is wanted and not on
//! the order of requests; taking all of them out gives the first bytes back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::document::{
    CREATED_MARK, Document, HANDLER_MARK, Holder, JOINED_MARK, RUNC_MARK, Tree, VERSION_MARK,
    leaves,
};
use super::{DeclaredHandler, Error, Handler, Placement, PluginId, Value};

/// containerd's own default runtime, which is never ours to give away.
pub(super) const RUNC: &str = "runc";

/// The handlers that the text declares where `placement` says.
///
/// # Errors
/// When the text is no TOML, or something other than a table stands where containerd wants one.
pub fn handlers(
    text: &str,
    placement: &Placement,
) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
    Document::parse(&placement.path, text)?.handlers(placement.plugin)
}

/// The text with exactly `want` among the handlers that are ours.
///
/// `text` is the file's present text, or `None` where it is absent. `ours` names what the state file says that we wrote. `runc`
/// is the default runtime as the daemon showed it before; it is written beside ours where `placement` asks for it, and leaves with
/// the last of them. The answer is `None` where the file should not exist: it is absent and stays so, or we made it and nothing
/// is left in it. A text that already is as wanted comes back unchanged.
///
/// # Errors
/// When the text can't be parsed, a wanted handler is somebody else's or has an unusable name, `runc` is needed and missing, or
/// the file's notation leaves no safe place. Nothing is ever half done: the result was parsed again and means what was meant.
pub fn edit(
    text: Option<&str>,
    placement: &Placement,
    ours: &BTreeSet<String>,
    want: &[Handler],
    runc: Option<&Handler>,
) -> Result<Option<String>, Error> {
    let source = text.unwrap_or_default();
    let document = Document::parse(&placement.path, source)?;
    let declared = document.handlers(placement.plugin)?;
    let wanted = check(placement, &declared, ours, want)?;

    let stale = |name: &String| ours.contains(name) && !wanted.contains_key(name.as_str());
    let settled = wanted.iter().all(|(name, handler)| {
        declared
            .get(*name)
            .is_some_and(|declared| declared.is(handler))
    });
    if settled && !want.is_empty() && !declared.keys().any(stale) {
        return Ok(text.map(str::to_owned));
    }
    let base = strip(&document, placement, &declared, ours, &wanted)?;
    let created = text.is_none() || base.created;
    if want.is_empty() && created && base.text.trim().is_empty() {
        return Ok(None);
    }
    let edited = if want.is_empty() {
        base.text
    } else {
        fill(&base.text, created, placement, want, runc)?
    };
    verify(&document, &edited, placement, ours, &wanted)?;
    let mark = if document.byte_order_mark {
        "\u{feff}"
    } else {
        ""
    };
    Ok(Some(format!("{mark}{edited}")))
}

/// What is wanted, by name, once every name is usable and free.
fn check<'a>(
    placement: &Placement,
    declared: &BTreeMap<String, DeclaredHandler>,
    ours: &BTreeSet<String>,
    want: &'a [Handler],
) -> Result<BTreeMap<&'a str, &'a Handler>, Error> {
    let mut wanted = BTreeMap::new();
    for handler in want {
        let name = &handler.name;
        // go-toml 1.9, which containerd 1.x reads with, doesn't decode escapes in keys: such names would be other names there.
        let unusable = |name: &&String| {
            name.is_empty()
                || name
                    .chars()
                    .any(|char| char.is_control() || matches!(char, '"' | '\\'))
        };
        if let Some(found) = std::iter::once(name)
            .chain(handler.options.keys())
            .find(unusable)
            .or_else(|| Some(name).filter(|name| *name == RUNC))
        {
            return Err(Error::Name {
                found: found.clone(),
            });
        }
        if !ours.contains(name)
            && (declared.contains_key(name) || placement.elsewhere.contains(name))
        {
            return Err(Error::Foreign {
                handler: name.clone(),
                path: placement.path.clone(),
            });
        }
        if wanted.insert(name.as_str(), handler).is_some() {
            return Err(Error::Twice {
                handler: name.clone(),
            });
        }
    }
    Ok(wanted)
}

/// A file without what we wrote.
struct Base {
    text: String,
    created: bool,
}

/// Takes out all that bears our comment, and of the rest of ours what isn't wanted as it stands.
fn strip(
    document: &Document<'_>,
    placement: &Placement,
    declared: &BTreeMap<String, DeclaredHandler>,
    ours: &BTreeSet<String>,
    wanted: &BTreeMap<&str, &Handler>,
) -> Result<Base, Error> {
    let mut ranges = Vec::new();
    for (name, handler) in declared {
        let kept = wanted
            .get(name.as_str())
            .is_some_and(|wanted| handler.is(wanted));
        if (ours.contains(name) && (handler.marked || !kept)) || (name == RUNC && handler.marked) {
            ranges.extend(document.extent(placement.plugin, name));
        }
    }
    for plugin in PluginId::ALL
        .into_iter()
        .filter(|plugin| *plugin != placement.plugin)
    {
        for (name, handler) in document.handlers(plugin)? {
            if handler.marked && (ours.contains(&name) || name == RUNC) {
                ranges.extend(document.extent(plugin, &name));
            }
        }
    }
    ranges.sort_by_key(|range| range.start);
    let mut text = cut(document.text, &ranges);
    let joined = ranges.iter().find(|range| {
        document.text[(*range).clone()]
            .lines()
            .next()
            .is_some_and(|line| line.trim() == JOINED_MARK)
    });
    if let Some(joined) = joined {
        let before: usize = ranges
            .iter()
            .take_while(|range| range.start < joined.start)
            .map(Range::len)
            .sum();
        // Where something follows, the line end that we added is needed.
        if joined.start - before == text.len() {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            text.truncate(line.strip_suffix('\r').unwrap_or(line).len());
        }
    }
    let rest = Document::parse(&placement.path, &text)?;
    let Some((version, mark)) = rest.own_version() else {
        return Ok(Base {
            text,
            created: false,
        });
    };
    let created = mark == CREATED_MARK;
    // Since we wrote it, others may have come to rely on it.
    let version = if rest.depends_on_version()? {
        0..0
    } else {
        version
    };
    let text = cut(&text, &[version]);
    Ok(Base { text, created })
}

/// The text without the ranges, which are sorted and don't overlap.
fn cut(text: &str, ranges: &[Range<usize>]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut position = 0;
    for range in ranges {
        kept.push_str(text.get(position..range.start).unwrap_or_default());
        position = position.max(range.end);
    }
    kept.push_str(text.get(position..).unwrap_or_default());
    kept
}

/// Puts in what is wanted and not there.
fn fill(
    base: &str,
    created: bool,
    placement: &Placement,
    want: &[Handler],
    runc: Option<&Handler>,
) -> Result<String, Error> {
    let document = Document::parse(&placement.path, base)?;
    let declared = document.handlers(placement.plugin)?;
    let missing: Vec<&Handler> = want
        .iter()
        .filter(|handler| !declared.contains_key(&handler.name))
        .collect();
    let runc = match runc {
        _ if !placement.spell_out_runc || !declared.is_empty() => None,
        Some(runc) => Some(runc),
        None => {
            return Err(Error::NoRunc {
                path: placement.path.clone(),
            });
        }
    };
    let newline = match base.split_once('\n') {
        Some((line, _)) if line.ends_with('\r') => "\r\n",
        _ => "\n",
    };
    let path = placement.plugin.runtimes();
    let mut text = String::with_capacity(base.len() + 256 * (missing.len() + 2));
    if let Some(version) = placement.version
        && document.version()?.is_none()
    {
        let mark = if created { CREATED_MARK } else { VERSION_MARK };
        text.push_str(&format!("{mark}{newline}version = {version}{newline}"));
    }
    let mut item = path.to_vec();
    item.push(RUNC);
    match document.holder(&item) {
        Holder::Braces(_, _) if runc.is_some() => {
            return Err(Error::Unfit {
                path: placement.path.clone(),
                reason: "its runtimes stand between braces, where runc can't be marked as added",
            });
        }
        Holder::Braces(braces, depth) => {
            let mut entries = Vec::new();
            leaves(braces, &mut Vec::new(), &mut entries);
            let end = entries.iter().map(|(_, span)| span.end).max();
            let Some(at) = end.or(braces.span().map(|span| span.start + 1)) else {
                return Ok(base.to_owned());
            };
            let inside: Vec<String> = missing
                .iter()
                .map(|handler| inline(&path[depth..], handler))
                .collect();
            text.push_str(&base[..at]);
            text.push_str(if end.is_some() && !inside.is_empty() {
                ", "
            } else {
                ""
            });
            text.push_str(&inside.join(", "));
            text.push_str(&base[at..]);
        }
        Holder::Headers => {
            text.push_str(base);
            let mut mark = HANDLER_MARK;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push_str(newline);
                mark = JOINED_MARK;
            }
            for handler in missing {
                block(&mut text, mark, newline, &path, handler);
                mark = HANDLER_MARK;
            }
            if let Some(runc) = runc {
                block(&mut text, RUNC_MARK, newline, &path, runc);
            }
        }
    }
    Ok(text)
}

/// A handler under a header of its own.
fn block(text: &mut String, mark: &str, newline: &str, path: &[&str], handler: &Handler) {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let header = keys.join(".");
    text.push_str(&format!(
        "{mark}{newline}[{header}]{newline}runtime_type = {}{newline}",
        quoted(&handler.runtime_type)
    ));
    if handler.options.is_empty() {
        return;
    }
    text.push_str(&format!("[{header}.options]{newline}"));
    for (name, value) in &handler.options {
        text.push_str(&format!("{} = {}{newline}", key(name), literal(value)));
    }
}

/// A handler between braces, where a comment can't stand.
fn inline(path: &[&str], handler: &Handler) -> String {
    let mut keys: Vec<String> = path.iter().map(|part| key(part)).collect();
    keys.push(key(&handler.name));
    let mut entries = vec![format!("runtime_type = {}", quoted(&handler.runtime_type))];
    if !handler.options.is_empty() {
        let options: Vec<String> = handler
            .options
            .iter()
            .map(|(name, value)| format!("{} = {}", key(name), literal(value)))
            .collect();
        entries.push(format!("options = {{ {} }}", options.join(", ")));
    }
    format!("{} = {{ {} }}", keys.join("."), entries.join(", "))
}

/// A key as TOML 1.0 wants it: bare where it can be.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Boolean(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::String(value) => quoted(value),
    }
}

/// A basic string on one line, whatever it holds: a value can't end the line and begin a table of its own.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if char.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads the result again: what isn't ours has its old values, and ours are exactly what is wanted.
fn verify(
    document: &Document<'_>,
    edited: &str,
    placement: &Placement,
    ours: &BTreeSet<String>,
    wanted: &BTreeMap<&str, &Handler>,
) -> Result<(), Error> {
    let unfit = |reason| Error::Unfit {
        path: placement.path.clone(),
        reason,
    };
    let result = Document::parse(&placement.path, edited)
        .map_err(|_| unfit("a table for a handler would not be valid beside what stands there"))?;
    let declared = result.handlers(placement.plugin)?;
    let stale = |name: &String| ours.contains(name) && !wanted.contains_key(name.as_str());
    if declared.keys().any(stale)
        || !wanted
            .iter()
            .all(|(name, handler)| declared.get(*name).is_some_and(|found| found.is(handler)))
    {
        return Err(unfit("its runtimes would not be the wanted ones"));
    }
    let managed = |plugin: PluginId, document: &Document<'_>| -> Result<BTreeSet<String>, Error> {
        Ok(document
            .handlers(plugin)?
            .into_iter()
            .filter(|(name, handler)| {
                ours.contains(name)
                    || wanted.contains_key(name.as_str())
                    || (name == RUNC && handler.marked)
            })
            .map(|(name, _)| name)
            .collect())
    };
    let others = |document: &Document<'_>| -> Result<Tree, Error> {
        let mut tree = document.tree();
        for plugin in PluginId::ALL {
            let managed = managed(plugin, document)?;
            without(&mut tree, &plugin.runtimes(), &managed);
        }
        if document.own_version().is_some()
            && let Tree::Table(root) = &mut tree
        {
            root.remove("version");
        }
        Ok(tree)
    };
    if others(document)? != others(&result)? {
        return Err(unfit("settings of others would change"));
    }
    Ok(())
}

/// Removes `names` from the table at `path`, and on the way back every table that is empty then.
fn without(tree: &mut Tree, path: &[&str], names: &BTreeSet<String>) {
    let Tree::Table(table) = tree else { return };
    let Some((first, rest)) = path.split_first() else {
        table.retain(|name, _| !names.contains(name));
        return;
    };
    if let Some(next) = table.get_mut(*first) {
        without(next, rest, names);
        if matches!(next, Tree::Table(next) if next.is_empty()) {
            table.remove(*first);
        }
    }
}
