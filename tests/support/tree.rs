//! The files below a directory, to compare a host before and after a change. A helper of the suites, no tests.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use farrier::names::sha256_hex;

/// Every path below `parts` of `root` but for those below `excluded`, relative to `root`, with its mode and its target or digest. With
/// `times` also the inode number and the change time, which every write changes.
pub fn tree(
    root: &Path,
    parts: &[&str],
    excluded: &[&str],
    times: bool,
) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    let mut directories: Vec<PathBuf> = parts.iter().map(|part| root.join(part)).collect();
    // The target of a symlink is listed where the target is.
    directories.retain(|directory| !directory.is_symlink());
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if excluded.iter().any(|excluded| name == Path::new(excluded)) {
                continue;
            }
            let metadata = path.symlink_metadata().unwrap();
            let mut entry = format!("{:o} ", metadata.mode());
            if metadata.is_symlink() {
                entry += &std::fs::read_link(&path).unwrap().to_string_lossy();
            } else if metadata.is_dir() {
                directories.push(path);
            } else if !times && name == Path::new("var/lib/farrier/verified.json") {
                // The file contains inode numbers and times, which differ on each host.
                entry += "verification cache";
            } else {
                entry += &sha256_hex(&std::fs::read(&path).unwrap());
            }
            if times {
                entry = format!("{entry} {} {}", metadata.ino(), metadata.ctime_nsec());
            }
            tree.insert(name, entry);
        }
    }
    tree
}
