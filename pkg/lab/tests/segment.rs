//! The segment, made for real: members reach each other until a cable is cut, and nothing is left behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use svcnet_lab::exec::Sandbox;
use svcnet_lab::names::{LabName, Member, Stack};
use svcnet_lab::plan::LabPlan;
use svcnet_lab::state::{LabDir, LabRecord, StateError};
use svcnet_lab::{down, process, segment, state};
use svcnet_netlink::netns::{self, NetNs};

/// A segment without processes, removed when dropped.
struct Segment(LabName);

impl Segment {
    fn new(name: &str, nodes: u32) -> Self {
        let name: LabName = format!("{name}{}", std::process::id()).parse().unwrap();
        let record = LabRecord {
            name: name.clone(),
            nodes,
            stack: Stack::Dual,
            binary: "/bin/false".into(),
            server_args: Vec::new(),
            agent_args: Vec::new(),
        };
        let dir = LabDir::of(&name);
        dir.claim().unwrap();
        let segment = Self(name);
        dir.write_record(&record).unwrap();
        segment::build(&LabPlan::of(&record).unwrap()).unwrap();
        segment
    }

    fn sandbox(&self, member: &str) -> Sandbox {
        let member: Member = member.parse().unwrap();
        Sandbox::open(&self.0.netns(&member), &member.to_string()).unwrap()
    }

    fn pings(&self, from: &str, to: &str) -> bool {
        let mut ping = Command::new("ping");
        ping.args(["-c", "1", "-W", "1", to])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.sandbox(from)
            .spawn(&mut ping)
            .unwrap()
            .wait()
            .unwrap()
            .success()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let gone = down::down(&self.0);
        if !std::thread::panicking() {
            gone.unwrap();
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
    }
}

#[test]
fn members_reach_each_other_until_a_cable_is_cut() {
    let segment = Segment::new("cable", 2);
    until("n1 reaches n2", || segment.pings("n1", "172.30.0.12"));
    until("the client reaches n1", || segment.pings("client", "172.30.0.11"));
    until("and over IPv6", || segment.pings("client", "fd00:172:30::11"));
    let n2: Member = "n2".parse().unwrap();
    segment::set_cable(&segment.0, &n2, false).unwrap();
    assert_eq!(segment::cut_cables(&segment.0), ["n2"]);
    assert!(!segment.pings("n1", "172.30.0.12"));
    assert!(segment.pings("client", "172.30.0.11"), "other cables are whole");
    segment::set_cable(&segment.0, &n2, true).unwrap();
    until("n1 reaches n2 again", || segment.pings("n1", "172.30.0.12"));
    assert!(segment::cut_cables(&segment.0).is_empty());
}

#[test]
fn a_command_in_a_member_has_its_name_and_its_resolver() {
    let segment = Segment::new("box", 1);
    let netns = segment.0.netns(&Member::Client);
    let resolv_conf = svcnet_lab::exec::resolv_conf_of(&netns);
    std::fs::create_dir_all(resolv_conf.parent().unwrap()).unwrap();
    std::fs::write(&resolv_conf, "nameserver 10.96.0.10\n").unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "hostname; cat /etc/resolv.conf"])
        .stdout(Stdio::piped());
    let child = segment.sandbox("client").spawn(&mut command).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "client\nnameserver 10.96.0.10\n"
    );
    // Outside nothing of it is seen.
    assert_ne!(
        std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        "nameserver 10.96.0.10\n"
    );
    let name = segment.0.clone();
    drop(segment);
    assert!(!resolv_conf.exists(), "it goes with the lab");
    assert!(!state::labs().contains(&name));
}

#[test]
fn down_ends_whatever_runs_there_and_takes_a_half_made_lab_too() {
    let segment = Segment::new("half", 1);
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let mut child = segment.sandbox("n1").spawn(&mut sleeper).unwrap();
    let id = NetNs::open(&segment.0.netns(&"n1".parse().unwrap()))
        .unwrap()
        .id()
        .unwrap();
    let inside = process::inside(&[id]);
    assert_eq!(
        inside.iter().map(|p| p.pid).collect::<Vec<_>>(),
        [i32::try_from(child.id()).unwrap()]
    );
    assert!(!LabDir::of(&segment.0).is_complete());
    assert!(matches!(
        LabDir::of(&segment.0).claim(),
        Err(StateError::Exists(_))
    ));
    let removed = down::down(&segment.0).unwrap().unwrap();
    assert_eq!((removed.processes, removed.namespaces), (1, 3));
    assert!(!child.wait().unwrap().success());
    let prefix = format!("{}-", segment.0);
    assert!(
        !netns::list()
            .unwrap()
            .iter()
            .any(|name| name.starts_with(&prefix))
    );
    assert_eq!(down::down(&segment.0).unwrap(), None, "again is no error");
}
