//! Distributions that make containerd's configuration from other files, and restart it in their own way.

use std::fs;

use farrier::handoff::Outcome;
use rstest::rstest;

use crate::node::{Node, releases};

/// A k3s under `OpenRC`, which renders its template at each start.
pub const K3S: &str = r#"name=k3s folder=/var/lib/rancher/k3s/agent/etc/containerd
program=/var/lib/rancher/k3s/data/0/bin/containerd config=$folder/config.toml
options="--address /run/k3s/containerd/containerd.sock"
render() {
    cp /srv/base $config
    for template in $folder/config.toml.tmpl $folder/config-v3.toml.tmpl; do
        [ -e $template ] && sed -e '/{{ template "base" . }}/{r /srv/base' -e 'd}' $template >$config
    done
}
"#;

const K0S: &str = r"name=k0s program=/var/lib/k0s/bin/containerd config=/etc/k0s/containerd.toml
options='--address /run/k0s/containerd.sock'
render() {
    mkdir -p /run/k0s
    { cat /srv/base; cat /etc/k0s/containerd.d/*.toml | grep -v ^version; } >/run/k0s/containerd-cri.toml 2>/dev/null
}
";

/// Restarts containerd when a snippet comes, changes or goes, and some time has passed.
const WATCHER: &str = "seen() { cat /etc/k0s/containerd.d/* 2>/dev/null | md5sum; }
last=$(seen)
while sleep 0.05; do
    now=$(seen)
    [ \"$now\" = \"$last\" ] || { sleep 0.3; last=$(seen); /sbin/rc-service k0s restart; }
done";

pub const BASE_2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
pub const BASE_3: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n";

/// A node of that kind, on which nothing runs yet.
pub fn node(release: usize, kind: &str, program: &str, base: &str) -> Node {
    let node = Node::stopped(&releases()[release], &[]);
    node.write("/sbin/kind", kind.as_bytes(), 0o644);
    node.write("/srv/base", base.as_bytes(), 0o644);
    node.write(program, b"", 0o755);
    let stock = node.path("/usr/local/bin/containerd");
    fs::copy(&stock, node.path(program)).unwrap();
    fs::remove_file(stock).unwrap();
    node
}

/// Installs, finds nothing to do, and takes everything back.
fn comes_and_goes(node: &Node, word: &str, edited: &str) {
    let before = node.tree();
    let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
    assert_eq!(
        (status, report.result),
        (0, Outcome::Applied),
        "{report:?}\n{}",
        node.log()
    );
    assert_eq!((report.distro.as_deref(), report.restarts), (Some(word), 1));
    assert!(node.path(edited).exists());
    node.assert_healthy();
    let (_, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");
    let (status, report) = node.change(&["uninstall", "--all"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!(node.tree(), before);
}

#[rstest]
#[case::of_1_7(1, BASE_2, "config.toml.tmpl")]
#[case::of_2_1(2, BASE_3, "config-v3.toml.tmpl")]
fn the_template_of_a_k3s_without_systemd_is_edited_and_rendered(
    #[case] release: usize,
    #[case] base: &str,
    #[case] template: &str,
) {
    let folder = "/var/lib/rancher/k3s/agent/etc/containerd";
    let node = node(
        release,
        K3S,
        "/var/lib/rancher/k3s/data/0/bin/containerd",
        base,
    );
    fs::create_dir_all(node.path(folder)).unwrap();
    node.write(
        "/usr/local/bin/k3s",
        b"#!/bin/sh\necho 'k3s version v1.33.4+k3s1 (148243c4)'\n",
        0o755,
    );
    node.start_service("k3s");
    comes_and_goes(&node, "k3s", &format!("{folder}/{template}"));
}

#[rstest]
#[case::of_1_7(1, BASE_2, "v1.35.1+k0s.0")]
#[case::of_2_1(2, BASE_3, "v1.36.0+k0s.0")]
fn a_snippet_of_k0s_is_taken_up_by_its_own_supervisor(
    #[case] release: usize,
    #[case] base: &str,
    #[case] version: &str,
) {
    let node = node(release, K0S, "/var/lib/k0s/bin/containerd", base);
    let version_of_file = &base[..base.find('\n').unwrap()];
    let root = format!(
        "# k0s_managed=true\n{version_of_file}\nimports = [\"/run/k0s/containerd-cri.toml\"]\n"
    );
    node.write("/etc/k0s/containerd.toml", root.as_bytes(), 0o644);
    fs::create_dir_all(node.path("/etc/k0s/containerd.d")).unwrap();
    node.write(
        "/usr/local/bin/k0s",
        format!("#!/bin/sh\necho {version}\n").as_bytes(),
        0o755,
    );
    node.start_service("k0s");
    node.leave(WATCHER);
    comes_and_goes(&node, "k0s", "/etc/k0s/containerd.d/farrier.toml");
}
