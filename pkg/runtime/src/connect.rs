//! From a kubeconfig to an API client.
//!
//! It differs from kube's default in TCP keepalive and user timeout (a watch over a cut cable ends in seconds, not in
//! minutes), in names being resolved without the C library (static binary), and in saying a failure once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tower::ServiceBuilder;

use crate::identity::ReadAnew;
use crate::resolve::Resolver;
use crate::servers::{self, AnyServer};

/// A server that says nothing for this long is probed, so that a watch notices a cut cable or a power loss.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;
/// Unacknowledged data for this long means that the connection is dead (TCP_USER_TIMEOUT, RFC 5482).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// No usable client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read.
    #[error("cannot read the kubeconfig {path} (--kubeconfig)")]
    Read {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The kubeconfig does not make a client.
    #[error("the kubeconfig {path} does not lead to an API server")]
    Client {
        /// The kubeconfig.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Makes a client from a kubeconfig file: https with a client certificate or token, or plain http.
///
/// Nothing is sent yet: a server that is away is not an error here.
///
/// # Errors
/// When the file cannot be read or does not describe a client.
pub async fn client(path: &Path) -> Result<kube::Client, ConnectError> {
    let read_error = |source| ConnectError::Read {
        path: path.to_path_buf(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(read_error)?;
    let identity = ReadAnew::of(path, &kubeconfig);
    let servers = servers::of(&kubeconfig);
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(read_error)?;
    from_config(config, identity, servers).map_err(|source| ConnectError::Client {
        path: path.to_path_buf(),
        source: Box::new(source),
    })
}

/// What the server calls the owner of fields that svcnet writes (`metadata.managedFields`).
const USER_AGENT: &str = concat!("svcnet/", env!("CARGO_PKG_VERSION"));

/// kube's own client, but for five things: it says who it is, one server of several is enough, connections notice a silent peer, failures
/// are not logged at each try, and a client certificate that was renewed meanwhile is shown to the server without a restart.
fn from_config(
    config: kube::Config,
    identity: Option<ReadAnew>,
    servers: Vec<Uri>,
) -> Result<kube::Client, kube::Error> {
    let mut tls = config.rustls_client_config()?;
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = Arc::new(identity);
        // A session that goes on would go on with the certificate that it began with.
        tls.resumption = Resumption::disabled();
    }
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = config
        .tls_server_name
        .as_ref()
        .and_then(|n| ServerName::try_from(n.clone()).ok())
    {
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = builder
        .enable_http1()
        .wrap_connector(AnyServer::new(tcp(), servers));
    let client: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .map_request(|mut request: http::Request<Body>| {
            let agent = http::HeaderValue::from_static(USER_AGENT);
            request
                .headers_mut()
                .entry(http::header::USER_AGENT)
                .or_insert(agent);
            request
        })
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(client);
    Ok(kube::Client::new(service, config.default_namespace))
}

fn tcp() -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = client(Path::new("/nonexistent/kubeconfig")).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot read the kubeconfig /nonexistent/kubeconfig (--kubeconfig)"
        );
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_no_error_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                    clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n\
                    contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n";
        std::fs::write(&path, text).unwrap();
        let client = client(&path).await.unwrap();
        assert!(client.apiserver_version().await.is_err());
    }
}
