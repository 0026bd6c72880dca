//! Golden answers.

use super::cluster::{ask, example, settings, told};
use crate::wire::{Rcode, RecordType};
use crate::zone::{Missing, Reason, Verdict, Zone};

const SOA: &str =
    "authority cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30";

fn check(questions: &[(&str, RecordType, &str)]) {
    let zone = example();
    for (name, record_type, wanted) in questions {
        assert_eq!(told(&zone, name, *record_type), *wanted, "{name} {record_type}");
    }
}

fn none(name: &str, record_type: RecordType) {
    assert_eq!(
        told(&example(), name, record_type),
        format!("NXDOMAIN\n{SOA}"),
        "{name} {record_type}"
    );
}

fn no_data(name: &str, record_type: RecordType) {
    assert_eq!(
        told(&example(), name, record_type),
        format!("NOERROR\n{SOA}"),
        "{name} {record_type}"
    );
}

#[test]
fn schema_version() {
    check(&[(
        "dns-version.cluster.local",
        RecordType::TXT,
        "NOERROR\n@ 30 TXT \"1.1.0\"",
    )]);
    no_data("dns-version.cluster.local", RecordType::A);
    none("x.dns-version.cluster.local", RecordType::TXT);
}

#[test]
fn the_zone_itself() {
    check(&[
        (
            "cluster.local",
            RecordType::SOA,
            "NOERROR\n@ 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30",
        ),
        (
            "cluster.local",
            RecordType::NS,
            "NOERROR\n@ 30 NS ns.dns.cluster.local.\nadditional ns.dns.cluster.local. 30 A 10.96.0.10",
        ),
        (
            "ns.dns.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.96.0.10",
        ),
    ]);
    no_data("cluster.local", RecordType::A);
    no_data("dns.cluster.local", RecordType::A);
    no_data("ns.dns.cluster.local", RecordType::AAAA);
    none("www.cluster.local", RecordType::A);
    none("www.example.com.cluster.local", RecordType::A);
}

#[test]
fn cluster_ip_services() {
    check(&[
        (
            "kubernetes.default.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.96.0.1",
        ),
        (
            "WEB.Default.SVC.Cluster.Local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.96.0.20",
        ),
        (
            "dual.default.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.96.0.80",
        ),
        (
            "dual.default.svc.cluster.local",
            RecordType::AAAA,
            "NOERROR\n@ 30 AAAA fd00:96::80",
        ),
        (
            "dual.default.svc.cluster.local",
            RecordType::ANY,
            "NOERROR\n@ 30 A 10.96.0.80\n@ 30 AAAA fd00:96::80",
        ),
        (
            "_http._tcp.web.default.svc.cluster.local",
            RecordType::SRV,
            "NOERROR\n@ 30 SRV 0 100 80 web.default.svc.cluster.local.\n\
             additional web.default.svc.cluster.local. 30 A 10.96.0.20",
        ),
        (
            "web.default.svc.cluster.local",
            RecordType::SRV,
            "NOERROR\n@ 30 SRV 0 50 80 web.default.svc.cluster.local.\n\
             @ 30 SRV 0 50 53 web.default.svc.cluster.local.\n\
             additional web.default.svc.cluster.local. 30 A 10.96.0.20",
        ),
        (
            "20.0.96.10.in-addr.arpa",
            RecordType::PTR,
            "NOERROR\n@ 30 PTR web.default.svc.cluster.local.",
        ),
        (
            "0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa",
            RecordType::PTR,
            "NOERROR\n@ 30 PTR dual.default.svc.cluster.local.",
        ),
        // Endpoints have names below a Service with an address too, as in CoreDNS.
        (
            "10-244-1-2.web.default.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.1.2",
        ),
        (
            "zwei.web.default.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.2.2",
        ),
    ]);
}

#[test]
fn cluster_ip_services_have_nothing_else() {
    no_data("web.default.svc.cluster.local", RecordType::AAAA);
    no_data("web.default.svc.cluster.local", RecordType::MX);
    no_data("unallocated.default.svc.cluster.local", RecordType::A);
    no_data("_http._tcp.web.default.svc.cluster.local", RecordType::A);
    no_data("_tcp.web.default.svc.cluster.local", RecordType::SRV);
    none("_sctp.web.default.svc.cluster.local", RecordType::SRV);
    none("_http._udp.web.default.svc.cluster.local", RecordType::SRV);
    none("_none._tcp.web.default.svc.cluster.local", RecordType::SRV);
    none("http._tcp.web.default.svc.cluster.local", RecordType::SRV);
    none("10-244-9-9.web.default.svc.cluster.local", RecordType::A);
    none("10-244-2-2.web.default.svc.cluster.local", RecordType::A);
    none("a._http._tcp.web.default.svc.cluster.local", RecordType::SRV);
    none("gone.default.svc.cluster.local", RecordType::A);
    none("web.prod.svc.cluster.local", RecordType::A);
}

#[test]
fn what_lies_between_exists() {
    for name in ["svc", "pod", "default.svc", "empty.svc", "default.pod"] {
        no_data(&format!("{name}.cluster.local"), RecordType::A);
    }
    none("nowhere.svc.cluster.local", RecordType::A);
    none("web.nowhere.svc.cluster.local", RecordType::A);
    none("nowhere.pod.cluster.local", RecordType::A);
}

#[test]
fn headless_services() {
    check(&[
        (
            "db.prod.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.1.3\n@ 30 A 10.244.2.3\n@ 30 A 10.244.3.3",
        ),
        (
            "db-1.db.prod.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.2.3",
        ),
        (
            "10-244-3-3.db.prod.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.3.3",
        ),
        (
            "fd00-244--1.six.prod.svc.cluster.local",
            RecordType::AAAA,
            "NOERROR\n@ 30 AAAA fd00:244::1",
        ),
        (
            "six.prod.svc.cluster.local",
            RecordType::AAAA,
            "NOERROR\n@ 30 AAAA fd00:244::1",
        ),
        (
            "early.prod.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.1.5",
        ),
        (
            "_mysql._tcp.db.prod.svc.cluster.local",
            RecordType::SRV,
            "NOERROR\n@ 30 SRV 0 33 3307 db-0.db.prod.svc.cluster.local.\n\
             @ 30 SRV 0 33 3307 db-1.db.prod.svc.cluster.local.\n\
             @ 30 SRV 0 33 3307 10-244-3-3.db.prod.svc.cluster.local.\n\
             additional db-0.db.prod.svc.cluster.local. 30 A 10.244.1.3\n\
             additional db-1.db.prod.svc.cluster.local. 30 A 10.244.2.3\n\
             additional 10-244-3-3.db.prod.svc.cluster.local. 30 A 10.244.3.3",
        ),
        (
            "3.1.244.10.in-addr.arpa",
            RecordType::PTR,
            "NOERROR\n@ 30 PTR db-0.db.prod.svc.cluster.local.",
        ),
        (
            "3.3.244.10.in-addr.arpa",
            RecordType::PTR,
            "NOERROR\n@ 30 PTR 10-244-3-3.db.prod.svc.cluster.local.",
        ),
    ]);
    no_data("db.prod.svc.cluster.local", RecordType::AAAA);
    no_data("six.prod.svc.cluster.local", RecordType::A);
    none("starting.prod.svc.cluster.local", RecordType::A);
    none("_http._tcp.starting.prod.svc.cluster.local", RecordType::SRV);
    none("10-244-1-4.starting.prod.svc.cluster.local", RecordType::A);
    none("10-244-3-4.db.prod.svc.cluster.local", RecordType::A);
    // An endpoint with a name of its own has no other.
    none("10-244-1-3.db.prod.svc.cluster.local", RecordType::A);
}

#[test]
fn which_address_comes_first_changes() {
    let zone = example();
    let name: crate::name::Name = "db.prod.svc.cluster.local".parse().unwrap();
    let first = |rotation| {
        let question = crate::zone::Question {
            name: name.wire(),
            record_type: RecordType::A,
            rotation,
        };
        let Verdict::Ours { answer, .. } = zone.answer(question) else {
            panic!("ours")
        };
        assert_eq!(answer.records.len(), 3);
        answer.records[0].data.to_string()
    };
    assert_eq!(
        [first(0), first(1), first(2), first(3)],
        ["A 10.244.1.3", "A 10.244.2.3", "A 10.244.3.3", "A 10.244.1.3"]
    );
}

#[test]
fn external_names() {
    let alias = "web.default.svc.cluster.local.";
    check(&[
        (
            "out.default.svc.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 CNAME www.example.com.\nchase www.example.com.",
        ),
        (
            "out.default.svc.cluster.local",
            RecordType::CNAME,
            "NOERROR\n@ 30 CNAME www.example.com.",
        ),
        (
            "alias.default.svc.cluster.local",
            RecordType::A,
            &format!("NOERROR\n@ 30 CNAME {alias}\n{alias} 30 A 10.96.0.20"),
        ),
        (
            "alias-of-alias.default.svc.cluster.local",
            RecordType::A,
            &format!(
                "NOERROR\n@ 30 CNAME alias.default.svc.cluster.local.\n\
                 alias.default.svc.cluster.local. 30 CNAME {alias}\n{alias} 30 A 10.96.0.20"
            ),
        ),
        (
            "alias.default.svc.cluster.local",
            RecordType::AAAA,
            &format!("NOERROR\n@ 30 CNAME {alias}\n{SOA}"),
        ),
        (
            "to-nothing.default.svc.cluster.local",
            RecordType::A,
            &format!("NXDOMAIN\n@ 30 CNAME gone.default.svc.cluster.local.\n{SOA}"),
        ),
        ("ping.default.svc.cluster.local", RecordType::A, "SERVFAIL"),
    ]);
    none("sub.out.default.svc.cluster.local", RecordType::A);
    none("_http._tcp.out.default.svc.cluster.local", RecordType::SRV);
    none("broken.default.svc.cluster.local", RecordType::A);
}

#[test]
fn pods() {
    check(&[
        (
            "10-244-1-2.default.pod.cluster.local",
            RecordType::A,
            "NOERROR\n@ 30 A 10.244.1.2",
        ),
        (
            "fd00-244--12.default.pod.cluster.local",
            RecordType::AAAA,
            "NOERROR\n@ 30 AAAA fd00:244::12",
        ),
    ]);
    no_data("10-244-1-2.default.pod.cluster.local", RecordType::AAAA);
    none("10-244-1-2.prod.pod.cluster.local", RecordType::A);
    none("10-244-1-9.default.pod.cluster.local", RecordType::A);
    none("10-244-1-2.nowhere.pod.cluster.local", RecordType::A);
    none("nonsense.default.pod.cluster.local", RecordType::A);
    none("a.10-244-1-2.default.pod.cluster.local", RecordType::A);
}

#[test]
fn other_names_are_elsewhere() {
    let zone = example();
    for name in [
        "example.com",
        "local",
        ".",
        "xcluster.local",
        "web.default.svc",
        "9.9.9.9.in-addr.arpa",
    ] {
        assert_eq!(told(&zone, name, RecordType::PTR), "elsewhere", "{name}");
        assert_eq!(told(&zone, name, RecordType::A), "elsewhere", "{name}");
    }
    // The bytes of `cluster.local` within a label are not the zone.
    let mut name = b"\x10x\x07cluster\x05local".to_vec();
    name[0] = (name.len() - 1) as u8;
    name.push(0);
    let question = crate::zone::Question {
        name: &name,
        record_type: RecordType::A,
        rotation: 0,
    };
    assert_eq!(zone.answer(question), Verdict::Elsewhere);
}

#[test]
fn reasons_are_told() {
    let zone = example();
    for (name, wanted) in [
        ("www.cluster.local", Missing::NotInSchema),
        ("web.nowhere.svc.cluster.local", Missing::Namespace),
        ("gone.default.svc.cluster.local", Missing::Service),
        ("starting.prod.svc.cluster.local", Missing::NoReadyEndpoint),
        ("x.db.prod.svc.cluster.local", Missing::Endpoint),
        ("_x._tcp.web.default.svc.cluster.local", Missing::Port),
        ("1-1-1-1.default.pod.cluster.local", Missing::Pod),
        ("x.out.default.svc.cluster.local", Missing::BelowAlias),
        ("broken.default.svc.cluster.local", Missing::BrokenAlias),
    ] {
        let Verdict::Ours { reason, .. } = ask(&zone, name, RecordType::A) else {
            panic!("{name} is ours")
        };
        assert_eq!(reason, Reason::Missing(wanted), "{name}");
    }
}

#[test]
fn nothing_is_denied_before_all_is_known() {
    let zone = Zone::empty(settings());
    for name in [
        "web.default.svc.cluster.local",
        "default.svc.cluster.local",
        "1-2-3-4.default.pod.cluster.local",
    ] {
        let Verdict::Ours { answer, reason, .. } = ask(&zone, name, RecordType::A) else {
            panic!("{name} is ours")
        };
        assert_eq!(
            (answer.rcode, reason),
            (Rcode::ServFail, Reason::NotSynced),
            "{name}"
        );
    }
    assert_eq!(told(&zone, "1.0.96.10.in-addr.arpa", RecordType::PTR), "SERVFAIL");
    assert_eq!(
        told(&zone, "dns-version.cluster.local", RecordType::TXT),
        "NOERROR\n@ 30 TXT \"1.1.0\""
    );
    assert!(told(&zone, "www.cluster.local", RecordType::A).starts_with("NXDOMAIN"));
}
