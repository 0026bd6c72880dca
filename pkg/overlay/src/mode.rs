//! Which way packets take to the pods of other nodes.
//!
//! A mode takes the routes over before the other's link goes. A route is one key whatever link it leads over, so
//! setting it replaces the other mode's in one step. `auto` receives both ways: changing all nodes by way of it loses
//! nothing.

use std::fmt;
use std::str::FromStr;

/// The way to the peers (`--overlay`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Encapsulated, whatever lies between the nodes.
    #[default]
    Vxlan,
    /// Routed through the peer itself, which must be on the same link (flannel's `host-gw`).
    Direct,
    /// Routed where the peer is on the same link, encapsulated elsewhere (flannel's `DirectRouting`).
    Auto,
}

impl Mode {
    /// Whether packets may be encapsulated, so that pods' packets must leave room for it.
    pub fn encapsulates(self) -> bool {
        self != Self::Direct
    }
}

/// Not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a way between nodes (vxlan, direct or auto)")]
pub struct BadMode(String);

impl FromStr for Mode {
    type Err = BadMode;

    fn from_str(text: &str) -> Result<Self, BadMode> {
        match text {
            "vxlan" => Ok(Self::Vxlan),
            "direct" => Ok(Self::Direct),
            "auto" => Ok(Self::Auto),
            other => Err(BadMode(other.to_string())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Direct => "direct",
            Self::Auto => "auto",
        })
    }
}
