//! etcd, the API server and its two companions: their certificates, their command lines, and when they are ready.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::certificates::{Authority, Subject};
use super::kubectl_command;
use super::kwok;
use super::names;
use super::network;
use super::state::State;
use crate::process;

/// How long the API server may take from nothing to ready: 4 s when the machine is idle.
const PATIENCE: Duration = Duration::from_secs(90);

/// etcd's address, in the control plane's own network namespace.
const ETCD: &str = "http://127.0.0.1:2379";

/// Directory of certificates in the cluster's directory.
pub const CERTIFICATES: &str = "certificates";

/// Where clients find the API server.
#[must_use]
pub fn server(state: &State) -> String {
    format!("https://{}:{}", state.control_plane_ip, names::API_PORT)
}

/// Makes all certificates and kubeconfigs of the cluster.
///
/// # Errors
/// When they can't be written.
pub fn certificates(state: &State, directory: &Path) -> Result<()> {
    let authority = Authority::create(&directory.join(CERTIFICATES))?;
    authority.service_account_keys()?;
    let server = server(state);
    authority.issue(
        "api-server",
        &Subject {
            serves: vec![
                state.control_plane_ip.to_string(),
                names::SERVICE_IP.to_string(),
                "kubernetes".to_owned(),
                "kubernetes.default".to_owned(),
                "kubernetes.default.svc".to_owned(),
            ],
            ..user("kube-apiserver", None)
        },
    )?;
    authority.kubeconfig(
        "controller-manager",
        &user("system:kube-controller-manager", None),
        &server,
    )?;
    authority.kubeconfig("scheduler", &user("system:kube-scheduler", None), &server)?;
    let admin = authority.kubeconfig("admin", &user("admin", Some("system:masters")), &server)?;
    fs::copy(&admin, &state.kubeconfig)
        .with_context(|| format!("failed to write {}", state.kubeconfig.display()))?;
    for node in &state.nodes {
        let name = format!("system:node:{}", node.name);
        authority.issue(
            &node.name,
            &Subject {
                serves: vec![node.ip.to_string(), node.name.clone()],
                ..user(&name, Some("system:nodes"))
            },
        )?;
    }
    Ok(())
}

fn user<'a>(user: &'a str, group: Option<&'a str>) -> Subject<'a> {
    Subject {
        user,
        group,
        serves: Vec::new(),
    }
}

/// Starts the control plane in its network namespace and waits until the API server is ready.
///
/// # Errors
/// When a program ends or takes too long; the message ends with the last lines of its log.
pub fn start(state: &State, directory: &Path) -> Result<()> {
    let binaries = &state.binaries;
    let launch = |name: &str, program: &Path, arguments: &[String]| {
        let mut command = network::inside(&state.control_plane_netns, program);
        command.args(arguments).current_dir(directory);
        process::start(&mut command, &log(state, name))
    };
    let played = match &binaries.kwok {
        Some(_) => (
            kwok::api_server(state, directory)?,
            kwok::controller_manager(),
        ),
        None => (Vec::new(), Vec::new()),
    };
    let etcd = launch("etcd", &binaries.etcd, &etcd(directory))?;
    let api_server = launch(
        "kube-apiserver",
        &binaries.kube_apiserver,
        &[api_server(state, directory), played.0].concat(),
    )?;
    await_ready(state, &mut [("etcd", etcd), ("kube-apiserver", api_server)])?;
    launch(
        "kube-controller-manager",
        &binaries.kube_controller_manager,
        &[controller_manager(state, directory), played.1].concat(),
    )?;
    launch(
        "kube-scheduler",
        &binaries.kube_scheduler,
        &scheduler(directory),
    )?;
    if let Some(program) = &binaries.kwok {
        launch("kwok", program, &kwok::arguments(directory))?;
    }
    Ok(())
}

fn log(state: &State, name: &str) -> PathBuf {
    state.logs.join(format!("{name}.log"))
}

fn await_ready(state: &State, children: &mut [(&str, Child)]) -> Result<()> {
    process::wait_until("the API server's start", PATIENCE, || {
        for (name, child) in &mut *children {
            if let Some(status) = child.try_wait()? {
                let text = fs::read_to_string(log(state, name)).unwrap_or_default();
                bail!("{name} ended ({status}):\n{}", process::last_lines(&text));
            }
        }
        let ready = process::output(kubectl_command(state).args([
            "get",
            "--raw",
            "/readyz",
            "--request-timeout=5s",
        ]))?;
        Ok(ready.status.success().then_some(()))
    })
}

fn etcd(directory: &Path) -> Vec<String> {
    let peers = "http://127.0.0.1:2380";
    vec![
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={peers}"),
        // The data lives as long as the cluster: a crash of this machine takes both.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server(state: &State, directory: &Path) -> Vec<String> {
    let certificates = directory.join(CERTIFICATES);
    let file =
        |option: &str, name: &str| format!("--{option}={}", certificates.join(name).display());
    let ip = state.control_plane_ip;
    vec![
        format!("--etcd-servers={ETCD}"),
        format!("--bind-address={ip}"),
        format!("--advertise-address={ip}"),
        format!("--secure-port={}", names::API_PORT),
        format!("--service-cluster-ip-range={}", names::SERVICES),
        file("tls-cert-file", "api-server.crt"),
        file("tls-private-key-file", "api-server.key"),
        file("client-ca-file", "ca.crt"),
        file("kubelet-client-certificate", "api-server.crt"),
        file("kubelet-client-key", "api-server.key"),
        file("kubelet-certificate-authority", "ca.crt"),
        // Nodes' names do not resolve here.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("service-account-key-file", "sa.pub"),
        file("service-account-signing-key-file", "sa.key"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
    ]
}

fn controller_manager(state: &State, directory: &Path) -> Vec<String> {
    let certificates = directory.join(CERTIFICATES);
    let file =
        |option: &str, name: &str| format!("--{option}={}", certificates.join(name).display());
    let mut arguments = vec![
        file("kubeconfig", "controller-manager.kubeconfig"),
        file("service-account-private-key-file", "sa.key"),
        file("root-ca-file", "ca.crt"),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ];
    if let Some(qps) = state.controller_manager_qps {
        arguments.push(format!("--kube-api-qps={qps}"));
        arguments.push(format!("--kube-api-burst={qps}"));
    }
    arguments
}

fn scheduler(directory: &Path) -> Vec<String> {
    let kubeconfig = directory.join(CERTIFICATES).join("scheduler.kubeconfig");
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}
