//! End to end, on a real cluster: containerd 1.6, 1.7, 2.1 and 2.4 under systemd, a real API server and kubelets, a real shim.
//!
//! `cargo xtask test cluster` brings the cluster up and runs these one at a time. Each test restores its nodes. The
//! environment describes the cluster to them: `FARRIER_CLUSTER` (the cluster's description), `FARRIER_ARTIFACTS` (the archives that nodes
//! can fetch), `FARRIER_IMAGE` and `FARRIER_HELLO_IMAGE` (images that the nodes have), `FARRIER_BINARY` (the static program, for runs on a
//! node itself).
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

mod administrator;
mod chaos;
mod controller;
mod crd;
mod direct;
mod faults;
mod fleet;
mod host;
mod host_faults;
mod host_kill;
mod k3s;
mod migration;
mod pods;
mod policies;
mod provision;
#[path = "../support/random.rs"]
mod random;
mod stage;
mod support;
mod uninstall;
