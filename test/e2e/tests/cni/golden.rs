//! Each verb in each version of the protocol, against what it answered when somebody last read it. After a change that is
//! meant, `SVCNET_GOLDEN=write` writes the files anew.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use svcnet_e2e::Lab;
use svcnet_e2e::chain::{Attached, Chain};
use svcnet_netlink::netns::OwnedNetNs;

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a transcript says of each call.
struct Transcript {
    text: String,
    /// What differs from run to run, and what stands for it.
    names: Vec<(String, &'static str)>,
}

impl Transcript {
    fn note(&mut self, what: &str, answer: &Result<Value, Value>) {
        let (how, value) = match answer {
            Ok(value) => ("answers", value),
            Err(value) => ("fails with", value),
        };
        let mut shown = if value.is_null() {
            "nothing".to_string()
        } else {
            format!("{value:#}")
        };
        for (name, stands) in &self.names {
            shown = shown.replace(name, stands);
        }
        writeln!(self.text, "{what} {how} {shown}\n").unwrap();
    }
}

#[test]
fn every_verb_in_every_version_answers_as_it_did() {
    let lab = Lab::up(&["--nodes", "1", "--dual-stack"]);
    let mut wrong = Vec::new();
    for version in VERSIONS {
        let text = transcript(&lab, version);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cni/golden/{version}.txt"));
        if std::env::var_os("SVCNET_GOLDEN").is_some_and(|v| v == "write") {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        if text != golden {
            wrong.push(format!("{}: it is now\n{text}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A container's life, and what is refused.
fn transcript(lab: &Lab, version: &str) -> String {
    let chain = Chain::of(lab, "n1", version);
    let plugin = &chain.plugins[0];
    let netns = OwnedNetNs::unique("e2e-golden").unwrap();
    let mut container = Attached::pod("golden", netns.path());
    // The same addresses in each version, whatever was given before.
    let ips = json!(["10.244.0.77", "fd00:10:244::77"]);
    container.runtime =
        json!({ "ips": ips, "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    let added = chain.add(&container);
    let result = added.clone().unwrap_or_default();
    let names = [
        (container.netns.clone(), "NETNS"),
        (text(&result["interfaces"][1]["name"]), "VETH"),
        (text(&result["interfaces"][1]["mac"]), "MAC"),
    ];
    let mut transcript = Transcript {
        text: String::new(),
        names: names.into_iter().filter(|(name, _)| !name.is_empty()).collect(),
    };
    transcript.note(
        "VERSION",
        &chain.call("VERSION", &Attached::default(), plugin, &Value::Null),
    );
    transcript.note("ADD", &added);
    transcript.note("ADD again", &chain.call("ADD", &container, plugin, &Value::Null));
    transcript.note("CHECK", &chain.call("CHECK", &container, plugin, &result));
    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.244.0.99/32");
    transcript.note(
        "CHECK of another result",
        &chain.call("CHECK", &container, plugin, &other),
    );
    transcript.note(
        "STATUS",
        &chain.call("STATUS", &Attached::default(), plugin, &Value::Null),
    );
    let mut valid = plugin.clone();
    valid["cni.dev/valid-attachments"] = json!([{ "containerID": "golden", "ifname": "eth0" }]);
    transcript.note(
        "GC with it valid",
        &chain.call("GC", &Attached::default(), &valid, &Value::Null),
    );
    transcript.note(
        "CHECK after GC",
        &chain.call("CHECK", &container, plugin, &result),
    );
    transcript.note("DEL", &chain.call("DEL", &container, plugin, &result));
    transcript.note("DEL again", &chain.call("DEL", &container, plugin, &Value::Null));
    transcript.note(
        "CHECK after DEL",
        &chain.call("CHECK", &container, plugin, &result),
    );
    refusals(&chain, &container, &mut transcript);
    transcript.text
}

fn refusals(chain: &Chain, container: &Attached, transcript: &mut Transcript) {
    let plugin = &chain.plugins[0];
    let mut gone = container.clone();
    gone.netns = "/run/netns/e2e-nosuch".to_string();
    transcript.note(
        "ADD without a namespace",
        &chain.call("ADD", &gone, plugin, &Value::Null),
    );
    transcript.note(
        "DEL without a namespace",
        &chain.call("DEL", &gone, plugin, &Value::Null),
    );
    let nobody = Attached::default();
    transcript.note("ADD of nobody", &chain.call("ADD", &nobody, plugin, &Value::Null));
    transcript.note("FLY", &chain.call("FLY", container, plugin, &Value::Null));
    let mut config = plugin.clone();
    config["cniVersion"] = json!(chain.version);
    transcript.note(
        "ADD to a network without a name",
        &chain.run("ADD", container, &config),
    );
    config["name"] = json!("svcnet");
    config["runtimeConfig"] = json!({ "bandwidth": { "ingressRate": 1000 } });
    transcript.note("ADD with half a limit", &chain.run("ADD", container, &config));
    config["runtimeConfig"] = json!({ "ips": ["192.0.2.1"] });
    transcript.note(
        "ADD with an address of elsewhere",
        &chain.run("ADD", container, &config),
    );
    config["runtimeConfig"] = Value::Null;
    config["cniVersion"] = json!("0.2.0");
    transcript.note("ADD in version 0.2.0", &chain.run("ADD", container, &config));
    config["socket"] = json!("/run/e2e-nosuch.sock");
    config["cniVersion"] = json!(chain.version);
    config.as_object_mut().unwrap().remove("dataDir");
    transcript.note("ADD without the agent", &chain.run("ADD", container, &config));
    transcript.note("STATUS without the agent", &chain.run("STATUS", &nobody, &config));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
