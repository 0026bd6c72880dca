//! `svcnet controller`: the controllers alone.

use std::path::PathBuf;

use svcnet_api::wellknown::DEFAULT_KUBECONFIG;
use svcnet_controller::alloc::ServiceAllocator;
use svcnet_controller::{Controllers, Timing};
use svcnet_runtime::Context;

use super::flags::{Cluster, ClusterFlags, NodeFlags, OpsFlags, ProcessFlags};
use crate::process::{self, Process};
use crate::settings::{Given, Problems};

const OPS_PORT: u16 = 10257;

/// The controllers alone: endpoints, node life, pod networks, LoadBalancer addresses
///
/// They make endpoints from the pods that a Service selects, give each node its pod network, notice nodes that are gone
/// by their Leases, give LoadBalancer Services addresses from pools, and finish the deletion of namespaces. Of several
/// such processes, one works: the holder of the Lease kube-system/svcnet-controller.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    process: ProcessFlags,
    #[command(flatten)]
    ops: OpsFlags,
    #[command(flatten)]
    node: NodeFlags,
    /// Follow the API that this kubeconfig names, as an administrator
    #[arg(long, value_name = "FILE", help_heading = "API", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    cluster: ClusterFlags,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let logging = args.process.logging(&mut problems);
    let ops = args.ops.address(OPS_PORT, &mut problems);
    let name = args.node.name(&mut problems);
    let cluster = args.cluster.parse(&mut problems);
    problems.check()?;
    let (places, kubeconfig) = (args.process.places(), args.kubeconfig.clone());
    process::run(&logging, async |process| {
        process.serve_ops(ops).await?;
        let ctx = process.context(&kubeconfig, &name, &places).await?;
        start(process, &ctx, cluster.as_ref(), None)?;
        ctx.informers.start();
        Ok(())
    })
}

/// Starts the controllers; `allocator` is that of an API server in this process.
pub(crate) fn start(
    process: &mut Process,
    ctx: &Context,
    cluster: Option<&Cluster>,
    allocator: Option<ServiceAllocator>,
) -> anyhow::Result<()> {
    let Some(cluster) = cluster else { return Ok(()) };
    let config = svcnet_controller::Config {
        cluster_cidr: cluster.cluster_cidr.clone(),
        allocator,
    };
    Controllers::check(&config)?;
    let ctx = ctx.clone();
    process.spawn("controller", async move {
        svcnet_controller::lead(config, &ctx, Timing::default()).await
    });
    Ok(())
}
