//! Snapshots of a whole store in one file, and restoring from them.
//!
//! # The file
//! `svcnet-snapshot 1 REVISION OBJECTS` and a newline; then for each object the lengths of its collection's name (2 bytes),
//! of its path (2 bytes) and of its value (4 bytes), its revision (8 bytes), and the three; at last the SHA-256 of all
//! that. Numbers are big endian. Values of encrypted collections are encrypted, as on the disk: a snapshot is of use
//! together with the key file alone.
//!
//! # Restoring
//! The new store is made aside and then put in the place of the former one, which is kept under another name. Its revisions
//! go on behind those of the snapshot by far, and behind those of the former store, so that no client meets one that it has
//! seen; and its history begins there, so that every client lists anew.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::disk::{self, Batch, Disk};
use crate::error::OpenError;
use crate::key::CollectionSpec;
use crate::keyring::Keyring;
use crate::state::{Entry, State};
use crate::writer::REVISION_BLOCK;

const MAGIC: &str = "svcnet-snapshot 1";
/// How far revisions jump: more than any server gives out between a snapshot and its being restored.
pub(crate) const JUMP: u64 = 100 * REVISION_BLOCK;
/// Objects in one batch.
const BATCH: usize = 1000;

/// What a snapshot or a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last revision.
    pub revision: u64,
    /// Of each collection that is not empty, its name, how many objects it has, and how many bytes they are.
    pub collections: Vec<(String, u64, u64)>,
}

impl Contents {
    pub(crate) fn add(&mut self, collection: &str, bytes: usize) {
        match self.collections.iter_mut().find(|(name, ..)| name == collection) {
            Some((_, objects, all)) => {
                *objects += 1;
                *all += bytes as u64;
            }
            None => self.collections.push((collection.to_string(), 1, bytes as u64)),
        }
    }

    /// How many objects there are.
    pub fn objects(&self) -> u64 {
        self.collections.iter().map(|(_, objects, _)| objects).sum()
    }
}

/// Why a snapshot is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be read.
    #[error("cannot read the snapshot {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{0} is no snapshot of a store; `svcnet store snapshot FILE` makes one")]
    Foreign(PathBuf),
    /// The file is cut short or changed.
    #[error(
        "the snapshot {0} is damaged (its checksum is wrong): it was cut short or changed; nothing was restored"
    )]
    Damaged(PathBuf),
    /// An object cannot be written as etcd has it.
    #[error(
        "{what} of the snapshot cannot be restored: {why}; Secrets need DATA-DIR/encryption.key of where it was made"
    )]
    Object {
        /// Which one.
        what: String,
        /// Why not.
        why: String,
    },
    /// Of a later version.
    #[error("the snapshot holds {0}, which this version of svcnet does not know")]
    Unknown(String),
    /// Servers would see their objects vanish.
    #[error(
        "servers run on this etcd: stop all of them first (one that was killed is forgotten after 15 seconds)"
    )]
    Running,
    /// There are objects already.
    #[error("etcd holds a store already ({0}): with --force it is deleted, and the snapshot takes its place")]
    EtcdThere(String),
    /// There is a store already.
    #[error("{0} holds a store already: with --force it is put aside, and the snapshot takes its place")]
    There(PathBuf),
    /// The former store is in use, or the new one cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk.
    #[error("cannot write the store {path}: {why}")]
    Write {
        /// Its directory.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// What restoring has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was restored.
    pub contents: Contents,
    /// The first revision of the restored store.
    pub revision: u64,
    /// Where the former store lies now.
    pub aside: Option<PathBuf>,
}

/// All durable objects, as pieces of a file.
pub(crate) fn write(
    state: &State,
    specs: &[CollectionSpec],
    keyring: Option<&Keyring>,
) -> Result<Vec<Bytes>, String> {
    let durable = || specs.iter().zip(&state.tables).filter(|(spec, _)| !spec.volatile);
    let objects: usize = durable().map(|(_, table)| table.entries.len()).sum();
    let mut pieces = Vec::with_capacity(2 * objects + 2);
    pieces.push(Bytes::from(format!("{MAGIC} {} {objects}\n", state.revision)));
    for (spec, table) in durable() {
        for (path, entry) in &table.entries {
            let value = disk::sealed(keyring, spec, path, entry)?;
            let mut head = BytesMut::with_capacity(16 + spec.name.len() + path.len());
            let lens = (
                u16::try_from(spec.name.len()),
                u16::try_from(path.len()),
                u32::try_from(value.len()),
            );
            let (Ok(name), Ok(place), Ok(len)) = lens else {
                return Err(format!("{} {path} is too long for a snapshot", spec.name));
            };
            head.put_u16(name);
            head.put_u16(place);
            head.put_u32(len);
            head.put_u64(entry.revision);
            head.put_slice(spec.name.as_bytes());
            head.put_slice(path.as_bytes());
            pieces.push(head.freeze());
            pieces.push(value);
        }
    }
    let mut digest = Context::new(&SHA256);
    pieces.iter().for_each(|piece| digest.update(piece));
    pieces.push(Bytes::copy_from_slice(digest.finish().as_ref()));
    Ok(pieces)
}

/// Whether these are the bytes of a snapshot, all of them.
pub fn is_snapshot(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC.as_bytes()) && checked(bytes).is_some()
}

/// What is before the checksum, if that is right.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (text, digest) = bytes.split_at_checked(bytes.len().checked_sub(SHA256_OUTPUT_LEN)?)?;
    (ring::digest::digest(&SHA256, text).as_ref() == digest).then_some(text)
}

/// An object of a snapshot.
pub(crate) struct Object {
    pub(crate) collection: String,
    pub(crate) path: String,
    pub(crate) revision: u64,
    /// As on the disk.
    pub(crate) value: Bytes,
}

/// The revision and the objects of a snapshot.
pub(crate) fn read(path: &Path) -> Result<(u64, Vec<Object>), RestoreError> {
    let mut bytes = Vec::new();
    let reading = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    reading.map_err(|source| RestoreError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    if !bytes.starts_with(MAGIC.as_bytes()) {
        return Err(RestoreError::Foreign(path.to_path_buf()));
    }
    let damaged = || RestoreError::Damaged(path.to_path_buf());
    let len = checked(&bytes).ok_or_else(damaged)?.len();
    bytes.truncate(len);
    parse(&bytes.into()).ok_or_else(damaged)
}

fn parse(bytes: &Bytes) -> Option<(u64, Vec<Object>)> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix(MAGIC)?;
    let (revision, count) = head.trim().split_once(' ')?;
    let (revision, count): (u64, usize) = (revision.parse().ok()?, count.parse().ok()?);
    let mut rest = bytes.slice(end + 1..);
    let mut objects = Vec::new();
    while !rest.is_empty() {
        let head = rest.first_chunk::<16>()?;
        let name = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let place = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let at = u64::from_be_bytes(*head.last_chunk::<8>()?);
        let whole = 16 + name + place + len;
        if rest.len() < whole {
            return None;
        }
        let object = rest.split_to(whole);
        let text = |range| std::str::from_utf8(object.get(range)?).ok().map(str::to_string);
        objects.push(Object {
            collection: text(16..16 + name)?,
            path: text(16 + name..16 + name + place)?,
            revision: at,
            value: object.slice(16 + name + place..),
        });
    }
    (objects.len() == count).then_some((revision, objects))
}

/// Makes a store out of a snapshot, in `dir`. What is there is refused, or put aside when `force` is given.
///
/// # Errors
/// When the snapshot is none or damaged, when there is a store already or one that is in use, and when the disk fails: the
/// former store is as it was then.
pub fn restore(
    snapshot: &Path,
    dir: &Path,
    specs: &[CollectionSpec],
    force: bool,
) -> Result<Restored, RestoreError> {
    let (revision, objects) = read(snapshot)?;
    let there = fs::read_dir(dir).is_ok_and(|mut listing| listing.next().is_some());
    if there && !force {
        return Err(RestoreError::There(dir.to_path_buf()));
    }
    let write_error = |why: String| RestoreError::Write {
        path: dir.to_path_buf(),
        why,
    };
    let mut first = revision + JUMP;
    // A former store that cannot be read is why this is done: its revisions are not known then.
    let former = if there {
        match Disk::limit_of(dir) {
            Ok((disk, limit)) => {
                first = first.max(limit);
                Some(disk)
            }
            Err(locked @ OpenError::Locked { .. }) => return Err(locked.into()),
            Err(_) => None,
        }
    } else {
        None
    };
    let aside = dir.with_extension("restoring");
    _ = fs::remove_dir_all(&aside);
    let contents = fill(&aside, specs, first, &objects).inspect_err(|_| _ = fs::remove_dir_all(&aside))?;
    drop(former);
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let before = there.then(|| dir.with_extension(format!("before-{seconds}")));
    let swap = || {
        if let Some(before) = &before {
            fs::rename(dir, before)?;
        } else {
            // It may be there, and empty.
            _ = fs::remove_dir(dir);
        }
        fs::rename(&aside, dir)?;
        dir.parent()
            .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    swap().map_err(|e| write_error(e.to_string()))?;
    Ok(Restored {
        contents,
        revision: first,
        aside: before,
    })
}

fn fill(
    dir: &Path,
    specs: &[CollectionSpec],
    first: u64,
    objects: &[Object],
) -> Result<Contents, RestoreError> {
    let write_error = |why: String| RestoreError::Write {
        path: dir.to_path_buf(),
        why,
    };
    let (mut disk, _) = Disk::open(dir, specs, None)?;
    let mut contents = Contents {
        revision: first,
        ..Contents::default()
    };
    for objects in objects.chunks(BATCH) {
        let mut batch = Batch::new();
        for object in objects {
            contents.add(&object.collection, object.value.len());
            batch.put(
                &object.collection,
                &object.path,
                object.revision,
                &object.value,
                true,
            );
        }
        disk.write(batch).map_err(write_error)?;
    }
    let mut batch = Batch::new();
    batch.limit(first);
    // Nobody goes on from before: objects are other ones than they were.
    let names = specs.iter().map(|spec| &spec.name);
    names.for_each(|name| batch.changed(name, first));
    disk.write(batch).map_err(write_error)?;
    disk.seal(dir)?;
    Ok(contents)
}

/// Reads all that a store in a directory holds, as a server would when it starts; `look` says what is wrong with an object.
///
/// # Errors
/// When the directory is no store, is in use, is damaged, or needs another key.
pub fn check(
    dir: &Path,
    specs: &[CollectionSpec],
    keyring: Option<Keyring>,
    mut look: impl FnMut(&str, &str, &Entry) -> Result<(), String>,
) -> Result<Contents, OpenError> {
    if !dir.join("FORMAT").exists() {
        return Err(OpenError::Missing {
            path: dir.to_path_buf(),
        });
    }
    let (_disk, loaded) = Disk::open(dir, specs, keyring.map(std::sync::Arc::new))?;
    let mut contents = Contents {
        revision: loaded.limit,
        ..Contents::default()
    };
    for (spec, entries) in specs.iter().zip(&loaded.entries) {
        for (path, entry) in entries {
            look(&spec.name, path, entry).map_err(|why| OpenError::Damaged {
                path: dir.to_path_buf(),
                why: format!("{} {path}: {why}", spec.name),
            })?;
            contents.add(&spec.name, entry.value.len());
        }
    }
    Ok(contents)
}

/// What is in memory.
pub(crate) fn contents(state: &State, specs: &[CollectionSpec]) -> Contents {
    let mut contents = Contents {
        revision: state.revision,
        ..Contents::default()
    };
    for (spec, table) in specs.iter().zip(&state.tables) {
        for entry in table.entries.values() {
            contents.add(&spec.name, entry.value.len());
        }
    }
    contents
}
