//! Every pair of nine pods in three namespaces on three nodes, over TCP, UDP and SCTP, IPv4 and IPv6, under sixty
//! policies: what arrives is what the API's words say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use svcnet_e2e::{Lab, until};
use svcnet_policy::model::{ObjectKey, Policy, Protocol};
use svcnet_policy::verdict::Target;
use svcnet_policy::view::{PodFacts, View};

use crate::probe::{Prober, Question, round};

pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
/// What is asked of each pair: the two ports of TCP tell ports apart.
const PORTS: [(Protocol, u16); 4] = [
    (Protocol::TCP, 80),
    (Protocol::TCP, 81),
    (Protocol::UDP, 80),
    (Protocol::SCTP, 80),
];
const POLICIES: usize = 60;

fn peers(number: usize) -> Value {
    let all = [
        json!([]),
        json!([{"podSelector": {}}]),
        json!([{"podSelector": {"matchLabels": {"pod": "a"}}}]),
        json!([{"namespaceSelector": {"matchLabels": {"team": "y"}}}]),
        json!([{"namespaceSelector": {}}]),
        json!([{
            "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["x", "y"]}]},
            "podSelector": {"matchLabels": {"pod": "b"}},
        }]),
        json!([{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["b"]}]}}]),
        // The pods of one node or two, whichever they are; and all IPv6 but some.
        json!([{"ipBlock": {"cidr": "10.244.0.0/23"}}, {"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:10:244:1::/64"]}}]),
        json!([{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24", "10.244.2.2/31"]}}]),
        json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}]),
        json!([
            {"podSelector": {"matchLabels": {"pod": "c"}}},
            {"namespaceSelector": {"matchLabels": {"team": "x"}}},
        ]),
        json!([{"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "pod", "operator": "Exists"}]}}]),
    ];
    all[number % all.len()].clone()
}

fn ports(number: usize) -> Value {
    let all = [
        json!([]),
        json!([{"port": 80}]),
        json!([{"port": "http"}]),
        json!([{"port": 80, "endPort": 81}, {"port": 80, "protocol": "UDP"}]),
        json!([{"protocol": "SCTP", "port": 80}, {"port": 81}]),
        json!([{"protocol": "UDP"}, {"protocol": "SCTP", "port": 79, "endPort": 90}]),
        json!([{"port": 79}, {"port": 81}, {"protocol": "SCTP"}]),
    ];
    all[number % all.len()].clone()
}

fn selected(number: usize) -> Value {
    let all = [
        json!({}),
        json!({"matchLabels": {"pod": "a"}}),
        json!({"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]}),
        json!({"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]}),
    ];
    all[number % all.len()].clone()
}

/// The policy of a number. The lists have lengths without a common divisor, so that each item meets each other one.
pub(crate) fn policy(number: usize, name: &str, namespace: &str) -> Value {
    let rule = |peers_name: &str| {
        let mut rule = json!({"ports": ports(number)});
        rule[peers_name] = peers(number);
        json!([rule])
    };
    let mut spec = json!({"podSelector": selected(number / 3)});
    let types = match number % 5 {
        0 | 1 => json!(["Ingress"]),
        2 => json!(["Egress"]),
        _ => json!(["Ingress", "Egress"]),
    };
    spec["policyTypes"] = types;
    // One of seven says nothing but that pods are isolated.
    spec["ingress"] = if number % 7 == 6 { json!([]) } else { rule("from") };
    spec["egress"] = if number % 7 == 6 { json!([]) } else { rule("to") };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) view: View,
    probers: Vec<Prober>,
    pub(crate) questions: Vec<Question>,
    pub(crate) pods: Vec<(ObjectKey, Vec<IpAddr>)>,
}

impl Stage {
    /// Nine pods in a dual-stack lab, and questions about each pair.
    pub(crate) fn new(lab: Lab) -> Self {
        let mut view = View::default();
        for namespace in NAMESPACES {
            // The third one has no label of ours.
            let team = ("team".to_string(), namespace.to_string());
            let labels: BTreeMap<_, _> = [team].into_iter().filter(|_| namespace != "z").collect();
            let metadata = json!({"name": namespace, "labels": labels});
            lab.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string());
            view.namespaces.insert(namespace.to_string(), labels);
            for (pod, node) in PODS.iter().zip(["n1", "n2", "n3"]) {
                // Pods of one namespace on three nodes, and of one node in three namespaces.
                let name = format!("{namespace}{pod}");
                let args = [
                    ["--namespace", namespace],
                    ["--container-port", "80=http"],
                    ["--container-port", "81"],
                    ["--container-port", "80/udp"],
                ];
                lab.pod_with(&name, node, &format!("pod={pod}"), &args.concat());
            }
        }
        let pods = pods(&lab, &mut view);
        let prober = |(key, _): &(ObjectKey, Vec<IpAddr>)| Prober::new(&lab.namespace(&key.name));
        Self {
            probers: pods.iter().map(prober).collect(),
            questions: questions(&pods, &PORTS),
            view,
            pods,
            lab,
        }
    }

    pub(crate) fn expected(&self) -> Vec<bool> {
        let judge = |question: &Question| {
            let of_family = |a: &&IpAddr| a.is_ipv6() == question.at.is_ipv6();
            let [from, to] =
                [question.from, question.to].map(|pod| *self.pods[pod].1.iter().find(of_family).unwrap());
            let target = Target {
                protocol: Some(question.protocol),
                port: question.at.port(),
            };
            self.view
                .judge(self.view.end(from), self.view.end(to), target)
                .is_allowed()
        };
        self.questions.iter().map(judge).collect()
    }

    /// Waits until the packets say the same as the words.
    pub(crate) fn check(&self, what: &str) {
        let expected = self.expected();
        let mut wrong = Vec::new();
        let tries = std::cell::Cell::new(0u32);
        let agrees = || {
            let found = round(&self.probers, &self.questions, tries.get());
            wrong = (0..found.len())
                .filter(|at| found[*at] != expected[*at])
                .collect();
            tries.set(tries.get() + 1);
            if tries.get().is_multiple_of(10) {
                let show = |at: &usize| {
                    let question = self.questions[*at];
                    let (from, to) = (&self.pods[question.from].0, &self.pods[question.to].0);
                    format!(
                        "{from} -> {to} {} {}: should be {}",
                        question.protocol, question.at, expected[*at]
                    )
                };
                let lines: Vec<String> = wrong.iter().take(12).map(show).collect();
                eprintln!(
                    "{what}: {} of {} differ\n{}",
                    wrong.len(),
                    found.len(),
                    lines.join("\n")
                );
            }
            wrong.is_empty().then_some(())
        };
        until(&format!("{what}: packets agree with the policies"), agrees);
    }

    pub(crate) fn apply(&mut self, policies: &[Value]) {
        self.lab
            .apply(&json!({"apiVersion": "v1", "kind": "List", "items": policies}).to_string());
        for object in policies {
            let typed = serde_json::from_value(object.clone()).unwrap();
            let text = |field: &str| object["metadata"][field].as_str().unwrap();
            let (policy, problems) = Policy::parse(text("namespace"), &typed).unwrap();
            assert!(problems.is_empty(), "{problems:?}");
            self.view
                .policies
                .insert(ObjectKey::new(text("namespace"), text("name")), policy);
        }
    }
}

/// The pods with their addresses, put into the view.
fn pods(lab: &Lab, view: &mut View) -> Vec<(ObjectKey, Vec<IpAddr>)> {
    let listed = lab.kubectl(&["get", "pods", "-A", "-o", "json"]);
    let listed: Value = serde_json::from_str(listed.text()).unwrap();
    let mut pods = Vec::new();
    for item in listed["items"].as_array().unwrap() {
        let object = serde_json::from_value(item.clone()).unwrap();
        let text = |field: &str| item["metadata"][field].as_str().unwrap();
        let key = ObjectKey::new(text("namespace"), text("name"));
        let facts = PodFacts::of(&object, "");
        assert_eq!(facts.addresses.len(), 2, "{key}");
        pods.push((key.clone(), facts.addresses.clone()));
        view.pods.insert(key, facts);
    }
    assert_eq!(pods.len(), NAMESPACES.len() * PODS.len());
    pods
}

/// From each pod to each other one, at each address that leads there, and port.
pub(crate) fn questions(pods: &[(ObjectKey, Vec<IpAddr>)], ports: &[(Protocol, u16)]) -> Vec<Question> {
    let mut questions = Vec::new();
    for from in 0..pods.len() {
        for (to, (_, addresses)) in pods.iter().enumerate().filter(|(to, _)| *to != from) {
            for address in addresses {
                questions.extend(ports.iter().map(|(protocol, port)| Question {
                    from,
                    to,
                    at: SocketAddr::new(*address, *port),
                    protocol: *protocol,
                }));
            }
        }
    }
    questions
}

#[test]
fn every_pair_of_nine_pods_under_sixty_policies() {
    let mut stage = Stage::new(Lab::up(&["--dual-stack"]));
    stage.check("without a policy");
    assert!(stage.expected().iter().all(|allowed| *allowed));
    let mut allowed_sometimes = vec![false; stage.questions.len()];
    let mut denied_sometimes = allowed_sometimes.clone();
    for first in (0..POLICIES).step_by(NAMESPACES.len()) {
        let of = |(at, namespace): (usize, &&str)| policy(first + at, "t", namespace);
        stage.apply(&NAMESPACES.iter().enumerate().map(of).collect::<Vec<_>>());
        stage.check(&format!("policies {first} to {}", first + NAMESPACES.len() - 1));
        for (at, allowed) in stage.expected().into_iter().enumerate() {
            allowed_sometimes[at] |= allowed;
            denied_sometimes[at] |= !allowed;
        }
    }
    assert!(
        allowed_sometimes.iter().all(|it| *it) && denied_sometimes.iter().all(|it| *it),
        "each answer is tested"
    );
    // What several policies allow adds up.
    let more = [
        policy(1, "more", "x"),
        policy(4, "more", "y"),
        policy(17, "more", "z"),
    ];
    stage.apply(&more);
    stage.check("two policies in each namespace");
    let gone = stage.lab.kubectl(&["delete", "networkpolicies", "--all", "-A"]);
    assert!(gone.ok, "{gone:?}");
    stage.view.policies.clear();
    stage.check("after all of them");
}
