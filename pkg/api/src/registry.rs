//! The table of kinds, and the ways to look one up.

use crate::kind::Kind;
use crate::kinds;

static KINDS: [Kind; 18] = [
    kinds::namespace::KIND,
    kinds::node::KIND,
    kinds::pod::KIND,
    kinds::service::KIND,
    kinds::endpoints::KIND,
    kinds::config_map::KIND,
    kinds::secret::KIND,
    kinds::event::KIND,
    kinds::endpoint_slice::KIND,
    kinds::lease::KIND,
    kinds::network_policy::KIND,
    kinds::ingress::KIND,
    kinds::ingress_class::KIND,
    kinds::service_cidr::KIND,
    kinds::ip_address::KIND,
    kinds::ip_address_pool::KIND,
    kinds::l2_advertisement::KIND,
    kinds::service_l2_status::KIND,
];

/// One version of one API group, as discovery lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupVersion {
    /// The group; empty for the core group.
    pub group: &'static str,
    /// The version, as in `v1`.
    pub version: &'static str,
}

impl GroupVersion {
    /// Its kinds.
    pub fn kinds(self) -> impl Iterator<Item = &'static Kind> {
        KINDS
            .iter()
            .filter(move |k| k.group == self.group && k.version == self.version)
    }

    /// `api/v1`, or `apis/discovery.k8s.io/v1`: where it lives below the server's root.
    pub fn path(self) -> String {
        let Self { group, version } = self;
        if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        }
    }
}

/// Every kind that is served.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}

/// Every group version that is served, in the order of the table.
pub fn group_versions() -> Vec<GroupVersion> {
    let mut found: Vec<GroupVersion> = Vec::new();
    for kind in &KINDS {
        let one = GroupVersion {
            group: kind.group,
            version: kind.version,
        };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// The kind behind a URL: `("discovery.k8s.io", "v1", "endpointslices")`; the core group is empty.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind that an object says it is of: `("discovery.k8s.io/v1", "EndpointSlice")`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    KINDS
        .iter()
        .find(|k| k.group == group && k.version == version && k.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_both_ways_and_stand_once() {
        for kind in kinds() {
            let by_url = by_resource(kind.group, kind.version, kind.plural).unwrap();
            let by_object = by_kind(&kind.api_version(), kind.kind).unwrap();
            assert!(
                std::ptr::eq(kind, by_url) && std::ptr::eq(kind, by_object),
                "{}",
                kind.kind
            );
            assert_eq!(kind.singular, kind.kind.to_lowercase());
        }
        assert!(by_resource("", "v1", "gadgets").is_none());
        assert!(by_kind("v2", "Pod").is_none());
    }

    #[test]
    fn group_versions_cover_the_table() {
        let all = group_versions();
        assert_eq!(
            all.iter().map(|gv| gv.kinds().count()).sum::<usize>(),
            kinds().len()
        );
        assert_eq!(all.first().unwrap().path(), "api/v1");
        assert!(all.iter().any(|gv| gv.path() == "apis/discovery.k8s.io/v1"));
    }
}
