//! A SHA-256 digest that was checked once, when its text was parsed.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::sha256_hex;

/// A SHA-256 digest, written as 64 hexadecimal digits in lower case.
///
/// Parsing accepts upper case, too. In JSON it is a string.
///
/// ```
/// use farrier::handoff::Sha256Digest;
///
/// let digest = Sha256Digest::of(b"abc");
/// assert!(digest.as_str().starts_with("ba7816bf"));
/// assert_eq!(digest.as_str().to_uppercase().parse(), Ok(digest));
/// assert!("ba7816bf".parse::<Sha256Digest>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest(String);

/// The text is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid SHA-256 {found:?}: not 64 hexadecimal digits")]
pub struct InvalidDigest {
    /// The text, at most 80 characters of it.
    pub found: String,
}

impl Sha256Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha256_hex(bytes))
    }

    /// The 64 digits, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Sha256Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidDigest {
                found: text.chars().take(80).collect(),
            })
        }
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<str> for Sha256Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// Equality, order and hash are those of the text.
impl Borrow<str> for Sha256Digest {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("")]
    #[case::short(&"a".repeat(63))]
    #[case::long(&"a".repeat(65))]
    #[case::other_letters(&"g".repeat(64))]
    #[case::other_script(&"\u{ff11}".repeat(64))]
    #[case::bytes_of_other_script(&format!("{}\u{e4}", "a".repeat(62)))]
    #[case::path("../../../../../../../../../../../../../../../../../../../etc/passwd")]
    #[case::prefix(&format!("sha256:{}", "a".repeat(64)))]
    fn a_text_that_is_not_64_hexadecimal_digits_is_refused(#[case] text: &str) {
        assert!(text.parse::<Sha256Digest>().is_err());
        assert!(serde_json::from_value::<Sha256Digest>(text.into()).is_err());
    }

    #[test]
    fn a_digest_is_a_string_in_json_and_compares_without_regard_to_case() {
        let digest: Sha256Digest = "AB".repeat(32).parse().unwrap();
        let json = format!("{:?}", "ab".repeat(32));
        assert_eq!(serde_json::to_string(&digest).unwrap(), json);
        let read: Sha256Digest = serde_json::from_str(&json).unwrap();
        assert_eq!(read, digest);
    }

    #[test]
    fn a_digest_is_found_by_its_text() {
        let digest = Sha256Digest::of(b"");
        let text = digest.to_string();
        assert!(BTreeSet::from([digest.clone()]).contains(text.as_str()));
        assert!(HashSet::from([digest]).contains(text.as_str()));
    }
}
