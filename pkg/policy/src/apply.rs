//! Carries plans out, one transaction each, and reads back what the kernel holds.

use std::collections::{BTreeMap, BTreeSet};

use svcnet_netlink::nft::{
    Batch, Concat, Element as NftElement, Error, Family, Fields, Rule, Socket, Verdict, comment_kept,
};

use crate::desired::{Content, Element, Entry};
use crate::layout::{self, RELAYS, map, pods, selves, table};
use crate::model::Direction;
use crate::plan::{Op, Plan};

/// Appends a plan to a transaction.
fn append(plan: &Plan, batch: &mut Batch) {
    for (family, op) in &plan.ops {
        append_op(*family, op, batch);
    }
}

fn append_op(family: Family, op: &Op, batch: &mut Batch) {
    let table = table(family);
    match op {
        Op::AddSet(set) => layout::add_set(batch, family, set),
        Op::DeleteSet(set) => batch.delete_set(&table, set),
        Op::AddElement(set, element) => {
            let key = layout::element_key(*element);
            batch.add_element(&table, set, &NftElement::key(key.as_bytes()));
        }
        Op::DeleteElement(set, element) => {
            batch.delete_element(&table, set, layout::element_key(*element).as_bytes(), None);
        }
        Op::AddChain(chain) => {
            batch.add_chain(&table, &svcnet_netlink::nft::Chain::regular(chain.to_string()));
        }
        Op::FlushChain(chain) => batch.flush_chain(&table, chain),
        Op::SetRules(chain) => layout::rules(family, chain).for_each(|rule| batch.add_rule(&table, &rule)),
        Op::Hook(direction) => {
            batch.add_chain(&table, &layout::base(*direction));
            for rule in layout::base_rules(family, *direction) {
                batch.add_rule(&table, &rule);
            }
        }
        Op::Unhook(direction) => {
            batch.flush_chain(&table, map(*direction));
            batch.delete_chain(&table, map(*direction));
        }
        Op::DeleteChain(chain) => batch.delete_chain(&table, chain),
        Op::Isolate(direction, address) => {
            batch.add_element(
                &table,
                pods(*direction),
                &NftElement::key(Concat::new().ip(*address).as_bytes()),
            );
            let itself = layout::self_key(*address);
            batch.add_element(&table, selves(*direction), &NftElement::key(itself.as_bytes()));
        }
        Op::Unisolate(direction, address) => {
            batch.delete_element(
                &table,
                pods(*direction),
                Concat::new().ip(*address).as_bytes(),
                None,
            );
            batch.delete_element(
                &table,
                selves(*direction),
                layout::self_key(*address).as_bytes(),
                None,
            );
        }
        Op::Judge(direction, address, chain) => layout::judge(batch, *direction, *address, chain),
        Op::Unjudge(direction, address) => {
            batch.delete_element(
                &table,
                map(*direction),
                Concat::new().ip(*address).as_bytes(),
                None,
            );
        }
    }
}

/// Carries out what has changed. An empty plan is not sent.
///
/// # Errors
/// When the kernel refuses; then nothing of it happened.
pub fn change(socket: &mut Socket, plan: &Plan) -> Result<usize, Error> {
    let mut batch = Batch::new();
    append(plan, &mut batch);
    let bytes = batch.len();
    socket.commit(batch)?;
    Ok(bytes)
}

/// Makes the tables of these families anew with all that is planned, in one transaction: no packet sees less.
///
/// # Errors
/// When the kernel refuses; then nothing of it happened.
pub fn rebuild(socket: &mut Socket, families: &[Family], plan: &Plan) -> Result<usize, Error> {
    let mut batch = Batch::new();
    for family in families {
        batch.remove_table(&table(*family));
        layout::ruleset(*family).create(&mut batch);
    }
    append(plan, &mut batch);
    let bytes = batch.len();
    socket.commit(batch)?;
    Ok(bytes)
}

/// Whether the kernel holds exactly these entries.
///
/// # Errors
/// When it can not be asked.
pub fn holds(socket: &mut Socket, families: &[Family], entries: &BTreeSet<Entry>) -> Result<bool, Error> {
    for family in families {
        if !holds_of(socket, *family, entries)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a family's table should hold, in the shape in which it is read.
#[derive(Default)]
struct Wanted<'a> {
    chains: BTreeMap<&'a str, Vec<Option<String>>>,
    sets: BTreeMap<&'a str, BTreeSet<Element>>,
    /// Those whose elements never change: their names say what is in them.
    fixed: BTreeSet<&'a str>,
    isolated: BTreeMap<Direction, BTreeMap<Element, Option<&'a str>>>,
}

impl<'a> Wanted<'a> {
    fn of(family: Family, entries: &'a BTreeSet<Entry>) -> Self {
        let mut wanted = Self::default();
        wanted.sets.insert(RELAYS, BTreeSet::new());
        for entry in entries {
            match entry {
                Entry::Set(set) if matches!(set.content, Content::Blocks(..) | Content::Ports(_)) => {
                    wanted.fixed.insert(&set.name);
                }
                Entry::Set(set) => _ = wanted.sets.entry(&set.name).or_default(),
                Entry::Element(set, element) if Family::of(element.address) == family => {
                    wanted.sets.entry(set).or_default().insert(*element);
                }
                Entry::Chain(chain) => {
                    let rules = layout::rules(family, chain);
                    wanted.chains.insert(&chain.name, comments(rules).collect());
                }
                Entry::Isolated(direction, address, chain) if Family::of(*address) == family => {
                    let element = Element {
                        address: *address,
                        port: None,
                    };
                    let of = wanted.isolated.entry(*direction).or_default();
                    of.insert(element, chain.as_deref());
                }
                _ => {}
            }
        }
        wanted
    }
}

/// The comments of rules as the kernel keeps them.
fn comments(rules: impl IntoIterator<Item = Rule>) -> impl Iterator<Item = Option<String>> {
    let rules = rules.into_iter();
    rules.map(|rule| rule.comment.as_deref().map(comment_kept).map(str::to_string))
}

fn holds_of(socket: &mut Socket, family: Family, entries: &BTreeSet<Entry>) -> Result<bool, Error> {
    let table = table(family);
    let mut wanted = Wanted::of(family, entries);
    let bases = wanted
        .isolated
        .keys()
        .map(|direction| (*direction, map(*direction)));
    let bases: BTreeMap<Direction, &str> = bases.collect();
    let is_base = |name: &str| bases.values().any(|base| *base == name);
    let extra = |name: &str| is_base(name) || wanted.chains.contains_key(name);
    if !layout::ruleset(family).holds(socket, extra)? {
        return Ok(false);
    }
    let chains = socket.chains(&table)?;
    for (direction, name) in &bases {
        let hook = layout::base(*direction).base;
        let hook = hook.map(|base| (base.hook as u32, base.priority));
        if !chains
            .iter()
            .any(|chain| chain.name == *name && chain.hook == hook)
        {
            return Ok(false);
        }
        let rules = layout::base_rules(family, *direction);
        wanted.chains.insert(name, comments(rules).collect());
    }
    let mut found: BTreeMap<String, Vec<Option<String>>> =
        chains.into_iter().map(|chain| (chain.name, Vec::new())).collect();
    for rule in socket.rules(&table)? {
        found.entry(rule.chain).or_default().push(rule.comment);
    }
    if !wanted
        .chains
        .iter()
        .all(|(name, rules)| found.get(*name) == Some(rules))
    {
        return Ok(false);
    }
    let known: BTreeSet<String> = socket.sets(&table)?.into_iter().collect();
    // Those that are made with the table, beside that of relays.
    let own = 3 * Direction::BOTH.len();
    let mut names = wanted.fixed.iter().chain(wanted.sets.keys());
    if !names.all(|name| known.contains(*name)) || known.len() != wanted.fixed.len() + wanted.sets.len() + own
    {
        return Ok(false);
    }
    for (set, elements_wanted) in &wanted.sets {
        if elements(socket, family, set)?
            .into_keys()
            .collect::<BTreeSet<_>>()
            != *elements_wanted
        {
            return Ok(false);
        }
    }
    for direction in Direction::BOTH {
        let isolated = wanted.isolated.remove(&direction).unwrap_or_default();
        let here: BTreeSet<Element> = elements(socket, family, pods(direction))?.into_keys().collect();
        let judged = elements(socket, family, map(direction))?;
        let judged_wanted: BTreeMap<Element, Option<Verdict>> = isolated
            .iter()
            .filter_map(|(element, chain)| Some((*element, Some(Verdict::Jump((*chain)?.to_string())))))
            .collect();
        if here != isolated.into_keys().collect() || judged != judged_wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The elements of a set, and the verdicts of a map.
fn elements(
    socket: &mut Socket,
    family: Family,
    set: &str,
) -> Result<BTreeMap<Element, Option<Verdict>>, Error> {
    let found = std::cell::RefCell::new(BTreeMap::new());
    socket.elements(
        &table(family),
        set,
        || found.borrow_mut().clear(),
        |element| {
            let mut fields = Fields(element.key);
            if let Some(address) = fields.ip(family == Family::Ip6) {
                let port = fields.port();
                found
                    .borrow_mut()
                    .insert(Element { address, port }, element.verdict());
            }
        },
    )?;
    Ok(found.into_inner())
}
