//! Which address families a Service has: `ipFamilyPolicy` and `ipFamilies` filled in as kube-apiserver does
//! (pkg/registry/core/service/storage/alloc.go), or what is wrong with the wish.

use serde_json::{Value, json};
use svcnet_api::types::legacy;
use svcnet_api::{FieldError, FieldPath};

use super::fields::{Family, FamilyPolicy, Fields, HEADLESS};

/// Fills in policy and families of a Service that is no ExternalName. `configured` are the cluster's families, the
/// default one first.
pub(super) fn resolve(
    new: &mut Fields,
    old: Option<&Fields>,
    configured: &[Family],
) -> Result<(), Vec<FieldError>> {
    let policy = new.policy.unwrap_or_else(|| default_policy(new, old));
    new.policy = Some(policy);
    let mut errors = Vec::new();
    if let Some(old) = old {
        release_secondary(new, old, policy, &mut errors);
    }
    check_policy(new, policy, &mut errors);
    infer_from_addresses(new, configured, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let default = configured.first().copied().unwrap_or(Family::V4);
    let dual_wanted = policy != FamilyPolicy::Single;
    let without_endpoints_of_ours = new.is_headless() && !new.has_selector;
    if !without_endpoints_of_ours {
        check_cluster(new, policy, configured)?;
    }
    if new.families.is_empty() {
        new.families.push(default);
    }
    // Without a selector nothing has to be of this cluster: both families are right even where it has only one.
    if dual_wanted
        && (without_endpoints_of_ours || configured.len() == 2)
        && let [only] = new.families[..]
    {
        new.families.push(only.other());
    }
    Ok(())
}

/// Whether the Service prefers two families and has what it had: it is not changed then just because the cluster's
/// families have.
pub(super) fn is_settled(new: &Fields, old: &Fields) -> bool {
    new.policy == Some(FamilyPolicy::Prefer)
        && new.policy == old.policy
        && new.type_ == old.type_
        && new.cluster_ips == old.cluster_ips
        && new.families == old.families
}

/// Whether addresses and families at least parse and fit each other; if not, validation has better words.
pub(super) fn is_plausible(new: &Fields) -> bool {
    let ips = &new.cluster_ips;
    if new.cluster_ip != ips.first().map(String::as_str).unwrap_or_default() {
        return false;
    }
    if ips.len() > 2 || new.families.len() > 2 || matches!(new.families[..], [a, b] if a == b) {
        return false;
    }
    if ips.iter().any(|ip| ip == HEADLESS) {
        return ips.len() == 1;
    }
    let parsed: Vec<Option<Family>> = ips.iter().map(|ip| legacy::address(ip).map(Family::of)).collect();
    let fits = |(ip, family): (&Option<Family>, &Family)| *ip == Some(*family);
    !parsed.contains(&None)
        && !matches!(parsed[..], [a, b] if a == b)
        && parsed.iter().zip(&new.families).all(fits)
}

fn default_policy(new: &Fields, old: Option<&Fields>) -> FamilyPolicy {
    if let Some(policy) = old.and_then(|old| old.policy) {
        policy
    } else if new.is_headless() && !new.has_selector {
        FamilyPolicy::Require
    } else {
        FamilyPolicy::Single
    }
}

fn release_secondary(new: &mut Fields, old: &Fields, policy: FamilyPolicy, errors: &mut Vec<FieldError>) {
    if policy == FamilyPolicy::Single {
        // With the lists untouched, the policy alone says what is meant; the first address never changes.
        if new.cluster_ips == old.cluster_ips {
            new.cluster_ips.truncate(1);
        }
        if new.families == old.families {
            new.families.truncate(1);
        }
        return;
    }
    let must = |what| format!("must be 'SingleStack' to release the secondary {what}");
    if old.cluster_ips.len() == 2 && new.cluster_ips.len() == 1 {
        errors.push(policy_error(policy, must("cluster IP")));
    }
    if old.families.len() == 2 && new.families.len() == 1 {
        errors.push(policy_error(policy, must("IP family")));
    }
}

fn check_policy(new: &Fields, policy: FamilyPolicy, errors: &mut Vec<FieldError>) {
    if policy != FamilyPolicy::Single {
        return;
    }
    let must =
        |what| format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
    if new.cluster_ips.len() == 2 {
        errors.push(policy_error(policy, must("cluster IPs")));
    }
    if new.families.len() == 2 {
        errors.push(policy_error(policy, must("IP families")));
    }
}

fn infer_from_addresses(new: &mut Fields, configured: &[Family], errors: &mut Vec<FieldError>) {
    for (index, text) in new.cluster_ips.iter().enumerate().skip(new.families.len()) {
        let Some(address) = legacy::address(text) else {
            break;
        };
        let family = Family::of(address);
        if configured.contains(&family) {
            new.families.push(family);
        } else {
            let path = FieldPath::new("spec").child("clusterIPs").index(index);
            let why = format!("{} is not configured on this cluster", family.as_str());
            errors.push(FieldError::invalid(path, json!(new.cluster_ips), why));
        }
    }
}

fn check_cluster(new: &Fields, policy: FamilyPolicy, configured: &[Family]) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if policy == FamilyPolicy::Require && configured.len() < 2 {
        errors.push(policy_error(
            policy,
            "this cluster is not configured for dual-stack services",
        ));
    }
    for (index, family) in new.families.iter().enumerate() {
        if !configured.contains(family) {
            let path = FieldPath::new("spec").child("ipFamilies").index(index);
            errors.push(FieldError::invalid(
                path,
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn policy_error(policy: FamilyPolicy, why: impl Into<String>) -> FieldError {
    let path = FieldPath::new("spec").child("ipFamilyPolicy");
    FieldError::invalid(path, Value::from(policy.as_str()), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[Family] = &[Family::V4];
    const DUAL: &[Family] = &[Family::V4, Family::V6];

    fn fields(spec: Value) -> Fields {
        let mut fields = Fields::read(&json!({"spec": spec})).unwrap();
        if let (Some(first), true) = (fields.cluster_ips.first(), fields.cluster_ip.is_empty()) {
            fields.cluster_ip = first.clone();
        }
        fields
    }

    fn resolved(spec: Value, configured: &[Family]) -> Result<(&'static str, Vec<&'static str>), String> {
        let mut new = fields(spec);
        assert!(is_plausible(&new), "{new:?}");
        resolve(&mut new, None, configured).map_err(|errors| {
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        })?;
        Ok((
            new.policy.unwrap().as_str(),
            new.families.iter().map(|f| f.as_str()).collect(),
        ))
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        let single = Ok(("SingleStack", vec!["IPv4"]));
        assert_eq!(resolved(json!({}), V4), single);
        assert_eq!(resolved(json!({}), DUAL), single);
        assert_eq!(
            resolved(json!({"clusterIPs": ["fd00::1"]}), DUAL),
            Ok(("SingleStack", vec!["IPv6"]))
        );
        let prefer = json!({"ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(
            resolved(prefer.clone(), V4),
            Ok(("PreferDualStack", vec!["IPv4"]))
        );
        assert_eq!(
            resolved(prefer, DUAL),
            Ok(("PreferDualStack", vec!["IPv4", "IPv6"]))
        );
        let six_first = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]});
        assert_eq!(
            resolved(six_first, DUAL),
            Ok(("RequireDualStack", vec!["IPv6", "IPv4"]))
        );
    }

    #[test]
    fn headless_without_selector_is_of_both_families_anywhere() {
        let none = json!({"clusterIPs": ["None"]});
        assert_eq!(resolved(none, V4), Ok(("RequireDualStack", vec!["IPv4", "IPv6"])));
        let single = json!({"clusterIPs": ["None"], "ipFamilyPolicy": "SingleStack"});
        assert_eq!(resolved(single, V4), Ok(("SingleStack", vec!["IPv4"])));
        let selecting = json!({"clusterIPs": ["None"], "selector": {"a": "b"}});
        assert_eq!(resolved(selecting, V4), Ok(("SingleStack", vec!["IPv4"])));
    }

    #[test]
    fn impossible_wishes_are_refused_in_the_real_words() {
        let require = json!({"ipFamilyPolicy": "RequireDualStack"});
        assert_eq!(
            resolved(require, V4).unwrap_err(),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
        );
        assert_eq!(
            resolved(json!({"ipFamilies": ["IPv6"]}), V4).unwrap_err(),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
        );
        assert_eq!(
            resolved(json!({"clusterIPs": ["fd00::1"]}), V4).unwrap_err(),
            "spec.clusterIPs[0]: Invalid value: []string{\"fd00::1\"}: IPv6 is not configured on this cluster"
        );
        assert_eq!(
            resolved(json!({"ipFamilies": ["IPv4", "IPv6"]}), DUAL).unwrap_err(),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when \
             multiple IP families are specified"
        );
    }

    #[test]
    fn the_second_family_goes_only_when_asked_for() {
        let dual = |policy: &str| json!({"ipFamilyPolicy": policy, "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.0.0.1", "fd00::1"]});
        let old = fields(dual("RequireDualStack"));
        let mut new = fields(dual("SingleStack"));
        resolve(&mut new, Some(&old), DUAL).unwrap();
        assert_eq!(
            (new.cluster_ips, new.families),
            (vec!["10.0.0.1".to_string()], vec![Family::V4])
        );

        let mut new = fields(
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.1"]}),
        );
        let errors = resolve(&mut new, Some(&old), DUAL).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP"
        );
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn nonsense_is_not_plausible() {
        for spec in [
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}),
            json!({"clusterIPs": ["x"]}),
            json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}),
            json!({"clusterIPs": ["None", "10.0.0.2"]}),
            json!({"clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}),
            json!({"ipFamilies": ["IPv6", "IPv6"]}),
        ] {
            assert!(!is_plausible(&fields(spec.clone())), "{spec}");
        }
    }
}
