//! Reading back what the kernel holds of our tables.

use std::collections::{BTreeMap, BTreeSet};

use svcnet_netlink::nft::{Error, Family, Fields, ObservedElement, Socket};

use super::layout::{self, Networks, RECORD, Stay};
use super::plan::{Observed, ShapeAt};
use super::shape::{Place, Shape};
use super::slot::{self, List, Slot, Value};

/// How often is read again what somebody changes meanwhile. Who changes it without a pause is seen in the middle of it.
const ATTEMPTS_MAX: usize = 10;

/// Everything that is there, as it was at one moment.
///
/// It takes many requests, and the kernel answers each by what is so then; so the generation of the ruleset must be the
/// same before and after them.
pub(crate) fn observe_at_once(
    socket: &mut Socket,
    families: &[Family],
    networks: &Networks,
) -> Result<Observed, Error> {
    let mut before = socket.generation()?;
    for _ in 1..ATTEMPTS_MAX {
        let observed = observe(socket, families, networks)?;
        let after = socket.generation()?;
        if before == after {
            return Ok(observed);
        }
        before = after;
    }
    observe(socket, families, networks)
}

/// Everything that is there. A table that is not as declared counts as not there at all: it is made anew.
///
/// For who makes it alone. What others change meanwhile, they are heard of and it is looked at again.
pub(crate) fn observe(
    socket: &mut Socket,
    families: &[Family],
    networks: &Networks,
) -> Result<Observed, Error> {
    let mut observed = Observed::default();
    for family in families.iter().copied() {
        match family_of_tables(socket, family, networks, &mut observed)? {
            Verdict::AsDeclared => {}
            Verdict::NotAsDeclared => {
                observed.rebuild.insert(family);
                observed.shapes.retain(|(f, _, _)| *f != family);
                observed.stays.retain(|(f, _)| *f != family);
                observed.elements.retain(|slot, _| slot.family() != family);
            }
        }
    }
    Ok(observed)
}

enum Verdict {
    AsDeclared,
    NotAsDeclared,
}

fn family_of_tables(
    socket: &mut Socket,
    family: Family,
    networks: &Networks,
    observed: &mut Observed,
) -> Result<Verdict, Error> {
    let table = layout::table(family);
    if !layout::ruleset(family, networks).holds(socket, |_| true)? {
        return Ok(Verdict::NotAsDeclared);
    }
    let mut shapes = BTreeSet::new();
    for place in Place::ALL {
        let Some(found) = dispatched(socket, family, place)? else {
            return Ok(Verdict::NotAsDeclared);
        };
        shapes.extend(found);
    }
    let sets = socket.sets(&table)?;
    let stays: BTreeSet<u32> = sets.iter().filter_map(|name| Stay::seconds_of(name)).collect();
    if !chains_as_expected(socket, family, networks, &shapes, &stays)? {
        return Ok(Verdict::NotAsDeclared);
    }
    for place in Place::ALL {
        let mut lists = vec![
            List::Services,
            List::External,
            List::Refused,
            List::Masquerade,
            List::MasqueradeOwn,
        ];
        lists.extend(stays.iter().map(|seconds| List::Stay(*seconds)));
        for list in lists {
            let set = slot::list_set(list, place);
            read(socket, family, &set, observed, |e| {
                slot::read_list(list, place, family, e)
            })?;
        }
        read(socket, family, place.endpoints(), observed, |e| {
            slot::read_endpoint(place, family, e)
        })?;
    }
    read(socket, family, layout::RESTRICTED, observed, |e| {
        slot::read_list(List::Restricted, Place::Address, family, e)
    })?;
    read(socket, family, layout::SOURCES, observed, |e| {
        slot::read_source(family, e)
    })?;
    read(socket, family, layout::CLUSTER_IPS, observed, |e| {
        slot::read_cluster_ip(family, e)
    })?;
    read(socket, family, layout::HAIRPIN, observed, |e| {
        slot::read_hairpin(family, e)
    })?;
    observed.shapes.extend(shapes);
    observed
        .stays
        .extend(stays.into_iter().map(|seconds| (family, seconds)));
    Ok(Verdict::AsDeclared)
}

/// The shapes of the dispatch maps of a place; nothing when they hold something else.
fn dispatched(socket: &mut Socket, family: Family, place: Place) -> Result<Option<BTreeSet<ShapeAt>>, Error> {
    let mut shapes = BTreeSet::new();
    let mut as_expected = true;
    for map in [place.dispatch(), place.external_dispatch()] {
        socket.elements(
            &layout::table(family),
            map,
            || {},
            |element| {
                let shape = Fields(element.key).number().and_then(Shape::from_code);
                let right = |shape: &Shape| {
                    shape.dispatch(place) == map && element.verdict() == Some(shape.verdict(place))
                };
                match shape.filter(right) {
                    Some(shape) => drop(shapes.insert((family, place, shape))),
                    None => as_expected = false,
                }
            },
        )?;
    }
    Ok(as_expected.then_some(shapes))
}

/// Whether the chains that come and go have the number of rules that they should, and no other chain is there.
fn chains_as_expected(
    socket: &mut Socket,
    family: Family,
    networks: &Networks,
    shapes: &BTreeSet<ShapeAt>,
    stays: &BTreeSet<u32>,
) -> Result<bool, Error> {
    let table = layout::table(family);
    let mut wanted: BTreeMap<String, usize> = BTreeMap::new();
    for (_, place, shape) in shapes {
        if let Some(chain) = shape.chain(*place) {
            wanted.insert(chain, shape.rules(*place, family, &networks.pods).len());
        }
    }
    for seconds in stays {
        let stay = Stay::new(*seconds);
        wanted.insert(stay.chain.clone(), stay.rules(family, *seconds).count());
    }
    wanted.insert(RECORD.to_string(), stays.len() * Stay::RECORD_RULES);
    let declared = layout::ruleset(family, networks);
    let is_declared = |name: &str| declared.chains().iter().any(|chain| chain.name == name);
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for chain in socket
        .chains(&table)?
        .into_iter()
        .filter(|chain| !is_declared(&chain.name))
    {
        found.insert(chain.name, 0);
    }
    for rule in socket.rules(&table)? {
        if let Some(count) = found.get_mut(&rule.chain) {
            *count += 1;
        }
    }
    Ok(wanted == found)
}

/// Reads the elements of one set. What can not be read is not ours and stays out of sight: the key belongs to no
/// frontend, so it does no harm.
fn read(
    socket: &mut Socket,
    family: Family,
    set: &str,
    observed: &mut Observed,
    parse: impl Fn(&ObservedElement<'_>) -> Option<(Slot, Value)>,
) -> Result<(), Error> {
    // Elements seen twice, when a dump begins again, are the same elements.
    socket.elements(
        &layout::table(family),
        set,
        || {},
        |element| {
            if let Some((slot, value)) = parse(&element) {
                observed
                    .elements
                    .insert(slot, (value, element.comment.map(Into::into)));
            }
        },
    )
}
