//! `CNI_ARGS`: `KEY=VALUE;…`.

use serde_json::Value;

use super::{CniError, PodRef, code};

/// The arguments that svcnet knows; others are for others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Args {
    pub(super) pod: Option<PodRef>,
    /// `MAC`, as text.
    pub(super) mac: Option<String>,
    ip: Option<String>,
}

impl Args {
    /// Reads the variable.
    ///
    /// # Errors
    /// When it is not made of pairs.
    pub(super) fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let mut namespace = None;
        let mut name = None;
        let mut uid = None;
        for pair in text.split(';').filter(|p| !p.trim().is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(CniError::new(code::ENVIRONMENT, "CNI_ARGS: invalid pair")
                    .because(format_args!("{pair:?}")));
            };
            let value = Some(value.to_string()).filter(|v| !v.is_empty());
            match key.trim() {
                "K8S_POD_NAMESPACE" => namespace = value,
                "K8S_POD_NAME" => name = value,
                "K8S_POD_UID" => uid = value,
                "IP" => args.ip = value,
                "MAC" => args.mac = value,
                _ => {}
            }
        }
        // podman gives a name alone.
        let namespace = namespace.unwrap_or_else(|| "default".to_string());
        args.pod = name.map(|name| PodRef { namespace, name, uid });
        Ok(args)
    }

    /// The addresses of `IP`, with commas between, as the list that `runtimeConfig` would have.
    pub(super) fn ips(&self) -> Value {
        let list = self.ip.iter().flat_map(|text| text.split(','));
        list.map(str::trim).collect::<Vec<_>>().into()
    }
}
