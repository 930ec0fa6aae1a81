//! Addresses and names of a cluster's parts, all derived from its index. Pure.

use std::net::Ipv4Addr;

/// Clusters that fit side by side: the index is the third byte of their addresses.
pub const LAST_INDEX: u8 = 200;

/// Nodes that fit into a cluster: the last byte of their addresses starts behind the control plane's.
pub const MOST_NODES: usize = 100;

/// The API server's port.
pub const API_PORT: u16 = 6443;

/// The API server's address as pods know it: the first of the services' range.
pub const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The services' range.
pub const SERVICES: &str = "10.96.0.0/16";

/// Start of the names of everything that the cluster owns on this machine. Links allow 15 bytes, so that it is short.
#[must_use]
pub fn prefix(index: u8) -> String {
    format!("fr{index}-")
}

/// The one link of the cluster that stands in this machine's own network namespace.
#[must_use]
pub fn host_interface(index: u8) -> String {
    format!("fr{index}")
}

/// Network namespace of the control plane.
#[must_use]
pub fn control_plane_netns(index: u8) -> String {
    format!("{}cp", prefix(index))
}

/// Network namespace and cgroup of the node with this number; the first is 1.
#[must_use]
pub fn node_id(index: u8, number: u8) -> String {
    format!("{}n{number}", prefix(index))
}

/// Address of the control plane, in a network of 24 bits.
#[must_use]
pub fn control_plane_ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, index, 1)
}

/// Address of this machine in the cluster's network.
#[must_use]
pub fn host_ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, index, 254)
}

/// Address of the node with this number.
#[must_use]
pub fn node_ip(index: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, index, 10 + number)
}

/// Range of the pods of the node with this number; no other cluster's routes meet it, since none leaves its namespaces.
#[must_use]
pub fn pods(number: u8) -> String {
    format!("10.77.{number}.0/24")
}

/// The lowest index that `taken` leaves free.
#[must_use]
pub fn free_index(taken: impl Fn(u8) -> bool) -> Option<u8> {
    (1..=LAST_INDEX).find(|index| !taken(*index))
}

/// Whether `name` serves as the name of a cluster or node: a DNS label that leaves room for what is put around it.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=40).contains(&name.len())
        && name.bytes().all(|byte| inner(byte) || byte == b'-')
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_index_is_taken() {
        assert_eq!(free_index(|index| index < 3), Some(3));
        assert_eq!(free_index(|_| true), None);
    }

    #[test]
    fn one_clusters_prefix_is_never_the_start_of_anothers() {
        for one in 1..=LAST_INDEX {
            for other in (1..=LAST_INDEX).filter(|other| *other != one) {
                assert!(!prefix(other).starts_with(&prefix(one)));
            }
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["dev", "worker-1", "n1"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "1n", "a_b", "a/..", "A", "a-", &"a".repeat(41)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
