//! Of several servers, one runs the controllers: who holds a Lease, by the rules of client-go's leader election
//! (`tools/leaderelection`). A holder renews; others wait until it has not for as long as the Lease says, by their own
//! clocks; whoever cannot renew in time stops before others may begin.
//!
//! With one server too: `svcnet controller` may run beside it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use svcnet_runtime::{Component, Context};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::controllers::{Controllers, Error};
use crate::recorder::{Notice, Recorder, Severity};

/// The Lease, in `kube-system`.
pub const LEASE: &str = "svcnet-controller";
const NAMESPACE: &str = "kube-system";
/// What Events name as their source.
const COMPONENT: &str = "svcnet-controller";

/// Timing; the defaults are those of kube-controller-manager (`--leader-elect-…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait for a holder that does not renew. Whole seconds, as a Lease has them.
    pub lease: Duration,
    /// How long a holder goes on that cannot renew. Shorter than `lease`.
    pub renew: Duration,
    /// How long between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Runs controllers whenever this process holds the Lease, until shutdown.
///
/// # Errors
/// When the controllers cannot run, or break. A server that is away is no error.
pub async fn lead(config: Config, context: &Context, timing: Timing) -> Result<(), Error> {
    let identity = format!("{}_{:016x}", context.node_name, rand::random::<u64>());
    let mut candidate = Candidate::new(context, identity, timing);
    let health = context.health.component("controller");
    let mut term = Term::new(&config, context)?;
    loop {
        let acquired = context
            .shutdown
            .run_until_cancelled(candidate.acquire(&health))
            .await;
        if acquired.is_none() {
            return Ok(());
        }
        candidate.tell("became leader");
        let mut running = Box::pin(term.controllers.run());
        let ended = tokio::select! {
            ended = &mut running => Some(ended),
            () = candidate.keep() => None,
            () = context.shutdown.cancelled() => None,
        };
        term.stop.cancel();
        if let Some(ended) = ended {
            return ended;
        }
        running.await?;
        if context.shutdown.is_cancelled() {
            candidate.release().await;
            return Ok(());
        }
        tracing::warn!(
            holder = candidate.identity,
            "the Lease of the controllers is lost; waiting for it"
        );
        candidate.tell("stopped leading");
        term = Term::new(&config, context)?;
    }
}

/// Controllers for as long as the Lease is held.
struct Term {
    controllers: Controllers,
    stop: CancellationToken,
}

impl Term {
    fn new(config: &Config, context: &Context) -> Result<Self, Error> {
        let stop = context.shutdown.child_token();
        let context = Context {
            shutdown: stop.clone(),
            ..context.clone()
        };
        let controllers = Controllers::new(config.clone(), &context)?;
        Ok(Self { controllers, stop })
    }
}

/// What is known of the Lease.
#[derive(Debug, Clone, Default, PartialEq)]
struct Observed {
    lease: Option<Lease>,
    /// When it was seen to change: clocks of other hosts are not trusted.
    at: Option<Instant>,
}

impl Observed {
    fn see(&mut self, lease: Lease, now: Instant) {
        let spec = |lease: &Option<Lease>| lease.as_ref().and_then(|l| l.spec.clone());
        let seen = Some(lease);
        if self.at.is_none() || spec(&self.lease) != spec(&seen) {
            self.at = Some(now);
        }
        self.lease = seen;
    }

    fn holder(&self) -> &str {
        let spec = self.lease.as_ref().and_then(|l| l.spec.as_ref());
        spec.and_then(|s| s.holder_identity.as_deref())
            .unwrap_or_default()
    }

    /// Whether another one holds it, and may be alive.
    fn is_held_by_another(&self, identity: &str, now: Instant) -> bool {
        let spec = self.lease.as_ref().and_then(|l| l.spec.as_ref());
        let seconds = spec.and_then(|s| s.lease_duration_seconds).unwrap_or_default();
        let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let holder = self.holder();
        !holder.is_empty() && holder != identity && self.at.is_some_and(|at| now < at + lasts)
    }

    /// The Lease as it is to be.
    fn wanted(&self, identity: &str, timing: Timing, now: Timestamp) -> Lease {
        let before = self
            .lease
            .as_ref()
            .and_then(|l| l.spec.clone())
            .unwrap_or_default();
        let renews = self.holder() == identity;
        let transitions = before.lease_transitions.unwrap_or_default();
        let mut lease = self.lease.clone().unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_string()),
                namespace: Some(NAMESPACE.to_string()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(identity.to_string()),
            lease_duration_seconds: i32::try_from(timing.lease.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| renews).or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions + i32::from(self.lease.is_some() && !renews)),
            ..LeaseSpec::default()
        });
        lease
    }
}

/// Who wants the Lease.
struct Candidate {
    leases: Api<Lease>,
    identity: String,
    timing: Timing,
    observed: Observed,
    recorder: Recorder,
}

impl Candidate {
    fn new(context: &Context, identity: String, timing: Timing) -> Self {
        let (recorder, writer) = Recorder::new(context.client.clone(), COMPONENT);
        tokio::spawn(context.shutdown.clone().run_until_cancelled_owned(writer));
        Self {
            leases: Api::namespaced(context.client.clone(), NAMESPACE),
            identity,
            timing,
            observed: Observed::default(),
            recorder,
        }
    }

    /// Until the Lease is held.
    async fn acquire(&mut self, health: &Component) {
        let mut told = String::new();
        health.not_ready("waiting for the Lease of the controllers");
        loop {
            match self.try_to_hold().await {
                Ok(true) => {
                    tracing::info!(holder = self.identity, "this process runs the controllers");
                    return;
                }
                Ok(false) if self.observed.holder() != told => {
                    // Ready to take over is all that there is to be.
                    health.ready();
                    told = self.observed.holder().to_string();
                    tracing::info!(
                        holder = told,
                        "another process runs the controllers; waiting for its Lease"
                    );
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(reason = %error, "the Lease of the controllers cannot be taken yet")
                }
            }
            sleep(jittered(self.timing.retry)).await;
        }
    }

    /// Until it is lost.
    async fn keep(&mut self) {
        loop {
            let deadline = Instant::now() + self.timing.renew;
            loop {
                sleep(self.timing.retry).await;
                match timeout_at(deadline, self.try_to_hold()).await {
                    Ok(Ok(true)) => break,
                    Ok(Ok(false)) | Err(_) => return,
                    Ok(Err(_)) if Instant::now() >= deadline => return,
                    Ok(Err(error)) => {
                        tracing::debug!(reason = %error, "the Lease is not renewed, trying again")
                    }
                }
            }
        }
    }

    /// One try to take or to renew it; whether it is held now.
    async fn try_to_hold(&mut self) -> Result<bool, kube::Error> {
        let found = self.leases.get_opt(LEASE).await?;
        match found {
            Some(lease) => self.observed.see(lease, Instant::now()),
            None => self.observed = Observed::default(),
        }
        if self.observed.is_held_by_another(&self.identity, Instant::now()) {
            return Ok(false);
        }
        let wanted = self
            .observed
            .wanted(&self.identity, self.timing, Timestamp::now());
        let params = PostParams::default();
        let written = if self.observed.lease.is_some() {
            // With the revision that was seen: of two that try, one gets it.
            self.leases.replace(LEASE, &params, &wanted).await
        } else {
            self.leases.create(&params, &wanted).await
        };
        match written {
            Ok(lease) => {
                self.observed.see(lease, Instant::now());
                Ok(true)
            }
            // Somebody else was faster. What that means is seen at the next look.
            Err(kube::Error::Api(status))
                if status.code == 409 && self.observed.holder() != self.identity =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets others take it at once.
    async fn release(&mut self) {
        let Some(mut lease) = self.observed.lease.take() else {
            return;
        };
        let now = Timestamp::now();
        let transitions = lease.spec.and_then(|s| s.lease_transitions);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        let written = self.leases.replace(LEASE, &params, &lease);
        // A server that stops too may answer no more: then others wait out the Lease.
        if let Ok(Err(error)) = tokio::time::timeout(self.timing.retry, written).await {
            tracing::debug!(reason = %error, "the Lease was not given back");
        }
    }

    fn tell(&self, what: &str) {
        let about = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_string()),
            kind: Some("Lease".to_string()),
            namespace: Some(NAMESPACE.to_string()),
            name: Some(LEASE.to_string()),
            uid: self.observed.lease.as_ref().and_then(|l| l.metadata.uid.clone()),
            ..ObjectReference::default()
        };
        self.recorder.record(Notice {
            about,
            severity: Severity::Normal,
            reason: "LeaderElection",
            message: format!("{} {what}", self.identity),
        });
    }
}

/// Up to a fifth longer (client-go's `JitterFactor` of 1.2), so that those who wait do not try at the same time.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + 0.2 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        lease: Duration::from_secs(15),
        renew: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };

    fn held_by(identity: &str, at: Timestamp) -> Lease {
        Observed::default().wanted(identity, TIMING, at)
    }

    #[test]
    fn a_holder_is_waited_for_as_long_as_it_renews_by_our_own_clock() {
        let (now, long_ago) = (Instant::now(), Timestamp::from_second(1).unwrap());
        let mut observed = Observed::default();
        observed.see(held_by("a", long_ago), now);
        assert!(observed.is_held_by_another("b", now));
        assert!(!observed.is_held_by_another("a", now));
        let later = now + Duration::from_secs(14);
        // Seen again as it was: nothing begins anew.
        observed.see(held_by("a", long_ago), later);
        assert!(observed.is_held_by_another("b", later));
        assert!(!observed.is_held_by_another("b", later + Duration::from_secs(1)));
        observed.see(held_by("a", Timestamp::from_second(2).unwrap()), later);
        assert!(observed.is_held_by_another("b", later + Duration::from_secs(14)));
    }

    #[test]
    fn taking_over_counts_and_renewing_does_not() {
        let (now, one, two) = (
            Instant::now(),
            Timestamp::from_second(1).unwrap(),
            Timestamp::from_second(2).unwrap(),
        );
        let mut observed = Observed::default();
        observed.see(held_by("a", one), now);
        let spec = observed.wanted("a", TIMING, two).spec.unwrap();
        assert_eq!(spec.lease_transitions, Some(0));
        assert_eq!(
            (spec.acquire_time, spec.renew_time),
            (Some(MicroTime(one)), Some(MicroTime(two)))
        );
        let spec = observed.wanted("b", TIMING, two).spec.unwrap();
        assert_eq!(spec.lease_transitions, Some(1));
        assert_eq!(
            (spec.acquire_time, spec.holder_identity),
            (Some(MicroTime(two)), Some("b".to_string()))
        );
        // Given back: free for everybody.
        let mut given = held_by("", two);
        given.spec.as_mut().unwrap().holder_identity = Some(String::new());
        observed.see(given, now);
        assert!(!observed.is_held_by_another("b", now));
    }
}
