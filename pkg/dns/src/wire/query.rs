//! Reading a question.

use std::fmt;

use super::{HEADER, RecordType, UDP_MAX, UDP_PLAIN, u16_at};
use crate::name::{LABEL_MAX, NAME_MAX, fmt_wire};

/// Flag bits of the second header word.
pub(crate) mod flags {
    /// Response.
    pub(crate) const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub(crate) const AA: u16 = 0x0400;
    /// Truncated.
    pub(crate) const TC: u16 = 0x0200;
    /// Recursion desired.
    pub(crate) const RD: u16 = 0x0100;
    /// Recursion available.
    pub(crate) const RA: u16 = 0x0080;
    /// Checking disabled.
    pub(crate) const CD: u16 = 0x0010;
    /// Where the opcode is.
    pub(crate) const OPCODE: u16 = 0x7800;
}

/// What the client's OPT record says (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// What the client takes over UDP.
    pub payload: u16,
    /// Whether it wants signatures.
    pub dnssec_ok: bool,
    /// Version; ours is 0.
    pub version: u8,
}

/// Why a message is not answered as a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Shorter than a header, or itself an answer: nobody waits for a reply, and replying could start a loop.
    Ignore,
    /// FORMERR: it does not parse.
    Malformed,
    /// NOTIMP: notify, update and the like.
    Opcode,
}

/// A question: one name, as practice has it.
pub struct Query<'a> {
    bytes: &'a [u8],
    lower: [u8; NAME_MAX],
    name_length: usize,
    /// What is asked for.
    pub record_type: RecordType,
    /// Nearly always 1, the Internet.
    pub class: u16,
    /// The client's EDNS, if it has any.
    pub edns: Option<Edns>,
}

impl<'a> Query<'a> {
    /// Takes a message apart.
    ///
    /// # Errors
    /// When it is no question.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let flags = u16_at(bytes, 2)
            .filter(|_| bytes.len() >= HEADER)
            .ok_or(Refusal::Ignore)?;
        if flags & flags::QR != 0 {
            return Err(Refusal::Ignore);
        }
        if flags & flags::OPCODE != 0 {
            return Err(Refusal::Opcode);
        }
        if u16_at(bytes, 4) != Some(1) {
            return Err(Refusal::Malformed);
        }
        let mut query = Self {
            bytes,
            lower: [0; NAME_MAX],
            name_length: 0,
            record_type: RecordType(0),
            class: 0,
            edns: None,
        };
        query.read_name()?;
        let at = HEADER + query.name_length;
        query.record_type = RecordType(u16_at(bytes, at).ok_or(Refusal::Malformed)?);
        query.class = u16_at(bytes, at + 2).ok_or(Refusal::Malformed)?;
        query.edns = read_edns(bytes, at + 4)?;
        Ok(query)
    }

    /// The transaction's number.
    pub fn id(&self) -> u16 {
        u16_at(self.bytes, 0).unwrap_or_default()
    }

    /// The second header word.
    pub(crate) fn flags(&self) -> u16 {
        u16_at(self.bytes, 2).unwrap_or_default()
    }

    /// Whether the client forbids validation on its behalf.
    pub(crate) fn checking_disabled(&self) -> bool {
        self.flags() & flags::CD != 0
    }

    /// The name in wire format, lower case, with the root label.
    pub fn name(&self) -> &[u8] {
        &self.lower[..self.name_length]
    }

    /// The question section as the client wrote it, to be echoed.
    pub(crate) fn raw_question(&self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + self.name_length + 4]
    }

    /// How long a reply over UDP may be.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_PLAIN, |edns| {
            usize::from(edns.payload).clamp(UDP_PLAIN, UDP_MAX)
        })
    }

    /// The whole message.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// No compression: nothing stands before the question that a pointer could mean.
    fn read_name(&mut self) -> Result<(), Refusal> {
        let mut at = 0;
        loop {
            let length = *self.bytes.get(HEADER + at).ok_or(Refusal::Malformed)?;
            let end = at + 1 + usize::from(length);
            if usize::from(length) > LABEL_MAX || end > NAME_MAX {
                return Err(Refusal::Malformed);
            }
            let label = self
                .bytes
                .get(HEADER + at..HEADER + end)
                .ok_or(Refusal::Malformed)?;
            let lower = &mut self.lower[at..end];
            lower.copy_from_slice(label);
            // The length byte is below 64: lowering leaves it alone ('A' is 65).
            lower.make_ascii_lowercase();
            at = end;
            if length == 0 {
                self.name_length = at;
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_wire(self.name(), f)?;
        write!(f, " {} id {}", self.record_type, self.id())
    }
}

/// Looks for the OPT record behind the question. Other records (a TSIG, say) are passed over.
fn read_edns(bytes: &[u8], mut at: usize) -> Result<Option<Edns>, Refusal> {
    let count = [6, 8, 10]
        .into_iter()
        .map(|field| u16_at(bytes, field).map_or(0, usize::from))
        .sum::<usize>();
    let mut edns = None;
    for _ in 0..count {
        let owner = at;
        at = super::scan::skip_name(bytes, at).ok_or(Refusal::Malformed)?;
        let fixed = bytes.get(at..at + 10).ok_or(Refusal::Malformed)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        if RecordType(u16::from_be_bytes([fixed[0], fixed[1]])) == RecordType::OPT {
            if edns.is_some() || bytes[owner] != 0 {
                return Err(Refusal::Malformed);
            }
            edns = Some(Edns {
                payload: u16::from_be_bytes([fixed[2], fixed[3]]),
                version: fixed[5],
                dnssec_ok: fixed[6] & 0x80 != 0,
            });
        }
        at += 10 + length;
        if at > bytes.len() {
            return Err(Refusal::Malformed);
        }
    }
    Ok(edns)
}
