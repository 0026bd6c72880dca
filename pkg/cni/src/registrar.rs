//! Tells the API which address a pod has: in the background, again and again until it is done or no longer true.
//!
//! A pod that a runtime starts without the API knowing it (podman, `ctr`, `crictl`) gets a Pod object, which goes with it. Its
//! labels are those that the runtime tells over its socket, else those of the pod's annotation.
//!
//! Runtimes tell labels only of sandboxes that run, so such a pod is held, not waited for: it starts isolated, and the
//! Pod object gets the runtime's uid once its labels are right, which is what lets the pod go (`svcnet_policy::gate`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta as Meta;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};
use svcnet_api::wellknown::{ANNOTATION_ALIASES, ANNOTATION_RUNTIME_UID};
use svcnet_runtime::backoff::Backoff;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cri;
use crate::ipam::Lease;
use crate::protocol::PodRef;

/// Whether the API knows the pod of this uid, or may hear of it from others: from those who made the object that has its name
/// now. An API that does not answer is taken for one that may.
pub(crate) async fn is_told(client: &kube::Client, pod: &PodRef, uid: &str) -> bool {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    match api.get_opt(&pod.name).await {
        Ok(Some(object)) => !is_ours(&object) || runtime_uid(&object) == Some(uid),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// On Pods that the daemon made, with the value `cni`.
const LABEL_CREATED_BY: &str = "svcnet.io/created-by";

/// How long the runtime is asked for the labels of a sandbox that it does not know yet, and how long apart.
const LABEL_WAIT_MAX: Duration = Duration::from_secs(20);
const LABEL_DELAY: Duration = Duration::from_millis(20);
const LABEL_DELAY_MAX: Duration = Duration::from_millis(500);

/// Which pod, whatever its identity.
type Key = (String, String);

/// What the API is to say about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// These are its addresses.
    Addresses {
        uid: Option<String>,
        addresses: Vec<IpAddr>,
        host: Option<IpAddr>,
        made: Made,
    },
    /// It has ended: the object goes if the daemon made it.
    Ended { uid: Option<String> },
}

/// What an object that the daemon makes says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Made {
    uid: Option<String>,
    container: String,
    labels: BTreeMap<String, String>,
    aliases: Vec<String>,
}

/// What is still to be told.
#[derive(Clone, Default)]
pub(crate) struct Registrar {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// One entry a pod: the last word counts.
    pending: Mutex<BTreeMap<Key, Wanted>>,
    more: Notify,
}

impl Registrar {
    /// The pod of a lease, if it is of one, has these addresses.
    pub(crate) fn register(&self, lease: &Lease, host: Option<IpAddr>) {
        let Some(pod) = &lease.pod else { return };
        self.put(
            pod,
            Wanted::Addresses {
                uid: pod.uid.clone(),
                addresses: lease.addresses.clone(),
                host,
                made: Made {
                    uid: pod.uid.clone(),
                    container: lease.attachment.container().to_string(),
                    labels: lease.runtime.labels.clone(),
                    aliases: lease.runtime.aliases.clone(),
                },
            },
        );
    }

    /// A pod has ended.
    pub(crate) fn unregister(&self, pod: &PodRef) {
        self.put(pod, Wanted::Ended { uid: pod.uid.clone() });
    }

    fn put(&self, pod: &PodRef, wanted: Wanted) {
        self.pending()
            .insert((pod.namespace.clone(), pod.name.clone()), wanted);
        self.inner.more.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<Key, Wanted>> {
        self.inner.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the API until shutdown. Objects that the daemon made for pods which are not among `running` go first:
    /// they ended while nobody looked.
    pub(crate) async fn run(self, teller: Teller, running: Vec<Key>, shutdown: CancellationToken) {
        let work = async {
            let mut backoff = Backoff::default();
            while let Err(error) = teller.remove_ended(&running).await {
                self.wait(&mut backoff, &error).await;
            }
            loop {
                if self.tell_all(&teller, &mut backoff).await {
                    self.inner.more.notified().await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// Tries everything once; whether nothing is left.
    async fn tell_all(&self, teller: &Teller, backoff: &mut Backoff) -> bool {
        let all: Vec<(Key, Wanted)> = self
            .pending()
            .iter()
            .map(|(k, w)| (k.clone(), w.clone()))
            .collect();
        let mut failure = None;
        for (key, wanted) in all {
            match teller.tell(&key, &wanted).await {
                Ok(()) => {
                    let mut pending = self.pending();
                    if pending.get(&key) == Some(&wanted) {
                        pending.remove(&key);
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => {
                self.wait(backoff, &error).await;
                false
            }
            None => {
                if backoff.reset() {
                    tracing::info!("pod addresses are registered again");
                }
                self.pending().is_empty()
            }
        }
    }

    async fn wait(&self, backoff: &mut Backoff, error: &kube::Error) {
        // The text of a connection's failure varies with every try.
        let news = match error {
            kube::Error::Api(status) => status.message.clone(),
            _ => "unreachable".to_string(),
        };
        if backoff.is_news(&news) {
            tracing::warn!(%error, "pod addresses can not be registered, trying on");
        }
        let delay: Duration = backoff.next_delay();
        tokio::time::sleep(delay).await;
    }
}

/// Whom to tell, and whom to ask.
pub(crate) struct Teller {
    pub(crate) client: kube::Client,
    pub(crate) node: String,
    /// The container runtime.
    pub(crate) runtime: Option<cri::Runtime>,
}

impl Teller {
    async fn tell(&self, (namespace, name): &Key, wanted: &Wanted) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = api.get_opt(name).await?;
        match (pod, wanted) {
            (
                Some(pod),
                Wanted::Addresses {
                    uid,
                    addresses,
                    host,
                    made,
                },
            ) => {
                if is_ours(&pod) && runtime_uid(&pod) != uid.as_deref() {
                    self.label_later(api.clone(), pod.clone(), made);
                }
                if !same(&pod, uid.as_ref()) {
                    tracing::debug!(object.ns = %namespace, object.name = %name, "a newer pod has the name");
                    return Ok(());
                }
                let patch = status(&pod, addresses, *host);
                match patch {
                    Some(patch) => gone_is_fine(
                        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                            .await,
                    ),
                    None => Ok(()),
                }
            }
            (
                None,
                Wanted::Addresses {
                    addresses,
                    host,
                    made,
                    ..
                },
            ) => {
                let object = self.object(namespace, name, made);
                match api.create(&PostParams::default(), &object).await {
                    // Somebody else was faster: the next try tells its object.
                    Err(kube::Error::Api(e)) if e.code == 409 && e.reason == "AlreadyExists" => {}
                    created => self.label_later(api.clone(), created?, made),
                }
                let patch = json!({ "status": running(addresses, *host) });
                gone_is_fine(
                    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                        .await,
                )
            }
            (Some(pod), Wanted::Ended { uid }) if is_ours(&pod) && same(&pod, uid.as_ref()) => {
                let preconditions = Preconditions {
                    uid: pod.metadata.uid,
                    ..Preconditions::default()
                };
                let params = DeleteParams {
                    preconditions: Some(preconditions),
                    ..DeleteParams::default()
                };
                gone_is_fine(api.delete(name, &params.grace_period(0)).await)
            }
            (_, Wanted::Ended { .. }) => Ok(()),
        }
    }

    /// Deletes the objects made for pods that are no more.
    async fn remove_ended(&self, running: &[Key]) -> Result<(), kube::Error> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let ours = ListParams::default()
            .labels(&format!("{LABEL_CREATED_BY}=cni"))
            .fields(&format!("spec.nodeName={}", self.node));
        for pod in all.list(&ours).await? {
            let key = (
                pod.metadata.namespace.unwrap_or_default(),
                pod.metadata.name.unwrap_or_default(),
            );
            if !running.contains(&key) {
                self.tell(
                    &key,
                    &Wanted::Ended {
                        uid: pod.metadata.uid,
                    },
                )
                .await?;
            }
        }
        Ok(())
    }

    fn object(&self, namespace: &str, name: &str, made: &Made) -> Pod {
        let mut labels = made.labels.clone();
        labels.insert(LABEL_CREATED_BY.to_string(), "cni".to_string());
        let mut object = json!({
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": {
                "nodeName": self.node,
                // The runtime does not tell what runs in it, and a Pod without a container is not valid.
                "containers": [{ "name": "unknown", "image": "unknown" }],
            },
        });
        if !made.aliases.is_empty() {
            object["metadata"]["annotations"] = json!({ ANNOTATION_ALIASES: made.aliases.join(",") });
        }
        serde_json::from_value(object).unwrap_or_default()
    }

    /// Gives an object that was made the labels that the runtime knows, and then the runtime's uid. It knows them only when the
    /// sandbox runs, a moment after ADD.
    fn label_later(&self, api: Api<Pod>, pod: Pod, made: &Made) {
        let runtime = self.runtime.clone();
        let made = made.clone();
        tokio::spawn(async move {
            let labels = match &runtime {
                Some(runtime) => labels_of(runtime, &made.container).await,
                None => BTreeMap::new(),
            };
            let annotations = made.uid.map(|uid| json!({ ANNOTATION_RUNTIME_UID: uid }));
            if labels.is_empty() && annotations.is_none() {
                return;
            }
            let Meta { name, uid, .. } = pod.metadata;
            let name = name.unwrap_or_default();
            // Not those of another pod that has the name by now.
            let metadata = json!({ "uid": uid, "labels": labels, "annotations": annotations.unwrap_or_else(|| json!({})) });
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            let mut backoff = Backoff::default();
            while let Err(error) = gone_is_fine(api.patch(&name, &PatchParams::default(), &patch).await) {
                tracing::debug!(%error, "a pod does not get the labels that the runtime knows, trying on");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        });
    }
}

/// The labels of a sandbox: none where the runtime has none, or tells nothing.
async fn labels_of(runtime: &cri::Runtime, container: &str) -> BTreeMap<String, String> {
    let start = Instant::now();
    let mut delay = LABEL_DELAY;
    while start.elapsed() < LABEL_WAIT_MAX {
        match runtime.pod_labels(container).await {
            Ok(Some(labels)) => return labels,
            Ok(None) => tokio::time::sleep(delay).await,
            Err(error) => {
                tracing::debug!(%error, "the container runtime tells no labels");
                break;
            }
        }
        delay = LABEL_DELAY_MAX.min(delay * 2);
    }
    BTreeMap::new()
}

/// Whether the object is of the pod that the runtime meant.
fn same(pod: &Pod, uid: Option<&String>) -> bool {
    uid.is_none_or(|uid| pod.metadata.uid.as_ref() == Some(uid) || is_ours(pod))
}

fn runtime_uid(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_RUNTIME_UID).map(String::as_str)
}

fn is_ours(pod: &Pod) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(LABEL_CREATED_BY))
        .is_some_and(|v| v == "cni")
}

fn addresses_status(addresses: &[IpAddr], host: Option<IpAddr>) -> Value {
    let list: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let mut status = json!({ "podIP": addresses.first(), "podIPs": list });
    if let Some(host) = host {
        status["hostIP"] = json!(host);
        status["hostIPs"] = json!([{ "ip": host }]);
    }
    status
}

/// The status of a pod that nobody else speaks for.
fn running(addresses: &[IpAddr], host: Option<IpAddr>) -> Value {
    let mut status = addresses_status(addresses, host);
    status["phase"] = json!("Running");
    status["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    status
}

/// The patch that the object needs, if any.
fn status(pod: &Pod, addresses: &[IpAddr], host: Option<IpAddr>) -> Option<Value> {
    let status = pod.status.clone().unwrap_or_default();
    let has: Vec<String> = status
        .pod_ips
        .unwrap_or_default()
        .into_iter()
        .map(|ip| ip.ip)
        .collect();
    let wants: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let host_is_right = host.is_none_or(|h| status.host_ip == Some(h.to_string()));
    if has == wants && status.pod_ip.as_ref() == wants.first() && host_is_right {
        return None;
    }
    let full = if is_ours(pod) {
        running(addresses, host)
    } else {
        addresses_status(addresses, host)
    };
    Some(json!({ "status": full }))
}

fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(error)) if is_gone(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Gone, or another one by now.
fn is_gone(error: &Status) -> bool {
    error.code == 404 || (error.code == 409 && error.reason == "Conflict")
}
