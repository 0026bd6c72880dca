//! Filling an etcd out of a snapshot.
//!
//! The objects are written in many transactions. While that goes on a mark stands beside them, and no server opens the store: one that
//! was restored in part is none. Objects get other revisions than they had, behind those of the snapshot by far and behind those of the
//! store that was there ([`revisions`](super::revisions)): whoever names one of before is older than all that servers remember, and lists anew.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::channel::{CallError, Channel};
use super::codec::Codec;
use super::config::EtcdConfig;
use super::revisions::{self, Revisions};
use super::values;
use super::wire::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse,
};
use crate::disk;
use crate::error::OpenError;
use crate::key::{self, Collection, CollectionSpec, Key};
use crate::keyring::{self, Keyring};
use crate::snapshot::{self, Contents, Object, RestoreError, Restored};
use crate::value::Template;

/// The mark, among the values that servers share.
const MARK: &str = "restoring";
/// Of one transaction: below etcd's usual 128 (`--max-txn-ops`) and 1.5 MiB (`--max-request-bytes`), but for an object that is larger itself.
const OPERATIONS_MAX: usize = 100;
const BYTES_MAX: usize = 1 << 20;
/// Keys in one answer.
const PAGE: i64 = 1000;

/// Whether a snapshot is being restored, or was in part.
pub(super) async fn is_under_way(channel: &Channel, codec: &Codec) -> Result<bool, CallError> {
    Ok(!values::look(channel, codec, MARK).await?.kvs.is_empty())
}

/// Puts the objects of a snapshot into an etcd; `template` takes the revision out of an object's bytes. What is there is refused,
/// or deleted when `force` is given.
///
/// # Errors
/// When the snapshot is none or damaged, needs a key that is not there or is of a later version, when etcd holds objects or a
/// server runs on it, and when etcd does not answer.
pub async fn restore_etcd(
    snapshot: &Path,
    config: &EtcdConfig,
    specs: &[CollectionSpec],
    keyring: Option<Keyring>,
    force: bool,
    template: impl Fn(&[u8]) -> Option<Template>,
) -> Result<Restored, RestoreError> {
    let (last, objects) = snapshot::read(snapshot)?;
    let keyring = keyring.map(Arc::new);
    let codec = Codec::new(&config.prefix, specs, keyring.clone());
    let mut contents = Contents::default();
    let mut puts = Vec::with_capacity(objects.len());
    for object in &objects {
        let put = put(object, specs, keyring.as_deref(), &codec, &template)?;
        contents.add(&object.collection, put.value.len());
        puts.push(put);
    }
    let channel = Channel::new(config).map_err(OpenError::from)?;
    let failed = |error: CallError| RestoreError::Open(OpenError::Etcd(error.to_string()));
    let (there, now) = there(&channel, &codec).await.map_err(failed)?;
    match there {
        There::Servers => return Err(RestoreError::Running),
        There::Objects if !force => return Err(RestoreError::EtcdThere(codec.prefix().to_string())),
        There::Objects | There::Nothing => {}
    }
    let before = Revisions::of(&channel, &codec).await.map_err(failed)?;
    let codec = codec.counting(before.reach(last + snapshot::JUMP, now));
    contents.revision = fill(&channel, &codec, puts).await.map_err(failed)?;
    Ok(Restored {
        revision: contents.revision,
        contents,
        aside: None,
    })
}

fn put(
    object: &Object,
    specs: &[CollectionSpec],
    keyring: Option<&Keyring>,
    codec: &Codec,
    template: impl Fn(&[u8]) -> Option<Template>,
) -> Result<PutRequest, RestoreError> {
    let Object {
        collection,
        path,
        revision,
        value,
    } = object;
    let index = specs.iter().position(|s| s.name == *collection);
    let index = index.and_then(|i| u16::try_from(i).ok());
    let index = index.ok_or_else(|| RestoreError::Unknown(collection.clone()))?;
    let unusable = |why: String| RestoreError::Object {
        what: format!("{collection} {path}"),
        why,
    };
    let plain = if keyring::is_sealed(value) {
        let keyring = keyring.ok_or_else(|| unusable("its key is not there".to_string()))?;
        let place = disk::place(collection, path, *revision);
        let plain = keyring.unseal(&place, value);
        plain.map_err(|why| unusable(format!("it cannot be decrypted: {why:?}")))?
    } else {
        value.to_vec()
    };
    let template = template(&plain).ok_or_else(|| unusable("it is damaged".to_string()))?;
    let (namespace, name) = key::split(path);
    let key = Key::new(Collection(index), namespace, name);
    Ok(PutRequest {
        value: codec.encode(&key, &template).map_err(unusable)?,
        key: codec.key(&key),
        lease: 0,
    })
}

/// What an etcd holds already.
enum There {
    Nothing,
    Objects,
    /// Something that goes with a server that is there now.
    Servers,
}

/// That, and the revision at which etcd is itself.
async fn there(channel: &Channel, codec: &Codec) -> Result<(There, u64), CallError> {
    let (mut key, range_end) = codec.objects();
    let mut found = There::Nothing;
    loop {
        let request = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: PAGE,
            keys_only: true,
            ..RangeRequest::default()
        };
        let answer: RangeResponse = channel.call("/etcdserverpb.KV/Range", &request).await?;
        let now = Revisions::default().of_header(answer.header);
        if answer.kvs.iter().any(|kv| kv.lease != 0) {
            return Ok((There::Servers, now));
        }
        match answer.kvs.last() {
            None => return Ok((found, now)),
            Some(_) if !answer.more => return Ok((There::Objects, now)),
            Some(last) => {
                key = [last.key.as_ref(), &[0]].concat().into();
                found = There::Objects;
            }
        }
    }
}

/// Puts these in the place of all objects. The revision afterwards.
async fn fill(channel: &Channel, codec: &Codec, puts: Vec<PutRequest>) -> Result<u64, CallError> {
    let mark = codec.value_key(MARK);
    let (key, range_end) = codec.objects();
    let marked = PutRequest {
        key: mark.clone(),
        value: Bytes::from_static(b"1"),
        lease: 0,
    };
    let counted = PutRequest {
        key: codec.value_key(revisions::AHEAD),
        value: codec.revisions.stored().into(),
        lease: 0,
    };
    let emptied = DeleteRangeRequest { key, range_end };
    done(channel, vec![put_of(marked), put_of(counted), delete_of(emptied)]).await?;
    let (mut some, mut bytes) = (Vec::new(), 0);
    for put in puts {
        if some.len() == OPERATIONS_MAX || bytes + put.value.len() > BYTES_MAX {
            done(channel, std::mem::take(&mut some)).await?;
            bytes = 0;
        }
        bytes += put.value.len();
        some.push(put_of(put));
    }
    let whole = DeleteRangeRequest {
        key: mark,
        ..DeleteRangeRequest::default()
    };
    done(channel, some).await?;
    let header = done(channel, vec![delete_of(whole)]).await?;
    Ok(codec.revisions.of_header(header))
}

async fn done(channel: &Channel, success: Vec<RequestOp>) -> Result<Option<ResponseHeader>, CallError> {
    let request = TxnRequest {
        success,
        ..TxnRequest::default()
    };
    let answer: TxnResponse = channel.call("/etcdserverpb.KV/Txn", &request).await?;
    Ok(answer.header)
}

fn put_of(put: PutRequest) -> RequestOp {
    RequestOp {
        put: Some(put),
        ..RequestOp::default()
    }
}

fn delete_of(delete: DeleteRangeRequest) -> RequestOp {
    RequestOp {
        delete: Some(delete),
        ..RequestOp::default()
    }
}
