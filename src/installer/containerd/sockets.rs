//! The sockets of a process, in the tables of its network namespace. Reads `/proc`.

use std::collections::BTreeSet;
use std::io::Read as _;

use crate::installer::host::HostRoot;

/// Bytes of a table of sockets, at most: a line has 150, and a node has some thousand connections.
const MAX_TABLE: u64 = 32 << 20;

/// The flags of a socket of `/proc/net/unix` that listens, `__SO_ACCEPTCON` in `linux/net.h`.
const ACCEPTS: &str = "00010000";

/// The begin of a table in `/proc/PID/net`, where sockets that listen stand; empty if it can't be read.
pub(super) fn table(host: &HostRoot, pid: u32, name: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(Some(file)) = host.open_file(&format!("/proc/{pid}/net/{name}")) {
        // What was read before an error counts.
        let _ = file.take(MAX_TABLE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The paths of the sockets at which the process `pid` listens.
pub(crate) fn unix_sockets_of(host: &HostRoot, pid: u32) -> Vec<String> {
    let own = sockets_of(host, pid);
    let sockets = unix(host, pid).into_iter();
    let own = sockets.filter(|(_, inode)| own.contains(inode));
    own.map(|(path, _)| path).collect()
}

/// The paths of the sockets that are listened on, each with its inode.
pub(super) fn unix(host: &HostRoot, pid: u32) -> Vec<(String, String)> {
    let unix = table(host, pid, "unix");
    let sockets = unix.lines().filter_map(|line| {
        // The other fields are numbers. A path may contain spaces.
        let (fields, path) = line.split_at(line.find(" /")?);
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let (flags, inode) = (fields.get(3)?, fields.get(6)?);
        let path = path.trim_start().to_owned();
        (*flags == ACCEPTS).then(|| (path, (*inode).to_owned()))
    });
    sockets.collect()
}

/// The inodes of the sockets that the process has open.
pub(super) fn sockets_of(host: &HostRoot, pid: u32) -> BTreeSet<String> {
    let directory = format!("/proc/{pid}/fd");
    let names = host.list(&directory).unwrap_or_default().into_iter();
    let targets = names.filter_map(|name| {
        let target = host.symlink_target(&format!("{directory}/{name}"));
        let target = target.ok()??;
        let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    });
    targets.collect()
}
