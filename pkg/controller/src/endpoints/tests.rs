use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::endpoints::plan::Op;

/// The controller against a server that answers at once.
struct World {
    controller: EndpointsController,
    revision: u64,
    slices: BTreeMap<String, Slice>,
    marked: Vec<ObjectKey>,
    /// How often the pod of each number has been deleted: another pod each time.
    lives: BTreeMap<u8, u32>,
}

impl World {
    fn new() -> Self {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let mut world = Self {
            controller: EndpointsController::new(kube::Client::try_from(config).unwrap()),
            revision: 0,
            slices: BTreeMap::new(),
            marked: Vec::new(),
            lives: BTreeMap::new(),
        };
        world.hear(Event::Service(Change::Reset(vec![])));
        world.hear(Event::Pod(Change::Reset(vec![])));
        world.hear(Event::Node(Change::Reset(vec![])));
        world.hear(Event::Endpoints(Change::Reset(vec![])));
        world.hear(Event::Slice(Change::Reset(vec![])));
        assert!(world.controller.is_synced());
        world
    }

    fn hear(&mut self, event: Event) {
        let marked = &mut self.marked;
        self.controller.observe(event, &mut |key| marked.push(key));
    }

    fn revision(&mut self) -> String {
        self.revision += 1;
        self.revision.to_string()
    }

    fn service(&mut self, name: &str, app: &str) {
        let revision = self.revision();
        let object = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": revision},
            "spec": {"selector": {"app": app}, "clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
        });
        self.hear(Event::Service(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    fn pod(&mut self, number: u8, app: &str, ready: bool) -> core::Pod {
        let revision = self.revision();
        let life = self.lives.get(&number).copied().unwrap_or_default();
        let object = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "ns", "uid": format!("pod-{number}-{life}"),
                         "resourceVersion": revision, "labels": {"app": app, "tier": "any"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"podIP": format!("10.1.0.{number}"),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        serde_json::from_value(object).unwrap()
    }

    fn hear_pod(&mut self, number: u8, app: &str, ready: bool) {
        let pod = self.pod(number, app, ready);
        self.hear(Event::Pod(Change::Apply(Arc::new(pod))));
    }

    /// Works off what is marked; how many keys had something to do.
    fn settle(&mut self) -> usize {
        let mut worked = 0;
        while let Some(key) = self.marked.pop() {
            let Some(plan) = self.controller.plan(&key) else {
                continue;
            };
            worked += 1;
            let written = plan.ops.into_iter().map(|op| self.write(&key, op)).collect();
            let marked = &mut self.marked;
            self.controller
                .applied(&key, written, &mut |key| marked.push(key));
        }
        worked
    }

    fn write(&mut self, key: &ObjectKey, op: Op) -> Written {
        let revision = self.revision();
        let meta = |name: String, over: Option<Version>| ObjectMeta {
            namespace: Some(key.namespace.clone()),
            uid: Some(over.map_or_else(|| format!("uid-{revision}"), |over| over.uid)),
            name: Some(name),
            resource_version: Some(revision.clone()),
            ..ObjectMeta::default()
        };
        match op {
            Op::WriteSlice { name, slice, over } => {
                self.slices.insert(name.clone(), slice.clone());
                Written::Slice(Box::new(slice.to_object(meta(name, over))))
            }
            Op::DeleteSlice { name, version } => {
                self.slices.remove(&name);
                Written::SliceGone(name, version)
            }
            Op::WriteEndpoints { endpoints, over } => {
                Written::Endpoints(Box::new(endpoints.to_object(meta(key.name.clone(), over))))
            }
            Op::DeleteEndpoints { version } => Written::EndpointsGone(version),
        }
    }

    fn endpoints_of(&self, service: &str) -> Vec<String> {
        let slices = self
            .slices
            .values()
            .filter(|slice| slice.labels.get(LABEL_SERVICE_NAME).map(String::as_str) == Some(service));
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        let mut found: Vec<String> = endpoints.map(|e| format!("{} {}", e.address, e.ready)).collect();
        found.sort();
        found
    }
}

#[tokio::test]
async fn a_pod_that_changes_its_labels_changes_its_services() {
    let mut world = World::new();
    world.service("a", "a");
    world.service("b", "b");
    world.hear_pod(1, "a", true);
    world.settle();
    assert_eq!(
        (world.endpoints_of("a"), world.endpoints_of("b")),
        (vec!["10.1.0.1 true".to_string()], vec![])
    );
    world.hear_pod(1, "b", true);
    assert_eq!(world.settle(), 2);
    assert_eq!(
        (world.endpoints_of("a"), world.endpoints_of("b")),
        (vec![], vec!["10.1.0.1 true".to_string()])
    );
}

#[tokio::test]
async fn a_pod_of_no_service_marks_nothing() {
    let mut world = World::new();
    world.service("a", "a");
    world.settle();
    world.hear_pod(1, "x", true);
    assert_eq!(world.marked, []);
}

#[tokio::test]
async fn late_news_is_no_news() {
    let mut world = World::new();
    world.service("a", "a");
    let old = world.pod(1, "a", false);
    world.hear_pod(1, "a", true);
    world.settle();
    world.hear(Event::Pod(Change::Apply(Arc::new(old))));
    assert_eq!(world.settle(), 0);
    assert_eq!(world.endpoints_of("a"), ["10.1.0.1 true"]);
}

#[tokio::test]
async fn what_a_service_leaves_behind_goes() {
    let mut world = World::new();
    world.service("a", "a");
    world.hear_pod(1, "a", true);
    world.settle();
    world.hear(Event::Service(Change::Reset(vec![])));
    world.settle();
    assert!(world.slices.is_empty());
    assert!(
        world
            .controller
            .endpoints
            .get(&ObjectKey::new("ns", "a"))
            .is_none()
    );
    assert!(world.controller.slices_of.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Pod(u8, u8, bool),
    PodGone(u8),
    Service(u8, u8),
    Relist,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..20, 0u8..3, any::<bool>()).prop_map(|(n, app, ready)| Step::Pod(n, app, ready)),
        2 => (0u8..20).prop_map(Step::PodGone),
        1 => (0u8..4, 0u8..3).prop_map(|(n, app)| Step::Service(n, app)),
        1 => Just(Step::Relist),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the changes come, each Service ends up with exactly the ready and unready pods that it selects.
    #[test]
    fn endpoints_follow_the_pods(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let mut world = World::new();
        let (mut pods, mut services) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Pod(number, app, ready) => {
                    world.hear_pod(number, &format!("a{app}"), ready);
                    pods.insert(number, (app, ready));
                }
                Step::PodGone(number) => {
                    let Some((app, ready)) = pods.remove(&number) else { continue };
                    let gone = world.pod(number, &format!("a{app}"), ready);
                    world.hear(Event::Pod(Change::Delete(Arc::new(gone))));
                    *world.lives.entry(number).or_default() += 1;
                }
                Step::Service(number, app) => {
                    world.service(&format!("s{number}"), &format!("a{app}"));
                    services.insert(number, app);
                }
                Step::Relist => {
                    let all: Vec<Arc<core::Pod>> = pods
                        .clone()
                        .into_iter()
                        .map(|(number, (app, ready))| Arc::new(world.pod(number, &format!("a{app}"), ready)))
                        .collect();
                    world.hear(Event::Pod(Change::Reset(all)));
                }
            }
            world.settle();
            for (service, app) in &services {
                let mine = pods.iter().filter(|(_, (other, _))| other == app);
                let mut wanted: Vec<String> = mine.map(|(n, (_, ready))| format!("10.1.0.{n} {ready}")).collect();
                wanted.sort();
                prop_assert_eq!(world.endpoints_of(&format!("s{service}")), wanted);
            }
        }
    }
}
