//! DNS answers per second, against NSD on the same cores.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use svcnet_dns::zone::View;
use svcnet_dns::{Config, Server};
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::OwnedNetNs;
use tokio_util::sync::CancellationToken;

use crate::stats::{Spread, ratios, row};

const OURS: &str = "127.0.0.1";
const NSD: &str = "127.0.0.2";
const PORT: u16 = 53;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Questions {
    /// Addresses of Services that exist.
    Found,
    /// Names that do not exist, as a search path makes them.
    Missing,
}

/// Rounds of ours, NSD, ours, … with dnsperf, all in a network namespace of its own.
pub(crate) fn measure(rounds: usize, services: usize, seconds: u64) -> Result<()> {
    let netns = OwnedNetNs::unique("svcnet-bench-dns")?;
    netns.run(|| {
        Rtnl::open()?.set_loopback_up()?;
        let directory = tempfile::tempdir()?;
        let nsd = Nsd::start(directory.path(), services)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shutdown = CancellationToken::new();
        let server = start_ours(&runtime, services, &shutdown)?;
        for (questions, what) in [
            (Questions::Found, "a Service's address"),
            (Questions::Missing, "NXDOMAIN"),
        ] {
            let file = directory.path().join(format!("{questions:?}"));
            fs::write(&file, written(questions, services))?;
            let mut sides = [Vec::new(), Vec::new()];
            let mut costs = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                for (side, server) in [OURS, NSD].into_iter().enumerate() {
                    let busy = || {
                        if side == 0 {
                            busy_threads("dns")
                        } else {
                            nsd.busy()
                        }
                    };
                    let before = busy()?;
                    let run = dnsperf(server, &file, seconds)?;
                    sides[side].push(run.rate);
                    costs[side].push((busy()? - before) / run.answers * 1e6);
                }
            }
            print_pair(&format!("DNS answers per second, {what}: svcnet, NSD"), &sides, 0);
            print_pair(
                "CPU time for such an answer in us, kernel included: svcnet, NSD",
                &costs,
                2,
            );
        }
        shutdown.cancel();
        runtime.block_on(server)?;
        Ok(())
    })?
}

fn start_ours(
    runtime: &tokio::runtime::Runtime,
    services: usize,
    shutdown: &CancellationToken,
) -> Result<tokio::task::JoinHandle<()>> {
    let server = Server::new(Config {
        addresses: vec![OURS.parse()?],
        port: PORT,
        bind_interface: None,
        upstreams: Some(Vec::new()),
        ..Config::default()
    });
    let mut view = View::default();
    for number in 0..services {
        let spec = ServiceSpec {
            cluster_ip: Some(address(number).to_string()),
            ..ServiceSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(format!("service-{number}")),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        };
        view.apply_service(&Service {
            metadata,
            spec: Some(spec),
            ..Service::default()
        });
    }
    let publisher = server.publisher();
    let empty = publisher.current();
    publisher.publish(empty.with(view.plan(&empty), 1).into_synced());
    let task = runtime.spawn(server.serve(shutdown.clone()));
    wait_for(OURS)?;
    Ok(task)
}

/// NSD with the same names, one process for each core.
struct Nsd(Child);

impl Nsd {
    fn start(directory: &Path, services: usize) -> Result<Self> {
        let mut zone = "$ORIGIN cluster.local.\n$TTL 30\n\
            @ SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ NS ns.dns\nns.dns A 10.96.0.10\n"
            .to_string();
        for number in 0..services {
            writeln!(zone, "service-{number}.default.svc A {}", address(number))?;
        }
        fs::write(directory.join("zone"), zone)?;
        let cores = std::thread::available_parallelism()?;
        let place = directory.display();
        let config = format!(
            "server:\n ip-address: {NSD}@{PORT}\n server-count: {cores}\n reuseport: yes\n username: \"\"\n\
             \x20zonesdir: \"{place}\"\n database: \"\"\n pidfile: \"{place}/pid\"\n logfile: \"{place}/log\"\n\
             \x20xfrdfile: \"{place}/xfrd\"\n zonelistfile: \"{place}/zones\"\n xfrdir: \"{place}\"\n\
             \x20minimal-responses: yes\n rrl-ratelimit: 0\n\
             remote-control:\n control-enable: no\nzone:\n name: cluster.local\n zonefile: zone\n"
        );
        fs::write(directory.join("config"), config)?;
        let child = Command::new("nsd")
            .args(["-d", "-c"])
            .arg(directory.join("config"))
            .stderr(Stdio::null())
            .spawn()
            .context("nsd does not start (Debian: nsd)")?;
        let nsd = Self(child);
        wait_for(NSD).with_context(|| fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        Ok(nsd)
    }
}

impl Nsd {
    /// CPU time in seconds that it and its processes have used.
    fn busy(&self) -> Result<f64> {
        let mut family = vec![self.0.id()];
        let mut seconds = 0.0;
        // Children have higher numbers than their parents, unless the numbers have just wrapped.
        let mut all: Vec<u32> = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        all.sort_unstable();
        for pid in all {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            let Some((parent, used)) = busy(&stat) else {
                continue;
            };
            if pid == self.0.id() || family.contains(&parent) {
                family.push(pid);
                seconds += used;
            }
        }
        Ok(seconds)
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // Its children end when the parent asks them to, hence no SIGKILL.
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        _ = self.0.wait();
    }
}

fn address(number: usize) -> IpAddr {
    let [_, b, c, d] = (number as u32 + 0x0060_0100).to_be_bytes();
    IpAddr::from([10, b, c, d])
}

fn written(questions: Questions, services: usize) -> String {
    let count = services.min(10_000);
    let names = (0..count).map(|number| number * (services / count));
    let lines = names.map(|number| match questions {
        Questions::Found => format!("service-{number}.default.svc.cluster.local A\n"),
        Questions::Missing => format!("www.example-{number}.com.default.svc.cluster.local A\n"),
    });
    lines.collect()
}

/// Until somebody answers there.
fn wait_for(server: &str) -> Result<()> {
    let socket = UdpSocket::bind((OURS, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let question = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x07cluster\x05local\0\0\x06\0\x01";
    for _ in 0..600 {
        socket.send_to(question, (server, PORT))?;
        if socket.recv(&mut [0; 512]).is_ok() {
            return Ok(());
        }
    }
    bail!("{server} does not answer")
}

struct Run {
    rate: f64,
    answers: f64,
}

fn dnsperf(server: &str, questions: &Path, seconds: u64) -> Result<Run> {
    let seconds = seconds.to_string();
    let output = Command::new("dnsperf")
        .args([
            "-s", server, "-l", &seconds, "-c", "8", "-T", "1", "-q", "128", "-t", "1", "-d",
        ])
        .arg(questions)
        .output()
        .context("dnsperf does not start (Debian: dnsperf)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |label: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label))?;
        line.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    let run = value("Queries per second:").zip(value("Queries completed:"));
    let (rate, answers) = run.with_context(|| format!("dnsperf says: {text}"))?;
    Ok(Run { rate, answers })
}

fn print_pair(what: &str, [ours, theirs]: &[Vec<f64>; 2], digits: usize) {
    let [ours_shown, theirs_shown] = [ours, theirs].map(|side| Spread::new(side, digits).to_string());
    row(
        what,
        &ours_shown,
        &theirs_shown,
        &Spread::new(&ratios(ours, theirs), 2).to_string(),
    );
}

/// CPU time in seconds that the threads of this process with a name have used.
fn busy_threads(name: &str) -> Result<f64> {
    let mut seconds = 0.0;
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.trim() == name {
            seconds += busy(&fs::read_to_string(thread.join("stat"))?)
                .unwrap_or_default()
                .1;
        }
    }
    Ok(seconds)
}

/// Parent and CPU time in seconds, as a line of /proc/PID/stat tells them.
fn busy(stat: &str) -> Option<(u32, f64)> {
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks: f64 = fields
        .get(11..13)?
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some((fields.get(1)?.parse().ok()?, ticks / per_second as f64))
}
