//! The API server's store: durable writes against etcd's own on the same disk, a large list, and one change to many watchers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use serde_json::json;
use svcnet_runtime::connect;
use svcnet_store::SharedValues;
use tokio::task::JoinSet;

use crate::etcd::Etcd;
use crate::memory::{peak_mb, resident_mb};
use crate::stats::{Spread, ratios, row};
use crate::synthetic;

/// Clients that write at the same time, each over a connection of its own.
const CLIENTS: usize = 16;
/// Creates under way while Services are put in.
const WRITERS: usize = 32;
/// What an object holds beside its metadata.
const PAYLOAD: usize = 256;
/// How long a process is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// How much of it.
pub(crate) struct Plan {
    pub(crate) runs: usize,
    pub(crate) seconds: u64,
    pub(crate) services: u32,
    pub(crate) watchers: usize,
}

pub(crate) fn measure(plan: &Plan) -> Result<()> {
    // Both on the disk that is built on, whatever /tmp is.
    let place = std::env::current_dir()?.join("target");
    std::fs::create_dir_all(&place)?;
    _ = tempfile::env::override_temp_dir(&place);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        writes(plan).await?;
        large_list(plan).await?;
        fan_out(plan).await
    })
}

/// `svcnet apiserver` in a directory of its own.
struct Server {
    child: Child,
    kubeconfig: PathBuf,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Server {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let kubeconfig = directory.path().join("kubeconfig.yaml");
        let child = Command::new(svcnet_e2e::binary())
            .args([
                "apiserver",
                "--node-name",
                "b1",
                "--node-ip",
                "127.0.0.1",
                "--bind-address",
                "127.0.0.1",
            ])
            .args([
                "--secure-port",
                &port.to_string(),
                "--max-requests-inflight",
                "10000",
            ])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .arg("--run-dir")
            .arg(directory.path().join("run"))
            .arg("--kubeconfig-out")
            .arg(&kubeconfig)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start svcnet apiserver")?;
        let server = Self {
            child,
            kubeconfig,
            _directory: directory,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(client) = server.client().await
                && client.apiserver_version().await.is_ok()
            {
                return Ok(server);
            }
            ensure!(Instant::now() < deadline, "svcnet apiserver does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn client(&self) -> Result<kube::Client> {
        Ok(connect::client(&self.kubeconfig).await?)
    }

    fn resident_mb(&self) -> Result<f64> {
        resident_mb(self.child.id())
    }
}

/// A client that writes. Both send bytes and read the answer's, so that it is servers that are measured.
enum Writer {
    Ours(kube::Client),
    Etcd(SharedValues, String),
}

impl Writer {
    async fn write(&self, name: &str) -> Result<()> {
        match self {
            Self::Ours(client) => {
                let map = json!({"metadata": {"name": name}, "data": {"x": "x".repeat(PAYLOAD)}});
                let request = http::Request::post("/api/v1/namespaces/default/configmaps")
                    .header("content-type", "application/json")
                    .body(Body::from(map.to_string().into_bytes()))?;
                let answer = client.send(request).await?;
                ensure!(answer.status() == 201, "{}", answer.status());
                answer.into_body().collect().await?;
            }
            Self::Etcd(values, value) => values.set(name, value.clone().into()).await?,
        }
        Ok(())
    }
}

/// Writes per second of clients that each have one under way.
async fn rate(seconds: u64, writers: Vec<Writer>) -> Result<f64> {
    let mut tasks = JoinSet::new();
    for (index, writer) in writers.iter().enumerate() {
        // Its connection is there before it is measured.
        writer.write(&format!("c{index}")).await?;
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs(seconds);
    for (index, writer) in writers.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut done = 0_u32;
            while Instant::now() < until {
                writer.write(&format!("c{index}-{done}")).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut all = 0;
    while let Some(done) = tasks.join_next().await {
        all += done??;
    }
    Ok(f64::from(all) / begun.elapsed().as_secs_f64())
}

async fn writes(plan: &Plan) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let value = "x".repeat(stored_len()?);
    for _ in 0..plan.runs {
        let server = Server::start().await?;
        let mut writers = Vec::new();
        for _ in 0..CLIENTS {
            writers.push(Writer::Ours(server.client().await?));
        }
        ours.push(rate(plan.seconds, writers).await?);
        drop(server);
        let etcd = Etcd::start().await;
        let mut writers = Vec::new();
        for _ in 0..CLIENTS {
            writers.push(Writer::Etcd(
                SharedValues::new(&etcd.config("/bench"))?,
                value.clone(),
            ));
        }
        theirs.push(rate(plan.seconds, writers).await?);
    }
    row(
        &format!(
            "creates per second, durable when answered, {CLIENTS} clients; puts of etcd 3.4 of the same size, same disk"
        ),
        &Spread::new(&ours, 0).to_string(),
        &Spread::new(&theirs, 0).to_string(),
        &format!("{} (bar 1.0)", Spread::new(&ratios(&ours, &theirs), 2)),
    );
    Ok(())
}

/// About how long such a ConfigMap is as it is stored.
fn stored_len() -> Result<usize> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "x".repeat(PAYLOAD)},
        "metadata": {
            "name": "c10-1000", "namespace": "default", "resourceVersion": "1000000",
            "uid": "00000000-0000-4000-8000-000000000000", "creationTimestamp": "2026-01-01T00:00:00Z",
        },
    });
    Ok(serde_json::to_string(&object)?.len())
}

async fn large_list(plan: &Plan) -> Result<()> {
    let server = Server::start().await?;
    let client = server.client().await?;
    fill(&client, plan.services).await?;
    tokio::time::sleep(SETTLE).await;
    let before = server.resident_mb()?;
    let (mut seconds, mut bytes) = (Vec::new(), 0);
    for _ in 0..plan.runs {
        let begun = Instant::now();
        bytes = drain(&client, "/api/v1/services").await?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let most = peak_mb(server.child.id())?;
    row(
        &format!(
            "listing {} Services: time; bytes; memory of the server before, and the most it ever was",
            plan.services
        ),
        &format!(
            "{}; {} MB; {before:.0} MB, {most:.0} MB",
            Spread::s(&seconds),
            bytes / 1_000_000
        ),
        "",
        "",
    );
    Ok(())
}

async fn fill(client: &kube::Client, services: u32) -> Result<()> {
    let of_services: Api<Service> = Api::namespaced(client.clone(), "default");
    futures::stream::iter(0..services)
        .map(async |n| -> Result<()> {
            of_services
                .create(&PostParams::default(), &synthetic::service(n)?)
                .await?;
            Ok(())
        })
        .buffer_unordered(WRITERS)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

async fn drain(client: &kube::Client, path: &str) -> Result<usize> {
    let answer = client.send(http::Request::get(path).body(Body::empty())?).await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    let mut body = answer.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(bytes)
}

async fn fan_out(plan: &Plan) -> Result<()> {
    let server = Server::start().await?;
    let client = server.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    tokio::time::sleep(SETTLE).await;
    let before = server.resident_mb()?;
    let listed = maps.list(&ListParams::default()).await?;
    let revision = listed
        .metadata
        .resource_version
        .context("a list has a revision")?;
    let (seen, mut all) = tokio::sync::mpsc::channel(plan.watchers);
    for _ in 0..plan.watchers {
        let path = format!("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={revision}");
        let answer = client.send(http::Request::get(path).body(Body::empty())?).await?;
        ensure!(answer.status().is_success(), "a watch: {}", answer.status());
        let (mut body, seen) = (answer.into_body(), seen.clone());
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                let len = frame.data_ref().map_or(0, bytes::Bytes::len);
                if seen.send((Instant::now(), len)).await.is_err() {
                    return;
                }
            }
        });
    }
    tokio::time::sleep(SETTLE).await;
    let with = server.resident_mb()?;
    let (mut seconds, mut sent) = (Vec::new(), 0);
    for run in 0..plan.runs {
        let map = json!({"metadata": {"name": format!("m{run}")}, "data": {"x": "x".repeat(PAYLOAD)}});
        let begun = Instant::now();
        maps.create(&PostParams::default(), &serde_json::from_value(map)?)
            .await?;
        let mut last = begun;
        sent = 0;
        for _ in 0..plan.watchers {
            let (at, bytes) = all.recv().await.context("a watch has ended")?;
            last = last.max(at);
            sent += bytes;
        }
        seconds.push((last - begun).as_secs_f64());
    }
    let after = server.resident_mb()?;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let each = (with - before) * 1024.0 / plan.watchers as f64;
    row(
        &format!(
            "one create to all of {} watchers, from asking for it; bytes; memory for a watcher, with its TLS connection",
            plan.watchers
        ),
        &format!(
            "{}; {} kB; {each:.0} kB ({before:.0} MB without, {with:.0} MB with, {after:.0} MB afterwards)",
            Spread::ms(&seconds),
            sent / 1000
        ),
        "",
        "",
    );
    Ok(())
}
