//! Sanitizes text from servers, archives, containerd and files of a host for a terminal, a log line, an Event and a condition.

use std::ops::{Range, RangeInclusive};

/// The longest text in a report, in bytes. Kubernetes bounds an Event's note at 1,024 bytes (`events.k8s.io/v1`).
const LONGEST_TEXT: usize = 1_000;

/// The text on one line without characters that a terminal acts on, in at most 1,000 bytes. A space takes the place of such characters.
///
/// ```
/// use farrier::handoff::printable;
///
/// assert_eq!(printable("one\r\ntwo\u{1b}[2J"), "one two [2J");
/// ```
#[must_use]
pub fn printable(text: &str) -> String {
    printable_up_to(text, LONGEST_TEXT)
}

/// Length in bytes of a path or an endpoint within a message, at most.
pub const LONGEST_PATH: usize = 200;

/// As [`printable`], in at most `longest` bytes. A text that was cut ends with `…`.
#[must_use]
pub fn printable_up_to(text: &str, longest: usize) -> String {
    let mut line = String::with_capacity(text.len());
    // Whether the last character is a space in the place of others.
    let mut replaced = true;
    for letter in text.chars() {
        let is_left_out = is_control(letter) || (replaced && letter == ' ');
        if !is_left_out {
            line.push(letter);
            replaced = false;
        } else if !replaced && !line.ends_with(' ') {
            line.push(' ');
            replaced = true;
        }
    }
    if line.len() > longest {
        let end = line.floor_char_boundary(longest.saturating_sub('…'.len_utf8()));
        line.truncate(digest_around(&line, end).start);
        line.push('…');
    }
    line
}

/// Fewest and most hexadecimal digits in a row that count as a digest: those of MD5 and of SHA-512.
const DIGEST: RangeInclusive<usize> = 32..=128;

/// The digest that a cut at the byte `at` of the text would divide; an empty range at `at` if there is none. Half of a digest looks like
/// another digest.
pub(super) fn digest_around(text: &str, at: usize) -> Range<usize> {
    let (before, after) = text.as_bytes().split_at(at);
    let count = |digits: &mut dyn Iterator<Item = &u8>| {
        let digits = digits.take(DIGEST.end() + 1);
        digits.take_while(|digit| digit.is_ascii_hexdigit()).count()
    };
    let before = count(&mut before.iter().rev());
    let after = count(&mut after.iter());
    if before > 0 && after > 0 && DIGEST.contains(&(before + after)) {
        at - before..at + after
    } else {
        at..at
    }
}

/// Whether a terminal acts on the character instead of showing it: control characters, line separators, invisible characters, and those
/// that change the direction of the text (Unicode 15, 23.2 *Layout Controls*).
fn is_control(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printable_text_has_no_control_characters() {
        let text = "a\u{1b}[2Jb\nc\u{202e}d\u{85}e\u{2028}f\tg\u{2066}h\u{200e}i\u{feff}j\u{61c}k";
        assert_eq!(printable(text), "a [2Jb c d e f g h i j k");
        assert_eq!(
            printable("\u{1b}[31mred\u{7} \u{202e}turned"),
            "[31mred turned"
        );
        assert_eq!(printable("two  spaces"), "two  spaces");
    }

    #[test]
    fn a_digest_is_never_cut() {
        let digest = "2d03".repeat(16);
        let text = format!("SHA-256 {digest} instead");
        for longest in 0..text.len() {
            let cut = printable_up_to(&text, longest);
            let has_digits = cut.contains("2d");
            assert_eq!(has_digits, cut.contains(&digest), "{longest}: {cut}");
        }
        // Not a digest.
        assert_eq!(printable_up_to(&"a".repeat(200), 103).len(), 103);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(printable_up_to(&"ü".repeat(1_000), 99).len(), 99);
        assert_eq!(printable_up_to(&"ü".repeat(1_000), 100).len(), 99);
        assert_eq!(printable_up_to("abcd", 4), "abcd");
        assert_eq!(printable_up_to("abcde", 4), "a…");
        assert_eq!(printable(&"a".repeat(2_000)).len(), LONGEST_TEXT);
    }
}
