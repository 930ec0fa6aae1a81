//! Facts about the running containerd, its kubelet and its service manager, and the restart of containerd.

pub mod command_line;
pub mod config_files;
pub mod cri;
pub mod daemon;
pub(crate) mod embedded;
pub mod kubelet;
pub(crate) mod openrc;
pub mod orphans;
pub mod patience;
pub mod process;
pub mod rehearsal;
pub mod restart;
pub mod sandbox;
pub mod service;
pub(crate) mod sockets;
pub mod systemd;
pub mod systemd_unit;
pub mod tasks;
