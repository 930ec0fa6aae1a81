//! Tables of the decision: a host as it is, a request, and what has to be done.

use std::collections::BTreeSet;

use rstest::rstest;

use super::expected::verify;
use super::*;
use crate::containerd_config::{self, ConfigFiles, SourceFile};
use crate::handoff::{OptionValue, Problem, Sha256Digest, ShimRequest};
use crate::installer::containerd::cri::Served;
use crate::installer::containerd::daemon::{Containerd, Daemon};
use crate::installer::distro::{Evidence, detect};
use crate::installer::inspect::legacy::{Legacy, LegacyBinary, LegacyHandler};
use crate::installer::state::InstallPaths;

const CONFIG: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
const DIGEST: Sha256Digest = Sha256Digest::from_bytes([0xaa; 32]);
/// The binary of an upgrade.
const OTHER_DIGEST: Sha256Digest = Sha256Digest::from_bytes([0xbb; 32]);

fn install_paths() -> InstallPaths {
    InstallPaths {
        directory: "/opt/farrier".to_owned(),
    }
}

/// A node whose containerd is well and carries nothing of ours.
pub(in crate::installer) fn node() -> HostFacts {
    HostFacts {
        distro: detect(&Evidence::default(), |_| false),
        containerd: Containerd::Live(Daemon {
            process: (1, 1),
            program: "/usr/bin/containerd".to_owned(),
            config: None,
            address: None,
            unit: None,
        }),
        program: Some("/usr/bin/containerd".to_owned()),
        version: "1.7.35".parse().ok(),
        config_files: ConfigFiles {
            root: SourceFile {
                path: "/etc/containerd/config.toml".to_owned(),
                text: Some(CONFIG.to_owned()),
            },
            imported: Vec::new(),
        },
        sources: Vec::new(),
        orphaned_config: None,
        no_version: Problem::new("nothing was asked", None),
        release: Err(Problem::new("nothing was asked", None)),
        obstacle: None,
        dump: Ok(CONFIG.to_owned()),
        missing_prerequisite: None,
        served: Ok(served(&[])),
        in_use: BTreeMap::new(),
        kill_mode: Ok("process".to_owned()),
        unreachable: None,
        state: State::default(),
        install_paths: install_paths(),
        binaries: BTreeMap::new(),
        stored: BTreeSet::new(),
        damaged: BTreeSet::new(),
        legacy: Legacy::default(),
        missing_directories: BTreeMap::new(),
        machine_id: String::new(),
        boot_id: String::new(),
    }
}

fn served(managed: &[&str]) -> Served {
    let runc = ("runc".to_owned(), "io.containerd.runc.v2".to_owned());
    let managed = managed
        .iter()
        .map(|name| ((*name).to_owned(), install_paths().binary_path(name)));
    Served {
        ready: true,
        default: "runc".to_owned(),
        handlers: managed.chain([runc]).collect(),
        options: BTreeMap::new(),
    }
}

pub(in crate::installer) fn goal(shims: &[&str]) -> Goal {
    let shim = |name: &&str| ShimRequest {
        name: (*name).to_owned(),
        handlers: vec![(*name).to_owned()],
        location: "https://example.org/a.tar.gz".to_owned(),
        sha256: None,
        binary_sha256: None,
        binary: None,
        options: BTreeMap::new(),
        present: None,
    };
    let candidate = |name: &&str| ((*name).to_owned(), Ok(DIGEST));
    Goal {
        owner: Owner::Cluster,
        shims: shims.iter().map(shim).collect(),
        reserve: Vec::new(),
        reserve_options: BTreeMap::new(),
        scope: Scope::Owner,
        binaries: shims.iter().map(candidate).collect(),
        digest: Some(Sha256Digest::of(b"request")),
        allow_pod_restarts: false,
    }
}

/// The node after `plan` was carried out.
pub(in crate::installer) fn after(mut facts: HostFacts, plan: HostPlan) -> HostFacts {
    if let Some(change) = plan.config.into_iter().next() {
        facts.config_files.root.text.clone_from(&change.after);
        facts.dump = Ok(change.after.unwrap_or_default());
    }
    let names: Vec<&str> = plan
        .declared
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    facts.served = Ok(served(&names));
    facts.stored.extend(plan.store);
    for (path, sha256) in plan.symlinks {
        let name = path.rsplit_once('/').unwrap_or_default().1.to_owned();
        facts.binaries.insert(name, sha256);
    }
    match plan.state {
        StateAfter::Write(state) => facts.state = *state,
        StateAfter::Remove => facts.state = State::default(),
        StateAfter::Keep => {}
    }
    facts
}

/// The state file that a plan writes.
fn written(plan: &HostPlan) -> &State {
    match &plan.state {
        StateAfter::Write(state) => state,
        kept => panic!("{kept:?}"),
    }
}

/// The node once it carries these shims.
pub(in crate::installer) fn carrying(shims: &[&str]) -> HostFacts {
    let facts = node();
    let plan = decide(&facts, &goal(shims)).unwrap();
    after(facts, plan)
}

#[test]
fn a_node_restarts_containerd_once_whatever_shims_of_a_cluster_come_and_go() {
    let with = |shims: &[&str], reserve: &[&str]| Goal {
        reserve: reserve.iter().map(ToString::to_string).collect(),
        ..goal(shims)
    };
    let mut facts = node();
    let mut restarts = 0;
    for goal in [
        with(&["a"], &["a", "b"]),
        // A Shim that nobody knew is reserved by the next restart, and costs none by itself.
        with(&["a"], &["a", "b", "c"]),
        with(&["a", "b"], &["a", "b", "c"]),
        with(&["b"], &["a", "b", "c"]),
        with(&["a"], &["a", "b", "c"]),
    ] {
        let plan = decide(&facts, &goal).unwrap();
        restarts += usize::from(plan.restart);
        facts = after(facts, plan);
    }
    assert_eq!(restarts, 1);
    assert!(!facts.state.handlers.contains_key("c"));
    let plan = decide(&facts, &with(&["a", "c"], &["a", "b", "c", "d"])).unwrap();
    assert!(plan.restart);
    let facts = after(facts, plan);
    let names: Vec<&String> = facts.state.handlers.keys().collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn what_is_reserved_with_its_options_costs_no_restart_later() {
    let options = BTreeMap::from([("SystemdCgroup".to_owned(), OptionValue::Boolean(true))]);
    let mut first = goal(&["a"]);
    first.reserve = vec!["b".to_owned()];
    first.reserve_options = BTreeMap::from([("b".to_owned(), options.clone())]);
    let facts = node();
    let plan = decide(&facts, &first).unwrap();
    let mut facts = after(facts, plan);
    facts.served.as_mut().unwrap().options =
        BTreeMap::from([("b".to_owned(), OptionValue::to_toml(&options))]);
    let mut second = goal(&["a", "b"]);
    second.shims[1].options = options;
    let plan = decide(&facts, &second).unwrap();
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
}

#[test]
fn the_first_handler_costs_one_restart_and_a_second_run_nothing() {
    let facts = node();
    let plan = decide(&facts, &goal(&["a"])).unwrap();
    assert!(plan.restart && !plan.config.is_empty() && plan.store.contains(&DIGEST));
    let again = decide(&after(facts, plan), &goal(&["a"])).unwrap();
    assert!(again.is_empty(), "{again:?}");
    assert!(again.handlers[0].served);
}

#[test]
fn a_daemon_that_did_not_load_what_is_declared_is_restarted() {
    let mut facts = carrying(&["a"]);
    facts.served = Ok(served(&[]));
    let plan = decide(&facts, &goal(&["a"])).unwrap();
    assert!(plan.restart && plan.config.is_empty());
}

#[rstest]
#[case::added(|facts: &mut HostFacts| facts.dump = Ok(format!("{CONFIG}[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nruntime_type = 'kata'\n")), "handler kata")]
#[case::taken_away(|facts: &mut HostFacts| { facts.served.as_mut().unwrap().handlers.insert("kata".to_owned(), "kata".to_owned()); }, "handler kata")]
#[case::another_type(|facts: &mut HostFacts| facts.dump = Ok(CONFIG.replace("runc.v2", "runc.v1")), "handler runc")]
#[case::another_option(|facts: &mut HostFacts| facts.dump = Ok(format!("{CONFIG}options.SystemdCgroup = true\n")), "handler runc")]
#[case::another_default(|facts: &mut HostFacts| facts.served.as_mut().unwrap().default = "kata".to_owned(), "default runtime")]
fn what_somebody_wrote_and_never_loaded_does_not_go_live_with_us(
    #[case] edit: impl Fn(&mut HostFacts),
    #[case] what: &str,
) {
    let mut facts = node();
    edit(&mut facts);
    let error = decide(&facts, &goal(&["a"])).unwrap_err().to_string();
    assert!(error.contains(what), "{error}");
    // What restarts nothing puts nothing live.
    let mut facts = carrying(&["a"]);
    edit(&mut facts);
    let mut upgrade = goal(&["a"]);
    let candidate = Ok(OTHER_DIGEST);
    upgrade.binaries.insert("a".to_owned(), candidate);
    facts.config_files.root.text = carrying(&["a"]).config_files.root.text;
    assert!(!decide(&facts, &upgrade).unwrap().restart);
}

#[test]
fn a_host_that_lacks_what_containerd_needs_is_not_restarted() {
    let mut facts = node();
    facts.missing_prerequisite = Some("no /spec.json".to_owned());
    let error = decide(&facts, &goal(&["a"])).unwrap_err().to_string();
    assert!(error.contains("no /spec.json"), "{error}");
    assert!(decide(&facts, &goal(&[])).unwrap().is_empty());
}

#[test]
fn a_handler_of_ours_that_only_the_running_containerd_knows_leaves_with_a_restart() {
    let mut facts = node();
    facts.served = Ok(served(&["a"]));
    let plan = decide(&facts, &goal(&["b"])).unwrap();
    assert!(plan.restart && plan.managed.contains("a"));
    assert!(plan.declared.iter().all(|handler| handler.name == "b"));
}

#[test]
fn a_handler_that_pods_use_stays_and_is_reported() {
    let mut facts = carrying(&["a", "b"]);
    facts.in_use.insert("a".to_owned(), 2);
    let plan = decide(&facts, &goal(&[])).unwrap();
    assert!(!plan.restart);
    assert_eq!(plan.obsolete_files, [install_paths().binary_path("b")]);
    let [report] = plan.handlers.as_slice() else {
        panic!("{:?}", plan.handlers);
    };
    assert!(report.served && report.handler == "a" && report.reason.is_some());
    facts.in_use.clear();
    let plan = decide(&facts, &goal(&[])).unwrap();
    assert!(plan.restart && plan.state == StateAfter::Remove);
    assert_eq!(plan.config[0].after.as_deref(), Some(CONFIG));
}

#[rstest]
#[case::of_the_same_owner(Owner::Cluster, 1)]
#[case::of_somebody_else(Owner::Local, 0)]
fn a_damaged_binary_that_nobody_brings_is_reported_and_in_nobody_s_way(
    #[case] owner: Owner,
    #[case] reports: usize,
    #[values(false, true)] is_there: bool,
) {
    let mut facts = carrying(&["a"]);
    facts.state.handlers.get_mut("a").unwrap().owner = owner;
    facts.stored.clear();
    if is_there {
        facts.damaged.insert(DIGEST.to_string());
    }
    let mut goal = goal(&["b"]);
    goal.scope = Scope::Nothing;
    goal.binaries.insert("b".to_owned(), Ok(OTHER_DIGEST));
    let plan = decide(&facts, &goal).unwrap();
    assert_eq!(plan.store, BTreeSet::from([OTHER_DIGEST]));
    assert_eq!(
        plan.symlinks.keys().collect::<Vec<_>>(),
        [&install_paths().binary_path("b")]
    );
    assert!(plan.obsolete_files.is_empty() && written(&plan).handlers.contains_key("a"));
    let reported = plan.handlers.iter().filter(|report| report.handler == "a");
    let reported: Vec<bool> = reported.map(|report| report.served).collect();
    assert_eq!(reported, vec![false; reports]);
    assert_eq!(plan.notes.len(), 1 - reports, "{:?}", plan.notes);
}

#[test]
fn a_binary_whose_handler_left_while_a_pod_came_goes_when_the_pod_has_gone() {
    let mut facts = node();
    let symlink = install_paths().binary_path("a");
    let name = symlink.rsplit_once('/').unwrap().1.to_owned();
    facts.binaries.insert(name, DIGEST);
    facts.stored.insert(DIGEST);
    facts.in_use.insert("a".to_owned(), 1);
    assert!(decide(&facts, &goal(&[])).unwrap().is_empty());
    facts.in_use.clear();
    let plan = decide(&facts, &goal(&[])).unwrap();
    assert_eq!(
        plan.obsolete_files,
        [symlink, install_paths().store_path(DIGEST)]
    );
    assert!(!plan.restart);
}

#[test]
fn what_a_pod_took_up_while_it_left_is_reported_until_the_pod_has_gone() {
    let mut facts = carrying(&["a"]);
    let draining = std::mem::take(&mut facts.state.handlers);
    facts.state.draining = draining;
    facts.config_files.root.text = Some(CONFIG.to_owned());
    facts.dump = Ok(CONFIG.to_owned());
    facts.served = Ok(served(&[]));
    facts.in_use.insert("a".to_owned(), 1);
    let mut all = goal(&[]);
    all.scope = Scope::Everything;
    all.digest = Some(Sha256Digest::of(b"request"));
    let plan = decide(&facts, &all).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    let [report] = plan.handlers.as_slice() else {
        panic!("{:?}", plan.handlers);
    };
    assert!(!report.served && report.reason.is_some());
    let back = decide(&facts, &goal(&["a"])).unwrap();
    let state = written(&back);
    assert!(back.restart && state.draining.is_empty() && state.handlers.contains_key("a"));
    facts.in_use.clear();
    let plan = decide(&facts, &all).unwrap();
    assert!(plan.state == StateAfter::Remove && !plan.restart);
    let symlink = install_paths().binary_path("a");
    assert_eq!(
        plan.obsolete_files,
        [symlink, install_paths().store_path(DIGEST)]
    );
}

#[test]
fn a_predecessor_s_binary_that_a_pod_took_up_late_leaves_with_all_that_came_with_it() {
    let mut facts = node_with_legacy_handler();
    let mut all = goal(&[]);
    all.scope = Scope::Everything;
    let path = facts.legacy.handlers["k"].declared.path.clone();
    let symlinks = vec!["/usr/local/bin/containerd-shim-k-v1".to_owned()];
    facts.legacy.symlinks.insert(path.clone(), symlinks.clone());
    let first = decide(&facts, &all).unwrap();
    // Now it is declared no more, and the state file alone knows it.
    facts.state.draining = first.leaving.clone();
    assert_eq!(facts.state.draining["k"].owner, all.owner);
    facts.legacy.handlers.clear();
    facts.config_files.root.text = Some(CONFIG.to_owned());
    facts.dump = Ok(CONFIG.to_owned());
    facts.served = Ok(served(&[]));
    facts.in_use.insert("k".to_owned(), 1);
    let used = decide(&facts, &all).unwrap();
    assert!(used.legacy_cleanup.is_empty() && used.state != StateAfter::Remove);
    facts.in_use.clear();
    let plan = decide(&facts, &all).unwrap();
    assert!(plan.state == StateAfter::Remove);
    assert_eq!(plan.legacy_cleanup.files, [vec![path], symlinks].concat());
    assert_eq!(plan.legacy_cleanup, first.legacy_cleanup);
}

#[test]
fn options_wait_for_a_containerd_that_hands_them_over() {
    let mut facts = node();
    facts.version = "1.6.36".parse().ok();
    let mut goal = goal(&["a"]);
    let options = &mut goal.shims[0].options;
    options.insert("SystemdCgroup".to_owned(), OptionValue::Boolean(true));
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.declared[0].options.is_empty());
    assert!(plan.notes[0].contains("handler a"), "{:?}", plan.notes);
    let mut facts = after(facts, plan);
    assert!(decide(&facts, &goal).unwrap().is_empty());
    facts.version = "1.7.0".parse().ok();
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.restart && plan.notes.is_empty());
    assert_eq!(plan.declared[0].options.len(), 1);
}

#[rstest]
#[case::pods_would_end(|facts: &mut HostFacts| facts.kill_mode = Ok("control-group".to_owned()), "KillMode")]
#[case::systemd_is_silent(|facts: &mut HostFacts| facts.kill_mode = Err(Problem::new("no bus", None)), "can't be told")]
#[case::no_daemon(
    |facts: &mut HostFacts| facts.containerd = Containerd::NotFound { refused: Vec::new() },
    "no containerd runs"
)]
#[case::down_before(|facts: &mut HostFacts| facts.served = Err(Problem::new("no CRI", None)), "before any change")]
#[case::not_ready(|facts: &mut HostFacts| facts.served = Ok(Served::default()), "not ready")]
#[case::refused_before(|facts: &mut HostFacts| facts.dump = Err(Problem::new("toml", None)), "present configuration")]
#[case::no_version(|facts: &mut HostFacts| facts.version = None, "release")]
#[case::obstacle(|facts: &mut HostFacts| facts.obstacle = Some(Problem::new("it is read-only", None)), "read-only")]
fn a_host_that_was_not_well_before_is_left_alone(
    #[case] spoil: impl Fn(&mut HostFacts),
    #[case] reason: &str,
) {
    let mut facts = node();
    spoil(&mut facts);
    let error = decide(&facts, &goal(&["a"])).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

#[test]
fn an_obstacle_is_in_the_way_of_changes_only() {
    let mut facts = carrying(&["a"]);
    facts.obstacle = Some(Problem::new("it is read-only", None));
    assert!(decide(&facts, &goal(&["a"])).unwrap().is_empty());
    assert!(decide(&facts, &goal(&["b"])).is_err());
}

#[test]
fn a_binary_alone_is_swapped_even_where_a_restart_is_forbidden() {
    let mut facts = carrying(&["a"]);
    facts.kill_mode = Ok("mixed".to_owned());
    let mut upgrade = goal(&["a"]);
    upgrade.binaries.insert("a".to_owned(), Ok(OTHER_DIGEST));
    let plan = decide(&facts, &upgrade).unwrap();
    assert!(!plan.restart && plan.config.is_empty());
    assert_eq!(
        plan.symlinks[&install_paths().binary_path("a")],
        OTHER_DIGEST
    );
}

/// The node as KWasm left it: handler `k`, declared and served, whose binary is [`DIGEST`].
fn node_with_legacy_handler() -> HostFacts {
    let mut facts = node();
    let path = "/opt/kwasm/bin/containerd-shim-k-v1".to_owned();
    let text = format!(
        "{CONFIG}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.k]\n    runtime_type = \"{path}\"\n\n"
    );
    let declared = containerd_config::legacy_handlers("", &text).unwrap();
    let handler = LegacyHandler {
        owner: Owner::Kwasm,
        file: facts.config_files.root.path.clone(),
        declared: declared["k"].clone(),
    };
    facts.legacy.handlers.insert("k".to_owned(), handler);
    let legacy_binary = LegacyBinary {
        sha256: DIGEST,
        is_symlink: false,
        verified: None,
    };
    facts.legacy.binaries.insert(path.clone(), legacy_binary);
    facts.config_files.root.text = Some(text.clone());
    facts.dump = Ok(text);
    let mut now = served(&[]);
    now.handlers.insert("k".to_owned(), path);
    facts.served = Ok(now);
    facts
}

#[rstest]
#[case::the_same_binary(DIGEST, 0)]
#[case::another_binary(OTHER_DIGEST, 1)]
fn a_take_over_restarts_nothing(#[case] sha256: Sha256Digest, #[case] symlinks: usize) {
    let mut goal = goal(&["k"]);
    goal.binaries.insert("k".to_owned(), Ok(sha256));
    let plan = decide(&node_with_legacy_handler(), &goal).unwrap();
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
    assert_eq!(
        (plan.symlinks.len(), plan.store.len()),
        (symlinks, symlinks)
    );
    let owned = &written(&plan).handlers["k"];
    assert_eq!(owned.owner, Owner::Cluster);
    assert!(plan.legacy_cleanup.is_empty());
}

#[test]
fn a_predecessor_s_handler_that_was_never_loaded_costs_the_restart_that_it_lacks() {
    let mut facts = node_with_legacy_handler();
    facts.served = Ok(served(&[]));
    let plan = decide(&facts, &goal(&["k"])).unwrap();
    assert!(plan.restart && plan.config.is_empty());
}

#[test]
fn a_predecessor_s_handler_that_pods_use_is_not_removed() {
    let mut facts = node_with_legacy_handler();
    facts.in_use.insert("k".to_owned(), 1);
    let mut all = goal(&[]);
    all.scope = Scope::Everything;
    let plan = decide(&facts, &all).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    assert!(plan.handlers[0].reason.is_some());
    facts.in_use.clear();
    let plan = decide(&facts, &all).unwrap();
    assert!(plan.restart && !plan.legacy_cleanup.is_empty());
    assert_eq!(plan.config[0].after.as_deref(), Some(CONFIG));
}

#[test]
fn a_legacy_handler_without_a_request_is_left_alone() {
    let plan = decide(&node_with_legacy_handler(), &goal(&["a"])).unwrap();
    assert!(plan.restart);
    assert!(!plan.managed.contains("k"));
    let text = plan.config[0].after.clone().unwrap();
    assert!(text.contains("/opt/kwasm/bin/containerd-shim-k-v1"));
    assert!(plan.legacy_cleanup.is_empty());
    assert!(!written(&plan).handlers.contains_key("k"));
}

#[test]
fn pods_are_ended_only_by_whoever_accepts_that() {
    let mut facts = node();
    facts.kill_mode = Ok("control-group".to_owned());
    let mut goal = goal(&["a"]);
    let error = decide(&facts, &goal).unwrap_err();
    let help = error.help().unwrap();
    assert!(help.contains("--allow-pod-restarts"), "{help}");
    goal.allow_pod_restarts = true;
    assert!(decide(&facts, &goal).unwrap().restart);
    // A leave for that starts no service manager.
    facts.kill_mode = Err(Problem::new("no bus", None));
    assert!(decide(&facts, &goal).is_err());
}

#[test]
fn a_containerd_that_nobody_here_can_restart_is_left_alone_whatever_is_accepted() {
    let mut facts = node();
    facts.unreachable = Some(Problem::new("set job.hostPID", None));
    let mut goal = goal(&["a"]);
    goal.allow_pod_restarts = true;
    let error = decide(&facts, &goal).unwrap_err().to_string();
    assert_eq!(error, "set job.hostPID");
    // What needs no restart needs nobody who could.
    facts.unreachable = None;
    let mut facts = after(facts, decide(&node(), &goal).unwrap());
    facts.unreachable = Some(Problem::new("set job.hostPID", None));
    assert!(decide(&facts, &goal).unwrap().is_empty());
}

#[rstest]
#[case::stock("", 0)]
#[case::cos("ID=cos\n", 1)]
fn a_change_that_the_next_boot_takes_back_says_so(
    #[case] os_release: &str,
    #[case] expected: usize,
) {
    let evidence = Evidence {
        os_release,
        ..Evidence::default()
    };
    let mut facts = node();
    facts.distro = detect(&evidence, |_| false);
    let plan = decide(&facts, &goal(&["a"])).unwrap();
    assert_eq!(plan.notes.len(), expected, "{:?}", plan.notes);
}

#[rstest]
#[case::as_declared(served(&["a"]), true)]
#[case::lost(served(&[]), false)]
#[case::not_ready(Served { ready: false, ..served(&["a"]) }, false)]
#[case::other_default(Served { default: "a".to_owned(), ..served(&["a"]) }, false)]
#[case::other_runtime(served(&["a", "theirs"]), false)]
fn only_what_was_declared_may_differ_after_a_restart(#[case] now: Served, #[case] verified: bool) {
    let plan = decide(&node(), &goal(&["a"])).unwrap();
    let result = verify(&served(&[]), &now, &plan.declared, &plan.managed);
    assert_eq!(result.is_ok(), verified, "{result:?}");
}
