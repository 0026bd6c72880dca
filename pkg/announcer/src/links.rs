//! Which of the node's links carry announcements.

use std::fmt;

use svcnet_netlink::link::Link;
use svcnet_netlink::monitor::{Event, Happened};
use svcnet_netlink::packet::Mac;

use crate::config::{Config, LinkPattern};
use crate::desired::Links;

/// A link that carries announcements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carrier {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Mac,
}

/// Why a link carries none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    Loopback,
    /// It has no Ethernet address.
    NotEthernet,
    /// ARP is off.
    NoArp,
    /// It is a port of a bridge or bond, which gets its frames.
    Enslaved,
    /// It is configured to be left alone, or others to be used.
    Excluded,
    /// It is down or has no carrier.
    Down,
}

/// The links that carry announcements, of all there are.
pub(crate) fn carriers(links: &[Link], config: &Config) -> Vec<Carrier> {
    let carrier = |link: &Link| {
        fitness(link, config).ok().map(|mac| Carrier {
            index: link.index,
            name: link.name.clone(),
            mac,
        })
    };
    links.iter().filter_map(carrier).collect()
}

/// Whether a change may make them others: what pods come and go by is no news.
pub(crate) fn concerns(event: &Event, carriers: &[Carrier], config: &Config) -> bool {
    let Event::Link(happened, link) = event else {
        return *event == Event::Lost;
    };
    let known = carriers.iter().find(|c| c.index == link.index);
    match (happened, fitness(link, config)) {
        (Happened::Set, Ok(mac)) => known.is_none_or(|c| (c.name.as_str(), c.mac) != (&link.name, mac)),
        (Happened::Set, Err(_)) | (Happened::Deleted, _) => known.is_some(),
    }
}

/// The link's address, if it carries announcements.
pub(crate) fn fitness(link: &Link, config: &Config) -> Result<Mac, Unfit> {
    let listed = |patterns: &[LinkPattern]| patterns.iter().any(|p| p.matches(&link.name));
    // What is asked for by name is not excluded by a default.
    let wanted = if config.interfaces.is_empty() {
        !listed(&config.excluded_interfaces)
    } else {
        listed(&config.interfaces)
    };
    if link.loopback {
        return Err(Unfit::Loopback);
    }
    let mac = link.mac.filter(|mac| *mac != [0; 6]).ok_or(Unfit::NotEthernet)?;
    if link.no_arp {
        Err(Unfit::NoArp)
    } else if link.master.is_some() {
        Err(Unfit::Enslaved)
    } else if !wanted {
        Err(Unfit::Excluded)
    } else if !(link.up && link.lower_up) {
        Err(Unfit::Down)
    } else {
        Ok(mac)
    }
}

/// Those of the carriers that are meant.
pub(crate) fn meant<'a>(carriers: &'a [Carrier], links: &'a Links) -> impl Iterator<Item = &'a Carrier> {
    carriers.iter().filter(|c| links.take(&c.name))
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "loopback",
            Self::NotEthernet => "not Ethernet",
            Self::NoArp => "ARP is off",
            Self::Enslaved => "port of a bridge or bond",
            Self::Excluded => "excluded by the configuration",
            Self::Down => "down",
        })
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
