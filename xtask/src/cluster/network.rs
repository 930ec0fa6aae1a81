//! Networks of a cluster, by iproute2. The control plane's namespace holds the bridge, so that no firewall of this machine stands
//! between nodes; this machine gets one link, `fr<index>`, for kubectl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::names;
use crate::process;

/// Where iproute2 keeps the names of network namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";

/// The file behind the name of a network namespace.
#[must_use]
pub fn path(netns: &str) -> PathBuf {
    Path::new(NAMESPACES).join(netns)
}

/// The names of all network namespaces.
#[must_use]
pub fn namespaces() -> Vec<String> {
    fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Makes a network namespace.
///
/// # Errors
/// When it is there already, or the kernel refuses.
pub fn create_namespace(netns: &str) -> Result<()> {
    ip(&format!("netns add {netns}"))?;
    ip(&format!("-n {netns} link set lo up"))
}

/// Ties the control plane's namespace to this machine.
///
/// # Errors
/// When the kernel refuses.
pub fn connect_control_plane(index: u8) -> Result<()> {
    let netns = names::control_plane_netns(index);
    let interface = names::host_interface(index);
    add_bridge(&netns, "br0")?;
    ip(&format!("-n {netns} link set br0 up"))?;
    let address = names::control_plane_ip(index);
    ip(&format!("-n {netns} addr add {address}/24 dev br0"))?;
    ip(&format!(
        "link add {interface} type veth peer name host netns {netns}"
    ))?;
    ip(&format!("-n {netns} link set host master br0 up"))?;
    let address = names::host_ip(index);
    ip(&format!("addr add {address}/24 dev {interface}"))?;
    ip(&format!("link set {interface} up"))?;
    // Nodes reach each other's pods through here.
    process::run(
        inside(&netns, Path::new("sh")).args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]),
    )?;
    Ok(())
}

/// Makes the namespace of the node with this number and ties it to the control plane's.
///
/// # Errors
/// When the kernel refuses.
pub fn connect_node(index: u8, number: u8) -> Result<()> {
    let control_plane = names::control_plane_netns(index);
    let netns = names::node_id(index, number);
    let address = names::node_ip(index, number);
    let gateway = names::control_plane_ip(index);
    let pods = names::pods(number);
    create_namespace(&netns)?;
    ip(&format!(
        "-n {control_plane} link add n{number} type veth peer name eth0 netns {netns}"
    ))?;
    ip(&format!(
        "-n {control_plane} link set n{number} master br0 up"
    ))?;
    ip(&format!("-n {netns} addr add {address}/24 dev eth0"))?;
    ip(&format!("-n {netns} link set eth0 up"))?;
    ip(&format!("-n {netns} route add default via {gateway}"))?;
    // The CNI plugin takes the bridge that it finds.
    add_bridge(&netns, "cni0")?;
    ip(&format!(
        "-n {control_plane} route add {pods} via {address}"
    ))
}

/// A bridge with a hardware address that stays: one without takes the lowest of its ports', and each port that joins could cut off, for
/// as long as they remember the old one, those who speak to it.
fn add_bridge(netns: &str, bridge: &str) -> Result<()> {
    // Locally administered, and alone in its network of links.
    ip(&format!(
        "-n {netns} link add {bridge} address 02:00:00:00:00:01 type bridge"
    ))
}

/// `program` in a network namespace, and otherwise on this machine.
#[must_use]
pub fn inside(netns: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path(netns).display()))
        .arg("--")
        .arg(program);
    command
}

/// The processes in a network namespace.
///
/// # Errors
/// When there is no such namespace.
pub fn processes(netns: &str) -> Result<Vec<i32>> {
    let text = process::call("ip", &["netns", "pids", netns])?;
    Ok(text
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect())
}

/// The links of the cluster in this machine's own namespace.
#[must_use]
pub fn host_interfaces(index: u8) -> Vec<String> {
    let interface = names::host_interface(index);
    let path = Path::new("/sys/class/net").join(&interface);
    if path.exists() {
        vec![interface]
    } else {
        Vec::new()
    }
}

/// Removes the cluster's link and its namespaces, which take their own links along.
///
/// # Errors
/// When one can't be removed.
pub fn remove(index: u8) -> Result<()> {
    for interface in host_interfaces(index) {
        ip(&format!("link delete {interface}"))?;
    }
    let prefix = names::prefix(index);
    for netns in namespaces() {
        if netns.starts_with(&prefix) {
            ip(&format!("netns delete {netns}"))?;
        }
    }
    Ok(())
}

/// Removes the mount on which iproute2 keeps its names, once no name is left; it makes it anew when it needs it.
pub fn remove_empty_directory() {
    if namespaces().is_empty() {
        // Fails where it isn't a mount or somebody was faster: nothing of ours is left either way.
        let _ = nix::mount::umount(NAMESPACES);
        let _ = fs::remove_dir(NAMESPACES);
    }
}

fn ip(arguments: &str) -> Result<()> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    process::call("ip", &arguments)
        .map(drop)
        .context("the network of the cluster can't be set up")
}
