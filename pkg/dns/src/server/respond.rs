//! From the bytes of a question to the bytes of its answer, or to what it has to wait for.

use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::OwnedSemaphorePermit;

use crate::forward::{Ask, Failure, Forwarder, write_chased};
use crate::stats::{self, Domain, Tally, Transport};
use crate::wire::{
    self, Answer, Extended, Query, Rcode, RecordType, Refusal, Reply, TCP_MAX, encode, encode_header_only,
};
use crate::zone::{Question, Reason, Verdict, Zone};

const CLASS_IN: u16 = 1;

/// What all threads and connections answer from.
pub(crate) struct Handler {
    pub(crate) zone: ArcSwap<Zone>,
    pub(crate) forwarder: Forwarder,
}

/// What to do with a message.
pub(super) enum Outcome {
    /// The reply is written.
    Reply,
    /// Nobody gets a reply.
    Silence,
    /// An upstream has to be asked first.
    Later(Later),
}

/// A question that waits for an upstream.
pub(super) struct Later {
    ask: Ask,
    /// Aliases of ours that go before the upstream's answer.
    aliases: Option<Answer>,
    _admission: OwnedSemaphorePermit,
}

impl Handler {
    /// Answers a message out of a zone, or says what it has to wait for.
    pub(super) fn respond(
        &self,
        zone: &Zone,
        message: &[u8],
        transport: Transport,
        tally: &mut Tally,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(refusal) => return refuse(refusal, message, tally, out),
        };
        let limit = limit(&query, transport);
        if let Some((rcode, extended)) = unsuitable(&query) {
            tally.request(Domain::Rest, query.record_type);
            tally.response(Domain::Rest, rcode);
            write_failure(&query, rcode, &extended, limit, out);
            return Outcome::Reply;
        }
        // Differs from question to question, without a random number for each.
        let rotation = u32::from(query.id());
        let question = Question {
            name: query.name(),
            record_type: query.record_type,
            rotation,
        };
        match zone.answer(question) {
            Verdict::Elsewhere => self.elsewhere(&query, limit, tally, out),
            Verdict::Ours {
                answer,
                reason,
                chase: None,
            } => {
                tally.request(Domain::Cluster, query.record_type);
                tally.response(Domain::Cluster, answer.rcode);
                tracing::trace!(?query, ?reason, "answered from the zone");
                let extended = extended(reason);
                encode(
                    &query,
                    Reply {
                        answer: &answer,
                        extended: extended.as_ref(),
                    },
                    limit,
                    out,
                );
                Outcome::Reply
            }
            Verdict::Ours {
                answer,
                chase: Some(target),
                ..
            } => {
                tally.request(Domain::Cluster, query.record_type);
                let ask = Ask::for_target(&query, target.wire());
                match self.forwarder.admit() {
                    Ok(admission) => Outcome::Later(Later {
                        ask,
                        aliases: Some(answer),
                        _admission: admission,
                    }),
                    Err(failure) => {
                        tally.response(Domain::Cluster, Rcode::ServFail);
                        write_broken_chase(&query, answer, failure, limit, out);
                        Outcome::Reply
                    }
                }
            }
        }
    }

    fn elsewhere(&self, query: &Query<'_>, limit: usize, tally: &mut Tally, out: &mut Vec<u8>) -> Outcome {
        tally.request(Domain::Rest, query.record_type);
        if self.forwarder.is_loop_probe(query) {
            tally.response(Domain::Rest, Rcode::Refused);
            let extended = Extended {
                code: 18,
                text: "a probe for forwarding loops",
            };
            write_failure(query, Rcode::Refused, &extended, limit, out);
            return Outcome::Reply;
        }
        let ask = Ask::new(query);
        let now = Instant::now();
        if let Some(stored) = self.forwarder.cached(&ask, now) {
            stats::cache(true, stored.is_negative());
            tally.response(Domain::Rest, stored.rcode());
            stored.write(query, limit, now, out);
            return Outcome::Reply;
        }
        stats::cache(false, false);
        match self.forwarder.admit() {
            Ok(admission) => Outcome::Later(Later {
                ask,
                aliases: None,
                _admission: admission,
            }),
            Err(failure) => {
                let rcode = rcode(failure);
                tally.response(Domain::Rest, rcode);
                write_failure(query, rcode, &failure.extended(), limit, out);
                Outcome::Reply
            }
        }
    }

    /// Asks the upstream and writes the reply. Says how it ended, and for whose names.
    pub(super) async fn finish(
        &self,
        later: Later,
        message: &[u8],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Option<(Domain, Rcode)> {
        let Later {
            ask,
            aliases,
            _admission,
        } = later;
        let outcome = self.forwarder.resolve(ask).await;
        let query = Query::parse(message).ok()?;
        let limit = limit(&query, transport);
        let now = Instant::now();
        match (outcome, aliases) {
            (Ok(stored), None) => {
                stored.write(&query, limit, now, out);
                Some((Domain::Rest, stored.rcode()))
            }
            (Ok(stored), Some(aliases)) => {
                if write_chased(&query, &aliases, &stored, limit, now, out).is_none() {
                    write_broken_chase(&query, aliases, Failure::NoAnswer, limit, out);
                }
                Some((Domain::Cluster, stored.rcode()))
            }
            (Err(failure), None) => {
                let rcode = rcode(failure);
                write_failure(&query, rcode, &failure.extended(), limit, out);
                Some((Domain::Rest, rcode))
            }
            (Err(failure), Some(aliases)) => {
                write_broken_chase(&query, aliases, failure, limit, out);
                Some((Domain::Cluster, Rcode::ServFail))
            }
        }
    }
}

fn limit(query: &Query<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => TCP_MAX,
    }
}

/// What no name is looked up for.
fn unsuitable(query: &Query<'_>) -> Option<(Rcode, Extended)> {
    let (rcode, code, text) = match query.record_type {
        _ if query.edns.is_some_and(|edns| edns.version != 0) => {
            (Rcode::BadVers, 0, "only version 0 is known")
        }
        _ if query.class != CLASS_IN => (Rcode::Refused, 21, "only class IN is served"),
        RecordType::AXFR | RecordType::IXFR => (Rcode::Refused, 18, "no zone transfer"),
        RecordType::OPT | RecordType::TSIG => (Rcode::FormErr, 0, "no type to ask for"),
        _ => return None,
    };
    Some((rcode, Extended { code, text }))
}

fn rcode(failure: Failure) -> Rcode {
    match failure {
        Failure::Busy => Rcode::Refused,
        Failure::NoUpstream | Failure::Loop | Failure::AllDown | Failure::NoAnswer => Rcode::ServFail,
    }
}

fn extended(reason: Reason) -> Option<Extended> {
    match reason {
        Reason::NotSynced => Some(Extended {
            code: 14,
            text: "the cluster's Services are not known yet",
        }),
        Reason::AliasLoop => Some(Extended {
            code: 0,
            text: "ExternalName Services point at each other",
        }),
        Reason::Found | Reason::NoSuchType | Reason::Missing(_) => None,
    }
}

fn refuse(refusal: Refusal, message: &[u8], tally: &mut Tally, out: &mut Vec<u8>) -> Outcome {
    let rcode = match refusal {
        Refusal::Ignore => {
            tally.dropped();
            return Outcome::Silence;
        }
        Refusal::Malformed => Rcode::FormErr,
        Refusal::Opcode => Rcode::NotImp,
    };
    tally.request(Domain::Rest, RecordType(0));
    tally.response(Domain::Rest, rcode);
    encode_header_only(message, rcode, out);
    Outcome::Reply
}

fn write_failure(query: &Query<'_>, rcode: Rcode, extended: &Extended, limit: usize, out: &mut Vec<u8>) {
    let answer = Answer::empty(rcode, false);
    encode(
        query,
        Reply {
            answer: &answer,
            extended: Some(extended),
        },
        limit,
        out,
    );
}

/// Our aliases lead out of the cluster and nobody could be asked: they are told, but as a failure, lest the client take
/// them for the whole answer.
fn write_broken_chase(
    query: &Query<'_>,
    mut aliases: Answer,
    failure: Failure,
    limit: usize,
    out: &mut Vec<u8>,
) {
    aliases.rcode = Rcode::ServFail;
    let extended = failure.extended();
    encode(
        query,
        Reply {
            answer: &aliases,
            extended: Some(&extended),
        },
        limit,
        out,
    );
}

/// A reply to what does not even fit a buffer.
pub(super) fn too_long(message: &[u8], tally: &mut Tally, out: &mut Vec<u8>) {
    if message.len() >= wire::HEADER && message[2] & 0x80 == 0 {
        refuse(Refusal::Malformed, message, tally, out);
    } else {
        tally.dropped();
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::server::Server;

    fn replied(message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let server = Server::new(Config {
            upstreams: Some(Vec::new()),
            ..Config::default()
        });
        let mut tally = Tally::new(([10, 96, 0, 10], 53).into(), "cluster.local.".into(), transport);
        let mut out = Vec::new();
        let zone = server.handler.zone.load();
        match server
            .handler
            .respond(&zone, message, transport, &mut tally, &mut out)
        {
            Outcome::Reply => Some(out),
            Outcome::Silence => None,
            Outcome::Later(_) => panic!("there is nobody to wait for"),
        }
    }

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\
        \x05_http\x04_tcp\x03web\x07default\x03svc\x07cluster\x05local\0\0\x21\0\x01\
        \0\0\x29\x04\xd0\0\0\0\0\0\0";

    #[test]
    fn replies_are_never_answered() {
        let mut message = QUESTION.to_vec();
        assert!(replied(&message, Transport::Udp).is_some());
        message[2] |= 0x80;
        assert_eq!(
            replied(&message, Transport::Udp),
            None,
            "two servers would talk to each other for ever"
        );
        assert_eq!(replied(&message[..11], Transport::Udp), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_the_reply_can_be_read(
            changes in prop::collection::vec((0..QUESTION.len(), any::<u8>()), 0..8),
            cut in 0..QUESTION.len(),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            tcp in any::<bool>(),
        ) {
            let mut message = QUESTION.to_vec();
            for (at, byte) in changes {
                message[at] = byte;
            }
            message.truncate(QUESTION.len() - cut * usize::from(cut % 3 == 0));
            message.extend_from_slice(&tail[..tail.len() * (cut % 2)]);
            let transport = if tcp { Transport::Tcp } else { Transport::Udp };
            if let Some(reply) = replied(&message, transport) {
                prop_assert!(tcp || reply.len() <= wire::UDP_MAX);
                prop_assert_eq!(&reply[..2], &message[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
                prop_assert!(Message::from_vec(&reply).is_ok(), "{:?}", reply);
            }
        }
    }
}
