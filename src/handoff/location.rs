//! Locations of artifacts: `https://…`, `http://…` and `file:///path/on/the/node`, and what a message may show of a location. Fetches nothing.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::printable::printable_up_to;

/// Longest location in a message, in bytes. Those of releases have some 120.
const LONGEST_SHOWN: usize = 300;

/// Whether Farrier can fetch from a location with this scheme.
#[must_use]
pub fn has_known_scheme(location: &str) -> bool {
    let mut schemes = ["https", "http"].into_iter();
    let is_url =
        schemes.any(|scheme| after_scheme(location, scheme).is_some_and(|rest| !rest.is_empty()));
    is_url || path_on_host(location).is_some_and(|path| path.len() > 1)
}

/// The absolute path in a `file://` location, whose host is empty or `localhost`, with its percent-encoded bytes decoded (RFC 8089, section 2;
/// RFC 3986, section 2.1). `None` for any other location, and for a path that is not UTF-8 or contains a NUL, which no path of Linux does.
#[must_use]
pub fn path_on_host(location: &str) -> Option<Cow<'_, str>> {
    let rest = after_scheme(location, "file")?;
    let (host, path) = rest.split_at(rest.find('/')?);
    let is_own = host.is_empty() || host.eq_ignore_ascii_case("localhost");
    let path = percent_decode_str(path).decode_utf8().ok()?;
    (is_own && !path.contains('\0')).then_some(path)
}

/// The rest of a location with this scheme. A scheme has no case (RFC 3986, 3.1).
fn after_scheme<'a>(location: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = location.split_once("://")?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// A location for messages: without user, password, query and fragment, which may contain keys and signatures. It need not be valid.
///
/// A password may contain the characters that end an authority (RFC 3986, 3.2), although it should not. So of a location with an `@` behind
/// such a character, only the scheme is shown.
#[must_use]
pub fn shown_location(location: &str) -> String {
    // A URL's parser leaves these out (WHATWG URL Standard, *basic URL parser*).
    let location = location.trim_matches(|letter: char| letter <= ' ');
    let (scheme, rest) = match location.find("://").map(|at| location.split_at(at + 3)) {
        Some((scheme, rest)) if is_scheme(&scheme[..scheme.len() - 3]) => (scheme, rest),
        Some(_) | None => ("", location),
    };
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    let path = behind.split(['?', '#']).next().unwrap_or_default();
    let may_be_secret = behind.contains('@') && path_on_host(location).is_none();
    let shown = if may_be_secret || !has_port(host) {
        format!("{scheme}…")
    } else {
        format!("{scheme}{host}{path}")
    };
    printable_up_to(&shown, LONGEST_SHOWN)
}

/// Whether a text can be a scheme (RFC 3986, 3.1).
fn is_scheme(text: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.chars().all(is_part)
}

/// Whether only a port follows a `:` in this host. Otherwise, the end of the password is missing.
fn has_port(host: &str) -> bool {
    // An IPv6 address is in brackets.
    let behind_address = host.rsplit(']').next().unwrap_or_default();
    let port = behind_address.split_once(':').map(|(_, port)| port);
    port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The release that the path of a location names, such as `0.6.0`, for people. The digest tells what it really is.
#[must_use]
pub fn release_in(location: &str) -> Option<String> {
    let shown = shown_location(location);
    let (_, rest) = shown.split_once("://")?;
    let (_, path) = rest.split_once('/')?;
    // A tag with a slash, as those of runwasi.
    let path = path.replace("%2F", "/").replace("%2f", "/");
    let mut words = path.split(['/', ':', '-', '_', '@']);
    let release = |word: &str| {
        let numbers = word.trim_start_matches('v').split('.');
        let is_number = |part: &&str| {
            (1..=6).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let numbers: Vec<&str> = numbers.take_while(is_number).collect();
        // Four numbers are an address.
        (numbers.len() == 3).then(|| numbers.join("."))
    };
    words.find_map(release)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("https://example.org/a.tar.gz", "https://example.org/a.tar.gz")]
    #[case::with_a_port("http://example.org:8080/a", "http://example.org:8080/a")]
    #[case::with_an_ipv6_address("http://u:p4ss@[::1]:8080/a", "http://[::1]:8080/a")]
    #[case::with_a_user("https://user:p4ss@host.invalid/x", "https://host.invalid/x")]
    #[case::with_two_at_signs("https://user:p4ss@p4ss@host.invalid/x", "https://host.invalid/x")]
    #[case::with_a_query("https://host.invalid/x?sig=p4ss", "https://host.invalid/x")]
    #[case::with_a_fragment("https://host.invalid/x#p4ss", "https://host.invalid/x")]
    #[case::a_password_with_a_hash("https://user:p4#ss@host.invalid/x", "https://…")]
    #[case::a_password_with_a_question_mark("https://user:p4?ss@host.invalid/x", "https://…")]
    #[case::a_password_with_a_slash("https://user:p4/ss@host.invalid/x", "https://…")]
    #[case::a_password_with_a_backslash(r"https://user:p4\ss@host.invalid/x", "https://…")]
    #[case::a_password_that_begins_as_a_port("https://user:12#p4ss@host.invalid/x", "https://…")]
    #[case::a_password_without_a_host("https://user:p4ss", "https://…")]
    #[case::a_password_with_an_escaped_at_sign("https://user:p4ss%40host.invalid/x", "https://…")]
    #[case::in_upper_case("HTTPS://user:p4ss@host.invalid/x?sig=p4ss", "HTTPS://host.invalid/x")]
    #[case::behind_a_space(" ftp://user:p4ss@host.invalid/x", "ftp://host.invalid/x")]
    #[case::of_a_bucket("s3://KEY:p4ss@bucket/x", "s3://bucket/x")]
    #[case::of_a_registry("oci://example.org/a", "oci://example.org/a")]
    #[case::with_one_slash("https:/user:p4ss@host.invalid/x", "…")]
    #[case::without_a_slash("https:user:p4ss@host.invalid/x", "host.invalid/x")]
    #[case::with_three_slashes("https:///user:p4ss@host.invalid/x", "https://…")]
    #[case::with_a_line_break("ht\ntps://user:p4ss@host.invalid/x", "…")]
    #[case::without_a_scheme("user:p4ss@host.invalid/x", "host.invalid/x")]
    #[case::a_url_in_the_query("user:p4ss@host.invalid/?u=https://a", "host.invalid/")]
    #[case::a_path_on_the_node("file:///srv/a@1.tar.gz", "file:///srv/a@1.tar.gz")]
    #[case::a_path_on_another_host("file://p4ss@srv/a", "file://srv/a")]
    #[case::a_path("/opt/a", "/opt/a")]
    #[case::nothing("", "")]
    fn a_message_shows_no_secret_of_a_location(#[case] location: &str, #[case] expected: &str) {
        assert_eq!(shown_location(location), expected);
    }

    #[rstest]
    #[case("https://example.org/a", None, true)]
    #[case("HTTPS://example.org/a", None, true)]
    #[case("Http://example.org/a", None, true)]
    #[case("file:///srv/a", Some("/srv/a"), true)]
    #[case("FILE:///srv/a", Some("/srv/a"), true)]
    #[case("file:///", Some("/"), false)]
    #[case("file://srv/a", None, false)]
    #[case("file://localhost/srv/a", Some("/srv/a"), true)]
    #[case("file://LocalHost/srv/a", Some("/srv/a"), true)]
    #[case("file://localhost/", Some("/"), false)]
    #[case("file://localhost", None, false)]
    #[case("file://localhost.example.org/srv/a", None, false)]
    #[case("file:///srv/my%20shim", Some("/srv/my shim"), true)]
    #[case("file:///srv/caf%C3%A9", Some("/srv/café"), true)]
    #[case("file:///srv/100%", Some("/srv/100%"), true)]
    #[case("file:///srv/100%25", Some("/srv/100%"), true)]
    #[case("file:///srv/a?b#c", Some("/srv/a?b#c"), true)]
    #[case("file:///srv/a%00b", None, false)]
    #[case("file:///srv/%FF", None, false)]
    #[case("https://", None, false)]
    #[case("https:/example.org", None, false)]
    #[case(" https://example.org", None, false)]
    #[case("oci://example.org/a", None, false)]
    #[case("example.org/a", None, false)]
    fn a_scheme_has_no_case(
        #[case] location: &str,
        #[case] path: Option<&str>,
        #[case] expected: bool,
    ) {
        assert_eq!(path_on_host(location).as_deref(), path);
        assert_eq!(has_known_scheme(location), expected);
    }

    #[rstest]
    #[case::directory(
        "https://example.org/download/v0.15.1/containerd-shim-spin-v2-linux-x86_64.tar.gz",
        Some("0.15.1")
    )]
    #[case::file(
        "https://example.org/containerd-shim-spin-v0.6.0.tar.gz",
        Some("0.6.0")
    )]
    #[case::tag_with_a_slash("https://example.org/shim-wasmtime%2Fv0.6.0/a.tar.gz", Some("0.6.0"))]
    #[case::tag("oci://example.org/shims/spin:v1.2.3", Some("1.2.3"))]
    #[case::of_a_password("https://user:p4/1.2.3@example.org/x", None)]
    #[case::address("https://10.0.0.1/spin.tar.gz", None)]
    #[case::address_in_the_path("https://example.org/10.0.0.1/spin.tar.gz", None)]
    #[case::none("file:///opt/shims/spin", None)]
    #[case::not_a_url("0.1.2", None)]
    fn a_location_names_a_release(#[case] location: &str, #[case] release: Option<&str>) {
        assert_eq!(release_in(location).as_deref(), release);
    }
}
