//! Parses one configuration file and finds the bytes of each setting in its text. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Value;
use toml_edit::{InlineTable, Item, Key, Table, TableLike};

use super::error::Error;
use super::inline_table::entries_of;
use super::render::{BRACES_MARK, MARK, RUNC_MARK, block};
use super::schema::PluginId;
use super::types::{DUMP_LIMIT, DeclaredHandler, Handler, RUNC, TEXT_LIMIT};

/// The text in place of the file's path in an error about a dump.
const DUMP: &str = "the dump of containerd's configuration";

/// The deepest nesting of tables and arrays that is read. A configuration of containerd has some ten levels. Dotted keys in nested inline
/// tables reach thousands of levels in a small file, and a recursion over them would overflow the stack.
const NESTING_LIMIT: usize = 64;

/// The text of a file and its parsed form.
pub(super) struct Document<'a> {
    path: &'a str,
    /// The text without a byte order mark. Spans are offsets in it.
    pub(super) text: &'a str,
    /// Whether a byte order mark stood before it.
    pub(super) byte_order_mark: bool,
    parsed: toml_edit::Document<&'a str>,
}

/// The kind of table that a handler is written in.
pub(super) enum Holder<'a> {
    /// A table with a `[header]`. Another header may follow it.
    Headers,
    /// An inline table, and the number of keys that lead to it. A handler has to be written between its braces.
    Braces(&'a InlineTable, usize),
}

impl<'a> Document<'a> {
    /// Parses the text of the file `path`.
    ///
    /// # Errors
    /// When the text is too long or not TOML, or has a key in a letter case that some releases read and others ignore.
    pub(super) fn parse(path: &'a str, source: &'a str) -> Result<Self, Error> {
        if source.len() > TEXT_LIMIT {
            return Err(Error::Long {
                path: path.to_owned(),
            });
        }
        Self::parse_whole(path, source)
    }

    /// Parses the output of `containerd config dump`, which has the settings of all loaded files and the defaults.
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
        if is_deeper(parsed.as_table(), NESTING_LIMIT) {
            return Err(Error::Syntax {
                path: path.to_owned(),
                reason: format!("its tables are nested deeper than {NESTING_LIMIT} levels"),
            });
        }
        let document = Self {
            path,
            text,
            byte_order_mark,
            parsed,
        };
        document.check_letter_case()?;
        Ok(document)
    }

    /// The `version` of the file. As in containerd 2.0 and later, the key may have any letter case.
    pub(super) fn version(&self) -> Result<Option<i64>, Error> {
        let mut keys = self
            .parsed
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("version"));
        match (keys.next(), keys.next()) {
            (None, _) => Ok(None),
            (Some((_, item)), None) => match item.as_integer() {
                // containerd takes 0 for an absent version, and an absent version for 1.
                Some(version) => Ok(Some(if version == 0 { 1 } else { version })),
                None => Err(self.shape("version", "an integer")),
            },
            (Some(_), Some((key, _))) => Err(self.letter_case(key)),
        }
    }

    /// Refuses a `version` key in another letter case, which containerd 1.x ignores.
    pub(super) fn check_version_letter_case(&self) -> Result<(), Error> {
        self.check_keys(self.parsed.as_table(), &["version"])
    }

    /// The strings of the top-level array `key`; none where the key is absent.
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

    /// The bytes of the value of the top-level `key`.
    pub(super) fn value_span(&self, key: &str) -> Option<Range<usize>> {
        self.parsed.get(key)?.span()
    }

    /// Whether the file has settings of the plugin.
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

    /// The handlers that the file declares in the plugin's table.
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
            handler.marked = if name == RUNC {
                self.is_own_runc(plugin, item, &handler)
            } else {
                item.as_table()
                    .filter(|table| !table.is_dotted())
                    .and_then(Table::span)
                    .is_some_and(|span| self.mark_above(span.start).is_some())
            };
            handlers.insert(name.to_owned(), handler);
        }
        Ok(handlers)
    }

    /// Whether `runc` is below Farrier's comment, and as Farrier writes it. A `runc` that others have changed since is theirs.
    fn is_own_runc(&self, plugin: PluginId, item: &Item, handler: &DeclaredHandler) -> bool {
        if item.is_inline_table() {
            return self.braces_mark().is_some() && handler.declares(&Handler::runc());
        }
        let written = block(RUNC_MARK, "\n", &plugin.runtimes(), &Handler::runc());
        let lines = self.extents(plugin, &BTreeSet::from([RUNC])).into_iter();
        let found = lines.flat_map(|range| self.text[range].lines());
        found.eq(written.lines())
    }

    /// The lines of Farrier's comments for a `runc` that others have changed or removed since.
    pub(super) fn stale_runc_marks(&self) -> Result<Vec<Range<usize>>, Error> {
        let mut own = Vec::new();
        for plugin in PluginId::ALL {
            if self
                .handlers(plugin)?
                .get(RUNC)
                .is_some_and(|runc| runc.marked)
            {
                let lines = self.extents(plugin, &BTreeSet::from([RUNC]));
                own.extend(lines.first().map(|lines| lines.start));
                own.extend(self.braces_mark().map(|line| line.start));
            }
        }
        let mut start = 0;
        let lines = self.text.split_inclusive('\n').map(|line| {
            let range = start..start + line.len();
            start = range.end;
            (line.trim(), range)
        });
        let stale = lines.filter(|(line, range)| {
            [RUNC_MARK, BRACES_MARK].contains(line) && !own.contains(&range.start)
        });
        Ok(stale.map(|(_, range)| range).collect())
    }

    /// Farrier's comment on the line above `offset`, and the start of the comment's line.
    pub(super) fn mark_above(&self, offset: usize) -> Option<(usize, &'a str)> {
        let line = self.line(offset..offset).start;
        let above = self.text.get(..line)?.strip_suffix('\n')?;
        let start = above.rfind('\n').map_or(0, |newline| newline + 1);
        let comment = above[start..].trim();
        // `BRACES_MARK` is at the start of the file, and does not belong to the line below it.
        (comment.starts_with(MARK) && comment != BRACES_MARK).then_some((start, comment))
    }

    /// The line of the comment by which a `runc` in an inline table is Farrier's.
    pub(super) fn braces_mark(&self) -> Option<Range<usize>> {
        let mut start = 0;
        self.text.split_inclusive('\n').find_map(|line| {
            let range = start..start + line.len();
            start = range.end;
            (line.trim() == BRACES_MARK).then_some(range)
        })
    }

    /// The lines of the `version` that Farrier wrote, and the comment above it; `None` where others wrote the
    /// `version`.
    pub(super) fn own_version(&self) -> Option<(Range<usize>, &'a str)> {
        let (key, item) = self.parsed.as_table().get_key_value("version")?;
        let (start, mark) = self.mark_above(key.span()?.start)?;
        Some((start..self.line(item.span()?).end, mark))
    }

    /// The bytes of the handlers `names`, with Farrier's comments above them, sorted.
    ///
    /// One call finds all of them, because the commas to remove from an inline table depend on all entries that are removed.
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

    /// The kind of table that has the item at `path`, or would have it.
    pub(super) fn holder(&self, path: &[&str]) -> Holder<'_> {
        let mut holder = Holder::Headers;
        let mut table: &dyn TableLike = self.parsed.as_table();
        // The last key is the item itself, and an inline table as its value does not count.
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

    /// All values of the file, whatever their notation.
    pub(super) fn values(&self) -> Value {
        table_value(self.parsed.as_table())
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

    /// The whole lines that `span` touches, with their line ends.
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

/// The parser's message with line and column, and without text of the file, which may be a password.
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

/// Whether the table has more than `levels` levels, itself included. Looks no deeper than that.
fn is_deeper(table: &dyn TableLike, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else {
        return true;
    };
    table.iter().any(|(_, item)| match item {
        Item::None => false,
        Item::Value(value) => is_value_deeper(value, below),
        Item::Table(table) => is_deeper(table, below),
        Item::ArrayOfTables(tables) => tables.iter().any(|table| is_deeper(table, below)),
    })
}

fn is_value_deeper(value: &toml_edit::Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (toml_edit::Value::InlineTable(table), _) => is_deeper(table, levels),
        (toml_edit::Value::Array(values), Some(below)) => {
            values.iter().any(|value| is_value_deeper(value, below))
        }
        (toml_edit::Value::Array(_), None) => true,
        (
            toml_edit::Value::String(_)
            | toml_edit::Value::Integer(_)
            | toml_edit::Value::Float(_)
            | toml_edit::Value::Boolean(_)
            | toml_edit::Value::Datetime(_),
            _,
        ) => false,
    }
}

/// The handler that a table below `runtimes` declares.
pub(super) fn declared(table: &dyn TableLike) -> DeclaredHandler {
    let mut handler = DeclaredHandler::default();
    for (key, item) in table.iter() {
        match (key, item.as_str(), item.as_table_like()) {
            ("runtime_type", Some(text), _) => text.clone_into(&mut handler.runtime_type),
            ("options", _, Some(options)) => {
                let options = options.iter();
                handler.options = options
                    .filter_map(|(key, item)| Some((key.to_owned(), item_value(item)?)))
                    .collect();
            }
            ("runtime_path", Some(path), _) => {
                path.clone_into(&mut handler.runtime_path);
                handler.has_other_settings = true;
            }
            _ => handler.has_other_settings = true,
        }
    }
    handler
}

fn table_value(table: &dyn TableLike) -> Value {
    let entries = table.iter();
    Value::Table(
        entries
            .filter_map(|(key, item)| Some((key.to_owned(), item_value(item)?)))
            .collect(),
    )
}

fn item_value(item: &Item) -> Option<Value> {
    match item {
        Item::None => None,
        Item::Value(value) => Some(plain_value(value)),
        Item::Table(table) => Some(table_value(table)),
        Item::ArrayOfTables(tables) => Some(Value::Array(
            tables.iter().map(|table| table_value(table)).collect(),
        )),
    }
}

fn plain_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::String(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::Integer(*number.value()),
        toml_edit::Value::Float(number) => Value::Float(*number.value()),
        toml_edit::Value::Boolean(value) => Value::Boolean(*value.value()),
        toml_edit::Value::Datetime(time) => Value::Datetime(*time.value()),
        toml_edit::Value::Array(values) => Value::Array(values.iter().map(plain_value).collect()),
        toml_edit::Value::InlineTable(table) => table_value(table),
    }
}

/// The value that the keys `path` lead to.
pub(super) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(*key))
}

/// The string that the keys `path` lead to.
pub(super) fn string_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str()
}

/// Whether the keys `path` lead to `true`.
pub(super) fn is_true_at(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool) == Some(true)
}

/// The entries of the table that the keys `path` lead to; none where there is no table.
pub(super) fn entries_at<'a>(
    value: &'a Value,
    path: &[&str],
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, path)
        .and_then(Value::as_table)
        .into_iter()
        .flatten()
}

/// Removes `names` from the table at `path`, and then each table of `path` that is empty.
pub(super) fn remove_from(value: &mut Value, path: &[&str], names: &BTreeSet<String>) {
    let Value::Table(table) = value else { return };
    let Some((first, rest)) = path.split_first() else {
        table.retain(|name, _| !names.contains(name));
        return;
    };
    if let Some(next) = table.get_mut(*first) {
        remove_from(next, rest, names);
        if matches!(next, Value::Table(next) if next.is_empty()) {
            table.remove(*first);
        }
    }
}

/// The first key, with dots, whose values differ.
pub(super) fn difference(before: &Value, after: &Value) -> Option<String> {
    let (Value::Table(one), Value::Table(other)) = (before, after) else {
        return (!is_same(before, after)).then(String::new);
    };
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    keys.into_iter().find_map(|key| {
        let below = match (one.get(key), other.get(key)) {
            (Some(one), Some(other)) => difference(one, other)?,
            _ => String::new(),
        };
        Some(if below.is_empty() {
            key.clone()
        } else {
            format!("{key}.{below}")
        })
    })
}

/// Whether two values are the same. Unlike equality of floats, this takes `nan` for the same as `nan`.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Float(one), Value::Float(other)) => one.total_cmp(other).is_eq(),
        (Value::Array(ones), Value::Array(others)) => {
            ones.len() == others.len()
                && ones
                    .iter()
                    .zip(others)
                    .all(|(one, other)| is_same(one, other))
        }
        (Value::Table(_), Value::Table(_)) => difference(one, other).is_none(),
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn values(text: &str) -> Value {
        Document::parse("f", text).unwrap().values()
    }

    #[rstest]
    #[case::notation_of_tables("[a.b]\nc = 1", "a = { b.c = 1 }")]
    #[case::notation_of_numbers("a = 0x10\nb = 1_000\nc = 1e3", "a = 16\nb = 1000\nc = 1000.0")]
    #[case::notation_of_strings("a = '\\x'", "a = \"\\\\x\"")]
    #[case::notation_of_arrays("[[a]]\nb = 1\n[[a]]", "a = [{ b = 1 }, {}]")]
    #[case::not_a_number("a = nan\nb = [nan, { c = nan }]", "a = nan\nb = [nan, { c = nan }]")]
    #[case::order("a = 1\nb = 2", "b = 2\na = 1")]
    fn texts_that_mean_the_same_have_the_same_values(#[case] one: &str, #[case] other: &str) {
        assert_eq!(difference(&values(one), &values(other)), None);
    }

    #[rstest]
    #[case::types("a = 1", "a = '1'", "a")]
    #[case::integer_and_float("a = 1", "a = 1.0", "a")]
    #[case::boolean_and_string("a = true", "a = 'true'", "a")]
    #[case::time_and_string("a = 1979-05-27", "a = '1979-05-27'", "a")]
    #[case::times("a = 1979-05-27T07:32:00Z", "a = 1979-05-27T07:32:00", "a")]
    #[case::absent("[a]\nb = 1", "[a]", "a.b")]
    #[case::empty_table("[a.b]", "[a]", "a.b")]
    #[case::number_and_not_a_number("a = [nan]", "a = [1.0]", "a")]
    #[case::longer_array("a = [1]", "a = [1, 2]", "a")]
    #[case::in_an_array_of_tables("[[a]]\nb = 1", "[[a]]\nb = 2", "a")]
    #[case::table_and_array("[a]", "[[a]]", "a")]
    fn the_first_key_that_differs_is_named(
        #[case] one: &str,
        #[case] other: &str,
        #[case] key: &str,
    ) {
        assert_eq!(
            difference(&values(one), &values(other)).as_deref(),
            Some(key)
        );
        assert_eq!(
            difference(&values(other), &values(one)).as_deref(),
            Some(key)
        );
    }

    #[rstest]
    #[case::headers(63, "[{keys}]\n")]
    #[case::dotted_keys(63, "{keys}.a = 1\n")]
    #[case::inline_tables_of_dotted_keys(30, "[{keys}]\n{keys} = { a.b = 1 }\n")]
    #[case::arrays_of_tables(62, "[[{keys}]]\na = []\n")]
    fn tables_are_read_up_to_the_limit_of_nesting_and_refused_beyond(
        #[case] depth: usize,
        #[case] text: &str,
    ) {
        let text = |depth| text.replace("{keys}", &vec!["a"; depth].join("."));
        assert!(Document::parse("f", &text(depth)).is_ok());
        let deeper = text(depth + 5);
        let error = Document::parse("f", &deeper).map(|_| ()).unwrap_err();
        assert!(
            error.to_string().contains("nested deeper than 64 levels"),
            "{error}"
        );
    }
}
