//! Sets up the network namespace of a rehearsal, over rtnetlink(7): a program for that is on few hosts.

use std::fs;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// The index of `lo`: the kernel creates it first in every network namespace.
const LOOPBACK: u32 = 1;

/// An address for documentation (RFC 5737). containerd looks for the address of the default route if the configuration names none to stream
/// from.
pub(super) const ADDRESS: [u8; 4] = [192, 0, 2, 1];

/// `AF_INET`.
const IPV4: u8 = 2;

// linux/rtnetlink.h, linux/netlink.h and linux/if_addr.h
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE`.
const CREATE: u16 = 0x1 | 0x4 | 0x200 | 0x400;
/// `NLMSG_ERROR`, which is also the acknowledgement.
const ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RT_SCOPE_LINK` and `RTN_UNICAST`.
const ROUTE: [u8; 4] = [254, 3, 253, 1];

/// The settings with which a process may listen on an address that no interface has. On the node, containerd may listen on an address of the
/// node.
const NONLOCAL: [&str; 2] = [
    "/proc/sys/net/ipv4/ip_nonlocal_bind",
    "/proc/sys/net/ipv6/ip_nonlocal_bind",
];

/// Gives `lo` an address and the default route, and lets every address be listened on.
pub(super) fn set_up() -> Result<(), String> {
    for path in NONLOCAL {
        // A kernel without IPv6 has no such setting.
        let _ = fs::write(path, "1");
    }
    let link = [
        &[0; 4][..],
        &LOOPBACK.to_ne_bytes(),
        &IFF_UP.to_ne_bytes(),
        &IFF_UP.to_ne_bytes(),
    ];
    request(NEW_LINK, 0x1 | 0x4, &link.concat())?;
    // Family, length of the prefix, flags, scope.
    let address = [
        &[IPV4, 32, 0, 0][..],
        &LOOPBACK.to_ne_bytes(),
        &attribute(IFA_LOCAL, ADDRESS),
    ];
    request(NEW_ADDRESS, CREATE, &address.concat())?;
    // Family, lengths of the destination and the source, type of service; then the flags.
    let route = [
        &[IPV4, 0, 0, 0][..],
        &ROUTE,
        &[0; 4],
        &attribute(RTA_OIF, LOOPBACK.to_ne_bytes()),
    ];
    request(NEW_ROUTE, CREATE, &route.concat())
}

fn attribute(kind: u16, value: [u8; 4]) -> [u8; 8] {
    let mut attribute = [0; 8];
    attribute[..2].copy_from_slice(&8_u16.to_ne_bytes());
    attribute[2..4].copy_from_slice(&kind.to_ne_bytes());
    attribute[4..].copy_from_slice(&value);
    attribute
}

/// Sends a request, and waits for its acknowledgement.
fn request(kind: u16, flags: u16, body: &[u8]) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("failed to set up the network: {error}");
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0.
        None,
    )
    .map_err(|error| failed(&error))?;
    let length = u32::try_from(16 + body.len()).map_err(|error| failed(&error))?;
    let header = [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        // A sequence number and the sender, which the kernel fills in.
        &[0; 8],
    ];
    send(
        &socket,
        &[&header.concat(), body].concat(),
        SendFlags::empty(),
    )
    .map_err(|error| failed(&error))?;
    let mut answer = [0; 256];
    let (_, length) =
        recv(&socket, &mut answer, RecvFlags::empty()).map_err(|error| failed(&error))?;
    let field = |at: usize| answer.get(at..at + 4).filter(|_| at + 4 <= length);
    let is_error = field(4).is_some_and(|kind| kind[..2] == ERROR.to_ne_bytes());
    match field(16) {
        Some(code) if is_error => {
            let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
            if code == 0 {
                return Ok(());
            }
            Err(failed(&std::io::Error::from_raw_os_error(-code)))
        }
        Some(_) | None => Err(failed(&"the kernel gave another answer")),
    }
}
