//! Addresses for pods: who has which, on disk.
//!
//! # Layout
//! `DIR/lock` is held by whoever works here: the daemon, or the plugin when the daemon is away. `DIR/leases/` holds one
//! JSON file for each attachment, named after it, and `last`, the lease given up last.
//!
//! # Update protocol
//! A lease is written to a file with a leading dot and renamed into place before its address is used, and synced before
//! anybody is told of it ([`Unsynced`]): outside the lock, beside the making of the link, so that the file system makes one
//! commit for all that wait. Giving it up is one rename or unlink: over `last` if no younger lease was ever given up, else
//! away. Every lease has a serial number greater than all before it, so that the youngest of the leases and of `last` is
//! where the search for the next address goes on: an address is not used again before all others were. Where all that are
//! free have been used since the start, the one that has been free for longest comes first.
//!
//! # Crash recovery
//! Each step is atomic: a kill leaves the state before or after it, and at most a dot file, which the next start
//! removes. A power failure takes the containers along: the lease that it takes too is nobody's, and of one that was not
//! synced yet it may leave a name with nothing behind it, which the next start removes as well. The directory is not synced.
//!
//! # What will not scale
//! The files are read at start: a node has hundreds of pods, not millions.
//!
//! # A lease is all that a container is
//! What the runtime asked for is in it, so that host ports, Pod objects and what CHECK compares with are computed from leases
//! alone. ADD writes the lease first and DEL removes it last; links are named after the attachment, so that each side finds
//! the other's leftovers.

mod ring;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::protocol::{Attachment, PodRef, RuntimeConfig};
pub use ring::{RangeError, RangeSet};

/// How many addresses are remembered as given up.
const RELEASED_MAX: usize = 4096;
/// The file of the lease given up last.
const LAST: &str = "last";
/// The network that leases without one are of.
const DEFAULT_NETWORK: &str = "svcnet";

/// An attachment's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Greater than that of every lease before.
    pub serial: u64,
    /// Whose it is.
    pub attachment: Attachment,
    /// The addresses, one of each range set.
    pub addresses: Vec<IpAddr>,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// The pod, if the runtime said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// The network's name: GC frees what is of its own network.
    #[serde(default = "default_network")]
    pub network: String,
    /// What the runtime asked for.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// It may have another Ethernet address than this says: [`crate::protocol::NetConf::macspoofchk`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpinned: bool,
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_string()
}

/// Who wants addresses, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The attachment.
    pub attachment: &'a Attachment,
    /// The network's name.
    pub network: &'a str,
    /// The container's network namespace.
    pub netns: &'a Path,
    /// The pod, if the runtime said one.
    pub pod: Option<&'a PodRef>,
    /// What the runtime asks for.
    pub runtime: &'a RuntimeConfig,
    /// Whether it may have another Ethernet address than it is given.
    pub unpinned: bool,
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
    /// All addresses of a range set are in use.
    #[error("failed to allocate for range {index}: no IP addresses available in range set: {set}")]
    Exhausted {
        /// Which of the sets.
        index: usize,
        /// Its ranges.
        set: String,
    },
    /// An address that was asked for is somebody else's.
    #[error(
        "failed to allocate for range {index}: requested IP address {address} is not available in range set {set}{}",
        owner.as_ref().map(|o| format!(": {o} has it")).unwrap_or_default()
    )]
    Taken {
        /// Which of the sets.
        index: usize,
        /// The address.
        address: IpAddr,
        /// The set's ranges.
        set: String,
        /// Whose it is.
        owner: Option<Attachment>,
    },
    /// Addresses that were asked for are in no range set, or not the only ones of theirs.
    #[error("failed to allocate all requested IPs: {}", .0.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))]
    NotAll(Vec<IpAddr>),
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
    /// Addresses given up since the start, by when.
    released: BTreeMap<IpAddr, u64>,
    releases: u64,
}

/// Whether a lease is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// It was made now.
    New(Lease),
    /// The attachment had it before: its ADD was not finished, or is repeated.
    Kept(Lease),
}

/// A lease that a kill leaves, but a power failure may take: its address must not be told before [`Self::sync`].
#[derive(Debug)]
#[must_use = "the lease is not durable"]
pub struct Unsynced {
    file: File,
    path: PathBuf,
}

impl Unsynced {
    /// Waits until the lease is on disk. It needs no lock: those who sync at the same time share the file system's commit.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(self) -> Result<(), Error> {
        self.file.sync_data().map_err(at("sync", &self.path))
    }
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
            released: BTreeMap::new(),
            releases: 0,
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
            if bytes.is_empty() {
                tracing::info!(
                    lease = name,
                    "a power failure took what was in a lease, and its container: it goes"
                );
                fs::remove_file(&path).map_err(at("remove", &path))?;
                continue;
            }
            let lease: Lease = serde_json::from_slice(&bytes).map_err(|source| Error::NotALease {
                path: path.clone(),
                source,
            })?;
            self.note_last(&lease);
            if name == LAST {
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

    /// Gives an attachment an address of each range set, or says which it has already; and what is left to do
    /// before anybody is told of it.
    ///
    /// # Errors
    /// When a set has none left, an address that was asked for can not be had, or the lease can not be written: none is
    /// given then.
    pub fn reserve(&mut self, wish: &Wish<'_>, sets: &[RangeSet]) -> Result<(Reserved, Unsynced), Error> {
        if let Some(lease) = self.leases.get(wish.attachment) {
            return Ok((Reserved::Kept(lease.clone()), self.unsynced(wish.attachment)?));
        }
        let addresses = self.choose(&wish.runtime.ips, sets)?;
        let lease = Lease {
            serial: self.last.as_ref().map_or(0, |last| last.serial) + 1,
            attachment: wish.attachment.clone(),
            addresses,
            netns: wish.netns.to_path_buf(),
            pod: wish.pod.cloned(),
            network: wish.network.to_string(),
            runtime: wish.runtime.clone(),
            unpinned: wish.unpinned,
        };
        let unsynced = self.write(&lease)?;
        self.taken.extend(&lease.addresses);
        for address in &lease.addresses {
            self.released.remove(address);
        }
        self.note_last(&lease);
        self.leases.insert(lease.attachment.clone(), lease.clone());
        Ok((Reserved::New(lease), unsynced))
    }

    /// Addresses for an attachment, those that are asked for first.
    fn choose(&self, requested: &[IpAddr], sets: &[RangeSet]) -> Result<Vec<IpAddr>, Error> {
        let mut requested = requested.to_vec();
        let mut addresses = Vec::with_capacity(sets.len());
        for (index, set) in sets.iter().enumerate() {
            let asked = requested.iter().position(|a| set.contains(*a));
            let address = match asked.map(|at| requested.remove(at)) {
                Some(address) if self.taken.contains(&address) => {
                    return Err(Error::Taken {
                        index,
                        address,
                        set: set.to_string(),
                        owner: self.owner(address).cloned(),
                    });
                }
                Some(address) => Some(address),
                None => self.next_free(set),
            };
            addresses.push(address.ok_or_else(|| Error::Exhausted {
                index,
                set: set.to_string(),
            })?);
        }
        if requested.is_empty() {
            Ok(addresses)
        } else {
            Err(Error::NotAll(requested))
        }
    }

    fn next_free(&self, set: &RangeSet) -> Option<IpAddr> {
        let last = self.last.iter().flat_map(|l| &l.addresses).copied();
        let after = last.into_iter().find(|a| set.contains(*a));
        let unused = |a: IpAddr| self.taken.contains(&a) || self.released.contains_key(&a);
        let longest_free = || {
            let free = self
                .released
                .iter()
                .filter(|(a, _)| set.contains(**a) && !self.taken.contains(a));
            free.min_by_key(|(_, when)| **when).map(|(a, _)| *a)
        };
        set.next_free(after, unused).or_else(longest_free)
    }

    /// Whether an attachment could have an address of each of the sets now.
    ///
    /// # Errors
    /// When one has none left.
    pub fn has_room(&self, sets: &[RangeSet]) -> Result<(), Error> {
        self.choose(&[], sets).map(drop)
    }

    fn owner(&self, address: IpAddr) -> Option<&Attachment> {
        let mut leases = self.leases.values();
        leases
            .find(|l| l.addresses.contains(&address))
            .map(|l| &l.attachment)
    }

    /// What is left to do for a lease to be durable, also for one of a process that was killed before it did.
    fn unsynced(&self, attachment: &Attachment) -> Result<Unsynced, Error> {
        let path = self.path(attachment);
        let file = File::open(&path).map_err(at("open", &path))?;
        Ok(Unsynced { file, path })
    }

    fn write(&self, lease: &Lease) -> Result<Unsynced, Error> {
        let path = self.path(&lease.attachment);
        let draft = self.dir.join(format!(".{}", file_name(&lease.attachment)));
        let write = || -> io::Result<File> {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(lease)?)?;
            fs::rename(&draft, &path)?;
            Ok(file)
        };
        let file = write().map_err(at("write", &path))?;
        Ok(Unsynced { file, path })
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
            fs::rename(&path, self.dir.join(LAST)).map_err(at("put aside", &path))?;
            self.last_in_file = lease.serial;
        } else {
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
        let lease = self.leases.remove(attachment);
        for address in lease.iter().flat_map(|l| &l.addresses) {
            self.taken.remove(address);
            self.releases += 1;
            self.released.insert(*address, self.releases);
        }
        if self.released.len() > RELEASED_MAX {
            let oldest = self.releases.saturating_sub(RELEASED_MAX as u64);
            self.released.retain(|_, when| *when > oldest);
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
