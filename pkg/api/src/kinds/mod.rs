//! One file for each kind: its table entry, defaults and checks.

pub(crate) mod config_map;
pub(crate) mod endpoint_slice;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod ingress;
pub(crate) mod ingress_class;
pub(crate) mod ip_address;
pub(crate) mod ip_address_pool;
pub(crate) mod l2_advertisement;
pub(crate) mod lease;
pub(crate) mod namespace;
pub(crate) mod network_policy;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod service_cidr;
pub(crate) mod service_l2_status;
