//! Becoming and staying the replica that acts. What to do about the Lease is decided in `lease`, written in `apply`.

use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;

use super::apply::{self, replicas};
use super::lease::{Candidate, GIVE_UP, LOOK_EVERY, Step};

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
                    tracing::info!(lease = self.name, "another replica acts; standing by");
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
            let there = replicas::lease_there(&self.client, &self.namespace, &self.name).await?;
            match there.and_then(|held| self.candidate.release(held)) {
                Some(lease) => self.write(Step::Replace(Box::new(lease))).await,
                None => Ok(false),
            }
        };
        if let Ok(Err(error)) = tokio::time::timeout(LOOK_EVERY, released).await {
            tracing::warn!(%error, "the Lease was not given back; it runs out");
        }
    }

    async fn attempt(&mut self) -> Result<bool, apply::Error> {
        let there: Option<Lease> =
            replicas::lease_there(&self.client, &self.namespace, &self.name).await?;
        let step = self
            .candidate
            .decide(there, Instant::now(), Timestamp::now());
        self.write(step).await
    }

    async fn write(&self, step: Step) -> Result<bool, apply::Error> {
        replicas::lease(&self.client, &self.namespace, step).await
    }
}
