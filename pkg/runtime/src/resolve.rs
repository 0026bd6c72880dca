//! Host names of API servers, without the C library: a static binary must not depend on the host's own NSS modules.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::connect::dns::Name;

/// Looks up names as /etc/hosts and /etc/resolv.conf say.
#[derive(Debug, Clone)]
pub(crate) struct Resolver;

type Addresses = vec::IntoIter<SocketAddr>;

impl tower_service::Service<Name> for Resolver {
    type Response = Addresses;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Addresses>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move { lookup(name.as_str()).await })
    }
}

/// All addresses of a host, with port 0. The system's configuration is read at each call: it may have changed, and
/// connections to the API are rare.
///
/// # Errors
/// When the name is not found, or nobody answers for it.
pub async fn lookup(host: &str) -> io::Result<vec::IntoIter<SocketAddr>> {
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(io::Error::other)?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found
        .iter()
        .map(|ip| SocketAddr::new(ip, 0))
        .collect::<Vec<_>>()
        .into_iter())
}
