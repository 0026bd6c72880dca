//! Values that all servers of an etcd share and that are no objects, as the keys of the cluster: read and put one at a time,
//! before the store is open.

use bytes::Bytes;

use super::channel::{CallError, Channel};
use super::codec::Codec;
use super::config::EtcdConfig;
use super::wire::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use crate::error::{OpenError, SyncError};

/// MOD of `Compare.CompareTarget`.
pub(super) const TARGET_MOD: i32 = 2;

/// The values.
#[derive(Debug)]
pub struct SharedValues {
    channel: Channel,
    codec: Codec,
}

impl SharedValues {
    /// Those of an etcd. Nothing is asked yet.
    ///
    /// # Errors
    /// When what TLS needs is not there.
    pub fn new(config: &EtcdConfig) -> Result<Self, OpenError> {
        Ok(Self {
            channel: Channel::new(config)?,
            codec: Codec::new(&config.prefix, &[], None),
        })
    }

    /// The value of a name, if it has one.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, SyncError> {
        let answer = look(&self.channel, &self.codec, name).await.map_err(failed)?;
        Ok(answer.kvs.into_iter().next().map(|kv| kv.value))
    }

    /// Gives a name a value, whatever it had.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn set(&self, name: &str, value: Bytes) -> Result<(), SyncError> {
        let put = PutRequest {
            key: self.codec.value_key(name),
            value,
            lease: 0,
        };
        let answered: Result<PutResponse, _> = self.channel.call("/etcdserverpb.KV/Put", &put).await;
        answered.map(|_| ()).map_err(failed)
    }

    /// Gives a name a value, if the one that it has is `before`. Whether it was.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn put(&self, name: &str, value: Bytes, before: Option<&Bytes>) -> Result<bool, SyncError> {
        let answer = look(&self.channel, &self.codec, name).await.map_err(failed)?;
        let there = answer.kvs.into_iter().next();
        if there.as_ref().map(|kv| &kv.value) != before {
            return Ok(false);
        }
        let at = there.map_or(0, |kv| kv.mod_revision);
        swap(&self.channel, &self.codec, name, value, at)
            .await
            .map_err(failed)
    }
}

fn failed(error: CallError) -> SyncError {
    SyncError(error.to_string().into())
}

pub(super) async fn look(channel: &Channel, codec: &Codec, name: &str) -> Result<RangeResponse, CallError> {
    let request = RangeRequest {
        key: codec.value_key(name),
        ..RangeRequest::default()
    };
    channel.call("/etcdserverpb.KV/Range", &request).await
}

/// Puts a value if the one that is there was put at a revision (0: if there is none); whether it was.
pub(super) async fn swap(
    channel: &Channel,
    codec: &Codec,
    name: &str,
    value: Bytes,
    at: i64,
) -> Result<bool, CallError> {
    let key = codec.value_key(name);
    let compare = Compare {
        target: TARGET_MOD,
        key: key.clone(),
        mod_revision: Some(at),
        ..Compare::default()
    };
    let put = RequestOp {
        put: Some(PutRequest { key, value, lease: 0 }),
        ..RequestOp::default()
    };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![put],
        failure: Vec::new(),
    };
    let answer: TxnResponse = channel.call("/etcdserverpb.KV/Txn", &request).await?;
    Ok(answer.succeeded)
}
