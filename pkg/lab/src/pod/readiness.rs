//! Whether a pod listens on its ports, without sending anything to it.
//!
//! The kernel's own tables are read instead of connecting: a program that serves one connection and ends, as `nc -l`
//! does, would be used up by a probe, and nothing can be asked over UDP without knowing the protocol.

use std::fs;
use std::io;

use super::spec::{ContainerPort, Protocol};

/// `TCP_LISTEN` in include/net/tcp_states.h.
const TCP_LISTEN: &str = "0A";

/// The first of the ports that nobody listens on, in the network namespace of a process.
///
/// # Errors
/// When the process is gone.
pub fn first_silent(pid: u32, ports: &[ContainerPort]) -> io::Result<Option<&ContainerPort>> {
    let table = |protocol: Protocol| -> io::Result<String> {
        let name = protocol.to_string().to_lowercase();
        let v4 = fs::read_to_string(format!("/proc/{pid}/net/{name}"))?;
        // Not there in a kernel without IPv6.
        let v6 = fs::read_to_string(format!("/proc/{pid}/net/{name}6")).unwrap_or_default();
        Ok(v4 + &v6)
    };
    let (mut tcp, mut udp) = (None, None);
    for port in ports {
        let cached = match port.protocol {
            Protocol::Tcp => &mut tcp,
            Protocol::Udp => &mut udp,
        };
        let text = match cached {
            Some(text) => text,
            None => cached.insert(table(port.protocol)?),
        };
        if !listens(text, port) {
            return Ok(Some(port));
        }
    }
    Ok(None)
}

/// Whether a table of /proc/net has a listening (TCP) or bound (UDP) socket on the port.
fn listens(table: &str, port: &ContainerPort) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1), fields.nth(1));
        let number = local
            .and_then(|local| local.rsplit_once(':'))
            .and_then(|(_, number)| u16::from_str_radix(number, 16).ok());
        number == Some(port.number) && (port.protocol == Protocol::Udp || state == Some(TCP_LISTEN))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
        \x20  0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
        \x20  1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0\n";

    #[test]
    fn only_listening_sockets_count() {
        assert!(listens(TCP, &"80".parse().unwrap()));
        assert!(
            !listens(TCP, &"8080".parse().unwrap()),
            "an established connection"
        );
        assert!(!listens(TCP, &"81".parse().unwrap()));
    }

    #[test]
    fn the_kernel_tells_of_a_listener_and_of_a_bound_socket() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports: Vec<ContainerPort> = vec![
            format!("{}", tcp.local_addr().unwrap().port()).parse().unwrap(),
            format!("{}/udp", udp.local_addr().unwrap().port())
                .parse()
                .unwrap(),
        ];
        let pid = std::process::id();
        assert_eq!(first_silent(pid, &ports).unwrap(), None);
        drop(tcp);
        assert_eq!(first_silent(pid, &ports).unwrap(), Some(&ports[0]));
    }
}
