//! The options of the installer's runs, and the reading of the request that they name.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::containerd_config::is_usable_name;
use crate::handoff::{
    self, OnRestart, Owner, Problem, Proof, ProvisionRequest, RestartPolicy, Sha256Digest,
    ShimRequest, has_known_scheme, is_runtime_class_handler, path_on_host, shown_location,
};
use crate::installer::artifact::link_local::{LinkLocal, check_url};
use crate::installer::host::{self, HostRoot, Target};
use crate::installer::inspect::{self, HostFacts, gather};
use crate::installer::plan::{Goal, Scope};
use crate::installer::transaction::interrupts::Interrupts;

/// Why the options of a run can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] handoff::Error),
    /// The request's file can't be read.
    #[error("failed to read the request in {path}: {source}")]
    RequestFile {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// No RuntimeClass could name a requested handler.
    #[error("invalid name {0:?} of a handler: no RuntimeClass can name it")]
    Handler(String),
    /// A requested handler is containerd's own.
    #[error("invalid name {0:?} of a handler: it is reserved for containerd")]
    ReservedHandler(String),
    /// A key of an option can't be written to containerd's configuration.
    #[error("invalid name {key:?} of an option of shim {shim}: it is reserved or not printable")]
    OptionName {
        /// The shim.
        shim: String,
        /// The key.
        key: String,
    },
    /// Nothing can be fetched from the location of a shim.
    #[error("invalid location {location:?} of shim {shim}: Farrier can't fetch it")]
    Location {
        /// The shim.
        shim: String,
        /// The location without secrets.
        location: String,
    },
    /// The location of a shim is at an address that no download may use.
    #[error("invalid location {location:?} of shim {shim}: {source}")]
    LinkLocal {
        /// The shim.
        shim: String,
        /// The location without secrets.
        location: String,
        /// The address.
        #[source]
        source: LinkLocal,
    },
    /// The path of the configuration file is not absolute or not UTF-8.
    #[error("invalid path of containerd's configuration file: {}", .0.display())]
    ConfigPath(PathBuf),
    /// The root of the host can't be opened.
    #[error(transparent)]
    Host(#[from] host::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::Request(error) => return error.help(),
            Self::RequestFile { .. } => {
                Cow::Borrowed("check the path and the permissions of the file")
            }
            Self::Handler(_) => Cow::Borrowed(
                "use lower-case letters, digits and '-', at most 63, with a letter or digit at both ends",
            ),
            Self::ReservedHandler(_) | Self::OptionName { .. } => Cow::Borrowed("use another name"),
            Self::Location { .. } => {
                Cow::Borrowed("use an https://, http:// or file:///path/on/the/node URL")
            }
            Self::LinkLocal { .. } => Cow::Borrowed(
                "use another location, or allow such addresses with --allow-link-local",
            ),
            Self::ConfigPath(_) => Cow::Borrowed("use an absolute path"),
            Self::Host(error) => return error.help(),
        })
    }

    /// Whether the options are wrong on every host. Then the exit status is that of a wrong use of the command line.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Request(_)
            | Self::RequestFile { .. }
            | Self::Handler(_)
            | Self::ReservedHandler(_)
            | Self::OptionName { .. }
            | Self::Location { .. }
            | Self::LinkLocal { .. }
            | Self::ConfigPath(_) => true,
            Self::Host(_) => false,
        }
    }
}

/// Limit of a request, in bytes. A request names a few hundred shims at most, and the annotations of a Kubernetes object hold 256 KiB.
const REQUEST_LIMIT: u64 = 1 << 20;

/// The host of a run, and the permissions of the run.
#[derive(Debug)]
pub struct HostOptions {
    /// The root directory of the host's file system.
    pub root: PathBuf,
    /// The root configuration file of containerd. Without it, the running containerd, its unit, the last change or the table of
    /// distributions names the file.
    pub config: Option<PathBuf>,
    /// Whether the host is live or an image.
    pub target: Target,
    /// Restart containerd even if the restart ends every pod on the node.
    pub allow_pod_restarts: bool,
    /// Whether a restart of containerd may end pods whose shims report no process; `None` leaves this to the request.
    pub on_restart: Option<OnRestart>,
    /// Restart containerd even if the restart puts changes into effect that others made after the start of containerd.
    pub accept_pending_changes: bool,
}

impl HostOptions {
    /// The policy of restarts: these options override that of the request.
    pub(crate) fn restart_policy(&self, requested: RestartPolicy) -> RestartPolicy {
        self.on_restart.map_or(requested, RestartPolicy::from)
    }
}

/// Whether a run changes the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The run carries out its plan.
    Change,
    /// The run makes the same plan and writes nothing on the host, the lock and the state file included.
    DryRun,
}

/// Options of an installation.
#[derive(Debug)]
pub struct InstallOptions {
    /// The host.
    pub host: HostOptions,
    /// Where the request comes from.
    pub source: RequestSource,
    /// The directory in which [`fetch`](super::fetch) left the artifacts; without it, they are fetched now.
    pub artifacts: Option<PathBuf>,
    /// Keep the other shims of the same owner.
    pub keep_others: bool,
    /// Also change handlers that belong to the cluster, where the command line requests them.
    pub take_over: bool,
    /// What is proven of the handlers before they count as served; `None` leaves this to the request.
    pub proof: Option<Proof>,
    /// More certificate authorities than Mozilla's, as PEM.
    pub ca_file: Option<PathBuf>,
    /// Download also from link-local addresses and from metadata services of clouds.
    pub allow_link_local: bool,
    /// Signals that end the run before its change takes effect.
    pub interrupts: Interrupts,
}

/// Where a request comes from.
#[derive(Debug)]
pub enum RequestSource {
    /// A JSON file, written by the controller.
    File(PathBuf),
    /// The command line.
    CommandLine {
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
    /// Reads the request, whose proofs these options override.
    ///
    /// # Errors
    /// As for [`RequestSource::read`].
    pub(crate) fn read_request(&self) -> Result<ProvisionRequest, Error> {
        // Nothing is downloaded beside a hand-off directory.
        let allow_link_local = self.allow_link_local || self.artifacts.is_some();
        let mut request = self.source.read(allow_link_local)?;
        if let Some(proof) = self.proof {
            for shim in request.shims.iter_mut().filter(|shim| !shim.keep) {
                shim.proof = proof;
            }
        }
        Ok(request)
    }

    /// The handlers of the host after the installation of `request`; `binaries` has the digest of each shim's binary, or the problem.
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
            take_over: self.take_over,
            binaries,
            waiting: BTreeSet::new(),
            digest: Some(request.digest()),
            allow_pod_restarts: self.host.allow_pod_restarts,
            restart_policy: self.host.restart_policy(request.restart_policy()),
            accept_pending_changes: self.host.accept_pending_changes,
        }
    }
}

impl UninstallOptions {
    /// The handlers of the host after the removal.
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
            take_over: false,
            binaries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            digest: None,
            allow_pod_restarts: self.host.allow_pod_restarts,
            restart_policy: self.host.restart_policy(RestartPolicy::default()),
            accept_pending_changes: self.host.accept_pending_changes,
        }
    }
}

impl RequestSource {
    /// Reads the request and validates it. `allow_link_local` is the option of the downloads.
    ///
    /// # Errors
    /// When the file can't be read or the request is invalid.
    pub fn read(&self, allow_link_local: bool) -> Result<ProvisionRequest, Error> {
        let request = self.parse()?;
        match request.owner {
            // A fault of one Shim must not stop the others, so the plan refuses that Shim alone.
            Owner::Cluster => {}
            Owner::Local | Owner::Kwasm | Owner::Rcm => {
                check_shims(&request)?;
                if !allow_link_local {
                    check_addresses(&request)?;
                }
            }
        }
        Ok(request)
    }

    fn parse(&self) -> Result<ProvisionRequest, Error> {
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
            Self::CommandLine { shims, reserve } => {
                let request = ProvisionRequest::new(
                    Owner::Local,
                    String::new(),
                    shims.clone(),
                    reserve.clone(),
                );
                // The command line is validated like a request of the controller.
                Ok(ProvisionRequest::from_json(&request.to_json())?)
            }
        }
    }
}

/// Checks what an operator requests: everything that is wrong on every host is known before the first act on this one.
fn check_shims(request: &ProvisionRequest) -> Result<(), Error> {
    for shim in request.shims.iter().filter(|shim| !shim.keep) {
        shim.handlers
            .iter()
            .try_for_each(|name| check_handler(name))?;
        if let Some(key) = shim.options.keys().find(|key| !is_usable_name(key)) {
            return Err(Error::OptionName {
                shim: shim.name.clone(),
                key: key.clone(),
            });
        }
        let location = &shim.location;
        let is_url = || path_on_host(location).is_some() || Url::parse(location).is_ok();
        if !has_known_scheme(location) || !is_url() {
            return Err(Error::Location {
                shim: shim.name.clone(),
                location: shown_location(location),
            });
        }
    }
    request
        .reserve
        .iter()
        .try_for_each(|name| check_handler(name))
}

/// Checks the addresses in locations. The address of a name is known, and checked, when the name is resolved.
fn check_addresses(request: &ProvisionRequest) -> Result<(), Error> {
    for shim in &request.shims {
        let url = Url::parse(&shim.location).ok();
        let url = url.filter(|url| matches!(url.scheme(), "https" | "http"));
        if let Some(Err(source)) = url.as_ref().map(check_url) {
            return Err(Error::LinkLocal {
                shim: shim.name.clone(),
                location: shown_location(&shim.location),
                source,
            });
        }
    }
    Ok(())
}

fn check_handler(name: &str) -> Result<(), Error> {
    if !is_runtime_class_handler(name) {
        return Err(Error::Handler(name.to_owned()));
    }
    if !is_usable_name(name) {
        return Err(Error::ReservedHandler(name.to_owned()));
    }
    Ok(())
}

/// The value of `--config`, as a path on the host.
///
/// # Errors
/// When the path is not absolute or not UTF-8.
fn config_path(config: Option<&Path>) -> Result<Option<&str>, Error> {
    let Some(path) = config else {
        return Ok(None);
    };
    let text = path.to_str().filter(|text| text.starts_with('/'));
    text.map(Some)
        .ok_or_else(|| Error::ConfigPath(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn shim(handler: &str, location: &str) -> ShimRequest {
        ShimRequest {
            keep: false,
            handlers: vec![handler.to_owned()],
            location: location.to_owned(),
            ..ShimRequest::kept("a")
        }
    }

    fn read(shims: Vec<ShimRequest>, reserve: &[&str]) -> Result<ProvisionRequest, Error> {
        let reserve = reserve.iter().map(ToString::to_string).collect();
        RequestSource::CommandLine { shims, reserve }.read(false)
    }

    /// The refusal of one shim of the command line.
    fn refusal(shim: ShimRequest) -> String {
        let error = read(vec![shim], &[]).unwrap_err();
        assert!(error.is_usage() && error.help().is_some(), "{error}");
        error.to_string()
    }

    #[rstest]
    #[case::upper_case("A", "no RuntimeClass can name it")]
    #[case::dot("x.y", "no RuntimeClass can name it")]
    #[case::hyphen_first("-x", "no RuntimeClass can name it")]
    #[case::too_long(&"a".repeat(64), "no RuntimeClass can name it")]
    #[case::reserved("runc", "it is reserved for containerd")]
    fn a_handler_that_could_never_serve_a_pod_is_a_usage_error(
        #[case] name: &str,
        #[case] cause: &str,
    ) {
        let message = format!("invalid name {name:?} of a handler: {cause}");
        assert_eq!(refusal(shim(name, "file:///srv/a")), message);
        let mut aliased = shim("a", "file:///srv/a");
        aliased.handlers.push(name.to_owned());
        assert_eq!(refusal(aliased), message);
        let reserved = read(vec![shim("a", "file:///srv/a")], &[name]).unwrap_err();
        assert_eq!(reserved.to_string(), message);
    }

    #[rstest]
    #[case::ftp("ftp://u:p4ss@example.org/a", "ftp://example.org/a")]
    #[case::of_no_scheme("/srv/a", "/srv/a")]
    #[case::a_relative_file("file://srv/a", "file://srv/a")]
    #[case::no_host("https://", "https://")]
    #[case::no_url("https://[::1/a", "https://…")]
    fn a_location_that_can_never_be_fetched_is_a_usage_error(
        #[case] location: &str,
        #[case] shown: &str,
    ) {
        let message = format!("invalid location {shown:?} of shim a: Farrier can't fetch it");
        assert_eq!(refusal(shim("a", location)), message);
    }

    #[rstest]
    #[case::of_ipv4("http://169.254.169.254/a", "169.254.169.254")]
    #[case::as_a_number("http://2852039166/a", "169.254.169.254")]
    #[case::of_ipv6("https://[fe80::1]/a", "fe80::1")]
    #[case::of_a_metadata_service("http://100.100.100.200/a", "100.100.100.200")]
    fn a_link_local_location_is_a_usage_error_unless_it_is_allowed(
        #[case] location: &str,
        #[case] address: &str,
    ) {
        let message = refusal(shim("a", location));
        assert!(
            message.contains(&format!("at {address}, a link-local")),
            "{message}"
        );
        let (shims, reserve) = (vec![shim("a", location)], Vec::new());
        let source = RequestSource::CommandLine { shims, reserve };
        assert_eq!(source.read(true).unwrap().shims[0].location, location);
    }

    #[test]
    fn a_name_given_twice_and_an_unusable_option_are_usage_errors() {
        let one = || shim("a", "file:///srv/a");
        let twice = read(vec![one(), one()], &[]).unwrap_err();
        assert!(twice.is_usage(), "{twice}");
        let mut other = one();
        other.name = "b".to_owned();
        let shared = read(vec![one(), other], &[]).unwrap_err();
        assert_eq!(shared.to_string(), "\"a\" is requested twice");
        let mut odd = one();
        let value = handoff::OptionValue::Boolean(true);
        odd.options.insert("a\nb".to_owned(), value);
        assert!(refusal(odd).contains("of an option of shim a"));
        read(vec![one()], &["a", "b"]).unwrap();
    }
}
