//! From the way that a connection should take and what was seen of it to the answer. Pure.

use std::net::IpAddr;

use svcnet_netlink::link::mac_text;
use svcnet_netlink::neigh::Resolution;

use crate::cluster::{Cluster, node_addresses};
use crate::explain::{Broken, Endpoint, Explanation, Mark, Outcome, Step, What};
use crate::reason::{NotReached, count};
use crate::seen::{AgentSeen, DnsSeen, FrontendSeen, Hop, PathSeen, ProbeSeen, Seen, WaySeen};
use crate::trace::{End, Origin, SeenAs, Trace, Way};

/// Ways to endpoints that are told one by one.
const ROUTES_MAX: usize = 4;
/// Connections that are told one by one.
const CONNECTIONS_MAX: usize = 3;

/// The answer; without anything seen, as far as the API says.
pub fn confirm(cluster: &Cluster, trace: Trace, seen: Option<&Seen>) -> Explanation {
    let Trace {
        from,
        to,
        origin,
        steps,
        dns,
        end,
    } = trace;
    let mut confirmer = Confirmer { cluster, steps };
    let outcome = match (end, seen) {
        (End::Stop(reason), _) => Outcome::NotReached(reason),
        (End::Leads(to), _) => Outcome::Leads(to),
        (End::Way(way), None) => {
            let why = "this host's kernel was not looked at";
            confirmer.steps.push(Step::unseen(What::Kernel, why));
            reaches(&way, Vec::new())
        }
        (End::Way(way), Some(seen)) => match confirmer.dns(dns.as_ref(), seen) {
            Err(reason) => Outcome::NotReached(reason),
            Ok(()) => confirmer.way(&way, origin.as_ref(), seen),
        },
    };
    Explanation {
        from,
        to,
        steps: confirmer.steps,
        outcome,
    }
}

fn reaches(way: &Way, mut broken: Vec<Broken>) -> Outcome {
    let lost = |endpoint: &Endpoint| broken.iter().any(|b| b.endpoint == *endpoint);
    let endpoints: Vec<Endpoint> = way
        .endpoints
        .iter()
        .filter(|endpoint| !lost(endpoint))
        .cloned()
        .collect();
    broken.extend(way.dead.iter().map(|(endpoint, reason)| Broken {
        endpoint: endpoint.clone(),
        reason: reason.clone(),
    }));
    match broken.first() {
        Some(first) if endpoints.is_empty() => Outcome::NotReached(first.reason.clone()),
        _ => Outcome::Reaches { endpoints, broken },
    }
}

struct Confirmer<'a> {
    cluster: &'a Cluster,
    steps: Vec<Step>,
}

impl Confirmer<'_> {
    /// What DNS says, behind the step of the name.
    fn dns(&mut self, expected: Option<&crate::trace::DnsExpected>, seen: &Seen) -> Result<(), NotReached> {
        let (Some(expected), Some(answer)) = (expected, &seen.dns) else {
            return Ok(());
        };
        let reason = match answer {
            DnsSeen::Answered(addresses) if *addresses == expected.addresses => None,
            DnsSeen::Answered(addresses) => Some(NotReached::DnsDiffers {
                name: expected.name.clone(),
                wanted: expected.addresses.clone(),
                answered: addresses.clone(),
            }),
            DnsSeen::Silent { server, why } => Some(NotReached::DnsSilent {
                server: *server,
                why: why.clone(),
            }),
        };
        let at = self.steps.iter().rposition(|step| step.step == What::Name);
        let at = at.unwrap_or_default();
        match (reason, self.steps.get_mut(at)) {
            (None, Some(step)) => {
                step.text += "; the DNS server here says so";
                Ok(())
            }
            (Some(reason), _) => {
                self.steps.truncate(at + 1);
                self.steps.push(Step::no(What::Name, &reason));
                Err(reason)
            }
            (None, None) => Ok(()),
        }
    }

    fn way(&mut self, way: &Way, origin: Option<&Origin>, seen: &Seen) -> Outcome {
        if let Some(node) = way.node.as_ref().filter(|node| **node != seen.node) {
            self.steps.push(Step::unseen(
                What::Kernel,
                format!(
                    "{node} sends it on, and this is {}: run it there to look at the kernel",
                    seen.node
                ),
            ));
            self.told_of_the_source(way, origin, None);
            return reaches(way, Vec::new());
        }
        if way.node.is_none() {
            self.steps.push(Step::unseen(
                What::Frontend,
                format!(
                    "no node has told that it announces {}; this is {}",
                    way.to.ip(),
                    seen.node
                ),
            ));
        }
        if let Err(reason) = self.frontend(way, seen) {
            self.steps.push(Step::no(What::Kernel, &reason));
            return Outcome::NotReached(reason);
        }
        let broken = self.routes(way, seen);
        if broken.len() == way.endpoints.len() {
            return reaches(way, broken);
        }
        self.told_of_the_source(way, origin, Some(seen));
        self.connections(seen);
        match self.probe(way, seen) {
            Some(reason) => Outcome::NotReached(reason),
            None => reaches(way, broken),
        }
    }

    fn frontend(&mut self, way: &Way, seen: &Seen) -> Result<(), NotReached> {
        if let AgentSeen::Runs { not_ready, .. } = &seen.agent {
            for (role, why) in not_ready {
                let text = format!("the role {role} of {} is not ready: {why}", seen.node);
                self.steps.push(Step::unseen(What::Kernel, text));
            }
        }
        let Some(frontend) = &way.frontend else {
            return Ok(());
        };
        match &seen.frontend {
            None => Ok(()),
            Some(FrontendSeen::Held(how)) => {
                let endpoints = frontend.endpoints().count();
                let mut text = format!(
                    "{} holds the frontend and {}",
                    seen.node,
                    count(endpoints, "endpoint")
                );
                if let Some(how) = how {
                    text += &format!(": {how}");
                }
                if let Some(why) = seen.agent.silence() {
                    text += &format!("; svcnet does not run there ({why}): nothing follows changes");
                }
                self.steps.push(Step::ok(What::Kernel, text));
                Ok(())
            }
            Some(FrontendSeen::Impossible(mode, why)) => Err(NotReached::NotInThisMode {
                node: seen.node.clone(),
                frontend: frontend.key.to_string(),
                mode: mode.name(),
                why: why.clone(),
            }),
            Some(FrontendSeen::Unknown(why)) => {
                self.steps
                    .push(Step::unseen(What::Kernel, format!("not looked at: {why}")));
                Ok(())
            }
            Some(FrontendSeen::Missing(what)) => Err(NotReached::TableMissing {
                node: seen.node.clone(),
                what: what.clone(),
                agent: seen.agent.silence(),
            }),
            Some(FrontendSeen::Differs(operations)) => Err(NotReached::FrontendMissing {
                node: seen.node.clone(),
                frontend: frontend.key.to_string(),
                operations: operations.clone(),
                agent: seen.agent.silence(),
            }),
        }
    }

    /// The ways to the endpoints, and those that are broken.
    fn routes(&mut self, way: &Way, seen: &Seen) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut told = 0;
        for (endpoint, path) in way.endpoints.iter().zip(&seen.paths) {
            match self.path(endpoint, path, seen) {
                Ok(step) => {
                    told += 1;
                    // Many endpoints lie behind few routes.
                    if told <= ROUTES_MAX {
                        self.steps.push(step);
                    }
                }
                Err(reason) => {
                    self.steps.push(Step::no(What::Route, &reason));
                    broken.push(Broken {
                        endpoint: endpoint.clone(),
                        reason,
                    });
                }
            }
        }
        if told > ROUTES_MAX {
            let text = format!("and likewise to {} others", told - ROUTES_MAX);
            self.steps.push(Step::ok(What::Route, text));
        }
        broken
    }

    fn path(&self, endpoint: &Endpoint, path: &PathSeen, seen: &Seen) -> Result<Step, NotReached> {
        let to = endpoint.at.ip();
        // Straight to the endpoint's node is as good, and needs no link of ours (overlay modes direct and auto).
        let straight = matches!(&path.way, WaySeen::Along(hop) if self.is_node_of(endpoint, hop.next));
        // A missing or lowered link takes its routes along: it is the cause, and they are not.
        if let Some(wanted) = path.wanted.as_ref().filter(|_| !straight) {
            match &wanted.link {
                None => {
                    return Err(NotReached::LinkMissing {
                        link: wanted.name.clone(),
                        agent: seen.agent.silence(),
                    });
                }
                Some(link) if !link.up || !link.carrier => {
                    return Err(NotReached::LinkDown {
                        link: wanted.name.clone(),
                        no_carrier: link.up,
                    });
                }
                Some(_) => {}
            }
        }
        let wanted = path.wanted.as_ref().map(|wanted| wanted.name.clone());
        match &path.way {
            WaySeen::Here => Ok(Step::ok(What::Route, format!("{endpoint} is this node itself"))),
            WaySeen::NoRoute => Err(NotReached::RouteMissing { to, link: wanted }),
            WaySeen::Refused => Err(NotReached::RouteRefuses { to }),
            WaySeen::Unknown(why) => Ok(Step::unseen(
                What::Route,
                format!("to {endpoint}: not found out: {why}"),
            )),
            WaySeen::Along(hop) => {
                if let Some(link) = wanted.filter(|link| *link != hop.link.name && !straight) {
                    return Err(NotReached::RouteAstray {
                        to,
                        route: route_text(to, hop),
                        link,
                    });
                }
                let how = self.hop(endpoint, hop)?;
                let text = format!("to {endpoint}: {}{how}", route_text(to, hop));
                Ok(Step::ok(What::Route, text))
            }
        }
    }

    /// Whether the next hop can take the packet, and what is known of it.
    fn hop(&self, endpoint: &Endpoint, hop: &Hop) -> Result<String, NotReached> {
        if !hop.link.up || !hop.link.carrier {
            return Err(NotReached::LinkDown {
                link: hop.link.name.clone(),
                no_carrier: hop.link.up,
            });
        }
        let Some(tunnel) = &hop.tunnel else {
            let who = match &endpoint.pod {
                Some(pod) if hop.next == endpoint.at.ip() => format!("the pod {pod}"),
                _ => format!("the next hop {}", hop.next),
            };
            return resolved(hop, &who);
        };
        let node = endpoint.node.clone().unwrap_or_else(|| "its node".to_string());
        let mac = match hop.resolution {
            Some(Resolution::Permanent(mac) | Resolution::Found(mac)) => mac,
            _ => {
                return Err(NotReached::NeighbourMissing {
                    address: hop.next,
                    link: hop.link.name.clone(),
                });
            }
        };
        let Some(destination) = tunnel.destination else {
            return Err(NotReached::ForwardingMissing {
                node,
                mac: mac_text(mac).to_string(),
                link: hop.link.name.clone(),
            });
        };
        if let Some(wanted) = self.address_of(&node, destination.is_ipv6())
            && !self.is_node_of(endpoint, destination)
        {
            return Err(NotReached::ForwardingAstray {
                node,
                sends: destination,
                wanted,
            });
        }
        match &tunnel.below {
            WaySeen::Along(below) => {
                let how = self.below(&node, below)?;
                Ok(format!(
                    "; in VXLAN to {destination} dev {}{how}",
                    below.link.name
                ))
            }
            WaySeen::NoRoute => Err(NotReached::RouteMissing {
                to: destination,
                link: None,
            }),
            WaySeen::Refused => Err(NotReached::RouteRefuses { to: destination }),
            WaySeen::Here | WaySeen::Unknown(_) => Ok(format!("; in VXLAN to {destination}")),
        }
    }

    /// Below the overlay.
    fn below(&self, node: &str, hop: &Hop) -> Result<String, NotReached> {
        if !hop.link.up || !hop.link.carrier {
            return Err(NotReached::LinkDown {
                link: hop.link.name.clone(),
                no_carrier: hop.link.up,
            });
        }
        let direct = hop.gateway.is_none();
        let who = if direct {
            format!("the node {node}")
        } else {
            format!("the gateway towards {node}")
        };
        resolved(hop, &who)
    }

    fn address_of(&self, node: &str, v6: bool) -> Option<IpAddr> {
        let node = self.cluster.node(node)?;
        node_addresses(node).find(|ip| ip.is_ipv6() == v6)
    }

    fn is_node_of(&self, endpoint: &Endpoint, address: IpAddr) -> bool {
        let node = endpoint.node.as_ref().and_then(|node| self.cluster.node(node));
        node.is_some_and(|node| node_addresses(node).any(|ip| ip == address))
    }

    fn told_of_the_source(&mut self, way: &Way, origin: Option<&Origin>, seen: Option<&Seen>) {
        let (Some(origin), Some(first)) = (origin, way.endpoints.first()) else {
            return;
        };
        let v6 = way.to.is_ipv6();
        let own = seen.and_then(|seen| seen.own_source);
        let as_pod = own.is_some_and(|ip| self.cluster.is_of_pods(ip));
        let mut kept = Vec::new();
        let mut replaced: Vec<IpAddr> = Vec::new();
        for (index, endpoint) in way.endpoints.iter().enumerate() {
            match way.seen_as(origin, endpoint, |ip| self.cluster.is_of_pods(ip)) {
                // A node's connections to Services carry an address out of its pods' network, where it has one.
                SeenAs::Node if as_pod && !way.arrives => replaced.extend(own),
                SeenAs::Node => {
                    let hop = seen.and_then(|seen| seen.paths.get(index)).and_then(hop_of);
                    replaced.extend(hop.and_then(|hop| hop.source));
                    if hop.is_none() {
                        kept.push(SeenAs::Node);
                    }
                }
                SeenAs::Itself => kept.push(SeenAs::Itself),
            }
        }
        replaced.sort();
        replaced.dedup();
        let whose = if way.endpoints.len() == 1 {
            first.to_string()
        } else {
            "the endpoint".to_string()
        };
        let source = match origin {
            Origin::Node { .. } if way.frontend.is_none() => own.or_else(|| origin.address(v6)),
            _ => origin.address(v6),
        };
        let client = match source {
            Some(ip) => format!("{ip}, the client's own address"),
            None => "the client's own address".to_string(),
        };
        let node = way.node.as_deref().or(seen.map(|seen| seen.node.as_str()));
        let node = node.unwrap_or("the node");
        let listed: Vec<String> = replaced.iter().map(ToString::to_string).collect();
        let text = match (kept.contains(&SeenAs::Itself), listed.is_empty()) {
            (true, true) => format!("{whose} sees {client}"),
            (true, false) => format!(
                "the endpoint sees {client}; the client itself as {} of {node}",
                listed.join(" or ")
            ),
            (false, true) => format!("{whose} sees an address of {node}, so that answers come back that way"),
            (false, false) => format!(
                "{whose} sees {}, of {node}, so that answers come back that way",
                listed.join(" or ")
            ),
        };
        self.steps.push(Step::ok(What::Seen, text));
    }

    fn connections(&mut self, seen: &Seen) {
        if seen.connections.is_empty() {
            return;
        }
        let told: Vec<String> = seen
            .connections
            .iter()
            .take(CONNECTIONS_MAX)
            .map(|(client, endpoint)| format!("{client} to {endpoint}"))
            .collect();
        let mut text = format!(
            "{}: {}",
            count(seen.connections.len(), "live connection"),
            told.join(", ")
        );
        if seen.connections.len() > CONNECTIONS_MAX {
            text += ", …";
        }
        self.steps.push(Step::ok(What::Now, text));
    }

    fn probe(&mut self, way: &Way, seen: &Seen) -> Option<NotReached> {
        match seen.probe.as_ref()? {
            ProbeSeen::Connected { took_us, endpoint } => {
                let named = endpoint.map(|at| {
                    let known = way.endpoints.iter().find(|endpoint| endpoint.at == at);
                    known.map_or_else(|| at.to_string(), ToString::to_string)
                });
                let to = named.map_or_else(String::new, |named| format!(" to {named}"));
                #[expect(clippy::cast_precision_loss, reason = "no probe takes 2^52 microseconds")]
                let took_ms = *took_us as f64 / 1000.0;
                let text = format!("connected{to} in {took_ms:.1} ms");
                self.steps.push(Step::ok(What::Probe, text));
                None
            }
            ProbeSeen::Impossible(why) => {
                self.steps
                    .push(Step::unseen(What::Probe, format!("not tried: {why}")));
                None
            }
            ProbeSeen::Failed(why) => {
                let reason = NotReached::ProbeFailed {
                    to: way.to,
                    why: why.clone(),
                };
                self.steps.push(Step {
                    step: What::Probe,
                    mark: Mark::No,
                    text: why.clone(),
                });
                Some(reason)
            }
        }
    }
}

fn hop_of(path: &PathSeen) -> Option<&Hop> {
    match &path.way {
        WaySeen::Along(hop) => Some(hop),
        _ => None,
    }
}

/// Whether somebody has the next hop's address.
fn resolved(hop: &Hop, who: &str) -> Result<String, NotReached> {
    match hop.resolution {
        Some(Resolution::Failed) => Err(NotReached::NeighbourFailed {
            address: hop.next,
            who: who.to_string(),
            link: hop.link.name.clone(),
        }),
        Some(Resolution::Permanent(mac) | Resolution::Found(mac)) => Ok(format!(" ({})", mac_text(mac))),
        Some(Resolution::Asking) => Ok(" (being asked for)".to_string()),
        // Nothing went there of late: it is asked for when something does.
        Some(Resolution::NotNeeded) | None => Ok(String::new()),
    }
}

fn route_text(to: IpAddr, hop: &Hop) -> String {
    match hop.gateway {
        Some(gateway) => format!("{to} via {gateway} dev {}", hop.link.name),
        None => format!("{to} dev {}", hop.link.name),
    }
}
