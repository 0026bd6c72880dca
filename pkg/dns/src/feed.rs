//! From the watches to the zone.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use svcnet_runtime::{Change, Informers, Scope};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::config::PodRecords;
use crate::progress::Progress;
use crate::server::Publisher;
use crate::zone::View;

/// Events that go into one change of the zone at most, so that a flood does not keep it from changing at all.
const BATCH_MAX: usize = 4096;
const PROGRESS: &str = "the first lists of the watches";

/// The watches.
pub(crate) struct Feed {
    services: Receiver<Change<Service>>,
    slices: Receiver<Change<EndpointSlice>>,
    namespaces: Receiver<Change<Namespace>>,
    pods: Option<Receiver<Change<Pod>>>,
}

/// An event of any of the watches.
enum Event {
    Service(Change<Service>),
    Slice(Change<EndpointSlice>),
    Namespace(Change<Namespace>),
    Pod(Change<Pod>),
}

/// Which watches have delivered their first list.
#[derive(Default)]
struct Listed {
    services: bool,
    slices: bool,
    namespaces: bool,
    pods: bool,
}

impl Feed {
    pub(crate) fn subscribe(informers: &Informers, pods: PodRecords) -> Self {
        Self {
            services: informers.subscribe(Scope::default()),
            slices: informers.subscribe(Scope::default()),
            namespaces: informers.subscribe(Scope::default()),
            pods: (pods == PodRecords::Verified).then(|| informers.subscribe(Scope::default())),
        }
    }

    /// Publishes a zone after each batch of events, until shutdown.
    pub(crate) async fn run(mut self, publisher: Publisher, progress: Progress, shutdown: CancellationToken) {
        let mut view = View::default();
        let mut listed = Listed {
            pods: self.pods.is_none(),
            ..Listed::default()
        };
        progress.waiting(PROGRESS.to_string());
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = self.next() => event,
            };
            let Some(event) = event else {
                return shutdown.cancelled().await;
            };
            let started = Instant::now();
            take(event, &mut view, &mut listed);
            for _ in 0..BATCH_MAX {
                let Some(event) = self.try_next() else { break };
                take(event, &mut view, &mut listed);
            }
            publish(&mut view, &listed, &publisher, &progress, started);
        }
    }

    async fn next(&mut self) -> Option<Event> {
        let pods = async {
            match &mut self.pods {
                Some(pods) => pods.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(change) = self.services.recv() => Some(Event::Service(change)),
            Some(change) = self.slices.recv() => Some(Event::Slice(change)),
            Some(change) = self.namespaces.recv() => Some(Event::Namespace(change)),
            Some(change) = pods => Some(Event::Pod(change)),
            else => None,
        }
    }

    fn try_next(&mut self) -> Option<Event> {
        let service = self.services.try_recv().ok().map(Event::Service);
        let slice = || self.slices.try_recv().ok().map(Event::Slice);
        let event = service
            .or_else(slice)
            .or_else(|| self.namespaces.try_recv().ok().map(Event::Namespace));
        event.or_else(|| self.pods.as_mut()?.try_recv().ok().map(Event::Pod))
    }
}

fn take(event: Event, view: &mut View, listed: &mut Listed) {
    match event {
        Event::Service(Change::Reset(list)) => {
            listed.services = true;
            view.reset_services(list.iter().map(|object| &**object));
        }
        Event::Service(Change::Apply(object)) => view.apply_service(&object),
        Event::Service(Change::Delete(object)) => view.delete_service(&object),
        Event::Slice(Change::Reset(list)) => {
            listed.slices = true;
            view.reset_slices(list.iter().map(|object| &**object));
        }
        Event::Slice(Change::Apply(object)) => view.apply_slice(&object),
        Event::Slice(Change::Delete(object)) => view.delete_slice(&object),
        Event::Namespace(Change::Reset(list)) => {
            listed.namespaces = true;
            view.reset_namespaces(list.iter().map(|object| &**object));
        }
        Event::Namespace(Change::Apply(object)) => view.apply_namespace(&object),
        Event::Namespace(Change::Delete(object)) => view.delete_namespace(&object),
        Event::Pod(Change::Reset(list)) => {
            listed.pods = true;
            view.reset_pods(list.iter().map(|object| &**object));
        }
        Event::Pod(Change::Apply(object)) => view.apply_pod(&object),
        Event::Pod(Change::Delete(object)) => view.delete_pod(&object),
    }
}

fn publish(view: &mut View, listed: &Listed, publisher: &Publisher, progress: &Progress, started: Instant) {
    let held: Arc<_> = publisher.current();
    let plan = view.plan(&held);
    let synced = listed.services && listed.slices && listed.namespaces && listed.pods;
    let newly_synced = synced && !held.is_synced();
    if plan.is_empty() && !newly_synced {
        return;
    }
    let operations = plan.len();
    tracing::trace!(%plan, "planned");
    let mut zone = held.with(plan, serial());
    if synced {
        zone = zone.into_synced();
    }
    metrics::gauge!("svcnet_dns_services").set(zone.services() as f64);
    metrics::counter!("svcnet_dns_zone_changes_total").increment(operations as u64);
    let services = zone.services();
    publisher.publish(zone);
    if newly_synced {
        progress.done(PROGRESS);
        tracing::info!(services, "the cluster zone is complete");
    }
    let elapsed_ms = started.elapsed().as_secs_f64() * 1000.0;
    tracing::debug!(plan.ops = operations, elapsed_ms, "the zone changed");
}

/// Serial number of a zone: the time, as CoreDNS has it.
fn serial() -> u32 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_secs() as u32)
}
