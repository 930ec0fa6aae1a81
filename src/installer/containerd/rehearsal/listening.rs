//! Where a rehearsed containerd listens, and what prevents that on the node. In its own namespaces every port is free, every address is
//! there, and `/run` is empty.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::network;
use crate::installer::containerd::sockets::{sockets_of, table, unix};
use crate::installer::host::HostRoot;
use crate::installer::host::path::parent_directory;

/// The state of a socket that listens, `TCP_LISTEN` in `net/tcp_states.h`.
const LISTENS: &str = "0A";

/// Where the programs of a network namespace listen.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Listening {
    tcp: Vec<SocketAddr>,
    /// Paths of sockets.
    unix: Vec<String>,
}

impl Listening {
    /// The sockets in the network namespace of the process `pid`. A table that can't be read counts as empty.
    pub(super) fn of(host: &HostRoot, pid: u32) -> Self {
        Self {
            tcp: tcp(host, pid).into_iter().map(|it| it.0).collect(),
            unix: unix(host, pid).into_iter().map(|it| it.0).collect(),
        }
    }

    /// Why the containerd of the node could not listen where this one does; `running` is its PID now, and `dump` the configuration.
    pub(super) fn obstacle(&self, host: &HostRoot, running: u32, dump: &str) -> Option<String> {
        let own = sockets_of(host, running);
        let (own, others): (Vec<_>, Vec<_>) = tcp(host, running)
            .into_iter()
            .partition(|(_, inode)| own.contains(inode));
        let addresses = addresses(host, running);
        let in_the_way = |wanted: &SocketAddr| {
            let is_own = |(own, _): &(SocketAddr, String)| {
                own == wanted || is_assumed(wanted, dump) && own.port() == wanted.port()
            };
            if own.iter().any(is_own) {
                return None;
            }
            // The kernel chooses any other port anew at each start.
            let is_named = names_port(dump, wanted.port());
            let mut others = others.iter().filter(|_| is_named);
            if others.any(|(other, _)| conflicts(other, wanted)) {
                return Some(format!(
                    "it would listen at {wanted}, where another program listens"
                ));
            }
            let is_there = is_assumed(wanted, dump) || is_of_node(wanted.ip(), &addresses);
            (!is_there).then(|| {
                let ip = wanted.ip();
                format!("it would listen at {ip}, which is no address of this node")
            })
        };
        let mut paths = self.unix.iter();
        let tcp = self.tcp.iter().find_map(in_the_way);
        tcp.or_else(|| paths.find_map(|path| path_in_the_way(host, path)))
    }
}

/// Whether containerd listens at the address of the rehearsal alone, because the configuration leaves the address to the default route.
fn is_assumed(wanted: &SocketAddr, dump: &str) -> bool {
    let assumed = Ipv4Addr::from(network::ADDRESS);
    wanted.ip() == assumed && !dump.contains(&assumed.to_string())
}

/// The addresses that are listened on, each with the inode of its socket.
fn tcp(host: &HostRoot, pid: u32) -> Vec<(SocketAddr, String)> {
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let address = socket_address(address).filter(|_| *state == LISTENS)?;
        Some((address, (*inode).to_owned()))
    };
    let tables = ["tcp", "tcp6"].map(|name| table(host, pid, name));
    let lines = tables.iter().flat_map(|table| table.lines());
    lines.filter_map(listens).collect()
}

/// An address such as `0100007F:1F90`: words of four bytes in the order of this CPU, then the port (`proc_pid_net(5)`).
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// The IPv4 and IPv6 addresses of the interfaces in the network namespace of the process (`proc_pid_net(5)`). In `fib_trie`, an address stands
/// in the line before its `host LOCAL`.
fn addresses(host: &HostRoot, pid: u32) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    let mut last = None;
    for line in table(host, pid, "fib_trie").lines() {
        let line = line.trim_start_matches([' ', '|', '+', '-']);
        match line.split_once(' ') {
            Some((_, "host LOCAL")) => addresses.extend(last.take().map(IpAddr::V4)),
            _ => last = line.parse::<Ipv4Addr>().ok(),
        }
    }
    for line in table(host, pid, "if_inet6").lines() {
        let digits = line.split(' ').next().unwrap_or_default();
        let parsed = u128::from_str_radix(digits, 16);
        addresses.extend(parsed.map(|bits| IpAddr::V6(bits.into())));
    }
    addresses
}

/// Whether a program can listen on `ip`. Without a list of its family, nothing is known.
fn is_of_node(ip: IpAddr, addresses: &BTreeSet<IpAddr>) -> bool {
    let mut family = addresses.iter().filter(|it| it.is_ipv4() == ip.is_ipv4());
    ip.is_unspecified() || ip.is_loopback() || addresses.contains(&ip) || family.next().is_none()
}

/// Whether two sockets can't listen at the same time. `[::]` also takes the port of IPv4 (`ipv6(7)`).
fn conflicts(one: &SocketAddr, other: &SocketAddr) -> bool {
    let covers = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (port, one, other) = (one.port() == other.port(), one.ip(), other.ip());
    port && (one == other || covers(one, other) || covers(other, one))
}

/// Whether the configuration names the port: behind the colon of an address, or as a text or number of its own.
fn names_port(dump: &str, port: u16) -> bool {
    let port = port.to_string();
    let mut places = dump.match_indices(&port);
    places.any(|(at, _)| {
        let before = dump[..at].chars().next_back();
        let after = dump[at + port.len()..].chars().next();
        matches!(before, Some(':' | '"' | '\'' | ' '))
            && !after.is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '.')
    })
}

/// Why no socket can be made at `path`; containerd creates missing directories, and replaces a file.
fn path_in_the_way(host: &HostRoot, path: &str) -> Option<String> {
    let is_directory = |path: &str| {
        let (_open, own) = host.handle(path).ok()?;
        Some(std::fs::metadata(own).ok()?.is_dir())
    };
    if is_directory(path) == Some(true) {
        return Some(format!("it would listen at {path}, which is a directory"));
    }
    let mut parent = parent_directory(path);
    while parent.len() > 1 {
        match is_directory(parent) {
            Some(true) => return None,
            Some(false) => {
                return Some(format!(
                    "it would listen at {path}, and {parent} is no directory"
                ));
            }
            None => parent = parent_directory(parent),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rstest::rstest;

    use super::*;
    use crate::installer::containerd::sockets::unix_sockets_of;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(address: &str, state: &str, inode: u32) -> String {
        format!(
            "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n"
        )
    }

    fn address(address: SocketAddr) -> String {
        let words: Vec<u8> = match address.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let words = words.chunks(4).map(|word| {
            let word = u32::from_ne_bytes(word.try_into().unwrap());
            format!("{word:08X}")
        });
        format!("{}:{:04X}", words.collect::<String>(), address.port())
    }

    /// A node whose containerd, process 7, listens on 127.0.0.1:1338, and where others listen on 0.0.0.0:9000 and `[::1]:9001`, have a
    /// connection from port 9002, and listen on port 9003, which no configuration names.
    fn node() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let process = root.path().join("proc/7");
        fs::create_dir_all(process.join("net")).unwrap();
        fs::create_dir_all(process.join("fd")).unwrap();
        std::os::unix::fs::symlink("socket:[11]", process.join("fd/5")).unwrap();
        let of = |text: &str| address(text.parse().unwrap());
        let tcp = HEAD.to_owned()
            + &line(&of("127.0.0.1:1338"), "0A", 11)
            + &line(&of("0.0.0.0:9000"), "0A", 12)
            + &line(&of("127.0.0.1:9002"), "01", 13)
            + &line(&of("127.0.0.1:9003"), "0A", 15);
        fs::write(process.join("net/tcp"), tcp).unwrap();
        let tcp6 = HEAD.to_owned() + &line(&of("[::1]:9001"), "0A", 14);
        fs::write(process.join("net/tcp6"), tcp6).unwrap();
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.88.1.5\n        /32 host LOCAL\n     |-- 10.88.1.255\n        /32 link BROADCAST\n";
        fs::write(process.join("net/fib_trie"), trie).unwrap();
        let inet6 = "20010db8000000000000000000000005 02 40 00 80     eth0\n";
        fs::write(process.join("net/if_inet6"), inet6).unwrap();
        fs::create_dir_all(root.path().join("run/own")).unwrap();
        fs::write(root.path().join("run/socket"), "").unwrap();
        root
    }

    #[rstest]
    #[case::its_own_port("127.0.0.1:1338", None)]
    #[case::a_free_port("127.0.0.1:1339", None)]
    #[case::a_port_of_a_connection("127.0.0.1:9002", None)]
    #[case::a_port_of_all_addresses("127.0.0.1:9000", Some("where another program listens"))]
    #[case::all_addresses("[::]:9001", Some("where another program listens"))]
    #[case::another_address_of_this_port("127.0.0.1:9001", None)]
    #[case::an_address_of_the_node("10.88.1.5:1340", None)]
    #[case::a_broadcast_address("10.88.1.255:1340", Some("which is no address of this node"))]
    #[case::an_address_of_nobody("192.0.2.77:1340", Some("which is no address of this node"))]
    #[case::an_address_of_the_node_in_ipv6("[2001:db8::5]:1340", None)]
    #[case::an_address_of_nobody_in_ipv6(
        "[2001:db8::6]:1340",
        Some("which is no address of this node")
    )]
    #[case::all_addresses_of_another_family("0.0.0.0:9001", None)]
    #[case::a_port_that_the_kernel_chose("127.0.0.1:9003", None)]
    #[case::an_address_of_nobody_with_such_a_port(
        "192.0.2.77:40000",
        Some("which is no address of this node")
    )]
    #[case::the_address_of_the_default_route("192.0.2.1:1340", None)]
    #[case::a_port_of_others_there("192.0.2.1:9000", Some("where another program listens"))]
    fn an_address_is_compared_with_those_of_the_node(
        #[case] wanted: &str,
        #[case] expected: Option<&str>,
    ) {
        let node = node();
        let host = HostRoot::open(node.path()).unwrap();
        let listening = Listening {
            tcp: vec![wanted.parse().unwrap()],
            unix: Vec::new(),
        };
        let dump = "a = '127.0.0.1:1338'\nb = \":1339\"\nc = '9000'\nd = ':::9001'\ne = 9002\nf = ':1340'\ng = 400001\nh = 140000\n";
        let obstacle = listening.obstacle(&host, 7, dump);
        match expected {
            None => assert_eq!(obstacle, None),
            Some(why) => assert!(obstacle.unwrap().ends_with(why)),
        }
    }

    #[rstest]
    #[case("/run/own", true)]
    #[case("/run/socket", false)]
    #[case("/run/absent/too", false)]
    #[case("/run/socket/own/d.sock", true)]
    fn a_directory_or_a_file_above_is_in_the_way_of_a_socket(
        #[case] path: &str,
        #[case] is_obstacle: bool,
    ) {
        let node = node();
        let host = HostRoot::open(node.path()).unwrap();
        let listening = Listening {
            tcp: Vec::new(),
            unix: vec![path.to_owned()],
        };
        assert_eq!(listening.obstacle(&host, 7, "").is_some(), is_obstacle);
    }

    #[test]
    fn the_sockets_of_this_machine_are_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let host = HostRoot::open("/".as_ref()).unwrap();
        let pid = std::process::id();
        let listening = Listening::of(&host, pid);
        let address = listener.local_addr().unwrap();
        assert!(listening.tcp.contains(&address), "{listening:?}");
        let path = path.to_str().unwrap().to_owned();
        assert!(listening.unix.contains(&path), "{listening:?}");
        assert!(unix_sockets_of(&host, pid).contains(&path));
        let own = sockets_of(&host, pid);
        let mut sockets = tcp(&host, pid).into_iter();
        let inode = sockets.find(|(other, _)| *other == address);
        assert!(own.contains(&inode.unwrap().1));
    }
}
