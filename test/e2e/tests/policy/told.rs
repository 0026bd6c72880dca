//! What people are told: by kubectl, by `svcnet why`, by `svcnet policy audit`.

use svcnet_e2e::{Lab, binary, until};

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-till}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: till}}}]
    ports: [{port: 80}]
";

#[test]
fn what_a_policy_does_is_told_before_and_after() {
    let lab = Lab::up(&[]);
    lab.pod_with(
        "web",
        "n1",
        "app=web",
        &["--container-port", "80", "--container-port", "9100"],
    );
    lab.pod("till", "n1", "app=till");
    lab.pod("spy", "n2", "app=spy");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let (svcnet, file) = (binary().display().to_string(), file.display().to_string());
    let web = lab.pod_ip("web");
    assert!(
        lab.curl("spy", &format!("http://{web}/")).ok,
        "nothing is denied yet"
    );

    let audit = lab.exec("n1", &[&svcnet, "policy", "audit", "-f", &file]);
    assert!(!audit.ok && audit.err.is_empty(), "{audit:?}");
    let between = "would be denied between pods:
  default/spy -> default/web tcp 80: ingress of default/only-till
  default/spy, default/till -> default/web tcp 9100: ingress of default/only-till
";
    assert!(audit.out.starts_with(between), "{audit:?}");

    lab.apply(POLICY);
    let table = lab.kubectl(&["get", "netpol"]);
    let words: Vec<&str> = table.text().split_whitespace().take(5).collect();
    assert_eq!(words, ["NAME", "POD-SELECTOR", "AGE", "only-till", "app=web"]);
    let described = lab.kubectl(&["describe", "networkpolicy", "only-till"]);
    assert!(described.text().contains("To Port: 80/TCP"), "{described:?}");
    until("the spy is kept out", || {
        (!lab.curl("spy", &format!("http://{web}/")).ok).then_some(())
    });
    assert!(lab.curl("till", &format!("http://{web}/")).ok);

    let why = lab.exec("n2", &[&svcnet, "why", "spy", &format!("{web}:80")]);
    let ending = "not reached: denied by NetworkPolicy default/only-till, which isolates default/web for ingress and does \
                  not allow it\nhint: kubectl -n default describe networkpolicy only-till; what is allowed adds up over \
                  policies";
    assert!(!why.ok && why.out.trim_end().ends_with(ending), "{why:?}");
    let why = lab.exec("n1", &[&svcnet, "why", "till", &format!("{web}:80")]);
    assert!(
        why.ok
            && why
                .out
                .contains("ok  policy    NetworkPolicies let it through to 1 of 1 endpoint\n"),
        "{why:?}"
    );
    let refused = lab.try_apply(&POLICY.replace("port: 80", "port: 0"));
    assert!(
        refused.err.contains(
            "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"
        ),
        "{refused:?}"
    );
}
