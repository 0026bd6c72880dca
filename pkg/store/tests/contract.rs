//! What a store is, whatever lies behind it: the same cases against the embedded one and against a real etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod etcd;

use std::collections::BTreeMap;

use etcd::Etcd;
use svcnet_store::{
    Change, CollectionSpec, CommitError, Committed, EtcdConfig, Key, ListError, Range, Store, Template,
    WatchError, Write,
};

/// Where the stores of a case lie.
enum Place {
    Sled(tempfile::TempDir),
    Etcd(EtcdConfig),
}

impl Place {
    async fn open(&self) -> Store {
        let spec = |name: &str, volatile| CollectionSpec {
            name: name.to_string(),
            volatile,
            encrypted: false,
        };
        let specs = [spec("services", false), spec("leases", true)];
        match self {
            Self::Sled(dir) => Store::open(dir.path(), &specs).unwrap(),
            Self::Etcd(config) => Store::open_etcd(config, &specs, None).await.unwrap(),
        }
    }
}

/// A function for each case: the embedded store, and etcd below a prefix of its own.
macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod sled {
            $(#[tokio::test]
            async fn $case() {
                super::$case(super::Place::Sled(tempfile::tempdir().unwrap())).await;
            })*
        }

        #[tokio::test]
        async fn an_etcd_keeps_the_contract() {
            let etcd = Etcd::start().await;
            $(
                println!("{}", stringify!($case));
                $case(Place::Etcd(etcd.config(concat!("/", stringify!($case))))).await;
            )*
        }
    };
}

contract!(
    a_write_needs_the_revision_that_is_there,
    of_writers_that_expect_the_same_one_wins,
    a_write_needs_its_guards_too,
    a_watch_sees_every_change_once_and_in_order,
    a_watcher_that_falls_behind_is_told,
    lists_are_of_one_moment,
    a_transaction_is_done_whole_or_not_at_all,
    what_was_acknowledged_is_there_for_the_next_opener,
);

fn key(store: &Store, collection: &str, name: &str) -> Key {
    Key::new(store.collection(collection).unwrap(), "default", name)
}

fn put(key: Key, text: &str, expect: Option<u64>) -> Write {
    let template = Template::new(format!("{text}@").into_bytes(), Vec::new());
    Write {
        key,
        change: Change::Put(template),
        expect,
        guards: Vec::new(),
    }
}

/// `text` is what is there.
fn delete(key: Key, text: &str, expect: u64) -> Write {
    let template = Template::new(format!("{text}@").into_bytes(), Vec::new());
    Write {
        key,
        change: Change::Delete(template),
        expect: Some(expect),
        guards: Vec::new(),
    }
}

async fn commit(store: &Store, write: Write) -> Committed {
    store.commit(write).await.unwrap()
}

async fn a_write_needs_the_revision_that_is_there(place: Place) {
    let store = place.open().await;
    let a = key(&store, "services", "a");
    let first = commit(&store, put(a.clone(), "one", None)).await;
    assert_eq!(first.value, format!("one@{}", first.revision));
    let wrong = store.commit(put(a.clone(), "two", None)).await;
    let current = Some(first.revision);
    assert_eq!(wrong, Err(CommitError::Conflict { current }));
    let second = commit(&store, put(a.clone(), "two", current)).await;
    assert!(second.revision > first.revision);
    assert!(
        store
            .commit(delete(a.clone(), "one", first.revision))
            .await
            .is_err()
    );
    let gone = commit(&store, delete(a.clone(), "two", second.revision)).await;
    assert_eq!(gone.value, format!("two@{}", gone.revision));
    assert_eq!(store.get(&a), None);
}

async fn of_writers_that_expect_the_same_one_wins(place: Place) {
    let store = place.open().await;
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let (store, key) = (store.clone(), key(&store, "services", "a"));
            tokio::spawn(async move { store.commit(put(key, &format!("w{i}"), None)).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += u32::from(task.await.unwrap().is_ok());
    }
    assert_eq!(won, 1);
}

async fn a_write_needs_its_guards_too(place: Place) {
    let store = place.open().await;
    let (a, b) = (key(&store, "services", "a"), key(&store, "services", "b"));
    let at = commit(&store, put(a.clone(), "one", None)).await.revision;
    let mut write = put(b.clone(), "two", None);
    write.guards.push((a.clone(), at));
    let again = write.clone();
    commit(&store, write).await;
    commit(&store, put(a, "changed", Some(at))).await;
    let refused = store
        .commit(Write {
            expect: store.get(&b).map(|e| e.revision),
            ..again
        })
        .await;
    assert!(matches!(refused, Err(CommitError::Guard { .. })), "{refused:?}");
}

async fn a_watch_sees_every_change_once_and_in_order(place: Place) {
    let store = place.open().await;
    let services = store.collection("services").unwrap();
    let mut watcher = store.watch(services, store.revision()).unwrap();
    let writer = store.clone();
    let task = tokio::spawn(async move {
        let mut last = BTreeMap::new();
        for i in 0..500_u64 {
            let name = format!("s{}", i % 7);
            let write = put(key(&writer, "services", &name), "x", last.get(&name).copied());
            last.insert(name, commit(&writer, write).await.revision);
            commit(&writer, put(key(&writer, "leases", &format!("l{i}")), "x", None)).await;
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 500 {
        seen.extend(watcher.next().await.unwrap().events);
    }
    task.await.unwrap();
    assert!(seen.is_sorted_by(|a, b| a.revision < b.revision));
    assert!(
        seen.iter()
            .all(|e| e.namespace() == "default" && e.name().starts_with('s'))
    );
    let pending = watcher.pending().unwrap();
    assert_eq!((pending.events.len(), pending.revision), (0, store.revision()));
    store.compact(store.revision());
    assert!(matches!(
        store.watch(services, seen[0].revision),
        Err(ListError::Compacted(_))
    ));
    let mut late = store.watch(services, store.revision()).unwrap();
    store.close().await;
    drop(store);
    assert!(late.pending().unwrap().events.is_empty());
}

async fn a_watcher_that_falls_behind_is_told(place: Place) {
    let store = place.open().await;
    let services = store.collection("services").unwrap();
    let mut watcher = store.watch(services, store.revision()).unwrap();
    commit(&store, put(key(&store, "services", "a"), "x", None)).await;
    store.compact(store.revision());
    assert!(matches!(watcher.next().await, Err(WatchError::Compacted(_))));
}

async fn lists_are_of_one_moment(place: Place) {
    let store = place.open().await;
    let services = store.collection("services").unwrap();
    let a = commit(&store, put(key(&store, "services", "a"), "one", None)).await;
    commit(&store, put(key(&store, "services", "a"), "two", Some(a.revision))).await;
    let was = store.list(services, &Range::default(), Some(a.revision)).unwrap();
    assert_eq!(was.entries[0].1.value, a.value);
    assert!(
        store
            .list(services, &Range::default(), Some(store.revision() + 1))
            .is_err()
    );
}

async fn a_transaction_is_done_whole_or_not_at_all(place: Place) {
    let store = place.open().await;
    let services = store.collection("services").unwrap();
    let (a, b, c) = (
        key(&store, "services", "a"),
        key(&store, "services", "b"),
        key(&store, "leases", "c"),
    );
    let mut watcher = store.watch(services, store.revision()).unwrap();
    let all = vec![
        put(a.clone(), "a", None),
        put(b.clone(), "b", None),
        put(c.clone(), "c", None),
    ];
    let done = store.commit_all(all.clone()).await.unwrap();
    assert!(done.iter().all(|d| d.revision == done[0].revision), "{done:?}");
    let pending = watcher.next().await.unwrap();
    assert_eq!((pending.events.len(), pending.revision), (2, done[0].revision));
    // A list and a watch never see half of it.
    let before = store
        .list(services, &Range::default(), Some(done[0].revision - 1))
        .unwrap();
    assert!(before.entries.is_empty());

    let at = Some(done[0].revision);
    let again = vec![
        put(a.clone(), "x", at),
        delete(c.clone(), "c", done[0].revision),
        put(b.clone(), "x", None),
    ];
    let refused = store.commit_all(again).await;
    assert!(
        matches!(&refused, Err(CommitError::Guard { path }) if **path == **b.path()),
        "{refused:?}"
    );
    let refused = store
        .commit_all(vec![put(a.clone(), "x", None), put(b.clone(), "x", at)])
        .await;
    assert_eq!(refused, Err(CommitError::Conflict { current: at }));
    for (key, value) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        let there = store.get(key).unwrap();
        assert_eq!(
            (Some(there.revision), there.value),
            (at, format!("{value}@{}", done[0].revision).into())
        );
    }

    // More changes of one revision than a watcher takes at a time are taken together all the same.
    let many = (0..40).map(|i| put(key(&store, "services", &format!("m{i}")), "m", None));
    store.commit_all(many.collect()).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().events.len(), 40);
}

async fn what_was_acknowledged_is_there_for_the_next_opener(place: Place) {
    let store = place.open().await;
    let (a, b) = (key(&store, "services", "a"), key(&store, "services", "b"));
    let first = commit(&store, put(a.clone(), "one", None)).await;
    let gone = commit(&store, put(b.clone(), "gone", None)).await;
    commit(&store, delete(b.clone(), "gone", gone.revision)).await;
    let kept = commit(&store, put(a.clone(), "two", Some(first.revision))).await;
    store.close().await;
    drop(store);
    let store = place.open().await;
    let there = store.get(&a).unwrap();
    assert_eq!((there.revision, there.value), (kept.revision, kept.value));
    assert_eq!(store.get(&b), None);
    assert!(store.sync().await.unwrap() >= kept.revision);
    let next = commit(&store, put(b, "new", None)).await;
    assert!(next.revision > kept.revision);
}
