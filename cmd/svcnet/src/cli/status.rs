//! `svcnet status`: health at a glance.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use svcnet_api::wellknown::LABEL_SERVICE_NAME;
use svcnet_overlay::{Checksums, Told};
use svcnet_proxy::inspect::{self, Facts};
use svcnet_runtime::{connect, ops};
use svcnet_why::look::Here;

use super::beside::{self, LookFlags, Objects, PATIENCE};
use super::lab::print_table;
use crate::settings::{Given, Problems};

/// Health at a glance: this host's roles, the cluster's nodes, Services with a problem
///
/// Ends with status 1 when something is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    look: LookFlags,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<ExitCode> {
    let mut problems = Problems::new(given);
    let address = args.look.address(&mut problems);
    problems.check()?;
    let mut out = io::stdout().lock();
    let mut well = address.is_none_or(|address| print_local(&mut out, address));
    let local = address.and_then(|address| ops::status(address).ok());
    let overlay = local.as_ref().and_then(|status| status.get("overlay"));
    let overlay = overlay.and_then(|part| serde_json::from_value(part.facts.clone()).ok());
    let local = local.and_then(Here::of_agent);
    let data_dir = local
        .as_ref()
        .map_or_else(beside::data_dir, |(here, _)| here.data_dir.clone());
    let kubeconfig = args.look.kubeconfig(&data_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let Some(told) = &overlay {
        well &= print_overlay(&mut out, told)?;
    }
    match runtime.block_on(Cluster::read(&kubeconfig)) {
        Ok(cluster) => {
            if let Some((_, facts)) = &local {
                well &= print_proxy(&mut out, facts, &cluster)?;
            }
            well &= cluster.print(&mut out)?;
        }
        Err(error) => {
            writeln!(out, "\nAPI: {error:#}")?;
            well = false;
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// This host's process.
fn print_local(out: &mut impl Write, address: SocketAddr) -> bool {
    let (well, line) = match svcnet_lab::up::ready(address) {
        Ok((true, _)) => (true, "all roles are ready".to_string()),
        Ok((false, why)) => (false, format!("not ready: {why}")),
        Err(error) => (false, format!("svcnet does not answer at {address}: {error}")),
    };
    // That nobody reads is no reason to stop looking.
    _ = writeln!(out, "This host: {line}");
    well
}

/// This host's overlay: how the other nodes are reached, and what is not as it should be.
fn print_overlay(out: &mut impl Write, told: &Told) -> io::Result<bool> {
    let Told {
        mode,
        link,
        mtu,
        encapsulated,
        direct,
        ..
    } = told;
    let address = told
        .address
        .map(|address| format!("{address}, "))
        .unwrap_or_default();
    let checksums = match told.checksums {
        Checksums::Untested => "not tested",
        Checksums::Right => "right",
        Checksums::Corrupted => "WRONG when left to the link, so computed before (slower)",
        Checksums::Off => "computed before, as it was found",
    };
    write!(
        out,
        "Overlay: {mode} over {link} ({address}mtu {mtu}), {encapsulated} peers encapsulated, {direct} direct"
    )?;
    if *encapsulated > 0 {
        write!(out, "; checksums in VXLAN: {checksums}")?;
    }
    writeln!(out)?;
    for (node, bytes) in &told.limited {
        writeln!(
            out,
            "  to {node} pass {bytes} bytes at most: packets are cut before, and TCP is told"
        )?;
    }
    for (node, why) in &told.unreachable {
        writeln!(out, "  NO WAY to pods of {node}: {why}")?;
    }
    Ok(told.unreachable.is_empty())
}

/// This host's proxy: what it does, and whether the kernel holds it.
fn print_proxy(out: &mut impl Write, facts: &inspect::Facts, cluster: &Cluster) -> io::Result<bool> {
    let synced = match facts.last_sync {
        Some(at) => {
            let age = Timestamp::now().duration_since(at).as_secs().max(0);
            format!("last change {age} s ago")
        }
        None => "nothing programmed yet".to_string(),
    };
    let objects = Objects {
        services: cluster.services.iter().cloned().map(Arc::new).collect(),
        slices: cluster.slices.iter().cloned().map(Arc::new).collect(),
        node: cluster
            .nodes
            .iter()
            .find(|node| node.metadata.name.as_ref() == Some(&facts.node))
            .cloned(),
    };
    let (well, kernel) = match super::inspect::drift(facts, &objects) {
        Ok(0) => (true, ", the kernel holds it all".to_string()),
        Ok(operations) => (
            false,
            format!(", THE KERNEL DIFFERS by {operations} operations: svcnet proxy diff"),
        ),
        Err(error) => (true, format!(", not compared with the kernel: {error}")),
    };
    let Facts { mode, frontends, .. } = facts;
    writeln!(out, "Proxy: mode {mode}, {frontends} frontends, {synced}{kernel}")?;
    Ok(well)
}

struct Cluster {
    nodes: Vec<Node>,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl Cluster {
    async fn read(kubeconfig: &Path) -> anyhow::Result<Self> {
        let client = connect::client(kubeconfig).await?;
        let all = ListParams::default();
        let (nodes, services, slices) = (
            Api::<Node>::all(client.clone()),
            Api::<Service>::all(client.clone()),
            Api::<EndpointSlice>::all(client),
        );
        let lists = async { tokio::try_join!(nodes.list(&all), services.list(&all), slices.list(&all)) };
        let (nodes, services, slices) = tokio::time::timeout(PATIENCE, lists)
            .await
            .context("the API does not answer")?
            .with_context(|| format!("ask the API that {} names", kubeconfig.display()))?;
        Ok(Self {
            nodes: nodes.items,
            services: services.items,
            slices: slices.items,
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<bool> {
        let mut rows = vec![["NODE", "STATE", "ADDRESS", "PODS"].map(str::to_string)];
        rows.extend(self.nodes.iter().map(node_row));
        writeln!(out)?;
        print_table(out, &rows)?;
        // It works, if not as it was asked for: no reason to call anything broken.
        for line in self.nodes.iter().filter_map(proxy_mode) {
            writeln!(out, "  {line}")?;
        }
        let nodes_well = rows.iter().skip(1).all(|row| row[1] == "Ready");
        let troubled: Vec<String> = self
            .services
            .iter()
            .filter_map(|service| self.trouble(service))
            .collect();
        writeln!(
            out,
            "\n{} Services, {} with a problem",
            self.services.len(),
            troubled.len()
        )?;
        for line in &troubled {
            writeln!(out, "  {line}")?;
        }
        Ok(nodes_well && troubled.is_empty())
    }

    /// What is wrong with a Service, if anything is.
    fn trouble(&self, service: &Service) -> Option<String> {
        let spec = service.spec.as_ref()?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            return None;
        }
        let name = service.metadata.name.as_deref()?;
        let namespace = service.metadata.namespace.as_deref()?;
        let ready = self.slices.iter().any(|slice| {
            let of = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(LABEL_SERVICE_NAME));
            let here =
                slice.metadata.namespace.as_deref() == Some(namespace) && of.is_some_and(|of| of == name);
            let mut endpoints = slice.endpoints.iter().flatten();
            here && endpoints.any(|endpoint| {
                let ready = endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready);
                ready != Some(false)
            })
        });
        // Without a selector somebody else answers for it: kube-dns is each node's own.
        let selects = spec
            .selector
            .as_ref()
            .is_some_and(|selector| !selector.is_empty());
        let addresses = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let has_address = addresses.is_some_and(|lb| lb.ingress.as_ref().is_some_and(|all| !all.is_empty()));
        let why = if kind == "LoadBalancer" && !has_address {
            "has no LoadBalancer address: is there an IPAddressPool with a free one?"
        } else if !ready && selects {
            "has no ready endpoint: connections to it are refused"
        } else {
            return None;
        };
        Some(format!("{namespace}/{name} {why}"))
    }
}

/// What a node says of its proxy, where that has not the mode that is asked for.
fn proxy_mode(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let mode = conditions
        .iter()
        .find(|condition| condition.type_ == svcnet_proxy::CONDITION && condition.status != "True")?;
    let name = node.metadata.name.as_deref().unwrap_or_default();
    Some(format!(
        "{name}: proxy mode: {}",
        mode.message.as_deref().unwrap_or_default()
    ))
}

fn node_row(node: &Node) -> [String; 4] {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let state = match ready {
        Some(condition) if condition.status == "True" => "Ready".to_string(),
        Some(condition) => format!("NotReady ({})", condition.reason.as_deref().unwrap_or("unknown")),
        None => "NotReady (says nothing)".to_string(),
    };
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let address = addresses.and_then(|all| all.iter().find(|address| address.type_ == "InternalIP"));
    let pods = node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone());
    [
        node.metadata.name.clone().unwrap_or_default(),
        state,
        address.map_or_else(|| "-".to_string(), |address| address.address.clone()),
        pods.unwrap_or_else(|| "-".to_string()),
    ]
}
