//! An ExternalName that leads out of the cluster: our aliases, and behind them what the upstream says of the last one.
//!
//! The upstream's records may be of any type and point anywhere into its message, so they are taken apart and put
//! together again by `hickory-proto`.

use std::time::Instant;

use hickory_proto::op::Message;
use hickory_proto::rr::Record;

use super::stored::Stored;
use crate::wire::{self, Answer, Query, Reply, TCP_MAX, UDP_MAX};

/// Writes our aliases with the upstream's answer behind them; `None` when the upstream's message cannot be read.
pub(crate) fn write(
    query: &Query<'_>,
    aliases: &Answer,
    stored: &Stored,
    limit: usize,
    now: Instant,
    out: &mut Vec<u8>,
) -> Option<()> {
    let mut theirs = Message::from_vec(stored.bytes()).ok()?;
    wire::encode(
        query,
        Reply {
            answer: aliases,
            extended: None,
        },
        TCP_MAX,
        out,
    );
    let mut ours = Message::from_vec(out).ok()?;
    let age = stored.age(now);
    let younger = |mut record: Record| {
        record.ttl = record.ttl.saturating_sub(age);
        record
    };
    ours.metadata.response_code = theirs.metadata.response_code;
    ours.answers.extend(theirs.answers.drain(..).map(younger));
    ours.authorities.extend(theirs.authorities.drain(..).map(younger));
    let mut bytes = ours.to_vec().ok()?;
    if bytes.len() > limit {
        ours.answers.clear();
        ours.authorities.clear();
        ours.metadata.truncation = true;
        bytes = ours.to_vec().ok()?;
    }
    debug_assert!(
        limit >= UDP_MAX || bytes.len() <= limit,
        "a question alone always fits"
    );
    // The case of the name as the client wrote it.
    let question = query.raw_question();
    bytes
        .get_mut(wire::HEADER..wire::HEADER + question.len())?
        .copy_from_slice(question);
    *out = bytes;
    Some(())
}
