//! What whole processes hold: a server (API, store and controllers) and the proxy as they are run, empty and with many Services, in a network
//! namespace of their own with nothing but a loopback link.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::Api;
use kube::api::{ListParams, PostParams};
use svcnet_netlink::Rtnl;
use svcnet_netlink::netns::OwnedNetNs;

use crate::memory::{SETTLE, peak_mb, resident_mb};
use crate::stats::{Spread, row};
use crate::synthetic;

/// Writes under way at once.
const WRITERS: usize = 32;
/// Where a proxy tells its metrics.
const PROXY_METRICS: u16 = 10_249;
const API_PORT: u16 = 6443;
/// How long controllers may take for the addresses of all Services.
const MIRRORED_MAX: Duration = Duration::from_secs(600);

/// Megabytes of each run.
#[derive(Default)]
struct Memory {
    server_idle: Vec<f64>,
    server: Vec<f64>,
    proxy_idle: Vec<f64>,
    proxy: Vec<f64>,
    proxy_peak: Vec<f64>,
}

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Prints rows for `services` Services with an EndpointSlice of three endpoints each.
pub(crate) fn measure(services: u32, runs: usize) -> Result<()> {
    let mut memory = Memory::default();
    for _ in 0..runs {
        memory.run(services)?;
    }
    let mb = |values| Spread::new(values, 1).unit(" MB").to_string();
    for (what, loaded, idle, bar) in [
        (
            "`svcnet server --disable-agent`",
            &memory.server,
            &memory.server_idle,
            "bars 150 MB, 30 MB",
        ),
        ("`svcnet proxy`", &memory.proxy, &memory.proxy_idle, "bar 60 MB"),
    ] {
        row(
            &format!("resident memory of {what} with {services} services x 3 and their slices; without any"),
            &mb(loaded),
            &mb(idle),
            bar,
        );
    }
    row(
        &format!("the most that `svcnet proxy` held while {services} services x 3 came in"),
        &mb(&memory.proxy_peak),
        "",
        "",
    );
    Ok(())
}

impl Memory {
    fn run(&mut self, services: u32) -> Result<()> {
        let netns = OwnedNetNs::unique("bench")?;
        Rtnl::open_in(&netns)?.set_loopback_up()?;
        let directory = tempfile::tempdir()?;
        let kubeconfig = directory.path().join("kubeconfig.yaml");
        let server = start(&netns, directory.path(), "server", |command| {
            command
                .args(["server", "--disable-agent", "--node-ip", "127.0.0.1"])
                .args(["--metrics-bind-address", "127.0.0.1:0", "--kubeconfig-out"]);
            command.arg(&kubeconfig);
        })?;
        netns.run(|| svcnet_e2e::until("the API answers", || connect(API_PORT).ok()))?;
        self.server_idle.push(settled(&server)?);
        let proxy = || {
            start(&netns, directory.path(), "proxy", |command| {
                command.arg("proxy").arg("--kubeconfig").arg(&kubeconfig);
            })
        };
        let idle = proxy()?;
        netns.run(|| wait_for_services(0))?;
        self.proxy_idle.push(settled(&idle)?);
        drop(idle);
        netns.run(|| fill(&kubeconfig, services))??;
        let loaded = proxy()?;
        netns.run(|| wait_for_services(services))?;
        self.proxy.push(settled(&loaded)?);
        self.proxy_peak.push(peak_mb(loaded.0.id())?);
        self.server.push(resident_mb(server.0.id())?);
        Ok(())
    }
}

fn start(
    netns: &OwnedNetNs,
    directory: &Path,
    name: &str,
    arguments: impl FnOnce(&mut Command),
) -> Result<Process> {
    let mut command = Command::new(svcnet_e2e::binary());
    arguments(&mut command);
    for (flag, place) in [("--data-dir", "data"), ("--run-dir", "run")] {
        command.arg(flag).arg(directory.join(format!("{name}-{place}")));
    }
    command.args(["--node-name", "b1"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // A child is born into the namespace of the thread that makes it.
    let child = netns.run(|| command.spawn())?;
    Ok(Process(child.with_context(|| format!("start {command:?}"))?))
}

fn settled(process: &Process) -> Result<f64> {
    std::thread::sleep(SETTLE);
    resident_mb(process.0.id())
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
}

/// Until the proxy has as many Services in force.
fn wait_for_services(services: u32) {
    let in_force = || -> Option<()> {
        let mut stream = connect(PROXY_METRICS).ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("svcnet_proxy_services "))?;
        (line.trim().parse::<f64>().ok()? >= f64::from(services)).then_some(())
    };
    svcnet_e2e::until("the proxy has all Services in force", in_force);
}

/// Creates the Services and their slices, as a client of the API.
fn fill(kubeconfig: &Path, services: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = svcnet_runtime::connect::client(kubeconfig).await?;
        let (of_services, of_slices): (Api<Service>, Api<EndpointSlice>) = (
            Api::namespaced(client.clone(), "default"),
            Api::namespaced(client.clone(), "default"),
        );
        let parameters = PostParams::default();
        futures::stream::iter(0..services)
            .map(async |n| -> Result<()> {
                let (service, slice) = (synthetic::service(n)?, synthetic::slice(n, synthetic::ENDPOINTS)?);
                of_services.create(&parameters, &service).await?;
                of_slices.create(&parameters, &slice).await?;
                Ok(())
            })
            .buffer_unordered(WRITERS)
            .try_collect::<Vec<()>>()
            .await?;
        mirrored(client, services).await
    })
}

/// Waits until the controllers have written an IPAddress for each of so many Services: they are part of what a server holds.
async fn mirrored(client: kube::Client, services: u32) -> Result<()> {
    let addresses: Api<IPAddress> = Api::all(client);
    let deadline = Instant::now() + MIRRORED_MAX;
    while addresses.list_metadata(&ListParams::default()).await?.items.len() < services as usize {
        ensure!(Instant::now() < deadline, "the addresses are not mirrored");
        tokio::time::sleep(SETTLE).await;
    }
    Ok(())
}
