//! CHECK: is a container attached as ADD made it?

use std::net::IpAddr;
use std::path::Path;

use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::NetNs;

use super::attach::pod_link;
use super::serve::{Server, not_yet};
use crate::protocol::{AddResult, Attachment, CniError, Request, code};
use crate::{bandwidth, link};

impl Server {
    pub(super) fn check(&self, attachment: &Attachment, request: &Request) -> Result<(), CniError> {
        let differs = |why: String| {
            CniError::new(code::CHECK, "the container's network is not as it was made").because(why)
        };
        let prev = request
            .config
            .prev_result
            .as_ref()
            .map(|v| serde_json::from_value::<AddResult>(v.clone()));
        let prev = prev
            .transpose()
            .map_err(|e| CniError::new(code::DECODE, "failed to decode prevResult").because(e))?;
        let network = self.network().ok_or_else(|| not_yet(code::RETRY))?;
        let _turn = self.busy.enter(attachment.container());
        let lease = self.ipam().get(attachment).cloned();
        let lease = lease.ok_or_else(|| differs(format!("{attachment} has no address")))?;
        // Runtimes must say what ADD answered; where one does not, the lease alone tells.
        let untold = |prev: &AddResult| {
            let told = |a: &IpAddr| prev.ips.iter().any(|ip| ip.address.addr() == *a);
            lease.addresses.iter().find(|a| !told(a)).copied()
        };
        if let Some(address) = prev.as_ref().and_then(untold) {
            return Err(differs(format!("prevResult lacks the address {address}")));
        }
        let path = request.netns.as_deref().unwrap_or(Path::new(""));
        let netns = NetNs::open_path(path)
            .map_err(|e| CniError::new(code::CONTAINER_GONE, "failed to open netns").because(e))?;
        let mut wanted = pod_link(&lease, &network);
        // A plugin behind this one, like the reference `tuning`, may have given another Ethernet address.
        let own = prev.iter().flat_map(|p| &p.interfaces);
        let mut own = own.filter(|i| i.sandbox.is_some() && i.name == attachment.ifname());
        if let Some(mac) = own.next().and_then(|i| i.mac.parse().ok()) {
            wanted.mac = mac;
        }
        let failed =
            |e: link::Error| CniError::new(code::KERNEL, "failed to read the container's network").because(e);
        let mut rt = Rtnl::open().map_err(|e| failed(e.into()))?;
        let wrong = link::check(&mut rt, &netns, &wanted).map_err(failed)?;
        let mut wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        let limits = bandwidth::check(&mut rt, attachment, &lease.runtime.bandwidth, wanted.mtu);
        wrong.extend(limits.map_err(|e| failed(e.into()))?);
        wrong.extend(self.wrong_ports(&lease)?);
        if wrong.is_empty() {
            return Ok(());
        }
        Err(differs(wrong.join("; ")))
    }

    /// The ports of the host that do not lead where they should.
    fn wrong_ports(&self, lease: &crate::ipam::Lease) -> Result<Vec<String>, CniError> {
        if lease.runtime.port_mappings.is_empty() {
            return Ok(Vec::new());
        }
        let missing = crate::hostport::missing(std::iter::once(lease), &self.cluster_dns)
            .map_err(|e| CniError::new(code::KERNEL, "failed to read the ports of the host").because(e))?;
        let words = missing
            .iter()
            .map(|(port, to)| format!("port {port} of the host does not lead to {to}"));
        Ok(words.collect())
    }
}
