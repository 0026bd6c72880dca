//! Whether clients that know the types can read what the server has taken. One object that they cannot read keeps every
//! informer of its kind from going on, ours first.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR};
use serde::de::DeserializeOwned;
use serde_json::Value;
use svcnet_api::Kind;
use svcnet_api::metallb::{IPAddressPool, L2Advertisement};

/// Reads an object as its type; why not, where that fails. That it says the right type is checked elsewhere.
pub(crate) fn read(kind: &Kind, object: &Value) -> Result<(), serde_json::Error> {
    let mut object = object.clone();
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.into();
    fn as_type<T: DeserializeOwned>(object: &Value) -> Result<(), serde_json::Error> {
        serde_json::from_slice::<T>(object.to_string().as_bytes()).map(drop)
    }
    macro_rules! types {
        ($($type:ident),* $(,)?) => {
            match kind.kind {
                $(stringify!($type) => as_type::<$type>(&object),)*
                // There is no type of it here.
                "ServiceL2Status" => Ok(()),
                other => unreachable!("invariant: every kind is listed, {other} is not"),
            }
        };
    }
    types!(
        ConfigMap,
        EndpointSlice,
        Endpoints,
        Event,
        IPAddress,
        IPAddressPool,
        Ingress,
        IngressClass,
        L2Advertisement,
        Lease,
        Namespace,
        NetworkPolicy,
        Node,
        Pod,
        Secret,
        Service,
        ServiceCIDR,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use svcnet_api::{registry, schema};

    use super::*;

    /// Go's clock and ours do not know the same times: what is taken must be known to both.
    #[test]
    fn times_that_are_taken_can_be_read() {
        let lease = registry::by_kind("coordination.k8s.io/v1", "Lease").unwrap();
        let mut taken = 0;
        for time in [
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:00:00.123456Z",
            "2026-01-01T00:00:00.123456789123Z",
            "2026-01-01T00:00:00,5Z",
            "2026-01-01T00:00:00+02:00",
            "2026-01-01T00:00:00-23:59",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+25:30",
            "2016-12-31T23:59:60Z",
            "2026-01-01T24:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-01-01t00:00:00z",
            "2026-01-01 00:00:00Z",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "9999-12-31T23:59:59-23:59",
            "0000-01-01T00:00:00+23:59",
            "10000-01-01T00:00:00Z",
            "2026-01-01T00:00:00Z[UTC]",
            "2026-01-01T00:00Z",
            "20260101T000000Z",
            "",
        ] {
            let object = json!({"metadata": {"name": "a"}, "spec": {"renewTime": time}});
            if schema::check(lease, &object).type_error.is_none() {
                taken += 1;
                read(lease, &object).unwrap_or_else(|why| panic!("{time}: {why}"));
            }
        }
        assert!(taken > 4, "{taken}");
    }
}
