//! Which endpoints of a Service take connections: terminating ones, those not ready, hundreds of them, and one that two
//! Services share; and clients that stay with theirs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener};

use svcnet_e2e::{binary, until};

use crate::probe::{self, Outcome, Transport};
use crate::stage::{Family, Mode, Stage};

const READY: &str = "{ready: true}";
const DRAINING: &str = "{ready: false, serving: true, terminating: true}";
const GONE: &str = "{ready: false, serving: false, terminating: true}";

/// A Service without a selector, and slices with these endpoints: address, node, conditions.
fn by_hand(name: &str, spec: &str, endpoints: &[(&[IpAddr], &str, &str)]) -> String {
    let mut manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{ipFamilyPolicy: RequireDualStack, ports: [{{port: 80}}]{spec}}}\n---\n"
    );
    for family in Family::ALL {
        let endpoints = endpoints.iter().map(|(addresses, node, conditions)| {
            let address = family.pick(addresses).unwrap();
            format!("- {{addresses: ['{address}'], nodeName: {node}, conditions: {conditions}}}\n")
        });
        let endpoints: String = endpoints.collect();
        manifest += &slice(
            &format!("{name}-{family:?}").to_lowercase(),
            name,
            family,
            80,
            &endpoints,
        );
    }
    manifest
}

fn slice(name: &str, service: &str, family: Family, port: u16, endpoints: &str) -> String {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {kind}\nports: [{{port: {port}, protocol: TCP}}]\nendpoints:\n{endpoints}---\n"
    )
}

/// KEP-1669, for each policy.
#[test]
fn terminating_endpoints() {
    let stage = Stage::up(&[]);
    let (web2, web3) = (stage.addresses("web2"), stage.addresses("web3"));
    let of = |two, three| [(web2, "n2", two), (web3, "n3", three)];
    let external_local = ", type: NodePort, externalTrafficPolicy: Local";
    let manifest = by_hand("draining", ", type: NodePort", &of(DRAINING, READY))
        + &by_hand("last", "", &of(DRAINING, DRAINING))
        + &by_hand("last-serving", ", type: NodePort", &of(DRAINING, GONE))
        + &by_hand("all-gone", "", &of(GONE, GONE))
        + &by_hand("last-here", external_local, &of(DRAINING, READY))
        + &by_hand(
            "last-inside",
            ", internalTrafficPolicy: Local",
            &of(DRAINING, READY),
        )
        + &by_hand("gone-here", external_local, &of(GONE, READY));
    stage.lab.apply(&manifest);
    stage.check(
        "draining",
        "
        near far | vip | web3 kept
        n1       | vip | web3 by n1
        n2       | vip | web3 by n2
        client   | n2  | web3 by n2
        ",
    );
    stage.check(
        "last",
        "
        near far | vip | web2 kept, web3 kept
        n1       | vip | web2 by n1, web3 by n1
        ",
    );
    stage.check(
        "last-serving",
        "
        near far | vip | web2 kept
        n2       | vip | web2 by n2
        client   | n1  | web2 by n1
        ",
    );
    stage.check("all-gone", "near far n1 n2 | vip | refused");
    stage.check(
        "last-here",
        "
        client   | n2 | web2 kept
        client   | n3 | web3 kept
        client   | n1 | dropped
        near     | n2 | web3 kept  | not ipvs
        n2       | n2 | web3 by n2 | not ipvs
        near     | n2 | web2 kept  | ipvs
        n2       | n2 | web2 by n2 | ipvs
        ",
    );
    stage.check(
        "last-inside",
        "
        near     | vip | web2 kept
        n2       | vip | web2 by n2
        n3       | vip | web3 by n3
        far n1   | vip | dropped
        ",
    );
    stage.check(
        "gone-here",
        "
        client   | n2 | dropped
        client   | n3 | web3 kept
        ",
    );
}

/// An endpoint that is not ready takes connections only where its Service says so.
#[test]
fn endpoints_that_are_not_ready_or_shared() {
    let mut stage = Stage::up(&[]);
    let program = binary().to_string_lossy().into_owned();
    // Nobody listens on port 81, so the pod never becomes ready.
    let half = [
        "--container-port",
        "80",
        "--container-port",
        "81",
        "--no-wait",
        "--",
    ];
    let respond = [
        program.as_str(),
        "pod",
        "respond",
        "--name",
        "half",
        "--container-port",
        "80",
    ];
    stage
        .lab
        .pod_with("half", "n2", "app=half", &[&half[..], &respond].concat());
    stage.note_pod("half");
    stage
        .lab
        .pod_with("solo", "n2", "app=solo", &["--container-port", "80"]);
    stage.note_pod("solo");
    let service = |name: &str, app: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ipFamilyPolicy: RequireDualStack, \
             selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 80}}]{more}}}\n---\n"
        )
    };
    let manifest = service("half", "half", "")
        + &service("half-published", "half", ", publishNotReadyAddresses: true")
        + &service("one", "solo", "")
        + &service("two", "solo", "");
    stage.lab.apply(&manifest);
    stage.check("half", "near far n1 n2 | vip | refused");
    stage.check(
        "half-published",
        "
        near far | vip    | half kept
        half     | vip    | half by n2
        n1       | vip    | half by n1
        client   | vip@n2 | half by n2
        ",
    );
    // Two Services lead to one endpoint, and one of them goes: nothing of the other changes.
    for service in ["one", "two"] {
        stage.check(service, SOLO);
    }
    assert!(stage.lab.kubectl(&["delete", "service", "one"]).ok);
    until("the other Service's rules are gone", || {
        let rules = stage.lab.exec("n2", &["nft", "list", "ruleset"]);
        (!rules.text().contains("default/one")).then_some(())
    });
    stage.check("two", SOLO);
}

const SOLO: &str = "
    near far | vip    | solo kept
    solo     | vip    | solo by n2
    n1       | vip    | solo by n1
    n2       | vip    | solo by n2
    client   | vip@n1 | solo by n1
";

const PER_SLICE: u16 = 100;

/// The addresses of the i-th slice's endpoints: the first two slices are of web2, the third is of web3.
fn many(stage: &Stage, family: Family, slice: u16) -> Vec<IpAddr> {
    let pod = if slice < 2 { "web2" } else { "web3" };
    let first = family.pick(stage.addresses(pod)).unwrap();
    // Above what the pods of this lab have.
    let offset = 20 + slice % 2 * PER_SLICE;
    (0..PER_SLICE)
        .map(|i| match first {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() / 256 * 256 + u32::from(offset + i)).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + 0x1_0000 + u128::from(offset + i)).into()),
        })
        .collect()
}

/// 300 endpoints in three slices, all of which take connections; then those of one slice go.
#[test]
fn hundreds_of_endpoints() {
    // A few pods answer under hundreds of addresses, which are not theirs.
    let stage = Stage::up(&["--agent-arg=--disable=policy"]);
    let mut manifest = "apiVersion: v1\nkind: Service\nmetadata: {name: many}\n\
        spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80, targetPort: 9000}]}\n---\n"
        .to_string();
    for family in Family::ALL {
        for number in 0..3 {
            let (pod, node) = if number < 2 {
                ("web2", "n2")
            } else {
                ("web3", "n3")
            };
            let addresses = many(&stage, family, number);
            let length = if family == Family::V4 { 32 } else { 128 };
            let lines = addresses.iter().map(|ip| {
                format!("ip addr add {ip}/{length} dev eth0 $([ {length} = 128 ] && echo nodad)\n")
            });
            let added = stage.lab.exec(pod, &["sh", "-ec", &lines.collect::<String>()]);
            assert!(added.ok, "{added:?}");
            let endpoints = addresses
                .iter()
                .map(|ip| format!("- {{addresses: ['{ip}'], nodeName: {node}, conditions: {READY}}}\n"));
            let name = format!("many-{family:?}-{number}").to_lowercase();
            manifest += &slice(&name, "many", family, 9000, &endpoints.collect::<String>());
        }
    }
    for pod in ["web2", "web3"] {
        tell_addresses(&stage, pod);
    }
    stage.lab.apply(&manifest);
    for family in Family::ALL {
        let all: BTreeSet<IpAddr> = (0..3).flat_map(|number| many(&stage, family, number)).collect();
        for member in ["near", "n1"] {
            // Each connection finds one of 300: of 1,500 fewer than one leaves each out.
            until(
                &format!("{member} reaches hundreds of endpoints over {family:?}"),
                || (reached(&stage, member, family, 1500, &all)?.len() > 280).then_some(()),
            );
        }
        let name = format!("many-{family:?}-1").to_lowercase();
        assert!(stage.lab.kubectl(&["delete", "endpointslice", &name]).ok);
        let left: BTreeSet<IpAddr> = [0, 2]
            .into_iter()
            .flat_map(|number| many(&stage, family, number))
            .collect();
        until(
            &format!("no connection goes to what is gone over {family:?}"),
            || (reached(&stage, "near", family, 1000, &left)?.len() > 180).then_some(()),
        );
    }
}

/// The endpoints that so many connections reach; none when one fails, or goes to somebody else.
fn reached(
    stage: &Stage,
    member: &str,
    family: Family,
    count: usize,
    of: &BTreeSet<IpAddr>,
) -> Option<BTreeSet<IpAddr>> {
    let (to, mark) = stage.target(&stage.service("many"), family, "vip");
    let seen_as = stage.kept(member);
    let ask = || {
        let mut reached = BTreeSet::new();
        for _ in 0..count {
            let Outcome::Answered { who, seen } = probe::ask(Transport::Tcp, to, mark, false) else {
                return None;
            };
            assert!(seen_as.contains(&seen), "{member} was seen as {seen}");
            let who: IpAddr = who.parse().unwrap();
            if !of.contains(&who) {
                return None;
            }
            reached.insert(who);
        }
        Some(reached)
    };
    stage.netns(member).run(ask).unwrap()
}

/// Answers on port 9000 of a pod with the address that was asked, and who asked.
fn tell_addresses(stage: &Stage, pod: &str) {
    let listener = stage
        .netns(pod)
        .run(|| TcpListener::bind("[::]:9000").unwrap())
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                let mut line = String::new();
                if BufReader::new(&stream).read_line(&mut line).is_ok() {
                    // Who does not wait for the answer is the test's to complain about.
                    let _ = (&stream).write_all(format!("{}\n{peer}\n", own.ip().to_canonical()).as_bytes());
                }
            });
        }
    });
}

/// `sessionAffinity: ClientIP`: a client stays, wherever it asks from, until its time is over.
#[test]
fn clients_that_stay() {
    let stage = Stage::up(&[]);
    let service = |name: &str, seconds: u32| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  \
             ipFamilyPolicy: RequireDualStack\n  sessionAffinity: ClientIP\n  \
             sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n  selector: {{app: web}}\n  \
             ports: [{{port: 80}}]\n---\n"
        )
    };
    stage.lab.apply(&(service("stay", 600) + &service("leave", 1)));
    let answers = [
        "near far | vip   | any: web2 kept, web3 kept",
        "n1       | vip   | any: web2 by n1, web3 by n1",
        "client   | n1    | any: web2 by n1, web3 by n1",
        "client   | n2    | any: web2 by n2, web3 by n2",
        "client   | lb@n1 | any: web2 by n1, web3 by n1",
    ];
    for name in ["stay", "leave"] {
        stage.check(name, &answers.join("\n"));
    }
    let (stay, leave) = (stage.service("stay"), stage.service("leave"));
    for family in Family::ALL {
        for (member, target) in [
            ("near", "vip"),
            ("far", "vip"),
            ("n1", "vip"),
            ("client", "n1"),
            ("client", "lb@n2"),
        ] {
            let (to, mark) = stage.target(&stay, family, target);
            let who = || who_answers(&stage, member, to, mark);
            let first = who();
            let others: Vec<String> = (0..25).map(|_| who()).filter(|next| *next != first).collect();
            assert_eq!(
                others, [""; 0],
                "{member} to {target} over {family:?} began with {first}"
            );
        }
        if stage.mode == Mode::Ipvs {
            // IPVS remembers a client for as long as a connection of it lingers (two minutes in TIME_WAIT,
            // `tcp_timeouts` in ip_vs_proto_tcp.c) and looks again a minute later.
            continue;
        }
        let (to, mark) = stage.target(&leave, family, "vip");
        let first = who_answers(&stage, "near", to, mark);
        until("a client whose time is over is given another endpoint", || {
            std::thread::sleep(std::time::Duration::from_millis(1300));
            (who_answers(&stage, "near", to, mark) != first).then_some(())
        });
    }
}

fn who_answers(stage: &Stage, member: &str, to: std::net::SocketAddr, mark: u32) -> String {
    let ask = || probe::ask(Transport::Tcp, to, mark, false);
    match stage.netns(member).run(ask).unwrap() {
        Outcome::Answered { who, .. } => who,
        other => panic!("{member} to {to}: {other:?}"),
    }
}
