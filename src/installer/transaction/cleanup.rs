//! Commits a change and cleans up after it. Lists the running pods once more before it removes a binary.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::failure::Error;
use super::journal::{FinalState, Journal};
use super::validate_config;
use crate::handoff::{EndingPod, HandlerReport, Problem};
use crate::installer::containerd::cri;
use crate::installer::containerd::orphans::{self, Orphan, ShimPrograms};
use crate::installer::host::path::parent_directory;
use crate::installer::host::{HostRoot, NEW_SUFFIX, OLD_SUFFIX, Target};
use crate::installer::inspect::verify_cache;
use crate::installer::inspect::{HostFacts, own_files, own_symlinks};
use crate::installer::plan::binaries::unneeded;
use crate::installer::plan::in_use::{Dependents, Users};
use crate::installer::state::{
    InstallPaths, JOURNAL_FILE, OwnedHandler, STATE_DIRECTORY, STATE_FILE, STATE_LIMIT, State,
};

/// Mode of the state file: locations may hold credentials, and only root changes a host.
const STATE_MODE: u32 = 0o600;

/// Writes the state file, which ends the change.
pub(crate) fn commit(host: &HostRoot, journal: &Journal) -> Result<(), Error> {
    match &journal.state {
        FinalState::Write(text) => {
            host.write_own(STATE_FILE, text.as_bytes(), STATE_MODE)?;
        }
        FinalState::Remove => host.remove_file(STATE_FILE)?,
        FinalState::Keep | FinalState::Digest(_) => {}
    }
    Ok(())
}

/// Keeps the binaries of handlers with pods. A pod may have started on a handler after the facts were gathered. If the handler is still
/// declared, the state file records it as installed, as before the change; otherwise as draining, so that a later run removes its
/// binary. Returns the reports on these handlers.
///
/// # Errors
/// When the state file can't be read or the journal can't be written.
pub(crate) fn retain_in_use(
    host: &HostRoot,
    journal: &mut Journal,
    in_use: &InUse,
) -> Result<Vec<HandlerReport>, Error> {
    let install_paths = InstallPaths {
        directory: journal.directory.clone(),
    };
    let used: Vec<(String, OwnedHandler, Problem)> = journal
        .leaving
        .iter()
        .filter_map(|(name, owned)| {
            let reason = in_use.reason(&install_paths, name, Some(owned))?;
            Some((name.clone(), owned.clone(), reason))
        })
        .collect();
    if used.is_empty() {
        return Ok(Vec::new());
    }
    let mut state = match &journal.state {
        FinalState::Write(text) => State::from_json(Some(text))?,
        FinalState::Remove => State {
            directories: journal.obsolete_directories.clone(),
            ..State::default()
        },
        FinalState::Keep | FinalState::Digest(_) => {
            State::from_json(host.read_text(STATE_FILE, STATE_LIMIT)?.as_deref())?
        }
    };
    state.directory.clone_from(&journal.directory);
    let mut reports = Vec::new();
    for (name, owned, reason) in used {
        warn!(handler = name, %reason, "kept the binary until a later run");
        let reserved = state.handlers.get_mut(&name);
        reports.push(HandlerReport {
            shim: owned.shim.clone(),
            handler: name.clone(),
            path: Some(install_paths.declared_path(&name, &owned)),
            sha256: owned.sha256(),
            served: reserved.is_some(),
            reason: Some(reason.message),
            remedy: reason.help,
            waits_for_pods: false,
        });
        match reserved {
            Some(reserved) => *reserved = owned,
            None => {
                state.draining.insert(name, owned);
            }
        }
    }
    journal.state = FinalState::Write(state.to_json());
    journal.save(host)?;
    Ok(reports)
}

/// Cleans up after a committed change: removes the binaries without a handler, Farrier's empty directories, and the journal last.
///
/// Handlers in `in_use` keep their binaries, because containerd needs the binary to end a sandbox. A later run removes them.
pub(crate) fn finish(host: &HostRoot, journal: &Journal, in_use: &InUse) -> Result<(), Error> {
    journal.discard(host)?;
    let state = State::from_json(host.read_text(STATE_FILE, STATE_LIMIT)?.as_deref())?;
    let install_paths = InstallPaths {
        directory: journal.directory.clone(),
    };
    let is_used = |handler: &str, owned| in_use.reason(&install_paths, handler, owned).is_some();
    clear_binaries(host, &install_paths, &state, |handler| {
        is_used(handler, journal.leaving.get(handler))
    })?;
    let used = journal.leaving.iter();
    let used = used.filter(|(name, owned)| is_used(name, Some(*owned)));
    let owned_handlers = state.handlers.values().chain(state.draining.values());
    let owned_handlers = owned_handlers.filter(|owned| !owned.is_reserved());
    let spared = owned_handlers.chain(used.map(|(_, owned)| owned));
    journal.remove_legacy_files(
        host,
        &spared.filter_map(|owned| owned.path.as_ref()).collect(),
    )?;
    let directories = || journal.obsolete_directories.iter().rev();
    if state.is_empty() {
        for directory in [
            install_paths.bin(),
            install_paths.store(),
            install_paths.directory.clone(),
        ] {
            host.remove_directory(&directory)?;
        }
        for directory in directories() {
            host.remove_directory(directory)?;
        }
    }
    if state.is_empty() {
        host.discard_new(verify_cache::FILE);
        host.remove_file(verify_cache::FILE)?;
    }
    host.remove_file(JOURNAL_FILE)?;
    if state.is_empty() {
        host.remove_directory(STATE_DIRECTORY)?;
        for directory in directories() {
            host.remove_directory(directory)?;
        }
    }
    Ok(())
}

fn clear_binaries(
    host: &HostRoot,
    install_paths: &InstallPaths,
    state: &State,
    is_used: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let (symlinks, stored) = (
        own_symlinks(host, install_paths)?,
        own_files(host, install_paths)?,
    );
    for path in unneeded(install_paths, Some(state), &symlinks, &stored, is_used) {
        host.remove_file(&path)?;
    }
    Ok(())
}

/// Suffixes of the temporary files that a killed run leaves.
const TEMP_SUFFIXES: [&str; 4] = [
    NEW_SUFFIX,
    OLD_SUFFIX,
    validate_config::SUFFIX,
    validate_config::IMPORT_SUFFIX,
];

/// The temporary files that a killed run left: partly written files, candidate configurations, and replaced files kept for undoing.
///
/// # Errors
/// When a directory can't be listed.
pub(crate) fn temporary_files(host: &HostRoot, facts: &HostFacts) -> Result<Vec<String>, Error> {
    // The planner finds the unneeded files of the store by their paths.
    let store = facts.install_paths.store();
    let mut found = Vec::new();
    for directory in directories(host, facts).iter().filter(|it| **it != store) {
        for name in host.list(directory)? {
            if TEMP_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
                found.push(format!("{directory}/{name}"));
            }
        }
    }
    Ok(found)
}

/// The directories in which a change creates or replaces files.
fn directories(host: &HostRoot, facts: &HostFacts) -> BTreeSet<String> {
    let loaded = facts.config_files.files();
    let files = loaded.chain(&facts.sources).chain(&facts.orphaned_config);
    let configured = files.flat_map(|file| {
        let real = host.follow(&file.path).ok();
        [Some(file.path.clone()), real].into_iter().flatten()
    });
    let legacy_dirs = facts.legacy.legacy_dirs.keys();
    let legacy_dirs =
        legacy_dirs.flat_map(|legacy_dir| [legacy_dir.clone(), format!("{legacy_dir}/bin")]);
    let needed = facts.missing_directories.keys().cloned();
    configured
        .map(|path| parent_directory(&path).to_owned())
        .chain(legacy_dirs)
        .chain(needed)
        .collect()
}

/// Who uses the binaries of handlers when they are removed.
pub(crate) enum InUse {
    /// All users are known.
    Known {
        /// The pods of each handler, one per sandbox.
        pods: BTreeMap<String, Vec<EndingPod>>,
        /// The shim processes without a pod.
        orphans: Vec<Orphan>,
    },
    /// containerd does not run. A handler without a shim process has no pods.
    Shims(Vec<Orphan>),
    /// containerd did not answer, so every handler may have pods.
    Unknown,
}

impl InUse {
    /// Asks containerd for the sandboxes of each handler, and looks for shim processes of the handlers that leave. An image has neither.
    pub(crate) async fn query(host: &HostRoot, journal: &Journal, target: Target) -> Self {
        let none = Self::Known {
            pods: BTreeMap::new(),
            orphans: Vec::new(),
        };
        if target == Target::Image {
            return none;
        }
        let socket = &journal.socket;
        let known = async {
            let sandboxes = cri::sandboxes(host, socket).await?;
            let served = cri::served(host, socket).await?;
            let pods = cri::pods_by_handler(&sandboxes, &served.default);
            if journal.leaving.is_empty() {
                let orphans = Vec::new();
                return Ok(Self::Known { pods, orphans });
            }
            let install_paths = InstallPaths {
                directory: journal.directory.clone(),
            };
            let programs = ShimPrograms::of(&install_paths, journal.leaving.values());
            let orphans = orphans::find(host, socket, &programs, &sandboxes).await?;
            Ok(Self::Known { pods, orphans })
        };
        let known: Result<Self, orphans::Error> = known.await;
        known.unwrap_or_else(|error| {
            warn!(%error, "failed to list the running pods: obsolete binaries stay until the next run");
            Self::Unknown
        })
    }

    /// Looks for the shim processes of the handlers that leave, where containerd does not run.
    pub(crate) fn without_containerd(host: &HostRoot, journal: &Journal) -> Self {
        let install_paths = InstallPaths {
            directory: journal.directory.clone(),
        };
        let programs = ShimPrograms::of(&install_paths, journal.leaving.values());
        let running = orphans::running(host, &journal.socket, &programs);
        running.map_or_else(
            |error| {
                warn!(%error, "failed to list the shim processes: obsolete binaries stay until the next run");
                Self::Unknown
            },
            Self::Shims,
        )
    }

    /// The reason to keep the binary of a handler; `None` if it is not in use.
    fn reason(
        &self,
        install_paths: &InstallPaths,
        handler: &str,
        owned: Option<&OwnedHandler>,
    ) -> Option<Problem> {
        match self {
            Self::Known { pods, orphans } => {
                let users = Users {
                    pods,
                    orphans,
                    // The plan has refused the removal of a handler that the configuration of others needs.
                    dependents: Dependents::default(),
                    install_paths,
                };
                users.reason(handler, owned)
            }
            Self::Shims(shims) => {
                let is_used = match owned {
                    Some(owned) => shims.iter().any(|shim| shim.runs(install_paths, owned)),
                    None => !shims.is_empty(),
                };
                is_used.then(|| {
                    Problem::with_help(
                        "shim processes still run the binary of the handler",
                        "repair containerd and delete the pods of the handler, then run farrier again",
                    )
                })
            }
            Self::Unknown => Some(Problem::with_help(
                "failed to list the pods of this handler: containerd does not answer",
                "check that containerd answers, then run farrier again",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rstest::rstest;

    use super::*;
    use crate::handoff::{API_VERSION, Owner, Proof};
    use crate::installer::state::{Binary, symlink_target};

    /// Digests of binaries.
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const K: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

    const LEGACY_PATH: &str = "/opt/kwasm/bin/containerd-shim-k-v1";
    const LEGACY_SYMLINK: &str = "/usr/local/bin/containerd-shim-k-v1";

    fn owned(path: Option<&str>, sha256: Option<&str>) -> OwnedHandler {
        OwnedHandler {
            shim: "shim".to_owned(),
            owner: Owner::Local,
            path: path.map(str::to_owned),
            binary: sha256.map_or(Binary::Reserved, |sha256| Binary::Installed {
                sha256: sha256.parse().unwrap(),
                location: String::new(),
                artifact_sha256: None,
                file: None,
            }),
            options: BTreeMap::new(),
            proof: Proof::None,
        }
    }

    /// A host whose change removes the handlers `a`, `b` and, at the path of a legacy installer, `k`. The change is in effect, and the
    /// binaries are still there.
    fn leaving(root: &Path, state: Option<&State>) -> Journal {
        let path = |path: &str| root.join(path.trim_start_matches('/'));
        let install_paths = InstallPaths {
            directory: "/opt/farrier".to_owned(),
        };
        for directory in [
            &install_paths.bin(),
            &install_paths.store(),
            STATE_DIRECTORY,
        ] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        for directory in [
            parent_directory(LEGACY_PATH),
            parent_directory(LEGACY_SYMLINK),
        ] {
            fs::create_dir_all(path(directory)).unwrap();
        }
        for (handler, sha256) in [("a", A), ("b", B)] {
            fs::write(path(&install_paths.store_path(sha256)), b"").unwrap();
            symlink(
                symlink_target(sha256.parse().unwrap()),
                path(&install_paths.binary_path(handler)),
            )
            .unwrap();
        }
        fs::write(path(LEGACY_PATH), b"").unwrap();
        symlink(LEGACY_PATH, path(LEGACY_SYMLINK)).unwrap();
        Journal {
            api_version: API_VERSION.to_owned(),
            undo: Vec::new(),
            declares: Vec::new(),
            root: "/etc/containerd/config.toml".to_owned(),
            unit: String::new(),
            distro: String::new(),
            socket: String::new(),
            directory: install_paths.directory,
            restarting: false,
            process: None,
            undone: false,
            expected: None,
            state: state.map_or(FinalState::Remove, |state| {
                FinalState::Write(state.to_json())
            }),
            obsolete_directories: vec!["/opt".to_owned(), "/opt/farrier".to_owned()],
            legacy_cleanup: crate::installer::plan::LegacyCleanup {
                files: vec![LEGACY_PATH.to_owned(), LEGACY_SYMLINK.to_owned()],
                locks: Vec::new(),
                directories: vec!["/opt/kwasm".to_owned(), "/opt/kwasm/bin".to_owned()],
            },
            prove: BTreeSet::new(),
            leaving: BTreeMap::from([
                ("a".to_owned(), owned(None, Some(A))),
                ("b".to_owned(), owned(None, Some(B))),
                ("k".to_owned(), owned(Some(LEGACY_PATH), Some(K))),
            ]),
        }
    }

    fn reserving() -> State {
        let reserved = ["a", "b"].map(|name| (name.to_owned(), owned(None, None)));
        State {
            handlers: reserved.into(),
            ..State::default()
        }
    }

    /// Ends the change. Returns the reports, the state on disk and the presence of each binary.
    fn end(
        root: &Path,
        state: Option<&State>,
        in_use: &InUse,
    ) -> (Vec<HandlerReport>, State, [bool; 4]) {
        let host = HostRoot::open(root).unwrap();
        let mut journal = leaving(root, state);
        let reports = retain_in_use(&host, &mut journal, in_use).unwrap();
        commit(&host, &journal).unwrap();
        let text = host.read_text(STATE_FILE, STATE_LIMIT).unwrap();
        // From here on, the next run finishes the change of a killed run.
        assert!(journal.is_committed(text.as_deref()));
        finish(&host, &journal, in_use).unwrap();
        let text = host.read_text(STATE_FILE, STATE_LIMIT).unwrap();
        let managed = ["a", "b"].map(|name| format!("/opt/farrier/bin/containerd-shim-{name}"));
        let [a, b] = managed;
        let there = [a, b, LEGACY_PATH.to_owned(), LEGACY_SYMLINK.to_owned()]
            .map(|path| host.exists(&path).unwrap());
        (reports, State::from_json(text.as_deref()).unwrap(), there)
    }

    fn used(handlers: &[&str]) -> InUse {
        let pod = |handler: &str, name: &str| EndingPod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            handler: handler.to_owned(),
        };
        let pods = handlers.iter().map(|handler| {
            let pods = ["web", "api"].map(|name| pod(handler, name));
            ((*handler).to_owned(), pods.to_vec())
        });
        InUse::Known {
            pods: pods.collect(),
            orphans: Vec::new(),
        }
    }

    /// Shim processes without a pod run these programs.
    fn outlived(programs: &[&str]) -> InUse {
        let orphans = programs.iter();
        let orphans = orphans.map(|program| Orphan::of_program(100, program));
        InUse::Known {
            pods: BTreeMap::new(),
            orphans: orphans.collect(),
        }
    }

    #[test]
    fn a_binary_that_a_new_pod_uses_is_kept_and_recorded_as_draining() {
        let root = tempfile::tempdir().unwrap();
        let (reports, state, there) = end(root.path(), None, &used(&["a"]));
        assert_eq!(there, [true, false, false, false]);
        assert_eq!(state.draining.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(state.directories, ["/opt", "/opt/farrier"]);
        let [report] = reports.as_slice() else {
            panic!("{reports:?}");
        };
        let reason = "pods still use the handler (2 on this node: default/web, default/api)";
        assert_eq!(report.reason.as_deref(), Some(reason));
        assert!(!report.served && report.handler == "a");
        let store = root.path().join("opt/farrier/store");
        assert!(store.join(A).exists() && !store.join(B).exists());
    }

    #[test]
    fn a_binary_that_a_shim_without_a_pod_runs_is_kept_and_recorded_as_draining() {
        let root = tempfile::tempdir().unwrap();
        let program = format!("/opt/farrier/store/{A}");
        let (reports, state, there) = end(root.path(), None, &outlived(&[&program]));
        assert_eq!(there, [true, false, false, false]);
        assert_eq!(state.draining.keys().collect::<Vec<_>>(), ["a"]);
        let [report] = reports.as_slice() else {
            panic!("{reports:?}");
        };
        let reason = "1 shim process without a pod still runs the binary of the handler: PID 100";
        assert_eq!(report.reason.as_deref(), Some(reason));
        assert!(report.remedy.as_deref().unwrap().contains("--end-orphans"));
    }

    #[rstest]
    #[case::pods(used(&["k"]))]
    #[case::a_shim_without_a_pod(outlived(&[LEGACY_PATH]))]
    fn a_legacy_binary_in_use_is_kept_with_its_symlink(#[case] in_use: InUse) {
        let root = tempfile::tempdir().unwrap();
        let (_, state, there) = end(root.path(), None, &in_use);
        assert_eq!(there, [false, false, true, true]);
        assert_eq!(state.draining["k"].path.as_deref(), Some(LEGACY_PATH));
    }

    #[test]
    fn a_binary_that_a_shim_runs_is_kept_where_containerd_does_not_run() {
        let root = tempfile::tempdir().unwrap();
        let program = format!("/opt/farrier/store/{A}");
        let in_use = InUse::Shims(vec![Orphan::of_program(100, &program)]);
        let (reports, state, there) = end(root.path(), None, &in_use);
        assert_eq!(there, [true, false, false, false]);
        assert_eq!(state.draining.keys().collect::<Vec<_>>(), ["a"]);
        let [report] = reports.as_slice() else {
            panic!("{reports:?}");
        };
        let reason = "shim processes still run the binary of the handler";
        assert_eq!(report.reason.as_deref(), Some(reason));
    }

    #[test]
    fn a_handler_in_use_that_stays_declared_is_recorded_as_installed() {
        let root = tempfile::tempdir().unwrap();
        let (reports, state, there) = end(root.path(), Some(&reserving()), &used(&["a"]));
        assert_eq!(there, [true, false, false, false]);
        assert!(state.draining.is_empty() && reports[0].served);
        assert_eq!(state.handlers["a"].sha256(), A.parse().ok());
        assert_eq!(state.handlers["b"].sha256(), None);
    }

    #[rstest]
    #[case::no_pods(used(&[]), false)]
    #[case::pods_of_another_handler(used(&["c"]), false)]
    #[case::shims_of_another_binary(outlived(&["/opt/farrier/store/other"]), false)]
    #[case::no_shims_without_containerd(InUse::Shims(Vec::new()), false)]
    #[case::unknown_pods(InUse::Unknown, true)]
    fn binaries_are_removed_without_pods_and_kept_if_the_pods_are_unknown(
        #[case] in_use: InUse,
        #[case] stays: bool,
    ) {
        let root = tempfile::tempdir().unwrap();
        let (reports, state, there) = end(root.path(), None, &in_use);
        assert_eq!(there, [stays; 4]);
        assert_eq!((reports.is_empty(), state.is_empty()), (!stays, !stays));
        assert_eq!(root.path().join("opt").exists(), stays);
        assert_eq!(root.path().join("var/lib/farrier").exists(), stays);
    }
}
