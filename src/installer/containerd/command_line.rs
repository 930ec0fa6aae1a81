//! Reads the options in a command line of containerd as containerd reads them. Pure: `daemon` and `inspect` find the command line.
//!
//! The options are those of `cmd/containerd/command/main.go` in containerd 1.6.36, 1.7.35, 2.1.9 and 2.4.2. The first three parse them with
//! `urfave/cli` 1.22 and 2.27, which use Go's package `flag`; 2.4.2 uses `urfave/cli` 3.11, which has a parser of its own. None of these
//! releases reads an option from an environment variable.

use std::borrow::Cow;

use crate::handoff::{LONGEST_PATH, printable_up_to};

/// The subcommands of all releases, and their aliases. With one of them, the program is no daemon.
const SUBCOMMANDS: [&[u8]; 5] = [b"config", b"publish", b"oci-hook", b"help", b"h"];

/// Why the path in an option of containerd is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The path is not UTF-8.
    #[error("the path in the option {option} of containerd is not UTF-8 text: {shown:?}")]
    NotText {
        /// The option.
        option: &'static str,
        /// The path, with a replacement character for each invalid sequence.
        shown: String,
    },
    /// The path is empty. containerd refuses to start with an empty path of its configuration.
    #[error("the path in the option {option} of containerd is empty")]
    Empty {
        /// The option.
        option: &'static str,
    },
    /// The last argument is an option without its value. containerd refuses to start.
    #[error("the option {option} of containerd has no value")]
    NoValue {
        /// The option.
        option: String,
    },
    /// The path is relative, and the directory at which it starts is unknown.
    #[error(
        "the path {path} in the option {option} of containerd is relative, and the working directory of containerd is unknown"
    )]
    NoDirectory {
        /// The option.
        option: &'static str,
        /// The path.
        path: String,
    },
    /// Releases of containerd read the command line differently.
    #[error(
        "releases of containerd read the command line of containerd differently: an argument before an option is empty or begins or ends with a space"
    )]
    Ambiguous,
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::NotText { .. } => "rename the file, and start containerd with the new path",
            Self::Empty { .. } | Self::NoValue { .. } => {
                "name a file in the option, or remove the option from the command line"
            }
            Self::NoDirectory { .. } => "start containerd with an absolute path",
            Self::Ambiguous => "remove that argument from the command line of containerd",
        }))
    }
}

/// The options that decide where the files of a containerd are, as they are in its command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options<'a> {
    config: Option<&'a [u8]>,
    address: Option<&'a [u8]>,
    root: Option<&'a [u8]>,
    state: Option<&'a [u8]>,
}

/// The paths of a containerd, each with the reason for which it is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Path of the configuration file, if the command line names one.
    pub(crate) config: Result<Option<String>, Error>,
    /// Path of the socket, if the command line names one.
    pub(crate) address: Result<Option<String>, Error>,
    /// The directories of its data that the command line names. Paths that can't be read are left out.
    pub(crate) data: Vec<String>,
    /// Whether the command line names the directory of persistent data, and that of volatile data.
    pub(crate) names_data: [bool; 2],
}

/// The paths in the `arguments` of a containerd, of which the first is the name of the program; `None` if the program is no daemon with
/// these arguments. Relative paths start at `directory`.
pub(crate) fn paths(arguments: &[&[u8]], directory: impl Fn() -> Option<String>) -> Option<Paths> {
    let options = match options(arguments.get(1..).unwrap_or_default()) {
        Ok(options) => options?,
        Err(error) => {
            return Some(Paths {
                config: Err(error.clone()),
                address: Err(error),
                data: Vec::new(),
                names_data: [false; 2],
            });
        }
    };
    let config = options.config.map(|path| {
        if path.is_empty() {
            return Err(Error::Empty { option: "--config" });
        }
        absolute("--config", path, &directory)
    });
    // containerd ignores an empty address.
    let address = options.address.filter(|path| !path.is_empty());
    let address = address.map(|path| absolute("--address", path, &directory));
    let data = [("--root", options.root), ("--state", options.state)];
    let names_data = data.map(|(_, path)| path.is_some_and(|path| !path.is_empty()));
    let data = data.into_iter().filter_map(|(option, path)| {
        let path = path.filter(|path| !path.is_empty())?;
        absolute(option, path, &directory).ok()
    });
    Some(Paths {
        config: config.transpose(),
        address: address.transpose(),
        data: data.collect(),
        names_data,
    })
}

fn absolute(
    option: &'static str,
    path: &[u8],
    directory: impl Fn() -> Option<String>,
) -> Result<String, Error> {
    let path = std::str::from_utf8(path).map_err(|_| Error::NotText {
        option,
        shown: printable_up_to(&String::from_utf8_lossy(path), LONGEST_PATH),
    })?;
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let directory = directory().ok_or_else(|| Error::NoDirectory {
        option,
        path: printable_up_to(path, LONGEST_PATH),
    })?;
    // `..` stays: the kernel follows a symlink before it.
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let parts: Vec<&str> = parts.collect();
    Ok(format!(
        "{}/{}",
        directory.trim_end_matches('/'),
        parts.join("/")
    ))
}

/// The options in `arguments`, without the name of the program; `None` if the program is no daemon with these arguments.
fn options<'a>(arguments: &[&'a [u8]]) -> Result<Option<Options<'a>>, Error> {
    match (
        Parser::GoFlag.parse(arguments),
        Parser::Urfave3.parse(arguments),
    ) {
        (Ok(Some(one)), Ok(Some(other))) if one != other => Err(Error::Ambiguous),
        (Ok(Some(options)), _) | (_, Ok(Some(options))) => Ok(Some(options)),
        (Err(error), Err(_)) => Err(error),
        (Ok(None), _) | (_, Ok(None)) => Ok(None),
    }
}

/// A parser of command lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parser {
    /// `FlagSet.parseOne` of Go's `flag`: an argument that is no option ends the options.
    GoFlag,
    /// `Command.parseFlags` of `urfave/cli` 3: spaces around an argument do not count, and only a subcommand ends the options. With
    /// another argument that is no option, containerd prints its help and ends.
    Urfave3,
}

/// What follows the name of an option.
enum Takes {
    Value,
    Nothing,
    /// Whether the option takes a value is unknown: it is not an option of containerd, but may be one of a modified containerd.
    Unknown,
}

impl Parser {
    fn parse<'a>(self, arguments: &[&'a [u8]]) -> Result<Option<Options<'a>>, Error> {
        let mut options = Options::default();
        let mut first: Option<&[u8]> = None;
        let mut arguments = arguments.iter().copied().peekable();
        while let Some(given) = arguments.next() {
            let argument = self.trim(given);
            if argument == b"--" {
                first = first.or_else(|| arguments.next());
                break;
            }
            let Some(name) = argument.strip_prefix(b"-").filter(|name| !name.is_empty()) else {
                first = first.or(Some(given));
                if self == Self::GoFlag || argument == b"-" || SUBCOMMANDS.contains(&argument) {
                    break;
                }
                continue;
            };
            let name = name.strip_prefix(b"-").unwrap_or(name);
            let (name, value) = match name.iter().position(|byte| *byte == b'=') {
                Some(at) => (&name[..at], Some(&name[at + 1..])),
                None => (name, None),
            };
            let (takes, option) = match name {
                b"config" | b"c" => (Takes::Value, Some(&mut options.config)),
                b"address" | b"a" => (Takes::Value, Some(&mut options.address)),
                b"root" => (Takes::Value, Some(&mut options.root)),
                b"state" => (Takes::Value, Some(&mut options.state)),
                b"log-level" | b"l" => (Takes::Value, None),
                b"version" | b"v" | b"help" | b"h" => {
                    if !value.is_some_and(is_false) {
                        return Ok(None);
                    }
                    (Takes::Nothing, None)
                }
                _ => (Takes::Unknown, None),
            };
            let value = match (value, takes) {
                (None, Takes::Value) => Some(arguments.next().ok_or_else(|| Error::NoValue {
                    option: printable_up_to(&String::from_utf8_lossy(argument), LONGEST_PATH),
                })?),
                (None, Takes::Unknown) => arguments.next_if(|next| !next.starts_with(b"-")),
                (value, Takes::Value | Takes::Nothing | Takes::Unknown) => value,
            };
            if let Some(option) = option {
                *option = value;
            }
        }
        let is_daemon = match (self, first) {
            (_, None) => true,
            (Self::GoFlag, Some(first)) => !SUBCOMMANDS.contains(&first),
            (Self::Urfave3, Some(first)) => first.is_empty(),
        };
        Ok(is_daemon.then_some(options))
    }

    fn trim(self, argument: &[u8]) -> &[u8] {
        match (self, std::str::from_utf8(argument)) {
            (Self::GoFlag, _) => argument,
            (Self::Urfave3, Ok(text)) => text.trim().as_bytes(),
            (Self::Urfave3, Err(_)) => argument.trim_ascii(),
        }
    }
}

/// Whether Go's `strconv.ParseBool` reads the value as false.
fn is_false(value: &[u8]) -> bool {
    matches!(value, b"0" | b"f" | b"F" | b"false" | b"False" | b"FALSE")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DEFAULT: Option<&str> = None;

    fn read(arguments: &[&[u8]]) -> Option<Paths> {
        let arguments = [&[b"/usr/bin/containerd".as_slice()], arguments].concat();
        paths(&arguments, || Some("/srv".to_owned()))
    }

    fn config(arguments: &[&str]) -> Option<Result<Option<String>, Error>> {
        let arguments: Vec<&[u8]> = arguments.iter().map(|text| text.as_bytes()).collect();
        read(&arguments).map(|paths| paths.config)
    }

    #[rstest]
    #[case::without_options(&[], DEFAULT)]
    #[case::short(&["-c", "/x"], Some("/x"))]
    #[case::short_with_an_equals_sign(&["-c=/x"], Some("/x"))]
    #[case::short_with_two_dashes(&["--c", "/x"], Some("/x"))]
    #[case::long_with_one_dash(&["-config", "/x"], Some("/x"))]
    #[case::long(&["--config", "/x"], Some("/x"))]
    #[case::long_with_an_equals_sign(&["--config=/x"], Some("/x"))]
    #[case::a_value_with_an_equals_sign(&["--config=/x=y"], Some("/x=y"))]
    #[case::the_last_of_two(&["--config", "/one", "--config", "/two"], Some("/two"))]
    #[case::the_last_of_two_names(&["--config=/one", "-c", "/two"], Some("/two"))]
    #[case::the_last_after_an_empty_one(&["--config=", "--config", "/two"], Some("/two"))]
    #[case::a_value_that_looks_like_an_option(&["--config", "--root"], Some("/srv/--root"))]
    #[case::behind_the_end_of_options(&["--", "--config", "/x"], DEFAULT)]
    #[case::before_the_end_of_options(&["-c", "/x", "--"], Some("/x"))]
    #[case::the_end_of_options_as_a_value(&["-c", "--", "-c", "/x"], Some("/x"))]
    #[case::behind_an_argument(&["argument", "--config", "/x"], DEFAULT)]
    #[case::behind_a_dash(&["-", "--config", "/x"], DEFAULT)]
    #[case::behind_the_value_of_another_option(&["--root", "/r", "--state", "/s", "-l", "debug", "--config", "/x"], Some("/x"))]
    #[case::as_the_value_of_another_option(&["--root", "--config", "/x"], DEFAULT)]
    #[case::behind_a_switch_that_is_off(&["-v=false", "--help=0", "-c", "/x"], Some("/x"))]
    #[case::behind_an_unknown_option_with_a_value(&["--trace", "on", "-c", "/x"], Some("/x"))]
    #[case::behind_an_unknown_switch(&["--trace", "-c", "/x"], Some("/x"))]
    #[case::behind_an_unknown_option_with_an_equals_sign(&["--trace=on", "-c", "/x"], Some("/x"))]
    #[case::a_name_that_begins_alike(&["--configuration=/x"], DEFAULT)]
    #[case::in_capitals(&["--Config=/x"], DEFAULT)]
    #[case::relative(&["-c", "cfg.toml"], Some("/srv/cfg.toml"))]
    #[case::relative_with_dots(&["-c", "./a/../cfg.toml"], Some("/srv/a/../cfg.toml"))]
    #[case::an_empty_last_argument(&["-c", "/x", ""], Some("/x"))]
    fn the_configuration_is_the_one_that_containerd_loads(
        #[case] arguments: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let expected = expected.map(str::to_owned);
        assert_eq!(config(arguments), Some(Ok(expected)), "{arguments:?}");
    }

    #[rstest]
    #[case::that_prints_its_configuration(&["-c", "/x", "config", "dump"])]
    #[case::behind_the_end_of_options(&["--", "config", "dump"])]
    #[case::that_publishes_an_event(&["--address", "/a", "publish", "--topic", "t"])]
    #[case::a_hook(&["oci-hook"])]
    #[case::that_prints_its_release(&["--version"])]
    #[case::that_prints_its_release_by_a_value(&["-c", "/x", "-v=true"])]
    #[case::that_prints_its_help(&["-h"])]
    fn a_containerd_with_a_subcommand_is_no_daemon(#[case] arguments: &[&str]) {
        assert_eq!(config(arguments), None, "{arguments:?}");
    }

    #[rstest]
    #[case::an_empty_value(&["--config", ""], "the option --config of containerd is empty")]
    #[case::an_empty_value_behind_an_equals_sign(&["--config="], "the option --config of containerd is empty")]
    #[case::an_empty_last_value(&["-c", "/x", "-c="], "the option --config of containerd is empty")]
    #[case::no_value(&["--config"], "the option --config of containerd has no value")]
    // `urfave/cli` 3 skips an empty argument, and Go's `flag` ends the options there.
    #[case::an_empty_argument_before(&["", "-c", "/x"], "differently")]
    #[case::spaces_around(&[" --config=/x"], "differently")]
    #[case::spaces_behind(&["--config=/x "], "differently")]
    fn a_path_that_is_unknown_has_a_cause_and_a_help(
        #[case] arguments: &[&str],
        #[case] cause: &str,
    ) {
        let error = config(arguments).unwrap().unwrap_err();
        assert!(error.to_string().contains(cause), "{error}");
        assert!(error.help().is_some());
    }

    #[test]
    fn a_path_that_is_no_text_is_named_as_such() {
        let paths = read(&[b"-a", b"/run/\xff.sock", b"--config=/srv/\xfe.toml"]).unwrap();
        let error = paths.config.unwrap_err().to_string();
        assert!(
            error.contains("--config of containerd is not UTF-8"),
            "{error}"
        );
        let error = paths.address.unwrap_err().to_string();
        assert!(
            error.contains("--address of containerd is not UTF-8"),
            "{error}"
        );
        // Bytes of other options do not matter.
        let paths = read(&[b"--root", b"/\xff", b"-c", b"/x"]).unwrap();
        assert_eq!(paths.config, Ok(Some("/x".to_owned())));
    }

    #[rstest]
    #[case::short(&["-a", "/run/a.sock"], Some("/run/a.sock"))]
    #[case::the_last(&["-a=/one", "--address", "/two"], Some("/two"))]
    #[case::relative(&["--address=a.sock"], Some("/srv/a.sock"))]
    #[case::empty(&["--address="], None)]
    fn the_socket_is_the_one_that_containerd_opens(
        #[case] arguments: &[&str],
        #[case] expected: Option<&str>,
    ) {
        let arguments: Vec<&[u8]> = arguments.iter().map(|text| text.as_bytes()).collect();
        let found = read(&arguments).unwrap().address;
        assert_eq!(found, Ok(expected.map(str::to_owned)));
    }

    #[test]
    fn a_relative_path_needs_the_working_directory() {
        let arguments = [b"containerd".as_slice(), b"-c", b"cfg.toml"];
        let error = paths(&arguments, || None).unwrap().config.unwrap_err();
        assert!(error.to_string().contains("cfg.toml"), "{error}");
        assert!(error.help().unwrap().contains("absolute"));
        let arguments = [b"containerd".as_slice(), b"-c", b"/cfg.toml"];
        assert_eq!(
            paths(&arguments, || None).unwrap().config,
            Ok(Some("/cfg.toml".to_owned()))
        );
    }
}
