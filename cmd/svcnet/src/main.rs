//! The svcnet binary: command line and wiring, no logic of its own.

mod check;
mod cleanup;
mod cli;
mod membership;
mod process;
mod settings;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use settings::{ConfigError, File, Given};

/// Something failed.
const FAILED: u8 = 1;
/// The command line or the configuration can not be used; as clap's own errors.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if cli::cni::is_plugin_call(&args) {
        return cli::cni::plugin();
    }
    match parse(args).and_then(|(cli, given)| cli.command.run(&given)) {
        Ok(code) => code,
        Err(error) => match error.downcast::<clap::Error>() {
            // Help and version are errors to clap as well: it knows where each belongs.
            Ok(error) => error.exit(),
            Err(error) => {
                let misused = error.is::<ConfigError>();
                // The whole chain, once. An error of the standard library often repeats what its wrapper said.
                eprintln!("svcnet: {}", chain(&error));
                ExitCode::from(if misused { MISUSED } else { FAILED })
            }
        },
    }
}

fn parse(args: Vec<OsString>) -> anyhow::Result<(cli::Cli, Given)> {
    let command = cli::Cli::command();
    let role = args.get(1).and_then(|role| command.find_subcommand(role));
    // A broken file must not keep `svcnet lab` or `svcnet check` from working.
    let file = match role {
        Some(role) if role.get_arguments().any(|arg| arg.get_long() == Some("config")) => {
            File::of(&args, &command)?
        }
        _ => File::default(),
    };
    let matches = settings::prepare(command, &file).try_get_matches_from(args)?;
    let given = matches
        .subcommand()
        .map(|(_, role)| Given::of(role, &file))
        .unwrap_or_default();
    Ok((cli::Cli::from_arg_matches(&matches)?, given))
}

/// An error and its causes, without a cause that its effect already told.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text
}
