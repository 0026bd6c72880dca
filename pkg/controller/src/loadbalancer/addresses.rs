//! Who has which address, and who may share one (MetalLB's internal/allocator).
//!
//! Services with the same sharing key may have one address together when their ports do not meet and the same pods
//! stand behind them, or any node may answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use super::pools::{Pool, PoolSet};
use crate::view::ObjectKey;

/// A port in use on an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UsedPort {
    pub(super) protocol: String,
    pub(super) port: i32,
}

impl fmt::Display for UsedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.to_lowercase(), self.port)
    }
}

/// What two Services must have in common to share an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SharingKey {
    /// The annotation; empty for none.
    pub(super) sharing: String,
    /// The pods behind it, where traffic must reach them on their own nodes; empty where any node will do.
    pub(super) backend: String,
}

/// What a Service does with its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) ports: Vec<UsedPort>,
    pub(super) key: SharingKey,
}

/// Why an address was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no available IPs")]
    NoneLeft,
    #[error("no available IPs in pool {0:?}")]
    PoolEmpty(String),
    #[error("unknown pool {0:?}")]
    UnknownPool(String),
    #[error("pool {0} not compatible for ip assignment")]
    PoolNotForYou(String),
    #[error("{} is not allowed in config", listed(.0))]
    NotInConfig(Vec<IpAddr>),
    #[error("can't change sharing key for {service:?}, address also in use by {others}: {why}")]
    NotShared {
        service: String,
        others: String,
        why: NotShared,
    },
    #[error("port {port} is already in use on \"{address}\"")]
    PortInUse { port: UsedPort, address: IpAddr },
}

/// Why two Services cannot share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotShared {
    #[error("existing service does not allow sharing")]
    Existing,
    #[error("new service does not allow sharing")]
    New,
    #[error("sharing key {new:?} does not match existing sharing key {existing:?}")]
    Key { new: String, existing: String },
    #[error("backend key {new:?} does not match existing sharing key {existing:?}")]
    Backend { new: String, existing: String },
}

/// Addresses as Go prints a list of them with %q.
pub(super) fn listed(addresses: &[IpAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[{}]", quoted.join(" "))
}

#[derive(Debug, Default)]
pub(super) struct Addresses {
    of_service: HashMap<ObjectKey, (Vec<IpAddr>, Usage)>,
    in_use: HashMap<IpAddr, InUse>,
    /// Below these offsets of a pool's range everything is in use: the search for a free address starts there.
    used_up_to: HashMap<(String, usize), usize>,
}

#[derive(Debug, Default)]
struct InUse {
    key: SharingKey,
    services: BTreeSet<ObjectKey>,
    ports: BTreeMap<UsedPort, ObjectKey>,
}

impl Addresses {
    pub(super) fn of(&self, service: &ObjectKey) -> Option<&[IpAddr]> {
        self.of_service
            .get(service)
            .map(|(addresses, _)| addresses.as_slice())
    }

    /// Gives these very addresses, or says why not; then the Service keeps what it has.
    pub(super) fn assign(
        &mut self,
        service: &ObjectKey,
        addresses: &[IpAddr],
        usage: &Usage,
        pools: &PoolSet,
    ) -> Result<(), Refusal> {
        if addresses.iter().any(|address| pools.of(*address).is_none()) {
            return Err(Refusal::NotInConfig(addresses.to_vec()));
        }
        for address in addresses {
            self.check(service, *address, usage)?;
        }
        self.put(service, addresses.to_vec(), usage);
        Ok(())
    }

    /// Gives one address of each wanted family out of a pool. Where `all` is not asked for, one family is enough.
    pub(super) fn allocate(
        &mut self,
        service: &ObjectKey,
        v6_wanted: &[bool],
        all: bool,
        (name, pool): (&str, &Pool),
        usage: &Usage,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let found: Vec<IpAddr> = v6_wanted
            .iter()
            .filter_map(|v6| self.search(service, *v6, name, pool, usage))
            .collect();
        if found.is_empty() || (all && found.len() < v6_wanted.len()) {
            return Err(Refusal::PoolEmpty(name.to_string()));
        }
        self.put(service, found.clone(), usage);
        Ok(found)
    }

    /// Takes back what the Service has. Whether it had anything.
    pub(super) fn release(&mut self, service: &ObjectKey) -> bool {
        let Some((addresses, _)) = self.of_service.remove(service) else {
            return false;
        };
        for address in addresses {
            let Some(in_use) = self.in_use.get_mut(&address) else {
                continue;
            };
            in_use.services.remove(service);
            in_use.ports.retain(|_, owner| owner != service);
            if in_use.services.is_empty() {
                self.in_use.remove(&address);
            }
        }
        self.used_up_to.clear();
        true
    }

    fn put(&mut self, service: &ObjectKey, addresses: Vec<IpAddr>, usage: &Usage) {
        if self.of(service).is_some_and(|before| before != addresses) {
            self.release(service);
        } else if let Some((before, _)) = self.of_service.get(service) {
            for address in before.clone() {
                if let Some(in_use) = self.in_use.get_mut(&address) {
                    in_use.ports.retain(|_, owner| owner != service);
                }
            }
        }
        for address in &addresses {
            let in_use = self.in_use.entry(*address).or_default();
            in_use.key = usage.key.clone();
            in_use.services.insert(service.clone());
            in_use
                .ports
                .extend(usage.ports.iter().map(|port| (port.clone(), service.clone())));
        }
        self.of_service
            .insert(service.clone(), (addresses, usage.clone()));
    }

    fn search(
        &mut self,
        service: &ObjectKey,
        v6: bool,
        name: &str,
        pool: &Pool,
        usage: &Usage,
    ) -> Option<IpAddr> {
        if !usage.key.sharing.is_empty() {
            let mut shared = self.in_use.iter().filter(|(address, in_use)| {
                address.is_ipv6() == v6 && in_use.key == usage.key && pool.holds(**address)
            });
            let fits = shared.find(|(address, _)| self.check(service, **address, usage).is_ok());
            if let Some((address, _)) = fits {
                return Some(*address);
            }
        }
        for (index, range) in pool
            .ranges
            .iter()
            .enumerate()
            .filter(|(_, range)| range.is_v6() == v6)
        {
            let start = self
                .used_up_to
                .get(&(name.to_string(), index))
                .copied()
                .unwrap_or_default();
            let free = range
                .iter()
                .enumerate()
                .skip(start)
                .find(|(_, address)| pool.holds(*address) && !self.in_use.contains_key(address));
            let end = free.map_or(
                usize::try_from(range.size()).unwrap_or(usize::MAX),
                |(offset, _)| offset,
            );
            self.used_up_to.insert((name.to_string(), index), end);
            if let Some((_, address)) = free {
                return Some(address);
            }
        }
        None
    }

    fn check(&self, service: &ObjectKey, address: IpAddr, usage: &Usage) -> Result<(), Refusal> {
        let Some(in_use) = self.in_use.get(&address) else {
            return Ok(());
        };
        let others: Vec<String> = in_use
            .services
            .iter()
            .filter(|other| *other != service)
            .map(ToString::to_string)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        may_share(&in_use.key, &usage.key).map_err(|why| Refusal::NotShared {
            service: service.to_string(),
            others: others.join(","),
            why,
        })?;
        let taken = usage
            .ports
            .iter()
            .find(|port| in_use.ports.get(port).is_some_and(|owner| owner != service));
        taken.map_or(Ok(()), |port| {
            Err(Refusal::PortInUse {
                port: port.clone(),
                address,
            })
        })
    }
}

fn may_share(existing: &SharingKey, new: &SharingKey) -> Result<(), NotShared> {
    let texts = |new: &String, existing: &String| (new.clone(), existing.clone());
    if existing.sharing.is_empty() {
        Err(NotShared::Existing)
    } else if new.sharing.is_empty() {
        Err(NotShared::New)
    } else if existing.sharing != new.sharing {
        let (new, existing) = texts(&new.sharing, &existing.sharing);
        Err(NotShared::Key { new, existing })
    } else if existing.backend != new.backend {
        let (new, existing) = texts(&new.backend, &existing.backend);
        Err(NotShared::Backend { new, existing })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use svcnet_api::metallb::IPAddressPool;

    use super::*;

    fn pools(ranges: &[&str]) -> PoolSet {
        let pool: IPAddressPool =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"addresses": ranges}}))
                .unwrap();
        PoolSet::read(&[pool], None).unwrap()
    }

    fn service(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn usage(port: i32, sharing: &str, backend: &str) -> Usage {
        Usage {
            ports: vec![UsedPort {
                protocol: "TCP".to_string(),
                port,
            }],
            key: SharingKey {
                sharing: sharing.to_string(),
                backend: backend.to_string(),
            },
        }
    }

    fn allocate(all: &mut Addresses, pools: &PoolSet, name: &str, usage: &Usage) -> Result<String, String> {
        let pool = ("a", pools.get("a").unwrap());
        let given = all
            .allocate(&service(name), &[false], true, pool, usage)
            .map_err(|e| e.to_string())?;
        Ok(given[0].to_string())
    }

    #[test]
    fn addresses_are_given_in_order_until_none_is_left() {
        let (pools, mut all) = (pools(&["10.0.0.1-10.0.0.2"]), Addresses::default());
        assert_eq!(
            allocate(&mut all, &pools, "a", &usage(80, "", "")),
            Ok("10.0.0.1".to_string())
        );
        assert_eq!(
            allocate(&mut all, &pools, "b", &usage(80, "", "")),
            Ok("10.0.0.2".to_string())
        );
        let refused = allocate(&mut all, &pools, "c", &usage(80, "", ""));
        assert_eq!(refused, Err("no available IPs in pool \"a\"".to_string()));
        assert!(all.release(&service("a")) && !all.release(&service("a")));
        assert_eq!(
            allocate(&mut all, &pools, "c", &usage(80, "", "")),
            Ok("10.0.0.1".to_string())
        );
    }

    #[test]
    fn one_address_is_shared_by_rule() {
        let (pools, mut all) = (pools(&["10.0.0.1-10.0.0.1"]), Addresses::default());
        let address: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
        all.assign(&service("a"), &address, &usage(80, "k", ""), &pools)
            .unwrap();
        let mut refused = |name: &str, usage: Usage| {
            all.assign(&service(name), &address, &usage, &pools)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused("b", usage(80, "k", "")),
            "port tcp/80 is already in use on \"10.0.0.1\""
        );
        let head = "can't change sharing key for \"default/b\", address also in use by default/a: ";
        assert_eq!(
            refused("b", usage(81, "", "")),
            format!("{head}new service does not allow sharing")
        );
        assert_eq!(
            refused("b", usage(81, "x", "")),
            format!("{head}sharing key \"x\" does not match existing sharing key \"k\"")
        );
        assert_eq!(
            refused("b", usage(81, "k", "app=b")),
            format!("{head}backend key \"app=b\" does not match existing sharing key \"\"")
        );
        assert_eq!(
            allocate(&mut all, &pools, "b", &usage(81, "k", "")),
            Ok("10.0.0.1".to_string())
        );
        assert!(
            all.assign(&service("a"), &address, &usage(81, "k", ""), &pools)
                .is_err(),
            "b has it"
        );
        all.assign(&service("a"), &address, &usage(82, "k", ""), &pools)
            .unwrap();
        assert!(all.release(&service("b")));
        all.assign(&service("a"), &address, &usage(81, "other", ""), &pools)
            .expect("alone, it may change its key");
    }

    #[test]
    fn addresses_outside_the_pools_are_refused() {
        let (pools, mut all) = (pools(&["10.0.0.0/28"]), Addresses::default());
        let outside: [IpAddr; 1] = ["10.9.0.1".parse().unwrap()];
        let refused = all
            .assign(&service("a"), &outside, &usage(80, "", ""), &pools)
            .unwrap_err();
        assert_eq!(refused.to_string(), "[\"10.9.0.1\"] is not allowed in config");
    }

    proptest! {
        #[test]
        fn ports_of_one_address_have_one_owner(
            steps in prop::collection::vec((0usize..6, 1i32..4, prop::sample::select(vec!["", "k", "m"]), any::<bool>()), 0..60),
        ) {
            let (pools, mut all) = (pools(&["10.0.0.1-10.0.0.3"]), Addresses::default());
            let mut holders: HashMap<usize, (String, i32, &str)> = HashMap::new();
            for (who, port, sharing, release) in steps {
                let name = format!("s{who}");
                if release {
                    prop_assert_eq!(all.release(&service(&name)), holders.remove(&who).is_some());
                    continue;
                }
                all.release(&service(&name));
                holders.remove(&who);
                if let Ok(address) = allocate(&mut all, &pools, &name, &usage(port, sharing, "")) {
                    for (other, other_port, other_key) in holders.values().filter(|(a, _, _)| *a == address) {
                        prop_assert!(!sharing.is_empty() && *other_key == sharing && *other_port != port, "{}", other);
                    }
                    holders.insert(who, (address, port, sharing));
                }
            }
        }
    }
}
