//! A frontend as its connections see it: who goes where.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::{Semaphore, watch};

use super::addresses::Addresses;
use super::choose::{Ask, Balancer};
use super::desired::Rules;
use super::source::{Source, Sources};
use crate::admission::{Admission, Admitted};
use crate::model::Protocol;

/// What all frontends share.
pub(crate) struct Shared {
    pub(crate) addresses: Addresses,
    pub(crate) sources: Sources,
    pub(crate) pods: Box<[IpNet]>,
    /// Who says which client may reach which endpoint, if anybody does.
    pub(crate) admission: Option<Arc<dyn Admission>>,
    /// TCP connections that may be relayed at once.
    pub(crate) connections: Arc<Semaphore>,
    /// UDP clients that may be relayed at once.
    pub(crate) sessions: Arc<Semaphore>,
    /// TCP connections that may wait at once for somebody to let them go on.
    pub(crate) waiting: Arc<Semaphore>,
}

impl Shared {
    /// Changes when connections may go where they may not go now, or the other way round.
    pub(crate) fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.admission.as_ref()?.changes())
    }

    /// Whether a client's connection to an endpoint may be, and from where.
    fn admits(&self, client: Client, endpoint: SocketAddr, protocol: Protocol) -> Admitted {
        match (&self.admission, client) {
            (Some(admission), Client::Other(ip)) => admission.admits(ip, endpoint, protocol),
            // What this node sends comes from its own address, by which the kernel knows it.
            (_, Client::ThisNode) | (None, _) => Admitted::Yes { from: None },
        }
    }
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// This node's own.
    ThisNode,
    /// Somebody else's, who has this address.
    Other(IpAddr),
}

impl Client {
    /// Who has an address, and sends to that one.
    fn of(client: IpAddr, local: IpAddr) -> Self {
        let own = client == local
            || client.is_loopback()
            // Whose address a socket can be bound to is this host.
            || std::net::UdpSocket::bind((client, 0)).is_ok();
        if own { Self::ThisNode } else { Self::Other(client) }
    }
}

/// Why a connection goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// No endpoint is there that has not been tried.
    NoEndpoint,
    /// None that the client may reach.
    Denied,
}

/// A frontend with a socket.
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    protocol: Protocol,
    state: Mutex<State>,
}

struct State {
    rules: Arc<Rules>,
    balancer: Balancer,
}

/// An endpoint that a connection goes to; counted while it is there.
pub(crate) struct Chosen {
    front: Arc<Front>,
    client: Client,
    pub(crate) at: SocketAddr,
    /// The address to connect from, if it matters.
    pub(crate) from: Option<Source>,
}

impl Front {
    pub(crate) fn new(shared: Arc<Shared>, protocol: Protocol, rules: Arc<Rules>) -> Self {
        Self {
            shared,
            protocol,
            state: Mutex::new(State {
                rules,
                balancer: Balancer::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on new connections go by these.
    pub(crate) fn direct(&self, rules: Arc<Rules>) {
        self.lock().rules = rules;
    }

    /// An endpoint for a connection that came to `local`; none of `not`, which it has tried, and none that the client may
    /// not reach.
    pub(crate) fn choose(
        self: &Arc<Self>,
        client: IpAddr,
        local: SocketAddr,
        not: &[SocketAddr],
    ) -> Result<Chosen, Unserved> {
        let mut state = self.lock();
        let rules = state.rules.clone();
        // Not asked where it makes no difference: that takes the kernel's help.
        let matters = rules.outside.is_some() || self.shared.admission.is_some();
        let whose = if matters {
            Client::of(client, local.ip())
        } else {
            Client::Other(client)
        };
        let endpoints = match &rules.outside {
            Some(outside) if !self.is_inside(whose) => outside,
            _ => &rules.inside,
        };
        let mut ask = Ask {
            endpoints,
            scheduler: rules.scheduler,
            affinity: rules.affinity,
            client,
            destination: local,
            not,
            random: rand::random(),
            now: Instant::now(),
        };
        let admitted = |at| self.shared.admits(whose, at, self.protocol);
        let mut at = state.balancer.choose(&ask).ok_or(Unserved::NoEndpoint)?;
        let mut answer = admitted(at);
        let passed_over: Vec<SocketAddr>;
        if answer == Admitted::No {
            // Most clients may reach all or none: so all are asked about only now.
            let denied = endpoints.iter().map(|endpoint| endpoint.at);
            let denied = denied.filter(|at| !admitted(*at).is_yes());
            passed_over = denied.chain([at]).chain(not.iter().copied()).collect();
            ask.not = &passed_over;
            at = state.balancer.choose(&ask).ok_or(Unserved::Denied)?;
            answer = admitted(at);
        }
        let Admitted::Yes { from } = answer else {
            return Err(Unserved::Denied);
        };
        state.balancer.begin(at);
        Ok(Chosen {
            front: self.clone(),
            client: whose,
            at,
            from: from.and_then(|ip| self.shared.sources.hold(ip)),
        })
    }

    /// Whether it is a pod or this node.
    fn is_inside(&self, client: Client) -> bool {
        match client {
            Client::ThisNode => true,
            Client::Other(ip) => self.shared.pods.iter().any(|net| net.contains(&ip)),
        }
    }
}

impl Chosen {
    /// Whether the connection may still be.
    pub(crate) fn is_admitted(&self) -> bool {
        let front = &self.front;
        front.shared.admits(self.client, self.at, front.protocol).is_yes()
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.front.lock().balancer.end(self.at);
    }
}
