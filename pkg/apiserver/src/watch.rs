//! Watching: changes as they come, from a revision on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use svcnet_api::columns::IncludeObject;
use svcnet_api::{ApiError, Kind};
use svcnet_store::{Event, ListError, Range, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::auth::User;
use crate::body::Body;
use crate::negotiate::Form;
use crate::read::{self, Selection};
use crate::reply::Reply;
use crate::server::Server;
use crate::url::{Query, Target};
use crate::{object, table};

/// How often a client learns how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// How long a watch lasts at least, when the client does not say (the real server's --min-request-timeout).
const TIMEOUT_MIN_SECS: u64 = 1800;
/// Chunks that may wait for a slow client. What comes after waits in the history.
const CHUNKS_MAX: usize = 4;
/// About how long a chunk is.
const CHUNK: usize = 64 << 10;

/// One watch, and what it has told its client.
struct Watch {
    watcher: Watcher,
    kind: &'static Kind,
    namespace: String,
    selection: Selection,
    form: Form,
    include: IncludeObject,
    /// Whether the columns of a Table have been sent.
    columns_told: bool,
    bookmarks: bool,
    chunk: Vec<u8>,
}

/// Who watches.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The end of what they have shown is the end of the watch.
    pub(crate) user: User,
    pub(crate) form: Form,
    /// Ends the reader's connection.
    pub(crate) abort: CancellationToken,
}

/// Answers a watch.
pub(crate) fn watch(
    server: &Arc<Server>,
    target: &Target,
    query: &Query,
    reader: Reader,
) -> Result<Reply, ApiError> {
    let selection = Selection::of(target.kind, query)?;
    let asked = read::number(query, "resourceVersion")?.unwrap_or_default();
    let collection = server.collection(target.kind);
    let send_initial = match query.get("sendInitialEvents") {
        Some(_) => query.flag("sendInitialEvents"),
        // Without a revision, the client has seen nothing yet.
        None => asked == 0,
    };
    let range = Range {
        namespace: Some(target.namespace.clone()).filter(|n| !n.is_empty()),
        ..Range::default()
    };
    let snapshot = send_initial
        .then(|| server.store.list(collection, &range, None))
        .transpose();
    let snapshot = snapshot.map_err(|e| read::list_error(e, None))?;
    let from = match &snapshot {
        Some(snapshot) => snapshot.revision,
        None if asked == 0 => server.store.revision(),
        None => asked,
    };
    let watcher = match server.store.watch(collection, from) {
        Ok(watcher) => watcher,
        Err(error) => return Ok(gone(error)),
    };
    let seconds = read::number(query, "timeoutSeconds")?.filter(|s| *s > 0);
    // Spread, so that all clients of a restarted server do not come back at once.
    let seconds = seconds.unwrap_or_else(|| TIMEOUT_MIN_SECS + rand::random::<u64>() % TIMEOUT_MIN_SECS);
    let mut watch = Watch {
        watcher,
        kind: target.kind,
        namespace: target.namespace.clone(),
        selection,
        form: reader.form,
        include: table::include(query)?,
        columns_told: false,
        bookmarks: query.flag("allowWatchBookmarks"),
        chunk: Vec::new(),
    };
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
    let sender = Sender {
        chunks,
        unread_max: server.config.limits.unread_max,
        abort: reader.abort,
    };
    let (server, marks_end) = (server.clone(), query.flag("sendInitialEvents"));
    let deadline = Instant::now() + Duration::from_secs(seconds.min(24 * 60 * 60));
    tokio::spawn(async move {
        metrics::gauge!("svcnet_apiserver_watches", "resource" => watch.kind.plural).increment(1);
        let entries = snapshot.map(|s| s.entries).unwrap_or_default();
        let initial = entries.into_iter().map(|(_, entry)| entry.value);
        if watch.initial(initial, marks_end, &sender).await.is_some() {
            tokio::select! {
                () = watch.follow(&server, deadline, &sender) => {}
                () = ended(&server, &reader.user) => {}
            }
        }
        metrics::gauge!("svcnet_apiserver_watches", "resource" => watch.kind.plural).decrement(1);
    });
    Ok(Reply::new(200, "application/json", Body::stream(receiver)))
}

/// A watch that cannot begin: the real server says so in the stream, as the one event. A revision that has not been is
/// of another store: a client that is told `Gone` lists anew, one that is told to wait would wait for ever.
fn gone(error: ListError) -> Reply {
    let why = match error {
        ListError::Compacted(compacted) => compacted.to_string(),
        ListError::Future { asked, current } => format!("too old resource version: {asked} ({current})"),
    };
    Reply::new(200, "application/json", error_event(&why))
}

fn error_event(why: &str) -> String {
    let status = ApiError::new(svcnet_api::Reason::Expired, why).to_status();
    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n")
}

impl Watch {
    /// Sends what there is. Nothing comes back once the client is gone.
    async fn initial(
        &mut self,
        values: impl Iterator<Item = Bytes>,
        marks_end: bool,
        sender: &Sender,
    ) -> Option<()> {
        for value in values {
            if self.selection.matches_bytes(&value) {
                self.event("ADDED", &value);
            }
            if self.chunk.len() >= CHUNK {
                self.flush(sender).await?;
            }
        }
        if marks_end {
            self.bookmark(true);
        }
        self.flush(sender).await
    }

    async fn follow(&mut self, server: &Server, deadline: Instant, sender: &Sender) {
        let mut bookmarks = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mark_due = false;
        loop {
            let pending = match self.watcher.pending() {
                Ok(pending) => pending,
                Err(compacted) => {
                    self.chunk
                        .extend_from_slice(error_event(&compacted.to_string()).as_bytes());
                    self.flush(sender).await;
                    return;
                }
            };
            for event in &pending.events {
                self.change(event);
                if self.chunk.len() >= CHUNK && self.flush(sender).await.is_none() {
                    return;
                }
            }
            // Only now is the position that of all that has been told.
            if mark_due && !pending.more {
                self.bookmark(false);
                mark_due = false;
            }
            if self.flush(sender).await.is_none() {
                return;
            }
            if pending.more {
                continue;
            }
            tokio::select! {
                changed = self.watcher.changed() => if changed.is_err() { return },
                _ = bookmarks.tick(), if self.bookmarks => mark_due = true,
                () = sleep_until(deadline) => return,
                () = server.shutdown.cancelled() => return,
                () = sender.chunks.closed() => return,
            }
        }
    }

    /// What a change means to this client: an object that leaves the selection is deleted for it.
    fn change(&mut self, event: &Event) {
        if !self.namespace.is_empty() && event.namespace() != self.namespace {
            return;
        }
        let is = !event.deleted && self.selection.matches_bytes(&event.value);
        let was = event
            .previous
            .as_ref()
            .is_some_and(|p| self.selection.matches_bytes(&p.value));
        match (was, is) {
            (false, true) => self.event("ADDED", &event.value),
            (true, true) => self.event("MODIFIED", &event.value),
            (true, false) if event.deleted => self.event("DELETED", &event.value),
            (true, false) => {
                // As the client knew it, at the revision at which it left.
                let previous = event
                    .previous
                    .as_ref()
                    .map(|p| p.value.clone())
                    .unwrap_or_default();
                let mut last: Value = serde_json::from_slice(&previous).unwrap_or_default();
                object::metadata(&mut last)
                    .insert("resourceVersion".to_string(), event.revision.to_string().into());
                self.event("DELETED", &Bytes::from(last.to_string()));
            }
            (false, false) => {}
        }
    }

    fn event(&mut self, what: &str, value: &Bytes) {
        let head = format!("{{\"type\":\"{what}\",\"object\":");
        self.chunk.extend_from_slice(head.as_bytes());
        match self.form {
            Form::Plain => self.chunk.extend_from_slice(value),
            Form::Metadata => {
                let object: Value = serde_json::from_slice(value).unwrap_or_default();
                self.chunk
                    .extend_from_slice(table::metadata_only(&object).to_string().as_bytes());
            }
            Form::Table => {
                let object: Value = serde_json::from_slice(value).unwrap_or_default();
                let meta = json!({"resourceVersion": object::meta_text(&object, "resourceVersion")});
                let table = self.table(&object, self.include, &meta);
                self.chunk.extend_from_slice(table.to_string().as_bytes());
            }
        }
        self.chunk.extend_from_slice(b"}\n");
    }

    fn bookmark(&mut self, ends_initial: bool) {
        let revision = self.watcher.position();
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Plain => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta})
            }
            Form::Metadata => table::metadata_only(&json!({"metadata": meta})),
            // The bookmark as a row: clients look for the annotation in the row's object.
            Form::Table => {
                let object = json!({"metadata": meta});
                let list = json!({"resourceVersion": revision.to_string()});
                self.table(&object, IncludeObject::Metadata, &list)
            }
        };
        self.chunk
            .extend_from_slice(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").as_bytes());
    }

    /// A Table of one row. Only the first one says what the columns are.
    fn table(&mut self, object: &Value, include: IncludeObject, meta: &Value) -> Value {
        let mut table = table::table(self.kind, std::slice::from_ref(object), include, meta);
        if std::mem::replace(&mut self.columns_told, true) {
            table["columnDefinitions"] = Value::Null;
        }
        table
    }

    async fn flush(&mut self, sender: &Sender) -> Option<()> {
        if self.chunk.is_empty() {
            return Some(());
        }
        sender.send(std::mem::take(&mut self.chunk).into()).await
    }
}

/// The way to the client.
struct Sender {
    chunks: mpsc::Sender<Bytes>,
    unread_max: Duration,
    abort: CancellationToken,
}

impl Sender {
    /// Nothing comes back once the client is gone. One that leaves what it asked for unread is cut off: its connection may
    /// be alive, as other streams of HTTP/2 are, and would hold all this for ever.
    async fn send(&self, chunk: Bytes) -> Option<()> {
        let Ok(sent) = tokio::time::timeout(self.unread_max, self.chunks.send(chunk)).await else {
            metrics::counter!("svcnet_apiserver_slow_readers_total").increment(1);
            self.abort.cancel();
            return None;
        };
        sent.ok()
    }
}

/// Returns when the token or the certificate of whoever watches is no longer good.
async fn ended(server: &Server, user: &User) {
    match &user.token {
        Some(token) => server.tokens.ended(token).await,
        None => server.tokens.certificate_revoked(user).await,
    }
}
