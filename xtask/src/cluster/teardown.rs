//! Takes a cluster down, also one of a crashed run. Needs only the index and the directory of the cluster, and can run again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroups::{self, Layout};
use super::{host, names, network};
use crate::cache::remove_tree;
use crate::process;

/// How long killed processes may take to go: the API server's memory and a node's mounts take a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// Removes everything of the cluster `index` whose directory is `directory`. Its logs move to `logs`. The caller holds the lock of
/// [`host::lock`], unless a signal ended it.
///
/// # Errors
/// When something is left; the message lists what.
pub fn tear_down(index: u8, directory: &Path, logs: &Path) -> Result<()> {
    let attempts = [
        kill_processes(index),
        remove_cgroups(index),
        network::remove(index),
        remove_directory(directory, logs),
        host::restore_settings(),
    ];
    let left = leftovers(index, directory);
    if !left.is_empty() {
        bail!(
            "failed to remove the cluster, run `cargo xtask cluster down` again: {} left",
            left.join(", ")
        );
    }
    // What failed but left nothing is worth a message all the same: a setting of the machine, a log.
    attempts.into_iter().collect()
}

/// What is still there of the cluster `index`: processes, mounts, namespaces, links, cgroups, its directory.
#[must_use]
pub fn leftovers(index: u8, directory: &Path) -> Vec<String> {
    let prefix = names::prefix(index);
    let mut left = Vec::new();
    for netns in network::namespaces() {
        if netns.starts_with(&prefix) {
            left.push(format!("network namespace {netns}"));
        }
    }
    left.extend(
        network::host_interfaces(index)
            .into_iter()
            .map(|interface| format!("link {interface}")),
    );
    if let Ok(layout) = Layout::here() {
        for cgroup in layout.with_prefix(&prefix) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(
        mounts_below(&mounts, directory)
            .into_iter()
            .map(|mount| format!("mount {mount}")),
    );
    left.extend(
        processes_in(&prefix)
            .into_iter()
            .map(|pid| format!("process {pid}")),
    );
    if directory.exists() {
        left.push(format!("directory {}", directory.display()));
    }
    left
}

/// Kills all that runs in the cluster's network namespaces. Killing a node's process 1 kills all that it ever started, pods included.
fn kill_processes(index: u8) -> Result<()> {
    let prefix = names::prefix(index);
    process::wait_until("killing the cluster's processes", PATIENCE, || {
        let mut alive = false;
        for netns in network::namespaces() {
            if netns.starts_with(&prefix) {
                for pid in network::processes(&netns)? {
                    alive = true;
                    // It may have gone by itself.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        // A process leaves its namespaces first, and its children die after it.
        alive |= !processes_in(&prefix).is_empty();
        Ok((!alive).then_some(()))
    })
}

fn remove_cgroups(index: u8) -> Result<()> {
    Layout::here()?
        .with_prefix(&names::prefix(index))
        .iter()
        .try_for_each(|directory| cgroups::remove(directory))
}

/// Removes the directory of a cluster that doesn't run. Its logs move to `logs`, where they outlive it: they tell why it failed.
///
/// # Errors
/// When one can't be moved or removed.
pub fn remove_directory(directory: &Path, logs: &Path) -> Result<()> {
    let from = directory.join(super::LOGS);
    if from.is_dir() {
        remove_tree(logs)?;
        if let Some(parent) = logs.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(from, logs)?;
    }
    // The copying of a node's file system outlives the run that was killed in the midst of it, for a moment.
    process::wait_until(
        &format!("removing {}", directory.display()),
        PATIENCE,
        || Ok(remove_tree(directory).ok().filter(|()| !directory.exists())),
    )
}

/// Mount points in or under `directory`, from `/proc/self/mountinfo`.
fn mounts_below(mountinfo: &str, directory: &Path) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| Path::new(mount).starts_with(directory))
        .map(str::to_owned)
        .collect()
}

/// Processes in a cgroup whose name starts with `prefix`, from `/proc/PID/cgroup`. A zombie is its parent's to wait for and holds
/// nothing any more.
fn processes_in(prefix: &str) -> Vec<String> {
    // In a container the trees' roots have a path of their own before it.
    let needle = format!("/{prefix}");
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            read("cgroup").contains(&needle) && !is_zombie(&read("stat"))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Whether the state in `/proc/PID/stat` is that of a zombie (`proc_pid_stat(5)`); the name before it may hold parentheses.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_in_the_directory_are_listed() {
        let mountinfo = "1 0 8:1 / / rw - ext4 x rw\n\
            2 1 8:1 /a /cache/clusters/dev/nodes/n1 rw - ext4 x rw\n\
            3 1 8:1 /b /cache/clusters/developer rw - ext4 x rw\n";
        assert_eq!(
            mounts_below(mountinfo, Path::new("/cache/clusters/dev")),
            ["/cache/clusters/dev/nodes/n1"]
        );
    }

    #[test]
    fn a_zombie_is_recognised_by_its_state() {
        assert!(is_zombie("7 (a) S) Z 1 7"));
        assert!(!is_zombie("7 (a) Z) S 1 7"));
    }

    #[test]
    fn tearing_down_an_absent_cluster_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let left = leftovers(names::LAST_INDEX + 1, &directory.path().join("none"));
        assert_eq!(left, Vec::<String>::new());
    }
}
