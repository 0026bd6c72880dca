//! One object, several writers.

use svcnet_api::registry::by_kind;

use super::*;

/// An object of a kind between writes, as the server holds it.
pub(super) struct Object {
    pub(super) kind: &'static Kind,
    pub(super) stored: Option<Value>,
    minute: u32,
}

impl Object {
    fn new(api_version: &str, kind: &str) -> Self {
        Self {
            kind: by_kind(api_version, kind).unwrap(),
            stored: None,
            minute: 0,
        }
    }

    pub(super) fn service() -> Self {
        Self::new("v1", "Service")
    }

    fn now(&mut self) -> String {
        self.minute += 1;
        format!("2026-11-27T00:{:02}:00Z", self.minute)
    }

    pub(super) fn apply_to(
        &mut self,
        manager: &str,
        subresource: &str,
        part: &Value,
        force: bool,
    ) -> Result<(), ApiError> {
        let now = self.now();
        let writer = Writer {
            kind: self.kind,
            subresource,
            manager,
            now: &now,
        };
        let mut whole = json!({
            "apiVersion": self.kind.api_version(), "kind": self.kind.kind,
            "metadata": {"name": "web", "namespace": "default"},
        });
        json_patch::merge(&mut whole, part);
        let live = self.stored.clone().unwrap_or_else(|| empty(self.kind));
        let mut new = apply(writer, &live, &whole, force)?;
        svcnet_api::schema::prune(self.kind, &mut new);
        self.stored = Some(new);
        Ok(())
    }

    pub(super) fn apply(&mut self, manager: &str, part: &Value) -> Result<(), ApiError> {
        self.apply_to(manager, "", part, false)
    }

    pub(super) fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
        let now = self.now();
        let writer = Writer {
            kind: self.kind,
            subresource: "",
            manager,
            now: &now,
        };
        let mut new = self.stored.clone().unwrap_or_else(|| {
            json!({"apiVersion": "v1", "kind": self.kind.kind, "metadata": {"name": "web", "namespace": "default"}})
        });
        change(&mut new);
        match &self.stored {
            Some(live) => update(writer, live, &mut new),
            None => create(writer, &new.clone(), &mut new),
        }
        self.stored = Some(new);
    }

    pub(super) fn at(&self, pointer: &str) -> Value {
        self.stored
            .as_ref()
            .unwrap()
            .pointer(pointer)
            .cloned()
            .unwrap_or_default()
    }

    /// Each owner with its fields.
    pub(super) fn owners(&self) -> Vec<(String, Vec<String>)> {
        let owners = Owners::of(self.stored.as_ref().unwrap()).unwrap().0;
        let shown = owners.iter().map(|(manager, owned)| {
            let how = match manager.operation {
                Operation::Apply => "applies",
                Operation::Update => "updates",
            };
            let paths = owned.fields.paths().iter().map(ToString::to_string).collect();
            (format!("{} {how}", manager.name), paths)
        });
        shown.collect()
    }

    fn owned_by(&self, who: &str) -> Vec<String> {
        let found = self.owners().into_iter().find(|(owner, _)| owner == who);
        found.map(|(_, paths)| paths).unwrap_or_default()
    }
}

fn ports(items: Value) -> Value {
    json!({"spec": {"ports": items}})
}

#[test]
fn a_created_object_shows_its_fields_as_the_real_server_has_them() {
    let mut object = Object::service();
    object.update("kubectl-create", |new| {
        new["metadata"]["labels"] = json!({"app": "web"});
        new["metadata"]["creationTimestamp"] = json!("2026-11-27T00:00:00Z");
        new["spec"] = json!({
            "type": "ClusterIP", "selector": {"app": "web"}, "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        });
        new["status"] = json!({"loadBalancer": {}});
    });
    assert_eq!(
        object.at("/metadata/managedFields"),
        json!([{
            "manager": "kubectl-create", "operation": "Update", "apiVersion": "v1", "time": "2026-11-27T00:01:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                        ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {},
                    }},
                    "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
                },
            },
        }])
    );
}

#[test]
fn types_that_always_have_a_field_do_not_give_it_to_the_creator() {
    let mut pod = Object::new("v1", "Pod");
    pod.update("kubelet", |new| {
        new["spec"] = json!({"containers": [{"name": "c", "image": "i"}], "securityContext": {}});
    });
    let c = ".spec.containers[name=\"c\"]";
    assert_eq!(
        pod.owned_by("kubelet updates"),
        [
            c.to_string(),
            format!("{c}.image"),
            format!("{c}.name"),
            ".spec.securityContext".to_string()
        ]
    );
    let mut pool = Object::new("metallb.io/v1beta1", "IPAddressPool");
    pool.update("kubectl", |new| {
        new["spec"] = json!({"addresses": ["10.0.0.0/24"]})
    });
    assert_eq!(pool.owned_by("kubectl updates"), [".spec", ".spec.addresses"]);
}

#[test]
fn an_update_takes_what_it_changes_and_all_lose_what_goes() {
    let mut object = Object::service();
    object.update("a", |new| {
        new["metadata"]["labels"] = json!({"x": "1", "y": "1"});
        new["spec"] = json!({"type": "ClusterIP"});
    });
    object.update("b", |new| new["metadata"]["labels"]["x"] = json!("2"));
    assert_eq!(
        object.owned_by("a updates"),
        [".metadata.labels", ".metadata.labels.y", ".spec.type"]
    );
    assert_eq!(object.owned_by("b updates"), [".metadata.labels.x"]);
    object.update("c", |new| {
        _ = new["metadata"].as_object_mut().unwrap().remove("labels")
    });
    assert_eq!(
        object.owners(),
        [("a updates".to_string(), vec![".spec.type".to_string()])]
    );
    let before = object.at("/metadata/managedFields");
    object.update("c", |_| {});
    assert_eq!(
        object.at("/metadata/managedFields"),
        before,
        "who changes nothing is nobody"
    );
}

#[test]
fn clients_that_know_nothing_of_managed_fields_keep_them_and_others_reset_them() {
    let mut object = Object::service();
    object.update("a", |new| new["metadata"]["labels"] = json!({"x": "1"}));
    object.update("b", |new| {
        new["metadata"].as_object_mut().unwrap().remove("managedFields");
        new["metadata"]["labels"]["y"] = json!("1");
    });
    assert_eq!(
        object.owned_by("a updates"),
        [".metadata.labels", ".metadata.labels.x"]
    );
    object.update("b", |new| {
        new["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Steal"}])
    });
    assert_eq!(
        object.owned_by("b updates"),
        [".metadata.labels.y"],
        "nonsense changes nothing"
    );
    for reset in [json!([]), json!([{}])] {
        let mut object = Object {
            stored: object.stored.clone(),
            ..Object::service()
        };
        object.update("b", |new| new["metadata"]["managedFields"] = reset);
        assert_eq!(object.at("/metadata/managedFields"), Value::Null);
        object.update("b", |new| new["metadata"]["labels"]["z"] = json!("1"));
        assert_eq!(
            object.owners(),
            [],
            "nobody is told of again before the first apply"
        );
        object
            .apply("c", &json!({"metadata": {"labels": {"new": "1"}}}))
            .unwrap();
        assert_eq!(
            object.owned_by("before-first-apply updates"),
            [
                ".metadata.labels",
                ".metadata.labels.x",
                ".metadata.labels.y",
                ".metadata.labels.z"
            ]
        );
    }
}

#[test]
fn the_status_is_not_of_those_who_write_the_rest() {
    let mut object = Object::service();
    object.update("a", |new| {
        new["spec"] = json!({"type": "LoadBalancer"});
        new["status"] = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}});
    });
    assert_eq!(object.owned_by("a updates"), [".spec.type"]);
    let status = json!({
        "spec": {"type": "NodePort"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    object.apply_to("b", "status", &status, false).unwrap();
    let ready = ".status.conditions[type=\"Ready\"]";
    assert_eq!(
        object.owned_by("b applies"),
        [
            ready.to_string(),
            format!("{ready}.status"),
            format!("{ready}.type")
        ]
    );
    assert_eq!(object.at("/metadata/managedFields/0/subresource"), "status");
}

#[test]
fn what_is_no_longer_applied_goes_unless_somebody_else_owns_it() {
    let mut object = Object::service();
    object
        .apply(
            "a",
            &json!({"metadata": {"labels": {"x": "1", "y": "1"}}, "spec": {"type": "NodePort"}}),
        )
        .unwrap();
    object
        .apply("b", &json!({"metadata": {"labels": {"y": "1"}}}))
        .unwrap();
    object.update("c", |new| new["metadata"]["labels"]["z"] = json!("1"));
    object.apply("a", &json!({"spec": {"type": "NodePort"}})).unwrap();
    assert_eq!(object.at("/metadata/labels"), json!({"y": "1", "z": "1"}));
    object.apply("b", &json!({})).unwrap();
    assert_eq!(object.at("/metadata/labels"), json!({"z": "1"}));
    let owners: Vec<String> = object.owners().into_iter().map(|(who, _)| who).collect();
    assert_eq!(
        owners,
        ["a applies", "c updates"],
        "who applies nothing owns nothing"
    );
    assert_eq!(object.at("/spec/type"), "NodePort");
}

#[test]
fn fields_of_others_are_refused_in_the_real_words_unless_forced() {
    let mut object = Object::service();
    object.update("kubectl-edit", |new| {
        new["spec"] =
            json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
    });
    let wanted = ports(json!([{"port": 80, "targetPort": 81}]));
    let refused = object.apply("kubectl", &wanted).unwrap_err();
    let path = ".spec.ports[port=80,protocol=\"TCP\"].targetPort";
    assert_eq!(
        refused.message,
        format!("Apply failed with 1 conflict: conflict with \"kubectl-edit\" using v1: {path}")
    );
    assert_eq!(
        (refused.reason, refused.details.unwrap()),
        (
            Reason::Conflict,
            json!({"causes": [{
                "reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\" using v1", "field": path,
            }]})
        )
    );
    let mut both = wanted.clone();
    both["spec"]["type"] = json!("NodePort");
    assert_eq!(
        object.apply("kubectl", &both).unwrap_err().message,
        format!(
            "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- {path}\n- .spec.type"
        )
    );
    object.apply_to("kubectl", "", &both, true).unwrap();
    assert_eq!(
        object.at("/spec/ports"),
        json!([{"port": 80, "protocol": "TCP", "targetPort": 81}])
    );
    assert!(
        !object
            .owned_by("kubectl-edit updates")
            .contains(&path.to_string())
    );
    let refused = object
        .apply("other", &json!({"spec": {"type": "ClusterIP"}}))
        .unwrap_err();
    assert_eq!(
        refused.message, "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.type",
        "appliers are of no version"
    );
}

#[test]
fn equal_values_are_shared_and_an_update_takes_them_from_appliers() {
    let mut object = Object::service();
    object.apply("a", &json!({"spec": {"type": "NodePort"}})).unwrap();
    object.apply("b", &json!({"spec": {"type": "NodePort"}})).unwrap();
    assert_eq!(
        (object.owned_by("a applies"), object.owned_by("b applies")),
        (vec![".spec.type".to_string()], vec![".spec.type".to_string()])
    );
    object.update("c", |new| new["spec"]["type"] = json!("ClusterIP"));
    assert_eq!(
        object.owners(),
        [("c updates".to_string(), vec![".spec.type".to_string()])]
    );
}

#[test]
fn items_with_keys_are_merged_and_keep_an_order() {
    let mut object = Object::service();
    let port = |n: u16| json!({"port": n, "protocol": "TCP", "name": format!("p{n}")});
    object
        .apply("a", &ports(json!([port(1), port(2), port(3)])))
        .unwrap();
    object.apply("b", &ports(json!([port(9)]))).unwrap();
    object
        .apply("a", &ports(json!([port(3), port(1), port(5)])))
        .unwrap();
    let numbers = |object: &Object| -> Vec<i64> {
        object
            .at("/spec/ports")
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["port"].as_i64().unwrap())
            .collect()
    };
    assert_eq!(numbers(&object), [3, 9, 1, 5]);
    let udp = json!([{"port": 1, "protocol": "UDP", "name": "u"}]);
    object.apply("c", &ports(udp)).unwrap();
    assert_eq!(numbers(&object).len(), 5, "the protocol is part of the key");
    let twice = object
        .apply("d", &ports(json!([{"port": 7}, {"port": 7, "protocol": "TCP"}])))
        .unwrap_err();
    assert_eq!(
        twice.message,
        "failed to create typed patch object (default/web; /v1, Kind=Service): .spec.ports: duplicate entries for key \
         [port=7,protocol=\"TCP\"]"
    );
    let mut finalized = Object::service();
    finalized
        .apply("a", &json!({"metadata": {"finalizers": ["x/a"]}}))
        .unwrap();
    finalized
        .apply("b", &json!({"metadata": {"finalizers": ["x/b", "x/a"]}}))
        .unwrap();
    finalized.apply("a", &json!({})).unwrap();
    assert_eq!(finalized.at("/metadata/finalizers"), json!(["x/b", "x/a"]));
    finalized
        .apply("b", &json!({"metadata": {"finalizers": ["x/b"]}}))
        .unwrap();
    assert_eq!(finalized.at("/metadata/finalizers"), json!(["x/b"]));
}

#[test]
fn atomic_values_have_one_owner() {
    let mut object = Object::service();
    object
        .apply(
            "a",
            &json!({"spec": {"selector": {"a": "1", "b": "1"}, "externalIPs": ["1.1.1.1"]}}),
        )
        .unwrap();
    assert_eq!(
        object.owned_by("a applies"),
        [".spec.externalIPs", ".spec.selector"]
    );
    let refused = object
        .apply("b", &json!({"spec": {"selector": {"a": "1"}}}))
        .unwrap_err();
    assert!(
        refused.message.ends_with("conflict with \"a\": .spec.selector"),
        "{refused}"
    );
    object
        .apply("a", &json!({"spec": {"selector": {"b": "1"}}}))
        .unwrap();
    assert_eq!(
        (object.at("/spec/selector"), object.at("/spec/externalIPs")),
        (json!({"b": "1"}), Value::Null)
    );
}

#[test]
fn configurations_that_are_none_are_refused_in_the_real_words() {
    let mut object = Object::service();
    for (part, words) in [
        (
            json!({"spec": {"foo": 1}}),
            ".spec.foo: field not declared in schema",
        ),
        (
            ports(json!([{"port": 80, "foo": 1}])),
            ".spec.ports[port=80,protocol=\"TCP\"].foo: field not declared in schema",
        ),
        (
            ports(json!([{"name": "x"}])),
            ".spec.ports: element 0: associative list with keys has an element that omits key field \"port\" (and \
             doesn't have default value)",
        ),
        (
            ports(json!([{"port": "80"}])),
            ".spec.ports[port=\"80\",protocol=\"TCP\"].port: expected numeric (int or float), got string",
        ),
        (
            json!({"spec": {"type": 5}}),
            ".spec.type: expected string, got &value.valueUnstructured{Value:5}",
        ),
        (
            json!({"spec": {"ports": "x"}}),
            ".spec.ports: expected list, got &{x}",
        ),
    ] {
        let refused = object.apply("a", &part).unwrap_err();
        let head = "failed to create typed patch object (default/web; /v1, Kind=Service): ";
        assert_eq!(
            (refused.message, refused.reason),
            (format!("{head}{words}"), Reason::Unknown)
        );
    }
    let refused = object
        .apply("a", &json!({"metadata": {"managedFields": []}}))
        .unwrap_err();
    assert_eq!(
        (refused.message.as_str(), refused.reason),
        ("metadata.managedFields must be nil", Reason::BadRequest)
    );
}

#[test]
fn kubectl_goes_over_from_client_side_apply_and_keeps_its_annotation() {
    let mut object = Object::service();
    let note = "kubectl.kubernetes.io/last-applied-configuration";
    let last = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
    });
    object.update("kubectl-client-side-apply", |new| {
        *new = last.clone();
        new["metadata"]["annotations"] = json!({note: last.to_string()});
    });
    let wanted =
        json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 90}]}});
    assert_eq!(
        object.apply("argo", &wanted).unwrap_err().reason,
        Reason::Conflict
    );
    object.apply("kubectl", &wanted).unwrap();
    let told: Value = serde_json::from_str(
        object
            .at("/metadata/annotations")
            .get(note)
            .unwrap()
            .as_str()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(told["spec"], wanted["spec"]);
    // What somebody has changed since is his.
    object.update("kubectl-edit", |new| {
        new["spec"]["ports"][0]["targetPort"] = json!(91)
    });
    let refused = object.apply("kubectl", &wanted).unwrap_err();
    assert!(
        refused
            .message
            .contains("conflict with \"kubectl-edit\" using v1"),
        "{refused}"
    );
}

#[test]
fn old_updaters_are_joined() {
    let mut object = Object::service();
    for i in 0..15 {
        object.update(&format!("m{i:02}"), |new| {
            new["metadata"]["labels"][format!("l{i:02}")] = json!("1")
        });
    }
    let owners: Vec<String> = object.owners().into_iter().map(|(who, _)| who).collect();
    assert_eq!(owners.len(), 10);
    assert_eq!(
        (owners[0].as_str(), owners[9].as_str()),
        ("ancient-changes updates", "m14 updates")
    );
    assert_eq!(object.owned_by("ancient-changes updates").len(), 7);
}
