//! Whole installs and removals on host trees in temporary folders. They are offline: nothing runs on such a host.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod adoption;
#[cfg(target_arch = "x86_64")]
mod crashes;
mod distributions;
mod doctor;
mod dry_run;
#[path = "../support/elf.rs"]
mod elf;
mod fetch;
mod hostile;
mod install;
mod moved;
#[cfg(target_arch = "x86_64")]
mod names;
mod present;
#[cfg(target_arch = "x86_64")]
mod rewritten;
#[cfg(target_arch = "x86_64")]
mod signals;
mod support;
#[cfg(target_arch = "x86_64")]
#[path = "../support/trace.rs"]
mod trace;
