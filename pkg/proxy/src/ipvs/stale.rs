//! Connections that conntrack still sends to where they do not belong: of UDP and SCTP
//! ([`Protocol::outlives_endpoints`]), whose clients would go on with them. They are looked for after a change, and only
//! where it can have left some: looking costs in proportion to the connections there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use svcnet_netlink::conntrack::{self, Entry};
use svcnet_netlink::ipvs::Virtual;
use svcnet_netlink::nft::{Error, Family, Socket};

use super::desired::Wanted;
use super::plan::Held;
use crate::model::Protocol;

/// What to look for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suspects(BTreeMap<Virtual, Wrong>);

/// Which connections of a virtual service contradict what is so now.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// All that do not go to one of these.
    NotTo(BTreeSet<SocketAddr>),
    /// Those that go to one of these.
    To(BTreeSet<SocketAddr>),
}

impl Suspects {
    /// Takes the change of one virtual service into account.
    pub(super) fn add(&mut self, at: Virtual, before: Option<&Held>, after: Option<&Wanted>) {
        if !Protocol::from_number(at.protocol).is_some_and(Protocol::outlives_endpoints) {
            return;
        }
        let old: BTreeSet<SocketAddr> =
            before.map_or_else(BTreeSet::new, |held| held.destinations.keys().copied().collect());
        let new: BTreeSet<SocketAddr> = after.map_or_else(BTreeSet::new, |wanted| {
            wanted.destinations.keys().copied().collect()
        });
        if new.is_empty() {
            if !old.is_empty() {
                self.0.insert(at, Wrong::To(old));
            }
        // What came before the first endpoint went to nobody, and would go on so.
        } else if old.is_empty() || !old.is_subset(&new) {
            self.0.insert(at, Wrong::NotTo(new));
        }
    }

    /// Removes what is found, and says how much it was.
    pub(super) fn clear(&self, socket: &mut Socket) -> Result<usize, Error> {
        let mut cleared = 0;
        let tables: BTreeSet<(Family, u8)> =
            self.0.keys().map(|at| (Family::of(at.ip), at.protocol)).collect();
        for (family, protocol) in tables {
            let entries = conntrack::list(socket, family, protocol, |entry| self.contradicts(entry))?;
            for entry in entries {
                cleared += usize::from(conntrack::delete(socket, &entry)?);
            }
        }
        Ok(cleared)
    }

    fn contradicts(&self, entry: &Entry) -> bool {
        let to = entry.original.destination;
        let at = Virtual {
            ip: to.ip(),
            protocol: entry.original.protocol,
            port: to.port(),
        };
        match self.0.get(&at) {
            Some(Wrong::NotTo(right)) => !right.contains(&entry.reply.source),
            Some(Wrong::To(wrong)) => wrong.contains(&entry.reply.source),
            None => false,
        }
    }
}
