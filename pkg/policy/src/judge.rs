//! What the policies say, told to those whose packets do not show the kernel who sends them: the proxy's relays, which
//! take a pod's connection and make another one from the node's own address.
//!
//! Such a relay asks for both ends, the client's way out and the endpoint's way in, wherever the endpoint is. Its node's own pods
//! let it in as they let in their node. To pods elsewhere it connects from an address that nothing else uses
//! ([`PodCidr::relay`]), which the tables of every node let in: what comes from there has been judged.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use svcnet_api::types::PodCidr;
use tokio::sync::watch;

use crate::known::Shared;
use crate::model::Protocol;
use crate::verdict::Target;

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It is let nowhere, for now.
    Denied,
    /// It may be made.
    Allowed {
        /// From this address, where another node's tables have to be told that it was judged.
        from: Option<IpAddr>,
    },
}

/// Where it is asked. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Judge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: Shared,
    /// Whether all has been listed: before, nobody can tell.
    is_listed: AtomicBool,
    /// The addresses from which relays of this node connect to pods elsewhere.
    sources: Mutex<Vec<IpAddr>>,
    changes: watch::Sender<u64>,
}

impl Judge {
    pub(crate) fn new(known: Shared) -> Self {
        Self(Arc::new(Inner {
            known,
            is_listed: AtomicBool::new(false),
            sources: Mutex::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Tells whether a client may connect to an endpoint. What comes from the node itself is not to be asked about: the kernel
    /// sees whose it is.
    pub fn judge(&self, client: IpAddr, endpoint: SocketAddr, protocol: Protocol) -> Judged {
        let inner = &self.0;
        let known = inner.known.read();
        if !inner.is_listed.load(Ordering::Acquire) || known.is_held(client) || known.is_held(endpoint.ip()) {
            return Judged::Denied;
        }
        let (from, to) = (known.end_at(client), known.end_at(endpoint.ip()));
        let target = Target {
            protocol: Some(protocol),
            port: endpoint.port(),
        };
        if !known.policies.is_empty() && !known.judge(from, to, target).is_allowed() {
            return Judged::Denied;
        }
        // Of a pod that is not known here, nobody but its own node can tell who isolates it: that one is to judge.
        let is_elsewhere = to.pod.is_some_and(|(_, pod)| !pod.local);
        let from = is_elsewhere.then(|| self.source(endpoint.is_ipv6())).flatten();
        Judged::Allowed { from }
    }

    /// Marks each change of what is known, with a number that grows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn source(&self, ipv6: bool) -> Option<IpAddr> {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().find(|address| address.is_ipv6() == ipv6).copied()
    }

    /// The pod networks of this node.
    pub(crate) fn set_networks(&self, networks: &[PodCidr]) {
        let sources = networks.iter().filter_map(|network| network.relay()).collect();
        *self.0.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// From now on what is known is all.
    pub(crate) fn listed(&self) {
        if !self.0.is_listed.swap(true, Ordering::Release) {
            self.0.changes.send_modify(|number| *number += 1);
        }
    }

    /// Wakes those that wait for changes, if there are any.
    pub(crate) fn publish(&self) {
        let version = self.0.known.read().version();
        self.0.changes.send_if_modified(|number| {
            // One more than what is known, for the list itself.
            let is_news = *number != version + 1;
            *number = version + 1;
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use svcnet_netlink::nft::Family;

    use super::*;
    use crate::engine::Engine;
    use crate::model::{ObjectKey, Policy};
    use crate::view::PodFacts;

    const NEAR: &str = "10.244.1.2";
    const FAR: &str = "10.244.2.2";
    const RELAY: &str = "10.244.1.255";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn engine() -> Engine {
        let mut engine = Engine::new(&[Family::Ip]);
        engine.set_namespace("default", Some([].into()));
        for (name, address) in [("near", NEAR), ("far", FAR)] {
            let facts = PodFacts {
                labels: [("app".to_string(), name.to_string())].into(),
                addresses: vec![ip(address)],
                local: name == "near",
                ..PodFacts::default()
            };
            engine.set_pod(&ObjectKey::new("default", name), Some(facts));
        }
        engine
    }

    fn isolate(engine: &mut Engine, app: &str, spec: &serde_json::Value) {
        let mut spec = spec.clone();
        spec["podSelector"] = json!({"matchLabels": {"app": app}});
        let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let (policy, _) = Policy::parse("default", &object).unwrap();
        engine.set_policy(&ObjectKey::new("default", app), Some(policy));
    }

    fn ask(judge: &Judge, client: &str, endpoint: &str) -> Judged {
        judge.judge(ip(client), SocketAddr::new(ip(endpoint), 80), Protocol::TCP)
    }

    #[test]
    fn both_ends_are_judged_and_pods_elsewhere_are_told() {
        let mut engine = engine();
        let judge = Judge::new(engine.shared());
        judge.set_networks(&["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(ask(&judge, NEAR, FAR), Judged::Denied, "nobody knows yet");
        judge.listed();
        let told = Judged::Allowed {
            from: Some(ip(RELAY)),
        };
        let quietly = Judged::Allowed { from: None };
        assert_eq!(ask(&judge, NEAR, FAR), told);
        assert_eq!(ask(&judge, "192.0.2.1", NEAR), quietly, "its own node is let in");
        assert_eq!(ask(&judge, NEAR, "10.244.2.9"), quietly, "nobody's that is known");
        isolate(
            &mut engine,
            "far",
            &json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.244.1.2/32"}}]}]}),
        );
        assert_eq!(ask(&judge, NEAR, FAR), told);
        assert_eq!(ask(&judge, "192.0.2.1", FAR), Judged::Denied);
        isolate(
            &mut engine,
            "near",
            &json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 443}]}]}),
        );
        assert_eq!(ask(&judge, NEAR, FAR), Judged::Denied);
        assert_eq!(ask(&judge, NEAR, NEAR), quietly, "a pod reaches itself");
        engine.hold(ip(NEAR));
        assert_eq!(ask(&judge, NEAR, NEAR), Judged::Denied);
        engine.release(ip(NEAR));
        assert_eq!(ask(&judge, NEAR, NEAR), quietly);
    }

    #[test]
    fn addresses_that_change_hands_are_judged_by_who_has_them() {
        let mut engine = engine();
        let judge = Judge::new(engine.shared());
        judge.listed();
        isolate(&mut engine, "far", &json!({"ingress": []}));
        assert_eq!(ask(&judge, NEAR, FAR), Judged::Denied);
        let facts = PodFacts {
            addresses: vec![ip(FAR)],
            ..PodFacts::default()
        };
        engine.set_pod(&ObjectKey::new("default", "heir"), Some(facts));
        engine.set_pod(&ObjectKey::new("default", "far"), None);
        assert!(matches!(ask(&judge, NEAR, FAR), Judged::Allowed { .. }));
    }

    #[test]
    fn changes_are_told_once() {
        let mut engine = engine();
        let judge = Judge::new(engine.shared());
        let mut changes = judge.changes();
        judge.listed();
        judge.publish();
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        judge.publish();
        assert!(!changes.has_changed().unwrap(), "nothing is new");
        isolate(&mut engine, "far", &json!({"ingress": []}));
        judge.publish();
        assert!(changes.has_changed().unwrap());
    }
}
