//! A client, a node and a pod in namespaces of their own, and the proxy on the node: what it costs a connection and a
//! stream to go through a ClusterIP, with few Services loaded and with many.
//!
//! ```text
//! client 10.244.2.2 --- 10.244.2.1 node 10.244.1.1 --- 10.244.1.2 and, behind the ClusterIP, .3, .4 and .5 pod
//! ```
//! The client has a pod's address too: nothing is masqueraded, so that both ways differ by the translation alone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::sysctl;
use svcnet_proxy::Engine;

use crate::stats::{Spread, median, ratios, row};
use crate::synthetic::{self, Lists};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// Not one of those behind the ClusterIP: a connection by either way must not look like an earlier one by the other.
pub(crate) const STRAIGHT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const BEHIND: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 244, 1, 3),
    Ipv4Addr::new(10, 244, 1, 4),
    Ipv4Addr::new(10, 244, 1, 5),
];
/// Answers each byte with a byte.
const ECHO: u16 = 80;
/// Reads all that comes, and answers the end of it with a byte.
const SINK: u16 = 81;
const PATIENCE: Duration = Duration::from_secs(10);

/// The three, and a proxy that is in force.
pub(crate) struct Path {
    client: OwnedNetNs,
    node: OwnedNetNs,
    _pod: OwnedNetNs,
    _engine: Engine,
}

/// What went through, a second.
#[derive(Default)]
pub(crate) struct Rates {
    pub(crate) vip: Vec<f64>,
    pub(crate) straight: Vec<f64>,
}

impl Rates {
    /// The median of the rounds' ratios.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.ratios())
    }

    fn ratios(&self) -> Vec<f64> {
        ratios(&self.vip, &self.straight)
    }
}

/// Prints what the way through a ClusterIP costs, with one Service loaded and with `services`.
pub(crate) fn measure(rounds: usize, connections: u32, seconds: f64, services: u32) -> Result<()> {
    let few = Path::new(0, synthetic::nftables)?;
    let many = Path::new(services, synthetic::nftables)?;
    let (mut of_few, mut of_many, mut streams) = (Rates::default(), Rates::default(), Rates::default());
    for _ in 0..rounds {
        few.connect_both(&mut of_few, connections)?;
        many.connect_both(&mut of_many, connections)?;
        many.stream_both(&mut streams, seconds)?;
    }
    for (rates, loaded) in [(&of_few, 1), (&of_many, services + 1)] {
        row(
            &format!("connections per second, {loaded} services loaded: through the ClusterIP, straight"),
            &Spread::new(&rates.vip, 0).to_string(),
            &Spread::new(&rates.straight, 0).to_string(),
            &format!("{}; bar 0.9", Spread::new(&rates.ratios(), 2)),
        );
    }
    row(
        &format!(
            "connections per second through the ClusterIP: {} services loaded, 1",
            services + 1
        ),
        &Spread::new(&of_many.vip, 0).to_string(),
        &Spread::new(&of_few.vip, 0).to_string(),
        &Spread::new(&ratios(&of_many.vip, &of_few.vip), 2).to_string(),
    );
    row(
        &format!(
            "throughput, {} services loaded: through the ClusterIP, straight",
            services + 1
        ),
        &gigabits(&streams.vip).to_string(),
        &gigabits(&streams.straight).to_string(),
        &format!("{}; bar 0.9", Spread::new(&streams.ratios(), 2)),
    );
    Ok(())
}

/// Bits a second.
fn gigabits(rates: &[f64]) -> Spread<'_> {
    Spread::scaled(rates, 1e-9, 1).unit(" Gbit/s")
}

impl Path {
    /// With one Service that leads to the pod, and so many others. `open` makes the proxy, in the node's namespace.
    pub(crate) fn new(others: u32, open: impl FnOnce() -> Result<Engine> + Send) -> Result<Self> {
        let ns = || OwnedNetNs::unique("bench");
        let (client, node, pod) = (ns()?, ns()?, ns()?);
        node.run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
        plug(
            &node,
            &client,
            "c",
            Ipv4Addr::new(10, 244, 2, 1),
            &[Ipv4Addr::new(10, 244, 2, 2)],
        )?;
        plug(
            &node,
            &pod,
            "p",
            Ipv4Addr::new(10, 244, 1, 1),
            &[&[STRAIGHT], &BEHIND[..]].concat(),
        )?;
        pod.run(serve)??;
        let engine = node.run(|| -> Result<_> {
            let mut engine = open()?;
            let mut lists = Lists::new(others)?;
            lists.add("target", VIP, &[ECHO, SINK], &BEHIND)?;
            lists.load(&mut engine)?;
            Ok(engine)
        })??;
        Ok(Self {
            client,
            node,
            _pod: pod,
            _engine: engine,
        })
    }

    /// The node's namespace.
    pub(crate) fn node(&self) -> &OwnedNetNs {
        &self.node
    }

    /// Connections a second, straight to the pod.
    pub(crate) fn connect(&self, connections: u32) -> Result<f64> {
        self.client.run(|| connect_often(STRAIGHT, connections))?
    }

    /// Bits a second, straight to the pod.
    pub(crate) fn stream(&self, seconds: f64) -> Result<f64> {
        self.client
            .run(|| stream_to(STRAIGHT, Duration::from_secs_f64(seconds)))?
    }

    /// A round of connections each way.
    pub(crate) fn connect_both(&self, rates: &mut Rates, connections: u32) -> Result<()> {
        for (rate, address) in [(&mut rates.vip, VIP), (&mut rates.straight, STRAIGHT)] {
            rate.push(self.client.run(|| connect_often(address, connections))??);
        }
        Ok(())
    }

    /// A stream each way.
    pub(crate) fn stream_both(&self, rates: &mut Rates, seconds: f64) -> Result<()> {
        for (rate, address) in [(&mut rates.vip, VIP), (&mut rates.straight, STRAIGHT)] {
            rate.push(
                self.client
                    .run(|| stream_to(address, Duration::from_secs_f64(seconds)))??,
            );
        }
        Ok(())
    }
}

/// A veth from the node to a host with these addresses, whose way out is the node.
fn plug(
    node: &OwnedNetNs,
    host: &OwnedNetNs,
    link: &str,
    gateway: Ipv4Addr,
    addresses: &[Ipv4Addr],
) -> Result<()> {
    ip(
        node,
        &format!("link add {link} type veth peer name eth0 netns {}", host.name()),
    )?;
    ip(node, &format!("address add {gateway}/24 dev {link}"))?;
    ip(node, &format!("link set {link} up"))?;
    for address in addresses {
        ip(host, &format!("address add {address}/24 dev eth0"))?;
    }
    ip(host, "link set eth0 up")?;
    ip(host, &format!("route add default via {gateway}"))
}

/// Runs the program `ip` there.
pub(crate) fn ip(netns: &OwnedNetNs, arguments: &str) -> Result<()> {
    let output = netns.run(|| Command::new("ip").args(arguments.split(' ')).output())??;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Both services of the pod, on threads that end with the process.
pub(crate) fn serve() -> Result<()> {
    for (port, answer) in [(ECHO, echo as fn(TcpStream) -> _), (SINK, sink)] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that went away is that client's affair.
                let _: std::io::Result<()> = answer(stream);
            }
        });
    }
    Ok(())
}

/// The client closes first, so that it does not use a port again soon.
fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[0])
}

/// Connections one after the other, each with a question and its answer, per second.
fn connect_often(address: Ipv4Addr, connections: u32) -> Result<f64> {
    let target = SocketAddr::new(address.into(), ECHO);
    let begun = Instant::now();
    for _ in 0..connections {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[7])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        ensure!(answer == [7], "not answered by the pod");
    }
    Ok(f64::from(connections) / begun.elapsed().as_secs_f64())
}

/// Questions and answers of a byte on one connection, per second.
pub(crate) fn round_trips(address: Ipv4Addr, count: u32) -> Result<f64> {
    let target = SocketAddr::new(address.into(), ECHO);
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let begun = Instant::now();
    for _ in 0..count {
        stream.write_all(&[7])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Bits per second of one stream, all of it received.
pub(crate) fn stream_to(address: Ipv4Addr, time: Duration) -> Result<f64> {
    let target = SocketAddr::new(address.into(), SINK);
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let piece = vec![0; 1 << 18];
    let begun = Instant::now();
    let mut pieces = 0u32;
    while begun.elapsed() < time {
        stream.write_all(&piece)?;
        pieces += 1;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(f64::from(pieces) * f64::from(1 << 21) / begun.elapsed().as_secs_f64())
}
