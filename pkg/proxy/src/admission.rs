//! Who may reach whom, where the proxy itself has to heed it: relays make another connection out of each, which does not
//! show the kernel whom it is for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::sync::watch;

use crate::model::Protocol;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It may not be made.
    No,
    /// It may be made.
    Yes {
        /// From this address, which has to be made local; from any of the node's where none is given.
        from: Option<IpAddr>,
    },
}

impl Admitted {
    /// Whether it may be made.
    pub fn is_yes(self) -> bool {
        self != Self::No
    }
}

/// Who is asked whether a client may reach an endpoint, as NetworkPolicies say it.
pub trait Admission: fmt::Debug + Send + Sync {
    /// Whether a client, which is not this node itself, may connect to an endpoint. Does not block for long.
    fn admits(&self, client: IpAddr, endpoint: SocketAddr, protocol: Protocol) -> Admitted;

    /// Changes when answers may have changed, those about connections that stand included.
    fn changes(&self) -> watch::Receiver<u64>;
}
