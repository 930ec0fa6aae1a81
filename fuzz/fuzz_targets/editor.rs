//! Edits arbitrary text as a configuration and as a template. No edit panics, and removing all handlers restores the first bytes.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use farrier::containerd_config::{
    ConfigFiles, Handler, PluginId, SourceFile, Value, compare_dumps, config_target, edit,
    edit_template, imports, runtimes_of_dump, startup_checks, with_imports,
};
use libfuzzer_sys::fuzz_target;

/// A release for each way of reading a configuration.
const RELEASES: [&str; 3] = ["1.7.35", "2.1.9", "2.4.2"];

/// A text that already has a comment of Farrier is not restored, because Farrier removes its own lines.
const MARK: &str = "# farrier:";

fn handler(name: &str) -> Handler {
    Handler {
        name: name.to_owned(),
        runtime_type: format!("/opt/{name}"),
        options: BTreeMap::from([("a b".to_owned(), Value::String("\"\n{{".to_owned()))]),
    }
}

fuzz_target!(|text: &str| {
    let desired = [handler("f-a"), handler("f b.c")];
    let managed: BTreeSet<String> = desired.iter().map(|handler| handler.name.clone()).collect();
    let none = BTreeSet::new();
    let runc = Handler {
        options: BTreeMap::new(),
        ..handler("runc")
    };
    let _ = imports(text);
    let _ = with_imports("f", text, &["/a"]);
    let _ = runtimes_of_dump(text);
    let _ = startup_checks(text);
    let _ = compare_dumps(text, text, &managed);
    let template = |text: Option<&str>, managed: &BTreeSet<String>, desired: &[Handler]| {
        edit_template("t", text, PluginId::CriV1Runtime, managed, desired)
    };
    if let Ok(Some(after)) = template(Some(text), &none, &desired) {
        let undone = template(Some(&after), &managed, &[]).expect("the added handlers can be removed");
        assert!(text.contains(MARK) || undone.as_deref() == Some(text));
    }
    for release in RELEASES {
        let Ok(version) = release.parse() else {
            continue;
        };
        let loaded = ConfigFiles {
            root: SourceFile {
                path: "/c".to_owned(),
                text: Some(text.to_owned()),
            },
            imported: Vec::new(),
        };
        let Ok(placement) = config_target(&loaded, &version) else {
            continue;
        };
        let file = (!placement.drop_in).then_some(text);
        let Ok(after) = edit(file, &placement, &none, &desired, Some(&runc)) else {
            continue;
        };
        let again = edit(after.as_deref(), &placement, &managed, &desired, Some(&runc));
        assert_eq!(again.as_ref(), Ok(&after));
        let undone = edit(after.as_deref(), &placement, &managed, &[], Some(&runc));
        let undone = undone.expect("the added handlers can be removed");
        assert!(text.contains(MARK) || undone.as_deref() == file);
    }
});
