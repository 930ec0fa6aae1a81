//! Bytes from outside: fetching, the hand-off directory, unpacking.

pub mod error;
pub mod fetch;
pub mod handoff_dir;
pub mod unpack;
