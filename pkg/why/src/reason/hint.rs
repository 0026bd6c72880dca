//! What to do about it.

use super::{NoAddress, NotReached, list};

impl NotReached {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        let near = |near: &[String]| (!near.is_empty()).then(|| format!("did you mean {}?", list(near)));
        Some(match self {
            Self::UnknownSource { near: names, .. } => near(names)
                .unwrap_or_else(|| "kubectl get pods -A; a pod of another namespace is NAMESPACE/NAME, who is outside of the cluster an address".into()),
            Self::UnknownName { near: names, .. } => near(names)
                .unwrap_or_else(|| "kubectl get svc -A; a Service of another namespace is NAMESPACE/NAME".into()),
            Self::NotInZone { meant, .. } => format!("did you mean {}?", meant.as_ref()?),
            Self::UnknownAddress {
                of_services: true, ..
            } => "kubectl get svc -A -o wide: the Service may have been made anew, with another address".into(),
            Self::UnknownAddress { .. } => "kubectl get pods -A -o wide: pods get a new address when they are made anew".into(),
            Self::NoSuchNodePort { ports, .. } => format!("node ports in use: {}", list(ports)),
            Self::NoServiceAddress {
                why: NoAddress::LoadBalancer,
                ..
            } => "is there an IPAddressPool with a free address? kubectl describe svc shows the allocator's events".into(),
            Self::NoServiceAddress {
                why: NoAddress::NodePort,
                ..
            } => "make it type NodePort or LoadBalancer".into(),
            Self::NoServiceAddress { .. } => "kubectl describe svc shows what the allocator says".into(),
            Self::OtherProxy { .. } => "remove the label service.kubernetes.io/service-proxy-name for svcnet to take it".into(),
            Self::NotAccepted { .. } => "external addresses and node ports are taken as the proxy's flags say: svcnet proxy --help".into(),
            Self::OnlyInside { .. } => "a Service of type NodePort or LoadBalancer is reached from outside".into(),
            Self::SourceRange { source, .. } => format!("add {source} to spec.loadBalancerSourceRanges"),
            Self::NoPodMatches { near: pods, .. } if !pods.is_empty() => format!("almost: {}", list(pods)),
            Self::NoPodMatches { .. } => "run a pod with these labels, or mend spec.selector".into(),
            Self::NoEndpointsWritten { .. } => "set spec.selector, or write an EndpointSlice or Endpoints of its name".into(),
            Self::NoReadyPod { pods, .. } => {
                let first = pods.first().map(|trouble| trouble.pod.replace('/', " "));
                let (namespace, name) = first.as_deref()?.split_once(' ')?;
                format!("kubectl -n {namespace} describe pod {name}")
            }
            Self::TargetPortName { .. } => "name the container's port so, or set targetPort to one of its ports".into(),
            Self::ControllerBehind { .. } => "does svcnet server (or svcnet controller) run? Its log says what it waits for".into(),
            Self::OnlyElsewhere { policy, nodes, .. } => {
                format!("connect to {}, run a pod here, or set {policy} to Cluster", list(nodes))
            }
            Self::NodeDown { node, .. } => {
                format!("look at svcnet agent and the cable on {node}; its endpoints stop being used when its pods are marked not ready")
            }
            Self::DeniedByNetworkPolicy { policies, .. } => {
                let first = policies.first().map(|policy| policy.replace('/', " "));
                let (namespace, name) = first.as_deref()?.split_once(' ')?;
                format!("kubectl -n {namespace} describe networkpolicy {name}; what is allowed adds up over policies")
            }
            Self::DnsSilent { .. } => "svcnet status on this node says whether the role dns is ready".into(),
            Self::DnsDiffers { .. } => "the DNS role is behind: svcnet status, and its log".into(),
            Self::TableMissing { agent, .. } | Self::FrontendMissing { agent, .. } if agent.is_none() => {
                "the agent repairs it within a second; if it stays so, its log says why. svcnet proxy diff shows all that differs".into()
            }
            Self::TableMissing { .. } | Self::FrontendMissing { .. } | Self::LinkMissing { agent: Some(_), .. } => {
                "start svcnet agent on this node".into()
            }
            Self::LinkMissing { .. } | Self::RouteMissing { link: Some(_), .. } | Self::NeighbourMissing { .. }
            | Self::ForwardingMissing { .. } | Self::ForwardingAstray { .. } | Self::RouteAstray { .. } => {
                "the overlay sets it: svcnet status, and the agent's log".into()
            }
            Self::NotInThisMode { .. } => "use the mode nftables (--proxy-mode)".into(),
            Self::LinkDown { link, no_carrier: false } => format!("ip link set {link} up"),
            Self::LinkDown { .. } => "look at the cable".into(),
            Self::NeighbourFailed { who, .. } => format!("is {who} up, and its cable plugged in?"),
            Self::RouteRefuses { .. } => "ip rule; ip route show table all".into(),
            Self::ProbeFailed { .. } => "does the process in the pod listen on that port? Does another table drop it: nft list ruleset".into(),
            Self::PodNotReady { .. } | Self::SourceWithoutAddress { .. } | Self::NoSuchPort { .. }
            | Self::TakenBy { .. } | Self::NoEndpointOfFamily { .. } | Self::RouteMissing { link: None, .. } => return None,
        })
    }
}
