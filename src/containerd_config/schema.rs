//! What containerd's releases and schemas are called: versions, plugin ids, and which release loads what.

use std::fmt;
use std::str::FromStr;

use super::{Error, PluginId, Version};

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Release {
            found: text.chars().take(80).collect(),
        };
        // `containerd --version` puts the release third; Debian and forks append to it with `~`, `+` or `-`.
        let word = match text.split_whitespace().collect::<Vec<_>>().as_slice() {
            [word] | [_, _, word, ..] => *word,
            _ => return Err(error()),
        };
        let word = word.strip_prefix('v').unwrap_or(word);
        let release = word.split(['~', '+', '-']).next().unwrap_or_default();
        let mut numbers = release.split('.').map(str::parse::<u64>);
        match (
            numbers.next(),
            numbers.next(),
            numbers.next(),
            numbers.next(),
        ) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            patch,
        } = self;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}

impl Version {
    /// The highest `version` of a file that the release loads (containerd's `version/version.go`: 2 in 1.x, 3 from 2.0, 4 from 2.3).
    pub(super) fn schema(self) -> i64 {
        match (self.major, self.minor) {
            (0 | 1, _) => 2,
            (2, 0..=2) => 3,
            _ => 4,
        }
    }

    /// Whether a file's plugin table replaces that of the files before it as a whole, and a named runtime the default ones.
    pub(super) fn replaces_sections(self) -> bool {
        self.major < 2
    }

    /// Whether each file is brought to the newest schema by itself before they are merged (2.3 and later).
    pub(super) fn migrates_each_file(self) -> bool {
        self.schema() > 3
    }
}

impl PluginId {
    /// All of them, the oldest first.
    pub(super) const ALL: [Self; 3] = [Self::Cri, Self::GrpcV1Cri, Self::CriV1Runtime];

    /// The key under `plugins`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Cri => "cri",
            Self::GrpcV1Cri => "io.containerd.grpc.v1.cri",
            Self::CriV1Runtime => "io.containerd.cri.v1.runtime",
        }
    }

    /// The keys from the root of a file to its runtimes.
    pub(super) fn runtimes(self) -> [&'static str; 4] {
        ["plugins", self.key(), "containerd", "runtimes"]
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("v1.7.24", "1.7.24")]
    #[case("1.6.20~ds1", "1.6.20")]
    #[case("2.1.9+unknown", "2.1.9")]
    #[case("v2.2.2-bd1.34", "2.2.2")]
    #[case("containerd github.com/containerd/containerd v1.7.35 rev", "1.7.35")]
    #[case("containerd github.com/containerd/containerd/v2 v2.1.9 \n", "2.1.9")]
    fn a_release_is_read_in_every_form_that_daemons_print(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(text.parse::<Version>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("")]
    #[case("1.7")]
    #[case("1.7.x")]
    #[case("two words")]
    #[case("99999999999999999999.1.1")]
    fn what_is_no_release_is_refused(#[case] text: &str) {
        assert!(matches!(
            text.parse::<Version>(),
            Err(Error::Release { .. })
        ));
    }
}
