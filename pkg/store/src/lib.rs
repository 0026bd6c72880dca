//! A revisioned key-value store for API objects: compare-and-swap writes, consistent lists, watches.
//!
//! # Layout
//! Everything lives twice: on disk in sled, to survive, and in memory as bytes, to be read. Reads never touch the disk.
//!
//! | sled key | value |
//! |---|---|
//! | `o` COLLECTION `\0` NAMESPACE `/` NAME | revision (8 bytes, big endian), then the object's bytes |
//! | `r` COLLECTION | revision of the collection's last durable change |
//! | `m` `limit` | a revision that no write has reached yet |
//! | `m` `count` | how many objects there are, and the number of the batch that wrote this |
//!
//! # Update protocol
//! One thread writes. It takes all the writes that wait, checks each against memory (and against those before it in the
//! same round), gives each the next revision, puts them into one sled batch (all or nothing), flushes once, and
//! only then changes memory, wakes watchers and answers. So an answer means *on disk*, a reader sees nothing
//! that a crash could take back, and sixteen writers share one flush. sled's own flush waits for the data pages alone
//! (`sync_file_range`); the store adds `fdatasync` on sled's file, which also makes the disk empty its cache.
//!
//! Objects of *encrypted* collections are encrypted on the disk, not in memory (`keyring`).
//!
//! Collections that are only ever refreshed (Leases) are *volatile*: same checks and revisions, but never written.
//!
//! # Revisions
//! One counter for everything, as in etcd. Volatile writes take revisions that no disk knows of, so the counter is
//! reserved in blocks: `limit` is on disk before any revision up to it is given out, and a restart goes on from there.
//! Revisions therefore never go back, and jump by up to a block at each start.
//!
//! # Watches and compaction
//! Each collection remembers its last changes, up to a number and a size; what falls off is compacted. A watch is no
//! queue but a position in that history, so a slow reader costs nothing until it has fallen behind it, and is then
//! told [`Compacted`]. The history is not on disk. After a restart it is empty, but the revision of each collection's last
//! change is known: whoever has seen that one goes on without a relist, others are told `Compacted`.
//!
//! # Crash recovery
//! sled finds the end of its log by checksums and drops a torn batch, which nobody had been told of. It does the same when
//! the disk has lost more than that, so the store holds what it has loaded against `count`, and the batch's number against
//! that of the last one that was acknowledged (`tip`): a hole is reported, never served. When the disk fails while running,
//! durable writes are refused from then on with the reason, and reads and volatile writes go on.
//!
//! # What will not scale
//! All objects are in memory, and one thread writes. 100,000 objects of 1 KiB are about 150 MB.
//!
//! # Two places for it
//! Everything that can be read is in memory, by the same code (`state`, `history`, `watch`); sled's writer thread or etcd's
//! watch ([`etcd`]) fills it. So readers know no difference, but for one call: [`Store::sync`] waits until memory has what other
//! servers were told is done. `tests/contract.rs` runs the same cases against both.

mod directory;
mod disk;
mod error;
mod etcd;
mod history;
mod key;
mod keyring;
pub mod passphrase;
mod snapshot;
mod state;
mod store;
mod tip;
mod value;
mod watch;
mod writer;

pub use error::{CommitError, OpenError, SyncError};
pub use etcd::{Endpoint, EndpointError, EtcdConfig, EtcdTlsError, Resolve, SharedValues, restore_etcd};
pub use history::{Compacted, Event};
pub use key::{Collection, CollectionSpec, Key};
pub use keyring::{Keyring, KeyringError};
pub use snapshot::{Contents, RestoreError, Restored, check, is_snapshot, restore};
pub use state::{Entry, ListError, Range, Snapshot};
pub use store::{Committed, Store, Write};
pub use value::{Change, Template};
pub use watch::{Pending, WatchError, Watcher};
