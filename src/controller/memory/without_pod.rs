//! For how long this replica sees each Job without a pod. Only the local clock counts, as for the Lease: the clock of the API server may
//! differ, and a Job that is old may have lost its pod just now.

use std::collections::HashMap;
use std::time::Instant;

use crate::controller::cluster::job_view::{JobProgress, JobView};

/// When this replica first saw each Job without a pod, by the UID of the Job.
#[derive(Debug, Default)]
pub struct WithoutPod(HashMap<String, Instant>);

impl WithoutPod {
    /// The Job as it is seen now, with the time for which it has had no pod. The time begins anew when the Job had a pod in between.
    pub fn seen(&mut self, job: JobView, now: Instant) -> JobView {
        // A suspended Job can have no pod: its time begins when the Job is resumed.
        if job.progress != JobProgress::NoPod || job.suspended {
            self.0.remove(&job.uid);
            return job;
        }
        let since = *self.0.entry(job.uid.clone()).or_insert(now);
        JobView {
            without_pod_for: now.saturating_duration_since(since),
            ..job
        }
    }

    /// A Job is gone.
    pub fn job_is_gone(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// A watch has listed again: Jobs may have gone in the meantime.
    pub fn listed(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| is_there(uid));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::controller::cluster::node_view::NodeView;

    #[test]
    fn the_time_without_a_pod_counts_from_the_loss_of_the_pod() {
        let node = NodeView::from(&serde_json::from_str(r#"{"metadata": {"uid": "n"}}"#).unwrap());
        // The clock of the API server may say anything.
        let job = r#"{"metadata": {"uid": "j", "creationTimestamp": "1999-01-01T00:00:00Z"}}"#;
        let view = JobView::new(&serde_json::from_str(job).unwrap(), &[], &node);
        let (mut jobs, start) = (WithoutPod::default(), Instant::now());
        let mut after = |seconds: u64, progress: JobProgress| {
            let seen = JobView {
                progress,
                ..view.clone()
            };
            let now = start + Duration::from_secs(seconds);
            jobs.seen(seen, now).without_pod_for.as_secs()
        };
        assert_eq!(after(0, JobProgress::NoPod), 0);
        assert_eq!(after(5, JobProgress::NoPod), 5);
        assert_eq!(after(6, JobProgress::Running), 0);
        assert_eq!(after(90, JobProgress::NoPod), 0);
        assert_eq!(after(100, JobProgress::NoPod), 10);
        // A queue admits the Job after an hour.
        let suspended = JobView {
            progress: JobProgress::NoPod,
            suspended: true,
            ..view
        };
        let hour = Duration::from_hours(1);
        assert_eq!(
            jobs.seen(suspended.clone(), start + hour).without_pod_for,
            Duration::ZERO
        );
        let resumed = JobView {
            suspended: false,
            ..suspended
        };
        let seen = |jobs: &mut WithoutPod, now| jobs.seen(resumed.clone(), now).without_pod_for;
        assert_eq!(seen(&mut jobs, start + 2 * hour), Duration::ZERO);
        assert_eq!(seen(&mut jobs, start + 3 * hour), hour);
        jobs.listed(|uid| uid == "j");
        assert_eq!(jobs.0.len(), 1);
        jobs.job_is_gone("j");
        assert!(jobs.0.is_empty());
    }
}
