//! Which Services this node answers for, as `ServiceL2Status` objects: for people, and for tools made for MetalLB, which
//! writes them in the same form (internal/k8s/controllers/layer2_status_controller.go).
//!
//! An announcer writes and deletes its own alone. When it dies, the controller that holds the node for dead deletes them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use svcnet_api::metallb::{GROUP, VERSION};
use svcnet_api::wellknown::{LABEL_L2_STATUS_NODE, NAMESPACE_METALLB};
use svcnet_runtime::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::desired::Links;
use crate::view::Key;

const LABEL_SERVICE: &str = "metallb.io/service-name";
const LABEL_NAMESPACE: &str = "metallb.io/service-namespace";
/// Addresses come and go together.
const SETTLE: Duration = Duration::from_millis(200);
/// What others have done to the objects is looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A cluster without the kind may get it; nobody waits for that.
const MISSING_LOOK_EVERY: Duration = Duration::from_secs(300);

/// The Services that are announced from here, each with the links that its advertisements name (none: all of them).
pub(crate) type Statuses = BTreeMap<Key, Vec<String>>;

/// The links as a status names them.
pub(crate) fn interfaces(links: &Links) -> Vec<String> {
    match links {
        Links::All => Vec::new(),
        Links::Named(names) => names.iter().cloned().collect(),
    }
}

/// An object as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Observed {
    name: String,
    service: Key,
    /// As its status says; `None` where it has none yet.
    interfaces: Option<Vec<String>>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    Create(Key, Vec<String>),
    /// The object's name, and what its status is to say.
    Write(String, Key, Vec<String>),
    Delete(String),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(service, _) => write!(f, "create the status of {service}"),
            Self::Write(name, service, _) => write!(f, "write the status of {service} into {name}"),
            Self::Delete(name) => write!(f, "delete {name}"),
        }
    }
}

/// What makes the objects of this node say what is announced from it.
fn plan(desired: &Statuses, observed: &[Observed]) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut kept: BTreeMap<&Key, &Observed> = BTreeMap::new();
    for object in observed {
        if !desired.contains_key(&object.service) || kept.contains_key(&object.service) {
            operations.push(Operation::Delete(object.name.clone()));
        } else {
            kept.insert(&object.service, object);
        }
    }
    for (service, interfaces) in desired {
        match kept.get(service) {
            None => operations.push(Operation::Create(service.clone(), interfaces.clone())),
            Some(object) if object.interfaces.as_ref() != Some(interfaces) => {
                let name = object.name.clone();
                operations.push(Operation::Write(name, service.clone(), interfaces.clone()));
            }
            Some(_) => {}
        }
    }
    operations
}

/// Writes what is announced until the sender is gone.
pub(crate) async fn follow(
    client: kube::Client,
    node: String,
    mut desired: watch::Receiver<Option<Statuses>>,
) {
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(GROUP, VERSION, "ServiceL2Status"),
        "servicel2statuses",
    );
    let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE_METALLB, &kind);
    let mut failures = Backoff::default();
    loop {
        // Before the first election nothing is known, and what stands from before stays.
        let wanted = desired.borrow_and_update().clone();
        let mut next = Instant::now() + LOOK_EVERY;
        if let Some(wanted) = wanted {
            match reconcile(&api, &node, &wanted).await {
                Ok(()) => _ = failures.reset(),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    next = Instant::now() + MISSING_LOOK_EVERY;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if failures.is_news(&reason) {
                        tracing::warn!(
                            node,
                            reason,
                            "cannot write which Services are announced, trying again"
                        );
                    }
                    next = Instant::now() + failures.next_delay();
                }
            }
        }
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => sleep(SETTLE).await,
                Err(_) => return,
            },
            () = sleep_until(next) => {}
        }
    }
}

async fn reconcile(api: &Api<DynamicObject>, node: &str, desired: &Statuses) -> Result<(), kube::Error> {
    let own = ListParams::default().labels(&format!("{LABEL_L2_STATUS_NODE}={node}"));
    let there = api.list(&own).await?;
    let observed: Vec<Observed> = there.items.iter().filter_map(observe).collect();
    for operation in plan(desired, &observed) {
        tracing::debug!(plan.ops = %operation, "writing which Services are announced");
        apply(api, node, operation).await?;
    }
    Ok(())
}

async fn apply(api: &Api<DynamicObject>, node: &str, operation: Operation) -> Result<(), kube::Error> {
    let params = PatchParams::default();
    match operation {
        Operation::Create(service, interfaces) => {
            let object = serde_json::from_value(object(node, &service)).map_err(kube::Error::SerdeError)?;
            let made: DynamicObject = api.create(&PostParams::default(), &object).await?;
            let patch = status(node, &service, &interfaces);
            let name = made.metadata.name.unwrap_or_default();
            api.patch_status(&name, &params, &Patch::Merge(&patch)).await?;
        }
        Operation::Write(name, service, interfaces) => {
            let patch = status(node, &service, &interfaces);
            api.patch_status(&name, &params, &Patch::Merge(&patch)).await?;
        }
        Operation::Delete(name) => match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => _ = done?,
        },
    }
    Ok(())
}

fn object(node: &str, service: &Key) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "ServiceL2Status",
        "metadata": {"generateName": "l2-", "namespace": NAMESPACE_METALLB, "labels": {
            LABEL_L2_STATUS_NODE: node, LABEL_SERVICE: service.name, LABEL_NAMESPACE: service.namespace,
        }},
    })
}

fn status(node: &str, service: &Key, interfaces: &[String]) -> Value {
    let interfaces: Vec<Value> = interfaces.iter().map(|name| json!({"name": name})).collect();
    json!({"status": {
        "node": node, "serviceName": service.name, "serviceNamespace": service.namespace,
        // A merge patch: what is empty must be taken out.
        "interfaces": if interfaces.is_empty() { Value::Null } else { interfaces.into() },
    }})
}

fn observe(object: &DynamicObject) -> Option<Observed> {
    let labels = object.metadata.labels.as_ref()?;
    let status = &object.data["status"];
    let names = status["interfaces"].as_array().into_iter().flatten();
    let names = names.filter_map(|i| i["name"].as_str().map(str::to_string));
    Some(Observed {
        name: object.metadata.name.clone()?,
        service: Key::new(labels.get(LABEL_NAMESPACE)?, labels.get(LABEL_SERVICE)?),
        interfaces: status["node"].is_string().then(|| names.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(name: &str, service: &str, interfaces: Option<&[&str]>) -> Observed {
        Observed {
            name: name.to_string(),
            service: Key::new("default", service),
            interfaces: interfaces.map(|all| all.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn each_service_that_is_announced_has_one_object() {
        let desired: Statuses = [
            (Key::new("default", "a"), vec![]),
            (Key::new("default", "b"), vec!["eth0".to_string()]),
        ]
        .into();
        let text = |observed: &[Observed]| {
            let operations = plan(&desired, observed);
            operations
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(
            text(&[]),
            "create the status of default/a; create the status of default/b"
        );
        let right = [
            observed("l2-1", "a", Some(&[])),
            observed("l2-2", "b", Some(&["eth0"])),
        ];
        assert_eq!(text(&right), "");
        assert_eq!(
            text(&[
                observed("l2-1", "a", None),
                observed("l2-2", "b", Some(&["eth1"])),
                observed("l2-3", "c", Some(&[])),
                observed("l2-4", "a", Some(&[])),
            ]),
            "delete l2-3; delete l2-4; write the status of default/a into l2-1; write the status of default/b into l2-2"
        );
    }

    #[test]
    fn objects_are_those_of_metallb() {
        let service = Key::new("default", "web");
        let mut whole = object("n1", &service);
        whole["metadata"]["name"] = json!("l2-abcde");
        whole["status"] = status("n1", &service, &["eth0".to_string()])["status"].clone();
        assert_eq!(whole["metadata"]["labels"]["metallb.io/node"], "n1");
        assert_eq!(whole["status"]["interfaces"], json!([{"name": "eth0"}]));
        let there = observe(&serde_json::from_value(whole).unwrap());
        assert_eq!(there, Some(observed("l2-abcde", "web", Some(&["eth0"]))));
        assert_eq!(status("n1", &service, &[])["status"]["interfaces"], Value::Null);
    }
}
