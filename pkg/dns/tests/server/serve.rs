//! The server as its clients see it: datagrams, connections, truncation, nonsense, addresses that come and go.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use svcnet_dns::Config;
use svcnet_netlink::Rtnl;
use svcnet_netlink::addr::Address;

use crate::fixture::{Running, SERVER, answers, ask, config, dig, dig_at, isolated, question, until};

const WEB: &str = "web.default.svc.cluster.local.";

#[test]
fn dig_gets_what_it_asks_for() {
    isolated(|| {
        let _server = Running::start(config(&[]));
        assert_eq!(
            answers(WEB, RecordType::A),
            ("No Error".to_string(), vec!["10.96.0.20".to_string()])
        );
        for transport in ["+notcp", "+tcp"] {
            let output = dig(&[transport, "WEB.default.svc.cluster.local"]);
            assert!(
                output.contains("status: NOERROR") && output.contains("flags: qr aa rd ra"),
                "{output}"
            );
            assert!(
                output.contains("WEB.default.svc.cluster.local. 30 IN A 10.96.0.20"),
                "{output}"
            );
        }
        let output = dig(&["AAAA", WEB]);
        assert!(
            output.contains("status: NOERROR") && output.contains("IN SOA ns.dns.cluster.local."),
            "{output}"
        );
        let output = dig(&["gone.default.svc.cluster.local"]);
        assert!(
            output.contains("status: NXDOMAIN") && output.contains("IN SOA"),
            "{output}"
        );
        let output = dig(&["SRV", "_http._tcp.web.default.svc.cluster.local"]);
        assert!(
            output.contains("SRV 0 100 80 web.default.svc.cluster.local."),
            "{output}"
        );
        assert!(
            output.contains("ADDITIONAL: 2") && output.contains("A 10.96.0.20"),
            "{output}"
        );
        let output = dig(&["-x", "10.96.0.20", "+short"]);
        assert_eq!(output.trim(), WEB);
        let output = dig(&["TXT", "dns-version.cluster.local", "+short"]);
        assert_eq!(output.trim(), "\"1.1.0\"");
        let output = dig(&["CH", "TXT", "version.bind"]);
        assert!(output.contains("status: REFUSED"), "{output}");
        let output = dig(&["AXFR", "cluster.local"]);
        assert!(output.contains("Transfer failed"), "{output}");
        let output = dig(&["+edns=1", "+noednsnegotiation", WEB]);
        assert!(
            output.contains("status: BADVERS") && output.contains("version: 0"),
            "{output}"
        );
        let output = dig(&["+opcode=NOTIFY", WEB]);
        assert!(output.contains("status: NOTIMP"), "{output}");
    });
}

#[test]
fn long_answers_are_cut_and_asked_for_again() {
    isolated(|| {
        let _server = Running::start(config(&[]));
        let name = "many.default.svc.cluster.local.";
        answers(name, RecordType::A);
        let cut = dig(&["+ignore", "+noedns", name]);
        assert!(cut.contains("flags: qr aa tc rd ra"), "{cut}");
        let whole = dig(&["+short", name]);
        assert_eq!(whole.lines().count(), 100, "dig comes back over TCP");
    });
}

#[test]
fn nonsense_is_survived() {
    isolated(|| {
        let _server = Running::start(config(&[]));
        answers(WEB, RecordType::A);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(SERVER).unwrap();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..2000 {
            let mut bytes = Vec::new();
            while bytes.len() < (state % 97) as usize {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend_from_slice(&state.to_ne_bytes());
            }
            socket.send(&bytes).unwrap();
            state = state.wrapping_add(1);
        }
        // Longer than any question.
        socket.send(&[0; 9000]).unwrap();
        let good = question(99, WEB, RecordType::A);
        let mut buffer = [0; 4096];
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        until("a question among the nonsense is answered", || {
            socket.send(&good).unwrap();
            let length = socket.recv(&mut buffer).ok()?;
            let message = Message::from_vec(&buffer[..length]).ok()?;
            (message.metadata.id == 99 && message.answers.len() == 1).then_some(())
        });
        // The same over TCP: too short for a header, the server hangs up.
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
        assert!(ask(WEB, RecordType::A).is_some());
    });
}

#[test]
fn many_questions_share_a_connection() {
    isolated(|| {
        let _server = Running::start(config(&[]));
        answers(WEB, RecordType::A);
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut sent = Vec::new();
        for id in 0..200_u16 {
            let message = question(id, WEB, RecordType::A);
            sent.extend_from_slice(&(message.len() as u16).to_be_bytes());
            sent.extend_from_slice(&message);
        }
        stream.write_all(&sent).unwrap();
        let mut seen = Vec::new();
        for _ in 0..200 {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            seen.push(Message::from_vec(&answer).unwrap().metadata.id);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<u16>>());
    });
}

#[test]
fn the_cluster_address_is_put_in_place_and_kept_there() {
    isolated(|| {
        let addresses: Vec<IpAddr> = vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()];
        let server = Config {
            addresses: addresses.clone(),
            extra_listen: Vec::new(),
            bind_interface: "lo".parse().ok(),
            ..config(&[])
        };
        let mut server = Running::start(server);
        for address in &addresses {
            until(&format!("{address} answers"), || {
                (dig_at(*address, &["+short", WEB]).trim() == "10.96.0.20").then_some(())
            });
        }
        let mut rtnl = Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap().unwrap().index;
        for address in &addresses {
            let removed = Address {
                link: lo,
                net: (*address).into(),
            };
            rtnl.delete_address(removed).unwrap();
            until("the address is back", || {
                rtnl.addresses(Some(lo)).unwrap().contains(&removed).then_some(())
            });
            assert_eq!(dig_at(*address, &["+short", WEB]).trim(), "10.96.0.20");
        }
        server.stop();
        assert_eq!(
            rtnl.addresses(Some(lo))
                .unwrap()
                .iter()
                .filter(|a| addresses.contains(&a.net.addr()))
                .count(),
            2
        );
    });
}

#[test]
fn a_busy_port_is_waited_for() {
    isolated(|| {
        let holder = UdpSocket::bind("0.0.0.0:53").unwrap();
        let mut server = Running::start(config(&[]));
        holder.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // The holder hears what is meant for us: we do not answer beside it.
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&question(1, WEB, RecordType::A), SERVER).unwrap();
        assert!(holder.recv(&mut [0; 512]).is_ok());
        drop(holder);
        assert_eq!(answers_soon(), ["10.96.0.20"]);
        // A second one keeps off as long as the first one lives.
        let mut second = Running::start(config(&[]));
        std::thread::sleep(Duration::from_millis(300));
        server.stop();
        assert_eq!(answers_soon(), ["10.96.0.20"]);
        second.stop();
        assert!(UdpSocket::bind(SERVER).is_ok(), "the port is free again");
    });
}

/// Like [`answers`], for when a question may be lost because nobody listens yet.
fn answers_soon() -> Vec<String> {
    until("an answer", || {
        let output = dig(&["+short", "+time=1", WEB]);
        (output.trim() == "10.96.0.20").then(|| vec![output.trim().to_string()])
    })
}

#[test]
fn nothing_is_denied_before_the_first_lists() {
    isolated(|| {
        let server = Running::start(config(&[]));
        let complete = server.publisher.current();
        let empty = svcnet_dns::Server::new(config(&[])).publisher().current();
        server.publisher.publish((*empty).clone());
        let output = until("an answer", || {
            Some(dig(&[WEB])).filter(|output| output.contains("status: SERVFAIL"))
        });
        assert!(output.contains("EDE: 14 (Not Ready)"), "{output}");
        server.publisher.publish((*complete).clone());
        assert_eq!(answers_soon(), ["10.96.0.20"]);
    });
}
