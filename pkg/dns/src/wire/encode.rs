//! Writing an answer.

use std::collections::HashMap;

use super::query::flags;
use super::{Answer, Data, HEADER, Owner, Query, Rcode, Record, RecordType, Soa, UDP_MAX};
use crate::name::Name;

/// An extended DNS error (RFC 8914): why, for people. Told only to clients that speak EDNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extended {
    /// The registered number.
    pub code: u16,
    /// In words.
    pub text: &'static str,
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// The sections.
    pub answer: &'a Answer,
    /// Why it failed, if it did.
    pub extended: Option<&'a Extended>,
}

/// Writes the answer to a question into `out`, at most `limit` bytes long. What does not fit is left out: silently when
/// it is additional, else with the truncation bit.
pub fn encode(query: &Query<'_>, reply: Reply<'_>, limit: usize, out: &mut Vec<u8>) {
    let Reply { answer, extended } = reply;
    begin(query.id(), query.flags(), answer.rcode, out);
    if answer.authoritative {
        out[2] |= (flags::AA >> 8) as u8;
    }
    out[5] = 1;
    out.extend_from_slice(query.raw_question());
    let opt = query
        .edns
        .map(|edns| opt_record(answer.rcode, edns.dnssec_ok, extended));
    let room = limit.saturating_sub(opt.as_ref().map_or(0, Vec::len));
    let mut writer = Writer {
        out,
        question: query.name(),
        written: HashMap::new(),
    };
    let mut full = false;
    let sections = [
        (6, &answer.records),
        (8, &answer.authority),
        (10, &answer.additional),
    ];
    for (field, records) in sections {
        let mut count = 0_u16;
        for record in records {
            if full {
                break;
            }
            let start = writer.out.len();
            writer.record(record);
            if writer.out.len() > room || count == u16::MAX - 1 {
                writer.out.truncate(start);
                full = true;
                if field != 10 {
                    writer.out[2] |= (flags::TC >> 8) as u8;
                }
            } else {
                count += 1;
            }
        }
        writer.out[field..field + 2].copy_from_slice(&count.to_be_bytes());
    }
    if let Some(opt) = opt {
        out.extend_from_slice(&opt);
        let additional = u16::from_be_bytes([out[10], out[11]]) + 1;
        out[10..12].copy_from_slice(&additional.to_be_bytes());
    }
}

/// Writes an answer that is a header alone: to what could not be read.
pub fn encode_header_only(message: &[u8], rcode: Rcode, out: &mut Vec<u8>) {
    let word = |at| super::u16_at(message, at).unwrap_or_default();
    begin(word(0), word(2), rcode, out);
}

/// The OPT record of a reply.
pub(crate) fn opt_record(rcode: Rcode, dnssec_ok: bool, extended: Option<&Extended>) -> Vec<u8> {
    let mut opt = vec![0, 0, RecordType::OPT.0 as u8];
    opt.extend_from_slice(&(UDP_MAX as u16).to_be_bytes());
    opt.extend_from_slice(&[(rcode as u8) >> 4, 0, u8::from(dnssec_ok) << 7, 0]);
    let text = extended.map_or("", |e| e.text);
    match extended {
        None => opt.extend_from_slice(&[0, 0]),
        Some(Extended { code, .. }) => {
            let length = text.len() as u16 + 2;
            opt.extend_from_slice(&(length + 4).to_be_bytes());
            opt.extend_from_slice(&[0, 15]);
            opt.extend_from_slice(&length.to_be_bytes());
            opt.extend_from_slice(&code.to_be_bytes());
            opt.extend_from_slice(text.as_bytes());
        }
    }
    opt
}

/// The header of a reply to a message with this number and these flags, all counts zero.
pub(crate) fn begin(id: u16, asked: u16, rcode: Rcode, out: &mut Vec<u8>) {
    let kept = asked & (flags::OPCODE | flags::RD | flags::CD);
    let word = flags::QR | flags::RA | kept | u16::from(rcode as u8 & 0xf);
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(&[0; HEADER - 4]);
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    question: &'a [u8],
    /// Where names stand that are no end of the question. Empty, hence free of cost, for nearly every answer.
    written: HashMap<Vec<u8>, u16>,
}

impl Writer<'_> {
    fn record(&mut self, record: &Record) {
        match &record.owner {
            Owner::Question => self.out.extend_from_slice(&[0xc0, HEADER as u8]),
            Owner::Name(name) => self.name(name),
        }
        self.out
            .extend_from_slice(&record.data.record_type().0.to_be_bytes());
        self.out.extend_from_slice(&[0, 1]);
        self.out.extend_from_slice(&record.ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        match &record.data {
            Data::A(ip) => self.out.extend_from_slice(&ip.octets()),
            Data::Aaaa(ip) => self.out.extend_from_slice(&ip.octets()),
            Data::Cname(name) | Data::Ptr(name) | Data::Ns(name) => self.name(name),
            Data::Srv { weight, port, target } => {
                for word in [0, *weight, *port] {
                    self.out.extend_from_slice(&word.to_be_bytes());
                }
                // RFC 2782: never compressed, but others may point here.
                self.remember(target.wire(), self.out.len());
                self.out.extend_from_slice(target.wire());
            }
            Data::Txt(text) => {
                self.out.push(text.len() as u8);
                self.out.extend_from_slice(text.as_bytes());
            }
            Data::Soa(soa) => self.soa(soa),
        }
        let length = (self.out.len() - length_at - 2) as u16;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }

    fn soa(&mut self, soa: &Soa) {
        // Nothing comes after a SOA that could point at these names.
        self.name_once(&soa.server);
        self.name_once(&soa.mailbox);
        let [refresh, retry, expire] = Soa::TIMES;
        for number in [soa.serial, refresh, retry, expire, soa.minimum] {
            self.out.extend_from_slice(&number.to_be_bytes());
        }
    }

    /// Writes a name, or as much of it as has not been written before, and a pointer.
    fn name(&mut self, name: &Name) {
        let start = self.out.len();
        let new = self.name_once(name);
        let wire = name.wire();
        let mut at = 0;
        while at < new {
            self.remember(&wire[at..], start + at);
            at += 1 + usize::from(wire[at]);
        }
    }

    /// Like [`name`](Self::name), without a note of where it stands. Says how many bytes stand before the pointer.
    fn name_once(&mut self, name: &Name) -> usize {
        let wire = name.wire();
        let mut at = 0;
        while wire[at] != 0 {
            let rest = &wire[at..];
            if let Some(offset) = self.in_question(rest).or_else(|| self.written.get(rest).copied()) {
                self.out.extend_from_slice(&wire[..at]);
                self.out.extend_from_slice(&(offset | 0xc000).to_be_bytes());
                return at;
            }
            at += 1 + usize::from(wire[at]);
        }
        self.out.extend_from_slice(wire);
        at
    }

    /// Remembers a name that stands at `offset`, whole.
    fn remember(&mut self, wire: &[u8], offset: usize) {
        if offset < 0x4000 && !self.written.contains_key(wire) {
            self.written.insert(wire.to_vec(), offset as u16);
        }
    }

    /// Where the name stands as an end of the question.
    fn in_question(&self, wire: &[u8]) -> Option<u16> {
        let start = self.question.len().checked_sub(wire.len())?;
        if &self.question[start..] != wire {
            return None;
        }
        // The bytes agree; they are the same name only if a label begins there.
        let mut at = 0;
        while at < start {
            at += 1 + usize::from(self.question[at]);
        }
        (at == start).then_some((HEADER + start) as u16)
    }
}
