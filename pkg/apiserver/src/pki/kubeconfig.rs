//! Kubeconfig files.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Authority, PkiError, files};

/// Writes a kubeconfig for a client certificate and key (mode 0600, in one step).
pub(crate) fn write_kubeconfig(
    path: &Path,
    server: &str,
    authority: &Authority,
    (certificate, key): (&str, &str),
) -> Result<(), PkiError> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: svcnet\n\
         clusters:\n- name: svcnet\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\n\
         contexts:\n- name: svcnet\n  context:\n    cluster: svcnet\n    user: svcnet\n\
         users:\n- name: svcnet\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(authority.pem()),
        STANDARD.encode(certificate),
        STANDARD.encode(key),
    );
    // Unchanged files are left alone: whoever watches them is not woken.
    if files::read(path)?.as_deref() == Some(&text) {
        return Ok(());
    }
    files::write_private(path, &text)
}
