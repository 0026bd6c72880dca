//! Private files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::PkiError;

/// Writes a file that only its owner may read, in one step: a crash leaves the former one or this one. Directories
/// that are missing are made.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    write(path, text, 0o600).map_err(|source| PkiError::File {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty());
    if let Some(dir) = dir {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    let aside = path.with_extension(format!("new{}", std::process::id()));
    // A leftover may have other permissions.
    _ = fs::remove_file(&aside);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    dir.map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The text of a file, or nothing when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            path: path.to_path_buf(),
            source,
        }),
    }
}
