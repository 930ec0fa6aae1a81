//! A node of the cluster: its shell, the administrator's view of the host, and the labels and annotations of the node object.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Cluster, DEADLINE, NodeFile, SHIM, eventually};

impl Cluster {
    /// The name of the node that runs this containerd release series, as `1.7`.
    pub fn node_with(&self, series: &str) -> String {
        let node = self
            .file
            .nodes
            .iter()
            .find(|node| node.containerd.starts_with(series));
        node.unwrap_or_else(|| panic!("no node runs containerd {series}"))
            .name
            .clone()
    }

    /// The names of all nodes with a kubelet.
    pub fn node_names(&self) -> Vec<String> {
        let nodes = self.file.nodes.iter();
        nodes.map(|node| node.name.clone()).collect()
    }

    /// Ends all processes of the node at once, as a power failure does, and boots it again. /run is empty then.
    pub fn power_failure(&mut self, name: &str) {
        let node = self.node(name);
        let pid = Pid::from_raw(i32::try_from(node.pid).unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        let end = Instant::now() + DEADLINE;
        // Process 1 ends after all other processes of its namespace. It may stay a zombie.
        while std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
        {
            assert!(Instant::now() < end, "{name} does not end");
            std::thread::yield_now();
        }
        let output = Command::new(std::env::var("FARRIER_XTASK").unwrap())
            .args(["node-launch", name, &node.netns])
            .args([&node.root, &node.root.with_extension("console")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse();
        let mut nodes = self.file.nodes.iter_mut();
        nodes.find(|node| node.name == name).unwrap().pid = pid.unwrap();
    }

    /// Runs a shell line on the node, in all of its namespaces, and gives its standard output; it must succeed.
    pub fn sh(&self, node: &str, line: &str) -> String {
        let output = self.try_sh(node, line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{node}: {line}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    fn node(&self, name: &str) -> &NodeFile {
        let node = self.file.nodes.iter().find(|node| node.name == name);
        node.unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// The path of the node's file system on this machine, without its mounts: /run and /tmp are empty here.
    pub fn root(&self, node: &str) -> &Path {
        &self.node(node).root
    }

    /// As [`sh`](Self::sh), but the command may fail.
    pub fn try_sh(&self, node: &str, line: &str) -> Output {
        let pid = self.node(node).pid.to_string();
        Command::new("nsenter")
            .args([
                "-t", &pid, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "/bin/sh", "-euc", line,
            ])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .output()
            .unwrap()
    }

    /// The state that an administrator would compare: every file under /etc/containerd with its mode and owner, Farrier's
    /// directories, the properties of the units, and the processes.
    pub fn host(&self, node: &str) -> String {
        self.sh(
            node,
            "cd /etc/containerd; find . -printf '%p %y %m %u:%g %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum
             ls -d /opt/farrier /var/lib/farrier 2>/dev/null || true
             for unit in containerd kubelet; do
               systemctl show $unit -p ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,KillMode,NRestarts,NeedDaemonReload
             done",
        )
    }

    /// Sends a signal to the controller whose pod is `pod`, on its node.
    pub async fn signal_controller(&self, pod: &str, signal: &str) {
        let line = format!("kill -{signal} $process");
        self.for_controller(pod, &line).await;
    }

    /// Connects the network of the controller whose pod is `pod`, or cuts it off: its packets vanish.
    pub async fn connect_controller(&self, pod: &str, is_connected: bool) {
        let state = if is_connected { "up" } else { "down" };
        // The end of the pair on the node, so that the pod keeps its routes.
        let line = format!(
            "index=$(nsenter -t $process -n ip -o link show eth0 | sed 's/.*@if\\([0-9]*\\):.*/\\1/')
             name=$(ip -o link | sed -n \"s/^$index: \\([^@:]*\\)[@:].*/\\1/p\"); test -z \"$name\" || ip link set $name {state}"
        );
        self.for_controller(pod, &line).await;
    }

    /// Runs a shell line on the node of the controller whose pod is `pod`; `$process` is the controller.
    async fn for_controller(&self, pod: &str, line: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "farrier");
        let node = pods.get(pod).await.unwrap().spec.unwrap().node_name;
        let line = format!(
            "for process in $(pgrep -f 'farrier controller'); do
               if tr '\\0' '\\n' < /proc/$process/environ | grep -qx FARRIER_IDENTITY={pod}; then {line}; fi
             done"
        );
        self.sh(&node.unwrap(), &line);
    }

    /// The process that containerd's unit runs: another one after a restart.
    pub fn containerd_pid(&self, node: &str) -> String {
        self.sh(node, "systemctl show containerd -p MainPID --value")
    }

    pub async fn patch_node(&self, node: &str, patch: Value) {
        self.nodes()
            .patch(node, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub async fn annotate(&self, node: &str, value: Option<&str>) {
        self.patch_node(
            node,
            json!({"metadata": {"annotations": {"kwasm.sh/kwasm-node": value}}}),
        )
        .await;
    }

    pub async fn label(&self, node: &str, key: &str, value: Option<&str>) {
        self.patch_node(node, json!({"metadata": {"labels": {key: value}}}))
            .await;
    }

    /// The node's labels and annotations of Farrier, KWasm and runtime-class-manager, with values.
    pub async fn marks(&self, node: &str) -> BTreeMap<String, String> {
        let node = self.nodes().get(node).await.unwrap();
        let ours = |key: &str| {
            key.contains("farrier.dev/") && !key.starts_with("test.") || key.contains("kwasm.sh/")
        };
        let labels = node.labels().iter().chain(node.annotations());
        labels
            .filter(|(key, _)| ours(key) || !key.contains('/'))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Waits until the labels and annotations of the node meet the condition `wanted`.
    pub async fn marks_become<F>(
        &self,
        node: &str,
        what: &str,
        wanted: F,
    ) -> BTreeMap<String, String>
    where
        F: Fn(&BTreeMap<String, String>) -> bool,
    {
        eventually(&format!("{node}: {what}"), async || {
            let marks = self.marks(node).await;
            if wanted(&marks) {
                Ok(marks)
            } else {
                Err(marks)
            }
        })
        .await
    }

    pub async fn label_becomes(&self, node: &str, key: &str, value: &str) {
        self.marks_become(node, &format!("{key}={value}"), |marks| {
            marks.get(key).is_some_and(|found| found == value)
        })
        .await;
    }

    /// Waits until the node has no label or annotation of Farrier, and no finished Job is left.
    pub async fn marks_vanish(&self, node: &str) {
        self.marks_become(node, "no label or annotation of Farrier", |marks| {
            !marks.keys().any(|key| {
                key.contains("farrier.dev/") || key.contains("kwasm-provisioned") || key == SHIM
            })
        })
        .await;
    }

    pub async fn node_is_ready(&self, node: &str) -> bool {
        let node = self.nodes().get(node).await.unwrap();
        let conditions = node
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}
