//! Which groups, versions and kinds there are.

use serde_json::{Value, json};
use svcnet_api::registry::{self, GroupVersion};
use svcnet_api::{ApiError, Kind};

use crate::auth::{Review, reviews, reviews_of};
use crate::refusal::not_found;
use crate::reply::Reply;
use crate::server::Server;
use crate::traits;

const VERBS_REVIEW: [&str; 1] = ["create"];

/// `/api`
pub(crate) fn api(server: &Server) -> Value {
    let address = server.advertised().to_string();
    let port = server
        .config
        .listen
        .first()
        .map_or(svcnet_api::wellknown::API_PORT, std::net::SocketAddr::port);
    let here = json!({"clientCIDR": "0.0.0.0/0", "serverAddress": format!("{address}:{port}")});
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [here]})
}

/// Every group version: of objects, and of questions about rights.
pub(crate) fn group_versions() -> Vec<GroupVersion> {
    let mut all = registry::group_versions();
    for Review { group, version, .. } in reviews() {
        let one = GroupVersion { group, version };
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn group_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = group_versions().iter().map(|gv| gv.group).collect();
    names.retain(|g| !g.is_empty());
    names.dedup();
    names
}

fn described(group: &str) -> Value {
    let versions: Vec<Value> = group_versions()
        .iter()
        .filter(|gv| gv.group == group)
        .map(|gv| json!({"groupVersion": format!("{group}/{}", gv.version), "version": gv.version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

/// `/apis`
pub(crate) fn groups() -> Value {
    let groups: Vec<Value> = group_names().into_iter().map(described).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub(crate) fn group(name: &str) -> Result<Reply, ApiError> {
    if !group_names().contains(&name) {
        return Err(not_found());
    }
    let mut group = described(name);
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Ok(Reply::json(200, &group))
}

/// `/api/v1`, `/apis/GROUP/VERSION`
pub(crate) fn resources(group: &str, version: &str) -> Result<Reply, ApiError> {
    let gv = find(group, version).ok_or_else(not_found)?;
    let mut resources = Vec::new();
    for kind in gv.kinds() {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": traits::VERBS, "shortNames": kind.short_names, "categories": kind.categories,
            "storageVersionHash": "",
        });
        // Empty lists are left out by the real server too.
        if let Some(fields) = resource.as_object_mut() {
            fields.retain(|_, v| !v.as_array().is_some_and(Vec::is_empty) && v != "" || v == kind.singular);
        }
        resources.push(resource);
        for (subresource, verbs) in traits::subresources(kind) {
            resources.push(json!({
                "name": format!("{}/{subresource}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": verbs,
            }));
        }
    }
    for review in reviews_of(gv.group, gv.version) {
        resources.push(json!({
            "name": review.plural, "singularName": review.singular, "namespaced": review.namespaced,
            "kind": review.kind, "verbs": VERBS_REVIEW,
        }));
    }
    let group_version = gv
        .path()
        .trim_start_matches("apis/")
        .trim_start_matches("api/")
        .to_string();
    Ok(Reply::json(
        200,
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    ))
}

fn find(group: &str, version: &str) -> Option<GroupVersion> {
    group_versions()
        .into_iter()
        .find(|gv| gv.group == group && gv.version == version)
}

/// `/api` or `/apis` in one document (`apidiscovery.k8s.io/v2`).
pub(crate) fn aggregated(root: &str) -> Reply {
    let groups = if root == "api" { vec![""] } else { group_names() };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|group| {
            let versions = group_versions().into_iter().filter(|gv| gv.group == group);
            let versions: Vec<Value> = versions
                .map(|gv| {
                    let kinds = gv.kinds().map(aggregated_kind);
                    let reviews = reviews_of(gv.group, gv.version).map(aggregated_review);
                    let resources: Vec<Value> = kinds.chain(reviews).collect();
                    json!({"version": gv.version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let mut reply = Reply::json(200, &list);
    reply.content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    reply
}

fn aggregated_review(review: &Review) -> Value {
    let scope = if review.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let response = json!({"group": review.group, "version": review.version, "kind": review.kind});
    json!({
        "resource": review.plural, "responseKind": response, "scope": scope, "singularResource": review.singular,
        "verbs": VERBS_REVIEW,
    })
}

fn aggregated_kind(kind: &'static Kind) -> Value {
    let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
    let response = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response, "scope": scope, "singularResource": kind.singular,
        "verbs": traits::VERBS,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = traits::subresources(kind)
        .map(|(name, verbs)| json!({"subresource": name, "responseKind": response, "verbs": verbs}))
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}
