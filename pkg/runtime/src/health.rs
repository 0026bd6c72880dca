//! Readiness: each role names itself and says when it is ready, or why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The readiness of a process, as `/readyz` tells it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
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
        self.lock().insert(name, Some("starting".to_string()));
        Component {
            name,
            health: self.clone(),
        }
    }

    /// Whether every part is ready, and the text of `/readyz`: `[+]proxy ok`, `[-]dns failed: no address yet`.
    pub fn report(&self) -> (bool, String) {
        let components = self.lock();
        let mut text = String::new();
        for (name, reason) in components.iter() {
            match reason {
                None => _ = writeln!(text, "[+]{name} ok"),
                Some(why) => _ = writeln!(text, "[-]{name} failed: {why}"),
            }
        }
        let ready = components.values().all(Option::is_none);
        text.push_str(if ready {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        (ready, text)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// The part does its work.
    pub fn ready(&self) {
        let before = self.health.lock().insert(self.name, None).flatten();
        if let Some(reason) = before {
            tracing::debug!(component = self.name, was = reason, "ready");
        }
    }

    /// The part cannot do its work, and why.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.lock().insert(self.name, Some(why.into()));
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
}
