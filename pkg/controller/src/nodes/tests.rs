use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

struct World {
    controller: NodeNetworkController,
    marked: Vec<String>,
}

impl World {
    fn new(cluster: &str) -> Self {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let (recorder, _) = Recorder::new(client.clone(), "test");
        let controller = NodeNetworkController::new(client, recorder, &cluster.parse().unwrap()).unwrap();
        Self {
            controller,
            marked: Vec::new(),
        }
    }

    fn hear(&mut self, change: Change<Node>) -> Vec<String> {
        let marked = &mut self.marked;
        self.controller.observe(change, &mut |key| marked.push(key));
        let mut plans = Vec::new();
        for name in std::mem::take(&mut self.marked) {
            plans.extend(self.controller.plan(&name).map(|plan| plan.to_string()));
        }
        plans
    }
}

fn node(name: &str, revision: u32, spec: Value, conditions: Value) -> Arc<Node> {
    let object = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": revision.to_string()},
        "spec": spec, "status": {"conditions": conditions},
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

#[tokio::test]
async fn networks_in_use_are_known_before_any_is_given() {
    let mut world = World::new("10.244.0.0/16");
    let plans = world.hear(Change::Reset(vec![
        node("n1", 1, json!({}), json!([])),
        node(
            "n2",
            2,
            json!({"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}),
            json!([]),
        ),
    ]));
    assert_eq!(plans, ["give n1 the pod network 10.244.1.0/24"]);
    // The write was lost: the same network again.
    assert_eq!(
        world.hear(Change::Apply(node("n1", 3, json!({}), json!([])))),
        ["give n1 the pod network 10.244.1.0/24"]
    );
    let given = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]});
    assert!(
        world
            .hear(Change::Apply(node("n1", 4, given, json!([]))))
            .is_empty()
    );
}

#[tokio::test]
async fn who_got_none_is_told_once_and_gets_one_when_a_node_goes() {
    let mut world = World::new("10.244.0.0/24");
    let given = json!({"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]});
    let first = node("n1", 1, given, json!([]));
    let plans = world.hear(Change::Reset(vec![
        first.clone(),
        node("n2", 2, json!({}), json!([])),
    ]));
    assert_eq!(plans, ["tell n2 that no pod network is left"]);
    let told = json!([{"type": "NetworkUnavailable", "status": "True", "reason": "CIDRNotAvailable"}]);
    assert!(
        world
            .hear(Change::Apply(node("n2", 3, json!({}), told.clone())))
            .is_empty()
    );
    assert_eq!(
        world.hear(Change::Delete(first)),
        ["give n2 the pod network 10.244.0.0/24"]
    );
    let given = json!({"podCIDRs": ["10.244.0.0/24"]});
    let plans = world.hear(Change::Apply(node("n2", 4, given, told)));
    assert_eq!(plans, ["take back that there is no pod network for n2"]);
}
