//! Parse, set up telemetry, dispatch, map to an exit status.

fn main() {}
