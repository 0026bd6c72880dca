//! Queueing disciplines that slow a link down: a token bucket for what leaves it, and for what comes in by it a detour
//! over an `ifb` link, which has a queue where the link itself has none. Layouts as in
//! `include/uapi/linux/pkt_sched.h`, `pkt_cls.h` and `tc_act/tc_mirred.h`.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};

use crate::link::named;
use crate::nft::attr::Reader;
use crate::rt::{Error, Rtnl};

/// `TCA_OPTIONS`
const TCA_OPTIONS: u16 = 2;
/// `TC_LINKLAYER_ETHERNET`
const LINKLAYER_ETHERNET: u8 = 1;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `TC_U32_TERMINAL`
const U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// `TC_ACT_STOLEN`: the packet goes on at the other link.
const ACT_STOLEN: i32 = 4;
/// `TCA_EGRESS_REDIR`
const EGRESS_REDIRECT: i32 = 1;
/// `ETH_P_ALL`, in network byte order as the header has it.
const ALL_PROTOCOLS: u32 = 0x0300;
/// What waits longer than this in a bucket's queue is dropped: the reference plugin's figure.
const QUEUE_MS: u64 = 25;

/// A token bucket: what leaves a link in the long run, and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second in the long run.
    pub rate_bytes: u64,
    /// Bytes at once. Packets that are larger are cut where they can be, else lost.
    pub burst_bytes: u32,
}

impl TokenBucket {
    /// `TCA_OPTIONS` of the discipline `tbf`.
    fn options(self) -> Vec<u8> {
        let rate32 = u32::try_from(self.rate_bytes).unwrap_or(u32::MAX);
        let waiting = self.rate_bytes.saturating_mul(QUEUE_MS) / 1000;
        let limit = u32::try_from(waiting.saturating_add(self.burst_bytes.into())).unwrap_or(u32::MAX);
        // struct tc_tbf_qopt: rate, peakrate (struct tc_ratespec of 12 bytes each), limit, buffer, mtu
        let mut parms = Vec::with_capacity(36);
        parms.extend_from_slice(&[0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        parms.extend_from_slice(&rate32.to_ne_bytes());
        parms.extend_from_slice(&[0; 12]);
        parms.extend_from_slice(&limit.to_ne_bytes());
        // The burst is told in bytes below, which needs no knowledge of the kernel's ticks.
        parms.extend_from_slice(&[0; 8]);
        let mut options = nla(TCA_TBF_PARMS, &parms);
        if self.rate_bytes > u64::from(u32::MAX) {
            options.extend(nla(TCA_TBF_RATE64, &self.rate_bytes.to_ne_bytes()));
        }
        options.extend(nla(TCA_TBF_BURST, &self.burst_bytes.to_ne_bytes()));
        options
    }
}

/// A queueing discipline as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Its kind, as in `tbf`.
    pub kind: String,
    /// Whether it is the root of its link: what leaves the link passes it.
    pub root: bool,
    /// The rate of a token bucket, in bytes per second.
    pub rate_bytes: Option<u64>,
}

impl Rtnl {
    /// Makes an `ifb` link, up: what is redirected to it passes its queue and goes on from where it came.
    ///
    /// # Errors
    /// When the name is taken ([`Error::is_exists`]), the kernel has no such links ([`Error::is_unsupported`]), or it
    /// refuses.
    pub fn add_ifb(&mut self, name: &str, mtu: u32) -> Result<(), Error> {
        let mut message = named(name);
        message.header.flags = netlink_packet_route::link::LinkFlags::Up;
        message.header.change_mask = netlink_packet_route::link::LinkFlags::Up;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| e.about("add ifb", name))
    }

    /// Slows down what leaves a link.
    ///
    /// # Errors
    /// When the link is gone, the kernel has no token buckets, or it refuses.
    pub fn limit_link(&mut self, link: u32, bucket: TokenBucket) -> Result<(), Error> {
        let message = discipline(
            link,
            TcHandle::ROOT,
            TcHandle { major: 1, minor: 0 },
            "tbf",
            bucket.options(),
        );
        self.request(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map_err(|e| e.about("set token bucket", format_args!("#{link}: {bucket:?}")))
    }

    /// Sends all that comes in by a link over another one first.
    ///
    /// # Errors
    /// When one of them is gone, or the kernel refuses.
    pub fn redirect_ingress(&mut self, link: u32, over: u32) -> Result<(), Error> {
        let about = format!("#{link} over #{over}");
        let ingress_handle = TcHandle {
            major: 0xffff,
            minor: 0,
        };
        let ingress = discipline(link, TcHandle::INGRESS, ingress_handle, "ingress", Vec::new());
        self.request(
            RouteNetlinkMessage::NewQueueDiscipline(ingress),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map_err(|e| e.about("set ingress discipline", &about))?;
        // struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex
        let mut parms = vec![0; 8];
        parms.extend_from_slice(&ACT_STOLEN.to_ne_bytes());
        parms.extend_from_slice(&[0; 8]);
        parms.extend_from_slice(&EGRESS_REDIRECT.to_ne_bytes());
        parms.extend_from_slice(&over.to_ne_bytes());
        let mut action = nla(TCA_ACT_KIND, b"mirred\0");
        action.extend(nla(TCA_ACT_OPTIONS, &nla(TCA_MIRRED_PARMS, &parms)));
        // u32 with a key that all packets have: kernels are built without `matchall` more often than without it.
        // struct tc_u32_sel: flags, shift, number of keys, and offsets; struct tc_u32_key: mask, value, offsets.
        let mut selector = vec![U32_TERMINAL, 0, 1];
        selector.resize(16 + 16, 0);
        let mut options = nla(TCA_U32_SEL, &selector);
        options.extend(nla(TCA_U32_ACT, &nla(1, &action)));
        let mut filter = discipline(link, ingress_handle, TcHandle::UNSPEC, "u32", options);
        filter.header.info = 1 << 16 | ALL_PROTOCOLS;
        self.request(
            RouteNetlinkMessage::NewTrafficFilter(filter),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map_err(|e| e.about("redirect what comes in by", &about))
    }

    /// The queueing disciplines of a link.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn qdiscs(&mut self, link: u32) -> Result<Vec<Qdisc>, Error> {
        let index = i32::try_from(link).unwrap_or(i32::MAX);
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(index));
        let of_link = |answer: RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(m) if m.header.index == index => Some(read(&m)),
            _ => None,
        };
        self.dump(&message, of_link)
            .map_err(|e| e.about("list queueing disciplines of", format_args!("#{link}")))
    }
}

fn read(message: &TcMessage) -> Qdisc {
    let mut qdisc = Qdisc {
        kind: String::new(),
        root: message.header.parent == TcHandle::ROOT,
        rate_bytes: None,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => qdisc.kind.clone_from(kind),
            TcAttribute::Options(options) if qdisc.kind == "tbf" => qdisc.rate_bytes = rate_of(options),
            _ => {}
        }
    }
    qdisc
}

/// Options of a kind that the model does not know come as one attribute with all of them in it.
fn rate_of(options: &[TcOption]) -> Option<u64> {
    let [TcOption::Other(all)] = options else {
        return None;
    };
    let mut bytes = vec![0; all.value_len()];
    all.emit_value(&mut bytes);
    let find = |kind: u16| Reader::new(&bytes).find(kind);
    let rate64 = find(TCA_TBF_RATE64).and_then(|v| v.try_into().ok());
    rate64.map(u64::from_ne_bytes).or_else(|| {
        let rate = find(TCA_TBF_PARMS)?.get(8..12)?.try_into().ok()?;
        Some(u32::from_ne_bytes(rate).into())
    })
}

fn discipline(link: u32, parent: TcHandle, handle: TcHandle, kind: &str, options: Vec<u8>) -> TcMessage {
    let header = TcHeader {
        index: i32::try_from(link).unwrap_or(i32::MAX),
        handle,
        parent,
        ..TcHeader::default()
    };
    let mut attributes = vec![TcAttribute::Kind(kind.to_string())];
    if !options.is_empty() {
        attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
    }
    TcMessage::from_parts(header, attributes)
}

/// One attribute, padded.
fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_written_as_the_kernel_reads_it() {
        let bucket = TokenBucket {
            rate_bytes: 1_250_000,
            burst_bytes: 65_536,
        };
        let options = bucket.options();
        // Header, then rate (its number at 8), peak rate, limit at 24: a queue of 25 ms and the burst.
        assert_eq!(options[..4], [40, 0, 1, 0]);
        assert_eq!(options[4 + 8..4 + 12], 1_250_000u32.to_ne_bytes());
        assert_eq!(options[4 + 24..4 + 28], (31_250u32 + 65_536).to_ne_bytes());
        assert_eq!(options[40..44], [8, 0, 6, 0]);
        let fast = TokenBucket {
            rate_bytes: 5_000_000_000,
            burst_bytes: 1 << 20,
        };
        assert_eq!(fast.options()[40..44], [12, 0, 4, 0]);
    }
}
