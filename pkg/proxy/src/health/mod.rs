//! What load balancers ask a node: whether its proxy works (`--healthz-bind-address`), and whether it has endpoints of a
//! Service (`healthCheckNodePort`). Paths, statuses, headers and bodies are kube-proxy's.

mod board;
mod service;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use socket2::{Domain, Socket, Type};
use svcnet_runtime::serve::{Answer, response, serve};
use tokio::net::TcpListener;

pub(crate) use board::Board;
pub(crate) use service::{Check, Checks, keep};

const BACKLOG: i32 = 128;
/// How often is tried again to listen.
const RETRY: Duration = Duration::from_secs(5);

/// Listens; at no address in particular is at every one of both families, as in Go.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let open = |at: SocketAddr| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
        if at.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    if at.ip().is_unspecified() {
        match open((Ipv6Addr::UNSPECIFIED, at.port()).into()) {
            // Without IPv6 in the kernel.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
    open(at)
}

/// Answers /healthz and /livez for ever.
pub(crate) async fn serve_proxy(at: SocketAddr, board: Board) {
    let mut told = false;
    let listener = loop {
        match listen(at) {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(address = %at, %error, "cannot listen for health (--healthz-bind-address), trying again");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    if told {
        tracing::info!(address = %at, "listening for health");
    }
    serve(listener, move |path| answer(path, &board, Timestamp::now())).await;
}

fn answer(path: &str, board: &Board, now: Timestamp) -> Answer {
    let state = board.look(now);
    let (counter, well) = match path {
        "/healthz" => ("kubeproxy_proxy_healthz_total", state.well && state.eligible),
        "/livez" => ("kubeproxy_proxy_livez_total", state.well),
        _ => return response(StatusCode::NOT_FOUND, "text/plain", "try /healthz or /livez\n"),
    };
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    metrics::counter!(counter, "code" => status.as_str().to_string()).increment(1);
    // Where all is well, the last update is now: nothing is waiting to be updated.
    let updated = time(if well { Some(now) } else { state.updated });
    let now = time(Some(now));
    let eligible = match path {
        "/healthz" => format!(", \"nodeEligible\": {}", state.eligible),
        _ => String::new(),
    };
    let body = format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{eligible}}}");
    no_sniff(response(status, "application/json", body))
}

fn no_sniff<B>(mut response: http::Response<B>) -> http::Response<B> {
    let value = http::HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(http::header::X_CONTENT_TYPE_OPTIONS, value);
    response
}

/// As Go prints times; never is its zero.
fn time(at: Option<Timestamp>) -> String {
    match at {
        Some(at) => at.strftime("%Y-%m-%d %H:%M:%S.%9f +0000 UTC").to_string(),
        None => "0001-01-01 00:00:00 +0000 UTC".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use k8s_openapi::api::core::v1::Node;
    use k8s_openapi::jiff::ToSpan;
    use serde_json::json;

    use super::*;

    fn ask(board: &Board, path: &str, now: Timestamp) -> (u16, serde_json::Value) {
        let response = answer(path, board, now);
        let status = response.status().as_u16();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime
            .block_on(response.into_body().collect())
            .unwrap()
            .to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_proxy_that_lags_behind_is_not_well() {
        let (board, begin) = (
            Board::default(),
            "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap(),
        );
        let at = |seconds: i64| begin + seconds.seconds();
        assert_eq!(ask(&board, "/healthz", at(0)).0, 200, "while it starts");
        board.updated(at(0));
        board.queued(at(10));
        board.queued(at(60));
        let (status, body) = ask(&board, "/healthz", at(69));
        assert_eq!(status, 200);
        let wanted = "2026-01-01 00:01:09.000000000 +0000 UTC";
        assert_eq!(
            body,
            json!({"lastUpdated": wanted, "currentTime": wanted, "nodeEligible": true})
        );
        let (status, body) = ask(&board, "/livez", at(70));
        assert_eq!(status, 503, "what came first has waited for a minute");
        assert_eq!(body["lastUpdated"], "2026-01-01 00:00:00.000000000 +0000 UTC");
        assert_eq!(body.get("nodeEligible"), None);
        board.updated(at(70));
        assert_eq!(ask(&board, "/livez", at(200)).0, 200);
    }

    #[test]
    fn a_node_that_is_going_away_takes_no_traffic_and_lives() {
        let (board, now) = (Board::default(), Timestamp::UNIX_EPOCH);
        let tainted =
            json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for going in [tainted, deleted] {
            board.hear_node(&node(going));
            let (status, body) = ask(&board, "/healthz", now);
            assert_eq!((status, &body["nodeEligible"]), (503, &json!(false)));
            assert_eq!(ask(&board, "/livez", now).0, 200);
            board.hear_node(&node(json!({})));
            assert_eq!(ask(&board, "/healthz", now).0, 200);
        }
    }
}
