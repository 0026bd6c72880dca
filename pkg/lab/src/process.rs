//! Processes that outlive the command that started them.
//!
//! A process is known by its pid and its start time: a pid that was given to another process since is never signalled.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use svcnet_netlink::netns::{Id, NetNs};

/// How often a process that was told to stop is looked at.
const GLANCE: Duration = Duration::from_millis(2);
/// How long a killed process may take to go: the kernel frees its memory and sockets first.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A process could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The log file.
    #[error("open the log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace.
    #[error("start {program} in its network namespace")]
    NetNs {
        /// What was to start.
        program: PathBuf,
        /// Why.
        source: svcnet_netlink::netns::Error,
    },
    /// The program.
    #[error("start {program}")]
    Spawn {
        /// What was to start.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Even SIGKILL did not end it.
    #[error("process {0} does not end, although it was killed")]
    Undying(i32),
}

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// Clock ticks from boot to its start (field 22 of /proc/PID/stat).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now; none if there is none, or only its zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        (!is_over(pid, state)).then_some(Self { pid, started })
    }

    /// This process.
    pub fn this() -> Option<Self> {
        i32::try_from(std::process::id()).ok().and_then(Self::of)
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, if the process is still there.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end in between: then there is nothing to tell.
            _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// A process whose first thread is a zombie may have others that are still ending, and with them its sockets: a port
/// is free only when they are gone.
fn is_over(pid: i32, state: char) -> bool {
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state == 'X' || (state == 'Z' && threads() <= 1)
}

/// State and start time out of /proc/PID/stat. The name, in parentheses, may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    let started = fields.nth(22 - 3 - 1)?.parse().ok()?;
    Some((state, started))
}

/// The processes whose network namespace is one of these.
pub fn inside(namespaces: &[Id]) -> Vec<ProcessId> {
    let this = std::process::id();
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(this));
    let is_inside = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| {
            namespaces.contains(&Id {
                device: meta.dev(),
                inode: meta.ino(),
            })
        })
    };
    pids.filter(is_inside).filter_map(ProcessId::of).collect()
}

/// Ends processes: the signal first, SIGKILL for what is left after `patience`.
///
/// # Errors
/// When one does not end at all.
pub fn stop(processes: &[ProcessId], signal: Signal, patience: Duration) -> Result<(), ProcessError> {
    for process in processes {
        process.signal(signal);
    }
    if signal != Signal::SIGKILL && wait_gone(processes, patience).is_ok() {
        return Ok(());
    }
    for process in processes {
        process.signal(Signal::SIGKILL);
    }
    wait_gone(processes, KILL_PATIENCE).map_err(|left| ProcessError::Undying(left.pid))
}

fn wait_gone(processes: &[ProcessId], patience: Duration) -> Result<(), ProcessId> {
    let deadline = Instant::now() + patience;
    for process in processes {
        while process.is_alive() {
            if Instant::now() > deadline {
                return Err(*process);
            }
            thread::sleep(GLANCE);
        }
    }
    Ok(())
}

/// A program to start in a namespace, away from the terminal.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where its output is appended to.
    pub log: PathBuf,
    /// The namespace it lives in.
    pub netns: &'a NetNs,
}

impl Launch<'_> {
    /// Starts it, in a process group of its own: keys typed in the terminal do not reach it.
    ///
    /// # Errors
    /// When it can not be started.
    pub fn start(self) -> Result<Child, ProcessError> {
        let open = || OpenOptions::new().create(true).append(true).open(&self.log);
        let log = |source| ProcessError::Log {
            path: self.log.clone(),
            source,
        };
        let (out, err) = (open().map_err(log)?, open().map_err(log)?);
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        // What configures a svcnet of the host must not configure those of the lab.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SVCNET_") || name == "KUBECONFIG" {
                command.env_remove(name);
            }
        }
        // A child is born into the namespace of the thread that makes it.
        let spawned = self.netns.run(|| command.spawn());
        spawned
            .map_err(|source| ProcessError::NetNs {
                program: self.program.clone(),
                source,
            })?
            .map_err(|source| ProcessError::Spawn {
                program: self.program,
                source,
            })
    }
}

/// The last lines of a log, for an error message.
pub fn last_lines(path: &std::path::Path, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_name_with_parentheses() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10 18446744073709551615";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (x) S 1"), None);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let this = ProcessId::this().unwrap();
        assert!(this.is_alive());
        let before = ProcessId {
            started: this.started - 1,
            ..this
        };
        assert!(!before.is_alive());
        // Not sent: this test would not come to its end.
        before.signal(Signal::SIGKILL);
        stop(&[before], Signal::SIGTERM, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_process_that_ignores_the_signal_is_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo up; exec sleep 100"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Until it says so it has not set the trap yet.
        let mut up = [0; 2];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        stop(&[id], Signal::SIGTERM, Duration::from_millis(50)).unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_a_log() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1\n2\n3\n").unwrap();
        assert_eq!(last_lines(file.path(), 2), "2\n3");
        assert_eq!(last_lines(std::path::Path::new("/nonexistent"), 2), "");
    }
}
