//! Joining a cluster with a token.
//!
//! The token holds the hash of the cluster's CA. The server sends that CA along with its certificate; the connection is
//! refused unless a certificate of the chain has that very hash and has signed the server's own. So nothing is ever
//! sent to, or taken from, a server that is not the one that the token came from.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use crate::{resolve, servers};

/// How long one try to join may take.
const TRY_MAX: Duration = Duration::from_secs(10);

/// `K10<sha256 of the CA certificate, hex>::<secret>`, in the form that k3s gave its tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    ca_sha256: [u8; 32],
    text: String,
}

/// A token that does not parse.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token is not of the form K10<64 hex digits>::<secret>; `cat DATA-DIR/token` on the server shows it"
)]
pub struct TokenError;

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (hash, secret) = text
            .strip_prefix("K10")
            .and_then(|t| t.split_once("::"))
            .ok_or(TokenError)?;
        if hash.len() != 64 || secret.is_empty() || !hash.is_ascii() {
            return Err(TokenError);
        }
        let mut ca_sha256 = [0; 32];
        for (i, byte) in ca_sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hash[2 * i..2 * i + 2], 16).map_err(|_| TokenError)?;
        }
        Ok(Self {
            ca_sha256,
            text: text.to_string(),
        })
    }
}

impl JoinToken {
    /// The hash of the CA that the token is for, as hexadecimal digits: which cluster it belongs to, and no secret.
    pub fn ca_hash(&self) -> String {
        self.ca_sha256.iter().fold(String::new(), |mut text, byte| {
            _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// What the cluster tells every agent about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// `--cluster-cidr` of the server.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// `--service-cluster-ip-range` of the server.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    /// `--cluster-dns` of the server.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: String,
    /// `--cluster-domain` of the server.
    #[serde(rename = "clusterDomain")]
    pub cluster_domain: String,
}

#[derive(Debug, Deserialize)]
struct JoinAnswer {
    ca: String,
    certificate: String,
    #[serde(flatten)]
    facts: ClusterFacts,
}

/// What a node has once it has joined.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The cluster's CA, PEM.
    pub ca: String,
    /// The node's client certificate, PEM.
    pub certificate: String,
    /// The node's private key, PEM. It never leaves the node.
    pub key: String,
    /// What the cluster says about itself.
    pub facts: ClusterFacts,
}

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The URL does not name a server.
    #[error("{0:?} is not a server URL like https://10.0.0.1:6443 (--server)")]
    Url(String),
    /// The server cannot be reached: worth another try.
    #[error("cannot reach {server}")]
    Unreachable {
        /// The server's URL.
        server: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The server has another CA than the token names.
    #[error(
        "{0} is not the server of this token: its CA has another hash than the token names; \
         take the token from DATA-DIR/token of that server"
    )]
    OtherCa(String),
    /// The connection broke: worth another try.
    #[error("the connection to {server} broke")]
    Broken {
        /// The server's URL.
        server: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The server said no: another try with the same token is of no use.
    #[error("{server} refused to let this node join: {message}")]
    Refused {
        /// The server's URL.
        server: String,
        /// HTTP status code.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The server's answer is not one.
    #[error("{0} does not answer like an svcnet server")]
    Answer(String),
    /// The node's key could not be made.
    #[error("cannot make a key for this node")]
    Key(#[source] rcgen::Error),
    /// The kubeconfig could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

impl JoinError {
    /// Whether the same call may succeed later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Refused { code, .. } => *code >= 500,
            _ => false,
        }
    }
}

/// Asks the server for a certificate in this node's name; where there are several, with commas between, the first that
/// answers.
///
/// # Errors
/// See [`JoinError`]; those that [`JoinError::is_passing`] are worth another try.
pub async fn join(server: &str, token: &JoinToken, node: &str) -> Result<Joined, JoinError> {
    let (key, csr) = key_and_request(node).map_err(JoinError::Key)?;
    let body = serde_json::json!({"node": node, "csr": csr}).to_string();
    let mut all = servers::split(server).peekable();
    let answer = loop {
        let server = all.next().ok_or_else(|| JoinError::Url(server.to_string()))?;
        let answered = tokio::time::timeout(TRY_MAX, post(server, token, body.clone())).await;
        let answered = answered.unwrap_or_else(|_| {
            Err(JoinError::Unreachable {
                server: server.to_string(),
                source: std::io::ErrorKind::TimedOut.into(),
            })
        });
        match answered {
            Err(error) if error.is_passing() && all.peek().is_some() => {}
            answered => break answered?,
        }
    };
    let answer: JoinAnswer =
        serde_json::from_slice(&answer).map_err(|_| JoinError::Answer(server.to_string()))?;
    Ok(Joined {
        ca: answer.ca,
        certificate: answer.certificate,
        key: key.serialize_pem(),
        facts: answer.facts,
    })
}

/// A new key for a node, and the request to certify it.
pub(crate) fn key_and_request(node: &str) -> Result<(rcgen::KeyPair, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut request = rcgen::CertificateParams::default();
    let name = &mut request.distinguished_name;
    name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    name.push(rcgen::DnType::OrganizationName, "system:nodes");
    let csr = request.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

async fn post(server: &str, token: &JoinToken, body: String) -> Result<Bytes, JoinError> {
    let broken = |source| JoinError::Broken {
        server: server.to_string(),
        source,
    };
    let uri: http::Uri = server.parse().map_err(|_| JoinError::Url(server.to_string()))?;
    let tls = connect(server, &uri, token).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(broken)?;
    tokio::spawn(connection);
    let request = http::Request::post("/svcnet/v1/join")
        .header(
            http::header::HOST,
            uri.authority().map_or("", http::uri::Authority::as_str),
        )
        .header(http::header::AUTHORIZATION, format!("Bearer {}", token.text))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| JoinError::Url(server.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|answer| Some(answer.get("message")?.as_str()?.to_string()))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    Err(JoinError::Refused {
        server: server.to_string(),
        code: status.as_u16(),
        message,
    })
}

async fn connect(
    server: &str,
    uri: &http::Uri,
    token: &JoinToken,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, JoinError> {
    let wrong_url = || JoinError::Url(server.to_string());
    let unreachable = |source| JoinError::Unreachable {
        server: server.to_string(),
        source,
    };
    let host = uri
        .host()
        .filter(|_| uri.scheme_str() == Some("https"))
        .ok_or_else(wrong_url)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(svcnet_api::wellknown::API_PORT);
    let stream = match host.parse::<std::net::IpAddr>() {
        Ok(ip) => TcpStream::connect((ip, port)).await,
        Err(_) => {
            let addresses: Vec<_> = resolve::lookup(host).await.map_err(unreachable)?.collect();
            let addresses: Vec<_> = addresses
                .iter()
                .map(|a| std::net::SocketAddr::new(a.ip(), port))
                .collect();
            TcpStream::connect(&*addresses).await
        }
    }
    .map_err(unreachable)?;
    let name = ServerName::try_from(host.to_string()).map_err(|_| wrong_url())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinnedCa {
        sha256: token.ca_sha256,
        provider: provider.clone(),
    });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| wrong_url())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|source| {
        let pinned = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        match pinned {
            Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
                JoinError::OtherCa(server.to_string())
            }
            _ => unreachable(source),
        }
    })
}

/// Trusts the one CA whose certificate has the hash of the token.
#[derive(Debug)]
struct PinnedCa {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    fn verifier(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let ca = chain
            .iter()
            .find(|c| Sha256::digest(c)[..] == self.sha256)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown())
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.verifier(intermediates)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl Joined {
    /// Writes the node's kubeconfig (mode 0600, in one step: a crash leaves the old file or the new one).
    ///
    /// # Errors
    /// When the file or its directory cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), JoinError> {
        let ca = base64::Engine::encode(&STANDARD, &self.ca);
        write_kubeconfig(path, server, &ca, &self.certificate, &self.key).map_err(|source| JoinError::Write {
            path: path.to_path_buf(),
            source,
        })
    }
}

/// A node's kubeconfig; `ca` is in base64 already, `server` may name several with commas between.
pub(crate) fn write_kubeconfig(
    path: &Path,
    server: &str,
    ca: &str,
    certificate: &str,
    key: &str,
) -> std::io::Result<()> {
    let data = |pem: &str| base64::Engine::encode(&STANDARD, pem);
    let mut text = String::from("apiVersion: v1\nkind: Config\ncurrent-context: svcnet\n");
    _ = write!(
        text,
        "clusters:\n- name: svcnet\n  cluster:\n{}    certificate-authority-data: {ca}\n\
         contexts:\n- name: svcnet\n  context:\n    cluster: svcnet\n    user: node\n\
         users:\n- name: node\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        servers::lines(server),
        data(certificate),
        data(key),
    );
    write_private(path, &text)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let aside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_or_say_where_to_find_one() {
        let good = format!("K10{}::server:secret", "ab".repeat(32));
        assert_eq!(good.parse::<JoinToken>().unwrap().ca_sha256, [0xab; 32]);
        assert_eq!(good.parse::<JoinToken>().unwrap().ca_hash(), "ab".repeat(32));
        for bad in [
            "",
            "secret",
            "K10::x",
            "K10zz::x",
            &good.replace("::", ":"),
            &good.replace("ab", "é"),
        ] {
            let error = bad.parse::<JoinToken>().err().unwrap();
            assert!(error.to_string().contains("DATA-DIR/token"), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_without_the_pinned_ca_is_refused() {
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()]).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![key.cert.der().clone()],
                    rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
                )
                .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            _ = tokio_rustls::TlsAcceptor::from(Arc::new(config))
                .accept(stream)
                .await;
        });
        let token = format!("K10{}::server:secret", "ab".repeat(32)).parse().unwrap();
        let error = join(&format!("https://127.0.0.1:{port}"), &token, "n1")
            .await
            .unwrap_err();
        assert!(matches!(error, JoinError::OtherCa(_)), "{error:?}");
        assert!(!error.is_passing());
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_worth_another_try() {
        let token = format!("K10{}::server:secret", "ab".repeat(32)).parse().unwrap();
        assert!(
            join("https://127.0.0.1:9", &token, "n1")
                .await
                .unwrap_err()
                .is_passing()
        );
        assert!(matches!(
            join("box:6443", &token, "n1").await,
            Err(JoinError::Url(_))
        ));
    }
}
