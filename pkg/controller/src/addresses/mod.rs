//! IPAddress objects for the ClusterIPs that Services have, and the end of ServiceCIDRs (KEP-1880).
//!
//! Services are the truth: an address is taken when the write of its Service stands (`alloc`). The IPAddress objects here
//! say the same in the form that clients look for, a moment later, and are made anew when somebody deletes them. Those
//! of others (a gateway's) are left alone; the allocator knows them. A ServiceCIDR that is being deleted goes when no
//! address needs it any more, which the allocator has the last word on.
//!
//! The objects are stored, not computed on reading: computed, one write of a Service would be several events of one
//! revision in another kind's watch, and a client that resumes between them would miss some; and those of others must
//! be stored anyway. A crash between the two writes leaves nothing to repair but the mirror.

mod apply;
mod desired;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use futures::stream::BoxStream;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use svcnet_api::types::legacy;
use svcnet_api::wellknown::FINALIZER_SERVICE_CIDR;
use svcnet_runtime::{Change, Informers, Scope};
use tokio::time::Instant;

use crate::engine::{Applying, Controller, Mark, source};
use crate::view::{ObjectKey, Version, View};

/// Label of the IPAddresses that are kept here; kube-apiserver's own say `ipallocator.k8s.io`.
const LABEL_MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.svcnet.io";
const LABEL_FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

pub(crate) struct AddressController {
    client: kube::Client,
    services: View<ObjectKey, Vec<IpAddr>>,
    /// Who has each address; the store may give one to several.
    holders: HashMap<IpAddr, BTreeSet<ObjectKey>>,
    addresses: View<IpAddr, Mirrored>,
    cidrs: View<String, Cidr>,
}

/// An IPAddress as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirrored {
    /// The Service that it names; none for one that is not kept here.
    service: Option<ObjectKey>,
}

/// A ServiceCIDR as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cidr {
    nets: Vec<IpNet>,
    /// On its way out.
    ends: bool,
    /// Its finalizers but the one that stands for addresses in use; none where that is off.
    other_finalizers: Option<Vec<String>>,
    /// Whether it says already that it is not drawn from.
    told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Address(IpAddr),
    Cidr(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Cidr(name) => f.write_str(name),
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    Make {
        address: IpAddr,
        service: ObjectKey,
    },
    Remove {
        address: IpAddr,
        version: Version,
    },
    /// Nothing new is drawn from the range, but some of it is in use.
    SayTerminating {
        cidr: String,
    },
    LetGo {
        cidr: String,
        version: Version,
        finalizers: Vec<String>,
    },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Make { address, service } => write!(f, "say that {service} has {address}"),
            Self::Remove { address, .. } => write!(f, "take back who has {address}"),
            Self::SayTerminating { cidr } => write!(f, "say that {cidr} is still in use"),
            Self::LetGo { cidr, .. } => write!(f, "let {cidr} go"),
        }
    }
}

pub(crate) enum Event {
    Service(Change<Service>),
    Address(Change<IPAddress>),
    Cidr(Change<ServiceCIDR>),
}

/// What was written.
pub(crate) enum Outcome {
    Nothing,
    Address(Box<IPAddress>),
    Cidr(Box<ServiceCIDR>),
}

impl AddressController {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            services: View::default(),
            holders: HashMap::new(),
            addresses: View::default(),
            cidrs: View::default(),
        }
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Event>> {
        vec![
            source(informers.subscribe(Scope::default()), Event::Service),
            source(informers.subscribe(Scope::default()), Event::Address),
            source(informers.subscribe(Scope::default()), Event::Cidr),
        ]
    }

    fn service_changed(&mut self, object: &Service, mark: Mark<'_, Key>) {
        let key = ObjectKey::of(&object.metadata);
        let (version, held) = (Version::of(&object.metadata), cluster_ips(object));
        let Ok(before) = self.services.apply(key.clone(), version, held.clone()) else {
            return;
        };
        let before = before.unwrap_or_default();
        if before == held {
            return;
        }
        self.release(&key, &before, mark);
        for address in held {
            self.holders.entry(address).or_default().insert(key.clone());
            mark(Key::Address(address));
        }
    }

    fn release(&mut self, key: &ObjectKey, held: &[IpAddr], mark: Mark<'_, Key>) {
        for address in held {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(key);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
            mark(Key::Address(*address));
        }
        if !held.is_empty() {
            self.mark_ending(mark);
        }
    }

    fn address_changed(&mut self, object: &IPAddress, mark: Mark<'_, Key>) {
        let Some(address) = named(object) else { return };
        let version = Version::of(&object.metadata);
        if self
            .addresses
            .apply(address, version, Mirrored::of(object))
            .is_ok()
        {
            mark(Key::Address(address));
        }
    }

    fn cidr_changed(&mut self, object: &ServiceCIDR, mark: Mark<'_, Key>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let version = Version::of(&object.metadata);
        if self.cidrs.apply(name, version, Cidr::of(object)).is_ok() {
            self.mark_ending(mark);
        }
    }

    /// What has changed may have been what a range waits for.
    fn mark_ending(&self, mark: Mark<'_, Key>) {
        let ending = self.cidrs.iter().filter(|(_, cidr)| cidr.ends);
        ending.for_each(|(name, _)| mark(Key::Cidr(name.clone())));
    }

    fn observe_service(&mut self, change: Change<Service>, mark: Mark<'_, Key>) {
        match change {
            Change::Apply(object) => self.service_changed(&object, mark),
            Change::Delete(object) => {
                let key = ObjectKey::of(&object.metadata);
                if let Some(held) = self.services.delete(&key, &Version::of(&object.metadata)) {
                    self.release(&key, &held, mark);
                }
            }
            Change::Reset(all) => {
                let keys = all.iter().map(|object| ObjectKey::of(&object.metadata)).collect();
                for (key, held) in self.services.retain(&keys) {
                    self.release(&key, &held, mark);
                }
                all.iter().for_each(|object| self.service_changed(object, mark));
            }
        }
    }

    fn observe_address(&mut self, change: Change<IPAddress>, mark: Mark<'_, Key>) {
        match change {
            Change::Apply(object) => self.address_changed(&object, mark),
            Change::Delete(object) => {
                if let Some(address) = named(&object) {
                    self.addresses.delete(&address, &Version::of(&object.metadata));
                    mark(Key::Address(address));
                    self.mark_ending(mark);
                }
            }
            Change::Reset(all) => {
                let there = all.iter().filter_map(|object| named(object)).collect();
                for (address, _) in self.addresses.retain(&there) {
                    mark(Key::Address(address));
                }
                all.iter().for_each(|object| self.address_changed(object, mark));
                self.mark_ending(mark);
            }
        }
    }

    fn observe_cidr(&mut self, change: Change<ServiceCIDR>, mark: Mark<'_, Key>) {
        match change {
            Change::Apply(object) => self.cidr_changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                self.cidrs.delete(&name, &Version::of(&object.metadata));
            }
            Change::Reset(all) => {
                let there = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                self.cidrs.retain(&there);
                all.iter().for_each(|object| self.cidr_changed(object, mark));
            }
        }
    }

    /// Every address that somebody has.
    fn in_use(&self) -> impl Iterator<Item = IpAddr> {
        // Those kept here say no more than their Services do, and may be about to go.
        let foreign = self.addresses.iter().filter(|(_, a)| a.service.is_none());
        self.holders
            .keys()
            .copied()
            .chain(foreign.map(|(address, _)| *address))
    }
}

impl Controller for AddressController {
    type Key = Key;
    type Event = Event;
    type Plan = Plan;
    type Outcome = Outcome;

    const NAME: &'static str = "addresses";
    const PERIOD: Duration = Duration::from_secs(10);

    fn observe(&mut self, event: Event, mark: Mark<'_, Key>) {
        match event {
            Event::Service(change) => self.observe_service(change, mark),
            Event::Address(change) => self.observe_address(change, mark),
            Event::Cidr(change) => self.observe_cidr(change, mark),
        }
    }

    fn is_synced(&self) -> bool {
        self.services.is_listed() && self.addresses.is_listed() && self.cidrs.is_listed()
    }

    fn plan(&mut self, key: &Key) -> Option<Plan> {
        match key {
            Key::Address(address) => {
                let holder = self.holders.get(address).and_then(BTreeSet::first);
                let is = self.addresses.get(address);
                let version = self.addresses.version(address);
                desired::address(*address, holder, is.zip(version))
            }
            Key::Cidr(name) => {
                let all: BTreeMap<&String, &Cidr> = self.cidrs.iter().collect();
                let version = self.cidrs.version(name)?;
                desired::cidr(name, version, &all, self.in_use())
            }
        }
    }

    fn apply(&self, plan: Plan) -> Applying<Outcome> {
        let client = self.client.clone();
        Box::pin(async move {
            match apply::apply(client, plan).await {
                Ok(outcome) => (outcome, Ok(())),
                Err(error) => (Outcome::Nothing, Err(error)),
            }
        })
    }

    fn applied(&mut self, _: &Key, outcome: Outcome, mark: Mark<'_, Key>) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Address(object) => self.address_changed(&object, mark),
            Outcome::Cidr(object) => self.cidr_changed(&object, mark),
        }
    }

    fn tick(&mut self, _: Instant, mark: Mark<'_, Key>) {
        self.mark_ending(mark);
    }
}

impl Mirrored {
    fn of(object: &IPAddress) -> Self {
        let labels = object.metadata.labels.iter().flatten();
        let ours = labels
            .into_iter()
            .any(|(key, value)| key == LABEL_MANAGED_BY && value == MANAGER);
        let parent = &object.spec.parent_ref;
        Self {
            service: ours
                .then(|| ObjectKey::new(parent.namespace.as_deref().unwrap_or_default(), &parent.name)),
        }
    }
}

impl Cidr {
    fn of(object: &ServiceCIDR) -> Self {
        let nets = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        let held = finalizers.iter().any(|f| f == FINALIZER_SERVICE_CIDR);
        let conditions = object
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        Self {
            nets: nets.filter_map(|net| net.parse().ok()).collect(),
            ends: object.metadata.deletion_timestamp.is_some(),
            other_finalizers: held.then(|| {
                let others = finalizers.into_iter();
                others.filter(|f| f != FINALIZER_SERVICE_CIDR).collect()
            }),
            told: conditions
                .into_iter()
                .any(|c| c.type_ == "Ready" && c.status == "False"),
        }
    }
}

fn named(object: &IPAddress) -> Option<IpAddr> {
    object.metadata.name.as_deref()?.parse().ok()
}

fn cluster_ips(object: &Service) -> Vec<IpAddr> {
    let Some(spec) = &object.spec else {
        return Vec::new();
    };
    // What is left over from before it became one is no ClusterIP.
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let singular = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_none());
    let all = spec.cluster_ips.iter().flatten().chain(singular);
    let mut held: Vec<IpAddr> = all.filter_map(|text| legacy::address(text)).collect();
    held.dedup();
    held
}
