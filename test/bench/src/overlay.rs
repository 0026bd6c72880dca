//! Pod to pod on two nodes, over links that the overlay has made and over the same made by hand with `ip`.
//!
//! ```text
//! pod 10.244.1.2 --- svcnet0 node 172.30.0.11 === 172.30.0.12 node svcnet0 --- 10.244.2.2 pod
//! ```
//! Pods, bridges and the link between the nodes are made the same way; what differs is what lies between the bridges. The
//! overlay's side includes its nftables table, and so connection tracking, which a network made with `ip` alone does without:
//! its pods reach nobody outside. So there is a third one beside, which has a rule that masquerades, and tracks too.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::sysctl;
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::underlay::Choice;
use svcnet_overlay::desired::desired;
use svcnet_overlay::plan::plan;
use svcnet_overlay::view::{NodeNet, View};
use svcnet_overlay::{Config, Kernel, Mode, VERIFY_EVERY, apply, observe};

use crate::path::{ip, round_trips, serve, stream_to};
use crate::stats::{Spread, median, ratios, row};

/// Networks that are measured side by side.
const SIDES: usize = 3;
/// Turns of a round, of all sides together, and of each.
const TURNS: usize = 10 * SIDES;
const TURNS_EACH: f64 = 10.0;
/// The rules that a network made by hand needs for its pods to reach others.
const MASQUERADE: &str = "table ip hand {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 accept
    ip saddr 10.244.0.0/16 masquerade
  }
}
";

/// Two nodes, and a pod on each.
struct World {
    pods: [OwnedNetNs; 2],
    _nodes: [OwnedNetNs; 2],
    _run_dir: tempfile::TempDir,
}

/// Who has made what is between the nodes.
#[derive(Clone, Copy)]
enum By {
    Overlay(Mode),
    Hand(Mode),
    /// By hand, with [`MASQUERADE`].
    HandMasqueraded(Mode),
}

#[derive(Default)]
struct Rates {
    bits: Vec<f64>,
    trips: Vec<f64>,
}

/// Prints throughput and round trips against what was made by hand, over VXLAN and direct.
pub(crate) fn measure(rounds: usize, seconds: f64, trips: u32) -> Result<()> {
    for (mode, what) in [
        (Mode::Vxlan, "pod to pod over VXLAN; over one made with `ip`"),
        (
            Mode::Direct,
            "pod to pod over direct routes; over routes made with `ip`",
        ),
    ] {
        let worlds = [By::Overlay(mode), By::Hand(mode), By::HandMasqueraded(mode)].map(World::new);
        let [ours, bare, masqueraded] = worlds;
        let worlds = [ours?, bare?, masqueraded?];
        let mut rates: [Rates; SIDES] = Default::default();
        // The first packets of a path are not like the others.
        for world in &worlds {
            world.measure(&mut Rates::default(), 0.2, trips / 10)?;
        }
        for round in 0..rounds {
            // In short turns: what else the machine does meets all.
            let mut parts: [Rates; SIDES] = Default::default();
            for turn in 0..TURNS {
                let which = (round + turn) % SIDES;
                worlds[which].measure(&mut parts[which], seconds / TURNS_EACH, trips / 10)?;
            }
            for (rates, parts) in rates.iter_mut().zip(&parts) {
                rates.bits.push(median(&parts.bits));
                rates.trips.push(median(&parts.trips));
            }
        }
        let [ours, bare, masqueraded] = &rates;
        print(what, ours, bare, "bar 0.98");
        let what = format!("{what} and a rule that masquerades");
        print(&what, ours, masqueraded, "which tracks connections as well");
        let what = format!("pod to pod by {mode} made with `ip`, with a rule that masquerades; bare");
        print(&what, masqueraded, bare, "what connection tracking costs");
    }
    Ok(())
}

fn print(what: &str, ours: &Rates, theirs: &Rates, remark: &str) {
    let gigabits = |bits| Spread::scaled(bits, 1e-9, 1).unit(" Gbit/s").to_string();
    row(
        &format!("throughput, {what}"),
        &gigabits(&ours.bits),
        &gigabits(&theirs.bits),
        &format!("{}; {remark}", Spread::new(&ratios(&ours.bits, &theirs.bits), 2)),
    );
    row(
        &format!("round trips per second, {what}"),
        &Spread::new(&ours.trips, 0).to_string(),
        &Spread::new(&theirs.trips, 0).to_string(),
        &format!(
            "{}; {remark}",
            Spread::new(&ratios(&ours.trips, &theirs.trips), 2)
        ),
    );
}

impl World {
    fn new(by: By) -> Result<Self> {
        let ns = || OwnedNetNs::unique("bench");
        let (nodes, pods) = ([ns()?, ns()?], [ns()?, ns()?]);
        let run_dir = tempfile::tempdir()?;
        ip(
            &nodes[0],
            &format!("link add eth0 type veth peer name eth0 netns {}", nodes[1].name()),
        )?;
        for (n, node, pod) in [(1, &nodes[0], &pods[0]), (2, &nodes[1], &pods[1])] {
            ip(node, &format!("address add 172.30.0.1{n}/24 dev eth0"))?;
            ip(node, "link set eth0 up")?;
            ip(node, "link add svcnet0 type bridge")?;
            ip(node, &format!("address add 10.244.{n}.1/24 dev svcnet0"))?;
            ip(node, "link set svcnet0 up")?;
            ip(
                node,
                &format!("link add pod type veth peer name eth0 netns {}", pod.name()),
            )?;
            ip(node, "link set pod master svcnet0 up")?;
            ip(pod, "link set eth0 mtu 1450 up")?;
            ip(pod, &format!("address add 10.244.{n}.2/24 dev eth0"))?;
            ip(pod, &format!("route add default via 10.244.{n}.1"))?;
        }
        for (n, node) in [(1, &nodes[0]), (2, &nodes[1])] {
            match by {
                By::Overlay(mode) => {
                    let sysctls = Sysctls::new(run_dir.path(), "overlay");
                    node.run(|| make(mode, n, &sysctls))??;
                }
                By::Hand(mode) | By::HandMasqueraded(mode) => {
                    node.run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
                    by_hand(mode, n, node)?;
                    if matches!(by, By::HandMasqueraded(_)) {
                        masquerade(node, run_dir.path())?;
                    }
                }
            }
        }
        pods[1].run(serve)??;
        Ok(Self {
            pods,
            _nodes: nodes,
            _run_dir: run_dir,
        })
    }

    fn measure(&self, rates: &mut Rates, seconds: f64, trips: u32) -> Result<()> {
        let to = Ipv4Addr::new(10, 244, 2, 2);
        let time = Duration::from_secs_f64(seconds);
        rates.bits.push(self.pods[0].run(|| stream_to(to, time))??);
        rates.trips.push(self.pods[0].run(|| round_trips(to, trips))??);
        Ok(())
    }
}

/// What the overlay makes of two Nodes, on one of them.
fn make(mode: Mode, own: u8, sysctls: &Sysctls) -> Result<()> {
    let config = Config {
        mode,
        underlay: Choice::default(),
        vni: svcnet_api::types::Vni::new(1)?,
        port: 8472,
        cluster_cidr: "10.244.0.0/16".parse()?,
        service_cidr: "10.96.0.0/12".parse()?,
        mtu: None,
        verify_every: VERIFY_EVERY,
    };
    let mut view = View::new(format!("n{own}"));
    for n in [1, 2] {
        let node = NodeNet {
            addresses: vec![[172, 30, 0, 10 + n].into()],
            pod_cidrs: vec![format!("10.244.{n}.0/24").parse()?],
        };
        view.set(&format!("n{n}"), Some(node));
    }
    let mut kernel = Kernel::open()?;
    let facts = observe::facts(&config, &mut kernel.rt)?.map_err(|none| anyhow::anyhow!("{none}"))?;
    let wanted = desired(&config, &view, &facts).map_err(|waiting| anyhow::anyhow!("{waiting}"))?;
    let (observed, _) = observe::observe(&mut kernel, &facts, &wanted)?;
    let errors = apply::apply(
        &plan(&wanted, &observed),
        &mut kernel,
        facts.underlay.link,
        sysctls,
    );
    ensure!(errors.is_empty(), "{errors:?}");
    Ok(())
}

/// The same with `ip` and `bridge`.
fn by_hand(mode: Mode, own: u8, node: &OwnedNetNs) -> Result<()> {
    let peer = 3 - own;
    if mode == Mode::Direct {
        return ip(
            node,
            &format!("route add 10.244.{peer}.0/24 via 172.30.0.1{peer} dev eth0"),
        );
    }
    let vxlan = format!("vxlan id 1 dstport 8472 local 172.30.0.1{own} dev eth0 nolearning");
    ip(
        node,
        &format!("link add vx address 02:00:00:00:00:0{own} mtu 1450 type {vxlan}"),
    )?;
    ip(node, &format!("address add 10.244.{own}.0/32 dev vx"))?;
    ip(node, "link set vx up")?;
    let fdb = format!("fdb append 02:00:00:00:00:0{peer} dev vx dst 172.30.0.1{peer}");
    let made = node.run(|| std::process::Command::new("bridge").args(fdb.split(' ')).status())??;
    ensure!(made.success(), "bridge {fdb}");
    ip(
        node,
        &format!("neigh add 10.244.{peer}.0 lladdr 02:00:00:00:00:0{peer} dev vx"),
    )?;
    ip(
        node,
        &format!("route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev vx onlink"),
    )
}

fn masquerade(node: &OwnedNetNs, scratch: &Path) -> Result<()> {
    let file = scratch.join("masquerade.nft");
    std::fs::write(&file, MASQUERADE)?;
    let loaded = node.run(|| std::process::Command::new("nft").arg("-f").arg(&file).status())??;
    ensure!(loaded.success(), "nft refused its rules");
    Ok(())
}
