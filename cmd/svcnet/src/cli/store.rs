//! `svcnet store`: a server's data as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde::Deserialize;
use svcnet_api::wellknown::{DEFAULT_DATA_DIR, DEFAULT_KUBECONFIG};
use svcnet_apiserver::{Contents, Error, OpenError, check_store, restore_datastore, restore_store};
use svcnet_runtime::connect;

use super::datastore::EtcdFlags;
use super::lab::print_table;
use crate::settings::{Given, Problems};

const PATH: &str = "/svcnet/v1/store";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Snapshot(SnapshotArgs),
    Restore(RestoreArgs),
    Check(CheckArgs),
}

/// Write all that a server holds to a file, at one revision and while it works
///
/// Secrets are encrypted in it: keep a copy of DATA-DIR/encryption.key and DATA-DIR/pki with it. What only lives in memory
/// (Leases) is not in it.
#[derive(Debug, clap::Args)]
pub(crate) struct SnapshotArgs {
    /// The file; it must not be there
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The administrator's kubeconfig
    #[arg(long, value_name = "FILE", env = "KUBECONFIG", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig: PathBuf,
}

/// Make the store of a server that is stopped out of a snapshot
///
/// Revisions go on far behind those of the snapshot, so that clients list anew. With --datastore-endpoint the snapshot is put into
/// an etcd, which no server may run on meanwhile; its revisions are its own.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The snapshot
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The server's state
    #[arg(long, value_name = "DIR", env = "SVCNET_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Put a store that is there aside; in an etcd: delete it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    etcd: EtcdFlags,
}

/// Read all that a server holds, and say whether it is whole: of one that runs in memory, of one that is stopped on the disk
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The server's state
    #[arg(long, value_name = "DIR", env = "SVCNET_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// The administrator's kubeconfig, for a server that runs
    #[arg(long, value_name = "FILE", env = "KUBECONFIG", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig: PathBuf,
}

/// What a server says of its store.
#[derive(Debug, Deserialize)]
struct Told {
    datastore: String,
    revision: u64,
    failure: Option<String>,
    collections: Vec<Collection>,
}

#[derive(Debug, Deserialize)]
struct Collection {
    name: String,
    objects: u64,
    bytes: u64,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match command {
        Command::Snapshot(args) => runtime.block_on(snapshot(&args)),
        Command::Restore(args) => runtime.block_on(restore(&args)),
        Command::Check(args) => runtime.block_on(check(&args)),
    }
}

async fn snapshot(args: &SnapshotArgs) -> anyhow::Result<()> {
    if args.file.exists() {
        bail!("{} is there already", args.file.display());
    }
    let client = connect::client(&args.kubeconfig).await?;
    let request = http::Request::get(format!("{PATH}/snapshot")).body(Body::empty())?;
    let answer = client.send(request).await.context("ask the API server")?;
    let (head, mut body) = answer.into_parts();
    if !head.status.is_success() {
        let text = body.collect().await?.to_bytes();
        bail!("the server refuses: {}", String::from_utf8_lossy(&text).trim());
    }
    // Whole or not there.
    let aside = args.file.with_extension("part");
    let written = write(&mut body, &aside).await;
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => {
            _ = fs::remove_file(&aside);
            return Err(error).with_context(|| format!("write {}", args.file.display()));
        }
    };
    fs::rename(&aside, &args.file).with_context(|| format!("write {}", args.file.display()))?;
    println!("{} bytes in {}", bytes, args.file.display());
    Ok(())
}

async fn write(body: &mut Body, path: &Path) -> anyhow::Result<u64> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            file.write_all(&data)?;
            bytes += data.len() as u64;
        }
    }
    file.sync_all()?;
    drop(file);
    // A connection that broke looks like an end: the checksum knows.
    let mut whole = Vec::new();
    io::Read::read_to_end(&mut File::open(path)?, &mut whole)?;
    anyhow::ensure!(
        svcnet_apiserver::is_snapshot(&whole),
        "the server's answer was cut short"
    );
    Ok(bytes)
}

async fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let given = Given::default();
    let mut problems = Problems::new(&given);
    let etcd = args.etcd.parse(&mut problems);
    problems.check()?;
    if let Some(etcd) = etcd {
        let done = restore_datastore(&args.file, &etcd, &args.data_dir, args.force).await?;
        println!(
            "{} objects restored to etcd, at its revision {}",
            done.contents.objects(),
            done.revision
        );
        return Ok(());
    }
    let done = restore_store(&args.file, &args.data_dir, args.force)?;
    if let Some(aside) = &done.aside {
        println!("the former store is in {} now", aside.display());
    }
    println!(
        "{} objects restored to {}; revisions go on behind {}",
        done.contents.objects(),
        args.data_dir.join("store").display(),
        done.revision
    );
    Ok(())
}

async fn check(args: &CheckArgs) -> anyhow::Result<()> {
    match check_store(&args.data_dir) {
        Ok(Contents {
            revision,
            collections,
        }) => {
            let rows =
                collections
                    .into_iter()
                    .map(|(name, objects, bytes)| Collection { name, objects, bytes });
            print(&rows.collect::<Vec<_>>())?;
            println!(
                "the store in {} is whole; revisions up to {revision}",
                args.data_dir.join("store").display()
            );
            Ok(())
        }
        // A server has it, or an etcd has.
        Err(here @ Error::Store(OpenError::Locked { .. } | OpenError::Missing { .. }))
            if args.kubeconfig.exists() =>
        {
            let client = connect::client(&args.kubeconfig).await?;
            let request = http::Request::get(PATH).body(Vec::new())?;
            let told: Result<Told, _> = client.request(request).await;
            let told = told.with_context(|| format!("{here}; ask the API server"))?;
            print(&told.collections)?;
            if let Some(why) = told.failure {
                bail!("the server takes no writes: {why}");
            }
            println!(
                "the server takes writes; its datastore is {}, at revision {}",
                told.datastore, told.revision
            );
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn print(collections: &[Collection]) -> anyhow::Result<()> {
    let head = ["COLLECTION", "OBJECTS", "BYTES"].map(str::to_string);
    let rows = collections
        .iter()
        .map(|c| [c.name.clone(), c.objects.to_string(), c.bytes.to_string()]);
    print_table(
        &mut io::stdout().lock(),
        &std::iter::once(head).chain(rows).collect::<Vec<_>>(),
    )?;
    Ok(())
}
