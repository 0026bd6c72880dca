//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` of a Service must fit together, and the first address
//! never changes.

use std::net::IpAddr;

use serde_json::Value;

use super::is_headless;
use crate::field::{FieldError, FieldPath};
use crate::names;
use crate::rules::{Fields, each};

const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];

/// ValidateServiceClusterIPsRelatedFields. Whether the cluster has the families is for the allocator to say.
pub(super) fn validate(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    // Of these an ExternalName Service has none; that is checked with its type.
    if spec.text("type") == "ExternalName" {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let ips_path = path.child("clusterIPs");
    let (single, ips) = (spec.text("clusterIP"), spec.list("clusterIPs"));
    let all = || spec["clusterIPs"].clone();
    match (single, ips.first().and_then(Value::as_str)) {
        ("", None) => {}
        ("", Some(_)) => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(ips_path.clone(), all(), detail));
        }
        (_, None) => errors.push(FieldError::required(ips_path.clone(), "")),
        (single, Some(first)) if single != first => {
            errors.push(FieldError::invalid(
                ips_path.clone(),
                all(),
                "first value must match `clusterIP`",
            ));
        }
        _ => {}
    }
    errors.extend(validate_families(spec, path));
    let malformed = validate_addresses(ips, &ips_path);
    let stop = !malformed.is_empty();
    errors.extend(malformed);
    if ips.len() > 2 {
        errors.push(FieldError::invalid(
            ips_path.clone(),
            all(),
            "may only hold up to 2 values",
        ));
    }
    // Further messages about families would only confuse.
    if stop || is_headless(spec) {
        return errors;
    }
    if ips.len() > 1 && ips.iter().filter(|ip| is_v6(ip)).count() != 1 {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(ips_path.clone(), all(), detail));
    }
    for (index, (ip, family)) in ips.iter().zip(spec.list("ipFamilies")).enumerate() {
        let wanted = if *family == "IPv6" { "IPv6" } else { "IPv4" };
        if is_v6(ip) != (wanted == "IPv6") {
            let detail = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(ips_path.index(index), ip.clone(), detail));
        }
    }
    errors
}

fn validate_families(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let families = spec.list("ipFamilies");
    for (index, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(index);
        if *family != "IPv4" && *family != "IPv6" {
            errors.push(FieldError::not_supported(
                path.clone(),
                family.clone(),
                &["IPv4", "IPv6"],
            ));
        }
        if families.iter().take(index).any(|f| f == family) {
            errors.push(FieldError::duplicate(path, family.clone()));
        }
    }
    if let Some(policy) = spec["ipFamilyPolicy"].as_str().filter(|p| !POLICIES.contains(p)) {
        errors.push(FieldError::not_supported(
            path.child("ipFamilyPolicy"),
            policy,
            &POLICIES,
        ));
    }
    errors
}

fn validate_addresses(ips: &[Value], path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, ip) in ips.iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if index == 0 && ip == "None" {
            if ips.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(path.clone(), ips.to_vec(), detail));
            }
        } else {
            errors.extend(each(&path.index(index), ip, names::ip_address(ip)));
        }
    }
    errors
}

/// What may not change: validateUpgradeDowngradeClusterIPs and validateUpgradeDowngradeIPFamilies.
pub(super) fn validate_change(spec: &Value, old: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec.text("type") == "ExternalName" || old.text("type") == "ExternalName" {
        return errors;
    }
    let (headless, was_headless) = (is_headless(spec), is_headless(old));
    if headless && was_headless {
        return errors;
    }
    let single = spec.text("ipFamilyPolicy") == "SingleStack";
    let policy = path.child("ipFamilyPolicy");
    let release = |what: &str| {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        FieldError::invalid(policy.clone(), spec["ipFamilyPolicy"].clone(), detail)
    };
    let mut compare = |field: &str, what: &str| {
        let (new, old) = (spec.list(field), old.list(field));
        let path = path.child(field);
        let fault =
            |at: usize, detail: &str| FieldError::invalid(path.index(at), spec[field].clone(), detail);
        if new.is_empty() && !old.is_empty() {
            errors.push(fault(0, &format!("primary {what} can not be unset")));
        } else if new.len() == old.len() {
            let changed = new
                .iter()
                .zip(old)
                .enumerate()
                .filter(|(_, (new, old))| new != old);
            errors.extend(changed.map(|(at, _)| fault(at, "may not change once set")));
        } else {
            if !old.is_empty() && new.first() != old.first() {
                errors.push(fault(0, "may not change once set"));
            }
            if new.len() == 1 && old.len() > 1 && !single {
                errors.push(release(what));
            }
        }
    };
    compare("clusterIPs", "clusterIP");
    if headless == was_headless {
        compare("ipFamilies", "ipFamily");
    }
    errors
}

fn is_v6(ip: &Value) -> bool {
    ip.as_str()
        .and_then(|ip| ip.parse().ok())
        .is_some_and(|ip: IpAddr| ip.is_ipv6())
}
