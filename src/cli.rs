//! The command line as types. Pure: no file, no network, and of the environment only the variables that clap reads. Names are a contract
//! with users: add names, and never rename one.

#![allow(
    clippy::doc_markdown,
    reason = "the comments of options are help texts, which a terminal shows as they are"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::de::DeserializeOwned;

use crate::handoff::{self, InvalidDigest, OptionValue, ShimRequest};
use crate::names;

/// Fits container runtimes to Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 120)]
pub struct Cli {
    /// Filter of the log lines on standard error: a level (error, warn, info, debug or trace), or levels by module such as
    /// farrier=debug,kube=info.
    #[arg(
        long,
        global = true,
        env = "FARRIER_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Format of the log lines.
    #[arg(long, global = true, env = "FARRIER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// Format of a result on standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for a terminal.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

const INSTALL_EXAMPLES: &str = "Examples:
  farrier install --shim spin-v2=https://example.org/spin.tar.gz,sha256=HEX
  farrier install --shim demo=file:///srv/containerd-shim-demo --dry-run
  farrier install --keep-others --shim demo=file:///srv/containerd-shim-demo";

const UNINSTALL_EXAMPLES: &str = "Examples:
  farrier uninstall --shim spin-v2
  farrier uninstall --all --dry-run";

const DOCTOR_EXAMPLES: &str = "Examples:
  farrier doctor
  farrier doctor --host-root /mnt/image --offline -o json";

const UNINSTALL_CLUSTER_EXAMPLES: &str = "Example, in a pod of the controller:
  farrier uninstall-cluster --deployment farrier

This command reads the options of farrier controller too, which the Deployment of the controller sets in the environment.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch Nodes and Shims, and provision nodes through Jobs.
    Controller(Controller),
    /// Install the named shims on this host, and remove other shims that the command line installed.
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(Install),
    /// Remove shims from this host.
    #[command(after_help = UNINSTALL_EXAMPLES)]
    Uninstall(Uninstall),
    /// Download and verify shims for a later farrier install --artifacts. Needs no privilege.
    Fetch(Fetch),
    /// List the handlers on this host with their owners, and all problems. Changes nothing without --end-orphans.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(Doctor),
    /// Remove all shims from all nodes and the finalizers from the Shims. Run this before uninstalling Farrier.
    #[command(alias = "leave", after_help = UNINSTALL_CLUSTER_EXAMPLES)]
    UninstallCluster(UninstallCluster),
    /// Show the progress of each shim on each node of the cluster.
    Status(Status),
    /// Print the CustomResourceDefinition of the Shim, or apply it to the cluster.
    Crd(Crd),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `farrier controller`.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
#[derive(Debug, Args)]
pub struct Controller {
    /// Namespace of the controller and of its Jobs.
    #[arg(long, env = "CONTROLLER_NAMESPACE", default_value = "farrier", value_parser = parse_namespace)]
    pub namespace: String,
    /// Image of the Jobs: the image of the controller.
    #[arg(long, env = "FARRIER_IMAGE")]
    pub image: String,
    /// Pull policy of the image: Always, IfNotPresent or Never.
    #[arg(
        long,
        env = "FARRIER_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    pub image_pull_policy: String,
    /// Secrets in the namespace for pulling the image, separated by commas.
    #[arg(long, env = "FARRIER_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// ServiceAccount of the Jobs' pods. It needs no permissions, and its token is not mounted.
    #[arg(long, env = "FARRIER_JOB_SERVICE_ACCOUNT", default_value = "default")]
    pub job_service_account: String,
    /// ConfigMap in the namespace with additional certificate authorities for fetch, as PEM under the key ca.crt.
    #[arg(long, env = "FARRIER_CA_CONFIG_MAP")]
    pub ca_config_map: Option<String>,
    /// Seconds for which a finished Job is kept, as in runtime-class-manager. By default, a Job is deleted once its report is read.
    #[arg(long, env = "SHIM_NODE_INSTALLER_JOB_TTL", value_name = "SECONDS")]
    pub job_ttl: Option<JobTtl>,
    /// Seconds that a Job may run on a node. A Job that takes longer has failed.
    #[arg(long, env = "FARRIER_JOB_DEADLINE", default_value_t = 1800, value_name = "SECONDS", value_parser = parse_deadline::<i64>, allow_negative_numbers = true)]
    pub job_deadline: i64,
    /// Provision every node, with or without the annotation. As in KWasm, true in upper or lower case turns this on, and any other value
    /// turns it off.
    #[arg(long, env = "AUTO_PROVISION_NODES", default_value_t = false, action = clap::ArgAction::Set, value_parser = parse_switch_of_kwasm)]
    pub auto_provision: bool,
    /// Restart containerd even on nodes where the restart ends every pod.
    #[arg(long, env = "FARRIER_ALLOW_POD_RESTARTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub allow_pod_restarts: bool,
    /// What to do if a restart of containerd would end pods of shims that do not report their processes, such as most Wasm shims: the value
    /// for Shims without spec.onRestart.
    #[arg(
        long,
        env = "FARRIER_ON_RESTART",
        value_enum,
        default_value_t,
        value_name = "POLICY",
        ignore_case = true
    )]
    pub on_restart: OnRestartOfController,
    /// Seconds for the eviction of the pods of a node where the policy is drain. Without this value, no pod is evicted, and drain means
    /// refuse.
    #[arg(long, env = "FARRIER_DRAIN_TIMEOUT", value_name = "SECONDS", value_parser = parse_deadline::<i64>, allow_negative_numbers = true)]
    pub drain_timeout: Option<i64>,
    /// Restart containerd even if the restart puts changes into effect that others made after the start of containerd.
    #[arg(long, env = "FARRIER_ACCEPT_PENDING_CHANGES", default_value_t = false, action = clap::ArgAction::Set)]
    pub accept_pending_changes: bool,
    /// Run Jobs with hostPID: true. Required with OpenRC and on k3d.
    #[arg(long, env = "FARRIER_JOB_HOST_PID", default_value_t = false, action = clap::ArgAction::Set)]
    pub job_host_pid: bool,
    /// Let Jobs download also from link-local addresses and from metadata services of clouds, which serve the credentials of a node.
    #[arg(long, env = "FARRIER_JOB_ALLOW_LINK_LOCAL", default_value_t = false, action = clap::ArgAction::Set)]
    pub job_allow_link_local: bool,
    /// Priority class of the Jobs' pods. With system-node-critical, a full node evicts other pods for them.
    #[arg(long, env = "FARRIER_JOB_PRIORITY_CLASS", value_name = "NAME")]
    pub job_priority_class: Option<String>,
    /// Additional labels of the Jobs and of their pods, as a JSON object. Farrier's own labels stay as they are.
    #[arg(long, env = "FARRIER_JOB_LABELS", value_name = "JSON", value_parser = parse_json::<BTreeMap<String, String>>)]
    pub job_labels: Option<BTreeMap<String, String>>,
    /// Additional annotations of the Jobs and of their pods, as a JSON object. Farrier's own annotations stay as they are.
    #[arg(long, env = "FARRIER_JOB_ANNOTATIONS", value_name = "JSON", value_parser = parse_json::<BTreeMap<String, String>>)]
    pub job_annotations: Option<BTreeMap<String, String>>,
    /// Resources of each container of a Job, as JSON with requests and limits, in place of the default.
    #[arg(long, env = "FARRIER_JOB_RESOURCES", value_name = "JSON", value_parser = parse_json::<ResourceRequirements>)]
    pub job_resources: Option<ResourceRequirements>,
    /// Proxy for downloads from http:// locations, for example http://proxy.example.org:3128.
    #[arg(long, env = "FARRIER_JOB_HTTP_PROXY", value_name = "URL")]
    pub job_http_proxy: Option<String>,
    /// Proxy for downloads from https:// locations.
    #[arg(long, env = "FARRIER_JOB_HTTPS_PROXY", value_name = "URL")]
    pub job_https_proxy: Option<String>,
    /// Hosts, domains and networks to reach without a proxy, separated by commas.
    #[arg(long, env = "FARRIER_JOB_NO_PROXY", value_name = "LIST")]
    pub job_no_proxy: Option<String>,
    /// Keys of the taints that a node loses when it serves its shims, or never will, separated by commas.
    #[arg(long, env = "FARRIER_STARTUP_TAINTS", value_name = "KEYS", value_delimiter = ',', default_value = names::STARTUP_TAINT, value_parser = parse_startup_taint)]
    pub startup_taints: Vec<String>,
    /// Handlers that a node declares in addition to the handlers of its own Shims, when containerd is restarted anyway.
    #[arg(long, env = "FARRIER_RESERVE_HANDLERS", value_enum, default_value_t)]
    pub reserve_handlers: ReserveHandlers,
    /// Name of the Lease in the namespace. Among several replicas, the holder of the Lease acts.
    #[arg(long, env = "FARRIER_LEASE_NAME", default_value = "farrier")]
    pub lease_name: String,
    /// Identity of this replica in the Lease, unique among the replicas. The default consists of host name and PID.
    #[arg(long, env = "FARRIER_IDENTITY")]
    pub identity: Option<String>,
    /// Address and port of /livez, /readyz and /metrics. [::] is every address of IPv6 and IPv4, and every address of IPv4 where IPv6 is off.
    #[arg(long, env = "FARRIER_LISTEN", default_value = "[::]:8080")]
    pub listen: std::net::SocketAddr,
    /// Address and port of another listener for /livez and /readyz, with connections of its own: clients of --listen can't keep a probe
    /// waiting.
    #[arg(long, env = "FARRIER_PROBE_LISTEN", value_name = "ADDRESS")]
    pub probe_listen: Option<std::net::SocketAddr>,
}

/// Time for which a finished Job is kept. As in runtime-class-manager 0.2.0, an unreadable value is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobTtl {
    /// Seconds. With zero or less, a Job is not kept.
    Seconds(i32),
    /// A text that is not a number of seconds.
    Unreadable(String),
}

impl FromStr for JobTtl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let seconds = text.parse().map(Self::Seconds);
        Ok(seconds.unwrap_or_else(|_| Self::Unreadable(text.to_owned())))
    }
}

/// Handlers that a node declares in addition to the handlers of its own Shims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ReserveHandlers {
    /// The handlers of every Shim in the cluster. A node then restarts containerd once, whatever Shims are added or removed later.
    #[default]
    Shims,
    /// No additional handlers.
    None,
}

/// Options of `farrier uninstall-cluster`.
#[derive(Debug, Args)]
#[command(mut_args = hide_options_of_controller)]
pub struct UninstallCluster {
    /// Deployment of the controller in the namespace. It is scaled to zero replicas first.
    #[arg(long, value_name = "NAME")]
    pub deployment: Option<String>,
    /// Seconds to wait for the nodes. After that, the nodes that still carry shims are listed with their next steps, and the exit status is 0.
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = parse_deadline::<u64>, allow_negative_numbers = true)]
    pub deadline: u64,
    /// Leave the nodes as they are and remove the finalizers only.
    #[arg(long)]
    pub keep_hosts: bool,
    /// The controller's options.
    #[command(flatten)]
    pub controller: Controller,
}

/// Hides the options of the controller: the Deployment sets them, and a person needs none but the namespace.
fn hide_options_of_controller(option: Arg) -> Arg {
    let is_shown = matches!(
        option.get_id().as_str(),
        "deployment" | "deadline" | "keep_hosts" | "namespace"
    );
    option.hide(!is_shown)
}

/// The host, for each subcommand that works on one.
#[derive(Debug, Args)]
pub struct Host {
    /// Directory with the root file system of the host: /host in a Job, or the directory of an unpacked image.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub host_root: PathBuf,
}

/// Options of the subcommands that change a host.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
#[derive(Debug, Args)]
pub struct Change {
    /// The host.
    #[command(flatten)]
    pub host: Host,
    /// Root configuration file of containerd. The default is taken from the running containerd, from its systemd unit, or from the last
    /// change.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the plan and a unified diff of every file, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Change an unpacked image: restart nothing, and connect to no containerd. The containerd of the image checks the configuration,
    /// and the shims are run as a test, if this machine can run them.
    #[arg(long)]
    pub offline: bool,
    /// Restart containerd even if the restart ends every pod of this node.
    #[arg(long)]
    pub allow_pod_restarts: bool,
    /// What to do if the restart of containerd would end pods of shims that do not report their processes, such as most Wasm shims. The
    /// default is the value in the request of a Job, and refuse otherwise.
    #[arg(long, value_enum, value_name = "POLICY")]
    pub on_restart: Option<OnRestart>,
    /// Restart containerd even if the restart puts changes into effect that others made after the start of containerd: of its configuration,
    /// its program or its unit. A change with which containerd fails to start in a rehearsal is still refused.
    #[arg(long)]
    pub accept_pending_changes: bool,
    /// Format of the report on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// What the controller does if a restart of containerd would end pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnRestartOfController {
    /// Wait until the pods have ended.
    #[default]
    Refuse,
    /// Evict the pods, and wait until they have ended.
    Drain,
    /// Restart containerd.
    Allow,
}

/// What a change does if the restart of containerd would end pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnRestart {
    /// Refuse the change, and name the pods.
    Refuse,
    /// Restart containerd.
    Allow,
}

/// What is proven of a handler beside that containerd serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Proof {
    /// Nothing.
    None,
    /// The handler runs a pod sandbox.
    Sandbox,
}

/// Options of `farrier install`.
///
/// One of `--request` and `--shim` is required: without a shim, no handler is reserved. `uninstall` removes all shims.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("set").required(true).multiple(true).args(["request", "shim"]))]
pub struct Install {
    /// JSON file with the complete desired set, in place of --shim.
    #[arg(long, value_name = "FILE", conflicts_with = "shim")]
    pub request: Option<PathBuf>,
    /// Directory with the results of farrier fetch. Without this option, the shims are downloaded now.
    #[arg(long, value_name = "DIR", requires = "request")]
    pub artifacts: Option<PathBuf>,
    /// A shim to install. Repeat the option for several shims. LOCATION is an https://, http:// or file:/// URL. Farrier reads the path of
    /// a file:/// URL below --host-root. Format:
    /// NAME=LOCATION[,sha256=HEX][,handler=HANDLER][,alias=ALIAS]...[,binary=FILE][,option.KEY=VALUE]...
    #[arg(long, value_name = "SPEC", value_parser = parse_shim)]
    pub shim: Vec<ShimRequest>,
    /// Handler to declare without a binary beside those of --shim, so that its shim needs no restart later. Repeat the option for several
    /// handlers. A request has its own list.
    #[arg(
        long,
        value_name = "HANDLER",
        requires = "shim",
        conflicts_with = "request"
    )]
    pub reserve: Vec<String>,
    /// Keep the shims that the command line installed before.
    #[arg(long)]
    pub keep_others: bool,
    /// Install also over shims of the cluster that this node belongs to. The cluster installs its own again later.
    #[arg(long)]
    pub take_over: bool,
    /// What to prove of each handler beside that containerd serves it. sandbox: run and remove a pod sandbox, and undo the change if this
    /// fails. The default is the value in the request of a Job, and none otherwise.
    #[arg(long, value_enum, value_name = "PROOF")]
    pub proof: Option<Proof>,
    /// Whom downloads trust.
    #[command(flatten)]
    pub trust: Trust,
    /// Seconds after which this run is ended from outside, as a Job is at its deadline. The run waits no longer for a containerd that
    /// restores its state. It counts from the creation of --artifacts.
    #[arg(long, value_name = "SECONDS", value_parser = parse_deadline::<u64>, allow_negative_numbers = true, hide = true)]
    pub deadline: Option<u64>,
    /// Also write the report to this file, shortened to fit a container's termination message.
    #[arg(long, value_name = "FILE", hide = true)]
    pub termination_message: Option<PathBuf>,
    /// Options of the change.
    #[command(flatten)]
    pub change: Change,
}

/// Whom downloads trust.
#[derive(Debug, Args)]
pub struct Trust {
    /// PEM file with certificate authorities for downloads, in addition to Mozilla's.
    #[arg(long, env = "FARRIER_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Download also from link-local addresses and from metadata services of clouds, which serve the credentials of a node.
    #[arg(long)]
    pub allow_link_local: bool,
}

/// Options of `farrier uninstall`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["shim", "all"]))]
pub struct Uninstall {
    /// Name of a shim of the command line, or of a handler of KWasm or runtime-class-manager. Repeat the option for several names.
    #[arg(long, value_name = "NAME")]
    pub shim: Vec<String>,
    /// All shims and handlers of Farrier, KWasm and runtime-class-manager, including the shims of the cluster.
    #[arg(long)]
    pub all: bool,
    /// Options of the change.
    #[command(flatten)]
    pub change: Change,
}

/// Options of `farrier fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// JSON file with the complete desired set.
    #[arg(long, value_name = "FILE")]
    pub request: PathBuf,
    /// Directory for the verified binaries and the results.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Whom downloads trust.
    #[command(flatten)]
    pub trust: Trust,
}

/// Options of `farrier doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The host.
    #[command(flatten)]
    pub host: Host,
    /// Root configuration file of containerd. The default is taken from the running containerd, from its systemd unit, or from the last
    /// change.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Examine an unpacked image: connect to no containerd, and do not report that containerd is not running.
    #[arg(long)]
    pub offline: bool,
    /// First end the shim processes that outlived their pods: those that run a binary of Farrier, and that containerd knows neither a
    /// container nor a sandbox of. Their children end with them.
    #[arg(long, conflicts_with = "offline")]
    pub end_orphans: bool,
    /// Format of the result on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Options of `farrier crd`.
#[derive(Debug, Args)]
pub struct Crd {
    /// Write the CustomResourceDefinition to the cluster, also over an older one, and wait until it is established.
    #[arg(long)]
    pub apply: bool,
}

/// Options of `farrier status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Format of the table on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// The longest deadline, in seconds. Kubernetes has the same limit for `activeDeadlineSeconds` of a pod. The Job controller counts in
/// nanoseconds, and a longer deadline of a Job would overflow.
const MAX_DEADLINE: i32 = i32::MAX;

/// Parses a deadline. A Job with a deadline of 0 s fails before its pod starts.
fn parse_deadline<T: From<u32>>(text: &str) -> Result<T, String> {
    let seconds = text.parse::<u32>().ok();
    let seconds = seconds.filter(|seconds| (1..=MAX_DEADLINE.unsigned_abs()).contains(seconds));
    seconds
        .map(T::from)
        .ok_or_else(|| format!("use a whole number of seconds from 1 to {MAX_DEADLINE}"))
}

fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("use JSON: {error}"))
}

/// Refuses the taint that Farrier sets itself, and those of Kubernetes.
fn parse_startup_taint(key: &str) -> Result<String, String> {
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let is_of_kubernetes = prefix == "node-role.kubernetes.io"
        || prefix == "node.kubernetes.io"
        || prefix == "node.cloudprovider.kubernetes.io";
    if key == names::RESTARTING_TAINT || is_of_kubernetes {
        return Err("use a taint that only marks new nodes".to_owned());
    }
    Ok(key.to_owned())
}

fn parse_namespace(name: &str) -> Result<String, &'static str> {
    if name.trim().is_empty() {
        return Err(
            "the namespace is empty: use the namespace of the controller and of its Jobs, or leave CONTROLLER_NAMESPACE unset",
        );
    }
    Ok(name.to_owned())
}

/// As in the KWasm operator (chart 0.2.3): `true` in upper or lower case means yes, and any other text means no.
#[allow(
    clippy::unnecessary_wraps,
    reason = "clap takes a parser that may fail"
)]
fn parse_switch_of_kwasm(text: &str) -> Result<bool, Infallible> {
    Ok(text.eq_ignore_ascii_case("true"))
}

/// Reads `NAME=LOCATION[,sha256=HEX][,handler=HANDLER][,alias=ALIAS]...[,binary=FILE][,option.KEY=VALUE]...`.
fn parse_shim(spec: &str) -> Result<ShimRequest, String> {
    let (name, rest) = spec
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("use NAME=LOCATION[,KEY=VALUE]...")?;
    let mut parts = rest.split(',');
    let location = parts
        .next()
        .filter(|location| !location.is_empty())
        .ok_or("add a LOCATION after NAME=")?;
    let mut shim = ShimRequest {
        name: name.to_owned(),
        handlers: Vec::new(),
        location: location.to_owned(),
        sha256: None,
        binary_sha256: None,
        binary: None,
        options: BTreeMap::new(),
        keep: false,
        present: None,
        first_binary_sha256: None,
        proof: handoff::Proof::None,
    };
    let mut handler = name.to_owned();
    let mut given = BTreeSet::new();
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not of the form KEY=VALUE"))?;
        if key != "alias" && !given.insert(key) {
            return Err(format!("the key {key:?} occurs twice"));
        }
        match key {
            "sha256" => {
                let digest = value.parse();
                shim.sha256 = Some(digest.map_err(|error: InvalidDigest| error.to_string())?);
            }
            "binary" => shim.binary = Some(value.to_owned()),
            "handler" => value.clone_into(&mut handler),
            "alias" => shim.handlers.push(value.to_owned()),
            _ => match key.strip_prefix("option.") {
                Some(option) if !option.is_empty() => {
                    shim.options
                        .insert(option.to_owned(), OptionValue::from_text(value));
                }
                _ => {
                    return Err(format!(
                        "unknown key {key:?}: use sha256, handler, alias, binary or option.KEY"
                    ));
                }
            },
        }
    }
    shim.handlers.insert(0, handler);
    Ok(shim)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use rstest::rstest;

    use super::*;
    use crate::handoff::Sha256Digest;

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_former_name_of_uninstall_cluster_is_still_read_and_not_shown() {
        for name in ["uninstall-cluster", "leave"] {
            let words = ["farrier", name, "--image=farrier", "--keep-hosts"];
            match Cli::try_parse_from(words).unwrap().command {
                Command::UninstallCluster(options) => assert!(options.keep_hosts),
                other => panic!("{other:?}"),
            }
        }
        let help = Cli::command().render_help().to_string();
        assert!(
            help.contains("uninstall-cluster") && !help.contains("leave"),
            "{help}"
        );
    }

    #[test]
    fn help_texts_have_short_lines_without_markup_and_the_host_commands_have_examples() {
        let mut whole = Cli::command();
        whole.build();
        for command in whole.get_subcommands_mut() {
            let (name, help) = (
                command.get_name().to_owned(),
                command.render_long_help().to_string(),
            );
            assert!(!help.contains('`'), "{help}");
            assert!(
                help.lines().all(|line| line.chars().count() <= 120),
                "{help}"
            );
            let has_examples = help.contains("Example");
            let needs_examples =
                ["install", "uninstall", "doctor", "uninstall-cluster"].contains(&name.as_str());
            assert_eq!(has_examples, needs_examples, "{help}");
        }
    }

    #[test]
    fn the_help_of_uninstall_cluster_has_no_option_of_the_deployment() {
        let mut command = Cli::command();
        let command = command.find_subcommand_mut("uninstall-cluster").unwrap();
        let shown = command
            .get_arguments()
            .filter(|option| !option.is_hide_set());
        let shown: Vec<&str> = shown.map(|option| option.get_id().as_str()).collect();
        assert_eq!(shown, ["deployment", "deadline", "keep_hosts", "namespace"]);
        let words = ["farrier", "leave", "--image=farrier", "--job-ttl=60"];
        assert!(Cli::try_parse_from(words).is_ok());
    }

    #[test]
    fn an_install_without_shims_is_a_usage_error() {
        assert!(Cli::try_parse_from(["farrier", "install"]).is_err());
        for alone in [&["--reserve=spin"][..], &["--reserve=spin", "--request=r"]] {
            let words = [&["farrier", "install"], alone].concat();
            let refusal = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(refusal.exit_code(), 2, "{refusal}");
        }
        assert!(
            Cli::try_parse_from(["farrier", "install", "--reserve=spin", "--shim=a=file:///a"])
                .is_ok()
        );
    }

    fn controller(argument: &str) -> Result<Controller, clap::Error> {
        let words = ["farrier", "controller", "--image=farrier", argument];
        match Cli::try_parse_from(words)?.command {
            Command::Controller(controller) => Ok(controller),
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case("--namespace=")]
    #[case("--namespace= ")]
    fn an_empty_namespace_is_refused_with_help(#[case] argument: &str) {
        let refusal = controller(argument).unwrap_err().to_string();
        assert!(
            refusal.contains("the namespace is empty: use the"),
            "{refusal}"
        );
    }

    #[rstest]
    fn a_deadline_of_zero_or_less_is_a_usage_error(
        #[values("0", "-1", "", "1.5", "30s", "2147483648", "9223372036854775807")] text: &str,
        #[values(
            &["controller", "--image=farrier", "--job-deadline"],
            &["leave", "--image=farrier", "--job-deadline"],
            &["leave", "--image=farrier", "--deadline"],
            &["install", "--shim=a=file:///a", "--deadline"]
        )]
        words: &[&str],
    ) {
        let words = [&["farrier"], words, &[text]].concat();
        let refusal = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(refusal.exit_code(), 2);
        let message = refusal.to_string();
        let expected = "use a whole number of seconds from 1 to 2147483647";
        assert!(message.contains(expected), "{message}");
    }

    #[rstest]
    #[case("1", 1)]
    #[case("1800", 1800)]
    #[case("2147483647", 2_147_483_647)]
    fn a_positive_number_of_seconds_is_a_deadline(#[case] text: &str, #[case] expected: i64) {
        let options = controller(&format!("--job-deadline={text}")).unwrap();
        assert_eq!(options.job_deadline, expected);
    }

    #[rstest]
    #[case("60", JobTtl::Seconds(60))]
    #[case("-1", JobTtl::Seconds(-1))]
    #[case("", JobTtl::Unreadable(String::new()))]
    #[case("1h", JobTtl::Unreadable("1h".to_owned()))]
    #[case("2147483648", JobTtl::Unreadable("2147483648".to_owned()))]
    fn an_invalid_job_lifetime_is_parsed_as_unreadable(
        #[case] text: &str,
        #[case] expected: JobTtl,
    ) {
        let options = controller(&format!("--job-ttl={text}")).unwrap();
        assert_eq!(options.job_ttl, Some(expected));
    }

    #[rstest]
    #[case("--job-labels={\"a\":1}")]
    #[case("--job-annotations=a=b")]
    #[case("--job-resources=[]")]
    #[case("--startup-taints=farrier.dev/not-ready,farrier.dev/restarting")]
    #[case("--startup-taints=node.kubernetes.io/not-ready")]
    #[case("--startup-taints=node-role.kubernetes.io/control-plane")]
    fn a_setting_of_jobs_or_taints_that_can_not_be_used_is_a_usage_error(#[case] argument: &str) {
        assert_eq!(controller(argument).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn startup_taints_are_separated_by_commas() {
        let taints = |argument: &str| controller(argument).unwrap().startup_taints;
        let expected = ["farrier.dev/not-ready", "a.example/b"];
        assert_eq!(
            taints("--startup-taints=farrier.dev/not-ready,a.example/b"),
            expected
        );
        assert_eq!(taints("--job-labels={}"), ["farrier.dev/not-ready"]);
    }

    #[rstest]
    #[case("true", true)]
    #[case("True", true)]
    #[case("TRUE", true)]
    #[case("false", false)]
    #[case("", false)]
    #[case("1", false)]
    #[case("yes", false)]
    fn auto_provision_accepts_the_values_that_kwasm_accepts(
        #[case] text: &str,
        #[case] expected: bool,
    ) {
        let options = controller(&format!("--auto-provision={text}")).unwrap();
        assert_eq!(options.auto_provision, expected);
    }

    #[test]
    fn a_shim_argument_is_parsed_to_a_request() {
        let digest = Sha256Digest::of(b"a");
        let spec = format!(
            "spin-v2=https://example.org/a.tar.gz?x=1,sha256={digest},alias=spin,option.SystemdCgroup=true"
        );
        let shim = parse_shim(&spec).unwrap();
        assert_eq!(shim.handlers, ["spin-v2", "spin"]);
        assert_eq!(shim.location, "https://example.org/a.tar.gz?x=1");
        assert_eq!(shim.sha256, Some(digest));
        assert_eq!(shim.options["SystemdCgroup"], OptionValue::Boolean(true));
    }

    #[test]
    fn a_shim_argument_can_name_the_file_in_an_archive() {
        let shim = parse_shim("spin=file:///a.tar.gz,binary=containerd-shim-spin-v2").unwrap();
        assert_eq!(shim.binary.as_deref(), Some("containerd-shim-spin-v2"));
    }

    #[test]
    fn a_shim_argument_without_location_or_with_an_unknown_key_is_a_usage_error() {
        for spec in [
            "spin",
            "=x",
            "spin=",
            "spin=x,colour=red",
            "spin=x,sha256",
            "spin=x,sha256=ab",
            "spin=x,option.=1",
            "spin=x,option.A=1,option.A=2",
            "spin=x,handler=a,handler=b",
        ] {
            assert!(parse_shim(spec).is_err(), "{spec}");
        }
    }
}
