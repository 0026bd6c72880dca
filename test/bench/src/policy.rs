//! NetworkPolicies by the thousand on one node: how long a change takes from its being known to its being in force, and
//! what a connection costs that is judged.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use svcnet_netlink::nft::{Family, Socket};
use svcnet_policy::apply;
use svcnet_policy::engine::Engine;
use svcnet_policy::layout;
use svcnet_policy::model::{ObjectKey, Policy};
use svcnet_policy::view::PodFacts;

use crate::path::{Path, STRAIGHT};
use crate::stats::{median, percentile, row};
use crate::synthetic;

/// Policies and pods are spread over so many namespaces.
const NAMESPACES: u32 = 100;
/// Changes of each kind.
const CHANGES: u32 = 200;
const FAMILIES: [Family; 1] = [Family::Ip];

/// Prints the rows for so many policies and pods of one node.
pub(crate) fn measure(policies: u32, pods: u32, rounds: usize, connections: u32) -> Result<()> {
    let path = Path::new(0, synthetic::nftables)?;
    let cluster = Cluster::new(policies, pods);
    let (mut engine, load) = path.node().run(|| cluster.load())??;
    let size = format!("{policies} NetworkPolicies, {pods} pods of the node");
    for (what, seconds) in path.node().run(|| cluster.change(&mut engine))?? {
        let times = format!(
            "{:.2} ms (p99 {:.2})",
            median(&seconds) * 1e3,
            percentile(&seconds, 0.99) * 1e3
        );
        row(&format!("{what}, event to commit, {size}"), &times, "", "");
    }
    row(
        &format!("all of them programmed, {size}"),
        &format!("{load:.2} s"),
        "",
        "",
    );

    let (mut judged, mut free) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..rounds {
        judged[0].push(path.connect(connections)?);
        judged[1].push(path.stream(1.0)?);
        path.node().run(remove)??;
        free[0].push(path.connect(connections)?);
        free[1].push(path.stream(1.0)?);
        let plan = engine.take_all();
        path.node()
            .run(|| apply::rebuild(&mut Socket::open()?, &FAMILIES, &plan))??;
    }
    let ratio = |of: usize| {
        let ratios: Vec<f64> = judged[of]
            .iter()
            .zip(&free[of])
            .map(|(judged, free)| judged / free)
            .collect();
        format!("{:.2}", median(&ratios))
    };
    let rate = |values: &[f64]| format!("{:.0}", median(values));
    let what =
        format!("connections per second to a pod that two of {policies} policies isolate, against no policy");
    row(&what, &rate(&judged[0]), &rate(&free[0]), &ratio(0));
    let gigabits = |values: &[f64]| format!("{:.1} Gbit/s", median(values) / 1e9);
    row(
        "throughput to the same",
        &gigabits(&judged[1]),
        &gigabits(&free[1]),
        &ratio(1),
    );
    Ok(())
}

fn remove() -> Result<()> {
    Socket::open()?.remove(&layout::table(Family::Ip))?;
    Ok(())
}

/// Policies and pods, by number.
struct Cluster {
    policies: u32,
    pods: u32,
}

impl Cluster {
    fn new(policies: u32, pods: u32) -> Self {
        Self { policies, pods }
    }

    fn namespace(number: u32) -> String {
        format!("ns-{}", number % NAMESPACES)
    }

    /// Two policies, more or less, isolate each pod: from the pods of the next label, and a network.
    fn policy(&self, number: u32, port: u16) -> Result<(ObjectKey, Policy)> {
        let namespace = Self::namespace(number);
        let labels = (self.pods / NAMESPACES).max(1);
        let own = number / NAMESPACES % labels;
        let object = json!({"metadata": {}, "spec": {
            "podSelector": {"matchLabels": {"app": format!("a{own}")}},
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": format!("a{}", (own + 1) % labels)}}}],
                 "ports": [{"port": port, "endPort": port + 1}, {"port": 8000, "endPort": 8010}]},
                {"from": [{"ipBlock": {"cidr": format!("10.{}.0.0/16", number % 200),
                                       "except": [format!("10.{}.1.0/24", number % 200)]}}]},
            ],
        }});
        let (policy, _) = Policy::parse(&namespace, &serde_json::from_value(object)?).context("a policy")?;
        Ok((ObjectKey::new(namespace, format!("policy-{number}")), policy))
    }

    fn pod(number: u32, label: u32, address: Ipv4Addr, local: bool) -> (ObjectKey, PodFacts) {
        let facts = PodFacts {
            labels: [("app".to_string(), format!("a{label}"))].into(),
            addresses: vec![IpAddr::V4(address)],
            local,
            ..PodFacts::default()
        };
        (
            ObjectKey::new(Self::namespace(number), format!("pod-{number}")),
            facts,
        )
    }

    fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 245, 0, 0).to_bits() + number)
    }

    fn load(&self) -> Result<(Engine, f64)> {
        let begun = Instant::now();
        let mut engine = Engine::new(&FAMILIES);
        for number in 0..NAMESPACES {
            engine.set_namespace(&Self::namespace(number), Some(Default::default()));
        }
        for number in 0..self.pods {
            // The first one is the one that is connected to.
            let address = if number == 0 {
                STRAIGHT
            } else {
                Self::address(number)
            };
            let (key, pod) = Self::pod(number, number / NAMESPACES, address, true);
            engine.set_pod(&key, Some(pod));
        }
        let client = Self::pod(
            self.pods + NAMESPACES - self.pods % NAMESPACES,
            1,
            Ipv4Addr::new(10, 244, 2, 2),
            false,
        );
        engine.set_pod(&client.0, Some(client.1));
        for number in 0..self.policies {
            let (key, policy) = self.policy(number, 80)?;
            engine.set_policy(&key, Some(policy));
        }
        // What the whole took, from a kernel with nothing.
        let plan = engine.take_all();
        apply::rebuild(&mut Socket::open()?, &FAMILIES, &plan)?;
        Ok((engine, begun.elapsed().as_secs_f64()))
    }

    /// Changes of each kind, one by one.
    fn change(&self, engine: &mut Engine) -> Result<Vec<(&'static str, Vec<f64>)>> {
        let mut socket = Socket::open()?;
        let mut timed =
            |engine: &mut Engine, change: &mut dyn FnMut(&mut Engine) -> Result<()>| -> Result<f64> {
                let begun = Instant::now();
                change(engine)?;
                apply::change(&mut socket, &engine.take_plan())?;
                Ok(begun.elapsed().as_secs_f64())
            };
        let mut all = vec![
            ("a pod elsewhere comes", Vec::new()),
            ("a pod of this node comes", Vec::new()),
            ("a policy changes", Vec::new()),
            ("a policy comes", Vec::new()),
            ("a policy goes", Vec::new()),
        ];
        for number in 0..CHANGES {
            let other = self.pods * 2 + number;
            let label = number % 50;
            for (at, local) in [(0, false), (1, true)] {
                let number = other + CHANGES * u32::from(local);
                let (key, pod) = Self::pod(number, label, Self::address(number), local);
                all[at].1.push(timed(engine, &mut |engine| {
                    engine.set_pod(&key, Some(pod.clone()));
                    Ok(())
                })?);
            }
            let (key, policy) = self.policy(number * 7 % self.policies.max(1), 443)?;
            let mut set = |engine: &mut Engine| {
                engine.set_policy(&key, Some(policy.clone()));
                Ok(())
            };
            all[2].1.push(timed(engine, &mut set)?);
            let (key, policy) = self.policy(self.policies + number, 81)?;
            for (at, policy) in [(3, Some(policy)), (4, None)] {
                all[at].1.push(timed(engine, &mut |engine| {
                    engine.set_policy(&key, policy.clone());
                    Ok(())
                })?);
            }
        }
        Ok(all)
    }
}
