//! The directory of a store: who has it, and what it holds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::OpenError;

const FORMAT: &str = "svcnet-store 1";
/// The format file until the first batch is on disk: a store that may still be empty.
const FORMAT_NEW: &str = "svcnet-store 1 new";

/// Makes it where it is not there, for its owner alone: Secrets lie in it.
pub(crate) fn make(dir: &Path) -> Result<(), OpenError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(|source| io(dir, source))
}

/// Takes the directory, or tells who has it.
pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let mut file = opened.map_err(|source| io(&path, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            _ = file.read_to_string(&mut pid);
            return Err(OpenError::Locked {
                path: dir.to_path_buf(),
                pid: pid.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(io(&path, source)),
    }
    // Only so that the refusal can name the process: a failure here is of no consequence.
    _ = file.set_len(0);
    _ = writeln!(file, "{}", std::process::id());
    Ok(file)
}

/// Whether the store is new; refuses a directory that holds something else.
pub(crate) fn check_format(dir: &Path) -> Result<bool, OpenError> {
    let path = dir.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == FORMAT => Ok(false),
        Ok(text) if text.trim() == FORMAT_NEW => Ok(true),
        Ok(text) => Err(OpenError::Format {
            path,
            found: text.trim().chars().take(40).collect(),
            known: FORMAT,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let listing = fs::read_dir(dir).map_err(|source| io(dir, source))?;
            let names = listing.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
            if let Some(found) = names.into_iter().find(|n| n != "LOCK" && n != "FORMAT.new") {
                let path = dir.to_path_buf();
                return Err(OpenError::Foreign { path, found });
            }
            write_format(dir, FORMAT_NEW)?;
            Ok(true)
        }
        Err(source) => Err(io(&path, source)),
    }
}

/// Marks a new store as whole, after its first batch.
pub(crate) fn seal(dir: &Path) -> Result<(), OpenError> {
    write_format(dir, FORMAT)
}

fn write_format(dir: &Path, text: &str) -> Result<(), OpenError> {
    let (aside, path) = (dir.join("FORMAT.new"), dir.join("FORMAT"));
    let write = || {
        let mut file = File::create(&aside)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| io(&path, source))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> OpenError {
    OpenError::Io {
        path: PathBuf::from(path),
        source,
    }
}
