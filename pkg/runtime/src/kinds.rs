//! The kinds that roles watch. What it takes to watch one is compiled here, once, and not in each role.

use std::path::Path;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, NetworkPolicy, ServiceCIDR};
use svcnet_api::metallb::{IPAddressPool, L2Advertisement};

use crate::informer::{Scope, Subscription, Watched};
use crate::journal::Journal;

macro_rules! watched {
    ($($kind:ty),* $(,)?) => {
        $(impl Watched for $kind {
            fn subscription(scope: Scope) -> Subscription {
                Subscription::of::<Self>(scope)
            }

            fn replay(journal: &Path) -> std::io::Result<Option<Vec<Self>>> {
                Journal::new(journal.to_path_buf()).replay()
            }
        })*
    };
}

watched!(
    ConfigMap,
    EndpointSlice,
    Endpoints,
    IPAddress,
    IPAddressPool,
    L2Advertisement,
    Lease,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
    ServiceCIDR,
);
