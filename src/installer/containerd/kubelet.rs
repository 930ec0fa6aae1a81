//! Finds the CRI socket of a host's kubelet, from its command line and configuration files, and the runtime that answers there. Reads no file
//! of containerd.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt as _;

use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::cri;
use super::process::Process;
use crate::handoff::{LONGEST_PATH, Problem, printable, printable_up_to};
use crate::installer::distro::TABLE;
use crate::installer::host::path::parent_directory;
use crate::installer::host::{self, HostRoot};

/// Size of a configuration file, in bytes, at most. A kubelet's configuration has some kilobytes.
const SMALL: u64 = 1 << 18;
/// YAML events of a file at most. A configuration has some hundred values. Aliases multiply values: without a limit, a file of one kilobyte
/// expands to gigabytes.
const MAX_EVENTS: usize = 100_000;
/// Nesting of a file at most. A `KubeletConfiguration` has up to five levels.
const MAX_NESTING: usize = 64;

/// The kubelet of a host: a process, or known by the file of its arguments (`MicroK8s`) or by the unit of its distribution (k3s, RKE2, k0s).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// Command line, with a NUL after each argument.
    pub arguments: String,
    /// Path of the CRI socket, if the flags or files set it, or why the path is unknown.
    pub endpoint: Result<Option<String>, Problem>,
    /// The `id` of the distribution that includes it and its unit, if it is known by this unit alone.
    pub of_distro: Option<(&'static str, String)>,
}

impl Kubelet {
    /// The path of its CRI socket, if it is set and known.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_ref().ok()?.as_deref()
    }

    /// Reads the CRI socket of the kubelet process.
    pub(crate) fn of(host: &HostRoot, process: &Process) -> Self {
        // An argument that is no text can't be a path that Farrier reads or compares.
        let arguments = String::from_utf8_lossy(&process.arguments).into_owned();
        let list: Vec<&str> = arguments.split('\0').collect();
        // Flags override files (`cmd/kubelet/app/server.go`, `kubeletConfigFlagPrecedence`).
        let endpoint = match flag(&list, "container-runtime-endpoint") {
            Some(value) => socket(value),
            None => of_files(host, process.id.0, &list),
        };
        Self {
            arguments,
            endpoint,
            of_distro: None,
        }
    }

    /// The kubelet in a process of another name, by the file of its arguments. snapd removes the path of this file while the snap is disabled.
    ///
    /// Each line has arguments, in which the process expands variables (`pkg/kubelite` of `MicroK8s`).
    pub(crate) fn embedded(host: &HostRoot) -> Option<Self> {
        let mut paths = TABLE.iter().filter_map(|spec| spec.kubelet_arguments);
        let (path, text) = paths.find_map(|path| {
            let text = host.read_text(path, SMALL).ok().flatten()?;
            Some((path, text))
        })?;
        let data = path.strip_suffix(SNAP_FILE).unwrap_or_default();
        let common = format!("{}/common", parent_directory(data));
        let expanded = |word: &str| {
            let variables = [("SNAP_COMMON", common.as_str()), ("SNAP_DATA", data)];
            let start = word.to_owned();
            variables.into_iter().fold(start, |word, (name, value)| {
                let word = word.replace(&format!("${{{name}}}"), value);
                word.replace(&format!("${name}"), value)
            })
        };
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.starts_with('#'));
        let words: Vec<String> = lines
            .flat_map(str::split_whitespace)
            .map(expanded)
            .collect();
        let list: Vec<&str> = words.iter().map(String::as_str).collect();
        Some(Self {
            endpoint: socket(flag(&list, "container-runtime-endpoint").unwrap_or_default()),
            arguments: list.iter().flat_map(|word| [*word, "\0"]).collect(),
            of_distro: None,
        })
    }
}

/// The last parts of the path of a snap's file with the arguments of its kubelet.
const SNAP_FILE: &str = "/args/kubelet";

/// The container runtime that a kubelet uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KubeletRuntime {
    /// containerd, directly or through a proxy, as far as the kubelet tells its socket.
    #[default]
    Containerd,
    /// Another runtime.
    Other {
        /// The name with which it answers, such as `docker`.
        name: String,
        /// Path of the kubelet's CRI socket.
        socket: String,
    },
    /// No runtime answers at the kubelet's CRI socket.
    Unknown(Problem),
}

impl KubeletRuntime {
    /// The runtime at the CRI socket of the `kubelet`; `socket` is that of containerd.
    pub(crate) async fn find(host: &HostRoot, kubelet: Option<&Kubelet>, socket: &str) -> Self {
        let endpoint = match kubelet.map(|kubelet| &kubelet.endpoint) {
            Some(Err(problem)) => return Self::Unknown(problem.clone()),
            Some(Ok(Some(endpoint))) => endpoint,
            Some(Ok(None)) | None => socket,
        };
        if is_same_file(host, endpoint, socket) {
            return Self::Containerd;
        }
        Self::of_answer(endpoint, cri::runtime_name(host, endpoint).await)
    }

    /// The runtime that gives this answer to the question for its name.
    fn of_answer(endpoint: &str, answer: Result<String, cri::Error>) -> Self {
        let cause = match answer {
            Ok(name) if name == "containerd" => return Self::Containerd,
            Ok(name) => {
                return Self::Other {
                    name: printable(&name),
                    socket: endpoint.to_owned(),
                };
            }
            // It is not containerd that answers.
            Err(cri::Error::Unimplemented { message }) => message,
            Err(error) => error.to_string(),
        };
        Self::Unknown(Problem::with_help(
            format!(
                "failed to determine the container runtime of the kubelet, whose CRI socket is {endpoint}: {cause}"
            ),
            "check that a container runtime answers at the kubelet's --container-runtime-endpoint",
        ))
    }
}

/// Whether two paths name the same socket: `/var/run` is a symlink to `/run`.
#[must_use]
pub fn is_same_socket(one: &str, other: &str) -> bool {
    let plain = |path: &str| path.strip_prefix("/var/run/").map(str::to_owned);
    let run =
        |path: &str| plain(path).map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
    run(one) == run(other)
}

/// Whether two paths name the same socket on this host, also through symlinks, which may lead to a socket that is not there yet.
pub(super) fn is_same_file(host: &HostRoot, one: &str, other: &str) -> bool {
    let file = |path: &str| {
        let (_open, own) = host.handle(path).ok()?;
        let metadata = std::fs::metadata(own).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let real = |path: &str| host.follow(path).unwrap_or_else(|_| path.to_owned());
    is_same_socket(&real(one), &real(other))
        || file(one).is_some_and(|one| Some(one) == file(other))
}

/// The value of a kubelet flag, by the rules of pflag: `--name value` or `--name=value`, the last one wins, and `--` ends the flags. The kubelet
/// takes `_` in the name of a flag for `-` (`WordSepNormalizeFunc`).
fn flag<'a>(arguments: &[&'a str], name: &str) -> Option<&'a str> {
    let mut arguments = arguments.iter().take_while(|argument| **argument != "--");
    let mut last = None;
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            continue;
        };
        let (given, value) = match flag.split_once('=') {
            Some((given, value)) => (given, Some(value)),
            None => (flag, None),
        };
        if given.replace('_', "-") == name {
            last = value.or_else(|| arguments.next().copied());
        }
    }
    last
}

fn unknown(cause: impl Display) -> Problem {
    Problem::with_help(
        format!("failed to determine the container runtime of the kubelet: {cause}"),
        "write the kubelet's --container-runtime-endpoint as unix:///PATH, and check the files of its --config and --config-dir",
    )
}

/// The path of the Unix socket in an endpoint of the kubelet, which reads it as a URL, and puts `unix://` before a value without a scheme
/// (`parseEndpointWithFallbackProtocol` of cri-client, `net/url` of Go); `None` for an empty endpoint.
pub(super) fn socket(value: &str) -> Result<Option<String>, Problem> {
    if value.is_empty() {
        return Ok(None);
    }
    let path = socket_path(value).filter(|path| path.starts_with('/'));
    let shown = || printable_up_to(value, LONGEST_PATH);
    let unknown = || {
        unknown(format_args!(
            "its endpoint {} is no path of a Unix socket",
            shown()
        ))
    };
    path.map(Some).ok_or_else(unknown)
}

fn socket_path(value: &str) -> Option<String> {
    let url = value.split(['?', '#']).next()?;
    let is_scheme = |text: &str| {
        let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.bytes().all(is_of_scheme)
    };
    let path = match url.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
        Some((scheme, path)) if scheme.eq_ignore_ascii_case("unix") => path.strip_prefix("//"),
        Some(_) => return None,
        None => Some(url),
    };
    // The path begins behind the host, which does not count.
    let path = match path {
        Some(behind) => &behind[behind.find('/')?..],
        None => url.split_once(':')?.1,
    };
    let is_escape = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !path.split('%').skip(1).all(is_escape) {
        return None;
    }
    let path = percent_decode_str(path).decode_utf8().ok()?;
    Some(path.into_owned())
}

/// The endpoint in the file of `--config`, merged with the files of `--config-dir` (Kubernetes 1.28 and later).
///
/// # Errors
/// When a file can't be read or parsed, because this file may set the endpoint, or when the endpoint is no path.
fn of_files(host: &HostRoot, pid: u32, arguments: &[&str]) -> Result<Option<String>, Problem> {
    let given = |name: &str| flag(arguments, name).filter(|path| !path.is_empty());
    let mut files = Vec::new();
    if let Some(path) = given("config") {
        files.push(absolute(host, pid, path)?);
    }
    if let Some(path) = given("config-dir") {
        let path = absolute(host, pid, path)?;
        let mut room = MAX_DROP_INS;
        let listed = drop_ins(host, &path, 0, &mut room, &mut files);
        listed.ok_or_else(|| unknown(format_args!("failed to list its drop-ins in {path}")))?;
    }
    let mut endpoint = Value::Null;
    for path in files {
        // A file that was removed since the start of the kubelet tells nothing, as one without an endpoint does.
        let Some(text) = host.read_text(&path, SMALL).map_err(unknown)? else {
            continue;
        };
        // The error may contain text of the file.
        let invalid = |_| unknown(format_args!("{path} is no KubeletConfiguration"));
        if let Some(value) = endpoint_of(&text).map_err(invalid)? {
            endpoint = value;
        }
    }
    match endpoint {
        Value::Null => Ok(None),
        Value::String(endpoint) => socket(&endpoint),
        _ => Err(unknown("its containerRuntimeEndpoint is no text")),
    }
}

/// A path of the command line of process `pid`: a relative path starts at the working directory of the process.
fn absolute(host: &HostRoot, pid: u32, path: &str) -> Result<String, Problem> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let directory = host.symlink_target(&format!("/proc/{pid}/cwd"));
    let directory = directory.map_err(unknown)?;
    let directory = directory.ok_or_else(|| unknown("its working directory is unknown"))?;
    Ok(format!("{}/{path}", directory.trim_end_matches('/')))
}

/// Entries in all drop-in directories together, at most. A directory of drop-ins has a handful of files and no subdirectory.
const MAX_DROP_INS: usize = 256;
/// Nesting of drop-in directories at most. The limit ends a loop of bind mounts.
const MAX_DEPTH: usize = 8;

/// Adds the drop-ins of a directory in the order in which the kubelet merges them: it walks the tree in lexical order, follows no
/// symlink to a directory, and takes each file whose name ends in `.conf` (`mergeKubeletConfigurations`). `None` if a directory can't be
/// listed, or a limit is exceeded.
fn drop_ins(
    host: &HostRoot,
    directory: &str,
    depth: usize,
    room: &mut usize,
    files: &mut Vec<String>,
) -> Option<()> {
    let names = host.list(directory).ok()?;
    *room = room.checked_sub(names.len())?;
    if depth > MAX_DEPTH {
        return None;
    }
    for name in names {
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        let is_file = host.symlink_target(&path).ok()?.is_some()
            || !matches!(host.open_file(&path), Err(host::Error::NoFile { .. }));
        if !is_file {
            drop_ins(host, &path, depth + 1, room, files)?;
        } else if matches!(name.rsplit_once('.'), Some((_, "conf"))) {
            files.push(path);
        }
    }
    Some(())
}

/// The endpoint of a `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1). A field with `null` removes the value of an earlier file; an
/// absent field keeps the value (JSON merge patch, RFC 7386).
#[derive(Deserialize)]
struct KubeletConfiguration {
    #[serde(
        rename = "containerRuntimeEndpoint",
        default,
        deserialize_with = "present"
    )]
    endpoint: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Why a kubelet's configuration can't be parsed.
#[derive(Debug, thiserror::Error)]
enum ConfigurationError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Yaml(#[from] serde_saphyr::Error),
}

/// `containerRuntimeEndpoint` of a kubelet's configuration, `None` if absent.
///
/// Follows Kubernetes' own decoder: text that starts with a brace and is valid JSON is read as JSON, all other text as YAML. The last of
/// several equal keys and the first of several documents count.
fn endpoint_of(text: &str) -> Result<Option<Value>, ConfigurationError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(mut fields) = serde_json::from_str::<serde_json::Map<String, Value>>(text)
    {
        return Ok(fields.remove("containerRuntimeEndpoint"));
    }
    let first: Option<KubeletConfiguration> = first_document(text)?;
    Ok(first.and_then(|configuration| configuration.endpoint))
}

/// The first document of a YAML text, within the limits of this file; `None` for a text without one. The last of several equal keys counts.
///
/// # Errors
/// When the text is no YAML, or the document is of another type.
pub(crate) fn first_document<T: DeserializeOwned>(
    text: &str,
) -> Result<Option<T>, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        budget: serde_saphyr::budget! { max_events: MAX_EVENTS, max_depth: MAX_NESTING },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_EVENTS },
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let mut documents = serde_saphyr::read_with_options::<_, T>(&mut bytes, options);
    documents.next().transpose()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// The endpoint of a kubelet with PID 1 and this command line on the host at `root`.
    fn endpoint(root: &std::path::Path, arguments: &str) -> Result<Option<String>, String> {
        let process = Process {
            id: (1, 1),
            parent: 0,
            program: "/usr/bin/kubelet".to_owned(),
            arguments: arguments.as_bytes().to_owned(),
            directory: None,
            unit: None,
        };
        let kubelet = Kubelet::of(&HostRoot::open(root).unwrap(), &process);
        kubelet.endpoint.map_err(|problem| problem.message)
    }

    #[rstest]
    #[case::plain("containerRuntimeEndpoint: /run/a.sock\n", "/run/a.sock")]
    #[case::with_a_comment(
        "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"unix:///run/k0s/containerd.sock\" # ours\n",
        "/run/k0s/containerd.sock"
    )]
    #[case::in_single_quotes("containerRuntimeEndpoint: 'unix:///run/a.sock'\n", "/run/a.sock")]
    #[case::windows_line_ends(
        "a: 1\r\ncontainerRuntimeEndpoint: unix:///run/a.sock\r\n",
        "/run/a.sock"
    )]
    #[case::a_key_in_quotes("\"containerRuntimeEndpoint\" : /run/a.sock\n", "/run/a.sock")]
    #[case::on_the_next_line("containerRuntimeEndpoint:\n  unix:///run/a.sock\n", "/run/a.sock")]
    #[case::a_folded_block("containerRuntimeEndpoint: >-\n  unix:///run/a.sock\n", "/run/a.sock")]
    #[case::an_escape(
        "containerRuntimeEndpoint: \"unix:\\x2f//run/a.sock\"\n",
        "/run/a.sock"
    )]
    #[case::a_byte_order_mark("\u{feff}containerRuntimeEndpoint: /run/a.sock\n", "/run/a.sock")]
    #[case::a_directive_and_a_marker(
        "%YAML 1.2\n---\ncontainerRuntimeEndpoint: /run/a.sock\n...\n",
        "/run/a.sock"
    )]
    #[case::an_anchor(
        "x: &s unix:///run/a.sock\ncontainerRuntimeEndpoint: *s\n",
        "/run/a.sock"
    )]
    #[case::a_tag("containerRuntimeEndpoint: !!str /run/a.sock\n", "/run/a.sock")]
    #[case::a_key_twice(
        "containerRuntimeEndpoint: /run/b.sock\ncontainerRuntimeEndpoint: /run/a.sock\n",
        "/run/a.sock"
    )]
    #[case::the_first_document(
        "containerRuntimeEndpoint: /run/a.sock\n---\ncontainerRuntimeEndpoint: /run/b.sock\n",
        "/run/a.sock"
    )]
    #[case::before_a_document_that_is_broken(
        "containerRuntimeEndpoint: /run/a.sock\n---\n[\n",
        "/run/a.sock"
    )]
    #[case::in_braces(
        "{kind: KubeletConfiguration, containerRuntimeEndpoint: /run/a.sock}\n",
        "/run/a.sock"
    )]
    #[case::json("{\"containerRuntimeEndpoint\":\"unix:///run/a.sock\"}", "/run/a.sock")]
    #[case::json_with_tabs(
        "{\n\t\"kind\": \"KubeletConfiguration\",\n\t\"containerRuntimeEndpoint\": \"unix:///run/a.sock\"\n}\n",
        "/run/a.sock"
    )]
    #[case::json_with_a_byte_order_mark(
        "\u{feff}{\"containerRuntimeEndpoint\": \"/run/a.sock\"}",
        "/run/a.sock"
    )]
    #[case::json_with_a_key_twice(
        "{\"containerRuntimeEndpoint\": \"/run/b.sock\", \"containerRuntimeEndpoint\": \"/run/a.sock\"}",
        "/run/a.sock"
    )]
    fn the_endpoint_is_read_from_yaml_and_json_as_kubernetes_reads_it(
        #[case] text: &str,
        #[case] expected: &str,
    ) {
        let value = endpoint_of(text).unwrap().unwrap();
        let path = socket(value.as_str().unwrap()).unwrap();
        assert_eq!(path.as_deref(), Some(expected));
    }

    #[rstest]
    #[case::as_packaged(
        "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n--container-runtime-endpoint=${SNAP_COMMON}/run/containerd.sock\n",
        Some("/var/snap/microk8s/common/run/containerd.sock")
    )]
    #[case::without_braces(
        "--container-runtime-endpoint=unix://$SNAP_DATA/a.sock\n",
        Some("/var/snap/microk8s/current/a.sock")
    )]
    #[case::of_the_host(
        "# --container-runtime-endpoint=/run/b.sock\n  --container-runtime-endpoint unix:///run/a.sock\n",
        Some("/run/a.sock")
    )]
    #[case::absent("--v=2\n", None)]
    fn the_endpoint_of_an_embedded_kubelet_is_in_the_file_of_its_arguments(
        #[case] text: &str,
        #[case] expected: Option<&str>,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        assert_eq!(Kubelet::embedded(&host), None);
        let args = directory.path().join("var/snap/microk8s/current/args");
        std::fs::create_dir_all(&args).unwrap();
        std::fs::write(args.join("kubelet"), text).unwrap();
        let kubelet = Kubelet::embedded(&host).unwrap();
        assert_eq!(kubelet.endpoint(), expected);
    }

    #[rstest]
    #[case::absent("kind: KubeletConfiguration\n")]
    #[case::nothing("")]
    #[case::a_comment_alone("# containerRuntimeEndpoint: /run/a.sock\n")]
    #[case::of_another_mapping("a:\n  containerRuntimeEndpoint: /x\n")]
    #[case::inside_a_block_of_text("a: |\n  x\n\n  containerRuntimeEndpoint: /x\n")]
    #[case::of_other_letters("containerruntimeendpoint: /x\n")]
    fn a_configuration_without_the_endpoint_has_none(#[case] text: &str) {
        assert_eq!(endpoint_of(text).unwrap(), None);
    }

    // What `parseEndpointWithFallbackProtocol` of Kubernetes 1.34 answers.
    #[rstest]
    #[case::as_documented("unix:///run/a.sock", Some("/run/a.sock"))]
    #[case::without_slashes("unix:/run/a.sock", Some("/run/a.sock"))]
    #[case::in_capitals("UNIX:///run/a.sock", Some("/run/a.sock"))]
    #[case::of_a_host("unix://localhost/run/a.sock", Some("/run/a.sock"))]
    #[case::in_percent_encoding("unix:///run/%61%2Esock", Some("/run/a.sock"))]
    #[case::before_a_query("unix:///run/a.sock?x#y", Some("/run/a.sock"))]
    #[case::without_a_scheme("/run/a.sock", Some("/run/a.sock"))]
    #[case::without_a_scheme_in_percent_encoding("/run/%61.sock", Some("/run/a.sock"))]
    #[case::with_a_colon("/run/a:b.sock", Some("/run/a:b.sock"))]
    #[case::empty("", None)]
    fn an_endpoint_is_read_as_the_kubelet_reads_it(
        #[case] value: &str,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(socket(value).unwrap().as_deref(), expected);
    }

    #[rstest]
    #[case::a_pipe("npipe:////./pipe/a")]
    #[case::another_protocol("tcp://127.0.0.1:1")]
    #[case::a_relative_path("unix:run/a.sock")]
    #[case::a_host_alone("unix://run")]
    #[case::a_broken_escape("unix:///run/%6.sock")]
    fn an_endpoint_that_is_no_path_is_an_error(#[case] value: &str) {
        let problem = socket(value).unwrap_err();
        assert!(problem.message.contains(value), "{problem}");
    }

    /// Each of ten anchors holds the one before it ten times.
    fn alias_bomb() -> String {
        let levels = (1..10).map(|level| {
            let aliases = vec![format!("*a{}", level - 1); 10].join(",");
            format!("a{level}: &a{level} [{aliases}]\n")
        });
        let levels: String = levels.collect();
        format!("a0: &a0 [x]\n{levels}containerRuntimeEndpoint: /run/a.sock\n")
    }

    #[rstest]
    #[case::a_list("- containerRuntimeEndpoint: /run/a.sock\n".to_owned())]
    #[case::an_unknown_alias("containerRuntimeEndpoint: *a\n".to_owned())]
    #[case::an_open_quote("containerRuntimeEndpoint: \"/run/a.sock\n".to_owned())]
    #[case::a_tab_as_indentation("a:\n\tb: 1\ncontainerRuntimeEndpoint: /run/a.sock\n".to_owned())]
    #[case::an_alias_bomb(alias_bomb())]
    #[case::a_deep_nest(format!("a: {}{}\n", "[".repeat(100_000), "]".repeat(100_000)))]
    #[case::a_deep_nest_of_json(format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000)))]
    fn an_invalid_configuration_is_an_error(#[case] text: String) {
        assert!(endpoint_of(&text).is_err());
    }

    #[rstest]
    #[case::by_an_equals_sign(&["--config=/a"], Some("/a"))]
    #[case::as_the_next_argument(&["--v=2", "--config", "/a"], Some("/a"))]
    #[case::the_last_one(&["--config=/b", "--config", "/a"], Some("/a"))]
    #[case::of_a_longer_name(&["--config-dir=/a"], None)]
    #[case::behind_the_end_of_flags(&["--", "--config=/a"], None)]
    #[case::without_a_value(&["--config"], None)]
    fn a_flag_of_the_kubelet_is_read_as_pflag_reads_it(
        #[case] arguments: &[&str],
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(flag(arguments, "config"), expected);
    }

    #[rstest]
    #[case::the_file(&["--config=/etc/k.json"], &[("etc/k.json", "{\"containerRuntimeEndpoint\": \"/run/a.sock\"}")], Ok(Some("/run/a.sock")))]
    #[case::a_relative_file(&["--config=k.yaml"], &[("var/lib/k.yaml", "containerRuntimeEndpoint: /run/a.sock")], Ok(Some("/run/a.sock")))]
    #[case::a_flag_over_a_file(
        &["--container-runtime-endpoint=/run/a.sock", "--config=/k"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::a_flag_with_underscores_over_a_file(
        &["--container_runtime-endpoint", "unix:///run/a_b.sock", "--config=/k"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(Some("/run/a_b.sock"))
    )]
    #[case::a_directory_of_drop_ins_with_an_underscore(
        &["--config_dir=/k_d"],
        &[("k_d/1.conf", "containerRuntimeEndpoint: /run/a.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::an_empty_flag_over_a_file(
        &["--container-runtime-endpoint=", "--config=/k"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(None)
    )]
    #[case::a_drop_in_over_the_file(
        &["--config=/k", "--config-dir=/k.d"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock"), ("k.d/10.conf", "containerRuntimeEndpoint: /run/a.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::the_last_drop_in(
        &["--config-dir=/k.d/"],
        &[("k.d/20.conf", "containerRuntimeEndpoint: /run/a.sock"), ("k.d/10.conf", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::a_drop_in_in_a_directory_within(
        &["--config-dir=/k.d"],
        &[("k.d/20/1.conf", "containerRuntimeEndpoint: /run/a.sock"), ("k.d/10.conf", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::a_drop_in_of_another_suffix(
        &["--config=/k", "--config-dir=/k.d"],
        &[("k", "containerRuntimeEndpoint: /run/a.sock"), ("k.d/10.yaml", "containerRuntimeEndpoint: /run/b.sock")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::a_drop_in_that_says_nothing_of_it(
        &["--config=/k", "--config-dir=/k.d"],
        &[("k", "containerRuntimeEndpoint: /run/a.sock"), ("k.d/10.conf", "maxPods: 5")],
        Ok(Some("/run/a.sock"))
    )]
    #[case::a_drop_in_that_takes_it_away(
        &["--config=/k", "--config-dir=/k.d"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock"), ("k.d/10.conf", "containerRuntimeEndpoint: null")],
        Ok(None)
    )]
    #[case::a_drop_in_that_is_broken(
        &["--config=/k", "--config-dir=/k.d"],
        &[("k", "containerRuntimeEndpoint: /run/b.sock"), ("k.d/10.conf", "[")],
        Err("/k.d/10.conf is no KubeletConfiguration")
    )]
    #[case::a_number(
        &["--config=/k"],
        &[("k", "containerRuntimeEndpoint: 1")],
        Err("its containerRuntimeEndpoint is no text")
    )]
    #[case::a_list(
        &["--config=/k"],
        &[("k", "containerRuntimeEndpoint: [/run/a.sock]")],
        Err("its containerRuntimeEndpoint is no text")
    )]
    #[case::another_protocol(
        &["--config=/k"],
        &[("k", "containerRuntimeEndpoint: 'tcp://127.0.0.1:1'")],
        Err("its endpoint tcp://127.0.0.1:1 is no path of a Unix socket")
    )]
    #[case::an_empty_value(&["--config=/k"], &[("k", "containerRuntimeEndpoint: ''")], Ok(None))]
    #[case::a_file_that_is_gone(&["--config=/k"], &[], Ok(None))]
    fn flags_and_files_together_determine_the_endpoint(
        #[case] arguments: &[&str],
        #[case] files: &[(&str, &str)],
        #[case] expected: Result<Option<&str>, &str>,
    ) {
        let cmdline = [&["/usr/bin/kubelet"], arguments].concat().join("\0") + "\0";
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("proc/1")).unwrap();
        std::os::unix::fs::symlink("/var/lib", root.join("proc/1/cwd")).unwrap();
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = endpoint(root, &cmdline);
        match expected {
            Ok(expected) => assert_eq!(found, Ok(expected.map(str::to_owned))),
            Err(cause) => assert!(found.unwrap_err().contains(cause)),
        }
    }

    #[test]
    fn a_file_beyond_the_size_limit_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let text = "containerRuntimeEndpoint: /run/a.sock\n#";
        std::fs::write(
            directory.path().join("k"),
            format!("{text}{}", "x".repeat(1 << 18)),
        )
        .unwrap();
        assert!(endpoint(directory.path(), "kubelet\0--config=/k\0").is_err());
    }

    #[rstest]
    #[case::as_many_as_are_looked_at(15, true)]
    #[case::more_in_all_directories_together(16, false)]
    fn the_names_in_all_directories_of_drop_ins_together_are_bounded(
        #[case] directories: usize,
        #[case] is_known: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for number in 0..directories {
            for inner in 0..16 {
                std::fs::create_dir_all(root.join(format!("k.d/{number}/{inner}"))).unwrap();
            }
        }
        std::fs::write(
            root.join("k.d/a.conf"),
            "containerRuntimeEndpoint: /run/a.sock\n",
        )
        .unwrap();
        let found = endpoint(root, "kubelet\0--config-dir=/k.d\0");
        assert_eq!(found.is_ok(), is_known);
    }

    #[test]
    fn a_drop_in_directory_with_a_symlink_to_itself_is_read() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("k.d")).unwrap();
        std::os::unix::fs::symlink(".", directory.path().join("k.d/a")).unwrap();
        let drop_in = "containerRuntimeEndpoint: /run/a.sock\n";
        std::fs::write(directory.path().join("k.d/b.conf"), drop_in).unwrap();
        let found = endpoint(directory.path(), "kubelet\0--config-dir=/k.d\0");
        assert_eq!(found, Ok(Some("/run/a.sock".to_owned())));
    }

    #[tokio::test]
    async fn a_socket_of_containerd_by_another_path_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        let host = HostRoot::open(directory.path()).unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let link = directory.path().join("run/link.sock");
        std::os::unix::fs::symlink("/run/containerd.sock", link).unwrap();
        let find = async |endpoint: Option<&str>| {
            let kubelet = Kubelet {
                arguments: String::new(),
                endpoint: Ok(endpoint.map(str::to_owned)),
                of_distro: None,
            };
            KubeletRuntime::find(&host, Some(&kubelet), "/run/containerd.sock").await
        };
        for endpoint in [
            None,
            Some("/run/containerd.sock"),
            Some("/var/run/containerd.sock"),
            Some("/run/link.sock"),
        ] {
            let found = find(endpoint).await;
            assert_eq!(found, KubeletRuntime::Containerd, "{endpoint:?}");
        }
        let found = find(Some("/run/cri-dockerd.sock")).await;
        let KubeletRuntime::Unknown(problem) = found else {
            panic!("{found:?}");
        };
        assert!(
            problem.message.contains("/run/cri-dockerd.sock"),
            "{problem}"
        );
    }

    #[rstest]
    #[case::docker("docker")]
    #[case::crio("cri-o")]
    #[case::nameless("")]
    fn the_runtime_at_the_socket_of_the_kubelet_is_told_by_its_name(#[case] name: &str) {
        let of = |name: &str| KubeletRuntime::of_answer("/run/a.sock", Ok(name.to_owned()));
        let other = KubeletRuntime::Other {
            name: name.to_owned(),
            socket: "/run/a.sock".to_owned(),
        };
        assert_eq!(of(name), other);
        // A proxy answers for the runtime behind it.
        assert_eq!(of("containerd"), KubeletRuntime::Containerd);
    }

    #[test]
    fn a_socket_under_var_run_is_the_one_under_run() {
        assert!(is_same_socket(
            "/var/run/crio/crio.sock",
            "/run/crio/crio.sock"
        ));
        assert!(!is_same_socket("/run/a.sock", "/run/b.sock"));
    }
}
