//! Making room for nftables mode without cutting connections.
//!
//! What IPVS sends on lives in its connection table, and a connection gets packets through only as long as the
//! destination that it goes to is there. So a virtual service of TCP with open connections stays, with destinations of
//! weight zero, and with it its address on our link; all else goes at once. New connections are translated by the rules
//! of nf_tables before IPVS could see them. An address that stays still opens the host's own ports to everyone, so our
//! table stays too, and holds nothing but what refuses that, and what says which services are ours.
//!
//! [`leave`] does a step, and is called again until nothing is left. It needs no memory: a process that starts over goes
//! on with what the kernel holds. UDP and SCTP clients find their new way by themselves once nothing is remembered of
//! the old one ([`Protocol::outlives_endpoints`]), which the caller sees to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use svcnet_netlink::Rtnl;
use svcnet_netlink::ipvs::{self as kernel, Destination, Identity, Op, Virtual};
use svcnet_netlink::nft::{Batch, Family, Socket};

use super::plan::{Balancer, Elements, Held};
use super::slot::{List, Slot};
use super::{Error, apply, can, layout, observe};
use crate::model::Protocol;

/// The kernel's list of connections, of the thread's network namespace.
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing was there.
    Nothing,
    /// All is gone now.
    Gone,
    /// So many services wait for the end of their connections.
    Waits(usize),
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// How far it is.
    pub left: Left,
    /// Whether services of datagrams went, or of SCTP: what conntrack knows of their clients leads nowhere now.
    pub lost_datagrams: bool,
}

/// What to do for those that have no connections, and what stays for the others. In the order of its fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plan {
    /// Services that stay.
    stay: BTreeSet<Virtual>,
    /// Addresses that stay on our link.
    bound: BTreeSet<IpAddr>,
    /// Addresses that go.
    unbind: BTreeSet<IpAddr>,
    /// What IPVS is told.
    ops: Vec<Op>,
}

/// The plan: `listed` are the services that our tables say are ours, `open` those with open connections.
fn plan(balancer: &Balancer, listed: &BTreeSet<Virtual>, open: &BTreeSet<Virtual>) -> Plan {
    let is_ours = |at: &Virtual| balancer.bound.contains(&at.ip) || listed.contains(at);
    let mut plan = Plan::default();
    for (at, held) in balancer.services.iter().filter(|(at, _)| is_ours(at)) {
        let identity = Identity::Address(*at);
        // Without our rules, nothing stands for a loopback address any more, and a client's next packet ends the connection.
        if is_of_datagrams(at) || at.ip.is_loopback() || !open.contains(at) {
            plan.ops.push(Op::DeleteService(identity));
            continue;
        }
        plan.stay.insert(*at);
        let takes_new = held.destinations.values().map(|(destination, _)| *destination);
        let takes_new = takes_new.filter(|destination| destination.weight != 0);
        plan.ops.extend(takes_new.map(|destination| {
            let none = Destination {
                weight: 0,
                ..destination
            };
            Op::SetDestination(identity, none)
        }));
    }
    let needed: BTreeSet<IpAddr> = plan.stay.iter().map(|at| at.ip).collect();
    (plan.bound, plan.unbind) = balancer.bound.iter().partition(|ip| needed.contains(ip));
    plan
}

/// Does what can be done now. Not while the mode is ipvs; only with a mode that translates packets before IPVS sees them.
///
/// # Errors
/// When the kernel refuses.
pub fn leave() -> Result<Step, Error> {
    let (mut links, mut tables) = (Rtnl::open()?, Socket::open()?);
    let Some(mut socket) = kernel::Socket::open()? else {
        return Ok(Step {
            left: gone(can::cleanup()?),
            lost_datagrams: false,
        });
    };
    let addresses = observe::addresses(&mut links)?;
    let balancer = observe::balancer(&mut socket, &addresses)?;
    let mut listed = observe::listed(&mut tables, Family::Ip)?;
    listed.extend(observe::listed(&mut tables, Family::Ip6)?);
    let open = open(&balancer.services)?;
    let plan = plan(&balancer, &listed, &open);
    tracing::debug!(stay = plan.stay.len(), operations = plan.ops.len(), "leave");
    let lost_datagrams = plan.ops.iter().any(|op| match op {
        Op::DeleteService(Identity::Address(at)) => is_of_datagrams(at),
        _ => false,
    });
    if plan.stay.is_empty() {
        return Ok(Step {
            left: gone(can::cleanup()?),
            lost_datagrams,
        });
    }
    if let Some(link) = addresses.link {
        for ip in &plan.unbind {
            links.delete_address(apply::address(link, *ip))?;
        }
    }
    guard(&mut tables, &plan, &listed)?;
    socket.apply(&plan.ops)?;
    Ok(Step {
        left: Left::Waits(plan.stay.len()),
        lost_datagrams,
    })
}

fn is_of_datagrams(at: &Virtual) -> bool {
    Protocol::from_number(at.protocol).is_none_or(Protocol::outlives_endpoints)
}

fn gone(any: bool) -> Left {
    if any { Left::Gone } else { Left::Nothing }
}

/// Has our tables hold what stays and nothing else.
fn guard(socket: &mut Socket, plan: &Plan, listed: &BTreeSet<Virtual>) -> Result<(), Error> {
    for family in [Family::Ip, Family::Ip6] {
        let slots: BTreeSet<Slot> = plan
            .stay
            .iter()
            .map(|at| Slot::Frontend(List::Frontends, *at))
            .chain(plan.bound.iter().map(|ip| Slot::Bound(*ip)))
            .filter(|slot| slot.family() == family)
            .collect();
        let ruleset = layout::leaving(family);
        let of_family = |at: &&Virtual| Family::of(at.ip) == family;
        let (stay, listed) = (
            plan.stay.iter().filter(of_family),
            listed.iter().filter(of_family),
        );
        match ruleset.holds(socket, |_| false) {
            Ok(true) if listed.eq(stay) => continue,
            Ok(_) => {}
            // A kernel without the family.
            Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut batch = Batch::new();
        batch.remove_table(&layout::table(family));
        if !slots.is_empty() {
            ruleset.create(&mut batch);
        }
        let elements = Elements {
            adds: slots.into_iter().map(|slot| (slot, "".into())).collect(),
            ..Elements::default()
        };
        apply::commit(socket, batch, &elements)?;
    }
    Ok(())
}

/// The services with connections that are open, or that open or close just now.
fn open(services: &BTreeMap<Virtual, Held>) -> Result<BTreeSet<Virtual>, Error> {
    let counts = |held: &Held| {
        let all = held
            .destinations
            .values()
            .filter_map(|(_, connections)| *connections);
        all.fold((0, 0), |(active, inactive), one| {
            (active + one.active, inactive + one.inactive)
        })
    };
    let mut open = BTreeSet::new();
    let mut unclear = false;
    for (at, held) in services {
        match counts(held) {
            (0, 0) => {}
            (0, _) => unclear = true,
            (1.., _) => _ = open.insert(*at),
        }
    }
    if unclear {
        // Not established can be ended, or half closed with data still to come: the list of connections tells.
        let text = std::fs::read_to_string(CONNECTIONS).map_err(Error::Connections)?;
        open.extend(text.lines().filter_map(unended));
    }
    Ok(open)
}

/// The service of a connection in a line of the kernel's list, unless both sides have ended it.
///
/// `ip_vs_conn_seq_show`: protocol, client and port, service and port, destination and port, state, and more; addresses of
/// IPv4 and ports are in hexadecimal digits.
fn unended(line: &str) -> Option<Virtual> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::Tcp,
        _ => return None,
    };
    let (ip, port) = (words.nth(2)?, words.next()?);
    let state = words.nth(2)?;
    // NONE is no connection, but a client that stays.
    if matches!(state, "TIME_WAIT" | "CLOSE" | "NONE") {
        return None;
    }
    let ip = match u32::from_str_radix(ip, 16) {
        Ok(bits) => IpAddr::from(Ipv4Addr::from_bits(bits)),
        Err(_) => IpAddr::from(ip.parse::<Ipv6Addr>().ok()?),
    };
    Some(Virtual {
        ip,
        protocol: protocol.number(),
        port: u16::from_str_radix(port, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use svcnet_netlink::ipvs::{Connections, Flags, Service};

    use super::*;

    fn at(text: &str, protocol: Protocol) -> Virtual {
        let at: std::net::SocketAddr = text.parse().unwrap();
        Virtual {
            ip: at.ip(),
            protocol: protocol.number(),
            port: at.port(),
        }
    }

    fn held(at: Virtual, weights: &[u32]) -> (Virtual, Held) {
        let service = Service {
            identity: Identity::Address(at),
            scheduler: "rr".into(),
            flags: Flags::default(),
            persistence: None,
        };
        let destinations = (1u8..).zip(weights).map(|(last, weight)| {
            let to = std::net::SocketAddr::from(([10, 244, 1, last], 8080));
            (
                to,
                (Destination::masquerade(to, *weight), Some(Connections::default())),
            )
        });
        let destinations = destinations.collect();
        (
            at,
            Held {
                service,
                destinations,
            },
        )
    }

    #[test]
    fn what_has_open_connections_stays_and_takes_no_new_ones() {
        let (busy, idle) = (
            at("10.96.0.1:80", Protocol::Tcp),
            at("10.96.0.2:80", Protocol::Tcp),
        );
        let (udp, sctp) = (
            at("10.96.0.1:53", Protocol::Udp),
            at("10.96.0.1:99", Protocol::Sctp),
        );
        let (node_port, foreign) = (
            at("172.30.0.11:30080", Protocol::Tcp),
            at("172.30.0.11:3306", Protocol::Tcp),
        );
        let all = [busy, idle, udp, sctp, node_port, foreign];
        let balancer = Balancer {
            link: true,
            bound: [busy.ip, idle.ip].into(),
            services: all.map(|at| held(at, &[1, 0])).into(),
        };
        let listed = [busy, idle, udp, sctp, node_port].into();
        let done = plan(
            &balancer,
            &listed,
            &all.into_iter().filter(|at| *at != idle).collect(),
        );
        assert_eq!(done.stay, [busy, node_port].into());
        assert_eq!(done.bound, [busy.ip].into());
        assert_eq!(done.unbind, [idle.ip].into());
        let quiet = |at| {
            let to = "10.244.1.1:8080".parse().unwrap();
            Op::SetDestination(Identity::Address(at), Destination::masquerade(to, 0))
        };
        let delete = |at| Op::DeleteService(Identity::Address(at));
        let wanted = [
            delete(udp),
            delete(sctp),
            quiet(busy),
            delete(idle),
            quiet(node_port),
        ];
        assert_eq!(done.ops.len(), wanted.len(), "{:?}", done.ops);
        assert!(wanted.iter().all(|op| done.ops.contains(op)), "{:?}", done.ops);
        // Once they take none, there is nothing more to do for them.
        let services = [busy, node_port, foreign].map(|at| held(at, &[0, 0])).into();
        let later = Balancer { services, ..balancer };
        let done = plan(&later, &listed, &[busy, node_port].into());
        assert!(done.ops.is_empty(), "{:?}", done.ops);
    }

    #[test]
    fn the_kernels_list_of_connections_is_read() {
        let list = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP AC1E0064 C350 0A600101 0050 0AF40105 1F90 ESTABLISHED     895
TCP AC1E0064 C351 0A600102 0050 0AF40105 1F90 TIME_WAIT       100
TCP AC1E0064 0000 0A600103 0050 0AF40105 1F90 NONE            100
UDP AC1E0064 C351 0A600104 0035 0AF40105 1F90 UDP             100
TCP fd00:0244:0001:0000:0000:0000:0000:0005 C350 fd00:0096:0000:0000:0000:0000:0000:0001 0050 fd00:0244:0001:0000:0000:0000:0000:0006 1F90 FIN_WAIT 100
";
        let found: Vec<Virtual> = list.lines().filter_map(unended).collect();
        let wanted = [
            at("10.96.1.1:80", Protocol::Tcp),
            at("[fd00:96::1]:80", Protocol::Tcp),
        ];
        assert_eq!(found, wanted);
    }
}
