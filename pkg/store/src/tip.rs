//! How far the log must reach: the number of the last acknowledged batch, in a file beside the log.
//!
//! It is written after its batch is on the disk, and itself is not synced: a kill leaves it in the kernel, and a power cut may
//! leave an older number, never a later one. So it costs a write no sync, and is never ahead of an undamaged log.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::directory::io;
use crate::error::OpenError;

/// The file's name in the store's directory.
const NAME: &str = "TIP";

/// The open file.
#[derive(Debug)]
pub(crate) struct Tip(File);

impl Tip {
    /// Holds a log that ends with batch `last` against the file, which is made where it is not there.
    ///
    /// # Errors
    /// [`OpenError::Cut`] when the log ends too early.
    pub(crate) fn open(dir: &Path, last: u64) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        let acknowledged = match fs::read_to_string(&path) {
            // What cannot be read says nothing about the log.
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) if error.kind() == ErrorKind::InvalidData => 0,
            Err(source) => return Err(io(&path, source)),
        };
        if last < acknowledged {
            return Err(OpenError::Cut {
                path: dir.to_path_buf(),
                missing: acknowledged - last,
                tip: path,
            });
        }
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).open(&path);
        let tip = Self(opened.map_err(|source| io(&path, source))?);
        let written = tip.write(last).and_then(|()| tip.0.sync_all());
        written.map_err(|source| io(&path, source))?;
        Ok(tip)
    }

    /// That this batch is on the disk.
    pub(crate) fn set(&self, last: u64) -> Result<(), String> {
        self.write(last).map_err(|e| format!("{NAME}: {e}"))
    }

    /// Always as long, so that no part of a former number is left, nor a file half written.
    fn write(&self, last: u64) -> std::io::Result<()> {
        self.0.write_all_at(format!("{last:020}\n").as_bytes(), 0)
    }
}
