//! What it takes to attach a container with a port of the host, against the reference plugins; and what of it is the kernel's
//! own: the link alone, made and deleted without a process, a lease, isolation or a port.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use svcnet_api::types::PodCidr;
use svcnet_api::wellknown::BRIDGE_NAME;
use svcnet_cni::link::{self, PodLink};
use svcnet_cni::protocol::Attachment;
use svcnet_e2e::Lab;
use svcnet_e2e::chain::{Attached, Chain, REFERENCE};
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::{NetNs, OwnedNetNs};

use crate::stats::{median, row};

/// How many runtimes' calls are under way at the same time.
const AT_ONCE: [usize; 3] = [1, 8, 32];
/// Containers that each of them attaches and detaches in a round, one after the other.
const EACH: usize = 4;

/// ADD and DEL by turns through svcnet's plugin and through the chain bridge, host-local, portmap: each call is a process,
/// as a runtime makes them.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    ensure!(
        Path::new(REFERENCE).join("bridge").exists(),
        "the reference plugins are not in {REFERENCE}: apt-get install containernetworking-plugins"
    );
    let lab = Lab::up(&["--nodes", "1"]);
    let ours = Chain::of(&lab, "n1", "1.0.0");
    let elsewhere = OwnedNetNs::unique("bench-cni")?;
    Rtnl::open_in(&elsewhere)?.set_loopback_up()?;
    let data = tempfile::tempdir()?;
    let theirs = reference(NetNs::open_path(elsewhere.path())?, data.path());
    let bare = OwnedNetNs::unique("bench-cni")?;
    Rtnl::open_in(&bare)?.add_bridge(BRIDGE_NAME, None, None)?;
    let by_ours = |netns: &OwnedNetNs, number| attach(&ours, netns, number);
    let by_theirs = |netns: &OwnedNetNs, number| attach(&theirs, netns, number);
    let by_kernel = |netns: &OwnedNetNs, number| link_alone(&bare, netns, number);
    let ways: [&Way<'_>; 3] = [&by_ours, &by_theirs, &by_kernel];
    for at_once in AT_ONCE {
        let mut kept = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (way, rounds) in ways.into_iter().zip(&mut kept) {
                rounds.push(round(way, at_once)?);
            }
        }
        print(at_once, &kept);
    }
    Ok(())
}

/// Attaches a container of a number and detaches it: milliseconds of both.
type Way<'a> = dyn Fn(&OwnedNetNs, usize) -> Result<(f64, f64)> + Sync + 'a;

fn reference(node: NetNs, data: &Path) -> Chain {
    Chain {
        node,
        name: "bench".to_string(),
        version: "1.0.0".to_string(),
        plugins: vec![
            json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": data,
                    "ranges": [[{ "subnet": "10.99.0.0/22" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        ],
    }
}

/// What a round took: medians of the calls in milliseconds, and containers a second.
struct Round {
    add_ms: f64,
    del_ms: f64,
    per_second: f64,
}

fn round(way: &Way<'_>, at_once: usize) -> Result<Round> {
    // Making the namespaces is the runtime's affair.
    let namespaces: Vec<OwnedNetNs> = (0..at_once * EACH)
        .map(|_| OwnedNetNs::unique("bench-cni"))
        .collect::<Result<_, _>>()?;
    let taken = Mutex::new(Vec::new());
    let begun = Instant::now();
    thread::scope(|scope| {
        let each = namespaces.chunks(EACH).enumerate().map(|(worker, containers)| {
            let taken = &taken;
            scope.spawn(move || -> Result<()> {
                for (index, netns) in containers.iter().enumerate() {
                    let times = way(netns, worker * EACH + index)?;
                    taken.lock().map_err(|_| anyhow!("a worker failed"))?.push(times);
                }
                Ok(())
            })
        });
        let workers: Vec<_> = each.collect();
        let ends = workers
            .into_iter()
            .map(|w| w.join().map_err(|_| anyhow!("a worker failed"))?);
        ends.collect::<Result<Vec<()>>>()
    })?;
    let elapsed = begun.elapsed().as_secs_f64();
    let taken = taken.into_inner().map_err(|_| anyhow!("a worker failed"))?;
    let (add, del): (Vec<f64>, Vec<f64>) = taken.into_iter().unzip();
    let count = u32::try_from(namespaces.len()).context("too many containers")?;
    Ok(Round {
        add_ms: median(&add),
        del_ms: median(&del),
        per_second: f64::from(count) / elapsed,
    })
}

fn link_alone(node: &OwnedNetNs, netns: &OwnedNetNs, number: usize) -> Result<(f64, f64)> {
    let cidr: PodCidr = "10.98.0.0/16".parse()?;
    let attachment = Attachment::new(netns.name(), "eth0").map_err(|e| anyhow!("{e}"))?;
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 98, 1, 0)) + u32::try_from(number)?);
    let pod_link = PodLink::new(&attachment, &[address.into()], None, &[cidr], 1500);
    let pod = NetNs::open_path(netns.path())?;
    node.run(|| -> Result<(f64, f64)> {
        let mut rt = Rtnl::open()?;
        let begun = Instant::now();
        link::add(&mut rt, &pod, &pod_link)?;
        let add = begun.elapsed();
        let begun = Instant::now();
        link::delete(&mut rt, &attachment)?;
        Ok((add.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3))
    })?
}

/// Milliseconds of ADD and of DEL.
fn attach(chain: &Chain, netns: &OwnedNetNs, number: usize) -> Result<(f64, f64)> {
    let mut container = Attached::pod(netns.name(), netns.path());
    let mapping = json!({ "hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp" });
    container.runtime = json!({ "portMappings": [mapping] });
    let refused = |verb: &str, error: &Value| anyhow!("{verb}: {error}");
    let begun = Instant::now();
    let result = chain.add(&container).map_err(|e| refused("ADD", &e))?;
    let add = begun.elapsed();
    let begun = Instant::now();
    chain.del(&container, &result).map_err(|e| refused("DEL", &e))?;
    Ok((add.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3))
}

/// Medians of the rounds, and of the rounds' own ratios.
fn print(at_once: usize, [ours, theirs, bare]: &[Vec<Round>; 3]) {
    type Figure = fn(&Round) -> f64;
    let figures: [(&str, &str, Figure); 3] = [
        ("CNI ADD", "ms", |r| r.add_ms),
        ("CNI DEL", "ms", |r| r.del_ms),
        ("CNI ADD and DEL, containers a second", "", |r| r.per_second),
    ];
    for (what, unit, figure) in figures {
        let of = |rounds: &[Round]| median(&rounds.iter().map(figure).collect::<Vec<_>>());
        let ratios = ours.iter().zip(theirs).map(|(o, t)| {
            let ratio = figure(t) / figure(o);
            if unit.is_empty() { ratio.recip() } else { ratio }
        });
        let ratio = format!("{:.1} times faster", median(&ratios.collect::<Vec<_>>()));
        let shown = |value: f64| format!("{value:.1} {unit}").trim_end().to_string();
        let what = format!("{what}, {at_once} at once; bridge + host-local + portmap");
        let of_kernel = format!("{ratio}; the link alone {}", shown(of(bare)));
        row(&what, &shown(of(ours)), &shown(of(theirs)), &of_kernel);
    }
}
