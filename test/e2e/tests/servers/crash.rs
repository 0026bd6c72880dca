//! A server is killed while Services are made, or the etcd below it: what it had acknowledged is there, revisions do not go back,
//! and no address and no port belongs to two Services.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;

use crate::etcd::{Etcd, SOON};
use crate::load::{Load, Told};
use crate::process::Server;
use crate::shared::until;

/// Kills the server in each round, or, where there is an etcd, the two in turn.
async fn survives(mut server: Server, mut etcd: Option<Etcd>, kills: usize) {
    let mut client = server.start().await;
    let told = Arc::new(Told::default());
    let mut last = 0;
    for round in 0..kills {
        let load = Load::begin(&client, &told, &format!("r{round}"));
        // Somewhere in the middle of writing: after another number of answers each time.
        let (begun, wanted) = (told.acknowledged.load(Ordering::Relaxed), 20 + round * 37 % 60);
        let deadline = Instant::now() + SOON;
        while told.acknowledged.load(Ordering::Relaxed) < begun + wanted {
            assert!(Instant::now() < deadline, "no answers: {}", server.log());
            tokio::time::sleep(std::time::Duration::from_micros(500)).await;
        }
        match &mut etcd {
            Some(etcd) if round % 2 == 1 => {
                etcd.kill();
                load.end().await;
                etcd.restart().await;
                let services: Api<Service> = Api::namespaced(client.clone(), "default");
                until("the server is back at etcd", async || {
                    services.list(&ListParams::default().limit(1)).await.is_ok()
                })
                .await;
            }
            _ => {
                server.kill();
                load.end().await;
                client = server.start().await;
            }
        }
        let revision = told.holds(&client).await;
        assert!(revision > last, "round {round}: revisions go back");
        last = revision;
        if round % 20 == 19 {
            told.clear(&client).await;
        }
    }
}

/// `test/soak` sets `SVCNET_STORE_KILLS` to 200.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_loses_nothing_and_gives_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    survives(Server::new(dir.path(), "one", &[]), None, kills(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_on_etcd_or_its_etcd_loses_nothing() {
    let etcd = Etcd::start().await;
    let args = Server::on(&etcd, "a-secret-of-our-own");
    let server = Server::new(&etcd.file("one"), "one", &args);
    survives(server, Some(etcd), kills(6)).await;
}

fn kills(usual: usize) -> usize {
    std::env::var("SVCNET_STORE_KILLS")
        .ok()
        .map_or(usual, |count| count.parse().unwrap())
}
