//! What outlives a change in the kernel's memory, and must not: UDP connections that conntrack still sends to where
//! they do not belong, and clients that stay with an endpoint that is gone.
//!
//! Both are looked for after the commit, so that nothing new can take the old way; and only where a change can have
//! left something, because looking costs in proportion to the connections there are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use svcnet_netlink::conntrack::{self, Entry};
use svcnet_netlink::nft::{Batch, Error, Family, Fields, Socket};
use svcnet_netlink::{Rtnl, rt};

use super::layout;
use super::plan::{Gone, Plan, State};
use super::shape::AFFINITY_MAP;
use super::slot::{List, Slot, read_address};
use crate::model::{Fate, Frontend, FrontendKey, Protocol};

/// What to look for after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    udp: BTreeMap<FrontendKey, Udp>,
    stays: BTreeMap<FrontendKey, BTreeSet<SocketAddr>>,
}

/// Which UDP connections of a frontend contradict what is so now.
#[derive(Debug, PartialEq, Eq)]
enum Udp {
    /// All that do not go to one of these.
    NotTo(BTreeSet<SocketAddr>),
    /// Those that go to one of these.
    To(BTreeSet<SocketAddr>),
}

impl Suspects {
    /// Takes the change of one frontend into account.
    pub(crate) fn add(&mut self, key: FrontendKey, before: Option<&Frontend>, after: Option<&Frontend>) {
        let at = |frontend: Option<&Frontend>| -> BTreeSet<SocketAddr> {
            frontend
                .into_iter()
                .flat_map(Frontend::endpoints)
                .map(|e| e.at)
                .collect()
        };
        let (old, new) = (at(before), at(after));
        let gone: BTreeSet<SocketAddr> = old.difference(&new).copied().collect();
        if key.protocol() == Protocol::Udp {
            let serves = |f: Option<&Frontend>| f.is_some_and(|f| matches!(f.fate, Fate::Balance(_)));
            if serves(after) {
                // What came before the first endpoint went untranslated to nobody, and would go on so.
                if !gone.is_empty() || !serves(before) {
                    self.udp.insert(key, Udp::NotTo(new.clone()));
                }
            } else if !old.is_empty() {
                self.udp.insert(key, Udp::To(old));
            }
        }
        let stayed = before.is_some_and(|f| f.affinity_seconds.is_some());
        if stayed && !gone.is_empty() {
            self.stays.insert(key, gone);
        }
    }

    /// Takes into account what a plan for everything does: the frontends that it makes serve, and the endpoints that
    /// it takes away.
    pub(crate) fn of_plan(plan: &Plan, state: &State, gone: Vec<Gone>) -> Self {
        let mut suspects = Self::default();
        let now = |key: &FrontendKey| -> Option<BTreeSet<SocketAddr>> {
            let frontend = state
                .frontend(key)
                .filter(|f| matches!(f.fate, Fate::Balance(_)))?;
            Some(frontend.endpoints().map(|e| e.at).collect())
        };
        for (slot, _, _) in &plan.adds {
            if let Slot::Frontend(List::Services, key) = slot
                && key.protocol() == Protocol::Udp
                && let Some(right) = now(key)
            {
                suspects.udp.insert(*key, Udp::NotTo(right));
            }
        }
        for (key, at) in gone {
            suspects.stays.entry(key).or_default().insert(at);
            if key.protocol() != Protocol::Udp {
                continue;
            }
            let udp = suspects.udp.entry(key);
            let udp = udp.or_insert_with(|| now(&key).map_or_else(|| Udp::To(BTreeSet::new()), Udp::NotTo));
            if let Udp::To(wrong) = udp {
                wrong.insert(at);
            }
        }
        suspects
    }

    /// Everything that conntrack knows of datagrams to these.
    pub(crate) fn all(frontends: impl Iterator<Item = FrontendKey>) -> Self {
        let udp = frontends.filter(|key| key.protocol() == Protocol::Udp);
        Self {
            udp: udp.map(|key| (key, Udp::NotTo(BTreeSet::new()))).collect(),
            stays: BTreeMap::new(),
        }
    }

    /// Removes what is found, and says how much it was.
    pub(crate) fn clear(&self, socket: &mut Socket, links: &mut Rtnl) -> Result<usize, Error> {
        let mut cleared = 0;
        for family in [Family::Ip, Family::Ip6] {
            cleared += self.clear_udp(socket, links, family)?;
            cleared += self.clear_stays(socket, family)?;
        }
        Ok(cleared)
    }

    fn clear_udp(&self, socket: &mut Socket, links: &mut Rtnl, family: Family) -> Result<usize, Error> {
        let mut of_family = self.udp.keys().filter(|key| key.family() == family).peekable();
        if of_family.peek().is_none() {
            return Ok(0);
        }
        let ours = match of_family.any(|key| matches!(key, FrontendKey::NodePort { .. })) {
            true => node_addresses(links).unwrap_or_default(),
            false => HashSet::new(),
        };
        let entries = conntrack::list(socket, family, conntrack::UDP, |entry| {
            self.contradicts(entry, family, &ours)
        })?;
        let mut cleared = 0;
        for entry in entries {
            cleared += usize::from(conntrack::delete(socket, &entry)?);
        }
        Ok(cleared)
    }

    fn contradicts(&self, entry: &Entry, family: Family, ours: &HashSet<IpAddr>) -> bool {
        let destination = entry.original.destination;
        let (ip, port, protocol) = (destination.ip(), destination.port(), Protocol::Udp);
        let by_port = FrontendKey::NodePort {
            family,
            protocol,
            port,
        };
        let udp = self.udp.get(&FrontendKey::Address { ip, protocol, port });
        let udp = udp.or_else(|| {
            self.udp
                .get(&by_port)
                .filter(|_| ours.contains(&ip) || ip.is_loopback())
        });
        match udp {
            Some(Udp::NotTo(right)) => !right.contains(&entry.reply.source),
            Some(Udp::To(wrong)) => wrong.contains(&entry.reply.source),
            None => false,
        }
    }

    fn clear_stays(&self, socket: &mut Socket, family: Family) -> Result<usize, Error> {
        if !self.stays.keys().any(|key| key.family() == family) {
            return Ok(0);
        }
        let table = layout::table(family);
        let mut found: BTreeSet<Vec<u8>> = BTreeSet::new();
        socket.elements(
            &table,
            AFFINITY_MAP,
            || {},
            |element| {
                if self.stays_wrongly(element.key, element.value, family) == Some(true) {
                    found.insert(element.key.to_vec());
                }
            },
        )?;
        let mut cleared = 0;
        // One batch for each: an element that times out meanwhile must not keep the others.
        for key in found {
            let mut batch = Batch::new();
            batch.delete_element(&table, AFFINITY_MAP, &key, None);
            match socket.commit(batch) {
                Ok(()) => cleared += 1,
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(cleared)
    }

    fn stays_wrongly(&self, key: &[u8], value: Option<&[u8]>, family: Family) -> Option<bool> {
        let mut fields = Fields(key);
        let v6 = family == Family::Ip6;
        let (_client, ip) = (fields.ip(v6)?, fields.ip(v6)?);
        let protocol = Protocol::from_number(fields.proto()?)?;
        let port = fields.port()?;
        let gone = self
            .stays
            .get(&FrontendKey::Address { ip, protocol, port })
            .or_else(|| {
                self.stays.get(&FrontendKey::NodePort {
                    family,
                    protocol,
                    port,
                })
            })?;
        Some(gone.contains(&read_address(value?, family)?))
    }
}

/// The addresses that node ports answer on.
fn node_addresses(links: &mut Rtnl) -> Result<HashSet<IpAddr>, rt::Error> {
    Ok(links
        .addresses(None)?
        .into_iter()
        .map(|address| address.net.addr())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Masquerade};

    fn frontend(endpoints: &[&str]) -> Frontend {
        let key = FrontendKey::Address {
            ip: "10.96.0.1".parse().unwrap(),
            protocol: Protocol::Udp,
            port: 53,
        };
        let endpoints: Vec<Endpoint> = endpoints
            .iter()
            .map(|at| Endpoint {
                at: at.parse().unwrap(),
                local: false,
                weight: 1,
            })
            .collect();
        Frontend {
            key,
            name: "a/b".into(),
            fate: if endpoints.is_empty() {
                Fate::NoEndpoints
            } else {
                Fate::Balance(endpoints)
            },
            outside: None,
            scheduler: crate::Scheduler::Random,
            affinity_seconds: None,
            masquerade: Masquerade::ByServiceNetwork,
            inside: true,
            sources: None,
        }
    }

    fn suspects(before: Option<&Frontend>, after: Option<&Frontend>) -> Suspects {
        let mut suspects = Suspects::default();
        suspects.add(frontend(&[]).key, before, after);
        suspects
    }

    #[test]
    fn only_changes_that_leave_something_are_looked_into() {
        let (none, one, two) = (
            frontend(&[]),
            frontend(&["10.0.0.1:53"]),
            frontend(&["10.0.0.1:53", "10.0.0.2:53"]),
        );
        let nothing = Suspects::default();
        assert_eq!(suspects(Some(&one), Some(&two)), nothing, "an endpoint more");
        assert_eq!(
            suspects(None, Some(&none)),
            nothing,
            "a service without endpoints"
        );
        assert_ne!(suspects(Some(&two), Some(&one)), nothing, "an endpoint less");
        assert_ne!(suspects(Some(&none), Some(&one)), nothing, "the first endpoint");
        assert_ne!(
            suspects(None, Some(&one)),
            nothing,
            "a new service with endpoints"
        );
        assert_ne!(
            suspects(Some(&one), Some(&none)),
            nothing,
            "the last endpoint is gone"
        );
        assert_ne!(suspects(Some(&one), None), nothing, "the service is gone");
    }
}
