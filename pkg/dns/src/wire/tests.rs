//! What we write, read by another implementation, and what strangers write, read by us.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::{DNSClass, Name as TheirName, RecordType as TheirType};
use proptest::prelude::*;

use super::*;
use crate::name::Name;

fn question(name: &str, record_type: TheirType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(TheirName::from_ascii(name).unwrap(), record_type));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn a_record(owner: Owner, last: u8) -> Record {
    Record {
        owner,
        ttl: 30,
        data: Data::A([10, 0, 0, last].into()),
    }
}

fn written(query: &[u8], answer: &Answer, limit: usize) -> Message {
    let query = Query::parse(query).unwrap();
    let mut out = Vec::new();
    encode(
        &query,
        Reply {
            answer,
            extended: None,
        },
        limit,
        &mut out,
    );
    assert!(out.len() <= limit);
    Message::from_vec(&out).unwrap()
}

#[test]
fn questions_are_read() {
    let bytes = question("WWW.Example.com.", TheirType::AAAA, Some(4096));
    let query = Query::parse(&bytes).unwrap();
    assert_eq!(query.name(), b"\x03www\x07example\x03com\x00");
    assert_eq!(
        (query.id(), query.record_type, query.class),
        (4711, RecordType::AAAA, 1)
    );
    assert_eq!(
        query.edns,
        Some(super::Edns {
            payload: 4096,
            dnssec_ok: false,
            version: 0
        })
    );
    assert_eq!(query.udp_limit(), UDP_MAX);
    assert_eq!(
        Query::parse(&question("a.", TheirType::A, None))
            .unwrap()
            .udp_limit(),
        512
    );
    assert_eq!(
        Query::parse(&question("a.", TheirType::A, Some(10)))
            .unwrap()
            .udp_limit(),
        512
    );
}

#[test]
fn what_is_no_question_is_refused() {
    let good = question("www.example.com.", TheirType::A, Some(1232));
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Query::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(changed(|b| b.truncate(11)), Refusal::Ignore);
    assert_eq!(changed(|b| b[2] |= 0x80), Refusal::Ignore);
    assert_eq!(changed(|b| b[2] |= 0x28), Refusal::Opcode);
    assert_eq!(changed(|b| b[5] = 0), Refusal::Malformed);
    assert_eq!(changed(|b| b[5] = 2), Refusal::Malformed);
    assert_eq!(changed(|b| b.truncate(12)), Refusal::Malformed);
    assert_eq!(changed(|b| b.truncate(30)), Refusal::Malformed);
    assert_eq!(changed(|b| b[12] = 0xc0), Refusal::Malformed);
    assert_eq!(changed(|b| b[12] = 64), Refusal::Malformed);
    assert_eq!(changed(|b| b[11] = 2), Refusal::Malformed);
    // Two OPT records.
    assert_eq!(
        changed(|b| {
            b[11] = 2;
            b.extend_from_slice(&[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
        }),
        Refusal::Malformed
    );
}

/// An answer with a record of each kind.
fn one_of_each() -> Answer {
    let zone: Name = "cluster.local".parse().unwrap();
    let host: Name = "db-0.db.prod.svc.cluster.local".parse().unwrap();
    let soa = Soa {
        zone: zone.clone(),
        server: "ns.dns.cluster.local".parse().unwrap(),
        mailbox: "hostmaster.cluster.local".parse().unwrap(),
        serial: 7,
        minimum: 30,
    };
    let record = |data| Record {
        owner: Owner::Question,
        ttl: 30,
        data,
    };
    Answer {
        records: vec![
            a_record(Owner::Question, 1),
            record(Data::Aaaa("fd00::1".parse().unwrap())),
            record(Data::Cname(host.clone())),
            record(Data::Srv {
                weight: 50,
                port: 80,
                target: host.clone(),
            }),
            record(Data::Ptr("elsewhere.example.com".parse().unwrap())),
            record(Data::Ns("ns.example.com".parse().unwrap())),
            record(Data::Txt("1.1.0")),
        ],
        authority: vec![Record {
            owner: Owner::Name(zone),
            ttl: 30,
            data: Data::Soa(soa.into()),
        }],
        additional: vec![a_record(Owner::Name(host), 2)],
        ..Answer::empty(Rcode::NoError, true)
    }
}

#[test]
fn every_kind_of_record_can_be_read_by_others() {
    let answer = one_of_each();
    let message = written(
        &question("DB.prod.svc.Cluster.local.", TheirType::A, Some(1232)),
        &answer,
        UDP_MAX,
    );
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    assert_eq!(
        message.queries[0].name().to_ascii(),
        "DB.prod.svc.Cluster.local.",
        "the client's own case"
    );
    let texts: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
    assert_eq!(
        texts,
        [
            "10.0.0.1",
            "fd00::1",
            "db-0.DB.prod.svc.Cluster.local.",
            "0 50 80 db-0.db.prod.svc.cluster.local.",
            "elsewhere.example.com.",
            "ns.example.com.",
            "1.1.0"
        ]
    );
    assert!(
        message
            .answers
            .iter()
            .all(|r| r.ttl == 30 && r.dns_class == DNSClass::IN)
    );
    assert_eq!(message.authorities[0].name.to_ascii(), "Cluster.local.");
    assert!(
        message.authorities[0]
            .data
            .to_string()
            .contains("7 7200 1800 86400 30")
    );
    assert_eq!(
        message.additionals[0].name.to_ascii(),
        "db-0.DB.prod.svc.Cluster.local."
    );
    assert_eq!(
        message.edns.as_ref().map(hickory_proto::op::Edns::max_payload),
        Some(1232)
    );
}

#[test]
fn what_does_not_fit_is_cut_and_said() {
    let answer = Answer {
        records: (0..200).map(|last| a_record(Owner::Question, last)).collect(),
        ..Answer::empty(Rcode::NoError, true)
    };
    for (edns, limit, count) in [(None, 512, 29), (Some(1232), UDP_MAX, 73)] {
        let message = written(
            &question("db.prod.svc.cluster.local.", TheirType::A, edns),
            &answer,
            limit,
        );
        assert!(message.metadata.truncation);
        assert_eq!(message.answers.len(), count);
        assert_eq!(message.edns.is_some(), edns.is_some());
    }
    let whole = written(
        &question("db.prod.svc.cluster.local.", TheirType::A, None),
        &answer,
        TCP_MAX,
    );
    assert!(!whole.metadata.truncation && whole.answers.len() == 200);
    // Additional records are left out in silence.
    let answer = Answer {
        additional: answer.records,
        ..Answer::empty(Rcode::NoError, true)
    };
    let message = written(
        &question("db.prod.svc.cluster.local.", TheirType::A, None),
        &answer,
        512,
    );
    assert!(!message.metadata.truncation && message.additionals.len() == 29);
}

#[test]
fn errors_are_explained_to_those_who_understand() {
    let extended = Extended {
        code: 22,
        text: "nobody there",
    };
    let bytes = question("a.", TheirType::A, Some(1232));
    let query = Query::parse(&bytes).unwrap();
    let mut out = Vec::new();
    let answer = Answer::empty(Rcode::BadVers, false);
    encode(
        &query,
        Reply {
            answer: &answer,
            extended: Some(&extended),
        },
        UDP_MAX,
        &mut out,
    );
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(u16::from(message.metadata.response_code), 16);
    assert!(out.ends_with(b"\x00\x0f\x00\x0e\x00\x16nobody there"));
    let mut out = Vec::new();
    encode_header_only(&bytes, Rcode::FormErr, &mut out);
    let message = Message::from_vec(&out).unwrap();
    assert_eq!(
        (message.metadata.id, message.metadata.response_code),
        (4711, ResponseCode::FormErr)
    );
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        _ = Query::parse(&bytes);
        _ = scan(&bytes);
    }

    /// Bytes that nearly are a question or an answer get further than random ones.
    #[test]
    fn no_mutation_panics(
        at in prop::collection::vec((0..80_usize, any::<u8>()), 0..6), cut in 0..80_usize, edns in any::<bool>()
    ) {
        let mut bytes = question("_http._tcp.web.default.svc.cluster.local.", TheirType::SRV, edns.then_some(1232));
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        for (at, byte) in at {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        _ = scan(&bytes);
        if let Ok(query) = Query::parse(&bytes) {
            let answer = Answer {
                records: vec![a_record(Owner::Question, 1), a_record(Owner::Name("x.cluster.local".parse().unwrap()), 2)],
                ..Answer::empty(Rcode::NoError, true)
            };
            let mut out = Vec::new();
            encode(&query, Reply { answer: &answer, extended: None }, 512, &mut out);
            prop_assert!(out.len() <= 512);
            prop_assert!(Message::from_vec(&out).is_ok());
        }
    }
}

/// An OPT record is of the additional section alone: elsewhere, cutting it off would leave a count that is wrong.
#[test]
fn options_among_the_answers_are_no_message() {
    let mut message = question("www.example.com.", TheirType::A, None);
    message[2] |= 0x80;
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    let mut additional = message.clone();
    additional[11] = 1;
    additional.extend(opt);
    assert!(scan(&additional).is_some());
    message[7] = 1;
    message.extend(opt);
    assert_eq!(scan(&message), None);
}
