//! What containers ask for, and what class of service that makes of a Pod (pkg/apis/core/v1/helper/qos).

use serde_json::{Map, Value};

use crate::rules::Fields;

/// Of these the class is made.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// Whoever has a limit and asks for nothing asks for that much.
pub(super) fn default_requests(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
        return;
    };
    let limits = resources.get("limits").and_then(Value::as_object).cloned();
    let Some(limits) = limits.filter(|limits| !limits.is_empty()) else {
        return;
    };
    let requests = resources.entry("requests").or_insert_with(|| Map::new().into());
    if let Value::Object(requests) = requests {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

/// `Guaranteed` where each container is limited to what it asks for, `BestEffort` where none asks for anything.
pub(super) fn qos_class(spec: &Value) -> &'static str {
    let containers = || spec.list("containers").iter().chain(spec.list("initContainers"));
    let amount = |container: &Value, list: &str, of: &str| {
        let amount = container["resources"][list].get(of).cloned();
        amount.filter(|amount| *amount != "0" && *amount != 0)
    };
    let asks = |container: &Value| {
        let both = ["requests", "limits"];
        both.iter()
            .any(|list| COUNTED.iter().any(|of| amount(container, list, of).is_some()))
    };
    let is_limited = |container: &Value| {
        COUNTED.iter().all(|of| {
            let limit = amount(container, "limits", of);
            limit.is_some() && limit == amount(container, "requests", of)
        })
    };
    if !containers().any(asks) {
        "BestEffort"
    } else if containers().all(is_limited) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(containers: &[Value]) -> &'static str {
        let containers = containers.iter().map(|resources| json!({"resources": resources}));
        let mut spec = json!({"containers": containers.collect::<Vec<_>>()});
        for container in spec["containers"].as_array_mut().into_iter().flatten() {
            default_requests(container.as_object_mut().unwrap());
        }
        qos_class(&spec)
    }

    #[test]
    fn classes_are_those_of_the_real_server() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let less = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(
            class(&[json!({}), json!({"requests": {"cpu": "0"}})]),
            "BestEffort"
        );
        assert_eq!(
            class(&[json!({"requests": {"example.com/x": "1"}})]),
            "BestEffort"
        );
        assert_eq!(class(&[full.clone(), full.clone()]), "Guaranteed");
        assert_eq!(class(&[full.clone(), less]), "Burstable");
        assert_eq!(class(&[full, json!({})]), "Burstable");
        assert_eq!(class(&[json!({"limits": {"cpu": "1"}})]), "Burstable");
    }

    #[test]
    fn limits_are_asked_for() {
        let mut container =
            json!({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}});
        default_requests(container.as_object_mut().unwrap());
        assert_eq!(
            container["resources"]["requests"],
            json!({"cpu": "1", "memory": "1Gi"})
        );
    }
}
