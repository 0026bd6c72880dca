//! How soon a lab answers, and what idle processes hold.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use svcnet_e2e::Lab;

use crate::memory;
use crate::stats::{Spread, ratios, row};

/// Brings up labs of three nodes with a Service of two pods, one after the other; beside each, the same namespaces and
/// links made by hand with `ip`, with nothing in them.
pub(crate) fn measure(rounds: usize) -> Result<()> {
    let (mut answered, mut by_hand, mut server, mut agent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        by_hand.push(links_by_hand(round)?);
        let begun = Instant::now();
        let lab = Lab::up(&[]);
        lab.web();
        lab.apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
             spec: {selector: {app: nginx}, ports: [{port: 80}]}\n",
        );
        let url = format!("http://{}/", lab.cluster_ip("nginx"));
        svcnet_e2e::until("the Service answers", || lab.curl("n1", &url).ok.then_some(()));
        answered.push(begun.elapsed().as_secs_f64());
        std::thread::sleep(memory::SETTLE);
        server.push(resident_mb(&lab, "n1")?);
        agent.push(resident_mb(&lab, "n3")?);
    }
    row(
        "`lab up`, 3 nodes, 2 pods, to the first answer; the bare links by `ip`",
        &Spread::s(&answered).to_string(),
        &Spread::s(&by_hand).to_string(),
        &Spread::new(&ratios(&answered, &by_hand), 1).to_string(),
    );
    for (process, megabytes, bar) in [
        ("server with agent", &server, "40 MB"),
        ("agent", &agent, "20 MB"),
    ] {
        row(
            &format!("resident memory, idle, program text included: {process}"),
            &Spread::new(megabytes, 1).unit(" MB").to_string(),
            &format!("bar {bar}"),
            "",
        );
    }
    Ok(())
}

fn resident_mb(lab: &Lab, node: &str) -> Result<f64> {
    let state = lab.state();
    let members = state["members"].as_array().context("the lab has no members")?;
    let member = members
        .iter()
        .find(|member| member["name"] == node)
        .context("no such node")?;
    let pid = member["pids"][0].as_u64().context("the node has no process")?;
    memory::resident_mb(u32::try_from(pid)?)
}

/// Seconds for a bridge and three hosts on it, in namespaces, by the program `ip`.
fn links_by_hand(round: usize) -> Result<f64> {
    let name = format!("bare{}x{round}", std::process::id());
    let mut script = format!(
        "set -e; ip netns add {name}; ip -n {name} link add br0 type bridge; ip -n {name} link set br0 up\n"
    );
    for n in 1..=4 {
        script.push_str(&format!(
            "ip netns add {name}-{n}; ip -n {name} link add p{n} type veth peer name eth0 netns {name}-{n}\n\
             ip -n {name} link set p{n} master br0 up; ip -n {name}-{n} addr add 172.30.0.{n}/24 dev eth0\n\
             ip -n {name}-{n} link set eth0 up; ip -n {name}-{n} link set lo up\n"
        ));
    }
    let begun = Instant::now();
    let made = Command::new("bash").args(["-c", &script]).status()?;
    let seconds = begun.elapsed().as_secs_f64();
    let names: Vec<String> = (1..=4)
        .map(|n| format!("{name}-{n}"))
        .chain([name.clone()])
        .collect();
    for name in names {
        Command::new("ip").args(["netns", "del", &name]).status()?;
    }
    anyhow::ensure!(made.success(), "the links could not be made by hand");
    Ok(seconds)
}
