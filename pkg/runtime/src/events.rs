//! Events: what is told to people at an object, where `kubectl describe` shows it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::PostParams;

/// How often a lost event is worth another try: the server may be away for long.
const ATTEMPTS: u32 = 5;
/// Pause before the second try; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes an Event, with some patience. One that is refused, or that the server can not take for long, is lost: they are
/// for people, who look at the last ones.
pub async fn create(client: &kube::Client, event: &Event) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    for attempt in 0..ATTEMPTS {
        match events.create(&PostParams::default(), event).await {
            Ok(_) => return,
            // The object or its namespace is gone, or somebody was faster: no use in trying again.
            Err(kube::Error::Api(status)) if status.code < 500 => {
                tracing::debug!(%status, "event refused");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, attempt, "cannot write an event");
                tokio::time::sleep(PAUSE * (1 << attempt)).await;
            }
        }
    }
}
