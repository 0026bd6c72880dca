//! Tables that are declared once and hold no state: ours in full, or not there.
//!
//! ```no_run
//! use svcnet_netlink::nft::{self, Chain, ChainKind, Hook, Rule, Ruleset, Socket, Table};
//!
//! # fn main() -> Result<(), nft::Error> {
//! let table = Table::new(nft::Family::Ip, "svcnet-overlay");
//! let ruleset = Ruleset::new(table, "svcnet overlay")
//!     .chain(Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, nft::PRIORITY_SRCNAT))
//!     .rule(Rule::new("postrouting").out_link("eth0").masquerade().comment("pods leave the cluster"));
//! let changed = Socket::open()?.ensure(&ruleset)?;
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::batch::Batch;
use super::object::{Chain, Rule, Set, Table};
use super::socket::{Error, Socket};

/// A table with its sets, chains and rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ruleset {
    table: Table,
    comment: &'static str,
    sets: Vec<Set>,
    chains: Vec<Chain>,
    open_chains: Vec<Chain>,
    rules: Vec<Rule>,
}

impl Ruleset {
    /// An empty table, with a word on whose it is.
    pub fn new(table: Table, comment: &'static str) -> Self {
        Self {
            table,
            comment,
            sets: Vec::new(),
            chains: Vec::new(),
            open_chains: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// With a set or map; what is in it is not part of the declaration.
    #[must_use]
    pub fn set(mut self, set: Set) -> Self {
        self.sets.push(set);
        self
    }

    /// With a chain.
    #[must_use]
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chains.push(chain);
        self
    }

    /// With a chain whose rules are not part of the declaration.
    #[must_use]
    pub fn open_chain(mut self, chain: Chain) -> Self {
        self.open_chains.push(chain);
        self
    }

    /// With a rule, behind the others of its chain.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The chains.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// What the table's comment says: whose it is, and a fingerprint of all that is declared. Another fingerprint is
    /// another version, or other settings.
    pub fn signature(&self) -> String {
        // DefaultHasher::new() is SipHash with fixed keys: the same number in each process of one build. Another build
        // may differ, which costs one rewrite of the table.
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{} #{:016x}", self.comment, hasher.finish())
    }

    /// Appends the making of it all to a batch. The table must not be there.
    pub fn create(&self, batch: &mut Batch) {
        self.create_without(batch, |_| false);
    }

    /// The same but for rules that are to come later, by [`Self::add_rules`].
    pub fn create_without(&self, batch: &mut Batch, later: impl Fn(&Rule) -> bool) {
        batch.add_table(&self.table, Some(&self.signature()));
        for set in &self.sets {
            batch.add_set(&self.table, set);
        }
        for chain in self.chains.iter().chain(&self.open_chains) {
            batch.add_chain(&self.table, chain);
        }
        self.add_rules(batch, |rule| !later(rule));
    }

    /// Appends the making of some of the rules to a batch, each behind those that are in its chain already.
    pub fn add_rules(&self, batch: &mut Batch, which: impl Fn(&Rule) -> bool) {
        for rule in self.rules.iter().filter(|rule| which(rule)) {
            batch.add_rule(&self.table, rule);
        }
    }

    /// Whether the kernel holds what is declared: the table with its signature, each set, each chain on its hook, and
    /// in each chain these rules and no other, recognised by their comments. Chains beyond the declared ones are
    /// `extra`'s to judge.
    ///
    /// # Errors
    /// When the kernel can not be asked.
    pub fn holds(&self, socket: &mut Socket, extra: impl Fn(&str) -> bool) -> Result<bool, Error> {
        let signature = self.signature();
        let there = socket
            .table(&self.table)?
            .is_some_and(|t| t.comment.as_deref() == Some(&signature));
        if !there {
            return Ok(false);
        }
        let sets = socket.sets(&self.table)?;
        let chains = socket.chains(&self.table)?;
        let declared = || self.chains.iter().chain(&self.open_chains);
        let chains_right = declared().all(|chain| {
            let hook = chain.base.map(|base| (base.hook as u32, base.priority));
            chains.iter().any(|c| c.name == chain.name && c.hook == hook)
        });
        let no_others = chains
            .iter()
            .all(|c| declared().any(|d| d.name == c.name) || extra(&c.name));
        if !chains_right || !no_others || !self.sets.iter().all(|set| sets.contains(&set.name.to_string())) {
            return Ok(false);
        }
        let mut wanted: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
        for rule in &self.rules {
            wanted
                .entry(&rule.chain)
                .or_default()
                .push(rule.comment.as_deref());
        }
        let rules = socket.rules(&self.table)?;
        let mut found: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
        for rule in rules
            .iter()
            .filter(|r| self.chains.iter().any(|c| c.name == r.chain))
        {
            found
                .entry(&rule.chain)
                .or_default()
                .push(rule.comment.as_deref());
        }
        Ok(wanted == found)
    }
}

impl Socket {
    /// Makes the table what is declared, and says whether anything had to change. It is replaced as a whole, in one
    /// transaction.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure(&mut self, ruleset: &Ruleset) -> Result<bool, Error> {
        if ruleset.holds(self, |_| false)? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.remove_table(&ruleset.table);
        ruleset.create(&mut batch);
        self.commit(batch)?;
        Ok(true)
    }

    /// Removes a table if it is there, and says whether it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, table: &Table) -> Result<bool, Error> {
        if self.table(table)?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.remove_table(table);
        self.commit(batch)?;
        Ok(true)
    }
}
