//! Archives as releases have them, and as no release should: tar in gzip, the same bytes from the same members. No files, no network.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// Offset of `e_machine` in an ELF header (System V ABI, chapter 4).
const ELF_MACHINE: usize = 18;
/// `EM_AARCH64`.
const AARCH64: u16 = 183;

/// One member of an archive. Names are taken as they are, hostile ones too.
#[derive(Clone, Copy)]
pub(super) enum Member<'a> {
    /// A file that nobody executes.
    File(&'a str, &'a [u8]),
    /// An executable file.
    Program(&'a str, &'a [u8]),
    /// A symbolic link and what it points to.
    Symlink(&'a str, &'a str),
}

/// A `.tar.gz` of `members`, without times, owners or anything else that differs between two runs.
pub(super) fn tar_gz(members: &[Member]) -> Result<Vec<u8>> {
    let gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::fast());
    let mut archive = Builder::new(gzip);
    for member in members {
        let (name, kind, mode, data) = match *member {
            Member::File(name, data) => (name, EntryType::Regular, 0o644, data),
            Member::Program(name, data) => (name, EntryType::Regular, 0o755, data),
            Member::Symlink(name, _) => (name, EntryType::Symlink, 0o777, &b""[..]),
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        if let Member::Symlink(_, target) = *member {
            header.set_link_name(target)?;
        }
        // Not `set_path`, which refuses the names that the tests are after.
        (&mut header.as_old_mut().name[..])
            .write_all(name.as_bytes())
            .with_context(|| format!("{name} is too long a name"))?;
        header.set_cksum();
        archive.append(&header, data)?;
    }
    Ok(archive.into_inner()?.finish()?)
}

/// `program`, an ELF file, with a header that claims to be for 64-bit ARM.
pub(super) fn for_other_cpu(program: &[u8]) -> Result<Vec<u8>> {
    let mut program = program.to_vec();
    program
        .get_mut(ELF_MACHINE..ELF_MACHINE + 2)
        .context("the shim is not an ELF file")?
        .copy_from_slice(&AARCH64.to_le_bytes());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn an_archive_has_the_given_member_names_and_is_reproducible() {
        let members = [Member::Program("a", b"1"), Member::File("../../evil", b"2")];
        let bytes = tar_gz(&members).unwrap();
        assert_eq!(bytes, tar_gz(&members).unwrap());
        let mut archive = tar::Archive::new(GzDecoder::new(&bytes[..]));
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path_bytes().into_owned())
            .collect();
        assert_eq!(names, [b"a".to_vec(), b"../../evil".to_vec()]);
    }
}
