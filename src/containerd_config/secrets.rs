//! Removes credentials from containerd's messages about a configuration, because parsers quote the text that they refuse.
//!
//! The configuration is read line by line. A text that containerd refuses may not be TOML.

/// Parts of the names of keys with credentials (containerd's `docs/cri/registry.md`: `password`, `auth`, `identitytoken`,
/// `Authorization`).
const NAMES: [&str; 4] = ["password", "auth", "token", "secret"];

/// The shortest text that counts as a credential, in bytes. Removing shorter ones would make the message unreadable.
const SHORTEST: usize = 3;

/// The message with an ellipsis in place of each value on a line of `texts` whose key names a credential.
///
/// ```
/// use farrier::containerd_config::without_secrets;
///
/// let message = "(1, 12): unexpected hunter2";
/// assert_eq!(without_secrets(message, ["password = hunter2"]), "(1, 12): unexpected …");
/// ```
#[must_use]
pub fn without_secrets<'a>(message: &str, texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = texts
        .into_iter()
        .flat_map(str::lines)
        .filter_map(behind_name)
        .flat_map(|values| values.split(is_punctuation))
        .filter(|value| value.len() >= SHORTEST)
        .collect();
    // The longest first, because a credential may be a part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    let message = secrets.iter().fold(message.to_owned(), |message, secret| {
        message.replace(secret, "…")
    });
    without_cut_secret(&message, &secrets)
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
