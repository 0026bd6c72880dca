//! Links: veth pairs, bridges, VXLAN, dummies, and what is common to all.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use crate::netns::NetNs;
use crate::rt::{Error, Rtnl, deleted};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// An Ethernet address as it is written.
pub fn mac_text([a, b, c, d, e, f]: Mac) -> impl fmt::Display {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// The largest packet.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether there is a carrier as well.
    pub lower_up: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
    /// Whether ARP is off on it.
    pub no_arp: bool,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// For a veth its peer, for a VXLAN its underlay: an index in [`Link::peer_netns`].
    pub lower: Option<u32>,
    /// The kernel's number of the namespace that `lower` is in, if it is another one.
    pub peer_netns: Option<i32>,
    /// What kind it is.
    pub kind: Kind,
    /// What kind of port it is, if a bridge is its master.
    pub port: Option<Port>,
}

/// The kinds of link that svcnet tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A physical one, or one without a kind (`lo`).
    Device,
    /// A bridge.
    Bridge,
    /// One end of a pair.
    Veth,
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
    /// Any other, by the kernel's name.
    Other(String),
}

/// A port of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Port {
    /// It reaches no other isolated port.
    pub isolated: bool,
    /// A frame may leave by the port that it came in by.
    pub hairpin: bool,
}

/// What makes a VXLAN tunnel: it can not be changed afterwards, but for the local address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The address that packets are sent from.
    pub local: Option<IpAddr>,
    /// Index of the underlay.
    pub device: Option<u32>,
    /// Whether it learns from the packets that it receives.
    pub learning: bool,
}

/// One end of a veth pair to be.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address; a random one without.
    pub mac: Option<Mac>,
    /// The bridge to plug it into.
    pub master: Option<u32>,
    /// The namespace to make it in; this one without.
    pub netns: Option<&'a NetNs>,
}

/// What to change of a link: what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Up or down.
    pub up: Option<bool>,
    /// The largest packet.
    pub mtu: Option<u32>,
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// The bridge to be a port of; `Some(0)` frees it.
    pub master: Option<u32>,
    /// A new name; the link must be down on kernels before 6.3.
    pub name: Option<String>,
}

impl Change {
    /// Sets it up, and nothing else.
    pub fn up() -> Self {
        Self {
            up: Some(true),
            ..Self::default()
        }
    }

    /// Sets it down, and nothing else.
    pub fn down() -> Self {
        Self {
            up: Some(false),
            ..Self::default()
        }
    }
}

impl Link {
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            lower_up: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            no_arp: flags.contains(LinkFlags::Noarp),
            master: None,
            lower: None,
            peer_netns: None,
            kind: Kind::Device,
            port: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Link(lower) => link.lower = Some(*lower),
                LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
                LinkAttribute::LinkInfo(infos) => link.read_info(infos),
                _ => {}
            }
        }
        link
    }

    fn read_info(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => self.kind = Kind::Bridge,
                LinkInfo::Kind(InfoKind::Veth) => self.kind = Kind::Veth,
                LinkInfo::Kind(InfoKind::Vxlan) => {} // its data follow
                LinkInfo::Kind(other) => self.kind = Kind::Other(other.to_string()),
                LinkInfo::Data(InfoData::Vxlan(data)) => self.kind = Kind::Vxlan(vxlan(data)),
                LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                    let mut port = Port::default();
                    for item in data {
                        match item {
                            InfoBridgePort::Isolated(on) => port.isolated = *on,
                            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
                            _ => {}
                        }
                    }
                    self.port = Some(port);
                }
                _ => {}
            }
        }
    }
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        device: None,
        learning: false,
    };
    for item in data {
        match item {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(a) => vxlan.local = Some(IpAddr::V4(*a)),
            InfoVxlan::Local6(a) => vxlan.local = Some(IpAddr::V6(*a)),
            InfoVxlan::Link(device) => vxlan.device = Some(*device),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            _ => {}
        }
    }
    vxlan
}

pub(crate) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

fn port_info(port: Port) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Isolated(port.isolated),
            InfoBridgePort::HairpinMode(port.hairpin),
        ])),
    ])
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

impl Rtnl {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewLink(m) => Some(Link::from_message(&m)),
            _ => None,
        };
        self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), keep)
            .map_err(|e| e.about("list", "links"))
    }

    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        self.find_link(named(name), || format!("link {name}"))
    }

    /// The link of that index, if there is one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(message, || format!("link #{index}"))
    }

    fn find_link(&mut self, message: LinkMessage, what: impl Fn() -> String) -> Result<Option<Link>, Error> {
        let keep = |answer| match answer {
            RouteNetlinkMessage::NewLink(m) => Some(Link::from_message(&m)),
            _ => None,
        };
        match self.get(RouteNetlinkMessage::GetLink(message), keep) {
            Ok(link) => Ok(link),
            Err(refusal) if refusal.is_gone() => Ok(None),
            Err(refusal) => Err(refusal.about("look up", what())),
        }
    }

    /// Makes a bridge without spanning tree and multicast snooping, up. The fixed Ethernet address keeps it from
    /// taking that of a port.
    ///
    /// # Errors
    /// When the name is taken ([`Error::is_exists`]), or the kernel refuses.
    pub fn add_bridge(&mut self, name: &str, mac: Option<Mac>, mtu: Option<u32>) -> Result<(), Error> {
        let mut message = named(name);
        message
            .attributes
            .extend(mac.map(|m| LinkAttribute::Address(m.to_vec())));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]));
        set_up(&mut message);
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| e.about("add bridge", name))
    }

    /// Makes a dummy link, down: it holds addresses, and nothing comes in or goes out by it. The kernel loads its
    /// module.
    ///
    /// # Errors
    /// When the name is taken ([`Error::is_exists`]), the kernel has no such links ([`Error::is_unsupported`]), or it
    /// refuses.
    pub fn add_dummy(&mut self, name: &str) -> Result<(), Error> {
        let mut message = named(name);
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| e.about("add dummy", name))
    }

    /// Makes a VXLAN link, up.
    ///
    /// # Errors
    /// When the name, or the network identifier on that port, is taken ([`Error::is_exists`]), or the kernel refuses.
    pub fn add_vxlan(&mut self, name: &str, vxlan: &Vxlan, mac: Option<Mac>, mtu: u32) -> Result<(), Error> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
        ];
        data.extend(vxlan.device.map(InfoVxlan::Link));
        data.extend(vxlan.local.map(|local| match local {
            IpAddr::V4(a) => InfoVxlan::Local(a),
            IpAddr::V6(a) => InfoVxlan::Local6(a),
        }));
        let mut message = named(name);
        message
            .attributes
            .extend(mac.map(|m| LinkAttribute::Address(m.to_vec())));
        message.attributes.push(LinkAttribute::Mtu(mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        set_up(&mut message);
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| e.about("add vxlan", name))
    }

    /// Makes a veth pair: the near end up, the far end down and straight in its namespace, where it is to be set up
    /// (the kernel opens no end before both are paired). The name of the far end needs not be free here.
    ///
    /// # Errors
    /// When a name is taken where it is to be ([`Error::is_exists`]), or the kernel refuses.
    pub fn add_veth(&mut self, near: VethEnd<'_>, far: VethEnd<'_>, mtu: Option<u32>) -> Result<(), Error> {
        self.add_veth_pair(near, far, mtu, true)
    }

    /// The same with both ends down: for a port of a bridge that [`Self::open_port`] opens.
    ///
    /// # Errors
    /// As [`Self::add_veth`].
    pub fn add_closed_veth(
        &mut self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        mtu: Option<u32>,
    ) -> Result<(), Error> {
        self.add_veth_pair(near, far, mtu, false)
    }

    fn add_veth_pair(
        &mut self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        mtu: Option<u32>,
        up: bool,
    ) -> Result<(), Error> {
        let end = |end: VethEnd<'_>| {
            let mut message = named(end.name);
            message
                .attributes
                .extend(end.mac.map(|m| LinkAttribute::Address(m.to_vec())));
            message.attributes.extend(mtu.map(LinkAttribute::Mtu));
            message
                .attributes
                .extend(end.master.map(LinkAttribute::Controller));
            message
                .attributes
                .extend(end.netns.map(|n| LinkAttribute::NetNsFd(n.as_raw_fd())));
            message
        };
        let mut message = end(near);
        if up {
            set_up(&mut message);
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(far)))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| e.about("add veth", format_args!("{} with peer {}", near.name, far.name)))
    }

    /// Changes a link.
    ///
    /// # Errors
    /// When it is gone, or the kernel refuses.
    pub fn change_link(&mut self, index: u32, change: &Change) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message
            .attributes
            .extend(change.name.clone().map(LinkAttribute::IfName));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .extend(change.mac.map(|m| LinkAttribute::Address(m.to_vec())));
        message
            .attributes
            .extend(change.master.map(LinkAttribute::Controller));
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|e| e.about("change link", format_args!("#{index}: {change:?}")))
    }

    /// Moves a link into another namespace, under its name there.
    ///
    /// # Errors
    /// When it is gone, the name is taken there, or the kernel refuses.
    pub fn move_link(&mut self, index: u32, netns: &NetNs) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|e| {
                e.about(
                    "move link",
                    format_args!("#{index} to {}", netns.path().display()),
                )
            })
    }

    /// Sets what kind of port a link is; a bridge must be its master.
    ///
    /// # Errors
    /// When it is gone or no port, or the kernel refuses.
    pub fn set_port(&mut self, index: u32, port: Port) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(port_info(port));
        self.request(RouteNetlinkMessage::NewLink(message), 0)
            .map_err(|e| e.about("set bridge port", format_args!("#{index}: {port:?}")))
    }

    /// Sets what kind of port the link of that name is, and sets it up, in one step: it is never up as another kind. It gets
    /// no link-local address: what is a port of a bridge has no use for one.
    ///
    /// # Errors
    /// As [`Self::set_port`].
    pub fn open_port(&mut self, name: &str, port: Port) -> Result<(), Error> {
        let addressless =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]);
        let mut plain = named(name);
        plain.attributes.push(port_info(port));
        set_up(&mut plain);
        let mut message = plain.clone();
        message.attributes.push(addressless);
        let opened = match self.request(RouteNetlinkMessage::NewLink(message), 0) {
            // Without IPv6, or with links too small for it.
            Err(refusal) if refusal.is_unsupported() => self.request(RouteNetlinkMessage::NewLink(plain), 0),
            other => other,
        };
        opened.map_err(|e| e.about("open bridge port", format_args!("{name}: {port:?}")))
    }

    /// Deletes a link, and with it the peer of a veth; that there is none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let deleting = self.request(RouteNetlinkMessage::DelLink(message), 0);
        deleted(deleting.map_err(|e| e.about("delete link", format_args!("#{index}"))))
    }

    /// Deletes the link of that name; that there is none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link_named(&mut self, name: &str) -> Result<(), Error> {
        let deleting = self.request(RouteNetlinkMessage::DelLink(named(name)), 0);
        deleted(deleting.map_err(|e| e.about("delete link", name)))
    }

    /// Sets the loopback link up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_loopback_up(&mut self) -> Result<(), Error> {
        // Its index is 1 in every namespace (`LOOPBACK_IFINDEX`).
        self.change_link(1, &Change::up())
    }
}
