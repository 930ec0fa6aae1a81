//! Reads how `OpenRC` starts a service, for a host on which it does not run: the plain assignments of its script and of its settings
//! (openrc-run(8)). A script is a program of the shell, so everything else in it is left out or makes the command unknown.

use std::collections::{BTreeMap, BTreeSet};

use super::systemd_unit::{self, Command, Error, ServiceDefinition, Unit};
use crate::installer::host::HostRoot;
use crate::installer::host::path::file_name;

/// Directory with one entry per service that `OpenRC` has started (`RC_SVCDIR`, `librc`).
pub(crate) const RC_STARTED: &str = "/run/openrc/started";

/// Size of a script or of its settings, in bytes, at most.
const MAX_TEXT: u64 = 1 << 16;

/// Reads the service `unit` from the files of systemd, or else from those of `OpenRC`.
///
/// # Errors
/// As for [`systemd_unit::service`].
pub(crate) fn service(host: &HostRoot, unit: &str) -> Unit {
    let service = systemd_unit::service(host, unit)?;
    if !service.files.is_empty() {
        return Ok(service);
    }
    let name = unit.strip_suffix(".service").unwrap_or(unit);
    let path = format!("/etc/init.d/{name}");
    let script = host.read_text(&path, MAX_TEXT)?;
    // Scripts of other managers have other rules.
    let is_openrc = |text: &String| {
        text.lines()
            .next()
            .is_some_and(|it| it.contains("openrc-run"))
    };
    let Some(script) = script.filter(is_openrc) else {
        return Ok(service);
    };
    let mut variables = Variables::default();
    for variable in ["RC_SVCNAME", "SVCNAME"] {
        variables.insert(variable.to_owned(), Some(name.to_owned()));
    }
    let mut exported = BTreeSet::new();
    let mut read = |text: &str| {
        assign(text, &mut variables);
        exported.extend(exports(text).map(str::to_owned));
    };
    for path in ["/etc/rc.conf".to_owned(), format!("/etc/conf.d/{name}")] {
        read(&host.read_text(&path, MAX_TEXT)?.unwrap_or_default());
    }
    read(&script);
    let mut environment = Variables::default();
    for path in sourced(&script) {
        let text = host.read_text(path, MAX_TEXT)?.unwrap_or_default();
        assign(&text, &mut environment);
    }
    let of_service = variables
        .iter()
        .filter(|(name, _)| exported.contains(*name));
    environment.extend(of_service.map(|(name, value)| (name.clone(), value.clone())));
    let known = |(name, value): (String, Option<String>)| Some((name, value?));
    Ok(ServiceDefinition {
        command: command(&script, &variables).ok_or_else(|| Error::OpenRc {
            name: name.to_owned(),
        }),
        environment: environment.into_iter().filter_map(known).collect(),
        files: vec![path],
        unmet: None,
        search_path: Vec::new(),
        working_directory: variables
            .get("directory")
            .map_or_else(|| Some("/".to_owned()), Clone::clone),
    })
}

/// Variables by name; `None` for a value that is not plain.
type Variables = BTreeMap<String, Option<String>>;

/// The command that a script starts, if it leaves the start to `OpenRC` and the command is plain.
fn command(script: &str, variables: &Variables) -> Option<Command> {
    let mut lines = script.lines().map(|line| line.replace(' ', ""));
    if lines.any(|line| line.starts_with("start()") || line.starts_with("functionstart")) {
        return None;
    }
    let program = variables.get("command")?.clone()?;
    // The last two are those of a supervisor and of a daemon.
    let options = [
        "command_args",
        "command_args_foreground",
        "command_args_background",
    ];
    let mut arguments = vec![program.clone()];
    for name in options {
        let value = variables.get(name).map_or(Some(""), Option::as_deref)?;
        arguments.extend(words(value)?);
    }
    (!program.is_empty() && file_name(&program) != "sh").then_some(Command { program, arguments })
}

/// The files that a script reads its environment from.
fn sourced(script: &str) -> impl Iterator<Item = &str> {
    let words: Vec<&str> = script.split_whitespace().collect();
    let pairs = words.windows(2).map(|pair| (pair[0], pair[1]));
    let files = pairs.filter(|(word, path)| *word == "." && path.starts_with('/'));
    let files: Vec<&str> = files.map(|(_, path)| path.trim_end_matches(';')).collect();
    files.into_iter()
}

/// The names of the variables that a text passes to the service.
fn exports(text: &str) -> impl Iterator<Item = &str> {
    let statements = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("export "));
    statements.filter_map(|it| it.split(['=', ' ', ';', '#']).next())
}

/// Adds the assignments of a text. An indented one depends on a condition, so its value is unknown.
fn assign(text: &str, variables: &mut Variables) {
    let mut rest = text;
    while !rest.is_empty() {
        let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
        let plain = line.trim_start();
        let statement = plain.strip_prefix("export ").unwrap_or(plain);
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let assignment = statement.split_once('=');
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(is_of_name);
        let is_appended = |name: &str| name.strip_suffix('+').is_some_and(is_name);
        let assigned = assignment.filter(|(name, _)| is_name(name) || is_appended(name));
        let Some((name, _)) = assigned else {
            rest = next;
            continue;
        };
        let begin = line.len() - statement.len() + name.len() + 1;
        let (value, after) = value(&rest[begin..], variables);
        let is_alone = after.split('\n').next().is_some_and(|behind| {
            let behind = behind.trim();
            behind.is_empty() || behind.starts_with(['#', ';'])
        });
        let is_known = is_alone && plain.len() == line.len() && is_name(name);
        let name = name.trim_end_matches('+').to_owned();
        variables.insert(name, value.filter(|_| is_known));
        rest = after.split_once('\n').map_or("", |(_, next)| next);
    }
}

/// The value of an assignment at the begin of `text`, if it is plain, and the text behind it.
fn value<'a>(text: &'a str, variables: &Variables) -> (Option<String>, &'a str) {
    let (mut value, mut is_plain, mut quote) = (String::new(), true, None);
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, end) if end.is_whitespace() || ";#&|".contains(end) => {
                return (Some(value).filter(|_| is_plain), &text[at..]);
            }
            (Some('"') | None, '\\') => match characters.next() {
                Some((_, '\n')) => {}
                Some((_, escaped)) if quote.is_none() || "\\\"$`".contains(escaped) => {
                    value.push(escaped);
                }
                Some((_, other)) => value.extend(['\\', other]),
                None => is_plain = false,
            },
            (Some('"') | None, '$') => match expanded(&text[at + 1..], variables) {
                Some((expanded, length)) => {
                    value.push_str(&expanded);
                    // The characters up to the end of the expression.
                    while characters.offset() < at + 1 + length {
                        characters.next();
                    }
                }
                None => is_plain = false,
            },
            (Some('"') | None, '`') => is_plain = false,
            (_, other) => value.push(other),
        }
    }
    (Some(value).filter(|_| is_plain && quote.is_none()), "")
}

/// The value of the expression behind a dollar sign, and the length of the expression: `NAME`, `{NAME}` or `{NAME:-DEFAULT}`.
fn expanded(text: &str, variables: &Variables) -> Option<(String, usize)> {
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let Some(braced) = text.strip_prefix('{') else {
        let length = text.bytes().take_while(|byte| is_of_name(byte)).count();
        let value = variables.get(&text[..length])?.clone()?;
        return Some((value, length));
    };
    let (expression, _) = braced.split_once('}')?;
    let length = expression.len() + 2;
    let (name, default) = match expression.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (expression, None),
    };
    let is_plain = |default: &&str| !default.contains(['$', '`', '"', '\'', '\\', '{']);
    let value = match variables.get(name) {
        Some(value) => value.clone()?,
        None => String::new(),
    };
    match default {
        Some(default) if value.is_empty() => {
            Some((Some(default).filter(is_plain)?.to_owned(), length))
        }
        None if !variables.contains_key(name) => None,
        Some(_) | None => Some((value, length)),
    }
}

/// The words of options as the shell reads them, up to a redirection; `None` if they depend on more than the text.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '>' | '<') => {
                // A number before it belongs to the redirection.
                word = word.filter(|word| word.bytes().any(|byte| !byte.is_ascii_digit()));
                break;
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (Some('"') | None, '$' | '`') | (None, ';' | '&' | '|' | '(' | '*' | '?') => {
                return None;
            }
            (Some('"') | None, '\\') => match characters.next()? {
                '\n' => {}
                escaped => word.get_or_insert_default().push(escaped),
            },
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::installer::fixtures::host_with;

    /// As `install.sh` of k3s writes it.
    const K3S: &str = "#!/sbin/openrc-run\n\ndepend() {\n    after network-online\n    want cgroups\n}\n\nstart_pre() {\n    rm -f /tmp/k3s.*\n}\n\nsupervisor=supervise-daemon\nname=k3s\ncommand=\"/usr/local/bin/k3s\"\ncommand_args=\"server \\\n\t'--data-dir' \\\n\t'/data/my k3s' \\\n    >>/var/log/k3s.log 2>&1\"\n\noutput_log=/var/log/k3s.log\nerror_log=/var/log/k3s.log\n\npidfile=\"/var/run/k3s.pid\"\nrespawn_delay=5\nrespawn_max=0\n\nset -o allexport\nif [ -f /etc/environment ]; then . /etc/environment; fi\nif [ -f /etc/rancher/k3s/k3s.env ]; then . /etc/rancher/k3s/k3s.env; fi\nset +o allexport\n";

    #[test]
    fn the_command_and_the_environment_of_k3s_are_read() {
        let (_directory, host) = host_with(&[
            ("/etc/init.d/k3s", K3S),
            ("/etc/rancher/k3s/k3s.env", "K3S_DATA_DIR='/srv'\n"),
        ]);
        let service = service(&host, "k3s.service").unwrap();
        let expected = ["/usr/local/bin/k3s", "server", "--data-dir", "/data/my k3s"];
        assert_eq!(service.command.unwrap().arguments, expected);
        let environment = [("K3S_DATA_DIR".to_owned(), "/srv".to_owned())];
        assert_eq!(service.environment, environment.into());
    }

    #[test]
    fn exported_settings_reach_the_service() {
        let settings = "export K3S_DATA_DIR=/srv\nOTHER=1\n";
        let (_directory, host) =
            host_with(&[("/etc/init.d/k3s", K3S), ("/etc/conf.d/k3s", settings)]);
        let environment = [("K3S_DATA_DIR".to_owned(), "/srv".to_owned())];
        let found = service(&host, "k3s.service").unwrap().environment;
        assert_eq!(found, environment.into());
    }

    #[rstest]
    #[case::plain("command=/bin/a\ncommand_args='-b c'\n", "", &["/bin/a", "-b", "c"])]
    #[case::in_the_settings("command=/bin/a\n", "command_args=\"-b 'c d'\"\n", &["/bin/a", "-b", "c d"])]
    #[case::with_a_variable("command=/bin/$RC_SVCNAME\ncommand_args=\"-b ${OPTS} $OPTS\"\n", "OPTS=c # x\n", &["/bin/a", "-b", "c", "c"])]
    #[case::with_a_default("command=${A_COMMAND:-/bin/a}\n", "", &["/bin/a"])]
    #[case::in_the_foreground("command=/bin/a\ncommand_args=-b\ncommand_args_foreground=-c\n", "", &["/bin/a", "-b", "-c"])]
    #[case::without_options("command=/bin/a\ncommand_args=\"${command_args:-}\"\n", "", &["/bin/a"])]
    #[case::a_redirection("command=/bin/a\ncommand_args='-b 2>/x'\n", "", &["/bin/a", "-b"])]
    fn plain_assignments_are_read_as_the_shell_reads_them(
        #[case] script: &str,
        #[case] settings: &str,
        #[case] expected: &[&str],
    ) {
        let script = format!("#!/sbin/openrc-run\n{script}");
        let (_directory, host) =
            host_with(&[("/etc/init.d/a", &script), ("/etc/conf.d/a", settings)]);
        let command = service(&host, "a.service").unwrap().command.unwrap();
        assert_eq!(command.arguments, expected);
    }

    #[rstest]
    #[case::a_program_in_it("command=/bin/a\ncommand_args=\"$(cat /x)\"\n")]
    #[case::an_unknown_variable("command=/bin/a\ncommand_args=\"$OPTS\"\n")]
    #[case::a_condition("command=/bin/a\nif true; then\n  command_args=-b\nfi\n")]
    #[case::an_appended_value("command=/bin/a\ncommand_args=-b\ncommand_args+=' -c'\n")]
    #[case::a_start_of_its_own("command=/bin/a\nstart() {\n  /bin/b\n}\n")]
    #[case::without_a_command("command_args=-b\n")]
    #[case::a_quote_without_an_end("command=/bin/a\ncommand_args=\"'b\"\n")]
    fn a_script_that_does_more_has_an_unknown_command(#[case] script: &str) {
        let script = format!("#!/sbin/openrc-run\n{script}");
        let (_directory, host) = host_with(&[("/etc/init.d/a", &script)]);
        let error = service(&host, "a.service").unwrap().command.unwrap_err();
        assert!(error.to_string().contains("OpenRC service a"), "{error}");
    }

    #[rstest]
    #[case::of_systemd(&[("/etc/init.d/a", "#!/sbin/openrc-run\ncommand=/bin/b\n"), ("/etc/systemd/system/a.service", "[Service]\nExecStart=/bin/a\n")], true)]
    #[case::of_another_manager(&[("/etc/init.d/a", "#!/bin/sh\ncommand=/bin/b\n")], false)]
    #[case::of_none(&[], false)]
    fn a_script_counts_only_with_openrc_and_without_a_unit(
        #[case] files: &[(&str, &str)],
        #[case] is_of_unit: bool,
    ) {
        let (_directory, host) = host_with(files);
        match service(&host, "a.service").unwrap().command {
            Ok(command) => assert!(is_of_unit && command.program == "/bin/a"),
            Err(error) => assert!(!is_of_unit && matches!(error, Error::Commands { count: 0 })),
        }
    }
}
