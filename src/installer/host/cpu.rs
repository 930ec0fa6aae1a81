//! The CPU that a program is for, by its ELF header. Pure: reads no file.

use std::fmt;

/// The first bytes of every ELF file (System V ABI, *ELF Identification*).
pub(crate) const ELF: [u8; 4] = *b"\x7fELF";

/// Length in bytes of an ELF header up to the end of `e_machine`, the field for the CPU (System V ABI, *ELF Header*).
pub(crate) const ELF_HEADER: usize = 20;

/// `EI_CLASS` and `EI_DATA` of a program with 64 bits that is little-endian.
const WIDE: [u8; 2] = [2, 1];

/// The CPUs with a name, by `EI_CLASS` and `EI_DATA`, and `e_machine` (supplements of the System V ABI).
const NAMES: [([u8; 2], u16, &str); 8] = [
    ([1, 1], 3, "i386"),
    ([1, 1], 40, "arm"),
    ([2, 2], 22, "s390x"),
    (WIDE, 21, "ppc64le"),
    (WIDE, 62, "x86_64"),
    (WIDE, 183, "aarch64"),
    (WIDE, 243, "riscv64"),
    (WIDE, 258, "loongarch64"),
];

/// The CPU of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// `EI_CLASS` (32 or 64 bits) and `EI_DATA` (the byte order).
    form: [u8; 2],
    /// `e_machine`.
    machine: u16,
}

impl Cpu {
    /// The CPU that this process is built for.
    #[must_use]
    pub fn own() -> Self {
        let mut names = NAMES.into_iter();
        let own = names.find(|(_, _, name)| *name == std::env::consts::ARCH);
        // EM_NONE: no program is for this CPU.
        let (form, machine, _) = own.unwrap_or((WIDE, 0, ""));
        Self { form, machine }
    }

    /// The CPU of the program that begins with `head`; `None` if it is no ELF file.
    #[must_use]
    pub fn of_program(head: &[u8]) -> Option<Self> {
        let head: &[u8; ELF_HEADER] = head.first_chunk()?;
        let form = [head[4], head[5]];
        let bytes = [head[18], head[19]];
        // ELFDATA2MSB is 2.
        let machine = match form[1] {
            2 => u16::from_be_bytes(bytes),
            _ => u16::from_le_bytes(bytes),
        };
        head.starts_with(&ELF).then_some(Self { form, machine })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, machine } = self;
        let mut names = NAMES.iter();
        match names.find(|(known, number, _)| known == form && number == machine) {
            Some((_, _, name)) => formatter.write_str(name),
            None => write!(
                formatter,
                "ELF machine {machine} (class {}, data {})",
                form[0], form[1]
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn head(form: [u8; 2], machine: [u8; 2]) -> Vec<u8> {
        let mut head = [&ELF[..], &form, &[0; 12]].concat();
        head.extend(machine);
        head
    }

    #[rstest]
    #[case::amd64(head([2, 1], [62, 0]), Some("x86_64"))]
    #[case::arm64(head([2, 1], [183, 0]), Some("aarch64"))]
    #[case::x32(head([1, 1], [62, 0]), Some("ELF machine 62 (class 1, data 1)"))]
    #[case::s390x(head([2, 2], [0, 22]), Some("s390x"))]
    #[case::armv7(head([1, 1], [40, 0]), Some("arm"))]
    #[case::i386(head([1, 1], [3, 0]), Some("i386"))]
    #[case::ppc64_big_endian(head([2, 2], [0, 21]), Some("ELF machine 21 (class 2, data 2)"))]
    #[case::cut(head([2, 1], [62, 0])[..19].to_vec(), None)]
    #[case::script(b"#!/bin/sh\nexec /usr/bin/containerd\n".to_vec(), None)]
    fn the_cpu_of_a_program_is_in_its_header(
        #[case] head: Vec<u8>,
        #[case] expected: Option<&str>,
    ) {
        let cpu = Cpu::of_program(&head).map(|cpu| cpu.to_string());
        assert_eq!(cpu.as_deref(), expected);
    }

    #[test]
    fn this_process_has_the_cpu_of_its_own_program() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(Cpu::of_program(&program), Some(Cpu::own()));
    }
}
