//! The daemon and the plugin in namespaces of their own: what runtimes ask and read, what the kernel holds, what the
//! API is told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test fails by panicking, and uses a part of what the module has"
)]

mod node;

use std::collections::BTreeSet;
use std::thread;

use node::{Api, Container, Node, eventually};
use serde_json::{Value, json};

#[test]
fn programs_ask_without_the_plugin() {
    let node = Node::start(Api::default());
    let container = Container::new("direct");
    let path = std::path::Path::new(container.path());
    let result = node.client().add("direct", path, None).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.244.1.2/32");
    assert_eq!(
        result.dns.resolv_conf(),
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    node.client().del("direct", path, None).unwrap();
    node.client().del("direct", path, None).unwrap();
}

fn add(node: &Node, container: &Container) -> Value {
    node.plugin("ADD", container, &node.config("1.0.0")).expect("ADD")
}

#[test]
fn add_gives_a_network_check_finds_it_and_del_takes_it_away() {
    let node = Node::start(Api::default());
    let container = Container::new("c1");
    let result = add(&node, &container);
    let host = result["interfaces"][1]["name"].as_str().unwrap().to_string();
    let host_mac = result["interfaces"][1]["mac"].clone();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "svcnet0", "mac": "0a:58:0a:f4:01:01" },
                { "name": host, "mac": host_mac },
                { "name": "eth0", "mac": "0a:58:0a:f4:01:02", "sandbox": container.path() },
            ],
            "ips": [{ "interface": 2, "address": "10.244.1.2/32", "gateway": "10.244.1.1" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }],
            "dns": {
                "nameservers": ["10.96.0.10"],
                "search": ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": ["ndots:5"],
            },
        })
    );
    assert!(
        container.run("ping -c 1 -W 5 10.244.1.1").0,
        "the gateway answers"
    );
    let links = container.json("ip -j link");
    let up = |name: &str| {
        links
            .as_array()
            .unwrap()
            .iter()
            .any(|l| l["ifname"] == name && l["flags"].to_string().contains("UP"))
    };
    assert!(up("lo") && up("eth0"), "{links}");
    assert_eq!(container.json("ip -j link show eth0")[0]["mtu"], 1450);
    let port = node.json(&format!("ip -j -d link show {host}"));
    assert_eq!(
        (
            &port[0]["master"],
            &port[0]["linkinfo"]["info_slave_data"]["isolated"]
        ),
        (&json!("svcnet0"), &json!(true))
    );

    let mut config = node.config("1.0.0");
    config["prevResult"] = result;
    assert_eq!(node.plugin("CHECK", &container, &config), Ok(Value::Null));
    assert_eq!(
        node.plugin("CHECK", &container, &node.config("1.0.0")),
        Ok(Value::Null)
    );
    let mut other = config.clone();
    other["prevResult"]["ips"][0]["address"] = json!("10.244.1.99/32");
    let error = node.plugin("CHECK", &container, &other).unwrap_err();
    assert_eq!(error["details"], "prevResult lacks the address 10.244.1.2");
    assert!(container.run("ip route del default").0);
    let error = node.plugin("CHECK", &container, &config).unwrap_err();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&json!(103), &json!("there is no route to 0.0.0.0/0"))
    );

    assert_eq!(
        node.plugin("DEL", &container, &node.config("1.0.0")),
        Ok(Value::Null)
    );
    assert!(!container.run("ip link show eth0").0);
    assert!(!node.run(&format!("ip link show {host}")).0);
    let error = node.plugin("CHECK", &container, &config).unwrap_err();
    assert_eq!(error["details"], "eth0 of container c1 has no address");
}

#[test]
fn the_nodes_end_is_as_the_result_says_and_has_no_address() {
    let node = Node::start(Api::default());
    let container = Container::new("c1");
    let result = add(&node, &container);
    let end = &result["interfaces"][1];
    let found = node.json(&format!(
        "ip -j address show dev {}",
        end["name"].as_str().unwrap()
    ));
    assert_eq!(found[0]["address"], end["mac"]);
    // A port of a bridge has no use for one.
    assert_eq!(found[0]["addr_info"], json!([]));
}

/// Leases are written one after the other and synced together; ports of the host go through one socket.
#[test]
fn many_at_once_get_an_address_each_and_leave_none() {
    const AT_ONCE: usize = 16;
    let node = Node::start(Api::default());
    let containers: Vec<Container> = (0..AT_ONCE)
        .map(|n| Container::new(&format!("many{n}")))
        .collect();
    let config = |n: usize| {
        let mut config = node.config("1.0.0");
        let mapping = json!({ "hostPort": 30_000 + n, "containerPort": 80, "protocol": "tcp" });
        config["runtimeConfig"] = json!({ "portMappings": [mapping] });
        config
    };
    let addresses: BTreeSet<String> = thread::scope(|scope| {
        let calls = containers.iter().enumerate().map(|(n, container)| {
            let (node, config) = (&node, config(n));
            scope.spawn(move || {
                let result = node.plugin("ADD", container, &config).expect("ADD");
                result["ips"][0]["address"].as_str().unwrap().to_string()
            })
        });
        let calls: Vec<_> = calls.collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), AT_ONCE, "{addresses:?}");
    assert_eq!(node.leases(), AT_ONCE);
    let ports = || node.run("nft list map ip svcnet-hostport ports").1;
    for n in 0..AT_ONCE {
        let port = format!("tcp . {}", 30_000 + n);
        assert!(ports().contains(&port), "{port}: {}", ports());
    }
    for (n, container) in containers.iter().enumerate() {
        assert_eq!(node.plugin("CHECK", container, &config(n)), Ok(Value::Null));
    }
    thread::scope(|scope| {
        for (n, container) in containers.iter().enumerate() {
            let (node, config) = (&node, config(n));
            scope.spawn(move || node.plugin("DEL", container, &config).expect("DEL"));
        }
    });
    assert_eq!(node.leases(), 0);
    let links = node.run("ip -o link").1;
    assert!(!links.contains("veth"), "{links}");
    assert!(!ports().contains("tcp . 30"), "{}", ports());
}

#[test]
fn every_version_gets_its_own_shape() {
    let node = Node::start(Api::default());
    for (version, with_version, with_mtu) in [
        ("0.3.1", true, false),
        ("0.4.0", true, false),
        ("1.0.0", false, false),
        ("1.1.0", false, true),
    ] {
        let container = Container::new("shape");
        let result = node
            .plugin("ADD", &container, &node.config(version))
            .expect("ADD");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            result["ips"][0].get("version"),
            with_version.then(|| json!("4")).as_ref()
        );
        assert_eq!(
            result["interfaces"][2].get("mtu"),
            with_mtu.then(|| json!(1450)).as_ref()
        );
        node.plugin("DEL", &container, &node.config(version))
            .expect("DEL");
    }
    let container = Container::new("shape");
    let error = node.plugin("ADD", &container, &node.config("0.2.0")).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"], &error["cniVersion"]),
        (&json!(1), &json!("incompatible CNI versions"), &json!("0.2.0"))
    );
    let versions = node
        .plugin("VERSION", &container, &json!({ "cniVersion": "1.0.0" }))
        .unwrap();
    assert_eq!(
        versions,
        json!({ "cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] })
    );
}

#[test]
fn a_second_add_is_refused_and_changes_nothing() {
    let node = Node::start(Api::default());
    let container = Container::new("twice");
    let first = add(&node, &container);
    let error = node.plugin("ADD", &container, &node.config("1.0.0")).unwrap_err();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&json!(102), &json!("interface eth0 already exists"))
    );
    assert!(container.run("ping -c 1 -W 5 10.244.1.1").0);
    let other = add(&node, &Container::new("other"));
    assert_ne!(first["ips"][0]["address"], other["ips"][0]["address"]);
    // An interface that somebody else made is not taken over, and its address not kept.
    let foreign = Container::new("foreign");
    assert!(foreign.run("ip link add eth0 type bridge").0);
    assert_eq!(
        node.plugin("ADD", &foreign, &node.config("1.0.0")).unwrap_err()["code"],
        102
    );
    assert_eq!(node.leases(), 2);
}

#[test]
fn an_add_that_was_cut_short_is_made_good_by_the_next() {
    let mut node = Node::start(Api::default());
    let container = Container::new("short");
    let first = add(&node, &container);
    // As a kill before the routes leaves it.
    assert!(container.run("ip addr flush dev eth0").0);
    node.restart();
    let second = add(&node, &container);
    assert_eq!(first["ips"], second["ips"]);
    assert!(container.run("ping -c 1 -W 5 10.244.1.1").0);
    assert_eq!(
        node.plugin("ADD", &container, &node.config("1.0.0")).unwrap_err()["code"],
        102
    );
}

#[test]
fn del_is_content_with_whatever_is_left() {
    let node = Node::start(Api::default());
    let container = Container::new("gone");
    let config = node.config("1.0.0");
    assert_eq!(
        node.plugin("DEL", &container, &config),
        Ok(Value::Null),
        "never added"
    );
    add(&node, &container);
    let without_netns = Container::without_netns("gone");
    assert_eq!(node.plugin("DEL", &without_netns, &config), Ok(Value::Null));
    assert_eq!(node.leases(), 0);
    assert!(!container.run("ip link show eth0").0);
    assert_eq!(
        node.plugin("DEL", &without_netns, &config),
        Ok(Value::Null),
        "again"
    );

    add(&node, &container);
    drop(container);
    let vanished = Container::at("gone", "/run/netns/svcnet-cni-nosuch");
    assert_eq!(node.plugin("DEL", &vanished, &config), Ok(Value::Null));
    assert_eq!(node.plugin("ADD", &vanished, &config).unwrap_err()["code"], 3);
    assert_eq!(node.leases(), 0);
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let node = Node::start(Api::default());
    let container = Container::new("bad/name");
    let config = node.config("1.0.0");
    let error = node.plugin("ADD", &container, &config).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(4), &json!("invalid characters in containerID"))
    );
    let nobody = Container::at("", "");
    let error = node.plugin("ADD", &nobody, &config).unwrap_err();
    assert_eq!(
        error["msg"],
        "required env variables [CNI_CONTAINERID,CNI_NETNS] missing"
    );
    let container = Container::new("good");
    let error = node
        .plugin("ADD", &container, &json!({ "cniVersion": "1.0.0" }))
        .unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(7), &json!("missing network name"))
    );
    let error = node.plugin("GC", &container, &config).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(1), &json!("config version does not allow GC"))
    );
    assert_eq!(node.plugin("FLY", &container, &config).unwrap_err()["code"], 4);
}

#[test]
fn gc_frees_what_is_not_valid_and_status_answers() {
    let node = Node::start(Api::default());
    let (kept, stale) = (Container::new("kept"), Container::new("stale"));
    add(&node, &kept);
    add(&node, &stale);
    let mut config = node.config("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    let nobody = Container::at("", "");
    assert_eq!(node.plugin("GC", &nobody, &config), Ok(Value::Null));
    assert!(kept.run("ip link show eth0").0 && !stale.run("ip link show eth0").0);
    assert_eq!(node.leases(), 1);
    assert_eq!(node.plugin("STATUS", &nobody, &config), Ok(Value::Null));
}

#[test]
fn leases_survive_a_restart_and_no_address_is_given_twice() {
    let mut node = Node::start(Api::default());
    let containers: Vec<Container> = (0..20).map(|n| Container::new(&format!("r{n}"))).collect();
    let results: Vec<Value> = thread::scope(|scope| {
        let adding: Vec<_> = containers[..10]
            .iter()
            .map(|c| scope.spawn(|| add(&node, c)))
            .collect();
        adding.into_iter().map(|a| a.join().unwrap()).collect()
    });
    node.restart();
    let mut addresses: Vec<Value> = results.iter().map(|r| r["ips"][0]["address"].clone()).collect();
    addresses.extend(
        containers[10..]
            .iter()
            .map(|c| add(&node, c)["ips"][0]["address"].clone()),
    );
    addresses.sort_by_key(ToString::to_string);
    addresses.dedup();
    assert_eq!(addresses.len(), 20);
    assert!(
        containers[0].run("ping -c 1 -W 5 10.244.1.1").0,
        "the restart broke nothing"
    );
    let to = addresses[12]
        .as_str()
        .unwrap()
        .trim_end_matches("/32")
        .to_string();
    assert!(
        containers[0].run(&format!("ping -c 1 -W 5 {to}")).0,
        "pods of one node reach each other"
    );
    for container in &containers {
        node.plugin("DEL", container, &node.config("1.0.0")).unwrap();
    }
    assert_eq!(node.leases(), 0);
    assert!(!node.run("ip -br link").1.contains("veth"));
}

#[test]
fn without_the_daemon_add_waits_and_del_still_works() {
    let mut node = Node::start(Api::default());
    let container = Container::new("alone");
    add(&node, &container);
    node.stop();
    let other = Container::new("later");
    let error = node.plugin("ADD", &other, &node.config("1.0.0")).unwrap_err();
    assert_eq!(
        (&error["code"], &error["msg"]),
        (&json!(11), &json!("the svcnet agent is not available"))
    );
    assert_eq!(
        node.plugin("DEL", &container, &node.config("1.0.0")),
        Ok(Value::Null)
    );
    assert!(!container.run("ip link show eth0").0);
    assert_eq!(node.leases(), 0);
    let nobody = Container::at("", "");
    assert_eq!(
        node.plugin("STATUS", &nobody, &node.config("1.1.0")).unwrap_err()["code"],
        50
    );
}

#[test]
fn the_bridge_is_repaired_with_all_that_hang_on_it() {
    let node = Node::start(Api::default());
    let container = Container::new("bridged");
    add(&node, &container);
    for harm in [
        "ip link del svcnet0",
        "ip addr flush dev svcnet0",
        "ip link set svcnet0 down",
    ] {
        assert!(node.run(harm).0, "{harm}");
        eventually(harm, || container.run("ping -c 1 -W 1 10.244.1.1").0);
    }
}

#[test]
fn pods_are_registered_when_the_api_is_back_and_those_made_here_go_again() {
    let api = Api::default();
    api.set_away(true);
    let node = Node::start(api.clone());
    let (known, unknown) = (Container::new("web-1"), Container::new("web-2"));
    api.put_pod(
        "shop",
        "web-1",
        json!({ "metadata": { "labels": { "app": "web" } } }),
    );
    add(&node, &known);
    add(&node, &unknown);
    api.set_away(false);
    eventually("both are registered", || {
        api.pod("shop", "web-2")
            .is_some_and(|p| !p["status"]["podIP"].is_null())
    });
    eventually("both are registered", || {
        !api.pod("shop", "web-1").unwrap()["status"]["podIP"].is_null()
    });
    let status = &api.pod("shop", "web-1").unwrap()["status"];
    assert_eq!(
        status,
        &json!({
            "podIP": "10.244.1.2", "podIPs": [{ "ip": "10.244.1.2" }],
            "hostIP": "172.30.0.11", "hostIPs": [{ "ip": "172.30.0.11" }],
        }),
        "no more is said of a pod that somebody else speaks for"
    );
    let made = api.pod("shop", "web-2").unwrap();
    assert_eq!(
        (&made["spec"]["nodeName"], &made["status"]["phase"]),
        (&json!("n1"), &json!("Running"))
    );
    for container in [&known, &unknown] {
        node.plugin("DEL", container, &node.config("1.0.0")).unwrap();
    }
    eventually("the one made here is gone", || api.pod("shop", "web-2").is_none());
    assert!(api.pod("shop", "web-1").is_some());
}

#[test]
fn runtimes_find_configuration_and_plugin() {
    let node = Node::start(Api::default());
    let written = node.read("net.d/10-svcnet.conflist");
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["plugins"][0]["type"], "svcnet-cni");
    assert!(node.exists("bin/svcnet-cni") && node.exists("bin/loopback"));
}

#[test]
fn loopback_is_set_up_without_the_daemon() {
    let mut node = Node::start(Api::default());
    node.stop();
    let container = Container::new("lo");
    let config = json!({ "cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback" });
    assert_eq!(
        node.plugin("CHECK", &container, &config).unwrap_err()["details"],
        "lo is down"
    );
    let result = node.plugin("ADD", &container, &config).unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": container.path() }],
            "ips": [{ "interface": 0, "address": "127.0.0.1/8" }, { "interface": 0, "address": "::1/128" }],
            "routes": [],
            "dns": {},
        })
    );
    assert!(container.run("ping -c 1 -W 5 127.0.0.1").0);
    assert_eq!(node.plugin("CHECK", &container, &config), Ok(Value::Null));
    for _ in 0..2 {
        assert_eq!(node.plugin("DEL", &container, &config), Ok(Value::Null));
    }
    assert!(!container.run("ip link show lo up").1.contains("lo"));
    assert_eq!(
        node.plugin("DEL", &Container::without_netns("lo"), &config),
        Ok(Value::Null)
    );
    let behind = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "loopback",
        "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.9.9.9/32" }] },
    });
    assert_eq!(
        node.plugin("ADD", &container, &behind).unwrap(),
        behind["prevResult"]
    );
}

#[test]
fn a_node_with_two_families_gives_an_address_of_each() {
    let node = Node::start_with(Api::default(), &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let container = Container::new("dual");
    let result = add(&node, &container);
    let addresses: Vec<&Value> = result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| &ip["address"])
        .collect();
    assert_eq!(addresses, ["10.244.1.2/32", "fd00:10:244:1::2/128"]);
    assert_eq!(
        result["routes"][1],
        json!({ "dst": "::/0", "gw": "fd00:10:244:1::1" })
    );
    assert!(container.run("ping -c 1 -W 5 10.244.1.1").0);
    assert!(container.run("ping -6 -c 1 -W 5 fd00:10:244:1::1").0);
    let mut config = node.config("1.0.0");
    config["prevResult"] = result;
    assert_eq!(node.plugin("CHECK", &container, &config), Ok(Value::Null));
}

#[test]
fn an_exhausted_node_says_so_and_gives_what_comes_free() {
    let node = Node::start_with(Api::default(), &["10.244.1.0/30"]);
    let (first, second) = (Container::new("first"), Container::new("second"));
    add(&node, &first);
    let error = node.plugin("ADD", &second, &node.config("1.0.0")).unwrap_err();
    let wanted =
        "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.1-10.244.1.2";
    assert_eq!((&error["code"], &error["msg"]), (&json!(101), &json!(wanted)));
    node.plugin("DEL", &first, &node.config("1.0.0")).unwrap();
    assert_eq!(add(&node, &second)["ips"][0]["address"], "10.244.1.2/32");
}
