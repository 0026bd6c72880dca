//! The seam between what should be and how it is done.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use svcnet_netlink::nft;

use crate::ipvs;
use crate::model::{Frontend, FrontendKey};
use crate::node_ports::NodePortAddresses;
use crate::scheduler::Scheduler;
use crate::userspace;

/// Which backend there is to be (`--proxy-mode`, and `mode` in the ConfigMap `kube-proxy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Rules and maps of nf_tables.
    #[default]
    Nftables,
    /// The kernel's own load balancer.
    Ipvs,
    /// Relays on sockets, for a host with neither.
    Userspace,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::Ipvs, Self::Userspace];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Userspace => "userspace",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no mode's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no proxy mode: nftables, ipvs or userspace")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| UnknownMode(text.into()))
    }
}

/// Why a backend could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nf_tables refused.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
    /// IPVS, or what is around it.
    #[error(transparent)]
    Ipvs(#[from] ipvs::Error),
    /// Relays on sockets could not be started or looked after.
    #[error(transparent)]
    Userspace(#[from] userspace::Error),
}

/// What a change came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations that were carried out; none when everything was so already.
    pub operations: usize,
    /// Bytes that went to the kernel.
    pub bytes: usize,
    /// Time from the finished plan to the kernel's answer.
    pub commit: Duration,
    /// Stale connections and clients that were cleared afterwards.
    pub cleared: usize,
}

/// Makes frontends work.
pub trait Backend: Send {
    /// Its name, as in `--proxy-mode`.
    fn name(&self) -> &'static str;

    /// Looks at what is there and makes it these frontends and nothing else. `from_scratch` does not look, and replaces
    /// everything: the way out when what is there can not be changed.
    ///
    /// # Errors
    /// When the kernel refuses; what it holds is unknown then, and this is to be called again.
    fn converge(
        &mut self,
        frontends: &mut dyn Iterator<Item = Frontend>,
        from_scratch: bool,
    ) -> Result<Report, Error>;

    /// Changes some frontends; `None` removes one. Only after [`Self::converge`], and at a cost in proportion to what
    /// changes.
    ///
    /// # Errors
    /// As for [`Self::converge`].
    fn change(&mut self, changes: Vec<(FrontendKey, Option<Frontend>)>) -> Result<Report, Error>;

    /// Whether [`Self::tidy`] may find something, now or the next time.
    fn is_untidy(&self) -> bool {
        false
    }

    /// Clears away what former changes left for the packets that were on their way then. To be called now and then, with
    /// at least a second between two calls: no packet is on its way for that long.
    ///
    /// # Errors
    /// As for [`Self::converge`].
    fn tidy(&mut self) -> Result<Report, Error> {
        Ok(Report::default())
    }

    /// Whether somebody else has changed what is ours since the last call. Does not wait.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    fn touched(&mut self) -> Result<bool, Error>;

    /// The scheduler that is used where this one is asked for: itself, or the nearest that there is.
    fn nearest(&self, scheduler: Scheduler) -> Scheduler {
        scheduler
    }

    /// Hears which addresses node ports are to answer on, and the node's own main ones; whether [`Self::converge`] has
    /// something to do then.
    fn node_ports_on(&mut self, _addresses: &NodePortAddresses, _node: &[IpAddr]) -> bool {
        false
    }

    /// Hears the node's own main addresses, for `--nodeport-addresses primary`; whether [`Self::converge`] has
    /// something to do then.
    fn node_addresses(&mut self, _addresses: &[IpAddr]) -> bool {
        false
    }

    /// Hears what of the kernel is to be set beside frontends; whether [`Self::converge`] has something to do then.
    fn tune(&mut self, _tuning: &ipvs::Tuning) -> bool {
        false
    }

    /// Readable when [`Self::touched`] may have something to say.
    fn wake(&self) -> Option<BorrowedFd<'_>>;
}
