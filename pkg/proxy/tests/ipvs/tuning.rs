//! Settings of the kernel that belong to no frontend.

use svcnet_netlink::ipvs::Timeouts;
use svcnet_proxy::ipvs::{self, Config, Ipvs, Tuning};
use svcnet_proxy::{Backend, Sysctls};

use crate::{kernel, world};

#[test]
#[ignore = "needs IPVS: test/vm/run ipvs-kernel"]
fn strict_arp_and_timeouts_are_set_when_asked_for_and_put_back() {
    let world = world();
    let read = |name: &'static str| {
        world
            .node
            .run(|| svcnet_netlink::sysctl::read(name).unwrap())
            .unwrap()
    };
    assert_eq!(read("net/ipv4/vs/conntrack"), "1");
    assert_eq!(read("net/ipv4/vs/expire_nodest_conn"), "1");
    assert_eq!(read("net/ipv4/vs/expire_quiescent_template"), "1");
    assert_eq!(read("net/ipv4/conf/all/arp_ignore"), "0", "not asked for");
    let (mut kernel, dir) = (kernel(&world), tempfile::tempdir().unwrap());
    let before = kernel.timeouts().unwrap();
    let tuning = |strict_arp, tcp, udp| Tuning {
        strict_arp,
        timeouts: ipvs::Timeouts { tcp, tcp_fin: 0, udp },
    };
    let config = Config {
        tuning: tuning(true, 1000, 60),
        sysctls: Some(Sysctls::new(dir.path())),
        ..Config::default()
    };
    let mut backend = world.node.run(|| Ipvs::open(&config).unwrap()).unwrap();
    let mut converge = |tuning: Option<Tuning>| {
        let body = || {
            if let Some(tuning) = tuning {
                assert!(backend.tune(&tuning), "there is something to do");
            }
            backend.converge(&mut std::iter::empty(), false).unwrap();
            let again = backend.converge(&mut std::iter::empty(), false).unwrap();
            assert_eq!(again.operations, 0, "all is so");
        };
        world.node.run(body).unwrap();
    };
    let arp = || {
        (
            read("net/ipv4/conf/all/arp_ignore"),
            read("net/ipv4/conf/all/arp_announce"),
        )
    };
    let is = |ignore: &str, announce: &str| (ignore.to_string(), announce.to_string());
    converge(None);
    assert_eq!(arp(), is("1", "2"));
    let wanted = Timeouts {
        tcp: 1000,
        udp: 60,
        ..before
    };
    assert_eq!(kernel.timeouts().unwrap(), wanted);
    // While it runs, one is asked for and another not any more.
    converge(Some(tuning(false, 0, 90)));
    assert_eq!(arp(), is("0", "0"));
    assert_eq!(kernel.timeouts().unwrap(), Timeouts { udp: 90, ..before });
    converge(Some(tuning(true, 0, 0)));
    assert_eq!(arp(), is("1", "2"));
    assert_eq!(kernel.timeouts().unwrap(), before);
    converge(Some(tuning(false, 0, 0)));
    assert_eq!(arp(), is("0", "0"));
}
