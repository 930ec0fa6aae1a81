//! A SHA-256 digest that was checked once, when its text was parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written as 64 hexadecimal digits in lower case.
///
/// Parsing accepts upper case, too. In JSON it is a string.
///
/// ```
/// use farrier::handoff::Sha256Digest;
///
/// let digest = Sha256Digest::of(b"abc");
/// assert!(digest.to_string().starts_with("ba7816bf"));
/// assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
/// assert!("ba7816bf".parse::<Sha256Digest>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest([u8; 32]);

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
        Self(Sha256::digest(bytes).into())
    }

    /// The digest that consists of `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a field of a document. A text that is not a digest counts as an absent digest: the field may be empty, or written by an
    /// untrusted account.
    ///
    /// # Errors
    /// When the field is neither a string nor null.
    pub fn lenient<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Self>, D::Error> {
        let text = Option::<String>::deserialize(field)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Writes a field of a document: an absent digest is an empty text.
    ///
    /// # Errors
    /// Those of the serializer.
    #[allow(clippy::ref_option, reason = "serde passes a reference")]
    pub fn or_empty<S: Serializer>(digest: &Option<Self>, field: S) -> Result<S::Ok, S::Error> {
        match digest {
            Some(digest) => digest.serialize(field),
            None => field.serialize_str(""),
        }
    }
}

impl From<Sha256> for Sha256Digest {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl FromStr for Sha256Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(InvalidDigest {
                found: text.chars().take(80).collect(),
            }),
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
        digest.to_string()
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::empty("")]
    #[case::short(&"a".repeat(63))]
    #[case::long(&"a".repeat(65))]
    #[case::other_letters(&"g".repeat(64))]
    #[case::other_script(&"\u{ff11}".repeat(64))]
    #[case::bytes_of_other_script(&format!("{}\u{e4}", "a".repeat(62)))]
    #[case::sign(&"+a".repeat(32))]
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
    fn a_lenient_field_has_no_digest_where_its_text_is_none() {
        let digest = Sha256Digest::of(b"");
        let read = |text: &str| Sha256Digest::lenient(json!(text)).unwrap();
        assert_eq!(read(&digest.to_string()), Some(digest));
        assert_eq!((read(""), read("abc")), (None, None));
        assert_eq!(Sha256Digest::lenient(json!(null)).unwrap(), None);
        assert!(Sha256Digest::lenient(json!(1)).is_err());
    }
}
