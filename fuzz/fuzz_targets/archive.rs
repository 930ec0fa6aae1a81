//! Unpacks arbitrary bytes. Unpacking never panics, and a returned digest is that of the written file, which is an ELF program.

#![no_main]

use std::io::Write as _;

use farrier::handoff::Sha256Digest;
use farrier::installer::artifact::unpack::{Wanted, unpack};
use farrier::installer::host::cpu::Cpu;
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Option<&str>, &[u8])| {
    let (packed, binary, bytes) = input;
    let artifact = if packed {
        bytes.to_vec()
    } else {
        // The encoder adds valid checksums of gzip, which random bytes do not have.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        let Ok(()) = encoder.write_all(bytes) else {
            return;
        };
        let Ok(artifact) = encoder.finish() else {
            return;
        };
        artifact
    };
    let wanted = Wanted {
        shim: "a",
        binary,
        cpu: Cpu::own(),
    };
    let mut written = Vec::new();
    if let Ok(digest) = unpack(artifact.as_slice(), wanted, &mut written) {
        assert_eq!(digest, Sha256Digest::of(&written));
        assert!(written.starts_with(b"\x7fELF"));
    }
});
