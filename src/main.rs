//! Parses the command line, sets up telemetry, calls the subcommand and returns its exit status. Takes no decision.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, ValueEnum as _};
use farrier::cli::{self, Cli, Command, JobTtl, LogFormat, Output, ReserveHandlers};
use farrier::controller;
use farrier::handoff::{OnRestart, Proof, printable};
use farrier::installer::containerd::patience::Deadline;
use farrier::installer::containerd::rehearsal;
use farrier::installer::report::text;
use farrier::installer::transaction::interrupts::Interrupts;
use farrier::installer::{
    self, FetchOptions, HostOptions, InstallOptions, Mode, RequestSource, RunResult, Target, USAGE,
    UninstallOptions,
};
use farrier::telemetry;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments
        .get(1)
        .is_some_and(|argument| argument == installer::host::exec::CHILD_ARGUMENT)
    {
        let status = installer::host::exec::child_main(arguments.split_off(2));
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    if arguments
        .get(1)
        .is_some_and(|argument| argument == rehearsal::CHILD_ARGUMENT)
    {
        let status = rehearsal::child_main(&arguments[2..]);
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    installer::host::exec::enable_child_main(None);
    let matches = Cli::command().get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let format = match cli.log_format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    if let Err(error) = telemetry::init(log_filter(&cli, &matches), format) {
        telemetry::print_error(&error, Some(error.help()));
        return ExitCode::from(USAGE);
    }
    // The one provider of cryptography in the process, for both HTTP clients. An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let logging = Logging {
        filter: cli.log,
        format: cli.log_format,
    };
    let status = runtime.block_on(dispatch(cli.command, logging));
    // A thread may still wait for a program of the host that even SIGKILL does not end. This process ends without that thread.
    runtime.shutdown_background();
    status
}

/// How this process logs, and how the Jobs of a controller do.
struct Logging {
    filter: String,
    format: LogFormat,
}

/// The filter of this process. A command that only prints something has a filter of its own: in the pod of the controller, the environment
/// has that of the controller.
fn log_filter<'a>(cli: &'a Cli, matches: &ArgMatches) -> &'a str {
    let is_typed = matches.value_source("log") == Some(ValueSource::CommandLine);
    match cli.command {
        Command::Status(_) | Command::Completions { .. } if !is_typed => "warn",
        Command::Install(_)
        | Command::Uninstall(_)
        | Command::Fetch(_)
        | Command::Doctor(_)
        | Command::Controller(_)
        | Command::UninstallCluster(_)
        | Command::Status(_)
        | Command::Crd(_)
        | Command::Completions { .. } => &cli.log,
    }
}

/// The async runtime for a command.
fn runtime(command: &Command) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        // Both commands summarise thousands of nodes. This work must delay neither the renewal of the Lease nor an answer to a probe.
        Command::Controller(_) | Command::UninstallCluster(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        // These commands wait for one host or for the API server. A node may have hundreds of CPUs, and one thread per CPU would cost a Job
        // start-up time and memory, whose limit is low.
        Command::Install(_)
        | Command::Uninstall(_)
        | Command::Fetch(_)
        | Command::Doctor(_)
        | Command::Status(_)
        | Command::Crd(_)
        | Command::Completions { .. } => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

async fn dispatch(command: Command, logging: Logging) -> ExitCode {
    match command {
        Command::Install(install) => run_install(install).await,
        Command::Uninstall(uninstall) => run_uninstall(uninstall).await,
        Command::Fetch(fetch) => run_fetch(fetch).await,
        Command::Doctor(doctor) => run_doctor(doctor).await,
        Command::Controller(controller) => run_controller(controller, logging).await,
        Command::UninstallCluster(uninstall) => run_uninstall_cluster(uninstall, logging).await,
        Command::Status(cli::Status { output }) => {
            match controller::status_table(output == Output::Json).await {
                Ok(status) if status.has_failure => {
                    print(&status.text);
                    ExitCode::FAILURE
                }
                Ok(status) => print(&status.text),
                Err(error) => fail_with_help(&error, error.help().as_deref()),
            }
        }
        Command::Crd(cli::Crd { apply: false }) => print(&farrier::api::crd_yaml()),
        Command::Crd(cli::Crd { apply: true }) => match controller::install_crd().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail_with_help(&error, error.help().as_deref()),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "farrier", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

fn settings(controller: cli::Controller, logging: Logging) -> controller::Settings {
    let cli::Controller {
        namespace,
        image,
        image_pull_policy,
        image_pull_secrets,
        job_service_account,
        ca_config_map,
        job_ttl,
        job_deadline,
        auto_provision,
        allow_pod_restarts,
        on_restart,
        drain_timeout,
        accept_pending_changes,
        job_host_pid,
        job_allow_link_local,
        job_priority_class,
        job_labels,
        job_annotations,
        job_resources,
        job_http_proxy,
        job_https_proxy,
        job_no_proxy,
        startup_taints,
        reserve_handlers,
        lease_name,
        identity,
        listen,
        probe_listen,
    } = controller;
    controller::Settings {
        namespace,
        image,
        image_pull_policy,
        image_pull_secrets,
        job_service_account,
        ca_config_map,
        job_ttl: job_ttl.and_then(seconds),
        job_deadline,
        auto_provision,
        allow_pod_restarts,
        on_restart: match on_restart {
            cli::OnRestartOfController::Refuse => OnRestart::Refuse,
            cli::OnRestartOfController::Drain => OnRestart::Drain,
            cli::OnRestartOfController::Allow => OnRestart::Allow,
        },
        drain_timeout: drain_timeout
            .and_then(|seconds| Some(Duration::from_secs(seconds.try_into().ok()?))),
        accept_pending_changes,
        job_host_pid,
        job_allow_link_local,
        job_priority_class,
        job_labels: job_labels.unwrap_or_default(),
        job_annotations: job_annotations.unwrap_or_default(),
        job_resources,
        job_proxies: [
            ("HTTP_PROXY", job_http_proxy),
            ("HTTPS_PROXY", job_https_proxy),
            ("NO_PROXY", job_no_proxy),
        ]
        .into_iter()
        .filter_map(|(variable, value)| Some((variable, value?)))
        .collect(),
        // The value of an empty variable is one empty key.
        startup_taints: startup_taints
            .into_iter()
            .filter(|key| !key.is_empty())
            .collect(),
        reserve_handlers: reserve_handlers == ReserveHandlers::Shims,
        log_filter: logging.filter,
        log_format: logging
            .format
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        lease_name,
        identity: identity.unwrap_or_else(identity_of_process),
        listen,
        probe_listen,
    }
}

fn seconds(ttl: JobTtl) -> Option<i32> {
    match ttl {
        JobTtl::Seconds(seconds) => Some(seconds),
        JobTtl::Unreadable(text) => {
            warn!(
                help = "set a number of seconds to keep finished Jobs",
                "ignoring SHIM_NODE_INSTALLER_JOB_TTL: {text:?} is not a number of seconds"
            );
            None
        }
    }
}

fn identity_of_process() -> String {
    // On a host without a name, the identity consists of the PID alone.
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{}-{}", host.to_string_lossy(), std::process::id())
}

async fn run_controller(controller: cli::Controller, logging: Logging) -> ExitCode {
    match controller::run(settings(controller, logging)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The controller writes nothing but log lines.
            error!(help = error.help().as_deref(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run_uninstall_cluster(uninstall: cli::UninstallCluster, logging: Logging) -> ExitCode {
    let cli::UninstallCluster {
        deployment,
        deadline,
        keep_hosts,
        controller,
    } = uninstall;
    let options = controller::UninstallOptions {
        deployment,
        deadline: Duration::from_secs(deadline),
        keep_hosts,
    };
    match controller::uninstall(settings(controller, logging), options).await {
        Ok(summary) => print(&summary.to_string()),
        Err(error) => fail_with_help(&error, error.help().as_deref()),
    }
}

/// With `--offline` the host is an image.
fn target(offline: bool) -> Target {
    if offline { Target::Image } else { Target::Live }
}

fn host_options(change: &cli::Change) -> HostOptions {
    HostOptions {
        root: change.host.host_root.clone(),
        config: change.config.clone(),
        target: target(change.offline),
        allow_pod_restarts: change.allow_pod_restarts,
        on_restart: change.on_restart.map(|policy| match policy {
            cli::OnRestart::Refuse => OnRestart::Refuse,
            cli::OnRestart::Allow => OnRestart::Allow,
        }),
        accept_pending_changes: change.accept_pending_changes,
    }
}

/// The mode of a run, and the signals that undo a change. A dry run has nothing to undo, so a signal ends the process as usual.
fn mode(change: &cli::Change) -> Result<(Mode, Interrupts), ExitCode> {
    if change.dry_run {
        Ok((Mode::DryRun, Interrupts::default()))
    } else {
        Ok((Mode::Change, listen()?))
    }
}

async fn run_install(install: cli::Install) -> ExitCode {
    let cli::Install {
        request,
        artifacts,
        shim,
        reserve,
        keep_others,
        take_over,
        proof,
        trust,
        deadline,
        termination_message,
        change,
    } = install;
    let (mode, mut interrupts) = match mode(&change) {
        Ok(mode) => mode,
        Err(status) => return status,
    };
    if let Some(seconds) = deadline {
        let limit = Duration::from_secs(seconds);
        interrupts.deadline = Deadline::of_job(limit, artifacts.as_deref());
    }
    let options = InstallOptions {
        host: host_options(&change),
        source: match request {
            Some(path) => RequestSource::File(path),
            None => RequestSource::CommandLine {
                shims: shim,
                reserve,
            },
        },
        artifacts,
        keep_others,
        take_over,
        proof: proof.map(|proof| match proof {
            cli::Proof::None => Proof::None,
            cli::Proof::Sandbox => Proof::Sandbox,
        }),
        ca_file: trust.ca_file,
        allow_link_local: trust.allow_link_local,
        interrupts,
    };
    let result = installer::install(&options, mode).await;
    if mode == Mode::Change
        && let Some(path) = termination_message
        && let Err(error) = write_message(&path, &result.report.to_termination_message())
    {
        fail(&format!(
            "failed to write the report to {}: {error}",
            path.display()
        ));
    }
    print_result(&result, change.output)
}

async fn run_uninstall(uninstall: cli::Uninstall) -> ExitCode {
    let cli::Uninstall { shim, all, change } = uninstall;
    let (mode, interrupts) = match mode(&change) {
        Ok(mode) => mode,
        Err(status) => return status,
    };
    let options = UninstallOptions {
        host: host_options(&change),
        shims: (!all).then(|| shim.into_iter().collect()),
        interrupts,
    };
    let result = installer::uninstall(&options, mode).await;
    print_result(&result, change.output)
}

async fn run_fetch(fetch: cli::Fetch) -> ExitCode {
    let cli::Fetch {
        request,
        out,
        trust,
    } = fetch;
    let source = RequestSource::File(request);
    let options = FetchOptions {
        ca_file: trust.ca_file.as_deref(),
        allow_link_local: trust.allow_link_local,
        cpu: None,
    };
    let interrupts = match listen() {
        Ok(interrupts) => interrupts,
        Err(status) => return status,
    };
    let fetched = tokio::select! {
        biased;
        name = interrupts.received() => {
            let interrupted = format!("interrupted by {name}");
            return fail_with_help(&interrupted, Some("run the same command again"));
        }
        fetched = installer::fetch(&source, &out, options) => fetched,
    };
    match fetched {
        Ok(results) => {
            for result in results {
                if let Some(reason) = result.reason {
                    let reason = format!("shim {}: {reason}", result.shim);
                    fail_with_help(&reason, result.remedy.as_deref());
                } else if result.present {
                    info!(
                        shim = result.shim,
                        "not fetched: the binary is on the node already"
                    );
                } else {
                    info!(shim = result.shim, "fetched and verified");
                }
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let status = fail_with_help(&error, error.help().as_deref());
            if error.is_usage() {
                ExitCode::from(USAGE)
            } else {
                status
            }
        }
    }
}

/// Listens for the signals that end a command.
fn listen() -> Result<Interrupts, ExitCode> {
    Interrupts::listen().map_err(|error| fail(&format!("failed to listen for signals: {error}")))
}

async fn run_doctor(doctor: cli::Doctor) -> ExitCode {
    let cli::Doctor {
        host,
        config,
        offline,
        end_orphans,
        output,
    } = doctor;
    let options = HostOptions {
        root: host.host_root,
        config,
        target: target(offline),
        allow_pod_restarts: false,
        on_restart: None,
        accept_pending_changes: false,
    };
    let diagnosis = if end_orphans {
        installer::end_orphans(&options).await
    } else {
        installer::doctor(&options).await
    };
    let printed = match output {
        Output::Text => print(&text::diagnosis_text(&diagnosis)),
        Output::Json => match serde_json::to_string(&diagnosis) {
            Ok(json) => print_line(&json),
            Err(error) => fail(&error),
        },
    };
    if diagnosis.healthy {
        printed
    } else {
        ExitCode::FAILURE
    }
}

fn print_result(result: &RunResult, output: Output) -> ExitCode {
    // The exit status is that of the change, also if standard output is closed. `print` logs such an error.
    let _ = match output {
        Output::Text => print(&result.text),
        Output::Json => print_line(&result.report.to_json()),
    };
    ExitCode::from(result.exit_status())
}

/// Writes the termination message. The kubelet creates the file before the container starts. The file may be a bind mount, so it is
/// overwritten in place.
fn write_message(path: &Path, message: &str) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all_at(message.as_bytes(), 0)
}

fn print_line(text: &str) -> ExitCode {
    print(&format!("{text}\n"))
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    fail_with_help(error, None)
}

fn fail_with_help(error: &dyn std::fmt::Display, help: Option<&str>) -> ExitCode {
    // Texts of other programs and servers may be part of both.
    let help = help.map(printable);
    telemetry::print_error(&printable(&error.to_string()), help.as_deref());
    ExitCode::FAILURE
}
