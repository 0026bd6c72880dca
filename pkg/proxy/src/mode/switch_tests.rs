use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use svcnet_netlink::local::LocalFor;
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::{Rtnl, sysctl};
use svcnet_runtime::Change;

use super::*;
use crate::desired::Settings;
use crate::engine::Update;

const VIP: &str = "10.96.1.1:80";
const PATIENCE: Duration = Duration::from_secs(30);

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Answers each byte over TCP, and each datagram over UDP with its address.
fn echo(at: SocketAddr) {
    let (tcp, udp) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(at.ip().to_string().as_bytes(), peer);
        }
    });
}

fn answers(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// Who answers a datagram.
fn who(socket: &UdpSocket) -> Option<String> {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send(b"?").ok()?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn service() -> Update {
    let service = json!({
        "metadata": { "namespace": "default", "name": "web" },
        "spec": { "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [
            { "name": "t", "port": 80, "protocol": "TCP" }, { "name": "u", "port": 80, "protocol": "UDP" },
        ]},
    });
    Update::Services(Change::Reset(vec![Arc::new(
        serde_json::from_value(service).unwrap(),
    )]))
}

fn slice(endpoint: &str) -> Update {
    let slice = json!({
        "metadata": {
            "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "ports": [
            { "name": "t", "port": 8080, "protocol": "TCP" }, { "name": "u", "port": 8080, "protocol": "UDP" },
        ],
        "endpoints": [{ "addresses": [endpoint], "conditions": {} }],
    });
    Update::Slices(Change::Reset(vec![Arc::new(
        serde_json::from_value(slice).unwrap(),
    )]))
}

fn prepare() {
    for words in [
        "link set lo up",
        "address add 10.244.1.5/32 dev lo",
        "address add 10.244.1.6/32 dev lo",
        "route add 10.96.0.0/12 dev lo",
    ] {
        run("ip", words);
    }
    // As on a node, where the overlay has such a rule: connections go on being translated without our table.
    run("nft", "add table ip overlay");
    run(
        "nft",
        "add chain ip overlay out { type nat hook postrouting priority 100 ; }",
    );
    run("nft", "add rule ip overlay out ip daddr 198.51.100.1 masquerade");
    echo("10.244.1.5:8080".parse().unwrap());
    echo("10.244.1.6:8080".parse().unwrap());
}

fn openers(dir: &std::path::Path) -> Openers {
    Openers {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        sysctls: Sysctls::new(dir),
        on_loopback: true,
        strict_arp: false,
        timeouts: Timeouts::default(),
        relays: None,
        admission: None,
    }
}

/// Connections, datagrams and what is left behind, from nftables to userspace and back.
#[test]
fn one_mode_takes_over_from_another() {
    let (netns, dir) = (
        OwnedNetNs::unique("svcnet-mode").unwrap(),
        tempfile::tempdir().unwrap(),
    );
    netns
        .run(|| {
            prepare();
            // What a relaying proxy that was killed has left.
            Rtnl::open()
                .unwrap()
                .add_local_address(LocalFor::Relays, [10, 96, 9, 9].into(), None)
                .unwrap();
            let (mut modes, backend) = Modes::start(openers(dir.path()), Mode::Nftables).unwrap();
            let mut engine = Engine::new("n1", Settings::default(), backend);
            engine.apply_change(service());
            engine.apply_change(slice("10.244.1.5"));
            engine.sync().unwrap();
            modes.clear(&engine);
            assert!(
                Rtnl::open()
                    .unwrap()
                    .local_addresses(LocalFor::Relays)
                    .unwrap()
                    .is_empty()
            );
            let mut translated = TcpStream::connect(VIP).unwrap();
            answers(&mut translated);
            let datagrams = UdpSocket::bind("10.244.1.5:0").unwrap();
            datagrams.connect(VIP).unwrap();
            assert_eq!(who(&datagrams).as_deref(), Some("10.244.1.5"));

            assert!(modes.switch(Mode::Userspace, &mut engine));
            modes.clear(&engine);
            assert_eq!(run("nft", "list tables"), "table ip overlay\n");
            assert_eq!(sysctl::read(ROUTE_LOCALNET).unwrap(), "0");
            answers(&mut translated);
            let mut relayed = TcpStream::connect(VIP).unwrap();
            answers(&mut relayed);
            // Datagrams are looked after by the new mode: they follow the endpoints.
            assert_eq!(who(&datagrams).as_deref(), Some("10.244.1.5"));
            engine.apply_change(slice("10.244.1.6"));
            engine.sync().unwrap();
            assert_eq!(who(&datagrams).as_deref(), Some("10.244.1.6"));

            assert!(modes.switch(Mode::Nftables, &mut engine));
            modes.clear(&engine);
            assert!(run("nft", "list tables").contains("table ip svcnet\n"));
            answers(&mut relayed);
            answers(&mut translated);
            assert_eq!(who(&datagrams).as_deref(), Some("10.244.1.6"));
            engine.apply_change(slice("10.244.1.5"));
            engine.sync().unwrap();
            assert_eq!(who(&datagrams).as_deref(), Some("10.244.1.5"));
            let mut new = TcpStream::connect(VIP).unwrap();
            answers(&mut new);
            drop(relayed);
            until("nothing of the relays is left", || {
                Rtnl::open()
                    .unwrap()
                    .local_addresses(LocalFor::Relays)
                    .unwrap()
                    .is_empty()
            });
            until("nor of what they set", || {
                sysctl::read("net/ipv4/conf/all/arp_ignore").unwrap() == "0"
            });
            answers(&mut new);
            drop((engine, modes));
            assert_eq!(cleanup(&Sysctls::new(dir.path())).unwrap(), [Mode::Nftables]);
            assert_eq!(cleanup(&Sysctls::new(dir.path())).unwrap(), []);
            assert_eq!(run("nft", "list tables"), "table ip overlay\n");
        })
        .unwrap();
}

/// A mode that can not be leaves the former one; one that has not taken it all does too.
#[test]
fn what_can_not_be_is_stood_in_for() {
    let (netns, dir) = (
        OwnedNetNs::unique("svcnet-mode").unwrap(),
        tempfile::tempdir().unwrap(),
    );
    netns
        .run(|| {
            prepare();
            let (mut modes, backend) = Modes::start(openers(dir.path()), Mode::Userspace).unwrap();
            let mut engine = Engine::new("n1", Settings::default(), backend);
            engine.apply_change(service());
            engine.apply_change(slice("10.244.1.5"));
            engine.sync().unwrap();
            assert!(modes.switch(Mode::Ipvs, &mut engine));
            assert_eq!(
                (modes.choice().asked, modes.choice().used),
                (Mode::Ipvs, Mode::Nftables)
            );
            assert_eq!(modes.choice().refused.len(), 1);
            assert_eq!(engine.mode(), "nftables");
            assert!(!modes.switch(Mode::Nftables, &mut engine), "which it has already");
            assert_eq!(modes.choice().asked, Mode::Nftables);
            assert!(modes.choice().refused.is_empty());
            answers(&mut TcpStream::connect(VIP).unwrap());
        })
        .unwrap();
}
