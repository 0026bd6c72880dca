//! Secrets on the disk.

use std::path::Path;

use serde_json::{Value, json};
use svcnet_apiserver::{ApiServer, Error};

use crate::harness::{Running, config};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
/// "a-very-secret-word" in base64, as objects hold it.
const WORD: &str = "YS12ZXJ5LXNlY3JldC13b3Jk";

fn lies_on_disk(dir: &Path, word: &str) -> bool {
    let (mut files, mut found) = (vec![dir.to_path_buf()], false);
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        found |= bytes.windows(word.len()).any(|w| w == word.as_bytes());
    }
    found
}

async fn with_a_secret() -> Running {
    let server = Running::start().await;
    let secret = json!({"metadata": {"name": "s"}, "data": {"word": WORD}});
    assert_eq!(server.post(SECRETS, &secret).await.0, 201);
    let map = json!({"metadata": {"name": "m"}, "data": {"word": "an-open-word"}});
    assert_eq!(
        server.post("/api/v1/namespaces/default/configmaps", &map).await.0,
        201
    );
    server
}

async fn word(server: &Running) -> Value {
    server.get(&format!("{SECRETS}/s")).await.1["data"]["word"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_do_not_lie_open_and_come_back() {
    let server = with_a_secret().await;
    assert_eq!(word(&server).await, WORD);
    let dir = server.stop().await;
    assert!(!lies_on_disk(dir.path(), WORD));
    assert!(!lies_on_disk(dir.path(), "a-very-secret-word"));
    assert!(
        lies_on_disk(dir.path(), "an-open-word"),
        "or nothing would be found at all"
    );
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(word(&server).await, WORD);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_key_is_said_and_nothing_is_changed() {
    let dir = with_a_secret().await.stop().await;
    let key = dir.path().join("data/encryption.key");
    let right = std::fs::read_to_string(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let missing = ApiServer::start(config(dir.path())).await.unwrap_err();
    let said = missing.to_string();
    assert!(
        said.contains("secrets default/s in") && said.contains("is not in"),
        "{said}"
    );
    assert!(said.contains(&key.display().to_string()), "{said}");
    assert!(
        !key.exists(),
        "no key is made that would be taken for the right one"
    );
    let other = right.lines().next_back().unwrap().replace("key1 ", "other ");
    let other = format!("{}AAAA{}\n", &other[..6], &other[10..]);
    crate::harness::write_private(&key, &other);
    let wrong = ApiServer::start(config(dir.path())).await.unwrap_err();
    assert!(
        wrong.to_string().contains("restore the file with the keys"),
        "{wrong}"
    );
    crate::harness::write_private(&key, "key1 too-short\n");
    let bad = ApiServer::start(config(dir.path())).await.unwrap_err();
    assert!(
        matches!(bad, Error::Keys(_)) && bad.to_string().contains("line 1"),
        "{bad}"
    );
    crate::harness::write_private(&key, &right);
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(word(&server).await, WORD);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_change_with_a_restart() {
    let dir = with_a_secret().await.stop().await;
    let key = dir.path().join("data/encryption.key");
    let old = std::fs::read_to_string(&key).unwrap();
    let new = "new QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=\n";
    crate::harness::write_private(&key, &format!("{new}{old}"));
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(word(&server).await, WORD);
    let dir = server.stop().await;
    // Everything is encrypted with the new one by now.
    crate::harness::write_private(&key, new);
    let server = Running::start_with(dir, Vec::new()).await;
    assert_eq!(word(&server).await, WORD);
    let dir = server.stop().await;
    crate::harness::write_private(&key, &old);
    assert!(
        ApiServer::start(config(dir.path())).await.is_err(),
        "the old one is of no use any more"
    );
}
