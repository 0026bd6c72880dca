//! Kernel parameters that a mode needs, and what they were before.
//!
//! Two modes can need the same at a time: relays outlive userspace mode while connections go through them. The last one that
//! needs a parameter puts it back.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use svcnet_netlink::sysctls;
pub use svcnet_netlink::sysctls::Error;

use crate::backend::Mode;

/// The parameters that the proxy has changed, written down in `RUN-DIR/proxy-sysctls.json`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysctls {
    written: sysctls::Sysctls,
    /// Held while a parameter changes: relays put parameters back from threads of their own.
    needs: Arc<Mutex<Needs>>,
}

/// Who needs which parameter, as far as this process is concerned.
type Needs = HashSet<(String, Mode)>;

impl Sysctls {
    /// Those that are written down below that directory.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            written: sysctls::Sysctls::new(run_dir, "proxy"),
            needs: Arc::default(),
        }
    }

    /// Where they are written down.
    pub fn path(&self) -> &Path {
        self.written.path()
    }

    /// What parameters were before. A file that is damaged says nothing.
    pub fn former(&self) -> BTreeMap<String, String> {
        self.written.former()
    }

    fn needs(&self) -> MutexGuard<'_, Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether a mode needs parameters to be as they are, whoever has set them.
    pub(crate) fn need(&self, by: Mode, names: impl IntoIterator<Item = &'static str>, needed: bool) {
        let mut needs = self.needs();
        for name in names {
            if needed {
                needs.insert((name.into(), by));
            } else {
                needs.remove(&(name.into(), by));
            }
        }
    }

    /// Those that were changed and that nobody needs any more.
    pub(crate) fn needless(&self, names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
        let former = self.former();
        let needs = self.needs();
        names
            .filter(|name| former.contains_key(*name) && !is_needed(&needs, name))
            .collect()
    }

    /// Sets a parameter for a mode that needs it, and remembers what it was.
    ///
    /// # Errors
    /// When the kernel refuses, or what was before can not be written down.
    pub fn set(&self, by: Mode, name: &'static str, value: &str) -> Result<(), Error> {
        let mut needs = self.needs();
        needs.insert((name.into(), by));
        self.written.set(name, value)
    }

    /// Writes down what something else was before it is changed, if that is not known yet.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(crate) fn note(&self, name: &str, value: &str) -> Result<(), Error> {
        self.written.note(name, value)
    }

    /// Strikes out what was written down.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(crate) fn strike(&self, name: &str) -> Result<(), Error> {
        self.written.strike(name)
    }

    /// A mode does not need parameters any more: those that no other one needs are put back to what they were. Says
    /// whether any was changed.
    ///
    /// # Errors
    /// When the kernel refuses, or the file can not be written.
    pub fn restore(&self, by: Mode, names: &[&'static str]) -> Result<bool, Error> {
        let mut needs = self.needs();
        for name in names {
            needs.remove(&((*name).into(), by));
        }
        let free: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !is_needed(&needs, name))
            .collect();
        self.written.restore(&free)
    }
}

fn is_needed(needs: &Needs, name: &str) -> bool {
    needs.iter().any(|(needed, _)| needed == name)
}

#[cfg(test)]
mod tests {
    use svcnet_netlink::netns::OwnedNetNs;
    use svcnet_netlink::sysctl;

    use super::*;

    #[test]
    fn the_last_one_that_needs_it_puts_it_back() {
        let netns = OwnedNetNs::unique("svcnet-sys").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ignore = "net/ipv4/conf/all/arp_ignore";
        netns
            .run(|| {
                let sysctls = Sysctls::new(dir.path());
                sysctls.set(Mode::Userspace, ignore, "1").unwrap();
                // It is so already, and needed all the same.
                sysctls.need(Mode::Ipvs, [ignore], true);
                let relays = sysctls.clone();
                assert!(!relays.restore(Mode::Userspace, &[ignore]).unwrap());
                assert_eq!(sysctl::read(ignore).unwrap(), "1");
                assert_eq!(sysctls.needless([ignore].into_iter()), [""; 0]);
                sysctls.need(Mode::Ipvs, [ignore], false);
                assert_eq!(sysctls.needless([ignore].into_iter()), [ignore]);
                assert!(sysctls.restore(Mode::Ipvs, &[ignore]).unwrap());
                assert_eq!(sysctl::read(ignore).unwrap(), "0");
            })
            .unwrap();
    }
}
