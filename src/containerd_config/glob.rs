//! Matches file names against a pattern under `imports`, by the rules of Go's `path/filepath.Match`, which containerd uses.

/// A pattern for one component of a path.
///
/// ```
/// use farrier::containerd_config::Glob;
///
/// let glob = Glob::parse("[a-c]*.toml").unwrap();
/// assert!(glob.matches("base.toml"));
/// assert!(!glob.matches("base.conf"));
/// assert!(Glob::parse("[a").is_none());
/// ```
#[derive(Debug)]
pub struct Glob(Vec<Part>);

#[derive(Debug)]
enum Part {
    /// `*`
    Any,
    /// `?`
    One,
    /// A character that stands for itself.
    Same(char),
    /// `[…]`, or `[^…]`, which matches every other character.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Parses a pattern without a `/`; `None` where Go takes it for malformed. containerd does not start with a malformed pattern.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut chars = text.chars().peekable();
        let mut parts = Vec::new();
        while let Some(char) = chars.next() {
            parts.push(match char {
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => Part::Same(chars.next()?),
                '[' => {
                    let negated = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
                            break;
                        }
                        let from = bound(&mut chars)?;
                        let to = match chars.next_if_eq(&'-') {
                            Some(_) => bound(&mut chars)?,
                            None => from,
                        };
                        ranges.push((from, to));
                    }
                    Part::Class { negated, ranges }
                }
                char => Part::Same(char),
            });
        }
        Some(Self(parts))
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut part, mut at) = (0, 0);
        // The part after the last `*`, and the position from which it was tried. When it doesn't match, it is tried one character later.
        // An earlier `*` needs no other try.
        let mut again = None;
        loop {
            match (self.0.get(part), name.get(at)) {
                (None, None) => return true,
                (Some(Part::Any), _) => {
                    part += 1;
                    again = Some((part, at));
                }
                (Some(wanted), Some(char)) if wanted.takes(*char) => {
                    part += 1;
                    at += 1;
                }
                _ => match again {
                    Some((after, from)) if from < name.len() => {
                        again = Some((after, from + 1));
                        (part, at) = (after, from + 1);
                    }
                    Some(_) | None => return false,
                },
            }
        }
    }
}

impl Part {
    fn takes(&self, char: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Same(same) => char == *same,
            Self::Class { negated, ranges } => {
                ranges
                    .iter()
                    .any(|(from, to)| (*from..=*to).contains(&char))
                    != *negated
            }
        }
    }
}

/// One end of a range in a class.
fn bound(chars: &mut impl Iterator<Item = char>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        char => Some(char),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("*.toml", &["a.toml", ".toml", ".hidden.toml"], &["a.toml.bak", "toml"])]
    #[case("**.toml", &["a.toml"], &["a.conf"])]
    #[case("?*.toml", &["a.toml"], &[".toml"])]
    #[case("[a-c]*.toml", &["b.toml"], &["d.toml", "-.toml"])]
    #[case("[^a]*", &["b"], &["a", ""])]
    #[case("[!a]*", &["a", "!"], &["b"])]
    #[case("[\\]\\-x]", &["]", "-", "x"], &["\\"])]
    #[case("\\**", &["*", "*a"], &["a"])]
    #[case("a*b*c", &["abc", "axbxbxc"], &["ab", "axc"])]
    #[case("{a,b}*", &["{a,b}"], &["a"])]
    #[case("\u{e4}?", &["\u{e4}\u{f6}"], &["\u{e4}"])]
    fn a_pattern_matches_the_names_that_go_matches(
        #[case] pattern: &str,
        #[case] taken: &[&str],
        #[case] left: &[&str],
    ) {
        let pattern = Glob::parse(pattern).unwrap();
        assert!(taken.iter().all(|name| pattern.matches(name)));
        assert!(!left.iter().any(|name| pattern.matches(name)));
    }

    #[rstest]
    #[case("[")]
    #[case("[]")]
    #[case("[a")]
    #[case("[a-")]
    #[case("[-a]")]
    #[case("[]a]")]
    #[case("a\\")]
    fn a_malformed_pattern_is_refused(#[case] pattern: &str) {
        assert!(Glob::parse(pattern).is_none());
    }

    #[test]
    fn a_pattern_of_many_stars_is_matched_in_linear_time() {
        let pattern = Glob::parse(&"*a".repeat(2_000)).unwrap();
        assert!(!pattern.matches(&"a".repeat(1_999)));
    }
}
