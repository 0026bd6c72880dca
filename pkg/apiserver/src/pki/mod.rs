//! The cluster's own certificates: the authority, what the server shows, and what its clients show.

mod authority;
pub(crate) mod files;
mod kubeconfig;
mod serving;
mod token;

use std::path::PathBuf;

pub(crate) use authority::{Authority, ClientName, made};
pub(crate) use kubeconfig::write_kubeconfig;
pub(crate) use serving::{Serving, first_host, sans};
pub(crate) use token::Token;

/// What can go wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} does not hold a {what} (was it edited?); restore it from a backup")]
    Content {
        /// Which one.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A key or certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// A name cannot stand in a certificate.
    #[error("{0:?} cannot stand in a certificate (--tls-san)")]
    Name(String),
    /// A certificate cannot be served.
    #[error("cannot serve with the certificate")]
    Tls(#[from] rustls::Error),
}
