//! Tests of the evidence for a process, with a host for each way of installing Kubernetes and each position of an attacker.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rstest::rstest;

use super::*;
use crate::handoff::Problem;

/// The PID of the process under test.
const PID: u32 = 812;

const SYSTEMD: &[&str] = &["/run/systemd/system"];
const OPENRC: &[&str] = &["/run/openrc"];
const NEITHER: &[&str] = &[];

/// A host in a temporary directory.
pub(in crate::installer) struct Tree {
    directory: tempfile::TempDir,
}

/// A process of a host.
#[derive(Clone)]
pub(in crate::installer) struct Given<'a> {
    pub comm: &'a str,
    pub uids: &'a str,
    pub parent: u32,
    pub cgroup: &'a str,
    pub mounts: &'a str,
    pub program: &'a str,
    pub arguments: &'a str,
    pub environment: &'a str,
}

/// containerd as the unit of a package starts it.
pub(in crate::installer) const CONTAINERD: Given<'_> = Given {
    comm: "containerd",
    uids: "0\t0\t0\t0",
    parent: 1,
    cgroup: "0::/system.slice/containerd.service\n",
    mounts: "mnt:[1]",
    program: "/usr/bin/containerd",
    arguments: "/usr/bin/containerd\0",
    environment: "",
};

impl Tree {
    /// A host whose process 1 is in these cgroups; `directories` are those of its service manager.
    pub(in crate::installer) fn new(init: &str, directories: &[&str]) -> Self {
        let tree = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        tree.write("/etc/group", "root:x:0:\nempty:x:50:\nadmins:x:60:u\n");
        tree.write(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n",
        );
        for directory in directories {
            tree.directory(directory);
        }
        tree.process(
            1,
            &Given {
                comm: "init",
                parent: 0,
                cgroup: init,
                program: "/sbin/init",
                arguments: "/sbin/init\0",
                ..CONTAINERD
            },
        );
        tree
    }

    pub(in crate::installer) fn host(&self) -> HostRoot {
        HostRoot::open(self.directory.path()).unwrap()
    }

    pub(in crate::installer) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    /// Creates a directory and its parents with mode 755, independent of the umask.
    fn directory(&self, path: &str) {
        let mut made = self.directory.path().to_owned();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            made.push(name);
            if !made.exists() {
                fs::create_dir(&made).unwrap();
                fs::set_permissions(&made, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
    }

    pub(in crate::installer) fn write(&self, path: &str, text: &str) {
        self.directory(parent_directory(path));
        fs::write(self.path(path), text).unwrap();
        self.mode(path, 0o755);
    }

    pub(in crate::installer) fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), PermissionsExt::from_mode(mode)).unwrap();
    }

    /// A path that names the same file in the tree and on this machine.
    fn on_both(&self, path: &str) -> String {
        let directory = self.directory.path().to_str().unwrap().to_owned();
        self.directory(parent_directory(&directory));
        if !self.path(&directory).exists() {
            symlink("/", self.path(&directory)).unwrap();
        }
        format!("{directory}{path}")
    }

    pub(in crate::installer) fn process(&self, pid: u32, given: &Given<'_>) {
        let at = |name: &str| format!("/proc/{pid}/{name}");
        // The symlink of `on_both` leads to this machine.
        let on_both = std::path::Path::new(given.program).starts_with(self.directory.path());
        let deleted = given.program.ends_with("(deleted)");
        if !on_both && !deleted && !self.path(given.program).exists() {
            self.write(given.program, "");
        }
        let status = format!(
            "Name:\t{}\nPid:\t{pid}\nPPid:\t{}\nUid:\t{}\nGid:\t0\t0\t0\t0\n",
            given.comm, given.parent, given.uids
        );
        let fields = " 0".repeat(16);
        self.write(&at("comm"), &format!("{}\n", given.comm));
        self.write(&at("status"), &status);
        self.write(
            &at("stat"),
            &format!("{pid} (a) S {} 1{fields} {pid} 0\n", given.parent),
        );
        self.write(&at("cmdline"), given.arguments);
        self.write(&at("environ"), given.environment);
        if !given.cgroup.is_empty() {
            self.write(&at("cgroup"), given.cgroup);
        }
        self.directory(&at("ns"));
        symlink(given.program, self.path(&at("exe"))).unwrap();
        symlink(given.mounts, self.path(&at("ns/mnt"))).unwrap();
        symlink("pid:[1]", self.path(&at("ns/pid"))).unwrap();
        symlink(self.directory.path(), self.path(&at("root"))).unwrap();
    }

    /// Sets another root for process 812 than for process 1.
    fn with_own_root(self) -> Self {
        let root = self.path("/proc/812/root");
        fs::remove_file(&root).unwrap();
        symlink("/", root).unwrap();
        self
    }

    /// The unit of process 812, or the refusal with its help.
    fn asked(&self) -> Result<Option<String>, String> {
        let mut found = find_by_name(&self.host(), &["containerd", "kubelet"]).unwrap();
        let (_, process) = found.remove(&PID).unwrap();
        process
            .map(|process| process.unit)
            .map_err(|refusal| Problem::new(&refusal, refusal.reason.help()).sentence())
    }
}

/// Lines of cgroup v1 with one path in the hierarchy of systemd and another path in all others.
fn version_1(systemd: &str, other: &str) -> String {
    format!("12:memory:{other}\n4:pids:{other}\n1:name=systemd:{systemd}\n")
}

fn openrc_1(service: &str, other: &str) -> String {
    format!("3:memory:{other}\n1:name=openrc:{service}\n0::/\n")
}

const SCOPE: &str = "/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope";

#[rstest]
#[case::a_deb_package(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::an_rpm_package_under_version_1(
    SYSTEMD,
    &version_1("/init.scope", "/"),
    &version_1("/system.slice/containerd.service", "/system.slice/containerd.service"),
    Some("containerd.service")
)]
#[case::a_package_under_both_versions(
    SYSTEMD,
    "5:pids:/init.scope\n1:name=systemd:/init.scope\n0::/init.scope\n",
    "5:pids:/system.slice/containerd.service\n1:name=systemd:/system.slice/containerd.service\n0::/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::k3s(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/k3s.service\n",
    Some("k3s.service")
)]
#[case::rke2(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/rke2-agent.service\n",
    Some("rke2-agent.service")
)]
#[case::k0s(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/k0sworker.service\n",
    Some("k0sworker.service")
)]
#[case::microk8s(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/snap.microk8s.daemon-containerd.service\n",
    Some("snap.microk8s.daemon-containerd.service")
)]
#[case::eks(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/runtime.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::a_slice_in_a_slice(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/kube.slice/kube-runtime.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::an_instance_of_a_template(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/system-containerd.slice/containerd@a.service\n",
    Some("containerd@a.service")
)]
#[case::kind_with_a_namespace_of_cgroups(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::kind_under_version_1(
    SYSTEMD,
    &version_1("/docker/1/init.scope", "/docker/1"),
    &version_1("/docker/1/system.slice/containerd.service", "/docker/1/system.slice/containerd.service"),
    Some("containerd.service")
)]
#[case::kind_in_a_pod(
    SYSTEMD,
    &format!("0::{SCOPE}/init.scope\n"),
    &format!("0::{SCOPE}/system.slice/containerd.service\n"),
    Some("containerd.service")
)]
#[case::kind_in_podman(
    SYSTEMD,
    "0::/machine.slice/libpod-1.scope/container/init.scope\n",
    "0::/machine.slice/libpod-1.scope/container/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::minikube_in_docker(
    SYSTEMD,
    "0::/system.slice/docker-1.scope/init.scope\n",
    "0::/system.slice/docker-1.scope/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::sysbox(
    SYSTEMD,
    "0::/system.slice/docker-1.scope/syscont-cgroup-root/init.scope\n",
    "0::/system.slice/docker-1.scope/syscont-cgroup-root/system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::seen_from_a_pod(
    SYSTEMD,
    "0::/../../../init.scope\n",
    "0::/../../../system.slice/containerd.service\n",
    Some("containerd.service")
)]
#[case::k3d(NEITHER, "0::/init\n", "0::/init\n", None)]
#[case::k3d_in_the_scope_of_its_container(
    NEITHER,
    "0::/system.slice/docker-1.scope\n",
    "0::/system.slice/docker-1.scope\n",
    None
)]
#[case::k3d_that_moved_itself(NEITHER, "0::/init\n", "0::/k3s\n", None)]
#[case::k3d_under_version_1(
    NEITHER,
    &version_1("/docker/1", "/docker/1"),
    &version_1("/docker/1/k3s", "/docker/1/k3s"),
    None
)]
#[case::docker_in_docker(NEITHER, "0::/docker/1/init\n", "0::/docker/1/init\n", None)]
#[case::openrc_under_version_2(OPENRC, "0::/\n", "0::/openrc.k3s\n", Some("k3s.service"))]
#[case::openrc_that_has_a_cgroup_for_process_1(
    OPENRC,
    "0::/rc.init\n",
    "0::/openrc.k3s\n",
    Some("k3s.service")
)]
#[case::openrc_in_lxc(
    OPENRC,
    "0::/lxc.payload.a/rc.init\n",
    "0::/lxc.payload.a/openrc.containerd\n",
    Some("containerd.service")
)]
#[case::openrc_without_a_cgroup_for_the_service(OPENRC, "0::/rc.init\n", "0::/rc.init\n", None)]
#[case::openrc_under_version_1(OPENRC, &openrc_1("/", "/"), &openrc_1("/k3s", "/"), Some("k3s.service"))]
#[case::openrc_with_limits(OPENRC, &openrc_1("/", "/"), &openrc_1("/containerd", "/openrc_containerd"), Some("containerd.service"))]
#[case::openrc_without_cgroups(OPENRC, "", "", None)]
fn a_containerd_that_root_started_counts(
    #[case] managers: &[&str],
    #[case] init: &str,
    #[case] cgroup: &str,
    #[case] unit: Option<&str>,
) {
    let tree = Tree::new(init, managers);
    tree.process(
        PID,
        &Given {
            cgroup,
            ..CONTAINERD
        },
    );
    assert_eq!(tree.asked(), Ok(unit.map(str::to_owned)));
}

#[rstest]
#[case::a_session_of_root(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/user.slice/user-0.slice/session-1.scope\n",
    "below user.slice"
)]
#[case::a_user_s_service(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/containerd.service\n",
    "below user.slice"
)]
#[case::a_virtual_machine(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/machine.slice/systemd-nspawn@a.service\n",
    "below machine.slice"
)]
#[case::a_pod(SYSTEMD, "0::/init.scope\n", &format!("0::{SCOPE}\n"), "below kubepods.slice")]
#[case::a_pod_without_systemd(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/kubepods/besteffort/pod1/2\n",
    "below kubepods"
)]
#[case::a_pod_of_kind(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/kubelet.slice/kubelet-kubepods.slice/a.service\n",
    "below kubelet-kubepods.slice"
)]
#[case::a_pod_that_is_one_in_a_tree_of_version_1_only(
    SYSTEMD,
    &version_1("/init.scope", "/"),
    &version_1("/system.slice/containerd.service", "/kubepods/pod1/2"),
    "below kubepods"
)]
#[case::a_container_of_docker(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/docker-1.scope\n",
    "below docker-1.scope"
)]
#[case::a_unit_in_a_container_of_docker(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/docker-1.scope/system.slice/containerd.service\n",
    "below docker-1.scope"
)]
#[case::a_transient_scope(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/run-1.scope\n",
    "below run-1.scope"
)]
#[case::a_container_beside_the_units(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/docker/1\n",
    "which belongs to no system service"
)]
#[case::a_unit_in_a_container_beside_the_units(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/docker/1/system.slice/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_unit_in_lxc(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/lxc.payload.a/system.slice/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_cgroup_that_a_service_was_delegated(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice/a.service/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_slice_alone(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/system.slice\n",
    "which belongs to no system service"
)]
#[case::k3s_s_own_cgroup_under_systemd(
    SYSTEMD,
    "0::/init.scope\n",
    "0::/k3s\n",
    "which belongs to no system service"
)]
#[case::trees_that_disagree(
    SYSTEMD,
    "1:name=systemd:/init.scope\n0::/init.scope\n",
    "1:name=systemd:/docker/1\n0::/system.slice/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_tree_that_is_not_told(
    SYSTEMD,
    "1:name=systemd:/init.scope\n0::/\n",
    "0::/\n",
    "can't be read"
)]
#[case::a_unit_where_no_systemd_runs(
    NEITHER,
    "0::/\n",
    "0::/system.slice/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_unit_outside_of_the_container_of_process_1(
    SYSTEMD,
    "0::/docker/1/init.scope\n",
    "0::/system.slice/containerd.service\n",
    "which belongs to no system service"
)]
#[case::a_path_that_goes_above_process_1(
    SYSTEMD,
    "0::/../init.scope\n",
    "0::/../../a.service\n",
    "which belongs to no system service"
)]
#[case::a_container_in_docker_in_docker(
    NEITHER,
    "0::/init\n",
    "0::/docker/1\n",
    "which belongs to no system service"
)]
#[case::a_container_under_openrc(OPENRC, &openrc_1("/", "/"), &openrc_1("/docker", "/docker/1"), "which belongs to no system service")]
#[case::a_container_beside_rc_init(
    OPENRC,
    "0::/rc.init\n",
    "0::/docker/1\n",
    "which belongs to no system service"
)]
#[case::a_pod_under_openrc(OPENRC, &openrc_1("/", "/"), &openrc_1("/k3s", "/kubepods/pod1/2"), "below kubepods")]
fn a_process_in_a_cgroup_of_another_user_or_of_a_pod_does_not_count(
    #[case] managers: &[&str],
    #[case] init: &str,
    #[case] cgroup: &str,
    #[case] reason: &str,
) {
    let tree = Tree::new(init, managers);
    tree.process(
        PID,
        &Given {
            cgroup,
            ..CONTAINERD
        },
    );
    let refused = tree.asked().unwrap_err();
    let start = "process 812 runs /usr/bin/containerd ";
    assert!(
        refused.starts_with(start) && refused.contains(reason),
        "{refused}"
    );
}

#[rstest]
#[case::of_a_user("1000\t1000\t1000\t1000", "1000")]
#[case::that_is_set_uid_root("1000\t0\t0\t0", "1000")]
#[case::that_may_become_a_user("0\t0\t1000\t0", "1000")]
#[case::that_has_the_files_of_a_user("0\t0\t0\t1000", "1000")]
#[case::of_root_in_a_user_namespace("231072\t231072\t231072\t231072", "231072")]
fn a_rootless_containerd_is_refused_with_its_reason(#[case] uids: &str, #[case] uid: &str) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    let program = "/home/u/rancher/k3s/containerd";
    tree.process(
        PID,
        &Given {
            uids,
            program,
            ..CONTAINERD
        },
    );
    let expected = format!(
        "process 812 runs {program} as UID {uid}: a rootless containerd is not supported. Run the process as a system service"
    );
    assert_eq!(tree.asked(), Err(expected));
}

#[test]
fn in_the_cgroup_of_process_1_only_descendants_of_process_1_count() {
    let tree = Tree::new("0::/\n", NEITHER);
    let here = Given {
        cgroup: "0::/\n",
        ..CONTAINERD
    };
    tree.process(700, &here);
    tree.process(
        PID,
        &Given {
            parent: 700,
            ..here.clone()
        },
    );
    assert_eq!(tree.asked(), Ok(None));

    let tree = Tree::new("0::/\n", NEITHER);
    tree.process(
        700,
        &Given {
            parent: 0,
            ..here.clone()
        },
    );
    tree.process(
        PID,
        &Given {
            parent: 700,
            ..here
        },
    );
    assert!(
        tree.asked()
            .unwrap_err()
            .contains("without being a descendant of process 1")
    );
}

#[rstest]
#[case::of_k3s("k3s-server", 600)]
#[case::of_the_supervisor("supervise-daemo", 700)]
fn the_main_process_of_a_service_is_below_the_supervisor(
    #[case] comm: &str,
    #[case] expected: u32,
) {
    let tree = Tree::new("0::/init.scope\n", OPENRC);
    for (pid, comm, parent) in [
        (600, comm, 1),
        (700, "k3s-server", 600),
        (PID, "containerd", 700),
    ] {
        tree.process(
            pid,
            &Given {
                comm,
                parent,
                ..CONTAINERD
            },
        );
    }
    assert_eq!(service_process(&tree.host(), PID), expected);
}

const STRICT: &str = "snap.microk8s.daemon-containerd.service";
const STRICT_CGROUP: &str = "0::/system.slice/snap.microk8s.daemon-containerd.service\n";
const STRICT_UNIT: &str = "/etc/systemd/system/snap.microk8s.daemon-containerd.service";

/// A strictly confined `MicroK8s`, whose process 812 has its own mounts.
fn strict(parent: u32, environment: &str) -> Tree {
    strict_in(STRICT, parent, environment)
}

/// As [`strict`], in another unit.
fn strict_in(unit: &str, parent: u32, environment: &str) -> Tree {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.write(&format!("/etc/systemd/system/{unit}"), "[Service]\n");
    let invocation = format!("/run/systemd/units/invocation:{unit}");
    tree.directory(parent_directory(&invocation));
    symlink("0a0b", tree.path(&invocation)).unwrap();
    let program = "/snap/microk8s/1/bin/containerd";
    tree.write(program, "");
    let program = &tree.on_both(program);
    let given = Given {
        cgroup: &format!("0::/system.slice/{unit}\n"),
        mounts: "mnt:[2]",
        parent,
        program,
        environment,
        ..CONTAINERD
    };
    tree.process(PID, &given);
    tree.process(
        700,
        &Given {
            comm: "run",
            parent: 1,
            ..given
        },
    );
    tree
}

#[rstest]
#[case::the_main_process(1, "A=b\0INVOCATION_ID=0a0b\0")]
#[case::the_main_process_with_an_environment_of_its_own(1, "A=b\0")]
#[case::a_child_of_the_main_process(700, "INVOCATION_ID=0a0b\0")]
fn the_main_process_of_a_unit_counts_in_its_own_mount_namespace(
    #[case] parent: u32,
    #[case] environment: &str,
) {
    let tree = strict(parent, environment);
    assert_eq!(tree.asked(), Ok(Some(STRICT.to_owned())));
    // snapd pivots to the base of the snap (snap-confine, `mount-support.c`).
    assert_eq!(tree.with_own_root().asked(), Ok(Some(STRICT.to_owned())));
}

/// Root runs the program of a process that counts, without the confinement of the process.
#[rstest]
#[case::of_a_snap("snap.other.daemon.service")]
#[case::of_the_docker_snap("snap.docker.dockerd.service")]
#[case::of_a_unit_with_a_root_directory("other.service")]
fn a_main_process_with_its_own_root_is_left_out_unless_its_distribution_has_such_a_unit(
    #[case] unit: &str,
) {
    let tree = strict_in(unit, 1, "").with_own_root();
    assert!(
        find_by_name(&tree.host(), &["containerd"])
            .unwrap()
            .is_empty()
    );
}

#[rstest]
#[case::of_an_earlier_start(strict(1, "INVOCATION_ID=0000\0"), "neither the main process")]
#[case::of_a_shim({
    let tree = strict(701, "");
    tree.process(701, &Given { comm: "containerd-shim", cgroup: STRICT_CGROUP, ..CONTAINERD });
    tree
}, "neither the main process")]
#[case::of_a_grandchild({
    let tree = strict(701, "");
    tree.process(701, &Given { comm: "a", parent: 700, cgroup: STRICT_CGROUP, mounts: "mnt:[2]", ..CONTAINERD });
    tree
}, "neither the main process")]
#[case::with_process_numbers_of_its_own({
    let tree = strict(1, "");
    fs::remove_file(tree.path("/proc/812/ns/pid")).unwrap();
    symlink("pid:[2]", tree.path("/proc/812/ns/pid")).unwrap();
    tree
}, "neither the main process")]
#[case::of_a_unit_that_is_not_there({
    let tree = strict(1, "");
    fs::remove_file(tree.path(STRICT_UNIT)).unwrap();
    tree
}, "no unit file of")]
#[case::of_a_unit_that_others_can_write({
    let tree = strict(1, "");
    tree.mode(STRICT_UNIT, 0o666);
    tree
}, "`chmod go-w /etc/systemd/system/snap.microk8s.daemon-containerd.service`")]
#[case::with_another_program_at_its_path_in_a_root_of_its_own({
    let tree = strict(1, "").with_own_root();
    fs::remove_file(tree.path("/proc/812/exe")).unwrap();
    symlink("/snap/microk8s/1/bin/containerd", tree.path("/proc/812/exe")).unwrap();
    tree
}, "another file")]
#[case::with_another_program_at_its_path({
    let tree = strict(1, "");
    fs::remove_file(tree.path("/proc/812/exe")).unwrap();
    symlink("/snap/microk8s/1/bin/containerd", tree.path("/proc/812/exe")).unwrap();
    tree
}, "another file")]
#[case::under_openrc({
    let tree = Tree::new("0::/\n", OPENRC);
    tree.process(PID, &Given { cgroup: "0::/openrc.a\n", mounts: "mnt:[2]", ..CONTAINERD });
    tree
}, "no systemd service")]
#[case::that_no_service_manager_started({
    // A container that has changed its root to the host's files.
    let tree = Tree::new("0::/\n", NEITHER);
    tree.process(PID, &Given { cgroup: "0::/\n", mounts: "mnt:[2]", ..CONTAINERD });
    tree
}, "no systemd service")]
fn another_process_in_its_own_mount_namespace_does_not_count(
    #[case] tree: Tree,
    #[case] reason: &str,
) {
    let refused = tree.asked().unwrap_err();
    assert!(refused.contains(reason), "{refused}");
}

#[rstest]
#[case::a_program_that_all_can_write(
    "/usr/bin/containerd",
    0o757,
    "`chmod o-w /usr/bin/containerd`"
)]
#[case::a_directory_that_all_can_write("/usr/bin", 0o777, "`chmod go-w /usr/bin`")]
#[case::a_sticky_directory_that_all_can_write("/usr", 0o1757, "`chmod o-w /usr`")]
fn a_program_that_others_can_replace_does_not_count(
    #[case] path: &str,
    #[case] mode: u32,
    #[case] mend: &str,
) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.process(PID, &CONTAINERD);
    tree.mode(path, mode);
    let refused = tree.asked().unwrap_err();
    assert!(refused.contains(mend), "{refused}");
}

#[test]
fn a_program_that_was_replaced_by_an_upgrade_counts() {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.write("/usr/bin/containerd", "");
    let program = "/usr/bin/containerd (deleted)";
    tree.process(
        PID,
        &Given {
            program,
            ..CONTAINERD
        },
    );
    let found = find_by_name(&tree.host(), &["containerd"]).unwrap();
    let (_, process) = &found[&PID];
    assert_eq!(process.as_ref().unwrap().program, "/usr/bin/containerd");
}

#[test]
fn a_process_with_another_root_or_that_has_ended_or_is_ending_is_ignored() {
    let ending = "812 (a) R 1 812 812 0 -1 4194572 0 0 0 0 0 0 0 0 20 0 1 0 812 0";
    for (name, target) in [("root", "/"), ("stat", "812 (a) Z 1"), ("stat", ending)] {
        let tree = Tree::new("0::/init.scope\n", SYSTEMD);
        tree.process(PID, &CONTAINERD);
        let path = tree.path(&format!("/proc/812/{name}"));
        fs::remove_file(&path).unwrap();
        if name == "root" {
            symlink(target, path).unwrap();
        } else {
            tree.write("/proc/812/stat", target);
            // The kernel has released the program and the memory.
            fs::remove_file(tree.path("/proc/812/exe")).unwrap();
        }
        assert!(
            find_by_name(&tree.host(), &["containerd"])
                .unwrap()
                .is_empty()
        );
    }
}

#[rstest]
#[case::in_the_cgroup_of_a_unit(STRICT_CGROUP)]
#[case::beside_the_units("0::/docker/1\n")]
#[case::in_the_cgroup_of_process_1("0::/init.scope\n")]
fn a_container_that_no_unit_started_is_left_out(#[case] cgroup: &str) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    let given = Given {
        cgroup,
        mounts: "mnt:[2]",
        parent: 700,
        ..CONTAINERD
    };
    tree.process(PID, &given);
    let tree = tree.with_own_root();
    assert!(
        find_by_name(&tree.host(), &["containerd"])
            .unwrap()
            .is_empty()
    );
}

const OF_A_USER: Given<'_> = Given {
    uids: "1000\t1000\t1000\t1000",
    ..CONTAINERD
};

/// Memory and root of the process may be in a file system that never answers.
#[rstest]
#[case::a_session("0::/user.slice/user-1000.slice/session-1.scope\n", "mnt:[1]", true)]
#[case::a_rootless_container_engine(
    "0::/user.slice/user-1000.slice/user@1000.service/a.service\n",
    "mnt:[2]",
    true
)]
#[case::a_service_of_a_user("0::/system.slice/a.service\n", "mnt:[1]", true)]
#[case::a_pod(&format!("0::{SCOPE}\n"), "mnt:[2]", false)]
fn neither_memory_nor_root_of_a_process_that_root_did_not_start_is_looked_at(
    #[case] cgroup: &str,
    #[case] mounts: &str,
    #[case] is_told: bool,
    #[values(false, true)] has_own_root: bool,
) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.process(
        PID,
        &Given {
            cgroup,
            mounts,
            ..OF_A_USER
        },
    );
    let tree = if has_own_root {
        tree.with_own_root()
    } else {
        tree
    };
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    for name in ["cmdline", "environ"] {
        let path = tree.path(&format!("/proc/812/{name}"));
        opened.add_watch(&path, AddWatchFlags::IN_OPEN).unwrap();
    }
    let found = find_by_name(&tree.host(), &["containerd"]).unwrap();
    let refused = found.get(&PID).map(|(_, process)| process.is_err());
    assert_eq!(refused, is_told.then_some(true));
    assert_eq!(opened.read_events().unwrap_err(), Errno::EAGAIN);
}

#[test]
fn k3s_is_found_by_the_symlink_beside_its_program() {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    let program = "/var/lib/rancher/k3s/data/0/bin/k3s";
    tree.process(
        PID,
        &Given {
            program,
            ..CONTAINERD
        },
    );
    symlink(
        "k3s",
        tree.path("/var/lib/rancher/k3s/data/0/bin/containerd"),
    )
    .unwrap();
    let found = find_by_name(&tree.host(), &["containerd"]).unwrap();
    let (_, process) = &found[&PID];
    assert_eq!(
        process.as_ref().unwrap().program,
        "/var/lib/rancher/k3s/data/0/bin/containerd"
    );
}

#[rstest]
#[case::alone(&[], None)]
#[case::beside_the_program(&["/usr/bin/containerd"], None)]
#[case::that_runs_the_program(&[], Some("/usr/local/bin/containerd-1.7"))]
fn a_script_named_containerd_is_not_containerd(
    #[case] files: &[&str],
    #[case] child: Option<&str>,
) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    for file in files {
        tree.write(file, "");
    }
    let script = Given {
        program: "/usr/bin/bash",
        arguments: "/usr/bin/bash\0/usr/local/bin/containerd\0",
        ..CONTAINERD
    };
    tree.process(PID, &script);
    if let Some(program) = child {
        let child = Given {
            parent: PID,
            program,
            ..CONTAINERD
        };
        tree.process(PID + 1, &child);
    }
    let refusal = tree.asked().unwrap_err();
    assert!(
        refusal.contains("runs /usr/bin/bash under the name containerd"),
        "{refusal}"
    );
    let found = find_by_name(&tree.host(), &["containerd"]).unwrap();
    let child_of_script = found.get(&(PID + 1)).map(|(_, process)| process);
    let program = child_of_script.map(|process| process.as_ref().unwrap().program.as_str());
    assert_eq!(program, child);
}

#[test]
fn a_renamed_program_is_replaced_by_the_one_beside_it() {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.write("/usr/bin/containerd", "new");
    let renamed = Given {
        program: "/usr/bin/containerd.old",
        ..CONTAINERD
    };
    tree.process(PID, &renamed);
    let found = find_by_name(&tree.host(), &["containerd"]).unwrap();
    let (_, process) = &found[&PID];
    assert_eq!(process.as_ref().unwrap().program, "/usr/bin/containerd");
}

#[rstest]
#[case::in_the_cron_service("0::/system.slice/cron.service\n")]
#[case::below_process_1("0::/init.scope\n")]
fn a_set_user_id_program_that_a_user_names_containerd_is_refused(#[case] cgroup: &str) {
    let tree = Tree::new("0::/init.scope\n", &["/run/systemd/system"]);
    tree.write("/usr/bin/containerd", "");
    let given = Given {
        cgroup,
        program: "/usr/bin/sudo",
        arguments: "/tmp/containerd\0-c\0/tmp/evil.toml\0",
        ..CONTAINERD
    };
    tree.process(PID, &given);
    let bits = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(tree.path("/usr/bin/sudo"), bits).unwrap();
    let refusal = tree.asked().unwrap_err();
    assert!(refusal.contains("runs /usr/bin/sudo"), "{refusal}");
    assert!(refusal.contains("set-user-ID"), "{refusal}");
}

/// A shim in the store as containerd's unit starts it, and the same shim with a difference.
const SHIM: &str =
    "/opt/farrier/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A process of a shim on a host of `managers`, after `change`; `program` is its path on this machine and on the host.
fn shim_process(deleted: bool, change: impl FnOnce(&mut Given<'_>)) -> (Tree, String) {
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    tree.write(SHIM, "");
    let program = tree.on_both(SHIM);
    let mark = if deleted { " (deleted)" } else { "" };
    let exe = format!("{program}{mark}");
    let mut given = Given {
        comm: "shim",
        mounts: "mnt:[2]",
        program: &exe,
        ..CONTAINERD
    };
    change(&mut given);
    tree.process(PID, &given);
    (tree, program)
}

#[rstest]
#[case::in_the_unit_of_containerd(shim_process(false, |_| {}), true)]
#[case::whose_binary_was_removed(shim_process(true, |_| {}), true)]
#[case::of_a_user(shim_process(false, |it| it.uids = "1000\t1000\t1000\t1000"), false)]
#[case::of_a_set_user_id_program(shim_process(false, |it| it.uids = "1000\t0\t0\t0"), false)]
#[case::in_a_container(shim_process(false, |it| it.cgroup = "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope\n"), false)]
#[case::in_a_session(shim_process(false, |it| it.cgroup = "0::/user.slice/user-0.slice/session-1.scope\n"), false)]
#[case::in_no_service(shim_process(false, |it| it.cgroup = "0::/mine\n"), false)]
#[case::of_another_program(shim_process(false, |it| it.program = "/usr/bin/containerd"), false)]
#[case::in_another_pid_namespace({
    let (tree, program) = shim_process(false, |_| {});
    fs::remove_file(tree.path("/proc/812/ns/pid")).unwrap();
    symlink("pid:[2]", tree.path("/proc/812/ns/pid")).unwrap();
    (tree, program)
}, false)]
#[case::with_another_root({
    let (tree, program) = shim_process(false, |_| {});
    (tree.with_own_root(), program)
}, false)]
#[case::of_another_file_at_that_path({
    let tree = Tree::new("0::/init.scope\n", SYSTEMD);
    // On this machine, which stands for the mounts of the process, the path leads nowhere.
    tree.process(PID, &Given { program: SHIM, ..CONTAINERD });
    (tree, SHIM.to_owned())
}, false)]
#[case::of_a_removed_file_where_others_write({
    let (tree, program) = shim_process(true, |_| {});
    tree.mode("/opt/farrier/store", 0o777);
    (tree, program)
}, false)]
fn a_shim_counts_only_if_root_started_it_on_the_host(
    #[case] (tree, program): (Tree, String),
    #[case] counts: bool,
) {
    let found = find_by_program(&tree.host(), |path| path == program).unwrap();
    let found: Vec<(u32, &str)> = found
        .iter()
        .map(|it| (it.id.0, it.program.as_str()))
        .collect();
    let expected = [(PID, program.as_str())];
    assert_eq!(found, expected[..usize::from(counts)]);
}
