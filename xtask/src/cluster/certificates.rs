//! The cluster's own certificate authority and what it signs: certificates, keys, kubeconfigs, as files in one directory.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// A certificate authority that keeps its files in a directory.
pub struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Whom a certificate is for, in the terms of Kubernetes' X.509 authentication.
pub struct Subject<'a> {
    /// Name of the user; the files are called after `file`.
    pub user: &'a str,
    /// The user's group.
    pub group: Option<&'a str>,
    /// Addresses and names that it serves at.
    pub serves: Vec<String>,
}

impl Authority {
    /// Makes an authority and writes `ca.crt` into `directory`; its key is kept in memory alone.
    ///
    /// # Errors
    /// When the directory can't be made or the file not be written.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write_private(&directory.join("ca.crt"), &issuer.pem())?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer,
        })
    }

    /// Where the file `name` is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes `<file>.crt` and `<file>.key`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn issue(&self, file: &str, subject: &Subject<'_>) -> Result<()> {
        let mut params = CertificateParams::new(subject.serves.clone())?;
        params
            .distinguished_name
            .push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write_private(&self.path(&format!("{file}.crt")), &certificate.pem())?;
        write_private(&self.path(&format!("{file}.key")), &key.serialize_pem())
    }

    /// Writes the key pair with which service account tokens are signed: `sa.key` and `sa.pub`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn service_account_keys(&self) -> Result<()> {
        let key = KeyPair::generate()?;
        write_private(&self.path("sa.key"), &key.serialize_pem())?;
        write_private(&self.path("sa.pub"), &key.public_key_pem())
    }

    /// Issues a certificate for a client and writes `<file>.kubeconfig` with it.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn kubeconfig(&self, file: &str, subject: &Subject<'_>, server: &str) -> Result<PathBuf> {
        self.issue(file, subject)?;
        let path = self.path(&format!("{file}.kubeconfig"));
        write_private(&path, &kubeconfig(&self.directory, file, server))?;
        Ok(path)
    }
}

/// A kubeconfig that names the files `ca.crt`, `<file>.crt` and `<file>.key` in `directory`. It is JSON, which is YAML too.
#[must_use]
pub fn kubeconfig(directory: &Path, file: &str, server: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "farrier", "cluster": {
            "server": server,
            "certificate-authority": directory.join("ca.crt"),
        }}],
        "users": [{"name": file, "user": {
            "client-certificate": directory.join(format!("{file}.crt")),
            "client-key": directory.join(format!("{file}.key")),
        }}],
        "contexts": [{"name": "farrier", "context": {"cluster": "farrier", "user": file}}],
        "current-context": "farrier",
    });
    format!("{config:#}\n")
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("failed to write {}", path.display()))
}
