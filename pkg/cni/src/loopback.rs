//! The plugin `loopback`: sets `lo` up in a container. containerd and CRI-O call it beside every network and fail without
//! it, so a host where nobody has installed the reference plugins would start no pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;
use svcnet_netlink::Rtnl;
use svcnet_netlink::link::Change;
use svcnet_netlink::netns::NetNs;

use crate::protocol::{AddResult, CniError, Command, Interface, IpConfig, Request, code};

/// The type in a configuration, and the name of the plugin's file.
pub(crate) const NAME: &str = "loopback";
/// `LOOPBACK_IFINDEX`, in each namespace.
const INDEX: u32 = 1;

/// Answers a call. It needs no daemon.
///
/// # Errors
/// When the namespace is not there, or the kernel refuses.
pub(crate) fn serve(request: &Request) -> Result<Value, CniError> {
    let path = request.netns.clone().unwrap_or_default();
    let failed = |e: svcnet_netlink::rt::Error| CniError::new(code::KERNEL, "failed to set lo up").because(e);
    let open = || {
        let netns = NetNs::open_path(&path)
            .map_err(|e| CniError::new(code::CONTAINER_GONE, "failed to open netns").because(e))?;
        Rtnl::open_in(&netns).map_err(failed)
    };
    match request.command {
        Command::Add => {
            let mut rt = open()?;
            rt.set_loopback_up().map_err(failed)?;
            if let Some(previous) = &request.config.prev_result {
                return Ok(previous.clone());
            }
            let addresses = rt.addresses(Some(INDEX)).map_err(failed)?;
            let has = |address: IpAddr| addresses.iter().any(|a| a.net.addr() == address);
            Ok(
                result(&path.display().to_string(), has(Ipv6Addr::LOCALHOST.into()))
                    .render(request.config.version, None),
            )
        }
        Command::Check => {
            let lo = open()?.link_at(INDEX).map_err(failed)?;
            if lo.is_some_and(|lo| lo.up) {
                return Ok(Value::Null);
            }
            Err(
                CniError::new(code::CHECK, "the container's network is not as it was made")
                    .because("lo is down"),
            )
        }
        Command::Del => {
            // A namespace that is gone has no link either.
            if let Ok(mut rt) = open() {
                rt.change_link(INDEX, &Change::down()).map_err(failed)?;
            }
            Ok(Value::Null)
        }
        Command::Gc | Command::Status | Command::Version => Ok(Value::Null),
    }
}

fn result(netns: &str, has_v6: bool) -> AddResult {
    let address = |address: IpAddr, prefix| {
        let net = IpNet::new(address, prefix).unwrap_or(IpNet::from(address));
        IpConfig {
            interface: Some(0),
            address: net,
            gateway: None,
        }
    };
    let mut ips = vec![address(Ipv4Addr::LOCALHOST.into(), 8)];
    ips.extend(has_v6.then(|| address(Ipv6Addr::LOCALHOST.into(), 128)));
    AddResult {
        interfaces: vec![Interface {
            name: "lo".to_string(),
            mac: "00:00:00:00:00:00".to_string(),
            mtu: None,
            sandbox: Some(netns.to_string()),
        }],
        ips,
        ..AddResult::default()
    }
}
