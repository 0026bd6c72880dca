//! A table as the kernel holds it, in full and for reading: as text in the words of `nft`, or as its JSON
//! (libnftables-json(5)). Neither needs the `nft` program.
//!
//! Everything is read back from the kernel, nothing is taken from a declaration: what somebody else has put into the
//! table shows too. Expressions that svcnet never writes are named and not explained.
//!
//! Both forms are made of one tree, which is nft's JSON: `rule.rs` and `set.rs` make it out of the kernel's attributes,
//! `text.rs` writes it as `nft list table` would, one element to a line and in order.

mod rule;
mod set;
mod text;

use std::cell::RefCell;

use serde_json::{Value, json};

use super::attr::{Reader, Writer, be32, be64, text as name_of};
use super::batch::{Message, SUBSYSTEM, finish_header, put_header};
use super::object::{Family, Table};
use super::socket::{Error, Socket};
use super::userdata;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;

/// A table with all that is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    table: Table,
    comment: Option<String>,
    handle: u64,
    sets: Vec<Value>,
    chains: Vec<Value>,
    rules: Vec<Value>,
}

impl Listing {
    /// The objects, as in the list `nftables` of nft's JSON.
    pub fn objects(&self) -> impl Iterator<Item = Value> + '_ {
        let mut table =
            json!({"family": self.table.family.to_string(), "name": self.table.name, "handle": self.handle});
        if let Some(comment) = &self.comment {
            table["comment"] = json!(comment);
        }
        let rest = self.sets.iter().chain(&self.chains).chain(&self.rules);
        std::iter::once(json!({"table": table})).chain(rest.cloned())
    }
}

impl Socket {
    /// Reads a table in full; nothing when it is not there.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn listing(&mut self, table: &Table) -> Result<Option<Listing>, Error> {
        let Some(there) = self.table(table)? else {
            return Ok(None);
        };
        let mut sets = self.set_headers(table)?;
        for header in &mut sets {
            self.fill(table, header)?;
        }
        Ok(Some(Listing {
            table: table.clone(),
            comment: there.comment,
            handle: there.handle,
            sets: sets.into_iter().map(set::Header::into_json).collect(),
            chains: self.listed_chains(table)?,
            rules: self.listed_rules(table)?,
        }))
    }

    fn set_headers(&mut self, table: &Table) -> Result<Vec<set::Header>, Error> {
        let found = RefCell::new(Vec::new());
        self.dump(
            &mut request(Message::GetSet, table),
            "sets",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                if attributes.find(1).map(name_of) == Some(&table.name) {
                    found
                        .borrow_mut()
                        .extend(set::Header::read(table.family, &attributes));
                }
            },
        )?;
        Ok(found.into_inner())
    }

    fn fill(&mut self, table: &Table, header: &mut set::Header) -> Result<(), Error> {
        let found = RefCell::new(Vec::new());
        self.elements(
            table,
            &header.name.clone(),
            || found.borrow_mut().clear(),
            |element| found.borrow_mut().push(header.element(&element)),
        )?;
        header.elements = found.into_inner();
        Ok(())
    }

    fn listed_chains(&mut self, table: &Table) -> Result<Vec<Value>, Error> {
        let found = RefCell::new(Vec::new());
        self.dump(
            &mut request(Message::GetChain, table),
            "chains",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                if attributes.find(1).map(name_of) == Some(&table.name) {
                    found.borrow_mut().push(chain(table, &attributes));
                }
            },
        )?;
        Ok(found.into_inner())
    }

    fn listed_rules(&mut self, table: &Table) -> Result<Vec<Value>, Error> {
        let found = RefCell::new(Vec::new());
        self.dump(
            &mut request(Message::GetRule, table),
            "rules",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                if attributes.find(1).map(name_of) != Some(&table.name) {
                    return;
                }
                let mut rule = json!({
                    "family": table.family.to_string(),
                    "table": table.name,
                    "chain": attributes.find(2).map(name_of).unwrap_or_default(),
                    "handle": attributes.find(3).and_then(be64).unwrap_or_default(),
                    "expr": rule::statements(table.family, attributes.find(4).unwrap_or_default()),
                });
                if let Some(comment) = attributes.find(7).and_then(userdata::read_comment) {
                    rule["comment"] = json!(comment);
                }
                found.borrow_mut().push(json!({ "rule": rule }));
            },
        )?;
        Ok(found.into_inner())
    }
}

/// Reads the body of a message as each thing that a listing is made of, and prints what comes out.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(body: &[u8]) {
    use super::dump::read_element;

    for family in [Family::Ip, Family::Ip6] {
        let (table, attributes) = (Table::new(family, "any"), Reader::new(body));
        let mut sets = Vec::new();
        if let Some(mut header) = set::Header::read(family, &attributes) {
            let elements = Reader::new(body).filter_map(|(_, element)| read_element(element));
            header.elements = elements.map(|element| header.element(&element)).collect();
            sets.push(header.into_json());
        }
        let chain = chain(&table, &attributes);
        let expressions = rule::statements(family, body);
        let rule = json!({"rule": {"chain": chain["chain"]["name"], "expr": expressions}});
        let listing = Listing {
            table,
            comment: userdata::read_comment(body).map(str::to_string),
            handle: 0,
            sets,
            chains: vec![chain],
            rules: vec![rule],
        };
        drop((listing.to_string(), listing.objects().count()));
    }
}

fn request(message: Message, table: &Table) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(
        &mut bytes,
        SUBSYSTEM | message as u16,
        NLM_F_REQUEST | NLM_F_DUMP,
        table.protocol(),
        0,
    );
    Writer::new(&mut bytes).text(1, &table.name);
    finish_header(&mut bytes, 0);
    bytes
}

fn chain(table: &Table, attributes: &Reader<'_>) -> Value {
    let mut chain = json!({
        "family": table.family.to_string(),
        "table": table.name,
        "name": attributes.find(3).map(name_of).unwrap_or_default(),
        "handle": attributes.find(2).and_then(be64).unwrap_or_default(),
    });
    if let Some(hook) = attributes.find(4).map(Reader::new) {
        let number = hook.find(1).and_then(be32);
        let priority = hook.find(2).and_then(be32).unwrap_or_default().cast_signed();
        chain["type"] = json!(attributes.find(7).map(name_of).unwrap_or_default());
        chain["hook"] = json!(hook_name(number));
        chain["prio"] = json!(priority);
        // NF_DROP is 0.
        let drops = attributes.find(5).and_then(be32) == Some(0);
        chain["policy"] = json!(if drops { "drop" } else { "accept" });
    }
    json!({ "chain": chain })
}

fn hook_name(number: Option<u32>) -> &'static str {
    match number {
        Some(0) => "prerouting",
        Some(1) => "input",
        Some(2) => "forward",
        Some(3) => "output",
        Some(4) => "postrouting",
        _ => "unknown",
    }
}

/// Protocols by their names, others by their numbers.
fn protocol(number: u8) -> Value {
    match number {
        1 => json!("icmp"),
        6 => json!("tcp"),
        17 => json!("udp"),
        58 => json!("ipv6-icmp"),
        132 => json!("sctp"),
        other => json!(other),
    }
}

/// `meta priority` as `nft` writes it: `major:minor`, in hexadecimal.
fn class_id(number: u32) -> Value {
    match (number >> 16, number & 0xffff) {
        (0, 0) => json!("none"),
        (0xffff, 0xffff) => json!("root"),
        (major, minor) => json!(format!("{major:x}:{minor:x}")),
    }
}

/// An address of a family.
fn address(family: Family, bytes: &[u8]) -> Value {
    let four = <[u8; 4]>::try_from(bytes.get(..4).unwrap_or_default()).map(std::net::IpAddr::from);
    let sixteen = <[u8; 16]>::try_from(bytes.get(..16).unwrap_or_default()).map(std::net::IpAddr::from);
    let found = match family {
        Family::Ip => four.ok(),
        Family::Ip6 => sixteen.ok(),
    };
    found.map_or_else(|| hex(bytes), |address| json!(address.to_string()))
}

/// Bytes that nothing is known about.
fn hex(bytes: &[u8]) -> Value {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    json!(format!("0x{digits}"))
}
