//! Downloads artifacts, unpacks them and hands them over to the installer. Touches no file of the host.

pub mod error;
pub mod fetch;
pub mod handoff_dir;
pub mod link_local;
mod progress;
pub mod unpack;
