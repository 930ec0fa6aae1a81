//! The Job that changes one host. Pure.
//!
//! The container `fetch` parses bytes from the network, is unprivileged and sees nothing of the host. The container `install` changes the
//! host, needs no network and has no API token.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
    EmptyDirVolumeSource, EnvVar, HostPathVolumeSource, KeyToPath, LocalObjectReference, Node,
    ObjectFieldSelector, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
    SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::api::LONGEST_NAME;
use crate::controller::settings::Settings;
use crate::handoff::{ProvisionRequest, Sha256Digest};
use crate::names;

/// How often the Job itself restarts an installer that was killed, for example by the restart that it requested.
const KILLED_RETRIES: i32 = 3;

/// Grace period of the pod, in seconds. After SIGTERM, the installer undoes its change, or finishes it once containerd is restarting. Both
/// wait for containerd.
const GRACE_SECONDS: i64 = 120;

/// Memory limit of a container of a Job, in MiB, if the settings have no resources. The largest use is that of a rehearsal: a second containerd and the root that is built for it.
pub const JOB_MEMORY_LIMIT: u64 = 256;

/// Limit of the volume for downloads. An unpacked shim has tens of megabytes, and the set of a node stays far below the limit.
const ARTIFACTS_LIMIT: &str = "4Gi";

/// An unprivileged user: `nonroot` of the distroless images.
const NOBODY: i64 = 65_532;

/// Exit statuses after which the installer has reported (`handoff::Outcome`): the Job does not run it again.
const REPORTED: [i32; 5] = [1, 2, 3, 4, 5];

type Pairs = BTreeMap<String, String>;

/// The Job that carries `request`, with this digest, to the node.
#[must_use]
pub fn build(
    settings: &Settings,
    node_name: &str,
    node_uid: &str,
    request: &ProvisionRequest,
    digest: Sha256Digest,
) -> Job {
    let labels = labels(settings, node_name);
    // Each entry replaces an earlier one with its key.
    let mut annotations = pairs([
        (names::ISTIO_INJECT, "false"),
        (names::LINKERD_INJECT, "disabled"),
    ]);
    annotations.extend(settings.job_annotations.clone());
    annotations.extend(pairs([
        (names::NODE_NAME_ANNOTATION, node_name),
        (names::NODE_UID_ANNOTATION, node_uid),
        (names::REQUEST_DIGEST_ANNOTATION, &digest.to_string()),
    ]));
    let mut pod_annotations = annotations.clone();
    pod_annotations.insert(names::REQUEST_ANNOTATION.to_owned(), request.to_json());
    let name = names::job_name(node_uid);
    let mut job_labels = labels.clone();
    job_labels.extend(rcm_labels(&name, request));
    let mut job_annotations = annotations;
    job_annotations.extend(rcm_annotations(node_name, request));
    let rule = PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(names::INSTALL_CONTAINER.to_owned()),
            operator: "In".to_owned(),
            values: REPORTED.to_vec(),
        }),
        ..PodFailurePolicyRule::default()
    };
    Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(settings.namespace.clone()),
            labels: Some(job_labels),
            annotations: Some(job_annotations),
            // The garbage collector deletes the Job together with the node.
            owner_references: Some(vec![OwnerReference {
                api_version: Node::api_version(&()).into_owned(),
                kind: Node::kind(&()).into_owned(),
                name: node_name.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(KILLED_RETRIES),
            active_deadline_seconds: Some(settings.job_deadline),
            ttl_seconds_after_finished: settings.job_ttl.filter(|ttl| *ttl > 0),
            pod_failure_policy: Some(PodFailurePolicy { rules: vec![rule] }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(pod_annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(settings, node_name)),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// The labels of a Job and of its pod. Those against sidecars are there because a Job with a sidecar never ends, and because the init container
/// `fetch` runs before the sidecar that its network would need.
fn labels(settings: &Settings, node_name: &str) -> Pairs {
    let mut labels = pairs([(names::ISTIO_INJECT, "false")]);
    labels.extend(settings.job_labels.clone());
    labels.extend(pairs([
        (names::COMPONENT_LABEL, names::COMPONENT_INSTALLER),
        (names::MANAGED_BY_LABEL, names::MANAGER),
        (names::KWASM_JOB_LABEL, "true"),
    ]));
    labels.remove(names::NODE_NAME_ANNOTATION);
    if node_name.len() <= LONGEST_NAME {
        labels.extend(pairs([(names::NODE_NAME_ANNOTATION, node_name)]));
    }
    labels
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Pairs {
    let pairs = pairs.into_iter();
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The operation in runtime-class-manager's terms.
fn operation(request: &ProvisionRequest) -> &'static str {
    if request.shims.is_empty() {
        "uninstall"
    } else {
        "install"
    }
}

/// The labels by which users of runtime-class-manager select Jobs. A label can't contain a list, so a Job of several Shims has no label
/// with their names.
fn rcm_labels(job: &str, request: &ProvisionRequest) -> Pairs {
    let mut labels = pairs([
        (names::RCM_JOB_LABEL, "true"),
        (names::RCM_OPERATION, operation(request)),
        (job, "true"),
    ]);
    if let [shim] = request.shims.as_slice() {
        labels.insert(names::RCM_SHIM_NAME.to_owned(), shim.name.clone());
    }
    labels
}

/// The annotations of runtime-class-manager's Jobs. The annotation with the Shims separates them by commas.
fn rcm_annotations(node: &str, request: &ProvisionRequest) -> Pairs {
    let shims: Vec<&str> = request
        .shims
        .iter()
        .map(|shim| shim.name.as_str())
        .collect();
    pairs([
        (names::RCM_NODE_NAME, node),
        (names::RCM_SHIM_NAME, &shims.join(",")),
        (names::RCM_OPERATION, operation(request)),
    ])
}

fn pod(settings: &Settings, node_name: &str) -> PodSpec {
    let secrets = settings.image_pull_secrets.iter();
    let secrets = secrets.map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        node_name: Some(node_name.to_owned()),
        restart_policy: Some("Never".to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        service_account_name: Some(settings.job_service_account.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        host_pid: settings.job_host_pid.then_some(true),
        priority_class_name: settings.job_priority_class.clone(),
        // The pod changes the node itself, so it tolerates every taint.
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }]),
        image_pull_secrets: Some(secrets.collect()),
        volumes: Some(volumes(settings)),
        init_containers: Some(vec![fetch(settings)]),
        containers: vec![install(settings)],
        ..PodSpec::default()
    }
}

fn volumes(settings: &Settings) -> Vec<Volume> {
    let request = DownwardAPIVolumeFile {
        path: "request".to_owned(),
        field_ref: Some(ObjectFieldSelector {
            field_path: format!("metadata.annotations['{}']", names::REQUEST_ANNOTATION),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let mut volumes = vec![
        Volume {
            name: "request".to_owned(),
            downward_api: Some(DownwardAPIVolumeSource {
                items: Some(vec![request]),
                ..DownwardAPIVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "artifacts".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity(ARTIFACTS_LIMIT.to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "host".to_owned(),
            host_path: Some(HostPathVolumeSource {
                path: "/".to_owned(),
                type_: Some("Directory".to_owned()),
            }),
            ..Volume::default()
        },
    ];
    if let Some(config_map) = &settings.ca_config_map {
        volumes.push(Volume {
            name: "ca".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config_map.clone(),
                items: Some(vec![KeyToPath {
                    key: "ca.crt".to_owned(),
                    path: "ca.crt".to_owned(),
                    ..KeyToPath::default()
                }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(name, path)
    }
}

/// The common part of both containers.
fn container(settings: &Settings, name: &str, arguments: &[&str]) -> Container {
    let resources = settings.job_resources.clone();
    Container {
        name: name.to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        args: Some(arguments.iter().map(|&word| word.to_owned()).collect()),
        env: Some(vec![
            variable("FARRIER_LOG", &settings.log_filter),
            variable("FARRIER_LOG_FORMAT", &settings.log_format),
        ]),
        resources: Some(resources.unwrap_or_else(default_resources)),
        ..Container::default()
    }
}

fn default_resources() -> ResourceRequirements {
    let memory_limit = format!("{JOB_MEMORY_LIMIT}Mi");
    let amounts = |amounts: &[(&str, &str)]| {
        let amounts = amounts.iter();
        let amounts =
            amounts.map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())));
        Some(amounts.collect())
    };
    ResourceRequirements {
        requests: amounts(&[("cpu", "10m"), ("memory", "32Mi")]),
        limits: amounts(&[("memory", &memory_limit)]),
        ..ResourceRequirements::default()
    }
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    }
}

fn fetch(settings: &Settings) -> Container {
    let mut mounts = vec![
        read_only("request", "/request"),
        mount("artifacts", "/artifacts"),
    ];
    let mut environment = Vec::new();
    if settings.ca_config_map.is_some() {
        mounts.push(read_only("ca", "/ca"));
        environment.push(variable("FARRIER_CA_FILE", "/ca/ca.crt"));
    }
    for (name, value) in &settings.job_proxies {
        environment.push(variable(name, value));
    }
    let mut arguments = vec![
        "fetch",
        "--request",
        "/request/request",
        "--out",
        "/artifacts",
    ];
    if settings.job_allow_link_local {
        arguments.push("--allow-link-local");
    }
    let common = container(settings, names::FETCH_CONTAINER, &arguments);
    environment.extend(common.env.into_iter().flatten());
    Container {
        env: Some(environment),
        volume_mounts: Some(mounts),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(NOBODY),
            run_as_group: Some(NOBODY),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        ..common
    }
}

fn install(settings: &Settings) -> Container {
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
    let deadline = format!("--deadline={}", settings.job_deadline);
    arguments.push(&deadline);
    if settings.allow_pod_restarts {
        arguments.push("--allow-pod-restarts");
    }
    if settings.accept_pending_changes {
        arguments.push("--accept-pending-changes");
    }
    Container {
        volume_mounts: Some(vec![
            read_only("request", "/request"),
            read_only("artifacts", "/artifacts"),
            // Without mount propagation, which needs a shared `/`: on k3d and with OpenRC, `/` is a private mount. The container has all mounts
            // of its start, and a change mounts nothing on the host.
            mount("host", "/host"),
        ]),
        security_context: Some(SecurityContext {
            privileged: Some(true),
            run_as_user: Some(0),
            run_as_group: Some(0),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..container(settings, names::INSTALL_CONTAINER, &arguments)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::controller::tests::settings;
    use crate::handoff::{Owner, ShimRequest};

    fn request() -> ProvisionRequest {
        ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), vec![], vec![])
    }

    fn job(settings: &Settings, request: &ProvisionRequest) -> Job {
        build(settings, "n1", "uid", request, request.digest())
    }

    #[test]
    fn a_job_carries_the_request_to_its_node() {
        let job = job(&settings(), &request());
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
        let job = job(&settings, &request());
        insta::assert_yaml_snapshot!(serde_json::to_value(job).unwrap());
    }

    #[rstest]
    #[case::none(&[], "uninstall", None)]
    #[case::one(&["spin-v2"], "install", Some("spin-v2"))]
    #[case::several(&["spin-v2", "wws"], "install", None)]
    fn a_job_has_the_labels_and_annotations_of_runtime_class_manager(
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
        let job = job(&settings(), &request);
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
        let job = job(&settings(), &request());
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
        let job = job(&settings(), &request());
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.termination_grace_period_seconds, Some(120));
    }

    #[test]
    fn a_job_may_end_pods_and_accept_pending_changes_only_if_the_settings_allow_it() {
        for (pods, changes) in [(false, false), (true, false), (false, true), (true, true)] {
            let settings = Settings {
                allow_pod_restarts: pods,
                accept_pending_changes: changes,
                ..settings()
            };
            let job = job(&settings, &request());
            let pod = job.spec.unwrap().template.spec.unwrap();
            let arguments = pod.containers[0].args.clone().unwrap();
            let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
            assert_eq!(has("--allow-pod-restarts"), pods);
            assert_eq!(has("--accept-pending-changes"), changes);
        }
    }

    #[test]
    fn a_job_downloads_from_link_local_addresses_only_if_the_settings_allow_it() {
        for allowed in [false, true] {
            let settings = Settings {
                job_allow_link_local: allowed,
                ..settings()
            };
            let pod = pod(&settings, "n1");
            let fetch = pod.init_containers.unwrap()[0].args.clone().unwrap();
            let flag = "--allow-link-local".to_owned();
            assert_eq!(fetch.contains(&flag), allowed);
            assert!(!pod.containers[0].args.clone().unwrap().contains(&flag));
        }
    }

    #[test]
    fn a_job_shares_the_pid_namespace_of_its_node_only_if_the_settings_allow_it() {
        for (shared, expected) in [(false, None), (true, Some(true))] {
            let settings = Settings {
                job_host_pid: shared,
                ..settings()
            };
            let job = job(&settings, &request());
            let pod = job.spec.unwrap().template.spec.unwrap();
            assert_eq!(pod.host_pid, expected);
        }
    }

    #[test]
    fn labels_and_annotations_of_the_settings_never_replace_those_of_farrier() {
        let settings = Settings {
            job_labels: pairs([
                ("kueue.x-k8s.io/queue-name", "nodes"),
                (names::ISTIO_INJECT, "true"),
                (names::COMPONENT_LABEL, "controller"),
                (names::NODE_NAME_ANNOTATION, "n2"),
            ]),
            job_annotations: pairs([("team", "a"), (names::NODE_UID_ANNOTATION, "other")]),
            ..settings()
        };
        let job = job(&settings, &request());
        let template = job.spec.unwrap().template.metadata.unwrap();
        for metadata in [job.metadata, template] {
            let labels = metadata.labels.unwrap();
            assert_eq!(labels["kueue.x-k8s.io/queue-name"], "nodes");
            assert_eq!(labels[names::ISTIO_INJECT], "true");
            assert_eq!(labels[names::COMPONENT_LABEL], "installer");
            assert_eq!(labels[names::NODE_NAME_ANNOTATION], "n1");
            let annotations = metadata.annotations.unwrap();
            assert_eq!(annotations["team"], "a");
            assert_eq!(annotations[names::ISTIO_INJECT], "false");
            assert_eq!(annotations[names::LINKERD_INJECT], "disabled");
            assert_eq!(annotations[names::NODE_UID_ANNOTATION], "uid");
        }
    }

    #[rstest]
    #[case(63, true)]
    #[case(64, false)]
    fn the_node_is_a_label_where_its_name_fits(#[case] length: usize, #[case] fits: bool) {
        let labels = labels(&settings(), &"n".repeat(length));
        assert_eq!(labels.contains_key(names::NODE_NAME_ANNOTATION), fits);
    }

    #[test]
    fn the_settings_replace_the_resources_of_both_containers() {
        let resources = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}});
        let settings = Settings {
            job_resources: Some(serde_json::from_value(resources.clone()).unwrap()),
            ..settings()
        };
        let pod = pod(&settings, "n1");
        let containers = pod
            .containers
            .into_iter()
            .chain(pod.init_containers.unwrap());
        for container in containers {
            assert_eq!(
                serde_json::to_value(container.resources).unwrap(),
                resources
            );
        }
    }

    #[test]
    fn only_the_fetch_container_gets_the_proxy_variables_and_both_log_alike() {
        let settings = Settings {
            ca_config_map: None,
            job_proxies: [("HTTPS_PROXY", "http://proxy:3128".to_owned())].into(),
            log_filter: "debug".to_owned(),
            log_format: "json".to_owned(),
            ..settings()
        };
        let pod = pod(&settings, "n1");
        let variables = pod.init_containers.unwrap()[0].env.clone();
        let known = json!([
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "FARRIER_LOG", "value": "debug"},
            {"name": "FARRIER_LOG_FORMAT", "value": "json"},
        ]);
        assert_eq!(serde_json::to_value(variables).unwrap(), known);
        let of_install = serde_json::to_value(&pod.containers[0].env).unwrap();
        assert_eq!(
            of_install.as_array().unwrap(),
            &known.as_array().unwrap()[1..]
        );
    }

    #[test]
    fn a_job_has_the_priority_class_of_the_settings() {
        for class in [None, Some("system-node-critical".to_owned())] {
            let settings = Settings {
                job_priority_class: class.clone(),
                ..settings()
            };
            let job = job(&settings, &request());
            let pod = job.spec.unwrap().template.spec.unwrap();
            assert_eq!(pod.priority_class_name, class);
        }
    }

    #[test]
    fn a_job_lifetime_of_zero_or_less_is_left_out() {
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
            let job = job(&settings, &request());
            assert_eq!(job.spec.unwrap().ttl_seconds_after_finished, expected);
        }
    }
}
