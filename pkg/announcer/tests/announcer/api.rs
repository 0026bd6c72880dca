//! An API server within the node's process: what it has to say stands in a file, which the test rewrites. Without the
//! file the server is away.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};

type Reply = UnsyncBoxBody<Bytes, Infallible>;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A client of the server. Events that are posted are appended to their file, one a line.
pub(crate) fn client(objects: PathBuf, events: PathBuf) -> kube::Client {
    let service = tower::service_fn(move |request| answer(request, objects.clone(), events.clone()));
    kube::Client::new(service, "default")
}

/// Replaces the file at once, as readers are at it.
pub(crate) fn write(objects: &Path, content: &Value) {
    let new = objects.with_extension("new");
    fs::write(&new, content.to_string()).unwrap();
    fs::rename(&new, objects).unwrap();
}

async fn answer(request: Request<Body>, objects: PathBuf, events: PathBuf) -> io::Result<Response<Reply>> {
    let plural = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_string();
    let query = request.uri().query().unwrap_or_default().to_string();
    if request.method() == Method::POST {
        let body = request
            .into_body()
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        let mut file = File::options().create(true).append(true).open(&events)?;
        file.write_all(&[&body[..], b"\n"].concat())?;
        return respond(StatusCode::CREATED, Full::new(body).boxed_unsync());
    }
    let content = read(&objects)?;
    if query.contains("watch=true") || query.contains("watch=1") {
        return respond(StatusCode::OK, watch(objects, plural, content));
    }
    let list = json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items(&content, &plural),
    });
    respond(
        StatusCode::OK,
        Full::new(Bytes::from(list.to_string())).boxed_unsync(),
    )
}

fn respond(status: StatusCode, body: Reply) -> io::Result<Response<Reply>> {
    Response::builder()
        .status(status)
        .body(body)
        .map_err(io::Error::other)
}

fn read(objects: &Path) -> io::Result<Value> {
    serde_json::from_slice(&fs::read(objects)?).map_err(io::Error::other)
}

fn items(content: &Value, plural: &str) -> Vec<Value> {
    let mut items = content[plural].as_array().cloned().unwrap_or_default();
    for item in &mut items {
        item["metadata"]["resourceVersion"] = json!("1");
    }
    items
}

/// Tells of what changes in the file, until the server goes away.
fn watch(objects: PathBuf, plural: String, before: Value) -> Reply {
    let name = |item: &Value| item["metadata"]["name"].clone();
    let events = stream::unfold(Some(before), move |before| {
        let (objects, plural) = (objects.clone(), plural.clone());
        async move {
            let before = before?;
            tokio::time::sleep(POLL).await;
            let after = read(&objects).ok()?;
            let (old, new) = (items(&before, &plural), items(&after, &plural));
            let mut lines = String::new();
            for item in new.iter().filter(|item| !old.contains(item)) {
                lines += &format!("{}\n", json!({"type": "MODIFIED", "object": item}));
            }
            for item in old.iter().filter(|o| new.iter().all(|n| name(n) != name(o))) {
                lines += &format!("{}\n", json!({"type": "DELETED", "object": item}));
            }
            Some((lines, Some(after)))
        }
    });
    let frames = events
        .filter(|lines| futures::future::ready(!lines.is_empty()))
        .map(|lines| Ok::<_, Infallible>(Frame::data(Bytes::from(lines))));
    StreamBody::new(frames).boxed_unsync()
}
