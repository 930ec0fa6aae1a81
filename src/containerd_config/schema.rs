//! containerd's releases, the schemas of their configuration files, and the ids of the CRI plugin in each.

use std::fmt;
use std::str::FromStr;

/// A release of containerd.
///
/// Parses `v1.7.24`, `1.6.20~ds1`, `2.1.9+unknown` and the line that `containerd --version` prints. Displays `1.7.24`.
///
/// ```
/// use farrier::containerd_config::Version;
///
/// let line = "containerd github.com/containerd/containerd/v2 v2.1.9 abcdef";
/// let version: Version = line.parse()?;
/// assert_eq!((version.major, version.minor, version.patch), (2, 1, 9));
/// assert_eq!(version.to_string(), "2.1.9");
/// # Ok::<(), farrier::containerd_config::InvalidVersion>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 or 2. Their schemas differ.
    pub major: u64,
    /// 3 in 2.3.4.
    pub minor: u64,
    /// 4 in 2.3.4.
    pub patch: u64,
}

/// The text has no release of containerd.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid containerd release {found:?}: expected a version such as 1.7.24")]
pub struct InvalidVersion {
    /// The text, at most 80 characters of it.
    pub found: String,
}

/// A plugin of containerd whose table under `plugins` has the runtimes of the CRI.
///
/// ```
/// use farrier::containerd_config::PluginId;
///
/// assert_eq!(PluginId::CriV1Runtime.key(), "io.containerd.cri.v1.runtime");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PluginId {
    /// `cri`, in files of version 1.
    Cri,
    /// `io.containerd.grpc.v1.cri`, in files of version 2 and later.
    GrpcV1Cri,
    /// `io.containerd.cri.v1.runtime`, in files of version 3 and later.
    CriV1Runtime,
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let error = || InvalidVersion {
            found: text.chars().take(80).collect(),
        };
        // `containerd --version` prints the release as its third word. Debian and forks append to it with `~`, `+` or `-`.
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
    /// The highest `version` of a file that the release loads: 2 in 1.x, 3 from 2.0, 4 from 2.3 (containerd, `version/version.go`).
    pub(super) fn schema(self) -> i64 {
        match (self.major, self.minor) {
            (0 | 1, _) => 2,
            (2, 0..=2) => 3,
            _ => 4,
        }
    }

    /// Whether a plugin's table in one file replaces the whole table of the files before, and named runtimes replace the default ones.
    pub(super) fn replaces_sections(self) -> bool {
        self.major < 2
    }

    /// Whether each file is migrated to the newest schema before the files are merged (2.3 and later).
    pub(super) fn migrates_each_file(self) -> bool {
        self.schema() > 3
    }
}

impl PluginId {
    /// All plugins, the oldest first.
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
    fn a_release_is_parsed_in_every_form_that_containerd_prints(
        #[case] text: &str,
        #[case] shown: &str,
    ) {
        assert_eq!(text.parse::<Version>().unwrap().to_string(), shown);
    }

    #[rstest]
    #[case("")]
    #[case("1.7")]
    #[case("1.7.x")]
    #[case("two words")]
    #[case("99999999999999999999.1.1")]
    fn text_without_a_release_is_refused(#[case] text: &str) {
        assert!(text.parse::<Version>().is_err());
    }
}
