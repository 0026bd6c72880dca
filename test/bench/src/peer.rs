//! The peer of the nftables backend: the layout that kube-proxy uses (a chain for each service and endpoint behind a
//! verdict map), loaded and changed through the program `nft`, in a namespace of its own.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;

use crate::stats::median;
use crate::synthetic::{cluster_ip, endpoint_ip};

/// It is slow: few changes say enough.
const CHANGES: u32 = 5;

/// Seconds to load the chains, and the median of changing one service.
pub(crate) fn measure(services: u32) -> Result<(f64, f64)> {
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
    let loaded = load(&rules(services)?)?;
    let mut seconds = Vec::new();
    for change in 0..CHANGES {
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

fn rules(services: u32) -> Result<String> {
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
    Ok(rules)
}

fn spread(n: u32, endpoints: u32) -> String {
    let goto: Vec<String> = (0..endpoints).map(|i| format!("{i} : goto e{n}x{i}")).collect();
    format!("numgen random mod {endpoints} vmap {{ {} }}", goto.join(", "))
}
