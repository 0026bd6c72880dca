//! What `kubectl get` prints: the columns of each kind, and the metav1.Table that carries them (pkg/printers in
//! kube-apiserver). No I/O; the time is given.

mod duration;
mod endpoints;
mod event;
mod node;
mod pod;
mod service;

pub use duration::{age_since, human_duration};

pub(crate) use endpoints::{ENDPOINT_SLICE, ENDPOINTS};
pub(crate) use event::EVENT;
pub(crate) use node::NODE;
pub(crate) use pod::POD;
pub(crate) use service::SERVICE;

use serde_json::{Value, json};

use crate::kind::{Column, Kind};
use crate::rules::Fields;

/// What stands in for an empty cell.
const NONE: &str = "<none>";

/// How much of each object a row of a Table carries along (`includeObject` of metav1.TableOptions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, which is what kubectl needs for `-A` and `--show-labels`.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// The value of the query parameter; absent and empty mean the metadata.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "None" => Some(Self::None),
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// A metav1.Table of objects of one kind. `list_metadata` is that of the list (resourceVersion, continue,
/// remainingItemCount), or of the object where a single one is shown; `now` is in seconds since the epoch.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: &Value,
    include: IncludeObject,
    now: i64,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| row(kind, object, include, now))
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": definitions(kind), "rows": rows,
    })
}

/// The `columnDefinitions` of a kind.
pub fn definitions(kind: &Kind) -> Value {
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.type_, "format": column.format, "description": column.description,
            "priority": column.priority,
        })
    };
    kind.columns.iter().map(definition).collect()
}

/// One row of a Table.
pub fn row(kind: &Kind, object: &Value, include: IncludeObject, now: i64) -> Value {
    let cells: Value = kind
        .columns
        .iter()
        .map(|column| (column.cell)(object, now))
        .collect();
    let object = match include {
        IncludeObject::None => return json!({"cells": cells}),
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
        }),
        IncludeObject::Object => object.clone(),
    };
    json!({"cells": cells, "object": object})
}

/// The first column of nearly every kind.
pub(crate) const NAME: Column = Column {
    name: "Name",
    type_: "string",
    format: "name",
    description: "Name must be unique within a namespace. Is required when creating resources, although some resources \
                  may allow a client to request the generation of an appropriate name automatically. Name is primarily \
                  intended for creation idempotence and configuration definition. Cannot be updated. More info: \
                  https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    priority: 0,
    cell: |object, _| object["metadata"]["name"].clone(),
};

/// How long ago the object was made.
pub(crate) const AGE: Column = column(
    "Age",
    "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed \
     to be set in happens-before order across separate operations. Clients may not set this value. It is represented \
     in RFC3339 form and is in UTC.",
    |object, now| json!(age_since(object["metadata"].text("creationTimestamp"), now)),
);

/// A column of text that is always shown.
pub(crate) const fn column(
    name: &'static str,
    description: &'static str,
    cell: fn(&Value, i64) -> Value,
) -> Column {
    Column {
        name,
        type_: "string",
        format: "",
        description,
        priority: 0,
        cell,
    }
}

/// The same, shown with `-o wide` alone.
pub(crate) const fn wide(column: Column) -> Column {
    Column {
        priority: 1,
        ..column
    }
}

/// Text, or `<none>` where it is empty.
fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { NONE } else { text })
}

/// `first,second,third + 2 more...`, as the printers of endpoints shorten their lists.
fn first_three(items: &[String]) -> String {
    match items.get(..3) {
        Some(first) if items.len() > 3 => format!("{} + {} more...", first.join(","), items.len() - 3),
        _ => items.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{by_kind, kinds};

    #[test]
    fn every_kind_prints_the_columns_of_the_real_one() {
        for (kind, narrow, wide) in [
            ("Namespace", "Name Status Age", ""),
            (
                "Node",
                "Name Status Roles Age Version",
                "Internal-IP External-IP OS-Image Kernel-Version Container-Runtime",
            ),
            (
                "Pod",
                "Name Ready Status Restarts Age",
                "IP Node Nominated_Node Readiness_Gates",
            ),
            (
                "Service",
                "Name Type Cluster-IP External-IP Port(s) Age",
                "Selector",
            ),
            ("Endpoints", "Name Endpoints Age", ""),
            ("ConfigMap", "Name Data Age", ""),
            ("Secret", "Name Type Data Age", ""),
            (
                "Event",
                "Last_Seen Type Reason Object Message",
                "Subobject Source First_Seen Count Name",
            ),
            ("EndpointSlice", "Name AddressType Ports Endpoints Age", ""),
            ("Lease", "Name Holder Age", ""),
            ("NetworkPolicy", "Name Pod-Selector Age", ""),
            ("Ingress", "Name Class Hosts Address Ports Age", ""),
            ("IngressClass", "Name Controller Parameters Age", ""),
            ("ServiceCIDR", "Name CIDRs Age", ""),
            ("IPAddress", "Name ParentRef Age", ""),
            (
                "ServiceL2Status",
                "Name Allocated_Node Service_Name Service_Namespace",
                "",
            ),
            ("IPAddressPool", "Name Auto_Assign Avoid_Buggy_IPs Addresses", ""),
            (
                "L2Advertisement",
                "Name IPAddressPools IPAddressPool_Selectors Interfaces",
                "Node_Selectors",
            ),
        ] {
            let columns = kinds().iter().find(|k| k.kind == kind).unwrap().columns;
            let of = |wide: bool| {
                let names = columns
                    .iter()
                    .filter(|c| (c.priority > 0) == wide)
                    .map(|c| c.name.replace(' ', "_"));
                names.collect::<Vec<_>>().join(" ")
            };
            assert_eq!((of(false).as_str(), of(true).as_str()), (narrow, wide), "{kind}");
            assert_eq!(columns.iter().filter(|c| c.format == "name").count(), 1, "{kind}");
        }
    }

    #[test]
    fn a_table_carries_what_is_asked_for() {
        let kind = by_kind("v1", "ConfigMap").unwrap();
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "1"},
            "metadata": {"name": "a", "namespace": "default", "creationTimestamp": "1970-01-01T00:00:00Z"},
        });
        let table = table(
            kind,
            [&object],
            &json!({"resourceVersion": "7"}),
            IncludeObject::default(),
            65,
        );
        assert_eq!(
            (&table["kind"], &table["apiVersion"]),
            (&json!("Table"), &json!("meta.k8s.io/v1"))
        );
        assert_eq!(table["metadata"], json!({"resourceVersion": "7"}));
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["rows"][0]["cells"], json!(["a", 1, "65s"]));
        assert_eq!(
            table["rows"][0]["object"],
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
        );
        assert_eq!(row(kind, &object, IncludeObject::Object, 0)["object"], object);
        assert!(row(kind, &object, IncludeObject::None, 0).get("object").is_none());
    }

    #[test]
    fn an_object_with_nothing_in_it_prints() {
        for kind in kinds() {
            for object in [json!({}), json!({"spec": null, "metadata": []}), json!(7)] {
                let cells = row(kind, &object, IncludeObject::None, 0);
                assert_eq!(cells["cells"].as_array().map(Vec::len), Some(kind.columns.len()));
            }
        }
    }
}
