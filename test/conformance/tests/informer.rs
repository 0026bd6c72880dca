//! Informers of kube-rs through kills of the server, ends of watches, and compaction: they see what was acknowledged, each
//! of it once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config};
use svcnet_conformance::model::{Acknowledged, Seen, disagreements};
use svcnet_conformance::{END, Server, Writers, seen};

/// How long the informers may take to see the end.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);
/// Bytes of an object of which 60 are more than the server remembers (8 MiB).
const LARGE: usize = 200 << 10;

async fn client(kubeconfig: &Path) -> Client {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

/// The informer as the documentation of the API describes it: list, watch from there, and from what was seen last; list
/// again when that is gone. Before each watch it rests for as long as `rest` says.
async fn list_and_watch(api: Api<ConfigMap>, rest: tokio::sync::watch::Receiver<bool>) -> (Vec<Seen>, u32) {
    let (mut all, mut lists) = (Vec::new(), 0);
    // Watches end often, so that many begin where another ended.
    let params = WatchParams::default().timeout(1);
    'list: loop {
        let Ok(list) = api.list(&ListParams::default()).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        lists += 1;
        let mut revision = list.metadata.resource_version.clone().unwrap();
        let objects: BTreeMap<_, _> = list
            .iter()
            .filter(|o| is_ours(o))
            .map(|o| {
                let (name, value, revision) = seen(o);
                (name, (value, revision))
            })
            .collect();
        let ends = objects.contains_key(END);
        all.push(Seen::List(revision.parse().unwrap(), objects));
        if ends {
            return (all, lists);
        }
        loop {
            rest.clone().wait_for(|rests| !rests).await.unwrap();
            let Ok(events) = api.watch(&params, &revision).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let mut events = pin!(events);
            // An error is the end of the connection: on from where it was.
            while let Ok(Some(event)) = events.try_next().await {
                let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) =
                    &event
                else {
                    match event {
                        WatchEvent::Bookmark(mark) => {
                            revision = mark.metadata.resource_version;
                            all.push(Seen::Bookmark(revision.parse().unwrap()));
                        }
                        WatchEvent::Error(status) => {
                            assert_eq!(status.code, 410, "{status:?}");
                            continue 'list;
                        }
                        _ => {}
                    }
                    continue;
                };
                revision = object.metadata.resource_version.clone().unwrap();
                if !is_ours(object) {
                    continue;
                }
                let (name, value, at) = seen(object);
                let ends = name == END;
                all.push(match event {
                    WatchEvent::Added(_) => Seen::Added(name, value, at),
                    WatchEvent::Modified(_) => Seen::Modified(name, value, at),
                    _ => Seen::Deleted(name, at),
                });
                if ends {
                    return (all, lists);
                }
            }
        }
    }
}

fn is_ours(object: &ConfigMap) -> bool {
    object
        .data
        .as_ref()
        .is_some_and(|data| data.contains_key("value"))
}

/// kube-rs's own: a reflector over a watcher. What it holds once it has seen the end.
async fn reflected(api: Api<ConfigMap>) -> BTreeMap<String, u64> {
    let writer = Writer::<ConfigMap>::default();
    let store = writer.as_reader();
    let events = reflector::reflector(writer, watcher(api, watcher::Config::default())).default_backoff();
    let mut events = pin!(events);
    let ours = || {
        let objects = store.state();
        let ours = objects.iter().filter(|o| is_ours(o)).map(|o| seen(o));
        ours.map(|(name, value, _)| (name, value))
            .collect::<BTreeMap<_, _>>()
    };
    loop {
        // What fails is told, and tried again by the watcher.
        _ = events.next().await.expect("a watcher does not end");
        if ours().contains_key(END) {
            return ours();
        }
    }
}

/// Makes the server forget what was before.
async fn compact(api: &Api<ConfigMap>) {
    let mut object = ConfigMap {
        metadata: ObjectMeta {
            name: Some("large".to_string()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    for round in 0..60 {
        let text = format!("{round}{}", "x".repeat(LARGE));
        object.data = Some(BTreeMap::from([("large".to_string(), text)]));
        if round == 0 {
            api.create(&PostParams::default(), &object).await.unwrap();
        } else {
            api.replace("large", &PostParams::default(), &object)
                .await
                .unwrap();
        }
    }
    api.delete("large", &DeleteParams::default()).await.unwrap();
}

async fn until_written(writers: &Writers, count: u64) {
    let start = Instant::now();
    while writers.written() < count {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} writes are acknowledged",
            writers.written()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn last(acknowledged: &Acknowledged) -> BTreeMap<String, u64> {
    use svcnet_conformance::model::Op;

    let last = acknowledged.iter().filter_map(|(name, ops)| match ops.last()? {
        Op::Put { value, .. } => Some((name.clone(), *value)),
        Op::Delete => None,
    });
    last.collect()
}

async fn through(kills: u64) {
    let mut server = Server::start(&[]);
    let client = client(&server.kubeconfig()).await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let (resting, rest) = tokio::sync::watch::channel(false);
    let informer = tokio::spawn(list_and_watch(api.clone(), rest));
    let reflector = tokio::spawn(reflected(api.clone()));
    let writers = Writers::start(&client, 3);
    for kill in 0..kills {
        until_written(&writers, (kill + 1) * 40).await;
        // While they write.
        tokio::time::sleep(Duration::from_millis(kill * 37 % 100)).await;
        tokio::task::block_in_place(|| {
            server.kill();
            server.begin();
        });
    }
    until_written(&writers, (kills + 1) * 40).await;
    resting.send(true).unwrap();
    // Until the watch that is under way has ended.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    compact(&api).await;
    resting.send(false).unwrap();
    until_written(&writers, writers.written() + 40).await;
    let acknowledged = writers.finish().await;

    let (all, lists) = tokio::time::timeout(PATIENCE, informer)
        .await
        .expect("the end is seen")
        .unwrap();
    let wrong = disagreements(&acknowledged, &all);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(lists >= 2, "nothing was compacted: {lists} lists");
    let events = all
        .iter()
        .filter(|s| !matches!(s, Seen::List(..) | Seen::Bookmark(_)))
        .count();
    assert!(events > 20, "{events} events");
    let held = tokio::time::timeout(PATIENCE, reflector)
        .await
        .expect("the end is reflected")
        .unwrap();
    assert_eq!(held, last(&acknowledged));
    println!(
        "{} writes, {kills} kills: {lists} lists, {events} events",
        acknowledged.values().map(Vec::len).sum::<usize>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn informers_miss_and_double_nothing() {
    through(3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: test/conformance/run"]
async fn informers_miss_and_double_nothing_through_many_kills() {
    through(40).await;
}
