//! A host's file system in a temporary directory, and artifacts for the host. Helpers of the host tests, no tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::elf::{executable, writing};
use crate::tree::tree;
use farrier::handoff::{Owner, Proof, ProvisionReport, ProvisionRequest, ShimRequest};
use farrier::installer::transaction::interrupts::Interrupts;
use farrier::installer::{
    self, HostOptions, InstallOptions, Mode, RequestSource, Target, UninstallOptions,
};

/// A configuration of an administrator.
pub const CONFIG: &str = "# ours\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\" # theirs";

/// An unpacked image.
pub struct Host {
    directory: tempfile::TempDir,
}

/// A program for this CPU that differs by `seed`. The kernel refuses to run it, as it has no type (`ET_NONE`).
pub fn program(seed: u8) -> Vec<u8> {
    let mut bytes = executable(&[], seed);
    bytes[16] = 0;
    bytes
}

/// A program for `EM_SPARC`, a CPU without Kubernetes.
pub fn for_another_cpu() -> Vec<u8> {
    let mut bytes = program(0);
    bytes[18] = 2;
    bytes
}

/// A program for this CPU that needs nothing of the host, prints nothing and ends with `status`.
#[cfg(target_arch = "x86_64")]
pub fn runnable(status: u8) -> Vec<u8> {
    // mov al, 60 (exit); mov dil, status; syscall
    executable(&[0xb0, 60, 0x40, 0xb7, status, 0x0f, 0x05], 0)
}

/// A program for this CPU that needs nothing of the host, prints `text` and ends well.
#[cfg(target_arch = "x86_64")]
pub fn printing(text: &str) -> Vec<u8> {
    executable(&writing(1, text, 0), 0)
}

/// The same, but it prints `text` as an error and fails.
#[cfg(target_arch = "x86_64")]
pub fn failing(text: &str) -> Vec<u8> {
    executable(&writing(2, text, 1), 0)
}

/// A shim whose artifact is a file on the host.
pub fn shim(name: &str) -> ShimRequest {
    ShimRequest {
        name: name.to_owned(),
        handlers: vec![name.to_owned()],
        location: format!("file:///srv/{name}"),
        sha256: None,
        binary_sha256: None,
        binary: None,
        options: BTreeMap::new(),
        keep: false,
        present: None,
        first_binary_sha256: None,
        proof: Proof::None,
    }
}

impl Host {
    pub fn new(config: Option<&str>) -> Self {
        let host = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        host.write("/etc/os-release", b"ID=debian\n");
        host.write("/srv/empty", b"");
        if let Some(config) = config {
            host.write("/etc/containerd/config.toml", config.as_bytes());
        }
        host
    }

    /// With [`CONFIG`] and the artifacts of two shims, `a` and `b`.
    pub fn stocked() -> Self {
        let host = Self::new(Some(CONFIG));
        host.write("/srv/a", &program(1));
        host.write("/srv/b", &program(2));
        host
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn config(&self) -> String {
        std::fs::read_to_string(self.path("/etc/containerd/config.toml")).unwrap()
    }

    /// The files below the root that hold `text`.
    pub fn files_with(&self, text: &str) -> Vec<PathBuf> {
        let paths = self.tree(false).into_keys();
        let mut files: Vec<PathBuf> = paths.map(|path| self.root().join(path)).collect();
        files.retain(|path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        });
        files
    }

    /// Every path with its mode and its target or digest, and with `times` also the inode number and the times, which every write changes.
    pub fn tree(&self, times: bool) -> BTreeMap<PathBuf, String> {
        tree(self.root(), &[""], &[], times)
    }

    fn options(&self, source: RequestSource) -> InstallOptions {
        InstallOptions {
            host: self.host_options(),
            source,
            artifacts: None,
            keep_others: false,
            take_over: false,
            ca_file: None,
            allow_link_local: false,
            proof: None,
            interrupts: Interrupts::default(),
        }
    }

    pub fn host_options(&self) -> HostOptions {
        HostOptions {
            root: self.root().to_owned(),
            config: None,
            target: Target::Image,
            allow_pod_restarts: false,
            on_restart: None,
            accept_pending_changes: false,
        }
    }

    /// The options of a run from the command line.
    pub async fn install(&self, shims: &[ShimRequest], reserve: &[&str]) -> ProvisionReport {
        installer::install(&self.named(shims, reserve), Mode::Change)
            .await
            .report
    }

    pub fn named(&self, shims: &[ShimRequest], reserve: &[&str]) -> InstallOptions {
        self.options(RequestSource::CommandLine {
            shims: shims.to_vec(),
            reserve: reserve.iter().map(ToString::to_string).collect(),
        })
    }

    /// The options of a Job of the controller, with the hand-off directory `artifacts`.
    pub async fn provision(&self, shims: &[ShimRequest], artifacts: &Path) -> ProvisionReport {
        let request =
            ProvisionRequest::new(Owner::Cluster, "uid".to_owned(), shims.to_vec(), vec![]);
        let file = artifacts.join("request");
        std::fs::write(&file, request.to_json()).unwrap();
        let mut options = self.options(RequestSource::File(file));
        options.artifacts = Some(artifacts.to_owned());
        installer::install(&options, Mode::Change).await.report
    }

    pub async fn uninstall(&self, shims: Option<&[&str]>) -> ProvisionReport {
        installer::uninstall(&self.leaving(shims), Mode::Change)
            .await
            .report
    }

    pub fn leaving(&self, shims: Option<&[&str]>) -> UninstallOptions {
        UninstallOptions {
            host: self.host_options(),
            shims: shims.map(|shims| shims.iter().map(ToString::to_string).collect()),
            interrupts: Interrupts::default(),
        }
    }
}
