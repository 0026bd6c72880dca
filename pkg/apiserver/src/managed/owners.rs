//! Who owns which fields of an object: `metadata.managedFields`, read and written (apimachinery,
//! pkg/util/managedfields/internal/managedfields.go).

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use svcnet_api::schema::SchemaNode;

use super::path::Path;
use super::set::{Set, SetError};

/// How fields came to be somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    /// Server-side apply: what is no longer applied goes away.
    Apply,
    /// Any other write.
    Update,
}

/// An owner of fields. One that applies is the same in whichever version it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    /// Empty where the operation is [`Operation::Apply`].
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) fields: Set,
    pub(crate) api_version: String,
    /// When its fields last changed; not always known.
    pub(crate) time: Option<String>,
}

/// All owners of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners(pub(crate) BTreeMap<Manager, Owned>);

/// Managed fields that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OwnersError {
    #[error("managed fields are no list of objects")]
    NoList,
    #[error("managed fields entry {0} has fieldsType {1:?}, must be \"FieldsV1\"")]
    FieldsType(usize, String),
    #[error("managed fields entry {0} has operation {1:?}, must be `Apply` or `Update`")]
    Operation(usize, String),
    #[error("managed fields entry {0}: {1}")]
    Fields(usize, #[source] SetError),
}

/// A field that an apply would take from somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) manager: Manager,
    pub(crate) path: Path,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// As messages about conflicts name it.
impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

impl Owners {
    /// The owners that an object tells of.
    ///
    /// # Errors
    /// What is no such list, or not in the form that is known.
    pub(crate) fn of(object: &Value) -> Result<Self, OwnersError> {
        let mut owners = Self::default();
        let entries = match managed_fields(object) {
            None | Some(Value::Null) => return Ok(owners),
            Some(entries) => entries.as_array().ok_or(OwnersError::NoList)?,
        };
        for (index, entry) in entries.iter().enumerate() {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            if text("fieldsType") != "FieldsV1" {
                return Err(OwnersError::FieldsType(index, text("fieldsType").to_string()));
            }
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                other => return Err(OwnersError::Operation(index, other.to_string())),
            };
            let fields = entry.get("fieldsV1").map_or(Ok(Set::default()), Set::decode);
            let fields = fields.map_err(|e| OwnersError::Fields(index, e))?;
            let manager = Manager::new(
                text("manager"),
                operation,
                text("apiVersion"),
                text("subresource"),
            );
            let owned = Owned {
                fields,
                api_version: text("apiVersion").to_string(),
                time: Some(text("time")).filter(|t| !t.is_empty()).map(String::from),
            };
            owners.0.insert(manager, owned);
        }
        Ok(owners)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells the object its owners, in the order of Kubernetes: appliers first, each by time.
    pub(crate) fn write(&self, object: &mut Value) {
        if self.is_empty() {
            crate::object::metadata(object).remove("managedFields");
            return;
        }
        let mut sorted: Vec<(&Manager, &Owned)> = self.0.iter().collect();
        sorted.sort_by_key(|(manager, owned)| {
            let order = (&manager.name, &manager.api_version, &manager.subresource);
            (manager.operation, owned.seconds(), order)
        });
        let entries = sorted
            .into_iter()
            .map(|(manager, owned)| manager.entry(owned))
            .collect();
        crate::object::metadata(object).insert("managedFields".to_string(), Value::Array(entries));
    }

    /// All fields that anybody owns.
    pub(crate) fn fields(&self) -> Set {
        let all = self.0.values();
        all.fold(Set::default(), |fields, owned| fields.union(&owned.fields))
    }

    /// Takes fields from everybody but one. Who owns nothing then is none any more.
    pub(crate) fn lose(&mut self, fields: &Set, but: Option<&Manager>) {
        for (manager, owned) in &mut self.0 {
            if Some(manager) != but {
                owned.fields = owned.fields.difference(fields);
            }
        }
        self.0.retain(|_, owned| !owned.fields.is_empty());
    }

    /// The fields of these that others than this manager own.
    pub(crate) fn conflicts(&self, manager: &Manager, fields: &Set) -> Vec<Conflict> {
        let others = self.0.iter().filter(|(other, _)| *other != manager);
        let found = others.flat_map(|(other, owned)| {
            let paths = owned.fields.intersection(fields).paths().into_iter();
            paths.map(|path| Conflict {
                manager: other.clone(),
                path,
            })
        });
        found.collect()
    }
}

impl Manager {
    pub(crate) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        Self {
            name: name.to_string(),
            operation,
            api_version: match operation {
                Operation::Apply => String::new(),
                Operation::Update => api_version.to_string(),
            },
            subresource: subresource.to_string(),
        }
    }

    fn entry(&self, owned: &Owned) -> Value {
        let mut entry = Map::new();
        let mut put = |name: &str, value: &str| {
            if !value.is_empty() {
                entry.insert(name.to_string(), value.into());
            }
        };
        put("manager", &self.name);
        put("operation", self.operation.word());
        put("apiVersion", &owned.api_version);
        put("time", owned.time.as_deref().unwrap_or_default());
        put("fieldsType", "FieldsV1");
        put("subresource", &self.subresource);
        entry.insert("fieldsV1".to_string(), owned.fields.encode());
        Value::Object(entry)
    }
}

impl Owned {
    fn seconds(&self) -> i64 {
        let time = self.time.as_deref().and_then(|t| t.parse::<Timestamp>().ok());
        time.map_or(0, Timestamp::as_second)
    }

    /// The fields, and those of objects around them.
    pub(crate) fn named(&self, schema: Option<SchemaNode>) -> Set {
        self.fields.with_named_members(schema)
    }
}

pub(crate) fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Whether a writer wants managed fields forgotten: by an empty list, or one of an empty entry.
pub(crate) fn is_reset(object: &Value) -> bool {
    match managed_fields(object)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        Some([]) => true,
        Some([one]) => *one == json!({}),
        _ => false,
    }
}

/// Whether two lists of managed fields differ in times alone.
pub(crate) fn same_but_times(a: &Value, b: &Value) -> bool {
    let timeless = |object: &Value| {
        let owners = Owners::of(object).ok()?.0.into_iter();
        let owners = owners.map(|(manager, owned)| (manager, Owned { time: None, ..owned }));
        Some(owners.collect::<BTreeMap<_, _>>())
    };
    timeless(a).is_some_and(|a| timeless(b) == Some(a))
}
