//! The Pod object: what is created, and the status that follows the process.

use serde_json::{Value, json};

use super::spec::PodSpec;

/// What is to be said about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether it takes requests, or why not.
    pub readiness: Readiness,
    /// When it became so.
    pub since: jiff::Timestamp,
    /// What its process does.
    pub process: ProcessState,
    /// How often its process was started again.
    pub restarts: u32,
    /// When the pod began.
    pub begun: jiff::Timestamp,
}

/// Whether a pod takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Nobody listens on this port yet, or any more.
    NotListening(String),
    /// Its process does not run.
    NotRunning,
}

/// What a pod's process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs since.
    Running(jiff::Timestamp),
    /// It ended, with this status, and is started again after a while.
    Waiting {
        /// Its exit code; 128 and the signal for a killed one.
        code: i32,
    },
}

/// The Pod to create.
pub fn pod(spec: &PodSpec) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            let mut value = json!({"containerPort": port.number, "protocol": port.protocol.to_string()});
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            value
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "labels": spec.labels},
        "spec": {
            "nodeName": spec.node,
            "restartPolicy": "Always",
            "containers": [{
                "name": "main",
                // There is no image: the name says what runs.
                "image": image(spec),
                "command": spec.command,
                "ports": ports,
            }],
        },
    })
}

fn image(spec: &PodSpec) -> String {
    let program = spec
        .command
        .first()
        .map(|program| program.rsplit('/').next().unwrap_or(program));
    format!("process/{}", program.unwrap_or("svcnet-responder"))
}

/// A merge patch of the status subresource. The addresses are the CNI daemon's to set.
pub fn status_patch(spec: &PodSpec, status: &Status) -> Value {
    let ready = status.readiness == Readiness::Ready;
    let condition = |kind: &str, holds: bool, since: jiff::Timestamp| {
        let mut value = json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": time(since),
        });
        if !holds {
            value["reason"] = json!("ContainersNotReady");
            value["message"] = json!(match &status.readiness {
                Readiness::NotListening(port) => format!("nobody listens on {port}"),
                _ => "containers with unready status: [main]".to_string(),
            });
        }
        value
    };
    let state = match &status.process {
        ProcessState::Running(since) => json!({"running": {"startedAt": time(*since)}}),
        ProcessState::Waiting { code } => json!({
            "waiting": {"reason": "CrashLoopBackOff", "message": format!("the process ended with status {code}")},
        }),
    };
    let mut patch = json!({"status": {
        "phase": "Running",
        "startTime": time(status.begun),
        "conditions": [
            condition("Initialized", true, status.begun),
            condition("Ready", ready, status.since),
            condition("ContainersReady", ready, status.since),
            condition("PodScheduled", true, status.begun),
        ],
        "containerStatuses": [{
            "name": "main",
            "image": image(spec),
            "imageID": "",
            "ready": ready,
            "started": matches!(status.process, ProcessState::Running(_)),
            "restartCount": status.restarts,
            "state": state,
        }],
    }});
    if let Some(ips) = spec.host_ips {
        patch["status"]["hostIP"] = json!(ips.primary());
        patch["status"]["hostIPs"] = ips.iter().map(|ip| json!({"ip": ip})).collect();
    }
    patch
}

/// As the API writes times: to the second.
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str]) -> PodSpec {
        PodSpec {
            name: "web1".to_string(),
            namespace: "default".to_string(),
            labels: [("app".to_string(), "nginx".to_string())].into(),
            ports: vec!["80=http".parse().unwrap(), "53/udp".parse().unwrap()],
            netns: "lab-web1".to_string(),
            command: command.iter().map(ToString::to_string).collect(),
            node: "n2".to_string(),
            host_ips: Some("172.30.0.12,fd00:172:30::12".parse().unwrap()),
            run_dir: "/run/svcnet".into(),
        }
    }

    #[test]
    fn the_pod_names_its_ports_and_its_program() {
        let value = pod(&spec(&["/usr/bin/python3", "-m", "http.server"]));
        assert_eq!(value["spec"]["containers"][0]["image"], "process/python3");
        assert_eq!(
            value["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 80, "protocol": "TCP", "name": "http"}, {"containerPort": 53, "protocol": "UDP"}])
        );
        let typed: Result<k8s_openapi::api::core::v1::Pod, _> = serde_json::from_value(value);
        assert!(typed.is_ok(), "{typed:?}");
    }

    #[test]
    fn the_status_says_why_a_pod_is_not_ready() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let status = Status {
            readiness: Readiness::NotListening("80/tcp=http".to_string()),
            since: at,
            process: ProcessState::Running(at),
            restarts: 2,
            begun: at,
        };
        let patch = status_patch(&spec(&[]), &status);
        let ready = &patch["status"]["conditions"][1];
        assert_eq!(ready["status"], "False");
        assert_eq!(ready["message"], "nobody listens on 80/tcp=http");
        assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(patch["status"]["containerStatuses"][0]["restartCount"], 2);
        assert_eq!(patch["status"]["hostIP"], "172.30.0.12");
        assert_eq!(patch["status"]["hostIPs"][1]["ip"], "fd00:172:30::12");
    }
}
