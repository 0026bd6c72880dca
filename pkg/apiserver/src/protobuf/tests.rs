use proptest::prelude::*;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::json;

use super::*;

/// A message written by hand: the same wire form that Go writes.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(mut self, number: u32, bytes: impl AsRef<[u8]>) -> Self {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.as_ref().len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn int(mut self, number: u32, value: u64) -> Self {
        encode_key(number, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
        self
    }
}

fn body(api_version: &str, kind: &str, raw: Writer) -> Vec<u8> {
    let type_meta = Writer::default().bytes(1, api_version).bytes(2, kind);
    let unknown = Writer::default()
        .bytes(1, type_meta.0)
        .bytes(2, raw.0)
        .bytes(3, "")
        .bytes(4, "");
    [MAGIC, &unknown.0].concat()
}

#[test]
fn a_service_as_kubectl_sends_it() {
    let label = Writer::default().bytes(1, "app").bytes(2, "made");
    let meta = Writer::default()
        .bytes(1, "made")
        .bytes(2, "")
        .bytes(8, "")
        .bytes(11, label.0);
    let target = Writer::default().int(1, 0).int(2, 8080).bytes(3, "");
    let port = Writer::default()
        .bytes(1, "80-8080")
        .bytes(2, "TCP")
        .int(3, 80)
        .bytes(4, target.0)
        .int(5, 0);
    let spec = Writer::default()
        .bytes(1, port.0)
        .bytes(3, "")
        .bytes(4, "NodePort")
        .bytes(7, "")
        .int(13, 0)
        .int(20, 0);
    let raw = Writer::default()
        .bytes(1, meta.0)
        .bytes(2, spec.0)
        .bytes(3, Writer::default().bytes(1, "").0);
    assert_eq!(
        decode(&body("v1", "Service", raw)).unwrap(),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "made", "labels": {"app": "made"}},
            "spec": {
                "ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
                "type": "NodePort", "allocateLoadBalancerNodePorts": false,
            },
            "status": {"loadBalancer": {}},
        })
    );
}

#[test]
fn embedded_structs_times_and_bytes_take_their_json_form() {
    let data = Writer::default().bytes(1, "key").bytes(2, [0xff, 0]);
    let meta = Writer::default()
        .bytes(1, "s")
        .bytes(8, Writer::default().int(1, 1_700_000_000).0);
    let secret = decode(&body(
        "v1",
        "Secret",
        Writer::default().bytes(1, meta.0).bytes(2, data.0),
    ))
    .unwrap();
    assert_eq!(secret["data"], json!({"key": "/wA="}));
    assert_eq!(secret["metadata"]["creationTimestamp"], "2023-11-14T22:13:20Z");
    // Volume embeds VolumeSource: { name, volumeSource: { emptyDir } } is { name, emptyDir }.
    let source = Writer::default().bytes(2, Writer::default().bytes(1, "Memory").0);
    let volume = Writer::default().bytes(1, "tmp").bytes(2, source.0);
    let pod = Writer::default().bytes(2, Writer::default().bytes(1, volume.0).0);
    let pod = decode(&body("v1", "Pod", pod)).unwrap();
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "tmp", "emptyDir": {"medium": "Memory"}}])
    );
}

#[test]
fn an_ingress_as_kubectl_sends_it() {
    let port = Writer::default().bytes(1, "").int(2, 80);
    let service = Writer::default().bytes(1, "web").bytes(2, port.0);
    let backend = Writer::default().bytes(4, service.0);
    let path = Writer::default()
        .bytes(1, "/")
        .bytes(2, backend.0)
        .bytes(3, "Prefix");
    // IngressRule embeds IngressRuleValue.
    let value = Writer::default().bytes(1, Writer::default().bytes(1, path.0).0);
    let rule = Writer::default().bytes(1, "a.example.com").bytes(2, value.0);
    let spec = Writer::default().bytes(3, rule.0).bytes(4, "nginx");
    let raw = Writer::default()
        .bytes(1, Writer::default().bytes(1, "web").0)
        .bytes(2, spec.0)
        .bytes(3, Writer::default().bytes(1, "").0);
    assert_eq!(
        decode(&body("networking.k8s.io/v1", "Ingress", raw)).unwrap()["spec"],
        json!({"ingressClassName": "nginx", "rules": [{"host": "a.example.com", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
        ]}}]})
    );
}

#[test]
fn other_kinds_and_other_bodies_are_refused() {
    let error = decode(&body("apps/v1", "Deployment", Writer::default())).unwrap_err();
    assert_eq!(error.reason.code(), 415);
    assert_eq!(decode(b"{}").unwrap_err().reason.code(), 400);
}

/// A message that holds itself for ever does not take the stack with it.
#[test]
fn depth_has_a_limit() {
    // Pod -> spec -> containers cannot recurse; a message type that can is not among ours, so the limit is asked for
    // directly.
    let fields = table::message("Service");
    assert!(message_to_json(fields, &[], DEPTH_MAX).is_ok());
    assert!(message_to_json(fields, &[], DEPTH_MAX + 1).is_err());
}

proptest! {
    #[test]
    fn hostile_bodies_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        _ = decode(&bytes);
        _ = decode(&[MAGIC, &bytes].concat());
        _ = decode(&body("v1", "Service", Writer(bytes.clone())));
        _ = decode(&body("v1", "Pod", Writer(bytes)));
    }
}
