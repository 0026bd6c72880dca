//! The command line.

pub(crate) mod agent;
pub(crate) mod apiserver;
mod beside;
pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod cni;
pub(crate) mod controller;
mod datastore;
pub(crate) mod flags;
mod inspect;
pub(crate) mod lab;
mod network;
pub(crate) mod pod;
mod policy;
pub(crate) mod role;
pub(crate) mod server;
mod span;
pub(crate) mod status;
mod store;
pub(crate) mod token;
pub(crate) mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::settings::Given;

/// Kubernetes services on bare metal, edge boxes and in labs: one binary from `kubectl apply` to the packet that arrives.
#[derive(Debug, Parser)]
#[command(
    name = "svcnet",
    version,
    propagate_version = true,
    after_help = "\
Try it, with nothing installed and nothing of this host's network touched:
  svcnet lab up                               three nodes in network namespaces
  svcnet lab exec n1 -- kubectl get svc -o wide

On real hosts:
  svcnet server                               the API, the controllers, and an agent
  svcnet agent --server https://BOX:6443 --token T

Every flag of a role is also an environment variable (--cluster-cidr is SVCNET_CLUSTER_CIDR)
and a key of /etc/svcnet/config.yaml (cluster-cidr: 10.244.0.0/16).
A flag goes before the environment, and that before the file."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Server(Box<server::Args>),
    Agent(Box<agent::Args>),
    Apiserver(apiserver::Args),
    Controller(controller::Args),
    Overlay(role::OverlayArgs),
    Proxy(role::ProxyArgs),
    Dns(role::DnsArgs),
    Announcer(role::AnnouncerArgs),
    Cni(cni::Args),
    /// A process as a pod: for labs, tests, and hosts without a container runtime
    #[command(subcommand)]
    Pod(pod::Command),
    Lab(lab::Args),
    Check(check::Args),
    Status(status::Args),
    Why(Box<why::Args>),
    /// Tokens: to join nodes, and for people and programs that use the API
    #[command(subcommand)]
    Token(token::Command),
    /// A server's data as a whole: snapshot, restore, check
    #[command(subcommand)]
    Store(store::Command),
    Policy(policy::Args),
    Cleanup(cleanup::Args),
    /// Print the version
    Version,
}

impl Command {
    /// Does what was asked for.
    pub(crate) fn run(self, given: &Given) -> anyhow::Result<ExitCode> {
        if matches!(
            self,
            Self::Lab(_)
                | Self::Check(_)
                | Self::Status(_)
                | Self::Why(_)
                | Self::Token(_)
                | Self::Store(_)
                | Self::Policy(_)
                | Self::Cleanup(_)
                | Self::Version
        ) {
            svcnet_netlink::signal::end_on_broken_pipe();
        }
        match self {
            Self::Server(args) => server::run(&args, given),
            Self::Agent(args) => agent::run(&args, given),
            Self::Apiserver(args) => apiserver::run(&args, given),
            Self::Controller(args) => controller::run(&args, given),
            Self::Overlay(args) => role::overlay(&args, given),
            Self::Proxy(args) => return role::proxy(&args, given),
            Self::Dns(args) => role::dns(&args, given),
            Self::Announcer(args) => role::announcer(&args, given),
            Self::Cni(_) => return Ok(cni::plugin()),
            Self::Pod(command) => pod::run(command),
            Self::Lab(args) => return lab::run(args),
            Self::Check(args) => return Ok(check::run(&args)),
            Self::Status(args) => return status::run(&args, given),
            Self::Why(args) => return why::run(&args, given),
            Self::Token(command) => token::run(command),
            Self::Store(command) => store::run(command),
            Self::Policy(args) => return policy::run(&args),
            Self::Cleanup(args) => cleanup::run(&args, given),
            Self::Version => {
                println!("svcnet {}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        let command = crate::settings::prepare(Cli::command(), &crate::settings::File::default());
        command.debug_assert();
    }

    #[test]
    fn every_flag_and_argument_is_explained() {
        let mut waiting = vec![Cli::command()];
        while let Some(command) = waiting.pop() {
            assert!(command.get_about().is_some(), "{} is not", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {arg} is not", command.get_name());
            }
            waiting.extend(command.get_subcommands().cloned());
        }
    }
}
