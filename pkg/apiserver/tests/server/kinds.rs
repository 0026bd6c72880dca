//! The kinds of networking.k8s.io as kubectl shows them, and what kubectl explains of every kind.

use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};

use crate::harness::Running;

const CLASS: &str = "
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx, annotations: {ingressclass.kubernetes.io/is-default-class: \"true\"}}
spec:
  controller: k8s.io/ingress-nginx
  parameters: {apiGroup: example.com, kind: Params, name: external}
---
apiVersion: networking.k8s.io/v1
kind: IPAddress
metadata: {name: 10.96.5.5}
spec:
  parentRef: {group: gateway.networking.k8s.io, resource: gateways, namespace: edge, name: front}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.200.0.0/24, \"fd00:200::/112\"]}
---
apiVersion: metallb.io/v1beta1
kind: ServiceL2Status
metadata: {name: l2-abcde, namespace: metallb-system}
spec: {}
";

/// Every kubectl beside the one on the PATH (Google's packages bring several), oldest first.
fn versions() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|file| file.exists());
    let Some(first) = first.and_then(|file| file.canonicalize().ok()) else {
        return Vec::new();
    };
    let beside = std::fs::read_dir(first.parent().unwrap()).unwrap();
    let mut found: Vec<PathBuf> = beside.map(|entry| entry.unwrap().path()).collect();
    found.retain(|file| {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.starts_with("kubectl.1.")
    });
    found.sort();
    found
}

/// A line with single spaces between its words.
fn lines(text: &str) -> Vec<String> {
    text.lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ingresses_are_made_and_shown() {
    let server = Running::start().await;
    server.kubectl_in(&["apply", "-f", "-"], CLASS).await;
    let plain = server
        .kubectl(&["create", "ingress", "plain", "--rule=a.example.com/*=web:80"])
        .await;
    assert_eq!(plain.trim(), "ingress.networking.k8s.io/plain created");
    let secure = [
        "create",
        "ingress",
        "secure",
        "--class=nginx",
        "--rule=b.example.com/api=web:http,tls=cert",
        "--default-backend=web:80",
    ];
    server.kubectl(&secure).await;
    // 1.32 and later send this in protobuf; the others must go on to work too.
    for (index, kubectl) in versions().iter().enumerate() {
        let name = format!("v{index}");
        server
            .kubectl_of(
                kubectl,
                &["create", "ingress", &name, "--rule=c.example.com/=web:80"],
            )
            .await;
    }
    // The class is the default one.
    let shown = lines(&server.kubectl(&["get", "ing"]).await);
    assert_eq!(shown[0], "NAME CLASS HOSTS ADDRESS PORTS AGE");
    assert!(
        shown
            .iter()
            .any(|l| l.starts_with("plain nginx a.example.com 80 ")),
        "{shown:#?}"
    );
    assert!(
        shown
            .iter()
            .any(|l| l.starts_with("secure nginx b.example.com 80, 443 ")),
        "{shown:#?}"
    );
    let described = lines(&server.kubectl(&["describe", "ingress", "secure"]).await);
    for line in [
        "Ingress Class: nginx",
        "cert terminates b.example.com",
        "/api web:http (<error: services \"web\" not found>)",
    ] {
        assert!(described.iter().any(|l| l == line), "{line} in {described:#?}");
    }
    let wrong = server
        .kubectl_refused(&["create", "ingress", "wrong", "--rule=10.0.0.1/=web:80"], "")
        .await;
    assert!(
        wrong.contains(
            "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"
        ),
        "{wrong}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_kinds_are_shown_as_the_real_ones_are() {
    let server = Running::start().await;
    server.kubectl_in(&["apply", "-f", "-"], CLASS).await;
    for (kind, head, row) in [
        (
            "ingressclass",
            "NAME CONTROLLER PARAMETERS AGE",
            "nginx k8s.io/ingress-nginx Params.example.com/external ",
        ),
        (
            "ip",
            "NAME PARENTREF AGE",
            "10.96.5.5 gateways.gateway.networking.k8s.io/edge/front ",
        ),
        (
            "servicecidrs",
            "NAME CIDRS AGE",
            "more 10.200.0.0/24,fd00:200::/112 ",
        ),
        ("servicecidrs", "NAME CIDRS AGE", "kubernetes 10.96.0.0/12 "),
    ] {
        let shown = lines(&server.kubectl(&["get", kind]).await);
        assert_eq!(shown[0], head);
        assert!(shown.iter().any(|l| l.starts_with(row)), "{row} in {shown:#?}");
    }
    let status = ["patch", "servicel2status", "l2-abcde", "-n", "metallb-system"];
    let status = [
        &status[..],
        &[
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"node":"n1","serviceName":"web","serviceNamespace":"default"}}"#,
        ],
    ]
    .concat();
    server.kubectl(&status).await;
    let shown = lines(&server.kubectl(&["get", "servicel2statuses", "-A"]).await);
    assert_eq!(
        shown,
        [
            "NAMESPACE NAME ALLOCATED NODE SERVICE NAME SERVICE NAMESPACE",
            "metallb-system l2-abcde n1 web default",
        ]
    );
    let described = lines(&server.kubectl(&["describe", "ingressclass", "nginx"]).await);
    assert!(
        described.iter().any(|l| l == "Controller: k8s.io/ingress-nginx"),
        "{described:#?}"
    );
    let described = lines(&server.kubectl(&["describe", "servicecidr", "more"]).await);
    assert!(
        described
            .iter()
            .any(|l| l.starts_with("CIDRs: 10.200.0.0/24, fd00:200::/112")),
        "{described:#?}"
    );
    let described = lines(&server.kubectl(&["describe", "ipaddress", "10.96.5.5"]).await);
    assert!(
        described.iter().any(|l| l == "Resource: gateways"),
        "{described:#?}"
    );
    let refused = server
        .kubectl_refused(&["apply", "-f", "-"], &CLASS.replace("10.96.5.5", "10.96.5.05"))
        .await;
    assert!(
        refused.contains("metadata.name: Invalid value: \"10.96.5.05\""),
        "{refused}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_explained() {
    let server = Running::start().await;
    let all = versions();
    // The oldest reads another description (/openapi/v2) than the newest.
    let mut asked: Vec<PathBuf> = all.first().into_iter().chain(all.last()).cloned().collect();
    if asked.is_empty() {
        asked.push(PathBuf::from("kubectl"));
    }
    asked.dedup();
    let resources = server
        .kubectl(&["api-resources", "-o", "name", "--verbs=create"])
        .await;
    let resources: Vec<&str> = resources.split_whitespace().collect();
    assert!(resources.len() >= 18, "{resources:?}");
    for kubectl in &asked {
        for resource in &resources {
            let explained = server
                .kubectl_of(kubectl, &["explain", "--recursive", resource])
                .await;
            for word in ["KIND:", "VERSION:", "apiVersion", "metadata", "labels"] {
                assert!(
                    explained.contains(word),
                    "{} {resource}: {explained}",
                    kubectl.display()
                );
            }
            assert!(!explained.contains("<empty>"), "{resource}: {explained}");
        }
        let deep = "ingresses.spec.rules.http.paths.backend.service.port.number";
        let explained = server.kubectl_of(kubectl, &["explain", deep]).await;
        assert!(explained.contains("numerical port number"), "{explained}");
        let selectors = "ipaddresspools.spec.serviceAllocation.serviceSelectors.matchExpressions";
        let explained = server.kubectl_of(kubectl, &["explain", selectors]).await;
        assert!(explained.contains("operator"), "{explained}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingress_without_a_class_gets_the_newest_default() {
    let server = Running::start().await;
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let class = |name: &str, default: &str| {
        json!({"metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": default}},
            "spec": {"controller": "example.com/a"}})
    };
    let class_of = async |name: &str, spec: Value, annotations: Value| {
        let mut ingress = json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"defaultBackend": {
                "service": {"name": "web", "port": {"number": 80}}}}});
        if let Some(name) = spec.as_str() {
            ingress["spec"]["ingressClassName"] = name.into();
        }
        let (code, made) = server.post(ingresses, &ingress).await;
        assert_eq!(code, 201, "{made}");
        let owned = made["metadata"]["managedFields"].to_string();
        assert_eq!(owned.contains("ingressClassName"), spec.is_string(), "{owned}");
        made["spec"]["ingressClassName"].clone()
    };
    let none = Value::Null;
    assert_eq!(class_of("a", none.clone(), none.clone()).await, none);
    assert_eq!(server.post(classes, &class("other", "false")).await.0, 201);
    assert_eq!(class_of("b", none.clone(), none.clone()).await, none);
    assert_eq!(server.post(classes, &class("z-first", "true")).await.0, 201);
    assert_eq!(class_of("c", none.clone(), none.clone()).await, "z-first");
    assert_eq!(class_of("d", json!("mine"), none.clone()).await, "mine");
    let older = json!({"kubernetes.io/ingress.class": "theirs"});
    assert_eq!(class_of("e", none.clone(), older).await, none);
    // Times of creation are whole seconds.
    let made = server.get(&format!("{classes}/z-first")).await.1["metadata"]["creationTimestamp"].clone();
    let mut second = class("y-second", "true");
    loop {
        let (_, newer) = server.post(classes, &second).await;
        if newer["metadata"]["creationTimestamp"].as_str() > made.as_str() {
            break;
        }
        server.delete(&format!("{classes}/y-second")).await;
        second = class("y-second", "true");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(class_of("f", none.clone(), none.clone()).await, "y-second");
    // What is there already is left alone.
    let (_, kept) = server.get(&format!("{ingresses}/a")).await;
    let (code, updated) = server.put(&format!("{ingresses}/a"), &kept).await;
    assert_eq!((code, updated["spec"].get("ingressClassName")), (200, None));
    server.stop().await;
}

/// What a subresource is not said to do, it does not: a method that is not listed is refused, whatever it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn subresources_do_what_discovery_says_and_no_more() {
    let server = Running::start().await;
    let (_, groups) = server.get("/apis").await;
    let groups = groups["groups"].as_array().unwrap().iter();
    let paths = groups.map(|group| {
        format!(
            "/apis/{}",
            group["preferredVersion"]["groupVersion"].as_str().unwrap()
        )
    });
    let mut refused = 0;
    for path in paths.chain(["/api/v1".to_string()]) {
        let (_, all) = server.get(&path).await;
        for resource in all["resources"].as_array().unwrap() {
            let (name, verbs) = (resource["name"].as_str().unwrap(), resource["verbs"].to_string());
            let Some((plural, subresource)) = name.split_once('/') else {
                continue;
            };
            let namespace = if resource["namespaced"] == true {
                "/namespaces/default"
            } else {
                ""
            };
            let path = format!("{path}{namespace}/{plural}/default/{subresource}");
            for (method, verb) in [
                (Method::GET, "get"),
                (Method::PUT, "update"),
                (Method::PATCH, "patch"),
                (Method::DELETE, "delete"),
                (Method::POST, "create"),
            ] {
                let (code, _) = server
                    .http(method, &path, "application/merge-patch+json", "{}")
                    .await;
                assert_eq!(code == 405, !verbs.contains(verb), "{verb} {path}: {code}");
                refused += usize::from(code == 405);
            }
        }
    }
    // Of `namespaces/finalize` alone there are four.
    assert!(refused > 4, "{refused}");
    server.stop().await;
}

/// Who asks for protobuf gets it, by its older name too; everybody else gets JSON.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_description_comes_in_both_forms() {
    let server = Running::start().await;
    let ask = async |accept: &str| {
        let headers = [("accept", accept)];
        server.http_full(Method::GET, "/openapi/v2", &headers, "").await
    };
    for accept in ["", "*/*", "application/json", "application/json, */*"] {
        let (code, headers, body) = ask(accept).await;
        assert_eq!(
            (code, headers["content-type"].to_str().unwrap()),
            (200, "application/json")
        );
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(document["swagger"], "2.0");
        let tag = headers["etag"].to_str().unwrap();
        let again = [("accept", accept), ("if-none-match", tag)];
        assert_eq!(
            server.http_full(Method::GET, "/openapi/v2", &again, "").await.0,
            304
        );
    }
    for accept in [
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json",
    ] {
        let (code, headers, body) = ask(accept).await;
        let media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        assert_eq!((code, headers["content-type"].to_str().unwrap()), (200, media));
        // Field 1, the version of the format.
        assert_eq!(&body[..5], b"\x0a\x032.0");
    }
    server.stop().await;
}

/// What YAML 1.1 has words for that are texts in JSON stays a text, as key and as value.
#[tokio::test(flavor = "multi_thread")]
async fn answers_come_in_yaml_for_who_asks_for_it() {
    let server = Running::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let texts = [
        "on",
        "y",
        "null",
        "0777",
        "1e3",
        "2026-01-01",
        "~",
        "- a",
        "a: b",
        "\tb\n c\n\n",
        "\u{85}\u{feff}",
        "",
    ];
    let keys = [
        "on",
        "y",
        "null",
        "0777",
        "1e3",
        "2026-01-01",
        "off",
        "n",
        "a",
        "b",
        "c",
        "d",
    ];
    let data: Value = keys
        .into_iter()
        .zip(texts)
        .map(|(key, text)| (key.to_string(), json!(text)))
        .collect();
    let map = json!({"metadata": {"name": "a"}, "data": data});
    let (code, stored) = server.post(maps, &map).await;
    assert_eq!(code, 201);
    let yaml = async |path: &str| {
        let (code, headers, body) = server
            .http_full(Method::GET, path, &[("accept", "application/yaml")], "")
            .await;
        assert_eq!(headers["content-type"], "application/yaml");
        let text = String::from_utf8(body.to_vec()).unwrap();
        (code, serde_saphyr::from_str::<Value>(&text).unwrap(), text)
    };
    let (code, object, text) = yaml(&format!("{maps}/a")).await;
    assert_eq!((code, &object), (200, &stored));
    assert!(
        text.contains("'on': 'on'") || text.contains("\"on\": \"on\""),
        "{text}"
    );
    let (_, list, _) = yaml(maps).await;
    assert_eq!(
        (&list["kind"], &list["items"][0]["data"]),
        (&json!("ConfigMapList"), &stored["data"])
    );
    let (code, refused, _) = yaml(&format!("{maps}/b")).await;
    assert_eq!((code, &refused["reason"]), (404, &json!("NotFound")));
    server.stop().await;
}
