//! What the demo and the tests let nodes fetch: the shim as a release would carry it, and archives with one fault each. The table of
//! routes is made here; `server` answers by it from inside the cluster, in a process of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::digest::sha256;
use crate::process;
use crate::progress::Progress;

mod archives;
mod server;

use archives::{Member, tar_gz};
pub use server::serve;

/// Name of the shim's binary: containerd finds `io.containerd.wasmi.v1` under it.
pub const SHIM_BINARY: &str = "containerd-shim-wasmi-v1";

/// Where the release's first URL points, as on a forge that keeps its files elsewhere and signs the way there.
const SIGNED: &str = "signature=f00d&expires=300";

/// What the server has to say within: it only reads a table and three PEM files.
const START: Duration = Duration::from_secs(10);

/// Ports of the server in the control plane's network namespace, which no other program there uses.
const HTTPS_PORT: u16 = 8443;
const STORAGE_PORT: u16 = 8444;
const HTTP_PORT: u16 = 8080;

/// One thing to fetch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// Where a node fetches it.
    pub url: String,
    /// SHA-256 of the whole file; of a faulty one it is right as well, so that the fault itself is met.
    pub sha256: String,
    /// SHA-256 of the shim's binary inside, when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_sha256: Option<String>,
}

/// All that is served, as `artifacts.json` tells it to the end-to-end tests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Artifacts {
    /// Base of the HTTPS URLs, without a slash at its end.
    pub https: String,
    /// Base of the same routes over plain HTTP.
    pub http: String,
    /// PEM file of the authority that signed the server's certificate.
    pub ca: PathBuf,
    /// The shim, behind a redirect.
    pub shim: Artifact,
    /// The same shim as another release: the binary's digest differs, what it does doesn't.
    pub upgrade: Artifact,
    /// By name: what a fetch or an unpack must refuse.
    pub faults: BTreeMap<String, Artifact>,
}

/// How the server answers one path.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    /// The file, whole.
    File(String),
    /// The file, if the query is [`SIGNED`]; 403 otherwise.
    SignedFile(String),
    /// Half of what `Content-Length` promises, then the end of the connection.
    HalfFile(String),
    /// 302 to this URL.
    Redirect(String),
    /// This status, without a body.
    Status(u16),
    /// No answer, as long as the client waits.
    Silence,
}

/// The table that the server works by: a path and its answer.
type Routes = BTreeMap<String, Answer>;

/// Prepares the files in the cluster's directory, starts the server in the control plane's network namespace and waits until it listens.
///
/// Returns the path of `artifacts.json` and what it says. The server ends with the cluster.
///
/// # Errors
/// When a file can't be written or the server doesn't come up.
pub fn start(cluster: &Cluster, shim: &Path, progress: &Progress) -> Result<(PathBuf, Artifacts)> {
    progress.step("serving the shim over HTTPS", || {
        let directory = cluster
            .state_path()
            .parent()
            .context("the cluster's state has no directory")?
            .join("artifacts");
        let address = IpAddr::V4(cluster.state().control_plane_ip);
        let shim = fs::read(shim).with_context(|| format!("failed to read {}", shim.display()))?;
        let artifacts = prepare(&directory, address, &shim)?;
        let json = directory.join("artifacts.json");
        fs::write(&json, serde_json::to_vec_pretty(&artifacts)?)?;

        let mut command = cluster.control_plane_command(&process::own_program());
        command
            .arg("serve-artifacts")
            .arg(&directory)
            .arg(address.to_string());
        process::start(&mut command, &directory.join("server.log"))?;
        process::wait_until("starting the artifact server", START, || {
            Ok(directory.join(server::READY).exists().then_some(()))
        })?;
        Ok((json, artifacts))
    })
}

/// Writes everything that is served, the table and the certificates to `directory`.
fn prepare(directory: &Path, address: IpAddr, shim: &[u8]) -> Result<Artifacts> {
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    certificates(directory, address)?;
    let mut shelf = Shelf {
        directory,
        https: format!("https://{address}:{HTTPS_PORT}"),
        storage: format!("https://{address}:{STORAGE_PORT}"),
        routes: Routes::new(),
    };
    // Bytes behind the last section change the digest and nothing else.
    let upgraded = [shim, b"the next release"].concat();
    let artifacts = Artifacts {
        http: format!("http://{address}:{HTTP_PORT}"),
        ca: directory.join("ca.pem"),
        shim: shelf.release("v0.1.0", shim)?,
        upgrade: shelf.release("v0.2.0", &upgraded)?,
        faults: shelf.faults(shim)?,
        https: shelf.https,
    };
    fs::write(
        directory.join(server::ROUTES),
        serde_json::to_vec_pretty(&shelf.routes)?,
    )?;
    Ok(artifacts)
}

/// Collects files and the routes to them.
struct Shelf<'a> {
    directory: &'a Path,
    https: String,
    storage: String,
    routes: Routes,
}

impl Shelf<'_> {
    /// The shim as one release of it: its URL redirects to a signed one on another origin.
    fn release(&mut self, version: &str, binary: &[u8]) -> Result<Artifact> {
        let archive = tar_gz(&[
            Member::File("README.md", b"A containerd shim on wasmi.\n"),
            Member::Program(SHIM_BINARY, binary),
        ])?;
        let file = format!("wasmi-{version}.tar.gz");
        let path =
            format!("/releases/download/{version}/containerd-shim-wasmi-linux-x86_64.tar.gz");
        let stored = format!("/storage/{file}");
        let signed = format!("{}{stored}?{SIGNED}", self.storage);
        self.routes.insert(stored, Answer::SignedFile(file.clone()));
        let url = self.route(&path, Answer::Redirect(signed));
        Ok(Artifact {
            binary_sha256: Some(sha256(binary)),
            ..self.store(url, &file, &archive)?
        })
    }

    /// One artifact for each way in which a download or an archive goes wrong.
    fn faults(&mut self, shim: &[u8]) -> Result<BTreeMap<String, Artifact>> {
        // What is refused needs no more of the shim than its headers.
        let head = shim.get(..4096).context("the shim is no program")?;
        let whole = Member::Program(SHIM_BINARY, head);
        let archives: [(&str, &[Member]); 6] = [
            (
                "no-binary",
                &[Member::File("README.md", b"Nothing else.\n")],
            ),
            ("climbing", &[whole, Member::File("../../evil", b"evil\n")]),
            ("absolute", &[whole, Member::File("/etc/evil", b"evil\n")]),
            ("symlink", &[Member::Symlink(SHIM_BINARY, "/bin/true")]),
            (
                "text-binary",
                &[Member::Program(SHIM_BINARY, b"not a program\n")],
            ),
            (
                "other-cpu",
                &[Member::Program(
                    SHIM_BINARY,
                    &archives::for_other_cpu(head)?,
                )],
            ),
        ];
        let mut files = vec![(
            "not-an-archive",
            b"<html>Sign in to continue</html>\n".to_vec(),
        )];
        for (name, members) in archives {
            files.push((name, tar_gz(members)?));
        }
        let whole = tar_gz(&[whole])?;
        files.push(("cut-archive", whole[..whole.len() / 2].to_vec()));
        let mut faults = BTreeMap::new();
        for (name, bytes) in files {
            let file = format!("{name}.tar.gz");
            let url = self.route(&fault_path(name), Answer::File(file.clone()));
            faults.insert(name.to_owned(), self.store(url, &file, &bytes)?);
        }
        fs::write(self.directory.join("whole.tar.gz"), &whole)?;
        let itself = format!("{}{}", self.https, fault_path("redirect-loop"));
        let answers = [
            ("not-found", Answer::Status(404)),
            ("server-error", Answer::Status(503)),
            ("half-download", Answer::HalfFile("whole.tar.gz".to_owned())),
            ("redirect-loop", Answer::Redirect(itself)),
            (
                "redirect-to-file",
                Answer::Redirect("file:///etc/passwd".to_owned()),
            ),
            ("silence", Answer::Silence),
        ];
        for (name, answer) in answers {
            let artifact = Artifact {
                url: self.route(&fault_path(name), answer),
                sha256: sha256(&whole),
                binary_sha256: None,
            };
            faults.insert(name.to_owned(), artifact);
        }
        Ok(faults)
    }

    fn route(&mut self, path: &str, answer: Answer) -> String {
        self.routes.insert(path.to_owned(), answer);
        format!("{}{path}", self.https)
    }

    fn store(&self, url: String, file: &str, bytes: &[u8]) -> Result<Artifact> {
        let path = self.directory.join(file);
        fs::write(&path, bytes).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(Artifact {
            url,
            sha256: sha256(bytes),
            binary_sha256: None,
        })
    }
}

fn fault_path(name: &str) -> String {
    format!("/faults/{name}.tar.gz")
}

/// Makes an authority whose key nobody keeps, and a certificate by it for `address`.
fn certificates(directory: &Path, address: IpAddr) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    authority
        .distinguished_name
        .push(DnType::CommonName, "Farrier's demo");
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![address.to_string()])?;
    params
        .distinguished_name
        .push(DnType::CommonName, "artifacts");
    let certificate = params.signed_by(&key, &issuer)?;
    for (name, pem) in [
        ("ca.pem", authority_certificate.pem()),
        (server::CERTIFICATE, certificate.pem()),
        (server::KEY, key.serialize_pem()),
    ] {
        fs::write(directory.join(name), pem).with_context(|| format!("failed to write {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_artifact_has_a_route() {
        let directory = tempfile::tempdir().unwrap();
        let shim = [b"\x7fELF".as_slice(), &[0; 5000]].concat();
        let artifacts = prepare(directory.path(), "127.0.0.1".parse().unwrap(), &shim).unwrap();
        let routes: Routes =
            serde_json::from_slice(&fs::read(directory.path().join(server::ROUTES)).unwrap())
                .unwrap();
        for artifact in artifacts
            .faults
            .values()
            .chain([&artifacts.shim, &artifacts.upgrade])
        {
            let path = artifact.url.strip_prefix(&artifacts.https).unwrap();
            assert!(routes.contains_key(path), "{path}");
        }
        assert_ne!(
            artifacts.shim.binary_sha256,
            artifacts.upgrade.binary_sha256
        );
    }
}
