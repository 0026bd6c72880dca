//! Errors as runtimes read them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Error codes: those below 100 are the specification's.
pub mod code {
    /// The version of the configuration is not spoken.
    pub const VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const FIELD: u32 = 2;
    /// The container is unknown or gone: the runtime needs not clean up.
    pub const CONTAINER_GONE: u32 = 3;
    /// A variable of the environment is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The configuration is no JSON, or of another shape.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// Try again later.
    pub const RETRY: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const UNAVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and containers that are attached may be cut off.
    pub const CUT_OFF: u32 = 51;
    /// Ours: the kernel refused.
    pub const KERNEL: u32 = 100;
    /// Ours: no address is left.
    pub const EXHAUSTED: u32 = 101;
    /// Ours: the interface is there already.
    pub const EXISTS: u32 = 102;
    /// Ours: CHECK found something else than ADD had made.
    pub const CHECK: u32 = 103;
    /// Ours: the address that was asked for can not be had.
    pub const ADDRESS: u32 = 104;
    /// Ours: the port of the host leads to another container.
    pub const PORT_TAKEN: u32 = 105;
    /// Ours: the container could not be isolated as policies want it.
    pub const ISOLATION: u32 = 106;
}

/// An error: what runtimes print is `msg`, then `details`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What failed.
    pub msg: String,
    /// Why, and what to try.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error with nothing more to say.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same with the reason.
    #[must_use]
    pub fn because(self, details: impl ToString) -> Self {
        Self {
            details: details.to_string(),
            ..self
        }
    }

    /// As it is printed to the runtime.
    pub fn render(&self, version: &str) -> Value {
        let mut value = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }
}
