//! What policies would deny, before they are in force: of the connections that stand, and of all that pods could make.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use crate::model::{Direction, ObjectKey, Protocol};
use crate::verdict::{Denied, Target, Verdict};
use crate::view::View;

/// How many names of clients a line holds.
const NAMED_MAX: usize = 6;

/// A connection, as it stands after translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who began it.
    pub from: SocketAddr,
    /// Whom it reaches.
    pub to: SocketAddr,
    /// The number of its protocol.
    pub protocol: u8,
}

/// What would be denied: to one pod's port, or whatever else is connected to, for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// On the way in, or out.
    pub direction: Direction,
    /// Who is connected to.
    pub to: String,
    /// At which port, as in `tcp 80`.
    pub port: String,
    /// The policies that isolate.
    pub policies: Vec<ObjectKey>,
    /// Who connects.
    pub from: BTreeSet<String>,
    /// How many connections stand, where those were asked about.
    pub standing: usize,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.from.iter().take(NAMED_MAX).map(String::as_str).collect();
        write!(f, "{}", names.join(", "))?;
        if self.from.len() > NAMED_MAX {
            write!(f, " and {} more", self.from.len() - NAMED_MAX)?;
        }
        let policies: Vec<String> = self.policies.iter().map(ToString::to_string).collect();
        write!(
            f,
            " -> {} {}: {} of {}",
            self.to,
            self.port,
            self.direction,
            policies.join(", ")
        )?;
        match self.standing {
            0 => Ok(()),
            1 => write!(f, " (1 connection)"),
            many => write!(f, " ({many} connections)"),
        }
    }
}

type Findings = BTreeMap<(Direction, String, String, Vec<ObjectKey>), (BTreeSet<String>, usize)>;

fn note(into: &mut Findings, denied: Denied, from: String, to: String, port: String, standing: usize) {
    let found = into
        .entry((denied.direction, to, port, denied.policies))
        .or_default();
    found.0.insert(from);
    found.1 += standing;
}

fn list(findings: Findings) -> Vec<Finding> {
    let finding = |((direction, to, port, policies), (from, standing))| Finding {
        direction,
        to,
        port,
        policies,
        from,
        standing,
    };
    findings.into_iter().map(finding).collect()
}

/// Which of the connections that stand would be cut.
pub fn flows(view: &View, flows: impl IntoIterator<Item = Flow>) -> Vec<Finding> {
    let mut findings = Findings::new();
    for flow in flows {
        let (from, to) = (view.end(flow.from.ip()), view.end(flow.to.ip()));
        let target = Target {
            protocol: Protocol::from_number(flow.protocol),
            port: flow.to.port(),
        };
        if let Verdict::Denied(denied) = view.judge(from, to, target) {
            let name = |end: crate::verdict::End<'_>| {
                end.pod
                    .map_or_else(|| end.address.to_string(), |(key, _)| key.to_string())
            };
            let protocol = target
                .protocol
                .map_or_else(|| format!("protocol {}", flow.protocol), |p| p.to_string());
            let port = format!("{protocol} {}", flow.to.port());
            note(&mut findings, denied, name(from), name(to), port, 1);
        }
    }
    list(findings)
}

/// Which connections between pods would be denied that are not denied `before`: to the ports of each that are declared.
pub fn pairs(before: &View, after: &View, ports: &BTreeMap<ObjectKey, Vec<(Protocol, u16)>>) -> Vec<Finding> {
    let mut findings = Findings::new();
    for (to, facts) in &after.pods {
        let declared = ports.get(to).map(Vec::as_slice).unwrap_or_default();
        for address in &facts.addresses {
            for (from, other) in after.pods.iter().filter(|(from, _)| *from != to) {
                let of_family = |a: &&std::net::IpAddr| a.is_ipv6() == address.is_ipv6();
                let Some(source) = other.addresses.iter().find(of_family) else {
                    continue;
                };
                for (protocol, port) in declared {
                    let target = Target {
                        protocol: Some(*protocol),
                        port: *port,
                    };
                    let judge = |view: &View| {
                        let end = |key, address| crate::verdict::End {
                            address,
                            pod: view.pods.get_key_value(key),
                        };
                        view.judge(end(from, *source), end(to, *address), target)
                    };
                    if let Verdict::Denied(denied) = judge(after)
                        && judge(before).is_allowed()
                    {
                        let port = format!("{protocol} {port}");
                        note(&mut findings, denied, from.to_string(), to.to_string(), port, 0);
                    }
                }
            }
        }
    }
    list(findings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Policy;
    use crate::view::PodFacts;

    fn view(policies: &[(&str, serde_json::Value)]) -> View {
        let pod = |name: &str, address: &str| {
            let facts = PodFacts {
                labels: [("app".to_string(), name.to_string())].into(),
                addresses: vec![address.parse().unwrap()],
                ..PodFacts::default()
            };
            (ObjectKey::new("default", name), facts)
        };
        let policy = |(name, spec): &(&str, serde_json::Value)| {
            let object = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            (
                ObjectKey::new("default", *name),
                Policy::parse("default", &object).unwrap().0,
            )
        };
        View {
            namespaces: [("default".to_string(), Default::default())].into(),
            pods: [
                pod("web", "10.0.0.1"),
                pod("till", "10.0.0.2"),
                pod("spy", "10.0.0.3"),
            ]
            .into(),
            policies: policies.iter().map(policy).collect(),
        }
    }

    #[test]
    fn what_a_new_policy_takes_is_told() {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "till"}}}], "ports": [{"port": 80}]}],
        });
        let (before, after) = (view(&[]), view(&[("only-till", spec)]));
        let ports = [(
            ObjectKey::new("default", "web"),
            vec![(Protocol::TCP, 80), (Protocol::TCP, 9100)],
        )]
        .into();
        let told: Vec<String> = pairs(&before, &after, &ports)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "default/spy -> default/web tcp 80: ingress of default/only-till",
                "default/spy, default/till -> default/web tcp 9100: ingress of default/only-till",
            ]
        );
        assert_eq!(pairs(&after, &after, &ports), []);
        let flow = |from: &str, to: &str| Flow {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: 6,
        };
        let standing = [
            flow("10.0.0.2:40000", "10.0.0.1:80"),
            flow("10.0.0.3:40000", "10.0.0.1:80"),
            flow("10.0.0.3:40001", "10.0.0.1:80"),
            flow("192.0.2.1:40000", "10.0.0.1:80"),
            flow("10.0.0.1:40000", "10.0.0.3:80"),
        ];
        let told: Vec<String> = flows(&after, standing).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["192.0.2.1, default/spy -> default/web tcp 80: ingress of default/only-till (3 connections)"]
        );
    }
}
