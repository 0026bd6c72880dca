//! From a plan to a batch. No choices are made here.

use svcnet_netlink::nft::{Batch, Chain, Concat, Data, Element, Family, Table};

use super::layout::{self, Networks, RECORD, Stay};
use super::plan::{Plan, ShapeAt, Stays};

/// The batches that carry a plan out, one after the other.
///
/// A packet that is on its way goes by the rules of before, but looks up what is there now. So what a lookup may lead it
/// to must be there before, and what waits for it behind only after.
pub(crate) fn batches(plan: &Plan, networks: &Networks) -> impl Iterator<Item = Batch> + use<> {
    let tables = Tables::default();
    let (mut before, mut change, mut after) = (Batch::new(), Batch::new(), Batch::new());
    for family in &plan.rebuild {
        change.remove_table(tables.of(*family));
        let ruleset = layout::ruleset(*family, networks);
        ruleset.create_without(&mut change, layout::is_refusal);
        ruleset.add_rules(&mut after, layout::is_refusal);
    }
    for shape in &plan.new_shapes {
        let batch = ahead(shape.0, plan, &mut before, &mut change);
        add_shape(batch, &tables, *shape, networks);
    }
    for (family, stays) in &plan.stays {
        let batch = ahead(*family, plan, &mut before, &mut change);
        add_stays(batch, tables.of(*family), *family, stays);
    }
    for (family, stays) in &plan.stays {
        record_stays(&mut change, tables.of(*family), *family, stays);
    }
    for slot in &plan.deletes {
        let (key, key_end) = (slot.key(), slot.key_end());
        let key_end = key_end.as_ref().map(Concat::as_bytes);
        change.delete_element(tables.of(slot.family()), &slot.set(), key.as_bytes(), key_end);
    }
    for (slot, value, name) in &plan.adds {
        let (key, key_end, value) = (slot.key(), slot.key_end(), value.concat());
        let element = Element {
            key_end: key_end.as_ref().map(Concat::as_bytes),
            data: value
                .as_ref()
                .map_or(Data::None, |value| Data::Value(value.as_bytes())),
            comment: Some(&**name).filter(|name| !name.is_empty()),
            ..Element::key(key.as_bytes())
        };
        change.add_element(tables.of(slot.family()), &slot.set(), &element);
    }
    for (family, stays) in &plan.stays {
        remove_stays(&mut change, tables.of(*family), stays);
    }
    for shape in &plan.old_shapes {
        remove_shape(&mut change, &tables, *shape);
    }
    [before, change, after]
        .into_iter()
        .filter(|batch| !batch.is_empty())
}

/// The batch for what has to be there ahead of the change. Nobody is on the way through a table that is new.
fn ahead<'a>(family: Family, plan: &Plan, before: &'a mut Batch, change: &'a mut Batch) -> &'a mut Batch {
    if plan.rebuild.contains(&family) {
        change
    } else {
        before
    }
}

/// One value of each table's name for all the elements.
struct Tables([Table; 2]);

impl Default for Tables {
    fn default() -> Self {
        Self([layout::table(Family::Ip), layout::table(Family::Ip6)])
    }
}

impl Tables {
    fn of(&self, family: Family) -> &Table {
        &self.0[usize::from(family == Family::Ip6)]
    }
}

fn add_shape(batch: &mut Batch, tables: &Tables, (family, place, shape): ShapeAt, networks: &Networks) {
    let table = tables.of(family);
    if let Some(chain) = shape.chain(place) {
        batch.add_chain(table, &Chain::regular(chain));
        for rule in shape.rules(place, family, &networks.pods) {
            batch.add_rule(table, &rule);
        }
    }
    let verdict = shape.verdict(place);
    let code = shape.code().to_ne_bytes();
    let element = Element {
        data: Data::Verdict(&verdict),
        ..Element::key(&code)
    };
    batch.add_element(table, shape.dispatch(place), &element);
}

fn remove_shape(batch: &mut Batch, tables: &Tables, (family, place, shape): ShapeAt) {
    let table = tables.of(family);
    batch.delete_element(table, shape.dispatch(place), &shape.code().to_ne_bytes(), None);
    if let Some(chain) = shape.chain(place) {
        batch.flush_chain(table, &chain);
        batch.delete_chain(table, &chain);
    }
}

fn add_stays(batch: &mut Batch, table: &Table, family: Family, stays: &Stays) {
    for seconds in &stays.new {
        let stay = Stay::new(*seconds);
        for set in stay.sets(family) {
            batch.add_set(table, &set);
        }
        batch.add_chain(table, &Chain::regular(stay.chain.clone()));
        for rule in stay.rules(family, *seconds) {
            batch.add_rule(table, &rule);
        }
    }
}

fn record_stays(batch: &mut Batch, table: &Table, family: Family, stays: &Stays) {
    batch.flush_chain(table, RECORD);
    for seconds in &stays.all {
        for rule in Stay::new(*seconds).record_rules(family) {
            batch.add_rule(table, &rule);
        }
    }
}

fn remove_stays(batch: &mut Batch, table: &Table, stays: &Stays) {
    for seconds in &stays.old {
        let stay = Stay::new(*seconds);
        batch.flush_chain(table, &stay.chain);
        batch.delete_chain(table, &stay.chain);
        for (_, set) in &stay.sets {
            batch.delete_set(table, set);
        }
    }
}
