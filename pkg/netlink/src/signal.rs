//! Signals of the process.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Lets a closed pipe end the process quietly, as with any program that prints. Rust ignores SIGPIPE at start, so that
/// `svcnet lab list | head -1` would panic. Not for servers: a log that nobody reads must not end them.
pub fn end_on_broken_pipe() {
    // SAFETY: the default action is no handler of ours, so nothing runs in signal context.
    let result = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    if let Err(error) = result {
        tracing::debug!(%error, "SIGPIPE stays ignored");
    }
}
