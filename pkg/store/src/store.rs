//! The store's handle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::disk::{Batch, Disk};
use crate::error::{CommitError, OpenError, SyncError};
use crate::etcd::{Etcd, EtcdConfig};
use crate::history::{Event, History};
use crate::key::{Collection, CollectionSpec, Key};
use crate::keyring::Keyring;
use crate::snapshot::{self, Contents};
use crate::state::{Entry, ListError, Range, Snapshot, State, Table};
use crate::value::{Change, Template};
use crate::watch::Watcher;
use crate::writer::{REVISION_BLOCK, Request, Writer};

/// How many writes may wait for the writer; more make their callers wait.
const QUEUE_MAX: usize = 4096;

/// A store, open. Clones are handles to the same one.
///
/// What can be read is in memory whatever lies behind: sled in a directory, for one server, or an etcd for several.
/// `tests/contract.rs` holds both to the same.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    backend: Backend,
}

/// Where writes go.
#[derive(Debug, Clone)]
enum Backend {
    Sled(mpsc::Sender<Request>),
    Etcd(Arc<Etcd>),
}

/// One change that is to happen if nothing has changed meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Of which object.
    pub key: Key,
    /// What is to happen.
    pub change: Change,
    /// The revision that the object must have; nothing if it must not be there.
    pub expect: Option<u64>,
    /// Other objects that must have these revisions.
    pub guards: Vec<(Key, u64)>,
}

impl Write {
    pub(crate) fn len(&self) -> usize {
        match &self.change {
            Change::Put(template) | Change::Delete(template) => template.len(),
        }
    }
}

/// A change that has happened, and will be there after any crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its revision.
    pub revision: u64,
    /// The object now, or its last state; carries the revision.
    pub value: Bytes,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    changed: Vec<watch::Sender<u64>>,
    /// The revision of `state`.
    revision: watch::Sender<u64>,
    specs: Vec<CollectionSpec>,
    keyring: Option<Arc<Keyring>>,
    failed: OnceLock<Arc<str>>,
    /// Why there is no room on the disk for durable writes, while there is none.
    short: RwLock<Option<Arc<str>>>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn new(
        revision: u64,
        tables: Vec<Table>,
        specs: &[CollectionSpec],
        keyring: Option<Arc<Keyring>>,
    ) -> Self {
        Self {
            state: RwLock::new(State { revision, tables }),
            changed: specs.iter().map(|_| watch::Sender::new(revision)).collect(),
            revision: watch::Sender::new(revision),
            specs: specs.to_vec(),
            keyring,
            failed: OnceLock::new(),
            short: RwLock::default(),
        }
    }

    /// Takes changes in, all at once, and tells those who follow. `revision` is that of the last change, or a later one.
    pub(crate) fn apply(&self, changes: Vec<(Collection, Event)>, revision: u64) {
        let mut touched = BTreeSet::new();
        let revision = {
            let mut state = self.write();
            for (collection, event) in changes {
                state.apply(collection, event);
                touched.insert(collection);
            }
            state.revision = state.revision.max(revision);
            state.revision
        };
        for collection in touched {
            self.changed[usize::from(collection.0)].send_replace(revision);
        }
        self.revision.send_replace(revision);
    }

    /// Puts other objects in the place of all, without a history: who follows is told that it is compacted.
    pub(crate) fn replace(&self, revision: u64, entries: Vec<BTreeMap<Arc<str>, Entry>>) {
        {
            let mut state = self.write();
            state.revision = revision;
            state.tables = tables(revision, entries);
        }
        for changed in &self.changed {
            changed.send_replace(revision);
        }
        self.revision.send_replace(revision);
    }

    /// Waits until memory holds what had this revision.
    pub(crate) async fn reached(&self, revision: u64) {
        // The sender is in `self`.
        _ = self.revision.subscribe().wait_for(|now| *now >= revision).await;
    }

    pub(crate) fn set_failed(&self, why: &Arc<str>) {
        _ = self.failed.set(why.clone());
    }

    /// Notes why there is no room on the disk, or that there is. Whether that is news.
    pub(crate) fn set_short(&self, why: Option<&Arc<str>>) -> bool {
        let mut short = self.short.write().unwrap_or_else(PoisonError::into_inner);
        let news = short.is_some() != why.is_some();
        *short = why.cloned();
        news
    }

    pub(crate) fn is_short(&self) -> bool {
        self.short
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}

impl Store {
    /// Opens the store in a directory, or makes one, with these collections. Objects of others stay on disk untouched.
    ///
    /// # Errors
    /// When the directory is in use, is not a store, or is damaged.
    pub fn open(dir: &Path, specs: &[CollectionSpec]) -> Result<Self, OpenError> {
        Self::open_with(dir, specs, None)
    }

    /// The same, with keys for the collections that are encrypted. What is not encrypted with the first key yet is
    /// encrypted anew. A key file that was only just made, for data that needs another, is taken away again.
    ///
    /// # Errors
    /// As for [`Store::open`], and when a key is missing.
    pub fn open_encrypted(dir: &Path, specs: &[CollectionSpec], keyring: Keyring) -> Result<Self, OpenError> {
        let new = keyring.is_new().then(|| keyring.path().to_path_buf());
        let opened = Self::open_with(dir, specs, Some(keyring));
        if let (Err(OpenError::Key { .. }), Some(path)) = (&opened, new) {
            _ = std::fs::remove_file(path);
        }
        opened
    }

    fn open_with(dir: &Path, specs: &[CollectionSpec], keyring: Option<Keyring>) -> Result<Self, OpenError> {
        let keyring = keyring.map(Arc::new);
        let (mut disk, loaded) = Disk::open(dir, specs, keyring.clone())?;
        let revision = loaded.limit.max(1);
        let limit = revision + REVISION_BLOCK;
        let mut batch = Batch::new();
        batch.limit(limit);
        let failed = |why| OpenError::Io {
            path: dir.to_path_buf(),
            source: std::io::Error::other(why),
        };
        for (index, path) in &loaded.stale {
            let entry = &loaded.entries[*index][path];
            let bytes = disk.payload(&specs[*index], path, entry).map_err(failed)?;
            batch.put(&specs[*index].name, path, entry.revision, &bytes, false);
        }
        if !loaded.stale.is_empty() {
            tracing::info!(
                objects = loaded.stale.len(),
                "encrypted on the disk with the first key"
            );
        }
        disk.write(batch).map_err(failed)?;
        disk.seal(dir)?;
        let tables = loaded.entries.into_iter().zip(loaded.last).zip(specs);
        let tables = tables.map(|((entries, last), spec)| Table {
            entries,
            history: History::new(if spec.volatile { revision } else { last }),
        });
        let shared = Arc::new(Shared::new(revision, tables.collect(), specs, keyring));
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            shared: shared.clone(),
            disk,
            specs: specs.to_vec(),
            revision,
            limit,
            failed: None,
        };
        std::thread::Builder::new()
            .name("store-writer".to_string())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Io {
                path: dir.to_path_buf(),
                source,
            })?;
        let backend = Backend::Sled(requests);
        Ok(Self { shared, backend })
    }

    /// The collection of that name, if the store was opened with it.
    pub fn collection(&self, name: &str) -> Option<Collection> {
        let index = self.shared.specs.iter().position(|s| s.name == name)?;
        u16::try_from(index).ok().map(Collection)
    }

    /// Takes in what an etcd holds, with these collections; volatile ones are written there too, since servers share them.
    ///
    /// # Errors
    /// When etcd cannot be reached, or holds what cannot be read.
    pub async fn open_etcd(
        config: &EtcdConfig,
        specs: &[CollectionSpec],
        keyring: Option<Keyring>,
    ) -> Result<Self, OpenError> {
        let (mut memory, keyring) = (None, keyring.map(Arc::new));
        let etcd = Etcd::open(config, specs, keyring.clone(), |listed| {
            let tables = tables(listed.revision, listed.entries);
            let shared = Arc::new(Shared::new(listed.revision, tables, specs, keyring));
            memory.insert(shared).clone()
        });
        let backend = Backend::Etcd(Arc::new(etcd.await?));
        #[expect(clippy::expect_used, reason = "an etcd that is open has asked for it")]
        let shared = memory.expect("invariant: memory of an open etcd");
        Ok(Self { shared, backend })
    }

    /// Whether other servers may write to what this one does.
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Etcd(_))
    }

    /// Does a write. When this returns, the change is on disk, and readers see it.
    ///
    /// # Errors
    /// When something has changed meanwhile, or the disk fails.
    pub async fn commit(&self, write: Write) -> Result<Committed, CommitError> {
        let committed = self.commit_all(vec![write]).await?;
        committed.into_iter().next().ok_or(CommitError::Closed)
    }

    /// Does writes to different objects, all at one revision, or none of them. What keeps the first one from being done is
    /// told as a conflict, what keeps the others as a guard.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn commit_all(&self, writes: Vec<Write>) -> Result<Vec<Committed>, CommitError> {
        let requests = match &self.backend {
            Backend::Sled(requests) => requests,
            Backend::Etcd(etcd) => return etcd.commit(writes).await,
        };
        let (answer, answered) = oneshot::channel();
        requests
            .send(Request::Write(writes, answer))
            .await
            .map_err(|_| CommitError::Closed)?;
        answered.await.map_err(|_| CommitError::Closed)?
    }

    /// Waits until reads show everything that was acknowledged before this call, by whichever server. The revision up to
    /// which they do.
    ///
    /// # Errors
    /// When the datastore does not answer. Reads then show what was last known.
    pub async fn sync(&self) -> Result<u64, SyncError> {
        match &self.backend {
            Backend::Sled(_) => Ok(self.revision()),
            Backend::Etcd(etcd) => etcd.sync().await,
        }
    }

    /// Keeps an object there, whatever was there before, for as long as this server lives and a few seconds longer; for
    /// stores that are shared. It goes before that when the token is cancelled.
    pub fn present(&self, key: &Key, value: &Template) -> Option<CancellationToken> {
        match &self.backend {
            Backend::Etcd(etcd) => Some(etcd.present(key, value)),
            Backend::Sled(_) => None,
        }
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.shared.read().get(key).cloned()
    }

    /// The revision of the last change of all.
    pub fn revision(&self) -> u64 {
        self.shared.read().revision
    }

    /// Objects of a collection: now, or as they were at a revision.
    ///
    /// # Errors
    /// When that revision is forgotten, or has not been.
    pub fn list(
        &self,
        collection: Collection,
        range: &Range,
        at: Option<u64>,
    ) -> Result<Snapshot, ListError> {
        self.shared.read().list(collection, range, at)
    }

    /// Follows a collection: every change after the revision.
    ///
    /// # Errors
    /// When that revision is forgotten, or has not been (another store's).
    pub fn watch(&self, collection: Collection, after: u64) -> Result<Watcher, ListError> {
        let changed = self.shared.changed[usize::from(collection.0)].subscribe();
        let state = self.shared.read();
        let current = state.revision;
        if after > current {
            return Err(ListError::Future {
                asked: after,
                current,
            });
        }
        let history = &state.table(collection).history;
        history.remembers(after).map_err(ListError::Compacted)?;
        drop(state);
        Ok(Watcher {
            shared: self.shared.clone(),
            collection,
            position: after,
            changed,
        })
    }

    /// Forgets the history of all collections up to a revision.
    pub fn compact(&self, revision: u64) {
        let mut state = self.shared.write();
        let floor = revision.min(state.revision);
        for table in &mut state.tables {
            table.history.compact(floor);
        }
    }

    /// All durable objects at one revision, as the pieces of a file that [`restore`](crate::restore) takes.
    ///
    /// # Errors
    /// When an object cannot be encrypted.
    pub fn snapshot(&self) -> Result<Vec<Bytes>, String> {
        snapshot::write(
            &self.shared.read(),
            &self.shared.specs,
            self.shared.keyring.as_deref(),
        )
    }

    /// What it holds.
    pub fn contents(&self) -> Contents {
        snapshot::contents(&self.shared.read(), &self.shared.specs)
    }

    /// Why durable writes are refused, if they are.
    pub fn failure(&self) -> Option<Arc<str>> {
        let short = || {
            self.shared
                .short
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        self.shared.failed.get().cloned().or_else(short)
    }

    /// Finishes what is under way and closes the files. Reads still work afterwards.
    pub async fn close(&self) {
        let requests = match &self.backend {
            Backend::Sled(requests) => requests,
            Backend::Etcd(etcd) => return etcd.close().await,
        };
        let (answer, answered) = oneshot::channel();
        if requests.send(Request::Close(answer)).await.is_ok() {
            _ = answered.await;
        }
    }
}

fn tables(revision: u64, entries: Vec<BTreeMap<Arc<str>, Entry>>) -> Vec<Table> {
    let table = |entries| Table {
        entries,
        history: History::new(revision),
    };
    entries.into_iter().map(table).collect()
}
