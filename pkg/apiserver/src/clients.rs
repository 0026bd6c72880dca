//! The kubeconfigs that the server writes: the administrator's, and those of the roles on its own host. Their certificates
//! are renewed while they are in use; who uses them reads the file anew at each connection.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::pki::{self, ClientName, PkiError, write_kubeconfig};
use crate::server::Server;

/// How often is looked whether a certificate nears its end, at least.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// How long after a failure is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Where they lie, and what they point to.
#[derive(Debug, Clone)]
pub(crate) struct Kubeconfigs {
    pub(crate) admin: PathBuf,
    pub(crate) controller: PathBuf,
    pub(crate) agent: PathBuf,
    /// The server's addresses, with the ports that were really taken.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Kubeconfigs {
    pub(crate) fn port(&self) -> u16 {
        let first = self.addresses.first();
        first.map_or(svcnet_api::wellknown::API_PORT, SocketAddr::port)
    }

    /// Writes those that are missing, near their end, or not as they should be.
    ///
    /// The administrator may be anywhere, and is told the advertised address; the roles of this host use loopback where
    /// it is served, which stays when the host's address changes.
    pub(crate) fn write(&self, server: &Server) -> Result<(), PkiError> {
        let config = &server.config;
        let local = self
            .addresses
            .iter()
            .find(|a| a.ip().is_loopback() || a.ip().is_unspecified());
        let loopback = |a: &SocketAddr| if a.ip().is_ipv4() { "127.0.0.1" } else { "[::1]" };
        let advertised = SocketAddr::new(server.advertised(), self.port());
        let here = local.map_or_else(
            || advertised.to_string(),
            |a| format!("{}:{}", loopback(a), a.port()),
        );
        let node = format!("system:node:{}", config.node_name);
        let advertised = advertised.to_string();
        let files = [
            (
                "admin",
                "svcnet-admin",
                "system:masters",
                &self.admin,
                &advertised,
            ),
            (
                "controller",
                "system:svcnet-controller",
                "system:controller",
                &self.controller,
                &here,
            ),
            ("agent", node.as_str(), "system:nodes", &self.agent, &here),
        ];
        let authority = &server.authority;
        for (file, user, group, path, address) in files {
            let name = ClientName { user, group };
            let after = (user == node).then(|| server.tokens.revoked_until(&config.node_name));
            let (cert, key) = authority.client_pair(file, name, after.flatten())?;
            write_kubeconfig(path, &format!("https://{address}"), authority, (&cert, &key))?;
        }
        Ok(())
    }

    /// Renews what nears its end, also what the server shows to its clients, until the server stops.
    pub(crate) async fn keep(self, server: Arc<Server>) {
        let every = (server.config.certificates_last / 12).clamp(Duration::from_millis(200), LOOK_EVERY_MAX);
        let mut failing = false;
        let mut revocations = server.tokens.changes();
        let mut advertised = server.advertised.subscribe();
        loop {
            let revoked = async {
                match &mut revocations {
                    Some(changes) => _ = changes.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(if failing { every.min(RETRY) } else { every }) => {}
                () = revoked => {}
                Ok(()) = advertised.changed() => {}
                () = server.shutdown.cancelled() => return,
            }
            let done = server
                .serving
                .renew(&server.authority, &pki::sans(&server.config, server.advertised()))
                .and_then(|()| self.write(&server));
            match done {
                Ok(()) => failing = false,
                Err(_) if failing => {}
                Err(error) => {
                    failing = true;
                    tracing::warn!(reason = %error, "certificates cannot be renewed");
                }
            }
        }
    }
}
