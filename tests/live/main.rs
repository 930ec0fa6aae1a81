//! The whole program against a real containerd, without a cluster: whole changes, kills at random moments, and faults.
//!
//! `cargo xtask test live` names the daemons in `FARRIER_CONTAINERDS`.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(clippy::print_stdout, reason = "a failed test shows its seed")]

mod cases;
mod cgroups;
mod changes;
mod command_line;
#[path = "../support/containerd.rs"]
mod containerd;
mod contract;
mod crashes;
mod distributions;
mod doctor;
#[path = "../support/elf.rs"]
mod elf;
mod faults;
mod foreign_lines;
mod found;
#[path = "../support/legacy.rs"]
mod legacy;
mod node;
mod patience;
mod pending;
mod pods;
mod proof;
#[path = "../support/random.rs"]
mod random;
mod random_edits;
mod rehearsal;
mod removal;
mod sandbox;
mod signals;
mod takeover;
#[path = "../support/trace.rs"]
mod trace;
#[path = "../support/tree.rs"]
mod tree;
