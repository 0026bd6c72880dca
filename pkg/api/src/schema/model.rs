//! The schemas without their prose, as a graph that a walk over an object follows. Built once, from all group
//! versions, when the first object is checked.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use serde::Deserialize;

use super::SOURCES;
use crate::kind::Kind;

/// Where in a schema a walk over an object stands.
#[derive(Clone, Copy)]
pub struct SchemaNode {
    model: &'static Model,
    slot: &'static Slot,
}

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// An object with known fields.
    Object,
    /// An object whose keys are data, as labels.
    Map,
    /// A list.
    List,
    /// Text.
    String,
    /// Text in base64.
    Bytes,
    /// Text in the form of RFC 3339.
    Time,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A number or a name.
    IntOrString,
    /// An amount: `500m`, `1Gi`, 2.
    Quantity,
    /// Anything goes (`x-kubernetes-preserve-unknown-fields`, managed fields).
    Any,
}

/// A place that a schema is used in: what the place itself adds to the type.
#[derive(Debug, Default)]
struct Slot {
    node: usize,
    merge_key: Option<Box<str>>,
    patch_strategy: Option<Box<str>>,
    list_type: Option<Box<str>>,
    list_map_keys: Vec<String>,
    atomic_map: bool,
}

#[derive(Debug)]
struct Node {
    type_: Type,
    /// The Go type behind it, as in `ServicePort`; empty for what is no struct.
    name: Box<str>,
    package: Box<str>,
    properties: BTreeMap<Box<str>, Slot>,
    /// Of a list its items, of a map its values.
    inner: Option<Slot>,
}

struct Model {
    nodes: Vec<Node>,
    /// By `apiVersion` and `kind`.
    kinds: HashMap<(String, String), Slot>,
}

impl SchemaNode {
    /// The objects of a kind.
    pub fn root(kind: &Kind) -> Option<Self> {
        let model = model();
        let slot = model.kinds.get(&(kind.api_version(), kind.kind.to_string()))?;
        Some(Self { model, slot })
    }

    /// The field of this name.
    pub fn property(self, name: &str) -> Option<Self> {
        let slot = self.node()?.properties.get(name)?;
        Some(Self { slot, ..self })
    }

    /// The items of a list.
    pub fn items(self) -> Option<Self> {
        let node = self.node().filter(|n| n.type_ == Type::List)?;
        Some(Self {
            slot: node.inner.as_ref()?,
            ..self
        })
    }

    /// The values of a map.
    pub fn additional_properties(self) -> Option<Self> {
        let node = self.node().filter(|n| n.type_ == Type::Map)?;
        Some(Self {
            slot: node.inner.as_ref()?,
            ..self
        })
    }

    /// What is under a key: the field of that name, or a map's value.
    pub fn child(self, key: &str) -> Option<Self> {
        self.property(key).or_else(|| self.additional_properties())
    }

    /// What a value must be.
    pub fn type_(self) -> Type {
        self.node().map_or(Type::Any, |n| n.type_)
    }

    /// Whether a number and a name are both right.
    pub fn int_or_string(self) -> bool {
        self.type_() == Type::IntOrString
    }

    /// Whether unknown fields are kept.
    pub fn preserve_unknown(self) -> bool {
        self.type_() == Type::Any
    }

    /// `x-kubernetes-patch-merge-key`: the field by which a strategic merge patch tells the items of a list apart.
    pub fn merge_key(self) -> Option<&'static str> {
        self.slot.merge_key.as_deref()
    }

    /// `x-kubernetes-patch-strategy`: `merge`, `replace`, `retainKeys`; none means that lists are replaced.
    pub fn patch_strategies(self) -> impl Iterator<Item = &'static str> {
        self.slot
            .patch_strategy
            .as_deref()
            .into_iter()
            .flat_map(|s| s.split(','))
    }

    /// Whether a strategic merge patch merges this list item by item.
    pub fn merges(self) -> bool {
        self.patch_strategies().any(|s| s == "merge")
    }

    /// `x-kubernetes-list-type`: `atomic`, `set` or `map`.
    pub fn list_type(self) -> Option<&'static str> {
        self.slot.list_type.as_deref()
    }

    /// `x-kubernetes-list-map-keys`: the fields that together tell the items of a list apart.
    pub fn list_map_keys(self) -> &'static [String] {
        &self.slot.list_map_keys
    }

    /// `x-kubernetes-map-type: atomic`: replaced as a whole by server-side apply, as selectors are.
    pub fn atomic_map(self) -> bool {
        self.slot.atomic_map
    }

    /// The Go struct behind it, as in `ServicePort`; empty where there is none.
    pub(super) fn struct_name(self) -> &'static str {
        self.node().map_or("", |n| &n.name)
    }

    /// The type as Go's messages name it: `v1.ServiceSpec`, `[]v1.ServicePort`, `map[string]string`, `int32`.
    pub(super) fn go_type(self) -> String {
        let inner = || {
            self.items()
                .or_else(|| self.additional_properties())
                .map_or_else(String::new, Self::go_type)
        };
        match self.type_() {
            Type::Object | Type::Any => self
                .node()
                .map_or_else(String::new, |n| format!("{}.{}", n.package, n.name)),
            Type::Map => format!("map[string]{}", inner()),
            Type::List => format!("[]{}", inner()),
            Type::String | Type::Time | Type::Quantity => "string".to_string(),
            Type::Bytes => "[]uint8".to_string(),
            Type::Int32 | Type::IntOrString => "int32".to_string(),
            Type::Int64 => "int64".to_string(),
            Type::Number => "float64".to_string(),
            Type::Boolean => "bool".to_string(),
        }
    }

    fn node(self) -> Option<&'static Node> {
        self.model.nodes.get(self.slot.node)
    }
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let mut definitions: BTreeMap<String, Raw> = BTreeMap::new();
        for source in &SOURCES {
            let own: BTreeMap<String, Raw> = parse(&source.inflate());
            definitions.extend(own);
        }
        Builder::build(definitions)
    })
}

#[expect(clippy::expect_used, reason = "the input is part of the binary")]
fn parse(definitions: &[u8]) -> BTreeMap<String, Raw> {
    serde_json::from_slice(definitions).expect("invariant: own schemas parse")
}

/// A schema as written.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Raw {
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "allOf")]
    all_of: Vec<Raw>,
    #[serde(rename = "oneOf")]
    one_of: Vec<Raw>,
    #[serde(rename = "type")]
    type_: Option<String>,
    format: Option<String>,
    properties: BTreeMap<String, Raw>,
    items: Option<Box<Raw>>,
    #[serde(rename = "additionalProperties")]
    additional: Option<Box<Raw>>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    merge_key: Option<Box<str>>,
    #[serde(rename = "x-kubernetes-patch-strategy")]
    patch_strategy: Option<Box<str>>,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: Option<Box<str>>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    map_type: Option<String>,
    #[serde(rename = "x-kubernetes-group-version-kind")]
    kinds: Vec<RawKind>,
}

#[derive(Deserialize)]
struct RawKind {
    group: String,
    version: String,
    kind: String,
}

struct Builder {
    nodes: Vec<Node>,
    /// Definition to node; those of the definitions come first, in the order of their names.
    index: HashMap<String, usize>,
    /// `x-kubernetes-map-type` stands at the definition, but is asked for at its uses.
    atomic: Vec<bool>,
}

impl Builder {
    fn build(definitions: BTreeMap<String, Raw>) -> Model {
        let index: HashMap<String, usize> = definitions.keys().cloned().zip(0..).collect();
        let atomic = definitions
            .values()
            .map(|d| d.map_type.as_deref() == Some("atomic"))
            .collect();
        let mut builder = Self {
            nodes: Vec::with_capacity(definitions.len() * 4),
            index,
            atomic,
        };
        let mut kinds = HashMap::new();
        // Two passes: the nodes of definitions must keep the numbers that references to them have.
        for name in definitions.keys() {
            let mut parts = name.rsplit('.');
            let short = parts.next().unwrap_or_default().into();
            let package = parts.next().unwrap_or_default().into();
            builder.nodes.push(Node {
                name: short,
                package,
                ..Node::any()
            });
        }
        for (at, (_, raw)) in definitions.into_iter().enumerate() {
            for gvk in &raw.kinds {
                let version = match gvk.group.as_str() {
                    "" => gvk.version.clone(),
                    group => format!("{group}/{}", gvk.version),
                };
                kinds.insert(
                    (version, gvk.kind.clone()),
                    Slot {
                        node: at,
                        ..Slot::default()
                    },
                );
            }
            let node = builder.node(raw);
            if let Some(place) = builder.nodes.get_mut(at) {
                let (name, package) = (
                    std::mem::take(&mut place.name),
                    std::mem::take(&mut place.package),
                );
                *place = Node {
                    name,
                    package,
                    ..node
                };
            }
        }
        Model {
            nodes: builder.nodes,
            kinds,
        }
    }

    fn node(&mut self, raw: Raw) -> Node {
        let type_ = raw.type_();
        let properties = raw
            .properties
            .into_iter()
            .map(|(name, raw)| (name.into(), self.slot(raw)))
            .collect();
        let inner = raw.items.or(raw.additional).map(|raw| self.slot(*raw));
        Node {
            type_,
            properties,
            inner,
            ..Node::any()
        }
    }

    fn slot(&mut self, mut raw: Raw) -> Slot {
        let reference = raw
            .reference
            .take()
            .or_else(|| raw.all_of.first_mut().and_then(|r| r.reference.take()));
        let mut slot = Slot {
            node: 0,
            merge_key: raw.merge_key.take(),
            patch_strategy: raw.patch_strategy.take(),
            list_type: raw.list_type.take(),
            list_map_keys: std::mem::take(&mut raw.list_map_keys),
            atomic_map: raw.map_type.as_deref() == Some("atomic"),
        };
        let name = reference.as_deref().and_then(|r| r.rsplit('/').next());
        if let Some(&at) = name.and_then(|name| self.index.get(name)) {
            slot.node = at;
            slot.atomic_map |= self.atomic.get(at).copied().unwrap_or_default();
        } else {
            let node = self.node(raw);
            slot.node = self.nodes.len();
            self.nodes.push(node);
        }
        slot
    }
}

impl Node {
    fn any() -> Self {
        Self {
            type_: Type::Any,
            name: "".into(),
            package: "".into(),
            properties: BTreeMap::new(),
            inner: None,
        }
    }
}

impl Raw {
    fn type_(&self) -> Type {
        match (self.type_.as_deref(), self.format.as_deref()) {
            (_, Some("int-or-string")) => Type::IntOrString,
            (Some("string"), Some("byte")) => Type::Bytes,
            (Some("string"), Some("date-time")) => Type::Time,
            (Some("string"), _) => Type::String,
            (Some("integer"), Some("int32")) => Type::Int32,
            (Some("integer"), _) => Type::Int64,
            (Some("number"), _) => Type::Number,
            (Some("boolean"), _) => Type::Boolean,
            (Some("array"), _) => Type::List,
            (Some("object"), _) if self.additional.is_some() => Type::Map,
            (Some("object"), _) if !self.properties.is_empty() => Type::Object,
            (None, _) if !self.one_of.is_empty() => Type::Quantity,
            _ => Type::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::by_kind;

    fn at(kind: &str, path: &str) -> SchemaNode {
        let root = SchemaNode::root(by_kind("v1", kind).unwrap()).unwrap();
        path.split('.')
            .filter(|p| !p.is_empty())
            .fold(root, |node, step| {
                let next = if step == "[]" {
                    node.items()
                } else {
                    node.child(step)
                };
                next.unwrap_or_else(|| panic!("{step} of {path}"))
            })
    }

    #[test]
    fn lists_know_how_they_merge() {
        let ports = at("Service", "spec.ports");
        assert_eq!((ports.merge_key(), ports.merges()), (Some("port"), true));
        assert_eq!(ports.list_map_keys(), ["port", "protocol"]);
        assert_eq!((ports.type_(), ports.list_type()), (Type::List, Some("map")));
        let volumes: Vec<&str> = at("Pod", "spec.volumes").patch_strategies().collect();
        assert_eq!(volumes, ["merge", "retainKeys"]);
        assert_eq!(at("Pod", "spec.containers").merge_key(), Some("name"));
        assert!(!at("Service", "spec.loadBalancerSourceRanges").merges());
        assert!(at("Service", "spec.selector").atomic_map());
        assert!(at("Pod", "metadata.finalizers").merges());
    }

    #[test]
    fn types_are_told_apart() {
        for (kind, path, type_, go) in [
            ("Service", "spec.ports.[].targetPort", Type::IntOrString, "int32"),
            ("Service", "spec.ports.[].port", Type::Int32, "int32"),
            ("Service", "spec.ports", Type::List, "[]v1.ServicePort"),
            ("Service", "metadata.labels.any/key", Type::String, "string"),
            ("Service", "metadata.labels", Type::Map, "map[string]string"),
            ("Service", "metadata.creationTimestamp", Type::Time, "string"),
            ("Service", "spec", Type::Object, "v1.ServiceSpec"),
            (
                "Service",
                "metadata.managedFields.[].fieldsV1",
                Type::Any,
                "v1.FieldsV1",
            ),
            ("Secret", "data.x", Type::Bytes, "[]uint8"),
            ("Node", "status.capacity.cpu", Type::Quantity, "string"),
            ("Pod", "spec.hostNetwork", Type::Boolean, "bool"),
            ("Pod", "metadata.generation", Type::Int64, "int64"),
        ] {
            let node = at(kind, path);
            assert_eq!((node.type_(), node.go_type().as_str()), (type_, go), "{path}");
        }
    }
}
