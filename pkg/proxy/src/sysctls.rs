//! Kernel parameters that a mode needs, and what they were before.

use std::ops::Deref;
use std::path::Path;

use svcnet_netlink::sysctls;
pub use svcnet_netlink::sysctls::Error;

/// The parameters that the proxy has changed, written down in `RUN-DIR/proxy-sysctls.json`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysctls(sysctls::Sysctls);

impl Sysctls {
    /// Those that are written down below that directory.
    pub fn new(run_dir: &Path) -> Self {
        Self(sysctls::Sysctls::new(run_dir, "proxy"))
    }
}

impl Deref for Sysctls {
    type Target = sysctls::Sysctls;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
