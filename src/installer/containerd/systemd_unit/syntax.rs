//! Parses the text of systemd's files: lines, words, escapes, specifiers, variables. Pure: reads no files.

use std::collections::BTreeMap;

/// Variables by name. `None` is a value that depends on the running system.
pub type Environment = BTreeMap<String, Option<String>>;

/// Why a text can't be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// systemd refuses the file.
    #[error("the section header {line:?} has no closing bracket")]
    Header {
        /// The line.
        line: String,
    },
    /// A command has no program, or a quote in it has no end.
    #[error("{value:?} is not a valid command")]
    Command {
        /// The value.
        value: String,
    },
    /// The value of a specifier is not in the unit's files, or the specifier is unknown.
    #[error("the specifier %{specifier} depends on the running system")]
    Specifier {
        /// Its letter.
        specifier: char,
    },
    /// systemd sets the variable itself, or passes it from its own environment.
    #[error("the variable {name} depends on the running system")]
    Variable {
        /// Its name.
        name: String,
    },
    /// The path is a pattern, which may match several files.
    #[error("{path:?} is a pattern, not the path of one file")]
    Pattern {
        /// The path.
        path: String,
    },
    /// Before systemd 254, the line after the backslash belongs to the comment. Since 254, it does not.
    #[error(
        "a comment ends with a backslash, and releases of systemd read the next line differently"
    )]
    Comment,
    /// The bytes of an escape are no UTF-8.
    #[error("an escape in {value:?} is not valid UTF-8")]
    NoText {
        /// The value.
        value: String,
    },
}

/// A command of `ExecStart=` with resolved specifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program.
    pub program: String,
    /// All arguments, including the first one, the name of the program.
    pub arguments: Vec<String>,
    /// Why an argument is unknown, which is in `arguments` as in the file.
    pub unresolved: Option<Error>,
    /// Whether systemd expands variables in the arguments. A colon before the program disables this.
    pub expands: bool,
}

/// The name of a service: `PREFIX.service`, `PREFIX@INSTANCE.service`, or a template's `PREFIX@.service`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    prefix: String,
    instance: Option<String>,
}

const SUFFIX: &str = ".service";
/// A unit's name has 255 characters at most (systemd.unit(5)).
const MAX_NAME: usize = 255;

impl Name {
    /// Parses a name; `None` if it is not the name of a service.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_suffix(SUFFIX)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\".contains(c);
        let (prefix, instance) = match name.split_once('@') {
            Some((prefix, instance)) => (prefix, Some(instance)),
            None => (name, None),
        };
        let is_instance = |text: &str| text.chars().all(|c| is_plain(c) || c == '@');
        let is_name = !prefix.is_empty()
            && text.len() <= MAX_NAME
            && prefix.chars().all(is_plain)
            && instance.is_none_or(is_instance);
        is_name.then(|| Self {
            prefix: prefix.to_owned(),
            instance: instance.map(str::to_owned),
        })
    }

    /// The whole name.
    #[must_use]
    pub fn full(&self) -> String {
        format!("{}{SUFFIX}", self.without_suffix())
    }

    fn without_suffix(&self) -> String {
        match &self.instance {
            Some(instance) => format!("{}@{instance}", self.prefix),
            None => self.prefix.clone(),
        }
    }

    /// The name of the template, if this is an instance.
    #[must_use]
    pub fn template(&self) -> Option<String> {
        let instance = self.instance.as_deref()?;
        (!instance.is_empty()).then(|| format!("{}@{SUFFIX}", self.prefix))
    }

    /// `target`, or if `target` is a template, its instance with the instance name of `self`.
    #[must_use]
    pub fn of_template(&self, target: &Self) -> Self {
        let mut target = target.clone();
        if target.instance.as_deref() == Some("") {
            target.instance.clone_from(&self.instance);
        }
        target
    }

    /// The names whose drop-ins apply to this unit, highest priority first: its own name, the template's, and both cut after each dash.
    #[must_use]
    pub fn drop_in_names(self) -> Vec<String> {
        let mut names = Vec::new();
        let mut next = Some(self);
        while let Some(name) = next {
            names.push(name.full());
            names.extend(name.template());
            let cut = name.prefix.trim_end_matches('-').rfind('-');
            next = cut.map(|dash| Self {
                prefix: name.prefix[..=dash].to_owned(),
                instance: name.instance,
            });
        }
        names
    }

    fn specifier(&self, specifier: char) -> Result<String, Error> {
        let instance = self.instance.as_deref().unwrap_or_default();
        let last = self.prefix.rsplit('-').next().unwrap_or_default();
        let unescaped = |text: &str| unescape_name(text).ok_or(Error::Specifier { specifier });
        Ok(match specifier {
            'n' => self.full(),
            'N' => self.without_suffix(),
            'p' => self.prefix.clone(),
            'P' => unescaped(&self.prefix)?,
            'i' => instance.to_owned(),
            'I' => unescaped(instance)?,
            'j' => last.to_owned(),
            'J' => unescaped(last)?,
            'f' => {
                let path = self.instance.as_deref().unwrap_or(&self.prefix);
                format!("/{}", unescaped(path)?.trim_start_matches('/'))
            }
            'u' | 'g' => "root".to_owned(),
            'U' | 'G' => "0".to_owned(),
            'h' => "/root".to_owned(),
            't' => "/run".to_owned(),
            'S' => "/var/lib".to_owned(),
            'C' => "/var/cache".to_owned(),
            'L' => "/var/log".to_owned(),
            'E' => "/etc".to_owned(),
            _ => return Err(Error::Specifier { specifier }),
        })
    }
}

/// Decodes a unit name: a dash is a slash, `\xHH` a byte (systemd.unit(5), *String Escaping for Inclusion in Unit Names*).
fn unescape_name(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'-' => bytes.push(b'/'),
            b'\\' => {
                let (byte, length) = unescape(rest).filter(|_| rest.starts_with(b"x"))?;
                bytes.extend(byte);
                rest = &rest[length..];
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

const COMMENT: [char; 2] = ['#', ';'];
const WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

fn is_whitespace(byte: u8) -> bool {
    WHITESPACE.contains(&char::from(byte))
}

/// The lines of a text. A line ends at a line feed, a carriage return, a NUL, or a sequence of different ones of these.
fn lines(text: &str) -> Vec<&str> {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r' | 0);
    let bytes = text.as_bytes();
    let mut lines = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let length = bytes[start..].iter().position(is_end);
        let end = length.map_or(bytes.len(), |length| start + length);
        lines.push(&text[start..end]);
        let mut next = end;
        while next < bytes.len() && is_end(&bytes[next]) && !bytes[end..next].contains(&bytes[next])
        {
            next += 1;
        }
        start = next;
    }
    lines
}

/// Whether the line ends with an unescaped backslash.
fn continues(line: &str) -> bool {
    let backslashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
    backslashes % 2 == 1
}

/// The assignments in all sections of a name, in order (systemd.syntax(7)).
///
/// # Errors
/// When systemd would refuse the file.
pub fn assignments(text: &str, section: &str) -> Result<Vec<(String, String)>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let mut is_in = false;
    let mut joined = String::new();
    let mut take = |line: &str| {
        let line = line.trim_matches(WHITESPACE);
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.strip_suffix(']').ok_or_else(|| Error::Header {
                line: line.to_owned(),
            })?;
            is_in = name == section;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_in) {
            let value = value.trim_matches(WHITESPACE);
            found.push((key.trim_matches(WHITESPACE).to_owned(), value.to_owned()));
        }
        Ok(())
    };
    for line in lines(text) {
        // Comments are allowed between the lines of one value.
        if line.trim_start_matches(WHITESPACE).starts_with(COMMENT) {
            continue;
        }
        joined.push_str(line);
        if continues(&joined) {
            joined.pop();
            joined.push(' ');
        } else {
            take(&joined)?;
            joined.clear();
        }
    }
    take(&joined)?;
    Ok(found)
}

/// The meaning of a backslash in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// Starts an escape as in C. Any other escape is an error.
    Strict,
    /// Starts an escape as in C. Any other escape stays as it is.
    Lenient,
    /// Is removed, and the next byte stays as it is. A quote needs no end.
    Dropped,
}

/// Removes the next word from `text` and returns it without quotes; `Err` for an invalid quote or escape.
fn word(text: &mut &[u8], escapes: Escapes) -> Result<Option<Vec<u8>>, ()> {
    let mut rest = text.trim_ascii_start();
    if rest.is_empty() {
        *text = rest;
        return Ok(None);
    }
    let mut word = Vec::new();
    let mut quote = None;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'\\' => match (escapes, unescape(rest), rest.split_first()) {
                (Escapes::Strict | Escapes::Lenient, Some((bytes, length)), _) => {
                    word.extend(bytes);
                    rest = &rest[length..];
                }
                (Escapes::Strict, None, _) => return Err(()),
                (Escapes::Lenient, None, None) => word.push(first),
                (Escapes::Lenient, None, Some((next, after))) => {
                    word.extend([first, *next]);
                    rest = after;
                }
                (Escapes::Dropped, _, next) => {
                    word.extend(next.map(|(next, _)| *next));
                    rest = next.map_or(rest, |(_, after)| after);
                }
            },
            byte if quote == Some(byte) => quote = None,
            b'"' | b'\'' if quote.is_none() => quote = Some(first),
            byte if quote.is_none() && is_whitespace(byte) => break,
            byte => word.push(byte),
        }
    }
    if quote.is_some() && rest.is_empty() && escapes != Escapes::Dropped {
        return Err(());
    }
    *text = rest.trim_ascii_start();
    Ok(Some(word))
}

/// The bytes and the length of the escape after a backslash (systemd.syntax(7), *Quoting*).
fn unescape(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    let number = |digits: &[u8], radix| {
        let digits = str::from_utf8(digits).ok()?;
        let all = digits.chars().all(|digit| digit.is_digit(radix));
        u32::from_str_radix(digits, radix)
            .ok()
            .filter(|number| all && *number != 0)
    };
    let byte = |number: u32| Some(vec![u8::try_from(number).ok()?]);
    let character = |number: u32| Some(char::from_u32(number)?.to_string().into_bytes());
    let plain = |byte: u8| Some((vec![byte], 1));
    match text.first()? {
        b'a' => plain(7),
        b'b' => plain(8),
        b'f' => plain(12),
        b'n' => plain(b'\n'),
        b'r' => plain(b'\r'),
        b't' => plain(b'\t'),
        b'v' => plain(11),
        b's' => plain(b' '),
        same @ (b'\\' | b'"' | b'\'') => plain(*same),
        b'x' => Some((byte(number(text.get(1..3)?, 16)?)?, 3)),
        b'u' => Some((character(number(text.get(1..5)?, 16)?)?, 5)),
        b'U' => Some((character(number(text.get(1..9)?, 16)?)?, 9)),
        b'0'..=b'7' => Some((byte(number(text.get(..3)?, 8)?)?, 3)),
        _ => None,
    }
}

/// Removes the next word of a setting; an unknown escape stays as it is.
fn word_of_setting(text: &mut &[u8]) -> Result<Option<Vec<u8>>, ()> {
    let before = *text;
    word(text, Escapes::Strict).or_else(|()| {
        *text = before;
        word(text, Escapes::Lenient)
    })
}

/// The words of a list such as `Environment=`. Like systemd, skips all words from the first invalid one on.
pub fn words(value: &str) -> Vec<String> {
    let mut rest = value.as_bytes();
    let mut words = Vec::new();
    while let Ok(Some(word)) = word(&mut rest, Escapes::Strict) {
        words.extend(String::from_utf8(word));
    }
    words
}

/// Name and value of an assignment; `None` if systemd would skip it.
pub fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_plain = |c: char| !c.is_control() || matches!(c, '\t' | '\n');
    (is_variable(name) && value.chars().all(is_plain)).then_some((name, value))
}

fn is_variable(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

/// Resolves the specifiers of a word (systemd.unit(5), *Specifiers*).
///
/// # Errors
/// When one depends on more than the unit's name.
pub fn specifiers(name: &Name, word: &str) -> Result<String, Error> {
    let mut resolved = String::new();
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match (character, characters.clone().next()) {
            ('%', Some('%')) => resolved.push('%'),
            ('%', Some(specifier)) if specifier.is_ascii_alphanumeric() => {
                resolved.push_str(&name.specifier(specifier)?);
            }
            (other, _) => {
                resolved.push(other);
                continue;
            }
        }
        characters.next();
    }
    Ok(resolved)
}

/// The commands of one `ExecStart=` (systemd.service(5), *Command Lines*); none if the value is empty.
///
/// # Errors
/// When systemd would refuse the value, or a specifier in the program depends on the running system.
pub fn command_lines(name: &Name, value: &str) -> Result<Vec<CommandLine>, Error> {
    let broken = || Error::Command {
        value: value.to_owned(),
    };
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|_| Error::NoText {
            value: value.to_owned(),
        })
    };
    let mut rest = value.as_bytes();
    let mut commands = Vec::new();
    while let Some(first) = word_of_setting(&mut rest).map_err(|()| broken())? {
        let first = text(first)?;
        if first == ";" {
            continue;
        }
        // Any combination of prefixes is accepted here. The prefix `|` of systemd 258, for a shell, is not supported.
        let program = first.trim_start_matches(['@', '-', ':', '+', '!']);
        let prefixes = &first[..first.len() - program.len()];
        let program = specifiers(name, program)?;
        if program.is_empty() || program.starts_with('|') || program.ends_with('/') {
            return Err(broken());
        }
        let (mut arguments, mut unresolved) = (Vec::new(), None);
        if !prefixes.contains('@') {
            arguments.push(program.clone());
        }
        loop {
            // An unquoted semicolon as a word of its own separates commands. With a backslash, it is an argument.
            let ends = |text: &[u8]| text.first().is_none_or(|byte| is_whitespace(*byte));
            if let Some(after) = rest.strip_prefix(b"\\;").filter(|after| ends(after)) {
                arguments.push(";".to_owned());
                rest = after.trim_ascii_start();
            } else if let Some(after) = rest.strip_prefix(b";").filter(|after| ends(after)) {
                rest = after.trim_ascii_start();
                break;
            } else if let Some(word) = word_of_setting(&mut rest).map_err(|()| broken())? {
                let word = text(word)?;
                let resolved = specifiers(name, &word);
                arguments.push(resolved.unwrap_or_else(|error| {
                    unresolved.get_or_insert(error);
                    word
                }));
            } else {
                break;
            }
        }
        if arguments.is_empty() {
            return Err(broken());
        }
        commands.push(CommandLine {
            program,
            arguments,
            unresolved,
            expands: !prefixes.contains(':'),
        });
    }
    Ok(commands)
}

/// Variables that systemd itself sets (systemd.exec(5), *Environment Variables Set or Propagated by the Service Manager*), without those
/// that end in `_DIRECTORY`.
const SYSTEMD_VARIABLES: [&str; 22] = [
    "PATH",
    "LANG",
    "USER",
    "LOGNAME",
    "HOME",
    "SHELL",
    "INVOCATION_ID",
    "XDG_RUNTIME_DIR",
    "MAINPID",
    "MANAGERPID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "SYSTEMD_EXEC_PID",
    "TERM",
    "LOG_NAMESPACE",
    "JOURNAL_STREAM",
    "PIDFILE",
    "REMOTE_ADDR",
];

/// The value of a variable; `None` if it is unset.
fn look_up<'a>(name: &str, environment: &'a Environment) -> Result<Option<&'a str>, Error> {
    let is_set_by_systemd = || {
        SYSTEMD_VARIABLES.contains(&name)
            || name.starts_with("LC_")
            || name.ends_with("_DIRECTORY")
            || !is_variable(name)
    };
    match environment.get(name) {
        Some(Some(value)) => Ok(Some(value)),
        None if !is_set_by_systemd() => Ok(None),
        Some(None) | None => Err(Error::Variable {
            name: name.to_owned(),
        }),
    }
}

/// Expands the variables in the arguments of a command. A word `$NAME` becomes the words of the value, `${NAME}` inside a word becomes the
/// value, and `$$` a dollar sign. An unset variable is empty.
///
/// # Errors
/// When a variable depends on the running system.
pub fn expand(arguments: &[String], environment: &Environment) -> Result<Vec<String>, Error> {
    let mut expanded = Vec::new();
    for argument in arguments {
        let alone = argument.strip_prefix('$');
        match alone.filter(|name| !name.starts_with(['{', '$'])) {
            Some(name) => {
                let value = look_up(name, environment)?.unwrap_or_default();
                let mut rest = value.as_bytes();
                while let Ok(Some(word)) = word(&mut rest, Escapes::Dropped) {
                    let word = String::from_utf8(word);
                    let value = value.to_owned();
                    expanded.push(word.map_err(|_| Error::NoText { value })?);
                }
            }
            None => expanded.push(expand_within(argument, environment)?),
        }
    }
    Ok(expanded)
}

fn expand_within(argument: &str, environment: &Environment) -> Result<String, Error> {
    let mut expanded = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let braced = after.strip_prefix('{');
        if let Some((name, behind)) = braced.and_then(|braced| braced.split_once('}')) {
            expanded.push_str(look_up(name, environment)?.unwrap_or_default());
            rest = behind;
        } else {
            expanded.push('$');
            rest = after.strip_prefix('$').unwrap_or(after);
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The variables of an environment file (systemd.exec(5), `EnvironmentFile=`): lines `NAME=VALUE` by the rules of a shell, without
/// expansion.
///
/// # Errors
/// When releases of systemd would read the text differently.
pub fn environment_file(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let is_end = |c: char| matches!(c, '\n' | '\r');
    let mut variables = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(WHITESPACE);
        let line = rest.split(is_end).next().unwrap_or_default();
        if rest.is_empty() {
            return Ok(variables);
        }
        if rest.starts_with(COMMENT) {
            if continues(line) {
                return Err(Error::Comment);
            }
            rest = &rest[line.len()..];
            continue;
        }
        let Some((key, _)) = line.split_once('=') else {
            rest = &rest[line.len()..];
            continue;
        };
        let (value, after) = value_of_environment_file(&rest[key.len() + 1..]);
        rest = after;
        let word = format!("{}={value}", key.trim_end_matches(WHITESPACE));
        if let Some((name, value)) = assignment(&word) {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// A value, and the text after its line. A quote opens only before the first unquoted character of the value.
fn value_of_environment_file(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.chars();
    // Length of the value without whitespace at its end.
    let mut kept = 0;
    let mut is_bare = false;
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\r' => break,
            '\\' => {
                is_bare = true;
                if let Some(next) = characters
                    .next()
                    .filter(|next| !matches!(next, '\n' | '\r'))
                {
                    value.push(next);
                }
                kept = value.len();
            }
            '\'' if !is_bare => {
                value.extend(characters.by_ref().take_while(|next| *next != '\''));
                kept = value.len();
            }
            '"' if !is_bare => {
                while let Some(next) = characters.next().filter(|next| *next != '"') {
                    match next {
                        '\\' => match characters.next() {
                            Some(escaped @ ('"' | '\\' | '`' | '$')) => value.push(escaped),
                            Some('\n') | None => {}
                            Some(other) => value.extend(['\\', other]),
                        },
                        next => value.push(next),
                    }
                }
                kept = value.len();
            }
            space if WHITESPACE.contains(&space) => {
                if is_bare {
                    value.push(space);
                }
            }
            plain => {
                is_bare = true;
                value.push(plain);
                kept = value.len();
            }
        }
    }
    value.truncate(kept);
    (value, characters.as_str())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[rstest]
    #[case::plain("[Service]\nA=1\n", &[("A", "1")])]
    #[case::with_space_around("  [Service]  \n  A  =  1  \n", &[("A", "1")])]
    #[case::an_equals_sign_in_the_value("[Service]\nA=b=c\n", &[("A", "b=c")])]
    #[case::no_final_newline("[Service]\nA=1", &[("A", "1")])]
    #[case::in_order("[Service]\nA=1\nB=2\nA=3\n", &[("A", "1"), ("B", "2"), ("A", "3")])]
    #[case::nothing_assigned("[Service]\nA=\n", &[("A", "")])]
    #[case::of_a_section_that_comes_twice("[Service]\nA=1\n[Unit]\nA=2\n[Service]\nA=3\n", &[("A", "1"), ("A", "3")])]
    #[case::of_another_section("[X-Service]\nA=1\n", &[])]
    #[case::before_any_section("A=1\n[Service]\n", &[])]
    #[case::no_assignment("[Service]\nA\n", &[])]
    #[case::comments("# a\n[Service]\n;b\n  # A=1\nA=2 # no comment\n", &[("A", "2 # no comment")])]
    #[case::a_continuation("[Service]\nA=1 \\\n  2\\\n3\n", &[("A", "1    2 3")])]
    #[case::comments_in_a_continuation("[Service]\nA=1\\\n# a \\\n  ;b\n2\n", &[("A", "1 2")])]
    #[case::a_continuation_that_an_empty_line_ends("[Service]\nA=1\\\n\nB=2\n", &[("A", "1"), ("B", "2")])]
    #[case::a_continuation_to_the_end("[Service]\nA=1\\\n", &[("A", "1")])]
    #[case::two_backslashes("[Service]\nA=1\\\\\nB=2\n", &[("A", "1\\\\"), ("B", "2")])]
    #[case::a_comment_that_ends_with_a_backslash("[Service]\n# a \\\nA=1\n", &[("A", "1")])]
    #[case::a_section_within_a_continuation("[Service]\nA=1\\\n[Unit]\nB=2\n", &[("A", "1 [Unit]"), ("B", "2")])]
    #[case::windows_line_ends("[Service]\r\nA=1\\\r\n2\r\n\r\nB=3\r\n", &[("A", "1 2"), ("B", "3")])]
    #[case::a_byte_order_mark("\u{feff}[Service]\nA=1\n", &[("A", "1")])]
    #[case::nothing("", &[])]
    fn the_assignments_of_a_section_are_read_in_order(
        #[case] text: &str,
        #[case] expected: &[(&str, &str)],
    ) {
        let found = assignments(text, "Service").unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_section_header_without_its_end_is_an_error() {
        assert!(assignments("[Service\nA=1\n", "Service").is_err());
    }

    #[rstest]
    #[case::several("A=1  B=2\tC=3", &["A=1", "B=2", "C=3"])]
    #[case::in_double_quotes(r#""A=1 2" B=3"#, &["A=1 2", "B=3"])]
    #[case::in_single_quotes("'A=1 2'", &["A=1 2"])]
    #[case::quotes_in_quotes(r#"'A="1"' "B='2'""#, &["A=\"1\"", "B='2'"])]
    #[case::quotes_around_the_value(r#"A="1 2""#, &["A=1 2"])]
    #[case::escapes(r#""A=1\t\"2\"" B=\x41\102\u00e9 C=a\sb"#, &["A=1\t\"2\"", "B=ABé", "C=a b"])]
    #[case::before_a_quote_without_an_end(r#"A=1 "B=2"#, &["A=1"])]
    #[case::before_an_escape_that_is_none(r"A=1 B=\q C=3", &["A=1"])]
    #[case::an_empty_word("''", &[""])]
    #[case::nothing("  ", &[])]
    fn the_words_of_a_list_are_unquoted(#[case] value: &str, #[case] expected: &[&str]) {
        assert_eq!(words(value), expected);
    }

    #[rstest]
    #[case::plain("/bin/x -c  /a", &["/bin/x", "-c", "/a"])]
    #[case::quotes_and_escapes(r#"/bin/x "a b" 'c\td' e"f g"h"#, &["/bin/x", "a b", "c\td", "ef gh"])]
    #[case::an_escape_that_is_none(r#"/bin/x "\q" \w"#, &["/bin/x", "\\q", "\\w"])]
    #[case::an_empty_argument("/bin/x ''", &["/bin/x", ""])]
    #[case::a_program_in_quotes(r#""/bin/x y" a"#, &["/bin/x y", "a"])]
    #[case::prefixes("-+/bin/x a", &["/bin/x", "a"])]
    #[case::more_prefixes("!!/bin/x a", &["/bin/x", "a"])]
    #[case::a_name_of_its_own("@/bin/x name a", &["name", "a"])]
    #[case::a_separator_that_is_an_argument(r#"/bin/x \; ";" a;b"#, &["/bin/x", ";", ";", "a;b"])]
    #[case::a_separator_at_the_end("/bin/x a ;", &["/bin/x", "a"])]
    #[case::specifiers("/bin/%p %n %N %%n 100% %-", &["/bin/a-b", "a-b@c-d.service", "a-b@c-d", "%n", "100%", "%-"])]
    #[case::specifiers_of_an_instance("/bin/x %i %I %P %j %f", &["/bin/x", "c-d", "c/d", "a/b", "b", "/c/d"])]
    #[case::specifiers_of_the_manager("/bin/x %t %S %C %L %E %h %u %U", &["/bin/x", "/run", "/var/lib", "/var/cache", "/var/log", "/etc", "/root", "root", "0"])]
    #[case::a_specifier_in_quotes("/bin/x '%i'", &["/bin/x", "c-d"])]
    fn a_command_is_split_unquoted_and_resolved(#[case] value: &str, #[case] expected: &[&str]) {
        let commands = command_lines(&name("a-b@c-d.service"), value).unwrap();
        let [command] = commands.as_slice() else {
            panic!("{commands:?}");
        };
        assert_eq!(command.arguments, expected);
        assert!(command.expands);
    }

    #[test]
    fn a_colon_before_the_program_keeps_variables_as_they_are() {
        let commands = command_lines(&name("a.service"), ":/bin/x $A").unwrap();
        assert!(!commands[0].expands);
    }

    #[test]
    fn a_semicolon_separates_commands() {
        let commands = command_lines(&name("a.service"), "/bin/x a ; /bin/y ; ").unwrap();
        let programs: Vec<&str> = commands
            .iter()
            .map(|command| command.program.as_str())
            .collect();
        assert_eq!(programs, ["/bin/x", "/bin/y"]);
    }

    #[rstest]
    #[case::a_quote_without_an_end("/bin/x 'a")]
    #[case::a_directory("/bin/x/ a")]
    #[case::prefixes_alone("-")]
    #[case::a_name_of_its_own_that_is_missing("@/bin/x")]
    #[case::a_prefix_of_later_releases("|/bin/x")]
    #[case::bytes_that_are_no_text(r"/bin/x \xff")]
    #[case::the_hostname("/bin/%H")]
    #[case::an_unknown_specifier("/bin/%Q x")]
    fn an_ambiguous_command_is_an_error(#[case] value: &str) {
        assert!(command_lines(&name("a.service"), value).is_err());
    }

    #[rstest]
    #[case::as_a_word(&["$TWO"], &["b", "c d"])]
    #[case::as_a_word_without_a_value(&["$NONE", "x"], &["x"])]
    #[case::in_braces(&["${TWO}"], &["b 'c d'"])]
    #[case::in_braces_without_a_value(&["${NONE}"], &[""])]
    #[case::in_braces_within_a_word(&["--a=${ONE}/${ONE}"], &["--a=a/a"])]
    #[case::within_a_word_without_braces(&["--a=$ONE"], &["--a=$ONE"])]
    #[case::a_dollar_sign(&["$$ONE", "a$$", "a$"], &["$ONE", "a$", "a$"])]
    #[case::a_brace_without_its_end(&["${ONE"], &["${ONE"])]
    #[case::of_a_value_only_once(&["${DOLLAR}"], &["$ONE"])]
    #[case::a_path_that_the_unit_sets(&["${PATH}"], &["/bin"])]
    fn variables_are_expanded_as_by_systemd(#[case] words: &[&str], #[case] expected: &[&str]) {
        let environment = [
            ("ONE", "a"),
            ("TWO", "b 'c d'"),
            ("DOLLAR", "$ONE"),
            ("PATH", "/bin"),
        ];
        let environment =
            environment.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let expanded = expand(&words, &environment.into());
        assert_eq!(expanded.unwrap(), expected);
    }

    #[rstest]
    #[case::of_systemd_itself("${PATH}")]
    #[case::of_a_directory_of_the_unit("${RUNTIME_DIRECTORY}")]
    #[case::handed_on_by_the_manager("$PASSED")]
    #[case::no_name("$A/b")]
    fn a_command_with_an_undefined_variable_is_unknown(#[case] word: &str) {
        let environment = BTreeMap::from([("PASSED".to_owned(), None)]);
        assert!(expand(&[word.to_owned()], &environment).is_err());
    }

    #[rstest]
    #[case::plain("A=1\nB=2", &[("A", "1"), ("B", "2")])]
    #[case::space_around("  A = 1 2  \n", &[("A", "1 2")])]
    #[case::quotes("A='1 \"2\" ' \nB=\" 3 '4' \"\n", &[("A", "1 \"2\" "), ("B", " 3 '4' ")])]
    #[case::quotes_side_by_side("A='1'\"2\" 3\n", &[("A", "123")])]
    #[case::a_quote_within_a_value("A=it's\nB=1\n", &[("A", "it's"), ("B", "1")])]
    #[case::escapes_in_double_quotes(r#"A="\"\$\`\\\n""#, &[("A", "\"$`\\\\n")])]
    #[case::no_escapes_in_single_quotes(r"A='\n'", &[("A", "\\n")])]
    #[case::an_escape_without_quotes(r"A=a\ b\'c", &[("A", "a b'c")])]
    #[case::a_value_over_several_lines("A=\"1\n2\"\nB=3\n", &[("A", "1\n2"), ("B", "3")])]
    #[case::a_continuation("A=1\\\n2\nB=\"3\\\n4\"\n", &[("A", "12"), ("B", "34")])]
    #[case::comments("# A=1\n ;B=2\nC=3 # 4\n", &[("C", "3 # 4")])]
    #[case::nothing_assigned("A=\nB=''\n", &[("A", ""), ("B", "")])]
    #[case::no_expansion("A=$B${C}\n", &[("A", "$B${C}")])]
    #[case::names_that_are_none("export A=1\n1B=2\nC\nD=4\n", &[("D", "4")])]
    #[case::the_last_of_two("A=1\nA=2\n", &[("A", "2")])]
    #[case::windows_line_ends("A=1\r\nB=2\r\n", &[("A", "1"), ("B", "2")])]
    fn an_environment_file_is_read_as_by_systemd(
        #[case] text: &str,
        #[case] expected: &[(&str, &str)],
    ) {
        let variables = environment_file(text).unwrap();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(variables, expected);
    }

    #[test]
    fn a_comment_that_releases_of_systemd_read_differently_is_an_error() {
        assert_eq!(environment_file("# a \\\nA=1\n"), Err(Error::Comment));
    }

    #[rstest]
    #[case("a.service", &["a.service"])]
    #[case("a-b-c.service", &["a-b-c.service", "a-b-.service", "a-.service"])]
    #[case("a@b.service", &["a@b.service", "a@.service"])]
    #[case("a-b@c.service", &["a-b@c.service", "a-b@.service", "a-@c.service", "a-@.service"])]
    fn drop_ins_are_looked_for_under_each_name_of_a_unit(
        #[case] unit: &str,
        #[case] expected: &[&str],
    ) {
        assert_eq!(name(unit).drop_in_names(), expected);
    }

    #[rstest]
    #[case("a.socket")]
    #[case(".service")]
    #[case("../a.service")]
    #[case("@a.service")]
    fn an_invalid_service_name_is_refused(#[case] text: &str) {
        assert_eq!(Name::parse(text), None);
    }
}
