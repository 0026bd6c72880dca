//! A name server outside the cluster, for what the cluster's DNS forwards.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use svcnet_netlink::netns::NetNs;

use crate::Lab;

/// Answers on UDP port 53 of the lab's client until dropped: one name has one address, the rest does not exist.
#[derive(Debug)]
pub struct Upstream {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts the server.
    ///
    /// # Panics
    /// When the lab has no client, or port 53 is taken there.
    #[track_caller]
    pub fn start(lab: &Lab, name: &str, address: Ipv4Addr) -> Self {
        let client =
            NetNs::open(&lab.namespace("client")).unwrap_or_else(|error| panic!("no client: {error}"));
        let socket = client.run(|| UdpSocket::bind("172.30.0.100:53"));
        let socket = socket.unwrap_or_else(|error| panic!("cannot enter the client: {error}"));
        let socket = socket.unwrap_or_else(|error| panic!("port 53 of the client: {error}"));
        let timeout = socket.set_read_timeout(Some(Duration::from_millis(100)));
        timeout.unwrap_or_else(|error| panic!("{error}"));
        let name = Name::from_ascii(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else {
                    continue;
                };
                if let Some(answer) = answer(&packet[..length], &name, address) {
                    _ = socket.send_to(&answer, from);
                }
            }
        });
        Self {
            stop,
            server: Some(server),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            _ = server.join();
        }
    }
}

fn answer(packet: &[u8], name: &Name, address: Ipv4Addr) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).ok()?;
    let question = query.queries.first()?.clone();
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_available = true;
    if question.name() != name {
        answer.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        answer.add_answer(Record::from_rdata(name.clone(), 60, RData::A(rdata::A(address))));
    }
    answer.add_query(question);
    answer.to_vec().ok()
}
