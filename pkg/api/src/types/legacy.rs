//! Addresses and networks as Kubernetes reads them where it always has (`ParseIPSloppy` and `ParseCIDRSloppy` of k8s.io/utils/net,
//! `IsValidIPForLegacyField`): zeros may lead an octet or a prefix length, and say nothing; an IPv4 address that is written as an
//! IPv6 one is an IPv4 address. The server warns of these, and refuses them in newer fields.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// The bits of an IPv6 address before the IPv4 address that it maps (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// An address; nothing for what is none.
pub fn address(text: &str) -> Option<IpAddr> {
    let parsed: Option<IpAddr> = text.parse().ok();
    let parsed = parsed.or_else(|| plain(text).parse().ok());
    parsed.map(|address| address.to_canonical())
}

/// A network, whose host bits may be set; nothing for what is none.
pub fn network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = plain(address).parse().ok()?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length: u8 = without_zeros(length).parse().ok()?;
    let net = IpNet::new(address, length).ok()?;
    match (address.to_canonical(), address) {
        (IpAddr::V4(v4), IpAddr::V6(_)) if length >= MAPPED => {
            Ipv4Net::new(v4, length - MAPPED).ok().map(IpNet::V4)
        }
        _ => Some(net),
    }
}

/// The address with no octet that a zero leads.
fn plain(text: &str) -> Cow<'_, str> {
    // An IPv6 address may end with an IPv4 one.
    let (head, octets) = text.split_at(text.rfind(':').map_or(0, |at| at + 1));
    let is_number = |octet: &str| !octet.is_empty() && octet.bytes().all(|b| b.is_ascii_digit());
    if !octets.contains('.') || !octets.split('.').all(is_number) {
        return Cow::Borrowed(text);
    }
    let octets: Vec<&str> = octets.split('.').map(without_zeros).collect();
    Cow::Owned(format!("{head}{}", octets.join(".")))
}

fn without_zeros(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" if !digits.is_empty() => "0",
        rest => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_say_nothing_and_mapped_addresses_are_what_they_map() {
        for (text, is) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.001", Some("10.0.0.1")),
            ("0000010.0.0.1", Some("10.0.0.1")),
            ("::ffff:1.2.3.4", Some("1.2.3.4")),
            ("::ffff:01.2.3.4", Some("1.2.3.4")),
            ("2001:DB8::0:1", Some("2001:db8::1")),
            ("2001:db8::010.0.0.1", Some("2001:db8::a00:1")),
            ("256.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.", None),
            ("10.0.0.+1", None),
            ("fe80::1%lo", None),
            ("", None),
            ("x", None),
        ] {
            let parsed = address(text).map(|a| a.to_string());
            assert_eq!(parsed.as_deref(), is, "{text}");
        }
        for (text, is) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("010.1.0.0/08", Some("10.1.0.0/8")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:0:0/64", Some("::ffff:0.0.0.0/64")),
            ("2001:db8::/32", Some("2001:db8::/32")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0", None),
        ] {
            let parsed = network(text).map(|n| n.to_string());
            assert_eq!(parsed.as_deref(), is, "{text}");
        }
    }

    proptest::proptest! {
        /// What the strict parsers take is the same here.
        #[test]
        fn what_is_right_is_read_as_it_is(octets: [u8; 4], segments: [u16; 8], length in 0_u8..=32) {
            let v4 = IpAddr::from(octets);
            proptest::prop_assert_eq!(address(&v4.to_string()), Some(v4));
            let v6 = IpAddr::from(segments);
            proptest::prop_assert_eq!(address(&v6.to_string()), Some(v6.to_canonical()));
            let net = IpNet::new(v4, length).ok();
            proptest::prop_assert_eq!(network(&format!("{v4}/{length}")), net);
        }
    }
}
