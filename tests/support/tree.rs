//! The files below a directory, to compare a host before and after a change. A helper of the suites, no tests.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use farrier::names::sha256_hex;

/// Every path below `parts` of `root`, except the paths below `excluded`. Each path is relative to `root`, and has its mode and its target
/// or digest. With `times`, it also has its inode number and its change time, which every write changes.
pub fn tree(
    root: &Path,
    parts: &[&str],
    excluded: &[&str],
    times: bool,
) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    let mut directories: Vec<PathBuf> = parts.iter().map(|part| root.join(part)).collect();
    // The files behind a symlink are listed at their own paths.
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
