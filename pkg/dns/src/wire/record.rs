//! Records and answers as values.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::name::Name;

/// Type of a record, or of a question.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordType(pub u16);

macro_rules! types {
    ($($name:ident = $number:literal),*) => {
        impl RecordType {
            $(#[doc = stringify!($name)] pub const $name: Self = Self($number);)*

            /// The mnemonic, for types that have one here.
            pub fn mnemonic(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

types!(
    A = 1,
    NS = 2,
    CNAME = 5,
    SOA = 6,
    PTR = 12,
    HINFO = 13,
    MX = 15,
    TXT = 16,
    AAAA = 28,
    SRV = 33,
    NAPTR = 35,
    DNAME = 39,
    OPT = 41,
    DS = 43,
    RRSIG = 46,
    DNSKEY = 48,
    SVCB = 64,
    HTTPS = 65,
    TSIG = 250,
    IXFR = 251,
    AXFR = 252,
    ANY = 255,
    CAA = 257
);

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mnemonic() {
            Some(name) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rcode {
    /// No error.
    NoError = 0,
    /// The question does not parse.
    FormErr = 1,
    /// We cannot answer just now.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// This server does not do that.
    NotImp = 4,
    /// This server will not do that.
    Refused = 5,
    /// An EDNS version that we do not know (an extended code: its upper bits travel in the OPT record).
    BadVers = 16,
}

impl Rcode {
    /// As it is written in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

/// Start of authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The zone.
    pub zone: Name,
    /// Its name server.
    pub server: Name,
    /// Whom to write to.
    pub mailbox: Name,
    /// Version of the zone.
    pub serial: u32,
    /// How long a negative answer holds.
    pub minimum: u32,
}

impl Soa {
    /// Refresh, retry and expire: for secondaries, of which there are none; the values of CoreDNS.
    pub(crate) const TIMES: [u32; 3] = [7200, 1800, 86400];
}

/// Whom a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// The name in the question, in the question's own case.
    Question,
    /// Some other name.
    Name(Name),
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// The name that this one stands for.
    Cname(Name),
    /// The name of an address.
    Ptr(Name),
    /// A name server.
    Ns(Name),
    /// Where a service is.
    Srv {
        /// Share among those of the same priority (the priority is always 0).
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: Name,
    },
    /// A text of at most 255 bytes.
    Txt(&'static str),
    /// Start of authority.
    Soa(Arc<Soa>),
}

impl Data {
    /// The type of such a record.
    pub fn record_type(&self) -> RecordType {
        match self {
            Self::A(_) => RecordType::A,
            Self::Aaaa(_) => RecordType::AAAA,
            Self::Cname(_) => RecordType::CNAME,
            Self::Ptr(_) => RecordType::PTR,
            Self::Ns(_) => RecordType::NS,
            Self::Srv { .. } => RecordType::SRV,
            Self::Txt(_) => RecordType::TXT,
            Self::Soa(_) => RecordType::SOA,
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(ip) => write!(f, "A {ip}"),
            Self::Aaaa(ip) => write!(f, "AAAA {ip}"),
            Self::Cname(name) => write!(f, "CNAME {name}"),
            Self::Ptr(name) => write!(f, "PTR {name}"),
            Self::Ns(name) => write!(f, "NS {name}"),
            Self::Srv { weight, port, target } => write!(f, "SRV 0 {weight} {port} {target}"),
            Self::Txt(text) => write!(f, "TXT {text:?}"),
            Self::Soa(soa) => {
                let [refresh, retry, expire] = Soa::TIMES;
                let Soa {
                    server,
                    mailbox,
                    serial,
                    minimum,
                    ..
                } = &**soa;
                write!(
                    f,
                    "SOA {server} {mailbox} {serial} {refresh} {retry} {expire} {minimum}"
                )
            }
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whom it belongs to.
    pub owner: Owner,
    /// For how long it holds, in seconds.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// The sections of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it ends.
    pub rcode: Rcode,
    /// Whether it is about a zone that is ours.
    pub authoritative: bool,
    /// What was asked for.
    pub records: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
    /// What will be asked for next.
    pub additional: Vec<Record>,
}

impl Answer {
    /// An answer without records.
    pub fn empty(rcode: Rcode, authoritative: bool) -> Self {
        Self {
            rcode,
            authoritative,
            records: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }
}

impl fmt::Display for Answer {
    /// One line for each record, as in a golden file; `@` stands for the name in the question.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rcode.as_str())?;
        let sections = [
            ("", &self.records),
            ("authority ", &self.authority),
            ("additional ", &self.additional),
        ];
        for (section, records) in sections {
            for Record { owner, ttl, data } in records {
                match owner {
                    Owner::Question => write!(f, "\n{section}@ {ttl} {data}")?,
                    Owner::Name(name) => write!(f, "\n{section}{name} {ttl} {data}")?,
                }
            }
        }
        Ok(())
    }
}
