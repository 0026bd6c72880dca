//! What each role may do: a small table, no RBAC engine.

use serde_json::Value;
use svcnet_api::{ApiError, Kind, Reason, wellknown};

use super::User;
use super::identity::Role;

/// What a request wants, as far as its URL says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub(crate) verb: &'a str,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
}

/// What nodes may write, and how far.
struct NodeRight {
    group: &'static str,
    plural: &'static str,
    subresources: &'static [&'static str],
    verbs: &'static [&'static str],
    extent: Extent,
}

/// Which objects of a kind a node may write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Those of its own name.
    OwnName,
    /// Those of its own name, in the namespace of node Leases.
    OwnLease,
    /// Those bound to it.
    OwnPods,
    /// All.
    Any,
}

const NODE_RIGHTS: [NodeRight; 4] = [
    NodeRight {
        group: "",
        plural: "nodes",
        subresources: &["", "status"],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::OwnName,
    },
    NodeRight {
        group: "coordination.k8s.io",
        plural: "leases",
        subresources: &[""],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::OwnLease,
    },
    NodeRight {
        group: "",
        plural: "pods",
        subresources: &["", "status"],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::OwnPods,
    },
    NodeRight {
        group: "",
        plural: "events",
        subresources: &[""],
        verbs: &["create", "update", "patch"],
        extent: Extent::Any,
    },
];

/// Whether the user may do this to any object at all.
pub(crate) fn may(user: &User, wanted: &Attributes<'_>) -> Result<(), ApiError> {
    let allowed = match &user.role {
        Role::Admin | Role::Controller => true,
        Role::Node(_) => matches!(wanted.verb, "get" | "list" | "watch") || right(wanted).is_some(),
        Role::Bootstrapper | Role::Nobody => false,
        Role::Anonymous => return Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
    };
    if allowed {
        Ok(())
    } else {
        Err(refusal(user, wanted))
    }
}

/// Whether the user may do it to this object: `old` is the stored one, `new` what it is to become.
pub(crate) fn may_object(
    user: &User,
    wanted: &Attributes<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<(), ApiError> {
    let Role::Node(node) = &user.role else {
        return Ok(());
    };
    let Some(right) = right(wanted) else {
        return Err(refusal(user, wanted));
    };
    let why = match right.extent {
        Extent::Any => None,
        Extent::OwnName => (wanted.name != node).then(|| {
            format!(
                "node \"{node}\" is not allowed to modify node \"{}\"",
                wanted.name
            )
        }),
        Extent::OwnLease => (wanted.name != node || wanted.namespace != wellknown::NAMESPACE_NODE_LEASE)
            .then(|| "can only access node lease with the same name as the requesting node".to_string()),
        Extent::OwnPods => {
            let mut bound = [old, new].into_iter().flatten().map(node_name);
            bound.any(|n| n != node).then(|| {
                format!(
                    "node \"{node}\" can only {} pods with spec.nodeName set to itself",
                    wanted.verb
                )
            })
        }
    };
    why.map_or(Ok(()), |why| {
        Err(ApiError::forbidden(wanted.kind, wanted.name, &why))
    })
}

fn right(wanted: &Attributes<'_>) -> Option<&'static NodeRight> {
    NODE_RIGHTS.iter().find(|r| {
        (r.group, r.plural) == (wanted.kind.group, wanted.kind.plural)
            && r.subresources.contains(&wanted.subresource)
            && r.verbs.contains(&wanted.verb)
    })
}

fn node_name(pod: &Value) -> &str {
    let name = pod
        .get("spec")
        .and_then(|s| s.get("nodeName"))
        .and_then(Value::as_str);
    name.unwrap_or_default()
}

fn refusal(user: &User, wanted: &Attributes<'_>) -> ApiError {
    let Attributes {
        verb,
        kind,
        namespace,
        name,
        subresource,
    } = *wanted;
    let slash = if subresource.is_empty() { "" } else { "/" };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_string()
    } else {
        format!("in the namespace \"{namespace}\"")
    };
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{}{slash}{subresource}\" in API group \"{}\" {place}",
        user.name, kind.plural, kind.group
    );
    ApiError::forbidden(kind, name, &why)
}

/// Whether a path below the root may be read.
pub(crate) fn may_root(user: &User, path: &[String], method: &str) -> Result<(), ApiError> {
    let first = path.first().map(String::as_str).unwrap_or_default();
    let open = matches!(first, "healthz" | "livez" | "readyz" | "version");
    let allowed = match &user.role {
        _ if open => true,
        Role::Admin | Role::Controller => true,
        // Discovery, and nothing that tells about the process.
        Role::Node(_) => matches!(first, "api" | "apis" | "openapi" | "metrics" | ""),
        Role::Bootstrapper | Role::Nobody => matches!(first, "api" | "apis" | "openapi"),
        Role::Anonymous => return Err(ApiError::new(Reason::Unauthorized, "Unauthorized")),
    };
    if allowed {
        return Ok(());
    }
    let path = format!("/{}", path.join("/"));
    let why = format!(
        "forbidden: User \"{}\" cannot {method} path \"{path}\"",
        user.name
    );
    Err(ApiError::new(Reason::Forbidden, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use svcnet_api::registry;

    use super::*;

    fn node(name: &str) -> User {
        User {
            name: format!("system:node:{name}"),
            role: Role::Node(name.to_string()),
        }
    }

    fn attributes<'a>(verb: &'a str, plural: &str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        let group = if plural == "leases" {
            "coordination.k8s.io"
        } else {
            ""
        };
        let kind = registry::by_resource(group, "v1", plural).unwrap();
        Attributes {
            verb,
            kind,
            namespace,
            name,
            subresource: "",
        }
    }

    #[test]
    fn a_node_may_not_write_services() {
        let refused = may(&node("n2"), &attributes("update", "services", "default", "x")).unwrap_err();
        assert_eq!(
            refused.message,
            "services \"x\" is forbidden: User \"system:node:n2\" cannot update resource \"services\" in API group \"\" \
             in the namespace \"default\""
        );
        assert!(may(&node("n2"), &attributes("list", "services", "", "")).is_ok());
    }

    #[test]
    fn a_node_writes_what_is_its_own() {
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let check = |a: Attributes<'_>, old: Option<&Value>, new: Option<&Value>| {
            may(&node("n1"), &a)
                .and_then(|()| may_object(&node("n1"), &a, old, new))
                .is_ok()
        };
        assert!(check(attributes("create", "nodes", "", "n1"), None, None));
        assert!(!check(attributes("patch", "nodes", "", "n2"), None, None));
        assert!(check(
            attributes("update", "leases", "kube-node-lease", "n1"),
            None,
            None
        ));
        assert!(!check(
            attributes("update", "leases", "kube-node-lease", "n2"),
            None,
            None
        ));
        assert!(!check(
            attributes("update", "leases", "default", "n1"),
            None,
            None
        ));
        assert!(check(
            attributes("create", "pods", "default", "p"),
            None,
            Some(&pod("n1"))
        ));
        assert!(!check(
            attributes("create", "pods", "default", "p"),
            None,
            Some(&pod("n2"))
        ));
        assert!(!check(
            attributes("update", "pods", "default", "p"),
            Some(&pod("n2")),
            Some(&pod("n1"))
        ));
        assert!(!check(
            attributes("delete", "pods", "default", "p"),
            Some(&pod("")),
            None
        ));
        assert!(!check(
            attributes("deletecollection", "pods", "default", ""),
            None,
            None
        ));
        assert!(check(attributes("create", "events", "default", "e"), None, None));
    }

    #[test]
    fn strangers_are_told_to_say_who_they_are() {
        let anonymous = User::anonymous();
        let refused = may(&anonymous, &attributes("get", "services", "default", "x")).unwrap_err();
        assert_eq!(refused.reason, Reason::Unauthorized);
        assert!(may_root(&anonymous, &["healthz".to_string()], "get").is_ok());
        assert!(may_root(&anonymous, &["metrics".to_string()], "get").is_err());
        assert!(may_root(&User::bootstrapper(), &["metrics".to_string()], "get").is_err());
    }
}
