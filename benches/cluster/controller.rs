//! The controller under test: started as the chart would, with its rights and settings, and what it spends, seen from outside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{EnvVar, ServiceAccount};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{LOOK_EVERY, NAMESPACE, Setup, until};

/// The controller under test; dropping it ends it.
pub struct Controller {
    child: Child,
    log: PathBuf,
    /// Its name to the API server.
    user: String,
}

/// Where its counters stood.
pub struct Mark {
    /// When that was.
    pub at: Instant,
    cpu: Duration,
    lines: usize,
    audited: u64,
}

/// What it spent since a mark.
pub struct Spent {
    /// CPU time of all its threads.
    pub cpu: Duration,
    /// Lines that it logged.
    pub lines: usize,
    /// Requests to the API server: verb and resource, how often.
    pub requests: BTreeMap<String, usize>,
}

impl Spent {
    /// Requests that write, those that were refused included.
    pub fn writes(&self) -> usize {
        let verbs = [
            "create ",
            "update ",
            "patch ",
            "delete ",
            "deletecollection ",
        ];
        self.sum(|request| verbs.iter().any(|verb| request.starts_with(verb)))
    }

    /// Lists of all nodes, a watch that begins with one included.
    pub fn lists_of_nodes(&self) -> usize {
        self.sum(|request| matches!(request, "list nodes" | "watch nodes"))
    }

    fn sum(&self, wanted: impl Fn(&str) -> bool) -> usize {
        let requests = self.requests.iter();
        requests
            .filter(|(request, _)| wanted(request))
            .map(|(_, count)| count)
            .sum()
    }
}

impl Setup {
    /// Starts the controller as the chart would: with the rights of its ServiceAccount, its arguments and its environment.
    pub async fn start_controller(&self) -> Controller {
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
        let log = self.directory.join("controller.log");
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
        let settled = until(self.nodes, LOOK_EVERY, async || {
            controller.settles(self).await
        });
        assert!(settled.await, "the controller comes to no rest");
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
        let path = self.directory.with_file_name("controller.kubeconfig");
        fs::write(&path, kubeconfig.to_string()).unwrap();
        path
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

impl Controller {
    pub fn mark(&self, setup: &Setup) -> Mark {
        Mark {
            at: Instant::now(),
            cpu: self.cpu(),
            lines: self.lines(),
            audited: fs::metadata(&setup.audit_log).unwrap().len(),
        }
    }

    pub fn since(&self, mark: &Mark, setup: &Setup) -> Spent {
        Spent {
            cpu: self.cpu().saturating_sub(mark.cpu),
            lines: self.lines() - mark.lines,
            requests: self.requests(&setup.audit_log, mark.audited),
        }
    }

    /// Whether it knows the nodes and, for a second, does next to nothing: leader or not, it has begun.
    async fn settles(&self, setup: &Setup) -> bool {
        let before = self.cpu();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let known = self.requests(&setup.audit_log, 0);
        self.cpu().saturating_sub(before) < Duration::from_millis(50)
            && (known.contains_key("list nodes") || known.contains_key("watch nodes"))
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
    pub fn peak(&self) -> u64 {
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

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
