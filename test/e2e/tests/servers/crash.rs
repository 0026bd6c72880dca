//! A server on its own store is killed while Services are made: what it had acknowledged is there, revisions do not go back,
//! and no address and no port belongs to two Services.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::etcd::SOON;
use crate::load::{Load, Told};
use crate::process::Server;

async fn survives(kills: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::new(dir.path(), "one", &[]);
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
        server.kill();
        load.end().await;
        client = server.start().await;
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
    let kills = std::env::var("SVCNET_STORE_KILLS")
        .ok()
        .map_or(10, |count| count.parse().unwrap());
    survives(kills).await;
}
