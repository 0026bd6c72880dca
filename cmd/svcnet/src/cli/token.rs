//! `svcnet token`: who may join and who may use the API, by tokens.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Subcommand, ValueEnum};
use http::{Method, Request};
use kube::config::Kubeconfig;
use serde::Deserialize;
use serde_json::{Value, json};
use svcnet_api::names;
use svcnet_api::wellknown::DEFAULT_KUBECONFIG;
use svcnet_runtime::connect;

use super::lab::print_table;
use super::span;

const PATH: &str = "/svcnet/v1/tokens";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// The API to ask: as an administrator
#[derive(Debug, clap::Args)]
struct ApiArgs {
    /// The administrator's kubeconfig
    #[arg(long, value_name = "FILE", env = "KUBECONFIG", default_value = DEFAULT_KUBECONFIG)]
    kubeconfig: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// May do everything
    Admin,
    /// May do what the node of that name may (--node)
    Node,
    /// Sees everything but Secrets
    Viewer,
    /// Lets nodes join
    Join,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CreateOutput {
    /// The token alone
    Token,
    /// A kubeconfig with the token in it
    Kubeconfig,
    /// All that is known of it
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListOutput {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Make a token, and print it: it is shown this once, the server keeps a hash of it
///
/// A token of role join is what `svcnet agent --token` takes. The others are bearer tokens for the API: for
/// `kubectl --token`, or in a kubeconfig (-o kubeconfig).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  svcnet token create --role join --ttl 1h                        for svcnet agent --server URL --token …
  svcnet token create --role viewer --user alice -o kubeconfig    for somebody who only looks
  svcnet token create --role node --node n7 --ttl 0               for a program that acts as the node n7")]
pub(crate) struct CreateArgs {
    /// What the token lets its holder do
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// The node that the holder acts as (role node), or the only one that may join with it (role join)
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    node: String,
    /// What the holder is called, in the audit log for one (roles admin and viewer) [default: after the token's id]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    user: String,
    /// How long it is good, like 90s, 24h or 30d; 0 for one that does not end
    #[arg(long, value_name = "TIME", default_value = "24h")]
    ttl: String,
    /// A note, which `svcnet token list` shows
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// What to print
    #[arg(long, short, value_name = "FORM", default_value = "token")]
    output: CreateOutput,
    #[command(flatten)]
    api: ApiArgs,
}

/// List all tokens, without their secrets
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// What to print
    #[arg(long, short, value_name = "FORM", default_value = "text")]
    output: ListOutput,
    #[command(flatten)]
    api: ApiArgs,
}

/// End tokens: what they let be done ends at once, watches too
///
/// `svcnet token revoke server` replaces the join token in DATA-DIR/token of the server by another. `--node NAME` ends what a
/// node has: the certificates that it was given so far, and tokens that name it. It may join again, with a token that lets it.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// What `svcnet token list` calls them
    #[arg(required_unless_present = "node", value_name = "ID")]
    ids: Vec<String>,
    /// End the certificates of this node, and the tokens that name it
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    role: String,
    user: String,
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    expires: Option<String>,
    description: String,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Create(args) => create(args).await,
            Command::List(args) => list(args).await,
            Command::Revoke(args) => revoke(args).await,
        }
    })
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let ttl = span::parse(&args.ttl).map_err(|why| anyhow::anyhow!("--ttl: {why}"))?;
    if args.role == Role::Join && args.output == CreateOutput::Kubeconfig {
        bail!(
            "--output: a token of role join is for `svcnet agent --token`, and no kubeconfig is made of it"
        );
    }
    let role = args.role.to_possible_value().map(|v| v.get_name().to_string());
    let wanted = json!({
        "role": role, "node": args.node, "user": args.user, "ttlSeconds": ttl.as_secs(),
        "description": args.description,
    });
    let made = ask(&args.api, Method::POST, PATH, &wanted).await?;
    let token = made["token"]
        .as_str()
        .context("the server answers with no token")?;
    let mut out = io::stdout().lock();
    match args.output {
        CreateOutput::Token => writeln!(out, "{token}")?,
        CreateOutput::Json => writeln!(out, "{made:#}")?,
        CreateOutput::Kubeconfig => write!(out, "{}", kubeconfig(&args.api.kubeconfig, token)?)?,
    }
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let all = ask(&args.api, Method::GET, PATH, &Value::Null).await?;
    let mut out = io::stdout().lock();
    if args.output == ListOutput::Json {
        writeln!(out, "{all:#}")?;
        return Ok(());
    }
    let listed: Vec<Listed> = serde_json::from_value(all["items"].clone()).context("the server's answer")?;
    let head = ["ID", "ROLE", "USER", "NODE", "EXPIRES", "DESCRIPTION"].map(str::to_string);
    let rows = listed.into_iter().map(|token| {
        [
            token.id,
            token.role,
            token.user,
            token.node.unwrap_or_else(|| "-".to_string()),
            token.expires.unwrap_or_else(|| "never".to_string()),
            token.description,
        ]
    });
    print_table(&mut out, &std::iter::once(head).chain(rows).collect::<Vec<_>>())?;
    Ok(())
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    if let Some(node) = &args.node {
        if let Some(problem) = names::dns_subdomain(node).first() {
            bail!("--node: {node:?}: {problem}");
        }
        ask(
            &args.api,
            Method::DELETE,
            &format!("{PATH}/nodes/{node}"),
            &Value::Null,
        )
        .await?;
        println!("node/{node} revoked: its certificates and its tokens");
    }
    for id in &args.ids {
        // An id is part of a path: what is none is found nowhere.
        if !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            bail!("{id:?} is no token's id; `svcnet token list` shows them");
        }
        ask(&args.api, Method::DELETE, &format!("{PATH}/{id}"), &Value::Null).await?;
        if id == "server" {
            println!("token/server revoked; another is in DATA-DIR/token of the server");
        } else {
            println!("token/{id} revoked");
        }
    }
    Ok(())
}

async fn ask(api: &ApiArgs, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
    let client = connect::client(&api.kubeconfig).await?;
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)?;
    match client.request::<Value>(request).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => bail!("the server refuses: {}", status.message),
        Err(error) => Err(error).context("ask the API server"),
    }
}

/// The same cluster, by the token.
fn kubeconfig(path: &Path, token: &str) -> anyhow::Result<String> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
    let current = kubeconfig.current_context.as_deref().unwrap_or_default();
    let context = kubeconfig.contexts.iter().find(|c| c.name == current);
    let name = context
        .and_then(|c| c.context.as_ref())
        .map(|c| c.cluster.as_str());
    let cluster = kubeconfig.clusters.iter().find(|c| Some(c.name.as_str()) == name);
    let cluster = cluster
        .and_then(|c| c.cluster.as_ref())
        .context("the kubeconfig names no cluster")?;
    let server = cluster
        .server
        .as_deref()
        .context("the kubeconfig names no server")?;
    let authority = match (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => data.clone(),
        (None, Some(file)) => STANDARD.encode(std::fs::read(file).with_context(|| format!("read {file}"))?),
        (None, None) => bail!("the kubeconfig names no certificate authority"),
    };
    Ok(format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: svcnet\n\
         clusters:\n- name: svcnet\n  cluster:\n    server: {server}\n    certificate-authority-data: {authority}\n\
         contexts:\n- name: svcnet\n  context:\n    cluster: svcnet\n    user: svcnet\n\
         users:\n- name: svcnet\n  user:\n    token: {token}\n"
    ))
}
