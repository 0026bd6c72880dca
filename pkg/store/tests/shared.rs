//! Several stores on one etcd, and an etcd that goes away.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod etcd;

use std::path::Path;
use std::time::{Duration, Instant};

use etcd::{Etcd, SOON};
use svcnet_store::{
    Change, CollectionSpec, CommitError, EtcdConfig, Key, Keyring, ListError, OpenError, Range, SharedValues,
    Store, Template, Write, restore_etcd,
};

fn specs() -> Vec<CollectionSpec> {
    let spec = |name: &str, encrypted| CollectionSpec {
        name: name.to_string(),
        volatile: false,
        encrypted,
    };
    vec![spec("services", false), spec("secrets", true)]
}

async fn open(config: &EtcdConfig) -> Store {
    Store::open_etcd(config, &specs(), None).await.unwrap()
}

fn key(store: &Store, collection: &str, name: &str) -> Key {
    Key::new(store.collection(collection).unwrap(), "default", name)
}

fn template(text: &str) -> Template {
    Template::new(format!("{text}@").into_bytes(), Vec::new())
}

fn put(key: Key, text: &str, expect: Option<u64>) -> Write {
    Write {
        key,
        change: Change::Put(template(text)),
        expect,
        guards: Vec::new(),
    }
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_are_one() {
    let etcd = Etcd::start().await;
    let config = etcd.config("/svcnet");
    let (one, two) = (open(&config).await, open(&config).await);
    // Who asks for the present sees what the other was just told is done.
    for turn in 0..50 {
        let name = format!("s{turn}");
        let done = one
            .commit(put(key(&one, "services", &name), "x", None))
            .await
            .unwrap();
        assert!(two.sync().await.unwrap() >= done.revision);
        assert_eq!(two.get(&key(&two, "services", &name)).unwrap().value, done.value);
    }
    // Of many that want the same thing on both, one gets it.
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let store = if i % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move {
                store
                    .commit(put(key(&store, "services", "same"), "x", None))
                    .await
            })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(
                matches!(error, CommitError::Conflict { current: Some(_) }),
                "{error}"
            ),
        }
    }
    assert_eq!(won, 1);
    // Others write to the same etcd: revisions go on that no watch of ours tells of by itself.
    let others = SharedValues::new(&etcd.config("/others")).unwrap();
    for turn in 0..3 {
        let before = others.get("x").await.unwrap();
        assert!(
            others
                .put("x", format!("{turn}").into(), before.as_ref())
                .await
                .unwrap()
        );
        let revision = two.sync().await.unwrap();
        assert!(two.revision() >= revision);
    }
    // A server that ends takes back that it is there.
    let there = key(&one, "services", "one");
    one.present(&there, &template("here"));
    until("one is announced", async || two.get(&there).is_some()).await;
    one.close().await;
    until("one is gone", async || two.get(&there).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_killed_loses_nothing_and_is_followed_again() {
    let mut etcd = Etcd::start().await;
    let store = open(&etcd.config("/svcnet")).await;
    let services = store.collection("services").unwrap();
    let mut watcher = store.watch(services, store.revision()).unwrap();
    let first = store
        .commit(put(key(&store, "services", "a"), "one", None))
        .await
        .unwrap();
    etcd.kill();
    // What is known is still read; what is asked for anew is not answered with something old.
    assert_eq!(
        store.get(&key(&store, "services", "a")).unwrap().value,
        first.value
    );
    assert!(store.sync().await.is_err());
    let refused = store
        .commit(put(key(&store, "services", "b"), "two", None))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, CommitError::Unavailable(_) | CommitError::Unknown(_)),
        "{refused}"
    );
    etcd.restart().await;
    until("the store follows again", async || store.sync().await.is_ok()).await;
    let before = store.get(&key(&store, "services", "b")).map(|e| e.revision);
    let second = store
        .commit(put(key(&store, "services", "b"), "two", before))
        .await
        .unwrap();
    assert!(second.revision > first.revision);
    let mut seen = Vec::new();
    while seen.last() != Some(&second.revision) {
        seen.extend(watcher.next().await.unwrap().events.iter().map(|e| e.revision));
    }
    assert_eq!(seen[0], first.revision);
    assert!(seen.is_sorted_by(|a, b| a < b));
}

#[tokio::test]
async fn secrets_are_encrypted_in_etcd_too() {
    let etcd = Etcd::start().await;
    let config = etcd.config("/svcnet");
    let keys = |path: &Path| Keyring::open_or_make(path).unwrap();
    let path = etcd.file("encryption.key");
    let store = Store::open_etcd(&config, &specs(), Some(keys(&path)))
        .await
        .unwrap();
    let secret = key(&store, "secrets", "tls");
    let done = store
        .commit(put(secret.clone(), "plain-text", None))
        .await
        .unwrap();
    assert_eq!(store.get(&secret).unwrap().value, done.value);
    drop(store);
    let again = Store::open_etcd(&config, &specs(), Some(keys(&path)))
        .await
        .unwrap();
    assert_eq!(again.get(&secret).unwrap().value, done.value);
    let other = keys(&etcd.file("other.key"));
    let refused = Store::open_etcd(&config, &specs(), Some(other))
        .await
        .unwrap_err();
    assert!(matches!(refused, OpenError::Key { .. }), "{refused}");
    let files = walk(&etcd.file("data"));
    assert!(!files.is_empty());
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        assert!(
            !bytes.windows(10).any(|w| w == b"plain-text"),
            "{}",
            file.display()
        );
    }
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let etcd = Etcd::start().await;
    let mut config = etcd.config("/svcnet");
    let good = config.endpoints.clone();
    config.endpoints = vec!["https://127.0.0.1:9".parse().unwrap()];
    let refused = Store::open_etcd(&config, &specs(), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("--datastore-endpoint") && refused.contains("https://127.0.0.1:9"),
        "{refused}"
    );
    // With one that answers behind it, the next is taken.
    config.endpoints.extend(good);
    let store = open(&config).await;
    store
        .commit(put(key(&store, "services", "a"), "x", None))
        .await
        .unwrap();
    // A server that is no etcd of ours: a certificate is asked for.
    config.client_files = None;
    let refused = Store::open_etcd(&config, &specs(), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("--datastore-endpoint"), "{refused}");
}

/// What stands before the revision in an object of these tests, as [`template`] has it.
fn without_revision(object: &[u8]) -> Option<Template> {
    let text = std::str::from_utf8(object).ok()?;
    Some(template(text.split_once('@')?.0))
}

async fn restore(store: &Store, config: &EtcdConfig, file: &Path, force: bool) -> u64 {
    std::fs::write(file, store.snapshot().unwrap().concat()).unwrap();
    restore_etcd(file, config, &specs(), None, force, without_revision)
        .await
        .unwrap()
        .revision
}

/// Whoever goes on from one of these is told to list anew.
fn are_gone(store: &Store, revisions: &[u64]) {
    let services = store.collection("services").unwrap();
    for &revision in revisions {
        let watch = store.watch(services, revision).map(|_| ());
        assert!(
            matches!(watch, Err(ListError::Compacted(_))),
            "{revision}: {watch:?}"
        );
        let list = store
            .list(services, &Range::default(), Some(revision))
            .map(|_| ());
        assert!(
            matches!(list, Err(ListError::Compacted(_))),
            "{revision}: {list:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_while_a_new_etcd_was_restored_lists_anew() {
    let (first, second) = (Etcd::start().await, Etcd::start().await);
    let before = open(&first.config("/svcnet")).await;
    let mut seen = vec![before.revision()];
    for turn in 0..5 {
        let name = format!("s{turn}");
        let done = before
            .commit(put(key(&before, "services", &name), "x", None))
            .await;
        seen.push(done.unwrap().revision);
    }
    let config = second.config("/svcnet");
    let file = second.file("snapshot");
    let began = restore(&before, &config, &file, false).await;
    // What came after the snapshot was seen too, and is no more.
    let lost = before
        .commit(put(key(&before, "services", "late"), "x", None))
        .await;
    seen.push(lost.unwrap().revision);
    // The etcd's own revisions come to those of before, and go by.
    let others = SharedValues::new(&second.config("/others")).unwrap();
    for _ in 0..20 {
        others.set("x", "y".into()).await.unwrap();
    }
    let (one, two) = (open(&config).await, open(&config).await);
    assert!(one.revision() >= began);
    are_gone(&one, &seen);
    // What is there says its new revision, and is written by that one on any server.
    let s0 = key(&one, "services", "s0");
    let is = one.get(&s0).unwrap();
    assert!(is.revision > seen[6] && is.value == format!("x@{}", is.revision));
    let mut watcher = two
        .watch(two.collection("services").unwrap(), two.revision())
        .unwrap();
    let refused = two.commit(put(s0.clone(), "y", Some(seen[1]))).await;
    assert_eq!(
        refused.unwrap_err(),
        CommitError::Conflict {
            current: Some(is.revision)
        }
    );
    let done = one.commit(put(s0.clone(), "y", Some(is.revision))).await.unwrap();
    assert!(done.revision > began && two.sync().await.unwrap() >= done.revision);
    let events = watcher.next().await.unwrap().events;
    assert_eq!(
        (events[0].revision, &events[0].value),
        (done.revision, &done.value)
    );
    // The same again, upon what is there by now: they do not go back for it.
    for store in [&one, &two] {
        store.close().await;
    }
    seen.extend([is.revision, done.revision]);
    let again = restore(&before, &config, &file, true).await;
    assert!(again > done.revision);
    let three = open(&config).await;
    are_gone(&three, &seen);
    assert!(three.get(&key(&three, "services", "late")).is_some());
}
