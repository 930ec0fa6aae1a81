//! What the callers of this room ask for, and how a desired set is read: the door through which its text becomes a type.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use crate::handoff::{Owner, ProvisionRequest, ShimRequest};
use crate::installer::error::Error;
use crate::installer::plan::{Goal, Scope};
use crate::installer::transaction::interrupts::Interrupts;

/// A request names some hundred shims at most; the annotation that carries it in a cluster has 256 KiB for all of them.
const REQUEST_LIMIT: u64 = 1 << 20;

/// What `install` should bring about.
#[derive(Debug)]
pub struct InstallOptions {
    /// Where the host's file system is.
    pub host_root: PathBuf,
    /// The desired set.
    pub wanted: Wanted,
    /// Folder in which [`fetch`] left the artifacts; without it they are fetched now.
    pub artifacts: Option<PathBuf>,
    /// Keep what the same owner had before.
    pub keep_others: bool,
    /// The root configuration file that containerd reads; without it the running daemon and the table say.
    pub config: Option<PathBuf>,
    /// Restart nothing, ask no CRI.
    pub offline: bool,
    /// Restart containerd even where that ends every pod on the node.
    pub allow_pod_restarts: bool,
    /// More certificate authorities than Mozilla's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// What ends the run before its change takes effect.
    pub interrupts: Interrupts,
}

/// Where a desired set comes from.
#[derive(Debug)]
pub enum Wanted {
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

/// What `uninstall` should take away.
#[derive(Debug)]
pub struct UninstallOptions {
    /// Where the host's file system is.
    pub host_root: PathBuf,
    /// Names of shims, of the command line and of predecessors; `None` for everything of everybody.
    pub shims: Option<BTreeSet<String>>,
    /// The root configuration file that containerd reads; without it the running daemon, the table and the last change say.
    pub config: Option<PathBuf>,
    /// Restart nothing, ask no CRI.
    pub offline: bool,
    /// Restart containerd even where that ends every pod on the node.
    pub allow_pod_restarts: bool,
    /// What ends the run before its change takes effect.
    pub interrupts: Interrupts,
}

impl UninstallOptions {
    /// What a host should carry then.
    pub(crate) fn want(&self) -> Goal {
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
            offline: self.offline,
            allow_pod_restarts: self.allow_pod_restarts,
        }
    }
}

impl Wanted {
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
pub(crate) fn config_path(config: Option<&Path>) -> Result<Option<&str>, Error> {
    let Some(path) = config else {
        return Ok(None);
    };
    let text = path.to_str().filter(|text| text.starts_with('/'));
    text.map(Some)
        .ok_or_else(|| Error::ConfigPath(path.to_owned()))
}
