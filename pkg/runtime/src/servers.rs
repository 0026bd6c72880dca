//! Several API servers behind one client: a connection goes to the one that answered last, and to the next where that one
//! does not.
//!
//! A kubeconfig names one server. The others of the same cluster stand in an extension of it, which other clients skip:
//! ```yaml
//! clusters:
//! - name: svcnet
//!   cluster:
//!     server: https://10.0.0.1:6443
//!     tls-server-name: kubernetes.default.svc
//!     extensions:
//!     - name: svcnet.io/servers
//!       extension: ["https://10.0.0.1:6443", "https://10.0.0.2:6443"]
//! ```
//! All of them show a certificate for the name that is given there.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use kube::config::Kubeconfig;
use tower_service::Service;

use crate::resolve::Resolver;

/// The extension of a cluster in a kubeconfig.
const EXTENSION: &str = "svcnet.io/servers";
/// A name that every server has in its certificate.
pub(crate) const SERVER_NAME: &str = "kubernetes.default.svc";

/// All servers that a kubeconfig names for its current context, if it names several.
pub(crate) fn of(kubeconfig: &Kubeconfig) -> Vec<Uri> {
    let named = || {
        let current = kubeconfig.current_context.as_deref()?;
        let context = kubeconfig.contexts.iter().find(|c| c.name == current)?;
        let name = &context.context.as_ref()?.cluster;
        let cluster = kubeconfig.clusters.iter().find(|c| c.name == *name)?;
        let extensions = cluster.cluster.as_ref()?.extensions.as_ref()?;
        let ours = extensions.iter().find(|e| e.name == EXTENSION)?;
        serde_json::from_value::<Vec<String>>(ours.extension.clone()).ok()
    };
    let parse = |text: &String| text.parse().ok();
    named().unwrap_or_default().iter().filter_map(parse).collect()
}

/// The lines of a cluster in a kubeconfig that name its servers; `text` names one, or several with commas between.
pub fn lines(text: &str) -> String {
    let all: Vec<&str> = split(text).collect();
    match all[..] {
        [first, _, ..] => format!(
            "    server: {first}\n    tls-server-name: {SERVER_NAME}\n    extensions:\n    - name: {EXTENSION}\n      \
             extension: {}\n",
            serde_json::json!(all)
        ),
        _ => format!("    server: {text}\n"),
    }
}

/// The servers of a list with commas.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|server| !server.is_empty())
}

/// Connects to one of several servers, whichever is asked for.
#[derive(Debug, Clone)]
pub(crate) struct AnyServer {
    tcp: HttpConnector<Resolver>,
    servers: Arc<[Uri]>,
    /// The one that answered last.
    current: Arc<AtomicUsize>,
}

impl AnyServer {
    /// Without servers of its own, it connects to what is asked for.
    pub(crate) fn new(tcp: HttpConnector<Resolver>, servers: Vec<Uri>) -> Self {
        Self {
            tcp,
            servers: servers.into(),
            current: Arc::new(AtomicUsize::new(0)),
        }
    }
}

type Connection = <HttpConnector<Resolver> as Service<Uri>>::Response;
type Error = <HttpConnector<Resolver> as Service<Uri>>::Error;

impl Service<Uri> for AnyServer {
    type Response = Connection;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.tcp.poll_ready(context)
    }

    fn call(&mut self, wanted: Uri) -> Self::Future {
        if self.servers.len() < 2 {
            return Box::pin(self.tcp.call(wanted));
        }
        let (mut tcp, servers, current) = (self.tcp.clone(), self.servers.clone(), self.current.clone());
        Box::pin(async move {
            let first = current.load(Ordering::Relaxed);
            let mut tried = 0;
            loop {
                let index = (first + tried) % servers.len();
                match tcp.call(servers[index].clone()).await {
                    Ok(connection) => {
                        if current.swap(index, Ordering::Relaxed) != index {
                            tracing::info!(server = %servers[index], "connected to another API server");
                        }
                        return Ok(connection);
                    }
                    Err(error) if tried + 1 == servers.len() => return Err(error),
                    Err(_) => tried += 1,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn one_server_needs_no_extension_and_several_come_back() {
        assert_eq!(lines("https://a:6443"), "    server: https://a:6443\n");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n{}\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
            lines("https://a:6443, https://b:6443")
        );
        let read = Kubeconfig::from_yaml(&text).unwrap();
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://a:6443"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some(SERVER_NAME));
        let servers: Vec<String> = of(&read).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["https://a:6443/", "https://b:6443/"]);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there: Uri = format!("https://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let away: Uri = "https://127.0.0.1:9".parse().unwrap();
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        let mut any = AnyServer::new(tcp.clone(), vec![away.clone(), there]);
        for _ in 0..2 {
            any.call(away.clone()).await.unwrap();
        }
        assert_eq!(any.current.load(Ordering::Relaxed), 1);
        let mut none = AnyServer::new(tcp, vec![away.clone(), away.clone()]);
        assert!(none.call(away).await.is_err());
    }
}
