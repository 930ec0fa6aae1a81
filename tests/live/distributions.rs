//! Distributions that make containerd's configuration from other files, and restart it in their own way.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use farrier::handoff::{Outcome, ProvisionReport};
use rstest::rstest;

use crate::containerd::programs;
use crate::node::{Node, on_each};
use crate::trace::follow;

/// A k3s under `OpenRC`, which renders its template at each start. It looks for shims, as k3s does (`pkg/agent/containerd/runtimes.go`), and
/// knows of the actions of a template those that Farrier writes and the base.
pub const K3S: &str = r#"name=k3s folder=/var/lib/rancher/k3s/agent/etc/containerd
program=/var/lib/rancher/k3s/data/0/bin/containerd config=$folder/config.toml
options="--address /run/k3s/containerd/containerd.sock"
render() {
    plugin="'io.containerd.cri.v1.runtime'" found=' '
    grep -q '^version = 2' /srv/base && plugin="'io.containerd.grpc.v1.cri'"
    cp /srv/base /run/base
    for shim in spin-v2 slight-v1 wws-v1; do
        for path in /opt/kwasm/bin/containerd-shim-$shim /usr/local/bin/containerd-shim-$shim; do
            [ -x $path ] || continue
            handler=${shim%-*} found="$found${shim%-*} " table="plugins.$plugin.containerd.runtimes.'${shim%-*}'"
            printf '[%s]\n  runtime_type = "io.containerd.%s.v2"\n[%s.options]\n  BinaryName = "%s"\n' $table $handler $table $path >>/run/base
            break
        done
    done
    cp /run/base $config
    for template in $folder/config.toml.tmpl $folder/config-v3.toml.tmpl; do
        [ -e $template ] || continue
        sed -e '/{{ template "base" . }}/{r /run/base' -e 'd}' $template >$config
        for handler in $found; do
            sed -i "/^{{ if not (index .ExtraRuntimes \"$handler\")/,/^{{ end }}\$/d" $config
        done
        sed -i -e '/^{{ if not (index .ExtraRuntimes /d' -e '/^{{ end }}$/d' $config
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

/// Reads its arguments and renders its template at each start.
const MICROK8S: &str = r"name=snap.microk8s.daemon-containerd program=/snap/microk8s/7394/bin/containerd
args=/var/snap/microk8s/current/args config=$args/containerd.toml options=$(cat $args/containerd)
render() { . $args/containerd-env; sed s/\${SNAPSHOTTER}/$SNAPSHOTTER/ $args/containerd-template.toml >$config; }
";

pub const MICROK8S_ARGS: &str = "/var/snap/microk8s/current/args";

/// Restarts containerd some time after a snippet was created, changed or removed. As for k0s (inotify(7)), a snippet that is removed and
/// created again counts as changed, even with the same bytes.
pub const WATCHER: &str = "seen() { stat -c '%i %z' /etc/k0s/containerd.d; }
last=$(seen)
while sleep 0.05; do
    now=$(seen)
    [ \"$now\" = \"$last\" ] || { sleep 0.3; last=$(seen); /sbin/rc-service k0s restart; }
done";

pub const BASE_2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n";
pub const BASE_3: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n";

/// A node of that kind without running processes.
pub fn node(release: usize, kind: &str, program: &str, base: &str) -> Node {
    let node = Node::stopped(&programs()[release], &[]);
    node.write("/sbin/kind", kind.as_bytes(), 0o644);
    node.write("/srv/base", base.as_bytes(), 0o644);
    let stock = node.path("/usr/local/bin/containerd");
    node.copy(&stock, program);
    fs::remove_file(stock).unwrap();
    node
}

/// Installs, checks that a second install changes nothing, and uninstalls.
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
    let changed = [
        "install",
        "--shim=a=file:///srv/a,option.SystemdCgroup=true,handler=a,alias=b",
    ];
    let (status, report) = node.change(&changed);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    let (status, report) = node.change(&["uninstall", "--all"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!(node.tree(), before);
}

pub const K3S_DIRECTORY: &str = "/var/lib/rancher/k3s/agent/etc/containerd";

/// A node of k3s without running processes. `kind` is [`K3S`] or a variant of it.
pub fn k3s(release: usize, kind: &str, base: &str) -> Node {
    with_rancher("k3s", "v1.33.4+k3s1", release, kind, base)
}

/// A node of RKE2, which contains the agent of k3s, without running processes.
pub fn rke2(release: usize, base: &str) -> Node {
    let kind = K3S.replace("rancher/k3s/", "rancher/rke2/");
    let kind = kind.replacen("k3s", "rke2-agent", 1);
    with_rancher("rke2", "v1.33.4+rke2r1", release, &kind, base)
}

fn with_rancher(name: &str, version: &str, release: usize, kind: &str, base: &str) -> Node {
    let directory = format!("/var/lib/rancher/{name}");
    let node = node(
        release,
        kind,
        &format!("{directory}/data/0/bin/containerd"),
        base,
    );
    fs::create_dir_all(node.path(&format!("{directory}/agent/etc/containerd"))).unwrap();
    let program = format!("#!/bin/sh\necho '{name} version {version} (148243c4)'\n");
    node.write(&format!("/usr/local/bin/{name}"), program.as_bytes(), 0o755);
    node
}

#[rstest]
#[case::a_server_of_1_7(1, BASE_2, "k3s", "config.toml.tmpl")]
#[case::an_agent_of_2_1(2, BASE_3, "k3s-agent", "config-v3.toml.tmpl")]
fn the_template_of_a_k3s_without_systemd_is_edited_and_rendered(
    #[case] release: usize,
    #[case] base: &str,
    #[case] service: &str,
    #[case] template: &str,
) {
    let kind = K3S.replacen("k3s", service, 1);
    let node = k3s(release, &kind, base);
    // OpenRC lists the started services.
    node.write(&format!("/run/openrc/started/{service}"), b"", 0o644);
    node.start_service(service);
    comes_and_goes(&node, "k3s", &format!("{K3S_DIRECTORY}/{template}"));
}

/// A node of `MicroK8s` with a running containerd.
pub fn microk8s(release: usize) -> Node {
    let node = node(release, MICROK8S, "/snap/microk8s/7394/bin/containerd", "");
    let template = format!(
        "{BASE_2}[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"${{SNAPSHOTTER}}\"\n"
    );
    for (name, text) in [
        (
            "containerd",
            "--address /var/snap/microk8s/common/run/containerd.sock\n",
        ),
        ("containerd-env", "SNAPSHOTTER=native\n"),
        ("containerd-template.toml", template.as_str()),
    ] {
        node.write(&format!("{MICROK8S_ARGS}/{name}"), text.as_bytes(), 0o644);
    }
    node.start_service("snap.microk8s.daemon-containerd");
    node
}

#[test]
fn the_template_of_microk8s_is_edited_and_rendered() {
    let node = microk8s(1);
    let template = format!("{MICROK8S_ARGS}/containerd-template.toml");
    let text = || fs::read_to_string(node.path(&template)).unwrap();
    let before = text();
    comes_and_goes(&node, "microk8s", &template);
    assert_eq!(text(), before);
}

/// Replaces the script that starts k3s in k3d, as process 1.
const K3D: &str = "/sbin/k3d-entrypoint.sh";
const K3D_SCRIPT: &str = "#!/bin/bash
trap 'exit 0' TERM
rm -f /run/containerd.pid
/sbin/rc-service k3s restart
touch /run/booted
while :; do sleep infinity & wait; done
";

fn assert_remedy(report: &ProvisionReport, words: &str) {
    let remedy = report.remedy.as_deref().unwrap_or_default();
    assert!(remedy.contains(words), "{report:?}");
}

/// Runs a change that ends the node, its own process included, and starts the node again.
fn ends_and_comes_back(node: &mut Node, arguments: &[&str]) {
    let arguments = [arguments, &["--allow-pod-restarts"]].concat();
    let output = node.farrier(&arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{words}");
    node.boot_again(K3D);
    node.await_cri();
}

#[test]
fn a_k3d_that_ends_with_the_change_serves_the_handlers_after_its_restart() {
    let mut node = k3s(2, K3S, BASE_3);
    node.write(K3D, K3D_SCRIPT.as_bytes(), 0o755);
    node.boot_again(K3D);
    node.await_cri();
    let before = node.tree();
    let install = ["install", "--shim=a=file:///srv/a"];

    let (status, report) = node.change(&install);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert_eq!(report.distro.as_deref(), Some("k3d"));
    assert_remedy(&report, "--allow-pod-restarts");
    assert_eq!(node.tree(), before);

    ends_and_comes_back(&mut node, &install);
    let (status, report) = node.change(&install);
    assert_eq!(status, 0, "{report:?}\n{}", node.log());
    // The start of the node was the restart. This run requested no restart, so it needed no permission for one.
    assert_eq!(report.restarts, 0, "{report:?}");
    assert!(report.handlers[0].served, "{report:?}");
    node.assert_healthy();
    let (_, report) = node.change(&install);
    assert_eq!(report.result, Outcome::Unchanged, "{report:?}");

    let uninstall = ["uninstall", "--all"];
    ends_and_comes_back(&mut node, &uninstall);
    let (status, report) = node.change(&uninstall);
    assert_eq!((status, report.restarts), (0, 0), "{report:?}");
    assert_eq!(node.tree(), before);
}

/// If a restart needs a process to be started or signalled and the pod can't do so, the change is refused before a file is written.
fn refuses_a_pod(node: &Node) {
    let before = node.tree();
    for accepted in [&[][..], &["--allow-pod-restarts"]] {
        let install = ["install", "--shim=a=file:///srv/a"];
        let (status, report) = node.change_from_a_pod(&[&install[..], accepted].concat());
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert_remedy(&report, "job.hostPID");
        assert_eq!(node.tree(), before);
    }
}

#[test]
fn a_pod_without_host_pid_is_refused_under_openrc() {
    on_each(|release| refuses_a_pod(&Node::new(release)));
}

#[test]
fn a_pod_without_host_pid_is_refused_on_k3d() {
    let mut node = k3s(2, K3S, BASE_3);
    node.write(K3D, K3D_SCRIPT.as_bytes(), 0o755);
    node.boot_again(K3D);
    node.await_cri();
    refuses_a_pod(&node);
}

#[rstest]
#[case::kind("--provider-id=kind://docker/kind/n1", "kind")]
#[case::doks("--node-labels=doks.digitalocean.com/node-pool=a", "doks")]
#[case::kubeadm("--config=/var/lib/kubelet/config.yaml", "systemd")]
fn a_managed_node_is_detected_by_its_running_kubelet(
    #[case] argument: &str,
    #[case] expected: &str,
) {
    let node = Node::new(&programs()[1]);
    run_kubelet(&node, argument);
    let (status, report) = node.change(&["install", "--shim=a=file:///srv/a"]);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    assert_eq!(report.distro.as_deref(), Some(expected));
}

/// Starts a program in place of a kubelet with this argument.
fn run_kubelet(node: &Node, argument: &str) {
    node.copy("/bin/bash".as_ref(), "/run/kubelet");
    node.leave(&format!(
        "exec /run/kubelet -c 'touch /run/kubelet.runs; sleep infinity & wait' {argument}"
    ));
    let since = Instant::now();
    while !node.path("/run/kubelet.runs").exists() {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
}

#[rstest]
#[case::by_a_flag("--container-runtime-endpoint=unix:///run/other.sock")]
#[case::by_its_configuration("--config=/etc/kubelet.yaml")]
fn a_containerd_that_the_kubelet_does_not_use_is_not_changed(#[case] argument: &str) {
    let node = Node::new(&programs()[1]);
    let configuration = b"containerRuntimeEndpoint: unix:///run/other.sock\n";
    node.write("/etc/kubelet.yaml", configuration, 0o644);
    run_kubelet(&node, argument);
    let before = node.config();
    let install = ["install", "--shim=a=file:///srv/a"];
    let (status, report) = node.change(&install);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    let reason = report.reason.unwrap();
    assert!(
        reason.contains("failed to determine the container runtime of the kubelet"),
        "{reason}"
    );
    assert_eq!(node.config(), before);
    // As a proxy does, containerd answers at another socket than its own.
    let socket = node.path("/run/containerd/containerd.sock");
    fs::hard_link(socket, node.path("/run/other.sock")).unwrap();
    let (status, report) = node.change(&install);
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
}

/// If a name were enough, each of these programs would count instead of the node's containerd, by its path or by the kubelet's endpoint.
#[test]
fn programs_of_a_user_named_containerd_and_kubelet_are_ignored() {
    on_each(|release| {
        let node = Node::new(release);
        let home = node.path("/home/u");
        for name in ["rancher/k3s/containerd", "kubelet"] {
            node.copy("/bin/bash".as_ref(), &format!("/home/u/{name}"));
        }
        std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
        for (name, option) in [
            ("rancher/k3s/containerd", "--address=/home/u/socket"),
            (
                "kubelet",
                "--container-runtime-endpoint=unix:///home/u/socket",
            ),
        ] {
            let runs = format!("/home/u/{}.runs", name.rsplit('/').next().unwrap());
            node.leave(&format!(
            "exec setpriv --reuid 1000 --regid 1000 --clear-groups /home/u/{name} -c 'touch {runs}; sleep infinity & wait' {option}"
        ));
            let since = Instant::now();
            while !node.path(&runs).exists() {
                assert!(since.elapsed() < Duration::from_secs(10));
                std::thread::yield_now();
            }
        }
        comes_and_goes(&node, "systemd", "/opt/farrier/bin/containerd-shim-a");
    });
}

/// A node of k0s with a running containerd.
pub fn k0s(release: usize, base: &str, version: &str) -> Node {
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
    node
}

#[rstest]
#[case::of_1_7(1, BASE_2, "v1.35.1+k0s.0")]
#[case::of_2_1(2, BASE_3, "v1.36.0+k0s.0")]
fn a_snippet_of_k0s_is_loaded_by_its_supervisor(
    #[case] release: usize,
    #[case] base: &str,
    #[case] version: &str,
) {
    let node = k0s(release, base, version);
    node.leave(WATCHER);
    comes_and_goes(&node, "k0s", "/etc/k0s/containerd.d/farrier.toml");
}

/// k0s would not start with the snippet, and the containerd that runs has not loaded it.
#[rstest]
#[case::of_1_6(0, BASE_2, "v1.35.1+k0s.0")]
#[case::of_1_7(1, BASE_2, "v1.35.1+k0s.0")]
#[case::of_2_1(2, BASE_3, "v1.36.0+k0s.0")]
#[case::of_2_4(3, BASE_3, "v1.36.0+k0s.0")]
fn a_snippet_that_k0s_can_not_read_is_refused_by_its_name_before_any_write(
    #[case] release: usize,
    #[case] base: &str,
    #[case] version: &str,
) {
    let node = k0s(release, base, version);
    let broken = "/etc/k0s/containerd.d/20-broken.toml";
    node.write(broken, b"this is not toml = =\n", 0o644);
    let before = (node.tree(), node.process());
    let install = ["install", "--shim=a=file:///srv/a"];
    for more in [&["--dry-run"][..], &["--accept-pending-changes"], &[]] {
        let arguments = [&install[..], more].concat();
        for (status, report) in [node.change(&arguments), node.change_from_a_pod(&arguments)] {
            assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
            let reason = report.reason.unwrap();
            let sentence = format!("failed to parse {broken}: line 1");
            assert!(reason.starts_with(&sentence), "{reason}");
            assert!(node.is_found(&reason), "{reason}");
            assert_eq!((node.tree(), node.process()), before);
        }
    }
    fs::remove_file(node.path(broken)).unwrap();
    // k0s waits for more changes before it restarts containerd.
    let (status, report) = node.change(&install);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert_remedy(&report, "until k0s has restarted containerd");
    node.start_service("k0s");
    node.leave(WATCHER);
    comes_and_goes(&node, "k0s", "/etc/k0s/containerd.d/farrier.toml");
}

/// Starts containerd after its end, and watches no files.
const SUPERVISOR: &str = "while sleep 0.05; do
    kill -0 $(cat /run/containerd.pid) 2>/dev/null || /sbin/rc-service k0s restart
done";

#[test]
fn a_containerd_of_k0s_that_did_not_load_its_snippet_is_restarted() {
    let node = k0s(2, BASE_3, "v1.36.0+k0s.0");
    let install = ["install", "--shim=a=file:///srv/a"];
    // The state before the first start. This containerd was started in another way.
    let (status, report) = node.change(&[&install[..], &["--offline"]].concat());
    assert_eq!((status, report.result), (0, Outcome::Applied), "{report:?}");
    let tree = node.tree();
    let (status, report) = node.change_from_a_pod(&install);
    assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
    assert_remedy(&report, "job.hostPID");
    assert_eq!(node.tree(), tree);

    node.leave(SUPERVISOR);
    let process = node.process();
    let (status, report) = node.change(&install);
    assert_eq!((status, report.restarts), (0, 1), "{report:?}");
    assert!(report.handlers[0].served, "{report:?}");
    assert_ne!(node.process(), process);
    node.assert_healthy();
}

/// The restart may begin with the write, and may end the writing process.
#[test]
fn a_restart_that_a_write_triggers_is_in_the_journal_before_the_write() {
    let node = k0s(2, BASE_3, "v1.36.0+k0s.0");
    node.leave(WATCHER);
    let command = node.command(&["install", "--shim=a=file:///srv/a"]);
    let snippet = node.path("/etc/k0s/containerd.d/farrier.toml");
    let ended = follow(&command, Stdio::null(), |_, _| {
        if snippet.exists() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(None)
    });
    assert_eq!(ended, None, "nothing was written");
    let journal = fs::read_to_string(node.path("/var/lib/farrier/journal.json")).unwrap();
    assert!(journal.contains("\"restarting\":true"), "{journal}");
    // The supervisor may still be restarting containerd, and a node without a running containerd is not changed.
    let since = Instant::now();
    while let (status @ 1.., report) = node.change(&["install", "--shim=a=file:///srv/a"]) {
        assert_eq!((status, report.result), (3, Outcome::Refused), "{report:?}");
        assert!(since.elapsed() < Duration::from_mins(1), "{report:?}");
    }
    node.assert_healthy();
}

#[test]
fn files_that_another_distribution_left_do_not_change_the_detected_distribution() {
    let node = Node::new(&programs()[1]);
    let template = "/var/snap/microk8s/current/args/containerd-template.toml";
    let rendered = format!("{K3S_DIRECTORY}/config.toml");
    for path in [
        &rendered,
        "/etc/rancher/k3s/config.yaml",
        "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        template,
        "/etc/k0s/containerd.toml",
        "/var/lib/k0s/bin/containerd",
        "/usr/local/bin/k3s",
        "/usr/local/bin/k0s",
        "/run/crio/crio.sock",
        "/run/openrc/started/k3s",
        "/kind/images/a",
    ] {
        node.write(path, BASE_3.as_bytes(), 0o755);
    }
    comes_and_goes(&node, "systemd", "/opt/farrier/bin/containerd-shim-a");
}
