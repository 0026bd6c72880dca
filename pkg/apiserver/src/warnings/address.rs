//! Addresses and networks in a form of their own (apimachinery, pkg/util/validation/ip.go: GetWarningsForIP, GetWarningsForCIDR).

use std::net::IpAddr;

use ipnet::IpNet;
use svcnet_api::FieldPath;
use svcnet_api::types::legacy;

/// What an address says against itself, if it is one.
pub(super) fn of_address(path: &FieldPath, text: &str) -> Option<String> {
    let read = legacy::address(text)?;
    // Go's strict parser takes what Rust's does.
    match text.parse::<IpAddr>() {
        Ok(strict) if strict.to_canonical() == strict => {
            let differs = strict.is_ipv6() && strict.to_string() != text;
            differs.then(|| {
                format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{strict}\")")
            })
        }
        _ => Some(format!(
            "{path}: non-standard IP address {text:?} will be considered invalid in a future Kubernetes release: use \"{read}\""
        )),
    }
}

/// The same of a network, and of bits that its prefix leaves out.
pub(super) fn of_network(path: &FieldPath, text: &str) -> Vec<String> {
    let Some(net) = legacy::network(text) else {
        return Vec::new();
    };
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let written: Option<IpAddr> = address.parse().ok();
    let mapped = written.is_some_and(|a| a.to_canonical() != a);
    let mut warnings = Vec::new();
    if net.addr() != net.network() {
        // A mapped address has the length of an IPv6 one, in the real words too.
        let bits = if mapped { 128 } else { net.max_prefix_len() };
        warnings.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{}\" or \"{}/{bits}\"?)",
            net.trunc(),
            net.addr()
        ));
    }
    let zeros = length.len() > 1 && length.starts_with('0');
    if mapped || zeros || written.is_none() {
        warnings.push(format!(
            "{path}: non-standard CIDR value {text:?} will be considered invalid in a future Kubernetes release: use \"{}\"",
            net.trunc()
        ));
    }
    if warnings.is_empty() && matches!(net, IpNet::V6(_)) && net.to_string() != text {
        warnings.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{net}\")"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_their_own_are_told_with_the_right_one() {
        let path = FieldPath::new("p");
        for (text, words) in [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("None", None),
            (
                "010.0.0.1",
                Some(
                    "non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
                ),
            ),
            (
                "::ffff:10.0.0.1",
                Some(
                    "non-standard IP address \"::ffff:10.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
                ),
            ),
            (
                "2001:DB8::1",
                Some("IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")"),
            ),
        ] {
            assert_eq!(
                of_address(&path, text),
                words.map(|w| format!("p: {w}")),
                "{text}"
            );
        }
        for (text, words) in [
            ("10.0.0.0/8", &[][..]),
            ("x", &[]),
            (
                "10.0.0.1/8",
                &[
                    "CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                ],
            ),
            (
                "10.0.0.0/08",
                &[
                    "non-standard CIDR value \"10.0.0.0/08\" will be considered invalid in a future Kubernetes release: use \"10.0.0.0/8\"",
                ],
            ),
            (
                "010.0.0.1/8",
                &[
                    "CIDR value \"010.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)",
                    "non-standard CIDR value \"010.0.0.1/8\" will be considered invalid in a future Kubernetes release: use \"10.0.0.0/8\"",
                ],
            ),
            (
                "::ffff:10.0.0.0/104",
                &[
                    "non-standard CIDR value \"::ffff:10.0.0.0/104\" will be considered invalid in a future Kubernetes release: use \"10.0.0.0/8\"",
                ],
            ),
            (
                "FD00::/64",
                &["IPv6 CIDR value \"FD00::/64\" should be in RFC 5952 canonical format (\"fd00::/64\")"],
            ),
        ] {
            let words: Vec<String> = words.iter().map(|w| format!("p: {w}")).collect();
            assert_eq!(of_network(&path, text), words, "{text}");
        }
    }
}
