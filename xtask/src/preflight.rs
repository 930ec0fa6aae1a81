//! Checks the requirements for this machine, and installs missing Debian packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::progress::Progress;

/// Debian packages, each with its purpose. Ubuntu has the same names.
const PACKAGES: [(&str, &str); 11] = [
    ("ca-certificates", "downloads over HTTPS"),
    (
        "debian-archive-keyring",
        "debootstrap checks Debian's signatures",
    ),
    ("debootstrap", "the nodes' file system"),
    ("gcc", "linking Rust programs, the static ones included"),
    ("iproute2", "the cluster's networks"),
    (
        "libc6-dev",
        "linking Rust programs, the static ones included",
    ),
    ("libdbus-1-dev", "the demo's shim"),
    ("libseccomp-dev", "the demo's shim"),
    ("pkg-config", "the demo's shim"),
    (
        "protobuf-compiler",
        "Farrier's client of the CRI, the demo's shim",
    ),
    ("util-linux", "nsenter and unshare"),
];

/// The oldest Go that fetches a newer toolchain by itself.
const GO: (u32, u32) = (1, 21);

/// Checks this machine, and installs missing packages.
///
/// # Errors
/// When a requirement is not met, in one sentence, or when an installation fails.
pub fn ensure(progress: &Progress) -> Result<()> {
    let go = process::output(
        Command::new("go")
            .arg("version")
            .env("GOTOOLCHAIN", "local"),
    )
    .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    .unwrap_or_default();
    let missing = missing(&Machine {
        linux_x86_64: cfg!(all(target_os = "linux", target_arch = "x86_64")),
        root: nix::unistd::geteuid().is_root(),
        apt: Path::new("/usr/bin/apt-get").exists() && Path::new("/usr/bin/dpkg-query").exists(),
        go: go_version(&go),
    });
    if !missing.is_empty() {
        bail!("this machine lacks {}", missing.join(", and "));
    }
    install(progress)
}

/// The properties of this machine.
struct Machine {
    linux_x86_64: bool,
    root: bool,
    apt: bool,
    go: Option<(u32, u32)>,
}

/// The requirements that this machine does not meet and xtask can't install.
fn missing(machine: &Machine) -> Vec<String> {
    let mut missing = Vec::new();
    if !machine.linux_x86_64 {
        missing.push("Linux on x86-64".to_owned());
    }
    if !machine.root {
        missing.push("the rights of root: run this command as root".to_owned());
    }
    if !machine.apt {
        missing.push("apt and dpkg: use Debian or Ubuntu".to_owned());
    }
    if machine.go.is_none_or(|version| version < GO) {
        missing.push(format!(
            "Go {}.{} or later: install it from https://go.dev/dl",
            GO.0, GO.1
        ));
    }
    missing
}

/// Reads `go version go1.26.8 linux/amd64`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("go1."))?
        .split(|character: char| !character.is_ascii_digit());
    Some((1, numbers.next()?.parse().ok()?))
}

fn install(progress: &Progress) -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    progress.step(
        format!("installing Debian packages: {}", missing.join(" ")),
        || {
            apt(&["update"])?;
            let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
            arguments.extend(missing);
            apt(&arguments).context("failed to install Debian packages: install them by hand, then run this command again")
        },
    )
}

fn apt(arguments: &[&str]) -> Result<()> {
    process::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["--quiet", "--option", "DPkg::Lock::Timeout=120"])
            .args(arguments),
    )
    .map(drop)
}

fn missing_packages() -> Result<Vec<&'static str>> {
    // It fails when it knows nothing of one of them, and still prints what it knows.
    let output = process::output(
        Command::new("dpkg-query")
            .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
            .args(PACKAGES.map(|(package, _)| package)),
    )?;
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(PACKAGES
        .into_iter()
        .map(|(package, _)| package)
        .filter(|package| !known.lines().any(|line| is_installed(line, package)))
        .collect())
}

fn is_installed(line: &str, package: &str) -> bool {
    line.split_once(' ') == Some((package, "installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_go_version_is_parsed_from_its_output() {
        for (text, version) in [
            ("go version go1.26.8 linux/amd64\n", Some((1, 26))),
            ("go version go1.21rc2 linux/amd64", Some((1, 21))),
            ("", None),
        ] {
            assert_eq!(go_version(text), version, "{text}");
        }
    }

    #[test]
    fn all_missing_tools_are_listed_at_once() {
        let fine = Machine {
            linux_x86_64: true,
            root: true,
            apt: true,
            go: Some(GO),
        };
        assert_eq!(missing(&fine), Vec::<String>::new());
        let bare = Machine {
            linux_x86_64: false,
            root: false,
            apt: false,
            go: Some((1, 20)),
        };
        assert_eq!(missing(&bare).len(), 4);
    }

    #[test]
    fn a_removed_package_is_missing() {
        assert!(is_installed("iproute2 installed", "iproute2"));
        assert!(!is_installed("iproute2 config-files", "iproute2"));
    }
}
