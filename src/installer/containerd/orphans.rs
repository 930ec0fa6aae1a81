//! Finds and ends the shim processes of Farrier's binaries that belong to no pod and to no other container.
//!
//! A start of containerd 2.x takes the containers of a shim for dead that reports no process, such as a shim built on runwasi, and their
//! processes run on. When the pod is deleted, containerd asks the shim to shut down (`Shutdown` of the task API), and the shim stays: it ends
//! only when it holds no container (`shutdown` in `sandbox/shim/local.rs` of containerd-shimkit). Nothing asks this shim ever again.
//!
//! One shim of runwasi serves a whole pod. The processes of its containers, and the process that starts them, are its children, because the
//! shim is their subreaper. SIGTERM alone ends neither: the shim only logs the signal (`handle_signals` in containerd-shim), and the first
//! process of a PID namespace ignores it without a handler (`pid_namespaces(7)`).

use std::collections::BTreeSet;
use std::time::Duration;

use containerd_client::services::v1::GetContainerRequest;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::sandbox::StoreGetRequest;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use futures::{StreamExt as _, TryStreamExt as _};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::cri::{self, ANSWER_LIMIT, MAX_ANSWER, Sandbox, channel};
use super::kubelet::is_same_socket;
use super::process::{Clock, RunningProgram, find_by_program, parent, parents, start_time};
use super::service::{self, ProcessHandle, check_pid_namespace};
use super::tasks::{CONCURRENCY, NAMESPACE};
use crate::handoff::printable;
use crate::installer::host::{self, HostRoot};
use crate::installer::state::{InstallPaths, OwnedHandler, stored_digest};

/// The least age of a process that counts, and the time between two looks. containerd records a container before it starts the shim, and
/// removes the record before the shim has ended, so a process without a record may be about to end. This takes milliseconds.
const LEAST_AGE: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// The shim processes that are looked at. A node has up to some hundred pods.
const MAX_SHIMS: usize = 2048;

/// The length of an identifier. containerd allows 76 bytes (`pkg/identifiers`).
const MAX_IDENTIFIER: usize = 128;

/// How long a process may take to end after SIGTERM, and after SIGKILL. A process in a system call that can't be interrupted takes longer.
const TERM_LIMIT: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Interval between two looks at processes that are ending.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why orphaned processes can't be found or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The processes can't be listed.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// containerd does not say which containers it has.
    #[error(transparent)]
    Cri(#[from] cri::Error),
    /// Farrier runs in another PID namespace, where a signal would reach another process.
    #[error("processes of this host can be ended only from the PID namespace of the host")]
    OtherProcesses,
    /// A process can't be signalled.
    #[error(transparent)]
    Signal(service::Error),
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Host(error) => error.help(),
            Self::Cri(error) => error.help(),
            Self::OtherProcesses => Some("run farrier on the node".into()),
            Self::Signal(error) => error.help(),
        }
    }
}

/// The programs whose processes are looked at.
#[derive(Debug, Clone, Default)]
pub struct ShimPrograms {
    store: String,
    /// The binaries of handlers that kept the path of a legacy installer.
    others: BTreeSet<String>,
}

impl ShimPrograms {
    /// All programs in the store, and the binaries of `handlers` at other paths.
    pub fn of<'a>(
        install_paths: &InstallPaths,
        handlers: impl Iterator<Item = &'a OwnedHandler>,
    ) -> Self {
        let installed = handlers.filter(|owned| !owned.is_reserved());
        Self {
            store: install_paths.store_path(""),
            others: installed.filter_map(|owned| owned.path.clone()).collect(),
        }
    }

    fn contain(&self, program: &str) -> bool {
        let stored = program.strip_prefix(&self.store).and_then(stored_digest);
        stored.is_some() || self.others.contains(program)
    }
}

/// A shim process without a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// PID and start time (field 22 of `proc_pid_stat(5)`). The pair is unique until a reboot.
    pub process: (u32, u64),
    /// Path of its program, also if the program was removed or replaced.
    pub program: String,
    /// When it started, in seconds since the epoch; `None` if the clock of the host was set before 1970.
    pub since: Option<u64>,
    call: Call,
}

impl Orphan {
    /// Whether the process runs the binary of a handler.
    #[must_use]
    pub fn runs(&self, install_paths: &InstallPaths, owned: &OwnedHandler) -> bool {
        owned.sha256().is_some_and(|sha256| {
            self.program == install_paths.store_path(sha256)
                || owned.path.as_ref() == Some(&self.program)
        })
    }

    #[cfg(test)]
    pub(in crate::installer) fn of_program(pid: u32, program: &str) -> Self {
        Self {
            process: (pid, 1),
            program: program.to_owned(),
            since: Some(1_764_000_000),
            call: Call {
                namespace: NAMESPACE.to_owned(),
                id: "gone".to_owned(),
                address: None,
            },
        }
    }
}

/// What the command line of a shim says: for which container, or group of containers, containerd started it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    namespace: String,
    id: String,
    /// The socket of the containerd that started it.
    address: Option<String>,
}

impl Call {
    /// Reads the arguments of a shim that serves containers, by the rules of Go's `flag`, as containerd-shim does, too. `None` for any other
    /// call, such as `start` and `delete`, which end by themselves.
    fn of(arguments: &[u8]) -> Option<Self> {
        let arguments = arguments.strip_suffix(b"\0").unwrap_or(arguments);
        let arguments = arguments.split(|byte| *byte == 0).skip(1);
        let mut arguments = arguments.map(std::str::from_utf8);
        let (mut namespace, mut id, mut address) = (None, None, None);
        while let Some(argument) = arguments.next() {
            let argument = argument.ok()?;
            let flag = argument.strip_prefix('-')?;
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (flag, None),
            };
            let option = match flag {
                // These take no value, or only after an equals sign.
                "debug" => continue,
                "" | "v" | "version" | "info" | "help" | "h" => return None,
                "namespace" => Some(&mut namespace),
                "id" => Some(&mut id),
                "address" => Some(&mut address),
                _ => None,
            };
            let value = match value {
                Some(value) => value,
                None => arguments.next()?.ok()?,
            };
            if let Some(option) = option {
                *option = Some(value);
            }
        }
        let identifier = |text: &str| is_identifier(text).then(|| text.to_owned());
        Some(Self {
            namespace: identifier(namespace?)?,
            id: identifier(id?)?,
            address: address.map(str::to_owned),
        })
    }

    /// Whether the containerd at `socket` started it, as far as its command line says.
    fn is_of(&self, socket: &str) -> bool {
        let address = self.address.as_deref();
        let address = address.map(|address| address.strip_prefix("unix://").unwrap_or(address));
        address.is_none_or(|address| is_same_socket(address, socket))
    }
}

/// Whether containerd may use `text` as an identifier or a namespace.
fn is_identifier(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= MAX_IDENTIFIER && text.bytes().all(is_plain)
}

/// Finds the shim processes of `programs` that belong to no container and no sandbox of the containerd at `socket`, by PID. Of a shim and its
/// children, only the shim is returned. `sandboxes` are in use, so their shims are not asked about.
///
/// A process counts if it is there in two looks, [`LEAST_AGE`] old in the first, and containerd has no record of it after either. Without
/// such a process in the first look, there is no second one and no wait.
///
/// # Errors
/// When processes can't be listed, or containerd does not answer.
pub async fn find(
    host: &HostRoot,
    socket: &str,
    programs: &ShimPrograms,
    sandboxes: &[Sandbox],
) -> Result<Vec<Orphan>, Error> {
    let first = look(host, socket, programs, sandboxes)?;
    let first = without_record(host, socket, first).await?;
    if first.is_empty() {
        return Ok(first);
    }
    sleep(BETWEEN_LOOKS).await;
    let mut again = look(host, socket, programs, sandboxes)?;
    again.retain(|orphan| first.iter().any(|other| other.process == orphan.process));
    without_record(host, socket, again).await
}

/// The shim processes of `programs` that a containerd at `socket` has started, with a pod or without: for a containerd that does not answer.
///
/// # Errors
/// When processes can't be listed.
pub fn running(
    host: &HostRoot,
    socket: &str,
    programs: &ShimPrograms,
) -> Result<Vec<Orphan>, Error> {
    look(host, socket, programs, &[])
}

/// The shim processes that no sandbox of `sandboxes` explains.
fn look(
    host: &HostRoot,
    socket: &str,
    programs: &ShimPrograms,
    sandboxes: &[Sandbox],
) -> Result<Vec<Orphan>, Error> {
    let running = find_by_program(host, |program| programs.contain(program))?;
    if running.is_empty() {
        return Ok(Vec::new());
    }
    let Some(clock) = Clock::now() else {
        return Ok(Vec::new());
    };
    let known = sandboxes.iter().flat_map(|sandbox| {
        let containers = sandbox.running.iter().map(String::as_str);
        containers.chain([sandbox.id.as_str()])
    });
    let known: BTreeSet<&str> = known.collect();
    let is_known = |call: &Call| call.namespace == NAMESPACE && known.contains(call.id.as_str());
    let calls: Vec<(&RunningProgram, Call)> = running
        .iter()
        .filter_map(|process| Some((process, Call::of(&process.arguments)?)))
        .filter(|(_, call)| call.is_of(socket))
        .take(MAX_SHIMS)
        .collect();
    let is_child_of_shim = |process: &RunningProgram, call: &Call| {
        let mut parents = calls.iter();
        parents.any(|(other, others)| other.id.0 == process.parent && others == call)
    };
    let found = calls.iter().filter(|(process, call)| {
        let age = clock.age_of(process.id.1);
        age.is_some_and(|age| age >= LEAST_AGE)
            && !is_known(call)
            && !is_child_of_shim(process, call)
    });
    let found = found.map(|(process, call)| Orphan {
        process: process.id,
        program: process.program.clone(),
        since: clock.time_of(process.id.1).map(|time| time.as_secs()),
        call: call.clone(),
    });
    Ok(found.collect())
}

/// Those of `suspects` that containerd has no record of.
async fn without_record(
    host: &HostRoot,
    socket: &str,
    suspects: Vec<Orphan>,
) -> Result<Vec<Orphan>, Error> {
    if suspects.is_empty() {
        return Ok(suspects);
    }
    let channel = channel(host, socket).await?;
    let answers = futures::stream::iter(suspects).map(|orphan| {
        let channel = channel.clone();
        async move {
            let known = has_record(channel, socket, &orphan.call).await?;
            Ok::<_, Error>((!known).then_some(orphan))
        }
    });
    let answers: Vec<Option<Orphan>> = answers.buffered(CONCURRENCY).try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Whether containerd has a container or a sandbox of this identifier.
async fn has_record(channel: Channel, socket: &str, call: &Call) -> Result<bool, Error> {
    let id = call.id.clone();
    let mut client = ContainersClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER);
    let container = request(call, GetContainerRequest { id: id.clone() })?;
    match exists(socket, client.get(container)).await? {
        Some(true) => return Ok(true),
        Some(false) => {}
        None => return Err(unavailable(socket, "its service of containers is disabled")),
    }
    // containerd 1.6 has no such service. A sandbox of containerd 2 need not be a container.
    let sandbox = request(call, StoreGetRequest { sandbox_id: id })?;
    let found = exists(socket, StoreClient::new(channel).get(sandbox)).await?;
    Ok(found == Some(true))
}

/// A request in the namespace of `call`.
fn request<T>(call: &Call, message: T) -> Result<Request<T>, Error> {
    let mut request = Request::new(message);
    let namespace: Result<MetadataValue<Ascii>, _> = call.namespace.parse();
    let namespace = namespace.map_err(|_| unavailable(&call.namespace, "no such namespace"))?;
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", namespace);
    Ok(request)
}

/// Whether the object of a request exists; `None` if containerd does not have the service.
async fn exists<T>(
    socket: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Option<bool>, Error> {
    match timeout(ANSWER_LIMIT, call).await {
        Ok(Ok(_)) => Ok(Some(true)),
        Ok(Err(status)) if status.code() == Code::NotFound => Ok(Some(false)),
        Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(None),
        Ok(Err(status)) => Err(unavailable(socket, status.message())),
        Err(_) => Err(unavailable(
            socket,
            &format!("no answer within {ANSWER_LIMIT:?}"),
        )),
    }
}

fn unavailable(socket: &str, message: &str) -> Error {
    Error::Cri(cri::Error::Unavailable {
        socket: socket.to_owned(),
        message: printable(message),
    })
}

/// Ends the shim processes that [`find`] finds, and their children: SIGTERM, and SIGKILL to those that still run after [`TERM_LIMIT`].
/// Returns those that have ended with all their children.
///
/// Each process is held by a pidfd when containerd is asked for the last time, so a signal reaches this process or none.
///
/// # Errors
/// As of [`find`], or when Farrier runs in another PID namespace, or a process can't be signalled.
pub async fn end(
    host: &HostRoot,
    socket: &str,
    programs: &ShimPrograms,
) -> Result<Vec<Orphan>, Error> {
    check_pid_namespace(host).map_err(|_| Error::OtherProcesses)?;
    let sandboxes = cri::sandboxes(host, socket).await?;
    let found = find(host, socket, programs, &sandboxes).await?;
    let mut held = Vec::new();
    for orphan in found {
        let processes = Held::with_children(host, orphan.process)?;
        held.push((orphan, processes));
    }
    let orphans = held.iter().map(|(orphan, _)| orphan.clone()).collect();
    let still = without_record(host, socket, orphans).await?;
    held.retain(|(orphan, _)| still.contains(orphan));
    for process in held.iter().flat_map(|(_, processes)| processes) {
        process.signal(Signal::TERM)?;
    }
    await_end(host, &held, TERM_LIMIT).await;
    for (orphan, processes) in &mut held {
        // It may have started another child since. After its end, its children are those of another process.
        processes.extend(Held::with_children(host, orphan.process)?);
        for process in processes.iter() {
            process.signal(Signal::KILL)?;
        }
    }
    await_end(host, &held, KILL_LIMIT).await;
    held.retain(|(_, processes)| !processes.iter().any(|process| process.runs(host)));
    Ok(held.into_iter().map(|(orphan, _)| orphan).collect())
}

async fn await_end(host: &HostRoot, held: &[(Orphan, Vec<Held>)], limit: Duration) {
    let until = Instant::now() + limit;
    for process in held.iter().flat_map(|(_, processes)| processes) {
        while process.runs(host) {
            if Instant::now() >= until {
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// A process that is to end.
struct Held {
    id: (u32, u64),
    handle: ProcessHandle,
}

impl Held {
    /// The process and all its descendants, as far as they still run.
    fn with_children(host: &HostRoot, process: (u32, u64)) -> Result<Vec<Self>, Error> {
        let mut held = Vec::new();
        held.extend(Self::of(host, process)?);
        if held.is_empty() {
            // The PID may be that of another process.
            return Ok(held);
        }
        let parents = parents(host)?;
        let mut tree = BTreeSet::from([process.0]);
        loop {
            let children = parents.iter();
            let children =
                children.filter(|(pid, parent)| tree.contains(parent) && !tree.contains(pid));
            let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
            let mut added = Vec::new();
            for pid in children {
                let Some(start) = start_time(host, pid) else {
                    continue;
                };
                let child = Self::of(host, (pid, start))?;
                // While the process is held, its PID is not reused.
                let parent = parent(host, pid);
                if parent.is_some_and(|parent| tree.contains(&parent)) {
                    held.extend(child);
                    added.push(pid);
                }
            }
            if added.is_empty() {
                return Ok(held);
            }
            tree.extend(added);
        }
    }

    fn of(host: &HostRoot, id: (u32, u64)) -> Result<Option<Self>, Error> {
        let handle = ProcessHandle::of(host, id).map_err(Error::Signal)?;
        Ok(handle.map(|handle| Self { id, handle }))
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.handle.signal(signal).map_err(Error::Signal)
    }

    fn runs(&self, host: &HostRoot) -> bool {
        start_time(host, self.id.0) == Some(self.id.1)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn call(arguments: &[&str]) -> Option<(String, String, Option<String>)> {
        let line = [&["/opt/farrier/store/a"], arguments, &[""]].concat();
        let line = line.join("\0");
        let call = Call::of(line.as_bytes())?;
        Some((call.namespace, call.id, call.address))
    }

    #[rstest]
    #[case::of_containerd_shim(&["-namespace", "k8s.io", "-id", "1a", "-address", "/run/c.sock"], Some(("k8s.io", "1a", Some("/run/c.sock"))))]
    #[case::with_debug(&["-debug", "-namespace", "k8s.io", "-id", "1a"], Some(("k8s.io", "1a", None)))]
    #[case::with_equals_signs(&["--namespace=n", "--id=1a", "-debug=true"], Some(("n", "1a", None)))]
    #[case::with_other_options(&["-bundle", "-id", "-namespace", "n", "-id", "1a"], Some(("n", "1a", None)))]
    #[case::that_starts_another(&["-namespace", "k8s.io", "-id", "1a", "start"], None)]
    #[case::that_cleans_up(&["-namespace", "k8s.io", "-id", "1a", "-bundle", "/b", "delete"], None)]
    #[case::that_prints_its_release(&["-v"], None)]
    #[case::that_prints_its_features(&["-info"], None)]
    #[case::without_an_identifier(&["-namespace", "k8s.io"], None)]
    #[case::without_a_namespace(&["-id", "1a"], None)]
    #[case::without_a_value(&["-namespace", "k8s.io", "-id"], None)]
    #[case::with_an_identifier_that_containerd_does_not_use(&["-namespace", "k8s.io", "-id", "1\n2"], None)]
    #[case::with_an_empty_identifier(&["-namespace", "k8s.io", "-id", ""], None)]
    #[case::without_arguments(&[], None)]
    fn a_shim_is_recognised_by_its_arguments(
        #[case] arguments: &[&str],
        #[case] expected: Option<(&str, &str, Option<&str>)>,
    ) {
        let found = call(arguments);
        let found = found
            .as_ref()
            .map(|(namespace, id, address)| (namespace.as_str(), id.as_str(), address.as_deref()));
        assert_eq!(found, expected);
    }

    #[test]
    fn arguments_that_are_no_text_or_have_no_end_are_those_of_no_shim() {
        assert_eq!(Call::of(b"a\0-id\0\xff\0-namespace\0n\0"), None);
        assert_eq!(Call::of(b""), None);
        let long = "1".repeat(MAX_IDENTIFIER + 1);
        assert_eq!(call(&["-namespace", "n", "-id", &long]), None);
    }

    #[rstest]
    #[case::the_same(Some("/run/containerd/containerd.sock"), true)]
    #[case::below_var(Some("/var/run/containerd/containerd.sock"), true)]
    #[case::with_a_scheme(Some("unix:///run/containerd/containerd.sock"), true)]
    #[case::none(None, true)]
    #[case::of_another_containerd(Some("/run/k3s/containerd/containerd.sock"), false)]
    fn a_shim_is_that_of_the_containerd_at_its_address(
        #[case] address: Option<&str>,
        #[case] expected: bool,
    ) {
        let call = Call {
            namespace: "k8s.io".to_owned(),
            id: "1".to_owned(),
            address: address.map(str::to_owned),
        };
        assert_eq!(call.is_of("/run/containerd/containerd.sock"), expected);
    }

    #[test]
    fn programs_are_the_files_of_the_store_and_legacy_binaries() {
        let install_paths = InstallPaths {
            directory: "/opt/farrier".to_owned(),
        };
        let programs = ShimPrograms::of(&install_paths, std::iter::empty());
        let digest = "a".repeat(64);
        for (path, expected) in [
            (format!("/opt/farrier/store/{digest}"), true),
            (format!("/opt/farrier/store/{digest}/x"), false),
            (format!("/opt/farrier/store/{}", "a".repeat(63)), false),
            (format!("/opt/farrier2/store/{digest}"), false),
            ("/opt/farrier/bin/containerd-shim-a".to_owned(), false),
            ("/usr/bin/containerd-shim-runc-v2".to_owned(), false),
        ] {
            assert_eq!(programs.contain(&path), expected, "{path}");
        }
    }
}
