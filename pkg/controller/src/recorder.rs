//! Events that tell a user, at the object, what a controller did or could not do.
//!
//! Telling is never waited for: Events are queued, and lost when the queue is full or the server refuses them. The same
//! thing told again counts up the Event of before instead of making another one.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

/// Events that wait to be written.
const QUEUE_LENGTH: usize = 256;
/// Distinct Events that are remembered for counting up.
const REMEMBERED_MAX: usize = 1024;

/// Whether an Event is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    pub(crate) about: ObjectReference,
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Tells without waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    notices: mpsc::Sender<Notice>,
}

impl Recorder {
    /// A recorder, and the task behind it, to be run beside the controllers.
    pub(crate) fn new(client: kube::Client, component: &'static str) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let writer = Writer {
            client,
            component,
            known: HashMap::new(),
        };
        (Self { notices: sender }, writer.run(receiver))
    }

    pub(crate) fn record(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            metrics::counter!("svcnet_controller_events_dropped_total").increment(1);
        }
    }
}

struct Writer {
    client: kube::Client,
    component: &'static str,
    /// Name and count of the Event that told a thing last.
    known: HashMap<String, (String, i32)>,
}

impl Writer {
    async fn run(mut self, mut notices: mpsc::Receiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            if let Err(error) = self.write(&notice).await {
                tracing::debug!(reason = notice.reason, %error, "an Event was not written");
            }
        }
    }

    async fn write(&mut self, notice: &Notice) -> Result<(), kube::Error> {
        // Events about objects without a namespace live in `default`, as those of client-go do.
        let namespace = notice.about.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = Timestamp::now();
        let key = format!("{:?} {} {}", notice.about, notice.reason, notice.message);
        if let Some((name, count)) = self.known.get_mut(&key) {
            let again = json!({"count": *count + 1, "lastTimestamp": Time(now)});
            if events
                .patch(name, &PatchParams::default(), &Patch::Merge(&again))
                .await
                .is_ok()
            {
                *count += 1;
                return Ok(());
            }
        }
        let event = self.event(notice, namespace, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        events.create(&PostParams::default(), &event).await?;
        if self.known.len() >= REMEMBERED_MAX {
            self.known.clear();
        }
        self.known.insert(key, (name, 1));
        Ok(())
    }

    fn event(&self, notice: &Notice, namespace: &str, now: Timestamp) -> Event {
        let object = notice.about.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: notice.about.clone(),
            type_: Some(format!("{:?}", notice.severity)),
            reason: Some(notice.reason.to_string()),
            message: Some(notice.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(self.component.to_string()),
                host: None,
            }),
            reporting_component: Some(self.component.to_string()),
            ..Event::default()
        }
    }
}
