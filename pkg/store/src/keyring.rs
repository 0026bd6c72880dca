//! Keys for what is encrypted on the disk.
//!
//! # The file
//! One key a line, as `NAME BASE64` (32 bytes), and comments after `#`. The first key encrypts, all of them decrypt. To
//! change keys, put a line before the others and open the store again: what another key encrypted is then encrypted
//! anew, and the older lines can go.
//!
//! # The values
//! `\0` `s` `1`, the key's fingerprint (4 bytes), a random nonce (12 bytes), and AES-256-GCM's ciphertext and tag. Whatever
//! names the value (its place, its revision) is authenticated with it, so that values cannot be put in each other's
//! place. Objects are JSON, which begins with none of these bytes: what is not encrypted is told from what is.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};

const MAGIC: &[u8] = b"\0s1";
const KEY_LEN: usize = 32;
const ID_LEN: usize = 4;
const HEAD_LEN: usize = MAGIC.len() + ID_LEN + NONCE_LEN;
const EXPLAINED: &str = "\
# Keys that Secrets are encrypted with on this disk, one a line: NAME BASE64. Keep a copy with each backup of the data.
# The first one encrypts, all of them decrypt. To change keys, put a new line before the others, for one made by
#   echo \"NAME $(head -c 32 /dev/urandom | base64)\"
# and restart the server: it encrypts everything anew with the first key. Then the older lines can go.
";

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read or written.
    #[error("cannot use the key file {path}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// Others may read the keys.
    #[error("the key file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    Open {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A line is no key.
    #[error("line {line} of the key file {path} is not `NAME BASE64` with 32 bytes in base64")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
    },
    /// There is no key in it.
    #[error("the key file {path} holds no key; restore it from a backup")]
    Empty {
        /// Which one.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system has no random bytes for a key")]
    Random,
}

/// Why a value cannot be decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// With a key that is not in the ring: its fingerprint.
    Unknown(String),
    /// Changed, or moved from where it was.
    Broken,
}

struct Key {
    id: [u8; ID_LEN],
    key: LessSafeKey,
}

/// The keys, the one that encrypts first. Never empty.
pub struct Keyring {
    path: PathBuf,
    keys: Vec<Key>,
    /// Whether the file was only just made.
    is_new: bool,
    random: SystemRandom,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Keyring {
    /// Reads the keys of a file (mode 0600), or makes the file with a new one where there is none.
    ///
    /// # Errors
    /// When it cannot be read, is open to others, or holds something else.
    pub fn open_or_make(path: &Path) -> Result<Self, KeyringError> {
        let io = |source| KeyringError::Io {
            path: path.to_path_buf(),
            source,
        };
        let (text, is_new) = match fs::read_to_string(path) {
            Ok(text) => (text, false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (make(path)?, true),
            Err(error) => return Err(io(error)),
        };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyringError::Open {
                path: path.to_path_buf(),
                mode,
            });
        }
        let keyring = Self::parse(path, &text)?;
        Ok(Self { is_new, ..keyring })
    }

    fn parse(path: &Path, text: &str) -> Result<Self, KeyringError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let key = key(line).ok_or_else(|| KeyringError::Line {
                path: path.to_path_buf(),
                line: index + 1,
            })?;
            keys.push(key);
        }
        if keys.is_empty() {
            let path = path.to_path_buf();
            return Err(KeyringError::Empty { path });
        }
        Ok(Self {
            path: path.to_path_buf(),
            keys,
            is_new: false,
            random: SystemRandom::new(),
        })
    }

    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Encrypts a value with the first key.
    pub(crate) fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "a value cannot be encrypted".to_string();
        let Key { id, key } = &self.keys[0];
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut sealed = Vec::with_capacity(HEAD_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(id);
        sealed.extend_from_slice(&nonce);
        let mut text = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut text)
            .map_err(failed)?;
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Decrypts a value.
    pub(crate) fn unseal(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Sealed> {
        let id = fingerprint(sealed).ok_or(Sealed::Broken)?;
        let Some(key) = self.keys.iter().find(|key| key.id == id) else {
            return Err(Sealed::Unknown(hex(id)));
        };
        let (head, text) = sealed.split_at_checked(HEAD_LEN).ok_or(Sealed::Broken)?;
        let nonce =
            Nonce::try_assume_unique_for_key(&head[MAGIC.len() + ID_LEN..]).map_err(|_| Sealed::Broken)?;
        let mut text = text.to_vec();
        let plain = key.key.open_in_place(nonce, Aad::from(place), &mut text);
        plain.map(|plain| plain.to_vec()).map_err(|_| Sealed::Broken)
    }

    /// Whether a value is encrypted with the first key.
    pub(crate) fn is_current(&self, value: &[u8]) -> bool {
        fingerprint(value) == Some(&self.keys[0].id)
    }
}

/// Whether a value is encrypted.
pub(crate) fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(MAGIC)
}

fn fingerprint(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(MAGIC)?.get(..ID_LEN)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn key(line: &str) -> Option<Key> {
    let (_, text) = line.split_once(char::is_whitespace)?;
    let bytes = STANDARD.decode(text.trim()).ok().filter(|b| b.len() == KEY_LEN)?;
    let key = UnboundKey::new(&AES_256_GCM, &bytes).ok()?;
    let id = digest(&SHA256, &bytes).as_ref().first_chunk().copied()?;
    Some(Key {
        id,
        key: LessSafeKey::new(key),
    })
}

/// The file is whole or not there, whatever happens.
fn make(path: &Path) -> Result<String, KeyringError> {
    let mut bytes = [0; KEY_LEN];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyringError::Random)?;
    let text = format!("{EXPLAINED}key1 {}\n", STANDARD.encode(bytes));
    let write = || {
        let dir = path
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let aside = path.with_extension("new");
        _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| KeyringError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(text: &str) -> Result<Keyring, KeyringError> {
        Keyring::parse(Path::new("keys"), text)
    }

    fn line(byte: u8) -> String {
        format!("k{byte} {}\n", STANDARD.encode([byte; KEY_LEN]))
    }

    #[test]
    fn values_come_back_and_are_bound_to_their_place() {
        let keys = ring(&line(1)).unwrap();
        let sealed = keys.seal(b"secrets/default/a", b"{\"x\":1}").unwrap();
        assert!(is_sealed(&sealed) && !sealed.windows(5).any(|w| w == b"\"x\":1"));
        assert_eq!(keys.unseal(b"secrets/default/a", &sealed).unwrap(), b"{\"x\":1}");
        assert_eq!(keys.unseal(b"secrets/default/b", &sealed), Err(Sealed::Broken));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(keys.unseal(b"secrets/default/a", &changed).is_err(), "byte {at}");
        }
        assert_eq!(
            keys.unseal(b"secrets/default/a", &sealed[..10]),
            Err(Sealed::Broken)
        );
        assert_ne!(sealed, keys.seal(b"secrets/default/a", b"{\"x\":1}").unwrap());
    }

    #[test]
    fn the_first_key_encrypts_and_all_decrypt() {
        let (old, both) = (ring(&line(1)).unwrap(), ring(&(line(2) + &line(1))).unwrap());
        let sealed = old.seal(b"p", b"text").unwrap();
        assert_eq!(both.unseal(b"p", &sealed).unwrap(), b"text");
        assert!(old.is_current(&sealed) && !both.is_current(&sealed));
        let new = both.seal(b"p", b"text").unwrap();
        assert!(matches!(old.unseal(b"p", &new), Err(Sealed::Unknown(_))));
    }

    #[test]
    fn bad_files_are_refused_with_their_place() {
        assert!(matches!(ring("# nothing\n"), Err(KeyringError::Empty { .. })));
        let short = format!("# a\n{}k QUJD\n", line(1));
        assert!(matches!(ring(&short), Err(KeyringError::Line { line: 3, .. })));
        assert!(matches!(ring("k"), Err(KeyringError::Line { line: 1, .. })));
    }

    #[test]
    fn a_file_is_made_once_and_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/encryption.key");
        let keys = Keyring::open_or_make(&path).unwrap();
        let sealed = keys.seal(b"p", b"text").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Keyring::open_or_make(&path).unwrap();
        assert_eq!(again.unseal(b"p", &sealed).unwrap(), b"text");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let open = Keyring::open_or_make(&path).unwrap_err();
        assert!(open.to_string().contains("mode 0640"), "{open}");
    }
}
