//! What a Pod gets where the writer left it open (pkg/apis/core/v1, SetDefaults_Pod and its like), as far as clients
//! show it.

use serde_json::{Map, Value, json};

use super::resources;
use crate::rules::{object_in, set_default};

pub(super) fn default(new: &mut Value, old: Option<&Value>) {
    let spec = object_in(new, "spec");
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "enableServiceLinks", true);
    set_default(spec, "securityContext", json!({}));
    for list in ["containers", "initContainers"] {
        let containers = spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        containers.filter_map(Value::as_object_mut).for_each(container);
    }
    let class = resources::qos_class(&new["spec"]);
    let status = object_in(new, "status");
    set_default(status, "phase", "Pending");
    if old.is_none() {
        set_default(status, "qosClass", class);
    }
}

fn container(container: &mut Map<String, Value>) {
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    set_default(container, "resources", json!({}));
    resources::default_requests(container);
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    if !image.is_empty() {
        let policy = if is_latest(image) {
            "Always"
        } else {
            "IfNotPresent"
        };
        set_default(container, "imagePullPolicy", policy);
    }
    let ports = container
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten();
    for port in ports.filter_map(Value::as_object_mut) {
        set_default(port, "protocol", "TCP");
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) {
            set_default(probe, "timeoutSeconds", 1);
            set_default(probe, "periodSeconds", 10);
            set_default(probe, "successThreshold", 1);
            set_default(probe, "failureThreshold", 3);
            if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
                set_default(get, "path", "/");
                set_default(get, "scheme", "HTTP");
            }
        }
    }
}

/// Without a tag, or with the tag `latest`, and without a digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}
