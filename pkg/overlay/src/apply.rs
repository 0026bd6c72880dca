//! Carries a plan out.

use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::Change;
use svcnet_netlink::neigh::{FdbEntry, Neighbour};
use svcnet_netlink::route::Route;
use svcnet_netlink::{Rtnl, nft, rt, sysctl};

use crate::desired::{Entry, Over, VxlanLink};
use crate::plan::{Op, Plan};
use crate::{Kernel, LINK_NAMES, masquerade};

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// In rtnetlink.
    #[error(transparent)]
    Netlink(#[from] rt::Error),
    /// In nf_tables.
    #[error("masquerading: {0}")]
    Nft(#[from] nft::Error),
    /// The VXLAN link can not be made because another one has its network identifier and port.
    #[error(
        "VNI {vni} on UDP port {port} is in use by link {other}: remove it, or give the overlay another VNI"
    )]
    VniTaken {
        /// The network identifier.
        vni: u32,
        /// The port.
        port: u16,
        /// Who has it.
        other: String,
    },
    /// A kernel parameter could not be set.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    /// The link that an entry belongs to is not there: a later pass finds it.
    #[error("{entry}: link {link} is not there")]
    NoLink {
        /// The entry.
        entry: Entry,
        /// The link.
        link: &'static str,
    },
}

/// Carries the operations out in order, past failures, which are returned.
pub fn apply(plan: &Plan, kernel: &mut Kernel) -> Vec<Error> {
    let mut links = Links::default();
    let mut errors = Vec::new();
    for op in &plan.ops {
        if let Err(error) = links.carry_out(op, kernel) {
            errors.push(error);
        }
    }
    errors
}

/// The route as the overlay makes it.
pub(crate) fn route(destination: IpNet, link: u32, gateway: Option<IpAddr>, source: Option<IpAddr>) -> Route {
    let route = match gateway {
        Some(gateway) => Route::via(destination, gateway, link),
        None => Route::on_link(destination, link),
    };
    Route { source, ..route }
}

/// The links' indices, looked up once for a plan.
#[derive(Default)]
struct Links {
    vxlan: Option<u32>,
    bridge: Option<u32>,
}

impl Links {
    fn carry_out(&mut self, op: &Op, kernel: &mut Kernel) -> Result<(), Error> {
        let Kernel { rt, nft } = kernel;
        match op {
            Op::DeleteLink => {
                self.vxlan = None;
                Ok(rt.delete_link_named(LINK_NAMES.vxlan)?)
            }
            Op::AddLink(link) => {
                self.vxlan = None;
                add_link(link, rt)
            }
            Op::ChangeLink { mac, mtu } => {
                let Some(index) = self.index(Over::Vxlan, rt)? else {
                    return Ok(());
                };
                let change = Change {
                    up: Some(true),
                    mtu: Some(*mtu),
                    mac: Some(mac.octets()),
                    ..Change::default()
                };
                Ok(rt.change_link(index, &change)?)
            }
            Op::DeleteStray(route) => Ok(rt.delete_route(*route)?),
            Op::Delete(entry) => match self.index(over(entry), rt)? {
                Some(link) => Ok(delete(*entry, link, rt)?),
                None => Ok(()), // gone with its link
            },
            Op::Set(entry) => match self.index(over(entry), rt)? {
                Some(link) => Ok(set(*entry, link, rt)?),
                None => Err(Error::NoLink {
                    entry: *entry,
                    link: name(over(entry)),
                }),
            },
            Op::Sysctl { name, value } => Ok(sysctl::set(name, value).map(drop)?),
            Op::Masquerade(masquerade) => {
                for ruleset in masquerade::rulesets(masquerade) {
                    nft.ensure(&ruleset)?;
                }
                Ok(())
            }
        }
    }

    fn index(&mut self, over: Over, rt: &mut Rtnl) -> Result<Option<u32>, Error> {
        let known = match over {
            Over::Vxlan => &mut self.vxlan,
            Over::Bridge => &mut self.bridge,
        };
        if known.is_none() {
            *known = rt.link(name(over))?.map(|l| l.index);
        }
        Ok(*known)
    }
}

fn name(over: Over) -> &'static str {
    match over {
        Over::Vxlan => LINK_NAMES.vxlan,
        Over::Bridge => LINK_NAMES.bridge,
    }
}

fn over(entry: &Entry) -> Over {
    if entry.is_over_vxlan() {
        Over::Vxlan
    } else {
        Over::Bridge
    }
}

fn add_link(link: &VxlanLink, rt: &mut Rtnl) -> Result<(), Error> {
    match rt.add_vxlan(LINK_NAMES.vxlan, &link.vxlan, Some(link.mac.octets()), link.mtu) {
        Err(error) if error.is_exists() => {
            let same = |l: &svcnet_netlink::link::Link| match &l.kind {
                svcnet_netlink::link::Kind::Vxlan(v) => v.vni == link.vxlan.vni && v.port == link.vxlan.port,
                _ => false,
            };
            let other = rt
                .links()?
                .into_iter()
                .find(|l| l.name != LINK_NAMES.vxlan && same(l));
            Err(other.map_or(Error::Netlink(error), |other| Error::VniTaken {
                vni: link.vxlan.vni,
                port: link.vxlan.port,
                other: other.name,
            }))
        }
        other => Ok(other?),
    }
}

fn set(entry: Entry, link: u32, rt: &mut Rtnl) -> Result<(), rt::Error> {
    match entry {
        Entry::Address(net) => rt.replace_address(Address { link, net }),
        Entry::Fdb { mac, destination } => rt.replace_fdb(FdbEntry {
            link,
            mac: mac.octets(),
            destination,
        }),
        Entry::Neighbour { address, mac } => rt.replace_neighbour(Neighbour {
            link,
            address,
            mac: mac.octets(),
        }),
        Entry::Route {
            destination,
            gateway,
            source,
            ..
        } => rt.replace_route(route(destination, link, gateway, source)),
    }
}

fn delete(entry: Entry, link: u32, rt: &mut Rtnl) -> Result<(), rt::Error> {
    match entry {
        Entry::Address(net) => rt.delete_address(Address { link, net }),
        Entry::Fdb { mac, destination } => rt.delete_fdb(FdbEntry {
            link,
            mac: mac.octets(),
            destination,
        }),
        Entry::Neighbour { address, mac } => rt.delete_neighbour(Neighbour {
            link,
            address,
            mac: mac.octets(),
        }),
        Entry::Route {
            destination,
            gateway,
            source,
            ..
        } => rt.delete_route(route(destination, link, gateway, source)),
    }
}
