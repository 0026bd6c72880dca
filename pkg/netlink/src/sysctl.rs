//! Kernel parameters under `/proc/sys`. Those of `net/` are of the namespace of the calling thread.
//!
//! Names are written with slashes (`net/ipv4/conf/svcnet.1/rp_filter`): link names hold dots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a parameter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be read.
    #[error("read sysctl {name}: {source}")]
    Read {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("set sysctl {name} to {value}: {source}")]
    Write {
        /// Which.
        name: String,
        /// What it was to become.
        value: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether the parameter does not exist: the kernel lacks the feature, or the link is gone.
    pub fn is_gone(&self) -> bool {
        let (Self::Read { source, .. } | Self::Write { source, .. }) = self;
        source.kind() == io::ErrorKind::NotFound
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// The value, without the line's end.
///
/// # Errors
/// When there is no such parameter.
pub fn read(name: &str) -> Result<String, Error> {
    match fs::read_to_string(path(name)) {
        Ok(text) => Ok(text.trim_end().to_string()),
        Err(source) => Err(Error::Read {
            name: name.to_string(),
            source,
        }),
    }
}

/// Sets the value where it differs, and returns the former one then.
///
/// # Errors
/// When there is no such parameter, or without the privilege to.
pub fn set(name: &str, value: &str) -> Result<Option<String>, Error> {
    let former = read(name)?;
    if former == value {
        return Ok(None);
    }
    fs::write(path(name), value).map_err(|source| Error::Write {
        name: name.to_string(),
        value: value.to_string(),
        source,
    })?;
    Ok(Some(former))
}
