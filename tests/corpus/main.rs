//! Every configuration of the corpus on every real containerd: what a daemon loads is edited, judged, served and put back byte for
//! byte; what it refuses is refused. `FARRIER_CONTAINERDS` lists the programs, `FARRIER_CORPUS` may add a folder of real files.
//!
//! `FARRIER_CORPUS_ONLY` restricts a run to the cases whose name contains it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on stops")]

mod cases;
mod daemon;
mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;

use cases::Case;
use daemon::{CONFIG, Release, Root, Start};
use farrier::containerd_config::{
    Handler, Value, Version, edit, holds, judge, place, runtimes_of_dump, startable,
};
use farrier::installer::loaded::load;
use reasons::Why;

/// What Farrier makes of a configuration.
enum Said {
    /// It refuses, in these words.
    Refused(String),
    /// The handlers stand there now, and this is what the daemon prints.
    Declared(String),
    /// A promise is broken.
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

fn names(handlers: &[Handler]) -> BTreeSet<String> {
    handlers
        .iter()
        .map(|handler| handler.name.clone())
        .collect()
}

/// Adds one handler and then all, as the installer does, and takes them out again; all of them stand there in the end.
async fn change(root: &Root, release: &Release) -> Said {
    let refused = |error: &dyn std::fmt::Display| Said::Refused(error.to_string());
    let broken = |words: &str| Said::Broken(words.to_owned());
    let loaded = match load(&root.host(), CONFIG) {
        Ok(loaded) => loaded,
        Err(error) => return refused(&error),
    };
    let version: Version = release.version.parse().unwrap();
    let placement = match place(&loaded, &version) {
        Ok(placement) => placement,
        Err(error) => return refused(&error),
    };
    let before = match root.dump(release).await {
        Ok(before) => before,
        Err(words) => return refused(&words),
    };
    if let Err(error) = startable(&before) {
        return refused(&error);
    }
    let runc = match runtimes_of_dump(&before) {
        Ok((_, dumped)) => dumped.get("runc").map(|runc| runc.to_handler("runc")),
        Err(error) => return refused(&error),
    };
    let file = root.path(&placement.path);
    let first = fs::read_to_string(&file).ok();
    let apply = |text: Option<&str>, ours: &BTreeSet<String>, want: &[Handler]| {
        edit(text, &placement, ours, want, runc.as_ref())
    };
    let none = BTreeSet::new();
    let all = handlers();
    let mut dump = String::new();
    for want in [&all[..1], &all] {
        let ours = names(want);
        let after = match apply(first.as_deref(), &none, want) {
            Ok(Some(after)) => after,
            Ok(None) => return broken("a file with handlers should not exist"),
            Err(error) => return refused(&error),
        };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &after).unwrap();
        let judged = match root.dump(release).await {
            Ok(printed) => {
                let verdict = judge(&before, &printed, &ours).and_then(|()| holds(&printed, want));
                dump = printed;
                verdict.map_err(|error| error.to_string())
            }
            Err(words) => Err(words),
        };
        if let Err(words) = judged {
            put_back(&file, first.as_deref());
            return Said::Refused(words);
        }
        if apply(Some(&after), &ours, want) != Ok(Some(after.clone())) {
            return broken("a second edit changes something");
        }
        if apply(Some(&after), &ours, &[]) != Ok(first.clone()) {
            return broken("the first bytes don't come back");
        }
        if apply(Some(&after), &ours, &all) != apply(first.as_deref(), &none, &all) {
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

/// What is wrong with how one configuration fares on one release; nothing where all is well.
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
                (Start::Up(_), Some(Why::Justified(_))) => Ok(()),
                (Start::Up(_), _) => Err(format!("refused though the daemon loads it: {words}")),
                (Start::CriDown(_) | Start::Refused(_), None) => Ok(()),
                (start, Some(why)) => Err(format!("{why:?} is no reason any more: {start:?}")),
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
                if (&served.default, seen) != (&default, meant) {
                    return Err(format!("serves {served:?} and prints {declared:?}"));
                }
                match why {
                    None => Ok(()),
                    Some(why) => Err(format!("{why:?} is no reason any more: it is served")),
                }
            }
            after @ (Start::CriDown(_) | Start::Refused(_)) => {
                case.lay_out(&root.path("/"));
                match (root.start(release).await, why) {
                    (Start::Up(_), _) => Err(format!("loaded before and not after: {after:?}")),
                    (Start::CriDown(_) | Start::Refused(_), Some(Why::OnlyAtStart(_))) => Ok(()),
                    (before, _) => Err(format!("accepted though the daemon doesn't: {before:?}")),
                }
            }
        },
    }
}

/// The programs under test, by the releases that they say they are.
fn releases() -> Vec<Release> {
    let programs = std::env::var_os("FARRIER_CONTAINERDS")
        .expect("`cargo xtask test corpus` names the programs in FARRIER_CONTAINERDS");
    std::env::split_paths(&programs)
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

#[test]
fn what_a_daemon_loads_is_edited_and_put_back_and_what_it_refuses_is_refused() {
    let releases = releases();
    let only = std::env::var("FARRIER_CORPUS_ONLY").unwrap_or_default();
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| case.name.contains(&only))
        .filter(|case| {
            !case
                .text()
                .is_some_and(farrier::containerd_config::is_template)
        })
        .collect();
    let pending = Mutex::new(cases.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let root = Root::new(&releases);
                // On this thread alone: what it starts shares its namespaces.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                loop {
                    let Some(case) = pending.lock().unwrap().next() else {
                        break;
                    };
                    for release in &releases {
                        if let Err(words) = runtime.block_on(verdict(&root, release, case)) {
                            let line = format!("{} on {}: {words}", case.name, release.version);
                            wrong.lock().unwrap().push(line);
                        }
                    }
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
