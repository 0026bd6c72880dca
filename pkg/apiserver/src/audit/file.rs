//! The file, and those before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::AuditConfig;

/// A log file that is put aside when it is full. When it cannot be written, requests go on without it: that is said
/// once, and again when it is over, with the number of lines that are missing.
#[derive(Debug)]
pub(super) struct LogFile {
    config: AuditConfig,
    open: Option<(File, u64)>,
    lost: usize,
}

impl LogFile {
    pub(super) fn open(config: AuditConfig) -> io::Result<Self> {
        if let Some(dir) = config.path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let open = Some(open(&config.path)?);
        Ok(Self {
            config,
            open,
            lost: 0,
        })
    }

    /// Appends whole lines.
    pub(super) fn append(&mut self, lines: &str) {
        if lines.is_empty() {
            return;
        }
        let count = lines.bytes().filter(|b| *b == b'\n').count();
        match self.try_append(lines) {
            Ok(()) if self.lost > 0 => {
                tracing::info!(path = %self.config.path.display(), lost = self.lost, "the audit log is written again");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    tracing::error!(
                        path = %self.config.path.display(), reason = %error,
                        "the audit log cannot be written; requests go on without it"
                    );
                }
                self.open = None;
                self.lost += count;
                metrics::counter!("svcnet_apiserver_audit_lines_lost_total").increment(count as u64);
            }
        }
    }

    fn try_append(&mut self, lines: &str) -> io::Result<()> {
        let length = lines.len() as u64;
        if self
            .open
            .as_ref()
            .is_some_and(|(_, size)| *size > 0 && size + length > self.config.bytes_max)
        {
            self.open = None;
            self.put_aside()?;
        }
        if self.open.is_none() {
            self.open = Some(open(&self.config.path)?);
        }
        if let Some((file, size)) = &mut self.open {
            file.write_all(lines.as_bytes())?;
            *size += length;
        }
        Ok(())
    }

    /// The file becomes `.1`, that `.2`, and so on; the oldest goes.
    fn put_aside(&self) -> io::Result<()> {
        let path = &self.config.path;
        for number in (1..self.config.backups_max).rev() {
            match fs::rename(backup(path, number), backup(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let gone = if self.config.backups_max == 0 {
            fs::remove_file(path)
        } else {
            fs::rename(path, backup(path, 1))
        };
        // Somebody else may have put it away.
        gone.or_else(|e| {
            if e.kind() == io::ErrorKind::NotFound {
                Ok(())
            } else {
                Err(e)
            }
        })
    }
}

fn backup(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{number}"));
    name.into()
}

/// Who changed what is nobody else's business.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, backups_max: usize) -> LogFile {
        let config = AuditConfig {
            path: dir.join("deep/audit.log"),
            bytes_max: 30,
            backups_max,
        };
        LogFile::open(config).unwrap()
    }

    fn read(dir: &Path, name: &str) -> Option<String> {
        fs::read_to_string(dir.join("deep").join(name)).ok()
    }

    #[test]
    fn files_are_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 2);
        for number in 0..10 {
            log.append(&format!("line {number} of ten\n"));
        }
        assert_eq!(
            read(dir.path(), "audit.log").unwrap(),
            "line 8 of ten\nline 9 of ten\n"
        );
        assert_eq!(
            read(dir.path(), "audit.log.1").unwrap(),
            "line 6 of ten\nline 7 of ten\n"
        );
        assert_eq!(
            read(dir.path(), "audit.log.2").unwrap(),
            "line 4 of ten\nline 5 of ten\n"
        );
        assert_eq!(read(dir.path(), "audit.log.3"), None);
    }

    #[test]
    fn a_restart_goes_on_in_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), 0).append("one\n");
        let mut again = log(dir.path(), 0);
        again.append("two\n");
        assert_eq!(read(dir.path(), "audit.log").unwrap(), "one\ntwo\n");
        again.append(&"x".repeat(40));
        assert_eq!(read(dir.path(), "audit.log").unwrap().len(), 40);
        assert_eq!(read(dir.path(), "audit.log.1"), None);
    }

    #[test]
    fn what_cannot_be_written_stops_nobody_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 1);
        fs::remove_dir_all(dir.path().join("deep")).unwrap();
        log.append(&"x\n".repeat(20));
        assert_eq!(log.lost, 0, "the open file still takes it");
        log.append("two\nlines\n");
        assert_eq!(log.lost, 2);
        fs::create_dir(dir.path().join("deep")).unwrap();
        log.append("there\n");
        assert_eq!(log.lost, 0);
        assert_eq!(read(dir.path(), "audit.log").unwrap(), "there\n");
    }
}
