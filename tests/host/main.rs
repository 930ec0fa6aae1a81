//! Whole installs and removals on host trees in temporary directories, offline: no program runs on such a host.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod config_paths;
#[cfg(target_arch = "x86_64")]
mod crashes;
mod distributions;
mod doctor;
mod dry_run;
#[path = "../support/elf.rs"]
mod elf;
mod expected_binaries;
mod fetch;
#[cfg(target_arch = "x86_64")]
mod foreign_edits;
mod hostile;
mod install;
mod kept;
#[path = "../support/legacy.rs"]
mod legacy;
#[cfg(target_arch = "x86_64")]
mod names;
mod obstacles;
#[path = "../support/random.rs"]
mod random;
#[cfg(target_arch = "x86_64")]
mod signals;
mod support;
mod takeover;
#[cfg(target_arch = "x86_64")]
#[path = "../support/trace.rs"]
mod trace;
#[path = "../support/tree.rs"]
mod tree;
