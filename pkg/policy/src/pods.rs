//! Pods as two tell of them: the API, which knows labels, and whoever attaches them to this node, who knows addresses
//! first and the end last. A pod is isolated from before it starts until it has ended.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Engine;
use crate::gate::Attachment;
use crate::model::ObjectKey;
use crate::view::PodFacts;

/// What both have told.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// By the API.
    told: BTreeMap<ObjectKey, PodFacts>,
    /// Of pods that the API has forgotten and that still run.
    outlived: BTreeMap<ObjectKey, PodFacts>,
    /// By link.
    attached: BTreeMap<String, Attachment>,
    /// Links of pods whose labels nobody knows yet.
    held: BTreeSet<String>,
}

impl Pods {
    /// All that the API has told of.
    pub(crate) fn told(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.told.keys().cloned()
    }

    /// All that are attached.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attached.values()
    }

    /// Whether nobody knows the labels of who is behind a link.
    pub(crate) fn is_held(&self, link: &str) -> bool {
        self.held.contains(link)
    }

    /// Whether the labels of who is behind a link have to be known before it starts, and are not.
    pub(crate) fn is_waited_for(&self, link: &str) -> bool {
        let pod = self.attached.get(link).and_then(|a| a.pod.as_ref());
        self.is_held(link) && !pod.is_some_and(|pod| pod.late)
    }

    /// Which pod is waited for, behind a link.
    pub(crate) fn held_for(&self, link: &str) -> Option<&ObjectKey> {
        let attachment = self.attached.get(link).filter(|_| self.is_held(link))?;
        attachment.pod.as_ref().map(|pod| &pod.key)
    }

    /// The API tells of a pod, or that it is gone.
    pub(crate) fn tell(&mut self, engine: &mut Engine, key: &ObjectKey, facts: Option<PodFacts>) {
        match facts {
            Some(facts) => {
                self.outlived.remove(key);
                self.told.insert(key.clone(), facts);
            }
            None => {
                if let Some(facts) = self.told.remove(key) {
                    self.outlived.insert(key.clone(), facts);
                }
            }
        }
        self.update(engine, key);
    }

    /// A pod is about to start.
    pub(crate) fn attach(&mut self, engine: &mut Engine, attachment: Attachment) {
        let link = attachment.link.clone();
        self.detach(engine, &link);
        let key = attachment.pod.as_ref().map(|pod| pod.key.clone());
        self.attached.insert(link, attachment);
        if let Some(key) = key {
            self.update(engine, &key);
        }
    }

    /// A pod has ended.
    pub(crate) fn detach(&mut self, engine: &mut Engine, link: &str) {
        let Some(attachment) = self.attached.remove(link) else {
            return;
        };
        if self.held.remove(link) {
            attachment
                .addresses
                .iter()
                .for_each(|address| engine.release(*address));
        }
        if let Some(pod) = attachment.pod {
            self.update(engine, &pod.key);
        }
    }

    /// Brings what both say about a pod together.
    fn update(&mut self, engine: &mut Engine, key: &ObjectKey) {
        let is_of = |a: &&Attachment| a.pod.as_ref().is_some_and(|pod| pod.key == *key);
        let attachments: Vec<Attachment> = self.attached.values().filter(is_of).cloned().collect();
        if attachments.is_empty() {
            self.outlived.remove(key);
            engine.set_pod(key, self.told.get(key).cloned());
            return;
        }
        let known = self.told.get(key).or_else(|| self.outlived.get(key));
        let mut facts = known.cloned();
        for attachment in attachments {
            let uid = attachment.pod.as_ref().and_then(|pod| pod.uid.as_ref());
            let is_known = known.is_some_and(|facts| uid.is_none_or(|uid| facts.uids.contains(uid)));
            // Without a uid it may be a pod that the API never hears of; then it has no labels.
            if is_known || uid.is_none() {
                let facts = facts.get_or_insert_default();
                facts.local = true;
                for address in &attachment.addresses {
                    if !facts.addresses.contains(address) {
                        facts.addresses.push(*address);
                    }
                }
                if self.held.remove(&attachment.link) {
                    attachment
                        .addresses
                        .iter()
                        .for_each(|address| engine.release(*address));
                }
            } else if self.held.insert(attachment.link.clone()) {
                attachment
                    .addresses
                    .iter()
                    .for_each(|address| engine.hold(*address));
            }
        }
        engine.set_pod(key, facts);
    }
}
