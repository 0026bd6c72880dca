//! What is to be written about an address, or about a range that is on its way out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Cidr, Mirrored, Plan};
use crate::view::{ObjectKey, Version};

/// `holder` is the Service that has the address, `is` the IPAddress of its name.
pub(super) fn address(
    address: IpAddr,
    holder: Option<&ObjectKey>,
    is: Option<(&Mirrored, &Version)>,
) -> Option<Plan> {
    match (holder, is) {
        (Some(service), None) => Some(Plan::Make {
            address,
            service: service.clone(),
        }),
        // Whose it is cannot be changed: it is made anew once this one is gone.
        (holder, Some((Mirrored { service: Some(said) }, version))) if holder != Some(said) => {
            Some(Plan::Remove {
                address,
                version: version.clone(),
            })
        }
        _ => None,
    }
}

/// `in_use` are the addresses that somebody has.
pub(super) fn cidr(
    name: &String,
    version: &Version,
    all: &BTreeMap<&String, &Cidr>,
    mut in_use: impl Iterator<Item = IpAddr>,
) -> Option<Plan> {
    let cidr = all.get(name)?;
    let finalizers = cidr.other_finalizers.as_ref().filter(|_| cidr.ends)?;
    let lies_in = |cidr: &Cidr, address: IpAddr| cidr.nets.iter().any(|net| net.contains(&address));
    let others = || all.iter().filter(|(other, cidr)| **other != name && !cidr.ends);
    let needed =
        in_use.any(|address| lies_in(cidr, address) && !others().any(|(_, other)| lies_in(other, address)));
    if !needed {
        return Some(Plan::LetGo {
            cidr: name.clone(),
            version: version.clone(),
            finalizers: finalizers.clone(),
        });
    }
    (!cidr.told).then(|| Plan::SayTerminating { cidr: name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn said(name: &str) -> Mirrored {
        Mirrored {
            service: Some(key(name)),
        }
    }

    #[test]
    fn an_address_is_said_to_be_whose_it_is() {
        let (ip, version) = ("10.96.0.7".parse().unwrap(), Version::default());
        let make = address(ip, Some(&key("web")), None);
        assert_eq!(make.unwrap().to_string(), "say that default/web has 10.96.0.7");
        let (web, foreign) = (said("web"), Mirrored { service: None });
        assert_eq!(address(ip, Some(&key("web")), Some((&web, &version))), None);
        for other in [Some(key("other")), None] {
            let remove = address(ip, other.as_ref(), Some((&web, &version)));
            assert_eq!(remove.unwrap().to_string(), "take back who has 10.96.0.7");
            assert_eq!(address(ip, other.as_ref(), Some((&foreign, &version))), None);
        }
        assert_eq!(address(ip, None, None), None);
    }

    #[test]
    fn a_range_goes_when_nothing_needs_it() {
        let range = |net: &str, ends: bool| Cidr {
            nets: vec![net.parse().unwrap()],
            ends,
            other_finalizers: Some(vec!["example.com/keep".to_string()]),
            told: false,
        };
        let (name, wider) = ("more".to_string(), "wider".to_string());
        let ending = range("10.1.0.0/24", true);
        let mut all = BTreeMap::from([(&name, &ending)]);
        let used: [IpAddr; 2] = ["10.96.0.1".parse().unwrap(), "10.1.0.7".parse().unwrap()];
        let plan = |all: &BTreeMap<&String, &Cidr>, used: &[IpAddr]| {
            cidr(&name, &Version::default(), all, used.iter().copied())
        };
        assert_eq!(
            plan(&all, &used),
            Some(Plan::SayTerminating { cidr: name.clone() })
        );
        let let_go = Some(Plan::LetGo {
            cidr: name.clone(),
            version: Version::default(),
            finalizers: vec!["example.com/keep".to_string()],
        });
        assert_eq!(plan(&all, &used[..1]), let_go);
        let other = range("10.0.0.0/8", false);
        all.insert(&wider, &other);
        assert_eq!(plan(&all, &used), let_go);
        let told = Cidr {
            told: true,
            ..ending.clone()
        };
        assert_eq!(plan(&BTreeMap::from([(&name, &told)]), &used), None);
        let alive = range("10.1.0.0/24", false);
        assert_eq!(plan(&BTreeMap::from([(&name, &alive)]), &[]), None);
    }
}
