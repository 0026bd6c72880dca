//! What a few kinds need beyond the table of kinds: subresources and rules that the real server has for them alone.
//! Verbs ask here, by kind, and know none themselves.

use std::time::Duration;

use serde_json::Value;
use svcnet_api::Kind;

use crate::default_class::ClassRule;
use crate::warnings;

/// The exceptions of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traits {
    /// `spec.finalizers` keep an object alive, are changed through the subresource `finalize` alone, and show in
    /// `status.phase`.
    pub(crate) finalize: bool,
    /// A new object keeps the status that it came with: the kubelet, and our agent, register their Node whole.
    pub(crate) status_on_create: bool,
    /// Objects that are bound to a node are there until it says that they have ended, or their grace period is over.
    pub(crate) graceful: bool,
    /// An update of what is not there creates it.
    pub(crate) create_on_update: bool,
    /// Objects go by themselves, so long after their last change.
    pub(crate) lifetime: Option<Duration>,
    /// Labels count as changes of `metadata.generation` too: consumers of slices go by them.
    pub(crate) labels_count: bool,
    /// Objects are encrypted on the disk.
    pub(crate) encrypted: bool,
    /// Names that cannot be deleted.
    pub(crate) immortal: &'static [&'static str],
    /// Fields that the server gives a new object, and that are nobody's then (`metadata.managedFields`).
    pub(crate) filled_in: &'static [&'static [&'static str]],
    /// Objects have a class, and a default one when they are made without.
    pub(crate) class: Option<ClassRule>,
    /// A deletion that is done answers with the object rather than with a Status.
    pub(crate) returns_deleted: bool,
    /// What whoever uses the kind is warned of.
    pub(crate) deprecated: Option<&'static str>,
    /// What whoever writes an object is warned of; whether it is a new one.
    pub(crate) warns: Option<fn(&Value, bool) -> Vec<String>>,
    /// The same of whoever writes the status.
    pub(crate) warns_status: Option<fn(&Value) -> Vec<String>>,
}

const NONE: Traits = Traits {
    finalize: false,
    status_on_create: false,
    graceful: false,
    create_on_update: false,
    lifetime: None,
    labels_count: false,
    encrypted: false,
    immortal: &[],
    filled_in: &[],
    class: None,
    returns_deleted: false,
    deprecated: None,
    warns: None,
    warns_status: None,
};

static TABLE: [(&str, &str, Traits); 11] = [
    (
        "",
        "namespaces",
        Traits {
            finalize: true,
            immortal: &["default", "kube-system", "kube-public"],
            filled_in: &[&["spec", "finalizers"]],
            ..NONE
        },
    ),
    (
        "",
        "nodes",
        Traits {
            status_on_create: true,
            warns: Some(warnings::of_node),
            ..NONE
        },
    ),
    (
        "",
        "pods",
        Traits {
            graceful: true,
            returns_deleted: true,
            warns: Some(warnings::of_pod),
            warns_status: Some(warnings::of_pod_status),
            ..NONE
        },
    ),
    (
        "",
        "services",
        Traits {
            filled_in: &[&["spec", "clusterIPs"]],
            returns_deleted: true,
            warns: Some(warnings::of_service),
            warns_status: Some(warnings::of_service_status),
            ..NONE
        },
    ),
    (
        "",
        "events",
        Traits {
            create_on_update: true,
            // The real server's --event-ttl.
            lifetime: Some(Duration::from_secs(60 * 60)),
            ..NONE
        },
    ),
    (
        "",
        "secrets",
        Traits {
            encrypted: true,
            warns: Some(warnings::of_secret),
            ..NONE
        },
    ),
    (
        "",
        "endpoints",
        Traits {
            create_on_update: true,
            deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            warns: Some(warnings::of_endpoints),
            ..NONE
        },
    ),
    (
        "discovery.k8s.io",
        "endpointslices",
        Traits {
            labels_count: true,
            warns: Some(warnings::of_endpoint_slice),
            ..NONE
        },
    ),
    (
        "networking.k8s.io",
        "networkpolicies",
        Traits {
            warns: Some(warnings::of_network_policy),
            ..NONE
        },
    ),
    (
        "networking.k8s.io",
        "ingresses",
        Traits {
            class: Some(ClassRule {
                class: ("networking.k8s.io/v1", "IngressClass"),
                marked_by: "ingressclass.kubernetes.io/is-default-class",
                field: "ingressClassName",
                annotation: "kubernetes.io/ingress.class",
            }),
            warns: Some(warnings::of_ingress),
            ..NONE
        },
    ),
    (
        "coordination.k8s.io",
        "leases",
        Traits {
            create_on_update: true,
            ..NONE
        },
    ),
];

/// The exceptions of a kind.
pub(crate) fn of(kind: &Kind) -> &'static Traits {
    let found = TABLE
        .iter()
        .find(|(group, plural, _)| (*group, *plural) == (kind.group, kind.plural));
    found.map_or(&NONE, |(_, _, traits)| traits)
}

/// Whether the kind is a custom resource for the real server, not one of its own.
pub(crate) fn is_custom(kind: &Kind) -> bool {
    kind.is_custom()
}

/// Whether `metadata.generation` counts the changes of a kind's objects. The real server's older kinds have none.
pub(crate) fn has_generation(kind: &Kind) -> bool {
    match (kind.group, kind.plural) {
        ("", "pods") | ("discovery.k8s.io", _) => true,
        ("networking.k8s.io", plural) => !matches!(plural, "servicecidrs" | "ipaddresses"),
        _ => is_custom(kind),
    }
}

/// What can be done to the objects of a kind.
pub(crate) const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The subresources of a kind, and what can be done to them.
pub(crate) fn subresources(kind: &Kind) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    let finalize: (&str, &[&str]) = ("finalize", &["update"]);
    let status: (&str, &[&str]) = ("status", &["get", "patch", "update"]);
    let has = [(of(kind).finalize, finalize), (kind.status, status)];
    has.into_iter().filter(|(has, _)| *has).map(|(_, it)| it)
}

/// Whether a kind has a subresource. The object itself is the one without a name.
pub(crate) fn has_subresource(kind: &Kind, subresource: &str) -> bool {
    verbs(kind, subresource).is_some()
}

/// What can be done to a subresource of a kind, if it has that.
pub(crate) fn verbs(kind: &Kind, subresource: &str) -> Option<&'static [&'static str]> {
    if subresource.is_empty() {
        return Some(&VERBS);
    }
    subresources(kind).find_map(|(name, verbs)| (name == subresource).then_some(verbs))
}

/// Where to ask for what the real server has below a kind, and this one has not: it runs no containers.
pub(crate) fn elsewhere(kind: &Kind, subresource: &str) -> Option<&'static str> {
    if subresource == "proxy" && matches!((kind.group, kind.plural), ("", "nodes" | "pods" | "services")) {
        return Some(
            "svcnet proxies nothing through its API: connect to the address itself, which every node reaches, or make a \
             Service of type NodePort",
        );
    }
    if (kind.group, kind.plural) != ("", "pods") {
        return None;
    }
    match subresource {
        "log" => Some(
            "svcnet runs no containers and keeps no logs of them: ask the container runtime on the pod's node \
             (crictl logs), or in a lab: svcnet lab logs POD",
        ),
        "exec" | "attach" => Some(
            "svcnet runs no containers: use the container runtime on the pod's node (crictl exec), or in a lab: \
             svcnet lab exec POD -- COMMAND",
        ),
        "portforward" => Some(
            "svcnet forwards no ports through its API: connect to the pod's address, which every node reaches, or make \
             a Service of type NodePort",
        ),
        "eviction" | "binding" | "ephemeralcontainers" | "resize" => {
            Some("svcnet schedules and runs no pods: delete the pod, or make it with spec.nodeName")
        }
        _ => None,
    }
}

/// Why kinds of a group are not served that users know from whole clusters.
pub(crate) fn not_served(group: &str) -> Option<&'static str> {
    match group {
        "apps" | "batch" | "autoscaling" | "policy" => Some(
            "svcnet is a network without workloads: run pods with a container runtime or with `svcnet pod run`",
        ),
        "rbac.authorization.k8s.io" => Some(
            "svcnet has three built-in roles and no RBAC: `svcnet token create --role admin|node|viewer`",
        ),
        _ => None,
    }
}

/// The same of kinds of the core group, whose others are served.
pub(crate) fn not_served_core(plural: &str) -> Option<&'static str> {
    match plural {
        "serviceaccounts" => {
            Some("svcnet has no service accounts: `svcnet token create --role admin|node|viewer`")
        }
        "replicationcontrollers"
        | "persistentvolumeclaims"
        | "persistentvolumes"
        | "resourcequotas"
        | "limitranges"
        | "podtemplates" => not_served("apps"),
        _ => None,
    }
}
