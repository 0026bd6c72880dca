//! The end of a namespace: all that is in it goes, of every kind that the server has, and then the namespace itself.

mod apply;

use std::fmt;
use std::time::Duration;

use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Namespace;
use svcnet_runtime::{Change, Informers, Scope};
use tokio::time::Instant;

use crate::engine::{Applying, Controller, Mark, source};
use crate::view::{Version, View};

/// The finalizer that stands for what is in a namespace.
const FINALIZER: &str = "kubernetes";

/// Empty a namespace and let it go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    namespace: String,
    version: Version,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "empty namespace {} and let it go", self.namespace)
    }
}

pub(crate) struct NamespaceController {
    client: kube::Client,
    /// Whether each namespace is on its way out and held by our finalizer.
    namespaces: View<String, bool>,
}

impl NamespaceController {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            namespaces: View::default(),
        }
    }

    pub(crate) fn sources(informers: &Informers) -> Vec<BoxStream<'static, Change<Namespace>>> {
        vec![source(informers.subscribe(Scope::default()), |change| change)]
    }

    fn changed(&mut self, object: &Namespace, mark: Mark<'_, String>) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let ends = object.metadata.deletion_timestamp.is_some() && is_held(object);
        if self
            .namespaces
            .apply(name.clone(), Version::of(&object.metadata), ends)
            .is_ok()
            && ends
        {
            mark(name);
        }
    }
}

fn is_held(object: &Namespace) -> bool {
    let finalizers = object
        .spec
        .iter()
        .flat_map(|spec| spec.finalizers.iter().flatten());
    finalizers.into_iter().any(|finalizer| finalizer == FINALIZER)
}

impl Controller for NamespaceController {
    type Key = String;
    type Event = Change<Namespace>;
    type Plan = Plan;
    type Outcome = ();

    const NAME: &'static str = "namespaces";
    const PERIOD: Duration = Duration::from_secs(10);

    fn observe(&mut self, event: Change<Namespace>, mark: Mark<'_, String>) {
        match event {
            Change::Apply(object) => self.changed(&object, mark),
            Change::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                self.namespaces.delete(&name, &Version::of(&object.metadata));
            }
            Change::Reset(all) => {
                let names = all
                    .iter()
                    .filter_map(|object| object.metadata.name.clone())
                    .collect();
                self.namespaces.retain(&names);
                all.iter().for_each(|object| self.changed(object, mark));
            }
        }
    }

    fn is_synced(&self) -> bool {
        self.namespaces.is_listed()
    }

    fn plan(&mut self, name: &String) -> Option<Plan> {
        let ends = *self.namespaces.get(name)?;
        let version = self.namespaces.version(name)?.clone();
        ends.then(|| Plan {
            namespace: name.clone(),
            version,
        })
    }

    fn apply(&self, plan: Plan) -> Applying<()> {
        let client = self.client.clone();
        Box::pin(async move { ((), apply::apply(client, &plan).await) })
    }

    fn applied(&mut self, _: &String, (): (), _: Mark<'_, String>) {}

    fn tick(&mut self, _: Instant, mark: Mark<'_, String>) {
        // Objects with finalizers of their own may take their time.
        self.namespaces
            .iter()
            .filter(|(_, ends)| **ends)
            .for_each(|(name, _)| mark(name.clone()));
    }
}
