//! How far a node's Job is, read from the Job and its pods: wire objects end here. Pure: no client, no clock.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};
use kube::ResourceExt;

use super::slim::{JobObject, PodObject, PodStatus};
use crate::handoff::{ProvisionReport, ProvisionRequest, with_help};
use crate::names;

/// The kubelet keeps this much of a termination message (Kubernetes API reference, `terminationMessagePath`).
const LONGEST_MESSAGE: usize = 4096;

/// A Job of ours as decisions see it, its pod included.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// UID of the Job.
    pub uid: String,
    /// What it asks of the host; absent where it can't be read, or is for another node object.
    pub request: Option<ProvisionRequest>,
    /// Digest of that request; empty where there is none.
    pub digest: String,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it is on its way out.
    pub deleting: Option<Timestamp>,
    /// How far it is.
    pub progress: JobProgress,
}

/// How far a Job is.
#[derive(Debug, Clone, PartialEq)]
pub enum JobProgress {
    /// It has no pod yet.
    NoPod,
    /// Its pod works.
    Running,
    /// It has ended, or its time is over, and no pod of it is seen to have ended.
    Overdue {
        /// Since when.
        since: Timestamp,
        /// Why it failed, if that stays so.
        reason: String,
    },
    /// Its pod can't start, for this reason.
    Stuck(String),
    /// Its installer has answered.
    Answered(Box<ProvisionReport>),
    /// It ended without an answer that can be read, for this reason.
    Silent(String),
}

impl JobView {
    /// The view of `job`, the one of the node object `node_uid`, with those of `pods` that are its own.
    #[must_use]
    pub fn new(job: &JobObject, pods: &[&PodObject], node_uid: &str) -> Self {
        let annotations = &job.spec.template.metadata.annotations;
        let request = annotations
            .get(names::REQUEST_ANNOTATION)
            .and_then(|text| ProvisionRequest::from_json(text).ok())
            .filter(|request| request.node_uid == node_uid)
            .map(ProvisionRequest::without_hints);
        let digest = request
            .as_ref()
            .map(ProvisionRequest::digest)
            .unwrap_or_default();
        let progress = progress(job, pods, &digest, node_uid);
        Self {
            uid: job.uid().unwrap_or_default(),
            request,
            digest,
            created: job
                .creation_timestamp()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: job.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            progress,
        }
    }
}

fn progress(job: &JobObject, pods: &[&PodObject], digest: &str, node_uid: &str) -> JobProgress {
    let uid = job.uid().unwrap_or_default();
    let mut pods: Vec<&PodObject> = pods
        .iter()
        .copied()
        .filter(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid))
        .collect();
    pods.sort_by_key(|pod| pod.creation_timestamp().map(|time| time.0));
    let mut unreadable = None;
    // The newest pod speaks last; an older one counts only if it answered before it was replaced.
    for pod in pods.iter().rev() {
        match answer(pod, digest, node_uid) {
            Some(Ok(report)) => return JobProgress::Answered(Box::new(report)),
            Some(Err(reason)) => unreadable = unreadable.or(Some(reason)),
            None => {}
        }
    }
    if let Some((reason, since)) = ending(job) {
        // The watch on pods may lag behind the one on Jobs, for example when the API server has been away.
        let has_ended =
            |pod: &&PodObject| matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let seen = unreadable.is_some() || pods.iter().any(has_ended);
        return match since.filter(|_| !seen) {
            Some(since) => JobProgress::Overdue { since, reason },
            None => JobProgress::Silent(unreadable.map_or(reason, |text| {
                format!("the installer left no report: {text}")
            })),
        };
    }
    if let Some(since) = overdue(job) {
        let reason = "the Job's pod has not ended a minute after its time was over; see that the node is up, and the log of the pod";
        return JobProgress::Overdue {
            since,
            reason: reason.to_owned(),
        };
    }
    match pods.last() {
        None => JobProgress::NoPod,
        Some(pod) => stuck(pod).map_or(JobProgress::Running, JobProgress::Stuck),
    }
}

/// The report of the pod's installer: nothing while it runs, and the reason where what it left is none.
fn answer(
    pod: &PodObject,
    digest: &str,
    node_uid: &str,
) -> Option<Result<ProvisionReport, String>> {
    let status = &pod.status;
    let Some(ended) = ended(&status.container_statuses, names::INSTALL_CONTAINER) else {
        return never_ran(status).map(Err);
    };
    let text = ended.message.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Some(Err(exit(names::INSTALL_CONTAINER, ended)));
    }
    if text.len() > LONGEST_MESSAGE {
        return Some(Err("it is longer than a report can be".to_owned()));
    }
    Some(match ProvisionReport::from_json(text) {
        Ok(report) if report.request_digest == digest && report.node_uid == node_uid => Ok(report),
        Ok(_) => Err("its report answers another request".to_owned()),
        Err(error) => Err(with_help(&error, error.help())),
    })
}

/// Why a pod that has failed never came to run its installer.
fn never_ran(status: &PodStatus) -> Option<String> {
    if status.phase.as_deref() != Some("Failed") {
        return None;
    }
    let fetch = ended(&status.init_container_statuses, names::FETCH_CONTAINER);
    Some(match fetch.filter(|ended| ended.exit_code != 0) {
        Some(ended) => format!(
            "{} {}",
            exit(names::FETCH_CONTAINER, ended),
            ended.message.as_deref().unwrap_or_default()
        ),
        None => format!(
            "its pod failed: {}: {}",
            status.reason.as_deref().unwrap_or("no reason"),
            status.message.as_deref().unwrap_or("no message")
        ),
    })
}

fn ended<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStateTerminated> {
    let status = statuses.iter().find(|status| status.name == name)?;
    status.state.as_ref()?.terminated.as_ref()
}

fn exit(container: &str, ended: &ContainerStateTerminated) -> String {
    let why = ended.reason.as_deref().unwrap_or("no reason");
    format!(
        "container {container} ended with exit status {}, {why}",
        ended.exit_code
    )
}

/// Why the Job has ended and since when, if it has.
fn ending(job: &JobObject) -> Option<(String, Option<Timestamp>)> {
    let ended = job.status.conditions.iter().find(|condition| {
        condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
    })?;
    let reason = match ended.reason.as_deref() {
        Some("DeadlineExceeded") => "the Job did not end before its deadline; see the log of its pod, or raise --job-deadline".to_owned(),
        reason => format!(
            "the Job ended without a report: {}: {}",
            reason.unwrap_or(&ended.type_),
            ended.message.as_deref().unwrap_or("no message")
        ),
    };
    let since = ended.last_transition_time.as_ref();
    Some((reason, since.map(|time| time.0)))
}

/// Since when the Job waits for its pod to end and will have failed then (Kubernetes 1.31 and later, *Job termination*).
fn overdue(job: &JobObject) -> Option<Timestamp> {
    let mut conditions = job.status.conditions.iter();
    let condition = conditions
        .find(|condition| condition.status == "True" && condition.type_ == "FailureTarget")?;
    Some(condition.last_transition_time.as_ref()?.0)
}

/// Why the pod can't start, if a container says so in words that waiting alone does not change.
fn stuck(pod: &PodObject) -> Option<String> {
    let status = &pod.status;
    let mut containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    containers.find_map(waiting)
}

fn waiting(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    // The kubelet's words for what won't pass by itself soon (kubelet/images and kubelet/kuberuntime, Kubernetes 1.34).
    matches!(
        reason,
        "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
    )
    .then(|| {
        format!(
            "container {} of the Job's pod can't start: {reason}: {}",
            container.name,
            waiting.message.as_deref().unwrap_or("no message")
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::handoff::{Outcome, Owner};

    fn request() -> ProvisionRequest {
        ProvisionRequest::new(Owner::Cluster, "node-uid".to_owned(), vec![], vec![])
    }

    fn report() -> ProvisionReport {
        ProvisionReport {
            request_digest: request().digest(),
            node_uid: "node-uid".to_owned(),
            ..ProvisionReport::new(Outcome::Applied)
        }
    }

    /// The view of a Job with these conditions and one pod per status, the oldest first.
    fn view(conditions: &Value, statuses: &[Value]) -> JobView {
        let job: JobObject = serde_json::from_value(json!({
            "metadata": {"uid": "job-uid", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"template": {"metadata": {"annotations": {"farrier.dev/request": request().to_json()}}}},
            "status": {"conditions": conditions},
        }))
        .unwrap();
        let pods: Vec<PodObject> = statuses
            .iter()
            .enumerate()
            .map(|(at, status)| pod("job-uid", at, status))
            .collect();
        JobView::new(&job, &pods.iter().collect::<Vec<_>>(), "node-uid")
    }

    fn pod(owner: &str, second: usize, status: &Value) -> PodObject {
        serde_json::from_value(json!({
            "metadata": {
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": owner}],
            },
            "status": status,
        }))
        .unwrap()
    }

    fn install(state: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "name": "install", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }]})
    }

    fn fetch(phase: &str, state: &Value) -> Value {
        json!({"phase": phase, "initContainerStatuses": [{
            "name": "fetch", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }]})
    }

    fn said(message: &str) -> Value {
        install(&json!({"terminated": {"exitCode": 0, "message": message}}))
    }

    fn killed() -> Value {
        install(&json!({"terminated": {"exitCode": 137, "reason": "Error"}}))
    }

    fn failed(reason: &str) -> Value {
        json!([{"type": "Failed", "status": "True", "reason": reason, "message": "so it is"}])
    }

    #[test]
    fn a_report_on_this_request_is_an_answer() {
        let seen = view(&json!([]), &[said(&report().to_json())]);
        assert_eq!(seen.request, Some(request()));
        assert_eq!(seen.progress, JobProgress::Answered(Box::new(report())));
    }

    #[rstest]
    #[case::nothing(json!([]), &[], &JobProgress::NoPod)]
    #[case::scheduled(json!([]), &[json!({"phase": "Pending"})], &JobProgress::Running)]
    #[case::creating(json!([]), &[fetch("Pending", &json!({"waiting": {"reason": "PodInitializing"}}))], &JobProgress::Running)]
    #[case::first_pull(json!([]), &[fetch("Pending", &json!({"waiting": {"reason": "ErrImagePull"}}))], &JobProgress::Running)]
    #[case::killed_and_run_again(json!([]), &[killed(), install(&json!({"running": {}}))], &JobProgress::Running)]
    #[case::failed_target(json!([{"type": "FailureTarget", "status": "True"}]), &[killed()], &JobProgress::Running)]
    fn a_job_under_way_says_nothing(
        #[case] conditions: Value,
        #[case] statuses: &[Value],
        #[case] expected: &JobProgress,
    ) {
        assert_eq!(&view(&conditions, statuses).progress, expected);
    }

    #[rstest]
    #[case::deadline(failed("DeadlineExceeded"), &[], "deadline")]
    #[case::killed(failed("BackoffLimitExceeded"), &[killed()], "exit status 137")]
    #[case::no_json(failed("PodFailurePolicy"), &[said("{")], "failed to read the document")]
    #[case::too_long(failed("PodFailurePolicy"), &[said(&" ".repeat(4_097))], "longer than a report")]
    #[case::complete(json!([{"type": "Complete", "status": "True"}]), &[], "without a report: Complete")]
    #[case::fetch(
        failed("BackoffLimitExceeded"),
        &[fetch("Failed", &json!({"terminated": {"exitCode": 101, "reason": "OOMKilled", "message": "out of memory"}}))],
        "container fetch ended with exit status 101, OOMKilled out of memory"
    )]
    #[case::rejected(
        failed("BackoffLimitExceeded"),
        &[json!({"phase": "Failed", "reason": "OutOfmemory", "message": "Node didn't have enough resource"})],
        "OutOfmemory: Node didn't have enough"
    )]
    fn a_job_that_ended_without_a_report_says_why(
        #[case] conditions: Value,
        #[case] statuses: &[Value],
        #[case] part: &str,
    ) {
        let JobProgress::Silent(reason) = view(&conditions, statuses).progress else {
            panic!("not silent")
        };
        assert!(reason.contains(part), "{reason}");
    }

    #[rstest]
    #[case("ImagePullBackOff")]
    #[case("ErrImageNeverPull")]
    #[case("InvalidImageName")]
    #[case("CreateContainerConfigError")]
    fn a_container_that_cannot_start_says_why(#[case] reason: &str) {
        let state = json!({"waiting": {"reason": reason, "message": "no such host"}});
        let JobProgress::Stuck(sentence) = view(&json!([]), &[fetch("Pending", &state)]).progress
        else {
            panic!("not stuck")
        };
        assert!(sentence.contains(reason) && sentence.contains("no such host"));
    }

    #[test]
    fn a_job_whose_time_is_over_waits_for_its_pod_to_end() {
        let since = "2026-01-01T00:15:00Z";
        let target = json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": since}]);
        let running = install(&json!({"running": {}}));
        let seen = view(&target, &[running]).progress;
        assert!(
            matches!(&seen, JobProgress::Overdue { since: seen, reason }
                if *seen == since.parse().unwrap() && reason.contains("see that the node is up")),
            "{seen:?}"
        );
        let answered = view(&target, &[said(&report().to_json())]);
        assert_eq!(answered.progress, JobProgress::Answered(Box::new(report())));
    }

    #[test]
    fn a_job_that_is_seen_to_end_before_its_pod_is_waits_for_what_the_pod_says() {
        let since = "2026-01-01T00:00:02Z";
        for (kind, reason) in [
            ("Complete", "CompletionsReached"),
            ("Failed", "PodFailurePolicy"),
        ] {
            let ended = json!([{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": since}]);
            for statuses in [vec![], vec![install(&json!({"running": {}}))]] {
                let seen = view(&ended, &statuses).progress;
                assert!(
                    matches!(&seen, JobProgress::Overdue { since: seen, reason }
                        if *seen == since.parse().unwrap() && reason.contains("without a report")),
                    "{seen:?}"
                );
            }
            let mut gone = install(&json!({"terminated": {"exitCode": 0, "message": ""}}));
            gone["phase"] = json!("Succeeded");
            assert!(matches!(
                view(&ended, &[gone]).progress,
                JobProgress::Silent(_)
            ));
        }
    }

    #[test]
    fn a_report_on_another_request_or_node_is_none() {
        let mut older = report();
        older.request_digest = "0".repeat(64);
        let mut elsewhere = report();
        elsewhere.node_uid = "another".to_owned();
        for other in [older, elsewhere] {
            let seen = view(&failed("PodFailurePolicy"), &[said(&other.to_json())]);
            assert!(
                matches!(&seen.progress, JobProgress::Silent(reason) if reason.contains("another request"))
            );
        }
    }

    #[test]
    fn the_newest_pod_that_answered_speaks() {
        let mut first = report();
        first.result = Outcome::RolledBack;
        let seen = view(
            &json!([]),
            &[said(&first.to_json()), said(&report().to_json())],
        );
        assert_eq!(seen.progress, JobProgress::Answered(Box::new(report())));
    }

    #[test]
    fn a_pod_of_another_job_says_nothing() {
        let job: JobObject =
            serde_json::from_value(json!({"metadata": {"uid": "job-uid"}})).unwrap();
        let other = pod("another", 0, &said(&report().to_json()));
        let seen = JobView::new(&job, &[&other], "node-uid");
        assert_eq!((seen.progress, seen.request), (JobProgress::NoPod, None));
    }

    #[test]
    fn a_request_for_another_node_object_is_none() {
        let job: JobObject = serde_json::from_value(json!({"metadata": {}, "spec": {"template": {
            "metadata": {"annotations": {"farrier.dev/request": request().to_json()}}}}}))
        .unwrap();
        assert_eq!(JobView::new(&job, &[], "another").request, None);
    }
}
