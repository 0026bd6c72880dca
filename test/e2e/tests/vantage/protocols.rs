//! UDP beside TCP on one port number.

use crate::probe::Transport;
use crate::stage::Stage;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: tcp, port: 80, protocol: TCP}, {name: udp, port: 80, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: nobody}
  ports: [{name: udp, port: 80, protocol: UDP}]
";

#[test]
fn two_protocols_on_one_port() {
    let stage = Stage::up(&[]);
    stage.lab.apply(SERVICES);
    for transport in [Transport::Udp, Transport::Tcp] {
        stage.check_over(
            transport,
            "web",
            "
            near far | vip    | web2 kept, web3 kept
            web2     | vip    | web2 by n2, web3 kept
            n1       | vip    | web2 by n1, web3 by n1
            client   | vip@n2 | web2 by n2, web3 by n2
            client   | n1     | web2 by n1, web3 by n1
            client   | n2     | web2 by n2, web3 by n2
            client   | lb@n1  | web2 by n1, web3 by n1
            near     | n1     | web2 by n1, web3 by n1
            n1       | n1     | web2 by n1, web3 by n1
            n1       | lo     | web2 by n1, web3 by n1
            near n1  | vip:81 | refused
            ",
        );
        stage.check_over(
            transport,
            "here",
            "
            near     | vip    | web2 kept
            far n1   | vip    | dropped
            client   | n1     | dropped
            client   | n2     | web2 kept
            client   | lb@n3  | web3 kept
            client   | lb@n1  | dropped
            far      | lb     | web2 kept, web3 kept
            near     | lb     | web2 kept, web3 kept | not ipvs
            near     | lb     | web2 kept            | ipvs
            ",
        );
    }
    stage.check_over(
        Transport::Udp,
        "nobody",
        "
        near far n1 n2 | vip | refused
        client n1 near | n1  | refused
        ",
    );
}
