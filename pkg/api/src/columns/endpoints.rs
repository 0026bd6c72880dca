//! Columns of Endpoints and EndpointSlices.

use serde_json::{Value, json};

use super::{AGE, NAME, NONE, column, first_three};
use crate::kind::Column;
use crate::rules::Fields;

pub(crate) const ENDPOINTS: [Column; 3] = [
    NAME,
    column(
        "Endpoints",
        "The set of all endpoints is the union of all subsets.",
        |endpoints, _| json!(ready_endpoints(endpoints)),
    ),
    AGE,
];

pub(crate) const ENDPOINT_SLICE: [Column; 5] = [
    NAME,
    column(
        "AddressType",
        "addressType specifies the type of address carried by this EndpointSlice.",
        |slice, _| slice["addressType"].clone(),
    ),
    column(
        "Ports",
        "ports specifies the list of network ports exposed by each endpoint in this slice.",
        |slice, _| {
            let port = |port: &Value| {
                if port.has("port") {
                    port["port"].to_string()
                } else {
                    "*".to_string()
                }
            };
            json!(or_unset(slice.list("ports").iter().map(port).collect()))
        },
    ),
    column(
        "Endpoints",
        "endpoints is a list of unique endpoints in this slice.",
        |slice, _| {
            let addresses = slice.list("endpoints").iter().flat_map(|e| e.list("addresses"));
            json!(or_unset(
                addresses.filter_map(Value::as_str).map(String::from).collect()
            ))
        },
    ),
    AGE,
];

fn ready_endpoints(endpoints: &Value) -> String {
    let subsets = endpoints.list("subsets");
    if subsets.is_empty() {
        return NONE.to_string();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = || subset.list("addresses").iter().map(|a| a.text("ip"));
        if subset.list("ports").is_empty() {
            all.extend(addresses().map(String::from));
        }
        for port in subset.list("ports") {
            let number = port.number("port");
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{number}"),
                false => format!("{ip}:{number}"),
            }));
        }
    }
    first_three(&all)
}

fn or_unset(items: Vec<String>) -> String {
    if items.is_empty() {
        "<unset>".to_string()
    } else {
        first_three(&items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_with_ports_and_shortened() {
        let printed = |subsets: Value| ready_endpoints(&json!({"subsets": subsets}));
        assert_eq!(printed(Value::Null), "<none>");
        let addresses =
            |n: usize| -> Value { (1..=n).map(|i| json!({"ip": format!("10.244.1.{i}")})).collect() };
        assert_eq!(
            printed(json!([{"addresses": addresses(2), "ports": [{"port": 80}]}])),
            "10.244.1.1:80,10.244.1.2:80"
        );
        assert_eq!(
            printed(json!([{"addresses": addresses(3), "ports": [{"port": 80}, {"port": 443}]}])),
            "10.244.1.1:80,10.244.1.2:80,10.244.1.3:80 + 3 more..."
        );
        assert_eq!(
            printed(json!([{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}])),
            "[fd00::1]:80"
        );
        assert_eq!(printed(json!([{"addresses": addresses(1)}])), "10.244.1.1");
        assert_eq!(
            printed(json!([{"notReadyAddresses": addresses(1), "ports": [{"port": 80}]}])),
            ""
        );
    }

    #[test]
    fn slices_list_ports_and_addresses() {
        let printed =
            |slice: Value| -> Vec<Value> { ENDPOINT_SLICE.iter().map(|c| (c.cell)(&slice, 0)).collect() };
        let cells = printed(json!({
            "addressType": "IPv4", "ports": [{"port": 80}, {}],
            "endpoints": [{"addresses": ["a"]}, {"addresses": ["b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}],
        }));
        assert_eq!(cells[1..4], ["IPv4", "80,*", "a,b,c + 1 more..."]);
        assert_eq!(printed(json!({}))[2..4], ["<unset>", "<unset>"]);
    }
}
