//! Every way not to arrive, as a value: the same feeds the text, the hint and the JSON.

mod hint;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

/// Why a connection does not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "PascalCase", rename_all_fields = "camelCase")]
pub enum NotReached {
    /// Nobody is called so who could connect.
    UnknownSource {
        /// What was asked.
        name: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// The source has no address yet.
    SourceWithoutAddress {
        /// The pod.
        pod: String,
    },
    /// Nobody is called so whom one could connect to.
    UnknownName {
        /// What was asked.
        name: String,
        /// Where it was looked for.
        namespace: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// The name is none of the cluster's zone.
    NotInZone {
        /// What was asked.
        name: String,
        /// The cluster's domain.
        domain: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// Nobody has the address.
    UnknownAddress {
        /// The address.
        address: IpAddr,
        /// Whether it is one that Services get.
        of_services: bool,
        /// Whether it is one that pods get.
        of_pods: bool,
    },
    /// The Service has no such port.
    NoSuchPort {
        /// The Service.
        service: String,
        /// What was asked.
        port: String,
        /// What it has.
        ports: Vec<String>,
    },
    /// No Service has that node port.
    NoSuchNodePort {
        /// The port.
        port: String,
        /// Which there are.
        ports: Vec<String>,
    },
    /// The Service has no address to connect to.
    NoServiceAddress {
        /// The Service.
        service: String,
        /// What it waits for.
        why: NoAddress,
    },
    /// Another proxy has been told to look after the Service.
    OtherProxy {
        /// The Service.
        service: String,
        /// The label's value.
        proxy: String,
    },
    /// Two Services want the same address and port, and another has it.
    TakenBy {
        /// The Service.
        service: String,
        /// What they want.
        frontend: String,
        /// Who has it.
        other: String,
    },
    /// The proxy does not take the address or port, by its settings.
    NotAccepted {
        /// The Service.
        service: String,
        /// What it wants.
        frontend: String,
    },
    /// The address is not known outside the cluster.
    OnlyInside {
        /// The Service or pod.
        whose: String,
        /// Its address.
        address: String,
    },
    /// The client's address lies in none of `loadBalancerSourceRanges`.
    SourceRange {
        /// The Service.
        service: String,
        /// The client.
        source: IpAddr,
        /// Who is let in.
        ranges: Vec<IpNet>,
    },
    /// No pod has the labels that the Service selects.
    NoPodMatches {
        /// The Service.
        service: String,
        /// Its selector.
        selector: String,
        /// Pods that have some of the labels, or almost.
        near: Vec<String>,
    },
    /// The Service selects nothing, and nobody wrote endpoints for it.
    NoEndpointsWritten {
        /// The Service.
        service: String,
    },
    /// Pods match, and none of them can be used.
    NoReadyPod {
        /// The Service.
        service: String,
        /// Each with the reason.
        pods: Vec<PodTrouble>,
    },
    /// Pods match, and none of them has a container port of that name.
    TargetPortName {
        /// The Service.
        service: String,
        /// The name.
        target_port: String,
        /// The names that the pods have.
        names: Vec<String>,
    },
    /// Pods are ready, and the controller has not made endpoints of them.
    ControllerBehind {
        /// The Service.
        service: String,
        /// The pods.
        pods: Vec<String>,
    },
    /// There is no endpoint of the address family.
    NoEndpointOfFamily {
        /// The Service.
        service: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The policy says Local, and endpoints are on other nodes.
    OnlyElsewhere {
        /// The Service.
        service: String,
        /// The field with the policy.
        policy: &'static str,
        /// Where the connection comes in.
        node: String,
        /// Where endpoints are.
        nodes: Vec<String>,
    },
    /// The endpoint's node does not live.
    NodeDown {
        /// The node.
        node: String,
        /// What is known of it.
        why: String,
    },
    /// The pod can not be used.
    PodNotReady {
        /// The pod.
        pod: String,
        /// Why.
        why: String,
    },
    /// NetworkPolicies isolate the pod, and none of them allows it.
    DeniedByNetworkPolicy {
        /// The pod that is isolated.
        pod: String,
        /// `ingress` or `egress`.
        direction: String,
        /// The policies, as `namespace/name`.
        policies: Vec<String>,
    },
    /// The DNS server of this node does not answer.
    DnsSilent {
        /// Its address.
        server: IpAddr,
        /// Why.
        why: String,
    },
    /// The DNS server of this node answers otherwise than the API says.
    DnsDiffers {
        /// What was asked.
        name: String,
        /// What it should answer.
        wanted: Vec<IpAddr>,
        /// What it answers.
        answered: Vec<IpAddr>,
    },
    /// The tables of the proxy are not in this node's kernel.
    TableMissing {
        /// The node.
        node: String,
        /// What is not there.
        what: String,
        /// Whether the agent runs, and why not.
        agent: Option<String>,
    },
    /// The mode of this node's proxy has no way to serve it.
    NotInThisMode {
        /// The node.
        node: String,
        /// The frontend.
        frontend: String,
        /// The mode.
        mode: &'static str,
        /// Why not.
        why: String,
    },
    /// The frontend is not in this node's kernel as it should be.
    FrontendMissing {
        /// The node.
        node: String,
        /// The frontend.
        frontend: String,
        /// What would mend it.
        operations: Vec<String>,
        /// Whether the agent runs, and why not.
        agent: Option<String>,
    },
    /// A link on the way is not there.
    LinkMissing {
        /// Its name.
        link: String,
        /// Whether the agent runs, and why not.
        agent: Option<String>,
    },
    /// A link on the way is down.
    LinkDown {
        /// Its name.
        link: String,
        /// Whether it is set up, and there is only no carrier.
        no_carrier: bool,
    },
    /// There is no route to the endpoint.
    RouteMissing {
        /// Where to.
        to: IpAddr,
        /// The link that it should go over.
        link: Option<String>,
    },
    /// The route leads elsewhere.
    RouteAstray {
        /// Where to.
        to: IpAddr,
        /// The route.
        route: String,
        /// The link that it should go over.
        link: String,
    },
    /// A route refuses the packet, or its source is not valid where it comes in.
    RouteRefuses {
        /// Where to.
        to: IpAddr,
    },
    /// The neighbour entry that the overlay sets is not there.
    NeighbourMissing {
        /// The address.
        address: IpAddr,
        /// The link.
        link: String,
    },
    /// Nobody answers for an address on a link.
    NeighbourFailed {
        /// The address.
        address: IpAddr,
        /// Who should.
        who: String,
        /// The link.
        link: String,
    },
    /// The overlay does not know behind which node an Ethernet address is.
    ForwardingMissing {
        /// The node.
        node: String,
        /// The Ethernet address.
        mac: String,
        /// The link.
        link: String,
    },
    /// The overlay sends to another address than the node has.
    ForwardingAstray {
        /// The node.
        node: String,
        /// Where it sends.
        sends: IpAddr,
        /// What the node has.
        wanted: IpAddr,
    },
    /// All is as it should be, and a connection was tried and failed.
    ProbeFailed {
        /// Where to.
        to: SocketAddr,
        /// How.
        why: String,
    },
}

/// Why a Service has no address to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub enum NoAddress {
    /// It has no cluster IP.
    ClusterIp,
    /// It is a LoadBalancer without an address.
    LoadBalancer,
    /// It has no port on nodes.
    NodePort,
}

/// A pod that can not be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodTrouble {
    /// The pod.
    pub pod: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for PodTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pod, self.why)
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_string();
    }
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

impl fmt::Display for NotReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSource { name, .. } => write!(f, "there is no pod and no node {name:?}"),
            Self::SourceWithoutAddress { pod } => write!(f, "the pod {pod} has no address yet"),
            Self::UnknownName { name, namespace, .. } => write!(
                f,
                "there is no Service {name:?} in the namespace {namespace}, and no node or pod of that name"
            ),
            Self::NotInZone { name, domain, .. } => {
                write!(f, "{name} is no name of the cluster: those end in svc.{domain}")
            }
            Self::UnknownAddress {
                address,
                of_services: true,
                ..
            } => write!(f, "no Service has the address {address}"),
            Self::UnknownAddress {
                address,
                of_pods: true,
                ..
            } => write!(f, "no pod has the address {address}"),
            Self::UnknownAddress { address, .. } => {
                write!(f, "{address} is no Service's, pod's or node's address")
            }
            Self::NoSuchPort { service, port, ports } => write!(
                f,
                "the Service {service} has no port {port}; it has {}",
                list(ports)
            ),
            Self::NoSuchNodePort { port, .. } => write!(f, "no Service has the node port {port}"),
            Self::NoServiceAddress { service, why } => match why {
                NoAddress::ClusterIp => write!(f, "the Service {service} has no cluster IP yet"),
                NoAddress::LoadBalancer => write!(f, "the Service {service} has no LoadBalancer address yet"),
                NoAddress::NodePort => write!(f, "the Service {service} has no node port"),
            },
            Self::OtherProxy { service, proxy } => {
                write!(f, "the Service {service} is left to another proxy, {proxy:?}")
            }
            Self::TakenBy {
                service,
                frontend,
                other,
            } => write!(f, "{frontend} is wanted by {service}, and {other} has it"),
            Self::NotAccepted { service, frontend } => write!(
                f,
                "the proxy programs nothing for {frontend} of the Service {service}: its settings do not accept it"
            ),
            Self::OnlyInside { whose, address } => write!(
                f,
                "{address} of {whose} is an address inside the cluster: nobody outside has a route to it"
            ),
            Self::SourceRange {
                service,
                source,
                ranges,
            } => write!(
                f,
                "the Service {service} lets in {} only, and {source} is not among them",
                list(ranges)
            ),
            _ => self.fmt_behind_the_frontend(f),
        }
    }
}

impl NotReached {
    fn fmt_behind_the_frontend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPodMatches {
                service, selector, ..
            } => write!(
                f,
                "the Service {service} has no endpoints: no pod of its namespace has the labels {selector}"
            ),
            Self::NoEndpointsWritten { service } => write!(
                f,
                "the Service {service} has no endpoints: it selects no pods, and nobody wrote endpoints for it"
            ),
            Self::NoReadyPod { service, pods } => {
                write!(f, "the Service {service} has no ready endpoint: {}", list(pods))
            }
            Self::TargetPortName {
                service,
                target_port,
                names,
            } => write!(
                f,
                "the Service {service} has no endpoints: its targetPort {target_port:?} is no container port of the \
                 pods, whose ports are {}",
                list(names)
            ),
            Self::ControllerBehind { service, pods } => write!(
                f,
                "the Service {service} has no endpoints although {} {} ready: the controller has not made them",
                list(pods),
                if pods.len() == 1 { "is" } else { "are" }
            ),
            Self::NoEndpointOfFamily { service, family } => {
                write!(f, "the Service {service} has no {family} endpoint")
            }
            Self::OnlyElsewhere {
                service,
                policy,
                node,
                nodes,
            } => write!(
                f,
                "dropped on {node}: {policy} of the Service {service} is Local, and its endpoints are on {}",
                list(nodes)
            ),
            Self::NodeDown { node, why } => write!(f, "the node {node} is down: {why}"),
            Self::PodNotReady { pod, why } => write!(f, "the pod {pod} is not ready: {why}"),
            Self::DnsSilent { server, why } => {
                write!(f, "the DNS server {server} of this node does not answer: {why}")
            }
            Self::DnsDiffers {
                name,
                wanted,
                answered,
            } => write!(
                f,
                "the DNS server of this node says {name} is {}, and it is {}",
                list(answered),
                list(wanted)
            ),
            Self::ProbeFailed { to, why } => {
                write!(
                    f,
                    "all is as it should be, but a connection to {to} failed: {why}"
                )
            }
            _ => self.fmt_in_the_kernel(f),
        }
    }

    fn fmt_in_the_kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeniedByNetworkPolicy {
                pod,
                direction,
                policies,
            } => write!(
                f,
                "denied by NetworkPolicy {}, which isolates {pod} for {direction} and does not allow it",
                list(policies)
            ),
            Self::TableMissing { node, what, agent } => {
                write!(f, "the kernel of {node} lacks {what}")?;
                write_agent(f, agent.as_deref())
            }
            Self::NotInThisMode {
                node,
                frontend,
                mode,
                why,
            } => write!(
                f,
                "the proxy of {node} works in mode {mode} and does not serve {frontend}: {why}"
            ),
            Self::FrontendMissing {
                node,
                frontend,
                operations,
                agent,
            } => {
                write!(
                    f,
                    "the kernel of {node} does not hold {frontend} as it should ({} to do)",
                    count(operations.len(), "operation")
                )?;
                write_agent(f, agent.as_deref())
            }
            Self::LinkMissing { link, agent } => {
                write!(f, "the link {link} is not there")?;
                write_agent(f, agent.as_deref())
            }
            Self::LinkDown {
                link,
                no_carrier: true,
            } => write!(f, "the link {link} has no carrier"),
            Self::LinkDown { link, .. } => write!(f, "the link {link} is down"),
            _ => self.fmt_on_the_way(f),
        }
    }

    fn fmt_on_the_way(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RouteMissing { to, link: Some(link) } => {
                write!(
                    f,
                    "this node has no route to {to} (there should be one over {link})"
                )
            }
            Self::RouteMissing { to, link: None } => write!(f, "this node has no route to {to}"),
            Self::RouteAstray { to, route, link } => {
                write!(f, "the route to {to} leads astray: {route}, not over {link}")
            }
            Self::RouteRefuses { to } => write!(f, "a route of this node refuses packets to {to}"),
            Self::NeighbourMissing { address, link } => {
                write!(
                    f,
                    "{link} has no neighbour entry for {address}, and learns none by itself"
                )
            }
            Self::NeighbourFailed { address, who, link } => {
                write!(f, "{who} does not answer: nobody has {address} on {link}")
            }
            Self::ForwardingMissing { node, mac, link } => {
                write!(f, "{link} does not know that {mac} is behind the node {node}")
            }
            Self::ForwardingAstray { node, sends, wanted } => {
                write!(f, "packets for {node} are sent to {sends}, and it is at {wanted}")
            }
            _ => Ok(()),
        }
    }
}

fn write_agent(f: &mut fmt::Formatter<'_>, agent: Option<&str>) -> fmt::Result {
    agent.map_or(Ok(()), |why| write!(f, ", and svcnet does not run there ({why})"))
}

/// `1 operation`, `2 operations`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
