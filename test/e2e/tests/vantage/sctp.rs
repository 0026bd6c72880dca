//! SCTP. No sockets of it are needed: the first packet of an association is sent by hand, and looked for in the pods, or
//! the error that refuses it where it came from.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use svcnet_e2e::until;

use crate::stage::{Family, Mode, Stage};
use crate::table::Expected;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: sctp}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 3868, targetPort: 3869, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: sctp-here}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 3868, targetPort: 3869, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: sctp-nobody}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports: [{port: 3868, protocol: SCTP}]
";

const SCTP: u8 = 132;
/// The port that packets come to in a pod.
const TARGET_PORT: u16 = 3869;
/// Silence that counts as having been dropped.
const SILENCE: Duration = Duration::from_millis(1200);
/// How often nothing must come of it.
const DROPS: usize = 3;

#[test]
fn sctp_from_each_vantage() {
    let stage = Stage::up(&[]);
    stage.lab.apply(SERVICES);
    let mut ports = 40_000;
    let mut check = |service: &str, table: &str| {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            row(&stage, service, line, &mut ports);
        }
    };
    if stage.mode == Mode::Userspace {
        // Relays are of TCP and UDP: the node itself is asked, and says that it does not speak SCTP.
        return check("sctp", "near far | vip | refused\nclient | n1 | refused");
    }
    check(
        "sctp",
        "
        near far | vip | web2 kept, web3 kept
        n1       | vip | web2 by n1, web3 by n1
        client   | n1  | web2 by n1, web3 by n1
        n1       | lo  | web2 by n1, web3 by n1
        ",
    );
    check(
        "sctp-here",
        "
        near     | vip | web2 kept
        far n1   | vip | dropped
        client   | n1  | dropped
        client   | n2  | web2 kept
        client   | n3  | web3 kept
        ",
    );
    check(
        "sctp-nobody",
        "
        near far | vip    | refused
        client   | vip@n1 | refused
        client   | n2     | refused
        ",
    );
}

/// Checks a line of a table as in `table.rs`, one packet after the other.
fn row(stage: &Stage, service: &str, line: &str, ports: &mut u16) {
    let columns: Vec<&str> = line.split('|').map(str::trim).collect();
    let [vantages, target, outcome] = columns[..] else {
        panic!("not a row: {line:?}")
    };
    let service = stage.service(service);
    for vantage in vantages.split_whitespace() {
        for family in Family::ALL {
            let (to, mark) = stage.target(&service, family, target);
            let ends = Ends::open(stage, vantage, to, mark);
            let what = format!("{vantage} | {target} | {outcome} ({family:?}, SCTP to {to})");
            let mut ask = || {
                // Another port is another association, for which an endpoint is chosen anew.
                *ports += 1;
                ends.ask(*ports)
            };
            match stage.expected(vantage, family, outcome) {
                Expected::Refused => until(&what, || (ask() == Outcome::Refused).then_some(())),
                Expected::Dropped => {
                    until(&what, || (ask() == Outcome::Silence).then_some(()));
                    for _ in 0..DROPS {
                        assert_eq!(ask(), Outcome::Silence, "{what}");
                    }
                }
                Expected::Answers { by, .. } => {
                    let mut missing: Vec<&String> = by.keys().collect();
                    until(&what, || {
                        let Outcome::Reached { pod, source } = ask() else {
                            return None;
                        };
                        let right = by.get(pod).unwrap_or_else(|| panic!("{what}: {pod} got it"));
                        let seen = source.is_none_or(|source| right.contains(&source));
                        assert!(seen, "{what}: {pod} saw {source:?}, which is none of {right:?}");
                        missing.retain(|name| *name != pod);
                        missing.is_empty().then_some(())
                    });
                }
            }
        }
    }
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A raw IPv6 socket gives no header, and so no source.
    Reached {
        pod: &'static str,
        source: Option<IpAddr>,
    },
    Refused,
    Silence,
}

/// Where packets leave, where they may arrive, and where errors come back to.
struct Ends {
    to: SocketAddr,
    from: Socket,
    errors: Socket,
    /// Type and code of the error that refuses a packet.
    refusal: [u8; 2],
    pods: [(&'static str, Socket); 2],
}

impl Ends {
    fn open(stage: &Stage, vantage: &str, to: SocketAddr, mark: u32) -> Self {
        let raw = |member: &str, protocol: u8| {
            let open = || {
                Socket::new(
                    Domain::for_address(to),
                    Type::RAW,
                    Some(Protocol::from(i32::from(protocol))),
                )
            };
            let socket = stage.netns(member).run(open).unwrap().unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let from = raw(vantage, SCTP);
        if mark != 0 {
            from.set_mark(mark).unwrap();
        }
        Self {
            to,
            from,
            errors: raw(vantage, if to.is_ipv4() { 1 } else { 58 }),
            refusal: match (stage.mode, to.is_ipv4()) {
                // Protocol unreachable; unrecognized next header.
                (Mode::Userspace, true) => [3, 2],
                (Mode::Userspace, false) => [4, 1],
                // Port unreachable.
                (_, true) => [3, 3],
                (_, false) => [1, 4],
            },
            pods: ["web2", "web3"].map(|pod| (pod, raw(pod, SCTP))),
        }
    }

    fn ask(&self, source_port: u16) -> Outcome {
        let packet = init(source_port, self.to.port());
        let sent = self
            .from
            .send_to(&packet, &SockAddr::from(SocketAddr::new(self.to.ip(), 0)));
        if let Err(error) = sent {
            // The kernel did not even let it out: refused or dropped, which is told by the error that follows, or not.
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
        let begun = Instant::now();
        while begun.elapsed() < SILENCE {
            for (pod, socket) in &self.pods {
                while let Some(packet) = received(socket) {
                    let (source, sctp) = without_header(&packet, self.to.is_ipv4());
                    // A node may have changed the port; nobody else sends to this one.
                    if port(sctp, 2) == Some(TARGET_PORT) {
                        return Outcome::Reached { pod, source };
                    }
                }
            }
            while let Some(packet) = received(&self.errors) {
                if self.refuses(&packet, source_port) {
                    return Outcome::Refused;
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Outcome::Silence
    }

    /// Whether it is the ICMP error that refuses that packet.
    fn refuses(&self, packet: &[u8], source_port: u16) -> bool {
        let v4 = self.to.is_ipv4();
        let (_, icmp) = without_header(packet, v4);
        let Some(quoted) = icmp.strip_prefix(&self.refusal).and_then(|rest| rest.get(6..)) else {
            return false;
        };
        let sctp = if v4 {
            without_header(quoted, true).1
        } else {
            quoted.get(40..).unwrap_or_default()
        };
        port(sctp, 0) == Some(source_port)
    }
}

fn received(socket: &Socket) -> Option<Vec<u8>> {
    let mut packet = [0; 512];
    let mut reader = socket;
    let length = reader.read(&mut packet).ok()?;
    Some(packet[..length].to_vec())
}

/// What follows an IPv4 header, and the source in it.
fn without_header(packet: &[u8], v4: bool) -> (Option<IpAddr>, &[u8]) {
    if !v4 {
        return (None, packet);
    }
    let header = usize::from(packet.first().copied().unwrap_or_default() & 0xf) * 4;
    let source = packet
        .get(12..16)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    (source.map(IpAddr::from), packet.get(header..).unwrap_or_default())
}

fn port(sctp: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(sctp.get(at..at + 2)?.try_into().ok()?))
}

/// An INIT chunk (RFC 9260, 3.3.2): connection tracking looks at it, checksum included.
fn init(source_port: u16, destination_port: u16) -> Vec<u8> {
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
