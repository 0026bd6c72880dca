//! Names that svcnet and its clients agree on: fixed addresses' defaults, labels, annotations, file places.

/// Label of an EndpointSlice that names its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice that names the controller it belongs to.
pub const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of a Service that another proxy implements; ours leaves it alone.
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Annotation of a Service: how an endpoint is chosen for a new connection, as in `rr`, `sh` or `mh`.
pub const ANNOTATION_SCHEDULER: &str = "svcnet.io/scheduler";
/// Annotation of a Service: the shares of new connections that endpoints take, as in `web-0=3, node/n1=2, zone/a=0`.
pub const ANNOTATION_WEIGHTS: &str = "svcnet.io/weights";
/// Annotation of a Pod: further names of it in its namespace, as in `db,postgres`. A Service of that name goes before it.
pub const ANNOTATION_ALIASES: &str = "svcnet.io/aliases";
/// Annotation of a Pod that CNI made an object for: the uid that the runtime has for it. It is there once the labels are, too.
pub const ANNOTATION_RUNTIME_UID: &str = "svcnet.io/runtime-uid";
/// Label of a Node: the zone that it is in.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Label of a node that announces no LoadBalancer address.
pub const LABEL_EXCLUDE_LB: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Annotation of a Node: the node ports that programs of its own listen on, as in `30080,31000`.
pub const ANNOTATION_HOST_PORTS: &str = "svcnet.io/host-ports";
/// Name of the ServiceCIDR that every cluster has: `--service-cluster-ip-range`.
pub const DEFAULT_SERVICE_CIDR_NAME: &str = "kubernetes";
/// Finalizer of a ServiceCIDR: it stays as long as addresses of it are in use.
pub const FINALIZER_SERVICE_CIDR: &str = "networking.k8s.io/service-cidr-finalizer";
/// Namespace of the node Leases.
pub const NAMESPACE_NODE_LEASE: &str = "kube-node-lease";
/// Namespace of what the cluster itself needs.
pub const NAMESPACE_SYSTEM: &str = "kube-system";
/// Label of a ServiceL2Status: the node that announces.
pub const LABEL_L2_STATUS_NODE: &str = "metallb.io/node";
/// Namespace that MetalLB configurations live in.
pub const NAMESPACE_METALLB: &str = "metallb-system";

/// `--service-cluster-ip-range`.
pub const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/12";
/// `--cluster-cidr`.
pub const DEFAULT_CLUSTER_CIDR: &str = "10.244.0.0/16";
/// `--cluster-dns`.
pub const DEFAULT_CLUSTER_DNS: &str = "10.96.0.10";
/// `--cluster-domain`.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
/// `--service-node-port-range`.
pub const DEFAULT_NODE_PORT_RANGE: &str = "30000-32767";
/// Port of the API.
pub const API_PORT: u16 = 6443;
/// UDP port of the VXLAN overlay (flannel's; the kernel's own default, as Linux's).
pub const VXLAN_PORT: u16 = 8472;
/// VNI of the overlay.
pub const VXLAN_VNI: u32 = 1;
/// `--data-dir`.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/svcnet";
/// Where sockets live.
pub const DEFAULT_RUN_DIR: &str = "/run/svcnet";
/// The administrator's kubeconfig.
pub const DEFAULT_KUBECONFIG: &str = "/etc/svcnet/kubeconfig.yaml";
/// Name of the bridge that pods hang on.
pub const BRIDGE_NAME: &str = "svcnet0";
/// Name of the VXLAN link.
pub const VXLAN_NAME: &str = "svcnet.1";
/// Links of ours, by which no other node is reached as a host.
pub const OWN_LINKS: [&str; 2] = [VXLAN_NAME, BRIDGE_NAME];
