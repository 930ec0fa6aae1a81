//! Permissions: roles, service accounts and admission policies.

use std::collections::BTreeSet;

use rstest::rstest;
use serde_json::{Value, json};

use super::support::{
    chart, edited, hooks, name, notes, object, of_kind, refusal, render, strings,
};

/// The rules of one role, each as `GROUP: RESOURCES NAMES: VERBS`.
pub fn rights(objects: &[Value], kind: &str, role_name: &str) -> BTreeSet<String> {
    let mut roles = of_kind(objects, kind);
    roles.retain(|role| name(role) == role_name);
    let items = roles[0]["rules"].as_array().unwrap();
    let line = |rule: &Value| {
        let words = |key: &str| strings(&rule[key]).join(" ");
        let what = [words("resources"), words("resourceNames")].join(" ");
        let line = [&words("apiGroups"), what.trim(), &words("verbs")].join(": ");
        line.trim_start_matches(": ").to_owned()
    };
    items.iter().map(line).collect()
}

pub fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(ToString::to_string).collect()
}

#[rstest]
#[case::of_helm(true, true, "helm upgrade other -n elsewhere")]
#[case::of_helm_without_its_namespace(true, false, "helm install other -n elsewhere")]
#[case::of_a_manifest(false, true, "kubectl delete shims --all, and then kubectl delete -f")]
#[case::of_a_manifest_without_its_namespace(false, false, "Apply that manifest again")]
fn a_second_install_names_a_way_that_fits_the_first(
    #[case] is_released: bool,
    #[case] has_namespace: bool,
    #[case] way: &str,
) {
    let mut binding = json!({
        "metadata": {
            "name": "other", "annotations": {},
            "labels": {"helm.sh/chart": "farrier-0.1.0", "app.kubernetes.io/instance": "other"},
        },
        "subjects": [{"namespace": "elsewhere"}],
    });
    if is_released {
        binding["metadata"]["annotations"]["meta.helm.sh/release-name"] = "other".into();
    }
    let home = if has_namespace {
        json!({"metadata": {"name": "elsewhere"}})
    } else {
        json!({})
    };
    let bindings = "(lookup \"rbac.authorization.k8s.io/v1\" \"ClusterRoleBinding\" \"\" \"\")";
    let namespace = "lookup \"v1\" \"Namespace\" \"\" $namespace";
    let list = format!("({})", object(&json!({"items": [binding]})));
    let edits = [(bindings, list), (namespace, object(&home))];
    let output = edited("_helpers.tpl", &edits, &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains(way), "{told}");
    assert_eq!(told.contains("helm "), is_released, "{told}");
}

#[test]
fn the_policy_on_jobs_allows_what_the_previous_controller_was_set_to() {
    let lookup = "lookup \"apps/v1\" \"Deployment\" .Release.Namespace $name";
    let policies = |value: &str| {
        let env = [
            "FARRIER_JOB_HOST_PID",
            "FARRIER_JOB_ALLOW_LINK_LOCAL",
            "FARRIER_ALLOW_POD_RESTARTS",
            "FARRIER_ACCEPT_PENDING_CHANGES",
        ];
        let env = env.map(|name| json!({"name": name, "value": value}));
        let container = json!({"image": "farrier:0", "env": env});
        let deployment = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let edits = [(lookup, object(&deployment))];
        let output = edited("policies.yaml", &edits, &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (on, off) = (policies("true"), policies("false"));
    for option in [
        "--allow-link-local",
        "--allow-pod-restarts",
        "--accept-pending-changes",
    ] {
        let allowed = format!("argument != '{option}'");
        assert!(on.contains(&allowed) && !off.contains(&allowed), "{option}");
    }
    let refused = "variables.pod.?hostPID.orValue(false) == false";
    assert!(!on.contains(refused) && off.contains(refused));
}

/// The validations of the policy on Jobs.
fn validations_of_jobs(arguments: &[&str]) -> String {
    validations("farrier-jobs", arguments)
}

/// The validations of one policy.
fn validations(policy: &str, arguments: &[&str]) -> String {
    let objects = render(arguments);
    let mut policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    policies.retain(|other| name(other) == policy);
    policies[0]["spec"]["validations"].to_string()
}

#[test]
fn the_policy_permits_only_the_proxies_of_the_values() {
    let said = "variable.name == 'HTTPS_PROXY'";
    assert!(!validations_of_jobs(&[]).contains(said));
    let validations = validations_of_jobs(&["--set=job.proxy.https=http://proxy:3128"]);
    let expected = format!(r#"{said} && variable.?value.orValue('') in [\"http://proxy:3128\"]"#);
    assert!(validations.contains(&expected), "{validations}");
    assert!(!validations.contains("'HTTP_PROXY'") && !validations.contains("'NO_PROXY'"));
}

#[test]
fn the_policy_permits_the_certificate_authorities_of_the_former_release() {
    let validations = validations_of_jobs(&[]);
    let expected = r#"has(volume.configMap) && volume.configMap.name == \"farrier-ca\""#;
    assert!(validations.contains(expected), "{validations}");
}

#[test]
fn the_owner_of_a_runtime_class_has_a_version_that_the_definition_serves() {
    let definition = std::fs::read_to_string(chart().join("crds/shims.yaml")).unwrap();
    let definition: Value = serde_saphyr::from_str(&definition).unwrap();
    let versions = definition["spec"]["versions"].as_array().unwrap();
    let served: Vec<String> = versions
        .iter()
        .filter(|version| version["served"] == true)
        .map(|version| {
            format!(
                "owner.apiVersion == 'runtime.spinkube.dev/{}'",
                version["name"].as_str().unwrap()
            )
        })
        .collect();
    let objects = render(&[]);
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let policy = policies
        .into_iter()
        .find(|policy| name(policy) == "farrier-runtimeclasses")
        .unwrap();
    let variables = policy["spec"]["variables"].as_array().unwrap();
    let shims = variables
        .iter()
        .find(|variable| variable["name"] == "shims")
        .unwrap();
    let expression = shims["expression"].as_str().unwrap();
    let expected = format!("owner.kind == 'Shim' && {})", served.join(" || "));
    assert!(expression.ends_with(&expected), "{expression}");
}

#[test]
fn the_role_of_the_controller_has_exactly_the_reviewed_rules() {
    let objects = render(&[]);
    let rights = |kind: &str, role_name: &str| rights(&objects, kind, role_name);
    let in_the_cluster = set(&[
        "nodes: list watch patch",
        "pods: get",
        "runtime.spinkube.dev: shims: list watch patch",
        "runtime.spinkube.dev: shims/status: patch",
        "node.k8s.io: runtimeclasses: list watch create update delete",
        "apiextensions.k8s.io: customresourcedefinitions shims.runtime.spinkube.dev: get list watch",
    ]);
    assert_eq!(rights("ClusterRole", "farrier"), in_the_cluster);
    let mut drains = in_the_cluster;
    drains.insert("pods/eviction: create".to_owned());
    let objects_with_drain = render(&["--set=drain.enabled=true"]);
    let rights_with_drain = self::rights(&objects_with_drain, "ClusterRole", "farrier");
    assert_eq!(rights_with_drain, drains);
    let in_its_namespace = set(&[
        "batch: jobs: get list watch create delete",
        "pods: list watch",
        "events: list",
        "coordination.k8s.io: leases: create",
        "coordination.k8s.io: leases farrier: get update patch",
    ]);
    assert_eq!(rights("Role", "farrier"), in_its_namespace);
    let for_events = set(&["events.k8s.io: events: create get patch"]);
    assert_eq!(rights("Role", "farrier-events"), for_events);
}

#[test]
fn the_service_account_of_the_jobs_has_no_role_and_no_token() {
    let objects = render(&[]);
    let accounts = of_kind(&objects, "ServiceAccount");
    let account = accounts
        .iter()
        .find(|account| name(account) == "farrier-installer")
        .unwrap();
    assert_eq!(account["automountServiceAccountToken"], false);
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in of_kind(&objects, kind) {
            for subject in binding["subjects"].as_array().unwrap() {
                assert_eq!(subject["name"], "farrier", "{binding}");
            }
        }
    }
}

#[test]
fn policies_are_omitted_by_a_value_and_on_clusters_without_their_api() {
    for argument in [
        "--set=admissionPolicies.enabled=false",
        "--kube-version=1.29.9",
    ] {
        let objects = render(&[argument]);
        assert!(of_kind(&objects, "ValidatingAdmissionPolicy").is_empty());
    }
}

#[test]
fn every_policy_is_bound_and_denies_and_only_the_one_with_a_parameter_fails_open() {
    let objects = render(&[]);
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let bindings = of_kind(&objects, "ValidatingAdmissionPolicyBinding");
    let names: BTreeSet<&str> = policies.iter().map(|policy| name(policy)).collect();
    let expected = set(&[
        "farrier-crds",
        "farrier-jobs",
        "farrier-nodes",
        "farrier-runtimeclasses",
        "farrier-runtimeclasses-of-shims",
        "farrier-shims",
    ]);
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    for policy in policies {
        let spec = &policy["spec"];
        let fails = if spec["paramKind"].is_null() {
            "Fail"
        } else {
            "Ignore"
        };
        assert_eq!(spec["failurePolicy"], fails, "{}", name(policy));
        let binding = bindings
            .iter()
            .find(|binding| binding["spec"]["policyName"] == name(policy))
            .unwrap_or_else(|| panic!("{} is not bound", name(policy)));
        assert_eq!(strings(&binding["spec"]["validationActions"]), ["Deny"]);
        // Every version of the resource, and every object: a binding without matchResources.
        let rules = spec["matchConstraints"]["resourceRules"]
            .as_array()
            .unwrap();
        for rule in rules {
            assert_eq!(strings(&rule["apiVersions"]), ["*"]);
        }
        assert_eq!(binding["spec"]["matchResources"], Value::Null);
    }
}

#[test]
fn the_policies_restrict_the_accounts_that_the_chart_names() {
    let objects = render(&["--set=serviceAccount.name=other,fullnameOverride=it"]);
    for policy in of_kind(&objects, "ValidatingAdmissionPolicy") {
        let condition = policy["spec"]["matchConditions"][0]["expression"].to_string();
        assert!(
            condition.contains("system:serviceaccount:farrier:other"),
            "{condition}"
        );
        let hook = condition.contains("system:serviceaccount:farrier:it-crd");
        assert_eq!(hook, name(policy) == "it-crds");
    }
}

#[rstest]
#[case::the_catalogue(
    &[],
    r#"[\"lunatic\",\"slight\",\"spin\",\"spin-v2\",\"wasmedge\",\"wasmedge-v1\",\"wasmer\",\"wasmer-v1\",\"wasmtime\",\"wasmtime-v1\",\"wws\"]"#
)]
#[case::shims_of_the_values(
    &[r#"--set-json=shims.extra=[{"name":"mine","handlerAliases":["mine-v2"],"runtimeClass":{"name":"mine","handler":"mine"},"fetchStrategy":{"anonHttp":{"location":"https://example.org/a"}}}]"#],
    r#"\"lunatic\",\"mine\",\"mine-v2\",\"slight\""#
)]
#[case::a_list(&["--set=admissionPolicies.adoptableHandlers={crun,spin}"], r#"[\"crun\",\"spin\"]"#)]
#[case::none(&["--set-json=admissionPolicies.adoptableHandlers=[]"], "in []")]
fn runtime_classes_of_others_may_be_adopted_for_the_handlers_of_the_values(
    #[case] arguments: &[&str],
    #[case] expected: &str,
) {
    let validations = validations("farrier-runtimeclasses", arguments);
    assert!(validations.contains(expected), "{validations}");
}

#[test]
fn the_handler_runc_can_not_be_made_adoptable() {
    let said = refusal(&["--set=admissionPolicies.adoptableHandlers={spin,runc}"]);
    assert!(said.contains("adoptableHandlers"), "{said}");
}

#[test]
fn a_failed_hook_keeps_its_job_alone() {
    for (hook, job) in [
        ("pre-install,pre-upgrade", "farrier-crd"),
        ("pre-delete", "farrier-uninstall-cluster"),
    ] {
        let objects = hooks(hook, &[]);
        assert!(objects.len() > 3, "{hook}");
        for object in &objects {
            let annotations = &object["metadata"]["annotations"];
            let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
            assert!(policy.contains("before-hook-creation,hook-succeeded"));
            let is_job = object["kind"] == "Job";
            assert_eq!(policy.contains("hook-failed"), !is_job, "{object}");
            assert!(!is_job || name(object) == job);
        }
    }
}

#[rstest]
#[case::enforced(&["--kube-version=1.30.0"], None)]
#[case::too_old(&["--kube-version=1.29.9"], Some("Kubernetes 1.30 and later"))]
#[case::turned_off(&["--set=admissionPolicies.enabled=false"], Some("admissionPolicies.enabled: false"))]
fn the_notes_say_where_no_policy_restricts_the_controller(
    #[case] arguments: &[&str],
    #[case] expected: Option<&str>,
) {
    let text = notes(arguments);
    match expected {
        Some(expected) => assert!(text.contains(expected), "{text}"),
        None => assert!(!text.contains("SECURITY.md"), "{text}"),
    }
}

#[test]
fn the_names_in_the_policies_are_those_that_the_controller_writes() {
    let template = std::fs::read_to_string(chart().join("templates/policies.yaml")).unwrap();
    for name in [
        farrier::names::ADOPTED_BY_ANNOTATION,
        farrier::names::APPLIED_ANNOTATION,
        farrier::names::HANDLER_LABEL_PREFIX,
        farrier::names::KWASM_JOB_LABEL,
        farrier::names::KWASM_PROVISIONED_LABEL,
        farrier::names::NODE_NAME_ANNOTATION,
        farrier::names::NODE_UID_ANNOTATION,
        farrier::names::RCM_FINALIZER,
        farrier::names::REQUEST_ANNOTATION,
        farrier::names::REQUEST_DIGEST_ANNOTATION,
        farrier::names::SHIM_FINALIZER,
    ] {
        assert!(template.contains(&format!("'{name}")), "{name}");
    }
}

#[rstest]
#[case::the_default(&[], r#"[\"farrier.dev/not-ready\",\"farrier.dev/restarting\"]"#)]
#[case::others(&["--set=startupTaints={farrier.dev/not-ready,a.example/b}"], r#"[\"farrier.dev/not-ready\",\"a.example/b\",\"farrier.dev/restarting\"]"#)]
#[case::none(&["--set-json=startupTaints=[]"], r#"[\"farrier.dev/restarting\"]"#)]
fn the_policy_on_nodes_permits_the_startup_taints_of_the_values(
    #[case] arguments: &[&str],
    #[case] expected: &str,
) {
    let validations = validations("farrier-nodes", arguments);
    let expected = format!("taint.key in {expected}");
    assert!(validations.contains(&expected), "{validations}");
}

/// One variable of the policy on Jobs.
fn variable_of_jobs(wanted: &str, arguments: &[&str]) -> String {
    let objects = render(arguments);
    let mut policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    policies.retain(|other| name(other) == "farrier-jobs");
    let variables = policies[0]["spec"]["variables"].as_array().unwrap();
    let found = variables.iter().find(|variable| variable["name"] == wanted);
    found.unwrap()["expression"].as_str().unwrap().to_owned()
}

#[rstest]
#[case::the_tag(&["--set=image.repository=a.example:5000/farrier,image.tag=v1"], r#"["a.example:5000/farrier:v1@sha256:","a.example:5000/farrier@sha256:"]"#)]
#[case::a_digest(&["--set=image.tag=v1@sha256:00"], r#"["@sha256:00"].exists(suffix"#)]
#[case::a_repository(&["--set=admissionPolicies.images={mirror.example/farrier}"], r#""mirror.example/farrier@sha256:","mirror.example/farrier:"]"#)]
#[case::another_image(&["--set=admissionPolicies.images={mirror.example/farrier:v2}"], r#"["localhost/farrier:0.1.0","mirror.example/farrier:v2"]"#)]
fn the_policy_permits_the_image_with_a_digest_and_the_images_of_the_values(
    #[case] arguments: &[&str],
    #[case] expected: &str,
) {
    let expression = variable_of_jobs("foreignImages", arguments);
    assert!(expression.contains(expected), "{expression}");
}

#[test]
fn the_policy_permits_the_pull_secrets_labels_annotations_and_resources_of_the_values() {
    let arguments = [
        "--set=imagePullSecrets[0].name=one,admissionPolicies.pullSecrets={two}",
        "--set=job.labels.kueue\\.x-k8s\\.io/queue-name=nodes,job.annotations.team=a",
        "--set=job.resources.limits.cpu=2,job.resources.requests.cpu=1",
    ];
    for (variable, expected) in [
        ("foreignPullSecrets", r#"["two","one"]"#),
        (
            "permittedLabels",
            r#""kueue.x-k8s.io/queue-name":["nodes"]"#,
        ),
        ("permittedLabels", r#""sidecar.istio.io/inject":["false"]"#),
        ("permittedAnnotations", r#""team":["a"]"#),
        (
            "permittedAnnotations",
            r#""linkerd.io/inject":["disabled"]"#,
        ),
        ("largestRequests", r#""cpu":["100m","1"]"#),
        ("largestLimits", r#""cpu":["2"]"#),
    ] {
        let expression = variable_of_jobs(variable, &arguments);
        assert!(expression.contains(expected), "{variable}: {expression}");
    }
    assert!(!variable_of_jobs("largestLimits", &[]).contains("cpu"));
}

#[test]
fn the_refusals_of_the_policy_on_jobs_name_the_values_that_permit_more() {
    let validations = validations_of_jobs(&[]);
    for value in ["images", "pullSecrets"] {
        let expected = format!("(admissionPolicies.{value} in the chart allows further");
        assert!(validations.contains(&expected), "{value}");
    }
}
