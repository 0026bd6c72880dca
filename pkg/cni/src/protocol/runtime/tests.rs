use serde_json::json;

use super::*;

fn parse(config: Value) -> Result<RuntimeConfig, CniError> {
    RuntimeConfig::parse(&config, &Args::default())
}

#[test]
fn containerd_and_podman_are_understood_alike() {
    let containerd = json!({
        "name": "svcnet",
        "runtimeConfig": {
            "portMappings": [
                { "HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": "" },
                { "HostPort": 0, "ContainerPort": 81, "Protocol": "TCP", "HostIP": "" },
                { "HostPort": 53, "ContainerPort": 5353, "Protocol": "udp", "HostIP": "172.30.0.11" },
            ],
            "bandwidth": { "IngressRate": 8_000_000u64, "IngressBurst": 4_294_967_295u64, "EgressRate": 0, "EgressBurst": 0 },
            "dns": { "Servers": ["9.9.9.9"], "Searches": ["example.org"], "Options": ["ndots:2"] },
            "ips": null,
            "mac": "02:11:22:33:44:55",
            "aliases": { "svcnet": ["db", "postgres"], "other": ["x"] },
            "io.kubernetes.cri.pod-annotations": { "svcnet.io/labels": "app=web, tier = front,nonsense" },
        },
    });
    let mut podman = containerd.clone();
    podman["runtimeConfig"]["portMappings"] = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "172.30.0.11" },
    ]);
    podman["runtimeConfig"]["bandwidth"] =
        json!({ "ingressRate": 8_000_000u64, "ingressBurst": 4_294_967_295u64 });
    podman["runtimeConfig"]["dns"] =
        json!({ "servers": ["9.9.9.9"], "searches": ["example.org"], "options": ["ndots:2"] });
    let parsed = parse(containerd).unwrap();
    assert_eq!(parse(podman).unwrap(), parsed);
    let mappings: Vec<String> = parsed.port_mappings.iter().map(ToString::to_string).collect();
    assert_eq!(mappings, ["8080/tcp", "172.30.0.11:53/udp"]);
    let ingress = Rate {
        rate_bits: 8_000_000,
        burst_bits: 4_294_967_295,
    };
    assert_eq!(
        parsed.bandwidth,
        Bandwidth {
            ingress: Some(ingress),
            egress: None
        }
    );
    assert_eq!(parsed.aliases, ["db", "postgres"]);
    assert_eq!(
        parsed.labels,
        [("app", "web"), ("tier", "front")]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    );
    assert_eq!(parsed.dns.clone().unwrap().search, ["example.org"]);
    let kept = serde_json::to_value(&parsed).unwrap();
    assert_eq!(serde_json::from_value::<RuntimeConfig>(kept).unwrap(), parsed);
    assert_eq!(serde_json::to_value(RuntimeConfig::default()).unwrap(), json!({}));
}

#[test]
fn addresses_come_in_three_ways() {
    let wanted: [IpAddr; 1] = ["10.244.1.50".parse().unwrap()];
    let capability =
        json!({ "runtimeConfig": { "ips": ["10.244.1.50/24"] }, "args": { "cni": { "ips": ["10.9.9.9"] } } });
    assert_eq!(parse(capability).unwrap().ips, wanted);
    let convention =
        json!({ "args": { "cni": { "ips": ["10.244.1.50"], "labels": [{ "key": "a", "value": "b" }] } } });
    let parsed = parse(convention).unwrap();
    assert_eq!(parsed.ips, wanted);
    assert_eq!(parsed.labels, [("a".to_string(), "b".to_string())].into());
    let args = Args::parse("IgnoreUnknown=1;IP=10.244.1.50;MAC=02:00:00:00:00:07").unwrap();
    let parsed = RuntimeConfig::parse(&json!({}), &args).unwrap();
    assert_eq!(parsed.ips, wanted);
    assert_eq!(parsed.mac.unwrap().to_string(), "02:00:00:00:00:07");
}

#[test]
fn what_is_wrong_is_named() {
    for (runtime, message) in [
        (
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 0 }] }),
            "Invalid container port number: 0: in {\"containerPort\":0,\"hostPort\":80}",
        ),
        (
            json!({ "portMappings": [{ "hostPort": 70000, "containerPort": 80 }] }),
            "invalid runtimeConfig.portMappings: hostPort: 70000 is not a port from 1 to 65535",
        ),
        (
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }] }),
            "invalid runtimeConfig.portMappings: protocol: \"icmp\" is not tcp, udp or sctp",
        ),
        (
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "hostIP": "here" }] }),
            "invalid runtimeConfig.portMappings: hostIP: \"here\" is not an address",
        ),
        (
            json!({ "bandwidth": { "ingressRate": 1000 } }),
            "if rate is set, burst must also be set",
        ),
        (
            json!({ "bandwidth": { "egressBurst": 1000 } }),
            "if burst is set, rate must also be set",
        ),
        (
            json!({ "ips": ["10.244.1.999"] }),
            "invalid runtimeConfig.ips: \"10.244.1.999\" is not an address like 10.244.1.50",
        ),
        (
            json!({ "mac": "01:00:5e:00:00:01" }),
            "invalid runtimeConfig.mac: \"01:00:5e:00:00:01\" is not an Ethernet address of one host, like 02:00:00:00:00:01",
        ),
    ] {
        let error = parse(json!({ "runtimeConfig": runtime })).unwrap_err();
        assert_eq!((error.code, error.to_string().as_str()), (code::CONFIG, message));
    }
}
