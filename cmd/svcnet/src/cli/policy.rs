//! `svcnet policy`: what NetworkPolicies do, before they do it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::ListParams;
use serde::Deserialize;
use svcnet_netlink::nft::{Family, Socket};
use svcnet_netlink::{Rtnl, conntrack};
use svcnet_policy::audit::{self, Finding, Flow};
use svcnet_policy::model::{ObjectKey, Policy, Protocol};
use svcnet_policy::view::{PodFacts, View};
use svcnet_runtime::connect;

use super::beside::{LookFlags, PATIENCE, data_dir};

/// What NetworkPolicies do
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Audit(Audit),
}

/// What policies would deny, before they are in force
///
/// With a file, what would change if it were applied: which connections between pods would be denied that are not denied
/// now, at the ports that the pods declare. Without, what the policies of the cluster deny. In both cases those of the
/// connections that this host tracks which would be cut. Ends with status 1 when something would be denied.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet policy audit -f policy.yaml       what policy.yaml would deny
  svcnet policy audit                      what is denied between pods")]
struct Audit {
    /// Policies that are not applied yet: YAML or JSON
    #[arg(long, short, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// The namespace of policies in the file that name none
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    look: LookFlags,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Audit(audit) = &args.command;
    let kubeconfig = audit.look.kubeconfig(&data_dir());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = async {
        tokio::time::timeout(PATIENCE, cluster(&kubeconfig))
            .await
            .context("the API does not answer")?
    };
    let (view, ports) = runtime.block_on(asked)?;
    let mut after = view.clone();
    let mut before = view;
    match &audit.filename {
        Some(path) => {
            for (key, policy) in read(path, &audit.namespace)? {
                after.policies.insert(key, policy);
            }
        }
        None => before.policies.clear(),
    }
    let pairs = audit::pairs(&before, &after, &ports);
    let standing = audit::flows(&after, flows()?);
    let title = if audit.filename.is_some() {
        "would be denied between pods"
    } else {
        "denied between pods"
    };
    print(title, &pairs);
    print("connections of this host that would be cut", &standing);
    Ok(if pairs.is_empty() && standing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(title: &str, findings: &[Finding]) {
    if findings.is_empty() {
        println!("{title}: none");
        return;
    }
    println!("{title}:");
    for finding in findings {
        println!("  {finding}");
    }
}

type Ports = BTreeMap<ObjectKey, Vec<(Protocol, u16)>>;

/// What policies look at, and the ports that pods declare.
async fn cluster(kubeconfig: &Path) -> anyhow::Result<(View, Ports)> {
    let client = connect::client(kubeconfig).await?;
    let all = ListParams::default();
    let (namespaces, pods, policies) = (
        Api::<Namespace>::all(client.clone()),
        Api::<Pod>::all(client.clone()),
        Api::<NetworkPolicy>::all(client),
    );
    let (namespaces, pods, policies) =
        tokio::try_join!(namespaces.list(&all), pods.list(&all), policies.list(&all))
            .with_context(|| format!("ask the API that {} names", kubeconfig.display()))?;
    let (mut view, mut ports) = (View::default(), Ports::new());
    for namespace in namespaces.items {
        let labels = namespace.metadata.labels.unwrap_or_default();
        view.namespaces
            .insert(namespace.metadata.name.unwrap_or_default(), labels);
    }
    for pod in pods.items {
        let key = ObjectKey::new(
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        view.pods.insert(key.clone(), PodFacts::of(&pod, ""));
        let containers = pod.spec.into_iter().flat_map(|spec| spec.containers);
        let declared = containers
            .flat_map(|c| c.ports.unwrap_or_default())
            .filter_map(|port| {
                Some((
                    Protocol::from_api(port.protocol.as_deref())?,
                    u16::try_from(port.container_port).ok()?,
                ))
            });
        ports.insert(key, declared.collect());
    }
    for object in policies.items {
        let key = ObjectKey::new(
            object.metadata.namespace.clone().unwrap_or_default(),
            object.metadata.name.clone().unwrap_or_default(),
        );
        match Policy::parse(&key.namespace, &object) {
            Ok((policy, _)) => _ = view.policies.insert(key, policy),
            Err(error) => {
                eprintln!("svcnet: the NetworkPolicy {key} makes no sense and is left out: {error}")
            }
        }
    }
    Ok((view, ports))
}

/// The policies in a file.
fn read(path: &Path, namespace: &str) -> anyhow::Result<Vec<(ObjectKey, Policy)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{} is no YAML", path.display()))?;
    let mut policies = Vec::new();
    for document in documents.iter().filter(|document| !document.is_null()) {
        let items = match document["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![document.clone()],
        };
        for item in items {
            let object = NetworkPolicy::deserialize(&item)
                .with_context(|| format!("{} holds something that is no NetworkPolicy", path.display()))?;
            let of = object
                .metadata
                .namespace
                .clone()
                .unwrap_or_else(|| namespace.to_string());
            let key = ObjectKey::new(of, object.metadata.name.clone().unwrap_or_default());
            let (policy, problems) = Policy::parse(&key.namespace, &object)
                .with_context(|| format!("the NetworkPolicy {key} in {}", path.display()))?;
            if let Some(problem) = problems.first() {
                anyhow::bail!("the NetworkPolicy {key} in {}: {problem}", path.display());
            }
            policies.push((key, policy));
        }
    }
    Ok(policies)
}

/// The connections that this host tracks.
fn flows() -> anyhow::Result<Vec<Flow>> {
    // What a pod's own node sends is let in whatever policies say.
    let own: BTreeSet<IpAddr> = Rtnl::open()?
        .addresses(None)?
        .into_iter()
        .map(|address| address.net.addr())
        .collect();
    let mut socket = Socket::open()?;
    let mut flows = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        for protocol in Protocol::ALL {
            let found = conntrack::list(&mut socket, family, protocol.number(), conntrack::Entry::is_live)
                .context("list the connections that this host tracks")?;
            let of_others = found
                .into_iter()
                .filter(|entry| !own.contains(&entry.original.source.ip()));
            flows.extend(of_others.map(|entry| Flow {
                from: entry.original.source,
                to: entry.reply.source,
                protocol: protocol.number(),
            }));
        }
    }
    Ok(flows)
}
