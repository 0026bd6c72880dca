//! `svcnet cleanup`: away with what svcnet made in this host's network.

use std::path::PathBuf;

use svcnet_api::wellknown::{DEFAULT_DATA_DIR, DEFAULT_KUBECONFIG, DEFAULT_RUN_DIR};

use crate::cleanup::{self, Extent};
use crate::settings::{Given, Problems};

/// Remove from this host all that svcnet made in its network, and nothing else
///
/// Its links with their addresses and routes, its nftables tables, the cluster DNS address on lo, its sockets, its plugin and
/// network configuration for container runtimes; kernel parameters are as they were before. Not state and
/// settings: --data takes the state too.
///
/// Stop svcnet first. What was never made, or is gone already, is no error.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the state is
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Where the sockets are
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Addresses of the cluster's DNS, which were put on the link lo
    #[arg(long, value_name = "ADDRESSES", default_value = svcnet_api::wellknown::DEFAULT_CLUSTER_DNS)]
    cluster_dns: String,
    /// Where container runtimes look for network configurations: ours goes from there
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where they look for plugins: ours goes from there
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where the server has written the administrator's kubeconfig
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig_out: PathBuf,
    /// Remove the state as well: the store, certificates, address leases, the administrator's kubeconfig
    #[arg(long)]
    data: bool,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args, given: &Given) -> anyhow::Result<()> {
    let mut problems = Problems::new(given);
    let extent = Extent {
        cluster_dns: problems.parse_list("cluster-dns", &args.cluster_dns),
        run_dir: args.run_dir.clone(),
        data_dir: args.data.then(|| args.data_dir.clone()),
        kubeconfig: args.data.then(|| args.kubeconfig_out.clone()),
        cni_conf_dir: args.cni_conf_dir.clone(),
        cni_bin_dir: args.cni_bin_dir.clone(),
    };
    problems.check()?;
    let plan = cleanup::plan(&extent)?;
    if plan.is_empty() {
        println!("nothing of svcnet is left in this host's network");
        return Ok(());
    }
    if args.dry_run {
        print!("{plan}");
        return Ok(());
    }
    cleanup::apply(&plan, &mut |operation| println!("{operation}"))?;
    Ok(())
}
