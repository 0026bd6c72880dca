//! The API server: HTTP over TLS, discovery, reading, watching, writing, patches, who may do what.
//!
//! One request's way: `serve` (TLS) → `handler` (`auth`: who is it; `url`: what is wanted) → `call` (may they) → `read` or
//! `watch` straight from the store's memory, or `decode` → `patch` → `write` (defaults, `managed`: owners of fields, hooks,
//! checks, commit) → `reply`.
//! No verb knows a kind by name: kinds are entries of `svcnet_api::registry`, their few exceptions stand in `traits`.

mod audit;
mod auth;
mod body;
mod bootstrap;
mod call;
mod carry;
mod claims;
mod clients;
mod cluster;
mod collect;
mod config;
mod deadline;
mod decode;
mod default_class;
mod delete;
mod discovery;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handler;
mod limits;
mod list_options;
mod managed;
mod namespace;
mod negotiate;
mod object;
mod options;
mod own;
mod owner_references;
mod patch;
mod patient;
mod peers;
mod pki;
mod protobuf;
mod read;
#[cfg(any(test, fuzzing))]
mod readable;
mod refusal;
mod reply;
mod root;
mod serve;
mod server;
mod table;
mod traits;
mod upload;
mod url;
mod warnings;
mod watch;
mod write;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use audit::{AuditConfig, AuditError};
pub use cluster::ClusterError;
pub use config::{CERTIFICATES_LAST, Config, RenderMetrics};
pub use limits::Limits;
pub use peers::Advertiser;
pub use pki::PkiError;
pub use root::VERSION;
use svcnet_store::{CommitError, Entry, Keyring, KeyringError, Store};
pub use svcnet_store::{Contents, Endpoint, EtcdConfig, OpenError, RestoreError, Restored, is_snapshot};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clients::Kubeconfigs;
use crate::cluster::Cluster;
use crate::pki::{Authority, Serving, Token};
use crate::server::Server;

/// Why the server does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate, key, token or kubeconfig.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The data.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A snapshot.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The key file of what is encrypted.
    #[error(transparent)]
    Keys(#[from] KeyringError),
    /// The keys of a cluster of several servers.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The port.
    #[error("cannot listen on {address}{}", if in_use(.source) { " (another program has that port)" } else { "" })]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Plain HTTP anywhere but on loopback.
    #[error("{0} is no loopback address: plain HTTP is for tests on this host alone")]
    NotLoopback(SocketAddr),
    /// What the servers of a datastore share cannot be written.
    #[error("cannot write to the datastore what its servers share")]
    Claims(#[source] CommitError),
    /// An object in the store does not parse.
    #[error("the stored object {resource} {path} is damaged; restore the data directory from a backup")]
    Object {
        /// Its kind's resource.
        resource: String,
        /// Namespace and name.
        path: String,
    },
}

fn in_use(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// An API server that has its ports and its data, and is ready to run.
#[derive(Debug)]
pub struct ApiServer {
    server: Arc<Server>,
    listeners: Vec<TcpListener>,
    plain: Option<TcpListener>,
    acceptor: Acceptor,
    kubeconfigs: Kubeconfigs,
    plain_address: Option<SocketAddr>,
    token_path: PathBuf,
}

struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Reads all that the store of a data directory holds, as a server would at its start, and looks whether each object is
/// whole.
///
/// # Errors
/// When it is not there, in use, damaged, or encrypted with a key that is not in the directory.
pub fn check_store(data_dir: &Path) -> Result<Contents, Error> {
    let keys = data_dir.join("encryption.key");
    let keyring = keys.exists().then(|| Keyring::open_or_make(&keys)).transpose()?;
    let look = |_: &str, path: &str, entry: &Entry| {
        let object = object::parse(entry).map_err(|e| e.message)?;
        let name = path.split_once('/').map_or(path, |(_, name)| name);
        // Tokens are no objects, and have no name but in their path.
        match object["metadata"]["name"].as_str() {
            Some(found) if found != name => Err(format!("it calls itself {found:?}")),
            _ => Ok(()),
        }
    };
    Ok(svcnet_store::check(
        &data_dir.join("store"),
        &server::collection_specs(),
        keyring,
        look,
    )?)
}

/// Makes the store of a data directory out of a snapshot; see [`svcnet_store::restore`].
///
/// # Errors
/// When the snapshot is none or damaged, when there is a store and `force` is not given, or when the disk fails.
pub fn restore_store(snapshot: &Path, data_dir: &Path, force: bool) -> Result<Restored, RestoreError> {
    svcnet_store::restore(
        snapshot,
        &data_dir.join("store"),
        &server::collection_specs(),
        force,
    )
}

/// Puts the objects of a snapshot into an etcd that no server runs on, in place of what is there when `force` is given; see
/// [`svcnet_store::restore_etcd`]. The data directory has the keys of the snapshot's Secrets.
///
/// # Errors
/// When the snapshot is none or damaged or a key is missing, when etcd holds objects or is in use, or does not answer.
pub async fn restore_datastore(
    snapshot: &Path,
    datastore: &EtcdConfig,
    data_dir: &Path,
    force: bool,
) -> Result<Restored, Error> {
    let keys = data_dir.join("encryption.key");
    let keyring = keys.exists().then(|| Keyring::open_or_make(&keys)).transpose()?;
    let specs = server::collection_specs();
    let restored =
        svcnet_store::restore_etcd(snapshot, datastore, &specs, keyring, force, object::template_of);
    Ok(restored.await?)
}

impl ApiServer {
    /// Binds the ports, opens the store, makes or loads the certificates, tells the hooks what is stored, and puts in what
    /// every cluster has.
    ///
    /// # Errors
    /// A busy port, a data directory that is in use or not ours, a name that cannot stand in a certificate.
    pub async fn start(mut config: Config) -> Result<Self, Error> {
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(listen(*address).await?);
        }
        let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        config.listen.clone_from(&addresses);
        let plain = match config.listen_plain {
            Some(address) if !address.ip().is_loopback() => return Err(Error::NotLoopback(address)),
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let data_dir = config.data_dir.clone();
        let (store, cluster) = open_store(&config).await?;
        let authority = Authority::open(&data_dir.join("pki"), config.certificates_last)?;
        let serving = Serving::open(&authority, &pki::sans(&config, config.advertise_address))?;
        let token_path = data_dir.join("token");
        let token = match &config.token {
            Some(given) => Token::set(&token_path, Token::secret_of(given), &authority)?,
            None => Token::open(&token_path, &authority)?,
        };
        let server = Arc::new(Server::new(config, store, authority, serving, token, cluster)?);
        server.restore_admissions()?;
        server.follow_claims();
        server.tokens.share().await.map_err(Error::Claims)?;
        let acceptor = Acceptor(serve::acceptor(&server)?);
        let kubeconfigs = Kubeconfigs {
            admin: server.config.admin_kubeconfig.clone(),
            controller: data_dir.join("controller/kubeconfig.yaml"),
            agent: data_dir.join("agent/kubeconfig.yaml"),
            addresses,
        };
        kubeconfigs.write(&server)?;
        let started = Self {
            plain_address: plain.as_ref().and_then(|l| l.local_addr().ok()),
            server,
            listeners,
            plain,
            acceptor,
            kubeconfigs,
            token_path,
        };
        started.server.announce(started.kubeconfigs.port());
        started.server.repair_claims().await.map_err(Error::Claims)?;
        // What fails here is said in the log, and tried again while the server runs.
        _ = bootstrap::repair(&started.server, started.kubeconfigs.port()).await;
        Ok(started)
    }

    /// Serves until `shutdown` is cancelled; then ends watches, finishes what is under way, and closes the store.
    ///
    /// # Errors
    /// None at present: what fails while running is logged, and said at `/readyz`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let server = self.server.clone();
        let keeper = tokio::spawn(bootstrap::keep(server.clone(), self.kubeconfigs.port()));
        let renewer = tokio::spawn(self.kubeconfigs.clone().keep(server.clone()));
        let collector = tokio::spawn(collect::run(server.clone()));
        let stop = server.shutdown.clone();
        let stopper = tokio::spawn(async move {
            shutdown.cancelled().await;
            stop.cancel();
        });
        for address in &self.kubeconfigs.addresses {
            tracing::info!(%address, "the API is served");
        }
        serve::serve(server.clone(), self.listeners, self.plain, self.acceptor.0).await;
        for task in [keeper, renewer, collector, stopper] {
            _ = task.await;
        }
        if let Some(audit) = &server.audit {
            audit.flush().await;
        }
        server.store.close().await;
        Ok(())
    }

    /// Where the server is told that others reach it at another address.
    pub fn advertiser(&self) -> Advertiser {
        Advertiser(self.server.advertised.clone())
    }

    /// The addresses that HTTPS is served on, with the ports that were really taken.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.kubeconfigs.addresses
    }

    /// The address that plain HTTP is served on, if it is.
    pub fn plain_address(&self) -> Option<SocketAddr> {
        self.plain_address
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.kubeconfigs.admin
    }

    /// The kubeconfig of the controllers in this process.
    pub fn controller_kubeconfig(&self) -> &Path {
        &self.kubeconfigs.controller
    }

    /// The kubeconfig of the agent on this host.
    pub fn agent_kubeconfig(&self) -> &Path {
        &self.kubeconfigs.agent
    }

    /// The file that holds the join token.
    pub fn token_path(&self) -> &Path {
        &self.token_path
    }
}

/// A store of this server's own, or the one that it shares.
async fn open_store(config: &Config) -> Result<(Store, Option<Cluster>), Error> {
    let (data_dir, specs) = (&config.data_dir, server::collection_specs());
    let keys = data_dir.join("encryption.key");
    let Some(datastore) = &config.datastore else {
        let keyring = Keyring::open_or_make(&keys)?;
        return Ok((
            Store::open_encrypted(&data_dir.join("store"), &specs, keyring)?,
            None,
        ));
    };
    let cluster = Cluster::join(datastore, data_dir, config.token.as_deref()).await?;
    let keyring = Keyring::open_or_make(&keys)?;
    Ok((
        Store::open_etcd(datastore, &specs, Some(keyring)).await?,
        Some(cluster),
    ))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}
