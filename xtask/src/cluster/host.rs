//! What clusters share with this machine and each other: the lock under which they come and go, and the kernel's settings.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::network;
use crate::process;

/// Directory of the lock and the saved settings: gone after a reboot, as are the clusters and the settings themselves.
const DIRECTORY: &str = "/run/farrier-xtask";

/// What a kubelet without `protectKernelDefaults` sets for the whole machine (`pkg/kubelet/cm/container_manager_linux.go`,
/// `setupKernelTunables`, Kubernetes 1.34).
const KUBELET_SETTINGS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Another run holds the lock while it cleans up what a third one left: seconds per cluster.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits for the lock under which clusters come and go on this machine; dropping the file gives it back.
///
/// # Errors
/// When somebody keeps it for too long.
pub fn lock() -> Result<File> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("failed to create {DIRECTORY}"))?;
    let path = Path::new(DIRECTORY).join("lock");
    let file =
        File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
    process::wait_until("another run's cleaning up", PATIENCE, || {
        match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("failed to lock {}", path.display()))
            }
        }
    })?;
    Ok(file)
}

/// Remembers the settings that kubelets will change, unless that was done for another cluster already. Under the lock.
///
/// # Errors
/// When they can't be read or written down.
pub fn save_settings() -> Result<()> {
    let saved = saved_settings();
    if saved.exists() {
        return Ok(());
    }
    let mut settings = BTreeMap::new();
    for name in KUBELET_SETTINGS {
        // A kernel without one of them has nothing to restore.
        if let Ok(value) = fs::read_to_string(setting(name)) {
            settings.insert(name, value);
        }
    }
    fs::write(&saved, serde_json::to_string(&settings)?)
        .with_context(|| format!("failed to write {}", saved.display()))
}

/// Once the last cluster is gone, puts back what the first one found. Under the lock.
///
/// # Errors
/// When a setting can't be written.
pub fn restore_settings() -> Result<()> {
    let others = network::namespaces()
        .iter()
        .any(|name| is_control_plane(name));
    let saved = saved_settings();
    if others || !saved.exists() {
        return Ok(());
    }
    let settings: BTreeMap<String, String> = serde_json::from_str(&fs::read_to_string(&saved)?)
        .with_context(|| format!("failed to read {}", saved.display()))?;
    for name in KUBELET_SETTINGS {
        let path = setting(name);
        if let Some(value) = settings.get(name)
            && fs::read_to_string(&path).ok().as_ref() != Some(value)
        {
            fs::write(&path, value)
                .with_context(|| format!("failed to restore {}", path.display()))?;
        }
    }
    fs::remove_file(&saved).with_context(|| format!("failed to remove {}", saved.display()))?;
    network::remove_empty_directory();
    Ok(())
}

/// Whether a network namespace is some cluster's control plane.
fn is_control_plane(netns: &str) -> bool {
    netns
        .strip_prefix("fr")
        .and_then(|rest| rest.strip_suffix("-cp"))
        .is_some_and(|index| index.parse::<u8>().is_ok())
}

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn saved_settings() -> PathBuf {
    Path::new(DIRECTORY).join("settings.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_planes_are_distinguished_from_other_namespaces() {
        assert!(is_control_plane("fr12-cp"));
        for other in ["fr1-n1", "frx-cp", "cp", "fr1-cp2"] {
            assert!(!is_control_plane(other), "{other}");
        }
    }
}
