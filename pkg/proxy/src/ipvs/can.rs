//! What this host can do, and taking away what was made.

use nix::errno::Errno;
use svcnet_netlink::Rtnl;
use svcnet_netlink::ipvs::{self as kernel, Flags, Identity, Op, Service};
use svcnet_netlink::nft::{self, Batch, Family, Socket, Table};
use svcnet_netlink::sysctl;

use super::{Error, LINK, SYSCTLS, layout, loopback, observe};

/// Link that is made and removed again to see whether the kernel has such.
const PROBE_LINK: &str = "svcnet-probe";
/// Mark of the service that is made and removed again to see whether the kernel has a scheduler.
pub(super) const PROBE_MARK: u32 = 0x7376_6e70;
/// The same for whoever looks from beside the proxy, so that neither takes the other's away.
pub(super) const PROBE_MARK_BESIDE: u32 = PROBE_MARK + 1;

/// Why IPVS can not be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No load balancer.
    #[error("this kernel has no IPVS (load the module ip_vs; CONFIG_IP_VS)")]
    NoIpvs,
    /// It does not work with conntrack.
    #[error("IPVS of this kernel does not know conntrack (CONFIG_IP_VS_NFCT)")]
    NoConntrack,
    /// No link to put addresses on.
    #[error("this kernel has no dummy links (load the module dummy; CONFIG_DUMMY)")]
    NoDummy,
    /// Not allowed.
    #[error("IPVS needs root (CAP_NET_ADMIN)")]
    NotPermitted,
    /// Something else, which says itself.
    #[error(transparent)]
    Kernel(Box<Error>),
}

/// Whether IPVS can be used here. Makes a link for a moment; leaves nothing.
///
/// # Errors
/// Why it can not.
pub fn probe() -> Result<(), Unavailable> {
    let other = |error: Error| match &error {
        Error::Balancer(refused) if refused.errno() == Some(Errno::EPERM) => Unavailable::NotPermitted,
        _ => Unavailable::Kernel(Box::new(error)),
    };
    let mut socket = kernel::Socket::open()
        .map_err(|e| other(e.into()))?
        .ok_or(Unavailable::NoIpvs)?;
    socket.info().map_err(|e| other(e.into()))?;
    match sysctl::read(SYSCTLS[0].0) {
        Err(error) if error.is_gone() => return Err(Unavailable::NoConntrack),
        result => drop(result.map_err(|e| other(e.into()))?),
    }
    let mut links = Rtnl::open().map_err(|e| other(e.into()))?;
    if links.link(LINK).map_err(|e| other(e.into()))?.is_none() {
        match links.add_dummy(PROBE_LINK) {
            Ok(()) => {}
            Err(error) if error.is_exists() => {}
            Err(error) if error.is_unsupported() => return Err(Unavailable::NoDummy),
            Err(error) => return Err(other(error.into())),
        }
        links.delete_link_named(PROBE_LINK).map_err(|e| other(e.into()))?;
    }
    let mut tables = Socket::open().map_err(|e| other(e.into()))?;
    families(&mut tables).map_err(|e| other(e.into()))?;
    Ok(())
}

/// Whether [`cleanup`] has anything to remove.
///
/// # Errors
/// When the kernel can not be asked.
pub fn is_there() -> Result<bool, Error> {
    if Rtnl::open()?.link(LINK)?.is_some() {
        return Ok(true);
    }
    let mut tables = Socket::open()?;
    for family in [Family::Ip, Family::Ip6] {
        match tables.table(&layout::table(family)) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(true),
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Removes our virtual services, our link and our tables, and says whether any was there. Services of others stay, and so
/// do kernel parameters: [`Config::sysctls`] knows what they were before.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup() -> Result<bool, Error> {
    let (mut links, mut tables) = (Rtnl::open()?, Socket::open()?);
    let mut any = false;
    if let Some(mut socket) = kernel::Socket::open()? {
        let bound = observe::addresses(&mut links)?.bound;
        let mut listed = observe::listed(&mut tables, Family::Ip)?;
        listed.extend(observe::listed(&mut tables, Family::Ip6)?);
        let services = socket.services()?.into_iter().map(|service| service.identity);
        let ours = services.filter(|identity| match identity {
            Identity::Address(at) => bound.contains(&at.ip) || listed.contains(at),
            Identity::Mark { mark, .. } => [PROBE_MARK, PROBE_MARK_BESIDE].contains(mark),
        });
        let ops: Vec<Op> = ours.map(Op::DeleteService).collect();
        any |= !ops.is_empty();
        socket.apply(&ops)?;
    }
    if links.link(LINK)?.is_some() {
        links.delete_link_named(LINK)?;
        any = true;
    }
    for family in [Family::Ip, Family::Ip6] {
        any |= tables.remove(&layout::table(family))?;
    }
    loopback::clean_up(&mut links);
    Ok(any)
}

/// The families that the kernel has, tables of them too.
pub(super) fn families(socket: &mut Socket) -> Result<Vec<Family>, nft::Error> {
    // A new link takes this over, and then no address of the family can be put on it.
    let disabled = sysctl::read("net/ipv6/conf/default/disable_ipv6").is_ok_and(|value| value != "0");
    let mut batch = Batch::new();
    batch.remove_table(&Table::new(Family::Ip6, PROBE_LINK));
    match socket.commit(batch) {
        Ok(()) if !disabled => return Ok(vec![Family::Ip, Family::Ip6]),
        Err(error) if !matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {
            return Err(error);
        }
        _ => {}
    }
    Ok(vec![Family::Ip])
}

/// Tries a scheduler with a service for a mark that nothing carries.
pub(super) fn has_scheduler(
    socket: &mut kernel::Socket,
    name: &'static str,
    mark: u32,
) -> Result<bool, kernel::Error> {
    let identity = Identity::Mark {
        family: Family::Ip,
        mark,
    };
    let service = Service {
        identity,
        scheduler: name.into(),
        flags: Flags::default(),
        persistence: None,
    };
    match socket.apply(&[Op::AddService(service)]) {
        Ok(_) => socket.apply(&[Op::DeleteService(identity)]).map(|_| true),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            // One that died over this left it.
            socket.apply(&[Op::DeleteService(identity)])?;
            has_scheduler(socket, name, mark)
        }
        Err(error) => Err(error),
    }
}
