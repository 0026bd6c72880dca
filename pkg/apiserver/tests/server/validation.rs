//! What is said of fields that are not there, or there twice, and of parameters that make no sense together.

use http::Method;
use serde_json::{Value, json};

use crate::harness::Running;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";

/// Code, message and warnings.
async fn sent(
    server: &Running,
    method: Method,
    path: &str,
    media: &str,
    body: &str,
) -> (u16, String, Vec<String>) {
    let headers = [("content-type", media)];
    let (code, headers, body) = server.http_full(method, path, &headers, body.to_string()).await;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let warnings = headers
        .get_all("warning")
        .iter()
        .map(|w| w.to_str().unwrap().to_string())
        .collect();
    (
        code,
        body["message"].as_str().unwrap_or_default().to_string(),
        warnings,
    )
}

#[tokio::test]
async fn unknown_and_doubled_fields_are_refused_warned_of_or_ignored() {
    let server = Running::start().await;
    let body = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"10.96.1.{name}","foo":1,"ports":[{{"port":80,"port":81}}]}}}}"#
        )
    };
    let body = |name: &str| body(name).replace(&format!("\"{name}\""), &format!("\"w{name}\""));
    let (code, message, _) = sent(
        &server,
        Method::POST,
        &format!("{SERVICES}?fieldValidation=Strict"),
        JSON,
        &body("1"),
    )
    .await;
    assert_eq!(
        (code, message.as_str()),
        (
            400,
            "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \
             \"spec.foo\", duplicate field \"spec.ports[0].port\""
        )
    );
    let (code, _, warnings) = sent(
        &server,
        Method::POST,
        &format!("{SERVICES}?fieldValidation=Warn"),
        JSON,
        &body("2"),
    )
    .await;
    assert_eq!(code, 201);
    assert_eq!(
        warnings,
        [
            "299 - \"unknown field \\\"spec.foo\\\"\"",
            "299 - \"duplicate field \\\"spec.ports[0].port\\\"\""
        ]
    );
    let (code, _, warnings) = sent(
        &server,
        Method::POST,
        &format!("{SERVICES}?fieldValidation=Ignore"),
        JSON,
        &body("3"),
    )
    .await;
    assert_eq!((code, warnings), (201, vec![]));
    let (code, message, _) = sent(
        &server,
        Method::POST,
        &format!("{SERVICES}?fieldValidation=Loose"),
        JSON,
        &body("4"),
    )
    .await;
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Loose\": supported values: \
             \"\", \"Ignore\", \"Strict\", \"Warn\""
        )
    );
    server.stop().await;
}

#[tokio::test]
async fn yaml_says_the_line() {
    let server = Running::start().await;
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\ndata:\n  a: x\n  a: z\n";
    let (code, message, _) = sent(
        &server,
        Method::POST,
        &format!("{MAPS}?fieldValidation=Strict"),
        YAML,
        twice,
    )
    .await;
    assert_eq!(
        (code, message.as_str()),
        (
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: yaml: unmarshal \
             errors:\n  line 7: key \"a\" already set in map"
        )
    );
    let (code, _, warnings) = sent(&server, Method::POST, MAPS, YAML, twice).await;
    assert_eq!((code, warnings.len()), (201, 1));
    assert!(
        warnings[0].contains("line 7: key \\\"a\\\" already set in map"),
        "{warnings:?}"
    );
    let (_, made) = server.get(&format!("{MAPS}/m")).await;
    assert_eq!(made["data"]["a"], "z", "the last one counts");
    let apply = format!("{MAPS}/m?fieldManager=a&force=true&fieldValidation=Strict");
    let (code, message, _) = sent(
        &server,
        Method::PATCH,
        &apply,
        "application/apply-patch+yaml",
        twice,
    )
    .await;
    assert_eq!(
        (code, message.as_str()),
        (
            400,
            "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" \
             already set in map"
        )
    );
    server.stop().await;
}

#[tokio::test]
async fn patches_to_what_is_not_there_show_what_was_read() {
    let server = Running::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    server.post(MAPS, &map).await;
    let strict = format!("{MAPS}/m?fieldValidation=Strict");
    let strategic = "application/strategic-merge-patch+json";
    let (code, message, _) = sent(
        &server,
        Method::PATCH,
        &strict,
        strategic,
        r#"{"foo":{"b":1,"a":"x"}}"#,
    )
    .await;
    assert_eq!(
        (code, message.as_str()),
        (
            422,
            " \"\" is invalid: patch: Invalid value: \"map[foo:map[a:x b:1]]\": strict decoding error: unknown field \
             \"foo\""
        )
    );
    let merge = "application/merge-patch+json";
    let (code, message, _) = sent(
        &server,
        Method::PATCH,
        &strict,
        merge,
        r#"{"data":{"a":"x","a":"y"}}"#,
    )
    .await;
    assert_eq!(code, 422);
    assert!(
        message.starts_with(" \"\" is invalid: patch: Invalid value: \"{\\\"apiVersion\\\":\\\"v1\\\""),
        "{message}"
    );
    assert!(
        message.ends_with(": strict decoding error: duplicate field \"data.a\""),
        "{message}"
    );
    let (code, _, warnings) = sent(
        &server,
        Method::PATCH,
        &format!("{MAPS}/m"),
        strategic,
        r#"{"foo":1}"#,
    )
    .await;
    assert_eq!(
        (code, warnings),
        (200, vec!["299 - \"unknown field \\\"foo\\\"\"".to_string()])
    );
    let (code, message, _) = sent(
        &server,
        Method::PATCH,
        &format!("{MAPS}/m"),
        merge,
        r#"{"data":5}"#,
    )
    .await;
    assert_eq!(code, 422, "{message}");
    assert!(
        message.contains(
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type map[string]string"
        ),
        "{message}"
    );
    server.stop().await;
}

#[tokio::test]
async fn lists_are_of_the_revision_that_is_asked_for() {
    let server = Running::start().await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let (_, first) = server.post(MAPS, &map("a")).await;
    server.post(MAPS, &map("b")).await;
    let at = first["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_string())
            .collect()
    };
    for (query, expect) in [
        (
            format!("resourceVersion={at}&resourceVersionMatch=Exact"),
            vec!["a"],
        ),
        (format!("resourceVersion={at}&limit=5"), vec!["a"]),
        (
            format!("resourceVersion={at}&resourceVersionMatch=NotOlderThan"),
            vec!["a", "b"],
        ),
        (format!("resourceVersion={at}"), vec!["a", "b"]),
        ("resourceVersion=0".to_string(), vec!["a", "b"]),
        (
            "resourceVersion=0&resourceVersionMatch=NotOlderThan&limit=1".to_string(),
            vec!["a"],
        ),
    ] {
        let (code, list) = server.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(
            (code, names(&list)),
            (200, expect.iter().map(ToString::to_string).collect()),
            "{query}"
        );
    }
    assert_eq!(server.get(&format!("{MAPS}/b?resourceVersion={at}")).await.0, 200);
    let (code, ahead) = server.get(&format!("{MAPS}/b?resourceVersion=99999999")).await;
    assert_eq!(
        (code, &ahead["details"]["causes"][0]["reason"]),
        (504, &json!("ResourceVersionTooLarge"))
    );
    let (_, page) = server.get(&format!("{MAPS}?limit=1")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    for (query, code, words) in [
        (
            format!("limit=1&continue={token}&resourceVersion={at}"),
            400,
            "specifying resource version is not allowed when using continue",
        ),
        (
            "resourceVersionMatch=Exact".to_string(),
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden \
             unless resourceVersion is provided",
        ),
        (
            "watch=1&sendInitialEvents=true".to_string(),
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
             setting resourceVersionMatch to NotOlderThan",
        ),
    ] {
        let (got, refused) = server.get(&format!("{MAPS}?{query}")).await;
        assert_eq!((got, refused["message"].as_str().unwrap()), (code, words));
    }
    server.stop().await;
}

#[tokio::test]
async fn informers_of_metadata_get_metadata_alone() {
    let server = Running::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    server.post(MAPS, &map).await;
    let list = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
    let (code, _, body) = server.http_full(Method::GET, MAPS, &[("accept", list)], "").await;
    let all: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (code, &all["kind"], &all["apiVersion"]),
        (200, &json!("PartialObjectMetadataList"), &json!("meta.k8s.io/v1"))
    );
    let one = &all["items"][0];
    assert_eq!(
        (&one["kind"], &one["metadata"]["name"], one.get("data")),
        (&json!("PartialObjectMetadata"), &json!("m"), None)
    );
    assert!(one["metadata"]["managedFields"].is_array() && all["metadata"]["resourceVersion"].is_string());
    let one = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let (_, _, body) = server
        .http_full(Method::GET, &format!("{MAPS}/m"), &[("accept", one)], "")
        .await;
    let got: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&got["kind"], got.get("data")),
        (&json!("PartialObjectMetadata"), None)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_list_whose_revision_is_forgotten_can_go_on_at_the_present() {
    let server = Running::start().await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    for name in ["a", "b", "c"] {
        server.post(MAPS, &map(name)).await;
    }
    let (_, first) = server.get(&format!("{MAPS}?limit=1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_string();
    server.delete(&format!("{MAPS}/b")).await;
    // A server that has started anew knows the present alone.
    let server = Running::start_with(server.stop().await, Vec::new()).await;
    let (code, gone) = server.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((code, &gone["reason"]), (410, &json!("Expired")));
    assert!(
        gone["message"]
            .as_str()
            .unwrap()
            .starts_with("The provided continue parameter is too old to display a consistent list result.")
    );
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = server.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((code, &rest["items"][0]["metadata"]["name"]), (200, &json!("c")));
    assert_eq!(rest["metadata"].get("continue"), None);
    server.stop().await;
}

/// Clients that read lists give up at 128 levels: one such object would keep every informer of its kind from going on.
#[tokio::test(flavor = "multi_thread")]
async fn what_nests_too_deep_is_refused() {
    let server = Running::start().await;
    let deep = |levels: usize| {
        let fields = (0..levels).fold(json!({}), |inner, _| json!({"f:a": inner}));
        let managed = json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                              "time": "2026-01-01T00:00:00Z", "fieldsV1": fields}]);
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": managed}})
    };
    let (code, refused) = server.post(MAPS, &deep(110)).await;
    assert_eq!(code, 400);
    assert_eq!(refused["message"], "the object nests deeper than 100 levels");
    assert_eq!(server.post(MAPS, &deep(90)).await.0, 201);
    let (code, _) = server.put(&format!("{MAPS}/a"), &deep(110)).await;
    assert_eq!(code, 400);
    let (code, list) = server.get(MAPS).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 1));
    server.stop().await;
}
