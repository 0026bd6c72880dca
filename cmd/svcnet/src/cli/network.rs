//! Flags of the pod network, which the overlay, the CNI daemon and the keeper of the Node share.

use clap::Args;
use svcnet_api::types::{NodeIps, Vni};
use svcnet_api::wellknown::{VXLAN_PORT, VXLAN_VNI};
use svcnet_netlink::underlay::Choice;
use svcnet_overlay::Mode;

use crate::settings::Problems;

/// Flags of the pod network: overlay and CNI.
#[derive(Debug, Args)]
pub(crate) struct NetworkFlags {
    /// How packets go to other nodes' pods: vxlan (encapsulated), direct (routed through the node itself, which must be on the
    /// same link) or auto (direct where the node is on the same link, vxlan elsewhere). The same on all nodes
    #[arg(long, value_name = "MODE", help_heading = "Pod network", default_value_t = Mode::default().to_string())]
    overlay: String,
    /// The link towards the other nodes, by name or address; of several, with commas between, the first that is there
    /// [default: that of --node-ip, else of the default route]
    #[arg(
        long,
        value_name = "LINKS",
        help_heading = "Pod network",
        default_value = "",
        hide_default_value = true
    )]
    iface: String,
    /// The same by a regular expression for its name or address, as in ^en
    #[arg(long, value_name = "REGEX", help_heading = "Pod network")]
    iface_regex: Option<String>,
    /// The same by an address that packets leave to by it
    #[arg(long, value_name = "ADDRESS", help_heading = "Pod network")]
    iface_can_reach: Option<String>,
    /// UDP port of the overlay
    #[arg(long, value_name = "PORT", help_heading = "Pod network", default_value_t = VXLAN_PORT.to_string())]
    vxlan_port: String,
    /// Network identifier of the overlay (VNI)
    #[arg(long, value_name = "NUMBER", help_heading = "Pod network", default_value_t = VXLAN_VNI.to_string())]
    vxlan_vni: String,
    /// The largest packet of a pod [default: what the link towards the other nodes carries, less the encapsulation]
    #[arg(long, value_name = "BYTES", help_heading = "Pod network")]
    mtu: Option<String>,
}

/// What the pod network's roles are told.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(super) mode: Mode,
    /// The link towards the other nodes; with an address only if `--node-ip` says one.
    pub(crate) underlay: Choice,
    pub(super) port: u16,
    pub(super) vni: Option<Vni>,
    pub(super) mtu: Option<u32>,
}

impl NetworkFlags {
    /// `given` is what `--node-ip` says.
    pub(crate) fn parse(&self, given: Option<NodeIps>, problems: &mut Problems<'_>) -> Network {
        let pattern = self.iface_regex.as_deref();
        let reach = self.iface_can_reach.as_deref();
        let underlay = Choice {
            address: given.map(NodeIps::primary),
            interfaces: problems.parse_list("iface", &self.iface),
            pattern: pattern.and_then(|text| problems.parse("iface-regex", text)),
            reach: reach.and_then(|text| {
                problems.parse_with("iface-can-reach", text, |text| {
                    text.parse()
                        .map_err(|_| format!("{text:?} is not an address, as in 192.0.2.1"))
                })
            }),
        };
        let vni: Option<u32> = problems.parse("vxlan-vni", &self.vxlan_vni);
        let vni = vni.and_then(|number| {
            Vni::new(number)
                .map_err(|error| problems.add("vxlan-vni", error))
                .ok()
        });
        Network {
            mode: problems.parse("overlay", &self.overlay).unwrap_or_default(),
            underlay,
            port: problems
                .parse("vxlan-port", &self.vxlan_port)
                .unwrap_or(VXLAN_PORT),
            vni,
            mtu: self.mtu.as_deref().and_then(|mtu| problems.parse("mtu", mtu)),
        }
    }
}
