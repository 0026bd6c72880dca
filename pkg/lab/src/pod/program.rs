//! The process of a pod: started, looked at, started again.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use jiff::Timestamp;
use svcnet_netlink::netns;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::object::{ProcessState, Readiness, Status};
use super::readiness;
use super::spec::{ContainerPort, PodSpec};
use crate::exec::{ExecError, Sandbox};

/// The kubelet's back-off: at once, then 10 s, doubled each time up to 5 min, forgotten after 10 min of running.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(600);

/// The program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// The program.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// The process of a pod.
pub(super) struct Program {
    sandbox: Sandbox,
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    ports: Vec<ContainerPort>,
    running: Running,
    pause: Duration,
    status: Status,
}

enum Running {
    Yes {
        pid: u32,
        since: Instant,
        end: JoinHandle<std::io::Result<ExitStatus>>,
    },
    Again(Instant),
}

impl Program {
    /// Starts the program in the pod's namespace.
    pub(super) fn start(spec: &PodSpec) -> Result<Self, ProgramError> {
        let now = Timestamp::now();
        let (name, args) = match spec.command.split_first() {
            Some((name, args)) => (name.clone(), args.to_vec()),
            None => ("/proc/self/exe".to_string(), responder_args(spec)),
        };
        let mut program = Self {
            sandbox: Sandbox::open(&spec.netns, &spec.name)?,
            program: name,
            args,
            env: vec![
                ("POD_NAME".to_string(), spec.name.clone()),
                ("POD_NAMESPACE".to_string(), spec.namespace.clone()),
                ("NODE_NAME".to_string(), spec.node.clone()),
            ],
            ports: spec.ports.clone(),
            running: Running::Again(Instant::now()),
            pause: Duration::ZERO,
            status: Status {
                readiness: Readiness::NotRunning,
                since: now,
                process: ProcessState::Running(now),
                restarts: 0,
                begun: now,
            },
        };
        program.spawn()?;
        Ok(program)
    }

    /// What is to be said about the pod.
    pub(super) fn status(&self) -> Status {
        self.status.clone()
    }

    /// Waits for the end of the process, or for the time to start it again.
    pub(super) async fn event(&mut self) {
        match &mut self.running {
            Running::Again(at) => tokio::time::sleep_until(*at).await,
            Running::Yes { since, end, .. } => {
                let ended = end.await;
                let code = match ended {
                    Ok(Ok(status)) => status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
                    _ => -1,
                };
                if since.elapsed() > BACKOFF_FORGOTTEN {
                    self.pause = Duration::ZERO;
                }
                tracing::info!(code, again_in_s = self.pause.as_secs(), "the pod's process ended");
                self.running = Running::Again(Instant::now() + self.pause);
                self.pause = (self.pause * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
                self.status.process = ProcessState::Waiting { code };
                self.turn(Readiness::NotRunning);
            }
        }
    }

    /// Starts the process if it is time to, and sees whether it listens.
    pub(super) fn look(&mut self) {
        match &self.running {
            Running::Again(at) if *at <= Instant::now() => {
                // What could be started once can be again, unless the program was removed: then it waits, as a
                // container whose image has gone does.
                match self.spawn() {
                    Ok(()) => self.status.restarts += 1,
                    Err(error) => {
                        tracing::warn!(%error, "the pod's process could not be started again");
                        self.running = Running::Again(Instant::now() + BACKOFF_FIRST);
                    }
                }
            }
            Running::Again(_) => {}
            Running::Yes { pid, .. } => {
                let readiness = match readiness::first_silent(*pid, &self.ports) {
                    Ok(None) => Readiness::Ready,
                    Ok(Some(port)) => Readiness::NotListening(port.to_string()),
                    Err(_) => Readiness::NotRunning,
                };
                self.turn(readiness);
            }
        }
    }

    fn turn(&mut self, readiness: Readiness) {
        if self.status.readiness != readiness {
            self.status.readiness = readiness;
            self.status.since = Timestamp::now();
        }
    }

    fn spawn(&mut self) -> Result<(), ProgramError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            // The supervisor decides on the order of the end: keys typed in a terminal reach it alone.
            .process_group(0);
        let mut child = self.sandbox.spawn(&mut command)?;
        self.running = Running::Yes {
            pid: child.id(),
            since: Instant::now(),
            end: tokio::task::spawn_blocking(move || child.wait()),
        };
        self.status.process = ProcessState::Running(Timestamp::now());
        Ok(())
    }
}

/// Arguments that make this very binary the built-in responder.
fn responder_args(spec: &PodSpec) -> Vec<String> {
    let mut args = ["pod", "respond", "--name", &spec.name]
        .map(str::to_string)
        .to_vec();
    for port in &spec.ports {
        args.extend(["--container-port".to_string(), port.to_string()]);
    }
    args
}
