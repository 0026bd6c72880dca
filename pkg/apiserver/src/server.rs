//! What every request works with: the store, the hooks, the keys of the cluster.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex as StdMutex};

use serde_json::Value;
use svcnet_api::{Kind, registry};
use svcnet_store::{Collection, CollectionSpec, Entry, Key, Range, Store};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::auth::{TOKEN_COLLECTION, Tokens};
use crate::claims::{self, Ledger};
use crate::cluster::Cluster;
use crate::limits::InFlight;
use crate::pki::{Authority, Serving, Token};
use crate::{Config, Error, peers, traits};

/// How many locks writers to different objects share.
const LOCKS: usize = 256;

/// The server's state, shared by all connections.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) authority: Authority,
    pub(crate) serving: Arc<Serving>,
    /// Where others reach this server, now.
    pub(crate) advertised: watch::Sender<IpAddr>,
    /// What takes back that it is there (see [`crate::peers`]).
    pub(crate) announced: StdMutex<Option<CancellationToken>>,
    pub(crate) tokens: Tokens,
    pub(crate) in_flight: InFlight,
    pub(crate) audit: Option<Audit>,
    pub(crate) ledger: Ledger,
    /// Cancelled when the server stops: ends watches.
    pub(crate) shutdown: CancellationToken,
    collections: HashMap<(&'static str, &'static str), Collection>,
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// What the store is opened with.
pub(crate) fn collection_specs() -> Vec<CollectionSpec> {
    let spec = |kind: &Kind| CollectionSpec {
        name: kind.resource(),
        volatile: kind.volatile,
        encrypted: traits::of(kind).encrypted,
    };
    // What only servers of a shared datastore write is never on a disk of ours, nor in a snapshot.
    let own = [
        (TOKEN_COLLECTION, false),
        (claims::COLLECTION, true),
        (peers::COLLECTION, true),
    ];
    let own = own.map(|(name, volatile)| CollectionSpec {
        name: name.to_string(),
        volatile,
        encrypted: false,
    });
    registry::kinds().iter().map(spec).chain(own).collect()
}

impl Server {
    pub(crate) fn new(
        config: Config,
        store: Store,
        authority: Authority,
        serving: Serving,
        token: Token,
        cluster: Option<Cluster>,
    ) -> Result<Self, Error> {
        let audit = config.audit.clone().map(Audit::open).transpose()?;
        let kinds = registry::kinds().iter();
        let collections = kinds.filter_map(|k| Some(((k.group, k.plural), store.collection(&k.resource())?)));
        let collections = collections.collect();
        #[expect(clippy::expect_used, reason = "the store was opened with it")]
        let own = |name| {
            store
                .collection(name)
                .expect("invariant: a collection of our own")
        };
        let (held, claimed) = (own(TOKEN_COLLECTION), own(claims::COLLECTION));
        Ok(Self {
            tokens: Tokens::new(store.clone(), held, token, cluster),
            ledger: Ledger::new(claimed),
            in_flight: InFlight::new(config.limits),
            audit,
            advertised: watch::Sender::new(config.advertise_address),
            announced: StdMutex::default(),
            config,
            store,
            authority,
            serving: Arc::new(serving),
            shutdown: CancellationToken::new(),
            collections,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
        })
    }

    /// Tells the hooks what is stored.
    pub(crate) fn restore_admissions(&self) -> Result<(), Error> {
        // What holds for all namespaces first: ranges, before what was drawn from them.
        let (shared, within): (Vec<&'static Kind>, Vec<_>) =
            registry::kinds().iter().partition(|k| !k.namespaced);
        for kind in shared.into_iter().chain(within) {
            let snapshot = self.store.list(self.collection(kind), &Range::default(), None);
            for (path, entry) in snapshot.map(|s| s.entries).unwrap_or_default() {
                let object: Value = serde_json::from_slice(&entry.value).map_err(|_| Error::Object {
                    resource: kind.resource(),
                    path: path.to_string(),
                })?;
                for admission in &self.config.admissions {
                    admission.restore(kind, &object);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn collection(&self, kind: &Kind) -> Collection {
        // The store was opened with one for each kind of the table.
        self.collections[&(kind.group, kind.plural)]
    }

    pub(crate) fn key(&self, kind: &Kind, namespace: &str, name: &str) -> Key {
        Key::new(self.collection(kind), namespace, name)
    }

    pub(crate) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Entry> {
        self.store.get(&self.key(kind, namespace, name))
    }

    /// Keeps other writers away from an object, from reading it until the hooks know what has become of it. The store's
    /// compare-and-swap would keep the data right without this, but not what the hooks hold.
    pub(crate) async fn lock(&self, key: &Key) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % LOCKS as u64).unwrap_or_default();
        self.locks[index].lock().await
    }
}
