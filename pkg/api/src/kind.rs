//! A kind is one entry of a table: its names, its checks and its columns. No verb of the API server knows a kind by
//! name; whatever differs between kinds stands here.

use serde_json::Value;

use crate::field::FieldError;

/// One column of a kind in `kubectl get` (a server-side Table, metav1.TableColumnDefinition).
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The heading, as in `Cluster-IP`; kubectl prints it in capitals.
    pub name: &'static str,
    /// `string`, `integer`, `date` or `boolean`.
    pub type_: &'static str,
    /// `name` for the first column, else empty.
    pub format: &'static str,
    /// What `kubectl explain` of the column would say.
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: u8,
    /// The cell of an object. Ages are computed from `now` (seconds since the epoch).
    pub cell: fn(&Value, now: i64) -> Value,
}

/// One kind of object.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, as in `v1`.
    pub version: &'static str,
    /// CamelCase name, as in `Service`.
    pub kind: &'static str,
    /// Resource name in URLs, as in `services`.
    pub plural: &'static str,
    /// Lower-case singular, as in `service`.
    pub singular: &'static str,
    /// What kubectl accepts for short, as in `svc`.
    pub short_names: &'static [&'static str],
    /// Groups of kinds that it belongs to, as in `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether there is a `status` subresource; if so, plain writes leave the status alone.
    pub status: bool,
    /// Objects that are only ever refreshed (Leases): kept in memory, never written to disk.
    pub volatile: bool,
    /// Fields beside `metadata.name` and `metadata.namespace` that field selectors may name.
    pub selectable_fields: &'static [&'static str],
    /// The columns of `kubectl get`, name first, age where the real kind has it.
    pub columns: &'static [Column],
    /// Fills in what the writer left open, before validation. `old` is the stored object on update.
    pub default: fn(new: &mut Value, old: Option<&Value>),
    /// Everything wrong with an object (`old` is the stored one on update: immutability is checked too).
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<FieldError>,
    /// Whether `metadata.name` must be a DNS label (`services`) rather than a subdomain.
    pub name_rule: NameRule,
}

/// What a name of this kind must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1035 label: Services.
    Label1035,
    /// RFC 1123 label: Namespaces.
    Label1123,
    /// RFC 1123 subdomain: nearly all else.
    Subdomain,
    /// An IP address in its canonical form: IPAddresses.
    Address,
}

impl Kind {
    /// `v1`, or `discovery.k8s.io/v1`: what `apiVersion` says.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether it is a custom resource for the real server, not one of its own kinds.
    pub fn is_custom(&self) -> bool {
        !self.group.is_empty() && !self.group.ends_with(".k8s.io")
    }

    /// `services`, or `endpointslices.discovery.k8s.io`: how errors name the resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}
