//! Every configuration of the corpus on every real containerd. A configuration that a daemon loads is edited, validated, served and
//! restored byte for byte. A configuration that a daemon refuses is refused. `FARRIER_CONTAINERDS` lists the programs, `FARRIER_CORPUS` may
//! add a directory of real files.
//!
//! `FARRIER_CORPUS_ONLY` restricts a run to the cases whose name contains it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on stops")]

mod cases;
#[path = "../support/containerd.rs"]
mod containerd;
mod daemon;
#[path = "../support/handlers.rs"]
mod handler_names;
mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;

use cases::Case;
use daemon::{CONFIG, Release, Root, Start};
use farrier::containerd_config::{
    Error, Handler, PluginId, Value, Version, compare_dumps, config_target, contains_handlers,
    edit, edit_template, runtimes_of_dump, startup_checks,
};
use farrier::installer::containerd::config_files::load;
use farrier::installer::inspect::prerequisites::missing_prerequisite;
use handler_names::names;
use reasons::Why;

/// Farrier's result for a configuration.
enum Said {
    /// Farrier refuses, with this message.
    Refused(String),
    /// The handlers are declared, and this is the daemon's dump.
    Declared(String),
    /// A property does not hold.
    Broken(String),
}

fn handlers() -> Vec<Handler> {
    let options = |options: &[(&str, Value)]| -> BTreeMap<String, Value> {
        let own = |(key, value): &(&str, Value)| ((*key).to_owned(), value.clone());
        options.iter().map(own).collect()
    };
    let handler = |name: &str, options| Handler {
        name: name.to_owned(),
        runtime_type: format!("/opt/farrier/bin/containerd-shim-{name}"),
        options,
    };
    vec![
        handler("farrier-a", options(&[])),
        handler(
            "farrier b.c",
            options(&[
                ("SystemdCgroup", Value::Boolean(true)),
                (
                    "ConfigPath",
                    Value::String("/etc/b c/\"b\".toml".to_owned()),
                ),
                ("a.b c", Value::Integer(-7)),
            ]),
        ),
        handler("farrier-d_1", options(&[])),
    ]
}

/// Adds one handler and then all, as the installer does, removes them, and adds all of them again.
async fn change(root: &Root, release: &Release) -> Said {
    let refused = |error: &dyn std::fmt::Display| Said::Refused(error.to_string());
    let broken = |words: &str| Said::Broken(words.to_owned());
    let loaded = match load(&root.host(), CONFIG) {
        Ok(loaded) => loaded,
        Err(error) => return refused(&error),
    };
    let version: Version = release.version.parse().unwrap();
    let placement = match config_target(&loaded, &version) {
        Ok(placement) => placement,
        Err(error) => return refused(&error),
    };
    let (before, ignored) = match root.read(release).await {
        Ok(before) => before,
        Err(words) => return refused(&words),
    };
    if let Err(error) = startup_checks(&before) {
        return refused(&error);
    }
    if let Some(words) = missing_prerequisite(&root.host(), &before) {
        return refused(&words);
    }
    let runc = match runtimes_of_dump(&before) {
        Ok((_, dumped)) => dumped.get("runc").map(|runc| runc.to_handler("runc")),
        Err(error) => return refused(&error),
    };
    let file = root.path(&placement.path);
    let first = fs::read_to_string(&file).ok();
    let apply = |text: Option<&str>, managed: &BTreeSet<String>, desired: &[Handler]| {
        edit(text, &placement, managed, desired, runc.as_ref())
    };
    let none = BTreeSet::new();
    let all = handlers();
    let mut dump = String::new();
    for desired in [&all[..1], &all] {
        let managed = names(desired);
        let after = match apply(first.as_deref(), &none, desired) {
            Ok(Some(after)) => after,
            Ok(None) => return broken("a file with handlers should not exist"),
            Err(error) => return refused(&error),
        };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &after).unwrap();
        let judged = match root.read(release).await {
            Ok((_, after)) if after > ignored => {
                return broken("the daemon ignores what was added");
            }
            Ok((printed, _)) => {
                let verdict = compare_dumps(&before, &printed, &managed)
                    .and_then(|()| contains_handlers(&printed, desired));
                dump = printed;
                verdict.map_err(|error| error.to_string())
            }
            Err(words) => Err(words),
        };
        if let Err(words) = judged {
            put_back(&file, first.as_deref());
            return Said::Refused(words);
        }
        if apply(Some(&after), &managed, desired) != Ok(Some(after.clone())) {
            return broken("a second edit changes something");
        }
        if apply(Some(&after), &managed, &[]) != Ok(first.clone()) {
            return broken("the first bytes are not restored");
        }
        if apply(Some(&after), &managed, &all) != apply(first.as_deref(), &none, &all) {
            return broken("one after the other isn't all at once");
        }
    }
    Said::Declared(dump)
}

fn put_back(file: &std::path::Path, text: Option<&str>) {
    match text {
        Some(text) => fs::write(file, text).unwrap(),
        None => fs::remove_file(file).unwrap(),
    }
}

/// The failed properties of one configuration on one release.
async fn verdict(root: &Root, release: &Release, case: &Case) -> Result<(), String> {
    case.lay_out(&root.path("/"));
    let why = reasons::of(&case.name, &release.version);
    match change(root, release).await {
        Said::Broken(words) => Err(words),
        Said::Refused(words) => {
            case.lay_out(&root.path("/"));
            if root.dump(release).await.is_err() {
                return Ok(());
            }
            match (root.start(release).await, why) {
                (Start::Up(_), Some(Why::Justified(_)))
                | (Start::CriDown(_) | Start::Refused(_), None) => Ok(()),
                (Start::Up(_), _) => Err(format!("refused though the daemon loads it: {words}")),
                (start, Some(why)) => Err(format!("refused, though not since {why}: {start}")),
            }
        }
        Said::Declared(dump) => match root.start(release).await {
            Start::Up(served) => {
                let (default, declared) = runtimes_of_dump(&dump).unwrap();
                let seen: Vec<(&String, &String)> = served.handlers.iter().collect();
                let meant: Vec<(&String, &String)> = declared
                    .iter()
                    .map(|(name, handler)| (name, &handler.runtime_type))
                    .collect();
                let options: BTreeMap<String, BTreeMap<String, Value>> = declared
                    .iter()
                    .map(|(name, handler)| (name.clone(), handler.to_handler(name).options))
                    .filter(|(_, options)| !options.is_empty())
                    .collect();
                if (&served.default, seen, &served.options) != (&default, meant, &options) {
                    return Err(format!("serves {served:?} and prints {declared:?}"));
                }
                match why {
                    None => Ok(()),
                    Some(why) => Err(format!("served in spite of {why}")),
                }
            }
            after @ (Start::CriDown(_) | Start::Refused(_)) => {
                case.lay_out(&root.path("/"));
                match (root.start(release).await, why) {
                    (Start::Up(_), _) => Err(format!("loaded before and not after: {after}")),
                    (Start::CriDown(_) | Start::Refused(_), Some(Why::OnlyAtStart(_))) => Ok(()),
                    (before, _) => Err(format!("accepted though the daemon doesn't: {before}")),
                }
            }
        },
    }
}

/// The programs under test, by the releases that they print.
fn releases() -> Vec<Release> {
    containerd::programs()
        .into_iter()
        .map(|program| {
            let output = std::process::Command::new(&program)
                .arg("--version")
                .output()
                .unwrap();
            let version: Version = String::from_utf8(output.stdout).unwrap().parse().unwrap();
            Release {
                version: version.to_string(),
                program,
            }
        })
        .collect()
}

/// Runs the cases on two threads, each with a root of its own, and fails with all failed properties.
fn each(cases: Vec<Case>, work: impl AsyncFn(&Root, &Case, usize) -> Vec<String> + Sync) {
    let releases = releases();
    let only = std::env::var("FARRIER_CORPUS_ONLY").unwrap_or_default();
    let cases: Vec<Case> = cases
        .into_iter()
        .filter(|case| case.name.contains(&only))
        .collect();
    let pending = Mutex::new(cases.iter().enumerate());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let root = Root::new(&releases);
                // On this thread, because its processes share its namespaces.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                loop {
                    let Some((index, case)) = pending.lock().unwrap().next() else {
                        break;
                    };
                    let lines = runtime.block_on(work(&root, case, index));
                    wrong.lock().unwrap().extend(lines);
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(
        wrong.is_empty(),
        "{}\n{} in all",
        wrong.join("\n"),
        wrong.len()
    );
}

fn is_template(case: &Case) -> bool {
    case.text()
        .is_some_and(farrier::containerd_config::is_template)
}

#[test]
fn a_configuration_is_edited_and_restored_if_containerd_loads_it_and_else_refused() {
    let cases = cases::all().into_iter().filter(|case| !is_template(case));
    let releases = releases();
    each(cases.collect(), async |root, case, _| {
        let mut wrong = Vec::new();
        for release in &releases {
            if let Err(words) = verdict(root, release, case).await {
                wrong.push(format!("{} on {}: {words}", case.name, release.version));
            }
        }
        wrong
    });
}

/// The rendered text of the distribution's own template, for both schemas.
const BASES: [&str; 2] = [
    include_str!("distributions/k3s-v1.30.toml"),
    include_str!("distributions/rke2.toml"),
];

/// Adds handlers to the template and removes them. If the template can be rendered here, a daemon checks both renderings.
async fn template(root: &Root, release: &Release, text: &str) -> Result<(), String> {
    let words = |error: Error| error.to_string();
    let newer = text.contains("io.containerd.cri.v1.runtime");
    let (plugin, base) = if newer {
        (PluginId::CriV1Runtime, BASES[1])
    } else {
        (PluginId::GrpcV1Cri, BASES[0])
    };
    let all = handlers();
    let managed = names(&all);
    let apply = |text: &str, managed: &BTreeSet<String>, desired: &[Handler]| {
        edit_template("config.toml.tmpl", Some(text), plugin, managed, desired)
    };
    let after = apply(text, &BTreeSet::new(), &all).map_err(words)?.unwrap();
    if apply(&after, &managed, &all).map_err(words)? != Some(after.clone()) {
        return Err("a second edit changes something".to_owned());
    }
    if apply(&after, &managed, &[]).map_err(words)?.as_deref() != Some(text) {
        return Err("the first bytes are not restored".to_owned());
    }
    // As on a node where k3s finds no runtime of a handler's name: the actions around the handler leave no text.
    let is_guard = |line: &&str| {
        line.starts_with("{{ if not (index .ExtraRuntimes ") || line.trim_end() == "{{ end }}"
    };
    let render = |text: &str| {
        let lines = text.split_inclusive('\n');
        let text: String = lines.filter(|line| !is_guard(line)).collect();
        text.replace("{{ template \"base\" . }}", base)
    };
    let other = newer && release.version.starts_with('1');
    if other || render(text).contains("{{") {
        return Ok(());
    }
    let mut dumps = Vec::new();
    for text in [text, &after] {
        fs::create_dir_all(root.path("/etc/containerd")).unwrap();
        fs::write(root.path(CONFIG), render(text)).unwrap();
        dumps.push(root.dump(release).await?);
    }
    compare_dumps(&dumps[0], &dumps[1], &managed)
        .and_then(|()| contains_handlers(&dumps[1], &all))
        .map_err(words)
}

#[test]
fn a_template_renders_the_handlers_and_is_restored() {
    let cases: Vec<Case> = cases::all().into_iter().filter(is_template).collect();
    assert!(cases.len() >= 3);
    let releases = releases();
    each(cases, async |root, case, _| {
        let mut wrong = Vec::new();
        for release in &releases {
            if let Err(words) = template(root, release, case.text().unwrap()).await {
                wrong.push(format!("{} on {}: {words}", case.name, release.version));
            }
        }
        wrong
    });
}

/// Runs the program on the root as an unpacked image, and returns its exit status and what it printed.
async fn farrier(root: &Root, arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_farrier"))
        .args(arguments)
        .args(["--offline", "-o", "json", "--host-root"])
        .arg(root.path("/"))
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), printed)
}

/// Runs the whole program, and fails unless its result agrees with the results of its parts. The exit status is 3 for a refused
/// configuration.
async fn program(root: &Root, release: &Release, case: &Case) -> Result<(), String> {
    case.lay_out(&root.path("/"));
    let said = change(root, release).await;
    case.lay_out(&root.path("/"));
    root.install(release);
    let before = root.files("/etc");
    let shim = ["install", "--shim", "farrier-a=file:///srv/shim"];
    let (code, printed) = farrier(root, &shim).await;
    match (&said, code) {
        (Said::Declared(_), Some(0)) => {}
        (Said::Refused(_), Some(3)) if root.files("/etc") == before => return Ok(()),
        (Said::Refused(words) | Said::Broken(words), _) => {
            return Err(format!(
                "exit status {code:?} and not 3: {words}: {printed}"
            ));
        }
        (Said::Declared(_), _) => return Err(format!("exit status {code:?}: {printed}")),
    }
    let dump = root.dump(release).await?;
    let (_, declared) = runtimes_of_dump(&dump).unwrap();
    if !declared.contains_key("farrier-a") {
        return Err("the daemon doesn't see the handler".to_owned());
    }
    let (code, printed) = farrier(root, &["uninstall", "--all"]).await;
    if code != Some(0) {
        return Err(format!("exit status {code:?} of the removal: {printed}"));
    }
    if root.files("/etc") == before {
        Ok(())
    } else {
        Err("the first bytes are not restored".to_owned())
    }
}

#[test]
fn an_install_and_the_config_editor_agree_on_every_configuration() {
    let releases = releases();
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| !is_template(case) && !case.name.starts_with("extra/"))
        .filter(|case| !case.name.contains("toml-syntax/"))
        .collect();
    each(cases, async |root, case, index| {
        // The parts were checked with every release, so one release is enough here.
        let release = &releases[index % releases.len()];
        match program(root, release, case).await {
            Ok(()) => Vec::new(),
            Err(words) => vec![format!("{} on {}: {words}", case.name, release.version)],
        }
    });
}
