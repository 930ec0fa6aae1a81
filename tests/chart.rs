//! What the chart makes of its values. Runs the helm named by `FARRIER_HELM`; needs no cluster.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::{CommandFactory, Parser};
use farrier::cli::{self, Cli};
use rstest::rstest;
use serde_json::{Value, json};

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/farrier")
}

/// Runs helm on the chart, with `arguments` behind.
fn helm(subcommand: &[&str], arguments: &[&str]) -> Output {
    helm_on(&chart(), subcommand, arguments)
}

fn helm_on(chart: &Path, subcommand: &[&str], arguments: &[&str]) -> Output {
    let helm = std::env::var_os("FARRIER_HELM").expect("FARRIER_HELM names the helm to run");
    Command::new(helm)
        .args(subcommand)
        .arg(chart)
        .args(["--namespace", "farrier"])
        .args(arguments)
        .output()
        .unwrap()
}

/// All objects that an install with `arguments` makes and keeps, but for the CRD.
fn render(arguments: &[&str]) -> Vec<Value> {
    let mut objects = rendered(arguments);
    objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_null());
    objects
}

/// What runs at the times that `hook` names, with `arguments`.
fn hooks(hook: &str, arguments: &[&str]) -> Vec<Value> {
    let mut objects = rendered(arguments);
    objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"] == hook);
    objects
}

fn rendered(arguments: &[&str]) -> Vec<Value> {
    let output = helm(&["template", "farrier"], arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

/// What is printed after an install with `arguments`. Helm renders it for a cluster only: here, a copy of the chart has it in an object.
fn notes(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(chart()).arg(folder.path());
    assert!(copy.status().unwrap().success());
    let chart = folder.path().join("farrier");
    let text = std::fs::read_to_string(chart.join("templates/NOTES.txt")).unwrap();
    let object = format!(
        "{{{{- define \"notes\" }}}}{text}{{{{ end -}}}}\nkind: Notes\ntext: {{{{ include \"notes\" . | toJson }}}}\n"
    );
    std::fs::write(chart.join("templates/notes.yaml"), object).unwrap();
    let one = [arguments, &["--show-only=templates/notes.yaml"]].concat();
    let output = helm_on(&chart, &["template", "farrier"], &one);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let object: Value = serde_saphyr::from_str(&text).unwrap();
    object["text"].as_str().unwrap().to_owned()
}

/// Why helm refuses an install with `arguments`.
fn refusal(arguments: &[&str]) -> String {
    let output = helm(&["template", "farrier"], arguments);
    assert!(!output.status.success(), "helm takes {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let wanted = |object: &&Value| object["kind"] == kind;
    objects.iter().filter(wanted).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The one Shim called `wanted`.
fn shim<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let mut shims = of_kind(objects, "Shim");
    shims.retain(|shim| name(shim) == wanted);
    assert_eq!(shims.len(), 1, "Shims called {wanted}");
    shims[0]
}

fn strings(value: &Value) -> Vec<&str> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|item| item.as_str().unwrap()).collect()
}

fn pod_spec(objects: &[Value]) -> &Value {
    &of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
}

/// The controller's options as the pod's environment gives them: each variable is one that the command line knows.
fn controller_options(objects: &[Value]) -> (Cli, BTreeSet<String>) {
    let command = Cli::command();
    let controller = command.find_subcommand("controller").unwrap();
    let known: Vec<_> = command
        .get_arguments()
        .chain(controller.get_arguments())
        .collect();
    let mut words = vec!["farrier".to_owned(), "controller".to_owned()];
    let mut variables = BTreeSet::new();
    for variable in pod_spec(objects)["containers"][0]["env"]
        .as_array()
        .unwrap()
    {
        let variable_name = variable["name"].as_str().unwrap();
        let argument = known
            .iter()
            .find(|argument| argument.get_env().is_some_and(|env| env == variable_name))
            .unwrap_or_else(|| panic!("farrier does not read {variable_name}"));
        variables.insert(variable_name.to_owned());
        if let Some(value) = variable["value"].as_str() {
            words.push(format!("--{}={value}", argument.get_long().unwrap()));
        }
    }
    (Cli::try_parse_from(words).unwrap(), variables)
}

/// The variables of a container that are written out.
fn environment(container: &Value) -> BTreeMap<&str, &Value> {
    let variables = container["env"].as_array().unwrap().iter();
    variables
        .map(|variable| (variable["name"].as_str().unwrap(), &variable["value"]))
        .collect()
}

fn controller(cli: Cli) -> cli::Controller {
    match cli.command {
        cli::Command::Controller(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn helm_finds_no_fault_with_the_chart() {
    let output = helm(&["lint", "--strict"], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

#[test]
fn no_values_make_one_controller_two_accounts_and_the_maintained_shims() {
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
        ("ValidatingAdmissionPolicy", "farrier-jobs"),
        ("ValidatingAdmissionPolicy", "farrier-nodes"),
        ("ValidatingAdmissionPolicyBinding", "farrier-jobs"),
        ("ValidatingAdmissionPolicyBinding", "farrier-nodes"),
    ];
    assert_eq!(made, BTreeSet::from(expected));
}

#[test]
fn the_controller_holds_no_privilege_in_its_pod() {
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
fn of_several_controllers_one_holds_a_lease_that_it_may_write() {
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
fn the_controller_understands_its_environment() {
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
    for unset in [
        "FARRIER_IMAGE_PULL_SECRETS",
        "FARRIER_CA_CONFIG_MAP",
        "SHIM_NODE_INSTALLER_JOB_TTL",
    ] {
        assert!(!variables.contains(unset), "{unset}");
    }
}

#[test]
fn values_reach_the_controller() {
    let objects = render(&[
        "--set=image.repository=registry.example/farrier,image.tag=v9,image.pullPolicy=Always",
        "--set=imagePullSecrets[0].name=one,imagePullSecrets[1].name=two",
        "--set=job.deadlineSeconds=120,job.ttlSecondsAfterFinished=0,job.allowPodRestarts=true",
        "--set=job.hostPID=true",
        "--set=log.filter=debug,log.format=json",
    ]);
    let (cli, _) = controller_options(&objects);
    assert_eq!(cli.log, "debug");
    assert_eq!(cli.log_format, cli::LogFormat::Json);
    let options = controller(cli);
    assert_eq!(options.image, "registry.example/farrier:v9");
    assert_eq!(options.image_pull_policy, "Always");
    assert_eq!(options.image_pull_secrets, ["one", "two"]);
    assert_eq!(options.job_deadline, 120);
    assert!(options.allow_pod_restarts && options.job_host_pid);
    assert_eq!(options.job_ttl, Some(0));
    let pull_secrets = &pod_spec(&objects)["imagePullSecrets"];
    assert_eq!(*pull_secrets, json!([{"name": "one"}, {"name": "two"}]));
}

#[rstest]
#[case::ours("--set=autoProvision=true")]
#[case::kwasms("--set=kwasmOperator.autoProvision=true")]
#[case::kwasms_as_text("--set-string=kwasmOperator.autoProvision=true")]
fn every_node_is_provisioned_under_either_name_of_the_option(#[case] argument: &str) {
    let (cli, _) = controller_options(&render(&[argument]));
    assert!(controller(cli).auto_provision);
}

#[test]
fn a_certificate_authority_reaches_the_jobs_as_a_config_map() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    let objects = render(&[&format!("--set=extraCA={pem}")]);
    let map = of_kind(&objects, "ConfigMap")[0];
    assert_eq!(map["data"]["ca.crt"].as_str().unwrap().trim(), pem);
    let (cli, _) = controller_options(&objects);
    assert_eq!(controller(cli).ca_config_map.as_deref(), Some(name(map)));
}

/// The rules of one role, each as `GROUP: RESOURCES NAMES: VERBS`.
fn rights(objects: &[Value], kind: &str, role_name: &str) -> BTreeSet<String> {
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

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(ToString::to_string).collect()
}

#[test]
fn the_controllers_rights_are_these_and_no_more() {
    let objects = render(&[]);
    let rights = |kind: &str, role_name: &str| rights(&objects, kind, role_name);
    let in_the_cluster = set(&[
        "nodes: list watch patch",
        "runtime.spinkube.dev: shims: list watch patch",
        "runtime.spinkube.dev: shims/status: patch",
        "node.k8s.io: runtimeclasses: list watch create patch delete",
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
fn the_account_of_the_jobs_has_no_rights_and_no_token() {
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
fn before_an_install_and_an_upgrade_the_definition_is_applied() {
    let objects = hooks("pre-install,pre-upgrade", &["--set=log.format=json"]);
    let job = of_kind(&objects, "Job")[0];
    let pod = &job["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let words = strings(&container["args"]);
    let parsed = Cli::try_parse_from(["farrier"].into_iter().chain(words)).unwrap();
    assert!(matches!(
        parsed.command,
        cli::Command::Crd(cli::Crd { apply: true })
    ));
    assert_eq!(*environment(container)["FARRIER_LOG_FORMAT"], "json");
    assert_eq!(pod["serviceAccountName"], "farrier-crd");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let expected = set(&[
        "apiextensions.k8s.io: customresourcedefinitions shims.runtime.spinkube.dev: get list watch update",
        "apiextensions.k8s.io: customresourcedefinitions: create",
    ]);
    assert_eq!(rights(&objects, "ClusterRole", "farrier-crd"), expected);
    let weight = |object: &Value| -> i32 {
        let weight = &object["metadata"]["annotations"]["helm.sh/hook-weight"];
        weight.as_str().unwrap().parse().unwrap()
    };
    for object in objects.iter().filter(|object| *object != job) {
        assert!(weight(object) < weight(job), "{object}");
    }
    assert!(hooks("pre-install,pre-upgrade", &["--set=crds.apply=false"]).is_empty());
}

#[rstest]
#[case::clean(&[], false, "240")]
#[case::keep(&["--set=onUninstall=keep,uninstallDeadlineSeconds=60"], true, "60")]
fn before_an_uninstall_nodes_let_go_as_the_controller_would(
    #[case] arguments: &[&str],
    #[case] keeps: bool,
    #[case] deadline: &str,
) {
    let objects = hooks("pre-delete", arguments);
    let job = of_kind(&objects, "Job")[0];
    let pod = &job["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mut expected = vec!["leave", "--deployment", "farrier", "--deadline", deadline];
    expected.extend(keeps.then_some("--keep-hosts"));
    assert_eq!(strings(&container["args"]), expected);
    // The image comes with the environment.
    let words = ["farrier"].into_iter().chain(expected);
    let parsed = Cli::try_parse_from(words.chain(["--image=x"])).unwrap();
    assert!(matches!(parsed.command, cli::Command::Leave(_)));
    let installed = render(arguments);
    let controller = pod_spec(&installed);
    assert_eq!(container["env"], controller["containers"][0]["env"]);
    assert_eq!(container["image"], controller["containers"][0]["image"]);
    assert_eq!(pod["serviceAccountName"], controller["serviceAccountName"]);
    let scale = set(&["apps: deployments/scale farrier: get patch"]);
    assert_eq!(rights(&objects, "Role", "farrier-leave"), scale);
}

/// All values of kwasm-operator's chart 0.2.3.
fn kwasms_values() -> Value {
    json!({
        "replicaCount": 2,
        "image": {"repository": "ghcr.io/kwasm/kwasm-operator", "pullPolicy": "Always", "tag": "kwasm-operator-0.2.2"},
        "imagePullSecrets": [{"name": "pull"}], "nameOverride": "", "fullnameOverride": "kwasm-operator",
        "kwasmOperator": {"autoProvision": "true", "installerImage": "ghcr.io/kwasm/kwasm-node-installer:main"},
        "serviceAccount": {"create": true, "annotations": {"a": "b"}, "name": "operator"},
        "podAnnotations": {"c": "d"}, "podSecurityContext": {}, "securityContext": {},
        "service": {"type": "ClusterIP", "port": 80}, "resources": {"limits": {"memory": "128Mi"}},
        "nodeSelector": {"e": "f"}, "tolerations": [], "affinity": {},
    })
}

/// All values of runtime-class-manager's chart, of the time of its release 0.2.0.
fn rcms_values() -> Value {
    json!({
        "replicaCount": 2,
        "image": {"repository": "mirror.example/spinframework/runtime-class-manager", "pullPolicy": "Always", "tag": "v0.2.0"},
        "rcm": {
            "shimDownloaderImage": {"repository": "ghcr.io/spinframework/shim-downloader", "tag": "v0.2.0"},
            "nodeInstallerImage": {"repository": "ghcr.io/spinframework/node-installer", "tag": "v0.2.0"},
            "nodeInstallerJob": {"ttl": 3600}, "leaderElectEnabled": true,
            "shimDownloaderConfig": {"configMapName": "c", "content": {"numRetry": 3, "sleepDuration": 2}},
        },
        "imagePullSecrets": [{"name": "pull"}], "nameOverride": "", "fullnameOverride": "",
        "serviceAccount": {"create": true, "automount": true, "annotations": {"a": "b"}, "name": "operator"},
        "podAnnotations": {"c": "d"}, "podLabels": {}, "podSecurityContext": {"runAsNonRoot": true}, "securityContext": {},
        "service": {"type": "ClusterIP", "port": 80}, "resources": {"limits": {"memory": "128Mi"}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8082}}, "readinessProbe": {},
        "autoscaling": {"enabled": false, "maxReplicas": 100}, "volumes": [], "volumeMounts": [],
        "nodeSelector": {"e": "f"}, "tolerations": [], "affinity": {},
    })
}

#[rstest]
#[case::kwasms(&kwasms_values(), &["kwasmOperator.installerImage", "service"])]
#[case::rcms(&rcms_values(), &[
    "rcm.shimDownloaderImage", "rcm.nodeInstallerImage", "rcm.shimDownloaderConfig", "rcm.leaderElectEnabled",
    "serviceAccount.automount", "service", "autoscaling", "livenessProbe", "readinessProbe", "volumes", "volumeMounts",
])]
fn the_values_of_a_predecessor_are_taken(#[case] values: &Value, #[case] without_effect: &[&str]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let argument = format!("--values={}", file.path().display());
    let objects = render(&[&argument]);
    let (cli, _) = controller_options(&objects);
    let options = controller(cli);
    // Their image is not ours: nobody wants their controller run under Farrier's arguments.
    assert_eq!(
        options.image,
        concat!("localhost/farrier:", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(options.image_pull_policy, "Always");
    assert_eq!(options.image_pull_secrets, ["pull"]);
    assert_eq!(
        options.auto_provision,
        values["kwasmOperator"]["autoProvision"] == "true"
    );
    let ttl = &values["rcm"]["nodeInstallerJob"]["ttl"];
    assert_eq!(options.job_ttl.map(i64::from), ttl.as_i64());
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(deployment["spec"]["replicas"], 2);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"], json!({"c": "d"}));
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "operator");
    assert_eq!(pod["nodeSelector"], json!({"e": "f"}));
    assert_eq!(pod["tolerations"], Value::Null);
    let resources = &pod["containers"][0]["resources"];
    assert_eq!(resources["limits"]["memory"], "128Mi");
    let text = notes(&[&argument]);
    let (_, notes) = text
        .split_once("These values have no effect here:")
        .unwrap();
    let named: Vec<_> = notes
        .lines()
        .skip(1)
        .map_while(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(named[0], "image.repository");
    assert_eq!(named[1..], *without_effect);
}

#[test]
fn an_image_that_is_named_beside_a_predecessors_values_is_run() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kwasms_values().to_string()).unwrap();
    let argument = format!("--values={}", file.path().display());
    let objects = render(&[
        &argument,
        "--set=image.repository=registry.example/farrier,image.tag=v9",
    ]);
    let image = &pod_spec(&objects)["containers"][0]["image"];
    assert_eq!(image, "registry.example/farrier:v9");
}

#[test]
fn metrics_are_found_by_the_usual_annotations() {
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

#[test]
fn policies_can_be_left_out_and_are_where_no_cluster_knows_them() {
    for argument in [
        "--set=admissionPolicies.enabled=false",
        "--kube-version=1.29.9",
    ] {
        let objects = render(&[argument]);
        assert!(of_kind(&objects, "ValidatingAdmissionPolicy").is_empty());
    }
}

#[rstest]
#[case::default("default", &["spin", "wasmedge", "wasmer", "wasmtime"])]
#[case::kwasm("kwasm", &["lunatic", "slight", "spin", "wasmedge", "wasmer", "wasmtime", "wws"])]
#[case::aks("aks", &["slight", "spin"])]
#[case::none("none", &[])]
fn a_preset_is_its_shims_for_annotated_nodes(#[case] preset: &str, #[case] expected: &[&str]) {
    let objects = render(&[&format!("--set=shims.preset={preset}")]);
    let shims = of_kind(&objects, "Shim");
    let names: Vec<_> = shims.iter().map(|shim| name(shim)).collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|name| format!("default-{name}"))
        .collect();
    assert_eq!(names, expected);
    for shim in shims {
        let selector = &shim["spec"]["annotationSelector"];
        assert_eq!(*selector, json!({"kwasm.sh/kwasm-node": "true"}));
        assert_eq!(shim["spec"]["rolloutStrategy"]["type"], "recreate");
    }
}

#[rstest]
#[case("default")]
#[case("kwasm")]
#[case("aks")]
fn no_handler_and_no_runtime_class_is_claimed_twice(#[case] preset: &str) {
    let objects = render(&[&format!("--set=shims.preset={preset}")]);
    let mut handlers = BTreeSet::new();
    let mut classes = BTreeSet::new();
    for shim in of_kind(&objects, "Shim") {
        let class = &shim["spec"]["runtimeClass"];
        let aliases = strings(&shim["spec"]["handlerAliases"]);
        for handler in aliases.into_iter().chain(class["handler"].as_str()) {
            assert!(handlers.insert(handler.to_owned()), "{handler}");
        }
        for class in strings(&class["aliases"])
            .into_iter()
            .chain(class["name"].as_str())
        {
            assert!(classes.insert(class.to_owned()), "{class}");
        }
    }
}

#[rstest]
#[case::spin("default-spin", &["spin-v2", "spin"], &["wasmtime-spin-v2", "wasmtime-spin"])]
#[case::wasmtime("default-wasmtime", &["wasmtime", "wasmtime-v1"], &["wasmtime", "wasmtime-v1"])]
#[case::slight("default-slight", &["slight"], &["wasmtime-slight"])]
#[case::wws("default-wws", &["wws"], &["wasmtime-wws"])]
#[case::lunatic("default-lunatic", &["lunatic"], &["wasmtime-lunatic"])]
fn handlers_and_runtime_classes_are_called_as_their_users_know_them(
    #[case] wanted: &str,
    #[case] handlers: &[&str],
    #[case] classes: &[&str],
) {
    let objects = render(&["--set=shims.preset=kwasm"]);
    let spec = &shim(&objects, wanted)["spec"];
    let class = &spec["runtimeClass"];
    let first = class["handler"].as_str().into_iter();
    let found: Vec<_> = first.chain(strings(&spec["handlerAliases"])).collect();
    assert_eq!(found, handlers);
    let first = class["name"].as_str().into_iter();
    let found: Vec<_> = first.chain(strings(&class["aliases"])).collect();
    assert_eq!(found, classes);
}

#[test]
fn the_aks_preset_adds_the_runtime_classes_of_aks() {
    let objects = render(&["--set=shims.preset=aks"]);
    for (wanted, class) in [
        ("default-spin", "wasmtime-spin-v1"),
        ("default-slight", "wasmtime-slight-v1"),
    ] {
        let aliases = &shim(&objects, wanted)["spec"]["runtimeClass"]["aliases"];
        assert!(strings(aliases).contains(&class), "{aliases}");
    }
}

#[test]
fn every_platform_has_an_archive_and_no_placeholder_is_left_in_it() {
    let objects = render(&["--set=shims.preset=kwasm"]);
    for shim in of_kind(&objects, "Shim") {
        let platforms = shim["spec"]["fetchStrategy"]["platforms"]
            .as_array()
            .unwrap();
        assert_eq!(platforms.len(), 2);
        for (platform, (arch, in_the_name)) in platforms
            .iter()
            .zip([("amd64", "x86_64"), ("arm64", "aarch64")])
        {
            assert_eq!(platform["arch"], arch);
            let location = platform["location"].as_str().unwrap();
            assert!(location.starts_with("https://github.com/"), "{location}");
            assert!(location.contains(in_the_name), "{location}");
            assert!(
                !location.contains("VERSION") && !location.contains("ARCH"),
                "{location}"
            );
        }
    }
    let runwasi = &shim(&objects, "default-wasmtime")["spec"]["fetchStrategy"]["platforms"][0];
    let tag = "/containerd-shim-wasmtime%2Fv";
    assert!(runwasi["location"].as_str().unwrap().contains(tag));
}

/// Fails where `value` has a field that `schema` does not know: the API server would drop it without a word.
fn assert_known(value: &Value, schema: &Value, path: &str) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let known = match &schema["additionalProperties"] {
                    Value::Null => &schema["properties"][key],
                    any_key => any_key,
                };
                assert!(known.is_object(), "{path}.{key} is no field of the Shim");
                assert_known(inner, known, &format!("{path}.{key}"));
            }
        }
        Value::Array(items) => {
            for item in items {
                assert_known(item, &schema["items"], path);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_field_of_the_shims_is_one_that_the_crd_knows() {
    let crd: Value =
        serde_saphyr::from_str(include_str!("../charts/farrier/crds/shims.yaml")).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for shim in of_kind(&render(&["--set=shims.preset=kwasm"]), "Shim") {
        assert_known(&shim["spec"], schema, "spec");
    }
}

#[test]
fn a_shim_is_switched_by_its_name() {
    let objects = render(&["--set=shims.wasmer.enabled=false,shims.wws.enabled=true"]);
    let shims = of_kind(&objects, "Shim");
    let names: Vec<_> = shims.iter().map(|shim| name(shim)).collect();
    assert_eq!(
        names,
        [
            "default-spin",
            "default-wasmedge",
            "default-wasmtime",
            "default-wws"
        ]
    );
}

#[test]
fn another_version_never_keeps_the_digest_of_the_charts_own() {
    let digest = "ab".repeat(32);
    let objects = render(&[
        "--set=shims.spin.version=0.24.0",
        &format!("--set=shims.spin.sha256.amd64={digest}"),
    ]);
    let platforms = &shim(&objects, "default-spin")["spec"]["fetchStrategy"]["platforms"];
    let location = platforms[0]["location"].as_str().unwrap();
    assert!(location.contains("/v0.24.0/"), "{location}");
    assert_eq!(platforms[0]["sha256"], digest);
    assert_eq!(platforms[1]["sha256"], Value::Null);
}

#[test]
fn a_shims_spec_is_merged_over_the_charts() {
    let objects = render(&[
        "--set-string=shims.wasmtime.spec.containerdRuntimeOptions.SystemdCgroup=true",
        "--set=shims.wasmtime.spec.runtimeClass.name=mine",
    ]);
    let spec = &shim(&objects, "default-wasmtime")["spec"];
    assert_eq!(
        spec["containerdRuntimeOptions"],
        json!({"SystemdCgroup": "true"})
    );
    assert_eq!(spec["runtimeClass"]["name"], "mine");
    assert_eq!(spec["runtimeClass"]["handler"], "wasmtime");
}

#[test]
fn a_shim_of_the_users_own_keeps_its_name() {
    let extra = json!([{
        "name": "mine",
        "annotationSelector": {"kwasm.sh/kwasm-node": "true"},
        "fetchStrategy": {"platforms": [
            {"os": "linux", "arch": "amd64", "location": "https://example.org/mine.tar.gz"}
        ]},
        "runtimeClass": {"name": "mine", "handler": "mine"},
    }]);
    let objects = render(&[
        "--set=shims.preset=none",
        &format!("--set-json=shims.extra={extra}"),
    ]);
    let mut expected = extra[0].clone();
    expected.as_object_mut().unwrap().remove("name");
    expected["rolloutStrategy"] = json!({"type": "recreate"});
    assert_eq!(shim(&objects, "mine")["spec"], expected);
}

#[rstest]
#[case::an_unknown_value("--set=imagee.tag=x", "imagee")]
#[case::an_unknown_preset("--set=shims.preset=all", "preset")]
#[case::an_unknown_shim("--set=shims.spinn.enabled=true", "spinn")]
#[case::a_digest_that_is_none("--set=shims.spin.sha256.amd64=abc", "sha256")]
#[case::a_value_of_kwasms_misspelt("--set=kwasmOperator.instalerImage=x", "instalerImage")]
#[case::a_value_of_rcms_misspelt("--set=rcm.nodeInstallerJob.tll=1", "tll")]
#[case::an_end_that_is_none("--set=onUninstall=purge", "onUninstall")]
#[case::a_shim_without_a_source("--set-json=shims.extra=[{\"name\":\"x\"}]", "fetchStrategy")]
#[case::a_certificate_that_is_none("--set=extraCA=hello", "extraCA")]
fn a_mistaken_value_is_refused_by_name(#[case] argument: &str, #[case] culprit: &str) {
    let refusal = refusal(&[argument]);
    assert!(refusal.contains(culprit), "{refusal}");
}
