//! The seam between what should be and how it is done. There is one backend, nf_tables; IPVS and relays on sockets
//! would be others.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use svcnet_netlink::nft::Error;

use crate::model::{Frontend, FrontendKey};

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

    /// Whether somebody else has changed what is ours since the last call. Does not wait.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    fn touched(&mut self) -> Result<bool, Error>;

    /// Readable when [`Self::touched`] may have something to say.
    fn wake(&self) -> Option<BorrowedFd<'_>>;
}
