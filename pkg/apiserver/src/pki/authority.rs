//! The cluster's certificate authority, and the client certificates that it signs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::Validity;

use super::{PkiError, files};

const DAY: u64 = 24 * 60 * 60;
/// How long the authority lasts: as long as the cluster.
const CA_DAYS: u64 = 20 * 365;
/// Which part of its time must be left, for a certificate not to be renewed.
const RENEW_PART: u32 = 3;

/// The authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    dir: PathBuf,
    /// How long the certificates last that it signs.
    lasts: Duration,
}

/// Who a client certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientName<'a> {
    /// The user, as in `system:node:n1`.
    pub(crate) user: &'a str,
    /// The group, as in `system:nodes`.
    pub(crate) group: &'a str,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the authority of a directory, or makes one.
    pub(crate) fn open(dir: &Path, lasts: Duration) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let content = |path: &Path, what| PkiError::Content {
            path: path.to_path_buf(),
            what,
        };
        let (pem, key) = match (files::read(&cert_path)?, files::read(&key_path)?) {
            (Some(cert), Some(key)) => (
                cert,
                KeyPair::from_pem(&key).map_err(|_| content(&key_path, "private key"))?,
            ),
            (None, None) => Self::make(&cert_path, &key_path)?,
            // Half of a pair is a crash in the very first start, before anything was signed, or a loss.
            (None, Some(_)) => Self::make(&cert_path, &key_path)?,
            (Some(_), None) => return Err(content(&key_path, "private key")),
        };
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| content(&cert_path, "certificate"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(|_| content(&cert_path, "certificate of an authority"))?;
        Ok(Self {
            issuer,
            pem,
            der,
            dir: dir.to_path_buf(),
            lasts,
        })
    }

    fn make(cert_path: &Path, key_path: &Path) -> Result<(String, KeyPair), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let now = Timestamp::now().as_second();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("svcnet-ca@{now}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        lasting(&mut params, Duration::from_secs(CA_DAYS * DAY));
        let pem = params.self_signed(&key)?.pem();
        files::write_private(key_path, &key.serialize_pem())?;
        files::write_private(cert_path, &pem)?;
        Ok((pem, key))
    }

    /// The authority's certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Hash of the authority's certificate, in hex: what join tokens name.
    pub(crate) fn sha256_hex(&self) -> String {
        Sha256::digest(&self.der)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    pub(super) fn lasts(&self) -> Duration {
        self.lasts
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<String, PkiError> {
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// Signs a node's request. Everything but the public key is decided here. `after` is the second up to which certificates in
    /// this name are revoked.
    pub(crate) fn sign_node(
        &self,
        request: &CertificateSigningRequestParams,
        name: ClientName<'_>,
        after: Option<i64>,
    ) -> Result<String, PkiError> {
        self.sign(&client(name, self.lasts, after), &request.public_key)
    }

    /// The certificate and key kept under a name in the directory of the authority; made when missing, near its end, or
    /// signed by a former authority or for someone else, or not made after that second.
    pub(crate) fn client_pair(
        &self,
        file: &str,
        name: ClientName<'_>,
        after: Option<i64>,
    ) -> Result<(String, String), PkiError> {
        let (cert_path, key_path) = (
            self.dir.join(format!("{file}.crt")),
            self.dir.join(format!("{file}.key")),
        );
        let kept = files::read(&cert_path)?.zip(files::read(&key_path)?);
        if let Some((cert, key)) = kept
            && self.is_good(&cert, |c| {
                let common = c.subject().iter_common_name().next();
                common.and_then(|n| n.as_str().ok()) == Some(name.user)
                    && after.is_none_or(|after| made(c.validity()) > after)
            })
        {
            return Ok((cert, key));
        }
        let key = KeyPair::generate()?;
        let cert = self.sign(&client(name, self.lasts, after), &key)?;
        files::write_private(&key_path, &key.serialize_pem())?;
        files::write_private(&cert_path, &cert)?;
        Ok((cert, key.serialize_pem()))
    }

    /// Whether a kept certificate is ours, lasts for a while, and is as wanted.
    pub(super) fn is_good(
        &self,
        pem: &str,
        wanted: impl Fn(&x509_parser::certificate::X509Certificate<'_>) -> bool,
    ) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
            return false;
        };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else {
            return false;
        };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&self.der) else {
            return false;
        };
        let left = certificate.validity().not_after.timestamp() - Timestamp::now().as_second();
        u64::try_from(left).is_ok_and(|left| left > self.lasts.as_secs() / u64::from(RENEW_PART))
            && certificate.verify_signature(Some(ca.public_key())).is_ok()
            && wanted(&certificate)
    }
}

fn client(name: ClientName<'_>, lasts: Duration, after: Option<i64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name.user);
    params
        .distinguished_name
        .push(DnType::OrganizationName, name.group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = Timestamp::now().as_second();
    lasting_from(&mut params, after.map_or(now, |after| now.max(after + 1)), lasts);
    params
}

pub(super) fn lasting(params: &mut CertificateParams, lasts: Duration) {
    lasting_from(params, Timestamp::now().as_second(), lasts);
}

/// When a certificate was made, in seconds since 1970.
pub(crate) fn made(validity: &Validity) -> i64 {
    validity.not_before.timestamp() + i64::try_from(DAY).unwrap_or_default()
}

/// From the day before, since clocks differ.
fn lasting_from(params: &mut CertificateParams, now: i64, lasts: Duration) {
    let second = |at: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at);
    let now = u64::try_from(now).unwrap_or_default();
    params.not_before = second(now.saturating_sub(DAY));
    params.not_after = second(now + lasts.as_secs());
}
