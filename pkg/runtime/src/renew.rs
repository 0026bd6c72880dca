//! Keeping a node's certificate good: it is exchanged for another before it ends, over the API, with itself as the proof.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::config::Kubeconfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::identity::{certificate_pem, current_user};
use crate::{join, servers};

/// The server dates its certificates back by this much, since clocks differ.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);
/// Which part of its time is left when a certificate is renewed.
const LEFT_PART: u32 = 3;
/// How often is looked, at least: clocks jump, and files change.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60 * 60);
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Why a certificate is not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The kubeconfig does not hold a node's certificate.
    #[error(
        "{0} holds no certificate of a node that could be renewed; remove it, and join again with a token"
    )]
    Kubeconfig(PathBuf),
    /// A new key cannot be made.
    #[error("cannot make a key for this node")]
    Key(#[source] rcgen::Error),
    /// The server does not give a new one.
    #[error("the server does not renew it")]
    Server(#[source] Box<kube::Error>),
    /// The new one cannot be kept.
    #[error("cannot write {path}")]
    Write {
        /// The kubeconfig.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

#[derive(Debug, Deserialize)]
struct Answer {
    certificate: String,
}

/// When a certificate was made, and when it ends, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    made: u64,
    end: u64,
}

impl Validity {
    fn of(kubeconfig: &Path) -> Option<Self> {
        let read = Kubeconfig::read_from(kubeconfig).ok()?;
        let pem = certificate_pem(current_user(&read)?)?;
        let der = CertificateDer::from_pem_slice(&pem).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let second = |at: x509_parser::time::ASN1Time| u64::try_from(at.timestamp()).ok();
        let validity = certificate.validity();
        Some(Self {
            made: second(validity.not_before)?.saturating_add(BACKDATED.as_secs()),
            end: second(validity.not_after)?,
        })
    }

    /// How long until it is to be renewed: no time where that is now.
    fn due_in(self, now: u64) -> Duration {
        let lasts = self.end.saturating_sub(self.made);
        let due = self.end.saturating_sub(lasts / u64::from(LEFT_PART));
        Duration::from_secs(due.saturating_sub(now))
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Whether the certificate in a kubeconfig is past its end: only joining anew helps then.
pub fn has_expired(kubeconfig: &Path) -> bool {
    Validity::of(kubeconfig).is_some_and(|validity| validity.end <= now())
}

/// Renews the certificate in a node's kubeconfig whenever that is due, until shutdown. A failure is said once, and tried
/// again.
///
/// # Errors
/// None: a node works on as long as its certificate is good.
pub async fn keep(
    client: kube::Client,
    kubeconfig: PathBuf,
    node: String,
    shutdown: CancellationToken,
) -> Result<(), RenewError> {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let due = Validity::of(&kubeconfig).map_or(Duration::ZERO, |v| v.due_in(now()));
        if !due.is_zero() {
            wait = due.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
            continue;
        }
        match renew(&client, &kubeconfig, &node).await {
            Ok(()) => {
                tracing::info!(node, "the certificate of this node was renewed");
                backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
                wait = LOOK_EVERY_MIN;
            }
            Err(error) => {
                let reason = chain(&error);
                if backoff.is_news(&reason) {
                    tracing::warn!(node, reason, "the certificate of this node cannot be renewed yet");
                }
                wait = backoff.next_delay();
            }
        }
    }
}

fn chain(error: &RenewError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// Exchanges the certificate for another, and the key with it.
///
/// # Errors
/// See [`RenewError`]; the former certificate stays.
pub async fn renew(client: &kube::Client, kubeconfig: &Path, node: &str) -> Result<(), RenewError> {
    let unusable = || RenewError::Kubeconfig(kubeconfig.to_path_buf());
    let before = Kubeconfig::read_from(kubeconfig).map_err(|_| unusable())?;
    let cluster = before
        .clusters
        .first()
        .and_then(|c| c.cluster.as_ref())
        .ok_or_else(unusable)?;
    let server = cluster.server.as_deref().ok_or_else(unusable)?;
    let several = servers::of(&before);
    let several: Vec<String> = several
        .iter()
        .map(|s| s.to_string().trim_end_matches('/').to_string())
        .collect();
    let server = if several.is_empty() {
        server
    } else {
        &several.join(",")
    };
    let ca = cluster
        .certificate_authority_data
        .as_deref()
        .ok_or_else(unusable)?;
    let (key, csr) = join::key_and_request(node).map_err(RenewError::Key)?;
    let body = serde_json::json!({"csr": csr}).to_string().into_bytes();
    let request = http::Request::post("/svcnet/v1/renew")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|_| unusable())?;
    let answer: Answer = client
        .request(request)
        .await
        .map_err(|e| RenewError::Server(Box::new(e)))?;
    let written = join::write_kubeconfig(kubeconfig, server, ca, &answer.certificate, &key.serialize_pem());
    written.map_err(|source| RenewError::Write {
        path: kubeconfig.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        let validity = Validity {
            made: 1000,
            end: 1300,
        };
        assert_eq!(validity.due_in(1000), Duration::from_secs(200));
        assert_eq!(validity.due_in(1199), Duration::from_secs(1));
        assert_eq!(validity.due_in(1200), Duration::ZERO);
        assert_eq!(validity.due_in(9999), Duration::ZERO);
    }
}
