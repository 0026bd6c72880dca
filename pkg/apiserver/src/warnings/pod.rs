//! Pods (kubernetes, pkg/api/pod/warnings.go, 1.33). Not here: quantities that are no whole bytes, and paths that a projected token
//! shares with other files; no node of ours mounts or limits anything.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use svcnet_api::FieldPath;

use super::address::of_address;
use super::{annotations, list, text};

/// Labels of nodes that have other names by now (pkg/api/node/util.go).
const NODE_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "1.14", "kubernetes.io/os"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "1.17",
        "topology.kubernetes.io/region",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "1.17",
        "topology.kubernetes.io/zone",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "1.17",
        "node.kubernetes.io/instance-type",
    ),
];
const ANNOTATIONS: [(&str, &str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "1.16",
        "priorityClassName",
    ),
    ("security.alpha.kubernetes.io/sysctls", "1.11", "sysctls"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "1.11", "sysctls"),
];
const VOLUMES: [(&str, &str); 9] = [
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    (
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Pods.
pub(crate) fn of_pod(pod: &Value, _: bool) -> Vec<String> {
    let spec = &pod["spec"];
    let path = FieldPath::new("spec");
    let mut warnings = node_labels(spec, &path);
    warnings.extend(spreading(spec, &path));
    let at = FieldPath::new("metadata").child("annotations");
    for (key, since, field) in ANNOTATIONS {
        if annotations(pod).is_some_and(|a| a.contains_key(key)) {
            let at = at.key(key);
            warnings.push(format!(
                "{at}: non-functional in v{since}+; use the \"{field}\" field instead"
            ));
        }
    }
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let at = path.child("volumes").index(index);
        let old = VOLUMES.iter().filter(|(plugin, _)| !volume[*plugin].is_null());
        // The one field whose name in Go's words is not that in JSON.
        warnings.extend(old.map(|(plugin, words)| {
            let name = if *plugin == "storageos" {
                "storageOS"
            } else {
                plugin
            };
            format!("{}: {words}", at.child(name))
        }));
    }
    warnings.extend(repeated(spec, &path, ("hostAliases", "ip"), "ip"));
    warnings.extend(repeated(spec, &path, ("imagePullSecrets", "name"), "name"));
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            let at = path.child("imagePullSecrets").index(index).child("name");
            warnings.push(format!("{at}: invalid empty name \"\""));
        }
    }
    warnings.extend(seccomp(pod, spec, &at, SECCOMP_POD));
    let containers = containers(spec, &path);
    for (at_container, container) in &containers {
        let key = format!("{SECCOMP_CONTAINER}{}", text(container, "name"));
        warnings.extend(seccomp(pod, container, &at, &key));
        warnings.extend(environment(container, at_container));
    }
    warnings.extend(ports(&containers));
    warnings.extend(port_names(&containers));
    if spec["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|s| s < 0)
    {
        let at = path.child("terminationGracePeriodSeconds");
        warnings.push(format!(
            "{at}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    warnings.extend(affinity(spec, &path));
    warnings.extend(addresses(spec, &path));
    warnings
}

/// The status of a Pod (pkg/registry/core/pod/strategy.go).
pub(crate) fn of_status(pod: &Value) -> Vec<String> {
    let (status, path) = (&pod["status"], FieldPath::new("status"));
    let of = |field: &str| {
        let at = path.child(field);
        let items = list(status, field).iter().enumerate();
        let said = items.filter_map(|(i, item)| of_address(&at.index(i).child("ip"), text(item, "ip")));
        said.collect::<Vec<_>>()
    };
    [of("podIPs"), of("hostIPs")].concat()
}

fn renamed(label: &str) -> Option<String> {
    let (_, since, name) = NODE_LABELS.iter().find(|(old, ..)| *old == label)?;
    Some(format!("deprecated since v{since}; use \"{name}\" instead"))
}

fn node_labels(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    for (label, _) in spec["nodeSelector"].as_object().into_iter().flatten() {
        let said = renamed(label).map(|words| format!("{}: {words}", path.child("nodeSelector").key(label)));
        warnings.extend(said);
    }
    let path = path.child("affinity").child("nodeAffinity");
    let affinity = &spec["affinity"]["nodeAffinity"];
    let mut term = |term: &Value, path: FieldPath| {
        for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
            let (key, at) = (
                text(expression, "key"),
                path.child("matchExpressions").index(index),
            );
            let said = renamed(key).map(|words| format!("{}: {key} is {words}", at.child("key")));
            warnings.extend(said);
        }
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (index, one) in list(&affinity[required], "nodeSelectorTerms").iter().enumerate() {
        term(one, path.child(required).child("nodeSelectorTerms").index(index));
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, one) in list(affinity, preferred).iter().enumerate() {
        term(
            &one["preference"],
            path.child(preferred).index(index).child("preference"),
        );
    }
    warnings
}

fn matches_none(selector: &Value, path: &FieldPath) -> Option<String> {
    let at = path.child("labelSelector");
    selector
        .is_null()
        .then(|| format!("{at}: a null labelSelector results in matching no pod"))
}

fn spreading(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = path.child("topologySpreadConstraints").index(index);
        let key = text(constraint, "topologyKey");
        let said = renamed(key).map(|words| format!("{}: {key} is {words}", at.child("topologyKey")));
        warnings.extend(said);
        warnings.extend(matches_none(&constraint["labelSelector"], &at));
    }
    warnings
}

fn affinity(spec: &Value, path: &FieldPath) -> Vec<String> {
    let mut warnings = Vec::new();
    for field in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&spec["affinity"][field], path.child("affinity").child(field));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in list(terms, required).iter().enumerate() {
            warnings.extend(matches_none(
                &term["labelSelector"],
                &path.child(required).index(index),
            ));
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (index, term) in list(terms, preferred).iter().enumerate() {
            let at = path.child(preferred).index(index).child("podAffinityTerm");
            warnings.extend(matches_none(&term["podAffinityTerm"]["labelSelector"], &at));
        }
    }
    warnings
}

/// What stands in a list more than once.
fn repeated(spec: &Value, path: &FieldPath, (field, key): (&str, &str), what: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let items = list(spec, field).iter().enumerate();
    let again = items.filter(|(_, item)| !seen.insert(text(item, key)));
    again
        .map(|(index, item)| {
            let at = path.child(field).index(index).child(key);
            format!("{at}: duplicate {what} {:?}", text(item, key))
        })
        .collect()
}

/// An annotation of former times; `holder` may have the field that it has become.
fn seccomp(pod: &Value, holder: &Value, path: &FieldPath, key: &str) -> Option<String> {
    let has_field = !holder["securityContext"]["seccompProfile"].is_null();
    let is_there = annotations(pod).is_some_and(|a| a.contains_key(key));
    (is_there && !has_field).then(|| {
        let at = path.key(key);
        format!("{at}: non-functional in v1.27+; use the \"seccompProfile\" field instead")
    })
}

/// All containers, with their places.
fn containers<'a>(spec: &'a Value, path: &FieldPath) -> Vec<(FieldPath, &'a Value)> {
    let fields = ["initContainers", "containers", "ephemeralContainers"];
    let of = |field| {
        let at = path.child(field);
        let containers = list(spec, field).iter().enumerate();
        containers.map(move |(index, container)| (at.index(index), container))
    };
    fields.into_iter().flat_map(of).collect()
}

fn environment(container: &Value, path: &FieldPath) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut warnings = Vec::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        if seen.insert(name) {
            continue;
        }
        // `X=$(X)123` adds to what was there, anything else hides it.
        let former = format!("$({name})");
        if !variable["valueFrom"].is_null() || value == former || !value.contains(&former) {
            let at = path.child("env").index(index);
            warnings.push(format!(
                "{at}: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    warnings
}

fn ports(containers: &[(FieldPath, &Value)]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut seen: BTreeMap<_, Vec<(FieldPath, &Value)>> = BTreeMap::new();
    let number = |port: &Value, field: &str| port[field].as_i64().unwrap_or_default();
    for (path, container) in containers {
        for (index, port) in list(container, "ports").iter().enumerate() {
            let at = path.child("ports").index(index);
            let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
            let (own, protocol) = (number(port, "containerPort"), text(port, "protocol"));
            if !ip.is_empty() && host == 0 {
                let name = text(port, "name");
                warnings.push(format!(
                    "{at}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{own} Protocol:{protocol} HostIP:{ip}}}"
                ));
            }
            let same = seen.entry((own, protocol)).or_default();
            for (other_at, other) in same.iter() {
                let (other_ip, other_host) = (text(other, "hostIP"), number(other, "hostPort"));
                let how = if ip == other_ip && host == other_host {
                    "duplicate"
                } else if host == 0 || other_host == 0 {
                    "overlapping"
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!("{at}: {how} port definition with {other_at}"));
            }
            same.push((at, port));
        }
    }
    warnings
}

fn port_names(containers: &[(FieldPath, &Value)]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut seen: BTreeMap<&str, FieldPath> = BTreeMap::new();
    for (path, container) in containers {
        for (index, port) in list(container, "ports").iter().enumerate() {
            let (name, at) = (text(port, "name"), path.child("ports").index(index));
            match seen.get(name) {
                _ if name.is_empty() => {}
                Some(other) => warnings.push(format!(
                    "{at}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                )),
                None => _ = seen.insert(name, at),
            }
        }
    }
    warnings
}

fn addresses(spec: &Value, path: &FieldPath) -> Vec<String> {
    let servers = path.child("dnsConfig").child("nameservers");
    let mut warnings: Vec<String> = super::texts(spec, "/dnsConfig/nameservers")
        .filter_map(|(index, server)| of_address(&servers.index(index), server))
        .collect();
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let at = path.child("hostAliases").index(index).child("ip");
        warnings.extend(of_address(&at, text(alias, "ip")));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

    /// A Pod that says everything against itself.
    fn wrong_pod() -> Value {
        let zone = json!({"matchExpressions": [{"key": "failure-domain.beta.kubernetes.io/zone"}]});
        json!({
            "metadata": {"annotations": {
                "scheduler.alpha.kubernetes.io/critical-pod": "", SECCOMP_POD: "", format!("{SECCOMP_CONTAINER}a"): "",
            }},
            "spec": {
                "nodeSelector": {"beta.kubernetes.io/os": "linux", "x": "y"},
                "affinity": {
                    "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [zone]}, PREFERRED: [{"preference": zone}]},
                    "podAntiAffinity": {REQUIRED: [{"labelSelector": {}}, {}], PREFERRED: [{"podAffinityTerm": {}}]},
                },
                "topologySpreadConstraints": [{"topologyKey": "failure-domain.beta.kubernetes.io/zone"}],
                "volumes": [{"name": "v", "gitRepo": {}}, {"name": "w", "storageos": {}}, {"name": "x", "emptyDir": {}}],
                "hostAliases": [{"ip": "010.0.0.1"}, {"ip": "010.0.0.1"}],
                "imagePullSecrets": [{"name": "a"}, {"name": "a"}, {}],
                "terminationGracePeriodSeconds": -1,
                "dnsConfig": {"nameservers": ["::ffff:1.2.3.4"]},
                "initContainers": [{"name": "i", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}]}],
                "containers": [{
                    "name": "a",
                    "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "$(X)2"}, {"name": "X", "value": "3"}],
                    "ports": [
                        {"containerPort": 80, "protocol": "TCP", "name": "web"},
                        {"containerPort": 80, "protocol": "TCP", "hostPort": 8080},
                        {"containerPort": 80, "protocol": "TCP", "hostPort": 8080, "hostIP": "10.0.0.1"},
                        {"containerPort": 80, "protocol": "UDP", "hostIP": "10.0.0.1"},
                    ],
                }],
            },
        })
    }

    #[test]
    fn pods_are_warned_of_in_the_real_words() {
        let renamed = "failure-domain.beta.kubernetes.io/zone is deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead";
        assert_eq!(
            of_pod(&wrong_pod(), true),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                &format!(
                    "spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].key: {renamed}"
                ),
                &format!(
                    "spec.affinity.nodeAffinity.{PREFERRED}[0].preference.matchExpressions[0].key: {renamed}"
                ),
                &format!("spec.topologySpreadConstraints[0].topologyKey: {renamed}"),
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead",
                "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
                "spec.volumes[1].storageOS: deprecated in v1.22, non-functional in v1.25+",
                "spec.hostAliases[1].ip: duplicate ip \"010.0.0.1\"",
                "spec.imagePullSecrets[1].name: duplicate name \"a\"",
                "spec.imagePullSecrets[2].name: invalid empty name \"\"",
                &format!(
                    "metadata.annotations[{SECCOMP_POD}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
                ),
                &format!(
                    "metadata.annotations[{SECCOMP_CONTAINER}a]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
                ),
                "spec.containers[0].env[2]: hides previous definition of \"X\", which may be dropped when using apply",
                "spec.containers[0].ports[0]: duplicate port definition with spec.initContainers[0].ports[0]",
                "spec.containers[0].ports[1]: overlapping port definition with spec.initContainers[0].ports[0]",
                "spec.containers[0].ports[1]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.initContainers[0].ports[0]",
                "spec.containers[0].ports[2]: overlapping port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[2]: dangerously ambiguous port definition with spec.containers[0].ports[1]",
                "spec.containers[0].ports[3]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 Protocol:UDP HostIP:10.0.0.1}",
                "spec.containers[0].ports[0]: duplicate port name \"web\" with spec.initContainers[0].ports[0], services and probes that select ports by name will use spec.initContainers[0].ports[0]",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                &format!(
                    "spec.affinity.podAntiAffinity.{REQUIRED}[1].labelSelector: a null labelSelector results in matching no pod"
                ),
                &format!(
                    "spec.affinity.podAntiAffinity.{PREFERRED}[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod"
                ),
                "spec.dnsConfig.nameservers[0]: non-standard IP address \"::ffff:1.2.3.4\" will be considered invalid in a future Kubernetes release: use \"1.2.3.4\"",
                "spec.hostAliases[0].ip: non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
                "spec.hostAliases[1].ip: non-standard IP address \"010.0.0.1\" will be considered invalid in a future Kubernetes release: use \"10.0.0.1\"",
            ]
        );
        let plain = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
        assert!(of_pod(&plain, true).is_empty());
    }
}
