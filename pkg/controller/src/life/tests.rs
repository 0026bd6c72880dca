use std::sync::Arc;

use serde_json::json;

use super::*;

struct World {
    controller: NodeLifeController,
    marked: Vec<Key>,
    revision: u64,
}

impl World {
    fn new() -> Self {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let (recorder, _) = Recorder::new(client.clone(), "test");
        Self {
            controller: NodeLifeController::new(client, recorder),
            marked: Vec::new(),
            revision: 0,
        }
    }

    fn hear(&mut self, event: Event) {
        let marked = &mut self.marked;
        self.controller.observe(event, &mut |key| marked.push(key));
    }

    fn meta(&mut self, name: &str) -> serde_json::Value {
        self.revision += 1;
        json!({"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": self.revision.to_string()})
    }

    fn node(&mut self, status: &str, reason: &str) {
        let object = json!({"metadata": self.meta("n1"),
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason}]}});
        self.hear(Event::Node(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    fn pod(&mut self, name: &str, status: &str, reason: &str) {
        let object = json!({"metadata": self.meta(name), "spec": {"nodeName": "n1", "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason}]}});
        self.hear(Event::Pod(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    fn lease(&mut self, second: i64) {
        let time = jiff::Timestamp::from_second(second).unwrap();
        let object =
            json!({"metadata": self.meta("n1"), "spec": {"leaseDurationSeconds": 6, "renewTime": time}});
        self.hear(Event::Lease(Change::Apply(Arc::new(
            serde_json::from_value(object).unwrap(),
        ))));
    }

    /// Time passes, and what is then marked is planned.
    async fn plans_after(&mut self, seconds: u64) -> Vec<String> {
        for _ in 0..seconds * 2 {
            tokio::time::advance(NodeLifeController::PERIOD).await;
            let marked = &mut self.marked;
            self.controller.tick(Instant::now(), &mut |key| marked.push(key));
        }
        let mut keys = std::mem::take(&mut self.marked);
        keys.sort();
        keys.dedup();
        keys.iter()
            .filter_map(|key| self.controller.plan(key))
            .map(|plan| plan.to_string())
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_takes_its_pods_out_and_gives_back_what_it_took() {
    let mut world = World::new();
    world.node("True", "KubeletReady");
    world.pod("a", "True", "");
    world.pod("b", "False", "ContainersNotReady");
    world.lease(100);
    assert!(world.plans_after(5).await.is_empty());
    assert_eq!(
        world.plans_after(3).await,
        ["mark node n1 unknown (LeaseExpired)"]
    );
    world.node("Unknown", "NodeStatusUnknown");
    assert_eq!(world.plans_after(1).await, ["mark pod ns/a not ready"]);
    world.pod("a", "False", "NodeNotReady");
    assert!(world.plans_after(5).await.is_empty());
    world.lease(120);
    assert_eq!(world.plans_after(1).await, ["mark node n1 ready"]);
    world.node("True", "KubeletReady");
    assert_eq!(world.plans_after(1).await, ["mark pod ns/a ready again"]);
    world.pod("a", "True", "");
    assert!(world.plans_after(1).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_to_a_dead_node_is_not_ready_either() {
    let mut world = World::new();
    world.node("Unknown", "NodeStatusUnknown");
    world.pod("late", "True", "");
    assert_eq!(world.plans_after(0).await, ["mark pod ns/late not ready"]);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_never_renewed_have_longer() {
    let mut world = World::new();
    world.node("True", "KubeletReady");
    assert!(world.plans_after(19).await.is_empty());
    assert_eq!(
        world.plans_after(3).await,
        ["mark node n1 unknown (NeverRenewed)"]
    );
}
