//! The names of shims, handlers and binaries: which can be part of a path, and which can be part of a label.

use super::document::Error;

/// Longest name, in bytes. With `containerd-shim-` before it and the suffix of a temporary file after it, it has to stay below 255, the
/// longest file name of Linux.
pub(super) const LONGEST_NAME: usize = 200;

/// Longest name in a label, in bytes (Kubernetes, *Labels and Selectors*).
pub const LONGEST_LABEL_NAME: usize = 63;

/// Refuses a name that can't be part of a path on the host and a key in TOML.
///
/// A name has letters, digits, `-`, `_` and `.`, at most 200, and does not begin with a dot.
///
/// # Errors
/// [`Error::Name`] with the name.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty()
        || name.len() > LONGEST_NAME
        || name.starts_with('.')
        || !name.bytes().all(plain)
    {
        return Err(Error::Name {
            found: name.to_owned(),
        });
    }
    Ok(())
}

/// Whether `name` can be the name part of a label: letters, digits, `-`, `_` and `.`, at most 63, with a letter or digit at both ends.
///
/// ```
/// use farrier::handoff::is_label_name;
///
/// assert!(is_label_name("spin-v2"));
/// assert!(!is_label_name("spin-"));
/// ```
#[must_use]
pub fn is_label_name(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().next_back()];
    check_name(name).is_ok()
        && name.len() <= LONGEST_LABEL_NAME
        && ends.iter().flatten().all(u8::is_ascii_alphanumeric)
}

/// Whether a RuntimeClass can name the handler `name`: a DNS label (Kubernetes, API reference of RuntimeClass, `handler`; RFC 1123). That is
/// lower-case letters, digits and `-`, at most 63, with a letter or digit at both ends.
///
/// ```
/// use farrier::handoff::is_runtime_class_handler;
///
/// assert!(is_runtime_class_handler("spin-v2"));
/// assert!(!is_runtime_class_handler("spin.v2"));
/// ```
#[must_use]
pub fn is_runtime_class_handler(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    is_label_name(name) && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("spin-v2", true)]
    #[case::digits("2", true)]
    #[case::longest(&"a".repeat(63), true)]
    #[case::too_long(&"a".repeat(64), false)]
    #[case::upper_case("A", false)]
    #[case::dot("x.y", false)]
    #[case::underscore("x_y", false)]
    #[case::hyphen_first("-x", false)]
    #[case::hyphen_last("x-", false)]
    #[case::empty("", false)]
    #[case::other_script("ä", false)]
    fn a_handler_of_a_runtime_class_is_a_dns_label(#[case] name: &str, #[case] expected: bool) {
        assert_eq!(is_runtime_class_handler(name), expected);
    }

    #[rstest]
    #[case::plain("a", true, true)]
    #[case::all_kinds("a.b-c_D9", true, true)]
    #[case::longest_label(&"a".repeat(63), true, true)]
    #[case::longer_than_a_label(&"a".repeat(64), true, false)]
    #[case::longest(&"a".repeat(LONGEST_NAME), true, false)]
    #[case::too_long(&"a".repeat(LONGEST_NAME + 1), false, false)]
    #[case::hyphen_at_the_end("a-", true, false)]
    #[case::underscore_first("_a", true, false)]
    #[case::hidden(".a", false, false)]
    #[case::empty("", false, false)]
    #[case::parent("../a", false, false)]
    #[case::path("a/b", false, false)]
    #[case::lines("a\nb", false, false)]
    #[case::other_script("ä", false, false)]
    fn a_name_is_checked_for_paths_and_for_labels(
        #[case] name: &str,
        #[case] in_paths: bool,
        #[case] in_labels: bool,
    ) {
        assert_eq!(check_name(name).is_ok(), in_paths);
        assert_eq!(is_label_name(name), in_labels);
    }
}
