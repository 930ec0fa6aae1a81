//! The controller's view of the cluster: watches, and objects of the API server reduced to what decisions need. Reads only.

use std::borrow::Cow;
use std::fmt::Debug;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::api::{Api, ListParams};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use crate::dns::Resolver;

pub mod ending_pods;
pub mod job_events;
pub mod job_view;
pub mod node_view;
pub mod pods;
pub mod shim_view;
pub mod slim;
pub mod triggers;
pub mod watch;

/// Why the cluster can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a kubeconfig nor a ServiceAccount names a cluster.
    #[error("failed to connect to a cluster: {source}")]
    NoCluster {
        /// The error of kube.
        #[source]
        source: kube::Error,
    },
    /// The API server rejected a request, or did not answer.
    #[error("failed to list {what}: {source}")]
    List {
        /// The kind of objects.
        what: String,
        /// The error of kube.
        #[source]
        source: kube::Error,
    },
}

impl Error {
    /// How an operator corrects the cause.
    #[must_use]
    pub fn help(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoCluster { .. } => {
                Some("set KUBECONFIG, or run in a pod with a ServiceAccount".into())
            }
            Self::List { .. } => None,
        }
    }
}

/// A client for the cluster that the kubeconfig or the pod's ServiceAccount names.
///
/// # Errors
/// When neither names one.
pub async fn client() -> Result<Client, Error> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig);
    // kube then reports that this build has no support for proxies.
    let connect = |config: Config| match config.proxy_url {
        Some(_) => Client::try_from(config),
        None => connect(&config),
    };
    let client = config.and_then(connect);
    client.map_err(|source| Error::NoCluster { source })
}

/// As `Client::try_from`, except that [`Resolver`] resolves the host name of the API server.
fn connect(config: &Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver::default());
    tcp.enforce_http(false);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let retries = config.default_retry.then(RetryPolicy::server_retry);
    let http = legacy::Client::builder(TokioExecutor::new());
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retries.map(RetryLayer::new))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// All objects of a kind.
///
/// # Errors
/// When the API server rejects the request, or does not answer.
pub async fn list<K>(client: &Client) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let objects: Api<K> = Api::all(client.clone());
    let listed = objects.list(&ListParams::default()).await;
    let listed = listed.map_err(|source| Error::List {
        what: K::plural(&()).into_owned(),
        source,
    })?;
    Ok(listed.items)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_client_resolves_the_host_name_of_the_api_server() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let mut config = Config::new(format!("http://localhost:{port}/base").parse().unwrap());
        config.auth_info.token = Some("secret".to_owned().into());
        let client = connect(&config).unwrap();
        let answer = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let body = r#"{"versions":[],"serverAddressByClientCIDRs":[]}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream
                .write_all(format!("{head}{body}").as_bytes())
                .await
                .unwrap();
            String::from_utf8_lossy(&request[..length]).to_ascii_lowercase()
        };
        let (request, versions) = tokio::join!(answer, client.list_core_api_versions());
        assert!(versions.unwrap().versions.is_empty());
        assert!(request.starts_with("get /base/api http/1.1"), "{request}");
        for header in [
            format!("host: localhost:{port}\r\n"),
            "authorization: bearer secret\r\n".to_owned(),
        ] {
            assert!(request.contains(&header), "{request}");
        }
    }
}
