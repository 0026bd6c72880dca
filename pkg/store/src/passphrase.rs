//! A value encrypted with a passphrase: `\0p1`, a random salt (16 bytes) and nonce (12 bytes), then AES-256-GCM's ciphertext
//! and tag. The key is made by PBKDF2 with HMAC-SHA-256 (RFC 8018), so that a word that somebody chose costs whoever
//! guesses it some time.

use std::num::NonZeroU32;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom as _, SystemRandom};

const MAGIC: &[u8] = b"\0p1";
const SALT_LEN: usize = 16;
/// OWASP's advice for this function (2023). A good token has 128 random bits and would need none.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).unwrap();

/// Why a value cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// The passphrase is another one, or the value was changed.
    #[error("the passphrase is another one")]
    Other,
    /// It is no such value.
    #[error("it was not encrypted with a passphrase by svcnet")]
    Foreign,
    /// The system gives no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// Encrypts. `place` is what the value is called, and needed to open it.
///
/// # Errors
/// When the system gives no randomness.
pub fn seal(passphrase: &str, place: &str, plain: &[u8]) -> Result<Vec<u8>, PassphraseError> {
    let (mut salt, mut nonce) = ([0; SALT_LEN], [0; NONCE_LEN]);
    let random = SystemRandom::new();
    random.fill(&mut salt).map_err(|_| PassphraseError::Random)?;
    random.fill(&mut nonce).map_err(|_| PassphraseError::Random)?;
    let mut text = plain.to_vec();
    key(passphrase, &salt)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut text)
        .map_err(|_| PassphraseError::Foreign)?;
    Ok([MAGIC, &salt, &nonce, &text].concat())
}

/// Decrypts.
///
/// # Errors
/// When the passphrase is not the one, or the value none of [`seal`].
pub fn open(passphrase: &str, place: &str, sealed: &[u8]) -> Result<Vec<u8>, PassphraseError> {
    let rest = sealed.strip_prefix(MAGIC).ok_or(PassphraseError::Foreign)?;
    let (salt, rest) = rest.split_at_checked(SALT_LEN).ok_or(PassphraseError::Foreign)?;
    let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(PassphraseError::Foreign)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| PassphraseError::Foreign)?;
    let mut text = text.to_vec();
    let plain = key(passphrase, salt)?.open_in_place(nonce, Aad::from(place), &mut text);
    plain
        .map(|plain| plain.to_vec())
        .map_err(|_| PassphraseError::Other)
}

fn key(passphrase: &str, salt: &[u8]) -> Result<LessSafeKey, PassphraseError> {
    let mut bytes = [0; 32];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        ROUNDS,
        salt,
        passphrase.as_bytes(),
        &mut bytes,
    );
    let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| PassphraseError::Foreign)?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_passphrase_opens_it_at_its_place() {
        let sealed = seal("server:abc", "keys", b"the CA").unwrap();
        assert_eq!(open("server:abc", "keys", &sealed).unwrap(), b"the CA");
        assert_eq!(open("server:abd", "keys", &sealed), Err(PassphraseError::Other));
        assert_eq!(open("server:abc", "other", &sealed), Err(PassphraseError::Other));
        assert_eq!(open("server:abc", "keys", b"{}"), Err(PassphraseError::Foreign));
        assert!(!sealed.windows(6).any(|w| w == b"the CA"));
    }
}
