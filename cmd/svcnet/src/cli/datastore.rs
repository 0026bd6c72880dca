//! Flags of the datastore that several servers share, by the names that k3s gave them.

use std::path::PathBuf;
use std::sync::Arc;

use svcnet_apiserver::{Endpoint, EtcdConfig};
use svcnet_runtime::resolve;

use crate::settings::Problems;

/// What all keys in an etcd begin with.
const PREFIX: &str = "/svcnet";

/// Where an etcd is, if servers share one.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EtcdFlags {
    /// Share this etcd with other servers, as in https://10.0.0.1:2379, with commas between its members
    /// [default: a store of this server's own in DATA-DIR/store]
    #[arg(long, value_name = "URLS", help_heading = "Datastore")]
    datastore_endpoint: Option<String>,
    /// Authority of etcd's certificate
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    datastore_cafile: Option<PathBuf>,
    /// Certificate that etcd is shown
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    datastore_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    datastore_keyfile: Option<PathBuf>,
}

/// The same, and the token that the servers share.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DatastoreFlags {
    #[command(flatten)]
    etcd: EtcdFlags,
    /// The token of the cluster that the datastore has (DATA-DIR/token of another server), or for the first server
    /// a secret of your own [default: what is in DATA-DIR/token; made when missing]
    #[arg(
        long,
        value_name = "TOKEN",
        help_heading = "Datastore",
        hide_env_values = true
    )]
    token: Option<String>,
    /// The file that holds the token
    #[arg(long, value_name = "FILE", help_heading = "Datastore")]
    token_file: Option<PathBuf>,
}

/// The same, in their types.
#[derive(Debug, Clone)]
pub(crate) struct Datastore {
    pub(crate) etcd: Option<EtcdConfig>,
    pub(crate) token: Option<String>,
}

impl DatastoreFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Datastore {
        Datastore {
            etcd: self.etcd.parse(problems),
            token: self.token(problems),
        }
    }

    fn token(&self, problems: &mut Problems<'_>) -> Option<String> {
        let (flag, text) = match (&self.token, &self.token_file) {
            (Some(text), _) => ("token", text.clone()),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => ("token-file", text),
                Err(error) => {
                    problems.add("token-file", format_args!("{}: {error}", path.display()));
                    return None;
                }
            },
            (None, None) => return None,
        };
        let text = text.trim().to_string();
        // It stands in a file of one line, and goes in a header.
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            problems.add(flag, "is one word of ASCII");
            return None;
        }
        Some(text)
    }
}

impl EtcdFlags {
    pub(crate) fn parse(&self, problems: &mut Problems<'_>) -> Option<EtcdConfig> {
        let files = [
            ("datastore-cafile", &self.datastore_cafile),
            ("datastore-certfile", &self.datastore_certfile),
            ("datastore-keyfile", &self.datastore_keyfile),
        ];
        let Some(text) = &self.datastore_endpoint else {
            for (flag, _) in files.iter().filter(|(_, file)| file.is_some()) {
                problems.add(flag, "is for an etcd, and none is named (--datastore-endpoint)");
            }
            return None;
        };
        let endpoints: Vec<Endpoint> = problems.parse_list("datastore-endpoint", text);
        if endpoints.is_empty() {
            problems.add(
                "datastore-endpoint",
                "needs an endpoint of etcd like https://10.0.0.1:2379",
            );
        }
        let client_files = match (&self.datastore_certfile, &self.datastore_keyfile) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => {
                problems.add(
                    "datastore-certfile",
                    "needs its key as well (--datastore-keyfile)",
                );
                None
            }
            (None, Some(_)) => {
                problems.add(
                    "datastore-keyfile",
                    "needs its certificate as well (--datastore-certfile)",
                );
                None
            }
        };
        Some(EtcdConfig {
            endpoints,
            ca_file: self.datastore_cafile.clone(),
            client_files,
            prefix: PREFIX.to_string(),
            resolve: Some(Arc::new(|host| {
                Box::pin(async move { Ok(resolve::lookup(&host).await?.collect()) })
            })),
        })
    }
}
