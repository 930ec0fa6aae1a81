//! Extracts the shim's binary from an artifact, which is a `.tar.gz` or the ELF file itself. The artifact is not trusted: every size is
//! bounded, and an archive with a member outside of its directory is refused. No path of the archive is ever written to.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use flate2::bufread::GzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType, PaxExtensions};

use crate::handoff::{Sha256Digest, printable_up_to};

/// Size limit in bytes for an unpacked archive: four times the largest known shim (wasmedge with its plugins, 130 MB).
const MAX_UNPACKED: u64 = 512 << 20;

/// Limit for the members of an archive. Archives of releases have fewer than ten.
const MAX_MEMBERS: usize = 10_000;

/// Size limit in bytes for a member that describes the next one. A path has at most 4,096 bytes (`PATH_MAX`); a pax header also contains
/// times and attributes.
const MAX_DESCRIPTION: u64 = 64 << 10;

/// The first two bytes of every gzip member (RFC 1952, 2.3).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The first bytes of every ELF file (System V ABI, *ELF Identification*).
const ELF: [u8; 4] = *b"\x7fELF";

/// Length in bytes of an ELF header up to the end of `e_machine`, the field for the CPU (System V ABI, *ELF Header*).
const ELF_HEADER: usize = 20;

/// The help for an artifact that is no archive or binary of a shim.
pub(crate) const CHECK_LOCATION: &str =
    "check that the location names the .tar.gz archive or the binary of a shim";

/// Why an artifact contains no usable binary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The artifact is neither an archive nor a program.
    #[error("the artifact is neither a .tar.gz archive nor an ELF program")]
    Unknown,
    /// The archive is damaged or truncated, or can't be read.
    #[error("failed to unpack the artifact: {source}")]
    Unreadable {
        /// The reader's error.
        #[source]
        source: io::Error,
    },
    /// A member's path is outside of the archive's directory, or the member is a symlink, a hard link or a device.
    #[error("the archive's member {member:?} {fault}")]
    UnsafePath {
        /// The member's path.
        member: String,
        /// The rest of the sentence, such as `is a symlink`.
        fault: &'static str,
    },
    /// The archive does not contain the binary.
    #[error("the archive contains no {binary} (it contains {found})")]
    Absent {
        /// The file name of the binary.
        binary: String,
        /// The archive's first files.
        found: String,
    },
    /// Two files of the archive may be the binary.
    #[error("the archive contains both {one} and {other}")]
    Ambiguous {
        /// The first file.
        one: String,
        /// The second file.
        other: String,
    },
    /// The archive exceeds a limit.
    #[error("the archive unpacks to more than {MAX_UNPACKED} bytes or {MAX_MEMBERS} members")]
    TooLarge,
    /// The binary is not a 64-bit ELF file for this CPU.
    #[error("the binary is not a Linux program for this CPU ({0})")]
    WrongCpu(&'static str),
    /// The binary can't be written.
    #[error("failed to write the unpacked binary: {source}")]
    Write {
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Unknown | Self::Unreadable { .. } | Self::TooLarge => {
                Cow::Borrowed(CHECK_LOCATION)
            }
            Self::UnsafePath { .. } => {
                Cow::Borrowed("take the archive from the shim's own release")
            }
            Self::Absent { .. } => Cow::Borrowed(
                "name the file under fetchStrategy.binary, or as binary=FILE on the command line",
            ),
            Self::Ambiguous { .. } => Cow::Borrowed(
                "name one of these files under fetchStrategy.binary, or as binary=FILE on the command line",
            ),
            Self::WrongCpu(_) => Cow::Borrowed("name the artifact for the node's architecture"),
            Self::Write { .. } => Cow::Borrowed("check that the file system has free space"),
        })
    }
}

/// Whether the first bytes are those of an archive or a program.
fn is_known(head: &[u8]) -> bool {
    head == ELF || head.starts_with(&GZIP)
}

/// Checks that `artifact` begins as an archive or a program.
///
/// # Errors
/// [`Error::Unknown`] if it does not, and [`Error::Unreadable`] if it can't be read.
pub fn check_kind(artifact: &mut impl Read) -> Result<(), Error> {
    if is_known(&read_head(artifact)?) {
        Ok(())
    } else {
        Err(Error::Unknown)
    }
}

fn read_head(artifact: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    artifact
        .take(ELF.len() as u64)
        .read_to_end(&mut head)
        .map_err(|source| Error::Unreadable { source })?;
    Ok(head)
}

/// Copies the binary from `artifact` to `out` and returns its SHA-256.
///
/// `binary` is the binary's file name in an archive. Without it, the binary is `containerd-shim-<shim>`, or the only file whose name
/// differs from that only in a suffix `-vN`.
///
/// # Errors
/// When there is no binary or it is for another CPU, and when the archive is damaged, unsafe or too large. `out` may then contain a part of
/// the binary.
pub fn unpack(
    mut artifact: impl Read,
    shim: &str,
    binary: Option<&str>,
    out: &mut impl Write,
) -> Result<Sha256Digest, Error> {
    let head = read_head(&mut artifact)?;
    if !is_known(&head) {
        return Err(Error::Unknown);
    }
    let whole = head.as_slice().chain(artifact);
    if head == ELF {
        return copy_program(whole, out);
    }
    unpack_archive(GzipMembers::new(BufReader::new(whole)), shim, binary, out)
}

fn unpack_archive(
    tar: impl Read,
    shim: &str,
    binary: Option<&str>,
    out: &mut impl Write,
) -> Result<Sha256Digest, Error> {
    let unreadable = |source| Error::Unreadable { source };
    // One byte beyond the limit: an archive that reaches it is too large.
    let mut archive = Archive::new(tar.take(MAX_UNPACKED + 1));
    let (mut digest, mut taken) = (None, None);
    let mut found = Vec::new();
    let mut unpacked = 0_u64;
    let mut long_path = None;
    // Raw: otherwise the crate reads names of any length into memory.
    let entries = archive.entries().map_err(unreadable)?.raw(true);
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(unreadable)?;
        unpacked = unpacked.saturating_add(entry.size());
        if count >= MAX_MEMBERS || unpacked > MAX_UNPACKED {
            return Err(Error::TooLarge);
        }
        let kind = entry.header().entry_type();
        if describes_next(kind) {
            long_path = read_path(&mut entry, kind)?.or(long_path);
            continue;
        }
        let path = match long_path.take() {
            Some(path) => path,
            None => entry.path().map_err(unreadable)?.into_owned(),
        };
        check_member(&path, kind)?;
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if may_be_binary(&name, shim, binary) {
            match &taken {
                None => {
                    digest = Some(copy_program(entry, out)?);
                    taken = Some(name.into_owned());
                }
                // A second member of the same name is ignored, as in a search path. With another name, the choice is ambiguous unless the
                // first has the requested name.
                Some(taken) if *taken != name && !is_named(taken, shim, binary) => {
                    return Err(Error::Ambiguous {
                        one: shown(taken),
                        other: shown(&name),
                    });
                }
                Some(_) => {}
            }
        } else if found.len() < 5 {
            found.push(shown(&name));
        }
    }
    // gzip's checksum comes after the last byte. It is the only protection against damage if the request has no digest.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(unreadable)?;
    if rest.limit() == 0 {
        return Err(Error::TooLarge);
    }
    digest.ok_or_else(|| Error::Absent {
        binary: binary.map_or_else(|| format!("containerd-shim-{shim}"), str::to_owned),
        found: if found.is_empty() {
            "no files".to_owned()
        } else {
            found.join(", ")
        },
    })
}

/// Whether a member only describes the next one.
fn describes_next(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
    )
}

/// The path that a member gives the next one: GNU tar's `@LongLink`, or `path` of a pax header (POSIX.1-2001, *pax*).
fn read_path(entry: &mut impl Read, kind: EntryType) -> Result<Option<PathBuf>, Error> {
    let mut bytes = Vec::new();
    entry
        .take(MAX_DESCRIPTION + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Unreadable { source })?;
    if bytes.len() as u64 > MAX_DESCRIPTION {
        return Err(Error::TooLarge);
    }
    if kind == EntryType::GNULongName {
        let end = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(end.unwrap_or(bytes.len()));
        return Ok(Some(OsString::from_vec(bytes).into()));
    }
    let mut path = None;
    // Some attributes have arbitrary bytes as values, which the crate can't split. These are skipped; path and size are never among them.
    for extension in PaxExtensions::new(&bytes).flatten() {
        match extension.key_bytes() {
            b"path" => path = Some(OsString::from_vec(extension.value_bytes().to_vec()).into()),
            // A reader that ignores this size finds other members than a reader that uses it.
            b"size" => {
                return Err(Error::UnsafePath {
                    member: "(pax header)".to_owned(),
                    fault: "overrides the size of the next member",
                });
            }
            _ => {}
        }
    }
    Ok(path)
}

/// Checks the path and the type of a member. All members are checked, also those after the binary.
fn check_member(path: &Path, kind: EntryType) -> Result<(), Error> {
    let unsafe_path = |fault| {
        Err(Error::UnsafePath {
            member: shown(&path.to_string_lossy()),
            fault,
        })
    };
    for component in path.components() {
        match component {
            Component::Normal(_) | Component::CurDir => {}
            Component::ParentDir => {
                return unsafe_path("has a path outside of the archive's directory");
            }
            Component::RootDir | Component::Prefix(_) => {
                return unsafe_path("has an absolute path");
            }
        }
    }
    match kind {
        // `git archive` writes the commit into a global header.
        EntryType::Regular
        | EntryType::Continuous
        | EntryType::Directory
        | EntryType::XGlobalHeader => Ok(()),
        EntryType::Link => unsafe_path("is a hard link"),
        EntryType::Symlink => unsafe_path("is a symlink"),
        _ => unsafe_path("is neither a regular file nor a directory"),
    }
}

/// Whether a file has exactly the requested name.
fn is_named(name: &str, shim: &str, binary: Option<&str>) -> bool {
    match binary {
        Some(binary) => name == binary,
        None => name.strip_prefix("containerd-shim-") == Some(shim),
    }
}

fn may_be_binary(name: &str, shim: &str, binary: Option<&str>) -> bool {
    let is_alike = |rest| base(rest) == base(shim);
    is_named(name, shim, binary)
        || binary.is_none() && name.strip_prefix("containerd-shim-").is_some_and(is_alike)
}

/// A shim's name without its suffix `-vN`.
fn base(name: &str) -> &str {
    match name.rsplit_once("-v") {
        Some((base, digits))
            if !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) =>
        {
            base
        }
        _ => name,
    }
}

/// A name from an archive for messages.
fn shown(name: &str) -> String {
    printable_up_to(name, 80)
}

/// Decompresses all members of a gzip file, and verifies the checksum and the length at the end of each (RFC 1952, 2.3.1). Bytes after the
/// last member that do not begin a member are not read.
struct GzipMembers<R> {
    /// The current member, which reads the two bytes of its magic number from memory first; `None` after the last.
    member: Option<GzDecoder<Chain<Cursor<Vec<u8>>, R>>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(file: R) -> Self {
        Self {
            member: Some(GzDecoder::new(Cursor::new(Vec::new()).chain(file))),
        }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(ended) = self.member.take() else {
                break;
            };
            let (_, mut file) = ended.into_inner().into_inner();
            let mut head = Vec::new();
            (&mut file).take(GZIP.len() as u64).read_to_end(&mut head)?;
            if head == GZIP {
                self.member = Some(GzDecoder::new(Cursor::new(head).chain(file)));
            }
        }
        Ok(0)
    }
}

/// A reader that hashes all bytes that are read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        let hasher = Sha256::new();
        Self { inner, hasher }
    }

    /// The SHA-256 of the whole file; reads the rest first.
    pub(crate) fn finish(mut self) -> Result<Sha256Digest, Error> {
        io::copy(&mut (&mut self).take(MAX_UNPACKED), &mut io::sink())
            .map_err(|source| Error::Unreadable { source })?;
        Ok(self.hasher.into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// Copies a program to `out` after a check of its ELF header, and returns its SHA-256.
///
/// # Errors
/// When the program is not an ELF file for this CPU, is too large, or can't be read or written.
pub fn copy_program(program: impl Read, out: &mut impl Write) -> Result<Sha256Digest, Error> {
    let unreadable = |source| Error::Unreadable { source };
    let write = |source| Error::Write { source };
    let mut program = program.take(MAX_UNPACKED + 1);
    let mut buffer = vec![0; 1 << 16];
    let mut filled = 0;
    while filled < ELF_HEADER {
        match program.read(&mut buffer[filled..]).map_err(unreadable)? {
            0 => break,
            read => filled += read,
        }
    }
    check_elf(&buffer[..filled])?;
    let mut hasher = Sha256::new();
    let mut written = 0;
    while filled > 0 {
        written += filled as u64;
        if written > MAX_UNPACKED {
            return Err(Error::TooLarge);
        }
        hasher.update(&buffer[..filled]);
        out.write_all(&buffer[..filled]).map_err(write)?;
        filled = program.read(&mut buffer).map_err(unreadable)?;
    }
    out.flush().map_err(write)?;
    Ok(hasher.into())
}

/// Checks that an ELF header is for the CPU of this process, which is the node's CPU.
fn check_elf(head: &[u8]) -> Result<(), Error> {
    // e_machine of the System V ABI's supplements: EM_X86_64 is 62, EM_AARCH64 is 183.
    let machine: u16 = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => return Err(Error::WrongCpu(std::env::consts::ARCH)),
    };
    let [low, high] = machine.to_le_bytes();
    // 64 bits, little-endian: the two bytes after the magic number (`EI_CLASS`, `EI_DATA`).
    let fits = head.starts_with(b"\x7fELF\x02\x01") && head.get(18..20) == Some(&[low, high]);
    if fits {
        Ok(())
    } else {
        Err(Error::WrongCpu(std::env::consts::ARCH))
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use rstest::rstest;
    use tar::{Builder, Header};

    use super::*;

    /// A program for this CPU: the first bytes of the test binary.
    fn program() -> Vec<u8> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        file.take(5_000).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn archive(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, kind, bytes) in members {
            let mut header = Header::new_gnu();
            // Written directly, as the builder refuses unsafe paths.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("target").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[rstest]
    #[case::another_release_first(["spin-v1", "spin-v2"], "spin-v2", None)]
    #[case::two_releases(["spin-v1", "spin-v2"], "spin", None)]
    #[case::the_right_one_first(["spin-v2", "spin-v1"], "spin-v2", Some(1))]
    #[case::without_a_suffix(["spin", "spin-v2"], "spin", Some(1))]
    fn only_the_binary_of_the_shim_is_taken_from_an_archive_of_several(
        #[case] members: [&str; 2],
        #[case] shim: &str,
        #[case] taken: Option<u8>,
    ) {
        let names = members.map(|name| format!("containerd-shim-{name}"));
        let programs = [1, 2].map(|seed| [program(), vec![seed]].concat());
        let members = [0, 1].map(|at| (names[at].as_str(), EntryType::Regular, &*programs[at]));
        let mut out = Vec::new();
        let result = unpack(archive(&members).as_slice(), shim, None, &mut out);
        match taken {
            Some(seed) => assert_eq!(out.last(), Some(&seed)),
            None => assert!(matches!(result, Err(Error::Ambiguous { .. }))),
        }
    }

    #[rstest]
    #[case::rcm("containerd-shim-spin-v2", "spin-v2")]
    #[case::kwasm("containerd-shim-spin-v2", "spin")]
    #[case::runwasi("./containerd-shim-wasmtime-v1", "wasmtime")]
    #[case::deeper("bin/containerd-shim-lunatic-v1", "lunatic-v2")]
    #[case::bare("containerd-shim-echo", "echo")]
    fn the_binary_is_found_by_its_base_name(#[case] member: &str, #[case] shim: &str) {
        let program = program();
        let archive = archive(&[
            ("./", EntryType::Directory, b""),
            (
                "./containerd-shim-wasmtime-v1.sig",
                EntryType::Regular,
                b"sig",
            ),
            (member, EntryType::Regular, &program),
        ]);
        let mut out = Vec::new();
        let digest = unpack(archive.as_slice(), shim, None, &mut out).unwrap();
        assert_eq!(digest, Sha256Digest::of(&program));
        assert_eq!(out, program);
    }

    #[test]
    fn a_program_without_an_archive_is_an_artifact() {
        let mut out = Vec::new();
        unpack(program().as_slice(), "x", None, &mut out).unwrap();
        assert_eq!(out, program());
    }

    #[rstest]
    #[case::parent("../containerd-shim-a", EntryType::Regular)]
    #[case::inner("a/../../containerd-shim-a", EntryType::Regular)]
    #[case::absolute("/usr/bin/containerd", EntryType::Regular)]
    #[case::symlink("containerd-shim-a", EntryType::Symlink)]
    #[case::hard_link("other", EntryType::Link)]
    #[case::device("other", EntryType::Block)]
    #[case::fifo("other", EntryType::Fifo)]
    fn an_archive_with_a_path_outside_its_directory_is_refused(
        #[case] member: &str,
        #[case] kind: EntryType,
    ) {
        let program = program();
        let archive = archive(&[
            ("containerd-shim-a", EntryType::Regular, &program),
            (member, kind, b""),
        ]);
        let result = unpack(archive.as_slice(), "a", None, &mut Vec::new());
        assert!(
            matches!(result, Err(Error::UnsafePath { .. })),
            "{result:?}"
        );
    }

    fn pax(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        // The length in front counts its own digits.
        let length = (1..10)
            .map(|digits| rest.len() + digits)
            .find(|length| length.to_string().len() + rest.len() == *length);
        format!("{}{rest}", length.unwrap()).into_bytes()
    }

    fn described(kind: EntryType, description: &[u8]) -> Result<Sha256Digest, Error> {
        let program = program();
        let archive = archive(&[
            ("././@LongLink", kind, description),
            ("short", EntryType::Regular, &program),
        ]);
        unpack(archive.as_slice(), "a", None, &mut Vec::new())
    }

    #[rstest]
    #[case::gnu(EntryType::GNULongName, |path: &str| [path.as_bytes(), b"\0"].concat())]
    #[case::pax(EntryType::XHeader, |path: &str| pax("path", path))]
    fn a_long_path_is_read_and_checked_as_a_short_one(
        #[case] kind: EntryType,
        #[case] describe: impl Fn(&str) -> Vec<u8>,
    ) {
        let directory = "folder/".repeat(40);
        described(kind, &describe(&format!("{directory}containerd-shim-a"))).unwrap();
        for path in ["../containerd-shim-a", "/usr/bin/containerd-shim-a"] {
            let result = described(kind, &describe(path));
            assert!(
                matches!(result, Err(Error::UnsafePath { .. })),
                "{result:?}"
            );
        }
        let result = described(kind, &describe(&"a".repeat(1 << 20)));
        assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");
    }

    #[test]
    fn a_member_with_an_ambiguous_header_is_refused() {
        let result = described(EntryType::XHeader, &pax("size", "7"));
        assert!(
            matches!(result, Err(Error::UnsafePath { .. })),
            "{result:?}"
        );
        let result = described(EntryType::GNUSparse, b"");
        assert!(
            matches!(result, Err(Error::UnsafePath { .. })),
            "{result:?}"
        );
    }

    #[test]
    fn an_archive_beyond_the_size_limit_is_refused() {
        let crowd = vec![("a", EntryType::Directory, b"".as_slice()); MAX_MEMBERS + 1];
        let result = unpack(archive(&crowd).as_slice(), "a", None, &mut Vec::new());
        assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");

        let mut header = Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(MAX_UNPACKED + 1);
        header.set_cksum();
        let mut claim = GzEncoder::new(Vec::new(), Compression::fast());
        claim.write_all(header.as_bytes()).unwrap();
        let claim = claim.finish().unwrap();
        let result = unpack(claim.as_slice(), "a", None, &mut Vec::new());
        assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");
    }

    #[test]
    fn a_truncated_member_is_refused() {
        let mut header = Header::new_gnu();
        header.set_path("containerd-shim-a").unwrap();
        header.set_size(100_000);
        header.set_cksum();
        let mut cut = GzEncoder::new(Vec::new(), Compression::fast());
        cut.write_all(header.as_bytes()).unwrap();
        cut.write_all(&program()).unwrap();
        let cut = cut.finish().unwrap();
        let result = unpack(cut.as_slice(), "a", None, &mut Vec::new());
        assert!(
            matches!(result, Err(Error::Unreadable { .. })),
            "{result:?}"
        );
    }

    #[rstest]
    #[case::checksum(|archive: &mut Vec<u8>| { let at = archive.len() - 8; archive[at] ^= 1; })]
    #[case::length(|archive: &mut Vec<u8>| { let at = archive.len() - 4; archive[at] ^= 1; })]
    #[case::no_checksum(|archive: &mut Vec<u8>| archive.truncate(archive.len() - 8))]
    #[case::half_a_checksum(|archive: &mut Vec<u8>| archive.truncate(archive.len() - 1))]
    #[case::a_further_member(|archive: &mut Vec<u8>| archive.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xff]))]
    #[case::a_further_header(|archive: &mut Vec<u8>| archive.extend(GZIP))]
    fn a_damaged_archive_is_refused_although_no_digest_is_known(
        #[case] damage: impl Fn(&mut Vec<u8>),
    ) {
        let mut whole = archive(&[("containerd-shim-a", EntryType::Regular, &program())]);
        damage(&mut whole);
        let result = unpack(whole.as_slice(), "a", None, &mut Vec::new());
        assert!(
            matches!(result, Err(Error::Unreadable { .. })),
            "{result:?}"
        );
    }

    /// A reader that returns one byte per read.
    struct OneByOne<'a>(&'a [u8]);

    impl Read for OneByOne<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            (&mut self.0).take(1).read(buffer)
        }
    }

    #[test]
    fn several_gzip_members_are_one_archive_and_trailing_bytes_are_ignored() {
        let whole = archive(&[("containerd-shim-a", EntryType::Regular, &program())]);
        let mut tar = Vec::new();
        GzipMembers::new(whole.as_slice())
            .read_to_end(&mut tar)
            .unwrap();
        let gzip = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let (head, tail) = tar.split_at(700);
        for garbage in [b"garbage".as_slice(), b"\x1f", b"\0\0\0\0", b""] {
            let two = [&gzip(head), &gzip(tail), garbage].concat();
            unpack(two.as_slice(), "a", None, &mut Vec::new()).unwrap();
            unpack(OneByOne(&two), "a", None, &mut Vec::new()).unwrap();
        }
    }

    #[test]
    fn an_archive_without_the_binary_is_refused_with_its_list_of_members() {
        let archive = archive(&[("README", EntryType::Regular, b"hello")]);
        let error = unpack(archive.as_slice(), "spin", None, &mut Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the archive contains no containerd-shim-spin (it contains README)")
        );
    }

    #[rstest]
    #[case::page(b"<html>")]
    #[case::script(b"#!/bin/sh\n")]
    #[case::nothing(b"")]
    fn an_artifact_of_an_unknown_kind_is_refused(#[case] artifact: &[u8]) {
        let result = unpack(artifact, "a", None, &mut Vec::new());
        assert!(matches!(result, Err(Error::Unknown)), "{result:?}");
    }

    #[test]
    fn bytes_other_than_an_archive_or_a_program_are_refused() {
        let program = program();
        let whole = archive(&[("containerd-shim-a", EntryType::Regular, &program)]);
        let mut other_cpu = program.clone();
        other_cpu[18] = 8;
        for artifact in [
            &whole[..whole.len() / 2],
            &other_cpu,
            &archive(&[("containerd-shim-a", EntryType::Regular, b"#!/bin/sh\n")]),
        ] {
            assert!(unpack(artifact, "a", None, &mut Vec::new()).is_err());
        }
    }
}
