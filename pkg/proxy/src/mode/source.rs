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
                self.wrong = None;
                self.keep(text);
                let changed = self.wishes.send_if_modified(|now| {
                    let changed = *now != Some(wish);
                    *now = Some(wish);
                    changed
                });
                if changed && wish.iptables {
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
