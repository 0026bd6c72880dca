//! The svcnet binary: command line and wiring.
fn main() {}
