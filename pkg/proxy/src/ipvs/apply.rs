//! Carries a plan out. No choices are made here.

use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_netlink::addr::Address;
use svcnet_netlink::ipvs as kernel;
use svcnet_netlink::nft::{self, Batch, Concat, Data, Element, Family, Socket};
use svcnet_netlink::{Rtnl, rt, sysctl};

use super::layout::{self, Networks};
use super::plan::{Elements, Plan};
use super::{Error, LINK};
use crate::backend::Mode;
use crate::sysctls::Sysctls;

/// The ways to the kernel.
pub(super) struct Kernel {
    pub(super) tables: Socket,
    pub(super) links: Rtnl,
    pub(super) balancer: kernel::Socket,
}

impl Kernel {
    /// Carries a plan out, and says how many bytes that took.
    pub(super) fn apply(
        &mut self,
        plan: &Plan,
        networks: &Networks,
        sysctls: Option<&Sysctls>,
    ) -> Result<usize, Error> {
        for (name, value) in &plan.sysctls {
            match sysctls {
                Some(sysctls) => sysctls.set(Mode::Ipvs, name, value)?,
                None => drop(sysctl::set(name, value)?),
            }
        }
        if let (Some(sysctls), false) = (sysctls, plan.restore.is_empty()) {
            sysctls.restore(Mode::Ipvs, &plan.restore)?;
        }
        if let Some(timeouts) = plan.timeouts {
            timeouts.apply(&mut self.balancer, sysctls)?;
        }
        let mut before = Batch::new();
        for family in &plan.rebuild {
            before.remove_table(&layout::table(*family));
            layout::ruleset(*family, networks).create(&mut before);
        }
        let mut bytes = commit(&mut self.tables, before, &plan.before)?;
        if plan.add_link {
            self.links.add_dummy(LINK)?;
        }
        if !plan.unbind.is_empty() {
            let link = self.link()?;
            for ip in &plan.unbind {
                self.links.delete_address(address(link, *ip))?;
            }
        }
        bytes += self.balancer.apply(&plan.ops)?;
        if !plan.bind.is_empty() {
            let link = self.link()?;
            for ip in &plan.bind {
                self.links.replace_address(address(link, *ip))?;
            }
        }
        bytes += commit(&mut self.tables, Batch::new(), &plan.after)?;
        Ok(bytes)
    }

    /// Index of our link.
    fn link(&mut self) -> Result<u32, rt::Error> {
        let gone = || rt::Error {
            operation: "look up",
            object: format!("link {LINK}"),
            source: nix::errno::Errno::ENODEV.into(),
            hint: None,
        };
        Ok(self.links.link(LINK)?.ok_or_else(gone)?.index)
    }
}

pub(super) fn address(link: u32, ip: IpAddr) -> Address {
    Address {
        link,
        net: IpNet::from(ip),
    }
}

pub(super) fn commit(
    socket: &mut Socket,
    mut batch: Batch,
    elements: &Elements,
) -> Result<usize, nft::Error> {
    let tables = [layout::table(Family::Ip), layout::table(Family::Ip6)];
    let table = |family: Family| &tables[usize::from(family == Family::Ip6)];
    for slot in &elements.deletes {
        let (key, key_end) = (slot.key(), slot.key_end());
        let key_end = key_end.as_ref().map(Concat::as_bytes);
        batch.delete_element(table(slot.family()), slot.set(), key.as_bytes(), key_end);
    }
    for (slot, name) in &elements.adds {
        let (key, key_end) = (slot.key(), slot.key_end());
        let element = Element {
            key_end: key_end.as_ref().map(Concat::as_bytes),
            data: Data::None,
            comment: Some(&**name).filter(|name| !name.is_empty()),
            ..Element::key(key.as_bytes())
        };
        batch.add_element(table(slot.family()), slot.set(), &element);
    }
    if batch.is_empty() {
        return Ok(0);
    }
    let bytes = batch.len();
    socket.commit(batch)?;
    Ok(bytes)
}
