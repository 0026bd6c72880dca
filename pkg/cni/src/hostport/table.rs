//! The tables `ip svcnet-hostport` and `ip6 svcnet-hostport`: what is in them whatever the ports are.
//!
//! ```text
//! prerouting, output (to an address of this host) -> host-ports:
//!     the cluster's DNS address: return
//!     dnat to daddr . protocol . port map @address-ports
//!     dnat to protocol . port map @ports
//! postrouting:  saddr . daddr @hairpin, and from loopback: masquerade
//! guard:        from containers to 127.0.0.0/8: drop
//! ```
//!
//! `::1` takes a stand-in as source, as node ports do: IPv6 routes nothing from it to a link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::nft::{
    Chain, ChainKind, Concat, DataType, Element, Family, Field, Fields, Hook, MapOf, ObservedElement,
    PRIORITY_DSTNAT, PRIORITY_RAW, PRIORITY_SRCNAT, Rule, Ruleset, Set, Table,
};

use super::{Frontend, Target};
use crate::protocol::Protocol;

/// The name of our tables.
pub const TABLE: &str = "svcnet-hostport";
/// Our tables.
pub const TABLES: [Table; 2] = [Table::new(Family::Ip, TABLE), Table::new(Family::Ip6, TABLE)];

/// Ports on all addresses of the host.
pub(super) const PORTS: &str = "ports";
/// Ports on one of them.
pub(super) const ADDRESS_PORTS: &str = "address-ports";
/// Containers with themselves.
pub(super) const HAIRPIN: &str = "hairpin";
/// Ports on `::1`.
pub(super) const LOOPBACK: &str = "loopback";
/// The address that stands for `::1` as a source: beside the proxy's.
pub(super) const STAND_IN: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x7663, 0x6e65, 0, 0, 0, 0, 2);

const DISPATCH: &str = "host-ports";

/// The table of a family.
pub(super) const fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

/// The declaration of the table of a family. `own` are addresses of this host that are a service's.
pub(super) fn ruleset(family: Family, own: &[IpAddr]) -> Ruleset {
    let port_key = &[Field::L4Proto, Field::Dport];
    let address_key = &[Field::Daddr, Field::L4Proto, Field::Dport];
    let (before, nat) = (PRIORITY_DSTNAT - 10, PRIORITY_DSTNAT + 1);
    let mut ruleset = sets(Ruleset::new(table(family), "svcnet host ports"), family)
        .chain(Chain::base("prerouting", ChainKind::Nat, Hook::Prerouting, nat))
        .chain(Chain::base("output", ChainKind::Nat, Hook::Output, nat))
        .chain(Chain::base(
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            PRIORITY_SRCNAT - 1,
        ))
        .chain(Chain::base("guard", ChainKind::Filter, Hook::Prerouting, before))
        .chain(Chain::regular(DISPATCH));
    for chain in ["prerouting", "output"] {
        let rule = Rule::new(chain).to_this_host().jump(DISPATCH);
        ruleset = ruleset.rule(rule.comment("to an address of this host"));
    }
    for address in own.iter().filter(|a| Family::of(**a) == family) {
        let rule = Rule::new(DISPATCH).daddr(IpNet::from(*address));
        let rule = rule.verdict(svcnet_netlink::nft::Verdict::Return);
        ruleset = ruleset.rule(rule.comment("the cluster's DNS is no host port's"));
    }
    ruleset = ruleset
        .rule(
            Rule::new(DISPATCH)
                .dnat_map(family, address_key, ADDRESS_PORTS)
                .comment("ports on one address"),
        )
        .rule(
            Rule::new(DISPATCH)
                .dnat_map(family, port_key, PORTS)
                .comment("ports on all addresses"),
        )
        .rule(
            Rule::new("postrouting")
                .in_set(family, &[Field::Saddr, Field::Daddr], HAIRPIN)
                .masquerade()
                .comment("a container that reaches itself"),
        );
    loopback(ruleset, family)
}

fn sets(ruleset: Ruleset, family: Family) -> Ruleset {
    use DataType::{Ipv4, Ipv6, Port, Proto};
    type Types = &'static [DataType];
    let (address_key, target, pair): (Types, Types, Types) = match family {
        Family::Ip => (&[Ipv4, Proto, Port], &[Ipv4, Port], &[Ipv4, Ipv4]),
        Family::Ip6 => (&[Ipv6, Proto, Port], &[Ipv6, Port], &[Ipv6, Ipv6]),
    };
    let ports = Set::map(PORTS, &[Proto, Port], MapOf::Data(target));
    let address_ports = Set::map(ADDRESS_PORTS, address_key, MapOf::Data(target));
    let ruleset = ruleset
        .set(ports.comment("port of this host : container"))
        .set(address_ports.comment("address . port of this host : container"))
        .set(Set::of(HAIRPIN, pair).comment("containers, each with itself"));
    match family {
        Family::Ip => ruleset,
        Family::Ip6 => ruleset.set(Set::of(LOOPBACK, &[Proto, Port]).comment("ports on ::1")),
    }
}

fn loopback(ruleset: Ruleset, family: Family) -> Ruleset {
    let masquerade = |source: IpNet| {
        let rule = Rule::new("postrouting").saddr(source).out_link(BRIDGE_NAME);
        rule.masquerade()
            .comment("from loopback, which no container can answer")
    };
    match family {
        Family::Ip => {
            let loopback = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
            let guard = Rule::new("guard").in_link(BRIDGE_NAME).daddr(loopback).drop();
            // The bridge has route_localnet set, so that answers find back.
            ruleset
                .rule(masquerade(loopback))
                .rule(guard.comment("loopback is not for containers"))
        }
        Family::Ip6 => {
            let (local, stand_in) = (
                IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
                IpNet::from(IpAddr::from(STAND_IN)),
            );
            let (out, back) = ("loopback-output", "loopback-input");
            let place = Rule::new(out).saddr(local).daddr(local);
            let place = place.in_set(family, &[Field::L4Proto, Field::Dport], LOOPBACK);
            let put_back = Rule::new(back).saddr(local).daddr(stand_in);
            ruleset
                .chain(Chain::base(out, ChainKind::Filter, Hook::Output, PRIORITY_RAW))
                .chain(Chain::base(
                    back,
                    ChainKind::Filter,
                    Hook::Input,
                    PRIORITY_SRCNAT + 10,
                ))
                .rule(masquerade(stand_in))
                .rule(place.set_saddr(STAND_IN).comment("host ports on ::1"))
                .rule(put_back.set_daddr(Ipv6Addr::LOCALHOST).comment("their answers"))
        }
    }
}

impl Frontend {
    /// The map that it is in.
    pub(super) fn map(&self) -> &'static str {
        if self.address.is_some() {
            ADDRESS_PORTS
        } else {
            PORTS
        }
    }

    pub(super) fn key(&self) -> Concat {
        let address = self.address.map_or(Concat::new(), |ip| Concat::new().ip(ip));
        address.proto(self.protocol.number()).port(self.port)
    }

    /// Reads a key of one of the maps.
    pub(super) fn read(family: Family, map: &str, key: &[u8]) -> Option<Self> {
        let mut fields = Fields(key);
        let address = match map {
            ADDRESS_PORTS => Some(fields.ip(family == Family::Ip6)?),
            _ => None,
        };
        Some(Self {
            address,
            protocol: protocol(fields.proto()?)?,
            port: fields.port()?,
        })
    }
}

impl Target {
    pub(super) fn value(&self) -> Concat {
        Concat::new().ip(self.address).port(self.port)
    }

    pub(super) fn read(family: Family, element: &ObservedElement<'_>) -> Option<Self> {
        let mut fields = Fields(element.value?);
        Some(Self {
            address: fields.ip(family == Family::Ip6)?,
            port: fields.port()?,
        })
    }
}

/// The key of an element of [`HAIRPIN`].
pub(super) fn pair(address: IpAddr) -> Concat {
    Concat::new().ip(address).ip(address)
}

/// The key of an element of [`LOOPBACK`].
pub(super) fn loopback_key(protocol: Protocol, port: u16) -> Concat {
    Concat::new().proto(protocol.number()).port(port)
}

pub(super) fn protocol(number: u8) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter().find(|p| p.number() == number)
}

/// An element of a map of ports.
pub(super) fn element<'a>(key: &'a Concat, value: &'a Concat) -> Element<'a> {
    Element::value(key.as_bytes(), value.as_bytes())
}
