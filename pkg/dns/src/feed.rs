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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use tokio::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::config::Config;
    use crate::server::Server;
    use crate::wire::{Rcode, RecordType};
    use crate::zone::{Question, Verdict};

    fn service(name: &str) -> Arc<Service> {
        let spec = ServiceSpec {
            cluster_ip: Some("10.96.0.20".into()),
            ..ServiceSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        };
        Arc::new(Service {
            metadata,
            spec: Some(spec),
            ..Service::default()
        })
    }

    fn rcode(publisher: &Publisher, name: &str) -> Rcode {
        let name: crate::name::Name = format!("{name}.default.svc.cluster.local").parse().unwrap();
        let question = Question {
            name: name.wire(),
            record_type: RecordType::A,
            rotation: 0,
        };
        match publisher.current().answer(question) {
            Verdict::Ours { answer, .. } => answer.rcode,
            Verdict::Elsewhere => panic!("a cluster name"),
        }
    }

    async fn until(publisher: &Publisher, name: &str, wanted: Rcode) {
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        while rcode(publisher, name) != wanted {
            assert!(Instant::now() < deadline, "{name} never became {wanted:?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_zone_is_complete_after_the_first_list_of_every_watch() {
        let (service_sender, services) = channel(8);
        let (slice_sender, slices): (Sender<Change<EndpointSlice>>, _) = channel(8);
        let (namespace_sender, namespaces) = channel(8);
        let (pod_sender, pods): (Sender<Change<Pod>>, _) = channel(8);
        let feed = Feed {
            services,
            slices,
            namespaces,
            pods: Some(pods),
        };
        let publisher = Server::new(Config::default()).publisher();
        let health = svcnet_runtime::Health::default();
        let progress = Progress::new(health.component("dns"));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(feed.run(publisher.clone(), progress, shutdown.clone()));

        service_sender
            .send(Change::Reset(vec![service("web"), service("old")]))
            .await
            .unwrap();
        until(&publisher, "web", Rcode::NoError).await;
        assert_eq!(rcode(&publisher, "gone"), Rcode::ServFail, "it may exist");
        assert!(!health.report().0);
        slice_sender.send(Change::Reset(Vec::new())).await.unwrap();
        namespace_sender.send(Change::Reset(Vec::new())).await.unwrap();
        pod_sender.send(Change::Reset(Vec::new())).await.unwrap();
        until(&publisher, "gone", Rcode::NxDomain).await;
        while !health.report().0 {
            tokio::task::yield_now().await;
        }

        service_sender.send(Change::Apply(service("new"))).await.unwrap();
        until(&publisher, "new", Rcode::NoError).await;
        service_sender.send(Change::Delete(service("new"))).await.unwrap();
        until(&publisher, "new", Rcode::NxDomain).await;
        service_sender
            .send(Change::Reset(vec![service("web")]))
            .await
            .unwrap();
        until(&publisher, "old", Rcode::NxDomain).await;
        assert_eq!(rcode(&publisher, "web"), Rcode::NoError);
        shutdown.cancel();
        running.await.unwrap();
    }
}
