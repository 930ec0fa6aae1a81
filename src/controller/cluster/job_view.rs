//! The state of a node's Job, read from the Job and its pods. Decisions read no object of the API directly. Pure: no client, no clock.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};
use kube::ResourceExt;

use super::node_view::NodeView;
use super::slim::{JobObject, PodObject, PodStatus};
use crate::handoff::{Problem, ProvisionReport, ProvisionRequest, Sha256Digest};
use crate::names;

/// Most bytes that the kubelet keeps of a termination message (Kubernetes API reference, `terminationMessagePath`).
const LONGEST_MESSAGE: usize = 4096;

/// A Job of Farrier as decisions see it, with its pods.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// UID of the Job.
    pub uid: String,
    /// The request; absent if it can't be read or is for another node object.
    pub request: Option<ProvisionRequest>,
    /// Digest of that request.
    pub digest: Option<Sha256Digest>,
    /// For how long this replica has seen the Job without a pod.
    pub without_pod_for: Duration,
    /// Another program, for example a queue such as Kueue, has suspended the Job, so it has no pod.
    pub suspended: bool,
    /// Time at which the Job was deleted.
    pub deleting: Option<Timestamp>,
    /// The state of the Job.
    pub progress: JobProgress,
    /// Why the Job has no pod, if that is known.
    pub hindrance: Option<Problem>,
}

/// The state of a Job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobProgress {
    /// The Job has no pod yet.
    NoPod,
    /// The pod is running.
    Running,
    /// The pod is running, and its first container fetches the artifacts.
    Fetching,
    /// The Job has failed or ended, but the watch shows none of its pods as ended.
    Overdue {
        /// Since when.
        since: Timestamp,
        /// Why the Job failed, if no pod reports.
        problem: Problem,
    },
    /// The pod can't start, for this reason.
    Stuck(Problem),
    /// The installer has reported.
    Answered(Box<ProvisionReport>),
    /// The Job ended without a readable report, for this reason.
    Silent(Problem),
}

impl JobView {
    /// The view of `job`, which belongs to `node`. Only those of `pods` count that the Job controller created for the Job and that run on the
    /// node: any other pod may name the Job as an owner, and its status is written by the kubelet of its own node.
    #[must_use]
    pub fn new(job: &JobObject, pods: &[&PodObject], node: &NodeView) -> Self {
        let annotations = &job.spec.template.metadata.annotations;
        let request = annotations
            .get(names::REQUEST_ANNOTATION)
            .and_then(|text| ProvisionRequest::from_json(text).ok())
            .filter(|request| request.node_uid == node.uid)
            .map(ProvisionRequest::without_hints);
        let digest = request.as_ref().map(ProvisionRequest::digest);
        let progress = progress(job, pods, digest, node);
        Self {
            uid: job.uid().unwrap_or_default(),
            request,
            digest,
            without_pod_for: Duration::ZERO,
            suspended: job.spec.suspend,
            deleting: job.metadata.deletion_timestamp.as_ref().map(|time| time.0),
            hindrance: None,
            progress,
        }
    }
}

fn progress(
    job: &JobObject,
    pods: &[&PodObject],
    digest: Option<Sha256Digest>,
    node: &NodeView,
) -> JobProgress {
    let uid = job.uid().unwrap_or_default();
    let mut pods: Vec<&PodObject> = pods
        .iter()
        .copied()
        .filter(|pod| pod.controller_uid() == Some(&uid))
        .filter(|pod| pod.spec.node_name.as_ref() == Some(&node.name))
        .collect();
    pods.sort_by_key(|pod| pod.creation_timestamp().map(|time| time.0));
    let mut unreadable = None;
    // The newest pod counts. An older pod counts only if it reported before it was replaced.
    for pod in pods.iter().rev() {
        match installer_report(pod, digest, &node.uid) {
            Some(Ok(report)) => return JobProgress::Answered(Box::new(report)),
            Some(Err(problem)) => unreadable = unreadable.or(Some(problem)),
            None => {}
        }
    }
    if let Some((problem, since)) = ending(job) {
        // The watch on pods may be behind the watch on Jobs, for example after an outage of the API server.
        let has_ended =
            |pod: &&PodObject| matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let seen = unreadable.is_some() || pods.iter().any(has_ended);
        return match since.filter(|_| !seen) {
            Some(since) => JobProgress::Overdue { since, problem },
            None => JobProgress::Silent(unreadable.map_or(problem, |cause| Problem {
                message: format!("the installer wrote no readable report: {cause}"),
                ..cause
            })),
        };
    }
    if let Some(since) = overdue(job) {
        let problem = Problem::with_help(
            "the Job's pod still runs one minute after the Job failed",
            "check that the node is up, and see the log of the pod",
        );
        return JobProgress::Overdue { since, problem };
    }
    match pods.last() {
        None => JobProgress::NoPod,
        Some(pod) => match stuck(pod) {
            Some(problem) => JobProgress::Stuck(problem),
            None if fetches(pod) => JobProgress::Fetching,
            None => JobProgress::Running,
        },
    }
}

/// The report of the pod's installer: `None` while the installer runs, and an error if the report can't be read.
fn installer_report(
    pod: &PodObject,
    digest: Option<Sha256Digest>,
    node_uid: &str,
) -> Option<Result<ProvisionReport, Problem>> {
    let status = &pod.status;
    let Some(ended) = ended(&status.container_statuses, names::INSTALL_CONTAINER) else {
        return never_ran(status).map(Err);
    };
    let text = ended.message.as_deref().unwrap_or_default();
    if text.is_empty() {
        let message = exit(names::INSTALL_CONTAINER, ended);
        return Some(Err(Problem::new(message, None)));
    }
    if text.len() > LONGEST_MESSAGE {
        let message = "the termination message is longer than 4096 bytes";
        return Some(Err(Problem::new(message, None)));
    }
    Some(match ProvisionReport::from_json(text) {
        Ok(report) if report.request_digest == digest && report.node_uid == node_uid => Ok(report),
        Ok(_) => Err(Problem::new("the report answers another request", None)),
        Err(error) => Err(Problem::new(&error, error.help())),
    })
}

/// Why the installer of a failed pod never ran.
fn never_ran(status: &PodStatus) -> Option<Problem> {
    if status.phase.as_deref() != Some("Failed") {
        return None;
    }
    let fetch = ended(&status.init_container_statuses, names::FETCH_CONTAINER);
    let message = match fetch.filter(|ended| ended.exit_code != 0) {
        Some(ended) => format!(
            "{} {}",
            exit(names::FETCH_CONTAINER, ended),
            ended.message.as_deref().unwrap_or_default()
        ),
        None => format!(
            "the pod failed: {}: {}",
            status.reason.as_deref().unwrap_or("no reason"),
            status.message.as_deref().unwrap_or("no message")
        ),
    };
    Some(Problem::new(message, None))
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

/// Why and since when the Job has ended.
fn ending(job: &JobObject) -> Option<(Problem, Option<Timestamp>)> {
    let ended = job.status.conditions.iter().find(|condition| {
        condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
    })?;
    let problem = match ended.reason.as_deref() {
        Some("DeadlineExceeded") => Problem::with_help(
            "the Job exceeded its deadline",
            "read the log of the Job's pod, or raise job.deadlineSeconds in the chart's values (--job-deadline)",
        ),
        reason => {
            let reason = reason.unwrap_or(&ended.type_);
            let message = ended.message.as_deref().unwrap_or("no message");
            let message = format!("the Job ended without a report: {reason}: {message}");
            Problem::new(message, None)
        }
    };
    let since = ended.last_transition_time.as_ref();
    Some((problem, since.map(|time| time.0)))
}

/// Since when the Job waits for its pod to end before it counts as failed (Kubernetes 1.31 and later, *Job termination*).
fn overdue(job: &JobObject) -> Option<Timestamp> {
    let mut conditions = job.status.conditions.iter();
    let condition = conditions
        .find(|condition| condition.status == "True" && condition.type_ == "FailureTarget")?;
    Some(condition.last_transition_time.as_ref()?.0)
}

/// Whether the container that fetches the artifacts runs.
fn fetches(pod: &PodObject) -> bool {
    let mut statuses = pod.status.init_container_statuses.iter();
    let fetch = statuses.find(|status| status.name == names::FETCH_CONTAINER);
    let state = fetch.and_then(|fetch| fetch.state.as_ref());
    state.is_some_and(|state| state.running.is_some())
}

/// Why the pod can't start, if a container reports a reason that does not pass by itself.
fn stuck(pod: &PodObject) -> Option<Problem> {
    let status = &pod.status;
    let mut containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses);
    containers.find_map(waiting)
}

fn waiting(container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    // Reasons of the kubelet that do not pass soon by themselves (kubelet/images and kubelet/kuberuntime, Kubernetes 1.34).
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
        let message = format!(
            "container {} of the Job's pod failed to start: {reason}: {}",
            container.name,
            waiting.message.as_deref().unwrap_or("no message")
        );
        Problem::new(message, None)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::cluster::slim::NodeObject;
    use crate::handoff::{Outcome, Owner};

    fn request() -> ProvisionRequest {
        ProvisionRequest::new(Owner::Cluster, "node-uid".to_owned(), vec![], vec![])
    }

    fn report() -> ProvisionReport {
        ProvisionReport {
            request_digest: Some(request().digest()),
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
        JobView::new(&job, &pods.iter().collect::<Vec<_>>(), &node("node-uid"))
    }

    fn pod(owner: &str, second: usize, status: &Value) -> PodObject {
        serde_json::from_value(json!({
            "metadata": {
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": owner, "controller": true}],
            },
            "spec": {"nodeName": "n1"},
            "status": status,
        }))
        .unwrap()
    }

    fn node(uid: &str) -> NodeView {
        let node = json!({"metadata": {"name": "n1", "uid": uid}});
        NodeView::from(&serde_json::from_value::<NodeObject>(node).unwrap())
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
    fn a_report_on_the_jobs_own_request_is_read() {
        let seen = view(&json!([]), &[said(&report().to_json())]);
        assert_eq!(seen.request, Some(request()));
        assert_eq!(seen.progress, JobProgress::Answered(Box::new(report())));
    }

    #[rstest]
    #[case::nothing(json!([]), &[], &JobProgress::NoPod)]
    #[case::scheduled(json!([]), &[json!({"phase": "Pending"})], &JobProgress::Running)]
    #[case::creating(json!([]), &[fetch("Pending", &json!({"waiting": {"reason": "PodInitializing"}}))], &JobProgress::Running)]
    #[case::first_pull(json!([]), &[fetch("Pending", &json!({"waiting": {"reason": "ErrImagePull"}}))], &JobProgress::Running)]
    #[case::fetching(json!([]), &[fetch("Pending", &json!({"running": {}}))], &JobProgress::Fetching)]
    #[case::fetched(json!([]), &[fetch("Running", &json!({"terminated": {"exitCode": 0}}))], &JobProgress::Running)]
    #[case::killed_and_fetching_again(json!([]), &[killed(), fetch("Pending", &json!({"running": {}}))], &JobProgress::Fetching)]
    #[case::killed_and_run_again(json!([]), &[killed(), install(&json!({"running": {}}))], &JobProgress::Running)]
    #[case::failed_target(json!([{"type": "FailureTarget", "status": "True"}]), &[killed()], &JobProgress::Running)]
    fn a_running_job_has_no_result(
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
    #[case::too_long(failed("PodFailurePolicy"), &[said(&" ".repeat(4_097))], "longer than 4096 bytes")]
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
    fn a_job_that_ended_without_a_report_has_a_reason(
        #[case] conditions: Value,
        #[case] statuses: &[Value],
        #[case] part: &str,
    ) {
        let JobProgress::Silent(problem) = view(&conditions, statuses).progress else {
            panic!("not silent")
        };
        assert!(problem.message.contains(part), "{problem}");
    }

    #[rstest]
    #[case("ImagePullBackOff")]
    #[case("ErrImageNeverPull")]
    #[case("InvalidImageName")]
    #[case("CreateContainerConfigError")]
    fn a_container_that_cannot_start_is_a_stuck_job_with_the_kubelets_reason(#[case] reason: &str) {
        let state = json!({"waiting": {"reason": reason, "message": "no such host"}});
        let JobProgress::Stuck(problem) = view(&json!([]), &[fetch("Pending", &state)]).progress
        else {
            panic!("not stuck")
        };
        assert!(problem.message.contains(reason) && problem.message.contains("no such host"));
    }

    #[test]
    fn a_job_past_its_deadline_waits_for_its_pod_to_end() {
        let since = "2026-01-01T00:15:00Z";
        let target = json!([{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": since}]);
        let running = install(&json!({"running": {}}));
        let seen = view(&target, &[running]).progress;
        assert!(
            matches!(&seen, JobProgress::Overdue { since: seen, problem }
                if *seen == since.parse().unwrap() && problem.sentence().contains("Check that the node is up")),
            "{seen:?}"
        );
        let answered = view(&target, &[said(&report().to_json())]);
        assert_eq!(answered.progress, JobProgress::Answered(Box::new(report())));
    }

    #[test]
    fn a_finished_job_waits_for_the_report_of_its_pod_if_the_pod_watch_lags() {
        let since = "2026-01-01T00:00:02Z";
        for (kind, reason) in [
            ("Complete", "CompletionsReached"),
            ("Failed", "PodFailurePolicy"),
        ] {
            let ended = json!([{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": since}]);
            for statuses in [vec![], vec![install(&json!({"running": {}}))]] {
                let seen = view(&ended, &statuses).progress;
                assert!(
                    matches!(&seen, JobProgress::Overdue { since: seen, problem }
                        if *seen == since.parse().unwrap() && problem.message.contains("without a report")),
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
    fn a_report_on_another_request_or_node_is_ignored() {
        let mut older = report();
        older.request_digest = Some(Sha256Digest::from_bytes([0; 32]));
        let mut elsewhere = report();
        elsewhere.node_uid = "another".to_owned();
        for other in [older, elsewhere] {
            let seen = view(&failed("PodFailurePolicy"), &[said(&other.to_json())]);
            assert!(
                matches!(&seen.progress, JobProgress::Silent(problem) if problem.message.contains("another request"))
            );
        }
    }

    #[test]
    fn the_newest_pod_with_a_report_counts() {
        let mut first = report();
        first.result = Outcome::RolledBack;
        let seen = view(
            &json!([]),
            &[said(&first.to_json()), said(&report().to_json())],
        );
        assert_eq!(seen.progress, JobProgress::Answered(Box::new(report())));
    }

    #[rstest]
    #[case(json!({}), false)]
    #[case(json!({"suspend": false}), false)]
    #[case(json!({"suspend": true}), true)]
    fn a_suspended_job_is_recognised(#[case] spec: Value, #[case] suspended: bool) {
        let job = json!({"metadata": {"uid": "job-uid"}, "spec": spec});
        let job: JobObject = serde_json::from_value(job).unwrap();
        let seen = JobView::new(&job, &[], &node("node-uid"));
        assert_eq!(seen.progress, JobProgress::NoPod);
        assert_eq!(seen.suspended, suspended);
    }

    #[test]
    fn a_pod_of_another_job_is_ignored() {
        let job: JobObject =
            serde_json::from_value(json!({"metadata": {"uid": "job-uid"}})).unwrap();
        let other = pod("another", 0, &said(&report().to_json()));
        let seen = JobView::new(&job, &[&other], &node("node-uid"));
        assert_eq!((seen.progress, seen.request), (JobProgress::NoPod, None));
    }

    #[rstest]
    #[case::of_the_job(json!({"uid": "job-uid", "controller": true}), json!("n1"), true)]
    #[case::an_owner_that_is_no_controller(json!({"uid": "job-uid", "controller": false}), json!("n1"), false)]
    #[case::an_owner_without_a_controller(json!({"uid": "job-uid"}), json!("n1"), false)]
    #[case::on_another_node(json!({"uid": "job-uid", "controller": true}), json!("n2"), false)]
    #[case::on_no_node(json!({"uid": "job-uid", "controller": true}), json!(null), false)]
    #[case::on_a_node_without_a_name(json!({"uid": "job-uid", "controller": true}), json!(""), false)]
    #[case::of_another_job(json!({"uid": "another", "controller": true}), json!("n1"), false)]
    fn a_report_counts_only_from_a_pod_that_the_job_created_on_its_node(
        #[case] mut owner: Value,
        #[case] node_name: Value,
        #[case] counts: bool,
    ) {
        for (key, value) in [("apiVersion", "batch/v1"), ("kind", "Job"), ("name", "job")] {
            owner[key] = value.into();
        }
        // A pod has one controller at most, beside any number of other owners.
        let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "job-uid"});
        let job: JobObject = serde_json::from_value(json!({
            "metadata": {"uid": "job-uid"},
            "spec": {"template": {"metadata": {"annotations": {"farrier.dev/request": request().to_json()}}}},
        }))
        .unwrap();
        let pod: PodObject = serde_json::from_value(json!({
            "metadata": {"ownerReferences": [other, owner]},
            "spec": {"nodeName": node_name},
            "status": said(&report().to_json()),
        }))
        .unwrap();
        let seen = JobView::new(&job, &[&pod], &node("node-uid"));
        let answered = matches!(seen.progress, JobProgress::Answered(_));
        assert_eq!(answered, counts, "{:?}", seen.progress);
    }

    #[test]
    fn a_request_for_another_node_object_is_ignored() {
        let job: JobObject = serde_json::from_value(json!({"metadata": {}, "spec": {"template": {
            "metadata": {"annotations": {"farrier.dev/request": request().to_json()}}}}}))
        .unwrap();
        assert_eq!(JobView::new(&job, &[], &node("another")).request, None);
    }
}
