//! Pings of an announced address: its owner answers them. A Service's ports lead to pods, an echo request has none; so
//! the kernel of the owner answers in their place, by a rule of our own that redirects echo requests to this host.
//!
//! A transaction of nf_tables can wait for another one, as for the first load of a large proxy; so this is a task
//! beside the engine, whose heartbeats must not wait.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use svcnet_netlink::nft::{
    self, Batch, Chain, ChainKind, Concat, DataType, Element, Family, Field, Hook, PRIORITY_DSTNAT, Rule,
    Ruleset, Set, Socket, Table,
};
use svcnet_runtime::backoff::Backoff;
use tokio::sync::watch;

/// Name of the tables, one for each family.
pub const TABLE: &str = "svcnet-announcer";
const SET: &str = "announced";
const CHAIN: &str = "prerouting";

/// The announced addresses, with the names of their Services.
pub(crate) type Announced = BTreeMap<IpAddr, String>;

/// A change to the set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    /// Make the tables as they should be, without addresses.
    Replace,
    /// Answer pings of the address.
    Add(IpAddr, String),
    /// No longer.
    Remove(IpAddr),
    /// Remove the tables.
    Clear,
}

/// Follows the announced addresses until the engine ends. The rule stays then, as the address may.
pub(crate) async fn follow(mut announced: watch::Receiver<Announced>) {
    // What the kernel holds. A former process may have left anything.
    let mut held: Option<Announced> = None;
    let mut backoff = Backoff::default();
    loop {
        let wanted = announced.borrow_and_update().clone();
        let operations = plan(held.as_ref(), &wanted);
        match carry_out(operations).await {
            Ok(()) => {
                held = Some(wanted);
                if backoff.reset() {
                    tracing::info!("announced addresses answer pings again");
                }
                if announced.changed().await.is_err() {
                    return;
                }
            }
            Err(reason) => {
                // Perhaps somebody else has removed the table.
                held = None;
                if backoff.is_news(&reason) {
                    tracing::warn!(reason, "announced addresses do not answer pings");
                }
                tokio::time::sleep(backoff.next_delay()).await;
                if announced.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

/// From what the kernel holds, if that is known, to what it should.
fn plan(held: Option<&Announced>, wanted: &Announced) -> Vec<Operation> {
    // A node that announces nothing has no table for it.
    if wanted.is_empty() {
        return match held {
            Some(held) if held.is_empty() => Vec::new(),
            _ => vec![Operation::Clear],
        };
    }
    let nothing = Announced::new();
    let (replace, held) = match held {
        Some(held) if !held.is_empty() => (None, held),
        _ => (Some(Operation::Replace), &nothing),
    };
    let gone = held.keys().filter(|a| !wanted.contains_key(a));
    let new = wanted.iter().filter(|(a, _)| !held.contains_key(a));
    replace
        .into_iter()
        .chain(gone.map(|a| Operation::Remove(*a)))
        .chain(new.map(|(a, services)| Operation::Add(*a, services.clone())))
        .collect()
}

async fn carry_out(operations: Vec<Operation>) -> Result<(), String> {
    if operations.is_empty() {
        return Ok(());
    }
    let applied = tokio::task::spawn_blocking(move || apply(&operations)).await;
    match applied {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn apply(operations: &[Operation]) -> Result<(), nft::Error> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    for operation in operations {
        tracing::debug!(%operation, "pings");
        match operation {
            Operation::Replace => {
                for ruleset in [Family::Ip, Family::Ip6].map(ruleset) {
                    batch.remove_table(ruleset.table());
                    ruleset.create(&mut batch);
                }
            }
            Operation::Clear => {
                for table in [Family::Ip, Family::Ip6].map(|f| Table::new(f, TABLE)) {
                    socket.remove(&table)?;
                }
            }
            Operation::Add(address, services) => {
                let (table, key) = element(*address);
                let element = Element::key(key.as_bytes()).comment(services);
                batch.add_element(&table, SET, &element);
            }
            Operation::Remove(address) => {
                let (table, key) = element(*address);
                batch.delete_element(&table, SET, key.as_bytes(), None);
            }
        }
    }
    if batch.is_empty() {
        Ok(())
    } else {
        socket.commit(batch)
    }
}

fn element(address: IpAddr) -> (Table, Concat) {
    (Table::new(Family::of(address), TABLE), Concat::new().ip(address))
}

fn ruleset(family: Family) -> Ruleset {
    let key: &'static [DataType] = match family {
        Family::Ip => &[DataType::Ipv4],
        Family::Ip6 => &[DataType::Ipv6],
    };
    let pings = Rule::new(CHAIN)
        .in_set(family, &[Field::Daddr], SET)
        .echo_request(family)
        .redirect()
        .comment("the node answers pings of the addresses that it announces");
    Ruleset::new(Table::new(family, TABLE), "svcnet announcer")
        .set(Set::of(SET, key).comment("LoadBalancer addresses that this node announces"))
        .chain(Chain::base(
            CHAIN,
            ChainKind::Nat,
            Hook::Prerouting,
            PRIORITY_DSTNAT,
        ))
        .rule(pings)
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace => f.write_str("replace the tables"),
            Self::Clear => f.write_str("remove the tables"),
            Self::Add(address, services) => write!(f, "add {address} for {services}"),
            Self::Remove(address) => write!(f, "remove {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(last: &[u8]) -> Announced {
        let address = |l: &u8| (IpAddr::from([172, 30, 0, *l]), "default/web".to_string());
        last.iter().map(address).collect()
    }

    fn text(held: Option<&[u8]>, wanted: &[u8]) -> Vec<String> {
        let held = held.map(announced);
        let operations = plan(held.as_ref(), &announced(wanted));
        operations.iter().map(Operation::to_string).collect()
    }

    #[test]
    fn only_what_changes_is_done() {
        assert_eq!(text(Some(&[1, 2]), &[1, 2]), [""; 0]);
        assert_eq!(
            text(Some(&[1, 2]), &[2, 3]),
            ["remove 172.30.0.1", "add 172.30.0.3 for default/web"]
        );
    }

    #[test]
    fn the_tables_come_with_the_first_address_and_go_with_the_last() {
        assert_eq!(text(Some(&[]), &[]), [""; 0]);
        assert_eq!(
            text(Some(&[]), &[1]),
            ["replace the tables", "add 172.30.0.1 for default/web"]
        );
        assert_eq!(text(Some(&[1]), &[]), ["remove the tables"]);
        assert_eq!(text(None, &[]), ["remove the tables"]);
        assert_eq!(
            text(None, &[1]),
            ["replace the tables", "add 172.30.0.1 for default/web"]
        );
    }
}
