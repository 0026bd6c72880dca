//! What can go wrong.

use std::path::PathBuf;
use std::sync::Arc;

use crate::etcd::EtcdTlsError;

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another server{}; stop that one, or give this one a --data-dir of its own", by(.pid))]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// The other's process id, if it left one.
        pid: Option<u32>,
    },
    /// The directory holds something else.
    #[error(
        "{path} holds files that are not a store of svcnet ({found}); choose another --data-dir, or move them away"
    )]
    Foreign {
        /// The store's directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// Written by a program that this one is too old for.
    #[error("{path} was written in format {found:?}, and this version of svcnet knows {known:?}")]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What is known.
        known: &'static str,
    },
    /// Some of it is encrypted with a key that is not there.
    #[error(
        "{what} in {path} is encrypted with a key (fingerprint {id}) that is not in {}; restore the file with the keys \
         from where the data is from",
        keys.as_ref().map_or_else(|| "use".to_string(), |keys| keys.display().to_string())
    )]
    Key {
        /// The store's directory.
        path: PathBuf,
        /// The file with keys, if there is one.
        keys: Option<PathBuf>,
        /// The missing key's fingerprint.
        id: String,
        /// One of the objects, as in `secrets default/tls`.
        what: String,
    },
    /// Part of the data is missing or damaged.
    #[error(
        "the store in {path} is damaged ({why}): restore a snapshot (svcnet store restore FILE --force) or the directory \
         from a backup"
    )]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// What was seen.
        why: String,
    },
    /// What can be read is whole, and ends before the last write that was acknowledged.
    #[error(
        "the log of the store in {path} ends too early: acknowledged batches of writes that are missing at its end: \
         {missing} (the disk lost them, or the files were copied while a server wrote). Restore a snapshot (svcnet store \
         restore FILE --force) or the directory from a backup; to go on without what is lost, remove {tip}"
    )]
    Cut {
        /// The store's directory.
        path: PathBuf,
        /// How many batches of writes are not there.
        missing: u64,
        /// The file that knows of them.
        tip: PathBuf,
    },
    /// There is no store.
    #[error("{path} holds no store; --data-dir names the directory that it is in, as DATA-DIR/store")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// etcd cannot be used.
    #[error("cannot use etcd (--datastore-endpoint): {0}")]
    Etcd(String),
    /// What TLS with etcd needs is not there.
    #[error(transparent)]
    EtcdTls(#[from] EtcdTlsError),
}

/// Memory cannot be shown to hold what other servers have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the datastore cannot be asked: {0}")]
pub struct SyncError(pub Arc<str>);

fn by(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Why a write was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The object is not as the writer thought. Holds its revision, if it is there at all.
    #[error("the object has revision {current:?}")]
    Conflict {
        /// Its revision now.
        current: Option<u64>,
    },
    /// An object that the write relies on, or another one of the transaction, is not as the writer thought.
    #[error("{path} has changed meanwhile")]
    Guard {
        /// Which one.
        path: Arc<str>,
    },
    /// The disk has failed, now or before.
    #[error("the store cannot write: {0}")]
    Disk(Arc<str>),
    /// Nobody was asked to do it.
    #[error("the datastore cannot be reached: {0}")]
    Unavailable(Arc<str>),
    /// It was asked for, and no answer came: it may have been done or not.
    #[error("the datastore did not answer, and may or may not have done it: {0}")]
    Unknown(Arc<str>),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}
