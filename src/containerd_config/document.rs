//! One configuration file as text and as values at once: what it says, and where in the text it says it.
//!
//! Nothing here knows what should stand in a file; it reads, and it tells which bytes a handler takes up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml_edit::{InlineTable, Item, Key, Table, TableLike};

use super::braces::entries_of;
use super::judge::DUMP;
use super::notation::{BRACES_MARK, MARK};
use super::runtimes::RUNC;
use super::tree::{Tree, tree_of_table};
use super::{DUMP_LIMIT, DeclaredHandler, Error, PluginId, TEXT_LIMIT, Value};

/// The text of a file and its parsed form.
pub(super) struct Document<'a> {
    path: &'a str,
    /// The text without a byte order mark; spans count from its start.
    pub(super) text: &'a str,
    /// Whether a byte order mark stood before it.
    pub(super) byte_order_mark: bool,
    parsed: toml_edit::Document<&'a str>,
}

/// Where a handler, or what would hold it, stands.
pub(super) enum Holder<'a> {
    /// Under headers, where one more header may follow.
    Headers,
    /// Between braces, where only the brace's owner can take more; and how many keys lead to it.
    Braces(&'a InlineTable, usize),
}

impl<'a> Document<'a> {
    /// Parses the text of the file `path`.
    ///
    /// # Errors
    /// When it is too long, no TOML, or spells a key in a way that releases read differently.
    pub(super) fn parse(path: &'a str, source: &'a str) -> Result<Self, Error> {
        if source.len() > TEXT_LIMIT {
            return Err(Error::Long {
                path: path.to_owned(),
            });
        }
        Self::parse_whole(path, source)
    }

    /// Parses what `containerd config dump` prints: all files that are loaded, and the defaults.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(super) fn parse_dump(dump: &'a str) -> Result<Self, Error> {
        if dump.len() > DUMP_LIMIT {
            return Err(Error::LongDump);
        }
        Self::parse_whole(DUMP, dump)
    }

    fn parse_whole(path: &'a str, source: &'a str) -> Result<Self, Error> {
        let (text, byte_order_mark) = match source.strip_prefix('\u{feff}') {
            Some(text) => (text, true),
            None => (source, false),
        };
        let parsed = toml_edit::Document::parse(text).map_err(|error| Error::Syntax {
            path: path.to_owned(),
            reason: reason(text, &error),
        })?;
        let document = Self {
            path,
            text,
            byte_order_mark,
            parsed,
        };
        document.check_letter_case()?;
        Ok(document)
    }

    /// The `version` of the file, in the spelling of containerd's releases from 2.0 on, which take any letter case.
    pub(super) fn version(&self) -> Result<Option<i64>, Error> {
        let mut keys = self
            .parsed
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("version"));
        match (keys.next(), keys.next()) {
            (None, _) => Ok(None),
            (Some((_, item)), None) => match item.as_integer() {
                // To Go a 0 is no version at all, which is the first.
                Some(version) => Ok(Some(if version == 0 { 1 } else { version })),
                None => Err(self.shape("version", "an integer")),
            },
            (Some(_), Some((key, _))) => Err(self.letter_case(key)),
        }
    }

    /// Refuses a `version` that containerd 1.x doesn't see.
    pub(super) fn check_version_letter_case(&self) -> Result<(), Error> {
        self.check_keys(self.parsed.as_table(), &["version"])
    }

    /// The strings of the array `key` at the root; none where it is absent.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some(item) = self.parsed.get(key) else {
            return Ok(Vec::new());
        };
        item.as_array()
            .and_then(|array| {
                array
                    .iter()
                    .map(|value| value.as_str().map(str::to_owned))
                    .collect()
            })
            .ok_or_else(|| self.shape(key, "an array of strings"))
    }

    /// Where the value of `key` at the root stands.
    pub(super) fn value_span(&self, key: &str) -> Option<Range<usize>> {
        self.parsed.get(key)?.span()
    }

    /// Whether the file says anything about the plugin.
    pub(super) fn has(&self, plugin: PluginId) -> bool {
        let [plugins, key, ..] = plugin.runtimes();
        self.item(&[plugins, key]).is_some()
    }

    /// Whether version 1 and version 2 of the schema would read the file differently.
    pub(super) fn depends_on_version(&self) -> Result<bool, Error> {
        let plugins = self
            .parsed
            .get("plugins")
            .and_then(Item::as_table_like)
            .is_some_and(|plugins| !plugins.is_empty());
        Ok(plugins
            || !self.strings("disabled_plugins")?.is_empty()
            || !self.strings("required_plugins")?.is_empty())
    }

    /// The handlers that the file declares for the plugin.
    pub(super) fn handlers(
        &self,
        plugin: PluginId,
    ) -> Result<BTreeMap<String, DeclaredHandler>, Error> {
        let mut handlers = BTreeMap::new();
        let path = plugin.runtimes();
        for end in 1..=path.len() {
            if self
                .item(&path[..end])
                .is_some_and(|item| item.as_table_like().is_none())
            {
                return Err(self.shape(&path[..end].join("."), "a table"));
            }
        }
        let Some(runtimes) = self.table(&path) else {
            return Ok(handlers);
        };
        for (name, item) in runtimes.iter() {
            let Some(table) = item.as_table_like() else {
                return Err(self.shape(&format!("runtimes.{name}"), "a table"));
            };
            let mut handler = declared(table);
            handler.marked = item
                .as_table()
                .filter(|table| !table.is_dotted())
                .and_then(Table::span)
                .is_some_and(|span| self.mark_above(span.start).is_some())
                || (name == RUNC && item.is_inline_table() && self.braces_mark().is_some());
            handlers.insert(name.to_owned(), handler);
        }
        Ok(handlers)
    }

    /// The comment of ours directly above the line of `offset`, and where that line begins.
    pub(super) fn mark_above(&self, offset: usize) -> Option<(usize, &'a str)> {
        let line = self.line(offset..offset).start;
        let above = self.text.get(..line)?.strip_suffix('\n')?;
        let start = above.rfind('\n').map_or(0, |newline| newline + 1);
        let comment = above[start..].trim();
        // That one is about what stands between braces, wherever they are.
        (comment.starts_with(MARK) && comment != BRACES_MARK).then_some((start, comment))
    }

    /// The line of the comment that says that `runc` between braces is ours.
    pub(super) fn braces_mark(&self) -> Option<Range<usize>> {
        let mut start = 0;
        self.text.split_inclusive('\n').find_map(|line| {
            let range = start..start + line.len();
            start = range.end;
            (line.trim() == BRACES_MARK).then_some(range)
        })
    }

    /// Where the file's `version` stands, with the comment of ours above it; `None` where the line isn't ours.
    pub(super) fn own_version(&self) -> Option<(Range<usize>, &'a str)> {
        let (key, item) = self.parsed.as_table().get_key_value("version")?;
        let (start, mark) = self.mark_above(key.span()?.start)?;
        Some((start..self.line(item.span()?).end, mark))
    }

    /// The bytes that the handlers take up, our comments above them included, in order.
    ///
    /// All of them at once: which comma goes with an entry between braces depends on what else goes.
    pub(super) fn extents(&self, plugin: PluginId, names: &BTreeSet<&str>) -> Vec<Range<usize>> {
        let path = plugin.runtimes();
        let mut ranges = Vec::new();
        match self.holder(&[path.as_slice(), &[""]].concat()) {
            Holder::Braces(braces, depth) => {
                let goes = |keys: &[&str]| {
                    keys.strip_prefix(&path[depth..])
                        .and_then(<[&str]>::first)
                        .is_some_and(|name| names.contains(name))
                };
                entries_of(braces, goes, &mut ranges, self.text);
            }
            Holder::Headers => {
                if let Some(runtimes) = self.table(&path) {
                    for name in names {
                        if let Some((key, item)) = runtimes.get_key_value(name) {
                            self.lines_of(key, item, &mut ranges);
                        }
                    }
                }
            }
        }
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// What holds, or would have to hold, the item at `path`.
    pub(super) fn holder(&self, path: &[&str]) -> Holder<'_> {
        let mut holder = Holder::Headers;
        let mut table: &dyn TableLike = self.parsed.as_table();
        // The last key is the item itself: braces of its own don't hold it.
        for (index, key) in path.iter().enumerate().take(path.len().saturating_sub(1)) {
            let Some(item) = table.get(key) else { break };
            if let Some(braces) = item.as_inline_table()
                && !braces.is_dotted()
            {
                holder = Holder::Braces(braces, index + 1);
            }
            match item.as_table_like() {
                Some(next) => table = next,
                None => break,
            }
        }
        holder
    }

    /// All values of the file.
    pub(super) fn tree(&self) -> Tree {
        tree_of_table(self.parsed.as_table())
    }

    fn table(&self, path: &[&str]) -> Option<&dyn TableLike> {
        self.item(path)?.as_table_like()
    }

    /// The item at `path`.
    pub(super) fn item(&self, path: &[&str]) -> Option<&Item> {
        let (last, parents) = path.split_last()?;
        let mut table: &dyn TableLike = self.parsed.as_table();
        for key in parents {
            table = table.get(key)?.as_table_like()?;
        }
        table.get(last)
    }

    /// The whole lines that `span` touches, their line end included.
    fn line(&self, span: Range<usize>) -> Range<usize> {
        let start = self.text[..span.start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let end = self.text[span.end..]
            .find('\n')
            .map_or(self.text.len(), |newline| span.end + newline + 1);
        start..end
    }

    fn lines_of(&self, key: &Key, item: &Item, ranges: &mut Vec<Range<usize>>) {
        match item {
            Item::None | Item::ArrayOfTables(_) => {}
            Item::Value(value) => {
                if let (Some(key), Some(value)) = (key.span(), value.span()) {
                    ranges.push(self.line(key.start..value.end));
                }
            }
            Item::Table(table) => {
                if !table.is_dotted()
                    && let Some(span) = table.span()
                {
                    let mut lines = self.line(span);
                    if let Some((start, _)) = self.mark_above(lines.start) {
                        lines.start = start;
                    }
                    ranges.push(lines);
                }
                for (name, _) in table {
                    if let Some((key, item)) = table.get_key_value(name) {
                        self.lines_of(key, item, ranges);
                    }
                }
            }
        }
    }

    fn check_letter_case(&self) -> Result<(), Error> {
        let root = self.parsed.as_table();
        self.check_keys(root, &["imports", "plugins", "disabled_plugins"])?;
        for plugin in PluginId::ALL {
            let path = plugin.runtimes();
            for depth in 2..path.len() {
                if let Some(table) = self.table(&path[..depth]) {
                    self.check_keys(table, &path[depth..=depth])?;
                }
            }
        }
        Ok(())
    }

    fn check_keys(&self, table: &dyn TableLike, keys: &[&str]) -> Result<(), Error> {
        let other = |name: &&str| {
            keys.iter()
                .any(|key| name != key && name.eq_ignore_ascii_case(key))
        };
        match table.iter().map(|(name, _)| name).find(other) {
            Some(name) => Err(self.letter_case(name)),
            None => Ok(()),
        }
    }

    fn letter_case(&self, key: &str) -> Error {
        Error::LetterCase {
            path: self.path.to_owned(),
            key: key.to_owned(),
        }
    }

    fn shape(&self, key: &str, expected: &'static str) -> Error {
        Error::Shape {
            path: self.path.to_owned(),
            key: key.to_owned(),
            expected,
        }
    }
}

/// Where the parser stopped and why, without the text that stood there: it may hold a password.
fn reason(text: &str, error: &toml_edit::TomlError) -> String {
    let message = error.message().replace('\n', " ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return message;
    };
    let line = before.matches('\n').count() + 1;
    let column = before
        .chars()
        .rev()
        .take_while(|&char| char != '\n')
        .count()
        + 1;
    format!("line {line}, column {column}: {message}")
}

pub(super) fn declared(table: &dyn TableLike) -> DeclaredHandler {
    let mut handler = DeclaredHandler::default();
    for (key, item) in table.iter() {
        match (key, item.as_str(), item.as_table_like()) {
            ("runtime_type", Some(text), _) => text.clone_into(&mut handler.runtime_type),
            ("options", _, Some(options)) => {
                for (key, item) in options.iter() {
                    match value(item) {
                        Some(value) => {
                            handler.options.insert(key.to_owned(), value);
                        }
                        None => handler.more = true,
                    }
                }
            }
            _ => handler.more = true,
        }
    }
    handler
}

fn value(item: &Item) -> Option<Value> {
    item.as_bool()
        .map(Value::Boolean)
        .or_else(|| item.as_integer().map(Value::Integer))
        .or_else(|| item.as_str().map(|text| Value::String(text.to_owned())))
}
