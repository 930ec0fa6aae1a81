//! Cgroups of nodes: which hierarchies this machine has, pure, and the making, joining and removing of a node's own ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Where cgroups are, here and in nodes.
pub const ROOT: &str = "/sys/fs/cgroup";

/// How this machine's cgroups are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Version 2 alone, in one tree.
    Unified {
        /// Where it is mounted.
        mount: PathBuf,
    },
    /// Version 1, or version 1 with a tree of version 2 for systemd beside it (hybrid).
    Legacy {
        /// The trees, each with a directory under [`ROOT`].
        hierarchies: Vec<Hierarchy>,
    },
}

/// One tree of cgroups where there are several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What it holds.
    pub kind: Kind,
}

/// What a tree holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Controllers of version 1, one or several.
    Controllers(Vec<String>),
    /// No controller, only a name: systemd's.
    Named(String),
    /// Version 2, in which a hybrid host's systemd keeps track of processes.
    Unified,
}

impl Layout {
    /// Reads the layout of this machine.
    ///
    /// # Errors
    /// When it has no cgroups that a node can live in.
    pub fn here() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Self::from_mountinfo(&mounts)
    }

    /// Reads the layout off `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
    ///
    /// # Errors
    /// When no cgroups are mounted, or of version 1 those of systemd are missing.
    pub fn from_mountinfo(mountinfo: &str) -> Result<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for (mount, kind) in mountinfo.lines().filter_map(cgroup_mount) {
            let known = hierarchies.iter().any(|seen| seen.kind == kind);
            if mount.starts_with(ROOT) && !known {
                hierarchies.push(Hierarchy { mount, kind });
            }
        }
        if let [
            Hierarchy {
                mount,
                kind: Kind::Unified,
            },
        ] = hierarchies.as_slice()
        {
            return Ok(Self::Unified {
                mount: mount.clone(),
            });
        }
        let has_systemd = hierarchies
            .iter()
            .any(|hierarchy| hierarchy.kind == Kind::Named("systemd".to_owned()));
        if hierarchies.is_empty() {
            bail!("no cgroups are mounted under {ROOT}: mount them as systemd does");
        }
        if !has_systemd {
            bail!(
                "cgroups of version 1 are mounted without systemd's: run \
                 `mkdir {ROOT}/systemd && mount -t cgroup -o none,name=systemd cgroup {ROOT}/systemd`"
            );
        }
        Ok(Self::Legacy { hierarchies })
    }

    /// The directories that are, or would be, the node's own root in each tree.
    #[must_use]
    pub fn directories(&self, node: &str) -> Vec<PathBuf> {
        self.mounts().map(|mount| mount.join(node)).collect()
    }

    /// The directories in the trees' roots whose name starts with `prefix`.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Vec<PathBuf> {
        self.mounts()
            .filter_map(|mount| fs::read_dir(mount).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
            .collect()
    }

    /// Makes the node's cgroups.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(&self, node: &str) -> Result<()> {
        if let Self::Unified { mount } = self {
            delegate(mount)?;
        }
        for directory in self.directories(node) {
            fs::create_dir_all(&directory)
                .with_context(|| format!("failed to create the cgroup {}", directory.display()))?;
            // Version 1 starts a cpuset empty, and nothing may join an empty one.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let above = directory.with_file_name(file);
                if matches!(self, Self::Legacy { .. }) && above.is_file() {
                    fs::copy(&above, directory.join(file)).with_context(|| {
                        format!("failed to set {file} of the cgroup {}", directory.display())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process into the node's cgroups.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, node: &str) -> Result<()> {
        for directory in self.directories(node) {
            // 0 is the writer.
            fs::write(directory.join("cgroup.procs"), "0")
                .with_context(|| format!("failed to join the cgroup {}", directory.display()))?;
        }
        Ok(())
    }

    fn mounts(&self) -> impl Iterator<Item = &Path> {
        let mounts: Vec<&Path> = match self {
            Self::Unified { mount } => vec![mount],
            Self::Legacy { hierarchies } => hierarchies
                .iter()
                .map(|hierarchy| hierarchy.mount.as_path())
                .collect(),
        };
        mounts.into_iter()
    }
}

/// Removes a cgroup and all below it.
///
/// # Errors
/// When processes stay in it for longer than they may take to die.
pub fn remove(directory: &Path) -> Result<()> {
    // The kernel says busy until the last process that was killed is gone for good.
    process::wait_until(
        &format!("emptying the cgroup {}", directory.display()),
        Duration::from_secs(15),
        || match remove_leaves_first(directory) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("failed to remove {}", directory.display()))
            }
        },
    )
}

fn remove_leaves_first(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_leaves_first(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Hands the controllers that this tree's root has on to its children, so that nodes can use them.
fn delegate(mount: &Path) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(mount.join(file))
            .with_context(|| format!("failed to read {file} in {}", mount.display()))
    };
    let available = read("cgroup.controllers")?;
    let handed_on = read("cgroup.subtree_control")?;
    let wanted: Vec<String> = available
        .split_whitespace()
        .filter(|name| !handed_on.split_whitespace().any(|present| present == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    // In a container this root is no real one: it may not hand controllers on while processes are in it (cgroups(7), "no internal
    // processes"), so that they move into a leaf of their own first.
    if mount.join("cgroup.type").exists() {
        let leaf = mount.join("init");
        fs::create_dir_all(&leaf)?;
        for process in read("cgroup.procs")?.lines() {
            // It may be gone by now.
            let _ = fs::write(leaf.join("cgroup.procs"), process);
        }
    }
    fs::write(mount.join("cgroup.subtree_control"), wanted.join(" ")).with_context(|| {
        format!(
            "failed to hand on {} in {}",
            wanted.join(" "),
            mount.display()
        )
    })
}

/// Mount point and kind, if the line is one of cgroups.
fn cgroup_mount(line: &str) -> Option<(PathBuf, Kind)> {
    let (left, right) = line.split_once(" - ")?;
    let mount = PathBuf::from(left.split(' ').nth(4)?);
    let mut right = right.split(' ');
    match right.next()? {
        "cgroup2" => Some((mount, Kind::Unified)),
        "cgroup" => {
            let options = right.nth(1)?;
            if let Some(name) = options
                .split(',')
                .find_map(|option| option.strip_prefix("name="))
            {
                return Some((mount, Kind::Named(name.to_owned())));
            }
            let controllers: Vec<String> = options
                .split(',')
                .filter(|option| !FLAGS.contains(option) && !option.contains('='))
                .map(str::to_owned)
                .collect();
            Some((mount, Kind::Controllers(controllers)))
        }
        _ => None,
    }
}

/// Options of a mount of version 1 that are no controllers (cgroup-v1/cgroups.rst).
const FLAGS: [&str; 8] = [
    "rw",
    "ro",
    "seclabel",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "none",
];

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,seclabel,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn hierarchy(name: &str, kind: Kind) -> Hierarchy {
        Hierarchy {
            mount: Path::new(ROOT).join(name),
            kind,
        }
    }

    fn controllers(names: &[&str]) -> Kind {
        Kind::Controllers(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn legacy() -> Vec<Hierarchy> {
        vec![
            hierarchy("cpu,cpuacct", controllers(&["cpu", "cpuacct"])),
            hierarchy("memory", controllers(&["memory"])),
            hierarchy("systemd", Kind::Named("systemd".to_owned())),
        ]
    }

    #[test]
    fn a_hybrid_host_has_every_tree() {
        let mut hierarchies = legacy();
        hierarchies.push(hierarchy("unified", Kind::Unified));
        assert_eq!(
            Layout::from_mountinfo(HYBRID).unwrap(),
            Layout::Legacy { hierarchies }
        );
    }

    #[test]
    fn a_host_of_version_1_has_no_unified_tree() {
        let mounts: Vec<&str> = HYBRID
            .lines()
            .filter(|line| !line.contains("cgroup2"))
            .collect();
        let mounts = mounts.join("\n");
        assert_eq!(
            Layout::from_mountinfo(&mounts).unwrap(),
            Layout::Legacy {
                hierarchies: legacy()
            }
        );
    }

    #[test]
    fn a_host_of_version_2_alone_has_one_tree() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
            31 30 0:26 /fr1-n1 /srv/elsewhere rw - cgroup2 cgroup2 rw\n";
        let layout = Layout::from_mountinfo(mounts).unwrap();
        assert_eq!(layout, Layout::Unified { mount: ROOT.into() });
        assert_eq!(
            layout.directories("fr1-n1"),
            [Path::new("/sys/fs/cgroup/fr1-n1")]
        );
    }

    #[test]
    fn a_tree_that_is_mounted_twice_counts_once() {
        let twice = format!("{HYBRID}{HYBRID}");
        assert_eq!(
            Layout::from_mountinfo(&twice).unwrap(),
            Layout::from_mountinfo(HYBRID).unwrap()
        );
    }

    #[test]
    fn a_missing_controller_is_named() {
        let without = HYBRID.replace("name=systemd", "name=other");
        for (mounts, word) in [("", "no cgroups"), (without.as_str(), "name=systemd")] {
            let error = Layout::from_mountinfo(mounts).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_tree_of_directories_is_removed_from_its_leaves() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("fr1-n1");
        fs::create_dir_all(root.join("a/b")).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }
}
