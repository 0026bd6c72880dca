//! The cluster DNS addresses on the node: every node has them on `lo`, so that no question leaves the node or passes
//! address translation on its way.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::link::Change;
use svcnet_netlink::monitor::{Event, Group, Monitor};
use svcnet_runtime::backoff::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::progress::Progress;

/// How often to look even though nothing is said to have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Why the addresses are not where they should be.
#[derive(Debug, thiserror::Error)]
enum VipError {
    #[error("there is no link {0}")]
    NoLink(String),
    #[error(transparent)]
    Kernel(#[from] svcnet_netlink::rt::Error),
}

/// Keeps the addresses in place. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Vip {
    /// The link, if it is ours to care for the addresses.
    link: Option<String>,
    addresses: Vec<IpAddr>,
    placed: watch::Sender<bool>,
}

impl Vip {
    pub(crate) fn new(config: &Config) -> Self {
        let link = config.bind_interface.as_ref().map(ToString::to_string);
        let nothing_to_do = link.is_none() || config.addresses.is_empty();
        Self {
            link,
            addresses: config.addresses.clone(),
            placed: watch::Sender::new(nothing_to_do),
        }
    }

    /// Waits until an address has been put in place, unless it is none of ours.
    pub(crate) async fn placed(&self, address: IpAddr) {
        if self.addresses.contains(&address) {
            // Fails only without a sender, and `self` holds one.
            _ = self.placed.subscribe().wait_for(|placed| *placed).await;
        }
    }

    /// Puts the addresses in place, and again whenever somebody has removed them, until shutdown. They stay behind: the
    /// server that comes next finds them, and until then clients are refused at once rather than led astray.
    pub(crate) async fn keep(&self, progress: Progress, shutdown: CancellationToken) {
        let Some(link) = &self.link else { return };
        let what = format!("the cluster DNS address on {link}");
        progress.waiting(what.clone());
        let mut backoff = Backoff::default();
        loop {
            // Subscribed before looking: a removal in between is not missed.
            let monitor = Monitor::open(&[Group::Address, Group::Link]);
            let placed = monitor.map_err(VipError::from).and_then(|monitor| {
                place(link, &self.addresses)?;
                Ok(monitor)
            });
            let delay = match placed {
                Ok(monitor) => {
                    self.placed.send_replace(true);
                    progress.done(&what);
                    backoff.reset();
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = self.disturbed(monitor) => {}
                        () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    }
                    continue;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if backoff.is_news(&reason) {
                        tracing::warn!(
                            link,
                            reason,
                            "cannot put the cluster DNS address in place, trying again"
                        );
                        progress.failed(&what, reason);
                    }
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Until something happened that may have removed an address.
    async fn disturbed(&self, mut monitor: Monitor) {
        loop {
            let Ok(events) = monitor.next().await else { return };
            let ours = |event: &Event| match event {
                Event::Address(_, address) => self.addresses.contains(&address.net.addr()),
                Event::Link(_, link) => Some(&link.name) == self.link.as_ref(),
                Event::Lost => true,
                _ => false,
            };
            if events.iter().any(ours) {
                return;
            }
        }
    }
}

/// Gives the link what it lacks.
fn place(link: &str, addresses: &[IpAddr]) -> Result<(), VipError> {
    let mut rtnl = Rtnl::open()?;
    let found = rtnl
        .link(link)?
        .ok_or_else(|| VipError::NoLink(link.to_string()))?;
    if !found.up {
        rtnl.change_link(found.index, &Change::up())?;
        tracing::info!(link, "brought the link up for the cluster DNS address");
    }
    for address in missing(found.index, addresses, &rtnl.addresses(Some(found.index))?) {
        rtnl.replace_address(address)?;
        tracing::info!(link, address = %address.net, "put the cluster DNS address in place");
    }
    Ok(())
}

/// The addresses to add.
fn missing(link: u32, desired: &[IpAddr], observed: &[Address]) -> Vec<Address> {
    let desired = desired.iter().map(|&address| Address {
        link,
        net: IpNet::from(address),
    });
    desired.filter(|address| !observed.contains(address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_added() {
        let desired: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()];
        let all = missing(1, &desired, &[]);
        let texts: Vec<String> = all.iter().map(|address| address.net.to_string()).collect();
        assert_eq!(texts, ["10.96.0.10/32", "fd00:96::a/128"]);
        assert_eq!(missing(1, &desired, &all), []);
        // The same address on another link or in another network does not serve.
        assert_eq!(missing(2, &desired, &all).len(), 2);
    }
}
