//! The loop that every controller runs in: take in what changed, mark keys, and for each marked key plan and apply.
//!
//! One task owns the controller's state, so there are no locks. Applying runs beside it, several keys at a time; what
//! was written is taken in as soon as the server has answered, without waiting for the watch to tell.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::time::Duration;

use futures::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt};
use svcnet_runtime::Change;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;

/// Keys whose plans are carried out at the same time.
const PARALLEL: usize = 16;
/// Changes taken in before the loop looks at its queue again.
const BURST: usize = 256;

/// Marks keys to be looked at.
pub(crate) type Mark<'a, K> = &'a mut dyn FnMut(K);
/// What carrying out a plan has brought: what was written, and the failure that ended it early.
pub(crate) type Applied<O> = (O, Result<(), kube::Error>);
/// A plan on its way.
pub(crate) type Applying<O> = Pin<Box<dyn Future<Output = Applied<O>> + Send>>;

pub(crate) trait Controller: Send + 'static {
    /// What plans are made for.
    type Key: Clone + Debug + Display + Eq + Ord + Hash + Send;
    /// What the controller hears of.
    type Event: Send;
    /// What is to be done. Empty plans are not made.
    type Plan: Display + Send;
    /// What was done.
    type Outcome: Send;

    /// For logs and metrics.
    const NAME: &'static str;
    /// How often [`tick`](Self::tick) is called.
    const PERIOD: Duration;

    /// Takes in a change.
    fn observe(&mut self, event: Self::Event, mark: Mark<'_, Self::Key>);
    /// Whether every kind has been listed, so that what is not there is known not to exist.
    fn is_synced(&self) -> bool;
    /// What is to be done for a key, or nothing.
    fn plan(&mut self, key: &Self::Key) -> Option<Self::Plan>;
    /// Carries out a plan.
    fn apply(&self, plan: Self::Plan) -> Applying<Self::Outcome>;
    /// Takes in what was written.
    fn applied(&mut self, key: &Self::Key, outcome: Self::Outcome, mark: Mark<'_, Self::Key>);
    /// Time has passed.
    fn tick(&mut self, _now: Instant, _mark: Mark<'_, Self::Key>) {}
}

/// The changes of one kind, as events of a controller.
pub(crate) fn source<K: Send + Sync + 'static, E: Send + 'static>(
    mut changes: mpsc::Receiver<Change<K>>,
    event: impl Fn(Change<K>) -> E + Send + 'static,
) -> BoxStream<'static, E> {
    let stream = futures::stream::poll_fn(move |context| changes.poll_recv(context));
    stream.map(event).boxed()
}

/// Runs until shutdown. Says `synced` once, when all kinds have been listed.
pub(crate) async fn run<C: Controller>(
    mut controller: C,
    sources: Vec<BoxStream<'static, C::Event>>,
    synced: mpsc::Sender<&'static str>,
    shutdown: CancellationToken,
) {
    let mut events: SelectAll<_> = sources.into_iter().collect();
    let mut work = Work {
        queue: Queue::default(),
        active: FuturesUnordered::new(),
    };
    let mut ticks = tokio::time::interval(C::PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        if controller.is_synced() {
            if !told {
                told = synced.send(C::NAME).await.is_ok();
            }
            work.start(&mut controller);
        }
        let due = work.queue.next_due();
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = events.next() => {
                let queue = &mut work.queue;
                controller.observe(event, &mut |key| queue.add(key));
                for _ in 0..BURST {
                    let Some(Some(event)) = futures::FutureExt::now_or_never(events.next()) else { break };
                    controller.observe(event, &mut |key| queue.add(key));
                }
            }
            Some((key, applied)) = work.active.next() => work.finish(&mut controller, key, applied),
            () = sleep_until(due) => {}
            now = ticks.tick() => {
                let queue = &mut work.queue;
                controller.tick(now, &mut |key| queue.add(key));
            }
        }
    }
}

struct Work<C: Controller> {
    queue: Queue<C::Key>,
    active: FuturesUnordered<Pin<Box<dyn Future<Output = Done<C>> + Send>>>,
}

/// A key whose plan has been carried out.
type Done<C> = (<C as Controller>::Key, Applied<<C as Controller>::Outcome>);

impl<C: Controller> Work<C> {
    fn start(&mut self, controller: &mut C) {
        while self.active.len() < PARALLEL
            && let Some(key) = self.queue.take(Instant::now())
        {
            let Some(plan) = controller.plan(&key) else {
                self.queue.done(key, false, Instant::now());
                continue;
            };
            tracing::debug!(controller = C::NAME, object = %key, plan = %plan, "applying");
            let applying = controller.apply(plan);
            self.active.push(Box::pin(async move { (key, applying.await) }));
        }
        metrics::gauge!("svcnet_controller_queue_depth", "controller" => C::NAME)
            .set(depth(self.queue.depth()));
    }

    fn finish(&mut self, controller: &mut C, key: C::Key, (outcome, result): Applied<C::Outcome>) {
        let queue = &mut self.queue;
        controller.applied(&key, outcome, &mut |key| queue.add(key));
        let failed = result.is_err();
        let verdict = if failed { "failed" } else { "applied" };
        metrics::counter!("svcnet_controller_reconciles_total", "controller" => C::NAME, "result" => verdict)
            .increment(1);
        if let Err(error) = result {
            // Somebody else's write came in between, or the server is away: the watch says so better.
            tracing::debug!(controller = C::NAME, object = %key, reason = %error, "not applied, trying again");
        }
        self.queue.done(key, failed, Instant::now());
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of far fewer than 2^52 things")]
fn depth(length: usize) -> f64 {
    length as f64
}
