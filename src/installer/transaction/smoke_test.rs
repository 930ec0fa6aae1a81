//! Runs shims in the host's root before a symlink or the configuration names them: a shim must start, and must not hang containerd.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;

use crate::handoff::{Problem, Sha256Digest};
use crate::installer::host::exec::{self, Error};
use crate::installer::host::{HostRoot, Target};

/// The time that a shim has to answer; it takes milliseconds. containerd 2.2.7, 2.3.4 and 2.4 run `-info` of every handler at their start,
/// one after the other and without a timeout.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs the binaries at `paths` and returns the problem of each one that fails, both by SHA-256.
///
/// In an image, a binary that can't be started is accepted: the image may be for another kernel, or Farrier may lack the right to enter
/// the image's root.
pub(crate) async fn failing_binaries(
    host: &HostRoot,
    paths: &BTreeMap<Sha256Digest, String>,
    target: Target,
) -> BTreeMap<Sha256Digest, Problem> {
    let checks = paths.iter().map(async |(sha256, path)| {
        let problem = match check_runs(host, path, LIMIT).await {
            Ok(()) => return None,
            Err(Error::Start { .. }) if target == Target::Image => return None,
            Err(Error::TooLong { .. }) => Problem::with_help(
                format!(
                    "the binary does not answer `-info` within {LIMIT:?}, and containerd would wait for it at every start"
                ),
                "use a release of the shim with a working `-info`",
            ),
            Err(Error::Start { source, .. }) => {
                Problem::with_help(
                    format!("failed to start the binary on the host: {source}"),
                    REMEDY,
                )
            }
            Err(Error::Failed { message, .. }) => {
                Problem::with_help(
                    format!("the binary does not run on the host: {message}"),
                    REMEDY,
                )
            }
            Err(error @ (Error::TooMuch { .. } | Error::NotTrusted { .. })) => {
                Problem::new(&error, error.help().or(Some(REMEDY.into())))
            }
        };
        Some((*sha256, problem))
    });
    join_all(checks).await.into_iter().flatten().collect()
}

const REMEDY: &str = "use a build for the libraries of this host, and check that the directory of the binary is not mounted noexec";

/// Checks that the shim at `path` answers `-info` or `-v`, and does not hang on `-info`, which containerd runs.
async fn check_runs(host: &HostRoot, path: &str, limit: Duration) -> Result<(), Error> {
    match exec::run_unchecked(host, path, &["-info"], limit).await {
        Ok(_) => return Ok(()),
        Err(error @ (Error::TooLong { .. } | Error::Start { .. })) => return Err(error),
        // Shims older than containerd 2.0 have no `-info`.
        Err(Error::Failed { .. } | Error::TooMuch { .. } | Error::NotTrusted { .. }) => {}
    }
    exec::run_unchecked(host, path, &["-v"], limit)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use rstest::rstest;

    use super::*;

    /// Checks a shim that is this script.
    async fn check(script: &str, limit: Duration) -> Result<(), Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = HostRoot::open(Path::new("/")).unwrap();
        loop {
            let result = check_runs(&host, path.to_str().unwrap(), limit).await;
            // A parallel test may have forked while the script was open for writing (ETXTBSY).
            match result {
                Err(Error::Start { source, .. })
                    if source.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                result => return result,
            }
        }
    }

    #[rstest]
    #[case::knows_both("#!/bin/sh\nexit 0\n", true)]
    #[case::knows_only_the_older("#!/bin/sh\n[ \"$1\" = -v ]\n", true)]
    #[case::knows_only_the_newer("#!/bin/sh\n[ \"$1\" = -info ]\n", true)]
    #[case::reads_what_it_is_asked("#!/bin/sh\n! read -r line\n", true)]
    #[case::knows_neither("#!/bin/sh\nexit 1\n", false)]
    #[case::has_no_interpreter("#!/no/such/loader\n", false)]
    #[tokio::test]
    async fn a_shim_that_answers_info_or_version_is_accepted(
        #[case] script: &str,
        #[case] usable: bool,
    ) {
        let result = check(script, Duration::from_secs(20)).await;
        assert_eq!(result.is_ok(), usable, "{result:?}");
    }

    #[tokio::test]
    async fn a_shim_that_hangs_on_info_is_refused_although_it_answers_version() {
        let script = "#!/bin/sh\n[ \"$1\" = -v ] || exec sleep 60\n";
        let result = check(script, Duration::from_millis(200)).await;
        assert!(matches!(result, Err(Error::TooLong { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn a_missing_library_is_reported_with_the_message_of_the_loader() {
        let script =
            "#!/bin/sh\necho 'libwasmedge.so.0: cannot open shared object file' >&2\nexit 127\n";
        let error = check(script, Duration::from_secs(20)).await.unwrap_err();
        assert!(error.to_string().contains("libwasmedge.so.0"), "{error}");
    }
}
