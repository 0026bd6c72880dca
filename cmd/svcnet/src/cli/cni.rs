//! `svcnet cni`: the CNI plugin.

use std::ffi::OsString;
use std::process::ExitCode;

/// The CNI plugin, which a container runtime calls
///
/// It reads CNI_COMMAND and its companions from the environment and the network configuration from standard input, and has
/// the agent on this node do the work.
///
/// Container runtimes call it under any name. `svcnet agent --cni-conf-dir /etc/cni/net.d --cni-bin-dir /opt/cni/bin` puts it
/// there as svcnet-cni and writes the configuration. By hand: link the binary to /opt/cni/bin/svcnet and write
/// /etc/cni/net.d/10-svcnet.conflist:
///
///   {"cniVersion": "1.0.0", "name": "svcnet", "plugins": [{"type": "svcnet", "capabilities": {"portMappings": true}}]}
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {}

/// Whether a container runtime calls: under any name but our own, with CNI_COMMAND in the environment and no arguments.
pub(crate) fn is_plugin_call(args: &[OsString]) -> bool {
    args.len() <= 1 && std::env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty())
}

/// Does what the environment asks for; errors go to standard output, as the CNI specification wants them.
pub(crate) fn plugin() -> ExitCode {
    svcnet_cni::plugin::main()
}
