//! What a containerd with a given dump needs for a start in a root directory of its own, and why it can't be started there.

use std::collections::BTreeSet;

use toml::Value;

use super::document::{Document, entries_at, is_true_at, string_at};
use super::error::Error;
use super::startup_checks::cri_plugins;

/// Snapshotters that use devices, file systems or programs (`mkfs.erofs`) of the node. A second containerd would share the first two with
/// the first containerd, and lack the programs. Some are differs, too.
const OUTSIDE_SNAPSHOTTERS: [&str; 5] = ["blockfile", "btrfs", "devmapper", "erofs", "zfs"];

/// The settings of such a snapshotter that name what it uses. They are empty by default.
const DEVICE_SETTINGS: [&str; 3] = ["pool_name", "root_path", "scratch_file"];

/// The default directory of NRI plugins (`pkg/nri`).
const NRI_PLUGINS: &str = "/opt/nri/plugins";

/// The keys that name a file which containerd reads at its start, in whatever section (`cmd/containerd/server`, `internal/cri`,
/// `plugins/services/tasks`).
const READ_AT_START: [&str; 8] = [
    "base_runtime_spec",
    "blockio_config_file",
    "rdt_config_file",
    "tcp_tls_ca",
    "tcp_tls_cert",
    "tcp_tls_key",
    "tls_cert_file",
    "tls_key_file",
];

/// The files and programs that a start of containerd uses, beside its own program and its configuration files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StartNeeds {
    /// Directories with the configuration of the CNI.
    pub cni: BTreeSet<String>,
    /// All absolute paths in the configuration. Some are files that are read, such as certificates and specifications.
    pub named: BTreeSet<String>,
    /// The files among them that are read at the start.
    pub read: BTreeSet<String>,
    /// Shims: absolute paths, and names of programs in containerd's search path.
    pub shims: BTreeSet<String>,
    /// The directories with programs of others that containerd executes at its start or later: NRI plugins and image verifiers.
    pub plugin_directories: BTreeSet<String>,
    /// The directory among them with the NRI plugins that containerd starts; `None` if it starts none.
    pub nri: Option<String>,
    /// The directories that containerd writes: its root and its state.
    pub data: BTreeSet<String>,
    /// The directory whose `bin` containerd adds to its search path.
    pub optional: String,
}

/// Why a second containerd with the configuration in `dump` would act on the node beside the first one, or can't start without doing so;
/// `None` if it would not. One sentence.
///
/// ```
/// use farrier::containerd_config::outside_dependency;
///
/// let dump = "version = 2\n[proxy_plugins.stargz]\ntype = 'snapshot'\naddress = '/run/stargz.sock'\n";
/// let reason = outside_dependency(dump)?;
/// assert_eq!(reason.as_deref(), Some("the configuration names the proxy plugin stargz"));
/// assert_eq!(outside_dependency("version = 2\n")?, None);
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the dump can't be read.
pub fn outside_dependency(dump: &str) -> Result<Option<String>, Error> {
    let values = Document::parse_dump(dump)?.values();
    if let Some((name, _)) = entries_at(&values, &["proxy_plugins"]).next() {
        let reason = format!("the configuration names the proxy plugin {name}");
        return Ok(Some(reason));
    }
    if string_at(&values, &["cgroup", "path"]).is_some_and(|path| !path.is_empty()) {
        let reason = "the configuration names a cgroup, which containerd creates at its start";
        return Ok(Some(reason.to_owned()));
    }
    let mut plugins = entries_at(&values, &["plugins"]);
    let named = plugins.find_map(|(id, plugin)| {
        let own = OUTSIDE_SNAPSHOTTERS.into_iter().find(|name| {
            let is_own = id.strip_prefix("io.containerd.snapshotter.v1.") == Some(name);
            is_own && has_device_settings(plugin)
        });
        let own = own.map(|name| ("snapshotter", name));
        own.or_else(|| outside_plugin("", plugin))
    });
    Ok(named.map(|(kind, name)| format!("the configuration names the {kind} {name}")))
}

fn has_device_settings(plugin: &Value) -> bool {
    let mut settings = DEVICE_SETTINGS.into_iter();
    settings.any(|key| string_at(plugin, &[key]).is_some_and(|value| !value.is_empty()))
}

/// The first snapshotter or differ in `value`, whose key is `key`, that reaches outside of a built root, as its kind and its name. The diff
/// service has a list of differs in its key `default`.
fn outside_plugin(key: &str, value: &Value) -> Option<(&'static str, &'static str)> {
    match value {
        Value::String(name) => {
            let kind = match key {
                "snapshotter" => "snapshotter",
                "differ" | "default" => "differ",
                _ => return None,
            };
            let mut known = OUTSIDE_SNAPSHOTTERS.into_iter();
            Some((kind, known.find(|known| name == known)?))
        }
        Value::Table(table) => {
            let mut values = table.iter();
            values.find_map(|(key, value)| outside_plugin(key, value))
        }
        Value::Array(values) => values.iter().find_map(|value| outside_plugin(key, value)),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => None,
    }
}

/// The files and programs that a containerd with the configuration in `dump` uses at its start. Paths that are not absolute are left out.
///
/// ```
/// use farrier::containerd_config::start_needs;
///
/// let dump = r#"
/// version = 2
/// root = "/var/lib/containerd"
/// [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
/// runtime_type = "io.containerd.runc.v2"
/// "#;
/// let needs = start_needs(dump)?;
/// assert!(needs.shims.contains("containerd-shim-runc-v2"));
/// assert!(needs.data.contains("/var/lib/containerd"));
/// # Ok::<(), farrier::containerd_config::Error>(())
/// ```
///
/// # Errors
/// When the dump can't be read.
pub fn start_needs(dump: &str) -> Result<StartNeeds, Error> {
    let document = Document::parse_dump(dump)?;
    let (values, disabled) = (document.values(), document.strings("disabled_plugins")?);
    let mut needs = StartNeeds {
        optional: "/opt/containerd".to_owned(),
        // The defaults of every release (`pkg/nri`, `plugins/imageverifier`).
        plugin_directories: [NRI_PLUGINS, "/opt/containerd/image-verifier/bin"]
            .map(str::to_owned)
            .into(),
        ..StartNeeds::default()
    };
    let path_at = |value, path: &[&str]| {
        let path = string_at(value, path).filter(|path| path.starts_with('/'));
        path.map(str::to_owned)
    };
    collect_paths("", &values, &mut needs);
    needs.data.extend(path_at(&values, &["root"]));
    needs.data.extend(path_at(&values, &["state"]));
    for (id, plugin) in entries_at(&values, &["plugins"]) {
        if id.starts_with("io.containerd.nri.") {
            let directory = path_at(plugin, &["plugin_path"]);
            needs.plugin_directories.extend(directory.clone());
            let is_disabled = is_true_at(plugin, &["disable"]) || disabled.contains(id);
            let directory = directory.unwrap_or_else(|| NRI_PLUGINS.to_owned());
            needs.nri = (!is_disabled).then_some(directory);
        }
        if id.starts_with("io.containerd.image-verifier.") {
            needs
                .plugin_directories
                .extend(path_at(plugin, &["bin_dir"]));
        }
        if id == "io.containerd.internal.v1.opt"
            && let Some(path) = path_at(plugin, &["path"])
        {
            needs.optional = path;
        }
    }
    for (_, plugin) in cri_plugins(&values) {
        needs.cni.extend(path_at(plugin, &["cni", "conf_dir"]));
        for (_, runtime) in entries_at(plugin, &["containerd", "runtimes"]) {
            needs.cni.extend(path_at(runtime, &["cni_conf_dir"]));
            needs.shims.extend(path_at(runtime, &["runtime_path"]));
            let shim = string_at(runtime, &["runtime_type"]).and_then(shim_of_type);
            needs.shims.extend(shim);
        }
    }
    Ok(needs)
}

/// The settings of the CNI that decide about the network of a node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniSettings {
    /// The directory of the network configuration.
    pub conf_dir: String,
    /// The directories of the CNI plugins.
    pub bin_dirs: Vec<String>,
    /// The file from which containerd writes the network configuration; empty for none.
    pub conf_template: String,
}

impl CniSettings {
    /// The settings; a `bin_dir` that is not empty replaces the `bin_dirs` of containerd 2.1 (`internal/cri/config`).
    #[must_use]
    pub fn new(conf_dir: &str, bin_dir: &str, bin_dirs: Vec<String>, conf_template: &str) -> Self {
        Self {
            conf_dir: conf_dir.to_owned(),
            bin_dirs: if bin_dir.is_empty() {
                bin_dirs
            } else {
                vec![bin_dir.to_owned()]
            },
            conf_template: conf_template.to_owned(),
        }
    }
}

/// The settings of the CNI in a dump; `None` if it has none.
///
/// ```
/// use farrier::containerd_config::cni_settings;
///
/// let dump = "[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/opt/cni/bin']\nconf_dir = '/etc/cni/net.d'\n";
/// let settings = cni_settings(dump).unwrap();
/// assert_eq!(settings.conf_dir, "/etc/cni/net.d");
/// assert_eq!(settings.bin_dirs, ["/opt/cni/bin"]);
/// assert_eq!(cni_settings("version = 3\n"), None);
/// ```
#[must_use]
pub fn cni_settings(dump: &str) -> Option<CniSettings> {
    let values = Document::parse_dump(dump).ok()?.values();
    let cni = cri_plugins(&values).find_map(|(_, plugin)| plugin.get("cni"))?;
    let text = |key: &str| string_at(cni, &[key]).unwrap_or_default();
    let bin_dirs = cni.get("bin_dirs").and_then(Value::as_array);
    let bin_dirs = bin_dirs.into_iter().flatten().filter_map(Value::as_str);
    Some(CniSettings::new(
        text("conf_dir"),
        text("bin_dir"),
        bin_dirs.map(str::to_owned).collect(),
        text("conf_template"),
    ))
}

/// Adds the absolute paths in `value`, whose key is `key`. The elements of an array have the key of the array.
fn collect_paths(key: &str, value: &Value, needs: &mut StartNeeds) {
    match value {
        Value::String(path) if path.starts_with('/') => {
            if READ_AT_START.contains(&key) {
                needs.read.insert(path.clone());
            }
            needs.named.insert(path.clone());
        }
        Value::Table(table) => {
            for (key, value) in table {
                collect_paths(key, value, needs);
            }
        }
        Value::Array(values) => {
            for value in values {
                collect_paths(key, value, needs);
            }
        }
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => {}
    }
}

/// The shim of a `runtime_type`, as containerd derives it (`core/runtime/v2`, `resolveRuntimePath`): an absolute path, or the name of a
/// program.
fn shim_of_type(runtime_type: &str) -> Option<String> {
    if runtime_type.starts_with('/') {
        return Some(runtime_type.to_owned());
    }
    let (rest, version) = runtime_type.rsplit_once('.')?;
    let name = rest.rsplit_once('.').map_or(rest, |(_, name)| name);
    let is_name = |text: &str| !text.is_empty() && !text.contains('/');
    (is_name(name) && is_name(version)).then(|| format!("containerd-shim-{name}-{version}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::no_proxy("[proxy_plugins]", None)]
    #[case::proxy("[proxy_plugins.soci]\naddress = '/a'", Some("proxy plugin soci"))]
    #[case::cgroup("[cgroup]\npath = '/own'", Some("names a cgroup"))]
    #[case::no_cgroup("[cgroup]\npath = ''", None)]
    #[case::of_the_cri_of_1(
        "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'devmapper'",
        Some("snapshotter devmapper")
    )]
    #[case::of_the_cri_of_2(
        "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'zfs'",
        Some("snapshotter zfs")
    )]
    #[case::of_a_handler(
        "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nsnapshotter = 'blockfile'",
        Some("snapshotter blockfile")
    )]
    #[case::of_a_platform(
        "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata]\nsnapshotter = 'btrfs'",
        Some("snapshotter btrfs")
    )]
    #[case::of_the_transfer_service(
        "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'zfs'",
        Some("snapshotter zfs")
    )]
    #[case::a_differ(
        "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['erofs', 'walking']",
        Some("differ erofs")
    )]
    #[case::a_snapshotter_that_runs_programs(
        "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'erofs'",
        Some("snapshotter erofs")
    )]
    #[case::the_default_differ(
        "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['walking']",
        None
    )]
    #[case::its_own_section(
        "[plugins.'io.containerd.snapshotter.v1.devmapper']\npool_name = 'pool'",
        Some("snapshotter devmapper")
    )]
    #[case::defaults_of_a_dump(
        "[plugins.'io.containerd.snapshotter.v1.devmapper']\npool_name = ''\nroot_path = ''\n[plugins.'io.containerd.snapshotter.v1.zfs']\nroot_path = ''",
        None
    )]
    #[case::overlayfs_at_a_path(
        "[plugins.'io.containerd.snapshotter.v1.overlayfs']\nroot_path = '/data'",
        None
    )]
    #[case::a_snapshotter_that_does_not_exist(
        "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'gone'",
        None
    )]
    fn a_configuration_that_reaches_outside_of_a_built_root_is_named(
        #[case] dump: &str,
        #[case] expected: Option<&str>,
    ) {
        let found = outside_dependency(dump).unwrap();
        match expected {
            Some(words) => assert!(
                found
                    .as_ref()
                    .is_some_and(|found| found.ends_with(words) || found.contains(words)),
                "{found:?}"
            ),
            None => assert_eq!(found, None),
        }
    }

    #[rstest]
    #[case("io.containerd.runc.v2", Some("containerd-shim-runc-v2"))]
    #[case("/opt/shim", Some("/opt/shim"))]
    #[case("a.b", Some("containerd-shim-a-b"))]
    #[case("bare", None)]
    #[case("a..", None)]
    #[case("../evil.v1", None)]
    #[case("", None)]
    fn the_shim_of_a_runtime_type_is_found_as_containerd_finds_it(
        #[case] runtime_type: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(shim_of_type(runtime_type).as_deref(), expected);
    }

    #[test]
    fn a_start_needs_the_files_that_the_dump_names() {
        let dump = "root = '/data'\nstate = '/run/own'\n\
            [plugins.'io.containerd.nri.v1.nri']\nplugin_path = '/etc/nri/plugins'\n\
            [plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = '/etc/verifiers'\n\
            [plugins.'io.containerd.internal.v1.opt']\npath = '/srv/opt'\n\
            [grpc]\ntcp_tls_key = '/srv/key'\n\
            [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/srv/cni'\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nruntime_type = '/srv/shim'\nbase_runtime_spec = '/srv/spec'\n\
            [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\nruntime_type = 'io.containerd.b.v1'\nruntime_path = '/srv/b'\n";
        let set = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let needs = start_needs(dump).unwrap();
        assert_eq!(needs.cni, set(&["/srv/cni"]));
        for path in ["/srv/key", "/srv/spec", "/srv/cni"] {
            assert!(needs.named.contains(path), "{path}");
        }
        assert_eq!(needs.read, set(&["/srv/key", "/srv/spec"]));
        assert_eq!(
            needs.shims,
            set(&["/srv/b", "/srv/shim", "containerd-shim-b-v1"])
        );
        assert_eq!(needs.data, set(&["/data", "/run/own"]));
        assert_eq!(needs.optional, "/srv/opt");
        for directory in ["/opt/nri/plugins", "/etc/nri/plugins", "/etc/verifiers"] {
            assert!(needs.plugin_directories.contains(directory), "{directory}");
        }
    }

    #[rstest]
    #[case::on("disable = false\nplugin_path = '/srv/nri'", Some("/srv/nri"))]
    #[case::on_by_default_at_the_default_path("plugin_path = ''", Some("/opt/nri/plugins"))]
    #[case::off("disable = true\nplugin_path = '/srv/nri'", None)]
    fn the_directory_of_nri_plugins_counts_where_nri_is_on(
        #[case] lines: &str,
        #[case] expected: Option<&str>,
    ) {
        let table = format!("[plugins.'io.containerd.nri.v1.nri']\n{lines}\n");
        let nri = |dump: &str| start_needs(dump).unwrap().nri;
        assert_eq!(nri(&table).as_deref(), expected);
        let disabled = format!("disabled_plugins = ['io.containerd.nri.v1.nri']\n{table}");
        assert_eq!(nri(&disabled), None);
        // containerd 1.6 has no such plugin.
        assert_eq!(nri("version = 2\n"), None);
    }

    #[rstest]
    #[case::of_1_7("io.containerd.grpc.v1.cri", "bin_dir = '/own'", &["/own"])]
    #[case::of_2_4("io.containerd.cri.v1.runtime", "bin_dirs = ['/a', '/b']", &["/a", "/b"])]
    #[case::the_old_key_beside_the_default_of_2_1("io.containerd.cri.v1.runtime", "bin_dir = '/own'\nbin_dirs = ['/opt/cni/bin']", &["/own"])]
    #[case::the_new_key_of_2_1("io.containerd.cri.v1.runtime", "bin_dir = ''\nbin_dirs = ['/a']", &["/a"])]
    fn the_directories_of_cni_plugins_are_those_that_containerd_uses(
        #[case] plugin: &str,
        #[case] lines: &str,
        #[case] expected: &[&str],
    ) {
        let images = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n";
        let dump = format!("{images}[plugins.'{plugin}'.cni]\nconf_dir = '/c'\n{lines}\n");
        let settings = cni_settings(&dump).unwrap();
        assert_eq!(settings.conf_dir, "/c");
        assert_eq!(settings.bin_dirs, expected);
    }
}
