//! What a Service costs a connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use svcnet_e2e::Lab;
use svcnet_netlink::netns::NetNs;

use crate::stats::{Spread, ratios, row};

/// From a pod on one node to a pod on another: rounds of direct, through the ClusterIP, direct, …
pub(crate) fn measure(rounds: usize, connections: u32) -> Result<()> {
    let lab = Lab::up(&[]);
    lab.pod("web1", "n2", "app=nginx");
    lab.pod("visitor", "n3", "app=visitor");
    lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: nginx}\n\
         spec: {selector: {app: nginx}, ports: [{port: 80}]}\n",
    );
    let (vip, pod) = (lab.cluster_ip("nginx"), lab.pod_ip("web1"));
    lab.reaches("visitor", &format!("http://{vip}/"), &["web1"]);
    let visitor = NetNs::open(&lab.namespace("visitor"))?;
    let address = |ip: &str| -> Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, 80)) };
    let (vip, pod) = (address(&vip)?, address(&pod)?);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (rate, target) in rates.iter_mut().zip([vip, pod]) {
            rate.push(visitor.run(|| connect_often(target, connections))??);
        }
    }
    row(
        "connections per second, pod to pod elsewhere: through the ClusterIP, straight",
        &Spread::new(&rates[0], 0).to_string(),
        &Spread::new(&rates[1], 0).to_string(),
        &format!("{}; bar 0.9", Spread::new(&ratios(&rates[0], &rates[1]), 2)),
    );
    Ok(())
}

/// Connections one after the other, each with a question and its answer, per second.
fn connect_often(target: SocketAddr, connections: u32) -> Result<f64> {
    let begun = Instant::now();
    let mut answer = [0; 64];
    for _ in 0..connections {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).context("connecting")?;
        stream.write_all(b"hostname\n")?;
        let length = stream.read(&mut answer)?;
        anyhow::ensure!(answer[..length].starts_with(b"web1"), "not answered by the pod");
    }
    Ok(f64::from(connections) / begun.elapsed().as_secs_f64())
}
