//! x
pub mod cri;
pub mod exec;
pub mod host;
pub mod systemd;
