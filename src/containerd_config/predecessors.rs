//! The handlers that KWasm's and runtime-class-manager's installers appended to a file: which they are, and which bytes came with them.
//!
//! Both append text. runtime-class-manager writes a line end, its comment, the table, and behind the last option no line end; KWasm
//! writes a line end, one table after another without a comment, and an empty line. What is taken out is what they wrote.

use std::collections::BTreeMap;
use std::ops::Range;

use super::document::Document;
use super::notation::MARK;
use super::{DeclaredHandler, Error, PluginId, Value};

/// The comment above each table of runtime-class-manager (its installer, `internal/containerd/configure.go`).
const RCM_COMMENT: &str = "# RCM runtime config for ";
/// The comment above each table of KWasm's installer of the branch `go-rewrite`.
const KWASM_COMMENT: &str = "# KWASM runtime config for ";
/// What the file names of all their shims begin with.
const SHIM_PREFIX: &str = "containerd-shim-";
/// Where runtime-class-manager keeps its files unless told otherwise.
const RCM_HOME: &str = "/opt/rcm";
/// Where KWasm keeps its files: on `MicroK8s` a snap can't read `/opt`.
const KWASM_HOMES: [&str; 2] = ["/opt/kwasm", "/var/snap/microk8s/common/kwasm"];

/// Who provisioned nodes before Farrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Predecessor {
    /// KWasm's node installer.
    Kwasm,
    /// runtime-class-manager's node installer.
    Rcm,
}

/// A handler that a predecessor declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Whose it is.
    pub predecessor: Predecessor,
    /// The tables that declare it; which of them containerd reads depends on its release.
    pub plugins: Vec<PluginId>,
    /// The folder of all that the predecessor keeps on the host.
    pub home: String,
    /// Whether the home is one of the usual ones; another one needs more evidence than a comment.
    pub usual: bool,
    /// The shim, `home/bin/FILE`.
    pub path: String,
    /// The options whose type is one of [`Value`]'s.
    pub options: BTreeMap<String, Value>,
    /// Whether Farrier has rewritten the declaration.
    pub marked: bool,
}

/// The handlers of predecessors that the text of the file `path` declares, by name.
///
/// # Errors
/// When the text is no TOML, or something other than a table stands where containerd wants one.
pub fn inherited(path: &str, text: &str) -> Result<BTreeMap<String, Inherited>, Error> {
    let document = Document::parse(path, text)?;
    let mut found: BTreeMap<String, Inherited> = BTreeMap::new();
    for plugin in PluginId::ALL {
        for (name, handler) in document.handlers(plugin)? {
            let Some(inherited) = of_handler(&document, plugin, &name, &handler) else {
                continue;
            };
            match found.get_mut(&name) {
                // A newer id's table is the one that newer releases read.
                Some(known) if known.path == inherited.path => {
                    known.plugins.push(plugin);
                    known.options = inherited.options;
                    known.marked |= inherited.marked;
                }
                Some(_) => {}
                None => {
                    found.insert(name, inherited);
                }
            }
        }
    }
    Ok(found)
}

/// What a predecessor declared there, if one did.
pub(super) fn of_handler(
    document: &Document<'_>,
    plugin: PluginId,
    name: &str,
    handler: &DeclaredHandler,
) -> Option<Inherited> {
    let path = &handler.runtime_type;
    let (home, file) = path.rsplit_once("/bin/")?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    if !file.starts_with(SHIM_PREFIX)
        || file.contains('/')
        || !home.strip_prefix('/')?.split('/').all(plain)
    {
        return None;
    }
    let by_home = if home == RCM_HOME {
        Some(Predecessor::Rcm)
    } else {
        KWASM_HOMES.contains(&home).then_some(Predecessor::Kwasm)
    };
    let by_comment = || {
        let lines = document.extents(plugin, &std::iter::once(name).collect());
        let (_, comment) = comment_above(document.text, lines.first()?.start)?;
        Some(if comment.starts_with(RCM_COMMENT) {
            Predecessor::Rcm
        } else {
            Predecessor::Kwasm
        })
    };
    Some(Inherited {
        predecessor: by_home.or_else(by_comment)?,
        plugins: vec![plugin],
        home: home.to_owned(),
        usual: by_home.is_some(),
        path: path.clone(),
        options: handler.options.clone(),
        marked: handler.marked,
    })
}

/// A predecessor's comment directly above the line that begins at `start`, and where it begins.
fn comment_above(text: &str, start: usize) -> Option<(usize, &str)> {
    let above = text.get(..start)?.strip_suffix('\n')?;
    let begin = above.rfind('\n').map_or(0, |newline| newline + 1);
    let comment = above[begin..].trim();
    [RCM_COMMENT, KWASM_COMMENT]
        .iter()
        .any(|known| comment.starts_with(known))
        .then_some((begin, comment))
}

/// Widens the lines of handlers that go, sorted, to all that a predecessor wrote with them.
pub(super) fn widen(text: &str, lines: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for range in lines {
        let ours = text[range.clone()].trim_start().starts_with(MARK);
        match ranges.last_mut() {
            Some(last) if last.end == range.start && !ours => last.end = range.end,
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

/// Takes in the comment, the line end before it and what else came with the lines; says whether that line end is among them.
fn widen_one(text: &str, range: &mut Range<usize>) -> bool {
    let comment = comment_above(text, range.start).map(|(begin, _)| begin);
    let after = &text[range.end..];
    if let Some(begin) = comment {
        range.start = begin;
        let options = text[range.clone()]
            .lines()
            .rfind(|line| line.trim_start().starts_with('['));
        if options.is_some_and(|header| header.trim_end().ends_with(".options]")) {
            // Behind the last option there is no line end of theirs, unless an editor has ended the file with one.
            let line = text[range.clone()].trim_end_matches(['\r', '\n']).len();
            if !(after.is_empty() && text[..begin].ends_with("\n\n")) {
                range.end = range.start + line;
            }
        }
    } else {
        let names_kwasm = |line: &str| {
            KWASM_HOMES
                .iter()
                .any(|home| line.contains(&format!("\"{home}/bin/")))
        };
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
        // The empty line at the end, unless it is the first byte of what runtime-class-manager appended.
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

/// Whether the line end at the beginning of a range has to stay, to part what stands before from what stands after.
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
