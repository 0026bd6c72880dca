//! A cluster in churn: changes come at a steady rate, and each waits until it is in force. What comes during a commit
//! goes into the next one, as the proxy's worker does it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use svcnet_proxy::{Engine, Update};
use svcnet_runtime::Change;

use crate::change::stride;
use crate::synthetic;

/// The queue of the proxy's worker.
const QUEUE_LENGTH: usize = 4096;
/// How often the worker clears away what was left for packets on their way.
const TIDY: Duration = Duration::from_secs(1);

type Event = (Instant, Arc<EndpointSlice>);

/// How long each change waited, in seconds, and how many commits there were.
#[derive(Default)]
pub(crate) struct Steady {
    pub(crate) waits: Vec<f64>,
    pub(crate) commits: u32,
}

/// Changes at that rate to a proxy with so many Services.
pub(crate) fn churn(engine: &mut Engine, services: u32, rate: u32, seconds: u32) -> Result<Steady> {
    // Made before, for that is not the proxy's work. Each visit to a Service adds an endpoint or takes it away again.
    let events: Vec<Arc<EndpointSlice>> = (0..rate * seconds)
        .map(|n| synthetic::slice(stride(n, services), synthetic::ENDPOINTS + 1 - (n / services) % 2))
        .collect::<Result<_>>()?;
    let (sender, receiver) = sync_channel::<Event>(QUEUE_LENGTH);
    let source = std::thread::spawn(move || {
        let begun = Instant::now();
        let pause = Duration::from_secs(1) / rate;
        for (n, event) in (0u32..).zip(events) {
            let due = begun + pause * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send((due, event)).is_err() {
                return;
            }
        }
    });
    let measured = consume(engine, &receiver);
    drop(receiver);
    source.join().ok().context("the source of changes ended early")?;
    measured
}

fn consume(engine: &mut Engine, receiver: &Receiver<Event>) -> Result<Steady> {
    let mut steady = Steady::default();
    let mut tidied = Instant::now();
    loop {
        let left = TIDY.saturating_sub(tidied.elapsed());
        let first = match receiver.recv_timeout(left) {
            Ok(first) => first,
            Err(RecvTimeoutError::Disconnected) => return Ok(steady),
            Err(RecvTimeoutError::Timeout) => {
                tidied = Instant::now();
                engine.tidy()?;
                continue;
            }
        };
        let mut due = vec![first.0];
        engine.apply_change(Update::Slices(Change::Apply(first.1)));
        while let Ok((moment, event)) = receiver.try_recv() {
            due.push(moment);
            engine.apply_change(Update::Slices(Change::Apply(event)));
        }
        engine.sync()?;
        steady.commits += 1;
        steady
            .waits
            .extend(due.iter().map(|moment| moment.elapsed().as_secs_f64()));
    }
}
