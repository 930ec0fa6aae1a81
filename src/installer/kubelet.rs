//! Finds the container runtime that a host's kubelet uses, by its process. Reads `/proc` and the kubelet's configuration, and nothing of
//! containerd.

use super::daemon::option;
use super::host::HostRoot;

/// A kubelet's command line and configuration have some kilobytes.
const SMALL: u64 = 1 << 18;

/// A kubelet that runs as a program of its own; k3s, RKE2 and `MicroK8s` have theirs in another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kubelet {
    /// Its command line, with a NUL behind each argument.
    pub arguments: String,
    /// The socket of the runtime that it uses, where it says so.
    pub endpoint: Option<String>,
}

/// The kubelet of this host; among several, one that says which runtime it uses.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn find(host: &HostRoot) -> Result<Option<Kubelet>, super::Error> {
    let pids = host.list("/proc")?;
    let pids = pids.iter().filter_map(|name| name.parse::<u32>().ok());
    let mut found = None;
    for kubelet in pids.filter_map(|pid| of_process(host, pid)) {
        if kubelet.endpoint.is_some() {
            return Ok(Some(kubelet));
        }
        found.get_or_insert(kubelet);
    }
    Ok(found)
}

/// The socket of the runtime that the kubelet of this host uses; `None` where no process of that name says so.
///
/// # Errors
/// When `/proc` can't be listed.
pub fn endpoint(host: &HostRoot) -> Result<Option<String>, super::Error> {
    Ok(find(host)?.and_then(|kubelet| kubelet.endpoint))
}

/// Whether two paths are those of one socket: `/var/run` is a link to `/run`.
pub fn same(one: &str, other: &str) -> bool {
    let plain = |path: &str| path.strip_prefix("/var/run/").map(str::to_owned);
    let run =
        |path: &str| plain(path).map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
    run(one) == run(other)
}

fn of_process(host: &HostRoot, pid: u32) -> Option<Kubelet> {
    let read = |path: &str| host.read_text(path, SMALL).ok().flatten();
    if read(&format!("/proc/{pid}/comm"))? != "kubelet\n" || !host.is_root_of(pid) {
        return None;
    }
    let arguments = read(&format!("/proc/{pid}/cmdline"))?;
    let list: Vec<&str> = arguments.split('\0').collect();
    let endpoint = option(&list, &["--container-runtime-endpoint"]).or_else(|| {
        let config = option(&list, &["--config"])?;
        of_config(&read(&config)?)
    });
    Some(Kubelet {
        arguments,
        endpoint,
    })
}

/// `containerRuntimeEndpoint` of a `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1).
fn of_config(text: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("containerRuntimeEndpoint:"))?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(['"', '\'']);
    let path = value.strip_prefix("unix://").unwrap_or(value);
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rstest::rstest;

    use super::*;

    #[test]
    fn the_kubelet_s_configuration_names_its_runtime() {
        let text = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix:///run/k0s/containerd.sock\" # ours\n";
        assert_eq!(of_config(text).as_deref(), Some("/run/k0s/containerd.sock"));
        assert_eq!(of_config("containerRuntimeEndpoint: ''\n"), None);
        assert_eq!(of_config("a:\n  containerRuntimeEndpoint: /x\n"), None);
    }

    #[rstest]
    #[case::plain("containerRuntimeEndpoint: /run/a.sock\n", Some("/run/a.sock"))]
    #[case::windows_line_ends(
        "containerRuntimeEndpoint: unix:///run/a.sock\r\n",
        Some("/run/a.sock")
    )]
    #[case::in_single_quotes(
        "containerRuntimeEndpoint: 'unix:///run/a.sock'\n",
        Some("/run/a.sock")
    )]
    #[case::a_pipe("containerRuntimeEndpoint: npipe:////./pipe/a\n", None)]
    #[case::absent("kind: KubeletConfiguration\n", None)]
    #[case::nothing("", None)]
    fn only_a_path_is_an_endpoint(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(of_config(text).as_deref(), expected);
    }

    /// A host with these processes: comm, command line and whether the root is the host's.
    fn host(processes: &[(&str, &str, bool)]) -> (tempfile::TempDir, HostRoot) {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        for (pid, (comm, cmdline, own)) in (1..).zip(processes) {
            let path = root.join(format!("proc/{pid}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("comm"), format!("{comm}\n")).unwrap();
            std::fs::write(path.join("cmdline"), cmdline).unwrap();
            let theirs = if *own { &root } else { Path::new("/") };
            std::os::unix::fs::symlink(theirs, path.join("root")).unwrap();
        }
        let host = HostRoot::open(&root).unwrap();
        (folder, host)
    }

    const SAYS: &str = "/usr/bin/kubelet\0--container-runtime-endpoint=unix:///run/a.sock\0";
    const SILENT: &str = "/usr/bin/kubelet\0--v=2\0";

    #[rstest]
    #[case::of_this_host(&[("init", "/sbin/init", true), ("kubelet", SAYS, true)], Some((SAYS, Some("/run/a.sock"))))]
    #[case::in_a_container(&[("kubelet", SAYS, false)], None)]
    #[case::of_that_name_alone(&[("kubelite", SAYS, true)], None)]
    #[case::that_does_not_say(&[("kubelet", SILENT, true)], Some((SILENT, None)))]
    #[case::the_one_that_says(&[("kubelet", SILENT, true), ("kubelet", SAYS, true)], Some((SAYS, Some("/run/a.sock"))))]
    #[case::none(&[], None)]
    fn the_kubelet_is_a_process_of_this_host(
        #[case] processes: &[(&str, &str, bool)],
        #[case] expected: Option<(&str, Option<&str>)>,
    ) {
        let (_folder, host) = host(processes);
        let expected = expected.map(|(arguments, endpoint)| Kubelet {
            arguments: arguments.to_owned(),
            endpoint: endpoint.map(str::to_owned),
        });
        assert_eq!(find(&host).unwrap(), expected);
    }

    #[test]
    fn a_socket_under_var_run_is_the_one_under_run() {
        assert!(same("/var/run/crio/crio.sock", "/run/crio/crio.sock"));
        assert!(!same("/run/a.sock", "/run/b.sock"));
    }
}
