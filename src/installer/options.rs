//! What the callers of the installer ask for, the host that they name, and the reading of a desired set.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use crate::handoff::{self, Owner, Problem, ProvisionRequest, Sha256Digest, ShimRequest};
use crate::installer::host::{self, HostRoot, Target};
use crate::installer::inspect::{self, HostFacts, gather};
use crate::installer::plan::{Goal, Scope};
use crate::installer::transaction::interrupts::Interrupts;

/// Why the options of a run can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request.
    #[error(transparent)]
    Request(#[from] handoff::Error),
    /// The request's file.
    #[error("the request in {path} can't be read: {source}")]
    RequestFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A path that can't be a file on the host.
    #[error("{} can't be containerd's configuration file", .0.display())]
    ConfigPath(PathBuf),
    /// The host's file system.
    #[error(transparent)]
    Host(#[from] host::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Request(error) => return error.help(),
            Self::RequestFile { .. } => Cow::Borrowed("name a file that farrier may read"),
            Self::ConfigPath(_) => Cow::Borrowed("write an absolute path"),
            Self::Host(error) => return error.help(),
        })
    }
}

/// A request names some hundred shims at most; the annotation that carries it in a cluster has 256 KiB for all of them.
const REQUEST_LIMIT: u64 = 1 << 20;

/// The host that a run is about, and what the run may do there.
#[derive(Debug)]
pub struct HostOptions {
    /// Where the host's file system is.
    pub root: PathBuf,
    /// The root configuration file of containerd. Without it, the running containerd, its unit, the last change or the table of
    /// distributions names the file.
    pub config: Option<PathBuf>,
    /// Whether the host is live or an image.
    pub target: Target,
    /// Restart containerd even where that ends every pod on the node.
    pub allow_pod_restarts: bool,
}

/// Whether a run changes the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The run carries out its plan.
    Change,
    /// The run makes the same plan and changes not one byte of the host, the lock and the state file included.
    DryRun,
}

/// Options of an installation.
#[derive(Debug)]
pub struct InstallOptions {
    /// The host.
    pub host: HostOptions,
    /// The desired set.
    pub source: RequestSource,
    /// The directory in which [`fetch`](super::fetch) left the artifacts; without it, they are fetched now.
    pub artifacts: Option<PathBuf>,
    /// Keep the other shims of the same owner.
    pub keep_others: bool,
    /// More certificate authorities than Mozilla's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// Signals that end the run before its change takes effect.
    pub interrupts: Interrupts,
}

/// Where a desired set comes from.
#[derive(Debug)]
pub enum RequestSource {
    /// A document that the controller wrote.
    File(PathBuf),
    /// The command line.
    Named {
        /// Shims.
        shims: Vec<ShimRequest>,
        /// Handlers to declare without a binary.
        reserve: Vec<String>,
    },
}

/// Options of a removal.
#[derive(Debug)]
pub struct UninstallOptions {
    /// The host.
    pub host: HostOptions,
    /// Names of shims, of the command line and of legacy installers; `None` for all shims of all owners.
    pub shims: Option<BTreeSet<String>>,
    /// Signals that end the run before its change takes effect.
    pub interrupts: Interrupts,
}

/// The host of a run.
pub(crate) struct Host<'a> {
    pub(crate) root: HostRoot,
    pub(crate) config: Option<&'a str>,
    pub(crate) options: &'a HostOptions,
}

impl<'a> Host<'a> {
    /// Opens the host that the options name.
    pub(crate) fn open(options: &'a HostOptions) -> Result<Self, Error> {
        Ok(Self {
            root: HostRoot::open(&options.root)?,
            config: config_path(options.config.as_deref())?,
            options,
        })
    }

    /// Gathers the facts of the host.
    pub(crate) async fn inspect(&self) -> Result<HostFacts, inspect::Error> {
        gather(&self.root, self.config, self.options.target).await
    }
}

impl InstallOptions {
    /// What the host carries after the installation of `request`, whose `binaries` were resolved.
    pub(crate) fn goal(
        &self,
        request: &ProvisionRequest,
        binaries: BTreeMap<String, Result<Sha256Digest, Problem>>,
    ) -> Goal {
        Goal {
            owner: request.owner,
            shims: request.shims.clone(),
            reserve: request.reserve.clone(),
            reserve_options: request.reserve_options.clone(),
            scope: if self.keep_others {
                Scope::Nothing
            } else {
                Scope::Owner
            },
            binaries,
            digest: Some(request.digest()),
            allow_pod_restarts: self.host.allow_pod_restarts,
        }
    }
}

impl UninstallOptions {
    /// What the host carries after the removal.
    pub(crate) fn goal(&self) -> Goal {
        Goal {
            owner: Owner::Local,
            shims: Vec::new(),
            reserve: Vec::new(),
            reserve_options: BTreeMap::new(),
            scope: match &self.shims {
                Some(shims) => Scope::Shims(shims.clone()),
                None => Scope::Everything,
            },
            binaries: BTreeMap::new(),
            digest: None,
            allow_pod_restarts: self.host.allow_pod_restarts,
        }
    }
}

impl RequestSource {
    /// Reads the request and refuses what a host must never act on.
    ///
    /// # Errors
    /// When the file can't be read or the request is not usable.
    pub fn read(&self) -> Result<ProvisionRequest, Error> {
        match self {
            Self::File(path) => {
                let unreadable = |source| Error::RequestFile {
                    path: path.clone(),
                    source,
                };
                let file = std::fs::File::open(path).map_err(unreadable)?;
                let mut text = String::new();
                file.take(REQUEST_LIMIT + 1)
                    .read_to_string(&mut text)
                    .map_err(unreadable)?;
                if text.len() as u64 > REQUEST_LIMIT {
                    return Err(unreadable(ErrorKind::FileTooLarge.into()));
                }
                Ok(ProvisionRequest::from_json(&text)?)
            }
            Self::Named { shims, reserve } => {
                let request = ProvisionRequest::new(
                    Owner::Local,
                    String::new(),
                    shims.clone(),
                    reserve.clone(),
                );
                // What the user typed passes the same door as what a cluster sent.
                Ok(ProvisionRequest::from_json(&request.to_json())?)
            }
        }
    }
}

/// The configuration file that the user names, as a path on the host.
///
/// # Errors
/// When it is not absolute.
fn config_path(config: Option<&Path>) -> Result<Option<&str>, Error> {
    let Some(path) = config else {
        return Ok(None);
    };
    let text = path.to_str().filter(|text| text.starts_with('/'));
    text.map(Some)
        .ok_or_else(|| Error::ConfigPath(path.to_owned()))
}
