//! What is wrong with a Pod, as far as its network is concerned: names, ports, addresses. Volumes, security contexts and
//! the like are carried along unseen.

use serde_json::Value;

use super::KIND;
use crate::field::{FieldError, FieldPath};
use crate::metadata;
use crate::names;
use crate::rules::{Fields, each, port_number, protocol};

pub(super) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = metadata::validate(&KIND, new, old);
    let (path, spec) = (FieldPath::new("spec"), &new["spec"]);
    if spec.list("containers").is_empty() {
        errors.push(FieldError::required(path.child("containers"), ""));
    }
    let mut taken: Vec<&str> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec.list(list).iter().enumerate() {
            let path = path.child(list).index(index);
            let name = container.text("name");
            errors.extend(required_label(name, path.child("name")));
            if !name.is_empty() && taken.contains(&name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
            taken.push(name);
            if container.text("image").trim().is_empty() {
                errors.push(FieldError::required(path.child("image"), ""));
            }
            errors.extend(ports(container, &path.child("ports")));
        }
    }
    errors.extend(pod_spec(spec, &path));
    errors.extend(addresses(&new["status"]));
    if let Some(old) = old {
        errors.extend(change(spec, &old["spec"], &path));
    }
    errors
}

fn required_label(name: &str, path: FieldPath) -> Vec<FieldError> {
    if name.is_empty() {
        vec![FieldError::required(path, "")]
    } else {
        each(&path, name, names::dns_label(name)).collect()
    }
}

fn ports(container: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ports = container.list("ports");
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            errors.extend(each(&path.child("name"), name, names::port_name(name)));
            if ports.iter().take(index).any(|p| p.text("name") == name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        match port.number("containerPort") {
            0 => errors.push(FieldError::required(path.child("containerPort"), "")),
            number => errors.extend(port_number(&path.child("containerPort"), number)),
        }
        let host_port = port.number("hostPort");
        if host_port != 0 {
            errors.extend(port_number(&path.child("hostPort"), host_port));
        }
        errors.extend(protocol(path.child("protocol"), port.text("protocol")));
    }
    errors
}

fn pod_spec(spec: &Value, path: &FieldPath) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, known) in [
        ("restartPolicy", ["Always", "Never", "OnFailure"].as_slice()),
        (
            "dnsPolicy",
            &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        ),
    ] {
        match spec.text(field) {
            "" => errors.push(FieldError::required(path.child(field), "")),
            value if known.contains(&value) => {}
            value => errors.push(FieldError::not_supported(path.child(field), value, known)),
        }
    }
    let node = spec.text("nodeName");
    if !node.is_empty() {
        errors.extend(each(&path.child("nodeName"), node, names::dns_subdomain(node)));
    }
    for field in ["hostname", "subdomain"] {
        let name = spec.text(field);
        if !name.is_empty() {
            errors.extend(each(&path.child(field), name, names::dns_label(name)));
        }
    }
    errors
}

fn addresses(status: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, item) in status.list("podIPs").iter().enumerate() {
        let ip = item.text("ip");
        let path = FieldPath::new("status").child("podIPs").index(index);
        errors.extend(each(&path, ip, names::ip_address(ip)));
    }
    let ip = status.text("podIP");
    if !ip.is_empty() && status.list("podIPs").is_empty() {
        errors.extend(each(
            &FieldPath::new("status").child("podIP"),
            ip,
            names::ip_address(ip),
        ));
    }
    errors
}

/// Nearly everything about a pod is fixed once it is there. Its node is too, but where nobody schedules, whoever runs
/// the pod says so later: from none to one is let through.
fn change(spec: &Value, old: &Value, path: &FieldPath) -> Option<FieldError> {
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in spec
                .get_mut(list)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                // The pull policy was derived from the image.
                container.remove("image");
                container.remove("imagePullPolicy");
            }
        }
        if let Value::Object(fields) = &mut spec {
            let free = [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "schedulingGates",
            ];
            fields.retain(|name, value| !(free.contains(&name.as_str()) || value.is_null()));
            if old.text("nodeName").is_empty() {
                fields.remove("nodeName");
            }
        }
        spec
    };
    let detail = "pod updates may not change fields other than `spec.containers[*].image`,\
                  `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                  existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                  previously negative)";
    (fixed(spec) != fixed(old)).then(|| FieldError::forbidden(path.clone(), detail))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::KIND;
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        (KIND.default)(&mut pod, None);
        pod
    }

    fn words(new: &Value, old: Option<&Value>) -> Vec<String> {
        validate(new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_is_filled_in() {
        let pod =
            pod(json!({"containers": [{"name": "web", "image": "nginx", "ports": [{"containerPort": 80}]}]}));
        assert_eq!(words(&pod, None), [""; 0]);
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
        assert_eq!(
            pod["status"],
            json!({"phase": "Pending", "qosClass": "BestEffort"})
        );
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            (&container["imagePullPolicy"], &container["ports"][0]["protocol"]),
            (&json!("Always"), &json!("TCP"))
        );
        let mut again = pod.clone();
        (KIND.default)(&mut again, Some(&pod));
        assert_eq!(again, pod);
    }

    #[test]
    fn wrong_pods_are_refused_in_the_real_words() {
        for (spec, wanted) in [
            (json!({}), "spec.containers: Required value"),
            (
                json!({"containers": [{"name": "a"}]}),
                "spec.containers[0].image: Required value",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
                "spec.containers[1].name: Duplicate value: \"a\"",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, \
                 inclusive",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 1, "protocol": "X"}]}]}),
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \
                 \"TCP\", \"UDP\"",
            ),
            (
                json!({"containers": [{"name": "a", "image": "i"}], "restartPolicy": "Once"}),
                "spec.restartPolicy: Unsupported value: \"Once\": supported values: \"Always\", \"Never\", \
                 \"OnFailure\"",
            ),
        ] {
            assert_eq!(words(&pod(spec), None), [wanted]);
        }
    }

    #[test]
    fn a_pod_stays_as_it_is_but_for_its_image_and_its_first_node() {
        let old = pod(json!({"containers": [{"name": "a", "image": "i:1"}]}));
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = json!("i:2");
        new["spec"]["nodeName"] = json!("n1");
        assert_eq!(words(&new, Some(&old)), [""; 0]);
        let mut moved = new.clone();
        moved["spec"]["nodeName"] = json!("n2");
        let found = words(&moved, Some(&new));
        assert!(
            found[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{found:?}"
        );
    }
}
