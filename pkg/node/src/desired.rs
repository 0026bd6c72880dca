//! What the Node object of this machine should say.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Label that names the machine.
pub(crate) const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";
const LABEL_OS: &str = "kubernetes.io/os";
const LABEL_ARCH: &str = "kubernetes.io/arch";
/// What we say as the kubelet's version; `kubectl get nodes` shows it.
const KUBELET_VERSION: &str = "v1.33.0+svcnet";

/// What the machine is, as `Node.status.nodeInfo` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// As in `6.1.0-18-amd64`.
    pub kernel_version: String,
    /// As in `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// As Go calls it: `amd64`, `arm64`.
    pub architecture: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// Another one after each boot.
    pub boot_id: String,
    /// Processors.
    pub cpus: usize,
    /// Main memory.
    pub memory_kib: u64,
}

/// The parts of a Node that are this role's; the rest belongs to users and controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredNode {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What the annotation of taken ports is to say; none while that is not known.
    pub(crate) host_ports: Option<String>,
    /// Type and address, in order.
    pub(crate) addresses: Vec<(&'static str, String)>,
    pub(crate) machine: Machine,
    pub(crate) kubelet_version: &'static str,
}

/// The Node of a machine with these addresses, the first one first.
pub(crate) fn desired(name: &str, addresses: &[IpAddr], machine: &Machine) -> DesiredNode {
    let internal = addresses
        .iter()
        .map(|address| ("InternalIP", address.to_string()));
    DesiredNode {
        name: name.to_string(),
        labels: [
            (LABEL_HOSTNAME.to_string(), name.to_string()),
            (LABEL_OS.to_string(), "linux".to_string()),
            (LABEL_ARCH.to_string(), machine.architecture.clone()),
        ]
        .into(),
        host_ports: None,
        addresses: internal.chain([("Hostname", name.to_string())]).collect(),
        machine: machine.clone(),
        kubelet_version: KUBELET_VERSION,
    }
}

impl Machine {
    /// The machine that this process runs on. What cannot be read stays empty: it is for people to look at.
    pub fn this() -> Self {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_string()
        };
        Self {
            kernel_version: read("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&read("/etc/os-release")).unwrap_or_else(|| "Linux".to_string()),
            architecture: go_architecture(std::env::consts::ARCH).to_string(),
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: memory_kib(&read("/proc/meminfo")).unwrap_or_default(),
        }
    }
}

fn memory_kib(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_string())
}

fn go_architecture(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::this();
        assert!(!machine.kernel_version.is_empty() && !machine.architecture.is_empty());
        assert_eq!(
            pretty_name("ID=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n").as_deref(),
            Some("Debian GNU/Linux 12")
        );
        assert_eq!(pretty_name(""), None);
        assert_eq!(
            memory_kib("MemTotal:       24689876 kB\nMemFree: 1 kB"),
            Some(24_689_876)
        );
        assert!(machine.cpus > 0 && machine.memory_kib > 0);
    }

    #[test]
    fn addresses_come_in_the_given_order_and_the_name_last() {
        let ips = ["172.30.0.11".parse().unwrap(), "fd00::11".parse().unwrap()];
        let node = desired("n1", &ips, &Machine::default());
        let addresses: Vec<String> = node
            .addresses
            .iter()
            .map(|(kind, a)| format!("{kind} {a}"))
            .collect();
        assert_eq!(
            addresses,
            ["InternalIP 172.30.0.11", "InternalIP fd00::11", "Hostname n1"]
        );
    }
}
