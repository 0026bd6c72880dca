//! The store as its users see it: writes, watches, restarts, refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;

use svcnet_store::{
    Change, CollectionSpec, CommitError, Committed, Key, ListError, OpenError, Range, Store, Template,
    WatchError, Write,
};

fn specs() -> Vec<CollectionSpec> {
    let spec = |name: &str, volatile| CollectionSpec {
        name: name.to_string(),
        volatile,
        encrypted: false,
    };
    vec![spec("services", false), spec("leases", true)]
}

fn open(dir: &Path) -> Store {
    Store::open(dir, &specs()).unwrap()
}

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

fn delete(key: Key, expect: u64) -> Write {
    let template = Template::new(b"gone@".to_vec(), Vec::new());
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

#[tokio::test]
async fn a_write_needs_the_revision_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let a = key(&store, "services", "a");
    let first = commit(&store, put(a.clone(), "one", None)).await;
    assert_eq!(first.value, format!("one@{}", first.revision));
    let wrong = store.commit(put(a.clone(), "two", None)).await;
    let current = Some(first.revision);
    assert_eq!(wrong, Err(CommitError::Conflict { current }));
    let second = commit(&store, put(a.clone(), "two", current)).await;
    assert!(second.revision > first.revision);
    assert!(store.commit(delete(a.clone(), first.revision)).await.is_err());
    let gone = commit(&store, delete(a.clone(), second.revision)).await;
    assert_eq!(gone.value, format!("gone@{}", gone.revision));
    assert_eq!(store.get(&a), None);
}

#[tokio::test]
async fn of_writers_that_expect_the_same_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
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

#[tokio::test]
async fn a_write_needs_its_guards_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
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

#[tokio::test]
async fn a_watch_sees_every_change_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
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

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let services = store.collection("services").unwrap();
    let mut watcher = store.watch(services, store.revision()).unwrap();
    commit(&store, put(key(&store, "services", "a"), "x", None)).await;
    store.compact(store.revision());
    assert!(matches!(watcher.next().await, Err(WatchError::Compacted(_))));
}

#[tokio::test]
async fn a_restart_keeps_objects_and_drops_volatile_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, l) = (key(&store, "services", "a"), key(&store, "leases", "n1"));
    let kept = commit(&store, put(a.clone(), "one", None)).await;
    let beat = commit(&store, put(l.clone(), "beat", None)).await;
    store.close().await;

    let store = open(dir.path());
    assert_eq!(store.get(&a).unwrap().value, kept.value);
    assert_eq!(store.get(&l), None);
    assert!(store.revision() > beat.revision, "revisions do not go back");
    // Who has seen the last change of the services goes on; who watched leases must list anew.
    let services = store.collection("services").unwrap();
    assert!(store.watch(services, kept.revision).is_ok());
    assert!(store.watch(services, kept.revision - 1).is_err());
    assert!(
        store
            .watch(store.collection("leases").unwrap(), beat.revision)
            .is_err()
    );
    assert!(matches!(
        store.watch(services, store.revision() + 1),
        Err(ListError::Future { .. })
    ));
    store.close().await;
}

#[tokio::test]
async fn heartbeats_do_not_reach_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    commit(&store, put(key(&store, "services", "a"), "one", None)).await;
    let size = || {
        let files = std::fs::read_dir(dir.path()).unwrap();
        let sizes = files.map(|f| {
            let f = f.unwrap();
            (
                f.file_name(),
                f.metadata().unwrap().len(),
                f.metadata().unwrap().modified().unwrap(),
            )
        });
        let mut sizes: Vec<_> = sizes.collect();
        sizes.sort();
        sizes
    };
    let before = size();
    let mut at = None;
    for _ in 0..2000 {
        at = Some(
            commit(&store, put(key(&store, "leases", "n1"), "beat", at))
                .await
                .revision,
        );
    }
    assert_eq!(size(), before);
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let refused = Store::open(dir.path(), &specs()).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
}

#[tokio::test]
async fn foreign_and_newer_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let refused = Store::open(dir.path(), &specs()).unwrap_err();
    assert!(matches!(&refused, OpenError::Foreign { found, .. } if found == "notes.txt"));
    assert!(!dir.path().join("db").exists());

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("FORMAT"), "svcnet-store 9\n").unwrap();
    let refused = Store::open(dir.path(), &specs()).unwrap_err();
    assert!(matches!(refused, OpenError::Format { .. }));
}

#[tokio::test]
async fn damage_is_reported_and_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for i in 0..3000 {
        let text = "x".repeat(700);
        // Enough to fill some segments of sled's log.
        commit(
            &store,
            put(key(&store, "services", &format!("s{i}")), &text, None),
        )
        .await;
    }
    store.close().await;
    let db = dir.path().join("db");
    let whole = std::fs::read(&db).unwrap();

    std::fs::write(&db, b"this is no database at all").unwrap();
    let refused = Store::open(dir.path(), &specs()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");

    let mut torn = whole.clone();
    let middle = whole.len() / 2;
    torn[middle - 300_000..middle + 300_000].fill(0);
    std::fs::write(&db, torn).unwrap();
    for snapshot in std::fs::read_dir(dir.path()).unwrap() {
        let snapshot = snapshot.unwrap();
        if snapshot.file_name().to_string_lossy().starts_with("snap") {
            std::fs::remove_file(snapshot.path()).unwrap();
        }
    }
    let refused = Store::open(dir.path(), &specs()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn lists_are_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
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

/// A power cut leaves the files as they were at some moment: here they are copied while writers are at work.
#[tokio::test(flavor = "multi_thread")]
async fn files_copied_in_the_middle_of_writing_hold_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let acknowledged = std::sync::Arc::new(std::sync::Mutex::new(BTreeMap::<String, u64>::new()));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4_u64)
        .map(|w| {
            let (store, acknowledged, stop) = (store.clone(), acknowledged.clone(), stop.clone());
            tokio::spawn(async move {
                let mut last = BTreeMap::new();
                for turn in 0_u64.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("w{w}-{}", turn % 30);
                    let text = "x".repeat(turn as usize % 1500);
                    let write = put(key(&store, "services", &name), &text, last.get(&name).copied());
                    let revision = commit(&store, write).await.revision;
                    last.insert(name.clone(), revision);
                    acknowledged.lock().unwrap().insert(name, revision);
                }
            })
        })
        .collect();
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        let before = acknowledged.lock().unwrap().clone();
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
        }
        let copied = open(copy.path());
        for (name, revision) in before {
            let there = copied.get(&key(&copied, "services", &name)).map(|e| e.revision);
            assert!(there >= Some(revision), "{name} {there:?} {revision}");
        }
        copied.close().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}
