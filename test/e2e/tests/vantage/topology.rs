//! Endpoints close to the one who asks: `trafficDistribution`, through the hints that the controllers write.

use svcnet_e2e::until;

use crate::stage::Stage;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: zone}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  trafficDistribution: PreferSameZone
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  trafficDistribution: PreferSameNode
  selector: {app: web}
  ports: [{port: 80}]
";

/// web2 is in the zone `left` with n1 and n2, web3 in the zone `right` with n3.
#[test]
fn traffic_stays_close() {
    let stage = Stage::up(&[]);
    for (node, zone) in [("n1", "left"), ("n2", "left"), ("n3", "right")] {
        let label = format!("topology.kubernetes.io/zone={zone}");
        assert!(stage.lab.kubectl(&["label", "node", node, &label]).ok);
    }
    stage.lab.apply(SERVICES);
    stage.check(
        "zone",
        "
        near far | vip | web2 kept
        web3     | vip | web3 by n3
        n1       | vip | web2 by n1
        n3       | vip | web3 by n3
        client   | n1  | web2 by n1
        client   | n3  | web3 by n3
        ",
    );
    // Where the node has none of its own, the zone decides.
    stage.check(
        "node",
        "
        near     | vip | web2 kept
        far      | vip | web2 kept
        web3     | vip | web3 by n3
        n2       | vip | web2 by n2
        client   | n3  | web3 by n3
        ",
    );
    // A zone without an endpoint is served from elsewhere, by all of them.
    assert!(stage.lab.lab(&["pod", "rm"], &["web3"]).ok);
    until("the pod is no endpoint any more", || {
        let left = stage
            .lab
            .value("endpoints/zone", "{.subsets[0].addresses[*].targetRef.name}")?;
        (left == "web2").then_some(())
    });
    for service in ["zone", "node"] {
        stage.check(
            service,
            "
            near far | vip | web2 kept
            n3       | vip | web2 by n3
            client   | n3  | web2 by n3
            ",
        );
    }
}
