//! What a node needs for its pods: the Secrets that they name (as the real server's Node authorizer has it).

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
    entries
        .iter()
        .filter_map(|(_, entry)| object::parse(entry).ok())
        .any(|pod| {
            pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node) && names_secret(&pod, name)
        })
}

/// Whether a pod names a Secret: in a volume, in its environment, or to pull images with.
fn names_secret(pod: &Value, name: &str) -> bool {
    let list = |value: &Value, field: &str| -> Vec<Value> {
        let list = value.get(field).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let is = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str) == Some(name);
    let Some(spec) = pod.get("spec") else {
        return false;
    };
    let in_volume = |volume: &Value| {
        let projected = volume.pointer("/projected/sources").and_then(Value::as_array);
        is(volume, "/secret/secretName")
            || projected.is_some_and(|sources| sources.iter().any(|s| is(s, "/secret/name")))
    };
    let in_container = |container: &Value| {
        list(container, "env")
            .iter()
            .any(|e| is(e, "/valueFrom/secretKeyRef/name"))
            || list(container, "envFrom")
                .iter()
                .any(|e| is(e, "/secretRef/name"))
    };
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    list(spec, "volumes").iter().any(in_volume)
        || list(spec, "imagePullSecrets").iter().any(|s| is(s, "/name"))
        || containers
            .iter()
            .any(|field| list(spec, field).iter().any(in_container))
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
            assert!(names_secret(&pod, "s"), "{pod}");
            assert!(!names_secret(&pod, "t"), "{pod}");
        }
        assert!(!names_secret(
            &json!({"spec": {"containers": [{"name": "s"}]}}),
            "s"
        ));
        assert!(!names_secret(&json!({}), "s"));
    }
}
