//! Columns of Events.

use serde_json::{Value, json};

use super::{NAME, age_since, column, wide};
use crate::kind::Column;
use crate::rules::Fields;

pub(crate) const EVENT: [Column; 10] = [
    column(
        "Last Seen",
        "The time at which the most recent occurrence of this event was recorded.",
        |event, now| json!(age_since(last_seen(event), now)),
    ),
    column(
        "Type",
        "Type of this event (Normal, Warning), new types could be added in the future",
        |event, _| event["type"].clone(),
    ),
    column(
        "Reason",
        "This should be a short, machine understandable string that gives the reason for the transition into the \
         object's current status.",
        |event, _| event["reason"].clone(),
    ),
    column("Object", "The object that this event is about.", |event, _| {
        json!(object(event))
    }),
    wide(column(
        "Subobject",
        "The part of the object that this event is about.",
        |event, _| json!(event["involvedObject"].text("fieldPath")),
    )),
    wide(column(
        "Source",
        "The component reporting this event. Should be a short machine understandable string.",
        |event, _| json!(source(event)),
    )),
    column(
        "Message",
        "A human-readable description of the status of this operation.",
        |event, _| json!(event.text("message").trim()),
    ),
    wide(column(
        "First Seen",
        "The time at which the event was first recorded.",
        |event, now| json!(age_since(first_seen(event), now)),
    )),
    wide(Column {
        type_: "integer",
        ..column(
            "Count",
            "The number of times this event has occurred.",
            |event, _| json!(count(event)),
        )
    }),
    wide(NAME),
];

fn first_seen(event: &Value) -> &str {
    match event.text("firstTimestamp") {
        "" => event.text("eventTime"),
        time => time,
    }
}

fn last_seen(event: &Value) -> &str {
    let series = event["series"].text("lastObservedTime");
    [series, event.text("lastTimestamp")]
        .into_iter()
        .find(|t| !t.is_empty())
        .unwrap_or_else(|| first_seen(event))
}

fn count(event: &Value) -> i64 {
    let series = event["series"].number("count");
    if series > 0 {
        series
    } else {
        event.number("count").max(1)
    }
}

fn object(event: &Value) -> String {
    let (kind, name) = (
        event["involvedObject"].text("kind"),
        event["involvedObject"].text("name"),
    );
    let kind = kind.to_lowercase();
    if name.is_empty() {
        kind
    } else {
        format!("{kind}/{name}")
    }
}

fn source(event: &Value) -> String {
    let (component, host) = (event["source"].text("component"), event["source"].text("host"));
    let component = if component.is_empty() {
        event.text("reportingComponent")
    } else {
        component
    };
    if host.is_empty() {
        component.to_string()
    } else {
        format!("{component}, {host}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_prints() {
        let event = json!({
            "metadata": {"name": "nginx.17"}, "type": "Normal", "reason": "IPAllocated",
            "message": " Assigned IP [\"172.30.0.240\"]\n", "firstTimestamp": "1970-01-01T00:00:00Z",
            "lastTimestamp": "1970-01-01T00:01:00Z", "count": 3,
            "involvedObject": {"kind": "Service", "name": "nginx"}, "source": {"component": "svcnet-controller"},
        });
        let cells: Vec<Value> = EVENT.iter().map(|c| (c.cell)(&event, 100)).collect();
        assert_eq!(
            cells,
            [
                json!("40s"),
                json!("Normal"),
                json!("IPAllocated"),
                json!("service/nginx"),
                json!(""),
                json!("svcnet-controller"),
                json!("Assigned IP [\"172.30.0.240\"]"),
                json!("100s"),
                json!(3),
                json!("nginx.17"),
            ]
        );
        let newer = json!({"eventTime": "1970-01-01T00:00:10.000000Z"});
        assert_eq!(((EVENT[0].cell)(&newer, 100), count(&newer)), (json!("90s"), 1));
    }
}
