//! The one thread that changes anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Batch, Disk};
use crate::error::CommitError;
use crate::history::Event;
use crate::key::{Collection, CollectionSpec, Key};
use crate::state::Entry;
use crate::store::{Committed, Shared, Write};
use crate::value::Change;

/// How many writes share one flush at most, and how many bytes.
const ROUND_MAX: usize = 1024;
const ROUND_BYTES_MAX: usize = 16 << 20;
/// How many revisions are reserved at a time. At 100 heartbeats a second, a block lasts nearly three hours.
pub(crate) const REVISION_BLOCK: u64 = 1_000_000;

pub(crate) type Answer = oneshot::Sender<Result<Vec<Committed>, CommitError>>;

#[derive(Debug)]
pub(crate) enum Request {
    Write(Vec<Write>, Answer),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) disk: Disk,
    pub(crate) specs: Vec<CollectionSpec>,
    /// The last revision given out.
    pub(crate) revision: u64,
    /// The last revision that may be given out; it is on disk.
    pub(crate) limit: u64,
    /// Why the disk takes no more.
    pub(crate) failed: Option<Arc<str>>,
}

/// A write that has passed its checks, as it will be.
struct Prepared {
    key: Key,
    entry: Entry,
    deleted: bool,
    previous: Option<Entry>,
    /// What the disk is given of it.
    payload: Bytes,
}

/// A transaction that goes to the disk.
type Accepted = (Vec<(Collection, Event)>, Answer);

/// The writes of one round that have passed their checks.
struct Round {
    batch: Batch,
    /// What its writes come to.
    bytes: usize,
    /// What the round has made of an object so far.
    now: HashMap<Key, Option<Entry>>,
    accepted: Vec<Accepted>,
}

impl Writer {
    pub(crate) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = requests.blocking_recv() else {
                break;
            };
            let mut round = Round {
                batch: Batch::new(),
                bytes: 0,
                now: HashMap::new(),
                accepted: Vec::new(),
            };
            let mut next = Some(first);
            while let Some(request) = next {
                if self.shared.is_short() {
                    // Heartbeats come at any time, so that readiness does not wait for a change.
                    _ = self.look_for_room(0);
                }
                match request {
                    Request::Write(writes, answer) => {
                        round.bytes += writes.iter().map(Write::len).sum::<usize>();
                        self.take(writes, answer, &mut round);
                    }
                    Request::Close(answer) => closing = Some(answer),
                }
                let full = round.accepted.len() >= ROUND_MAX || round.bytes >= ROUND_BYTES_MAX;
                next = if full || closing.is_some() {
                    None
                } else {
                    requests.try_recv().ok()
                };
            }
            self.finish(round);
        }
        // Files are closed and the lock is free before anyone is told so.
        drop(self);
        if let Some(answer) = closing {
            _ = answer.send(());
        }
    }

    fn take(&mut self, writes: Vec<Write>, answer: Answer, round: &mut Round) {
        let previous: Result<Vec<_>, _> = (0..writes.len())
            .map(|at| self.check(&writes, at, round))
            .collect();
        let accepted = previous.and_then(|previous| self.prepare(writes, previous));
        match accepted {
            Err(error) => {
                _ = answer.send(Err(error));
            }
            Ok(prepared) => self.accept(prepared, answer, round),
        }
    }

    /// What is there now, if the writer was right about it.
    fn check(&self, writes: &[Write], at: usize, round: &Round) -> Result<Option<Entry>, CommitError> {
        let write = &writes[at];
        if let Some(why) = &self.failed
            && !self.spec(write.key.collection).volatile
        {
            return Err(CommitError::Disk(why.clone()));
        }
        if !self.spec(write.key.collection).volatile {
            self.look_for_room(round.bytes)?;
        }
        let state = self.shared.read();
        let current = |key: &Key| match round.now.get(key) {
            Some(changed) => changed.clone(),
            None => state.get(key).cloned(),
        };
        for (key, revision) in &write.guards {
            if current(key).map(|e| e.revision) != Some(*revision) {
                let path = key.path().clone();
                return Err(CommitError::Guard { path });
            }
        }
        let entry = current(&write.key);
        let revision = entry.as_ref().map(|e| e.revision);
        match (revision == write.expect, at) {
            (true, _) => Ok(entry),
            (false, 0) => Err(CommitError::Conflict { current: revision }),
            (false, _) => Err(CommitError::Guard {
                path: write.key.path().clone(),
            }),
        }
    }

    /// Refuses what the disk has no room for, and says so once. It goes on by itself when there is some.
    fn look_for_room(&self, bytes: usize) -> Result<(), CommitError> {
        match self.disk.room(bytes) {
            Ok(()) => {
                if self.shared.set_short(None) {
                    tracing::info!("there is room on the disk again: the store takes changes");
                }
                Ok(())
            }
            Err(why) => {
                let why: Arc<str> = why.into();
                if self.shared.set_short(Some(&why)) {
                    tracing::error!(reason = %why, "the store takes no changes until there is room; reads go on");
                }
                Err(CommitError::Disk(why))
            }
        }
    }

    /// Everything that can fail before the disk does.
    fn prepare(
        &self,
        writes: Vec<Write>,
        previous: Vec<Option<Entry>>,
    ) -> Result<Vec<Prepared>, CommitError> {
        let revision = self.revision + 1;
        let prepare = |(write, previous): (Write, _)| {
            let (value, deleted) = match write.change {
                Change::Put(template) => (template.fill(revision), false),
                Change::Delete(template) => (template.fill(revision), true),
            };
            let entry = Entry { revision, value };
            let spec = self.spec(write.key.collection);
            let payload = if spec.volatile || deleted {
                Bytes::new()
            } else {
                let payload = self.disk.payload(spec, write.key.path(), &entry);
                payload.map_err(|why| CommitError::Disk(why.into()))?
            };
            Ok(Prepared {
                key: write.key,
                entry,
                deleted,
                previous,
                payload,
            })
        };
        writes.into_iter().zip(previous).map(prepare).collect()
    }

    fn accept(&mut self, prepared: Vec<Prepared>, answer: Answer, round: &mut Round) {
        if self.revision == self.limit {
            self.limit += REVISION_BLOCK;
            round.batch.limit(self.limit);
        }
        self.revision += 1;
        let mut changes = Vec::with_capacity(prepared.len());
        for Prepared {
            key,
            entry,
            deleted,
            previous,
            payload,
        } in prepared
        {
            let spec = &self.specs[usize::from(key.collection.0)];
            if !spec.volatile && deleted {
                round.batch.delete(&spec.name, key.path(), entry.revision);
            } else if !spec.volatile {
                let is_new = previous.is_none();
                round
                    .batch
                    .put(&spec.name, key.path(), entry.revision, &payload, is_new);
            }
            let event = Event {
                revision: entry.revision,
                path: key.path().clone(),
                value: entry.value.clone(),
                deleted,
                previous,
            };
            changes.push((key.collection, event));
            round.now.insert(key, (!deleted).then_some(entry));
        }
        round.accepted.push((changes, answer));
    }

    fn finish(&mut self, round: Round) {
        if round.accepted.is_empty() {
            return;
        }
        if !round.batch.is_empty()
            && let Err(why) = self.write(round.batch, round.accepted.len())
        {
            tracing::error!(reason = %why, "the store cannot write and takes no more changes; reads go on");
            let why: Arc<str> = why.into();
            self.failed = Some(why.clone());
            self.shared.set_failed(&why);
            for (_, answer) in round.accepted {
                _ = answer.send(Err(CommitError::Disk(why.clone())));
            }
            return;
        }
        let mut changes = Vec::new();
        let mut answers = Vec::with_capacity(round.accepted.len());
        for (accepted, answer) in round.accepted {
            let committed = accepted.iter().map(|(_, event)| Committed {
                revision: event.revision,
                value: event.value.clone(),
            });
            answers.push((answer, committed.collect()));
            changes.extend(accepted);
        }
        self.shared.apply(changes, self.revision);
        for (answer, committed) in answers {
            _ = answer.send(Ok(committed));
        }
    }

    fn write(&mut self, batch: Batch, writes: usize) -> Result<(), String> {
        let start = Instant::now();
        self.disk.write(batch)?;
        metrics::histogram!("svcnet_store_commit_duration_seconds").record(start.elapsed().as_secs_f64());
        metrics::counter!("svcnet_store_commits_total").increment(1);
        metrics::counter!("svcnet_store_writes_total").increment(writes as u64);
        Ok(())
    }

    fn spec(&self, collection: Collection) -> &CollectionSpec {
        &self.specs[usize::from(collection.0)]
    }
}
