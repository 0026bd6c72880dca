//! One question to an address: who answers, and whom do they think they talk to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// How long an answer may take: generous, machines can be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// Silence that counts as having been dropped. A refusal comes from the same host or the next one, without delay.
const SILENCE: Duration = Duration::from_millis(1200);

/// A transport that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered {
        who: String,
        seen: IpAddr,
    },
    Refused,
    Silence,
    /// The kernel did not even let the datagram out, and does not say whether it refuses or drops it.
    Withheld,
    Failed(String),
}

/// Asks in this thread's namespace. `mark` is the socket's firewall mark, 0 for none. `expects_silence` makes the wait
/// for an answer short.
pub(crate) fn ask(transport: Transport, to: SocketAddr, mark: u32, expects_silence: bool) -> Outcome {
    let patience = if expects_silence { SILENCE } else { PATIENCE };
    let asked = match transport {
        Transport::Tcp => ask_tcp(to, mark, patience),
        Transport::Udp => ask_udp(to, mark, patience),
    };
    match asked {
        Ok((who, seen)) => match seen.parse::<SocketAddr>() {
            Ok(seen) => Outcome::Answered {
                who,
                seen: seen.ip().to_canonical(),
            },
            Err(_) => Outcome::Failed(format!("{who} says that it saw {seen:?}")),
        },
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::PermissionDenied if transport == Transport::Udp => Outcome::Withheld,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silence,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

fn ask_tcp(to: SocketAddr, mark: u32, patience: Duration) -> io::Result<(String, String)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&SockAddr::from(to), patience)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.write_all(b"hostname\nclientip\n")?;
    let mut text = String::new();
    let mut byte = [0];
    while text.matches('\n').count() < 2 {
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "closed before answering",
            ));
        }
        text.push(char::from(byte[0]));
    }
    let mut lines = text.lines().map(str::to_string);
    Ok((lines.next().unwrap_or_default(), lines.next().unwrap_or_default()))
}

/// Both words over one socket: one flow, so one endpoint.
fn ask_udp(to: SocketAddr, mark: u32, patience: Duration) -> io::Result<(String, String)> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&SockAddr::from(to))?;
    socket.set_read_timeout(Some(patience))?;
    let word = |word: &str| -> io::Result<String> {
        socket.send(word.as_bytes())?;
        let mut answer = [0; 256];
        let length = (&socket).read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim().to_string())
    };
    Ok((word("hostname")?, word("clientip")?))
}
