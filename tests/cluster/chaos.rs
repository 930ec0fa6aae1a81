//! Random tasks of people and random faults on the whole cluster. After each of them, labels, host, Shims and `farrier status` agree, and what is
//! asked for is reached. `cargo xtask chaos` runs this; `cargo xtask test` does not, because it takes as long as it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use farrier::names;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use serde_json::{Value, json};

use crate::random::Random;
use crate::support::{Artifact, Cluster, SHIM, eventually_within, shim_for};

/// The Shim that comes, goes and changes its release. The chart's Shim is there all the time, for annotated nodes.
const OTHER: &str = "chaos";

/// How long the cluster may take after a step until everything is as asked for: the longest pause between two attempts, and an attempt.
const LIMIT: Duration = Duration::from_mins(12);

/// How long the others may take to replace a leader that is paused, as README promises.
const TAKEOVER: Duration = Duration::from_secs(20);

/// How long a leader is away.
const LOSS: Duration = Duration::from_secs(30);

/// A file that fills the file system of `/opt`.
const FILL: &str = "/opt/fill";

/// What is asked for, and what people did on the hosts.
struct Chaos {
    cluster: Cluster,
    random: Random,
    nodes: Vec<String>,
    /// The nodes with the annotation.
    annotated: BTreeSet<String>,
    /// The nodes that the other Shim selects.
    selected: BTreeSet<String>,
    /// The release of the other Shim, if there is one.
    release: Option<usize>,
    /// The configuration of each node before the first step, with the lines that people added since.
    configs: BTreeMap<String, String>,
    /// The digests of all other files of the configuration of each node before the first step.
    others: BTreeMap<String, String>,
    edits: usize,
}

/// Prints the digests of the files of containerd's configuration but the root.
const OTHER_FILES: &str = "cd /etc/containerd; find . -type f ! -path ./config.toml -print0 | sort -z | xargs -0r sha256sum";

#[derive(Debug, Clone, Copy)]
enum Step {
    Annotation,
    Selection,
    OtherShim,
    KilledInstaller,
    KilledController,
    PausedLeader,
    CutOffLeader,
    ApiServer,
    Edit,
    PendingEdit,
    Restart,
    SlowCri,
    FullDisk,
    Webhook,
    PowerFailure,
}

/// How a leader is taken away.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// Its process is stopped.
    Paused,
    /// Its packets vanish.
    CutOff,
}

/// The steps to pick from; those of people come more often than faults.
const STEPS: [Step; 20] = [
    Step::Annotation,
    Step::Annotation,
    Step::Annotation,
    Step::Selection,
    Step::Selection,
    Step::OtherShim,
    Step::OtherShim,
    Step::KilledInstaller,
    Step::KilledInstaller,
    Step::KilledController,
    Step::PausedLeader,
    Step::CutOffLeader,
    Step::ApiServer,
    Step::Edit,
    Step::PendingEdit,
    Step::Restart,
    Step::SlowCri,
    Step::FullDisk,
    Step::Webhook,
    Step::PowerFailure,
];

#[tokio::test(flavor = "multi_thread")]
async fn random_tasks_and_faults_end_as_asked_for() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let minutes = number("FARRIER_MINUTES").expect("run this by `cargo xtask chaos`");
    let seed = number("FARRIER_SEED").unwrap();
    let mut chaos = Chaos::start(seed).await;
    let watcher = tokio::spawn(never_two_jobs(chaos.cluster.client.clone()));
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut count = 0;
    while Instant::now() < end {
        let pick = usize::try_from(chaos.random.below(STEPS.len() as u64)).unwrap();
        let step = STEPS[pick];
        count += 1;
        let since = Instant::now();
        let what = chaos.take(step).await;
        chaos.holds().await;
        assert!(
            !watcher.is_finished(),
            "two Jobs for a node: {:?}",
            watcher.await
        );
        eprintln!(
            "step {count}: {step:?}: {what}: as asked for after {:.1} s",
            since.elapsed().as_secs_f64()
        );
    }
    watcher.abort();
    chaos.end().await;
    eprintln!("FARRIER_SEED={seed}: {count} steps");
}

/// Ends, with a panic, if two unfinished Jobs exist for a node. It sees each change of each Job, unless the API server forgets them while it
/// is away.
async fn never_two_jobs(client: kube::Client) {
    let jobs: Api<Job> = Api::namespaced(client, "farrier");
    let mut changes = pin!(watcher(jobs, watcher::Config::default()).default_backoff());
    let mut running: BTreeMap<String, String> = BTreeMap::new();
    while let Some(change) = changes.next().await {
        match change {
            Ok(watcher::Event::Init) => running.clear(),
            Ok(watcher::Event::InitApply(job) | watcher::Event::Apply(job)) => {
                let name = job.name_any();
                running.remove(&name);
                if let Some(node) = node_of_running(&job) {
                    let other = running.iter().find(|(_, of)| **of == node);
                    assert_eq!(other, None, "{name} is a second Job of {node}");
                    running.insert(name, node);
                }
            }
            Ok(watcher::Event::Delete(job)) => {
                running.remove(&job.name_any());
            }
            // The API server may be away.
            Ok(watcher::Event::InitDone) | Err(_) => {}
        }
    }
}

/// The node that the Job changes, unless the Job has ended or is being deleted.
fn node_of_running(job: &Job) -> Option<String> {
    let status = job.status.clone().unwrap_or_default();
    let is_over = status.completion_time.is_some() || status.failed.unwrap_or(0) > 0;
    if is_over || job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let template = job.spec.as_ref()?.template.metadata.as_ref()?;
    let annotations = template.annotations.as_ref()?;
    annotations.get(names::NODE_NAME_ANNOTATION).cloned()
}

/// When the Event was seen last.
fn last_time(event: &Event) -> Option<jiff::Timestamp> {
    let series = event.series.as_ref().map(|it| it.last_observed_time.0);
    series.or(event.event_time.as_ref().map(|it| it.0))
}

impl Chaos {
    async fn start(seed: u64) -> Self {
        let cluster = Cluster::with_farrier().await;
        cluster.scale(2).await;
        let nodes = cluster.node_names();
        let program = std::env::var("FARRIER_BINARY").unwrap();
        let (mut configs, mut others) = (BTreeMap::new(), BTreeMap::new());
        for node in &nodes {
            let path = cluster.root(node).join("usr/local/bin/farrier");
            std::fs::copy(&program, path).unwrap();
            let config = cluster.sh(node, "cat /etc/containerd/config.toml");
            configs.insert(node.clone(), config);
            others.insert(node.clone(), cluster.sh(node, OTHER_FILES));
            cluster
                .label(node, &format!("test.farrier.dev/{OTHER}"), None)
                .await;
        }
        Self {
            cluster,
            random: Random(seed),
            nodes,
            annotated: BTreeSet::new(),
            selected: BTreeSet::new(),
            release: None,
            configs,
            others,
            edits: 0,
        }
    }

    fn any_node(&mut self) -> String {
        let pick = self.random.below(self.nodes.len() as u64);
        self.nodes[usize::try_from(pick).unwrap()].clone()
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    /// Takes a step, and says what was done.
    async fn take(&mut self, step: Step) -> String {
        match step {
            Step::Annotation => {
                let node = self.any_node();
                self.toggle_annotation(&node).await
            }
            Step::Selection => self.toggle_selection().await,
            Step::OtherShim => self.change_other_shim().await,
            Step::KilledInstaller => self.kill_installer().await,
            Step::KilledController => self.kill_controller().await,
            Step::PausedLeader => self.lose_leader(Loss::Paused).await,
            Step::CutOffLeader => self.lose_leader(Loss::CutOff).await,
            Step::ApiServer => {
                let node = self.any_node();
                let done = self.toggle_annotation(&node).await;
                self.cluster.restart_api_server().await;
                format!("{done}, and the API server was killed")
            }
            Step::Edit => {
                let node = self.any_node();
                self.edit(&node);
                self.cluster.sh(&node, "systemctl restart containerd");
                format!("{node} was edited and restarted")
            }
            Step::PendingEdit => self.leave_edit_pending().await,
            Step::Restart => {
                let node = self.any_node();
                let done = self.toggle_annotation(&node).await;
                self.cluster.sh(&node, "systemctl restart containerd");
                format!("{done}, and containerd was restarted")
            }
            Step::SlowCri => self.slow_cri().await,
            Step::FullDisk => self.fill_disk().await,
            Step::Webhook => self.break_webhook().await,
            Step::PowerFailure => {
                let node = self.any_node();
                let done = self.toggle_annotation(&node).await;
                self.cluster.power_failure(&node);
                format!("{done}, and the node's power failed")
            }
        }
    }

    async fn toggle_annotation(&mut self, node: &str) -> String {
        let is_on = self.annotated.insert(node.to_owned());
        if !is_on {
            self.annotated.remove(node);
        }
        self.cluster.annotate(node, is_on.then_some("true")).await;
        format!("{node} annotated: {is_on}")
    }

    /// Begins a change of all nodes, which takes several turns.
    async fn begin_rollout(&mut self) -> String {
        let mut done = Vec::new();
        for node in self.nodes.clone() {
            done.push(self.toggle_annotation(&node).await);
        }
        done.join(", ")
    }

    async fn toggle_selection(&mut self) -> String {
        let node = self.any_node();
        let is_on = self.selected.insert(node.clone());
        if !is_on {
            self.selected.remove(&node);
        }
        let key = format!("test.farrier.dev/{OTHER}");
        let value = is_on.then_some("true");
        self.cluster.label(&node, &key, value).await;
        format!("{node} selected: {is_on}")
    }

    fn artifact(&self, release: usize) -> &Artifact {
        let artifacts = &self.cluster.artifacts;
        [&artifacts.shim, &artifacts.upgrade][release]
    }

    async fn change_other_shim(&mut self) -> String {
        let is_deleted = self.chance(3);
        match self.release {
            None => {
                let release = usize::from(self.chance(2));
                let shim = shim_for(OTHER, self.artifact(release));
                self.cluster.create_shim(&shim).await;
                self.release = Some(release);
                format!("created with release {release}")
            }
            Some(_) if is_deleted => {
                let shims = self.cluster.shims();
                shims.delete(OTHER, &DeleteParams::default()).await.unwrap();
                self.release = None;
                "deleted".to_owned()
            }
            Some(release) => {
                let release = 1 - release;
                let shim = shim_for(OTHER, self.artifact(release));
                let patch =
                    Patch::Merge(json!({"spec": {"fetchStrategy": shim.spec.fetch_strategy}}));
                let parameters = PatchParams::default();
                let shims = self.cluster.shims();
                shims.patch(OTHER, &parameters, &patch).await.unwrap();
                self.release = Some(release);
                format!("changed to release {release}")
            }
        }
    }

    /// Kills the installer of a node at a random moment, if one comes within ten seconds.
    async fn kill_installer(&mut self) -> String {
        let node = self.any_node();
        let done = self.toggle_annotation(&node).await;
        let after = self.random.below(1_500);
        let seconds = Duration::from_millis(after).as_secs_f64();
        let line = format!(
            "for turn in $(seq 200); do
               if pgrep -f '[f]arrier install' >/dev/null; then sleep {seconds}; pkill -KILL -f '[f]arrier install' && echo killed; exit 0; fi
               sleep 0.05
             done"
        );
        let output = self.cluster.try_sh(&node, &line);
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        format!("{done}, installer after {after} ms: {told:?}")
    }

    fn controller_pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), "farrier")
    }

    /// The leader, once the other replica is ready to replace it: the kubelet may start a container again only minutes after it ended.
    async fn replaceable_leader(&self) -> String {
        let deployments: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), "farrier");
        eventually_within(LIMIT, "both replicas are ready", async || {
            let found = deployments.get("farrier").await;
            let status = found.map_err(|error| error.to_string())?.status;
            let ready = status.as_ref().and_then(|status| status.ready_replicas);
            if ready == Some(2) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
        self.leader().await
    }

    async fn leader(&self) -> String {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), "farrier");
        let pods = self.controller_pods();
        eventually_within(LIMIT, "a replica holds the Lease", async || {
            let lease = leases
                .get_opt("farrier")
                .await
                .map_err(|it| it.to_string())?;
            let holder = lease.and_then(|lease| lease.spec?.holder_identity);
            let holder = holder.ok_or("the Lease has no holder")?;
            match pods.get_opt(&holder).await {
                Ok(Some(_)) => Ok(holder),
                other => Err(format!("{holder}: {other:?}")),
            }
        })
        .await
    }

    async fn kill_controller(&mut self) -> String {
        let leader = self.leader().await;
        let done = self.begin_rollout().await;
        let started = self.random.below(3_000);
        tokio::time::sleep(Duration::from_millis(started)).await;
        let now = DeleteParams::default().grace_period(0);
        let deleted = self.controller_pods().delete(&leader, &now).await;
        deleted.unwrap();
        format!("{done}, and the leader {leader} was killed")
    }

    /// Takes the leader away for a while, in the middle of a change.
    async fn lose_leader(&mut self, how: Loss) -> String {
        let leader = self.replaceable_leader().await;
        let done = self.begin_rollout().await;
        let started = self.random.below(3_000);
        tokio::time::sleep(Duration::from_millis(started)).await;
        let since = Instant::now();
        match how {
            Loss::Paused => self.cluster.signal_controller(&leader, "STOP").await,
            Loss::CutOff => self.cluster.connect_controller(&leader, false).await,
        }
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), "farrier");
        eventually_within(TAKEOVER, "another replica leads", async || {
            let lease = leases.get("farrier").await.unwrap();
            let holder = lease.spec.unwrap().holder_identity;
            if holder.as_ref().is_some_and(|it| *it != leader) {
                Ok(())
            } else {
                Err(holder)
            }
        })
        .await;
        let taken_over = since.elapsed().as_secs_f64();
        tokio::time::sleep(LOSS.saturating_sub(since.elapsed())).await;
        match how {
            Loss::Paused => self.cluster.signal_controller(&leader, "CONT").await,
            Loss::CutOff => self.cluster.connect_controller(&leader, true).await,
        }
        format!(
            "{done}, and the leader {leader} was {how:?} for 30 s, taken over after {taken_over:.1} s"
        )
    }

    /// Somebody adds a line to the configuration of containerd.
    fn edit(&mut self, node: &str) {
        self.edits += 1;
        let line = format!("# edit {} of the administrator\n", self.edits);
        let append = format!("printf '%s' '{line}' >> /etc/containerd/config.toml");
        self.cluster.sh(node, &append);
        self.configs.get_mut(node).unwrap().push_str(&line);
    }

    /// Somebody edits, and restarts containerd only after Farrier was asked for a change.
    async fn leave_edit_pending(&mut self) -> String {
        let node = self.any_node();
        self.edit(&node);
        let done = self.toggle_annotation(&node).await;
        let seconds = 5 + self.random.below(20);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        self.cluster.sh(&node, "systemctl restart containerd");
        format!("{done}, and an edit was pending for {seconds} s")
    }

    /// containerd does not answer for a while, as with a slow disk.
    async fn slow_cri(&mut self) -> String {
        let node = self.any_node();
        let done = self.toggle_annotation(&node).await;
        let seconds = 2 + self.random.below(20);
        let line = format!(
            "pid=$(systemctl show containerd -p MainPID --value); kill -STOP $pid; sleep {seconds}; kill -CONT $pid"
        );
        self.cluster.try_sh(&node, &line);
        format!("{done}, and containerd hung for {seconds} s")
    }

    /// The file system of `/opt` is full while a node without shims should get one.
    async fn fill_disk(&mut self) -> String {
        let free =
            |node: &&String| !self.annotated.contains(*node) && !self.selected.contains(*node);
        let Some(node) = self.nodes.iter().find(free).cloned() else {
            return "no node is free".to_owned();
        };
        self.cluster.sh(
            &node,
            &format!(
                "cp -a /opt /tmp/opt; mount -t tmpfs -o size=$(( $(du -sm /opt | cut -f1) + 8 ))m tmpfs /opt
                 cp -a /tmp/opt/. /opt; rm -r /tmp/opt
                 cat /dev/zero > {FILL} 2>/dev/null || true"
            ),
        );
        let done = self.toggle_annotation(&node).await;
        let progress = names::shim_label(SHIM);
        self.cluster.label_becomes(&node, &progress, "failed").await;
        self.toggle_annotation(&node).await;
        self.cluster.marks_vanish(&node).await;
        self.cluster
            .sh(&node, &format!("rm -f {FILL}; umount -l /opt"));
        format!("{done}, the disk was full")
    }

    /// A webhook that does not answer refuses all Jobs for a while.
    async fn break_webhook(&mut self) -> String {
        let webhooks: Api<
            k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration,
        > = Api::all(self.cluster.client.clone());
        let webhook = serde_json::from_value(json!({
            "metadata": {"name": "chaos"},
            "webhooks": [{
                "name": "chaos.farrier.dev", "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 1,
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "default", "name": "nowhere"}},
                "rules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}],
            }],
        }))
        .unwrap();
        let created = webhooks.create(&PostParams::default(), &webhook).await;
        created.unwrap();
        let node = self.any_node();
        let done = self.toggle_annotation(&node).await;
        let seconds = 5 + self.random.below(30);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let deleted = webhooks.delete("chaos", &DeleteParams::default()).await;
        deleted.unwrap();
        format!("{done}, and a webhook refused Jobs for {seconds} s")
    }

    /// The handlers that `node` should serve.
    fn wanted(&self, node: &str) -> BTreeMap<&'static str, usize> {
        let annotated = self.annotated.contains(node).then_some((SHIM, 0));
        let selected = self.release.filter(|_| self.selected.contains(node));
        let selected = selected.map(|release| (OTHER, release));
        annotated.into_iter().chain(selected).collect()
    }

    /// Waits until everything is as asked for, and checks meanwhile that no node advertises what it does not serve.
    async fn holds(&self) {
        for node in &self.nodes {
            eventually_within(LIMIT, &format!("{node} is as asked for"), async || {
                self.advertises_truly(node).await;
                self.is_as_asked_for(node).await
            })
            .await;
        }
        eventually_within(LIMIT, "the Shims tell it", async || {
            self.shims_agree().await
        })
        .await;
        eventually_within(LIMIT, "`farrier status` tells it", async || {
            self.status_agrees()
        })
        .await;
        eventually_within(LIMIT, "the Events tell it", async || {
            self.events_agree().await
        })
        .await;
    }

    /// The handlers that the node advertises.
    async fn advertised(&self, node: &str) -> Result<BTreeSet<&'static str>, String> {
        let found = self.cluster.nodes().get(node).await;
        let found = found.map_err(|error| error.to_string())?;
        let is_on = |name: &&'static str| {
            let key = names::handler_label(name);
            found
                .labels()
                .get(&key)
                .is_some_and(|value| value == "true")
        };
        Ok([SHIM, OTHER].into_iter().filter(is_on).collect())
    }

    /// A handler that is advertised before and after a look at the host is in the host's state file at that look.
    async fn advertises_truly(&self, node: &str) {
        let Ok(before) = self.advertised(node).await else {
            return;
        };
        let state = self.cluster.try_sh(node, "cat /var/lib/farrier/state.json");
        let state = String::from_utf8_lossy(&state.stdout).into_owned();
        let Ok(after) = self.advertised(node).await else {
            return;
        };
        for name in before.intersection(&after) {
            assert!(
                state.contains(&format!("\"{name}\"")),
                "{node} advertises {name}, and its state file is {state:?}"
            );
        }
    }

    async fn is_as_asked_for(&self, node: &str) -> Result<(), String> {
        let object = self.cluster.nodes().get(node).await;
        object.map_err(|error| error.to_string())?;
        if !self.cluster.node_is_ready(node).await {
            return Err("not ready".to_owned());
        }
        let wanted = self.wanted(node);
        let advertised = self.advertised(node).await?;
        let marks = self.cluster.marks(node).await;
        let progress = |name: &str| marks.get(&names::shim_label(name));
        for name in [SHIM, OTHER] {
            let expected = wanted.contains_key(name).then_some("provisioned");
            if progress(name).map(String::as_str) != expected
                || advertised.contains(name) != wanted.contains_key(name)
            {
                return Err(format!("{wanted:?}: {marks:#?}"));
            }
        }
        let doctor = self
            .cluster
            .try_sh(node, "farrier doctor --log error -o json");
        let doctor: Value = serde_json::from_slice(&doctor.stdout)
            .map_err(|error| format!("doctor: {error}: {doctor:?}"))?;
        let handlers = doctor["handlers"].as_array().cloned().unwrap_or_default();
        let served = handlers.iter().filter(|it| it["condition"] == "served");
        let served: BTreeMap<&str, &str> = served
            .filter_map(|it| Some((it["handler"].as_str()?, it["sha256"].as_str()?)))
            .collect();
        let expected = wanted.iter().map(|(name, release)| {
            let digest = self.artifact(*release).binary_sha256.as_deref();
            (*name, digest.unwrap())
        });
        if served != expected.collect() || doctor["healthy"] != true {
            return Err(format!("{wanted:?}: {doctor:#}"));
        }
        if wanted.is_empty() {
            self.is_as_people_left_it(node);
        }
        Ok(())
    }

    /// The files of a node without shims are those of people.
    fn is_as_people_left_it(&self, node: &str) {
        let config = self.cluster.sh(node, "cat /etc/containerd/config.toml");
        assert_eq!(config, self.configs[node], "{node}");
        let others = self.cluster.sh(node, OTHER_FILES);
        assert_eq!(others, self.others[node], "{node}");
    }

    async fn shims_agree(&self) -> Result<(), String> {
        for name in [SHIM, OTHER] {
            let shim = self.cluster.shims().get_opt(name).await;
            let shim = shim.map_err(|error| error.to_string())?;
            let Some(shim) = shim else {
                if name == OTHER && self.release.is_none() {
                    continue;
                }
                return Err(format!("{name} is absent"));
            };
            let count = self
                .nodes
                .iter()
                .filter(|node| self.wanted(node).contains_key(name))
                .count();
            let status = serde_json::to_value(&shim.status).unwrap();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let is = |kind: &str, expected: &str| {
                let mut conditions = conditions.iter();
                conditions.any(|it| it["type"] == kind && it["status"] == expected)
            };
            let is_ready = count == 0 || is("Ready", "True");
            if status["nodesReady"] != count || !is_ready || !is("Degraded", "False") {
                return Err(format!("{name} on {count} nodes: {status:#}"));
            }
        }
        Ok(())
    }

    fn status_agrees(&self) -> Result<(), String> {
        let text = self.cluster.farrier(&["status", "-o", "json"]);
        let table: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let lines = table["nodes"].as_array().cloned().unwrap_or_default();
        for node in &self.nodes {
            let line = lines.iter().find(|line| line["name"] == **node);
            let shims = line.map(|line| &line["shims"]).and_then(Value::as_object);
            let shims = shims.cloned().unwrap_or_default();
            let told: BTreeMap<&str, &str> = shims
                .iter()
                .filter_map(|(name, cell)| Some((name.as_str(), cell["progress"].as_str()?)))
                .collect();
            let expected = self.wanted(node).into_keys();
            if told != expected.map(|name| (name, "provisioned")).collect() {
                return Err(text);
            }
        }
        Ok(())
    }

    /// The newest Event of each node and Shim is no warning: what failed was taken back.
    async fn events_agree(&self) -> Result<(), String> {
        let events: Api<Event> = Api::all(self.cluster.client.clone());
        let list = events.list(&ListParams::default()).await;
        let mut newest: BTreeMap<String, Event> = BTreeMap::new();
        for event in list.map_err(|error| error.to_string())?.items {
            let controller = event.reporting_controller.as_deref().unwrap_or_default();
            let name = event.regarding.as_ref().and_then(|it| it.name.clone());
            if let Some(name) = name.filter(|_| controller == "farrier.dev/controller") {
                let other = newest.get(&name);
                if other.is_none_or(|other| last_time(other) <= last_time(&event)) {
                    newest.insert(name, event);
                }
            }
        }
        let warning = newest
            .into_values()
            .find(|event| event.type_.as_deref() != Some("Normal"));
        warning.map_or(Ok(()), |event| Err(format!("{event:#?}")))
    }

    /// Takes everything back.
    async fn end(mut self) {
        for node in self.nodes.clone() {
            if self.annotated.contains(&node) {
                self.toggle_annotation(&node).await;
            }
        }
        if self.release.take().is_some() {
            let shims = self.cluster.shims();
            shims.delete(OTHER, &DeleteParams::default()).await.unwrap();
        }
        self.holds().await;
    }
}
