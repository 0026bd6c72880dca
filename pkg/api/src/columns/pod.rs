//! Columns of Pods.

use serde_json::{Value, json};

use super::{AGE, NAME, age_since, column, or_none, wide};
use crate::kind::Column;
use crate::rules::Fields;

pub(crate) const POD: [Column; 9] = [
    NAME,
    column(
        "Ready",
        "The aggregate readiness state of this pod for accepting traffic.",
        |pod, _| json!(ready(pod)),
    ),
    column(
        "Status",
        "The aggregate status of the containers in this pod.",
        |pod, _| json!(status(pod)),
    ),
    column(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod \
         has restarted.",
        |pod, now| json!(restarts(pod, now)),
    ),
    AGE,
    wide(column("IP", "podIP address allocated to the pod.", |pod, _| {
        let first = pod["status"]
            .list("podIPs")
            .first()
            .map_or("", |ip| ip.text("ip"));
        or_none(if first.is_empty() {
            pod["status"].text("podIP")
        } else {
            first
        })
    })),
    wide(column(
        "Node",
        "nodeName indicates in which node this pod is scheduled.",
        |pod, _| or_none(pod["spec"].text("nodeName")),
    )),
    wide(column(
        "Nominated Node",
        "nominatedNodeName is set only when this pod preempts other pods on the node.",
        |pod, _| or_none(pod["status"].text("nominatedNodeName")),
    )),
    wide(column(
        "Readiness Gates",
        "If specified, all readiness gates will be evaluated for pod readiness.",
        |pod, _| or_none(&readiness_gates(pod)),
    )),
];

fn ready(pod: &Value) -> String {
    let statuses = pod["status"].list("containerStatuses");
    let total = pod["spec"].list("containers").len();
    let ready = if statuses.is_empty() && condition(pod, "Ready") == Some("True") {
        // Whoever runs the pod here reports it as a whole, not by container.
        total
    } else {
        statuses.iter().filter(|s| s.flag("ready")).count()
    };
    format!("{ready}/{total}")
}

fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a str> {
    pod["status"]
        .list("conditions")
        .iter()
        .find(|c| c.text("type") == type_)
        .map(|c| c.text("status"))
}

/// Of the phase, what the pod as a whole reports, and what its containers wait for or ended with, the last word
/// (`printPod`).
fn status(pod: &Value) -> String {
    let status = &pod["status"];
    let mut text = match status.text("reason") {
        "" => status.text("phase").to_string(),
        reason => reason.to_string(),
    };
    let initializing = init_status(pod);
    if let Some(init) = &initializing {
        text.clone_from(init);
    } else {
        let mut running = false;
        for container in status.list("containerStatuses").iter().rev() {
            match container_reason(container) {
                Some(reason) => text = reason,
                None => running |= container.flag("ready") && container["state"].has("running"),
            }
        }
        if text == "Completed" && running {
            let ready = condition(pod, "Ready") == Some("True");
            text = if ready { "Running" } else { "NotReady" }.to_string();
        }
    }
    if pod["metadata"].has("deletionTimestamp") {
        let lost = status.text("reason") == "NodeLost";
        text = if lost { "Unknown" } else { "Terminating" }.to_string();
    }
    text
}

fn init_status(pod: &Value) -> Option<String> {
    let total = pod["spec"].list("initContainers").len();
    let statuses = pod["status"].list("initContainerStatuses");
    let (index, container) = statuses.iter().enumerate().find(|(_, c)| {
        let ended = &c["state"]["terminated"];
        ended.is_null() || ended.number("exitCode") != 0
    })?;
    let waiting = container["state"]["waiting"].text("reason");
    Some(match container_reason(container) {
        Some(reason) if container["state"].has("terminated") => format!("Init:{reason}"),
        _ if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
        _ => format!("Init:{index}/{total}"),
    })
}

/// What a container waits for, or how it ended.
fn container_reason(container: &Value) -> Option<String> {
    let state = &container["state"];
    let waiting = state["waiting"].text("reason");
    if !waiting.is_empty() {
        return Some(waiting.to_string());
    }
    let ended = &state["terminated"];
    if ended.is_null() {
        return None;
    }
    Some(match (ended.text("reason"), ended.number("signal")) {
        ("", 0) => format!("ExitCode:{}", ended.number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    })
}

fn restarts(pod: &Value, now: i64) -> String {
    let containers = pod["status"].list("containerStatuses");
    let count: i64 = containers.iter().map(|c| c.number("restartCount")).sum();
    let ended = containers
        .iter()
        .map(|c| c["lastState"]["terminated"].text("finishedAt"));
    match ended.filter(|t| !t.is_empty()).max() {
        Some(last) if count > 0 => format!("{count} ({} ago)", age_since(last, now)),
        _ => count.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod["spec"].list("readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let open = gates
        .iter()
        .filter(|g| condition(pod, g.text("conditionType")) == Some("True"));
    format!("{}/{}", open.count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(pod: &Value) -> Vec<Value> {
        POD.iter().map(|c| (c.cell)(pod, 100)).collect()
    }

    #[test]
    fn a_running_pod_prints_in_full() {
        let pod = json!({
            "metadata": {"name": "web-1", "creationTimestamp": "1970-01-01T00:00:40Z"},
            "spec": {"nodeName": "n2", "containers": [{}]},
            "status": {
                "phase": "Running", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let wanted = [
            "web-1",
            "1/1",
            "Running",
            "0",
            "60s",
            "10.244.1.2",
            "n2",
            "<none>",
            "<none>",
        ];
        assert_eq!(printed(&pod), wanted);
        let mut lost = pod;
        lost["status"]["conditions"][0]["status"] = json!("False");
        assert_eq!(printed(&lost)[1], "0/1");
    }

    #[test]
    fn containers_have_the_last_word() {
        let pod = |state: Value| {
            let last = json!({"terminated": {"finishedAt": "1970-01-01T00:00:10Z"}});
            json!({
                "spec": {"containers": [{}, {}]},
                "status": {"phase": "Running", "containerStatuses": [
                    {"state": state, "restartCount": 2, "lastState": last}, {"ready": true, "state": {"running": {}}},
                ]},
            })
        };
        for (state, text) in [
            (json!({"running": {}}), "Running"),
            (
                json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                "CrashLoopBackOff",
            ),
            (json!({"terminated": {"exitCode": 3}}), "ExitCode:3"),
            (json!({"terminated": {"signal": 9}}), "Signal:9"),
            (json!({"terminated": {"reason": "Completed"}}), "NotReady"),
        ] {
            assert_eq!(printed(&pod(state))[2], text);
        }
        assert_eq!(
            printed(&pod(Value::Null))[1..4],
            ["1/2", "Running", "2 (90s ago)"]
        );
    }

    #[test]
    fn beginning_and_end() {
        let mut pod = json!({
            "metadata": {}, "spec": {"initContainers": [{}, {}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}, {}]},
        });
        assert_eq!(status(&pod), "Init:1/2");
        pod["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:00:10Z");
        assert_eq!(status(&pod), "Terminating");
    }
}
