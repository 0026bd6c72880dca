//! How an endpoint is chosen for a new connection.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A way to choose. The names are those of IPVS (`ipvsadm -s`), and `random`, which IPVS does not have; a backend that
/// lacks one takes its nearest and says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Any, by weight.
    #[default]
    Random,
    /// One after the other.
    Rr,
    /// One after the other, by weight.
    Wrr,
    /// The one with the fewest connections.
    Lc,
    /// The one with the fewest connections for its weight.
    Wlc,
    /// By a hash of the destination.
    Dh,
    /// By a hash of the source: a client keeps its endpoint while the endpoints stay.
    Sh,
    /// The shortest expected delay.
    Sed,
    /// One that is idle, else the shortest expected delay.
    Nq,
    /// By destination, the one with the fewest connections.
    Lblc,
    /// The same with a set of endpoints for each destination.
    Lblcr,
    /// Maglev: by a hash of the source, the same on every node, with few moves when endpoints change.
    Mh,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Random,
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Lblc,
        Self::Lblcr,
        Self::Mh,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Mh => "mh",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no scheduler's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scheduler: one of random, rr, wrr, lc, wlc, dh, sh, sed, nq, lblc, lblcr, mh")]
pub struct UnknownScheduler(String);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|scheduler| scheduler.name() == text);
        found.ok_or_else(|| UnknownScheduler(text.into()))
    }
}
