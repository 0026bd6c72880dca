//! The API without a process for each request: through `kubectl proxy`, which does the TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;
use svcnet_e2e::{Lab, until};
use svcnet_netlink::netns::NetNs;

const PROXY: &str = "127.0.0.1:8001";
pub(crate) const SERVICES: &str = "/api/v1/namespaces/default/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// A way to the lab's API, open until dropped.
pub(crate) struct Api {
    proxy: Child,
    server: NetNs,
}

impl Api {
    pub(crate) fn of(lab: &Lab) -> Self {
        let proxy = lab
            .exec_command("n1", &["kubectl", "proxy", "--port=8001"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let api = Self {
            proxy,
            server: NetNs::open(&lab.namespace("n1")).unwrap(),
        };
        until("kubectl proxy answers", || api.try_ask("GET", "/api", "").ok());
        api
    }

    /// An object or a list.
    pub(crate) fn get(&self, path: &str) -> Value {
        self.ask("GET", path, "")
    }

    /// Server-side apply: there is such an object afterwards, whatever there was.
    pub(crate) fn put(&self, collection: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let path = format!("{collection}/{name}?fieldManager=test&force=true");
        self.ask("PATCH", &path, &object.to_string());
    }

    /// There is no such object afterwards.
    pub(crate) fn delete(&self, collection: &str, name: &str) {
        match self.try_ask("DELETE", &format!("{collection}/{name}"), "") {
            Ok(_) => {}
            Err(answer) => assert!(answer.contains(" 404 "), "{answer}"),
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        self.try_ask(method, path, body)
            .unwrap_or_else(|answer| panic!("{method} {path} {body}: {answer}"))
    }

    /// What it says; the whole answer when that is not success. HTTP/1.0, so that it comes in one piece.
    fn try_ask(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(PROXY)?;
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nHost: {PROXY}\r\nContent-Type: application/apply-patch+yaml\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self
            .server
            .run(exchange)
            .unwrap()
            .map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status.starts_with('2') {
            serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))
        } else {
            Err(answer)
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}
