//! The nodes as one: how far each Shim is on all of them, kept up to date node by node, so that no decision has to look at every
//! node again. Pure: no client, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::node_summary::{Place, Stand, Standing};
use crate::controller::cluster::triggers::Ripple;
use crate::controller::decide::rollout::Others;
use crate::controller::decide::types::Tally;

impl Tally {
    fn count(&mut self, node: &str, standing: &Standing, stand: &Stand) {
        self.carried += usize::from(stand.carried);
        self.workers += usize::from(is_worker_left(standing, stand));
        if is_queued(standing, stand) {
            self.queue.insert((standing.control_plane, node.to_owned()));
        }
        match &stand.place {
            Place::Ready => self.ready += 1,
            Place::Pending | Place::Resting => self.pending += 1,
            Place::Waiting => self.waiting += 1,
            Place::Unsupported(reason) => {
                self.unsupported.insert(node.to_owned(), reason.clone());
            }
            Place::Failed { reason, halts } => {
                self.failures.insert(node.to_owned(), reason.clone());
                if *halts {
                    self.halting.insert(node.to_owned());
                }
            }
            Place::Removing { reason, .. } => {
                self.removing.insert(node.to_owned(), reason.clone());
            }
            Place::Shadowed => {}
        }
    }

    fn discount(&mut self, node: &str, standing: &Standing, stand: &Stand) {
        self.carried -= usize::from(stand.carried);
        self.workers -= usize::from(is_worker_left(standing, stand));
        self.queue
            .remove(&(standing.control_plane, node.to_owned()));
        match &stand.place {
            Place::Ready => self.ready -= 1,
            Place::Pending | Place::Resting => self.pending -= 1,
            Place::Waiting => self.waiting -= 1,
            Place::Unsupported(_) => {
                self.unsupported.remove(node);
            }
            Place::Failed { .. } => {
                self.failures.remove(node);
                self.halting.remove(node);
            }
            Place::Removing { .. } => {
                self.removing.remove(node);
            }
            Place::Shadowed => {}
        }
    }
}

/// Whether a node could be changed once it is its turn.
fn is_queued(standing: &Standing, stand: &Stand) -> bool {
    let waits = matches!(
        stand.place,
        Place::Waiting | Place::Removing { waits: true, .. }
    );
    standing.fit && waits
}

/// Whether a node comes before those of the control plane, and is not done.
fn is_worker_left(standing: &Standing, stand: &Stand) -> bool {
    let works = match stand.place {
        Place::Pending => standing.changing || standing.fit,
        Place::Removing { .. } => standing.changing,
        Place::Ready
        | Place::Resting
        | Place::Waiting
        | Place::Failed { .. }
        | Place::Unsupported(_)
        | Place::Shadowed => false,
    };
    !standing.control_plane && (works || is_queued(standing, stand))
}

impl Tally {
    /// Counts what the Shim lost on a node; says whether that differs from before.
    fn lose(
        &mut self,
        shim: &str,
        before: &BTreeSet<(String, String)>,
        now: &BTreeSet<(String, String)>,
    ) -> bool {
        let of = |lost: &BTreeSet<(String, String)>| -> BTreeSet<String> {
            let own = lost.iter().filter(|(loser, _)| loser == shim);
            own.map(|(_, sentence)| sentence.clone()).collect()
        };
        let (before, now) = (of(before), of(now));
        for sentence in &now {
            *self.lost.entry(sentence.clone()).or_default() += 1;
        }
        for sentence in &before {
            if let Some(nodes) = self.lost.get_mut(sentence) {
                *nodes -= 1;
            }
        }
        self.lost.retain(|_, nodes| *nodes > 0);
        before != now
    }
}

/// Nodes that are asked anew where one makes room; each makes room once, so that all get their turn.
const ASKED_ANEW: usize = 4;

/// Jobs that may be without a pod at a time. Kubernetes' Job controller makes four or five pods a second unless its limit on requests is
/// raised (`--kube-api-qps`, 20 by default), and a Job that has none for a minute counts as stuck.
const MOST_PODLESS: usize = 100;

/// All nodes.
#[derive(Debug, Default)]
pub struct Fleet {
    standings: HashMap<String, Standing>,
    tallies: BTreeMap<String, Tally>,
    changing: BTreeSet<String>,
    podless: BTreeSet<String>,
    crowd: BTreeSet<String>,
    /// Of a Shim that no node speaks of.
    none: Tally,
}

impl Fleet {
    /// How far a Shim is.
    #[must_use]
    pub fn tally(&self, shim: &str) -> &Tally {
        self.tallies.get(shim).unwrap_or(&self.none)
    }

    /// How far the nodes beside `node` are.
    #[must_use]
    pub fn others(&self, node: &str) -> Others<'_> {
        let is_changing = self.is_changing(node);
        Others {
            changing: self.changing.len() - usize::from(is_changing),
            is_changing,
            tallies: &self.tallies,
        }
    }

    /// Whether the host of `node` is being changed.
    #[must_use]
    pub fn is_changing(&self, node: &str) -> bool {
        self.changing.contains(node)
    }

    /// Whether so many Jobs have no pod yet that `node` should not add one.
    #[must_use]
    pub fn is_crowded_for(&self, node: &str) -> bool {
        self.podless.len() >= MOST_PODLESS && !self.podless.contains(node)
    }

    /// Whether any node may carry anything.
    #[must_use]
    pub fn carries(&self) -> bool {
        self.tallies.values().any(|tally| tally.carried > 0)
    }

    /// Nodes that may carry anything, each with the Shims.
    #[must_use]
    pub fn carriers(&self) -> BTreeMap<String, Vec<String>> {
        let carried = |standing: &Standing| -> Vec<String> {
            let shims = standing.shims.iter().filter(|(_, stand)| stand.carried);
            shims.map(|(shim, _)| shim.clone()).collect()
        };
        let all = self.standings.iter();
        all.map(|(node, standing)| (node.clone(), carried(standing)))
            .filter(|(_, shims)| !shims.is_empty())
            .collect()
    }

    /// Takes in how a node is now.
    pub fn put(&mut self, node: &str, standing: Standing) -> Ripple {
        if self.standings.get(node) == Some(&standing) {
            return Ripple::default();
        }
        let mut touched: BTreeSet<String> = standing.shims.keys().cloned().collect();
        touched.extend(standing.lost.iter().map(|(loser, _)| loser.clone()));
        let before = self.standings.remove(node).unwrap_or_default();
        let ripple = self.replace(node, &before, &standing, touched);
        self.standings.insert(node.to_owned(), standing);
        ripple
    }

    /// Forgets a node that is gone.
    pub fn remove(&mut self, node: &str) -> Ripple {
        match self.standings.remove(node) {
            Some(before) => self.replace(node, &before, &Standing::default(), BTreeSet::new()),
            None => Ripple::default(),
        }
    }

    fn replace(
        &mut self,
        node: &str,
        before: &Standing,
        now: &Standing,
        mut touched: BTreeSet<String>,
    ) -> Ripple {
        touched.extend(before.shims.keys().cloned());
        touched.extend(before.lost.iter().map(|(loser, _)| loser.clone()));
        let mut ripple = Ripple::default();
        let makes_room = before.changing && !now.changing;
        for (nodes, is_one) in [
            (&mut self.changing, now.changing),
            (&mut self.podless, now.podless),
            (&mut self.crowd, now.crowded),
        ] {
            if is_one {
                nodes.insert(node.to_owned());
            } else {
                nodes.remove(node);
            }
        }
        if before.podless && !now.podless {
            ripple
                .nodes
                .extend(self.crowd.iter().take(ASKED_ANEW).cloned());
        }
        for shim in touched {
            let tally = self.tallies.entry(shim.clone()).or_default();
            let (then, stands) = (before.shims.get(&shim), now.shims.get(&shim));
            let was_halted = tally.failures.len();
            let had_workers = tally.has_workers_left();
            if let Some(stand) = then {
                tally.discount(node, before, stand);
            }
            if let Some(stand) = stands {
                tally.count(node, now, stand);
            }
            let is_told = tally.lose(&shim, &before.lost, &now.lost);
            if was_halted > tally.failures.len() || had_workers && !tally.has_workers_left() {
                let next = tally.queue.iter().take(ASKED_ANEW);
                ripple.nodes.extend(next.map(|(_, name)| name.clone()));
            }
            if then != stands || is_told {
                ripple.shims.insert(shim);
            }
        }
        if makes_room {
            let all = self.tallies.values();
            let next = all.flat_map(|tally| tally.queue.iter().take(ASKED_ANEW));
            ripple.nodes.extend(next.map(|(_, name)| name.clone()));
        }
        self.tallies.retain(|_, tally| *tally != Tally::default());
        ripple
    }
}
