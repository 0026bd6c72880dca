//! The half of the store that survives: sled, and the files around it.
//!
//! sled never meets a full disk: its flush may then hang for ever, or leave a log that does not open again. The writer
//! asks for the room before each round ([`room`]), so refusing leaves nothing half done and goes over by itself.
//!
//! sled takes a log that was torn for one that ends there, and opens it. So the number of the last batch that was acknowledged
//! is kept beside it ([`Tip`]): a log that does not reach it has lost something.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::statvfs::fstatvfs;

use crate::directory::{self, io};
use crate::error::OpenError;
use crate::key::CollectionSpec;
use crate::keyring::{self, Keyring, Sealed};
use crate::state::Entry;
use crate::tip::Tip;

const KEY_LIMIT: &[u8] = b"mlimit";
/// How many objects there are, and the number of the batch that says so.
const KEY_COUNT: &[u8] = b"mcount";
/// Enough for sled's hot pages: the values are in our own memory.
const CACHE_BYTES: u64 = 2 << 20;

/// Everything found on disk.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// By collection, in the order of the specs.
    pub(crate) entries: Vec<BTreeMap<Arc<str>, Entry>>,
    /// What is not encrypted with the first key, and is to be: the collection's index, and the path.
    pub(crate) stale: Vec<(usize, Arc<str>)>,
    /// By collection: the revision of its last durable change.
    pub(crate) last: Vec<u64>,
    /// No revision up to this one may be given out again.
    pub(crate) limit: u64,
}

/// One batch on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    sled: sled::Batch,
    added: u64,
    removed: u64,
    empty: bool,
}

/// The open files. Holds the lock until dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    db: sled::Db,
    data: File,
    count: u64,
    tip: Tip,
    keyring: Option<Arc<Keyring>>,
    _lock: File,
}

/// Why the objects cannot be had.
#[derive(Debug)]
enum LoadError {
    Sled(sled::Error),
    /// A key is missing: its fingerprint, and an object that needs it.
    Key(String, String),
    Damaged(String),
}

impl From<sled::Error> for LoadError {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error)
    }
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            empty: true,
            ..Self::default()
        }
    }

    /// `bytes` as [`Disk::payload`] gives them.
    pub(crate) fn put(&mut self, collection: &str, path: &str, revision: u64, bytes: &[u8], is_new: bool) {
        let mut value = Vec::with_capacity(8 + bytes.len());
        value.extend_from_slice(&revision.to_be_bytes());
        value.extend_from_slice(bytes);
        self.sled.insert(object_key(collection, path), value);
        self.touch(collection, revision);
        self.added += u64::from(is_new);
    }

    pub(crate) fn delete(&mut self, collection: &str, path: &str, revision: u64) {
        self.sled.remove(object_key(collection, path));
        self.touch(collection, revision);
        self.removed += 1;
    }

    pub(crate) fn limit(&mut self, limit: u64) {
        self.sled.insert(KEY_LIMIT, &limit.to_be_bytes());
        self.empty = false;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    /// Of a collection, that it has changed.
    pub(crate) fn changed(&mut self, collection: &str, revision: u64) {
        self.touch(collection, revision);
    }

    fn touch(&mut self, collection: &str, revision: u64) {
        self.sled
            .insert(format!("r{collection}").as_bytes(), &revision.to_be_bytes());
        self.empty = false;
    }
}

impl Disk {
    /// Opens or makes the store in `dir`.
    pub(crate) fn open(
        dir: &Path,
        specs: &[CollectionSpec],
        keyring: Option<Arc<Keyring>>,
    ) -> Result<(Self, Loaded), OpenError> {
        directory::make(dir)?;
        let lock = directory::lock(dir)?;
        room(&lock, FREE_TO_OPEN).map_err(|why| io(dir, std::io::Error::new(ErrorKind::StorageFull, why)))?;
        let is_new = directory::check_format(dir)?;
        let damaged = |why: String| OpenError::Damaged {
            path: dir.to_path_buf(),
            why,
        };
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = open_sled(dir)?;
            let loaded = load(&db, specs, keyring.as_deref())?;
            Ok((db, loaded))
        }));
        let (db, (loaded, counted, head)) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(LoadError::Sled(sled::Error::Io(source)))) => return Err(io(dir, source)),
            Ok(Err(LoadError::Sled(other))) => return Err(damaged(other.to_string())),
            Ok(Err(LoadError::Damaged(why))) => return Err(damaged(why)),
            Ok(Err(LoadError::Key(id, what))) => {
                return Err(OpenError::Key {
                    path: dir.to_path_buf(),
                    keys: keyring.as_ref().map(|k| k.path().to_path_buf()),
                    id,
                    what,
                });
            }
            Err(_) => return Err(damaged("its log cannot be read".to_string())),
        };
        let last = match head {
            None if !is_new => return Err(damaged("its head is missing".to_string())),
            Some(Head { count, .. }) if count != counted => {
                return Err(damaged(format!("{counted} objects of {count} are there")));
            }
            Some(Head { batch, .. }) => batch,
            None => Some(0),
        };
        let tip = Tip::open(dir, last)?;
        let path = dir.join("db");
        let data = File::open(&path).map_err(|source| io(&path, source))?;
        let disk = Self {
            db,
            data,
            count: counted,
            tip,
            keyring,
            _lock: lock,
        };
        Ok((disk, loaded))
    }

    /// Marks a new store as whole, after its first batch.
    pub(crate) fn seal(&self, dir: &Path) -> Result<(), OpenError> {
        directory::seal(dir)
    }

    /// What is written of an object: its bytes, or what encryption makes of them.
    pub(crate) fn payload(&self, spec: &CollectionSpec, path: &str, entry: &Entry) -> Result<Bytes, String> {
        sealed(self.keyring.as_deref(), spec, path, entry)
    }

    /// Opens a store that is there, and tells the last revision that it may have given out. Objects are not looked at.
    pub(crate) fn limit_of(dir: &Path) -> Result<(File, u64), OpenError> {
        let lock = directory::lock(dir)?;
        let damaged = || OpenError::Damaged {
            path: dir.to_path_buf(),
            why: "its head cannot be read".to_string(),
        };
        let read = catch_unwind(AssertUnwindSafe(|| open_sled(dir)?.get(KEY_LIMIT)));
        let limit = read.map_err(|_| damaged())?.map_err(|_| damaged())?;
        let limit = limit.as_deref().and_then(<[u8]>::first_chunk);
        let limit = limit
            .map(|bytes| u64::from_be_bytes(*bytes))
            .ok_or_else(damaged)?;
        Ok((lock, limit))
    }

    /// Whether a batch of so many bytes can be written, and what has to stay free is.
    pub(crate) fn room(&self, bytes: usize) -> Result<(), String> {
        // What is replaced lies beside what replaces it for a while.
        room(&self.data, FREE_MIN + 2 * bytes as u64)
    }

    /// Writes a batch. When this returns, it is on the disk, all of it.
    pub(crate) fn write(&mut self, mut batch: Batch) -> Result<(), String> {
        let count = self.count + batch.added - batch.removed;
        batch
            .sled
            .insert(KEY_COUNT, [count, self.tip.next()].map(u64::to_be_bytes).concat());
        let written = catch_unwind(AssertUnwindSafe(|| {
            self.db.apply_batch(batch.sled)?;
            self.db.flush()?;
            Ok::<_, sled::Error>(())
        }));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("sled failed".to_string()),
        }
        self.data.sync_data().map_err(|e| e.to_string())?;
        self.count = count;
        self.tip.advance()
    }
}

/// Bytes that have to stay free. sled must not meet a full disk: a flush that fails may never return, and now and then leaves a log
/// that does not open again (`tests/full_disk.rs` showed both).
const FREE_MIN: u64 = 16 << 20;
/// Bytes without which a store is not even opened, which writes, too.
const FREE_TO_OPEN: u64 = FREE_MIN / 4;

fn room(file: &File, wanted: u64) -> Result<(), String> {
    let stat = fstatvfs(file).map_err(|e| e.to_string())?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < wanted {
        let (free, wanted) = (free >> 20, wanted >> 20);
        return Err(format!(
            "no space left on the disk: {free} MB are free, {wanted} MB have to be"
        ));
    }
    Ok(())
}

/// What is written of an object: its bytes, or what encryption makes of them.
pub(crate) fn sealed(
    keyring: Option<&Keyring>,
    spec: &CollectionSpec,
    path: &str,
    entry: &Entry,
) -> Result<Bytes, String> {
    match keyring {
        Some(keyring) if spec.encrypted => {
            let place = place(&spec.name, path, entry.revision);
            keyring.seal(&place, &entry.value).map(Bytes::from)
        }
        _ => Ok(entry.value.clone()),
    }
}

fn open_sled(dir: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .open()
}

/// What the last batch says of the whole store.
#[derive(Debug, Clone, Copy)]
struct Head {
    /// How many objects there are.
    count: u64,
    /// The batch's number. Versions of before gave none.
    batch: Option<u64>,
}

type Counted = (Loaded, u64, Option<Head>);

fn load(db: &sled::Db, specs: &[CollectionSpec], keyring: Option<&Keyring>) -> Result<Counted, LoadError> {
    let mut loaded = Loaded {
        entries: specs.iter().map(|_| BTreeMap::new()).collect(),
        stale: Vec::new(),
        last: vec![0; specs.len()],
        limit: 0,
    };
    let index = |name: &[u8]| {
        specs
            .iter()
            .position(|s| !s.volatile && s.name.as_bytes() == name)
    };
    let number = |value: &[u8]| value.first_chunk().map(|b| u64::from_be_bytes(*b));
    let torn = |key: &[u8]| LoadError::Damaged(format!("value of {}", String::from_utf8_lossy(key)));
    let (mut counted, mut head) = (0, None);
    for item in db.iter() {
        let (key, value): (sled::IVec, sled::IVec) = item?;
        let revision = number(&value).ok_or_else(|| torn(&key))?;
        match key.split_first() {
            Some((b'o', place)) => {
                counted += 1;
                let cut = place.iter().position(|b| *b == 0).ok_or_else(|| torn(&key))?;
                let path = std::str::from_utf8(&place[cut + 1..]).map_err(|_| torn(&key))?;
                let Some(index) = index(&place[..cut]) else {
                    continue;
                };
                let (path, stored): (Arc<str>, &[u8]) = (path.into(), &value[8..]);
                if specs[index].encrypted && keyring.is_some_and(|k| !k.is_current(stored)) {
                    loaded.stale.push((index, path.clone()));
                }
                let value = if keyring::is_sealed(stored) {
                    let what = || format!("{} {path}", specs[index].name);
                    unseal(keyring, &bound_to(&key, revision), stored, what)?
                } else {
                    Bytes::copy_from_slice(stored)
                };
                loaded.entries[index].insert(path, Entry { revision, value });
            }
            Some((b'r', name)) => {
                if let Some(index) = index(name) {
                    loaded.last[index] = revision;
                }
            }
            _ if key == KEY_LIMIT => loaded.limit = revision,
            _ if key == KEY_COUNT => {
                let (count, batch) = (revision, number(&value[8..]));
                head = Some(Head { count, batch });
            }
            _ => return Err(torn(&key)),
        }
    }
    Ok((loaded, counted, head))
}

fn unseal(
    keyring: Option<&Keyring>,
    place: &[u8],
    stored: &[u8],
    what: impl Fn() -> String,
) -> Result<Bytes, LoadError> {
    let Some(keyring) = keyring else {
        return Err(LoadError::Key("any".to_string(), what()));
    };
    match keyring.unseal(place, stored) {
        Ok(plain) => Ok(plain.into()),
        Err(Sealed::Unknown(id)) => Err(LoadError::Key(id, what())),
        Err(Sealed::Broken) => Err(LoadError::Damaged(format!("{} cannot be decrypted", what()))),
    }
}

/// What names the value of an object to encryption.
pub(crate) fn place(collection: &str, path: &str, revision: u64) -> Vec<u8> {
    bound_to(&object_key(collection, path), revision)
}

/// What names a value: its key, and the revision at which it was written.
fn bound_to(key: &[u8], revision: u64) -> Vec<u8> {
    [key, &revision.to_be_bytes()].concat()
}

fn object_key(collection: &str, path: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + collection.len() + path.len());
    key.push(b'o');
    key.extend_from_slice(collection.as_bytes());
    key.push(0);
    key.extend_from_slice(path.as_bytes());
    key
}
