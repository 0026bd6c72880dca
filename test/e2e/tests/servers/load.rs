//! Services that are made and deleted by several writers at once, and what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::task::JoinSet;

const WRITERS: usize = 8;

/// What a Service was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    address: String,
    port: i32,
}

/// What writers were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Services that must be there.
    there: Mutex<BTreeMap<String, Given>>,
    /// Services that must not be there.
    gone: Mutex<BTreeSet<String>>,
    /// Services of which that is not known: a deletion was begun.
    deleting: Mutex<BTreeSet<String>>,
    /// The highest revision of a write that was acknowledged.
    revision: Mutex<u64>,
    pub(crate) acknowledged: AtomicUsize,
}

/// Writers at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Begins; what is refused because a server is away is tried under another name.
    pub(crate) fn begin(client: &kube::Client, told: &Arc<Told>, prefix: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, told, stop) = (client.clone(), told.clone(), stop.clone());
            let prefix = format!("{prefix}-{writer}");
            tasks.spawn(async move {
                let services: Api<Service> = Api::namespaced(client, "default");
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if write(&services, &told, &format!("{prefix}-{turn}"), turn % 3 == 2)
                        .await
                        .is_none()
                    {
                        // Whoever is away is not hammered.
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                }
            });
        }
        Self { stop, tasks }
    }

    pub(crate) async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
    }
}

/// Makes a Service, and deletes it again if it is to go. Nothing when the server did not say what became of it.
async fn write(services: &Api<Service>, told: &Told, name: &str, goes: bool) -> Option<()> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80}]},
    }))
    .unwrap();
    let made = answered(services.create(&PostParams::default(), &service).await)?;
    note(told, &made);
    told.there.lock().unwrap().insert(name.to_string(), given(&made));
    if !goes {
        return Some(());
    }
    told.deleting.lock().unwrap().insert(name.to_string());
    told.there.lock().unwrap().remove(name);
    answered(services.delete(name, &DeleteParams::default()).await)?;
    told.deleting.lock().unwrap().remove(name);
    told.gone.lock().unwrap().insert(name.to_string());
    told.acknowledged.fetch_add(1, Ordering::Relaxed);
    Some(())
}

fn note(told: &Told, made: &Service) {
    let revision: u64 = made.metadata.resource_version.as_ref().unwrap().parse().unwrap();
    let mut highest = told.revision.lock().unwrap();
    *highest = revision.max(*highest);
    told.acknowledged.fetch_add(1, Ordering::Relaxed);
}

/// The answer, unless the server is away. A refusal is a mistake of the test, or of the server.
fn answered<T>(result: Result<T, kube::Error>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(kube::Error::Api(status)) if status.code < 500 => panic!("refused: {status:?}"),
        Err(_) => None,
    }
}

fn given(service: &Service) -> Given {
    let spec = service.spec.as_ref().unwrap();
    Given {
        address: spec.cluster_ip.clone().unwrap(),
        port: spec.ports.as_ref().unwrap()[0].node_port.unwrap(),
    }
}

impl Told {
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.lock().unwrap()
    }

    /// Everything that was acknowledged is so, and nothing belongs to two Services. Gives the revision of the list. Writers
    /// may be at work meanwhile.
    pub(crate) async fn holds(&self, client: &kube::Client) -> u64 {
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        let (there, gone) = (
            self.there.lock().unwrap().clone(),
            self.gone.lock().unwrap().clone(),
        );
        let before = self.revision();
        let list = services.list(&ListParams::default()).await.unwrap();
        let found: BTreeMap<String, Given> = list
            .items
            .iter()
            .filter(|s| s.spec.as_ref().unwrap().type_.as_deref() == Some("NodePort"))
            .map(|s| (s.metadata.name.clone().unwrap(), given(s)))
            .collect();
        for (name, given) in &there {
            // Unless it was deleted since.
            if self.there.lock().unwrap().contains_key(name) {
                assert_eq!(found.get(name), Some(given), "{name} was acknowledged");
            }
        }
        for name in &gone {
            assert!(!found.contains_key(name), "{name} was deleted");
        }
        let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for (name, given) in &found {
            assert!(
                addresses.insert(&given.address),
                "{name}: {given:?} is given twice"
            );
            assert!(ports.insert(given.port), "{name}: {given:?} is given twice");
        }
        let revision: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
        assert!(revision >= before, "revisions go back");
        revision
    }

    /// Deletes everything, so that ports do not run out.
    pub(crate) async fn clear(&self, client: &kube::Client) {
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        let params = ListParams::default();
        for service in services.list(&params).await.unwrap().items {
            let name = service.metadata.name.unwrap();
            if name != "kubernetes" {
                services.delete(&name, &DeleteParams::default()).await.unwrap();
                self.gone.lock().unwrap().insert(name);
            }
        }
        self.there.lock().unwrap().clear();
        self.deleting.lock().unwrap().clear();
    }
}
