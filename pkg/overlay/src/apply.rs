//! Carries a plan out.

use svcnet_netlink::addr::Address;
use svcnet_netlink::link::Change;
use svcnet_netlink::neigh::{FdbEntry, Neighbour};
use svcnet_netlink::route::Route;
use svcnet_netlink::sysctls::{self, Sysctls};
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
    /// A kernel parameter of the host could not be set, or what it was before could not be written down.
    #[error(transparent)]
    Sysctls(#[from] sysctls::Error),
    /// The link does not let checksums be computed before.
    #[error("switch tx-checksumming of {link} off: {source}")]
    Checksums {
        /// The link.
        link: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The link that an entry belongs to is not there: a later pass finds it.
    #[error("{entry}: link {link} is not there")]
    NoLink {
        /// The entry.
        entry: Entry,
        /// The link.
        link: Over,
    },
}

/// Carries the operations out in order, past failures, which are returned. `underlay` is the index of the link towards the
/// peers; what kernel parameters of the host were before is written down in `sysctls`.
pub fn apply(plan: &Plan, kernel: &mut Kernel, underlay: u32, sysctls: &Sysctls) -> Vec<Error> {
    let mut links = Links {
        vxlan: None,
        underlay,
        bridge: None,
        sysctls,
    };
    let mut errors = Vec::new();
    for op in &plan.ops {
        if let Err(error) = links.carry_out(op, kernel) {
            errors.push(error);
        }
    }
    errors
}

/// The route of an entry as the overlay makes it; none if the entry is none.
pub(crate) fn route(entry: &Entry, link: u32) -> Option<Route> {
    let Entry::Route {
        destination,
        gateway,
        source,
        mtu,
        ..
    } = *entry
    else {
        return None;
    };
    let route = match gateway {
        Some(gateway) => Route::via(destination, gateway, link),
        None => Route::on_link(destination, link),
    };
    Some(Route { source, mtu, ..route })
}

/// The links' indices, looked up once for a plan.
struct Links<'a> {
    vxlan: Option<u32>,
    underlay: u32,
    bridge: Option<u32>,
    sysctls: &'a Sysctls,
}

impl Links<'_> {
    fn carry_out(&mut self, op: &Op, kernel: &mut Kernel) -> Result<(), Error> {
        let Kernel { rt, nft, ethtool } = kernel;
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
            Op::ChecksumsBefore => {
                let link = LINK_NAMES.vxlan;
                let done = ethtool.set_tx_checksum(link, false);
                done.map_err(|source| Error::Checksums { link, source })
            }
            Op::DeleteStray(route) => Ok(rt.delete_route(*route)?),
            Op::Delete(entry) => match self.index(entry.over(), rt)? {
                Some(link) => Ok(delete(*entry, link, rt)?),
                None => Ok(()), // gone with its link
            },
            Op::Set(entry) => match self.index(entry.over(), rt)? {
                Some(link) => Ok(set(*entry, link, rt)?),
                None => Err(Error::NoLink {
                    entry: *entry,
                    link: entry.over(),
                }),
            },
            // Those of links of ours go with the link.
            Op::Sysctl { name, value } if is_of_own_link(name) => Ok(sysctl::set(name, value).map(drop)?),
            Op::Sysctl { name, value } => Ok(self.sysctls.set(name, value)?),
            Op::Masquerade(masquerade) => {
                for ruleset in masquerade::rulesets(masquerade) {
                    nft.ensure(&ruleset)?;
                }
                Ok(())
            }
        }
    }

    fn index(&mut self, over: Over, rt: &mut Rtnl) -> Result<Option<u32>, Error> {
        let (known, name) = match over {
            Over::Vxlan => (&mut self.vxlan, LINK_NAMES.vxlan),
            Over::Bridge => (&mut self.bridge, LINK_NAMES.bridge),
            Over::Underlay => return Ok(Some(self.underlay)),
        };
        if known.is_none() {
            *known = rt.link(name)?.map(|l| l.index);
        }
        Ok(*known)
    }
}

fn is_of_own_link(sysctl: &str) -> bool {
    let mut parts = sysctl.split('/');
    parts.any(|part| part == LINK_NAMES.vxlan || part == LINK_NAMES.bridge)
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
        Entry::Route { .. } => route(&entry, link).map_or(Ok(()), |route| rt.replace_route(route)),
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
        Entry::Route { .. } => route(&entry, link).map_or(Ok(()), |route| rt.delete_route(route)),
    }
}
