//! The store as its users see it: writes, watches, restarts, refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;

use svcnet_store::{Change, CollectionSpec, Committed, Key, ListError, OpenError, Store, Template, Write};

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

async fn commit(store: &Store, write: Write) -> Committed {
    store.commit(write).await.unwrap()
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
