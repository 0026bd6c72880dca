//! Following the ConfigMap, as far as we may.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher;
use svcnet_api::wellknown::NAMESPACE_SYSTEM;
use svcnet_runtime::backoff::Backoff;
use tokio::sync::{mpsc, watch};

use super::tell::Notice;
use super::wish::{CONFIG_MAP, Wish};

/// How often it is read where it may be read and not watched, which is what kubeadm's role allows.
const READ_EVERY: Duration = Duration::from_secs(10);
/// How often is tried whether it may be read after all.
const TRY_EVERY: Duration = Duration::from_secs(60);

/// The ConfigMap, and the last of it that made sense.
pub(crate) struct Source {
    client: kube::Client,
    /// Where the last good text is kept: the server may be away when the next process starts.
    file: PathBuf,
    known: Option<String>,
    wrong: Option<String>,
    wishes: watch::Sender<Option<Wish>>,
    notices: mpsc::Sender<Notice>,
}

impl Source {
    /// What was last known, if anything was, and a source of what comes.
    pub(crate) fn new(
        client: kube::Client,
        data_dir: &Path,
        notices: mpsc::Sender<Notice>,
    ) -> (Self, watch::Receiver<Option<Wish>>) {
        let file = data_dir.join("cache/kube-proxy.conf");
        let known = std::fs::read_to_string(&file).ok();
        let wish = known.as_deref().and_then(|text| Wish::parse(text).ok());
        let (wishes, receiver) = watch::channel(wish);
        let source = Self {
            client,
            file,
            known,
            wrong: None,
            wishes,
            notices,
        };
        (source, receiver)
    }

    /// Follows the ConfigMap for ever.
    pub(crate) async fn follow(mut self) {
        let mut told = false;
        loop {
            self.watch().await;
            // Watching is not allowed; reading may be.
            let api = self.api();
            let pause = match api.get_opt(CONFIG_MAP).await {
                Ok(found) => {
                    self.hear(found);
                    READ_EVERY
                }
                Err(error) => {
                    self.hear_nothing();
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(
                            reason = %error,
                            "the ConfigMap {NAMESPACE_SYSTEM}/{CONFIG_MAP} may not be read: flags alone decide about the proxy mode"
                        );
                    }
                    TRY_EVERY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE_SYSTEM)
    }

    /// Watches until it is forbidden.
    async fn watch(&mut self) {
        let mut events = pin!(watcher::watch_object(self.api(), CONFIG_MAP));
        let mut backoff = Backoff::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(found) => {
                    if backoff.reset() {
                        tracing::info!(object.name = CONFIG_MAP, "watch works again");
                    }
                    self.hear(found);
                }
                Err(error) if is_forbidden(&error) => return,
                Err(error) => {
                    let reason = error.to_string();
                    if backoff.is_news(&reason) {
                        tracing::warn!(object.name = CONFIG_MAP, reason, "watch failed, trying again");
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Nothing is to be heard: who waits for the first word need not.
    fn hear_nothing(&self) {
        self.wishes.send_if_modified(|wish| {
            let first = wish.is_none();
            wish.get_or_insert_default();
            first
        });
    }

    fn hear(&mut self, found: Option<ConfigMap>) {
        let parsed = match &found {
            None => Ok((None, Wish::default())),
            Some(object) => Wish::text(object)
                .and_then(|text| Ok((Some(text.to_string()), Wish::parse(text)?)))
                .map_err(|error| error.to_string()),
        };
        match parsed {
            Ok((text, wish)) => {
                let iptables = wish.iptables;
                self.wrong = None;
                self.keep(text);
                let changed = self.wishes.send_if_modified(|now| {
                    let changed = now.as_ref() != Some(&wish);
                    *now = Some(wish);
                    changed
                });
                if changed && iptables {
                    tracing::info!(
                        "the ConfigMap {NAMESPACE_SYSTEM}/{CONFIG_MAP} says iptables: nftables stands in for it"
                    );
                }
            }
            Err(why) => {
                self.hear_nothing();
                if self.wrong.as_ref() == Some(&why) {
                    return;
                }
                tracing::warn!(
                    object.kind = "ConfigMap",
                    object.ns = NAMESPACE_SYSTEM,
                    object.name = CONFIG_MAP,
                    reason = why,
                    "the proxy's configuration makes no sense, the last good one stays"
                );
                let uid = found.and_then(|object| object.metadata.uid);
                // Full: whoever looks at events has enough to read.
                _ = self.notices.try_send(Notice::BadConfig {
                    uid,
                    why: why.clone(),
                });
                self.wrong = Some(why);
            }
        }
    }

    fn keep(&mut self, text: Option<String>) {
        if text == self.known {
            return;
        }
        let written = match &text {
            Some(text) => std::fs::write(&self.file, text),
            None => match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        };
        if let Err(error) = written {
            tracing::warn!(path = %self.file.display(), %error, "the proxy's configuration can not be kept for a restart");
        }
        self.known = text;
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    status.is_forbidden()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::backend::Mode;

    /// An API server that answers lists and reads of one ConfigMap with what it is set to.
    #[derive(Clone, Default)]
    struct Server {
        may_list: bool,
        may_get: bool,
        mode: Arc<Mutex<Option<&'static str>>>,
    }

    impl Server {
        fn client(&self) -> kube::Client {
            let server = self.clone();
            let answer = move |request: Request<Body>| {
                let answer = server.answer(&request);
                async move {
                    // A watch that tells nothing and does not end.
                    if answer.is_none() {
                        std::future::pending::<()>().await;
                    }
                    let (status, body) = answer.unwrap_or_default();
                    let response = Response::builder()
                        .status(status)
                        .body(Body::from(body.to_string().into_bytes()));
                    response.map_err(std::io::Error::other)
                }
            };
            kube::Client::new(tower::service_fn(answer), "default")
        }

        fn answer(&self, request: &Request<Body>) -> Option<(u16, Value)> {
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            assert!(
                path.starts_with("/api/v1/namespaces/kube-system/configmaps"),
                "{path}"
            );
            let list = !path.ends_with("/kube-proxy");
            assert!(!list || query.contains("metadata.name%3Dkube-proxy"), "{query}");
            if !(if list { self.may_list } else { self.may_get }) {
                let status = json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"});
                return Some((403, status));
            }
            if query.contains("watch=true") {
                return None;
            }
            let object = self.mode.lock().unwrap().map(|mode| {
                json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": "kube-proxy", "namespace": "kube-system", "resourceVersion": "1"},
                    "data": {"config.conf": format!("mode: {mode}")},
                })
            });
            Some(match (list, object) {
                (true, object) => {
                    let items: Vec<Value> = object.into_iter().collect();
                    (
                        200,
                        json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
                    )
                }
                (false, Some(object)) => (200, object),
                (false, None) => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}),
                ),
            })
        }
    }

    /// What is wished for once something is heard, and what is told.
    fn first(server: &Server, dir: &Path) -> (Wish, Option<Notice>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (notices, mut told) = mpsc::channel(1);
            let (source, mut wishes) = Source::new(server.client(), dir, notices);
            let following = tokio::spawn(source.follow());
            let wish = tokio::time::timeout(Duration::from_secs(30), wishes.wait_for(Option::is_some));
            let wish = wish.await.unwrap().unwrap().clone().unwrap();
            following.abort();
            (wish, told.try_recv().ok())
        })
    }

    fn dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        dir
    }

    #[test]
    fn it_goes_as_far_as_it_may() {
        let mode = Arc::new(Mutex::new(Some("userspace")));
        for (may_list, may_get, wanted) in [
            (true, true, Some(Mode::Userspace)),
            (false, true, Some(Mode::Userspace)),
            (false, false, None),
        ] {
            let server = Server {
                may_list,
                may_get,
                mode: mode.clone(),
            };
            let (wish, told) = first(&server, dir().path());
            assert_eq!(
                (wish.mode, told),
                (wanted, None),
                "list {may_list}, get {may_get}"
            );
        }
        let server = Server {
            may_list: true,
            ..Server::default()
        };
        assert_eq!(first(&server, dir().path()).0, Wish::default(), "there is none");
    }

    #[test]
    fn what_made_sense_is_known_after_a_restart() {
        let dir = dir();
        let mode = Arc::new(Mutex::new(Some("userspace")));
        let server = Server {
            may_list: true,
            may_get: true,
            mode: mode.clone(),
        };
        first(&server, dir.path());
        let away = Server::default();
        assert_eq!(
            first(&away, dir.path()).0.mode,
            Some(Mode::Userspace),
            "it is not waited for"
        );
        let (mut source, wishes) =
            Source::new(server.client_outside_a_runtime(), dir.path(), mpsc::channel(1).0);
        source.hear(Some(config_map("what")));
        assert_eq!(
            wishes.borrow().as_ref().unwrap().mode,
            Some(Mode::Userspace),
            "the last good one stays"
        );
        source.hear(None);
        assert_eq!(*wishes.borrow(), Some(Wish::default()));
        assert_eq!(
            Source::new(source.client.clone(), dir.path(), mpsc::channel(1).0)
                .1
                .borrow()
                .as_ref(),
            None
        );
    }

    impl Server {
        /// A client that nothing is asked of.
        fn client_outside_a_runtime(&self) -> kube::Client {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { self.client() })
        }
    }

    fn config_map(mode: &str) -> ConfigMap {
        serde_json::from_value(json!({ "data": { "config.conf": format!("mode: {mode}") } })).unwrap()
    }

    #[test]
    fn nonsense_is_told_once() {
        let (notices, mut told) = mpsc::channel(4);
        let dir = dir();
        let client = Server::default().client_outside_a_runtime();
        let (mut source, _wishes) = Source::new(client, dir.path(), notices);
        source.hear(Some(config_map("what")));
        source.hear(Some(config_map("what")));
        source.hear(Some(config_map("nftables")));
        source.hear(Some(config_map("what")));
        let mut count = 0;
        while let Ok(Notice::BadConfig { why, .. }) = told.try_recv() {
            assert!(why.starts_with("config.conf: mode: \"what\""), "{why}");
            count += 1;
        }
        assert_eq!(count, 2);
    }
}
