//! What this node has of each Service, for load balancers and metrics; kept in proportion to what changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::health::{Check, Checks};
use crate::model::{Fate, Frontend};
use crate::view::{Name, View};

/// Services that ask for a health check, and Services without endpoints here that are to use only those.
#[derive(Debug, Default)]
pub(crate) struct Locals {
    checks: BTreeMap<Name, (u16, usize)>,
    changed: bool,
    lacking: HashMap<Name, Lack>,
    total: Lack,
}

/// Ports of Services whose policy is `Local`, that have endpoints, and none on this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lack {
    /// By internalTrafficPolicy.
    pub internal: usize,
    /// By externalTrafficPolicy.
    pub external: usize,
}

impl Locals {
    /// Takes in a Service that may have changed, with its frontends.
    pub(crate) fn update(&mut self, name: &Name, view: &View, frontends: &[Frontend]) {
        let check = view
            .service(name)
            .and_then(|service| service.health_port)
            .map(|port| (port, ready_here(name, view)));
        let before = match check {
            Some(check) => self.checks.insert(name.clone(), check),
            None => self.checks.remove(name),
        };
        self.changed |= before != check;
        let lack = Lack::of(frontends);
        let before = match lack {
            Lack {
                internal: 0,
                external: 0,
            } => self.lacking.remove(name),
            lack => self.lacking.insert(name.clone(), lack),
        };
        let before = before.unwrap_or_default();
        self.total.internal = self.total.internal + lack.internal - before.internal;
        self.total.external = self.total.external + lack.external - before.external;
    }

    /// What there is to answer, if that is another than before.
    pub(crate) fn take_checks(&mut self) -> Option<Checks> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let by_port = self.checks.iter().map(|(service, (port, local_endpoints))| {
            let check = Check {
                service: service.clone(),
                local_endpoints: *local_endpoints,
            };
            (*port, check)
        });
        Some(Arc::new(by_port.collect()))
    }

    pub(crate) fn lack(&self) -> Lack {
        self.total
    }
}

impl Lack {
    fn of(frontends: &[Frontend]) -> Self {
        let ports = |lacks: fn(&Frontend) -> bool| {
            let names: BTreeSet<&str> = frontends.iter().filter(|f| lacks(f)).map(|f| &*f.name).collect();
            names.len()
        };
        Self {
            internal: ports(|f| f.fate == Fate::OnlyElsewhere),
            external: ports(|f| f.outside == Some(Fate::OnlyElsewhere)),
        }
    }
}

/// Pods of a Service on this node that are ready.
fn ready_here(name: &str, view: &View) -> usize {
    let endpoints = view.slices(name).flat_map(|slice| &slice.endpoints);
    let ready: BTreeSet<IpAddr> = endpoints.filter(|e| e.local && e.ready).map(|e| e.ip).collect();
    ready.len()
}
