//! A change of one node costs the same whatever the number of nodes: counted in requests to the kernel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use svcnet_netlink::addr::Address;
use svcnet_netlink::link::Change;
use svcnet_netlink::netns::OwnedNetNs;
use svcnet_netlink::sysctls::Sysctls;
use svcnet_netlink::underlay::Choice;
use svcnet_overlay::desired::desired;
use svcnet_overlay::plan::{Plan, plan};
use svcnet_overlay::view::{NodeNet, View};
use svcnet_overlay::{Config, Kernel, Mode, VERIFY_EVERY, apply, observe};

fn peer(n: u32, host: u8) -> NodeNet {
    NodeNet {
        addresses: vec![[172, 17, u8::try_from(n / 250).unwrap(), host].into()],
        pod_cidrs: vec![format!("10.{}.{}.0/24", 128 + n / 256, n % 256).parse().unwrap()],
    }
}

/// Requests that each of these changes takes among so many peers.
fn requests(mode: Mode, peers: u32) -> BTreeMap<&'static str, u32> {
    let config = Config {
        mode,
        underlay: Choice::default(),
        vni: svcnet_api::types::Vni::new(1).unwrap(),
        port: 8472,
        cluster_cidr: "10.128.0.0/9".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        mtu: None,
        verify_every: VERIFY_EVERY,
    };
    let run_dir = tempfile::tempdir().unwrap();
    let sysctls = Sysctls::new(run_dir.path(), "overlay");
    let netns = OwnedNetNs::unique("svcnet-ov-scale").unwrap();
    let count = || {
        let mut kernel = Kernel::open().unwrap();
        kernel.rt.add_bridge("eth0", None, None).unwrap();
        let link = kernel.rt.link("eth0").unwrap().unwrap().index;
        kernel.rt.change_link(link, &Change::up()).unwrap();
        let net = "172.16.0.1/12".parse().unwrap();
        kernel.rt.replace_address(Address { link, net }).unwrap();

        let mut view = View::new("n1");
        view.set("n1", Some(peer(2000, 1)));
        for n in 0..peers {
            view.set(&format!("peer-{n}"), Some(peer(n, 9)));
        }
        let facts = observe::facts(&config, &mut kernel.rt).unwrap().unwrap();
        let mut wanted = desired(&config, &view, &facts).unwrap();
        let (observed, _) = observe::observe(&mut kernel, &facts, &wanted).unwrap();
        let mut carry_out = |plan: &Plan| {
            let before = kernel.rt.requests_sent();
            let errors = apply::apply(plan, &mut kernel, link, &sysctls);
            assert!(errors.is_empty(), "{errors:?}");
            kernel.rt.requests_sent() - before
        };
        carry_out(&plan(&wanted, &observed));
        let mut counts = BTreeMap::new();
        let mut take = |what, name: &str, next| {
            let plan = wanted.take(&config, &mut view, &facts, name, next);
            counts.insert(what, carry_out(&plan));
        };
        take("a node comes", "another", Some(peer(1500, 9)));
        take("it moves", "another", Some(peer(1500, 10)));
        take("it goes", "another", None);
        take("one in the middle moves", "peer-5", Some(peer(5, 11)));
        let narrow = wanted.take_path(&config, &mut view, &facts, "peer-6", Some(1400));
        counts.insert("less passes to one", carry_out(&narrow));
        counts
    };
    netns.run(count).unwrap()
}

#[test]
fn a_change_of_one_node_among_ten_takes_as_many_requests_as_among_a_thousand() {
    for (mode, wanted) in [
        // One looks the link up; then forwarding entry, neighbour and route.
        (
            Mode::Vxlan,
            [("a node comes", 4), ("it moves", 2), ("it goes", 4)],
        ),
        // A route.
        (Mode::Auto, [("a node comes", 1), ("it moves", 1), ("it goes", 1)]),
    ] {
        let few = requests(mode, 10);
        assert_eq!(few, requests(mode, 1000), "{mode}");
        for (what, count) in wanted {
            assert_eq!(few[what], count, "{mode}: {what}");
        }
        assert!(
            few["one in the middle moves"] <= 2 && few["less passes to one"] <= 2,
            "{few:?}"
        );
    }
}
