//! This machine's address where nobody has said one: looked for again whenever links, addresses or routes change.

use std::net::IpAddr;
use std::time::Duration;

use crate::monitor::{Event, Group, Monitor};
use crate::route::PROTOCOL_SVCNET;
use crate::rt::{self, Rtnl};
use crate::underlay::{self, Choice};

/// Whoever gives a link another address takes the former one away first, or last, and sets routes in between.
const SETTLE: Duration = Duration::from_millis(100);

/// Looks for the address.
pub struct Follow {
    choice: Choice,
    /// Links that lead to no other node.
    ours: &'static [&'static str],
    rt: Rtnl,
    monitor: Option<Monitor>,
    /// Something has changed that was not looked at yet: a wait may be given up at any moment, and begun anew.
    unseen: bool,
}

impl Follow {
    /// Looks on the link that is meant, but on none of `ours`.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn new(choice: Choice, ours: &'static [&'static str]) -> Result<Self, rt::Error> {
        Ok(Self {
            choice,
            ours,
            rt: Rtnl::open()?,
            monitor: None,
            unseen: true, // it may have changed before anybody listened
        })
    }

    /// The address after the next change that may have made it another. While there is none, as between two leases, the
    /// former one counts. A wait that is given up loses nothing.
    pub async fn next(&mut self) -> IpAddr {
        loop {
            if let Err(error) = self.changed().await {
                tracing::warn!(%error, "changes of this node's address are not noticed");
                return std::future::pending().await;
            }
            self.unseen = false;
            let found = underlay::find(&mut self.rt, &self.choice, self.ours);
            match found {
                Ok(Ok(underlay)) => return underlay.address,
                Ok(Err(none)) => tracing::debug!(%none, "this node has no address now"),
                Err(error) => tracing::debug!(%error, "this node's address can not be looked for"),
            }
        }
    }

    async fn changed(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let monitor = match &mut self.monitor {
            Some(monitor) => monitor,
            None => self
                .monitor
                .insert(Monitor::open(&[Group::Link, Group::Address, Group::Route])?),
        };
        while !self.unseen {
            let events = monitor.next().await?;
            self.unseen = events.iter().any(|event| concerns(event, self.ours));
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }
}

fn concerns(event: &Event, ours: &[&str]) -> bool {
    match event {
        Event::Lost | Event::Address(..) => true,
        Event::Link(_, link) => !ours.contains(&link.name.as_str()) && link.master.is_none(),
        // Only default routes say where the nodes are, or what leads to an address that was named.
        Event::Route(_, route) => route.protocol != PROTOCOL_SVCNET,
        Event::LocalDeleted(_) | Event::Neighbour(..) | Event::Fdb(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Address;
    use crate::netns::OwnedNetNs;

    #[test]
    fn another_address_is_noticed_and_none_is_waited_out() {
        let netns = OwnedNetNs::unique("svcnet-follow").unwrap();
        let mut rt = Rtnl::open_in(&netns).unwrap();
        rt.add_bridge("eth0", None, None).unwrap();
        let link = rt.link("eth0").unwrap().unwrap().index;
        let address = |text: &str| Address {
            link,
            net: text.parse().unwrap(),
        };
        rt.replace_address(address("172.30.0.11/24")).unwrap();
        let follow = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut follow = Follow::new(Choice::default(), &[]).unwrap();
                assert_eq!(follow.next().await.to_string(), "172.30.0.11");
                rt.delete_address(address("172.30.0.11/24")).unwrap();
                // A wait that is given up loses nothing.
                let none = tokio::time::timeout(Duration::from_millis(30), follow.next()).await;
                assert!(none.is_err(), "there is no address");
                rt.replace_address(address("172.30.0.21/24")).unwrap();
                let wait = Duration::from_secs(30);
                let found = tokio::time::timeout(wait, follow.next()).await.unwrap();
                assert_eq!(found.to_string(), "172.30.0.21");
            });
        };
        netns.run(follow).unwrap();
    }
}
