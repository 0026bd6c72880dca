//! Pods are who they say: what comes out of a pod's link must bear its Ethernet address and one of its own addresses, in
//! ARP and neighbour advertisements too. Routers are not among pods, so their advertisements and redirects are dropped
//! (RFC 4861, 4.2 and 4.5), as is whatever is neither IPv4, IPv6 nor ARP.
//!
//! ```text
//! chain prerouting   iifname . ether saddr . ip saddr @addresses accept    # nearly all: one lookup, and no more
//!                    iifname @links goto pod
//! chain pod          iifname . ether saddr != @macs drop
//!                    iifname . arp saddr ether . arp saddr ip @addresses accept
//!                    icmpv6 type { nd-router-advert, nd-redirect } drop
//!                    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
//!                    ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld2-listener-report } accept
//!                    iifname . ether saddr . ip6 saddr @addresses6 accept
//!                    drop
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use svcnet_api::types::MacAddr;
use svcnet_netlink::nft::{
    Batch, Chain, ChainKind, Concat, DataType, Element, Error, EtherType, Family, Field, Hook, Rule, Ruleset,
    Set, Socket, Table,
};

use crate::gate::Attachment;
use crate::layout::TABLE;

/// `NF_BR_PRI_NAT_DST_BRIDGED`: before anything else looks at a frame.
const PRIORITY: i32 = -300;
const BASE: &str = "prerouting";
const POD: &str = "pod";
const LINKS: Set = Set::of("links", &[DataType::IfName]).comment("the node's ends of the pods' links");
const MACS: Set =
    Set::of("macs", &[DataType::IfName, DataType::Ether]).comment("link . its pod's Ethernet address");
const ADDRESSES: Set = Set::of("addresses", &[DataType::IfName, DataType::Ether, DataType::Ipv4])
    .comment("link . its pod's addresses");
const ADDRESSES6: Set = Set::of("addresses6", &[DataType::IfName, DataType::Ether, DataType::Ipv6])
    .comment("link . its pod's addresses");
const TARGETS6: Set =
    Set::of("targets6", &[DataType::IfName, DataType::Ipv6]).comment("link . what its pod may say to have");

/// `ND_ROUTER_SOLICIT` and what follows it; `ICMPV6_MLD2_REPORT`
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

/// An element of one of the sets: name and key.
type Pin = (&'static str, Vec<u8>);

/// The table.
pub fn table() -> Table {
    Table::bridge(TABLE)
}

/// What of the table is the same whatever pods there are.
pub fn ruleset() -> Ruleset {
    let ruleset = Ruleset::new(table(), "svcnet pods are who they say")
        .set(LINKS)
        .set(MACS)
        .set(ADDRESSES)
        .set(ADDRESSES6)
        .set(TARGETS6)
        .chain(Chain::base(BASE, ChainKind::Filter, Hook::Prerouting, PRIORITY))
        .chain(Chain::regular(POD))
        .rule(
            Rule::new(BASE)
                .ether_type(EtherType::Ip)
                .in_set(
                    Family::Ip,
                    &[Field::InLink, Field::EtherSaddr, Field::Saddr],
                    "addresses",
                )
                .accept()
                .comment("IPv4 of pods from their own addresses"),
        )
        .rule(
            Rule::new(BASE)
                .in_set(Family::Ip, &[Field::InLink], "links")
                .goto(POD)
                .comment("frames of pods"),
        );
    let rules = ipv4_rules().into_iter().chain(ipv6_rules());
    let all_else = Rule::new(POD).counter().drop().comment("all else");
    rules.chain([all_else]).fold(ruleset, Ruleset::rule)
}

fn ipv4_rules() -> [Rule; 2] {
    [
        Rule::new(POD)
            .not_in_set(Family::Ip, &[Field::InLink, Field::EtherSaddr], "macs")
            .counter()
            .drop()
            .comment("another's Ethernet address"),
        Rule::new(POD)
            .ether_type(EtherType::Arp)
            .in_set(
                Family::Ip,
                &[Field::InLink, Field::ArpSaddrEther, Field::ArpSaddrIp],
                "addresses",
            )
            .accept()
            .comment("ARP for its own address"),
    ]
}

fn ipv6_rules() -> Vec<Rule> {
    let pod = || Rule::new(POD).ether_type(EtherType::Ip6);
    let routers = [ROUTER_ADVERT, REDIRECT].map(|type_| {
        let rule = pod().icmpv6(type_).counter().drop();
        rule.comment("pods are no routers")
    });
    let another = pod()
        .icmpv6(NEIGHBOUR_ADVERT)
        .not_in_set(Family::Ip6, &[Field::InLink, Field::NdTarget], "targets6")
        .counter()
        .drop()
        .comment("another's address");
    let nobody = [NEIGHBOUR_SOLICIT, ROUTER_SOLICIT, MLD2_REPORT].map(|type_| {
        let rule = pod().from_nobody().icmpv6(type_).accept();
        rule.comment("who has no address yet")
    });
    let own = pod()
        .in_set(
            Family::Ip6,
            &[Field::InLink, Field::EtherSaddr, Field::Saddr],
            "addresses6",
        )
        .accept()
        .comment("IPv6 from its own address");
    routers
        .into_iter()
        .chain([another])
        .chain(nobody)
        .chain([own])
        .collect()
}

/// The link-local address that follows from an Ethernet address (RFC 4291, appendix A).
fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    octets.into()
}

/// The elements of an attachment.
fn pins(attachment: &Attachment) -> Vec<Pin> {
    let Attachment { link, addresses, .. } = attachment;
    let Some(mac) = &attachment.mac else {
        return Vec::new();
    };
    let at = || Concat::new().link(link);
    let mut pins = vec![("links", at()), ("macs", at().ether(mac.octets()))];
    for address in addresses.iter().copied().chain([IpAddr::V6(link_local(*mac))]) {
        let from = at().ether(mac.octets()).ip(address);
        if address.is_ipv4() {
            pins.push(("addresses", from));
        } else {
            pins.extend([("addresses6", from), ("targets6", at().ip(address))]);
        }
    }
    let bytes = pins.into_iter().map(|(set, key)| (set, key.as_bytes().to_vec()));
    bytes.collect()
}

/// All elements of these attachments.
fn desired<'a>(attachments: impl IntoIterator<Item = &'a Attachment>) -> BTreeSet<Pin> {
    attachments.into_iter().flat_map(pins).collect()
}

/// The kernel's side: what it was last told.
#[derive(Debug, Default)]
pub struct Pins {
    /// Nothing is known of what it holds, where there is none.
    told: Option<BTreeSet<Pin>>,
}

impl Pins {
    /// Makes the kernel pin exactly these, and says how much had to change.
    ///
    /// # Errors
    /// When the kernel refuses; the next call makes all anew.
    pub fn set<'a>(
        &mut self,
        socket: &mut Socket,
        attachments: impl IntoIterator<Item = &'a Attachment>,
    ) -> Result<usize, Error> {
        let wanted = desired(attachments);
        let mut batch = Batch::new();
        let former = match self.told.take() {
            Some(told) => told,
            None if holds(socket, &wanted)? => wanted.clone(),
            None => {
                batch.remove_table(&table());
                ruleset().create(&mut batch);
                BTreeSet::new()
            }
        };
        let mut count = 0;
        for (set, key) in former.difference(&wanted) {
            batch.delete_element(&table(), set, key, None);
            count += 1;
        }
        for (set, key) in wanted.difference(&former) {
            batch.add_element(&table(), set, &Element::key(key));
            count += 1;
        }
        socket.commit(batch)?;
        self.told = Some(wanted);
        Ok(count)
    }

    /// Whether the kernel still holds what it was told.
    ///
    /// # Errors
    /// When it can not be asked.
    pub fn is_intact(&mut self, socket: &mut Socket) -> Result<bool, Error> {
        let Some(told) = &self.told else { return Ok(true) };
        let intact = holds(socket, told)?;
        if !intact {
            self.told = None;
        }
        Ok(intact)
    }
}

fn holds(socket: &mut Socket, wanted: &BTreeSet<Pin>) -> Result<bool, Error> {
    if !ruleset().holds(socket, |_| false)? {
        return Ok(false);
    }
    let found = RefCell::new(BTreeSet::new());
    for set in ["links", "macs", "addresses", "addresses6", "targets6"] {
        let of_set = RefCell::new(BTreeSet::new());
        socket.elements(
            &table(),
            set,
            || of_set.borrow_mut().clear(),
            |element| {
                of_set.borrow_mut().insert((set, element.key.to_vec()));
            },
        )?;
        found.borrow_mut().extend(of_set.into_inner());
    }
    Ok(found.into_inner() == *wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_link_local_address_of_its_ethernet_address() {
        let mac = MacAddr::new([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02]);
        assert_eq!(link_local(mac).to_string(), "fe80::858:aff:fef4:102");
    }
}
