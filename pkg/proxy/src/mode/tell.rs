//! Telling the cluster which mode there is: the Node's condition, and Events.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use svcnet_api::wellknown::NAMESPACE_SYSTEM;
use svcnet_runtime::backoff::Backoff;
use svcnet_runtime::events;
use tokio::sync::{mpsc, watch};

use super::{CONFIG_MAP, Choice};
use crate::backend::Mode;

/// Type of the Node's condition: `True` when the mode is the one that is asked for.
pub const CONDITION: &str = "ProxyMode";
const COMPONENT: &str = "svcnet-proxy";

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The mode is another one, or not the one that is asked for.
    Mode { former: Option<Mode>, choice: Choice },
    /// The ConfigMap can not be followed.
    BadConfig { uid: Option<String>, why: String },
}

/// The condition as it stands at the Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    status: String,
    message: String,
}

impl Condition {
    /// As a Node shows it.
    pub(crate) fn of(node: &Node) -> Option<Self> {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let ours = conditions.iter().find(|condition| condition.type_ == CONDITION)?;
        Some(Self {
            status: ours.status.clone(),
            message: ours.message.clone().unwrap_or_default(),
        })
    }

    /// As it should be.
    fn wanted(choice: &Choice) -> Self {
        Self {
            status: if choice.asked == choice.used {
                "True"
            } else {
                "False"
            }
            .to_string(),
            message: choice.to_string(),
        }
    }

    fn patch(&self, now: Timestamp, changed: bool) -> serde_json::Value {
        let mut condition = json!({
            "type": CONDITION,
            "status": self.status,
            "reason": if self.status == "True" { "AsAskedFor" } else { "FellBack" },
            "message": self.message,
            "lastHeartbeatTime": Time(now),
        });
        if changed {
            condition["lastTransitionTime"] = json!(Time(now));
        }
        json!({ "status": { "conditions": [condition] } })
    }
}

/// Writes to the API what is to be told.
pub(crate) struct Teller {
    pub(crate) client: kube::Client,
    pub(crate) node: String,
    pub(crate) choice: watch::Receiver<Option<Choice>>,
    /// The Node's condition, if there is such a Node; `Some(None)` is a Node without it.
    pub(crate) there: watch::Receiver<Option<Option<Condition>>>,
    pub(crate) notices: mpsc::Receiver<Notice>,
}

impl Teller {
    /// Writes until the senders are gone.
    pub(crate) async fn run(self) {
        let Self {
            client,
            node,
            choice,
            there,
            notices,
        } = self;
        tokio::join!(
            keep_condition(client.clone(), &node, choice, there),
            write_events(client, &node, notices)
        );
    }
}

/// Makes the condition right, and again when somebody has changed it.
async fn keep_condition(
    client: kube::Client,
    name: &str,
    mut choice: watch::Receiver<Option<Choice>>,
    mut there: watch::Receiver<Option<Option<Condition>>>,
) {
    let nodes = Api::<Node>::all(client);
    let mut backoff = Backoff::default();
    loop {
        let wanted = choice.borrow_and_update().as_ref().map(Condition::wanted);
        let is = there.borrow_and_update().clone();
        let mut pause = None;
        if let (Some(wanted), Some(is)) = (wanted, is)
            && is.as_ref() != Some(&wanted)
        {
            let changed = is.is_none_or(|is| is.status != wanted.status);
            let patch = Patch::Strategic(wanted.patch(Timestamp::now(), changed));
            match nodes.patch_status(name, &PatchParams::default(), &patch).await {
                Ok(_) => _ = backoff.reset(),
                // The role of kube-proxy does not allow it: the log and the Events must do.
                Err(kube::Error::Api(status)) if status.is_forbidden() => {
                    tracing::info!(
                        reason = status.message,
                        "the Node's condition {CONDITION} can not be written"
                    );
                    return;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if backoff.is_news(&reason) {
                        tracing::warn!(
                            reason,
                            "the Node's condition {CONDITION} is not written, trying again"
                        );
                    }
                    pause = Some(backoff.next_delay());
                }
            }
        }
        tokio::select! {
            changed = choice.changed() => if changed.is_err() { return },
            changed = there.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

async fn write_events(client: kube::Client, node: &str, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let event = event(&notice, node, Timestamp::now());
        events::create(&client, &event).await;
    }
}

fn event(notice: &Notice, node: &str, now: Timestamp) -> Event {
    let (about, warning, reason, message) = match notice {
        Notice::Mode { former, choice } => {
            // Events about Nodes are in the default namespace and name the Node as its own uid, as kubelets do it.
            let about = ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                uid: Some(node.into()),
                namespace: Some("default".into()),
                ..ObjectReference::default()
            };
            let fell_back = choice.asked != choice.used;
            let before = former.map_or(String::new(), |former| format!(", {former} before"));
            let reason = if fell_back {
                "ProxyModeFallback"
            } else {
                "ProxyModeChanged"
            };
            (about, fell_back, reason, format!("{choice}{before}"))
        }
        Notice::BadConfig { uid, why } => {
            let about = ObjectReference {
                kind: Some("ConfigMap".into()),
                name: Some(CONFIG_MAP.into()),
                namespace: Some(NAMESPACE_SYSTEM.into()),
                uid: uid.clone(),
                ..ObjectReference::default()
            };
            (
                about,
                true,
                "InvalidProxyConfiguration",
                format!("{why}; the last good one stays"),
            )
        }
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{:x}",
                about.name.as_deref().unwrap_or_default(),
                now.as_nanosecond()
            )),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            // A Node is in no namespace, wherever its Events are.
            namespace: about.namespace.filter(|_| about.kind.as_deref() != Some("Node")),
            ..about
        },
        type_: Some(if warning { "Warning" } else { "Normal" }.into()),
        reason: Some(reason.into()),
        message: Some(message),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        source: Some(EventSource {
            component: Some(COMPONENT.into()),
            host: Some(node.into()),
        }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(node.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fallen() -> Choice {
        Choice {
            asked: Mode::Ipvs,
            used: Mode::Nftables,
            refused: vec![(Mode::Ipvs, "not in this kernel".into())],
        }
    }

    #[test]
    fn a_condition_says_whether_it_is_as_asked() {
        let now = Timestamp::UNIX_EPOCH;
        let wanted = Condition::wanted(&fallen());
        let node: Node = serde_json::from_value(wanted.patch(now, true)).unwrap();
        assert_eq!(
            Condition::of(&node),
            Some(wanted.clone()),
            "what is written is what is read"
        );
        assert_eq!(
            wanted.message,
            "asked for ipvs, using nftables: no ipvs: not in this kernel"
        );
        assert_eq!(wanted.status, "False");
        assert!(wanted.patch(now, false)["status"]["conditions"][0]["lastTransitionTime"].is_null());
        assert_eq!(Condition::of(&Node::default()), None);
    }

    #[test]
    fn events_are_found_by_kubectl_describe() {
        let mode = Notice::Mode {
            former: Some(Mode::Userspace),
            choice: fallen(),
        };
        let of_mode = event(&mode, "n2", Timestamp::UNIX_EPOCH);
        assert_eq!(of_mode.involved_object.uid.as_deref(), Some("n2"));
        assert_eq!(
            (of_mode.type_.as_deref(), of_mode.reason.as_deref()),
            (Some("Warning"), Some("ProxyModeFallback"))
        );
        assert!(
            of_mode
                .message
                .unwrap()
                .ends_with("not in this kernel, userspace before")
        );
        let bad = Notice::BadConfig {
            uid: Some("u".into()),
            why: "mode: what".into(),
        };
        let of_config = event(&bad, "n2", Timestamp::UNIX_EPOCH);
        assert_eq!(of_config.metadata.namespace.as_deref(), Some("kube-system"));
        assert_eq!(
            of_config.involved_object.namespace.as_deref(),
            Some("kube-system")
        );
    }
}
