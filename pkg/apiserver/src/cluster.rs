//! The keys of a cluster whose servers share a datastore: the authority and the key of Secrets, which all of them must have.
//!
//! The first server makes them and puts them into the datastore, encrypted with the secret of its token; every other one
//! is started with that token and takes them from there (as k3s does). Afterwards each has them in its data directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use svcnet_store::passphrase::{self, PassphraseError};
use svcnet_store::{EtcdConfig, Keyring, KeyringError, OpenError, SharedValues, SyncError};

use crate::pki::{Authority, PkiError, Token, files};

/// What the datastore keeps them under.
const NAME: &str = "keys";
/// How often another server may be faster.
const TRIES: usize = 5;

/// Why a server does not come to the keys of its cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The datastore belongs to a cluster, and this server has no token of it.
    #[error(
        "the datastore has a cluster already: start this server with its token (--token or --token-file; \
         DATA-DIR/token of a server that runs holds it)"
    )]
    NoToken,
    /// The token is another cluster's, or another one by now.
    #[error(
        "the token does not open the keys of the cluster in the datastore: take the one in DATA-DIR/token of a server \
         that runs (--token)"
    )]
    WrongToken,
    /// The data directory is another cluster's.
    #[error("{0} has the authority of another cluster than the datastore: choose another --data-dir")]
    OtherCluster(PathBuf),
    /// What the datastore has is not ours.
    #[error("the keys in the datastore cannot be used: {0}")]
    Damaged(String),
    /// The datastore gives no answer.
    #[error("cannot use etcd (--datastore-endpoint): {}", .0.0)]
    Datastore(#[from] SyncError),
    /// Its address, or what TLS needs.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A file with keys.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The key of Secrets.
    #[error(transparent)]
    Keys(#[from] KeyringError),
    /// Other servers keep changing them.
    #[error("other servers keep changing the keys in the datastore; try again")]
    Busy,
}

/// The keys, as they lie in the datastore (below a passphrase) and in files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    ca_certificate: String,
    ca_key: String,
    encryption_keys: String,
}

/// The way to them.
#[derive(Debug)]
pub(crate) struct Cluster {
    values: SharedValues,
    data_dir: PathBuf,
}

impl Keys {
    fn paths(data_dir: &Path) -> [PathBuf; 3] {
        let pki = data_dir.join("pki");
        [
            pki.join("ca.crt"),
            pki.join("ca.key"),
            data_dir.join("encryption.key"),
        ]
    }

    fn read(data_dir: &Path) -> Result<Option<Self>, PkiError> {
        let [certificate, key, keys] = Self::paths(data_dir);
        let all = (
            files::read(&certificate)?,
            files::read(&key)?,
            files::read(&keys)?,
        );
        let (Some(ca_certificate), Some(ca_key), Some(encryption_keys)) = all else {
            return Ok(None);
        };
        Ok(Some(Self {
            ca_certificate,
            ca_key,
            encryption_keys,
        }))
    }

    fn write(&self, data_dir: &Path) -> Result<(), PkiError> {
        let [certificate, key, keys] = Self::paths(data_dir);
        files::write_private(&keys, &self.encryption_keys)?;
        files::write_private(&key, &self.ca_key)?;
        files::write_private(&certificate, &self.ca_certificate)
    }
}

impl Cluster {
    /// Makes sure that the data directory has the keys of the cluster in the datastore, or the datastore those of the data
    /// directory. `given` is the token that the server was started with.
    pub(crate) async fn join(
        config: &EtcdConfig,
        data_dir: &Path,
        given: Option<&str>,
    ) -> Result<Self, ClusterError> {
        let cluster = Self {
            values: SharedValues::new(config)?,
            data_dir: data_dir.to_path_buf(),
        };
        for _ in 0..TRIES {
            let secret = cluster.secret(given)?;
            match (cluster.values.get(NAME).await?, secret) {
                (Some(_), None) => return Err(ClusterError::NoToken),
                (Some(sealed), Some(secret)) => {
                    cluster.take(&secret, &sealed)?;
                    return Ok(cluster);
                }
                (None, _) => {
                    if cluster.found(given).await? {
                        return Ok(cluster);
                    }
                }
            }
        }
        Err(ClusterError::Busy)
    }

    /// The secret of the token that was given, or of the one in the file.
    fn secret(&self, given: Option<&str>) -> Result<Option<String>, PkiError> {
        let kept = files::read(&self.data_dir.join("token"))?;
        let text = given.map(str::to_string).or(kept);
        Ok(text.map(|text| Token::secret_of(&text).to_string()))
    }

    /// Takes the keys that the datastore has.
    fn take(&self, secret: &str, sealed: &[u8]) -> Result<(), ClusterError> {
        let keys = open(secret, sealed)?;
        match files::read(&Keys::paths(&self.data_dir)[0])? {
            Some(ours) if ours != keys.ca_certificate => {
                return Err(ClusterError::OtherCluster(self.data_dir.clone()));
            }
            _ => keys.write(&self.data_dir)?,
        }
        let authority = Authority::open(&self.data_dir.join("pki"), crate::CERTIFICATES_LAST)?;
        Token::set(&self.data_dir.join("token"), secret, &authority)?;
        Ok(())
    }

    /// Puts the keys into a datastore that has none: those of the data directory, or new ones. Whether they are there now:
    /// not where another server was faster.
    async fn found(&self, given: Option<&str>) -> Result<bool, ClusterError> {
        let kept = Keys::read(&self.data_dir)?;
        // New ones lie aside until it is known whether they will be the cluster's.
        let dir = match kept {
            Some(_) => self.data_dir.clone(),
            None => self.data_dir.join("founding"),
        };
        let authority = Authority::open(&dir.join("pki"), crate::CERTIFICATES_LAST)?;
        Keyring::open_or_make(&dir.join("encryption.key"))?;
        if let Some(given) = given {
            Token::set(&self.data_dir.join("token"), Token::secret_of(given), &authority)?;
        }
        let token = Token::open(&self.data_dir.join("token"), &authority)?;
        let keys = Keys::read(&dir)?.ok_or_else(|| ClusterError::Damaged("a file has gone".to_string()))?;
        let sealed = sealed(token.secret(), &keys)?;
        let first = self.values.put(NAME, sealed.into(), None).await?;
        if first {
            keys.write(&self.data_dir)?;
        } else if given.is_none() {
            // What was made here is no token of the cluster that is there now.
            _ = fs::remove_file(self.data_dir.join("token"));
        }
        if kept.is_none() {
            _ = fs::remove_dir_all(&dir);
        }
        Ok(first)
    }

    /// Encrypts the keys with another secret: the former one opens them no longer.
    pub(crate) async fn rekey(&self, before: &str, after: &str) -> Result<(), ClusterError> {
        let there = self.values.get(NAME).await?;
        let there = there.ok_or_else(|| ClusterError::Damaged("they have gone".to_string()))?;
        let keys = open(before, &there)?;
        let sealed = sealed(after, &keys)?;
        if self.values.put(NAME, sealed.into(), Some(&there)).await? {
            Ok(())
        } else {
            Err(ClusterError::Busy)
        }
    }
}

fn open(secret: &str, sealed: &[u8]) -> Result<Keys, ClusterError> {
    let damaged = |why: String| ClusterError::Damaged(why);
    match passphrase::open(secret, NAME, sealed) {
        Ok(plain) => serde_json::from_slice(&plain).map_err(|e| damaged(e.to_string())),
        Err(PassphraseError::Other) => Err(ClusterError::WrongToken),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn sealed(secret: &str, keys: &Keys) -> Result<Vec<u8>, ClusterError> {
    let damaged = |why: String| ClusterError::Damaged(why);
    let plain = serde_json::to_vec(keys).map_err(|e| damaged(e.to_string()))?;
    passphrase::seal(secret, NAME, &plain).map_err(|e| damaged(e.to_string()))
}
