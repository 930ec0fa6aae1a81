//! Programs for this CPU that need nothing of the host (System V ABI, ELF-64; elf(5)). Helpers of the suites, no tests.

/// The address of the loaded program, and the size of the headers before its code.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// The least size, so that any two programs can differ by their last byte.
const SIZE: usize = 200;

/// The `e_machine` of this CPU: `EM_X86_64` or `EM_AARCH64`.
const MACHINE: u8 = if cfg!(target_arch = "x86_64") {
    62
} else {
    183
};

/// An executable of `code`; `seed` is its last byte.
pub fn executable(code: &[u8], seed: u8) -> Vec<u8> {
    let headers = usize::try_from(HEADERS).unwrap();
    let length = SIZE.max(headers + code.len() + 1);
    let size = u64::try_from(length).unwrap();
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, MACHINE, 0, 1, 0, 0, 0]);
    bytes.extend((BASE + HEADERS).to_le_bytes());
    // Where the program headers are, and no section headers.
    bytes.extend(64u64.to_le_bytes());
    bytes.extend([0; 12]);
    for size in [64u16, 56, 1, 0, 0, 0] {
        bytes.extend(size.to_le_bytes());
    }
    // One loadable segment, readable and executable: the whole file.
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, size, size, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    bytes.resize(length - 1, 0);
    bytes.push(seed);
    bytes
}

/// The answer of a stand-in for a shim to `-v`.
pub const VERSION: &str = "containerd-shim:\n Version: 1\n Revision: 2\n";

/// The code for `x86_64` of a program that prints `text` and ends with `status`. `file` is 1 for its output and 2 for its errors.
pub fn writing(file: u8, text: &str, status: u8) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    // mov eax, 1 (write); mov edi, FILE; lea rsi, [rip + 19]; mov edx, LENGTH; syscall
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, file, 0, 0, 0];
    code.extend([0x48, 0x8d, 0x35, 19, 0, 0, 0, 0xba]);
    code.extend(length);
    code.extend([0x0f, 0x05]);
    // mov eax, 60 (exit); mov edi, STATUS; syscall
    code.extend([0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05]);
    code.extend(text.bytes());
    code
}
