//! DNS messages on the wire: reading questions and writing answers.
//!
//! Written by hand for the few record types of the cluster zone: a question for a Service costs no more than its own
//! bytes here, while what upstreams say may be anything and goes through `hickory-proto` where it must be taken apart.

mod encode;
mod query;
mod record;
mod scan;

#[cfg(test)]
mod tests;

pub use encode::{Extended, Reply, encode, encode_header_only};
pub(crate) use encode::{begin, opt_record};
pub use query::{Edns, Query, Refusal};
pub use record::{Answer, Data, Owner, Rcode, Record, RecordType, Soa};
pub(crate) use scan::{Scanned, scan};

/// Length of the header.
pub const HEADER: usize = 12;
/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1).
pub const UDP_PLAIN: usize = 512;
/// What we send at most over UDP, and tell others to send: never fragmented (dnsflagday.net/2020).
pub const UDP_MAX: usize = 1232;
/// What TCP carries.
pub const TCP_MAX: usize = 65_535;

/// Reads a big-endian number.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Reads a big-endian number.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}
