//! An answer of an upstream, ready to be given to any client that asks the same.

use std::time::Instant;

use crate::wire::{self, HEADER, Query, Rcode, Scanned};

/// Authentic data: the upstream has validated.
const AD: u16 = 0x0020;
const TC: u8 = 0x02;

/// An answer as it came, with where its times to live are.
#[derive(Debug)]
pub(crate) struct Stored {
    bytes: Vec<u8>,
    facts: Scanned,
    at: Instant,
}

impl Stored {
    /// `None` when it does not parse.
    pub(crate) fn new(bytes: Vec<u8>, at: Instant) -> Option<Self> {
        let facts = wire::scan(&bytes)?;
        Some(Self { bytes, facts, at })
    }

    pub(crate) fn facts(&self) -> &Scanned {
        &self.facts
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it says that there is none.
    pub(crate) fn is_negative(&self) -> bool {
        self.facts.rcode != 0 || self.facts.answer_ttl.is_none()
    }

    pub(crate) fn rcode(&self) -> Rcode {
        match self.facts.rcode {
            0 => Rcode::NoError,
            1 => Rcode::FormErr,
            3 => Rcode::NxDomain,
            4 => Rcode::NotImp,
            5 => Rcode::Refused,
            _ => Rcode::ServFail,
        }
    }

    /// Seconds since it came.
    pub(crate) fn age(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX)
    }

    /// Writes it as the reply to a question for the same name (in whatever case). What is longer than `limit` is cut down
    /// to the question: half an answer helps nobody.
    pub(crate) fn write(&self, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) {
        let question = query.raw_question();
        let body_at = HEADER + question.len();
        wire::begin(query.id(), query.flags(), self.rcode(), out);
        out[3] = (out[3] & 0xf0) | self.facts.rcode;
        let validated = wire::u16_at(&self.bytes, 2).unwrap_or_default() & AD;
        out[3] |= validated as u8;
        out[5] = 1;
        out.extend_from_slice(question);
        let opt = query
            .edns
            .map(|edns| wire::opt_record(Rcode::NoError, edns.dnssec_ok, None));
        let length = self.facts.end + opt.as_ref().map_or(0, Vec::len);
        let mut additional = 0;
        match self.bytes.get(body_at..self.facts.end) {
            Some(body) if length <= limit && !self.facts.truncated => {
                out.extend_from_slice(body);
                out[6..10].copy_from_slice(&self.bytes[6..10]);
                additional = self.facts.additional;
                let age = self.age(now);
                for at in self.facts.ttl_at.iter().map(|&at| usize::from(at)) {
                    let ttl = wire::u32_at(&self.bytes, at).unwrap_or_default();
                    out[at..at + 4].copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
                }
            }
            _ => out[2] |= TC,
        }
        if let Some(opt) = opt {
            out.extend_from_slice(&opt);
            additional += 1;
        }
        out[10..12].copy_from_slice(&additional.to_be_bytes());
    }

    /// Whether it answers this question.
    pub(crate) fn answers(bytes: &[u8], id: u16, question: &[u8]) -> bool {
        let flags = wire::u16_at(bytes, 2).unwrap_or_default();
        let asked = bytes.get(HEADER..HEADER + question.len());
        wire::u16_at(bytes, 0) == Some(id)
            && flags & 0xf800 == 0x8000
            && wire::u16_at(bytes, 4) == Some(1)
            && asked.is_some_and(|asked| asked.eq_ignore_ascii_case(question))
    }
}
