//! A zone that followed every change equals one built from what there is in the end.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use svcnet_api::wellknown::ANNOTATION_ALIASES;

use super::cluster::{external, namespace, pod, service, settings, slice};
use crate::zone::table::{Entry, Table};
use crate::zone::{View, Zone};

#[derive(Debug, Clone)]
enum Step {
    Service(usize, usize, u8),
    Slice(usize, usize, usize, u8),
    Pod(usize, usize, u8),
    Namespace(usize, bool),
    Publish,
    Relist,
}

const NAMESPACES: [&str; 2] = ["one", "two"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const ADDRESSES: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "fd00::1",
    "10.0.0.3 not ready",
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, 0..3_usize, 0..8_u8).prop_map(|(ns, name, what)| Step::Service(ns, name, what)),
        4 => (0..2_usize, 0..3_usize, 0..3_usize, 0..32_u8).prop_map(|(ns, name, of, bits)| Step::Slice(ns, name, of, bits)),
        2 => (0..2_usize, 0..3_usize, 0..16_u8).prop_map(|(ns, name, bits)| Step::Pod(ns, name, bits)),
        1 => (0..2_usize, any::<bool>()).prop_map(|(ns, there)| Step::Namespace(ns, there)),
        2 => Just(Step::Publish),
        1 => Just(Step::Relist),
    ]
}

/// What there is: the objects by namespace and name.
#[derive(Default, Clone)]
struct Objects {
    services: BTreeMap<(usize, usize), Service>,
    slices: BTreeMap<(usize, usize), EndpointSlice>,
    pods: BTreeMap<(usize, usize), Pod>,
    namespaces: BTreeMap<usize, Namespace>,
}

fn some_service(ns: usize, name: usize, what: u8) -> Service {
    let (ns, name) = (NAMESPACES[ns], NAMES[name]);
    match what {
        1 => external(ns, name, "c.one.svc.cluster.local"),
        2 | 3 => service(ns, name, &["None"], &["http/TCP/80"]),
        4 => service(ns, name, &["10.96.0.1", "fd00:96::1"], &["http/TCP/80"]),
        number => service(ns, name, &[&format!("10.96.0.{number}")], &["http/TCP/80"]),
    }
}

fn chosen(bits: u8) -> Vec<&'static str> {
    ADDRESSES
        .iter()
        .enumerate()
        .filter(|(at, _)| bits & (1 << at) != 0)
        .map(|(_, address)| *address)
        .collect()
}

impl Objects {
    /// Changes the objects, and tells the view.
    fn take(&mut self, step: &Step, view: &mut View) {
        match *step {
            Step::Service(ns, name, 0) => {
                if let Some(object) = self.services.remove(&(ns, name)) {
                    view.delete_service(&object);
                }
            }
            Step::Service(ns, name, what) => {
                let object = some_service(ns, name, what);
                view.apply_service(&object);
                self.services.insert((ns, name), object);
            }
            Step::Slice(ns, name, _, 0) => {
                if let Some(object) = self.slices.remove(&(ns, name)) {
                    view.delete_slice(&object);
                }
            }
            Step::Slice(ns, name, of, bits) => {
                let object = slice(
                    NAMESPACES[ns],
                    NAMES[of],
                    NAMES[name],
                    &chosen(bits),
                    &["http/TCP/8080"],
                );
                view.apply_slice(&object);
                self.slices.insert((ns, name), object);
            }
            Step::Pod(ns, name, 0) => {
                if let Some(object) = self.pods.remove(&(ns, name)) {
                    view.delete_pod(&object);
                }
            }
            Step::Pod(ns, name, bits) => {
                let mut object = pod(NAMESPACES[ns], NAMES[name], &chosen(bits));
                // Names that Services have, too, and one of their own.
                let aliases = [None, Some("a"), Some("B, x"), Some("x,y.z")][usize::from(bits) % 4];
                object.metadata.annotations =
                    aliases.map(|list| [(ANNOTATION_ALIASES.to_string(), list.to_string())].into());
                view.apply_pod(&object);
                self.pods.insert((ns, name), object);
            }
            Step::Namespace(ns, there) => {
                let object = namespace(NAMESPACES[ns]);
                if there {
                    view.apply_namespace(&object);
                    self.namespaces.insert(ns, object);
                } else {
                    view.delete_namespace(&object);
                    self.namespaces.remove(&ns);
                }
            }
            Step::Publish => {}
            Step::Relist => self.list(view),
        }
    }

    fn list(&self, view: &mut View) {
        view.reset_services(self.services.values());
        view.reset_slices(self.slices.values());
        view.reset_pods(self.pods.values());
        view.reset_namespaces(self.namespaces.values());
    }
}

fn keys<V: Entry>(table: &Table<V>) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = table.iter().map(|entry| entry.key().to_vec()).collect();
    keys.sort();
    keys
}

fn assert_same(left: &Zone, right: &Zone) {
    assert_eq!(keys(&left.services), keys(&right.services));
    for entry in right.services.iter() {
        assert_eq!(left.services.get(entry.key()), Some(entry));
    }
    assert_eq!(keys(&left.addresses), keys(&right.addresses));
    for entry in right.addresses.iter() {
        assert_eq!(left.addresses.get(entry.key()), Some(entry));
    }
    assert_eq!(keys(&left.namespaces), keys(&right.namespaces));
    assert_eq!(keys(&left.pods), keys(&right.pods));
}

proptest! {
    #[test]
    fn following_equals_building(steps in prop::collection::vec(step(), 0..60)) {
        let mut objects = Objects::default();
        let mut view = View::default();
        let mut zone = Zone::empty(settings());
        for step in &steps {
            objects.take(step, &mut view);
            if matches!(step, Step::Publish) {
                let plan = view.plan(&zone);
                zone = zone.with(plan, 1);
            }
        }
        let plan = view.plan(&zone);
        zone = zone.with(plan, 1);
        let mut fresh_view = View::default();
        objects.list(&mut fresh_view);
        let empty = Zone::empty(settings());
        let plan = fresh_view.plan(&empty);
        let fresh = empty.with(plan, 1);
        assert_same(&zone, &fresh);
        // The fixed point: hearing the same again changes nothing.
        objects.list(&mut view);
        let plan = view.plan(&zone);
        prop_assert!(plan.is_empty(), "{plan}");
    }
}

#[test]
fn a_plan_reads_well() {
    let mut view = View::default();
    view.apply_service(&service("default", "web", &["10.96.0.20"], &[]));
    view.apply_pod(&pod("default", "web-a", &["10.244.1.2"]));
    let zone = Zone::empty(settings());
    let plan = view.plan(&zone);
    assert_eq!(
        plan.to_string(),
        "put service web.default.\nput namespace default.\nput pod 10.244.1.2 default.\n"
    );
    let zone = zone.with(plan, 1);
    view.delete_service(&service("default", "web", &["10.96.0.20"], &[]));
    let plan = view.plan(&zone);
    assert_eq!(
        plan.to_string(),
        "remove service web.default.\nremove namespace default.\n"
    );
}
