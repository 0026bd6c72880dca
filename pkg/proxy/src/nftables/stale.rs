//! What outlives a change in the kernel's memory, and must not: connections that conntrack still sends to where they do
//! not belong, and clients that stay with an endpoint that is gone.
//!
//! Connections are those of UDP and SCTP ([`Protocol::outlives_endpoints`]). One contradicts the new state when it goes to
//! an endpoint that its client may not have any more, or went to nobody and could go to somebody or is to be refused (only
//! the first packet of a connection passes the chains that refuse); endpoints that only take no new connections keep theirs.
//!
//! And after a look at everything, TCP connections that nobody has answered and that were not translated: the kernel decides
//! about translation with the first packet of a connection, and keeps to it when that is sent again. So who tried to connect
//! while the table was gone would find nobody for two minutes, if another table has rules for translation.
//!
//! All are looked for after the commit, so that nothing new can take the old way; and only where a change can have
//! left something, because looking costs in proportion to the connections there are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use svcnet_netlink::conntrack::{self, Entry};
use svcnet_netlink::nft::{Batch, Error, Family, Fields, Socket};
use svcnet_netlink::{Rtnl, rt};

use super::layout;
use super::plan::{Gone, State};
use super::shape::AFFINITY_MAP;
use super::slot::read_address;
use crate::model::{Endpoint, Fate, Frontend, FrontendKey, Protocol};

/// What to look for after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Suspects {
    /// Whether connections to each frontend there is are looked at, changed or not.
    everything: bool,
    /// Frontends whose connections are looked at, with endpoints that they have lost.
    changed: BTreeMap<FrontendKey, BTreeSet<SocketAddr>>,
    /// Frontends with the endpoints that no client stays with any more.
    stays: BTreeMap<FrontendKey, BTreeSet<SocketAddr>>,
}

/// What is known where connections are looked at.
struct Scene<'a> {
    state: &'a State,
    pods: &'a [IpNet],
    /// The addresses of this node.
    ours: HashSet<IpAddr>,
    family: Family,
    protocol: Protocol,
}

/// The endpoints that clients from outside can be sent to.
fn for_outside(frontend: Option<&Frontend>) -> &[Endpoint] {
    frontend.map_or(&[], |f| f.outside.as_ref().unwrap_or(&f.fate).endpoints())
}

/// Those that all others can be sent to.
fn for_inside(frontend: Option<&Frontend>) -> &[Endpoint] {
    frontend.map_or(&[], |f| f.fate.endpoints())
}

fn lost(before: &[Endpoint], after: &[Endpoint]) -> BTreeSet<SocketAddr> {
    let after: BTreeSet<SocketAddr> = after.iter().map(|e| e.at).collect();
    before
        .iter()
        .map(|e| e.at)
        .filter(|at| !after.contains(at))
        .collect()
}

impl Suspects {
    /// Takes the change of one frontend into account.
    pub(crate) fn add(&mut self, key: FrontendKey, before: Option<&Frontend>, after: Option<&Frontend>) {
        let mut gone = lost(for_inside(before), for_inside(after));
        gone.extend(lost(for_outside(before), for_outside(after)));
        if key.protocol().outlives_endpoints() {
            let drained = before.map_or(&[][..], |f| &f.draining);
            let drained = lost(drained, after.map_or(&[], |f| &f.draining));
            let serves = |f: Option<&Frontend>| f.is_some_and(|f| matches!(f.fate, Fate::Balance(_)));
            // What came before the first endpoint, or before the frontend, went untranslated to nobody, and would go on so.
            let is_new = before.is_none() && after.is_some();
            if !gone.is_empty() || !drained.is_empty() || is_new || (serves(after) && !serves(before)) {
                self.changed.insert(key, gone.union(&drained).copied().collect());
            }
        }
        if before.is_some_and(|f| f.affinity_seconds.is_some()) && !gone.is_empty() {
            self.stays.insert(key, gone);
        }
    }

    /// After a look at everything, with the endpoints that its plan takes away. Of what came and went while nobody was
    /// there to see it, nothing else is known.
    pub(crate) fn of_everything(gone: Vec<Gone>) -> Self {
        let mut suspects = Self {
            everything: true,
            ..Self::default()
        };
        for (key, at) in gone {
            suspects.stays.entry(key).or_default().insert(at);
            if key.protocol().outlives_endpoints() {
                suspects.changed.entry(key).or_default().insert(at);
            }
        }
        suspects
    }

    /// Whether there is nothing to look for.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Removes what is found, and says how much it was.
    pub(crate) fn clear(
        &self,
        socket: &mut Socket,
        links: &mut Rtnl,
        state: &State,
        pods: &[IpNet],
    ) -> Result<usize, Error> {
        let mut cleared = 0;
        for family in [Family::Ip, Family::Ip6] {
            for protocol in Protocol::ALL.into_iter().filter(|p| p.outlives_endpoints()) {
                let mut keys = self.changed.keys();
                if self.everything || keys.any(|key| key.family() == family && key.protocol() == protocol) {
                    let scene = Scene {
                        state,
                        pods,
                        ours: node_addresses(links).unwrap_or_default(),
                        family,
                        protocol,
                    };
                    cleared += self.clear_connections(socket, &scene)?;
                }
            }
            if self.everything {
                cleared += clear_untranslated(socket, links, state, family)?;
            }
            cleared += self.clear_stays(socket, family)?;
        }
        Ok(cleared)
    }

    fn clear_connections(&self, socket: &mut Socket, scene: &Scene<'_>) -> Result<usize, Error> {
        let (family, protocol) = (scene.family, scene.protocol.number());
        let entries = conntrack::list(socket, family, protocol, |entry| self.contradicts(entry, scene))?;
        let mut cleared = 0;
        for entry in entries {
            cleared += usize::from(conntrack::delete(socket, &entry)?);
        }
        Ok(cleared)
    }

    fn contradicts(&self, entry: &Entry, scene: &Scene<'_>) -> bool {
        let (client, to) = (entry.original.source.ip(), entry.original.destination);
        let (ip, port, protocol) = (to.ip(), to.port(), scene.protocol);
        let by_address = FrontendKey::Address { ip, protocol, port };
        let by_port = FrontendKey::NodePort {
            family: scene.family,
            protocol,
            port,
        };
        let is_ours = |ip: IpAddr| ip.is_loopback() || scene.ours.contains(&ip);
        let is_known = |key: &FrontendKey| {
            self.changed.contains_key(key) || (self.everything && scene.state.frontend(key).is_some())
        };
        let key = if is_known(&by_address) {
            by_address
        } else if is_ours(ip) && is_known(&by_port) {
            by_port
        } else {
            return false;
        };
        let at = entry.reply.source;
        let Some(frontend) = scene.state.frontend(&key) else {
            return self.changed.get(&key).is_some_and(|lost| lost.contains(&at));
        };
        let is_inside = scene.pods.iter().any(|net| net.contains(&client)) || is_ours(client);
        let bound = frontend.outside.is_some() && !is_inside;
        let right = if bound {
            for_outside(Some(frontend))
        } else {
            for_inside(Some(frontend))
        };
        let kept = frontend.draining.iter().filter(|e| e.local || !bound);
        // Where nobody serves, what is begun now is refused, and leaves no connection.
        !right.iter().chain(kept).any(|e| e.at == at)
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

/// Deletes what the kernel decided about TCP connections to our frontends before it had our rules, and that nobody has
/// answered: the client's next try is translated.
fn clear_untranslated(
    socket: &mut Socket,
    links: &mut Rtnl,
    state: &State,
    family: Family,
) -> Result<usize, Error> {
    let ours = node_addresses(links).unwrap_or_default();
    let protocol = Protocol::Tcp;
    let serves = |key: FrontendKey| {
        let frontend = state.frontend(&key);
        frontend.is_some_and(|frontend| frontend.endpoints().next().is_some())
    };
    let goes_nowhere = |entry: &Entry| {
        let to = entry.original.destination;
        let (ip, port) = (to.ip(), to.port());
        let by_port = FrontendKey::NodePort {
            family,
            protocol,
            port,
        };
        entry.is_unanswered()
            && entry.reply.source == to
            && (serves(FrontendKey::Address { ip, protocol, port })
                || ((ip.is_loopback() || ours.contains(&ip)) && serves(by_port)))
    };
    let mut cleared = 0;
    for entry in conntrack::list(socket, family, protocol.number(), goes_nowhere)? {
        cleared += usize::from(conntrack::delete(socket, &entry)?);
    }
    Ok(cleared)
}

/// Deletes what the kernel remembers of translated connections to these frontends, of protocols that would go on by it
/// whatever becomes of the endpoints.
pub(crate) fn forget(
    frontends: &HashSet<FrontendKey>,
    socket: &mut Socket,
    links: &mut Rtnl,
) -> Result<usize, Error> {
    let ours = node_addresses(links).unwrap_or_default();
    let mut cleared = 0;
    for family in [Family::Ip, Family::Ip6] {
        for protocol in Protocol::ALL.into_iter().filter(|p| p.outlives_endpoints()) {
            let to_ours = |entry: &Entry| {
                let to = entry.original.destination;
                let (ip, port) = (to.ip(), to.port());
                let at_address = frontends.contains(&FrontendKey::Address { ip, protocol, port });
                let at_port = || {
                    let key = FrontendKey::NodePort {
                        family,
                        protocol,
                        port,
                    };
                    (ip.is_loopback() || ours.contains(&ip)) && frontends.contains(&key)
                };
                entry.reply.source != to && (at_address || at_port())
            };
            for entry in conntrack::list(socket, family, protocol.number(), to_ours)? {
                cleared += usize::from(conntrack::delete(socket, &entry)?);
            }
        }
    }
    Ok(cleared)
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
            draining: Box::default(),
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
        assert_ne!(
            suspects(None, Some(&none)),
            nothing,
            "a new service without endpoints"
        );
        assert_eq!(suspects(Some(&none), Some(&none)), nothing, "it still has none");
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
        let drains = Frontend {
            draining: two
                .endpoints()
                .filter(|e| e.at == "10.0.0.2:53".parse().unwrap())
                .collect(),
            ..one.clone()
        };
        assert_ne!(suspects(Some(&drains), Some(&one)), nothing, "one has drained");
        let elsewhere = Frontend {
            outside: Some(Fate::OnlyElsewhere),
            ..one.clone()
        };
        assert_ne!(suspects(Some(&one), Some(&elsewhere)), nothing, "policy Local");
    }
}
