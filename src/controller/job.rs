//! The Job that changes one host: its whole definition. Pure.
//!
//! What parses bytes from the network (`fetch`) is unprivileged and sees no host; what changes the host (`install`) needs no
//! network and gets no API token.

use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::Settings;
use crate::handoff::ProvisionRequest;
use crate::names;

/// An installer that was killed, for example with the restart that it asked for, is run again this often by the Job itself.
const KILLED_RETRIES: i32 = 3;

/// An installer that gets SIGTERM undoes its change, or finishes it where containerd has restarted; both wait for containerd.
const GRACE_SECONDS: i64 = 120;

/// Unpacked shims are tens of megabytes each; a node's set stays far below this.
const ARTIFACTS_LIMIT: &str = "4Gi";

/// The user that owns nothing: the one that distroless images call nonroot.
const NOBODY: i64 = 65_532;

/// The Job that brings `request` to the node.
///
/// # Errors
/// When the definition does not read as a Job, which the tests of this file rule out.
pub fn build(
    settings: &Settings,
    node_name: &str,
    node_uid: &str,
    request: &ProvisionRequest,
) -> Result<Job, serde_json::Error> {
    let labels = json!({
        names::COMPONENT_LABEL: names::COMPONENT_INSTALLER,
        names::MANAGED_BY_LABEL: names::MANAGER,
        names::KWASM_JOB_LABEL: "true",
    });
    let annotations = json!({
        names::NODE_NAME_ANNOTATION: node_name,
        names::NODE_UID_ANNOTATION: node_uid,
        names::REQUEST_DIGEST_ANNOTATION: request.digest(),
    });
    let mut pod_annotations = annotations.clone();
    pod_annotations[names::REQUEST_ANNOTATION] = request.to_json().into();
    let name = names::job_name(node_uid);
    let (labels_of_job, annotations_of_job) = (
        with(&labels, rcm_labels(&name, request)),
        with(&annotations, rcm_annotations(node_name, request)),
    );
    serde_json::from_value(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": labels_of_job,
            "annotations": annotations_of_job,
            // The Job of a node that is gone goes with it.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid}],
        },
        "spec": {
            "backoffLimit": KILLED_RETRIES,
            "activeDeadlineSeconds": settings.job_deadline,
            "ttlSecondsAfterFinished": settings.job_ttl.filter(|ttl| *ttl > 0),
            "podFailurePolicy": {"rules": [{
                "action": "FailJob",
                "onExitCodes": {"containerName": names::INSTALL_CONTAINER, "operator": "In", "values": [1, 2, 3, 4, 5]},
            }]},
            "template": {
                "metadata": {"labels": labels, "annotations": pod_annotations},
                "spec": pod(settings, node_name),
            },
        },
    }))
}

/// What runtime-class-manager calls a Job that leaves a node such a set.
fn operation(request: &ProvisionRequest) -> &'static str {
    if request.shims.is_empty() {
        "uninstall"
    } else {
        "install"
    }
}

/// The labels by which runtime-class-manager's users select Jobs. A label can't hold a list: several Shims have none of theirs.
fn rcm_labels(job: &str, request: &ProvisionRequest) -> Vec<(String, String)> {
    let mut labels = vec![
        (names::RCM_JOB_LABEL.to_owned(), "true".to_owned()),
        (
            names::RCM_OPERATION.to_owned(),
            operation(request).to_owned(),
        ),
        (job.to_owned(), "true".to_owned()),
    ];
    if let [shim] = request.shims.as_slice() {
        labels.push((names::RCM_SHIM_NAME.to_owned(), shim.name.clone()));
    }
    labels
}

/// The annotations of runtime-class-manager's Jobs; the Shims stand in one, with commas between them.
fn rcm_annotations(node: &str, request: &ProvisionRequest) -> Vec<(String, String)> {
    let shims: Vec<&str> = request
        .shims
        .iter()
        .map(|shim| shim.name.as_str())
        .collect();
    vec![
        (names::RCM_NODE_NAME.to_owned(), node.to_owned()),
        (names::RCM_SHIM_NAME.to_owned(), shims.join(",")),
        (
            names::RCM_OPERATION.to_owned(),
            operation(request).to_owned(),
        ),
    ]
}

fn with(map: &Value, more: Vec<(String, String)>) -> Value {
    let mut map = map.clone();
    for (key, value) in more {
        map[key] = value.into();
    }
    map
}

fn pod(settings: &Settings, node_name: &str) -> Value {
    let mut volumes = vec![
        json!({"name": "request", "downwardAPI": {"items": [{
            "path": "request",
            "fieldRef": {"fieldPath": format!("metadata.annotations['{}']", names::REQUEST_ANNOTATION)},
        }]}}),
        json!({"name": "artifacts", "emptyDir": {"sizeLimit": ARTIFACTS_LIMIT}}),
        json!({"name": "host", "hostPath": {"path": "/", "type": "Directory"}}),
    ];
    if let Some(config_map) = &settings.ca_config_map {
        volumes.push(json!({"name": "ca", "configMap": {"name": config_map, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}));
    }
    json!({
        "nodeName": node_name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "serviceAccountName": settings.job_service_account,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostPID": settings.job_host_pid.then_some(true),
        "priorityClassName": settings.job_priority_class,
        // A node is provisioned whatever its taints say: they keep pods away, and this one is for the node itself.
        "tolerations": [{"operator": "Exists"}],
        "imagePullSecrets": settings.image_pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "volumes": volumes,
        "initContainers": [fetch(settings)],
        "containers": [install(settings)],
    })
}

fn fetch(settings: &Settings) -> Value {
    let mut mounts = vec![
        json!({"name": "request", "mountPath": "/request", "readOnly": true}),
        json!({"name": "artifacts", "mountPath": "/artifacts"}),
    ];
    let mut environment = Vec::new();
    if settings.ca_config_map.is_some() {
        mounts.push(json!({"name": "ca", "mountPath": "/ca", "readOnly": true}));
        environment.push(json!({"name": "FARRIER_CA_FILE", "value": "/ca/ca.crt"}));
    }
    for (name, value) in &settings.job_proxies {
        environment.push(json!({"name": name, "value": value}));
    }
    json!({
        "name": names::FETCH_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": ["fetch", "--request", "/request/request", "--out", "/artifacts"],
        "env": environment,
        "volumeMounts": mounts,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    })
}

fn install(settings: &Settings) -> Value {
    let mut arguments = vec![
        "install",
        "--host-root",
        "/host",
        "--request",
        "/request/request",
        "--artifacts",
        "/artifacts",
        "--termination-message",
        "/dev/termination-log",
        "--output",
        "json",
    ];
    if settings.allow_pod_restarts {
        arguments.push("--allow-pod-restarts");
    }
    json!({
        "name": names::INSTALL_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": arguments,
        "volumeMounts": [
            {"name": "request", "mountPath": "/request", "readOnly": true},
            {"name": "artifacts", "mountPath": "/artifacts", "readOnly": true},
            {"name": "host", "mountPath": "/host", "mountPropagation": "HostToContainer"},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {"privileged": true, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true},
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::controller::tests::settings;
    use crate::handoff::{Owner, ShimRequest};

    fn request() -> ProvisionRequest {
        ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), vec![], vec![])
    }

    #[test]
    fn the_definition_reads_as_a_job_and_carries_the_request() {
        let job = build(&settings(), "n1", "uid", &request()).unwrap();
        let template = job.spec.unwrap().template;
        let annotations = template.metadata.unwrap().annotations.unwrap();
        assert_eq!(
            ProvisionRequest::from_json(&annotations[names::REQUEST_ANNOTATION]).unwrap(),
            request()
        );
        assert_eq!(annotations[names::NODE_UID_ANNOTATION], "uid");
        assert_eq!(template.spec.unwrap().node_name.as_deref(), Some("n1"));
    }

    #[test]
    fn the_whole_job_is_the_one_that_was_reviewed() {
        let settings = Settings {
            job_ttl: Some(60),
            job_host_pid: true,
            job_priority_class: Some("system-node-critical".to_owned()),
            job_proxies: [("HTTPS_PROXY", "http://proxy:3128".to_owned())].into(),
            ..settings()
        };
        let job = build(&settings, "n1", "uid", &request()).unwrap();
        insta::assert_yaml_snapshot!(serde_json::to_value(job).unwrap());
    }

    #[rstest]
    #[case::none(&[], "uninstall", None)]
    #[case::one(&["spin-v2"], "install", Some("spin-v2"))]
    #[case::several(&["spin-v2", "wws"], "install", None)]
    fn a_job_is_found_as_runtime_class_managers_was(
        #[case] shims: &[&str],
        #[case] operation: &str,
        #[case] label: Option<&str>,
    ) {
        let wanted = |name: &&str| -> ShimRequest {
            serde_json::from_value(json!({
                "name": name, "handlers": [name], "location": "https://example.org/a.tar.gz",
            }))
            .unwrap()
        };
        let shim_requests = shims.iter().map(wanted).collect();
        let request =
            ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), shim_requests, vec![]);
        let job = build(&settings(), "n1", "uid", &request).unwrap();
        let labels = job.metadata.labels.unwrap();
        let name = job.metadata.name.unwrap();
        for key in ["spinkube.dev/job", "kwasm.sh/job", &name] {
            assert_eq!(labels[key], "true", "{key}");
        }
        assert_eq!(labels["spinkube.dev/operation"], operation);
        let found = labels.get("spinkube.dev/shimName").map(String::as_str);
        assert_eq!(found, label);
        let annotations = job.metadata.annotations.unwrap();
        assert_eq!(annotations["spinkube.dev/nodeName"], "n1");
        assert_eq!(annotations["spinkube.dev/shimName"], shims.join(","));
        assert_eq!(annotations["spinkube.dev/operation"], operation);
    }

    #[test]
    fn only_the_container_without_network_input_is_privileged() {
        let job = build(&settings(), "n1", "uid", &request()).unwrap();
        let pod = job.spec.unwrap().template.spec.unwrap();
        let fetch = &pod.init_containers.unwrap()[0];
        let security = fetch.security_context.clone().unwrap();
        assert_eq!(security.privileged, None);
        assert_eq!(security.run_as_non_root, Some(true));
        assert!(
            fetch
                .volume_mounts
                .iter()
                .flatten()
                .all(|mount| mount.name != "host")
        );
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!((pod.host_pid, pod.host_network), (None, None));
    }

    #[test]
    fn an_installer_has_two_minutes_to_undo_its_change() {
        let job = build(&settings(), "n1", "uid", &request()).unwrap();
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.termination_grace_period_seconds, Some(120));
    }

    #[test]
    fn a_job_may_end_pods_only_where_the_operator_says_so() {
        for allowed in [false, true] {
            let settings = Settings {
                allow_pod_restarts: allowed,
                ..settings()
            };
            let job = build(&settings, "n1", "uid", &request()).unwrap();
            let pod = job.spec.unwrap().template.spec.unwrap();
            let arguments = pod.containers[0].args.clone().unwrap();
            let flag = "--allow-pod-restarts".to_owned();
            assert_eq!(arguments.contains(&flag), allowed);
        }
    }

    #[test]
    fn a_job_sees_the_processes_of_its_node_only_where_the_operator_says_so() {
        for (shared, expected) in [(false, None), (true, Some(true))] {
            let settings = Settings {
                job_host_pid: shared,
                ..settings()
            };
            let job = build(&settings, "n1", "uid", &request()).unwrap();
            let pod = job.spec.unwrap().template.spec.unwrap();
            assert_eq!(pod.host_pid, expected);
        }
    }

    #[test]
    fn only_what_fetches_knows_of_a_proxy() {
        let settings = Settings {
            ca_config_map: None,
            job_proxies: [("HTTPS_PROXY", "http://proxy:3128".to_owned())].into(),
            ..settings()
        };
        let pod = pod(&settings, "n1");
        let known = json!([{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]);
        assert_eq!(pod["initContainers"][0]["env"], known);
        assert_eq!(pod["containers"][0]["env"], Value::Null);
    }

    #[test]
    fn a_job_has_the_priority_that_the_operator_gives_it() {
        for class in [None, Some("system-node-critical".to_owned())] {
            let settings = Settings {
                job_priority_class: class.clone(),
                ..settings()
            };
            let job = build(&settings, "n1", "uid", &request()).unwrap();
            let pod = job.spec.unwrap().template.spec.unwrap();
            assert_eq!(pod.priority_class_name, class);
        }
    }

    #[test]
    fn a_lifetime_of_zero_or_less_is_none() {
        for (ttl, expected) in [
            (None, None),
            (Some(0), None),
            (Some(-1), None),
            (Some(60), Some(60)),
        ] {
            let settings = Settings {
                job_ttl: ttl,
                ..settings()
            };
            let job = build(&settings, "n1", "uid", &request()).unwrap();
            assert_eq!(job.spec.unwrap().ttl_seconds_after_finished, expected);
        }
    }
}
