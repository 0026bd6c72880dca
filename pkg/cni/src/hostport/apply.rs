//! Carries plans out, and reads back what the kernel holds.

use std::net::IpAddr;

use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::nft::{Batch, Element, Family, Fields, Socket};
use svcnet_netlink::{Rtnl, conntrack, nft, rt, sysctl};

use super::plan::{Empty, Observed, Op, Plan, carried_out, plan};
use super::table::{self, ADDRESS_PORTS, HAIRPIN, LOOPBACK, PORTS, STAND_IN};
use super::{Desired, Elements, Frontend, Target, desired};
use crate::ipam::Lease;
use crate::protocol::Protocol;

/// Why host ports are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nf_tables refused.
    #[error("host ports: {0}")]
    Nft(#[from] nft::Error),
    /// The address that stands for `::1` could not be made.
    #[error("host ports: {0}")]
    Route(#[from] rt::Error),
    /// Answers to loopback can not be let in.
    #[error("host ports: {0}")]
    Sysctl(#[from] sysctl::Error),
}

/// The host ports of this namespace.
#[derive(Debug)]
pub struct HostPorts {
    /// Addresses of this host that no host port answers on.
    own: Vec<IpAddr>,
    /// Opened once and kept: closing a socket of nf_tables waits until the kernel has forgotten what was deleted last by
    /// whomever (`nft_rcv_nl_event`), which takes a grace period of RCU, tens of milliseconds.
    socket: Option<Socket>,
    /// What the kernel holds; unknown at first, after a failure, and when somebody else may have changed it.
    held: Option<Observed>,
}

impl HostPorts {
    /// Those of the calling thread's namespace; `own` are addresses of this host that are a service's.
    pub fn new(own: &[IpAddr]) -> Self {
        Self {
            own: own.to_vec(),
            socket: None,
            held: None,
        }
    }

    /// Looks at the kernel again the next time, whatever was known of it.
    pub fn doubt(&mut self) {
        self.held = None;
    }

    /// Makes the kernel hold what is desired, by what differs, and says what that was.
    ///
    /// # Errors
    /// When the kernel refuses. The next time it is looked at from the start.
    pub fn sync(&mut self, desired: &Desired, empty: Empty) -> Result<Plan, Error> {
        // Where somebody else changed a table, the kernel refuses all of it, or what is not there.
        let believed = self.held.take();
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open()?,
        };
        let by_belief = believed.and_then(|held| self.try_sync(&mut socket, desired, held, empty).ok());
        let (plan, held) = match by_belief {
            Some(done) => done,
            None => {
                let observed = self.observe(&mut socket)?;
                self.try_sync(&mut socket, desired, observed, empty)?
            }
        };
        self.held = Some(held);
        self.socket = Some(socket);
        Ok(plan)
    }

    /// Whether there is a table without a port.
    pub fn has_empty(&self) -> bool {
        let is_empty = |held: &Option<Elements>| held.as_ref().is_some_and(|e| e.ports.is_empty());
        self.held.iter().flat_map(Observed::values).any(is_empty)
    }

    fn try_sync(
        &self,
        socket: &mut Socket,
        desired: &Desired,
        observed: Observed,
        empty: Empty,
    ) -> Result<(Plan, Observed), Error> {
        let plan = plan(desired, &observed, empty);
        self.apply(socket, &plan)?;
        let held = carried_out(&plan, desired, &observed);
        Ok((plan, held))
    }

    fn observe(&self, socket: &mut Socket) -> Result<Observed, Error> {
        observe(socket, |socket, family| {
            Ok(table::ruleset(family, &self.own).holds(socket, |_| false)?)
        })
    }

    fn apply(&self, socket: &mut Socket, plan: &Plan) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (family, op) in &plan.0 {
            self.put(&mut batch, *family, op)?;
        }
        socket.commit(batch)?;
        forget_datagrams(socket, plan)?;
        Ok(())
    }

    fn put(&self, batch: &mut Batch, family: Family, op: &Op) -> Result<(), Error> {
        let table = table::table(family);
        match op {
            Op::MakeTable => {
                prepare(family)?;
                batch.remove_table(&table);
                table::ruleset(family, &self.own).create(batch);
            }
            Op::RemoveTable => {
                batch.remove_table(&table);
                if family == Family::Ip6 {
                    Rtnl::open()?.delete_local_address(LocalFor::HostPorts, STAND_IN.into())?;
                }
            }
            Op::DeletePort(port) => batch.delete_element(&table, port.map(), port.key().as_bytes(), None),
            Op::AddPort(port, to) => {
                batch.add_element(&table, port.map(), &table::element(&port.key(), &to.value()));
            }
            Op::DeleteHairpin(ip) => batch.delete_element(&table, HAIRPIN, table::pair(*ip).as_bytes(), None),
            Op::AddHairpin(ip) => {
                batch.add_element(&table, HAIRPIN, &Element::key(table::pair(*ip).as_bytes()))
            }
            Op::DeleteLoopback(protocol, port) => {
                let key = table::loopback_key(*protocol, *port);
                batch.delete_element(&table, LOOPBACK, key.as_bytes(), None);
            }
            Op::AddLoopback(protocol, port) => {
                let key = table::loopback_key(*protocol, *port);
                batch.add_element(&table, LOOPBACK, &Element::key(key.as_bytes()));
            }
        }
        Ok(())
    }
}

/// Takes away what leads to addresses whose container is gone, without the agent, which will look at it all again.
///
/// # Errors
/// When the kernel refuses.
pub fn forget(addresses: &[IpAddr]) -> Result<(), Error> {
    let mut socket = Socket::open()?;
    let observed = observe(&mut socket, |_, _| Ok(true))?;
    let held = observed
        .iter()
        .filter_map(|(family, e)| Some((*family, e.clone()?)));
    let mut desired: Desired = held.collect();
    for elements in desired.values_mut() {
        elements.ports.retain(|_, to| !addresses.contains(&to.address));
        elements.hairpin.retain(|address| !addresses.contains(address));
        let ports = &elements.ports;
        let still = |(protocol, port): &(Protocol, u16)| {
            let same = |f: &Frontend| f.address.is_none() && (f.protocol, f.port) == (*protocol, *port);
            ports.keys().any(same)
        };
        elements.loopback.retain(still);
    }
    HostPorts::new(&[]).apply(&mut socket, &plan(&desired, &observed, Empty::Goes))
}

/// What ports of these leases do not lead where they should; `own` as for [`HostPorts::new`].
///
/// # Errors
/// When the kernel can not be asked.
pub fn missing<'a>(
    leases: impl Iterator<Item = &'a Lease>,
    own: &[IpAddr],
) -> Result<Vec<(Frontend, Target)>, Error> {
    let desired = desired(leases);
    let observed = HostPorts::new(own).observe(&mut Socket::open()?)?;
    let holds = |family, port: &Frontend, to: &Target| {
        let held = observed.get(family).and_then(Option::as_ref);
        held.and_then(|held| held.ports.get(port)) == Some(to)
    };
    let wanted = desired
        .iter()
        .flat_map(|(family, e)| e.ports.iter().map(move |(p, t)| (family, p, t)));
    let lacking = wanted.filter(|(family, port, to)| !holds(family, port, to));
    Ok(lacking.map(|(_, port, to)| (*port, *to)).collect())
}

/// What there is of our tables; `right` says whether one is as it is declared.
fn observe(
    socket: &mut Socket,
    right: impl Fn(&mut Socket, Family) -> Result<bool, Error>,
) -> Result<Observed, Error> {
    let mut observed = Observed::new();
    for family in [Family::Ip, Family::Ip6] {
        let there = match socket.table(&table::table(family)) {
            Ok(found) => found.is_some(),
            // Without nf_tables there can be no table of ours.
            Err(error) if error.is_unsupported() => false,
            Err(error) => return Err(error.into()),
        };
        if there {
            let held = if right(socket, family)? {
                Some(elements(socket, family)?)
            } else {
                None
            };
            observed.insert(family, held);
        }
    }
    Ok(observed)
}

/// What loopback needs beside the table. The parameter is the bridge's own and goes with it.
fn prepare(family: Family) -> Result<(), Error> {
    match family {
        Family::Ip => match sysctl::set(&format!("net/ipv4/conf/{BRIDGE_NAME}/route_localnet"), "1") {
            // The bridge is about to be made: the next pass sees to it.
            Err(error) if !error.is_gone() => Err(error.into()),
            _ => Ok(()),
        },
        Family::Ip6 => match Rtnl::open()?.add_local_address(LocalFor::HostPorts, STAND_IN.into(), None) {
            // A host without IPv6 on loopback has no ::1 either.
            Err(error) if error.is_unsupported() => Ok(()),
            other => Ok(other?),
        },
    }
}

/// Datagrams of a flow go on to where its first one went. So flows to a port that leads elsewhere now are forgotten, as the
/// reference plugin does.
fn forget_datagrams(socket: &mut Socket, plan: &Plan) -> Result<(), Error> {
    for family in [Family::Ip, Family::Ip6] {
        let udp_port = |op: &Op| match op {
            Op::DeletePort(port) | Op::AddPort(port, _) if port.protocol == Protocol::Udp => Some(port.port),
            _ => None,
        };
        let ops = plan.0.iter().filter(|(f, _)| *f == family);
        let changed: Vec<u16> = ops.filter_map(|(_, op)| udp_port(op)).collect();
        if changed.is_empty() {
            continue;
        }
        let to_changed = |e: &conntrack::Entry| changed.contains(&e.original.destination.port());
        for entry in conntrack::list(socket, family, conntrack::UDP, to_changed)? {
            let to_this_host = is_local(entry.original.destination.ip())?;
            if to_this_host {
                conntrack::delete(socket, &entry)?;
            }
        }
    }
    Ok(())
}

/// Whether the address is one of this host: flows that pass through it to the same port are others' affair.
fn is_local(address: IpAddr) -> Result<bool, Error> {
    use svcnet_netlink::route::{Packet, Way};
    let way = Rtnl::open()?.way_of(Packet::to(address))?;
    Ok(matches!(way, Way::Here))
}

fn elements(socket: &mut Socket, family: Family) -> Result<Elements, Error> {
    let table = table::table(family);
    let mut elements = Elements::default();
    for map in [PORTS, ADDRESS_PORTS] {
        let ports = std::cell::RefCell::new(Vec::new());
        socket.elements(
            &table,
            map,
            || ports.borrow_mut().clear(),
            |element| {
                let port = Frontend::read(family, map, element.key);
                let read = port.zip(Target::read(family, &element));
                ports.borrow_mut().extend(read);
            },
        )?;
        elements.ports.extend(ports.into_inner());
    }
    let hairpin = std::cell::RefCell::new(Vec::new());
    socket.elements(
        &table,
        HAIRPIN,
        || hairpin.borrow_mut().clear(),
        |element| {
            hairpin
                .borrow_mut()
                .extend(Fields(element.key).ip(family == Family::Ip6));
        },
    )?;
    elements.hairpin = hairpin.into_inner().into_iter().collect();
    if family == Family::Ip6 {
        let loopback = std::cell::RefCell::new(Vec::new());
        socket.elements(
            &table,
            LOOPBACK,
            || loopback.borrow_mut().clear(),
            |element| {
                let mut fields = Fields(element.key);
                let protocol = fields.proto().and_then(table::protocol);
                loopback.borrow_mut().extend(protocol.zip(fields.port()));
            },
        )?;
        elements.loopback = loopback.into_inner().into_iter().collect();
    }
    Ok(elements)
}
