//! A real server for foreign clients, and what they are held to: transcripts of kubectl, and a model of acknowledged writes
//! that informers must agree with.

pub mod model;
mod server;
mod transcript;
mod writers;

pub use server::Server;
pub use transcript::{Kubectl, run_table};
pub use writers::{END, Writers, seen};
