//! Resolves host names without the C library. Imports no other module of Farrier.
//!
//! `getaddrinfo` of glibc loads the modules that `/etc/nsswitch.conf` names, for example `libnss_resolve.so.2`. A static program loads
//! these modules too. The modules are built for the glibc of the host, and crash in a static program with another glibc
//! (rust-lang/rust#100711). Farrier's binary is static, and also runs on hosts.
//!
//! So this module reads `/etc/hosts` and `/etc/resolv.conf`, and `hickory` sends the DNS queries. Other sources of nsswitch.conf, such as
//! mDNS, LDAP or systemd's names of local containers, are not used.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
    ServerOrderingStrategy,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The limits of glibc for `nameserver` lines and options (resolv.conf(5)).
const MAX_SERVERS: usize = 3;
const MAX_NDOTS: usize = 15;
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: usize = 5;
/// Queries per server without the option `attempts` (resolv.conf(5), `RES_DFLRETRY`).
const ATTEMPTS: usize = 2;

/// Time limit for one name, with all servers and all domains of the search list. Two attempts of glibc take 10 s. The HTTP client has 15 s
/// for the name and the connection together, and would then report a failed connection instead of a failed lookup.
const LOOKUP_LIMIT: Duration = Duration::from_secs(12);

/// The reason why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `/etc/hosts` nor a name server has an address for the name.
    #[error("failed to resolve host name {name}: no such host")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The lookup failed, for example because no name server answered.
    #[error("failed to resolve host name {name}: {cause}")]
    Lookup {
        /// The name.
        name: String,
        /// The cause.
        cause: String,
    },
}

/// Resolves names as `hosts: files dns` in nsswitch.conf(5): first with `/etc/hosts`, then with DNS.
#[derive(Clone, Default)]
pub struct Resolver {
    /// The DNS client, and the text of the resolv.conf that configures the client.
    client: Arc<Mutex<Option<(String, TokioResolver)>>>,
}

impl Resolver {
    /// The addresses of a host, the preferred family first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such host, and [`Error::Lookup`] when the lookup failed.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        let hosts = std::fs::read(HOSTS).unwrap_or_default();
        let listed = addresses_in_hosts(&String::from_utf8_lossy(&hosts), name);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let failed = |error: NetError| {
            let name = name.to_owned();
            if error.is_no_records_found() {
                return Error::NotFound { name };
            }
            let cause = match error {
                NetError::Timeout => "no name server answered".to_owned(),
                other => other.to_string(),
            };
            Error::Lookup { name, cause }
        };
        let query = Name::from_ascii(name).map_err(|error| failed(error.into()))?;
        let client = self.client().map_err(failed)?;
        let found = tokio::time::timeout(LOOKUP_LIMIT, client.lookup_ip(query));
        let found = found.await.unwrap_or(Err(NetError::Timeout));
        let found = found.map_err(failed)?;
        let found: Vec<IpAddr> = found.iter().collect();
        if found.is_empty() {
            let name = name.to_owned();
            return Err(Error::NotFound { name });
        }
        Ok(found)
    }

    /// The DNS client for the present resolv.conf. The file changes when the host changes networks.
    fn client(&self) -> Result<TokioResolver, NetError> {
        // Without the file, glibc uses a name server on this host (resolv.conf(5)).
        let text = std::fs::read(RESOLV_CONF).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut client = self
            .client
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((made_of, client)) = &*client
            && *made_of == text
        {
            return Ok(client.clone());
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        let (config, options) = parse(&text, &host.to_string_lossy());
        let made = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()?;
        *client = Some((text, made.clone()));
        Ok(made)
    }
}

/// For the API server.
impl tower::Service<hyper_util::client::legacy::connect::dns::Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: hyper_util::client::legacy::connect::dns::Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.addresses(name.as_str()).await?;
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(found.collect::<Vec<_>>().into_iter())
        })
    }
}

/// The addresses of a name in the text of a hosts(5) file, in the order of the file.
fn addresses_in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let lines = text.lines().filter_map(|line| {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        let is_meant = words.any(|word| word.eq_ignore_ascii_case(name));
        is_meant.then_some(address)
    });
    lines.collect()
}

/// Parses the text of a resolv.conf(5) on the host `host`. As in glibc, an invalid line is ignored, because it may be an option of a newer
/// glibc.
fn parse(text: &str, host: &str) -> (ResolverConfig, ResolverOpts) {
    let mut servers: Vec<IpAddr> = Vec::new();
    let mut search: Option<Vec<Name>> = None;
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    // As in glibc, the first server gets each query, and another server gets it only if the servers before do not answer.
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.num_concurrent_reqs = 1;
    options.edns0 = false;
    // The HTTP client tries the other address family if the first one gives no connection (RFC 8305).
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    let (mut attempts, mut over_tcp) = (ATTEMPTS, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // The DNS client does not support a link-local address with its interface (`fe80::1%eth0`).
                servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
            }
            Some("domain") => search = Some(words.take(1).filter_map(domain).collect()),
            Some("search") => search = Some(words.filter_map(domain).collect()),
            Some("options") => {
                for word in words {
                    match word.split_once(':').unwrap_or((word, "")) {
                        ("ndots", value) => {
                            options.ndots = value.parse().map_or(options.ndots, at_most(MAX_NDOTS));
                        }
                        ("timeout", value) => {
                            let limit = value.parse().map(at_most(MAX_TIMEOUT));
                            options.timeout = limit.map_or(options.timeout, Duration::from_secs);
                        }
                        ("attempts", value) => {
                            let limit = at_most(MAX_ATTEMPTS);
                            attempts = value.parse().map_or(attempts, limit);
                        }
                        ("edns0", _) => options.edns0 = true,
                        ("use-vc" | "usevc" | "tcp", _) => over_tcp = true,
                        ("no-aaaa", _) => options.ip_strategy = LookupIpStrategy::Ipv4Only,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // The client counts the attempts after the first one.
    options.attempts = attempts.saturating_sub(1);
    servers.truncate(MAX_SERVERS);
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    let server = if over_tcp {
        NameServerConfig::tcp
    } else {
        NameServerConfig::udp_and_tcp
    };
    let servers = servers.into_iter().map(server).collect();
    // Without `domain` and `search`, the search list is the part of the host's name after the first dot.
    let search = search.unwrap_or_else(|| {
        let own = host.split_once('.').map(|(_, own)| own);
        own.and_then(domain).into_iter().collect()
    });
    (ResolverConfig::from_parts(None, search, servers), options)
}

fn at_most<T: Ord + Copy>(limit: T) -> impl Fn(T) -> T {
    move |value| value.min(limit)
}

/// A domain of a search list; `None` for `.`, because the client always queries the name itself too.
fn domain(word: &str) -> Option<Name> {
    let mut name = Name::from_ascii(word).ok().filter(|name| !name.is_root())?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const FILE: &str = "# 10.0.0.9 mirror\n\
        10.0.0.1\tmirror.corp Mirror # and not other\n\
        fd00::1 mirror\n\
        fe80::1%lo mirror\n\
        no-address mirror\n\
        10.0.0.2 alone";

    #[rstest]
    #[case::both_families_and_any_case("MIRROR", &["10.0.0.1", "fd00::1"])]
    #[case::a_final_dot("mirror.corp.", &["10.0.0.1"])]
    #[case::the_last_line_without_an_end("alone", &["10.0.0.2"])]
    #[case::a_comment("other", &[])]
    #[case::an_address_is_no_name("10.0.0.1", &[])]
    fn a_hosts_file_gives_the_addresses_of_a_name(#[case] name: &str, #[case] expected: &[&str]) {
        let found = addresses_in_hosts(FILE, name);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    fn servers(config: &ResolverConfig) -> Vec<String> {
        let servers = config.name_servers().iter();
        servers.map(|server| server.ip.to_string()).collect()
    }

    fn search(config: &ResolverConfig) -> Vec<String> {
        config.search().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_resolv_conf_is_read_as_glibc_reads_it() {
        let text = "; comment\nsearch old.example\nnameserver 10.0.0.10 # first\nnameserver fd00::53\nnameserver fe80::1%eth0\n\
            nameserver nonsense\nsearch svc.cluster.local corp.example .\n\
            options ndots:5 timeout:2 attempts:9 edns0 trust-ad option-of-2030 ndots:many\nunknown line\n";
        let (config, options) = parse(text, "node.example.org");
        assert_eq!(servers(&config), ["10.0.0.10", "fd00::53"]);
        assert_eq!(search(&config), ["svc.cluster.local.", "corp.example."]);
        assert_eq!((options.ndots, options.attempts), (5, MAX_ATTEMPTS - 1));
        assert_eq!(options.timeout, Duration::from_secs(2));
        assert!(options.edns0);
    }

    #[test]
    fn without_a_resolv_conf_the_local_name_server_and_the_domain_of_the_host_are_used() {
        let (config, options) = parse("", "node.example.org");
        assert_eq!(servers(&config), ["127.0.0.1"]);
        assert_eq!(search(&config), ["example.org."]);
        assert_eq!((options.ndots, options.attempts), (1, 1));
        assert_eq!(
            search(&parse("domain corp\n", "node.example.org").0),
            ["corp."]
        );
        assert!(search(&parse("", "node").0).is_empty());
    }

    #[test]
    fn at_most_three_name_servers_are_asked_and_in_their_order() {
        let text = (1..9)
            .map(|n| format!("nameserver 10.0.0.{n}"))
            .collect::<Vec<_>>()
            .join("\n");
        let (config, options) = parse(&text, "node");
        assert_eq!(servers(&config), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(options.num_concurrent_reqs, 1);
    }
}
