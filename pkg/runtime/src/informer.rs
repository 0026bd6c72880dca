//! One watch for each kind in a process, shared by its roles, with the last known state on disk.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::journal::Journal;

/// Changes that a role may be behind before its watch waits for it.
const QUEUE_LENGTH: usize = 1024;
/// Objects asked for at once when listing: the text of a page is held beside what it is decoded to.
const PAGE_LENGTH: u32 = 1000;

/// What happened to the objects that a role watches.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// All objects there are: whatever is not among them is gone.
    Reset(Vec<Arc<K>>),
    /// An object is new or has changed.
    Apply(Arc<K>),
    /// An object is gone; its last known state.
    Delete(Arc<K>),
}

/// Which objects of a kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Of this namespace only.
    pub namespace: Option<String>,
    /// That match this label selector.
    pub labels: Option<String>,
    /// That match this field selector.
    pub fields: Option<String>,
}

/// A kind that can be watched.
///
/// Those that roles watch, in `kinds.rs`. Not every kind there is: to decode one and to write it is half a megabyte of
/// program, which each crate would have its own copy of.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can not be watched yet: add it to the list in pkg/runtime/src/kinds.rs"
)]
pub trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
    /// A watch of this kind that nobody has subscribed to yet.
    #[doc(hidden)]
    fn subscription(scope: Scope) -> Subscription;

    /// As [`last_known`].
    #[doc(hidden)]
    fn replay(journal: &Path) -> std::io::Result<Option<Vec<Self>>>;
}

/// A watch in the making.
#[doc(hidden)]
pub struct Subscription(Box<dyn Watch>);

impl Subscription {
    pub(crate) fn of<K: Watched>(scope: Scope) -> Self {
        Self(Box::new(Subscribed::<K> {
            scope,
            senders: Vec::new(),
        }))
    }
}

/// The watches of a process. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    journal_dir: Option<PathBuf>,
    shutdown: CancellationToken,
    watches: Mutex<HashMap<(TypeId, Scope), Subscription>>,
}

impl Informers {
    /// No watches yet. With a `journal_dir`, what was last known is kept there and given out while the server is away.
    pub fn new(client: kube::Client, journal_dir: Option<PathBuf>, shutdown: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                client,
                journal_dir,
                shutdown,
                watches: Mutex::default(),
            }),
        }
    }

    /// Asks for all changes of a kind. Must come before [`start`](Self::start): a later subscriber gets nothing until
    /// the next start, because objects are not kept here.
    pub fn subscribe<K: Watched>(&self, scope: Scope) -> mpsc::Receiver<Change<K>> {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let mut watches = self.inner.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = watches
            .entry((TypeId::of::<K>(), scope.clone()))
            .or_insert_with(|| K::subscription(scope));
        if let Some(watch) = watch.0.as_any().downcast_mut::<Subscribed<K>>() {
            watch.senders.push(sender);
        }
        receiver
    }

    /// Opens the watches that were subscribed to since the last start.
    pub fn start(&self) {
        let watches = std::mem::take(&mut *self.inner.watches.lock().unwrap_or_else(PoisonError::into_inner));
        for watch in watches.into_values() {
            watch.0.spawn(&self.inner);
        }
    }
}

trait Watch: Send {
    fn as_any(&mut self) -> &mut dyn Any;
    fn spawn(self: Box<Self>, inner: &Inner);
}

struct Subscribed<K> {
    scope: Scope,
    senders: Vec<mpsc::Sender<Change<K>>>,
}

impl<K: Watched> Watch for Subscribed<K> {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn spawn(self: Box<Self>, inner: &Inner) {
        let api = Api::<K>::all(inner.client.clone());
        // A namespace is asked for by a field selector: `Api::namespaced` exists for namespaced kinds only, and K is any.
        let namespace = self
            .scope
            .namespace
            .as_ref()
            .map(|name| format!("metadata.namespace={name}"));
        let fields: Vec<String> = namespace.into_iter().chain(self.scope.fields.clone()).collect();
        let mut config = watcher::Config::default().page_size(PAGE_LENGTH);
        config.label_selector = self.scope.labels.clone();
        config.field_selector = (!fields.is_empty()).then(|| fields.join(","));
        let journal = inner
            .journal_dir
            .as_deref()
            .map(|dir| Journal::new(journal_path::<K>(dir, &self.scope)));
        let task = Task {
            plural: K::plural(&()).to_string(),
            senders: self.senders,
            journal,
        };
        let shutdown = inner.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = task.run(api, config) => {}
            }
        });
    }
}

fn journal_path<K: Resource<DynamicType = ()>>(dir: &Path, scope: &Scope) -> PathBuf {
    let mut name = K::plural(&()).to_string();
    for part in [&scope.namespace, &scope.labels, &scope.fields]
        .into_iter()
        .flatten()
    {
        name.push('@');
        name.extend(part.chars().map(|c| {
            if c.is_ascii_alphanumeric() || "-.=".contains(c) {
                c
            } else {
                '_'
            }
        }));
    }
    dir.join(format!("{name}.journal"))
}

/// The objects of a kind as a process last knew them: what its [`Informers`] keep in `journal_dir`. Nothing when it
/// never watched them.
///
/// # Errors
/// When the file can not be read.
pub fn last_known<K: Watched>(journal_dir: &Path, scope: &Scope) -> std::io::Result<Option<Vec<K>>> {
    K::replay(&journal_path::<K>(journal_dir, scope))
}

struct Task<K> {
    plural: String,
    senders: Vec<mpsc::Sender<Change<K>>>,
    journal: Option<Journal>,
}

impl<K: Watched> Task<K> {
    async fn run(mut self, api: Api<K>, config: watcher::Config) {
        self.replay().await;
        let mut events = std::pin::pin!(watcher::watcher(api, config));
        let mut listed: Vec<Arc<K>> = Vec::new();
        let mut backoff = Backoff::default();
        while let Some(event) = events.next().await {
            match event {
                Err(error) => {
                    let reason = chain(&error);
                    if backoff.is_news(&reason) {
                        tracing::warn!(kind = self.plural, reason, "watch failed, trying again");
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue;
                }
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => listed.push(Arc::new(trimmed(object))),
                Ok(Event::InitDone) => self.reset(std::mem::take(&mut listed)).await,
                Ok(Event::Apply(object)) => self.apply(Arc::new(trimmed(object))).await,
                Ok(Event::Delete(object)) => self.delete(Arc::new(trimmed(object))).await,
            }
            if backoff.reset() {
                tracing::info!(kind = self.plural, "watch works again");
            }
        }
    }

    async fn replay(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        match journal.replay::<K>() {
            Ok(None) => {}
            Ok(Some(known)) => {
                tracing::debug!(
                    kind = self.plural,
                    objects = known.len(),
                    "starting from the last known state"
                );
                self.send(Change::Reset(known.into_iter().map(Arc::new).collect()))
                    .await;
            }
            Err(error) => tracing::warn!(kind = self.plural, %error, "cannot read the last known state"),
        }
    }

    // Roles hear of a change before the disk does: the journal only matters once the server is away.
    async fn reset(&mut self, objects: Vec<Arc<K>>) {
        self.send(Change::Reset(objects.clone())).await;
        let entries = objects.iter().map(|object| (key(&**object), &**object));
        self.journalled(|journal| journal.reset(entries));
    }

    async fn apply(&mut self, object: Arc<K>) {
        self.send(Change::Apply(object.clone())).await;
        self.journalled(|journal| journal.apply(&key(&*object), &*object));
    }

    async fn delete(&mut self, object: Arc<K>) {
        self.send(Change::Delete(object.clone())).await;
        self.journalled(|journal| journal.delete(&key(&*object)));
    }

    async fn send(&self, change: Change<K>) {
        for sender in &self.senders {
            // A role that has ended no longer listens; the others go on.
            _ = sender.send(change.clone()).await;
        }
    }

    fn journalled(&mut self, write: impl FnOnce(&mut Journal) -> std::io::Result<()>) {
        let Some(journal) = &mut self.journal else { return };
        if let Err(error) = write(journal) {
            tracing::warn!(kind = self.plural, %error, "cannot keep the last known state; a restart needs the server");
            self.journal = None;
        }
    }
}

/// Without what no role reads, and what would fill journals.
fn trimmed<K: Resource>(mut object: K) -> K {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    object
}

fn key<K: ResourceExt>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// An error with all its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
