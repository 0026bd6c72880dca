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

/// The open file, and the number that it holds.
#[derive(Debug)]
pub(crate) struct Tip {
    file: File,
    last: u64,
}

impl Tip {
    /// Holds a log that ends with batch `last` against the file, which is made where it is not there. A log that does not say,
    /// of a version that did not number its batches, is believed.
    ///
    /// # Errors
    /// [`OpenError::Cut`] when the log ends too early.
    pub(crate) fn open(dir: &Path, last: Option<u64>) -> Result<Self, OpenError> {
        let path = dir.join(NAME);
        let acknowledged = match fs::read_to_string(&path) {
            // What cannot be read says nothing about the log.
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == ErrorKind::NotFound => 0,
            Err(error) if error.kind() == ErrorKind::InvalidData => 0,
            Err(source) => return Err(io(&path, source)),
        };
        let last = last.unwrap_or(acknowledged);
        if last < acknowledged {
            return Err(OpenError::Cut {
                path: dir.to_path_buf(),
                missing: acknowledged - last,
                tip: path,
            });
        }
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(|source| io(&path, source))?;
        let tip = Self { file, last };
        let written = tip.write().and_then(|()| tip.file.sync_all());
        written.map_err(|source| io(&path, source))?;
        Ok(tip)
    }

    /// The number of the batch that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.last + 1
    }

    /// That the next batch is on the disk.
    pub(crate) fn advance(&mut self) -> Result<(), String> {
        self.last += 1;
        self.write().map_err(|e| format!("{NAME}: {e}"))
    }

    /// Always as long, so that no part of a former number is left, nor a file half written.
    fn write(&self) -> std::io::Result<()> {
        self.file
            .write_all_at(format!("{:020}\n", self.last).as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_held_against_it_and_it_goes_on_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let open = |last| Tip::open(dir.path(), last);
        let mut tip = open(Some(3)).unwrap();
        tip.advance().unwrap();
        assert_eq!(open(Some(4)).unwrap().next(), 5);
        assert!(matches!(open(Some(2)), Err(OpenError::Cut { missing: 2, .. })));
        // Of a version that did not number its batches.
        assert_eq!(open(None).unwrap().next(), 5);
        // A power cut took the last number.
        assert_eq!(open(Some(9)).unwrap().next(), 10);
    }
}
