//! Sentences that others had a hand in, fit for an Event, a condition and a terminal. Pure.

/// Kubernetes bounds an Event's note at 1,024 bytes (events.k8s.io/v1).
pub const LONGEST_NOTE: usize = 1_000;

/// Whether a terminal acts on a letter rather than showing it: control characters, line separators, changes of direction.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// At most `longest` bytes of `text`, on one line.
#[must_use]
pub fn cut(text: &str, longest: usize) -> String {
    let mut line: String = text
        .chars()
        .map(|letter| if steers(letter) { ' ' } else { letter })
        .collect();
    if line.len() > longest {
        let end = (0..=longest.saturating_sub('…'.len_utf8()))
            .rev()
            .find(|&end| line.is_char_boundary(end))
            .unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}
