//! Watching over the upstreams: which there are, which are back, and which forward to us.

use std::sync::Arc;
use std::time::Duration;

use svcnet_runtime::backoff::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::Ask;
use super::exchange::exchange;
use super::upstream::Upstream;
use super::{Forwarder, resolv_conf};
use crate::stats;
use crate::wire::RecordType;

/// How soon a failed upstream is probed.
const PROBE_FIRST: Duration = Duration::from_millis(500);
/// How often one is probed that stays away. Questions try it as well while there is no better one.
const PROBE_MOST: Duration = Duration::from_secs(4);
/// How often `resolv.conf` is looked at.
const REREAD_INTERVAL: Duration = Duration::from_secs(5);
/// How often an upstream is tried that forwarded to us.
const LOOP_INTERVAL: Duration = Duration::from_secs(30);
const CLASS_IN: u16 = 1;

impl Forwarder {
    /// Keeps the list of upstreams and what is known of them current, until shutdown.
    pub(crate) async fn watch_over(&self, shutdown: CancellationToken) {
        let mut read = Read::default();
        self.load(&mut read);
        let mut reread = tokio::time::interval(REREAD_INTERVAL);
        let mut loops = tokio::time::interval(LOOP_INTERVAL);
        loops.tick().await;
        let mut probing = Backoff::new(PROBE_FIRST, PROBE_MOST);
        let mut probe_at = Instant::now();
        loop {
            let down = self.0.upstreams.load().iter().any(|upstream| upstream.is_down());
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = reread.tick() => self.load(&mut read),
                _ = loops.tick() => self.each(|upstream| upstream.is_looping(), Self::probe_loop),
                () = self.0.trouble.notified() => {
                    self.each(|upstream| upstream.is_down(), Self::probe_loop);
                    probing.reset();
                    probe_at = Instant::now() + probing.next_delay();
                }
                () = tokio::time::sleep_until(probe_at), if down => {
                    probe_at = Instant::now() + probing.next_delay();
                    self.each(|upstream| upstream.is_down() && !upstream.is_looping(), Self::probe_health);
                }
            }
            metrics::gauge!("coredns_cache_entries").set(self.0.cache.len() as f64);
        }
    }

    /// Takes over the upstreams as they are configured now.
    fn load(&self, read: &mut Read) {
        let wanted = match &self.0.fixed {
            Some(fixed) => fixed.clone(),
            None => match std::fs::read_to_string(&self.0.resolv_conf) {
                Ok(text) => resolv_conf::upstreams(&text, &self.0.ours),
                // Being rewritten, perhaps: what was last read stands.
                Err(error) => {
                    if read.failure.replace(error.kind()) != Some(error.kind()) {
                        let path = self.0.resolv_conf.display();
                        tracing::warn!(%path, %error, "cannot read the node's resolvers");
                    }
                    if read.done {
                        return;
                    }
                    Vec::new()
                }
            },
        };
        let held = self.0.upstreams.load_full();
        let same = held
            .iter()
            .map(|upstream| upstream.address)
            .eq(wanted.iter().copied());
        if read.done && same {
            return;
        }
        read.done = true;
        let keep = |address| held.iter().find(|upstream| upstream.address == address).cloned();
        let list: Vec<Arc<Upstream>> = wanted
            .into_iter()
            .map(|address| keep(address).unwrap_or_else(|| Arc::new(Upstream::new(address))))
            .collect();
        if list.is_empty() {
            tracing::warn!(
                "there is no upstream resolver: names outside the cluster fail; name some in resolv.conf or with --upstream-dns"
            );
        } else {
            let upstreams: Vec<String> = list.iter().map(|upstream| upstream.address.to_string()).collect();
            tracing::info!(
                upstreams = upstreams.join(","),
                "names outside the cluster are asked of upstream resolvers"
            );
        }
        self.0.upstreams.store(Arc::new(list));
        self.each(|_| true, Self::probe_loop);
    }

    /// Starts a probe of every upstream that is meant.
    fn each<F>(&self, meant: impl Fn(&Upstream) -> bool, probe: impl Fn(Self, Arc<Upstream>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for upstream in self.0.upstreams.load().iter().filter(|upstream| meant(upstream)) {
            tokio::spawn(probe(self.clone(), upstream.clone()));
        }
    }

    /// Any answer will do: the upstream is there.
    async fn probe_health(self, upstream: Arc<Upstream>) {
        let ask = Ask::about(&[0], RecordType::NS.0, CLASS_IN, 0);
        match exchange(upstream.address, &ask).await {
            Ok(_) => self.answered(&upstream),
            Err(_) => stats::probe_failed(upstream.address),
        }
    }

    /// Asks for a name that only we would recognise. If it comes in here, the server has marked the upstream meanwhile.
    async fn probe_loop(self, upstream: Arc<Upstream>) {
        let before = upstream.forget_loop();
        let ask = Ask::about(upstream.probe_name().wire(), RecordType::HINFO.0, CLASS_IN, 0);
        let answer = exchange(upstream.address, &ask).await;
        if before && answer.is_ok() && !upstream.is_looping() {
            tracing::info!(dst.addr = %upstream.address, "an upstream resolver no longer forwards to this server");
        } else if before && answer.is_err() {
            // Not heard of: no proof that the loop is gone.
            upstream.found_looping();
        }
    }
}

/// What reading `resolv.conf` has come to so far.
#[derive(Default)]
struct Read {
    done: bool,
    failure: Option<std::io::ErrorKind>,
}
