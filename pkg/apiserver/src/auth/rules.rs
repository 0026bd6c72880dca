//! What each role may do: a small table, no RBAC engine. What is enforced and what reviews answer (`review`) come out of
//! the same functions.

use serde_json::Value;
use svcnet_api::{ApiError, Kind, Reason, wellknown};

use super::User;
use super::identity::Role;
use super::related::secrets_named;

/// What a request wants, as far as its URL says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub(crate) verb: &'a str,
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'a str,
    /// Of lists and watches too, where they select one name.
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
}

/// What nodes may write, and how far.
#[derive(Debug)]
pub(super) struct NodeRight {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) subresources: &'static [&'static str],
    pub(super) verbs: &'static [&'static str],
    pub(super) extent: Extent,
}

/// Which objects of a kind a node may write: its own, by what?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Those of its own name.
    Name,
    /// Those of its own name, in the namespace of node Leases.
    Lease,
    /// Those bound to it.
    Pods,
    /// Those that it reports itself.
    Events,
    /// Those that say that it announces.
    Announcements,
}

pub(super) const NODE_RIGHTS: [NodeRight; 5] = [
    NodeRight {
        group: "",
        plural: "nodes",
        subresources: &["", "status"],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::Name,
    },
    NodeRight {
        group: "coordination.k8s.io",
        plural: "leases",
        subresources: &[""],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::Lease,
    },
    NodeRight {
        group: "",
        plural: "pods",
        subresources: &["", "status"],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::Pods,
    },
    NodeRight {
        group: "",
        plural: "events",
        subresources: &[""],
        verbs: &["create", "update", "patch"],
        extent: Extent::Events,
    },
    NodeRight {
        group: "metallb.io",
        plural: "servicel2statuses",
        subresources: &["", "status"],
        verbs: &["create", "update", "patch", "delete"],
        extent: Extent::Announcements,
    },
];

/// The verbs that change nothing.
pub(super) const READS: [&str; 3] = ["get", "list", "watch"];
/// First parts of paths that anybody may read.
pub(super) const OPEN_PATHS: [&str; 4] = ["healthz", "livez", "readyz", "version"];
/// Those that everybody may read who has said who they are.
pub(super) const DISCOVERY_PATHS: [&str; 3] = ["api", "apis", "openapi"];
/// Those that nodes and viewers may read besides.
pub(super) const LOOK_PATHS: [&str; 2] = ["metrics", ""];

/// Whether objects of a kind are for administrators' eyes, and for nodes whose pods need them (the real server's
/// ClusterRole `view` leaves them out too).
pub(super) fn is_confidential(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("", "secrets")
}

/// Whether the user may do this to any object at all. `is_related` tells whether a node's pods need the object.
pub(crate) fn may(
    user: &User,
    wanted: &Attributes<'_>,
    is_related: impl FnOnce(&str) -> bool,
) -> Result<(), ApiError> {
    let reads = READS.contains(&wanted.verb);
    let allowed = match &user.role {
        Role::Admin | Role::Controller => true,
        Role::Node(node) if reads && is_confidential(wanted.kind) => {
            if wanted.name.is_empty() || wanted.namespace.is_empty() || !is_related(node) {
                let why = format!(
                    "{}: no relationship found between node '{node}' and this object",
                    refusal_text(user, wanted)
                );
                return Err(ApiError::forbidden(wanted.kind, wanted.name, &why));
            }
            true
        }
        Role::Node(_) => reads || right(wanted).is_some(),
        Role::Viewer => reads && !is_confidential(wanted.kind),
        Role::Bootstrapper(_) | Role::Nobody => false,
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
    let all = || [old, new].into_iter().flatten();
    let why = match right.extent {
        Extent::Name => (wanted.name != node).then(|| {
            format!(
                "node \"{node}\" is not allowed to modify node \"{}\"",
                wanted.name
            )
        }),
        Extent::Lease => (wanted.name != node || wanted.namespace != wellknown::NAMESPACE_NODE_LEASE)
            .then(|| "can only access node lease with the same name as the requesting node".to_string()),
        Extent::Pods if all().any(|pod| text(pod, "/spec/nodeName") != node) => Some(format!(
            "node \"{node}\" can only {} pods with spec.nodeName set to itself",
            wanted.verb
        )),
        // Or it would read any Secret, by way of a pod that names it.
        Extent::Pods => {
            let before = old.map(secrets_named).unwrap_or_default();
            let after = new.map(secrets_named).unwrap_or_default();
            (!after.is_subset(&before)).then(|| {
                format!(
                    "node \"{node}\" can not {} pods that reference secrets",
                    wanted.verb
                )
            })
        }
        Extent::Announcements => all().any(|status| !announces(status, node)).then(|| {
            format!(
                "node \"{node}\" can only {} statuses of its own announcements",
                wanted.verb
            )
        }),
        Extent::Events => all().any(|event| !reports(event, node)).then(|| {
            format!(
                "node \"{node}\" can only {} events whose source.host or reportingInstance is itself",
                wanted.verb
            )
        }),
    };
    why.map_or(Ok(()), |why| {
        Err(ApiError::forbidden(wanted.kind, wanted.name, &why))
    })
}

pub(super) fn right(wanted: &Attributes<'_>) -> Option<&'static NodeRight> {
    NODE_RIGHTS.iter().find(|r| {
        (r.group, r.plural) == (wanted.kind.group, wanted.kind.plural)
            && r.subresources.contains(&wanted.subresource)
            && r.verbs.contains(&wanted.verb)
    })
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Whether an Event says that it comes from the node, and does not say that it comes from another.
fn reports(event: &Value, node: &str) -> bool {
    let host = text(event, "/source/host");
    host == node || host.is_empty() && text(event, "/reportingInstance") == node
}

/// Whether a ServiceL2Status is labelled as the node's, and says nothing else.
fn announces(status: &Value, node: &str) -> bool {
    let labels = &status["metadata"]["labels"];
    labels[wellknown::LABEL_L2_STATUS_NODE] == node && ["", node].contains(&text(status, "/status/node"))
}

fn refusal_text(user: &User, wanted: &Attributes<'_>) -> String {
    let Attributes {
        verb,
        kind,
        namespace,
        subresource,
        ..
    } = *wanted;
    let slash = if subresource.is_empty() { "" } else { "/" };
    cannot(
        user,
        verb,
        &format!("{}{slash}{subresource}", kind.plural),
        kind.group,
        namespace,
    )
}

/// The words in which the real server refuses.
pub(super) fn cannot(user: &User, verb: &str, resource: &str, group: &str, namespace: &str) -> String {
    let place = if namespace.is_empty() {
        "at the cluster scope".to_string()
    } else {
        format!("in the namespace \"{namespace}\"")
    };
    format!(
        "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}",
        user.name
    )
}

fn refusal(user: &User, wanted: &Attributes<'_>) -> ApiError {
    ApiError::forbidden(wanted.kind, wanted.name, &refusal_text(user, wanted))
}

/// Whether a path below the root may be read.
pub(crate) fn may_root(user: &User, path: &[String], method: &str) -> Result<(), ApiError> {
    let first = path.first().map(String::as_str).unwrap_or_default();
    let open = OPEN_PATHS.contains(&first);
    let discovery = DISCOVERY_PATHS.contains(&first);
    let allowed = match &user.role {
        _ if open => true,
        Role::Admin | Role::Controller => true,
        Role::Node(_) | Role::Viewer => discovery || LOOK_PATHS.contains(&first),
        Role::Bootstrapper(_) | Role::Nobody => discovery,
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
    let mut error = ApiError::new(Reason::Forbidden, why);
    // As the real server has it, since the path names no kind.
    error.details = Some(serde_json::json!({}));
    Err(error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use svcnet_api::registry;

    use super::*;

    fn node(name: &str) -> User {
        User::new(&format!("system:node:{name}"), ["system:nodes".to_string()])
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
        let refused = may(
            &node("n2"),
            &attributes("update", "services", "default", "x"),
            |_| false,
        )
        .unwrap_err();
        assert_eq!(
            refused.message,
            "services \"x\" is forbidden: User \"system:node:n2\" cannot update resource \"services\" in API group \"\" \
             in the namespace \"default\""
        );
        assert!(may(&node("n2"), &attributes("list", "services", "", ""), |_| false).is_ok());
    }

    #[test]
    fn a_node_writes_what_is_its_own() {
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let check = |a: Attributes<'_>, old: Option<&Value>, new: Option<&Value>| {
            may(&node("n1"), &a, |_| false)
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
        let names =
            |secret: &str| json!({"spec": {"nodeName": "n1", "imagePullSecrets": [{"name": secret}]}});
        let create = attributes("create", "pods", "default", "p");
        assert!(!check(create, None, Some(&names("s"))));
        let update = attributes("update", "pods", "default", "p");
        assert!(check(update, Some(&names("s")), Some(&names("s"))));
        assert!(!check(update, Some(&names("s")), Some(&names("t"))));
        assert!(!check(
            attributes("deletecollection", "pods", "default", ""),
            None,
            None
        ));
        let event =
            |host: &str, instance: &str| json!({"source": {"host": host}, "reportingInstance": instance});
        let create = attributes("create", "events", "default", "e");
        assert!(check(create, None, Some(&event("n1", ""))));
        assert!(check(create, None, Some(&event("", "n1"))));
        assert!(!check(create, None, Some(&event("n2", "n1"))));
        assert!(!check(create, None, Some(&event("", ""))));
        let update = attributes("update", "events", "default", "e");
        assert!(!check(update, Some(&event("n2", "")), Some(&event("n1", ""))));
    }

    #[test]
    fn a_node_says_for_itself_alone_what_it_announces() {
        let status = |label: &str, node: &str| json!({"metadata": {"labels": {"metallb.io/node": label}}, "status": {"node": node}});
        let delete = Attributes {
            verb: "delete",
            kind: registry::by_resource("metallb.io", "v1beta1", "servicel2statuses").unwrap(),
            namespace: "metallb-system",
            name: "l2-a",
            subresource: "",
        };
        let check = |old: Value| may_object(&node("n1"), &delete, Some(&old), None);
        assert!(may(&node("n1"), &delete, |_| false).is_ok());
        assert!(check(status("n1", "n1")).is_ok());
        assert!(check(status("n1", "n2")).is_err());
        assert_eq!(
            check(status("n2", "n2")).unwrap_err().message,
            "servicel2statuses.metallb.io \"l2-a\" is forbidden: node \"n1\" can only delete statuses of its own \
             announcements"
        );
    }

    #[test]
    fn strangers_are_told_to_say_who_they_are() {
        let anonymous = User::anonymous();
        let refused = may(&anonymous, &attributes("get", "services", "default", "x"), |_| {
            false
        })
        .unwrap_err();
        assert_eq!(refused.reason, Reason::Unauthorized);
        assert!(may_root(&anonymous, &["healthz".to_string()], "get").is_ok());
        assert!(may_root(&anonymous, &["metrics".to_string()], "get").is_err());
        assert!(may_root(&User::bootstrapper("x", None), &["metrics".to_string()], "get").is_err());
    }

    #[test]
    fn secrets_are_for_administrators_and_for_pods_that_need_them() {
        let viewer = User::new("alice", ["svcnet:viewers".to_string()]);
        let get = attributes("get", "secrets", "default", "s");
        assert!(may(&viewer, &get, |_| true).is_err());
        assert!(may(&viewer, &attributes("list", "services", "", ""), |_| false).is_ok());
        assert!(
            may(&viewer, &attributes("create", "services", "default", ""), |_| {
                false
            })
            .is_err()
        );
        assert!(may(&node("n1"), &get, |node| node == "n1").is_ok());
        let refused = may(&node("n2"), &get, |node| node == "n1").unwrap_err();
        assert_eq!(
            refused.message,
            "secrets \"s\" is forbidden: User \"system:node:n2\" cannot get resource \"secrets\" in API group \"\" in \
             the namespace \"default\": no relationship found between node 'n2' and this object"
        );
        assert!(
            may(&node("n1"), &attributes("list", "secrets", "default", ""), |_| {
                true
            })
            .is_err()
        );
    }
}
