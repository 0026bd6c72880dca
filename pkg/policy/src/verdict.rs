//! What the policies say about one connection, by the words of the API (KEP-2079 and the documentation of
//! networking.k8s.io/v1): the reference that the kernel's tables are tested against, and the reason that people are told.

use std::fmt;
use std::net::IpAddr;

use crate::model::{Direction, ObjectKey, Peer, Policy, PortMatch, Protocol, Rule};
use crate::view::{PodFacts, View};

/// One end of a connection: an address, and the pod that has it, if one has.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The address.
    pub address: IpAddr,
    /// The pod.
    pub pod: Option<(&'a ObjectKey, &'a PodFacts)>,
}

/// What is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The protocol; none that policies know where it is none of theirs (ICMP).
    pub protocol: Option<Protocol>,
    /// The port.
    pub port: u16,
}

/// What the policies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Neither end is isolated against the other.
    Open,
    /// Both directions that are isolated have a policy that allows it: those of the way out, then of the way in.
    Allowed(Vec<ObjectKey>),
    /// All the policies that isolate an end, none of which allows it.
    Denied(Denied),
}

/// Why a connection is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// On the way out of the one pod, or into the other.
    pub direction: Direction,
    /// The pod that is isolated.
    pub pod: ObjectKey,
    /// The policies that isolate it.
    pub policies: Vec<ObjectKey>,
}

impl Verdict {
    /// Whether the connection is made.
    pub fn is_allowed(&self) -> bool {
        !matches!(self, Self::Denied(_))
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.policies.iter().map(ToString::to_string).collect();
        let (pod, direction) = (&self.pod, self.direction);
        write!(
            f,
            "denied by NetworkPolicy {}, which isolates {pod} for {direction}",
            names.join(", ")
        )
    }
}

impl View {
    /// The end at an address.
    pub fn end(&self, address: IpAddr) -> End<'_> {
        End {
            address,
            pod: self.pod_at(address),
        }
    }

    /// What the policies say about a connection, wherever its ends are. What a pod's own node sends is not for this to
    /// judge: it is always let in.
    pub fn judge(&self, from: End<'_>, to: End<'_>, target: Target) -> Verdict {
        // "A Pod cannot block access to itself."
        if from.address == to.address {
            return Verdict::Open;
        }
        let mut allowing = Vec::new();
        for (direction, isolated, peer) in [(Direction::Egress, from, to), (Direction::Ingress, to, from)] {
            let Some((key, pod)) = isolated.pod else { continue };
            let policies: Vec<(&ObjectKey, &Policy)> = self.isolating(key, pod, direction).collect();
            if policies.is_empty() {
                continue;
            }
            let allows = |(_, policy): &&(&ObjectKey, &Policy)| {
                let rules = policy.rules(direction).unwrap_or_default();
                rules.iter().any(|rule| self.allows(rule, peer, to, target))
            };
            let Some((name, _)) = policies.iter().find(allows) else {
                return Verdict::Denied(Denied {
                    direction,
                    pod: key.clone(),
                    policies: policies.into_iter().map(|(key, _)| key.clone()).collect(),
                });
            };
            allowing.push((*name).clone());
        }
        if allowing.is_empty() {
            Verdict::Open
        } else {
            Verdict::Allowed(allowing)
        }
    }

    fn allows(&self, rule: &Rule, peer: End<'_>, to: End<'_>, target: Target) -> bool {
        let is_peer = |wanted: &Peer| match wanted {
            Peer::Pods(selector) => peer
                .pod
                .is_some_and(|(key, pod)| self.selects(selector, key, pod)),
            Peer::Block(block) => {
                block.net.contains(&peer.address)
                    && !block.except.iter().any(|net| net.contains(&peer.address))
            }
        };
        let is_port = |port: &crate::model::Port| {
            Some(port.protocol) == target.protocol
                && match &port.at {
                    PortMatch::Any => true,
                    PortMatch::Range(first, last) => (*first..=*last).contains(&target.port),
                    PortMatch::Named(name) => to.pod.is_some_and(|(_, pod)| {
                        pod.ports.iter().any(|p| {
                            p.name == *name && p.protocol == port.protocol && p.number == target.port
                        })
                    }),
                }
        };
        rule.peers.as_ref().is_none_or(|peers| peers.iter().any(is_peer))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(is_port))
    }
}
