//! The token by which nodes join, in the file where people look for it.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{Authority, PkiError, files};

/// The join token: `K10<sha256 of the CA>::server:<secret>`.
#[derive(Clone)]
pub(crate) struct Token {
    text: String,
    path: PathBuf,
}

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
        let secret = secret.filter(|s| !s.is_empty()).unwrap_or_else(secret_made);
        Self::set(path, &secret, authority)
    }

    /// The token with this secret, in the file from now on.
    pub(crate) fn set(path: &Path, secret: &str, authority: &Authority) -> Result<Self, PkiError> {
        let token = Self::of(secret, path, authority);
        if files::read(path)?.as_deref() != Some(&format!("{}\n", token.text)) {
            token.write()?;
        }
        Ok(token)
    }

    /// The secret in the text of a token; all of it, when it is no token but a word that somebody chose.
    pub(crate) fn secret_of(text: &str) -> &str {
        let text = text.trim();
        text.split_once("::").map_or(text, |(_, secret)| secret)
    }

    pub(crate) fn secret(&self) -> &str {
        Self::secret_of(&self.text)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Another one, to be written in its place.
    pub(crate) fn another(&self, authority: &Authority) -> Self {
        Self::of(&secret_made(), &self.path, authority)
    }

    /// Whether a caller's token is this one. Takes the same time wherever the two differ: hashes are compared, whole.
    pub(crate) fn is(&self, given: &str) -> bool {
        let (ours, theirs) = (Sha256::digest(&self.text), Sha256::digest(given));
        ours.iter().zip(theirs).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    fn of(secret: &str, path: &Path, authority: &Authority) -> Self {
        Self {
            text: format!("K10{}::{secret}", authority.sha256_hex()),
            path: path.to_path_buf(),
        }
    }

    pub(crate) fn write(&self) -> Result<(), PkiError> {
        files::write_private(&self.path, &format!("{}\n", self.text))
    }
}

fn secret_made() -> String {
    let bytes: [u8; 16] = rand::random();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("server:{hex}")
}
