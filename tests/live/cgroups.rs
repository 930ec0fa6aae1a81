//! A cgroup for one program in each hierarchy, so that a test sees which cgroups the program creates. No tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::gettid;

/// A cgroup in each hierarchy of this machine.
pub struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    pub fn new() -> Self {
        // `/proc/self` is the main thread, which enters no node.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let target = Path::new(mount.split(' ').nth(4)?);
            let is_hierarchy = system.starts_with("cgroup") && target.starts_with("/sys/fs/cgroup");
            is_hierarchy.then(|| target.to_owned())
        });
        let cgroups = hierarchies.map(|hierarchy| {
            let directory = hierarchy.join(format!("farrier-thread-{}", gettid()));
            fs::create_dir(&directory).unwrap();
            // A cgroup of this hierarchy of v1 takes no process before both have values.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(hierarchy.join(name)) {
                    fs::write(directory.join(name), value).unwrap();
                }
            }
            directory
        });
        Self(cgroups.collect())
    }

    /// The same command, as a member of these cgroups.
    pub fn command(&self, command: &Command) -> Command {
        member(self.0.iter().map(PathBuf::as_path), command)
    }

    /// The cgroups that were created in these.
    pub fn created(&self) -> Vec<PathBuf> {
        let directories = self.0.iter();
        directories.flat_map(|directory| below(directory)).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in self.created().iter().chain(&self.0) {
            // A cgroup with members is left behind.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The directories below `directory`, each before the one that it is in.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

/// The same command, as a member of these cgroups.
pub fn member<'a>(directories: impl Iterator<Item = &'a Path>, command: &Command) -> Command {
    let joins =
        directories.map(|directory| format!("echo 0 >{}/cgroup.procs\n", directory.display()));
    let script = joins.collect::<String>() + "exec \"$0\" \"$@\"";
    let mut inside = Command::new("sh");
    inside
        .args(["-ec", &script])
        .arg(command.get_program())
        .args(command.get_args());
    inside
}
