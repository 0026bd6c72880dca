//! What a lab consists of, worked out before any of it is made.

use std::fmt;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use svcnet_api::wellknown::{API_PORT, DEFAULT_CLUSTER_CIDR, DEFAULT_SERVICE_CIDR};

use crate::names::{LabName, Member, NameError, NodeId, Stack};
use crate::state::{LabDir, LabRecord};

/// Link of a member that its cable ends in.
pub const MEMBER_LINK: &str = "eth0";
/// The bridge that is the segment.
pub const BRIDGE: &str = "lan";
/// What a dual-stack lab has beside the defaults: a /64 of it for each node, …
const CLUSTER_CIDR_V6: &str = "fd00:10:244::/48";
/// … and addresses of Services.
const SERVICE_CIDR_V6: &str = "fd00:10:96::/112";

/// A member's cable: from its link to a port of the bridge, which has the member's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cable {
    /// Whose it is.
    pub member: Member,
    /// Name of the member's namespace.
    pub netns: String,
    /// The member's addresses.
    pub addresses: Vec<IpNet>,
}

/// A node's process and the file that configures it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// The node.
    pub node: NodeId,
    /// Where its configuration file is to stand.
    pub config_path: PathBuf,
    /// What the file holds.
    pub config: String,
    /// Arguments of `svcnet`.
    pub args: Vec<String>,
}

/// All of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabPlan {
    /// Name of the namespace with the bridge.
    pub lan: String,
    /// Nodes and client.
    pub cables: Vec<Cable>,
    /// The nodes, the one with the server first.
    pub nodes: Vec<NodePlan>,
}

impl LabPlan {
    /// Works out a lab.
    ///
    /// # Errors
    /// When it is to have too few or too many nodes.
    pub fn of(record: &LabRecord) -> Result<Self, NameError> {
        let ids = NodeId::first(record.nodes)?;
        let members = ids.iter().copied().map(Member::Node).chain([Member::Client]);
        let cable = |member: Member| Cable {
            netns: record.name.netns(&member),
            addresses: record.stack.segment_addresses(&member),
            member,
        };
        Ok(Self {
            lan: record.name.netns(&Member::Lan),
            cables: members.map(cable).collect(),
            nodes: ids.iter().map(|node| NodePlan::of(record, *node, None)).collect(),
        })
    }
}

impl NodePlan {
    /// Works out a node's process: with the arguments that the lab was made with, then those given now.
    pub fn of(record: &LabRecord, node: NodeId, more: Option<&[String]>) -> Self {
        let dir = LabDir::of(&record.name);
        let config_path = dir.node(node).etc().join("config.yaml");
        let (role, common) = if node == NodeId::SERVER {
            ("server", &record.server_args)
        } else {
            ("agent", &record.agent_args)
        };
        let mut args = vec![
            role.to_string(),
            "--config".to_string(),
            config_path.display().to_string(),
        ];
        args.extend(common.iter().cloned());
        args.extend(more.into_iter().flatten().cloned());
        Self {
            node,
            config: config(&dir, node, record.stack),
            config_path,
            args,
        }
    }
}

/// A node's configuration: everything that on a host of its own would be a default.
fn config(dir: &LabDir, node: NodeId, stack: Stack) -> String {
    let at = dir.node(node);
    let mut text = format!(
        "# Written by `svcnet lab up`: node {node} of lab {}.\n",
        dir.name()
    );
    let mut set = |key: &str, value: &dyn fmt::Display| _ = writeln!(text, "{key}: {value}");
    set("node-name", &node);
    set("node-ip", &format_args!("\"{}\"", stack.node_ips(node)));
    set("data-dir", &quoted(&at.data()));
    set("run-dir", &quoted(&at.run()));
    // A container runtime of the node's own finds all that it would on a host.
    set("cni-conf-dir", &quoted(&at.etc().join("cni/net.d")));
    set("cni-bin-dir", &quoted(&at.etc().join("cni/bin")));
    set("cri-socket", &quoted(&at.run().join("containerd.sock")));
    if node == NodeId::SERVER {
        set("kubeconfig-out", &quoted(&dir.kubeconfig()));
        if stack == Stack::Dual {
            let both = |v4: &str, v6: &str| format!("\"{v4},{v6}\"");
            set("cluster-cidr", &both(DEFAULT_CLUSTER_CIDR, CLUSTER_CIDR_V6));
            set(
                "service-cluster-ip-range",
                &both(DEFAULT_SERVICE_CIDR, SERVICE_CIDR_V6),
            );
        }
    } else {
        set("server", &format_args!("\"{}\"", server_url()));
        set("token-file", &quoted(&dir.token()));
    }
    text
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// Where the lab's API is.
pub fn server_url() -> String {
    let address: Ipv4Addr = NodeId::SERVER.address();
    format!("https://{address}:{API_PORT}")
}

/// Names of all the namespaces that a lab with these pods has.
pub fn namespaces(lab: &LabName, nodes: u32, pods: impl IntoIterator<Item = Member>) -> Vec<String> {
    let nodes = NodeId::first(nodes)
        .unwrap_or_default()
        .into_iter()
        .map(Member::Node);
    nodes
        .chain([Member::Client, Member::Lan])
        .chain(pods)
        .map(|member| lab.netns(&member))
        .collect()
}

impl fmt::Display for LabPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "netns {}: bridge {BRIDGE}", self.lan)?;
        for cable in &self.cables {
            let (netns, member) = (&cable.netns, &cable.member);
            write!(f, "netns {netns}: {MEMBER_LINK}")?;
            cable.addresses.iter().try_for_each(|net| write!(f, " {net}"))?;
            writeln!(f, ", cable to {}:{member}", self.lan)?;
        }
        for node in &self.nodes {
            writeln!(f, "{}: svcnet {}", node.node, node.args.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(nodes: u32) -> LabRecord {
        LabRecord {
            name: "lab".parse().unwrap(),
            nodes,
            stack: Stack::Single,
            binary: "/usr/local/bin/svcnet".into(),
            server_args: vec!["--service-node-port-range=30000-40000".to_string()],
            agent_args: vec!["--disable=dns".to_string()],
        }
    }

    #[test]
    fn a_lab_of_two_nodes() {
        let plan = LabPlan::of(&record(2)).unwrap();
        let golden = "\
netns lab-lan: bridge lan
netns lab-n1: eth0 172.30.0.11/24, cable to lab-lan:n1
netns lab-n2: eth0 172.30.0.12/24, cable to lab-lan:n2
netns lab-client: eth0 172.30.0.100/24, cable to lab-lan:client
n1: svcnet server --config /run/svcnet/labs/lab/nodes/n1/etc/config.yaml --service-node-port-range=30000-40000
n2: svcnet agent --config /run/svcnet/labs/lab/nodes/n2/etc/config.yaml --disable=dns
";
        assert_eq!(plan.to_string(), golden);
        assert!(LabPlan::of(&record(0)).is_err());
    }

    #[test]
    fn agents_are_told_where_the_server_is_and_how_to_join() {
        let plan = LabPlan::of(&record(2)).unwrap();
        assert_eq!(
            plan.nodes[1].config,
            "# Written by `svcnet lab up`: node n2 of lab lab.\n\
             node-name: n2\n\
             node-ip: \"172.30.0.12\"\n\
             data-dir: \"/run/svcnet/labs/lab/nodes/n2/data\"\n\
             run-dir: \"/run/svcnet/labs/lab/nodes/n2/run\"\n\
             cni-conf-dir: \"/run/svcnet/labs/lab/nodes/n2/etc/cni/net.d\"\n\
             cni-bin-dir: \"/run/svcnet/labs/lab/nodes/n2/etc/cni/bin\"\n\
             cri-socket: \"/run/svcnet/labs/lab/nodes/n2/run/containerd.sock\"\n\
             server: \"https://172.30.0.11:6443\"\n\
             token-file: \"/run/svcnet/labs/lab/nodes/n1/data/token\"\n"
        );
    }

    #[test]
    fn a_dual_stack_lab_has_two_networks_of_everything() {
        let record = LabRecord {
            stack: Stack::Dual,
            ..record(2)
        };
        let plan = LabPlan::of(&record).unwrap();
        assert!(
            plan.to_string()
                .contains("netns lab-n2: eth0 172.30.0.12/24 fd00:172:30::12/64, cable to lab-lan:n2\n"),
            "{plan}"
        );
        let server = &plan.nodes[0].config;
        for line in [
            "node-ip: \"172.30.0.11,fd00:172:30::11\"\n",
            "cluster-cidr: \"10.244.0.0/16,fd00:10:244::/48\"\n",
            "service-cluster-ip-range: \"10.96.0.0/12,fd00:10:96::/112\"\n",
        ] {
            assert!(server.contains(line), "{line} in {server}");
        }
        // Agents learn the networks of the cluster when they join.
        assert!(!plan.nodes[1].config.contains("cluster-cidr"));
    }

    #[test]
    fn arguments_of_a_restart_come_last() {
        let more = ["--service-node-port-range=30000-32000".to_string()];
        let plan = NodePlan::of(&record(1), NodeId::SERVER, Some(&more));
        assert_eq!(plan.args.last(), Some(&more[0]));
    }
}
