//! The program of a pod that was given none: it tells who answers and who asked.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::spec::{ContainerPort, Protocol};

/// A line of the plain protocol is never longer.
const LINE_MAX: u64 = 512;

/// A port that can not be listened on, or was lost.
#[derive(Debug, thiserror::Error)]
#[error("answer on port {port}")]
pub struct ResponderError {
    port: String,
    source: io::Error,
}

/// Answers on ports until it is dropped.
#[derive(Debug, Clone)]
pub struct Responder {
    /// The name that it answers with.
    pub name: String,
    /// Where it listens.
    pub ports: Vec<ContainerPort>,
}

/// What can be asked, over HTTP as a path, over plain TCP and UDP as a word.
fn answer(word: &str, name: &str, asker: SocketAddr) -> Option<String> {
    match word {
        "" | "hostname" => Some(format!("{name}\n")),
        "clientip" => Some(format!(
            "{}\n",
            SocketAddr::new(asker.ip().to_canonical(), asker.port())
        )),
        _ => None,
    }
}

impl Responder {
    /// Listens on all ports and answers, without end.
    ///
    /// # Errors
    /// When a port can not be listened on.
    pub async fn run(self) -> Result<(), ResponderError> {
        let mut servers = JoinSet::new();
        for port in &self.ports {
            let name = self.name.clone();
            let failed = |source| ResponderError {
                port: port.to_string(),
                source,
            };
            match port.protocol {
                Protocol::Tcp => {
                    let listener = listen_tcp(port.number).await.map_err(failed)?;
                    servers.spawn(serve_tcp(listener, name));
                }
                Protocol::Udp => {
                    let socket = bind_udp(port.number).await.map_err(failed)?;
                    servers.spawn(serve_udp(socket, name));
                }
            }
        }
        while servers.join_next().await.is_some() {}
        std::future::pending().await
    }
}

/// For both families where there are two, else for IPv4.
async fn listen_tcp(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(("::", port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await,
    }
}

async fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    match UdpSocket::bind(("::", port)).await {
        Ok(socket) => Ok(socket),
        Err(_) => UdpSocket::bind(("0.0.0.0", port)).await,
    }
}

async fn serve_tcp(listener: TcpListener, name: String) {
    loop {
        match listener.accept().await {
            Ok((stream, asker)) => {
                let name = name.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(stream, asker, name).await {
                        tracing::debug!(%error, src.addr = %asker, "a connection broke");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, for one: they come back as connections end.
                tracing::debug!(%error, "accepting a connection failed");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

/// HTTP if the first byte is of a method, in capitals; the plain protocol otherwise.
async fn serve_connection(stream: TcpStream, asker: SocketAddr, name: String) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    if !first[0].is_ascii_uppercase() {
        return serve_plain(stream, asker, &name).await;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.uri().path(), &name, asker);
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

fn respond(path: &str, name: &str, asker: SocketAddr) -> Response<Full<Bytes>> {
    let (status, text) = match answer(path.trim_start_matches('/'), name, asker) {
        Some(text) => (StatusCode::OK, text),
        None => (
            StatusCode::NOT_FOUND,
            format!("{name} answers /, /hostname and /clientip\n"),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain"),
    );
    response
}

/// A word a line, until the other side is done; a word without a line's end is answered when it is whole, since
/// `printf hostname | nc` sends none.
async fn serve_plain(stream: TcpStream, asker: SocketAddr, name: &str) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let waiting = read.fill_buf().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        let (word, length) = match waiting.iter().position(|b| *b == b'\n') {
            Some(end) => (&waiting[..end], end + 1),
            None if waiting == b"hostname" || waiting == b"clientip" => (waiting, waiting.len()),
            None => {
                // The beginning of a line: wait for the rest of it.
                let mut line = Vec::new();
                (&mut read).take(LINE_MAX).read_until(b'\n', &mut line).await?;
                write.write_all(plain(&line, asker, name).as_bytes()).await?;
                continue;
            }
        };
        let text = plain(word, asker, name);
        read.consume(length);
        write.write_all(text.as_bytes()).await?;
    }
}

fn plain(line: &[u8], asker: SocketAddr, name: &str) -> String {
    let word = String::from_utf8_lossy(line);
    answer(word.trim(), name, asker).unwrap_or_else(|| format!("{name} answers hostname and clientip\n"))
}

async fn serve_udp(socket: UdpSocket, name: String) {
    let mut datagram = [0; LINE_MAX as usize];
    loop {
        match socket.recv_from(&mut datagram).await {
            Ok((length, asker)) => {
                let text = plain(&datagram[..length], asker, &name);
                if let Err(error) = socket.send_to(text.as_bytes(), asker).await {
                    tracing::debug!(%error, dst.addr = %asker, "an answer was not sent");
                }
            }
            // An earlier answer was refused, for one: the next datagram has nothing to do with it.
            Err(error) => tracing::debug!(%error, "receiving a datagram failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_tcp(listener, "web1".to_string()));
        address
    }

    async fn ask(stream: &mut TcpStream, question: &str) -> String {
        stream.write_all(question.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[tokio::test]
    async fn http_answers_name_and_asker_on_one_connection() {
        let mut stream = TcpStream::connect(start().await).await.unwrap();
        let own = stream.local_addr().unwrap().to_string();
        for (path, status, body) in [
            ("/", "200", "web1"),
            ("/hostname", "200", "web1"),
            ("/clientip", "200", own.as_str()),
            ("/else", "404", "/clientip"),
        ] {
            let got = ask(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {got}");
            assert!(got.contains(body), "{path}: {got}");
        }
    }

    #[tokio::test]
    async fn plain_words_are_answered_with_and_without_a_line_end() {
        let mut stream = TcpStream::connect(start().await).await.unwrap();
        let own = format!("{}\n", stream.local_addr().unwrap());
        assert_eq!(ask(&mut stream, "hostname\n").await, "web1\n");
        assert_eq!(ask(&mut stream, "clientip\r\n").await, own);
        assert_eq!(ask(&mut stream, "hostname").await, "web1\n");
        stream.write_all(b"clie").await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(ask(&mut stream, "ntip\n").await, own);
        assert_eq!(
            ask(&mut stream, "what\n").await,
            "web1 answers hostname and clientip\n"
        );
    }

    #[tokio::test]
    async fn udp_answers_who_asked() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(serve_udp(socket, "web1".to_string()));
        let asker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let own = format!("{}\n", asker.local_addr().unwrap());
        for (word, wanted) in [("hostname", "web1\n"), ("clientip\n", own.as_str())] {
            asker.send_to(word.as_bytes(), address).await.unwrap();
            let mut answer = [0; 100];
            let length = asker.recv(&mut answer).await.unwrap();
            assert_eq!(std::str::from_utf8(&answer[..length]), Ok(wanted));
        }
    }
}
