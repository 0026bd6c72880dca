//! Kernel parameters that a role changes, and what they were before.
//!
//! What is changed is written down first, in `RUN-DIR/ROLE-sysctls.json`, so that a later process, or `svcnet cleanup`, can
//! put it back. Each role has a file of its own, because roles may run in processes of their own. Parameters of links
//! that svcnet makes need no note: they go with the link.
//!
//! Two parameters set others (`inet_forward_change` and `addrconf_fixup_forwarding` of the kernel): forwarding of all
//! links follows `net/ipv4/ip_forward` and `net/ipv6/conf/all/forwarding`, and `accept_redirects` is the former's opposite.
//! Those are written down with them, and put back after them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::sysctl;

/// End of the files' names below the run directory.
const FILE_END: &str = "-sysctls.json";
const IPV4_FORWARD: &str = "net/ipv4/ip_forward";
const IPV6_FORWARD: &str = "net/ipv6/conf/all/forwarding";

/// Held while a file is read and written: several threads of a role put parameters back.
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

impl Error {
    /// Whether the parameter does not exist: the kernel lacks the feature, or the link is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Kernel(error) if error.is_gone())
    }
}

/// The parameters that a role has changed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysctls {
    path: PathBuf,
}

impl Sysctls {
    /// Those that the role has written down below that directory.
    pub fn new(run_dir: &Path, role: &str) -> Self {
        Self {
            path: run_dir.join(format!("{role}{FILE_END}")),
        }
    }

    /// Those of every role that has written any down there.
    pub fn all(run_dir: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(run_dir).into_iter().flatten().flatten();
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().ends_with(FILE_END)
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(ours).collect();
        paths.sort();
        paths.into_iter().map(|path| Self { path }).collect()
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

    /// The same in the order to put them back: what sets others before those.
    pub fn former_in_order(&self) -> Vec<(String, String)> {
        let (mut first, others): (Vec<_>, Vec<_>) = self
            .former()
            .into_iter()
            .partition(|(name, _)| [IPV4_FORWARD, IPV6_FORWARD].contains(&name.as_str()));
        first.extend(others);
        first
    }

    /// Sets a parameter, and remembers what it was.
    ///
    /// # Errors
    /// When the kernel refuses, or what was before can not be written down.
    pub fn set(&self, name: &str, value: &str) -> Result<(), Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let is = sysctl::read(name)?;
        if is == value {
            return Ok(());
        }
        let mut former = self.former();
        let known = former.len();
        former.entry(name.into()).or_insert(is);
        for follower in followers(name) {
            if let Ok(is) = sysctl::read(&follower) {
                former.entry(follower).or_insert(is);
            }
        }
        if former.len() != known {
            self.write(&former)?;
        }
        sysctl::set(name, value)?;
        Ok(())
    }

    /// Writes down what something else was before it is changed, if that is not known yet.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn note(&self, name: &str, value: &str) -> Result<(), Error> {
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
    pub fn strike(&self, name: &str) -> Result<(), Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = self.former();
        match former.remove(name) {
            Some(_) => self.write(&former),
            None => Ok(()),
        }
    }

    /// Puts parameters back to what they were, and says whether any was changed. Those of links that are gone need
    /// nothing.
    ///
    /// # Errors
    /// When the kernel refuses, or the file can not be written.
    pub fn restore(&self, names: &[&str]) -> Result<bool, Error> {
        let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut former = self.former();
        let mut changed = false;
        for (name, value) in self.former_in_order() {
            if names.contains(&name.as_str()) {
                match sysctl::set(&name, &value) {
                    Ok(before) => changed |= before.is_some(),
                    Err(error) if error.is_gone() => {}
                    Err(error) => return Err(error.into()),
                }
                former.remove(&name);
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

/// The parameters that the kernel sets with this one.
fn followers(name: &str) -> Vec<String> {
    let (family, fixed): (&str, &[&str]) = match name {
        IPV4_FORWARD => ("net/ipv4/conf", &["net/ipv4/conf/all/accept_redirects"]),
        IPV6_FORWARD => ("net/ipv6/conf", &[]),
        _ => return Vec::new(),
    };
    let links = std::fs::read_dir(Path::new("/proc/sys").join(family));
    let links = links.into_iter().flatten().flatten();
    let names = links.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let of_links = names
        .filter(|link| link != "all")
        .map(|link| format!("{family}/{link}/forwarding"));
    of_links
        .chain(fixed.iter().map(|name| (*name).to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::OwnedNetNs;

    #[test]
    fn what_was_before_comes_back() {
        let netns = OwnedNetNs::unique("svcnet-sys").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (ignore, announce) = ("net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce");
        netns
            .run(|| {
                sysctl::set(ignore, "8").unwrap();
                sysctl::set(announce, "0").unwrap();
                let sysctls = Sysctls::new(&dir.path().join("run"), "proxy");
                sysctls.set(ignore, "1").unwrap();
                sysctls.set(ignore, "2").unwrap();
                sysctls.set(announce, "0").unwrap();
                assert_eq!(sysctls.former().len(), 1, "what was so already is not ours");
                // Another process finds what the first has done.
                let [other] = Sysctls::all(&dir.path().join("run")).try_into().unwrap();
                assert!(other.restore(&[ignore, announce]).unwrap());
                assert_eq!(sysctl::read(ignore).unwrap(), "8");
                assert!(!sysctls.path().exists());
                assert!(!sysctls.restore(&[ignore]).unwrap());
            })
            .unwrap();
    }

    #[test]
    fn forwarding_comes_back_with_what_follows_it() {
        let netns = OwnedNetNs::unique("svcnet-sys").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut rt = crate::Rtnl::open_in(&netns).unwrap();
        rt.add_bridge("br1", None, None).unwrap();
        rt.add_bridge("br2", None, None).unwrap();
        netns
            .run(|| {
                let names = [
                    IPV4_FORWARD,
                    "net/ipv4/conf/all/accept_redirects",
                    "net/ipv4/conf/default/forwarding",
                    "net/ipv4/conf/br1/forwarding",
                    IPV6_FORWARD,
                    "net/ipv6/conf/default/forwarding",
                    "net/ipv6/conf/br1/forwarding",
                ];
                // As an operator may have it: one link forwards, and redirects are not believed.
                for (name, value) in [
                    (IPV4_FORWARD, "0"),
                    ("net/ipv4/conf/all/accept_redirects", "0"),
                    ("net/ipv4/conf/br1/forwarding", "1"),
                    ("net/ipv6/conf/br1/forwarding", "1"),
                ] {
                    sysctl::set(name, value).unwrap();
                }
                let read = || names.map(|name| sysctl::read(name).unwrap());
                let before = read();
                let sysctls = Sysctls::new(dir.path(), "overlay");
                sysctls.set(IPV4_FORWARD, "1").unwrap();
                sysctls.set(IPV6_FORWARD, "1").unwrap();
                assert_ne!(read(), before);
                rt.delete_link_named("br2").unwrap();
                let former = sysctls.former();
                let all: Vec<&str> = former.keys().map(String::as_str).collect();
                assert!(sysctls.restore(&all).unwrap());
                assert_eq!(read(), before);
                assert!(!sysctls.path().exists());
            })
            .unwrap();
    }
}
