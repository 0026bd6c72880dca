//! Readiness: each role names itself and says when it is ready, or why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// The readiness of a process, as `/readyz` tells it, and what its parts tell of themselves. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

#[derive(Debug, Default)]
struct State {
    failed: Option<String>,
    facts: serde_json::Value,
}

/// What a process tells at `/status`, by the name of the part.
pub type Status = BTreeMap<String, Part>;

/// One part of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Whether it does its work.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it tells of itself, as its role defines it.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub facts: serde_json::Value,
}

/// One part of the process.
#[derive(Debug, Clone)]
pub struct Component {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Adds a part, not ready yet.
    pub fn component(&self, name: &'static str) -> Component {
        let state = State {
            failed: Some("starting".to_string()),
            ..State::default()
        };
        self.lock().insert(name, state);
        Component {
            name,
            health: self.clone(),
        }
    }

    /// Whether every part is ready, and the text of `/readyz`: `[+]proxy ok`, `[-]dns failed: no address yet`.
    pub fn report(&self) -> (bool, String) {
        let components = self.lock();
        let mut text = String::new();
        for (name, state) in components.iter() {
            match &state.failed {
                None => _ = writeln!(text, "[+]{name} ok"),
                Some(why) => _ = writeln!(text, "[-]{name} failed: {why}"),
            }
        }
        let ready = components.values().all(|state| state.failed.is_none());
        text.push_str(if ready {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        (ready, text)
    }

    /// All that the parts tell, as JSON.
    pub fn status(&self) -> String {
        let parts: BTreeMap<&str, Part> = self
            .lock()
            .iter()
            .map(|(name, state)| {
                let part = Part {
                    ready: state.failed.is_none(),
                    reason: state.failed.clone(),
                    facts: state.facts.clone(),
                };
                (*name, part)
            })
            .collect();
        serde_json::to_string(&parts).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// The part does its work.
    pub fn ready(&self) {
        let before = self.health.lock().entry(self.name).or_default().failed.take();
        if let Some(reason) = before {
            tracing::debug!(component = self.name, was = reason, "ready");
        }
    }

    /// The part cannot do its work, and why.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.lock().entry(self.name).or_default().failed = Some(why.into());
    }

    /// What the part tells of itself at `/status`, in place of what it told before.
    pub fn tell(&self, facts: impl Serialize) {
        match serde_json::to_value(facts) {
            Ok(facts) => self.health.lock().entry(self.name).or_default().facts = facts,
            Err(error) => tracing::warn!(component = self.name, %error, "what it tells is not JSON"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_is_not_ready_holds_the_rest() {
        let health = Health::default();
        let (dns, proxy) = (health.component("dns"), health.component("proxy"));
        proxy.ready();
        dns.not_ready("no address yet");
        let (ready, text) = health.report();
        assert!(!ready);
        assert_eq!(
            text,
            "[-]dns failed: no address yet\n[+]proxy ok\nreadyz check failed\n"
        );
        dns.ready();
        assert!(health.report().0);
    }

    #[test]
    fn a_part_tells_of_itself() {
        let health = Health::default();
        let (dns, proxy) = (health.component("dns"), health.component("proxy"));
        proxy.tell(serde_json::json!({"mode": "nftables"}));
        proxy.ready();
        dns.not_ready("no address yet");
        let status: Status = serde_json::from_str(&health.status()).unwrap();
        assert_eq!(status["proxy"].facts["mode"], "nftables");
        assert!(status["proxy"].ready);
        assert_eq!(status["dns"].reason.as_deref(), Some("no address yet"));
    }
}
