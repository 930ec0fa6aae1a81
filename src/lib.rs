//! Farrier fits container runtimes to Kubernetes nodes.
//!
//! A map of the house. Three rooms: [`controller`] talks to the API server, [`installer`] changes one host,
//! [`containerd_config`] turns configuration text into configuration text. The first two meet only in [`handoff`]: a desired set
//! goes to the node, a report comes back. [`api`] holds the Shim object, [`names`] every label and annotation. `main` parses
//! ([`cli`]), sets up [`telemetry`] and dispatches. `tests/architecture.rs` holds imports to what DESIGN in CONTRIBUTING.md says.

pub mod api;
pub mod cli;
pub mod containerd_config;
pub mod controller;
pub mod dns;
pub mod handoff;
pub mod installer;
pub mod metrics;
pub mod names;
pub mod server;
pub mod telemetry;
