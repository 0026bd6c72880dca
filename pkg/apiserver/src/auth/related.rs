//! What a node needs for its pods: the Secrets that they name (as the real server's Node authorizer has it).

use std::collections::BTreeSet;

use serde_json::Value;
use svcnet_api::registry;
use svcnet_store::Range;

use crate::object;
use crate::server::Server;

/// Whether a pod that is bound to the node names the Secret.
pub(crate) fn needs_secret(server: &Server, node: &str, namespace: &str, name: &str) -> bool {
    let Some(pods) = registry::by_resource("", "v1", "pods") else {
        return false;
    };
    let range = Range {
        namespace: Some(namespace.to_string()),
        ..Range::default()
    };
    let snapshot = server.store.list(server.collection(pods), &range, None);
    let entries = snapshot.map(|s| s.entries).unwrap_or_default();
    let pods = entries.iter().filter_map(|(_, entry)| object::parse(entry).ok());
    let bound = |pod: &Value| pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node);
    pods.filter(bound).any(|pod| secrets_named(&pod).contains(name))
}

/// The Secrets that a pod names: in volumes, in its environment, or to pull images with.
pub(super) fn secrets_named(pod: &Value) -> BTreeSet<&str> {
    fn list<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
        let list = value.pointer(path).and_then(Value::as_array);
        list.into_iter().flatten().collect()
    }
    let mut places: Vec<(&Value, &str)> = Vec::new();
    for volume in list(pod, "/spec/volumes") {
        places.push((volume, "/secret/secretName"));
        let sources = list(volume, "/projected/sources");
        places.extend(sources.into_iter().map(|source| (source, "/secret/name")));
    }
    let pull = list(pod, "/spec/imagePullSecrets");
    places.extend(pull.into_iter().map(|secret| (secret, "/name")));
    for kind in [
        "/spec/containers",
        "/spec/initContainers",
        "/spec/ephemeralContainers",
    ] {
        for container in list(pod, kind) {
            let env = list(container, "/env");
            places.extend(env.into_iter().map(|e| (e, "/valueFrom/secretKeyRef/name")));
            let from = list(container, "/envFrom");
            places.extend(from.into_iter().map(|e| (e, "/secretRef/name")));
        }
    }
    places
        .into_iter()
        .filter_map(|(value, path)| value.pointer(path)?.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_named_in_several_places() {
        for spec in [
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
            json!({"containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}),
            json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}),
            json!({"imagePullSecrets": [{"name": "s"}]}),
        ] {
            let pod = json!({"spec": spec});
            assert!(secrets_named(&pod).contains("s"), "{pod}");
            assert!(!secrets_named(&pod).contains("t"), "{pod}");
        }
        assert!(secrets_named(&json!({"spec": {"containers": [{"name": "s"}]}})).is_empty());
        assert!(secrets_named(&json!({})).is_empty());
    }
}
