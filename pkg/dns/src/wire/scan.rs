//! Walking over an answer of an upstream: where its times to live are, and whether it holds together.

use super::query::flags;
use super::{HEADER, RecordType, u16_at, u32_at};

/// What a cache and a relay need to know about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The response code of the header.
    pub(crate) rcode: u8,
    /// Whether the answer was cut.
    pub(crate) truncated: bool,
    /// Where the records end that the client gets: all but OPT and what follows it.
    pub(crate) end: usize,
    /// How many additional records lie before [`Scanned::end`].
    pub(crate) additional: u16,
    /// Where the times to live are.
    pub(crate) ttl_at: Vec<u16>,
    /// The least time to live among the answers.
    pub(crate) answer_ttl: Option<u32>,
    /// How long "there is none" holds, from the SOA (RFC 2308, 5).
    pub(crate) negative_ttl: Option<u32>,
}

/// Walks over an answer; `None` when it does not parse.
pub(crate) fn scan(bytes: &[u8]) -> Option<Scanned> {
    let header = u16_at(bytes, 2).filter(|_| bytes.len() >= HEADER)?;
    let counts = [u16_at(bytes, 6)?, u16_at(bytes, 8)?, u16_at(bytes, 10)?];
    let mut at = HEADER;
    for _ in 0..u16_at(bytes, 4)? {
        at = skip_name(bytes, at)? + 4;
    }
    let mut found = Scanned {
        rcode: (header & 0xf) as u8,
        truncated: header & flags::TC != 0,
        end: at,
        additional: 0,
        ttl_at: Vec::new(),
        answer_ttl: None,
        negative_ttl: None,
    };
    if at > bytes.len() {
        return None;
    }
    let mut past_opt = false;
    for (section, count) in counts.into_iter().enumerate() {
        for _ in 0..count {
            let fixed = skip_name(bytes, at)?;
            let kind = RecordType(u16_at(bytes, fixed)?);
            let ttl = u32_at(bytes, fixed + 4)?;
            let next = fixed + 10 + usize::from(u16_at(bytes, fixed + 8)?);
            if next > bytes.len() {
                return None;
            }
            if kind == RecordType::OPT && section != 2 {
                // RFC 6891, 6.1.1. What follows would be cut off, while the section's count still says that it is there.
                return None;
            }
            past_opt |= kind == RecordType::OPT;
            if !past_opt {
                found.end = next;
                found.additional += u16::from(section == 2);
                found.ttl_at.push(u16::try_from(fixed + 4).ok()?);
                // RFC 2181, 8: a time with the highest bit set counts as 0.
                let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                match section {
                    0 => found.answer_ttl = Some(found.answer_ttl.map_or(ttl, |least| least.min(ttl))),
                    1 if kind == RecordType::SOA => {
                        found.negative_ttl = Some(ttl.min(u32_at(bytes, next.checked_sub(4)?)?));
                    }
                    _ => {}
                }
            }
            at = next;
        }
    }
    Some(found)
}

/// The position behind a name, compressed or not; `None` when it runs out of the message.
pub(crate) fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return (at + 2 <= bytes.len()).then_some(at + 2),
            length if length & 0xc0 != 0 => return None,
            length => at += 1 + usize::from(length),
        }
    }
}
