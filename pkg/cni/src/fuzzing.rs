//! What `fuzz/` runs over any bytes, and the tests over the seeds of `fuzz/seeds`: what runtimes say may be refused, but
//! never brings the plugin or the daemon down.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a broken promise is what is looked for"
)]

use std::collections::HashMap;

use crate::cri;
use crate::protocol::{AddResult, Command, Invocation, RuntimeConfig, Version};

/// Lines of the environment, `NAME=VALUE`; behind an empty line, the configuration in JSON.
pub fn config(data: &[u8]) {
    let end = data.windows(2).position(|w| w == b"\n\n").unwrap_or(data.len());
    let environment: HashMap<String, String> = String::from_utf8_lossy(&data[..end])
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let stdin = data.get(end + 2..).unwrap_or_default();
    let invocation = match Invocation::from_env(|name| environment.get(name).cloned(), stdin) {
        Ok(invocation) => invocation,
        Err(error) => {
            error.render("1.1.0");
            return;
        }
    };
    // The plugin hands it on to the daemon as it is.
    let sent = serde_json::to_vec(&invocation).expect("JSON");
    let came: Invocation = serde_json::from_slice(&sent).expect("what the plugin sends is read");
    let request = match came.parse() {
        Ok(request) => request,
        Err(error) => {
            error.render("1.1.0");
            return;
        }
    };
    if let Some(attachment) = &request.attachment {
        assert!(
            !attachment.container().contains('/') && !attachment.ifname().contains('/'),
            "they name files"
        );
    }
    assert!(request.command == Command::Version || !request.config.name.is_empty());
    // It is kept with the lease.
    let kept = serde_json::to_vec(&request.runtime).expect("JSON");
    let again: RuntimeConfig = serde_json::from_slice(&kept).expect("what was kept is read");
    assert_eq!(again, request.runtime);
    for version in Version::ALL {
        AddResult::default().render(version, request.config.prev_result.as_ref());
    }
}

/// An answer of a container runtime, in protobuf.
pub fn cri(data: &[u8]) {
    let reader = cri::Reader(data);
    for field in 1..8 {
        reader.all(field).for_each(drop);
        reader.text(field);
        reader.number(field);
        reader.map(field);
        if let Some(inner) = reader.message(field) {
            inner.map(1);
            inner.text(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/over_seeds.rs"));

    #[test]
    fn seeds_keep_the_promises() {
        for (target, run) in [("cni", config as fn(&[u8])), ("cri", cri)] {
            over_seeds(target, run);
        }
    }
}
