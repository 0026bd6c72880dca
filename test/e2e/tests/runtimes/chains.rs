//! Chains with the reference plugins of Debian's `containernetworking-plugins`, which speak up to version 1.0.0.

use std::process::Command;

use serde_json::{Value, json};
use svcnet_e2e::chain::{Attached, Chain};
use svcnet_netlink::netns::OwnedNetNs;

use crate::site::Site;

/// svcnet first, and behind it those that change what it made.
fn chain(site: &Site, version: &str) -> Chain {
    let mut chain = Chain::of(&site.lab, "n1", version);
    let ours = &mut chain.plugins[0];
    // The others do these here.
    for capability in ["portMappings", "bandwidth", "mac"] {
        ours["capabilities"][capability] = false.into();
    }
    // `tuning` gives the container another address than ours knows.
    ours["macspoofchk"] = false.into();
    chain.plugins.extend([
        json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" }, "capabilities": { "mac": true } }),
        json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
    ]);
    chain
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn reference_plugins_work_behind_ours_in_each_version() {
    let site = Site::up();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let chain = chain(&site, version);
        let netns = OwnedNetNs::unique("e2e-chain").unwrap();
        let mut container = Attached::pod("chained", netns.path());
        container.runtime = json!({
            "mac": "02:11:22:33:44:66",
            "portMappings": [{ "hostPort": 8083, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": {
                "ingressRate": 40_000_000, "ingressBurst": 8_000_000, "egressRate": 20_000_000, "egressBurst": 8_000_000,
            },
        });
        let result = chain
            .add(&container)
            .unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:66");
        let address = result["ips"][0]["address"]
            .as_str()
            .unwrap()
            .trim_end_matches("/32")
            .to_string();
        let mut serve = Command::new("busybox");
        serve.args(["nc", "-l", "-p", "80", "-e", "/bin/echo", "hello"]);
        let mut server = netns.run(|| serve.spawn()).unwrap().unwrap();
        let got = svcnet_e2e::until("the port of the host answers", || {
            let got = site.lab.exec("client", &["nc", "-w", "5", "172.30.0.11", "8083"]);
            got.out.contains("hello").then_some(got.out)
        });
        assert_eq!(got, "hello\n");
        let _ = server.kill();
        server.wait().unwrap();
        let shown = site.run(Command::new("tc").args(["qdisc", "show"])).out;
        assert!(
            shown.contains("rate 40Mbit") && shown.contains("rate 20Mbit"),
            "{shown}"
        );
        assert!(site.lab.exec("n1", &["ping", "-c", "1", "-W", "5", &address]).ok);
        if version != "0.3.1" {
            // portmap 1.1.1 looks for its rules of IPv4 in ip6tables too, and never finds them there.
            for plugin in chain.plugins.iter().filter(|p| p["type"] != "portmap") {
                let checked = chain.call("CHECK", &container, plugin, &result);
                checked.unwrap_or_else(|error| panic!("{version}, {}: {error}", plugin["type"]));
            }
        }
        chain
            .del(&container, &result)
            .unwrap_or_else(|error| panic!("{version}: {error}"));
        chain
            .del(&container, &Value::Null)
            .unwrap_or_else(|error| panic!("{version}, again: {error}"));
        assert!(site.leases().is_empty());
    }
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn ours_works_behind_a_reference_plugin() {
    let site = Site::up();
    let mut chain = Chain::of(&site.lab, "n1", "1.0.0");
    chain.plugins.insert(0, json!({ "type": "loopback" }));
    let netns = OwnedNetNs::unique("e2e-chain").unwrap();
    let container = Attached::pod("behind", netns.path());
    let result = chain.add(&container).unwrap();
    let names = result["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["name"].as_str().unwrap());
    let names: Vec<&str> = names.collect();
    assert_eq!((names[0], names[1], names[3]), ("lo", "svcnet0", "eth0"));
    let of_eth0 = |ip: &&Value| ip["interface"] == 3;
    assert!(
        result["ips"].as_array().unwrap().iter().any(|ip| of_eth0(&ip)),
        "{result}"
    );
    chain.check(&container, &result).unwrap();
    chain.del(&container, &result).unwrap();
    assert!(site.leases().is_empty());
}
