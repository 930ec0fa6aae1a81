//! Detects the distribution of a host, and answers questions about its row of the table. Pure: the evidence is collected elsewhere.
//!
//! A new distribution needs a variant of [`Distro`] and a row in `table`. No other code names a distribution.

mod table;

use table::STOCK;

use crate::installer::host::path::{file_name, parent_directory};
pub use table::{
    Distro, DistroSpec, Edited, Restart, STOCK_CONFIG, STOCK_SOCKET, STOCK_UNIT, TABLE, Unsupported,
};

/// Name of Farrier's file in a directory of configuration snippets.
pub(crate) const SNIPPET: &str = "farrier.toml";

/// The files that are edited instead of containerd's root configuration `root` and its imports, in order of precedence; empty if these are
/// edited themselves.
pub(crate) fn editable_files(edited: Edited, root: &str) -> Vec<String> {
    let directory = parent_directory(root);
    match edited {
        Edited::Loaded => Vec::new(),
        Edited::GoTemplate { v3, v2 } => {
            vec![format!("{directory}/{v3}"), format!("{directory}/{v2}")]
        }
        Edited::TomlTemplate(name) => vec![format!("{directory}/{name}")],
        Edited::Snippets {
            directory: name, ..
        } => vec![format!("{directory}/{name}/{SNIPPET}")],
    }
}

/// The facts of a host by which its distribution is detected.
#[derive(Debug, Default)]
pub struct Evidence<'a> {
    /// Path of the running containerd's program.
    pub program: Option<&'a str>,
    /// The systemd unit of the running containerd.
    pub unit: Option<&'a str>,
    /// containerd's configuration, from its command line or from Farrier's options.
    pub config: Option<&'a str>,
    /// Command line of process 1.
    pub init: &'a str,
    /// The CRI socket in the configuration of the host's kubelet, which need not run.
    pub endpoint: Option<&'a str>,
    /// Command line of the host's kubelet, with a NUL after each argument; empty if no kubelet runs on the host.
    pub kubelet: &'a str,
    /// Whether containerd is installed at a path that packages use, for a host where no containerd runs.
    pub installed: bool,
    /// The `id` of the distribution whose service is enabled and would start its own containerd, for a host where no containerd runs.
    pub enabled: Option<&'a str>,
    /// The text of `/etc/os-release`.
    pub os_release: &'a str,
}

impl DistroSpec {
    /// Whether this distribution's containerd runs in units of this name, such as `k3s-agent.service`.
    #[must_use]
    pub fn has_unit(&self, unit: &str) -> bool {
        self.units.iter().any(|start| unit.starts_with(start))
    }

    /// The directory of snippets, which the distribution's supervisor watches; `root` is the root configuration.
    #[must_use]
    pub fn watched_directory(&self, root: &str) -> Option<String> {
        match self.edited {
            Edited::Snippets { directory, .. } => {
                Some(format!("{}/{directory}", parent_directory(root)))
            }
            Edited::Loaded | Edited::GoTemplate { .. } | Edited::TomlTemplate(_) => None,
        }
    }

    /// Whether the distribution's supervisor restarts containerd when the file at `path` changes; `root` is the root configuration. k0s
    /// watches its snippets only (`pkg/component/worker/containerd`), and not a root file that an administrator maintains.
    #[must_use]
    pub fn is_watched(&self, root: &str, path: &str) -> bool {
        self.watched_directory(root)
            .is_some_and(|directory| directory == parent_directory(path))
    }

    /// Whether this is the file name of one of its programs.
    pub(crate) fn is_program_name(&self, name: &str) -> bool {
        self.programs.iter().any(|path| file_name(path) == name)
    }

    fn has_path(&self, path: Option<&str>) -> bool {
        path.is_some_and(|path| self.paths.iter().any(|start| is_below(path, start)))
    }

    /// Whether the command line of a kubelet, with a NUL after each argument, contains a value with a prefix of the row. The value of
    /// `--option=value` and each element of a list count as values, too.
    fn is_kubelet(&self, command_line: &str) -> bool {
        let mut values = command_line.split(['\0', '=', ',']);
        values.any(|value| self.kubelet.iter().any(|start| is_below(value, start)))
    }

    /// Whether the command line of process 1 names a program of the row. k3s sets its command line as one argument, separated by spaces.
    fn is_init(&self, command_line: &str) -> bool {
        let names = command_line
            .split(['\0', ' '])
            .filter_map(|argument| argument.rsplit('/').next());
        let is = |name: &str, part: &str| {
            let rest = name.strip_prefix(part);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        names
            .into_iter()
            .any(|name| self.init.iter().any(|part| is(name, part)))
    }

    /// Whether the distribution looks for runtimes at each start.
    #[must_use]
    pub fn searches(&self) -> bool {
        !self.finds.is_empty()
    }

    /// The file name of the program because of which the distribution declares `handler` by itself.
    #[must_use]
    pub fn program_of(&self, handler: &str) -> Option<&'static str> {
        let mut finds = self.finds.iter();
        let (_, program) = finds.find(|(name, _)| *name == handler)?;
        Some(program)
    }

    /// A note for the report about the change of the configuration at `path`; `None` if there is nothing to note.
    #[must_use]
    pub fn note(&self, path: &str) -> Option<String> {
        self.rewritten.then(|| {
            format!("this node regenerates {path} at each boot: the controller then provisions the node again, and without the controller an administrator must run farrier install again")
        })
    }

    /// Whether the running containerd or kubelet identifies the distribution.
    fn runs(&self, evidence: &Evidence<'_>) -> bool {
        let unit = evidence.program.and(evidence.unit);
        let endpoint = evidence.endpoint.zip(self.endpoint);
        self.has_path(evidence.program)
            || self.has_path(evidence.config)
            || unit.is_some_and(|unit| self.has_unit(unit))
            || endpoint.is_some_and(|(is, start)| is_below(without_var(is), start))
            || self.is_kubelet(evidence.kubelet)
    }

    /// Whether the mandatory conditions of the row are met: process 1 and the platform.
    fn may_be(&self, evidence: &Evidence<'_>) -> bool {
        let platform = |platform| os_values(evidence.os_release).any(|value| value == platform);
        (self.init.is_empty() || self.is_init(evidence.init)) && self.platform.is_none_or(platform)
    }
}

/// Whether a distribution of the table looks for a runtime of this name.
#[must_use]
pub fn is_searched_for(handler: &str) -> bool {
    TABLE.iter().any(|spec| spec.program_of(handler).is_some())
}

/// The path of a socket without the symlink `/var/run`, which leads to `/run`.
fn without_var(path: &str) -> &str {
    let plain = path.strip_prefix("/var");
    plain.filter(|it| it.starts_with("/run/")).unwrap_or(path)
}

/// Whether `path` is `start` or below it, by whole components. The same holds for a label's key and its domain.
fn is_below(path: &str, start: &str) -> bool {
    let start = start.strip_suffix('/').unwrap_or(start);
    path.strip_prefix(start)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The row of a host's distribution; `present` returns whether a file exists.
pub fn detect(evidence: &Evidence<'_>, present: impl Fn(&str) -> bool) -> &'static DistroSpec {
    let any = |files: &[&str]| files.iter().any(|file| present(file));
    let idle = evidence.program.is_none() && !evidence.installed && evidence.config.is_none();
    let has_programs = idle && TABLE.iter().any(|spec| any(spec.programs));
    let fits = |spec: &&DistroSpec| {
        let found = spec.runs(evidence)
            || evidence.program.is_none() && evidence.enabled == Some(spec.id)
            || os_values(evidence.os_release).any(|id| spec.os_ids.contains(&id))
            || evidence.kubelet.is_empty() && any(spec.image)
            || idle && any(spec.programs)
            || idle && !has_programs && any(spec.data);
        found && spec.may_be(evidence)
    };
    TABLE.iter().find(fits).unwrap_or(&STOCK)
}

/// Whether a running containerd belongs to a Kubernetes distribution that includes and starts containerd itself.
#[must_use]
pub fn is_embedded(program: &str, unit: Option<&str>) -> bool {
    let has_path = TABLE.iter().any(|spec| spec.has_path(Some(program)));
    has_path || unit.is_some_and(is_embedded_unit)
}

/// The distribution that includes and starts containerd itself, and that has its configuration at `path`.
#[must_use]
pub fn by_config(path: &str) -> Option<&'static DistroSpec> {
    let mut specs = TABLE.iter().filter(|spec| spec.edited != Edited::Loaded);
    specs.find(|spec| spec.init.is_empty() && spec.has_path(Some(path)))
}

/// Whether the unit belongs to a Kubernetes distribution that includes and starts containerd itself.
#[must_use]
pub fn is_embedded_unit(unit: &str) -> bool {
    TABLE.iter().any(|spec| spec.has_unit(unit))
}

/// The row with this `id`, as in a report or a journal; the last row if there is none.
#[must_use]
pub fn by_id(id: &str) -> &'static DistroSpec {
    let found = TABLE.iter().find(|spec| spec.id == id);
    found.unwrap_or(&STOCK)
}

/// The values of `ID`, `ID_LIKE` and `PLATFORM_ID` (os-release(5)), and `openshift` if `OPENSHIFT_VERSION` is set, as on RHEL nodes.
fn os_values(os_release: &str) -> impl Iterator<Item = &str> {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(key, value)| match key {
            "ID" | "ID_LIKE" | "PLATFORM_ID" => Some(value),
            "OPENSHIFT_VERSION" => Some("openshift"),
            _ => None,
        })
        .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Program, unit, command line of process 1, and the kubelet's socket.
    type Running = (&'static str, &'static str, &'static str, &'static str);

    const STOCK_RUNS: Running = (
        "/usr/bin/containerd",
        "containerd.service",
        "/sbin/init",
        "",
    );

    /// Whether a file is a program or data of any distribution.
    fn is_leftover_file(file: &str) -> bool {
        let mut left = TABLE
            .iter()
            .flat_map(|spec| spec.programs.iter().chain(spec.data));
        left.any(|left| *left == file)
    }

    fn is_image_file(file: &str) -> bool {
        TABLE.iter().any(|spec| spec.image.contains(&file))
    }

    #[rstest]
    #[case::debian(STOCK_RUNS, "ID=debian\n", Distro::Debian)]
    #[case::minikube_without_a_kubelet(STOCK_RUNS, "ID=buildroot\n", Distro::Systemd)]
    #[case::azure_linux(STOCK_RUNS, "ID=azurelinux\n", Distro::Rpm)]
    #[case::mariner(STOCK_RUNS, "ID=mariner\n", Distro::Rpm)]
    #[case::amazon_linux(
        STOCK_RUNS,
        "ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\n",
        Distro::Rpm
    )]
    #[case::amazon_linux_2023(
        STOCK_RUNS,
        "ID=\"amzn\"\nID_LIKE=\"fedora\"\nPLATFORM_ID=\"platform:al2023\"\n",
        Distro::Rpm
    )]
    #[case::mint(
        STOCK_RUNS,
        "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
        Distro::Debian
    )]
    #[case::rocky(
        STOCK_RUNS,
        "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
        Distro::Rpm
    )]
    #[case::flatcar(STOCK_RUNS, "ID=flatcar\nID_LIKE=coreos\n", Distro::Flatcar)]
    #[case::cos(STOCK_RUNS, "ID=cos\n", Distro::Cos)]
    #[case::unknown(("/opt/bin/containerd", "", "", ""), "ID=nixos\n", Distro::Systemd)]
    #[case::k3s(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "k3s.service", "/sbin/init", ""),
        "ID=debian\n",
        Distro::K3s
    )]
    #[case::k3s_elsewhere(("/data/k/data/abc/bin/containerd", "k3s-agent.service", "/sbin/init", ""), "ID=debian\n", Distro::K3s)]
    #[case::k3s_under_openrc(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "", "/sbin/init", ""),
        "ID=alpine\n",
        Distro::K3s
    )]
    #[case::k3d(
        ("/var/lib/rancher/k3s/data/abc/bin/containerd", "", "/sbin/docker-init\0--\0/bin/k3d-entrypoint.sh\0", ""),
        "",
        Distro::K3d
    )]
    #[case::rke2(
        ("/var/lib/rancher/rke2/data/v1.33-x/bin/containerd", "rke2-server.service", "/sbin/init", ""),
        "ID=ubuntu\n",
        Distro::Rke2
    )]
    #[case::microk8s(
        ("/snap/microk8s/7394/bin/containerd", "snap.microk8s.daemon-containerd.service", "/sbin/init", ""),
        "ID=ubuntu\n",
        Distro::MicroK8s
    )]
    #[case::k0s(("/var/lib/k0s/bin/containerd", "k0sworker.service", "/sbin/init", ""), "ID=ubuntu\n", Distro::K0s)]
    #[case::talos(("/bin/containerd", "", "/sbin/init", ""), "ID=talos\n", Distro::Talos)]
    #[case::bottlerocket(STOCK_RUNS, "ID=bottlerocket\n", Distro::Bottlerocket)]
    #[case::openshift(("", "", "", "/var/run/crio/crio.sock"), "ID=\"rhcos\"\n", Distro::OpenShift)]
    #[case::openshift_on_rhel(("", "", "", ""), "ID=\"rhel\"\nOPENSHIFT_VERSION=\"4.18\"\n", Distro::OpenShift)]
    #[case::crio_beside_docker(
        ("/usr/bin/containerd", "containerd.service", "/sbin/init", "/var/run/crio/crio.sock"),
        "ID=ubuntu\n",
        Distro::CriO
    )]
    #[case::microk8s_beside_docker(
        ("", "", "", "/var/snap/microk8s/common/run/containerd.sock"),
        "ID=ubuntu\n",
        Distro::MicroK8s
    )]
    fn the_distribution_is_detected_by_running_processes(
        #[case] running: Running,
        #[case] os_release: &str,
        #[case] expected: Distro,
        #[values(false, true)] has_leftover_files: bool,
    ) {
        let said = |text: &'static str| (!text.is_empty()).then_some(text);
        let (program, unit, init, endpoint) = running;
        let evidence = Evidence {
            program: said(program),
            unit: said(unit),
            init,
            endpoint: said(endpoint),
            installed: program.is_empty(),
            os_release,
            ..Evidence::default()
        };
        let spec = detect(&evidence, |file| {
            has_leftover_files && is_leftover_file(file)
        });
        assert_eq!(spec.distro, expected);
    }

    #[rstest]
    #[case::k3s(Some("k3s"), None, Distro::K3s)]
    #[case::k0s(Some("k0s"), None, Distro::K0s)]
    #[case::none(None, None, Distro::Debian)]
    #[case::beside_a_running_containerd(Some("k3s"), Some("/usr/bin/containerd"), Distro::Debian)]
    fn an_enabled_service_counts_beside_an_installed_containerd(
        #[case] enabled: Option<&str>,
        #[case] program: Option<&str>,
        #[case] expected: Distro,
    ) {
        let evidence = Evidence {
            enabled,
            program,
            config: Some(STOCK_CONFIG),
            installed: true,
            os_release: "ID=debian\n",
            ..Evidence::default()
        };
        assert_eq!(detect(&evidence, is_leftover_file).distro, expected);
    }

    const AMAZON: &str = "ID=\"amzn\"\nPLATFORM_ID=\"platform:al2023\"\n";

    #[rstest]
    #[case::kind(
        "--provider-id=kind://docker/kind/kind-worker",
        "ID=debian\n",
        Distro::Kind
    )]
    #[case::minikube(
        "/var/lib/minikube/binaries/v1.33.1/kubelet\0--v=2",
        "ID=buildroot\n",
        Distro::Minikube
    )]
    #[case::minikube_in_a_container(
        "/var/lib/minikube/binaries/v1.33.1/kubelet",
        "ID=debian\n",
        Distro::Minikube
    )]
    #[case::aks_ubuntu(
        "--node-labels=agentpool=a,kubernetes.azure.com/agentpool=a",
        "ID=ubuntu\nID_LIKE=debian\n",
        Distro::Aks
    )]
    #[case::aks_azure_linux(
        "--node-labels=kubernetes.azure.com/mode=user",
        "ID=azurelinux\n",
        Distro::Aks
    )]
    #[case::aks_read_only(
        "--node-labels=kubernetes.azure.com/mode=user",
        "ID=azurelinux\nVARIANT_ID=osguard\n",
        Distro::Aks
    )]
    #[case::aks_container_linux(
        "--node-labels=kubernetes.azure.com/mode=user",
        "ID=azurelinux\nVARIANT_ID=azurecontainerlinux\n",
        Distro::Aks
    )]
    #[case::eks_al2(
        "--config\0/etc/kubernetes/kubelet/kubelet-config.json",
        "ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\n",
        Distro::Eks
    )]
    #[case::eks_al2023(
        "--image-credential-provider-bin-dir=/etc/eks/image-credential-provider",
        AMAZON,
        Distro::EksAl2023
    )]
    #[case::eks_ubuntu(
        "--image-credential-provider-bin-dir\0/etc/eks/image-credential-provider",
        "ID=ubuntu\n",
        Distro::Eks
    )]
    #[case::eks_bottlerocket(
        "--node-labels=eks.amazonaws.com/nodegroup=a\0/etc/eks/x",
        "ID=bottlerocket\n",
        Distro::Bottlerocket
    )]
    #[case::gke_ubuntu("/home/kubernetes/bin/kubelet\0--v=2", "ID=ubuntu\n", Distro::Gke)]
    #[case::gke_cos("/home/kubernetes/bin/kubelet\0--v=2", "ID=cos\n", Distro::Cos)]
    #[case::doks(
        "--node-labels=doks.digitalocean.com/node-id=1,doks.digitalocean.com/node-pool=a",
        "ID=debian\n",
        Distro::Doks
    )]
    #[case::kubeadm(
        "/usr/bin/kubelet\0--config=/var/lib/kubelet/config.yaml",
        "ID=debian\n",
        Distro::Debian
    )]
    #[case::kubeadm_on_amazon_linux(
        "/usr/bin/kubelet\0--config=/var/lib/kubelet/config.yaml",
        AMAZON,
        Distro::Rpm
    )]
    fn a_managed_node_is_detected_by_its_kubelet_alone(
        #[case] kubelet: &str,
        #[case] os_release: &str,
        #[case] expected: Distro,
        #[values(false, true)] has_leftover_files: bool,
    ) {
        let (program, unit, init, _) = STOCK_RUNS;
        let evidence = Evidence {
            program: Some(program),
            unit: Some(unit),
            init,
            kubelet,
            os_release,
            ..Evidence::default()
        };
        let present =
            |file: &str| has_leftover_files && (is_leftover_file(file) || is_image_file(file));
        assert_eq!(detect(&evidence, present).distro, expected);
    }

    #[rstest]
    #[case::kind("/kind/version", "ID=debian\n", Distro::Kind)]
    #[case::aks("/opt/azure/vhd-install.complete", "ID=ubuntu\n", Distro::Aks)]
    #[case::eks("/etc/eks/bootstrap.sh", "ID=amzn\n", Distro::Eks)]
    #[case::eks_al2023("/usr/bin/nodeadm", AMAZON, Distro::EksAl2023)]
    #[case::none("/etc/containerd/config.toml", AMAZON, Distro::Rpm)]
    fn a_machine_image_without_a_running_kubelet_is_detected_by_its_files(
        #[case] file: &str,
        #[case] os_release: &str,
        #[case] expected: Distro,
        #[values(false, true)] has_leftover_files: bool,
    ) {
        let evidence = Evidence {
            installed: true,
            os_release,
            ..Evidence::default()
        };
        let present = |path: &str| path == file || has_leftover_files && is_leftover_file(path);
        assert_eq!(detect(&evidence, present).distro, expected);
    }

    /// Rows that can be detected by files; k3d is detected only by process 1.
    fn told_by_files() -> impl Iterator<Item = &'static DistroSpec> {
        let by_files = |spec: &&DistroSpec| !spec.data.is_empty() && spec.init.is_empty();
        TABLE.iter().filter(by_files)
    }

    #[test]
    fn the_distribution_of_an_image_is_detected_by_its_files() {
        let idle = Evidence {
            os_release: "ID=debian\n",
            ..Evidence::default()
        };
        for spec in told_by_files() {
            for file in spec.programs.iter().chain(spec.data) {
                let found = detect(&idle, |path| path == *file).distro;
                assert_eq!(found, spec.distro, "{file}");
            }
            // The data of a former distribution counts less than an installed program.
            for program in spec.programs {
                let stale = |path: &str| {
                    let mut specs = TABLE.iter();
                    path == *program || specs.any(|spec| spec.data.contains(&path))
                };
                assert_eq!(detect(&idle, stale).distro, spec.distro, "{program}");
            }
        }
        let nothing = detect(&idle, |path| path == "/etc/containerd/config.toml");
        assert_eq!(nothing.distro, Distro::Debian);
    }

    #[test]
    fn files_of_a_removed_distribution_are_ignored() {
        let os_release = "ID=debian\n";
        let (program, unit, ..) = STOCK_RUNS;
        let runs = Evidence {
            program: Some(program),
            unit: Some(unit),
            os_release,
            ..Evidence::default()
        };
        let stopped = Evidence {
            installed: true,
            os_release,
            ..Evidence::default()
        };
        for spec in told_by_files() {
            let left = |path: &str| spec.programs.contains(&path) || spec.data.contains(&path);
            for evidence in [&runs, &stopped] {
                assert_eq!(detect(evidence, left).distro, Distro::Debian, "{}", spec.id);
            }
        }
    }

    #[rstest]
    #[case::a_user_s_directory("/home/u/rancher/k3s/containerd", "", "", "")]
    #[case::a_longer_name("/var/lib/rancher/k3s-tools/containerd", "", "", "")]
    #[case::a_copy_elsewhere("/tmp/var/lib/k0s/bin/containerd", "", "", "")]
    #[case::a_socket_that_only_contains_the_name("", "", "/run/not-crio/crio.sock", "")]
    #[case::a_value_that_only_contains_a_label(
        "",
        "",
        "",
        "--node-labels=a=x.kubernetes.azure.com/y"
    )]
    #[case::a_path_that_only_contains_another("", "", "", "--config=/data/etc/eks/a")]
    #[case::a_process_1_that_only_contains_a_name("", "/sbin/ink3s", "", "")]
    fn a_distribution_is_detected_by_whole_path_components(
        #[case] program: &str,
        #[case] init: &str,
        #[case] endpoint: &str,
        #[case] kubelet: &str,
    ) {
        let evidence = Evidence {
            program: (!program.is_empty()).then_some(program),
            init,
            endpoint: (!endpoint.is_empty()).then_some(endpoint),
            kubelet,
            installed: true,
            os_release: "ID=debian\n",
            ..Evidence::default()
        };
        assert_eq!(detect(&evidence, |_| false).distro, Distro::Debian);
        assert!(!is_embedded(program, None));
    }

    #[test]
    fn the_path_of_the_configuration_determines_the_distribution() {
        let evidence = Evidence {
            config: Some("/var/snap/microk8s/current/args/containerd-template.toml"),
            installed: true,
            ..Evidence::default()
        };
        assert_eq!(detect(&evidence, |_| false).distro, Distro::MicroK8s);
    }

    #[test]
    fn a_refused_distribution_has_instructions() {
        for spec in TABLE {
            let named = spec.unsupported.is_none_or(|unsupported| {
                unsupported.message.starts_with("this node ") && !unsupported.help.ends_with('.')
            });
            assert!(named, "{}", spec.id);
            assert!(!spec.directories.is_empty(), "{}", spec.id);
        }
    }

    #[test]
    fn every_distribution_has_a_unique_name() {
        for spec in TABLE {
            assert_eq!(by_id(spec.id).distro, spec.distro, "{}", spec.id);
        }
    }

    #[test]
    fn a_service_is_recognised_by_the_prefix_of_its_name() {
        for (id, unit, expected) in [
            ("k3s", "k3s.service", true),
            ("k3s", "k3s-agent.service", true),
            ("k3s", "k3sup.service", false),
            ("rke2", "rke2-server.service", true),
            ("debian", "containerd.service", false),
        ] {
            assert_eq!(by_id(id).has_unit(unit), expected, "{unit}");
        }
    }
}
