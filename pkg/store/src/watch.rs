//! Following the changes of a collection.

use std::sync::Arc;

use tokio::sync::watch;

use crate::history::{Compacted, Event};
use crate::key::Collection;
use crate::store::Shared;

/// How many changes are taken at a time, so that a long backlog does not hold up writers.
const TAKE_MAX: usize = 512;

/// A position in the history of a collection.
#[derive(Debug)]
pub struct Watcher {
    pub(crate) shared: Arc<Shared>,
    pub(crate) collection: Collection,
    pub(crate) position: u64,
    pub(crate) changed: watch::Receiver<u64>,
}

/// Changes that a watcher had not seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// The changes, oldest first.
    pub events: Vec<Arc<Event>>,
    /// Everything up to this revision has now been seen.
    pub revision: u64,
    /// Whether there are more at once.
    pub more: bool,
}

/// Why a watch does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// It has fallen behind what is remembered.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl Watcher {
    /// Everything up to this revision has been taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What has happened since the last call, without waiting.
    ///
    /// # Errors
    /// When the position is no longer remembered.
    pub fn pending(&mut self) -> Result<Pending, Compacted> {
        self.changed.borrow_and_update();
        let state = self.shared.read();
        let mut events = state
            .table(self.collection)
            .history
            .after(self.position)?
            .peekable();
        let mut taken: Vec<_> = events.by_ref().take(TAKE_MAX).cloned().collect();
        let last = taken.last().map_or(self.position, |e| e.revision);
        // The position is a revision: what has the same one goes along.
        while let Some(event) = events.next_if(|e| e.revision == last) {
            taken.push(event.clone());
        }
        let more = events.peek().is_some();
        self.position = if more {
            last
        } else {
            state.revision.max(self.position)
        };
        Ok(Pending {
            events: taken,
            revision: self.position,
            more,
        })
    }

    /// Waits until there is something to take.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        self.changed.changed().await.map_err(|_| WatchError::Closed)
    }

    /// Waits for changes and takes them.
    ///
    /// # Errors
    /// When the position is no longer remembered, or the store is closed.
    pub async fn next(&mut self) -> Result<Pending, WatchError> {
        loop {
            let pending = self.pending()?;
            if !pending.events.is_empty() {
                return Ok(pending);
            }
            self.changed().await?;
        }
    }
}
