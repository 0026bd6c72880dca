//! Garbage collection: what objects belong to goes, and they go with it (`metadata.ownerReferences`; the real
//! kube-controller-manager's garbage collector).
//!
//! An index of who owns what is kept from the store's own watches. An object whose owners are all gone is deleted; where
//! some are left, it loses the references to the others. Owners of kinds that are not served here are taken to be there.
//! `propagationPolicy` of a deletion comes as a finalizer: `foregroundDeletion` holds an owner until the dependents that
//! block it are gone, `orphan` until nothing names it any more.

mod index;

use std::sync::Arc;

use serde_json::{Value, json};
use svcnet_api::{ApiError, FieldError, FieldPath, Kind, Reason, registry};
use svcnet_store::{Event, Range, WatchError};
use tokio::sync::mpsc;

use self::index::{Index, Meta, Place as At};
use crate::auth::User;
use crate::delete::DeleteOptions;
use crate::server::Server;
use crate::write::{MANAGER, Place};
use crate::{object, options};

/// metav1.FinalizerDeleteDependents.
const FOREGROUND: &str = "foregroundDeletion";
/// metav1.FinalizerOrphanDependents.
const ORPHAN: &str = "orphan";
/// Changes that may wait. More make the watches behind them wait, in the store's history.
const QUEUE_MAX: usize = 1024;

/// What becomes of the objects that belong to one that is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    #[default]
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    /// What the options of a deletion ask for.
    ///
    /// # Errors
    /// 422 for what is none of the real server's.
    pub(crate) fn of(options: &Value) -> Result<Self, ApiError> {
        let orphans = options.get("orphanDependents").and_then(Value::as_bool);
        let policy = options.get("propagationPolicy").and_then(Value::as_str);
        match (policy, orphans) {
            (Some(policy), Some(_)) => {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                let error = FieldError::invalid(FieldPath::new("propagationPolicy"), policy, detail);
                Err(options::invalid("DeleteOptions", &[error]))
            }
            (None, Some(true)) | (Some("Orphan"), _) => Ok(Self::Orphan),
            (None, _) | (Some("Background"), _) => Ok(Self::Background),
            (Some("Foreground"), _) => Ok(Self::Foreground),
            (Some(other), _) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                let path = FieldPath::new("propagationPolicy");
                let error = FieldError::not_supported(path, other, &supported);
                Err(options::invalid("DeleteOptions", &[error]))
            }
        }
    }

    /// Marks an object that is about to be deleted.
    pub(crate) fn mark(self, object: &mut Value) {
        let finalizer = match self {
            Self::Background => return,
            Self::Foreground => FOREGROUND,
            Self::Orphan => ORPHAN,
        };
        let list = &mut object["metadata"]["finalizers"];
        match list.as_array_mut() {
            Some(list) if list.iter().any(|f| f == finalizer) => {}
            Some(list) => list.push(finalizer.into()),
            None => *list = json!([finalizer]),
        }
    }
}

/// Something that has happened to a kind's objects.
enum News {
    /// All that there is.
    All(&'static Kind, Vec<bytes::Bytes>),
    Change(&'static Kind, Arc<Event>),
}

/// Collects until the server stops.
pub(crate) async fn run(server: Arc<Server>) {
    let (sender, mut news) = mpsc::channel(QUEUE_MAX);
    for kind in registry::kinds() {
        tokio::spawn(follow(server.clone(), kind, sender.clone()));
    }
    drop(sender);
    let mut collector = Collector {
        server: server.clone(),
        index: Index::default(),
    };
    // What is seen first may belong to what is seen later: nothing is judged before all kinds have been.
    let mut unseen = registry::kinds().len();
    loop {
        let one = tokio::select! {
            one = news.recv() => one,
            () = server.shutdown.cancelled() => return,
        };
        match one {
            None => return,
            Some(News::All(kind, values)) => {
                collector
                    .index
                    .replace(kind, values.iter().filter_map(|v| Meta::parse(v)));
                unseen = unseen.saturating_sub(1);
                if unseen == 0 {
                    collector.judge_all().await;
                }
            }
            Some(News::Change(kind, event)) => {
                let touched = collector.index.change(kind, &event);
                if unseen == 0 {
                    for place in touched {
                        collector.judge(&place).await;
                    }
                }
            }
        }
    }
}

async fn follow(server: Arc<Server>, kind: &'static Kind, sender: mpsc::Sender<News>) {
    let collection = server.collection(kind);
    loop {
        let Ok(snapshot) = server.store.list(collection, &Range::default(), None) else {
            return;
        };
        let values = snapshot
            .entries
            .into_iter()
            .map(|(_, entry)| entry.value)
            .collect();
        if sender.send(News::All(kind, values)).await.is_err() {
            return;
        }
        let Ok(mut changes) = server.store.watch(collection, snapshot.revision) else {
            continue;
        };
        loop {
            let pending = tokio::select! {
                pending = changes.next() => pending,
                () = server.shutdown.cancelled() => return,
            };
            match pending {
                Ok(pending) => {
                    for event in pending.events {
                        if sender.send(News::Change(kind, event)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(WatchError::Compacted(_)) => break,
                Err(WatchError::Closed) => return,
            }
        }
    }
}

struct Collector {
    server: Arc<Server>,
    index: Index,
}

impl Collector {
    async fn judge_all(&mut self) {
        for place in self.index.places() {
            self.judge(&place).await;
        }
    }

    /// Does what is due for one object. Whatever fails is due again at the next change of the object or its owners.
    async fn judge(&mut self, at: &At) {
        let Some(entry) = self.server.get(at.kind, &at.namespace, &at.name) else {
            return;
        };
        let Some(meta) = Meta::parse(&entry.value) else {
            return;
        };
        let done = match () {
            () if meta.is_held_by(ORPHAN) => self.orphan(at, &meta).await,
            () if meta.is_held_by(FOREGROUND) => self.foreground(at, &meta).await,
            () => self.dependent(at, &meta).await,
        };
        match done {
            Err(error) if !matches!(error.reason, Reason::NotFound | Reason::Conflict) => {
                tracing::warn!(
                    object.kind = at.kind.kind, object.ns = at.namespace, object.name = at.name, reason = %error,
                    "what an object belongs to is gone, and it cannot follow"
                );
            }
            _ => {}
        }
    }

    /// Deletes an object whose owners are gone or going, or takes the references to those away.
    async fn dependent(&self, at: &At, meta: &Meta) -> Result<(), ApiError> {
        if meta.owners.is_empty() || meta.terminating {
            return Ok(());
        }
        let (mut leaving, mut going, mut staying) = (Vec::new(), false, false);
        for owner in &meta.owners {
            match index::owner(&self.server, at, owner) {
                index::Owner::Stays => staying = true,
                left => {
                    going |= left == index::Owner::Going;
                    leaving.push(owner.uid.clone());
                }
            }
        }
        if leaving.is_empty() {
            return Ok(());
        }
        if staying {
            return self.forget(at, |uid| leaving.iter().any(|l| l == uid)).await;
        }
        let options = DeleteOptions {
            propagation: if going {
                Propagation::Foreground
            } else {
                Propagation::Background
            },
            uid: meta.uid.clone(),
            ..DeleteOptions::default()
        };
        tracing::debug!(
            object.kind = at.kind.kind,
            object.ns = at.namespace,
            object.name = at.name,
            "follows its owner"
        );
        self.server
            .delete(place(at, "delete"), &options)
            .await
            .map(|_| ())
    }

    /// An owner that waits for its dependents.
    async fn foreground(&self, at: &At, meta: &Meta) -> Result<(), ApiError> {
        let mut blocked = false;
        for dependent in self.index.dependents(&meta.uid) {
            let entry = self
                .server
                .get(dependent.kind, &dependent.namespace, &dependent.name);
            let Some(theirs) = entry.and_then(|e| Meta::parse(&e.value)) else {
                continue;
            };
            blocked |= theirs
                .owners
                .iter()
                .any(|o| o.uid == meta.uid && o.block_owner_deletion);
            self.dependent(&dependent, &theirs).await?;
        }
        if blocked {
            return Ok(());
        }
        self.release(at, FOREGROUND).await
    }

    /// An owner that leaves its dependents behind.
    async fn orphan(&self, at: &At, meta: &Meta) -> Result<(), ApiError> {
        for dependent in self.index.dependents(&meta.uid) {
            match self.forget(&dependent, |uid| uid == meta.uid).await {
                Err(error) if error.reason != Reason::NotFound => return Err(error),
                _ => {}
            }
        }
        self.release(at, ORPHAN).await
    }

    /// Takes references to owners away.
    async fn forget(&self, at: &At, is_gone: impl Fn(&str) -> bool) -> Result<(), ApiError> {
        let change = |old: &Value| {
            let mut new = old.clone();
            if let Some(owners) = new["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|o| !o.get("uid").and_then(Value::as_str).is_some_and(&is_gone));
                if owners.is_empty() {
                    object::metadata(&mut new).remove("ownerReferences");
                }
            }
            Ok(new)
        };
        self.server.modify(place(at, "patch"), change).await.map(|_| ())
    }

    async fn release(&self, at: &At, finalizer: &str) -> Result<(), ApiError> {
        let change = |old: &Value| {
            let mut new = old.clone();
            if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
                list.retain(|f| f != finalizer);
            }
            Ok(new)
        };
        self.server.modify(place(at, "patch"), change).await.map(|_| ())
    }
}

fn place(at: &At, verb: &'static str) -> Place {
    Place {
        user: User::apiserver(),
        verb,
        kind: at.kind,
        namespace: at.namespace.clone(),
        name: at.name.clone(),
        subresource: String::new(),
        dry_run: false,
        manager: MANAGER.to_string(),
        applies: false,
    }
}
