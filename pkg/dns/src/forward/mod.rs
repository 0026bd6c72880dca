//! Names that are not the cluster's: asked of the upstreams, and kept for as long as the answers hold.
//!
//! Upstreams are asked in their order, as the node's own resolver does; one that does not answer is passed over
//! ([`upstream`]). Questions that are the same and asked at the same time are asked once. That spares the upstreams, and
//! it is what keeps a forwarding loop harmless until it is found: a question that comes back waits for itself, fails
//! after two seconds, and is not asked again for five.

mod cache;
mod chase;
mod exchange;
mod probe;
mod resolv_conf;
mod stored;
mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::stats;
use crate::wire::{Extended, Query};
pub(crate) use cache::Ask;
use cache::Cache;
pub(crate) use chase::write as write_chased;
use exchange::exchange;
pub(crate) use stored::Stored;
use upstream::{Upstream, Use};

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is none to ask.
    NoUpstream,
    /// Those that there are send their questions to us.
    Loop,
    /// None of those that there are works.
    AllDown,
    /// They were asked in vain.
    NoAnswer,
    /// Too many questions wait already.
    Busy,
}

impl Failure {
    /// For people.
    pub(crate) fn extended(self) -> Extended {
        let (code, text) = match self {
            Self::NoUpstream => (22, "no upstream resolver is configured"),
            Self::Loop => (22, "the upstream resolvers forward to this server"),
            Self::AllDown => (22, "no upstream resolver works at the moment"),
            Self::NoAnswer => (22, "no upstream resolver answered"),
            Self::Busy => (0, "too many questions wait for upstream resolvers"),
        };
        Extended { code, text }
    }
}

/// How long a question may take in all: clients give up after five seconds.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

type Outcome = Result<Arc<Stored>, Failure>;

/// Asks others. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarder(Arc<Inner>);

struct Inner {
    upstreams: ArcSwap<Vec<Arc<Upstream>>>,
    cache: Cache,
    waiting: Arc<Semaphore>,
    /// Questions that are being asked, for those who ask the same.
    asking: Mutex<HashMap<Ask, watch::Receiver<Option<Outcome>>>>,
    /// Wakes the prober.
    trouble: tokio::sync::Notify,
    fixed: Option<Vec<SocketAddr>>,
    resolv_conf: std::path::PathBuf,
    ours: Vec<SocketAddr>,
}

impl Forwarder {
    pub(crate) fn new(config: &Config) -> Self {
        let inner = Inner {
            upstreams: ArcSwap::default(),
            cache: Cache::new(),
            waiting: Arc::new(Semaphore::new(config.concurrent_max)),
            asking: Mutex::default(),
            trouble: tokio::sync::Notify::new(),
            fixed: config.upstreams.clone(),
            resolv_conf: config.resolv_conf.clone(),
            ours: config.listen(),
        };
        Self(Arc::new(inner))
    }

    /// An answer that still holds, from before.
    pub(crate) fn cached(&self, ask: &Ask, now: Instant) -> Option<Arc<Stored>> {
        self.0.cache.get(ask, now)
    }

    /// Room for a question that has to wait for an upstream.
    ///
    /// # Errors
    /// When it need not wait at all, since there is nobody to wait for, or may not.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let upstreams = self.0.upstreams.load();
        if upstreams.is_empty() {
            return Err(Failure::NoUpstream);
        }
        if upstreams.iter().all(|upstream| upstream.is_looping()) {
            return Err(Failure::Loop);
        }
        self.0.waiting.clone().try_acquire_owned().map_err(|_| {
            stats::rejected();
            Failure::Busy
        })
    }

    /// Whether a question is the probe of one of our upstreams, or of somebody like us: it is never forwarded.
    pub(crate) fn is_loop_probe(&self, query: &Query<'_>) -> bool {
        if !upstream::is_loop_probe(query.name()) {
            return false;
        }
        for upstream in self
            .0
            .upstreams
            .load()
            .iter()
            .filter(|upstream| upstream.is_probe(query.name()))
        {
            if upstream.found_looping() {
                tracing::warn!(
                    dst.addr = %upstream.address,
                    "this upstream resolver forwards to this server: left out until it no longer does; name others with --upstream-dns"
                );
            }
        }
        true
    }

    /// The answer of an upstream, or of the cache.
    pub(crate) async fn resolve(&self, ask: Ask) -> Outcome {
        if let Some(stored) = self.cached(&ask, Instant::now()) {
            return Ok(stored);
        }
        let mut outcome = self.join(ask);
        let done = outcome.wait_for(Option::is_some).await;
        done.ok()
            .and_then(|value| value.clone())
            .unwrap_or(Err(Failure::NoAnswer))
    }

    /// Joins those who wait for the same, or starts asking. The asking is a task of its own: it outlives a client that
    /// hangs up, since others may wait too.
    fn join(&self, ask: Ask) -> watch::Receiver<Option<Outcome>> {
        let mut asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = asking.get(&ask) {
            return receiver.clone();
        }
        let (sender, receiver) = watch::channel(None);
        asking.insert(ask.clone(), receiver.clone());
        let this = self.clone();
        tokio::spawn(async move {
            let outcome = this.ask_upstreams(&ask).await;
            if let Ok(stored) = &outcome {
                this.0.cache.put(ask.clone(), stored.clone(), Instant::now());
            }
            this.0
                .asking
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&ask);
            _ = sender.send(Some(outcome));
        });
        receiver
    }

    /// Asks one upstream after the other, until one has an answer that is not a failure of its own.
    async fn ask_upstreams(&self, ask: &Ask) -> Outcome {
        let upstreams = self.0.upstreams.load_full();
        let usable = |upstream: &&Arc<Upstream>| !upstream.is_looping();
        let desperate = upstreams.iter().filter(usable).all(|upstream| upstream.is_down());
        let mut last = Err(if upstreams.is_empty() {
            Failure::NoUpstream
        } else {
            Failure::AllDown
        });
        let begun = Instant::now();
        for upstream in upstreams
            .iter()
            .take_while(|_| begun.elapsed() < QUESTION_TIMEOUT)
        {
            let granted = upstream.is_usable(desperate);
            if matches!(granted, Use::Down | Use::Loops) {
                continue;
            }
            let result = self.ask_one(upstream, ask).await;
            if granted == Use::Trial {
                upstream.end_trial();
            }
            match result {
                Some(stored) if matches!(stored.facts().rcode, 0 | 3) => return Ok(stored),
                Some(stored) => last = Ok(stored),
                None if last.is_err() => last = Err(Failure::NoAnswer),
                None => {}
            }
        }
        if matches!(last, Err(Failure::AllDown)) {
            stats::all_down();
        }
        last
    }

    async fn ask_one(&self, upstream: &Upstream, ask: &Ask) -> Option<Arc<Stored>> {
        let answer = exchange(upstream.address, ask).await;
        let answer = answer
            .and_then(|bytes| Stored::new(bytes, Instant::now()).ok_or(exchange::ExchangeError::Malformed));
        match answer {
            Ok(stored) => {
                stats::forwarded(upstream.address, stored.rcode().as_str());
                self.answered(upstream);
                Some(Arc::new(stored))
            }
            Err(error) => {
                stats::forwarded(upstream.address, error.as_str());
                tracing::debug!(dst.addr = %upstream.address, %error, "an upstream resolver gave no answer");
                if upstream.failed() {
                    tracing::warn!(
                        dst.addr = %upstream.address, %error,
                        "an upstream resolver does not answer: left out until it does"
                    );
                    self.0.trouble.notify_one();
                }
                None
            }
        }
    }

    fn answered(&self, upstream: &Upstream) {
        if upstream.succeeded() {
            tracing::info!(dst.addr = %upstream.address, "an upstream resolver answers again");
        }
    }
}
