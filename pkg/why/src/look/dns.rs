//! What the node's DNS server says.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::seen::DnsSeen;
use crate::trace::DnsExpected;

const PORT: u16 = 53;
/// A server on this node answers in less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;
/// As much as a server sends over UDP to one who does not say more.
const ANSWER_MAX: usize = 1232;

/// Asks for the addresses of a name, of both families.
pub(super) fn ask(server: IpAddr, expected: &DnsExpected) -> DnsSeen {
    let mut found = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        match addresses(server, &expected.name, kind) {
            Ok(addresses) => found.extend(addresses),
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_string(),
                    io::ErrorKind::ConnectionRefused => "nobody listens there".to_string(),
                    _ => error.to_string(),
                };
                return DnsSeen::Silent { server, why };
            }
        }
    }
    // Servers turn the order around: it means nothing, and the expected ones are compared in theirs.
    found.sort_by_key(|ip| expected.addresses.iter().position(|wanted| wanted == ip));
    DnsSeen::Answered(found)
}

fn addresses(server: IpAddr, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr = if server.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(server, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = Name::from_ascii(format!("{name}.")).map_err(io::Error::other)?;
    // The socket is connected and takes one answer: the number tells nothing apart.
    let mut question = Message::new(1, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, kind));
    let question = question.to_vec().map_err(io::Error::other)?;
    let mut answer = [0; ANSWER_MAX];
    for attempt in 1..=ATTEMPTS {
        socket.send(&question)?;
        match socket.recv(&mut answer) {
            Ok(length) => return read(answer.get(..length).unwrap_or_default()),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
    }
    Ok(Vec::new())
}

fn read(bytes: &[u8]) -> io::Result<Vec<IpAddr>> {
    let answer = Message::from_vec(bytes).map_err(io::Error::other)?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(io::Error::other(format!("it says {code}"))),
    }
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    });
    Ok(addresses.collect())
}
