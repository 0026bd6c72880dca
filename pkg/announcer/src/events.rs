//! Tells the Services' users what happens to their addresses, as Events.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;

use crate::desired::Target;

const COMPONENT: &str = "svcnet-announcer";
/// Events that may wait for the server; more are lost. They are for people, who look at the last ones.
pub(crate) const QUEUE_LENGTH: usize = 256;

/// Something to tell about a Service.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) service: Target,
    /// Whether something is wrong.
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Writes what arrives until the senders are gone.
pub(crate) async fn write(client: kube::Client, node: String, mut notices: mpsc::Receiver<Notice>) {
    // The same again is a greater count of one event: addresses may go back and forth many times.
    let mut last: BTreeMap<(String, &'static str, String), i32> = BTreeMap::new();
    while let Some(notice) = notices.recv().await {
        let key = (
            notice.service.key.to_string(),
            notice.reason,
            notice.message.clone(),
        );
        if last.len() >= QUEUE_LENGTH && !last.contains_key(&key) {
            last.clear();
        }
        let count = last.entry(key).or_default();
        *count += 1;
        let event = event(&notice, &node, *count);
        svcnet_runtime::events::create(&client, &event).await;
    }
}

fn event(notice: &Notice, node: &str, count: i32) -> Event {
    let now = Timestamp::now();
    let Target { key, uid } = &notice.service;
    Event {
        metadata: ObjectMeta {
            // As client-go names them: the object and a number that grows.
            name: Some(format!("{}.{:x}", key.name, now.as_nanosecond())),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_string()),
            kind: Some("Service".to_string()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid: (!uid.is_empty()).then(|| uid.to_string()),
            ..ObjectReference::default()
        },
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_string()),
        reason: Some(notice.reason.to_string()),
        message: Some(notice.message.clone()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(count),
        source: Some(EventSource {
            component: Some(COMPONENT.to_string()),
            host: Some(node.to_string()),
        }),
        reporting_component: Some(COMPONENT.to_string()),
        reporting_instance: Some(node.to_string()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Key;

    #[test]
    fn events_say_what_kubectl_describe_shows() {
        let notice = Notice {
            service: Target {
                key: Key::new("default", "nginx"),
                uid: "u".into(),
            },
            warning: false,
            reason: "nodeAssigned",
            message: "announcing".to_string(),
        };
        let event = event(&notice, "n2", 2);
        assert!(event.metadata.name.unwrap().starts_with("nginx."));
        assert_eq!(event.involved_object.kind.as_deref(), Some("Service"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert_eq!((event.type_.as_deref(), event.count), (Some("Normal"), Some(2)));
        assert_eq!(event.source.unwrap().host.as_deref(), Some("n2"));
    }
}
