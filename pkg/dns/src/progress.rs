//! How far the server is: what `/readyz` says of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use svcnet_runtime::Component;

/// What is still missing before the server does its work. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    component: Option<Component>,
    missing: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Progress {
    pub(crate) fn new(component: Component) -> Self {
        Self {
            component: Some(component),
            missing: Arc::default(),
        }
    }

    /// Nobody wants to know.
    pub(crate) fn silent() -> Self {
        Self {
            component: None,
            missing: Arc::default(),
        }
    }

    /// Something has not happened yet.
    pub(crate) fn waiting(&self, what: String) {
        self.update(|missing| _ = missing.insert(what, "not yet".to_string()));
    }

    /// Something went wrong, and is tried again.
    pub(crate) fn failed(&self, what: &str, why: String) {
        self.update(|missing| _ = missing.insert(what.to_string(), why));
    }

    /// Something has happened.
    pub(crate) fn done(&self, what: &str) {
        self.update(|missing| _ = missing.remove(what));
    }

    fn update(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut missing);
        let Some(component) = &self.component else { return };
        if missing.is_empty() {
            component.ready();
        } else {
            let reasons: Vec<String> = missing
                .iter()
                .map(|(what, why)| format!("{what}: {why}"))
                .collect();
            component.not_ready(reasons.join("; "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_is_missing() {
        let health = svcnet_runtime::Health::default();
        let progress = Progress::new(health.component("dns"));
        progress.waiting("listening at 10.96.0.10:53".to_string());
        progress.waiting("the first lists".to_string());
        progress.failed(
            "listening at 10.96.0.10:53",
            "taken by dnsmasq (pid 7)".to_string(),
        );
        let (ready, text) = health.report();
        assert!(
            !ready && text.contains("10.96.0.10:53: taken by dnsmasq (pid 7); the first lists: not yet"),
            "{text}"
        );
        progress.done("the first lists");
        progress.done("listening at 10.96.0.10:53");
        assert!(health.report().0);
    }
}
