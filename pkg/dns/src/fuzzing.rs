//! What `fuzz/` runs over any bytes, and the tests over the seeds of `fuzz/seeds`: whatever clients and upstreams send, the
//! server goes on, and what it answers can be read by others.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a broken promise is what is looked for"
)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::forward::{Stored, write_chased};
use crate::wire::{HEADER, Query, Rcode, Refusal, Reply, TCP_MAX, encode, encode_header_only};
use crate::zone::{Question, Settings, Verdict, View, Zone};

/// Services of every form.
fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let meta = |name: &str| json!({"namespace": "default", "name": name});
        let service = |name: &str, spec: Value| -> Service {
            serde_json::from_value(json!({"metadata": meta(name), "spec": spec})).unwrap()
        };
        let mut view = View::default();
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        view.apply_namespace(&namespace);
        let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        for (name, spec) in [
            ("web", json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20"], "ports": ports})),
            ("db", json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports})),
            ("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
            ("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        ] {
            view.apply_service(&service(name, spec));
        }
        let addresses: Vec<Value> =
            (1..60).map(|i| json!({"addresses": [format!("10.244.1.{i}")], "hostname": format!("db-{i}")})).collect();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "endpoints": addresses,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }))
        .unwrap();
        view.apply_slice(&slice);
        let settings = Settings {
            apex: "cluster.local".parse().unwrap(),
            ttl: 30,
            servers: ["10.96.0.10".parse().unwrap()].into(),
            pods: true,
        };
        let zone = Zone::empty(settings);
        let plan = view.plan(&zone);
        zone.with(plan, 7).into_synced()
    })
}

/// A message of a client.
pub fn client(data: &[u8]) {
    let mut out = Vec::new();
    let query = match Query::parse(data) {
        Ok(query) => query,
        Err(Refusal::Ignore) => return,
        Err(_) => {
            encode_header_only(data, Rcode::FormErr, &mut out);
            Message::from_vec(&out).expect("a header that others read");
            return;
        }
    };
    let question = Question {
        name: query.name(),
        record_type: query.record_type,
        rotation: u32::from(query.id()),
    };
    if let Verdict::Ours { answer, .. } = zone().answer(question) {
        for limit in [query.udp_limit(), TCP_MAX] {
            out.clear();
            let reply = Reply {
                answer: &answer,
                extended: None,
            };
            encode(&query, reply, limit, &mut out);
            assert!(out.len() <= limit, "{} bytes where {limit} fit", out.len());
            let read = Message::from_vec(&out).expect("an answer that others read");
            assert_eq!((read.metadata.id, read.queries.len()), (query.id(), 1));
        }
    }
}

/// What stands in a message of an upstream behind the number and the flags: counts of three sections, and behind the
/// question all that follows.
pub fn upstream(data: &[u8]) {
    let Some((flags, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let Some((counts, rest)) = rest.split_first_chunk::<6>() else {
        return;
    };
    let asked =
        b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03www\x07example\x03com\x00\x00\x01\x00\x01\
                  \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
    let query = Query::parse(asked).expect("a question");
    let mut message = asked[..2].to_vec();
    message.extend([flags[0] & 0x07 | 0x80, flags[1], 0, 1]);
    message.extend(counts);
    message.extend(query.raw_question());
    message.extend(rest);
    assert!(Stored::answers(&message, 7, query.raw_question()));
    let now = Instant::now();
    let Some(stored) = Stored::new(message, now) else {
        return;
    };
    for limit in [query.udp_limit(), TCP_MAX] {
        let mut out = Vec::new();
        stored.write(&query, limit, now + Duration::from_secs(5), &mut out);
        assert!(out.len() <= limit.max(HEADER + query.raw_question().len() + 11));
        let again = Stored::new(out.clone(), now).expect("what is passed on holds together");
        assert_eq!(again.rcode(), stored.rcode());
        let alias = "out.default.svc.cluster.local"
            .parse::<crate::name::Name>()
            .unwrap();
        let question = Question {
            name: alias.wire(),
            record_type: query.record_type,
            rotation: 0,
        };
        if let Verdict::Ours { answer, .. } = zone().answer(question) {
            out.clear();
            _ = write_chased(&query, &answer, &stored, limit, now, &mut out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/over_seeds.rs"));

    #[test]
    fn seeds_keep_the_promises() {
        for (target, run) in [("dns", client as fn(&[u8])), ("dns_upstream", upstream)] {
            over_seeds(target, run);
        }
    }
}
