//! The chart as helm renders it, and the parts of the output.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::{CommandFactory, Parser};
use farrier::cli::{self, Cli};
use serde_json::Value;

pub fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/farrier")
}

/// Runs helm on the chart, with `arguments` at the end.
pub fn helm(subcommand: &[&str], arguments: &[&str]) -> Output {
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

/// All objects that an install with `arguments` creates and keeps, except the CRD.
pub fn render(arguments: &[&str]) -> Vec<Value> {
    let mut objects = rendered(arguments);
    objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_null());
    objects
}

/// The objects of the Helm hook `hook`, with `arguments`.
pub fn hooks(hook: &str, arguments: &[&str]) -> Vec<Value> {
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

/// The notes that are printed after an install with `arguments`. Helm renders notes for a cluster only: here, a
/// copy of the chart has them in an object.
pub fn notes(arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(chart()).arg(directory.path());
    assert!(copy.status().unwrap().success());
    let chart = directory.path().join("farrier");
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

/// The output of helm with `arguments` on a copy of the chart in which `edits` replace parts of `file`. Helm looks nothing up without a
/// cluster: the edits put objects in the place of the lookups.
pub fn edited(file: &str, edits: &[(&str, String)], arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(chart()).arg(directory.path());
    assert!(copy.status().unwrap().success());
    let chart = directory.path().join("farrier");
    let path = chart.join("templates").join(file);
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (part, other) in edits {
        assert!(text.contains(part), "{part}");
        text = text.replace(part, other);
    }
    std::fs::write(path, text).unwrap();
    helm_on(&chart, &["template", "farrier"], arguments)
}

/// An expression of a template for this object.
pub fn object(object: &Value) -> String {
    format!("fromJson `{object}`")
}

/// The message with which helm refuses an install with `arguments`.
pub fn refusal(arguments: &[&str]) -> String {
    let output = helm(&["template", "farrier"], arguments);
    assert!(!output.status.success(), "helm takes {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let wanted = |object: &&Value| object["kind"] == kind;
    objects.iter().filter(wanted).collect()
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The one Shim called `wanted`.
pub fn shim<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let mut shims = of_kind(objects, "Shim");
    shims.retain(|shim| name(shim) == wanted);
    assert_eq!(shims.len(), 1, "Shims called {wanted}");
    shims[0]
}

pub fn strings(value: &Value) -> Vec<&str> {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|item| item.as_str().unwrap()).collect()
}

pub fn pod_spec(objects: &[Value]) -> &Value {
    &of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]
}

/// The controller's options from the environment of its pod. The command line has an option for each variable.
pub fn controller_options(objects: &[Value]) -> (Cli, BTreeSet<String>) {
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

/// The variables of a container that have a value in the manifest.
pub fn environment(container: &Value) -> BTreeMap<&str, &Value> {
    let variables = container["env"].as_array().unwrap().iter();
    variables
        .map(|variable| (variable["name"].as_str().unwrap(), &variable["value"]))
        .collect()
}

pub fn controller(cli: Cli) -> cli::Controller {
    match cli.command {
        cli::Command::Controller(options) => options,
        other => panic!("{other:?}"),
    }
}
