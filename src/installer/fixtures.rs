//! Builders of facts and goals for the installer's unit tests. No tests.

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd_config::{ConfigFiles, SourceFile, legacy_handlers};
use crate::handoff::{
    EndingPod, OnRestart, OptionValue, Owner, Problem, Proof, RestartPolicy, Sha256Digest,
    ShimRequest,
};
use crate::installer::containerd::cri::{DataDirectories, Network, Served};
use crate::installer::containerd::daemon::{Containerd, Daemon};
use crate::installer::containerd::kubelet::KubeletRuntime;
use crate::installer::containerd::orphans::Orphan;
use crate::installer::containerd::service::RestartEffect;
use crate::installer::distro::{DistroSpec, Evidence, detect};
use crate::installer::host::HostRoot;
use crate::installer::host::cpu::Cpu;
use crate::installer::inspect::HostFacts;
use crate::installer::inspect::legacy::{Legacy, LegacyBinary, LegacyHandler};
use crate::installer::inspect::restart_inputs::RestartInputs;
use crate::installer::plan::{Goal, HostPlan, Scope, decide};
use crate::installer::state::{InstallPaths, State, StateAfter};

/// A host with these files, each a path and a text.
pub fn host_with(files: &[(&str, &str)]) -> (tempfile::TempDir, HostRoot) {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let host = HostRoot::open(directory.path()).unwrap();
    (directory, host)
}

/// The path of the configuration.
pub const CONFIG_PATH: &str = "/etc/containerd/config.toml";
/// A configuration without a handler of Farrier, as containerd prints it, too.
pub const CONFIG: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";
/// The digest of each binary by default.
pub const DIGEST: Sha256Digest = Sha256Digest::from_bytes([0xaa; 32]);
/// The digest of another release of a binary.
pub const OTHER_DIGEST: Sha256Digest = Sha256Digest::from_bytes([0xbb; 32]);

/// The directory of the binaries.
pub fn install_paths() -> InstallPaths {
    InstallPaths {
        directory: "/opt/farrier".to_owned(),
    }
}

/// The answer of a containerd that serves `runc` and these handlers of Farrier.
pub fn served(handlers: &[&str]) -> Served {
    let runc = ("runc".to_owned(), "io.containerd.runc.v2".to_owned());
    let managed = handlers
        .iter()
        .map(|name| ((*name).to_owned(), install_paths().binary_path(name)));
    Served {
        ready: true,
        default: "runc".to_owned(),
        handlers: managed.chain([runc]).collect(),
        options: BTreeMap::new(),
        runtime_paths: BTreeMap::new(),
    }
}

/// A healthy host: containerd 1.7.35 serves [`CONFIG`], and Farrier has never changed it.
pub fn host() -> HostFactsBuilder {
    let program = "/usr/bin/containerd".to_owned();
    HostFactsBuilder(HostFacts {
        distro: detect(&Evidence::default(), |_| false),
        containerd: Containerd::Live(Daemon {
            process: (1, 1),
            program: program.clone(),
            config: Ok(None),
            address: Ok(None),
            names_data: [false; 2],
            unit: None,
        }),
        program: Some(program),
        cpu: Cpu::own(),
        version: None,
        config_files: ConfigFiles {
            root: SourceFile {
                path: CONFIG_PATH.to_owned(),
                text: None,
            },
            imported: Vec::new(),
        },
        sources: Vec::new(),
        snippets: Vec::new(),
        orphaned_config: None,
        no_version: Problem::new("no program was run", None),
        found_runtimes: BTreeMap::new(),
        stopped_unit: None,
        release: Err(Problem::new("no program was run", None)),
        obstacle: None,
        write_targets: BTreeMap::new(),
        unknown_config: None,
        dump: Ok(String::new()),
        untried: None,
        missing_prerequisite: None,
        unstartable: None,
        served: Ok(served(&[])),
        kubelet_runtime: KubeletRuntime::default(),
        data_directories: DataDirectories::default(),
        network: Network::default(),
        other_socket: None,
        in_use: BTreeMap::new(),
        ending_pods: Ok(Vec::new()),
        orphans: Ok(Vec::new()),
        restart_effect: Ok(RestartEffect::PodsSurvive),
        unreachable: None,
        restart_inputs: RestartInputs::default(),
        state: State::default(),
        install_paths: install_paths(),
        binaries: BTreeMap::new(),
        stored: BTreeSet::new(),
        damaged: BTreeSet::new(),
        legacy: Legacy::default(),
        missing_directories: BTreeMap::new(),
        machine_id: String::new(),
        boot_id: String::new(),
    })
    .containerd("1.7.35")
    .serving(CONFIG, &[])
}

/// Facts that differ from those of [`host`].
pub struct HostFactsBuilder(HostFacts);

impl From<HostFacts> for HostFactsBuilder {
    fn from(facts: HostFacts) -> Self {
        Self(facts)
    }
}

impl HostFactsBuilder {
    pub fn build(self) -> HostFacts {
        self.0
    }

    /// Changes any facts.
    pub fn with(mut self, change: impl FnOnce(&mut HostFacts)) -> Self {
        change(&mut self.0);
        self
    }

    pub fn distro(self, distro: &'static DistroSpec) -> Self {
        self.with(|facts| facts.distro = distro)
    }

    /// The release of containerd; "" for an unknown release.
    pub fn containerd(self, release: &str) -> Self {
        self.with(|facts| facts.version = release.parse().ok())
    }

    /// containerd has loaded `config` and serves these handlers of Farrier.
    pub fn serving(self, config: &str, handlers: &[&str]) -> Self {
        self.with(|facts| {
            facts.config_files.root.text = Some(config.to_owned());
            facts.dump = Ok(config.to_owned());
            facts.served = Ok(served(handlers));
        })
    }

    /// The root configuration file.
    pub fn root(self, path: &str, text: Option<&str>) -> Self {
        self.with(|facts| {
            facts.config_files.root = SourceFile {
                path: path.to_owned(),
                text: text.map(str::to_owned),
            };
        })
    }

    /// `pods` pods use `handler`.
    pub fn in_use(self, handler: &str, pods: usize) -> Self {
        self.with(|facts| {
            let pods = (0..pods).map(|number| EndingPod {
                namespace: "default".to_owned(),
                name: format!("{handler}-{number}"),
                uid: format!("uid-of-{handler}-{number}"),
                handler: handler.to_owned(),
            });
            facts.in_use.insert(handler.to_owned(), pods.collect());
        })
    }

    /// Processes of these programs run without a pod. Their PIDs count from 100.
    pub fn orphans(self, programs: &[&str]) -> Self {
        let orphans = (100..).zip(programs);
        let orphans = orphans.map(|(pid, program)| Orphan::of_program(pid, program));
        self.with(|facts| facts.orphans = Ok(orphans.collect()))
    }

    /// A restart of containerd ends a pod of each of these handlers, which is called like its handler.
    pub fn ending(self, handlers: &[&str]) -> Self {
        let pod = |handler: &&str| EndingPod {
            namespace: "default".to_owned(),
            name: (*handler).to_owned(),
            uid: format!("uid of {handler}"),
            handler: (*handler).to_owned(),
        };
        self.with(|facts| facts.ending_pods = Ok(handlers.iter().map(pod).collect()))
    }

    /// `KWasm` installed `handler`, which containerd serves; the binary is [`DIGEST`].
    pub fn kwasm_handler(self, handler: &str) -> Self {
        let path = format!("/opt/kwasm/bin/containerd-shim-{handler}-v1");
        let text = format!(
            "{CONFIG}\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{handler}]\n    runtime_type = \"{path}\"\n\n"
        );
        let handler_of_kwasm = LegacyHandler {
            owner: Owner::Kwasm,
            file: CONFIG_PATH.to_owned(),
            declared: legacy_handlers("", &text).unwrap()[handler].clone(),
        };
        let binary = LegacyBinary {
            sha256: DIGEST,
            is_symlink: false,
            verified: None,
        };
        let mut served = served(&[]);
        served.handlers.insert(handler.to_owned(), path.clone());
        self.serving(&text, &[]).with(|facts| {
            let handlers = &mut facts.legacy.handlers;
            handlers.insert(handler.to_owned(), handler_of_kwasm);
            facts.legacy.binaries.insert(path, binary);
            facts.served = Ok(served);
        })
    }

    /// Farrier has installed these shims.
    pub fn installed(self, shims: &[&str]) -> Self {
        let plan = decide(&self.0, &goal(shims).build()).unwrap();
        self.after(plan)
    }

    /// The host after `plan` was carried out.
    pub fn after(self, plan: HostPlan) -> Self {
        self.with(|facts| {
            if let Some(change) = plan.config.into_iter().next() {
                facts.config_files.root.text.clone_from(&change.after);
                facts.dump = Ok(change.after.unwrap_or_default());
            }
            let declared = plan.declared.iter().map(|handler| handler.name.as_str());
            facts.served = Ok(served(&declared.collect::<Vec<_>>()));
            facts.stored.extend(plan.store);
            let is_left = |name: &str| {
                let mut obsolete = plan.obsolete_files.iter();
                !obsolete.any(|path| path.ends_with(&format!("/{name}")))
            };
            facts.stored.retain(|sha256| is_left(&sha256.to_string()));
            facts.binaries.retain(|name, _| is_left(name));
            for (path, sha256) in plan.symlinks {
                let name = path.rsplit_once('/').unwrap_or_default().1.to_owned();
                facts.binaries.insert(name, sha256);
            }
            match plan.state {
                StateAfter::Write(state) => facts.state = *state,
                StateAfter::Remove => facts.state = State::default(),
                StateAfter::Keep => {}
            }
        })
    }
}

/// The request of a cluster for these shims, each with the handler of its name and the binary [`DIGEST`].
pub fn goal(shims: &[&str]) -> GoalBuilder {
    let shim = |name: &&str| ShimRequest {
        name: (*name).to_owned(),
        handlers: vec![(*name).to_owned()],
        location: "https://example.org/a.tar.gz".to_owned(),
        sha256: None,
        binary_sha256: None,
        binary: None,
        options: BTreeMap::new(),
        keep: false,
        present: None,
        first_binary_sha256: None,
        proof: Proof::None,
    };
    let goal = GoalBuilder(Goal {
        owner: Owner::Cluster,
        shims: shims.iter().map(shim).collect(),
        reserve: Vec::new(),
        reserve_options: BTreeMap::new(),
        scope: Scope::Owner,
        take_over: false,
        binaries: BTreeMap::new(),
        waiting: BTreeSet::new(),
        digest: Some(Sha256Digest::of(b"request")),
        allow_pod_restarts: false,
        restart_policy: RestartPolicy::default(),
        accept_pending_changes: false,
    });
    shims
        .iter()
        .fold(goal, |goal, name| goal.binary(name, DIGEST))
}

/// The removal of every handler of Farrier and of legacy installers.
pub fn remove_everything() -> Goal {
    goal(&[]).scope(Scope::Everything).build()
}

/// A goal that differs from that of [`goal`].
pub struct GoalBuilder(Goal);

impl GoalBuilder {
    pub fn build(self) -> Goal {
        self.0
    }

    fn with(mut self, change: impl FnOnce(&mut Goal)) -> Self {
        change(&mut self.0);
        self
    }

    pub fn scope(self, scope: Scope) -> Self {
        self.with(|goal| goal.scope = scope)
    }

    pub fn reserve(self, handlers: &[&str]) -> Self {
        let handlers = handlers.iter().map(ToString::to_string);
        self.with(|goal| goal.reserve.extend(handlers))
    }

    /// The binary of `shim`.
    pub fn binary(self, shim: &str, sha256: Sha256Digest) -> Self {
        self.with(|goal| {
            goal.binaries.insert(shim.to_owned(), Ok(sha256));
        })
    }

    /// `handler` has these options, requested or reserved.
    pub fn options(self, handler: &str, options: &BTreeMap<String, OptionValue>) -> Self {
        self.with(|goal| {
            let requested = goal.shims.iter_mut().find(|shim| shim.name == handler);
            let of_handler = match requested {
                Some(shim) => &mut shim.options,
                None => goal.reserve_options.entry(handler.to_owned()).or_default(),
            };
            of_handler.clone_from(options);
        })
    }

    pub fn allow_pod_restarts(self) -> Self {
        self.with(|goal| goal.allow_pod_restarts = true)
    }

    pub fn restart_policy(self, default: OnRestart, handlers: &[(&str, OnRestart)]) -> Self {
        let handlers = handlers.iter();
        let handlers = handlers.map(|(handler, policy)| ((*handler).to_owned(), *policy));
        let handlers = handlers.collect();
        self.with(|goal| goal.restart_policy = RestartPolicy { default, handlers })
    }

    pub fn owner(self, owner: Owner) -> Self {
        self.with(|goal| goal.owner = owner)
    }

    pub fn take_over(self) -> Self {
        self.with(|goal| goal.take_over = true)
    }

    pub fn accept_pending_changes(self) -> Self {
        self.with(|goal| goal.accept_pending_changes = true)
    }
}
