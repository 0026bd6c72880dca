//! The Container Network Interface: what runtimes say to a plugin and what it answers
//! (<https://www.cni.dev/docs/spec/>, versions 0.3.1 to 1.1.0).

mod args;
mod config;
mod error;
mod invocation;
mod result;
mod runtime;

pub use config::{NetConf, RangeConf};
pub use error::{CniError, code};
pub use invocation::{Attachment, Command, Invocation, PodRef, Request};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use runtime::{
    ANNOTATION_LABELS, Bandwidth, CAPABILITIES, HostIp, PortMapping, Protocol, Rate, RuntimeConfig,
};

use std::fmt;
use std::str::FromStr;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK and `prevResult`.
    V0_4_0,
    /// 1.0.0: addresses without their family.
    V1_0_0,
    /// 1.1.0: GC and STATUS.
    V1_1_0,
}

impl Version {
    /// All that are spoken, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == text)
            .ok_or_else(|| CniError {
                code: code::VERSION,
                msg: "incompatible CNI versions".to_string(),
                details: format!(
                    "config is {text:?}, plugin supports {:?}",
                    Self::ALL.map(Self::as_str)
                ),
            })
    }
}
