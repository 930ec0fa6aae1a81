//! The shared libraries of a program, as the program's own loader finds them. The loader does not start the program.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use crate::installer::host::{HostRoot, exec};

/// The time limit of the loader, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Libraries of one program, at most.
const MAX_LIBRARIES: usize = 128;

/// Bytes of a loader's path, at most (`PATH_MAX`).
const MAX_PATH: u64 = 4096;

/// The loader of the program at `path` and its libraries; empty for a static program, for one that another user than root can change, and
/// where the loader gives no answer. A program that lacks a library then says so itself.
pub(super) async fn libraries(host: &HostRoot, path: &str) -> Vec<String> {
    // The program names its loader, which runs as root.
    if host.open_program(path).is_err() {
        return Vec::new();
    }
    let Some(loader) = host
        .open_file(path)
        .ok()
        .flatten()
        .and_then(|file| loader_of(&file))
    else {
        return Vec::new();
    };
    // Both glibc's loader and musl's list the libraries so.
    let listed = exec::run(host, &loader, &["--list", path], LIMIT).await;
    let mut libraries = listed.map_or_else(|_| Vec::new(), |text| parse_list(&text));
    libraries.push(loader);
    libraries
}

/// The paths in the loader's list, whose lines are `NAME => PATH (ADDRESS)` and `PATH (ADDRESS)`.
fn parse_list(text: &str) -> Vec<String> {
    let paths = text.lines().filter_map(|line| {
        let line = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = line.trim().split(" (").next()?;
        path.starts_with('/').then(|| path.to_owned())
    });
    paths.take(MAX_LIBRARIES).collect()
}

/// The path of the loader in a 64-bit ELF file (System V ABI, *Program Header*); `None` for a static program.
fn loader_of(file: &File) -> Option<String> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let of_this_machine = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !header.starts_with(b"\x7fELF\x02") || header[5] != of_this_machine {
        return None;
    }
    let table = u64_at(&header, 32)?;
    let (size, count) = (u16_at(&header, 54)?, u16_at(&header, 56)?);
    (0..count).find_map(|at| {
        let mut entry = [0; 56];
        let offset = table.checked_add(u64::from(at) * u64::from(size))?;
        file.read_exact_at(&mut entry, offset).ok()?;
        // PT_INTERP
        if entry[..4] != 3_u32.to_ne_bytes() {
            return None;
        }
        let length = u64_at(&entry, 32).filter(|length| *length <= MAX_PATH)?;
        let mut path = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut path, u64_at(&entry, 8)?).ok()?;
        let path = path.split(|byte| *byte == 0).next()?;
        let path = std::str::from_utf8(path).ok()?;
        path.starts_with('/').then(|| path.to_owned())
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_paths_of_both_loaders_lists_are_libraries() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \tlibgone.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
            \tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
            "/lib/ld-musl-x86_64.so.1",
        ];
        assert_eq!(parse_list(text), expected);
    }

    #[tokio::test]
    async fn the_libraries_of_a_program_of_this_machine_exist() {
        let host = HostRoot::open(Path::new("/")).unwrap();
        let found = libraries(&host, "/bin/sh").await;
        assert!(found.iter().any(|path| path.contains("ld")), "{found:?}");
        assert!(
            found.iter().all(|path| Path::new(path).exists()),
            "{found:?}"
        );
    }

    /// The loader that such a program names would run as root.
    #[tokio::test]
    async fn a_program_that_another_user_can_change_chooses_no_loader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        std::fs::copy("/bin/sh", &path).unwrap();
        let loader = loader_of(&File::open(&path).unwrap()).unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        // The loader is not on this host, so it lists nothing.
        for (mode, expected) in [(0o755, vec![loader]), (0o757, vec![])] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(libraries(&host, "/program").await, expected);
        }
    }

    #[test]
    fn a_file_that_is_no_program_has_no_loader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut program = std::fs::read("/bin/sh").unwrap();
        for bytes in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF\x02\x01", &program[..64]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(loader_of(&File::open(&path).unwrap()), None);
        }
        // The table of program headers lies beyond every file.
        program[32..40].fill(0xff);
        std::fs::write(&path, &program).unwrap();
        assert_eq!(loader_of(&File::open(&path).unwrap()), None);
    }
}
