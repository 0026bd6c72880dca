//! ServiceCIDR: networks that ClusterIPs come from (KEP-1880). Words are those of kube-apiserver
//! (pkg/apis/networking/validation).

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::columns::{AGE, NAME, column};
use crate::field::{FieldError, FieldPath};
use crate::kind::{Column, Kind, NameRule};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each};

const IMMUTABLE: &str = "field is immutable";

pub(crate) const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    singular: "servicecidr",
    short_names: &[],
    categories: &[],
    namespaced: false,
    status: true,
    volatile: false,
    selectable_fields: &[],
    columns: &COLUMNS,
    default,
    validate,
    name_rule: NameRule::Subdomain,
};

const COLUMNS: [Column; 3] = [
    NAME,
    column(
        "CIDRs",
        "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to assign \
         service cluster IPs. Max of two CIDRs is allowed, one of each IP family. This field is immutable.",
        |cidr, _| json!(texts(&cidr["spec"]).join(",")),
    ),
    AGE,
];

fn texts(spec: &Value) -> Vec<&str> {
    spec.list("cidrs").iter().filter_map(Value::as_str).collect()
}

fn default(_new: &mut Value, _old: Option<&Value>) {}

fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let path = FieldPath::new("spec").child("cidrs");
    let is = texts(&new["spec"]);
    let Some(old) = old else {
        errors.extend(validate_networks(&path, &is));
        return errors;
    };
    let was = texts(&old["spec"]);
    match (was.len(), is.len()) {
        (a, b) if a == b => {
            for (index, (was, is)) in was.iter().zip(&is).enumerate() {
                if was != is {
                    errors.push(FieldError::invalid(path.index(index), *is, IMMUTABLE));
                }
            }
        }
        // A second family may be added (kubernetes issue 131261).
        (1, 2) => {
            if was.first() != is.first() {
                errors.push(FieldError::invalid(
                    path.index(0),
                    is.first().copied().unwrap_or_default(),
                    IMMUTABLE,
                ));
            }
            errors.extend(validate_networks(&path, &is));
        }
        _ => errors.push(FieldError::invalid(path, json!(is), IMMUTABLE)),
    }
    errors
}

/// `validateServiceCIDRSpec`
fn validate_networks(path: &FieldPath, texts: &[&str]) -> Vec<FieldError> {
    if texts.is_empty() {
        return vec![FieldError::required(path.clone(), "at least one CIDR required")];
    }
    let quoted: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    let spec = format!(
        "networking.ServiceCIDRSpec{{CIDRs:[]string{{{}}}}}",
        quoted.join(", ")
    );
    if texts.len() > 2 {
        return vec![FieldError::invalid_struct(
            path.clone(),
            spec,
            "may only hold up to 2 values",
        )];
    }
    let nets: Vec<Option<IpNet>> = texts.iter().map(|t| t.parse().ok()).collect();
    if let [Some(IpNet::V4(_)), Some(IpNet::V4(_))] | [Some(IpNet::V6(_)), Some(IpNet::V6(_))] = nets[..] {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96";
        return vec![FieldError::invalid_struct(path.clone(), spec, detail)];
    }
    let mut errors = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        errors.extend(each(&path.index(index), text, names::strict_cidr(text)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(cidrs: &[&str]) -> Value {
        json!({"metadata": {"name": "more"}, "spec": {"cidrs": cidrs}})
    }

    fn words(cidrs: &[&str], old: Option<&[&str]>) -> Vec<String> {
        let errors = validate(&cidr(cidrs), old.map(cidr).as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_network_of_each_family() {
        for right in [
            &["10.1.0.0/24"][..],
            &["fd00::/112", "10.1.0.0/24"],
            &["fd00::/64"],
        ] {
            assert_eq!(words(right, None), [""; 0]);
        }
        for (wrong, wanted) in [
            (&[][..], "spec.cidrs: Required value: at least one CIDR required"),
            (
                &["10.1.0.0/24", "10.2.0.0/24"],
                "spec.cidrs: Invalid value: networking.ServiceCIDRSpec{CIDRs:[]string{\"10.1.0.0/24\", \"10.2.0.0/24\"}}: may \
                 specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96",
            ),
            (
                &["10.1.0.0/24", "fd00::/112", "10.2.0.0/24"],
                "spec.cidrs: Invalid value: networking.ServiceCIDRSpec{CIDRs:[]string{\"10.1.0.0/24\", \"fd00::/112\", \
                 \"10.2.0.0/24\"}}: may only hold up to 2 values",
            ),
            (
                &["10.1.0.0"],
                "spec.cidrs[0]: Invalid value: \"10.1.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
                 2001:db8::/64)",
            ),
            (
                &["10.1.0.7/24"],
                "spec.cidrs[0]: Invalid value: \"10.1.0.7/24\": must not have bits set beyond the prefix length",
            ),
            (
                &["FD00::/112"],
                "spec.cidrs[0]: Invalid value: \"FD00::/112\": must be in canonical form (\"fd00::/112\")",
            ),
        ] {
            assert_eq!(words(wrong, None), [wanted]);
        }
    }

    #[test]
    fn networks_stay_but_a_second_family_may_come() {
        let old = &["10.1.0.0/24"][..];
        assert_eq!(words(old, Some(old)), [""; 0]);
        assert_eq!(words(&["10.1.0.0/24", "fd00::/112"], Some(old)), [""; 0]);
        assert_eq!(
            words(&["10.2.0.0/24"], Some(old)),
            ["spec.cidrs[0]: Invalid value: \"10.2.0.0/24\": field is immutable"]
        );
        assert_eq!(
            words(&[], Some(old)),
            ["spec.cidrs: Invalid value: []string{}: field is immutable"]
        );
    }
}
