//! UDP beside TCP on one port number, and SCTP.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_e2e::until;

use crate::probe::Transport;
use crate::stage::{Family, Stage};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports: [{name: udp, port: 80, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: sctp}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 3868, targetPort: 3869, protocol: SCTP}]
";

#[test]
fn two_protocols_on_one_port() {
    let stage = Stage::up(&[]);
    stage.lab.apply(SERVICES);
    for transport in [Transport::Udp, Transport::Tcp] {
        stage.check_over(
            transport,
            "web",
            "
            near far | vip    | web2 kept, web3 kept
            web2     | vip    | web2 by n2, web3 kept
            n1       | vip    | web2 by n1, web3 by n1
            client   | vip@n2 | web2 by n2, web3 by n2
            client   | n1     | web2 by n1, web3 by n1
            client   | n2     | web2 by n2, web3 by n2
            client   | lb@n1  | web2 by n1, web3 by n1
            near     | n1     | web2 by n1, web3 by n1
            n1       | n1     | web2 by n1, web3 by n1
            n1       | lo     | web2 by n1, web3 by n1
            near n1  | vip:81 | refused
            ",
        );
        stage.check_over(
            transport,
            "here",
            "
            near     | vip    | web2 kept
            far n1   | vip    | dropped
            client   | n1     | dropped
            client   | n2     | web2 kept
            client   | lb@n3  | web3 kept
            client   | lb@n1  | dropped
            near far | lb     | web2 kept, web3 kept
            ",
        );
    }
    stage.check_over(
        Transport::Udp,
        "nobody",
        "
        near far n1 n2 | vip | refused
        client n1 near | n1  | refused
        ",
    );
    for family in Family::ALL {
        sctp_reaches_a_pod(&stage, family);
    }
}

/// No SCTP sockets are needed for that: the first packet of an association is sent by hand, and looked for in the pods.
fn sctp_reaches_a_pod(stage: &Stage, family: Family) {
    let service = stage.service("sctp");
    let vip = family.pick(&service.cluster_ips).unwrap();
    let raw = |member: &str| {
        let socket = stage.netns(member).run(|| {
            let domain = Domain::for_address(SocketAddr::new(vip, 0));
            Socket::new(domain, Type::RAW, Some(Protocol::from(132))).unwrap()
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    };
    let near = raw("near");
    let near_ip = family.pick(stage.addresses("near")).unwrap();
    let mut source_port = 40_000u16;
    for pod in ["web2", "web3"] {
        let mut socket = raw(pod);
        let seen = until(&format!("{pod} gets an SCTP packet"), || {
            // Another port is another association, for which an endpoint is chosen anew.
            source_port += 1;
            let packet = sctp_init(source_port, service.port);
            near.send_to(&packet, &SockAddr::from(SocketAddr::new(vip, 0)))
                .unwrap();
            received(&mut socket, family)
        });
        assert_eq!(seen.destination_port, 3869, "the pod's port");
        if let Some(source) = seen.source {
            assert_eq!(source, near_ip, "the source is kept");
        }
        assert!(seen.source_port > 40_000);
    }
}

struct Seen {
    /// A raw IPv6 socket gives no header.
    source: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
}

fn received(socket: &mut Socket, family: Family) -> Option<Seen> {
    let mut packet = [0; 256];
    let length = socket.read(&mut packet).ok()?;
    let packet = &packet[..length];
    let (source, sctp) = match family {
        Family::V4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let source: [u8; 4] = packet[12..16].try_into().unwrap();
            (Some(IpAddr::from(source)), &packet[header..])
        }
        Family::V6 => (None, packet),
    };
    let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
    Some(Seen {
        source,
        source_port: port(0),
        destination_port: port(2),
    })
}

/// An INIT chunk (RFC 9260, 3.3.2): connection tracking looks at it, checksum included.
fn sctp_init(source_port: u16, destination_port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source_port.to_be_bytes());
    packet.extend(destination_port.to_be_bytes());
    packet.extend([0; 8]); // verification tag of an INIT, and the checksum for now
    packet.extend([1, 0, 0, 20]);
    packet.extend(0x0102_0304u32.to_be_bytes()); // initiate tag
    packet.extend(65_536u32.to_be_bytes()); // window
    packet.extend([0, 1, 0, 1]); // streams out and in
    packet.extend(1u32.to_be_bytes()); // initial TSN
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
