//! The errors in the text of a Shim.

use std::borrow::Cow;

/// Longest location, in bytes. The schema has the same bound for platforms, and none for RCM's anonHttp.
pub(super) const LONGEST_LOCATION: usize = 2048;

/// Most options of one Shim. All Shims of a node share one Job (`LARGEST_SET` in `controller/decide/desired.rs`), and the known shims have
/// fewer than ten options.
pub(super) const MOST_OPTIONS: usize = 64;

/// Longest name of an option, in characters; a rule of the schema has the same number.
pub(super) const LONGEST_OPTION_NAME: usize = 128;

/// Longest value of an option, in characters: a path of a file, at most.
pub(super) const LONGEST_OPTION: usize = 1024;

/// The reason why a Shim can't be installed on a node. [`Error::help`] says how to correct the cause.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The Shim names no artifact.
    #[error("no artifact is specified")]
    NoArtifact,
    /// The Shim has no artifact for the platform of the node.
    #[error("no artifact for {os}/{arch}")]
    NoPlatform {
        /// Operating system of the node.
        os: String,
        /// Architecture of the node.
        arch: String,
    },
    /// The location has another scheme, or none.
    #[error("invalid location {location:?}")]
    Location {
        /// The value in the Shim, without secrets.
        location: String,
    },
    /// The location is longer than `LONGEST_LOCATION` bytes.
    #[error("the location is longer than {LONGEST_LOCATION} bytes")]
    LongLocation,
    /// The Shim has more than `MOST_OPTIONS` options.
    #[error("containerdRuntimeOptions has more than {MOST_OPTIONS} options")]
    ManyOptions,
    /// The name of an option is longer than `LONGEST_OPTION_NAME` characters.
    #[error("the name of an option is longer than {LONGEST_OPTION_NAME} characters")]
    LongOptionName,
    /// The value of an option is longer than `LONGEST_OPTION` characters.
    #[error("the value of option {name:?} is longer than {LONGEST_OPTION} characters")]
    LongOption {
        /// The name of the option.
        name: String,
    },
    /// A digest is not a SHA-256.
    #[error("invalid SHA-256 {found:?}")]
    Digest {
        /// The value in the Shim.
        found: String,
    },
    /// maxUpdate is neither a number nor a percentage.
    #[error("invalid maxUpdate {found:?}: use a number of nodes or a percentage from 1% to 100%")]
    MaxUpdate {
        /// The value in the Shim.
        found: String,
    },
    /// The name of the Shim is not a valid label name.
    #[error("the name {name:?} is not a valid node label")]
    Name {
        /// The name.
        name: String,
    },
    /// The name of a handler is not a valid label name.
    #[error("invalid handler name {handler:?}")]
    Handler {
        /// The value in the Shim.
        handler: String,
    },
}

impl Error {
    /// How the author of the Shim corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        let help = match self {
            Self::NoArtifact => "set spec.fetchStrategy.platforms",
            Self::NoPlatform { .. } => "add the platform to spec.fetchStrategy.platforms",
            Self::Location { .. } => "use https://, http:// or file:///",
            Self::LongLocation => "shorten the location",
            Self::ManyOptions => "remove options from spec.containerdRuntimeOptions",
            Self::LongOptionName | Self::LongOption { .. } => {
                "shorten the option in spec.containerdRuntimeOptions"
            }
            Self::Digest { .. } => "write 64 hexadecimal digits",
            Self::MaxUpdate { .. } => return None,
            Self::Name { .. } => "use at most 63 characters",
            Self::Handler { .. } => {
                "use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
            }
        };
        Some(help.into())
    }
}
