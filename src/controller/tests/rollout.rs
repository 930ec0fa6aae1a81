//! Rollouts over several nodes: their order, the limit of changing nodes, and the halt after a failure.

use std::collections::BTreeSet;

use super::scene::{Scene, scene};
use super::*;
use crate::controller::cluster::ending_pods::PodStates;
use crate::controller::cluster::triggers::Requeue;
use crate::controller::decide::desired::Cluster;
use crate::controller::decide::rollout;
use crate::controller::memory::aggregate::Fleet;

/// A cluster of several nodes that share their Shims.
struct World {
    nodes: Vec<Scene>,
    fleet: Fleet,
}

impl World {
    /// Nodes that serve the Shim `spin`. Later changes of the Shim are rolled out to `most` nodes at a time. The first nodes are
    /// control-plane nodes.
    fn provisioned(control_plane: usize, workers: usize, most: i32) -> Self {
        let nodes = (0..control_plane + workers).map(|at| {
            let mut node = scene().annotated();
            node.node.name = format!("n{at}");
            node.node.uid = format!("uid-{at}");
            node.node.control_plane = at < control_plane;
            let mut node = node
                .stepped()
                .answers(Outcome::Applied, true, None)
                .stepped();
            node.spec().rollout_strategy =
                serde_json::from_value(json!({"type": "rolling", "rolling": {"maxUpdate": most}}))
                    .unwrap();
            node
        });
        let mut world = Self {
            nodes: nodes.collect(),
            fleet: Fleet::default(),
        };
        world.recount();
        world
    }

    fn edit(&mut self, edit: impl Fn(&mut ShimView)) {
        for node in &mut self.nodes {
            edit(&mut node.shims[0]);
        }
        self.recount();
    }

    fn upgrade(&mut self, location: &str) {
        self.edit(|shim| {
            let strategy = &mut shim.spec.as_mut().unwrap().fetch_strategy;
            strategy.anon_http.as_mut().unwrap().location = location.to_owned();
        });
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(self.nodes[0].shims.clone(), false, true)
    }

    fn recount(&mut self) {
        self.fleet = Fleet::default();
        let cluster = self.cluster();
        for node in &mut self.nodes {
            node.blocked = rollout::all_blocked_by_rollout(&node.node, &cluster);
            self.fleet.put(&node.node.name, node.summary_before());
        }
    }

    /// Decides on one node and carries the plan out.
    fn step(&mut self, at: usize) -> Requeue {
        let blocked = {
            let node = &self.nodes[at].node;
            rollout::blocked_by_rollout(&self.fleet.others(&node.name), node, &self.cluster())
        };
        let node = &mut self.nodes[at];
        node.blocked = blocked;
        let requeue = self.fleet.put(&node.node.name, node.summary());
        let stepped = std::mem::replace(node, scene()).stepped();
        self.nodes[at] = stepped;
        requeue
    }

    /// Decides on every node, and then on the nodes that a decision triggers, until no node changes.
    fn settle(&mut self) {
        let mut queue: Vec<usize> = (0..self.nodes.len()).collect();
        let mut steps = 0;
        while let Some(at) = queue.pop() {
            steps += 1;
            assert!(steps < 1_000, "the decisions never end");
            let before = self.nodes[at].node.clone();
            let triggered = self.step(at).nodes;
            // The watch delivers the write.
            if self.nodes[at].node != before {
                queue.insert(0, at);
            }
            for name in triggered {
                let next = self.nodes.iter().position(|node| node.node.name == name);
                queue.insert(0, next.unwrap());
            }
        }
    }

    /// Nodes with a Job.
    fn changing(&self) -> BTreeSet<usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(_, node)| node.job.is_some())
            .map(|(at, _)| at)
            .collect()
    }

    /// The Job of a node ends.
    fn ends(&mut self, at: usize, result: Outcome, reason: Option<&str>) {
        let node = std::mem::replace(&mut self.nodes[at], scene());
        let served = reason.is_none();
        self.nodes[at] = node.answers(result, served, reason);
        self.settle();
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let status = self.nodes[0].status_of(0, &self.fleet).status.unwrap();
        let mut conditions = status.conditions.into_iter();
        let found = conditions
            .find(|condition| condition.type_ == kind)
            .unwrap();
        (found.reason, found.message)
    }
}

#[test]
fn at_most_max_update_nodes_change_at_a_time_and_all_get_their_turn() {
    let mut world = World::provisioned(0, 7, 2);
    world.settle();
    assert_eq!(world.changing(), BTreeSet::new());
    world.upgrade("https://example.org/b");
    world.settle();
    let mut changed = BTreeSet::new();
    while let Some(at) = world.changing().pop_last() {
        assert_eq!(world.changing().len().min(2), world.changing().len());
        changed.insert(at);
        world.ends(at, Outcome::Applied, None);
    }
    assert_eq!(changed.len(), 7);
    let tally = world.fleet.tally("spin");
    assert_eq!((tally.ready, tally.waiting, tally.pending), (7, 0, 0));
}

#[test]
fn nodes_that_wait_for_pods_delay_no_other_node_and_get_their_turn() {
    let web = EndingPod {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u".to_owned(),
        handler: "spin-v2".to_owned(),
    };
    let mut world = World::provisioned(0, 8, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let mut asked = BTreeSet::new();
    // The first five nodes that are asked have a pod.
    while let Some(at) = world.changing().pop_last() {
        assert_eq!(world.changing().len(), 1);
        asked.insert(at);
        let node = std::mem::replace(&mut world.nodes[at], scene());
        world.nodes[at] = if asked.len() > 5 {
            node.answers(Outcome::Applied, true, None)
        } else {
            let web = std::slice::from_ref(&web);
            node.refused_for(web).left(web)
        };
        world.settle();
    }
    assert_eq!(asked.len(), 8);
    let tally = world.fleet.tally("spin");
    assert_eq!((tally.ready, tally.waiting_for_pods.len()), (3, 5));
    // Their pods end, and the watch looks at each of them again and again.
    for node in &mut world.nodes {
        node.pods = node.pods.take().map(|_| PodStates::default());
    }
    for _ in 0..8 {
        for at in 0..8 {
            let _ = world.step(at);
        }
        if let Some(at) = world.changing().pop_last() {
            assert_eq!(world.changing().len(), 1);
            world.ends(at, Outcome::Applied, None);
        }
    }
    assert_eq!(world.fleet.tally("spin").ready, 8);
}

#[test]
fn a_node_that_waits_for_its_turn_keeps_serving_without_new_labels() {
    let mut world = World::provisioned(0, 2, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let changing = world.changing();
    let waiting = usize::from(changing.contains(&0));
    let node = &world.nodes[waiting];
    assert_eq!(node.label("farrier.dev/spin"), Some("provisioned"));
    assert_eq!(node.label("handler.farrier.dev/spin-v2"), Some("true"));
    let (reason, message) = world.condition("Progressing");
    assert_eq!(reason, "Provisioning");
    let expected = "1 of 2 nodes are in progress, 1 wait for their turn";
    assert_eq!(message, expected);
}

#[test]
fn progressing_counts_the_nodes_that_fetch() {
    let mut world = World::provisioned(0, 2, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let at = world.changing().pop_first().unwrap();
    let job = world.nodes[at].job.as_mut().unwrap();
    job.progress = JobProgress::Fetching;
    let requeue = world.step(at);
    assert_eq!(requeue.shims, ["spin".to_owned()].into());
    let (reason, message) = world.condition("Progressing");
    assert_eq!(reason, "Provisioning");
    let expected = "1 of 2 nodes are in progress (1 fetching the artifact), 1 wait for their turn";
    assert_eq!(message, expected);
    world.ends(at, Outcome::Applied, None);
    assert_eq!(world.fleet.tally("spin").fetching, 0);
}

#[test]
fn control_plane_nodes_come_last() {
    let mut world = World::provisioned(2, 2, 1);
    world.upgrade("https://example.org/b");
    let mut order = Vec::new();
    world.settle();
    while let Some(at) = world.changing().pop_first() {
        order.push(at);
        world.ends(at, Outcome::Applied, None);
    }
    let (workers, control_plane) = order.split_at(2);
    assert!(workers.iter().all(|at| *at >= 2), "{order:?}");
    assert!(control_plane.iter().all(|at| *at < 2), "{order:?}");
}

#[test]
fn a_failure_halts_the_rollout_with_node_and_reason_until_the_node_succeeds() {
    let mut world = World::provisioned(0, 4, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let failed = world.changing().pop_first().unwrap();
    world.ends(
        failed,
        Outcome::RolledBack,
        Some("containerd did not start again"),
    );
    assert_eq!(world.changing(), BTreeSet::new());
    let (reason, message) = world.condition("Progressing");
    assert_eq!(reason, "Halted");
    let status = world.nodes[0].status_of(0, &world.fleet).status.unwrap();
    assert_eq!(status.state.as_deref(), Some("Halted"));
    let name = &world.nodes[failed].node.name;
    assert!(
        message.contains(name) && message.contains("did not start again"),
        "{message}"
    );
    // The failed node is tried again. After it succeeds, the other nodes follow.
    for node in &mut world.nodes {
        node.now += SignedDuration::from_secs(30);
    }
    world.settle();
    assert_eq!(world.changing(), BTreeSet::from([failed]));
    world.ends(failed, Outcome::Applied, None);
    assert_eq!(world.changing().len(), 1);
}

#[test]
fn a_new_version_ends_the_halt_of_the_old_versions_rollout() {
    let mut world = World::provisioned(0, 3, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let failed = world.changing().pop_first().unwrap();
    world.ends(failed, Outcome::Partial, Some("wrong digest"));
    world.upgrade("https://example.org/c");
    world.settle();
    assert_eq!(world.changing().len(), 1);
    while let Some(at) = world.changing().pop_first() {
        world.ends(at, Outcome::Applied, None);
    }
    assert_eq!(world.fleet.tally("spin").ready, 3);
}

#[rstest]
#[case::of_the_whole_host(|report: &mut ProvisionReport| report.unsupported = true)]
#[case::of_the_shim(|report: &mut ProvisionReport| {
    report.unsupported_shims.insert("spin".to_owned());
})]
fn an_unsupported_host_does_not_halt_the_rollout(#[case] is_unsupported: fn(&mut ProvisionReport)) {
    let mut world = World::provisioned(0, 3, 1);
    world.upgrade("https://example.org/b");
    world.settle();
    let node = world.changing().pop_first().unwrap();
    let mut report = ProvisionReport::new(Outcome::Refused);
    report.reason = Some("Talos is not changed on the node".to_owned());
    is_unsupported(&mut report);
    let scene = std::mem::replace(&mut world.nodes[node], scene());
    world.nodes[node] = scene.job(JobProgress::Answered(Box::new(report)));
    world.settle();
    assert_eq!(world.changing().len(), 1);
    assert!(!world.changing().contains(&node));
    while let Some(at) = world.changing().pop_first() {
        world.ends(at, Outcome::Applied, None);
    }
    let tally = world.fleet.tally("spin");
    assert_eq!((tally.ready, tally.unsupported.len()), (2, 1));
    assert_eq!(world.condition("Ready").0, "Provisioned");
}

#[test]
fn nodes_that_can_carry_no_shim_take_no_place_in_the_rollout() {
    let mut world = World::provisioned(0, 5, 1);
    world.nodes[1].node.os = "windows".to_owned();
    world.nodes[2].node.runtime = "docker://28.0.1".to_owned();
    let label = ("type".to_owned(), "virtual-kubelet".to_owned());
    world.nodes[4].node.labels.extend([label]);
    world.upgrade("https://example.org/b");
    world.settle();
    let mut changed = BTreeSet::new();
    while let Some(at) = world.changing().pop_first() {
        changed.insert(at);
        world.ends(at, Outcome::Applied, None);
    }
    assert_eq!(changed, BTreeSet::from([0, 3]));
    let tally = world.fleet.tally("spin");
    let failed = tally.failures.len() + tally.pending + tally.waiting;
    assert_eq!((tally.ready, failed, tally.unsupported.len()), (2, 0, 3));
    let (reason, message) = world.condition("Ready");
    assert_eq!(reason, "Provisioned");
    assert!(message.contains(": this node runs windows"), "{message}");
}

#[test]
fn nodes_that_cannot_be_changed_do_not_delay_others() {
    let mut world = World::provisioned(1, 3, 1);
    world.nodes[2].node.ready = false;
    world.nodes[3].node.cordoned = true;
    world.upgrade("https://example.org/b");
    world.settle();
    let mut order = Vec::new();
    while let Some(at) = world.changing().pop_first() {
        order.push(at);
        world.ends(at, Outcome::Applied, None);
    }
    assert_eq!(order, [1, 0]);
    world.nodes[2].node.ready = true;
    world.settle();
    assert_eq!(world.changing(), BTreeSet::from([2]));
}

#[test]
fn a_rolling_removal_goes_node_by_node_and_removes_all_handler_labels_at_once() {
    let mut world = World::provisioned(0, 3, 1);
    world.edit(|shim| shim.deleting = true);
    world.settle();
    assert_eq!(world.changing().len(), 1);
    for node in &world.nodes {
        assert_eq!(node.label("handler.farrier.dev/spin-v2"), None);
        assert_eq!(node.label("farrier.dev/spin"), Some("removing"));
    }
    let mut gone = 0;
    while let Some(at) = world.changing().pop_first() {
        gone += 1;
        world.ends(at, Outcome::Applied, None);
    }
    assert_eq!(gone, 3);
    assert_eq!(world.fleet.tally("spin").carried, 0);
}

#[test]
fn another_replica_continues_a_rollout_where_it_was() {
    let mut world = World::provisioned(0, 5, 2);
    world.upgrade("https://example.org/b");
    world.settle();
    let before = world.changing();
    world.recount();
    world.settle();
    assert_eq!(world.changing(), before);
}

#[test]
fn recreate_changes_all_nodes_at_once_except_the_control_plane() {
    let mut world = World::provisioned(2, 3, 1);
    world.edit(|shim| {
        let strategy = &mut shim.spec.as_mut().unwrap().rollout_strategy;
        *strategy = serde_json::from_value(json!({"type": "recreate"})).unwrap();
    });
    world.upgrade("https://example.org/b");
    world.settle();
    assert_eq!(world.changing(), BTreeSet::from([2, 3, 4]));
    for at in 2..5 {
        world.ends(at, Outcome::Applied, None);
    }
    // A restart of k3s or RKE2 also restarts the API server.
    assert_eq!(world.changing().len(), 1);
}

#[test]
fn control_plane_nodes_come_last_while_more_shims_are_expected() {
    let mut world = World::provisioned(1, 2, 1);
    world.upgrade("https://example.org/b");
    for node in &mut world.nodes {
        node.hold = Hold::Settling(Duration::from_millis(500));
    }
    world.settle();
    for node in &mut world.nodes {
        node.hold = Hold::None;
    }
    world.step(0);
    assert_eq!(world.changing(), BTreeSet::new());
    world.settle();
    assert_eq!(world.changing().len(), 1);
    assert!(!world.changing().contains(&0));
}

#[test]
fn a_handler_moves_to_another_shim_on_nodes_whose_turn_it_is_and_stays_served_on_others() {
    let mut world = World::provisioned(0, 3, 1);
    let mut older = shim("team", "spin-v2");
    older.created = start() - SignedDuration::from_secs(60);
    let spec = older.spec.as_mut().unwrap();
    spec.rollout_strategy = serde_json::from_value(json!({"type": "rolling"})).unwrap();
    for node in &mut world.nodes {
        node.shims.push(older.clone());
    }
    world.recount();
    world.settle();
    let first = world.changing();
    assert_eq!(first.len(), 1);
    for node in &world.nodes {
        let waits = node.job.is_none();
        let spin = node.label("farrier.dev/spin");
        assert_eq!(spin == Some("provisioned"), waits);
        assert_eq!(node.label("handler.farrier.dev/spin-v2").is_some(), waits);
    }
    while let Some(at) = world.changing().pop_first() {
        world.ends(at, Outcome::Applied, None);
    }
    let (team, spin) = (world.fleet.tally("team"), world.fleet.tally("spin"));
    assert_eq!((team.ready, spin.carried), (3, 0));
}

#[test]
fn a_removal_respects_the_percentage_of_max_update() {
    let mut world = World::provisioned(0, 4, 1);
    world.edit(|shim| {
        let strategy = &mut shim.spec.as_mut().unwrap().rollout_strategy;
        let share = json!({"type": "rolling", "rolling": {"maxUpdate": "50%"}});
        *strategy = serde_json::from_value(share).unwrap();
        shim.deleting = true;
    });
    world.settle();
    assert_eq!(world.changing().len(), 2);
}

#[test]
fn waiting_nodes_are_queued_when_other_jobs_get_their_pods() {
    let mut fleet = Fleet::default();
    let mut node = scene().annotated();
    for at in 0..100 {
        assert!(!fleet.has_no_pod_slot_for("late"));
        fleet.put(&format!("n{at}"), node.summary());
    }
    assert!(fleet.has_no_pod_slot_for("late") && !fleet.has_no_pod_slot_for("n1"));
    node.hold = Hold::NoPodSlot;
    fleet.put("late", node.summary());
    let running = scene().annotated().stepped();
    let requeue = fleet.put("n1", running.summary());
    assert_eq!(requeue.nodes, BTreeSet::from(["late".to_owned()]));
    assert!(!fleet.has_no_pod_slot_for("late"));
}
