//! A failure as an operator reads it: a message, and apart from it the next step.

use std::borrow::Cow;
use std::fmt;

use super::printable::{digest_around, printable};

/// Why something failed, and what an operator can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object and the cause, in one sentence without a full stop.
    pub message: String,
    /// How an operator corrects the cause.
    pub help: Option<String>,
}

impl Problem {
    /// The problem with this message and the help of the error that it came from.
    #[must_use]
    pub fn new(message: impl fmt::Display, help: Option<Cow<'_, str>>) -> Self {
        Self {
            message: message.to_string(),
            help: help.map(Cow::into_owned),
        }
    }

    /// The problem with this message and this help.
    #[must_use]
    pub fn with_help(message: impl fmt::Display, help: impl Into<String>) -> Self {
        Self {
            message: message.to_string(),
            help: Some(help.into()),
        }
    }

    /// The help, or `otherwise` for a problem without help.
    #[must_use]
    pub fn help_or<'a>(&'a self, otherwise: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(self.help.as_deref().unwrap_or(otherwise))
    }

    /// The cause and the next step as two sentences, for a field of Kubernetes that has one text: the note of an Event, the message of a
    /// condition.
    #[must_use]
    pub fn sentence(&self) -> String {
        match &self.help {
            Some(help) => format!("{}. {}", self.message, capitalised(help)),
            None => self.message.clone(),
        }
    }

    /// As [`Self::sentence`], in at most `longest` bytes. The help is left out first.
    #[must_use]
    pub fn sentence_up_to(&self, longest: usize) -> String {
        let whole = self.sentence();
        if whole.len() <= longest {
            whole
        } else {
            elide(&self.message, longest)
        }
    }

    /// The problem without characters that a terminal would act on.
    #[must_use]
    pub fn printable(&self) -> Self {
        Self {
            message: printable(&self.message),
            help: self.help.as_deref().map(printable),
        }
    }
}

/// The message alone.
impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// The text with an upper-case letter at its start.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// A sentence in at most `longest` bytes, at least three. The middle is left out, because a sentence begins with the object, often a long URL,
/// and ends with the cause.
#[must_use]
pub fn elide(sentence: &str, longest: usize) -> String {
    if sentence.len() <= longest {
        return sentence.to_owned();
    }
    let rest = longest.saturating_sub('…'.len_utf8());
    let head = sentence.floor_char_boundary(rest / 4);
    let head = digest_around(sentence, head).start;
    let tail = sentence.ceil_char_boundary(sentence.len() - (rest - head));
    let tail = digest_around(sentence, tail).end;
    format!("{}…{}", &sentence[..head], &sentence[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_a_sentence_of_its_own_and_is_left_out_first() {
        let problem = Problem::with_help("no room", "delete a file");
        assert_eq!(problem.sentence(), "no room. Delete a file");
        assert_eq!(problem.sentence_up_to(21), "no room");
        assert_eq!(Problem::new("no room", None).sentence(), "no room");
    }

    #[test]
    fn a_digest_is_kept_or_left_out_whole() {
        let (found, first) = ("2d03".repeat(16), "e1f0".repeat(16));
        let text = format!("the binary has SHA-256 {found}, and another node got {first} from it");
        for longest in 20..text.len() {
            let short = elide(&text, longest);
            assert!(short.len() <= longest, "{longest}: {short}");
            for (digest, part) in [(&found, "d0"), (&first, "1f")] {
                assert_eq!(
                    short.contains(part),
                    short.contains(digest),
                    "{longest}: {short}"
                );
            }
        }
    }

    #[test]
    fn a_sentence_is_never_longer_than_the_limit() {
        for longest in 3..90 {
            for sentence in [
                "ü".repeat(80),
                "a; ü".repeat(20),
                "; ".repeat(40),
                String::new(),
            ] {
                assert!(
                    elide(&sentence, longest).len() <= longest,
                    "{sentence} {longest}"
                );
            }
        }
    }
}
