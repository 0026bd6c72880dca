//! Reading back: what tables, chains, rules and elements the kernel holds.

use super::attr::{Reader, be32, be64, text};
use super::batch::{Message, SUBSYSTEM, finish_header, put_header};
use super::object::{Family, Table, Verdict};
use super::socket::{Error, Socket};
use super::{attr::Writer, userdata};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;

/// A table as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedTable {
    /// Its family and name.
    pub table: Table,
    /// The kernel's number for it; another one means that it was deleted and made anew.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
}

/// A chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedChain {
    /// Its name.
    pub name: String,
    /// Hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
}

/// A rule as the kernel holds it: which it is, not what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRule {
    /// Its chain.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
}

/// An element while it is read: it borrows from the socket's buffer, since there may be very many.
#[derive(Debug, Clone, Copy)]
pub struct ObservedElement<'a> {
    /// The key as registers hold it.
    pub key: &'a [u8],
    /// Last key of a range.
    pub key_end: Option<&'a [u8]>,
    /// The value of a data map.
    pub value: Option<&'a [u8]>,
    verdict: Option<(i32, Option<&'a str>)>,
    /// Its comment.
    pub comment: Option<&'a str>,
    /// What is left of its time.
    pub expires_ms: Option<u64>,
}

impl ObservedElement<'_> {
    /// The verdict of a verdict map.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict
            .and_then(|(code, chain)| Verdict::decode(code, chain))
    }
}

impl Socket {
    /// All tables of a family.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or permission is lacking.
    pub fn tables(&mut self, family: Family) -> Result<Vec<ObservedTable>, Error> {
        self.tables_like(&Table::new(family, ""))
    }

    /// Those that see what this one sees.
    fn tables_like(&mut self, like: &Table) -> Result<Vec<ObservedTable>, Error> {
        let mut request = request(Message::GetTable, like, |_| {});
        let found = std::cell::RefCell::new(Vec::new());
        self.dump(
            &mut request,
            "tables",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                let name = attributes.find(1).map(text).unwrap_or_default().to_string();
                found.borrow_mut().push(ObservedTable {
                    table: Table {
                        name: name.into(),
                        ..like.clone()
                    },
                    handle: attributes.find(4).and_then(be64).unwrap_or_default(),
                    comment: attributes
                        .find(6)
                        .and_then(userdata::read_comment)
                        .map(str::to_string),
                });
            },
        )?;
        Ok(found.into_inner())
    }

    /// The table, if it is there.
    ///
    /// # Errors
    /// As for [`Self::tables`].
    pub fn table(&mut self, table: &Table) -> Result<Option<ObservedTable>, Error> {
        Ok(self.tables_like(table)?.into_iter().find(|t| t.table == *table))
    }

    /// The chains of a table.
    ///
    /// # Errors
    /// As for [`Self::tables`].
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ObservedChain>, Error> {
        let mut request = request(Message::GetChain, table, |w| {
            w.text(1, &table.name);
        });
        let found = std::cell::RefCell::new(Vec::new());
        self.dump(
            &mut request,
            "chains",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                // Kernels before 6.1 list the chains of all tables.
                if attributes.find(1).map(text) != Some(&table.name) {
                    return;
                }
                let hook = attributes.find(4).and_then(|hook| {
                    let hook = Reader::new(hook);
                    Some((
                        hook.find(1).and_then(be32)?,
                        hook.find(2).and_then(be32)?.cast_signed(),
                    ))
                });
                let name = attributes.find(3).map(text).unwrap_or_default().to_string();
                found.borrow_mut().push(ObservedChain { name, hook });
            },
        )?;
        Ok(found.into_inner())
    }

    /// The rules of a table, in the order in which packets meet them within each chain.
    ///
    /// # Errors
    /// As for [`Self::tables`].
    pub fn rules(&mut self, table: &Table) -> Result<Vec<ObservedRule>, Error> {
        self.rules_in(table, None)
    }

    /// The same of one chain, or of all.
    ///
    /// # Errors
    /// As for [`Self::tables`].
    pub fn rules_in(&mut self, table: &Table, chain: Option<&str>) -> Result<Vec<ObservedRule>, Error> {
        let mut request = request(Message::GetRule, table, |w| {
            w.text(1, &table.name);
            if let Some(chain) = chain {
                w.text(2, chain);
            }
        });
        let found = std::cell::RefCell::new(Vec::new());
        self.dump(
            &mut request,
            "rules",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                if attributes.find(1).map(text) != Some(&table.name) {
                    return;
                }
                found.borrow_mut().push(ObservedRule {
                    chain: attributes.find(2).map(text).unwrap_or_default().to_string(),
                    handle: attributes.find(3).and_then(be64).unwrap_or_default(),
                    comment: attributes
                        .find(7)
                        .and_then(userdata::read_comment)
                        .map(str::to_string),
                });
            },
        )?;
        Ok(found.into_inner())
    }

    /// The names of a table's sets and maps.
    ///
    /// # Errors
    /// As for [`Self::tables`].
    pub fn sets(&mut self, table: &Table) -> Result<Vec<String>, Error> {
        let mut request = request(Message::GetSet, table, |w| {
            w.text(1, &table.name);
        });
        let found = std::cell::RefCell::new(Vec::new());
        self.dump(
            &mut request,
            "sets",
            || found.borrow_mut().clear(),
            |_, body| {
                let attributes = Reader::new(body);
                if attributes.find(1).map(text) == Some(&table.name) {
                    found
                        .borrow_mut()
                        .push(attributes.find(2).map(text).unwrap_or_default().to_string());
                }
            },
        )?;
        Ok(found.into_inner())
    }

    /// Hands each element of a set to `each`. `restart` says that the set changed meanwhile and the reading begins
    /// again: forget what came so far.
    ///
    /// # Errors
    /// As for [`Self::tables`], and when there is no such set.
    pub fn elements(
        &mut self,
        table: &Table,
        set: &str,
        restart: impl FnMut(),
        mut each: impl FnMut(ObservedElement<'_>),
    ) -> Result<(), Error> {
        let mut request = request(Message::GetSetElem, table, |w| {
            w.text(1, &table.name).text(2, set);
        });
        self.dump(
            &mut request,
            &format!("elements of {table} {set}"),
            restart,
            |_, body| {
                let list = Reader::new(body).find(3).unwrap_or_default();
                for (_, element) in Reader::new(list) {
                    if let Some(element) = read_element(element) {
                        each(element);
                    }
                }
            },
        )
    }
}

pub(super) fn read_element(bytes: &[u8]) -> Option<ObservedElement<'_>> {
    let attributes = Reader::new(bytes);
    let value = |kind| attributes.find(kind).and_then(|data| Reader::new(data).find(1));
    let verdict = attributes
        .find(2)
        .and_then(|data| Reader::new(data).find(2))
        .and_then(|verdict| {
            let verdict = Reader::new(verdict);
            Some((
                verdict.find(1).and_then(be32)?.cast_signed(),
                verdict.find(2).map(text),
            ))
        });
    Some(ObservedElement {
        key: value(1)?,
        key_end: value(10),
        value: value(2),
        verdict,
        comment: attributes.find(6).and_then(userdata::read_comment),
        expires_ms: attributes.find(5).and_then(be64),
    })
}

fn request(message: Message, table: &Table, body: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(
        &mut bytes,
        SUBSYSTEM | message as u16,
        NLM_F_REQUEST | NLM_F_DUMP,
        table.protocol(),
        0,
    );
    body(&mut Writer::new(&mut bytes));
    finish_header(&mut bytes, 0);
    bytes
}
