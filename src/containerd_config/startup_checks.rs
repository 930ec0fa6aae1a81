//! Finds settings in a dump with which containerd, or its CRI plugin, does not start.
//!
//! `containerd config dump` accepts these settings. The rules are those of containerd 1.6 to 2.4 (`cmd/containerd`, `pkg/timeout`, and
//! `ValidatePluginConfig`, `ValidateRuntimeConfig`, `loadBaseOCISpecs` and `getStreamListenerMode` of the CRI), tried on real daemons.

use toml::Value;

use super::document::{Document, entries_at, is_true_at, string_at};
use super::dump::runtimes_of_dump;
use super::error::Error;

/// The log levels of logrus, containerd's logger.
const LEVELS: [&str; 8] = [
    "panic", "fatal", "error", "warn", "warning", "info", "debug", "trace",
];

/// The kinds of plugins of containerd 1.6 to 2.4 (`plugin.Type`). The plugins of a kind depend on the build.
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

/// Plugins of every release without which the CRI does not start, tried one by one on 1.6.36, 1.7.35, 2.1.9 and 2.4.2. Some releases need
/// other plugins, too.
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

/// Snapshotters of containerd for Windows.
const OF_WINDOWS: [&str; 4] = ["cimfs", "blockcim", "windows", "windows-lcow"];

/// The only runtime with `runtime_engine`, `runtime_root`, `systemd_cgroup` and `no_pivot`.
const LINUX_V1: &str = "io.containerd.runtime.v1.linux";

/// The value that is expected for a duration.
const DURATION: &str = "a duration such as 10s";

/// Checks that containerd and its CRI plugin start with the configuration that containerd printed as `dump`.
///
/// Files and kernel features that the configuration needs are not looked for; see [`host_prerequisites`].
///
/// ```
/// use farrier::containerd_config::startup_checks;
///
/// let dump = r#"
/// version = 2
/// [plugins."io.containerd.grpc.v1.cri"]
/// stream_idle_timeout = "4h0m0s"
/// [plugins."io.containerd.grpc.v1.cri".containerd]
/// default_runtime_name = "runc"
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
/// runtime_type = "io.containerd.runc.v2"
/// "#;
/// assert!(startup_checks(dump).is_ok());
/// let error = startup_checks(&dump.replace("4h0m0s", "4")).unwrap_err();
/// assert!(error.to_string().contains("stream_idle_timeout is not a duration"));
/// ```
///
/// # Errors
/// Names the first setting with which containerd does not start. Also when the dump can't be read.
pub fn startup_checks(dump: &str) -> Result<(), Error> {
    let document = Document::parse_dump(dump)?;
    // The short names of version 1 have no kind.
    let known = |plugin: &String| {
        plugin.strip_prefix("io.containerd.").is_none_or(|name| {
            let kind = name.rsplit_once(".v");
            kind.is_some_and(|(kind, _)| KINDS.contains(&kind))
        })
    };
    if !document.strings("required_plugins")?.iter().all(known) {
        return Err(unstartable(
            "required_plugins",
            "a list of plugins of containerd",
        ));
    }
    let disabled = document.strings("disabled_plugins")?;
    let is_disabled = |name: &str| {
        let mut plugins = disabled.iter();
        plugins.any(|plugin| plugin.strip_prefix("io.containerd.") == Some(name))
    };
    if NEEDED.into_iter().any(is_disabled) {
        return Err(unstartable(
            "disabled_plugins",
            "free of plugins that the CRI needs",
        ));
    }
    let values = document.values();
    for (name, value) in entries_at(&values, &["timeouts"]) {
        if value.as_str().is_some_and(|text| !is_duration(text)) {
            return Err(unstartable(&format!("timeouts.{name}"), DURATION));
        }
    }
    let level = string_at(&values, &["debug", "level"]).unwrap_or_default();
    if !level.is_empty() && !LEVELS.contains(&level.to_lowercase().as_str()) {
        return Err(unstartable("debug.level", "a level such as info"));
    }
    let format = string_at(&values, &["debug", "format"]).unwrap_or_default();
    if !["", "text", "json"].contains(&format) {
        return Err(unstartable("debug.format", "text or json"));
    }
    let (name, handlers) = runtimes_of_dump(dump)?;
    let Some(default) = handlers.get(&name) else {
        return Err(Error::NoDefault { name });
    };
    for (id, plugin) in cri_plugins(&values) {
        let snapshotter = snapshotter(plugin).map_or(Ok(()), |(key, name)| {
            let is_off = is_disabled(&format!("snapshotter.v1.{name}"));
            let expected = "a snapshotter of this containerd";
            if is_off || OF_WINDOWS.contains(&name) {
                Err((key.to_owned(), expected))
            } else {
                Ok(())
            }
        });
        snapshotter
            .and_then(|()| check_cri(plugin, &default.runtime_type))
            .map_err(|(key, expected)| unstartable(&format!("plugins.{id}.{key}"), expected))?;
    }
    Ok(())
}

fn unstartable(key: &str, expected: &'static str) -> Error {
    Error::Unstartable {
        key: key.to_owned(),
        expected,
    }
}

/// The CRI's sections of a configuration. Each release has its settings in other plugins.
pub(super) fn cri_plugins(values: &Value) -> impl Iterator<Item = (&String, &Value)> {
    entries_at(values, &["plugins"]).filter(|(id, _)| id.contains("cri"))
}

/// The snapshotter of one of the CRI's sections, and its key. Version 2 and version 3 have it in different plugins.
fn snapshotter(plugin: &Value) -> Option<(&'static str, &str)> {
    let named = |key, path: &[&str]| string_at(plugin, path).map(|name| (key, name));
    named("containerd.snapshotter", &["containerd", "snapshotter"])
        .or_else(|| named("snapshotter", &["snapshotter"]))
}

/// A key, and the value that is expected.
type Unstartable = (String, &'static str);

/// Checks one of the CRI's sections. A dump has only the keys of its release, in the section in which its schema has them.
fn check_cri(plugin: &Value, default_type: &str) -> Result<(), Unstartable> {
    for key in [
        "stream_idle_timeout",
        "image_pull_progress_timeout",
        "drain_exec_sync_io_timeout",
        "stats_collect_period",
        "stats_retention_period",
    ] {
        let text = string_at(plugin, &[key]).filter(|text| !text.is_empty());
        if text.is_some_and(|text| !is_duration(text)) {
            return Err((key.to_owned(), DURATION));
        }
    }
    for path in [&["systemd_cgroup"][..], &["containerd", "no_pivot"]] {
        if is_true_at(plugin, path) && default_type != LINUX_V1 {
            return Err((
                path.join("."),
                "false (its runtime was removed from containerd)",
            ));
        }
    }
    let config_path = string_at(plugin, &["registry", "config_path"]).unwrap_or_default();
    let mirrors = entries_at(plugin, &["registry", "mirrors"])
        .next()
        .is_some();
    if !config_path.is_empty() && mirrors {
        return Err(("registry.mirrors".to_owned(), "empty beside a config_path"));
    }
    for (name, runtime) in entries_at(plugin, &["containerd", "runtimes"]) {
        let key = |key: &str| format!("containerd.runtimes.{name}.{key}");
        let text = |key: &str| string_at(runtime, &[key]).unwrap_or_default();
        for old in ["runtime_engine", "runtime_root"] {
            if !text(old).is_empty() && text("runtime_type") != LINUX_V1 {
                return Err((key(old), "empty (its runtime was removed from containerd)"));
            }
        }
        if !["", "fifo", "streaming"].contains(&text("io_type")) {
            return Err((key("io_type"), "fifo or streaming"));
        }
        let all = "privileged_without_host_devices_all_devices_allowed";
        if is_true_at(runtime, &[all]) && !is_true_at(runtime, &["privileged_without_host_devices"])
        {
            return Err((key(all), "false without privileged_without_host_devices"));
        }
    }
    Ok(())
}

/// Whether Go's `time.ParseDuration` accepts the text.
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

/// A condition on the host without which the CRI plugin does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPrerequisite {
    /// A file with a runtime's OCI specification as JSON must exist.
    Specification {
        /// The key in the dump that names the file, with dots.
        key: String,
        /// The file's path on the host.
        path: String,
    },
    /// A file must exist.
    File {
        /// The key in the dump that names the file, with dots.
        key: String,
        /// The file's path on the host.
        path: String,
    },
    /// A plugin must provide a snapshotter. Neither containerd nor a proxy plugin in the dump does.
    Snapshotter {
        /// The key in the dump that names it, with dots.
        key: String,
        /// The name of the snapshotter.
        name: String,
    },
    /// The host must use cgroup v2.
    Cgroup2 {
        /// The key in the dump that needs it, with dots.
        key: String,
    },
}

/// The conditions on the host for the configuration that containerd printed as `dump`.
///
/// ```
/// use farrier::containerd_config::{HostPrerequisite, host_prerequisites};
///
/// let dump = r#"
/// version = 2
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
/// base_runtime_spec = "/etc/containerd/kata.json"
/// "#;
/// let needed = host_prerequisites(dump)?;
/// assert!(matches!(
///     &needed[..],
///     [HostPrerequisite::Specification { path, .. }] if path == "/etc/containerd/kata.json"
/// ));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the dump can't be read.
pub fn host_prerequisites(dump: &str) -> Result<Vec<HostPrerequisite>, Error> {
    let values = Document::parse_dump(dump)?.values();
    let mut all = Vec::new();
    let path_at = |value, path: &[&str]| {
        string_at(value, path)
            .filter(|path| !path.is_empty())
            .map(str::to_owned)
    };
    // A dump has a table for each snapshotter of this build.
    let built_in: Vec<&str> = entries_at(&values, &["plugins"])
        .filter_map(|(id, _)| id.strip_prefix("io.containerd.snapshotter.v1."))
        .collect();
    let is_provided = |name: &str| {
        let mut proxies = entries_at(&values, &["proxy_plugins"]);
        built_in.is_empty() || built_in.contains(&name) || proxies.any(|(proxy, _)| proxy == name)
    };
    // containerd 1.6 to 2.1 reads these files whether it listens on TCP or not. A dump of 2.4 has them in another section, and 2.4 starts
    // without them.
    if path_at(&values, &["grpc", "tcp_tls_cert"]).is_some() {
        for name in ["tcp_tls_cert", "tcp_tls_key", "tcp_tls_ca"] {
            if let Some(path) = path_at(&values, &["grpc", name]) {
                let key = format!("grpc.{name}");
                all.push(HostPrerequisite::File { key, path });
            }
        }
    }
    for (id, plugin) in cri_plugins(&values) {
        if let Some((key, name)) = snapshotter(plugin)
            && !name.is_empty()
            && !is_provided(name)
        {
            let (key, name) = (format!("plugins.{id}.{key}"), name.to_owned());
            all.push(HostPrerequisite::Snapshotter { key, name });
        }
        for (name, runtime) in entries_at(plugin, &["containerd", "runtimes"]) {
            let key = |key: &str| format!("plugins.{id}.containerd.runtimes.{name}.{key}");
            if let Some(path) = path_at(runtime, &["base_runtime_spec"]) {
                let key = key("base_runtime_spec");
                all.push(HostPrerequisite::Specification { key, path });
            }
            if is_true_at(runtime, &["cgroup_writable"]) {
                let key = key("cgroup_writable");
                all.push(HostPrerequisite::Cgroup2 { key });
            }
        }
        if !is_true_at(plugin, &["enable_tls_streaming"]) {
            continue;
        }
        for name in ["tls_cert_file", "tls_key_file"] {
            if let Some(path) = path_at(plugin, &["x509_key_pair_streaming", name]) {
                let key = format!("plugins.{id}.x509_key_pair_streaming.{name}");
                all.push(HostPrerequisite::File { key, path });
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The head of a dump with which containerd starts.
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
        "disabled_plugins is not free of plugins that the CRI needs"
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
        let error = startup_checks(&dump(more)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[rstest]
    #[case("[timeouts]\n'io.containerd.timeout.shim.cleanup' = '5s'")]
    #[case("[debug]\nlevel = 'INFO'\nformat = ''")]
    #[case("required_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.runtime.v2.task']")]
    #[case(
        "[plugins.'io.containerd.grpc.v1.cri']\nstream_idle_timeout = '4h0m0.5s'\nsystemd_cgroup = false"
    )]
    fn settings_with_which_containerd_starts_pass(#[case] more: &str) {
        assert_eq!(startup_checks(&dump(more)), Ok(()));
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
    fn durations_are_accepted_as_go_accepts_them(#[case] text: &str, #[case] is: bool) {
        assert_eq!(is_duration(text), is);
    }

    #[test]
    fn files_and_cgroups_that_a_dump_names_are_prerequisites() {
        let dump = "[plugins.'io.containerd.grpc.v1.cri']\nenable_tls_streaming = true\nx509_key_pair_streaming.tls_key_file = '/key'\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nbase_runtime_spec = '/spec'\ncgroup_writable = true\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\nbase_runtime_spec = ''\ncgroup_writable = false\n";
        let key =
            |key: &str| format!("plugins.io.containerd.cri.v1.runtime.containerd.runtimes.a.{key}");
        let expected = [
            HostPrerequisite::Specification {
                key: key("base_runtime_spec"),
                path: "/spec".to_owned(),
            },
            HostPrerequisite::Cgroup2 {
                key: key("cgroup_writable"),
            },
            HostPrerequisite::File {
                key: "plugins.io.containerd.grpc.v1.cri.x509_key_pair_streaming.tls_key_file"
                    .to_owned(),
                path: "/key".to_owned(),
            },
        ];
        assert_eq!(host_prerequisites(dump), Ok(expected.to_vec()));
        assert_eq!(
            host_prerequisites(&dump.replace("streaming = true", "streaming = false"))
                .unwrap()
                .len(),
            2
        );
    }
}
