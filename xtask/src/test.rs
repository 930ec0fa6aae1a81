//! `cargo xtask test`: all checks and tests, or one part of them. The output of a step is printed if the step fails.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::artifacts;
use crate::cache::Cache;
use crate::cargo;
use crate::cluster::{self, NodeSetup, NodeSpec, Spec};
use crate::demo;
use crate::generate;
use crate::image::{self, Parts};
use crate::interrupt;
use crate::process;
use crate::progress::Progress;
use crate::tools::{ContainerdVersion, Tool};

const CARGO_DENY: &str = "0.20.2";
const CARGO_MACHETE: &str = "0.9.2";

/// The module of the end-to-end tests with random steps, which take as long as they are told to.
const CHAOS: &str = "chaos::";

/// Longest failure of one test in the message of a run, in characters: an assertion may print whole reports.
const LONGEST_FAILURE: usize = 2_500;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The part to run. The default is all parts.
    part: Option<Part>,
    /// Run only the tests whose name contains this text.
    #[arg(requires = "part")]
    filter: Option<String>,
    /// Name of the cluster for the end-to-end tests. Clusters with different names can run side by side.
    #[arg(long, default_value = "test")]
    name: String,
}

/// A part of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Format, lints, licences, unused dependencies, generated files.
    Lint,
    /// Unit and integration tests that need neither Helm nor a cluster.
    Unit,
    /// All configurations of the corpus, on four releases of containerd.
    Corpus,
    /// Changes, kills and faults on four releases of containerd, without a cluster.
    Live,
    /// The tests of the chart.
    Chart,
    /// End-to-end tests on a cluster of this machine.
    Cluster,
}

/// Runs the parts that `options` name.
///
/// # Errors
/// At the first step that fails.
pub fn run(options: &Options, cache: &Cache, progress: &Progress) -> Result<()> {
    let Options { part, filter, name } = options;
    let filter = filter.as_deref();
    if *part == Some(Part::Lint) && filter.is_some() {
        bail!("lint has no tests: remove the name of a test");
    }
    let wanted = |this: Part| part.is_none_or(|part| part == this);
    if wanted(Part::Lint) {
        lint(cache, progress)?;
    }
    if wanted(Part::Unit) {
        tests(progress, "cargo test", &["--workspace"], &[], filter)?;
    }
    if wanted(Part::Corpus) {
        with_containerds("corpus", None, cache, progress, filter)?;
    }
    if wanted(Part::Live) {
        with_containerds("live", live_threads(), cache, progress, filter)?;
    }
    if wanted(Part::Chart) {
        chart(cache, progress, filter)?;
    }
    if wanted(Part::Cluster) {
        let filters: Vec<&str> = filter.into_iter().chain(["--skip", CHAOS]).collect();
        end_to_end(name, cache, progress, &filters, &[])?;
    }
    Ok(())
}

/// Options of `cargo xtask chaos`.
#[derive(Debug, clap::Args)]
pub struct ChaosOptions {
    /// How long steps are taken, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// The seed of the random steps; with the same seed, the same steps are taken in the same order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Name of the cluster. Clusters with different names can run side by side.
    #[arg(long, default_value = "chaos")]
    name: String,
}

/// Takes random steps on a cluster of the end-to-end tests.
///
/// # Errors
/// When the cluster is not as asked for after a step.
pub fn chaos(options: &ChaosOptions, cache: &Cache, progress: &Progress) -> Result<()> {
    let env = [
        ("FARRIER_MINUTES", options.minutes.to_string()),
        ("FARRIER_SEED", options.seed.to_string()),
    ];
    let filters = [CHAOS, "--nocapture"];
    end_to_end(&options.name, cache, progress, &filters, &env)
}

/// Compares the dependencies with the advisories of rustsec.org. This needs the network.
///
/// # Errors
/// When one of them applies, or the database can't be fetched.
pub fn advisories(cache: &Cache, progress: &Progress) -> Result<()> {
    let deny = installed("cargo-deny", CARGO_DENY, cache, progress)?;
    quiet(
        progress,
        "cargo deny check advisories",
        Command::new(deny).args(["check", "advisories"]),
    )
}

fn lint(cache: &Cache, progress: &Progress) -> Result<()> {
    quiet(
        progress,
        "cargo fmt --check",
        &mut cargo::command(&["fmt", "--all", "--check"]),
    )?;
    // Cargo leaves out targets with `test = false` from `--all-targets`, and ignores names of targets beside that option.
    let named = [
        "--package=farrier",
        "--test=corpus",
        "--test=live",
        "--test=chart",
        "--test=cluster",
        "--bench=host",
        "--bench=cluster",
    ];
    for targets in [&["--workspace", "--all-targets"][..], &named] {
        let arguments = [
            &["clippy", "--quiet", "--locked"],
            targets,
            &["--", "-D", "warnings"],
        ];
        let mut clippy = cargo::command(&arguments.concat());
        quiet(progress, "cargo clippy", &mut clippy)?;
    }
    let deny = installed("cargo-deny", CARGO_DENY, cache, progress)?;
    let checks = ["check", "bans", "licenses", "sources"];
    quiet(
        progress,
        "cargo deny check bans licenses sources",
        Command::new(deny).args(checks),
    )?;
    let machete = installed("cargo-machete", CARGO_MACHETE, cache, progress)?;
    quiet(progress, "cargo machete", &mut Command::new(machete))?;
    generate::generate(true, cache, progress)
}

fn chart(cache: &Cache, progress: &Progress, filter: Option<&str>) -> Result<()> {
    let helm = cache.tool(Tool::Helm, progress)?.join("helm");
    let lint = ["lint", "--strict", "charts/farrier"];
    quiet(progress, "helm lint", Command::new(&helm).args(lint))?;
    let env = [("FARRIER_HELM", helm)];
    tests(
        progress,
        "cargo test --test chart",
        &["--test", "chart"],
        &env,
        filter,
    )
}

/// The number of tests on whole nodes at a time: most of their time, they wait for a containerd, so that one per processor would leave the
/// processors idle.
fn live_threads() -> Option<usize> {
    let processors = std::thread::available_parallelism().ok()?;
    Some(processors.get() * 2)
}

/// Runs the test program `name` with every containerd, with so many threads or one per processor.
fn with_containerds(
    name: &str,
    threads: Option<usize>,
    cache: &Cache,
    progress: &Progress,
    filter: Option<&str>,
) -> Result<()> {
    let programs = ContainerdVersion::ALL
        .into_iter()
        .map(|version| {
            let directory = cache.tool(Tool::Containerd(version), progress)?;
            Ok(directory.join("containerd"))
        })
        .collect::<Result<Vec<_>>>()?;
    let programs =
        std::env::join_paths(programs).context("the path of the cache contains a colon")?;
    let mut env = vec![("FARRIER_CONTAINERDS", PathBuf::from(programs))];
    env.extend(threads.map(|threads| ("RUST_TEST_THREADS", threads.to_string().into())));
    tests(
        progress,
        &format!("cargo test --test {name}"),
        &["--test", name],
        &env,
        filter,
    )
}

/// The end-to-end tests that `filters` select, on a cluster with one node per line of containerd. They install Farrier themselves.
fn end_to_end(
    name: &str,
    cache: &Cache,
    progress: &Progress,
    filters: &[&str],
    env: &[(&str, String)],
) -> Result<()> {
    let mut build = cargo::command(&["test", "--locked", "--test", "cluster", "--no-run"]);
    quiet(progress, "building the end-to-end tests", &mut build)?;
    let parts = Parts::build(cache, progress)?;
    let spec = Spec {
        name: name.to_owned(),
        nodes: vec![
            // On 1.x an imported file can hide the root's sections: the one node has such a directory, the other does not.
            NodeSpec {
                setup: NodeSetup::DropIn,
                ..NodeSpec::new("n16", ContainerdVersion::V1_6)
            },
            NodeSpec::new("n17", ContainerdVersion::V1_7),
            NodeSpec::new("n21", ContainerdVersion::V2_1),
            NodeSpec::new("n24", ContainerdVersion::V2_4),
        ],
        controller_manager_qps: None,
    };
    let cluster = cluster::up(cache, &spec, progress)?;
    let result = (|| {
        let (served, _) = artifacts::start(&cluster, &parts.shim, progress)?;
        progress.step("loading images on the nodes", || {
            cluster.load(&parts.farrier_image)?;
            cluster.load(&parts.hello_image)
        })?;
        // These tests take minutes, so their output is shown at once.
        progress.line("cargo test --test cluster");
        let mut command = cargo::command(&["test", "--locked", "--test", "cluster", "--"]);
        command
            .args(filters)
            // The tests share one cluster, which can have one Farrier.
            .arg("--test-threads=1")
            .env("FARRIER_CLUSTER", cluster.state_path())
            .env("FARRIER_ARTIFACTS", served)
            .env("FARRIER_BINARY", &parts.binary)
            .env("FARRIER_IMAGE", image::FARRIER)
            .env("FARRIER_HELLO_IMAGE", image::HELLO)
            .env("FARRIER_XTASK", process::own_program())
            .envs(env.iter().map(|(name, value)| (name, value)));
        aloud(&mut command, progress)
    })();
    if result.is_err() {
        demo::diagnose(&cluster, progress);
    }
    let down = progress.step("taking the cluster down", || cluster.down());
    result.and(down)
}

/// Runs `cargo test` and prints the last line of each test binary.
fn tests(
    progress: &Progress,
    what: &str,
    arguments: &[&str],
    env: &[(&str, PathBuf)],
    filter: Option<&str>,
) -> Result<()> {
    let mut command = cargo::command(&["test", "--locked", "--no-fail-fast"]);
    command.args(arguments).arg("--").args(filter);
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let output = progress.step(what, || whole(progress, what, &mut command))?;
    for line in output
        .lines()
        .filter(|line| line.starts_with("test result:"))
    {
        progress.line(line);
    }
    Ok(())
}

fn quiet(progress: &Progress, what: &str, command: &mut Command) -> Result<()> {
    progress.step(what, || {
        whole(progress, what, command.current_dir(cargo::workspace()))
    })?;
    Ok(())
}

/// Runs `command` and returns its standard output. If the command fails, prints all of its output.
fn whole(progress: &Progress, what: &str, command: &mut Command) -> Result<String> {
    let output = process::output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        progress.line(String::from_utf8_lossy(&output.stderr).trim_end());
        progress.line(text.trim_end());
        bail!("{what} failed ({}){}", output.status, failed_tests(&text));
    }
    Ok(text)
}

/// The end of a message about a failed run of tests: the names of the failed tests, each with the first lines of its failure. A log that is
/// cut from its start still has them.
fn failed_tests(output: &str) -> String {
    let lines = output.lines();
    let names = lines.filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let failure = |name: &str| {
        let shown = output.split_once(&format!("---- {name} stdout ----\n"));
        let shown = shown.and_then(|(_, shown)| shown.split("\n---- ").next());
        let shown = shown.unwrap_or_default();
        let panic = shown.split_once("panicked at ");
        let lines = panic.map_or(shown, |(_, panic)| panic).lines();
        let lines: Vec<&str> = lines.take(40).map(str::trim).collect();
        let lines: String = lines.join(" ").chars().take(LONGEST_FAILURE).collect();
        format!("\n{name}: {lines}")
    };
    names.map(failure).collect()
}

/// Runs the end-to-end tests, and prints each line of them at once, that of a test with the time that the test took.
fn aloud(command: &mut Command, progress: &Progress) -> Result<()> {
    use std::os::unix::process::CommandExt as _;

    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let (mut child, tracked) = interrupt::spawn_tracked(command).context("failed to run cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let (mut output, mut since) = (String::new(), Instant::now());
    for line in BufReader::new(stdout).lines() {
        let line = line.context("failed to read the output of cargo")?;
        let took = if line.starts_with("test ") && line.contains(" ... ") {
            format!(" ({:.1} s)", since.elapsed().as_secs_f64())
        } else {
            String::new()
        };
        progress.line(&format!("{line}{took}"));
        since = Instant::now();
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait().context("failed to wait for cargo")?;
    drop(tracked);
    if !status.success() {
        let failed = failed_tests(&output);
        bail!("the end-to-end tests failed ({status}){failed}");
    }
    Ok(())
}

/// A cargo plugin of that version, installed into the cache if need be.
fn installed(name: &str, version: &str, cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let directory = cache.publish(&format!("tools/{name}-{version}"), |directory: &Path| {
        progress.step(format!("installing {name} {version}"), || {
            process::run(
                cargo::command(&[
                    "install",
                    "--locked",
                    "--no-default-features",
                    "--version",
                    version,
                ])
                .arg("--root")
                .arg(directory)
                .arg(name)
                // The build directory is removed below, because the tool is built once.
                .env("CARGO_TARGET_DIR", directory.join("build")),
            )?;
            std::fs::remove_dir_all(directory.join("build"))
                .context("failed to remove build results")
        })
    })?;
    Ok(directory.join("bin").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_failed_run_names_the_failed_tests_and_their_failures() {
        let output = "\
running 3 tests
test a::works ... ok
test a::breaks ... FAILED
test b::breaks ... FAILED

failures:

---- a::breaks stdout ----
waited for it
thread 'a::breaks' panicked at tests/a.rs:7:5:
assertion `left == right` failed
  left: 1

---- b::breaks stdout ----
Error: \"no node\"
";
        assert_eq!(
            failed_tests(output),
            "\na::breaks: tests/a.rs:7:5: assertion `left == right` failed left: 1\nb::breaks: Error: \"no node\""
        );
    }
}
