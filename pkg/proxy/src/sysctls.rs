//! Kernel parameters that a mode needs, and what they were before.
//!
//! What is changed is written down in a file first, so that a later process, or `svcnet cleanup`, can put it back. Two
//! modes can need the same at a time: relays outlive userspace mode while connections go through them. The last one that
//! needs a parameter puts it back.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use svcnet_netlink::sysctl;

use crate::backend::Mode;

/// Name of the file below `--run-dir`.
const FILE_NAME: &str = "proxy-sysctls.json";

/// Held while the file is read and written: relays put parameters back from threads of their own.
static FILE: Mutex<()> = Mutex::new(());

/// Why a parameter could not be set or put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] sysctl::Error),
    /// What was before could not be written down.
    #[error("write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The parameters that were changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysctls {
    path: PathBuf,
    needs: Arc<Mutex<Needs>>,
}

/// Who needs which parameter, as far as this process is concerned.
type Needs = HashSet<(String, Mode)>;

impl Sysctls {
    /// Those that are written down below that directory.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            path: run_dir.join(FILE_NAME),
            needs: Arc::default(),
        }
    }

    /// Where they are written down.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What parameters were before. A file that is damaged says nothing.
    pub fn former(&self) -> BTreeMap<String, String> {
        let text = std::fs::read(&self.path).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Notes whether a mode needs parameters to be as they are, whoever has set them.
    pub(crate) fn need(&self, by: Mode, names: impl IntoIterator<Item = &'static str>, needed: bool) {
        let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if needed {
                needs.insert((name.into(), by));
            } else {
                needs.remove(&(name.into(), by));
            }
        }
    }

    fn is_needed(&self, name: &str) -> bool {
        let needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        needs.iter().any(|(needed, _)| needed == name)
    }

    /// Those that were changed and that nobody needs any more.
    pub(crate) fn needless(&self, names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
        let former = self.former();
        names
            .filter(|name| former.contains_key(*name) && !self.is_needed(name))
            .collect()
    }

    /// Sets a parameter for a mode that needs it, and remembers what it was.
    ///
    /// # Errors
    /// When the kernel refuses, or what was before can not be written down.
    pub fn set(&self, by: Mode, name: &'static str, value: &str) -> Result<(), Error> {
        self.need(by, [name], true);
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let is = sysctl::read(name)?;
        if is == value {
            return Ok(());
        }
        let mut former = self.former();
        if !former.contains_key(name) {
            former.insert(name.into(), is);
            self.write(&former)?;
        }
        sysctl::set(name, value)?;
        Ok(())
    }

    /// Writes down what something else was before it is changed, if that is not known yet.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(crate) fn note(&self, name: &str, value: &str) -> Result<(), Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = self.former();
        if former.contains_key(name) {
            return Ok(());
        }
        former.insert(name.into(), value.into());
        self.write(&former)
    }

    /// Strikes out what was written down.
    ///
    /// # Errors
    /// When the file can not be written.
    pub(crate) fn strike(&self, name: &str) -> Result<(), Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = self.former();
        match former.remove(name) {
            Some(_) => self.write(&former),
            None => Ok(()),
        }
    }

    /// A mode does not need parameters any more: those that no other one needs are put back to what they were. Says
    /// whether any was changed.
    ///
    /// # Errors
    /// When the kernel refuses, or the file can not be written.
    pub fn restore(&self, by: Mode, names: &[&'static str]) -> Result<bool, Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        self.need(by, names.iter().copied(), false);
        let mut former = self.former();
        let mut changed = false;
        for name in names.iter().filter(|name| !self.is_needed(name)) {
            if let Some(value) = former.remove(*name) {
                changed |= sysctl::set(name, &value)?.is_some();
                self.write(&former)?;
            }
        }
        Ok(changed)
    }

    fn write(&self, former: &BTreeMap<String, String>) -> Result<(), Error> {
        let written = if former.is_empty() {
            std::fs::remove_file(&self.path)
        } else {
            let text = serde_json::to_vec(former).unwrap_or_default();
            let dir = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
            // Whole or not at all: a process may be killed at any moment.
            let next = self.path.with_extension("next");
            dir.and_then(|()| std::fs::write(&next, text))
                .and_then(|()| std::fs::rename(&next, &self.path))
        };
        written.map_err(|source| Error::Write {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use svcnet_netlink::netns::OwnedNetNs;

    use super::*;

    #[test]
    fn what_was_before_comes_back() {
        let netns = OwnedNetNs::unique("svcnet-sys").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (ignore, announce) = ("net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce");
        netns
            .run(|| {
                sysctl::set(ignore, "8").unwrap();
                sysctl::set(announce, "0").unwrap();
                let sysctls = Sysctls::new(&dir.path().join("run"));
                sysctls.set(Mode::Ipvs, ignore, "1").unwrap();
                sysctls.set(Mode::Ipvs, ignore, "2").unwrap();
                sysctls.set(Mode::Ipvs, announce, "0").unwrap();
                assert_eq!(sysctls.former().len(), 1, "what was so already is not ours");
                // Another process finds what the first has done.
                assert!(
                    Sysctls::new(&dir.path().join("run"))
                        .restore(Mode::Nftables, &[ignore, announce])
                        .unwrap()
                );
                assert_eq!(sysctl::read(ignore).unwrap(), "8");
                assert!(!sysctls.path().exists());
                assert!(!sysctls.restore(Mode::Ipvs, &[ignore]).unwrap());
            })
            .unwrap();
    }

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
