//! Refuses downloads from addresses at which clouds serve the credentials and the configuration of a node. Who may write a Shim must not
//! read them by means of Farrier.
//!
//! Each connection is checked: the addresses that a name resolves to, in the resolver of the HTTP client, and the address in a URL, also
//! after a redirect. Behind a proxy, the proxy resolves the name of the server, and its own rules apply.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use reqwest::Url;

use crate::dns::{self, Resolver};

/// A location is at an address that no download may use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, a link-local address or an address of a cloud's metadata service")]
pub struct LinkLocal {
    /// Name of the server, or its address.
    pub host: String,
    /// The address.
    pub address: IpAddr,
}

impl LinkLocal {
    /// The innermost of this kind among the causes of an error of the HTTP client.
    pub(crate) fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        causes.find_map(|cause| cause.downcast_ref())
    }
}

/// Addresses of metadata services outside of the link-local networks, with the length of the network's prefix.
///
/// AWS (local services, `fd00:ec2::254` and others), Google Cloud, Oracle Cloud, Scaleway; Alibaba Cloud, Azure (`WireServer`) and Oracle
/// Cloud Classic.
const METADATA: [(IpAddr, u32); 7] = [
    (v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0000), 32),
    (v6(0xfd20_00ce_0000_0000_0000_0000_0000_0254), 128),
    (v6(0xfd00_00c1_0000_0000_0000_0000_a9fe_a9fe), 128),
    (v6(0xfd00_0042_0000_0000_0000_0000_0000_0042), 128),
    (v4([100, 100, 100, 200]), 32),
    (v4([168, 63, 129, 16]), 32),
    (v4([192, 0, 0, 192]), 32),
];

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
}

const fn v6(bits: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(bits))
}

/// Whether no download may use the address.
fn is_refused(address: IpAddr) -> bool {
    let address = embedded(address);
    let is_link_local = match address {
        // RFC 3927.
        IpAddr::V4(address) => address.is_link_local(),
        // RFC 4291, 2.5.6.
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    is_link_local
        || METADATA
            .iter()
            .any(|(network, length)| is_in(address, *network, *length))
}

/// The IPv4 address in an IPv6 address: mapped (RFC 4291, 2.5.5.2), compatible (2.5.5.1), translated by SIIT (RFC 2765, 2.1), of NAT64 (RFC
/// 6052, and RFC 8215 with the address at the end) or of 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let v4 = match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some([high, low]),
        _ => None,
    };
    v4.map_or(address, |[high, low]| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::from([a, b, c, d])
    })
}

fn is_in(address: IpAddr, network: IpAddr, length: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differs = address.to_bits() ^ network.to_bits();
            differs.leading_zeros() >= length
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differs = address.to_bits() ^ network.to_bits();
            differs.leading_zeros() >= length
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Checks the address in a URL. A name is checked when it is resolved.
///
/// # Errors
/// When no download may use the address.
pub fn check_url(url: &Url) -> Result<(), LinkLocal> {
    // The URL's parser has brought every notation of an IPv4 address into the usual one (WHATWG URL Standard, *IPv4 parser*).
    let host = url.host_str().unwrap_or_default();
    let plain = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match plain.unwrap_or(host).parse() {
        Ok(address) if is_refused(address) => Err(LinkLocal {
            host: host.to_owned(),
            address,
        }),
        // A name, or an address elsewhere.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The resolver of the HTTP client.
#[derive(Clone, Default)]
pub(crate) struct CheckedResolver {
    resolver: Resolver,
    /// Whether link-local addresses are allowed.
    allow_link_local: bool,
}

impl CheckedResolver {
    pub(crate) fn new(allow_link_local: bool) -> Self {
        Self {
            allow_link_local,
            ..Self::default()
        }
    }

    fn check(&self, name: &str, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, LinkLocal> {
        if self.allow_link_local {
            return Ok(found);
        }
        let (refused, allowed): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|address| is_refused(*address));
        match refused.first() {
            Some(address) if allowed.is_empty() => Err(LinkLocal {
                host: name.to_owned(),
                address: *address,
            }),
            Some(_) | None => Ok(allowed),
        }
    }
}

impl reqwest::dns::Resolve for CheckedResolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let checked = self.clone();
        Box::pin(async move {
            let found: Result<_, dns::Error> = checked.resolver.addresses(name.as_str()).await;
            let found = checked.check(name.as_str(), found?)?;
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::the_first("169.254.0.0", true)]
    #[case::the_metadata_service_of_most_clouds("169.254.169.254", true)]
    #[case::the_last("169.254.255.255", true)]
    #[case::the_next("169.255.0.0", false)]
    #[case::ipv6("fe80::1", true)]
    #[case::ipv6_at_the_end("febf:ffff::1", true)]
    #[case::ipv6_behind_the_end("fec0::1", false)]
    #[case::mapped("::ffff:169.254.169.254", true)]
    #[case::compatible("::169.254.169.254", true)]
    #[case::nat64("64:ff9b::a9fe:a9fe", true)]
    #[case::nat64_of_one_network("64:ff9b:1::a9fe:a9fe", true)]
    #[case::nat64_of_one_network_with_more_bits("64:ff9b:1:fffe:0:1:a9fe:a9fe", true)]
    #[case::nat64_to_a_public_address("64:ff9b:1::8c52:7904", false)]
    #[case::translated("::ffff:0:a9fe:a9fe", true)]
    #[case::translated_to_a_public_address("::ffff:0:8c52:7904", false)]
    #[case::six_to_four("2002:a9fe:a9fe::1", true)]
    #[case::aws("fd00:ec2::254", true)]
    #[case::aws_of_pods("fd00:ec2::23", true)]
    #[case::google("fd20:ce::254", true)]
    #[case::alibaba("100.100.100.200", true)]
    #[case::alibaba_mapped("::ffff:100.100.100.200", true)]
    #[case::azure("168.63.129.16", true)]
    #[case::loopback("127.0.0.1", false)]
    #[case::loopback_of_ipv6("::1", false)]
    #[case::private("10.0.0.1", false)]
    #[case::unique_local("fd00:ec3::254", false)]
    #[case::public("140.82.121.4", false)]
    #[case::public_of_ipv6("2606:50c0:8000::153", false)]
    fn link_local_and_metadata_addresses_are_refused(#[case] address: &str, #[case] refused: bool) {
        assert_eq!(is_refused(address.parse().unwrap()), refused);
    }

    #[rstest]
    #[case::plain("http://169.254.169.254/latest", true)]
    #[case::as_a_number("http://2852039166/latest", true)]
    #[case::in_hexadecimal("http://0xa9.0xfe.0xa9.0xfe/", true)]
    #[case::in_octal("http://0251.0376.0251.0376/", true)]
    #[case::with_two_parts("http://169.16689662/", true)]
    #[case::with_a_final_dot("http://169.254.169.254./", true)]
    #[case::in_brackets("https://[fe80::1]:8443/", true)]
    #[case::mapped("http://[::ffff:a9fe:a9fe]/", true)]
    #[case::translated("http://[::ffff:0:a9fe:a9fe]/", true)]
    #[case::a_user_that_looks_like_it("http://169.254.169.254@example.org/", false)]
    #[case::a_name("http://169.254.169.254.example.org/", false)]
    fn an_address_in_a_url_is_refused_in_any_notation(
        #[case] location: &str,
        #[case] refused: bool,
    ) {
        let url = Url::parse(location).unwrap();
        assert_eq!(check_url(&url).is_err(), refused);
    }

    #[test]
    fn a_name_is_refused_if_no_other_address_is_left() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let resolver = CheckedResolver::default();
        let both = addresses(&["fe80::1", "10.0.0.1"]);
        let found = resolver.check("a.test", both).unwrap();
        assert_eq!(found, addresses(&["10.0.0.1"]));
        let metadata = addresses(&["169.254.169.254"]);
        let error = resolver.check("a.test", metadata.clone()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("a.test is at 169.254.169.254")
        );
        let allowed = CheckedResolver::new(true);
        assert_eq!(allowed.check("a.test", metadata.clone()), Ok(metadata));
    }
}
