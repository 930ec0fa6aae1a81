//! Runs binaries in the host's root before a symlink or the configuration names them: a binary must start, must not hang containerd, and must
//! not be a program that is no shim.
//!
//! Shims differ in their answers, and a working shim must never be refused:
//!
//! * Shims of the Go library answer `-v` with their version, and have `-info` since containerd 2.0. The shim of runc fails with `-info` if
//!   it finds no runc.
//! * Shims of runwasi answer `-v` with their version, and have `-info` in its present releases.
//! * The first shims of Spin, Slight and wasmtime, of the Rust library alone, end both with 1 and ask for a namespace, or for the
//!   environment variable with containerd's address.
//! * Kata's shim in Rust knows neither, writes its version to the standard error, and ends with 0.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;

use crate::handoff::{Problem, Sha256Digest};
use crate::installer::artifact::unpack::CHECK_LOCATION;
use crate::installer::host::exec::{self, Error, ProgramOutput};
use crate::installer::host::{HostRoot, Target};

/// The time that a shim has to answer; it takes milliseconds. containerd 2.2.7, 2.3.4 and 2.4 run `-info` of every handler at their start,
/// one after the other and without a timeout.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of the smoke test.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tested {
    /// The problem of each binary that fails, by SHA-256.
    pub(crate) failing: BTreeMap<Sha256Digest, Problem>,
    /// The binaries that run, and whose answers are not those of a shim.
    pub(crate) unrecognized: BTreeSet<Sha256Digest>,
}

/// Runs the binaries at `paths`, by SHA-256.
///
/// In an image, a binary that can't be started is accepted: the image may be for another kernel, or Farrier may lack the right to enter
/// the image's root.
pub(crate) async fn test(
    host: &HostRoot,
    paths: &BTreeMap<Sha256Digest, String>,
    target: Target,
) -> Tested {
    let checks = paths
        .iter()
        .map(async |(sha256, path)| (*sha256, check(host, path, LIMIT).await));
    let mut tested = Tested::default();
    for (sha256, result) in join_all(checks).await {
        match result {
            Ok(Answer::Shim) => {}
            Ok(Answer::Unrecognized) => {
                tested.unrecognized.insert(sha256);
            }
            Err(Failure::Run(_, Error::Start { .. })) if target == Target::Image => {}
            Err(failure) => {
                tested.failing.insert(sha256, failure.problem());
            }
        }
    }
    tested
}

/// What the answers of a program say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The program answers as shims do.
    Shim,
    /// The program may be a shim.
    Unrecognized,
}

/// Why a binary fails the smoke test.
#[derive(Debug)]
enum Failure {
    /// The binary did not run to its end with this option.
    Run(&'static str, Error),
    /// The binary ended with a failure of its own; the last line of its standard error.
    Fails(String),
    /// The binary ends well and says nothing.
    Silent,
}

const REMEDY: &str = "use a build for the libraries of this host, and check that the directory of the binary is not mounted noexec";

impl Failure {
    fn problem(self) -> Problem {
        match self {
            Self::Run(INFO, Error::TooLong { .. }) => Problem::with_help(
                format!(
                    "the binary does not answer `-info` within {LIMIT:?}, and containerd would wait for it at every start"
                ),
                "use a release of the shim with a working `-info`",
            ),
            Self::Run(option, Error::TooLong { .. }) => Problem::with_help(
                format!(
                    "the binary does not answer `{option}` within {LIMIT:?}, as every shim of containerd does"
                ),
                CHECK_LOCATION,
            ),
            Self::Run(_, Error::Start { source, .. }) => Problem::with_help(
                format!("failed to start the binary on the host: {source}"),
                REMEDY,
            ),
            Self::Run(_, Error::Failed { message, .. }) | Self::Fails(message) => {
                Problem::with_help(
                    format!("the binary does not run on the host: {message}"),
                    REMEDY,
                )
            }
            Self::Run(_, error @ (Error::TooMuch { .. } | Error::NotTrusted { .. })) => {
                Problem::new(&error, error.help().or(Some(REMEDY.into())))
            }
            Self::Silent => Problem::with_help(
                "the binary is no shim of containerd: it prints nothing for `-info` and `-v`"
                    .to_owned(),
                CHECK_LOCATION,
            ),
        }
    }
}

const INFO: &str = "-info";
const VERSION: &str = "-v";

/// Runs the program at `path` with `-info`, as containerd does, and with `-v`, which every shim has.
async fn check(host: &HostRoot, path: &str, limit: Duration) -> Result<Answer, Failure> {
    let info = match exec::run_unchecked(host, path, &[INFO], limit).await {
        Ok(info) => Some(info),
        Err(error @ (Error::TooLong { .. } | Error::Start { .. })) => {
            return Err(Failure::Run(INFO, error));
        }
        // `-v` tells more.
        Err(Error::Failed { .. } | Error::TooMuch { .. } | Error::NotTrusted { .. }) => None,
    };
    if info.as_ref().is_some_and(is_runtime_info) {
        return Ok(Answer::Shim);
    }
    let version = exec::run_unchecked(host, path, &[VERSION], limit).await;
    let version = version.map_err(|error| Failure::Run(VERSION, error))?;
    judge(info.as_ref(), &version)
}

/// Judges a program by its outputs for `-info`, if any, and `-v`.
fn judge(info: Option<&ProgramOutput>, version: &ProgramOutput) -> Result<Answer, Failure> {
    let said = text(version);
    if SIGNS.iter().any(|signs| has_all(&said, signs)) && !is_of_loader(version) {
        return Ok(Answer::Shim);
    }
    let info_succeeds = info.is_some_and(|info| info.status.success());
    if !version.status.success() && !info_succeeds {
        let knows_no_option =
            !is_of_loader(version) && COMPLAINTS.iter().any(|complaint| said.contains(complaint));
        return if knows_no_option {
            Ok(Answer::Unrecognized)
        } else {
            Err(Failure::Fails(version.message()))
        };
    }
    if said.trim().is_empty() && info.is_some_and(|info| text(info).trim().is_empty()) {
        return Err(Failure::Silent);
    }
    Ok(Answer::Unrecognized)
}

/// Words that stand together in the answer of a shim to `-v`, in lower case. The version has them, and so has the error of a shim without
/// `-v`, which misses what containerd gives to shims.
const SIGNS: [&[&str]; 5] = [
    &["version:", "revision:"],
    &["containerd"],
    &["shim"],
    &["namespace", "empty"],
    &["ttrpc"],
];

/// Words of programs that do not know `-v`, in lower case.
const COMPLAINTS: [&str; 5] = ["argument", "option", "flag", "usage", "notpresent"];

/// Exit statuses of dynamic loaders and shells for a program that can't be executed.
const NOT_EXECUTED: [i32; 2] = [126, 127];

/// Whether the output is that of the dynamic loader, or a signal has ended the program. The loader of glibc ends with 1 if its own version
/// is too old.
fn is_of_loader(output: &ProgramOutput) -> bool {
    match output.status.code() {
        Some(0) => false,
        Some(status) => {
            NOT_EXECUTED.contains(&status) || has_all(&text(output), &["not found (required by"])
        }
        None => true,
    }
}

/// Both outputs in lower case.
fn text(output: &ProgramOutput) -> String {
    let outputs = [&output.stdout, &output.stderr];
    let outputs = outputs.map(|output| String::from_utf8_lossy(output).to_lowercase());
    outputs.join("\n")
}

fn has_all(text: &str, words: &[&str]) -> bool {
    words.iter().all(|word| text.contains(word))
}

/// Whether the output begins as a `RuntimeInfo` (`api/types/introspection.proto` of containerd): field 1, the name of the runtime.
fn is_runtime_info(output: &ProgramOutput) -> bool {
    let [0x0a, length, rest @ ..] = &output.stdout[..] else {
        return false;
    };
    let name = rest.get(..usize::from(*length)).unwrap_or_default();
    let is_printable = |byte: &u8| byte.is_ascii_graphic();
    output.status.success() && !name.is_empty() && name.iter().all(is_printable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use rstest::rstest;

    use super::*;

    /// Checks a program that is this script.
    async fn check_script(script: &str, limit: Duration) -> Result<Answer, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = HostRoot::open(Path::new("/")).unwrap();
        loop {
            let result = check(&host, path.to_str().unwrap(), limit).await;
            // A parallel test may have forked while the script was open for writing (ETXTBSY).
            match result {
                Err(Failure::Run(_, Error::Start { source, .. }))
                    if source.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                result => return result,
            }
        }
    }

    /// What `info` and `version`, two shell commands, say about a program that runs them for `-info` and `-v`.
    async fn answer(info: &str, version: &str) -> Result<Answer, String> {
        let script =
            format!("#!/bin/sh\ncase $1 in -info) {info};; -v) {version};; *) exit 99;; esac\n");
        let answer = check_script(&script, Duration::from_secs(20)).await;
        answer.map_err(|failure| failure.problem().message)
    }

    const NO_INFO: &str = "echo 'flag provided but not defined: -info' >&2; exit 2";

    // What the releases of these shims print.
    #[rstest]
    #[case::runc_1_7(
        NO_INFO,
        "printf 'containerd-shim-runc-v2:\\n  Version:  v1.7.35\\n  Revision: \\n'"
    )]
    #[case::runc_2_1_without_runc(
        "echo 'io.containerd.runc.v2: failed to look up the path of \"runc\"' >&2; exit 1",
        "printf 'a1b2:\\n  Version:  v2.1.9\\n  Revision: \\n'"
    )]
    #[case::runwasi_1_0(
        "printf '\\n\\005wasmi\\022\\030\\n\\0050.1.0'",
        "printf 'a1b2:\\n  Runtime: wasmi\\n  Version: 0.1.0\\n  Revision: eaa371c\\n'"
    )]
    #[case::lunatic_0_9(
        "echo 'io.containerd.lunatic.v1: InvalidArgument(\"unknown flag -info\")' >&2; exit 1",
        "printf 'a1b2:\\n  Version: 0.9.0\\n  Revision: \\n\\n'"
    )]
    #[case::spin_0_3(
        "echo 'io.containerd.spin.v1: InvalidArgument(\"unknown\")' >&2; exit 1",
        "echo 'io.containerd.spin.v1: InvalidArgument(\"Shim namespace cannot be empty\")' >&2; exit 1"
    )]
    #[case::another_of_the_rust_library(
        "echo 'mine: InvalidArgument(\"unknown\")' >&2; exit 1",
        "echo 'mine: MissingArg(\"Shim namespace cannot be empty\")' >&2; exit 1"
    )]
    #[case::kata_in_rust(
        "echo 'kata containerd shim (Rust): id: io.containerd.kata.v2' >&2",
        "echo 'kata containerd shim (Rust): id: io.containerd.kata.v2' >&2"
    )]
    #[tokio::test]
    async fn the_answers_of_shims_are_recognized(#[case] info: &str, #[case] version: &str) {
        assert_eq!(answer(info, version).await, Ok(Answer::Shim));
    }

    #[rstest]
    #[case::runc_itself("exit 1", "echo runc version 1.2.3")]
    #[case::lists_files("ls -d /", "ls -d /")]
    #[case::says_nothing_for_version(NO_INFO, "exit 0")]
    #[case::fails_for_version("echo info", "exit 1")]
    #[case::knows_no_option(NO_INFO, "echo 'unexpected argument -v found' >&2; exit 2")]
    #[case::lacks_the_environment("exit 1", "echo 'mine: Env(NotPresent)' >&2; exit 1")]
    #[tokio::test]
    async fn a_program_that_may_be_a_shim_is_accepted(#[case] info: &str, #[case] version: &str) {
        assert_eq!(answer(info, version).await, Ok(Answer::Unrecognized));
    }

    #[rstest]
    #[case::says_nothing("exit 0", "exit 0", "no shim of containerd")]
    #[case::says_nothing_but_a_line("echo", "exit 0", "no shim of containerd")]
    #[case::reads_what_it_is_asked("! read -r line", "! read -r line", "no shim of containerd")]
    #[case::fails("exit 1", "exit 1", "does not run on the host: exit status: 1")]
    #[case::misses_a_device("exit 1", "echo 'no /dev/kvm' >&2; exit 1", "no /dev/kvm")]
    #[case::misses_a_library(
        "exit 127",
        "echo 'shim: error while loading shared libraries: libwasmedge.so.0' >&2; exit 127",
        "libwasmedge.so.0"
    )]
    #[case::misses_a_release_of_libc(
        "exit 1",
        "echo 'containerd-shim: libc.so.6: version GLIBC_2.38 not found (required by shim)' >&2; exit 1",
        "GLIBC_2.38"
    )]
    #[case::has_instructions_of_another_cpu("kill -ILL $$", "kill -ILL $$", "signal: 4")]
    #[tokio::test]
    async fn a_program_that_is_no_shim_or_does_not_run_is_refused(
        #[case] info: &str,
        #[case] version: &str,
        #[case] expected: &str,
    ) {
        let refused = answer(info, version).await.unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }

    #[tokio::test]
    async fn a_program_without_its_interpreter_is_refused() {
        let result = check_script("#!/no/such/loader\n", Duration::from_secs(20)).await;
        let problem = result.unwrap_err().problem().message;
        assert!(problem.contains("failed to start the binary"), "{problem}");
    }

    #[rstest]
    #[case::info("[ \"$1\" = -v ] || exec sleep 60", "does not answer `-info`")]
    #[case::version("[ \"$1\" = -info ] || exec sleep 60", "does not answer `-v`")]
    #[tokio::test]
    async fn a_shim_that_hangs_is_refused(#[case] script: &str, #[case] expected: &str) {
        let script = format!("#!/bin/sh\n{script}\n");
        let result = check_script(&script, Duration::from_millis(500)).await;
        let problem = result.unwrap_err().problem().message;
        assert!(problem.contains(expected), "{problem}");
    }
}
