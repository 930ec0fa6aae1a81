//! Leader election: the replica that holds the Lease acts, as in client-go. [`Candidate`] decides about the Lease and is pure; `apply`
//! writes it.
//!
//! Only the local clock counts: a Lease has expired when this replica has seen it unchanged for its whole duration.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::core::ObjectMeta;

use super::apply;
use super::apply::lease::{self, LeaseStep};

/// Duration of the Lease. Together with [`LOOK_EVERY`], another replica acts within 20 s.
const DURATION: Duration = Duration::from_secs(15);

/// Interval between two attempts to acquire the Lease, and between two renewals.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// A holder stops acting after this time without a renewal, before another replica may begin.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Whether another replica than `identity` holds `lease`.
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
    /// The Lease of another replica as last seen, and since when it is unchanged.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A replica with the name `identity` that wants the Lease `name`.
    #[must_use]
    pub fn new(name: String, identity: String) -> Self {
        Self {
            name,
            identity,
            seen: None,
        }
    }

    /// Decides what to do about the Lease `there`.
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
            // Without a duration in the Lease, Farrier's own counts. A duration of hours is cut.
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

    /// The Lease `held` without a holder, so that another replica need not wait.
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

/// Acquires, renews and releases the Lease for one replica.
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

    /// Waits until this replica holds the Lease. Returns the time of the attempt that succeeded. Errors of the API server are retried.
    pub async fn acquire(&mut self) -> Instant {
        let mut waits = false;
        loop {
            // Other replicas count the duration from the write of the Lease, which comes after this moment.
            let begun = Instant::now();
            match tokio::time::timeout(GIVE_UP, self.attempt()).await {
                Ok(Ok(true)) => return begun,
                Ok(Ok(false)) if !waits => {
                    tracing::info!(
                        lease = self.name,
                        "standing by: another replica holds the Lease"
                    );
                    waits = true;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "failed to acquire the Lease, retrying"),
                Err(_) => tracing::warn!(
                    "failed to acquire the Lease, retrying: the API server does not answer"
                ),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Renews the Lease, which was last written at `renewed`, until another replica takes it or it can't be renewed for [`GIVE_UP`].
    pub async fn hold(&mut self, mut renewed: Instant) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let rest = GIVE_UP.saturating_sub(renewed.elapsed());
            let begun = Instant::now();
            match tokio::time::timeout(rest, self.attempt()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "failed to renew the Lease, retrying");
                }
            }
            if renewed.elapsed() >= GIVE_UP {
                return;
            }
        }
    }

    /// Releases the Lease. If that fails, the Lease expires.
    pub async fn release(self) {
        let released = async {
            let there = lease::get(&self.client, &self.namespace, &self.name).await?;
            match there.and_then(|held| self.candidate.release(held)) {
                Some(lease) => self.write(LeaseStep::Replace(Box::new(lease))).await,
                None => Ok(false),
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(LOOK_EVERY, released).await {
            tracing::warn!(%error, "failed to release the Lease, which expires by itself");
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
    fn one_of_two_replicas_holds_the_lease_and_renews_it() {
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
    fn an_expired_lease_is_taken_whatever_the_clock_of_its_holder() {
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
    fn a_released_lease_is_taken_at_once() {
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
