//! Where etcd is, and how it is spoken to.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The port of etcd's clients (IANA).
const CLIENT_PORT: u16 = 2379;

/// Finds the addresses of a name. A static binary cannot ask the C library.
pub type Resolve =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync>;

/// One member of etcd, as in `https://10.0.0.1:2379`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// An endpoint that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an endpoint of etcd like https://10.0.0.1:2379")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError(text.to_string());
        let uri: http::Uri = text.trim().parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            tls,
            host: host.trim_start_matches('[').trim_end_matches(']').to_string(),
            port: uri.port_u16().unwrap_or(CLIENT_PORT),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Everything about an etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// Its members, or some of them; tried in turn.
    pub endpoints: Vec<Endpoint>,
    /// Authorities of etcd's certificates, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key that etcd is shown, in PEM.
    pub client_files: Option<(PathBuf, PathBuf)>,
    /// What all keys begin with, as in `/svcnet`: clusters with different ones share an etcd.
    pub prefix: String,
    /// For endpoints with names.
    pub resolve: Option<Resolve>,
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdTlsError {
    /// A file that does not hold it.
    #[error("{path} does not hold a {what} in PEM ({flag}): {why}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The flag that named it.
        flag: &'static str,
        /// What happened.
        why: String,
    },
    /// The certificate and the key do not go together.
    #[error(
        "the certificate and the key for etcd do not go together (--datastore-certfile, --datastore-keyfile)"
    )]
    Pair(#[source] rustls::Error),
    /// An https endpoint and no authority.
    #[error("{0} needs the authority of etcd's certificate: give it with --datastore-cafile")]
    NoAuthority(Endpoint),
}

impl EtcdConfig {
    /// What TLS needs; nothing when no endpoint asks for it.
    pub(crate) fn tls(&self) -> Result<Option<rustls::ClientConfig>, EtcdTlsError> {
        let Some(first) = self.endpoints.iter().find(|e| e.tls) else {
            return Ok(None);
        };
        let Some(ca_file) = &self.ca_file else {
            return Err(EtcdTlsError::NoAuthority(first.clone()));
        };
        let (what, flag) = ("certificate", "--datastore-cafile");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca_file, flag)? {
            roots
                .add(certificate)
                .map_err(|e| file(ca_file, what, flag, &e))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(EtcdTlsError::Pair)?
            .with_root_certificates(roots);
        let mut config = match &self.client_files {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "--datastore-certfile")?;
                let read = PrivateKeyDer::from_pem_file(key);
                let key = read.map_err(|e| file(key, "private key", "--datastore-keyfile", &e))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(EtcdTlsError::Pair)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(config))
    }
}

fn certificates(path: &Path, flag: &'static str) -> Result<Vec<CertificateDer<'static>>, EtcdTlsError> {
    let wrong = |e: rustls_pki_types::pem::Error| file(path, "certificate", flag, &e);
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let all = all.map_err(wrong)?;
    if all.is_empty() {
        return Err(file(path, "certificate", flag, &"there is none in it"));
    }
    Ok(all)
}

fn file(path: &Path, what: &'static str, flag: &'static str, why: &impl fmt::Display) -> EtcdTlsError {
    EtcdTlsError::File {
        path: path.to_path_buf(),
        what,
        flag,
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse_and_print() {
        for (text, printed) in [
            ("https://10.0.0.1:2379", "https://10.0.0.1:2379"),
            ("http://127.0.0.1", "http://127.0.0.1:2379"),
            ("https://[fd00::1]:4001/", "https://[fd00::1]:4001"),
            ("https://etcd.example", "https://etcd.example:2379"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), printed);
        }
        for text in ["", "10.0.0.1:2379", "mysql://x", "https://a/b", "https://"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_tls_lacks_is_named_by_its_flag() {
        let mut config = EtcdConfig {
            endpoints: vec!["https://127.0.0.1".parse().unwrap()],
            ca_file: None,
            client_files: None,
            prefix: "/svcnet".to_string(),
            resolve: None,
        };
        let text = |config: &EtcdConfig| config.tls().unwrap_err().to_string();
        assert!(text(&config).contains("--datastore-cafile"));
        config.ca_file = Some("/nonexistent/ca".into());
        assert!(
            text(&config)
                .starts_with("/nonexistent/ca does not hold a certificate in PEM (--datastore-cafile)")
        );
        config.endpoints = vec!["http://127.0.0.1".parse().unwrap()];
        assert!(config.tls().unwrap().is_none());
    }
}
