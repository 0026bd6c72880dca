//! Names outside the cluster: upstreams that answer, are silent, lie, truncate, and ask us in turn.

use std::net::UdpSocket;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use svcnet_dns::Config;

use crate::fixture::{Running, SERVER, answers, ask, config, dig, isolated, question, until};
use crate::upstream::{Behaviour, Upstream};

const FOUND: [&str; 1] = ["192.0.2.80"];
const FIRST: &str = "127.0.1.1:53";
const SECOND: &str = "127.0.1.2:53";

/// Waits until the server listens and knows its upstreams.
fn ready() {
    until("the server answers", || {
        let message = ask("ready.example.com.", RecordType::A)?;
        (message.metadata.response_code == ResponseCode::NoError).then_some(())
    });
}

fn found(name: &str) -> Vec<String> {
    answers(name, RecordType::A).1
}

#[test]
fn answers_are_passed_on_and_kept() {
    isolated(|| {
        let upstream = Upstream::start(FIRST, Behaviour::Answer);
        let _server = Running::start(config(&[&upstream]));
        ready();
        for _ in 0..3 {
            assert_eq!(found("www.example.com."), FOUND);
            assert_eq!(found("WWW.Example.COM."), FOUND);
            let (rcode, _) = answers("nothing.example.com.", RecordType::A);
            assert_eq!(rcode, "Non-Existent Domain");
        }
        assert_eq!(upstream.asked("www.example.com."), 1);
        assert_eq!(upstream.asked("nothing.example.com."), 1);
        let output = dig(&["+tcp", "+noedns", "Www.example.com"]);
        assert!(
            output.contains("Www.example.com. ") && output.contains("flags: qr rd ra;"),
            "{output}"
        );
    });
}

#[test]
fn a_silent_upstream_is_passed_over_until_it_answers() {
    isolated(|| {
        let silent = Upstream::start(FIRST, Behaviour::Silent);
        let good = Upstream::start(SECOND, Behaviour::Answer);
        let _server = Running::start(config(&[&silent, &good]));
        ready();
        for number in 0..4 {
            assert_eq!(found(&format!("a{number}.example.com.")), FOUND);
        }
        assert_eq!(silent.asked("a3.example.com."), 0, "left out after two failures");
        silent.behave(Behaviour::Answer);
        good.behave(Behaviour::Silent);
        let mut number = 100;
        until("the first one is asked again", || {
            number += 1;
            let name = format!("b{number}.example.com.");
            ask(&name, RecordType::A)?;
            (silent.asked(&name) == 1).then_some(())
        });
    });
}

#[test]
fn only_the_right_answer_counts() {
    isolated(|| {
        let upstream = Upstream::start(FIRST, Behaviour::Noise);
        let _server = Running::start(config(&[&upstream]));
        ready();
        assert_eq!(found("www.example.com."), FOUND);
        upstream.behave(Behaviour::Truncate);
        assert_eq!(found("long.example.com."), FOUND);
        assert_eq!(upstream.asked("long.example.com."), 2, "over UDP, then over TCP");
        upstream.behave(Behaviour::Old);
        assert_eq!(found("old.example.com."), FOUND);
        assert_eq!(upstream.asked("old.example.com."), 2, "with EDNS, then without");
    });
}

#[test]
fn failures_go_to_the_next_and_are_kept_briefly() {
    isolated(|| {
        let broken = Upstream::start(FIRST, Behaviour::Fail);
        let good = Upstream::start(SECOND, Behaviour::Answer);
        let _server = Running::start(config(&[&broken, &good]));
        ready();
        assert_eq!(found("www.example.com."), FOUND);
        good.behave(Behaviour::Fail);
        for _ in 0..5 {
            assert_eq!(answers("broken.example.com.", RecordType::A).0, "Server Failure");
        }
        assert!(
            good.asked("broken.example.com.") <= 2,
            "{}",
            good.asked("broken.example.com.")
        );
    });
}

#[test]
fn nobody_to_ask_fails_at_once_and_says_why() {
    isolated(|| {
        let _server = Running::start(config(&[]));
        let output = until("an answer", || {
            Some(dig(&["www.example.com"])).filter(|o| o.contains("status:"))
        });
        assert!(output.contains("status: SERVFAIL"), "{output}");
        assert!(
            output.contains("EDE: 22 (No Reachable Authority): (no upstream resolver is configured)"),
            "{output}"
        );
        let output = dig(&["out.default.svc.cluster.local"]);
        assert!(output.contains("status: SERVFAIL"), "{output}");
        assert!(
            output.contains("CNAME www.example.com."),
            "what is known is told: {output}"
        );
    });
}

#[test]
fn external_names_are_chased() {
    isolated(|| {
        let upstream = Upstream::start(FIRST, Behaviour::Answer);
        let _server = Running::start(config(&[&upstream]));
        ready();
        for transport in ["+notcp", "+tcp"] {
            let output = dig(&[transport, "OUT.default.svc.cluster.local"]);
            assert!(
                output.contains("status: NOERROR") && output.contains("ANSWER: 2"),
                "{output}"
            );
            assert!(
                output.contains("OUT.default.svc.cluster.local. 30 IN CNAME www.example.com."),
                "{output}"
            );
            assert!(
                output.contains("www.example.com.") && output.contains("IN A 192.0.2.80"),
                "{output}"
            );
        }
        assert_eq!(upstream.asked("www.example.com."), 1);
        let output = dig(&["+short", "CNAME", "out.default.svc.cluster.local"]);
        assert_eq!(output.trim(), "www.example.com.");
    });
}

#[test]
fn a_forwarding_loop_is_found_and_left_out() {
    isolated(|| {
        let looping = Upstream::start(FIRST, Behaviour::Relay(SERVER.parse().unwrap()));
        let good = Upstream::start(SECOND, Behaviour::Answer);
        let _server = Running::start(config(&[&looping, &good]));
        ready();
        let mut number = 0;
        until("the loop is left out", || {
            number += 1;
            let name = format!("a{number}.example.com.");
            assert_eq!(found(&name), FOUND);
            (looping.asked(&name) == 0).then_some(())
        });
    });
    isolated(|| {
        let looping = Upstream::start(FIRST, Behaviour::Relay(SERVER.parse().unwrap()));
        let _server = Running::start(config(&[&looping]));
        let output = until("the loop is told", || {
            Some(dig(&["www.example.com"])).filter(|output| output.contains("forward to this server"))
        });
        assert!(output.contains("status: SERVFAIL"), "{output}");
        assert_eq!(
            found("web.default.svc.cluster.local."),
            ["10.96.0.20"],
            "cluster names do not suffer"
        );
    });
}

#[test]
fn the_same_question_is_asked_once_and_too_many_are_refused() {
    isolated(|| {
        let upstream = Upstream::start(FIRST, Behaviour::Answer);
        let _server = Running::start(Config {
            concurrent_max: 3,
            ..config(&[&upstream])
        });
        ready();
        upstream.behave(Behaviour::Silent);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(SERVER).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        for id in [1, 2] {
            socket
                .send(&question(id, "same.example.com.", RecordType::A))
                .unwrap();
        }
        for id in 3..6 {
            socket
                .send(&question(id, &format!("a{id}.example.com."), RecordType::A))
                .unwrap();
        }
        let mut rcodes = Vec::new();
        for _ in 0..5 {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            rcodes.push(message.metadata.response_code);
        }
        assert_eq!(rcodes[..2], [ResponseCode::Refused; 2], "those are told at once");
        assert_eq!(rcodes[2..], [ResponseCode::ServFail; 3]);
        assert_eq!(upstream.asked("same.example.com."), 1);
    });
}

#[test]
fn the_nodes_resolvers_are_read_again_when_they_change() {
    isolated(|| {
        let directory = tempfile::tempdir().unwrap();
        let resolv_conf = directory.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 127.0.1.1\nnameserver 127.0.0.53\n").unwrap();
        let first = Upstream::start(FIRST, Behaviour::Answer);
        let second = Upstream::start(SECOND, Behaviour::Answer);
        let _server = Running::start(Config {
            upstreams: None,
            resolv_conf: resolv_conf.clone(),
            ..config(&[])
        });
        ready();
        assert_eq!(first.asked("ready.example.com."), 1);
        std::fs::write(&resolv_conf, "nameserver 127.0.1.2\n").unwrap();
        let mut number = 0;
        until("the new one is asked", || {
            number += 1;
            let name = format!("a{number}.example.com.");
            assert_eq!(found(&name), FOUND);
            (second.asked(&name) == 1).then_some(())
        });
    });
}
