//! The servers that share a datastore: each says that it is there, and which address it is reached at, by a record that goes
//! with it (the real server's `masterleases`). Together they are the endpoints of the Service `kubernetes`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::PoisonError;

use svcnet_store::{Collection, Key, Range, Template};
use tokio::sync::watch;

use crate::object;
use crate::server::Server;

/// What the store keeps them under: no kind of object, so that no verb reaches them.
pub(crate) const COLLECTION: &str = "masterleases.svcnet.io";

/// Where a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    pub(crate) port: u16,
    pub(crate) address: IpAddr,
}

/// Tells a server that others reach it at another address.
#[derive(Debug, Clone)]
pub struct Advertiser(pub(crate) watch::Sender<IpAddr>);

impl Advertiser {
    /// From now on the server is reached at this address: its certificate is for it, the administrator's kubeconfig leads to
    /// it, and it is the endpoint of the Service `kubernetes`.
    pub fn set(&self, address: IpAddr) {
        self.0
            .send_if_modified(|now| std::mem::replace(now, address) != address);
    }
}

impl Server {
    fn masters(&self) -> Option<Collection> {
        self.store
            .collection(COLLECTION)
            .filter(|_| self.store.is_shared())
    }

    /// Where others reach this server, now.
    pub(crate) fn advertised(&self) -> IpAddr {
        *self.advertised.borrow()
    }

    /// Says that this server is there, as long as it is, and no more that it is elsewhere.
    pub(crate) fn announce(&self, port: u16) {
        let Some(collection) = self.masters() else { return };
        let address = self.advertised();
        let after = format!(",\"address\":\"{address}\",\"port\":{port}}}");
        let record = Template::new(b"{\"revision\":".to_vec(), after.into_bytes());
        let key = Key::new(collection, "", &format!("{address}_{port}"));
        let present = self.store.present(&key, &record);
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = std::mem::replace(&mut *announced, present) {
            former.cancel();
        }
    }

    /// The servers of the cluster, this one among them, of its address family.
    pub(crate) fn peers(&self, port: u16) -> BTreeSet<Peer> {
        let own = Peer {
            port,
            address: self.advertised(),
        };
        let mut peers = BTreeSet::from([own]);
        let snapshot = self
            .masters()
            .and_then(|masters| self.store.list(masters, &Range::default(), None).ok());
        for (_, entry) in snapshot.into_iter().flat_map(|s| s.entries) {
            let record = object::parse(&entry).unwrap_or_default();
            let address = record["address"].as_str().and_then(|a| a.parse::<IpAddr>().ok());
            let port = record["port"].as_u64().and_then(|p| u16::try_from(p).ok());
            if let (Some(address), Some(port)) = (address, port)
                && address.is_ipv4() == own.address.is_ipv4()
                && !address.is_loopback()
            {
                peers.insert(Peer { port, address });
            }
        }
        peers
    }
}
