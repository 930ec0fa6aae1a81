//! Which of several replicas acts: the one that holds the Lease, as client-go's leader election understands it. What to do about the
//! Lease is decided by [`Candidate`], which is pure; the writes are `apply`'s.
//!
//! No clock but our own is believed: a Lease counts as given up when this replica has seen it unchanged for its whole duration.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::core::ObjectMeta;

use super::apply;
use super::apply::lease::{self, LeaseStep};

/// A holder that has not renewed for so long has given up. With [`LOOK_EVERY`] on top, another acts within 20 s.
const DURATION: Duration = Duration::from_secs(15);

/// Between two looks of whoever waits, and two renewals of whoever holds.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// A holder that could not renew for so long stops acting, before another may begin.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Whether somebody other than `identity` holds `lease`.
#[must_use]
pub fn is_anothers(lease: &Lease, identity: &str) -> bool {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    holder.is_some_and(|holder| !holder.is_empty() && holder != identity)
}

/// One replica's view of the Lease.
#[derive(Debug)]
pub struct Candidate {
    name: String,
    identity: String,
    /// The Lease of another as it was seen last, and since when.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A replica that wants the Lease `name` and calls itself `identity`.
    #[must_use]
    pub fn new(name: String, identity: String) -> Self {
        Self {
            name,
            identity,
            seen: None,
        }
    }

    /// Decides what to do, given the Lease that is there.
    pub fn decide(&mut self, there: Option<Lease>, now: Instant, time: Timestamp) -> LeaseStep {
        let Some(mut lease) = there else {
            return LeaseStep::Create(Box::new(Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(&LeaseSpec::default(), time)),
            }));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if is_anothers(&lease, &self.identity) {
            let since = match &self.seen {
                Some((seen, since)) if *seen == spec => *since,
                Some(_) | None => now,
            };
            self.seen = Some((spec.clone(), since));
            let seconds = spec.lease_duration_seconds.unwrap_or_default();
            let duration = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            // Whoever wrote no duration, or one of hours, gets ours.
            let duration = if duration.is_zero() {
                DURATION
            } else {
                duration.min(4 * DURATION)
            };
            if now.saturating_duration_since(since) < duration {
                return LeaseStep::Wait;
            }
        }
        lease.spec = Some(self.spec(&spec, time));
        LeaseStep::Replace(Box::new(lease))
    }

    /// The Lease `held` given back, so that another need not wait.
    #[must_use]
    pub fn release(&self, mut held: Lease) -> Option<Lease> {
        let spec = held.spec.as_mut()?;
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return None;
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        Some(held)
    }

    fn spec(&self, before: &LeaseSpec, time: Timestamp) -> LeaseSpec {
        let is_renewal = before.holder_identity.as_deref() == Some(&self.identity);
        let now = Some(MicroTime(time));
        let transitions = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if is_renewal {
                before.acquire_time.clone()
            } else {
                now.clone()
            },
            renew_time: now,
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_renewal))),
            ..LeaseSpec::default()
        }
    }
}

/// One replica's part in the election.
pub struct Election {
    client: Client,
    namespace: String,
    name: String,
    candidate: Candidate,
}

impl Election {
    /// For the Lease `name`, as `identity`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            candidate: Candidate::new(name.to_owned(), identity.to_owned()),
        }
    }

    /// Waits until this replica holds the Lease; since when. A cluster that does not answer is asked again.
    pub async fn acquire(&mut self) -> Instant {
        let mut waits = false;
        loop {
            // The others count from when it is written, which is after this.
            let begun = Instant::now();
            match tokio::time::timeout(GIVE_UP, self.attempt()).await {
                Ok(Ok(true)) => return begun,
                Ok(Ok(false)) if !waits => {
                    tracing::info!(lease = self.name, "another replica acts; summary by");
                    waits = true;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease can't be had; trying again"),
                Err(_) => tracing::warn!("the API server does not answer; trying again"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Renews the Lease that was had at `renewed` until it is lost: to another, or because it could not be renewed for too long.
    pub async fn hold(&mut self, mut renewed: Instant) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let rest = GIVE_UP.saturating_sub(renewed.elapsed());
            let begun = Instant::now();
            match tokio::time::timeout(rest, self.attempt()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the Lease can't be renewed; trying again");
                }
            }
            if renewed.elapsed() >= GIVE_UP {
                return;
            }
        }
    }

    /// Gives the Lease back. Best effort: otherwise it runs out.
    pub async fn release(self) {
        let released = async {
            let there = lease::get(&self.client, &self.namespace, &self.name).await?;
            match there.and_then(|held| self.candidate.release(held)) {
                Some(lease) => self.write(LeaseStep::Replace(Box::new(lease))).await,
                None => Ok(false),
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(LOOK_EVERY, released).await {
            tracing::warn!(%error, "the Lease was not given back; it runs out");
        }
    }

    async fn attempt(&mut self) -> Result<bool, apply::Error> {
        let there: Option<Lease> = lease::get(&self.client, &self.namespace, &self.name).await?;
        let step = self
            .candidate
            .decide(there, Instant::now(), Timestamp::now());
        self.write(step).await
    }

    async fn write(&self, step: LeaseStep) -> Result<bool, apply::Error> {
        lease::write(&self.client, &self.namespace, step).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(identity: &str) -> Candidate {
        Candidate::new("farrier".to_owned(), identity.to_owned())
    }

    fn held(step: LeaseStep) -> Lease {
        match step {
            LeaseStep::Create(lease) | LeaseStep::Replace(lease) => *lease,
            LeaseStep::Wait => panic!("it waits"),
        }
    }

    fn holder(lease: &Lease) -> Option<&str> {
        lease.spec.as_ref()?.holder_identity.as_deref()
    }

    #[test]
    fn one_of_two_holds_it_and_renews() {
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        let (start, time) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let lease = held(a.decide(None, start, time));
        assert_eq!(holder(&lease), Some("a"));
        assert_eq!(b.decide(Some(lease.clone()), start, time), LeaseStep::Wait);
        let later = Timestamp::from_second(3).unwrap();
        let renewed = held(a.decide(Some(lease.clone()), start, later));
        let (before, now) = (lease.spec.unwrap(), renewed.spec.clone().unwrap());
        assert_eq!(before.acquire_time, now.acquire_time);
        assert_ne!(before.renew_time, now.renew_time);
        assert_eq!(before.lease_transitions, now.lease_transitions);
        let just_before = start + DURATION;
        assert_eq!(b.decide(Some(renewed), just_before, time), LeaseStep::Wait);
    }

    #[test]
    fn one_that_is_not_renewed_is_taken_whatever_its_clock_says() {
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        let far = "9000-01-01T00:00:00Z".parse().unwrap();
        let start = Instant::now();
        let lease = held(a.decide(None, start, far));
        assert_eq!(
            b.decide(Some(lease.clone()), start, Timestamp::UNIX_EPOCH),
            LeaseStep::Wait
        );
        let step = b.decide(Some(lease), start + DURATION, Timestamp::UNIX_EPOCH);
        let taken = held(step);
        assert_eq!(holder(&taken), Some("b"));
        assert_eq!(taken.spec.unwrap().lease_transitions, Some(2));
    }

    #[test]
    fn one_that_was_given_back_is_taken_at_once() {
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        let (start, time) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let lease = held(a.decide(None, start, time));
        assert_eq!(b.release(lease.clone()), None);
        assert!(is_anothers(&lease, "b") && !is_anothers(&lease, "a"));
        let lease = a.release(lease).unwrap();
        assert!(!is_anothers(&lease, "b"));
        assert_eq!(holder(&held(b.decide(Some(lease), start, time))), Some("b"));
    }
}
