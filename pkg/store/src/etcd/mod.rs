//! The store on etcd, for several servers.
//!
//! # Layout
//! | etcd key | value |
//! |---|---|
//! | PREFIX `/o/` COLLECTION `/` NAMESPACE `/` NAME | the object, as [`codec`] writes it |
//! | PREFIX `/m/compact` | the revision up to which a server has compacted |
//! | PREFIX `/m/restoring` | there while a snapshot is restored ([`restore`]) |
//! | PREFIX `/m/revisions-ahead` | how far revisions are ahead of etcd's ([`revisions`]) |
//! | PREFIX `/m/…` | what [`SharedValues`] keeps, as the cluster's keys |
//!
//! # Reads
//! Every server has all objects in memory, filled by one list at start and by one watch from then on ([`follow`]). Revisions
//! are etcd's, counted on from those of the store that a snapshot came from ([`revisions`]). Memory lags a little behind:
//! [`Etcd::sync`] asks etcd for its revision (linearized, one question for all who ask at the time) and returns when memory
//! has reached it.
//!
//! # Writes
//! A transaction compares the revisions of the object and of what it relies on, and puts or deletes. It is answered when
//! etcd has it on the disks of its quorum, and memory has it too. When the connection breaks in between, whether it was done
//! is not known, and that is what the caller is told ([`CommitError::Unknown`]): a blind repetition could do it twice.
//!
//! # What will not scale
//! As for the embedded store: all objects are in the memory of each server.
//!
//! etcd is spoken by hand, a dozen messages over HTTP/2, which is here anyway: the crate `etcd-client` needs `protoc`
//! to build.

mod channel;
mod codec;
mod config;
mod follow;
mod keep;
mod restore;
mod revisions;
mod values;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::channel::{CallError, Channel, RESOURCE_EXHAUSTED};
use self::codec::Codec;
pub use self::config::{Endpoint, EndpointError, EtcdConfig, EtcdTlsError, Resolve};
pub use self::restore::restore_etcd;
use self::revisions::Revisions;
pub use self::values::SharedValues;
use self::wire::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use crate::error::{CommitError, OpenError, SyncError};
use crate::key::{CollectionSpec, Key};
use crate::keyring::Keyring;
use crate::store::{Committed, Shared, Write};
use crate::value::Change;

/// How long a reader waits for memory to reach etcd's revision.
pub(crate) const REACH_MAX: Duration = Duration::from_secs(8);
/// How long a writer waits until memory has its write. It is done in any case.
const SEE_MAX: Duration = Duration::from_secs(5);
/// How long closing waits for what is put in order. Leases end by themselves, later.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// When a revision does not come by itself within this, it may be another's who uses the etcd, and is passed by a write.
const PROGRESS_AFTER: Duration = Duration::from_millis(100);

/// A store on etcd, open.
#[derive(Debug)]
pub(crate) struct Etcd {
    shared: Arc<Shared>,
    channel: Arc<Channel>,
    codec: Arc<Codec>,
    syncs: mpsc::Sender<oneshot::Sender<Result<u64, SyncError>>>,
    /// Tasks that have something to put in order when the store is closed.
    tasks: TaskTracker,
    stop: CancellationToken,
    _stops: DropGuard,
}

impl Etcd {
    /// Takes in what etcd holds, and follows it from then on. `shared` gives memory for what was found.
    pub(crate) async fn open(
        config: &EtcdConfig,
        specs: &[CollectionSpec],
        keyring: Option<Arc<Keyring>>,
        shared: impl FnOnce(follow::Listed) -> Arc<Shared>,
    ) -> Result<Self, OpenError> {
        let channel = Arc::new(Channel::new(config)?);
        let codec = Codec::new(&config.prefix, specs, keyring);
        let restoring = restore::is_under_way(&channel, &codec).await;
        if restoring.map_err(|e| OpenError::Etcd(e.to_string()))? {
            let why = "a snapshot is being restored to it, or was in part: let `svcnet store restore` come to its end";
            return Err(OpenError::Etcd(why.to_string()));
        }
        let revisions = Revisions::of(&channel, &codec).await;
        let codec = Arc::new(codec.counting(revisions.map_err(|e| OpenError::Etcd(e.to_string()))?));
        let listed = follow::list(&channel, &codec).await?;
        let shared = shared(listed);
        let stop = CancellationToken::new();
        let progress = watch::Sender::new(0);
        let follower = follow::Follower {
            channel: channel.clone(),
            codec: codec.clone(),
            shared: shared.clone(),
            progress: progress.subscribe(),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(follower.run()));
        let compactor = keep::Compactor::new(channel.clone(), codec.clone(), shared.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(compactor.run()));
        let (syncs, asked) = mpsc::channel(1024);
        let reader = Reader {
            channel: channel.clone(),
            codec: codec.clone(),
            shared: shared.clone(),
            progress,
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(reader.run(asked)));
        Ok(Self {
            shared,
            channel,
            codec,
            syncs,
            tasks: TaskTracker::new(),
            _stops: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Waits until memory holds everything that was acknowledged anywhere before this call.
    pub(crate) async fn sync(&self) -> Result<u64, SyncError> {
        let closed = || SyncError("the store is closed".into());
        let (answer, answered) = oneshot::channel();
        self.syncs.send(answer).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Does writes, all or none.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Committed>, CommitError> {
        let Some(first) = writes.first().map(|w| (w.key.clone(), w.expect)) else {
            return Ok(Vec::new());
        };
        let mut request = TxnRequest::default();
        for write in &writes {
            request.compare.push(self.compare(&write.key, write.expect));
            let guards = write.guards.iter();
            request
                .compare
                .extend(guards.map(|(key, revision)| self.compare(key, Some(*revision))));
            request.success.push(self.operation(write)?);
        }
        let looks = request.compare.iter().map(|c| look(c.key.clone()));
        request.failure = looks.collect();
        let answered: Result<TxnResponse, _> = self.channel.call("/etcdserverpb.KV/Txn", &request).await;
        let answer = answered.map_err(refused)?;
        if !answer.succeeded {
            return Err(self.lost(&request, &answer, &first.0));
        }
        let revision = self.codec.revisions.of_header(answer.header);
        // Who asks next is to see it. The watch may be away: it is done all the same.
        _ = timeout(SEE_MAX, self.shared.reached(revision)).await;
        let committed = writes.into_iter().map(|write| Committed {
            revision,
            value: match write.change {
                Change::Put(template) | Change::Delete(template) => template.fill(revision),
            },
        });
        Ok(committed.collect())
    }

    fn compare(&self, key: &Key, expect: Option<u64>) -> Compare {
        Compare {
            target: values::TARGET_MOD,
            key: self.codec.key(key),
            mod_revision: Some(expect.map_or(0, |revision| self.codec.revisions.etcds(revision))),
            ..Compare::default()
        }
    }

    fn operation(&self, write: &Write) -> Result<RequestOp, CommitError> {
        let key = self.codec.key(&write.key);
        Ok(match &write.change {
            Change::Put(template) => {
                let value = self.codec.encode(&write.key, template);
                RequestOp {
                    put: Some(PutRequest {
                        value: value.map_err(|why| CommitError::Disk(why.into()))?,
                        key,
                        lease: 0,
                    }),
                    ..RequestOp::default()
                }
            }
            Change::Delete(_) => RequestOp {
                delete: Some(DeleteRangeRequest {
                    key,
                    ..DeleteRangeRequest::default()
                }),
                ..RequestOp::default()
            },
        })
    }

    /// What was not as expected: the object itself, or something that the write relies on.
    fn lost(&self, request: &TxnRequest, answer: &TxnResponse, first: &Key) -> CommitError {
        let mut first_is = None;
        for (compare, found) in request.compare.iter().zip(&answer.responses) {
            let found = found.range.as_ref().and_then(|r| r.kvs.first());
            let is = found.map_or(0, |kv| kv.mod_revision);
            if Some(is) == compare.mod_revision {
                continue;
            }
            let Some((_, path)) = self.codec.place(&compare.key) else {
                continue;
            };
            if compare.key == self.codec.key(first) {
                first_is = Some(found.map(|kv| self.codec.revisions.seen(kv.mod_revision)));
            } else {
                return CommitError::Guard { path: path.into() };
            }
        }
        let current = first_is.flatten();
        CommitError::Conflict { current }
    }

    /// Keeps an object there for as long as this server lives, or until what is returned is cancelled.
    pub(crate) fn present(&self, key: &Key, value: &crate::Template) -> CancellationToken {
        let stop = self.stop.child_token();
        let Ok(value) = self.codec.encode(key, value) else {
            return stop;
        };
        let presence = keep::Presence {
            channel: self.channel.clone(),
            key: self.codec.key(key),
            value,
            stop: stop.clone(),
        };
        self.tasks.spawn(presence.run());
        stop
    }

    /// Ends what goes on in the background.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        _ = timeout(CLOSE_MAX, self.tasks.wait()).await;
    }
}

/// A look at one key, for what a transaction that failed found there.
fn look(key: Bytes) -> RequestOp {
    RequestOp {
        range: Some(RangeRequest {
            key,
            keys_only: true,
            ..RangeRequest::default()
        }),
        ..RequestOp::default()
    }
}

fn refused(error: CallError) -> CommitError {
    match error {
        CallError::Unreachable(why) => CommitError::Unavailable(why.into()),
        CallError::Broken(why) => CommitError::Unknown(why.into()),
        CallError::Refused {
            code: RESOURCE_EXHAUSTED,
            message,
        } => CommitError::Disk(
            format!("{message}: free space there with `etcdctl defrag`, then `etcdctl alarm disarm`").into(),
        ),
        CallError::Refused { message, .. } => CommitError::Disk(message.into()),
    }
}

/// Asks etcd how far it is, for all who want to know at the same time.
struct Reader {
    channel: Arc<Channel>,
    codec: Arc<Codec>,
    shared: Arc<Shared>,
    progress: watch::Sender<u64>,
}

impl Reader {
    async fn run(self, mut asked: mpsc::Receiver<oneshot::Sender<Result<u64, SyncError>>>) {
        let mut waiting = Vec::new();
        while asked.recv_many(&mut waiting, 1024).await > 0 {
            let request = RangeRequest {
                key: self.codec.value_key("compact"),
                keys_only: true,
                ..RangeRequest::default()
            };
            let answer: Result<RangeResponse, _> =
                self.channel.call("/etcdserverpb.KV/Range", &request).await;
            let waiting = std::mem::take(&mut waiting);
            match answer {
                Ok(answer) => {
                    let revision = self.codec.revisions.of_header(answer.header);
                    if self.shared.read().revision >= revision {
                        tell(waiting, &Ok(revision));
                        continue;
                    }
                    // The next question does not wait for this one's answer.
                    let (shared, progress) = (self.shared.clone(), self.progress.clone());
                    tokio::spawn(async move { tell(waiting, &reach(&shared, &progress, revision).await) });
                }
                Err(error) => tell(waiting, &Err(SyncError(error.to_string().into()))),
            }
        }
    }
}

async fn reach(shared: &Shared, progress: &watch::Sender<u64>, revision: u64) -> Result<u64, SyncError> {
    let reached = async {
        while timeout(PROGRESS_AFTER, shared.reached(revision)).await.is_err() {
            progress.send_if_modified(|wanted| {
                let further = *wanted < revision;
                *wanted = revision.max(*wanted);
                further
            });
            tokio::time::sleep(PROGRESS_AFTER).await;
        }
    };
    timeout(REACH_MAX, reached)
        .await
        .map_err(|_| SyncError("the watch of etcd is behind".into()))?;
    Ok(revision)
}

fn tell(waiting: Vec<oneshot::Sender<Result<u64, SyncError>>>, answer: &Result<u64, SyncError>) {
    for waiting in waiting {
        _ = waiting.send(answer.clone());
    }
}
