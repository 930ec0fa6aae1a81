//! Values files for KWasm's and runtime-class-manager's charts.

use std::str::FromStr;

use farrier::cli::JobTtl;
use rstest::rstest;
use serde_json::{Value, json};

use super::support::{controller, controller_options, notes, of_kind, pod_spec, render};

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
#[case::kwasm(&kwasms_values(), &["kwasmOperator.installerImage", "service"])]
#[case::rcm(&rcms_values(), &[
    "rcm.shimDownloaderImage", "rcm.nodeInstallerImage", "rcm.shimDownloaderConfig", "rcm.leaderElectEnabled",
    "serviceAccount.automount", "service", "autoscaling", "livenessProbe", "readinessProbe", "volumes", "volumeMounts",
])]
fn values_of_the_charts_of_kwasm_and_rcm_are_accepted(
    #[case] values: &Value,
    #[case] without_effect: &[&str],
) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let argument = format!("--values={}", file.path().display());
    let objects = render(&[&argument]);
    let (cli, _) = controller_options(&objects);
    let options = controller(cli);
    // The image of the legacy installer is ignored, because its controller does not take Farrier's arguments.
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
    let ttl = ttl.as_i64().map(|ttl| JobTtl::from_str(&ttl.to_string()));
    assert_eq!(options.job_ttl, ttl.transpose().unwrap());
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
fn the_image_tag_of_a_former_chart_is_ignored_beside_another_repository() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kwasms_values().to_string()).unwrap();
    let values = format!("--values={}", file.path().display());
    let ours = "--set=image.repository=registry.example/farrier";
    let objects = render(&[&values, ours]);
    let image = &pod_spec(&objects)["containers"][0]["image"];
    let expected = concat!("registry.example/farrier:", env!("CARGO_PKG_VERSION"));
    assert_eq!(*image, expected);
    let told = format!("image.tag (of another program; Farrier uses {expected})");
    let notes = notes(&[&values, ours]);
    assert!(notes.contains(&told), "{notes}");
}

#[test]
fn a_full_image_beside_values_of_a_former_chart_is_used() {
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
