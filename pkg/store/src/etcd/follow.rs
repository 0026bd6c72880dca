//! Memory filled from etcd: one list, then one watch over everything, which is begun anew where it broke off.
//!
//! How far memory is follows from events alone: where etcd's revision is another user's, a value of ours is written and
//! waited for. Asked for the progress of a watch, etcd before 3.4.25 and 3.5.8 answers ahead of events that are still
//! on their way (etcd issue 15220): a list missed a deletion that had been acknowledged, once in 177 kills.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::REACH_MAX;
use super::channel::{CallError, Channel};
use super::codec::{Codec, DecodeError, Path};
use super::wire::{
    KeyValue, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::error::OpenError;
use crate::history::Event;
use crate::key::Collection;
use crate::state::Entry;
use crate::store::Shared;

/// Objects in one answer.
const PAGE: i64 = 1000;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// `OUT_OF_RANGE` of gRPC: etcd has compacted what was asked for.
const OUT_OF_RANGE: u32 = 11;
/// DELETE of `Event.EventType`.
const DELETED: i32 = 1;

/// All objects at one revision.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) revision: u64,
    /// By collection, in the order of the specs.
    pub(crate) entries: Vec<BTreeMap<Path, Entry>>,
}

/// Lists everything, as it is at one revision.
pub(crate) async fn list(channel: &Channel, codec: &Codec) -> Result<Listed, OpenError> {
    let (mut key, range_end) = codec.objects();
    let mut listed = Listed {
        revision: 0,
        entries: (0..codec.collections()).map(|_| BTreeMap::new()).collect(),
    };
    // At which revision of etcd's own the list is; 0 until the first answer says.
    let mut at = 0;
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: PAGE,
            revision: at,
            ..RangeRequest::default()
        };
        let answered = channel.call("/etcdserverpb.KV/Range", &request).await;
        let answer: RangeResponse = match answered {
            // A list that took so long that its revision is gone begins anew.
            Err(CallError::Refused {
                code: OUT_OF_RANGE, ..
            }) if at > 0 => {
                key = codec.objects().0;
                at = 0;
                listed.entries.iter_mut().for_each(BTreeMap::clear);
                continue;
            }
            answered => answered.map_err(|e| OpenError::Etcd(e.to_string()))?,
        };
        if at == 0 {
            at = answer.header.map_or(0, |h| h.revision);
            listed.revision = codec.revisions.seen(at);
        }
        for kv in &answer.kvs {
            take(codec, kv, &mut listed)?;
        }
        match answer.kvs.last() {
            Some(last) if answer.more => key = [last.key.as_ref(), &[0]].concat().into(),
            _ => return Ok(listed),
        }
    }
}

fn take(codec: &Codec, kv: &KeyValue, listed: &mut Listed) -> Result<(), OpenError> {
    let Some((collection, path)) = codec.place(&kv.key) else {
        return Ok(());
    };
    let revision = codec.revisions.seen(kv.mod_revision);
    let value = codec.decode(&kv.key, &kv.value, revision).map_err(|error| {
        let what = String::from_utf8_lossy(&kv.key).into_owned();
        match error {
            DecodeError::Key(id) => OpenError::Key {
                path: codec.prefix().into(),
                keys: codec.keys(),
                id,
                what,
            },
            DecodeError::Damaged(why) => {
                OpenError::Etcd(format!("the value of {what} cannot be used: {why}"))
            }
        }
    })?;
    listed.entries[usize::from(collection.0)].insert(path.into(), Entry { revision, value });
    Ok(())
}

/// Why a watch ends.
enum Ended {
    /// What it would go on from is gone.
    Compacted,
    Broken(String),
}

impl From<CallError> for Ended {
    fn from(error: CallError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Keeps memory as etcd is.
pub(crate) struct Follower {
    pub(crate) channel: Arc<Channel>,
    pub(crate) codec: Arc<Codec>,
    pub(crate) shared: Arc<Shared>,
    /// A revision that somebody waits for.
    pub(crate) progress: watch::Receiver<u64>,
}

impl Follower {
    pub(crate) async fn run(mut self) {
        let (mut wait, mut told) = (RETRY_FIRST, false);
        loop {
            let before = self.shared.read().revision;
            let ended = self.follow(&mut told).await;
            if self.shared.read().revision > before {
                wait = RETRY_FIRST;
            }
            let why = match ended {
                Ended::Compacted => match list(&self.channel, &self.codec).await {
                    Ok(listed) => {
                        tracing::warn!(
                            revision = listed.revision,
                            "etcd has forgotten what this server had not seen: everything was listed anew"
                        );
                        self.shared.replace(listed.revision, listed.entries);
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
                Ended::Broken(why) => why,
            };
            if !told {
                tracing::warn!(
                    reason = why,
                    "etcd is away; reads go on as far as they may be old, until it is back"
                );
                told = true;
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MOST);
        }
    }

    /// Follows until that ends.
    async fn follow(&mut self, told: &mut bool) -> Ended {
        let position = self.shared.read().revision;
        let (key, range_end) = self.codec.everything();
        let create = WatchRequest {
            create: Some(WatchCreateRequest {
                key,
                range_end,
                start_revision: self.codec.revisions.etcds(position + 1),
                prev_kv: true,
            }),
        };
        let opened = self.channel.stream("/etcdserverpb.Watch/Watch", &create).await;
        // The stream lasts as long as its questions may.
        let (_questions, mut answers) = match opened {
            Ok(opened) => opened,
            Err(error) => return error.into(),
        };
        loop {
            // `next` keeps what it has read when it is dropped.
            let answer: Result<Option<WatchResponse>, _> = tokio::select! {
                answer = answers.next() => answer,
                changed = self.progress.changed() => {
                    if changed.is_err() {
                        return Ended::Broken("the store is closed".to_string());
                    }
                    self.progress.borrow_and_update();
                    self.tick();
                    continue;
                }
            };
            match answer {
                Err(error) => return error.into(),
                Ok(None) => return Ended::Broken("the watch has ended".to_string()),
                Ok(Some(answer)) if answer.compact_revision > 0 => return Ended::Compacted,
                Ok(Some(answer)) if answer.canceled => return Ended::Broken(answer.cancel_reason),
                Ok(Some(answer)) => {
                    if answer.created && self.codec.revisions.of_header(answer.header) < position {
                        tracing::error!(
                            "the revisions of etcd have gone back: was it restored from a backup?"
                        );
                        return Ended::Compacted;
                    }
                    if std::mem::take(told) {
                        tracing::info!("etcd is back");
                    }
                    self.take(answer);
                }
            }
        }
    }

    fn take(&self, answer: WatchResponse) {
        let mut changes = Vec::with_capacity(answer.events.len());
        let mut last = 0;
        for event in answer.events {
            let Some(kv) = event.kv else { continue };
            last = last.max(self.codec.revisions.seen(kv.mod_revision));
            if let Some(change) = self.change(&kv, event.kind == DELETED, event.prev_kv.as_ref()) {
                changes.push(change);
            }
        }
        if last > 0 {
            self.shared.apply(changes, last);
        }
    }

    /// Writes a value that this watch sees, and with it everything before. etcd itself could be asked how far the watch is
    /// (`WatchProgressRequest`), but before 3.4.25 and 3.5.8 its answer overtakes events that are still on their way (etcd issue
    /// 15220).
    fn tick(&self) {
        let (channel, key) = (self.channel.clone(), self.codec.value_key("tick"));
        let put = PutRequest {
            key,
            ..PutRequest::default()
        };
        let request = TxnRequest {
            success: vec![RequestOp {
                put: Some(put),
                ..RequestOp::default()
            }],
            ..TxnRequest::default()
        };
        tokio::spawn(timeout(REACH_MAX, async move {
            while channel
                .call::<TxnResponse>("/etcdserverpb.KV/Txn", &request)
                .await
                .is_err()
            {
                sleep(RETRY_FIRST).await;
            }
        }));
    }

    fn change(&self, kv: &KeyValue, deleted: bool, before: Option<&KeyValue>) -> Option<(Collection, Event)> {
        let (collection, path) = self.codec.place(&kv.key)?;
        let revision = self.codec.revisions.seen(kv.mod_revision);
        let stored = if deleted {
            before.map(|kv| &kv.value)
        } else {
            Some(&kv.value)
        };
        let value = match stored.map(|stored| self.codec.decode(&kv.key, stored, revision)) {
            Some(Ok(value)) => Some(value),
            Some(Err(error)) => {
                tracing::error!(key = %String::from_utf8_lossy(&kv.key), reason = ?error, "an object in etcd cannot be read");
                None
            }
            None => None,
        };
        // What cannot be read is as good as gone, and its last state is the one that is known.
        let previous = self.shared.read().entry(collection, path).cloned();
        let deleted = deleted || value.is_none();
        let value = value.or_else(|| previous.as_ref().map(|p| p.value.clone()))?;
        if deleted && previous.is_none() {
            return None;
        }
        let event = Event {
            revision,
            path: path.into(),
            value,
            deleted,
            previous,
        };
        Some((collection, event))
    }
}
