//! Nodes whose certificates are no longer good. A record says since when: what was made before is refused, and a node that
//! joins again is let in. So nothing needs to be known of the certificates that were given away.
//!
//! A new certificate is dated behind the record. Looked at with each request, since connections last.

use jiff::Timestamp;
use serde_json::Value;
use svcnet_api::{ApiError, names};
use svcnet_store::{Change, Key, Template, Watcher, Write};

use super::identity::{Role, User};
use super::tokens::Tokens;
use crate::pki::Authority;

/// What the names of these records begin with: no id of a token does.
const PREFIX: &str = "node:";

impl Tokens {
    /// Ends all that the node has: certificates that were made up to now, and tokens that name it.
    ///
    /// # Errors
    /// 400 for what is no node's name, and what the store says.
    pub(crate) async fn revoke_node(&self, node: &str, authority: &Authority) -> Result<(), ApiError> {
        if let Some(problem) = names::dns_subdomain(node).first() {
            return Err(ApiError::bad_request(format!(
                "node: Invalid value: {node:?}: {problem}"
            )));
        }
        let at = Timestamp::now().as_second();
        let key = self.record_of(node);
        let after = format!(",\"certificatesBefore\":{at}}}");
        let write = Write {
            expect: self.store.get(&key).map(|e| e.revision),
            key,
            change: Change::Put(Template::new(b"{\"revision\":".to_vec(), after.into_bytes())),
            guards: Vec::new(),
        };
        self.store.commit(write).await.map_err(ApiError::internal)?;
        for id in self.of_node(node) {
            self.revoke(&id, authority).await?;
        }
        Ok(())
    }

    /// The second up to which certificates of a node are no longer good.
    pub(crate) fn revoked_until(&self, node: &str) -> Option<i64> {
        let entry = self.store.get(&self.record_of(node))?;
        let record: Value = serde_json::from_slice(&entry.value).ok()?;
        record["certificatesBefore"].as_i64()
    }

    /// Whether a caller has shown a certificate that is no longer good.
    pub(crate) fn is_revoked(&self, user: &User) -> bool {
        match (&user.role, user.certified) {
            (Role::Node(node), Some(made)) => self.revoked_until(node).is_some_and(|until| made <= until),
            _ => false,
        }
    }

    /// Returns once the certificate that a caller has shown is no longer good.
    pub(crate) async fn certificate_revoked(&self, user: &User) {
        let watched = matches!(user.role, Role::Node(_)) && user.certified.is_some();
        let Some(mut changes) = watched.then(|| self.changes()).flatten() else {
            return std::future::pending().await;
        };
        while !self.is_revoked(user) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Changes of tokens and of these records from now on.
    pub(crate) fn changes(&self) -> Option<Watcher> {
        self.store.watch(self.collection, self.store.revision()).ok()
    }

    fn record_of(&self, node: &str) -> Key {
        Key::new(self.collection, "", &format!("{PREFIX}{node}"))
    }
}
