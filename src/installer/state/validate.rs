//! Parses a state file and checks every path in it, as root acts on these paths: a damaged or forged file must not make Farrier change
//! files of other programs. The journal uses the checks of single paths, too. Pure.

use super::{Error, STATE_FILE, State};
use crate::handoff::{API_VERSION, Owner};
use crate::installer::host::path::file_name;

/// The last component of every directory for binaries in the table of distributions.
const OWN_NAME: &str = "farrier";

/// Prefix of every binary's file name, of Farrier and of KWasm and runtime-class-manager.
const SHIM_PREFIX: &str = "containerd-shim-";

impl State {
    /// Parses a state file; `None`, an absent file, is the empty state.
    ///
    /// # Errors
    /// When the text is not a state file of this version or contains a value that Farrier never writes. A guess could remove files of other
    /// programs.
    pub fn from_json(text: Option<&str>) -> Result<Self, Error> {
        let Some(text) = text else {
            return Ok(Self::default());
        };
        let mut state: Self = serde_json::from_str(text).map_err(|source| Error::Json {
            path: STATE_FILE,
            source,
        })?;
        if state.api_version != API_VERSION {
            return Err(Error::Version {
                path: STATE_FILE,
                found: state.api_version,
            });
        }
        if let Some(found) = unexpected_path(&state) {
            return Err(Error::UnexpectedPath {
                path: STATE_FILE,
                found,
            });
        }
        // Older releases recorded the handlers of legacy installers, too. Each run now reads these handlers from the configuration.
        state.handlers.retain(|_, owned| match owned.owner {
            Owner::Cluster | Owner::Local => true,
            Owner::Kwasm | Owner::Rcm => false,
        });
        Ok(state)
    }
}

/// The first value that Farrier never writes.
fn unexpected_path(state: &State) -> Option<String> {
    let mut unexpected = Vec::new();
    unexpected.extend((!is_own_directory(&state.directory)).then(|| state.directory.clone()));
    for (name, owned) in state.handlers.iter().chain(&state.draining) {
        unexpected.extend((!is_file_name(name)).then(|| name.clone()));
        let path = owned.path.iter().filter(|path| !is_shim(path));
        unexpected.extend(path.cloned());
    }
    let paths = state.directories.iter();
    let paths = paths.chain(state.config.iter().map(|config| &config.path));
    let paths = paths.chain(
        state
            .config
            .iter()
            .filter_map(|config| config.root.as_ref()),
    );
    unexpected.extend(paths.filter(|path| !path.starts_with('/')).cloned());
    unexpected.into_iter().next()
}

/// Whether `path` can be a directory for binaries, as in the table of distributions.
pub(crate) fn is_own_directory(path: &str) -> bool {
    is_plain(path) && file_name(path) == OWN_NAME
}

/// Whether `path` can be the path of a shim, of Farrier or of another installer.
pub(crate) fn is_shim(path: &str) -> bool {
    is_plain(path) && file_name(path).starts_with(SHIM_PREFIX)
}

/// Whether `path` can be the file that KWasm leaves on a provisioned node.
pub(crate) fn is_marker(path: &str) -> bool {
    is_plain(path) && path.ends_with("/active")
}

/// Whether `path` is absolute, without empty components, `.` and `..`.
fn is_plain(path: &str) -> bool {
    path.strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(is_file_name))
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SHA256: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[rstest]
    #[case::directory("folder", "/opt/farrier", "/")]
    #[case::folder_above("folder", "/opt/farrier", "/opt/../farrier")]
    #[case::handler("a", "\"a\":{", "\"../../etc/passwd\":{")]
    #[case::path("a", "/opt/kwasm/bin/containerd-shim-a", "/etc/passwd")]
    #[case::directories("folders", "/etc/conf.d", "etc")]
    fn a_state_file_that_names_files_of_others_is_refused(
        #[case] what: &str,
        #[case] managed: &str,
        #[case] foreign: &str,
    ) {
        let text = format!(
            r#"{{"apiVersion":"farrier.dev/v1","folder":"/opt/farrier","folders":["/etc/conf.d"],"handlers":{{"a":{{
            "shim":"a","owner":"local","sha256":"{SHA256}","path":"/opt/kwasm/bin/containerd-shim-a"}}}}}}"#
        );
        assert!(State::from_json(Some(&text)).is_ok());
        assert!(text.contains(managed));
        let forged = text.replace(managed, foreign);
        let error = State::from_json(Some(&forged)).unwrap_err().to_string();
        assert!(
            error.contains("which Farrier never writes"),
            "{what}: {error}"
        );
    }

    #[test]
    fn a_digest_of_a_state_file_is_checked_where_a_binary_has_it() {
        let read = |sha256: &str, other: &str| {
            let text = format!(
                r#"{{"apiVersion":"farrier.dev/v1","requests":{{"local":"{other}"}},"config":{{"path":"/c","sha256":"{other}"}},
                "handlers":{{"a":{{"shim":"a","owner":"local","sha256":"{sha256}","artifactSha256":"{other}"}}}}}}"#
            );
            State::from_json(Some(&text))
        };
        let error = read("../../../etc/passwd", SHA256).unwrap_err().to_string();
        assert!(error.contains("invalid SHA-256"), "{error}");
        let state = read(SHA256, "abc").unwrap();
        assert!(state.requests.is_empty() && state.config.unwrap().sha256.is_none());
        assert_eq!(read(SHA256, SHA256).unwrap().requests.len(), 1);
    }
}
