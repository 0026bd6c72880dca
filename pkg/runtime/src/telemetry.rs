//! Logs and metrics of the process.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How log lines look (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line an event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Metrics or logs were set up twice.
#[derive(Debug, thiserror::Error)]
#[error("telemetry is already set up")]
pub struct AlreadySetUp;

/// Sends logs to standard error. `filter` is a `tracing` directive such as `info` or `svcnet_proxy=debug`; the
/// libraries below us speak up from `warn`, but for the one whose warnings our own watches already tell.
///
/// # Errors
/// When called twice.
pub fn log_to_stderr(filter: &str, format: LogFormat) -> Result<(), AlreadySetUp> {
    let directives = format!(
        "warn,kube_client=error,svcnet={filter},{}",
        svcnet_directives(filter)
    );
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|_| AlreadySetUp)
}

/// Takes in everything that the `metrics` macros record. The handle renders it for `/metrics`.
///
/// # Errors
/// When called twice.
pub fn record_metrics() -> Result<PrometheusHandle, AlreadySetUp> {
    PrometheusBuilder::new()
        .set_buckets(&[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0])
        .map_err(|_| AlreadySetUp)?
        .install_recorder()
        .map_err(|_| AlreadySetUp)
}

/// A bare level means that level for all crates of ours; a directive with a target stands as it is.
fn svcnet_directives(filter: &str) -> String {
    const CRATES: [&str; 11] = [
        "api",
        "store",
        "apiserver",
        "controller",
        "runtime",
        "netlink",
        "node",
        "overlay",
        "cni",
        "proxy",
        "dns",
    ];
    if filter.contains('=') {
        return filter.to_string();
    }
    let mut directives: Vec<String> = CRATES
        .iter()
        .map(|name| format!("svcnet_{name}={filter}"))
        .collect();
    directives.extend(["announcer", "lab"].map(|name| format!("svcnet_{name}={filter}")));
    directives.join(",")
}
