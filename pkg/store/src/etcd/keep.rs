//! What the servers of an etcd keep up together: compaction, and who is there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::channel::{CallError, Channel, framed};
use super::codec::Codec;
use super::values;
use super::wire::{
    self, CompactionRequest, CompactionResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, PutRequest,
    RequestOp, TxnRequest, TxnResponse,
};
use crate::store::Shared;

/// How often is compacted, and so for how long a revision is remembered at least (`--etcd-compaction-interval` of the real
/// API server).
const COMPACT_EVERY: Duration = Duration::from_secs(5 * 60);
/// After how long an object is taken away whose server is not heard of, in seconds (that of the real server's
/// `masterLeases`).
const PRESENCE_TTL_SECS: i64 = 15;
const PRESENCE_EVERY: Duration = Duration::from_secs(5);
const PRESENCE_RETRY: Duration = Duration::from_secs(1);
/// Compacts etcd as the real API servers do: of all servers, the one that is first to swap the key does it.
pub(crate) struct Compactor {
    channel: Arc<Channel>,
    codec: Arc<Codec>,
    shared: Arc<Shared>,
    /// The revision at the last look: what is older than it is old enough.
    seen: u64,
    /// What the last compaction has left as the newest revision: nothing has happened since, as long as it is.
    idle_at: u64,
}

impl Compactor {
    pub(crate) fn new(channel: Arc<Channel>, codec: Arc<Codec>, shared: Arc<Shared>) -> Self {
        let seen = shared.read().revision;
        Self {
            channel,
            codec,
            shared,
            seen,
            idle_at: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            sleep(COMPACT_EVERY).await;
            // A failure is etcd's being away, which is said elsewhere.
            if let Err(error) = self.compact().await {
                tracing::debug!(reason = %error, "etcd was not compacted");
            }
        }
    }

    /// Forgets what was superseded before the last call.
    pub(crate) async fn compact(&mut self) -> Result<(), CallError> {
        let now = self.shared.read().revision;
        let until = std::mem::replace(&mut self.seen, now);
        if now == self.idle_at {
            return Ok(());
        }
        let answer = values::look(&self.channel, &self.codec, "compact").await?;
        let there = answer.kvs.into_iter().next();
        let text = |kv: &wire::KeyValue| std::str::from_utf8(&kv.value).ok()?.parse::<i64>().ok();
        let done = there.as_ref().and_then(text).unwrap_or_default();
        let at = there.map_or(0, |kv| kv.mod_revision);
        // Etcd's own revisions: clients see none of these.
        let until = self.codec.revisions.etcds(until);
        // Another server has done it meanwhile.
        if done >= until {
            return Ok(());
        }
        let value = until.to_string().into();
        if !values::swap(&self.channel, &self.codec, "compact", value, at).await? {
            return Ok(());
        }
        let request = CompactionRequest { revision: until };
        let _: CompactionResponse = self.channel.call("/etcdserverpb.KV/Compact", &request).await?;
        // The swap is a revision too, the only one since if nobody else has written.
        self.idle_at = now + 1;
        tracing::debug!(revision = until, "etcd was compacted");
        Ok(())
    }
}

/// An object that goes with its server.
pub(crate) struct Presence {
    pub(crate) channel: Arc<Channel>,
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) stop: CancellationToken,
}

impl Presence {
    pub(crate) async fn run(self) {
        loop {
            // Ends by itself when the store is closed: what was announced is taken back then.
            if let Err(error) = self.hold().await {
                tracing::debug!(reason = %error, "this server is not announced in etcd");
            }
            let wait = sleep(PRESENCE_RETRY);
            if self.stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    /// Until the lease is lost.
    async fn hold(&self) -> Result<(), CallError> {
        let request = LeaseGrantRequest {
            ttl: PRESENCE_TTL_SECS,
        };
        let lease: LeaseGrantResponse = self
            .channel
            .call("/etcdserverpb.Lease/LeaseGrant", &request)
            .await?;
        if !lease.error.is_empty() {
            return Err(CallError::Broken(lease.error));
        }
        let put = PutRequest {
            key: self.key.clone(),
            value: self.value.clone(),
            lease: lease.id,
        };
        let request = TxnRequest {
            success: vec![RequestOp {
                put: Some(put),
                ..RequestOp::default()
            }],
            ..TxnRequest::default()
        };
        let _: TxnResponse = self.channel.call("/etcdserverpb.KV/Txn", &request).await?;
        let alive = LeaseKeepAliveRequest { id: lease.id };
        let (questions, mut answers) = self
            .channel
            .stream("/etcdserverpb.Lease/LeaseKeepAlive", &alive)
            .await?;
        loop {
            match answers.next::<LeaseKeepAliveResponse>().await? {
                Some(answer) if answer.ttl > 0 => {}
                _ => return Ok(()),
            }
            tokio::select! {
                () = sleep(PRESENCE_EVERY) => {}
                () = self.stop.cancelled() => {
                    let request = LeaseRevokeRequest { id: lease.id };
                    let _: LeaseRevokeResponse = self.channel.call("/etcdserverpb.Lease/LeaseRevoke", &request).await?;
                    return Ok(());
                }
            }
            if questions.send(framed(&alive)).await.is_err() {
                return Ok(());
            }
        }
    }
}
