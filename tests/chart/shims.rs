//! The Shims of the presets, and their changes by values.

use std::collections::BTreeSet;

use rstest::rstest;
use serde_json::{Value, json};

use super::support::{name, of_kind, render, shim, strings};

#[rstest]
#[case::default("default", &["spin", "wasmedge", "wasmer", "wasmtime"])]
#[case::kwasm("kwasm", &["lunatic", "slight", "spin", "wasmedge", "wasmer", "wasmtime", "wws"])]
#[case::aks("aks", &["slight", "spin"])]
#[case::none("none", &[])]
fn a_preset_renders_its_shims_for_annotated_nodes(#[case] preset: &str, #[case] expected: &[&str]) {
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
fn handlers_and_runtime_classes_are_unique(#[case] preset: &str) {
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

/// The handlers of a Shim, the one of its RuntimeClasses first.
fn handlers(shim: &Value) -> Vec<&str> {
    let spec = &shim["spec"];
    let first = spec["runtimeClass"]["handler"].as_str().into_iter();
    first.chain(strings(&spec["handlerAliases"])).collect()
}

#[rstest]
#[case::spin("spin", &["spin-v2", "spin"], &["spin"], &["wasmtime-spin-v2", "wasmtime-spin"])]
#[case::wasmtime("wasmtime", &["wasmtime", "wasmtime-v1"], &["wasmtime"], &["wasmtime", "wasmtime-v1"])]
#[case::slight("slight", &["slight"], &["slight"], &["wasmtime-slight"])]
#[case::wws("wws", &["wws"], &["wws"], &["wasmtime-wws"])]
#[case::lunatic("lunatic", &["lunatic"], &["lunatic"], &["wasmtime-lunatic"])]
fn handlers_and_runtime_classes_have_their_known_names(
    #[case] wanted: &str,
    #[case] by_default: &[&str],
    #[case] with_kwasm: &[&str],
    #[case] classes: &[&str],
    #[values("default", "kwasm")] preset: &str,
) {
    let objects = render(&[
        &format!("--set=shims.preset={preset}"),
        &format!("--set=shims.{wanted}.enabled=true"),
    ]);
    let shim = shim(&objects, &format!("default-{wanted}"));
    let expected = if preset == "kwasm" {
        with_kwasm
    } else {
        by_default
    };
    assert_eq!(handlers(shim), expected);
    let class = &shim["spec"]["runtimeClass"];
    let first = class["name"].as_str().into_iter();
    let found: Vec<_> = first.chain(strings(&class["aliases"])).collect();
    assert_eq!(found, classes);
}

#[test]
fn the_kwasm_preset_declares_nothing_that_kwasm_did_not() {
    let objects = render(&["--set=shims.preset=kwasm"]);
    let shims = of_kind(&objects, "Shim");
    let found: BTreeSet<_> = shims.iter().flat_map(|shim| handlers(shim)).collect();
    let of_its_installer = [
        "lunatic", "slight", "spin", "wasmedge", "wasmer", "wasmtime", "wws",
    ];
    assert_eq!(found, BTreeSet::from(of_its_installer));
}

#[rstest]
#[case::with_an_alias("[\"spin-v2\"]", &["mine", "spin-v2"])]
#[case::none("[]", &["mine"])]
fn handlers_in_the_values_replace_those_of_every_preset(
    #[case] aliases: &str,
    #[case] expected: &[&str],
    #[values("default", "kwasm")] preset: &str,
) {
    let objects = render(&[
        &format!("--set=shims.preset={preset}"),
        "--set=shims.spin.spec.runtimeClass.handler=mine",
        &format!("--set-json=shims.spin.spec.handlerAliases={aliases}"),
        "--set-json=shims.spin.spec.runtimeClass.aliases=[]",
    ]);
    let shim = shim(&objects, "default-spin");
    assert_eq!(handlers(shim), expected);
    assert_eq!(shim["spec"]["runtimeClass"]["aliases"], json!([]));
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

/// Fails if `value` has a field that `schema` lacks, because the API server would drop the field without an error.
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
fn every_field_of_the_charts_shims_is_in_the_crd() {
    let crd: Value =
        serde_saphyr::from_str(include_str!("../../charts/farrier/crds/shims.yaml")).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for shim in of_kind(&render(&["--set=shims.preset=kwasm"]), "Shim") {
        assert_known(&shim["spec"], schema, "spec");
    }
}

#[test]
fn the_values_accept_exactly_the_fields_of_the_crd() {
    let crd: Value =
        serde_saphyr::from_str(include_str!("../../charts/farrier/crds/shims.yaml")).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let values: Value =
        serde_json::from_str(include_str!("../../charts/farrier/values.schema.json")).unwrap();
    let fields = |schema: &Value| -> BTreeSet<String> {
        assert!(schema["properties"].is_object(), "{schema}");
        let fields = schema["properties"].as_object().unwrap();
        fields.keys().cloned().collect()
    };
    let mut expected = fields(spec);
    let definitions = &values["definitions"];
    assert_eq!(fields(&definitions["shim"]["properties"]["spec"]), expected);
    for part in ["fetchStrategy", "runtimeClass", "rolloutStrategy"] {
        assert_eq!(
            fields(&definitions[part]),
            fields(&spec["properties"][part])
        );
    }
    expected.insert("name".to_owned());
    let extra = &values["properties"]["shims"]["properties"]["extra"];
    assert_eq!(fields(&extra["items"]), expected);
}

#[test]
fn a_shim_is_enabled_and_disabled_by_its_name() {
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
fn another_version_drops_the_digests_of_the_default_version() {
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
fn the_spec_of_a_shim_is_merged_over_the_default_spec() {
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
fn a_custom_shim_keeps_its_name() {
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
#[case::nodes("--set=shims.spin.spec.rolloutStrategy.rolling.maxUpdate=3", "3")]
#[case::percentage(
    "--set-string=shims.spin.spec.rolloutStrategy.rolling.maxUpdate=25%",
    "\"25%\""
)]
fn max_update_is_passed_to_the_shim(#[case] argument: &str, #[case] expected: &str) {
    let objects = render(&[argument]);
    let strategy = &shim(&objects, "default-spin")["spec"]["rolloutStrategy"];
    assert_eq!(strategy["rolling"]["maxUpdate"].to_string(), expected);
}
