//! One changed endpoint: from the watch event to the kernel's answer, at growing numbers of services.
//!
//! The peer is the layout that kube-proxy uses (a chain for each service and endpoint behind a verdict map), loaded and
//! changed through the program `nft`, in a namespace of its own.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_proxy::{Engine, Nftables, Settings, Update};
use svcnet_runtime::Change;

use crate::stats::{median, percentile, row};

/// Changes of ours that are measured at each size; the peer's are slower, and fewer say the same.
const CHANGES: u32 = 500;
const PEER_CHANGES: u32 = 5;
/// The peer is not loaded beyond this: it takes minutes and gigabytes.
const PEER_SERVICES_MAX: u32 = 10_000;

/// Prints a row for each number of services.
pub(crate) fn measure(sizes: &[u32]) -> Result<()> {
    for &services in sizes {
        let netns = OwnedNetNs::unique("bench")?;
        let (load, changes) = netns.run(|| ours(services))??;
        let peer = (services <= PEER_SERVICES_MAX)
            .then(|| theirs(services))
            .transpose()?;
        let (peer_text, ratio) = peer.map_or_else(
            || ("not tried".to_string(), String::new()),
            |(load, change)| {
                let ratio = format!("{:.0} times faster", change / median(&changes));
                (format!("{:.0} ms; loaded in {:.1} s", change * 1e3, load), ratio)
            },
        );
        row(
            &format!("one endpoint changed, {services} services x 3; chains through `nft -f`"),
            &format!(
                "{:.2} ms (p99 {:.2}); loaded in {load:.2} s",
                median(&changes) * 1e3,
                percentile(&changes, 0.99) * 1e3
            ),
            &peer_text,
            &ratio,
        );
    }
    Ok(())
}

fn ours(services: u32) -> Result<(f64, Vec<f64>)> {
    let pods = ["10.244.0.0/16".parse()?];
    let cluster_ips = ["10.96.0.0/12".parse()?];
    let settings = Settings {
        service_cidrs: cluster_ips.to_vec(),
        ..Settings::default()
    };
    let mut engine = Engine::new("n1", settings, Box::new(Nftables::open(&pods, &cluster_ips)?));
    let all: Result<Vec<_>> = (0..services).map(|n| Ok(Arc::new(service(n)?))).collect();
    let slices: Result<Vec<_>> = (0..services).map(|n| Ok(Arc::new(slice(n, 3)?))).collect();
    let begun = Instant::now();
    engine.apply_change(Update::Services(Change::Reset(all?)));
    engine.apply_change(Update::Slices(Change::Reset(slices?)));
    engine.sync()?;
    let load = begun.elapsed().as_secs_f64();
    let mut seconds = Vec::new();
    for change in 0..CHANGES {
        // A stride that visits services all over the tables; each gets a fourth endpoint.
        let n = change.wrapping_mul(7919) % services;
        let event = Arc::new(slice(n, 4 + change / services)?);
        let begun = Instant::now();
        engine.apply_change(Update::Slices(Change::Apply(event)));
        let report = engine.sync()?;
        seconds.push(begun.elapsed().as_secs_f64());
        ensure!(report.operations > 0, "a change came to nothing");
    }
    Ok((load, seconds))
}

fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + n)
}

fn endpoint_ip(n: u32, i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 0, 0).to_bits() + (n * 8 + i) % 65_000)
}

fn service(n: u32) -> Result<Service> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("s{n}"), "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip(n), "clusterIPs": [cluster_ip(n)], "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}],
        },
    }))?)
}

fn slice(n: u32, endpoints: u32) -> Result<EndpointSlice> {
    let endpoint =
        |i| json!({"addresses": [endpoint_ip(n, i)], "conditions": {"ready": true}, "nodeName": "n2"});
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": format!("s{n}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": format!("s{n}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    }))?)
}

/// Seconds to load the chains, and the median of changing one service.
fn theirs(services: u32) -> Result<(f64, f64)> {
    let netns = OwnedNetNs::unique("bench")?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("rules.nft");
    let load = |text: &str| -> Result<f64> {
        std::fs::write(&file, text)?;
        let begun = Instant::now();
        let status = netns.run(|| Command::new("nft").arg("-f").arg(&file).status())?;
        ensure!(
            status
                .context("the peer is the program nft: install nftables")?
                .success(),
            "nft refused its rules"
        );
        Ok(begun.elapsed().as_secs_f64())
    };
    let mut rules = String::from("table ip peer {\n");
    for n in 0..services {
        for i in 0..3 {
            writeln!(
                rules,
                " chain e{n}x{i} {{ meta l4proto tcp dnat to {}:80; }}",
                endpoint_ip(n, i)
            )?;
        }
        writeln!(rules, " chain s{n} {{ {}; }}", spread(n, 3))?;
    }
    rules.push_str(" map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n");
    for n in 0..services {
        writeln!(rules, "  {} . tcp . 80 : goto s{n},", cluster_ip(n))?;
    }
    rules.push_str(
        " } }\n chain prerouting { type nat hook prerouting priority dstnat;\n  \
         ip daddr . meta l4proto . th dport vmap @services; }\n}\n",
    );
    let loaded = load(&rules)?;
    let mut seconds = Vec::new();
    for change in 0..PEER_CHANGES {
        let n = change * 17 % services;
        let text = format!(
            "add chain ip peer e{n}x3\nadd rule ip peer e{n}x3 meta l4proto tcp dnat to {}:80\nflush chain ip peer s{n}\n\
             add rule ip peer s{n} {}\n",
            endpoint_ip(n, 3),
            spread(n, 4)
        );
        seconds.push(load(&text)?);
    }
    Ok((loaded, median(&seconds)))
}

fn spread(n: u32, endpoints: u32) -> String {
    let goto: Vec<String> = (0..endpoints).map(|i| format!("{i} : goto e{n}x{i}")).collect();
    format!("numgen random mod {endpoints} vmap {{ {} }}", goto.join(", "))
}
