//! ClusterIPs: spread over all endpoints, policy `Local`, no endpoints, other ports.

use crate::stage::Stage;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  ipFamilyPolicy: RequireDualStack
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 8080, targetPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: nobody}, ports: [{port: 80}]}
";

#[test]
fn cluster_addresses() {
    play(&Stage::up(&[]));
}

#[test]
fn cluster_addresses_by_relays() {
    play(&Stage::up_in("userspace", &[]));
}

fn play(stage: &Stage) {
    stage.lab.apply(SERVICES);
    // Pods are seen as they are, but for the one that reaches itself; others as the node that they came through.
    stage.check(
        "web",
        "
        near far | vip    | web2 kept, web3 kept
        web2     | vip    | web2 by n2, web3 kept
        n1       | vip    | web2 by n1, web3 by n1
        n2       | vip    | web2 by n2, web3 by n2
        client   | vip@n1 | web2 by n1, web3 by n1
        client   | vip@n2 | web2 by n2, web3 by n2
        near far web2 n1 n2 | vip:81 | refused
        client   | vip:81@n1 | refused
        client   | vip:81@n2 | refused
        ",
    );
    // Traffic from inside stays on the node that it came to.
    stage.check(
        "here",
        "
        near     | vip    | web2 kept
        far      | vip    | dropped
        web2     | vip    | web2 by n2
        web3     | vip    | web3 by n3
        n2       | vip    | web2 by n2
        n1       | vip    | dropped
        client   | vip@n2 | web2 by n2
        client   | vip@n1 | dropped
        ",
    );
    stage.check(
        "nobody",
        "
        near far web2 n1 n2 | vip    | refused
        client              | vip@n1 | refused
        client              | vip@n2 | refused
        ",
    );
}
