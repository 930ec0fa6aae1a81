//! What the controller costs over many nodes, beside as many bare Jobs: `cargo xtask bench cluster` brings up a control plane in which
//! kwok plays the kubelets and says in the environment where it is. One number of nodes per run. Not a test: no test is timed.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that can't go on has nothing to say"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farrier::api::Shim;
use farrier::names;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Node, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PartialObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// As many as the controller has under way at a time.
const CONCURRENT_WRITES: usize = 8;

/// The Shims; every node wants all of them.
const SHIMS: [&str; 3] = ["one", "two", "three"];

/// Namespace of the controller and of all Jobs, the bare ones included.
const NAMESPACE: &str = "farrier";

/// How often a condition is looked at, where looking costs the API server nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often the API server is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// How long one stage may take: the Job controller of Kubernetes, with its default limits, finishes about four Jobs a second.
fn patience(nodes: usize) -> Duration {
    Duration::from_mins(1) + Duration::from_millis(400) * u32::try_from(nodes).unwrap()
}

/// Where things are, as the environment says.
struct Place {
    client: Client,
    nodes: usize,
    kubeconfig: PathBuf,
    binary: PathBuf,
    audit_log: PathBuf,
    folder: PathBuf,
}

#[tokio::main]
async fn main() {
    let read = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: use `cargo xtask bench cluster`"))
    };
    let state = PathBuf::from(read("FARRIER_CLUSTER"));
    let cluster: Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = PathBuf::from(cluster["kubeconfig"].as_str().unwrap());
    let place = Place {
        client: client(&kubeconfig).await,
        nodes: read("FARRIER_NODES").parse().unwrap(),
        kubeconfig,
        binary: read("FARRIER_BINARY").into(),
        audit_log: read("FARRIER_AUDIT_LOG").into(),
        folder: PathBuf::from(cluster["logs"].as_str().unwrap()),
    };
    let figures = measure(&place).await;
    fs::write(read("FARRIER_FIGURES"), figures.to_string()).unwrap();
}

async fn client(kubeconfig: &Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

async fn measure(place: &Place) -> Value {
    say(&format!("{} nodes join", place.nodes));
    place.join_nodes().await;
    let controller = place.start_controller().await;
    let shims: Api<Shim> = Api::all(place.client.clone());
    let jobs: Api<Job> = Api::namespaced(place.client.clone(), NAMESPACE);
    let everywhere = SHIMS
        .map(|shim| format!("{}=provisioned", names::shim_label(shim)))
        .join(",");
    let provisioned = follow::<Node>(
        Api::all(place.client.clone()),
        watcher::Config::default().labels(&everywhere),
    );

    say("three Shims for every node");
    let began = controller.mark(place);
    for name in SHIMS {
        shims
            .create(&PostParams::default(), &shim(name))
            .await
            .unwrap();
    }
    let template = first_job(&jobs).await;
    let all = || provisioned.lock().unwrap().len() == place.nodes;
    let done = until(place.nodes, LOOK_EVERY, async || all()).await;
    let gone = until(place.nodes, ASK_EVERY, async || is_empty(&jobs).await).await;
    let wall = began.at.elapsed();
    let reached = provisioned.lock().unwrap().len();
    let provisioned_all = done && gone;
    if provisioned_all {
        let told = until(place.nodes, ASK_EVERY, async || {
            told(&shims, place.nodes).await
        })
        .await;
        let after = began.at.elapsed();
        say(&format!(
            "provisioned after {wall:.1?}, all told in status ({told}) after {after:.1?}"
        ));
    } else {
        say(&format!(
            "{reached} of {} nodes after {wall:.1?}",
            place.nodes
        ));
    }
    let provisioning = controller.since(&began, place);

    let removal = if provisioned_all {
        say("the Shims go");
        let began = controller.mark(place);
        for name in SHIMS {
            shims.delete(name, &DeleteParams::default()).await.unwrap();
        }
        let gone = until(place.nodes, ASK_EVERY, async || is_empty(&shims).await).await
            && until(place.nodes, ASK_EVERY, async || is_empty(&jobs).await).await;
        Some((gone, began.at.elapsed(), controller.since(&began, place)))
    } else {
        None
    };
    let peak = controller.peak();
    drop(controller);

    say("as many bare Jobs");
    let bare = place.bare_jobs(template).await;
    match bare {
        Some(bare) => say(&format!("complete after {bare:.1?}")),
        None => say("they don't end in time"),
    }
    let reached = (!provisioned_all).then_some(reached);
    tables(
        place.nodes,
        reached,
        wall,
        bare,
        &provisioning,
        peak,
        removal,
    )
}

/// The figures as `cargo xtask bench cluster` reads them.
fn tables(
    nodes: usize,
    reached: Option<usize>,
    wall: Duration,
    bare: Option<Duration>,
    spent: &Spent,
    peak: u64,
    removal: Option<(bool, Duration, Spent)>,
) -> Value {
    let line = |what: &str, measured: String, target: &str, met: bool| json!({"what": format!("{nodes} nodes: {what}"), "measured": measured, "target": target, "met": met});
    let each = |count: usize| precise(count) / precise(nodes);
    let seconds = wall.as_secs_f64();
    let (beside, ratio) = bare.map_or_else(
        || ("bare Jobs that did not end in time".to_owned(), 0.0),
        |bare| {
            let bare = bare.as_secs_f64();
            (format!("{bare:.1} s"), seconds / bare)
        },
    );
    let time = match reached {
        None => format!("{seconds:.1} s beside {beside}, {ratio:.2} times"),
        Some(reached) => format!("{reached} nodes in {seconds:.1} s beside {beside}"),
    };
    let complete = reached.is_none();
    let writes = each(spent.writes());
    let lists = spent.lists_of_nodes();
    let cpu = |spent: &Spent| spent.cpu.as_secs_f64() * 1e3 / precise(nodes);
    let logged = each(spent.lines);
    let mut lines = vec![
        line(
            "three Shims served and all Jobs gone, beside as many bare Jobs",
            time,
            "at most 1.2 times",
            complete && bare.is_some() && ratio <= 1.2,
        ),
        line(
            "writes per node",
            format!("{writes:.2}"),
            "at most 6",
            complete && writes <= 6.0,
        ),
        line(
            "lists of all nodes meanwhile",
            lists.to_string(),
            "none",
            lists == 0,
        ),
        line(
            "CPU time, and per node",
            format!("{:.2} s, {:.2} ms", spent.cpu.as_secs_f64(), cpu(spent)),
            "flat, see below",
            complete,
        ),
        line(
            "peak memory",
            format!("{:.1} MB", precise(usize::try_from(peak).unwrap()) / 1e6),
            "under 100 MB",
            complete && peak < 100_000_000,
        ),
        line(
            "log lines per node",
            format!("{logged:.2}"),
            "at most 5",
            complete && logged <= 5.0,
        ),
    ];
    let mut requests: Vec<(String, f64)> = spent
        .requests
        .iter()
        .map(|(request, count)| (request.clone(), each(*count)))
        .collect();
    if let Some((gone, wall, spent)) = removal {
        lines.push(line(
            "the Shims deleted and every node clean",
            format!(
                "{:.1} s, {:.2} writes and {:.2} ms of CPU time per node",
                wall.as_secs_f64(),
                each(spent.writes()),
                cpu(&spent)
            ),
            "it ends",
            gone,
        ));
        let removed = spent.requests.iter();
        requests
            .extend(removed.map(|(request, count)| (format!("removal: {request}"), each(*count))));
    }
    json!({"lines": lines, "requests": requests, "cpuMillisecondsPerNode": cpu(spent)})
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "  {what}");
}

/// Counts here are far below 2^52.
#[allow(clippy::cast_precision_loss, reason = "see above")]
fn precise(count: usize) -> f64 {
    count as f64
}

/// Waits until `reached` says so; false when the patience for that many nodes ends first.
async fn until(nodes: usize, every: Duration, mut reached: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience(nodes);
    while !reached().await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(every).await;
    }
    true
}

/// The names of the objects that `config` selects, kept up to date by a watch.
fn follow<K>(
    api: Api<PartialObjectMeta<K>>,
    config: watcher::Config,
) -> Arc<Mutex<BTreeSet<String>>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    let names = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&names);
    tokio::spawn(async move {
        let events = watcher(api, config).default_backoff();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    seen.lock().unwrap().insert(object.name_any());
                }
                Ok(watcher::Event::Delete(object)) => {
                    seen.lock().unwrap().remove(&object.name_any());
                }
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                Err(error) => say(&format!("a watch is interrupted: {error}")),
            }
        }
    });
    names
}

async fn is_empty<K>(api: &Api<K>) -> bool
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    let one = ListParams::default().limit(1);
    api.list_metadata(&one).await.unwrap().items.is_empty()
}

async fn told(shims: &Api<Shim>, nodes: usize) -> bool {
    let listed = shims.list(&ListParams::default()).await.unwrap();
    listed.iter().all(|shim| {
        let ready = shim.status.as_ref().map(|status| status.nodes_ready);
        ready.and_then(|ready| usize::try_from(ready).ok()) == Some(nodes)
    })
}

/// One of Farrier's Jobs, which the bare ones are made after.
async fn first_job(jobs: &Api<Job>) -> Job {
    let deadline = Instant::now() + patience(0);
    loop {
        let listed = jobs.list(&ListParams::default().limit(1)).await.unwrap();
        if let Some(job) = listed.items.into_iter().next() {
            return job;
        }
        assert!(Instant::now() < deadline, "the controller makes no Job");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn shim(name: &str) -> Shim {
    serde_json::from_value(json!({
        "apiVersion": "runtime.spinkube.dev/v1alpha1",
        "kind": "Shim",
        "metadata": {"name": name},
        "spec": {
            "annotationSelector": {names::KWASM_NODE_ANNOTATION: "true"},
            "fetchStrategy": {"platforms": [{
                "os": "linux",
                "arch": "amd64",
                "location": format!("https://downloads.example.com/releases/v1.2.3/containerd-shim-{name}-v2-linux-x86_64.tar.gz"),
                "sha256": names::sha256_hex(name.as_bytes()),
            }]},
            "runtimeClass": {"name": name, "handler": name},
            "rolloutStrategy": {"type": "recreate"},
        },
    }))
    .unwrap()
}

fn node_name(number: usize) -> String {
    format!("node-{number}.region-1.example.internal")
}

fn node(number: usize) -> Node {
    let name = node_name(number);
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            // What a cloud provider and its kubelet put on a node.
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "standard-4",
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": format!("region-1-{}", number % 3),
                "example.com/node-pool": "default",
            },
            "annotations": {names::KWASM_NODE_ANNOTATION: "true"},
        },
        "spec": {"providerID": format!("example://region-1/{number}")},
    }))
    .unwrap()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

impl Place {
    /// Makes the nodes and waits until kwok has them Ready.
    async fn join_nodes(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let make = |number| {
            let nodes = nodes.clone();
            async move { nodes.create(&PostParams::default(), &node(number)).await }
        };
        futures::stream::iter(0..self.nodes)
            .map(make)
            .buffer_unordered(CONCURRENT_WRITES)
            .try_for_each(async |_| Ok(()))
            .await
            .unwrap();
        let ready = until(self.nodes, Duration::from_secs(2), async || {
            let listed = nodes.list(&ListParams::default()).await.unwrap();
            listed.iter().filter(|node| is_ready(node)).count() == self.nodes
        });
        assert!(ready.await, "kwok does not make the nodes Ready");
    }

    /// Starts the controller as the chart would: with the rights of its ServiceAccount, its arguments and its environment.
    async fn start_controller(&self) -> Controller {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let listed = deployments.list(&ListParams::default()).await.unwrap();
        let pod = listed.items[0].spec.as_ref().unwrap();
        let pod = pod.template.spec.as_ref().unwrap();
        let account = pod.service_account_name.as_deref().unwrap();
        let kubeconfig = self.kubeconfig_of(account).await;
        let container = &pod.containers[0];
        // A port that is free now; nobody else on this machine takes ports by chance.
        let listen = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let log = self.folder.join("controller.log");
        let out = File::create(&log).unwrap();
        let child = Command::new(&self.binary)
            .args(container.args.iter().flatten())
            .env_clear()
            .envs(container.env.iter().flatten().filter_map(variable))
            .env("KUBECONFIG", kubeconfig)
            .env("FARRIER_LISTEN", listen.to_string())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let mut controller = Controller {
            child,
            log,
            user: format!("system:serviceaccount:{NAMESPACE}:{account}"),
        };
        let ready = until(self.nodes, LOOK_EVERY, async || {
            let ended = controller.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the controller ended: see {}",
                controller.log.display()
            );
            is_serving(listen)
        });
        assert!(ready.await, "the controller does not become ready");
        controller
    }

    /// A kubeconfig with a token of the ServiceAccount.
    async fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request: TokenRequest = serde_json::from_value(
            json!({"metadata": {}, "spec": {"audiences": [], "expirationSeconds": 86_400}}),
        )
        .unwrap();
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap();
        let mut kubeconfig: Value =
            serde_json::from_str(&fs::read_to_string(&self.kubeconfig).unwrap()).unwrap();
        kubeconfig["users"][0]["user"] = json!({"token": answer.status.unwrap().token});
        let path = self.folder.with_file_name("controller.kubeconfig");
        fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    /// The time in which as many Jobs of the shape of `template` are made, as the administrator, and end, with nobody to look after them.
    async fn bare_jobs(&self, mut template: Job) -> Option<Duration> {
        template.metadata = kube::core::ObjectMeta {
            annotations: template.metadata.annotations,
            ..Default::default()
        };
        template.status = None;
        let spec = template.spec.as_mut().unwrap();
        spec.selector = None;
        let labels = spec.template.metadata.as_mut().unwrap().labels.as_mut();
        labels.unwrap().retain(|label, _| {
            !label.starts_with("batch.kubernetes.io/")
                && !["controller-uid", "job-name"].contains(&label.as_str())
        });
        // Written before the clock starts: the controller's own time for that is in its CPU time.
        let bodies: Vec<Vec<u8>> = (0..self.nodes)
            .map(|number| {
                template.metadata.name = Some(format!("bare-{number}"));
                let pod = template.spec.as_mut().unwrap().template.spec.as_mut();
                pod.unwrap().node_name = Some(node_name(number));
                serde_json::to_vec(&template).unwrap()
            })
            .collect();
        let request = kube::core::Request::new(Job::url_path(&(), Some(NAMESPACE)));
        let ended = follow::<Job>(
            Api::namespaced(self.client.clone(), NAMESPACE),
            watcher::Config::default().fields("status.successful=1"),
        );
        let began = Instant::now();
        futures::stream::iter(bodies)
            .map(|body| {
                let request = request.create(&PostParams::default(), body).unwrap();
                self.client.request_text(request)
            })
            .buffer_unordered(CONCURRENT_WRITES)
            .try_for_each(async |_| Ok(()))
            .await
            .unwrap();
        let all = || ended.lock().unwrap().len() >= self.nodes;
        let complete = until(self.nodes, LOOK_EVERY, async || all()).await;
        complete.then(|| began.elapsed())
    }
}

/// An environment variable of a container as the kubelet would set it.
fn variable(variable: &EnvVar) -> Option<(String, String)> {
    let field = variable
        .value_from
        .as_ref()
        .and_then(|source| source.field_ref.as_ref());
    let value = match field.map(|field| field.field_path.as_str()) {
        None => variable.value.clone()?,
        Some("metadata.namespace") => NAMESPACE.to_owned(),
        Some("metadata.name") => "bench".to_owned(),
        Some(_) => return None,
    };
    Some((variable.name.clone(), value))
}

fn is_serving(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<bool, std::io::Error>(&answer[..] == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

/// The controller under test; dropping it ends it.
struct Controller {
    child: Child,
    log: PathBuf,
    /// Its name to the API server.
    user: String,
}

/// Where its counters stood.
struct Mark {
    at: Instant,
    cpu: Duration,
    lines: usize,
    audited: u64,
}

/// What it spent since a mark.
struct Spent {
    cpu: Duration,
    lines: usize,
    /// Verb and resource, how often.
    requests: BTreeMap<String, usize>,
}

impl Spent {
    fn writes(&self) -> usize {
        let verbs = [
            "create ",
            "update ",
            "patch ",
            "delete ",
            "deletecollection ",
        ];
        self.sum(|request| verbs.iter().any(|verb| request.starts_with(verb)))
    }

    fn lists_of_nodes(&self) -> usize {
        self.sum(|request| request.starts_with("list nodes"))
    }

    fn sum(&self, wanted: impl Fn(&str) -> bool) -> usize {
        let requests = self.requests.iter();
        requests
            .filter(|(request, _)| wanted(request))
            .map(|(_, count)| count)
            .sum()
    }
}

/// What the audit log tells of a request (`audit.k8s.io/v1`, Event).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Audited {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Answer>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    resource: Option<String>,
    subresource: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    code: u16,
}

impl Controller {
    fn mark(&self, place: &Place) -> Mark {
        Mark {
            at: Instant::now(),
            cpu: self.cpu(),
            lines: self.lines(),
            audited: fs::metadata(&place.audit_log).unwrap().len(),
        }
    }

    fn since(&self, mark: &Mark, place: &Place) -> Spent {
        Spent {
            cpu: self.cpu() - mark.cpu,
            lines: self.lines() - mark.lines,
            requests: self.requests(&place.audit_log, mark.audited),
        }
    }

    /// Fields 14 and 15 of `/proc/PID/stat` (`proc_pid_stat(5)`), all threads; the program's name before them may hold spaces.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        // USER_HZ is 100 on every architecture that Farrier runs on.
        Duration::from_millis(ticks * 10)
    }

    /// The largest resident set so far, in bytes.
    fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }

    fn lines(&self) -> usize {
        fs::read_to_string(&self.log).unwrap().lines().count()
    }

    /// Its requests in the audit log from this offset on.
    fn requests(&self, log: &Path, from: u64) -> BTreeMap<String, usize> {
        let mut file = File::open(log).unwrap();
        file.seek(SeekFrom::Start(from)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let mut requests = BTreeMap::new();
        // The last line may still be in writing.
        for audited in text
            .lines()
            .filter_map(|line| serde_json::from_str::<Audited>(line).ok())
        {
            let counts = match audited.verb.as_str() {
                "watch" => audited.stage == "ResponseStarted",
                _ => audited.stage == "ResponseComplete",
            };
            if counts && audited.user.username == self.user {
                *requests.entry(audited.name()).or_insert(0) += 1;
            }
        }
        requests
    }
}

impl Audited {
    fn name(&self) -> String {
        let object = self.object_ref.as_ref();
        let resource = object
            .and_then(|object| object.resource.as_deref())
            .unwrap_or("other");
        let subresource = object.and_then(|object| object.subresource.as_deref());
        let code = self
            .response_status
            .as_ref()
            .map_or(0, |answer| answer.code);
        format!(
            "{} {resource}{}{}",
            self.verb,
            subresource
                .map(|name| format!("/{name}"))
                .unwrap_or_default(),
            if code >= 400 {
                format!(", answered {code}")
            } else {
                String::new()
            }
        )
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
