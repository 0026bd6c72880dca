//! Addresses and ports that several servers give out. On a store of its own a server's allocators are alone, and nothing but
//! the objects is stored. On one that is shared, each number that an object holds is a record beside it, put and deleted in
//! the same transaction: of two servers that pick the same number, one has its transaction refused, and picks another.
//!
//! The allocators in memory follow the records ([`Server::follow_claims`]). They may lag behind; then a try is lost.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use svcnet_api::{Claims, Reservation, registry};
use svcnet_store::{Change, Collection, CommitError, Key, Range, Store, Template, Watcher, Write};

use crate::object;
use crate::server::Server;
use crate::write::Place;

/// What the store keeps them under: no kind of object, so that no verb reaches them.
pub(crate) const COLLECTION: &str = "claims.svcnet.io";

/// What the hooks have been told of the records.
#[derive(Debug)]
pub(crate) struct Ledger {
    collection: Collection,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    watcher: Option<Watcher>,
    /// Paths of the records that they know as taken.
    taken: HashSet<Arc<str>>,
}

impl Ledger {
    pub(crate) fn new(collection: Collection) -> Self {
        Self {
            collection,
            told: Mutex::default(),
        }
    }

    fn key(&self, claim: &str) -> Key {
        Key::new(self.collection, "", claim)
    }
}

fn name(path: &str) -> &str {
    path.trim_start_matches('/')
}

impl Told {
    /// What has changed since the last call: paths, and whether they are taken now.
    fn news(&mut self, store: &Store, collection: Collection) -> Vec<(Arc<str>, bool)> {
        let mut news = Vec::new();
        while let Some(watcher) = &mut self.watcher {
            match watcher.pending() {
                Ok(pending) => {
                    news.extend(pending.events.iter().map(|e| (e.path.clone(), !e.deleted)));
                    if !pending.more {
                        break;
                    }
                }
                Err(_) => self.watcher = None,
            }
        }
        for (path, taken) in &news {
            if *taken {
                self.taken.insert(path.clone());
            } else {
                self.taken.remove(path);
            }
        }
        if self.watcher.is_none() {
            news.extend(self.begin(store, collection));
        }
        news
    }

    /// Everything that differs from what was told.
    fn begin(&mut self, store: &Store, collection: Collection) -> Vec<(Arc<str>, bool)> {
        let Ok(snapshot) = store.list(collection, &Range::default(), None) else {
            return Vec::new();
        };
        self.watcher = store.watch(collection, snapshot.revision).ok();
        let there: HashSet<Arc<str>> = snapshot.entries.into_iter().map(|(path, _)| path).collect();
        let gone = self.taken.difference(&there).map(|path| (path.clone(), false));
        let new = there.difference(&self.taken).map(|path| (path.clone(), true));
        let news = gone.chain(new).collect();
        self.taken = there;
        news
    }
}

impl Server {
    /// Tells the hooks what other servers have taken and given back.
    pub(crate) fn follow_claims(&self) {
        if !self.store.is_shared() {
            return;
        }
        let mut told = self.ledger.told.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, taken) in told.news(&self.store, self.ledger.collection) {
            self.observe(name(&path), taken);
        }
    }

    fn observe(&self, claim: &str, taken: bool) {
        for admission in &self.config.admissions {
            admission.observe(claim, taken);
        }
    }

    /// The records that go with a write.
    pub(crate) fn claim_writes(&self, place: &Place, reservations: &[Box<dyn Reservation>]) -> Vec<Write> {
        if !self.store.is_shared() {
            return Vec::new();
        }
        let mut writes = Vec::new();
        for Claims { taken, freed } in reservations.iter().map(|r| r.claims()) {
            writes.extend(
                taken
                    .iter()
                    .map(|claim| self.take(claim, &place.namespace, &place.name)),
            );
            // A record that is not there, or not this object's, is not its to delete.
            writes.extend(freed.iter().filter_map(|claim| self.free(claim, place)));
        }
        writes
    }

    fn take(&self, claim: &str, namespace: &str, name: &str) -> Write {
        Write {
            key: self.ledger.key(claim),
            change: Change::Put(record(namespace, name)),
            expect: None,
            guards: Vec::new(),
        }
    }

    fn free(&self, claim: &str, place: &Place) -> Option<Write> {
        let key = self.ledger.key(claim);
        let entry = self.store.get(&key)?;
        let record = object::parse(&entry).ok()?;
        let (namespace, name) = (record["namespace"].as_str()?, record["name"].as_str()?);
        (namespace == place.namespace && name == place.name).then(|| Write {
            change: Change::Delete(self::record(namespace, name)),
            expect: Some(entry.revision),
            guards: Vec::new(),
            key,
        })
    }

    /// After a write that was refused, whose reservations are given back: what of it others hold is taken all the same.
    pub(crate) async fn claims_refused(&self, writes: &[Write]) {
        if writes.is_empty() {
            return;
        }
        // Without an answer the next try finds out.
        _ = self.store.sync().await;
        self.follow_claims();
        for write in writes.iter().filter(|w| matches!(w.change, Change::Put(_))) {
            if self.store.get(&write.key).is_some() {
                self.observe(name(write.key.path()), true);
            }
        }
    }

    /// Puts in the records that objects lack which came another way, as from a backup.
    pub(crate) async fn repair_claims(&self) -> Result<(), CommitError> {
        if !self.store.is_shared() || self.config.admissions.is_empty() {
            return Ok(());
        }
        for kind in registry::kinds() {
            let collection = self.collection(kind);
            let Ok(snapshot) = self.store.list(collection, &Range::default(), None) else {
                continue;
            };
            for (path, entry) in snapshot.entries {
                let Ok(object) = object::parse(&entry) else {
                    continue;
                };
                let (namespace, name) = path.split_once('/').unwrap_or(("", &path));
                let claims = self
                    .config
                    .admissions
                    .iter()
                    .flat_map(|a| a.claims(kind, &object));
                for claim in claims {
                    if self.store.get(&self.ledger.key(&claim)).is_some() {
                        continue;
                    }
                    let guards = vec![(Key::new(collection, namespace, name), entry.revision)];
                    let write = Write {
                        guards,
                        ..self.take(&claim, namespace, name)
                    };
                    match self.store.commit(write).await {
                        // Another server is at it, or the object has changed, with its records.
                        Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Guard { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Who holds it.
fn record(namespace: &str, name: &str) -> Template {
    // Names hold nothing that JSON would escape.
    let after = format!(",\"namespace\":\"{namespace}\",\"name\":\"{name}\"}}");
    Template::new(b"{\"revision\":".to_vec(), after.into_bytes())
}
