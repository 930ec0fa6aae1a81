//! The hand-off directory: `fetch` writes a result and a binary for each shim, and `install` reads them without trust in their contents.
//!
//! One process fetches all shims, so the bytes of one shim that take over this process could replace the binary of another. A request with
//! the digest of the binary, or with that of the artifact, protects its shim: `install` compares both again. In the second case, `fetch`
//! also leaves the artifact, and `install` unpacks it once more, after its digest was compared.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::error::{Error, check_binary, check_digest, directory_error};
use super::unpack::{self, Hashing, Wanted};
use crate::handoff::{self, FetchResult, Problem, Sha256Digest, ShimRequest};
use crate::installer::host::cpu::Cpu;

/// Size limit in bytes for a [`FetchResult`], which has a few hundred bytes.
const MAX_RESULT: u64 = 64 << 10;

/// Writes the result of fetching a shim as `<shim>.json`.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn write_result(result: &FetchResult, out: &Path) -> Result<(), Error> {
    let path = out.join(format!("{}.json", result.shim));
    let json = handoff::to_json(result);
    std::fs::write(&path, json).map_err(directory_error(&path))
}

/// Reads the fetched binary of a shim for a host with `cpu`: returns its path and its SHA-256, which is computed again.
///
/// # Errors
/// When there is no result or no binary, when `fetch` reports a failure, and when the file is a symlink, is not a program for `cpu` or has
/// another digest.
pub fn read_binary(
    shim: &ShimRequest,
    out: &Path,
    cpu: Cpu,
) -> Result<(PathBuf, Sha256Digest), Error> {
    let path = out.join(format!("{}.json", shim.name));
    let mut json = String::new();
    let file = match open_regular(&path) {
        Err(Error::Directory { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing);
        }
        other => other?,
    };
    file.take(MAX_RESULT)
        .read_to_string(&mut json)
        .map_err(directory_error(&path))?;
    let result: FetchResult = serde_json::from_str(&json).map_err(|_| Error::Missing)?;
    if let Some(message) = result.reason {
        let help = result.remedy;
        let problem = Problem { message, help }.printable();
        return Err(if result.for_another_cpu {
            Error::ReportedCpu(problem)
        } else {
            Error::Reported(problem)
        });
    }
    // The result is not trusted: only the request decides whether the binary is expected on the host.
    if result.present {
        return Err(Error::Missing);
    }
    let path = out.join(format!("{}.bin", shim.name));
    let digest = copy_binary(&path, cpu, &mut io::sink())?;
    check_digest("the fetched binary", digest, result.binary_sha256)?;
    check_binary("the fetched binary", digest, shim)?;
    if needs_artifact(shim, digest) {
        let unpacked = unpacked_digest(shim, shim.sha256, out, cpu)?;
        check_digest("the fetched binary", digest, Some(unpacked))?;
    }
    Ok((path, digest))
}

/// The path of the artifact of a shim.
pub(crate) fn artifact_path(shim: &ShimRequest, out: &Path) -> PathBuf {
    out.join(format!("{}.artifact", shim.name))
}

/// Whether the artifact is the only evidence for a binary with this digest.
pub(crate) fn needs_artifact(shim: &ShimRequest, binary: Sha256Digest) -> bool {
    let is_binary = shim.sha256 == Some(binary);
    shim.binary_sha256.is_none() && shim.sha256.is_some() && !is_binary
}

/// The SHA-256 of the binary in the artifact of a shim, whose own digest is compared with `expected` before it is unpacked.
fn unpacked_digest(
    shim: &ShimRequest,
    expected: Option<Sha256Digest>,
    out: &Path,
    cpu: Cpu,
) -> Result<Sha256Digest, Error> {
    let path = artifact_path(shim, out);
    let mut file = open_regular(&path)?;
    // At most as many bytes as an artifact may have.
    let whole = Hashing::new(&mut file).finish()?;
    check_digest("the fetched artifact", whole, expected)?;
    file.rewind().map_err(directory_error(&path))?;
    let mut artifact = Hashing::new(file);
    let wanted = Wanted {
        shim: &shim.name,
        binary: shim.binary.as_deref(),
        cpu,
    };
    let digest = unpack::unpack(&mut artifact, wanted, &mut io::sink())?;
    // The file may have been written to in between, so the digest of the unpacked bytes is compared, too.
    check_digest("the fetched artifact", artifact.finish()?, expected)?;
    Ok(digest)
}

/// Copies a binary out of the hand-off directory and returns the SHA-256 of the copy.
///
/// # Errors
/// When the file is a symlink, is not a program for `cpu`, or can't be read or written.
pub fn copy_binary(path: &Path, cpu: Cpu, out: &mut impl Write) -> Result<Sha256Digest, Error> {
    Ok(unpack::copy_program(open_regular(path)?, cpu, out)?)
}

/// Opens a regular file. The file is not trusted: a symlink, FIFO or device is refused.
fn open_regular(path: &Path) -> Result<File, Error> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(directory_error(path))?;
    let is_file = file.metadata().map_err(directory_error(path))?.is_file();
    if is_file {
        Ok(file)
    } else {
        Err(directory_error(path)(io::Error::other(
            "the path is not a regular file",
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reported_failure_keeps_its_help() {
        let out = tempfile::tempdir().unwrap();
        let result = |remedy: Option<&str>| FetchResult {
            shim: "spin".to_owned(),
            binary_sha256: None,
            reason: Some("no such host".to_owned()),
            remedy: remedy.map(str::to_owned),
            present: false,
            for_another_cpu: false,
        };
        let request =
            r#"{"name":"spin","handlers":["spin"],"location":"https://example.org/spin"}"#;
        let shim: ShimRequest = serde_json::from_str(request).unwrap();
        for (remedy, expected) in [
            (Some("check\u{1b}the location"), Some("check the location")),
            (None, None),
        ] {
            write_result(&result(remedy), out.path()).unwrap();
            let error = read_binary(&shim, out.path(), Cpu::own()).unwrap_err();
            assert_eq!(error.to_string(), "no such host");
            assert_eq!(error.help().as_deref(), expected);
        }
    }
}
