//! `cargo xtask`: builds, demonstrates and tests Farrier on a real cluster on this machine. Parses and dispatches, no more.

mod archive;
mod cache;
mod cluster;
mod interrupt;
mod process;
mod progress;
mod tools;

fn main() {}
