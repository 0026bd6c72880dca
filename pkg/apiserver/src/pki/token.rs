//! The token by which nodes join.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Authority, PkiError, files};

/// The join token: `K10<sha256 of the CA>::server:<secret>`.
#[derive(Clone)]
pub(crate) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Loads the token, or makes one. The hash of the CA is set anew, should the CA be another.
    pub(crate) fn open(path: &Path, authority: &Authority) -> Result<Self, PkiError> {
        let kept = files::read(path)?;
        let secret = kept
            .as_deref()
            .and_then(|t| t.trim().split_once("::"))
            .map(|(_, secret)| secret.to_string());
        let secret = secret.filter(|s| !s.is_empty()).unwrap_or_else(|| {
            let bytes: [u8; 16] = rand::random();
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("server:{hex}")
        });
        let token = format!("K10{}::{secret}", authority.sha256_hex());
        let text = format!("{token}\n");
        if kept.as_deref() != Some(&text) {
            files::write_private(path, &text)?;
        }
        Ok(Self(token))
    }

    /// Whether a caller's token is this one. Takes the same time wherever the two differ: hashes are compared, whole.
    pub(crate) fn is(&self, given: &str) -> bool {
        let (ours, theirs) = (Sha256::digest(&self.0), Sha256::digest(given));
        ours.iter().zip(theirs).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}
