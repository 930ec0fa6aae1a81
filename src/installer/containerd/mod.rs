//! The running containerd, its kubelet, and the service manager that starts it.

pub mod config_files;
pub mod cri;
pub mod daemon;
pub mod kubelet;
pub mod process;
pub mod restart;
pub mod service;
pub mod systemd;
pub mod systemd_unit;
