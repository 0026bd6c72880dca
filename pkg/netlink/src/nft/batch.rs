//! Batches: what the kernel does as one transaction, all of it or nothing.
//!
//! A batch is the bytes that go to the kernel, written as the calls come: 400,000 elements are about 40 MB, and no
//! second copy of them exists. Element lists are cut into messages below the 64 KiB that an attribute can hold.

use std::fmt;

use super::attr::{self, Writer};
use super::object::{Chain, ChainKind, Rule, Set, Table, Verdict};
use super::userdata;
use crate::exchange::NLMSG_HEADER;

/// `NFNL_SUBSYS_NFTABLES << 8`
pub(crate) const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Netlink header and `struct nfgenmsg`.
pub(crate) const MESSAGE_HEADER: usize = NLMSG_HEADER + 4;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
/// An element list is closed when it has this many bytes; one more element, below 700 bytes, still fits the attribute.
const ELEMENT_LIST_FULL: usize = 60_000;

/// `NFT_MSG_…`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    GetGen = 16,
}

/// What an element of a map holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data<'a> {
    /// Nothing: the element of a set.
    None,
    /// The bytes of its value.
    Value(&'a [u8]),
    /// A verdict.
    Verdict(&'a Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// The key as registers hold it: see [`super::Concat`].
    pub key: &'a [u8],
    /// Last key of a range, in sets of intervals.
    pub key_end: Option<&'a [u8]>,
    /// What a map holds.
    pub data: Data<'a>,
    /// What `nft list` prints behind it.
    pub comment: Option<&'a str>,
}

impl<'a> Element<'a> {
    /// An element of a set.
    pub fn key(key: &'a [u8]) -> Self {
        Self {
            key,
            key_end: None,
            data: Data::None,
            comment: None,
        }
    }

    /// An element of a map.
    pub fn value(key: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            data: Data::Value(value),
            ..Self::key(key)
        }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(self, comment: &'a str) -> Self {
        Self {
            comment: Some(comment),
            ..self
        }
    }
}

/// A transaction in the making.
pub struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    last_message: usize,
    open_list: Option<OpenList>,
    sets: u32,
}

/// An element list that still takes elements.
struct OpenList {
    message: Message,
    table: Table,
    set: String,
    list_start: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            messages: 0,
            last_message: 0,
            open_list: None,
            sets: 0,
        };
        batch.control(BATCH_BEGIN);
        batch.messages = 0;
        batch
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// How many messages there are between the begin and the end of the batch.
    pub(crate) fn message_count(&self) -> usize {
        self.messages as usize
    }

    /// Bytes that go to the kernel.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Makes a table; one that is there stays as it is.
    pub fn add_table(&mut self, table: &Table, comment: Option<&str>) {
        self.message(Message::NewTable, NLM_F_CREATE, table, |w| {
            w.text(1, &table.name).be32(2, 0);
            if let Some(comment) = comment {
                w.raw(6, &userdata::comment(comment));
            }
        });
    }

    /// Removes a table with all that is in it; it must exist.
    pub fn delete_table(&mut self, table: &Table) {
        self.message(Message::DelTable, 0, table, |w| {
            w.text(1, &table.name);
        });
    }

    /// Removes a table whether it is there or not.
    pub fn remove_table(&mut self, table: &Table) {
        self.add_table(table, None);
        self.delete_table(table);
    }

    /// Makes a chain.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        self.message(Message::NewChain, NLM_F_CREATE, table, |w| {
            w.text(1, &table.name).text(3, &chain.name);
            if let Some(base) = chain.base {
                w.nest(4, |w| {
                    w.be32(1, base.hook as u32).raw(2, &base.priority.to_be_bytes());
                });
                // NF_ACCEPT
                w.be32(5, 1);
                w.text(
                    7,
                    match base.kind {
                        ChainKind::Filter => "filter",
                        ChainKind::Nat => "nat",
                    },
                );
            }
        });
    }

    /// Removes an empty chain that nothing refers to.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        self.message(Message::DelChain, 0, table, |w| {
            w.text(1, &table.name).text(3, chain);
        });
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.message(Message::DelRule, 0, table, |w| {
            w.text(1, &table.name).text(2, chain);
        });
    }

    /// Appends a rule to its chain.
    pub fn add_rule(&mut self, table: &Table, rule: &Rule) {
        self.message(Message::NewRule, NLM_F_CREATE | NLM_F_APPEND, table, |w| {
            w.text(1, &table.name).text(2, &rule.chain);
            w.nest(4, |w| rule.exprs.iter().for_each(|expr| expr.encode(w)));
            if let Some(comment) = &rule.comment {
                w.raw(7, &userdata::comment(comment));
            }
        });
    }

    /// Makes a set or map.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.sets += 1;
        let id = self.sets;
        self.message(Message::NewSet, NLM_F_CREATE | NLM_F_EXCL, table, |w| {
            set.encode(&table.name, id, w)
        });
    }

    /// Removes a set that no rule refers to.
    pub fn delete_set(&mut self, table: &Table, set: &str) {
        self.message(Message::DelSet, 0, table, |w| {
            w.text(1, &table.name).text(2, set);
        });
    }

    /// Removes every element of a set.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.message(Message::DelSetElem, 0, table, |w| {
            w.text(1, &table.name).text(2, set);
        });
    }

    /// Adds an element. The kernel refuses the batch when the key is there with another value.
    pub fn add_element(&mut self, table: &Table, set: &str, element: &Element<'_>) {
        self.element(Message::NewSetElem, table, set, element);
    }

    /// Adds ranges to a set of intervals whose key has one field: first and last key of each, in order and apart.
    pub fn add_ranges<'a>(
        &mut self,
        table: &Table,
        set: &str,
        ranges: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) {
        for (first, last) in ranges {
            self.element(Message::NewSetElem, table, set, &Element::key(first));
            // Such a set holds where ranges begin and where the gaps behind them do; behind the last key of all is none.
            let mut behind = last.to_vec();
            let carried = behind.iter_mut().rev().all(|byte| {
                *byte = byte.wrapping_add(1);
                *byte == 0
            });
            if !carried {
                self.boundary(table, set, &behind);
            }
        }
    }

    /// `NFT_SET_ELEM_INTERVAL_END`
    fn boundary(&mut self, table: &Table, set: &str, key: &[u8]) {
        self.make_room(Message::NewSetElem, table, set);
        let start = attr::open(&mut self.bytes, 1);
        let mut w = Writer::new(&mut self.bytes);
        w.nest(1, |w| {
            w.raw(1, key);
        })
        .be32(3, 1);
        attr::close(&mut self.bytes, start);
    }

    /// Removes an element, which must be there. A value is replaced by removing and adding in the same batch.
    pub fn delete_element(&mut self, table: &Table, set: &str, key: &[u8], key_end: Option<&[u8]>) {
        self.element(
            Message::DelSetElem,
            table,
            set,
            &Element {
                key_end,
                ..Element::key(key)
            },
        );
    }

    /// Has a list open that takes one more element.
    fn make_room(&mut self, message: Message, table: &Table, set: &str) {
        let fits = self.open_list.as_ref().is_some_and(|open| {
            open.message == message
                && open.set == set
                && open.table == *table
                && self.bytes.len() - open.list_start < ELEMENT_LIST_FULL
        });
        if !fits {
            self.open_element_list(message, table, set);
        }
    }

    fn element(&mut self, message: Message, table: &Table, set: &str, element: &Element<'_>) {
        self.make_room(message, table, set);
        let start = attr::open(&mut self.bytes, 1);
        let mut w = Writer::new(&mut self.bytes);
        w.nest(1, |w| {
            w.raw(1, element.key);
        });
        match element.data {
            Data::None => {}
            Data::Value(value) => {
                w.nest(2, |w| {
                    w.raw(1, value);
                });
            }
            Data::Verdict(verdict) => {
                w.nest(2, |w| verdict.encode(w));
            }
        }
        if let Some(comment) = element.comment {
            put_comment(&mut self.bytes, comment);
        }
        if let Some(end) = element.key_end {
            Writer::new(&mut self.bytes).nest(10, |w| {
                w.raw(1, end);
            });
        }
        attr::close(&mut self.bytes, start);
    }

    fn open_element_list(&mut self, message: Message, table: &Table, set: &str) {
        self.close_list();
        let flags = if message == Message::NewSetElem {
            NLM_F_CREATE
        } else {
            0
        };
        self.begin(SUBSYSTEM | message as u16, flags, table.protocol(), 0);
        Writer::new(&mut self.bytes).text(1, &table.name).text(2, set);
        let list_start = attr::open(&mut self.bytes, 3);
        self.open_list = Some(OpenList {
            message,
            table: table.clone(),
            set: set.to_string(),
            list_start,
        });
    }

    fn close_list(&mut self) {
        if let Some(open) = self.open_list.take() {
            attr::close(&mut self.bytes, open.list_start);
            self.end();
        }
    }

    fn message(&mut self, message: Message, flags: u16, table: &Table, body: impl FnOnce(&mut Writer<'_>)) {
        self.close_list();
        self.begin(SUBSYSTEM | message as u16, flags, table.protocol(), 0);
        body(&mut Writer::new(&mut self.bytes));
        self.end();
    }

    fn control(&mut self, kind: u16) {
        self.begin(kind, 0, 0, SUBSYSTEM >> 8);
        self.end();
    }

    fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.messages += 1;
        self.last_message = self.bytes.len();
        put_header(&mut self.bytes, kind, NLM_F_REQUEST | flags, family, resource);
    }

    fn end(&mut self) {
        finish_header(&mut self.bytes, self.last_message);
    }

    /// Ends the batch: the last message asks for an answer, which comes once the transaction is committed.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.close_list();
        if let Some(flags) = self.bytes.get_mut(self.last_message + 6..self.last_message + 8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
        self.control(BATCH_END);
        self.bytes
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("messages", &self.messages)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// Netlink header and `struct nfgenmsg`; length and sequence number follow later.
pub(crate) fn put_header(bytes: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16) {
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
}

pub(crate) fn finish_header(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Says in words what a message of a batch asks for; for errors.
pub(crate) fn describe(message: &[u8]) -> String {
    let kind = message.get(4..6).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
    let verb = match kind & 0xff {
        0 => "add table",
        2 => "delete table",
        3 => "add chain",
        5 => "delete chain",
        6 => "add rule to",
        8 => "delete rules of",
        9 => "add set",
        11 => "delete set",
        12 => "add elements to",
        14 => "delete elements of",
        _ => "message to",
    };
    if kind & 0xff00 != SUBSYSTEM {
        return "commit".to_string();
    }
    let attributes = attr::Reader::new(message.get(MESSAGE_HEADER..).unwrap_or_default());
    // The table is attribute 1 of each; the object's name is 3 for chains, 2 for rules' chains and sets.
    let object = if matches!(kind & 0xff, 3 | 5) { 3 } else { 2 };
    let named = !matches!(kind & 0xff, 0 | 2);
    let table = attributes.find(1).map(attr::text).unwrap_or_default();
    let object = attributes
        .find(object)
        .filter(|_| named)
        .map(attr::text)
        .unwrap_or_default();
    let number = message.get(NLMSG_HEADER).copied().unwrap_or_default();
    let family = match (super::Family::from_number(number), number) {
        (Some(family), _) => family.to_string(),
        (None, 7) => "bridge".to_string(),
        (None, _) => String::new(),
    };
    format!("{verb} {family} {table} {object}").trim_end().to_string()
}

fn put_comment(bytes: &mut Vec<u8>, comment: &str) {
    let length = u16::try_from(4 + userdata::element_comment_len(comment)).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&6u16.to_ne_bytes());
    userdata::put_element_comment(bytes, comment);
    let padded = bytes.len().next_multiple_of(4);
    bytes.resize(padded, 0);
}

#[cfg(test)]
mod tests {
    use super::super::Family;
    use super::*;
    use crate::exchange::messages;

    const TABLE: Table = Table::new(Family::Ip, "t");

    #[test]
    fn elements_share_messages_below_the_limit() {
        let mut batch = Batch::new();
        for number in 0..5_000u32 {
            let key = number.to_be_bytes();
            batch.add_element(
                &TABLE,
                "s",
                &Element::value(&key, &key).comment("default/some-service:http"),
            );
        }
        batch.delete_element(&TABLE, "s", &[0; 4], None);
        let bytes = batch.finish();
        let sizes: Vec<usize> = messages(&bytes).map(<[u8]>::len).collect();
        assert!((8..20).contains(&sizes.len()), "{sizes:?}");
        assert!(sizes.iter().all(|size| *size < 0xffff), "{sizes:?}");
        assert_eq!(
            sizes.iter().map(|s| s.next_multiple_of(4)).sum::<usize>(),
            bytes.len(),
            "messages fill the batch"
        );
    }

    #[test]
    fn the_last_message_before_the_end_asks_for_an_answer() {
        let mut batch = Batch::new();
        assert!(batch.is_empty());
        batch.add_table(&TABLE, None);
        batch.flush_chain(&TABLE, "c");
        assert!(!batch.is_empty());
        let bytes = batch.finish();
        let flags: Vec<u16> = messages(&bytes)
            .map(|message| u16::from_ne_bytes([message[6], message[7]]))
            .collect();
        assert_eq!(
            flags.iter().map(|f| f & NLM_F_ACK).collect::<Vec<_>>(),
            [0, 0, NLM_F_ACK, 0]
        );
    }

    #[test]
    fn messages_say_what_they_ask_for() {
        let mut batch = Batch::new();
        batch.add_chain(&TABLE, &Chain::regular("c"));
        batch.add_element(&TABLE, "s", &Element::key(&[1, 2, 3, 4]));
        let bytes = batch.finish();
        let words: Vec<String> = messages(&bytes).map(describe).collect();
        assert_eq!(
            words,
            ["commit", "add chain ip t c", "add elements to ip t s", "commit"]
        );
    }
}
