//! Addresses for pods: who has which, on disk.
//!
//! # Layout
//! `DIR/lock` is held by whoever works here: the daemon, or the plugin when the daemon is away. `DIR/leases/` holds one
//! JSON file for each attachment, named after it, and `last`, the lease given up last.
//!
//! # Update protocol
//! A lease is written to a file with a leading dot, synced, and renamed into place before its address is used. Giving
//! it up is one rename or unlink: over `last` if no younger lease was ever given up, else away. Every lease has a
//! serial number greater than all before it, so that the youngest of the leases and of `last` is where the search for
//! the next address goes on: an address is not used again before all others were.
//!
//! # Crash recovery
//! Each step is atomic: a kill leaves the state before or after it, and at most a dot file, which the next start
//! removes. The directory is not synced: a lease that a power failure takes was one of a container that it took too.
//!
//! # What will not scale
//! The files are read at start: a node has hundreds of pods, not millions.

mod ring;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use svcnet_api::types::PodCidr;

use crate::protocol::{Attachment, PodRef};

/// An attachment's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Greater than that of every lease before.
    pub serial: u64,
    /// Whose it is.
    pub attachment: Attachment,
    /// The addresses, one of each pod network of the node.
    pub addresses: Vec<IpAddr>,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// The pod, if the runtime said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
}

/// What can go wrong with leases.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process works here.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// A file could not be read or written.
    #[error("{step} {path}: {source}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On which.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A lease is not readable: whose address it holds is not known, so none is given before it is removed by hand.
    #[error("{path} is not a lease: {source}. Remove it if its container is gone")]
    NotALease {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// All addresses of a pod network are in use.
    #[error("failed to allocate for range {index}: no IP addresses available in range set: {first}-{last}")]
    Exhausted {
        /// Which of the node's pod networks.
        index: usize,
        /// Its first address.
        first: IpAddr,
        /// Its last.
        last: IpAddr,
    },
}

/// The leases of a node.
pub struct Ipam {
    dir: PathBuf,
    _lock: Flock<File>,
    leases: HashMap<Attachment, Lease>,
    taken: BTreeSet<IpAddr>,
    /// The addresses to go on after, and the serial number that they had.
    last: Option<Lease>,
    last_in_file: u64,
}

/// Whether a lease is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// It was made now.
    New(Lease),
    /// The attachment had it before: its ADD was not finished, or is repeated.
    Kept(Lease),
}

impl Reserved {
    /// The lease.
    pub fn lease(&self) -> &Lease {
        let (Self::New(lease) | Self::Kept(lease)) = self;
        lease
    }
}

impl Ipam {
    /// Opens the directory, making it if need be, and reads the leases.
    ///
    /// # Errors
    /// When another process has it open, or a file can not be read.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        let leases_dir = dir.join("leases");
        fs::create_dir_all(&leases_dir).map_err(at("create", &leases_dir))?;
        let lock_path = dir.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path);
        let file = file.map_err(at("open", &lock_path))?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked(dir.clone()))?;
        let mut ipam = Self {
            dir: leases_dir,
            _lock: lock,
            leases: HashMap::new(),
            taken: BTreeSet::new(),
            last: None,
            last_in_file: 0,
        };
        ipam.read()?;
        Ok(ipam)
    }

    fn read(&mut self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.dir).map_err(at("list", &self.dir))? {
            let path = entry.map_err(at("list", &self.dir))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with('.') {
                fs::remove_file(&path).map_err(at("remove", &path))?;
                continue;
            }
            let bytes = fs::read(&path).map_err(at("read", &path))?;
            let lease: Lease = serde_json::from_slice(&bytes).map_err(|source| Error::NotALease {
                path: path.clone(),
                source,
            })?;
            self.note_last(&lease);
            if name == "last" {
                self.last_in_file = lease.serial;
            } else {
                self.taken.extend(&lease.addresses);
                self.leases.insert(lease.attachment.clone(), lease);
            }
        }
        Ok(())
    }

    fn note_last(&mut self, lease: &Lease) {
        if self.last.as_ref().is_none_or(|last| last.serial < lease.serial) {
            self.last = Some(lease.clone());
        }
    }

    /// The lease of an attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<&Lease> {
        self.leases.get(attachment)
    }

    /// All leases, in no order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Gives an attachment an address of each pod network, or says which it has already.
    ///
    /// # Errors
    /// When a pod network has none left, or the lease can not be written: none is given then.
    pub fn reserve(
        &mut self,
        attachment: &Attachment,
        cidrs: &[PodCidr],
        netns: &Path,
        pod: Option<&PodRef>,
    ) -> Result<Reserved, Error> {
        if let Some(lease) = self.leases.get(attachment) {
            return Ok(Reserved::Kept(lease.clone()));
        }
        let mut addresses = Vec::with_capacity(cidrs.len());
        for (index, cidr) in cidrs.iter().enumerate() {
            let after = self
                .last
                .iter()
                .flat_map(|l| &l.addresses)
                .copied()
                .find(|a| cidr.contains(*a));
            let (first, last) = ring::ends(*cidr);
            let free = ring::next_free(*cidr, after, |address| self.taken.contains(&address));
            addresses.push(free.ok_or(Error::Exhausted { index, first, last })?);
        }
        let lease = Lease {
            serial: self.last.as_ref().map_or(0, |last| last.serial) + 1,
            attachment: attachment.clone(),
            addresses,
            netns: netns.to_path_buf(),
            pod: pod.cloned(),
        };
        self.write(&lease)?;
        self.taken.extend(&lease.addresses);
        self.note_last(&lease);
        self.leases.insert(attachment.clone(), lease.clone());
        Ok(Reserved::New(lease))
    }

    fn write(&self, lease: &Lease) -> Result<(), Error> {
        let path = self.path(&lease.attachment);
        let draft = self.dir.join(format!(".{}", file_name(&lease.attachment)));
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(lease)?)?;
            // Without this a power failure may leave the name with no content behind it.
            file.sync_data()?;
            fs::rename(&draft, &path)
        };
        write().map_err(at("write", &path))
    }

    /// Takes an attachment's addresses back; nothing when it has none.
    ///
    /// # Errors
    /// When the file can not be removed: the addresses stay taken then.
    pub fn release(&mut self, attachment: &Attachment) -> Result<Option<Lease>, Error> {
        let Some(lease) = self.leases.get(attachment) else {
            return Ok(None);
        };
        let path = self.path(attachment);
        if lease.serial > self.last_in_file {
            fs::rename(&path, self.dir.join("last")).map_err(at("put aside", &path))?;
            self.last_in_file = lease.serial;
        } else {
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
        let lease = self.leases.remove(attachment);
        for address in lease.iter().flat_map(|l| &l.addresses) {
            self.taken.remove(address);
        }
        Ok(lease)
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(file_name(attachment))
    }
}

/// `@` is in no container's name, and neither part holds a slash.
fn file_name(attachment: &Attachment) -> String {
    format!("{}@{}", attachment.container(), attachment.ifname())
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File {
        step,
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests;
