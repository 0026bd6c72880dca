use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

struct World {
    controller: LoadBalancerController,
    marked: Vec<ObjectKey>,
    revision: u64,
    specs: BTreeMap<String, (Value, Value)>,
}

impl World {
    fn new() -> Self {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let (recorder, _) = Recorder::new(client.clone(), "test");
        let controller = LoadBalancerController::new(client, recorder);
        let mut world = Self {
            controller,
            marked: Vec::new(),
            revision: 0,
            specs: BTreeMap::new(),
        };
        world.hear(Event::Service(Change::Reset(vec![])));
        world.hear(Event::Namespace(Change::Reset(vec![])));
        world.hear(Event::ConfigMap(Change::Reset(vec![])));
        world.hear(Event::Pool(Change::Reset(vec![])));
        assert!(world.controller.is_synced());
        world
    }

    fn hear(&mut self, event: Event) {
        let marked = &mut self.marked;
        self.controller.observe(event, &mut |key| marked.push(key));
    }

    fn meta(&mut self, name: &str) -> Value {
        self.revision += 1;
        let revision = self.revision.to_string();
        json!({"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": revision})
    }

    fn tell(&mut self, name: &str, addresses: &[IpAddr]) {
        let (annotations, spec) = self.specs.get(name).cloned().unwrap();
        let mut metadata = self.meta(name);
        metadata["annotations"] = annotations;
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let object =
            json!({"metadata": metadata, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}});
        self.hear(Event::Service(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    fn service(&mut self, name: &str, annotations: Value, more: Value) {
        let mut spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.specs.insert(name.to_string(), (annotations, spec));
        let current = self
            .controller
            .services
            .get(&ObjectKey::new("default", name))
            .map(|s| s.current.clone());
        self.tell(name, &current.unwrap_or_default());
    }

    fn pool(&mut self, name: &str, addresses: &[&str]) {
        let mut metadata = self.meta(name);
        metadata["namespace"] = json!("metallb-system");
        let object = json!({"metadata": metadata, "spec": {"addresses": addresses}});
        self.hear(Event::Pool(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    /// Works off what is marked, as a server would answer; the plans by Service.
    fn settle(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        while !self.marked.is_empty() {
            let mut keys = std::mem::take(&mut self.marked);
            keys.sort();
            keys.dedup();
            for key in keys {
                let Some(plan) = self.controller.plan(&key) else {
                    continue;
                };
                said.push(format!("{}: {plan}", key.name));
                if let Some(addresses) = plan.status {
                    self.tell(&key.name, &addresses);
                }
            }
        }
        said
    }
}

#[tokio::test]
async fn services_wait_for_a_pool_and_keep_what_they_got() {
    let mut world = World::new();
    world.service("a", json!({}), json!({}));
    assert_eq!(world.settle(), ["a: leave the status; say that no available IPs"]);
    world.pool("p", &["172.30.0.240-172.30.0.241"]);
    assert_eq!(world.settle(), ["a: give [\"172.30.0.240\"]"]);
    world.service("b", json!({}), json!({}));
    world.service("c", json!({}), json!({}));
    assert_eq!(
        world.settle(),
        [
            "b: give [\"172.30.0.241\"]",
            "c: leave the status; say that no available IPs"
        ]
    );
    world.service("a", json!({}), json!({"ports": [{"port": 81}]}));
    assert!(world.settle().is_empty());
    world.service("a", json!({}), json!({"type": "ClusterIP"}));
    assert_eq!(
        world.settle(),
        ["a: take the address away", "c: give [\"172.30.0.240\"]"]
    );
}

#[tokio::test]
async fn wishes_are_followed_and_changed_wishes_too() {
    let mut world = World::new();
    world.pool("p", &["172.30.0.240-172.30.0.250"]);
    world.pool("q", &["172.31.0.0/28"]);
    world.service(
        "a",
        json!({"metallb.universe.tf/loadBalancerIPs": "172.30.0.245"}),
        json!({}),
    );
    assert_eq!(world.settle(), ["a: give [\"172.30.0.245\"]"]);
    world.service("a", json!({"metallb.io/address-pool": "q"}), json!({}));
    assert_eq!(world.settle(), ["a: give [\"172.31.0.0\"]"]);
    world.service("a", json!({"metallb.io/address-pool": "none"}), json!({}));
    assert_eq!(
        world.settle(),
        ["a: take the address away; say that unknown pool \"none\""]
    );
    world.service(
        "a",
        json!({"metallb.io/address-pool": "q"}),
        json!({"loadBalancerIP": "172.30.0.240"}),
    );
    assert_eq!(
        world.settle(),
        [
            "a: leave the status; say that requested loadBalancer IP(s) [\"172.30.0.240\"] is not compatible with requested \
          address pool q"
        ]
    );
    world.service("b", json!({}), json!({"loadBalancerClass": "example.com/lb"}));
    assert!(world.settle().is_empty());
}

#[tokio::test]
async fn a_mistake_in_the_pools_changes_nothing() {
    let mut world = World::new();
    world.pool("p", &["172.30.0.240/30"]);
    world.service("a", json!({}), json!({}));
    world.settle();
    world.pool("p", &["172.31.0.0/33"]);
    world.service("b", json!({}), json!({}));
    assert_eq!(world.settle(), ["b: give [\"172.30.0.241\"]"]);
    assert!(world.controller.stale.is_some());
    world.pool("p", &["172.31.0.0/30"]);
    assert_eq!(
        world.settle(),
        ["a: give [\"172.31.0.0\"]", "b: give [\"172.31.0.1\"]"]
    );
}

#[tokio::test]
async fn after_a_restart_everybody_keeps_what_they_have() {
    let mut world = World::new();
    for (name, ip) in [("b", "172.30.0.240"), ("c", "172.30.0.241")] {
        world.specs.insert(
            name.to_string(),
            (
                json!({}),
                json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"]}),
            ),
        );
        world.tell(name, &[ip.parse().unwrap()]);
    }
    world.service("a", json!({}), json!({}));
    world.pool("p", &["172.30.0.240-172.30.0.250"]);
    assert_eq!(world.settle(), ["a: give [\"172.30.0.242\"]"]);
}

#[tokio::test]
async fn the_older_form_gives_addresses_too() {
    let mut world = World::new();
    let text =
        "address-pools:\n- {name: default, protocol: layer2, addresses: [172.30.0.240-172.30.0.250]}\n";
    let object =
        json!({"metadata": {"name": "config", "namespace": "metallb-system"}, "data": {"config": text}});
    world.hear(Event::ConfigMap(Change::Apply(Arc::new(
        serde_json::from_value(object).unwrap(),
    ))));
    world.service("a", json!({}), json!({}));
    assert_eq!(world.settle(), ["a: give [\"172.30.0.240\"]"]);
}
