//! Messages of the family `IPVS`. Numbers are in the host's byte order, but for ports and the netmask of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    Connections, Destination, Flags, Forward, Identity, Info, Op, Persistence, Service, Timeouts, Virtual,
};
use crate::genl::{self, NLM_F_ACK, NLM_F_DUMP};
use crate::nft::Family;
use crate::nft::attr::{Reader, Writer, text};

/// `IPVS_GENL_NAME`
pub(super) const FAMILY: &str = "IPVS";
/// `IPVS_GENL_VERSION`
const VERSION: u8 = 1;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
pub(super) const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;
pub(super) const GET_CONFIG: u8 = 13;
pub(super) const GET_INFO: u8 = 15;

/// `IPVS_CMD_ATTR_…`
mod command {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
    pub(super) const TIMEOUT_TCP: u16 = 4;
    pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(super) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_INFO_ATTR_…`
mod info {
    pub(super) const VERSION: u16 = 1;
    pub(super) const CONN_TAB_SIZE: u16 = 2;
}

/// `IPVS_SVC_ATTR_…`
mod service {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const FWMARK: u16 = 5;
    pub(super) const SCHED_NAME: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}

/// `IPVS_DEST_ATTR_…`
mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FWD_METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const U_THRESH: u16 = 5;
    pub(super) const L_THRESH: u16 = 6;
    pub(super) const ACTIVE_CONNS: u16 = 7;
    pub(super) const INACT_CONNS: u16 = 8;
    pub(super) const PERSIST_CONNS: u16 = 9;
    pub(super) const ADDR_FAMILY: u16 = 11;
}

/// `IP_VS_SVC_F_PERSISTENT`
const PERSISTENT: u32 = 0x1;

/// A request without attributes.
pub(super) fn get(family: u16, command: u8, flags: u16) -> Vec<u8> {
    genl::message(family, (command, VERSION), flags, |_| {})
}

/// Asks for the destinations of a service.
pub(super) fn get_destinations(family: u16, of: Identity) -> Vec<u8> {
    genl::message(family, (GET_DEST, VERSION), NLM_F_DUMP, |w| {
        w.nest(command::SERVICE, |w| identity(w, of));
    })
}

/// Sets the timeouts.
pub(super) fn set_timeouts(family: u16, timeouts: Timeouts) -> Vec<u8> {
    genl::message(family, (SET_CONFIG, VERSION), NLM_F_ACK, |w| {
        host32(w, command::TIMEOUT_TCP, timeouts.tcp);
        host32(w, command::TIMEOUT_TCP_FIN, timeouts.tcp_fin);
        host32(w, command::TIMEOUT_UDP, timeouts.udp);
    })
}

/// One change.
pub(super) fn op(family: u16, op: &Op, flags: u16) -> Vec<u8> {
    let command = match op {
        Op::AddService(_) => NEW_SERVICE,
        Op::SetService(_) => SET_SERVICE,
        Op::DeleteService(_) => DEL_SERVICE,
        Op::AddDestination(..) => NEW_DEST,
        Op::SetDestination(..) => SET_DEST,
        Op::DeleteDestination(..) => DEL_DEST,
    };
    genl::message(family, (command, VERSION), flags, |w| match op {
        Op::AddService(service) | Op::SetService(service) => {
            w.nest(command::SERVICE, |w| write_service(w, service));
        }
        Op::DeleteService(of) => {
            w.nest(command::SERVICE, |w| identity(w, *of));
        }
        Op::AddDestination(of, to) | Op::SetDestination(of, to) => {
            w.nest(command::SERVICE, |w| identity(w, *of));
            w.nest(command::DEST, |w| write_destination(w, to));
        }
        Op::DeleteDestination(of, at) => {
            w.nest(command::SERVICE, |w| identity(w, *of));
            w.nest(command::DEST, |w| destination_at(w, *at));
        }
    })
}

fn host16(w: &mut Writer<'_>, kind: u16, value: u16) {
    w.raw(kind, &value.to_ne_bytes());
}

fn host32(w: &mut Writer<'_>, kind: u16, value: u32) {
    w.raw(kind, &value.to_ne_bytes());
}

/// `union nf_inet_addr`: 16 bytes, of which IPv4 uses the first four.
fn address(w: &mut Writer<'_>, kind: u16, ip: IpAddr) {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    w.raw(kind, &bytes);
}

/// The family of a service's addresses.
pub(super) fn family_of(identity: Identity) -> Family {
    match identity {
        Identity::Address(at) => Family::of(at.ip),
        Identity::Mark { family, .. } => family,
    }
}

fn identity(w: &mut Writer<'_>, identity: Identity) {
    host16(w, service::AF, u16::from(family_of(identity).number()));
    match identity {
        Identity::Address(Virtual { ip, protocol, port }) => {
            host16(w, service::PROTOCOL, u16::from(protocol));
            address(w, service::ADDR, ip);
            w.raw(service::PORT, &port.to_be_bytes());
        }
        Identity::Mark { mark, .. } => host32(w, service::FWMARK, mark),
    }
}

fn write_service(w: &mut Writer<'_>, service: &Service) {
    identity(w, service.identity);
    w.text(service::SCHED_NAME, &service.scheduler);
    let persistent = if service.persistence.is_some() {
        PERSISTENT
    } else {
        0
    };
    // `struct ip_vs_flags`: the flags, and which of them are meant.
    let flags = [service.flags.0 | persistent, u32::MAX].map(u32::to_ne_bytes);
    w.raw(service::FLAGS, flags.as_flattened());
    host32(w, service::TIMEOUT, service.persistence.map_or(0, |p| p.seconds));
    match family_of(service.identity) {
        Family::Ip => {
            let prefix = service.persistence.map_or(32, |p| u32::from(p.prefix));
            let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
            w.raw(service::NETMASK, &mask.to_be_bytes());
        }
        // For IPv6 the attribute holds the length.
        Family::Ip6 => {
            let prefix = service.persistence.map_or(128, |p| u32::from(p.prefix));
            host32(w, service::NETMASK, prefix);
        }
    }
}

fn destination_at(w: &mut Writer<'_>, at: SocketAddr) {
    address(w, dest::ADDR, at.ip());
    w.raw(dest::PORT, &at.port().to_be_bytes());
    host16(w, dest::ADDR_FAMILY, u16::from(Family::of(at.ip()).number()));
}

fn write_destination(w: &mut Writer<'_>, to: &Destination) {
    destination_at(w, to.at);
    let forward = match to.forward {
        Forward::Masquerade => 0,
        Forward::Local => 1,
        Forward::Tunnel => 2,
        Forward::Route => 3,
        Forward::Bypass => 4,
    };
    host32(w, dest::FWD_METHOD, forward);
    host32(w, dest::WEIGHT, to.weight);
    host32(w, dest::U_THRESH, to.upper);
    host32(w, dest::L_THRESH, to.lower);
}

/// The attributes of a message, by the width of their values.
struct Values<'a>(Reader<'a>);

impl Values<'_> {
    fn host16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.find(kind)?.try_into().ok()?))
    }

    fn host32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.find(kind)?.try_into().ok()?))
    }

    fn port(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.0.find(kind)?.try_into().ok()?))
    }

    fn address(&self, kind: u16, family: Family) -> Option<IpAddr> {
        let bytes = <[u8; 16]>::try_from(self.0.find(kind)?).ok()?;
        Some(match family {
            Family::Ip => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
            Family::Ip6 => Ipv6Addr::from(bytes).into(),
        })
    }

    fn family(&self, kind: u16) -> Option<Family> {
        Family::from_number(u8::try_from(self.host16(kind)?).ok()?)
    }
}

/// What is said about the load balancer.
pub(super) fn read_info(body: &[u8]) -> Option<Info> {
    let values = Values(Reader::new(body));
    let [_, major, minor, patch] = values.host32(info::VERSION)?.to_be_bytes();
    Some(Info {
        version: (major, minor, patch),
        table_size: values.host32(info::CONN_TAB_SIZE)?,
    })
}

/// The timeouts; a kernel without one of the protocols does not name it.
pub(super) fn read_timeouts(body: &[u8]) -> Option<Timeouts> {
    let values = Values(Reader::new(body));
    let timeouts = Timeouts {
        tcp: values.host32(command::TIMEOUT_TCP).unwrap_or(0),
        tcp_fin: values.host32(command::TIMEOUT_TCP_FIN).unwrap_or(0),
        udp: values.host32(command::TIMEOUT_UDP).unwrap_or(0),
    };
    (!body.is_empty()).then_some(timeouts)
}

/// A service of a list.
pub(super) fn read_service(body: &[u8]) -> Option<Service> {
    let values = Values(Reader::new(Reader::new(body).find(command::SERVICE)?));
    let family = values.family(service::AF)?;
    let identity = match values.host32(service::FWMARK) {
        Some(mark) if mark != 0 => Identity::Mark { family, mark },
        _ => Identity::Address(Virtual {
            ip: values.address(service::ADDR, family)?,
            protocol: u8::try_from(values.host16(service::PROTOCOL)?).ok()?,
            port: values.port(service::PORT)?,
        }),
    };
    let flags = values.0.find(service::FLAGS)?;
    let flags = u32::from_ne_bytes(flags.get(..4)?.try_into().ok()?);
    let netmask = values.0.find(service::NETMASK)?;
    let prefix = match family {
        Family::Ip => u32::from_be_bytes(netmask.try_into().ok()?).leading_ones(),
        Family::Ip6 => u32::from_ne_bytes(netmask.try_into().ok()?),
    };
    let persistence = Persistence {
        seconds: values.host32(service::TIMEOUT)?,
        prefix: u8::try_from(prefix).ok()?,
    };
    Some(Service {
        identity,
        scheduler: text(values.0.find(service::SCHED_NAME)?).to_string().into(),
        flags: Flags(flags & Flags::SETTABLE),
        persistence: (flags & PERSISTENT != 0).then_some(persistence),
    })
}

/// A destination of a list.
pub(super) fn read_destination(body: &[u8], of: Family) -> Option<(Destination, Connections)> {
    let values = Values(Reader::new(Reader::new(body).find(command::DEST)?));
    // Kernels before 3.18 do not say it: it is the service's.
    let family = values.family(dest::ADDR_FAMILY).unwrap_or(of);
    let at = SocketAddr::new(values.address(dest::ADDR, family)?, values.port(dest::PORT)?);
    let forward = match values.host32(dest::FWD_METHOD)? & 0x7 {
        0 => Forward::Masquerade,
        1 => Forward::Local,
        2 => Forward::Tunnel,
        3 => Forward::Route,
        _ => Forward::Bypass,
    };
    let destination = Destination {
        at,
        forward,
        weight: values.host32(dest::WEIGHT)?,
        upper: values.host32(dest::U_THRESH).unwrap_or(0),
        lower: values.host32(dest::L_THRESH).unwrap_or(0),
    };
    let connections = Connections {
        active: values.host32(dest::ACTIVE_CONNS).unwrap_or(0),
        inactive: values.host32(dest::INACT_CONNS).unwrap_or(0),
        persistent: values.host32(dest::PERSIST_CONNS).unwrap_or(0),
    };
    Some((destination, connections))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
