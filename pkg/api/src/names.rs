//! What names may look like, with the messages of k8s.io/apimachinery, pkg/util/validation. Every function returns the
//! messages for what is wrong, none when the name is right.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::kind::NameRule;
use crate::types::legacy;

const LABEL_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_1123: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                                 with an alphanumeric character";

/// RFC 1123 label: port names, namespaces, container names.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 63);
    if !is_label(value) {
        let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                       must start and end with an alphanumeric character";
        problems.push(regex_message(message, LABEL_1123, &["my-name", "123-abc"]));
    }
    problems
}

/// RFC 1123 subdomain: most object names.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 253);
    if !value.split('.').all(is_label) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                       '.', and must start and end with an alphanumeric character";
        problems.push(regex_message(message, SUBDOMAIN_1123, &["example.com"]));
    }
    problems
}

/// RFC 1035 label: Service names.
pub fn dns_label_1035(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 63);
    if !(is_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                       alphabetic character, and end with an alphanumeric character";
        problems.push(regex_message(message, LABEL_1035, &["my-name", "abc-123"]));
    }
    problems
}

/// `name` or `prefix/name`: label and annotation keys, load balancer classes.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_string());
            } else {
                problems.extend(
                    dns_subdomain(prefix)
                        .into_iter()
                        .map(|m| format!("prefix part {m}")),
                );
            }
            name
        }
        _ => {
            let message = regex_message(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
            return vec![format!(
                "a qualified name {message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_string());
    } else {
        problems.extend(too_long(name, 63).into_iter().map(|m| format!("name part {m}")));
    }
    if !is_qualified(name) {
        let message = regex_message(QUALIFIED_MESSAGE, QUALIFIED, &["MyName", "my.name", "123-abc"]);
        problems.push(format!("name part {message}"));
    }
    problems
}

/// Value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 63);
    if !(value.is_empty() || is_qualified(value)) {
        let message = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                       '.', and must start and end with an alphanumeric character";
        problems.push(regex_message(
            message,
            &format!("({QUALIFIED})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    problems
}

/// Key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 253);
    let right = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if value.is_empty() || !value.chars().all(right) {
        let message = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        problems.push(regex_message(
            message,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => problems.push("must not be '.'".to_string()),
        ".." => problems.push("must not be '..'".to_string()),
        _ if value.starts_with("..") => problems.push("must not start with '..'".to_string()),
        _ => {}
    }
    problems
}

/// Name of a container port (an IANA service name, RFC 6335).
pub fn port_name(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 15);
    let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if value.is_empty() || !value.chars().all(right) {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_string());
    }
    if !value.contains(|c: char| c.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_string());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".to_string());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_string());
    }
    problems
}

/// Number of a port.
pub fn port_number(value: i64) -> Vec<String> {
    if (1..=65535).contains(&value) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_string()]
    }
}

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address of either family, as it was always read (`IsValidIPForLegacyField`).
pub fn ip_address(value: &str) -> Vec<String> {
    match legacy::address(value) {
        Some(_) => Vec::new(),
        None => vec![NO_IP.to_string()],
    }
}

/// A network of either family, as it was always read (`IsValidCIDRForLegacyField`); host bits may be set.
pub fn cidr(value: &str) -> Vec<String> {
    match legacy::network(value) {
        Some(_) => Vec::new(),
        None => vec![NO_CIDR.to_string()],
    }
}

/// An address of either family in its one canonical form (`IsValidIP`).
pub fn strict_ip_address(value: &str) -> Vec<String> {
    match value.parse::<IpAddr>() {
        Ok(address) if address.to_string() == value => Vec::new(),
        Ok(address) => vec![format!("must be in canonical form (\"{address}\")")],
        Err(_) => vec![NO_IP.to_string()],
    }
}

/// A network of either family in its one canonical form, no host bits set (`IsValidCIDR`).
pub fn strict_cidr(value: &str) -> Vec<String> {
    match value.parse::<IpNet>() {
        Ok(net) if net.addr() != net.network() => {
            vec!["must not have bits set beyond the prefix length".to_string()]
        }
        Ok(net) if net.to_string() != value => vec![format!("must be in canonical form (\"{net}\")")],
        Ok(_) => Vec::new(),
        Err(_) => vec![NO_CIDR.to_string()],
    }
}

/// A host name whose first label is `*`: `*.example.com` (`IsWildcardDNS1123Subdomain`).
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut problems = too_long(value, 253);
    let rest = value.strip_prefix("*.");
    if !rest.is_some_and(|rest| rest.split('.').all(is_label)) {
        let message = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
                       consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        let regex = format!("\\*\\.{SUBDOMAIN_1123}");
        problems.push(regex_message(message, &regex, &["*.example.com"]));
    }
    problems
}

/// The path of a URL (RFC 3986), as in the names of controllers.
pub fn http_path(value: &str) -> Vec<String> {
    let right = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !value.is_empty() && value.chars().all(right) {
        return Vec::new();
    }
    vec![regex_message(
        "Invalid path",
        "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+",
        &[],
    )]
}

/// A name that can be a part of a URL's path (`IsPathSegmentName`).
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    let within = ["/", "%"].into_iter().filter(|part| value.contains(part));
    within.map(|part| format!("may not contain '{part}'")).collect()
}

/// Name of an object. With `prefix` it is a `generateName`, to which something is appended.
pub fn object_name(rule: NameRule, value: &str, prefix: bool) -> Vec<String> {
    // As in NameIsDNSLabel and its like: "abc-" is judged as "aba", for more follows it.
    let masked = match value.strip_suffix('-') {
        Some(head) if prefix && !head.is_empty() => {
            let mut head: String = head.to_string();
            head.pop();
            head + "a"
        }
        _ => value.to_string(),
    };
    match rule {
        NameRule::Label1035 => dns_label_1035(&masked),
        NameRule::Label1123 => dns_label(&masked),
        NameRule::Subdomain => dns_subdomain(&masked),
        NameRule::Address => strict_ip_address(value),
    }
}

fn is_label(value: &str) -> bool {
    let right = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = value.as_bytes();
    bytes.first().is_some_and(right)
        && bytes.last().is_some_and(right)
        && bytes.iter().all(|b| right(b) || *b == b'-')
}

fn is_qualified(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn too_long(value: &str, max: usize) -> Vec<String> {
    if value.len() > max {
        vec![format!("must be no more than {max} bytes")]
    } else {
        Vec::new()
    }
}

fn regex_message(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{regex}')",
        examples.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_real_ones() {
        assert_eq!(
            dns_label_1035("1abc"),
            [
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                 alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex \
                 used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            dns_subdomain("A_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                 and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                 validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"]);
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
    }

    #[test]
    fn right_names_pass() {
        assert!(dns_label("a-1").is_empty() && dns_subdomain("a.b-c.d").is_empty());
        assert!(qualified_name("kubernetes.io/service-name").is_empty() && label_value("").is_empty());
        assert!(config_key("tls.crt").is_empty() && port_name("http-web").is_empty());
        assert!(!port_name("80").is_empty() && !port_name("a--b").is_empty() && !config_key("..").is_empty());
        assert!(object_name(NameRule::Subdomain, "web-", true).is_empty());
        assert!(!object_name(NameRule::Subdomain, "web-", false).is_empty());
    }

    #[test]
    fn leading_zeros_are_refused_in_newer_fields_alone() {
        assert!(ip_address("10.0.0.05").is_empty() && cidr("010.0.0.0/8").is_empty());
        assert_eq!(strict_ip_address("10.0.0.05"), [NO_IP]);
        assert!(!strict_cidr("010.0.0.0/8").is_empty());
        assert_eq!(strict_cidr("10.0.0"), [NO_CIDR]);
        assert_eq!(
            strict_ip_address("2001:DB8::1"),
            ["must be in canonical form (\"2001:db8::1\")"]
        );
    }
}
