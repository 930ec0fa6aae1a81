//! The controller with a real API server and nodes without a kubelet. Each test acts as kubelet and installer.

use std::collections::BTreeMap;

use farrier::handoff::Outcome;
use farrier::{api::Shim, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::stage::{Stage, create, done, shim, vanishes};
use crate::support::eventually;

#[tokio::test]
async fn a_recreated_node_gets_a_new_job() {
    let mut stage = Stage::set("anew").await;
    stage.provision().await;
    let old = stage.cluster.marks("anew").await;
    stage.delete_node().await;
    stage.register().await;
    // The annotations that a backup of the old node object would restore.
    let kept = json!({"metadata": {
        "labels": {stage.progress(): "provisioned", stage.handler(): "true"},
        "annotations": {names::APPLIED_ANNOTATION: old[names::APPLIED_ANNOTATION]},
    }});
    stage.cluster.patch_node("anew", kept).await;

    let pod = stage.asked().await;
    stage.label_becomes(&stage.handler(), None).await;
    stage.does(&pod).await;
    stage.label_becomes(&stage.handler(), Some("true")).await;
    stage.clear().await;
}

#[tokio::test]
async fn a_report_on_an_older_request_is_ignored() {
    let stage = Stage::set("older").await;
    let first = stage.asked().await;
    let aliased = json!({"spec": {"handlerAliases": ["older-alias"]}});
    let shims = stage.cluster.shims();
    shims
        .patch("older", &PatchParams::default(), &Patch::Merge(aliased))
        .await
        .unwrap();
    stage.does(&first).await;

    let second = stage.asked().await;
    assert_ne!(first.uid(), second.uid());
    let marks = stage.cluster.marks("older").await;
    assert_eq!(marks[&stage.progress()], "pending");
    // The new Job gets the report of an earlier Job.
    stage.says(&second, &done(&first).to_json()).await;
    stage
        .cluster
        .event_tells("Node", "older", &["another request"])
        .await;
    assert_ne!(
        stage.cluster.marks("older").await[&stage.progress()],
        "provisioned"
    );
    stage.clear().await;
}

#[tokio::test]
async fn a_report_counts_only_from_the_pod_that_the_job_created() {
    let stage = Stage::set("impostor").await;
    let pod = stage.asked().await;
    // An attacker who may create pods in the namespace creates pods that name the Job as their owner.
    let owner = |controller: bool| {
        let mut owner = pod.owner_references()[0].clone();
        owner.controller = Some(controller);
        owner
    };
    for (name, owner, node) in [
        ("owned", owner(false), "impostor"),
        ("elsewhere", owner(true), "nowhere"),
    ] {
        let forged: Pod = create(json!({
            "metadata": {"name": name, "annotations": pod.annotations(), "ownerReferences": [owner]},
            "spec": {"nodeName": node, "containers": [{"name": "install", "image": "farrier"}]},
        }));
        let created = stage.pods().create(&PostParams::default(), &forged).await;
        stage.says(&created.unwrap(), &done(&pod).to_json()).await;
    }
    let mut refused = done(&pod);
    refused.result = Outcome::Refused;
    refused.handlers.clear();
    refused.reason = Some("the host is read-only".to_owned());
    stage.says(&pod, &refused.to_json()).await;
    stage.label_becomes(&stage.progress(), Some("failed")).await;
    for name in ["owned", "elsewhere"] {
        let now = DeleteParams::default().grace_period(0);
        let deleted = stage.pods().delete(name, &now).await;
        drop(deleted);
    }
    stage.clear().await;
}

#[tokio::test]
async fn a_forged_annotation_of_a_paused_shim_reaches_no_request_and_no_label() {
    let stage = Stage::set("forged").await;
    stage.provision().await;
    let paused = Patch::Merge(json!({"spec": {"paused": true}}));
    let shims = stage.cluster.shims();
    let parameters = PatchParams::default();
    shims.patch("forged", &parameters, &paused).await.unwrap();
    // An attacker who may patch nodes names another handler and another program.
    let marks = stage.cluster.marks("forged").await;
    let mut applied: Value = serde_json::from_str(&marks[names::APPLIED_ANNOTATION]).unwrap();
    applied["shims"]["forged"] = json!({
        "handlers": {"evil": true},
        "request": {"name": "forged", "handlers": ["evil"], "options": {"BinaryName": "/tmp/evil"}},
    });
    applied["digest"] = Value::Null;
    let forged =
        json!({"metadata": {"annotations": {names::APPLIED_ANNOTATION: applied.to_string()}}});
    stage.cluster.patch_node("forged", forged).await;

    let pod = stage.asked().await;
    let request = &pod.annotations()[names::REQUEST_ANNOTATION];
    assert!(!request.contains("evil"), "{request}");
    let request: Value = serde_json::from_str(request).unwrap();
    assert_eq!(request["shims"][0]["keep"], true, "{request}");
    let marks = stage.cluster.marks("forged").await;
    assert!(!marks.contains_key("handler.farrier.dev/evil"), "{marks:?}");
    stage.clear().await;
}

#[tokio::test]
async fn an_unreadable_report_causes_a_new_job_and_no_handler_label() {
    let stage = Stage::set("garbled").await;
    let first = stage.asked().await;
    stage.says(&first, "{\"result\":\"applied\"\u{1b}[2J").await;
    stage.label_becomes(&stage.progress(), Some("failed")).await;
    stage
        .cluster
        .event_tells("Node", "garbled", &["wrote no readable report"])
        .await;
    stage
        .cluster
        .condition_becomes("garbled", "Degraded", "True", "garbled: ")
        .await;
    assert!(
        !stage
            .cluster
            .marks("garbled")
            .await
            .contains_key(&stage.handler())
    );

    // The next attempt starts after the first wait of half a minute.
    stage.an_hour_passes().await;
    let second = stage.asked().await;
    assert_ne!(first.uid(), second.uid());
    stage.does(&second).await;
    stage.label_becomes(&stage.handler(), Some("true")).await;
    stage.clear().await;
}

#[tokio::test]
async fn an_image_pull_failure_is_reported_on_the_node_and_on_the_shim() {
    let stage = Stage::set("pulled").await;
    let pod = stage.asked().await;
    let status = json!({"status": {"initContainerStatuses": [{
        "name": "fetch", "image": "farrier", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such host"}},
    }]}});
    stage.status(&pod, status).await;

    stage.label_becomes(&stage.progress(), Some("failed")).await;
    stage
        .cluster
        .event_tells("Node", "pulled", &["ImagePullBackOff", "no such host"])
        .await;
    stage
        .cluster
        .condition_becomes("pulled", "Degraded", "True", "ImagePullBackOff")
        .await;
    stage.clear().await;
}

#[tokio::test]
async fn a_foreign_job_of_the_same_name_is_reported_and_left_alone() {
    let mut stage = Stage::new("taken").await;
    let node = stage.register().await;
    let job = names::job_name(&node.uid().unwrap());
    let foreign: Job = create(json!({
        "metadata": {"name": job},
        "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "theirs", "image": "theirs"}],
        }}},
    }));
    stage
        .jobs()
        .create(&PostParams::default(), &foreign)
        .await
        .unwrap();
    let shim = shim("taken");
    stage.cluster.create_shim(&shim).await;

    stage
        .cluster
        .event_tells("Node", "taken", &[&job, "does not belong to Farrier"])
        .await;
    stage
        .cluster
        .condition_becomes("taken", "Degraded", "True", "does not belong to Farrier")
        .await;
    assert_eq!(
        stage.jobs().get(&job).await.unwrap().spec.unwrap().suspend,
        Some(true)
    );
    stage
        .jobs()
        .delete(&job, &DeleteParams::background())
        .await
        .unwrap();
    stage.clear().await;
}

#[tokio::test]
async fn a_foreign_runtime_class_is_reported_and_left_alone() {
    let stage = Stage::new("foreign").await;
    let theirs: RuntimeClass =
        create(json!({"metadata": {"name": "foreign"}, "handler": "theirs"}));
    let theirs = stage
        .classes()
        .create(&PostParams::default(), &theirs)
        .await
        .unwrap();
    let shim = shim("foreign");
    stage.cluster.create_shim(&shim).await;
    stage
        .cluster
        .condition_becomes("foreign", "Degraded", "True", "RuntimeClass foreign")
        .await;
    assert_eq!(stage.classes().get("foreign").await.unwrap(), theirs);

    // After the other object is deleted, Farrier creates its own.
    stage
        .classes()
        .delete("foreign", &DeleteParams::default())
        .await
        .unwrap();
    stage
        .cluster
        .condition_becomes("foreign", "Degraded", "False", "")
        .await;
    assert_eq!(
        stage.classes().get("foreign").await.unwrap().handler,
        "foreign"
    );
    stage.cluster.delete_shim("foreign").await;
    vanishes(stage.classes(), "foreign").await;
}

#[tokio::test]
async fn a_runtime_class_has_the_fields_of_its_shim_and_no_others() {
    let stage = Stage::new("spoken").await;
    let mut shim = shim("spoken");
    let class = &mut shim.spec.runtime_class;
    class.overhead = BTreeMap::from([("memory".to_owned(), "32Mi".to_owned())]);
    class.labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    class.tolerations = create(json!([{"key": "wasm", "operator": "Exists"}]));
    stage.cluster.create_shim(&shim).await;
    let made = stage
        .class_becomes("made", |class| class.overhead.is_some())
        .await;
    assert_eq!(made.labels()["team"], "a");
    // Annotations of other programs stay.
    let noted = json!({"metadata": {"annotations": {"theirs": "too"}}});
    let parameters = PatchParams::default();
    stage
        .classes()
        .patch("spoken", &parameters, &Patch::Merge(noted))
        .await
        .unwrap();

    let less =
        json!({"spec": {"runtimeClass": {"overhead": null, "labels": null, "tolerations": null}}});
    stage
        .cluster
        .shims()
        .patch("spoken", &parameters, &Patch::Merge(less))
        .await
        .unwrap();
    let bare = stage
        .class_becomes("bare", |class| class.overhead.is_none())
        .await;
    assert_eq!(bare.uid(), made.uid());
    assert!(!bare.labels().contains_key("team"), "{:?}", bare.labels());
    assert_eq!(bare.annotations()["theirs"], "too");
    let scheduling = bare.scheduling.clone().unwrap();
    assert_eq!(scheduling.tolerations, None);
    assert_eq!(scheduling.node_selector.unwrap()[&stage.handler()], "true");
    stage.cluster.delete_shim("spoken").await;
    vanishes(stage.classes(), "spoken").await;
}

#[tokio::test]
async fn an_invalid_overhead_is_reported_and_delays_no_node() {
    let mut stage = Stage::new("heavy").await;
    stage.register().await;
    let mut shim = shim("heavy");
    shim.spec.runtime_class.overhead = BTreeMap::from([("memory".to_owned(), "1.1.1".to_owned())]);
    stage.cluster.create_shim(&shim).await;
    stage
        .cluster
        .condition_becomes("heavy", "Degraded", "True", "RuntimeClass heavy")
        .await;
    stage.provision().await;

    // The API server keeps it as 1Gi.
    let mended = json!({"spec": {"runtimeClass": {"overhead": {"memory": "1024Mi"}}}});
    stage
        .cluster
        .shims()
        .patch("heavy", &PatchParams::default(), &Patch::Merge(mended))
        .await
        .unwrap();
    stage
        .cluster
        .condition_becomes("heavy", "Ready", "True", "")
        .await;
    stage.clear().await;
}

#[tokio::test]
async fn a_label_without_a_domain_that_a_shim_selects_by_is_never_changed() {
    let mut stage = Stage::new("bare").await;
    stage.register().await;
    stage.cluster.label("bare", "bare", Some("pending")).await;
    let mut shim = shim("bare");
    shim.spec.node_selector = Some(BTreeMap::from([("bare".to_owned(), "pending".to_owned())]));
    stage.cluster.create_shim(&shim).await;
    stage.provision().await;
    assert_eq!(stage.cluster.marks("bare").await["bare"], "pending");
    stage.clear().await;
}

#[tokio::test]
async fn a_forced_deletion_deletes_a_shim_at_once() {
    let stage = Stage::set("forced").await;
    stage.provision().await;
    let shims = stage.cluster.shims();
    shims
        .delete("forced", &DeleteParams::default())
        .await
        .unwrap();
    // The node still carries the shim, and no Job reports.
    stage.asked().await;
    assert!(shims.get_opt("forced").await.unwrap().is_some());
    let force = json!({"metadata": {"annotations": {names::FORCE_DELETE_ANNOTATION: "true"}}});
    shims
        .patch("forced", &PatchParams::default(), &Patch::Merge(force))
        .await
        .unwrap();
    vanishes(shims, "forced").await;
    stage.delete_node().await;
}

#[tokio::test]
async fn a_deleted_node_does_not_block_the_deletion_of_a_shim() {
    let stage = Stage::set("deleted").await;
    stage.provision().await;
    let shims = stage.cluster.shims();
    shims
        .delete("deleted", &DeleteParams::default())
        .await
        .unwrap();
    let pod = stage.asked().await;
    stage.delete_node().await;
    vanishes(shims, "deleted").await;
    let owner = pod.owner_references()[0].name.clone();
    vanishes(stage.jobs(), &owner).await;
}

#[tokio::test]
async fn a_removal_removes_all_labels_and_annotations_of_the_node() {
    let stage = Stage::set("removed").await;
    stage.provision().await;
    stage
        .cluster
        .label("removed", "test.farrier.dev/removed", None)
        .await;
    let pod = stage.asked().await;
    stage.label_becomes(&stage.handler(), None).await;
    stage
        .label_becomes(&stage.progress(), Some("removing"))
        .await;
    stage.does(&pod).await;
    stage
        .cluster
        .marks_become("removed", "no mark", BTreeMap::is_empty)
        .await;
    stage.clear().await;
}

#[tokio::test]
async fn a_reconciled_cluster_gets_no_writes() {
    let stage = Stage::set("settled").await;
    stage.provision().await;
    stage
        .cluster
        .condition_becomes("settled", "Ready", "True", "")
        .await;
    stage
        .cluster
        .marks_become("settled", "no Job", |marks| {
            marks["settled"] == "provisioned"
        })
        .await;
    let uid = stage
        .cluster
        .nodes()
        .get("settled")
        .await
        .unwrap()
        .uid()
        .unwrap();
    vanishes(stage.jobs(), &names::job_name(&uid)).await;

    let before = stage.versions().await;
    // A controller that is started anew lists everything and decides on all of it before it is ready.
    stage.restart_controller().await;
    // The controller handles a later change, so it has handled all earlier objects.
    let shim: Shim = shim("after");
    stage.cluster.create_shim(&shim).await;
    stage
        .cluster
        .condition_becomes("after", "Progressing", "False", "selects no node")
        .await;
    assert_eq!(stage.versions().await, before);
    stage.cluster.delete_shim("after").await;
    stage.clear().await;
}

impl Stage {
    /// Waits until the stage's RuntimeClass meets the condition `is`, which `what` describes.
    async fn class_becomes(&self, what: &str, is: impl Fn(&RuntimeClass) -> bool) -> RuntimeClass {
        let what = format!("RuntimeClass {} is {what}", self.name);
        eventually(&what, async || {
            match self.classes().get_opt(self.name).await.unwrap() {
                Some(class) if is(&class) => Ok(class),
                other => Err(other),
            }
        })
        .await
    }

    /// Ends the controller's pod and waits for the next one.
    async fn restart_controller(&self) {
        let ours = ListParams::default().labels("app.kubernetes.io/component=controller");
        let old = self.pods().list(&ours).await.unwrap().items;
        for pod in &old {
            let pods = self.pods();
            pods.delete(&pod.name_any(), &DeleteParams::default())
                .await
                .unwrap();
        }
        eventually("another controller is ready", async || {
            let found = self.pods().list(&ours).await.unwrap().items;
            let ready = |pod: &Pod| {
                let status = pod.status.as_ref();
                let mut conditions = status
                    .iter()
                    .flat_map(|status| &status.conditions)
                    .flatten();
                let is_old = old.iter().any(|old| old.uid() == pod.uid());
                !is_old && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
            };
            if found.len() == 1 && ready(&found[0]) {
                Ok(())
            } else {
                Err(found.len())
            }
        })
        .await;
    }

    /// Versions of the objects that a controller might write without need. The node's status belongs to the node controller, its metadata
    /// to Farrier.
    async fn versions(&self) -> Value {
        let shim = self.cluster.shims().get(self.name).await.unwrap();
        let class = self.classes().get(self.name).await.unwrap();
        let node = self.cluster.nodes().get(self.name).await.unwrap();
        let ours = node
            .managed_fields()
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some(names::MANAGER));
        let times: Vec<_> = ours.map(|entry| &entry.time).collect();
        json!([shim.resource_version(), class.resource_version(), times])
    }
}
