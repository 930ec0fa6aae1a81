//! Resolves host names with the real program, in mounts and a network of its own: with `/etc/hosts` and DNS, and never with the modules of
//! `/etc/nsswitch.conf`, which crash a static program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use super::fetch::{Routes, answer, ok, shim};
use super::support::program;
use super::trace::follow;
use farrier::handoff::{FetchResult, Owner, ProvisionRequest, Sha256Digest};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The file of systemd's packages, with every module that a node may have.
const NSSWITCH: &str =
    "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n";
const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.4 four.test short\n::1 six.test\n";
const RESOLV_CONF: &str = "nameserver 127.0.0.53\nsearch nowhere.test corp.test\noptions ndots:1 timeout:2 option-of-2030:x\n";

/// The addresses of the servers. Each server has the binary of its number.
const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Serves a binary at an address, until the test ends.
fn serve(address: IpAddr, seed: u8) {
    let listener = TcpListener::bind((address, 80)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &Routes::from([("/a", ok(&program(seed)))]));
        }
    });
}

/// A name server (RFC 1035) with the zone `records`. It sends each queried name on `asked`.
fn serve_names(
    address: Ipv4Addr,
    records: BTreeMap<&'static str, Vec<IpAddr>>,
    asked: Sender<String>,
) {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            let query = &query[..length];
            // The question begins behind twelve bytes: labels with their lengths, a zero, the type, the class.
            let (mut name, mut at) = (Vec::new(), 12);
            while query[at] != 0 {
                let end = at + 1 + usize::from(query[at]);
                name.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
                at = end;
            }
            let name = name.join(".");
            let kind = query[at + 2];
            let addresses = records.get(name.as_str());
            let answers = addresses.into_iter().flatten().filter_map(|it| match it {
                IpAddr::V4(address) if kind == 1 => Some(address.octets().to_vec()),
                IpAddr::V6(address) if kind == 28 => Some(address.octets().to_vec()),
                _ => None,
            });
            let answers: Vec<Vec<u8>> = answers.collect();
            // A response, with recursion, and 3 (no such name) or 0.
            let code = if addresses.is_none() { 3 } else { 0 };
            let count = u8::try_from(answers.len()).unwrap();
            let mut response = query[..2].to_vec();
            response.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
            response.extend(&query[12..at + 5]);
            for address in answers {
                // The name of the question, the type, the class, a minute, the length.
                let length = u8::try_from(address.len()).unwrap();
                response.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, length]);
                response.extend(address);
            }
            let _ = asked.send(name);
            socket.send_to(&response, client).unwrap();
        }
    });
}

/// Gives this thread and its processes an `/etc` with these files, and a network with the loopback interface alone.
fn enter(files: &[(&str, &str)]) {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none = None::<&str>;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(none, "/", none, private, none).unwrap();
    mount(Some("etc"), "/etc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    for (name, text) in files {
        std::fs::write(Path::new("/etc").join(name), text).unwrap();
    }
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
}

/// Runs `work` on a new thread. The namespaces of the thread end with the thread.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Runs the program, which fetches from the named hosts. Returns the result of each fetch, and the files that the program tried to open.
fn fetch(hosts: &[&str]) -> (BTreeMap<String, FetchResult>, BTreeSet<String>) {
    let directory = tempfile::tempdir().unwrap();
    let (request, out) = (
        directory.path().join("request"),
        directory.path().join("out"),
    );
    let shims = hosts.iter().map(|host| {
        let mut shim = shim(format!("http://{host}/a"));
        shim.name = host.replace('.', "-");
        shim.handlers = vec![shim.name.clone()];
        shim.sha256 = None;
        shim
    });
    let wanted = ProvisionRequest::new(Owner::Cluster, String::new(), shims.collect(), vec![]);
    std::fs::write(&request, wanted.to_json()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_farrier"));
    command.arg("fetch").arg("--request").arg(&request);
    command.arg("--out").arg(&out);
    for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
    let mut opened = BTreeSet::new();
    let status = follow(&command, Stdio::null(), |program, call| {
        let path = match call.orig_rax.cast_signed() {
            libc::SYS_open => call.rdi,
            libc::SYS_openat | libc::SYS_openat2 => call.rsi,
            _ => return ControlFlow::Continue(None),
        };
        let mut bytes = [0; 256];
        let memory = std::fs::File::open(format!("/proc/{program}/mem")).unwrap();
        let read = memory.read_at(&mut bytes, path).unwrap();
        let path = bytes[..read].split(|byte| *byte == 0).next().unwrap();
        opened.insert(String::from_utf8_lossy(path).into_owned());
        ControlFlow::Continue(None)
    });
    assert_eq!(status, Some(0));
    let results = hosts.iter().map(|host| {
        let path = out.join(host.replace('.', "-") + ".json");
        let result = std::fs::read_to_string(path).unwrap();
        ((*host).to_owned(), serde_json::from_str(&result).unwrap())
    });
    (results.collect(), opened)
}

#[test]
fn names_are_resolved_by_hosts_file_and_dns_without_nss_modules() {
    apart(|| {
        enter(&[
            ("nsswitch.conf", NSSWITCH),
            ("hosts", HOSTS),
            ("resolv.conf", RESOLV_CONF),
        ]);
        serve(FOUR, 4);
        serve(SIX, 6);
        let nobody = IpAddr::V6("2001:db8::1".parse().unwrap());
        let (asked, heard) = channel();
        let zone = BTreeMap::from([
            ("mirror.corp.test", vec![FOUR]),
            ("six.corp.test", vec![SIX]),
            ("both.test", vec![nobody, FOUR]),
        ]);
        serve_names(Ipv4Addr::new(127, 0, 0, 53), zone, asked);
        let expected = [
            ("four.test", Some(4)),
            ("six.test", Some(6)),
            ("short", Some(4)),
            // By the second domain of the search list.
            ("mirror", Some(4)),
            // Asked without a search domain first, because the name has a dot.
            ("six.corp.test", Some(6)),
            // By the family that can be reached.
            ("both.test", Some(4)),
            ("absent.test", None),
        ];
        let (results, opened) = fetch(&expected.map(|(host, _)| host));
        for (host, seed) in expected {
            let result = &results[host];
            let sha256 = seed.map(|seed| Sha256Digest::of(&program(seed)));
            assert_eq!(result.binary_sha256, sha256, "{host}: {result:?}");
        }
        for needed in ["/etc/hosts", "/etc/resolv.conf"] {
            assert!(opened.contains(needed), "{opened:?}");
        }
        let modules = opened.iter().filter(|path| {
            path.contains("nsswitch.conf") || path.contains("libnss") || path.contains("nscd")
        });
        assert_eq!(modules.collect::<Vec<_>>(), Vec::<&String>::new());

        let reason = results["absent.test"].reason.as_deref().unwrap();
        assert!(reason.contains("no such host"), "{reason}");

        let asked: BTreeSet<String> = heard.try_iter().collect();
        for listed in ["four", "six.test", "short"] {
            let is_listed = |name: &String| name.starts_with(listed);
            assert!(!asked.iter().any(is_listed), "{asked:?}");
        }
        assert!(asked.contains("mirror.nowhere.test"), "{asked:?}");
    });
}

#[test]
fn without_a_resolv_conf_the_local_name_server_is_asked() {
    apart(|| {
        enter(&[("hosts", HOSTS)]);
        serve(FOUR, 4);
        let (asked, _heard) = channel();
        let zone = BTreeMap::from([("mirror.test", vec![FOUR])]);
        serve_names(Ipv4Addr::LOCALHOST, zone, asked);
        let (results, _) = fetch(&["four.test", "mirror.test"]);
        for (host, result) in results {
            assert_eq!(result.reason, None, "{host}");
        }
    });
}
