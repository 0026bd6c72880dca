//! What svcnet needs of a host, tried out.

use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use svcnet_api::wellknown::{API_PORT, DEFAULT_DATA_DIR, DEFAULT_RUN_DIR, VXLAN_PORT, VXLAN_VNI};
use svcnet_netlink::link::{Port, VethEnd, Vxlan};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::nft::{Batch, Chain, ChainKind, Family, Hook, PRIORITY_DSTNAT, Socket, Table};
use svcnet_netlink::{Rtnl, conntrack, sysctl};

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is there.
    Fine,
    /// It is not there, and only some need it.
    Optional,
    /// It is not there, and svcnet does not work without.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What.
    pub(crate) what: &'static str,
    /// Whether it is there.
    pub(crate) verdict: Verdict,
    /// Why it is needed, or what to do about it.
    pub(crate) detail: String,
}

fn fine(what: &'static str, detail: impl Into<String>) -> Finding {
    Finding {
        what,
        verdict: Verdict::Fine,
        detail: detail.into(),
    }
}

fn judged(
    what: &'static str,
    tried: Result<(), impl Display>,
    use_of_it: &str,
    otherwise: Verdict,
    remedy: &str,
) -> Finding {
    match tried {
        Ok(()) => fine(what, use_of_it),
        Err(error) => Finding {
            what,
            verdict: otherwise,
            detail: format!("{error}; {remedy}"),
        },
    }
}

/// Everything, in the order in which it is needed.
pub(crate) fn all() -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return vec![Finding {
            what: "root",
            verdict: Verdict::Missing,
            detail: "svcnet makes links and nftables rules: run it (and this check) as root".to_string(),
        }];
    }
    let mut findings = vec![fine("root", "to make links and nftables rules")];
    match OwnedNetNs::unique("svcnet-check") {
        Ok(netns) => {
            findings.push(fine("network namespaces", "for pods and labs"));
            match netns.run(in_namespace) {
                Ok(more) => findings.extend(more),
                Err(error) => findings.push(judged(
                    "network namespaces",
                    Err(error),
                    "",
                    Verdict::Missing,
                    "CAP_SYS_ADMIN is needed to enter one",
                )),
            }
        }
        Err(error) => findings.push(judged(
            "network namespaces",
            Err(error),
            "",
            Verdict::Missing,
            "the kernel needs CONFIG_NET_NS, and svcnet CAP_SYS_ADMIN",
        )),
    }
    findings.extend(host());
    findings
}

/// Kernel features, in a namespace to throw away.
fn in_namespace() -> Vec<Finding> {
    let mut rtnl = match Rtnl::open() {
        Ok(rtnl) => rtnl,
        Err(error) => {
            let remedy = "the kernel needs CONFIG_NET, and svcnet CAP_NET_ADMIN";
            return vec![judged("rtnetlink", Err(error), "", Verdict::Missing, remedy)];
        }
    };
    let bridge = rtnl.add_bridge("probe0", None, None);
    let end = |name| VethEnd {
        name,
        mac: None,
        master: None,
        netns: None,
    };
    let veth = rtnl.add_veth(end("probe1"), end("probe2"), None);
    let isolated = isolate(&mut rtnl);
    let vxlan = Vxlan {
        vni: VXLAN_VNI,
        port: VXLAN_PORT,
        local: Some(Ipv4Addr::LOCALHOST.into()),
        device: None,
        learning: false,
    };
    let vxlan = rtnl.add_vxlan("probe3", &vxlan, None, 1450);
    let forwarding = sysctl::set("net/ipv4/ip_forward", "1").map(drop);
    let missing = Verdict::Missing;
    let mut findings = vec![
        judged(
            "bridge",
            bridge,
            "what the pods of a node hang on",
            missing,
            "load the module bridge",
        ),
        judged("veth", veth, "a pod's cable", missing, "load the module veth"),
        judged(
            "isolated bridge ports",
            isolated,
            "so that the node routes between its pods",
            missing,
            "Linux 4.18 or later is needed",
        ),
        judged(
            "VXLAN",
            vxlan,
            "pods of different nodes reach each other",
            missing,
            "load the module vxlan",
        ),
        judged(
            "forwarding",
            forwarding,
            "the node routes for its pods",
            missing,
            "/proc/sys/net must be writable",
        ),
    ];
    findings.extend(nftables());
    findings
}

fn isolate(rtnl: &mut Rtnl) -> Result<(), String> {
    let index = |rtnl: &mut Rtnl, name: &str| {
        let link = rtnl.link(name).map_err(|error| error.to_string())?;
        link.map(|link| link.index)
            .ok_or_else(|| format!("there is no {name}"))
    };
    let (bridge, port) = (index(rtnl, "probe0")?, index(rtnl, "probe1")?);
    let change = svcnet_netlink::link::Change {
        master: Some(bridge),
        ..Default::default()
    };
    rtnl.change_link(port, &change)
        .map_err(|error| error.to_string())?;
    let isolated = Port {
        isolated: true,
        hairpin: false,
    };
    rtnl.set_port(port, isolated).map_err(|error| error.to_string())
}

fn nftables() -> Vec<Finding> {
    let missing = Verdict::Missing;
    let remedy =
        "the kernel needs nf_tables with nat (CONFIG_NF_TABLES, CONFIG_NFT_NAT), and svcnet CAP_NET_ADMIN";
    let mut socket = match Socket::open() {
        Ok(socket) => socket,
        Err(error) => return vec![judged("nf_tables", Err(error), "", missing, remedy)],
    };
    let nat = |socket: &mut Socket, family| {
        let table = Table::new(family, "probe");
        let mut batch = Batch::new();
        batch.add_table(&table, None);
        batch.add_chain(
            &table,
            &Chain::base("probe", ChainKind::Nat, Hook::Prerouting, PRIORITY_DSTNAT),
        );
        socket.commit(batch)
    };
    let conntrack = conntrack::list(&mut socket, Family::Ip, conntrack::UDP, |_| false).map(drop);
    vec![
        judged(
            "nf_tables, IPv4 nat",
            nat(&mut socket, Family::Ip),
            "Services",
            missing,
            remedy,
        ),
        judged(
            "nf_tables, IPv6 nat",
            nat(&mut socket, Family::Ip6),
            "Services of dual-stack clusters",
            Verdict::Optional,
            "needed for IPv6 only",
        ),
        judged(
            "connection tracking",
            conntrack,
            "stale UDP entries are deleted",
            missing,
            "load the module nf_conntrack_netlink",
        ),
    ]
}

/// What is not in the kernel.
fn host() -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, dir) in [("state", DEFAULT_DATA_DIR), ("sockets", DEFAULT_RUN_DIR)] {
        findings.push(judged(
            what,
            writable(Path::new(dir)),
            dir,
            Verdict::Missing,
            "make room for it, or choose another place (--data-dir, --run-dir)",
        ));
    }
    let api = TcpListener::bind((Ipv4Addr::UNSPECIFIED, API_PORT)).map(drop);
    let taken = "a server runs here already? (--secure-port changes it)";
    findings.push(judged(
        "TCP port 6443",
        api,
        "the server's",
        Verdict::Optional,
        taken,
    ));
    let vxlan = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, VXLAN_PORT)).map(drop);
    let taken = "another overlay (or svcnet) runs here? (--vxlan-port changes it, on all nodes)";
    findings.push(judged(
        "UDP port 8472",
        vxlan,
        "the overlay's",
        Verdict::Optional,
        taken,
    ));
    for (program, use_of_it) in [
        (
            "kubectl",
            "to talk to the API: apt-get install kubernetes-client, or from kubernetes.io",
        ),
        (
            "nft",
            "to look at what the proxy programmed: apt-get install nftables",
        ),
        ("dig", "to ask the DNS server: apt-get install dnsutils"),
    ] {
        findings.push(match on_path(program) {
            Some(path) => fine(program, path.display().to_string()),
            None => Finding {
                what: program,
                verdict: Verdict::Optional,
                detail: format!("not on the PATH; {use_of_it}"),
            },
        });
    }
    findings
}

/// Whether a directory, or the nearest one above that is there, can be written to.
fn writable(dir: &Path) -> Result<(), String> {
    let there = dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    nix::unistd::access(there, nix::unistd::AccessFlags::W_OK)
        .map_err(|error| format!("{} can not be written: {error}", there.display()))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| {
            std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_pass_on_a_kernel_that_runs_the_tests() {
        let before = svcnet_netlink::netns::list().unwrap();
        let findings = all();
        let missing: Vec<_> = findings
            .iter()
            .filter(|f| f.verdict == Verdict::Missing)
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        for what in ["bridge", "VXLAN", "nf_tables, IPv4 nat", "connection tracking"] {
            assert!(findings.iter().any(|finding| finding.what == what), "{what}");
        }
        let left = svcnet_netlink::netns::list().unwrap();
        let own = format!("svcnet-check-{}", std::process::id());
        assert!(
            !left.iter().any(|name| name.starts_with(&own)),
            "{before:?} {left:?}"
        );
    }
}
