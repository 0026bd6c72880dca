//! The server's own certificate, renewed while it is in use.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use super::authority::{Authority, lasting};
use super::{PkiError, files};
use crate::Config;

/// What the server shows to those who connect.
#[derive(Debug)]
pub(crate) struct Serving {
    now: RwLock<Arc<CertifiedKey>>,
}

/// Every name and address that the server may be called by.
pub(crate) fn sans(config: &Config, advertised: IpAddr) -> BTreeSet<String> {
    let mut sans: BTreeSet<String> = [
        "127.0.0.1",
        "::1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_string)
    .into();
    sans.insert(format!("kubernetes.default.svc.{}", config.cluster_domain));
    sans.insert(config.node_name.clone());
    sans.insert(advertised.to_string());
    let listening = config.listen.iter().map(std::net::SocketAddr::ip);
    sans.extend(
        listening
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| ip.to_string()),
    );
    sans.extend(
        config
            .service_cidrs
            .iter()
            .filter_map(|c| first_host(*c))
            .map(|ip| ip.to_string()),
    );
    sans.extend(
        config
            .tls_sans
            .iter()
            .map(|s| s.trim().to_string())
            .filter(|s| !s.is_empty()),
    );
    sans
}

/// The first address of a range that a Service can have: that of the Service `kubernetes`.
pub(crate) fn first_host(cidr: ipnet::IpNet) -> Option<IpAddr> {
    svcnet_api::types::nth_host(cidr, 1)
}

impl Serving {
    /// Loads the certificate, or makes one where it is missing, too old, or made for other names.
    pub(crate) fn open(authority: &Authority, sans: &BTreeSet<String>) -> Result<Self, PkiError> {
        let key = load(authority, sans)?;
        Ok(Self {
            now: RwLock::new(Arc::new(key)),
        })
    }

    /// Renews the certificate if it is near its end, or for other names. Connections that are open keep the former one.
    pub(crate) fn renew(&self, authority: &Authority, sans: &BTreeSet<String>) -> Result<(), PkiError> {
        let key = load(authority, sans)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(authority: &Authority, sans: &BTreeSet<String>) -> Result<CertifiedKey, PkiError> {
    let (cert_path, key_path) = (
        authority.dir().join("serving.crt"),
        authority.dir().join("serving.key"),
    );
    let kept = files::read(&cert_path)?.zip(files::read(&key_path)?);
    let (cert, key) = match kept {
        Some(kept) if authority.is_good(&kept.0, |c| names(c) == *sans) => kept,
        _ => {
            let (cert, key) = make(authority, sans)?;
            files::write_private(&key_path, &key)?;
            files::write_private(&cert_path, &cert)?;
            (cert, key)
        }
    };
    let content = |path: &std::path::Path, what| PkiError::Content {
        path: path.to_path_buf(),
        what,
    };
    let leaf =
        CertificateDer::from_pem_slice(cert.as_bytes()).map_err(|_| content(&cert_path, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| content(&key_path, "private key"))?;
    // The authority goes along: joining nodes know it by its hash alone.
    let chain = vec![leaf, authority.der().clone()];
    let pair = CertifiedKey::from_der(chain, key, &ring::default_provider());
    pair.map_err(|_| content(&key_path, "key that fits serving.crt"))
}

fn make(authority: &Authority, sans: &BTreeSet<String>) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "svcnet-apiserver");
    for san in sans {
        let name = match san.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(san.as_str().try_into().map_err(|_| PkiError::Name(san.clone()))?),
        };
        params.subject_alt_names.push(name);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    lasting(&mut params, authority.lasts());
    let cert = authority.sign(&params, &key)?;
    Ok((cert, key.serialize_pem()))
}

fn names(certificate: &x509_parser::certificate::X509Certificate<'_>) -> BTreeSet<String> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension
        .map(|e| e.value.general_names.as_slice())
        .unwrap_or_default();
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_string()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
        _ => None,
    };
    names.iter().filter_map(text).collect()
}
