//! Being in a member: its network namespace, its name, its resolver.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use svcnet_netlink::netns::{self, NetNs};

use crate::names::{LabName, Member};
use crate::state::{LabDir, StateError};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A command could not be run in a member.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The lab.
    #[error(transparent)]
    State(#[from] StateError),
    /// The member.
    #[error("lab {lab} has no {member}; `svcnet lab list` shows its members")]
    NoMember {
        /// The lab.
        lab: LabName,
        /// Who was asked for.
        member: Member,
    },
    /// The namespace.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// A step on the way in.
    #[error("{step} for {name}")]
    Enter {
        /// The step.
        step: &'static str,
        /// The namespace's name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The program.
    #[error("run {0:?}")]
    Run(OsString, #[source] io::Error),
}

/// Where a process of a member lives. Its own mount namespace lets `/etc/resolv.conf` be the member's, as `ip netns
/// exec` does it; its own UTS namespace lets `hostname` be the member's.
#[derive(Debug)]
pub struct Sandbox {
    netns: NetNs,
    name: String,
    hostname: String,
    resolv_conf: PathBuf,
}

impl Sandbox {
    /// The namespace of that name, as a host of that name.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn open(netns: &str, hostname: &str) -> Result<Self, netns::Error> {
        Ok(Self {
            netns: NetNs::open(netns)?,
            name: netns.to_string(),
            hostname: hostname.to_string(),
            resolv_conf: resolv_conf_of(netns),
        })
    }

    /// Starts a command in it.
    ///
    /// # Errors
    /// When the sandbox can not be entered, or the program not be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, ExecError> {
        let program = command.get_program().to_os_string();
        // A child is born into the namespaces of the thread that makes it; the thread ends here.
        let spawned = thread::scope(|scope| {
            let body = scope.spawn(|| {
                self.enter_this_thread()?;
                command.spawn().map_err(|e| ExecError::Run(program, e))
            });
            body.join()
        });
        spawned.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Becomes the command, in the sandbox: returns only when it could not.
    ///
    /// # Errors
    /// When the sandbox can not be entered, or the program not be run.
    pub fn exec(&self, command: &mut Command) -> Result<Infallible, ExecError> {
        let program = command.get_program().to_os_string();
        self.enter_this_thread()?;
        Err(ExecError::Run(program, command.exec()))
    }

    fn enter_this_thread(&self) -> Result<(), ExecError> {
        let failed = |step| {
            move |errno: nix::Error| ExecError::Enter {
                step,
                name: self.name.clone(),
                source: errno.into(),
            }
        };
        self.netns.enter_this_thread()?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).map_err(failed("make namespaces"))?;
        nix::unistd::sethostname(&self.hostname).map_err(failed("set the host name"))?;
        if self.resolv_conf.exists() && Path::new(RESOLV_CONF).exists() {
            // Slave: what is mounted here stays here, what the host unmounts goes here too.
            let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
                .map_err(failed("detach the mounts"))?;
            let from = Some(&self.resolv_conf);
            mount(from, RESOLV_CONF, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(failed("bind resolv.conf"))?;
        }
        Ok(())
    }
}

/// Where `ip netns exec` too looks for the namespace's `resolv.conf`.
pub fn resolv_conf_of(netns: &str) -> PathBuf {
    Path::new("/etc/netns").join(netns).join("resolv.conf")
}

/// Becomes a command in a member of a lab, with KUBECONFIG set, and with the lab's own `svcnet` before one of the host, which may
/// be of another version: returns only when it could not.
///
/// # Errors
/// When there is no such lab or member, or the program can not be run.
pub fn exec(lab: &LabName, member: &Member, command: &[OsString]) -> Result<Infallible, ExecError> {
    let dir = LabDir::of(lab);
    if !dir.exists() {
        return Err(StateError::NoLab(lab.clone()).into());
    }
    let sandbox = Sandbox::open(&lab.netns(member), &member.to_string()).map_err(|error| {
        if error.is_gone() {
            ExecError::NoMember {
                lab: lab.clone(),
                member: member.clone(),
            }
        } else {
            error.into()
        }
    })?;
    // The shell of the user, when there is no command: to look around.
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let (program, args) = command.split_first().unwrap_or((&shell, &[]));
    let mut command = Command::new(program);
    command.args(args).env("KUBECONFIG", dir.kubeconfig());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(dir.programs()).chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(path) {
        command.env("PATH", path);
    }
    sandbox.exec(&mut command)
}
