//! Tables of decisions: the facts of a host, a goal, and the plan.

use rstest::rstest;

use super::expected::verify;
use super::*;
use crate::handoff::{OnRestart, OptionValue, Problem, Sha256Digest, TakenOver};
use crate::installer::containerd::cri::Served;
use crate::installer::containerd::daemon::Containerd;
use crate::installer::containerd::service::RestartEffect;
use crate::installer::distro::{Evidence, detect};
use crate::installer::fixtures::{
    CONFIG, CONFIG_PATH, DIGEST, HostFactsBuilder, OTHER_DIGEST, goal, host, install_paths,
    remove_everything, served,
};
use crate::installer::inspect::write_targets::WriteTarget;

/// The plan of a host that is asked for these shims.
fn plan_for(facts: &HostFacts, shims: &[&str]) -> HostPlan {
    decide(facts, &goal(shims).build()).unwrap()
}

/// The sentence with which a host refuses `shims`.
fn refusal(facts: &HostFacts, shims: &[&str]) -> String {
    let refused = decide(facts, &goal(shims).build()).unwrap_err();
    refused.to_string()
}

fn after(facts: HostFacts, plan: HostPlan) -> HostFacts {
    HostFactsBuilder::from(facts).after(plan).build()
}

fn systemd_cgroup() -> BTreeMap<String, OptionValue> {
    BTreeMap::from([("SystemdCgroup".to_owned(), OptionValue::Boolean(true))])
}

/// The state file that a plan writes.
fn pods_end(kill_mode: &str) -> RestartEffect {
    RestartEffect::PodsEnd {
        kill_mode: kill_mode.to_owned(),
    }
}

fn written(plan: &HostPlan) -> &State {
    match &plan.state {
        StateAfter::Write(state) => state,
        kept => panic!("{kept:?}"),
    }
}

#[test]
fn installing_and_removing_reserved_shims_restarts_containerd_once() {
    let goal = |shims: &[&str], reserve: &[&str]| goal(shims).reserve(reserve).build();
    let mut facts = host().build();
    let mut restarts = 0;
    for goal in [
        goal(&["a"], &["a", "b"]),
        // A new Shim is reserved by the next restart, and causes none by itself.
        goal(&["a"], &["a", "b", "c"]),
        goal(&["a", "b"], &["a", "b", "c"]),
        goal(&["b"], &["a", "b", "c"]),
        goal(&["a"], &["a", "b", "c"]),
    ] {
        let plan = decide(&facts, &goal).unwrap();
        restarts += usize::from(plan.restart);
        facts = after(facts, plan);
    }
    assert_eq!(restarts, 1);
    assert!(!facts.state.handlers.contains_key("c"));
    let plan = decide(&facts, &goal(&["a", "c"], &["a", "b", "c", "d"])).unwrap();
    assert!(plan.restart);
    let facts = after(facts, plan);
    let names: Vec<&String> = facts.state.handlers.keys().collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn installing_a_handler_that_was_reserved_with_its_options_restarts_nothing() {
    let options = systemd_cgroup();
    let first = goal(&["a"]).reserve(&["b"]).options("b", &options).build();
    let facts = host().build();
    let plan = decide(&facts, &first).unwrap();
    let mut facts = after(facts, plan);
    facts.served.as_mut().unwrap().options =
        BTreeMap::from([("b".to_owned(), OptionValue::to_toml(&options))]);
    let second = goal(&["a", "b"]).options("b", &options).build();
    let plan = decide(&facts, &second).unwrap();
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
}

#[test]
fn the_first_install_restarts_containerd_and_a_second_one_changes_nothing() {
    let facts = host().build();
    let plan = plan_for(&facts, &["a"]);
    assert!(plan.restart && !plan.config.is_empty() && plan.store.contains(&DIGEST));
    let again = plan_for(&after(facts, plan), &["a"]);
    assert!(again.is_empty(), "{again:?}");
    assert!(again.handlers[0].served);
}

#[test]
fn a_containerd_that_does_not_serve_a_declared_handler_is_restarted() {
    let mut facts = host().installed(&["a"]).build();
    facts.served = Ok(served(&[]));
    let plan = plan_for(&facts, &["a"]);
    assert!(plan.restart && plan.config.is_empty());
}

#[rstest]
#[case::added_handler(|facts: &mut HostFacts| facts.dump = Ok(format!("{CONFIG}[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nruntime_type = 'kata'\n")), "handler kata")]
#[case::removed_handler(|facts: &mut HostFacts| { facts.served.as_mut().unwrap().handlers.insert("kata".to_owned(), "kata".to_owned()); }, "handler kata")]
#[case::changed_type(|facts: &mut HostFacts| facts.dump = Ok(CONFIG.replace("runc.v2", "runc.v1")), "handler runc")]
#[case::changed_option(|facts: &mut HostFacts| facts.dump = Ok(format!("{CONFIG}options.SystemdCgroup = true\n")), "handler runc")]
#[case::changed_default(|facts: &mut HostFacts| facts.served.as_mut().unwrap().default = "kata".to_owned(), "default runtime")]
fn a_pending_change_of_others_refuses_a_restart_and_permits_an_upgrade(
    #[case] edit: impl Fn(&mut HostFacts),
    #[case] what: &str,
) {
    let error = refusal(&host().with(&edit).build(), &["a"]);
    assert!(error.contains(what), "{error}");
    let installed = host().installed(&["a"]).build();
    let config = installed.config_files.root.text.clone();
    let mut facts = HostFactsBuilder::from(installed).with(&edit).build();
    facts.config_files.root.text = config;
    let upgrade = goal(&["a"]).binary("a", OTHER_DIGEST).build();
    assert!(!decide(&facts, &upgrade).unwrap().restart);
}

#[test]
fn a_missing_prerequisite_of_containerd_refuses_a_restart() {
    let mut facts = host().build();
    facts.missing_prerequisite = Some("no /spec.json".to_owned());
    let error = refusal(&facts, &["a"]);
    assert!(error.contains("no /spec.json"), "{error}");
    assert!(plan_for(&facts, &[]).is_empty());
}

#[test]
fn a_managed_handler_that_is_served_and_not_declared_is_removed_by_a_restart() {
    let plan = plan_for(&host().serving(CONFIG, &["a"]).build(), &["b"]);
    assert!(plan.restart && plan.managed.contains("a"));
    assert!(plan.declared.iter().all(|handler| handler.name == "b"));
}

#[test]
fn a_handler_in_use_is_kept_and_reported() {
    let mut facts = host().installed(&["a", "b"]).in_use("a", 2).build();
    let plan = plan_for(&facts, &[]);
    assert!(!plan.restart);
    assert_eq!(plan.obsolete_files, [install_paths().binary_path("b")]);
    let [report] = plan.handlers.as_slice() else {
        panic!("{:?}", plan.handlers);
    };
    assert!(report.served && report.handler == "a" && report.reason.is_some());
    facts.in_use.clear();
    let plan = plan_for(&facts, &[]);
    assert!(plan.restart && plan.state == StateAfter::Remove);
    assert_eq!(plan.config[0].after.as_deref(), Some(CONFIG));
}

#[test]
fn a_binary_that_a_shim_without_a_pod_runs_is_kept_and_reported() {
    let program = install_paths().store_path(DIGEST);
    let mut facts = host().installed(&["a"]).orphans(&[&program]).build();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    let [report] = plan.handlers.as_slice() else {
        panic!("{:?}", plan.handlers);
    };
    let reason = report.reason.as_deref().unwrap();
    assert!(
        report.served && reason.contains("1 shim process without a pod still runs"),
        "{reason}"
    );
    assert!(report.remedy.as_deref().unwrap().contains("--end-orphans"));
    assert_eq!(plan.notes, [""; 0]);
    facts.state.draining = std::mem::take(&mut facts.state.handlers);
    let facts = HostFactsBuilder::from(facts).serving(CONFIG, &[]).build();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.is_empty() && plan.handlers.len() == 1, "{plan:?}");
}

#[rstest]
#[case::after_a_removal(host().installed(&["a"]))]
#[case::on_a_host_without_farrier(host())]
fn a_shim_without_a_pod_that_runs_a_former_binary_is_in_a_note(#[case] host: HostFactsBuilder) {
    let former = install_paths().store_path(OTHER_DIGEST);
    let facts = host.orphans(&[&former]).build();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.handlers.is_empty(), "{plan:?}");
    let note = "1 shim process without a pod still runs a binary of Farrier: PID 100 since";
    let mut notes = plan.notes.iter();
    let note = notes.find(|it| it.starts_with(note)).unwrap();
    assert!(note.contains("`farrier doctor --end-orphans`"), "{note}");
}

#[rstest]
#[case::of_the_same_owner(Owner::Cluster, 1)]
#[case::of_another_owner(Owner::Local, 0)]
fn a_damaged_or_missing_binary_of_one_shim_blocks_no_install_of_another(
    #[case] owner: Owner,
    #[case] reports: usize,
    #[values(false, true)] is_there: bool,
) {
    let mut facts = host().installed(&["a"]).build();
    facts.state.handlers.get_mut("a").unwrap().owner = owner;
    facts.stored.clear();
    if is_there {
        facts.damaged.insert(DIGEST.to_string());
    }
    let goal = goal(&["b"])
        .binary("b", OTHER_DIGEST)
        .scope(Scope::Nothing)
        .build();
    let plan = decide(&facts, &goal).unwrap();
    assert_eq!(plan.store, BTreeSet::from([OTHER_DIGEST]));
    let symlink = install_paths().binary_path("b");
    assert_eq!(plan.symlinks.keys().collect::<Vec<_>>(), [&symlink]);
    assert!(plan.obsolete_files.is_empty() && written(&plan).handlers.contains_key("a"));
    let reported = plan.handlers.iter().filter(|report| report.handler == "a");
    let reported: Vec<bool> = reported.map(|report| report.served).collect();
    assert_eq!(reported, vec![false; reports]);
    assert_eq!(plan.notes.len(), 1 - reports, "{:?}", plan.notes);
}

#[test]
fn a_stored_binary_that_the_state_file_does_not_record_is_stored_anew() {
    let mut facts = host().build();
    facts.stored.insert(DIGEST);
    assert_eq!(plan_for(&facts, &["a"]).store, BTreeSet::from([DIGEST]));
    let facts = host().installed(&["a"]).build();
    assert!(plan_for(&facts, &["a"]).is_empty());
}

#[test]
fn an_undeclared_binary_in_use_is_removed_after_its_pods_ended() {
    let mut facts = host().in_use("a", 1).build();
    let symlink = install_paths().binary_path("a");
    let name = symlink.rsplit_once('/').unwrap().1.to_owned();
    facts.binaries.insert(name, DIGEST);
    facts.stored.insert(DIGEST);
    assert!(plan_for(&facts, &[]).is_empty());
    facts.in_use.clear();
    let plan = plan_for(&facts, &[]);
    assert_eq!(
        plan.obsolete_files,
        [symlink, install_paths().store_path(DIGEST)]
    );
    assert!(!plan.restart);
}

#[test]
fn a_draining_handler_is_reported_until_its_pods_ended() {
    let builder = host().installed(&["a"]).serving(CONFIG, &[]).in_use("a", 1);
    let mut facts = builder.build();
    facts.state.draining = std::mem::take(&mut facts.state.handlers);
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    let [report] = plan.handlers.as_slice() else {
        panic!("{:?}", plan.handlers);
    };
    assert!(!report.served && report.reason.is_some());
    let back = plan_for(&facts, &["a"]);
    let state = written(&back);
    assert!(back.restart && state.draining.is_empty() && state.handlers.contains_key("a"));
    facts.in_use.clear();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.state == StateAfter::Remove && !plan.restart);
    let symlink = install_paths().binary_path("a");
    assert_eq!(
        plan.obsolete_files,
        [symlink, install_paths().store_path(DIGEST)]
    );
}

#[test]
fn a_draining_legacy_binary_is_removed_with_its_symlinks_and_directories() {
    let mut facts = host().kwasm_handler("k").build();
    let goal = remove_everything();
    let path = facts.legacy.handlers["k"].declared.path.clone();
    let symlinks = vec!["/usr/local/bin/containerd-shim-k-v1".to_owned()];
    facts.legacy.symlinks.insert(path.clone(), symlinks.clone());
    let first = decide(&facts, &goal).unwrap();
    // From now on only the state file names the handler.
    facts.state.draining = first.leaving.clone();
    assert_eq!(facts.state.draining["k"].owner, goal.owner);
    facts.legacy.handlers.clear();
    let builder = HostFactsBuilder::from(facts);
    let mut facts = builder.serving(CONFIG, &[]).in_use("k", 1).build();
    let used = decide(&facts, &goal).unwrap();
    assert!(used.legacy_cleanup.is_empty() && used.state != StateAfter::Remove);
    facts.in_use.clear();
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.state == StateAfter::Remove);
    assert_eq!(plan.legacy_cleanup.files, [vec![path], symlinks].concat());
    assert_eq!(plan.legacy_cleanup, first.legacy_cleanup);
}

#[test]
fn options_are_declared_from_containerd_1_7_on() {
    let facts = host().containerd("1.6.36").build();
    let goal = goal(&["a"]).options("a", &systemd_cgroup()).build();
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.declared[0].options.is_empty());
    assert!(plan.notes[0].contains("handler a"), "{:?}", plan.notes);
    let facts = after(facts, plan);
    assert!(decide(&facts, &goal).unwrap().is_empty());
    let facts = HostFactsBuilder::from(facts).containerd("1.7.0").build();
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.restart && plan.notes.is_empty());
    assert_eq!(plan.declared[0].options.len(), 1);
}

#[rstest]
#[case::kill_mode_that_ends_pods(|facts: &mut HostFacts| facts.restart_effect = Ok(pods_end("control-group")), "KillMode")]
#[case::unknown_restart_effect(|facts: &mut HostFacts| facts.restart_effect = Err(Problem::new("no bus", None)), "failed to determine whether pods survive")]
#[case::no_containerd(|facts: &mut HostFacts| facts.containerd = Containerd::NotFound { refused: Vec::new() }, "no containerd runs")]
#[case::no_cri(|facts: &mut HostFacts| facts.served = Err(Problem::new("no CRI", None)), "does not serve: no CRI")]
#[case::not_ready(|facts: &mut HostFacts| facts.served = Ok(Served::default()), "not ready")]
#[case::invalid_configuration(|facts: &mut HostFacts| facts.dump = Err(Problem::new("toml", None)), "present configuration")]
#[case::unknown_release(|facts: &mut HostFacts| facts.version = None, "release")]
#[case::read_only(|facts: &mut HostFacts| facts.obstacle = Some(Problem::new("it is read-only", None)), "read-only")]
fn an_unhealthy_host_is_refused_with_the_reason(
    #[case] spoil: impl Fn(&mut HostFacts),
    #[case] reason: &str,
) {
    let error = refusal(&host().with(spoil).build(), &["a"]);
    assert!(error.contains(reason), "{error}");
}

#[rstest]
#[case::release(|facts: &mut HostFacts, problem| { facts.version = None; facts.no_version = problem; })]
#[case::configuration(|facts: &mut HostFacts, problem| facts.dump = Err(problem))]
#[case::handlers(|facts: &mut HostFacts, problem| facts.served = Err(problem))]
#[case::restart_effect(|facts: &mut HostFacts, problem| facts.restart_effect = Err(problem))]
#[case::obstacle(|facts: &mut HostFacts, problem| facts.obstacle = Some(problem))]
#[case::unreachable(|facts: &mut HostFacts, problem| facts.unreachable = Some(problem))]
fn a_refusal_has_the_help_of_its_cause(#[case] spoil: impl Fn(&mut HostFacts, Problem)) {
    const HELP: &str = "run `chmod go-w /open` on the host";
    let problem = Problem::with_help("/open is writable by every user", HELP);
    let facts = host().with(|facts| spoil(facts, problem.clone())).build();
    let error = decide(&facts, &goal(&["a"]).build()).unwrap_err();
    assert_eq!(error.help().as_deref(), Some(HELP), "{error}");
}

#[test]
fn a_read_only_host_refuses_a_run_only_if_it_changes_something() {
    let mut facts = host().installed(&["a"]).build();
    facts.obstacle = Some(Problem::new("it is read-only", None));
    assert!(plan_for(&facts, &["a"]).is_empty());
    refusal(&facts, &["b"]);
}

#[test]
fn a_file_that_cannot_be_written_refuses_a_change_of_that_file_alone() {
    let mut facts = host().installed(&["a"]).build();
    let target = WriteTarget {
        problem: Some(Problem::new("it is immutable", None)),
        notes: Vec::new(),
    };
    facts.write_targets.insert(CONFIG_PATH.to_owned(), target);
    assert!(plan_for(&facts, &["a"]).is_empty());
    let upgrade = goal(&["a"]).binary("a", OTHER_DIGEST).build();
    assert!(decide(&facts, &upgrade).unwrap().config.is_empty());
    assert_eq!(refusal(&facts, &["b"]), "it is immutable");
    let removal = decide(&facts, &remove_everything()).unwrap_err();
    assert_eq!(removal.to_string(), "it is immutable");
}

#[test]
fn what_a_replaced_file_loses_is_noted_where_it_changes() {
    let mut facts = host().installed(&["a"]).build();
    let target = WriteTarget {
        problem: None,
        notes: vec!["it has another hard link".to_owned()],
    };
    facts.write_targets.insert(CONFIG_PATH.to_owned(), target);
    assert_eq!(plan_for(&facts, &["a"]).notes, [""; 0]);
    let plan = plan_for(&facts, &["b"]);
    assert!(plan.notes.contains(&"it has another hard link".to_owned()));
}

#[test]
fn a_binary_is_upgraded_although_restarts_are_forbidden() {
    let mut facts = host().installed(&["a"]).build();
    facts.restart_effect = Ok(pods_end("mixed"));
    let upgrade = goal(&["a"]).binary("a", OTHER_DIGEST).build();
    let plan = decide(&facts, &upgrade).unwrap();
    assert!(!plan.restart && plan.config.is_empty());
    assert_eq!(
        plan.symlinks[&install_paths().binary_path("a")],
        OTHER_DIGEST
    );
}

#[rstest]
#[case::the_same_binary(DIGEST, 0)]
#[case::another_binary(OTHER_DIGEST, 1)]
fn a_take_over_restarts_nothing(#[case] sha256: Sha256Digest, #[case] symlinks: usize) {
    let goal = goal(&["k"]).binary("k", sha256).build();
    let plan = decide(&host().kwasm_handler("k").build(), &goal).unwrap();
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
fn a_take_over_of_a_handler_that_containerd_does_not_serve_restarts_containerd() {
    let mut facts = host().kwasm_handler("k").build();
    facts.served = Ok(served(&[]));
    let plan = plan_for(&facts, &["k"]);
    assert!(plan.restart && plan.config.is_empty());
}

#[test]
fn a_legacy_handler_in_use_is_not_removed() {
    let mut facts = host().kwasm_handler("k").in_use("k", 1).build();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    assert!(plan.handlers[0].reason.is_some());
    facts.in_use.clear();
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert!(plan.restart && !plan.legacy_cleanup.is_empty());
    assert_eq!(plan.config[0].after.as_deref(), Some(CONFIG));
}

#[test]
fn a_legacy_handler_that_no_request_names_is_left_alone() {
    let plan = plan_for(&host().kwasm_handler("k").build(), &["a"]);
    assert!(plan.restart);
    assert!(!plan.managed.contains("k"));
    let text = plan.config[0].after.clone().unwrap();
    assert!(text.contains("/opt/kwasm/bin/containerd-shim-k-v1"));
    assert!(plan.legacy_cleanup.is_empty());
    assert!(!written(&plan).handlers.contains_key("k"));
}

#[test]
fn a_restart_that_ends_pods_requires_allow_pod_restarts() {
    let mut facts = host().build();
    facts.restart_effect = Ok(pods_end("control-group"));
    let error = decide(&facts, &goal(&["a"]).build()).unwrap_err();
    let help = error.help().unwrap();
    assert!(help.contains("--allow-pod-restarts"), "{help}");
    let allowed = goal(&["a"]).allow_pod_restarts().build();
    assert!(decide(&facts, &allowed).unwrap().restart);
    // The permission starts no service manager.
    facts.restart_effect = Err(Problem::new("no bus", None));
    assert!(decide(&facts, &allowed).is_err());
}

#[rstest]
#[case::refused(OnRestart::Refuse, &[], Some("2 pods"))]
#[case::allowed(OnRestart::Allow, &[], None)]
#[case::allowed_for_one_handler(OnRestart::Refuse, &[("spin", OnRestart::Allow)], Some("1 pod,"))]
#[case::allowed_for_each(OnRestart::Refuse, &[("spin", OnRestart::Allow), ("wasmtime", OnRestart::Allow)], None)]
#[case::the_strictest_counts(OnRestart::Allow, &[("spin", OnRestart::Refuse)], Some("default/spin (handler spin)"))]
fn a_restart_that_ends_pods_of_shims_without_processes_follows_the_policy(
    #[case] default: OnRestart,
    #[case] handlers: &[(&str, OnRestart)],
    #[case] refused: Option<&str>,
) {
    let both = ["spin", "wasmtime"];
    let facts = host().installed(&both).ending(&both).build();
    let goal = || goal(&["a", "spin", "wasmtime"]).restart_policy(default, handlers);
    let of_policy = goal().build();
    match (decide(&facts, &of_policy), refused) {
        (Ok(plan), None) => {
            assert!(plan.restart);
            let note = "a restart of containerd ends 2 pods, because";
            let noted = plan.notes.iter().any(|it| it.starts_with(note));
            assert!(noted, "{:?}", plan.notes);
        }
        (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error}"),
        (plan, _) => panic!("{plan:?}"),
    }
    assert!(decide(&facts, &goal().allow_pod_restarts().build()).is_ok());
}

#[rstest]
#[case::of_others(&[], OnRestart::Refuse, OnRestart::Allow, true)]
#[case::of_others_and_stricter(&[], OnRestart::Allow, OnRestart::Refuse, true)]
#[case::of_farrier(&["kata"], OnRestart::Refuse, OnRestart::Allow, false)]
fn a_policy_counts_only_for_handlers_of_farrier(
    #[case] installed: &[&str],
    #[case] default: OnRestart,
    #[case] of_handler: OnRestart,
    #[case] is_refused: bool,
) {
    let facts = host().installed(installed).ending(&["kata"]).build();
    let shims = [installed, &["a"]].concat();
    let goal = goal(&shims).restart_policy(default, &[("kata", of_handler)]);
    assert_eq!(decide(&facts, &goal.build()).is_err(), is_refused);
}

#[test]
fn a_change_without_a_restart_does_not_wait_for_pods() {
    let facts = host().installed(&["a"]).ending(&["a"]).build();
    let upgrade = goal(&["a"]).binary("a", OTHER_DIGEST).build();
    let plan = decide(&facts, &upgrade).unwrap();
    assert!(!plan.restart && !plan.is_empty());
    assert_eq!(plan.notes, [""; 0]);
}

#[test]
fn unknown_pods_refuse_a_restart_unless_every_pod_may_end() {
    let unknown = |facts: &mut HostFacts| {
        facts.ending_pods = Err(Problem::new("no answer", None));
    };
    let facts = host().with(unknown).build();
    let error = decide(&facts, &goal(&["a"]).build()).unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    let refused = goal(&["a"]).restart_policy(OnRestart::Allow, &[("b", OnRestart::Refuse)]);
    assert!(decide(&facts, &refused.build()).is_err());
    let allowed = goal(&["a"]).restart_policy(OnRestart::Allow, &[]);
    assert!(decide(&facts, &allowed.build()).is_ok());
}

#[test]
fn an_unreachable_service_manager_refuses_a_restart_despite_allow_pod_restarts() {
    let mut facts = host().build();
    facts.unreachable = Some(Problem::new("set job.hostPID", None));
    let goal = goal(&["a"]).allow_pod_restarts().build();
    let error = decide(&facts, &goal).unwrap_err().to_string();
    assert_eq!(error, "set job.hostPID");
    // A plan without a restart needs no service manager.
    let mut facts = host().after(plan_for(&host().build(), &["a"])).build();
    facts.unreachable = Some(Problem::new("set job.hostPID", None));
    assert!(decide(&facts, &goal).unwrap().is_empty());
}

#[rstest]
#[case::an_ordinary_distribution("", 0)]
#[case::container_optimized_os("ID=cos\n", 1)]
fn a_change_that_the_next_boot_reverts_has_a_note(
    #[case] os_release: &str,
    #[case] expected: usize,
) {
    let evidence = Evidence {
        os_release,
        ..Evidence::default()
    };
    let facts = host().distro(detect(&evidence, |_| false)).build();
    let plan = plan_for(&facts, &["a"]);
    assert_eq!(plan.notes.len(), expected, "{:?}", plan.notes);
}

#[rstest]
#[case::as_declared(served(&["a"]), true)]
#[case::not_served(served(&[]), false)]
#[case::not_ready(Served { ready: false, ..served(&["a"]) }, false)]
#[case::another_default(Served { default: "a".to_owned(), ..served(&["a"]) }, false)]
#[case::undeclared_handler(served(&["a", "theirs"]), false)]
fn only_declared_handlers_may_differ_after_a_restart(#[case] now: Served, #[case] verified: bool) {
    let plan = plan_for(&host().build(), &["a"]);
    let result = verify(
        &served(&[]),
        &now,
        &plan.declared,
        &[],
        &plan.managed,
        false,
    );
    assert_eq!(result.is_ok(), verified, "{result:?}");
}

const K3S_ROOT: &str = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
const PROGRAM: &str = "/usr/local/bin/containerd-shim-spin-v2";
const BASE: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
/// What the base template adds for a shim that k3s has found.
const FOUND: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'spin']\nruntime_type = 'io.containerd.spin.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'spin'.options]\nBinaryName = '/usr/local/bin/containerd-shim-spin-v2'\n";

/// A k3s on which Farrier has declared `spin`, and the text of its template. Then k3s has rendered `rendered`.
fn k3s_with_spin(rendered: impl Fn(&str) -> String) -> (HostFacts, String) {
    let k3s = crate::installer::distro::by_id("k3s");
    let facts = host()
        .distro(k3s)
        .containerd("2.1.9")
        .root(K3S_ROOT, Some(BASE));
    let facts = facts.with(|facts| {
        facts.dump = Ok(BASE.to_owned());
        let source = |name: &str| crate::containerd_config::SourceFile {
            path: K3S_ROOT.replace("config.toml", name),
            text: None,
        };
        facts.sources = ["config-v3.toml.tmpl", "config.toml.tmpl"]
            .map(source)
            .into();
    });
    let facts = facts.build();
    let plan = plan_for(&facts, &["spin"]);
    let template = plan.config[0].after.clone().unwrap();
    let facts = HostFactsBuilder::from(facts).after(plan).with(|facts| {
        facts.sources[0].text = Some(template.clone());
        let managed = template.lines().filter(|line| !line.contains("{{"));
        let managed: String = managed.flat_map(|line| [line, "\n"]).collect();
        let text = rendered(&managed);
        facts.config_files.root.text = Some(text.clone());
        facts.dump = Ok(text);
        facts.found_runtimes = [("spin".to_owned(), PROGRAM.to_owned())].into();
    });
    (facts.build(), template)
}

#[test]
fn a_handler_that_k3s_declares_itself_is_reported_and_costs_no_restart() {
    let (mut facts, _) = k3s_with_spin(|_| format!("{BASE}{FOUND}"));
    let now = facts.served.as_mut().unwrap();
    let runtime_type = "io.containerd.spin.v2".to_owned();
    now.handlers.insert("spin".to_owned(), runtime_type);
    let program = crate::containerd_config::Value::String(PROGRAM.to_owned());
    let options = [("BinaryName".to_owned(), program)];
    now.options.insert("spin".to_owned(), options.into());
    let plan = plan_for(&facts, &["spin"]);
    assert!(plan.is_empty(), "{plan:?}");
    let [report] = plan.handlers.as_slice() else {
        panic!("{plan:?}");
    };
    assert!(!report.served);
    let said = report.reason.clone().unwrap();
    assert!(
        said.ends_with(&format!("because it finds {PROGRAM}")),
        "{said}"
    );
    // With a program that k3s has not found yet, the same handler is served until the next start of k3s.
    let (facts, _) = k3s_with_spin(|managed| format!("{BASE}{managed}"));
    let plan = plan_for(&facts, &["spin"]);
    assert!(plan.is_empty() && plan.handlers[0].served, "{plan:?}");
    assert!(plan.notes[0].contains("gives way"), "{:?}", plan.notes);
    let other = decide(&facts, &goal(&["spin", "a"]).build()).unwrap();
    assert!(other.restart, "{other:?}");
}

#[rstest]
#[case::none_runs(Containerd::NotFound { refused: Vec::new() }, true)]
#[case::one_that_is_about_to_end(host().build().containerd, true)]
#[case::an_image(Containerd::Image, false)]
fn a_k3s_that_does_not_start_is_changed_by_its_template(
    #[case] containerd: Containerd,
    #[case] restarts: bool,
) {
    let (mut facts, template) = k3s_with_spin(|managed| format!("{BASE}{FOUND}{managed}"));
    // An administrator removed the actions.
    let lines = template
        .lines()
        .filter(|line| !line.contains("ExtraRuntimes") && *line != "{{ end }}");
    let unguarded: String = lines.flat_map(|line| [line, "\n"]).collect();
    assert_ne!(unguarded, template);
    facts.sources[0].text = Some(unguarded);
    facts.served = Err(Problem::new("no answer", None));
    facts.dump = Err(Problem::new("line 9", None));
    // Without a daemon, its program and release are unknown.
    (facts.version, facts.program) = (None, None);
    facts.containerd = containerd;
    let plan = plan_for(&facts, &["spin"]);
    assert_eq!(plan.config[0].after.as_ref(), Some(&template));
    assert_eq!(plan.restart, restarts, "{plan:?}");
    assert!(plan.handlers[0].reason.as_ref().unwrap().contains(PROGRAM));
    let plan = decide(&facts, &remove_everything()).unwrap();
    assert_eq!(plan.config[0].after, None);
    assert_eq!(plan.restart, restarts, "{plan:?}");
    // The file of a node that serves is the administrator's matter.
    facts.served = Ok(served(&[]));
    assert!(decide(&facts, &remove_everything()).is_err());
}

/// What a host says of these shims: its own handler, the served binary, and whether it waits for pods.
fn told(plan: &HostPlan) -> Vec<(&str, Option<Sha256Digest>, bool)> {
    let told = plan.handlers.iter();
    told.map(|it| (it.handler.as_str(), it.sha256, it.waits_for_pods))
        .collect()
}

#[test]
fn what_needs_no_restart_is_done_beside_a_shim_that_waits_for_pods() {
    let facts = host().installed(&["a", "b"]).ending(&["a"]).build();
    // A new binary, a removal, and a new handler.
    let goal = goal(&["a", "c"]).binary("a", OTHER_DIGEST).build();
    let plan = decide(&facts, &goal).unwrap();
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
    assert_eq!(plan.store, [OTHER_DIGEST].into());
    assert_eq!(
        told(&plan),
        [("a", Some(OTHER_DIGEST), false), ("c", None, true)]
    );
    let waiting = plan.handlers[1].reason.as_deref().unwrap();
    assert!(waiting.contains("default/a (handler a)"), "{waiting}");
    assert!(!plan.handlers[1].served);
    assert_eq!(plan.waits_for.len(), 1);
    let state = written(&plan);
    assert!(state.handlers["b"].is_reserved());
    assert!(!state.handlers.contains_key("c"));
    // The host does not fulfil the request.
    assert_eq!(state.requests, facts.state.requests);
    let facts = after(facts, plan);
    let error = decide(&facts, &goal).unwrap_err();
    assert!(matches!(error, Error::EndsPods(_)), "{error}");
    let facts = HostFactsBuilder::from(facts).ending(&[]).build();
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.restart && plan.waits_for.is_empty());
    assert_eq!(told(&plan).len(), 2);
}

#[test]
fn a_shim_that_waits_for_pods_keeps_its_binary_and_its_options() {
    let facts = host().installed(&["a", "b"]).ending(&["a"]).build();
    let goal = goal(&["a", "b"])
        .options("a", &systemd_cgroup())
        .binary("a", OTHER_DIGEST)
        .binary("b", OTHER_DIGEST)
        .build();
    let plan = decide(&facts, &goal).unwrap();
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
    assert_eq!(
        told(&plan),
        [("a", Some(DIGEST), true), ("b", Some(OTHER_DIGEST), false)]
    );
    assert!(plan.handlers[0].served);
    assert_eq!(
        written(&plan).handlers["a"],
        facts.state.handlers["a"],
        "{plan:?}"
    );
}

#[test]
fn a_take_over_does_not_wait_for_pods() {
    let facts = host().kwasm_handler("spin").ending(&["spin"]).build();
    let plan = plan_for(&facts, &["spin", "c"]);
    assert!(!plan.restart && plan.config.is_empty(), "{plan:?}");
    assert_eq!(
        told(&plan),
        [("spin", Some(DIGEST), false), ("c", None, true)]
    );
    assert_eq!(written(&plan).handlers["spin"].owner, Owner::Cluster);
}

#[rstest]
#[case::a_lost_declaration(|facts: &mut HostFacts| facts.served = Ok(served(&["b"])), &["a", "b"])]
#[case::the_last_handler(|_: &mut HostFacts| (), &[])]
fn a_change_that_is_nothing_without_its_restart_waits_as_a_whole(
    #[case] edit: impl FnOnce(&mut HostFacts),
    #[case] shims: &[&str],
) {
    let facts = host().installed(&["a", "b"]).ending(&["kata"]).with(edit);
    let goal = goal(shims).binary("b", OTHER_DIGEST).build();
    let error = decide(&facts.build(), &goal).unwrap_err();
    assert!(matches!(error, Error::EndsPods(_)), "{error}");
}

#[test]
fn a_shim_that_waits_for_pods_keeps_handlers_that_it_no_longer_names() {
    let facts = host().installed(&["a", "b"]).ending(&["b"]).build();
    let mut goal = goal(&["a", "b"]).binary("b", OTHER_DIGEST).build();
    goal.shims[0].handlers = vec!["a2".to_owned()];
    let plan = decide(&facts, &goal).unwrap();
    assert_eq!(
        told(&plan),
        [("a2", None, true), ("b", Some(OTHER_DIGEST), false)]
    );
    assert_eq!(written(&plan).handlers["a"], facts.state.handlers["a"]);
    assert!(plan.obsolete_files.is_empty(), "{plan:?}");
}

#[test]
fn the_problem_of_another_shim_is_told_beside_a_shim_that_waits_for_pods() {
    let facts = host().installed(&["a"]).ending(&["a"]).build();
    let mut goal = goal(&["a", "b", "c"]).build();
    let problem = Problem::new("the server does not answer", None);
    goal.binaries.insert("b".to_owned(), Err(problem));
    let plan = decide(&facts, &goal).unwrap();
    assert!(plan.is_empty() && plan.waits_for.len() == 1, "{plan:?}");
    assert_eq!(
        told(&plan),
        [
            ("a", Some(DIGEST), false),
            ("b", None, false),
            ("c", None, true)
        ]
    );
}

#[test]
fn a_handler_that_drains_is_not_served_while_its_shim_waits_for_pods() {
    let facts = host().installed(&["b"]).ending(&["b"]).in_use("a", 1);
    let facts = facts.with(|facts| {
        let draining = OwnedHandler {
            shim: "a".to_owned(),
            ..facts.state.handlers["b"].clone()
        };
        facts.state.draining.insert("a".to_owned(), draining);
        let name = "containerd-shim-a".to_owned();
        facts.binaries.insert(name, DIGEST);
    });
    let goal = goal(&["a", "b"]).binary("b", OTHER_DIGEST).build();
    let plan = decide(&facts.build(), &goal).unwrap();
    let of_a = plan.handlers.iter().filter(|it| it.handler == "a");
    let of_a: Vec<_> = of_a.map(|it| (it.served, it.waits_for_pods)).collect();
    assert_eq!(of_a, [(false, true), (false, false)]);
}

#[test]
fn the_command_line_changes_a_handler_of_the_cluster_only_on_request() {
    // The fixture installs as the cluster does.
    let facts = host().installed(&["a"]).build();
    let local = || goal(&["a"]).owner(Owner::Local).binary("a", OTHER_DIGEST);
    let refused = decide(&facts, &local().build()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "handler a belongs to a Shim of the cluster: a"
    );
    assert!(refused.help().unwrap().contains("--take-over"));

    let plan = decide(&facts, &local().take_over().build()).unwrap();
    assert_eq!(written(&plan).handlers["a"].owner, Owner::Local);
    let taken_over = "handler a is taken over from the cluster: its owner is now local";
    assert_eq!(plan.notes[0], taken_over);
    let of_cluster = "this node belongs to a cluster, whose Shims have these handlers: a;";
    assert!(plan.notes[1].starts_with(of_cluster), "{plan:?}");

    let other = goal(&["b"]).owner(Owner::Local).build();
    let plan = decide(&facts, &other).unwrap();
    assert_eq!(written(&plan).handlers["a"], facts.state.handlers["a"]);
    let removal = goal(&[]).owner(Owner::Local).scope(Scope::Everything);
    let plan = decide(&facts, &removal.build()).unwrap();
    assert!(plan.notes[0].starts_with(of_cluster), "{plan:?}");
    // A handler that is only reserved has no binary of the cluster.
    let reserving = decide(&host().build(), &goal(&["b"]).reserve(&["a"]).build()).unwrap();
    decide(&after(host().build(), reserving), &local().build()).unwrap();
}

#[rstest]
#[case::the_same(DIGEST, "", None)]
#[case::another_binary(
    OTHER_DIGEST,
    "",
    Some(format!("its binary SHA-256 {DIGEST} is replaced by SHA-256 {OTHER_DIGEST}"))
)]
#[case::other_options(DIGEST, "X", Some("its options are replaced by those of the Shim".to_owned()))]
fn the_cluster_tells_what_it_takes_over_from_the_command_line(
    #[case] sha256: Sha256Digest,
    #[case] option: &str,
    #[case] replaced: Option<String>,
) {
    let mut facts = host().installed(&["a", "b"]).build();
    for owned in facts.state.handlers.values_mut() {
        owned.owner = Owner::Local;
    }
    let mut goal = goal(&["a"]).binary("a", sha256).build();
    if !option.is_empty() {
        let options = &mut goal.shims[0].options;
        options.insert(option.to_owned(), OptionValue::Boolean(true));
    }
    let plan = decide(&facts, &goal).unwrap();
    let what = replaced.clone();
    let what = what.unwrap_or_else(|| "its binary and its options are the same".to_owned());
    let message = format!(
        "handler a, which the command line installed as shim a, belongs to Shim a of the cluster now: {what}"
    );
    assert!(plan.notes.contains(&message), "{:?}", plan.notes);
    let expected = TakenOver {
        handler: "a".to_owned(),
        replaced: replaced.is_some(),
        message,
    };
    assert_eq!(plan.taken_over, [expected]);
    assert_eq!(written(&plan).handlers["a"].owner, Owner::Cluster);
    // Handlers that no Shim has stay with the command line, and the next run has nothing to tell.
    assert_eq!(written(&plan).handlers["b"].owner, Owner::Local);
    let facts = after(facts, plan);
    assert_eq!(decide(&facts, &goal).unwrap().taken_over, []);
}

#[test]
fn a_sandbox_is_run_once_for_a_binary_and_its_options() {
    let with_proof = |shims: &[&str]| {
        let mut goal = goal(shims).binary("a", DIGEST).build();
        for shim in &mut goal.shims {
            shim.proof = Proof::Sandbox;
        }
        goal
    };
    let facts = host().installed(&["a"]).build();
    assert_eq!(
        decide(&facts, &goal(&["a"]).build()).unwrap().prove,
        [].into()
    );
    // What is served already is proven, too.
    let plan = decide(&facts, &with_proof(&["a"])).unwrap();
    assert_eq!(plan.prove, ["a".to_owned()].into());
    assert!(!plan.restart && plan.config.is_empty());
    let StateAfter::Write(state) = plan.state else {
        panic!("{:?}", plan.state);
    };
    let proven = host().installed(&["a"]).with(|facts| facts.state = *state);
    let proven = proven.build();
    let plan = decide(&proven, &with_proof(&["a"])).unwrap();
    assert_eq!(plan.prove, [].into());
    let mut options = with_proof(&["a"]);
    let value = OptionValue::Boolean(true);
    options.shims[0].options.insert("Option".to_owned(), value);
    let plan = decide(&proven, &options).unwrap();
    assert_eq!(plan.prove, ["a".to_owned()].into());
    let mut upgrade = with_proof(&["a"]);
    upgrade.binaries.insert("a".to_owned(), Ok(OTHER_DIGEST));
    let plan = decide(&proven, &upgrade).unwrap();
    assert_eq!(plan.prove, ["a".to_owned()].into());
    let plan = decide(&proven, &goal(&["a"]).build()).unwrap();
    assert_eq!(plan.prove, [].into());
}
