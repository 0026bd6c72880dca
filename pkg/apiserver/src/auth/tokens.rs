//! Bearer tokens: `ID.SECRET`. The store holds a hash of the secret, so that nobody can use what lies on the disk. The
//! token by which nodes join lies in a file of its own besides, for people to read (`pki::token`).
//!
//! A secret has 160 random bits: no guessing gets through its hash, which therefore needs to be neither slow nor salted.
//!
//! Tokens are no kind, but a collection of the store that no verb reaches. A watch ends with its token
//! (`Tokens::ended`).

use std::str::FromStr;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use svcnet_api::{ApiError, Reason, names};
use svcnet_store::{Change, Collection, CommitError, Key, Range, Store, Template, Write};
use tokio::time::sleep;

use super::identity::{GROUP_ADMINS, GROUP_NODES, GROUP_VIEWERS, NODE_PREFIX, TokenHeld, User};
use crate::cluster::Cluster;
use crate::pki::{self, Authority};

/// What the store keeps them under: no kind of object, so that no verb reaches them.
pub(crate) const COLLECTION: &str = "tokens.svcnet.io";
/// The id of the token in the file.
pub(crate) const SERVER_ID: &str = "server";
/// How long a token that has run out is still shown.
const SHOWN_AFTER_END: Duration = Duration::from_secs(24 * 60 * 60);
/// How many there may be: each is one line of a list that a person reads.
const TOKENS_MAX: usize = 10_000;
/// A wait that is longer than this is cut into several.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a token lets its holder be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenRole {
    Admin,
    Node,
    Viewer,
    Join,
}

impl FromStr for TokenRole {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        serde_json::from_value(Value::from(text)).map_err(|_| ())
    }
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    id: String,
    role: TokenRole,
    /// Whom its holder acts as.
    user: String,
    /// For nodes, and for joining as one node alone.
    node: Option<String>,
    created: Timestamp,
    expires: Option<Timestamp>,
    description: String,
    /// SHA-256 of the secret, in hexadecimal digits.
    hash: String,
}

/// A token that somebody wants.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct NewToken {
    role: String,
    node: String,
    user: String,
    /// Nothing, or 0, for one that does not end.
    ttl_seconds: u64,
    description: String,
}

/// What a text that was shown as a token turns out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Good(User),
    /// Once good: holds the id and the end.
    Expired(String, Timestamp),
    /// Never good, or revoked.
    Unknown,
}

/// All tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(super) store: Store,
    pub(super) collection: Collection,
    /// The one in the file.
    server: RwLock<pki::Token>,
    /// Where the cluster's keys lie that it opens, when several servers share them.
    cluster: Option<Cluster>,
}

impl Tokens {
    pub(crate) fn new(
        store: Store,
        collection: Collection,
        server: pki::Token,
        cluster: Option<Cluster>,
    ) -> Self {
        Self {
            store,
            collection,
            server: RwLock::new(server),
            cluster,
        }
    }

    /// Writes down which token of a file is good, for the other servers of the cluster.
    pub(crate) async fn share(&self) -> Result<(), CommitError> {
        let key = Key::new(self.collection, "", SERVER_ID);
        if self.cluster.is_none() || self.store.get(&key).is_some() {
            return Ok(());
        }
        match self.put_server(&hash(self.server().text()), None).await {
            // Another server has done it.
            Err(CommitError::Conflict { .. }) => Ok(()),
            done => done,
        }
    }

    async fn put_server(&self, hash: &str, expect: Option<u64>) -> Result<(), CommitError> {
        let after = format!(",\"hash\":\"{hash}\"}}");
        let write = Write {
            key: Key::new(self.collection, "", SERVER_ID),
            change: Change::Put(Template::new(b"{\"revision\":".to_vec(), after.into_bytes())),
            expect,
            guards: Vec::new(),
        };
        self.store.commit(write).await.map(|_| ())
    }

    fn server(&self) -> pki::Token {
        self.server.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is the token of the file: as the store has it, where several servers share it.
    fn is_server(&self, text: &str) -> bool {
        if self.cluster.is_none() {
            return self.server().is(text);
        }
        let entry = self.store.get(&Key::new(self.collection, "", SERVER_ID));
        let record: Option<Value> = entry.and_then(|e| serde_json::from_slice(&e.value).ok());
        record.is_some_and(|r| r["hash"].as_str().is_some_and(|good| same(good, &hash(text))))
    }

    /// Who holds this token.
    pub(crate) fn holder(&self, text: &str) -> Shown {
        if self.is_server(text) {
            return Shown::Good(User::bootstrapper("svcnet", None));
        }
        // With the hash of the authority before it or without: that is for the one who shows it.
        let text = text.split_once("::").map_or(text, |(_, secret)| secret);
        let Some((id, secret)) = text.split_once('.') else {
            return Shown::Unknown;
        };
        let Some(token) = self.find(id).filter(|token| same(&token.hash, &hash(secret))) else {
            return Shown::Unknown;
        };
        match token.expires {
            Some(end) if end <= Timestamp::now() => Shown::Expired(token.id, end),
            _ => Shown::Good(token.holder()),
        }
    }

    /// Makes a token, and tells its secret, this once.
    ///
    /// # Errors
    /// 400 for what cannot be a token's, and what the store says.
    pub(crate) async fn create(&self, wanted: NewToken, authority: &Authority) -> Result<Value, ApiError> {
        let kept = self.store.list(self.collection, &Range::default(), None);
        if kept.is_ok_and(|s| s.entries.len() >= TOKENS_MAX) {
            return Err(ApiError::new(
                Reason::Forbidden,
                format!("there are {TOKENS_MAX} tokens already; revoke some first"),
            ));
        }
        let (id, secret) = (random::<5>(), random::<20>());
        let token = wanted.check(id, hash(&secret))?;
        self.put(&token, None).await.map_err(ApiError::internal)?;
        let mut answer = token.shown();
        let plain = format!("{}.{secret}", token.id);
        // Who joins must know whom to trust.
        answer["token"] = match token.role {
            TokenRole::Join => format!("K10{}::{plain}", authority.sha256_hex()).into(),
            _ => plain.into(),
        };
        Ok(answer)
    }

    /// What may be known of all tokens, oldest first.
    pub(crate) fn list(&self) -> Value {
        let mut all = self.all();
        all.sort_by_key(|token| token.created);
        let server = json!({
            "id": SERVER_ID, "role": TokenRole::Join, "user": "system:bootstrap:svcnet",
            "description": "in DATA-DIR/token of the server",
        });
        let items: Vec<Value> = std::iter::once(server)
            .chain(all.iter().map(Token::shown))
            .collect();
        json!({"items": items})
    }

    /// Ends a token: what it lets be done ends at once, watches too. The one in the file is replaced by another.
    ///
    /// # Errors
    /// 404 where there is no such token, and what the store or the file says.
    pub(crate) async fn revoke(&self, id: &str, authority: &Authority) -> Result<(), ApiError> {
        if id == SERVER_ID {
            return self.replace_server(authority).await;
        }
        let key = Key::new(self.collection, "", id);
        let entry = self.store.get(&key).filter(|_| !id.contains('/'));
        let Some(entry) = entry else {
            return Err(ApiError::new(
                Reason::NotFound,
                format!("tokens \"{id}\" not found"),
            ));
        };
        let write = Write {
            change: Change::Delete(Template::new(b"{\"revision\":".to_vec(), b"}".to_vec())),
            key,
            expect: Some(entry.revision),
            guards: Vec::new(),
        };
        self.store
            .commit(write)
            .await
            .map(|_| ())
            .map_err(ApiError::internal)
    }

    async fn replace_server(&self, authority: &Authority) -> Result<(), ApiError> {
        let before = self.server();
        let after = before.another(authority);
        if let Some(cluster) = &self.cluster {
            cluster
                .rekey(before.secret(), after.secret())
                .await
                .map_err(ApiError::internal)?;
            let entry = self.store.get(&Key::new(self.collection, "", SERVER_ID));
            self.put_server(&hash(after.text()), entry.map(|e| e.revision))
                .await
                .map_err(ApiError::internal)?;
        }
        after.write().map_err(ApiError::internal)?;
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(())
    }

    /// Returns once the token is no longer good.
    pub(crate) async fn ended(&self, held: &TokenHeld) {
        let Some(mut changes) = self.changes() else { return };
        while self.find(&held.id).is_some() {
            let left = held.expires.map_or(WAIT_MAX, until);
            if left.is_zero() {
                return;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(left.min(WAIT_MAX)) => {}
            }
        }
    }

    /// Takes away what has run out long ago.
    pub(crate) async fn sweep(&self, authority: &Authority) {
        for token in self.all() {
            let over = token
                .expires
                .is_some_and(|end| end + SHOWN_AFTER_END < Timestamp::now());
            if over && let Err(error) = self.revoke(&token.id, authority).await {
                tracing::warn!(token = token.id, reason = %error, "cannot take away a token that has expired");
                return;
            }
        }
    }

    /// The ids of the tokens that name a node.
    pub(super) fn of_node(&self, node: &str) -> Vec<String> {
        let all = self.all().into_iter();
        all.filter(|token| token.node.as_deref() == Some(node))
            .map(|token| token.id)
            .collect()
    }

    fn all(&self) -> Vec<Token> {
        let snapshot = self.store.list(self.collection, &Range::default(), None);
        let entries = snapshot.map(|s| s.entries).unwrap_or_default();
        entries
            .iter()
            .filter_map(|(_, entry)| serde_json::from_slice(&entry.value).ok())
            .collect()
    }

    fn find(&self, id: &str) -> Option<Token> {
        let entry = self.store.get(&Key::new(self.collection, "", id))?;
        serde_json::from_slice(&entry.value).ok()
    }

    async fn put(&self, token: &Token, expect: Option<u64>) -> Result<(), CommitError> {
        let text = serde_json::to_string(token).unwrap_or_default();
        // The store writes the revision into what it keeps.
        let after = format!(",{}", text.trim_start_matches('{'));
        let write = Write {
            key: Key::new(self.collection, "", &token.id),
            change: Change::Put(Template::new(b"{\"revision\":".to_vec(), after.into_bytes())),
            expect,
            guards: Vec::new(),
        };
        self.store.commit(write).await.map(|_| ())
    }
}

impl Token {
    fn holder(&self) -> User {
        let held = TokenHeld {
            id: self.id.clone(),
            expires: self.expires,
        };
        let group = match self.role {
            TokenRole::Join => return User::bootstrapper(&self.id, self.node.clone()),
            TokenRole::Admin => GROUP_ADMINS,
            TokenRole::Node => GROUP_NODES,
            TokenRole::Viewer => GROUP_VIEWERS,
        };
        User {
            token: Some(held),
            ..User::new(&self.user, [group.to_string()])
        }
    }

    /// What may be known of it.
    fn shown(&self) -> Value {
        json!({
            "id": self.id, "role": self.role, "user": self.user, "node": self.node,
            "created": self.created, "expires": self.expires, "description": self.description,
        })
    }
}

impl NewToken {
    fn check(self, id: String, hash: String) -> Result<Token, ApiError> {
        let role: TokenRole = self.role.parse().map_err(|()| {
            ApiError::bad_request(format!(
                "role: Unsupported value: {:?}: supported values: \"admin\", \"join\", \"node\", \"viewer\"",
                self.role
            ))
        })?;
        let node = Some(self.node).filter(|node| !node.is_empty());
        match (role, &node) {
            (TokenRole::Node, None) => {
                return Err(ApiError::bad_request(
                    "node: Required value: a token of role node is one node's (--node NAME); joining takes role join",
                ));
            }
            (TokenRole::Admin | TokenRole::Viewer, Some(_)) => {
                return Err(ApiError::bad_request(
                    "node: Forbidden: only for the roles node and join",
                ));
            }
            (_, Some(node)) => {
                if let Some(problem) = names::dns_subdomain(node).first() {
                    return Err(ApiError::bad_request(format!(
                        "node: Invalid value: {node:?}: {problem}"
                    )));
                }
            }
            _ => {}
        }
        let user = match (role, &node) {
            (TokenRole::Node, Some(node)) => format!("{NODE_PREFIX}{node}"),
            (TokenRole::Join, _) => format!("system:bootstrap:{id}"),
            _ if self.user.is_empty() => format!("svcnet:token:{id}"),
            _ => self.user.clone(),
        };
        let named = !self.user.is_empty() && user != self.user;
        if named || self.user.starts_with("system:") || self.user.chars().any(char::is_control) {
            return Err(ApiError::bad_request(format!(
                "user: Invalid value: {:?}: a name for the roles admin and viewer that does not begin with \"system:\"",
                self.user
            )));
        }
        let created = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::MAX);
        let ttl = i64::try_from(self.ttl_seconds).unwrap_or(i64::MAX);
        let end = created
            .as_second()
            .checked_add(ttl)
            .and_then(|end| Timestamp::from_second(end).ok());
        let end = end.ok_or_else(|| ApiError::bad_request("ttlSeconds: Invalid value: too long"))?;
        Ok(Token {
            id,
            role,
            user,
            node,
            created,
            expires: Some(end).filter(|_| self.ttl_seconds > 0),
            description: self.description,
            hash,
        })
    }
}

fn until(end: Timestamp) -> Duration {
    let left = end.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default()
}

fn random<const BYTES: usize>() -> String {
    let bytes: [u8; BYTES] = std::array::from_fn(|_| rand::random());
    hex(&bytes)
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether two hashes are the same. Takes the same time wherever they differ.
fn same(a: &str, b: &str) -> bool {
    let differ = a
        .bytes()
        .zip(b.bytes())
        .fold(0, |differ, (a, b)| differ | (a ^ b));
    a.len() == b.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(role: &str, node: &str, user: &str) -> Result<Token, String> {
        let new = NewToken {
            role: role.to_string(),
            node: node.to_string(),
            user: user.to_string(),
            ..NewToken::default()
        };
        new.check("ab".to_string(), hash("secret")).map_err(|e| e.message)
    }

    #[test]
    fn roles_make_their_holders() {
        let holder = |role, node, user| wanted(role, node, user).unwrap().holder();
        assert_eq!(holder("admin", "", "").role, super::super::Role::Admin);
        assert_eq!(holder("viewer", "", "alice").name, "alice");
        assert_eq!(
            holder("node", "n1", "").role,
            super::super::Role::Node("n1".to_string())
        );
        assert_eq!(
            holder("join", "n2", "").role,
            super::super::Role::Bootstrapper(Some("n2".to_string()))
        );
    }

    #[test]
    fn what_no_token_can_be_is_said() {
        for (role, node, user, why) in [
            ("root", "", "", "role: Unsupported value: \"root\""),
            ("node", "", "", "node: Required value"),
            ("node", "N 1", "", "node: Invalid value"),
            ("viewer", "n1", "", "node: Forbidden"),
            ("viewer", "", "system:node:n1", "user: Invalid value"),
            ("join", "", "alice", "user: Invalid value"),
        ] {
            let refused = wanted(role, node, user).unwrap_err();
            assert!(refused.starts_with(why), "{refused}");
        }
    }

    #[test]
    fn hashes_are_compared_whole() {
        assert!(same(&hash("a"), &hash("a")));
        assert!(!same(&hash("a"), &hash("b")));
        assert!(!same(&hash("a"), ""));
    }
}
