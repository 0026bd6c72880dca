//! A disk that is full: a tmpfs of some megabytes, in a mount namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use svcnet_store::{Change, CollectionSpec, CommitError, Key, Range, Store, Template, Write};

const DIR: &str = "SVCNET_STORE_FULL_DIR";
/// Much more than the disk has.
const WRITES_MAX: usize = 8000;

fn open(dir: &Path) -> Result<Store, svcnet_store::OpenError> {
    let spec = |name: &str, volatile| CollectionSpec {
        name: name.to_string(),
        volatile,
        encrypted: false,
    };
    Store::open(dir, &[spec("services", false), spec("leases", true)])
}

fn put(store: &Store, collection: &str, name: &str) -> Write {
    let key = Key::new(store.collection(collection).unwrap(), "default", name);
    Write {
        expect: store.get(&key).map(|e| e.revision),
        key,
        change: Change::Put(Template::new(vec![b'x'; 20_000], Vec::new())),
        guards: Vec::new(),
    }
}

fn all(store: &Store) -> BTreeMap<String, u64> {
    let services = store.collection("services").unwrap();
    let list = store.list(services, &Range::default(), None).unwrap();
    list.entries
        .iter()
        .map(|(path, e)| (path.to_string(), e.revision))
        .collect()
}

/// What happens on the small disk; by itself, nothing.
#[tokio::test]
async fn child_fills_the_disk() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (disk, dir) = (Path::new(&dir), Path::new(&dir).join("store"));
    // Something else takes part of the disk, and can be taken away later.
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; 30 << 20]).unwrap();
    let store = open(&dir).unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut refused = None;
    for i in 0..WRITES_MAX {
        match store.commit(put(&store, "services", &format!("s{i}"))).await {
            Ok(done) => _ = acknowledged.insert(format!("default/s{i}"), done.revision),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("the disk is never full");
    assert!(matches!(refused, CommitError::Disk(_)), "{refused}");
    assert!(
        refused.to_string().to_lowercase().contains("no space left"),
        "{refused}"
    );
    assert!(acknowledged.len() > 20);
    // Reads and heartbeats go on, and durable writes are refused, with the reason.
    assert_eq!(all(&store), acknowledged);
    store.commit(put(&store, "leases", "n1")).await.unwrap();
    assert!(store.commit(put(&store, "services", "late")).await.is_err());
    assert!(store.failure().unwrap().to_lowercase().contains("no space left"));
    // It is opened with so little, and not with nothing.
    store.close().await;
    drop(store);
    let store = open(&dir).unwrap();
    assert_eq!(all(&store), acknowledged);
    assert!(store.commit(put(&store, "services", "late")).await.is_err());
    store.close().await;
    drop(store);
    let rest = disk.join("rest");
    let filled = std::fs::write(&rest, vec![1; 64 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let error = open(&dir).unwrap_err();
    let text = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(
        text.contains("no space left on the disk: 0 MB are free, 4 MB have to be"),
        "{text}"
    );
    std::fs::remove_file(rest).unwrap();
    let store = open(&dir).unwrap();
    assert!(store.commit(put(&store, "services", "late")).await.is_err());
    std::fs::remove_file(ballast).unwrap();
    // Without a change: a heartbeat is enough.
    store.commit(put(&store, "leases", "n1")).await.unwrap();
    assert_eq!(store.failure(), None);
    let there = all(&store);
    for (path, revision) in &acknowledged {
        assert!(there.get(path) >= Some(revision), "{path} was acknowledged");
    }
    assert!(store.revision() > *acknowledged.values().max().unwrap());
    store.commit(put(&store, "services", "late")).await.unwrap();
    store.close().await;
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=64m svcnet-test \"$0\" && exec \"$1\" --exact child_fills_the_disk --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
