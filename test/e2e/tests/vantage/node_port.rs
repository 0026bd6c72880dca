//! Node ports: on every node and on its loopback, policy `Local`, no endpoints.

use crate::stage::Stage;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {type: NodePort, ipFamilyPolicy: RequireDualStack, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody-here}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {app: nobody}
  ports: [{port: 80}]
";

#[test]
fn node_ports() {
    play(&Stage::up(&[]));
}

#[test]
fn node_ports_by_relays() {
    play(&Stage::up_in("userspace", &[]));
}

fn play(stage: &Stage) {
    stage.lab.apply(SERVICES);
    // A pod that asks another node leaves the cluster's network, and is seen as its node from there on.
    stage.check(
        "web",
        "
        client   | n1 | web2 by n1, web3 by n1
        client   | n2 | web2 by n2, web3 by n2
        near     | n2 | web2 kept, web3 kept
        far      | n1 | web2 kept, web3 kept
        near     | n1 | web2 by n1, web3 by n1
        web2     | n2 | web2 by n2, web3 kept
        web2     | n1 | web2 by n1, web3 by n1
        n1       | n1 | web2 by n1, web3 by n1
        n2       | n2 | web2 by n2, web3 by n2
        n1       | n2 | web2 by n2, web3 by n2
        n1       | lo | web2 by n1, web3 by n1
        n2       | lo | web2 by n2, web3 by n2
        ",
    );
    // Who comes from outside is seen as he is, and served only where an endpoint is; pods and nodes go anywhere. IPVS has one
    // list of endpoints for all: where some are local, everyone goes to those.
    stage.check(
        "here",
        "
        client   | n1 | dropped
        client   | n2 | web2 kept
        client   | n3 | web3 kept
        near     | n2 | web2 kept, web3 kept  | not ipvs
        near     | n2 | web2 kept             | ipvs
        far      | n1 | web2 kept, web3 kept
        web2     | n2 | web2 by n2, web3 kept | not ipvs
        web2     | n2 | web2 by n2            | ipvs
        near     | n1 | dropped
        near     | n3 | web3 by n2            | not userspace
        near     | n3 | web3 by n3            | userspace
        n1       | n1 | web2 by n1, web3 by n1
        n2       | n2 | web2 by n2, web3 by n2 | not ipvs
        n2       | n2 | web2 by n2             | ipvs
        n1       | n2 | web2 kept
        n2       | n1 | dropped
        n1       | lo | web2 by n1, web3 by n1
        n2       | lo | web2 by n2, web3 by n2 | not ipvs
        n2       | lo | web2 by n2             | ipvs
        ",
    );
    for service in ["nobody", "nobody-here"] {
        stage.check(
            service,
            "
            client near far web2 n1 n2 | n1 | refused
            client near far web2 n1 n2 | n2 | refused
            n1 n2                      | lo | refused
            ",
        );
    }
}
