//! Removes credentials from containerd's messages about a configuration, because parsers quote the text that they refuse.
//!
//! The configuration is read line by line. A text that containerd refuses may not be TOML.

/// Parts of the names of keys and tables with credentials (containerd's `docs/cri/registry.md`: `password`, `auth`, `identitytoken`,
/// `headers`, `Authorization`).
const NAMES: [&str; 7] = [
    "password",
    "passwd",
    "auth",
    "token",
    "secret",
    "credential",
    "header",
];

/// The shortest text that counts as a credential, in bytes. Removing shorter ones would make the message unreadable.
const SHORTEST: usize = 3;

/// The types of values by their names in messages of `go-toml` 1.9, the parser of containerd 1.x.
const GO_TYPES: [&str; 12] = [
    "string",
    "int64",
    "uint64",
    "float64",
    "bool",
    "[]interface {}",
    "*toml.Tree",
    "[]*toml.Tree",
    "time.Time",
    "toml.LocalDate",
    "toml.LocalTime",
    "toml.LocalDateTime",
];

/// The message with an ellipsis in place of the values of the configuration `texts`: each value whose key, or whose table, names a
/// credential, and each other value that the parser of containerd quotes.
///
/// ```
/// use farrier::containerd_config::without_secrets;
///
/// let message = "(1, 12): unexpected hunter2";
/// assert_eq!(without_secrets(message, ["password = hunter2"]), "(1, 12): unexpected …");
///
/// let message = "(1, 1): Can't convert 123456(int64) to string";
/// assert_eq!(without_secrets(message, ["pin = 123456"]), "(1, 1): Can't convert …(int64) to string");
/// ```
#[must_use]
pub fn without_secrets<'a>(message: &str, texts: impl IntoIterator<Item = &'a str>) -> String {
    let (mut secrets, mut values) = (Vec::new(), Vec::new());
    for text in texts {
        collect(text, &mut secrets, &mut values);
    }
    // The longest first, because a credential may be a part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let message = without_quoted(&without_converted(message), &values);
    let message = secrets
        .iter()
        .fold(message, |message, secret| message.replace(secret, "…"));
    without_cut_secret(&message, &secrets)
}

/// Adds the credentials of a configuration to `secrets`, and its other values, except paths and the names of plugins and runtimes, to
/// `values`.
fn collect<'a>(text: &'a str, secrets: &mut Vec<&'a str>, values: &mut Vec<&'a str>) {
    // Whether the table, and whether the value that goes on in the next line, is a credential.
    let (mut in_table, mut open) = (false, Open::default());
    for line in text.lines() {
        if open.is_closed() {
            let trimmed = line.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.starts_with('[') {
                in_table = behind_name(line).is_some();
                continue;
            }
        }
        let is_continued = !open.is_closed();
        let secret = match behind_name(line) {
            _ if is_continued => open.is_secret.then_some(line),
            Some(behind) => Some(behind),
            None if in_table => line.split_once('=').map(|(_, value)| value),
            None => None,
        };
        let value = if is_continued {
            line
        } else {
            line.split_once('=').map_or(line, |(_, value)| value)
        };
        open.read(value, secret.is_some());
        let long = |word: &&str| word.len() >= SHORTEST;
        let words = |text: &'a str| text.split(is_punctuation).filter(long);
        secrets.extend(secret.into_iter().flat_map(words));
        let is_name = |word: &&str| word.starts_with('/') || word.starts_with("io.containerd.");
        values.extend(words(value).filter(|word| !is_name(word)));
    }
}

/// A value that goes on in the next line.
#[derive(Default)]
struct Open {
    quotes: Option<&'static str>,
    brackets: usize,
    is_secret: bool,
}

impl Open {
    fn is_closed(&self) -> bool {
        self.quotes.is_none() && self.brackets == 0
    }

    /// Reads a line, or the part of a line behind the equals sign. A bracket in a string may leave the value open, which only hides more.
    fn read(&mut self, text: &str, is_secret: bool) {
        if self.is_closed() {
            self.is_secret = is_secret;
        }
        for quotes in ["\"\"\"", "\'\'\'"] {
            if self.quotes.is_some_and(|open| open != quotes) {
                continue;
            }
            if text.matches(quotes).count() % 2 == 1 {
                self.quotes = match self.quotes {
                    Some(_) => None,
                    None => Some(quotes),
                };
            }
        }
        if self.quotes.is_none() {
            for letter in text.chars() {
                match letter {
                    '[' | '{' => self.brackets += 1,
                    ']' | '}' => self.brackets = self.brackets.saturating_sub(1),
                    _ => {}
                }
            }
        }
    }
}

/// The message without a value that can't be converted: of `Can't convert VALUE(TYPE) to TARGET` and `VALUE(TYPE) would overflow TARGET`
/// only the types are left (`go-toml` 1.9, `marshal.go`).
fn without_converted(message: &str) -> String {
    const CONVERT: &str = "Can't convert ";
    let last = |text: &str, end: &str| {
        let ends = GO_TYPES.iter().filter_map(|name| {
            let end = format!("({name}){end}");
            text.rfind(&end)
        });
        ends.max()
    };
    if let Some((before, rest)) = message.split_once(CONVERT) {
        let Some(at) = last(rest, " to ") else {
            return format!("{before}{CONVERT}…");
        };
        // The cause behind the target quotes the value, too.
        let types = rest[at..].split(". ").next().unwrap_or_default();
        return format!("{before}{CONVERT}…{types}");
    }
    for end in [" would overflow ", " is negative so does not fit in "] {
        if let Some(at) = last(message, end) {
            let (before, rest) = message.split_at(at);
            let start = before.rfind(' ').map_or(0, |space| space + 1);
            return format!("{}…{rest}", &before[..start]);
        }
    }
    message.to_owned()
}

/// The message without the texts between double quotes that have a word of `values`.
fn without_quoted(message: &str, values: &[&str]) -> String {
    let mut rest = message;
    let mut kept = String::with_capacity(message.len());
    while let Some((before, quoted)) = rest.split_once('"') {
        kept.push_str(before);
        kept.push('"');
        let end = end_of_quoted(quoted);
        let (inside, after) = quoted.split_at(end.unwrap_or(quoted.len()));
        // A long message may be cut within a value.
        let is_cut = |word: &str| {
            let starts = |value: &&str| value.starts_with(word.trim_end_matches('…'));
            end.is_none() && word.len() >= SHORTEST && values.iter().any(starts)
        };
        let is_value = inside
            .split(is_punctuation)
            .any(|word| values.contains(&word) || is_cut(word));
        kept.push_str(if is_value { "…" } else { inside });
        rest = match after.strip_prefix('"') {
            Some(after) => {
                kept.push('"');
                after
            }
            None => after,
        };
    }
    kept.push_str(rest);
    kept
}

/// The length of a text that Go has quoted (`strconv.Quote`), without the quote at its end.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices()
        .find(|(_, letter)| {
            let ends = *letter == '"' && !escaped;
            escaped = *letter == '\\' && !escaped;
            ends
        })
        .map(|(at, _)| at)
}

/// The message without the start of a credential at its end: a long message may be cut within a credential.
fn without_cut_secret(message: &str, secrets: &[&str]) -> String {
    let end = message.trim_end_matches('…');
    let cut = end
        .char_indices()
        .map(|(at, _)| end.split_at(at))
        .take_while(|(_, rest)| rest.len() >= SHORTEST)
        .find(|(_, rest)| secrets.iter().any(|secret| secret.starts_with(rest)));
    match cut {
        Some((kept, _)) => format!("{kept}…"),
        None => message.to_owned(),
    }
}

/// The rest of a line after the first key that names a credential.
fn behind_name(line: &str) -> Option<&str> {
    if line.trim_start().starts_with('#') {
        return None;
    }
    let lower = line.to_ascii_lowercase();
    let ends = NAMES
        .iter()
        .filter_map(|name| Some(lower.find(name)? + name.len()));
    let behind = line.get(ends.min()?..)?;
    Some(behind.trim_start_matches(|character: char| character.is_ascii_alphanumeric()))
}

/// Whether the character separates values in TOML. Credentials do not have these characters.
fn is_punctuation(character: char) -> bool {
    character.is_whitespace()
        || matches!(
            character,
            '"' | '\'' | '=' | ',' | '[' | ']' | '{' | '}' | '\\'
        )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::number(
        "password = 123456",
        "(3, 1): Can't convert 123456(int64) to string",
        "(3, 1): Can't convert …(int64) to string"
    )]
    #[case::no_equals_sign(
        "  password hunter2",
        "was expecting token =, but got \"hunter2\" instead",
        "was expecting token =, but got \"…\" instead"
    )]
    #[case::inline_table(
        "auth = {username = 'me', password = 'hunter2'}",
        "unexpected hunter2",
        "unexpected …"
    )]
    #[case::dotted_key(
        "a.\"identitytoken\" = 'abc.def=='",
        "bad token abc.def==",
        "bad token …=="
    )]
    #[case::header(
        "Authorization = ['Bearer abcdef']",
        "invalid Bearer abcdef",
        "invalid … …"
    )]
    #[case::in_an_array_over_several_lines(
        "password = [\n  'hunter2',\n]\nroot = '/r'",
        "bad hunter2 in /r",
        "bad … in /r"
    )]
    #[case::in_a_string_over_several_lines(
        "token = \"\"\"\nhunter2\nand more\"\"\"\n",
        "bad hunter2",
        "bad …"
    )]
    #[case::in_a_table_of_credentials(
        "[plugins.cri.registry.configs.h.auth]\nusername = 'hunter2'\n[metrics]\naddress = 'here'",
        "bad hunter2 here",
        "bad … here"
    )]
    #[case::in_a_table_of_headers(
        "[plugins.cri.registry.headers]\nX-Key = ['hunter2']\n",
        "bad hunter2",
        "bad …"
    )]
    #[case::array_where_a_string_belongs(
        "pin = ['hunter2']",
        "(3, 1): Can't convert [hunter2]([]interface {}) to a slice",
        "(3, 1): Can't convert …([]interface {}) to a slice"
    )]
    #[case::value_with_parentheses(
        "pin = 'a(string) to b'",
        "(3, 1): Can't convert a(string) to b(string) to int64",
        "(3, 1): Can't convert …(string) to int64"
    )]
    #[case::value_with_its_cause(
        "wait = '12hunter2'",
        "(3, 1): Can't convert 12hunter2(string) to time.Duration. time: unknown unit \"hunter2\" in duration",
        "(3, 1): Can't convert …(string) to time.Duration"
    )]
    #[case::type_that_is_unknown(
        "pin = 1",
        "(3, 1): Can't convert 1(new) to string",
        "(3, 1): Can't convert …"
    )]
    #[case::number_that_is_too_large(
        "pin = 123456",
        "toml: (3, 1): 123456(int64) would overflow int8",
        "toml: (3, 1): …(int64) would overflow int8"
    )]
    #[case::negative_number(
        "pin = -123456",
        "(3, 1): -123456(int64) is negative so does not fit in uint32",
        "(3, 1): …(int64) is negative so does not fit in uint32"
    )]
    #[case::quoted_by_the_parser(
        "pin = 'hunter2' x",
        "(1, 9): unexpected token \"hunter2\", was expecting a table",
        "(1, 9): unexpected token \"…\", was expecting a table"
    )]
    #[case::quoted_with_escapes(
        "pin = 'hun\"ter2'",
        "got \"hun\\\"ter2\" instead",
        "got \"…\" instead"
    )]
    #[case::quoted_and_cut("pin = 'hunter2'", "got \"hunter2", "got \"…")]
    #[case::quoted_key(
        "pin = 1",
        "The following key was defined twice: \"pin\"",
        "The following key was defined twice: \"pin\""
    )]
    #[case::quoted_path(
        "imports = ['/etc/x.toml']",
        "open \"/etc/x.toml\": no such file",
        "open \"/etc/x.toml\": no such file"
    )]
    #[case::part_of_another("password = 'abc'\nsecret = 'abcdef'", "abcdef and abc", "… and …")]
    #[case::capitals("PassWord = 'hunter2'", "hunter2", "…")]
    #[case::other_key(
        "root = '/var/lib/containerd'",
        "no /var/lib/containerd",
        "no /var/lib/containerd"
    )]
    #[case::table(
        "[plugins.cri.registry.configs.host.auth]",
        "invalid host",
        "invalid host"
    )]
    #[case::comment(
        "# auth stands in config.toml",
        "config.toml is bad",
        "config.toml is bad"
    )]
    #[case::short("password = 'a'", "a bad value", "a bad value")]
    #[case::cut("identitytoken = 'eyJhbGciOi'", "but got \"eyJhbGc", "but got \"…")]
    #[case::cut_with_an_ellipsis("password = 'hünter2'", "got hün…", "got …")]
    #[case::not_ascii("é password = 'hünter2'", "got hünter2", "got …")]
    fn credentials_are_removed_from_a_message(
        #[case] config: &str,
        #[case] message: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(without_secrets(message, [config]), expected);
    }
}
