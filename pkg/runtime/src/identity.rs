//! The client certificate of a kubeconfig, read anew for each connection: whoever renews it writes the file, and nobody
//! needs to be told.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Kubeconfig};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret as _;

/// What a client shows to the server, as the kubeconfig has it at that moment.
#[derive(Debug)]
pub(crate) struct ReadAnew {
    path: PathBuf,
    /// For a moment in which the file is not there, or half of it.
    last: Mutex<Option<Arc<CertifiedKey>>>,
}

impl ReadAnew {
    /// For a kubeconfig whose current user has a client certificate; none for others.
    pub(crate) fn of(path: &Path, kubeconfig: &Kubeconfig) -> Option<Self> {
        let user = current_user(kubeconfig)?;
        let first = certified_key(user)?;
        Some(Self {
            path: path.to_path_buf(),
            last: Mutex::new(Some(first)),
        })
    }
}

impl ResolvesClientCert for ReadAnew {
    /// A connection is rare and waits for the network anyway: reading a small file does not matter.
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let read = Kubeconfig::read_from(&self.path).ok();
        let key = read.as_ref().and_then(current_user).and_then(certified_key);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if key.is_some() {
            last.clone_from(&key);
        }
        last.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The user of the current context.
pub(crate) fn current_user(kubeconfig: &Kubeconfig) -> Option<&AuthInfo> {
    let current = kubeconfig.current_context.as_deref()?;
    let context = kubeconfig.contexts.iter().find(|c| c.name == current)?;
    let name = context.context.as_ref()?.user.as_deref()?;
    kubeconfig
        .auth_infos
        .iter()
        .find(|a| a.name == name)?
        .auth_info
        .as_ref()
}

/// The client certificates of a user, in PEM.
pub(crate) fn certificate_pem(user: &AuthInfo) -> Option<Vec<u8>> {
    match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => STANDARD.decode(data).ok(),
        (None, Some(file)) => std::fs::read(file).ok(),
        (None, None) => None,
    }
}

fn certified_key(user: &AuthInfo) -> Option<Arc<CertifiedKey>> {
    let key = match (&user.client_key_data, &user.client_key) {
        (Some(data), _) => STANDARD.decode(data.expose_secret()).ok()?,
        (None, Some(file)) => std::fs::read(file).ok()?,
        (None, None) => return None,
    };
    let pem = certificate_pem(user)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let key = PrivateKeyDer::from_pem_slice(&key).ok()?;
    let pair = CertifiedKey::from_der(chain.ok()?, key, &ring::default_provider());
    pair.ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) {
        crate::join::write_kubeconfig(
            path,
            "https://127.0.0.1:9",
            "",
            &certificate.cert.pem(),
            &certificate.signing_key.serialize_pem(),
        )
        .unwrap();
    }

    #[test]
    fn what_was_renewed_is_shown_and_a_file_that_is_away_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig.yaml");
        let make = || rcgen::generate_simple_self_signed(vec!["n1".to_string()]).unwrap();
        let (first, second) = (make(), make());
        write(&path, &first);
        let identity = ReadAnew::of(&path, &Kubeconfig::read_from(&path).unwrap()).unwrap();
        let shown = || identity.resolve(&[], &[]).unwrap().cert[0].to_vec();
        assert_eq!(shown(), first.cert.der().to_vec());
        write(&path, &second);
        assert_eq!(shown(), second.cert.der().to_vec());
        std::fs::write(&path, "kind: Config\nusers: [").unwrap();
        assert_eq!(shown(), second.cert.der().to_vec());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(shown(), second.cert.der().to_vec());
    }

    #[test]
    fn users_without_a_certificate_have_none_to_show() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                    clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]\n\
                    contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]\n";
        let kubeconfig = Kubeconfig::from_yaml(text).unwrap();
        assert!(ReadAnew::of(Path::new("x"), &kubeconfig).is_none());
    }
}
