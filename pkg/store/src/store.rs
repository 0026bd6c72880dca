//! The store's handle.

use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{Batch, Disk};
use crate::error::{CommitError, OpenError};
use crate::history::History;
use crate::key::{Collection, CollectionSpec, Key};
use crate::keyring::Keyring;
use crate::state::{Entry, ListError, Range, Snapshot, State, Table};
use crate::value::Change;
use crate::watch::Watcher;
use crate::writer::{REVISION_BLOCK, Request, Writer};

/// How many writes may wait for the writer; more make their callers wait.
const QUEUE_MAX: usize = 4096;

/// A store, open. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
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
    names: Vec<String>,
    failed: OnceLock<Arc<str>>,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self, collection: Collection, revision: u64) {
        self.changed[usize::from(collection.0)].send_replace(revision);
    }

    pub(crate) fn set_failed(&self, why: &Arc<str>) {
        _ = self.failed.set(why.clone());
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
        let (mut disk, loaded) = Disk::open(dir, specs, keyring)?;
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
        let shared = Arc::new(Shared {
            state: RwLock::new(State {
                revision,
                tables: tables.collect(),
            }),
            changed: specs.iter().map(|_| watch::Sender::new(revision)).collect(),
            names: specs.iter().map(|s| s.name.clone()).collect(),
            failed: OnceLock::new(),
        });
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
        Ok(Self { shared, requests })
    }

    /// The collection of that name, if the store was opened with it.
    pub fn collection(&self, name: &str) -> Option<Collection> {
        let index = self.shared.names.iter().position(|n| n == name)?;
        u16::try_from(index).ok().map(Collection)
    }

    /// Does a write. When this returns, the change is on disk.
    ///
    /// # Errors
    /// When something has changed meanwhile, or the disk fails.
    pub async fn commit(&self, write: Write) -> Result<Committed, CommitError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Write(Box::new(write), answer);
        self.requests
            .send(request)
            .await
            .map_err(|_| CommitError::Closed)?;
        answered.await.map_err(|_| CommitError::Closed)?
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

    /// Why durable writes are refused, if they are.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failed.get().cloned()
    }

    /// Finishes what is under way and closes the files. Reads still work afterwards.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::Close(answer)).await.is_ok() {
            _ = answered.await;
        }
    }
}
