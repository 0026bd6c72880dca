//! The kernel's table of connections: reading it and deleting exact entries. Numbers as in
//! `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::nft::attr::{Reader, Writer};
use crate::nft::batch::{finish_header, put_header};
use crate::nft::{Error, Family, Socket};

/// `NFNL_SUBSYS_CTNETLINK << 8`
const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// The client's SYN was seen, and no answer (`TCP_CONNTRACK_SYN_SENT`).
const TCP_SYN_SENT: u8 = 1;
/// First of the states in which a TCP connection carries no more data (`TCP_CONNTRACK_LAST_ACK`; then TIME_WAIT, CLOSE).
const TCP_LAST_ACK: u8 = 6;

/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Protocol number.
    pub protocol: u8,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// As the client sent the first packet.
    pub original: Tuple,
    /// As answers arrive: its source is where the connection was translated to.
    pub reply: Tuple,
    /// Of a TCP connection, how far it is (`enum tcp_conntrack`).
    tcp_state: Option<u8>,
    /// The kernel's number for the entry, so that a later connection with the same addresses is not mistaken for it.
    id: u32,
    zone: u16,
}

impl Entry {
    /// Whether it is a TCP connection that nobody has answered yet.
    pub fn is_unanswered(&self) -> bool {
        self.tcp_state == Some(TCP_SYN_SENT)
    }

    /// Whether data may still come: a TCP connection that both sides have closed stays in the table for a while.
    pub fn is_live(&self) -> bool {
        self.tcp_state.is_none_or(|state| state < TCP_LAST_ACK)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple {
            source,
            destination,
            protocol,
        } = self.original;
        write!(
            f,
            "protocol {protocol} {source} -> {destination} at {}",
            self.reply.source
        )
    }
}

/// Lists the connections of a family and protocol that `keep` picks.
///
/// # Errors
/// When the kernel has no conntrack or permission is lacking.
pub fn list(
    socket: &mut Socket,
    family: Family,
    protocol: u8,
    mut keep: impl FnMut(&Entry) -> bool,
) -> Result<Vec<Entry>, Error> {
    let mut request = Vec::new();
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    put_header(
        &mut request,
        SUBSYSTEM | IPCTNL_MSG_CT_GET,
        flags,
        family.number(),
        0,
    );
    finish_header(&mut request, 0);
    let mut found = Vec::new();
    socket.dump(
        &mut request,
        "connections",
        || {},
        |_, body| {
            if let Some(entry) = read(body).filter(|e| e.original.protocol == protocol && keep(e)) {
                found.push(entry);
            }
        },
    )?;
    Ok(found)
}

/// Deletes one entry, and says whether it was still there.
///
/// # Errors
/// When the kernel refuses.
pub fn delete(socket: &mut Socket, entry: &Entry) -> Result<bool, Error> {
    let mut request = Vec::new();
    let family = Family::of(entry.original.source.ip());
    let flags = NLM_F_REQUEST | NLM_F_ACK;
    put_header(
        &mut request,
        SUBSYSTEM | IPCTNL_MSG_CT_DELETE,
        flags,
        family.number(),
        0,
    );
    let mut w = Writer::new(&mut request);
    w.nest(CTA_TUPLE_ORIG, |w| write_tuple(w, &entry.original))
        .be32(CTA_ID, entry.id);
    if entry.zone != 0 {
        w.raw(CTA_ZONE, &entry.zone.to_be_bytes());
    }
    finish_header(&mut request, 0);
    match socket.request(&mut request, "delete a connection") {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_tuple(w: &mut Writer<'_>, tuple: &Tuple) {
    w.nest(1, |w| match (tuple.source.ip(), tuple.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            w.raw(1, &source.octets()).raw(2, &destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            w.raw(3, &source.octets()).raw(4, &destination.octets());
        }
        // A tuple read from the kernel has one family.
        _ => {}
    });
    w.nest(2, |w| {
        w.raw(1, &[tuple.protocol]);
        w.raw(2, &tuple.source.port().to_be_bytes())
            .raw(3, &tuple.destination.port().to_be_bytes());
    });
}

pub(crate) fn read(body: &[u8]) -> Option<Entry> {
    let attributes = Reader::new(body);
    let number = |kind| attributes.find(kind).and_then(|v| <[u8; 4]>::try_from(v).ok());
    Some(Entry {
        original: read_tuple(attributes.find(CTA_TUPLE_ORIG)?)?,
        reply: read_tuple(attributes.find(CTA_TUPLE_REPLY)?)?,
        tcp_state: attributes.find(CTA_PROTOINFO).and_then(read_tcp_state),
        id: number(CTA_ID).map_or(0, u32::from_be_bytes),
        zone: attributes
            .find(CTA_ZONE)
            .and_then(|v| v.try_into().ok())
            .map_or(0, u16::from_be_bytes),
    })
}

fn read_tcp_state(bytes: &[u8]) -> Option<u8> {
    let tcp = Reader::new(Reader::new(bytes).find(CTA_PROTOINFO_TCP)?);
    tcp.find(CTA_PROTOINFO_TCP_STATE)?.first().copied()
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let tuple = Reader::new(bytes);
    let (ip, proto) = (Reader::new(tuple.find(1)?), Reader::new(tuple.find(2)?));
    let address = |v4: u16, v6: u16| {
        let four = ip
            .find(v4)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
            .map(IpAddr::from);
        four.or_else(|| {
            ip.find(v6)
                .and_then(|b| <[u8; 16]>::try_from(b).ok())
                .map(IpAddr::from)
        })
    };
    // ICMP has no ports.
    let port = |kind| {
        proto
            .find(kind)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u16::from_be_bytes)
    };
    Some(Tuple {
        source: SocketAddr::new(address(1, 3)?, port(2)),
        destination: SocketAddr::new(address(2, 4)?, port(3)),
        protocol: *proto.find(1)?.first()?,
    })
}
