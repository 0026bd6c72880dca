//! A server of two dies, or its host's address changes, in a network namespace with addresses of its own: agents go on at the
//! other one, and the Service `kubernetes` leads to the living, where they are.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;
use svcnet_netlink::netns::OwnedNetNs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::etcd::Etcd;
use crate::process::Server;
use crate::shared::until;

const NETWORK: [u8; 3] = [172, 31, 77];

fn address(host: u8) -> String {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, host).to_string()
}

/// An agent without what needs more than one host, or a server's own agent would take for itself.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path, name: &str, servers: &str, token: &str) -> Self {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new(svcnet_e2e::binary())
            .args(["agent", "--node-name", name, "--node-ip", &address(9)])
            .args(["--server", servers, "--token", token])
            .args(["--disable", "overlay,policy,cni,dns,announcer"])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--run-dir")
            .arg(dir.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// How many Services its proxy has in force, once it says so.
    async fn services() -> Option<u32> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10_249)).await.ok()?;
        let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(ask).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("svcnet_proxy_services "))?;
        line.trim().parse().ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The addresses behind the Service `kubernetes`, as its Endpoints and its EndpointSlice agree on them.
async fn behind_kubernetes(client: &kube::Client) -> Option<BTreeSet<String>> {
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let (endpoints, slice) = (
        endpoints.get("kubernetes").await.ok()?,
        slices.get("kubernetes").await.ok()?,
    );
    let subsets = endpoints.subsets.unwrap_or_default().into_iter();
    let classic: BTreeSet<String> = subsets
        .flat_map(|s| s.addresses.unwrap_or_default())
        .map(|a| a.ip)
        .collect();
    let slice = slice.endpoints.unwrap_or_default().into_iter();
    let slice: BTreeSet<String> = slice.flat_map(|e| e.addresses).collect();
    (classic == slice).then_some(slice)
}

async fn service(client: &kube::Client, name: &str) {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    services
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap();
}

async fn renewed(client: &kube::Client, node: &str) -> Option<jiff::Timestamp> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    Some(leases.get(node).await.ok()?.spec?.renew_time?.0)
}

/// One that is told its address.
fn server(etcd: &Etcd, name: &str, host: u8) -> Server {
    let own = address(host);
    let args = arguments(etcd, &["--node-ip", &own, "--bind-address", &own]);
    Server::new(&etcd.file(name), name, &args)
}

/// With one port, as servers have in earnest: an EndpointSlice has the same for all of its addresses.
fn arguments(etcd: &Etcd, further: &[&str]) -> Vec<String> {
    let mut args = Server::on(etcd, "a-secret-of-our-own");
    args.extend(
        ["--secure-port", "6443"]
            .iter()
            .chain(further)
            .map(ToString::to_string),
    );
    args
}

/// Waits until the Service leads to these addresses and no others.
async fn until_behind(what: &str, client: &kube::Client, wanted: &[&String]) {
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    until(what, async || {
        behind_kubernetes(client).await.as_ref() == Some(&wanted)
    })
    .await;
}

async fn dies() {
    let etcd = Etcd::start().await;
    let (mut one, mut two) = (server(&etcd, "one", 1), server(&etcd, "two", 2));
    one.start().await;
    let client = two.start().await;
    let (first, second) = (address(1), address(2));
    until_behind("kubernetes leads to both servers", &client, &[&first, &second]).await;

    let (dir, both) = (
        etcd.file("agents"),
        format!("https://{first}:6443,https://{second}:6443"),
    );
    let agent = Agent::start(&dir, "n9", &both, &one.token());
    until("the agent's node is there", async || {
        renewed(&client, "n9").await.is_some()
    })
    .await;
    service(&client, "before").await;
    let mut known = 0;
    until("the agent has Services in force", async || {
        known = Agent::services().await.unwrap_or_default();
        // `kubernetes`, `kube-dns` and this one.
        known == 3
    })
    .await;

    one.kill();
    let at = renewed(&client, "n9").await;
    service(&client, "after").await;
    until("the agent hears of Services at the other server", async || {
        Agent::services().await == Some(known + 1)
    })
    .await;
    until("its Lease is renewed at the other server", async || {
        renewed(&client, "n9").await > at
    })
    .await;
    // Another one joins while the server that is named first is away.
    drop(agent);
    let _agent = Agent::start(&dir, "n10", &both, &two.token());
    let nodes: Api<Node> = Api::all(client.clone());
    until("a node joins at the other server", async || {
        nodes.get("n10").await.is_ok()
    })
    .await;
    until_behind("kubernetes leads to the living alone", &client, &[&second]).await;
    one.start().await;
    until_behind("kubernetes leads to both again", &client, &[&first, &second]).await;
}

/// What `ip` does in the namespace of this thread.
fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

async fn moves() {
    let (first, second, elsewhere) = (address(1), address(2), address(22));
    ip("link add e0 type veth peer name e1");
    ip("link set e1 up");
    ip("link set e0 up");
    ip(&format!("address add {second}/24 dev e0"));
    let etcd = Etcd::start().await;
    let mut one = server(&etcd, "one", 1);
    let client = one.start().await;
    // Where it listens is not told of, where it is reached is.
    let args = arguments(&etcd, &["--bind-address", &format!("127.0.0.1,{second}")]);
    let mut two = Server::new(&etcd.file("two"), "two", &args).finding_its_address();
    two.start().await;
    until_behind("kubernetes leads to both servers", &client, &[&first, &second]).await;

    ip(&format!("address add {elsewhere}/32 dev e0"));
    ip(&format!("address del {second}/24 dev e0"));
    until_behind(
        "kubernetes leads to where the server is now",
        &client,
        &[&first, &elsewhere],
    )
    .await;
    two.kill();
    until_behind("it is forgotten there too", &client, &[&first]).await;
}

/// All of it on one thread, which is in a namespace with these addresses, and so is what it starts.
fn within(hosts: &[u8], test: impl AsyncFnOnce() + Send) {
    let netns = OwnedNetNs::unique("servers").unwrap();
    let mut rtnl = Rtnl::open_in(&netns).unwrap();
    rtnl.set_loopback_up().unwrap();
    for host in hosts {
        let net = format!("{}/32", address(*host)).parse().unwrap();
        rtnl.replace_address(Address { link: 1, net }).unwrap();
    }
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    netns.run(inside).unwrap();
}

#[test]
fn agents_go_on_at_another_server_and_kubernetes_leads_to_the_living() {
    within(&[1, 2, 9], dies);
}

#[test]
fn kubernetes_leads_to_where_a_server_is_when_its_address_changes() {
    within(&[1], moves);
}
