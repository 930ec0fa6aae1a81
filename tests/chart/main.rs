//! The objects that the chart renders from values. Runs the helm named by `FARRIER_HELM`; needs no cluster.
#![allow(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they call"
)]

mod controller;
mod legacy_values;
mod rights;
mod shims;
mod support;

use clap::Parser;
use farrier::cli::{self, Cli};
use rstest::rstest;
use serde_json::Value;

use rights::{rights, set};
use support::{environment, helm, hooks, of_kind, pod_spec, refusal, render, strings};

#[test]
fn helm_lint_accepts_the_chart() {
    let output = helm(&["lint", "--strict"], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_hook_applies_the_crd_before_installs_and_upgrades() {
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
fn a_hook_removes_all_shims_before_an_uninstall(
    #[case] arguments: &[&str],
    #[case] keeps: bool,
    #[case] deadline: &str,
) {
    let objects = hooks("pre-delete", arguments);
    let job = of_kind(&objects, "Job")[0];
    let pod = &job["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mut expected = vec![
        "uninstall-cluster",
        "--deployment",
        "farrier",
        "--deadline",
        deadline,
    ];
    expected.extend(keeps.then_some("--keep-hosts"));
    assert_eq!(strings(&container["args"]), expected);
    // The image comes with the environment.
    let words = ["farrier"].into_iter().chain(expected);
    let parsed = Cli::try_parse_from(words.chain(["--image=x"])).unwrap();
    assert!(matches!(parsed.command, cli::Command::UninstallCluster(_)));
    let installed = render(arguments);
    let controller = pod_spec(&installed);
    assert_eq!(container["env"], controller["containers"][0]["env"]);
    assert_eq!(container["image"], controller["containers"][0]["image"]);
    assert_eq!(pod["serviceAccountName"], controller["serviceAccountName"]);
    let expected = set(&[
        "apps: deployments/scale farrier: get patch",
        "coordination.k8s.io: leases farrier: delete",
    ]);
    assert_eq!(
        rights(&objects, "Role", "farrier-uninstall-cluster"),
        expected
    );
    let expected = set(&["apiextensions.k8s.io: customresourcedefinitions: create"]);
    assert_eq!(
        rights(&objects, "ClusterRole", "farrier-uninstall-cluster"),
        expected
    );
}

#[rstest]
#[case::before_an_install("pre-install,pre-upgrade")]
#[case::before_an_uninstall("pre-delete")]
fn the_jobs_of_hooks_have_no_sidecar_and_the_labels_and_annotations_of_the_values(
    #[case] hook: &str,
) {
    let objects = hooks(hook, &["--set=job.labels.a=b,job.annotations.c=d"]);
    let job = of_kind(&objects, "Job")[0];
    let pod = &job["spec"]["template"]["metadata"];
    for metadata in [&job["metadata"], pod] {
        assert_eq!(metadata["labels"]["a"], "b");
        assert_eq!(metadata["annotations"]["c"], "d");
        assert_eq!(metadata["labels"]["app.kubernetes.io/instance"], "farrier");
        assert_ne!(
            metadata["labels"]["app.kubernetes.io/component"],
            "controller"
        );
        assert_eq!(metadata["labels"]["sidecar.istio.io/inject"], "false");
    }
    assert_eq!(pod["annotations"]["sidecar.istio.io/inject"], "false");
    assert_eq!(pod["annotations"]["linkerd.io/inject"], "disabled");
    let objects = hooks(
        hook,
        &["--set-string=job.labels.sidecar\\.istio\\.io/inject=true"],
    );
    let pod = &of_kind(&objects, "Job")[0]["spec"]["template"]["metadata"];
    assert_eq!(pod["labels"]["sidecar.istio.io/inject"], "true");
}

#[rstest]
#[case::a_large_number("replicaCount=1000000", "1000000")]
#[case::none("replicaCount=0", "0")]
fn the_number_of_replicas_is_written_as_digits(#[case] value: &str, #[case] expected: &str) {
    let objects = render(&[&format!("--set-json={value}")]);
    let deployment = of_kind(&objects, "Deployment")[0];
    assert_eq!(deployment["spec"]["replicas"].to_string(), expected);
}

#[rstest]
#[case::an_unknown_value("--set=imagee.tag=x", "imagee")]
#[case::an_unknown_preset("--set=shims.preset=all", "preset")]
#[case::an_unknown_shim("--set=shims.spinn.enabled=true", "spinn")]
#[case::invalid_digest("--set=shims.spin.sha256.amd64=abc", "sha256")]
#[case::misspelt_value_of_kwasm("--set=kwasmOperator.instalerImage=x", "instalerImage")]
#[case::misspelt_value_of_rcm("--set=rcm.nodeInstallerJob.tll=1", "tll")]
#[case::invalid_on_uninstall("--set=onUninstall=purge", "onUninstall")]
#[case::invalid_boolean("--set=autoProvision=yes", "autoProvision")]
#[case::a_shim_without_a_source("--set-json=shims.extra=[{\"name\":\"x\"}]", "fetchStrategy")]
#[case::misspelt_field_of_a_spec(
    "--set-string=shims.spin.spec.nodeSelecter.pool=a",
    "nodeSelecter"
)]
#[case::misspelt_field_of_a_runtime_class("--set=shims.spin.spec.runtimeClass.alias=a", "alias")]
#[case::misspelt_field_of_a_custom_shim(
    "--set-json=shims.extra=[{\"name\":\"x\",\"fetchStrategy\":{},\"runtimeClass\":{},\"annotationSelecter\":{}}]",
    "annotationSelecter"
)]
#[case::invalid_certificate("--set=extraCA=hello", "extraCA")]
#[case::zero_replicas("--set=replicaCount=-1", "replicaCount")]
#[case::fractional_replica_count("--set-json=replicaCount=1.5", "replicaCount")]
#[case::replica_count_beyond_kubernetes_limit("--set=replicaCount=2147483648", "replicaCount")]
#[case::zero_job_deadline("--set=job.deadlineSeconds=0", "deadlineSeconds")]
#[case::negative_job_deadline("--set=job.deadlineSeconds=-1", "deadlineSeconds")]
#[case::job_deadline_beyond_kubernetes_limit(
    "--set=job.deadlineSeconds=2147483648",
    "deadlineSeconds"
)]
#[case::a_time_for_a_job_that_is_no_number("--set=job.deadlineSeconds=30m", "deadlineSeconds")]
#[case::negative_job_lifetime("--set=job.ttlSecondsAfterFinished=-1", "ttlSecondsAfterFinished")]
#[case::job_lifetime_beyond_kubernetes_limit(
    "--set=job.ttlSecondsAfterFinished=2147483648",
    "ttlSecondsAfterFinished"
)]
#[case::an_amount_of_a_resource("--set=job.resources.limits.cpu=much", "cpu")]
#[case::misspelt_resources("--set=job.resources.limit.cpu=1", "limit")]
#[case::an_invalid_label("--set=job.labels.a=b c", "labels")]
#[case::the_taint_of_a_drain("--set=startupTaints={farrier.dev/restarting}", "startupTaints")]
#[case::a_taint_of_kubernetes(
    "--set=startupTaints={node.kubernetes.io/not-ready}",
    "startupTaints"
)]
#[case::an_address_with_a_port("--set=listenAddress=[::]:8080", "listenAddress")]
#[case::zero_uninstall_deadline("--set=uninstallDeadlineSeconds=0", "uninstallDeadlineSeconds")]
#[case::uninstall_deadline_beyond_a_day(
    "--set=uninstallDeadlineSeconds=86401",
    "uninstallDeadlineSeconds"
)]
#[case::invalid_percentage_of_nodes(
    "--set-string=shims.spin.spec.rolloutStrategy.rolling.maxUpdate=0%",
    "maxUpdate"
)]
#[case::fractional_number_of_nodes(
    "--set-json=shims.spin.spec.rolloutStrategy.rolling={\"maxUpdate\":0.5}",
    "maxUpdate"
)]
#[case::misspelt_field_of_a_rollout(
    "--set=shims.spin.spec.rolloutStrategy.rolling.maxUpdates=1",
    "maxUpdates"
)]
fn an_invalid_value_is_refused_by_name(#[case] argument: &str, #[case] culprit: &str) {
    let refusal = refusal(&[argument]);
    assert!(refusal.contains(culprit), "{refusal}");
}
