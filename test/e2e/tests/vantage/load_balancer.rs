//! Addresses that are reached from outside: LoadBalancer, source ranges, external addresses.

use crate::stage::{EXTERNAL_IPS, Stage};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: for-client}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  loadBalancerSourceRanges: ['172.30.0.96/28', 'fd00:172:30::100/128', '192.0.2.0/24']
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: for-others}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  loadBalancerSourceRanges: ['10.244.0.0/16', 'fd00:10:244::/48', '192.0.2.0/24']
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: for-n1}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  loadBalancerSourceRanges: ['172.30.0.11/32', 'fd00:172:30::11/128']
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: without-node-port}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  allocateLoadBalancerNodePorts: false
  selector: {app: web}
  ports: [{port: 80}]
";

#[test]
fn load_balancer_addresses() {
    let stage = Stage::up(&[]);
    stage.lab.apply(SERVICES);
    stage.check(
        "web",
        "
        client   | lb    | web2 by n1 n2 n3, web3 by n1 n2 n3
        client   | lb@n1 | web2 by n1, web3 by n1
        client   | lb@n2 | web2 by n2, web3 by n2
        near far | lb    | web2 kept, web3 kept
        web2     | lb    | web2 by n2, web3 kept
        n1       | lb    | web2 by n1, web3 by n1
        n2       | lb    | web2 by n2, web3 by n2
        n1       | lo    | web2 by n1, web3 by n1
        ",
    );
    stage.check(
        "here",
        "
        client   | lb    | any: web2 kept, web3 kept
        client   | lb@n1 | dropped
        client   | lb@n2 | web2 kept
        client   | lb@n3 | web3 kept
        far      | lb    | web2 kept, web3 kept
        near     | lb    | web2 kept, web3 kept   | not ipvs
        near     | lb    | web2 kept              | ipvs
        web2     | lb    | web2 by n2, web3 kept  | not ipvs
        n1       | lb    | web2 by n1, web3 by n1
        n2       | lb    | web2 by n2, web3 by n2 | not ipvs
        n2       | lb    | web2 by n2             | ipvs
        ",
    );
    stage.check(
        "nobody",
        "
        client           | lb@n1 | refused
        client           | lb@n2 | refused
        near far n1 n2   | lb    | refused
        ",
    );
    source_ranges(&stage);
    assert_eq!(stage.service("without-node-port").node_port, None);
    stage.check(
        "without-node-port",
        "
        client   | lb@n1 | web2 by n1, web3 by n1
        near far | lb    | web2 kept, web3 kept
        n1       | lb    | web2 by n1, web3 by n1
        ",
    );
}

fn source_ranges(stage: &Stage) {
    // The ranges bind who asks a LoadBalancer address, and nobody who asks another address of the Service.
    stage.check(
        "for-client",
        "
        client   | lb    | web2 by n1 n2 n3, web3 by n1 n2 n3
        client   | lb@n1 | web2 by n1, web3 by n1
        near far n1 n2 | lb | dropped
        near far | vip   | web2 kept, web3 kept
        client   | n2    | web2 by n2, web3 by n2
        ",
    );
    stage.check(
        "for-others",
        "
        client   | lb@n1 | dropped
        client   | lb@n2 | dropped
        n1 n2    | lb    | dropped
        near far | lb    | web2 kept, web3 kept
        client   | n1    | web2 by n1, web3 by n1
        ",
    );
    stage.check(
        "for-n1",
        "
        n1          | lb    | web2 by n1, web3 by n1
        n2 near far | lb    | dropped
        client      | lb@n1 | dropped
        ",
    );
}

/// External addresses within a range that is configured, and none beyond; node ports on some of a node's addresses.
#[test]
fn addresses_that_are_configured() {
    let [v4, v6] = EXTERNAL_IPS;
    let stage = Stage::up(&[
        &format!("--agent-arg=--external-ip-range={v4}/32,{v6}/128"),
        "--agent-arg=--nodeport-addresses=172.30.0.12/32,fd00:172:30::12/128,localhost",
    ]);
    let service = |name: &str, [v4, v6]: [&str; 2], port: u16, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ipFamilyPolicy: RequireDualStack\n  \
             externalIPs: ['{v4}', '{v6}']\n  selector: {{app: web}}\n  ports: [{{port: {port}, targetPort: 80}}]\n{more}---\n"
        )
    };
    let local = "  type: NodePort\n  externalTrafficPolicy: Local\n";
    let manifest = service("web", EXTERNAL_IPS, 80, "")
        + &service("here", EXTERNAL_IPS, 8080, local)
        // The client's own addresses: what is not accepted is left to who has it.
        + &service("beyond", ["172.30.0.100", "fd00:172:30::100"], 80, "");
    stage.lab.apply(&manifest);
    stage.check(
        "web",
        "
        client   | ext@n1 | web2 by n1, web3 by n1
        client   | ext@n2 | web2 by n2, web3 by n2
        near far | ext    | web2 kept, web3 kept
        web2     | ext    | web2 by n2, web3 kept
        n1       | ext    | web2 by n1, web3 by n1
        n2       | ext    | web2 by n2, web3 by n2
        ",
    );
    stage.check(
        "here",
        "
        client   | ext@n1 | dropped
        client   | ext@n2 | web2 kept
        client   | ext@n3 | web3 kept
        far      | ext    | web2 kept, web3 kept
        near     | ext    | web2 kept, web3 kept   | not ipvs
        near     | ext    | web2 kept              | ipvs
        n1       | ext    | web2 by n1, web3 by n1
        n2       | ext    | web2 by n2, web3 by n2 | not ipvs
        n2       | ext    | web2 by n2             | ipvs
        client   | n2     | web2 kept
        client   | n1     | refused
        client   | n3     | refused
        n1       | n1     | refused
        n1       | lo     | web2 by n1, web3 by n1
        n2       | lo     | web2 by n2, web3 by n2 | not ipvs
        n2       | lo     | web2 by n2             | ipvs
        ",
    );
    stage.check(
        "beyond",
        "
        near far n1 n2 | ext | refused
        near far       | vip | web2 kept, web3 kept
        ",
    );
}
