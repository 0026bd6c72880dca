//! The data of a server as a whole: snapshots, restoring, checking; and a server that nobody asks for anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use svcnet_e2e::Ran;

use crate::etcd::Etcd;
use crate::process::Server;

fn store(args: &[&str], data_dir: &Path, kubeconfig: &Path) -> Ran {
    let mut command = Command::new(svcnet_e2e::binary());
    command.arg("store").args(args);
    if args[0] != "snapshot" {
        command.arg("--data-dir").arg(data_dir);
    }
    if args[0] != "restore" {
        command.arg("--kubeconfig").arg(kubeconfig);
    }
    command.env_remove("KUBECONFIG").output().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_server_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::new(dir.path(), "one", &[]);
    let client = server.start().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"x": "y"}})).unwrap();
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"x": "y"}})).unwrap();
    let kept = maps.create(&PostParams::default(), &map).await.unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();

    let data = server.data_dir();
    let kubeconfig = server.kubeconfig();
    let run = |args: &[&str]| store(args, &data, &kubeconfig);
    let file = dir.path().join("snapshot").display().to_string();
    assert!(run(&["snapshot", &file]).text().contains(&file));
    assert!(run(&["snapshot", &file]).err.contains("is there already"));
    assert!(
        !std::fs::read(&file).unwrap().windows(4).any(|w| w == b"eQ=="),
        "the Secret's value"
    );
    let told = run(&["check"]);
    assert!(
        told.text().contains("configmaps") && told.text().contains("its datastore is sled"),
        "{told:?}"
    );
    let refused = run(&["restore", &file]);
    assert!(!refused.ok && refused.err.contains("--force"), "{refused:?}");
    let refused = run(&["restore", &file, "--force"]);
    assert!(!refused.ok && refused.err.contains("in use"), "{refused:?}");

    // After the snapshot, something goes and something comes.
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let late: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "late"}})).unwrap();
    let late = maps.create(&PostParams::default(), &late).await.unwrap();
    server.kill();
    let checked = run(&["check"]);
    assert!(checked.text().contains("is whole"), "{checked:?}");
    let cut = dir.path().join("cut").display().to_string();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let refused = run(&["restore", &cut, "--force"]);
    assert!(!refused.ok && refused.err.contains("damaged"), "{refused:?}");
    let restored = run(&["restore", &file, "--force"]);
    assert!(restored.text().contains("objects restored"), "{restored:?}");

    let client = server.start().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client, "default");
    assert_eq!(maps.get("a").await.unwrap(), kept);
    assert_eq!(secrets.get("s").await.unwrap().data.unwrap()["x"].0, b"y");
    assert!(maps.get_opt("late").await.unwrap().is_none());
    let revision = |text: Option<String>| text.unwrap().parse::<u64>().unwrap();
    let list = maps.list(&ListParams::default()).await.unwrap();
    assert!(revision(list.metadata.resource_version) > revision(late.metadata.resource_version));
}

fn files(dir: &Path, found: &mut BTreeMap<PathBuf, (u64, SystemTime)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let about = entry.metadata().unwrap();
        if about.is_dir() {
            files(&entry.path(), found);
        } else {
            found.insert(entry.path(), (about.len(), about.modified().unwrap()));
        }
    }
}

/// What a process has written to disks, in bytes.
fn written(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::new(dir.path(), "one", &[]);
    server.start().await;
    // Its controllers renew their Lease every two seconds, and it looks after what every cluster has every five. What a
    // start leaves behind is over when a while has been quiet once; a server that writes all the time never is.
    let state = || {
        let mut found = BTreeMap::new();
        files(&server.data_dir(), &mut found);
        (found, written(server.pid()))
    };
    for _ in 0..5 {
        let before = state();
        tokio::time::sleep(Duration::from_secs(6)).await;
        if state() == before {
            return;
        }
    }
    panic!("it keeps writing: {:?}", state());
}

/// What a restored server must have of one before.
async fn holds(client: &kube::Client, kept: &ConfigMap, web: &str) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let map = maps.get("a").await.unwrap();
    assert_eq!((&map.data, &map.metadata.uid), (&kept.data, &kept.metadata.uid));
    assert_eq!(secrets.get("s").await.unwrap().data.unwrap()["x"].0, b"y");
    let there = services.get("web").await.unwrap().spec.unwrap();
    assert_eq!(there.cluster_ip.as_deref(), Some(web));
    // What is given away is known: it is not given again.
    let again = json!({"metadata": {"name": "again"}, "spec": {"clusterIP": web, "ports": [{"port": 80}]}});
    let again: Service = serde_json::from_value(again).unwrap();
    let refused = services.create(&PostParams::default(), &again).await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.code == 422),
        "{refused:?}"
    );
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_moves_a_cluster_to_an_etcd_and_back() {
    let etcd = Etcd::start().await;
    let dir = etcd.file("one");
    let mut server = Server::new(&dir, "one", &[]);
    let client = server.start().await;
    let post = PostParams::default();
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"x": "y"}})).unwrap();
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"x": "y"}})).unwrap();
    let web: Service =
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}))
            .unwrap();
    let kept = Api::namespaced(client.clone(), "default")
        .create(&post, &map)
        .await
        .unwrap();
    Api::namespaced(client.clone(), "default")
        .create(&post, &secret)
        .await
        .unwrap();
    let web = Api::namespaced(client.clone(), "default")
        .create(&post, &web)
        .await
        .unwrap();
    let web = web.spec.unwrap().cluster_ip.unwrap();
    let (data, kubeconfig) = (server.data_dir(), server.kubeconfig());
    let run = |args: &[&str]| store(args, &data, &kubeconfig);
    let from_sled = etcd.file("sled.snapshot").display().to_string();
    run(&["snapshot", &from_sled]).text();
    // A token is no object, and goes along.
    let made = Command::new(svcnet_e2e::binary())
        .args([
            "token",
            "create",
            "--role",
            "viewer",
            "--ttl",
            "0",
            "--kubeconfig",
        ])
        .arg(&kubeconfig)
        .output();
    let viewer = Ran::from(made.unwrap()).text().to_string();
    let with_token = etcd.file("token.snapshot").display().to_string();
    run(&["snapshot", &with_token]).text();
    let token = server.token();
    server.stop();

    let on_etcd = Server::on(&etcd, &token);
    let there: Vec<&str> = on_etcd[..8].iter().map(String::as_str).collect();
    let restore = |file: &str, force: &[&str]| run(&[&["restore", file][..], &there, force].concat());
    let done = restore(&with_token, &[]);
    assert!(done.text().contains("objects restored to etcd"), "{done:?}");
    let mut server = Server::new(&dir, "one", &on_etcd);
    let client = server.start().await;
    holds(&client, &kept, &web).await;
    let viewing = Command::new("kubectl")
        .args([
            "--kubeconfig",
            "/dev/null",
            "--insecure-skip-tls-verify",
            "--server",
        ])
        .args([
            &server.url(),
            "--token",
            &viewer,
            "get",
            "configmap",
            "a",
            "-o",
            "name",
        ])
        .output();
    assert_eq!(Ran::from(viewing.unwrap()).text(), "configmap/a");
    let refused = restore(&from_sled, &["--force"]);
    assert!(
        !refused.ok && refused.err.contains("servers run on this etcd"),
        "{refused:?}"
    );
    // Back again, with what has come meanwhile.
    let late: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "late"}})).unwrap();
    Api::namespaced(client, "default")
        .create(&post, &late)
        .await
        .unwrap();
    let from_etcd = etcd.file("etcd.snapshot").display().to_string();
    run(&["snapshot", &from_etcd]).text();
    server.stop();
    let refused = restore(&from_sled, &[]);
    assert!(!refused.ok && refused.err.contains("--force"), "{refused:?}");
    assert!(restore(&from_sled, &["--force"]).ok);
    assert!(run(&["restore", &from_etcd, "--force"]).ok);
    let mut server = Server::new(&dir, "one", &[]);
    let client = server.start().await;
    holds(&client, &kept, &web).await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    assert!(maps.get_opt("late").await.unwrap().is_some());
    server.stop();
    // And what was forced upon the etcd has neither that nor the token.
    let mut server = Server::new(&dir, "one", &on_etcd);
    let client = server.start().await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    assert!(maps.get_opt("a").await.unwrap().is_some() && maps.get_opt("late").await.unwrap().is_none());
}
