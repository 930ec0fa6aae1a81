//! Extracts the shim's binary from an artifact, which is a `.tar.gz` or the ELF file itself. The artifact is not trusted: every size is
//! bounded, and an archive with a member outside of its directory is refused. No path of the archive is ever written to, and no link of it
//! is followed.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Seek as _, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use flate2::bufread::GzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType, GnuExtSparseHeader, Header, PaxExtensions};

use crate::handoff::{Sha256Digest, printable_up_to};
use crate::installer::host::cpu::{Cpu, ELF, ELF_HEADER};
use crate::installer::host::hint_for_writing;

/// Size limit in bytes for an unpacked archive: four times the largest known shim (wasmedge with its plugins, 130 MB).
const MAX_UNPACKED: u64 = 512 << 20;

/// Limit for the members of an archive. Archives of releases have fewer than ten.
const MAX_MEMBERS: usize = 10_000;

/// Size limit in bytes for a member that describes the next one. A path has at most 4,096 bytes (`PATH_MAX`); a pax header also contains
/// times and attributes.
const MAX_DESCRIPTION: u64 = 64 << 10;

/// The first two bytes of every gzip member (RFC 1952, 2.3).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Size in bytes of a header; the content of a member is padded to a multiple (POSIX.1-2001, *pax*, ustar Interchange Format).
const BLOCK: u64 = 512;

/// The help for an artifact that is no archive or binary of a shim.
pub(crate) const CHECK_LOCATION: &str =
    "check that the location names the .tar.gz archive or the binary of a shim";

/// Why an artifact contains no usable binary.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The artifact has no bytes.
    #[error("the artifact is empty")]
    Empty,
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
    /// A member's path is outside of the archive's directory, or the binary is a symlink, a hard link, a sparse file or a device.
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
    /// The binary is no ELF file.
    #[error("the binary is not a Linux program")]
    NoProgram,
    /// The binary is for another CPU than the host's.
    #[error("the binary is for the CPU {found}, and the host has the CPU {expected}")]
    WrongCpu {
        /// The CPU of the binary.
        found: Cpu,
        /// The CPU of the host.
        expected: Cpu,
    },
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
            Self::Empty
            | Self::Unknown
            | Self::NoProgram
            | Self::Unreadable { .. }
            | Self::TooLarge => Cow::Borrowed(CHECK_LOCATION),
            Self::UnsafePath {
                fault: IS_SYMLINK | IS_HARD_LINK,
                ..
            } => Cow::Borrowed(
                "name the file that the link leads to under fetchStrategy.binary, or as binary=FILE on the command line, or pack the archive with tar --dereference --hard-dereference",
            ),
            Self::UnsafePath { .. } => {
                Cow::Borrowed("take the archive from the shim's own release")
            }
            Self::Absent { .. } => Cow::Borrowed(
                "name the file under fetchStrategy.binary, or as binary=FILE on the command line",
            ),
            Self::Ambiguous { .. } => Cow::Borrowed(
                "name one of these files under fetchStrategy.binary, or as binary=FILE on the command line",
            ),
            Self::WrongCpu { .. } => Cow::Borrowed("name the artifact for the node's architecture"),
            Self::Write { source } => {
                Cow::Borrowed(hint_for_writing(source).unwrap_or("check that the disk is healthy"))
            }
        })
    }
}

/// Checks that an artifact with these first bytes is an archive or a program.
fn check_head(head: &[u8]) -> Result<(), Error> {
    if head.is_empty() {
        Err(Error::Empty)
    } else if head == ELF || head.starts_with(&GZIP) {
        Ok(())
    } else {
        Err(Error::Unknown)
    }
}

/// Checks that `artifact` begins as an archive or a program.
///
/// # Errors
/// [`Error::Empty`] or [`Error::Unknown`] if it does not, and [`Error::Unreadable`] if it can't be read.
pub fn check_kind(artifact: &mut impl Read) -> Result<(), Error> {
    check_head(&read_head(artifact)?)
}

fn read_head(artifact: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    artifact
        .take(ELF.len() as u64)
        .read_to_end(&mut head)
        .map_err(|source| Error::Unreadable { source })?;
    Ok(head)
}

/// The target of a binary, which begins anew when a later member of an archive replaces the binary.
pub trait Output: Write {
    /// Discards all bytes that were written.
    ///
    /// # Errors
    /// When the file can't be truncated.
    fn restart(&mut self) -> io::Result<()>;
}

impl Output for File {
    fn restart(&mut self) -> io::Result<()> {
        self.set_len(0)?;
        self.rewind()
    }
}

impl Output for io::Sink {
    fn restart(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Vec<u8> {
    fn restart(&mut self) -> io::Result<()> {
        self.clear();
        Ok(())
    }
}

/// The binary to take from an artifact.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The name of the shim.
    pub shim: &'a str,
    /// The file name of the binary in an archive. Without it, the binary is `containerd-shim-<shim>`, or the only file whose name differs
    /// from that only in a suffix `-vN`.
    pub binary: Option<&'a str>,
    /// The CPU of the host.
    pub cpu: Cpu,
}

/// Copies the binary from `artifact` to `out` and returns its SHA-256.
///
/// # Errors
/// When there is no binary or it is for another CPU, and when the archive is damaged, unsafe or too large. `out` may then contain a part of
/// the binary.
pub fn unpack(
    mut artifact: impl Read,
    wanted: Wanted<'_>,
    out: &mut impl Output,
) -> Result<Sha256Digest, Error> {
    let head = read_head(&mut artifact)?;
    check_head(&head)?;
    let whole = head.as_slice().chain(artifact);
    if head == ELF {
        return copy_program(whole, wanted.cpu, out);
    }
    unpack_archive(GzipMembers::new(BufReader::new(whole)), wanted, out)
}

/// The binary that was copied from an archive.
struct Taken {
    /// The components of its path.
    path: PathBuf,
    /// Its file name.
    name: String,
    digest: Sha256Digest,
}

fn unpack_archive(
    tar: impl Read,
    wanted: Wanted<'_>,
    out: &mut impl Output,
) -> Result<Sha256Digest, Error> {
    let unreadable = |source| Error::Unreadable { source };
    // One byte beyond the limit: an archive that reaches it is too large.
    let mut tar = tar.take(MAX_UNPACKED + 1);
    let mut taken: Option<Taken> = None;
    let mut unusable = None;
    let mut others = Vec::new();
    let (mut count, mut unpacked) = (0, 0_u64);
    let mut description = Description::default();
    while let Some((header, size)) = next_header(&mut tar)? {
        count += 1;
        unpacked = unpacked.saturating_add(size);
        if count > MAX_MEMBERS || unpacked > MAX_UNPACKED {
            return Err(Error::TooLarge);
        }
        let mut padded = (&mut tar).take(size.next_multiple_of(BLOCK));
        let mut content = (&mut padded).take(size);
        let kind = header.entry_type();
        if kind == EntryType::XGlobalHeader {
            // No file has its name: with GNU tar, a path in /tmp. Its records, such as the commit of `git archive`, are not used.
        } else if describes_next(kind) {
            description.add(&mut content, kind)?;
        } else {
            let Description { path, is_sparse } = std::mem::take(&mut description);
            let path = match path {
                Some(path) => path,
                None => header.path().map_err(unreadable)?.into_owned(),
            };
            let path = checked_path(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let fault = fault_of(kind, is_sparse);
            if !may_be_binary(&name, wanted) {
                if fault.is_none() && is_file(kind) && others.len() < MAX_NAMED {
                    others.push(shown(&name));
                }
            } else if let Some(fault) = fault {
                let unsafe_path = Error::UnsafePath {
                    member: shown(&path.to_string_lossy()),
                    fault,
                };
                // The member would replace the binary. Any other one is not needed if another file is the binary.
                if taken.as_ref().is_some_and(|taken| taken.path == path) {
                    return Err(unsafe_path);
                }
                unusable.get_or_insert(unsafe_path);
            } else if is_file(kind) && replaces(taken.as_ref(), &path, &name, wanted)? {
                out.restart().map_err(|source| Error::Write { source })?;
                taken = match copy_program(content, wanted.cpu, out) {
                    Ok(digest) => Some(Taken {
                        digest,
                        name: name.into_owned(),
                        path,
                    }),
                    // Another file may be the binary. Only this error says that the whole archive is for other nodes.
                    Err(error @ Error::WrongCpu { .. }) => {
                        unusable = Some(error);
                        None
                    }
                    Err(error @ Error::NoProgram) => {
                        unusable.get_or_insert(error);
                        None
                    }
                    Err(error) => return Err(error),
                };
            }
        }
        io::copy(&mut padded, &mut io::sink()).map_err(unreadable)?;
        if padded.limit() > 0 {
            return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    // gzip's checksum comes after the last byte. It is the only protection against damage if the request has no digest.
    io::copy(&mut tar, &mut io::sink()).map_err(unreadable)?;
    if tar.limit() == 0 {
        return Err(Error::TooLarge);
    }
    taken
        .map(|taken| taken.digest)
        .ok_or_else(|| unusable.unwrap_or_else(|| absent(wanted, &others)))
}

/// Other files of an archive that an error names, at most.
const MAX_NAMED: usize = 5;

fn absent(wanted: Wanted<'_>, others: &[String]) -> Error {
    let named = wanted.binary.map(str::to_owned);
    Error::Absent {
        binary: named.unwrap_or_else(|| format!("containerd-shim-{}", wanted.shim)),
        found: if others.is_empty() {
            "no files".to_owned()
        } else {
            others.join(", ")
        },
    }
}

/// Whether the file with this path and name is the binary, after `taken`.
///
/// # Errors
/// [`Error::Ambiguous`] if both may be the binary.
fn replaces(
    taken: Option<&Taken>,
    path: &Path,
    name: &str,
    wanted: Wanted<'_>,
) -> Result<bool, Error> {
    let Some(taken) = taken else {
        return Ok(true);
    };
    // A later member of the same path replaces the earlier one, as if tar(1) extracted both. A file of the same name in another directory is
    // ignored, as in a search path. With another name, the choice is ambiguous unless the first has the requested name.
    if taken.path == path {
        Ok(true)
    } else if taken.name == name || is_named(&taken.name, wanted) {
        Ok(false)
    } else {
        Err(Error::Ambiguous {
            one: shown(&taken.name),
            other: shown(name),
        })
    }
}

/// Reads the next header, and returns it with the size of the content in the archive; `None` at the end of the archive.
fn next_header(tar: &mut impl Read) -> Result<Option<(Header, u64)>, Error> {
    let unreadable = |source| Error::Unreadable { source };
    let (header, size) = {
        let mut archive = Archive::new(&mut *tar);
        // Raw: otherwise the crate reads names of any length into memory.
        let mut entries = archive.entries().map_err(unreadable)?.raw(true);
        match entries.next().transpose().map_err(unreadable)? {
            Some(entry) => (entry.header().clone(), entry.size()),
            None => return Ok(None),
        }
    };
    let kind = header.entry_type();
    // As GNU tar: a hard link has no content, whatever its size says.
    let size = if kind == EntryType::Link { 0 } else { size };
    let map_continues = header.as_gnu().is_some_and(tar::GnuHeader::is_extended);
    if kind == EntryType::GNUSparse && map_continues {
        // The rest of the map of a sparse file comes before its content (GNU tar, *Basic Tar Format*).
        let mut map = GnuExtSparseHeader::new();
        loop {
            tar.read_exact(map.as_mut_bytes()).map_err(unreadable)?;
            if !map.is_extended() {
                break;
            }
        }
    }
    Ok(Some((header, size)))
}

/// Whether a member only describes the next one.
fn describes_next(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink
    )
}

/// What members that describe the next one say about it.
#[derive(Default)]
struct Description {
    path: Option<PathBuf>,
    /// The content is a map and the parts of a sparse file (GNU tar, *PAX Format, Versions 0.0 to 1.0*).
    is_sparse: bool,
}

impl Description {
    /// Adds the content of such a member: GNU tar's `@LongLink`, or the records of a pax header (POSIX.1-2001, *pax*).
    fn add(&mut self, content: &mut impl Read, kind: EntryType) -> Result<(), Error> {
        let mut bytes = Vec::new();
        content
            .take(MAX_DESCRIPTION + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Unreadable { source })?;
        if bytes.len() as u64 > MAX_DESCRIPTION {
            return Err(Error::TooLarge);
        }
        match kind {
            EntryType::GNULongName => {
                let end = bytes.iter().position(|byte| *byte == 0);
                bytes.truncate(end.unwrap_or(bytes.len()));
                self.path = Some(OsString::from_vec(bytes).into());
            }
            EntryType::XHeader => self.add_records(&bytes)?,
            // The target of a link.
            _ => {}
        }
        Ok(())
    }

    fn add_records(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // Some attributes have arbitrary bytes as values, which the crate can't split. These are skipped; path and size are never among them.
        for extension in PaxExtensions::new(bytes).flatten() {
            match extension.key_bytes() {
                b"path" => {
                    self.path = Some(OsString::from_vec(extension.value_bytes().to_vec()).into());
                }
                // A reader that ignores this size finds other members than a reader that uses it.
                b"size" => {
                    return Err(Error::UnsafePath {
                        member: "(pax header)".to_owned(),
                        fault: "overrides the size of the next member",
                    });
                }
                key if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The path of a member without `.` components. The paths of all members are checked, also those after the binary.
fn checked_path(path: &Path) -> Result<PathBuf, Error> {
    let unsafe_path = |fault| {
        Err(Error::UnsafePath {
            member: shown(&path.to_string_lossy()),
            fault,
        })
    };
    let mut checked = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => checked.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                return unsafe_path("has a path outside of the archive's directory");
            }
            Component::RootDir | Component::Prefix(_) => {
                return unsafe_path("has an absolute path");
            }
        }
    }
    Ok(checked)
}

fn is_file(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular | EntryType::Continuous)
}

const IS_HARD_LINK: &str = "is a hard link";
const IS_SYMLINK: &str = "is a symlink";

/// Why a member can't be the binary, as the rest of a sentence. Files can, and a directory is no candidate.
fn fault_of(kind: EntryType, is_sparse: bool) -> Option<&'static str> {
    match kind {
        EntryType::Regular | EntryType::Continuous if !is_sparse => None,
        EntryType::Directory => None,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            Some("is a sparse file")
        }
        EntryType::Link => Some(IS_HARD_LINK),
        EntryType::Symlink => Some(IS_SYMLINK),
        _ => Some("is neither a regular file nor a directory"),
    }
}

/// Whether a file has exactly the requested name.
fn is_named(name: &str, wanted: Wanted<'_>) -> bool {
    match wanted.binary {
        Some(binary) => name == binary,
        None => name.strip_prefix("containerd-shim-") == Some(wanted.shim),
    }
}

fn may_be_binary(name: &str, wanted: Wanted<'_>) -> bool {
    let is_alike = |rest| base(rest) == base(wanted.shim);
    is_named(name, wanted)
        || wanted.binary.is_none() && name.strip_prefix("containerd-shim-").is_some_and(is_alike)
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
/// When the program is not an ELF file for `cpu`, is too large, or can't be read or written.
pub fn copy_program(
    program: impl Read,
    cpu: Cpu,
    out: &mut impl Write,
) -> Result<Sha256Digest, Error> {
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
    match Cpu::of_program(&buffer[..filled]) {
        None => return Err(Error::NoProgram),
        Some(found) if found != cpu => {
            return Err(Error::WrongCpu {
                found,
                expected: cpu,
            });
        }
        Some(_) => {}
    }
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

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use rstest::rstest;
    use tar::{Builder, Header};

    use super::*;

    fn wanted(shim: &str) -> Wanted<'_> {
        Wanted {
            shim,
            binary: None,
            cpu: Cpu::own(),
        }
    }

    /// A program for this CPU: the first bytes of the test binary.
    fn program() -> Vec<u8> {
        let mut bytes = Vec::new();
        let file = File::open("/proc/self/exe").unwrap();
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
        let result = unpack(archive(&members).as_slice(), wanted(shim), &mut out);
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
        let digest = unpack(archive.as_slice(), wanted(shim), &mut out).unwrap();
        assert_eq!(digest, Sha256Digest::of(&program));
        assert_eq!(out, program);
    }

    #[test]
    fn a_program_without_an_archive_is_an_artifact() {
        let mut out = Vec::new();
        unpack(program().as_slice(), wanted("x"), &mut out).unwrap();
        assert_eq!(out, program());
    }

    #[rstest]
    #[case::parent("../containerd-shim-a", EntryType::Regular)]
    #[case::inner("a/../../containerd-shim-a", EntryType::Regular)]
    #[case::absolute("/usr/bin/containerd", EntryType::Regular)]
    #[case::of_a_link("../README", EntryType::Symlink)]
    #[case::symlink("containerd-shim-a", EntryType::Symlink)]
    #[case::symlink_by_another_path("./containerd-shim-a", EntryType::Symlink)]
    #[case::hard_link("containerd-shim-a", EntryType::Link)]
    #[case::device("containerd-shim-a", EntryType::Block)]
    #[case::fifo("containerd-shim-a", EntryType::Fifo)]
    #[case::sparse("containerd-shim-a", EntryType::GNUSparse)]
    fn an_archive_with_a_path_outside_its_directory_is_refused(
        #[case] member: &str,
        #[case] kind: EntryType,
    ) {
        let program = program();
        let archive = archive(&[
            ("containerd-shim-a", EntryType::Regular, &program),
            (member, kind, b""),
        ]);
        let result = unpack(archive.as_slice(), wanted("a"), &mut Vec::new());
        assert!(
            matches!(result, Err(Error::UnsafePath { .. })),
            "{result:?}"
        );
    }

    #[rstest]
    #[case::symlink("README", EntryType::Symlink)]
    #[case::hard_link("other", EntryType::Link)]
    #[case::device("other", EntryType::Block)]
    #[case::fifo("other", EntryType::Fifo)]
    #[case::sparse("other", EntryType::GNUSparse)]
    #[case::of_an_alternative_name("containerd-shim-a-v1", EntryType::Symlink)]
    fn a_special_member_that_is_not_the_binary_is_ignored(
        #[case] member: &str,
        #[case] kind: EntryType,
        #[values(false, true)] first: bool,
    ) {
        let program = program();
        let mut members = [
            ("containerd-shim-a", EntryType::Regular, &*program),
            (member, kind, b""),
        ];
        if first {
            members.reverse();
        }
        let mut out = Vec::new();
        unpack(archive(&members).as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, program);
    }

    #[rstest]
    #[case("containerd-shim-a", EntryType::Symlink, "is a symlink", "binary=FILE")]
    #[case(
        "containerd-shim-a-v1",
        EntryType::Link,
        "is a hard link",
        "--hard-dereference"
    )]
    #[case(
        "bin/containerd-shim-a",
        EntryType::GNUSparse,
        "is a sparse file",
        "own release"
    )]
    #[case(
        "containerd-shim-a",
        EntryType::Char,
        "is neither a regular file",
        "own release"
    )]
    fn a_special_member_is_no_binary(
        #[case] member: &str,
        #[case] kind: EntryType,
        #[case] expected: &str,
        #[case] help: &str,
    ) {
        let archive = archive(&[(member, kind, b"")]);
        let error = unpack(archive.as_slice(), wanted("a"), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.help().unwrap().contains(help), "{error:?}");
    }

    #[rstest]
    #[case::of_two(&[("containerd-shim-a", 1), ("containerd-shim-a", 2)], 2)]
    #[case::a_shorter_one(&[("containerd-shim-a", 0), ("containerd-shim-a", 2)], 2)]
    #[case::by_another_path(&[("./bin/containerd-shim-a", 1), ("bin/./containerd-shim-a", 2)], 2)]
    #[case::in_another_directory(&[("a/containerd-shim-a", 1), ("b/containerd-shim-a", 2)], 1)]
    #[case::behind_another_directory(
        &[("a/containerd-shim-a", 1), ("b/containerd-shim-a", 2), ("a/containerd-shim-a", 3)],
        3
    )]
    fn the_last_member_of_a_path_counts(#[case] members: &[(&str, u8)], #[case] expected: u8) {
        let of_seed = |seed: u8| {
            let mut bytes = program();
            bytes.extend(vec![seed; if seed == 0 { 1_000 } else { 1 }]);
            bytes
        };
        let programs: Vec<_> = members.iter().map(|(_, seed)| of_seed(*seed)).collect();
        let members = members.iter().zip(&programs);
        let members: Vec<_> = members
            .map(|((path, _), bytes)| (*path, EntryType::Regular, bytes.as_slice()))
            .collect();
        let archive = archive(&members);
        let mut file = tempfile::tempfile().unwrap();
        let mut out = Vec::new();
        let digest = unpack(archive.as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, of_seed(expected));
        assert_eq!(digest, Sha256Digest::of(&out));
        unpack(archive.as_slice(), wanted("a"), &mut file).unwrap();
        let mut written = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut written).unwrap();
        assert_eq!(written, out);
    }

    #[rstest]
    #[case::for_another_cpu(&[("arm64/containerd-shim-a", Some(8)), ("amd64/containerd-shim-a", None)], true)]
    #[case::of_another_name(&[("containerd-shim-a", Some(8)), ("containerd-shim-a-v1", None)], true)]
    #[case::behind_the_binary(&[("amd64/containerd-shim-a", None), ("arm64/containerd-shim-a", Some(8))], true)]
    #[case::that_replaces_the_binary(
        &[("a/containerd-shim-a", None), ("a/containerd-shim-a", Some(8)), ("b/containerd-shim-a", None)],
        true
    )]
    #[case::alone(&[("share/completions/containerd-shim-a", None), ("arm64/containerd-shim-a", Some(8))], false)]
    fn a_file_that_can_not_run_on_the_host_is_not_the_binary_if_another_file_is(
        #[case] members: &[(&str, Option<u8>)],
        #[case] is_found: bool,
    ) {
        let programs: Vec<Vec<u8>> = members
            .iter()
            .map(|(path, machine)| {
                let mut program = program();
                if path.starts_with("share/") {
                    return b"#compdef containerd-shim-a\n".to_vec();
                }
                program[18] = machine.unwrap_or(program[18]);
                program
            })
            .collect();
        let members: Vec<_> = members
            .iter()
            .zip(&programs)
            .map(|((path, _), bytes)| (*path, EntryType::Regular, bytes.as_slice()))
            .collect();
        let mut out = Vec::new();
        let result = unpack(archive(&members).as_slice(), wanted("a"), &mut out);
        match result {
            Ok(digest) => {
                assert!(is_found && out == program());
                assert_eq!(digest, Sha256Digest::of(&out));
            }
            // Also behind a text.
            Err(error) => assert!(!is_found && matches!(error, Error::WrongCpu { .. })),
        }
    }

    #[rstest]
    #[case::of_gnu_tar("/tmp/GlobalHead.1")]
    #[case::of_git("pax_global_header")]
    #[case::with_the_name_of_the_binary("containerd-shim-a")]
    fn a_global_header_is_skipped(#[case] name: &str) {
        let program = program();
        let archive = archive(&[
            (name, EntryType::XGlobalHeader, &pax("comment", "v1")),
            ("containerd-shim-a", EntryType::Regular, &program),
        ]);
        let mut out = Vec::new();
        unpack(archive.as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, program);
    }

    #[test]
    fn a_text_of_the_name_before_the_binary_is_skipped() {
        let program = program();
        let archive = archive(&[
            (
                "share/completions/containerd-shim-a",
                EntryType::Regular,
                b"#compdef\n",
            ),
            ("bin/containerd-shim-a", EntryType::Regular, &program),
        ]);
        let mut out = Vec::new();
        unpack(archive.as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, program);
    }

    #[test]
    fn the_map_of_a_sparse_member_is_skipped() {
        let mut header = Header::new_gnu();
        header.set_path("data").unwrap();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(5);
        header.as_gnu_mut().unwrap().isextended = [1];
        header.set_cksum();
        let mut more = GnuExtSparseHeader::new();
        more.isextended = [1];
        let last = GnuExtSparseHeader::new();
        let mut tar = [
            header.as_bytes().as_slice(),
            more.as_bytes(),
            last.as_bytes(),
        ]
        .concat();
        tar.extend(b"bytes");
        tar.resize(tar.len().next_multiple_of(512), 0);
        let mut rest = Vec::new();
        let program = program();
        let whole = archive(&[("containerd-shim-a", EntryType::Regular, &program)]);
        GzipMembers::new(whole.as_slice())
            .read_to_end(&mut rest)
            .unwrap();
        tar.extend(rest);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&tar).unwrap();
        let packed = packed.finish().unwrap();
        let mut out = Vec::new();
        unpack(packed.as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, program);
    }

    #[test]
    fn a_hard_link_with_a_size_has_no_content() {
        let program = program();
        let mut builder = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        let mut header = Header::new_gnu();
        header.set_path("other").unwrap();
        header.set_entry_type(EntryType::Link);
        header.set_link_name("target").unwrap();
        header.set_size(5_000);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let mut header = Header::new_gnu();
        header.set_path("containerd-shim-a").unwrap();
        header.set_size(program.len() as u64);
        header.set_cksum();
        builder.append(&header, program.as_slice()).unwrap();
        let archive = builder.into_inner().unwrap().finish().unwrap();
        let mut out = Vec::new();
        unpack(archive.as_slice(), wanted("a"), &mut out).unwrap();
        assert_eq!(out, program);
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
        unpack(archive.as_slice(), wanted("a"), &mut Vec::new())
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
        // The content of the member would be a map and the parts of the file.
        let sparse = [
            pax("path", "containerd-shim-a"),
            pax("GNU.sparse.major", "1"),
        ]
        .concat();
        let error = described(EntryType::XHeader, &sparse).unwrap_err();
        assert!(error.to_string().ends_with("is a sparse file"), "{error}");
    }

    #[test]
    fn an_archive_beyond_the_size_limit_is_refused() {
        let crowd = vec![("a", EntryType::Directory, b"".as_slice()); MAX_MEMBERS + 1];
        let result = unpack(archive(&crowd).as_slice(), wanted("a"), &mut Vec::new());
        assert!(matches!(result, Err(Error::TooLarge)), "{result:?}");

        let mut header = Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(MAX_UNPACKED + 1);
        header.set_cksum();
        let mut claim = GzEncoder::new(Vec::new(), Compression::fast());
        claim.write_all(header.as_bytes()).unwrap();
        let claim = claim.finish().unwrap();
        let result = unpack(claim.as_slice(), wanted("a"), &mut Vec::new());
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
        let result = unpack(cut.as_slice(), wanted("a"), &mut Vec::new());
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
        let result = unpack(whole.as_slice(), wanted("a"), &mut Vec::new());
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
            unpack(two.as_slice(), wanted("a"), &mut Vec::new()).unwrap();
            unpack(OneByOne(&two), wanted("a"), &mut Vec::new()).unwrap();
        }
    }

    #[test]
    fn an_archive_without_the_binary_is_refused_with_its_list_of_members() {
        let archive = archive(&[("README", EntryType::Regular, b"hello")]);
        let error = unpack(archive.as_slice(), wanted("spin"), &mut Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the archive contains no containerd-shim-spin (it contains README)")
        );
    }

    #[rstest]
    #[case::page(
        b"<html>",
        "the artifact is neither a .tar.gz archive nor an ELF program"
    )]
    #[case::script(
        b"#!/bin/sh\n",
        "the artifact is neither a .tar.gz archive nor an ELF program"
    )]
    #[case::nothing(b"", "the artifact is empty")]
    fn an_artifact_of_an_unknown_kind_is_refused(#[case] artifact: &[u8], #[case] expected: &str) {
        let error = unpack(artifact, wanted("a"), &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_program_for_another_cpu_is_refused_with_both_names() {
        let other = match std::env::consts::ARCH {
            "x86_64" => (183, "aarch64"),
            _ => (62, "x86_64"),
        };
        let mut program = program();
        program[18] = other.0;
        let error = unpack(program.as_slice(), wanted("a"), &mut Vec::new()).unwrap_err();
        let own = Cpu::own();
        assert_eq!(
            error.to_string(),
            format!(
                "the binary is for the CPU {}, and the host has the CPU {own}",
                other.1
            )
        );
        // A host of that CPU takes it.
        let cpu = Cpu::of_program(&program).unwrap();
        let wanted = Wanted { cpu, ..wanted("a") };
        unpack(program.as_slice(), wanted, &mut Vec::new()).unwrap();
    }

    #[test]
    fn bytes_other_than_an_archive_or_a_program_are_refused() {
        let program = program();
        let whole = archive(&[("containerd-shim-a", EntryType::Regular, &program)]);
        let mut other_cpu = program.clone();
        other_cpu[18] = 8;
        let script = archive(&[("containerd-shim-a", EntryType::Regular, b"#!/bin/sh\n")]);
        let refusal = |artifact: &[u8]| unpack(artifact, wanted("a"), &mut Vec::new()).unwrap_err();
        refusal(&whole[..whole.len() / 2]);
        assert!(matches!(refusal(&script), Error::NoProgram));
        // Only a program proves that it is for another CPU.
        assert!(matches!(refusal(&other_cpu), Error::WrongCpu { .. }));
    }
}
