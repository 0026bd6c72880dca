//! An etcd that has forgotten what a server had not seen: the server's watchers and pagers are told so, and go on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};

use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::runtime::watcher::{self, Event, watcher};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use svcnet_e2e::Ran;

use crate::etcd::{Etcd, SOON};
use crate::process::Server;
use crate::shared::until;

/// What an informer has made of the events that it got.
#[derive(Debug, Default)]
struct Seen {
    /// Names, and the revisions of their objects.
    now: BTreeMap<String, String>,
    /// A list that is under way.
    listed: BTreeMap<String, String>,
    lists: u32,
    /// Changes that were told one by one.
    told: BTreeSet<(String, String)>,
}

impl Seen {
    fn take(&mut self, event: Event<ConfigMap>) {
        let of = |map: &ConfigMap| {
            let meta = &map.metadata;
            (meta.name.clone().unwrap(), meta.resource_version.clone().unwrap())
        };
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(map) => self.listed.extend([of(&map)]),
            Event::InitDone => {
                self.now = std::mem::take(&mut self.listed);
                self.lists += 1;
            }
            Event::Apply(map) => {
                let (name, revision) = of(&map);
                assert!(
                    self.told.insert((name.clone(), revision.clone())),
                    "{name} {revision} twice"
                );
                self.now.insert(name, revision);
            }
            Event::Delete(map) => {
                let (name, revision) = of(&map);
                assert!(
                    self.told.insert((name.clone(), revision)),
                    "{name} is deleted twice"
                );
                self.now.remove(&name);
            }
        }
    }
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"test": "compacted"}}})).unwrap()
}

/// Has an etcd forget everything before a revision, by its own API.
fn compact(etcd: &Etcd, revision: &str) {
    let file = |name: &str| etcd.file(name).display().to_string();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "--max-time", "30", "--noproxy", "*"]);
    // All its certificates have one name, by which curl takes the server's for self-signed.
    curl.arg("--insecure");
    curl.args(["--cert", &file("client.crt"), "--key", &file("client.key")]);
    curl.args(["-d", &json!({"revision": revision, "physical": true}).to_string()]);
    let ran: Ran = curl
        .arg(format!("{}/v3/kv/compaction", etcd.url()))
        .output()
        .unwrap()
        .into();
    assert!(ran.text().contains("revision"), "{ran:?}");
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
#[tokio::test(flavor = "multi_thread")]
async fn watchers_and_pagers_recover_when_etcd_has_forgotten_what_their_server_missed() {
    let mut etcd = Etcd::start().await;
    let args = Server::on(&etcd, "a-secret-of-our-own");
    let mut one = Server::new(&etcd.file("one"), "one", &args);
    let mut two = Server::new(&etcd.file("two"), "two", &args);
    let maps = |client: kube::Client| Api::<ConfigMap>::namespaced(client, "default");
    let (first, second) = (maps(one.start().await), maps(two.start().await));
    let post = PostParams::default();
    for turn in 0..10 {
        first.create(&post, &map(&format!("m{turn}"))).await.unwrap();
    }
    let selected = ListParams::default().labels("test=compacted");
    let page = first.list(&selected.clone().limit(4)).await.unwrap();
    let token = page.metadata.continue_.clone().unwrap();
    let listed = page.metadata.resource_version.clone().unwrap();
    let watched = first
        .watch(&WatchParams::default().labels("test=compacted"), &listed)
        .await
        .unwrap();
    let mut watched = Box::pin(watched);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (informed, of_first) = (seen.clone(), first.clone());
    let informer = tokio::spawn(async move {
        let events = watcher(of_first, watcher::Config::default().labels("test=compacted"));
        let mut events = Box::pin(events);
        // What fails is tried again by the next poll.
        while let Some(event) = events.next().await {
            if let Ok(event) = event {
                informed.lock().unwrap().take(event);
            }
        }
    });
    until("the informer knows all", async || {
        seen.lock().unwrap().now.len() == 10
    })
    .await;
    first.create(&post, &map("told")).await.unwrap();
    until("the informer is told of a change", async || {
        seen.lock().unwrap().told.len() == 1
    })
    .await;

    // The server sleeps, its connection breaks meanwhile, and what happens is forgotten before it wakes.
    let pid = Pid::from_raw(i32::try_from(one.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    etcd.restart().await;
    until("the other server is back", async || {
        second.list(&ListParams::default()).await.is_ok()
    })
    .await;
    for turn in 0..5 {
        let patch = Patch::Merge(json!({"data": {"x": "y"}}));
        second
            .patch(&format!("m{turn}"), &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
    second.delete("m9", &DeleteParams::default()).await.unwrap();
    second.create(&post, &map("new")).await.unwrap();
    let all = second.list(&selected).await.unwrap();
    compact(&etcd, all.metadata.resource_version.as_ref().unwrap());
    kill(pid, Signal::SIGCONT).unwrap();

    let gone = async {
        loop {
            match watched
                .try_next()
                .await
                .unwrap()
                .expect("the watch says why it ends")
            {
                WatchEvent::Error(status) => return status.code,
                WatchEvent::Added(map) => assert_eq!(map.metadata.name.as_deref(), Some("told")),
                WatchEvent::Bookmark(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, gone).await.unwrap(), 410);
    let next = |token: &str| selected.clone().limit(4).continue_token(token);
    let path = "/api/v1/namespaces/default/configmaps?labelSelector=test%3Dcompacted&limit=4";
    let request = http::Request::get(format!("{path}&continue={token}"))
        .body(Body::empty())
        .unwrap();
    let answer = first.clone().into_client().send(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let expired: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&expired["code"], &expired["reason"]),
        (&json!(410), &json!("Expired"))
    );
    // As its words say, the list can be had as it is now, from there on.
    let fresh = expired["metadata"]["continue"].as_str().expect("where to go on");
    let rest = first.list(&next(fresh)).await.unwrap();
    let names: Vec<String> = rest
        .items
        .iter()
        .filter_map(|m| m.metadata.name.clone())
        .collect();
    assert_eq!(names, ["m4", "m5", "m6", "m7"]);
    let wanted: BTreeMap<String, String> = all
        .items
        .iter()
        .map(|m| {
            let meta = &m.metadata;
            (meta.name.clone().unwrap(), meta.resource_version.clone().unwrap())
        })
        .collect();
    until("the informer has missed nothing", async || {
        seen.lock().unwrap().now == wanted
    })
    .await;
    // And is told of what comes, once.
    first.create(&post, &map("last")).await.unwrap();
    until("the informer goes on", async || {
        seen.lock().unwrap().now.contains_key("last")
    })
    .await;
    assert_eq!(seen.lock().unwrap().lists, 2, "it has listed anew, once");
    informer.abort();
}
