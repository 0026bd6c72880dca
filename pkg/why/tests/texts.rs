//! The texts, whole: each a cluster, a question, what was seen, and what is said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod world;

use svcnet_netlink::neigh::Resolution;
use svcnet_proxy::Mode;
use svcnet_why::seen::{FrontendSeen, LinkSeen, ProbeSeen, WaySeen};
use svcnet_why::{NotReached, Outcome};
use world::{World, hop, mac, wanted};

#[test]
fn a_pod_reaches_a_service() {
    let world = World::new().service("web", "").pods();
    assert_eq!(
        world.why("visitor", "web:80"),
        "\
from  the pod default/visitor (10.244.2.3) on n3
to    web:80

  ok  name      the Service default/web: web.default.svc.cluster.local is 10.96.0.80; the DNS server here says so
  ok  frontend  10.96.0.80:80/tcp, cluster IP, port http; translated on n3
  ok  policy    any endpoint, at random
  ok  endpoint  2: web1 on n2 (10.244.1.2:8080), web2 on n3 (10.244.2.2:8080)
  ok  kernel    n3 holds the frontend and 2 endpoints
  ok  route     to web1 on n2: 10.244.1.2 via 10.244.1.0 dev svcnet.1; in VXLAN to 172.30.0.12 dev eth0 (0a:00:00:00:00:0c)
  ok  route     to web2 on n3: 10.244.2.2 dev svcnet0
  ok  seen      the endpoint sees 10.244.2.3, the client's own address

reaches web1 on n2 or web2 on n3 (one of 2)
"
    );
}

#[test]
fn a_node_port_from_outside() {
    let world = World::new()
        .service("web", "type: NodePort, externalTrafficPolicy: Cluster,")
        .pods();
    let text = world.why("outside", "n3:30080");
    assert!(
        text.contains(
            "ok  frontend  172.30.0.13:30080/tcp, node port of default/web, port http; translated on n3\n"
        ),
        "{text}"
    );
    assert!(text.contains("ok  seen      the endpoint sees 10.244.2.0 or 10.244.2.1, of n3, so that answers come back that way\n"), "{text}");
    assert!(
        text.ends_with("\nreaches web1 on n2 or web2 on n3 (one of 2)\n"),
        "{text}"
    );
}

#[test]
fn no_pod_has_the_labels() {
    let world = World::new()
        .service("web", "")
        .pod("web1", "n2", "10.244.1.2", "app: ngnix", "");
    assert_eq!(
        world.why("n3", "web:80"),
        "\
from  the node n3
to    web:80

  ok  name      the Service default/web: web.default.svc.cluster.local is 10.96.0.80
  ok  frontend  10.96.0.80:80/tcp, cluster IP, port http; translated on n3
  ok  policy    any endpoint, at random
  NO  endpoint  the Service default/web has no endpoints: no pod of its namespace has the labels app=nginx

not reached: the Service default/web has no endpoints: no pod of its namespace has the labels app=nginx
hint: almost: web1 has app=ngnix
"
    );
}

/// The last lines: the reason and the hint.
fn end(text: &str) -> &str {
    text.split_once("\nnot reached: ").map_or(text, |(_, end)| end)
}

#[test]
fn a_pod_is_not_ready() {
    let not_ready = "conditions: [{type: Ready, status: 'False', message: nobody listens on 8080/tcp}],";
    let world = World::new()
        .service("web", "")
        .pod("web1", "n2", "10.244.1.2", "app: nginx", not_ready);
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the Service default/web has no ready endpoint: default/web1 (nobody listens on 8080/tcp)\n\
         hint: kubectl -n default describe pod web1\n"
    );
}

#[test]
fn the_target_port_is_the_name_of_none() {
    let world =
        World::new()
            .service("web", "")
            .target_port("htpp")
            .pod("web1", "n2", "10.244.1.2", "app: nginx", "");
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the Service default/web has no endpoints: its targetPort \"htpp\" is no container port of the pods, whose ports \
         are http (8080)\n\
         hint: name the container's port so, or set targetPort to one of its ports\n"
    );
}

#[test]
fn nobody_wrote_endpoints() {
    let world = World::new().service_without_selector("db");
    assert_eq!(
        end(&world.why("visitor", "db:80")),
        "the Service default/db has no endpoints: it selects no pods, and nobody wrote endpoints for it\n\
         hint: set spec.selector, or write an EndpointSlice or Endpoints of its name\n"
    );
}

#[test]
fn the_controller_is_behind() {
    let world = World::new()
        .service("web", "")
        .pod("web1", "n2", "10.244.1.2", "app: nginx", "");
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the Service default/web has no endpoints although default/web1 is ready: the controller has not made them\n\
         hint: does svcnet server (or svcnet controller) run? Its log says what it waits for\n"
    );
}

#[test]
fn policy_local_and_endpoints_elsewhere() {
    let world = World::new()
        .service("web", "type: NodePort, externalTrafficPolicy: Local,")
        .pods();
    assert_eq!(
        end(&world.why("outside", "n1:30080")),
        "dropped on n1: externalTrafficPolicy of the Service default/web is Local, and its endpoints are on n2, n3\n\
         hint: connect to n2, n3, run a pod here, or set externalTrafficPolicy to Cluster\n"
    );
    let inside = World::new()
        .service("web", "internalTrafficPolicy: Local,")
        .pods();
    assert!(end(&inside.why("n1", "web:80")).starts_with("dropped on n1: internalTrafficPolicy of"));
}

#[test]
fn a_source_range_shuts_out() {
    let world = World::new()
        .load_balancer("web", "loadBalancerSourceRanges: [192.0.2.0/24],", "172.30.0.200")
        .pods();
    assert_eq!(
        end(&world.why("172.30.0.100", "172.30.0.200:80")),
        "the Service default/web lets in 192.0.2.0/24 only, and 172.30.0.100 is not among them\n\
         hint: add 172.30.0.100 to spec.loadBalancerSourceRanges\n"
    );
    let let_in = world.why("192.0.2.9", "172.30.0.200:80");
    assert!(
        let_in.contains("let in by loadBalancerSourceRanges 192.0.2.0/24"),
        "{let_in}"
    );
}

#[test]
fn an_external_name_leads_outside_or_to_another_service() {
    let world = World::new().external_name("search", "www.example.com");
    let text = world.why("visitor", "search:443");
    assert!(
        text.ends_with(
            "\nleads to www.example.com, outside the cluster: DNS says where that is, and svcnet has no part in the \
             connection\n"
        ),
        "{text}"
    );
    let inside = World::new()
        .external_name("alias", "web.default.svc.cluster.local")
        .service("web", "")
        .pods();
    assert!(inside.why("visitor", "alias:80").ends_with("(one of 2)\n"));
}

#[test]
fn a_headless_service_is_its_pods() {
    let world = World::new().service("web", "clusterIP: None,").pods();
    let text = world.why("visitor", "web:8080");
    assert!(
        text.contains("ok  name      the Service default/web is headless: web.default.svc.cluster.local is its 2 endpoints"),
        "{text}"
    );
    assert!(
        text.ends_with("\nreaches web1 on n2 or web2 on n3 (one of 2)\n"),
        "{text}"
    );
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the Service default/web has no port 80; it has 8080/tcp (the pods' own: no port is translated)\n"
    );
}

#[test]
fn names_that_nobody_has() {
    let world = World::new().service("web", "").pods();
    assert_eq!(
        end(&world.why("visitor", "wbe:80")),
        "there is no Service \"wbe\" in the namespace default, and no node or pod of that name\n\
         hint: did you mean web?\n"
    );
    assert_eq!(
        end(&world.why("visitor", "web.default.cluster.local:80")),
        "web.default.cluster.local is no name of the cluster: those end in svc.cluster.local\n\
         hint: did you mean web.default.svc.cluster.local?\n"
    );
    assert_eq!(
        end(&world.why("vistor", "web:80")),
        "there is no pod and no node \"vistor\"\nhint: did you mean visitor?\n"
    );
    assert_eq!(
        end(&world.why("visitor", "web:81")),
        "the Service default/web has no port 81; it has 80/tcp (http)\n"
    );
    assert_eq!(
        end(&world.why("visitor", "10.96.9.9:80")),
        "no Service has the address 10.96.9.9\n\
         hint: kubectl get svc -A -o wide: the Service may have been made anew, with another address\n"
    );
    assert_eq!(
        end(&world.why("outside", "n1:31000")),
        "no Service has the node port 31000\nhint: node ports in use: none\n"
    );
    assert_eq!(
        end(&world.why("outside", "web:80")),
        "10.96.0.80 of the Service default/web is an address inside the cluster: nobody outside has a route to it\n\
         hint: a Service of type NodePort or LoadBalancer is reached from outside\n"
    );
}

#[test]
fn the_node_of_the_endpoints_is_dead() {
    let world = World::new().service("web", "").pods().stale_lease("n2");
    let text = world.why("visitor", "web:80");
    assert!(
        text.ends_with(
            "\nreaches web2 on n3 (one of 2)\n\
             but not web1 on n2: the node n2 is down: its agent renewed its Lease 100 s ago, and it lasts 6 s\n\
             hint: look at svcnet agent and the cable on n2; its endpoints stop being used when its pods are marked not \
             ready\n"
        ),
        "{text}"
    );
}

#[test]
fn the_kernel_lacks_the_frontend() {
    let mut world = World::new().service("web", "").pods();
    world.seen.frontend = Some(FrontendSeen::Missing("the nftables tables of svcnet".into()));
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the kernel of n3 lacks the nftables tables of svcnet\n\
         hint: the agent repairs it within a second; if it stays so, its log says why. svcnet proxy diff shows all that \
         differs\n"
    );
    world.seen.frontend = Some(FrontendSeen::Missing("the link kube-ipvs0".into()));
    assert!(end(&world.why("visitor", "web:80")).starts_with("the kernel of n3 lacks the link kube-ipvs0\n"));
    world.seen.frontend = Some(FrontendSeen::Impossible(Mode::Userspace, "it relays none".into()));
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the proxy of n3 works in mode userspace and does not serve 10.96.0.80:80 tcp: it relays none\n\
         hint: use the mode nftables (--proxy-mode)\n"
    );
    world.seen.frontend = Some(FrontendSeen::Held(Some(
        "IPVS sends it by rr to 10.244.1.2:80 (weight 1)".into(),
    )));
    assert!(
        world.why("visitor", "web:80").contains(
            "n3 holds the frontend and 2 endpoints: IPVS sends it by rr to 10.244.1.2:80 (weight 1)"
        )
    );
    world.seen.frontend = Some(FrontendSeen::Differs(vec!["+ services".into()]));
    world.silence();
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the kernel of n3 does not hold 10.96.0.80:80 tcp as it should (1 operation to do), and svcnet does not run there \
         (connection refused)\n\
         hint: start svcnet agent on this node\n"
    );
}

#[test]
fn the_way_to_the_node_is_broken() {
    let broken = |change: &dyn Fn(&mut World)| {
        let mut world = World::new().service("web", "").pods();
        change(&mut world);
        let text = world.why("visitor", "web:80");
        let (_, end) = text.split_once("but not web1 on n2: ").unwrap_or(("", &text));
        end.to_string()
    };
    assert_eq!(
        broken(&|w| w.seen.paths[0].way = WaySeen::NoRoute),
        "this node has no route to 10.244.1.2 (there should be one over svcnet.1)\n\
         hint: the overlay sets it: svcnet status, and the agent's log\n"
    );
    assert_eq!(
        broken(&|w| w.seen.paths[0].wanted = Some(wanted("svcnet.1", false))),
        "the link svcnet.1 is down\nhint: ip link set svcnet.1 up\n"
    );
    assert_eq!(
        broken(&|w| w.seen.paths[0].wanted.as_mut().unwrap().link = None),
        "the link svcnet.1 is not there\nhint: the overlay sets it: svcnet status, and the agent's log\n"
    );
    assert_eq!(
        broken(&|w| w.hop().resolution = None),
        "svcnet.1 has no neighbour entry for 10.244.1.0, and learns none by itself\n\
         hint: the overlay sets it: svcnet status, and the agent's log\n"
    );
    assert_eq!(
        broken(&|w| w.hop().tunnel.as_mut().unwrap().destination = None),
        "svcnet.1 does not know that 0a:00:00:00:01:00 is behind the node n2\n\
         hint: the overlay sets it: svcnet status, and the agent's log\n"
    );
    assert_eq!(
        broken(&|w| w.hop().tunnel.as_mut().unwrap().destination = Some([172, 30, 0, 99].into())),
        "packets for n2 are sent to 172.30.0.99, and it is at 172.30.0.12\n\
         hint: the overlay sets it: svcnet status, and the agent's log\n"
    );
    assert_eq!(
        broken(&|w| {
            let failed = hop(
                None,
                "172.30.0.12",
                "eth0",
                "172.30.0.13",
                Some(Resolution::Failed),
            );
            w.hop().tunnel.as_mut().unwrap().below = WaySeen::Along(Box::new(failed));
        }),
        "the node n2 does not answer: nobody has 172.30.0.12 on eth0\n\
         hint: is the node n2 up, and its cable plugged in?\n"
    );
    assert_eq!(
        broken(&|w| {
            let astray = hop(
                Some("172.30.0.1"),
                "10.244.1.2",
                "eth0",
                "172.30.0.13",
                Some(mac(1)),
            );
            w.seen.paths[0].way = WaySeen::Along(Box::new(astray));
        }),
        "the route to 10.244.1.2 leads astray: 10.244.1.2 via 172.30.0.1 dev eth0, not over svcnet.1\n\
         hint: the overlay sets it: svcnet status, and the agent's log\n"
    );
}

#[test]
fn a_link_without_a_carrier_is_told_apart() {
    let mut world = World::new().service("web", "").pods();
    world.seen.paths[0].wanted.as_mut().unwrap().link = Some(LinkSeen {
        name: "svcnet.1".into(),
        up: true,
        carrier: false,
    });
    assert!(
        world
            .why("visitor", "web:80")
            .contains("the link svcnet.1 has no carrier")
    );
}

#[test]
fn a_probe_has_the_last_word() {
    let mut world = World::new().service("web", "").pods();
    world.seen.probe = Some(ProbeSeen::Failed("connection refused".into()));
    assert!(
        end(&world.why("visitor", "web:80")).starts_with(
            "all is as it should be, but a connection to 10.96.0.80:80 failed: connection refused\nhint: does the process"
        )
    );
    world.seen.probe = Some(ProbeSeen::Connected {
        took_us: 420,
        endpoint: Some("10.244.2.2:8080".parse().unwrap()),
    });
    let text = world.why("visitor", "web:80");
    assert!(
        text.contains("ok  probe     connected to web2 on n3 in 0.4 ms\n"),
        "{text}"
    );
}

#[test]
fn from_another_node_it_says_what_it_can_not_see() {
    let mut world = World::new().service("web", "").pods();
    world.seen.node = "n1".into();
    let text = world.why("visitor", "web:80");
    assert!(
        text.contains("--  kernel    n3 sends it on, and this is n1: run it there to look at the kernel\n"),
        "{text}"
    );
    assert!(
        text.ends_with("\nreaches web1 on n2 or web2 on n3 (one of 2)\n"),
        "{text}"
    );
}

#[test]
fn the_dns_server_says_otherwise() {
    let mut world = World::new().service("web", "").pods();
    world.seen.dns = Some(svcnet_why::seen::DnsSeen::Answered(Vec::new()));
    assert_eq!(
        end(&world.why("visitor", "web:80")),
        "the DNS server of this node says web.default.svc.cluster.local is none, and it is 10.96.0.80\n\
         hint: the DNS role is behind: svcnet status, and its log\n"
    );
}

#[test]
fn json_has_the_same_reason() {
    let world = World::new().service("web", "");
    let explanation = world.explain("visitor", "web:80");
    let Outcome::NotReached(NotReached::NoPodMatches { selector, .. }) = &explanation.outcome else {
        panic!("{explanation:?}");
    };
    assert_eq!(selector, "app=nginx");
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["reached"], false);
    assert_eq!(json["reason"]["kind"], "NoPodMatches");
    assert_eq!(json["reason"]["selector"], "app=nginx");
    assert_eq!(json["steps"][3]["mark"], "no");
}

#[test]
fn a_network_policy_denies() {
    let policy =
        |spec: &str| format!("{{metadata: {{namespace: default, name: only-till}}, spec: {{{spec}}}}}");
    let ingress = "podSelector: {matchLabels: {app: nginx}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: \
                   {matchLabels: {app: till}}}]}]";
    let world = World::new()
        .service("web", "")
        .pods()
        .network_policy(&policy(ingress));
    assert_eq!(
        world.why("visitor", "web:80"),
        "\
from  the pod default/visitor (10.244.2.3) on n3
to    web:80

  ok  name      the Service default/web: web.default.svc.cluster.local is 10.96.0.80
  ok  frontend  10.96.0.80:80/tcp, cluster IP, port http; translated on n3
  ok  policy    any endpoint, at random
  ok  endpoint  2: web1 on n2 (10.244.1.2:8080), web2 on n3 (10.244.2.2:8080)
  NO  policy    denied by NetworkPolicy default/only-till, which isolates default/web2 for ingress and does not allow it

not reached: denied by NetworkPolicy default/only-till, which isolates default/web2 for ingress and does not allow it
hint: kubectl -n default describe networkpolicy only-till; what is allowed adds up over policies
"
    );
    let egress = "podSelector: {matchLabels: {app: visitor}}, policyTypes: [Egress], egress: [{to: [{ipBlock: \
                  {cidr: 10.244.2.0/24}}]}]";
    let world = World::new()
        .service("web", "")
        .pods()
        .network_policy(&policy(egress));
    let text = world.why("visitor", "web:80");
    assert!(
        text.contains("  ok  policy    NetworkPolicies let it through to 1 of 2 endpoints\n"),
        "{text}"
    );
    assert!(
        text.contains("denied by NetworkPolicy default/only-till, which isolates default/visitor for egress"),
        "{text}"
    );
}
