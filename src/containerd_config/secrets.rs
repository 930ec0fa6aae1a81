//! Takes credentials out of what containerd says about a configuration: a parser quotes what it stumbles over. What a configuration means is
//! not asked here, as the one that containerd refuses may not even be TOML.

/// What the keys of credentials have in their names (containerd's `docs/cri/registry.md`: `password`, `auth`, `identitytoken`,
/// `Authorization`).
const NAMES: [&str; 4] = ["password", "auth", "token", "secret"];

/// The shortest text that counts as a credential: shorter ones would blot out half of the message.
const SHORTEST: usize = 3;

/// `message` with an ellipsis in the place of each value that a line with the name of a credential holds in `texts`.
#[must_use]
pub fn without_secrets<'a>(message: &str, texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = texts
        .into_iter()
        .flat_map(str::lines)
        .filter_map(behind_name)
        .flat_map(|values| values.split(is_punctuation))
        .filter(|value| value.len() >= SHORTEST)
        .collect();
    // One may be a part of another.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets
        .into_iter()
        .fold(message.to_owned(), |message, secret| {
            message.replace(secret, "…")
        })
}

/// What stands in a line behind the first name of a credential and the rest of its key.
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

/// What stands around values in TOML, and never within a token.
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
    #[case::not_ascii("é password = 'hünter2'", "got hünter2", "got …")]
    fn credentials_are_taken_out_of_a_message(
        #[case] config: &str,
        #[case] message: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(without_secrets(message, [config]), expected);
    }
}
