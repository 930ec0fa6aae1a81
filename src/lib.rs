//! Farrier fits container runtimes to Kubernetes nodes.
//!
//! [`controller`] reads and writes objects of the API server. [`installer`] changes one host. Only [`handoff`] connects the two: it has the
//! desired set of a node, and the node's report. [`containerd_config`] edits configuration text. [`api`] has the Shim object, and [`names`]
//! has every label and annotation. `main` parses the command line ([`cli`]), sets up [`telemetry`] and calls the subcommand.
//! `tests/architecture.rs` checks the imports against the map in CONTRIBUTING.md.

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
