//! A frontend as its connections see it: who goes where.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::addresses::Addresses;
use super::choose::{Ask, Balancer};
use super::desired::Rules;

/// What all frontends share.
pub(crate) struct Shared {
    pub(crate) addresses: Addresses,
    pub(crate) pods: Box<[IpNet]>,
    /// TCP connections that may be relayed at once.
    pub(crate) connections: Arc<Semaphore>,
    /// UDP clients that may be relayed at once.
    pub(crate) sessions: Arc<Semaphore>,
}

/// A frontend with a socket.
pub(crate) struct Front {
    pub(crate) shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    rules: Arc<Rules>,
    balancer: Balancer,
}

/// An endpoint that a connection goes to; counted while it is there.
pub(crate) struct Chosen {
    front: Arc<Front>,
    pub(crate) at: SocketAddr,
}

impl Front {
    pub(crate) fn new(shared: Arc<Shared>, rules: Arc<Rules>) -> Self {
        Self {
            shared,
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

    /// An endpoint for a connection that came to `local`; none of `not`, which it has tried.
    pub(crate) fn choose(
        self: &Arc<Self>,
        client: IpAddr,
        local: SocketAddr,
        not: &[SocketAddr],
    ) -> Option<Chosen> {
        let mut state = self.lock();
        let rules = state.rules.clone();
        let endpoints = match &rules.outside {
            Some(outside) if !self.is_inside(client, local.ip()) => outside,
            _ => &rules.inside,
        };
        let at = state.balancer.choose(&Ask {
            endpoints,
            scheduler: rules.scheduler,
            affinity: rules.affinity,
            client,
            destination: local,
            not,
            random: rand::random(),
            now: Instant::now(),
        })?;
        state.balancer.begin(at);
        Some(Chosen {
            front: self.clone(),
            at,
        })
    }

    /// Whether it is a pod or this node.
    fn is_inside(&self, client: IpAddr, local: IpAddr) -> bool {
        client == local
            || client.is_loopback()
            || self.shared.pods.iter().any(|net| net.contains(&client))
            // Whose address a socket can be bound to is this host. It is asked only where it matters.
            || std::net::UdpSocket::bind((client, 0)).is_ok()
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.front.lock().balancer.end(self.at);
    }
}
