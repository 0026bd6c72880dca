//! What svcnet made in this host's network, and how to remove it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use svcnet_api::wellknown::{BRIDGE_NAME, VXLAN_NAME};
use svcnet_netlink::addr::Address;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::nft::{Batch, Family, Socket, Table};
use svcnet_netlink::route::{PROTOCOL_SVCNET, Route, RouteFilter};
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::{Rtnl, sysctl};
use svcnet_proxy::ipvs;

/// The nftables tables that the roles own.
const TABLES: [(Family, &str); 10] = [
    (Family::Ip, "svcnet"),
    (Family::Ip6, "svcnet"),
    (Family::Ip, "svcnet-overlay"),
    (Family::Ip6, "svcnet-overlay"),
    (Family::Ip, svcnet_policy::layout::TABLE),
    (Family::Ip6, svcnet_policy::layout::TABLE),
    (Family::Ip, svcnet_announcer::NFT_TABLE),
    (Family::Ip6, svcnet_announcer::NFT_TABLE),
    (Family::Ip, svcnet_cni::hostport::TABLE),
    (Family::Ip6, svcnet_cni::hostport::TABLE),
];

/// How far to go.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    /// Addresses that the DNS server put on lo.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// Where the sockets are.
    pub(crate) run_dir: PathBuf,
    /// The state, if it is to go as well.
    pub(crate) data_dir: Option<PathBuf>,
    /// The administrator's kubeconfig, if it is to go with it.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where container runtimes look for network configurations.
    pub(crate) cni_conf_dir: PathBuf,
    /// Where they look for plugins.
    pub(crate) cni_bin_dir: PathBuf,
}

/// One thing to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Ipvs,
    Table(Table),
    Route(Route),
    Link {
        index: u32,
        name: String,
    },
    Address(Address),
    /// An address that is this host's by a route of ours alone.
    Local(LocalFor, IpAddr),
    Sysctl {
        name: String,
        value: String,
    },
    /// Those of IPVS, in the words of who wrote them down.
    IpvsTimeouts(String),
    File(PathBuf),
    EmptyDirectory(PathBuf),
    Directory(PathBuf),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipvs => {
                f.write_str("delete virtual services, link kube-ipvs0 and nftables tables svcnet-ipvs")
            }
            Self::Table(table) => write!(f, "delete nftables table {table}"),
            Self::Route(route) => write!(f, "delete route {route}"),
            Self::Link { name, .. } => write!(f, "delete link {name}"),
            Self::Address(address) => write!(f, "delete address {}", address.net.addr()),
            Self::Local(_, ip) => write!(f, "delete local route {ip}"),
            Self::Sysctl { name, value } => write!(f, "set {} to {value} again", name.replace('/', ".")),
            Self::IpvsTimeouts(words) => write!(f, "set the timeouts of ipvs to {words} again"),
            Self::File(path) | Self::EmptyDirectory(path) => write!(f, "delete {}", path.display()),
            Self::Directory(path) => write!(f, "delete {} with all that is in it", path.display()),
        }
    }
}

/// What is to be removed, in this order: nothing refers to what is already gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan(Vec<Operation>);

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

/// What addresses are made local for.
const LOCAL: [LocalFor; 5] = [
    LocalFor::Relays,
    LocalFor::Loopback,
    LocalFor::HostPorts,
    LocalFor::LoopbackByIpvs,
    LocalFor::RelaySource,
];

/// Looks at what is there of svcnet's.
pub(crate) fn plan(extent: &Extent) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    // Before the tables: one of their rules guards what one of the parameters opens.
    let records = Sysctls::all(&extent.run_dir);
    let former = records.iter().flat_map(Sysctls::former_in_order);
    plan.0.extend(former.map(|(name, value)| match name.as_str() {
        ipvs::TIMEOUTS_NOTE => Operation::IpvsTimeouts(value),
        _ => Operation::Sysctl { name, value },
    }));
    if ipvs::is_there().context("look for what the ipvs mode made")? {
        plan.0.push(Operation::Ipvs);
    }
    plan.0.extend(tables()?.into_iter().map(Operation::Table));
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let bridge = links
        .iter()
        .find(|link| link.name == BRIDGE_NAME)
        .map(|link| link.index);
    let ours: Vec<_> = links
        .iter()
        // The pods' links are the ports of the bridge; deleting one deletes its end in the pod.
        .filter(|link| {
            let port = bridge.is_some() && link.master == bridge;
            port || link.name == VXLAN_NAME || svcnet_cni::bandwidth::is_ifb_name(&link.name)
        })
        .chain(links.iter().filter(|link| Some(link.index) == bridge))
        .collect();
    let filter = RouteFilter {
        protocol: Some(PROTOCOL_SVCNET),
        ..RouteFilter::default()
    };
    let routes = rtnl.routes(filter)?;
    // Routes of our links go with them.
    let stray = routes
        .into_iter()
        .filter(|route| ours.iter().all(|link| link.index != route.link));
    plan.0.extend(stray.map(Operation::Route));
    plan.0.extend(ours.iter().map(|link| Operation::Link {
        index: link.index,
        name: link.name.clone(),
    }));
    let loopback = links.iter().find(|link| link.loopback).map(|link| link.index);
    let addresses = rtnl.addresses(loopback)?;
    let dns = addresses
        .into_iter()
        .filter(|address| extent.cluster_dns.contains(&address.net.addr()));
    plan.0.extend(dns.map(Operation::Address));
    for purpose in LOCAL {
        let addresses = rtnl.local_addresses(purpose)?;
        plan.0
            .extend(addresses.into_iter().map(|ip| Operation::Local(purpose, ip)));
    }
    let written = records.iter().map(|record| record.path().to_path_buf());
    let files: Vec<PathBuf> = written.chain([extent.run_dir.join("cni.sock")]).collect();
    let empties = becomes_empty(&extent.run_dir, &files);
    let installed = svcnet_cni::conflist::installed(&extent.cni_conf_dir, &extent.cni_bin_dir);
    let files = files.into_iter().filter(|file| file.exists()).chain(installed);
    plan.0.extend(files.map(Operation::File));
    if empties {
        plan.0.push(Operation::EmptyDirectory(extent.run_dir.clone()));
    }
    if let Some(file) = extent.kubeconfig.as_ref().filter(|file| file.exists()) {
        plan.0.push(Operation::File(file.clone()));
    }
    if let Some(dir) = extent.data_dir.as_ref().filter(|dir| dir.exists()) {
        plan.0.push(Operation::Directory(dir.clone()));
    }
    Ok(plan)
}

/// Whether nothing else than these files is in a directory that is there.
fn becomes_empty(dir: &Path, files: &[PathBuf]) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    entries.flatten().all(|entry| files.contains(&entry.path()))
}

fn tables() -> anyhow::Result<Vec<Table>> {
    let mut there = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        match Socket::open().and_then(|mut socket| socket.tables(family)) {
            Ok(found) => there.extend(found),
            // A kernel without nf_tables has no tables of ours.
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error).context("ask nf_tables"),
        }
    }
    let pins = svcnet_policy::pins::table();
    match Socket::open().and_then(|mut socket| socket.table(&pins)) {
        Ok(found) => there.extend(found),
        Err(error) if error.is_unsupported() => {}
        Err(error) => return Err(error).context("ask nf_tables for tables of bridges"),
    }
    let ours = TABLES
        .map(|(family, name)| Table::new(family, name))
        .into_iter()
        .chain([pins]);
    Ok(ours
        .filter(|table| there.iter().any(|t| t.table == *table))
        .collect())
}

/// Removes what the plan says; goes on after a failure, and tells the first one.
pub(crate) fn apply(plan: &Plan, done: &mut dyn FnMut(&Operation)) -> anyhow::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let mut failure = None;
    for operation in &plan.0 {
        match carry_out(operation, &mut rtnl) {
            Ok(()) => done(operation),
            Err(error) => failure = failure.or(Some(error.context(operation.to_string()))),
        }
    }
    failure.map_or(Ok(()), Err)
}

fn carry_out(operation: &Operation, rtnl: &mut Rtnl) -> anyhow::Result<()> {
    match operation {
        Operation::Ipvs => _ = ipvs::cleanup()?,
        Operation::Table(table) => {
            let mut batch = Batch::new();
            batch.remove_table(table);
            Socket::open()?.commit(batch)?;
        }
        Operation::Route(route) => rtnl.delete_route(*route)?,
        Operation::Link { index, .. } => rtnl.delete_link(*index)?,
        Operation::Address(address) => rtnl.delete_address(*address)?,
        Operation::Local(purpose, ip) => rtnl.delete_local_address(*purpose, *ip)?,
        Operation::Sysctl { name, value } => match sysctl::set(name, value) {
            // Of a link that is no more, or of a module.
            Err(error) if error.is_gone() => {}
            other => _ = other?,
        },
        Operation::IpvsTimeouts(words) => ipvs::put_back_timeouts(words)?,
        Operation::File(path) => gone(std::fs::remove_file(path))?,
        Operation::EmptyDirectory(path) => gone(std::fs::remove_dir(path))?,
        Operation::Directory(path) => remove_state(path)?,
    }
    Ok(())
}

/// Only what looks like state of svcnet's: a mistyped `--data-dir /var/lib` must not cost a host its data.
fn remove_state(path: &Path) -> anyhow::Result<()> {
    const OURS: [&str; 10] = [
        "store",
        "store.restoring",
        "founding",
        "encryption.key",
        "pki",
        "token",
        "agent",
        "controller",
        "cache",
        "cni",
    ];
    // Former stores, which `svcnet store restore` has put aside.
    let entries = std::fs::read_dir(path)?.filter_map(Result::ok);
    let aside = entries.map(|e| e.path()).filter(|part| {
        let name = part.file_name().map(|n| n.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("store.before-"))
    });
    let ours = OURS.into_iter().map(|name| path.join(name));
    for part in ours.chain(aside.collect::<Vec<_>>()) {
        if part.is_dir() {
            gone(std::fs::remove_dir_all(part))?;
        } else {
            gone(std::fs::remove_file(part))?;
        }
    }
    let rest = std::fs::remove_dir(path);
    rest.with_context(|| "what is left there is not svcnet's".to_string())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use svcnet_netlink::netns::OwnedNetNs;

    use super::*;

    #[test]
    fn what_is_ours_goes_and_the_rest_stays() {
        let netns = OwnedNetNs::unique("svcnet-cleanup").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let extent = Extent {
            cluster_dns: vec![[10, 96, 0, 10].into()],
            run_dir: dir.path().to_path_buf(),
            data_dir: None,
            kubeconfig: None,
            cni_conf_dir: dir.path().join("net.d"),
            cni_bin_dir: dir.path().join("bin"),
        };
        svcnet_cni::conflist::install_config(&extent.cni_conf_dir, Path::new("/s"), Path::new("/d")).unwrap();
        svcnet_cni::conflist::install_plugin(&extent.cni_bin_dir).unwrap();
        let script = "set -e
            ip link set lo up
            ip link add svcnet0 type bridge && ip link add p1 type veth peer name p1x && ip link set p1 master svcnet0
            ip link add svcnet.1 type vxlan id 1 dstport 8472
            ip link add br0 type bridge && ip link add q1 type veth peer name q1x && ip link set q1 master br0
            ip -6 route add local fd73:7663:6e65::1 dev lo table local proto 116
            ip address add 10.96.0.10/32 dev lo && ip address add 10.1.1.1/32 dev lo
            ip link add ifb0123456789 type ifb && ip link add ifbmine type ifb
            ip -6 route add local fd73:7663:6e65::2 dev lo table local proto 117 && nft add table ip svcnet-hostport
            ip link set br0 up && ip route add 10.7.0.0/24 dev br0 proto 115 && ip route add 10.8.0.0/24 dev br0
            nft add table ip svcnet && nft add table ip svcnet-overlay && nft add table ip other
            nft add table ip6 svcnet-policy && nft add table bridge svcnet-policy";
        netns
            .run(|| {
                let made = Command::new("sh").args(["-c", script]).status().unwrap();
                assert!(made.success());
                Rtnl::open().unwrap().add_local_address(LocalFor::Relays, [10, 96, 0, 9].into(), None).unwrap();
                let sysctls = Sysctls::new(dir.path(), "proxy");
                sysctls.set("net/ipv4/conf/all/arp_ignore", "1").unwrap();
                let planned = plan(&extent).unwrap();
                let text = planned.to_string();
                let golden = "set net.ipv4.conf.all.arp_ignore to 0 again\ndelete nftables table ip svcnet\ndelete nftables table ip svcnet-overlay\n\
                    delete nftables table ip6 svcnet-policy\ndelete nftables table ip svcnet-hostport\n\
                    delete nftables table bridge svcnet-policy\n";
                assert!(text.starts_with(golden), "{text}");
                apply(&planned, &mut |_| {}).unwrap();
                assert!(plan(&extent).unwrap().is_empty(), "nothing is left to do");
                let shown = |program: &str, args: &[&str]| {
                    let output = Command::new(program).args(args).output().unwrap();
                    String::from_utf8(output.stdout).unwrap()
                };
                let links = shown("ip", &["-o", "link"]);
                assert!(!links.contains("svcnet") && !links.contains("p1"), "{links}");
                assert!(links.contains("br0") && links.contains("q1"), "{links}");
                assert!(links.contains("ifbmine") && !links.contains("ifb0123456789"), "{links}");
                let left = [&extent.cni_conf_dir, &extent.cni_bin_dir].map(|d| std::fs::read_dir(d).unwrap().count());
                assert_eq!(left, [0, 0]);
                assert_eq!(shown("nft", &["list", "tables"]), "table ip other\n");
                let routes = shown("ip", &["route"]);
                assert!(
                    routes.contains("10.8.0.0/24") && !routes.contains("10.7.0.0/24"),
                    "{routes}"
                );
                let local6 = shown("ip", &["-6", "route", "show", "table", "local"]);
                assert!(local6.contains("::1") && !local6.contains("fd73:"), "{local6}");
                assert_eq!(sysctl::read("net/ipv4/conf/all/arp_ignore").unwrap(), "0");
                let local = shown("ip", &["route", "show", "table", "local"]);
                assert!(!local.contains("10.96.0.9"), "{local}");
                let lo = shown("ip", &["-o", "address", "show", "dev", "lo"]);
                assert!(lo.contains("10.1.1.1") && !lo.contains("10.96.0.10"), "{lo}");
            })
            .unwrap();
    }

    #[test]
    fn state_goes_but_not_what_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("store")).unwrap();
        std::fs::create_dir_all(data.join("store.before-1")).unwrap();
        std::fs::write(data.join("encryption.key"), "").unwrap();
        std::fs::write(data.join("mine"), "").unwrap();
        assert!(remove_state(&data).is_err());
        assert!(data.join("mine").exists() && !data.join("store").exists());
        std::fs::remove_file(data.join("mine")).unwrap();
        remove_state(&data).unwrap();
        assert!(!data.exists());
    }
}
