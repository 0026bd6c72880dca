//! `healthCheckNodePort`: a listener for each such Service, that says whether this node has endpoints of it.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use svcnet_runtime::serve::{Answer, response, serve};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Board, RETRY, listen, no_sniff};
use crate::view::Name;

/// What is to be answered for a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// `namespace/name`
    pub(crate) service: Name,
    /// Its ready endpoints on this node.
    pub(crate) local_endpoints: usize,
}

/// By port.
pub(crate) type Checks = Arc<BTreeMap<u16, Check>>;

/// Keeps a listener for each port, until the sender is gone.
pub(crate) async fn keep(mut checks: watch::Receiver<Checks>, board: Board) {
    let mut open: HashMap<u16, Listener> = HashMap::new();
    let mut failed: HashMap<u16, String> = HashMap::new();
    loop {
        let wanted = checks.borrow_and_update().clone();
        open.retain(|port, _| wanted.contains_key(port));
        failed.retain(|port, _| wanted.contains_key(port));
        for (port, check) in &*wanted {
            if open.contains_key(port) {
                continue;
            }
            match listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port))) {
                Ok(listener) => {
                    let (checks, board, port) = (checks.clone(), board.clone(), *port);
                    let task = tokio::spawn(serve(listener, move |_| answer(port, &checks.borrow(), &board)));
                    open.insert(port, Listener(task.abort_handle()));
                    failed.remove(&port);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if failed.insert(*port, reason.clone()).as_ref() != Some(&reason) {
                        tracing::warn!(
                            object.kind = "Service", object.name = %check.service, port, reason,
                            "cannot listen on the healthCheckNodePort, trying again"
                        );
                    }
                }
            }
        }
        let again = async {
            match failed.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(RETRY).await,
            }
        };
        tokio::select! {
            changed = checks.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

struct Listener(AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn answer(port: u16, checks: &Checks, board: &Board) -> Answer {
    let Some(check) = checks.get(&port) else {
        // It has just gone.
        return response(StatusCode::NOT_FOUND, "text/plain", "");
    };
    let well = board.look(Timestamp::now()).well;
    let status = if check.local_endpoints > 0 && well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let (namespace, name) = check.service.split_once('/').unwrap_or_default();
    let body = json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": well,
    });
    let mut response = no_sniff(response(status, "application/json", body.to_string()));
    let weight = HeaderValue::from(check.local_endpoints);
    response
        .headers_mut()
        .insert("x-load-balancing-endpoint-weight", weight);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use svcnet_netlink::netns::OwnedNetNs;

    use super::*;

    fn get(port: u16) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn ports_come_and_go_and_tell_of_endpoints() {
        let netns = OwnedNetNs::unique("svcnet-hc").unwrap();
        netns
            .run(|| {
                svcnet_netlink::Rtnl::open().unwrap().set_loopback_up().unwrap();
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                let check = |local_endpoints| Check {
                    service: "shop/web".into(),
                    local_endpoints,
                };
                let (sender, receiver) = watch::channel(Checks::new([(31000, check(2))].into()));
                runtime.spawn(keep(receiver, Board::default()));
                let text = until("the port answers", || get(31000));
                assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
                assert!(
                    text.to_lowercase()
                        .contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"),
                    "{text}"
                );
                let (_, body) = text.split_once("\r\n\r\n").unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                let wanted = json!({
                    "service": { "namespace": "shop", "name": "web" },
                    "localEndpoints": 2, "serviceProxyHealthy": true,
                });
                assert_eq!(body, wanted);
                sender.send_replace(Checks::new([(31000, check(0)), (31001, check(1))].into()));
                until("the other port answers", || get(31001));
                assert!(get(31000).unwrap().starts_with("HTTP/1.1 503 "));
                sender.send_replace(Checks::default());
                until("both are closed", || {
                    (get(31000).is_none() && get(31001).is_none()).then_some(())
                });
            })
            .unwrap();
    }
}
