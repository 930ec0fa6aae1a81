//! What a dump shows and containerd takes note of only when it starts: settings on which the daemon, or its CRI, does not come up.
//!
//! The rules are those of containerd 1.6 to 2.4 (`cmd/containerd`, `pkg/timeout`, `ValidatePluginConfig` and `ValidateRuntimeConfig` of
//! the CRI). What depends on the host, such as a file that must exist, can't be told here.

use super::Error;
use super::document::Document;
use super::judge::runtimes_of_dump;
use super::tree::{Tree, at, boolean, leaf};

/// Levels that logrus, containerd's logger, knows.
const LEVELS: [&str; 8] = [
    "panic", "fatal", "error", "warn", "warning", "info", "debug", "trace",
];

/// Kinds of plugins that containerd has had from 1.6 to 2.4 (`plugin.Type`); which plugins of a kind there are depends on the build.
const KINDS: [&str; 31] = [
    "content",
    "cri",
    "differ",
    "event",
    "gc",
    "grpc",
    "http",
    "image-verifier",
    "internal",
    "lease",
    "metadata",
    "metrics",
    "monitor",
    "monitor.container",
    "monitor.task",
    "mount-handler",
    "mount-manager",
    "nri",
    "podsandbox.controller",
    "runtime",
    "sandbox.controller",
    "sandbox.store",
    "server",
    "service",
    "shim",
    "snapshotter",
    "streaming",
    "tracing.processor",
    "transfer",
    "ttrpc",
    "warning",
];

/// Plugins that every release has and whose absence keeps the CRI down: tried one by one on 1.6.36, 1.7.35, 2.1.9 and 2.4.2. Releases
/// need others beside them; where a list names one that they do not have, nothing comes of it.
const NEEDED: [&str; 15] = [
    "content.v1.content",
    "differ.v1.walking",
    "event.v1.exchange",
    "gc.v1.scheduler",
    "metadata.v1.bolt",
    "runtime.v2.task",
    "service.v1.containers-service",
    "service.v1.content-service",
    "service.v1.diff-service",
    "service.v1.images-service",
    "service.v1.introspection-service",
    "service.v1.namespaces-service",
    "service.v1.snapshots-service",
    "service.v1.tasks-service",
    "warning.v1.deprecations",
];

/// Snapshotters that no containerd for Linux has.
const OF_WINDOWS: [&str; 4] = ["cimfs", "blockcim", "windows", "windows-lcow"];

/// The only runtime that ever took `runtime_engine`, `runtime_root`, `systemd_cgroup` and `no_pivot`.
const LINUX_V1: &str = "io.containerd.runtime.v1.linux";

/// What a duration is to be.
const DURATION: &str = "a duration such as 10s";

/// Whether containerd would come up, its CRI included, with the configuration that it printed as `dump`.
///
/// # Errors
/// Names the first setting that is in the way; or the dump can't be read.
pub fn startable(dump: &str) -> Result<(), Error> {
    let document = Document::parse_dump(dump)?;
    // Files of version 1 have short names, which say nothing about the kind.
    let known = |plugin: &String| {
        plugin.strip_prefix("io.containerd.").is_none_or(|name| {
            let kind = name.rsplit_once(".v");
            kind.is_some_and(|(kind, _)| KINDS.contains(&kind))
        })
    };
    if !document.strings("required_plugins")?.iter().all(known) {
        return Err(wrong("required_plugins", "a list of plugins of containerd"));
    }
    let disabled = document.strings("disabled_plugins")?;
    let is_disabled = |name: &str| {
        let mut plugins = disabled.iter();
        plugins.any(|plugin| plugin.strip_prefix("io.containerd.") == Some(name))
    };
    if NEEDED.into_iter().any(is_disabled) {
        return Err(wrong("disabled_plugins", "free of what the CRI needs"));
    }
    let mut tree = document.tree();
    for (name, value) in at(&mut tree, &["timeouts"]).into_iter().flatten() {
        if leaf(value, &[]).is_some_and(|text| !is_duration(&text)) {
            return Err(wrong(&format!("timeouts.{name}"), DURATION));
        }
    }
    let level = leaf(&tree, &["debug", "level"]).unwrap_or_default();
    if !level.is_empty() && !LEVELS.contains(&level.to_lowercase().as_str()) {
        return Err(wrong("debug.level", "a level such as info"));
    }
    let format = leaf(&tree, &["debug", "format"]).unwrap_or_default();
    if !["", "text", "json"].contains(&format.as_str()) {
        return Err(wrong("debug.format", "text or json"));
    }
    let (name, handlers) = runtimes_of_dump(dump)?;
    let Some(default) = handlers.get(&name) else {
        return Err(Error::NoDefault { name });
    };
    if let Some(plugins) = at(&mut tree, &["plugins"]) {
        for (id, plugin) in plugins.iter_mut().filter(|(id, _)| id.contains("cri")) {
            let snapshotter = snapshotter(plugin).map_or(Ok(()), |(key, name)| {
                let gone = is_disabled(&format!("snapshotter.v1.{name}"));
                let expected = "a snapshotter of this containerd";
                if gone || OF_WINDOWS.contains(&name.as_str()) {
                    Err((key.to_owned(), expected))
                } else {
                    Ok(())
                }
            });
            snapshotter
                .and_then(|()| cri(plugin, &default.runtime_type))
                .map_err(|(key, expected)| wrong(&format!("plugins.{id}.{key}"), expected))?;
        }
    }
    Ok(())
}

fn wrong(key: &str, expected: &'static str) -> Error {
    Error::Unstartable {
        key: key.to_owned(),
        expected,
    }
}

/// The snapshotter of one of the CRI's sections, and its key: version 3 has it in another plugin than version 2.
fn snapshotter(plugin: &Tree) -> Option<(&'static str, String)> {
    let name =
        leaf(plugin, &["containerd", "snapshotter"]).map(|name| ("containerd.snapshotter", name));
    name.or_else(|| leaf(plugin, &["snapshotter"]).map(|name| ("snapshotter", name)))
}

/// A key, and what should stand there.
type Wrong = (String, &'static str);

/// The rules for one of the CRI's sections: each release has the keys that it knows, wherever its schema has them.
fn cri(plugin: &mut Tree, default_type: &str) -> Result<(), Wrong> {
    for key in [
        "stream_idle_timeout",
        "image_pull_progress_timeout",
        "drain_exec_sync_io_timeout",
        "stats_collect_period",
        "stats_retention_period",
    ] {
        let text = leaf(plugin, &[key]).filter(|text| !text.is_empty());
        if text.is_some_and(|text| !is_duration(&text)) {
            return Err((key.to_owned(), DURATION));
        }
    }
    let is_set = |tree: &Tree, path: &[&str]| boolean(tree, path) == Some(true);
    for path in [&["systemd_cgroup"][..], &["containerd", "no_pivot"]] {
        if is_set(plugin, path) && default_type != LINUX_V1 {
            return Err((path.join("."), "false: its runtime is gone"));
        }
    }
    let config_path = leaf(plugin, &["registry", "config_path"]).unwrap_or_default();
    let mirrors = at(plugin, &["registry", "mirrors"]).is_some_and(|mirrors| !mirrors.is_empty());
    if !config_path.is_empty() && mirrors {
        return Err(("registry.mirrors".to_owned(), "empty beside a config_path"));
    }
    for (name, runtime) in at(plugin, &["containerd", "runtimes"])
        .into_iter()
        .flatten()
    {
        let key = |key: &str| format!("containerd.runtimes.{name}.{key}");
        let text = |key: &str| leaf(runtime, &[key]).unwrap_or_default();
        for old in ["runtime_engine", "runtime_root"] {
            if !text(old).is_empty() && text("runtime_type") != LINUX_V1 {
                return Err((key(old), "empty: its runtime is gone"));
            }
        }
        if !["", "fifo", "streaming"].contains(&text("io_type").as_str()) {
            return Err((key("io_type"), "fifo or streaming"));
        }
        let all = "privileged_without_host_devices_all_devices_allowed";
        if is_set(runtime, &[all]) && !is_set(runtime, &["privileged_without_host_devices"]) {
            return Err((key(all), "false without privileged_without_host_devices"));
        }
    }
    Ok(())
}

/// Whether Go's `time.ParseDuration` takes the text.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let after = rest.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
        let number = &rest[..rest.len() - after.len()];
        let digits = number.bytes().any(|byte| byte.is_ascii_digit());
        let unit = ["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h"]
            .into_iter()
            .filter_map(|unit| after.strip_prefix(unit))
            .min_by_key(|rest| rest.len());
        match unit {
            Some(next) if digits && number.matches('.').count() <= 1 => rest = next,
            Some(_) | None => return false,
        }
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The head of a dump that is as it should be.
    const SOUND: &str = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = 'runc'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n";

    fn dump(more: &str) -> String {
        let tables = format!("\n{more}").find("\n[");
        let (keys, tables) = more.split_at(tables.unwrap_or(more.len()));
        format!("{keys}\n{SOUND}{tables}")
    }

    #[rstest]
    #[case::timeout("[timeouts]\nx = 'zork'", "timeouts.x is not a duration")]
    #[case::level("[debug]\nlevel = 'zork'", "debug.level is not a level")]
    #[case::format("[debug]\nformat = 'xml'", "debug.format is not text or json")]
    #[case::required(
        "required_plugins = ['io.containerd.zork.v1.zork']",
        "required_plugins is not a list of plugins"
    )]
    #[case::disabled(
        "disabled_plugins = ['io.containerd.gc.v1.scheduler']",
        "disabled_plugins is not free of what the CRI needs"
    )]
    #[case::snapshotter_off(
        "disabled_plugins = ['io.containerd.snapshotter.v1.native']\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'",
        "plugins.io.containerd.cri.v1.images.snapshotter is not a snapshotter"
    )]
    #[case::snapshotter_of_windows(
        "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'windows'",
        "snapshotter is not a snapshotter"
    )]
    #[case::stream(
        "[plugins.'io.containerd.grpc.v1.cri']\nstream_idle_timeout = '4'",
        "stream_idle_timeout is not a duration"
    )]
    #[case::systemd(
        "[plugins.'io.containerd.grpc.v1.cri']\nsystemd_cgroup = true",
        "systemd_cgroup is not false"
    )]
    #[case::engine(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.x]\nruntime_engine = 'runc'",
        "runtimes.x.runtime_engine is not empty"
    )]
    #[case::io(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.x]\nio_type = 'named_pipe'",
        "runtimes.x.io_type is not fifo or streaming"
    )]
    #[case::devices(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.x]\nprivileged_without_host_devices_all_devices_allowed = true",
        "is not false without"
    )]
    #[case::mirrors(
        "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/c'\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]",
        "registry.mirrors is not empty"
    )]
    fn a_setting_on_which_containerd_would_not_start_is_named(
        #[case] more: &str,
        #[case] message: &str,
    ) {
        let error = startable(&dump(more)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[rstest]
    #[case("[timeouts]\n'io.containerd.timeout.shim.cleanup' = '5s'")]
    #[case("[debug]\nlevel = 'INFO'\nformat = ''")]
    #[case("required_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.runtime.v2.task']")]
    #[case(
        "[plugins.'io.containerd.grpc.v1.cri']\nstream_idle_timeout = '4h0m0.5s'\nsystemd_cgroup = false"
    )]
    fn what_containerd_starts_with_is_taken(#[case] more: &str) {
        assert_eq!(startable(&dump(more)), Ok(()));
    }

    #[rstest]
    #[case("0", true)]
    #[case("-1.5h", true)]
    #[case(".5s", true)]
    #[case("1h2m3s4ms5us6ns", true)]
    #[case("3\u{b5}s", true)]
    #[case("", false)]
    #[case("-", false)]
    #[case("1", false)]
    #[case(".s", false)]
    #[case("1.2.3s", false)]
    #[case("1s ", false)]
    #[case("1d", false)]
    fn durations_are_those_of_go(#[case] text: &str, #[case] is: bool) {
        assert_eq!(is_duration(text), is);
    }
}
