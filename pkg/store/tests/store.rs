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

/// Copies a store's files as a power cut would leave them: the tip, which is written after the log, is never ahead of it.
fn copy_files(from: &Path, to: &Path) {
    let mut names: Vec<_> = std::fs::read_dir(from)
        .unwrap()
        .map(|file| file.unwrap())
        .filter(|file| file.file_type().unwrap().is_file())
        .map(|file| file.file_name())
        .collect();
    names.sort_by_key(|name| name != "TIP");
    for name in names {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[tokio::test]
async fn damage_is_reported_and_not_served() {
    const OBJECTS: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = |i| format!("s{i}");
    for i in 0..OBJECTS {
        // Enough to fill some segments of sled's log.
        let text = "x".repeat(700);
        commit(&store, put(key(&store, "services", &name(i)), &text, None)).await;
    }
    store.close().await;
    let whole = std::fs::read(dir.path().join("db")).unwrap();
    let open_with = |db: &[u8]| {
        let copy = tempfile::tempdir().unwrap();
        copy_files(dir.path(), copy.path());
        std::fs::write(copy.path().join("db"), db).unwrap();
        for file in std::fs::read_dir(copy.path()).unwrap() {
            let file = file.unwrap();
            // What sled reads instead of the log's beginning.
            if file.file_name().to_string_lossy().starts_with("snap") {
                std::fs::remove_file(file.path()).unwrap();
            }
        }
        Store::open(copy.path(), &specs())
    };

    let refused = open_with(b"this is no database at all").unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");

    // Wherever the log is torn, all is there (nothing lived in that part), or the store does not open.
    let mut refused = Vec::new();
    for at in (0..whole.len() - 600_000).step_by(300_000) {
        let mut torn = whole.clone();
        torn[at..at + 600_000].fill(0);
        match open_with(&torn) {
            Ok(store) => {
                let there = |i: &usize| store.get(&key(&store, "services", &name(*i))).is_some();
                assert_eq!((0..OBJECTS).filter(there).count(), OBJECTS, "torn at {at}");
            }
            Err(OpenError::Damaged { .. } | OpenError::Cut { .. }) => refused.push(at),
            Err(other) => panic!("torn at {at}: {other}"),
        }
    }
    // Objects are a third of the log at the least, so not every tear can miss them.
    assert!(!refused.is_empty());
}

/// sled takes a log that lost its end for one that ends there.
#[tokio::test]
async fn a_log_that_lost_acknowledged_writes_is_refused_until_told_otherwise() {
    let (dir, before) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    commit(&store, put(key(&store, "services", "a"), "one", None)).await;
    copy_files(dir.path(), before.path());
    commit(&store, put(key(&store, "services", "b"), "two", None)).await;
    commit(&store, put(key(&store, "services", "c"), "three", None)).await;
    let tip = before.path().join("TIP");
    std::fs::copy(dir.path().join("TIP"), &tip).unwrap();
    store.close().await;

    for _ in 0..2 {
        let refused = Store::open(before.path(), &specs()).unwrap_err();
        assert!(
            matches!(&refused, OpenError::Cut { missing: 2, tip: named, .. } if *named == tip),
            "{refused}"
        );
    }
    std::fs::remove_file(&tip).unwrap();
    let store = open(before.path());
    assert!(store.get(&key(&store, "services", "a")).is_some());
    assert!(store.get(&key(&store, "services", "b")).is_none());
}

/// Stores of before the tip was kept, and one whose tip a power cut left behind or empty.
#[tokio::test]
async fn a_tip_that_is_missing_or_behind_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let tip = dir.path().join("TIP");
    let mut last = String::new();
    for (turn, left) in [None, Some(""), Some("00000000000000000001\n"), Some("\0\0\0")]
        .into_iter()
        .enumerate()
    {
        let store = open(dir.path());
        commit(
            &store,
            put(key(&store, "services", &format!("s{turn}")), "one", None),
        )
        .await;
        store.close().await;
        let tells = std::fs::read_to_string(&tip).unwrap();
        assert!(tells > last, "{tells} {last}");
        last = tells;
        match left {
            None => std::fs::remove_file(&tip).unwrap(),
            Some(left) => std::fs::write(&tip, left).unwrap(),
        }
    }
    let store = open(dir.path());
    assert!(store.get(&key(&store, "services", "s3")).is_some());
    store.close().await;
    assert!(std::fs::read_to_string(&tip).unwrap() >= last);
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
        copy_files(dir.path(), copy.path());
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
