//! The controller's Deployment: replicas, options and the metrics endpoint.

use std::collections::BTreeSet;

use farrier::cli;
use rstest::rstest;
use serde_json::{Value, json};

use super::support::{
    controller, controller_options, environment, name, notes, of_kind, pod_spec, render, strings,
};

#[test]
fn the_defaults_render_one_controller_two_service_accounts_and_the_maintained_shims() {
    let objects = render(&[]);
    let made: BTreeSet<_> = objects
        .iter()
        .map(|object| (object["kind"].as_str().unwrap(), name(object)))
        .collect();
    let expected = [
        ("ClusterRole", "farrier"),
        ("ClusterRoleBinding", "farrier"),
        ("Deployment", "farrier"),
        ("Role", "farrier"),
        ("Role", "farrier-events"),
        ("RoleBinding", "farrier"),
        ("RoleBinding", "farrier-events"),
        ("Service", "farrier-metrics"),
        ("ServiceAccount", "farrier"),
        ("ServiceAccount", "farrier-installer"),
        ("Shim", "default-spin"),
        ("Shim", "default-wasmedge"),
        ("Shim", "default-wasmer"),
        ("Shim", "default-wasmtime"),
        ("ValidatingAdmissionPolicy", "farrier-crds"),
        ("ValidatingAdmissionPolicy", "farrier-jobs"),
        ("ValidatingAdmissionPolicy", "farrier-nodes"),
        ("ValidatingAdmissionPolicy", "farrier-runtimeclasses"),
        (
            "ValidatingAdmissionPolicy",
            "farrier-runtimeclasses-of-shims",
        ),
        ("ValidatingAdmissionPolicy", "farrier-shims"),
        ("ValidatingAdmissionPolicyBinding", "farrier-crds"),
        ("ValidatingAdmissionPolicyBinding", "farrier-jobs"),
        ("ValidatingAdmissionPolicyBinding", "farrier-nodes"),
        ("ValidatingAdmissionPolicyBinding", "farrier-runtimeclasses"),
        (
            "ValidatingAdmissionPolicyBinding",
            "farrier-runtimeclasses-of-shims",
        ),
        ("ValidatingAdmissionPolicyBinding", "farrier-shims"),
    ];
    assert_eq!(made, BTreeSet::from(expected));
}

#[test]
fn the_pod_of_the_controller_is_unprivileged() {
    let objects = render(&[]);
    let pod = pod_spec(&objects);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["hostNetwork"], Value::Null);
    assert_eq!(pod["volumes"], Value::Null);
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}));
}

#[test]
fn several_replicas_elect_a_leader_by_a_lease() {
    let objects = render(&["--set=replicaCount=3,fullnameOverride=mine"]);
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(
        deployment["spec"]["strategy"],
        json!({"type": "RollingUpdate"})
    );
    let lease = environment(&pod_spec(&objects)["containers"][0])["FARRIER_LEASE_NAME"].clone();
    let roles = of_kind(&objects, "Role");
    let mut rules = roles
        .iter()
        .flat_map(|role| role["rules"].as_array().unwrap());
    let named = json!([lease]);
    assert!(
        rules
            .any(|rule| rule["resourceNames"] == named
                && strings(&rule["verbs"]).contains(&"update"))
    );
}

#[test]
fn the_environment_of_the_controller_is_accepted_by_the_command_line() {
    let objects = render(&[]);
    let (cli, variables) = controller_options(&objects);
    assert!(variables.contains("CONTROLLER_NAMESPACE"));
    let options = controller(cli);
    let image = pod_spec(&objects)["containers"][0]["image"].clone();
    assert_eq!(options.image, image);
    assert_eq!(options.image_pull_policy, "IfNotPresent");
    assert_eq!(options.job_service_account, "farrier-installer");
    assert_eq!(options.job_deadline, 1800);
    assert!(!options.auto_provision && !options.allow_pod_restarts && !options.job_host_pid);
    assert!(!options.accept_pending_changes);
    assert!(!options.job_allow_link_local);
    assert_eq!(options.startup_taints, [farrier::names::STARTUP_TAINT]);
    for unset in [
        "FARRIER_JOB_LABELS",
        "FARRIER_JOB_ANNOTATIONS",
        "FARRIER_IMAGE_PULL_SECRETS",
        "FARRIER_CA_CONFIG_MAP",
        "FARRIER_JOB_PRIORITY_CLASS",
        "FARRIER_JOB_HTTP_PROXY",
        "FARRIER_JOB_HTTPS_PROXY",
        "FARRIER_JOB_NO_PROXY",
        "SHIM_NODE_INSTALLER_JOB_TTL",
    ] {
        assert!(!variables.contains(unset), "{unset}");
    }
}

#[test]
fn the_policy_on_jobs_allows_the_option_for_link_local_addresses_only_with_its_value() {
    for (arguments, expected) in [(&[][..], false), (&["--set=job.allowLinkLocal=true"], true)] {
        let policies = render(arguments)
            .into_iter()
            .filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
        let allowed = policies
            .filter(|policy| policy.to_string().contains("--allow-link-local"))
            .count();
        assert_eq!(allowed, usize::from(expected), "{arguments:?}");
    }
}

#[test]
fn values_are_passed_to_the_controller() {
    let objects = render(&[
        "--set=image.repository=registry.example/farrier,image.tag=v9,image.pullPolicy=Always",
        "--set=imagePullSecrets[0].name=one,imagePullSecrets[1].name=two",
        "--set=job.deadlineSeconds=120,job.ttlSecondsAfterFinished=0,job.allowPodRestarts=true",
        "--set=job.acceptPendingChanges=true,onRestart=Drain,drain.enabled=true,drainTimeoutSeconds=60",
        "--set=job.hostPID=true,job.priorityClassName=system-node-critical,job.allowLinkLocal=true",
        "--set=job.proxy.http=http://proxy:3128,job.proxy.https=http://proxy:3129",
        "--set=job.proxy.noProxy=10.0.0.0/8\\,.internal",
        "--set=log.filter=debug,log.format=json",
        "--set=job.labels.a=b,job.annotations.c=d,job.resources.limits.cpu=1",
        "--set=startupTaints={farrier.dev/not-ready,a.example/b}",
    ]);
    let (cli, _) = controller_options(&objects);
    assert_eq!(cli.log, "debug");
    assert_eq!(cli.log_format, cli::LogFormat::Json);
    let options = controller(cli);
    assert_eq!(options.image, "registry.example/farrier:v9");
    assert_eq!(options.image_pull_policy, "Always");
    assert_eq!(options.image_pull_secrets, ["one", "two"]);
    assert_eq!(options.job_deadline, 120);
    assert!(options.allow_pod_restarts && options.job_host_pid && options.job_allow_link_local);
    assert!(options.accept_pending_changes);
    assert_eq!(options.on_restart, cli::OnRestartOfController::Drain);
    assert_eq!(options.drain_timeout, Some(60));
    assert_eq!(options.job_ttl, Some(cli::JobTtl::Seconds(0)));
    assert_eq!(options.job_labels.unwrap()["a"], "b");
    assert_eq!(options.job_annotations.unwrap()["c"], "d");
    let limits = options.job_resources.unwrap().limits.unwrap();
    assert_eq!((&*limits["cpu"].0, &*limits["memory"].0), ("1", "256Mi"));
    let taints = ["farrier.dev/not-ready", "a.example/b"];
    assert_eq!(options.startup_taints, taints);
    let priority = options.job_priority_class.as_deref();
    assert_eq!(priority, Some("system-node-critical"));
    assert_eq!(options.job_http_proxy.as_deref(), Some("http://proxy:3128"));
    let secure = options.job_https_proxy.as_deref();
    assert_eq!(secure, Some("http://proxy:3129"));
    let direct = options.job_no_proxy.as_deref();
    assert_eq!(direct, Some("10.0.0.0/8,.internal"));
    let pull_secrets = &pod_spec(&objects)["imagePullSecrets"];
    assert_eq!(*pull_secrets, json!([{"name": "one"}, {"name": "two"}]));
}

#[test]
fn by_default_a_restart_waits_for_pods_and_the_controller_evicts_none() {
    let (cli, _) = controller_options(&render(&[]));
    let options = controller(cli);
    assert_eq!(options.on_restart, cli::OnRestartOfController::Refuse);
    assert_eq!(options.drain_timeout, None);
}

#[rstest]
#[case::auto_provision_of_farrier("--set=autoProvision=true")]
#[case::auto_provision_of_kwasm("--set=kwasmOperator.autoProvision=true")]
#[case::auto_provision_of_kwasm_as_text("--set-string=kwasmOperator.autoProvision=true")]
#[case::in_other_letters("--set-string=kwasmOperator.autoProvision=True")]
fn auto_provision_has_two_names(#[case] argument: &str) {
    let (cli, _) = controller_options(&render(&[argument]));
    assert!(controller(cli).auto_provision);
}

#[rstest]
#[case::a_preset(&[], "kubectl annotate node")]
#[case::one_shim(&["--set=shims.preset=none,shims.spin.enabled=true"], "kubectl annotate node")]
#[case::none(&["--set=shims.preset=none"], "The chart created no Shim")]
#[case::custom_shim(&["--set=shims.preset=none", "--set-json=shims.extra=[{\"name\":\"x\",\"fetchStrategy\":{},\"runtimeClass\":{\"name\":\"x\",\"handler\":\"x\"}}]"], "The nodeSelector and")]
fn the_notes_show_how_to_provision_a_node(#[case] arguments: &[&str], #[case] expected: &str) {
    let text = notes(arguments);
    let (said, _) = text.split_once("Watch the progress").unwrap();
    assert!(said.contains(expected), "{said}");
    let annotates = said.contains("kubectl annotate node");
    assert_eq!(annotates, expected.contains("annotate"), "{said}");
}

#[rstest]
#[case::the_default(&[], Some("wasmedge 0.6.1, wasmer"))]
#[case::another_version(&["--set=shims.preset=none,shims.spin.enabled=true,shims.spin.version=0.24.0"], Some("spin 0.24.0"))]
#[case::its_digests(&["--set=shims.preset=none,shims.spin.enabled=true"], None)]
#[case::none(&["--set=shims.preset=none"], None)]
fn the_notes_name_the_shims_without_a_digest(
    #[case] arguments: &[&str],
    #[case] expected: Option<&str>,
) {
    let text = notes(arguments);
    assert_eq!(
        text.contains("have no digest"),
        expected.is_some(),
        "{text}"
    );
    assert!(
        expected.is_none_or(|expected| text.contains(expected)),
        "{text}"
    );
}

#[test]
fn a_certificate_authority_is_mounted_from_a_config_map() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    let objects = render(&[&format!("--set=extraCA={pem}")]);
    let map = of_kind(&objects, "ConfigMap")[0];
    assert_eq!(map["data"]["ca.crt"].as_str().unwrap().trim(), pem);
    let (cli, _) = controller_options(&objects);
    assert_eq!(controller(cli).ca_config_map.as_deref(), Some(name(map)));
}

#[test]
fn the_probes_have_a_port_of_their_own() {
    let objects = render(&["--set=probePort=9000"]);
    let (cli, _) = controller_options(&objects);
    let options = controller(cli);
    assert_eq!(options.probe_listen, "[::]:9000".parse().ok());
    assert_eq!(options.listen, "[::]:8080".parse().unwrap());
    let container = &pod_spec(&objects)["containers"][0];
    let port = &container["ports"][1];
    assert_eq!(*port, json!({"name": "probes", "containerPort": 9000}));
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "probes");
    }
}

#[test]
fn the_controller_listens_on_the_address_of_the_values() {
    let objects = render(&["--set=listenAddress=0.0.0.0"]);
    let (cli, _) = controller_options(&objects);
    let options = controller(cli);
    assert_eq!(options.listen, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(options.probe_listen, "0.0.0.0:8081".parse().ok());
}

#[test]
fn a_network_policy_limits_who_reaches_the_metrics_and_leaves_the_probes_to_the_kubelet() {
    assert!(of_kind(&render(&[]), "NetworkPolicy").is_empty());
    let peer = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}});
    let from = format!("--set-json=metrics.networkPolicy.from=[{peer}]");
    let objects = render(&["--set=metrics.networkPolicy.enabled=true", &from]);
    let spec = &of_kind(&objects, "NetworkPolicy")[0]["spec"];
    assert_eq!(spec["policyTypes"], json!(["Ingress"]));
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(spec["podSelector"], deployment["spec"]["selector"]);
    let probes = json!({"ports": [{"port": "probes"}]});
    let metrics = json!({"ports": [{"port": "http"}], "from": [peer]});
    assert_eq!(spec["ingress"], json!([probes, metrics]));
    // Without a peer, nobody reaches the metrics.
    let objects = render(&["--set=metrics.networkPolicy.enabled=true"]);
    let spec = &of_kind(&objects, "NetworkPolicy")[0]["spec"];
    assert_eq!(spec["ingress"], json!([probes]));
}

#[test]
fn the_metrics_have_the_annotations_of_prometheus() {
    let objects = render(&["--set=metrics.service.annotations.team=a"]);
    let service = of_kind(&objects, "Service")[0];
    let annotations = &service["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/scrape"], "true");
    assert_eq!(annotations["team"], "a");
    let port = &pod_spec(&objects)["containers"][0]["ports"][0]["containerPort"];
    assert_eq!(annotations["prometheus.io/port"], port.to_string());
    let none = render(&["--set=metrics.service.enabled=false"]);
    assert!(of_kind(&none, "Service").is_empty());
}
