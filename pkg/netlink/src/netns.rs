//! Network namespaces, named as `ip netns` names them: bind mounts under `/run/netns`.
//!
//! A thread belongs to one network namespace. Code enters one on a thread made for it, which ends there: a panic or an
//! early return can not leave a thread of a pool behind in a foreign namespace. Sockets (netlink's too) and child
//! processes stay in the namespace of the thread that made them, so a short visit is enough for both.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces live, as for `ip netns`.
pub const DIRECTORY: &str = "/run/netns";

/// The namespace of the calling thread, which needs not be that of the process.
const THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name can not be a file name.
    #[error("{0:?} is not a name for a network namespace")]
    Name(String),
    /// No such namespace.
    #[error("open network namespace {path}: {source}")]
    Open {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there but is not a network namespace.
    #[error("{0} is not a network namespace")]
    NotANamespace(PathBuf),
    /// The namespace is there already.
    #[error("network namespace {0} already exists")]
    Exists(String),
    /// It could not be made.
    #[error("create network namespace {name}: {step}: {source}")]
    Create {
        /// Its name.
        name: String,
        /// What failed.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It could not be entered.
    #[error("enter network namespace {path}: {source}")]
    Enter {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be removed.
    #[error("delete network namespace {name}: {source}")]
    Delete {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The directory of names could not be read.
    #[error("list {DIRECTORY}: {0}")]
    List(#[source] io::Error),
}

impl Error {
    /// Whether it says that the namespace does not exist (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Delete { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            Self::NotANamespace(_) => true,
            _ => false,
        }
    }
}

/// What tells one namespace from another: device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Device of the nsfs.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Makes a new namespace with its loopback link down, as `ip netns add` does.
    ///
    /// # Errors
    /// When the name is taken, or without the privilege to.
    pub fn create(name: &str) -> Result<Self, Error> {
        let path = path_of(name)?;
        let failed = |step| {
            move |source| Error::Create {
                name: name.to_string(),
                step,
                source,
            }
        };
        prepare_directory().map_err(failed("share the mounts of /run/netns"))?;
        match OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
        {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists(name.to_string()));
            }
            Err(e) => return Err(failed("create its file")(e)),
        }
        let made = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("unshare")(e.into()))?;
            mount(
                Some(THIS_THREAD),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(|e| failed("bind its file")(e.into()))
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Self::open_path(&path)
    }

    /// The namespace of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> Result<Self, Error> {
        Self::open_path(path_of(name)?)
    }

    /// The namespace that a file stands for: `/run/netns/NAME`, `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When it can not be opened, or is an ordinary file (what a crash between the two steps of creation leaves).
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|source| Error::Open {
            path: path.clone(),
            source,
        })?;
        let kind = nix::sys::statfs::fstatfs(&file).map(|s| s.filesystem_type());
        if kind != Ok(nix::sys::statfs::NSFS_MAGIC) {
            return Err(Error::NotANamespace(path));
        }
        Ok(Self { file, path })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn current() -> Result<Self, Error> {
        Self::open_path(THIS_THREAD)
    }

    /// The file that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from others.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn id(&self) -> Result<Id, Error> {
        let meta = self.file.metadata().map_err(|source| Error::Open {
            path: self.path.clone(),
            source,
        })?;
        Ok(Id {
            device: meta.dev(),
            inode: meta.ino(),
        })
    }

    /// Runs a closure in the namespace, on a thread of its own that ends with it. What it makes there (sockets, child
    /// processes) stays there. A panic in it goes on in the caller.
    ///
    /// # Errors
    /// When the namespace can not be entered; the closure has not run then.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_own_thread(|| {
            self.enter_this_thread()?;
            Ok(body())
        })
    }

    /// Moves the calling thread into the namespace, for good: for threads that were made to live there, such as
    /// those of a runtime (`on_thread_start`). Anything else wants [`NetNs::run`].
    ///
    /// # Errors
    /// Without the privilege to.
    pub fn enter_this_thread(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::Enter {
            path: self.path.clone(),
            source: e.into(),
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// A namespace that is deleted when this goes out of scope, also on a panic.
#[derive(Debug)]
pub struct OwnedNetNs {
    netns: NetNs,
    name: String,
}

impl OwnedNetNs {
    /// Makes a namespace that lasts as long as this value.
    ///
    /// # Errors
    /// As [`NetNs::create`].
    pub fn create(name: &str) -> Result<Self, Error> {
        Ok(Self {
            netns: NetNs::create(name)?,
            name: name.to_string(),
        })
    }

    /// Makes a namespace with a name that nobody else has: the prefix, this process and a count.
    ///
    /// # Errors
    /// As [`NetNs::create`].
    pub fn unique(prefix: &str) -> Result<Self, Error> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("{prefix}-{}-{count}", std::process::id()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::ops::Deref for OwnedNetNs {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.netns
    }
}

impl Drop for OwnedNetNs {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            tracing::warn!(netns = %self.name, %error, "a network namespace stays behind");
        }
    }
}

/// Deletes a named namespace. What still runs in it, and open handles, keep it alive without the name.
///
/// # Errors
/// When there is none of the name ([`Error::is_gone`]) or without the privilege to.
pub fn delete(name: &str) -> Result<(), Error> {
    let path = path_of(name)?;
    let failed = |source: io::Error| Error::Delete {
        name: name.to_string(),
        source,
    };
    match umount2(&path, MntFlags::MNT_DETACH) {
        // Not mounted: a file that a crash between the two steps of creation left.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(e) => return Err(failed(e.into())),
    }
    fs::remove_file(&path).map_err(failed)
}

/// The names there are, sorted.
///
/// # Errors
/// When the directory can not be read; that it is missing means that there are none.
pub fn list() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::List(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::List)?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The file of a named namespace.
///
/// # Errors
/// When the name can not be a file name.
pub fn path_of(name: &str) -> Result<PathBuf, Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') || name.contains('\0') {
        return Err(Error::Name(name.to_string()));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// `/run/netns` as a mount point of its own that shares its mounts, as `ip netns add` makes it: only then do the
/// namespaces appear in, and their deletion reach, other mount namespaces.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let share = || {
        mount(
            None::<&str>,
            DIRECTORY,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
        .map_err(io::Error::from)
    };
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(DIRECTORY), DIRECTORY, None::<&str>, flags, None::<&str>)?;
            share()
        }
        Err(e) => Err(e),
    }
}

/// Runs the closure on a new thread to its end.
fn on_own_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(body).join() {
        Ok(value) => value,
        Err(payload) => panic::resume_unwind(payload),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "/x", "a\0b"] {
            assert!(matches!(path_of(bad), Err(Error::Name(_))), "{bad:?}");
        }
        assert_eq!(path_of("lab-n1").unwrap(), Path::new("/run/netns/lab-n1"));
    }

    #[test]
    fn a_visit_ends_with_its_thread_and_panics_reach_the_caller() {
        let ns = OwnedNetNs::unique("svcnet-ns").unwrap();
        let home = NetNs::current().unwrap().id().unwrap();
        let there = ns.run(|| NetNs::current().unwrap().id().unwrap()).unwrap();
        assert_eq!(there, ns.id().unwrap());
        let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| ns.run(|| panic!("within"))));
        assert!(caught.is_err());
        assert_eq!(NetNs::current().unwrap().id().unwrap(), home);
    }

    #[test]
    fn namespaces_are_listed_until_deleted_and_never_made_twice() {
        let ns = OwnedNetNs::unique("svcnet-ns").unwrap();
        let name = ns.name().to_string();
        assert!(list().unwrap().contains(&name));
        assert!(matches!(NetNs::create(&name), Err(Error::Exists(_))));
        drop(ns);
        assert!(!list().unwrap().contains(&name));
        assert!(NetNs::open(&name).unwrap_err().is_gone());
        assert!(delete(&name).unwrap_err().is_gone());
    }
}
