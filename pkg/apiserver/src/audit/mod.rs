//! The audit log: what was changed, and what was refused, one JSON line each.
//!
//! The lines are Events of audit.k8s.io/v1 at level Metadata, so that what reads the real server's log reads this one:
//! who, from where, what, which object, with which outcome; never what objects hold. Reads that were answered are not in
//! it, nor are successful writes to kinds that live in memory alone (heartbeats: they are to cost no disk writes).
//!
//! A line waits for room in the queue rather than being dropped, and is written for a request whose client has gone.

mod file;
mod trail;

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

pub(crate) use trail::{AUDIT_ID, ObjectRef, Trail};

/// Lines that may wait for the disk. More make their requests wait: none is lost while the disk works.
const QUEUE_MAX: usize = 4096;

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// The file (`--audit-log-path`).
    pub path: PathBuf,
    /// How many bytes it may have before another is begun (`--audit-log-maxsize`).
    pub bytes_max: u64,
    /// How many former ones are kept, as `PATH.1` (the youngest), `PATH.2`, … (`--audit-log-maxbackup`).
    pub backups_max: usize,
}

/// The audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log {path} (--audit-log-path)")]
pub struct AuditError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// A handle to the log.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Line(String),
    Flush(oneshot::Sender<()>),
}

impl Audit {
    /// Opens the file, and begins to write to it from a thread of its own.
    pub(crate) fn open(config: AuditConfig) -> Result<Self, AuditError> {
        let path = config.path.clone();
        let fail = |source| AuditError {
            path: path.clone(),
            source,
        };
        let log = file::LogFile::open(config).map_err(fail)?;
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("audit".to_string())
            .spawn(move || write_all(log, queue))
            .map_err(fail)?;
        Ok(Self { requests })
    }

    /// Takes a line, once there is room for it.
    pub(crate) async fn record(&self, line: String) {
        _ = self.requests.send(Request::Line(line)).await;
    }

    /// Returns once everything that was recorded before is in the file.
    pub(crate) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.requests.send(Request::Flush(done)).await.is_ok() {
            _ = written.await;
        }
    }
}

/// What waits is written at once: a burst costs few calls.
fn write_all(mut log: file::LogFile, mut queue: mpsc::Receiver<Request>) {
    let (mut text, mut flushed) = (String::new(), Vec::new());
    while let Some(first) = queue.blocking_recv() {
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Line(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Request::Flush(done) => flushed.push(done),
            }
            next = if text.len() < 1 << 20 {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        log.append(&text);
        text.clear();
        for done in flushed.drain(..) {
            _ = done.send(());
        }
    }
}
