//! Permissions: roles, service accounts and admission policies.

use std::collections::BTreeSet;

use serde_json::Value;

use super::support::{hooks, name, of_kind, render, strings};

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

/// The validations of the policy on Jobs.
fn validations_of_jobs(arguments: &[&str]) -> String {
    let objects = render(arguments);
    let mut policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    policies.retain(|policy| name(policy) == "farrier-jobs");
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
fn the_role_of_the_controller_has_exactly_the_reviewed_rules() {
    let objects = render(&[]);
    let rights = |kind: &str, role_name: &str| rights(&objects, kind, role_name);
    let in_the_cluster = set(&[
        "nodes: list watch patch",
        "runtime.spinkube.dev: shims: list watch patch",
        "runtime.spinkube.dev: shims/status: patch",
        "node.k8s.io: runtimeclasses: list watch create update delete",
        "apiextensions.k8s.io: customresourcedefinitions shims.runtime.spinkube.dev: get list watch",
    ]);
    assert_eq!(rights("ClusterRole", "farrier"), in_the_cluster);
    let in_its_namespace = set(&[
        "batch: jobs: get list watch create delete",
        "pods: list watch",
        "coordination.k8s.io: leases: create",
        "coordination.k8s.io: leases farrier: get update patch",
    ]);
    assert_eq!(rights("Role", "farrier"), in_its_namespace);
    let for_events = set(&["events.k8s.io: events: create"]);
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
