//! The real containerd programs of a run, and the network that they require. A helper of the suites, no tests.

use std::path::PathBuf;
use std::process::Command;

/// The programs under test.
pub fn programs() -> Vec<PathBuf> {
    let programs = std::env::var_os("FARRIER_CONTAINERDS")
        .expect("`cargo xtask test` names the containerd programs in FARRIER_CONTAINERDS");
    std::env::split_paths(&programs).collect()
}

/// Gives the network namespace of this thread an address with a default route: a containerd that streams from its own address
/// looks for the address there.
pub fn set_up_network() {
    let network =
        "ip link set lo up && ip address add 10.0.0.1/32 dev lo && ip route add default dev lo";
    let status = Command::new("sh").args(["-c", network]).status();
    assert!(status.unwrap().success());
}
